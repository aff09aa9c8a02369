// SPDX-License-Identifier: GPL-2.0-only
//! `orphan.c`: inodes that recovery has to finish with: those without names that are still open, and those being truncated.

use kernel_shim::error::{Result, code::EOPNOTSUPP};

use crate::Inode;
use crate::ext4_jbd2::Handle;

/// Puts an inode on the list of orphans, unless it is. Called with `i_mutex` held, or the only reference. Needs
/// [`ORPHAN_CREDITS`]. Sleeps.
pub fn ext4_orphan_add(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let _ = (handle, inode);
    Err(EOPNOTSUPP)
}

/// Takes an inode off the list of orphans, if it is on it. Without a handle, when there can be none (the journal is aborted), in memory
/// only. As [`ext4_orphan_add`].
pub fn ext4_orphan_del(handle: Option<&mut Handle<'_>>, inode: &Inode) -> Result {
    let _ = (handle, inode);
    Err(EOPNOTSUPP)
}

/// Credits for one of the two: the super block, the inode, and the one before it on the list.
pub const ORPHAN_CREDITS: u32 = 3;
