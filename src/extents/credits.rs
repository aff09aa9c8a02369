// SPDX-License-Identifier: GPL-2.0-only
//! How many blocks an operation on a file's map may dirty: what its handle has to ask for.
//!
//! C has these in `inode.c`, `extents.c` and `ext4_jbd2.h`. All are upper bounds, and none looks at the map: an extent tree counts
//! as if it had its greatest depth, since it may grow between the question and the change.

use core::sync::atomic::Ordering;

use crate::Inode;
use crate::ext4::EXT4_MAX_EXTENT_DEPTH;
use crate::ext4_jbd2::Handle;

/// The attribute block, the inode, the super block, and the bitmap and descriptor of a new attribute block.
const EXT4_META_TRANS_BLOCKS: u32 = 6;
/// One allocation somewhere in the tree, with a split at each level: nodes, bitmaps and descriptors.
const EXT4_SINGLEDATA_TRANS_BLOCKS: u32 = 27;
/// Most blocks that a truncate asks for beyond that before it restarts its handle.
const EXT4_MAX_TRANS_DATA: u32 = 64;

/// Nodes of the extent tree that `extents` new extents may change: each level's node, its new sibling where it splits, and
/// for more than one extent those beside.
pub fn ext4_ext_index_trans_blocks(extents: u32) -> u32 {
    let depth = u32::from(EXT4_MAX_EXTENT_DEPTH);
    // A leaf of the smallest block has 84 extents; half full after a split.
    if extents <= 1 { depth * 2 + 1 } else { (depth * 3).saturating_add(extents.div_ceil(42)) }
}

/// Tables that `nrblocks` blocks in one piece of an indirect-mapped file may change.
fn ext4_ind_trans_blocks(inode: &Inode, nrblocks: u32) -> u32 {
    nrblocks.div_ceil(1 << (inode.i_blkbits() - 2)).saturating_add(4)
}

/// Blocks that allocating or converting `lblocks` blocks in `pextents` pieces may dirty.
fn ext4_meta_trans_blocks(inode: &Inode, lblocks: u32, pextents: u32) -> u32 {
    let sb = inode.i_sb().s_fs_info();
    let idxblocks = if inode.i_private().is_extents() {
        ext4_ext_index_trans_blocks(pextents)
    } else {
        ext4_ind_trans_blocks(inode, lblocks)
    };
    // Each new node and each piece may come from a group of its own.
    let groups = idxblocks.saturating_add(pextents);
    let bitmaps = groups.min(sb.s_groups_count);
    let gdpblocks = groups.min(sb.s_gdb_count);
    idxblocks.saturating_add(bitmaps).saturating_add(gdpblocks).saturating_add(EXT4_META_TRANS_BLOCKS)
}

/// Credits for one [`ext4_map_create_blocks`](crate::inode::ext4_map_create_blocks) of at most `nrblocks` blocks, the inode included.
/// Needs no lock.
pub fn ext4_chunk_trans_blocks(inode: &Inode, nrblocks: u32) -> u32 {
    ext4_meta_trans_blocks(inode, nrblocks, 1)
}

/// Credits for allocating all blocks of one page, each in another place. Needs no lock.
pub fn ext4_writepage_trans_blocks(inode: &Inode) -> u32 {
    let bpp = 4096u32.div_ceil(1 << inode.i_blkbits());
    ext4_meta_trans_blocks(inode, bpp, bpp)
}

/// Credits for a truncate to begin with; it extends and restarts its handle as it goes. Needs no lock.
pub fn ext4_blocks_for_truncate(inode: &Inode) -> u32 {
    let blocks = inode.i_private().i_blocks.load(Ordering::Relaxed) >> (inode.i_blkbits() - 9);
    let needed = u32::try_from(blocks).unwrap_or(u32::MAX).clamp(2, EXT4_MAX_TRANS_DATA);
    needed + EXT4_SINGLEDATA_TRANS_BLOCKS + EXT4_META_TRANS_BLOCKS
}

/// Blocks that whoever called a function that restarts the handle may dirty when it is back, without asking: the inode, the list of orphans.
const TAIL_CREDITS: u32 = 8;

/// Makes sure that the handle has `needed` credits, and some for what the caller does afterwards: extends it, or restarts it. Called without `i_data_sem`: what was
/// done before may be committed without what follows.
#[doc(alias = "ext4_datasem_ensure_credits")]
pub fn ensure_or_restart(handle: &mut Handle<'_>, needed: u32) -> kernel_shim::error::Result {
    let needed = needed.saturating_add(TAIL_CREDITS);
    if handle.ensure_credits(needed, needed)? { Ok(()) } else { handle.restart(needed) }
}
