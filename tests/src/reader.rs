// SPDX-License-Identifier: GPL-2.0-only
//! Reads a file system through ext4-dio's look-ups alone, without the VFS, so that a test sees which check struck.

use std::ops::ControlFlow;

use ext4_dio::corrupt::{Corrupt, Ext4Error, Ext4Result};
use ext4_dio::dir::{DiskNode, Node, ext4_readdir};
use ext4_dio::ext4::{EXT4_ROOT_INO, Ino, InodeFlags, Lblk};
use ext4_dio::extents::ext4_ext_lookup;
use ext4_dio::extents_status::{EsStatus, ExtentStatus};
use ext4_dio::iget::{Iget, ext4_read_inode};
use ext4_dio::indirect::ext4_ind_lookup;
use ext4_dio::namei::{ext4_readlink, path_lookup};
use ext4_dio::sb::{Ext4SbInfo, ext4_fill_super};
use kernel_shim::block::Bdev;
use kernel_shim::error::code::EFBIG;

/// A mount that writes nothing.
pub struct Reader {
    /// The file system.
    pub sb: Ext4SbInfo,
}

impl Reader {
    /// Mounts read-only.
    pub fn new(bdev: &Bdev) -> Ext4Result<Self> {
        Ok(Self { sb: ext4_fill_super(bdev.clone(), "ro")? })
    }

    /// An inode.
    pub fn iget(&self, ino: Ino) -> Ext4Result<DiskNode<'_>> {
        Ok(DiskNode { sb: &self.sb, disk: ext4_read_inode(&self.sb, ino, Iget::Normal)? })
    }

    /// The inode at a path; a symbolic link at its end is followed.
    pub fn lookup(&self, path: &str) -> Ext4Result<DiskNode<'_>> {
        path_lookup(&self.iget(EXT4_ROOT_INO)?, path.as_bytes(), true, &mut |ino| self.iget(ino))
    }

    /// The inode at a path; a symbolic link at its end is not followed.
    pub fn lookup_nofollow(&self, path: &str) -> Ext4Result<DiskNode<'_>> {
        path_lookup(&self.iget(EXT4_ROOT_INO)?, path.as_bytes(), false, &mut |ino| self.iget(ino))
    }

    /// The extent or hole with block `lblk` of a file.
    pub fn map(&self, node: &DiskNode<'_>, lblk: u32) -> Ext4Result<ExtentStatus> {
        let (ctx, tree) = (node.ctx(), node.disk.tree());
        if ctx.i_flags.contains(InodeFlags::EXTENTS) {
            ext4_ext_lookup(&ctx, &tree, Lblk(lblk))
        } else {
            ext4_ind_lookup(&ctx, &tree, Lblk(lblk))
        }
    }

    /// All extents of a file, holes left out.
    pub fn extents(&self, node: &DiskNode<'_>) -> Ext4Result<Vec<ExtentStatus>> {
        let mut extents = Vec::new();
        let mut lblk = 0;
        while lblk < u32::MAX {
            let es = self.map(node, lblk)?;
            assert!(es.contains(lblk), "the answer for block {lblk} is not about it: {es:?}");
            lblk = es.end();
            if es.status() != EsStatus::Hole {
                extents.push(es);
            }
        }
        Ok(extents)
    }

    /// The bytes of a file.
    pub fn read(&self, node: &DiskNode<'_>) -> Ext4Result<Vec<u8>> {
        let block_size = self.sb.s_blocksize as usize;
        let size = usize::try_from(node.disk.i_size).map_err(|_| EFBIG)?;
        let mut bytes = vec![0; size.next_multiple_of(block_size)];
        for es in self.extents(node)?.iter().filter(|es| es.status() == EsStatus::Written) {
            for block in 0..es.len() {
                let at = (es.lblk().0 + block) as usize * block_size;
                let Some(to) = bytes.get_mut(at..at + block_size) else { break };
                to.copy_from_slice(&self.sb.buffers.bread(es.pblk().0 + u64::from(block))?.read());
            }
        }
        bytes.truncate(size);
        Ok(bytes)
    }

    /// The entries of a directory: name, inode, type.
    pub fn readdir(&self, node: &DiskNode<'_>) -> Ext4Result<Vec<(Vec<u8>, Ino, u8)>> {
        let mut entries = Vec::new();
        ext4_readdir(node, |entry| {
            entries.push((entry.name.to_vec(), entry.inode, entry.file_type));
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    /// Reads all there is: every directory from the root on, every name looked up, every file's map, every link's target.
    /// The first error ends it. Returns how many names there were.
    ///
    /// Visits no directory twice, and no more names than `limit`, so that it ends on any image.
    pub fn walk(&self, limit: usize) -> Ext4Result<usize> {
        let mut names = 0;
        let mut seen = vec![EXT4_ROOT_INO];
        let mut stack = vec![self.iget(EXT4_ROOT_INO)?];
        while let Some(dir) = stack.pop() {
            for (name, ino, _) in self.readdir(&dir)? {
                if name == b"." || name == b".." {
                    continue;
                }
                names += 1;
                if names > limit {
                    return Ok(names);
                }
                let path = ext4_dio::namei::ext4_find_entry(&dir, &name)?;
                if path.is_none() {
                    return Err(Corrupt::DxBlock(dir.disk.i_ino).into());
                }
                let node = self.iget(ino)?;
                if node.is_lnk() {
                    ext4_readlink(&node)?;
                } else if node.is_dir() {
                    if !seen.contains(&ino) {
                        seen.push(ino);
                        stack.push(node);
                    }
                } else if node.disk.has_block_map() {
                    self.extents(&node)?;
                }
            }
        }
        Ok(names)
    }
}

/// The corruption in a result, or a panic with what it was instead.
#[track_caller]
pub fn corrupt<T>(result: Ext4Result<T>) -> Corrupt {
    match result {
        Err(Ext4Error::Corrupt(corrupt)) => corrupt,
        Err(other) => panic!("not a corruption: {other:?}"),
        Ok(_) => panic!("no error"),
    }
}
