// SPDX-License-Identifier: GPL-2.0-only
//! What FUSE's requests do, by kind. Each answers with a value or one of our errors; [`crate::server`] puts that into a reply.

pub mod attrs;
pub mod data;
pub mod dirs;
pub mod names;
pub mod xattrs;

use std::sync::OnceLock;

use ext4_dio::{IRef, SuperBlock, ext4_umount};
use fuser::{FileAttr, Generation, INodeNo, InitFlags, Request};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::Result;

use crate::attr::{attr_of, generation};
use crate::gate::Gate;
use crate::handles::Handles;
use crate::nodes::{Nodes, node_id};
use crate::options::PageCache;

/// A mounted file system, and what the kernel has of it.
pub struct Fs {
    /// The mount.
    pub sb: KArc<SuperBlock>,
    /// Inodes that the kernel knows.
    pub nodes: Nodes,
    /// Files that it has open.
    pub handles: Handles,
    /// All requests.
    pub requests: Gate,
    /// Direct writes.
    pub direct_writes: Gate,
    /// Direct reads.
    pub direct_reads: Gate,
    /// Whose page cache was asked for.
    wanted: PageCache,
    /// Whether it is ours.
    ours: OnceLock<bool>,
}

impl Fs {
    /// Serves `sb`.
    pub fn new(sb: KArc<SuperBlock>, wanted: PageCache) -> Result<Self> {
        Ok(Self {
            nodes: Nodes::new(&sb)?,
            sb,
            handles: Handles::default(),
            requests: Gate::default(),
            direct_writes: Gate::default(),
            direct_reads: Gate::default(),
            wanted,
            ours: OnceLock::new(),
        })
    }

    /// The kernel has told what it can. Whether the page cache is ours.
    pub fn agree(&self, capabilities: InitFlags) -> bool {
        let can = capabilities.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        let ours = match self.wanted {
            PageCache::Auto => can,
            PageCache::Ours => true,
            PageCache::Kernel => false,
        };
        *self.ours.get_or_init(|| ours)
    }

    /// Whether pages of files that are open without `O_DIRECT` are cached here, and not by the kernel.
    pub fn caches_pages(&self) -> bool {
        self.ours.get().copied().unwrap_or(false)
    }

    /// An inode to tell the kernel of: counted.
    pub fn entry(&self, inode: &IRef) -> Entry {
        self.nodes.remember(inode);
        let mut attr = attr_of(inode);
        attr.ino = node_id(inode.i_ino());
        Entry { attr, generation: generation(inode) }
    }

    /// The end: waits for what is under way, closes all, unmounts. The first error; the disk is as good as it gets then.
    pub fn close(&self) -> Result {
        self.requests.shut();
        self.handles.close_all();
        self.nodes.forget_all();
        ext4_umount(&self.sb)
    }

    /// The inode of a request.
    pub fn inode(&self, node: INodeNo) -> Result<IRef> {
        self.nodes.get(node)
    }
}

/// What the kernel is told of an inode that it has found.
pub struct Entry {
    /// Its attributes; the number is FUSE's.
    pub attr: FileAttr,
    /// Its generation.
    pub generation: Generation,
}

/// Who makes a file; the kernel has taken its umask off the mode.
pub fn cred(req: &Request) -> ext4_dio::path::Cred {
    ext4_dio::path::Cred { uid: req.uid(), gid: req.gid(), umask: 0 }
}
