// SPDX-License-Identifier: GPL-2.0-only
//! `ext4_ext_map_blocks` with a handle: allocating blocks for holes, and the choice of what to do with extents that are there.

use kernel_shim::block::blkdev_issue_zeroout;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, EIO};
use kernel_shim::sched::sched_access;
use kernel_shim::testing::{Fix, reverted};

use super::ExtentTree;
use super::tree::{Ext, Merge, TreeEdit, Walk};
use crate::Inode;
use crate::corrupt::Ext4Result;
use crate::dio::extend_sizes;
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::extents_status::{EsStatus, ExtentStatus};
use crate::mballoc::{AllocationRequest, FreeFlags, MbFlags, ext4_free_blocks, ext4_mb_new_blocks};

/// [`ext4_map_create_blocks`](crate::inode::ext4_map_create_blocks) for an inode's extent tree, with `i_data_sem` held for writing,
/// which `tree` was reached through. Brings the extent status cache up to date and writes the inode.
///
/// | at `m_lblk` is | `CREATE` | `CREATE_UNINIT_EXT` | `IO_CREATE_EXT` | `IO_CONVERT_EXT` | `CREATE_UNINIT_EXT` and `CONVERT_UNWRITTEN` |
/// |---|---|---|---|---|---|
/// | a hole | allocated, written | allocated, unwritten | the same, an extent of its own | EIO | allocated, unwritten |
/// | an unwritten extent | written; [`NEW`](MapFlags::NEW), as it holds no data | as it is | cut out, unwritten | written | as it is |
/// | a written extent | as it is | as it is | as it is | as it is | unwritten, or zeroed if that takes a block and there is none |
///
/// If it is that for all of `map`, the file's sizes move out to `size` bytes, on disk with what else changes.
///
/// After an error the map says what it said before, for all blocks.
pub fn ext4_ext_map_create_blocks(
    handle: &mut Handle<'_>,
    inode: &Inode,
    tree: &mut ExtentTree,
    map: &mut MapBlocks,
    flags: GetBlocks,
    size: Option<i64>,
) -> Result<u32> {
    let mut edit = TreeEdit::new(handle, inode, tree);
    // What completes a write, or makes room, must not fail for want of a block.
    edit.reserve = flags.intersects(GetBlocks::CONVERT | GetBlocks::CONVERT_UNWRITTEN);
    let done = edit.map_create(map, flags);
    if let (Some(size), Ok((es, _))) = (size, &done)
        && es.end() >= map.m_lblk.0.saturating_add(map.m_len)
    {
        extend_sizes(inode, size);
        edit.changed = true;
    }
    // Blocks may have been counted and given back: the inode says how many there are now.
    let written = edit.finish();
    let sb = inode.i_sb().s_fs_info();
    let (es, new) = done.and_then(|answer| written.map(|()| answer)).map_err(|error| sb.ext4_error(error))?;
    inode.i_private().i_es_tree.insert(es);
    let blocks = es.answer(map);
    map.m_flags.set(MapFlags::NEW, new);
    Ok(blocks)
}

impl TreeEdit<'_, '_> {
    /// What is at `m_lblk` when it returns, and whether the blocks are new to the caller.
    fn map_create(&mut self, map: &MapBlocks, flags: GetBlocks) -> Ext4Result<(ExtentStatus, bool)> {
        let lblk = map.m_lblk.0;
        if map.m_len == 0 {
            return Err(EINVAL.into());
        }
        let _table_block = self.prepare()?;
        let walk = self.walk(lblk)?;
        let (at, es) = self.find(&walk, lblk)?;
        let create = flags.contains(GetBlocks::CREATE);
        // No more than the extent has; below 2^32 as that is.
        let end = lblk.saturating_add(map.m_len).min(es.end());
        if es.status() == EsStatus::Hole {
            if flags.contains(GetBlocks::CONVERT) {
                // Whoever unmaps waits for I/O: its blocks cannot be gone.
                return Err(EIO.into());
            }
            return if create { self.allocate(&walk, at, lblk, end, flags) } else { Ok((es, false)) };
        }
        self.ctx.sb.check_block_validity(self.ctx.i_ino, es.pblk(), es.len())?;
        let changed = match es.status() {
            EsStatus::Written if flags.contains(GetBlocks::CONVERT_UNWRITTEN) => {
                self.convert_unwritten(&walk, at, lblk, end)?
            }
            EsStatus::Unwritten if flags.contains(GetBlocks::CONVERT) => {
                self.ext4_convert_unwritten_extents_endio(&walk, at, lblk, end)?
            }
            EsStatus::Unwritten if flags.contains(GetBlocks::PRE_IO) && create => {
                self.split_before_io(&walk, at, lblk, end)?
            }
            EsStatus::Unwritten if create && !flags.contains(GetBlocks::UNINIT_EXT) => {
                let zero = flags.contains(GetBlocks::ZERO);
                let written = self.ext4_ext_convert_to_initialized(&walk, at, lblk, end, zero)?;
                return Ok((written.status().ok_or(EIO)?, true));
            }
            _ => return Ok((es, false)),
        };
        Ok((changed.status().ok_or(EIO)?, false))
    }

    /// Allocates blocks for the hole from `lblk` to `end`, or its beginning.
    fn allocate(
        &mut self,
        walk: &Walk,
        at: u16,
        lblk: u32,
        end: u32,
        flags: GetBlocks,
    ) -> Ext4Result<(ExtentStatus, bool)> {
        let unwritten = flags.contains(GetBlocks::UNINIT_EXT);
        let len = end.saturating_sub(lblk).min(Ext::max_len(unwritten));
        let mut mb = MbFlags::empty();
        mb.set(MbFlags::DATA, self.inode.is_reg());
        mb.set(MbFlags::NOPREALLOC, flags.contains(GetBlocks::NO_NORMALIZE) || !self.inode.is_reg());
        let goal = self.ext4_ext_find_goal(walk, at, lblk)?;
        let ar = AllocationRequest { inode: self.inode, goal, logical: Lblk(lblk), len, flags: mb };
        let (pblk, got) = ext4_mb_new_blocks(self.handle, &ar)?;
        self.changed = true;
        let new = Ext { start: lblk, len: got.min(len), pblk: pblk.0, unwritten };
        let inserted = self.insert_new(walk, at, new, flags);
        if inserted.is_err() {
            // Nobody has seen them.
            ext4_free_blocks(self.handle, self.inode, pblk, got, FreeFlags::UNUSED)?;
        }
        inserted?;
        Ok((new.status().ok_or(EIO)?, true))
    }

    #[doc(alias = "ext4_ext_insert_extent")]
    fn insert_new(&mut self, walk: &Walk, at: u16, new: Ext, flags: GetBlocks) -> Ext4Result {
        if flags.contains(GetBlocks::ZERO) && !new.unwritten {
            self.zeroout(new)?;
        }
        let merge = match flags.contains(GetBlocks::PRE_IO) {
            true if new.unwritten => Merge::None,
            _ => self.merge_rule(),
        };
        let before = self.extent(walk, at)?.is_some_and(|ext| ext.start < new.start);
        self.replace(walk, at + u16::from(before), 0, &[new], merge)?;
        self.shrink()
    }

    /// What may be merged now.
    ///
    /// PORT: an unwritten extent that is under I/O was cut out for that I/O, and its completion must find it so: to cut it out of a larger
    /// one again may take a block, when there is none any more (G16). Extents do not tell whether they are under I/O. So as long as
    /// the file has direct I/O in flight, or counts write-back of unwritten blocks in `i_unwritten`, no unwritten extents are merged
    /// at all; what is not merged now is when it is written.
    pub(super) fn merge_rule(&self) -> Merge {
        if self.under_io() && !reverted(Fix::G16) { Merge::Written } else { Merge::All }
    }

    /// Whether unwritten blocks of this file may be on their way to being written.
    pub(super) fn under_io(&self) -> bool {
        use core::sync::atomic::Ordering;
        let unwritten = &self.inode.i_private().i_unwritten;
        sched_access(core::ptr::from_ref(unwritten).cast(), false);
        self.inode.i_dio_count() != 0 || unwritten.load(Ordering::Acquire) != 0
    }

    /// Where blocks from `lblk` on should best be: as if the extent beside went on, or else where the inode is.
    fn ext4_ext_find_goal(&self, walk: &Walk, at: u16, lblk: u32) -> Ext4Result<Fsblk> {
        if let Some(ext) = self.extent(walk, at)? {
            let goal = match lblk.checked_sub(ext.start) {
                Some(behind) => ext.pblk.checked_add(u64::from(behind)),
                None => ext.pblk.checked_sub(u64::from(ext.start - lblk)),
            };
            // A file with great holes would lead beyond the device.
            let valid = goal.map(Fsblk).filter(|goal| self.ctx.sb.ext4_inode_block_valid(self.ctx.i_ino, *goal, 1));
            return Ok(valid.unwrap_or(Fsblk(ext.pblk)));
        }
        Ok(self.ctx.sb.ext4_inode_to_goal_block(self.inode))
    }

    /// Zeroes blocks on the device.
    #[doc(alias = "ext4_ext_zeroout")]
    pub(super) fn zeroout(&self, ext: Ext) -> Ext4Result {
        ext4_issue_zeroout(self.inode, Fsblk(ext.pblk), ext.len)
    }
}

/// Zeroes `len` blocks from `pblk` on, on the device. Returns when they are, though maybe only in its cache. EIO. Sleeps.
pub(crate) fn ext4_issue_zeroout(inode: &Inode, pblk: Fsblk, len: u32) -> Ext4Result {
    let shift = inode.i_blkbits() - 9;
    Ok(blkdev_issue_zeroout(inode.i_sb().s_bdev(), pblk.0 << shift, u64::from(len) << shift)?)
}
