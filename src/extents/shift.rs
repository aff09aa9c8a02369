// SPDX-License-Identifier: GPL-2.0-only
//! `ext4_ext_shift_extents`: a file's extents move to other places in the file, for COLLAPSE_RANGE and INSERT_RANGE.

use kernel_shim::alloc::{GFP_NOFS, KVec};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, EIO};

use super::credits::ensure_or_restart;
use super::ext4_chunk_trans_blocks;
use super::tree::{Record, TreeEdit, Walk};
use crate::Inode;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;

/// Moves all extents from `start` on by `shift` blocks, towards the end of the file if `right`, else towards its beginning, where there is
/// a hole of that length before `start`. As [`ext4_ext_remove_space`](super::ext4_ext_remove_space).
///
/// One leaf after the other, each in a transaction with its inode: the ones that have room before them first, so that the map is in
/// order between any two. An extent that `start` is inside of is cut there. EINVAL, and nothing has moved, if there is no such hole or the last
/// block would be beyond the largest file.
pub fn ext4_ext_shift_extents(handle: &mut Handle<'_>, inode: &Inode, start: Lblk, shift: u32, right: bool) -> Result {
    let sb = inode.i_sb().s_fs_info();
    let needed = ext4_chunk_trans_blocks(inode, 1);
    let mut cursor = None;
    loop {
        ensure_or_restart(handle, needed)?;
        let mut tree = inode.i_private().i_data_sem.write();
        let mut edit = TreeEdit::new(handle, inode, &mut tree);
        let done = edit.prepare().and_then(|_table_block| match (cursor, right) {
            (None, _) => {
                edit.shift_begin(start.0, shift, right).map(|()| Some(if right { EXT_MAX_BLOCKS } else { start.0 }))
            }
            (Some(end), true) => edit.shift_right(start.0, end, shift),
            (Some(from), false) => edit.shift_left(from, shift),
        });
        let written = edit.finish();
        // Everything behind is somewhere else, or is about to be.
        inode.i_private().i_es_tree.clear();
        match done.and_then(|next| written.map(|()| next)).map_err(|error| sb.ext4_error(error))? {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

impl TreeEdit<'_, '_> {
    /// Checks that there is room, and cuts at `start`.
    fn shift_begin(&mut self, start: u32, shift: u32, right: bool) -> Ext4Result {
        if right {
            let walk = self.walk(EXT_MAX_BLOCKS - 1)?;
            let (at, _) = self.find(&walk, EXT_MAX_BLOCKS - 1)?;
            let end = self.extent(&walk, at)?.map_or(0, |ext| ext.end()).max(start);
            if end.checked_add(shift).is_none() {
                return Err(EINVAL.into());
            }
            return self.split_at(start);
        }
        let Some(first) = start.checked_sub(shift) else { return Err(EINVAL.into()) };
        // The last extent before `start` ends before the hole begins.
        if start > 0 {
            let walk = self.walk(start - 1)?;
            let (at, _) = self.find(&walk, start - 1)?;
            let before = self.extent(&walk, at)?.filter(|ext| ext.start < start);
            if before.is_some_and(|ext| ext.end() > first) {
                return Err(EINVAL.into());
            }
        }
        Ok(())
    }

    /// Moves what is in the first leaf that has extents from `from` on. Returns from where on to go on.
    fn shift_left(&mut self, from: u32, shift: u32) -> Ext4Result<Option<u32>> {
        if from == EXT_MAX_BLOCKS {
            return Ok(None);
        }
        let walk = self.walk(from)?;
        let (at, _) = self.find(&walk, from)?;
        let entries = walk.leaf().ok_or(EIO)?.entries;
        let below = self.extent(&walk, at)?.is_some_and(|ext| ext.start < from);
        let first = at + u16::from(below);
        if first >= entries {
            // This leaf is about blocks up to the next one's first.
            let next = walk.bounds.end;
            return Ok((next > from).then_some(next));
        }
        let last = self.extent(&walk, entries - 1)?.ok_or(EIO)?;
        let moved = self.moved(&walk, first, entries, |start| start.checked_sub(shift))?;
        // At the seam two may have become neighbours.
        let seam = match first.checked_sub(1) {
            Some(before) => self.extent(&walk, before)?.zip(self.extent(&walk, first)?),
            None => None,
        };
        self.splice(&walk, first, entries - first, &moved)?;
        if let Some((_, second)) = seam {
            self.merge_at(second.start - shift)?;
        }
        self.shrink()?;
        Ok(Some(last.end()))
    }

    /// Moves what is in the last leaf that has extents from `start` to before `end`. Returns before which block to go on.
    fn shift_right(&mut self, start: u32, end: u32, shift: u32) -> Ext4Result<Option<u32>> {
        if end <= start {
            return Ok(None);
        }
        let walk = self.walk(end - 1)?;
        let (last, _) = self.find(&walk, end - 1)?;
        if self.extent(&walk, last)?.is_none_or(|ext| ext.start < start || ext.start >= end) {
            return Ok(None);
        }
        let mut first = last;
        while let Some(before) = first.checked_sub(1)
            && self.extent(&walk, before)?.is_some_and(|ext| ext.start >= start)
        {
            first = before;
        }
        let lowest = self.extent(&walk, first)?.ok_or(EIO)?;
        let moved = self.moved(&walk, first, last + 1, |start| start.checked_add(shift))?;
        self.splice(&walk, first, last + 1 - first, &moved)?;
        Ok(Some(lowest.start))
    }

    /// Extents `first` to before `end` of the leaf in other places.
    fn moved(&self, walk: &Walk, first: u16, end: u16, to: impl Fn(u32) -> Option<u32>) -> Ext4Result<KVec<Record>> {
        let mut moved = KVec::with_capacity(usize::from(end.saturating_sub(first)), GFP_NOFS)?;
        for index in first..end {
            let mut ext = self.extent(walk, index)?.ok_or(EIO)?;
            ext.start = to(ext.start).ok_or(Corrupt::ExtentOrder(self.ctx.i_ino))?;
            moved.push(ext.record(), GFP_NOFS)?;
        }
        Ok(moved)
    }

    /// Joins the extent that begins at `lblk` with the one before it, where that goes.
    #[doc(alias = "ext4_ext_try_to_merge_right")]
    fn merge_at(&mut self, lblk: u32) -> Ext4Result {
        let walk = self.walk(lblk)?;
        let (at, _) = self.find(&walk, lblk)?;
        match self.extent(&walk, at)? {
            Some(ext) if at > 0 && ext.start == lblk => self.replace(&walk, at, 1, &[ext], self.merge_rule()),
            _ => Ok(()),
        }
    }
}
