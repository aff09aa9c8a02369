// SPDX-License-Identifier: GPL-2.0-only
//! Follows a guest from its first line to its end: takes its events, shows progress, and sees to it that nothing hangs.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use ext4_dio_protocol::{EVENT_PREFIX, Event, ExitCode, IoStats, JobResult, ModeCounts, Plan};

use crate::plan::{Mode, Planned};
use crate::proc::Interrupted;
use crate::progress::Progress;
use crate::symbols::Annotate;

/// Lines of the guest's log that are kept.
const LOG_LINES: usize = 10_000;

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// QEMU's exit status.
    Code(i32),
    /// QEMU was ended by this signal.
    Signal(i32),
}

/// What comes from a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Msg {
    /// A line on the guest's serial port.
    Line(String),
    /// A line that QEMU itself prints.
    Stderr(String),
    /// It has ended; nothing comes after this.
    End(End),
    /// Nothing came in the time given.
    Quiet,
}

/// A machine, seen from the event loop; tests have their own, with a clock of their own.
pub trait Vm {
    /// Waits for what comes next, at most `limit`.
    ///
    /// # Errors
    ///
    /// The user wants the run to stop.
    fn next(&mut self, limit: Duration) -> Result<Msg, Interrupted>;
    /// Time since the machine was started.
    fn now(&self) -> Duration;
    /// All CPUs' registers, as text.
    ///
    /// # Errors
    ///
    /// The monitor does not answer.
    fn registers(&mut self) -> Result<String>;
    /// Makes all CPUs print where they are.
    ///
    /// # Errors
    ///
    /// The monitor does not answer.
    fn inject_nmi(&mut self) -> Result<()>;
    /// Ends the machine at once.
    fn kill(&mut self);
}

/// When a guest is taken for dead.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// This long without a line, or twice as long without anything getting on.
    pub silence: Duration,
    /// What it then has to print its backtraces.
    pub grace: Duration,
}

/// A step's figures.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// From the first thread's start to the last one's end.
    pub elapsed_ns: u64,
    /// As in the plan.
    pub jobs: Vec<JobResult>,
    /// How the writes ran.
    pub modes: ModeCounts,
    /// With `count_instructions`.
    pub instructions: Option<u64>,
}

impl StepResult {
    /// I/Os done.
    pub fn ios(&self) -> u64 {
        self.jobs.iter().map(|j| j.read.ios + j.write.ios + j.trim.ios).sum()
    }

    /// Both, one after the other.
    fn and(self, other: StepResult) -> StepResult {
        StepResult {
            elapsed_ns: self.elapsed_ns + other.elapsed_ns,
            jobs: self.jobs.iter().zip(&other.jobs).map(|(a, b)| job_sum(a, b)).collect(),
            modes: ModeCounts {
                exclusive: self.modes.exclusive + other.modes.exclusive,
                i_data_sem: self.modes.i_data_sem + other.modes.i_data_sem,
                in_flight: self.modes.in_flight + other.modes.in_flight,
            },
            instructions: self.instructions.zip(other.instructions).map(|(a, b)| a + b),
        }
    }

    /// I/Os per second; 0 if no time went by.
    pub fn iops(&self) -> f64 {
        if self.elapsed_ns == 0 { 0.0 } else { self.ios() as f64 * 1e9 / self.elapsed_ns as f64 }
    }
}

fn job_sum(a: &JobResult, b: &JobResult) -> JobResult {
    JobResult {
        read: stats_sum(&a.read, &b.read),
        write: stats_sum(&a.write, &b.write),
        trim: stats_sum(&a.trim, &b.trim),
        syncs: a.syncs + b.syncs,
        errors: a.errors + b.errors,
        first_error: if a.first_error != 0 { a.first_error } else { b.first_error },
        elapsed_ns: a.elapsed_ns + b.elapsed_ns,
    }
}

fn stats_sum(a: &IoStats, b: &IoStats) -> IoStats {
    let bucket = |s: &IoStats, i: usize| s.lat_log2.get(i).copied().unwrap_or(0);
    IoStats {
        ios: a.ios + b.ios,
        bytes: a.bytes + b.bytes,
        lat_sum_ns: a.lat_sum_ns + b.lat_sum_ns,
        // 0 stands for no I/O, not for a fast one.
        lat_min_ns: match (a.ios, b.ios) {
            (0, _) => b.lat_min_ns,
            (_, 0) => a.lat_min_ns,
            _ => a.lat_min_ns.min(b.lat_min_ns),
        },
        lat_max_ns: a.lat_max_ns.max(b.lat_max_ns),
        lat_log2: (0..a.lat_log2.len().max(b.lat_log2.len())).map(|i| bucket(a, i) + bucket(b, i)).collect(),
    }
}

/// A table of acknowledged generations in the debug console's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableHead {
    /// Disk, in PCI order.
    pub disk: u32,
    /// Path in the image, empty for a raw disk.
    pub file: String,
    /// Bytes per stamp.
    pub unit: u32,
    /// Entries.
    pub blocks: u64,
    /// Where it starts in the debug console's file, bytes.
    pub at: u64,
}

/// All that a guest told.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The line that says what machine it found itself on.
    pub boot: Option<Event>,
    /// Its disks.
    pub disks: Vec<Event>,
    /// Figures by step.
    pub steps: BTreeMap<u32, StepResult>,
    /// Stamped blocks that the guest read back: right ones, wrong ones.
    pub verified: (u64, u64),
    /// In the order in which they were written.
    pub tables: Vec<TableHead>,
    /// The guest's log, QEMU's messages, and what explains them; the newest lines.
    pub log: VecDeque<String>,
    /// How it ended.
    pub end: Option<End>,
    /// Lines of the script that did as they should.
    pub ran: usize,
    /// It went through the whole plan.
    pub done: bool,
    /// What went wrong, in order; empty if all went well.
    pub failures: Vec<String>,
}

impl Outcome {
    /// A group's figures in a mode, over all of its rounds; none unless all are there.
    pub fn result(&self, planned: &Planned, group: usize, mode: Mode) -> Option<StepResult> {
        let results = planned.steps_of(group, mode).map(|s| self.steps.get(&s.id));
        results.collect::<Option<Vec<_>>>()?.into_iter().cloned().reduce(StepResult::and)
    }

    fn note(&mut self, line: String) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }
}

/// Where the guest was last seen.
struct Watch {
    last_line: Duration,
    last_advance: Duration,
    step: Option<u32>,
    elapsed_ms: u64,
    ios: u64,
    last_text: String,
}

impl Watch {
    fn describe(&self, plan: &Plan) -> String {
        let step = self.step.and_then(|id| plan.steps.iter().find(|s| s.id == id));
        let place = match step {
            Some(step) => format!(
                "in step {} of {} ({}), {} ms after its start, {} I/Os done",
                step.id + 1,
                plan.steps.len(),
                step.label,
                self.elapsed_ms,
                self.ios
            ),
            None => "outside of any step".into(),
        };
        let text: String = self.last_text.chars().take(200).collect();
        format!("{place}; its last line was `{text}`")
    }
}

/// Follows a guest to its end. What it prints is in the outcome, whatever happened; nothing that the guest does, or
/// stops doing, makes this wait for ever.
///
/// # Errors
///
/// The user wants to stop: the machine is gone then.
pub fn drive(
    vm: &mut dyn Vm,
    plan: &Plan,
    limits: Option<Limits>,
    symbols: &dyn Annotate,
    progress: &mut dyn Progress,
) -> Result<Outcome, Interrupted> {
    let mut out = Outcome::default();
    let now = vm.now();
    let mut watch =
        Watch { last_line: now, last_advance: now, step: None, elapsed_ms: 0, ios: 0, last_text: String::new() };
    // Set once the guest is given up: when it is killed.
    let mut kill_at: Option<Duration> = None;
    loop {
        let now = vm.now();
        let alarm = match (kill_at, limits) {
            (Some(at), _) => at,
            (None, Some(l)) => (watch.last_line + l.silence).min(watch.last_advance + l.silence * 2),
            (None, None) => Duration::MAX,
        };
        if now >= alarm {
            if let (None, Some(l)) = (kill_at, limits) {
                give_up(vm, plan, &watch, now, symbols, &mut out);
                kill_at = Some(now + l.grace);
            } else {
                vm.kill();
                // Its end comes next.
                kill_at = Some(Duration::MAX);
            }
            continue;
        }
        // Without a limit there is still the user, who is noticed at once.
        let msg = vm.next((alarm - now).min(Duration::from_secs(3600))).inspect_err(|_| vm.kill())?;
        match msg {
            Msg::Quiet => {}
            Msg::End(end) => {
                out.end = Some(end);
                break;
            }
            Msg::Stderr(line) => out.note(format!("qemu: {line}")),
            Msg::Line(line) => {
                watch.last_line = vm.now();
                match line.strip_prefix(EVENT_PREFIX) {
                    Some(json) => take_event(json, plan, &mut out, &mut watch, progress),
                    None => {
                        let names = symbols.annotate(&line);
                        out.note(line.clone());
                        names.into_iter().for_each(|n| out.note(n));
                    }
                }
                watch.last_text = line;
            }
        }
    }
    progress.end();
    judge(&mut out, plan);
    Ok(out)
}

/// The guest has stopped: writes down where, and asks its CPUs for backtraces.
fn give_up(vm: &mut dyn Vm, plan: &Plan, watch: &Watch, now: Duration, symbols: &dyn Annotate, out: &mut Outcome) {
    let silent = (now - watch.last_line).as_secs();
    let what = if now - watch.last_line >= now - watch.last_advance {
        format!("no line from the guest for {silent} s")
    } else {
        format!("the guest has not got on for {} s", (now - watch.last_advance).as_secs())
    };
    out.failures.push(format!("watchdog: {what}; it stood {}", watch.describe(plan)));
    match vm.registers() {
        Ok(text) => {
            for line in text.lines().filter(|l| l.starts_with("CPU#") || l.contains("RIP=") || l.contains("RSP=")) {
                out.note(format!("watchdog: {}", line.trim_end()));
                symbols.annotate(line).into_iter().for_each(|n| out.note(n));
            }
        }
        Err(e) => out.note(format!("watchdog: no registers: {e:#}")),
    }
    if let Err(e) = vm.inject_nmi() {
        out.note(format!("watchdog: no backtraces: {e:#}"));
    }
}

fn take_event(json: &str, plan: &Plan, out: &mut Outcome, watch: &mut Watch, progress: &mut dyn Progress) {
    let event: Event = match serde_json::from_str(json) {
        Ok(event) => event,
        Err(e) => {
            out.failures.push(format!("the guest sent an event that cannot be read ({e}): {json}"));
            return;
        }
    };
    progress.event(plan, &event);
    let stuck = matches!(&event, Event::Progress { ios, step, .. } if *ios == watch.ios && watch.step == Some(*step));
    if !stuck {
        watch.last_advance = watch.last_line;
    }
    match event {
        Event::Boot { .. } => out.boot = Some(event),
        Event::Disk { .. } => out.disks.push(event),
        Event::StepStart { step } => {
            (watch.step, watch.elapsed_ms, watch.ios) = (Some(step), 0, 0);
        }
        Event::Progress { step, elapsed_ms, ios } => {
            (watch.step, watch.elapsed_ms, watch.ios) = (Some(step), elapsed_ms, ios);
        }
        Event::StepDone { step, elapsed_ns, jobs, modes, instructions } => {
            watch.step = None;
            out.steps.insert(step, StepResult { elapsed_ns, jobs, modes, instructions });
        }
        Event::Verified { step, file, blocks, bad } => {
            out.verified.0 += blocks;
            out.verified.1 += bad;
            if bad > 0 {
                let file = if file.is_empty() { "the raw disk" } else { &file };
                out.failures.push(format!(
                    "{}: {bad} of {} blocks of {file} were wrong when the guest read them back",
                    label(plan, step),
                    blocks + bad
                ));
            }
        }
        Event::Table { disk, file, unit, blocks } => {
            let at = out.tables.last().map_or(0, |t| t.at.saturating_add(t.blocks.saturating_mul(4)));
            out.tables.push(TableHead { disk, file, unit, blocks, at });
        }
        Event::Ran { .. } => out.ran += 1,
        Event::Failed { step, message } => {
            let place = step.map(|s| format!("{}: ", label(plan, s))).unwrap_or_default();
            out.failures.push(format!("the guest says: {place}{message}"));
        }
        Event::Done => out.done = true,
    }
}

fn label(plan: &Plan, step: u32) -> String {
    plan.steps.iter().find(|s| s.id == step).map_or_else(|| format!("step {step}"), |s| s.label.clone())
}

/// What the exit status and the figures mean.
fn judge(out: &mut Outcome, plan: &Plan) {
    let known = |code: ExitCode| End::Code(code.qemu_status());
    let end = out.end;
    let is = |code| end == Some(known(code));
    if is(ExitCode::Panic) {
        out.failures.push("the guest panicked".into());
    } else if is(ExitCode::Fault) && out.failures.is_empty() {
        // After the watchdog it is the answer to its NMI.
        out.failures.push("the guest took a CPU exception".into());
    } else if is(ExitCode::Failed) {
        if out.failures.is_empty() {
            out.failures.push("the guest failed and did not say why".into());
        }
    } else if !is(ExitCode::Success) && out.failures.is_empty() {
        out.failures.push(match end {
            Some(End::Signal(n)) => format!("QEMU was ended by signal {n}{}", signal_name(n)),
            Some(End::Code(0)) => "the guest reset or powered off: it never got to the end of its plan".into(),
            Some(End::Code(n)) => format!("QEMU ended with status {n}, which no guest asks for"),
            None => "QEMU has no exit status".into(),
        });
    }
    for step in &plan.steps {
        let Some(result) = out.steps.get(&step.id) else {
            if out.failures.is_empty() {
                out.failures.push(format!("{}: the guest sent no result", step.label));
            }
            continue;
        };
        for (job, r) in step.jobs.iter().zip(&result.jobs).filter(|(_, r)| r.errors > 0) {
            let error = std::io::Error::from_raw_os_error(r.first_error.abs());
            let hint = if r.first_error.abs() == 95 && job.rw.trims() { ": a disk that does not discard?" } else { "" };
            out.failures
                .push(format!("{}: [{}]: {} I/Os failed, first with {error}{hint}", step.label, job.name, r.errors));
        }
    }
    if !out.done && out.failures.is_empty() {
        out.failures.push("the guest said it succeeded before it was through its plan".into());
    }
}

fn signal_name(n: i32) -> &'static str {
    match n {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL; the kernel's out-of-memory killer?)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
