// SPDX-License-Identifier: GPL-2.0-only
//! The kernel's log: a level and one line of text per call, handed to the back end's console.
//!
//! `pr_err!("{}: …", name)` and the like take what `format!` takes and need no newline at the
//! end. Nothing is allocated on the way, and any context may log.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// The system is unusable.
pub const KERN_EMERG: u8 = 0;
/// Somebody must act at once.
pub const KERN_ALERT: u8 = 1;
/// Critical condition.
pub const KERN_CRIT: u8 = 2;
/// Error.
pub const KERN_ERR: u8 = 3;
/// Warning.
pub const KERN_WARNING: u8 = 4;
/// Normal, but worth knowing.
pub const KERN_NOTICE: u8 = 5;
/// Information.
pub const KERN_INFO: u8 = 6;
/// For debugging.
pub const KERN_DEBUG: u8 = 7;

/// Messages of this level and above (less urgent) are dropped.
static CONSOLE_LOGLEVEL: AtomicU8 = AtomicU8::new(KERN_DEBUG);

/// Shows only messages more urgent than `level` from now on. Initially all but [`KERN_DEBUG`].
#[doc(alias = "console_loglevel")]
pub fn set_console_loglevel(level: u8) {
    CONSOLE_LOGLEVEL.store(level, Ordering::Relaxed);
}

/// Logs one line. The `pr_*!` macros call this. Any context.
#[doc(alias = "_printk")]
pub fn printk(level: u8, args: fmt::Arguments<'_>) {
    if level < CONSOLE_LOGLEVEL.load(Ordering::Relaxed) {
        crate::sched::console(level, args);
    }
}

#[cfg(all(feature = "host", not(feature = "bare")))]
pub use crate::sched::host::{Sink, set_sink};

/// Logs at level [`KERN_EMERG`].
#[macro_export]
macro_rules! pr_emerg {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_EMERG, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_ALERT`].
#[macro_export]
macro_rules! pr_alert {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_ALERT, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_CRIT`].
#[macro_export]
macro_rules! pr_crit {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_CRIT, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_ERR`].
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_ERR, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_WARNING`].
#[macro_export]
macro_rules! pr_warn {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_WARNING, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_NOTICE`].
#[macro_export]
macro_rules! pr_notice {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_NOTICE, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_INFO`].
#[macro_export]
macro_rules! pr_info {
    ($($arg:tt)*) => { $crate::printk::printk($crate::printk::KERN_INFO, ::core::format_args!($($arg)*)) };
}

/// Logs at level [`KERN_DEBUG`], in builds with debug assertions only; the arguments are always
/// type-checked.
#[macro_export]
macro_rules! pr_debug {
    ($($arg:tt)*) => {
        if ::core::cfg!(debug_assertions) {
            $crate::printk::printk($crate::printk::KERN_DEBUG, ::core::format_args!($($arg)*))
        }
    };
}

/// [`pr_err!`], the first time that this line is reached.
#[macro_export]
macro_rules! pr_err_once {
    ($($arg:tt)*) => { $crate::do_once!($crate::pr_err!($($arg)*)) };
}

/// [`pr_warn!`], the first time that this line is reached.
#[macro_export]
macro_rules! pr_warn_once {
    ($($arg:tt)*) => { $crate::do_once!($crate::pr_warn!($($arg)*)) };
}

/// Evaluates an expression the first time that this line is reached, on whatever CPU.
#[macro_export]
macro_rules! do_once {
    ($what:expr) => {{
        static DONE: ::core::sync::atomic::AtomicBool = ::core::sync::atomic::AtomicBool::new(false);
        if !DONE.swap(true, ::core::sync::atomic::Ordering::Relaxed) {
            $what;
        }
    }};
}
