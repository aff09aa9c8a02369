// SPDX-License-Identifier: GPL-2.0-only
//! The inodes that the kernel knows.
//!
//! FUSE's number of an inode is ext4's; only the root is 1 there and 2 here. An inode is held as long as the kernel may ask
//! for it: each answer that tells of it counts, and `forget` gives counts back. So the number of a deleted file that is open
//! still is nobody else's, and its blocks go with the last count.

use ext4_dio::ext4::EXT4_ROOT_INO;
use ext4_dio::{IRef, SuperBlock, ext4_iget};
use fuser::INodeNo;
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::{Result, code::ESTALE};

use crate::sharded::Sharded;

/// See the head of this file.
pub struct Nodes {
    known: Sharded<Known>,
}

struct Known {
    inode: IRef,
    nlookup: u64,
}

/// FUSE's number for an inode of ours.
pub fn node_id(ino: u64) -> INodeNo {
    if ino == u64::from(EXT4_ROOT_INO.0) { INodeNo::ROOT } else { INodeNo(ino) }
}

impl Nodes {
    /// Of a fresh mount: the root alone.
    pub fn new(sb: &KArc<SuperBlock>) -> Result<Self> {
        let known = Sharded::default();
        let root = Known { inode: ext4_iget(sb, EXT4_ROOT_INO)?, nlookup: 1 };
        known.shard(INodeNo::ROOT.0).insert(INodeNo::ROOT.0, root);
        Ok(Self { known })
    }

    /// The inode that the kernel calls `node`. ESTALE if it has never heard of it.
    pub fn get(&self, node: INodeNo) -> Result<IRef> {
        self.known.shard(node.0).get(&node.0).map(|known| known.inode.clone()).ok_or(ESTALE)
    }

    /// The kernel is about to be told of `inode`.
    pub fn remember(&self, inode: &IRef) {
        let node = node_id(inode.i_ino());
        if node == INodeNo::ROOT {
            return;
        }
        let mut shard = self.known.shard(node.0);
        let known = shard.entry(node.0).or_insert_with(|| Known { inode: inode.clone(), nlookup: 0 });
        known.nlookup += 1;
    }

    /// The kernel has forgotten `n` of the times that it was told of `node`.
    pub fn forget(&self, node: INodeNo, n: u64) {
        // The root is not counted.
        if node == INodeNo::ROOT {
            return;
        }
        // The last reference may free blocks: not under the lock.
        let _gone = {
            let mut shard = self.known.shard(node.0);
            match shard.get_mut(&node.0) {
                Some(known) if known.nlookup > n => {
                    known.nlookup -= n;
                    None
                }
                Some(_) => shard.remove(&node.0),
                None => None,
            }
        };
    }

    /// The kernel is gone, and with it all that it knew.
    pub fn forget_all(&self) {
        drop(self.known.drain());
    }
}
