// SPDX-License-Identifier: GPL-2.0-only
//! Tests of locks and waiting. Where the order of events matters, it is brought about by watching the
//! queues, not by waiting for some time to pass.

mod mutex;
mod rwsem;
mod wait;

use std::boxed::Box;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::SpinLock;
use crate::sched;
use crate::sched::host::InterruptContext;

/// How long anything may take before it counts as hung. Far more than any test needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Yields until `cond` holds; fails if it never does.
#[track_caller]
fn until(what: &str, mut cond: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !cond() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::yield_now();
    }
}

/// Runs `f` in a thread of its own, and fails if it does not come back: a lost wake-up must not hang
/// the tests.
#[track_caller]
fn bounded<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    let thread = thread::spawn(move || {
        let value = f();
        // The receiver has gone if we took too long.
        let _ = done.send(value);
    });
    match result.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hung"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it has sent a value"),
        },
    }
}

/// A value that lives for ever.
fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Two counters that nobody may see apart.
#[derive(Default)]
struct Pair(u64, u64);

impl Pair {
    fn step(&mut self) {
        assert_eq!(self.0, self.1);
        self.0 += 1;
        if self.0.is_multiple_of(64) {
            // Lets others look, even on one CPU.
            thread::yield_now();
        }
        self.1 += 1;
    }
}

const THREADS: u64 = 4;
const ROUNDS: u64 = 20_000;

#[test]
fn spinlock_excludes() {
    let lock = SpinLock::new(Pair::default());
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for round in 0..ROUNDS {
                    if round % 3 != 0 {
                        lock.lock().step();
                    } else {
                        until("try_lock", || lock.try_lock().map(|mut pair| pair.step()).is_some());
                    }
                }
            });
        }
    });
    assert_eq!(lock.lock().0, THREADS * ROUNDS);
}

#[test]
fn spinlock_try_and_state() {
    let mut lock = SpinLock::new(1);
    {
        let held = lock.lock();
        assert!(lock.is_locked());
        assert!(lock.try_lock().is_none());
        drop(held);
    }
    assert!(!lock.is_locked());
    *lock.get_mut() += 1;
    *lock.try_lock().unwrap() += 1;
    assert_eq!(lock.into_inner(), 3);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "sleeping under a spinlock")]
fn sleeping_under_a_spinlock_is_reported() {
    let spin = SpinLock::new(());
    let sleeping = super::Mutex::new(());
    let _spin = spin.lock();
    let _sleeping = sleeping.lock();
}

#[test]
#[cfg(debug_assertions)]
fn sleeping_in_interrupt_context_is_reported() {
    fn reports(f: impl FnOnce()) -> bool {
        let irq = InterruptContext::enter();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        drop(irq);
        result.is_err()
    }
    let (mutex, rwsem) = (super::Mutex::new(()), super::RwSemaphore::new(()));
    let (queue, completion) = (super::WaitQueue::new(), super::Completion::new());
    assert!(reports(|| drop(mutex.lock())));
    assert!(reports(|| drop(rwsem.read())));
    assert!(reports(|| drop(rwsem.write())));
    assert!(reports(|| queue.wait_event(|| false)));
    assert!(reports(|| completion.wait()));
    assert!(reports(|| sched::msleep(1)));
    // What may be done there.
    assert!(!reports(|| queue.wake_up_all()));
    assert!(!reports(|| queue.wake_up_one()));
    assert!(!reports(|| completion.complete()));
    assert!(!reports(|| assert!(completion.try_wait())));
    assert!(!sched::in_interrupt());
}

#[test]
fn an_unpark_that_comes_first_is_kept() {
    bounded(|| {
        let me = sched::current();
        assert!(me.is_current());
        sched::unpark(me);
        sched::unpark(me);
        // Returns, though nobody wakes us any more.
        sched::park();
    });
}

#[test]
fn park_times_out() {
    bounded(|| {
        let start = sched::now_ns();
        while sched::now_ns() < start + 2_000_000 {
            sched::park_timeout(500_000);
        }
        let start = sched::now_ns();
        sched::msleep(2);
        assert!(sched::now_ns() >= start + 2_000_000);
    });
}

#[test]
fn park_and_unpark_hand_a_ball_back_and_forth() {
    use std::sync::atomic::{AtomicU64, Ordering};
    bounded(|| {
        let ball = leak(AtomicU64::new(0));
        let main = sched::current();
        let other = sched::spawn("pong", move || {
            for turn in 0..ROUNDS {
                while ball.load(Ordering::Acquire) != 2 * turn + 1 {
                    sched::park();
                }
                ball.store(2 * turn + 2, Ordering::Release);
                sched::unpark(main);
            }
        })
        .unwrap();
        for turn in 0..ROUNDS {
            ball.store(2 * turn + 1, Ordering::Release);
            sched::unpark(other.task());
            while ball.load(Ordering::Acquire) != 2 * turn + 2 {
                sched::park();
            }
        }
        assert_eq!(other.task().name(), "pong");
        other.join();
    });
}

/// An unpark that hits its task on the way into the park is as good as any other.
#[test]
fn unpark_races_with_park() {
    use std::sync::atomic::{AtomicU64, Ordering};
    bounded(|| {
        let (sent, seen) = leak((AtomicU64::new(0), AtomicU64::new(0)));
        let sleeper = sched::spawn("sleeper", move || {
            for round in 1..=5 * ROUNDS {
                while sent.load(Ordering::Acquire) < round {
                    sched::park();
                }
                seen.store(round, Ordering::Release);
            }
        })
        .unwrap();
        for round in 1..=5 * ROUNDS {
            sent.store(round, Ordering::Release);
            sched::unpark(sleeper.task());
            // Without sleeping, to be back in time.
            let mut spins = 0_u32;
            until("the sleeper wakes", || {
                while seen.load(Ordering::Acquire) < round {
                    spins += 1;
                    if spins.is_multiple_of(1 << 12) {
                        return false;
                    }
                    core::hint::spin_loop();
                }
                true
            });
        }
        sleeper.join();
    });
}

#[test]
fn spawn_joins_and_reports_panics() {
    bounded(|| {
        let name = leak(std::sync::Mutex::new(""));
        let thread = sched::spawn_on(1, "kthread", || *name.lock().unwrap() = sched::current().name()).unwrap();
        thread.clone().join();
        assert!(thread.is_finished());
        assert_eq!(*name.lock().unwrap(), "kthread");
        assert!(sched::cpu_id() < sched::nr_cpus());

        let thread = sched::spawn("panics", || panic!("as the test wants it")).unwrap();
        let joined = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| thread.join()));
        assert!(joined.is_err());
    });
}

#[test]
#[cfg(feature = "fault-injection")]
fn spawn_without_memory() {
    for n in 1..=2 {
        let _fault = crate::alloc::fault::fail_nth_allocation(n);
        let result = sched::spawn("never", || unreachable!());
        assert_eq!(result.err(), Some(crate::error::code::ENOMEM));
    }
}
