// SPDX-License-Identifier: GPL-2.0-only
//! The one seam to what runs the code: who is running, sleeping and waking, threads, the clock,
//! the processor, memory and the console.
//!
//! All the rest of the crate is built on what is here, once. The back ends:
//!
//! * `host`: threads of the machine that runs the tests; `std`'s allocator and clock;
//! * `bare`: our own scheduler in the guest, which registers itself at boot;
//! * `sim`, a part of `host`: tasks of a simulation, one at a time, in any order (`sim`);
//! * neither: everything compiles, and nothing runs.
//!
//! Sleeping is [`park`] and [`unpark`], with one token per task: an unpark that comes first makes the
//! next park return at once. A park may also return for no reason. So every sleeper loops over its
//! condition, and nobody else can lose a wake-up by it.

#[cfg(feature = "bare")]
pub mod bare;
#[cfg(all(feature = "host", not(feature = "bare")))]
pub mod host;
#[cfg(not(any(feature = "host", feature = "bare")))]
mod none;
#[cfg(all(feature = "sim", not(feature = "bare")))]
pub mod sim;
mod spawn;
mod task;

#[cfg(feature = "bare")]
use bare as backend;
#[cfg(all(feature = "host", not(feature = "bare")))]
use host as backend;
#[cfg(not(any(feature = "host", feature = "bare")))]
use none as backend;

pub use backend::IrqFlags;
pub(crate) use backend::{
    coarse_real_ns, coarse_tick, console, kfree, kmalloc, spin_acquired, spin_relax, spin_released,
};
pub use backend::{cpu_id, current, in_interrupt, irq_restore, irq_save, now_ns, nr_cpus, real_ns, unpark, yield_now};
pub use spawn::{JoinHandle, spawn, spawn_on};
pub use task::Task;

/// Sleeps until somebody [`unpark`]s this task, or has done so since its last sleep; possibly less
/// long. Does not submit plugged I/O: see [`schedule`].
#[inline]
pub fn park() {
    backend::park(None);
}

/// [`park`], for `ns` nanoseconds at most.
#[inline]
pub fn park_timeout(ns: u64) {
    backend::park(Some(now_ns().saturating_add(ns)));
}

/// Submits the I/O that this task has plugged, then sleeps like [`park`]. What waits on a condition
/// sleeps so: the I/O that it waits for may be its own.
#[inline]
pub fn schedule() {
    flush_plug();
    backend::park(None);
}

/// [`schedule`], until the clock of [`now_ns`] shows `deadline_ns` at most.
#[inline]
pub fn schedule_until(deadline_ns: u64) {
    flush_plug();
    backend::park(Some(deadline_ns));
}

/// Submits what this task has plugged, as every sleep does. To be called before a task stands in a
/// queue, so that what the submission itself may wait for does not eat the queue's wake-up.
#[inline]
pub(crate) fn flush_plug() {
    crate::block::plug::blk_flush_plug_current();
}

/// Reports, in debug builds and by lockdep, a sleep where none may be: in interrupt context or under a spinlock.
#[track_caller]
#[inline(always)]
pub fn might_sleep() {
    crate::sync::lockdep::might_sleep();
    if cfg!(debug_assertions) {
        backend::assert_may_sleep();
    }
}

/// Sleeps for `ms` milliseconds at least.
pub fn msleep(ms: u64) {
    might_sleep();
    let deadline = now_ns().saturating_add(ms.saturating_mul(1_000_000));
    while now_ns() < deadline {
        schedule_until(deadline);
    }
}

/// What a task is about to do where, in a simulation, another may run first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Take a spinlock.
    Spin,
    /// Lock a mutex, or an rwsem for writing.
    Lock,
    /// Lock an rwsem for reading.
    LockShared,
    /// Unlock what it has locked.
    Unlock,
    /// Unlock an rwsem that it has locked for reading.
    UnlockShared,
    /// Lock a mutex, or an rwsem for writing, if it is free.
    TryLock,
    /// Lock an rwsem for reading, if nobody writes.
    TryLockShared,
    /// Take something from a pool, or give it back: who gets which piece makes no difference. Or join a queue, or leave it.
    Pool,
    /// Sleep until something has been done, unless it has been already.
    Wait,
    /// Sleep until something holds, which it then does for ever, unless it does already.
    Passed,
    /// Add to an atomic, and not care for what it was.
    Add,
    /// Change an atomic that others look at.
    Atomic,
    /// Look at one.
    Load,
    /// Wake a task.
    Unpark,
    /// Sleep.
    Park,
    /// Go on after a sleep.
    Woken,
    /// Hand requests to the device.
    Submit,
    /// Complete a request, as the device.
    Complete,
    /// Let others run.
    Yield,
    /// Pass a tracepoint.
    Trace,
    /// Begin.
    Start,
    /// End.
    Exit,
}

/// What a step does to an object. Two that both only look at it, or that both add to it, may change places; others may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Look at it.
    Look,
    /// Change it.
    Change,
    /// Add to it.
    Add,
    /// Lock it for oneself. Not possible before it is free.
    Acquire,
    /// Lock it together with others. Not possible before it is free.
    AcquireShared,
    /// The end of [`Acquire`](Touch::Acquire).
    Release,
    /// The end of [`AcquireShared`](Touch::AcquireShared).
    ReleaseShared,
    /// Take what another has left. Not possible before it is there.
    Take,
    /// See something that stays so, whatever is done to it later. Not possible before.
    Stays,
    /// See the end of what it is: nothing can be in a race with that.
    After,
}

impl Touch {
    /// Whether two steps that do this to the same object may change places.
    pub fn commutes(self, other: Touch) -> bool {
        let looks = |touch| matches!(touch, Self::Look | Self::AcquireShared | Self::ReleaseShared);
        let same = (looks(self) && looks(other)) || (self == Self::Add && other == Self::Add);
        same || self == Self::Stays || other == Self::Stays
    }

    /// Of one step, both.
    pub fn and(self, other: Touch) -> Touch {
        match (self, other) {
            (a, b) if a == b => a,
            (a, Self::Look | Self::Stays) | (Self::Look | Self::Stays, a) => a,
            // A whole life in one step.
            (Self::After, _) | (_, Self::After) => Self::After,
            (Self::Take, _) | (_, Self::Take) => Self::Take,
            _ => Self::Change,
        }
    }
}

impl Point {
    /// What it does to its object; `None` if it does nothing to it that matters. With `lock_steps` locking a lock is one step.
    pub fn touch(self, lock_steps: bool) -> Option<Touch> {
        Some(match self {
            Self::Lock if lock_steps => Touch::Acquire,
            Self::LockShared if lock_steps => Touch::AcquireShared,
            Self::Unlock if lock_steps => Touch::Release,
            Self::UnlockShared if lock_steps => Touch::ReleaseShared,
            Self::Pool if lock_steps => return None,
            Self::Wait | Self::Passed if !lock_steps => return None,
            Self::Passed => Touch::Stays,
            Self::LockShared | Self::UnlockShared | Self::TryLockShared | Self::Load => Touch::Look,
            Self::Add => Touch::Add,
            Self::Start => Touch::After,
            Self::Woken | Self::Wait => Touch::Take,
            Self::Yield | Self::Trace | Self::Park | Self::Submit => return None,
            _ => Touch::Change,
        })
    }
}

/// In a simulation another task may run now, before the running one does what `kind` says to `object`, an address. Nothing without
/// feature `sim`, and nothing under a spinlock or in an interrupt.
#[inline(always)]
pub fn sched_point(kind: Point, object: *const ()) {
    #[cfg(all(feature = "sim", not(feature = "bare")))]
    sim::point(kind, object.addr());
    #[cfg(not(all(feature = "sim", not(feature = "bare"))))]
    let _ = (kind, object);
}

/// [`sched_point`] of who sleeps until something else has happened: a simulation in which locking is one step has the running task wait
/// here until `free` holds of `object`, and so knows none of the orders in which queues are joined and left. `free` only looks. Whether
/// it has waited so: else it is the caller who does.
#[inline(always)]
pub fn sched_wait<T>(kind: Point, object: &T, free: impl Fn(&T) -> bool) -> bool {
    #[cfg(all(feature = "sim", not(feature = "bare")))]
    return sim::wait(kind, object, free);
    #[cfg(not(all(feature = "sim", not(feature = "bare"))))]
    {
        let _ = (kind, object, free);
        false
    }
}

/// Tells a simulation that this memory is in use again, for something else: pools do not go through the allocator.
#[inline(always)]
pub(crate) fn sched_reused(at: *const (), bytes: usize) {
    #[cfg(all(feature = "sim", not(feature = "bare")))]
    sim::allocated(at.addr(), bytes);
    #[cfg(not(all(feature = "sim", not(feature = "bare"))))]
    let _ = (at, bytes);
}

/// Tells a simulation what the running step does to `object`. Nothing without feature `sim`.
#[inline(always)]
pub fn sched_touch(object: *const (), touch: Touch) {
    #[cfg(all(feature = "sim", not(feature = "bare")))]
    sim::touch(object.addr(), touch);
    #[cfg(not(all(feature = "sim", not(feature = "bare"))))]
    let _ = (object, touch);
}

/// Tells a simulation that the running step looks at `object`, or changes it. Nothing without feature `sim`.
#[inline(always)]
pub fn sched_access(object: *const (), write: bool) {
    sched_touch(object, if write { Touch::Change } else { Touch::Look });
}
