// SPDX-License-Identifier: GPL-2.0-only
//! `orphan.c`: inodes that recovery has to finish with: those without names that are still open, and those being truncated.
//!
//! They are on a list on the disk: the super block has the number of the one that came last, and each has, in
//! `i_dtime`, the number of the one before it. Or, with the feature `orphan_file`, in slots of a file, which two CPUs that write
//! different blocks of it do not fight for; when it is full, on the list after all.
//!
//! Lock order: handle → `orphan_inode` → `s_orphan_lock` → buffers.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel_shim::alloc::{Arc, GFP_NOFAIL, GFP_NOFS, KVec};
use kernel_shim::error::{Result, code::*};
use kernel_shim::sync::{Mutex, MutexGuard};
use kernel_shim::{pr_err, pr_info, pr_warn};

use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::iget::{Iget, ext4_set_next_orphan, ino_of};
use crate::orphan_file::OrphanFile;
use crate::sb::Ext4SbInfo;
use crate::{Ext4State, Inode, SuperBlock};

/// Credits for one of the two: the super block, the inode, and the one before it on the list.
pub const ORPHAN_CREDITS: u32 = 3;

/// Inodes share so many locks.
const SHARDS: usize = 16;

/// The orphans of a mount.
pub(crate) struct Orphans {
    /// C's `s_orphan` and `s_orphan_lock`: those on the list on the disk, which has them in the opposite order.
    list: Mutex<KVec<Arc<Orphan>>>,
    /// C's `s_orphan_info`.
    file: Option<OrphanFile>,
    /// Those in slots.
    in_file: AtomicU32,
    /// By number: one at a time puts an inode among the orphans or takes it from there. C has `i_rwsem` for that; here a direct write
    /// that extends the file gives `i_mutex` back before it does, and others unlink the file meanwhile.
    inodes: [Mutex<()>; SHARDS],
}

impl Default for Orphans {
    fn default() -> Self {
        Self {
            list: Mutex::named("s_orphan_lock", KVec::new()),
            file: None,
            in_file: AtomicU32::new(0),
            inodes: [const { Mutex::named("orphan_inode", ()) }; SHARDS],
        }
    }
}

/// An inode that is one.
pub struct Orphan {
    ino: Ino,
    place: Place,
}

/// Where the disk says that it is one.
enum Place {
    /// On the list; and the next one there, or 0. Changed under `s_orphan_lock`.
    List(AtomicU32),
    /// In this slot of the file.
    Slot(u32),
}

impl Orphan {
    /// What belongs in `i_dtime`: see [`crate::iget`].
    pub(crate) fn next(&self) -> u32 {
        match &self.place {
            Place::List(next) => next.load(Ordering::Acquire),
            Place::Slot(_) => 0,
        }
    }
}

impl Orphans {
    /// Reads the orphan file, if there is one.
    pub(crate) fn ext4_init_orphan_info(sb: &Ext4SbInfo) -> Ext4Result<Self> {
        let file = if sb.s_compat.contains(Compat::ORPHAN_FILE) { Some(OrphanFile::read(sb)?) } else { None };
        Ok(Self { file, ..Self::default() })
    }

    /// Nobody else changes whether this inode is one.
    fn lock_inode(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.inodes[ino.0 as usize % SHARDS].lock()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.lock().is_empty() && self.in_file.load(Ordering::Acquire) == 0
    }
}

/// Whether anybody keeps track: without a journal a crash leaves more to repair than that, and `e2fsck` does it.
fn ext4_tracks_orphans(sb: &Ext4SbInfo) -> bool {
    sb.s_journal().is_some()
}

/// Puts an inode on the list of orphans, unless it is. Needs [`ORPHAN_CREDITS`]. Sleeps.
///
/// Without a journal it does nothing. EIO, EROFS, ENOMEM: then it is not on the list.
pub fn ext4_orphan_add(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let sb = handle.sb();
    let info = inode.i_private();
    if !ext4_tracks_orphans(sb) {
        return Ok(());
    }
    let orphans = &sb.s_orphans;
    let ino = ino_of(inode);
    let _alone = orphans.lock_inode(ino);
    if info.orphan().is_some() {
        return Ok(());
    }
    if let Some(file) = &orphans.file {
        match file.add(handle, ino) {
            Ok(slot) => {
                let orphan = Arc::new(Orphan { ino, place: Place::Slot(slot) }, GFP_NOFS | GFP_NOFAIL);
                let Ok(orphan) = orphan else {
                    let _ = file.del(handle, slot);
                    return Err(ENOMEM);
                };
                orphans.in_file.fetch_add(1, Ordering::AcqRel);
                info.set_orphan(Some(orphan));
                return Ok(());
            }
            // Full: the list has room for all.
            Err(ENOSPC) => {}
            Err(error) => return Err(error),
        }
    }
    let mut list = orphans.list.lock();
    // Most who come here have a change half done.
    list.reserve(1, GFP_NOFS | GFP_NOFAIL)?;
    let next = sb.with_super(|sb| sb.s_last_orphan())?;
    let orphan = Arc::new(Orphan { ino, place: Place::List(AtomicU32::new(next)) }, GFP_NOFS | GFP_NOFAIL)?;
    info.set_orphan(Some(orphan.clone()));
    // The inode, then who points to it; both in one transaction.
    let done =
        write_next(handle, inode, next).and_then(|()| sb.ext4_journal_super(handle, |sb| sb.set_s_last_orphan(ino.0)));
    if done.is_err() {
        info.set_orphan(None);
        return done;
    }
    list.push(orphan, GFP_NOFS)?;
    Ok(())
}

/// Takes an inode off the list of orphans, if it is on it. Without a handle, when there can be none (the journal is aborted), in memory
/// only. As [`ext4_orphan_add`].
pub fn ext4_orphan_del(handle: Option<&mut Handle<'_>>, inode: &Inode) -> Result {
    let info = inode.i_private();
    let sb = inode.i_sb().s_fs_info();
    let orphans = &sb.s_orphans;
    let _alone = orphans.lock_inode(ino_of(inode));
    let Some(orphan) = info.orphan() else { return Ok(()) };
    let next = match &orphan.place {
        Place::Slot(slot) => {
            info.set_orphan(None);
            orphans.in_file.fetch_sub(1, Ordering::AcqRel);
            return match (handle, &orphans.file) {
                (Some(handle), Some(file)) => file.del(handle, *slot),
                _ => Ok(()),
            };
        }
        Place::List(next) => next,
    };
    let mut list = orphans.list.lock();
    // With the lock: the next one may have gone meanwhile.
    let next = next.load(Ordering::Acquire);
    let Some(at) = list.iter().position(|other| Arc::ptr_eq(other, &orphan)) else { return Ok(()) };
    // In memory first: whatever happens on the disk, it must not be found there when the inode is gone.
    let gone = list.remove(at);
    info.set_orphan(None);
    info.i_dtime.store(0, Ordering::Release);
    drop(gone);
    let Some(handle) = handle else { return Ok(()) };
    // The one that was added after it points to it; or the super block.
    let done = match list.get(at) {
        Some(before) => {
            if let Place::List(its_next) = &before.place {
                its_next.store(next, Ordering::Release);
            }
            ext4_set_next_orphan(handle, before.ino, next)
        }
        None => sb.ext4_journal_super(handle, |sb| sb.set_s_last_orphan(next)),
    };
    done.and_then(|()| write_next(handle, inode, 0))
}

/// Puts `next` where the inode has it on the disk.
fn write_next(handle: &mut Handle<'_>, inode: &Inode, next: u32) -> Result {
    if inode.i_private().state(Ext4State::NEW) {
        // What is in its place is another's. It is written as a whole, with this, by whoever made it.
        return crate::iget::ext4_mark_inode_dirty(handle, inode);
    }
    ext4_set_next_orphan(handle, ino_of(inode), next)
}

/// Finishes with what a crash has left: truncates inodes that have links to their size, and frees those that have none. Called once,
/// at mount, before there are files; journal handles can be started. Errors are logged, and end it. Sleeps.
pub(crate) fn ext4_orphan_cleanup(sb: &Arc<SuperBlock>) {
    let sbi = sb.s_fs_info();
    let name = sbi.bdev.name();
    if sbi.s_errlog.has_error_state() {
        // The list may be wrong; e2fsck looks at all of it.
        pr_warn!("EXT4-fs ({name}): Errors on filesystem, orphan list is left to e2fsck");
        return;
    }
    let (mut truncated, mut deleted) = (0u32, 0u32);
    let mut count = |linked| if linked { truncated += 1 } else { deleted += 1 };
    // Each step takes one off; a list that goes in a circle comes to an inode that is not in use any more.
    for _ in 0..sbi.s_inodes_count {
        let Ok(last @ 1..) = sbi.with_super(|sb| sb.s_last_orphan()) else { break };
        match ext4_process_orphan(sb, Ino(last), |next| Place::List(AtomicU32::new(next))) {
            Ok(linked) => count(linked),
            Err(ENOMEM | EIO | EROFS) => {
                pr_warn!("EXT4-fs ({name}): orphan cleanup stopped at inode {last}: the next mount goes on");
                break;
            }
            Err(_) => {
                drop_list(sbi);
                break;
            }
        }
        if sbi.with_super(|sb| sb.s_last_orphan()).is_ok_and(|now| now == last) {
            // It could not be deleted, and is still on the list as it should be; or that has come to something that is wrong.
            if sbi.s_errlog.has_error_state() {
                drop_list(sbi);
            }
            break;
        }
    }
    if let Some(file) = &sbi.s_orphans.file {
        for (slot, ino) in file.slots().into_iter().flatten() {
            if let Ok(linked) = ext4_process_orphan(sb, ino, |_| Place::Slot(slot)) {
                count(linked);
            }
        }
    }
    if deleted != 0 {
        pr_info!("EXT4-fs ({name}): {deleted} orphan inodes deleted");
    }
    if truncated != 0 {
        pr_info!("EXT4-fs ({name}): {truncated} truncates cleaned up");
    }
}

/// Whether there is something to clean up.
pub(crate) fn ext4_has_orphans(sb: &Ext4SbInfo) -> bool {
    sb.with_super(|sb| sb.s_last_orphan()).is_ok_and(|last| last != 0)
        || sb.s_orphans.file.as_ref().is_some_and(|file| !file.is_empty())
}

/// The list leads nowhere: what is still on it is for e2fsck to find.
fn drop_list(sb: &Ext4SbInfo) {
    pr_err!("EXT4-fs ({}): the orphan list is damaged, and given up; running e2fsck is recommended", sb.bdev.name());
    if let Ok(mut handle) = crate::ext4_jbd2::ext4_journal_start(sb, 1) {
        let _ = sb.ext4_journal_super(&mut handle, |sb| sb.set_s_last_orphan(0));
        let _ = handle.stop();
    }
}

/// Finishes with one. Whether it had links.
fn ext4_process_orphan(sb: &Arc<SuperBlock>, ino: Ino, place: impl Fn(u32) -> Place) -> Result<bool> {
    let sbi = sb.s_fs_info();
    let inode = ext4_orphan_get(sb, ino)?;
    let next = inode.i_private().i_dtime.swap(0, Ordering::AcqRel);
    let place = place(next);
    let listed = matches!(place, Place::List(_));
    if listed && next > sbi.s_inodes_count {
        return Err(sbi.ext4_error(Corrupt::OrphanNumber(ino).into()));
    }
    // Without, an inode would be freed that the disk has on the list.
    let orphan = Arc::new(Orphan { ino, place }, GFP_NOFS | GFP_NOFAIL)?;
    if listed {
        sbi.s_orphans.list.lock().push(orphan.clone(), GFP_NOFS | GFP_NOFAIL)?;
    } else {
        sbi.s_orphans.in_file.fetch_add(1, Ordering::AcqRel);
    }
    inode.i_private().set_orphan(Some(orphan));
    if inode.i_nlink() == 0 {
        // Its last reference, and with it the inode, goes here.
        drop(inode);
        return Ok(false);
    }
    let locked = inode.lock();
    let done = crate::truncate::ext4_truncate(&inode);
    locked.unlock();
    if done.is_err() {
        // It was not truncated, and must not stay on the list in memory alone.
        let _ = ext4_orphan_del(None, &inode);
    } else if inode.i_private().orphan().is_some() {
        // There was nothing to truncate.
        let mut handle = crate::ext4_jbd2::ext4_journal_start(sbi, ORPHAN_CREDITS)?;
        let deleted = ext4_orphan_del(Some(&mut handle), &inode);
        deleted.and(handle.stop())?;
    }
    done.map(|()| true)
}

/// An inode that is on the list of orphans, which need not have links. `EFSCORRUPTED` for one that cannot be.
fn ext4_orphan_get(sb: &Arc<SuperBlock>, ino: Ino) -> Result<crate::IRef> {
    let sbi = sb.s_fs_info();
    if ino.0 < sbi.s_first_ino || ino.0 > sbi.s_inodes_count {
        return Err(sbi.ext4_error(Corrupt::OrphanNumber(ino).into()));
    }
    match inode_in_use(sbi, ino) {
        Ok(true) => crate::ops::ext4_iget_which(sb, ino, Iget::Orphan),
        Ok(false) => Err(sbi.ext4_error(Corrupt::OrphanFree(ino).into())),
        Err(error) => Err(sbi.ext4_error(error)),
    }
}

/// What the bitmap says of an inode.
fn inode_in_use(sb: &Ext4SbInfo, ino: Ino) -> Ext4Result<bool> {
    let (group, bit) = ((ino.0 - 1) / sb.s_inodes_per_group, (ino.0 - 1) % sb.s_inodes_per_group);
    let desc = sb.ext4_get_group_desc(Group(group))?;
    if desc.flags.contains(BgFlags::INODE_UNINIT) {
        return Ok(false);
    }
    let bitmap = sb.buffers.bread(desc.inode_bitmap.0)?;
    let byte = bitmap.read().get(bit as usize / 8).copied().unwrap_or(0);
    Ok(byte & 1 << (bit % 8) != 0)
}
