// SPDX-License-Identifier: GPL-2.0-only
//! [`SpinLock`]: mutual exclusion among CPUs and with interrupt handlers, for a few instructions.

use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::ops::{Deref, DerefMut};

use super::atomic::{RelaxStrategy, SpinMutex, UnsafeCell};
use super::lockdep::{Dep, Kind, Mode};
use crate::sched::{self, IrqFlags, Point, sched_point};

/// What a CPU does between two looks at a lock that another one holds.
struct Relax;

impl RelaxStrategy for Relax {
    #[inline(always)]
    fn relax() {
        sched::spin_relax();
    }
}

/// A value that one CPU at a time gets at, with interrupts off. Its holder must not sleep.
///
/// The word that is spun on is the `spin` crate's; what it does not know of is interrupts.
#[doc(alias = "spinlock_t")]
pub struct SpinLock<T: ?Sized> {
    raw: SpinMutex<(), Relax>,
    dep: Dep,
    data: UnsafeCell<T>,
}

// SAFETY: A lock owns its value.
unsafe impl<T: ?Sized + Send> Send for SpinLock<T> {}
// SAFETY: A shared lock gives access to the value to one thread at a time.
unsafe impl<T: ?Sized + Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// An unlocked lock around `value`.
    #[doc(alias = "spin_lock_init")]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub const fn new(value: T) -> SpinLock<T> {
        SpinLock::with_dep(value, Dep::new(Kind::Spin, None, core::any::type_name::<T>))
    }

    /// The same with a name, by which [lockdep](super::lockdep) knows it.
    #[doc(alias = "new_spinlock")]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub const fn named(name: &'static str, value: T) -> SpinLock<T> {
        SpinLock::with_dep(value, Dep::new(Kind::Spin, Some(name), core::any::type_name::<T>))
    }

    /// The same, of which lockdep does not know: for one that no other lock is taken under.
    pub(super) const fn untracked(value: T) -> SpinLock<T> {
        SpinLock::with_dep(value, Dep::new(Kind::Untracked, None, core::any::type_name::<T>))
    }

    const fn with_dep(value: T, dep: Dep) -> SpinLock<T> {
        SpinLock { raw: SpinMutex::new(()), dep, data: UnsafeCell::new(value) }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> SpinLock<T> {
    /// Turns interrupts off and takes the lock, spinning while another CPU has it. Any context.
    #[doc(alias = "spin_lock_irqsave")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn lock(&self) -> SpinLockGuard<'_, T> {
        self.lock_as(Point::Spin)
    }

    /// [`lock`](SpinLock::lock) of a list of pieces that are all alike, or of waiters, which a simulation need not try in all orders:
    /// nothing depends on who gets which. Whoever finds the list empty must look again in a way that it does notice.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub(crate) fn lock_pool(&self) -> SpinLockGuard<'_, T> {
        self.lock_as(Point::Pool)
    }

    #[inline(always)]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn lock_as(&self, kind: Point) -> SpinLockGuard<'_, T> {
        sched_point(kind, core::ptr::from_ref(self).cast());
        let checked = self.dep.check(Mode::Write);
        // Off before the lock is ours: a handler on this CPU that wants it would spin for ever.
        let irq = sched::irq_save();
        mem::forget(self.raw.lock());
        sched::spin_acquired();
        self.dep.hold(Mode::Write, checked);
        SpinLockGuard { lock: self, irq, _not_send: PhantomData }
    }

    /// Takes the lock if it is free. Any context.
    #[doc(alias = "spin_trylock_irqsave")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn try_lock(&self) -> Option<SpinLockGuard<'_, T>> {
        sched_point(Point::Spin, core::ptr::from_ref(self).cast());
        let irq = sched::irq_save();
        match self.raw.try_lock() {
            Some(guard) => {
                mem::forget(guard);
                sched::spin_acquired();
                self.dep.hold_tried(Mode::Write);
                Some(SpinLockGuard { lock: self, irq, _not_send: PhantomData })
            }
            None => {
                sched::irq_restore(irq);
                None
            }
        }
    }

    /// A look at the value for [`sched_wait`](sched::sched_wait): a simulation is at no point where the lock is held. `None` if it is
    /// nevertheless.
    pub fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        let _guard = self.raw.try_lock()?;
        // SAFETY: the lock is held.
        Some(look(unsafe { &*self.data.get() }))
    }

    /// The value, to whoever has the lock to himself.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// Whether somebody holds it at this moment.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }
}

impl<T: Default> Default for SpinLock<T> {
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn default() -> SpinLock<T> {
        SpinLock::new(T::default())
    }
}

impl<T: ?Sized> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_locked() { "SpinLock(held)" } else { "SpinLock(free)" })
    }
}

/// The lock is held and interrupts are off while this lives. It stays on its CPU.
#[must_use = "the lock is held only as long as its guard lives"]
pub struct SpinLockGuard<'a, T: ?Sized> {
    lock: &'a SpinLock<T>,
    irq: IrqFlags,
    /// Interrupts were turned off on this CPU and must be turned on again there.
    _not_send: PhantomData<*mut ()>,
}

// SAFETY: A shared guard gives shared access to the value.
unsafe impl<T: ?Sized + Sync> Sync for SpinLockGuard<'_, T> {}

impl<T: ?Sized> Drop for SpinLockGuard<'_, T> {
    #[doc(alias = "spin_unlock_irqrestore")]
    #[inline]
    fn drop(&mut self) {
        self.lock.dep.release();
        sched::spin_released();
        // SAFETY: A guard exists only while the lock is held, and this one ends here.
        unsafe { self.lock.raw.force_unlock() };
        // From here on the lock may be gone: who takes it after us may free it.
        sched::irq_restore(self.irq);
    }
}

impl<T: ?Sized> Deref for SpinLockGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The lock is held.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for SpinLockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}
