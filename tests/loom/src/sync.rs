// SPDX-License-Identifier: GPL-2.0-only
//! `kernel-shim`'s `sync`, of its own sources.

pub use crate::{atomic, lockdep};

#[path = "../../../kernel-shim/src/sync/completion.rs"]
pub mod completion;
#[path = "../../../kernel-shim/src/sync/mutex.rs"]
pub mod mutex;
#[path = "../../../kernel-shim/src/sync/rwsem.rs"]
pub mod rwsem;
#[path = "../../../kernel-shim/src/sync/spinlock.rs"]
pub mod spinlock;
#[path = "../../../kernel-shim/src/sync/wait.rs"]
pub mod wait;
#[path = "../../../kernel-shim/src/sync/waiter.rs"]
pub mod waiter;

pub(crate) mod models;

pub use completion::Completion;
pub use mutex::Mutex;
pub use rwsem::RwSemaphore;
pub use spinlock::{SpinLock, SpinLockGuard};
pub use wait::WaitQueue;
