// SPDX-License-Identifier: GPL-2.0-only
//! Inodes on disk: where they are, whether they can be believed, and how they are brought up to date.
//!
//! C has this in `inode.c` (`__ext4_get_inode_loc`, `__ext4_iget`, `ext4_do_update_inode`, `ext4_mark_inode_dirty`).

use core::sync::atomic::Ordering;

use kernel_shim::error::Result;
use kernel_shim::error::code::{EIO, EROFS, ESTALE};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::fs::inode::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use kernel_shim::fs::{InodeState, InodeTimes};
use kernel_shim::time::Timespec64;

use crate::checksum::{ext4_chksum_change, ext4_inode_csum, ext4_inode_csum_seed, has_checksum_hi};
use crate::corrupt::{Corrupt, Ext4Result};
use crate::disk::{InodeExtraView, InodeView};
use crate::ext4::*;
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::extents::{ExtentTree, ext4_ext_check_inode};
use crate::indirect::ext4_ind_check_inode;
use crate::sb::Ext4SbInfo;
use crate::{Ext4State, Inode};

/// Which inode a block map or a metadata block belongs to: what checks and checksums need to know.
#[derive(Clone, Copy)]
pub struct InodeCtx<'a> {
    /// The mount.
    pub sb: &'a Ext4SbInfo,
    /// Inode number.
    pub i_ino: Ino,
    /// What its checksums start from.
    pub i_csum_seed: u32,
    /// `i_flags` on disk.
    pub i_flags: InodeFlags,
}

impl<'a> InodeCtx<'a> {
    /// Of an inode of the VFS.
    #[inline]
    pub fn of(inode: &'a Inode) -> Self {
        let info = inode.i_private();
        Self {
            sb: inode.i_sb().s_fs_info(),
            i_ino: ino_of(inode),
            i_csum_seed: info.i_csum_seed,
            i_flags: info.i_flags(),
        }
    }
}

/// The number as the disk has it. The VFS's is wider, but every inode here was made from one of these.
pub(crate) fn ino_of(inode: &Inode) -> Ino {
    Ino(u32::try_from(inode.i_ino()).unwrap_or(0))
}

/// An inode as it is on disk, checked.
#[derive(Clone, Debug)]
pub struct Ext4InodeDisk {
    /// Inode number.
    pub i_ino: Ino,
    /// Type and permissions.
    pub i_mode: u16,
    /// Owner.
    pub i_uid: u32,
    /// Group.
    pub i_gid: u32,
    /// Links.
    pub i_links_count: u16,
    /// Bytes in the file.
    pub i_size: u64,
    /// Disk space in units of 512 bytes.
    pub i_blocks: u64,
    /// Access, modification and change times.
    pub i_times: InodeTimes,
    /// When the inode was made, if there is room for it.
    pub i_crtime: Timespec64,
    /// `i_flags`.
    pub i_flags: InodeFlags,
    /// NFS generation.
    pub i_generation: u32,
    /// When it was deleted; or, on the list of orphans, the next one's number.
    pub i_dtime: u32,
    /// Change counter.
    pub i_version: u64,
    /// Bytes beyond the first 128 in use.
    pub i_extra_isize: u16,
    /// Block of extended attributes, or 0.
    pub i_file_acl: Fsblk,
    /// Root of the block map, or a short symbolic link.
    pub i_data: [u8; EXT4_I_DATA_LEN],
    /// What checksums of its metadata start from.
    pub i_csum_seed: u32,
}

impl Ext4InodeDisk {
    /// File type bits of the mode.
    pub fn file_type(&self) -> u32 {
        u32::from(self.i_mode) & S_IFMT
    }

    /// Whether it is a symbolic link that has its target where others have the block map.
    #[doc(alias = "ext4_inode_is_fast_symlink")]
    pub fn is_fast_symlink(&self) -> bool {
        self.file_type() == S_IFLNK
            && self.i_size < EXT4_I_DATA_LEN as u64
            && !self.i_flags.contains(InodeFlags::EXTENTS)
    }

    /// Whether it has a block map.
    pub fn has_block_map(&self) -> bool {
        matches!(self.file_type(), S_IFREG | S_IFDIR | S_IFLNK) && !self.is_fast_symlink()
    }

    /// For the functions that read its block map.
    pub fn ctx<'a>(&self, sb: &'a Ext4SbInfo) -> InodeCtx<'a> {
        InodeCtx { sb, i_ino: self.i_ino, i_csum_seed: self.i_csum_seed, i_flags: self.i_flags }
    }

    /// The block map.
    pub fn tree(&self) -> ExtentTree {
        ExtentTree::new(self.i_data)
    }
}

/// All of an inode that the file system writes: see [`ext4_do_update_inode`]. The rest of it (extended attributes behind
/// `i_extra_isize`, fields of other systems) stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeUpdate {
    /// Type and permissions.
    pub i_mode: u16,
    /// Owner.
    pub i_uid: u32,
    /// Group.
    pub i_gid: u32,
    /// Links.
    pub i_links_count: u16,
    /// Bytes in the file, as far as the disk is to know: `i_disksize`.
    pub i_size: u64,
    /// Disk space in units of 512 bytes.
    pub i_blocks: u64,
    /// Times.
    pub i_times: InodeTimes,
    /// When it was made.
    pub i_crtime: Timespec64,
    /// When it was deleted; or, on the list of orphans, the next one's number.
    pub i_dtime: u32,
    /// `i_flags`.
    pub i_flags: InodeFlags,
    /// NFS generation.
    pub i_generation: u32,
    /// Change counter.
    pub i_version: u64,
    /// Bytes beyond the first 128 in use.
    pub i_extra_isize: u16,
    /// Block of extended attributes, or 0.
    pub i_file_acl: Fsblk,
    /// Root of the block map, or a short symbolic link.
    pub i_data: [u8; EXT4_I_DATA_LEN],
    /// It is a new inode: whatever was in its place is gone.
    pub fresh: bool,
}

impl InodeUpdate {
    /// An inode as it is on disk.
    pub fn of(disk: &Ext4InodeDisk) -> Self {
        Self {
            i_mode: disk.i_mode,
            i_uid: disk.i_uid,
            i_gid: disk.i_gid,
            i_links_count: disk.i_links_count,
            i_size: disk.i_size,
            i_blocks: disk.i_blocks,
            i_times: disk.i_times,
            i_crtime: disk.i_crtime,
            i_dtime: disk.i_dtime,
            i_flags: disk.i_flags,
            i_generation: disk.i_generation,
            i_version: disk.i_version,
            i_extra_isize: disk.i_extra_isize,
            i_file_acl: disk.i_file_acl,
            i_data: disk.i_data,
            fresh: false,
        }
    }

    /// An inode of the VFS as it is now, with the block map that the caller has by its lock.
    fn of_inode(inode: &Inode, tree: &ExtentTree) -> Self {
        let info = inode.i_private();
        let nlink = inode.i_nlink();
        Self {
            i_mode: inode.i_mode() as u16,
            i_uid: inode.i_uid(),
            i_gid: inode.i_gid(),
            // Directories with more than fit say 1 (dir_nlink).
            i_links_count: u16::try_from(nlink).ok().filter(|n| *n <= EXT4_LINK_MAX || !inode.is_dir()).unwrap_or(1),
            i_size: u64::try_from(info.i_disksize.load(Ordering::Acquire)).unwrap_or(0),
            i_blocks: info.i_blocks.load(Ordering::Acquire),
            i_times: inode.i_times(),
            i_crtime: info.i_crtime,
            i_dtime: info.i_dtime_on_disk(),
            i_flags: info.i_flags(),
            i_generation: info.i_generation,
            i_version: info.i_version.load(Ordering::Relaxed),
            i_extra_isize: info.i_extra_isize,
            i_file_acl: Fsblk(info.i_file_acl.load(Ordering::Relaxed)),
            i_data: *tree.i_data(),
            fresh: false,
        }
    }
}

/// The block of the inode table with the inode, and where in it the inode begins. The number must be
/// one that exists: else it is a corruption of whoever referred to it.
pub fn ext4_get_inode_loc(sb: &Ext4SbInfo, ino: Ino) -> Ext4Result<(BufferHead, usize)> {
    if ino.0 == 0 || ino.0 > sb.s_inodes_count {
        return Err(Corrupt::InodeNumber(ino).into());
    }
    let group = Group((ino.0 - 1) / sb.s_inodes_per_group);
    let index = (ino.0 - 1) % sb.s_inodes_per_group;
    let table = sb.ext4_get_group_desc(group)?.inode_table;
    let block = table.0 + u64::from(index / sb.s_inodes_per_block);
    let offset = (index % sb.s_inodes_per_block) as usize * usize::from(sb.s_inode_size);
    Ok((sb.buffers.bread(block)?, offset))
}

/// Which inodes [`ext4_read_inode`] gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iget {
    /// Those that a directory may lead to.
    Normal,
    /// The reserved ones too.
    #[doc(alias = "EXT4_IGET_SPECIAL")]
    Special,
    /// Normal ones, and those that have lost their last link.
    Orphan,
}

/// Reads and checks an inode.
///
/// `ESTALE` if it is not in use, EIO, ENOMEM; corruptions of the inode, its checksum's mismatch among
/// them. The root of its block map is checked too. Sleeps.
#[doc(alias = "__ext4_iget")]
pub fn ext4_read_inode(sb: &Ext4SbInfo, ino: Ino, which: Iget) -> Ext4Result<Ext4InodeDisk> {
    if which != Iget::Special && ino != EXT4_ROOT_INO && ino.0 < sb.s_first_ino {
        return Err(Corrupt::InodeNumber(ino).into());
    }
    let (bh, offset) = ext4_get_inode_loc(sb, ino)?;
    let disk = {
        let bytes = bh.read();
        let raw = bytes.get(offset..).and_then(|bytes| bytes.get(..usize::from(sb.s_inode_size))).ok_or(EIO)?;
        parse_inode(sb, ino, raw)?
    };
    check_inode(sb, &disk, which)?;
    Ok(disk)
}

/// From bytes to fields, with the checksum verified.
fn parse_inode(sb: &Ext4SbInfo, ino: Ino, raw: &[u8]) -> Ext4Result<Ext4InodeDisk> {
    let inode = InodeView::<&[u8; 128]>::at(raw, 0).ok_or(EIO)?;
    let extra = InodeExtraView::<&[u8; 32]>::at(raw, InodeView::LEN);
    let i_extra_isize = extra.map_or(0, |extra| extra.i_extra_isize());
    if usize::from(i_extra_isize) > raw.len() - InodeView::LEN || !i_extra_isize.is_multiple_of(4) {
        return Err(Corrupt::InodeExtraIsize(ino).into());
    }
    let i_csum_seed = ext4_inode_csum_seed(sb.s_csum_seed, ino, inode.i_generation());
    if sb.has_metadata_csum() {
        let mut found = u32::from(inode.i_checksum_lo());
        let mut expected = ext4_inode_csum(i_csum_seed, raw, i_extra_isize);
        match extra {
            Some(extra) if has_checksum_hi(i_extra_isize) => found |= u32::from(extra.i_checksum_hi()) << 16,
            _ => expected &= 0xffff,
        }
        if found != expected {
            return Err(Corrupt::InodeChecksum(ino).into());
        }
    }
    // A field counts if it ends within the part in use.
    let extra_field = |end: u16, get: fn(&InodeExtraView<&[u8; 32]>) -> u32| match extra {
        Some(extra) if i_extra_isize >= end => Some(get(&extra)),
        _ => None,
    };
    let i_mode = inode.i_mode();
    let wide_size = u32::from(i_mode) & S_IFMT == S_IFREG || sb.s_incompat.contains(Incompat::LARGEDIR);
    let size_high = if wide_size { inode.i_size_high() } else { 0 };
    let i_flags = InodeFlags::from_bits_retain(inode.i_flags());
    Ok(Ext4InodeDisk {
        i_ino: ino,
        i_mode,
        i_uid: u32::from(inode.i_uid_high()) << 16 | u32::from(inode.i_uid()),
        i_gid: u32::from(inode.i_gid_high()) << 16 | u32::from(inode.i_gid()),
        i_links_count: inode.i_links_count(),
        i_size: u64::from(size_high) << 32 | u64::from(inode.i_size_lo()),
        i_blocks: inode_blocks(sb, &inode, i_flags),
        i_times: InodeTimes {
            i_atime: ext4_decode_time(inode.i_atime(), extra_field(16, |e| e.i_atime_extra())),
            i_mtime: ext4_decode_time(inode.i_mtime(), extra_field(12, |e| e.i_mtime_extra())),
            i_ctime: ext4_decode_time(inode.i_ctime(), extra_field(8, |e| e.i_ctime_extra())),
        },
        i_crtime: extra_field(20, |e| e.i_crtime()).map_or_else(Timespec64::default, |seconds| {
            ext4_decode_time(seconds, extra_field(24, |e| e.i_crtime_extra()))
        }),
        i_flags,
        i_generation: inode.i_generation(),
        i_dtime: inode.i_dtime(),
        i_version: u64::from(extra_field(28, |e| e.i_version_hi()).unwrap_or(0)) << 32
            | u64::from(inode.i_disk_version()),
        i_extra_isize,
        i_file_acl: Fsblk(u64::from(inode.i_file_acl_high()) << 32 | u64::from(inode.i_file_acl_lo())),
        i_data: inode.i_block(),
        i_csum_seed,
    })
}

/// Disk space in units of 512 bytes.
#[doc(alias = "ext4_inode_blocks")]
fn inode_blocks(sb: &Ext4SbInfo, inode: &InodeView<&[u8; 128]>, flags: InodeFlags) -> u64 {
    let lo = u64::from(inode.i_blocks_lo());
    if !sb.s_ro_compat.contains(RoCompat::HUGE_FILE) {
        return lo;
    }
    let blocks = u64::from(inode.i_blocks_high()) << 32 | lo;
    if flags.contains(InodeFlags::HUGE_FILE) { blocks << (sb.s_blocksize_bits - 9) } else { blocks }
}

/// Whether the fields make sense.
fn check_inode(sb: &Ext4SbInfo, disk: &Ext4InodeDisk, which: Iget) -> Ext4Result {
    let ino = disk.i_ino;
    if disk.i_links_count == 0 && which != Iget::Orphan || disk.i_mode == 0 {
        // The root is always needed; anything else may just have been deleted.
        return Err(if ino == EXT4_ROOT_INO { Corrupt::InodeUnallocated(ino).into() } else { ESTALE.into() });
    }
    const KNOWN: [u32; 7] = [S_IFREG, S_IFDIR, S_IFLNK, 0o140_000, 0o060_000, 0o020_000, 0o010_000];
    if !KNOWN.contains(&disk.file_type()) || (ino == EXT4_ROOT_INO && disk.file_type() != S_IFDIR) {
        return Err(Corrupt::InodeMode(ino).into());
    }
    // Their features refuse the mount, or, for extents, are simply missing.
    let mut impossible = InodeFlags::INLINE_DATA | InodeFlags::ENCRYPT | InodeFlags::CASEFOLD | InodeFlags::EA_INODE;
    if !sb.s_incompat.contains(Incompat::EXTENTS) {
        impossible |= InodeFlags::EXTENTS;
    }
    if disk.i_flags.intersects(impossible) {
        return Err(Corrupt::InodeFlags(ino).into());
    }
    if i64::try_from(disk.i_size).map_or(true, |size| size > sb.s_maxbytes()) {
        return Err(Corrupt::InodeSize(ino).into());
    }
    if !disk.has_block_map() {
        return Ok(());
    }
    if disk.i_flags.contains(InodeFlags::EXTENTS) {
        ext4_ext_check_inode(&disk.ctx(sb), &disk.tree())
    } else {
        ext4_ind_check_inode(&disk.ctx(sb), &disk.tree())
    }
}

/// Brings an inode's place in the inode table up to date, under a journal handle with a credit for it.
///
/// `fill` says what to write; it is called with the block locked, so that of two who write the inode the later one has what is
/// newer. The inode is written in one critical section of its block, with its checksum. EROFS, EIO. Sleeps.
pub fn ext4_do_update_inode(
    handle: &mut Handle<'_>,
    ino: Ino,
    fill: impl FnOnce() -> InodeUpdate,
) -> Ext4Result<BufferHead> {
    let sb = handle.sb();
    if sb.is_rdonly() {
        return Err(EROFS.into());
    }
    let (bh, offset) = ext4_get_inode_loc(sb, ino)?;
    handle.get_write_access(&bh)?;
    {
        let mut block = bh.write();
        let raw = block.get_mut(offset..).and_then(|b| b.get_mut(..usize::from(sb.s_inode_size))).ok_or(EIO)?;
        let update = fill();
        // What was checked when it was read may have been damaged in memory; lengths are not taken on trust.
        if usize::from(update.i_extra_isize) > raw.len() - InodeView::LEN {
            return Err(Corrupt::InodeExtraIsize(ino).into());
        }
        if update.fresh {
            raw.fill(0);
        }
        let before = (!update.fresh).then(|| Fields::of(raw));
        put_fields(sb, raw, &update).ok_or(EIO)?;
        put_inode_csum(sb, ino, raw, before.as_ref()).ok_or(EIO)?;
    }
    handle.dirty_metadata(&bh)?;
    Ok(bh)
}

fn put_fields(sb: &Ext4SbInfo, raw: &mut [u8], update: &InodeUpdate) -> Option<()> {
    let extra_isize = update.i_extra_isize;
    let mut inode = InodeView::<&mut [u8; 128]>::at_mut(raw, 0)?;
    inode.set_i_mode(update.i_mode);
    inode.set_i_uid(update.i_uid as u16);
    inode.set_i_uid_high((update.i_uid >> 16) as u16);
    inode.set_i_gid(update.i_gid as u16);
    inode.set_i_gid_high((update.i_gid >> 16) as u16);
    inode.set_i_links_count(update.i_links_count);
    inode.set_i_size_lo(update.i_size as u32);
    if u32::from(update.i_mode) & S_IFMT == S_IFREG || sb.s_incompat.contains(Incompat::LARGEDIR) {
        inode.set_i_size_high((update.i_size >> 32) as u32);
    }
    let (blocks, huge) = encode_blocks(sb, update.i_blocks);
    inode.set_i_blocks_lo(blocks as u32);
    if sb.s_ro_compat.contains(RoCompat::HUGE_FILE) {
        inode.set_i_blocks_high((blocks >> 32) as u16);
    }
    let mut flags = update.i_flags;
    flags.set(InodeFlags::HUGE_FILE, huge);
    inode.set_i_flags(flags.bits());
    inode.set_i_dtime(update.i_dtime);
    inode.set_i_generation(update.i_generation);
    inode.set_i_file_acl_lo(update.i_file_acl.0 as u32);
    inode.set_i_file_acl_high((update.i_file_acl.0 >> 32) as u16);
    inode.set_i_block(update.i_data);
    inode.set_i_disk_version(update.i_version as u32);
    let InodeTimes { i_atime, i_mtime, i_ctime } = update.i_times;
    // The seconds of a stamp without its second word are clamped, with it they wrap into the epoch.
    let low = |time, end| if extra_isize >= end { ext4_encode_time(time).0 } else { ext4_encode_time_32(time) };
    inode.set_i_ctime(low(i_ctime, 8));
    inode.set_i_mtime(low(i_mtime, 12));
    inode.set_i_atime(low(i_atime, 16));
    if let Some(mut extra) = InodeExtraView::<&mut [u8; 32]>::at_mut(raw, InodeView::LEN) {
        extra.set_i_extra_isize(extra_isize);
        if extra_isize >= 8 {
            extra.set_i_ctime_extra(ext4_encode_time(i_ctime).1);
        }
        if extra_isize >= 12 {
            extra.set_i_mtime_extra(ext4_encode_time(i_mtime).1);
        }
        if extra_isize >= 16 {
            extra.set_i_atime_extra(ext4_encode_time(i_atime).1);
        }
        if extra_isize >= 24 {
            let (seconds, more) = ext4_encode_time(update.i_crtime);
            extra.set_i_crtime(seconds);
            extra.set_i_crtime_extra(more);
        }
        if extra_isize >= 28 {
            extra.set_i_version_hi((update.i_version >> 32) as u32);
        }
    }
    Some(())
}

/// `i_blocks` as the disk has it, and whether it counts file-system blocks.
#[doc(alias = "ext4_inode_blocks_set")]
fn encode_blocks(sb: &Ext4SbInfo, i_blocks: u64) -> (u64, bool) {
    if i_blocks <= 0xffff_ffff_ffff || !sb.s_ro_compat.contains(RoCompat::HUGE_FILE) {
        (i_blocks, false)
    } else {
        (i_blocks >> (sb.s_blocksize_bits - 9), true)
    }
}

/// The part of an inode on disk that has fields; what is behind it, extended attributes, others write.
pub(crate) struct Fields {
    bytes: [[u8; 16]; Fields::LEN],
    i_extra_isize: u16,
    i_generation: u32,
}

impl Fields {
    /// In sixteen bytes each.
    const LEN: usize = (InodeView::LEN + InodeExtraView::LEN) / 16;

    fn of(raw: &[u8]) -> Self {
        let mut bytes = [[0; 16]; Self::LEN];
        for (to, from) in bytes.iter_mut().zip(raw.as_chunks().0) {
            *to = *from;
        }
        Self {
            bytes,
            i_extra_isize: InodeExtraView::<&[u8; 32]>::at(raw, InodeView::LEN)
                .map_or(0, |extra| extra.i_extra_isize()),
            i_generation: InodeView::<&[u8; 128]>::at(raw, 0).map_or(0, |inode| inode.i_generation()),
        }
    }

    /// Whether a checksum of the one starts as one of the other does, and has the same bytes.
    fn is_summed_as(&self, other: &Self) -> bool {
        (self.i_extra_isize, self.i_generation) == (other.i_extra_isize, other.i_generation)
    }
}

/// Stores the checksum of the inode in `raw`, where there is one: that of all of it, or, if the checksum there is that of what was there
/// before, what becomes of it by what has changed. Damage in what has not changed is found still.
#[doc(alias = "ext4_inode_csum_set")]
pub(crate) fn put_inode_csum(sb: &Ext4SbInfo, ino: Ino, raw: &mut [u8], before: Option<&Fields>) -> Option<()> {
    if !sb.has_metadata_csum() {
        return Some(());
    }
    let now = Fields::of(raw);
    let (lo, hi) = (InodeView::<&[u8; 128]>::at(raw, 0)?, InodeExtraView::<&[u8; 32]>::at(raw, InodeView::LEN));
    let csum = match before.filter(|before| before.is_summed_as(&now)) {
        Some(before) => {
            let old = u32::from(lo.i_checksum_lo()) | hi.map_or(0, |hi| u32::from(hi.i_checksum_hi()) << 16);
            let fields = raw.len().min(InodeView::LEN + InodeExtraView::LEN);
            let (old_bytes, new_bytes) = (before.bytes.get(..fields / 16)?, now.bytes.get(..fields / 16)?);
            old ^ ext4_chksum_change(old_bytes, new_bytes, (raw.len() - fields) as u16)
        }
        None => ext4_inode_csum(ext4_inode_csum_seed(sb.s_csum_seed, ino, now.i_generation), raw, now.i_extra_isize),
    };
    InodeView::<&mut [u8; 128]>::at_mut(raw, 0)?.set_i_checksum_lo(csum as u16);
    if has_checksum_hi(now.i_extra_isize) {
        InodeExtraView::<&mut [u8; 32]>::at_mut(raw, InodeView::LEN)?.set_i_checksum_hi((csum >> 16) as u16);
    }
    Some(())
}

/// Writes `next` where the inode on the disk has the number of the next one on the list of orphans, and changes nothing else
/// of it. Needs a credit. EIO, EROFS. Sleeps.
#[doc(alias = "NEXT_ORPHAN")]
pub(crate) fn ext4_set_next_orphan(handle: &mut Handle<'_>, ino: Ino, next: u32) -> Result {
    let sb = handle.sb();
    let (bh, offset) = ext4_get_inode_loc(sb, ino).map_err(|error| sb.ext4_error(error))?;
    handle.get_write_access(&bh)?;
    {
        let mut block = bh.write();
        let raw = block.get_mut(offset..).and_then(|b| b.get_mut(..usize::from(sb.s_inode_size))).ok_or(EIO)?;
        let before = Fields::of(raw);
        InodeView::<&mut [u8; 128]>::at_mut(raw, 0).ok_or(EIO)?.set_i_dtime(next);
        put_inode_csum(sb, ino, raw, Some(&before)).ok_or(EIO)?;
    }
    handle.dirty_metadata(&bh)
}

/// Writes an inode to its table block under the caller's handle, with all that has changed. Takes `i_data_sem` for reading:
/// a caller that holds it has the map, and calls [`ext4_mark_inode_dirty_tree`].
///
/// Lock order: handle, `i_data_sem`, buffer. EROFS, EIO. Sleeps.
pub fn ext4_mark_inode_dirty(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let tree = inode.i_private().i_data_sem.read();
    ext4_mark_inode_dirty_tree(handle, inode, &tree)
}

/// [`ext4_mark_inode_dirty`] with `i_data_sem` held, through whose guard `tree` was reached.
#[doc(alias = "ext4_mark_iloc_dirty")]
pub fn ext4_mark_inode_dirty_tree(handle: &mut Handle<'_>, inode: &Inode, tree: &ExtentTree) -> Result {
    let info = inode.i_private();
    // Before they are taken: an fsync that finds nothing dirty any more finds the transaction to wait for.
    handle.note_inode(info, inode.i_state());
    // Taken before the fields are read: who changes one afterwards sets it again.
    let dirty = inode.take_dirty();
    let fresh = info.state_take(Ext4State::NEW);
    let done =
        ext4_do_update_inode(handle, ino_of(inode), || InodeUpdate { fresh, ..InodeUpdate::of_inode(inode, tree) });
    match done {
        Ok(_) => {
            handle.note_inode(info, dirty);
            Ok(())
        }
        Err(error) => {
            inode.mark_inode_dirty(dirty | InodeState::DIRTY_SYNC);
            if fresh {
                info.state_set(Ext4State::NEW);
            }
            Err(handle.sb().ext4_error(error))
        }
    }
}

/// `s_op->write_inode`: brings the table block of a dirty inode up to date, in a transaction of its own, and waits for
/// nothing. If that fails the inode stays dirty. Takes no `i_mutex`; called with no handle open. Sleeps.
pub fn ext4_write_inode(inode: &Inode) -> Result {
    if inode.i_state().is_empty() {
        return Ok(());
    }
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
    let done = ext4_mark_inode_dirty(&mut handle, inode);
    let stopped = handle.stop();
    done.and(stopped)
}

/// [`ext4_write_inode`], and the block on the device, maybe in its cache: for mounts without a journal. EIO. Sleeps.
pub fn ext4_write_inode_sync(inode: &Inode) -> Result {
    let sb = inode.i_sb().s_fs_info();
    ext4_write_inode(inode)?;
    let (bh, _) = ext4_get_inode_loc(sb, ino_of(inode)).map_err(|error| sb.ext4_error(error))?;
    sb.buffers.sync_dirty_buffer(&bh)
}
