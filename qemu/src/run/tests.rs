// SPDX-License-Identifier: GPL-2.0-only
//! The event loop against machines that say, and fail to say, all sorts of things; time is theirs.

use super::tests_support::plan;
use super::*;
use crate::progress::Silent;
use crate::symbols::Unknown;

/// A guest's words and the time each takes.
#[derive(Default)]
struct Script {
    /// From the last one on.
    lines: VecDeque<(Duration, Msg)>,
    now: Duration,
    nmis: u32,
    /// What it says to an NMI; none: the monitor does not answer either.
    on_nmi: Option<Vec<Msg>>,
    killed: bool,
    interrupted: bool,
    calls: u32,
}

impl Script {
    fn new(lines: Vec<(u64, Msg)>) -> Script {
        let lines = lines.into_iter().map(|(ms, m)| (Duration::from_millis(ms), m)).collect();
        Script { lines, ..Script::default() }
    }
}

impl Vm for Script {
    fn next(&mut self, limit: Duration) -> Result<Msg, Interrupted> {
        self.calls += 1;
        assert!(self.calls < 100_000, "the loop does not end");
        if self.interrupted {
            return Err(Interrupted);
        }
        if self.killed {
            return Ok(Msg::End(End::Signal(9)));
        }
        match self.lines.front().cloned() {
            Some((after, msg)) if after <= limit => {
                self.lines.pop_front();
                self.now += after;
                Ok(msg)
            }
            Some((after, _)) => {
                self.lines[0].0 = after - limit;
                self.now += limit;
                Ok(Msg::Quiet)
            }
            None => {
                self.now += limit;
                Ok(Msg::Quiet)
            }
        }
    }
    fn now(&self) -> Duration {
        self.now
    }
    fn registers(&mut self) -> Result<String> {
        if self.on_nmi.is_none() {
            anyhow::bail!("nobody there");
        }
        Ok("CPU#0\r\nRAX=0 RBX=0\r\nRIP=00000000001018f0 RFL=00000246\r\n".into())
    }
    fn inject_nmi(&mut self) -> Result<()> {
        self.nmis += 1;
        match self.on_nmi.take() {
            Some(words) => {
                self.lines = words.into_iter().map(|m| (Duration::from_millis(1), m)).collect();
                Ok(())
            }
            None => anyhow::bail!("nobody there"),
        }
    }
    fn kill(&mut self) {
        self.killed = true;
    }
}

const LIMITS: Limits = Limits { silence: Duration::from_secs(10), grace: Duration::from_secs(2) };

fn event(e: Event) -> Msg {
    Msg::Line(format!("{EVENT_PREFIX}{}", serde_json::to_string(&e).unwrap()))
}

fn line(s: &str) -> Msg {
    Msg::Line(s.into())
}

fn done(step: u32) -> Msg {
    event(Event::StepDone {
        step,
        elapsed_ns: 1_000_000,
        jobs: Vec::new(),
        modes: ModeCounts::default(),
        instructions: None,
    })
}

fn end(code: ExitCode) -> Msg {
    Msg::End(End::Code(code.qemu_status()))
}

fn run(script: &mut Script, steps: u32) -> Outcome {
    drive(script, &plan(steps), Some(LIMITS), &Unknown, &mut Silent).unwrap()
}

#[test]
fn a_good_run() {
    let lines = vec![
        (5, line("hello")),
        (5, event(Event::Boot { cpus: 2, memory: 1 << 29, tsc_hz: 1_000_000_000 })),
        (5, event(Event::Disk { disk: 0, sectors: 8, queues: 2, depth: 128 })),
        (5, event(Event::StepStart { step: 0 })),
        (200, event(Event::Progress { step: 0, elapsed_ms: 200, ios: 7 })),
        (5, done(0)),
        (5, event(Event::Verified { step: 0, file: "/data".into(), blocks: 9, bad: 0 })),
        (5, event(Event::Table { disk: 0, file: "/data".into(), unit: 4096, blocks: 10 })),
        (5, event(Event::Table { disk: 1, file: String::new(), unit: 4096, blocks: 3 })),
        (5, event(Event::Done)),
        (5, Msg::Stderr("warning".into())),
        (5, end(ExitCode::Success)),
    ];
    let mut vm = Script::new(lines);
    let out = run(&mut vm, 1);
    assert_eq!(out.failures, Vec::<String>::new());
    assert!(out.done && out.boot.is_some() && out.disks.len() == 1 && out.steps.len() == 1);
    assert_eq!(out.verified, (9, 0));
    assert_eq!((out.tables[0].at, out.tables[1].at), (0, 40));
    assert_eq!(out.log, ["hello", "qemu: warning"]);
    assert!(!vm.killed);
}

#[test]
fn each_bad_end_is_told() {
    for (last, word) in [
        (end(ExitCode::Panic), "panicked"),
        (end(ExitCode::Fault), "CPU exception"),
        (end(ExitCode::Failed), "did not say why"),
        (end(ExitCode::Success), "no result"),
        (Msg::End(End::Code(0)), "reset or powered off"),
        (Msg::End(End::Code(1)), "status 1"),
        (Msg::End(End::Signal(11)), "signal 11 (SIGSEGV)"),
    ] {
        let out = run(&mut Script::new(vec![(1, last)]), 1);
        assert_eq!(out.failures.len(), 1, "{:?}", out.failures);
        assert!(out.failures[0].contains(word), "{word}: {:?}", out.failures);
    }
    let out = run(&mut Script::new(vec![(1, done(0)), (1, end(ExitCode::Success))]), 1);
    assert!(out.failures[0].contains("before it was through"), "{:?}", out.failures);
    let failed = event(Event::Failed { step: Some(0), message: "/data: ENOENT".into() });
    let out = run(&mut Script::new(vec![(1, failed), (1, end(ExitCode::Failed))]), 1);
    assert_eq!(out.failures, ["the guest says: step 0: /data: ENOENT"]);
}

#[test]
fn errors_of_jobs_and_wrong_blocks_fail_the_run() {
    let mut planned = super::tests_support::planned().plan;
    planned.steps.truncate(1);
    let jobs = vec![JobResult { errors: 3, first_error: -95, ..JobResult::default() }];
    let lines = vec![
        (1, event(Event::StepDone { step: 0, elapsed_ns: 1, jobs, modes: ModeCounts::default(), instructions: None })),
        (1, event(Event::Verified { step: 0, file: String::new(), blocks: 1, bad: 2 })),
        (1, event(Event::Done)),
        (1, end(ExitCode::Success)),
    ];
    let out = drive(&mut Script::new(lines), &planned, Some(LIMITS), &Unknown, &mut Silent).unwrap();
    assert_eq!(out.failures.len(), 2, "{:?}", out.failures);
    assert!(out.failures[0].contains("2 of 3 blocks of the raw disk were wrong"));
    assert!(out.failures[1].contains("[1-writers]: 3 I/Os failed"));
}

#[test]
fn an_unreadable_event_fails_the_run() {
    let lines = vec![(1, line("@ {\"What\": 1}")), (1, done(0)), (1, event(Event::Done)), (1, end(ExitCode::Success))];
    let out = run(&mut Script::new(lines), 1);
    assert!(out.failures[0].contains("cannot be read"), "{:?}", out.failures);
}

#[test]
fn a_silent_guest_is_asked_where_it_stands_and_killed() {
    let lines = vec![
        (1, event(Event::StepStart { step: 1 })),
        (200, event(Event::Progress { step: 1, elapsed_ms: 200, ios: 70 })),
    ];
    let mut vm = Script::new(lines);
    vm.on_nmi = Some(vec![line("NMI on CPU 0"), line("  0x1018f0")]);
    let out = run(&mut vm, 2);
    assert_eq!(vm.nmis, 1);
    assert!(vm.killed);
    assert_eq!(out.failures.len(), 1, "{:?}", out.failures);
    let told = &out.failures[0];
    assert!(told.contains("no line from the guest for 10 s"), "{told}");
    assert!(told.contains("in step 2 of 2 (step 1), 200 ms after its start, 70 I/Os done"), "{told}");
    let log: Vec<&str> = out.log.iter().map(String::as_str).collect();
    assert_eq!(log, ["watchdog: CPU#0", "watchdog: RIP=00000000001018f0 RFL=00000246", "NMI on CPU 0", "  0x1018f0"]);
    assert_eq!(vm.now, Duration::from_millis(201) + LIMITS.silence + LIMITS.grace);
}

#[test]
fn a_guest_that_answers_the_nmi_ends_by_itself() {
    let mut vm = Script::new(Vec::new());
    vm.on_nmi = Some(vec![line("backtrace"), end(ExitCode::Fault)]);
    let out = run(&mut vm, 1);
    assert!(!vm.killed);
    assert!(out.failures.len() == 1 && out.failures[0].contains("outside of any step"), "{:?}", out.failures);
}

#[test]
fn a_machine_whose_monitor_is_dead_is_killed_too() {
    let mut vm = Script::new(Vec::new());
    let out = run(&mut vm, 1);
    assert!(vm.killed && out.log.iter().any(|l| l.contains("nobody there")));
    assert_eq!(out.failures.len(), 1);
}

#[test]
fn a_guest_that_talks_and_gets_nowhere_is_caught() {
    // The ticker lives, the writers do not.
    let mut lines = vec![(1, event(Event::StepStart { step: 0 }))];
    lines.extend((0..10_000).map(|i| (200, event(Event::Progress { step: 0, elapsed_ms: i * 200, ios: 5 }))));
    let out = run(&mut Script::new(lines), 1);
    assert!(out.failures[0].contains("has not got on for 20 s"), "{:?}", out.failures);
    // Log lines are no progress either, and do not fill memory.
    let lines = (0..50_000).map(|_| (1, line("spam"))).collect();
    let out = run(&mut Script::new(lines), 1);
    assert!(out.failures[0].contains("has not got on"), "{:?}", out.failures);
    assert!(out.log.len() <= LOG_LINES);
}

#[test]
fn a_slow_guest_that_gets_on_is_left_alone() {
    let mut lines = vec![(9_000, event(Event::StepStart { step: 0 }))];
    lines.extend((0..100).map(|i| (9_000, event(Event::Progress { step: 0, elapsed_ms: i * 9_000, ios: i }))));
    lines.extend([(9_000, done(0)), (9_000, event(Event::Done)), (9_000, end(ExitCode::Success))]);
    let out = run(&mut Script::new(lines), 1);
    assert_eq!(out.failures, Vec::<String>::new());
}

#[test]
fn an_interrupt_kills_the_machine() {
    let mut vm = Script { interrupted: true, ..Script::default() };
    assert!(drive(&mut vm, &plan(1), Some(LIMITS), &Unknown, &mut Silent).is_err());
    assert!(vm.killed);
}

#[test]
fn without_limits_nothing_is_taken_for_dead() {
    let day = 24 * 3_600_000;
    let mut vm = Script::new(vec![(day, done(0)), (day, event(Event::Done)), (1, end(ExitCode::Success))]);
    let out = drive(&mut vm, &plan(1), None, &Unknown, &mut Silent).unwrap();
    assert_eq!(out.failures, Vec::<String>::new());
}
