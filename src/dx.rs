// SPDX-License-Identifier: GPL-2.0-only
//! The hash tree of a directory (in C part of `namei.c`): which leaf block a name must be in.
//!
//! The root is in the directory's first block, with up to two levels of nodes below it (three with
//! large directories). Nodes hold hashes in order, each with the block for names from that hash on. Names
//! with one hash may go on in the next leaf; the low bit of that leaf's hash says so.

mod insert;

use kernel_shim::fs::buffer::BufferHead;

use crate::corrupt::{Corrupt, Ext4Result};
use crate::dir::{DX_NODE_ENTRIES, DX_ROOT_INFO, DirBlock, Node, dir_blocks, ext4_read_dirblock};
use crate::ext4::*;
use crate::hash::DxHash;
use crate::iget::InodeCtx;

pub(crate) use insert::{add_dirent_to_buf, ext4_dx_add_entry, make_indexed_dir};

/// Most nodes on the way to a leaf, the root included.
const MAX_FRAMES: usize = 3;
/// The upper bits of a block number in an entry are reserved.
const DX_BLOCK_MASK: u32 = 0x0fff_ffff;

/// How many entries a node has room for from `entries` on.
#[doc(alias = "dx_root_limit")]
#[doc(alias = "dx_node_limit")]
fn dx_limit(ctx: &InodeCtx<'_>, blocksize: usize, entries: usize) -> usize {
    let tail = if ctx.sb.has_metadata_csum() { DxTail::LEN } else { 0 };
    blocksize.saturating_sub(tail + entries) / DxEntry::LEN
}

/// A node on the way to a leaf, and the entry that was followed.
#[doc(alias = "dx_frame")]
struct Frame {
    bh: BufferHead,
    /// The node's own block in the directory.
    lblk: Lblk,
    /// Where its entries begin.
    entries: usize,
    count: u16,
    limit: u16,
    at: u16,
}

impl Frame {
    /// Takes a node whose entries begin at `entries`, and checks their number.
    fn new(dir: &impl Node, bh: BufferHead, lblk: Lblk, entries: usize) -> Ext4Result<Self> {
        let ctx = dir.ctx();
        let bytes = bh.read();
        let limit = dx_limit(&ctx, bytes.len(), entries);
        let countlimit = DxCountLimit::at(&bytes, entries).ok_or(Corrupt::DxLimit(ctx.i_ino))?;
        if usize::from(countlimit.limit()) != limit {
            return Err(Corrupt::DxLimit(ctx.i_ino).into());
        }
        let count = countlimit.count();
        if count == 0 || count > countlimit.limit() {
            return Err(Corrupt::DxCount(ctx.i_ino).into());
        }
        drop(bytes);
        Ok(Self { bh, lblk, entries, count, limit: limit as u16, at: 0 })
    }

    /// Follows the last entry whose hash is not above `hash`; the first has none and stands for 0.
    fn search(&mut self, hash: u32) {
        let bytes = self.bh.read();
        let hash_at = |at: u16| DxEntry::at(&bytes, self.offset(at)).map_or(u32::MAX, |entry| entry.hash());
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if hash_at(middle) <= hash {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.at = low - 1;
    }

    fn offset(&self, at: u16) -> usize {
        self.entries + usize::from(at) * DxEntry::LEN
    }

    /// The hash of the entry that is followed.
    fn hash(&self) -> u32 {
        DxEntry::at(&self.bh.read(), self.offset(self.at)).map_or(0, |entry| entry.hash())
    }

    /// The block that the entry leads to, which must be one of the directory's.
    fn block(&self, dir: &impl Node) -> Ext4Result<Lblk> {
        let ino = dir.ctx().i_ino;
        let bytes = self.bh.read();
        let entry = DxEntry::at(&bytes, self.offset(self.at)).ok_or(Corrupt::DxBlock(ino))?;
        let block = entry.block() & DX_BLOCK_MASK;
        if block >= dir_blocks(dir)? { Err(Corrupt::DxBlock(ino).into()) } else { Ok(Lblk(block)) }
    }
}

/// Where in the root the entries begin.
const DX_ROOT_ENTRIES: usize = DX_ROOT_INFO + DxRootInfo::LEN;

/// Most nodes on the way to a leaf on this file system.
#[doc(alias = "ext4_dir_htree_level")]
fn max_frames(ctx: &InodeCtx<'_>) -> usize {
    if ctx.sb.s_incompat.contains(Incompat::LARGEDIR) { MAX_FRAMES } else { MAX_FRAMES - 1 }
}

/// The root of a hash tree.
pub(crate) struct DxRoot {
    bh: BufferHead,
    /// How names are hashed.
    pub(crate) version: DxHash,
    /// Nodes on the way to a leaf, the root not counted.
    levels: usize,
}

impl DxRoot {
    /// Reads and checks it. EIO, corruptions. Sleeps.
    pub(crate) fn read(dir: &impl Node) -> Ext4Result<Self> {
        let ctx = dir.ctx();
        let ino = ctx.i_ino;
        let bh = ext4_read_dirblock(dir, Lblk(0), DirBlock::Index)?;
        let (version, levels) = {
            let bytes = bh.read();
            let info = DxRootInfo::at(&bytes, DX_ROOT_INFO).ok_or(Corrupt::DxLimit(ino))?;
            let version = DxHash::from_version(info.hash_version()).ok_or(Corrupt::DxHash(ino))?;
            if info.unused_flags() & 1 != 0 {
                return Err(Corrupt::DxFlags(ino).into());
            }
            if usize::from(info.info_length()) != DxRootInfo::LEN {
                return Err(Corrupt::DxLimit(ino).into());
            }
            (version, usize::from(info.indirect_levels()))
        };
        if levels >= max_frames(&ctx) {
            return Err(Corrupt::DxLevels(ino).into());
        }
        Ok(Self { bh, version, levels })
    }
}

/// The way from the root of a hash tree to the leaf for one hash, and on to the leaves behind it.
pub(crate) struct DxPath {
    frames: heapless::Vec<Frame, MAX_FRAMES>,
    hash: u32,
    /// Leaves that may still be visited: no more than the directory has blocks.
    budget: u32,
}

impl DxPath {
    /// Walks from the root down to the leaf for `name`. EIO, corruptions. Sleeps.
    #[doc(alias = "dx_probe")]
    pub(crate) fn probe(dir: &impl Node, name: &[u8]) -> Ext4Result<Self> {
        let root = DxRoot::read(dir)?;
        let hash = dir.ctx().sb.s_hash.hash(root.version, name);
        Self::walk(dir, root, hash)
    }

    /// Walks from the root down to the leaf for names with `hash`.
    pub(crate) fn walk(dir: &impl Node, root: DxRoot, hash: u32) -> Ext4Result<Self> {
        let mut path = Self { frames: heapless::Vec::new(), hash, budget: dir_blocks(dir)? };
        let mut frame = Frame::new(dir, root.bh, Lblk(0), DX_ROOT_ENTRIES)?;
        frame.search(hash);
        path.push(dir, frame)?;
        for _ in 0..root.levels {
            let mut frame = path.child(dir)?;
            frame.search(hash);
            path.push(dir, frame)?;
        }
        Ok(path)
    }

    fn push(&mut self, dir: &impl Node, frame: Frame) -> Ext4Result {
        Ok(self.frames.push(frame).map_err(|_| Corrupt::DxLevels(dir.ctx().i_ino))?)
    }

    /// The node that the lowest frame leads to.
    fn child(&self, dir: &impl Node) -> Ext4Result<Frame> {
        let lblk = self.leaf(dir)?;
        if self.frames.iter().any(|frame| frame.lblk == lblk) {
            return Err(Corrupt::DxLoop(dir.ctx().i_ino).into());
        }
        Frame::new(dir, ext4_read_dirblock(dir, lblk, DirBlock::Index)?, lblk, DX_NODE_ENTRIES)
    }

    /// The block that the lowest frame leads to.
    pub(crate) fn leaf(&self, dir: &impl Node) -> Ext4Result<Lblk> {
        self.frames.last().ok_or(Corrupt::DxLevels(dir.ctx().i_ino))?.block(dir)
    }

    /// Goes to the next leaf, if names with the same hash may be there.
    #[doc(alias = "ext4_htree_next_block")]
    pub(crate) fn next(&mut self, dir: &impl Node) -> Ext4Result<bool> {
        let hash = self.hash;
        Ok(self.advance(dir, |next| next & !1 == hash)?.is_some())
    }

    /// Goes to the next leaf, if there is one and `wanted` says so of its first hash, which is returned. The low bit of that tells
    /// whether the leaf before may have names with the same hash. After nothing the path leads nowhere.
    pub(crate) fn advance(&mut self, dir: &impl Node, wanted: impl FnOnce(u32) -> bool) -> Ext4Result<Option<u32>> {
        self.budget = self.budget.checked_sub(1).ok_or(Corrupt::DxLoop(dir.ctx().i_ino))?;
        let depth = self.frames.len();
        // Up to the lowest node that has another entry ...
        while self.frames.last().is_some_and(|frame| frame.at + 1 >= frame.count) {
            self.frames.pop();
        }
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        frame.at += 1;
        let hash = frame.hash();
        if !wanted(hash) {
            return Ok(None);
        }
        // ... and down again along the first entries.
        while self.frames.len() < depth {
            let frame = self.child(dir)?;
            self.push(dir, frame)?;
        }
        Ok(Some(hash))
    }
}
