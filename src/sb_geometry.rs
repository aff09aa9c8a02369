// SPDX-License-Identifier: GPL-2.0-only
//! The part of `super.c` that checks a super block: from 1024 bytes that may be anything to numbers
//! that the rest of the file system divides by and indexes with.

use kernel_shim::pr_warn;

use crate::checksum::{ext4_chksum, ext4_superblock_csum};
use crate::corrupt::{Ext4Error, Ext4Result, Refused};
use crate::disk::SuperBlockView;
use crate::ext4::*;
use crate::hash::{DxHash, HashInfo};
use crate::sb_options::Errors;

type Sb<'a> = SuperBlockView<&'a [u8; 1024]>;

/// Blocks that fit the 48 bits that an extent has for a physical block.
const MAX_BLOCKS: u64 = 1 << 48;

/// The numbers of a file system that do not change while it is mounted.
///
/// # Invariants
///
/// They passed the checks of [`Geometry::from_super`]: in particular every divisor is at least 1, the
/// groups cover the blocks, and blocks and inodes lie on the device.
#[derive(Clone, Debug)]
#[doc(alias = "ext4_sb_info")]
pub struct Geometry {
    /// Bytes in a block: 1024, 2048 or 4096.
    pub s_blocksize: u32,
    /// log2 of [`Geometry::s_blocksize`].
    pub s_blocksize_bits: u8,
    /// Blocks.
    pub s_blocks_count: u64,
    /// First block of the first group: 1 if blocks have 1 KiB, 0 otherwise.
    pub s_first_data_block: u32,
    /// Blocks in a group.
    pub s_blocks_per_group: u32,
    /// Blocks in an allocation unit.
    pub s_cluster_ratio: u32,
    /// Inodes in a group.
    pub s_inodes_per_group: u32,
    /// Inodes in a block of the inode table.
    pub s_inodes_per_block: u32,
    /// Inodes; the highest inode number.
    pub s_inodes_count: u32,
    /// Bytes in an inode.
    pub s_inode_size: u16,
    /// Lowest inode number that is not reserved.
    pub s_first_ino: u32,
    /// Extra bytes that new inodes use.
    pub s_want_extra_isize: u16,
    /// Groups.
    pub s_groups_count: u32,
    /// Bytes in a group descriptor.
    pub s_desc_size: u16,
    /// Group descriptors in a block.
    pub s_desc_per_block: u32,
    /// Blocks of group descriptors.
    pub s_gdb_count: u32,
    /// With `META_BG`, the first block of descriptors that is in its own group.
    pub s_first_meta_bg: u32,
    /// Blocks kept behind the descriptors for more of them.
    pub s_reserved_gdt_blocks: u16,
    /// log2 of the groups whose bitmaps and tables lie together; 0 without `FLEX_BG`.
    pub s_log_groups_per_flex: u8,
    /// Blocks kept for the super-user.
    pub s_r_blocks_count: u64,
    /// With `sparse_super2`, the groups with copies of the super block.
    pub s_backup_bgs: Option<[u32; 2]>,
    /// `s_feature_compat`.
    pub s_compat: Compat,
    /// `s_feature_incompat`.
    pub s_incompat: Incompat,
    /// `s_feature_ro_compat`.
    pub s_ro_compat: RoCompat,
    /// What metadata checksums start from.
    pub s_csum_seed: u32,
    /// The file system's UUID.
    pub s_uuid: [u8; 16],
    /// How directory names are hashed.
    pub s_hash: HashInfo,
    /// Which hash new hash trees have.
    pub s_def_hash_version: DxHash,
    /// The journal's inode, or 0.
    pub s_journal_inum: Ino,
    /// The device that an external journal is on, or 0.
    pub s_journal_dev: u32,
    /// With `orphan_file`, its inode.
    pub s_orphan_file_inum: Ino,
    /// KiB written in all mounts before this one.
    pub s_kbytes_written: u64,
    /// `s_state` at mount.
    pub s_state: u16,
    /// What the super block wants done after an error.
    pub s_errors: Errors,
    /// First of the list of inodes that were deleted while open, or 0.
    pub s_last_orphan: u32,
}

impl Geometry {
    /// Checks the super block `raw` of a device with `nr_sectors` sectors of 512 bytes and logical
    /// blocks of `lbs` bytes. The order of the checks is that of `ext4_fill_super`.
    pub fn from_super(raw: &[u8; 1024], lbs: u32, nr_sectors: u64) -> Ext4Result<Self> {
        let sb = SuperBlockView::at(raw, 0).ok_or(Refused::Magic(0))?;
        check_identity(&sb, raw)?;
        check_features(&sb)?;
        let s_blocksize_bits = check_block_size(&sb, lbs)?;
        let s_blocksize = 1 << s_blocksize_bits;
        let (s_inode_size, s_first_ino) = check_inode_size(&sb, s_blocksize)?;
        let s_desc_size = check_desc_size(&sb)?;
        let s_inodes_per_block = s_blocksize / u32::from(s_inode_size);
        let s_cluster_ratio = check_groups(&sb, s_blocksize, s_inodes_per_block)?;
        let s_groups_count = check_blocks(&sb, s_blocksize, s_cluster_ratio, nr_sectors)?;
        let s_desc_per_block = s_blocksize / u32::from(s_desc_size);
        let s_gdb_count = s_groups_count.div_ceil(s_desc_per_block);
        let s_first_meta_bg = sb.s_first_meta_bg();
        if sb.incompat().contains(Incompat::META_BG) && s_first_meta_bg > s_gdb_count {
            return Err(Refused::FirstMetaBg(s_first_meta_bg).into());
        }
        let has_journal = sb.compat().contains(Compat::HAS_JOURNAL);
        // INVARIANT: all divisors and counts come out of the checks above.
        Ok(Self {
            s_blocksize,
            s_blocksize_bits,
            s_blocks_count: sb.ext4_blocks_count(),
            s_first_data_block: sb.s_first_data_block(),
            s_blocks_per_group: sb.s_blocks_per_group(),
            s_cluster_ratio,
            s_inodes_per_group: sb.s_inodes_per_group(),
            s_inodes_per_block,
            s_inodes_count: sb.s_inodes_count(),
            s_inode_size,
            s_first_ino,
            s_want_extra_isize: sb.s_want_extra_isize(),
            s_groups_count,
            s_desc_size,
            s_desc_per_block,
            s_gdb_count,
            s_first_meta_bg,
            s_reserved_gdt_blocks: sb.s_reserved_gdt_blocks(),
            s_log_groups_per_flex: log_groups_per_flex(&sb),
            s_r_blocks_count: sb.ext4_r_blocks_count(),
            s_backup_bgs: sb.compat().contains(Compat::SPARSE_SUPER2).then(|| sb.s_backup_bgs()),
            s_compat: sb.compat(),
            s_incompat: sb.incompat(),
            s_ro_compat: sb.ro_compat(),
            s_csum_seed: csum_seed(&sb),
            s_uuid: sb.s_uuid(),
            s_hash: HashInfo::new(sb.s_hash_seed(), sb.s_flags()),
            s_def_hash_version: DxHash::from_version(sb.s_def_hash_version()).unwrap_or(DxHash::HalfMd4),
            s_journal_inum: Ino(if has_journal { sb.s_journal_inum() } else { 0 }),
            s_journal_dev: if has_journal { sb.s_journal_dev() } else { 0 },
            s_orphan_file_inum: Ino(sb.s_orphan_file_inum()),
            s_kbytes_written: sb.s_kbytes_written(),
            s_state: sb.s_state(),
            s_errors: Errors::from_super(sb.s_errors()),
            s_last_orphan: sb.s_last_orphan(),
        })
    }

    /// The block that the super block is in.
    pub fn sb_block(&self) -> Fsblk {
        Fsblk(SUPERBLOCK_OFFSET / u64::from(self.s_blocksize))
    }

    /// Where in its block the super block is, in bytes.
    pub fn sb_offset(&self) -> usize {
        (SUPERBLOCK_OFFSET % u64::from(self.s_blocksize)) as usize
    }

    /// Granularity of time stamps in nanoseconds.
    pub fn s_time_gran(&self) -> u32 {
        if self.s_inode_size > EXT4_GOOD_OLD_INODE_SIZE { 1 } else { 1_000_000_000 }
    }

    /// The last second that a time stamp can have: two more bits where there is room for them.
    pub fn s_time_max(&self) -> i64 {
        i64::from(i32::MAX) + if self.s_inode_size > EXT4_GOOD_OLD_INODE_SIZE { 3 << 32 } else { 0 }
    }

    /// Whether metadata have checksums.
    #[doc(alias = "ext4_has_metadata_csum")]
    #[inline]
    pub fn has_metadata_csum(&self) -> bool {
        self.s_ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Bytes that `i_blocks` can count, at most.
    fn i_blocks_limit(&self) -> u64 {
        if self.s_ro_compat.contains(RoCompat::HUGE_FILE) {
            return i64::MAX as u64;
        }
        u64::from(u32::MAX) >> (self.s_blocksize_bits - 9) << self.s_blocksize_bits
    }

    /// Largest size of a file with extents, in bytes.
    #[doc(alias = "ext4_max_size")]
    pub fn s_maxbytes(&self) -> i64 {
        (u64::from(EXT_MAX_BLOCKS) << self.s_blocksize_bits).min(self.i_blocks_limit()) as i64
    }

    /// Largest size of a file without extents, in bytes.
    #[doc(alias = "ext4_max_bitmap_size")]
    pub fn s_bitmap_maxbytes(&self) -> i64 {
        let per_block = u64::from(self.s_blocksize) / 4;
        let blocks = u64::from(EXT4_NDIR_BLOCKS) + per_block + per_block.pow(2) + per_block.pow(3);
        (blocks.min(u64::from(u32::MAX)) << self.s_blocksize_bits).min(self.i_blocks_limit()) as i64
    }
}

/// Whether this is an ext4 super block at all, and a whole one.
fn check_identity(sb: &Sb<'_>, raw: &[u8; 1024]) -> Ext4Result {
    if sb.s_magic() != EXT4_SUPER_MAGIC {
        return Err(Refused::Magic(sb.s_magic()).into());
    }
    if sb.ro_compat().contains(RoCompat::METADATA_CSUM) {
        if sb.s_checksum_type() != EXT4_CRC32C_CHKSUM {
            return Err(Refused::ChecksumType(sb.s_checksum_type()).into());
        }
        if sb.s_checksum() != ext4_superblock_csum(raw) {
            return Err(Refused::SuperChecksum.into());
        }
        if sb.ro_compat().contains(RoCompat::GDT_CSUM) {
            pr_warn!("EXT4-fs: metadata_csum and uninit_bg are redundant flags; run e2fsck");
        }
    }
    Ok(())
}

/// Whether everything that must be known to read the file system is.
fn check_features(sb: &Sb<'_>) -> Ext4Result {
    match sb.s_rev_level() {
        EXT4_GOOD_OLD_REV => {
            let features = sb.s_feature_compat() | sb.s_feature_incompat() | sb.s_feature_ro_compat();
            if features != 0 {
                pr_warn!("EXT4-fs: feature flags set on rev 0 fs, running e2fsck is recommended");
            }
        }
        1 => {}
        rev => return Err(Refused::Revision(rev).into()),
    }
    let unknown = sb.incompat().difference(EXT4_FEATURE_INCOMPAT_SUPP | Incompat::RECOVER);
    if !unknown.is_empty() {
        return Err(Refused::Incompat(unknown).into());
    }
    Ok(())
}

/// log2 of the block size.
fn check_block_size(sb: &Sb<'_>, lbs: u32) -> Result<u8, Refused> {
    let bits = match sb.s_log_block_size() {
        log @ 0..=2 => 10 + log as u8,
        log => return Err(Refused::LogBlockSize(log)),
    };
    if lbs > 1 << bits {
        return Err(Refused::DeviceBlockSize(lbs));
    }
    Ok(bits)
}

/// Inode size, and the first inode that is not reserved.
fn check_inode_size(sb: &Sb<'_>, blocksize: u32) -> Result<(u16, u32), Refused> {
    if sb.s_rev_level() == EXT4_GOOD_OLD_REV {
        return Ok((EXT4_GOOD_OLD_INODE_SIZE, EXT4_GOOD_OLD_FIRST_INO));
    }
    let size = sb.s_inode_size();
    if size < EXT4_GOOD_OLD_INODE_SIZE || !size.is_power_of_two() || u32::from(size) > blocksize {
        return Err(Refused::InodeSize(size));
    }
    if sb.s_first_ino() < EXT4_GOOD_OLD_FIRST_INO {
        return Err(Refused::FirstIno(sb.s_first_ino()));
    }
    Ok((size, sb.s_first_ino()))
}

fn check_desc_size(sb: &Sb<'_>) -> Result<u16, Refused> {
    if !sb.incompat().contains(Incompat::BIT64) {
        return Ok(EXT4_MIN_DESC_SIZE);
    }
    match sb.s_desc_size() {
        size if (EXT4_MIN_DESC_SIZE_64BIT..=1024).contains(&size) && size.is_power_of_two() => Ok(size),
        size => Err(Refused::DescSize(size)),
    }
}

/// Sizes of groups, which a bitmap of one block limits. Returns the blocks in a cluster.
fn check_groups(sb: &Sb<'_>, blocksize: u32, inodes_per_block: u32) -> Result<u32, Refused> {
    let (log_block, log_cluster) = (sb.s_log_block_size(), sb.s_log_cluster_size());
    let (blocks, clusters, inodes) = (sb.s_blocks_per_group(), sb.s_clusters_per_group(), sb.s_inodes_per_group());
    let bits = blocksize * 8;
    let ratio = if sb.ro_compat().contains(RoCompat::BIGALLOC) {
        // Clusters of more than 2^29 blocks would overflow what they are counted with.
        match log_cluster.checked_sub(log_block) {
            Some(log @ 0..=18) => 1 << log,
            _ => return Err(Refused::LogClusterSize(log_cluster)),
        }
    } else if sb.s_rev_level() != EXT4_GOOD_OLD_REV && log_cluster != log_block {
        return Err(Refused::LogClusterSize(log_cluster));
    } else {
        1
    };
    if blocks == 0 || blocks % 8 != 0 || blocks / ratio > bits {
        return Err(Refused::BlocksPerGroup(blocks));
    }
    if clusters.checked_mul(ratio) != Some(blocks) {
        return Err(Refused::ClustersPerGroup(clusters));
    }
    if inodes < inodes_per_block || inodes > bits || inodes % inodes_per_block != 0 {
        return Err(Refused::InodesPerGroup(inodes));
    }
    if u32::from(sb.s_reserved_gdt_blocks()) > blocksize / 4 {
        return Err(Refused::ReservedGdtBlocks(sb.s_reserved_gdt_blocks()));
    }
    Ok(ratio)
}

/// Where the blocks begin and end, against the device and the groups. Returns how many groups there are.
fn check_blocks(sb: &Sb<'_>, blocksize: u32, cluster_ratio: u32, nr_sectors: u64) -> Result<u32, Ext4Error> {
    let count = sb.ext4_blocks_count();
    let first = sb.s_first_data_block();
    if count == 0 || count > MAX_BLOCKS {
        return Err(Refused::BlocksCount(count).into());
    }
    if count > nr_sectors / u64::from(blocksize / 512) {
        return Err(Refused::DeviceSize(count).into());
    }
    let first_fits = match blocksize {
        1024 => first == 1 || (first == 0 && cluster_ratio > 1),
        _ => first == 0,
    };
    if !first_fits || u64::from(first) >= count {
        return Err(Refused::FirstDataBlock(first).into());
    }
    if sb.ext4_r_blocks_count() > count {
        return Err(Refused::ReservedBlocks(sb.ext4_r_blocks_count()).into());
    }
    let groups = (count - u64::from(first)).div_ceil(u64::from(sb.s_blocks_per_group()));
    let Ok(groups) = u32::try_from(groups) else {
        return Err(Refused::BlocksCount(count).into());
    };
    if u64::from(groups) * u64::from(sb.s_inodes_per_group()) != u64::from(sb.s_inodes_count()) {
        return Err(Refused::InodesCount(sb.s_inodes_count()).into());
    }
    Ok(groups)
}

/// A number that makes no sense counts as none, as in Linux.
fn log_groups_per_flex(sb: &Sb<'_>) -> u8 {
    let log = sb.s_log_groups_per_flex();
    if sb.incompat().contains(Incompat::FLEX_BG) && log < 32 { log } else { 0 }
}

fn csum_seed(sb: &Sb<'_>) -> u32 {
    if sb.incompat().contains(Incompat::CSUM_SEED) { sb.s_checksum_seed() } else { ext4_chksum(!0, &sb.s_uuid()) }
}
