// SPDX-License-Identifier: GPL-2.0-only
//! Orders by chance, for [`sim`](crate::sim): each run has a seed, and nothing else decides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kernel_shim::sched::sim::{Entry, Policy, Recorded};

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`, or 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.draw() % n }
    }
}

/// Seeds for runs on several threads of the host, and what came of them.
pub struct Seeds {
    base: u64,
    /// Exactly this seed, not one derived from it.
    exact: bool,
    wanted: u64,
    until: Option<Instant>,
    begun: AtomicU64,
    runs: AtomicU64,
    steps: AtomicU64,
    stop: AtomicBool,
    trace: Mutex<Vec<Entry>>,
}

impl Seeds {
    /// For `wanted` runs, and further ones until `time` has passed.
    pub fn new(base: u64, wanted: u64, time: Option<Duration>) -> Self {
        Self {
            base,
            exact: false,
            wanted,
            until: time.map(|time| Instant::now() + time),
            begun: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            trace: Mutex::new(Vec::new()),
        }
    }

    /// For one run.
    pub fn one(seed: u64) -> Self {
        Self { exact: true, ..Self::new(seed, 1, None) }
    }

    fn next(&self) -> Option<u64> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let n = self.begun.fetch_add(1, Ordering::Relaxed);
        if n >= self.wanted && self.until.is_none_or(|until| Instant::now() >= until) {
            return None;
        }
        Some(if self.exact { self.base } else { Rng(self.base ^ n.wrapping_mul(0xD134_2543_DE82_EF95)).draw() })
    }

    /// No further runs.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Runs that have ended well.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Their decisions.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The trace of the last one.
    pub fn take_trace(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.trace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How a run decides.
enum How {
    /// Out of 256: how often the running task goes on though others could.
    Sticky(u64),
    /// Priorities by task, highest first to run; those at which the running task falls behind all others.
    Pct { priorities: Vec<u64>, changes: Vec<u64>, lowest: u64 },
}

/// A policy by chance.
pub struct Chance {
    seeds: Arc<Seeds>,
    depth: Option<u32>,
    seed: u64,
    rng: Rng,
    decisions: u64,
    how: How,
}

impl Chance {
    /// Draws the next task.
    pub fn random(seeds: Arc<Seeds>) -> Self {
        Self { seeds, depth: None, seed: 0, rng: Rng(0), decisions: 0, how: How::Sticky(0) }
    }

    /// Draws priorities, and up to `depth` moments at which they change.
    pub fn pct(seeds: Arc<Seeds>, depth: u32) -> Self {
        Self { depth: Some(depth), ..Self::random(seeds) }
    }

    /// Of the run that is under way, or was last.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl Policy for Chance {
    fn begin(&mut self) -> bool {
        let Some(seed) = self.seeds.next() else { return false };
        self.seed = seed;
        self.rng = Rng(seed);
        self.decisions = 0;
        self.how = match self.depth {
            None => How::Sticky([0, 128, 208, 248][self.rng.below(4) as usize]),
            Some(depth) => {
                // How long the run will be is not known: few decisions or many.
                let within = 32 << self.rng.below(8);
                let changes = (0..depth).map(|_| self.rng.below(within)).collect();
                // Those of the beginning are above what tasks fall to.
                How::Pct { priorities: Vec::new(), changes, lowest: 1 << 32 }
            }
        };
        true
    }

    fn next(&mut self, tasks: &[usize], current: Option<usize>, _yielding: bool) -> Option<usize> {
        self.decisions += 1;
        let drawn = tasks[self.rng.below(tasks.len() as u64) as usize];
        match &mut self.how {
            How::Sticky(stay) => match current {
                Some(current) if self.rng.below(256) < *stay => Some(current),
                _ => Some(drawn),
            },
            How::Pct { priorities, changes, lowest } => {
                let highest = tasks.iter().copied().max().unwrap_or(0);
                while priorities.len() <= highest {
                    priorities.push((1 << 33) + self.rng.below(1 << 30));
                }
                if let Some(current) = current
                    && changes.contains(&self.decisions)
                {
                    *lowest -= 1;
                    priorities[current] = *lowest;
                }
                tasks.iter().copied().max_by_key(|task| priorities[*task])
            }
        }
    }

    fn choose(&mut self, n: u64) -> u64 {
        self.rng.below(n)
    }

    fn end(&mut self, recorded: Recorded) {
        self.seeds.runs.fetch_add(1, Ordering::Relaxed);
        self.seeds.steps.fetch_add(recorded.decisions, Ordering::Relaxed);
        if !recorded.trace.is_empty() {
            *self.seeds.trace.lock().unwrap_or_else(PoisonError::into_inner) = recorded.trace;
        }
    }
}
