// SPDX-License-Identifier: GPL-2.0-only
//! Locks and waiting, with the semantics of Linux's.
//!
//! | here | Linux | holder may sleep | taken in interrupt context |
//! |---|---|---|---|
//! | [`SpinLock`] | `spinlock_t`, always `_irqsave` | no | yes |
//! | [`Mutex`] | `struct mutex` | yes | no |
//! | [`RwSemaphore`] | `struct rw_semaphore`, first come first served | yes | no |
//! | [`WaitQueue`] | `wait_queue_head_t` | – | waking: yes; waiting: no |
//! | [`Completion`] | `struct completion` | – | completing: yes; waiting: no |
//!
//! With feature `lockdep` the order that they are taken in is [checked](lockdep).
//!
//! All state of a lock is in the lock; waiters stand in queues on their own stacks, so nothing here
//! allocates. Whoever sleeps goes through [`schedule`](crate::sched::schedule), which submits the
//! I/O that the sleeper has plugged.

pub(crate) mod atomic;
mod completion;
pub mod lockdep;
mod mutex;
mod rwsem;
mod spinlock;
#[cfg(all(test, feature = "host"))]
mod tests;
mod wait;
mod waiter;

pub use crate::alloc::Arc;
pub use completion::Completion;
pub use mutex::{Mutex, MutexGuard, RawSleepMutex};
pub use rwsem::{RawRwSem, RwSemReadGuard, RwSemWriteGuard, RwSemaphore};
pub use spinlock::{SpinLock, SpinLockGuard};
pub use wait::WaitQueue;

static_assertions::assert_impl_all!(Mutex<core::cell::Cell<u8>>: Send, Sync);
static_assertions::assert_not_impl_any!(MutexGuard<'static, u8>: Send);
static_assertions::assert_impl_all!(RwSemaphore<u8>: Send, Sync);
static_assertions::assert_not_impl_any!(RwSemaphore<core::cell::Cell<u8>>: Sync);
static_assertions::assert_not_impl_any!(RwSemReadGuard<'static, u8>: Send);
static_assertions::assert_impl_all!(SpinLock<core::cell::Cell<u8>>: Send, Sync);
static_assertions::assert_not_impl_any!(SpinLockGuard<'static, u8>: Send);
static_assertions::assert_impl_all!(WaitQueue: Send, Sync);
static_assertions::assert_impl_all!(Completion: Send, Sync);
#[cfg(not(all(feature = "lockdep", debug_assertions)))]
static_assertions::const_assert!(size_of::<RawSleepMutex>() <= 32 && size_of::<RawRwSem>() <= 32);
