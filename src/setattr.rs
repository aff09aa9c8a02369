// SPDX-License-Identifier: GPL-2.0-only
//! Changes of size, mode, owner and times: `ext4_setattr` of inode.c, and what `notify_change` does before it.

use kernel_shim::error::{Result, code::*};
use kernel_shim::time::Timespec64;

use crate::IRef;

bitflags::bitflags! {
    /// Which fields of an [`Iattr`] count.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AttrValid: u32 {
        /// Permission bits.
        #[doc(alias = "ATTR_MODE")]
        const MODE = 1 << 0;
        /// Owner.
        #[doc(alias = "ATTR_UID")]
        const UID = 1 << 1;
        /// Group.
        #[doc(alias = "ATTR_GID")]
        const GID = 1 << 2;
        /// Size.
        #[doc(alias = "ATTR_SIZE")]
        const SIZE = 1 << 3;
        /// Access time: now, unless `ATIME_SET`.
        #[doc(alias = "ATTR_ATIME")]
        const ATIME = 1 << 4;
        /// Modification time: now, unless `MTIME_SET`.
        #[doc(alias = "ATTR_MTIME")]
        const MTIME = 1 << 5;
        /// Change time: always now.
        #[doc(alias = "ATTR_CTIME")]
        const CTIME = 1 << 6;
        /// The access time is `ia_atime`.
        #[doc(alias = "ATTR_ATIME_SET")]
        const ATIME_SET = 1 << 7;
        /// The modification time is `ia_mtime`.
        #[doc(alias = "ATTR_MTIME_SET")]
        const MTIME_SET = 1 << 8;
        /// Set-user-ID falls. Implied by a change of owner or size.
        #[doc(alias = "ATTR_KILL_SUID")]
        const KILL_SUID = 1 << 11;
        /// Set-group-ID falls if the group may execute the file. Implied by a change of owner or size.
        #[doc(alias = "ATTR_KILL_SGID")]
        const KILL_SGID = 1 << 12;
        /// `security.capability` falls. Implied by a change of owner or size.
        #[doc(alias = "ATTR_KILL_PRIV")]
        const KILL_PRIV = 1 << 14;
    }
}

/// Attributes to set: C's `struct iattr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Iattr {
    /// Which of the fields count.
    pub ia_valid: AttrValid,
    /// Permission bits; the file type is not looked at.
    pub ia_mode: u32,
    /// Owner.
    pub ia_uid: u32,
    /// Group.
    pub ia_gid: u32,
    /// Bytes.
    pub ia_size: i64,
    /// Access time.
    pub ia_atime: Timespec64,
    /// Modification time.
    pub ia_mtime: Timespec64,
}

/// `chmod`, `chown`, `utimens`, `truncate`.
///
/// EPERM for an immutable or append-only inode, EINVAL for a negative size or one of something that is no regular file
/// (EISDIR for a directory), EFBIG, EROFS, ENOSPC, EIO. Takes `i_mutex`; sleeps.
pub fn ext4_setattr(inode: &IRef, attr: &Iattr) -> Result {
    let _ = (inode, attr);
    Err(EOPNOTSUPP)
}

/// `truncate`: [`ext4_setattr`] of the size alone.
pub fn ext4_setattr_size(inode: &IRef, size: i64) -> Result {
    ext4_setattr(inode, &Iattr { ia_valid: AttrValid::SIZE, ia_size: size, ..Iattr::default() })
}
