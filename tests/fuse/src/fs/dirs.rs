// SPDX-License-Identifier: GPL-2.0-only
//! Reading directories. A position is that of [`vfs_readdir`]: it stays good when other names come and go, so nothing is kept between
//! two calls.

use ext4_dio::path::{Dirent, vfs_lookup, vfs_readdir};
use fuser::{FileType, INodeNo};
use kernel_shim::alloc::KVec;
use kernel_shim::error::{Result, code::ENOENT};

use super::{Entry, Fs};
use crate::attr::{attr_of, entry_type};

/// Entries that are read at a time.
const BATCH: usize = 128;

/// An entry to tell the kernel of.
pub struct Name<'a> {
    /// Inode number.
    pub ino: INodeNo,
    /// The position behind it.
    pub next: u64,
    /// The inode's type.
    pub kind: FileType,
    /// The name.
    pub name: &'a [u8],
}

impl Fs {
    /// `readdir`: calls `add` with entries from position `pos` on, until there is no room for more.
    pub fn readdir(&self, node: INodeNo, pos: u64, mut add: impl FnMut(Name<'_>) -> bool) -> Result {
        self.for_each(node, pos, |entry| {
            let kind = self.kind(node, entry);
            Ok(add(Name { ino: INodeNo(entry.d_ino), next: entry.d_off, kind, name: &entry.name }))
        })
    }

    /// `readdir` and `lookup` in one: `add` gets an inode's attributes with its name, and says whether there was room. What there was
    /// no room for the kernel has not heard of.
    pub fn readdirplus(&self, node: INodeNo, pos: u64, mut add: impl FnMut(Name<'_>, Entry) -> bool) -> Result {
        let dir = self.inode(node)?;
        self.for_each(node, pos, |entry| {
            let name: &[u8] = &entry.name;
            let dot = name == b"." || name == b"..";
            // By the name, with the directory locked: the number alone may be another file's by now.
            let inode = match vfs_lookup(&dir, name) {
                Ok(inode) => inode,
                // Removed since it was read.
                Err(ENOENT) => return Ok(false),
                Err(error) => return Err(error),
            };
            let kind = crate::attr::file_type(inode.i_mode());
            let told = |ino| Name { ino, next: entry.d_off, kind, name };
            if dot {
                // The kernel does not look them up by this, and so does not count them.
                let attr = attr_of(&inode);
                return Ok(add(told(attr.ino), Entry { attr, generation: crate::attr::generation(&inode) }));
            }
            let known = self.entry(&inode);
            let ino = known.attr.ino;
            let full = add(told(ino), known);
            if full {
                self.nodes.forget(ino, 1);
            }
            Ok(full)
        })
    }

    /// Calls `f` with the entries from `pos` on, until it is true.
    fn for_each(&self, node: INodeNo, mut pos: u64, mut f: impl FnMut(&Dirent) -> Result<bool>) -> Result {
        let dir = self.inode(node)?;
        loop {
            let mut list = KVec::new();
            vfs_readdir(&dir, &mut pos, BATCH, &mut list)?;
            for entry in list.iter() {
                if f(entry)? {
                    return Ok(());
                }
            }
            if list.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// An entry's type, which old file systems do not have in directories.
    fn kind(&self, node: INodeNo, entry: &Dirent) -> FileType {
        entry_type(entry.file_type).unwrap_or_else(|| {
            let inode = self.inode(node).and_then(|dir| vfs_lookup(&dir, &entry.name));
            inode.map_or(FileType::RegularFile, |inode| crate::attr::file_type(inode.i_mode()))
        })
    }
}
