// SPDX-License-Identifier: GPL-2.0-only
//! Hooks for tests, and nothing at all without feature `fault-injection`.
//!
//! * [`reverted`]: at the one place that closes a known race, the code asks whether that fix is switched off. A test is worth
//!   something if it fails then.
//! * [`trace`]: tracepoints, at which a test that runs on this thread looks at the locks or changes the world.

/// A bug that the kernel had, or that the patch of 2012 brought; named by the race it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// The write is counted in flight before `i_mutex` is given up.
    G1,
    /// Memory is faulted in before the window, not inside it.
    G6,
    /// The verdict is left in the kiocb whatever the file's flags are by then.
    G7,
    /// Freezing waits for direct I/O in flight.
    G8,
    /// Missing memory ends the write; nothing is written in its place.
    G9,
    /// An `O_DSYNC` write is synced when its data is on the device, not when it was submitted.
    G13,
    /// An unwritten extent that is under I/O is merged with nothing.
    G16,
    /// A split before I/O that finds no space leaves the extent unwritten.
    G29,
    /// A write that failed says so to `end_io`.
    G30,
    /// The write checks come before the verdict.
    G37,
}

impl Fix {
    /// All of them.
    pub const ALL: [Fix; 10] =
        [Fix::G1, Fix::G6, Fix::G7, Fix::G8, Fix::G9, Fix::G13, Fix::G16, Fix::G29, Fix::G30, Fix::G37];
}

/// Whether this was built with feature `fault-injection`: benchmarks say so beside their figures.
pub const HOOKS: bool = cfg!(feature = "fault-injection");

/// The environment variable that names a [`Fix`] to switch off in this process.
pub const REVERT_VAR: &str = "EXT4_DIO_REVERT";

/// Whether `fix` is switched off.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub const fn reverted(_fix: Fix) -> bool {
    false
}

/// A tracepoint: `name` is the C function or step it is in.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub const fn trace(_name: &'static str) {}

#[cfg(feature = "fault-injection")]
pub use hosted::{Tracing, on_trace, reverted, trace};

#[cfg(feature = "fault-injection")]
mod hosted {
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::format;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

    use super::{Fix, REVERT_VAR};

    /// [`REVERTED`] before anybody asked; else 0 for none, or 1 and the fix's number.
    const UNKNOWN: u8 = u8::MAX;
    /// The environment is looked at once: it does not change, so it does not matter by whom.
    static REVERTED: AtomicU8 = AtomicU8::new(UNKNOWN);

    /// Whether `fix` is switched off in this process.
    #[inline]
    pub fn reverted(fix: Fix) -> bool {
        match REVERTED.load(Ordering::Relaxed) {
            0 => false,
            UNKNOWN => look() == fix as u8 + 1,
            other => other == fix as u8 + 1,
        }
    }

    #[cold]
    fn look() -> u8 {
        let name = std::env::var(REVERT_VAR).unwrap_or_default();
        let reverted = Fix::ALL.into_iter().find(|fix| format!("{fix:?}") == name).map_or(0, |fix| fix as u8 + 1);
        REVERTED.store(reverted, Ordering::Relaxed);
        reverted
    }

    type Hook = Rc<dyn Fn(&'static str)>;

    /// How many [`Tracing`]s there are: without any, no thread looks for its hook.
    static TRACINGS: AtomicUsize = AtomicUsize::new(0);

    std::thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Ends the tracing of this thread when it goes away.
    #[must_use = "tracing ends with it"]
    pub struct Tracing(());

    impl Drop for Tracing {
        fn drop(&mut self) {
            TRACINGS.fetch_sub(1, Ordering::Relaxed);
            HOOK.with_borrow_mut(|hook| *hook = None);
        }
    }

    /// Calls `hook` at each tracepoint this thread comes to. A tracepoint inside the hook is not traced.
    pub fn on_trace(hook: impl Fn(&'static str) + 'static) -> Tracing {
        HOOK.with_borrow_mut(|slot| *slot = Some(Rc::from(Box::new(hook) as Box<dyn Fn(&'static str)>)));
        // A thread's own hook is the only one that it must see, and it sees what it did itself.
        TRACINGS.fetch_add(1, Ordering::Relaxed);
        Tracing(())
    }

    /// A tracepoint.
    #[inline]
    pub fn trace(name: &'static str) {
        if TRACINGS.load(Ordering::Relaxed) != 0 {
            trace_here(name);
        }
    }

    #[cold]
    fn trace_here(name: &'static str) {
        let hook = HOOK.with_borrow_mut(Option::take);
        if let Some(hook) = hook {
            hook(name);
            HOOK.with_borrow_mut(|slot| *slot = slot.take().or(Some(hook)));
        }
    }
}
