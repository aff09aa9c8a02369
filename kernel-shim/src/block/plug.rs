// SPDX-License-Identifier: GPL-2.0-only
//! `struct blk_plug`: requests that a task holds back, to queue them together.
//!
//! Between [`BlkPlug::start`] and its end, what the task submits gathers in its [`PlugSlot`]. Then it
//! goes to the device sorted, with neighbours merged, and with one `commit_rqs`, which is one
//! doorbell. It also goes when the slot is full, and when the task is about to sleep: the I/O it sleeps
//! for may be in there.

use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;

use super::blkdev::Gendisk;
use super::request::{Request, RqList};
use crate::sched;

/// How many requests a plug holds before it is flushed.
#[doc(alias = "BLK_MAX_REQUEST_COUNT")]
pub(crate) const MAX_REQUESTS: usize = 32;
/// Bits that number so many.
const ORDER_BITS: u32 = 6;

static_assertions::const_assert!(MAX_REQUESTS <= 1 << ORDER_BITS);

/// A task's place for its plug. Part of every task.
///
/// # Invariants
///
/// Only its own task touches it, and never from an interrupt.
pub struct PlugSlot {
    /// How many [`BlkPlug`]s of the task are alive. Only the first matters.
    depth: Cell<u32>,
    count: Cell<u32>,
    list: UnsafeCell<RqList>,
}

// SAFETY: by the invariant it is not shared; it is only reached through a `&'static Task`, which is.
unsafe impl Sync for PlugSlot {}
// SAFETY: requests are Send.
unsafe impl Send for PlugSlot {}

impl PlugSlot {
    /// Not plugged.
    #[expect(clippy::new_without_default, reason = "made by tasks alone, in const context")]
    pub const fn new() -> Self {
        Self { depth: Cell::new(0), count: Cell::new(0), list: UnsafeCell::new(RqList::new()) }
    }

    /// Whether the task has a plug.
    #[inline]
    pub(crate) fn active(&self) -> bool {
        self.depth.get() != 0
    }

    /// Appends a request. Only for current's slot, in task context.
    #[inline]
    pub(crate) fn add(&self, rq: Request) {
        if self.count.get() as usize >= MAX_REQUESTS {
            self.flush();
        }
        self.count.set(self.count.get() + 1);
        // SAFETY: only this task comes here, and `push_back` calls nothing that could come here again.
        unsafe { &mut *self.list.get() }.push_back(rq);
    }

    /// The task ends: whoever is given it next starts without a plug. Only for current's slot.
    pub(crate) fn exit(&self) {
        self.depth.set(0);
        self.flush();
    }

    /// Queues all there is. Only for current's slot, in task context.
    #[inline]
    fn flush(&self) {
        // Again for what is submitted meanwhile: a device that completes inside `queue_rq` runs
        // `bi_end_io` here, and that may submit.
        loop {
            match self.count.get() {
                0 => return,
                1 => {
                    self.count.set(0);
                    // SAFETY: as in `add`.
                    if let Some(only) = unsafe { &mut *self.list.get() }.pop_front() {
                        queue_one(only);
                    }
                }
                _ => self.flush_many(),
            }
        }
    }

    #[cold]
    fn flush_many(&self) {
        self.count.set(0);
        // Out of the slot before any is queued, for the same reason.
        // SAFETY: as in `add`.
        let mut list = core::mem::take(unsafe { &mut *self.list.get() });
        if let Some(first) = list.pop_front() {
            queue_sorted(first, &mut list);
        }
    }
}

#[inline]
fn queue_one(rq: Request) {
    let disk = rq.disk();
    // SAFETY: a disk outlives its requests.
    let disk = unsafe { disk.as_ref() };
    let _pin = disk.pin();
    disk.queue_now(rq);
}

/// Queues `first` and `rest` by disk, and for each disk by sector. Requests of one sector keep their order.
fn queue_sorted(first: Request, rest: &mut RqList) {
    let mut next = Some(first);
    while let Some(first) = next {
        let disk = first.disk();
        let mut others = RqList::new();
        let mut sorted = heapless::Vec::<(u64, Request), MAX_REQUESTS>::new();
        next = Some(first);
        while let Some(rq) = next {
            if rq.disk() != disk {
                others.push_back(rq);
            } else {
                // No bits are lost: a disk's bytes can be counted.
                let key = rq.sector() << ORDER_BITS | sorted.len() as u64;
                if let Err((_, rq)) = sorted.push((key, rq)) {
                    // A slot holds no more than fit here, but a request is not lost for a wrong count.
                    queue_one(rq);
                }
            }
            next = rest.pop_front();
        }
        sorted.sort_unstable_by_key(|(key, _)| *key);
        // SAFETY: a disk outlives its requests.
        let disk = unsafe { disk.as_ref() };
        let _pin = disk.pin();
        queue_disk(disk, sorted.into_iter().map(|(_, rq)| rq));
        disk.commit();
        rest.append(&mut others);
        next = rest.pop_front();
    }
}

/// Queues what is for one disk, neighbours merged.
fn queue_disk(disk: &Gendisk, mut requests: impl Iterator<Item = Request>) {
    let Some(mut held) = requests.next() else { return };
    for rq in requests {
        match held.try_merge(rq, &disk.limits) {
            Ok(()) => disk.note_merge(),
            Err(rq) => disk.queue_only(core::mem::replace(&mut held, rq)),
        }
    }
    disk.queue_only(held);
}

/// Holds back what current submits for as long as it lives. In task context.
///
/// A plug inside a plug does nothing. A forgotten one (`mem::forget`) leaves the task plugged: its
/// requests then go when it sleeps.
#[doc(alias = "blk_plug")]
#[must_use = "requests are held back only while the plug lives"]
pub struct BlkPlug {
    /// Belongs to the task that started it.
    _not_send: PhantomData<*mut ()>,
}

impl BlkPlug {
    /// Plugs current.
    #[doc(alias = "blk_start_plug")]
    #[inline]
    pub fn start() -> Self {
        let slot = &sched::current().plug;
        slot.depth.set(slot.depth.get() + 1);
        Self { _not_send: PhantomData }
    }

    /// Ends the plug: queues what it holds, unless it is inside another.
    #[doc(alias = "blk_finish_plug")]
    #[inline]
    pub fn finish(self) {}
}

impl Drop for BlkPlug {
    #[inline]
    fn drop(&mut self) {
        let slot = &sched::current().plug;
        let depth = slot.depth.get().saturating_sub(1);
        slot.depth.set(depth);
        if depth == 0 {
            slot.flush();
        }
    }
}

/// Whether current's plug holds anything back. In task context.
#[inline]
pub(crate) fn holds_some() -> bool {
    sched::current().plug.count.get() != 0
}

/// Queues what current's plug holds. Before each sleep; in task context.
#[doc(alias = "blk_flush_plug")]
#[inline]
pub(crate) fn blk_flush_plug_current() {
    let slot = &sched::current().plug;
    if slot.count.get() != 0 {
        slot.flush();
    }
}
