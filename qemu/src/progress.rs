// SPDX-License-Identifier: GPL-2.0-only
//! What is shown while a guest runs: one line that changes on a terminal, else a line for each step.

use std::io::{IsTerminal, Write};

use ext4_dio_protocol::{Event, JobResult, Plan};

/// Takes what a guest tells, as it comes.
pub trait Progress {
    /// An event has come.
    fn event(&mut self, plan: &Plan, event: &Event);
    /// The guest has ended.
    fn end(&mut self);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _plan: &Plan, _event: &Event) {}
    fn end(&mut self) {}
}

/// Shows what each line of a script gave.
#[derive(Debug)]
pub struct Lines<W>(pub W);

impl<W: Write> Progress for Lines<W> {
    fn event(&mut self, _plan: &Plan, event: &Event) {
        let Event::Ran { line, text, out } = event else { return };
        // Somebody who reads no more is no reason to stop.
        let _ = match out.as_str() {
            "" => writeln!(self.0, "{line:4}  {text}"),
            out if out.contains('\n') => {
                writeln!(self.0, "{line:4}  {text}\n        {}", out.replace('\n', "\n        "))
            }
            out => writeln!(self.0, "{line:4}  {text}: {out}"),
        };
    }

    fn end(&mut self) {
        let _ = self.0.flush();
    }
}

/// Writes to a terminal or a file.
#[derive(Debug)]
pub struct Ticker<W> {
    out: W,
    tty: bool,
    dirty: bool,
}

impl Ticker<std::io::Stderr> {
    /// On stderr.
    pub fn stderr() -> Self {
        let out = std::io::stderr();
        let tty = out.is_terminal();
        Ticker { out, tty, dirty: false }
    }
}

impl<W: Write> Ticker<W> {
    /// On `out`, which is a terminal or is not.
    pub fn new(out: W, tty: bool) -> Self {
        Ticker { out, tty, dirty: false }
    }

    /// Replaces the line on a terminal.
    fn show(&mut self, line: &str) {
        // A terminal that is gone is no reason to stop.
        let _ = write!(self.out, "\r{line}\x1b[K");
        let _ = self.out.flush();
        self.dirty = true;
    }
}

impl<W: Write> Progress for Ticker<W> {
    fn event(&mut self, plan: &Plan, event: &Event) {
        let total = plan.steps.len();
        let step = |id: u32| {
            let index = plan.steps.iter().position(|s| s.id == id);
            let label = index.and_then(|i| plan.steps.get(i)).map_or("?", |s| s.label.as_str());
            format!("[{:2}/{total}] {label:<28}", index.map_or(0, |i| i + 1))
        };
        match event {
            Event::StepStart { step: id } if self.tty => self.show(&step(*id)),
            Event::Progress { step: id, elapsed_ms, ios } if self.tty && !plan.count_instructions => {
                let iops = ios.saturating_mul(1000) / (*elapsed_ms).max(1);
                self.show(&format!("{} {:4}.{} s {iops:8} IOPS", step(*id), elapsed_ms / 1000, elapsed_ms / 100 % 10));
            }
            Event::StepDone { step: id, elapsed_ns, jobs, instructions, .. } => {
                let ios: u64 = jobs.iter().map(|j: &JobResult| j.read.ios + j.write.ios + j.trim.ios).sum();
                let iops = ios as f64 * 1e9 / (*elapsed_ns).max(1) as f64;
                // The clock of a guest whose instructions are counted has nothing to do with ours.
                let line = match instructions {
                    Some(n) => format!("{} {:8.0} instructions per I/O", step(*id), *n as f64 / ios.max(1) as f64),
                    None => format!("{} {:6.1} s {iops:8.0} IOPS", step(*id), *elapsed_ns as f64 / 1e9),
                };
                if self.tty {
                    self.show(&line);
                } else {
                    let _ = writeln!(self.out, "{line}");
                }
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        if self.dirty {
            // The table comes next and says it all.
            let _ = write!(self.out, "\r\x1b[K");
            let _ = self.out.flush();
            self.dirty = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests_support::plan;

    fn shown(tty: bool) -> String {
        let plan = plan(2);
        let mut ticker = Ticker::new(Vec::new(), tty);
        ticker.event(&plan, &Event::StepStart { step: 1 });
        ticker.event(&plan, &Event::Progress { step: 1, elapsed_ms: 1500, ios: 3000 });
        let mut job = JobResult::default();
        job.write.ios = 4000;
        let done = Event::StepDone {
            step: 1,
            elapsed_ns: 2_000_000_000,
            jobs: vec![job],
            modes: Default::default(),
            instructions: None,
        };
        ticker.event(&plan, &done);
        ticker.end();
        String::from_utf8(ticker.out).unwrap()
    }

    #[test]
    fn one_changing_line_on_a_terminal() {
        let text = shown(true);
        assert!(!text.contains('\n'));
        assert!(text.contains("[ 2/2] step 1"), "{text:?}");
        assert!(text.contains("1.5 s     2000 IOPS"), "{text:?}");
        assert!(text.ends_with("\r\x1b[K"));
    }

    #[test]
    fn a_line_of_a_script_and_what_it_gave() {
        let mut lines = Lines(Vec::new());
        for out in ["", "ENOENT, as expected", "a\nb"] {
            lines.event(&plan(0), &Event::Ran { line: 7, text: "op /x".into(), out: out.into() });
        }
        let text = String::from_utf8(lines.0).unwrap();
        assert_eq!(text, "   7  op /x\n   7  op /x: ENOENT, as expected\n   7  op /x\n        a\n        b\n");
    }

    #[test]
    fn a_line_per_step_elsewhere() {
        let text = shown(false);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("[ 2/2] step 1") && text.contains("2.0 s     2000 IOPS"), "{text:?}");
        assert!(!text.contains('\r') && !text.contains('\x1b'));
        let mut ticker = Ticker::new(Vec::new(), false);
        let mut job = JobResult::default();
        job.write.ios = 10;
        let done = Event::StepDone {
            step: 0,
            elapsed_ns: 7,
            jobs: vec![job],
            modes: Default::default(),
            instructions: Some(5000),
        };
        ticker.event(&plan(1), &done);
        assert!(String::from_utf8(ticker.out).unwrap().ends_with(" 500 instructions per I/O\n"));
    }
}
