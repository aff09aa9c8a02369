// SPDX-License-Identifier: GPL-2.0-only
//! What can be wrong with an image, one variant for each check.
//!
//! Functions that read the disk return [`Ext4Error`], so that a test can tell which check struck.
//! At the edge to the VFS, [`Ext4SbInfo::ext4_error`](crate::sb::Ext4SbInfo::ext4_error) logs a
//! corruption once for each kind and mount, and turns it into an errno.

use core::fmt;

use kernel_shim::alloc::AllocError;
use kernel_shim::error::Error;
use kernel_shim::error::code::{EFSBADCRC, EFSCORRUPTED, EINVAL, ENOMEM, EOPNOTSUPP, EROFS};

use crate::ext4::{Group, Incompat, Ino};

/// Why something on the disk could not be read or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ext4Error {
    /// The disk contradicts itself.
    Corrupt(Corrupt),
    /// The file system cannot be mounted.
    Refused(Refused),
    /// Anything else: no memory, an I/O error, no such name.
    Errno(Error),
}

/// Of functions that read the disk.
pub type Ext4Result<T = ()> = Result<T, Ext4Error>;

impl From<Corrupt> for Ext4Error {
    fn from(corrupt: Corrupt) -> Self {
        Ext4Error::Corrupt(corrupt)
    }
}

impl From<Refused> for Ext4Error {
    fn from(refused: Refused) -> Self {
        Ext4Error::Refused(refused)
    }
}

impl From<Error> for Ext4Error {
    fn from(errno: Error) -> Self {
        Ext4Error::Errno(errno)
    }
}

impl From<AllocError> for Ext4Error {
    fn from(_: AllocError) -> Self {
        Ext4Error::Errno(ENOMEM)
    }
}

impl From<Ext4Error> for Error {
    fn from(error: Ext4Error) -> Self {
        match error {
            Ext4Error::Corrupt(corrupt) => corrupt.errno(),
            Ext4Error::Refused(refused) => refused.errno(),
            Ext4Error::Errno(errno) => errno,
        }
    }
}

impl fmt::Display for Ext4Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ext4Error::Corrupt(corrupt) => corrupt.fmt(f),
            Ext4Error::Refused(refused) => refused.fmt(f),
            Ext4Error::Errno(errno) => errno.fmt(f),
        }
    }
}

/// Where a corruption was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In an inode or what belongs to it.
    Inode(Ino),
    /// In a block group's descriptor.
    Group(Group),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Inode(ino) => write!(f, "inode {ino}"),
            Place::Group(group) => write!(f, "group {group}"),
        }
    }
}

macro_rules! corruptions {
    ($( $name:ident($kind:ident: $ty:ty) $errno:ident $text:literal; )*) => {
        /// A contradiction on the disk, with the inode or group it was found in.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Corrupt {
            $( #[doc = $text] $name($ty), )*
        }

        /// [`Corrupt`] without the place.
        #[derive(Clone, Copy)]
        enum Kind { $( $name, )* }

        impl Corrupt {
            /// How many kinds there are.
            const KINDS: usize = [$( Kind::$name as usize ),*].len();

            /// Which kind it is, counted from 0 and below 128.
            pub(crate) fn kind(&self) -> u32 {
                match self { $( Corrupt::$name(_) => Kind::$name as u32, )* }
            }

            /// `EFSBADCRC` for a wrong checksum, `EFSCORRUPTED` for all else.
            pub fn errno(&self) -> Error {
                match self { $( Corrupt::$name(_) => $errno, )* }
            }

            /// Where it was found.
            pub fn place(&self) -> Place {
                match self { $( Corrupt::$name(place) => Place::$kind(*place), )* }
            }

            /// The check's name.
            pub fn name(&self) -> &'static str {
                match self { $( Corrupt::$name(_) => stringify!($name), )* }
            }

            /// What is wrong.
            pub fn text(&self) -> &'static str {
                match self { $( Corrupt::$name(_) => $text, )* }
            }
        }
    };
}

corruptions! {
    GroupDescChecksum(Group: Group) EFSBADCRC "group descriptor's checksum is wrong";
    BlockBitmapPlace(Group: Group) EFSCORRUPTED "block bitmap lies outside the file system or its group";
    InodeBitmapPlace(Group: Group) EFSCORRUPTED "inode bitmap lies outside the file system or its group";
    InodeTablePlace(Group: Group) EFSCORRUPTED "inode table lies outside the file system or its group";
    SystemZoneOverlap(Group: Group) EFSCORRUPTED "group's metadata overlap other metadata";
    InodeNumber(Inode: Ino) EFSCORRUPTED "inode number is out of range or reserved";
    InodeChecksum(Inode: Ino) EFSBADCRC "inode's checksum is wrong";
    InodeExtraIsize(Inode: Ino) EFSCORRUPTED "i_extra_isize is larger than the inode, or not a multiple of 4";
    InodeSize(Inode: Ino) EFSCORRUPTED "i_size is out of range";
    InodeMode(Inode: Ino) EFSCORRUPTED "i_mode has no known file type";
    InodeFlags(Inode: Ino) EFSCORRUPTED "i_flags ask for what the file system has no feature for";
    InodeUnallocated(Inode: Ino) EFSCORRUPTED "inode is not in use, but is needed or referred to";
    InodeBlockRange(Inode: Ino) EFSCORRUPTED "mapped blocks lie outside the file system or over its metadata";
    JournalHole(Inode: Ino) EFSCORRUPTED "journal has a hole";
    SymlinkTarget(Inode: Ino) EFSCORRUPTED "symbolic link's length does not fit its target";
    ExtentMagic(Inode: Ino) EFSCORRUPTED "extent node has no magic number";
    ExtentDepth(Inode: Ino) EFSCORRUPTED "extent node's depth is not what its parent says, or above 5";
    ExtentMax(Inode: Ino) EFSCORRUPTED "extent node's eh_max is 0 or more than fits";
    ExtentEntries(Inode: Ino) EFSCORRUPTED "extent node has more entries than eh_max, or an index none";
    ExtentLength(Inode: Ino) EFSCORRUPTED "extent is empty or reaches beyond the largest file";
    ExtentOrder(Inode: Ino) EFSCORRUPTED "extents overlap or are not in order";
    ExtentRange(Inode: Ino) EFSCORRUPTED "extent lies outside the file system or over its metadata";
    ExtentIndexRange(Inode: Ino) EFSCORRUPTED "extent node lies outside the file system or over its metadata";
    ExtentBlockChecksum(Inode: Ino) EFSBADCRC "extent node's checksum is wrong";
    IndirectBlock(Inode: Ino) EFSCORRUPTED "indirect block or what it points to lies outside the file system or over its metadata";
    DirHole(Inode: Ino) EFSCORRUPTED "directory has a hole";
    DirSize(Inode: Ino) EFSCORRUPTED "directory's size is not a multiple of the block size, or too large";
    DirBlockChecksum(Inode: Ino) EFSBADCRC "directory block's checksum is wrong";
    DirBlockTail(Inode: Ino) EFSBADCRC "directory block has no room for its checksum";
    DirEntryRecLen(Inode: Ino) EFSCORRUPTED "directory entry's rec_len is smaller than minimal";
    DirEntryAlign(Inode: Ino) EFSCORRUPTED "directory entry's rec_len is not a multiple of 4";
    DirEntryNameLen(Inode: Ino) EFSCORRUPTED "directory entry's rec_len is too small for name_len";
    DirEntryOverrun(Inode: Ino) EFSCORRUPTED "directory entry reaches beyond its block, or too near to its end";
    DirEntryInode(Inode: Ino) EFSCORRUPTED "directory entry's inode number is out of bounds";
    DirEntryLoop(Inode: Ino) EFSCORRUPTED "directory holds itself";
    DirEntryDeleted(Inode: Ino) EFSCORRUPTED "directory entry leads to a deleted inode";
    DxHash(Inode: Ino) EFSCORRUPTED "hash tree has an unknown hash version";
    DxFlags(Inode: Ino) EFSCORRUPTED "hash tree has unknown flags";
    DxLevels(Inode: Ino) EFSCORRUPTED "hash tree has too many levels";
    DxLimit(Inode: Ino) EFSCORRUPTED "hash tree node's limit is not what its block has room for";
    DxCount(Inode: Ino) EFSCORRUPTED "hash tree node's count is 0 or above its limit";
    DxLoop(Inode: Ino) EFSCORRUPTED "hash tree node is its own ancestor";
    DxBlock(Inode: Ino) EFSCORRUPTED "hash tree points outside the directory";
    DxChecksum(Inode: Ino) EFSBADCRC "hash tree node's checksum is wrong";
    BlockBitmapChecksum(Group: Group) EFSBADCRC "block bitmap's checksum is wrong";
    BlockBitmapSelf(Group: Group) EFSCORRUPTED "block bitmap has the group's own bitmaps or inode table as free";
    BlockBitmapCount(Group: Group) EFSCORRUPTED "block bitmap has other than as many free blocks as the descriptor says";
    BlockBitmapDoubleAlloc(Group: Group) EFSCORRUPTED "blocks given out are in use already, or metadata";
    BlockBitmapDoubleFree(Group: Group) EFSCORRUPTED "blocks being freed are free already";
    FreeSystemZone(Inode: Ino) EFSCORRUPTED "blocks being freed lie outside the file system or over its metadata";
    InodeBitmapChecksum(Group: Group) EFSBADCRC "inode bitmap's checksum is wrong";
    InodeBitmapCount(Group: Group) EFSCORRUPTED "descriptor says there are free inodes, and the bitmap that there are none";
    InodeBitmapDoubleFree(Group: Group) EFSCORRUPTED "inode being freed is free already";
    InodeDoublyAllocated(Inode: Ino) EFSCORRUPTED "inode given out as new is in use already";
    DirDots(Inode: Ino) EFSCORRUPTED "directory does not begin with entries for itself and its parent";
    DirNotEmptied(Inode: Ino) EFSCORRUPTED "directory's next block is allocated already";
    DxSplit(Inode: Ino) EFSCORRUPTED "directory block is full with fewer than two names in it";
    DirEntryOther(Inode: Ino) EFSCORRUPTED "directory entry changed under the directory's lock";
    UnlinkedEntry(Inode: Ino) EFSCORRUPTED "directory entry leads to an inode without links";
    XattrHeader(Inode: Ino) EFSCORRUPTED "attribute block has no magic number, or its header makes no sense";
    XattrBlockChecksum(Inode: Ino) EFSBADCRC "attribute block's checksum is wrong";
    XattrBlockRange(Inode: Ino) EFSCORRUPTED "attribute block lies outside the file system or over its metadata";
    XattrEntry(Inode: Ino) EFSCORRUPTED "attribute entry or its value reaches beyond its place, or over other entries";
    OrphanNumber(Inode: Ino) EFSCORRUPTED "on the list of orphans, or the next one's number there, is no inode that can be";
    OrphanFree(Inode: Ino) EFSCORRUPTED "inode on the list of orphans is not in use";
    OrphanFileSize(Inode: Ino) EFSCORRUPTED "orphan file is too large";
    OrphanFileMagic(Inode: Ino) EFSCORRUPTED "orphan file's block has no magic number";
    OrphanFileChecksum(Inode: Ino) EFSBADCRC "orphan file's block has a wrong checksum";
}

// One bit each in the set of kinds that were logged.
static_assertions::const_assert!(Corrupt::KINDS <= 128);

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.text())
    }
}

/// Why a file system is not mounted. A number is the offending field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `s_magic` is another.
    Magic(u16),
    /// The super block's checksum is wrong.
    SuperChecksum,
    /// `s_checksum_type` is unknown.
    ChecksumType(u8),
    /// `s_rev_level` is unknown.
    Revision(u32),
    /// `s_log_block_size` asks for something other than 1, 2 or 4 KiB.
    LogBlockSize(u32),
    /// The device's logical blocks, of so many bytes, are larger than the file system's.
    DeviceBlockSize(u32),
    /// `s_log_cluster_size` and the block size do not fit.
    LogClusterSize(u32),
    /// `s_inode_size` is no power of two between 128 and the block size.
    InodeSize(u16),
    /// `s_first_ino` is below 11.
    FirstIno(u32),
    /// `s_desc_size` is no power of two in range.
    DescSize(u16),
    /// `s_blocks_per_group` is 0, uneven or more than a bitmap block can say.
    BlocksPerGroup(u32),
    /// `s_clusters_per_group` does not fit `s_blocks_per_group`.
    ClustersPerGroup(u32),
    /// `s_inodes_per_group` is 0, no whole number of blocks or more than a bitmap block can say.
    InodesPerGroup(u32),
    /// `s_inodes_count` is not groups times `s_inodes_per_group`.
    InodesCount(u32),
    /// `s_first_data_block` does not fit the block size or lies beyond the end.
    FirstDataBlock(u32),
    /// The block count is 0, or too many for the numbers the format has.
    BlocksCount(u64),
    /// The file system has more blocks than the device.
    DeviceSize(u64),
    /// The reserved blocks or free blocks are more than there are.
    ReservedBlocks(u64),
    /// `s_reserved_gdt_blocks` is more than a block of numbers can say.
    ReservedGdtBlocks(u16),
    /// `s_first_meta_bg` is beyond the descriptor blocks.
    FirstMetaBg(u32),
    /// Features that this implementation does not know.
    Incompat(Incompat),
    /// The journal has to be replayed first.
    NeedsRecovery,
    /// A mount option is unknown or contradicts another.
    MountOption,
    /// The journal is on another device, of this number.
    ExternalJournal(u32),
    /// The journal has to be replayed, and the device cannot be written.
    RecoveryReadOnly,
}

impl Refused {
    /// What `mount` gets to hear.
    pub fn errno(&self) -> Error {
        match self {
            Refused::SuperChecksum => EFSBADCRC,
            Refused::NeedsRecovery => EOPNOTSUPP,
            Refused::RecoveryReadOnly => EROFS,
            _ => EINVAL,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Magic(v) => write!(f, "no ext4 file system (magic {v:#06x})"),
            Refused::SuperChecksum => write!(f, "super block's checksum is wrong"),
            Refused::ChecksumType(v) => write!(f, "unknown checksum algorithm {v}"),
            Refused::Revision(v) => write!(f, "unknown revision {v}"),
            Refused::LogBlockSize(v) => {
                write!(f, "log_block_size {v}: blocks of 1, 2 and 4 KiB (0 to 2) can be mounted, larger ones cannot")
            }
            Refused::DeviceBlockSize(v) => {
                write!(f, "the device's blocks of {v} bytes are larger than the file system's")
            }
            Refused::LogClusterSize(v) => write!(f, "bad log_cluster_size {v}"),
            Refused::InodeSize(v) => write!(f, "bad inode size {v}"),
            Refused::FirstIno(v) => write!(f, "bad first inode {v}"),
            Refused::DescSize(v) => write!(f, "bad group descriptor size {v}"),
            Refused::BlocksPerGroup(v) => write!(f, "bad blocks per group {v}"),
            Refused::ClustersPerGroup(v) => write!(f, "bad clusters per group {v}"),
            Refused::InodesPerGroup(v) => write!(f, "bad inodes per group {v}"),
            Refused::InodesCount(v) => write!(f, "bad inode count {v}"),
            Refused::FirstDataBlock(v) => write!(f, "bad first data block {v}"),
            Refused::BlocksCount(v) => write!(f, "bad block count {v}"),
            Refused::DeviceSize(v) => write!(f, "block count {v} exceeds the size of the device"),
            Refused::ReservedBlocks(v) => write!(f, "reserved or free blocks {v} exceed the block count"),
            Refused::ReservedGdtBlocks(v) => write!(f, "bad number of reserved descriptor blocks {v}"),
            Refused::FirstMetaBg(v) => write!(f, "first meta block group {v} is beyond the descriptors"),
            Refused::Incompat(v) => write!(f, "unsupported incompatible features: {v}"),
            Refused::NeedsRecovery => {
                write!(f, "RECOVER is set, and there is no journal to replay; e2fsck can tell what to do")
            }
            Refused::MountOption => write!(f, "bad mount options"),
            Refused::ExternalJournal(0) => write!(f, "there is a journal, and no inode of it"),
            Refused::ExternalJournal(dev) => {
                write!(f, "the journal is on another device ({dev:#x}), which is not supported")
            }
            Refused::RecoveryReadOnly => {
                write!(f, "write access unavailable, cannot replay the journal (try mounting with ro,noload)")
            }
        }
    }
}
