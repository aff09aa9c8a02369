// SPDX-License-Identifier: GPL-2.0-only
//! lockdep without feature `lockdep`: nothing.

use super::{Kind, Mode};

/// What a lock has of lockdep.
pub(crate) struct Dep;

/// Proof of [`Dep::check`].
#[derive(Clone, Copy)]
pub(crate) struct Checked;

impl Dep {
    #[inline(always)]
    pub(crate) const fn new(_kind: Kind, _name: Option<&'static str>, _ty: fn() -> &'static str) -> Dep {
        Dep
    }

    #[inline(always)]
    pub(crate) fn check(&self, _mode: Mode) -> Checked {
        Checked
    }

    #[inline(always)]
    pub(crate) fn hold(&self, _mode: Mode, _checked: Checked) {}

    #[inline(always)]
    pub(crate) fn hold_tried(&self, _mode: Mode) {}

    #[inline(always)]
    pub(crate) fn held(&self) -> HeldDep<'_> {
        HeldDep(core::marker::PhantomData)
    }

    #[inline(always)]
    pub(crate) fn might_wait(&self) {}

    #[inline(always)]
    pub(crate) fn downgrade(&self) {}

    #[inline(always)]
    pub(crate) fn release(&self) {}
}

/// A [`Dep`] is held while this lives.
#[must_use = "held only as long as it lives"]
pub(crate) struct HeldDep<'a>(core::marker::PhantomData<&'a Dep>);

/// Something that is waited for like a lock.
pub struct LockMap;

impl LockMap {
    /// One of that name.
    pub const fn new(_name: &'static str) -> LockMap {
        LockMap
    }

    /// This task can end the wait of others, until the guard goes.
    #[inline(always)]
    pub fn hold(&'static self) -> HeldMap {
        HeldMap
    }

    /// This task may be about to wait for those who hold it.
    #[inline(always)]
    pub fn might_wait(&'static self) {}
}

/// A [`LockMap`] is held while this lives.
#[must_use = "held only as long as it lives"]
#[derive(Debug)]
pub struct HeldMap;

/// A system call; see [`syscall`].
#[must_use = "the call is over when this goes"]
#[derive(Debug)]
pub struct Syscall;

/// A system call begins: when the guard goes, the task must hold what it holds now.
#[inline(always)]
pub fn syscall(_name: &'static str) -> Syscall {
    Syscall
}

/// The next lock that this task takes is of class `_n` of its name: for several of one kind in an order that is known.
#[inline(always)]
pub fn subclass(_n: u8) {}

/// Locks of these names are taken in this order.
#[inline(always)]
pub fn lock_order(_names: &'static [&'static str]) {}

/// Calls `f` with the names of two locks of which the second was taken under the first, for all such.
pub fn for_each_order(_f: &mut dyn FnMut((&'static str, u8), (&'static str, u8))) {}

#[inline(always)]
pub(crate) fn might_sleep() {}

#[cfg(feature = "host")]
#[inline(always)]
pub(crate) fn start_of(_task: &crate::sched::Task) {}

/// Calls `f`.
#[cfg(any(feature = "fault-injection", feature = "sim"))]
#[inline(always)]
pub(crate) fn aside(f: impl FnOnce()) {
    f();
}

#[inline(always)]
pub(crate) fn end_of_thread() {}
