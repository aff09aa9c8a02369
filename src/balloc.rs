// SPDX-License-Identifier: GPL-2.0-only
//! `balloc.c`: block groups, their descriptors, and where both are.
//!
//! All descriptors are read, checked and kept at mount; nothing here allocates blocks yet.

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::code::EIO;
use kernel_shim::fs::buffer::{BufferCache, BufferHead};

use crate::checksum::{ext4_group_desc_crc16, ext4_group_desc_csum};
use crate::corrupt::{Corrupt, Ext4Result};
use crate::disk::GroupDesc;
use crate::ext4::{Fsblk, Group, Incompat, RoCompat};
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

impl Ext4SbInfo {
    /// A group's descriptor. The group must exist, or it is EIO.
    pub fn ext4_get_group_desc(&self, group: Group) -> Ext4Result<GroupDesc> {
        if group.0 >= self.s_groups_count {
            return Err(EIO.into());
        }
        let block = self.s_group_desc.get((group.0 / self.s_desc_per_block) as usize).ok_or(EIO)?;
        let from = (group.0 % self.s_desc_per_block) as usize * usize::from(self.s_desc_size);
        let bytes = block.read();
        Ok(bytes
            .get(from..)
            .and_then(|bytes| bytes.get(..usize::from(self.s_desc_size)))
            .and_then(GroupDesc::parse)
            .ok_or(EIO)?)
    }
}

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
