// SPDX-License-Identifier: GPL-2.0-only
//! Fault injection: the n-th allocation of this thread fails.
//!
//! A test runs its subject under [`fail_nth_allocation`]`(1)`, `(2)`, … until [`FailNth::fired`]
//! says that the subject made fewer allocations than that; every error path that starts with an
//! allocation has then been walked. Counted are each [`KBox`](super::KBox), [`KVec`](super::KVec)
//! and [`Arc`](super::Arc) allocation that needs memory and each take from a
//! [`Pool`](super::Pool), on the calling thread alone.

use core::cell::Cell;
use core::marker::PhantomData;
use std::thread_local;

thread_local! {
    /// How many allocations are left until the one that fails; 0 when none will.
    static COUNTDOWN: Cell<u64> = const { Cell::new(0) };
    /// Allocations that this thread has asked for so far, failed ones included.
    static ASKED: Cell<u64> = const { Cell::new(0) };
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

/// Counts one allocation, and says whether it is the doomed one.
#[inline]
pub(super) fn should_fail() -> bool {
    ASKED.set(ASKED.get().wrapping_add(1));
    COUNTDOWN.get() != 0 && count_down()
}

#[cold]
fn count_down() -> bool {
    let left = COUNTDOWN.get();
    COUNTDOWN.set(left - 1);
    left == 1
}
