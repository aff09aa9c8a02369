// SPDX-License-Identifier: GPL-2.0-only
//! What the allocator knows of each group, and the free counts of the whole.
//!
//! A group's buddy is made when it is first asked for, and differs from the bitmap on disk in what is free there but cannot be
//! had: preallocated blocks, and blocks whose freeing is not committed yet.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EFSCORRUPTED, EIO, ENOSPC};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::sync::{Mutex, MutexGuard};

use super::buddy::Buddy;
use super::{MbFlags, MbInfo};
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::{BgFlags, Group, Incompat};
use crate::sb::{Ext4SbInfo, Geometry};

bitflags::bitflags! {
    /// What is wrong with a group: C's `EXT4_GROUP_INFO_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GroupFlags: u32 {
        /// Its blocks are neither given out nor freed.
        #[doc(alias = "EXT4_GROUP_INFO_BBITMAP_CORRUPT")]
        const BBITMAP_CORRUPT = 1 << 2;
        /// The same for its inodes.
        #[doc(alias = "EXT4_GROUP_INFO_IBITMAP_CORRUPT")]
        const IBITMAP_CORRUPT = 1 << 3;
    }
}

/// C's `struct ext4_group_info`.
pub(crate) struct GroupInfo {
    /// The group lock: the buddy, the bitmaps' bits and the descriptor change only under it. Below a handle and `i_data_sem`, above
    /// the locks of buffers. Held by one task for one group at a time.
    lock: Mutex<Option<Buddy>>,
    /// What the buddy says, for those who look for a group to lock. Before there is one, what the descriptor says.
    bb_free: AtomicU32,
    /// 0 before there is a buddy.
    bb_fragments: AtomicU32,
    /// Order of the largest free buddy and 1, or 0.
    bb_largest_free: AtomicU32,
    flags: AtomicU32,
}

impl GroupInfo {
    fn new(free: u32) -> Self {
        Self {
            lock: Mutex::named("group", None),
            bb_free: AtomicU32::new(free),
            bb_fragments: AtomicU32::new(0),
            bb_largest_free: AtomicU32::new(0),
            flags: AtomicU32::new(0),
        }
    }

    /// Blocks that can be had. A value that was true at some moment.
    pub(crate) fn bb_free(&self) -> u32 {
        self.bb_free.load(Ordering::Relaxed)
    }

    /// Whether it is worth locking the group for `len` blocks in one piece. `true` if nothing is known.
    pub(crate) fn may_have_run(&self, len: u32) -> bool {
        match self.bb_largest_free.load(Ordering::Relaxed) {
            0 => self.bb_fragments.load(Ordering::Relaxed) == 0,
            // A run without a buddy of order k is shorter than two of that order.
            order => u64::from(len) < 2 << order,
        }
    }

    /// Blocks in a run, on average.
    pub(crate) fn average_run(&self) -> u32 {
        self.bb_free() / self.bb_fragments.load(Ordering::Relaxed).max(1)
    }

    fn has(&self, flag: GroupFlags) -> bool {
        self.flags.load(Ordering::Acquire) & flag.bits() != 0
    }
}

/// A group with its lock held, and its buddy. What the buddy says is published when it is dropped.
pub(crate) struct LockedGroup<'a> {
    info: &'a GroupInfo,
    guard: MutexGuard<'a, Option<Buddy>>,
}

impl LockedGroup<'_> {
    /// The group's free blocks; EIO if there is no buddy, which [`Ext4SbInfo::ext4_lock_group`] has seen to.
    pub(crate) fn buddy(&mut self) -> Result<&mut Buddy> {
        self.guard.as_mut().ok_or(EIO)
    }
}

impl Drop for LockedGroup<'_> {
    fn drop(&mut self) {
        if let Some(buddy) = self.guard.as_ref() {
            self.info.bb_free.store(buddy.free(), Ordering::Relaxed);
            self.info.bb_fragments.store(buddy.fragments(), Ordering::Relaxed);
            let largest = buddy.largest_free_order().map_or(0, |order| order + 1);
            self.info.bb_largest_free.store(largest, Ordering::Relaxed);
        }
    }
}

/// Free blocks and inodes of the mount.
pub(crate) struct Counts {
    /// Sum of the descriptors' free blocks, of groups that are in service.
    pub(crate) s_freeclusters: AtomicI64,
    /// The same without those that are promised to somebody who is about to allocate.
    unclaimed: AtomicI64,
    /// Sum of the descriptors' free inodes.
    pub(crate) s_freeinodes: AtomicI64,
    /// Sum of the descriptors' directories.
    pub(crate) s_dirs: AtomicI64,
    /// Kept back for extent tree blocks that are needed when written data must become visible on a full disk.
    s_resv_clusters: AtomicU64,
    /// Blocks whose freeing is not committed yet.
    pub(crate) s_mb_free_pending: AtomicU64,
}

impl Counts {
    /// Free blocks come (or go), on disk.
    pub(crate) fn add_free(&self, blocks: i64) {
        self.s_freeclusters.fetch_add(blocks, Ordering::Relaxed);
        self.unclaimed.fetch_add(blocks, Ordering::AcqRel);
    }

    /// What is kept back from those who say nothing.
    fn kept(&self, flags: MbFlags) -> i64 {
        match flags.contains(MbFlags::USE_RESERVED) {
            true => 0,
            // At most 4096.
            false => self.s_resv_clusters.load(Ordering::Relaxed) as i64,
        }
    }

    /// Whether there is a block that is promised to nobody.
    #[doc(alias = "ext4_has_free_clusters")]
    pub(crate) fn has_free(&self, flags: MbFlags) -> bool {
        self.unclaimed.load(Ordering::Acquire) > self.kept(flags)
    }

    /// Promises `want` blocks or as many as there are, in halves; ENOSPC if there is none.
    #[doc(alias = "ext4_claim_free_clusters")]
    pub(crate) fn claim(&self, want: u32, flags: MbFlags) -> Result<u32> {
        let kept = self.kept(flags);
        let mut len = want;
        while len > 0 {
            let take = |free: i64| (free - kept >= i64::from(len)).then(|| free - i64::from(len));
            if self.unclaimed.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_ok() {
                return Ok(len);
            }
            len /= 2;
        }
        Err(ENOSPC)
    }

    /// `got` of `claimed` blocks were allocated.
    pub(crate) fn settle(&self, claimed: u32, got: u32) {
        self.s_freeclusters.fetch_sub(i64::from(got), Ordering::Relaxed);
        self.unclaimed.fetch_add(i64::from(claimed) - i64::from(got), Ordering::AcqRel);
    }
}

impl MbInfo {
    /// After the descriptors, which are checked: what is free, and where. Called when the journal has been replayed.
    #[doc(alias = "ext4_mb_init")]
    pub(crate) fn new(geometry: &Geometry, group_desc: &[BufferHead]) -> Ext4Result<Self> {
        let mut groups = KVec::with_capacity(geometry.s_groups_count as usize, GFP_KERNEL)?;
        let (mut blocks, mut inodes, mut dirs) = (0, 0, 0);
        geometry.for_each_group_desc(group_desc, |_, desc| {
            blocks += i64::from(desc.free_clusters);
            inodes += i64::from(desc.free_inodes);
            dirs += i64::from(desc.used_dirs);
            Ok(groups.push(GroupInfo::new(desc.free_clusters), GFP_KERNEL)?)
        })?;
        // Only extent trees need blocks at a time at which one cannot say no.
        let resv = match geometry.s_incompat.contains(Incompat::EXTENTS) {
            true => (geometry.s_blocks_count / 50).min(4096),
            false => 0,
        };
        let counts = Counts {
            s_freeclusters: AtomicI64::new(blocks),
            unclaimed: AtomicI64::new(blocks),
            s_freeinodes: AtomicI64::new(inodes),
            s_dirs: AtomicI64::new(dirs),
            s_resv_clusters: AtomicU64::new(resv),
            s_mb_free_pending: AtomicU64::new(0),
        };
        Ok(Self { groups, counts, preallocs: super::Preallocs::default() })
    }

    /// How many directories there are.
    pub(crate) fn directories(&self) -> u64 {
        self.counts.s_dirs.load(Ordering::Relaxed).max(0) as u64
    }

    pub(crate) fn group(&self, group: Group) -> Ext4Result<&GroupInfo> {
        Ok(self.groups.get(group.0 as usize).ok_or(EIO)?)
    }

    /// EFSCORRUPTED if the group was taken out of service.
    pub(crate) fn check_group(&self, group: Group, flag: GroupFlags) -> Ext4Result {
        if self.group(group)?.has(flag) { Err(EFSCORRUPTED.into()) } else { Ok(()) }
    }
}

impl Ext4SbInfo {
    /// Locks a group and sees to it that it has its buddy. Sleeps, and may read the bitmap.
    ///
    /// EIO, ENOMEM; EFSCORRUPTED if the group is out of service; corruptions of the bitmap, which take it there.
    #[doc(alias = "ext4_mb_load_buddy")]
    pub(crate) fn ext4_lock_group(&self, group: Group) -> Ext4Result<LockedGroup<'_>> {
        let info = self.mb.group(group)?;
        // Outside of the lock, so that one who waits for the device keeps nobody else.
        let bitmap = self.ext4_read_block_bitmap(group)?;
        let mut guard = info.lock.lock();
        self.mb.check_group(group, GroupFlags::BBITMAP_CORRUPT)?;
        if guard.is_none() {
            // Nothing of the group is preallocated or about to be freed: that starts with a buddy.
            let blocks = self.blocks_in_group(group);
            let buddy = Buddy::from_bitmap(&bitmap.read(), blocks, self.s_blocksize_bits)?;
            let desc = self.ext4_get_group_desc(group)?;
            let unused = self.has_group_desc_csum() && desc.flags.contains(BgFlags::BLOCK_UNINIT);
            if buddy.free() != desc.free_clusters && !unused {
                drop(guard);
                let corrupt = Corrupt::BlockBitmapCount(group).into();
                self.ext4_mark_group_bitmap_corrupted(group, GroupFlags::BBITMAP_CORRUPT);
                self.ext4_error(corrupt);
                return Err(corrupt);
            }
            *guard = Some(buddy);
        }
        Ok(LockedGroup { info, guard })
    }

    /// The same for changing its inodes or its descriptor alone: there may be no buddy.
    pub(crate) fn ext4_lock_group_desc(&self, group: Group) -> Ext4Result<LockedGroup<'_>> {
        let info = self.mb.group(group)?;
        Ok(LockedGroup { info, guard: info.lock.lock() })
    }

    /// Takes a group out of service: no block (or inode) of it is given out or freed any more in this mount, and what is free of
    /// it no longer counts.
    pub(crate) fn ext4_mark_group_bitmap_corrupted(&self, group: Group, flag: GroupFlags) {
        let (Ok(info), Ok(desc)) = (self.mb.group(group), self.ext4_get_group_desc(group)) else { return };
        if info.flags.fetch_or(flag.bits(), Ordering::AcqRel) & flag.bits() != 0 {
            return;
        }
        if flag == GroupFlags::BBITMAP_CORRUPT {
            self.mb.counts.add_free(-i64::from(desc.free_clusters));
        } else {
            self.mb.counts.s_freeinodes.fetch_sub(i64::from(desc.free_inodes), Ordering::Relaxed);
        }
    }

    /// Blocks that nothing on disk uses. What was freed in a transaction that is not committed is among them, but cannot be
    /// had yet.
    #[doc(alias = "s_freeclusters_counter")]
    pub fn free_clusters(&self) -> u64 {
        self.mb.counts.s_freeclusters.load(Ordering::Relaxed).max(0) as u64
    }

    /// Inodes that nothing uses.
    #[doc(alias = "s_freeinodes_counter")]
    pub fn free_inodes(&self) -> u64 {
        self.mb.counts.s_freeinodes.load(Ordering::Relaxed).max(0) as u64
    }

    /// Blocks kept back for extent tree blocks; see [`MbFlags::USE_RESERVED`].
    #[doc(alias = "s_resv_clusters")]
    pub fn resv_clusters(&self) -> u64 {
        self.mb.counts.s_resv_clusters.load(Ordering::Relaxed)
    }
}
