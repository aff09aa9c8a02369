// SPDX-License-Identifier: GPL-2.0-only
//! The kernel that runs ext4-dio in QEMU: boots by PVH on q35, starts all CPUs, drives virtio-blk, schedules
//! kernel threads, and does what the runner's [`Plan`] asks for. It is what
//! kernel-shim's `bare` back end stands on.
//!
//! | module | is |
//! |---|---|
//! | [`arch`] | boot, page tables, interrupts, APIC, clock, ACPI, the other CPUs |
//! | [`heap`], [`thread`], [`sched`] | memory, threads, who runs when |
//! | [`machine`] | all of that as kernel-shim wants it |
//! | [`virtio`] | disks |
//! | [`console`], [`crash`] | log, events, exit; panics, exceptions, NMI |
//! | [`selftest`] | what the kernel command line `selftest` runs instead of a plan |
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod console;
mod crash;
mod heap;
mod machine;
mod sched;
mod selftest;
mod thread;
mod virtio;

use arch::{clock, firmware::Firmware, paging, percpu, pvh::BootInfo, rtc, smp, tables};
use ext4_dio_protocol::{Event, ExitCode, Plan};
use kernel_shim::pr_info;
use spin::Once;
use x86_64::{instructions::port::PortWriteOnly, structures::idt::InterruptDescriptorTable};

static IDT: Once<&'static InterruptDescriptorTable> = Once::new();

/// The interrupt descriptor table of all CPUs.
fn idt() -> &'static InterruptDescriptorTable {
    IDT.call_once(tables::make_idt)
}

/// Where boot.s arrives in long mode, on CPU 0, as thread `main`.
#[unsafe(no_mangle)]
extern "C" fn rust_start() -> ! {
    percpu::PerCpu::install(0, thread::Thread::boot());
    percpu::set_nr_cpus(1);
    machine::register();
    console::init();
    let boot = BootInfo::read();
    heap::init(&boot);
    paging::protect_image();
    mask_legacy_interrupts();
    smp::init_this_cpu(idt());
    let firmware = Firmware::read(boot.rsdp);
    clock::calibrate(&firmware);
    rtc::init();
    clock::init_alarm();
    smp::start_others(&firmware);
    x86_64::instructions::interrupts::enable();
    pr_info!(
        "{} CPUs, {} MiB, {} MHz, command line '{}'",
        percpu::nr_cpus(),
        heap::size() >> 20,
        clock::tsc_hz() / 1_000_000,
        boot.command_line(),
    );
    if firmware.cpus_left_out > 0 {
        pr_info!("{} more CPUs are left asleep", firmware.cpus_left_out);
    }
    virtio::init(&firmware);
    let code = match boot.command_line().split_ascii_whitespace().find(|w| w.starts_with("selftest")) {
        Some(which) => selftest::run(which),
        None => run_plan(boot.module()),
    };
    console::exit(code)
}

/// The two interrupt controllers of old would interrupt at vectors that are exceptions now.
fn mask_legacy_interrupts() {
    for port in [0x21, 0xa1] {
        // SAFETY: the controllers' mask registers.
        unsafe { PortWriteOnly::<u8>::new(port).write(0xff) };
    }
}

fn fail(message: alloc::string::String) -> ExitCode {
    console::emit(&Event::Failed { step: None, message });
    ExitCode::Failed
}

fn run_plan(module: &[u8]) -> ExitCode {
    let plan: Plan = match serde_json::from_slice(module) {
        Ok(plan) => plan,
        Err(e) => return fail(alloc::format!("no plan in the boot module: {e}")),
    };
    console::emit(&Event::Boot { cpus: percpu::nr_cpus(), memory: heap::size(), tsc_hz: clock::tsc_hz() });
    for (disk, d) in (0..).zip(virtio::disks()) {
        console::emit(&Event::Disk { disk, sectors: d.bdev.nr_sectors(), queues: d.queues, depth: d.depth });
    }
    let disks: alloc::vec::Vec<_> = virtio::disks().iter().map(|d| d.bdev.clone()).collect();
    let ran = ext4_dio_jobs::run(&plan, &disks, &Runner { counts: plan.count_instructions });
    let [(main, main_depth), (name, depth)] = thread::Thread::deepest();
    pr_info!("stacks: {main} {main_depth}, {name} {depth} of {} bytes", thread::STACK_SIZE);
    match ran {
        Ok(()) => {
            console::emit(&Event::Done);
            ExitCode::Success
        }
        Err(failure) => {
            console::emit(&Event::Failed { step: failure.step, message: failure.message });
            ExitCode::Failed
        }
    }
}

/// The runner, as the jobs see it.
struct Runner {
    /// The time-stamp counter counts instructions.
    counts: bool,
}

impl ext4_dio_jobs::Machine for Runner {
    fn emit(&self, event: &Event) {
        console::emit(event);
    }

    fn bulk(&self, bytes: &[u8]) {
        console::debugcon_write(bytes);
    }

    fn instructions(&self) -> Option<u64> {
        // Asked for where a step begins and where it ends. A plugin of QEMU (qemu/counter) tells there what it has counted.
        // SAFETY: exchanges a register with itself.
        unsafe { core::arch::asm!("xchg r11, r11", options(nomem, nostack, preserves_flags)) };
        self.counts.then(percpu::busy_ticks)
    }
}
