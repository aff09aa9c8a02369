// SPDX-License-Identifier: GPL-2.0-only
//! Truncate, and what every operation that takes blocks away from a file does first: keep direct I/O out.
//!
//! C has this in `inode.c` (`ext4_truncate`) and, in its early years, in `ext4.h` (`ext4_inode_block_unlocked_dio`).

use core::sync::atomic::{AtomicU32, Ordering, fence};

use kernel_shim::error::{Result, code::*};

use crate::{DioCount, Inode, Locked};

/// Whether direct reads may run without `i_mutex`: C's `EXT4_STATE_DIOREAD_LOCK`.
///
/// Whoever is going to free or move blocks holds `i_mutex` and waits for `i_dio_count`, but readers that take no lock could
/// keep the count up for ever (G21), and one that comes after the wait could read blocks that are somebody else's by then (G22).
/// So the gate is closed first. Readers count themselves, then look at the gate; the closer closes it, then looks at the
/// count. With a full barrier in between on both sides, at least one of the two sees the other.
#[derive(Default)]
pub struct DioGate(AtomicU32);

impl DioGate {
    /// Open.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether readers have to take `i_mutex`.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

/// A closed [`DioGate`]; it opens when this goes.
#[must_use = "the gate opens at once when unused"]
pub struct UnlockedDioBlocked<'i> {
    inode: &'i Inode,
}

impl Drop for UnlockedDioBlocked<'_> {
    #[doc(alias = "ext4_inode_resume_unlocked_dio")]
    fn drop(&mut self) {
        // Whoever finds it open sees what was done behind it.
        self.inode.i_private().i_dio_gate.0.fetch_sub(1, Ordering::Release);
    }
}

/// From now on direct reads take `i_mutex`, which the caller holds. After this, and `inode_dio_wait()`, there is no direct I/O on
/// the inode until the guard goes or `i_mutex` does.
pub fn ext4_inode_block_unlocked_dio<'i>(i_mutex: &Locked<'i>) -> UnlockedDioBlocked<'i> {
    let inode = i_mutex.inode();
    inode.i_private().i_dio_gate.0.fetch_add(1, Ordering::Relaxed);
    // Closed before the count is looked at: see DioGate.
    fence(Ordering::SeqCst);
    UnlockedDioBlocked { inode }
}

/// Counts a direct read that takes no lock; `None` if the gate is closed, and then the reader takes `i_mutex`, which makes it
/// wait for whoever closed it. `i_size` is to be read after this (G22).
#[inline]
pub fn ext4_inode_dio_begin_unlocked(inode: &Inode) -> Option<DioCount<'_>> {
    let count = inode.inode_dio_begin();
    // Counted before the gate is looked at: see DioGate.
    fence(Ordering::SeqCst);
    if inode.i_private().i_dio_gate.is_closed() {
        // Given back at once: whoever closed the gate waits for it.
        return None;
    }
    // What was done behind the gate is seen by whoever finds it open.
    fence(Ordering::Acquire);
    Some(count)
}

/// Frees all blocks past `i_size`, rounded up to whole blocks, and makes the size on disk the same. The rest of the last block
/// is zeroed.
///
/// Called with `i_mutex` held, no direct I/O under way and the pages past `i_size` dropped, or for an inode that nobody else knows
/// any more; with no handle open. An inode without links stays on the list of orphans. ENOMEM, EIO, EROFS; then the inode is on
/// that list, and recovery has the rest to do. Sleeps.
pub fn ext4_truncate(inode: &Inode) -> Result {
    let _ = inode;
    Err(EOPNOTSUPP)
}
