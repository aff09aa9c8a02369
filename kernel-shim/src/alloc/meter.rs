// SPDX-License-Identifier: GPL-2.0-only
//! How much memory a thread has asked for, and not given back: for tests of what a damaged image may cost.

use core::cell::Cell;
use std::thread_local;

thread_local! {
    /// Bytes that this thread has allocated, less those that it has freed.
    static LIVE: Cell<i64> = const { Cell::new(0) };
    /// The most that [`LIVE`] has been since [`start`].
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// Counts from 0 on.
pub fn start() {
    LIVE.set(0);
    PEAK.set(0);
}

/// The most bytes that this thread has had at once since [`start`]. What another thread frees counts as not freed.
pub fn peak() -> u64 {
    PEAK.get().cast_unsigned()
}

#[inline]
pub(super) fn add(bytes: usize) {
    let live = LIVE.get() + bytes as i64;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

#[inline]
pub(super) fn sub(bytes: usize) {
    LIVE.set(LIVE.get() - bytes as i64);
}
