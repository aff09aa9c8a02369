// SPDX-License-Identifier: GPL-2.0-only
//! What lockdep says.

use core::fmt::{self, Write as _};
use core::panic::Location;

use super::Mode;
use super::graph::{self, ClassId, ClassKey, Edge};
use super::held::{self, Entry};
use crate::sched;

type Site = &'static Location<'static>;

/// The text of a report: too long a line is cut off.
struct Line(heapless::String<1024>);

impl fmt::Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            // Cut off.
            let _ = self.0.push(c);
        }
        Ok(())
    }
}

fn line(args: fmt::Arguments<'_>) -> Line {
    let mut line = Line(heapless::String::new());
    // Never fails.
    let _ = line.write_fmt(args);
    line
}

struct Name(ClassId);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match graph::with(|graph| graph.key(self.0).copied()) {
            Some(key) => key.fmt(f),
            None => f.write_str("?"),
        }
    }
}

fn how(mode: Mode) -> &'static str {
    match mode {
        Mode::Read => "read",
        Mode::Write => "write",
    }
}

/// Whether a report would be one too many: the thread is on its way out by a panic already, or says something.
fn is_silent() -> bool {
    #[cfg(feature = "host")]
    if std::thread::panicking() {
        return true;
    }
    held::with(|stack| stack.is_reporting())
}

/// Logs what is held, and what `more` has to say, and panics with `head`.
#[track_caller]
fn report(head: &Line, more: impl FnOnce()) {
    if is_silent() {
        return;
    }
    held::with(|stack| stack.set_reporting(true));
    crate::pr_err!("lockdep: {}", head.0);
    crate::pr_err!("  {:?} holds", sched::current());
    let mut n = 0;
    while let Some(entry) = held::with(|stack| stack.entries().nth(n).copied()) {
        crate::pr_err!("    {} ({}) since {}", Name(entry.class), how(entry.mode), entry.site);
        n += 1;
    }
    more();
    held::with(|stack| stack.set_reporting(false));
    bug_on!(true, "lockdep: {}", head.0);
}

/// The chain of an earlier order, as names.
struct Chain<'a>(&'a [Edge]);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for edge in self.0 {
            write!(f, "{} → ", Name(edge.from))?;
        }
        self.0.last().map_or(Ok(()), |last| Name(last.to).fmt(f))
    }
}

fn log_chain(path: &[Edge]) {
    crate::pr_err!("  against the order");
    for edge in path {
        match edge.seen {
            Some(seen) => crate::pr_err!(
                "    {} (at {}) → {} (at {}), by {}",
                Name(edge.from),
                seen.from_site,
                Name(edge.to),
                seen.to_site,
                seen.task
            ),
            None => crate::pr_err!("    {} → {}, as documented", Name(edge.from), Name(edge.to)),
        }
    }
}

/// Taking `class` under `from`, where `path` says that `from` comes under `class`.
#[cold]
#[track_caller]
pub(super) fn inversion(class: ClassId, mode: Mode, site: Site, from: ClassId, path: &[Edge]) {
    let head = line(format_args!("order inversion: {} → {}, but before {}", Name(from), Name(class), Chain(path)));
    report(&head, || {
        crate::pr_err!("  and takes {} ({}) at {site}", Name(class), how(mode));
        log_chain(path);
    });
}

/// Declaring `from` before `to`, where `path` was seen or declared.
#[cold]
#[track_caller]
pub(super) fn contradiction(from: ClassId, to: ClassId, path: &[Edge]) {
    let head = line(format_args!("documented order {} → {}, but before {}", Name(from), Name(to), Chain(path)));
    report(&head, || log_chain(path));
}

/// A lock that the task has already.
#[cold]
#[track_caller]
pub(super) fn twice(key: &ClassKey, held: Entry, mode: Mode, site: Site) {
    let head = line(format_args!("recursive locking: {key} ({}) under itself ({})", how(mode), how(held.mode)));
    report(&head, || crate::pr_err!("  and takes it again at {site}"));
}

/// A lock of a class of which the task has another.
#[cold]
#[track_caller]
pub(super) fn same_class(key: &ClassKey, held: Entry, mode: Mode, site: Site) {
    let head =
        line(format_args!("possible recursive locking: {key} ({}) under another ({})", how(mode), how(held.mode)));
    report(&head, || crate::pr_err!("  and takes another {key} at {site}"));
}

/// Sleeping where none may be.
#[cold]
#[track_caller]
pub(super) fn sleeping(place: &str, spin: Option<Entry>) {
    let head = match spin {
        Some(spin) => line(format_args!("sleeping {place}: {}, taken at {}", Name(spin.class), spin.site)),
        None => line(format_args!("sleeping {place}")),
    };
    let site = Location::caller();
    report(&head, || crate::pr_err!("  and sleeps at {site}"));
}

/// Locks beyond the first `before` at an end, where there should be none.
#[cold]
pub(super) fn held_at(what: &str, name: &str, before: usize) {
    let first = held::with(|stack| stack.entries().nth(before).copied());
    let Some(first) = first else { return };
    let head = line(format_args!("lock held at the {what} {name}: {}, taken at {}", Name(first.class), first.site));
    if !is_silent() {
        // Reported once.
        let forget = Forget(before);
        report(&head, || ());
        drop(forget);
    }
}

struct Forget(usize);

impl Drop for Forget {
    fn drop(&mut self) {
        held::forget_from(self.0);
    }
}

/// Giving up a lock that the task does not have.
#[cold]
pub(super) fn not_held(key: &ClassKey) {
    report(&line(format_args!("unlocking what is not held: {key}")), || ());
}

/// A lock went away that the task holds.
#[cold]
pub(super) fn freed(key: &ClassKey) {
    report(&line(format_args!("freeing a held lock: {key}")), || ());
}

/// No room for one more held lock.
#[cold]
pub(super) fn too_many(key: &ClassKey) {
    report(&line(format_args!("too many locks held, with {key}")), || ());
}
