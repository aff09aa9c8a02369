// SPDX-License-Identifier: GPL-2.0-only
//! A name in a directory, with locks and checks: `vfs_*` of `fs/namei.c`.

use core::ops::ControlFlow;

use kernel_shim::alloc::{Arc, GFP_KERNEL, KVec};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EBUSY, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EXDEV};
use kernel_shim::fs::{I_MUTEX_CHILD, I_MUTEX_CHILD2, I_MUTEX_NORMAL, I_MUTEX_SECOND, InodeFlags};
use kernel_shim::sync::MutexGuard;
use kernel_shim::sync::lockdep::syscall;

use super::{Cred, Dirent, Qstr, want_write};
use crate::corrupt::{Corrupt, Ext4Error};
use crate::dir::ext4_readdir_from;
use crate::ext4::{EXT4_ROOT_INO, Ino};
use crate::iget::ino_of;
use crate::namei::{
    RenameEnd, RenameFlags, ext4_create, ext4_link, ext4_lookup, ext4_mkdir, ext4_mknod, ext4_rename2, ext4_rmdir,
    ext4_symlink, ext4_unlink,
};
use crate::ops::{ext4_error, ext4_iget};
use crate::{IRef, Inode, Locked};

/// Directories above a directory, at most, before the file system is taken for a loop.
const DEPTH_MAX: usize = 1 << 20;

/// Locks a directory, which may have been removed while we waited: then nothing is in it, and nothing comes into it. ENOENT,
/// ENOTDIR.
pub(super) fn lock_dir(dir: &IRef) -> Result<Locked<'_>> {
    lock_dir_nested(dir, I_MUTEX_NORMAL)
}

/// The same, the second of two for instance: see [`kernel_shim::fs::Inode::lock_nested`].
fn lock_dir_nested(dir: &IRef, subclass: u8) -> Result<Locked<'_>> {
    if !dir.is_dir() {
        return Err(ENOTDIR);
    }
    let locked = dir.lock_nested(subclass);
    if locked.i_nlink() == 0 { Err(ENOENT) } else { Ok(locked) }
}

/// What `name` leads to, in memory. With the directory locked nobody deletes it on the way.
pub(super) fn lookup_locked(dir: &Locked<'_>, name: &[u8]) -> Result<Option<IRef>> {
    let sb = dir.i_sb();
    match ext4_lookup(dir.inode(), name, &mut |ino| Ok(ext4_iget(sb, ino)?)) {
        Ok(inode) => Ok(Some(inode)),
        Err(Ext4Error::Errno(ENOENT)) => Ok(None),
        Err(error) => Err(ext4_error(sb, error)),
    }
}

/// What `name` in `dir` leads to. ENOENT, ENOTDIR, ENAMETOOLONG, EIO, ENOMEM, corruptions. Sleeps.
pub fn vfs_lookup(dir: &IRef, name: &[u8]) -> Result<IRef> {
    let _syscall = syscall("vfs_lookup");
    lookup_locked(&lock_dir(dir)?, name)?.ok_or(ENOENT)
}

/// Whether a name may be made in a directory that does not have it.
pub(super) fn may_create(dir: &Inode) -> Result {
    if dir.i_flags().contains(InodeFlags::IMMUTABLE) { Err(EPERM) } else { Ok(()) }
}

/// Whether a name may be taken from what has it.
fn may_delete(dir: &Inode, victim: &Inode, is_dir: bool) -> Result {
    let fixed = InodeFlags::IMMUTABLE | InodeFlags::APPEND;
    if dir.i_flags().intersects(fixed) || victim.i_flags().intersects(fixed) {
        return Err(EPERM);
    }
    match (is_dir, victim.is_dir()) {
        (true, false) => Err(ENOTDIR),
        (false, true) => Err(EISDIR),
        (true, true) if ino_of(victim) == EXT4_ROOT_INO => Err(EBUSY),
        _ => Ok(()),
    }
}

/// Makes something in a directory that does not have the name.
fn make<'d>(dir: &'d IRef, name: &[u8], f: impl FnOnce(&Locked<'d>) -> Result<IRef>) -> Result<IRef> {
    let _write = want_write(dir.i_sb())?;
    let dir = lock_dir(dir)?;
    if lookup_locked(&dir, name)?.is_some() {
        return Err(EEXIST);
    }
    may_create(&dir)?;
    f(&dir)
}

/// Makes a regular file. EEXIST, ENOENT in a directory that was removed, EPERM in an immutable one; see [`ext4_create`]. Sleeps.
pub fn vfs_create(dir: &IRef, name: &[u8], mode: u32, cred: &Cred) -> Result<IRef> {
    let _syscall = syscall("vfs_create");
    make(dir, name, |dir| ext4_create(dir, name, mode, cred.uid, cred.gid))
}

/// Makes a device, pipe or socket. As [`vfs_create`].
pub fn vfs_mknod(dir: &IRef, name: &[u8], mode: u32, rdev: u32, cred: &Cred) -> Result<IRef> {
    let _syscall = syscall("vfs_mknod");
    make(dir, name, |dir| ext4_mknod(dir, name, mode, rdev, cred.uid, cred.gid))
}

/// Makes a directory. As [`vfs_create`]; EMLINK.
pub fn vfs_mkdir(dir: &IRef, name: &[u8], mode: u32, cred: &Cred) -> Result<IRef> {
    let _syscall = syscall("vfs_mkdir");
    make(dir, name, |dir| ext4_mkdir(dir, name, mode, cred.uid, cred.gid))
}

/// Makes a symbolic link. As [`vfs_create`]; ENAMETOOLONG for the target.
pub fn vfs_symlink(dir: &IRef, name: &[u8], target: &[u8], cred: &Cred) -> Result<IRef> {
    let _syscall = syscall("vfs_symlink");
    make(dir, name, |dir| ext4_symlink(dir, name, target, cred.uid, cred.gid))
}

/// Gives `inode` one name more. As [`vfs_create`]; ENOENT if it has none, EMLINK, EPERM for a directory and for what is
/// immutable or append-only, EXDEV.
pub fn vfs_link(inode: &IRef, dir: &IRef, name: &[u8]) -> Result {
    let _syscall = syscall("vfs_link");
    link(inode, dir, name, false)
}

/// The same; `linkable`: though it may have no name yet.
pub(super) fn link(inode: &IRef, dir: &IRef, name: &[u8], linkable: bool) -> Result {
    let _write = want_write(dir.i_sb())?;
    let dir = lock_dir(dir)?;
    if lookup_locked(&dir, name)?.is_some() {
        return Err(EEXIST);
    }
    may_create(&dir)?;
    if !Arc::ptr_eq(inode.i_sb(), dir.i_sb()) {
        return Err(EXDEV);
    }
    if inode.is_dir() || inode.i_flags().intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
        return Err(EPERM);
    }
    let inode = inode.lock();
    if inode.i_nlink() == 0 && !linkable {
        return Err(ENOENT);
    }
    ext4_link(&inode, &dir, name)
}

/// Removes a name of something that is no directory. With the last name and the last reference the inode goes away.
///
/// ENOENT, EISDIR, ENOTDIR for a slash behind the name; EPERM if the file or the directory is immutable or append-only. Sleeps.
pub fn vfs_unlink(dir: &IRef, name: Qstr<'_>) -> Result {
    let _syscall = syscall("vfs_unlink");
    let _write = want_write(dir.i_sb())?;
    // Dropped after the locks: it may be the last reference, and then the inode is deleted under a handle of its own.
    let victim;
    let dir = lock_dir(dir)?;
    victim = lookup_locked(&dir, name.name)?.ok_or(ENOENT)?;
    if name.slash {
        return Err(if victim.is_dir() { EISDIR } else { ENOTDIR });
    }
    may_delete(&dir, &victim, false)?;
    let locked = victim.lock();
    ext4_unlink(&dir, name.name, &locked)
}

/// Removes an empty directory. As [`vfs_unlink`]; ENOTDIR, ENOTEMPTY.
pub fn vfs_rmdir(dir: &IRef, name: &[u8]) -> Result {
    let _syscall = syscall("vfs_rmdir");
    let _write = want_write(dir.i_sb())?;
    let victim;
    let dir = lock_dir(dir)?;
    victim = lookup_locked(&dir, name)?.ok_or(ENOENT)?;
    may_delete(&dir, &victim, true)?;
    let locked = victim.lock_nested(I_MUTEX_CHILD);
    ext4_rmdir(&dir, name, &locked)
}

// ---- rename

/// Two directories, locked for a rename.
struct RenameLocks<'a> {
    old: Locked<'a>,
    /// Nothing if they are one.
    new: Option<Locked<'a>>,
    /// If one of them is above the other: the directory in the upper one that leads to the lower one, or is it.
    trap: Option<Ino>,
    /// Given up after the others.
    _mutex: Option<MutexGuard<'a, ()>>,
}

impl<'a> RenameLocks<'a> {
    fn new_dir(&self) -> &Locked<'a> {
        self.new.as_ref().unwrap_or(&self.old)
    }
}

/// Locks both directories of a rename: the upper one first, or the one of the lower number.
fn lock_rename<'a>(old: &'a IRef, new: &'a IRef) -> Result<RenameLocks<'a>> {
    if IRef::ptr_eq(old, new) {
        return Ok(RenameLocks { old: lock_dir(old)?, new: None, trap: None, _mutex: None });
    }
    if !Arc::ptr_eq(old.i_sb(), new.i_sb()) {
        return Err(EXDEV);
    }
    if !old.is_dir() || !new.is_dir() {
        return Err(ENOTDIR);
    }
    // From here on nobody else moves a directory from one to another: who is above whom stays as it is.
    let mutex = old.i_sb().s_fs_info().s_vfs_rename_mutex.lock();
    let (below_old, below_new) = (d_ancestor(old, new)?, d_ancestor(new, old)?);
    let old_first = below_old.is_some() || (below_new.is_none() && old.i_ino() < new.i_ino());
    let (old, new) = if old_first {
        let old = lock_dir(old)?;
        (old, lock_dir_nested(new, I_MUTEX_SECOND)?)
    } else {
        let new = lock_dir(new)?;
        (lock_dir_nested(old, I_MUTEX_SECOND)?, new)
    };
    Ok(RenameLocks { old, new: Some(new), trap: below_old.or(below_new), _mutex: Some(mutex) })
}

/// If `dir` is below `above`: the directory in that which leads there. Called with the rename mutex held, and no `i_mutex`; takes
/// that of each directory on the way up, one at a time. ENOENT if `dir` was removed.
fn d_ancestor(above: &IRef, dir: &IRef) -> Result<Option<Ino>> {
    let sb = dir.i_sb();
    let mut here = dir.clone();
    for _ in 0..DEPTH_MAX {
        if ino_of(&here) == EXT4_ROOT_INO {
            return Ok(None);
        }
        let parent = {
            // What is above a directory that exists exists, and nobody moves it.
            let here = lock_dir(&here)?;
            lookup_locked(&here, b"..")?.ok_or_else(|| ext4_error(sb, Corrupt::DirDots(ino_of(&here)).into()))?
        };
        if IRef::ptr_eq(&parent, above) {
            return Ok(Some(ino_of(&here)));
        }
        here = parent;
    }
    Err(ELOOP)
}

/// Whether a rename is possible at all, with both directories locked: C's `do_renameat2()` and the checks of `vfs_rename()`.
/// `false`: both names lead to one inode, and there is nothing to do.
fn may_rename(
    locks: &RenameLocks<'_>,
    (source, old): (&IRef, Qstr<'_>),
    (target, new): (Option<&IRef>, Qstr<'_>),
    flags: RenameFlags,
) -> Result<bool> {
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    match target {
        Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(EEXIST),
        None if exchange => return Err(ENOENT),
        Some(target) if exchange && new.slash && !target.is_dir() => return Err(ENOTDIR),
        _ => {}
    }
    if !source.is_dir() && (old.slash || (new.slash && !exchange)) {
        return Err(ENOTDIR);
    }
    // A directory does not go into itself, and nothing takes the place of what it is in.
    if locks.trap == Some(ino_of(source)) {
        return Err(EINVAL);
    }
    if target.is_some_and(|target| locks.trap == Some(ino_of(target))) {
        return Err(if exchange { EINVAL } else { ENOTEMPTY });
    }
    if target.is_some_and(|target| IRef::ptr_eq(source, target)) {
        return Ok(false);
    }
    may_delete(&locks.old, source, source.is_dir())?;
    match target {
        None => may_create(locks.new_dir())?,
        Some(target) if exchange => may_delete(locks.new_dir(), target, target.is_dir())?,
        Some(target) => may_delete(locks.new_dir(), target, source.is_dir())?,
    }
    Ok(true)
}

/// Renames one name to another, which is replaced, must not be there, or changes places with it, as `flags` say.
///
/// ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL for a directory into itself, EBUSY, EPERM, EXDEV; see [`ext4_rename2`].
/// Sleeps.
pub fn vfs_rename((old_dir, old): (&IRef, Qstr<'_>), (new_dir, new): (&IRef, Qstr<'_>), flags: RenameFlags) -> Result {
    let _syscall = syscall("vfs_rename");
    let _write = want_write(old_dir.i_sb())?;
    // Dropped after the locks: the target may lose its last name.
    let (source, target);
    let locks = lock_rename(old_dir, new_dir)?;
    source = lookup_locked(&locks.old, old.name)?.ok_or(ENOENT)?;
    target = lookup_locked(locks.new_dir(), new.name)?;
    if !may_rename(&locks, (&source, old), (target.as_ref(), new), flags)? {
        return Ok(());
    }
    // A directory that gets another parent is locked; two are not locked but with the rename mutex held.
    let source_lock = (!source.is_dir() || locks.new.is_some()).then_some(&source);
    let _inodes = lock_two(source_lock, target.as_ref());
    ext4_rename2(
        RenameEnd { dir: &locks.old, name: old.name, inode: Some(&source) },
        RenameEnd { dir: locks.new_dir(), name: new.name, inode: target.as_ref() },
        flags,
    )
}

/// Locks two inodes that are in locked directories: directories first, files by their numbers.
#[doc(alias = "lock_two_nondirectories")]
fn lock_two<'a>(a: Option<&'a IRef>, b: Option<&'a IRef>) -> [Option<Locked<'a>>; 2] {
    let key = |inode: Option<&IRef>| inode.map(|inode| (!inode.is_dir(), inode.i_ino()));
    let (first, second) = if key(a) <= key(b) { (a, b) } else { (b, a) };
    // By what each is: the two orders do not mix.
    let nested = |inode: &IRef, child| if inode.is_dir() { child } else { I_MUTEX_NORMAL };
    let files = first.is_some_and(|inode| !inode.is_dir());
    let first = first.map(|inode| inode.lock_nested(nested(inode, I_MUTEX_CHILD)));
    let second_class = |inode: &IRef| if files { I_MUTEX_SECOND } else { nested(inode, I_MUTEX_CHILD2) };
    [first, second.map(|inode| inode.lock_nested(second_class(inode)))]
}

// ---- reading

/// Appends up to `max` entries of a directory from position `pos` on, and moves it behind them. ENOTDIR, ENOENT for a directory that
/// was removed, EIO, ENOMEM, corruptions. Sleeps.
#[doc(alias = "iterate_dir")]
pub fn vfs_readdir(dir: &IRef, pos: &mut u64, max: usize, list: &mut KVec<Dirent>) -> Result {
    let _syscall = syscall("vfs_readdir");
    let locked = lock_dir(dir)?;
    let mut left = max;
    let mut failed = Ok(());
    let read = ext4_readdir_from(&locked, pos, |entry, d_off| {
        let mut add = || -> Result {
            let mut name = KVec::new();
            name.extend_from_slice(entry.name, GFP_KERNEL)?;
            let dirent = Dirent { d_ino: u64::from(entry.inode.0), d_off, file_type: entry.file_type, name };
            Ok(list.push(dirent, GFP_KERNEL)?)
        };
        if left == 0 {
            return ControlFlow::Break(());
        }
        left -= 1;
        failed = add();
        if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    read.map_err(|error| ext4_error(dir.i_sb(), error))?;
    dir.file_accessed();
    failed
}
