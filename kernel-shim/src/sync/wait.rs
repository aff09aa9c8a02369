// SPDX-License-Identifier: GPL-2.0-only
//! [`WaitQueue`]: sleeping until a condition holds that somebody else makes true.

use core::fmt;

use super::SpinLock;
use super::atomic::{AtomicU32, Ordering, fence};
use super::waiter::{WaitList, Waiter, Want};
use crate::sched::{self, Point, Touch, sched_touch, sched_wait};

/// A queue of threads that wait, each for a condition of its own.
///
/// Who changes what the conditions look at calls one of the `wake_up` functions afterwards. No
/// wake-up is lost: a waiter joins the queue, and then looks; a waker changes, and then looks
/// into the queue.
#[doc(alias = "wait_queue_head_t")]
pub struct WaitQueue {
    list: SpinLock<WaitList>,
    /// Entries in `list`. Changed under its lock, read without.
    nr_waiters: AtomicU32,
}

impl WaitQueue {
    /// An empty queue.
    #[doc(alias = "init_waitqueue_head")]
    pub const fn new() -> WaitQueue {
        WaitQueue { list: SpinLock::untracked(WaitList::new()), nr_waiters: AtomicU32::new(0) }
    }

    /// Sleeps until `cond` holds. It is evaluated at first, and after each wake-up, without locks; it
    /// may change things (take an item, say), and is not evaluated again after it has held.
    ///
    /// What happened before the state that `cond` saw is visible to the caller as far as the
    /// accesses in `cond` make it so: Acquire loads, or a lock.
    #[inline]
    pub fn wait_event(&self, mut cond: impl FnMut() -> bool) {
        if !cond() {
            self.wait(&mut cond, None);
        }
    }

    /// [`wait_event`](WaitQueue::wait_event), for `ns` nanoseconds at most; whether `cond` has held.
    #[inline]
    pub fn wait_event_timeout(&self, mut cond: impl FnMut() -> bool, ns: u64) -> bool {
        cond() || self.wait(&mut cond, Some(sched::now_ns().saturating_add(ns)))
    }

    #[cold]
    fn wait(&self, cond: &mut dyn FnMut() -> bool, deadline_ns: Option<u64>) -> bool {
        sched::might_sleep();
        sched::flush_plug();
        let waiter = Waiter::new(Want::Write);
        let place = Place { queue: self, waiter: &waiter };
        loop {
            place.take();
            // The queue before the condition; `wake` has the two the other way round. So either the
            // waker sees us, or we see what it changed.
            fence(Ordering::SeqCst);
            if cond() {
                return true;
            }
            match deadline_ns {
                None if sched_wait(Point::Wait, &self.list, |_| !waiter.is_queued()) => {}
                None => sched::schedule(),
                Some(deadline) if sched::now_ns() >= deadline => return false,
                Some(deadline) => sched::schedule_until(deadline),
            }
        }
    }

    /// Wakes all who wait now. Any context.
    #[inline]
    pub fn wake_up_all(&self) {
        if self.has_waiters() {
            self.wake(u32::MAX);
        }
    }

    /// Wakes the one who has waited longest; for conditions that only one can make use of. Any
    /// context.
    #[inline]
    pub fn wake_up_one(&self) {
        if self.has_waiters() {
            self.wake(1);
        }
    }

    /// Whether somebody waits, seen from after all that the caller has done so far.
    #[doc(alias = "wq_has_sleeper")]
    #[inline]
    pub fn has_waiters(&self) -> bool {
        sched_touch(core::ptr::from_ref(&self.list).cast(), Touch::Add);
        // What the caller changed before the look into the queue: see `wait`.
        fence(Ordering::SeqCst);
        self.nr_waiters.load(Ordering::Relaxed) != 0
    }

    /// How many threads stand in the queue.
    #[cfg(test)]
    pub(super) fn nr_waiting(&self) -> usize {
        let list = self.list.lock();
        assert_eq!(list.len(), self.nr_waiters.load(Ordering::Relaxed) as usize);
        list.len()
    }

    #[cold]
    fn wake(&self, max: u32) {
        let mut list = self.list.lock_pool();
        // All under the lock, so that the woken cannot queue again and be woken again.
        for _ in 0..max {
            if !list.wake_first() {
                break;
            }
            self.nr_waiters.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Default for WaitQueue {
    fn default() -> WaitQueue {
        WaitQueue::new()
    }
}

impl fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WaitQueue({} waiting)", self.nr_waiters.load(Ordering::Relaxed))
    }
}

/// A waiter's place in the queue, given up when this is dropped, even by a condition that panics.
struct Place<'a> {
    queue: &'a WaitQueue,
    waiter: &'a Waiter,
}

impl Place<'_> {
    /// Stands in the queue from now on, at its end if it did not before.
    fn take(&self) {
        let mut list = self.queue.list.lock_pool();
        if !self.waiter.is_queued() {
            // SAFETY: In no list; and it leaves this one in `drop`, before the waiter goes.
            unsafe { list.push_back(self.waiter) };
            self.queue.nr_waiters.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut list = self.queue.list.lock_pool();
        if self.waiter.is_queued() {
            // SAFETY: It is in this list.
            unsafe { list.remove(self.waiter) };
            self.queue.nr_waiters.fetch_sub(1, Ordering::Relaxed);
        } else if list.wake_first() {
            // We were woken after our last look at the condition, so the wake-up may have been for
            // something that we did not take: it goes on to the next.
            self.queue.nr_waiters.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
