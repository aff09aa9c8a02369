// SPDX-License-Identifier: GPL-2.0-only
//! Names: looking up, making, removing, renaming.

use ext4_dio::ext4::Ino;
use ext4_dio::namei::RenameFlags;
use ext4_dio::path::*;
use ext4_dio::symlink::ext4_readlink;
use ext4_dio::{File, ext4_iget};
use fuser::INodeNo;
use kernel_shim::alloc::{Arc as KArc, KVec};
use kernel_shim::error::code::{EEXIST, EINVAL, EPERM, ESTALE};
use kernel_shim::error::{Error, Result};
use kernel_shim::fs::OpenFlags;
use kernel_shim::fs::inode::{S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK};

use super::{Entry, Fs};
use crate::fs::data::open_flags;

impl Fs {
    /// `lookup`. `.` asks for an inode by number alone (a file handle that somebody kept), `..` for a directory's parent.
    pub fn lookup(&self, parent: INodeNo, name: &[u8]) -> Result<Entry> {
        if name == b"." {
            if let Ok(inode) = self.inode(parent) {
                return Ok(self.entry(&inode));
            }
            let ino = u32::try_from(parent.0).map_err(|_| ESTALE)?;
            return Ok(self.entry(&ext4_iget(&self.sb, Ino(ino))?));
        }
        Ok(self.entry(&vfs_lookup(&self.inode(parent)?, name)?))
    }

    /// `mknod`, and `creat` for who only makes.
    pub fn mknod(&self, parent: INodeNo, name: &[u8], mode: u32, rdev: u32, cred: &Cred) -> Result<Entry> {
        let dir = self.inode(parent)?;
        let inode = match mode & S_IFMT {
            0 | S_IFREG => vfs_create(&dir, name, mode & 0o7777, cred)?,
            S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK => vfs_mknod(&dir, name, mode, rdev, cred)?,
            _ => return Err(EPERM),
        };
        Ok(self.entry(&inode))
    }

    /// `mkdir`.
    pub fn mkdir(&self, parent: INodeNo, name: &[u8], mode: u32, cred: &Cred) -> Result<Entry> {
        Ok(self.entry(&vfs_mkdir(&self.inode(parent)?, name, mode & 0o1777, cred)?))
    }

    /// `symlink`.
    pub fn symlink(&self, parent: INodeNo, name: &[u8], target: &[u8], cred: &Cred) -> Result<Entry> {
        Ok(self.entry(&vfs_symlink(&self.inode(parent)?, name, target, cred)?))
    }

    /// `link`.
    pub fn link(&self, node: INodeNo, parent: INodeNo, name: &[u8]) -> Result<Entry> {
        let inode = self.inode(node)?;
        vfs_link(&inode, &self.inode(parent)?, name)?;
        Ok(self.entry(&inode))
    }

    /// `readlink`.
    pub fn readlink(&self, node: INodeNo) -> Result<KVec<u8>> {
        let inode = self.inode(node)?;
        if !inode.is_lnk() {
            return Err(EINVAL);
        }
        let target = ext4_readlink(&inode).map_err(Error::from)?;
        inode.file_accessed();
        Ok(target)
    }

    /// `unlink`.
    pub fn unlink(&self, parent: INodeNo, name: &[u8]) -> Result {
        vfs_unlink(&self.inode(parent)?, Qstr::from(name))
    }

    /// `rmdir`.
    pub fn rmdir(&self, parent: INodeNo, name: &[u8]) -> Result {
        vfs_rmdir(&self.inode(parent)?, name)
    }

    /// `renameat2`. EINVAL for what `ext4-dio` has not: whiteouts.
    pub fn rename(&self, old: (INodeNo, &[u8]), new: (INodeNo, &[u8]), flags: u32) -> Result {
        let flags = RenameFlags::from_bits(flags).ok_or(EINVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) || flags.contains(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE) {
            return Err(EINVAL);
        }
        let (old_dir, new_dir) = (self.inode(old.0)?, self.inode(new.0)?);
        vfs_rename((&old_dir, Qstr::from(old.1)), (&new_dir, Qstr::from(new.1)), flags)
    }

    /// `open` with `O_CREAT`, of a name that the kernel has not found: makes the file, and opens it, whatever its new mode would allow.
    pub fn create(
        &self,
        parent: INodeNo,
        name: &[u8],
        mode: u32,
        flags: i32,
        cred: &Cred,
    ) -> Result<(Entry, KArc<File>)> {
        let dir = self.inode(parent)?;
        let inode = match vfs_create(&dir, name, mode & 0o7777, cred) {
            // Somebody else was faster, and that is all right without O_EXCL.
            Err(EEXIST) if flags & libc::O_EXCL == 0 => vfs_lookup(&dir, name)?,
            made => made?,
        };
        let file = File::open(inode, open_flags(flags).difference(OpenFlags::O_DIRECTORY))?;
        Ok((self.entry(file.f_inode()), file))
    }
}
