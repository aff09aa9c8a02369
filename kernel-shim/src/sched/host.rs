// SPDX-License-Identifier: GPL-2.0-only
//! The hosted back end: threads, memory and clock of the machine that runs the tests.
//!
//! Any thread is a task from its first [`current`] on. Interrupt context is played by
//! [`InterruptContext`]: a simulated disk that completes requests under it gets the same answers
//! from [`in_interrupt`], and in debug builds the same reports of sleeping and allocating, as a
//! handler in the guest.
//!
//! With feature `sim` a thread may be inside of a simulation: then all this is the simulation's.

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::boxed::Box;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Instant, SystemTime};
use std::{alloc, eprintln, format, string::String, thread, thread_local, vec::Vec};

use super::Task;
use crate::error::{Result, code};

/// Token values: no unpark is due; the task sleeps or is about to; an unpark is due.
const EMPTY: u32 = 0;
const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;

/// What a task has on this back end besides its token.
pub(super) struct HostTask {
    /// Its CPU, as far as there is one: see [`cpu_id`].
    pub(super) cpu: AtomicU32,
    /// Held by whoever changes the token from or to [`PARKED`], so that no wake-up falls between a
    /// sleeper's last look and its sleep.
    lock: Mutex<()>,
    wake: Condvar,
    /// Its number, if it is a simulation's.
    #[cfg(feature = "sim")]
    pub(super) sim: AtomicU32,
}

impl HostTask {
    pub(super) const fn new() -> HostTask {
        HostTask {
            cpu: AtomicU32::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            #[cfg(feature = "sim")]
            sim: AtomicU32::new(u32::MAX),
        }
    }
}

/// Tasks, as seen from outside of their threads.
struct Tasks {
    /// Those whose threads have ended.
    free: Vec<&'static Task>,
    /// How many others are on each CPU.
    on_cpu: Vec<u32>,
}

static TASKS: Mutex<Tasks> = Mutex::new(Tasks { free: Vec::new(), on_cpu: Vec::new() });

/// A test that fails while it holds one of our locks must not take the others down with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a thread's task back when the thread ends.
struct Adopted(&'static Task);

impl Drop for Adopted {
    fn drop(&mut self) {
        self.0.plug.exit();
        // A destructor that runs later and asks gets a new task.
        CURRENT.set(ptr::null());
        free_task(self.0);
    }
}

thread_local! {
    /// The thread's task; null before its first look.
    pub(super) static CURRENT: Cell<*const Task> = const { Cell::new(ptr::null()) };
    static ADOPTED: Cell<Option<Adopted>> = const { Cell::new(None) };
    /// How many [`InterruptContext`]s deep the thread is.
    pub(super) static IRQ_DEPTH: Cell<u32> = const { Cell::new(0) };
    /// How many spinlocks the thread holds; counted in debug builds and for simulations only.
    pub(super) static SPIN_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// A task that no thread has, of this name.
fn new_task(name: &'static str) -> &'static Task {
    let mut tasks = lock(&TASKS);
    let task = match tasks.free.iter().position(|task| task.name() == name) {
        Some(index) => tasks.free.swap_remove(index),
        None => Box::leak(Box::new(Task::new(name))),
    };
    crate::sync::lockdep::start_of(task);
    task.set_cap_fsetid(false);
    tasks.on_cpu.resize(nr_cpus() as usize, 0);
    // The CPU with the fewest. There is one at least.
    if let Some((cpu, count)) = (0..).zip(&mut tasks.on_cpu).min_by_key(|(_, count)| **count) {
        *count += 1;
        task.host.cpu.store(cpu, Ordering::Relaxed);
    }
    task
}

/// `task`'s thread has ended, or was never made.
fn free_task(task: &'static Task) {
    let mut tasks = lock(&TASKS);
    if let Some(count) = tasks.on_cpu.get_mut(task.host.cpu.load(Ordering::Relaxed) as usize) {
        *count -= 1;
    }
    tasks.free.push(task);
}

/// Makes `task` this thread's until the thread ends.
fn adopt(task: &'static Task) {
    CURRENT.set(task);
    // Fails in a thread that ends: then the task is not used again.
    let _ = ADOPTED.try_with(|adopted| adopted.set(Some(Adopted(task))));
}

#[cold]
fn adopt_new() -> &'static Task {
    let task = new_task("host");
    adopt(task);
    task
}

/// The running task.
#[inline]
pub fn current() -> &'static Task {
    // SAFETY: Null, or a task, and tasks are never freed.
    match unsafe { CURRENT.get().as_ref() } {
        Some(task) => task,
        None => adopt_new(),
    }
}

pub(super) fn park(deadline_ns: Option<u64>) {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::park(deadline_ns);
    }
    let task = current();
    // Acquire: what the waker did before its unpark is visible to us.
    if task.token().compare_exchange(NOTIFIED, EMPTY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return;
    }
    let mut guard = lock(&task.host.lock);
    if task.token().compare_exchange(EMPTY, PARKED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        // Notified between the two looks.
        task.token().swap(EMPTY, Ordering::Acquire);
        return;
    }
    while task.token().load(Ordering::Relaxed) == PARKED {
        guard = match deadline_ns {
            None => task.host.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_sub(now_ns());
                if left == 0 {
                    break;
                }
                let waited = task.host.wake.wait_timeout(guard, Duration::from_nanos(left));
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
    task.token().swap(EMPTY, Ordering::Acquire);
}

/// Wakes a task, or makes its next sleep return at once. Any context.
pub fn unpark(task: &'static Task) {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::unpark(task);
    }
    // Release: see `park`.
    if task.token().swap(NOTIFIED, Ordering::Release) == PARKED {
        // Once the lock can be had the sleeper is in `wait`, where the notification reaches it.
        drop(lock(&task.host.lock));
        task.host.wake.notify_one();
    }
}

/// Lets others run.
pub fn yield_now() {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::yield_now();
    }
    thread::yield_now();
}

/// Nanoseconds since some moment, never backwards.
pub fn now_ns() -> u64 {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::now_ns();
    }
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What [`stop_clock`] has set; 0 while the clock runs.
static STOPPED: AtomicU64 = AtomicU64::new(0);

/// Makes the clock of [`real_ns`] stand at `ns` from now on, in the whole process: what tests leave on disks is the same each
/// time then. The clock of [`now_ns`] goes on.
pub fn stop_clock(ns: u64) {
    STOPPED.store(ns, Ordering::Relaxed);
}

/// Nanoseconds since 1970.
pub fn real_ns() -> u64 {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::real_ns();
    }
    let stopped = STOPPED.load(Ordering::Relaxed);
    if stopped != 0 {
        return stopped;
    }
    match SystemTime::UNIX_EPOCH.elapsed() {
        Ok(since) => u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        Err(_) => 0,
    }
}

/// The number of the current tick of the coarse clock, from 1 on.
pub(crate) fn coarse_tick() -> u64 {
    (real_ns() >> crate::time::TICK_SHIFT) + 1
}

/// When that tick began, in nanoseconds since 1970.
pub(crate) fn coarse_real_ns() -> u64 {
    (coarse_tick() - 1) << crate::time::TICK_SHIFT
}

/// How many CPUs there are.
#[inline]
pub fn nr_cpus() -> u32 {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::nr_cpus();
    }
    static NR_CPUS: OnceLock<u32> = OnceLock::new();
    *NR_CPUS.get_or_init(|| thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)))
}

/// A number below [`nr_cpus`] that is always the same for a thread: threads are not bound to CPUs
/// here, but those that are alive together are spread evenly over these numbers.
#[inline]
pub fn cpu_id() -> u32 {
    current().host.cpu.load(Ordering::Relaxed)
}

/// Whether this thread plays an interrupt handler.
#[inline]
pub fn in_interrupt() -> bool {
    IRQ_DEPTH.get() != 0
}

/// While this lives its thread plays an interrupt handler: [`in_interrupt`] holds, and in debug
/// builds sleeping and allocating with `GFP_KERNEL` are reported.
#[must_use = "interrupt context ends when this is dropped"]
pub struct InterruptContext {
    /// The depth is the thread's own: the guard may not leave it.
    _not_send: PhantomData<*mut ()>,
}

impl InterruptContext {
    /// Enters interrupt context. May be nested.
    pub fn enter() -> InterruptContext {
        IRQ_DEPTH.set(IRQ_DEPTH.get() + 1);
        InterruptContext { _not_send: PhantomData }
    }
}

impl Drop for InterruptContext {
    fn drop(&mut self) {
        IRQ_DEPTH.set(IRQ_DEPTH.get() - 1);
    }
}

/// Whether interrupts were on: there are none here.
#[derive(Clone, Copy, Debug)]
pub struct IrqFlags(());

/// Turns interrupts off on this CPU, and says whether they were on.
#[inline(always)]
pub fn irq_save() -> IrqFlags {
    IrqFlags(())
}

/// Turns interrupts on again if they were on before.
#[inline(always)]
pub fn irq_restore(_flags: IrqFlags) {}

/// The holder may be a thread that the host has preempted: spin a little, then let it run.
#[inline]
pub(crate) fn spin_relax() {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return super::sim::spin_relax();
    }
    thread_local!(static SPINS: Cell<u32> = const { Cell::new(0) });
    let spins = SPINS.get().wrapping_add(1);
    SPINS.set(spins);
    if spins.is_multiple_of(64) {
        thread::yield_now();
    } else {
        core::hint::spin_loop();
    }
}

#[inline(always)]
pub(crate) fn spin_acquired() {
    if cfg!(any(debug_assertions, feature = "sim")) {
        SPIN_DEPTH.set(SPIN_DEPTH.get() + 1);
    }
}

#[inline(always)]
pub(crate) fn spin_released() {
    if cfg!(any(debug_assertions, feature = "sim")) {
        SPIN_DEPTH.set(SPIN_DEPTH.get() - 1);
    }
}

#[track_caller]
pub(super) fn assert_may_sleep() {
    bug_on!(in_interrupt(), "sleeping in interrupt context");
    bug_on!(SPIN_DEPTH.get() != 0, "sleeping under a spinlock");
}

/// What a new thread is given.
struct Start {
    task: &'static Task,
    entry: fn(*mut ()),
    arg: *mut (),
}

// SAFETY: Whoever spawns a thread hands `arg` over to it.
unsafe impl Send for Start {}

impl Start {
    fn run(self) {
        adopt(self.task);
        (self.entry)(self.arg);
    }
}

pub(super) fn spawn(name: &'static str, _cpu: Option<u32>, entry: fn(*mut ()), arg: *mut ()) -> Result<&'static Task> {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        return Ok(super::sim::spawn(name, entry, arg));
    }
    let task = new_task(name);
    let start = Start { task, entry, arg };
    match thread::Builder::new().name(String::from(name)).spawn(move || start.run()) {
        Ok(_detached) => Ok(task),
        Err(_) => {
            free_task(task);
            Err(code::EAGAIN)
        }
    }
}

/// Where log lines go to: called with their level and text.
pub type Sink = Box<dyn Fn(u8, &str) + Send + Sync>;

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Sends the log of all threads to `sink`, or with `None` to standard error again, and returns the
/// sink of before. The sink itself must not log.
pub fn set_sink(sink: Option<Sink>) -> Option<Sink> {
    core::mem::replace(&mut *SINK.write().unwrap_or_else(PoisonError::into_inner), sink)
}

pub(crate) fn console(level: u8, args: fmt::Arguments<'_>) {
    #[cfg(feature = "sim")]
    if super::sim::inside() {
        // Of thousands of runs only those that are traced are worth reading.
        return super::sim::note(|| format!("<{level}>{args}"));
    }
    match &*SINK.read().unwrap_or_else(PoisonError::into_inner) {
        Some(sink) => sink(level, &format!("{args}")),
        None => eprintln!("<{level}>{args}"),
    }
}

/// # Safety
///
/// The layout's size is not 0.
#[inline]
pub(crate) unsafe fn kmalloc(layout: Layout) -> *mut u8 {
    // SAFETY: The caller's promise.
    let memory = unsafe { alloc::alloc(layout) };
    #[cfg(feature = "sim")]
    super::sim::allocated(memory.addr(), layout.size());
    memory
}

/// # Safety
///
/// `memory` comes from [`kmalloc`] with this layout and is not used any more.
#[inline]
pub(crate) unsafe fn kfree(memory: *mut u8, layout: Layout) {
    #[cfg(feature = "sim")]
    super::sim::freed(memory.addr(), layout.size());
    // SAFETY: The caller's promise.
    unsafe { alloc::dealloc(memory, layout) };
}
