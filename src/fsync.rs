// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/fsync.c`.

use kernel_shim::block::blkdev_issue_flush;
use kernel_shim::error::Result;
use kernel_shim::fs::InodeState;

use crate::Inode;

/// Makes a file's data durable, and its inode as far as the data needs it (`datasync`) or wholly.
///
/// Direct writes that have completed are on the device, maybe in its cache; what is still in flight is not waited for, as in
/// Linux. Takes no `i_mutex`, so that one writer's `O_DSYNC` does not stop the others. Sleeps.
pub fn ext4_sync_file(inode: &Inode, _start: i64, _end: i64, datasync: bool) -> Result {
    let dirty = inode.i_state();
    // Times alone are no reason for fdatasync to write the inode.
    let write = if datasync { dirty.contains(InodeState::DIRTY_DATASYNC) } else { !dirty.is_empty() };
    if write {
        crate::ialloc::ext4_write_inode_sync(inode)?;
    }
    blkdev_issue_flush(inode.i_sb().s_bdev())
}
