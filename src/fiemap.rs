// SPDX-License-Identifier: GPL-2.0-only
//! Where a file's data are: `FIEMAP`, `SEEK_DATA` and `SEEK_HOLE`. C has this in extents.c, inode.c and file.c.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::FileSystem;
use kernel_shim::sync::lockdep::syscall;

use crate::aops::filemap_write_and_wait_range;
use crate::corrupt::Corrupt;
use crate::ext4::{EXT4_I_DATA_LEN, Lblk, MapBlocks, MapFlags};
use crate::iget::ino_of;
use crate::inode::ext4_map_blocks;
use crate::xattr::ext4_xattr_ibody_place;
use crate::{Ext4, IRef, Inode};

bitflags::bitflags! {
    /// What is asked of [`ext4_fiemap`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FiemapFlags: u32 {
        /// Dirty pages are written first.
        #[doc(alias = "FIEMAP_FLAG_SYNC")]
        const SYNC = 0x1;
        /// Where the extended attributes are, instead of the data.
        #[doc(alias = "FIEMAP_FLAG_XATTR")]
        const XATTR = 0x2;
        // Refused.
        const _ = !0;
    }

    /// What is true of a [`FiemapExtent`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FiemapExtentFlags: u32 {
        /// None of those asked for follows.
        #[doc(alias = "FIEMAP_EXTENT_LAST")]
        const LAST = 0x0001;
        /// Neither begins nor ends with a block.
        #[doc(alias = "FIEMAP_EXTENT_NOT_ALIGNED")]
        const NOT_ALIGNED = 0x0100;
        /// Among metadata.
        #[doc(alias = "FIEMAP_EXTENT_DATA_INLINE")]
        const DATA_INLINE = 0x0200;
        /// Allocated, never written.
        #[doc(alias = "FIEMAP_EXTENT_UNWRITTEN")]
        const UNWRITTEN = 0x0800;
    }
}

/// A piece of a file that is in one piece on the device. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "fiemap_extent")]
pub struct FiemapExtent {
    /// Where it is in the file.
    pub fe_logical: u64,
    /// Where it is on the device.
    pub fe_physical: u64,
    /// How long it is.
    pub fe_length: u64,
    /// See [`FiemapExtentFlags`].
    pub fe_flags: FiemapExtentFlags,
}

/// Appends the extents of bytes `start..start + len` to `out`, at most `max` of them; what the range cuts is cut to whole blocks.
/// Extents past the end of the file are among them.
///
/// EINVAL for an empty range, EFBIG for one past the largest file, EBADR for unknown flags; ENOMEM, EIO, corruptions. Sleeps.
pub fn ext4_fiemap(
    inode: &IRef,
    start: u64,
    len: u64,
    flags: FiemapFlags,
    max: usize,
    out: &mut KVec<FiemapExtent>,
) -> Result {
    let _syscall = syscall("ext4_fiemap");
    let maxbytes = u64::try_from(<Ext4 as FileSystem>::s_maxbytes(inode)).map_err(|_| EFBIG)?;
    if len == 0 {
        return Err(EINVAL);
    }
    if start >= maxbytes {
        return Err(EFBIG);
    }
    if !(flags - FiemapFlags::SYNC - FiemapFlags::XATTR).is_empty() {
        return Err(EBADR);
    }
    let end = start.saturating_add(len).min(maxbytes);
    if flags.contains(FiemapFlags::XATTR) {
        return fiemap_xattr(inode, out);
    }
    if !has_block_map(inode) {
        return Ok(());
    }
    if flags.contains(FiemapFlags::SYNC) {
        let last = i64::try_from(end - 1).unwrap_or(i64::MAX);
        filemap_write_and_wait_range(inode, i64::try_from(start).map_err(|_| EFBIG)?, last)?;
    }
    fiemap_data(inode, start, end, max, out)
}

/// Whether the inode's `i_data` is a map.
fn has_block_map(inode: &Inode) -> bool {
    let fast_symlink = inode.i_size() < EXT4_I_DATA_LEN as i64 && !inode.i_private().is_extents();
    inode.is_reg() || inode.is_dir() || inode.is_lnk() && !fast_symlink
}

fn fiemap_data(inode: &Inode, start: u64, end: u64, max: usize, out: &mut KVec<FiemapExtent>) -> Result {
    let blkbits = inode.i_blkbits();
    let (mut at, end) = (start >> blkbits, end.div_ceil(1 << blkbits));
    // Not given out before it is known what follows.
    let mut last: Option<FiemapExtent> = None;
    let mut given = 0;
    let mut look_ups = LookUps::of(inode);
    while at < end {
        let map = look_ups.map_from(at, end)?;
        let next = map.m_flags.intersects(MapFlags::MAPPED | MapFlags::UNWRITTEN).then(|| FiemapExtent {
            fe_logical: at << blkbits,
            fe_physical: map.m_pblk.0 << blkbits,
            fe_length: u64::from(map.m_len) << blkbits,
            fe_flags: if map.m_flags.contains(MapFlags::MAPPED) {
                FiemapExtentFlags::empty()
            } else {
                FiemapExtentFlags::UNWRITTEN
            },
        });
        at += u64::from(map.m_len);
        let Some(next) = next else { continue };
        if let Some(before) = &mut last {
            if continues(before, &next) {
                before.fe_length += next.fe_length;
                continue;
            }
            if given == max {
                return Ok(());
            }
            out.push(*before, GFP_KERNEL)?;
            given += 1;
        }
        last = Some(next);
    }
    if let Some(mut extent) = last
        && given < max
    {
        extent.fe_flags |= FiemapExtentFlags::LAST;
        out.push(extent, GFP_KERNEL)?;
    }
    Ok(())
}

/// Whether `next` is the rest of `before`, which was looked up in two pieces.
fn continues(before: &FiemapExtent, next: &FiemapExtent) -> bool {
    before.fe_flags == next.fe_flags
        && before.fe_logical + before.fe_length == next.fe_logical
        && before.fe_physical + before.fe_length == next.fe_physical
}

/// Look-ups from one end of a file to the other.
struct LookUps<'i> {
    inode: &'i Inode,
    left: u64,
}

impl<'i> LookUps<'i> {
    /// Of a file mapped by block numbers there are fewer than four for each block of the file system: pieces of data are no more than
    /// blocks, holes no more than these and the tables. Only tables that share tables need more, up to 2^30 of them.
    fn of(inode: &'i Inode) -> Self {
        let blocks = inode.i_sb().s_fs_info().s_blocks_count;
        Self { inode, left: if inode.i_private().is_extents() { u64::MAX } else { 4 * blocks } }
    }

    /// What is known of block `at` and those behind it that are alike, of `end - at` blocks; at least one.
    fn map_from(&mut self, at: u64, end: u64) -> Result<MapBlocks> {
        let inode = self.inode;
        let sb = inode.i_sb().s_fs_info();
        self.left =
            self.left.checked_sub(1).ok_or_else(|| sb.ext4_error(Corrupt::IndirectBlock(ino_of(inode)).into()))?;
        let lblk = Lblk(u32::try_from(at).map_err(|_| EFBIG)?);
        let len = u32::try_from(end - at).unwrap_or(u32::MAX);
        let mut map = MapBlocks::new(lblk, len);
        let n = ext4_map_blocks(inode, &mut map)?;
        if n == 0 {
            map.m_flags = MapFlags::empty();
        }
        map.m_len = map.m_len.clamp(1, len);
        Ok(map)
    }
}

/// The attributes in the inode, or if there are none those in the block.
#[doc(alias = "ext4_iomap_xattr_fiemap")]
fn fiemap_xattr(inode: &Inode, out: &mut KVec<FiemapExtent>) -> Result {
    let sb = inode.i_sb().s_fs_info();
    let block = inode.i_private().i_file_acl.load(Ordering::Acquire);
    let extent = if let Some((place, len)) = ext4_xattr_ibody_place(inode)? {
        let flags = FiemapExtentFlags::DATA_INLINE | FiemapExtentFlags::NOT_ALIGNED | FiemapExtentFlags::LAST;
        FiemapExtent { fe_logical: 0, fe_physical: place, fe_length: len, fe_flags: flags }
    } else if block != 0 {
        FiemapExtent {
            fe_logical: 0,
            fe_physical: block << inode.i_blkbits(),
            fe_length: u64::from(sb.s_blocksize),
            fe_flags: FiemapExtentFlags::LAST,
        }
    } else {
        return Ok(());
    };
    Ok(out.push(extent, GFP_KERNEL)?)
}

/// What [`ext4_seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The first byte at or after the offset that is data.
    #[doc(alias = "SEEK_DATA")]
    Data,
    /// The first that is in a hole; there is one at the end of the file.
    #[doc(alias = "SEEK_HOLE")]
    Hole,
}

/// `lseek` with `SEEK_DATA` or `SEEK_HOLE`. ENXIO for an offset outside of the file, and when no data follow; EIO. Takes `i_mutex`; sleeps.
///
/// PORT: dirty pages over unwritten blocks are data. C looks for them in the page cache; here they are written first, after
/// which the map has all there is to know.
#[doc(alias = "ext4_llseek")]
#[doc(alias = "iomap_seek_hole")]
pub fn ext4_seek(inode: &IRef, offset: i64, whence: Whence) -> Result<i64> {
    let _syscall = syscall("ext4_seek");
    let i_mutex = inode.lock();
    let found = seek_locked(inode, offset, whence);
    i_mutex.unlock();
    found
}

fn seek_locked(inode: &Inode, offset: i64, whence: Whence) -> Result<i64> {
    let size = inode.i_size();
    if offset < 0 || offset >= size {
        return Err(ENXIO);
    }
    if !has_block_map(inode) {
        return Err(EINVAL);
    }
    filemap_write_and_wait_range(inode, offset, size)?;
    let blkbits = inode.i_blkbits();
    let (mut at, end) = (offset as u64 >> blkbits, (size as u64).div_ceil(1 << blkbits));
    let mut look_ups = LookUps::of(inode);
    while at < end {
        let map = look_ups.map_from(at, end)?;
        if map.m_flags.contains(MapFlags::MAPPED) == (whence == Whence::Data) {
            // Below 2^63, as it is inside the file.
            return Ok(offset.max((at << blkbits) as i64));
        }
        at += u64::from(map.m_len);
    }
    match whence {
        Whence::Data => Err(ENXIO),
        Whence::Hole => Ok(size),
    }
}
