// SPDX-License-Identifier: GPL-2.0-only
//! What kernel-shim's `bare` back end asks of us.

use core::{alloc::Layout, fmt};

use kernel_shim::{
    error::Result,
    sched::{Task, bare::Machine},
};

use crate::{
    arch::{clock, percpu, rtc},
    console, heap, sched, thread,
    thread::Thread,
};

/// This machine.
pub(crate) struct Guest;

static GUEST: Guest = Guest;

/// Makes it kernel-shim's.
pub(crate) fn register() {
    kernel_shim::sched::bare::register(&GUEST);
}

impl Machine for Guest {
    fn park(&self, deadline_ns: Option<u64>) {
        sched::park(deadline_ns);
    }

    fn unpark(&self, task: &'static Task) {
        sched::unpark(Thread::of(task));
    }

    fn spawn(&self, name: &'static str, cpu: Option<u32>, entry: fn(*mut ()), arg: *mut ()) -> Result<&'static Task> {
        thread::spawn(name, cpu, entry, arg)
    }

    fn yield_now(&self) {
        sched::yield_now();
    }

    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn real_ns(&self) -> u64 {
        rtc::boot_time_ns() + clock::now_ns()
    }

    fn real_ns_at(&self, tsc: u64) -> u64 {
        rtc::boot_time_ns() + clock::ns_at(tsc)
    }

    fn nr_cpus(&self) -> u32 {
        percpu::nr_cpus()
    }

    fn console(&self, _level: u8, args: fmt::Arguments<'_>) {
        console::log(args);
    }

    unsafe fn kmalloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { heap::allocate(layout) }
    }

    unsafe fn kfree(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { heap::free(memory, layout) }
    }
}
