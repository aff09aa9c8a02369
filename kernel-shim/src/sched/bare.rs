// SPDX-License-Identifier: GPL-2.0-only
//! The back end of a machine without an operating system: x86-64 with its own scheduler, memory,
//! clock and console behind [`Machine`], which registers itself at boot.
//!
//! What is called often is not called through it: the running task, the CPU's number and the depth
//! of interrupts are read from the CPU's own block at `gs:[0]` ([`PerCpuHead`]), and interrupts are
//! turned off and on right here.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the feature `bare` is for x86-64");

use core::alloc::Layout;
use core::arch::asm;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;

use super::Task;
use crate::error::Result;

/// What a guest kernel provides.
///
/// Threads are cooperative and stay on the CPU that they were made for. A [`Task`] is never freed.
pub trait Machine: Sync {
    /// Sleeps until the current task's token is set, and takes it; until [`now_ns`](Self::now_ns)
    /// reaches `deadline_ns` at most. May return for no reason. Interrupts are on at entry and exit.
    fn park(&self, deadline_ns: Option<u64>);
    /// Sets a task's token, and wakes it if it sleeps. Any context, any CPU.
    fn unpark(&self, task: &'static Task);
    /// A new thread that calls `entry(arg)`, on `cpu` or on one that the scheduler picks.
    fn spawn(&self, name: &'static str, cpu: Option<u32>, entry: fn(*mut ()), arg: *mut ()) -> Result<&'static Task>;
    /// Lets the other runnable threads of this CPU run.
    fn yield_now(&self);
    /// Nanoseconds, never backwards.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since 1970.
    fn real_ns(&self) -> u64;
    /// Nanoseconds since 1970 when the time-stamp counter was `tsc`, which is not long ago.
    fn real_ns_at(&self, tsc: u64) -> u64;
    /// How many CPUs are up.
    fn nr_cpus(&self) -> u32;
    /// Shows one line of text, `level` as in [`crate::printk`]. Any context.
    fn console(&self, level: u8, args: fmt::Arguments<'_>);
    /// Memory for `layout`, null if there is none. Any context.
    ///
    /// # Safety
    ///
    /// The layout's size is not 0.
    unsafe fn kmalloc(&self, layout: Layout) -> *mut u8;
    /// Frees memory. Any context.
    ///
    /// # Safety
    ///
    /// `memory` comes from [`kmalloc`](Self::kmalloc) with this layout and is not used any more.
    unsafe fn kfree(&self, memory: *mut u8, layout: Layout);
}

/// How the block starts at which each CPU's GS base points.
#[repr(C)]
pub struct PerCpuHead {
    /// The task that this CPU runs. Never null once locks are used.
    pub current: *const Task,
    /// The CPU's number, from 0.
    pub cpu: u32,
    /// How many interrupt handlers deep the CPU is.
    pub irq_depth: u32,
}

static_assertions::const_assert_eq!(offset_of!(PerCpuHead, current), 0);
static_assertions::const_assert_eq!(offset_of!(PerCpuHead, cpu), 8);
static_assertions::const_assert_eq!(offset_of!(PerCpuHead, irq_depth), 12);

/// The interrupt flag in RFLAGS.
const RFLAGS_IF: usize = 1 << 9;

static MACHINE: Once<&'static dyn Machine> = Once::new();

/// Makes `machine` the back end. Once, before anything is allocated, logged or waited for.
pub fn register(machine: &'static dyn Machine) {
    MACHINE.call_once(|| machine);
}

#[inline(always)]
fn machine() -> &'static dyn Machine {
    match MACHINE.get() {
        Some(machine) => *machine,
        None => unregistered(),
    }
}

#[cold]
fn unregistered() -> ! {
    panic!("no machine is registered")
}

/// The running task.
#[inline(always)]
pub fn current() -> &'static Task {
    let task: *const Task;
    // SAFETY: The GS base of every CPU points at a PerCpuHead. A thread sees itself there whenever
    // it looks, so the compiler may keep the value between two writes to memory.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) task, options(pure, readonly, nostack, preserves_flags));
        &*task
    }
}

/// The CPU that runs this; threads stay on theirs.
#[inline(always)]
pub fn cpu_id() -> u32 {
    let cpu: u32;
    // SAFETY: As in `current`.
    unsafe { asm!("mov {:e}, gs:[8]", out(reg) cpu, options(pure, readonly, nostack, preserves_flags)) };
    cpu
}

/// Whether this runs in an interrupt handler.
#[inline(always)]
pub fn in_interrupt() -> bool {
    let depth: u32;
    // SAFETY: As in `current`; within one function call the depth does not change.
    unsafe { asm!("mov {:e}, gs:[12]", out(reg) depth, options(pure, readonly, nostack, preserves_flags)) };
    depth != 0
}

/// Whether interrupts were on.
#[derive(Clone, Copy, Debug)]
pub struct IrqFlags(usize);

#[inline(always)]
fn rflags() -> usize {
    let flags: usize;
    // SAFETY: Reads a register by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags
}

/// Turns interrupts off on this CPU, and says whether they were on.
#[inline(always)]
pub fn irq_save() -> IrqFlags {
    let flags: usize;
    // SAFETY: The guest runs in ring 0. Not `nomem`: what the caller protects stays behind it.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags, options(preserves_flags)) };
    IrqFlags(flags)
}

/// Turns interrupts on again if they were on before.
#[inline(always)]
pub fn irq_restore(flags: IrqFlags) {
    if flags.0 & RFLAGS_IF != 0 {
        // SAFETY: Interrupts were on in this thread before. Not `nomem`, as in `irq_save`.
        unsafe { asm!("sti", options(nostack, preserves_flags)) };
    }
}

#[inline(always)]
pub(crate) fn spin_relax() {
    core::hint::spin_loop();
}

// Interrupts are off under a spinlock, which is how `assert_may_sleep` knows of it.
#[inline(always)]
pub(crate) fn spin_acquired() {}

#[inline(always)]
pub(crate) fn spin_released() {}

#[track_caller]
pub(super) fn assert_may_sleep() {
    bug_on!(in_interrupt(), "sleeping in interrupt context");
    bug_on!(rflags() & RFLAGS_IF == 0, "sleeping with interrupts off");
}

#[inline]
pub(super) fn park(deadline_ns: Option<u64>) {
    machine().park(deadline_ns);
}

/// Wakes a task, or makes its next sleep return at once. Any context.
#[inline]
pub fn unpark(task: &'static Task) {
    machine().unpark(task);
}

/// Lets the other runnable threads of this CPU run.
pub fn yield_now() {
    machine().yield_now();
}

/// Nanoseconds since some moment, never backwards.
#[inline]
pub fn now_ns() -> u64 {
    machine().now_ns()
}

/// Nanoseconds since 1970.
#[inline]
pub fn real_ns() -> u64 {
    machine().real_ns()
}

/// Bits of the time-stamp counter that make up a tick of the coarse clock.
static COARSE_SHIFT: AtomicU32 = AtomicU32::new(22);

/// Tells how fast the time-stamp counter runs, which makes the coarse clock right: its ticks are as many counts as a power
/// of two has that does not last longer than a tick may.
pub fn set_tsc_hz(hz: u64) {
    let counts = (hz / (1_000_000_000 >> crate::time::TICK_SHIFT)).max(1);
    COARSE_SHIFT.store(counts.ilog2(), Ordering::Relaxed);
}

#[inline(always)]
fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The number of the current tick of the coarse clock, from 1 on.
#[inline(always)]
pub(crate) fn coarse_tick() -> u64 {
    (rdtsc() >> COARSE_SHIFT.load(Ordering::Relaxed)) + 1
}

/// When that tick began, in nanoseconds since 1970.
pub(crate) fn coarse_real_ns() -> u64 {
    let shift = COARSE_SHIFT.load(Ordering::Relaxed);
    machine().real_ns_at(rdtsc() >> shift << shift)
}

/// How many CPUs there are.
#[inline]
pub fn nr_cpus() -> u32 {
    machine().nr_cpus()
}

pub(super) fn spawn(name: &'static str, cpu: Option<u32>, entry: fn(*mut ()), arg: *mut ()) -> Result<&'static Task> {
    machine().spawn(name, cpu, entry, arg)
}

pub(crate) fn console(level: u8, args: fmt::Arguments<'_>) {
    machine().console(level, args);
}

/// # Safety
///
/// As [`Machine::kmalloc`].
pub(crate) unsafe fn kmalloc(layout: Layout) -> *mut u8 {
    // SAFETY: The caller's promise.
    unsafe { machine().kmalloc(layout) }
}

/// # Safety
///
/// As [`Machine::kfree`].
pub(crate) unsafe fn kfree(memory: *mut u8, layout: Layout) {
    // SAFETY: The caller's promise.
    unsafe { machine().kfree(memory, layout) };
}
