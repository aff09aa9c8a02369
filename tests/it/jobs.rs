// SPDX-License-Identifier: GPL-2.0-only
//! The guest's jobs, run hosted: what they count is right, and what they verify would be noticed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_dio_jobs::{Failure, Machine, run};
use ext4_dio_protocol::script::{self, Script};
use ext4_dio_protocol::{Engine, Event, Fallocate, GEN_ZERO, Job, Layout, Plan, Rw, Step, SyncMode, Target};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::ramdisk::RamDisk;
use kernel_shim::block::{Bdev, BlockDevice, QueueLimits, ReqOp, Request};

/// Keeps what it is told.
#[derive(Default)]
struct Ear {
    events: Mutex<Vec<Event>>,
    bulk: Mutex<Vec<u8>>,
}

impl Machine for Ear {
    fn emit(&self, event: &Event) {
        self.events.lock().unwrap().push(event.clone());
    }

    fn bulk(&self, bytes: &[u8]) {
        self.bulk.lock().unwrap().extend_from_slice(bytes);
    }
}

fn job(name: &str) -> Job {
    Job {
        name: name.into(),
        filename: "/data".into(),
        rw: Rw::RandWrite,
        rwmixread: 50,
        bs: 4096,
        size: None,
        offset: 0,
        offset_increment: 0,
        numjobs: 4,
        iodepth: 1,
        engine: Engine::Sync,
        fsync: 0,
        fdatasync: 0,
        sync: SyncMode::None,
        runtime_ms: None,
        time_based: false,
        number_ios: None,
        direct: true,
        layout: Layout::There,
        fallocate: Fallocate::None,
        file_bytes: 0,
        skip: 0,
        unlink: false,
        end_fsync: false,
        fsync_on_close: false,
        verify: true,
        randseed: 1,
    }
}

fn plan(steps: Vec<(Target, Vec<Job>)>) -> Plan {
    let steps = steps
        .into_iter()
        .enumerate()
        .map(|(id, (target, jobs))| Step { id: id as u32, label: format!("step {id}"), target, jobs })
        .collect();
    Plan { steps, script: None, progress_ms: 50, tables: true, count_instructions: false }
}

fn ext4(options: &str) -> Target {
    Target::Ext4 { disk: 0, options: options.into() }
}

fn disk() -> KArc<RamDisk> {
    RamDisk::from_image(image(&Mkfs::default()), auto()).expect("a RAM disk")
}

fn done(ear: &Ear) -> Vec<Event> {
    let events = ear.events.lock().unwrap();
    events.iter().filter(|e| matches!(e, Event::StepDone { .. } | Event::Verified { .. })).cloned().collect()
}

/// Each engine, pattern and target: every block of every pass is written once, counted, and found again.
#[test]
fn every_engine_counts_and_verifies() {
    let disk = disk();
    let raw = RamDisk::new(1 << 20, auto()).expect("a RAM disk");
    let disks = [Bdev::new(disk.clone()).expect("a disk"), Bdev::new(raw.clone()).expect("a disk")];
    let mut steps = Vec::new();
    for target in [Target::Raw { disk: 1 }, ext4(EXCLUSIVE), ext4(I_DATA_SEM), ext4(IN_FLIGHT)] {
        for (engine, iodepth) in [(Engine::Sync, 1), (Engine::Async, 16)] {
            for rw in [Rw::RandWrite, Rw::Write, Rw::RandRw] {
                steps.push((target.clone(), vec![Job { engine, iodepth, rw, fdatasync: 100, ..job("all") }]));
            }
        }
    }
    let n = steps.len();
    let ear = Ear::default();
    run(&plan(steps), &disks, &ear).expect("the plan");
    let mut finished = 0;
    for event in done(&ear) {
        match event {
            Event::StepDone { jobs, modes, step, .. } => {
                finished += 1;
                let job = &jobs[0];
                assert_eq!((job.errors, job.first_error), (0, 0), "step {step}");
                // Four threads, all of the file each.
                assert_eq!(job.read.ios + job.write.ios, 4 * u64::from(DATA_BLOCKS), "step {step}");
                assert_eq!(job.write.bytes, job.write.ios * 4096);
                assert_eq!(job.write.lat_log2.iter().sum::<u64>(), job.write.ios);
                assert!(job.write.lat_min_ns <= job.write.lat_max_ns && job.write.lat_sum_ns >= job.write.lat_max_ns);
                // Four threads count to a hundred on their own.
                assert!(job.syncs + 4 > job.write.ios / 100 && job.syncs <= job.write.ios / 100, "step {step}");
                let direct = modes.exclusive + modes.i_data_sem + modes.in_flight;
                assert_eq!(direct, if step < 6 { 0 } else { job.write.ios }, "step {step}");
            }
            Event::Verified { blocks, bad, step, .. } => {
                assert_eq!(bad, 0, "step {step}");
                assert!(blocks > u64::from(DATA_BLOCKS) / 2, "step {step}: {blocks}");
            }
            _ => {}
        }
    }
    assert_eq!(finished, n);
    // Two tables, of the disk and of the file.
    assert_eq!(ear.bulk.lock().unwrap().len(), 2 * 4 * DATA_BLOCKS as usize);
    drop(disks);
    disk.check();
    Image::from_bytes(&disk.image()).assert_clean();
}

/// A disk that acknowledges one write without doing it.
struct Liar {
    inner: KArc<RamDisk>,
    writes: AtomicU64,
    lie_at: u64,
    /// Blocks of the request it lied about: two that were next to each other may have become one.
    lost: AtomicU64,
}

impl BlockDevice for Liar {
    fn limits(&self) -> &QueueLimits {
        self.inner.limits()
    }

    fn nr_sectors(&self) -> u64 {
        self.inner.nr_sectors()
    }

    fn queue_rq(&self, rq: Request) {
        if rq.op() == ReqOp::Write && self.writes.fetch_add(1, Ordering::Relaxed) + 1 == self.lie_at {
            self.lost.store(u64::from(rq.nr_bytes() / 4096), Ordering::Relaxed);
            rq.end(Ok(()));
        } else {
            self.inner.queue_rq(rq);
        }
    }

    fn commit_rqs(&self) {
        self.inner.commit_rqs();
    }
}

#[test]
fn a_lost_write_is_found() {
    for engine in [Engine::Sync, Engine::Async] {
        let raw = RamDisk::new(1 << 20, auto()).expect("a RAM disk");
        let liar = Liar { inner: raw, writes: AtomicU64::new(0), lie_at: 77, lost: AtomicU64::new(0) };
        let liar = KArc::new(liar, GFP_KERNEL).expect("memory");
        let disks = [Bdev::new(liar.clone()).expect("a disk")];
        let ear = Ear::default();
        let jobs = vec![Job { engine, iodepth: 8, numjobs: 1, ..job("lied to") }];
        run(&plan(vec![(Target::Raw { disk: 0 }, jobs)]), &disks, &ear).expect("the plan");
        let bad = done(&ear).iter().find_map(|e| match e {
            Event::Verified { bad, blocks, .. } => Some((*bad, *blocks)),
            _ => None,
        });
        let lost = liar.lost.load(Ordering::Relaxed);
        assert!(lost > 0);
        assert_eq!(bad, Some((lost, 256 - lost)), "{engine:?}");
    }
}

/// What cannot be run is told with the name of what is wrong, and leaves nothing mounted.
#[test]
fn bad_plans_are_told() {
    let disk = disk();
    let cases: Vec<(Target, Job, &str)> = vec![
        (ext4("bogus"), job("a"), "bogus"),
        (ext4(IN_FLIGHT), Job { filename: "/nothing".into(), ..job("b") }, "/nothing: ENOENT"),
        (Target::Raw { disk: 7 }, job("c"), "disk 7"),
        (Target::Ext4 { disk: 7, options: String::new() }, job("d"), "disk 7"),
        (ext4(IN_FLIGHT), Job { size: Some(1 << 30), ..job("e") }, "job e.0: size"),
        (ext4(IN_FLIGHT), Job { offset: 1 << 30, ..job("f") }, "job f.0: starts past the end"),
        (ext4(IN_FLIGHT), Job { offset_increment: u64::MAX, ..job("g") }, "job g.1: starts past the end"),
        (ext4(IN_FLIGHT), Job { bs: 100, ..job("h") }, "job h: bs 100"),
        (ext4(IN_FLIGHT), Job { iodepth: 5000, engine: Engine::Async, ..job("i") }, "iodepth 5000"),
        (ext4(IN_FLIGHT), Job { offset: 512, ..job("j") }, "verify needs offsets"),
    ];
    for (target, job, text) in cases {
        let ear = Ear::default();
        let disks = [Bdev::new(disk.clone()).expect("a disk")];
        let Err(Failure { message, .. }) = run(&plan(vec![(target, vec![job])]), &disks, &ear) else {
            panic!("{text}: ran");
        };
        assert!(message.contains(text), "{message:?} does not say {text:?}");
    }
    // An I/O that fails ends its job, not the plan.
    let ear = Ear::default();
    let disks = [Bdev::new(disk.clone()).expect("a disk")];
    let steps = vec![
        (Target::Raw { disk: 1 }, vec![Job { rw: Rw::Trim, ..job("refused") }]),
        (ext4(IN_FLIGHT), vec![job("goes on")]),
    ];
    let mut limits = auto();
    limits.limits.discard = false;
    let disks = [disks[0].clone(), Bdev::new(RamDisk::new(1 << 20, limits).expect("a RAM disk")).expect("a disk")];
    run(&plan(steps), &disks, &ear).expect("the plan");
    let results: Vec<_> = done(&ear)
        .into_iter()
        .filter_map(|e| match e {
            Event::StepDone { jobs, .. } => Some((jobs[0].errors > 0, jobs[0].first_error)),
            _ => None,
        })
        .collect();
    assert_eq!(results, [(true, -95), (false, 0)]);
    drop(disks);
    Image::from_bytes(&disk.image()).assert_clean();
}

const FILE_BYTES: u64 = 1 << 20;

/// A job on a file that is made for the step.
fn fresh(name: &str, fallocate: Fallocate) -> Job {
    let layout = Layout::Fresh;
    Job { filename: "/new/file".into(), layout, fallocate, file_bytes: FILE_BYTES, size: Some(FILE_BYTES), ..job(name) }
}

/// Totals of each step's first job, and what was read back after each: good and bad blocks.
fn totals(ear: &Ear) -> Vec<(ext4_dio_protocol::JobResult, (u64, u64))> {
    let mut all = Vec::new();
    for event in done(ear) {
        match event {
            Event::StepDone { jobs, .. } => all.push((jobs[0].clone(), (0, 0))),
            Event::Verified { blocks, bad, .. } => {
                let last = all.last_mut().expect("a step before its blocks");
                last.1 = (blocks, bad);
            }
            _ => {}
        }
    }
    all
}

fn run_steps(disk: &KArc<RamDisk>, steps: Vec<(Target, Vec<Job>)>) -> Ear {
    let ear = Ear::default();
    let disks = [Bdev::new(disk.clone()).expect("a disk")];
    run(&plan(steps), &disks, &ear).expect("the plan");
    drop(disks);
    disk.check();
    Image::from_bytes(&disk.image()).assert_clean();
    ear
}

/// New files, with each way of allocating them: half is written, and what nobody wrote reads as zeros, though the disk is full of
/// what the last step left.
#[test]
fn new_files_show_nothing_stale() {
    let disk = disk();
    let kinds = [Fallocate::None, Fallocate::Native, Fallocate::Keep, Fallocate::Truncate, Fallocate::Posix];
    let mut steps = Vec::new();
    for fallocate in kinds {
        for (engine, iodepth, direct) in [(Engine::Sync, 1, true), (Engine::Async, 8, true), (Engine::Sync, 1, false)] {
            let half = Job { numjobs: 2, number_ios: Some(64), engine, iodepth, direct, ..fresh("half", fallocate) };
            steps.push((ext4(IN_FLIGHT), vec![half]));
        }
    }
    let n = steps.len();
    let ear = run_steps(&disk, steps);
    let totals = totals(&ear);
    assert_eq!(totals.len(), n);
    for (step, (job, verified)) in totals.iter().enumerate() {
        assert_eq!((job.errors, job.write.ios), (0, 128), "step {step}");
        // Every block of the file was looked at, written or not.
        assert_eq!(*verified, (FILE_BYTES / 4096, 0), "step {step}");
    }
    let bulk = ear.bulk.lock().unwrap();
    let table: Vec<u32> = bulk.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let zeros = table.iter().filter(|entry| **entry & GEN_ZERO != 0).count();
    assert!((128..256).contains(&zeros), "two threads wrote 64 blocks each: {zeros}");
}

/// Appending goes on where the last step ended; opening makes a file; reading has it laid out; unlink removes it.
#[test]
fn files_are_appended_to_laid_out_and_removed() {
    let disk = disk();
    let append = || {
        let layout = Layout::Append;
        Job {
            rw: Rw::Write,
            layout,
            numjobs: 4,
            offset_increment: 4096,
            skip: 3 * 4096,
            ..fresh("append", Fallocate::None)
        }
    };
    let apart = |job: Job| Job { size: Some(FILE_BYTES - 3 * 4096), ..job };
    let read = Job { rw: Rw::RandRw, numjobs: 1, unlink: true, ..fresh("read", Fallocate::None) };
    let steps = vec![
        (ext4(IN_FLIGHT), vec![apart(append())]),
        (ext4(EXCLUSIVE), vec![Job { direct: false, ..apart(append()) }]),
        (
            ext4(IN_FLIGHT),
            vec![Job { engine: Engine::Async, iodepth: 4, fallocate: Fallocate::Keep, ..apart(append()) }],
        ),
        (
            ext4(IN_FLIGHT),
            vec![Job {
                layout: Layout::OnOpen,
                end_fsync: true,
                fsync_on_close: true,
                ..fresh("open", Fallocate::None)
            }],
        ),
        (ext4(IN_FLIGHT), vec![read]),
    ];
    let ear = run_steps(&disk, steps);
    let totals = totals(&ear);
    let blocks = FILE_BYTES / 4096;
    for (step, (job, _)) in totals.iter().enumerate() {
        assert_eq!((job.errors, job.first_error), (0, 0), "step {step}");
    }
    for (step, (job, verified)) in totals.iter().take(3).enumerate() {
        assert_eq!(job.write.ios, blocks, "step {step}");
        assert_eq!(*verified, (blocks, 0), "step {step}: what earlier steps wrote is not looked at again");
    }
    assert_eq!((totals[3].0.syncs, totals[3].1.1), (8, 0), "each of four threads at the end, and when it closes");
    let read = &totals[4].0;
    assert_eq!((read.read.ios + read.write.ios, totals[4].1.1), (blocks, 0));
    assert!(ear.bulk.lock().unwrap().is_empty(), "nothing to be said of a file that was removed");
    let image = Image::from_bytes(&disk.image());
    assert!(!image.debugfs("ls /new").contains("file"), "{}", image.debugfs("ls /new"));
}

/// Trimmed blocks are zeros, on files; what was written around and after is what counts.
#[test]
fn trimmed_blocks_are_zeros() {
    let disk = disk();
    let mut steps = Vec::new();
    for options in [EXCLUSIVE, IN_FLIGHT] {
        for (engine, iodepth) in [(Engine::Sync, 1), (Engine::Async, 4)] {
            let trim = Job { rw: Rw::RandTrim, numjobs: 1, number_ios: Some(100), engine, iodepth, ..job("trim") };
            let write = Job { number_ios: Some(50), ..job("write") };
            steps.push((ext4(options), vec![trim.clone(), write]));
            steps.push((ext4(options), vec![Job { rw: Rw::TrimWrite, ..trim }]));
        }
    }
    let ear = run_steps(&disk, steps);
    for (step, (job, (good, bad))) in totals(&ear).iter().enumerate() {
        assert_eq!((job.errors, *bad), (0, 0), "step {step}");
        assert!(*good >= 50, "step {step}: {good}");
        let want = if step % 2 == 0 { (100, 0) } else { (50, 50) };
        assert_eq!((job.trim.ios, job.write.ios), want, "step {step}");
    }
}

/// Runs a script on a fresh image, which has to be clean afterwards; the lines and what they gave.
fn run_script(text: &str) -> (Result<(), Failure>, Vec<(String, String)>) {
    let disk = disk();
    let lines = script::parse(text, "test.txt").expect("a script");
    let script = Some(Script { file: "test.txt".into(), disk: 0, options: String::new(), lines });
    let ear = Ear::default();
    let disks = [Bdev::new(disk.clone()).expect("a disk")];
    let ended = run(&Plan { script, ..plan(Vec::new()) }, &disks, &ear);
    drop(disks);
    disk.check();
    Image::from_bytes(&disk.image()).assert_clean();
    let events = ear.events.lock().unwrap();
    let ran = events.iter().filter_map(|e| match e {
        Event::Ran { text, out, .. } => Some((text.clone(), out.clone())),
        _ => None,
    });
    (ended, ran.collect())
}

#[test]
fn a_tour_of_what_scripts_do() {
    let text = include_str!("../../qemu/examples/tour.txt");
    let (ended, ran) = run_script(text);
    ended.unwrap_or_else(|e| panic!("{e:?} after {ran:#?}"));
    let out = |line: &str| {
        let found = ran.iter().rev().find(|(text, _)| text == line);
        found.unwrap_or_else(|| panic!("{line} was not run")).1.clone()
    };
    assert!(out("read /docs/a 0 100").ends_with(": \"hello world\""), "{}", out("read /docs/a 0 100"));
    assert_eq!(out("expect EEXIST mkdir /docs"), "EEXIST, as expected");
    assert_eq!(out("seek /docs/a hole 0"), "4096");
    assert_eq!(out("seek /docs/a data 4k"), "65536");
    assert_eq!(out("readlink /docs/link"), "\"../docs/a\"");
    assert_eq!(out("listxattr /docs/d"), "user.colour user.big");
    assert!(out("stat /docs/b").contains("200000 bytes"), "{}", out("stat /docs/b"));
    assert!(out("ls /docs").lines().count() == 5, "{}", out("ls /docs"));
    // 64 KiB of 0xaa, a hole of 64, 64 of 0xaa, 64 of the hole inserted …: as computed by hand.
    let mut want = vec![0xaau8; 1 << 20];
    want[256 << 10..512 << 10].fill(0);
    want[768 << 10..896 << 10].fill(0);
    want.drain(..64 << 10);
    want.splice(128 << 10..128 << 10, vec![0; 64 << 10]);
    let crc = ext4_dio_protocol::crc32c(&want);
    assert_eq!(out("read /docs/b 0 1m"), format!("1048576 bytes, crc32c {crc:08x}"));
}

/// A script ends at the first line that does not do as it should, which is named with its errno.
#[test]
fn a_script_stops_at_what_goes_wrong() {
    for (text, want) in [
        ("mkdir /d\nunlink /none\nmkdir /e\n", "test.txt:2: unlink /none: ENOENT"),
        ("\nexpect ENOENT mkdir /d\nsync", "test.txt:2: expect ENOENT mkdir /d: did not fail with ENOENT"),
        ("expect EISDIR unlink /none", "test.txt:1: expect EISDIR unlink /none: ENOENT instead of EISDIR"),
        ("mount what=1", "test.txt:1: mount what=1: EINVAL"),
        ("expect EINVAL mount what=1\nsync", "test.txt:2: sync: ENXIO"),
    ] {
        let (ended, ran) = run_script(text);
        assert_eq!(ended.expect_err(text).message, want);
        assert!(ran.len() < 2, "{ran:?}");
    }
    let (ended, _) = run_script("expect EINVAL mount what=1\nmount noatime\ncreate /a");
    ended.expect("mounted again");
}
