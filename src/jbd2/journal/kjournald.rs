// SPDX-License-Identifier: GPL-2.0-only
//! The journal's thread: it commits what is asked for, and what is old.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::Arc;
use kernel_shim::error::{Result, code::*};
use kernel_shim::sched;

use super::Journal;
use crate::SuperBlock;
use crate::jbd2::disk::tid_geq;

impl Journal {
    /// Begins: sets the features, and starts the thread that commits, which holds the mount until [`Journal::destroy`]. The log
    /// must be empty: EINVAL. Sleeps.
    #[doc(alias = "jbd2_journal_load")]
    pub fn start_thread(journal: &Arc<Self>, sb: Option<Arc<SuperBlock>>) -> Result {
        if journal.needs_recovery() {
            return Err(EINVAL);
        }
        journal.set_features()?;
        let mut thread = journal.thread.lock();
        if thread.is_some() {
            return Err(EBUSY);
        }
        {
            let mut state = journal.state.lock();
            if state.aborted.is_some() {
                return Err(EROFS);
            }
            state.stop = false;
        }
        let this = journal.clone();
        *thread = Some(sched::spawn("jbd2", move || this.kjournald2())?);
        *journal.sb.lock() = sb;
        journal.state.lock().started = true;
        Ok(())
    }

    /// Commits what is asked for or old enough, until it is told to stop.
    fn kjournald2(&self) {
        loop {
            let mut todo = Todo::default();
            let timeout = self.next_timeout();
            let mut look = || {
                todo = self.look();
                todo.any()
            };
            match timeout {
                Some(ns) => {
                    self.j_wait_commit.wait_event_timeout(look, ns);
                }
                None => self.j_wait_commit.wait_event(&mut look),
            }
            if todo.record_errno {
                self.record_errno();
            }
            if todo.commit {
                self.jbd2_journal_commit_transaction();
            } else if todo.stop {
                return;
            }
        }
    }

    /// How long the thread may sleep if nobody asks for it: until the running transaction is old.
    fn next_timeout(&self) -> Option<u64> {
        let now = sched::now_ns();
        let interval = self.commit_interval_ms.load(Ordering::Relaxed).max(1).saturating_mul(1_000_000);
        let mut state = self.state.lock();
        let aborted = state.aborted.is_some();
        let running = state.running.as_mut().filter(|_| !aborted)?;
        if running.expires_ns == 0 {
            running.expires_ns = now.saturating_add(interval).max(1);
        }
        Some(running.expires_ns.saturating_sub(now))
    }

    fn look(&self) -> Todo {
        let now = sched::now_ns();
        let state = self.state.lock();
        let mut todo = Todo { stop: state.stop, record_errno: state.record_errno, ..Todo::default() };
        if let Some(running) = state.running.as_ref().filter(|_| state.aborted.is_none()) {
            let asked = tid_geq(state.commit_request, running.trans.tid);
            let old = running.expires_ns != 0 && now >= running.expires_ns;
            todo.commit = asked || old || state.stop;
            // A new one: its time begins.
            todo.clock = running.expires_ns == 0;
        }
        todo
    }
}

/// What the thread has found to do.
#[derive(Clone, Copy, Default)]
struct Todo {
    stop: bool,
    commit: bool,
    record_errno: bool,
    clock: bool,
}

impl Todo {
    fn any(self) -> bool {
        self.stop || self.commit || self.record_errno || self.clock
    }
}
