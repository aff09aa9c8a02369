// SPDX-License-Identifier: GPL-2.0-only
//! `dir.c`: the blocks of a directory and the entries in them.
//!
//! A directory block is filled by entries, each saying how far the next one is. Blocks of a hash tree
//! are made to look like blocks with nothing but unused entries, so that reading all blocks in order
//! finds every name whether there is a tree or not.

mod readdir;

use core::ops::ControlFlow;

use kernel_shim::error::code::{EIO, ENOTDIR};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::fs::inode::{S_IFDIR, S_IFLNK, S_IFMT};

use crate::checksum::{ext4_dirblock_csum, ext4_dx_csum};
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::extents::ext4_ext_lookup;
use crate::extents_status::EsStatus;
use crate::iget::{Ext4InodeDisk, InodeCtx};
use crate::indirect::ext4_ind_lookup;
use crate::inode::ext4_map_blocks;
use crate::sb::Ext4SbInfo;
use crate::{IRef, Inode};

pub use readdir::ext4_readdir_from;

/// Bytes of the shortest entry that can hold a name of `name_len` bytes.
pub const fn ext4_dir_rec_len(name_len: usize) -> usize {
    (DirEntryHead::LEN + name_len).next_multiple_of(4)
}

/// An inode as path look-up sees it: one of the VFS, or one fresh from the disk.
pub trait Node {
    /// Whose it is.
    fn ctx(&self) -> InodeCtx<'_>;
    /// Type and permissions.
    fn i_mode(&self) -> u32;
    /// Bytes.
    fn i_size(&self) -> u64;
    /// Where a block is. Nothing if it was never written.
    fn bmap(&self, lblk: Lblk) -> Ext4Result<Option<Fsblk>>;
    /// A copy of the place where the root of the block map is, or a short symbolic link.
    fn i_data(&self) -> [u8; EXT4_I_DATA_LEN];

    /// Whether it is a directory.
    fn is_dir(&self) -> bool {
        self.i_mode() & S_IFMT == S_IFDIR
    }

    /// Whether it is a symbolic link.
    fn is_lnk(&self) -> bool {
        self.i_mode() & S_IFMT == S_IFLNK
    }
}

impl Node for Inode {
    fn ctx(&self) -> InodeCtx<'_> {
        InodeCtx::of(self)
    }
    fn i_mode(&self) -> u32 {
        Inode::i_mode(self)
    }
    fn i_size(&self) -> u64 {
        u64::try_from(Inode::i_size(self)).unwrap_or(0)
    }
    fn bmap(&self, lblk: Lblk) -> Ext4Result<Option<Fsblk>> {
        let mut map = MapBlocks::new(lblk, 1);
        let blocks = ext4_map_blocks(self, &mut map)?;
        Ok((blocks > 0 && map.m_flags.contains(MapFlags::MAPPED)).then_some(map.m_pblk))
    }
    fn i_data(&self) -> [u8; EXT4_I_DATA_LEN] {
        *self.i_private().i_data_sem.read().i_data()
    }
}

/// An inode fresh from the disk, with the mount it is from.
#[derive(Clone)]
pub struct DiskNode<'a> {
    /// The mount.
    pub sb: &'a Ext4SbInfo,
    /// The inode.
    pub disk: Ext4InodeDisk,
}

impl Node for DiskNode<'_> {
    fn ctx(&self) -> InodeCtx<'_> {
        self.disk.ctx(self.sb)
    }
    fn i_mode(&self) -> u32 {
        u32::from(self.disk.i_mode)
    }
    fn i_size(&self) -> u64 {
        self.disk.i_size
    }
    fn bmap(&self, lblk: Lblk) -> Ext4Result<Option<Fsblk>> {
        let (ctx, tree) = (self.ctx(), self.disk.tree());
        let es = if ctx.i_flags.contains(InodeFlags::EXTENTS) {
            ext4_ext_lookup(&ctx, &tree, lblk)?
        } else {
            ext4_ind_lookup(&ctx, &tree, lblk)?
        };
        let pblk = Fsblk(es.pblk().0 + u64::from(lblk.0 - es.lblk().0));
        Ok((es.status() == EsStatus::Written).then_some(pblk))
    }
    fn i_data(&self) -> [u8; EXT4_I_DATA_LEN] {
        self.disk.i_data
    }
}

impl Node for IRef {
    fn ctx(&self) -> InodeCtx<'_> {
        Node::ctx(&**self)
    }
    fn i_mode(&self) -> u32 {
        Node::i_mode(&**self)
    }
    fn i_size(&self) -> u64 {
        Node::i_size(&**self)
    }
    fn bmap(&self, lblk: Lblk) -> Ext4Result<Option<Fsblk>> {
        Node::bmap(&**self, lblk)
    }
    fn i_data(&self) -> [u8; EXT4_I_DATA_LEN] {
        Node::i_data(&**self)
    }
}

/// An entry in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "ext4_dir_entry_2")]
pub struct DirEntry<'a> {
    /// The inode it leads to; never 0.
    pub inode: Ino,
    /// The name, as bytes.
    pub name: &'a [u8],
    /// What the entry says of the inode's type, or 0.
    pub file_type: u8,
}

/// The entries of a block, each checked; ends after the first that is wrong.
pub struct DirEntries<'a> {
    ctx: InodeCtx<'a>,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> DirEntries<'a> {
    /// Of a directory's block.
    pub fn new(ctx: InodeCtx<'a>, bytes: &'a [u8]) -> Self {
        Self { ctx, bytes, offset: 0 }
    }

    /// The entry at the current offset, unused ones too.
    #[doc(alias = "__ext4_check_dir_entry")]
    fn check(&self) -> Ext4Result<RawEntry<'a>> {
        let ino = self.ctx.i_ino;
        let size = self.bytes.len();
        let head = DirEntryHead::at(self.bytes, self.offset).ok_or(Corrupt::DirEntryOverrun(ino))?;
        let name_len = usize::from(head.name_len());
        let rec_len = ext4_rec_len_from_disk(head.rec_len(), size);
        let next = self.offset + rec_len;
        let corrupt = if rec_len < ext4_dir_rec_len(1) {
            Corrupt::DirEntryRecLen(ino)
        } else if !rec_len.is_multiple_of(4) {
            Corrupt::DirEntryAlign(ino)
        } else if rec_len < ext4_dir_rec_len(name_len) {
            Corrupt::DirEntryNameLen(ino)
        } else if next > size || (next != size && next > size - ext4_dir_rec_len(1)) {
            Corrupt::DirEntryOverrun(ino)
        } else if head.inode() > self.ctx.sb.s_inodes_count {
            Corrupt::DirEntryInode(ino)
        } else {
            let raw = RawEntry { offset: self.offset, rec_len, entry: None };
            if head.inode() == 0 {
                return Ok(raw);
            }
            let start = self.offset + DirEntryHead::LEN;
            let name = self.bytes.get(start..start + name_len).ok_or(Corrupt::DirEntryNameLen(ino))?;
            let entry = DirEntry { inode: Ino(head.inode()), name, file_type: head.file_type() };
            return Ok(RawEntry { entry: Some(entry), ..raw });
        };
        Err(corrupt.into())
    }
}

/// An entry, in use or not.
#[derive(Clone, Copy)]
pub(crate) struct RawEntry<'a> {
    /// Where in the block it begins.
    pub(crate) offset: usize,
    /// Bytes to the next.
    pub(crate) rec_len: usize,
    /// What it says, if it is in use.
    pub(crate) entry: Option<DirEntry<'a>>,
}

impl RawEntry<'_> {
    /// How much of it is needed.
    pub(crate) fn used_len(&self) -> usize {
        self.entry.map_or(0, |entry| ext4_dir_rec_len(entry.name.len()))
    }
}

impl<'a> DirEntries<'a> {
    /// The next entry, in use or not.
    pub(crate) fn next_raw(&mut self) -> Option<Ext4Result<RawEntry<'a>>> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let found = self.check();
        self.offset = found.map_or(self.bytes.len(), |raw| raw.offset + raw.rec_len);
        Some(found)
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Ext4Result<DirEntry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_raw()? {
                Ok(RawEntry { entry: None, .. }) => {}
                Ok(RawEntry { entry: Some(entry), .. }) => return Some(Ok(entry)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// What a directory's block is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirBlock {
    /// Entries, or whatever there is.
    Any,
    /// A node of the hash tree.
    Index,
}

/// How many blocks a directory has.
pub fn dir_blocks(dir: &impl Node) -> Ext4Result<u32> {
    let ctx = dir.ctx();
    if !dir.is_dir() {
        return Err(ENOTDIR.into());
    }
    if !dir.i_size().is_multiple_of(u64::from(ctx.sb.s_blocksize)) {
        return Err(Corrupt::DirSize(ctx.i_ino).into());
    }
    let blocks = u32::try_from(dir.i_size() >> ctx.sb.s_blocksize_bits).map_err(|_| Corrupt::DirSize(ctx.i_ino))?;
    // It has no holes, so that it is no longer than the file system; else a few blocks could be two million, again and again.
    if u64::from(blocks) > ctx.sb.s_blocks_count {
        return Err(Corrupt::DirSize(ctx.i_ino).into());
    }
    Ok(blocks)
}

/// Whether the directory has a hash tree.
pub fn is_dx(ctx: &InodeCtx<'_>) -> bool {
    ctx.sb.s_compat.contains(Compat::DIR_INDEX) && ctx.i_flags.contains(InodeFlags::INDEX)
}

/// Reads a block of a directory and verifies its checksum. A directory has no holes. EIO. Sleeps.
#[doc(alias = "__ext4_read_dirblock")]
pub fn ext4_read_dirblock(dir: &impl Node, lblk: Lblk, expected: DirBlock) -> Ext4Result<BufferHead> {
    let ctx = dir.ctx();
    let pblk = dir.bmap(lblk)?.ok_or(Corrupt::DirHole(ctx.i_ino))?;
    let bh = ctx.sb.buffers.bread(pblk.0)?;
    if !ctx.sb.has_metadata_csum() || bh.verified() {
        return Ok(bh);
    }
    let bytes = bh.read();
    let is_index = expected == DirBlock::Index || (is_dx(&ctx) && looks_like_index(&bytes, lblk));
    if is_index {
        check_dx_csum(&ctx, &bytes)?;
    } else {
        check_dirblock_csum(&ctx, &bytes)?;
    }
    drop(bytes);
    bh.set_verified();
    Ok(bh)
}

/// In a directory with a hash tree the first block is the root, and other nodes are those that one
/// unused entry fills.
fn looks_like_index(bytes: &[u8], lblk: Lblk) -> bool {
    let Some(head) = DirEntryHead::at(bytes, 0) else { return false };
    lblk.0 == 0 || (head.inode() == 0 && ext4_rec_len_from_disk(head.rec_len(), bytes.len()) == bytes.len())
}

/// Verifies the checksum at the end of a block of entries.
#[doc(alias = "ext4_dirblock_csum_verify")]
fn check_dirblock_csum(ctx: &InodeCtx<'_>, bytes: &[u8]) -> Ext4Result {
    let at = bytes.len().checked_sub(DirEntryTail::LEN).ok_or(EIO)?;
    let tail = DirEntryTail::at(bytes, at).ok_or(EIO)?;
    let is_tail = tail.det_reserved_zero1() == 0
        && usize::from(tail.det_rec_len()) == DirEntryTail::LEN
        && tail.det_reserved_zero2() == 0
        && tail.det_reserved_ft() == EXT4_FT_DIR_CSUM;
    if !is_tail {
        return Err(Corrupt::DirBlockTail(ctx.i_ino).into());
    }
    let before = bytes.get(..at).unwrap_or_default();
    if tail.det_checksum() != ext4_dirblock_csum(ctx.i_csum_seed, before) {
        return Err(Corrupt::DirBlockChecksum(ctx.i_ino).into());
    }
    Ok(())
}

/// Where in a hash tree node, the root if `bytes` looks like one, the entries begin.
#[doc(alias = "get_dx_countlimit")]
pub(crate) fn dx_entries_offset(bytes: &[u8]) -> Option<usize> {
    let head = DirEntryHead::at(bytes, 0)?;
    if ext4_rec_len_from_disk(head.rec_len(), bytes.len()) == bytes.len() {
        return Some(DX_NODE_ENTRIES);
    }
    let dotdot = DirEntryHead::at(bytes, ext4_dir_rec_len(1))?;
    let info = DxRootInfo::at(bytes, DX_ROOT_INFO)?;
    let is_root = usize::from(head.rec_len()) == ext4_dir_rec_len(1)
        && usize::from(dotdot.rec_len()) == bytes.len() - ext4_dir_rec_len(1)
        && info.reserved_zero() == 0
        && usize::from(info.info_length()) == DxRootInfo::LEN;
    is_root.then_some(DX_ROOT_INFO + DxRootInfo::LEN)
}

/// Offset of the entries in a node that is not the root: behind one unused entry.
pub(crate) const DX_NODE_ENTRIES: usize = DirEntryHead::LEN;
/// Offset of the description of the tree in the root: behind the entries for `.` and `..`.
pub(crate) const DX_ROOT_INFO: usize = 2 * ext4_dir_rec_len(1);

/// Verifies the checksum of a hash tree node.
#[doc(alias = "ext4_dx_csum_verify")]
fn check_dx_csum(ctx: &InodeCtx<'_>, bytes: &[u8]) -> Ext4Result {
    let bad = Corrupt::DxChecksum(ctx.i_ino);
    let entries = dx_entries_offset(bytes).ok_or(bad)?;
    let countlimit = DxCountLimit::at(bytes, entries).ok_or(bad)?;
    let end = |entry: u16| entries + usize::from(entry) * DxEntry::LEN;
    let tail = DxTail::at(bytes, end(countlimit.limit())).ok_or(bad)?;
    let used = bytes.get(..end(countlimit.count())).ok_or(bad)?;
    if tail.dt_checksum() != ext4_dx_csum(ctx.i_csum_seed, used, tail.dt_reserved()) {
        return Err(bad.into());
    }
    Ok(())
}

/// Calls `actor` with every entry of a directory in the order of the disk, `.` and `..` included, until
/// it breaks off. ENOTDIR, EIO, corruptions. The directory must not change meanwhile. Sleeps.
pub fn ext4_readdir(dir: &impl Node, mut actor: impl FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Ext4Result {
    for lblk in 0..dir_blocks(dir)? {
        let bh = ext4_read_dirblock(dir, Lblk(lblk), DirBlock::Any)?;
        let bytes = bh.read();
        for entry in DirEntries::new(dir.ctx(), &bytes) {
            if actor(entry?).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
