// SPDX-License-Identifier: GPL-2.0-only
//! Threads over all CPUs: locks, wait queues, timers, and more threads than anybody needs. A
//! lost wake-up shows as a test that does not end.

use alloc::{format, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use kernel_shim::{
    pr_info,
    sched::{self, JoinHandle, msleep, now_ns, spawn_on},
    sync::{Completion, Mutex, RwSemaphore, WaitQueue},
};

use super::Outcome;
use crate::arch::percpu::{Work, nr_cpus};

/// Threads of most tests.
const THREADS: u32 = 64;

fn start(
    n: u32,
    name: &'static str,
    f: impl Fn(u32) + Send + Clone + 'static,
) -> Result<Vec<JoinHandle>, alloc::string::String> {
    (0..n)
        .map(|i| {
            let f = f.clone();
            spawn_on(i % nr_cpus(), name, move || f(i)).map_err(|e| format!("spawn {i}: {e:?}"))
        })
        .collect()
}

fn join(threads: Vec<JoinHandle>) {
    threads.into_iter().for_each(JoinHandle::join);
}

fn timed(what: &str, ops: u64, f: impl FnOnce() -> Outcome) -> Outcome {
    let (before, ns) = (Work::now(), now_ns());
    f()?;
    let (after, ns) = (Work::now(), now_ns() - ns);
    pr_info!("{what}: {} us, {} busy ticks per operation", ns / 1000, after.since(&before).ticks / ops);
    Ok(())
}

/// A mutex protects a counter although its holders yield.
fn mutex() -> Outcome {
    const ROUNDS: u32 = 100;
    let counter = Arc::new(Mutex::new(0u32));
    let shared = counter.clone();
    join(start(THREADS, "mutex", move |i| {
        for round in 0..ROUNDS {
            let mut counter = shared.lock();
            let seen = *counter;
            if (round + i) % 4 == 0 {
                sched::yield_now();
            }
            *counter = seen + 1;
        }
    })?);
    let count = *counter.lock();
    if count == THREADS * ROUNDS { Ok(()) } else { Err(format!("mutex: {count} instead of {}", THREADS * ROUNDS)) }
}

/// Readers see what writers leave whole.
fn rwsem() -> Outcome {
    const ROUNDS: u32 = 50;
    let pair = Arc::new(RwSemaphore::new((0u32, 0u32)));
    let torn = Arc::new(AtomicU32::new(0));
    let (shared, seen_torn) = (pair.clone(), torn.clone());
    join(start(THREADS, "rwsem", move |i| {
        for _ in 0..ROUNDS {
            if i % 4 == 0 {
                let mut pair = shared.write();
                pair.0 += 1;
                sched::yield_now();
                pair.1 += 1;
            } else {
                let pair = shared.read();
                sched::yield_now();
                seen_torn.fetch_add(u32::from(pair.0 != pair.1), Relaxed);
            }
        }
    })?);
    let writes = pair.read().0;
    match (torn.load(Relaxed), writes) {
        (0, w) if w == THREADS / 4 * ROUNDS => Ok(()),
        (torn, w) => Err(format!("rwsem: {torn} torn reads, {w} writes")),
    }
}

const PING_PONGS: u32 = 300;

/// Pairs of threads, on different CPUs if there are any, hand a baton to and fro.
fn ping_pong() -> Outcome {
    struct Table {
        baton: AtomicU32,
        turn: WaitQueue,
    }
    let tables: Arc<Vec<Table>> =
        Arc::new((0..THREADS / 2).map(|_| Table { baton: AtomicU32::new(0), turn: WaitQueue::new() }).collect());
    let shared = tables.clone();
    join(start(THREADS, "ping-pong", move |i| {
        let table = &shared[(i / 2) as usize];
        for round in 0..PING_PONGS {
            let mine = round * 2 + i % 2;
            table.turn.wait_event(|| table.baton.load(Acquire) == mine);
            table.baton.store(mine + 1, Release);
            table.turn.wake_up_all();
        }
    })?);
    match tables.iter().position(|t| t.baton.load(Relaxed) != 2 * PING_PONGS) {
        None => Ok(()),
        Some(at) => Err(format!("ping-pong: table {at} did not finish")),
    }
}

/// Nobody wakes up too early, and a timeout is told from a wake-up.
fn timers() -> Outcome {
    let early = Arc::new(AtomicU32::new(0));
    let worst = Arc::new(AtomicU64::new(0));
    let (e, w) = (early.clone(), worst.clone());
    join(start(THREADS, "timers", move |i| {
        for round in 0..5 {
            let ms = u64::from((i * 7 + round * 3) % 10 + 1);
            let before = now_ns();
            msleep(ms);
            let slept = now_ns() - before;
            e.fetch_add(u32::from(slept < ms * 1_000_000), Relaxed);
            w.fetch_max(slept.saturating_sub(ms * 1_000_000), Relaxed);
        }
        let nobody = WaitQueue::new();
        let before = now_ns();
        let woken = nobody.wait_event_timeout(|| false, 2_000_000);
        e.fetch_add(u32::from(woken || now_ns() - before < 2_000_000), Relaxed);
    })?);
    pr_info!("timers: at most {} us late", worst.load(Relaxed) / 1000);
    match early.load(Relaxed) {
        0 => Ok(()),
        n => Err(format!("timers: {n} sleeps were too short")),
    }
}

/// Hundreds of threads sleep at once, and as many are made again from the pool.
fn crowd() -> Outcome {
    const CROWD: u32 = 400;
    for _ in 0..3 {
        let gate = Arc::new(Completion::new());
        let here = Arc::new(AtomicU32::new(0));
        let (g, h) = (gate.clone(), here.clone());
        let threads = start(CROWD, "crowd", move |_| {
            h.fetch_add(1, AcqRel);
            g.wait();
            h.fetch_sub(1, AcqRel);
        })?;
        while here.load(Acquire) < CROWD {
            sched::yield_now();
        }
        gate.complete_all();
        join(threads);
        if here.load(Acquire) != 0 {
            return Err(format!("crowd: {} threads are missing", here.load(Acquire)));
        }
    }
    Ok(())
}

pub(super) fn run() -> Outcome {
    timed("mutex", u64::from(THREADS * 100), mutex)?;
    timed("rwsem", u64::from(THREADS * 50), rwsem)?;
    timed("ping-pong", u64::from(THREADS * PING_PONGS), ping_pong)?;
    timed("timers", u64::from(THREADS * 6), timers)?;
    timed("crowd", 1200, crowd)
}
