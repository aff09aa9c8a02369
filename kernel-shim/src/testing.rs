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
    /// Missing memory ends the write; nothing is written in its place.
    G9,
    /// An `O_DSYNC` write is synced when its data is on the device, not when it was submitted.
    G13,
    /// A write that failed says so to `end_io`.
    G30,
    /// The write checks come before the verdict.
    G37,
}

impl Fix {
    /// All of them.
    pub const ALL: [Fix; 7] = [Fix::G1, Fix::G6, Fix::G7, Fix::G9, Fix::G13, Fix::G30, Fix::G37];
}

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
    use std::sync::OnceLock;

    use super::{Fix, REVERT_VAR};

    /// Whether `fix` is switched off in this process.
    pub fn reverted(fix: Fix) -> bool {
        static REVERTED: OnceLock<Option<Fix>> = OnceLock::new();
        let reverted = REVERTED.get_or_init(|| {
            let name = std::env::var(REVERT_VAR).ok()?;
            Fix::ALL.into_iter().find(|fix| format!("{fix:?}") == name)
        });
        *reverted == Some(fix)
    }

    type Hook = Rc<dyn Fn(&'static str)>;

    std::thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Ends the tracing of this thread when it goes away.
    #[must_use = "tracing ends with it"]
    pub struct Tracing(());

    impl Drop for Tracing {
        fn drop(&mut self) {
            HOOK.with_borrow_mut(|hook| *hook = None);
        }
    }

    /// Calls `hook` at each tracepoint this thread comes to. A tracepoint inside the hook is not traced.
    pub fn on_trace(hook: impl Fn(&'static str) + 'static) -> Tracing {
        HOOK.with_borrow_mut(|slot| *slot = Some(Rc::from(Box::new(hook) as Box<dyn Fn(&'static str)>)));
        Tracing(())
    }

    /// A tracepoint.
    pub fn trace(name: &'static str) {
        let hook = HOOK.with_borrow_mut(Option::take);
        if let Some(hook) = hook {
            hook(name);
            HOOK.with_borrow_mut(|slot| *slot = slot.take().or(Some(hook)));
        }
    }
}
