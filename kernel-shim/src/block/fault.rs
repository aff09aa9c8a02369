// SPDX-License-Identifier: GPL-2.0-only
//! A device in front of another that fails on request: the n-th I/O, wholly or torn; all from the n-th on, for ever or for a
//! while; a range of sectors.
//!
//! A test walks every I/O of an operation: arm [`FaultDisk::fail_nth`] with 1, 2, 3 … and run the
//! operation each time, until [`FaultDisk::fired`] says that it had fewer.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use super::bio::{ReqOp, ReqOpf, SECTOR_SHIFT};
use super::blkdev::{BlockDevice, QueueLimits};
use super::ramdisk::{OpMask, Rng};
use super::request::Request;
use crate::alloc::Arc;
use crate::error::{Error, code};
use crate::sched::host::InterruptContext;

/// What becomes of the n-th request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO, that one only; of a write nothing is on the device.
    Once,
    /// EIO, that one only; of a write some sectors are on the device, which the number determines.
    Torn(u64),
    /// EIO, and so all that come after it.
    Dies,
    /// EIO, and so those after it: so many in all.
    Away(u64),
}

/// A device of which a fault can tear writes.
pub trait Tear {
    /// Writes those sectors of a write for which `keep` says so, counted from the request's first. The request goes on.
    fn write_sectors(&self, rq: &Request, keep: &dyn Fn(u64) -> bool);
}

impl<D: Tear> Tear for Arc<D> {
    fn write_sectors(&self, rq: &Request, keep: &dyn Fn(u64) -> bool) {
        (**self).write_sectors(rq, keep);
    }
}

/// A request that was failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What it was to do.
    pub opf: ReqOpf,
    /// Where, in 512 bytes.
    pub sector: u64,
    /// How much.
    pub bytes: u32,
}

struct Plan<D> {
    /// How many requests of the mask are left until one fails; 0 when none is armed.
    countdown: u64,
    mask: Option<OpMask>,
    fault: Fault,
    /// How torn writes reach the device.
    tear: Option<fn(&D, &Request, u64)>,
    /// How many requests will still be failed for [`Fault::Away`].
    away: u64,
    bad: Vec<(Range<u64>, OpMask)>,
    first: Option<Failed>,
}

impl<D> Plan<D> {
    fn none() -> Self {
        Self { countdown: 0, mask: None, fault: Fault::Once, tear: None, away: 0, bad: Vec::new(), first: None }
    }
}

/// See the head of this file. Faults are counted in requests: bios that were merged fail together.
pub struct FaultDisk<D> {
    inner: D,
    /// Whether `plan` has anything at all: the way past it is one load.
    armed: AtomicBool,
    plan: Mutex<Plan<D>>,
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
            plan: Mutex::new(Plan::none()),
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
        self.fault_nth(n, mask, Fault::Once);
    }

    /// Has the `n`-th request of `mask` from now on (the first is 1) end as `fault` says. Takes the place of an earlier one. A write is
    /// torn only by [`FaultDisk::tear_nth`].
    pub fn fault_nth(&self, n: u64, mask: OpMask, fault: Fault) {
        self.arm(|plan| (plan.countdown, plan.mask, plan.fault, plan.tear) = (n, Some(mask), fault, None));
    }

    /// Dies at the `n`-th request of `mask` from now on: that and all that follow fail with EIO, of whatever kind.
    pub fn die_at(&self, n: u64, mask: OpMask) {
        self.fault_nth(n, mask, Fault::Dies);
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
        self.arm(|plan| *plan = Plan { first: plan.first, ..Plan::none() });
        self.dead.store(false, Ordering::Release);
        self.armed.store(false, Ordering::Release);
    }

    /// How many requests were failed.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    /// The first request that was failed since the device was made.
    pub fn first_failed(&self) -> Option<Failed> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).first
    }

    /// How many requests came, failed ones included.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    fn arm(&self, change: impl FnOnce(&mut Plan<D>)) {
        change(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner));
        self.armed.store(true, Ordering::Release);
    }

    #[cold]
    fn verdict(&self, rq: &Request) -> Option<Error> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fail = self.dead.load(Ordering::Acquire);
        if plan.away > 0 {
            plan.away -= 1;
            fail = true;
        }
        if plan.countdown > 0 && plan.mask.is_some_and(|mask| mask.matches(rq.opf())) {
            plan.countdown -= 1;
            if plan.countdown == 0 {
                fail = true;
                match plan.fault {
                    Fault::Once => {}
                    Fault::Torn(seed) => {
                        if let (Some(tear), true) = (plan.tear, rq.op() == ReqOp::Write) {
                            tear(&self.inner, rq, seed);
                        }
                    }
                    Fault::Dies => self.dead.store(true, Ordering::Release),
                    Fault::Away(requests) => plan.away = requests.saturating_sub(1),
                }
            }
        }
        fail |= plan.bad.iter().any(|(sectors, mask)| {
            mask.matches(rq.opf()) && rq.sector() < sectors.end && sectors.start < rq.end_sector()
        });
        if fail && plan.first.is_none() {
            plan.first = Some(Failed { opf: rq.opf(), sector: rq.sector(), bytes: rq.nr_bytes() });
        }
        fail.then_some(code::EIO)
    }
}

impl<D: BlockDevice + Tear> FaultDisk<D> {
    /// Tears the `n`-th request of `mask` from now on: see [`Fault::Torn`].
    pub fn tear_nth(&self, n: u64, mask: OpMask, seed: u64) {
        self.arm(|plan| {
            (plan.countdown, plan.mask, plan.fault) = (n, Some(mask), Fault::Torn(seed));
            plan.tear = Some(tear::<D>);
        });
    }
}

/// Writes some sectors: from a front to all but one, or any of them. One sector is written or not.
fn tear<D: Tear>(inner: &D, rq: &Request, seed: u64) {
    let sectors = u64::from(rq.nr_bytes() >> SECTOR_SHIFT);
    let mut rng = Rng(seed);
    let (cut, scattered) = (1 + rng.below(sectors.saturating_sub(1)), rng.below(2) == 0);
    inner.write_sectors(rq, &|sector| {
        if scattered { Rng(seed ^ (sector << 8)).below(2) == 0 } else { sector < cut && sectors > 1 }
    });
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
