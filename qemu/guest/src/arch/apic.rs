// SPDX-License-Identifier: GPL-2.0-only
//! The local APIC, in xAPIC (memory-mapped) mode, which QEMU's firmware leaves it in.
//!
//! Not the `x2apic` crate (0.5.1), for three reasons: its `enable` writes 0 to LINT1 and leaves no way back,
//! and LINT1 is where QEMU's `inject-nmi` comes in; in xAPIC mode its `send_*_ipi` put the destination at
//! bit 32 instead of 56, so every IPI goes to CPU 0; and its handle is neither `Sync` nor usable from an
//! interrupt handler without `&mut`.

use x86_64::{instructions::interrupts::without_interrupts, registers::model_specific::Msr};

use super::trap::vector;

const BASE: usize = 0xfee0_0000;
const IA32_APIC_BASE: u32 = 0x1b;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Register offsets.
mod reg {
    pub(super) const ID: usize = 0x20;
    pub(super) const EOI: usize = 0xb0;
    pub(super) const SPURIOUS: usize = 0xf0;
    pub(super) const ICR_LOW: usize = 0x300;
    pub(super) const ICR_HIGH: usize = 0x310;
    pub(super) const LVT_TIMER: usize = 0x320;
    pub(super) const LVT_LINT0: usize = 0x350;
    pub(super) const LVT_LINT1: usize = 0x360;
    pub(super) const LVT_ERROR: usize = 0x370;
    pub(super) const TIMER_INITIAL: usize = 0x380;
    pub(super) const TIMER_CURRENT: usize = 0x390;
    pub(super) const TIMER_DIVIDE: usize = 0x3e0;
}

const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const ICR_NMI: u32 = 4 << 8;
const ICR_INIT: u32 = 5 << 8;
const ICR_STARTUP: u32 = 6 << 8;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_ALL_BUT_SELF: u32 = 3 << 18;
const ICR_PENDING: u32 = 1 << 12;

#[inline(always)]
fn read(offset: usize) -> u32 {
    // SAFETY: the local APIC's page is identity mapped on every CPU and is no Rust object.
    unsafe { core::ptr::with_exposed_provenance::<u32>(BASE + offset).read_volatile() }
}

#[inline(always)]
fn write(offset: usize, value: u32) {
    // SAFETY: as for reading; what the registers do is up to this module.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(BASE + offset).write_volatile(value) }
}

/// Switches on the APIC of the CPU this runs on, timer stopped. NMIs from LINT1 come to CPU 0 alone.
pub(crate) fn enable(cpu: u32) {
    let mut msr = Msr::new(IA32_APIC_BASE);
    // SAFETY: every x86-64 CPU has it. Bit 11 enables the APIC, bit 10 is x2APIC mode.
    unsafe {
        let base = msr.read();
        assert!(base & (1 << 10) == 0, "the firmware chose x2APIC mode");
        msr.write(base | 1 << 11);
    }
    write(reg::SPURIOUS, 1 << 8 | vector::SPURIOUS);
    write(reg::LVT_LINT0, LVT_MASKED);
    write(reg::LVT_LINT1, if cpu == 0 { LVT_NMI } else { LVT_MASKED });
    write(reg::LVT_ERROR, LVT_MASKED);
    write(reg::LVT_TIMER, LVT_MASKED | vector::TIMER);
    write(reg::TIMER_DIVIDE, 0b1011); // by 1
    end_of_interrupt();
}

/// The id that other CPUs' IPIs and MSIs name this CPU by.
pub(crate) fn id() -> u32 {
    read(reg::ID) >> 24
}

/// Ends the interrupt being handled; the next one may be raised.
#[inline(always)]
pub(crate) fn end_of_interrupt() {
    write(reg::EOI, 0);
}

fn send(apic_id: u32, command: u32) {
    // The two halves belong together: an interrupt handler in between could send, too.
    without_interrupts(|| {
        write(reg::ICR_HIGH, apic_id << 24);
        write(reg::ICR_LOW, command);
        while read(reg::ICR_LOW) & ICR_PENDING != 0 {
            core::hint::spin_loop();
        }
    });
}

/// Interrupts another CPU.
pub(crate) fn send_ipi(apic_id: u32, vector: u32) {
    send(apic_id, ICR_ASSERT | vector);
}

/// Resets another CPU into waiting for [`send_startup`].
pub(crate) fn send_init(apic_id: u32) {
    send(apic_id, ICR_ASSERT | ICR_INIT);
}

/// Starts another CPU in real mode at `address`, a page below 1 MiB.
pub(crate) fn send_startup(apic_id: u32, address: u32) {
    send(apic_id, ICR_ASSERT | ICR_STARTUP | address >> 12);
}

/// Stops all other CPUs in their NMI handler.
pub(crate) fn send_nmi_to_others() {
    send(0, ICR_ASSERT | ICR_NMI | ICR_ALL_BUT_SELF);
}

/// Lets no more NMIs in on this CPU from outside.
pub(crate) fn mask_nmi() {
    write(reg::LVT_LINT1, LVT_MASKED);
}

/// Lets the timer count down from its largest value without interrupting, to calibrate it.
pub(crate) fn timer_free_run() {
    write(reg::LVT_TIMER, LVT_MASKED | vector::TIMER);
    write(reg::TIMER_INITIAL, u32::MAX);
}

/// Ticks since [`timer_free_run`].
pub(crate) fn timer_elapsed() -> u32 {
    u32::MAX - read(reg::TIMER_CURRENT)
}

/// Chooses the timer's mode on the CPU this runs on; it is stopped.
pub(crate) fn timer_mode(tsc_deadline: bool) {
    write(reg::TIMER_INITIAL, 0);
    write(reg::LVT_TIMER, vector::TIMER | if tsc_deadline { LVT_TSC_DEADLINE } else { 0 });
}

/// One-shot mode: interrupt after `ticks`; 0 stops it.
pub(crate) fn timer_after(ticks: u32) {
    write(reg::TIMER_INITIAL, ticks);
}

/// TSC-deadline mode: interrupt when the counter reaches `tsc`; 0 stops it.
pub(crate) fn timer_at(tsc: u64) {
    // SAFETY: called only where CPUID offers the deadline timer.
    unsafe { Msr::new(IA32_TSC_DEADLINE).write(tsc) }
}
