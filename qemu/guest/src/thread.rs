// SPDX-License-Identifier: GPL-2.0-only
//! Kernel threads: a task for kernel-shim, a stack, a CPU. They are never freed: a thread whose
//! function has returned waits in a pool for the next [`spawn`], so that a stale wake-up always finds one.

use alloc::{alloc::alloc, boxed::Box, vec::Vec};
use core::{
    alloc::Layout,
    cell::{Cell, UnsafeCell},
    sync::atomic::{AtomicPtr, AtomicU32, Ordering::*},
};

use intrusive_collections::{KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};
use kernel_shim::{
    error::{Result, code::ENOMEM},
    sched::Task,
    sync::SpinLock,
};

use crate::{
    arch::{
        paging,
        percpu::{self, PerCpu},
        pvh::Range,
    },
    sched,
};

/// Bytes of a thread's stack. The page below it faults.
pub(crate) const STACK_SIZE: u64 = 64 << 10;
const GUARD: u64 = 4096;
/// Stacks are cut from pieces of memory that one large page maps, which is split once.
const CHUNK: usize = 2 << 20;

/// A kernel thread. `Task` comes first: kernel-shim's pointers to it are pointers to this.
#[repr(C)]
pub(crate) struct Thread {
    /// Name, plug, and the token, which holds one of [`sched::state`]'s values.
    pub(crate) task: Task,
    /// Where its registers are while it does not run.
    pub(crate) stack_pointer: UnsafeCell<u64>,
    /// Next in its CPU's run queue or list of the woken; whoever made it runnable owns this.
    pub(crate) next: AtomicPtr<Thread>,
    /// In its CPU's timers while it is parked with a deadline.
    timer: RBTreeAtomicLink,
    /// Key of `timer`, nanoseconds.
    pub(crate) deadline: Cell<u64>,
    cpu: u32,
    stack: Range,
    /// What to run next; taken by the thread itself.
    job: SpinLock<Option<Job>>,
    /// Next in the list of all threads.
    all_next: AtomicPtr<Thread>,
}

// SAFETY: `stack_pointer`, `timer` and `deadline` belong to the thread's CPU, with interrupts off;
// `crash` reads the first when that CPU is stopped. The rest is atomic, locked or constant.
unsafe impl Sync for Thread {}

struct Job {
    entry: fn(*mut ()),
    arg: *mut (),
}

// SAFETY: `spawn`'s caller hands the argument over to the thread.
unsafe impl Send for Job {}

intrusive_adapter!(pub(crate) TimerAdapter = &'static Thread: Thread { timer => RBTreeAtomicLink });
impl<'a> KeyAdapter<'a> for TimerAdapter {
    type Key = u64;
    fn get_key(&self, thread: &'a Thread) -> u64 {
        thread.deadline.get()
    }
}

/// Parked threads by deadline.
pub(crate) type Timers = RBTree<TimerAdapter>;

/// Every thread there is, latest first.
static ALL: AtomicPtr<Thread> = AtomicPtr::new(core::ptr::null_mut());
/// Threads without a job.
static POOL: SpinLock<Vec<&'static Thread>> = SpinLock::new(Vec::new());
/// What is left of the chunk that stacks are being cut from.
static STACKS: SpinLock<Range> = SpinLock::new(Range { start: 0, end: 0 });
static NEXT_CPU: AtomicU32 = AtomicU32::new(0);

/// The thread that boots.
static BOOT: Thread = Thread::new("main", 0, Range { start: 0, end: 0 });

impl Thread {
    const fn new(name: &'static str, cpu: u32, stack: Range) -> Self {
        Self {
            task: Task::new(name),
            stack_pointer: UnsafeCell::new(0),
            next: AtomicPtr::new(core::ptr::null_mut()),
            timer: RBTreeAtomicLink::new(),
            deadline: Cell::new(0),
            cpu,
            stack,
            job: SpinLock::new(None),
            all_next: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// What rust_start runs on. Its stack is boot.s's; see [`Thread::stack`].
    pub(crate) fn boot() -> &'static Self {
        &BOOT
    }

    /// A thread that `cpu` starts with and that needs no registers yet.
    pub(crate) fn for_boot(cpu: u32) -> Result<&'static Self> {
        Ok(Self::publish("idle", cpu, new_stack().ok_or(ENOMEM)?))
    }

    fn publish(name: &'static str, cpu: u32, stack: Range) -> &'static Self {
        let thread = Box::leak(Box::new(Self::new(name, cpu, stack)));
        let mut head = ALL.load(Relaxed);
        loop {
            thread.all_next.store(head, Relaxed);
            match ALL.compare_exchange(head, thread, Release, Relaxed) {
                Ok(_) => return thread,
                Err(now) => head = now,
            }
        }
    }

    /// Bytes of its stack that it ever used, as far as something other than zeros was left there.
    fn depth(&self) -> u64 {
        let stack = self.stack();
        let words = (stack.start..stack.end).step_by(8);
        let used = words.clone().find(|at| {
            // SAFETY: stacks are mapped and never freed. Whoever runs on it may write meanwhile: hence volatile, and only a bound.
            unsafe { core::ptr::with_exposed_provenance::<u64>(*at as usize).read_volatile() != 0 }
        });
        used.map_or(0, |at| stack.end - at)
    }

    /// How deep the thread that boots went into its stack, and which other one went deepest.
    pub(crate) fn deepest() -> [(&'static str, u64); 2] {
        let others = Self::all().filter(|t| !core::ptr::eq(*t, &BOOT)).map(|t| (t.task.name(), t.depth()));
        [(BOOT.task.name(), BOOT.depth()), others.max_by_key(|(_, depth)| *depth).unwrap_or_default()]
    }

    /// The CPU it runs on.
    pub(crate) fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Where its stack is, without the guard page.
    pub(crate) fn stack(&self) -> Range {
        if core::ptr::eq(self, &BOOT) { paging::boot_stack_range() } else { self.stack }
    }

    /// Whether it stands in its CPU's timers.
    pub(crate) fn has_timer(&self) -> bool {
        self.timer.is_linked()
    }

    /// The thread that a task of kernel-shim's is part of.
    pub(crate) fn of(task: &'static Task) -> &'static Self {
        // SAFETY: all tasks that kernel-shim knows are first fields of threads, which are never freed.
        unsafe { &*core::ptr::from_ref(task).cast() }
    }

    /// All threads. Takes no lock.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        let mut next = ALL.load(Acquire).cast_const();
        core::iter::once(&BOOT).chain(core::iter::from_fn(move || {
            // SAFETY: the list holds threads that are never freed, and null at its end.
            let thread = unsafe { next.as_ref() }?;
            next = thread.all_next.load(Relaxed);
            Some(thread)
        }))
    }
}

/// Cuts a stack and its guard page; `None` if memory has run out.
fn new_stack() -> Option<Range> {
    let mut chunk = STACKS.lock();
    if chunk.end - chunk.start < GUARD + STACK_SIZE {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(Layout::from_size_align(CHUNK, CHUNK).ok()?) };
        if memory.is_null() {
            return None;
        }
        *chunk = Range { start: memory.addr() as u64, end: memory.addr() as u64 + CHUNK as u64 };
    }
    let guard = chunk.start;
    let stack = Range { start: guard + GUARD, end: guard + GUARD + STACK_SIZE };
    chunk.start = stack.end;
    drop(chunk);
    let bottom = core::ptr::with_exposed_provenance_mut::<u8>(stack.start as usize);
    // For `depth`. SAFETY: the piece was just cut from memory that is ours.
    unsafe { bottom.write_bytes(0, STACK_SIZE as usize) };
    paging::make_guard(guard);
    Some(stack)
}

/// Starts a thread that calls `entry(arg)`, on `cpu` or on one CPU after the other. ENOMEM.
pub(crate) fn spawn(name: &'static str, cpu: Option<u32>, entry: fn(*mut ()), arg: *mut ()) -> Result<&'static Task> {
    let cpu = cpu.unwrap_or_else(|| NEXT_CPU.fetch_add(1, Relaxed)) % percpu::nr_cpus();
    let job = Job { entry, arg };
    // A task keeps its name for life, so only a thread of the same name will do.
    let pooled = {
        let mut pool = POOL.lock();
        let at = pool.iter().position(|t| t.cpu == cpu && t.task.name() == name);
        at.map(|at| pool.swap_remove(at))
    };
    let thread = match pooled {
        Some(thread) => thread,
        None => {
            let stack = new_stack().ok_or(ENOMEM)?;
            let thread = Thread::publish(name, cpu, stack);
            thread.task.token().store(sched::state::PARKED, Relaxed);
            // What switch_stacks pops: six registers, among them a frame pointer of 0, where
            // backtraces end, and the address to return to. Above it, the address that
            // thread_main, which never returns, would return to.
            let top = core::ptr::with_exposed_provenance_mut::<u64>(stack.end as usize);
            // SAFETY: the stack is new, and mapped above its guard page.
            unsafe {
                top.sub(8).write_bytes(0, 8);
                top.sub(2).write(thread_main as *const () as u64);
                *thread.stack_pointer.get() = top.sub(8).addr() as u64;
            }
            thread
        }
    };
    *thread.job.lock() = Some(job);
    sched::unpark(thread);
    Ok(&thread.task)
}

/// First function of a thread. Entered with interrupts off, from `switch_stacks`.
extern "C" fn thread_main() -> ! {
    let thread = PerCpu::current();
    // This CPU may remember the guard page from before it was one.
    paging::forget(thread.stack.start - GUARD);
    thread.task.token().swap(sched::state::RUNNING, SeqCst);
    x86_64::instructions::interrupts::enable();
    loop {
        let job = thread.job.lock().take();
        match job {
            Some(job) => {
                (job.entry)(job.arg);
                POOL.lock().push(thread);
            }
            None => sched::park(None),
        }
    }
}
