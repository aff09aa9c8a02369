// SPDX-License-Identifier: GPL-2.0-only
//! [`RwSemaphore`]: the sleeping reader-writer lock that is `i_data_sem`.
//!
//! First come, first served, as in Linux: a reader that comes while a writer waits stands behind
//! him, though readers hold the lock; so a second read lock in a thread that has one deadlocks
//! as soon as a writer comes between, and lockdep's rules about it make sense here as well. Readers
//! that stand together at the head of the queue go together.
//!
//! The lock is one word. A reader adds itself before it knows whether it may (one atomic
//! addition when it may), and takes itself back if not. Meanwhile it only can keep others from
//! finding the lock free, and so after taking itself back it looks whether somebody is to be woken.

use core::fmt;
use core::ops::{Deref, DerefMut};

use lock_api::{GuardNoSend, RawRwLock, RawRwLockDowngrade};

use super::SpinLock;
use super::atomic::{AtomicUsize, Ordering};
use super::lockdep::{Dep, Kind, Mode};
use super::waiter::{Granted, WaitList, Waiter, Want};
use crate::sched::{self, Point, sched_access, sched_point, sched_wait};

/// Shared among readers, exclusive to a writer, first come first served. The holders may sleep. Not
/// recursive, not even for readers; never in interrupt context.
#[doc(alias = "rw_semaphore")]
#[doc(alias = "init_rwsem")]
#[doc(alias = "down_read")]
#[doc(alias = "down_write")]
#[doc(alias = "up_read")]
#[doc(alias = "up_write")]
pub struct RwSemaphore<T: ?Sized>(lock_api::RwLock<RawRwSem, T>);

impl<T> RwSemaphore<T> {
    /// A free semaphore around `value`.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub const fn new(value: T) -> RwSemaphore<T> {
        RwSemaphore::with_dep(value, Dep::new(Kind::Sleeping, None, core::any::type_name::<T>))
    }

    /// The same with a name, by which [lockdep](super::lockdep) knows it.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub const fn named(name: &'static str, value: T) -> RwSemaphore<T> {
        RwSemaphore::with_dep(value, Dep::new(Kind::Sleeping, Some(name), core::any::type_name::<T>))
    }

    const fn with_dep(value: T, dep: Dep) -> RwSemaphore<T> {
        RwSemaphore(lock_api::RwLock::from_raw(RawRwSem::new(dep), value))
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Deref for RwSemaphore<T> {
    type Target = lock_api::RwLock<RawRwSem, T>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for RwSemaphore<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<T: Default> Default for RwSemaphore<T> {
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn default() -> RwSemaphore<T> {
        RwSemaphore::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwSemaphore<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A [`RwSemaphore`] is held for reading while this lives.
pub type RwSemReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, RawRwSem, T>;

/// A [`RwSemaphore`] is held for writing while this lives.
pub type RwSemWriteGuard<'a, T> = lock_api::RwLockWriteGuard<'a, RawRwSem, T>;

/// A writer has the lock.
const WRITER: usize = 1;
/// There are entries in the queue. Changed under the queue's lock.
const WAITERS: usize = 2;
/// One reader has the lock, or tries to get it; their number is in the bits from here on.
const READER: usize = 4;
/// Somebody has the lock.
const HELD: usize = !WAITERS;

/// The lock of a [`RwSemaphore`].
///
/// # Invariants
///
/// As seen under the queue's lock, `WAITERS` is set in `count` exactly if the queue is not empty. While
/// it is set only `grant` gives the lock to anybody.
pub struct RawRwSem {
    count: AtomicUsize,
    queue: SpinLock<WaitList>,
    dep: Dep,
}

impl RawRwSem {
    /// A free lock.
    const fn new(dep: Dep) -> RawRwSem {
        RawRwSem { count: AtomicUsize::new(0), queue: SpinLock::untracked(WaitList::new()), dep }
    }

    /// How many threads wait for it.
    #[cfg(test)]
    pub(super) fn nr_waiting(&self) -> usize {
        self.queue.lock().len()
    }

    /// `lock_shared` of a reader that is found in its way by somebody, and does `meanwhile` before it knows.
    #[cfg(all(test, feature = "host"))]
    pub(super) fn lock_shared_late(&self, meanwhile: impl FnOnce()) {
        self.count.fetch_add(READER, Ordering::Acquire);
        meanwhile();
        self.lock_shared_slow();
        self.dep.hold_tried(Mode::Read);
    }

    /// Whether somebody waits for it at this moment.
    #[doc(alias = "rwsem_is_contended")]
    pub fn is_contended(&self) -> bool {
        self.count.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Gives the lock to the first in the queue, if it is free for him: to a writer, or to all readers
    /// up to the next writer. They are to be woken when the queue is unlocked.
    fn grant(&self, queue: &mut WaitList) -> Granted {
        let mut granted = Granted::new();
        // Acquire, here and below: what the former holders did is visible to those who are granted.
        let mut count = self.count.load(Ordering::Acquire);
        match queue.first().map(Waiter::want) {
            None => {}
            Some(Want::Write) => {
                // A reader that tries may come and go meanwhile. If one is in the way, it will be
                // the one that calls this again.
                while count & HELD == 0 {
                    let word = if queue.has_one() { WRITER } else { WRITER | WAITERS };
                    match self.count.compare_exchange(count, word, Ordering::Acquire, Ordering::Acquire) {
                        Ok(_) => {
                            // INVARIANT: If he was the only one, the flag has gone with him.
                            queue.detach(&mut granted);
                            break;
                        }
                        Err(now) => count = now,
                    }
                }
            }
            // A writer that has the lock will unlock, see the flag, and come here.
            Some(Want::Read) if count & WRITER != 0 => {}
            Some(Want::Read) => {
                // By the type invariant no writer gets it between the look and the addition.
                let mut add = 0;
                while queue.first().is_some_and(|first| first.want() == Want::Read) {
                    queue.detach(&mut granted);
                    add += READER;
                }
                if queue.is_empty() {
                    // INVARIANT: As the queue is.
                    add -= WAITERS;
                }
                self.count.fetch_add(add, Ordering::Acquire);
            }
        }
        granted
    }

    /// The lock has come free, at least for readers, with somebody in the queue.
    #[cold]
    fn wake(&self) {
        sched_access(core::ptr::from_ref(self).cast(), true);
        let granted = self.grant(&mut self.queue.lock());
        granted.wake();
    }

    /// Puts `waiter` into the queue, takes `bias` off the count, and gives the lock on if that has made
    /// it free. Then sleeps until `waiter` has it.
    fn queue_and_wait(&self, mut queue: super::SpinLockGuard<'_, WaitList>, waiter: &Waiter, bias: usize) {
        let flag = if queue.is_empty() { WAITERS } else { 0 };
        // SAFETY: In no list; it leaves this one before it is granted, and we wait for that.
        unsafe { queue.push_back(waiter) };
        // INVARIANT: The flag is set with the first entry.
        let before = self.count.fetch_add(flag.wrapping_sub(bias), Ordering::Relaxed);
        let granted = match before.wrapping_sub(bias) & HELD {
            0 => self.grant(&mut queue),
            _ => Granted::new(),
        };
        drop(queue);
        granted.wake();
        sched::flush_plug();
        waiter.wait_granted();
    }

    #[cold]
    fn lock_shared_slow(&self) {
        // Others' unlocks see that we have tried.
        sched_access(core::ptr::from_ref(self).cast(), true);
        let queue = self.queue.lock();
        if queue.is_empty() && self.count.load(Ordering::Acquire) & WRITER == 0 {
            // The writer has gone and nobody is in the queue: that we are counted makes us a holder.
            return;
        }
        self.queue_and_wait(queue, &Waiter::new(Want::Read), READER);
    }

    #[cold]
    fn lock_exclusive_slow(&self) {
        let queue = self.queue.lock();
        self.queue_and_wait(queue, &Waiter::new(Want::Write), 0);
    }
}

// SAFETY: WRITER is set only while HELD is 0, atomically. A reader counts as a holder only if, after it
// has added itself, WRITER was clear, which then stays so until it has gone.
unsafe impl RawRwLock for RawRwSem {
    const INIT: RawRwSem = RawRwSem::new(Dep::new(Kind::Sleeping, None, || "()"));

    /// A holder is a thread, as lockdep wants it.
    type GuardMarker = GuardNoSend;

    #[doc(alias = "down_read")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn lock_shared(&self) {
        sched::might_sleep();
        sched_wait(Point::LockShared, self, |sem| sem.count.load(Ordering::Relaxed) & (WRITER | WAITERS) == 0);
        let checked = self.dep.check(Mode::Read);
        if self.count.fetch_add(READER, Ordering::Acquire) & (WRITER | WAITERS) != 0 {
            self.lock_shared_slow();
        }
        self.dep.hold(Mode::Read, checked);
    }

    #[doc(alias = "down_read_trylock")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn try_lock_shared(&self) -> bool {
        sched_point(Point::TryLockShared, core::ptr::from_ref(self).cast());
        let mut count = self.count.load(Ordering::Relaxed);
        while count & (WRITER | WAITERS) == 0 {
            match self.count.compare_exchange_weak(count, count + READER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    self.dep.hold_tried(Mode::Read);
                    return true;
                }
                Err(now) => count = now,
            }
        }
        false
    }

    #[doc(alias = "up_read")]
    #[inline]
    unsafe fn unlock_shared(&self) {
        sched_point(Point::UnlockShared, core::ptr::from_ref(self).cast());
        self.dep.release();
        // The last reader, with somebody in the queue.
        if self.count.fetch_sub(READER, Ordering::Release) == READER | WAITERS {
            self.wake();
        }
    }

    #[doc(alias = "down_write")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn lock_exclusive(&self) {
        sched::might_sleep();
        sched_wait(Point::Lock, self, |sem| sem.count.load(Ordering::Relaxed) == 0);
        let checked = self.dep.check(Mode::Write);
        if self.count.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_exclusive_slow();
        }
        self.dep.hold(Mode::Write, checked);
    }

    #[doc(alias = "down_write_trylock")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn try_lock_exclusive(&self) -> bool {
        sched_point(Point::TryLock, core::ptr::from_ref(self).cast());
        let locked = self.count.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if locked {
            self.dep.hold_tried(Mode::Write);
        }
        locked
    }

    #[doc(alias = "up_write")]
    #[inline]
    unsafe fn unlock_exclusive(&self) {
        sched_point(Point::Unlock, core::ptr::from_ref(self).cast());
        self.dep.release();
        if self.count.fetch_sub(WRITER, Ordering::Release) & WAITERS != 0 {
            self.wake();
        }
    }

    #[doc(alias = "rwsem_is_locked")]
    #[inline]
    fn is_locked(&self) -> bool {
        self.count.load(Ordering::Relaxed) & HELD != 0
    }

    #[inline]
    fn is_locked_exclusive(&self) -> bool {
        self.count.load(Ordering::Relaxed) & WRITER != 0
    }
}

// SAFETY: In one step the writer becomes a reader, so that no writer gets in between.
unsafe impl RawRwLockDowngrade for RawRwSem {
    #[doc(alias = "downgrade_write")]
    #[inline]
    unsafe fn downgrade(&self) {
        sched_point(Point::Unlock, core::ptr::from_ref(self).cast());
        self.dep.downgrade();
        if self.count.fetch_add(READER - WRITER, Ordering::Release) & WAITERS != 0 {
            // Readers at the head of the queue may come in with us.
            self.wake();
        }
    }
}
