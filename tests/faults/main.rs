// SPDX-License-Identifier: GPL-2.0-only
//! Faults at each place: of workloads that are written down, every allocation, read, write and flush fails once, every write is torn
//! once, and the device dies at every request, for ever or for a while.
//!
//! For each of these runs: the errno is the fault's, and what answered otherwise answers as in a run in which the step that failed is
//! left out; nothing is left behind in memory; a mount whose journal has failed is read-only, and any other goes on (the workload is run
//! again, and everything is as it should be); after the next mount, and after `e2fsck -fy`, what was acknowledged as durable is there,
//! and no data that nobody has written; `e2fsck -fn` finds nothing wrong. Images that are equal to one before are not looked at again.
//!
//! * `EXT4_DIO_FAULT=workload/world/kind/n`: this run alone, step by step; parts from the right may be left out.
//! * `EXT4_DIO_FAULTS=all`: each workload in all worlds, and no strides.
//! * `EXT4_DIO_TRACE=1`: what each step answers, and what the kernel logs.

mod disk;
mod engine;
mod kept;
mod oracle;
mod script;
mod workloads;
mod world;

use std::io::Write;
use std::time::Instant;

use engine::{Bench, KINDS, Tally};
use ext4_dio_tests::dio::fails_without;
use ext4_dio_tests::images::FAKE_TIME;
use kernel_shim::sched::host::{set_sink, stop_clock};
use workloads::{Workload, tasks};

/// Whether each step is told.
fn tracing() -> bool {
    std::env::var_os("EXT4_DIO_TRACE").is_some()
}

/// How to see a run again.
fn replay(what: &str) -> String {
    let test = std::thread::current().name().unwrap_or("").to_string();
    format!("EXT4_DIO_TRACE=1 EXT4_DIO_FAULT={what} cargo test -p ext4-dio-tests --test faults -- --nocapture {test}")
}

/// The parts of `EXT4_DIO_FAULT`.
fn wanted() -> Vec<String> {
    let text = std::env::var("EXT4_DIO_FAULT").unwrap_or_default();
    text.split('/').filter(|part| !part.is_empty()).map(str::to_string).collect()
}

/// Runs a group of workloads with every fault.
fn every_fault(group: &str, workloads: Vec<Workload>) {
    // The same run leaves the same image.
    stop_clock(FAKE_TIME * 1_000_000_000);
    if !tracing() {
        set_sink(Some(Box::new(|_, _| ())));
    }
    engine::watch();
    let start = Instant::now();
    let wanted = wanted();
    let is = |at: usize, name: &str| wanted.get(at).is_none_or(|part| part == name);
    let all = std::env::var_os("EXT4_DIO_FAULTS").is_some();
    let mut tally = Tally::default();
    let found = tasks(workloads, all || !wanted.is_empty(), |workload, world| is(0, workload) && is(1, world));
    for task in &found {
        let (began, before) = (Instant::now(), tally.total());
        let mut bench = Bench::new(task);
        for kind in KINDS.into_iter().filter(|kind| is(2, &format!("{kind:?}"))) {
            tally.every_n(&mut bench, kind, wanted.get(3).and_then(|n| n.parse().ok()));
        }
        tally.fscks += bench.scratch.fscks.get();
        tally.times.push((task.name(), tally.total() - before, began.elapsed()));
    }
    tell(group, found.len(), &tally, start);
    assert!(
        tally.failures.is_empty(),
        "{} runs went wrong:\n{}",
        tally.failures.len(),
        tally.failures.iter().take(40).cloned().collect::<Vec<_>>().join("\n")
    );
}

fn tell(group: &str, tasks: usize, tally: &Tally, start: Instant) {
    let kinds: Vec<String> =
        tally.points.iter().map(|(kind, (points, fired))| format!("{kind:?} {fired}/{points}")).collect();
    let mut line = format!(
        "faults, {group}: {tasks} workloads, {} fault points (struck/tried: {}), {} looks of e2fsck, {:.1} s",
        tally.total(),
        kinds.join(", "),
        tally.fscks,
        start.elapsed().as_secs_f64()
    );
    if std::env::var_os("EXT4_DIO_TIMES").is_some() {
        for (name, points, time) in &tally.times {
            line += &format!("\n  {name}: {points} points, {:.2} s", time.as_secs_f64());
        }
    }
    // Past what libtest keeps of a test that passes.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn direct_writes() {
    every_fault("direct writes", workloads::direct());
}

/// A few of them, which are run again without fixes.
#[test]
fn holes_and_queued_overwrites() {
    every_fault("holes and queued overwrites", workloads::few());
}

/// Fixes of what happened when a write failed, or found no memory: these runs find it if one is switched off. (G29 takes a full
/// disk.)
#[test]
fn without_a_fix_faults_are_noticed() {
    for (fix, why) in [("G30", "0xdb"), ("G31", "i_dio_count"), ("G32", "waits for a conversion")] {
        let (fails, text) = fails_without("holes_and_queued_overwrites", fix);
        assert!(fails && text.contains(why), "without {fix}: {text}");
    }
}

#[test]
fn buffered_writes_and_reading() {
    every_fault("buffered writes and reading", workloads::buffered());
}

#[test]
fn truncate_and_fallocate() {
    every_fault("truncate and fallocate", workloads::space());
}

#[test]
fn names_and_attributes() {
    every_fault("names and attributes", workloads::names_and_attributes());
}

#[test]
fn mounting_and_remounting() {
    every_fault("mounting and remounting", workloads::mounts());
}
