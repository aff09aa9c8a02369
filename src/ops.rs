// SPDX-License-Identifier: GPL-2.0-only
//! The tables of operations that C has at the ends of file.c, inode.c and super.c, and mounting.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{Arc, GFP_KERNEL};
use kernel_shim::block::{Bdev, blkdev_issue_flush};
use kernel_shim::error::{Error, Result, code::*};
use kernel_shim::fs::{FileSystem, InodeFlags, IovIter, NewInode, OpenFlags, SbFlags};
use kernel_shim::mm::filemap::BlockRun;
use kernel_shim::{pr_info, pr_notice};

use kernel_shim::mm::filemap::{file_remove_suid, should_remove_suid};
use kernel_shim::sync::lockdep::{lock_order, syscall};

use crate::corrupt::{Corrupt, Ext4Error};
use crate::ext4::{EXT4_ROOT_INO, Ino};
use crate::iget::{Iget, ext4_read_inode};
use crate::orphan::{ext4_has_orphans, ext4_orphan_cleanup};
use crate::path::{Cred, path_open};
use crate::sb::{Ext4SbInfo, ext4_fill_super};
use crate::sb_remount::sb_flags;
use crate::writeback::Flusher;
use crate::xattr::{ext4_file_remove_privs, ext4_need_remove_privs};
use crate::{Ext4, Ext4InodeInfo, Ext4State, File, IRef, Inode, Kiocb, Locked, Private, SuperBlock};

impl FileSystem for Ext4 {
    type SbInfo = Ext4SbInfo;
    type InodeInfo = Ext4InodeInfo;
    type Private = Private;

    #[inline(always)]
    fn direct_IO<'i>(
        iocb: &mut Kiocb<'_>,
        i_mutex: Locked<'i>,
        iter: &mut IovIter<'_>,
        offset: i64,
    ) -> (Option<Locked<'i>>, Result<usize>) {
        crate::inode::ext4_direct_IO(iocb, i_mutex, iter, offset)
    }

    fn direct_IO_read(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>, offset: i64) -> Result<usize> {
        crate::inode::ext4_direct_IO_read(iocb, iter, offset)
    }

    fn fsync(inode: &Inode, start: i64, end: i64, datasync: bool) -> Result {
        crate::fsync::ext4_sync_file(inode, start, end, datasync)
    }

    fn buffered_write(iocb: &mut Kiocb<'_>, i_mutex: &Locked<'_>, iter: &mut IovIter<'_>) -> Result<usize> {
        crate::aops::ext4_perform_write(iocb, i_mutex, iter)
    }

    fn get_block(inode: &Inode, lblk: u64, len: u32) -> Result<BlockRun> {
        crate::aops::ext4_read_block(inode, lblk, len)
    }

    fn append_pos(i_mutex: &Locked<'_>) -> i64 {
        i_mutex.i_private().aio.append_pos(i_mutex.i_size())
    }

    fn file_remove_privs(iocb: &Kiocb<'_>, i_mutex: &Locked<'_>) -> Result {
        if iocb.is_nowait() {
            // To see whether there is a capability may take reading, to take it away takes a handle (G34).
            let none = i_mutex.i_private().state(Ext4State::NOSEC) && !should_remove_suid(iocb.ki_filp, i_mutex);
            return if none { Ok(()) } else { Err(EAGAIN) };
        }
        let caps = ext4_need_remove_privs(i_mutex)?;
        file_remove_suid(iocb.ki_filp, i_mutex);
        if caps { ext4_file_remove_privs(i_mutex) } else { Ok(()) }
    }

    fn write_and_wait(inode: &Inode, start: i64, end: i64) -> Result {
        crate::aops::filemap_write_and_wait_range(inode, start, end)
    }

    fn write_inode(inode: &Inode) -> Result {
        let _sync = inode.i_private().i_sync.lock();
        inode.i_private().i_unsynced.store(true, Ordering::Release);
        crate::iget::ext4_write_inode(inode)
    }

    fn evict_inode(inode: &Arc<Inode>) {
        crate::evict::ext4_evict_inode(inode);
    }

    fn release(file: &File, last_writer: bool) {
        crate::evict::ext4_release_file(file, last_writer);
    }

    fn deferred_release(inode: &Inode) {
        crate::evict::ext4_release_preallocations(inode);
    }

    fn may_forget(inode: &Inode) -> bool {
        crate::writeback::may_forget(inode)
    }

    fn inodes_pressed(sbi: &Ext4SbInfo) {
        sbi.s_flusher.press();
    }

    fn s_maxbytes(inode: &Inode) -> i64 {
        let sbi = inode.i_sb().s_fs_info();
        if inode.i_private().is_extents() { sbi.s_maxbytes() } else { sbi.s_bitmap_maxbytes() }
    }
}

/// The inode with number `ino`, from the cache or read from the disk and checked. Sleeps.
///
/// `ESTALE` for one that is not in use, `EFSCORRUPTED` or `EFSBADCRC` for one that cannot be, which is logged.
pub fn ext4_iget(sb: &Arc<SuperBlock>, ino: Ino) -> Result<IRef> {
    ext4_iget_which(sb, ino, Iget::Normal)
}

/// [`ext4_iget`] of those inodes that `which` allows.
pub(crate) fn ext4_iget_which(sb: &Arc<SuperBlock>, ino: Ino, which: Iget) -> Result<IRef> {
    if sb.s_fs_info().ext4_forced_shutdown() {
        return Err(EIO);
    }
    sb.iget(u64::from(ino.0), || {
        let sbi = sb.s_fs_info();
        let disk = ext4_read_inode(sbi, ino, which).map_err(|error| ext4_error(sb, error))?;
        let inode = Inode::new(NewInode {
            i_sb: sb.clone(),
            i_ino: u64::from(ino.0),
            i_mode: u32::from(disk.i_mode),
            i_uid: disk.i_uid,
            i_gid: disk.i_gid,
            i_nlink: u32::from(disk.i_links_count),
            // Checked to be below s_maxbytes.
            i_size: i64::try_from(disk.i_size).map_err(|_| EFSCORRUPTED)?,
            i_flags: ext4_set_inode_flags(disk.i_flags),
            i_times: disk.i_times,
            i_private: Ext4InodeInfo::new(&disk),
        });
        if let Some(tid) = sbi.s_journal().and_then(|journal| journal.newest_tid()) {
            // It may have been let go of after a change that is not committed: fsync waits for whatever that was in.
            inode.i_private().i_sync_tid.store(tid, Ordering::Release);
            inode.i_private().i_datasync_tid.store(tid, Ordering::Release);
        }
        Ok(Arc::new(inode, GFP_KERNEL)?)
    })
}

/// The flags the VFS looks at.
pub(crate) fn ext4_set_inode_flags(flags: crate::ext4::InodeFlags) -> InodeFlags {
    use crate::ext4::InodeFlags as Ext4;
    let mut vfs = InodeFlags::empty();
    vfs.set(InodeFlags::SYNC, flags.contains(Ext4::SYNC));
    vfs.set(InodeFlags::DIRSYNC, flags.contains(Ext4::DIRSYNC));
    vfs.set(InodeFlags::APPEND, flags.contains(Ext4::APPEND));
    vfs.set(InodeFlags::IMMUTABLE, flags.contains(Ext4::IMMUTABLE));
    vfs.set(InodeFlags::NOATIME, flags.contains(Ext4::NOATIME));
    vfs
}

/// An error of the disk at the edge to the VFS: logged, acted on as `errors=` says, and turned into an errno.
pub(crate) fn ext4_error(sb: &SuperBlock, error: Ext4Error) -> Error {
    let errno = sb.s_fs_info().ext4_error(error);
    if sb.s_fs_info().is_rdonly() {
        sb.set_rdonly();
    }
    errno
}

/// Mounts the file system on `bdev`. `options` are words as `mount -o` takes them, between commas; see
/// [`MountOptions`](crate::sb_options::MountOptions). Sleeps.
///
/// Errors, each with a log line that names what is wrong: `EINVAL` for an unknown option, a file system this cannot be, and
/// unsupported features; `EFSCORRUPTED`, `EFSBADCRC` for a damaged one; `EROFS` for a journal that has to be replayed on a
/// device that cannot be written; `EIO`; `ENOMEM`.
pub fn ext4_mount(bdev: Bdev, options: &str) -> Result<Arc<SuperBlock>> {
    crate::LOCK_ORDER.iter().for_each(|order| lock_order(order));
    let _syscall = syscall("ext4_mount");
    let info = ext4_fill_super(bdev.clone(), options).map_err(Error::from)?;
    let flags = sb_flags(&info.options(), info.is_rdonly());
    let (blkbits, time) = (info.s_blocksize_bits, (info.s_time_gran(), info.s_time_max()));
    let sb = SuperBlock::new(bdev, blkbits, time, flags, info)?;
    match mount_finish(&sb) {
        Ok(()) => Ok(sb),
        Err(error) => {
            let sbi = sb.s_fs_info();
            sbi.s_flusher.stop();
            let _ = sbi.ext4_put_super();
            sb.set_rdonly();
            sb.evict_inodes();
            Err(error)
        }
    }
}

/// What a mount does once there can be inodes.
fn mount_finish(sb: &Arc<SuperBlock>) -> Result {
    let sbi = sb.s_fs_info();
    let edge = |error| ext4_error(sb, error);
    // The root says whether there is a file system to go on with, before anything is written.
    if !ext4_iget(sb, EXT4_ROOT_INO)?.is_dir() {
        return Err(edge(Corrupt::InodeMode(EXT4_ROOT_INO).into()));
    }
    let rdonly = sbi.is_rdonly();
    if !rdonly {
        sbi.start_journal(Some(sb.clone())).map_err(edge)?;
        sbi.ext4_setup_super().map_err(edge)?;
    }
    if ext4_has_orphans(sbi) {
        cleanup_orphans(sb, rdonly)?;
    }
    if rdonly {
        // The log was replayed: there is nothing in it that the next one would have to replay.
        return if sbi.s_orphans.is_empty() { sbi.mark_clean().map_err(edge) } else { Ok(()) };
    }
    Flusher::start(sb)
}

/// Read-only mounts finish with orphans, too, where that can be; for that long the file system itself is written.
fn cleanup_orphans(sb: &Arc<SuperBlock>, rdonly: bool) -> Result {
    let sbi = sb.s_fs_info();
    let edge = |error| ext4_error(sb, error);
    if !rdonly {
        ext4_orphan_cleanup(sb);
        return Ok(());
    }
    if sbi.is_rdonly_for_good() || sbi.options().noload {
        pr_notice!("EXT4-fs ({}): orphan cleanup skipped: the file system cannot be written", sbi.bdev.name());
        return Ok(());
    }
    pr_info!("EXT4-fs ({}): orphan cleanup on readonly fs", sbi.bdev.name());
    sbi.start_journal(Some(sb.clone())).map_err(edge)?;
    sbi.s_rdonly.store(false, Ordering::SeqCst);
    let done = sbi.mark_writing().map_err(edge).and_then(|()| {
        ext4_orphan_cleanup(sb);
        ext4_sync_fs(sb)?;
        sbi.s_journal().map_or(Ok(()), |journal| journal.flush())
    });
    sbi.s_rdonly.store(true, Ordering::SeqCst);
    done
}

/// Writes all that is newer in memory than on disk, and makes it durable: data, inodes, and what transactions there are. Called
/// with no handle open. The first error, after everything was tried, also one of data that was written since the last call by
/// somebody else; EIO after a shutdown. Sleeps.
#[doc(alias = "sync_filesystem")]
pub fn ext4_sync_fs(sb: &SuperBlock) -> Result {
    let _syscall = syscall("ext4_sync_fs");
    let sbi = sb.s_fs_info();
    if sbi.ext4_forced_shutdown() {
        return Err(EIO);
    }
    if sbi.is_rdonly() {
        return if sbi.journal_aborted() { Err(EROFS) } else { Ok(()) };
    }
    // Data first: writing it makes inodes dirty.
    let data = crate::writeback::ext4_write_data(sb, true);
    let inodes = sb.write_inodes();
    let errors = sbi.write_errors().map_err(|error| ext4_error(sb, error));
    let committed = match sbi.s_journal() {
        Some(journal) => journal.force_commit(),
        None => sbi.buffers.sync_all(),
    };
    let flushed = blkdev_issue_flush(sb.s_bdev());
    // What the commit has written, too, and what was written in the background.
    let noted = sb.check_data_errors();
    data.and(inodes).and(errors).and(committed).and(flushed).and(noted)
}

/// Unmounts: waits for all direct I/O, writes everything, tells the super block. Sleeps. `EBUSY` if a file is still open, and the
/// mount goes on; the first error of writing otherwise, and it is unmounted all the same.
///
/// The mount must not be used afterwards: what is opened then sees a read-only mount.
#[doc(alias = "generic_shutdown_super")]
pub fn ext4_umount(sb: &Arc<SuperBlock>) -> Result {
    let _syscall = syscall("ext4_umount");
    let sbi = sb.s_fs_info();
    if sb.s_writers.is_shut() {
        // PORT: C lets the mount go, and keeps the file system frozen. Whoever waits at the gate would wait for ever.
        return Err(EBUSY);
    }
    let umount = sb.s_umount.write();
    sb.drain_direct_io();
    sbi.dio.drain_trims();
    sb.drain_evictions();
    let mut synced = Ok(());
    if sb.busy_inodes() > 0 {
        // A transaction holds the inodes whose data it has to see written; not any more once it is committed.
        synced = ext4_sync_fs(sb);
        if let Some(journal) = sbi.s_journal() {
            journal.put_lost_inodes();
        }
        sb.drain_evictions();
        if sb.busy_inodes() > 0 {
            return Err(EBUSY);
        }
    }
    drop(umount);
    sbi.s_flusher.stop();
    let synced = synced.and(ext4_sync_fs(sb));
    crate::evict::ext4_discard_all_preallocations(sb);
    let put = sbi.ext4_put_super().map_err(|error| ext4_error(sb, error));
    let wrote = !sb.s_flags().contains(SbFlags::RDONLY) && !sbi.ext4_forced_shutdown();
    let flushed = if wrote { blkdev_issue_flush(sb.s_bdev()) } else { Ok(()) };
    sb.set_rdonly();
    sbi.s_rdonly.store(true, Ordering::SeqCst);
    sb.evict_inodes();
    synced.and(put).and(flushed)
}

/// Opens the file at `path`, from the root. Follows symbolic links. Sleeps.
///
/// `ENOENT`, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG` from the way there; what [`File::open`](kernel_shim::fs::File::open) has.
pub fn ext4_open(sb: &Arc<SuperBlock>, path: &str, flags: OpenFlags) -> Result<Arc<File>> {
    path_open(sb, path.as_bytes(), flags, 0, &Cred::default())
}
