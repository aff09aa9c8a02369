// SPDX-License-Identifier: GPL-2.0-only
//! Attributes, and the file system's.

use ext4_dio::path::attr::vfs_setattr;
use ext4_dio::setattr::{AttrValid, Iattr};
use ext4_dio::{Ext4Statfs, ext4_statfs};
use fuser::{FileAttr, INodeNo, TimeOrNow};
use kernel_shim::error::{Result, code::EFBIG};

use super::{Fs, keeps_suid};
use crate::attr::{attr_of, specific};

/// What `setattr` is to set. The time of the last change of the inode is always now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permissions; the type in it is not looked at.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<TimeOrNow>,
    /// Last change of the contents.
    pub mtime: Option<TimeOrNow>,
}

impl Changes {
    fn iattr(&self) -> Result<Iattr> {
        let mut attr = Iattr { ia_valid: AttrValid::CTIME, ..Iattr::default() };
        if let Some(mode) = self.mode {
            attr.ia_valid |= AttrValid::MODE;
            attr.ia_mode = mode & 0o7777;
        }
        if let Some(uid) = self.uid {
            attr.ia_valid |= AttrValid::UID;
            attr.ia_uid = uid;
        }
        if let Some(gid) = self.gid {
            attr.ia_valid |= AttrValid::GID;
            attr.ia_gid = gid;
        }
        if let Some(size) = self.size {
            attr.ia_valid |= AttrValid::SIZE;
            attr.ia_size = i64::try_from(size).map_err(|_| EFBIG)?;
        }
        if let Some(time) = self.atime {
            attr.ia_valid |= AttrValid::ATIME;
            if let Some(time) = specific(time) {
                attr.ia_valid |= AttrValid::ATIME_SET;
                attr.ia_atime = time;
            }
        }
        if let Some(time) = self.mtime {
            attr.ia_valid |= AttrValid::MTIME;
            if let Some(time) = specific(time) {
                attr.ia_valid |= AttrValid::MTIME_SET;
                attr.ia_mtime = time;
            }
        }
        Ok(attr)
    }
}

impl Fs {
    /// `stat`.
    pub fn getattr(&self, node: INodeNo) -> Result<FileAttr> {
        Ok(attr_of(&self.inode(node)?))
    }

    /// `chmod`, `chown`, `utimensat`, `truncate`, and those that have an open file for it: whether it may be written the kernel knows.
    pub fn setattr(&self, uid: u32, node: INodeNo, changes: &Changes) -> Result<FileAttr> {
        // FUSE has a flag for it here, which fuser does not hand on.
        keeps_suid(uid == 0);
        let inode = self.inode(node)?;
        vfs_setattr(&inode, &changes.iattr()?)?;
        Ok(attr_of(&inode))
    }

    /// `statfs`.
    pub fn statfs(&self) -> Result<Ext4Statfs> {
        ext4_statfs(&self.sb)
    }
}
