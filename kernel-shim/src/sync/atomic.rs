// SPDX-License-Identifier: GPL-2.0-only
//! What the primitives are made of. Their models, in `tests/loom`, have a module of their own in this one's place, which shows each access
//! to the checker.

pub(crate) use core::cell::{Cell, UnsafeCell};
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

/// How many copies there are of what each CPU has its own of. A power of two.
pub const COPIES: usize = 8;

pub(crate) use spin::mutex::SpinMutex;
pub(crate) use spin::relax::RelaxStrategy;
