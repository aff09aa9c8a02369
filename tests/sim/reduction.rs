// SPDX-License-Identifier: GPL-2.0-only
//! Leaving out orders that make no difference leaves out none that does: tiny worlds in each and every order, and in those that the
//! reduction picks, end in the same ways.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ext4_dio_tests::sim;
use ext4_dio_tests::sim_dpor::{Covered, Exhaustive};
use kernel_shim::sched::{Point, sched_point, spawn};
use kernel_shim::sync::{Completion, Mutex as SleepMutex, RwSemaphore, SpinLock, WaitQueue};

/// How a world ended, in words.
type Ends = Arc<Mutex<BTreeSet<String>>>;

/// What the tasks of a world share.
trait Tiny: Default + Send + Sync + 'static {
    /// What task `n` does.
    fn task(&self, n: usize);
    /// How it ended.
    fn end(&mut self) -> String;
}

/// Tells how the world ended when its last task has gone.
struct AtEnd<T: Tiny>(T, Ends);

impl<T: Tiny> Drop for AtEnd<T> {
    fn drop(&mut self) {
        let end = self.0.end();
        self.1.lock().unwrap_or_else(PoisonError::into_inner).insert(end);
    }
}

/// All ends. Nobody waits for the tasks: that alone would be thousands of orders.
fn run<T: Tiny>(how: Exhaustive, tasks: usize) -> (BTreeSet<String>, Covered) {
    let ends = Ends::default();
    let seen = ends.clone();
    let covered = how.run(move || {
        let _quiet = sim::quiet();
        let shared = Arc::new(AtEnd(T::default(), seen.clone()));
        for n in 0..tasks {
            let shared = shared.clone();
            drop(spawn("tiny", move || shared.0.task(n)).expect("memory for a task"));
        }
    });
    assert!(covered.complete, "{covered:?}");
    (std::mem::take(&mut *ends.lock().unwrap_or_else(PoisonError::into_inner)), covered)
}

/// The same ends, in fewer runs. How many ends.
fn compare<T: Tiny>(name: &str, tasks: usize) -> usize {
    let (all, every) = run::<T>(Exhaustive::every_order(name), tasks);
    let (some, reduced) = run::<T>(Exhaustive::new(name), tasks);
    assert_eq!(all, some, "{name}");
    assert!(reduced.schedules < every.schedules);
    println!("{name}: {} ends; {} orders, {} of them enough", all.len(), every.schedules, reduced.schedules);
    assert_eq!(all, compare_lock_steps::<T>(name, tasks), "{name}: locking as one step");
    all.len()
}

/// The same, where locking is one step; with few preemptions, too. The ends.
fn compare_lock_steps<T: Tiny>(name: &str, tasks: usize) -> BTreeSet<String> {
    for few in 0..3 {
        let (all, _) = run::<T>(Exhaustive::every_order(name).lock_steps().preemptions(Some(few)), tasks);
        let (some, _) = run::<T>(Exhaustive::new(name).lock_steps().preemptions(Some(few)), tasks);
        assert_eq!(all, some, "{name}, {few} preemptions");
    }
    let (all, every) = run::<T>(Exhaustive::every_order(name).lock_steps(), tasks);
    let (some, reduced) = run::<T>(Exhaustive::new(name).lock_steps(), tasks);
    assert_eq!(all, some, "{name}");
    println!("{name}: {} ends; {} orders of lock steps, {} enough", all.len(), every.schedules, reduced.schedules);
    all
}

/// Locks that tasks leave their numbers under.
type Lists = [SpinLock<Vec<usize>>; 3];

fn tell(lists: &mut Lists) -> String {
    format!("{:?}", lists.each_mut().map(|list| list.get_mut().clone()))
}

#[test]
fn reduction_of_locks_taken_the_same_way() {
    #[derive(Default)]
    struct World(Lists);
    impl Tiny for World {
        fn task(&self, n: usize) {
            self.0.iter().for_each(|list| list.lock().push(n));
        }
        fn end(&mut self) -> String {
            tell(&mut self.0)
        }
    }
    assert_eq!(compare::<World>("three locks", 2), 8);
}

#[test]
fn reduction_of_locks_taken_crosswise() {
    #[derive(Default)]
    struct World(Lists);
    impl Tiny for World {
        fn task(&self, n: usize) {
            let order = if n == 0 { [0, 1, 2] } else { [2, 1, 0] };
            order.iter().for_each(|list| self.0[*list].lock().push(n));
        }
        fn end(&mut self) -> String {
            tell(&mut self.0)
        }
    }
    assert_eq!(compare::<World>("three locks crosswise", 2), 4);
}

#[test]
fn reduction_of_what_is_not_shared() {
    #[derive(Default)]
    struct World(Lists);
    impl Tiny for World {
        fn task(&self, n: usize) {
            self.0[n].lock().push(n);
            self.0[n].lock().push(n);
        }
        fn end(&mut self) -> String {
            tell(&mut self.0)
        }
    }
    assert_eq!(compare::<World>("locks of one's own", 2), 1);
}

#[test]
fn reduction_of_three_tasks() {
    #[derive(Default)]
    struct World(Lists);
    impl Tiny for World {
        fn task(&self, n: usize) {
            self.0[0].lock().push(n);
        }
        fn end(&mut self) -> String {
            tell(&mut self.0)
        }
    }
    assert_eq!(compare::<World>("three tasks", 3), 6);
}

#[test]
fn reduction_of_a_mutex() {
    #[derive(Default)]
    struct World(SleepMutex<Vec<usize>>, SpinLock<Vec<usize>>);
    impl Tiny for World {
        fn task(&self, n: usize) {
            let mut list = self.0.lock();
            list.push(n);
            self.1.lock().push(n);
            drop(list);
            self.1.lock().push(n);
        }
        fn end(&mut self) -> String {
            format!("{:?} {:?}", self.0.get_mut(), self.1.get_mut())
        }
    }
    // Whoever is first under the mutex is alone under the lock then; the second addition may come at any time.
    assert_eq!(compare::<World>("a mutex over a lock", 2), 6);
}

#[test]
fn reduction_of_readers_and_writers() {
    #[derive(Default)]
    struct World(RwSemaphore<u32>, SpinLock<Vec<u32>>);
    impl Tiny for World {
        fn task(&self, n: usize) {
            if n == 0 {
                *self.0.write() += 1;
                return;
            }
            for _ in 0..2 {
                let seen = *self.0.read();
                self.1.lock().push(seen);
            }
        }
        fn end(&mut self) -> String {
            format!("{:?}", self.1.get_mut())
        }
    }
    assert_eq!(compare::<World>("a reader and a writer", 2), 3);
}

/// Two additions that are a look and a change each: one may be lost.
#[test]
fn reduction_of_atomics() {
    #[derive(Default)]
    struct World(AtomicU32);
    impl Tiny for World {
        fn task(&self, _n: usize) {
            let at = core::ptr::from_ref(&self.0).cast();
            sched_point(Point::Load, at);
            let seen = self.0.load(Ordering::Relaxed);
            sched_point(Point::Atomic, at);
            self.0.store(seen + 1, Ordering::Relaxed);
        }
        fn end(&mut self) -> String {
            self.0.get_mut().to_string()
        }
    }
    assert_eq!(compare::<World>("additions", 2), 2);
}

#[test]
fn reduction_of_wake_ups() {
    #[derive(Default)]
    struct World(WaitQueue, AtomicU32, SpinLock<Vec<u32>>);
    impl Tiny for World {
        fn task(&self, n: usize) {
            let at = core::ptr::from_ref(&self.1).cast();
            if n == 0 {
                sched_point(Point::Atomic, at);
                self.1.store(1, Ordering::Release);
                self.0.wake_up_all();
                self.2.lock().push(0);
                return;
            }
            self.0.wait_event(|| {
                sched_point(Point::Load, at);
                self.1.load(Ordering::Acquire) != 0
            });
            self.2.lock().push(1);
        }
        fn end(&mut self) -> String {
            format!("{:?}", self.2.get_mut())
        }
    }
    assert_eq!(compare::<World>("a wait queue", 2), 2);
}

/// Who only tries to lock sees whether another has it.
#[test]
fn reduction_of_tries() {
    #[derive(Default)]
    struct World(SleepMutex<()>, RwSemaphore<()>, SpinLock<Vec<String>>);
    impl Tiny for World {
        fn task(&self, n: usize) {
            if n == 0 {
                let held = self.0.lock();
                self.2.lock().push("held".to_string());
                drop(held);
                let shared = self.1.read();
                self.2.lock().push("shared".to_string());
                drop(shared);
                return;
            }
            let got = (self.1.try_write().is_some(), self.0.try_lock().is_some());
            self.2.lock().push(format!("{got:?}"));
        }
        fn end(&mut self) -> String {
            format!("{:?}", self.2.get_mut())
        }
    }
    assert_eq!(compare_lock_steps::<World>("tries", 2).len(), 8);
}

/// What direct writes and truncation do: counted under a lock, given up later; who holds the lock waits for the last.
#[test]
fn reduction_of_counts_that_are_waited_for() {
    #[derive(Default)]
    struct World(SleepMutex<()>, AtomicU32, WaitQueue, Completion, SpinLock<Vec<usize>>);
    impl World {
        fn count(&self, kind: Point) -> &AtomicU32 {
            sched_point(kind, core::ptr::from_ref(&self.1).cast());
            &self.1
        }
    }
    impl Tiny for World {
        fn task(&self, n: usize) {
            let locked = self.0.lock();
            if n == 1 {
                self.2.wait_event(|| self.count(Point::Load).load(Ordering::Acquire) == 0);
                self.4.lock().push(n);
                self.3.complete();
                return;
            }
            self.count(Point::Add).fetch_add(1, Ordering::Relaxed);
            drop(locked);
            self.4.lock().push(n);
            if self.count(Point::Atomic).fetch_sub(1, Ordering::AcqRel) == 1 {
                self.2.wake_up_all();
            }
            self.3.wait();
            self.4.lock().push(2);
        }
        fn end(&mut self) -> String {
            format!("{:?}", self.4.get_mut())
        }
    }
    assert_eq!(compare_lock_steps::<World>("counts", 2).len(), 2);
}

/// A step that says nothing of what it touches is lost to the reduction, and not to every order: this is what it relies on.
#[test]
fn reduction_relies_on_what_steps_tell() {
    #[derive(Default)]
    struct World(AtomicU32);
    impl Tiny for World {
        fn task(&self, n: usize) {
            sched_point(Point::Trace, core::ptr::null());
            self.0.store(n as u32, Ordering::Relaxed);
        }
        fn end(&mut self) -> String {
            self.0.get_mut().to_string()
        }
    }
    let (all, _) = run::<World>(Exhaustive::every_order("untold"), 2);
    let (some, _) = run::<World>(Exhaustive::new("untold"), 2);
    assert_eq!((all.len(), some.len()), (2, 1));
}
