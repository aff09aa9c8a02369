// SPDX-License-Identifier: GPL-2.0-only
//! lockdep: finds deadlocks in the order that locks are taken in, without their having to happen.
//!
//! All locks that are made at one place, or bear one name, are a *class*. Whenever a lock is taken while others are held, the graph
//! of classes gets an edge from each of them, and a cycle in it is a deadlock that only waits for its schedule. The graph is that of the
//! whole process: two tests that never meet can contradict each other. The order that the documentation states is declared
//! to it ([`lock_order`]), and so contradicted at most once.
//!
//! Reported are, each with its locks, where they were taken, and the earlier chain:
//!
//! * an order that contradicts an earlier one;
//! * a lock taken twice by one task: a read lock, too, since a writer that queues in between stops the second;
//! * two locks of one class, unless it was said which goes first ([`subclass`]);
//! * sleeping in interrupt context or under a spinlock, with its name;
//! * a lock held at the end of a system call ([`syscall`]), of a work, of a thread;
//! * giving up what is not held, freeing what is.
//!
//! What is no lock and is waited for like one is a [`LockMap`]: handles and commits of the journal, direct I/O in flight, pages on
//! their way to the disk. Who can end the wait *holds* it, who waits *takes* it.
//!
//! What it does not look for: a spinlock that a handler takes and that others take with interrupts on. A
//! [`SpinLock`](super::SpinLock) turns them off always.
//!
//! A report goes to the log and is then a bug: a panic. With feature `lockdep` and debug assertions only; without either nothing here
//! costs anything, and a lock has no class. (Features are those of all that is built at once: a benchmark that is built beside
//! the tests has theirs.)

#[cfg(all(feature = "lockdep", debug_assertions))]
mod graph;
#[cfg(all(feature = "lockdep", debug_assertions))]
mod held;
#[cfg(not(all(feature = "lockdep", debug_assertions)))]
mod off;
#[cfg(all(feature = "lockdep", debug_assertions))]
mod report;
#[cfg(all(test, feature = "lockdep", debug_assertions, feature = "host"))]
mod tests;

#[cfg(all(feature = "lockdep", debug_assertions))]
pub use graph::{for_each_order, lock_order};
#[cfg(all(feature = "lockdep", debug_assertions))]
pub(crate) use held::{Dep, Held, HeldDep};
#[cfg(all(feature = "lockdep", debug_assertions))]
pub use held::{HeldMap, LockMap, Syscall, subclass, syscall};
#[cfg(all(feature = "lockdep", debug_assertions, feature = "host"))]
pub(crate) use held::{aside, start_of};
#[cfg(all(feature = "lockdep", debug_assertions))]
pub(crate) use held::{end_of_thread, might_sleep};
#[cfg(not(all(feature = "lockdep", debug_assertions)))]
pub use off::*;

/// Whether this was built with feature `lockdep`, and with debug assertions.
pub const LOCKDEP: bool = cfg!(all(feature = "lockdep", debug_assertions));

/// What a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Part of another lock; nothing is taken under it.
    Untracked,
    Spin,
    Sleeping,
    /// A [`LockMap`].
    Map,
}

/// How a lock is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    Write,
}
