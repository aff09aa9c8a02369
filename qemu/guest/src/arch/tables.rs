// SPDX-License-Identifier: GPL-2.0-only
//! GDT and TSS per CPU, one IDT for all. Every vector has an IST stack: precompiled `core` keeps
//! data in the red zone below its stack pointer, which an interrupt on the same stack would
//! overwrite.

use alloc::boxed::Box;

use x86_64::{
    VirtAddr,
    instructions::tables::load_tss,
    registers::segmentation::{CS, DS, ES, SS, Segment},
    structures::{
        gdt::{Descriptor, GlobalDescriptorTable},
        idt::InterruptDescriptorTable,
        tss::TaskStateSegment,
    },
};

use super::{percpu::PerCpu, pvh::Range, trap};

/// IST stacks, as indices into the TSS's table.
mod ist {
    /// Device interrupts, timer, IPIs: they run with interrupts off, so never two at once.
    pub(super) const IRQ: u16 = 0;
    pub(super) const FAULT: u16 = 1;
    pub(super) const NMI: u16 = 2;
    pub(super) const DOUBLE_FAULT: u16 = 3;
    pub(super) const MACHINE_CHECK: u16 = 4;
    pub(super) const COUNT: usize = 5;
}

/// Bytes of an IST stack. Formatting a panic message takes some.
const IST_SIZE: usize = 32768;

#[repr(C, align(4096))]
struct IstStack([u8; IST_SIZE]);

struct Tables {
    stacks: [IstStack; ist::COUNT],
    tss: TaskStateSegment,
    gdt: GlobalDescriptorTable,
}

/// Gives the CPU this runs on its own GDT, TSS and interrupt stacks, and the common IDT.
pub(crate) fn load(idt: &'static InterruptDescriptorTable) {
    let t: &'static mut Tables = Box::leak(zeroed_tables());
    for i in 0..ist::COUNT {
        let top = t.stacks[i].0.as_ptr_range().end;
        t.tss.interrupt_stack_table[i] = VirtAddr::from_ptr(top);
    }
    let all = t.stacks.as_ptr_range();
    PerCpu::this().interrupt_stacks.set(Range { start: all.start.addr() as u64, end: all.end.addr() as u64 });
    let Tables { tss, gdt, .. } = t;
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    // SAFETY: the selectors are of the table just loaded, which is leaked.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
    }
    idt.load();
}

/// Made on the heap: half of it would not fit on a stack.
fn zeroed_tables() -> Box<Tables> {
    let mut t = Box::<Tables>::new_uninit();
    let p = t.as_mut_ptr();
    // SAFETY: the stacks are bytes, for which zeroes do; the other two fields are written whole.
    unsafe {
        (&raw mut (*p).stacks).write_bytes(0, 1);
        (&raw mut (*p).tss).write(TaskStateSegment::new());
        (&raw mut (*p).gdt).write(GlobalDescriptorTable::new());
        t.assume_init()
    }
}

/// Builds the IDT. Called once, with the final GDT or the boot GDT loaded: their code selectors agree.
pub(crate) fn make_idt() -> &'static InterruptDescriptorTable {
    let idt = Box::leak(Box::new(InterruptDescriptorTable::new()));
    let fault = |v: u64| VirtAddr::new(trap::trap_stub(v));
    // SAFETY: the stubs take the frames that these vectors push, with and without error code; the
    // stacks are set up by `load` on each CPU.
    unsafe {
        idt.divide_error.set_handler_addr(fault(0)).set_stack_index(ist::FAULT);
        idt.debug.set_handler_addr(fault(1)).set_stack_index(ist::FAULT);
        idt.non_maskable_interrupt.set_handler_addr(fault(2)).set_stack_index(ist::NMI);
        idt.breakpoint.set_handler_addr(fault(3)).set_stack_index(ist::FAULT);
        idt.overflow.set_handler_addr(fault(4)).set_stack_index(ist::FAULT);
        idt.bound_range_exceeded.set_handler_addr(fault(5)).set_stack_index(ist::FAULT);
        idt.invalid_opcode.set_handler_addr(fault(6)).set_stack_index(ist::FAULT);
        idt.device_not_available.set_handler_addr(fault(7)).set_stack_index(ist::FAULT);
        idt.double_fault.set_handler_addr(fault(8)).set_stack_index(ist::DOUBLE_FAULT);
        idt.invalid_tss.set_handler_addr(fault(10)).set_stack_index(ist::FAULT);
        idt.segment_not_present.set_handler_addr(fault(11)).set_stack_index(ist::FAULT);
        idt.stack_segment_fault.set_handler_addr(fault(12)).set_stack_index(ist::FAULT);
        idt.general_protection_fault.set_handler_addr(fault(13)).set_stack_index(ist::FAULT);
        idt.page_fault.set_handler_addr(fault(14)).set_stack_index(ist::FAULT);
        idt.x87_floating_point.set_handler_addr(fault(16)).set_stack_index(ist::FAULT);
        idt.alignment_check.set_handler_addr(fault(17)).set_stack_index(ist::FAULT);
        idt.machine_check.set_handler_addr(fault(18)).set_stack_index(ist::MACHINE_CHECK);
        idt.simd_floating_point.set_handler_addr(fault(19)).set_stack_index(ist::FAULT);
        for v in 32..=255u8 {
            idt[v].set_handler_addr(VirtAddr::new(trap::irq_stub(u64::from(v)))).set_stack_index(ist::IRQ);
        }
    }
    idt
}
