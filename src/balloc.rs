// SPDX-License-Identifier: GPL-2.0-only
//! `balloc.c`: block groups, their descriptors and block bitmaps, and how many blocks are free.
//!
//! All descriptors are read, checked and kept at mount. A descriptor and the bitmaps it tells of are changed with the
//! [group's lock](crate::mballoc) held, so that bitmap, checksum and counts never contradict each other for those who hold it.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::code::EIO;
use kernel_shim::fs::buffer::{BufferCache, BufferHead};

use crate::Inode;
use crate::bitmap::{ext4_bitmap_csum, ext4_bitmap_csum_change, next_clear, set_bits};
use crate::checksum::{ext4_group_desc_crc16, ext4_group_desc_csum};
use crate::corrupt::{Corrupt, Ext4Result};
use crate::disk::GroupDesc;
use crate::ext4::{BgFlags, Fsblk, Group, Incompat, RoCompat};
use crate::iget::ino_of;
use crate::mballoc::{GroupFlags, MbFlags};
use crate::sb::{Ext4SbInfo, Geometry};

impl Geometry {
    /// First block of a group.
    pub fn ext4_group_first_block_no(&self, group: Group) -> Fsblk {
        Fsblk(u64::from(group.0) * u64::from(self.s_blocks_per_group) + u64::from(self.s_first_data_block))
    }

    /// Last block of a group: the last of the file system, for the last group.
    pub fn ext4_group_last_block_no(&self, group: Group) -> Fsblk {
        let next = self.ext4_group_first_block_no(Group(group.0.saturating_add(1)));
        Fsblk(next.0.min(self.s_blocks_count).saturating_sub(1))
    }

    /// Blocks of a group: fewer in the last one.
    #[doc(alias = "num_clusters_in_group")]
    pub fn blocks_in_group(&self, group: Group) -> u32 {
        let first = self.ext4_group_first_block_no(group).0;
        let blocks = (self.ext4_group_last_block_no(group).0 + 1).saturating_sub(first);
        blocks.min(u64::from(self.s_blocks_per_group)) as u32
    }

    /// The group of a block, and which of the group's blocks it is; nothing for a block outside the groups.
    pub fn ext4_get_group_no_and_offset(&self, block: Fsblk) -> Option<(Group, u32)> {
        if block.0 >= self.s_blocks_count {
            return None;
        }
        let block = block.0.checked_sub(u64::from(self.s_first_data_block))?;
        let per_group = u64::from(self.s_blocks_per_group);
        // Below the number of groups, and below the blocks in a group.
        Some((Group((block / per_group) as u32), (block % per_group) as u32))
    }

    /// Whether descriptors, and with them bitmaps and tables, may say that they were never used.
    #[doc(alias = "ext4_has_group_desc_csum")]
    pub fn has_group_desc_csum(&self) -> bool {
        self.s_ro_compat.intersects(RoCompat::GDT_CSUM | RoCompat::METADATA_CSUM)
    }

    /// Groups whose bitmaps and inode tables lie together, as many as there are with `FLEX_BG`; else 1.
    #[doc(alias = "ext4_flex_bg_size")]
    pub fn flex_bg_size(&self) -> u32 {
        1 << self.s_log_groups_per_flex.min(31)
    }

    /// Blocks of a group's inode table.
    #[doc(alias = "s_itb_per_group")]
    pub fn itb_per_group(&self) -> u32 {
        self.s_inodes_per_group / self.s_inodes_per_block
    }

    /// Whether the group begins with a copy of the super block.
    pub fn ext4_bg_has_super(&self, group: Group) -> bool {
        if group.0 == 0 {
            return true;
        }
        if let Some(backups) = self.s_backup_bgs {
            return backups.contains(&group.0);
        }
        if group.0 == 1 || !self.s_ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| is_power_of(group.0, base))
    }

    /// Blocks of super block, descriptors and descriptors to come at the beginning of a group.
    pub fn ext4_num_base_meta_blocks(&self, group: Group) -> u32 {
        let has_super = self.ext4_bg_has_super(group);
        let meta_group = group.0 / self.s_desc_per_block;
        let meta_bg = self.s_incompat.contains(Incompat::META_BG) && meta_group >= self.s_first_meta_bg;
        let gdt = if meta_bg {
            // A meta group's descriptors are kept in its first, second and last group.
            let index = group.0 % self.s_desc_per_block;
            u32::from(index == 0 || index == 1 || index == self.s_desc_per_block - 1)
        } else if !has_super {
            0
        } else if self.s_incompat.contains(Incompat::META_BG) {
            self.s_first_meta_bg.saturating_add(u32::from(self.s_reserved_gdt_blocks))
        } else {
            self.s_gdb_count.saturating_add(u32::from(self.s_reserved_gdt_blocks))
        };
        // Of the first group, block 0 is the boot block where blocks of 1 KiB start counting at 0.
        let boot = group.0 == 0 && self.s_blocksize == 1024 && self.s_first_data_block == 0;
        gdt.saturating_add(u32::from(has_super)).saturating_add(u32::from(boot))
    }

    /// Block of the `nr`-th block of group descriptors.
    fn descriptor_loc(&self, nr: u32) -> Fsblk {
        if !self.s_incompat.contains(Incompat::META_BG) || nr < self.s_first_meta_bg {
            return Fsblk(self.sb_block().0 + u64::from(nr) + 1);
        }
        let group = Group(self.s_desc_per_block.saturating_mul(nr));
        let mut block = self.ext4_group_first_block_no(group).0 + u64::from(self.ext4_bg_has_super(group));
        if self.s_blocksize == 1024 && nr == 0 && self.s_first_data_block == 0 {
            block += 1;
        }
        Fsblk(block)
    }

    /// Reads all group descriptors. EIO.
    pub(crate) fn read_group_descs(&self, buffers: &BufferCache) -> Ext4Result<KVec<BufferHead>> {
        let mut blocks = KVec::with_capacity(self.s_gdb_count as usize, GFP_KERNEL)?;
        for nr in 0..self.s_gdb_count {
            blocks.push(buffers.bread(self.descriptor_loc(nr).0)?, GFP_KERNEL)?;
        }
        Ok(blocks)
    }

    /// What the descriptor's checksum should be, or nothing where there is none.
    fn expected_csum(&self, group: Group, desc: &[u8]) -> Option<u16> {
        if self.s_ro_compat.contains(RoCompat::METADATA_CSUM) {
            Some(ext4_group_desc_csum(self.s_csum_seed, group, desc))
        } else if self.s_ro_compat.contains(RoCompat::GDT_CSUM) {
            Some(ext4_group_desc_crc16(&self.s_uuid, group, desc))
        } else {
            None
        }
    }

    /// Fills the bitmap of a group no block of which was ever allocated: its own metadata are in use, and what lies beyond
    /// its end.
    pub(crate) fn ext4_init_block_bitmap(&self, group: Group, desc: &GroupDesc, map: &mut [u8]) {
        let blocks = self.blocks_in_group(group);
        map.fill(0);
        set_bits(map, 0, self.ext4_num_base_meta_blocks(group).min(blocks));
        let first = self.ext4_group_first_block_no(group).0;
        // With flex_bg they may lie in other groups; those are never uninitialised.
        let metadata = [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, self.itb_per_group())];
        for (start, len) in metadata {
            let from = start.0.max(first);
            let to = start.0.saturating_add(u64::from(len)).min(first + u64::from(blocks));
            if from < to {
                set_bits(map, (from - first) as u32, (to - from) as u32);
            }
        }
        set_bits(map, blocks, (map.len() as u32 * 8).saturating_sub(blocks));
    }

    /// The checksum that goes into the descriptor for block bitmap `map`.
    pub(crate) fn block_bitmap_csum(&self, map: &[u8]) -> u32 {
        ext4_bitmap_csum(self.s_csum_seed, map, self.s_blocks_per_group, self.s_desc_size)
    }

    /// What it changes by, as an exclusive or, when `len` bits from `start` on do.
    pub(crate) fn block_bitmap_csum_change(&self, start: u32, len: u32) -> u32 {
        match self.has_metadata_csum() {
            true => ext4_bitmap_csum_change(start, len, self.s_blocks_per_group, self.s_desc_size),
            false => 0,
        }
    }

    /// Whether a bitmap that was read can be believed.
    fn ext4_validate_block_bitmap(&self, group: Group, desc: &GroupDesc, map: &[u8]) -> Ext4Result {
        if self.has_metadata_csum() && self.block_bitmap_csum(map) != desc.block_bitmap_csum {
            return Err(Corrupt::BlockBitmapChecksum(group).into());
        }
        let first = self.ext4_group_first_block_no(group).0;
        let blocks = self.blocks_in_group(group);
        // With flex_bg they may be somewhere else; the free blocks are counted in any case.
        for (start, len) in [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, self.itb_per_group())] {
            let Some(start) = start.0.checked_sub(first).filter(|start| *start < u64::from(blocks)) else { continue };
            let end = (start as u32).saturating_add(len).min(blocks);
            if next_clear(map, start as u32, end) != end {
                return Err(Corrupt::BlockBitmapSelf(group).into());
            }
        }
        Ok(())
    }

    /// Checks one descriptor: its checksum, and that bitmaps and inode table lie where they may.
    #[doc(alias = "ext4_check_descriptors")]
    pub(crate) fn check_descriptor(&self, group: Group, bytes: &[u8]) -> Ext4Result<GroupDesc> {
        let desc = GroupDesc::parse(bytes).ok_or(EIO)?;
        if self.expected_csum(group, bytes).is_some_and(|csum| csum != desc.checksum) {
            return Err(Corrupt::GroupDescChecksum(group).into());
        }
        let (first, last) = if self.s_incompat.contains(Incompat::FLEX_BG) {
            (Fsblk(u64::from(self.s_first_data_block)), Fsblk(self.s_blocks_count - 1))
        } else {
            (self.ext4_group_first_block_no(group), self.ext4_group_last_block_no(group))
        };
        let sb = self.sb_block().0;
        let gdt = match self.s_incompat.contains(Incompat::META_BG) {
            true => u64::from(self.s_first_meta_bg),
            false => u64::from(self.s_gdb_count),
        };
        let fits = |block: Fsblk, blocks: u32| {
            let Some(end) = block.0.checked_add(u64::from(blocks)) else { return false };
            let over_super = block.0 <= sb + gdt && end > sb;
            block >= first && end - 1 <= last.0 && !over_super
        };
        if !fits(desc.block_bitmap, 1) {
            return Err(Corrupt::BlockBitmapPlace(group).into());
        }
        if !fits(desc.inode_bitmap, 1) {
            return Err(Corrupt::InodeBitmapPlace(group).into());
        }
        if !fits(desc.inode_table, self.itb_per_group()) {
            return Err(Corrupt::InodeTablePlace(group).into());
        }
        Ok(desc)
    }

    /// Calls `f` with every group's descriptor, checked, in order.
    pub(crate) fn for_each_group_desc(
        &self,
        blocks: &[BufferHead],
        mut f: impl FnMut(Group, GroupDesc) -> Ext4Result,
    ) -> Ext4Result {
        let size = usize::from(self.s_desc_size);
        let mut group = Group(0);
        for block in blocks {
            let bytes = block.read();
            for bytes in bytes.chunks_exact(size).take(self.s_desc_per_block as usize) {
                if group.0 == self.s_groups_count {
                    return Ok(());
                }
                f(group, self.check_descriptor(group, bytes)?)?;
                group.0 += 1;
            }
        }
        Ok(())
    }
}

/// Whether `n` is a power of `base`, the first included.
fn is_power_of(mut n: u32, base: u32) -> bool {
    while n > base && n.is_multiple_of(base) {
        n /= base;
    }
    n == base
}

/// Blocks of descriptors are locked under those of bitmaps.
const DESCRIPTOR: u8 = 1;

impl Ext4SbInfo {
    /// A group's descriptor. The group must exist, or it is EIO.
    pub fn ext4_get_group_desc(&self, group: Group) -> Ext4Result<GroupDesc> {
        if group.0 >= self.s_groups_count {
            return Err(EIO.into());
        }
        let block = self.s_group_desc.get((group.0 / self.s_desc_per_block) as usize).ok_or(EIO)?;
        let from = (group.0 % self.s_desc_per_block) as usize * usize::from(self.s_desc_size);
        let bytes = block.read_nested(DESCRIPTOR);
        Ok(bytes
            .get(from..)
            .and_then(|bytes| bytes.get(..usize::from(self.s_desc_size)))
            .and_then(GroupDesc::parse)
            .ok_or(EIO)?)
    }

    /// The block with a group's descriptor, to ask the handle for. EIO for a group that does not exist.
    pub(crate) fn group_desc_bh(&self, group: Group) -> Ext4Result<&BufferHead> {
        Ok(self.s_group_desc.get((group.0 / self.s_desc_per_block) as usize).ok_or(EIO)?)
    }

    /// Changes a group's descriptor and gives it a new checksum. The caller holds the group's lock, got write access to
    /// the block before, and marks it dirty afterwards. Returns the descriptor as it is now.
    #[doc(alias = "ext4_group_desc_csum_set")]
    pub(crate) fn change_group_desc(&self, group: Group, change: impl FnOnce(&mut GroupDesc)) -> Ext4Result<GroupDesc> {
        let from = (group.0 % self.s_desc_per_block) as usize * usize::from(self.s_desc_size);
        let mut block = self.group_desc_bh(group)?.write_nested(DESCRIPTOR);
        let bytes = block.get_mut(from..).and_then(|b| b.get_mut(..usize::from(self.s_desc_size))).ok_or(EIO)?;
        let mut desc = GroupDesc::parse(bytes).ok_or(EIO)?;
        change(&mut desc);
        desc.store(bytes).ok_or(EIO)?;
        if let Some(csum) = self.expected_csum(group, bytes) {
            desc.checksum = csum;
            desc.store(bytes).ok_or(EIO)?;
        }
        Ok(desc)
    }

    /// A group's block bitmap, read and checked, or made if the group was never used. Sleeps.
    ///
    /// EIO; corruptions of the bitmap, which are told of once: the group is taken out of service, and EFSCORRUPTED is all
    /// one hears of it from then on.
    pub fn ext4_read_block_bitmap(&self, group: Group) -> Ext4Result<BufferHead> {
        let place = self.ext4_get_group_desc(group)?.block_bitmap;
        self.read_bitmap(
            (group, place),
            (BgFlags::BLOCK_UNINIT, GroupFlags::BBITMAP_CORRUPT),
            |desc, map| self.ext4_init_block_bitmap(group, desc, map),
            |desc, map| self.ext4_validate_block_bitmap(group, desc, map),
        )
    }

    /// A bitmap of either kind: makes it with `init` while the descriptor has the flag `uninit`, or reads and checks it; if it is
    /// bad, the group gets the flag `corrupt`.
    pub(crate) fn read_bitmap(
        &self,
        (group, place): (Group, Fsblk),
        (uninit, corrupt): (BgFlags, GroupFlags),
        init: impl Fn(&GroupDesc, &mut [u8]),
        validate: impl Fn(&GroupDesc, &[u8]) -> Ext4Result,
    ) -> Ext4Result<BufferHead> {
        self.mb.check_group(group, corrupt)?;
        let bh = self.buffers.getblk(place.0)?;
        // The flag goes with the first allocation and never comes back, so this is done twice at most.
        while !bh.verified() {
            let unused = |desc: &GroupDesc| self.has_group_desc_csum() && desc.flags.contains(uninit);
            if !unused(&self.ext4_get_group_desc(group)?) {
                self.buffers.read_in(&bh)?;
            }
            // For writing, because between two who both find it unverified there must not be a change. The flag is looked at
            // again, because it may have gone, and with it what the buffer cache knew.
            let mut map = bh.write();
            if bh.verified() {
                break;
            }
            let desc = self.ext4_get_group_desc(group)?;
            if unused(&desc) {
                init(&desc, &mut map);
                map.set_uptodate();
            } else if !bh.is_uptodate() {
                continue;
            } else if let Err(error) = validate(&desc, &map) {
                drop(map);
                self.ext4_mark_group_bitmap_corrupted(group, corrupt);
                self.ext4_error(error);
                return Err(error);
            }
            bh.set_verified();
        }
        Ok(bh)
    }

    /// Free blocks by the descriptors, without the groups that are out of service.
    pub fn ext4_count_free_clusters(&self) -> Ext4Result<u64> {
        let mut free = 0;
        for group in (0..self.s_groups_count).map(Group) {
            if self.mb.check_group(group, GroupFlags::BBITMAP_CORRUPT).is_ok() {
                free += u64::from(self.ext4_get_group_desc(group)?.free_clusters);
            }
        }
        Ok(free)
    }

    /// After ENOSPC, with no handle open: whether another attempt may find more. Waits for the commit that lets go of what
    /// was freed, at most a few times; `retries` begins with 0. Sleeps.
    pub fn ext4_should_retry_alloc(&self, retries: &mut u32) -> bool {
        *retries += 1;
        let Some(journal) = self.s_journal().filter(|_| *retries <= 4) else { return false };
        let counts = &self.mb.counts;
        if !counts.has_free(MbFlags::USE_RESERVED) {
            return false;
        }
        // With nothing pending, it came back between the attempt and now.
        counts.s_mb_free_pending.load(Ordering::Acquire) == 0 || journal.force_commit().is_ok()
    }

    /// Where the first block of a file should best be when nothing else says so: in the group of the inode, and for regular
    /// files with `flex_bg` in the one behind the group that has the tables and directories.
    pub fn ext4_inode_to_goal_block(&self, inode: &Inode) -> Fsblk {
        let mut group = ino_of(inode).0.saturating_sub(1) / self.s_inodes_per_group;
        if self.flex_bg_size() >= EXT4_FLEX_SIZE_DIR_ALLOC_SCHEME {
            group &= !(self.flex_bg_size() - 1);
            if inode.is_reg() && group + 1 < self.s_groups_count {
                group += 1;
            }
        }
        self.ext4_group_first_block_no(Group(group))
    }
}

/// From how many groups in a flex group on directories have the first one to themselves.
const EXT4_FLEX_SIZE_DIR_ALLOC_SCHEME: u32 = 4;

#[cfg(test)]
mod tests {
    use super::is_power_of;

    #[test]
    fn powers() {
        let powers: heapless::Vec<u32, 16> =
            (2..400).filter(|n| [3, 5, 7].iter().any(|b| is_power_of(*n, *b))).collect();
        assert_eq!(powers, [3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    }
}
