// SPDX-License-Identifier: GPL-2.0-only
//! Between unwritten and written: what a write does to blocks that were allocated before, and what ZERO_RANGE does to written ones.
//!
//! A part of an extent changes, so it is cut in up to three, which may take a new leaf and so a block that is not there. C then marks
//! what it could and zeroes the rest, and had to be taught which of that shows old data if the I/O fails afterwards (G29). Here a cut is
//! made whole or not at all, and what is zeroed instead is zeroed before anything is marked.

use core::sync::atomic::Ordering;

use kernel_shim::error::code::{EIO, ENOSPC};
use kernel_shim::testing::{Fix, reverted};

use super::tree::{Ext, Merge, TreeEdit, Walk};
use crate::corrupt::{Ext4Error, Ext4Result};

/// KiB that are rather zeroed than left as an extent of their own.
#[doc(alias = "EXT4_EXT_ZERO_LEN")]
const EXTENT_MAX_ZEROOUT_KB: u32 = 32;

/// An extent in parts: what is before the middle, the middle, and what is behind it.
struct Cut {
    left: Option<Ext>,
    middle: Ext,
    right: Option<Ext>,
}

impl Cut {
    fn pieces(&self) -> heapless::Vec<Ext, 3> {
        self.left.into_iter().chain([self.middle]).chain(self.right).collect()
    }
}

impl TreeEdit<'_, '_> {
    /// The `at`-th extent, cut so that the middle is `lblk` to before `end`.
    fn cut(&self, walk: &Walk, at: u16, lblk: u32, end: u32) -> Ext4Result<(Ext, Cut)> {
        let ex = self.extent(walk, at)?.ok_or(EIO)?;
        let middle = ex.part(lblk, end).ok_or(EIO)?;
        Ok((ex, Cut { left: ex.part(ex.start, lblk), middle, right: ex.part(end, ex.end()) }))
    }

    /// Before blocks are written to: makes exactly these an extent of their own, still unwritten, so that the completion, which must not
    /// fail, has nothing to cut (G16). Nothing is zeroed for want of a block: the rest may be under I/O itself (G29). ENOSPC, and
    /// the extent is as it was.
    #[doc(alias = "ext4_split_convert_extents")]
    pub(super) fn split_before_io(&mut self, walk: &Walk, at: u16, lblk: u32, end: u32) -> Ext4Result<Ext> {
        let (ex, cut) = self.cut(walk, at, lblk, end)?;
        if cut.left.is_none() && cut.right.is_none() {
            return Ok(cut.middle);
        }
        match self.replace(walk, at, 1, &cut.pieces(), Merge::None) {
            Err(Ext4Error::Errno(ENOSPC)) if reverted(Fix::G29) => {
                self.replace(walk, at, 1, &[ex.with(false)], Merge::None)?;
                Ok(cut.middle.with(false))
            }
            done => done.map(|()| cut.middle),
        }
    }

    /// After the I/O: these blocks hold data. Cuts if it must, from what is reserved; where that fails they stay unwritten, the data
    /// is lost and the caller says so, but nothing old is shown (G29).
    pub(super) fn ext4_convert_unwritten_extents_endio(
        &mut self,
        walk: &Walk,
        at: u16,
        lblk: u32,
        end: u32,
    ) -> Ext4Result<Ext> {
        let (_, mut cut) = self.cut(walk, at, lblk, end)?;
        cut.middle = cut.middle.with(false);
        self.replace(walk, at, 1, &cut.pieces(), Merge::Written)?;
        self.shrink()?;
        Ok(cut.middle)
    }

    /// The caller is about to fill these blocks: they are written from now on. With `zero` they are zeros first.
    ///
    /// Short remainders are zeroed on the device and written, too, rather than left as small extents; and all of the extent, if there is
    /// no block to cut it. Not past the end of the file, where nothing written may be, and not while I/O may be under
    /// way in the remainder, which zeros could overtake (G29).
    pub(super) fn ext4_ext_convert_to_initialized(
        &mut self,
        walk: &Walk,
        at: u16,
        lblk: u32,
        end: u32,
        zero: bool,
    ) -> Ext4Result<Ext> {
        let (ex, mut cut) = self.cut(walk, at, lblk, end)?;
        cut.middle = cut.middle.with(false);
        if zero {
            self.zeroout(cut.middle)?;
        }
        let may_zeroout = !self.under_io() && self.within_eof(ex, end);
        let max = EXTENT_MAX_ZEROOUT_KB >> (self.inode.i_blkbits() - 10);
        let answer = cut.middle;
        let short = |part: &mut Option<Ext>| part.take_if(|part| may_zeroout && part.len <= max);
        if !self.joins_neighbour(walk, at, &cut)? {
            for part in [short(&mut cut.right), short(&mut cut.left)].into_iter().flatten() {
                self.zeroout(part)?;
                cut.middle = Ext {
                    start: cut.middle.start.min(part.start),
                    len: cut.middle.len + part.len,
                    pblk: cut.middle.pblk.min(part.pblk),
                    unwritten: false,
                };
            }
        }
        match self.replace(walk, at, 1, &cut.pieces(), self.merge_rule()) {
            Err(Ext4Error::Errno(ENOSPC)) if may_zeroout => {
                for part in cut.left.into_iter().chain(cut.right) {
                    self.zeroout(part)?;
                }
                self.replace(walk, at, 1, &[ex.with(false)], Merge::Written)?;
            }
            done => done?,
        }
        self.shrink()?;
        Ok(answer)
    }

    /// Whether the middle goes to a written extent beside it without the leaf having more entries than before.
    fn joins_neighbour(&self, walk: &Walk, at: u16, cut: &Cut) -> Ext4Result<bool> {
        let joins = |a: &Ext, b: &Ext| {
            !a.unwritten
                && a.end() == b.start
                && a.pblk + u64::from(a.len) == b.pblk
                && a.len + b.len <= Ext::max_len(false)
        };
        Ok(match (cut.left, cut.right) {
            (None, Some(_)) => match at.checked_sub(1) {
                Some(before) => self.extent(walk, before)?.is_some_and(|before| joins(&before, &cut.middle)),
                None => false,
            },
            (Some(_), None) => {
                self.extent(walk, at + 1)?.is_some_and(|after| !after.unwritten && joins(&cut.middle, &after))
            }
            _ => false,
        })
    }

    /// Whether an extent lies within the file as it is or will be when blocks before `end` are written.
    fn within_eof(&self, ex: Ext, end: u32) -> bool {
        let size = self.inode.i_private().i_disksize.load(Ordering::Acquire).max(0) as u64;
        let blocks = size.div_ceil(1 << self.inode.i_blkbits());
        u64::from(ex.end()) <= blocks.max(u64::from(end))
    }

    /// These blocks are to read as zeros, and stay allocated: they become unwritten. Where there is no block to cut the extent
    /// they are zeroed on the device and stay written. PORT: C answers ENOSPC then, or zeroes what it has cut.
    #[doc(alias = "EXT4_GET_BLOCKS_CONVERT_UNWRITTEN")]
    pub(super) fn convert_unwritten(&mut self, walk: &Walk, at: u16, lblk: u32, end: u32) -> Ext4Result<Ext> {
        let end = end.min(lblk.saturating_add(Ext::max_len(true)));
        let (_, mut cut) = self.cut(walk, at, lblk, end)?;
        cut.middle = cut.middle.with(true);
        match self.replace(walk, at, 1, &cut.pieces(), self.merge_rule()) {
            Err(Ext4Error::Errno(ENOSPC)) => {
                let written = cut.middle.with(false);
                self.zeroout(written)?;
                Ok(written)
            }
            done => {
                done?;
                self.shrink()?;
                Ok(cut.middle)
            }
        }
    }
}
