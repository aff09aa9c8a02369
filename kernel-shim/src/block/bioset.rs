// SPDX-License-Identifier: GPL-2.0-only
//! `bio_set` of `block/bio.c`: the bios of one disk, all made when the disk is.
//!
//! The free ones are lists through themselves, one for each CPU, so that taking and giving back one costs
//! a spinlock that nobody else wants and a few stores, in any context. A CPU whose list is empty takes from
//! the others'. Who finds none sleeps for the next that comes back: bios in
//! flight come back by themselves, so the wait ends as long as nobody holds the whole set without
//! submitting it.

use core::ptr::NonNull;

use super::bio::{BIO, Bio, BioPtr, ReqOpf};
use super::blkdev::Gendisk;
use crate::alloc::{Flags, KVec};
use crate::error::Result;
use crate::percpu::{COPIES, CacheAligned, PerCpu};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{SpinLock, WaitQueue};

/// How many bios a disk has unless told otherwise.
pub(crate) const BIO_POOL_SIZE: usize = 1024;

struct Free {
    head: Option<NonNull<Bio>>,
    available: usize,
}

impl Free {
    #[inline]
    fn pop(&mut self) -> Option<NonNull<Bio>> {
        let head = self.head?;
        // SAFETY: a bio on the list belongs to the list.
        self.head = unsafe { head.as_ref() }.bi_next;
        self.available -= 1;
        Some(head)
    }

    /// # Safety
    ///
    /// `bio` is on no list, and the caller its only owner.
    #[inline]
    unsafe fn push(&mut self, mut bio: NonNull<Bio>) {
        // SAFETY: the caller owned it.
        unsafe { bio.as_mut() }.bi_next = self.head.replace(bio);
        self.available += 1;
    }
}

// SAFETY: the list owns the bios on it, and those may change threads (see `BioPtr`).
unsafe impl Send for Free {}

/// A fixed number of bios.
pub(crate) struct BioSet {
    free: PerCpu<SpinLock<Free>>,
    /// Tasks that wait for a bio, or for all of them. Looked at with one of the lists locked: whoever waits looks into
    /// all lists after counting itself, so who gives back a bio later sees it counted.
    waiters: AtomicUsize,
    /// Contexts between giving back a bio and having woken a waiter for it.
    wakers: AtomicUsize,
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
    pub(crate) fn new() -> Self {
        Self {
            free: PerCpu::new(
                [const { CacheAligned(SpinLock::named("bio_free", Free { head: None, available: 0 })) }; COPIES],
            ),
            waiters: AtomicUsize::new(0),
            wakers: AtomicUsize::new(0),
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
        let mut free = self.free.this().lock_pool();
        for i in (0..nr).rev() {
            // SAFETY: `i` is inside the vector, whose memory stays where it is.
            let bio = unsafe { NonNull::new_unchecked(first.add(i)) };
            // SAFETY: nobody else knows of the bio yet.
            unsafe { free.push(bio) };
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) fn capacity(&self) -> usize {
        self.storage.len()
    }

    /// How many are out.
    pub(crate) fn outstanding(&self) -> usize {
        // The lists are not looked at in one moment: while bios move there may seem to be too many.
        self.capacity().saturating_sub(self.available())
    }

    fn available(&self) -> usize {
        self.free.iter().map(|free| free.lock_pool().available).sum()
    }

    /// Takes one, made ready for `opf`, if there is one. Any context.
    #[inline]
    pub(crate) fn try_get(&self, opf: ReqOpf) -> Option<BioPtr> {
        // The list is unlocked before the others are looked at.
        let own = self.free.this().lock_pool().pop();
        let head = match own {
            Some(head) => head,
            None => self.take_from_others()?,
        };
        // SAFETY: off the list, and ours.
        let mut bio = unsafe { BioPtr::from_nonnull(head) };
        bio.init(opf);
        Some(bio)
    }

    #[cold]
    fn take_from_others(&self) -> Option<NonNull<Bio>> {
        self.free.iter().find_map(|free| free.lock_pool().pop())
    }

    /// Takes one, sleeping until there is one.
    #[cold]
    pub(crate) fn get(&self, opf: ReqOpf) -> BioPtr {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let mut got = None;
        BIO.might_wait();
        self.wait.wait_event(|| {
            got = self.try_get(opf);
            got.is_some()
        });
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        // OK to unwrap: the wait ends when there is one.
        got.expect("a bio")
    }

    /// Gives one back. Any context.
    ///
    /// # Safety
    ///
    /// `bio` must be of this set and off its list, and the caller its only owner.
    #[inline]
    pub(crate) unsafe fn put(&self, bio: NonNull<Bio>) {
        let mut free = self.free.this().lock_pool();
        // SAFETY: the caller's promise.
        unsafe { free.push(bio) };
        if self.waiters.load(Ordering::Relaxed) != 0 {
            // Whoever waits for the last bio may free this set as soon as it sees it: not before
            // we are done with the queue.
            self.wakers.fetch_add(1, Ordering::Relaxed);
            drop(free);
            self.wait.wake_up_one();
            // Release: all of the above is over for who sees this.
            self.wakers.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until all bios are back and nobody is inside the set; false if that takes longer than
    /// `timeout_ns`. Nobody may take any more. Sleeps.
    pub(crate) fn drain(&self, timeout_ns: u64) -> bool {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let back = self.wait.wait_event_timeout(|| self.available() == self.capacity(), timeout_ns);
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        if back {
            // Brief: between an unlock and the return of a wake-up.
            while self.wakers.load(Ordering::Acquire) != 0 {
                crate::sched::yield_now();
            }
        }
        back
    }
}
