// SPDX-License-Identifier: GPL-2.0-only
//! [`Completion`]: sleeping until something has been done, once per doing or for ever after.

use core::fmt;

use super::SpinLock;
use super::waiter::{WaitList, Waiter, Want};
use crate::sched::{self, Point, sched_wait};

/// Counts what has been completed and not yet been waited for.
///
/// May live on the stack of the thread that waits: whoever completes does not touch it any more
/// once the waiter can return.
pub struct Completion {
    state: SpinLock<State>,
}

struct State {
    /// How many waits will not sleep; [`DONE_FOR_ALL`] is not used up.
    done: u32,
    waiters: WaitList,
}

const DONE_FOR_ALL: u32 = u32::MAX;

impl State {
    /// Uses up one completion, if there is one.
    fn take(&mut self) -> bool {
        match self.done {
            0 => false,
            DONE_FOR_ALL => true,
            _ => {
                self.done -= 1;
                true
            }
        }
    }
}

impl Completion {
    /// With nothing completed.
    #[doc(alias = "init_completion")]
    pub const fn new() -> Completion {
        Completion { state: SpinLock::untracked(State { done: 0, waiters: WaitList::new() }) }
    }

    /// Sleeps until there is a completion, and uses it up.
    #[doc(alias = "wait_for_completion")]
    pub fn wait(&self) {
        sched::might_sleep();
        // Its holders never change tasks: it is free.
        sched_wait(Point::Wait, &self.state, |state| state.peek(|state| state.done) != Some(0));
        if self.try_wait() {
            return;
        }
        sched::flush_plug();
        let waiter = Waiter::new(Want::Write);
        loop {
            {
                let mut state = self.state.lock();
                if state.take() {
                    if waiter.is_queued() {
                        // SAFETY: It is in this list.
                        unsafe { state.waiters.remove(&waiter) };
                    }
                    return;
                }
                if !waiter.is_queued() {
                    // SAFETY: In no list; and the only way out of this function is just above.
                    unsafe { state.waiters.push_back(&waiter) };
                }
            }
            sched::schedule();
        }
    }

    /// Uses up a completion if there is one. Any context.
    #[doc(alias = "try_wait_for_completion")]
    pub fn try_wait(&self) -> bool {
        self.state.lock().take()
    }

    /// Lets one wait end, now or in future. Any context.
    pub fn complete(&self) {
        let mut state = self.state.lock();
        if state.done < DONE_FOR_ALL - 1 {
            state.done += 1;
        }
        state.waiters.wake_first();
    }

    /// Lets all waits end, now and in future, until [`reinit`](Completion::reinit). Any context.
    pub fn complete_all(&self) {
        let mut state = self.state.lock();
        state.done = DONE_FOR_ALL;
        while state.waiters.wake_first() {}
    }

    /// Whether a wait would not sleep. Any context.
    #[doc(alias = "completion_done")]
    pub fn done(&self) -> bool {
        self.state.lock().done != 0
    }

    /// As new; nobody can be waiting.
    #[doc(alias = "reinit_completion")]
    pub fn reinit(&mut self) {
        self.state.get_mut().done = 0;
    }
}

impl Default for Completion {
    fn default() -> Completion {
        Completion::new()
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.done() { "Completion(done)" } else { "Completion(pending)" })
    }
}
