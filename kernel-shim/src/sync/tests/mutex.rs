// SPDX-License-Identifier: GPL-2.0-only
//! Tests of [`Mutex`].

use lock_api::RawMutex;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::mutex::RawSleepMutex;
use super::super::{Mutex, WaitQueue};
use super::{Pair, ROUNDS, THREADS, bounded, leak, until};
use crate::sched;

fn raw<T>(mutex: &Mutex<T>) -> &RawSleepMutex {
    // SAFETY: Only looked at.
    unsafe { mutex.raw() }
}

#[test]
fn excludes() {
    bounded(|| {
        let (lock, start) = leak((Mutex::new(Pair::default()), Barrier::new(THREADS as usize)));
        let threads = [(); THREADS as usize].map(|()| {
            thread::spawn(move || {
                start.wait();
                for round in 0..ROUNDS {
                    match round % 4 {
                        0 => until("try_lock", || lock.try_lock().map(|mut pair| pair.step()).is_some()),
                        1 => {
                            let mut pair = lock.lock();
                            // Makes others queue.
                            thread::yield_now();
                            pair.step();
                        }
                        _ => lock.lock().step(),
                    }
                }
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(lock.lock().0, THREADS * ROUNDS);
        drop(lock.lock());
        assert_eq!(raw(lock).state(), (0, false));
        assert!(!raw(lock).is_contended() && raw(lock).nr_waiting() == 0);
    });
}

#[test]
fn owner_and_try_lock() {
    let lock = Mutex::new(());
    let held = lock.lock();
    assert_eq!(raw(&lock).state().0, core::ptr::from_ref(sched::current()).addr());
    assert!(lock.is_locked());
    assert!(lock.try_lock().is_none(), "not even by the owner");
    thread::scope(|scope| {
        scope.spawn(|| assert!(lock.try_lock().is_none()));
    });
    drop(held);
    assert!(!lock.is_locked());
    assert!(lock.try_lock().is_some());
}

#[test]
#[should_panic(expected = "locking")]
fn self_deadlock_is_reported() {
    let lock = Mutex::new(());
    let _one = lock.lock();
    let _two = lock.lock();
}

/// The lock is free between an unlock and the moment at which the woken waiter runs, and may be taken
/// then. But a waiter who has lost so once gets it at the next unlock, and nobody else.
#[test]
fn a_waiter_who_has_lost_once_is_handed_the_lock() {
    /// One attempt; whether we could take the lock from under the waiter's nose.
    fn attempt() -> bool {
        let lock = leak(Mutex::new(()));
        let may_unlock = leak(AtomicBool::new(false));
        let held = lock.lock();
        let waiter = sched::spawn("waiter", || {
            let held = lock.lock();
            until("may unlock", || may_unlock.load(Ordering::Acquire));
            drop(held);
        })
        .unwrap();
        until("the waiter queues", || raw(lock).nr_waiting() == 1);
        drop(held);
        let stolen = lock.try_lock();
        let success = stolen.is_some();
        if let Some(stolen) = stolen {
            until("the waiter notices", || raw(lock).state().1);
            drop(stolen);
            // Without any doing of the waiter's.
            assert_eq!(raw(lock).state(), (core::ptr::from_ref(waiter.task()).addr(), false));
            assert!(lock.try_lock().is_none());
        }
        may_unlock.store(true, Ordering::Release);
        waiter.join();
        assert_eq!(raw(lock).state(), (0, false));
        success
    }
    assert!(bounded(|| (0..1000).any(|_| attempt())), "never won the race");
}

/// A lock that is free while its first waiter is on his way may be taken, unless it is promised to him.
#[test]
fn a_promised_lock_is_not_taken() {
    let free = RawSleepMutex::free_but_awaited(false);
    assert!(free.try_lock());
    // SAFETY: just locked.
    unsafe { free.unlock() };
    assert!(!RawSleepMutex::free_but_awaited(true).try_lock());
}

/// Waiters leave in the order of their coming if nobody barges in.
#[test]
fn waiters_are_served_in_order() {
    bounded(|| {
        let lock = leak(Mutex::new(std::vec::Vec::new()));
        let held = lock.lock();
        let threads: std::vec::Vec<_> = (0..8)
            .map(|id| {
                let thread = sched::spawn("waiter", move || lock.lock().push(id)).unwrap();
                until("it queues", || raw(lock).nr_waiting() == id + 1);
                thread
            })
            .collect();
        drop(held);
        for thread in threads {
            thread.join();
        }
        assert_eq!(*lock.lock(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(!raw(lock).is_contended());
    });
}

/// The owner of an object that contains a mutex may free it as soon as he has the lock, for then the one
/// before has left it.
#[test]
fn may_be_freed_by_the_next_owner() {
    use crate::alloc::{Arc, GFP_KERNEL};
    bounded(|| {
        for _ in 0..2000 {
            let lock = Arc::new(Mutex::new(0), GFP_KERNEL).unwrap();
            let other = lock.clone();
            let thread = thread::spawn(move || {
                *other.lock() += 1;
            });
            *lock.lock() += 1;
            drop(lock);
            thread.join().unwrap();
        }
    });
}

/// A sleeping lock is held across sleeps.
#[test]
fn held_across_a_sleep() {
    bounded(|| {
        let lock = leak(Mutex::new(0));
        let (queue, go) = leak((WaitQueue::new(), AtomicBool::new(false)));
        let sleeper = sched::spawn("sleeper", || {
            let mut held = lock.lock();
            queue.wait_event(|| go.load(Ordering::Acquire));
            *held = 1;
        })
        .unwrap();
        until("it sleeps", || queue.nr_waiting() == 1);
        let waiter = sched::spawn("waiter", || assert_eq!(*lock.lock(), 1)).unwrap();
        until("it queues", || raw(lock).nr_waiting() == 1);
        go.store(true, Ordering::Release);
        queue.wake_up_all();
        sleeper.join();
        waiter.join();
    });
}
