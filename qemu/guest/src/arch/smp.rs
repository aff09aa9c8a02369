// SPDX-License-Identifier: GPL-2.0-only
//! Starting the other CPUs: INIT, start-up IPI, real mode at [`TRAMPOLINE`], long mode, rust_ap_start.

use core::sync::atomic::{AtomicU64, Ordering::*};

use x86_64::structures::idt::InterruptDescriptorTable;

use super::{
    apic, clock,
    firmware::Firmware,
    percpu::{self, PerCpu},
    tables,
};
use crate::{sched, thread::Thread};

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    /// Top of the stack of the CPU being started.
    static ap_stack: AtomicU64;
    /// Address of the thread that it starts with.
    static ap_arg: AtomicU64;
}

/// Where the real-mode part of boot.s is copied to; firmware is done with that memory.
const TRAMPOLINE: u32 = 0x8000;
/// How long a CPU may take to answer. An overcommitted host may let it wait.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Starts all CPUs but this one, one by one. A CPU that does not answer ends the guest.
pub(crate) fn start_others(firmware: &Firmware) {
    let me = apic::id();
    // SAFETY: conventional memory that nobody uses: the heap starts above 1 MiB.
    unsafe {
        let len = (&raw const ap_trampoline_end).addr() - (&raw const ap_trampoline).addr();
        core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE as usize)
            .copy_from_nonoverlapping(&raw const ap_trampoline, len);
    }
    let others = || firmware.apic_ids().iter().copied().filter(|id| *id != me);
    others().for_each(apic::send_init);
    clock::delay_us(10_000);
    for (apic_id, cpu) in others().zip(1..) {
        let thread = Thread::for_boot(cpu).expect("no memory for a CPU's first thread");
        // SAFETY: only this loop writes these, and only the CPU being started reads them, after
        // the start-up IPI.
        unsafe {
            ap_stack.store(thread.stack().end, SeqCst);
            ap_arg.store(core::ptr::from_ref(thread).expose_provenance() as u64, SeqCst);
        }
        apic::send_startup(apic_id, TRAMPOLINE);
        let asked = clock::now_ns();
        let mut asked_again = false;
        while percpu::nr_cpus() <= cpu {
            let waited = clock::now_ns() - asked;
            if waited > 1_000_000 && !asked_again {
                // By the book a CPU may miss the first one.
                apic::send_startup(apic_id, TRAMPOLINE);
                asked_again = true;
            }
            assert!(waited < PATIENCE_NS, "CPU with APIC id {apic_id} does not start");
            core::hint::spin_loop();
        }
    }
}

/// What every CPU has to do for itself, before anything else.
pub(crate) fn init_this_cpu(idt: &'static InterruptDescriptorTable) {
    let this = PerCpu::this();
    tables::load(idt);
    apic::enable(this.cpu.get());
    this.apic_id.store(apic::id(), Relaxed);
}

/// Where a started CPU arrives, on the stack of its first thread, which has nothing to do.
#[unsafe(no_mangle)]
extern "C" fn rust_ap_start(thread: &'static Thread) -> ! {
    let cpu = thread.cpu();
    PerCpu::install(cpu, thread);
    init_this_cpu(crate::idt());
    clock::init_alarm();
    percpu::set_nr_cpus(cpu + 1);
    x86_64::instructions::interrupts::enable();
    loop {
        sched::park(None);
    }
}
