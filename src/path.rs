// SPDX-License-Identifier: GPL-2.0-only
//! The VFS's part of names: `fs/namei.c`, `fs/open.c`, `fs/stat.c` as far as one mount has use for them.
//!
//! `vfs_*` work on a name in a directory, with locks and checks; `path_*` on paths from the root, as system calls do. Whoever
//! calls has decided who may do what: there are no checks of permissions, but immutable and append-only inodes are respected.
//!
//! # Locks
//!
//! Whatever changes something first asks for the right to write, which a frozen file system does not give; then come the locks.
//!
//! A look-up holds the directory's `i_mutex` until the inode is in memory, so that a name never leads to an inode that is being
//! deleted. What changes names holds it throughout, then takes that of the inode the name leads to: directories before files, two
//! files by their numbers. Two directories come one above the other, or by their numbers; that this order stays true is what the
//! mount's rename mutex is for. A directory that was removed has no links, and nothing is found or made in it.
//!
//! PORT: there is no dcache. Each component is looked up on disk.

pub mod attr;
mod open;
mod vfs;
pub mod walk;

use kernel_shim::alloc::{Arc, KVec};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS};
use kernel_shim::fs::inode::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK};
use kernel_shim::fs::{SbFlags, WriteAccess};
use kernel_shim::sync::lockdep::syscall;

use crate::corrupt::Ext4Result;
use crate::ext4::EXT4_ROOT_INO;
use crate::namei::RenameFlags;
use crate::ops::{ext4_error, ext4_iget};
use crate::sb_stats::{Ext4Statfs, ext4_statfs};
use crate::symlink::ext4_readlink;
use crate::{File, IRef, SuperBlock};

pub use attr::{Kstat, Utime, path_chmod, path_chown, path_stat, path_truncate, path_utimens, vfs_getattr};
pub use open::{path_open, vfs_tmpfile};
pub use vfs::{
    vfs_create, vfs_link, vfs_lookup, vfs_mkdir, vfs_mknod, vfs_readdir, vfs_rename, vfs_rmdir, vfs_symlink, vfs_unlink,
};
use walk::{Last, Nameidata};

/// Who makes files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cred {
    /// Owner of new files.
    pub uid: u32,
    /// Group of new files.
    pub gid: u32,
    /// Permissions that new files do not get.
    pub umask: u32,
}

/// A name in a directory, where a path's last component may be.
#[derive(Clone, Copy, Debug)]
pub struct Qstr<'a> {
    /// The name.
    pub name: &'a [u8],
    /// A slash came behind it: it is meant to be a directory.
    pub slash: bool,
}

impl<'a> From<&'a [u8]> for Qstr<'a> {
    fn from(name: &'a [u8]) -> Self {
        Self { name, slash: false }
    }
}

/// One step of a path, in a directory that changes.
fn lookup_one(dir: &IRef, name: &[u8]) -> Ext4Result<IRef> {
    Ok(vfs_lookup(dir, name)?)
}

fn nameidata(sb: &Arc<SuperBlock>, path: &[u8]) -> Result<Nameidata<IRef>> {
    let root = ext4_iget(sb, EXT4_ROOT_INO)?;
    Nameidata::new(&root, path).map_err(|error| ext4_error(sb, error))
}

/// The inode at `path`, from the root; a symbolic link at the end is followed if `follow` says so, or a slash comes behind it.
///
/// ENOENT, ENOTDIR, ELOOP after 40 symbolic links, ENAMETOOLONG, EIO, ENOMEM, corruptions, which are logged. Sleeps.
#[doc(alias = "user_path_at")]
pub fn path_lookupat(sb: &Arc<SuperBlock>, path: &[u8], follow: bool) -> Result<IRef> {
    let _syscall = syscall("path_lookupat");
    nameidata(sb, path)?.to_end(follow, &mut lookup_one).map_err(|error| ext4_error(sb, error))
}

/// A path's last name, and the directory that it is in.
struct Parent {
    nd: Nameidata<IRef>,
    last: Last,
}

impl Parent {
    fn of(sb: &Arc<SuperBlock>, path: &[u8]) -> Result<Self> {
        let mut nd = nameidata(sb, path)?;
        let last = nd.to_parent(&mut lookup_one).map_err(|error| ext4_error(sb, error))?;
        Ok(Self { nd, last })
    }

    fn dir(&self) -> &IRef {
        self.nd.here()
    }

    fn qstr(&self) -> Qstr<'_> {
        Qstr { name: self.nd.name(), slash: self.nd.slash() }
    }
}

/// The directory for a new name. EEXIST for the root and dots; ENOENT for a slash behind what is to be no directory, EEXIST if
/// that exists.
#[doc(alias = "filename_create")]
fn path_create(sb: &Arc<SuperBlock>, path: &[u8], is_dir: bool) -> Result<Parent> {
    let parent = Parent::of(sb, path)?;
    if parent.last != Last::Norm {
        return Err(EEXIST);
    }
    if sb.s_flags().contains(SbFlags::RDONLY) || (parent.qstr().slash && !is_dir) {
        return match vfs_lookup(parent.dir(), parent.qstr().name) {
            Ok(_) => Err(EEXIST),
            Err(ENOENT) if parent.qstr().slash && !is_dir => Err(ENOENT),
            Err(ENOENT) => Err(EROFS),
            Err(error) => Err(error),
        };
    }
    Ok(parent)
}

/// The right to change something, as long as it lives: a file system that is being frozen waits for it. Taken before any lock.
/// EROFS. Sleeps while the file system is frozen.
#[doc(alias = "mnt_want_write")]
fn want_write(sb: &SuperBlock) -> Result<WriteAccess<'_>> {
    let write = sb.start_write();
    check_rdonly(sb)?;
    Ok(write)
}

fn check_rdonly(sb: &SuperBlock) -> Result {
    if sb.s_flags().contains(SbFlags::RDONLY) { Err(EROFS) } else { Ok(()) }
}

/// `mkdir`. EEXIST, ENOENT, EMLINK, ENAMETOOLONG, ENOSPC, EROFS; EPERM in an immutable directory; what the way there has. So for
/// all that make something.
pub fn path_mkdir(sb: &Arc<SuperBlock>, path: &[u8], mode: u32, cred: &Cred) -> Result {
    let _syscall = syscall("path_mkdir");
    let parent = path_create(sb, path, true)?;
    vfs_mkdir(parent.dir(), parent.qstr().name, mode & !cred.umask & 0o1777, cred).map(drop)
}

/// `mknod`: the type in `mode` says what; `rdev` is a device's number. EPERM for a directory, EINVAL for unknown types.
pub fn path_mknod(sb: &Arc<SuperBlock>, path: &[u8], mode: u32, rdev: u32, cred: &Cred) -> Result {
    let _syscall = syscall("path_mknod");
    match mode & S_IFMT {
        0 | S_IFREG | S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK => {}
        S_IFDIR => return Err(EPERM),
        _ => return Err(EINVAL),
    }
    let parent = path_create(sb, path, false)?;
    let mode = mode & S_IFMT | mode & !cred.umask & 0o7777;
    vfs_mknod(parent.dir(), parent.qstr().name, mode, rdev, cred).map(drop)
}

/// `symlink`: a symbolic link at `path` to `target`. ENOENT for an empty target, ENAMETOOLONG for one that does not fit a block.
pub fn path_symlink(sb: &Arc<SuperBlock>, target: &[u8], path: &[u8], cred: &Cred) -> Result {
    let _syscall = syscall("path_symlink");
    if target.is_empty() {
        return Err(ENOENT);
    }
    let parent = path_create(sb, path, false)?;
    vfs_symlink(parent.dir(), parent.qstr().name, target, cred).map(drop)
}

/// `link`: another name for what is at `old`, where a symbolic link is not followed. EPERM for a directory and for an immutable or
/// append-only file.
pub fn path_link(sb: &Arc<SuperBlock>, old: &[u8], new: &[u8]) -> Result {
    let _syscall = syscall("path_link");
    let inode = path_lookupat(sb, old, false)?;
    let parent = path_create(sb, new, false)?;
    vfs_link(&inode, parent.dir(), parent.qstr().name)
}

/// `linkat` of an open file: also gives a name to one opened with `O_TMPFILE` but without `O_EXCL`; else ENOENT for one that has
/// lost all of its.
pub fn path_link_file(sb: &Arc<SuperBlock>, file: &File, new: &[u8]) -> Result {
    let _syscall = syscall("path_link_file");
    let parent = path_create(sb, new, false)?;
    vfs::link(file.f_inode(), parent.dir(), parent.qstr().name, open::is_linkable(file))
}

/// `unlink`. ENOENT, EISDIR for a directory; EPERM for an immutable or append-only file, or in such a directory; EROFS.
pub fn path_unlink(sb: &Arc<SuperBlock>, path: &[u8]) -> Result {
    let _syscall = syscall("path_unlink");
    let parent = Parent::of(sb, path)?;
    if parent.last != Last::Norm {
        return Err(EISDIR);
    }
    check_rdonly(sb)?;
    vfs_unlink(parent.dir(), parent.qstr())
}

/// `rmdir`. ENOENT, ENOTDIR, ENOTEMPTY, EBUSY for the root, EINVAL for `.`; EPERM as for [`path_unlink`].
pub fn path_rmdir(sb: &Arc<SuperBlock>, path: &[u8]) -> Result {
    let _syscall = syscall("path_rmdir");
    let parent = Parent::of(sb, path)?;
    match parent.last {
        Last::Norm => {}
        Last::DotDot => return Err(ENOTEMPTY),
        Last::Dot => return Err(EINVAL),
        Last::Root => return Err(EBUSY),
    }
    check_rdonly(sb)?;
    vfs_rmdir(parent.dir(), parent.qstr().name)
}

/// `renameat2`. ENOENT, EEXIST with NOREPLACE, ENOTDIR, EISDIR, ENOTEMPTY, EBUSY for dots and the root, EINVAL for a directory into
/// itself and for unknown flags or WHITEOUT, EMLINK, ENOSPC, EPERM, EROFS.
pub fn path_rename(sb: &Arc<SuperBlock>, old: &[u8], new: &[u8], flags: RenameFlags) -> Result {
    let _syscall = syscall("path_rename");
    let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    if flags.contains(both) || flags.contains(RenameFlags::WHITEOUT) || !RenameFlags::all().contains(flags) {
        return Err(EINVAL);
    }
    let old = Parent::of(sb, old)?;
    let new = Parent::of(sb, new)?;
    if old.last != Last::Norm {
        return Err(EBUSY);
    }
    if new.last != Last::Norm {
        return Err(if flags.contains(RenameFlags::NOREPLACE) { EEXIST } else { EBUSY });
    }
    check_rdonly(sb)?;
    vfs_rename((old.dir(), old.qstr()), (new.dir(), new.qstr()), flags)
}

/// `statfs`. EIO after a shutdown; errors of the way there.
pub fn path_statfs(sb: &Arc<SuperBlock>, path: &[u8]) -> Result<Ext4Statfs> {
    let _syscall = syscall("path_statfs");
    path_lookupat(sb, path, true)?;
    ext4_statfs(sb)
}

/// `readlink`: a symbolic link's target. EINVAL for anything else.
pub fn path_readlink(sb: &Arc<SuperBlock>, path: &[u8]) -> Result<KVec<u8>> {
    let _syscall = syscall("path_readlink");
    let inode = path_lookupat(sb, path, false)?;
    let target = ext4_readlink(&inode).map_err(|error| ext4_error(sb, error))?;
    inode.file_accessed();
    Ok(target)
}

/// An entry of a directory, with a copy of its name.
pub struct Dirent {
    /// Inode number.
    pub d_ino: u64,
    /// The position behind it: see [`crate::dir::ext4_readdir_from`].
    pub d_off: u64,
    /// Type as directory entries have it (`EXT4_FT_*`), or 0.
    pub file_type: u8,
    /// The name.
    pub name: KVec<u8>,
}

/// All entries of the directory at `path`, in the order of their positions, `.` and `..` included. ENOTDIR.
pub fn path_readdir(sb: &Arc<SuperBlock>, path: &[u8]) -> Result<KVec<Dirent>> {
    let _syscall = syscall("path_readdir");
    let dir = path_lookupat(sb, path, true)?;
    if !dir.is_dir() {
        return Err(ENOTDIR);
    }
    let mut list = KVec::new();
    let mut pos = 0;
    vfs_readdir(&dir, &mut pos, usize::MAX, &mut list)?;
    Ok(list)
}
