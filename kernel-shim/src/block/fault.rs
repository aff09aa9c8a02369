// SPDX-License-Identifier: GPL-2.0-only
//! A device in front of another that fails on request: the n-th I/O, a range of sectors, or all from now on.
//!
//! A test walks every I/O of an operation: arm [`FaultDisk::fail_nth`] with 1, 2, 3 … and run the
//! operation each time, until [`FaultDisk::fired`] says that it had fewer.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use super::blkdev::{BlockDevice, QueueLimits};
use super::ramdisk::OpMask;
use super::request::Request;
use crate::error::{Error, code};
use crate::sched::host::InterruptContext;

#[derive(Default)]
struct Plan {
    /// How many requests of the mask are left until one fails; 0 when none is armed.
    countdown: u64,
    mask: Option<OpMask>,
    /// It stays dead once the countdown is over.
    die: bool,
    bad: Vec<(Range<u64>, OpMask)>,
}

/// See the head of this file. Faults are counted in requests: bios that were merged fail together.
pub struct FaultDisk<D> {
    inner: D,
    /// Whether `plan` has anything at all: the way past it is one load.
    armed: AtomicBool,
    plan: Mutex<Plan>,
    dead: AtomicBool,
    fired: AtomicU64,
    seen: AtomicU64,
}

impl<D: BlockDevice> FaultDisk<D> {
    /// `inner`, without faults at first.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            armed: AtomicBool::new(false),
            plan: Mutex::new(Plan::default()),
            dead: AtomicBool::new(false),
            fired: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    /// The device behind.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Fails the `n`-th request of `mask` from now on (the first is 1) with EIO, that one only.
    /// Takes the place of an earlier one.
    pub fn fail_nth(&self, n: u64, mask: OpMask) {
        self.arm(|plan| (plan.countdown, plan.mask, plan.die) = (n, Some(mask), false));
    }

    /// Dies at the `n`-th request of `mask` from now on: that and all that follow fail with EIO, of whatever kind.
    pub fn die_at(&self, n: u64, mask: OpMask) {
        self.arm(|plan| (plan.countdown, plan.mask, plan.die) = (n, Some(mask), true));
    }

    /// Fails, from now on, every request of `mask` that touches one of `sectors`.
    pub fn fail_sectors(&self, sectors: Range<u64>, mask: OpMask) {
        self.arm(|plan| plan.bad.push((sectors, mask)));
    }

    /// Dies now.
    pub fn die(&self) {
        self.dead.store(true, Ordering::Release);
        self.armed.store(true, Ordering::Release);
    }

    /// Repairs all faults. The counters go on.
    pub fn repair(&self) {
        self.arm(|plan| *plan = Plan::default());
        self.dead.store(false, Ordering::Release);
        self.armed.store(false, Ordering::Release);
    }

    /// How many requests were failed.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    /// How many requests came, failed ones included.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    fn arm(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner));
        self.armed.store(true, Ordering::Release);
    }

    #[cold]
    fn verdict(&self, rq: &Request) -> Option<Error> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fail = self.dead.load(Ordering::Acquire);
        if plan.countdown > 0 && plan.mask.is_some_and(|mask| mask.matches(rq.opf())) {
            plan.countdown -= 1;
            if plan.countdown == 0 {
                fail = true;
                if plan.die {
                    self.dead.store(true, Ordering::Release);
                }
            }
        }
        fail |= plan.bad.iter().any(|(sectors, mask)| {
            mask.matches(rq.opf()) && rq.sector() < sectors.end && sectors.start < rq.end_sector()
        });
        fail.then_some(code::EIO)
    }
}

impl<D: BlockDevice> BlockDevice for FaultDisk<D> {
    fn limits(&self) -> &QueueLimits {
        self.inner.limits()
    }

    fn nr_sectors(&self) -> u64 {
        self.inner.nr_sectors()
    }

    fn queue_rq(&self, rq: Request) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        if self.armed.load(Ordering::Acquire)
            && let Some(err) = self.verdict(&rq)
        {
            self.fired.fetch_add(1, Ordering::Relaxed);
            let _irq = InterruptContext::enter();
            return rq.end(Err(err));
        }
        self.inner.queue_rq(rq);
    }

    fn commit_rqs(&self) {
        self.inner.commit_rqs();
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}
