// SPDX-License-Identifier: GPL-2.0-only
//! `stat`, `chmod`, `chown`, `utimens`, `truncate`, `statfs`.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::Arc;
use kernel_shim::error::Result;
use kernel_shim::fs::inode::{S_IFBLK, S_IFCHR, S_IFMT};
use kernel_shim::sync::lockdep::syscall;
use kernel_shim::time::Timespec64;

use super::{path_lookupat, want_write};
use crate::ext4::InodeFlags;
use crate::namei::decode_rdev;
use crate::setattr::{AttrValid, Iattr, ext4_setattr};
use crate::{IRef, Inode, SuperBlock};

/// C's `struct kstat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "statx")]
pub struct Kstat {
    /// Inode number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// A device's number as user space has it; 0 for others.
    pub rdev: u32,
    /// Bytes.
    pub size: i64,
    /// Disk space in units of 512 bytes.
    pub blocks: u64,
    /// The block size in bytes.
    pub blksize: u32,
    /// Last read.
    pub atime: Timespec64,
    /// Last change of the contents.
    pub mtime: Timespec64,
    /// Last change of the inode.
    pub ctime: Timespec64,
    /// When it was made, where there is room for that.
    pub crtime: Timespec64,
    /// `i_flags` on disk.
    pub flags: InodeFlags,
}

/// What there is to say of an inode. Each field was true at some moment; the times belong together.
#[doc(alias = "ext4_getattr")]
pub fn vfs_getattr(inode: &Inode) -> Kstat {
    let info = inode.i_private();
    let times = inode.i_times();
    let mode = inode.i_mode();
    let is_device = matches!(mode & S_IFMT, S_IFCHR | S_IFBLK);
    Kstat {
        ino: inode.i_ino(),
        mode,
        nlink: inode.i_nlink(),
        uid: inode.i_uid(),
        gid: inode.i_gid(),
        rdev: if is_device { decode_rdev(info.i_data_sem.read().i_data()) } else { 0 },
        size: inode.i_size(),
        blocks: info.i_blocks.load(Ordering::Acquire),
        blksize: inode.i_sb().s_fs_info().s_blocksize,
        atime: times.i_atime,
        mtime: times.i_mtime,
        ctime: times.i_ctime,
        crtime: info.i_crtime,
        flags: info.i_flags(),
    }
}

/// `stat`, or `lstat` without `follow`. Errors are those of the way there.
pub fn path_stat(sb: &Arc<SuperBlock>, path: &[u8], follow: bool) -> Result<Kstat> {
    let _syscall = syscall("path_stat");
    Ok(vfs_getattr(&*path_lookupat(sb, path, follow)?))
}

/// Sets attributes, with the right to write. The same for whoever has the inode in hand already.
#[doc(alias = "notify_change")]
pub fn vfs_setattr(inode: &IRef, attr: &Iattr) -> Result {
    let _syscall = syscall("vfs_setattr");
    let _write = want_write(inode.i_sb())?;
    ext4_setattr(inode, attr)
}

/// `chmod`: permissions alone. Follows symbolic links, as all below do; errors as [`ext4_setattr`].
pub fn path_chmod(sb: &Arc<SuperBlock>, path: &[u8], mode: u32) -> Result {
    let _syscall = syscall("path_chmod");
    let attr = Iattr { ia_valid: AttrValid::MODE | AttrValid::CTIME, ia_mode: mode & 0o7777, ..Iattr::default() };
    vfs_setattr(&path_lookupat(sb, path, true)?, &attr)
}

/// `chown`, or `lchown` without `follow`: what is given changes.
pub fn path_chown(sb: &Arc<SuperBlock>, path: &[u8], uid: Option<u32>, gid: Option<u32>, follow: bool) -> Result {
    let _syscall = syscall("path_chown");
    let mut ia_valid = AttrValid::CTIME;
    ia_valid.set(AttrValid::UID, uid.is_some());
    ia_valid.set(AttrValid::GID, gid.is_some());
    let attr = Iattr { ia_valid, ia_uid: uid.unwrap_or(0), ia_gid: gid.unwrap_or(0), ..Iattr::default() };
    vfs_setattr(&path_lookupat(sb, path, follow)?, &attr)
}

/// What becomes of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Utime {
    /// It becomes now.
    #[doc(alias = "UTIME_NOW")]
    Now,
    /// It stays.
    #[doc(alias = "UTIME_OMIT")]
    Omit,
    /// It becomes this.
    At(Timespec64),
}

/// `utimensat`, on a symbolic link itself without `follow`.
pub fn path_utimens(sb: &Arc<SuperBlock>, path: &[u8], atime: Utime, mtime: Utime, follow: bool) -> Result {
    let _syscall = syscall("path_utimens");
    let inode = path_lookupat(sb, path, follow)?;
    if atime == Utime::Omit && mtime == Utime::Omit {
        return Ok(());
    }
    let mut attr = Iattr { ia_valid: AttrValid::CTIME, ..Iattr::default() };
    attr.ia_valid.set(AttrValid::ATIME, atime != Utime::Omit);
    attr.ia_valid.set(AttrValid::MTIME, mtime != Utime::Omit);
    if let Utime::At(time) = atime {
        attr.ia_valid |= AttrValid::ATIME_SET;
        attr.ia_atime = time;
    }
    if let Utime::At(time) = mtime {
        attr.ia_valid |= AttrValid::MTIME_SET;
        attr.ia_mtime = time;
    }
    vfs_setattr(&inode, &attr)
}

/// `truncate`.
pub fn path_truncate(sb: &Arc<SuperBlock>, path: &[u8], size: i64) -> Result {
    let _syscall = syscall("path_truncate");
    let attr = Iattr { ia_valid: AttrValid::SIZE, ia_size: size, ..Iattr::default() };
    vfs_setattr(&path_lookupat(sb, path, true)?, &attr)
}
