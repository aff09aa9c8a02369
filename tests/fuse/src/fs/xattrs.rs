// SPDX-License-Identifier: GPL-2.0-only
//! Extended attributes. Access control lists are kept on the disk and not used, so the kernel is told that there are none.

use ext4_dio::xattr::{XattrSet, ext4_getxattr, ext4_listxattr, ext4_removexattr, ext4_setxattr};
use fuser::INodeNo;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EEXIST, EINVAL, ERANGE};

use super::Fs;

/// What the kernel takes at most, of a value or a list of names.
const MOST: usize = 65536;

/// Two flags that rule each other out.
const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;

/// How long a value is, or the value.
pub enum Answer {
    /// Nothing but the length was asked for.
    Length(u32),
    /// All of it.
    Bytes(Vec<u8>),
}

impl Fs {
    /// `getxattr`. ERANGE for a value longer than `size`, if that is not 0.
    pub fn getxattr(&self, node: INodeNo, name: &[u8], size: u32) -> Result<Answer> {
        let inode = self.inode(node)?;
        answer(size, |buffer| ext4_getxattr(&inode, name, buffer))
    }

    /// `listxattr`. Names that only root may know are told to root alone.
    pub fn listxattr(&self, node: INodeNo, size: u32, root: bool) -> Result<Answer> {
        let inode = self.inode(node)?;
        let mut all = vec![0; MOST];
        let n = ext4_listxattr(&inode, &mut all)?;
        all.truncate(n);
        if !root {
            let names = all.split_inclusive(|byte| *byte == 0).filter(|name| !name.starts_with(b"trusted."));
            all = names.flatten().copied().collect();
        }
        match size as usize {
            0 => Ok(Answer::Length(all.len() as u32)),
            size if all.len() > size => Err(ERANGE),
            _ => Ok(Answer::Bytes(all)),
        }
    }

    /// `setxattr`.
    pub fn setxattr(&self, node: INodeNo, name: &[u8], value: &[u8], flags: i32) -> Result {
        let how = match flags {
            0 => XattrSet::Any,
            libc::XATTR_CREATE => XattrSet::Create,
            libc::XATTR_REPLACE => XattrSet::Replace,
            BOTH => {
                // It must be there, and must not: one of the two is wrong.
                let inode = self.inode(node)?;
                return Err(ext4_getxattr(&inode, name, &mut []).err().unwrap_or(EEXIST));
            }
            _ => return Err(EINVAL),
        };
        let inode = self.inode(node)?;
        ext4_setxattr(&inode, name, value, how)
    }

    /// `removexattr`.
    pub fn removexattr(&self, node: INodeNo, name: &[u8]) -> Result {
        let inode = self.inode(node)?;
        ext4_removexattr(&inode, name)
    }
}

fn answer(size: u32, get: impl FnOnce(&mut [u8]) -> Result<usize>) -> Result<Answer> {
    let mut buffer = vec![0; (size as usize).min(MOST)];
    let n = get(&mut buffer)?;
    if size == 0 {
        return Ok(Answer::Length(u32::try_from(n).map_err(|_| ERANGE)?));
    }
    buffer.truncate(n);
    Ok(Answer::Bytes(buffer))
}
