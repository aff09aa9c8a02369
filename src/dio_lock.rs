// SPDX-License-Identifier: GPL-2.0-only
//! What keeps a file's blocks in place while a direct write is under way.
//!
//! The one file without a C counterpart. In C the swap of `i_mutex` for something weaker, and the way back, are statements in
//! `ext4_ext_direct_IO()` under `if (overwrite)`; the patch needed a second author because an early `return -ENOMEM` kept one
//! lock and lost the other. Here the held lock is a value: it moves in, becomes a [`DioLock`], and comes back, as a guard does
//! through `Condvar::wait`. Leaving without it does not compile:
//!
//! ```compile_fail,E0308
//! use ext4_dio::{Locked, dio_lock::DioLock, ext4::DioMode};
//! use kernel_shim::error::{Result, code::ENOMEM};
//! fn buggy<'i>(i_mutex: Locked<'i>, fail: bool) -> (Locked<'i>, Result<usize>) {
//!     let lock = DioLock::release(i_mutex, DioMode::InFlight);
//!     if fail {
//!         return Err(ENOMEM); // there is no lock to return
//!     }
//!     (lock.retake_lock(), Ok(0))
//! }
//! ```
//!
//! Nor does using `i_mutex` as evidence in the window:
//!
//! ```compile_fail,E0382
//! use ext4_dio::{Locked, dio_lock::DioLock, ext4::DioMode};
//! fn needs_i_mutex(_: &Locked<'_>) {}
//! fn buggy(i_mutex: Locked<'_>) -> Locked<'_> {
//!     let lock = DioLock::release(i_mutex, DioMode::InFlight);
//!     needs_i_mutex(&i_mutex); // it was given up above
//!     lock.retake_lock()
//! }
//! ```

use kernel_shim::sync::RwSemReadGuard;
use kernel_shim::testing::{Fix, reverted, trace};

use crate::ext4::DioMode;
use crate::extents::ExtentTree;
use crate::{DioCount, Inode, Locked};

/// The lock that keeps truncate and its like away from a direct write.
///
/// While it lives, whatever the variant, the blocks that are mapped to the file stay mapped to it: all that unmaps, moves or
/// shrinks takes `i_mutex` and waits until nothing is in flight.
#[must_use = "retake_lock() is the only way back to i_mutex"]
pub enum DioLock<'i> {
    /// Every other direct write: the caller's `i_mutex`, held throughout.
    IMutex(Locked<'i>),
    /// An overwrite: counted in `i_dio_count`, `i_mutex` given up.
    InFlight(DioCount<'i>, Window<'i>),
}

/// What an overwrite holds beside its count while it is without `i_mutex`.
pub enum Window<'i> {
    /// The patch of 2012: `i_data_sem`, for reading. The extent map is reached through the guard.
    IDataSem(RwSemReadGuard<'i, ExtentTree>),
    /// Nothing: the count is enough, since whoever changes the map waits for it.
    Count,
}

impl<'i> DioLock<'i> {
    /// Counts the write, takes what `mode` asks for, and gives up `i_mutex`.
    ///
    /// In this order, so that the blocks are never without protection: counted only after the unlock, a truncate in between
    /// would see nothing in flight and free them (G1). Sleeps for `i_data_sem`, which ranks below `i_mutex`.
    ///
    /// Entered with `i_mutex` held, returns without; in [`DioMode::Exclusive`] nothing changes.
    #[inline]
    pub fn release(i_mutex: Locked<'i>, mode: DioMode) -> Self {
        let inode = i_mutex.inode();
        let window = match mode {
            DioMode::Exclusive => return Self::IMutex(i_mutex),
            DioMode::IDataSem => None,
            DioMode::InFlight => Some(Window::Count),
        };
        if reverted(Fix::G1) {
            return Self::release_uncounted(i_mutex, mode);
        }
        let count = inode.inode_dio_begin();
        let window = window.unwrap_or_else(|| Window::IDataSem(inode.i_private().i_data_sem.read()));
        i_mutex.unlock();
        trace("i_mutex released");
        Self::InFlight(count, window)
    }

    /// [`DioLock::release`] for a write that must not sleep: `i_mutex` comes back if `i_data_sem` is not to be had at once.
    pub fn try_release(i_mutex: Locked<'i>, mode: DioMode) -> core::result::Result<Self, Locked<'i>> {
        let inode = i_mutex.inode();
        let window = match mode {
            DioMode::Exclusive => return Ok(Self::IMutex(i_mutex)),
            DioMode::IDataSem => match inode.i_private().i_data_sem.try_read() {
                Some(tree) => Window::IDataSem(tree),
                None => return Err(i_mutex),
            },
            DioMode::InFlight => Window::Count,
        };
        let count = inode.inode_dio_begin();
        i_mutex.unlock();
        trace("i_mutex released");
        Ok(Self::InFlight(count, window))
    }

    /// The order of 2012, for the test that shows it wrong.
    #[cold]
    fn release_uncounted(i_mutex: Locked<'i>, mode: DioMode) -> Self {
        let inode = i_mutex.inode();
        let window = match mode {
            DioMode::IDataSem => Window::IDataSem(inode.i_private().i_data_sem.read()),
            _ => Window::Count,
        };
        i_mutex.unlock();
        trace("i_mutex released");
        Self::InFlight(inode.inode_dio_begin(), window)
    }

    /// Gives back what was taken in `i_mutex`'s place, and takes `i_mutex` again.
    ///
    /// In this order: `i_mutex` ranks above `i_data_sem` and is never waited for under it; and truncate, which holds `i_mutex`,
    /// waits for the count. So nothing that was true before is known to be true now: whoever goes on with the size or the
    /// map looks again.
    ///
    /// Returns with `i_mutex` held. Sleeps.
    #[inline]
    pub fn retake_lock(self) -> Locked<'i> {
        match self {
            Self::IMutex(i_mutex) => i_mutex,
            Self::InFlight(count, window) => {
                let inode: &'i Inode = count.inode();
                drop(window);
                drop(count);
                trace("retake_lock");
                inode.lock()
            }
        }
    }

    /// [`DioLock::retake_lock`] for a write that must not sleep: without `i_mutex` if somebody else has it, who may be waiting for this
    /// very write's data to reach the device.
    pub fn try_retake_lock(self) -> Option<Locked<'i>> {
        match self {
            Self::IMutex(i_mutex) => Some(i_mutex),
            Self::InFlight(count, window) => {
                let inode: &'i Inode = count.inode();
                drop(window);
                drop(count);
                trace("retake_lock");
                inode.try_lock()
            }
        }
    }

    /// Whether `i_mutex` was given up.
    pub fn is_in_flight(&self) -> bool {
        matches!(self, Self::InFlight(..))
    }
}
