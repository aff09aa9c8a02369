// SPDX-License-Identifier: GPL-2.0-only
//! Tests of work queues.

use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use super::{IDLE, MAX_WORKERS, State, Work, WorkItem, Workqueue};
use crate::alloc::{Arc, GFP_KERNEL, KBox, Pool, PoolBox};
use crate::error::code;
use crate::sched::host::InterruptContext;

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn until(what: &str, mut cond: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !cond() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::yield_now();
    }
}

#[track_caller]
fn bounded(f: impl FnOnce() + Send + 'static) {
    let (done, result) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        // Dropped, even by a panic, when the test is over.
        let _done = done;
        f();
    });
    assert_ne!(result.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Timeout), "hung");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// What the works of one test see.
#[derive(Default)]
struct Scene {
    /// Works of odd number do not end before this is set.
    open: AtomicBool,
    log: Mutex<Vec<u32>>,
}

impl Scene {
    fn new() -> &'static Scene {
        Box::leak(Box::default())
    }

    fn log(&self) -> Vec<u32> {
        self.log.lock().unwrap().clone()
    }
}

/// Logs its number.
struct Note {
    work: Work,
    id: u32,
    scene: &'static Scene,
}

impl Note {
    fn new(id: u32, scene: &'static Scene) -> Note {
        Note { work: Work::new(), id, scene }
    }
}

impl WorkItem for Note {
    type Pointer = PoolBox<Note>;

    fn work(&self) -> &Work {
        &self.work
    }

    fn run(this: PoolBox<Note>) {
        if this.id % 2 == 1 {
            until("open", || this.scene.open.load(Ordering::Acquire));
        }
        this.scene.log.lock().unwrap().push(this.id);
    }
}

#[test]
fn one_worker_keeps_the_order() {
    bounded(|| {
        let scene = Scene::new();
        scene.open.store(true, Ordering::Release);
        let pool = Pool::<Note, 64>::new(64, GFP_KERNEL, "notes").unwrap();
        let queue = Workqueue::new("ordered", 1).unwrap();
        assert_eq!(queue.name(), "ordered");
        for id in 0..64 {
            queue.queue(pool.try_alloc(Note::new(id, scene)).ok().unwrap()).ok().unwrap();
        }
        queue.drain();
        assert_eq!(scene.log(), (0..64).collect::<Vec<_>>());
        assert_eq!(pool.available(), 64);
        queue.drain();
        queue.flush();
    });
}

/// A flush waits for what was queued before it, and for nothing else.
#[test]
fn flush_waits_for_the_works_before_it() {
    bounded(|| {
        let scene = Scene::new();
        let pool = Pool::<Note, 8>::new(8, GFP_KERNEL, "notes").unwrap();
        let queue = Workqueue::new("flush", 2).unwrap();
        let put = |id| queue.queue(pool.try_alloc(Note::new(id, scene)).ok().unwrap()).ok().unwrap();
        put(0);
        put(2);
        queue.flush();
        let mut seen = scene.log();
        seen.sort_unstable();
        assert_eq!(seen, [0, 2]);
        // One worker is stuck; the other one goes on.
        put(1);
        put(4);
        until("it is done", || scene.log().len() == 3);
        let flushed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                queue.flush();
                flushed.store(true, Ordering::Release);
            });
            until("the flush waits", || queue.shared.done.has_waiters());
            put(6);
            until("it is done", || scene.log().len() == 4);
            assert!(!flushed.load(Ordering::Acquire), "number 1 has not ended");
            scene.open.store(true, Ordering::Release);
        });
        assert_eq!(scene.log()[3..], [6, 1]);
    });
}

#[test]
fn queueing_neither_sleeps_nor_allocates() {
    bounded(|| {
        let scene = Scene::new();
        let pool = Pool::<Note, 8>::new(8, GFP_KERNEL, "notes").unwrap();
        let queue = Workqueue::new("irq", 1).unwrap();
        let note = pool.try_alloc(Note::new(2, scene)).ok().unwrap();
        #[cfg(feature = "fault-injection")]
        let before = crate::alloc::fault::allocations();
        let irq = InterruptContext::enter();
        queue.queue(note).ok().unwrap();
        drop(irq);
        #[cfg(feature = "fault-injection")]
        assert_eq!(crate::alloc::fault::allocations(), before);
        queue.drain();
        assert_eq!(scene.log(), [2]);
    });
}

/// Shared, and counts how often it was run.
#[derive(Default)]
struct Shared {
    work: Work,
    runs: AtomicU32,
    running: AtomicBool,
    open: AtomicBool,
}

impl WorkItem for Shared {
    type Pointer = Arc<Shared>;

    fn work(&self) -> &Work {
        &self.work
    }

    fn run(this: Arc<Shared>) {
        this.running.store(true, Ordering::Release);
        until("open", || this.open.load(Ordering::Acquire));
        this.runs.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_pending_work_is_not_queued_again_but_a_running_one_is() {
    bounded(|| {
        let shared = Arc::new(Shared::default(), GFP_KERNEL).unwrap();
        let queue = Workqueue::new("pending", 1).unwrap();
        assert!(queue.queue(shared.clone()).is_ok());
        until("it runs", || shared.running.load(Ordering::Acquire));
        assert!(!shared.work.is_pending());
        assert!(queue.queue(shared.clone()).is_ok());
        assert!(shared.work.is_pending());
        let back = queue.queue(shared.clone()).unwrap_err();
        assert!(Arc::ptr_eq(&back, &shared));
        drop(back);
        shared.open.store(true, Ordering::Release);
        queue.drain();
        assert_eq!(shared.runs.load(Ordering::Relaxed), 2);
        assert_eq!(Arc::strong_count(&shared), 1);
    });
}

/// Queues itself again until its number is 0.
struct Countdown {
    work: Work,
    queue: Option<Arc<Workqueue>>,
    left: u32,
    /// Dropped after `queue`.
    scene: End,
}

/// Logs its end.
struct End(&'static Scene);

impl Drop for End {
    fn drop(&mut self) {
        self.0.log.lock().unwrap().push(u32::MAX);
    }
}

impl WorkItem for Countdown {
    type Pointer = KBox<Countdown>;

    fn work(&self) -> &Work {
        &self.work
    }

    fn run(mut this: KBox<Countdown>) {
        this.scene.0.log.lock().unwrap().push(this.left);
        if this.left == 0 {
            return;
        }
        this.left -= 1;
        if let Some(queue) = this.queue.clone() {
            queue.queue(this).ok().unwrap();
        }
    }
}

#[test]
fn drain_waits_for_what_works_queue() {
    bounded(|| {
        let scene = Scene::new();
        let queue = Workqueue::new("again", 2).unwrap();
        let item = Countdown { work: Work::new(), queue: Some(queue.clone()), left: 100, scene: End(scene) };
        queue.queue(KBox::new(item, GFP_KERNEL).unwrap()).ok().unwrap();
        queue.drain();
        assert_eq!(scene.log(), (0..=100).rev().chain([u32::MAX]).collect::<Vec<_>>());
    });
}

#[test]
fn drop_runs_what_is_queued() {
    bounded(|| {
        let scene = Scene::new();
        scene.open.store(true, Ordering::Release);
        let pool = Pool::<Note, 64>::new(64, GFP_KERNEL, "notes").unwrap();
        let queue = Workqueue::new("dropped", 3).unwrap();
        for id in 0..64 {
            queue.queue(pool.try_alloc(Note::new(id, scene)).ok().unwrap()).ok().unwrap();
        }
        drop(queue);
        assert_eq!((scene.log().len(), pool.available()), (64, 64));
    });
}

/// The last reference to a queue may go in one of its works.
#[test]
fn a_work_may_drop_its_queue() {
    bounded(|| {
        let scene = Scene::new();
        let queue = Workqueue::new("own end", 1).unwrap();
        let item = Countdown { work: Work::new(), queue: Some(queue.clone()), left: 3, scene: End(scene) };
        queue.queue(KBox::new(item, GFP_KERNEL).unwrap()).ok().unwrap();
        drop(queue);
        until("it is over", || scene.log() == [3, 2, 1, 0, u32::MAX]);
    });
}

#[derive(Debug)]
struct Static {
    work: Work,
    runs: AtomicU32,
}

impl WorkItem for Static {
    type Pointer = &'static Static;

    fn work(&self) -> &Work {
        &self.work
    }

    fn run(this: &'static Static) {
        assert!(this.runs.fetch_add(1, Ordering::Relaxed) < 1, "as the test wants it");
    }
}

#[test]
fn a_panic_in_a_work_is_reported_to_those_who_wait() {
    bounded(|| {
        static ITEM: Static = Static { work: Work::new(), runs: AtomicU32::new(0) };
        let queue = Workqueue::new("panics", 1).unwrap();
        queue.queue(&ITEM).unwrap();
        queue.flush();
        queue.queue(&ITEM).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| queue.flush())).is_err());
        assert_eq!(ITEM.runs.load(Ordering::Relaxed), 2);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(queue))).is_err(), "its thread is joined");
    });
}

/// What each kind of pointer does under contention: every work is run, and once per queueing.
#[test]
fn stress() {
    bounded(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        struct Item(Work);
        impl WorkItem for Item {
            type Pointer = PoolBox<Item>;
            fn work(&self) -> &Work {
                &self.0
            }
            fn run(_: PoolBox<Item>) {
                RUNS.fetch_add(1, Ordering::Relaxed);
            }
        }
        let pool = Pool::<Item, 16>::new(16, GFP_KERNEL, "items").unwrap();
        let queue = Workqueue::new("stress", 3).unwrap();
        let queued: u32 = thread::scope(|scope| {
            let threads = [(); 3].map(|()| {
                scope.spawn(|| {
                    let mut queued = 0;
                    while queued < 10_000 {
                        match pool.try_alloc(Item(Work::new())) {
                            Ok(item) => {
                                queue.queue(item).ok().unwrap();
                                queued += 1;
                            }
                            Err(_) => queue.flush(),
                        }
                    }
                    queued
                })
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        queue.drain();
        assert_eq!((RUNS.load(Ordering::Relaxed), pool.available()), (queued, 16));
    });
}

/// The oldest work is the first of those queued or the oldest of those running, in whichever thread.
#[test]
fn the_oldest_work() {
    let mut state = State::new();
    assert_eq!(state.oldest(), IDLE);
    state.running[MAX_WORKERS - 1] = 5;
    state.running[0] = 7;
    assert_eq!(state.oldest(), 5);
    let work = Work::new();
    state.next_seq = 4;
    state.push(&work);
    assert_eq!(state.oldest(), 4);
    state.start(5);
    assert_eq!(state.oldest(), 4);
    state.running[5] = IDLE;
    assert_eq!((state.oldest(), state.next_seq), (5, 5));
}

#[test]
fn how_many_workers() {
    assert_eq!(Workqueue::new("none", 0).err(), Some(code::EINVAL));
    assert_eq!(Workqueue::new("too many", MAX_WORKERS + 1).err(), Some(code::EINVAL));
    assert_eq!(Workqueue::new("all", MAX_WORKERS).unwrap().workers.len(), MAX_WORKERS);
}

#[test]
#[cfg(feature = "fault-injection")]
fn without_memory() {
    use crate::alloc::fault::{allocations, fail_nth_allocation};
    bounded(|| {
        let before = allocations();
        drop(Workqueue::new("counted", 2).unwrap());
        let count = allocations() - before;
        // What is shared, the list of threads, two for each thread, the queue.
        assert_eq!(count, 7);
        for n in 1..=count {
            let fault = fail_nth_allocation(n);
            assert_eq!(Workqueue::new("fails", 2).err(), Some(code::ENOMEM), "allocation {n}");
            assert!(fault.fired());
        }
    });
}
