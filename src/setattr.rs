// SPDX-License-Identifier: GPL-2.0-only
//! Changes of size, mode, owner and times: `ext4_setattr` of inode.c, and what `notify_change` does before it.

use core::sync::atomic::Ordering;

use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::inode::{S_IFMT, S_ISGID, S_ISUID, S_IXGRP};
use kernel_shim::fs::{FileSystem, InodeFlags as VfsFlags, InodeState};
use kernel_shim::testing::{Fix, reverted, trace};
use kernel_shim::time::Timespec64;

use crate::aops::ext4_block_zero_page_range;
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::iget::{ext4_mark_inode_dirty, ext4_mark_inode_dirty_tree};
use crate::orphan::{ORPHAN_CREDITS, ext4_orphan_add, ext4_orphan_del};
use crate::truncate::{ext4_begin_ordered_truncate, ext4_truncate, order_data, partial_tail, stop_direct_io};
use crate::xattr::ext4_file_remove_privs;
use crate::{Ext4, IRef, Inode, Locked};

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
        /// Set-user-ID falls. Implied by a change of owner, or of size by who may not keep it (`Task::cap_fsetid`).
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
/// EPERM for an immutable inode, and an append-only one but for times that are now; EINVAL for a negative size or one of something
/// that is no regular file (EISDIR for a directory); EFBIG, EROFS, ENOSPC, EIO. Called with the right to write
/// (`start_write`: G8) and no handle open. Takes `i_mutex`; sleeps.
#[doc(alias = "notify_change")]
pub fn ext4_setattr(inode: &IRef, attr: &Iattr) -> Result {
    let i_mutex = inode.lock();
    let done = ext4_setattr_locked(&i_mutex, attr);
    i_mutex.unlock();
    done
}

/// `ftruncate`: [`ext4_setattr`] of the size alone. Takes the right to write.
pub fn ext4_setattr_size(inode: &IRef, size: i64) -> Result {
    let _write = inode.i_sb().start_write();
    ext4_setattr(inode, &Iattr { ia_valid: AttrValid::SIZE, ia_size: size, ..Iattr::default() })
}

/// [`ext4_setattr`] with `i_mutex` held by the caller.
fn ext4_setattr_locked(i_mutex: &Locked<'_>, attr: &Iattr) -> Result {
    let inode = i_mutex.inode();
    let valid = attr.ia_valid;
    if valid.contains(AttrValid::SIZE) {
        check_size(inode, attr.ia_size)?;
    }
    if inode.i_sb().s_fs_info().is_rdonly() {
        return Err(EROFS);
    }
    may_setattr(inode, valid)?;
    let chown = valid.intersects(AttrValid::UID | AttrValid::GID) && !inode.is_dir();
    let resize = valid.contains(AttrValid::SIZE);
    if resize && attr.ia_size > <Ext4 as FileSystem>::s_maxbytes(inode) {
        return Err(EFBIG);
    }
    if chown || resize || valid.contains(AttrValid::KILL_PRIV) {
        ext4_file_remove_privs(i_mutex)?;
    }
    if resize {
        ext4_setattr_size_locked(i_mutex, attr.ia_size)?;
    }
    let mut mode = None;
    if valid.contains(AttrValid::MODE) {
        mode = Some(inode.i_mode() & S_IFMT | attr.ia_mode & 0o7777);
    } else if chown || valid.intersects(AttrValid::KILL_SUID | AttrValid::KILL_SGID) {
        mode = mode_without_suid(inode);
    } else if resize {
        mode = mode_when_modified(inode);
    }
    if mode.is_none() && (valid - AttrValid::SIZE).is_empty() {
        return Ok(());
    }
    setattr_copy(i_mutex, attr, mode)
}

fn check_size(inode: &Inode, size: i64) -> Result {
    if inode.is_dir() {
        Err(EISDIR)
    } else if !inode.is_reg() || size < 0 {
        Err(EINVAL)
    } else {
        Ok(())
    }
}

/// What immutable and append-only inodes refuse.
#[doc(alias = "setattr_prepare")]
fn may_setattr(inode: &Inode, valid: AttrValid) -> Result {
    const NOT_WITH_APPEND: AttrValid = AttrValid::MODE
        .union(AttrValid::UID)
        .union(AttrValid::GID)
        .union(AttrValid::SIZE)
        .union(AttrValid::ATIME_SET)
        .union(AttrValid::MTIME_SET);
    let flags = inode.i_flags();
    let refused =
        flags.contains(VfsFlags::IMMUTABLE) || flags.contains(VfsFlags::APPEND) && valid.intersects(NOT_WITH_APPEND);
    if refused { Err(EPERM) } else { Ok(()) }
}

/// The mode that is left when whoever has no right to set-user-ID changes the file; none if it is the same. Set-group-ID without
/// permission for the group to execute means something else, and stays.
#[doc(alias = "setattr_should_drop_suidgid")]
fn mode_without_suid(inode: &Inode) -> Option<u32> {
    let mode = inode.i_mode();
    let mut kill = mode & S_ISUID;
    if mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP {
        kill |= S_ISGID;
    }
    (kill != 0 && !inode.is_dir()).then_some(mode & !kill)
}

/// The mode that is left when the contents change; none if it is the same. Whoever may give set-user-ID does not take it away.
fn mode_when_modified(inode: &Inode) -> Option<u32> {
    if kernel_shim::sched::current().cap_fsetid() { None } else { mode_without_suid(inode) }
}

/// Sets everything but the size, and writes the inode.
fn setattr_copy(i_mutex: &Locked<'_>, attr: &Iattr, mode: Option<u32>) -> Result {
    let inode = i_mutex.inode();
    let valid = attr.ia_valid;
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
    if let Some(mode) = mode {
        inode.set_i_mode(mode);
    }
    let uid = if valid.contains(AttrValid::UID) { attr.ia_uid } else { inode.i_uid() };
    let gid = if valid.contains(AttrValid::GID) { attr.ia_gid } else { inode.i_gid() };
    inode.set_owner(uid, gid);
    let (sb, now) = (inode.i_sb(), current_time(inode));
    let time = |set, time: Timespec64| if valid.contains(set) { sb.truncate_time(time) } else { now };
    inode.set_times(|times| {
        if valid.intersects(AttrValid::ATIME | AttrValid::ATIME_SET) {
            times.i_atime = time(AttrValid::ATIME_SET, attr.ia_atime);
        }
        if valid.intersects(AttrValid::MTIME | AttrValid::MTIME_SET) {
            times.i_mtime = time(AttrValid::MTIME_SET, attr.ia_mtime);
        }
        times.i_ctime = now;
    });
    if inode.is_sync() {
        handle.sync();
    }
    let written = ext4_mark_inode_dirty(&mut handle, inode);
    let stopped = handle.stop();
    written.and(stopped)
}

/// Moves the end of a regular file. Entered, and left, with `i_mutex`.
fn ext4_setattr_size_locked(i_mutex: &Locked<'_>, size: i64) -> Result {
    let inode = i_mutex.inode();
    // Before the size moves: a write in flight would bring the old size back when it ends (G10), a read without a lock would
    // go on into blocks that are somebody else's (G22).
    let _gate = Some(stop_direct_io(i_mutex)).filter(|_| !reverted(Fix::G22));
    trace("ext4_setattr: no direct I/O");
    let _exclusive = inode.i_mapping().invalidate_lock.write();
    let old = inode.i_size();
    if size > old {
        return expand(i_mutex, old, size);
    }
    if size < old {
        shrink(i_mutex, old, size)?;
        trace("ext4_setattr: short");
    }
    inode.i_mapping().truncate_pagecache(size);
    // Also if the size is what it was: blocks that were allocated past it go.
    let done = loop {
        // The size has moved: without its end this would show what was cut off, once the file grows. C waits for memory, too.
        match ext4_truncate(inode) {
            Err(ENOMEM) => kernel_shim::sched::yield_now(),
            done => break done,
        }
    };
    if done.is_err() && inode.i_nlink() > 0 {
        // Should it have got no handle at all: the list in memory must not lead to an inode that is gone.
        let _ = ext4_orphan_del(None, inode);
    }
    done
}

/// Puts the inode on the list of orphans and makes it short, in one transaction. The blocks are still to be freed.
fn shrink(i_mutex: &Locked<'_>, old: i64, size: i64) -> Result {
    let inode = i_mutex.inode();
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), ORPHAN_CREDITS + 1)?;
    let listed = ext4_orphan_add(&mut handle, inode);
    ext4_begin_ordered_truncate(&handle, inode);
    let moved = listed.and_then(|()| move_size(&mut handle, i_mutex, old, size));
    let stopped = handle.stop();
    let done = moved.and(stopped);
    if done.is_err() && inode.i_nlink() > 0 {
        let _ = ext4_orphan_del(None, inode);
    }
    done
}

/// Makes the file longer, by a hole.
fn expand(i_mutex: &Locked<'_>, old: i64, size: i64) -> Result {
    let inode = i_mutex.inode();
    // What is behind the old end in its block becomes part of the file.
    let tail = partial_tail(inode, old);
    if tail > 0 {
        ext4_block_zero_page_range(inode, old, tail)?;
    }
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
    let ordered = if tail > 0 { order_data(&mut handle, inode) } else { Ok(()) };
    let now = current_time(inode);
    inode.set_times(|times| (times.i_mtime, times.i_ctime) = (now, now));
    if inode.is_sync() {
        handle.sync();
    }
    let moved = ordered.and_then(|()| move_size(&mut handle, i_mutex, old, size));
    let stopped = handle.stop();
    moved.and(stopped)
}

/// Sets both sizes and writes the inode. Both under `i_data_sem`: what ends a write looks at the two under it, too, and must not
/// see one moved and the other not (G27).
pub(crate) fn move_size(handle: &mut Handle<'_>, i_mutex: &Locked<'_>, old: i64, size: i64) -> Result {
    let inode = i_mutex.inode();
    let i_disksize = &inode.i_private().i_disksize;
    let tree = inode.i_private().i_data_sem.write();
    let old_disksize = i_disksize.swap(size, Ordering::AcqRel);
    i_mutex.i_size_write(size);
    inode.mark_inode_dirty(InodeState::DIRTY_DATASYNC);
    let written = ext4_mark_inode_dirty_tree(handle, inode, &tree);
    if written.is_err() {
        i_disksize.store(old_disksize, Ordering::Release);
        i_mutex.i_size_write(old);
    }
    written
}

/// What a change of the contents does to the inode: set-user-ID and `security.capability` fall, the times move. Called with no handle
/// open. Sleeps.
#[doc(alias = "file_modified")]
pub(crate) fn ext4_file_modified(i_mutex: &Locked<'_>) -> Result {
    ext4_file_remove_privs(i_mutex)?;
    if let Some(mode) = mode_when_modified(i_mutex) {
        i_mutex.set_mode(mode);
    }
    i_mutex.file_update_time();
    Ok(())
}

/// Now, as far as the file system can tell.
pub(crate) fn current_time(inode: &Inode) -> Timespec64 {
    inode.i_sb().truncate_time(kernel_shim::time::ktime_get_coarse_real())
}
