// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/fsync.c`.

use core::sync::atomic::Ordering;

use kernel_shim::block::blkdev_issue_flush;
use kernel_shim::error::{Result, code::EROFS};
use kernel_shim::fs::InodeState;
use kernel_shim::sync::lockdep::syscall;

use crate::aops::filemap_write_and_wait_range;
use crate::jbd2::Journal;
use crate::{Ext4State, Inode};

/// Makes bytes `start..=end` of a file durable, and its inode as far as they need it (`datasync`) or wholly.
///
/// What is in the cache is written. Direct writes that have completed are on the device, maybe in its cache, and their blocks are
/// converted: nobody is told of the end of a write before. What is still in flight is not waited for, as in Linux (G15). Takes no `i_mutex`, so that one writer's `O_DSYNC` does not stop the others. Sleeps; called
/// with no handle open.
///
/// EIO and what else writing back met with since somebody asked last, EROFS.
pub fn ext4_sync_file(inode: &Inode, start: i64, end: i64, datasync: bool) -> Result {
    let _syscall = syscall("ext4_sync_file");
    let sbi = inode.i_sb().s_fs_info();
    sbi.ext4_emergency_state()?;
    if sbi.journal_aborted() {
        // The error of the data is told once, and this file may have lost more than data: said each time (EXT4_FLAGS_EMERGENCY_RO).
        return Err(EROFS);
    }
    // The data first: writing it back changes the map and the size on disk, which are part of what follows.
    let written = filemap_write_and_wait_range(inode, start, end);
    let noted = inode.i_mapping().check_errors();
    written.and(noted)?;
    match sbi.s_journal() {
        Some(journal) => ext4_fsync_journal(inode, journal, datasync),
        None => ext4_fsync_nojournal(inode, datasync),
    }
}

/// Whether the inode in memory has something that has to reach the disk. Times alone are no reason for fdatasync.
fn ext4_inode_needs_write(inode: &Inode, datasync: bool) -> bool {
    let dirty = inode.i_state();
    if datasync { dirty.contains(InodeState::DIRTY_DATASYNC) } else { !dirty.is_empty() }
}

/// Commits the transaction that last had what this file needs, and no later one: others' changes may wait.
fn ext4_fsync_journal(inode: &Inode, journal: &Journal, datasync: bool) -> Result {
    let info = inode.i_private();
    if ext4_inode_needs_write(inode, datasync) {
        crate::iget::ext4_write_inode(inode)?;
    }
    // After the dirty bits: who takes them has said before in which transaction the inode goes.
    let tid = if datasync { &info.i_datasync_tid } else { &info.i_sync_tid }.load(Ordering::Acquire);
    if tid == 0 {
        // Not changed since it was read.
        return blkdev_issue_flush(inode.i_sb().s_bdev());
    }
    // Asked before, as the commit may be over afterwards. One that is over flushed before our data, maybe.
    let flushes = journal.trans_will_send_data_barrier(tid);
    journal.complete_transaction(tid)?;
    if flushes { Ok(()) } else { blkdev_issue_flush(inode.i_sb().s_bdev()) }
}

fn ext4_fsync_nojournal(inode: &Inode, datasync: bool) -> Result {
    let sbi = inode.i_sb().s_fs_info();
    let info = inode.i_private();
    // Somebody may have taken the dirty bits and not be done, or have written the table block in memory only. The bits were
    // read first: if they were taken before, the lock is seen held, or what was done under it.
    let write = ext4_inode_needs_write(inode, datasync);
    let meta = info.state(Ext4State::UNSYNCED_META);
    if write || meta || info.i_unsynced.load(Ordering::Acquire) || info.i_sync.is_locked() {
        let _sync = info.i_sync.lock();
        // Released, so that whoever sees it cleared sees the lock held as well.
        info.i_unsynced.store(false, Ordering::Release);
        if let Err(error) = crate::iget::ext4_write_inode_sync(inode) {
            info.i_unsynced.store(true, Ordering::Release);
            return Err(error);
        }
        // Nodes of the map, bitmaps, directories: nobody keeps a list of what belongs to this file. Under the lock, so that a second
        // fsync does not return before they are written.
        if info.state_take(Ext4State::UNSYNCED_META)
            && let Err(error) = sbi.buffers.sync_all()
        {
            info.state_set(Ext4State::UNSYNCED_META);
            return Err(error);
        }
    }
    blkdev_issue_flush(inode.i_sb().s_bdev())
}

/// Whether what `fdatasync` needs of the inode is not on disk yet: then a write-through of data alone does not make it durable.
pub fn ext4_inode_datasync_dirty(inode: &Inode) -> bool {
    let info = inode.i_private();
    match inode.i_sb().s_fs_info().s_journal() {
        Some(journal) => {
            let tid = info.i_datasync_tid.load(Ordering::Acquire);
            inode.i_state().contains(InodeState::DIRTY_DATASYNC) || tid != 0 && !journal.is_committed(tid)
        }
        // Read in this order, as in `ext4_fsync_nojournal`.
        None => {
            inode.i_state().contains(InodeState::DIRTY_DATASYNC)
                || info.state(Ext4State::UNSYNCED_META)
                || info.i_unsynced.load(Ordering::Acquire)
                || info.i_sync.is_locked()
        }
    }
}
