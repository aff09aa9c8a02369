// SPDX-License-Identifier: GPL-2.0-only
//! Hash trees grow: a leaf that is full is split by the order of hashes, a node that is full in the middle, and a root that is full
//! gets a level below it.
//!
//! All under one handle, with the directory's `i_mutex` held. What is split is first copied: no two blocks are locked at once.

use kernel_shim::alloc::{GFP_NOFS, KVec};
use kernel_shim::error::code::{EIO, ENOSPC};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::pr_warn;

use super::{DX_ROOT_ENTRIES, DxPath, Frame, dx_limit, max_frames};
use crate::Locked;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::dir::{DX_NODE_ENTRIES, DX_ROOT_INFO, DirBlock, DirEntries, ext4_dir_rec_len, ext4_read_dirblock};
use crate::dirblock::{
    NewEntry, change_dirblock, change_dx_node, ext4_find_dest_de, ext4_insert_dentry, fill_entries, tail_len,
};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::hash::DxHash;
use crate::iget::{InodeCtx, ext4_mark_inode_dirty};
use crate::namei::ext4_append;

/// Adds a name that is not there to a directory with a hash tree.
///
/// ENOSPC if the disk or the tree is full, and then the name is not there, though a block may have been added; EIO, ENOMEM,
/// corruptions. Sleeps.
pub(crate) fn ext4_dx_add_entry(handle: &mut Handle<'_>, dir: &Locked<'_>, new: &NewEntry<'_>) -> Ext4Result {
    let node = dir.inode();
    let ctx = InodeCtx::of(node);
    // Each time around a node gets room, from the top down; then the leaf's split needs one entry.
    for _ in 0..=2 * max_frames(&ctx) {
        let path = DxPath::probe(node, new.name)?;
        let leaf = ext4_read_dirblock(node, path.leaf(node)?, DirBlock::Any)?;
        if add_dirent_to_buf(handle, &ctx, &leaf, new)? {
            return Ok(());
        }
        let frame = path.frames.last().ok_or(Corrupt::DxLevels(ctx.i_ino))?;
        if frame.count < frame.limit {
            let bh = do_split(handle, dir, &leaf, frame, path.hash)?;
            return if add_dirent_to_buf(handle, &ctx, &bh, new)? { Ok(()) } else { Err(ENOSPC.into()) };
        }
        split_index(handle, dir, &path)?;
    }
    Err(Corrupt::DxLoop(ctx.i_ino).into())
}

/// Adds a name to a block if there is room for it; whether there was. EEXIST.
pub(crate) fn add_dirent_to_buf(
    handle: &mut Handle<'_>,
    ctx: &InodeCtx<'_>,
    bh: &BufferHead,
    new: &NewEntry<'_>,
) -> Ext4Result<bool> {
    let found = {
        let bytes = bh.read();
        let area = bytes.get(..bytes.len().saturating_sub(tail_len(ctx.sb))).unwrap_or_default();
        ext4_find_dest_de(*ctx, area, new.name)?
    };
    // Nobody changes the block in between: that takes the directory's i_mutex, which we have.
    let Some(at) = found else { return Ok(false) };
    change_dirblock(handle, ctx, bh, |area| Ok(ext4_insert_dentry(area, at, new).ok_or(EIO)?))?;
    Ok(true)
}

/// A copy of the entries' part of a block, for what is about to be overwritten.
fn copy_entries(ctx: &InodeCtx<'_>, bh: &BufferHead) -> Ext4Result<KVec<u8>> {
    let mut copy = KVec::new();
    let bytes = bh.read();
    let len = bytes.len().saturating_sub(tail_len(ctx.sb));
    copy.extend_from_slice(bytes.get(..len).unwrap_or_default(), GFP_NOFS)?;
    Ok(copy)
}

/// A name in a leaf that is being split.
#[doc(alias = "dx_map_entry")]
struct MapEntry<'a> {
    hash: u32,
    entry: NewEntry<'a>,
}

impl MapEntry<'_> {
    fn len(&self) -> usize {
        ext4_dir_rec_len(self.entry.name.len())
    }
}

#[doc(alias = "dx_make_map")]
#[doc(alias = "dx_sort_map")]
fn dx_sorted_map<'a>(ctx: InodeCtx<'a>, version: DxHash, area: &'a [u8]) -> Ext4Result<KVec<MapEntry<'a>>> {
    let mut map = KVec::new();
    for entry in DirEntries::new(ctx, area) {
        let entry = entry?;
        map.push(MapEntry { hash: ctx.sb.s_hash.hash(version, entry.name), entry: entry.into() }, GFP_NOFS)?;
    }
    map.sort_unstable_by_key(|e| (e.hash, e.entry.name));
    Ok(map)
}

/// Where to split sorted entries so that each half has about as many bytes: the first of the upper half.
fn split_point(map: &[MapEntry<'_>], blocksize: usize) -> usize {
    let mut size = 0;
    for (at, entry) in map.iter().enumerate().rev() {
        if size + entry.len() / 2 > blocksize / 2 {
            return at + 1;
        }
        size += entry.len();
    }
    // They would all fit into half a block; it is full of gaps.
    map.len() / 2
}

/// Moves the upper half of a leaf's names to a new block, which `frame` gets an entry for, and returns the one of the two blocks
/// that names with `hash` belong to.
fn do_split(
    handle: &mut Handle<'_>,
    dir: &Locked<'_>,
    leaf: &BufferHead,
    frame: &Frame,
    hash: u32,
) -> Ext4Result<BufferHead> {
    let ctx = InodeCtx::of(dir.inode());
    let version = super::DxRoot::read(dir.inode())?.version;
    let area = copy_entries(&ctx, leaf)?;
    let map = dx_sorted_map(ctx, version, &area)?;
    let split = split_point(&map, ctx.sb.s_blocksize as usize).min(map.len().saturating_sub(1));
    let (lower, upper) = map.split_at_checked(split).ok_or(EIO)?;
    let (Some(last), Some(first)) = (lower.last(), upper.first()) else {
        return Err(Corrupt::DxSplit(ctx.i_ino).into());
    };
    let hash2 = first.hash;
    // The low bit: names with this hash are in the leaf before, too.
    let continued = u32::from(last.hash == hash2);
    // What can fail comes before anything is changed.
    let (bh2, block) = ext4_append(handle, dir)?;
    handle.get_write_access(leaf)?;
    handle.get_write_access(&frame.bh)?;
    let fill = |area: &mut [u8], names: &[MapEntry<'_>]| -> Ext4Result {
        Ok(fill_entries(area, names.iter().map(|e| e.entry)).ok_or(EIO)?)
    };
    change_dirblock(handle, &ctx, &bh2, |area| fill(area, upper))?;
    change_dirblock(handle, &ctx, leaf, |area| fill(area, lower))?;
    dx_insert_block(handle, &ctx, frame, hash2 + continued, block)?;
    Ok(if hash >= hash2 { bh2 } else { leaf.clone() })
}

/// Adds an entry behind the one that `frame` followed. There must be room.
fn dx_insert_block(handle: &mut Handle<'_>, ctx: &InodeCtx<'_>, frame: &Frame, hash: u32, block: Lblk) -> Ext4Result {
    change_dx_node(handle, ctx, &frame.bh, |bytes| {
        let (at, end) = (frame.offset(frame.at + 1), frame.offset(frame.count));
        if frame.count >= frame.limit || end + DxEntry::LEN > bytes.len() || at > end {
            return Err(Corrupt::DxCount(ctx.i_ino).into());
        }
        bytes.copy_within(at..end, at + DxEntry::LEN);
        put_dx_entry(bytes, at, hash, block).ok_or(EIO)?;
        Ok(put_count(bytes, frame.entries, frame.count + 1, frame.limit).ok_or(EIO)?)
    })
}

fn put_dx_entry(bytes: &mut [u8], at: usize, hash: u32, block: Lblk) -> Option<()> {
    let mut entry = DxEntry::at_mut(bytes, at)?;
    entry.set_hash(hash);
    entry.set_block(block.0);
    Some(())
}

fn put_count(bytes: &mut [u8], entries: usize, count: u16, limit: u16) -> Option<()> {
    let mut countlimit = DxCountLimit::at_mut(bytes, entries)?;
    countlimit.set_count(count);
    countlimit.set_limit(limit);
    Some(())
}

/// Turns a new block into a node with `entries`, as another node has them.
fn init_node(handle: &mut Handle<'_>, ctx: &InodeCtx<'_>, bh: &BufferHead, entries: &[u8]) -> Ext4Result {
    change_dx_node(handle, ctx, bh, |bytes| {
        let blocksize = bytes.len();
        let limit = dx_limit(ctx, blocksize, DX_NODE_ENTRIES) as u16;
        let count = u16::try_from(entries.len() / DxEntry::LEN).map_err(|_| EIO)?;
        bytes.fill(0);
        // To whoever knows of no trees it is a block without names.
        DirEntryHead::<&mut [u8; 8]>::at_mut(bytes, 0)
            .ok_or(EIO)?
            .set_rec_len(ext4_rec_len_to_disk(blocksize, blocksize));
        let place = bytes.get_mut(DX_NODE_ENTRIES..).and_then(|b| b.get_mut(..entries.len())).ok_or(EIO)?;
        place.copy_from_slice(entries);
        Ok(put_count(bytes, DX_NODE_ENTRIES, count, limit).ok_or(EIO)?)
    })
}

/// The lowest node of `path` is full: makes room one step nearer to it. The caller walks down again. ENOSPC if the tree may
/// not grow any more.
fn split_index(handle: &mut Handle<'_>, dir: &Locked<'_>, path: &DxPath) -> Ext4Result {
    let ctx = InodeCtx::of(dir.inode());
    let bad = Corrupt::DxLevels(ctx.i_ino);
    let parent = path.frames.iter().rposition(|frame| frame.count < frame.limit);
    let full = path.frames.get(parent.map_or(0, |at| at + 1)).ok_or(bad)?;
    if parent.is_none() && path.frames.len() >= max_frames(&ctx) {
        pr_warn!("EXT4-fs warning ({}): directory {}: Directory index full!", ctx.sb.bdev.name(), ctx.i_ino);
        return Err(ENOSPC.into());
    }
    let (bh2, block) = ext4_append(handle, dir)?;
    handle.get_write_access(&full.bh)?;
    let entries = |from: u16| -> Ext4Result<KVec<u8>> {
        let mut copy = KVec::new();
        let bytes = full.bh.read();
        copy.extend_from_slice(bytes.get(full.offset(from)..full.offset(full.count)).ok_or(EIO)?, GFP_NOFS)?;
        Ok(copy)
    };
    let Some(parent) = parent.and_then(|at| path.frames.get(at)) else {
        // The root's entries move to a node of their own, the only one below the root.
        init_node(handle, &ctx, &bh2, &entries(0)?)?;
        return change_dx_node(handle, &ctx, &full.bh, |bytes| {
            let mut info = DxRootInfo::at_mut(bytes, DX_ROOT_INFO).ok_or(EIO)?;
            info.set_indirect_levels(info.indirect_levels() + 1);
            put_dx_entry(bytes, full.entries, 0, block).ok_or(EIO)?;
            Ok(put_count(bytes, full.entries, 1, full.limit).ok_or(EIO)?)
        });
    };
    handle.get_write_access(&parent.bh)?;
    let half = full.count / 2;
    let hash = DxEntry::at(&full.bh.read(), full.offset(half)).ok_or(bad)?.hash();
    init_node(handle, &ctx, &bh2, &entries(half)?)?;
    change_dx_node(handle, &ctx, &full.bh, |bytes| Ok(put_count(bytes, full.entries, half, full.limit).ok_or(EIO)?))?;
    dx_insert_block(handle, &ctx, parent, hash, block)
}

/// Gives a hash tree to a directory whose only block, `bh`, is full: its names move to a second block, and the first becomes the
/// root. Then adds a name. As [`ext4_dx_add_entry`].
pub(crate) fn make_indexed_dir(
    handle: &mut Handle<'_>,
    dir: &Locked<'_>,
    bh: &BufferHead,
    new: &NewEntry<'_>,
) -> Ext4Result {
    let ctx = InodeCtx::of(dir.inode());
    let area = copy_entries(&ctx, bh)?;
    let mut names = DirEntries::new(ctx, &area);
    let bad = Corrupt::DirDots(ctx.i_ino);
    let dot = names.next().ok_or(bad)??;
    let dotdot = names.next().ok_or(bad)??;
    if dot.name != b"." || dotdot.name != b".." {
        return Err(bad.into());
    }
    // They are checked before anything is changed.
    if let Some(Err(error)) = DirEntries::new(ctx, &area).find(Result::is_err) {
        return Err(error);
    }
    let (leaf, block) = ext4_append(handle, dir)?;
    handle.get_write_access(bh)?;
    change_dirblock(handle, &ctx, &leaf, |area| {
        let names = names.map_while(Result::ok);
        Ok(fill_entries(area, names.map(NewEntry::from)).ok_or(EIO)?)
    })?;
    let dots = [dot, dotdot].map(NewEntry::from);
    change_dx_node(handle, &ctx, bh, |bytes| {
        // The entry for the parent hides the rest from whoever knows of no trees.
        fill_entries(bytes, dots.into_iter()).ok_or(EIO)?;
        let mut info = DxRootInfo::at_mut(bytes, DX_ROOT_INFO).ok_or(EIO)?;
        info.set_hash_version(ctx.sb.s_def_hash_version.version());
        info.set_info_length(DxRootInfo::LEN as u8);
        let limit = dx_limit(&ctx, bytes.len(), DX_ROOT_ENTRIES) as u16;
        put_dx_entry(bytes, DX_ROOT_ENTRIES, 0, block).ok_or(EIO)?;
        Ok(put_count(bytes, DX_ROOT_ENTRIES, 1, limit).ok_or(EIO)?)
    })?;
    dir.i_private().set_flags(InodeFlags::INDEX, true);
    // At once: if there is no room for one block more, the tree stays all the same.
    ext4_mark_inode_dirty(handle, dir)?;
    ext4_dx_add_entry(handle, dir, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hash: u32, name: &[u8]) -> MapEntry<'_> {
        MapEntry { hash, entry: NewEntry { inode: Ino(12), name, file_type: 1 } }
    }

    #[test]
    fn both_halves_of_a_split_have_room_for_the_longest_name() {
        let long = [b'x'; 255];
        let names: [&[u8]; 5] = [&long, b"a", &long, &long, b"bcd"];
        let map = names.map(|name| entry(0, name));
        let split = split_point(&map, 1024);
        for half in [&map[..split], &map[split..]] {
            let used: usize = half.iter().map(MapEntry::len).sum();
            assert!(!half.is_empty() && used + ext4_dir_rec_len(255) <= 1024 - 12, "{used}");
        }
        let small = [b"a", b"b", b"c", b"d"].map(|name| entry(0, name));
        assert_eq!(split_point(&small, 1024), 2);
    }
}
