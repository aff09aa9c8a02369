// SPDX-License-Identifier: GPL-2.0-only
//! Threads: [`spawn`], and [`JoinHandle`] to wait for their end.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{Task, backend};
use crate::alloc::{Arc, GFP_KERNEL, KBox};
use crate::error::Result;
use crate::sync::{Completion, lockdep};

/// What a thread shares with those who wait for its end.
struct Exit {
    /// Completed for all when the thread's closure has returned or unwound.
    done: Completion,
    /// Whether it unwound; only the host does that.
    panicked: AtomicBool,
}

/// Completes the [`Exit`] on every way out of the closure.
struct ExitGuard {
    exit: Arc<Exit>,
    returned: bool,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.exit.panicked.store(!self.returned, Ordering::Relaxed);
        self.exit.done.complete_all();
    }
}

/// Submits, on every way out of the closure, what it has left plugged: that is not lost, nor left to
/// the task's next thread.
struct PlugExit;

impl Drop for PlugExit {
    fn drop(&mut self) {
        super::current().plug.exit();
    }
}

/// What a new thread gets.
struct Start<F> {
    closure: F,
    exit: ExitGuard,
    /// Whose allocations its own are counted with.
    #[cfg(all(feature = "fault-injection", not(feature = "bare")))]
    birth: crate::alloc::fault::Birth,
}

/// Where a thread begins.
fn thread_main<F: FnOnce()>(start: *mut ()) {
    // SAFETY: `spawn` made this pointer from such a box, for us.
    let start = unsafe { KBox::from_raw(start.cast::<Start<F>>()) };
    let start = KBox::into_inner(start);
    #[cfg(all(feature = "fault-injection", not(feature = "bare")))]
    start.birth.take();
    let (closure, mut exit) = (start.closure, start.exit);
    let _plug = PlugExit;
    // Whatever the closure owned is dropped before the end of the thread is made known.
    closure();
    lockdep::end_of_thread();
    exit.returned = true;
}

/// A thread that can be waited for. Dropping the handle lets it run on.
#[must_use = "a thread that nobody joins runs on by itself"]
#[derive(Clone)]
pub struct JoinHandle {
    exit: Arc<Exit>,
    task: &'static Task,
}

impl JoinHandle {
    /// Sleeps until the thread's closure has returned. What the thread has done is visible then.
    ///
    /// # Panics
    ///
    /// If the thread has panicked, which only a hosted one survives.
    pub fn join(self) {
        self.exit.done.wait();
        bug_on!(self.exit.panicked.load(Ordering::Relaxed), "{:?} panicked", self.task);
    }

    /// Whether the thread's closure has returned.
    pub fn is_finished(&self) -> bool {
        self.exit.done.done()
    }

    /// The thread's task.
    pub fn task(&self) -> &'static Task {
        self.task
    }
}

/// A new thread that runs `f`, on a CPU that the back end picks.
///
/// # Errors
///
/// `ENOMEM`, and what the back end has (`EAGAIN` on the host); `f` is dropped.
#[doc(alias = "kthread_run")]
pub fn spawn(name: &'static str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle> {
    start(name, None, f)
}

/// [`spawn`], on the given CPU where the back end knows of CPUs.
#[doc(alias = "kthread_run_on_cpu")]
pub fn spawn_on(cpu: u32, name: &'static str, f: impl FnOnce() + Send + 'static) -> Result<JoinHandle> {
    start(name, Some(cpu), f)
}

fn start<F: FnOnce() + Send + 'static>(name: &'static str, cpu: Option<u32>, closure: F) -> Result<JoinHandle> {
    let exit = Arc::new(Exit { done: Completion::new(), panicked: AtomicBool::new(false) }, GFP_KERNEL)?;
    let start = Start {
        closure,
        exit: ExitGuard { exit: exit.clone(), returned: false },
        #[cfg(all(feature = "fault-injection", not(feature = "bare")))]
        birth: crate::alloc::fault::Birth::give(),
    };
    let start = KBox::into_raw(KBox::new(start, GFP_KERNEL)?);
    match backend::spawn(name, cpu, thread_main::<F>, start.cast()) {
        Ok(task) => Ok(JoinHandle { exit, task }),
        Err(error) => {
            // SAFETY: There is no thread, so the box is ours again.
            drop(unsafe { KBox::from_raw(start) });
            Err(error)
        }
    }
}

static_assertions::assert_impl_all!(JoinHandle: Send, Sync);
