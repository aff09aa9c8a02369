// SPDX-License-Identifier: GPL-2.0-only
//! What each CPU has of its own. GS base points at the CPU's [`PerCpu`]; the assembler in stubs.s
//! and kernel-shim (`PerCpuHead`) reach its fields by offset.

use core::{
    arch::asm,
    cell::{Cell, RefCell},
    mem::offset_of,
    sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering::*},
};

use super::pvh::Range;
use crate::{
    crash::Snapshot,
    thread::{Thread, TimerAdapter, Timers},
    virtio::queue::Queue,
};

/// CPUs the kernel has room for; more are left asleep.
pub(crate) const MAX_CPUS: usize = 16;
/// Disks whose interrupts find their queue.
pub(crate) const MAX_DISKS: usize = 8;

/// What a CPU has of its own.
///
/// Plain cells are touched by their CPU alone, with interrupts off; atomics by everybody.
#[repr(C, align(64))]
pub(crate) struct PerCpu {
    /// Thread that runs here. First for kernel-shim; read by other CPUs only to print it.
    pub(crate) current: AtomicPtr<Thread>,
    /// Index of this CPU.
    pub(crate) cpu: Cell<u32>,
    /// Above zero in interrupt handlers.
    pub(crate) irq_depth: Cell<u32>,
    /// GS base itself.
    this: Cell<*const PerCpu>,
    /// 1 from before the last look at `woken` until the first instruction after `hlt`. Others read
    /// it to decide whether an IPI is needed.
    pub(crate) idle: AtomicU8,
    /// Time-stamp counter when `hlt` began.
    idle_since: AtomicU64,
    /// Ticks spent in `hlt`.
    pub(crate) idle_ticks: AtomicU64,
    /// Times `hlt` ended.
    pub(crate) wakes: AtomicU64,
    /// Local APIC id.
    pub(crate) apic_id: AtomicU32,
    /// Threads that wait for the CPU, first to run first, linked by `Thread::next`.
    pub(crate) run_queue: Cell<*const Thread>,
    /// Threads of this CPU that anybody woke, latest first: a lock-free stack that only this CPU empties.
    pub(crate) woken: AtomicPtr<Thread>,
    /// Parked threads with a deadline.
    pub(crate) timers: RefCell<Timers>,
    /// What the local timer is set to, nanoseconds; `u64::MAX` if it is off.
    pub(crate) timer_armed: Cell<u64>,
    /// Whose turn it is when a disk interrupts this CPU.
    pub(crate) queues: [AtomicPtr<Queue>; MAX_DISKS],
    /// One of them may have been asked for no interrupts.
    pub(crate) quiet: Cell<bool>,
    /// The IST stacks.
    pub(crate) interrupt_stacks: Cell<Range>,
    /// Where an NMI found the CPU.
    pub(crate) snapshot: Snapshot,
}

// SAFETY: see the type: cells belong to their CPU, the rest is atomic.
unsafe impl Sync for PerCpu {}

/// All of them; those at and above [`nr_cpus`] are unused.
static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];
static NR_CPUS: AtomicU32 = AtomicU32::new(0);

// What kernel-shim relies on.
const _: () = assert!(offset_of!(PerCpu, current) == 0 && offset_of!(PerCpu, cpu) == 8);
const _: () = assert!(offset_of!(PerCpu, irq_depth) == 12);

/// Offsets for stubs.s.
pub(crate) mod offsets {
    use super::*;
    pub(crate) const IRQ_DEPTH: usize = offset_of!(PerCpu, irq_depth);
    pub(crate) const IDLE: usize = offset_of!(PerCpu, idle);
    pub(crate) const IDLE_SINCE: usize = offset_of!(PerCpu, idle_since);
    pub(crate) const IDLE_TICKS: usize = offset_of!(PerCpu, idle_ticks);
    pub(crate) const WAKES: usize = offset_of!(PerCpu, wakes);
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            current: AtomicPtr::new(core::ptr::null_mut()),
            cpu: Cell::new(0),
            irq_depth: Cell::new(0),
            this: Cell::new(core::ptr::null()),
            idle: AtomicU8::new(0),
            idle_since: AtomicU64::new(0),
            idle_ticks: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
            apic_id: AtomicU32::new(0),
            run_queue: Cell::new(core::ptr::null()),
            woken: AtomicPtr::new(core::ptr::null_mut()),
            timers: RefCell::new(Timers::new(TimerAdapter::NEW)),
            timer_armed: Cell::new(u64::MAX),
            queues: [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_DISKS],
            quiet: Cell::new(false),
            interrupt_stacks: Cell::new(Range { start: 0, end: 0 }),
            snapshot: Snapshot::new(),
        }
    }

    /// The CPU this runs on.
    #[inline(always)]
    pub(crate) fn this() -> &'static PerCpu {
        let p: *const PerCpu;
        // SAFETY: `install` set GS base before anything could call this. Threads never change
        // their CPU, so the answer stays right.
        unsafe {
            asm!("mov {}, gs:[{}]", out(reg) p, const offset_of!(PerCpu, this), options(nostack, readonly, preserves_flags, pure));
            &*p
        }
    }

    /// The thread this runs on.
    #[inline(always)]
    pub(crate) fn current() -> &'static Thread {
        let p: *const Thread;
        // SAFETY: as above; threads are never freed.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) p, options(nostack, readonly, preserves_flags));
            &*p
        }
    }

    /// Makes `cpu`'s block the block of the CPU this runs on.
    pub(crate) fn install(cpu: u32, thread: &'static Thread) {
        let block = &CPUS[cpu as usize];
        block.cpu.set(cpu);
        block.this.set(block);
        block.current.store(core::ptr::from_ref(thread).cast_mut(), Relaxed);
        x86_64::registers::model_specific::GsBase::write(x86_64::VirtAddr::from_ptr(block));
    }

    /// Sleeps until an interrupt, unless a thread has been woken meanwhile. Entered and left with
    /// interrupts off.
    #[inline(always)]
    pub(crate) fn wait_for_interrupt(&self) {
        // A waker pushes to `woken` and then reads `idle`; this stores `idle` and then reads
        // `woken`. With both sequentially consistent at least one of them sees the other.
        self.idle.swap(1, SeqCst);
        if !self.woken.load(SeqCst).is_null() {
            self.idle.store(0, Relaxed);
            return;
        }
        // SAFETY: `sti` delays interrupts by one instruction, so one that is already pending ends
        // the `hlt`. irq_in_idle in stubs.s saves none of the registers declared lost here, and
        // clears `idle`.
        unsafe {
            asm!(
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "mov gs:[{since}], rax",
                "sti",
                "hlt",
                "cli",
                since = const offsets::IDLE_SINCE,
                clobber_abi("C"),
            );
        }
    }
}

/// CPUs that run.
pub(crate) fn nr_cpus() -> u32 {
    NR_CPUS.load(Relaxed)
}

/// Counts one more CPU; it has to be the next in number.
pub(crate) fn set_nr_cpus(n: u32) {
    NR_CPUS.store(n, Release);
}

/// The block of any CPU.
pub(crate) fn cpu(cpu: u32) -> &'static PerCpu {
    &CPUS[cpu as usize]
}

/// The blocks of the CPUs that run.
pub(crate) fn cpus() -> &'static [PerCpu] {
    &CPUS[..nr_cpus() as usize]
}

/// Instructions between a CPU's `hlt` and its clock readings that are counted as idle time though they
/// are work: 5 before (`shl or mov sti hlt`) and 8 after, including the readings' own halves.
const UNSEEN_PER_WAKE: u64 = 13;

/// A reading of what all CPUs have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Ticks of the time-stamp counter that CPUs were not asleep, summed up, from some moment on.
    ///
    /// With QEMU's `-icount shift=0` and one CPU a tick is an instruction.
    pub(crate) ticks: u64,
    /// Times a `hlt` ended.
    pub(crate) wakes: u64,
}

impl Work {
    /// Reads it now. Any context; exact for the CPU this runs on.
    pub(crate) fn now() -> Self {
        let (mut asleep, mut wakes) = (0u64, 0u64);
        let tsc = crate::arch::clock::rdtsc();
        for c in cpus() {
            asleep = asleep.wrapping_add(c.idle_ticks.load(Relaxed));
            wakes += c.wakes.load(Relaxed);
            if c.idle.load(Relaxed) != 0 {
                asleep = asleep.wrapping_add(tsc.saturating_sub(c.idle_since.load(Relaxed)));
            }
        }
        let awake = tsc.wrapping_mul(cpus().len() as u64).wrapping_sub(asleep);
        Self { ticks: awake.wrapping_add(wakes * UNSEEN_PER_WAKE), wakes }
    }

    /// What was done since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self { ticks: self.ticks.wrapping_sub(earlier.ticks), wakes: self.wakes - earlier.wakes }
    }
}

/// [`Work::now`]'s ticks.
pub(crate) fn busy_ticks() -> u64 {
    Work::now().ticks
}
