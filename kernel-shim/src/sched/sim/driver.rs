// SPDX-License-Identifier: GPL-2.0-only
//! [`run`]: shuttle's runner with a scheduler that asks a [`Policy`].

use core::cell::RefCell;
use std::borrow::ToOwned;
use std::boxed::Box;
use std::format;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::rc::Rc;
use std::string::String;
use std::sync::Once;
use std::vec::Vec;

use shuttle::scheduler::{Schedule, Scheduler, Task as ShuttleTask, TaskId};
use shuttle::{FailurePersistence, MaxSteps, Runner};

use super::{
    CLOCK, CURRENT, Entry, INSIDE, IRQ_DEPTH, POOL, Recording, SPIN_DEPTH, STATE, State, Step, clock, start, with,
};

/// Who decides.
pub trait Policy {
    /// Before a run; whether there is to be another one.
    fn begin(&mut self) -> bool;

    /// Which of `tasks` (at least two, by number, ascending) runs next. `current` is the one that ran, if it could go on;
    /// `yielding` if it would rather not, in which case it is not among `tasks`. `None` gives the run up.
    fn next(&mut self, tasks: &[usize], current: Option<usize>, yielding: bool) -> Option<usize>;

    /// A number below `n`.
    fn choose(&mut self, n: u64) -> u64;

    /// After a run that has not failed, with what was recorded of it.
    fn end(&mut self, recorded: Recorded);
}

/// What was recorded of a run: what [`Recording`] asked for.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The decisions, but for those that were made in a [`Quiet`](super::Quiet).
    pub steps: Vec<Step>,
    /// The trace.
    pub trace: Vec<Entry>,
    /// How many decisions there were.
    pub decisions: u64,
}

/// How simulations are run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of stack of each task.
    pub stack_size: usize,
    /// How many CPUs there seem to be.
    pub nr_cpus: u32,
    /// More decisions than this in one run are taken for a livelock.
    pub max_steps: usize,
    /// What is noted down.
    pub recording: Recording,
    /// Locking is one step: see the head of [`sched::sim`](super).
    pub lock_steps: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stack_size: 512 << 10,
            nr_cpus: 4,
            max_steps: 1_000_000,
            recording: Recording::Nothing,
            lock_steps: false,
        }
    }
}

/// A run that failed.
#[derive(Debug)]
pub struct Failure {
    /// What the panic said.
    pub message: String,
    /// How many decisions there were.
    pub steps: u64,
    /// What was recorded.
    pub trace: Vec<Entry>,
}

/// Asks the policy whenever there is something to decide.
struct Driver {
    policy: Rc<RefCell<dyn Policy>>,
    runnable: Vec<usize>,
    first: bool,
}

impl Scheduler for Driver {
    fn new_execution(&mut self) -> Option<Schedule> {
        if !core::mem::replace(&mut self.first, false) {
            let recorded = finish_run();
            self.policy.borrow_mut().end(recorded);
        }
        self.policy.borrow_mut().begin().then(|| Schedule::new(0))
    }

    fn next_task(&mut self, tasks: &[&ShuttleTask], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        let current = current.map(usize::from);
        // Those that only wait for a wake-up are offered as well: it might come for no reason.
        let runnable = tasks.iter().filter(|task| task.runnable()).map(|task| usize::from(task.id()));
        self.runnable.clear();
        self.runnable.extend(runnable);
        let current = current.filter(|id| self.runnable.binary_search(id).is_ok());
        self.decide(current, yielding).map(TaskId::from)
    }

    fn next_u64(&mut self) -> u64 {
        self.policy.borrow_mut().choose(u64::MAX)
    }
}

impl Driver {
    fn decide(&mut self, current: Option<usize>, yielding: bool) -> Option<usize> {
        let before = STATE.with_borrow(|state| state.as_ref().map(|state| (state.hold, state.quiet != 0)));
        // Before the world has begun, there is one.
        let Some((hold, quiet)) = before else { return self.runnable.first().copied() };
        if hold && let Some(current) = current {
            return Some(current);
        }
        with(|state| self.runnable.retain(|id| !state.tasks[*id].blocked(&state.tasks)));
        let yielding = yielding && current.is_some();
        // The clock runs when nobody else can.
        let others = self.runnable.iter().any(|id| *id != CLOCK && !(yielding && Some(*id) == current));
        if others {
            self.runnable.retain(|id| *id != CLOCK && !(yielding && Some(*id) == current));
        } else if self.runnable.len() > 1 {
            // One that looks for something again and again, and time, by turns.
            self.runnable.retain(|id| !(yielding && Some(*id) == current));
        }
        let current = current.filter(|id| self.runnable.contains(id));
        let next = match (self.runnable.as_slice(), current) {
            ([only], _) => *only,
            (_, Some(current)) if quiet => current,
            (all, None) if quiet => *all.first()?,
            (all, current) => self.policy.borrow_mut().next(all, current, yielding)?,
        };
        with(|state| {
            state.steps += 1;
            state.record.step(next, &self.runnable, quiet);
        });
        Some(next)
    }
}

std::thread_local! {
    /// The thread's task outside of simulations, if it has one: between two runs, too, it has no other.
    static OUTSIDE: core::cell::Cell<*const crate::sched::Task> = const { core::cell::Cell::new(core::ptr::null()) };
}

/// Ends the run that is over; what was recorded.
fn finish_run() -> Recorded {
    INSIDE.set(false);
    CURRENT.set(OUTSIDE.get());
    let Some(mut state) = STATE.take() else { return Recorded::default() };
    POOL.with_borrow_mut(|pool| pool.extend(state.tasks.iter().rev().map(|s| s.task)));
    let (steps, trace) = state.record.take();
    Recorded { steps, trace, decisions: state.steps }
}

/// The first task: the world.
fn main(config: &Config, policy: Rc<RefCell<dyn Policy>>, world: &dyn Fn()) {
    STATE.set(Some(State::new(config, policy)));
    let (_, task) = with(|state| state.add("world"));
    OUTSIDE.set(CURRENT.replace(task));
    INSIDE.set(true);
    with(|state| state.tasks[0].thread = Some(shuttle::thread::current()));
    start("clock", clock);
    world();
    with(|state| {
        state.hook = None;
        state.tasks[0].alive = false;
    });
}

std::thread_local! {
    /// What the first panic of the run said, and where it was.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn text(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let message = payload.downcast_ref::<String>().cloned();
    let message = message.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    info.location().map_or_else(|| message.clone(), |at| format!("{message} ({at})"))
}

/// Has panics of simulations noted: what reaches the end of a run may be another one, or none.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            // No longer there when the thread ends; and nobody has it borrowed where a panic can be.
            let _ = PANIC.try_with(|slot| slot.borrow_mut().get_or_insert_with(|| text(info)).len());
            before(info);
        }));
    });
}

/// What only this thread uses, though shuttle's types do not know it.
struct Here<T>(T);

// SAFETY: shuttle runs everything on the thread that it was called on.
unsafe impl<T> Send for Here<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Here<T> {}

/// Runs `world` as often as `policy` wants, each time as the first task of a simulation of its own. The number of runs.
///
/// # Errors
///
/// The first run that panicked, deadlocked, or took too many steps. What it had is leaked.
pub fn run(config: Config, policy: Rc<RefCell<dyn Policy>>, world: impl Fn() + 'static) -> Result<usize, Failure> {
    bug_on!(super::inside(), "a simulation in a simulation");
    note_panics();
    PANIC.set(None);
    let outside = CURRENT.replace(core::ptr::null());
    let driver = Driver { policy: policy.clone(), runnable: Vec::new(), first: true };
    let mut shuttle = shuttle::Config::new();
    shuttle.stack_size = config.stack_size;
    shuttle.failure_persistence = FailurePersistence::None;
    shuttle.max_steps = MaxSteps::FailAfter(config.max_steps);
    shuttle.silence_warnings = true;
    shuttle.ungraceful_shutdown_config.immediately_return_on_panic = true;
    let inner = Here((config, policy, world));
    let result = catch_unwind(AssertUnwindSafe(|| {
        Runner::new(driver, shuttle).run(move || {
            let Here((config, policy, world)) = &inner;
            main(config, policy.clone(), world);
        })
    }));
    let failure = result.map_err(|_| {
        let mut state = STATE.take();
        let trace = state.as_mut().map(|state| state.record.take().1).unwrap_or_default();
        // What was leaked may be in use for ever: the tasks do not go back.
        let message = PANIC.take().unwrap_or_default();
        Failure { message, steps: state.map_or(0, |state| state.steps), trace }
    });
    INSIDE.set(false);
    STATE.set(None);
    IRQ_DEPTH.set(0);
    SPIN_DEPTH.set(0);
    CURRENT.set(outside);
    failure
}
