// SPDX-License-Identifier: GPL-2.0-only
//! Tests of [`WaitQueue`] and [`Completion`].

use core::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;
use std::{ptr, thread};

use super::super::{Completion, WaitQueue};
use super::{ROUNDS, bounded, leak, until};
use crate::sched;
use crate::sched::host::InterruptContext;

/// Takes one off a number that is not 0.
fn take(tokens: &AtomicU32) -> bool {
    tokens.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

#[test]
fn no_wake_up_is_lost_between_two() {
    bounded(|| {
        let (ball, queue) = leak((AtomicU64::new(0), WaitQueue::new()));
        let pass = |mine: u64| {
            for turn in 0..ROUNDS {
                queue.wait_event(|| ball.load(Ordering::Acquire) == 2 * turn + mine);
                ball.store(2 * turn + mine + 1, Ordering::Release);
                queue.wake_up_one();
            }
        };
        let other = sched::spawn("other", move || pass(1)).unwrap();
        pass(0);
        other.join();
        assert_eq!(queue.nr_waiting(), 0);
    });
}

#[test]
fn no_wake_up_is_lost_among_many() {
    bounded(|| {
        let (tokens, queue) = leak((AtomicU32::new(0), WaitQueue::new()));
        let rounds = u32::try_from(ROUNDS).unwrap();
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                sched::spawn("consumer", move || {
                    for _ in 0..rounds {
                        queue.wait_event(|| take(tokens));
                    }
                })
                .unwrap()
            })
            .collect();
        for round in 0..3 * rounds {
            tokens.fetch_add(1, Ordering::Release);
            queue.wake_up_one();
            if round % 64 == 0 {
                thread::yield_now();
            }
        }
        for consumer in consumers {
            consumer.join();
        }
        assert_eq!((tokens.load(Ordering::Relaxed), queue.nr_waiting()), (0, 0));
    });
}

#[test]
fn one_or_all_are_woken() {
    bounded(|| {
        let (tokens, queue, woken) = leak((AtomicU32::new(0), WaitQueue::new(), AtomicU32::new(0)));
        let threads: Vec<_> = (0..5)
            .map(|_| {
                sched::spawn("waiter", || {
                    queue.wait_event(|| take(tokens));
                    woken.fetch_add(1, Ordering::Release);
                })
                .unwrap()
            })
            .collect();
        until("they queue", || queue.nr_waiting() == 5);
        for left in [4, 3] {
            tokens.fetch_add(1, Ordering::Release);
            queue.wake_up_one();
            until("one leaves", || woken.load(Ordering::Acquire) == 5 - left);
            assert_eq!(queue.nr_waiting(), left as usize);
        }
        tokens.fetch_add(3, Ordering::Release);
        // Interrupt handlers wake, too.
        let irq = InterruptContext::enter();
        queue.wake_up_all();
        drop(irq);
        for thread in threads {
            thread.join();
        }
        assert!(!queue.has_waiters());
    });
}

/// A waiter that was woken, but had found its condition true before it knew, passes the wake-up on.
#[test]
fn an_unused_wake_up_goes_to_the_next() {
    bounded(|| {
        let queue = leak(WaitQueue::new());
        let (looks, ready) = leak((AtomicU32::new(0), AtomicBool::new(false)));
        let mut my_looks = 0;
        let mut next = None;
        queue.wait_event(|| {
            my_looks += 1;
            if my_looks < 2 {
                return false;
            }
            // We stand in the queue now. Somebody else comes behind us, and sleeps.
            next = sched::spawn("next", || {
                queue.wait_event(|| {
                    let ready = ready.load(Ordering::Acquire);
                    looks.fetch_add(1, Ordering::Release);
                    ready
                });
            })
            .ok();
            until("it has looked from the queue", || looks.load(Ordering::Acquire) >= 2);
            ready.store(true, Ordering::Release);
            // Hits us, as we came first; but we are not interested.
            queue.wake_up_one();
            assert_eq!(queue.nr_waiting(), 1);
            true
        });
        next.unwrap().join();
    });
}

#[test]
fn a_condition_that_holds_does_not_wait() {
    let queue = WaitQueue::new();
    let mut looks = 0;
    let irq = InterruptContext::enter();
    queue.wait_event(|| {
        looks += 1;
        true
    });
    drop(irq);
    assert_eq!(looks, 1);
}

#[test]
fn timeouts() {
    bounded(|| {
        let queue = WaitQueue::new();
        let start = sched::now_ns();
        assert!(!queue.wait_event_timeout(|| false, 2_000_000));
        assert!(sched::now_ns() >= start + 2_000_000);
        assert!(queue.wait_event_timeout(|| true, 0));
        // The condition is what counts, even if nobody wakes.
        assert!(queue.wait_event_timeout(|| sched::now_ns() >= start + 4_000_000, 4_000_000));
        assert_eq!(queue.nr_waiting(), 0);
    });
}

#[test]
fn a_condition_that_panics_leaves_the_queue() {
    let queue = WaitQueue::new();
    let mut looks = 0;
    let panics = std::panic::AssertUnwindSafe(|| {
        queue.wait_event(|| {
            looks += 1;
            assert!(looks < 2, "as the test wants it");
            false
        });
    });
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(queue.nr_waiting(), 0);
    queue.wake_up_all();
}

#[test]
fn completions_count() {
    let mut completion = Completion::new();
    assert!(!completion.done() && !completion.try_wait());
    completion.complete();
    completion.complete();
    assert!(completion.done());
    completion.wait();
    assert!(completion.try_wait());
    assert!(!completion.try_wait() && !completion.done());
    completion.complete_all();
    for _ in 0..3 {
        completion.wait();
        assert!(completion.try_wait());
    }
    completion.reinit();
    assert!(!completion.done());
}

#[test]
fn completions_end_as_many_waits() {
    bounded(|| {
        let (completion, ended) = leak((Completion::new(), AtomicU32::new(0)));
        let threads: Vec<_> = (0..6)
            .map(|_| {
                sched::spawn("waiter", || {
                    completion.wait();
                    ended.fetch_add(1, Ordering::Release);
                })
                .unwrap()
            })
            .collect();
        for count in 1..=3 {
            completion.complete();
            until("one wait ends", || ended.load(Ordering::Acquire) == count);
            assert!(!completion.done(), "it has been used up");
        }
        completion.complete_all();
        for thread in threads {
            thread.join();
        }
        assert_eq!(ended.load(Ordering::Acquire), 6);
    });
}

/// Once the waiter is back, the completer does not touch the completion, which may be gone.
#[test]
fn a_completion_may_be_on_the_waiters_stack() {
    const SIZE: usize = size_of::<Completion>();
    bounded(|| {
        let (slot, finished) = leak((AtomicPtr::<Completion>::new(ptr::null_mut()), AtomicU32::new(0)));
        let rounds = u32::try_from(ROUNDS).unwrap();
        let completer = sched::spawn("completer", move || {
            for round in 0..rounds {
                let mut completion = ptr::null_mut();
                until("a completion comes", || {
                    completion = slot.swap(ptr::null_mut(), Ordering::Acquire);
                    !completion.is_null()
                });
                // SAFETY: It lives until its wait ends, which takes this call.
                unsafe { &*completion }.complete();
                finished.store(round + 1, Ordering::Release);
            }
        })
        .unwrap();
        for round in 0..rounds {
            let mut memory = MaybeUninit::<Completion>::uninit();
            let completion = memory.write(Completion::new());
            slot.store(completion, Ordering::Release);
            completion.wait();
            let bytes = memory.as_mut_ptr().cast::<[u8; SIZE]>();
            // SAFETY: The completion is ours alone by now, and is not used as one any more.
            unsafe { bytes.write([0x5a; SIZE]) };
            until("the completer returns", || finished.load(Ordering::Acquire) == round + 1);
            // SAFETY: Written above.
            assert_eq!(unsafe { bytes.read_volatile() }, [0x5a; SIZE]);
        }
        completer.join();
    });
}
