// SPDX-License-Identifier: GPL-2.0-only
//! That the checks can fail: a disk that lies, a mount that does not flush, and code without what makes writes durable.

use ext4_dio::Ext4;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::path::{Cred, path_open};
use ext4_dio_tests::crash_disk::{Choice, Moment};
use ext4_dio_tests::crash_world::Step;
use ext4_dio_tests::differential::POISON;
use ext4_dio_tests::dio::{self, IN_FLIGHT, Mount, Pages, auto, fails_without};
use ext4_dio_tests::oplang::*;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::code::EIO;
use kernel_shim::fs::{FileSystem, OpenFlags};

use crate::check::{Counts, Extra, Scratch, check};
use crate::unit::{Run, Unit, configs, image, run};
use crate::workload::open;

/// The first thing that is wrong at a moment of a run, with one of `choices`.
fn wrong(run: &Run, choices: &[Choice]) -> Option<String> {
    let (scratch, counts) = (Scratch::new(), Counts::default());
    let mut moment = Moment::new(&run.trace, run.base.clone());
    for &point in &run.trace.points {
        moment.advance(point);
        for &choice in choices {
            let image = moment.image(&moment.choose(choice).1);
            if let Err(e) = check(run, point, image, Extra::default(), &scratch, &counts) {
                return Some(format!("moment {point}, {choice}: {e}"));
            }
        }
    }
    None
}

/// Some units with a journal, on disks of both kinds.
fn units() -> Vec<Unit> {
    (0..8).map(Unit::new).filter(|unit| unit.config.journal()).collect()
}

#[test]
fn a_disk_that_lies_is_found_out() {
    for unit in units() {
        let name = unit.name();
        let run = run(unit, true).expect("a disk that lies works until it crashes");
        assert!(wrong(&run, &[Choice::None]).is_some(), "{name}: nothing is missing");
    }
}

#[test]
fn a_mount_without_barriers_is_found_out() {
    for mut unit in units() {
        unit.options += ",nobarrier";
        let name = unit.name();
        let run = run(unit, false).expect("it works until it crashes");
        // fsync flushes in the end; until then commit blocks may be there without what they commit.
        let wrong = wrong(&run, &[Choice::Drop(0), Choice::Drop(1), Choice::Subset(1), Choice::Subset(2)]);
        assert!(wrong.is_some(), "{name}: nothing is missing");
    }
}

/// Writes through `O_DSYNC` and `O_SYNC`, asynchronous and not, into all that a file can have, on a disk that takes its time.
fn written_through(seed: u64, sync: OFlags) -> Unit {
    let mut unit = Unit::new(seed);
    let b = u64::from(unit.config.mkfs.block_size);
    unit.any_order = true;
    unit.what = "written through";
    unit.steps =
        (0..3u8).map(|slot| open(slot, ["d0/f0", "f1", "d1/f2"][usize::from(slot)], OFlags::DIRECT | sync)).collect();
    for n in 0..9u32 {
        let slot = n as u8 % 3;
        // Inside, at the end, and behind it.
        let first = u64::from(n) * 3 * b;
        let list = (0..3).map(|k| (first + 2 * k * b, b as usize)).collect();
        unit.steps.push(Step::Op(Op::Aio { slot, tag: 2 * n + 1, list }));
        let rwf = if n % 2 == 0 { Rwf::APPEND } else { Rwf(0) };
        unit.steps.push(Step::Op(Op::Write { slot, pos: first, len: b as usize, segs: 1, tag: 2 * n + 2, rwf }));
    }
    unit
}

#[test]
fn what_is_written_through_is_durable() {
    for seed in [0, 3, 6] {
        for sync in [OFlags::DSYNC, OFlags::SYNC] {
            let unit = written_through(seed, sync);
            let name = unit.name();
            let wrong = wrong(&run(unit, false).expect("a run"), &[Choice::None]);
            assert_eq!(wrong, None, "{name}");
        }
    }
}

/// `test` fails without `fix`, and says `why`.
fn needs(fix: &str, test: &str, why: &str) {
    let (failed, text) = fails_without(test, fix);
    assert!(failed, "{test} does not need {fix}: {text}");
    assert!(text.contains(why), "without {fix}, {test} fails for another reason: {text}");
}

#[test]
fn and_is_not_if_it_is_synced_too_early() {
    needs("G13", "switches::what_is_written_through_is_durable", "durable since");
}

#[test]
fn nor_if_the_size_comes_after_it() {
    needs("G26", "switches::what_is_written_through_is_durable", "durable since");
}

/// The blocks of a write that met with an error stay unwritten: nobody sees what was in them before.
#[test]
fn a_write_that_failed_shows_nothing() {
    for config in configs().into_iter().filter(|config| config.journal() && config.mkfs.fs_type == "ext4").take(4) {
        let m = Mount::with(&image(&config.mkfs), IN_FLIGHT, auto());
        let flags = OpenFlags::O_RDWR | OpenFlags::O_CREAT | OpenFlags::O_DIRECT;
        let file = path_open(&m.sb, b"/f", flags, 0o600, &Cred::default()).expect("creating");
        ext4_fallocate(file.f_inode(), FallocFlags::empty(), 0, 64 << 10).expect("space");
        m.faults.fail_nth(1, OpMask::WRITE | OpMask::NOT_META);
        assert_eq!(dio::write(&file, 0, Pages::new(32 << 10, 0x11).bytes()), Err(EIO));
        Ext4::fsync(file.f_inode(), 0, i64::MAX, false).expect("a commit");
        drop(file);
        let crashed = Mount::with(&m.disk.durable_image(), IN_FLIGHT, auto());
        let bytes = dio::read(&crashed.open("/f"), 0, 64 << 10).expect("reading");
        assert_eq!(bytes.len(), 64 << 10);
        assert_eq!(bytes.iter().position(|b| *b == POISON), None, "{}: stale data", config.name);
        crashed.finish();
        m.finish();
    }
}

#[test]
fn and_shows_what_was_there_if_it_counts_as_written() {
    needs("G30", "switches::a_write_that_failed_shows_nothing", "stale data");
}
