// SPDX-License-Identifier: GPL-2.0-only
//! `include/linux/percpu.h`, `include/linux/cache.h`: what several CPUs write at once is kept on cache lines of their own.
//!
//! A line that two CPUs write in turn costs each of them more than all the instructions of a write; so nothing on the way of
//! an I/O is shared that need not be.

use core::ops::Deref;

use crate::sched;
use crate::sync::atomic::{AtomicU32, Ordering};

/// How many copies there are; CPUs beyond share.
pub use crate::sync::atomic::COPIES;

/// A value that has its cache lines to itself.
#[doc(alias = "____cacheline_aligned_in_smp")]
#[repr(align(64))]
#[derive(Debug, Default)]
pub struct CacheAligned<T>(pub T);

impl<T> Deref for CacheAligned<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A value for each CPU. All of them can be reached from anywhere; it is only faster to use one's own.
#[derive(Debug, Default)]
pub struct PerCpu<T>([CacheAligned<T>; COPIES]);

impl<T> PerCpu<T> {
    /// With these values.
    pub const fn new(values: [CacheAligned<T>; COPIES]) -> Self {
        Self(values)
    }

    /// The one of the CPU that runs this. In a thread that moves to another CPU it may be the wrong one by the time it is
    /// used, so it needs the same locks or atomics as the others.
    #[doc(alias = "this_cpu_ptr")]
    #[inline(always)]
    pub fn this(&self) -> &T {
        &self.0[sched::cpu_id() as usize % COPIES]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(Deref::deref)
    }
}

/// A statistic: many add, few look.
#[doc(alias = "percpu_counter")]
#[derive(Debug, Default)]
pub struct Counter(PerCpu<AtomicU32>);

impl Counter {
    /// Adds 1. Any context.
    #[inline]
    pub fn inc(&self) {
        self.0.this().fetch_add(1, Ordering::Relaxed);
    }

    /// The sum so far, modulo 2^32.
    pub fn load(&self, order: Ordering) -> u32 {
        self.0.iter().fold(0, |sum, n| sum.wrapping_add(n.load(order)))
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_counter_counts_all() {
        let counter = Counter::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.inc()));
            }
        });
        assert_eq!(counter.load(Ordering::Relaxed), 4000);
    }

    #[test]
    fn no_line_is_shared() {
        let each = PerCpu::<u8>::default();
        let mut lines: std::vec::Vec<usize> = each.iter().map(|n| core::ptr::from_ref(n).addr() / 64).collect();
        lines.dedup();
        assert_eq!(lines.len(), COPIES);
        assert!(each.iter().any(|n| core::ptr::eq(n, each.this())));
    }
}
