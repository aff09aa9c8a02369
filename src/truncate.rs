// SPDX-License-Identifier: GPL-2.0-only
//! Truncate, and what every operation that takes blocks away from a file does first: keep direct I/O out.
//!
//! C has this in `inode.c` (`ext4_truncate`) and, in its early years, in `ext4.h` (`ext4_inode_block_unlocked_dio`).

use core::sync::atomic::{AtomicU32, Ordering, fence};

use kernel_shim::error::{Result, code::*};
use kernel_shim::sched::{Point, sched_point};
use kernel_shim::testing::{Fix, reverted, trace};

use crate::aops::{ext4_block_zero_page_range, ext4_submit_inode_data};
use crate::ext4::{EXT_MAX_BLOCKS, Lblk};
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::extents::{ext4_blocks_for_truncate, ext4_ext_remove_space};
use crate::iget::{ext4_mark_inode_dirty, ext4_mark_inode_dirty_tree};
use crate::indirect::ext4_ind_remove_space;
use crate::mballoc::ext4_discard_preallocations;
use crate::orphan::{ORPHAN_CREDITS, ext4_orphan_add, ext4_orphan_del};
use crate::setattr::current_time;
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
        sched_point(Point::Load, core::ptr::from_ref(&self.0).cast());
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
        let gate = &self.inode.i_private().i_dio_gate.0;
        sched_point(Point::Atomic, core::ptr::from_ref(gate).cast());
        gate.fetch_sub(1, Ordering::Release);
    }
}

/// From now on direct reads take `i_mutex`, which the caller holds. After this, and `inode_dio_wait()`, there is no direct I/O on
/// the inode until the guard goes or `i_mutex` does.
pub fn ext4_inode_block_unlocked_dio<'i>(i_mutex: &Locked<'i>) -> UnlockedDioBlocked<'i> {
    let inode = i_mutex.inode();
    let gate = &inode.i_private().i_dio_gate.0;
    sched_point(Point::Atomic, core::ptr::from_ref(gate).cast());
    gate.fetch_add(1, Ordering::Relaxed);
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
    if inode.i_private().i_dio_gate.is_closed() && !reverted(Fix::G21) {
        // Given back at once: whoever closed the gate waits for it.
        return None;
    }
    // What was done behind the gate is seen by whoever finds it open.
    fence(Ordering::Acquire);
    Some(count)
}

/// Keeps direct I/O out, for an operation that takes blocks away or changes what they mean: new writers wait for `i_mutex`, which the
/// caller holds, new readers are sent there, and what is in flight is waited for, conversions of unwritten blocks included.
///
/// Whether there is a journal makes no difference (G36), and neither does the operation: punching a hole (G2) or moving
/// extents as much as truncate.
pub(crate) fn stop_direct_io<'i>(i_mutex: &Locked<'i>) -> UnlockedDioBlocked<'i> {
    let gate = ext4_inode_block_unlocked_dio(i_mutex);
    if reverted(Fix::G36) && i_mutex.i_sb().s_fs_info().s_journal().is_none() {
        return gate;
    }
    // A write in flight keeps the blocks it was given until it is done (G1). A conversion that is still to come does not need
    // i_mutex, so it gets done while we hold it (G14).
    i_mutex.inode_dio_wait();
    i_mutex.i_private().aio.wait();
    trace("direct I/O stopped");
    gate
}

/// Whether an inode has blocks that truncate could free: not if `i_data` is the target of a short symbolic link, or a device's number.
fn ext4_can_truncate(inode: &Inode) -> bool {
    let info = inode.i_private();
    if inode.is_reg() || inode.is_dir() {
        return true;
    }
    // Not by the size, which is 0 by now when the inode is going away.
    let ea_sectors = if info.i_file_acl.load(Ordering::Acquire) == 0 { 0 } else { 1u64 << (inode.i_blkbits() - 9) };
    inode.is_lnk() && (info.is_extents() || info.i_blocks.load(Ordering::Acquire) > ea_sectors)
}

/// Frees all blocks past `i_size`, rounded up to whole blocks, and makes the size on disk the same. The rest of the last block
/// is zeroed.
///
/// Called with `i_mutex` held, no direct I/O under way and the pages past `i_size` dropped, or for an inode that nobody else knows
/// any more; with no handle open. It takes as many transactions as it needs, with the inode on the list of orphans, so that
/// recovery goes on where a crash stopped it. An inode without links stays on that list. ENOMEM, EIO, EROFS. Sleeps.
pub fn ext4_truncate(inode: &Inode) -> Result {
    if !ext4_can_truncate(inode) {
        return Ok(());
    }
    let size = inode.i_size();
    let tail = partial_tail(inode, size);
    if tail > 0 && inode.i_nlink() > 0 {
        ext4_block_zero_page_range(inode, size, tail)?;
    }
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), ext4_blocks_for_truncate(inode) + ORPHAN_CREDITS)?;
    let done = truncate_in_handle(&mut handle, inode, size, tail > 0);
    // A file that stays needs no more help from recovery, whatever has happened: blocks past its end do no harm.
    let deleted = if inode.i_nlink() > 0 { ext4_orphan_del(Some(&mut handle), inode) } else { Ok(()) };
    let now = current_time(inode);
    inode.set_times(|times| (times.i_mtime, times.i_ctime) = (now, now));
    let written = ext4_mark_inode_dirty(&mut handle, inode);
    if inode.is_sync() {
        handle.sync();
    }
    let stopped = handle.stop();
    done.and(deleted).and(written).and(stopped)
}

fn truncate_in_handle(handle: &mut Handle<'_>, inode: &Inode, size: i64, zeroed: bool) -> Result {
    ext4_orphan_add(handle, inode)?;
    if zeroed {
        order_data(handle, inode)?;
    }
    ext4_discard_preallocations(inode);
    {
        let tree = inode.i_private().i_data_sem.write();
        inode.i_private().i_disksize.store(size, Ordering::Release);
        ext4_mark_inode_dirty_tree(handle, inode, &tree)?;
    }
    trace("ext4_truncate: on the orphan list");
    ext4_remove_space(handle, inode, size_to_lblk(inode, size)?, Lblk(EXT_MAX_BLOCKS))
}

/// Unmaps and frees blocks `start` to before `end`, for both kinds of maps. As [`ext4_ext_remove_space`].
pub(crate) fn ext4_remove_space(handle: &mut Handle<'_>, inode: &Inode, start: Lblk, end: Lblk) -> Result {
    if inode.i_private().is_extents() {
        ext4_ext_remove_space(handle, inode, start, end)
    } else {
        ext4_ind_remove_space(handle, inode, start, end)
    }
}

/// What was zeroed in the page cache is on the device before the transaction that relies on it: `data=ordered`.
pub(crate) fn order_data(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    if !handle.is_valid() {
        return Ok(());
    }
    match inode.i_sb().ilookup(inode.i_ino()) {
        Some(inode) => {
            let done = handle.add_ordered(&inode);
            // The caller has one, too; if it was dropped meanwhile, not with this handle open.
            inode.put_deferred();
            done
        }
        None => Ok(()),
    }
}

/// Before a file becomes shorter within `handle`: if the transaction before is being committed, it may have given the file blocks, written
/// ones as there are no others without extents, and not have come to their data. That must still be written: once the size has moved,
/// nobody would, and a crash before the truncate is committed would show what was in the blocks before.
///
/// In a transaction that is still running the size moves along with the blocks, so there is nothing to be done. Errors are the file's,
/// as those of the commit itself are.
#[doc(alias = "jbd2_journal_begin_ordered_truncate")]
pub(crate) fn ext4_begin_ordered_truncate(handle: &Handle<'_>, inode: &Inode) {
    if handle.commit_under_way() && !inode.i_private().is_extents() {
        // Noted in the mapping.
        let _ = ext4_submit_inode_data(inode);
    }
}

/// The first block that is wholly at or past byte `size`.
pub(crate) fn size_to_lblk(inode: &Inode, size: i64) -> Result<Lblk> {
    let size = u64::try_from(size).map_err(|_| EINVAL)?;
    let blocks = size.div_ceil(1 << inode.i_blkbits());
    Ok(Lblk(u32::try_from(blocks).map_err(|_| EFBIG)?))
}

/// Bytes from `size` to the end of its block; 0 if it is at one.
pub(crate) fn partial_tail(inode: &Inode, size: i64) -> i64 {
    let bs = 1i64 << inode.i_blkbits();
    (bs - (size & (bs - 1))) & (bs - 1)
}
