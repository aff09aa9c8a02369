// SPDX-License-Identifier: GPL-2.0-only
//! The tables of operations that C has at the ends of file.c, inode.c and super.c, and mounting.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{Arc, GFP_KERNEL};
use kernel_shim::block::{Bdev, blkdev_issue_flush};
use kernel_shim::error::{Error, Result, code::*};
use kernel_shim::fs::{FileSystem, InodeFlags, IovIter, NewInode, OpenFlags, SbFlags};
use kernel_shim::mm::filemap::BlockRun;

use kernel_shim::mm::filemap::{file_remove_suid, should_remove_suid};

use crate::corrupt::{Corrupt, Ext4Error};
use crate::ext4::{EXT4_ROOT_INO, Ino};
use crate::iget::{Iget, ext4_read_inode};
use crate::path::{Cred, path_open};
use crate::sb::{Ext4SbInfo, ext4_fill_super};
use crate::xattr::{ext4_file_remove_privs, ext4_need_remove_privs};
use crate::{Ext4, Ext4InodeInfo, File, IRef, Inode, Kiocb, Locked, Private, SuperBlock};

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
        let caps = ext4_need_remove_privs(i_mutex)?;
        if iocb.is_nowait() && (caps || should_remove_suid(iocb.ki_filp, i_mutex)) {
            return Err(EAGAIN);
        }
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

    fn evict_inode(_inode: &Arc<Inode>) {}

    fn release(_file: &File, _last_writer: bool) {}

    fn s_maxbytes(inode: &Inode) -> i64 {
        let sbi = inode.i_sb().s_fs_info();
        if inode.i_private().is_extents() { sbi.s_maxbytes() } else { sbi.s_bitmap_maxbytes() }
    }
}

/// The inode with number `ino`, from the cache or read from the disk and checked. Sleeps.
///
/// `ESTALE` for one that is not in use, `EFSCORRUPTED` or `EFSBADCRC` for one that cannot be, which is logged.
pub fn ext4_iget(sb: &Arc<SuperBlock>, ino: Ino) -> Result<IRef> {
    sb.iget(u64::from(ino.0), || {
        let sbi = sb.s_fs_info();
        let disk = ext4_read_inode(sbi, ino, Iget::Normal).map_err(|error| ext4_error(sb, error))?;
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
/// unsupported features; `EFSCORRUPTED`, `EFSBADCRC` for a damaged one; `EIO`; `ENOMEM`.
pub fn ext4_mount(bdev: Bdev, options: &str) -> Result<Arc<SuperBlock>> {
    let info = ext4_fill_super(bdev.clone(), options).map_err(Error::from)?;
    let mut flags = SbFlags::empty();
    flags.set(SbFlags::RDONLY, info.is_rdonly());
    flags.set(SbFlags::NOATIME, info.s_options.noatime);
    let (blkbits, gran) = (info.s_blocksize_bits, info.s_time_gran());
    let sb = SuperBlock::new(bdev, blkbits, gran, flags, info)?;
    // The root says whether there is a file system to go on with, before anything is written.
    let root = ext4_iget(&sb, EXT4_ROOT_INO)?;
    let ready = if root.is_dir() {
        sb.s_fs_info().ext4_setup_super().map_err(|error| ext4_error(&sb, error))
    } else {
        Err(ext4_error(&sb, Corrupt::InodeMode(EXT4_ROOT_INO).into()))
    };
    drop(root);
    if let Err(error) = ready {
        sb.evict_inodes();
        return Err(error);
    }
    Ok(sb)
}

/// Writes all that is newer in memory than on disk, and makes it durable. Sleeps.
#[doc(alias = "sync_filesystem")]
pub fn ext4_sync_fs(sb: &SuperBlock) -> Result {
    if sb.s_flags().contains(SbFlags::RDONLY) {
        return Ok(());
    }
    let inodes = sb.write_inodes();
    let buffers = sb.s_fs_info().buffers.sync_all();
    inodes.and(buffers).and(blkdev_issue_flush(sb.s_bdev()))
}

/// Unmounts: waits for all direct I/O, writes everything, tells the super block. Sleeps. `EBUSY`, and nothing has happened,
/// if a file is still open; the first error of writing otherwise, and it is unmounted all the same.
///
/// The mount must not be used afterwards: what is opened then sees a read-only mount.
#[doc(alias = "generic_shutdown_super")]
pub fn ext4_umount(sb: &Arc<SuperBlock>) -> Result {
    sb.drain_direct_io();
    if sb.busy_inodes() > 0 {
        return Err(EBUSY);
    }
    let synced = ext4_sync_fs(sb);
    let put = sb.s_fs_info().ext4_put_super().map_err(|error| ext4_error(sb, error));
    let flushed = if sb.s_flags().contains(SbFlags::RDONLY) { Ok(()) } else { blkdev_issue_flush(sb.s_bdev()) };
    sb.set_rdonly();
    sb.evict_inodes();
    synced.and(put).and(flushed)
}

/// Opens the file at `path`, from the root. Follows symbolic links. Sleeps.
///
/// `ENOENT`, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG` from the way there; what [`File::open`](kernel_shim::fs::File::open) has.
pub fn ext4_open(sb: &Arc<SuperBlock>, path: &str, flags: OpenFlags) -> Result<Arc<File>> {
    path_open(sb, path.as_bytes(), flags, 0, &Cred::default())
}
