// SPDX-License-Identifier: GPL-2.0-only
//! Instructions of an I/O, counted alike in both guests: by a plugin of QEMU, between two executions of an instruction that does
//! nothing. What starting a job takes goes out by the slope between two numbers of I/Os.
//!
//! QEMU's icount clock would do for our guest, which knows how long it was idle. Linux' idle time is not known to the nanosecond,
//! and what it does to become idle is part of what an I/O costs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ext4_dio_protocol::Step;

use super::bench::Bench;
use super::jobs;
use super::samples::{Column, Counted, Instructions};
use crate::linux_guest::fio::Place;
use crate::plan::Point;
use crate::{guest_build, proc};

/// I/Os of the two runs.
const IOS: [u64; 2] = [2000, 10_000];
/// How often Linux does each. What is not the job's can only add: cold caches, timers, threads of the kernel; the fewest count.
const REPEATS: u32 = 2;
/// Longest that one of them may take.
const LIMIT: Duration = Duration::from_secs(240);
/// Longest that building the plugin may take.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// What the plugin printed at a mark: what was executed since the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    user: u64,
    kernel: u64,
}

/// Reads `MARK,n,user=…,kernel=…`.
fn mark(line: &str) -> Option<Mark> {
    let mut words = line.trim().strip_prefix("MARK,")?.split(',').skip(1);
    let mut value = |key: &str| words.next()?.strip_prefix(key)?.parse().ok();
    Some(Mark { user: value("user=")?, kernel: value("kernel=")? })
}

/// The one that more was kept out of.
fn fewer(a: Mark, b: Mark) -> Mark {
    if a.kernel <= b.kernel { a } else { b }
}

/// Instructions per I/O by the slope between the runs.
fn slope(counts: [Mark; 2]) -> Instructions {
    let ios = (IOS[1] - IOS[0]) as f64;
    let per = |a: u64, b: u64| (b as f64 - a as f64) / ios;
    Instructions { kernel: per(counts[0].kernel, counts[1].kernel), user: per(counts[0].user, counts[1].user) }
}

/// Builds the plugin; none, with a word about why, if that cannot be done.
pub(super) fn build() -> Option<PathBuf> {
    match try_build() {
        Ok(path) => Some(path),
        Err(e) => {
            eprintln!("instructions are not counted: {e:#}");
            None
        }
    }
}

fn try_build() -> Result<PathBuf> {
    let mut why = String::new();
    for api in ["1", "2"] {
        let plugin = build_for(api).context("the plugin that counts does not build")?;
        // Plugins are loaded before devices are made: this ends at the device, or before it.
        let mut cmd = proc::tool(crate::deps::QEMU.program)?;
        cmd.args(["-machine", "none", "-display", "none", "-device", "there-is-none", "-plugin"]).arg(&plugin);
        let out = proc::capture(cmd, Duration::from_secs(30))?;
        if out.text.contains("there-is-none") {
            return Ok(plugin);
        }
        why = out.text.trim().into();
    }
    bail!("this QEMU does not take plugins: {why}")
}

/// Builds it for a version of QEMU's interface.
fn build_for(api: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").filter(|c| !c.is_empty()).unwrap_or_else(|| "cargo".into());
    let mut cmd = Command::new(cargo);
    let target = guest_build::target_dir().join("linux/counter");
    cmd.args(["build", "--release", "--quiet", "-p", "ext4-dio-counter", "--target-dir"]).arg(&target);
    cmd.current_dir(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| guest_build::leaks(&n.to_string_lossy())) {
        cmd.env_remove(name);
    }
    cmd.env("EXT4_DIO_PLUGIN_API", api);
    proc::succeed(cmd, BUILD_LIMIT)?;
    Ok(target.join("release/libext4_dio_counter.so"))
}

/// Counts in both guests.
///
/// # Errors
///
/// The user stopped it. What fails else is among the bench's failures.
pub(super) fn run(bench: &mut Bench, plugin: &Path) -> Result<Vec<Counted>> {
    eprintln!("counting instructions, with one CPU");
    let groups = IOS.map(jobs::counting_groups);
    let mut counted: Vec<Counted> =
        groups[0].iter().map(|g| Counted { label: g.label.clone(), counts: BTreeMap::new() }).collect();
    let extra: Vec<OsString> = vec!["-plugin".into(), plugin.into()];
    for result in [ours(bench, &groups, &extra, &mut counted), linux(bench, &groups, &extra, &mut counted)] {
        match result {
            Ok(()) => {}
            Err(e) if e.is::<proc::Interrupted>() => return Err(e),
            Err(e) => bench.failures.push(format!("counting instructions: {e:#}")),
        }
    }
    Ok(counted)
}

type Groups = [Vec<crate::fiojob::Group>; 2];

/// Our guest marks the begin of each step: one step more ends the last of those that count. What is between two steps is the same
/// whatever the number of I/Os, and goes out by the slope.
fn ours(bench: &mut Bench, groups: &Groups, extra: &[OsString], counted: &mut [Counted]) -> Result<()> {
    for (index, job) in counted.iter_mut().enumerate() {
        let mut runs: Vec<Vec<Mark>> = Vec::new();
        for of_ios in groups {
            let mut planned = bench.plan(&of_ios[index])?;
            let steps = planned.plan.steps.len();
            let last = Step { id: steps as u32, ..planned.plan.steps[0].clone() };
            planned.points.push(Point { step: last.id, ..planned.points[0].clone() });
            planned.plan.steps.push(last);
            let (_, said) = bench.drive_ours(&planned, bench.our_disks(), 1, extra.to_vec())?;
            let marks: Vec<Mark> = said.iter().filter_map(|l| mark(l)).collect();
            ensure!(marks.len() == steps + 1, "our guest set {} marks in {} steps", marks.len(), steps + 1);
            runs.push(marks);
        }
        for (place, mode) in bench.modes().iter().enumerate() {
            // All of it is the kernel, wherever it lies.
            let all = |run: &[Mark]| Mark { user: 0, kernel: run[place + 1].user + run[place + 1].kernel };
            job.counts.insert(Column::Ours(*mode), slope([all(&runs[0]), all(&runs[1])]));
        }
    }
    Ok(())
}

/// In Linux a program marks.
fn linux(bench: &mut Bench, groups: &Groups, extra: &[OsString], counted: &mut [Counted]) -> Result<()> {
    // One after the other in one boot: the second ones are numbered on.
    let all: Vec<_> = groups.iter().flatten().cloned().collect();
    let jobs = bench.jobs(&all)?;
    let initrd = bench.write_initramfs(&jobs)?;
    let mut guest = bench.boot_linux(&initrd, Duration::ZERO, Some(extra))?;
    let mut counts: BTreeMap<(usize, Place), Mark> = BTreeMap::new();
    for (index, group) in all.iter().enumerate() {
        for job in &jobs {
            let Some(place) = job.is(index) else { continue };
            let what = format!("counting {} on {}", group.label, place.name());
            let command =
                format!("sync; mark; fio --eta=never --output=/tmp/out /jobs/{}; s=$?; mark; (exit $s)", job.file);
            for _ in 0..REPEATS {
                guest.run(&command, &what, LIMIT)?;
                let marks: Vec<Mark> = guest.said(2).iter().filter_map(|l| mark(l)).collect();
                ensure!(marks.len() == 2, "{what}: {} marks", marks.len());
                counts.entry((index, place)).and_modify(|c: &mut Mark| *c = fewer(*c, marks[1])).or_insert(marks[1]);
            }
        }
    }
    for (index, job) in counted.iter_mut().enumerate() {
        for place in Place::ALL {
            let pair = [index, index + groups[0].len()].map(|i| counts.get(&(i, place)).copied());
            if let [Some(a), Some(b)] = pair {
                job.counts.insert(Column::Linux(place), slope([a, b]));
            }
        }
    }
    guest.shut_down()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_their_slope() {
        let m = |user, kernel| Mark { user, kernel };
        assert_eq!(mark("MARK,3,user=17,kernel=4000\n"), Some(m(17, 4000)));
        for bad in ["", "MARK,3", "MARK,3,user=x,kernel=1", "MARK,3,kernel=1,user=2", "qemu: MARK,1,user=1,kernel=1"] {
            assert_eq!(mark(bad), None, "{bad}");
        }
        let per = slope([m(1_000_000, 30_000_000), m(5_000_000, 110_000_000)]);
        assert_eq!((per.kernel, per.user), (10_000.0, 500.0));
        assert_eq!(fewer(m(9, 10), m(1, 11)), m(9, 10));
        assert_eq!(fewer(m(9, 10), m(1, 8)), m(1, 8));
    }
}
