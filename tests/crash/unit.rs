// SPDX-License-Identifier: GPL-2.0-only
//! One run: a file system, a disk, what is done, and the record of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ext4_dio_tests::clean::{Clean, Log};
use ext4_dio_tests::crash_disk::{CrashDisk, Trace};
use ext4_dio_tests::crash_world::{Step, World};
use ext4_dio_tests::differential::POISON;
use ext4_dio_tests::dio::{LetGo, MODES};
use ext4_dio_tests::images::{FAKE_TIME, Image, Mkfs};
use ext4_dio_tests::ours::Ours;
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::Bdev;
use kernel_shim::block::ramdisk::{Mode, RamDisk, RamDiskOptions, Recording};
use kernel_shim::sched::host::stop_clock;

use crate::workload::{SCRIPTS, random, setup};

/// A kind of file system and disk.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// For messages.
    pub(crate) name: &'static str,
    /// How it is made.
    pub(crate) mkfs: Mkfs,
    /// Mount options, besides the lock mode.
    pub(crate) options: &'static str,
    /// The disk knows FUA.
    pub(crate) fua: bool,
}

impl Config {
    /// There is a journal.
    pub(crate) fn journal(&self) -> bool {
        !self.mkfs.features.contains("^has_journal")
    }

    fn extents(&self) -> bool {
        self.mkfs.fs_type == "ext4"
    }
}

/// All kinds. Small blocks are tried more often: their images are smaller.
pub(crate) fn configs() -> Vec<Config> {
    let ext4 = Mkfs { block_size: 1024, size_kib: 2560, inodes: 64, args: &["-J", "size=1"], ..Mkfs::default() };
    let ext3 = Mkfs { fs_type: "ext3", ..ext4.clone() };
    let plain = |name, mkfs: &Mkfs| Config { name, mkfs: mkfs.clone(), options: "data=ordered", fua: false };
    vec![
        plain("ext4", &ext4),
        Config { options: "data=writeback", ..plain("ext4, writeback", &ext4) },
        plain("orphan_file", &Mkfs { features: "orphan_file", ..ext4.clone() }),
        plain("ext3", &ext3),
        plain("2 KiB", &Mkfs { block_size: 2048, size_kib: 4608, args: &["-J", "size=2"], ..ext4.clone() }),
        plain("no checksums", &Mkfs { features: "^metadata_csum,^64bit", ..ext4.clone() }),
        Config { fua: true, ..plain("ext4, FUA", &ext4) },
        Config { options: "data=writeback", ..plain("ext3, writeback", &ext3) },
        Config { options: "data=ordered,discard", ..plain("ext4, discard", &ext4) },
        Config { options: "data=journal", ..plain("ext4, data=journal", &ext4) },
        plain("4 KiB", &Mkfs { block_size: 4096, size_kib: 8704, args: &["-J", "size=4"], ..ext4.clone() }),
        plain("small inodes", &Mkfs { features: "^metadata_csum,uninit_bg", inode_size: 128, ..ext4.clone() }),
        plain("no journal", &Mkfs { features: "^has_journal", args: &[], ..ext4 }),
    ]
}

/// A new file system, poisoned where nothing is; made once.
pub(crate) fn image(mkfs: &Mkfs) -> Vec<u8> {
    made(mkfs).0
}

/// A file system, and where its journal is.
type Made = (Vec<u8>, Log);

fn made(mkfs: &Mkfs) -> Made {
    static MADE: Mutex<Option<HashMap<String, Made>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{mkfs:?}");
    let make = || {
        let mut bytes = Image::make_over(mkfs, POISON).bytes();
        // Where mke2fs looks for what others have left, and wipes it: nothing is there in a file system of one group.
        let end = bytes.len() - (64 << 10);
        bytes[end..].fill(POISON);
        let image = Image::from_bytes(&bytes);
        image.assert_clean();
        let log = Log::of(&image, mkfs.block_size as usize);
        (bytes, log)
    };
    made.get_or_insert_default().entry(key).or_insert_with(make).clone()
}

/// What is run, and on what.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// Determines everything.
    pub(crate) seed: u64,
    /// Where.
    pub(crate) config: Config,
    /// Mount options.
    pub(crate) options: String,
    /// Requests end in any order, some time after they were queued, in threads of the disk; else at once, and then one run is like the
    /// other.
    pub(crate) any_order: bool,
    /// Somebody else commits all the time, so that commits come in the middle of operations.
    pub(crate) commits: bool,
    /// So many transactions are in the log before the run: it may go round in the middle.
    pub(crate) log: u64,
    /// The name of the script, or "random".
    pub(crate) what: &'static str,
    /// What is done, after the setup.
    pub(crate) steps: Vec<Step>,
}

impl Unit {
    /// The unit with this number.
    pub(crate) fn new(seed: u64) -> Self {
        let configs = configs();
        let config = configs[(seed % configs.len() as u64) as usize].clone();
        let block = config.mkfs.block_size;
        // Every fourth is done by hand.
        let script = seed.is_multiple_of(4).then(|| &SCRIPTS[(seed / 4) as usize % SCRIPTS.len()]);
        Self {
            seed,
            options: format!("{},noatime,{}", MODES[(seed % 5).min(2) as usize], config.options),
            any_order: !seed.is_multiple_of(3),
            commits: seed % 3 == 2,
            log: seed * 97 % 400,
            what: script.map_or("random", |script| script.name),
            steps: script.map_or_else(|| random(seed, block, 24), |script| (script.steps)(u64::from(block))),
            config,
        }
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        let order = if self.any_order { ", requests in any order" } else { "" };
        let commits = if self.commits { ", commits at any time" } else { "" };
        format!("{} ({}{order}{commits}), {}", self.config.name, self.options, self.what)
    }
}

/// A run that is over.
pub(crate) struct Run {
    /// What was run.
    pub(crate) unit: Unit,
    /// The disk when the recording began, all of it durable.
    pub(crate) base: Vec<u8>,
    /// What was written since.
    pub(crate) trace: Trace,
    /// What was promised.
    pub(crate) world: World,
    /// What `e2fsck -fn` has seen of what came of it.
    pub(crate) clean: Clean,
}

/// Either disk.
enum Disk {
    Ram(KArc<RamDisk>),
    Sync(KArc<CrashDisk>),
}

impl Disk {
    fn new(unit: &Unit) -> Self {
        let bytes = image(&unit.config.mkfs);
        if !unit.any_order {
            return Disk::Sync(KArc::new(CrashDisk::new(bytes, unit.config.fua), GFP_KERNEL).expect("memory"));
        }
        let mut options = RamDiskOptions { seed: unit.seed, ..RamDiskOptions::default() };
        options.mode = Mode::Auto { workers: 2, latency_ns: 0..80_000 };
        options.limits.fua = unit.config.fua;
        Disk::Ram(RamDisk::from_image(bytes, options).expect("a disk"))
    }

    fn bdev(&self) -> Bdev {
        match self {
            Disk::Ram(disk) => Bdev::new(disk.clone()),
            Disk::Sync(disk) => Bdev::new(disk.clone()),
        }
        .expect("good limits")
    }

    fn start(&self) -> Vec<u8> {
        match self {
            Disk::Ram(disk) => {
                disk.start_recording();
                disk.image()
            }
            Disk::Sync(disk) => {
                disk.start_recording();
                disk.image()
            }
        }
    }

    fn recorded(&self) -> usize {
        match self {
            Disk::Ram(disk) => disk.recorded(),
            Disk::Sync(disk) => disk.recorded(),
        }
    }

    fn take(&self) -> Recording {
        match self {
            Disk::Ram(disk) => disk.take_recording(),
            Disk::Sync(disk) => disk.take_recording(),
        }
    }
}

/// Runs a unit, to the end of unmounting. A disk that `lies` ignores flushes.
pub(crate) fn run(unit: Unit, lies: bool) -> Result<Arc<Run>, String> {
    // What is recovered twice is the same twice, times included.
    stop_clock(FAKE_TIME * 1_000_000_000);
    let disk = Disk::new(&unit);
    let block = unit.config.mkfs.block_size;
    let mut ours = Ours::over(disk.bdev(), &unit.options).map_err(|e| format!("mounting: errno {e}"))?;
    let mut world = World::new(&mut ours, block, unit.config.journal())?;
    let log = if unit.config.journal() { unit.log } else { 0 };
    for step in setup(block, unit.config.extents(), log) {
        world.run(&mut ours, &step, &|| 0).map_err(|e| format!("{step}: errno {e}"))?;
    }
    let base = disk.start();
    let recorded = || disk.recorded();
    let journal = ours.sb().ok().and_then(|sb| sb.s_fs_info().s_journal().cloned());
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        if let (true, Some(journal)) = (unit.commits, &journal) {
            let over = &over;
            s.spawn(move || {
                while !over.load(Ordering::Relaxed) && journal.force_commit().is_ok() {
                    std::thread::yield_now();
                }
            });
        }
        let _over = LetGo(|| over.store(true, Ordering::Relaxed));
        for step in &unit.steps {
            let _ = world.run(&mut ours, step, &recorded);
        }
    });
    drop(journal);
    world.unmount(&mut ours, &recorded).map_err(|e| format!("unmounting: errno {e}"))?;
    let clean = Clean::new(made(&unit.config.mkfs).1);
    Ok(Arc::new(Run { unit, base, trace: Trace::new(disk.take(), lies), world, clean }))
}
