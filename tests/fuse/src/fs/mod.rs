// SPDX-License-Identifier: GPL-2.0-only
//! What FUSE's requests do, by kind. Each answers with a value or one of our errors; [`crate::server`] puts that into a reply.

pub mod attrs;
pub mod data;
pub mod dirs;
pub mod names;
pub mod xattrs;

use std::sync::OnceLock;

use ext4_dio::{IRef, SuperBlock, ext4_umount};
use fuser::{FileAttr, FopenFlags, Generation, INodeNo, InitFlags, Request};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::Result;

use crate::attr::{attr_of, generation};
use crate::gate::Gate;
use crate::handles::Handles;
use crate::nodes::{Nodes, node_id};
use crate::options::PageCache;

/// What was settled with the kernel.
struct Agreed {
    /// Whether pages of files that are open without `O_DIRECT` are cached here, and not there.
    ours: bool,
    /// The kernel keeps pages that it caches coherent with `FOPEN_DIRECT_IO`.
    coherent: bool,
}

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
    /// Writes of mapped pages by the kernel.
    pub written_back: Gate,
    /// Whose page cache was asked for.
    wanted: PageCache,
    /// What the kernel can.
    agreed: OnceLock<Agreed>,
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
            written_back: Gate::default(),
            wanted,
            agreed: OnceLock::new(),
        })
    }

    /// The kernel has told what it can.
    pub fn agree(&self, capabilities: InitFlags) {
        let coherent = capabilities.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        let ours = match self.wanted {
            PageCache::Auto => coherent,
            PageCache::Ours => true,
            PageCache::Kernel => false,
        };
        self.agreed.get_or_init(|| Agreed { ours, coherent });
    }

    /// How the kernel is to treat a file that is opened with `flags`: see the head of the crate.
    pub fn fopen_flags(&self, flags: i32) -> FopenFlags {
        // Pages that are there are good: the kernel has dropped them where they were not.
        let how = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        let past =
            self.agreed.get().is_some_and(|agreed| agreed.ours || agreed.coherent && flags & libc::O_DIRECT != 0);
        if past { how | FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES } else { how }
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

/// Whether what this thread does next is for somebody who may give set-user-ID to a file, and so may keep it when he changes one.
pub fn keeps_suid(may: bool) {
    kernel_shim::sched::current().set_cap_fsetid(may);
}

/// Who makes a file; the kernel has taken its umask off the mode.
pub fn cred(req: &Request) -> ext4_dio::path::Cred {
    ext4_dio::path::Cred { uid: req.uid(), gid: req.gid(), umask: 0 }
}
