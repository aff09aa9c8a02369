// SPDX-License-Identifier: GPL-2.0-only
//! All orders of a small world: [`Exhaustive`].
//!
//! Two orders that differ only in how steps follow each other that have nothing in common end alike, so one of them is enough. That is
//! dynamic partial-order reduction (Flanagan and Godefroid, 2005), with sleep sets: after a run, each step is looked at together with the
//! last step of another task before it that touched the same object (one of them changing it) and that did not have to come first; where
//! that step was decided on, the other task is tried as well. What steps touch is what [`kernel_shim::sched::sched_point`] and
//! [`kernel_shim::sched::sched_access`] say: locks, wake-ups, the sectors of requests, and the atomics that decide anything. What they do
//! not say does not count: statistics, reference counts, the numbers that pools give away, and whatever its lock protects.
//!
//! [`Exhaustive::every_order`] leaves nothing out; it is what the reduction is checked against.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Instant;

use kernel_shim::sched::sim::{self as machine, Access, Config, Entry, Failure, Policy, Recorded, Recording, Step};

use crate::sim::SEED_VAR;

/// The orders of a world, depth first: all, unless told to stop earlier.
#[derive(Clone, Debug)]
pub struct Exhaustive {
    name: String,
    reduce: bool,
    preemptions: Option<u32>,
    limit: u64,
    test: String,
}

/// What was covered.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    /// The world's name.
    pub name: String,
    /// Orders that were run and are not known to be like another.
    pub schedules: u64,
    /// Runs that turned out to be like another before they were over.
    pub redundant: u64,
    /// There are no others.
    pub complete: bool,
    /// At most so many changes of tasks where the running one could have gone on.
    pub preemptions: Option<u32>,
    /// Decisions in all.
    pub steps: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Covered {
    /// One line, also if the test passes.
    pub fn tell(&self) {
        let Self { name, schedules, redundant, steps, seconds, .. } = self;
        let what = match (self.complete, self.preemptions) {
            (true, None) => "all of them".to_string(),
            (true, Some(n)) => format!("all with at most {n} preemptions"),
            (false, None) => "the first of more".to_string(),
            (false, Some(n)) => format!("the first of more with at most {n} preemptions"),
        };
        // Not through the macros, which libtest keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "sim: {name}: {schedules} schedules, {what}; {redundant} cut short as redundant, {steps} steps, {seconds:.1} s"
        );
    }
}

impl Exhaustive {
    /// All orders, but of those that must end alike as few as possible.
    pub fn new(name: &str) -> Self {
        let test = std::thread::current().name().unwrap_or_default().to_string();
        Self { name: name.to_string(), reduce: true, preemptions: None, limit: u64::MAX, test }
    }

    /// Each and every order.
    pub fn every_order(name: &str) -> Self {
        Self { reduce: false, ..Self::new(name) }
    }

    /// Only orders in which tasks that could go on are stopped so often at most.
    #[must_use]
    pub fn preemptions(mut self, most: Option<u32>) -> Self {
        self.preemptions = most;
        self
    }

    /// Gives up after so many runs.
    #[must_use]
    pub fn at_most(mut self, runs: u64) -> Self {
        self.limit = runs;
        self
    }

    /// Runs `world` in all orders. Panics if one fails, and says which.
    pub fn run(self, world: impl Fn() + 'static) -> Covered {
        let start = Instant::now();
        let replay = match std::env::var(SEED_VAR) {
            Err(_) => None,
            Ok(wanted) => match wanted.strip_prefix(&format!("{}=s:", self.name)) {
                Some(schedule) => Some(parse(schedule)),
                None => return Covered { name: self.name, ..Covered::default() },
            },
        };
        let recording = if replay.is_some() { Recording::Trace } else { Recording::Steps };
        let policy = Rc::new(RefCell::new(Explorer::new(&self, replay.clone())));
        let config = Config { recording, max_steps: 100_000, ..Config::default() };
        let result = machine::run(config, policy.clone(), world);
        let explorer = policy.borrow();
        if replay.is_some() {
            let empty = Vec::new();
            print(result.as_ref().err().map_or(explorer.trace.as_ref().unwrap_or(&empty), |failure| &failure.trace));
        }
        if let Err(failure) = result {
            panic!("{}", self.explain(&explorer, &failure));
        }
        Covered {
            name: self.name.clone(),
            schedules: explorer.schedules,
            redundant: explorer.redundant,
            complete: explorer.complete,
            preemptions: self.preemptions,
            steps: explorer.steps,
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    fn explain(&self, explorer: &Explorer, failure: &Failure) -> String {
        format!(
            "world \"{}\" fails in its schedule number {}: {}\nreplay: {SEED_VAR}='{}=s:{}' cargo test -p ext4-dio-tests --test sim -- \
             --exact {} --nocapture",
            self.name,
            explorer.schedules + explorer.redundant + 1,
            failure.message,
            self.name,
            explorer.schedule(),
            self.test
        )
    }
}

fn print(trace: &[Entry]) {
    let mut text = String::new();
    for entry in trace {
        let _ = writeln!(text, "{entry:?}");
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Decisions as text: `3*12.0` is twelve times task 3, then task 0.
fn parse(text: &str) -> Vec<usize> {
    let one = |word: &str| {
        let (task, times) = word.split_once('*').unwrap_or((word, "1"));
        Some(std::iter::repeat_n(task.parse().ok()?, times.parse().ok()?))
    };
    text.split('.').filter_map(one).flatten().collect()
}

/// What a task did where it is not tried again.
#[derive(Clone)]
struct Sleeper {
    task: usize,
    accesses: Vec<Access>,
    /// How many objects had a number then. Others were new, and may have other numbers, or other objects theirs, in other runs.
    known: usize,
}

impl Sleeper {
    fn depends_on(&self, step: &Step) -> bool {
        let place =
            |access: &Access| (access.object < self.known || access.object >= Access::STABLE).then_some(access.object);
        let clash = |a: &Access, b: &Access| place(a) == place(b) && (a.write || b.write);
        step.task == self.task || self.accesses.iter().any(|a| step.accesses.iter().any(|b| clash(a, b)))
    }
}

/// A decision.
struct Node {
    /// What could have been decided: tasks, or numbers if it is not about tasks.
    enabled: Vec<usize>,
    chosen: usize,
    /// Which step it began; `None` for a number.
    step: Option<usize>,
    /// To be tried.
    backtrack: BTreeSet<usize>,
    /// Tried, and what the step touched.
    done: Vec<Sleeper>,
    /// Need not be tried: it was at an earlier decision, and since then nothing has happened that has to do with it.
    sleep: Vec<Sleeper>,
    /// Objects that had a number, and what they were touched by.
    known: usize,
    digest: u64,
    /// The run under way came here with objects that have other numbers.
    other: bool,
    /// Who ran before and could go on.
    current: Option<usize>,
    /// Preemptions up to here.
    preemptions: u32,
}

impl Node {
    fn asleep(&self, task: usize) -> bool {
        self.step.is_some() && self.sleep.iter().any(|sleeper| sleeper.task == task)
    }

    fn preempts(&self, task: usize) -> bool {
        self.step.is_some() && self.current.is_some_and(|current| current != task)
    }
}

/// Tries one order after the other, depth first.
struct Explorer {
    reduce: bool,
    bound: Option<u32>,
    limit: u64,
    nodes: Vec<Node>,
    /// How many decisions of the run under way were made.
    depth: usize,
    /// All that could run were asleep: the rest of this run is like another's.
    cut: bool,
    replay: Option<Vec<usize>>,
    begun: bool,
    schedules: u64,
    redundant: u64,
    steps: u64,
    complete: bool,
    trace: Option<Vec<Entry>>,
}

impl Explorer {
    fn new(of: &Exhaustive, replay: Option<Vec<usize>>) -> Self {
        Self {
            reduce: of.reduce,
            bound: of.preemptions,
            limit: of.limit,
            nodes: Vec::new(),
            depth: 0,
            cut: false,
            replay,
            begun: false,
            schedules: 0,
            redundant: 0,
            steps: 0,
            complete: false,
            trace: None,
        }
    }

    /// The decisions of the run under way.
    fn schedule(&self) -> String {
        if let Some(replay) = &self.replay {
            return replay.iter().map(ToString::to_string).collect::<Vec<_>>().join(".");
        }
        let chosen: Vec<usize> =
            self.nodes[..self.depth.min(self.nodes.len())].iter().map(|node| node.chosen).collect();
        let runs = chosen.chunk_by(|a, b| a == b).map(|run| match run {
            [one] => one.to_string(),
            many => format!("{}*{}", many[0], many.len()),
        });
        runs.collect::<Vec<_>>().join(".")
    }

    /// A decision that was not made before.
    fn decide(&mut self, enabled: &[usize], current: Option<usize>, step: Option<usize>) -> usize {
        let preemptions = self.nodes.last().map_or(0, |last| last.preemptions + u32::from(last.preempts(last.chosen)));
        // With a bound, an order like this one may have been left out for its preemptions.
        let sleep = if self.reduce && self.bound.is_none() { self.sleepers() } else { Vec::new() };
        let (known, digest) = machine::recorded(|so_far| (so_far.objects, so_far.digest));
        let mut node = Node {
            enabled: enabled.to_vec(),
            known,
            digest,
            other: false,
            chosen: 0,
            step,
            backtrack: BTreeSet::new(),
            done: Vec::new(),
            sleep,
            current: current.filter(|current| enabled.contains(current)),
            preemptions,
        };
        let awake = |task: &&usize| !node.asleep(**task);
        let preferred = node.current.filter(|task| awake(&task)).or_else(|| enabled.iter().find(awake).copied());
        let chosen = match preferred {
            Some(task) => task,
            None => {
                self.cut = true;
                node.current.unwrap_or(enabled[0])
            }
        };
        node.chosen = chosen;
        if step.is_none() || !self.reduce {
            node.backtrack.extend(enabled);
        }
        if let Some(current) = node.current
            && self.bound.is_some()
        {
            // Not a preemption: free of charge, and where a bound cuts off what the reduction relies on, this must not be lost.
            node.backtrack.insert(current);
        }
        self.nodes.push(node);
        chosen
    }

    /// Who need not be tried at the next decision.
    fn sleepers(&self) -> Vec<Sleeper> {
        let Some(last) = self.nodes.last() else { return Vec::new() };
        if last.other {
            return Vec::new();
        }
        let Some(first) = last.step else { return last.sleep.clone() };
        machine::recorded(|so_far| {
            let candidates = last.sleep.iter().chain(&last.done).filter(|sleeper| sleeper.task != last.chosen);
            candidates
                .filter(|sleeper| !so_far.steps[first..].iter().any(|step| sleeper.depends_on(step)))
                .cloned()
                .collect()
        })
    }

    /// Finds what else is to be tried.
    fn analyse(&mut self, steps: &[Step]) {
        let by_step: BTreeMap<usize, usize> =
            self.nodes.iter().enumerate().filter_map(|(n, node)| Some((node.step?, n))).collect();
        let mut history = History::default();
        for (at, step) in steps.iter().enumerate() {
            if let Some(before) = history.race(step) {
                let helpers = history.helpers(steps, before, at);
                if let Some(node) = by_step.get(&before) {
                    self.add(*node, step.task, &helpers);
                }
                if self.bound.is_some() {
                    self.add_at_start_of_block(steps, &by_step, before, step.task, &helpers);
                }
            }
            history.push(at, step);
        }
    }

    /// Has `task` tried at a decision, or else one that `task` needs, or else all.
    fn add(&mut self, node: usize, task: usize, helpers: &[usize]) {
        let node = &mut self.nodes[node];
        if node.enabled.contains(&task) {
            node.backtrack.insert(task);
        } else if helpers.iter().any(|helper| node.backtrack.contains(helper)) {
            // One of those is enough.
        } else if let Some(helper) = helpers.iter().find(|helper| node.enabled.contains(helper)) {
            node.backtrack.insert(*helper);
        } else {
            node.backtrack.extend(node.enabled.iter().copied());
        }
    }

    /// With a bound on preemptions: where the task of step `before` last began to run, the other may run first without one (Coons,
    /// Musuvathi and McKinley, 2013).
    fn add_at_start_of_block(
        &mut self,
        steps: &[Step],
        by_step: &BTreeMap<usize, usize>,
        before: usize,
        task: usize,
        helpers: &[usize],
    ) {
        let who = steps[before].task;
        let start = (0..=before).rev().take_while(|at| steps[*at].task == who).last();
        if let Some(node) = start.and_then(|start| by_step.get(&start)) {
            self.add(*node, task, helpers);
        }
    }

    /// Goes on to the next order; whether there is one.
    fn advance(&mut self) -> bool {
        while let Some(node) = self.nodes.last() {
            let bound = self.bound.unwrap_or(u32::MAX);
            let open = |task: &&usize| {
                !node.done.iter().any(|done| done.task == **task)
                    && (self.bound.is_some() || !node.asleep(**task))
                    && node.preemptions + u32::from(node.preempts(**task)) <= bound
            };
            let next = node.backtrack.iter().find(open).copied();
            match next {
                Some(next) => {
                    if let Some(node) = self.nodes.last_mut() {
                        node.chosen = next;
                    }
                    return true;
                }
                None => drop(self.nodes.pop()),
            }
        }
        false
    }
}

impl Policy for Explorer {
    fn begin(&mut self) -> bool {
        self.depth = 0;
        self.cut = false;
        if !std::mem::replace(&mut self.begun, true) {
            return true;
        }
        if self.replay.is_some() {
            return false;
        }
        if !self.advance() {
            self.complete = true;
            return false;
        }
        self.schedules + self.redundant < self.limit
    }

    fn next(&mut self, tasks: &[usize], current: Option<usize>, _yielding: bool) -> Option<usize> {
        let depth = self.depth;
        self.depth += 1;
        if let Some(replay) = &self.replay {
            let chosen = replay.get(depth).copied().filter(|task| tasks.contains(task));
            return Some(chosen.or(current).unwrap_or(tasks[0]));
        }
        if let Some(node) = self.nodes.get_mut(depth) {
            assert_eq!(node.enabled, tasks, "the same choices have led elsewhere");
            node.other = machine::recorded(|so_far| so_far.digest != node.digest);
            return Some(node.chosen);
        }
        if self.cut {
            return Some(current.unwrap_or(tasks[0]));
        }
        let step = machine::recorded(|so_far| so_far.steps.len());
        Some(self.decide(tasks, current, Some(step)))
    }

    fn choose(&mut self, n: u64) -> u64 {
        let depth = self.depth;
        self.depth += 1;
        if let Some(replay) = &self.replay {
            return replay.get(depth).map_or(0, |chosen| *chosen as u64);
        }
        if let Some(node) = self.nodes.get(depth) {
            return node.chosen as u64;
        }
        if self.cut {
            return 0;
        }
        let numbers: Vec<usize> = (0..n as usize).collect();
        self.decide(&numbers, None, None) as u64
    }

    fn end(&mut self, recorded: Recorded) {
        self.steps += recorded.decisions;
        if self.replay.is_some() {
            self.trace = Some(recorded.trace);
            self.schedules += 1;
            return;
        }
        if self.cut {
            self.redundant += 1;
        } else {
            self.schedules += 1;
        }
        if self.reduce {
            self.analyse(&recorded.steps);
        }
        for node in &mut self.nodes {
            let accesses = match node.step {
                Some(step) if self.bound.is_none() => recorded.steps[step].accesses.clone(),
                _ => Vec::new(),
            };
            // What was recorded in a run with other numbers says nothing to others: that task is not left out anywhere.
            let known = if node.other { 0 } else { node.known };
            if !node.done.iter().any(|done| done.task == node.chosen) {
                node.done.push(Sleeper { task: node.chosen, accesses, known });
            }
        }
    }
}

/// What a task knows of the others: the number of their last step, plus 1, that had to come before.
type Clock = BTreeMap<usize, usize>;

fn join(clock: &mut Clock, other: &Clock) {
    for (task, at) in other {
        let known = clock.entry(*task).or_default();
        *known = (*known).max(*at);
    }
}

/// Steps so far, by what they touched.
#[derive(Default)]
struct History {
    tasks: BTreeMap<usize, Clock>,
    /// By step.
    clocks: Vec<Clock>,
    /// By step.
    owners: Vec<usize>,
    objects: BTreeMap<usize, Object>,
}

#[derive(Default)]
struct Object {
    /// The last step that changed it.
    write: Option<usize>,
    /// The last step of each task that looked at it after that.
    reads: BTreeMap<usize, usize>,
}

impl History {
    /// The steps that touched the same as `access`, and that it matters to have before or after it.
    fn conflicts(&self, access: &Access) -> impl Iterator<Item = usize> {
        let object = self.objects.get(&access.object);
        let write = object.and_then(|object| object.write);
        let reads = object.filter(|_| access.write).into_iter().flat_map(|object| object.reads.values().copied());
        write.into_iter().chain(reads)
    }

    /// The last step of another task that `step` is in a race with.
    fn race(&self, step: &Step) -> Option<usize> {
        if step.barrier {
            return None;
        }
        let clock = self.tasks.get(&step.task);
        let known = |at: usize| clock.and_then(|clock| clock.get(&self.owners[at])).is_some_and(|seen| *seen > at);
        let all = step.accesses.iter().flat_map(|access| self.conflicts(access));
        all.filter(|at| self.owners[*at] != step.task && !known(*at)).max()
    }

    /// Tasks with a step after `before` that had to come before step `at`, which is the next.
    fn helpers(&self, steps: &[Step], before: usize, at: usize) -> Vec<usize> {
        let Some(clock) = self.tasks.get(&steps[at].task) else { return Vec::new() };
        let since = |task: &usize| clock.get(task).is_some_and(|seen| *seen > before + 1);
        clock.keys().copied().filter(|task| *task != steps[before].task && since(task)).collect()
    }

    fn push(&mut self, at: usize, step: &Step) {
        let mut clock = self.tasks.get(&step.task).cloned().unwrap_or_default();
        if step.barrier {
            for other in &self.clocks {
                join(&mut clock, other);
            }
        }
        for access in &step.accesses {
            for other in self.conflicts(access).collect::<Vec<_>>() {
                join(&mut clock, &self.clocks[other]);
            }
        }
        clock.insert(step.task, at + 1);
        for access in &step.accesses {
            let object = self.objects.entry(access.object).or_default();
            if access.write {
                object.write = Some(at);
                object.reads.clear();
            } else {
                object.reads.insert(step.task, at);
            }
        }
        self.tasks.insert(step.task, clock.clone());
        self.clocks.push(clock);
        self.owners.push(step.task);
    }
}
