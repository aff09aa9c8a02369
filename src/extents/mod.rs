// SPDX-License-Identifier: GPL-2.0-only
//! `extents.c`: the extent tree of a file. Looking up is here; changing it is in `tree` (nodes), `insert`, `convert`, `remove` and `shift`.
//!
//! A node is a header and entries sorted by logical block: extents in a leaf, pointers to nodes one level
//! below in an index. The root is in the inode. What is read from the device is checked once, and the buffer
//! marked; what a walk relies on for its own safety (that the depth goes down by one with each step,
//! and that entries lie within the block) is looked at each time, because a damaged file system may
//! lead to a node that was checked as somebody else's.

use kernel_shim::error::Result;
use kernel_shim::error::code::{EFBIG, EIO};
use kernel_shim::fs::buffer::BufferHead;

use crate::Inode;
use crate::checksum::ext4_extent_block_csum;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::extents_status::{EsStatus, ExtentStatus};
use crate::iget::InodeCtx;
use crate::le::Le;

mod convert;
mod credits;
mod insert;
mod remove;
mod shift;
mod tree;

pub use credits::{
    ensure_or_restart, ext4_blocks_for_truncate, ext4_chunk_trans_blocks, ext4_ext_index_trans_blocks,
    ext4_writepage_trans_blocks,
};
pub use insert::ext4_ext_map_create_blocks;
pub(crate) use insert::ext4_issue_zeroout;
pub use remove::ext4_ext_remove_space;
pub(crate) use remove::{free_credits, free_flags};
pub use shift::ext4_ext_shift_extents;
pub(crate) use tree::{finish_map_change, prepare_to_free};

/// A file's block map: what `i_data_sem` protects. The root of its extent tree, or without the
/// [`InodeFlags::EXTENTS`] flag its block numbers.
#[derive(Clone, Debug)]
pub struct ExtentTree {
    i_data: [u8; EXT4_I_DATA_LEN],
}

impl ExtentTree {
    /// As the inode has it on disk.
    pub const fn new(i_data: [u8; EXT4_I_DATA_LEN]) -> Self {
        Self { i_data }
    }

    /// As the inode has it on disk.
    #[inline]
    pub fn i_data(&self) -> &[u8; EXT4_I_DATA_LEN] {
        &self.i_data
    }

    /// The same for changing it, under `i_data_sem` held for writing. The inode has to be written afterwards.
    pub(crate) fn i_data_mut(&mut self) -> &mut [u8; EXT4_I_DATA_LEN] {
        &mut self.i_data
    }

    /// Levels below the root, for a tree of extents.
    #[doc(alias = "ext_depth")]
    pub fn depth(&self) -> u16 {
        ExtentHeader::at(&self.i_data, 0).map_or(0, |header| header.eh_depth())
    }
}

/// A range of logical blocks that a node is about, `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    start: u32,
    end: u32,
}

/// One node on the way from the root to a leaf.
#[derive(Debug)]
#[doc(alias = "ext4_ext_path")]
pub struct ExtPath {
    /// Levels below this node.
    pub p_depth: u16,
    /// The entry that was followed, or the extent that was found; in an empty node 0.
    pub p_idx: u16,
    /// The node's block; none for the root.
    pub p_bh: Option<BufferHead>,
}

/// The way from the root to a leaf, root first.
pub type ExtPathVec = heapless::Vec<ExtPath, { EXT4_MAX_EXTENT_DEPTH as usize + 1 }>;

/// A node whose header was looked at: `entries` entries of 12 bytes follow it in `bytes`.
struct Node<'a> {
    bytes: &'a [u8],
    entries: u16,
    depth: u16,
}

impl<'a> Node<'a> {
    /// Looks at the header of a node that must have `depth` levels below. `room` is what the node may
    /// have in bytes.
    #[doc(alias = "__ext4_ext_check")]
    fn new(ino: Ino, bytes: &'a [u8], depth: u16) -> Ext4Result<Self> {
        let header = ExtentHeader::at(bytes, 0).ok_or(EIO)?;
        if header.eh_magic() != EXT4_EXT_MAGIC {
            return Err(Corrupt::ExtentMagic(ino).into());
        }
        if header.eh_depth() != depth || depth > EXT4_MAX_EXTENT_DEPTH {
            return Err(Corrupt::ExtentDepth(ino).into());
        }
        let room = (bytes.len() - ExtentHeader::LEN) / Extent::LEN;
        if header.eh_max() == 0 || usize::from(header.eh_max()) > room {
            return Err(Corrupt::ExtentMax(ino).into());
        }
        let entries = header.eh_entries();
        if entries > header.eh_max() || (entries == 0 && depth > 0) {
            return Err(Corrupt::ExtentEntries(ino).into());
        }
        Ok(Self { bytes, entries, depth })
    }

    fn extent(&self, index: u16) -> Option<Extent<&'a [u8; 12]>> {
        if index >= self.entries {
            return None;
        }
        Extent::at(self.bytes, ExtentHeader::LEN + usize::from(index) * Extent::LEN)
    }

    fn idx(&self, index: u16) -> Option<ExtentIdx<&'a [u8; 12]>> {
        if index >= self.entries {
            return None;
        }
        ExtentIdx::at(self.bytes, ExtentHeader::LEN + usize::from(index) * ExtentIdx::LEN)
    }

    /// First logical block of an entry; it is in the same place in both kinds.
    fn block(&self, index: u16) -> u32 {
        let from = ExtentHeader::LEN + usize::from(index) * Extent::LEN;
        self.bytes.get(from..).map_or(0, u32::get)
    }

    /// The last entry that begins at or before `lblk`, or the first entry.
    #[doc(alias = "ext4_ext_binsearch")]
    fn search(&self, lblk: u32) -> u16 {
        let (mut low, mut high) = (0, self.entries);
        // Entries before `low` begin at or before `lblk`, from `high` on behind it.
        while low < high {
            let middle = low + (high - low) / 2;
            if self.block(middle) <= lblk {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.saturating_sub(1)
    }

    /// Checks all entries: sorted, without overlaps, within `bounds`, and pointing to blocks that can be the file's.
    #[doc(alias = "ext4_valid_extent_entries")]
    fn check_entries(&self, ctx: &InodeCtx<'_>, bounds: Bounds) -> Ext4Result {
        let ino = ctx.i_ino;
        let mut next = bounds.start;
        for index in 0..self.entries {
            let block = self.block(index);
            if block < next || block >= bounds.end {
                return Err(Corrupt::ExtentOrder(ino).into());
            }
            next = if self.depth > 0 {
                let idx = self.idx(index).ok_or(EIO)?;
                if !ctx.sb.ext4_inode_block_valid(ino, idx.ext4_idx_pblock(), 1) {
                    return Err(Corrupt::ExtentIndexRange(ino).into());
                }
                block + 1
            } else {
                let extent = self.extent(index).ok_or(EIO)?;
                let len = extent.ext4_ext_get_actual_len();
                let end = match block.checked_add(len) {
                    Some(end) if len > 0 => end,
                    _ => return Err(Corrupt::ExtentLength(ino).into()),
                };
                if end > bounds.end {
                    return Err(Corrupt::ExtentOrder(ino).into());
                }
                if !ctx.sb.ext4_inode_block_valid(ino, extent.ext4_ext_pblock(), len) {
                    return Err(Corrupt::ExtentRange(ino).into());
                }
                end
            };
        }
        Ok(())
    }

    /// In a leaf: the extent with `lblk`, or the hole that it is in, as far as this leaf tells.
    fn find(&self, ino: Ino, lblk: u32, bounds: Bounds) -> Ext4Result<(u16, ExtentStatus)> {
        let index = self.search(lblk);
        let mut hole = bounds;
        if let Some(extent) = self.extent(index) {
            let (start, len) = (extent.ee_block(), extent.ext4_ext_get_actual_len());
            let end = start.saturating_add(len);
            if (start..end).contains(&lblk) {
                let status = if extent.ext4_ext_is_unwritten() { EsStatus::Unwritten } else { EsStatus::Written };
                let es = ExtentStatus::new(Lblk(start), len, extent.ext4_ext_pblock(), status);
                return Ok((index, es.ok_or(Corrupt::ExtentLength(ino))?));
            }
            if start > lblk {
                hole.end = hole.end.min(start);
            } else {
                hole.start = hole.start.max(end);
                if let Some(next) = self.extent(index + 1) {
                    hole.end = hole.end.min(next.ee_block());
                }
            }
        }
        let es = ExtentStatus::hole(hole.start, hole.end).filter(|es| es.contains(lblk));
        // A leaf that contradicts the index above it has no answer.
        Ok((index, es.ok_or(Corrupt::ExtentOrder(ino))?))
    }
}

/// Checks the root of an inode's extent tree.
pub fn ext4_ext_check_inode(ctx: &InodeCtx<'_>, tree: &ExtentTree) -> Ext4Result {
    let root = Node::new(ctx.i_ino, &tree.i_data, tree.depth())?;
    root.check_entries(ctx, Bounds { start: 0, end: EXT_MAX_BLOCKS })
}

/// Reads the node in `block`, and checks it unless that was done.
fn read_extent_tree_block(ctx: &InodeCtx<'_>, block: Fsblk, depth: u16, bounds: Bounds) -> Ext4Result<BufferHead> {
    if !ctx.sb.ext4_inode_block_valid(ctx.i_ino, block, 1) {
        return Err(Corrupt::ExtentIndexRange(ctx.i_ino).into());
    }
    let bh = ctx.sb.buffers.bread(block.0)?;
    if !bh.verified() {
        let bytes = bh.read();
        let node = Node::new(ctx.i_ino, &bytes, depth)?;
        check_tail(ctx, &bytes)?;
        node.check_entries(ctx, bounds)?;
        drop(bytes);
        bh.set_verified();
    }
    Ok(bh)
}

/// Verifies a node's checksum, which follows the room for its entries.
#[doc(alias = "ext4_extent_block_csum_verify")]
fn check_tail(ctx: &InodeCtx<'_>, bytes: &[u8]) -> Ext4Result {
    if !ctx.sb.has_metadata_csum() {
        return Ok(());
    }
    let header = ExtentHeader::at(bytes, 0).ok_or(EIO)?;
    let tail = ExtentHeader::LEN + usize::from(header.eh_max()) * Extent::LEN;
    let (before, tail) = bytes.split_at_checked(tail).ok_or(Corrupt::ExtentMax(ctx.i_ino))?;
    if tail.len() < u32::SIZE || u32::get(tail) != ext4_extent_block_csum(ctx.i_csum_seed, before) {
        return Err(Corrupt::ExtentBlockChecksum(ctx.i_ino).into());
    }
    Ok(())
}

/// Walks from the root to the leaf for `lblk`. Returns the way, and the extent that has `lblk` or the hole
/// that it is in; a hole may be longer than it is said to be.
///
/// At most one block is read for each level, and the levels go down, so a tree that leads back into itself
/// is an error after five steps at most. EFBIG for a block that no file can have, EIO, corruptions. Sleeps.
pub fn ext4_find_extent(ctx: &InodeCtx<'_>, tree: &ExtentTree, lblk: Lblk) -> Ext4Result<(ExtPathVec, ExtentStatus)> {
    let ino = ctx.i_ino;
    if lblk.0 == EXT_MAX_BLOCKS {
        return Err(EFBIG.into());
    }
    let mut path = ExtPathVec::new();
    let mut bounds = Bounds { start: 0, end: EXT_MAX_BLOCKS };
    let mut depth = tree.depth();
    let mut p_bh: Option<BufferHead> = None;
    loop {
        let guard = p_bh.as_ref().map(BufferHead::read);
        let node = Node::new(ino, guard.as_deref().unwrap_or(&tree.i_data), depth)?;
        if depth == 0 {
            let (p_idx, es) = node.find(ino, lblk.0, bounds)?;
            drop(guard);
            path.push(ExtPath { p_depth: 0, p_idx, p_bh }).map_err(|_| Corrupt::ExtentDepth(ino))?;
            return Ok((path, es));
        }
        let p_idx = node.search(lblk.0);
        let idx = node.idx(p_idx).ok_or(EIO)?;
        if idx.ei_block() > lblk.0 {
            // Before the first entry there is nothing.
            let es = ExtentStatus::hole(bounds.start, idx.ei_block()).filter(|es| es.contains(lblk.0));
            let es = es.ok_or(Corrupt::ExtentOrder(ino))?;
            drop(guard);
            path.push(ExtPath { p_depth: depth, p_idx, p_bh }).map_err(|_| Corrupt::ExtentDepth(ino))?;
            return Ok((path, es));
        }
        bounds.start = bounds.start.max(idx.ei_block());
        if let Some(next) = node.idx(p_idx + 1) {
            bounds.end = bounds.end.min(next.ei_block());
        }
        let child = idx.ext4_idx_pblock();
        drop(guard);
        path.push(ExtPath { p_depth: depth, p_idx, p_bh }).map_err(|_| Corrupt::ExtentDepth(ino))?;
        depth -= 1;
        p_bh = Some(read_extent_tree_block(ctx, child, depth, bounds)?);
    }
}

/// The extent that has `lblk`, or the hole that it is in.
pub fn ext4_ext_lookup(ctx: &InodeCtx<'_>, tree: &ExtentTree, lblk: Lblk) -> Ext4Result<ExtentStatus> {
    let (_path, es) = ext4_find_extent(ctx, tree, lblk)?;
    if es.status() != EsStatus::Hole {
        ctx.sb.check_block_validity(ctx.i_ino, es.pblk(), es.len())?;
    }
    Ok(es)
}

/// Looks `map` up in an inode's extent tree, and adds what it finds to the extent status cache.
///
/// Called with `i_data_sem` held, which `tree` was reached through. Returns the number of blocks from
/// `m_lblk` on, at most `m_len`, that are in the same extent, with `m_pblk` and `m_flags` (`MAPPED` or `UNWRITTEN`);
/// or 0 for a hole, of which `m_len` blocks are known. EFBIG, EIO, EFSCORRUPTED, EFSBADCRC. Sleeps.
pub fn ext4_ext_map_blocks(inode: &Inode, tree: &ExtentTree, map: &mut MapBlocks) -> Result<u32> {
    let ctx = InodeCtx::of(inode);
    let es = ext4_ext_lookup(&ctx, tree, map.m_lblk).map_err(|error| ctx.sb.ext4_error(error))?;
    inode.i_private().i_es_tree.insert(es);
    Ok(es.answer(map))
}

/// The extent of `inode` that has `lblk`, from its beginning on; or the whole hole behind what is before `lblk`, as far as the next extent or
/// [`EXT_MAX_BLOCKS`]. With [`ExtentStatus::end`] as the next `lblk` it goes through a file from extent to extent, which need not be
/// the ones on disk for an indirect-mapped file.
///
/// Asks the map and not the cache, with `i_data_sem` held for reading. What it says may have changed when it returns, unless the caller
/// holds `i_mutex`. EFBIG for [`EXT_MAX_BLOCKS`], EIO, EFSCORRUPTED, EFSBADCRC. Sleeps.
pub fn ext4_ext_next(inode: &Inode, lblk: Lblk) -> Result<ExtentStatus> {
    let tree = inode.i_private().i_data_sem.read();
    let ctx = InodeCtx::of(inode);
    let lookup = |lblk| {
        let found = if inode.i_private().is_extents() {
            ext4_ext_lookup(&ctx, &tree, lblk)
        } else {
            crate::indirect::ext4_ind_lookup(&ctx, &tree, lblk)
        };
        found.map_err(|error| ctx.sb.ext4_error(error))
    };
    let mut es = lookup(lblk)?;
    // One node tells of a hole as far as itself: ask the next one, and so on, with each step forward.
    while es.status() == EsStatus::Hole && es.end() < EXT_MAX_BLOCKS {
        let next = lookup(Lblk(es.end()))?;
        let start = es.lblk().0;
        if next.status() != EsStatus::Hole {
            return Ok(ExtentStatus::hole(start, next.lblk().0).unwrap_or(es));
        }
        es = ExtentStatus::hole(start, next.end()).ok_or(EIO)?;
    }
    Ok(es)
}
