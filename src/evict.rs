// SPDX-License-Identifier: GPL-2.0-only
//! The ends of inodes and open files: C has `ext4_evict_inode` in `inode.c`, `ext4_release_file` in `file.c`.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::Arc;
use kernel_shim::error::Result;
use kernel_shim::fs::I_MUTEX_DYING;
use kernel_shim::pr_warn;
use kernel_shim::sched::in_interrupt;
use kernel_shim::time::ktime_get_real;

use crate::ext4::EXT4_I_DATA_LEN;
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::ialloc::ext4_free_inode;
use crate::iget::ext4_mark_inode_dirty;
use crate::mballoc::ext4_discard_preallocations;
use crate::orphan::{ORPHAN_CREDITS, ext4_orphan_del};
use crate::{File, Inode, SuperBlock};

/// Credits for the end of an inode without blocks: the inode; its bitmap, descriptor and the super block; a block of attributes, with its
/// bitmap and descriptor, and a revoke record; and its place among the orphans.
const EVICT_CREDITS: u32 = 8 + ORPHAN_CREDITS;

/// The last reference to an inode without links is gone: frees its blocks and its number. Called with nobody else who knows the
/// inode, with no handle open. Sleeps.
///
/// What cannot be freed, because of an error or because nothing may be written, stays on the list of orphans on the disk, and the
/// next mount frees it.
pub(crate) fn ext4_evict_inode(inode: &Arc<Inode>) {
    // Dirty ones, too: nobody will read them.
    inode.i_mapping().truncate_pagecache(0);
    ext4_discard_preallocations(inode);
    let sbi = inode.i_sb().s_fs_info();
    let freed = match sbi.ext4_journal_check_start() {
        Ok(()) => delete_inode(inode),
        Err(_) => {
            // In memory only: the disk still says what is to be done.
            let _ = ext4_orphan_del(None, inode);
            return;
        }
    };
    if let Err(error) = freed {
        pr_warn!("EXT4-fs ({}): inode {} could not be deleted: {error:?}", sbi.bdev.name(), inode.i_ino());
        let _ = ext4_orphan_del(None, inode);
    }
}

fn delete_inode(inode: &Inode) -> Result {
    {
        let locked = inode.lock_nested(I_MUTEX_DYING);
        let info = inode.i_private();
        // Others have in the place of a block map what is none.
        let fast_symlink = inode.is_lnk() && !info.is_extents() && inode.i_size() < EXT4_I_DATA_LEN as i64;
        let mapped = inode.is_reg() || inode.is_dir() || inode.is_lnk() && !fast_symlink;
        locked.i_size_write(0);
        if mapped && info.i_blocks.load(Ordering::Acquire) != 0 {
            // Under handles of its own: it stays on the list of orphans until the end.
            crate::truncate::ext4_truncate(inode)?;
        }
        locked.unlock();
    }
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), EVICT_CREDITS)?;
    if inode.is_sync() {
        handle.sync();
    }
    let done = free_inode(&mut handle, inode);
    done.and(handle.stop())
}

/// All in one transaction: it is on the list of orphans, or it is gone.
fn free_inode(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    crate::xattr::ext4_xattr_delete_inode(handle, inode)?;
    ext4_orphan_del(Some(handle), inode)?;
    let now = ktime_get_real().to_timespec64();
    inode.i_private().i_dtime.store(u32::try_from(now.tv_sec).unwrap_or(u32::MAX), Ordering::Release);
    inode.i_private().i_disksize.store(0, Ordering::Release);
    ext4_mark_inode_dirty(handle, inode)?;
    ext4_free_inode(handle, inode)
}

/// `f_op->release`: what was preallocated for a file goes back when the last writer closes it. Any context.
pub(crate) fn ext4_release_file(file: &File, last_writer: bool) {
    if !last_writer || !file.f_inode().is_reg() {
        return;
    }
    if in_interrupt() {
        // The last reference to the file was an I/O's.
        file.f_inode().defer_release();
    } else {
        ext4_release_preallocations(file.f_inode());
    }
}

/// Gives back what is preallocated for a file that nobody has open for writing any more. Sleeps.
pub(crate) fn ext4_release_preallocations(inode: &Inode) {
    if inode.i_writecount() == 0 && inode.is_reg() {
        ext4_discard_preallocations(inode);
    }
}

/// The same for all files: the end of a mount. Sleeps.
pub(crate) fn ext4_discard_all_preallocations(sb: &SuperBlock) {
    sb.s_fs_info().discard_all_preallocations();
}
