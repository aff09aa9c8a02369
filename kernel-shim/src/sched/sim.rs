// SPDX-License-Identifier: GPL-2.0-only
//! A simulation of the machine: one thread of the host runs all tasks in turn, in an order that a [`Policy`] picks, on the coroutines of
//! `shuttle`. The same choices give the same run.
//!
//! It is part of the back end `host`: a thread that is in [`run`] finds itself here, all others where they always were.
//!
//! * Tasks change places at `point`s only: before a spinlock is taken, before a mutex or rwsem is locked or unlocked, before a wake-up,
//!   before marked atomics ([`sched_point`](super::sched_point)), at tracepoints, where requests go to the device, and where a task sleeps.
//!   Under a spinlock and in interrupt context there is none: such a section is one step, and nobody ever spins.
//! * With [`Config::lock_steps`] locking is one step: a task does not run before it can have the lock, or before what it waits for
//!   has been done, and so none ever stands in a lock's queue. That is for exhaustive runs, which have too many orders as it is.
//! * Time is virtual. It stands still while anybody can run; then it jumps to the next deadline. That is done by a task of its own, the
//!   clock, which also sees that nobody ever will run again: a deadlock or a lost wake-up.
//! * What a step touches is kept, if wanted, for schedulers that leave out orders that make no difference: [`Step`].

mod driver;
mod record;

use core::cell::{Cell, RefCell};
use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::format;
use std::rc::Rc;
use std::string::String;
use std::thread_local;
use std::time::Duration;
use std::vec::Vec;

use shuttle::thread::Thread;

use super::host::{CURRENT, IRQ_DEPTH, SPIN_DEPTH};
use super::{Point, Task, Touch};
use crate::sync::lockdep;

pub use driver::{Config, Failure, Policy, Recorded, run};
pub use record::{Access, Entry, Recording, SoFar, Step};

/// When the virtual clock starts, in nanoseconds since 1970: some years after the images were made.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;
/// Tokens of tasks: no wake-up is due; one is.
const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
/// The task that moves the time.
const CLOCK: usize = 1;
/// So often in a row time may pass without one of the world's own tasks running before that is taken for a deadlock.
const MAX_TICKS: u32 = 1000;

thread_local! {
    /// Whether this thread is in a simulation.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
    /// Tasks of simulations that are over.
    static POOL: RefCell<Vec<&'static Task>> = const { RefCell::new(Vec::new()) };
}

/// What is called at each step: see [`on_step`].
type Hook = Rc<dyn Fn()>;

/// A task, by its number: the order of their making. 0 is the world itself, 1 the clock.
struct Sleeper {
    task: &'static Task,
    thread: Option<Thread>,
    parked: bool,
    deadline_ns: Option<u64>,
    alive: bool,
    /// Made by the world, not by what it tests.
    own: bool,
    /// What must hold before it can go on.
    until: Option<Until>,
    /// Where it was last.
    last: (Point, usize),
}

/// What a task waits for without sleeping.
#[derive(Clone, Copy)]
enum Until {
    /// This says so. It lives as long as the task waits.
    Free(*const dyn Fn() -> bool),
    /// Another's end.
    Ended(usize),
}

impl Until {
    fn holds(self, tasks: &[Sleeper]) -> bool {
        match self {
            // SAFETY: it is on the stack of the task, which is in `wait_inside`.
            Self::Free(free) => unsafe { (*free)() },
            Self::Ended(id) => !tasks[id].alive,
        }
    }
}

impl Sleeper {
    /// Whether it waits for something that does not hold.
    fn blocked(&self, tasks: &[Sleeper]) -> bool {
        self.until.is_some_and(|until| !until.holds(tasks))
    }
}

/// A run.
struct State {
    now_ns: u64,
    tasks: Vec<Sleeper>,
    current: usize,
    /// How many [`Quiet`]s there are.
    quiet: u32,
    /// The running task goes on at the next decision.
    hold: bool,
    ticks: u32,
    nr_cpus: u32,
    hook: Option<Hook>,
    in_hook: bool,
    /// Locking is one step.
    lock_steps: bool,
    /// Decisions so far.
    steps: u64,
    record: record::Recorder,
    policy: Rc<RefCell<dyn Policy>>,
}

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(|state| match state {
        Some(state) => f(state),
        None => panic!("not in a simulation"),
    })
}

/// Whether this thread is in a simulation.
#[inline(always)]
pub fn inside() -> bool {
    INSIDE.get()
}

/// Whether the running task is in a section that nobody else gets a look into.
fn atomic() -> bool {
    IRQ_DEPTH.get() != 0 || SPIN_DEPTH.get() != 0 || std::thread::panicking()
}

/// Another task may run now.
fn switch() {
    let me = CURRENT.get();
    // To shuttle, sleeping is nothing but a scheduling point.
    shuttle::thread::sleep(Duration::ZERO);
    resumed(me);
}

/// The running task is this one again.
fn resumed(me: *const Task) {
    CURRENT.set(me);
    // SAFETY: tasks are never freed.
    let id = unsafe { &*me }.host.sim.load(Ordering::Relaxed) as usize;
    with(|state| state.current = id);
}

/// Runs `f`, which calls shuttle, without a change of tasks.
fn hold<R>(f: impl FnOnce() -> R) -> R {
    with(|state| state.hold = true);
    let result = f();
    with(|state| state.hold = false);
    result
}

/// A place where tasks may change, unless the running one is in the middle of what is one step. What it then touches is noted.
#[inline]
pub(super) fn point(kind: Point, object: usize) {
    if inside() {
        point_inside(kind, object);
    }
}

#[cold]
fn point_inside(kind: Point, object: usize) {
    if !atomic() && with(|state| state.may_switch(kind)) {
        step_hook();
        if kind == Point::Yield { yielded() } else { switch() }
    }
    with(|state| state.note(kind, object));
}

/// Notes what the running step touches, without a change of tasks.
#[inline]
pub(super) fn touch(object: usize, touch: Touch) {
    if inside() {
        with(|state| {
            if !state.in_hook {
                state.record.access(object, touch);
            }
        });
    }
}

/// [`point`], and the task does not go on before `free` holds, if locking is one step.
#[inline]
pub(super) fn wait<T>(kind: Point, object: &T, free: impl Fn(&T) -> bool) -> bool {
    inside() && { wait_inside(kind, core::ptr::from_ref(object).addr(), &|| free(object)) }
}

#[cold]
fn wait_inside(kind: Point, object: usize, free: &dyn Fn() -> bool) -> bool {
    if !with(|state| state.lock_steps) {
        // What only waits has points of its own.
        if !matches!(kind, Point::Wait | Point::Passed) {
            point_inside(kind, object);
        }
        return false;
    }
    if !atomic() && with(|state| !state.in_hook && (state.quiet == 0 || !free())) {
        // SAFETY: only the lifetime is another, and it is forgotten below.
        let until =
            Until::Free(unsafe { core::mem::transmute::<*const dyn Fn() -> bool, *const dyn Fn() -> bool>(free) });
        // Who has I/O plugged finds out that it has to sleep, and submits that first.
        let plugged = crate::block::plug::holds_some();
        if plugged {
            until_then(None);
        }
        if plugged && !free() {
            with(|state| state.record.access(object, Touch::Look));
            super::flush_plug();
        }
        if !plugged || !free() {
            until_then(Some(until));
        }
    }
    if matches!(kind, Point::Wait | Point::Passed) {
        // Who does what this waits for may wake it: it is awake.
        super::host::current().token().store(EMPTY, Ordering::Relaxed);
    }
    with(|state| state.note(kind, object));
    true
}

/// Others may run, and do so until that holds.
fn until_then(until: Option<Until>) {
    let set = |until| {
        with(|state| {
            let current = state.current;
            state.tasks[current].until = until;
        });
    };
    step_hook();
    set(until);
    switch();
    set(None);
}

/// Lets others run until `task` has ended, if locking is one step: what there is to its end beside is not looked at in all orders.
pub fn ended(task: &Task) {
    if !inside() || with(|state| !state.lock_steps) {
        return;
    }
    let until = Until::Ended(task.host.sim.load(Ordering::Relaxed) as usize);
    if with(|state| !until.holds(&state.tasks)) {
        until_then(Some(until));
    }
    with(|state| state.record.access(core::ptr::from_ref(task).addr(), Touch::After));
}

/// What is in this memory has names of its own from now on.
#[inline]
pub(super) fn allocated(at: usize, bytes: usize) {
    if inside() {
        with(|state| state.record.allocated(state.current, at, bytes));
    }
}

/// This memory is nobody's.
#[inline]
pub(super) fn freed(at: usize, bytes: usize) {
    if inside() {
        with(|state| state.record.freed(at, bytes));
    }
}

fn yielded() {
    let me = CURRENT.get();
    shuttle::thread::yield_now();
    resumed(me);
}

fn step_hook() {
    let hook = with(|state| {
        let hook = state.hook.clone();
        state.in_hook = hook.is_some();
        hook
    });
    if let Some(hook) = hook {
        // What it locks has nothing to do with what the task holds that it looks over the shoulder of.
        lockdep::aside(|| hook());
        with(|state| state.in_hook = false);
    }
}

impl State {
    fn new(config: &Config, policy: Rc<RefCell<dyn Policy>>) -> Self {
        Self {
            now_ns: 1_000_000_000,
            tasks: Vec::new(),
            current: 0,
            quiet: 0,
            hold: false,
            ticks: 0,
            nr_cpus: config.nr_cpus.max(1),
            hook: None,
            in_hook: false,
            lock_steps: config.lock_steps,
            steps: 0,
            record: record::Recorder::new(config.recording, config.lock_steps),
            policy,
        }
    }

    fn may_switch(&self, kind: Point) -> bool {
        // What touches nothing is as well done with what was before.
        let nothing = self.lock_steps && matches!(kind, Point::Trace | Point::Submit | Point::Pool);
        !self.in_hook && !nothing && (self.quiet == 0 || kind == Point::Yield)
    }

    fn note(&mut self, kind: Point, object: usize) {
        if self.in_hook {
            return;
        }
        let current = self.current;
        if let Some(sleeper) = self.tasks.get_mut(current) {
            sleeper.last = (kind, object);
            self.record.point(current, sleeper.task.name(), kind, object);
        }
    }

    /// A new task, with the number that shuttle will give it.
    fn add(&mut self, name: &'static str) -> (usize, &'static Task) {
        let id = self.tasks.len();
        let task = POOL.with_borrow_mut(|pool| match pool.iter().position(|task| task.name() == name) {
            Some(at) => pool.swap_remove(at),
            None => Box::leak(Box::new(Task::new(name))),
        });
        task.token().store(EMPTY, Ordering::Relaxed);
        lockdep::start_of(task);
        task.host.sim.store(id as u32, Ordering::Relaxed);
        task.host.cpu.store(id as u32 % self.nr_cpus, Ordering::Relaxed);
        self.record.allocated(self.current, core::ptr::from_ref(task).addr(), size_of::<Task>());
        self.tasks.push(Sleeper {
            task,
            thread: None,
            parked: false,
            deadline_ns: None,
            alive: true,
            own: id == 0,
            until: None,
            last: (Point::Start, 0),
        });
        (id, task)
    }

    /// What all tasks were doing last.
    fn report(&self) -> String {
        let mut text = String::new();
        for (id, sleeper) in self.tasks.iter().enumerate().filter(|(id, s)| s.alive && *id != CLOCK) {
            let (point, object) = sleeper.last;
            let state = match (sleeper.parked, sleeper.deadline_ns) {
                (false, _) if sleeper.blocked(&self.tasks) => String::from("waits"),
                (false, _) => String::from("can run"),
                (true, None) => String::from("sleeps"),
                (true, Some(at)) => format!("sleeps until {at} ns"),
            };
            text +=
                &format!("\n  {id} {}: {state}, last at {}", sleeper.task.name(), self.record.describe(point, object));
        }
        text
    }
}

/// What the clock finds when nobody else can run.
enum Tick {
    Wake(Vec<Thread>),
    /// Somebody only yields.
    Others,
    Over,
    Stuck(String),
}

fn tick() -> Tick {
    with(|state| {
        if !state.tasks.iter().enumerate().any(|(id, s)| s.alive && id != CLOCK) {
            return Tick::Over;
        }
        let can_run = |s: &Sleeper| s.alive && !s.parked && !s.blocked(&state.tasks);
        if state.tasks.iter().enumerate().any(|(id, s)| id != CLOCK && can_run(s)) {
            return Tick::Others;
        }
        state.ticks += 1;
        let due = state.tasks.iter().filter(|s| s.alive && s.parked).filter_map(|s| s.deadline_ns).min();
        match due {
            Some(due) if state.ticks <= MAX_TICKS => {
                state.now_ns = state.now_ns.max(due);
                let now = state.now_ns;
                let woken =
                    state.tasks.iter_mut().filter(|s| s.alive && s.parked && s.deadline_ns.is_some_and(|at| at <= now));
                Tick::Wake(
                    woken
                        .filter_map(|s| {
                            s.parked = false;
                            s.thread.clone()
                        })
                        .collect(),
                )
            }
            Some(_) => Tick::Stuck(format!("time passes, and no task of the world runs:{}", state.report())),
            None => Tick::Stuck(format!("deadlock, or a lost wake-up:{}", state.report())),
        }
    })
}

/// Moves the time whenever nobody else can run, until nobody is left.
fn clock() {
    loop {
        switch();
        match tick() {
            Tick::Over => return,
            Tick::Others => {}
            Tick::Wake(threads) => {
                with(|state| state.record.barrier());
                hold(|| threads.iter().for_each(Thread::unpark));
            }
            Tick::Stuck(report) => panic!("{report}"),
        }
    }
}

pub(super) fn park(deadline_ns: Option<u64>) {
    let task = super::host::current();
    let me = core::ptr::from_ref(task);
    if task.token().swap(EMPTY, Ordering::Relaxed) == NOTIFIED {
        return with(|state| state.record.access(me.addr(), Touch::Take));
    }
    if deadline_ns.is_some_and(|deadline| deadline <= now_ns()) {
        return point(Point::Yield, 0);
    }
    with(|state| {
        bug_on!(state.in_hook, "a look at the world's state sleeps");
        state.note(Point::Park, me.addr());
        let current = state.current;
        state.tasks[current].parked = true;
        state.tasks[current].deadline_ns = deadline_ns;
    });
    step_hook();
    shuttle::thread::park();
    resumed(me);
    task.token().store(EMPTY, Ordering::Relaxed);
    with(|state| {
        let current = state.current;
        state.tasks[current].parked = false;
        state.tasks[current].deadline_ns = None;
        if state.tasks[current].own {
            state.ticks = 0;
        }
        state.note(Point::Woken, me.addr());
    });
}

pub(super) fn unpark(task: &'static Task) {
    point(Point::Unpark, core::ptr::from_ref(task).addr());
    task.token().store(NOTIFIED, Ordering::Relaxed);
    let id = task.host.sim.load(Ordering::Relaxed) as usize;
    let thread = with(|state| match state.tasks.get_mut(id) {
        Some(sleeper) if core::ptr::eq(sleeper.task, task) && sleeper.parked => {
            sleeper.parked = false;
            sleeper.thread.clone()
        }
        _ => None,
    });
    if let Some(thread) = thread {
        hold(|| thread.unpark());
    }
}

pub(super) fn yield_now() {
    point(Point::Yield, 0);
}

/// Nobody ever holds a spinlock while another runs, so whoever spins waits for something else.
pub(super) fn spin_relax() {
    bug_on!(atomic(), "spinning for ever");
    yield_now();
}

pub(super) fn now_ns() -> u64 {
    with(|state| state.now_ns)
}

pub(super) fn real_ns() -> u64 {
    EPOCH_NS + now_ns()
}

pub(super) fn nr_cpus() -> u32 {
    with(|state| state.nr_cpus)
}

pub(super) fn spawn(name: &'static str, entry: fn(*mut ()), arg: *mut ()) -> &'static Task {
    /// Whoever spawns a thread hands `arg` over to it.
    struct Arg(*mut ());
    // SAFETY: see there; and all tasks are on one thread of the host.
    unsafe impl Send for Arg {}
    let arg = Arg(arg);
    start(name, move || {
        let arg = arg;
        entry(arg.0);
    })
}

/// A task that runs `f`. Any context.
pub(crate) fn start(name: &'static str, f: impl FnOnce() + Send + 'static) -> &'static Task {
    let (id, task) = with(|state| state.add(name));
    let body = move || {
        resumed(task);
        with(|state| state.note(Point::Start, core::ptr::from_ref(task).addr()));
        f();
        with(|state| {
            state.note(Point::Exit, core::ptr::from_ref(task).addr());
            state.tasks[id].alive = false;
        });
    };
    let me = CURRENT.get();
    let handle = hold(|| shuttle::thread::spawn(body));
    bug_on!(usize::from(handle.thread().id()) != id, "a task that the simulation does not know");
    resumed(me);
    with(|state| {
        state.tasks[id].thread = Some(handle.thread().clone());
        state.record.access(core::ptr::from_ref(task).addr(), Touch::Change);
    });
    task
}

/// Marks the running task as one of the world's own: time does not pass for ever without these.
pub fn own_task() {
    with(|state| {
        let current = state.current;
        state.tasks[current].own = true;
    });
}

/// While this lives tasks change only when the running one sleeps, and devices complete at once.
#[must_use = "ends when it is dropped"]
pub struct Quiet(());

/// No more changes of tasks than needed, for what a world prepares. A no-op outside of simulations.
pub fn quiet() -> Quiet {
    if inside() {
        with(|state| {
            state.quiet += 1;
            state.record.hush();
        });
    }
    Quiet(())
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if inside() {
            with(|state| {
                state.quiet -= 1;
                if state.quiet == 0 {
                    // What follows belongs to no decision.
                    state.record.step(state.current, &[state.current], false);
                }
            });
        }
    }
}

/// Lets all others run until they sleep: threads that were started and have nothing to do yet.
pub fn settle() {
    let busy = |state: &mut State| {
        let current = state.current;
        let can_run = |s: &Sleeper| s.alive && !s.parked && !s.blocked(&state.tasks);
        state.tasks.iter().enumerate().any(|(id, s)| id != CLOCK && id != current && can_run(s))
    };
    while with(busy) {
        yield_now();
    }
}

/// Whether there is a [`Quiet`], or nothing is simulated at all.
pub fn is_quiet() -> bool {
    !inside() || with(|state| state.quiet != 0)
}

/// Calls `hook` at each step from now on, with no task running: it looks at the world, and panics if it finds something wrong. It may
/// take spinlocks, and try to take others; it must not sleep or wake.
pub fn on_step(hook: impl Fn() + 'static) {
    let hook: Hook = Rc::new(hook);
    let before = with(|state| state.hook.replace(hook));
    drop(before);
}

/// Ends [`on_step`].
pub fn end_on_step() {
    let before = with(|state| state.hook.take());
    drop(before);
}

/// A number below `n`, which is the simulation's choice as the order of tasks is.
pub fn choose(n: u64) -> u64 {
    let policy = with(|state| state.policy.clone());
    let chosen = if n <= 1 { 0 } else { policy.borrow_mut().choose(n).min(n - 1) };
    with(|state| state.record.choice(chosen));
    chosen
}

/// Lets `ns` nanoseconds pass at once.
pub fn advance(ns: u64) {
    with(|state| state.now_ns = state.now_ns.saturating_add(ns));
}

/// How many decisions there were so far.
pub fn steps() -> u64 {
    with(|state| state.steps)
}

/// Looks at the steps of the run so far.
pub fn recorded<R>(f: impl FnOnce(SoFar<'_>) -> R) -> R {
    with(|state| f(state.record.so_far()))
}

/// The number of the running task in its simulation.
pub fn current_id() -> usize {
    with(|state| state.current)
}

/// Puts a line into the trace, if there is one.
pub fn note(text: impl FnOnce() -> String) {
    if inside() {
        with(|state| {
            if state.record.wants_text() && !state.in_hook {
                let name = state.tasks.get(state.current).map_or("", |s| s.task.name());
                state.record.text(state.current, name, text());
            }
        });
    }
}

/// Tells what `object` is called in traces. Memory that is used again may bear the name of what was there before.
pub fn name<T: ?Sized>(object: &T, name: &'static str) {
    if inside() {
        with(|state| state.record.name(core::ptr::from_ref(object).cast::<()>().addr(), name));
    }
}

/// A tracepoint of the code under test: tasks may change there.
#[cfg(feature = "fault-injection")]
pub(crate) fn trace(name: &'static str) {
    if inside() {
        note(|| String::from(name));
        point(Point::Trace, 0);
    }
}
