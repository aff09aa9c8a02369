// SPDX-License-Identifier: GPL-2.0-only
//! The models. Each is short: two or three threads, one or two rounds.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64 as StdU64, Ordering as StdOrdering};
use std::time::Instant;

use loom::sync::Arc as LoomArc;
use loom::thread;

use crate::alloc::{Arc, GFP_KERNEL, Pool};
use crate::atomic::{AtomicU32, EXCHANGES, Ordering, UnsafeCell, WEAKEN_VAR, Weaken, weaken};
use crate::block::{Bio, BioSet, Gendisk, ReqOpf};
use crate::fs::FreezeGate;
use crate::percpu::Counter;
use crate::sched;
use crate::sync::{Completion, Mutex, RwSemaphore, SpinLock, WaitQueue};

/// Runs a model in all its schedules, with at most `preemptions` in each.
fn model(name: &str, preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let runs = LoomArcCounter::default();
    let counted = runs.clone();
    let start = Instant::now();
    builder.check(move || {
        counted.0.fetch_add(1, StdOrdering::Relaxed);
        let _tasks = sched::Tasks::start();
        f();
    });
    let runs = runs.0.load(StdOrdering::Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    // Past libtest, which hides what tests print that pass.
    let line = format!("loom: {name}: {runs} schedules, at most {preemptions} preemptions, {seconds:.2} s\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error");
}

#[derive(Clone, Default)]
struct LoomArcCounter(std::sync::Arc<StdU64>);

/// What the lock under test protects: two accesses that are not ordered are a race, which loom reports.
pub(crate) struct Data(UnsafeCell<u32>);

impl Data {
    pub(crate) fn new() -> Data {
        let data = Data(UnsafeCell::new(0));
        data.bump();
        data
    }

    pub(crate) fn bump(&self) -> u32 {
        let value = self.0.get();
        // SAFETY: `get` has told loom, which ends the model if somebody else is here.
        unsafe {
            *value += 1;
            *value
        }
    }
}

// SAFETY: loom sees to it.
unsafe impl Sync for Data {}
// SAFETY: as above.
unsafe impl Send for Data {}

fn spawn<T: Send + Sync + 'static>(shared: &LoomArc<T>, f: impl FnOnce(&T) + 'static) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || f(&shared))
}

fn join<const N: usize>(threads: [thread::JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().expect("no model goes on after a panic");
    }
}

// ---- mutex

/// Made known to loom.
fn mutex() -> Mutex<()> {
    let mutex = Mutex::new(());
    drop(mutex.lock());
    // SAFETY: only looked at.
    let raw = unsafe { mutex.raw() };
    assert_eq!((raw.nr_waiting(), raw.state()), (0, (0, false)));
    mutex
}

#[test]
fn mutex_excludes() {
    model("mutex: three threads", 2, || {
        let shared = LoomArc::new((mutex(), Data::new()));
        let work = |(mutex, data): &(Mutex<()>, Data)| {
            let _held = mutex.lock();
            data.bump();
        };
        let threads = [spawn(&shared, work), spawn(&shared, work)];
        work(&shared);
        join(threads);
        let _held = shared.0.lock();
        assert_eq!(shared.1.bump(), 5);
    });
}

#[test]
fn mutex_is_handed_over() {
    model("mutex: handing over", 3, || {
        let shared = LoomArc::new((mutex(), Data::new()));
        let other = spawn(&shared, |(mutex, data)| {
            let _held = mutex.lock();
            data.bump();
        });
        for _ in 0..3 {
            let held = shared.0.lock();
            shared.1.bump();
            drop(held);
        }
        join([other]);
        assert_eq!(shared.1.bump(), 6);
    });
    // It is the one thing that a mutex does by an exchange.
    assert_ne!(EXCHANGES.get(), 0, "no schedule came to that");
}

#[test]
fn mutex_try_lock() {
    model("mutex: trying", 3, || {
        let shared = LoomArc::new((mutex(), Data::new()));
        let work = |(mutex, data): &(Mutex<()>, Data)| {
            if let Some(_held) = mutex.try_lock() {
                data.bump();
            }
        };
        let threads = [
            spawn(&shared, work),
            spawn(&shared, |(mutex, data)| {
                let _held = mutex.lock();
                data.bump();
            }),
        ];
        work(&shared);
        join(threads);
    });
}

// ---- rwsem

fn rwsem() -> RwSemaphore<()> {
    let rwsem = RwSemaphore::new(());
    drop(rwsem.write());
    drop(rwsem.read());
    // SAFETY: only looked at.
    assert_eq!(unsafe { rwsem.raw() }.nr_waiting(), 0);
    rwsem
}

/// Readers look at the data together; of the two words, which a writer changes one after the other, they see both.
struct Shared {
    rwsem: RwSemaphore<()>,
    data: loom::cell::UnsafeCell<(u32, u32)>,
}

// SAFETY: loom sees to it.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> LoomArc<Shared> {
        LoomArc::new(Shared { rwsem: rwsem(), data: loom::cell::UnsafeCell::new((0, 0)) })
    }

    fn read(&self) {
        let _held = self.rwsem.read();
        self.look();
    }

    fn look(&self) -> u32 {
        self.data.with(|data| {
            // SAFETY: loom has been told that this reads.
            let (a, b) = unsafe { *data };
            assert_eq!(a, b);
            a
        })
    }

    fn change(&self) {
        self.data.with_mut(|data| {
            // SAFETY: loom has been told that this writes.
            let data = unsafe { &mut *data };
            data.0 += 1;
            data.1 += 1;
        });
    }

    fn write(&self) {
        let _held = self.rwsem.write();
        self.change();
    }
}

#[test]
fn rwsem_readers_and_a_writer() {
    model("rwsem: two readers, a writer", 2, || {
        let shared = Shared::new();
        let threads = [spawn(&shared, Shared::read), spawn(&shared, Shared::read)];
        shared.write();
        join(threads);
        assert_eq!(shared.look(), 1);
    });
}

#[test]
fn rwsem_writers_and_a_reader() {
    model("rwsem: two writers, a reader", 2, || {
        let shared = Shared::new();
        let threads = [spawn(&shared, Shared::write), spawn(&shared, Shared::write)];
        shared.read();
        join(threads);
        assert_eq!(shared.look(), 2);
    });
}

#[test]
fn rwsem_downgrade_and_try() {
    model("rwsem: downgrading, trying", 3, || {
        let shared = Shared::new();
        let threads = [
            spawn(&shared, |shared| {
                let held = shared.rwsem.write();
                shared.change();
                let _held = lock_api::RwLockWriteGuard::downgrade(held);
                shared.look();
            }),
            spawn(&shared, |shared| {
                if let Some(_held) = shared.rwsem.try_write() {
                    shared.change();
                } else if let Some(_held) = shared.rwsem.try_read() {
                    shared.look();
                }
            }),
        ];
        shared.read();
        join(threads);
    });
}

// ---- spinlock

#[test]
fn spinlock_excludes() {
    model("spinlock: three threads", 3, || {
        let lock = SpinLock::new(0);
        *lock.lock() += 1;
        let shared = LoomArc::new(lock);
        let work = |lock: &SpinLock<u32>| *lock.lock() += 1;
        let threads = [
            spawn(&shared, work),
            spawn(&shared, |lock| {
                if let Some(mut held) = lock.try_lock() {
                    *held += 1;
                }
            }),
        ];
        work(&shared);
        join(threads);
        assert!(matches!(*shared.lock(), 3 | 4));
    });
}

// ---- wait queue

struct Waiting {
    queue: WaitQueue,
    tokens: AtomicU32,
    data: Data,
}

impl Waiting {
    fn new() -> LoomArc<Waiting> {
        let this = Waiting { queue: WaitQueue::new(), tokens: AtomicU32::new(0), data: Data::new() };
        assert_eq!((this.queue.nr_waiting(), this.tokens.load(Ordering::Relaxed)), (0, 0));
        LoomArc::new(this)
    }

    fn put(&self) {
        self.tokens.fetch_add(1, Ordering::Release);
    }

    fn take(&self) {
        self.queue.wait_event(|| {
            let mut tokens = self.tokens.load(Ordering::Acquire);
            while tokens > 0 {
                match self.tokens.compare_exchange(tokens, tokens - 1, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return true,
                    Err(now) => tokens = now,
                }
            }
            false
        });
    }
}

#[test]
fn wait_queue_loses_no_wake_up() {
    model("wait queue: one waits", 3, || {
        let shared = Waiting::new();
        let waiter = spawn(&shared, |shared| {
            shared.take();
            shared.data.bump();
        });
        shared.data.bump();
        shared.put();
        shared.queue.wake_up_all();
        join([waiter]);
        assert_eq!(shared.data.bump(), 4);
    });
}

#[test]
fn wait_queue_wakes_one_for_each() {
    model("wait queue: two wait, each is woken", 2, || {
        let shared = Waiting::new();
        let threads = [spawn(&shared, Waiting::take), spawn(&shared, Waiting::take)];
        for _ in 0..2 {
            shared.put();
            shared.queue.wake_up_one();
        }
        join(threads);
    });
}

// ---- completion

#[test]
fn completion_may_go_when_it_was_waited_for() {
    model("completion: on the waiter's stack", 3, || {
        let done = Completion::new();
        assert!(!done.done());
        let done = Box::into_raw(Box::new(done));
        let worker = thread::spawn(move || {
            // SAFETY: the main thread keeps it until it is complete.
            unsafe { &*done }.complete();
        });
        // SAFETY: freed below.
        unsafe { &*done }.wait();
        // SAFETY: whoever completes it does not touch it any more. Loom hears of the end of its cell.
        drop(unsafe { Box::from_raw(done) });
        join([worker]);
    });
}

#[test]
fn completion_for_all() {
    model("completion: for all", 2, || {
        let shared = LoomArc::new((Completion::new(), Data::new()));
        assert!(!shared.0.try_wait());
        let waits = |(done, _): &(Completion, Data)| done.wait();
        let threads = [spawn(&shared, waits), spawn(&shared, waits)];
        shared.0.complete_all();
        join(threads);
    });
}

// ---- reference counts

/// Looks at its data when it goes, as whoever drops it must be able to.
struct Dropped(Data);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.bump();
    }
}

#[test]
fn arc_drops_after_all_uses() {
    model("arc: three holders", 3, || {
        let one = Arc::new((Dropped(Data::new()), SpinLock::new(())), GFP_KERNEL).expect("memory");
        let (two, three) = (one.clone(), one.clone());
        drop(one.1.lock());
        let threads = [two, three].map(|arc| {
            thread::spawn(move || {
                let held = arc.1.lock();
                arc.0.0.bump();
                drop(held);
                drop(arc);
            })
        });
        drop(one);
        join(threads);
    });
}

#[test]
fn arc_is_unique_when_it_says_so() {
    model("arc: get_mut", 3, || {
        let mut one = Arc::new(Data::new(), GFP_KERNEL).expect("memory");
        let two = one.clone();
        let other = thread::spawn(move || {
            two.bump();
            drop(two);
        });
        if let Some(data) = Arc::get_mut(&mut one) {
            data.bump();
        }
        join([other]);
        assert!(Arc::into_inner(one).is_some());
    });
}

// ---- pools

#[test]
fn pool_gives_an_object_to_one_at_a_time() {
    model("pool: two threads, one object", 1, || {
        let pool = Pool::<Data, 1>::new(1, GFP_KERNEL, "loom").expect("memory");
        // All its locks are known.
        assert_eq!(pool.available(), 1);
        drop(pool.try_alloc(Data::new()));
        let shared = LoomArc::new((pool, Data::new()));
        let work = |(pool, data): &(Pool<Data, 1>, Data)| {
            if let Some(object) = pool.try_alloc_with(Data::new) {
                object.bump();
                // Nobody else has it, and what the last one did is seen.
                data.bump();
            }
        };
        let other = spawn(&shared, work);
        work(&shared);
        join([other]);
        assert_eq!(shared.0.available(), 1);
    });
}

/// A set that was filled, with its bios out. Loom knows all of it.
fn bio_set(bios: usize) -> (*mut BioSet, Vec<NonNull<Bio>>) {
    let mut set = BioSet::new();
    set.fill(NonNull::<Gendisk>::dangling(), bios, GFP_KERNEL).expect("memory");
    assert_eq!((set.outstanding(), set.drain(1)), (0, true));
    let taken = (0..bios).map(|_| set.try_get(ReqOpf).expect("a bio").into_nonnull()).collect();
    assert!(!set.drain(0));
    (Box::into_raw(Box::new(set)), taken)
}

fn spawn_with(set: *mut BioSet, f: impl FnOnce(&BioSet) + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // SAFETY: the main thread keeps it until nobody is inside, as the set says.
        f(unsafe { &*set });
    })
}

/// Who finds no bio gets the next that comes back.
#[test]
fn bio_set_wakes_who_waits() {
    model("bio set: one bio for three", 2, || {
        let (set, taken) = bio_set(1);
        let work = |set: &BioSet| {
            let bio = set.get(ReqOpf);
            // SAFETY: from this set, and ours.
            unsafe { set.put(bio.into_nonnull()) };
        };
        let threads = [spawn_with(set, work), spawn_with(set, work)];
        // SAFETY: lives to the end of this closure.
        let shared = unsafe { &*set };
        // SAFETY: from this set, and ours.
        unsafe { shared.put(taken[0]) };
        join(threads);
        // SAFETY: nobody is inside.
        drop(unsafe { Box::from_raw(set) });
    });
}

/// The last bios are waited for, and then the set goes, though somebody may have been inside just now.
#[test]
fn bio_set_goes_when_all_bios_are_back() {
    model("bio set: two come back, the set goes", 2, || {
        let (set, taken) = bio_set(2);
        let threads = [taken[0], taken[1]].map(|bio| {
            // SAFETY: from this set, and this thread's.
            spawn_with(set, move |set| unsafe { set.put(bio) })
        });
        // SAFETY: as in `spawn_with`.
        assert!(unsafe { &*set }.drain(1));
        // SAFETY: nobody is inside.
        drop(unsafe { Box::from_raw(set) });
        join(threads);
    });
}

// ---- counters, freezing

#[test]
fn counter_counts_all() {
    model("per-CPU counter", 3, || {
        let counter = LoomArc::new(Counter::default());
        assert_eq!(counter.load(Ordering::Relaxed), 0);
        let other = spawn(&counter, Counter::inc);
        counter.inc();
        join([other]);
        assert_eq!(counter.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn freezing_waits_for_those_inside_and_keeps_others_out() {
    model("freeze gate", 2, || {
        let gate = FreezeGate::new("loom");
        drop(gate.enter());
        gate.shut();
        gate.open();
        let shared = LoomArc::new((gate, Data::new()));
        let other = spawn(&shared, |(gate, data)| {
            let inside = gate.enter();
            data.bump();
            drop(inside);
        });
        shared.0.shut();
        shared.1.bump();
        shared.0.open();
        join([other]);
    });
}

// ---- the models themselves

/// What each model's primitive cannot do without.
const NEEDS: &[(&str, &[Weaken])] = &[
    ("mutex_excludes", &[Weaken::Release, Weaken::Acquire]),
    ("mutex_is_handed_over", &[Weaken::Release, Weaken::Acquire]),
    ("mutex_try_lock", &[Weaken::Release, Weaken::Acquire]),
    ("rwsem_readers_and_a_writer", &[Weaken::Release, Weaken::Acquire]),
    ("rwsem_writers_and_a_reader", &[Weaken::Release, Weaken::Acquire]),
    ("rwsem_downgrade_and_try", &[Weaken::Release, Weaken::Acquire]),
    ("wait_queue_loses_no_wake_up", &[Weaken::Release, Weaken::Acquire, Weaken::SeqCst]),
    ("wait_queue_wakes_one_for_each", &[Weaken::SeqCst]),
    ("bio_set_goes_when_all_bios_are_back", &[Weaken::Release, Weaken::Acquire]),
    ("arc_drops_after_all_uses", &[Weaken::Release, Weaken::Acquire]),
    ("arc_is_unique_when_it_says_so", &[Weaken::Release, Weaken::Acquire]),
    ("freezing_waits_for_those_inside_and_keeps_others_out", &[Weaken::SeqCst]),
];

/// Each model fails when the orderings are taken out that its primitive needs.
#[test]
fn models_fail_without_the_orderings() {
    assert_eq!(weaken(), Weaken::Nothing);
    let start = Instant::now();
    let mut failed = BTreeMap::new();
    for (test, needs) in NEEDS {
        for need in *needs {
            let output = Command::new(std::env::current_exe().expect("the test binary"))
                .args(["--exact", &format!("sync::models::{test}")])
                .env(WEAKEN_VAR, format!("{need:?}").to_lowercase())
                .output()
                .expect("running the test binary");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("running 1 test"), "no such test: {test}\n{text}");
            assert!(!output.status.success(), "{test} does not notice that {need:?} is missing");
            *failed.entry(format!("{need:?}")).or_insert(0) += 1;
        }
    }
    let line = format!("loom: without the orderings fail: {failed:?}, {:.2} s\n", start.elapsed().as_secs_f64());
    std::io::stderr().write_all(line.as_bytes()).expect("standard error");
}
