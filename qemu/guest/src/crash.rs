// SPDX-License-Identifier: GPL-2.0-only
//! The end, if it is not the good one: panics, exceptions, and the NMI that the runner sends when the guest seems to hang.
//!
//! The first CPU that gets here owns the console: it stops the others with an NMI, waits until each
//! has left its registers in its [`Snapshot`], tells everything and exits. A CPU that comes
//! second waits for that. Whatever goes wrong while telling ends the guest at once.

use core::{
    arch::asm,
    cell::UnsafeCell,
    fmt,
    mem::MaybeUninit,
    panic::PanicInfo,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::*},
};

use ext4_dio_protocol::ExitCode;
use x86_64::{
    instructions::{hlt, interrupts},
    registers::control::{Cr2, Cr3},
};

use crate::{
    arch::{
        apic, clock, paging,
        percpu::{self, PerCpu},
        trap::Frame,
    },
    console::{Serial, exit, log_to},
    sched::state,
    thread::Thread,
};

/// Registers of a CPU that was stopped.
pub(crate) struct Snapshot {
    frame: UnsafeCell<MaybeUninit<Frame>>,
    taken: AtomicBool,
}

// SAFETY: the CPU itself writes the frame, then sets `taken`; readers look at `taken` first.
unsafe impl Sync for Snapshot {}

impl Snapshot {
    pub(crate) const fn new() -> Self {
        Self { frame: UnsafeCell::new(MaybeUninit::uninit()), taken: AtomicBool::new(false) }
    }

    /// To be called by the CPU that this is the snapshot of.
    fn take(&self, frame: &Frame) {
        if !self.taken.load(Relaxed) {
            // SAFETY: nobody reads before `taken` is set, and only this CPU writes.
            unsafe { (*self.frame.get()).write(*frame) };
            self.taken.store(true, Release);
        }
    }

    fn get(&self) -> Option<&Frame> {
        // SAFETY: once `taken` is set the frame is complete and is never written again.
        self.taken.load(Acquire).then(|| unsafe { (*self.frame.get()).assume_init_ref() })
    }
}

/// Nobody.
const NOBODY: u32 = u32::MAX;
/// CPU that tells what happened.
static OWNER: AtomicU32 = AtomicU32::new(NOBODY);
/// How long the others may take to stop.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Longest backtrace.
const MAX_FRAMES: usize = 48;

fn stop_here() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Becomes the owner and stops the other CPUs, or does not return.
fn seize(code: ExitCode, what: &str) -> Serial {
    interrupts::disable();
    let me = PerCpu::this().cpu.get();
    match OWNER.compare_exchange(NOBODY, me, SeqCst, SeqCst) {
        Ok(_) => {}
        Err(owner) if owner == me => {
            log_to(&mut Serial::seize(), format_args!("{what} while telling what happened"));
            exit(code);
        }
        Err(_) => stop_here(),
    }
    apic::mask_nmi();
    if percpu::nr_cpus() > 1 {
        apic::send_nmi_to_others();
        let start = clock::now_ns();
        while clock::now_ns() - start < PATIENCE_NS {
            if percpu::cpus().iter().all(|c| c.cpu.get() == me || c.snapshot.get().is_some()) {
                break;
            }
            core::hint::spin_loop();
        }
    }
    let mut out = Serial::seize();
    // Whoever was stopped may have been in the middle of a line.
    let _ = fmt::Write::write_str(&mut out, "\n");
    out
}

/// A panic, wherever it happens.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (rsp, rbp, rflags): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, rsp", "mov {}, rbp", "pushfq", "pop {}", out(reg) rsp, out(reg) rbp, out(reg) rflags);
    }
    let mut out = seize(ExitCode::Panic, "panic");
    let cpu = PerCpu::this();
    let out = &mut out;
    log_to(out, format_args!("{info}"));
    tell_where(out, cpu);
    log_to(out, format_args!("rsp {rsp:016x} rbp {rbp:016x} rflags {rflags:08x} cr2 {:016x}", Cr2::read_raw()));
    backtrace(out, None, rbp);
    others(out, cpu);
    exit(ExitCode::Panic)
}

/// A CPU exception: there is no innocent one.
pub(crate) fn fault(frame: &Frame) -> ! {
    let mut out = seize(ExitCode::Fault, "exception");
    let cpu = PerCpu::this();
    let out = &mut out;
    let name = EXCEPTIONS.get(frame.vector as usize).copied().unwrap_or("exception");
    log_to(out, format_args!("{name} (vector {}, error code {:#x}) at {:#x}", frame.vector, frame.error, frame.rip));
    if frame.vector == 14 {
        explain_page_fault(out, Cr2::read_raw());
    }
    tell_where(out, cpu);
    registers(out, frame);
    backtrace(out, Some(frame.rip), frame.rbp);
    others(out, cpu);
    exit(ExitCode::Fault)
}

/// A non-maskable interrupt: from another CPU that is telling something, or from the runner.
pub(crate) fn nmi(frame: &Frame) -> ! {
    let cpu = PerCpu::this();
    cpu.snapshot.take(frame);
    let mut out = seize(ExitCode::Fault, "NMI");
    let out = &mut out;
    log_to(out, format_args!("NMI: everything stands still for a look"));
    tell_where(out, cpu);
    registers(out, frame);
    backtrace(out, Some(frame.rip), frame.rbp);
    others(out, cpu);
    threads(out);
    exit(ExitCode::Fault)
}

const EXCEPTIONS: [&str; 20] = [
    "divide error",
    "debug exception",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack-segment fault",
    "general protection fault",
    "page fault",
    "reserved exception",
    "x87 floating-point exception",
    "alignment check",
    "machine check",
    "SIMD floating-point exception",
];

fn explain_page_fault(out: &mut Serial, address: u64) {
    log_to(out, format_args!("address {address:#x}"));
    if address < 4096 {
        log_to(out, format_args!("a null pointer, or nearly so"));
    }
    // The page below a stack is its guard.
    if let Some(t) = Thread::all().find(|t| address < t.stack().start && t.stack().start - address <= 4096) {
        log_to(out, format_args!("the stack of thread '{}' on CPU {} has overflowed", t.task.name(), t.cpu()));
    }
}

fn thread_of(cpu: &PerCpu) -> &'static Thread {
    // SAFETY: set before the CPU could get here, and threads are never freed.
    unsafe { &*cpu.current.load(Relaxed) }
}

fn tell_where(out: &mut Serial, cpu: &PerCpu) {
    let context = if cpu.irq_depth.get() > 0 { ", in an interrupt handler" } else { "" };
    log_to(out, format_args!("CPU {}, thread '{}'{context}", cpu.cpu.get(), thread_of(cpu).task.name()));
}

fn registers(out: &mut Serial, f: &Frame) {
    log_to(
        out,
        format_args!(
            "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n\
             rsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}\n\
             r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}\n\
             r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}\n\
             rip {:016x} cs {:02x} ss {:02x} rflags {:08x} cr2 {:016x} cr3 {:08x}",
            f.rax,
            f.rbx,
            f.rcx,
            f.rdx,
            f.rsi,
            f.rdi,
            f.rbp,
            f.rsp,
            f.r8,
            f.r9,
            f.r10,
            f.r11,
            f.r12,
            f.r13,
            f.r14,
            f.r15,
            f.rip,
            f.cs,
            f.ss,
            f.rflags,
            Cr2::read_raw(),
            Cr3::read_raw().0.start_address().as_u64(),
        ),
    );
}

/// Whether two words at `address` lie on some stack: reading them does not fault.
fn on_a_stack(address: u64) -> bool {
    let inside = |start: u64, end: u64| address >= start && address.saturating_add(16) <= end;
    address.is_multiple_of(8)
        && (Thread::all().any(|t| inside(t.stack().start, t.stack().end))
            || percpu::cpus().iter().map(|c| c.interrupt_stacks.get()).any(|s| inside(s.start, s.end)))
}

/// Return addresses from a frame pointer on, each on a line; `addr2line -e guest` knows their names.
fn backtrace(out: &mut Serial, rip: Option<u64>, rbp: u64) {
    let mut depth = 0;
    let mut line = |out: &mut Serial, address: u64| {
        log_to(out, format_args!("  #{depth:<2} {address:#018x}"));
        depth += 1;
    };
    if let Some(rip) = rip {
        line(out, rip);
    }
    let mut rbp = rbp;
    for _ in 0..MAX_FRAMES {
        if !on_a_stack(rbp) {
            return;
        }
        let frame = core::ptr::with_exposed_provenance::<[u64; 2]>(rbp as usize);
        // SAFETY: on_a_stack. All other CPUs are stopped; a parked thread's stack does not change.
        let [next, address] = unsafe { frame.read_volatile() };
        if !paging::is_text(address) {
            return;
        }
        line(out, address);
        // Frames go up a stack; from an interrupt's stack the chain leads to another one.
        if next <= rbp && on_a_stack(next) && rbp - next < 65536 {
            return;
        }
        rbp = next;
    }
}

/// Where the other CPUs stand.
fn others(out: &mut Serial, me: &PerCpu) {
    for cpu in percpu::cpus().iter().filter(|c| !core::ptr::eq(*c, me)) {
        match cpu.snapshot.get() {
            Some(frame) => {
                let asleep = if cpu.idle.load(Relaxed) != 0 { ", asleep" } else { "" };
                tell_where(out, cpu);
                log_to(out, format_args!("rip {:016x} rsp {:016x}{asleep}", frame.rip, frame.rsp));
                backtrace(out, Some(frame.rip), frame.rbp);
            }
            None => log_to(out, format_args!("CPU {} does not answer", cpu.cpu.get())),
        }
    }
}

/// What every thread waits for.
fn threads(out: &mut Serial) {
    for t in Thread::all() {
        let running = percpu::cpus().iter().any(|c| core::ptr::eq(thread_of(c), t));
        let state = match t.task.token().load(Relaxed) {
            state::PARKED => "parked",
            state::NOTIFIED => "woken, waits for its CPU",
            _ => "waits for its CPU",
        };
        let state = if running { "current" } else { state };
        let timer = if t.has_timer() { ", with a deadline" } else { "" };
        log_to(out, format_args!("thread '{}' of CPU {}: {state}{timer}", t.task.name(), t.cpu()));
        if !running {
            // SAFETY: the thread's CPU is stopped, and the pointer was saved by switch_stacks, or
            // laid out the same way by spawn: five registers, frame pointer, return address.
            let saved = unsafe { *t.stack_pointer.get() };
            if on_a_stack(saved) && on_a_stack(saved + 40) {
                // SAFETY: on_a_stack.
                let [rbp, rip] =
                    unsafe { core::ptr::with_exposed_provenance::<[u64; 2]>(saved as usize + 40).read_volatile() };
                backtrace(out, Some(rip), rbp);
            }
        }
    }
}
