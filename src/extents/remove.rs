// SPDX-License-Identifier: GPL-2.0-only
//! `ext4_ext_remove_space`: unmapping and freeing.

use core::sync::atomic::Ordering;

use kernel_shim::error::Result;
use kernel_shim::error::code::EIO;

use super::credits::ensure_or_restart;
use super::tree::{Ext, Merge, Record, TreeEdit, Walk};
use super::{ext4_blocks_for_truncate, ext4_chunk_trans_blocks};
use crate::Inode;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::mballoc::{FreeFlags, ext4_free_blocks};

/// Extents that go from a leaf at once.
const BATCH: usize = 16;
/// Bitmaps and descriptors that the blocks of one batch may need, but for its first extent, which always goes.
const BATCH_CREDITS: u32 = 32;

/// How freed blocks of this file are to be treated. What directories and symbolic links have in theirs went through the journal.
#[doc(alias = "get_default_free_blocks_flags")]
pub(crate) fn free_flags(inode: &Inode) -> FreeFlags {
    if inode.is_reg() { FreeFlags::empty() } else { FreeFlags::METADATA }
}

/// Blocks that freeing `len` blocks may dirty: a bitmap and a descriptor for each group that they can touch, and for metadata the
/// revoke records.
pub(crate) fn free_credits(inode: &Inode, len: u32) -> u32 {
    let groups = len.div_ceil(inode.i_sb().s_fs_info().s_blocks_per_group.max(1)) + 1;
    let revoke = if inode.is_reg() { 0 } else { len.div_ceil(100) };
    2 * groups + revoke
}

/// Unmaps blocks `start` to before `end`, and frees them. Takes `i_data_sem` for writing, and lets it go where the handle has to
/// be restarted: the caller keeps everybody else away by `i_mutex` and the wait for direct I/O, has put the inode on the
/// list of orphans if it must not stay half-done, and has dropped the pages. Writes the inode. Sleeps.
///
/// Goes from the end to the beginning, so that what is left of a truncate that did not get through is a shorter file. ENOSPC if an extent
/// has to be cut in the middle and there is no block for that; what was freed until then stays freed.
pub fn ext4_ext_remove_space(handle: &mut Handle<'_>, inode: &Inode, start: Lblk, end: Lblk) -> Result {
    let sb = inode.i_sb().s_fs_info();
    // Each step begins with enough for itself: the extents of a batch, the nodes that change or go, and the inode.
    // No extent is longer than what the file has; a directory's would else ask for more than a small journal has.
    let has = inode.i_private().i_blocks.load(Ordering::Acquire) >> (inode.i_blkbits() - 9);
    let biggest = free_credits(inode, u32::try_from(has).unwrap_or(u32::MAX).clamp(1, u32::from(EXT_INIT_MAX_LEN)));
    let needed = ext4_chunk_trans_blocks(inode, 1) + BATCH_CREDITS + biggest + 3 * u32::from(EXT4_MAX_EXTENT_DEPTH);
    let needed = needed.max(ext4_blocks_for_truncate(inode));
    let mut before = end.0;
    while before > start.0 {
        ensure_or_restart(handle, needed)?;
        let mut tree = inode.i_private().i_data_sem.write();
        let mut edit = TreeEdit::new(handle, inode, &mut tree);
        edit.reserve = true;
        let done = edit.remove_step(start.0, before);
        let written = edit.finish();
        match done.and_then(|next| written.map(|()| next)).map_err(|error| sb.ext4_error(error))? {
            // Each step ends lower than it began.
            Some(next) if next < before => before = next,
            _ => break,
        }
    }
    // What was looked up as a hole or not at all is of no harm, but the last hits may be anything.
    inode.i_private().i_es_tree.remove(start, end.0.saturating_sub(start.0));
    Ok(())
}

impl TreeEdit<'_, '_> {
    /// Removes what is between `start` and before `end` from the last leaf that has any of that, as much as goes at once. Returns
    /// before which block there may be more, or nothing if there is none.
    fn remove_step(&mut self, start: u32, end: u32) -> Ext4Result<Option<u32>> {
        let _table_block = self.prepare()?;
        let walk = self.walk(end - 1)?;
        let (last, _) = self.find(&walk, end - 1)?;
        let mut batch = heapless::Vec::<Ext, BATCH>::new();
        let mut credits = 0;
        for index in (0..=last).rev() {
            let Some(part) = self.extent(&walk, index)?.and_then(|ext| ext.part(start, end)) else { break };
            credits += if batch.is_empty() { 0 } else { free_credits(self.inode, part.len) };
            if credits > BATCH_CREDITS || batch.push(part).is_err() {
                break;
            }
        }
        let (Some(top), Some(lowest)) = (batch.first().copied(), batch.last().copied()) else { return Ok(None) };
        let first = last + 1 - batch.len() as u16;
        for ext in &batch {
            self.ctx.sb.check_block_validity(self.ctx.i_ino, Fsblk(ext.pblk), ext.len)?;
            self.prepare_to_free(ext.pblk, ext.len)?;
        }
        self.unmap(&walk, first, last, lowest.start, top.end())?;
        for ext in batch {
            ext4_free_blocks(self.handle, self.inode, Fsblk(ext.pblk), ext.len, free_flags(self.inode))?;
        }
        self.shrink()?;
        Ok(Some(lowest.start))
    }

    /// Takes extents `first` to `last` out of the leaf, but for what of them lies before `start` or from `end` on.
    #[doc(alias = "ext4_ext_rm_leaf")]
    fn unmap(&mut self, walk: &Walk, first: u16, last: u16, start: u32, end: u32) -> Ext4Result {
        let low = self.extent(walk, first)?.ok_or(EIO)?;
        let high = self.extent(walk, last)?.ok_or(EIO)?;
        if low.start > high.start {
            return Err(Corrupt::ExtentOrder(self.ctx.i_ino).into());
        }
        self.inode.i_private().i_es_tree.remove(Lblk(low.start), high.end().saturating_sub(low.start));
        let stays = low.part(low.start, start).into_iter().chain(high.part(end, high.end()));
        let records: heapless::Vec<Record, 2> = stays.map(|ext| ext.record()).collect();
        self.splice(walk, first, last + 1 - first, &records)
    }

    /// Makes `lblk` the beginning of an extent, if it is inside of one.
    #[doc(alias = "ext4_split_extent_at")]
    pub(super) fn split_at(&mut self, lblk: u32) -> Ext4Result {
        let walk = self.walk(lblk)?;
        let (at, _) = self.find(&walk, lblk)?;
        let Some(ext) = self.extent(&walk, at)? else { return Ok(()) };
        match (ext.part(ext.start, lblk), ext.part(lblk, ext.end())) {
            (Some(low), Some(high)) => self.replace(&walk, at, 1, &[low, high], Merge::None),
            _ => Ok(()),
        }
    }
}
