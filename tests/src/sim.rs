// SPDX-License-Identifier: GPL-2.0-only
//! Worlds: a test that runs under the scheduler of [`kernel_shim::sched::sim`], as often as there are orders to try.
//!
//! ```no_run
//! use ext4_dio_tests::sim::{self, Layout, Sim, World};
//! let image = sim::image(&Layout { block_size: 1024, journal: false });
//! let report = Sim::random("two writers", 1, 1000).threads(2).run(move || {
//!     let world = World::mount(&image, "dioread_nolock"); // without changes of tasks, so that it costs little
//!     let file = world.open("/data");
//!     let write = |fill: u8| {
//!         let file = file.clone();
//!         sim::spawn("writer", move || sim::write(&file, 0, &[fill; 1024]))
//!     };
//!     let tasks = [write(1), write(2)];
//!     tasks.map(|task| task.join().expect("written"));
//!     let bytes = sim::read(&file, 0, 1024).expect("read");
//!     assert!(bytes == [1; 1024] || bytes == [2; 1024]);
//!     drop(file);
//!     world.finish();
//! });
//! sim::tell(&report);
//! ```
//!
//! * The closure is the world's task number 0, in a simulation of its own each time; nothing may be kept between runs, and nothing may
//!   depend on addresses, the host's time, or on what other runs have done. [`choose`] is where chance comes from.
//! * Everything is one thread: a `std` mutex is fine for notes, but must not be held where tasks may change.
//! * [`on_step`] is called at every step while no task runs. It may look at everything with `try_lock`, and panics if something is wrong.
//! * One seed is one run. A failure prints the seed and a command; with that (`EXT4_DIO_SIM_SEED`) the run is made again, and its trace
//!   of locks, wake-ups, requests and tracepoints is printed.
//! * The world has to end whatever it began: all tasks joined, files dropped, [`World::finish`].

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ext4_dio::file::ext4_file_write;
use ext4_dio::{File, Inode, Kiocb, SuperBlock, ext4_mount, ext4_open, ext4_umount};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::Bdev;
use kernel_shim::block::sim::{DiskImage, SimDisk, SimQueue};
use kernel_shim::error::Result;
use kernel_shim::fs::kiocb::AioComplete;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};
use kernel_shim::sched::sim as machine;
use kernel_shim::sched::{Point, Touch, sched_touch, sched_wait};
use kernel_shim::sync::WaitQueue;

use crate::dio::Pages;
use crate::images::{Image, Mkfs, Source, stamped_blocks};
use crate::sim_policy::{Chance, Seeds};

pub use crate::dio::read;
pub use kernel_shim::sched::sim::{Config, Failure, Recording, choose, end_on_step, note, on_step, quiet};

/// Replays one run: what a failure prints.
pub const SEED_VAR: &str = "EXT4_DIO_SIM_SEED";

/// How the orders are picked.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Random,
    Pct { depth: u32 },
}

/// Runs of a world.
#[derive(Clone, Debug)]
pub struct Sim {
    name: String,
    kind: Kind,
    seed: u64,
    runs: u64,
    threads: usize,
    until: Option<Duration>,
    config: Config,
    /// The command that runs this test alone.
    test: String,
}

/// What was run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The world's name.
    pub name: String,
    /// How many runs.
    pub runs: u64,
    /// How many decisions in all.
    pub steps: u64,
    /// How long it took.
    pub seconds: f64,
    /// Said of the choice of orders.
    pub how: String,
}

/// One line about the runs, also when the test passes.
pub fn tell(report: &Report) {
    let Report { name, runs, steps, seconds, how } = report;
    // Not through the macros, which libtest keeps to itself.
    let _ = writeln!(std::io::stderr(), "sim: {name}: {runs} schedules, {steps} steps, {seconds:.1} s ({how})");
}

impl Sim {
    fn new(name: &str, kind: Kind, seed: u64, runs: u64) -> Self {
        let test = std::thread::current().name().unwrap_or_default().to_string();
        let config = Config::default();
        Self { name: name.to_string(), kind, seed, runs, threads: 1, until: None, config, test }
    }

    /// At each step the next task is drawn, with more or less preference for the one that runs.
    pub fn random(name: &str, seed: u64, runs: u64) -> Self {
        Self::new(name, Kind::Random, seed, runs)
    }

    /// Tasks have random priorities; the running one loses its priority at up to `depth` random steps. Finds bugs that need few changes of
    /// tasks at the right moments with a probability that is known.
    pub fn pct(name: &str, seed: u64, depth: u32, runs: u64) -> Self {
        Self::new(name, Kind::Pct { depth }, seed, runs)
    }

    /// On so many threads of the host, which share the runs.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Goes on past the number of runs until so much time has passed.
    #[must_use]
    pub fn at_least(mut self, time: Duration) -> Self {
        self.until = Some(time);
        self
    }

    /// Other stacks, CPUs, limits.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Runs `world`. Panics if a run fails, with the seed of that run.
    pub fn run(self, world: impl Fn() + Send + Sync + 'static) -> Report {
        let start = Instant::now();
        let world: Arc<dyn Fn() + Send + Sync> = Arc::new(world);
        if let Ok(wanted) = std::env::var(SEED_VAR) {
            return self.replay(&wanted, &world);
        }
        let shared = Arc::new(Seeds::new(self.seed, self.runs, self.until));
        let failed: Mutex<Option<(u64, Failure)>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    if let Err((seed, failure)) = self.run_here(&shared, &world) {
                        shared.stop();
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((seed, failure));
                    }
                });
            }
        });
        if let Some((seed, failure)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            panic!("{}", self.explain(seed, &failure));
        }
        Report {
            name: self.name.clone(),
            runs: shared.runs(),
            steps: shared.steps(),
            seconds: start.elapsed().as_secs_f64(),
            how: format!("{:?}, seed {}", self.kind, self.seed),
        }
    }

    fn chance(&self, shared: &Arc<Seeds>) -> Chance {
        match self.kind {
            Kind::Random => Chance::random(shared.clone()),
            Kind::Pct { depth } => Chance::pct(shared.clone(), depth),
        }
    }

    fn run_here(
        &self,
        shared: &Arc<Seeds>,
        world: &Arc<dyn Fn() + Send + Sync>,
    ) -> std::result::Result<(), (u64, Failure)> {
        let policy = std::rc::Rc::new(std::cell::RefCell::new(self.chance(shared)));
        let world = world.clone();
        machine::run(self.config, policy.clone(), move || world())
            .map(drop)
            .map_err(|failure| (policy.borrow().seed(), failure))
    }

    fn explain(&self, seed: u64, failure: &Failure) -> String {
        format!(
            "world \"{}\" fails with seed {seed:#x} after {} steps: {}\nreplay: {SEED_VAR}='{}={seed:#x}' cargo test -p ext4-dio-tests --test \
             sim -- --exact {} --nocapture",
            self.name, failure.steps, failure.message, self.name, self.test
        )
    }

    /// Makes one run again, and prints its trace.
    fn replay(&self, wanted: &str, world: &Arc<dyn Fn() + Send + Sync>) -> Report {
        let seed = wanted.strip_prefix(&format!("{}=0x", self.name)).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let Some(seed) = seed else { return Report { name: self.name.clone(), ..Report::default() } };
        let (trace, failure) = self.trace(seed, world);
        let mut text = String::new();
        for entry in &trace {
            let _ = writeln!(text, "{entry:?}");
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
        if let Some(failure) = failure {
            panic!("{}", self.explain(seed, &failure));
        }
        Report { name: self.name.clone(), runs: 1, how: "replay".to_string(), ..Report::default() }
    }

    fn trace(&self, seed: u64, world: &Arc<dyn Fn() + Send + Sync>) -> (Vec<machine::Entry>, Option<Failure>) {
        let sim = Self { config: Config { recording: Recording::Trace, ..self.config }, ..self.clone() };
        let shared = Arc::new(Seeds::one(seed));
        match sim.run_here(&shared, world) {
            Ok(()) => (shared.take_trace(), None),
            Err((_, mut failure)) => (std::mem::take(&mut failure.trace), Some(failure)),
        }
    }

    /// The trace of the run with exactly this seed, line by line.
    pub fn trace_of(&self, seed: u64, world: impl Fn() + Send + Sync + 'static) -> Vec<String> {
        let world: Arc<dyn Fn() + Send + Sync> = Arc::new(world);
        let (trace, failure) = self.trace(seed, &world);
        if let Some(failure) = failure {
            panic!("{}", self.explain(seed, &failure));
        }
        trace.iter().map(|entry| format!("{entry:?}")).collect()
    }
}

/// A small file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes in a block.
    pub block_size: u32,
    /// With a journal.
    pub journal: bool,
}

/// What a block of a fresh disk holds that nobody has written: no data of any file.
pub const STALE: u8 = 0xbd;
/// Blocks of each file of [`image`].
pub const FILE_BLOCKS: u32 = 8;

/// A file system of 512 blocks, 4096 with a journal (16 MiB at most), made once per process. All other blocks are full of [`STALE`].
///
/// * `/data`, `/more`: [`FILE_BLOCKS`] blocks, [stamped](crate::images::stamped);
/// * `/unwritten`: as many, allocated, never written;
/// * `/hole`: as large, without blocks;
/// * `/empty`.
pub fn image(layout: &Layout) -> DiskImage {
    static MADE: Mutex<Vec<(Layout, DiskImage)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, image)) = made.iter().find(|(of, _)| of == layout) {
        return image.clone();
    }
    let Layout { block_size, journal } = *layout;
    let blocks = if journal { 4096 } else { 512 };
    let spec = Mkfs {
        block_size,
        size_kib: u64::from(blocks * (block_size / 1024)),
        inodes: 64,
        features: if journal { "" } else { "^has_journal" },
        args: if journal { &["-J", "size=1"] } else { &[] },
        ..Mkfs::default()
    };
    let spec = if journal && block_size > 1024 { Mkfs { args: &[], ..spec } } else { spec };
    let image = Image::make_over(&spec, STALE);
    let source = Source::new();
    source.file("data", &stamped_blocks(FILE_BLOCKS, block_size));
    let data = source.path().join("data");
    let size = FILE_BLOCKS * block_size;
    image.debugfs_script(&[
        format!("write {} data", data.display()),
        format!("write {} more", data.display()),
        "write /dev/null unwritten".to_string(),
        format!("fallocate unwritten 0 {}", FILE_BLOCKS - 1),
        format!("set_inode_field unwritten size {size}"),
        "write /dev/null hole".to_string(),
        format!("set_inode_field hole size {size}"),
        "write /dev/null empty".to_string(),
    ]);
    image.assert_clean();
    let image = DiskImage::new(image.bytes());
    made.push((*layout, image.clone()));
    image
}

/// A mount in a simulation.
pub struct World {
    /// The device.
    pub disk: KArc<SimDisk>,
    /// The mount.
    pub sb: KArc<SuperBlock>,
}

impl World {
    /// Mounts `image`, without changes of tasks.
    pub fn mount(image: &DiskImage, options: &str) -> Self {
        let _quiet = quiet();
        let disk = SimDisk::new(image).expect("memory for a disk");
        let bdev = Bdev::new(SimQueue(disk.clone())).expect("good limits");
        let sb = ext4_mount(bdev, options).expect("mounting");
        machine::settle();
        Self { disk, sb }
    }

    /// Opens for reading and writing, direct.
    pub fn open(&self, path: &str) -> KArc<File> {
        self.open_with(path, OpenFlags::O_DIRECT)
    }

    /// Opens for reading and writing.
    pub fn open_with(&self, path: &str, flags: OpenFlags) -> KArc<File> {
        let _quiet = quiet();
        let file = ext4_open(&self.sb, path, OpenFlags::O_RDWR | flags);
        let file = file.unwrap_or_else(|e| panic!("opening {path}: {e:?}"));
        name_locks(&file);
        file
    }

    /// Nothing of any I/O to `file` is left behind: no lock, no count, no `io_end`.
    pub fn assert_idle(&self, file: &File) {
        let inode: &Inode = file.f_inode();
        let _quiet = quiet();
        assert!(!inode.is_locked(), "i_mutex is held");
        assert!(inode.i_private().i_data_sem.try_write().is_some(), "i_data_sem is held");
        assert!(!inode.i_private().aio.aio_mutex.is_locked(), "the aio mutex is held");
        assert_eq!(inode.i_dio_count(), 0, "i_dio_count");
        let dio = &self.sb.s_fs_info().dio;
        self.sb.drain_direct_io();
        dio.drain_trims();
        assert_eq!(dio.io_ends_available(), dio.io_ends(), "an io_end is missing");
    }

    /// Unmounts, without changes of tasks; the disk.
    pub fn finish(self) -> KArc<SimDisk> {
        let _quiet = quiet();
        ext4_umount(&self.sb).expect("unmounting");
        let Self { disk, sb } = self;
        drop(sb);
        disk
    }
}

/// Gives the locks of a file names in traces.
fn name_locks(file: &File) {
    let inode: &Inode = file.f_inode();
    inode.name_for_traces();
    // SAFETY: only its address is taken.
    machine::name(unsafe { inode.i_private().i_data_sem.raw() }, "i_data_sem");
    // SAFETY: as above.
    machine::name(unsafe { inode.i_private().aio.aio_mutex.raw() }, "aio_mutex");
}

/// A task of the world.
#[must_use = "a task that nobody joins may outlive the world"]
pub struct Joined<T> {
    handle: kernel_shim::sched::JoinHandle,
    result: Arc<Mutex<Option<T>>>,
}

impl<T> Joined<T> {
    /// Sleeps until the task has ended; what it returned.
    pub fn join(self) -> T {
        machine::ended(self.handle.task());
        self.handle.join();
        self.result.lock().unwrap_or_else(PoisonError::into_inner).take().expect("a task that has ended")
    }
}

/// Starts a task of the world.
pub fn spawn<T: Send + 'static>(name: &'static str, f: impl FnOnce() -> T + Send + 'static) -> Joined<T> {
    let result = Arc::new(Mutex::new(None));
    let slot = result.clone();
    let handle = kernel_shim::sched::spawn(name, move || {
        machine::own_task();
        let value = f();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    });
    Joined { handle: handle.expect("memory for a task"), result }
}

/// A write through `file`, direct if it was opened so. `bytes` is copied to aligned memory first.
pub fn write(file: &KArc<File>, pos: i64, bytes: &[u8]) -> Result<usize> {
    crate::dio::write(file, pos, Pages::of(bytes).bytes())
}

/// Hears of the end of asynchronous I/O.
#[derive(Default)]
pub struct Listener {
    told: Mutex<Vec<(usize, Result<usize>)>>,
    count: AtomicU64,
    wake: WaitQueue,
}

impl AioComplete for Listener {
    fn ki_complete(this: &KArc<Self>, ret: Result<usize>, tag: usize) {
        this.told.lock().unwrap_or_else(PoisonError::into_inner).push((tag, ret));
        sched_touch(core::ptr::from_ref(&this.count).cast(), Touch::Change);
        this.count.fetch_add(1, Ordering::Release);
        this.wake.wake_up_all();
    }
}

impl Listener {
    /// One that has heard nothing.
    pub fn new() -> KArc<Self> {
        KArc::new(Self::default(), GFP_KERNEL).expect("memory")
    }

    /// Sleeps until `n` ends were told; what was told, in its order.
    pub fn wait(&self, n: u64) -> Vec<(usize, Result<usize>)> {
        sched_wait(Point::Wait, &self.count, |count| count.load(Ordering::Acquire) >= n);
        self.wake.wait_event(|| self.count.load(Ordering::Acquire) >= n);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Memory of asynchronous I/O: to be kept until its end was told.
pub type Buffer = Box<Pages>;

/// Starts an asynchronous write. The memory goes back with `tag`'s end, so it must be kept until then; `tag` is told to `to`.
pub fn write_async(file: &KArc<File>, pos: i64, buffer: &Buffer, to: &KArc<Listener>, tag: usize) -> Result<usize> {
    // SAFETY: the caller keeps the memory until the end was told, or the simulation, which leaks everything when it fails, is over.
    let mut iocb = unsafe { Kiocb::new_async(file, pos, to.clone(), tag) };
    let iov = [IoVec::source(buffer.bytes())];
    ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
}
