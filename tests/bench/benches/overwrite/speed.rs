// SPDX-License-Identifier: GPL-2.0-only
//! Writes per second of CPU time, next to copies of the same blocks.
//!
//! The machine may be busy with other things, whose share changes from second to second. So CPU time is counted, not the
//! clock; all subjects take turns in short slices, round after round; each is divided by the copies of its own round; and what
//! is told is the median of the rounds, with the spread. The gain of a second thread needs the clock, and two idle CPUs.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::subject::{Disk, Mode, Prepared, Subject, THREADS};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds; the median is taken over them.
    pub(crate) rounds: usize,
    /// How long a subject's turn is.
    pub(crate) slice: Duration,
}

/// One turn of a subject.
#[derive(Clone, Copy)]
struct Turn {
    /// Writes per second of CPU time of the threads that write.
    per_cpu: f64,
    /// Writes per second.
    per_wall: f64,
}

fn cpu_ns() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Writes between two looks at the clock.
const BATCH: u64 = 64;

fn turn(prepared: &Prepared, threads: u64, slice: Duration) -> Turn {
    let barrier = Barrier::new(threads as usize);
    let writer = |thread| {
        let mut writer = prepared.writer(thread);
        // Whoever was measured before has the caches to himself no longer.
        let start = Instant::now();
        while start.elapsed() < slice / 4 {
            writer.run(BATCH);
        }
        barrier.wait();
        let (start, cpu) = (Instant::now(), cpu_ns());
        let mut ops = 0;
        while start.elapsed() < slice {
            ops += writer.run(BATCH);
        }
        (ops as f64, cpu_ns() - cpu, start.elapsed().as_nanos() as f64)
    };
    let ended: Vec<_> = thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads).map(|thread| scope.spawn(move || writer(thread))).collect();
        spawned.into_iter().map(|handle| handle.join().expect("the writer")).collect()
    });
    let ops: f64 = ended.iter().map(|e| e.0).sum();
    let cpu: f64 = ended.iter().map(|e| e.1).sum();
    Turn { per_cpu: ops / cpu * 1e9, per_wall: ended.iter().map(|e| e.0 / e.2 * 1e9).sum() }
}

/// Median, and the quartiles around it.
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize| sorted[(sorted.len() - 1) * part / 4];
        Self { low: at(1), median: at(2), high: at(3) }
    }
}

/// Each subject's turns of one and of two threads, a pair for each round.
struct Measured {
    name: String,
    turns: Vec<[Turn; 2]>,
}

/// Measures, and prints the table. `image` has a file of `mib` MiB.
pub(crate) fn run(effort: Effort, image: &Path, mib: u64) {
    let mut subjects = vec![Subject::Memcpy];
    for disk in [Disk::Ram, Disk::Null] {
        subjects.push(Subject::Bio(disk));
        subjects.extend(Mode::ALL.map(|mode| Subject::Sync(disk, mode)));
    }
    subjects.push(Subject::Async(Disk::Ram, Mode::InFlight));
    subjects.push(Subject::Async(Disk::Null, Mode::InFlight));
    let prepared: Vec<Prepared> = subjects.iter().map(|s| Prepared::new(*s, image, mib << 8)).collect();
    let mut measured: Vec<Measured> = subjects.iter().map(|s| Measured { name: s.name(), turns: Vec::new() }).collect();
    for round in 0..effort.rounds {
        for (prepared, measured) in prepared.iter().zip(&mut measured) {
            // Each comes first in every other round.
            let mut turns = [1, THREADS];
            turns.rotate_left(round % 2);
            let mut turns = turns.map(|threads| turn(prepared, threads, effort.slice));
            turns.rotate_left(round % 2);
            measured.turns.push(turns);
        }
    }
    prepared.into_iter().for_each(Prepared::finish);
    print(effort, mib, &measured);
}

fn print(effort: Effort, mib: u64, measured: &[Measured]) {
    println!("Writes of 4 KiB at random places of one file of {mib} MiB, synchronous but for the last two rows.");
    println!(
        "Median of {} rounds of {} ms for each figure, [quartiles]; M/CPU-s: millions per second of CPU time;",
        effort.rounds,
        effort.slice.as_millis()
    );
    println!("/memcpy: share of what plain copies into {mib} MiB reach in the same round with as many threads;");
    println!("x2: two threads' writes per second, by the clock and per CPU second, over one thread's.\n");
    println!("{:24}|{:^34}|{:^16}|{:^30}", "", "one thread", "two threads", "x2");
    println!(
        "{:24}|{:>8} {:^15} {:>9} |{:>8} {:>8}|{:>8} {:^13} {:>8}",
        "", "M/CPU-s", "", "/memcpy", "M/CPU-s", "/memcpy", "clock", "", "CPU"
    );
    let base = &measured[0].turns;
    for row in measured {
        let over = |n: usize| Spread::of(row.turns.iter().zip(base).map(move |(t, b)| t[n].per_cpu / b[n].per_cpu));
        let one = Spread::of(row.turns.iter().map(|t| t[0].per_cpu / 1e6));
        let two = Spread::of(row.turns.iter().map(|t| t[1].per_cpu / 1e6));
        let clock = Spread::of(row.turns.iter().map(|t| t[1].per_wall / t[0].per_wall));
        let cpu = Spread::of(row.turns.iter().map(|t| 2.0 * t[1].per_cpu / t[0].per_cpu));
        println!(
            "{:24}|{:8.3} [{:5.2} ..{:5.2}] {:8.1}% |{:8.3} {:7.1}%|{:8.2} [{:4.2} ..{:4.2}] {:8.2}",
            row.name,
            one.median,
            one.low,
            one.high,
            over(0).median * 100.0,
            two.median,
            over(1).median * 100.0,
            clock.median,
            clock.low,
            clock.high,
            cpu.median,
        );
    }
}
