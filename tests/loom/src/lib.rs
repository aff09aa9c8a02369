// SPDX-License-Identifier: GPL-2.0-only
//! `kernel-shim`'s primitives under `loom`: in all schedules, and with all values that the memory model lets each load have.
//!
//! What is checked are the very sources of `kernel-shim`, compiled in here by path. They get their atomics, cells and the spinning lock
//! from `crate::sync::atomic`, which here is loom's; `crate::sched` sleeps and wakes by loom's threads.
//!
//! What loom cannot show, and the models assume: the lock inside of a spinlock is the `spin` crate's, and stands here as loom's mutex. A
//! sequentially consistent access is modelled as an acquiring or releasing one between two such fences, which is a little more than the
//! language promises.
//!
//! Each model says how often threads are preempted in it at most; waiting is no preemption. That a model can fail is shown by running
//! it again with the orderings taken out: all that release, all that acquire, or all that are sequentially consistent
//! (`EXT4_DIO_WEAKEN` is how it is told to the process).
#![cfg(test)]

/// As `kernel-shim`'s.
macro_rules! bug_on {
    ($cond:expr, $($arg:tt)+) => {
        if $cond {
            panic!("BUG: {}", format_args!($($arg)+));
        }
    };
}

/// As `kernel-shim`'s.
macro_rules! pr_err {
    ($($arg:tt)*) => { eprintln!($($arg)*) };
}

pub mod alloc;
pub mod atomic;
pub mod block;
pub mod lockdep;
pub mod sched;
pub mod sync;

#[path = "../../../kernel-shim/src/percpu.rs"]
pub mod percpu;

pub mod error {
    //! As `kernel-shim`'s: there is one error.

    /// What may fail for want of memory.
    pub type Result<T = ()> = std::result::Result<T, crate::alloc::AllocError>;
}

pub mod fs {
    //! As `kernel-shim`'s.
    pub use freeze::FreezeGate;

    use super::freeze;
}

#[path = "../../../kernel-shim/src/fs/freeze.rs"]
pub mod freeze;
