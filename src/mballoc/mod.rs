// SPDX-License-Identifier: GPL-2.0-only
//! `mballoc.c`: the multi-block allocator.
//!
//! # How a block comes into use
//!
//! ```text
//! ext4_mb_new_blocks     promise: that many are free somewhere (counts)
//!  ├ prealloc.rs          blocks that were taken ahead for this; or how many to take ahead now
//!  ├ search.rs            find a run, goal first, and take it from the group's buddy: nobody else gets it
//!  └ mark_diskspace_used  bitmap, checksum, descriptor, under the group's lock and the caller's handle
//! ext4_free_blocks       bitmap, checksum, descriptor at once; the buddy when the transaction is committed, since
//!                        until then a crash brings the old owner back, and would find the new one's data
//! ```
//!
//! # Locks
//!
//! handle → `i_data_sem` → group lock (`group`) → a buffer's lock. Of group locks a task has one at a time, and
//! write access to buffers is asked for before, because that may wait for the journal.

mod buddy;
mod discard;
mod group;
mod prealloc;
mod search;

use core::sync::atomic::{AtomicU32, Ordering};

use kernel_shim::alloc::KVec;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EFSCORRUPTED, EINVAL, ENOSPC};
use kernel_shim::fs::buffer::BufferHead;

use crate::Inode;
use crate::bitmap::{clear_bits, count_clear, next_clear, next_set, set_bits};
use crate::corrupt::{Corrupt, Ext4Error, Ext4Result};
use crate::disk::SuperBlockView;
use crate::ext4::{BgFlags, Fsblk, Group, Ino, Lblk};
use crate::ext4_jbd2::Handle;
use crate::iget::ino_of;
use crate::jbd2::Freed;
use crate::sb::Ext4SbInfo;

pub use group::GroupFlags;
pub(crate) use group::{Counts, GroupInfo};
use prealloc::Preallocs;
pub use prealloc::ext4_discard_preallocations;

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
        /// May take what is kept back for extent tree blocks that are needed to make written data visible, which must
        /// not fail: of each file system 2 %, 4096 blocks at most.
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

/// Blocks of one group, counted within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "ext4_free_extent")]
pub(crate) struct Run {
    pub(crate) group: Group,
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// What the allocators keep of an inode: of a directory, where its last inode went. Its preallocations are kept with those of
/// all others, which have to be found when space runs out.
#[derive(Default)]
pub struct InodePrealloc {
    /// The group and 1, or 0.
    i_last_alloc_group: AtomicU32,
}

impl InodePrealloc {
    /// The group that the last inode made in this directory went to.
    #[doc(alias = "i_last_alloc_group")]
    pub(crate) fn last_alloc_group(&self) -> Option<Group> {
        self.i_last_alloc_group.load(Ordering::Relaxed).checked_sub(1).map(Group)
    }

    /// See [`Self::last_alloc_group`].
    pub(crate) fn set_last_alloc_group(&self, group: Group) {
        self.i_last_alloc_group.store(group.0.saturating_add(1), Ordering::Relaxed);
    }
}

/// What the allocator keeps of a mount: groups' buddies, locality preallocations, counters.
pub struct MbInfo {
    pub(crate) groups: KVec<GroupInfo>,
    pub(crate) counts: Counts,
    preallocs: Preallocs,
}

/// Allocates up to `len` blocks, at least one, in one piece: marks them in bitmap, descriptor and super block, and counts them in
/// the inode's `i_blocks` (which the caller writes with the inode). They hold whatever was there.
///
/// ENOSPC, EIO, EFSCORRUPTED, and EFSBADCRC if the only free blocks are in groups that are damaged. Needs credits for a bitmap and a
/// descriptor block. Takes group locks; sleeps. After ENOSPC see [`Ext4SbInfo::ext4_should_retry_alloc`].
pub fn ext4_mb_new_blocks(handle: &mut Handle<'_>, ar: &AllocationRequest<'_>) -> Result<(Fsblk, u32)> {
    let sb = handle.sb();
    if ar.len == 0 {
        return Err(EINVAL);
    }
    let claimed = sb.mb.counts.claim(ar.len.min(sb.s_blocks_per_group), ar.flags)?;
    let got = new_blocks(handle, ar, claimed);
    sb.mb.counts.settle(claimed, got.map_or(0, |run| run.len));
    let run = got.map_err(|error| sb.ext4_error(error))?;
    ar.inode.i_private().i_blocks.fetch_add(sb.sectors(run.len), Ordering::AcqRel);
    Ok((sb.run_start(run), run.len))
}

/// [`ext4_mb_new_blocks`] for up to `len` blocks that are promised.
fn new_blocks(handle: &mut Handle<'_>, ar: &AllocationRequest<'_>, len: u32) -> Ext4Result<Run> {
    let sb = handle.sb();
    let groups = if ar.inode.i_private().is_extents() { sb.s_groups_count } else { sb.s_blockfile_groups() };
    // What is found is taken from the buddy and may still turn out to be bad on disk: then the group is out of service.
    for _ in 0..3 {
        let run = match sb.ext4_mb_use_preallocated(ar, len, groups) {
            Some(run) => run,
            None => find_blocks(sb, ar, len, groups)?,
        };
        match mark_diskspace_used(handle, run) {
            Ok(()) => return Ok(run),
            Err(Ext4Error::Corrupt(corrupt)) => drop(sb.ext4_error(corrupt.into())),
            Err(error) => return Err(error),
        }
    }
    Err(EFSCORRUPTED.into())
}

/// Finds up to `len` blocks, and takes them and what is preallocated behind them from the buddy.
fn find_blocks(sb: &Ext4SbInfo, ar: &AllocationRequest<'_>, len: u32, groups: u32) -> Ext4Result<Run> {
    let (mut want, ahead) = sb.ext4_mb_normalize_request(ar, len);
    // Others may preallocate again what is given back here, but not for long: see the end of normalising.
    for _ in 0..8 {
        let found = sb.ext4_mb_regular_allocator(ar.goal, want, groups);
        if let Ok(Some(run)) = found {
            return Ok(sb.keep_rest(ar, run, len, ahead));
        }
        want = len;
        if !sb.discard_all_preallocations() {
            found?;
            break;
        }
    }
    Err(ENOSPC.into())
}

/// The block bitmap and the descriptor's block of a group, which are going to be changed.
fn group_write_access<'s>(handle: &mut Handle<'s>, group: Group) -> Ext4Result<(BufferHead, &'s BufferHead)> {
    let sb = handle.sb();
    let bitmap = sb.ext4_read_block_bitmap(group)?;
    let desc_bh = sb.group_desc_bh(group)?;
    handle.get_write_access(&bitmap)?;
    handle.get_write_access(desc_bh)?;
    Ok((bitmap, desc_bh))
}

/// Marks blocks that were taken from the buddy on disk.
#[doc(alias = "ext4_mb_mark_diskspace_used")]
fn mark_diskspace_used(handle: &mut Handle<'_>, run: Run) -> Ext4Result {
    let sb = handle.sb();
    // Up to here nothing has happened on disk, and later there is no way back.
    let (bitmap, desc_bh) = group_write_access(handle, run.group).inspect_err(|_| sb.give_back(run))?;
    let corrected = {
        let _group = sb.ext4_lock_group(run.group)?;
        let mut map = bitmap.write();
        let end = run.start + run.len;
        let metadata = sb.system_zone.overlaps(Ino(0), sb.run_start(run), u64::from(run.len));
        if metadata || next_set(&map, run.start, end) != end {
            None
        } else {
            // Of a group that was never used the bitmap knows better, and there is no checksum yet.
            let unused =
                sb.has_group_desc_csum() && sb.ext4_get_group_desc(run.group)?.flags.contains(BgFlags::BLOCK_UNINIT);
            let first = unused.then(|| (count_clear(&map, sb.blocks_in_group(run.group)), sb.block_bitmap_csum(&map)));
            set_bits(&mut map, run.start, run.len);
            drop(map);
            let mut correction = 0;
            sb.change_group_desc(run.group, |desc| {
                if let Some((free, csum)) = first {
                    desc.flags.remove(BgFlags::BLOCK_UNINIT);
                    correction = i64::from(free) - i64::from(desc.free_clusters);
                    (desc.free_clusters, desc.block_bitmap_csum) = (free, csum);
                }
                desc.free_clusters = desc.free_clusters.saturating_sub(run.len);
                desc.block_bitmap_csum ^= sb.block_bitmap_csum_change(run.start, run.len);
            })?;
            Some(correction)
        }
    };
    let Some(correction) = corrected else {
        sb.ext4_mark_group_bitmap_corrupted(run.group, GroupFlags::BBITMAP_CORRUPT);
        return Err(Corrupt::BlockBitmapDoubleAlloc(run.group).into());
    };
    if correction != 0 {
        sb.mb.counts.add_free(correction);
    }
    handle.dirty_metadata(&bitmap)?;
    Ok(handle.dirty_metadata(desc_bh)?)
}

/// Frees blocks of `inode` and takes them off its `i_blocks`. They may be used again when the transaction is committed. Needs
/// credits for a bitmap and a descriptor block per group, and for metadata one for each block's revoke record. Sleeps.
///
/// EFSCORRUPTED for blocks that are metadata of the file system, or free already, and then none of them of that group is freed; EIO.
pub fn ext4_free_blocks(handle: &mut Handle<'_>, inode: &Inode, block: Fsblk, count: u32, flags: FreeFlags) -> Result {
    let sb = handle.sb();
    free_blocks(handle, inode, block, count, flags).map_err(|error| sb.ext4_error(error))
}

fn free_blocks(handle: &mut Handle<'_>, inode: &Inode, block: Fsblk, count: u32, flags: FreeFlags) -> Ext4Result {
    let sb = handle.sb();
    if count == 0 {
        return Ok(());
    }
    let end = block.0.checked_add(u64::from(count)).filter(|end| *end <= sb.s_blocks_count);
    let Some(end) = end.filter(|_| !sb.system_zone.overlaps(Ino(0), block, u64::from(count))) else {
        return Err(Corrupt::FreeSystemZone(ino_of(inode)).into());
    };
    let mut at = block.0;
    while at < end {
        let Some((group, start)) = sb.ext4_get_group_no_and_offset(Fsblk(at)) else {
            return Err(Corrupt::FreeSystemZone(ino_of(inode)).into());
        };
        let len = u64::from(sb.s_blocks_per_group - start).min(end - at) as u32;
        if flags.contains(FreeFlags::METADATA) {
            for block in at..at + u64::from(len) {
                handle.forget(Fsblk(block))?;
            }
        }
        free_run(handle, Run { group, start, len }, flags)?;
        inode.i_private().i_blocks.fetch_sub(sb.sectors(len), Ordering::AcqRel);
        at += u64::from(len);
    }
    Ok(())
}

/// Frees blocks of one group.
#[doc(alias = "ext4_mb_clear_bb")]
fn free_run(handle: &mut Handle<'_>, run: Run, flags: FreeFlags) -> Ext4Result {
    let sb = handle.sb();
    let (bitmap, desc_bh) = group_write_access(handle, run.group)?;
    let unused = flags.contains(FreeFlags::UNUSED);
    let freed = {
        // With a buddy that still has them in use, so that they are not given out before the commit.
        let mut group = sb.ext4_lock_group(run.group)?;
        let mut map = bitmap.write();
        let end = run.start + run.len;
        if next_clear(&map, run.start, end) != end || !group.buddy()?.is_all_used(run.start, run.len) {
            false
        } else {
            clear_bits(&mut map, run.start, run.len);
            drop(map);
            sb.change_group_desc(run.group, |desc| {
                desc.free_clusters = desc.free_clusters.saturating_add(run.len);
                desc.block_bitmap_csum ^= sb.block_bitmap_csum_change(run.start, run.len);
            })?;
            if unused {
                group.buddy()?.free_blocks(run.start, run.len);
            }
            true
        }
    };
    if !freed {
        sb.ext4_mark_group_bitmap_corrupted(run.group, GroupFlags::BBITMAP_CORRUPT);
        return Err(Corrupt::BlockBitmapDoubleFree(run.group).into());
    }
    sb.mb.counts.add_free(i64::from(run.len));
    handle.dirty_metadata(&bitmap)?;
    handle.dirty_metadata(desc_bh)?;
    if !unused {
        sb.mb.counts.s_mb_free_pending.fetch_add(u64::from(run.len), Ordering::AcqRel);
        handle.add_freed(Freed { group: run.group, start: run.start, count: run.len })?;
    }
    Ok(())
}

impl Ext4SbInfo {
    /// Called when the transaction that freed them is committed: the blocks may be used again.
    pub fn ext4_process_freed_data(&self, freed: &[Freed]) {
        if self.options().discard {
            self.discard_freed(freed);
        }
        for Freed { group, start, count } in freed {
            self.give_back(Run { group: *group, start: *start, len: *count });
            self.mb.counts.s_mb_free_pending.fetch_sub(u64::from(*count), Ordering::AcqRel);
        }
    }

    /// Blocks that are in use for the buddy alone can be had again. Nothing for a group that is out of service.
    fn give_back(&self, run: Run) {
        let Ok(mut group) = self.ext4_lock_group(run.group) else { return };
        if let Ok(buddy) = group.buddy()
            && buddy.is_all_used(run.start, run.len)
        {
            buddy.free_blocks(run.start, run.len);
        }
    }

    /// Blocks in units of 512 bytes.
    fn sectors(&self, blocks: u32) -> u64 {
        u64::from(blocks) << (self.s_blocksize_bits - 9)
    }

    /// Writes the free counts into the super block.
    #[doc(alias = "ext4_update_super")]
    pub(crate) fn ext4_update_super_counts(&self, sb: &mut SuperBlockView<&mut [u8; 1024]>) {
        let free = self.free_clusters();
        sb.set_s_free_blocks_count_lo(free as u32);
        if self.s_incompat.contains(crate::ext4::Incompat::BIT64) {
            sb.set_s_free_blocks_count_hi((free >> 32) as u32);
        }
        sb.set_s_free_inodes_count(self.free_inodes() as u32);
    }
}
