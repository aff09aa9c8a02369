// SPDX-License-Identifier: GPL-2.0-only
//! The guest's jobs, run hosted: what they count is right, and what they verify would be noticed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_dio_jobs::{Failure, Machine, run};
use ext4_dio_protocol::{Engine, Event, Job, Plan, Rw, Step, SyncMode, Target};
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
    Plan { steps, progress_ms: 50, tables: true, count_instructions: false }
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
        let liar = Liar { inner: raw, writes: AtomicU64::new(0), lie_at: 77 };
        let liar = KArc::new(liar, GFP_KERNEL).expect("memory");
        let disks = [Bdev::new(liar).expect("a disk")];
        let ear = Ear::default();
        let jobs = vec![Job { engine, iodepth: 8, numjobs: 1, ..job("lied to") }];
        run(&plan(vec![(Target::Raw { disk: 0 }, jobs)]), &disks, &ear).expect("the plan");
        let bad = done(&ear).iter().find_map(|e| match e {
            Event::Verified { bad, blocks, .. } => Some((*bad, *blocks)),
            _ => None,
        });
        assert_eq!(bad, Some((1, 255)), "{engine:?}");
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
        (ext4(IN_FLIGHT), vec![Job { filename: "/holes".into(), ..job("refused") }]),
        (ext4(IN_FLIGHT), vec![job("goes on")]),
    ];
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
