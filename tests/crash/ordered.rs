// SPDX-License-Identifier: GPL-2.0-only
//! `data=ordered` where blocks cannot be marked as unwritten: what a transaction gives to a file is written before it is committed,
//! also if somebody takes it away meanwhile.

use std::cell::RefCell;
use std::rc::Rc;

use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::path::{Cred, path_open};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, ext4_sync_fs};
use ext4_dio_tests::crash_disk::{Choice, Moment, SECTOR};
use ext4_dio_tests::differential::POISON;
use ext4_dio_tests::dio::{IN_FLIGHT, LetGo, Mount, auto, read, write};
use ext4_dio_tests::images::Mkfs;
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::fs::OpenFlags;
use kernel_shim::testing::on_trace;

use crate::check::{Counts, Extra, Scratch, check};
use crate::unit::{Unit, image, run};

const BLOCK: usize = 1024;
const BLOCKS: usize = 8;

/// A file system of ext3, poisoned where nothing is.
fn mount() -> Mount {
    let spec = Mkfs {
        fs_type: "ext3",
        block_size: BLOCK as u32,
        size_kib: 2560,
        inodes: 64,
        args: &["-J", "size=1"],
        ..Mkfs::default()
    };
    Mount::with(&image(&spec), IN_FLIGHT, auto())
}

fn create(m: &Mount, path: &str) -> KArc<File> {
    let flags = OpenFlags::O_RDWR | OpenFlags::O_CREAT;
    path_open(&m.sb, path.as_bytes(), flags, 0o644, &Cred::default()).expect("creating")
}

/// Commits what is running, and writes no data but what that has to.
fn commit(m: &Mount) {
    m.sb.s_fs_info().s_journal().expect("a journal").force_commit().expect("a commit");
}

/// What a crash leaves of `/b`, if nothing is there that need not be: its own bytes or zeros.
fn assert_own(image: &[u8], fill: u8) {
    let m = Mount::with(image, IN_FLIGHT, auto());
    let file = m.open("/b");
    let bytes = read(&file, 0, 4 * BLOCK * BLOCKS).expect("reading");
    let bad = bytes.iter().position(|b| *b != fill && *b != 0);
    assert_eq!(bad, None, "of {} bytes: stale data, {:#04x}", bytes.len(), bad.map_or(0, |n| bytes[n]));
    drop(file);
    m.finish();
}

#[test]
fn a_file_is_cut_while_the_transaction_that_made_it_long_is_committed() {
    let m = mount();
    let (a, b) = (create(&m, "/a"), create(&m, "/b"));
    ext4_sync_fs(&m.sb).expect("syncing");
    // The commit writes their data one after the other: it is still at the first when the second is cut.
    assert_eq!(write(&a, 0, &vec![0x11; 2 * BLOCK]), Ok(2 * BLOCK));
    assert_eq!(write(&b, 0, &vec![0x22; BLOCKS * BLOCK]), Ok(BLOCKS * BLOCK));
    m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
    std::thread::scope(|s| {
        let _go = LetGo(|| m.disk.release());
        let committing = s.spawn(|| commit(&m));
        m.wait_for_data();
        let waiting = m.disk.in_flight();
        let cutting = s.spawn(|| ext4_setattr_size(b.f_inode(), 0));
        // It is cut, or waits for its own data first.
        while !cutting.is_finished() && m.disk.in_flight() == waiting {
            std::thread::yield_now();
        }
        m.disk.release();
        committing.join().expect("the commit");
        cutting.join().expect("no panic").expect("truncate");
    });
    assert_own(&m.disk.durable_image(), 0x22);
    drop((a, b));
    m.finish();
}

/// The first sector of a commit block is there, behind it what was in the log before: the transaction counts.
#[test]
fn half_a_commit_block() {
    let (scratch, counts) = (Scratch::new(), Counts::default());
    for unit in (0..24).step_by(3).map(Unit::new).filter(|unit| unit.config.journal()) {
        let name = unit.name();
        let run = run(unit, false).expect("a run");
        let mut moment = Moment::new(&run.trace, run.base.clone());
        let mut torn = 0;
        for (point, sector, block) in run.trace.commit_blocks().take(3) {
            moment.advance(point);
            let mut image = moment.image(&moment.choose(Choice::None).1);
            let at = sector as usize * SECTOR;
            image[at..at + block.len()].fill(POISON);
            image[at..at + SECTOR].copy_from_slice(&block[..SECTOR]);
            if let Err(e) = check(&run, point, image, Extra::default(), &scratch, &counts) {
                panic!("{name}, moment {point}: {e}");
            }
            torn += 1;
        }
        assert!(torn > 0, "{name}: no commit");
    }
}

#[test]
fn a_hole_is_punched_and_its_pages_are_gone_when_the_transaction_is_committed() {
    let m = Rc::new(mount());
    let b = create(&m, "/b");
    ext4_sync_fs(&m.sb).expect("syncing");
    assert_eq!(write(&b, 0, &vec![0x22; BLOCKS * BLOCK]), Ok(BLOCKS * BLOCK));
    let left = Rc::new(RefCell::new(Vec::new()));
    let tracing = on_trace({
        let (m, left) = (m.clone(), left.clone());
        move |what| {
            if what == "pages dropped" {
                commit(&m);
                *left.borrow_mut() = m.disk.durable_image();
            }
        }
    });
    let mode = FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE;
    ext4_fallocate(b.f_inode(), mode, 0, (4 * BLOCK) as i64).expect("punching a hole");
    drop((tracing, b));
    assert_own(&left.take(), 0x22);
    Rc::into_inner(m).expect("nobody has it any more").finish();
}
