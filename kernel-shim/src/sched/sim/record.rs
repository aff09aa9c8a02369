// SPDX-License-Identifier: GPL-2.0-only
//! What a simulation notes down: a trace for people and for comparing runs, and for each step what it touched.

use std::collections::BTreeMap;
use std::fmt;
use std::format;
use std::string::String;
use std::vec::Vec;

use crate::sched::{Point, Touch};

/// What is noted down of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// Nothing.
    Nothing,
    /// [`Entry`]s.
    Trace,
    /// [`Step`]s.
    Steps,
}

/// An object that a step touched, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Its number. From [`Access::STABLE`] on it is the same in all runs with the same decisions so far: allocated memory, sectors. Below,
    /// it says how many others were touched before it: stacks, what the world itself has allocated.
    pub object: usize,
    /// What was done to it.
    pub touch: Touch,
}

impl Access {
    /// See [`Access::object`].
    pub const STABLE: usize = 1 << 60;
}

/// From one decision to the next.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Who ran.
    pub task: usize,
    /// Who could have; ascending.
    pub enabled: Vec<usize>,
    /// What it touched.
    pub accesses: Vec<Access>,
    /// Before it time has passed: it comes after all that was before.
    pub barrier: bool,
}

/// What was recorded of the run that is under way.
#[derive(Clone, Copy, Debug)]
pub struct SoFar<'a> {
    /// The steps; the last one goes on.
    pub steps: &'a [Step],
    /// How many numbers below [`Access::STABLE`] there are.
    pub objects: usize,
    /// The same for runs whose steps have touched the same objects, by number, up to here.
    pub digest: u64,
}

/// A line of the trace.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// How many decisions there were before.
    pub step: u64,
    /// The number of the task.
    pub task: usize,
    /// Its name.
    pub name: &'static str,
    /// What it did.
    pub what: String,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6} {:3} {:<12} {}", self.step, self.task, self.name, self.what)
    }
}

/// Takes the notes.
pub(super) struct Recorder {
    wanted: Recording,
    /// Locking is one step.
    lock_steps: bool,
    /// Numbers of objects, in the order in which they were first seen: addresses differ between runs.
    objects: BTreeMap<usize, usize>,
    names: BTreeMap<usize, &'static str>,
    trace: Vec<Entry>,
    steps: Vec<Step>,
    step: u64,
    barrier: bool,
    quiet: bool,
    digest: u64,
    /// How many numbers were given that are below [`Access::STABLE`].
    known: usize,
    /// Memory in use, by address: its size, and its number.
    allocations: BTreeMap<usize, (usize, usize)>,
    /// How many allocations each task has made.
    nr_allocations: BTreeMap<usize, usize>,
}

fn mix(digest: u64, value: u64) -> u64 {
    (digest.rotate_left(7) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Recorder {
    pub(super) fn new(wanted: Recording, lock_steps: bool) -> Self {
        Self {
            wanted,
            lock_steps,
            objects: BTreeMap::new(),
            names: BTreeMap::new(),
            trace: Vec::new(),
            steps: Vec::new(),
            step: 0,
            barrier: false,
            quiet: true,
            digest: 0,
            known: 0,
            allocations: BTreeMap::new(),
            nr_allocations: BTreeMap::new(),
        }
    }

    /// A decision was made.
    pub(super) fn step(&mut self, task: usize, enabled: &[usize], quiet: bool) {
        self.step += 1;
        self.quiet = quiet;
        if self.wanted == Recording::Steps && !quiet {
            let barrier = core::mem::replace(&mut self.barrier, false);
            self.digest = mix(self.digest, task as u64);
            self.steps.push(Step { task, enabled: enabled.to_vec(), accesses: Vec::new(), barrier });
        }
    }

    /// What follows belongs to no decision: up to the next one nothing is noted.
    pub(super) fn hush(&mut self) {
        self.quiet = true;
    }

    /// Time has passed.
    pub(super) fn barrier(&mut self) {
        self.barrier = true;
    }

    #[inline]
    pub(super) fn access(&mut self, object: usize, touch: Touch) {
        if self.wanted == Recording::Steps {
            self.access_slow(object, touch);
        }
    }

    fn access_slow(&mut self, object: usize, touch: Touch) {
        if self.quiet {
            return;
        }
        let object = self.number(object);
        let Some(step) = self.steps.last_mut() else { return };
        match step.accesses.iter_mut().find(|access| access.object == object) {
            Some(access) => access.touch = access.touch.and(touch),
            None => {
                step.accesses.push(Access { object, touch });
                self.digest = mix(mix(self.digest, object as u64), touch as u64);
            }
        }
    }

    /// Memory got a new use. Allocations have numbers, by who makes them and how many it has made: the same ones in all runs in which
    /// that task has done the same so far.
    #[inline]
    pub(super) fn allocated(&mut self, task: usize, at: usize, bytes: usize) {
        if self.wanted == Recording::Steps {
            self.freed(at, bytes);
            let count = self.nr_allocations.entry(task).or_default();
            self.allocations.insert(at, (bytes, (task & 0xff) << 20 | (*count & 0xf_ffff)));
            *count += 1;
        }
    }

    /// Memory has no use any more: what will be there has other numbers.
    #[inline]
    pub(super) fn freed(&mut self, at: usize, bytes: usize) {
        if self.wanted == Recording::Steps {
            while let Some((inside, _)) = self.allocations.range(at..at + bytes).next() {
                let inside = *inside;
                self.allocations.remove(&inside);
            }
            while let Some((object, _)) = self.objects.range(at..at + bytes).next() {
                let object = *object;
                self.objects.remove(&object);
            }
        }
    }

    /// The number of what is at an address.
    fn number(&mut self, object: usize) -> usize {
        if object >= Access::STABLE {
            return object;
        }
        let below = self.allocations.range(..=object).next_back();
        if let Some((at, (_, number))) = below.filter(|(at, (bytes, _))| object - **at < *bytes) {
            return Access::STABLE | number << 28 | (object - at);
        }
        let known = &mut self.known;
        *self.objects.entry(object).or_insert_with(|| {
            *known += 1;
            *known - 1
        })
    }

    /// The running task is at a point.
    #[inline]
    pub(super) fn point(&mut self, task: usize, name: &'static str, kind: Point, object: usize) {
        match self.wanted {
            Recording::Nothing => {}
            Recording::Steps => {
                if let Some(touch) = kind.touch(self.lock_steps) {
                    self.access_slow(object, touch);
                }
            }
            Recording::Trace => {
                let next = self.objects.len();
                if object != 0 {
                    self.objects.entry(object).or_insert(next);
                }
                let what = self.describe(kind, object);
                self.trace.push(Entry { step: self.step, task, name, what });
            }
        }
    }

    /// In words.
    pub(super) fn describe(&self, kind: Point, object: usize) -> String {
        let name = self.names.get(&object).copied().unwrap_or_default();
        match self.objects.get(&object) {
            Some(number) => format!("{kind:?} #{number} {name}"),
            None if object == 0 => format!("{kind:?}"),
            None => format!("{kind:?} {object:#x}"),
        }
    }

    /// What people call it.
    pub(super) fn name(&mut self, object: usize, name: &'static str) {
        if self.wanted == Recording::Trace {
            self.names.insert(object, name);
        }
    }

    pub(super) fn wants_text(&self) -> bool {
        self.wanted == Recording::Trace
    }

    pub(super) fn text(&mut self, task: usize, name: &'static str, what: String) {
        self.trace.push(Entry { step: self.step, task, name, what });
    }

    pub(super) fn choice(&mut self, chosen: u64) {
        if self.wanted == Recording::Trace {
            self.trace.push(Entry { step: self.step, task: 0, name: "choice", what: format!("{chosen}") });
        }
    }

    pub(super) fn so_far(&self) -> SoFar<'_> {
        SoFar { steps: &self.steps, objects: self.known, digest: self.digest }
    }

    pub(super) fn take(&mut self) -> (Vec<Step>, Vec<Entry>) {
        (core::mem::take(&mut self.steps), core::mem::take(&mut self.trace))
    }
}
