// SPDX-License-Identifier: GPL-2.0-only
//! Hooks for tests, and nothing at all without feature `fault-injection`.
//!
//! * [`reverted`]: at the one place that closes a known race, the code asks whether that fix is switched off. A test is worth
//!   something if it fails then.
//! * [`trace`]: tracepoints, at which a test that runs on this thread looks at the locks or changes the world.

/// A bug that the kernel had, or that the patch of 2012 brought; named by the race it was. What comes of it, where it is closed and which test
/// shows that, is in a table in the documentation of ext4-dio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fix {
    /// The write is counted in flight before `i_mutex` is given up.
    G1,
    /// Punching a hole waits for direct I/O in flight.
    G2,
    /// Whoever moves blocks of a file to another place waits for direct I/O in flight.
    G3,
    /// What is to be done at the end of a write is kept in that write, not in the inode.
    G4,
    /// The submitter has a reference of its own on what it touches after its last bio was sent, however early that completes.
    G5,
    /// Memory is faulted in before the window, not inside it.
    G6,
    /// The verdict is left in the kiocb whatever the file's flags are by then.
    G7,
    /// A write needs the right to write, and freezing waits for direct I/O in flight.
    G8,
    /// Missing memory ends the write; nothing is written in its place.
    G9,
    /// The size is moved by a write that was found to extend, outwards only, and while it is counted in flight; by nobody afterwards.
    G10,
    /// Cached pages of the range are dropped when the write is on the device.
    G11,
    /// A buffered writer waits for direct writes in flight.
    G12,
    /// An `O_DSYNC` write is synced when its data is on the device, not when it was submitted.
    G13,
    /// The end of a write takes no lock that those who wait for it hold.
    G14,
    /// fsync waits for data that is on the device and not in the map yet.
    G15,
    /// An unwritten extent that is under I/O is merged with nothing, and `fallocate` waits for that I/O.
    G16,
    /// A write that zeroes around itself is alone in the device.
    G17,
    /// A write at or past the end that does not begin or end with a block counts as one that zeroes.
    G18,
    /// A write that zeroes waits for those in flight under `i_mutex`, which keeps new ones from starting.
    G19,
    /// Each inode has its own lock for unaligned writes, and its own queue of waiters.
    G20,
    /// Who waits for direct I/O keeps readers without locks from starting, too.
    G21,
    /// Readers without locks stay out until the size has changed.
    G22,
    /// A range of several written extents is an overwrite.
    G23,
    /// A write inside `i_size` but past `i_disksize` is one that extends.
    G24,
    /// The size is moved before the cached pages of the range are dropped.
    G25,
    /// The size is on the device before an `O_SYNC` write that moved it is told of.
    G26,
    /// Whoever moves the size on disk when data is there looks at both sizes under the lock that they are changed under.
    G27,
    /// The lock is held from the checks on; after it was given up and taken again, all are made again.
    G28,
    /// A split before I/O that finds no space leaves the extent unwritten.
    G29,
    /// A write that failed says so to `end_io`.
    G30,
    /// A write that finds no memory after the swap of locks leaves as any other does.
    G31,
    /// A write that fails is counted out like one that succeeds.
    G32,
    /// The journalling flag of a file changes only with no I/O on it in flight.
    G33,
    /// A write that may not wait takes only locks that are free, and allocates nothing.
    G34,
    /// A write that needs nobody out of the device does not wait for reads in flight, with a lock that others then stand behind.
    G35,
    /// Truncation waits for direct I/O without a journal, too.
    G36,
    /// The write checks come before the verdict.
    G37,
}

impl Fix {
    /// All of them.
    pub const ALL: [Fix; 37] = [
        Fix::G1,
        Fix::G2,
        Fix::G3,
        Fix::G4,
        Fix::G5,
        Fix::G6,
        Fix::G7,
        Fix::G8,
        Fix::G9,
        Fix::G10,
        Fix::G11,
        Fix::G12,
        Fix::G13,
        Fix::G14,
        Fix::G15,
        Fix::G16,
        Fix::G17,
        Fix::G18,
        Fix::G19,
        Fix::G20,
        Fix::G21,
        Fix::G22,
        Fix::G23,
        Fix::G24,
        Fix::G25,
        Fix::G26,
        Fix::G27,
        Fix::G28,
        Fix::G29,
        Fix::G30,
        Fix::G31,
        Fix::G32,
        Fix::G33,
        Fix::G34,
        Fix::G35,
        Fix::G36,
        Fix::G37,
    ];
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
        #[cfg(all(feature = "sim", not(feature = "bare")))]
        crate::sched::sim::trace(name);
        if TRACINGS.load(Ordering::Relaxed) != 0 {
            trace_here(name);
        }
    }

    #[cold]
    fn trace_here(name: &'static str) {
        let hook = HOOK.with_borrow_mut(Option::take);
        if let Some(hook) = hook {
            // What it does is another's doing.
            crate::sync::lockdep::aside(|| hook(name));
            HOOK.with_borrow_mut(|slot| *slot = slot.take().or(Some(hook)));
        }
    }
}
