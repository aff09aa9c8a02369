// SPDX-License-Identifier: GPL-2.0-only
//! `bio_set` of `block/bio.c`: the bios of one disk, all made when the disk is.
//!
//! The free ones are a list through themselves, so that taking and giving back one costs a spinlock
//! and a few stores, in any context. Who finds none sleeps for the next that comes back: bios in
//! flight come back by themselves, so the wait ends as long as nobody holds the whole set without
//! submitting it.

use core::ptr::NonNull;

use super::bio::{Bio, BioPtr, ReqOpf};
use super::blkdev::Gendisk;
use crate::alloc::{Flags, KVec};
use crate::error::Result;
use crate::sync::{SpinLock, WaitQueue};

/// How many bios a disk has unless told otherwise.
pub(crate) const BIO_POOL_SIZE: usize = 1024;

struct Free {
    head: Option<NonNull<Bio>>,
    available: usize,
    /// Tasks that wait for a bio, or for all of them.
    waiters: usize,
    /// Contexts between giving back a bio and having woken a waiter for it.
    wakers: usize,
}

// SAFETY: the list owns the bios on it, and those may change threads (see `BioPtr`).
unsafe impl Send for Free {}

/// A fixed number of bios.
pub(crate) struct BioSet {
    free: SpinLock<Free>,
    wait: WaitQueue,
    /// Only the owner of the memory: the bios are reached by pointers made once in [`BioSet::fill`].
    storage: KVec<Bio>,
}

// SAFETY: `storage` is not used between `fill` and the drop, both of which have the set to themselves.
unsafe impl Send for BioSet {}
// SAFETY: as above; the rest is behind the lock.
unsafe impl Sync for BioSet {}

impl BioSet {
    /// An empty set.
    pub(crate) const fn new() -> Self {
        Self {
            free: SpinLock::new(Free { head: None, available: 0, waiters: 0, wakers: 0 }),
            wait: WaitQueue::new(),
            storage: KVec::new(),
        }
    }

    /// Makes the set's `nr` bios; they refer to `disk`. Once, before anything else.
    pub(crate) fn fill(&mut self, disk: NonNull<Gendisk>, nr: usize, gfp: Flags) -> Result {
        self.storage.reserve(nr, gfp)?;
        for _ in 0..nr {
            self.storage.push(Bio::unused(disk), gfp)?;
        }
        // From here on only through pointers of this one derivation.
        let first = self.storage.as_mut_ptr();
        let mut free = self.free.lock();
        for i in (0..nr).rev() {
            // SAFETY: `i` is inside the vector, whose memory stays where it is.
            let mut bio = unsafe { NonNull::new_unchecked(first.add(i)) };
            // SAFETY: nobody else knows of the bio yet.
            unsafe { bio.as_mut() }.bi_next = free.head.replace(bio);
            free.available += 1;
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn capacity(&self) -> usize {
        self.storage.len()
    }

    /// How many are out.
    pub(crate) fn outstanding(&self) -> usize {
        self.capacity() - self.free.lock().available
    }

    /// Takes one, made ready for `opf`, if there is one. Any context.
    #[inline]
    pub(crate) fn try_get(&self, opf: ReqOpf) -> Option<BioPtr> {
        let mut free = self.free.lock();
        let head = free.head?;
        // SAFETY: a bio on the list belongs to the list.
        free.head = unsafe { head.as_ref() }.bi_next;
        free.available -= 1;
        drop(free);
        // SAFETY: off the list, and ours.
        let mut bio = unsafe { BioPtr::from_nonnull(head) };
        bio.init(opf);
        Some(bio)
    }

    /// Takes one, sleeping until there is one.
    #[cold]
    pub(crate) fn get(&self, opf: ReqOpf) -> BioPtr {
        self.free.lock().waiters += 1;
        let mut got = None;
        self.wait.wait_event(|| {
            got = self.try_get(opf);
            got.is_some()
        });
        self.free.lock().waiters -= 1;
        // OK to unwrap: the wait ends when there is one.
        got.expect("a bio")
    }

    /// Gives one back. Any context.
    ///
    /// # Safety
    ///
    /// `bio` must be of this set and off its list, and the caller its only owner.
    #[inline]
    pub(crate) unsafe fn put(&self, mut bio: NonNull<Bio>) {
        let mut free = self.free.lock();
        // SAFETY: the caller owned it.
        unsafe { bio.as_mut() }.bi_next = free.head.replace(bio);
        free.available += 1;
        if free.waiters != 0 {
            // Whoever waits for the last bio may free this set as soon as it sees it: not before
            // we are done with the queue.
            free.wakers += 1;
            drop(free);
            self.wait.wake_up_one();
            self.free.lock().wakers -= 1;
        }
    }

    /// Waits until all bios are back and nobody is inside the set; false if that takes longer than
    /// `timeout_ns`. Nobody may take any more. Sleeps.
    pub(crate) fn drain(&self, timeout_ns: u64) -> bool {
        self.free.lock().waiters += 1;
        let back = self.wait.wait_event_timeout(|| self.free.lock().available == self.capacity(), timeout_ns);
        self.free.lock().waiters -= 1;
        if back {
            // Brief: between an unlock and the return of a wake-up.
            while self.free.lock().wakers != 0 {
                crate::sched::yield_now();
            }
        }
        back
    }
}
