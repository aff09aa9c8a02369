// SPDX-License-Identifier: GPL-2.0-only
//! `mballoc.c`: the multi-block allocator.

use kernel_shim::error::{Result, code::EOPNOTSUPP};

use crate::Inode;
use crate::ext4::{Fsblk, Lblk};
use crate::ext4_jbd2::Handle;
use crate::jbd2::Freed;
use crate::sb::Ext4SbInfo;

bitflags::bitflags! {
    /// What an allocation is for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct MbFlags: u32 {
        /// File data; else metadata.
        #[doc(alias = "EXT4_MB_HINT_DATA")]
        const DATA = 0x0020;
        /// No more than asked for: no preallocation.
        #[doc(alias = "EXT4_MB_HINT_NOPREALLOC")]
        const NOPREALLOC = 0x0040;
        /// May take what is reserved for the super-user.
        #[doc(alias = "EXT4_MB_USE_RESERVED")]
        const USE_RESERVED = 0x2000;
    }

    /// What is freed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FreeFlags: u32 {
        /// The blocks were metadata: they are forgotten and revoked.
        #[doc(alias = "EXT4_FREE_BLOCKS_METADATA")]
        const METADATA = 0x0001;
        /// They were never in use: they may be taken again at once.
        const UNUSED = 0x0100;
    }
}

/// A question to [`ext4_mb_new_blocks`].
#[doc(alias = "ext4_allocation_request")]
pub struct AllocationRequest<'a> {
    /// Whose the blocks will be.
    pub inode: &'a Inode,
    /// Where they should best be; 0 for no opinion.
    pub goal: Fsblk,
    /// Which block of the file the first will be.
    pub logical: Lblk,
    /// How many are wanted; fewer may be given.
    pub len: u32,
    /// What for.
    pub flags: MbFlags,
}

/// Allocates up to `len` blocks, at least one, in one piece: marks them in bitmap, descriptor and super block, and counts them in
/// the inode's `i_blocks` (which the caller writes with the inode). They hold whatever was there.
///
/// ENOSPC, EIO, EFSCORRUPTED. Needs credits for a bitmap and a descriptor block. Takes group locks; sleeps.
pub fn ext4_mb_new_blocks(handle: &mut Handle<'_>, ar: &AllocationRequest<'_>) -> Result<(Fsblk, u32)> {
    let _ = (handle, ar);
    Err(EOPNOTSUPP)
}

/// Frees blocks of `inode` and takes them off its `i_blocks`. They may be used again when the transaction is committed. Needs
/// credits for a bitmap and a descriptor block per group, and for metadata one for each block's revoke record. Sleeps.
pub fn ext4_free_blocks(handle: &mut Handle<'_>, inode: &Inode, block: Fsblk, count: u32, flags: FreeFlags) -> Result {
    let _ = (handle, inode, block, count, flags);
    Err(EOPNOTSUPP)
}

/// Gives back what is preallocated for an inode. Starts no handle. Sleeps.
pub fn ext4_discard_preallocations(inode: &Inode) {
    let _ = inode;
}

/// What the allocator keeps of an inode: its preallocations.
#[derive(Default)]
pub struct InodePrealloc {}

/// What the allocator keeps of a mount: groups' buddies, locality preallocations, counters.
#[derive(Default)]
pub struct MbInfo {}

impl Ext4SbInfo {
    /// Called when the transaction that freed them is committed: the blocks may be used again.
    pub fn ext4_process_freed_data(&self, freed: &[Freed]) {
        let _ = freed;
    }
}
