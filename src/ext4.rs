// SPDX-License-Identifier: GPL-2.0-only
//! `ext4.h` and `ext4_extents.h`: the on-disk structures, the flag words, and the small types that
//! the rest of the file system speaks in.
//!
//! On-disk structures are views (`le_view!`); sizes and offsets are asserted at compile time and
//! documented in the kernel's `Documentation/filesystems/ext4/`. What is not a field of one structure
//! (64-bit values kept in two halves, time stamps, lengths with a flag in the top bit) has a method here.

use core::fmt;

use bitflags::bitflags;
use kernel_shim::time::Timespec64;
use static_assertions::{assert_eq_size, const_assert_eq};

use crate::le::le_view;
pub use crate::sb_options::DioMode;

// ---- numbers

/// Offset of the super block from the start of the device, in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// `s_magic`.
pub const EXT4_SUPER_MAGIC: u16 = 0xEF53;
/// `s_rev_level` of file systems older than feature flags and variable inode sizes.
pub const EXT4_GOOD_OLD_REV: u32 = 0;
/// Inode size of [`EXT4_GOOD_OLD_REV`] in bytes, and the least there is.
pub const EXT4_GOOD_OLD_INODE_SIZE: u16 = 128;
/// First inode of [`EXT4_GOOD_OLD_REV`] that is not reserved.
pub const EXT4_GOOD_OLD_FIRST_INO: u32 = 11;
/// Size of a group descriptor in bytes without [`Incompat::BIT64`], and the least there is.
pub const EXT4_MIN_DESC_SIZE: u16 = 32;
/// Least size of a group descriptor in bytes with [`Incompat::BIT64`].
pub const EXT4_MIN_DESC_SIZE_64BIT: u16 = 64;
/// Inode number of the root directory.
pub const EXT4_ROOT_INO: Ino = Ino(2);
/// Inode number of the reserved group descriptor blocks.
pub const EXT4_RESIZE_INO: Ino = Ino(7);
/// Inode number of the journal, unless `s_journal_inum` says otherwise.
pub const EXT4_JOURNAL_INO: Ino = Ino(8);
/// Most links an inode can have; a directory that has more says 1.
pub const EXT4_LINK_MAX: u16 = 65_000;
/// Longest name of a directory entry in bytes.
pub const EXT4_NAME_LEN: usize = 255;
/// `s_checksum_type` of crc32c, the only one defined.
pub const EXT4_CRC32C_CHKSUM: u8 = 1;
/// `s_state`: cleanly unmounted.
pub const EXT4_VALID_FS: u16 = 0x0001;
/// `s_state`: errors were found.
pub const EXT4_ERROR_FS: u16 = 0x0002;
/// `s_state`: orphans are being processed.
pub const EXT4_ORPHAN_FS: u16 = 0x0004;
/// `s_flags`: directory hashes take bytes as signed.
pub const EXT2_FLAGS_SIGNED_HASH: u32 = 0x0001;
/// `s_flags`: directory hashes take bytes as unsigned.
pub const EXT2_FLAGS_UNSIGNED_HASH: u32 = 0x0002;
/// `eh_magic`.
pub const EXT4_EXT_MAGIC: u16 = 0xF30A;
/// Most levels of index nodes between an inode and its extents.
pub const EXT4_MAX_EXTENT_DEPTH: u16 = 5;
/// `ee_len` up to here is the length of a written extent; beyond it is unwritten and this much less long.
pub const EXT_INIT_MAX_LEN: u16 = 1 << 15;
/// One past the last logical block a file may have.
pub const EXT_MAX_BLOCKS: u32 = u32::MAX;
/// Direct blocks in an inode without extents.
pub const EXT4_NDIR_BLOCKS: u32 = 12;
/// Bytes of an inode that hold the root of its block map.
pub const EXT4_I_DATA_LEN: usize = 60;
/// `file_type` of a directory entry.
pub const EXT4_FT_UNKNOWN: u8 = 0;
/// Regular file.
pub const EXT4_FT_REG_FILE: u8 = 1;
/// Directory.
pub const EXT4_FT_DIR: u8 = 2;
/// Character device.
pub const EXT4_FT_CHRDEV: u8 = 3;
/// Block device.
pub const EXT4_FT_BLKDEV: u8 = 4;
/// Named pipe.
pub const EXT4_FT_FIFO: u8 = 5;
/// Socket.
pub const EXT4_FT_SOCK: u8 = 6;
/// Symbolic link.
pub const EXT4_FT_SYMLINK: u8 = 7;
/// `det_reserved_ft` of a directory block's checksum entry.
pub const EXT4_FT_DIR_CSUM: u8 = 0xDE;

// ---- newtypes

/// Logical block: a block's place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lblk(pub u32);

/// Physical block: a block's place in the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fsblk(pub u64);

/// Inode number. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u32);

/// Block group number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub u32);

macro_rules! display_as_number {
    ($($ty:ty),*) => {$(
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
display_as_number!(Lblk, Fsblk, Ino, Group);

// ---- mapping

bitflags! {
    /// What [`MapBlocks`] says of the blocks it found. The values are those of the buffer-state bits
    /// that they are copied to in C.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// Written blocks: reading them gives the file's data.
        #[doc(alias = "EXT4_MAP_MAPPED")]
        const MAPPED = 1 << 5;
        /// Allocated by this very call.
        #[doc(alias = "EXT4_MAP_NEW")]
        const NEW = 1 << 6;
        /// The next block's mapping needs another metadata read.
        #[doc(alias = "EXT4_MAP_BOUNDARY")]
        const BOUNDARY = 1 << 10;
        /// Allocated but never written: reads as zeros.
        #[doc(alias = "EXT4_MAP_UNWRITTEN")]
        const UNWRITTEN = 1 << 12;
        /// Unwritten, and to be converted when the I/O completes.
        #[doc(alias = "EXT4_MAP_UNINIT")]
        const UNINIT = 1 << 24;
        /// Taken from a cluster that was allocated already.
        #[doc(alias = "EXT4_MAP_FROM_CLUSTER")]
        const FROM_CLUSTER = 1 << 25;
    }

    /// What `ext4_map_blocks` is to do besides looking up.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct GetBlocks: u32 {
        /// May allocate.
        #[doc(alias = "EXT4_GET_BLOCKS_CREATE")]
        const CREATE = 0x0001;
        /// Allocate as unwritten.
        #[doc(alias = "EXT4_GET_BLOCKS_UNINIT_EXT")]
        const UNINIT_EXT = 0x0002;
        /// May allocate, as unwritten.
        #[doc(alias = "EXT4_GET_BLOCKS_CREATE_UNINIT_EXT")]
        const CREATE_UNINIT_EXT = 0x0003;
        /// Split extents before the I/O, and do not merge.
        #[doc(alias = "EXT4_GET_BLOCKS_PRE_IO")]
        const PRE_IO = 0x0008;
        /// After the I/O: unwritten becomes written.
        #[doc(alias = "EXT4_GET_BLOCKS_CONVERT")]
        const CONVERT = 0x0010;
        /// What a direct write asks for.
        #[doc(alias = "EXT4_GET_BLOCKS_IO_CREATE_EXT")]
        const IO_CREATE_EXT = 0x000B;
        /// What a direct write's completion asks for.
        #[doc(alias = "EXT4_GET_BLOCKS_IO_CONVERT_EXT")]
        const IO_CONVERT_EXT = 0x0013;
        /// Do not round the request up.
        #[doc(alias = "EXT4_GET_BLOCKS_NO_NORMALIZE")]
        const NO_NORMALIZE = 0x0040;
        /// Written becomes unwritten: what ZERO_RANGE asks for.
        #[doc(alias = "EXT4_GET_BLOCKS_CONVERT_UNWRITTEN")]
        const CONVERT_UNWRITTEN = 0x0100;
        /// New blocks are zeroed on the device before anybody can see them.
        #[doc(alias = "EXT4_GET_BLOCKS_ZERO")]
        const ZERO = 0x0200;
    }
}

const_assert_eq!(MapFlags::all().bits(), 0x0300_1460);

/// A question to `ext4_map_blocks`, and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "ext4_map_blocks")]
pub struct MapBlocks {
    /// Where `m_lblk` is on the device, if mapped or unwritten.
    pub m_pblk: Fsblk,
    /// First block asked for.
    pub m_lblk: Lblk,
    /// In: blocks asked for. Out: blocks, from `m_lblk` on, that the answer is about; never more.
    pub m_len: u32,
    /// The answer; empty for a hole.
    pub m_flags: MapFlags,
}

impl MapBlocks {
    /// A question about `len` blocks from `lblk` on.
    #[inline]
    pub fn new(lblk: Lblk, len: u32) -> Self {
        Self { m_pblk: Fsblk(0), m_lblk: lblk, m_len: len, m_flags: MapFlags::empty() }
    }
}

// ---- features and flags

bitflags! {
    /// `s_feature_compat`: nothing need be known of these to read or write.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// Directory preallocation.
        const DIR_PREALLOC = 0x0001;
        /// AFS server inodes.
        const IMAGIC_INODES = 0x0002;
        /// There is a journal.
        const HAS_JOURNAL = 0x0004;
        /// Extended attributes.
        const EXT_ATTR = 0x0008;
        /// Blocks are reserved for the group descriptors to grow into.
        const RESIZE_INODE = 0x0010;
        /// Directories may have hash trees.
        const DIR_INDEX = 0x0020;
        /// Backup super blocks only where `s_backup_bgs` says.
        const SPARSE_SUPER2 = 0x0200;
        /// The journal may hold fast commits.
        const FAST_COMMIT = 0x0400;
        /// Inode numbers and UUID must not change.
        const STABLE_INODES = 0x0800;
        /// There is an orphan file.
        const ORPHAN_FILE = 0x1000;
    }

    /// `s_feature_incompat`: who does not know one of these must not mount at all.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// Compressed files.
        const COMPRESSION = 0x0001;
        /// Directory entries hold a file type.
        const FILETYPE = 0x0002;
        /// The journal has to be replayed.
        const RECOVER = 0x0004;
        /// The device is a journal, not a file system.
        const JOURNAL_DEV = 0x0008;
        /// Group descriptors are spread over the groups.
        const META_BG = 0x0010;
        /// Files may have extents.
        const EXTENTS = 0x0040;
        /// Block numbers of 64 bits.
        #[doc(alias = "64BIT")]
        const BIT64 = 0x0080;
        /// Multiple-mount protection.
        const MMP = 0x0100;
        /// Bitmaps and inode tables may lie in other groups.
        const FLEX_BG = 0x0200;
        /// Large attribute values in inodes of their own.
        const EA_INODE = 0x0400;
        /// Data in directory entries.
        const DIRDATA = 0x1000;
        /// The checksum seed is in the super block instead of computed from the UUID.
        const CSUM_SEED = 0x2000;
        /// Directories above 2 GiB or with three levels of hash tree.
        const LARGEDIR = 0x4000;
        /// Small files inside the inode.
        const INLINE_DATA = 0x8000;
        /// Encrypted files.
        const ENCRYPT = 0x1_0000;
        /// Case-insensitive directories.
        const CASEFOLD = 0x2_0000;
    }

    /// `s_feature_ro_compat`: who does not know one of these may mount read-only.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RoCompat: u32 {
        /// Backup super blocks only in some groups.
        const SPARSE_SUPER = 0x0001;
        /// There are files above 2 GiB.
        const LARGE_FILE = 0x0002;
        /// Never used.
        const BTREE_DIR = 0x0004;
        /// `i_blocks` may count file-system blocks.
        const HUGE_FILE = 0x0008;
        /// Group descriptors have a crc16.
        const GDT_CSUM = 0x0010;
        /// Directories may have more than 65000 links, counted as 1.
        const DIR_NLINK = 0x0020;
        /// Inodes have fields beyond 128 bytes.
        const EXTRA_ISIZE = 0x0040;
        /// Quota in hidden inodes.
        const QUOTA = 0x0100;
        /// Allocation by clusters.
        const BIGALLOC = 0x0200;
        /// All metadata have a crc32c.
        const METADATA_CSUM = 0x0400;
        /// Replicas.
        const REPLICA = 0x0800;
        /// Never to be written.
        const READONLY = 0x1000;
        /// Project quota.
        const PROJECT = 0x2000;
        /// Blocks may belong to several files.
        const SHARED_BLOCKS = 0x4000;
        /// Files with Merkle trees.
        const VERITY = 0x8000;
        /// The orphan file is not empty.
        const ORPHAN_PRESENT = 0x1_0000;
    }

    /// `i_flags` on disk.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        /// Synchronous updates.
        #[doc(alias = "EXT4_SYNC_FL")]
        const SYNC = 0x0000_0008;
        /// No changes at all.
        #[doc(alias = "EXT4_IMMUTABLE_FL")]
        const IMMUTABLE = 0x0000_0010;
        /// Appending writes only.
        #[doc(alias = "EXT4_APPEND_FL")]
        const APPEND = 0x0000_0020;
        /// Access times are not kept.
        #[doc(alias = "EXT4_NOATIME_FL")]
        const NOATIME = 0x0000_0080;
        /// Encrypted.
        #[doc(alias = "EXT4_ENCRYPT_FL")]
        const ENCRYPT = 0x0000_0800;
        /// A directory with a hash tree.
        #[doc(alias = "EXT4_INDEX_FL")]
        const INDEX = 0x0000_1000;
        /// Data go through the journal.
        #[doc(alias = "EXT4_JOURNAL_DATA_FL")]
        const JOURNAL_DATA = 0x0000_4000;
        /// Changes of a directory are synchronous.
        #[doc(alias = "EXT4_DIRSYNC_FL")]
        const DIRSYNC = 0x0001_0000;
        /// `i_blocks` counts file-system blocks.
        #[doc(alias = "EXT4_HUGE_FILE_FL")]
        const HUGE_FILE = 0x0004_0000;
        /// The block map is an extent tree.
        #[doc(alias = "EXT4_EXTENTS_FL")]
        const EXTENTS = 0x0008_0000;
        /// Has a Merkle tree.
        #[doc(alias = "EXT4_VERITY_FL")]
        const VERITY = 0x0010_0000;
        /// Holds the value of an extended attribute.
        #[doc(alias = "EXT4_EA_INODE_FL")]
        const EA_INODE = 0x0020_0000;
        /// Data inside the inode.
        #[doc(alias = "EXT4_INLINE_DATA_FL")]
        const INLINE_DATA = 0x1000_0000;
        /// Case-insensitive directory.
        #[doc(alias = "EXT4_CASEFOLD_FL")]
        const CASEFOLD = 0x4000_0000;
        // The rest is kept as it is.
        const _ = !0;
    }

    /// `bg_flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BgFlags: u16 {
        /// Inode table and bitmap are not in use.
        #[doc(alias = "EXT4_BG_INODE_UNINIT")]
        const INODE_UNINIT = 0x0001;
        /// The block bitmap is not in use.
        #[doc(alias = "EXT4_BG_BLOCK_UNINIT")]
        const BLOCK_UNINIT = 0x0002;
        /// The inode table is zeroed.
        #[doc(alias = "EXT4_BG_INODE_ZEROED")]
        const INODE_ZEROED = 0x0004;
    }
}

/// Incompatible features that can be mounted.
///
/// [`Incompat::EA_INODE`] is among them because no path here reads or writes attributes, and the
/// inodes it marks are refused to everybody else.
pub const EXT4_FEATURE_INCOMPAT_SUPP: Incompat = Incompat::FILETYPE
    .union(Incompat::META_BG)
    .union(Incompat::EXTENTS)
    .union(Incompat::BIT64)
    .union(Incompat::FLEX_BG)
    .union(Incompat::EA_INODE)
    .union(Incompat::CSUM_SEED)
    .union(Incompat::LARGEDIR);

/// Read-only-compatible features that can be mounted for writing.
pub const EXT4_FEATURE_RO_COMPAT_SUPP: RoCompat = RoCompat::SPARSE_SUPER
    .union(RoCompat::LARGE_FILE)
    .union(RoCompat::BTREE_DIR)
    .union(RoCompat::HUGE_FILE)
    .union(RoCompat::GDT_CSUM)
    .union(RoCompat::DIR_NLINK)
    .union(RoCompat::EXTRA_ISIZE)
    .union(RoCompat::METADATA_CSUM)
    .union(RoCompat::ORPHAN_PRESENT);

/// Writes the names of the bits, and of bits without one the number.
fn fmt_names(names: impl Iterator<Item = &'static str>, unnamed: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut between = "";
    for name in names {
        write!(f, "{between}{name}")?;
        between = ", ";
    }
    match unnamed {
        0 => Ok(()),
        bits => write!(f, "{between}{bits:#x}"),
    }
}

impl fmt::Display for Incompat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter_names().map(|(name, bit)| if bit == Incompat::BIT64 { "64BIT" } else { name });
        fmt_names(names, self.bits() & !Incompat::all().bits(), f)
    }
}

impl fmt::Display for RoCompat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_names(self.iter_names().map(|(name, _)| name), self.bits() & !RoCompat::all().bits(), f)
    }
}

// ---- trees and directories; super block, group descriptors and inodes are in crate::disk

le_view! {
    /// Head of every extent tree node.
    #[doc(alias = "ext4_extent_header")]
    pub struct ExtentHeader[12] {
        eh_magic / set_eh_magic: u16 = 0;
        /// Entries in use.
        eh_entries / set_eh_entries: u16 = 2;
        /// Entries there is room for.
        eh_max / set_eh_max: u16 = 4;
        /// Levels below; 0 in a leaf.
        eh_depth / set_eh_depth: u16 = 6;
        eh_generation: u32 = 8;
    }
}

le_view! {
    /// An extent, in a leaf.
    #[doc(alias = "ext4_extent")]
    pub struct Extent[12] {
        /// First logical block.
        ee_block / set_ee_block: u32 = 0;
        /// Length and state; see [`EXT_INIT_MAX_LEN`].
        ee_len / set_ee_len: u16 = 4;
        ee_start_hi / set_ee_start_hi: u16 = 6;
        ee_start_lo / set_ee_start_lo: u32 = 8;
    }
}

impl Extent<&[u8; 12]> {
    /// First physical block.
    pub fn ext4_ext_pblock(&self) -> Fsblk {
        Fsblk(u64::from(self.ee_start_hi()) << 32 | u64::from(self.ee_start_lo()))
    }

    /// Allocated, never written.
    pub fn ext4_ext_is_unwritten(&self) -> bool {
        self.ee_len() > EXT_INIT_MAX_LEN
    }

    /// Blocks.
    pub fn ext4_ext_get_actual_len(&self) -> u32 {
        let len = self.ee_len();
        u32::from(if len > EXT_INIT_MAX_LEN { len - EXT_INIT_MAX_LEN } else { len })
    }
}

le_view! {
    /// A pointer to a node one level below.
    #[doc(alias = "ext4_extent_idx")]
    pub struct ExtentIdx[12] {
        /// The node is about logical blocks from here on.
        ei_block / set_ei_block: u32 = 0;
        ei_leaf_lo / set_ei_leaf_lo: u32 = 4;
        ei_leaf_hi / set_ei_leaf_hi: u16 = 8;
        ei_unused: u16 = 10;
    }
}

impl ExtentIdx<&[u8; 12]> {
    /// The node's block.
    pub fn ext4_idx_pblock(&self) -> Fsblk {
        Fsblk(u64::from(self.ei_leaf_hi()) << 32 | u64::from(self.ei_leaf_lo()))
    }
}

le_view! {
    /// Head of a directory entry; the name follows.
    #[doc(alias = "ext4_dir_entry_2")]
    pub struct DirEntryHead[8] {
        /// 0 in an entry that is not in use.
        inode / set_inode: u32 = 0;
        /// Bytes to the next entry, coded; see [`ext4_rec_len_from_disk`].
        rec_len / set_rec_len: u16 = 4;
        name_len / set_name_len: u8 = 6;
        file_type / set_file_type: u8 = 7;
    }
}

le_view! {
    /// The checksum at the end of a directory block, made to look like an unused entry.
    #[doc(alias = "ext4_dir_entry_tail")]
    pub struct DirEntryTail[12] {
        det_reserved_zero1 / set_det_reserved_zero1: u32 = 0;
        det_rec_len / set_det_rec_len: u16 = 4;
        det_reserved_zero2 / set_det_reserved_zero2: u8 = 6;
        det_reserved_ft / set_det_reserved_ft: u8 = 7;
        det_checksum / set_det_checksum: u32 = 8;
    }
}

le_view! {
    /// What a hash tree's root says of the tree, after the entries for `.` and `..`.
    #[doc(alias = "dx_root_info")]
    pub struct DxRootInfo[8] {
        reserved_zero / set_reserved_zero: u32 = 0;
        hash_version / set_hash_version: u8 = 4;
        /// Bytes of this structure.
        info_length / set_info_length: u8 = 5;
        /// Levels of nodes between the root and the directory's leaf blocks.
        indirect_levels / set_indirect_levels: u8 = 6;
        unused_flags / set_unused_flags: u8 = 7;
    }
}

le_view! {
    /// Takes the place of the hash in a hash tree node's first entry.
    #[doc(alias = "dx_countlimit")]
    pub struct DxCountLimit[4] {
        limit / set_limit: u16 = 0;
        count / set_count: u16 = 2;
    }
}

le_view! {
    /// An entry of a hash tree node.
    #[doc(alias = "dx_entry")]
    pub struct DxEntry[8] {
        hash / set_hash: u32 = 0;
        /// Logical block of the directory.
        block / set_block: u32 = 4;
    }
}

le_view! {
    /// Checksum of a hash tree node, after the room for its entries.
    #[doc(alias = "dx_tail")]
    pub struct DxTail[8] {
        dt_reserved: u32 = 0;
        dt_checksum / set_dt_checksum: u32 = 4;
    }
}

const_assert_eq!(ExtentHeader::LEN, 12);
const_assert_eq!(Extent::LEN, ExtentIdx::LEN);
const_assert_eq!(EXT4_I_DATA_LEN, ExtentHeader::LEN + 4 * Extent::LEN);
const_assert_eq!(EXT4_I_DATA_LEN, (EXT4_NDIR_BLOCKS as usize + 3) * 4);
assert_eq_size!(MapBlocks, [u8; 24]);

/// Length of a directory entry from its coded form, for blocks of `blocksize` bytes. Blocks of 64 KiB
/// and more need the two low bits; below that lengths are as they stand.
pub fn ext4_rec_len_from_disk(rec_len: u16, blocksize: usize) -> usize {
    let len = usize::from(rec_len);
    if blocksize < 0x1_0000 || (rec_len != 0 && rec_len != u16::MAX) { len } else { blocksize }
}

// ---- time stamps

/// [`ext4_rec_len_from_disk`]'s inverse, for a length that is a multiple of 4 and at most the block size.
pub fn ext4_rec_len_to_disk(len: usize, blocksize: usize) -> u16 {
    if len == 0x1_0000 && blocksize == 0x1_0000 { u16::MAX } else { len.min(0xfffc) as u16 }
}

/// A time stamp from its two words: signed seconds, and nanoseconds over two more bits of seconds.
/// `extra` is none where the inode has no room for it. Nanoseconds out of range read as 0, as `e2fsck` has it.
#[doc(alias = "ext4_decode_extra_time")]
pub fn ext4_decode_time(seconds: u32, extra: Option<u32>) -> Timespec64 {
    let base = i64::from(seconds.cast_signed());
    let Some(extra) = extra else {
        return Timespec64 { tv_sec: base, tv_nsec: 0 };
    };
    let nsec = extra >> 2;
    Timespec64 { tv_sec: base + (i64::from(extra & 3) << 32), tv_nsec: if nsec < 1_000_000_000 { nsec } else { 0 } }
}

/// The two words of a time stamp. Times that do not fit (before 1901, after 2446) are clamped.
#[doc(alias = "ext4_encode_extra_time")]
pub fn ext4_encode_time(time: Timespec64) -> (u32, u32) {
    let sec = time.tv_sec.clamp(i64::from(i32::MIN), i64::from(i32::MAX) + (3 << 32));
    let low = sec as i32;
    let epoch = ((sec - i64::from(low)) >> 32) as u32 & 3;
    (low.cast_unsigned(), epoch | time.tv_nsec.min(999_999_999) << 2)
}

/// A time stamp's seconds for inodes without the second word, clamped.
pub fn ext4_encode_time_32(time: Timespec64) -> u32 {
    (time.tv_sec.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_disk_in_all_four_epochs() {
        for sec in [i64::from(i32::MIN), -1, 0, 1, 0x7fff_ffff, 0x8000_0000, 0x1_7fff_ffff, 0x3_7fff_ffff] {
            let time = Timespec64 { tv_sec: sec, tv_nsec: 999_999_999 };
            let (seconds, extra) = ext4_encode_time(time);
            assert_eq!(ext4_decode_time(seconds, Some(extra)), time);
        }
    }

    #[test]
    fn times_out_of_range_are_clamped() {
        let late = Timespec64 { tv_sec: i64::MAX, tv_nsec: 5 };
        let (seconds, extra) = ext4_encode_time(late);
        assert_eq!(ext4_decode_time(seconds, Some(extra)).tv_sec, 0x3_7fff_ffff);
        assert_eq!(ext4_encode_time_32(late), 0x7fff_ffff);
        let early = Timespec64 { tv_sec: i64::MIN, tv_nsec: 5 };
        assert_eq!(ext4_decode_time(ext4_encode_time_32(early), None).tv_sec, i64::from(i32::MIN));
    }

    #[test]
    fn extent_lengths_carry_their_state() {
        let extent = |len: u16| {
            let mut bytes = [0u8; 12];
            bytes[4..6].copy_from_slice(&len.to_le_bytes());
            let extent = Extent::<&[u8; 12]>::at(&bytes, 0).expect("twelve bytes");
            (extent.ext4_ext_get_actual_len(), extent.ext4_ext_is_unwritten())
        };
        assert_eq!(extent(1), (1, false));
        assert_eq!(extent(0x8000), (0x8000, false));
        assert_eq!(extent(0x8001), (1, true));
        assert_eq!(extent(0xffff), (0x7fff, true));
    }

    #[test]
    fn features_are_told_by_name_and_unknown_ones_by_number() {
        let mut text = heapless::String::<64>::new();
        let features = Incompat::from_bits_retain(0x8000 | 0x80 | 0x4000_0000);
        core::fmt::write(&mut text, format_args!("{features}")).expect("it fits");
        assert_eq!(text, "64BIT, INLINE_DATA, 0x40000000");
    }
}
