// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/fsync.c`.

use core::sync::atomic::Ordering;

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
    let info = inode.i_private();
    // Times alone are no reason for fdatasync to write the inode.
    let write = if datasync { dirty.contains(InodeState::DIRTY_DATASYNC) } else { !dirty.is_empty() };
    // Somebody may have taken the dirty bits and not be done, or have written the table block in memory only. The bits were
    // read first: if they were taken before, the lock is seen held, or what was done under it.
    if write || info.i_unsynced.load(Ordering::Acquire) || info.i_sync.is_locked() {
        let _sync = info.i_sync.lock();
        // Released, so that whoever sees it cleared sees the lock held as well.
        info.i_unsynced.store(false, Ordering::Release);
        if let Err(error) = crate::iget::ext4_write_inode_sync(inode) {
            info.i_unsynced.store(true, Ordering::Release);
            return Err(error);
        }
    }
    blkdev_issue_flush(inode.i_sb().s_bdev())
}
