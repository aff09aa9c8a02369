// SPDX-License-Identifier: GPL-2.0-only
//! Opening: `path_openat()` of `fs/namei.c`.

use kernel_shim::alloc::Arc;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO, EPERM};
use kernel_shim::fs::{InodeFlags, OpenFlags};
use kernel_shim::sync::lockdep::syscall;

use super::vfs::{lock_dir, lookup_locked, may_create};
use super::walk::{Last, Nameidata};
use super::{Cred, check_rdonly, lookup_one, nameidata, vfs_lookup, want_write};
use crate::namei::{ext4_create, ext4_tmpfile};
use crate::ops::ext4_error;
use crate::setattr::{AttrValid, Iattr, ext4_setattr};
use crate::{File, IRef, SuperBlock};

/// Opens the file at `path`, from the root; with `O_CREAT` makes it if need be, with permissions `mode` without those of
/// `cred.umask`.
///
/// ENOENT, EEXIST with `O_EXCL`, ENOTDIR with `O_DIRECTORY`, ELOOP with `O_NOFOLLOW` for a symbolic link, EISDIR, ENXIO for devices,
/// pipes and sockets, EINVAL, EPERM, EROFS, ENOSPC; what [`File::open`](kernel_shim::fs::File::open) and the way there
/// have. Sleeps.
pub fn path_open(sb: &Arc<SuperBlock>, path: &[u8], flags: OpenFlags, mode: u32, cred: &Cred) -> Result<Arc<File>> {
    let _syscall = syscall("path_open");
    let mode = mode & !cred.umask & 0o7777;
    if flags.contains(OpenFlags::O_TMPFILE) {
        return open_tmpfile(sb, path, flags, mode, cred);
    }
    if flags.contains(OpenFlags::O_CREAT | OpenFlags::O_DIRECTORY) {
        return Err(EINVAL);
    }
    // What is made or cut is changed, whatever the file is opened for.
    let _write = flags.intersects(OpenFlags::O_CREAT | OpenFlags::O_TRUNC).then(|| sb.start_write());
    let mut nd = nameidata(sb, path)?;
    let (inode, created) = loop {
        match open_last(sb, &mut nd, flags, mode, cred)? {
            Opened::Link(link) => nd.follow(&link).map_err(|error| ext4_error(sb, error))?,
            Opened::There(inode) => break (inode, false),
            Opened::Made(inode) => break (inode, true),
        }
    };
    if flags.contains(OpenFlags::O_DIRECTORY) && !inode.is_dir() {
        return Err(ENOTDIR);
    }
    if inode.is_dir() && flags.contains(OpenFlags::O_CREAT) {
        return Err(EISDIR);
    }
    if !inode.is_dir() && !inode.is_reg() {
        return Err(ENXIO);
    }
    let truncate = flags.contains(OpenFlags::O_TRUNC) && !created;
    if truncate {
        may_truncate(sb, &inode)?;
    }
    let passing = OpenFlags::O_CREAT | OpenFlags::O_EXCL | OpenFlags::O_TRUNC;
    let file = File::open(inode, flags.difference(passing))?;
    if truncate && file.f_inode().is_reg() {
        let ia_valid = AttrValid::SIZE | AttrValid::MTIME | AttrValid::CTIME;
        ext4_setattr(file.f_inode(), &Iattr { ia_valid, ..Iattr::default() })?;
    }
    Ok(file)
}

/// `O_TRUNC` writes, whatever else the file is opened for.
fn may_truncate(sb: &SuperBlock, inode: &IRef) -> Result {
    if inode.is_dir() {
        return Err(EISDIR);
    }
    check_rdonly(sb)?;
    if inode.i_flags().intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) { Err(EPERM) } else { Ok(()) }
}

/// What the last component turned out to be.
enum Opened {
    There(IRef),
    Made(IRef),
    /// A symbolic link to be followed.
    Link(IRef),
}

/// Looks up the last component, or makes it.
#[doc(alias = "open_last_lookups")]
fn open_last(
    sb: &Arc<SuperBlock>,
    nd: &mut Nameidata<IRef>,
    flags: OpenFlags,
    mode: u32,
    cred: &Cred,
) -> Result<Opened> {
    let create = flags.contains(OpenFlags::O_CREAT);
    let last = nd.to_parent(&mut lookup_one).map_err(|error| ext4_error(sb, error))?;
    if last != Last::Norm {
        if create {
            return Err(EISDIR);
        }
        let at_root = last == Last::DotDot && nd.here().i_ino() == u64::from(crate::ext4::EXT4_ROOT_INO.0);
        let up = last == Last::DotDot && !at_root;
        return Ok(Opened::There(if up { vfs_lookup(nd.here(), b"..")? } else { nd.here().clone() }));
    }
    if create && nd.slash() {
        return Err(EISDIR);
    }
    let dir = lock_dir(nd.here())?;
    let Some(inode) = lookup_locked(&dir, nd.name())? else {
        if !create {
            return Err(ENOENT);
        }
        check_rdonly(sb)?;
        may_create(&dir)?;
        return Ok(Opened::Made(ext4_create(&dir, nd.name(), mode, cred.uid, cred.gid)?));
    };
    if create && flags.contains(OpenFlags::O_EXCL) {
        return Err(EEXIST);
    }
    if inode.is_lnk() {
        let stop = flags.contains(OpenFlags::O_NOFOLLOW) && !nd.slash();
        return if stop { Err(ELOOP) } else { Ok(Opened::Link(inode)) };
    }
    if nd.slash() && !inode.is_dir() {
        return Err(ENOTDIR);
    }
    Ok(Opened::There(inode))
}

/// `O_TMPFILE`: `path` is the directory.
#[doc(alias = "do_tmpfile")]
fn open_tmpfile(sb: &Arc<SuperBlock>, path: &[u8], flags: OpenFlags, mode: u32, cred: &Cred) -> Result<Arc<File>> {
    if !flags.intersects(OpenFlags::O_WRONLY | OpenFlags::O_RDWR) || flags.contains(OpenFlags::O_CREAT) {
        return Err(EINVAL);
    }
    let dir = super::path_lookupat(sb, path, !flags.contains(OpenFlags::O_NOFOLLOW))?;
    if !dir.is_dir() {
        return Err(ENOTDIR);
    }
    check_rdonly(sb)?;
    File::open(vfs_tmpfile(&dir, mode, cred)?, flags)
}

/// Makes a regular file without a name. ENOENT for a directory that was removed; see [`ext4_tmpfile`]. Sleeps.
pub fn vfs_tmpfile(dir: &IRef, mode: u32, cred: &Cred) -> Result<IRef> {
    let _syscall = syscall("vfs_tmpfile");
    let _write = want_write(dir.i_sb())?;
    let dir = lock_dir(dir)?;
    may_create(&dir)?;
    ext4_tmpfile(dir.inode(), mode, cred.uid, cred.gid)
}

/// Whether a file without a name may be given one.
#[doc(alias = "I_LINKABLE")]
pub(super) fn is_linkable(file: &File) -> bool {
    file.f_flags().contains(OpenFlags::O_TMPFILE) && !file.f_flags().contains(OpenFlags::O_EXCL)
}
