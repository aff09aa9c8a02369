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

impl Point {
    /// Whether it changes its object; `None` if it does nothing to it that matters.
    pub fn writes(self) -> Option<bool> {
        match self {
            Self::LockShared | Self::UnlockShared | Self::Load => Some(false),
            Self::Yield | Self::Trace | Self::Park | Self::Submit => None,
            _ => Some(true),
        }
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

/// Tells a simulation that the running step looks at `object`, or changes it. Nothing without feature `sim`.
#[inline(always)]
pub fn sched_access(object: *const (), write: bool) {
    #[cfg(all(feature = "sim", not(feature = "bare")))]
    sim::access(object.addr(), write);
    #[cfg(not(all(feature = "sim", not(feature = "bare"))))]
    let _ = (object, write);
}
