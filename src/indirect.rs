// SPDX-License-Identifier: GPL-2.0-only
//! `indirect.c`: the block map of files without extents. Looking up is here, changing it in `create` and `remove`.
//!
//! Twelve block numbers in the inode, then one block of block numbers, one of blocks of those, and one
//! of those again. 0 is a hole. There are at most three steps, so nothing can go in circles.

use kernel_shim::error::Result;
use kernel_shim::error::code::{EFBIG, EIO};

use crate::Inode;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::extents::ExtentTree;
use crate::extents_status::{EsStatus, ExtentStatus};
use crate::iget::InodeCtx;
use crate::le::Le;

mod create;
mod remove;

pub use create::ext4_ind_map_create_blocks;
pub use remove::ext4_ind_remove_space;

/// The way to a block: an index into each table, the inode's first.
struct Offsets {
    path: heapless::Vec<u32, 4>,
    /// First logical block that the tables below the inode's entry are about.
    start: u64,
}

/// C's `ext4_block_to_path`. Nothing for a block beyond the last.
fn ext4_block_to_path(blocksize_bits: u8, lblk: u32) -> Option<Offsets> {
    let bits = u32::from(blocksize_bits) - 2;
    let mut rest = u64::from(lblk);
    if rest < u64::from(EXT4_NDIR_BLOCKS) {
        return Some(Offsets { path: heapless::Vec::from_slice(&[lblk]).ok()?, start: rest });
    }
    rest -= u64::from(EXT4_NDIR_BLOCKS);
    let mask = (1 << bits) - 1;
    for depth in 1..=3u32 {
        let covered = 1 << (bits * depth);
        if rest < covered {
            let mut path = heapless::Vec::from_slice(&[EXT4_NDIR_BLOCKS + depth - 1]).ok()?;
            for level in (0..depth).rev() {
                path.push((rest >> (bits * level) & mask) as u32).ok()?;
            }
            return Some(Offsets { path, start: u64::from(lblk) - rest });
        }
        rest -= covered;
    }
    None
}

/// The `index`-th number of a table.
fn entry(table: &[u8], index: u32) -> Ext4Result<u32> {
    let from = index as usize * u32::SIZE;
    Ok(table.get(from..from + u32::SIZE).map(u32::get).ok_or(EIO)?)
}

/// Checks the block numbers in an inode.
pub fn ext4_ind_check_inode(ctx: &InodeCtx<'_>, tree: &ExtentTree) -> Ext4Result {
    for index in 0..EXT4_NDIR_BLOCKS + 3 {
        check_entry(ctx, entry(tree.i_data(), index)?)?;
    }
    Ok(())
}

fn check_entry(ctx: &InodeCtx<'_>, block: u32) -> Ext4Result {
    if block != 0 && !ctx.sb.ext4_inode_block_valid(ctx.i_ino, Fsblk(u64::from(block)), 1) {
        return Err(Corrupt::IndirectBlock(ctx.i_ino).into());
    }
    Ok(())
}

/// The range around `lblk` that is alike: blocks that follow each other, as far as one table tells, or a hole.
pub fn ext4_ind_lookup(ctx: &InodeCtx<'_>, tree: &ExtentTree, lblk: Lblk) -> Ext4Result<ExtentStatus> {
    if lblk.0 == EXT_MAX_BLOCKS {
        return Err(EFBIG.into());
    }
    let bits = u32::from(ctx.sb.s_blocksize_bits) - 2;
    let Some(Offsets { path, start }) = ext4_block_to_path(ctx.sb.s_blocksize_bits, lblk.0) else {
        // Behind the last block that can be mapped.
        return Ok(ExtentStatus::hole(lblk.0, EXT_MAX_BLOCKS).ok_or(EFBIG)?);
    };
    let depth = path.len() as u32 - 1;
    let mut start = start;
    let mut bh = None;
    for (level, index) in (0..).zip(path) {
        // What one entry of this table is about, in blocks.
        let covered = 1u64 << (bits * (depth - level));
        if level > 0 {
            start += u64::from(index) * covered;
        }
        let guard = bh.as_ref().map(kernel_shim::fs::buffer::BufferHead::read);
        let table = guard.as_deref().unwrap_or(tree.i_data());
        let block = entry(table, index)?;
        check_entry(ctx, block)?;
        // The inode's last three entries are not about as many blocks each.
        let limit = match level {
            0 if depth > 0 => index + 1,
            0 => EXT4_NDIR_BLOCKS,
            _ => 1 << bits,
        };
        if block == 0 {
            let zeros = zeros(table, index..limit)?;
            let end = start.saturating_add(zeros * covered).min(u64::from(EXT_MAX_BLOCKS)) as u32;
            return Ok(ExtentStatus::hole(start as u32, end).ok_or(EIO)?);
        }
        if level == depth {
            return run(ctx, table, index..limit, block, lblk);
        }
        drop(guard);
        bh = Some(ctx.sb.buffers.bread(u64::from(block))?);
    }
    Err(EIO.into())
}

/// How many entries of `table` from the first of `range` on are 0.
fn zeros(table: &[u8], range: core::ops::Range<u32>) -> Ext4Result<u64> {
    let mut zeros = 0;
    for index in range {
        if entry(table, index)? != 0 {
            break;
        }
        zeros += 1;
    }
    Ok(zeros)
}

/// How many entries of `table` from the first of `range` on go on as `block` begins.
fn run(
    ctx: &InodeCtx<'_>,
    table: &[u8],
    range: core::ops::Range<u32>,
    block: u32,
    lblk: Lblk,
) -> Ext4Result<ExtentStatus> {
    let mut len = 0u32;
    for index in range {
        if block.checked_add(len) != Some(entry(table, index)?) {
            break;
        }
        len += 1;
    }
    let len = len.min(EXT_MAX_BLOCKS - lblk.0);
    let pblk = Fsblk(u64::from(block));
    if !ctx.sb.ext4_inode_block_valid(ctx.i_ino, pblk, len) {
        return Err(Corrupt::IndirectBlock(ctx.i_ino).into());
    }
    Ok(ExtentStatus::new(lblk, len, pblk, EsStatus::Written).ok_or(EIO)?)
}

/// Looks `map` up in an inode's block numbers, and adds what it finds to the extent status cache. As
/// [`ext4_ext_map_blocks`](crate::extents::ext4_ext_map_blocks); nothing here is ever unwritten.
pub fn ext4_ind_map_blocks(inode: &Inode, tree: &ExtentTree, map: &mut MapBlocks) -> Result<u32> {
    let ctx = InodeCtx::of(inode);
    let es = ext4_ind_lookup(&ctx, tree, map.m_lblk).map_err(|error| ctx.sb.ext4_error(error))?;
    inode.i_private().i_es_tree.insert(es);
    Ok(es.answer(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bits: u8, lblk: u32) -> Option<(heapless::Vec<u32, 4>, u64)> {
        ext4_block_to_path(bits, lblk).map(|offsets| (offsets.path, offsets.start))
    }

    #[test]
    fn paths_at_the_edges_of_each_level() {
        let slice = |numbers: &[u32]| heapless::Vec::from_slice(numbers).expect("four at most");
        assert_eq!(path(10, 0), Some((slice(&[0]), 0)));
        assert_eq!(path(10, 11), Some((slice(&[11]), 11)));
        assert_eq!(path(10, 12), Some((slice(&[12, 0]), 12)));
        assert_eq!(path(10, 12 + 255), Some((slice(&[12, 255]), 12)));
        assert_eq!(path(10, 12 + 256), Some((slice(&[13, 0, 0]), 268)));
        assert_eq!(path(10, 12 + 256 + 65535), Some((slice(&[13, 255, 255]), 268)));
        assert_eq!(path(10, 12 + 256 + 65536), Some((slice(&[14, 0, 0, 0]), 65804)));
        let last = 12 + 256 + 65536 + (1 << 24) - 1;
        assert_eq!(path(10, last), Some((slice(&[14, 255, 255, 255]), 65804)));
        assert_eq!(path(10, last + 1), None);
        // With blocks of 4 KiB the third level reaches to the last block a file can have.
        assert!(path(12, 12 + 1024 + (1 << 20) + (1 << 30) - 1).is_some());
    }
}
