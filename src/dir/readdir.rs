// SPDX-License-Identifier: GPL-2.0-only
//! Reading a directory with positions to go on from.

use core::ops::ControlFlow;

use kernel_shim::alloc::{GFP_NOFS, KVec};
use kernel_shim::error::code::EIO;

use super::{DirBlock, DirEntries, DirEntry, dir_blocks, ext4_dir_rec_len, ext4_read_dirblock, is_dx};
use crate::Inode;
use crate::corrupt::{Ext4Error, Ext4Result};
use crate::dx::{DxPath, DxRoot};
use crate::ext4::*;
use crate::hash::{DxHash, EXT4_HTREE_EOF};
use crate::iget::InodeCtx;
use crate::namei::is_bad_dx_dir;

/// Position of a name in a directory that is read in the order of hashes: both hashes, the first without its low bit.
fn hash2pos(major: u32, minor: u32) -> u64 {
    u64::from(major >> 1) << 32 | u64::from(minor)
}

/// The position behind all names.
#[doc(alias = "EXT4_HTREE_EOF_64BIT")]
const HTREE_EOF: u64 = (EXT4_HTREE_EOF as u64) << 32 | 0xffff_ffff;

/// Whether a directory is read in the order of hashes: those with a tree, and those of one block, which may get one while they
/// are being read.
fn is_dx_dir(ctx: &InodeCtx<'_>, blocks: u32) -> bool {
    is_dx(ctx) || (ctx.sb.s_compat.contains(Compat::DIR_INDEX) && blocks == 1)
}

/// Calls `actor` with each entry of a directory from position `pos` on, `.` and `..` included, and with the position behind it, until
/// it breaks off. `pos` is then that of the entry broken off at; else it is behind all.
///
/// A position stays good when other entries come and go: in a tree it is the hash of a name, else an entry's place, which does
/// not change. An entry that exists throughout is returned once, whatever else happens between calls; one that is made or removed
/// meanwhile, or renamed, at most once under each name. (Of two names that agree in 63 bits of hash, the second follows the
/// first with no position in between.)
///
/// PORT: C keeps the names of a stretch of hashes in the open file; here each call reads the leaf again.
///
/// EIO, ENOMEM, corruptions. The directory's `i_mutex` is held, and `actor` must not take it. Sleeps.
#[doc(alias = "ext4_dx_readdir")]
pub fn ext4_readdir_from(
    dir: &Inode,
    pos: &mut u64,
    mut actor: impl FnMut(DirEntry<'_>, u64) -> ControlFlow<()>,
) -> Ext4Result {
    let ctx = InodeCtx::of(dir);
    let blocks = dir_blocks(dir)?;
    if is_dx_dir(&ctx, blocks) {
        match readdir_by_hash(dir, pos, &mut actor) {
            // As look-ups do: without the tree all entries are there.
            Err(Ext4Error::Corrupt(corrupt)) if is_bad_dx_dir(corrupt) => ctx.sb.note_corrupt(corrupt),
            done => return done,
        }
    }
    let blocksize = u64::from(ctx.sb.s_blocksize);
    while *pos < u64::from(blocks) * blocksize {
        let lblk = u32::try_from(*pos / blocksize).map_err(|_| EIO)?;
        let bh = ext4_read_dirblock(dir, Lblk(lblk), DirBlock::Any)?;
        // A copy, so that the actor runs without the block's lock.
        let mut bytes = KVec::new();
        bytes.extend_from_slice(&bh.read(), GFP_NOFS)?;
        let mut entries = DirEntries::new(ctx, &bytes);
        // From the block's beginning: where the entry was may be the middle of another by now.
        while let Some(raw) = entries.next_raw() {
            let raw = raw?;
            let at = u64::from(lblk) * blocksize + raw.offset as u64;
            let (Some(entry), true) = (raw.entry, at >= *pos) else { continue };
            let next = at + raw.rec_len as u64;
            *pos = at;
            if actor(entry, next).is_break() {
                return Ok(());
            }
            *pos = next;
        }
        *pos = (u64::from(lblk) + 1) * blocksize;
    }
    Ok(())
}

fn readdir_by_hash(
    dir: &Inode,
    pos: &mut u64,
    actor: &mut impl FnMut(DirEntry<'_>, u64) -> ControlFlow<()>,
) -> Ext4Result {
    let mut stretch = Stretch { from: *pos, blocks: KVec::new(), names: KVec::new(), next: Some(*pos) };
    // Each time around the position goes up by a leaf at least.
    while let Some(from) = stretch.next
        && from < HTREE_EOF
    {
        stretch = Stretch::gather(dir, from.max(*pos))?;
        for name in &stretch.names {
            let Some(entry) = stretch.entry(name) else { continue };
            *pos = name.pos;
            if actor(entry, name.pos + 1).is_break() {
                return Ok(());
            }
            *pos = name.pos + 1;
        }
    }
    *pos = HTREE_EOF;
    Ok(())
}

/// Where a name of a [`Stretch`] is.
struct NameAt {
    pos: u64,
    block: usize,
    offset: usize,
}

/// The names of one leaf, and of those behind it that go on with its last hash, in order.
struct Stretch {
    from: u64,
    /// Copies of the leaves.
    blocks: KVec<KVec<u8>>,
    names: KVec<NameAt>,
    /// Where the next begins.
    next: Option<u64>,
}

impl Stretch {
    /// From the leaf that `from` is in.
    #[doc(alias = "ext4_htree_fill_tree")]
    fn gather(dir: &Inode, from: u64) -> Ext4Result<Self> {
        let ctx = InodeCtx::of(dir);
        let mut stretch = Self { from, blocks: KVec::new(), names: KVec::new(), next: None };
        if !is_dx(&ctx) {
            // One block, without a tree; but the hashes are those of the tree it may get.
            stretch.add_leaf(dir, Lblk(0), ctx.sb.s_def_hash_version)?;
            return Ok(stretch.sorted());
        }
        let root = DxRoot::read(dir)?;
        let version = root.version;
        if from <= DOTDOT_POS {
            stretch.add_dots(dir)?;
        }
        let mut path = DxPath::walk(dir, root, ((from >> 32) as u32) << 1)?;
        loop {
            stretch.add_leaf(dir, path.leaf(dir)?, version)?;
            let Some(hash) = path.advance(dir, |_| true)? else { break };
            // The low bit: the next leaf has more names of a hash that this one has.
            if hash & 1 == 0 && !stretch.names.is_empty() {
                stretch.next = Some(hash2pos(hash, 0).max(from + 1));
                break;
            }
        }
        Ok(stretch.sorted())
    }

    fn sorted(mut self) -> Self {
        self.names.sort_unstable_by_key(|name| (name.pos, name.block, name.offset));
        self
    }

    fn push_block(&mut self, bytes: &[u8]) -> Ext4Result<usize> {
        let mut copy = KVec::new();
        copy.extend_from_slice(bytes, GFP_NOFS)?;
        self.blocks.push(copy, GFP_NOFS)?;
        Ok(self.blocks.len() - 1)
    }

    /// The entries of a tree's root.
    fn add_dots(&mut self, dir: &Inode) -> Ext4Result {
        let bh = ext4_read_dirblock(dir, Lblk(0), DirBlock::Index)?;
        let block = self.push_block(&bh.read())?;
        for (pos, offset) in [(DOT_POS, 0), (DOTDOT_POS, ext4_dir_rec_len(1))] {
            if pos >= self.from {
                self.names.push(NameAt { pos, block, offset }, GFP_NOFS)?;
            }
        }
        Ok(())
    }

    #[doc(alias = "htree_dirblock_to_tree")]
    fn add_leaf(&mut self, dir: &Inode, lblk: Lblk, version: DxHash) -> Ext4Result {
        let ctx = InodeCtx::of(dir);
        let bh = ext4_read_dirblock(dir, lblk, DirBlock::Any)?;
        let bytes = bh.read();
        let block = self.push_block(&bytes)?;
        let mut entries = DirEntries::new(ctx, &bytes);
        while let Some(raw) = entries.next_raw() {
            let raw = raw?;
            let Some(entry) = raw.entry else { continue };
            let pos = match entry.name {
                b"." => DOT_POS,
                b".." => DOTDOT_POS,
                name => {
                    let (major, minor) = ctx.sb.s_hash.hash_pair(version, name);
                    hash2pos(major, minor)
                }
            };
            if pos >= self.from {
                self.names.push(NameAt { pos, block, offset: raw.offset }, GFP_NOFS)?;
            }
        }
        Ok(())
    }

    fn entry(&self, name: &NameAt) -> Option<DirEntry<'_>> {
        let bytes = self.blocks.get(name.block)?;
        let head = DirEntryHead::at(bytes, name.offset)?;
        let start = name.offset + DirEntryHead::LEN;
        let name = bytes.get(start..start + usize::from(head.name_len()))?;
        Some(DirEntry { inode: Ino(head.inode()), name, file_type: head.file_type() })
    }
}

/// Position of `.`, before all names.
const DOT_POS: u64 = 0;
/// Position of `..`, between the first hash and the second.
const DOTDOT_POS: u64 = 1 << 32;
