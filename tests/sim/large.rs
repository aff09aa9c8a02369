// SPDX-License-Identifier: GPL-2.0-only
//! Random large worlds: [`ext4_dio_tests::world`] says what they are, [`ext4_dio_tests::worldrun`] how they are run,
//! [`ext4_dio_tests::invariants`] what is looked at meanwhile, [`ext4_dio_tests::history`] what reads may return.
//!
//! A seed is a world and a schedule of it. Most worlds are small, so that there can be many; every [`LARGE_EACH`]-th has up to 32 tasks. Half
//! of the schedules are drawn step by step, half by priorities (PCT). A failure is tried again with fewer tasks and operations, as
//! long as it stays one, and told in readable form.
//!
//! * `EXT4_DIO_SCHEDULES`: how many, at least. 10 000; on threads 3 000 worlds.
//! * `EXT4_DIO_SECONDS`: goes on until so many seconds have passed, and has `e2fsck` look at every image instead of every
//!   [`FSCK_EACH`]-th.
//! * `EXT4_DIO_SEED`: where the seeds begin; after a failure, with `EXT4_DIO_SCHEDULES=1`, exactly that world and schedule, with a trace.
//! * `EXT4_DIO_SHRINK`: for how many seconds to look for a smaller failure. 10; not a number: not at all.
//! * `EXT4_DIO_FIXES=all`: looks, with each fix of the history switched off, whether worlds find that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use ext4_dio_tests::history::poison;
use ext4_dio_tests::images::Image;
use ext4_dio_tests::sim_policy::{Chance, Seeds};
use ext4_dio_tests::world::{How, LARGE, Op, Rng, SMALL, World};
use ext4_dio_tests::worldrun::{Checks, Outcome, Running};
use kernel_shim::block::sim::DiskImage;
use kernel_shim::sched::sim::{Config, Failure, Policy, Recorded, Recording, run};
use kernel_shim::testing::{Fix, REVERT_VAR};

/// So many schedules, unless the environment says otherwise.
const SCHEDULES: u64 = 10_000;
/// So many worlds on threads, unless the environment says otherwise.
const ON_THREADS: u64 = 3_000;
/// One world in so many is large.
const LARGE_EACH: u64 = 64;
/// `e2fsck` looks at one image in so many.
const FSCK_EACH: u64 = 40;
/// What is durable is mounted in one world of so many.
const DURABLE_EACH: u64 = 8;

fn env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    value.strip_prefix("0x").map_or_else(|| value.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a seed is.
fn world_of(seed: u64) -> World {
    World::draw(seed, if Rng(seed).chance(1, LARGE_EACH) { LARGE } else { SMALL })
}

fn chance_of(seed: u64) -> Chance {
    let seeds = Arc::new(Seeds::one(seed));
    let mut rng = Rng(!seed);
    if rng.chance(1, 2) { Chance::random(seeds) } else { Chance::pct(seeds, 1 + rng.below(6) as u32) }
}

/// The file system that a world begins with, over poison; made once per kind and process.
fn image_of(world: &World) -> DiskImage {
    static MADE: Mutex<BTreeMap<(u32, bool), DiskImage>> = Mutex::new(BTreeMap::new());
    let make = || {
        let spec = world.mkfs();
        DiskImage::new(Image::make_over_bytes(&spec, &poison((spec.size_kib << 10) as usize)).bytes())
    };
    lock(&MADE).entry((world.block_size, world.journal)).or_insert_with(make).clone()
}

/// Which worlds and schedules are run, and what came of them; for all threads.
struct Batch {
    /// The seeds of schedules, one after the other.
    next: AtomicU64,
    first: u64,
    wanted: u64,
    until: Option<Instant>,
    /// The world, if it is not that of the seed.
    fixed: Option<World>,
    fsck_each: u64,
    /// What is durable is mounted in all of them.
    durable: bool,
    /// Failures are not printed.
    silent: bool,
    stop: AtomicBool,
    runs: AtomicU64,
    steps: AtomicU64,
    operations: AtomicU64,
    sectors: AtomicU64,
    looks: AtomicU64,
    deep: AtomicU64,
    fscks: AtomicU64,
    larges: AtomicU64,
    faults: AtomicU64,
    /// The smallest seed that failed, and how.
    failure: Mutex<Option<(u64, Failure)>>,
}

impl Batch {
    fn new(first: u64, wanted: u64, until: Option<Instant>) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            next: AtomicU64::new(first),
            first,
            wanted,
            until,
            fixed: None,
            fsck_each: FSCK_EACH,
            durable: false,
            silent: false,
            stop: AtomicBool::new(false),
            runs: zero(),
            steps: zero(),
            operations: zero(),
            sectors: zero(),
            looks: zero(),
            deep: zero(),
            fscks: zero(),
            larges: zero(),
            faults: zero(),
            failure: Mutex::new(None),
        }
    }

    fn world(&self, seed: u64) -> World {
        self.fixed.clone().unwrap_or_else(|| world_of(seed))
    }

    fn take_seed(&self) -> Option<u64> {
        if self.stop.load(Relaxed) {
            return None;
        }
        let seed = self.next.fetch_add(1, Relaxed);
        let enough = seed - self.first >= self.wanted;
        let late = self.until.is_none_or(|until| Instant::now() >= until);
        (!enough || !late && self.wanted != 0).then_some(seed)
    }

    /// Runs on this thread until there are enough, or one fails.
    fn run_here(self: &Arc<Self>, recording: Recording) -> Option<Failure> {
        let now = Rc::new(RefCell::new(Now { seed: 0, world: self.world(0), outcome: None }));
        let policy = Rc::new(RefCell::new(Each {
            batch: self.clone(),
            now: now.clone(),
            chance: chance_of(0),
            trace: Vec::new(),
        }));
        let config = Config { recording, ..Config::default() };
        hook_panics();
        SILENT.set(self.silent);
        let (fsck_each, fixed) = (self.fsck_each, self.durable);
        let world = move || {
            let (world, seed) = {
                let now = now.borrow();
                (now.world.clone(), now.seed)
            };
            // Without a journal a crash may leave anything of files that nobody has synced.
            let durable = if world.journal && seed.is_multiple_of(DURABLE_EACH) || fixed { 2 } else { 0 };
            let checks = Checks { durable, image: seed.is_multiple_of(fsck_each) };
            let outcome = Running::run(&world, &image_of(&world), checks);
            now.borrow_mut().outcome = Some(outcome);
        };
        let mut failure = run(config, policy.clone(), world).err()?;
        let seed = policy.borrow().now.borrow().seed;
        if let Some(text) = PANIC.take() {
            failure.message = text;
        }
        if failure.trace.is_empty() {
            // It was found when the run was over.
            failure.trace = std::mem::take(&mut policy.borrow_mut().trace);
        }
        let mut first = lock(&self.failure);
        self.stop.store(true, Relaxed);
        if first.as_ref().is_none_or(|(other, _)| seed < *other) {
            *first = Some((seed, failure));
            return None;
        }
        None
    }

    /// Runs on `threads` threads. The seed of a failure, and what it says.
    fn run(self: &Arc<Self>, threads: usize) -> Option<(u64, Failure)> {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.run_here(Recording::Nothing));
            }
        });
        lock(&self.failure).take()
    }

    /// A run has ended: looks at what it left.
    fn check(&self, world: &World, mut outcome: Outcome) {
        self.looks.fetch_add(outcome.looks.0, Relaxed);
        self.deep.fetch_add(outcome.looks.1, Relaxed);
        let image = outcome.image.take().filter(|_| world.fault.is_none());
        let warnings = WARNINGS.take();
        assert!(warnings.is_empty() || world.fault.is_some(), "{warnings:?}");
        match outcome.check(world) {
            Ok(sectors) => self.sectors.fetch_add(sectors, Relaxed),
            Err(what) => panic!("{what}"),
        };
        if let Some(image) = image {
            Image::from_bytes(&image).assert_clean();
            self.fscks.fetch_add(1, Relaxed);
        }
        self.runs.fetch_add(1, Relaxed);
        self.operations.fetch_add(world.len() as u64, Relaxed);
        self.larges.fetch_add(u64::from(world.tasks.len() > 4), Relaxed);
        self.faults.fetch_add(u64::from(world.fault.is_some()), Relaxed);
    }

    /// What was done, in a line.
    fn tell(&self, start: Instant) {
        let n = |count: &AtomicU64| count.load(Relaxed);
        let _ = writeln!(
            std::io::stderr(),
            "sim: large worlds: {} worlds and schedules ({} of 5 to 32 tasks, {} with a fault), {} steps, {} operations, {} looks, {} deep \
             ones, {} sectors of reads checked, {} images by e2fsck, {:.1} s, seeds from {:#x}",
            n(&self.runs),
            n(&self.larges),
            n(&self.faults),
            n(&self.steps),
            n(&self.operations),
            n(&self.looks),
            n(&self.deep),
            n(&self.sectors),
            n(&self.fscks),
            start.elapsed().as_secs_f64(),
            self.first
        );
    }
}

/// The run that is under way on a thread.
struct Now {
    seed: u64,
    world: World,
    outcome: Option<Outcome>,
}

/// Each run with a seed of its own.
struct Each {
    batch: Arc<Batch>,
    now: Rc<RefCell<Now>>,
    chance: Chance,
    trace: Vec<kernel_shim::sched::sim::Entry>,
}

impl Policy for Each {
    fn begin(&mut self) -> bool {
        let Some(seed) = self.batch.take_seed() else { return false };
        self.chance = chance_of(seed);
        WARNINGS.take();
        PANIC.take();
        *self.now.borrow_mut() = Now { seed, world: self.batch.world(seed), outcome: None };
        self.chance.begin()
    }

    fn next(&mut self, tasks: &[usize], current: Option<usize>, yielding: bool) -> Option<usize> {
        self.chance.next(tasks, current, yielding)
    }

    fn choose(&mut self, n: u64) -> u64 {
        self.chance.choose(n)
    }

    fn end(&mut self, recorded: Recorded) {
        self.batch.steps.fetch_add(recorded.decisions, Relaxed);
        self.trace = recorded.trace;
        let (world, outcome) = {
            let mut now = self.now.borrow_mut();
            (now.world.clone(), now.outcome.take())
        };
        if let Some(outcome) = outcome {
            self.batch.check(&world, outcome);
        }
    }
}

thread_local! {
    /// What the first panic of the run said: shuttle only says that there was one.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Keeps what panics say, and does not print those of runs that are expected to fail.
fn hook_panics() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload_as_str().unwrap_or_default().to_string();
            let _ = PANIC.try_with(|panic| panic.borrow_mut().get_or_insert(text).len());
            if !SILENT.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
}

/// A failure of a world with fewer operations, if one is found before `until`.
fn shrink(mut world: World, seed: u64, until: Instant) -> Option<(World, u64, Failure)> {
    let mut found = None;
    'smaller: loop {
        for smaller in world.smaller() {
            if Instant::now() >= until {
                break 'smaller;
            }
            let mut batch = Batch::new(seed, 40, None);
            batch.fixed = Some(smaller.clone());
            batch.fsck_each = u64::MAX;
            batch.durable = smaller.journal && seed.is_multiple_of(DURABLE_EACH);
            batch.silent = true;
            if let Some((seed, failure)) = Arc::new(batch).run(1) {
                found = Some((smaller.clone(), seed, failure));
                world = smaller;
                continue 'smaller;
            }
        }
        break;
    }
    found
}

/// What is told of a failure.
fn explain(seed: u64, failure: &Failure) -> String {
    let world = world_of(seed);
    let mut text = format!(
        "world and schedule {seed:#x} fail after {} steps: {}\nreplay, with a trace: EXT4_DIO_SEED={seed:#x} EXT4_DIO_SCHEDULES=1 cargo test -p \
         ext4-dio-tests --test sim -- --exact large::random_worlds --nocapture\n{world}",
        failure.steps, failure.message
    );
    let seconds = match std::env::var("EXT4_DIO_SHRINK") {
        Ok(seconds) => seconds.parse().unwrap_or(0),
        Err(_) => 10,
    };
    if let Some((small, schedule, failure)) = shrink(world, seed, Instant::now() + Duration::from_secs(seconds)) {
        text += &format!("smaller, with schedule {schedule:#x}: {}\n{small}", failure.message);
    }
    text
}

thread_local! {
    /// What the code under test has warned of on this thread: all tasks of a simulation are on one.
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps warnings that only a mistake can bring about, and drops the rest of the log.
fn quiet_log() {
    let keep = |_level: u8, text: &str| {
        if text.contains("WARNING: ") {
            let _ = WARNINGS.try_with(|warnings| warnings.borrow_mut().push(text.to_string()));
        }
    };
    drop(kernel_shim::sched::host::set_sink(Some(Box::new(keep))));
}

#[test]
fn random_worlds() {
    quiet_log();
    let start = Instant::now();
    let seconds = env("EXT4_DIO_SECONDS");
    let wanted = env("EXT4_DIO_SCHEDULES").unwrap_or(SCHEDULES);
    let first = env("EXT4_DIO_SEED").unwrap_or(1);
    let mut batch = Batch::new(first, wanted, seconds.map(|seconds| start + Duration::from_secs(seconds)));
    if seconds.is_some() {
        batch.fsck_each = 1;
    }
    let batch = Arc::new(batch);
    let (threads, recording) = if wanted == 1 { (1, Recording::Trace) } else { (2, Recording::Nothing) };
    let failure = match recording {
        Recording::Nothing => batch.run(threads),
        _ => replay(&batch),
    };
    if let Some((seed, failure)) = failure {
        panic!("{}", explain(seed, &failure));
    }
    batch.tell(start);
}

/// One run with its trace.
fn replay(batch: &Arc<Batch>) -> Option<(u64, Failure)> {
    batch.run_here(Recording::Trace);
    let failure = lock(&batch.failure).take();
    if let Some((_, failure)) = &failure {
        let text: String = failure.trace.iter().map(|entry| format!("{entry:?}\n")).collect();
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    failure
}

/// What both of two have been told is durable is, without a journal as well: neither returns while the other still writes what both need.
#[test]
fn two_fsyncs_of_a_new_file() {
    quiet_log();
    let write = Op::Write { file: 0, pos: 0, len: 4096, how: How { direct: true, ..How::default() } };
    let sync = Op::Fsync { file: 0, datasync: false };
    for (journal, prelude, tasks) in [
        (false, vec![write], vec![vec![sync], vec![sync]]),
        (true, vec![write], vec![vec![sync], vec![sync]]),
        (false, vec![write], vec![vec![sync], vec![Op::Sync], vec![sync]]),
    ] {
        let world = World {
            seed: 0,
            block_size: 1024,
            journal,
            mode: 2,
            cache: (true, false),
            files: 1,
            prelude,
            tasks,
            fault: None,
        };
        let mut batch = Batch::new(1, 60, None);
        (batch.fixed, batch.durable) = (Some(world.clone()), true);
        if let Some((seed, failure)) = Arc::new(batch).run(2) {
            panic!("schedule {seed}: {}\n{world}", failure.message);
        }
    }
}

/// A direct write that extends the file has given `i_mutex` back when it puts the inode among the orphans; another task unlinks the file,
/// and a third has the inode before it on the list of orphans.
#[test]
fn a_file_that_is_written_to_and_unlinked_is_an_orphan_once() {
    quiet_log();
    let queued = How { direct: true, queued: true, ..How::default() };
    let world = World {
        seed: 0,
        block_size: 4096,
        journal: true,
        mode: 2,
        cache: (true, false),
        files: 3,
        prelude: vec![Op::Write { file: 0, pos: 12288, len: 4096, how: How { direct: true, ..How::default() } }],
        tasks: vec![
            vec![Op::Write { file: 2, pos: 4096, len: 12288, how: queued }],
            vec![Op::Unlink { file: 2 }],
            vec![Op::Truncate { file: 0, size: 12288 }],
        ],
        fault: None,
    };
    let mut batch = Batch::new(1, 400, None);
    (batch.fixed, batch.fsck_each) = (Some(world.clone()), 4);
    if let Some((seed, failure)) = Arc::new(batch).run(2) {
        panic!("schedule {seed}: {}\n{world}", failure.message);
    }
}

/// Says on a panic what was being run.
struct Told<'w>(&'w World);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {:#x}, on threads:\n{}", self.0.seed, self.0);
        }
    }
}

/// On threads of the host, with a disk that completes at once: worlds do not depend on the simulation, and many more are run in the time.
#[test]
fn the_same_worlds_on_threads() {
    quiet_log();
    let start = Instant::now();
    let first = env("EXT4_DIO_SEED").unwrap_or(1);
    let wanted = env("EXT4_DIO_SCHEDULES").unwrap_or(ON_THREADS);
    let seconds = Duration::from_secs(env("EXT4_DIO_SECONDS").unwrap_or(0));
    let mut worlds = 0;
    for seed in first.. {
        if worlds >= wanted && start.elapsed() >= seconds {
            break;
        }
        let world = world_of(seed);
        let _told = Told(&world);
        let durable = if world.journal && seed.is_multiple_of(DURABLE_EACH) { 2 } else { 0 };
        let outcome = Running::run(&world, &image_of(&world), Checks { durable, image: false });
        if let Err(what) = outcome.check(&world) {
            panic!("{what}");
        }
        worlds += 1;
    }
    eprintln!("sim: on threads: {worlds} worlds, {:.1} s, seeds from {first:#x}", start.elapsed().as_secs_f64());
}

/// Fixes whose absence random worlds find soon, each within this many schedules.
const FOUND: [(Fix, u64); 11] = [
    (Fix::G1, 400),
    (Fix::G2, 400),
    (Fix::G8, 600),
    (Fix::G10, 400),
    (Fix::G11, 400),
    (Fix::G12, 400),
    (Fix::G17, 400),
    (Fix::G18, 400),
    (Fix::G30, 600),
    (Fix::G32, 400),
    (Fix::G36, 400),
];

/// Whether worlds find that `fix` is switched off, within so many schedules; after how long.
fn finds(fix: Fix, schedules: u64) -> (bool, Duration, String) {
    let start = Instant::now();
    let output = Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", "large::random_worlds", "--nocapture"])
        .env(REVERT_VAR, format!("{fix:?}"))
        .env("EXT4_DIO_SCHEDULES", schedules.to_string())
        .env("EXT4_DIO_SHRINK", "no")
        .env_remove("EXT4_DIO_SECONDS")
        .env_remove("EXT4_DIO_SEED")
        .stdin(Stdio::null())
        .output()
        .expect("running the test binary");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("running 1 test"), "no such test");
    (!output.status.success(), start.elapsed(), text)
}

/// How a failure begins, of what a child printed.
fn first_line(text: &str) -> &str {
    text.lines().find(|line| line.starts_with("world and schedule")).unwrap_or_default()
}

#[test]
fn what_was_fixed_is_found_when_it_is_not() {
    let all = std::env::var("EXT4_DIO_FIXES").is_ok_and(|fixes| fixes == "all");
    let schedules = env("EXT4_DIO_SCHEDULES").unwrap_or(SCHEDULES);
    let list: Vec<(Fix, u64)> = if all { Fix::ALL.map(|fix| (fix, schedules)).to_vec() } else { FOUND.to_vec() };
    let mut found = Vec::new();
    for (fix, schedules) in &list {
        let (failed, took, text) = finds(*fix, *schedules);
        if all {
            let _ =
                writeln!(std::io::stderr(), "{fix:?}: {} {:.1} s {}", failed, took.as_secs_f64(), first_line(&text));
        }
        if failed {
            found.push(*fix);
        }
    }
    let of = if all { "37".to_string() } else { format!("{} tried", list.len()) };
    let most = list.iter().map(|(_, schedules)| *schedules).max().unwrap_or(0);
    let _ = writeln!(
        std::io::stderr(),
        "sim: large worlds: {} of {of} switched-off fixes found within {most} schedules: {found:?}",
        found.len()
    );
    for (fix, schedules) in FOUND {
        assert!(found.contains(&fix), "{fix:?} is switched off, and {schedules} schedules do not show it");
    }
}
