// SPDX-License-Identifier: GPL-2.0-only
//! Each report is provoked, without the deadlock that it is about.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

use super::{LockMap, for_each_order, lock_order, subclass, syscall};
use crate::alloc::{Arc, GFP_KERNEL, KBox};
use crate::sched::{self, host::InterruptContext};
use crate::sync::{Mutex, RwSemaphore, SpinLock};

/// What `f` is reported for.
#[track_caller]
fn report(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("nothing was reported");
    let text = panic.downcast::<String>().expect("a formatted message");
    assert!(text.starts_with("BUG: lockdep: "), "{text}");
    *text
}

#[track_caller]
fn assert_report(wanted: &str, f: impl FnOnce()) {
    let text = report(f);
    assert!(text.contains(wanted), "{text}");
}

#[test]
fn an_order_and_its_inversion() {
    let (a, b) = (Mutex::named("inv_a", ()), RwSemaphore::named("inv_b", ()));
    let ab = || {
        let _a = a.lock();
        let _b = b.read();
    };
    ab();
    ab();
    assert_report("order inversion: inv_b → inv_a, but before inv_a → inv_b", || {
        let _b = b.write();
        let _a = a.lock();
    });
    // What was wrong is not learnt.
    ab();
    // Whoever does not wait does not deadlock, and what it takes under that counts.
    {
        let _b = b.write();
        assert!(a.try_lock().is_some());
    }
}

#[test]
fn a_cycle_of_three_by_different_threads() {
    let locks: &'static [Mutex<()>; 3] =
        std::boxed::Box::leak(std::boxed::Box::new(["abc_a", "abc_b", "abc_c"].map(|name| Mutex::named(name, ()))));
    for (outer, inner) in [(0, 1), (1, 2)] {
        let thread = sched::spawn("lockdep", move || {
            let _outer = locks[outer].lock();
            let _inner = locks[inner].lock();
        });
        thread.expect("a thread").join();
    }
    assert_report("order inversion: abc_c → abc_a, but before abc_a → abc_b → abc_c", || {
        let _c = locks[2].lock();
        let _a = locks[0].lock();
    });
}

#[test]
fn a_documented_order_binds_from_the_start() {
    lock_order(&["doc_a", "doc_b", "doc_c/1"]);
    let (a, b, c) = (Mutex::named("doc_a", ()), SpinLock::named("doc_b", ()), SpinLock::named("doc_c", ()));
    {
        let _a = a.lock();
        let _b = b.lock();
        subclass(1);
        let _c = c.lock();
    }
    assert_report("order inversion: doc_c/1 → doc_b, but before doc_b → doc_c/1", || {
        subclass(1);
        let _c = c.lock();
        let _b = b.lock();
    });
    // One that contradicts what was seen.
    let d = Mutex::named("doc_d", ());
    {
        let _d = d.lock();
        let _a = a.lock();
    }
    assert_report("documented order doc_a → doc_d, but before doc_d → doc_a", || lock_order(&["doc_a", "doc_d"]));
    let mut seen = std::vec::Vec::new();
    for_each_order(&mut |from, to| seen.push((from.0, to.0)));
    assert!(seen.contains(&("doc_d", "doc_a")) && !seen.contains(&("doc_a", "doc_d")), "{seen:?}");
    // What is documented has been seen when it happens, and only then.
    assert!(seen.contains(&("doc_a", "doc_b")), "{seen:?}");
    lock_order(&["doc_e", "doc_f"]);
    for_each_order(&mut |from, _| assert_ne!(from.0, "doc_e"));
}

#[test]
fn classes_of_locks_without_names() {
    fn pair() -> (Mutex<u8>, Mutex<u8>) {
        (Mutex::new(1), Mutex::new(2))
    }
    let (first, second) = (pair(), pair());
    {
        let _a = first.0.lock();
        let _b = second.1.lock();
    }
    // Others, made at the same two places.
    assert_report("order inversion: <u8> → <u8>", || {
        let _b = first.1.lock();
        let _a = second.0.lock();
    });
    // Of one place, but by type another.
    let made = (Mutex::<u16>::default(), Mutex::<u32>::default());
    let _a = made.0.lock();
    drop(made.1.lock());
    // Of one place and one type, but by kind another.
    #[derive(Default)]
    struct Made(Mutex<u64>, SpinLock<u64>);
    let made = Made::default();
    let _b = made.0.lock();
    drop(made.1.lock());
}

#[test]
fn recursion() {
    let mutex = Mutex::named("rec_mutex", ());
    assert_report("recursive locking: rec_mutex (write) under itself (write)", || {
        let _a = mutex.lock();
        let _b = mutex.lock();
    });
    let spin = SpinLock::named("rec_spin", ());
    assert_report("recursive locking: rec_spin (write) under itself (write)", || {
        let _a = spin.lock();
        let _b = spin.lock();
    });
    let rwsem = RwSemaphore::named("rec_rwsem", ());
    assert_report("recursive locking: rec_rwsem (read) under itself (read)", || {
        let _a = rwsem.read();
        let _b = rwsem.read();
    });
    assert_report("recursive locking: rec_rwsem (write) under itself (read)", || {
        let _a = rwsem.read();
        let _b = rwsem.write();
    });
    assert_report("recursive locking: rec_rwsem (read) under itself (write)", || {
        let _a = rwsem.write();
        let _b = rwsem.read();
    });
    assert_report("recursive locking: rec_rwsem (write) under itself (read)", || {
        let _a = lock_api::RwLockWriteGuard::downgrade(rwsem.write());
        let _b = rwsem.write();
    });
    drop((mutex.lock(), spin.lock()));
    drop(rwsem.write());
}

#[test]
fn two_of_a_class() {
    let locks = ["two", "two"].map(|name| Mutex::named(name, ()));
    assert_report("possible recursive locking: two (write) under another (write)", || {
        let _a = locks[0].lock();
        let _b = locks[1].lock();
    });
    let nested = |first: usize, second: usize| {
        let _a = locks[first].lock();
        subclass(1);
        let _b = locks[second].lock();
    };
    nested(0, 1);
    nested(1, 0);
    assert_report("order inversion: two/1 → two, but before two → two/1", || {
        subclass(1);
        let _b = locks[1].lock();
        let _a = locks[0].lock();
    });
}

#[test]
fn sleeping_where_none_may() {
    let (spin, mutex) = (SpinLock::named("atomic_spin", ()), Mutex::named("atomic_mutex", ()));
    assert_report("sleeping under a spinlock: atomic_spin, taken at ", || {
        let _spin = spin.lock();
        let _mutex = mutex.lock();
    });
    assert_report("sleeping in interrupt context", || {
        let _irq = InterruptContext::enter();
        let _mutex = mutex.lock();
    });
}

#[test]
fn interrupt_context_is_no_part_of_the_task_it_interrupts() {
    let (outer, inner) = (Mutex::named("irq_outer", ()), SpinLock::named("irq_inner", ()));
    {
        let _outer = outer.lock();
        let _irq = InterruptContext::enter();
        let _inner = inner.lock();
    }
    let mut seen = std::vec::Vec::new();
    for_each_order(&mut |from, to| seen.push((from.0, to.0)));
    assert!(!seen.contains(&("irq_outer", "irq_inner")), "{seen:?}");
    // Among themselves handlers have an order.
    let (a, b) = (SpinLock::named("irq_a", ()), SpinLock::named("irq_b", ()));
    let _irq = InterruptContext::enter();
    {
        let _a = a.lock();
        let _b = b.lock();
    }
    assert_report("order inversion: irq_b → irq_a, but before irq_a → irq_b", || {
        let _b = b.lock();
        let _a = a.lock();
    });
}

#[test]
fn held_at_the_end() {
    let mutex = Mutex::named("end_mutex", ());
    assert_report("lock held at the end of call: end_mutex, taken at ", || {
        let _call = syscall("call");
        core::mem::forget(mutex.lock());
    });
    // It is forgotten, so that it is not reported twice; of what was held before nothing is said.
    let other = Mutex::named("end_other", ());
    let _held = other.lock();
    drop(syscall("call"));
    let thread = sched::spawn("lockdep", || {
        let mutex = KBox::new(Mutex::named("end_thread", ()), GFP_KERNEL).expect("memory");
        core::mem::forget(mutex.lock());
        core::mem::forget(mutex);
    });
    let joined = catch_unwind(AssertUnwindSafe(|| thread.expect("a thread").join()));
    assert!(joined.is_err(), "the thread ended with a lock held");
}

#[test]
fn unlocking_and_freeing() {
    let mutex = Mutex::named("unlock_mutex", ());
    assert_report("unlocking what is not held: unlock_mutex", || {
        // SAFETY: not safe, and reported before anything is done.
        unsafe { mutex.force_unlock() };
    });
    assert_report("freeing a held lock: free_mutex", || {
        let mutex = Mutex::named("free_mutex", ());
        core::mem::forget(mutex.lock());
    });
}

#[test]
fn a_wait_is_like_a_lock() {
    static FLIGHT: LockMap = LockMap::new("map_flight");
    let mutex = Mutex::named("map_mutex", ());
    // Whoever has the lock waits for the flight,
    {
        let _mutex = mutex.lock();
        FLIGHT.might_wait();
    }
    // whose end takes the lock.
    assert_report("order inversion: map_flight → map_mutex, but before map_mutex → map_flight", || {
        let _flight = FLIGHT.hold();
        let _mutex = mutex.lock();
    });
    assert_report("recursive locking: map_flight (write) under itself (read)", || {
        let _flight = FLIGHT.hold();
        FLIGHT.might_wait();
    });
}

#[test]
fn what_is_done_aside_is_another_s() {
    let (outer, inner) = (Mutex::named("aside_outer", ()), Mutex::named("aside_inner", ()));
    {
        let _outer = outer.lock();
        super::aside(|| drop(inner.lock()));
        assert_report("recursive locking: aside_inner (write) under itself (write)", || {
            super::aside(|| {
                let _a = inner.lock();
                let _b = inner.lock();
            });
        });
        assert_report("recursive locking: aside_outer (write) under itself (write)", || drop(outer.lock()));
    }
    let mut seen = std::vec::Vec::new();
    for_each_order(&mut |from, to| seen.push((from.0, to.0)));
    assert!(!seen.contains(&("aside_outer", "aside_inner")), "{seen:?}");
}

#[test]
fn a_lock_that_moves_is_another() {
    // Found by its address, which the next one gets.
    for _ in 0..3 {
        let lock = Arc::new(Mutex::named("moves", ()), GFP_KERNEL).expect("memory");
        drop(lock.lock());
    }
}
