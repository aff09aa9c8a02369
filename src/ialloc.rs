// SPDX-License-Identifier: GPL-2.0-only
//! `ialloc.c`: giving out inodes and taking them back.

use kernel_shim::error::{Result, code::EOPNOTSUPP};

use crate::ext4_jbd2::Handle;
use crate::{IRef, Inode};

/// What a new inode is to be.
pub struct NewInodeSpec {
    /// Type and permissions.
    pub i_mode: u32,
    /// Owner.
    pub i_uid: u32,
    /// Group.
    pub i_gid: u32,
}

/// Makes an inode near directory `dir`: marks it in bitmap and descriptor, writes it with no links counted down (`i_nlink` 1), empty,
/// with the flags it inherits. The caller gives it a name, or takes the link away again, under the same handle.
///
/// ENOSPC, EIO, EFSCORRUPTED. Needs 3 credits beside the inode's. Sleeps.
#[doc(alias = "__ext4_new_inode")]
pub fn ext4_new_inode(handle: &mut Handle<'_>, dir: &Inode, spec: &NewInodeSpec) -> Result<IRef> {
    let _ = (handle, dir, spec);
    Err(EOPNOTSUPP)
}

/// Frees an inode that has no blocks any more. Its number may be given out again at once. Sleeps.
pub fn ext4_free_inode(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let _ = (handle, inode);
    Err(EOPNOTSUPP)
}
