// SPDX-License-Identifier: GPL-2.0-only
//! Where a file's data are: `FIEMAP`, `SEEK_DATA` and `SEEK_HOLE`. C has this in extents.c, inode.c and file.c.

use kernel_shim::alloc::KVec;
use kernel_shim::error::{Result, code::*};

use crate::IRef;

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

/// Appends the extents of bytes `start..start + len` to `out`, whole ones where the range cuts them; at most `max` of them.
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
    let _ = (inode, start, len, flags, max, out);
    Err(EOPNOTSUPP)
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

/// `lseek` with `SEEK_DATA` or `SEEK_HOLE`. ENXIO for an offset outside of the file, and when no data follow. Takes `i_mutex`; sleeps.
#[doc(alias = "ext4_llseek")]
pub fn ext4_seek(inode: &IRef, offset: i64, whence: Whence) -> Result<i64> {
    let _ = (inode, offset, whence);
    Err(EOPNOTSUPP)
}
