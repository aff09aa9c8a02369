// SPDX-License-Identifier: GPL-2.0-only
//! The scheduler: cooperative, a run queue per CPU, threads pinned to their CPU.
//!
//! A thread's token ([`state`]) says whether it sleeps. Whoever turns PARKED into NOTIFIED makes the
//! thread runnable: it goes onto the lock-free stack `woken` of its CPU, which only that CPU empties
//! ([`next_runnable`]), and if the CPU is in `hlt` it gets an IPI. There is no idle thread: a thread that
//! has to wait, and finds nobody to run, sleeps in `hlt` on its own stack. At queue depth 1 the
//! thread that waits for the disk is then resumed without any switch.

use core::sync::atomic::Ordering::*;

use kernel_shim::sched::{irq_restore, irq_save};
use x86_64::instructions::interrupts;

use crate::{
    arch::{
        apic, clock,
        percpu::{self, PerCpu},
        trap::vector,
    },
    thread::Thread,
    virtio,
};

/// Values of a task's token.
pub(crate) mod state {
    /// Runs, or is runnable after a yield. kernel-shim makes tasks so.
    pub(crate) const RUNNING: u32 = 0;
    /// Has been unparked, and has not yet taken the token.
    pub(crate) const NOTIFIED: u32 = 1;
    /// Sleeps: in no queue but perhaps the timers.
    pub(crate) const PARKED: u32 = 2;
}

unsafe extern "C" {
    /// Saves the callee-saved registers on this stack and its pointer in `save`, then goes on where `next` was saved.
    fn switch_stacks(save: *mut u64, next: u64);
}

/// Puts a thread into the hands of its CPU. Any context, any CPU; the thread must be in no queue.
#[inline]
fn make_runnable(thread: &'static Thread) {
    let cpu = percpu::cpu(thread.cpu());
    let this = core::ptr::from_ref(thread).cast_mut();
    let mut head = cpu.woken.load(Relaxed);
    loop {
        thread.next.store(head, Relaxed);
        match cpu.woken.compare_exchange_weak(head, this, SeqCst, Relaxed) {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    // Who found the list empty tells the CPU; see PerCpu::wait_for_interrupt for the order.
    if head.is_null() && cpu.idle.load(SeqCst) != 0 && !core::ptr::eq(cpu, PerCpu::this()) {
        apic::send_ipi(cpu.apic_id.load(Relaxed), vector::WAKE);
    }
}

/// Takes the thread whose turn it is. Interrupts are off.
///
/// Threads that were woken join the queue only when it has run dry, all at once and in the order in which they
/// were woken: so nobody who yields over and over is served twice before somebody else is served once.
#[inline]
fn next_runnable(cpu: &PerCpu) -> Option<&'static Thread> {
    let mut first = cpu.run_queue.get();
    if first.is_null() {
        virtio::queue::poll_quiet(cpu);
        if cpu.woken.load(Relaxed).is_null() {
            return None;
        }
        let mut latest = cpu.woken.swap(core::ptr::null_mut(), Acquire);
        // SAFETY: as below. One alone is the usual case; the run queue stays empty then.
        if let Some(only) = unsafe { latest.as_ref() }
            && only.next.load(Relaxed).is_null()
        {
            return Some(only);
        }
        // SAFETY: the list holds threads, which are never freed; now it is ours.
        while let Some(thread) = unsafe { latest.as_ref() } {
            latest = thread.next.load(Relaxed);
            thread.next.store(first.cast_mut(), Relaxed);
            first = thread;
        }
    }
    // SAFETY: as above; not null.
    let thread = unsafe { &*first };
    cpu.run_queue.set(thread.next.load(Relaxed));
    Some(thread)
}

/// Lets others run until somebody makes `me`, the current thread, runnable. Interrupts are off.
#[inline]
fn schedule(me: &'static Thread) {
    let cpu = PerCpu::this();
    loop {
        if let Some(next) = next_runnable(cpu) {
            if !core::ptr::eq(next, me) {
                cpu.current.store(core::ptr::from_ref(next).cast_mut(), Relaxed);
                // SAFETY: `next` does not run, so its registers are where it left them, on its own
                // stack; ours are saved likewise. Both threads belong to this CPU, and
                // interrupts are off, so nobody resumes either of them meanwhile.
                unsafe { switch_stacks(me.stack_pointer.get(), *next.stack_pointer.get()) };
            }
            return;
        }
        if !virtio::queue::rearm(cpu) {
            cpu.wait_for_interrupt();
        }
    }
}

/// Sleeps until the current thread's token is set, and takes it; or until `deadline_ns`. May return early.
#[inline]
pub(crate) fn park(deadline_ns: Option<u64>) {
    let me = PerCpu::current();
    let token = me.task.token();
    interrupts::disable();
    if token.compare_exchange(state::RUNNING, state::PARKED, SeqCst, SeqCst).is_ok() {
        match deadline_ns {
            None => schedule(me),
            Some(deadline) => schedule_until(me, deadline),
        }
    }
    // An exchange and not a store: what the waker wrote before it set the token is to be seen by
    // what the caller reads next, even if the token is being set a second time right now.
    token.swap(state::RUNNING, SeqCst);
    interrupts::enable();
}

#[cold]
fn schedule_until(me: &'static Thread, deadline_ns: u64) {
    let cpu = PerCpu::this();
    me.deadline.set(deadline_ns);
    cpu.timers.borrow_mut().insert(me);
    if deadline_ns < cpu.timer_armed.get() {
        cpu.timer_armed.set(deadline_ns);
        clock::set_alarm(deadline_ns);
    }
    schedule(me);
    if me.has_timer() {
        let mut timers = cpu.timers.borrow_mut();
        // SAFETY: it is linked, and only ever into its own CPU's timers.
        unsafe { timers.cursor_mut_from_ptr(me) }.remove();
    }
}

/// The local timer has gone off. Interrupts are off.
pub(crate) fn timer_interrupt() {
    let cpu = PerCpu::this();
    cpu.timer_armed.set(u64::MAX);
    let mut timers = cpu.timers.borrow_mut();
    loop {
        let mut first = timers.front_mut();
        let Some(deadline) = first.get().map(|t| t.deadline.get()) else { return };
        if deadline > clock::now_ns() {
            cpu.timer_armed.set(deadline);
            return clock::set_alarm(deadline);
        }
        if let Some(thread) = first.remove() {
            unpark(thread);
        }
    }
}

/// Sets a thread's token and, if it sleeps, makes it runnable. Any context, any CPU.
#[inline]
pub(crate) fn unpark(thread: &'static Thread) {
    if thread.task.token().swap(state::NOTIFIED, SeqCst) == state::PARKED {
        make_runnable(thread);
    }
}

/// Lets all other runnable threads of this CPU run first.
pub(crate) fn yield_now() {
    let flags = irq_save();
    let me = PerCpu::current();
    make_runnable(me);
    schedule(me);
    irq_restore(flags);
}
