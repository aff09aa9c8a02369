// SPDX-License-Identifier: GPL-2.0-only
//! [`Task`]: what the crate knows of a thread.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::block::PlugSlot;

/// A thread that can sleep. Tasks are never freed, only used again for other threads, so a wake-up
/// that comes too late hits nothing worse than a sleeper that looks again.
#[doc(alias = "task_struct")]
#[repr(C)]
#[repr(align(64))]
pub struct Task {
    name: &'static str,
    /// What this task has plugged, if anything; only the task itself looks at it.
    pub(crate) plug: PlugSlot,
    /// The back end's: whether an unpark is due, and whatever else it keeps in a word.
    token: AtomicU32,
    /// See [`Task::set_cap_fsetid`].
    cap_fsetid: AtomicBool,
    #[cfg(all(feature = "lockdep", debug_assertions))]
    pub(crate) held: crate::sync::lockdep::Held,
    #[cfg(all(feature = "host", not(feature = "bare")))]
    pub(super) host: super::host::HostTask,
}

impl Task {
    /// A task without a plug and with the token 0.
    pub const fn new(name: &'static str) -> Task {
        Task {
            name,
            plug: PlugSlot::new(),
            token: AtomicU32::new(0),
            cap_fsetid: AtomicBool::new(false),
            #[cfg(all(feature = "lockdep", debug_assertions))]
            held: crate::sync::lockdep::Held::new(),
            #[cfg(all(feature = "host", not(feature = "bare")))]
            host: super::host::HostTask::new(),
        }
    }

    /// The name that it was made with.
    #[doc(alias = "comm")]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The word that is the back end's to use.
    #[inline]
    pub fn token(&self) -> &AtomicU32 {
        &self.token
    }

    /// Whether what the task does for somebody leaves set-user-ID and set-group-ID bits alone, because he may give them: C's
    /// `capable(CAP_FSETID)`. No task does before it is told so; only the task itself says.
    #[inline]
    pub fn cap_fsetid(&self) -> bool {
        self.cap_fsetid.load(Ordering::Relaxed)
    }

    /// Sets [`Task::cap_fsetid`], until it is set again.
    #[doc(alias = "override_creds")]
    pub fn set_cap_fsetid(&self, on: bool) {
        self.cap_fsetid.store(on, Ordering::Relaxed);
    }

    /// Whether this task is the one running here.
    #[inline]
    pub fn is_current(&self) -> bool {
        ptr::eq(self, super::current())
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task({})", self.name)
    }
}

static_assertions::assert_impl_all!(Task: Send, Sync);
