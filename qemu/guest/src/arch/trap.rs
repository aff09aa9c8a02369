// SPDX-License-Identifier: GPL-2.0-only
//! Interrupts and exceptions, from the stubs to whoever handles them.
//!
//! Interrupts never switch threads: they make threads runnable and return. They run with
//! interrupts off, on a stack of their CPU's. Exceptions have no cure here; all of them end the guest.

use core::arch::global_asm;

use super::{
    apic,
    percpu::{MAX_DISKS, PerCpu, offsets},
};
use crate::{crash, sched, virtio};

global_asm!(
    include_str!("stubs.s"),
    IDLE = const offsets::IDLE,
    IDLE_SINCE = const offsets::IDLE_SINCE,
    IDLE_TICKS = const offsets::IDLE_TICKS,
    WAKES = const offsets::WAKES,
    IRQ_DEPTH = const offsets::IRQ_DEPTH,
);

unsafe extern "C" {
    static trap_stubs: u8;
    static irq_stubs: u8;
}

/// Vectors above the exceptions.
pub(crate) mod vector {
    /// The local timer.
    pub(crate) const TIMER: u32 = 0x30;
    /// Another CPU made a thread of this CPU runnable.
    pub(crate) const WAKE: u32 = 0x31;
    /// Disk n interrupts at DISK + n; which queue it is depends on the CPU.
    pub(crate) const DISK: u32 = 0x40;
    /// What the local APIC sends when it has nothing to say.
    pub(crate) const SPURIOUS: u32 = 0xff;
}

/// Address of the stub of an exception vector.
pub(crate) fn trap_stub(v: u64) -> u64 {
    (&raw const trap_stubs).addr() as u64 + 16 * v
}

/// Address of the stub of a vector from 32 on.
pub(crate) fn irq_stub(v: u64) -> u64 {
    (&raw const irq_stubs).addr() as u64 + 16 * (v - 32)
}

/// Registers at an exception, as trap_common pushes them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rbp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rbx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// Vectors from 32 on. Interrupts are off; `irq_depth` is 1.
#[unsafe(no_mangle)]
extern "C" fn rust_irq(v: u32) {
    let disk = v.wrapping_sub(vector::DISK);
    if disk < MAX_DISKS as u32 {
        // First, so that a completion that arrives from here on interrupts again.
        apic::end_of_interrupt();
        virtio::queue::interrupt(PerCpu::this(), disk as usize);
    } else {
        match v {
            vector::TIMER => {
                apic::end_of_interrupt();
                sched::timer_interrupt();
            }
            vector::WAKE => apic::end_of_interrupt(),
            vector::SPURIOUS => {}
            _ => panic!("interrupt at vector {v:#x}, which nobody uses"),
        }
    }
}

/// Exceptions and NMI.
#[unsafe(no_mangle)]
extern "C" fn rust_trap(frame: &Frame) -> ! {
    match frame.vector {
        2 => crash::nmi(frame),
        _ => crash::fault(frame),
    }
}
