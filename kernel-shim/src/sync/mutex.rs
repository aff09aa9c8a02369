// SPDX-License-Identifier: GPL-2.0-only
//! [`Mutex`]: the sleeping lock that is `i_mutex`.
//!
//! Taking a free one and giving up one that nobody waits for is a single compare-and-exchange
//! of the owner word. Otherwise:
//!
//! * A thread that does not get it stands in a queue. Whoever unlocks wakes the first in it,
//!   but the lock is free meanwhile, and a running thread may take it: no convoy forms behind the
//!   time that a wake-up takes.
//! * A first in the queue that was woken and lost so once sets [`HANDOFF`]. From then on nobody else
//!   gets the lock, and whoever unlocks makes him the owner: nobody starves.

use core::fmt;
use core::ops::{Deref, DerefMut};

use lock_api::{GuardNoSend, RawMutex};

use super::SpinLock;
use super::atomic::{AtomicUsize, Ordering};
use super::lockdep::{Dep, Kind, Mode};
use super::waiter::{WaitList, Waiter, Want};
use crate::sched::{self, Point, Task, sched_point, sched_wait};

/// Mutual exclusion for threads that may sleep while they hold it. Only the thread that has locked it
/// unlocks it; never in interrupt context.
#[doc(alias = "mutex_init")]
#[doc(alias = "mutex_lock")]
#[doc(alias = "mutex_unlock")]
pub struct Mutex<T: ?Sized>(lock_api::Mutex<RawSleepMutex, T>);

impl<T> Mutex<T> {
    /// An unlocked mutex around `value`.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub const fn new(value: T) -> Mutex<T> {
        Mutex::with_dep(value, Dep::new(Kind::Sleeping, None, core::any::type_name::<T>))
    }

    /// The same with a name, by which [lockdep](super::lockdep) knows it.
    #[doc(alias = "new_mutex")]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub const fn named(name: &'static str, value: T) -> Mutex<T> {
        Mutex::with_dep(value, Dep::new(Kind::Sleeping, Some(name), core::any::type_name::<T>))
    }

    const fn with_dep(value: T, dep: Dep) -> Mutex<T> {
        Mutex(lock_api::Mutex::from_raw(RawSleepMutex::new(dep), value))
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Deref for Mutex<T> {
    type Target = lock_api::Mutex<RawSleepMutex, T>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T: ?Sized> DerefMut for Mutex<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<T: Default> Default for Mutex<T> {
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A [`Mutex`] is held while this lives.
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawSleepMutex, T>;

/// There are entries in the queue. Changed under the queue's lock.
const WAITERS: usize = 1;
/// The first in the queue must be the next owner. Set by him alone, gone when he owns it.
const HANDOFF: usize = 2;
/// The rest of the owner word: the address of the owner's task, 0 when the lock is free.
const OWNER: usize = !(WAITERS | HANDOFF);

/// How often a thread looks whether the lock comes free before it queues, if there are other CPUs
/// that might be just about to free it.
const SPINS: u32 = 32;

/// The lock of a [`Mutex`].
///
/// # Invariants
///
/// `WAITERS` is set in `owner` exactly if the queue is not empty, as seen under the queue's lock.
pub struct RawSleepMutex {
    owner: AtomicUsize,
    queue: SpinLock<WaitList>,
    dep: Dep,
}

// A task's address leaves room for the flags.
static_assertions::const_assert!(align_of::<Task>() > WAITERS | HANDOFF);

fn current_word() -> usize {
    core::ptr::from_ref(sched::current()).addr()
}

impl RawSleepMutex {
    /// A free lock.
    const fn new(dep: Dep) -> RawSleepMutex {
        RawSleepMutex { owner: AtomicUsize::new(0), queue: SpinLock::untracked(WaitList::new()), dep }
    }

    /// How many threads wait for it.
    #[cfg(test)]
    pub(super) fn nr_waiting(&self) -> usize {
        self.queue.lock().len()
    }

    /// The address of the owner's task, and whether the first in the queue is to be the next owner.
    #[cfg(test)]
    pub(super) fn state(&self) -> (usize, bool) {
        let word = self.owner.load(Ordering::Acquire);
        (word & OWNER, word & HANDOFF != 0)
    }

    /// A lock that is free, with somebody in the queue who has asked to be the next owner or not.
    #[cfg(all(test, feature = "host"))]
    pub(super) fn free_but_awaited(promised: bool) -> RawSleepMutex {
        let lock = RawSleepMutex::INIT;
        lock.owner.store(if promised { WAITERS | HANDOFF } else { WAITERS }, Ordering::Relaxed);
        lock
    }

    /// Whether somebody waits for it at this moment.
    pub fn is_contended(&self) -> bool {
        self.owner.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Takes the lock if it is free, and, unless `first` in the queue asks, not promised to him.
    fn try_acquire(&self, me: usize, first: bool) -> bool {
        let mut word = self.owner.load(Ordering::Acquire);
        loop {
            if word & OWNER == me {
                // Handed over: `lock_slow` has made sure that we did not have it before.
                return true;
            }
            if word & OWNER != 0 || (word & HANDOFF != 0 && !first) {
                return false;
            }
            match self.owner.compare_exchange_weak(word, me | (word & WAITERS), Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    #[cold]
    fn lock_slow(&self, me: usize) {
        bug_on!(self.owner.load(Ordering::Relaxed) & OWNER == me, "locking a mutex twice: {:?}", sched::current());
        if self.try_acquire(me, false) || self.spin(me) {
            return;
        }
        let waiter = Waiter::new(Want::Write);
        let mut first = {
            let mut queue = self.queue.lock();
            // SAFETY: In no list; it leaves this one below, before this function returns.
            unsafe { queue.push_back(&waiter) };
            // INVARIANT: The queue has an entry. If the owner unlocked before it could see that,
            // we see the lock free just below.
            self.owner.fetch_or(WAITERS, Ordering::Relaxed);
            queue.is_first(&waiter)
        };
        // Before the look at the lock, so that nothing that the submission waits for takes our wake-up.
        sched::flush_plug();
        let mut lost = false;
        // Only the first tries: an unlock that finds somebody in the queue wakes him, and one that does not
        // has freed the lock for him.
        while !(first && self.try_acquire(me, true)) {
            if lost {
                // The owner may have unlocked just before this, without handing over: one more look.
                self.owner.fetch_or(HANDOFF, Ordering::Relaxed);
                if self.try_acquire(me, true) {
                    break;
                }
            }
            sched::schedule();
            lost = first;
            first = self.queue.lock().is_first(&waiter);
        }
        let mut queue = self.queue.lock();
        // SAFETY: It is in this list: nobody else takes it out.
        unsafe { queue.remove(&waiter) };
        if queue.is_empty() {
            // INVARIANT: As the queue is.
            self.owner.fetch_and(!(WAITERS | HANDOFF), Ordering::Relaxed);
        } else {
            // We may have asked for the lock just when it was handed to us.
            self.owner.fetch_and(!HANDOFF, Ordering::Relaxed);
        }
    }

    /// Takes a free lock from under those who wait.
    #[cold]
    fn try_lock_slow(&self, me: usize) -> bool {
        // `try_acquire` takes our own name for a handover; here it says that we have the lock.
        self.owner.load(Ordering::Relaxed) & OWNER == 0 && self.try_acquire(me, false)
    }

    /// Waits a few instructions for an owner on another CPU, if nobody has queued yet.
    fn spin(&self, me: usize) -> bool {
        if sched::nr_cpus() == 1 {
            return false;
        }
        for _ in 0..SPINS {
            let word = self.owner.load(Ordering::Relaxed);
            if word & WAITERS != 0 {
                return false;
            }
            if word == 0 && self.try_acquire(me, false) {
                return true;
            }
            core::hint::spin_loop();
        }
        false
    }

    #[cold]
    fn unlock_slow(&self, me: usize) {
        let task = {
            let queue = self.queue.lock();
            let word = self.owner.load(Ordering::Relaxed);
            bug_on!(word & OWNER != me, "unlocking a mutex of another's: {:?}", sched::current());
            let first = queue.first().map(Waiter::task);
            match first {
                Some(task) if word & HANDOFF != 0 => {
                    // He, being first, set it, and stays first until he owns the lock. Exchanged, as he may be setting it once
                    // more at this moment: so all changes of the word follow one from the other.
                    self.owner.swap(core::ptr::from_ref(task).addr() | WAITERS, Ordering::Release);
                }
                _ => {
                    self.owner.fetch_and(!OWNER, Ordering::Release);
                }
            }
            first
        };
        if let Some(task) = task {
            sched::unpark(task);
        }
    }
}

// SAFETY: The owner word goes from 0 to a task's address only by a compare-and-exchange of that task,
// and from one task's address to another's only by the former's unlock. So one thread at a time has it.
unsafe impl RawMutex for RawSleepMutex {
    const INIT: RawSleepMutex = RawSleepMutex::new(Dep::new(Kind::Sleeping, None, || "()"));

    /// The owner word names a thread, which therefore is the one to unlock.
    type GuardMarker = GuardNoSend;

    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn lock(&self) {
        sched::might_sleep();
        sched_wait(Point::Lock, self, |lock| lock.owner.load(Ordering::Relaxed) == 0);
        let checked = self.dep.check(Mode::Write);
        let me = current_word();
        if self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slow(me);
        }
        self.dep.hold(Mode::Write, checked);
    }

    #[doc(alias = "mutex_trylock")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn try_lock(&self) -> bool {
        sched_point(Point::TryLock, core::ptr::from_ref(self).cast());
        let me = current_word();
        let locked =
            self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() || self.try_lock_slow(me);
        if locked {
            self.dep.hold_tried(Mode::Write);
        }
        locked
    }

    #[inline]
    unsafe fn unlock(&self) {
        sched_point(Point::Unlock, core::ptr::from_ref(self).cast());
        self.dep.release();
        let me = current_word();
        if self.owner.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.unlock_slow(me);
        }
    }

    #[doc(alias = "mutex_is_locked")]
    #[inline]
    fn is_locked(&self) -> bool {
        self.owner.load(Ordering::Relaxed) & OWNER != 0
    }
}
