// SPDX-License-Identifier: GPL-2.0-only
//! The on-disk structures with a fixed place: super block, group descriptors, inodes.
//!
//! The rest of `ext4.h` is in [`crate::ext4`].

use crate::ext4::{BgFlags, Compat, Fsblk, Incompat, RoCompat};
use crate::le::le_view;

le_view! {
    /// The super block, [`SUPERBLOCK_OFFSET`](crate::ext4::SUPERBLOCK_OFFSET) bytes into the device.
    #[doc(alias = "ext4_super_block")]
    pub struct SuperBlockView[1024] {
        s_inodes_count: u32 = 0x0;
        s_blocks_count_lo: u32 = 0x4;
        s_r_blocks_count_lo: u32 = 0x8;
        s_free_blocks_count_lo / set_s_free_blocks_count_lo: u32 = 0xC;
        s_free_inodes_count / set_s_free_inodes_count: u32 = 0x10;
        s_first_data_block: u32 = 0x14;
        s_log_block_size: u32 = 0x18;
        s_log_cluster_size: u32 = 0x1C;
        s_blocks_per_group: u32 = 0x20;
        s_clusters_per_group: u32 = 0x24;
        s_inodes_per_group: u32 = 0x28;
        s_mtime / set_s_mtime: u32 = 0x2C;
        s_wtime / set_s_wtime: u32 = 0x30;
        s_mnt_count / set_s_mnt_count: u16 = 0x34;
        s_max_mnt_count: u16 = 0x36;
        s_magic: u16 = 0x38;
        s_state / set_s_state: u16 = 0x3A;
        s_errors: u16 = 0x3C;
        s_minor_rev_level: u16 = 0x3E;
        s_lastcheck: u32 = 0x40;
        s_checkinterval: u32 = 0x44;
        s_creator_os: u32 = 0x48;
        s_rev_level: u32 = 0x4C;
        s_def_resuid: u16 = 0x50;
        s_def_resgid: u16 = 0x52;
        s_first_ino: u32 = 0x54;
        s_inode_size: u16 = 0x58;
        s_block_group_nr: u16 = 0x5A;
        s_feature_compat / set_s_feature_compat: u32 = 0x5C;
        s_feature_incompat / set_s_feature_incompat: u32 = 0x60;
        s_feature_ro_compat / set_s_feature_ro_compat: u32 = 0x64;
        s_uuid: [u8; 16] = 0x68;
        s_volume_name: [u8; 16] = 0x78;
        s_last_mounted: [u8; 64] = 0x88;
        s_algorithm_usage_bitmap: u32 = 0xC8;
        s_prealloc_blocks: u8 = 0xCC;
        s_prealloc_dir_blocks: u8 = 0xCD;
        s_reserved_gdt_blocks: u16 = 0xCE;
        s_journal_uuid: [u8; 16] = 0xD0;
        s_journal_inum: u32 = 0xE0;
        s_journal_dev: u32 = 0xE4;
        s_last_orphan / set_s_last_orphan: u32 = 0xE8;
        s_hash_seed: [u32; 4] = 0xEC;
        s_def_hash_version: u8 = 0xFC;
        s_jnl_backup_type: u8 = 0xFD;
        s_desc_size: u16 = 0xFE;
        s_default_mount_opts: u32 = 0x100;
        s_first_meta_bg: u32 = 0x104;
        s_mkfs_time: u32 = 0x108;
        s_jnl_blocks: [u32; 17] = 0x10C;
        s_blocks_count_hi: u32 = 0x150;
        s_r_blocks_count_hi: u32 = 0x154;
        s_free_blocks_count_hi / set_s_free_blocks_count_hi: u32 = 0x158;
        s_min_extra_isize: u16 = 0x15C;
        s_want_extra_isize: u16 = 0x15E;
        s_flags: u32 = 0x160;
        s_raid_stride: u16 = 0x164;
        s_mmp_update_interval: u16 = 0x166;
        s_mmp_block: u64 = 0x168;
        s_raid_stripe_width: u32 = 0x170;
        s_log_groups_per_flex: u8 = 0x174;
        s_checksum_type: u8 = 0x175;
        s_encryption_level: u8 = 0x176;
        s_reserved_pad: u8 = 0x177;
        s_kbytes_written / set_s_kbytes_written: u64 = 0x178;
        s_snapshot_inum: u32 = 0x180;
        s_snapshot_id: u32 = 0x184;
        s_snapshot_r_blocks_count: u64 = 0x188;
        s_snapshot_list: u32 = 0x190;
        s_error_count / set_s_error_count: u32 = 0x194;
        s_first_error_time / set_s_first_error_time: u32 = 0x198;
        s_first_error_ino / set_s_first_error_ino: u32 = 0x19C;
        s_first_error_block / set_s_first_error_block: u64 = 0x1A0;
        s_first_error_func / set_s_first_error_func: [u8; 32] = 0x1A8;
        s_first_error_line / set_s_first_error_line: u32 = 0x1C8;
        s_last_error_time / set_s_last_error_time: u32 = 0x1CC;
        s_last_error_ino / set_s_last_error_ino: u32 = 0x1D0;
        s_last_error_line / set_s_last_error_line: u32 = 0x1D4;
        s_last_error_block / set_s_last_error_block: u64 = 0x1D8;
        s_last_error_func / set_s_last_error_func: [u8; 32] = 0x1E0;
        s_mount_opts: [u8; 64] = 0x200;
        s_usr_quota_inum: u32 = 0x240;
        s_grp_quota_inum: u32 = 0x244;
        s_overhead_clusters: u32 = 0x248;
        s_backup_bgs: [u32; 2] = 0x24C;
        s_encrypt_algos: [u8; 4] = 0x254;
        s_encrypt_pw_salt: [u8; 16] = 0x258;
        s_lpf_ino: u32 = 0x268;
        s_prj_quota_inum: u32 = 0x26C;
        s_checksum_seed: u32 = 0x270;
        s_wtime_hi / set_s_wtime_hi: u8 = 0x274;
        s_mtime_hi / set_s_mtime_hi: u8 = 0x275;
        s_mkfs_time_hi: u8 = 0x276;
        s_lastcheck_hi: u8 = 0x277;
        s_first_error_time_hi / set_s_first_error_time_hi: u8 = 0x278;
        s_last_error_time_hi / set_s_last_error_time_hi: u8 = 0x279;
        s_first_error_errcode / set_s_first_error_errcode: u8 = 0x27A;
        s_last_error_errcode / set_s_last_error_errcode: u8 = 0x27B;
        s_encoding: u16 = 0x27C;
        s_encoding_flags: u16 = 0x27E;
        s_orphan_file_inum: u32 = 0x280;
        s_reserved: [u32; 94] = 0x284;
        s_checksum / set_s_checksum: u32 = 0x3FC;
    }
}

impl SuperBlockView<&[u8; 1024]> {
    /// Blocks of the file system.
    pub fn ext4_blocks_count(&self) -> u64 {
        self.with_hi(self.s_blocks_count_lo(), self.s_blocks_count_hi())
    }

    /// Blocks kept for the super-user.
    pub fn ext4_r_blocks_count(&self) -> u64 {
        self.with_hi(self.s_r_blocks_count_lo(), self.s_r_blocks_count_hi())
    }

    /// Blocks that nothing uses.
    pub fn ext4_free_blocks_count(&self) -> u64 {
        self.with_hi(self.s_free_blocks_count_lo(), self.s_free_blocks_count_hi())
    }

    /// The high halves mean something only with the 64-bit feature.
    fn with_hi(&self, lo: u32, hi: u32) -> u64 {
        let hi = if self.incompat().contains(Incompat::BIT64) { hi } else { 0 };
        u64::from(hi) << 32 | u64::from(lo)
    }

    /// `s_feature_compat`.
    pub fn compat(&self) -> Compat {
        Compat::from_bits_retain(self.s_feature_compat())
    }

    /// `s_feature_incompat`.
    pub fn incompat(&self) -> Incompat {
        Incompat::from_bits_retain(self.s_feature_incompat())
    }

    /// `s_feature_ro_compat`.
    pub fn ro_compat(&self) -> RoCompat {
        RoCompat::from_bits_retain(self.s_feature_ro_compat())
    }
}

le_view! {
    /// A group descriptor of 32 bytes, or the first half of a longer one.
    #[doc(alias = "ext4_group_desc")]
    pub struct GroupDescLo[32] {
        bg_block_bitmap_lo: u32 = 0x0;
        bg_inode_bitmap_lo: u32 = 0x4;
        bg_inode_table_lo: u32 = 0x8;
        bg_free_blocks_count_lo / set_bg_free_blocks_count_lo: u16 = 0xC;
        bg_free_inodes_count_lo / set_bg_free_inodes_count_lo: u16 = 0xE;
        bg_used_dirs_count_lo / set_bg_used_dirs_count_lo: u16 = 0x10;
        bg_flags / set_bg_flags: u16 = 0x12;
        bg_exclude_bitmap_lo: u32 = 0x14;
        bg_block_bitmap_csum_lo / set_bg_block_bitmap_csum_lo: u16 = 0x18;
        bg_inode_bitmap_csum_lo / set_bg_inode_bitmap_csum_lo: u16 = 0x1A;
        bg_itable_unused_lo / set_bg_itable_unused_lo: u16 = 0x1C;
        bg_checksum / set_bg_checksum: u16 = 0x1E;
    }
}

/// Offset of `bg_checksum` in a descriptor, which the checksum leaves out.
pub(crate) const BG_CHECKSUM_OFFSET: usize = 0x1E;

le_view! {
    /// The second half of a group descriptor of 64 bytes or more.
    #[doc(alias = "ext4_group_desc")]
    pub struct GroupDescHi[32] {
        bg_block_bitmap_hi: u32 = 0x0;
        bg_inode_bitmap_hi: u32 = 0x4;
        bg_inode_table_hi: u32 = 0x8;
        bg_free_blocks_count_hi / set_bg_free_blocks_count_hi: u16 = 0xC;
        bg_free_inodes_count_hi / set_bg_free_inodes_count_hi: u16 = 0xE;
        bg_used_dirs_count_hi / set_bg_used_dirs_count_hi: u16 = 0x10;
        bg_itable_unused_hi / set_bg_itable_unused_hi: u16 = 0x12;
        bg_exclude_bitmap_hi: u32 = 0x14;
        bg_block_bitmap_csum_hi / set_bg_block_bitmap_csum_hi: u16 = 0x18;
        bg_inode_bitmap_csum_hi / set_bg_inode_bitmap_csum_hi: u16 = 0x1A;
        bg_reserved: u32 = 0x1C;
    }
}

/// A group descriptor, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "ext4_group_desc")]
pub struct GroupDesc {
    /// Block of the block bitmap.
    pub block_bitmap: Fsblk,
    /// Block of the inode bitmap.
    pub inode_bitmap: Fsblk,
    /// First block of the inode table.
    pub inode_table: Fsblk,
    /// Clusters that nothing uses.
    pub free_clusters: u32,
    /// Inodes that nothing uses.
    pub free_inodes: u32,
    /// Directories.
    pub used_dirs: u32,
    /// Inodes at the end of the table that were never used.
    pub itable_unused: u32,
    /// `bg_flags`.
    pub flags: BgFlags,
    /// Checksum of the block bitmap; its low half in a descriptor of 32 bytes.
    pub block_bitmap_csum: u32,
    /// Checksum of the inode bitmap; its low half in a descriptor of 32 bytes.
    pub inode_bitmap_csum: u32,
    /// `bg_checksum`.
    pub checksum: u16,
}

impl GroupDesc {
    /// Parses the descriptor in `bytes`: 32 bytes, or 64 and more, of which the first 64 count.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let lo = GroupDescLo::<&[u8; 32]>::at(bytes, 0)?;
        let hi = GroupDescHi::<&[u8; 32]>::at(bytes, GroupDescLo::LEN);
        let block = |lo: u32, hi: Option<u32>| Fsblk(u64::from(hi.unwrap_or(0)) << 32 | u64::from(lo));
        let count = |lo: u16, hi: Option<u16>| u32::from(hi.unwrap_or(0)) << 16 | u32::from(lo);
        Some(Self {
            block_bitmap: block(lo.bg_block_bitmap_lo(), hi.map(|hi| hi.bg_block_bitmap_hi())),
            inode_bitmap: block(lo.bg_inode_bitmap_lo(), hi.map(|hi| hi.bg_inode_bitmap_hi())),
            inode_table: block(lo.bg_inode_table_lo(), hi.map(|hi| hi.bg_inode_table_hi())),
            free_clusters: count(lo.bg_free_blocks_count_lo(), hi.map(|hi| hi.bg_free_blocks_count_hi())),
            free_inodes: count(lo.bg_free_inodes_count_lo(), hi.map(|hi| hi.bg_free_inodes_count_hi())),
            used_dirs: count(lo.bg_used_dirs_count_lo(), hi.map(|hi| hi.bg_used_dirs_count_hi())),
            itable_unused: count(lo.bg_itable_unused_lo(), hi.map(|hi| hi.bg_itable_unused_hi())),
            flags: BgFlags::from_bits_retain(lo.bg_flags()),
            block_bitmap_csum: count(lo.bg_block_bitmap_csum_lo(), hi.map(|hi| hi.bg_block_bitmap_csum_hi())),
            inode_bitmap_csum: count(lo.bg_inode_bitmap_csum_lo(), hi.map(|hi| hi.bg_inode_bitmap_csum_hi())),
            checksum: lo.bg_checksum(),
        })
    }

    /// Writes what changes while a file system is mounted back to the descriptor in `bytes`, its checksum included.
    pub fn store(&self, bytes: &mut [u8]) -> Option<()> {
        let mut lo = GroupDescLo::<&mut [u8; 32]>::at_mut(bytes, 0)?;
        lo.set_bg_free_blocks_count_lo(self.free_clusters as u16);
        lo.set_bg_free_inodes_count_lo(self.free_inodes as u16);
        lo.set_bg_used_dirs_count_lo(self.used_dirs as u16);
        lo.set_bg_itable_unused_lo(self.itable_unused as u16);
        lo.set_bg_flags(self.flags.bits());
        lo.set_bg_block_bitmap_csum_lo(self.block_bitmap_csum as u16);
        lo.set_bg_inode_bitmap_csum_lo(self.inode_bitmap_csum as u16);
        lo.set_bg_checksum(self.checksum);
        if let Some(mut hi) = GroupDescHi::<&mut [u8; 32]>::at_mut(bytes, GroupDescLo::LEN) {
            hi.set_bg_free_blocks_count_hi((self.free_clusters >> 16) as u16);
            hi.set_bg_free_inodes_count_hi((self.free_inodes >> 16) as u16);
            hi.set_bg_used_dirs_count_hi((self.used_dirs >> 16) as u16);
            hi.set_bg_itable_unused_hi((self.itable_unused >> 16) as u16);
            hi.set_bg_block_bitmap_csum_hi((self.block_bitmap_csum >> 16) as u16);
            hi.set_bg_inode_bitmap_csum_hi((self.inode_bitmap_csum >> 16) as u16);
        }
        Some(())
    }
}

le_view! {
    /// The part of an inode that every file system has.
    #[doc(alias = "ext4_inode")]
    pub struct InodeView[128] {
        i_mode / set_i_mode: u16 = 0x0;
        i_uid / set_i_uid: u16 = 0x2;
        i_size_lo / set_i_size_lo: u32 = 0x4;
        i_atime / set_i_atime: u32 = 0x8;
        i_ctime / set_i_ctime: u32 = 0xC;
        i_mtime / set_i_mtime: u32 = 0x10;
        i_dtime / set_i_dtime: u32 = 0x14;
        i_gid / set_i_gid: u16 = 0x18;
        i_links_count / set_i_links_count: u16 = 0x1A;
        i_blocks_lo / set_i_blocks_lo: u32 = 0x1C;
        i_flags / set_i_flags: u32 = 0x20;
        /// Low half of the change counter.
        i_disk_version / set_i_disk_version: u32 = 0x24;
        /// Root of the extent tree, or the block numbers, or a short symbolic link.
        i_block / set_i_block: [u8; 60] = 0x28;
        i_generation / set_i_generation: u32 = 0x64;
        i_file_acl_lo / set_i_file_acl_lo: u32 = 0x68;
        i_size_high / set_i_size_high: u32 = 0x6C;
        i_obso_faddr: u32 = 0x70;
        i_blocks_high / set_i_blocks_high: u16 = 0x74;
        i_file_acl_high / set_i_file_acl_high: u16 = 0x76;
        i_uid_high / set_i_uid_high: u16 = 0x78;
        i_gid_high / set_i_gid_high: u16 = 0x7A;
        i_checksum_lo / set_i_checksum_lo: u16 = 0x7C;
        i_reserved: u16 = 0x7E;
    }
}

/// Offset of `i_checksum_lo` in an inode.
pub(crate) const I_CHECKSUM_LO_OFFSET: usize = 0x7C;
/// Offset of `i_checksum_hi` in an inode.
pub(crate) const I_CHECKSUM_HI_OFFSET: usize = 0x82;

le_view! {
    /// What follows [`InodeView`] in larger inodes; how much of it counts is in `i_extra_isize`.
    #[doc(alias = "ext4_inode")]
    pub struct InodeExtraView[32] {
        /// Bytes in use beyond 128, this field included.
        i_extra_isize / set_i_extra_isize: u16 = 0x0;
        i_checksum_hi / set_i_checksum_hi: u16 = 0x2;
        i_ctime_extra / set_i_ctime_extra: u32 = 0x4;
        i_mtime_extra / set_i_mtime_extra: u32 = 0x8;
        i_atime_extra / set_i_atime_extra: u32 = 0xC;
        i_crtime / set_i_crtime: u32 = 0x10;
        i_crtime_extra / set_i_crtime_extra: u32 = 0x14;
        i_version_hi / set_i_version_hi: u32 = 0x18;
        i_projid: u32 = 0x1C;
    }
}
