// SPDX-License-Identifier: GPL-2.0-only
//! All orders of a small world: [`Exhaustive`].
//!
//! Two orders that differ only in how steps follow each other that have nothing in common end alike, so one of them is enough. That is
//! dynamic partial-order reduction (Flanagan and Godefroid, 2005), with sleep sets and source sets (Abdulla, Aronis, Jonsson and Sagonas,
//! 2014): after a run, each step is looked at together with those of other tasks before it that touched the same object, not in ways that
//! commute, and that did not have to come first; where such a step was decided on, one is tried as well that leads to the two the other
//! way round. What steps touch is what [`kernel_shim::sched::sched_point`] and
//! [`kernel_shim::sched::sched_access`] say: locks, wake-ups, the sectors of requests, and the atomics that decide anything. What they do
//! not say does not count: statistics, reference counts, the numbers that pools give away, and whatever its lock protects.
//!
//! With [`Exhaustive::lock_steps`] locking is one step: tasks wait for locks, for requests and for the ends of other tasks without
//! being seen to queue. All orders in which they get locks are there; those in which queues are joined and left are not.
//!
//! [`Exhaustive::every_order`] leaves nothing out; it is what the reduction is checked against.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Instant;

use kernel_shim::sched::Touch;
use kernel_shim::sched::sim::{self as machine, Access, Config, Entry, Failure, Policy, Recorded, Recording, Step};

use crate::sim::SEED_VAR;

/// The orders of a world, depth first: all, unless told to stop earlier.
#[derive(Clone, Debug)]
pub struct Exhaustive {
    name: String,
    reduce: bool,
    lock_steps: bool,
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
        Self { name: name.to_string(), reduce: true, lock_steps: false, preemptions: None, limit: u64::MAX, test }
    }

    /// Each and every order.
    pub fn every_order(name: &str) -> Self {
        Self { reduce: false, ..Self::new(name) }
    }

    /// Locking is one step.
    #[must_use]
    pub fn lock_steps(mut self) -> Self {
        self.lock_steps = true;
        self
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
        let config = Config { recording, max_steps: 100_000, lock_steps: self.lock_steps, ..Config::default() };
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
        let clash = |a: &Access, b: &Access| place(a) == place(b) && !a.touch.commutes(b.touch);
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
    /// All that could run at this step were asleep: the rest of this run is like another's.
    cut: Option<usize>,
    /// At which step the run under way leaves the one before.
    fresh: usize,
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
            cut: None,
            fresh: 0,
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
                self.cut = step;
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
        let (mut history, fresh) = (History::default(), self.fresh);
        for (at, step) in steps.iter().enumerate() {
            // What is in a race with what within the common part is known from the run before.
            let races = history.push(at, step);
            for race in races.into_iter().filter(|_| at >= fresh) {
                let Some(node) = by_step.get(&race.before).copied() else { continue };
                let initials = history.initials(race.before, at);
                if self.bound.is_none() {
                    self.add_source(node, &race, &initials);
                    continue;
                }
                self.add(node, &race, &initials);
                // Where the other task last began to run, this one may run first without a preemption (Coons, Musuvathi and McKinley,
                // 2013).
                let who = steps[race.before].task;
                let start = (0..=race.before).rev().take_while(|at| steps[*at].task == who).last();
                if let Some(node) = start.and_then(|start| by_step.get(&start)).copied() {
                    self.add(node, &race, &initials);
                }
            }
        }
    }

    /// Has one of `initials` tried at a decision, unless one is already: with each of them begins an order in which the race goes the
    /// other way.
    fn add_source(&mut self, node: usize, race: &Race, initials: &[usize]) {
        let node = &mut self.nodes[node];
        let possible = |task: &&usize| node.enabled.contains(task);
        if initials.iter().any(|task| node.backtrack.contains(task) || node.chosen == *task) {
            return;
        }
        if race.needed && !node.enabled.contains(&race.task) && initials.contains(&race.task) {
            // It waited for that very step.
            return;
        }
        let preferred = initials.iter().find(|task| **task == race.task && possible(task));
        match preferred.or_else(|| initials.iter().find(possible)).copied() {
            Some(task) => drop(node.backtrack.insert(task)),
            None => node.backtrack.extend(node.enabled.iter().copied()),
        }
    }

    /// Has the task tried at a decision, or else those that it may need, or else all.
    fn add(&mut self, node: usize, race: &Race, initials: &[usize]) {
        let node = &mut self.nodes[node];
        if node.enabled.contains(&race.task) {
            node.backtrack.insert(race.task);
            return;
        }
        let enabled: Vec<usize> = initials.iter().copied().filter(|task| node.enabled.contains(task)).collect();
        match (enabled.is_empty(), race.needed) {
            (false, _) => node.backtrack.extend(enabled),
            (true, false) => node.backtrack.extend(node.enabled.iter().copied()),
            (true, true) => {}
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
                        self.fresh = node.step.unwrap_or(0);
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
        self.cut = None;
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
        if self.cut.is_some() {
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
        if self.cut.is_some() {
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
        if self.cut.is_some() {
            self.redundant += 1;
        } else {
            self.schedules += 1;
        }
        if self.reduce {
            self.analyse(&recorded.steps[..self.cut.unwrap_or(recorded.steps.len())]);
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
type Clock = Vec<usize>;

fn join(clock: &mut Clock, other: &Clock) {
    if clock.len() < other.len() {
        clock.resize(other.len(), 0);
    }
    clock.iter_mut().zip(other).for_each(|(known, at)| *known = (*known).max(*at));
}

fn knows(clock: &Clock, task: usize, at: usize) -> bool {
    clock.get(task).is_some_and(|seen| *seen > at)
}

/// Two steps of which either might have come first.
struct Race {
    before: usize,
    /// The task of the second.
    task: usize,
    /// The second may have been waiting for the first.
    needed: bool,
}

/// Steps so far, by what they touched.
#[derive(Default)]
struct History {
    /// Of each task: its clock, and its steps.
    tasks: BTreeMap<usize, (Clock, Vec<usize>)>,
    /// By step.
    clocks: Vec<Clock>,
    /// By step.
    owners: Vec<usize>,
    /// By object: steps that touched it.
    objects: BTreeMap<usize, Vec<(usize, Touch)>>,
}

impl History {
    /// Steps that touched the same as `access`, and that it matters to have before or after it; the latest first, and none that the
    /// last comes after that commutes with none.
    fn conflicts<'a>(&'a self, access: &'a Access) -> impl Iterator<Item = (usize, Touch)> + 'a {
        let all = self.objects.get(&access.object).map_or(&[][..], Vec::as_slice);
        let alone = |(_, touch): &(usize, Touch)| matches!(touch, Touch::Acquire | Touch::Change | Touch::Take);
        let from = all.iter().rposition(alone).unwrap_or(0);
        let touch = if access.touch == Touch::Stays { Touch::Change } else { access.touch };
        all[from..].iter().rev().copied().filter(move |(_, before)| !before.commutes(touch))
    }

    /// Adds a step. Which others it is in a race with: those that nothing else says have to come before it.
    fn push(&mut self, at: usize, step: &Step) -> Vec<Race> {
        let mut clock = self.tasks.get(&step.task).map(|(clock, _)| clock.clone()).unwrap_or_default();
        let mut races = Vec::new();
        if step.barrier {
            self.clocks.iter().for_each(|other| join(&mut clock, other));
        }
        let mut conflicts: Vec<(usize, Touch, &Access)> = Vec::new();
        for access in &step.accesses {
            conflicts.extend(self.conflicts(access).map(|(before, touch)| (before, touch, access)));
        }
        conflicts.sort_by_key(|(before, ..)| std::cmp::Reverse(*before));
        let own = clock.clone();
        for (before, touch, access) in conflicts {
            let owner = self.owners[before];
            if owner == step.task || knows(&clock, owner, before) {
                continue;
            }
            if let Some(before) = self.turned(before, touch, access, &own) {
                let needed = matches!(access.touch, Touch::Take | Touch::Acquire | Touch::AcquireShared);
                races.push(Race { before, task: step.task, needed });
            }
            join(&mut clock, &self.clocks[before]);
        }
        self.add(at, step, clock);
        races
    }

    /// The step before which `access` might have been made rather than after `before`: that one, or the one that it ends, or none.
    fn turned(&self, before: usize, touch: Touch, access: &Access, own: &Clock) -> Option<usize> {
        match (access.touch, touch) {
            (Touch::After | Touch::Stays, _) => None,
            // A lock has to be unlocked first; but it might have been locked later.
            (Touch::Acquire | Touch::AcquireShared, Touch::Release | Touch::ReleaseShared) => {
                let locked = |touch| !matches!(touch, Touch::Release | Touch::ReleaseShared);
                let all = self.objects.get(&access.object)?;
                let earlier = || all.iter().rev().filter(|(at, touch)| *at < before && locked(*touch));
                let owner = self.owners[before];
                let mine = earlier().find(|(at, _)| self.owners[*at] == owner);
                let at = mine.or_else(|| earlier().next())?.0;
                (!knows(own, self.owners[at], at)).then_some(at)
            }
            _ => Some(before),
        }
    }

    fn add(&mut self, at: usize, step: &Step, mut clock: Clock) {
        if clock.len() <= step.task {
            clock.resize(step.task + 1, 0);
        }
        clock[step.task] = at + 1;
        for access in step.accesses.iter().filter(|access| access.touch != Touch::Stays) {
            self.objects.entry(access.object).or_default().push((at, access.touch));
        }
        let task = self.tasks.entry(step.task).or_default();
        task.0.clone_from(&clock);
        task.1.push(at);
        self.clocks.push(clock);
        self.owners.push(step.task);
    }

    /// Of the steps after `before` that need not come after it, up to `at`: the tasks of those that need not come after another.
    fn initials(&self, before: usize, at: usize) -> Vec<usize> {
        let who = self.owners[before];
        let mut firsts: Vec<(usize, usize)> = Vec::new();
        let mut initials = Vec::new();
        for next in before + 1..=at {
            let (task, clock) = (self.owners[next], &self.clocks[next]);
            if (next != at && knows(clock, who, before)) || firsts.iter().any(|(first, _)| *first == task) {
                continue;
            }
            if !firsts.iter().any(|(first, step)| knows(clock, *first, *step)) {
                initials.push(task);
            }
            firsts.push((task, next));
        }
        initials
    }
}
