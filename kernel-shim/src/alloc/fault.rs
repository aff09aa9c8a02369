// SPDX-License-Identifier: GPL-2.0-only
//! Fault injection: the n-th allocation of this thread fails, or the n-th of the threads that it has started.
//!
//! A test runs its subject under [`fail_nth_allocation`]`(1)`, `(2)`, … until [`FailNth::fired`]
//! says that the subject made fewer allocations than that; every error path that starts with an
//! allocation has then been walked. Counted are each [`KBox`](super::KBox), [`KVec`](super::KVec)
//! and [`Arc`](super::Arc) allocation that needs memory and each take from a
//! [`Pool`](super::Pool), on the calling thread alone.
//!
//! What a mount does in threads of its own (commits, writing back, the ends of direct writes, evictions) is counted by a
//! [`Family`]: to it belongs every thread that is started while it lives, by the one that made it or by one of these.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use std::cell::RefCell;
use std::sync::Arc as StdArc;
use std::thread_local;

thread_local! {
    /// How many allocations are left until the one that fails; 0 when none will.
    static COUNTDOWN: Cell<u64> = const { Cell::new(0) };
    /// Allocations that this thread has asked for so far, failed ones included.
    static ASKED: Cell<u64> = const { Cell::new(0) };
    /// What the thread's allocations are counted by, besides; null if by nothing. Kept alive by [`BORN_TO`].
    static COUNTED_BY: Cell<*const Counter> = const { Cell::new(ptr::null()) };
    /// The family that the thread was born to.
    static BORN_TO: RefCell<Option<StdArc<Counter>>> = const { RefCell::new(None) };
    /// The family that threads are born to that this one starts.
    static CHILDREN: RefCell<Option<StdArc<Counter>>> = const { RefCell::new(None) };
}

/// Until this is dropped, one allocation of the thread that made it is doomed.
#[must_use = "the failure is called off when this is dropped"]
pub struct FailNth {
    /// The countdown is the thread's own: the guard may not leave it.
    _not_send: PhantomData<*mut ()>,
}

/// Makes the `n`-th allocation from now on fail on this thread, once; the first is `n = 1`.
///
/// # Panics
///
/// If `n` is 0, or another such guard lives on this thread.
pub fn fail_nth_allocation(n: u64) -> FailNth {
    assert!(n > 0, "allocations are counted from 1");
    let before = COUNTDOWN.replace(n);
    assert!(before == 0, "another failure is still armed on this thread");
    FailNth { _not_send: PhantomData }
}

/// How many allocations this thread has asked for so far.
pub fn allocations() -> u64 {
    ASKED.get()
}

/// What `f` allocates on this thread neither fails nor counts: it is the test's own.
pub fn exempt<R>(f: impl FnOnce() -> R) -> R {
    let (countdown, asked) = (COUNTDOWN.replace(0), ASKED.get());
    let ret = f();
    COUNTDOWN.set(countdown);
    ASKED.set(asked);
    ret
}

impl FailNth {
    /// Whether the allocation has failed already.
    pub fn fired(&self) -> bool {
        COUNTDOWN.get() == 0
    }
}

impl Drop for FailNth {
    fn drop(&mut self) {
        COUNTDOWN.set(0);
    }
}

#[derive(Default)]
struct Counter {
    /// As [`COUNTDOWN`], of all its threads.
    countdown: AtomicU64,
    asked: AtomicU64,
    fired: AtomicU64,
}

/// The threads that are started while this lives, by the one that made it or by one of these.
#[must_use = "no thread joins it once this is dropped"]
pub struct Family {
    counter: StdArc<Counter>,
    /// Of what threads the children of this one were before.
    before: Option<StdArc<Counter>>,
    _not_send: PhantomData<*mut ()>,
}

impl Family {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "it changes what threads belong to from now on")]
    pub fn new() -> Self {
        let counter = StdArc::new(Counter::default());
        let before = CHILDREN.replace(Some(counter.clone()));
        Self { counter, before, _not_send: PhantomData }
    }

    /// Makes the `n`-th allocation of its threads from now on fail, once; the first is `n = 1`, and 0 calls it off.
    pub fn fail_nth_allocation(&self, n: u64) {
        self.counter.countdown.store(n, Ordering::SeqCst);
    }

    /// How many allocations were failed.
    pub fn fired(&self) -> u64 {
        self.counter.fired.load(Ordering::SeqCst)
    }

    /// How many allocations its threads have asked for.
    pub fn allocations(&self) -> u64 {
        self.counter.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        CHILDREN.replace(self.before.take());
    }
}

/// What a new thread gets from the one that starts it.
pub(crate) struct Birth(Option<StdArc<Counter>>);

impl Birth {
    /// On the thread that starts another.
    pub(crate) fn give() -> Self {
        Self(CHILDREN.with_borrow(Clone::clone))
    }

    /// On the new thread.
    pub(crate) fn take(self) {
        let Some(counter) = self.0 else { return };
        CHILDREN.replace(Some(counter.clone()));
        COUNTED_BY.set(StdArc::as_ptr(&counter));
        BORN_TO.replace(Some(counter));
    }
}

/// Counts one allocation, and says whether it is the doomed one.
#[inline]
pub(super) fn should_fail() -> bool {
    ASKED.set(ASKED.get().wrapping_add(1));
    (COUNTDOWN.get() != 0 && count_down()) || (!COUNTED_BY.get().is_null() && count_for_family())
}

#[cold]
fn count_down() -> bool {
    let left = COUNTDOWN.get();
    COUNTDOWN.set(left - 1);
    left == 1
}

#[cold]
fn count_for_family() -> bool {
    // A thread that ends allocates no more: what it may not find then is no family.
    let found = BORN_TO.try_with(|family| family.try_borrow().ok().and_then(|counter| counter.clone()));
    let Some(counter) = found.ok().flatten() else { return false };
    counter.asked.fetch_add(1, Ordering::SeqCst);
    let left = counter.countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    let doomed = left == Ok(1);
    if doomed {
        counter.fired.fetch_add(1, Ordering::SeqCst);
    }
    doomed
}
