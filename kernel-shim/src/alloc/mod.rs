// SPDX-License-Identifier: GPL-2.0-only
//! Memory, with Rust-for-Linux's names: [`KBox`], [`KVec`], [`Arc`], GFP [`flags`]; and [`Pool`],
//! the fixed-size cache from which the I/O path takes its bios and io_ends.
//!
//! Every allocation can fail and says so with [`AllocError`], which `?` turns into `ENOMEM`. The
//! memory itself is the back end's. With the feature `fault-injection` a test makes the n-th
//! allocation of its thread fail (`alloc::fault`).

mod arc;
#[cfg(all(feature = "fault-injection", not(feature = "bare")))]
pub mod fault;
pub mod flags;
mod kbox;
mod kvec;
#[cfg(all(feature = "fault-injection", not(feature = "bare")))]
pub mod meter;
mod pool;
#[cfg(all(test, feature = "host"))]
mod tests;

use core::alloc::Layout;
use core::fmt;
use core::ptr::{self, NonNull};

use crate::error::{Error, code};

pub use arc::Arc;
pub use flags::{Flags, GFP_ATOMIC, GFP_KERNEL, GFP_NOFAIL, GFP_NOFS, GFP_NOIO, GFP_ZERO};
pub use kbox::KBox;
pub use kvec::{IntoIter, KVec, make_room};
pub use pool::{Pool, PoolBox};

/// No memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocError;

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

impl core::error::Error for AllocError {}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Error {
        code::ENOMEM
    }
}

/// Whether a test wants this allocation to fail. Constant `false` without fault injection.
#[inline(always)]
fn injected_failure() -> bool {
    #[cfg(all(feature = "fault-injection", not(feature = "bare")))]
    return fault::should_fail();
    #[cfg(not(all(feature = "fault-injection", not(feature = "bare"))))]
    return false;
}

/// Memory for `layout`; dangling but aligned if its size is 0. Sleeps only in name: whoever says
/// `GFP_KERNEL` in interrupt context has a bug, which debug builds report.
fn kmalloc(layout: Layout, flags: Flags) -> Result<NonNull<u8>, AllocError> {
    if layout.size() == 0 {
        return NonNull::new(ptr::without_provenance_mut(layout.align())).ok_or(AllocError);
    }
    debug_assert!(
        !flags.contains(Flags::DIRECT_RECLAIM) || !crate::sched::in_interrupt(),
        "an allocation that may sleep, in interrupt context"
    );
    let must = flags.contains(Flags::NOFAIL | Flags::DIRECT_RECLAIM);
    debug_assert!(must || !flags.contains(Flags::NOFAIL), "who waits for memory must be able to sleep");
    let memory = loop {
        let memory = if injected_failure() {
            None
        } else {
            // SAFETY: The size is not 0, checked above.
            NonNull::new(unsafe { crate::sched::kmalloc(layout) })
        };
        match memory {
            Some(memory) => break memory,
            None if must => crate::sched::yield_now(),
            None => return Err(AllocError),
        }
    };
    #[cfg(all(feature = "fault-injection", not(feature = "bare")))]
    meter::add(layout.size());
    if flags.contains(Flags::ZERO) {
        // SAFETY: The back end has just given us `layout.size()` bytes there.
        unsafe { memory.write_bytes(0, layout.size()) };
    }
    Ok(memory)
}

/// Gives back what [`kmalloc`] gave.
///
/// # Safety
///
/// `memory` comes from [`kmalloc`] with this very layout and is not used any more.
unsafe fn kfree(memory: NonNull<u8>, layout: Layout) {
    if layout.size() != 0 {
        #[cfg(all(feature = "fault-injection", not(feature = "bare")))]
        meter::sub(layout.size());
        // SAFETY: The caller's promise; sizes other than 0 come from the back end.
        unsafe { crate::sched::kfree(memory.as_ptr(), layout) };
    }
}
