// SPDX-License-Identifier: GPL-2.0-only
//! No back end: the crate compiles, for its documentation and for checks, and cannot run.

use core::alloc::Layout;
use core::fmt;

use super::Task;
use crate::error::Result;

/// Whether interrupts were on: there are none.
#[derive(Clone, Copy, Debug)]
pub struct IrqFlags(());

#[cold]
fn no_back_end() -> ! {
    panic!("no back end: kernel-shim needs the feature `host` or `bare`")
}

/// The running task.
pub fn current() -> &'static Task {
    no_back_end()
}

pub(super) fn park(_deadline_ns: Option<u64>) {
    no_back_end()
}

/// Wakes a task.
pub fn unpark(_task: &'static Task) {
    no_back_end()
}

/// Lets others run.
pub fn yield_now() {
    no_back_end()
}

/// Nanoseconds since some moment.
pub fn now_ns() -> u64 {
    no_back_end()
}

/// Nanoseconds since 1970.
pub fn real_ns() -> u64 {
    no_back_end()
}

/// The number of the current tick of the coarse clock, from 1 on.
pub(crate) fn coarse_tick() -> u64 {
    (real_ns() >> crate::time::TICK_SHIFT) + 1
}

/// When that tick began, in nanoseconds since 1970.
pub(crate) fn coarse_real_ns() -> u64 {
    (coarse_tick() - 1) << crate::time::TICK_SHIFT
}

/// How many CPUs there are.
pub fn nr_cpus() -> u32 {
    no_back_end()
}

/// The CPU that runs this.
pub fn cpu_id() -> u32 {
    no_back_end()
}

/// Whether this runs in an interrupt handler.
pub fn in_interrupt() -> bool {
    false
}

/// Turns interrupts off on this CPU, and says whether they were on.
#[inline]
pub fn irq_save() -> IrqFlags {
    IrqFlags(())
}

/// Turns interrupts on again if they were on before.
#[inline]
pub fn irq_restore(_flags: IrqFlags) {}

pub(crate) fn spin_relax() {
    core::hint::spin_loop();
}

pub(crate) fn spin_acquired() {}

pub(crate) fn spin_released() {}

pub(super) fn assert_may_sleep() {}

pub(super) fn spawn(
    _name: &'static str,
    _cpu: Option<u32>,
    _entry: fn(*mut ()),
    _arg: *mut (),
) -> Result<&'static Task> {
    no_back_end()
}

pub(crate) fn console(_level: u8, _args: fmt::Arguments<'_>) {
    no_back_end()
}

/// # Safety
///
/// As `GlobalAlloc::alloc`.
pub(crate) unsafe fn kmalloc(_layout: Layout) -> *mut u8 {
    no_back_end()
}

/// # Safety
///
/// As `GlobalAlloc::dealloc`.
pub(crate) unsafe fn kfree(_memory: *mut u8, _layout: Layout) {
    no_back_end()
}
