// SPDX-License-Identifier: GPL-2.0-only
//! Damaged file systems: each of the checks strikes where it should, with its own error, and whatever is done to
//! an image there is no panic and an end.
//!
//! The damage is done byte by byte to sound images. Where it says so the checksum over the damaged structure
//! is made right again, as if a buggy program had written it, so that it is the structure that is judged.

use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use ext4_dio::checksum::{
    ext4_dirblock_csum, ext4_dx_csum, ext4_extent_block_csum, ext4_group_desc_csum, ext4_inode_csum,
    ext4_superblock_csum,
};
use ext4_dio::corrupt::{Corrupt, Ext4Error, Ext4Result, Refused};
use ext4_dio::dir::Node;
use ext4_dio::ext4::{EXT4_ROOT_INO, Fsblk, Group, Incompat, Ino, Lblk, RoCompat};
use ext4_dio::extents::ext4_find_extent;
use ext4_dio::ialloc::{Iget, ext4_get_inode_loc, ext4_read_inode};
use ext4_dio::namei::{ext4_find_entry, ext4_readlink};
use ext4_dio::sb::ext4_fill_super;
use ext4_dio_tests::images::{Image, Mkfs, Source, peek, poke, ram_disk};
use ext4_dio_tests::reader::{Reader, corrupt};
use kernel_shim::block::Bdev;
use kernel_shim::error::Error;
use kernel_shim::error::code::{EFSBADCRC, EFSCORRUPTED};

const BLOCK: usize = 1024;

/// Makes the bytes of an image once.
fn base(cell: &'static OnceLock<Vec<u8>>, features: &'static str, fs_type: &'static str) -> &'static [u8] {
    cell.get_or_init(|| {
        let source = Source::new();
        source.file("hello.txt", b"hello\n").file("gone", b"gone\n").file("dir/file", b"");
        source.fragmented("few", 1024, 4).fragmented("many", 1024, 700).symlink("fast", "hello.txt");
        source.symlink("slow", &"./".repeat(40));
        // Four to a block, and more blocks than fit the root of a hash tree.
        for i in 0..600 {
            source.file(&format!("d/{i:04}{}", "x".repeat(200)), b"");
        }
        let spec =
            Mkfs { block_size: 1024, size_kib: 8 << 10, features, fs_type, args: &["-g", "4096"], ..Mkfs::default() };
        let image = Image::make(&spec, Some(source.path()));
        image.index_directories();
        image.assert_clean();
        image.bytes()
    })
}

/// A file system on a disk of its own, to be damaged.
struct Victim {
    bdev: Bdev,
    sound: Reader,
}

impl Victim {
    /// With checksums and extents.
    fn new() -> Self {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        Self::from_bytes(base(&BYTES, "^has_journal", "ext4"))
    }

    /// With neither.
    fn ext2() -> Self {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        Self::from_bytes(base(&BYTES, "", "ext2"))
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let bdev = ram_disk(bytes);
        let sound = Reader::new(&bdev).expect("sound so far");
        Self { bdev, sound }
    }

    fn mount(&self) -> Ext4Result<Reader> {
        Reader::new(&self.bdev)
    }

    /// Mounts, though damaged.
    fn mounted(&self) -> Reader {
        self.mount().expect("the damage is elsewhere")
    }

    /// Changes the super block.
    fn super_block(&self, change: impl FnOnce(&mut [u8])) -> &Self {
        let mut raw = peek(&self.bdev, 1024, 1024);
        change(&mut raw);
        let csum = ext4_superblock_csum(raw[..].first_chunk().expect("1024 bytes"));
        raw[1020..].copy_from_slice(&csum.to_le_bytes());
        poke(&self.bdev, 1024, &raw);
        self
    }

    /// Sets a field of the super block.
    fn super_field(&self, offset: usize, bytes: &[u8]) -> &Self {
        self.super_block(|raw| raw[offset..offset + bytes.len()].copy_from_slice(bytes))
    }

    /// Changes a group descriptor.
    fn group_desc(&self, group: u32, change: impl FnOnce(&mut [u8])) -> &Self {
        let size = usize::from(self.sound.sb.s_desc_size);
        let at = 2048 + u64::from(group) * size as u64;
        let mut raw = peek(&self.bdev, at, size);
        change(&mut raw);
        let csum = ext4_group_desc_csum(self.sound.sb.s_csum_seed, Group(group), &raw);
        raw[0x1e..0x20].copy_from_slice(&csum.to_le_bytes());
        poke(&self.bdev, at, &raw);
        self
    }

    fn ino(&self, path: &str) -> Ino {
        self.sound.lookup_nofollow(path).expect("there").disk.i_ino
    }

    fn csum_seed(&self, path: &str) -> u32 {
        self.sound.lookup_nofollow(path).expect("there").disk.i_csum_seed
    }

    /// Where an inode is on the disk, in bytes.
    fn inode_at(&self, ino: Ino) -> u64 {
        let (bh, offset) = ext4_get_inode_loc(&self.sound.sb, ino).expect("there");
        bh.block() * BLOCK as u64 + offset as u64
    }

    /// Changes an inode.
    fn inode(&self, path: &str, change: impl FnOnce(&mut [u8])) -> &Self {
        let at = self.inode_at(self.ino(path));
        let mut raw = peek(&self.bdev, at, 256);
        change(&mut raw);
        let extra_isize = u16::from_le_bytes([raw[0x80], raw[0x81]]);
        let csum = ext4_inode_csum(self.csum_seed(path), &raw, extra_isize);
        raw[0x7c..0x7e].copy_from_slice(&csum.to_le_bytes()[..2]);
        if extra_isize >= 4 {
            raw[0x82..0x84].copy_from_slice(&csum.to_le_bytes()[2..]);
        }
        poke(&self.bdev, at, &raw);
        self
    }

    /// Sets bytes of an inode's block map, counted from its beginning.
    fn i_block(&self, path: &str, offset: usize, bytes: &[u8]) -> &Self {
        self.inode(path, |raw| raw[0x28 + offset..0x28 + offset + bytes.len()].copy_from_slice(bytes))
    }

    /// The block of the node at `level`, counted from the root, of a file's extent tree, on the way to its first block.
    fn node(&self, path: &str, level: usize) -> u64 {
        let node = self.sound.lookup(path).expect("there");
        let (way, _) = ext4_find_extent(&node.ctx(), &node.disk.tree(), Lblk(0)).expect("sound");
        way[level].p_bh.as_ref().expect("not the root").block()
    }

    /// Changes a node of a file's extent tree; see [`Victim::node`].
    fn extent_block(&self, path: &str, level: usize, change: impl FnOnce(&mut [u8])) -> &Self {
        self.block(self.node(path, level), |raw| {
            change(raw);
            let tail = 12 + 12 * usize::from(u16::from_le_bytes([raw[4], raw[5]]));
            if let Some((before, tail)) = raw.split_at_mut_checked(tail)
                && tail.len() >= 4
            {
                tail[..4].copy_from_slice(&ext4_extent_block_csum(self.csum_seed(path), before).to_le_bytes());
            }
        })
    }

    /// Where a block of a file is.
    fn pblk(&self, path: &str, lblk: u32) -> u64 {
        self.sound.lookup_nofollow(path).expect("there").bmap(Lblk(lblk)).expect("sound").expect("mapped").0
    }

    /// Changes a block, and leaves the checksum to the caller.
    fn block(&self, pblk: u64, change: impl FnOnce(&mut [u8])) -> &Self {
        let mut raw = peek(&self.bdev, pblk * BLOCK as u64, BLOCK);
        change(&mut raw);
        poke(&self.bdev, pblk * BLOCK as u64, &raw);
        self
    }

    /// Changes a block of entries of a directory.
    fn dir_block(&self, path: &str, lblk: u32, change: impl FnOnce(&mut [u8])) -> &Self {
        let seed = self.csum_seed(path);
        self.block(self.pblk(path, lblk), |raw| {
            change(raw);
            let csum = ext4_dirblock_csum(seed, &raw[..BLOCK - 12]);
            raw[BLOCK - 4..].copy_from_slice(&csum.to_le_bytes());
        })
    }

    /// Changes a node of a directory's hash tree, whose entries begin at byte `entries`.
    fn dx_block(&self, path: &str, lblk: u32, entries: usize, change: impl FnOnce(&mut [u8])) -> &Self {
        let seed = self.csum_seed(path);
        self.block(self.pblk(path, lblk), |raw| {
            change(raw);
            let word = |at: usize| usize::from(u16::from_le_bytes([raw[at], raw[at + 1]]));
            let (used, tail) = (entries + word(entries + 2) * 8, entries + word(entries) * 8);
            if used <= BLOCK && tail + 8 <= BLOCK {
                let reserved = u32::from_le_bytes(raw[tail..tail + 4].try_into().expect("four bytes"));
                let csum = ext4_dx_csum(seed, &raw[..used], reserved);
                raw[tail + 4..tail + 8].copy_from_slice(&csum.to_le_bytes());
            }
        })
    }
}

fn refused(result: Ext4Result<Reader>) -> Refused {
    match result.map(|_| ()) {
        Err(Ext4Error::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

fn put16(raw: &mut [u8], at: usize, value: u16) {
    raw[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(raw: &mut [u8], at: usize, value: u32) {
    raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

// ---- the super block

#[test]
fn super_blocks_that_cannot_be_are_refused_by_name() {
    let u16s = |value: u16| value.to_le_bytes().to_vec();
    let u32s = |value: u32| value.to_le_bytes().to_vec();
    let cases: Vec<(usize, Vec<u8>, Refused)> = vec![
        (0x38, u16s(0), Refused::Magic(0)),
        (0x38, u16s(0xef52), Refused::Magic(0xef52)),
        (0x175, vec![2], Refused::ChecksumType(2)),
        (0x4c, u32s(9), Refused::Revision(9)),
        (0x18, u32s(3), Refused::LogBlockSize(3)),
        (0x18, u32s(30), Refused::LogBlockSize(30)),
        (0x18, u32s(u32::MAX), Refused::LogBlockSize(u32::MAX)),
        (0x1c, u32s(4), Refused::LogClusterSize(4)),
        (0x1c, u32s(u32::MAX), Refused::LogClusterSize(u32::MAX)),
        (0x58, u16s(0), Refused::InodeSize(0)),
        (0x58, u16s(64), Refused::InodeSize(64)),
        (0x58, u16s(192), Refused::InodeSize(192)),
        (0x58, u16s(2048), Refused::InodeSize(2048)),
        (0x58, u16s(65535), Refused::InodeSize(65535)),
        (0x54, u32s(2), Refused::FirstIno(2)),
        (0xfe, u16s(0), Refused::DescSize(0)),
        (0xfe, u16s(32), Refused::DescSize(32)),
        (0xfe, u16s(96), Refused::DescSize(96)),
        (0xfe, u16s(2048), Refused::DescSize(2048)),
        (0xfe, u16s(65535), Refused::DescSize(65535)),
        (0x20, u32s(0), Refused::BlocksPerGroup(0)),
        (0x20, u32s(4095), Refused::BlocksPerGroup(4095)),
        (0x20, u32s(8200), Refused::BlocksPerGroup(8200)),
        (0x20, u32s(u32::MAX), Refused::BlocksPerGroup(u32::MAX)),
        (0x24, u32s(0), Refused::ClustersPerGroup(0)),
        (0x24, u32s(8192), Refused::ClustersPerGroup(8192)),
        (0x28, u32s(0), Refused::InodesPerGroup(0)),
        (0x28, u32s(3), Refused::InodesPerGroup(3)),
        (0x28, u32s(510), Refused::InodesPerGroup(510)),
        (0x28, u32s(u32::MAX), Refused::InodesPerGroup(u32::MAX)),
        (0x0, u32s(0), Refused::InodesCount(0)),
        (0x0, u32s(1023), Refused::InodesCount(1023)),
        (0x0, u32s(u32::MAX), Refused::InodesCount(u32::MAX)),
        (0x14, u32s(0), Refused::FirstDataBlock(0)),
        (0x14, u32s(2), Refused::FirstDataBlock(2)),
        (0x14, u32s(u32::MAX), Refused::FirstDataBlock(u32::MAX)),
        (0x4, u32s(0), Refused::BlocksCount(0)),
        (0x4, u32s(8193), Refused::DeviceSize(8193)),
        (0x150, u32s(1), Refused::DeviceSize(0x1_0000_2000)),
        (0x150, u32s(u32::MAX), Refused::BlocksCount(0xffff_ffff_0000_2000)),
        (0x8, u32s(8193), Refused::ReservedBlocks(8193)),
        (0x154, u32s(u32::MAX), Refused::ReservedBlocks(0xffff_ffff_0000_0199)),
        (0xce, u16s(257), Refused::ReservedGdtBlocks(257)),
    ];
    for (offset, bytes, expected) in cases {
        let victim = Victim::new();
        let found = refused(victim.super_field(offset, &bytes).mount());
        assert_eq!(found, expected, "{bytes:?} at {offset:#x}");
        assert_eq!(Error::from(Ext4Error::from(found)).name(), Some("EINVAL"));
    }
}

#[test]
fn features_that_must_be_known_are_refused_by_name() {
    let unknown = Incompat::from_bits_retain(0x8000_0000);
    let features = [
        Incompat::COMPRESSION,
        Incompat::JOURNAL_DEV,
        Incompat::MMP,
        Incompat::DIRDATA,
        Incompat::INLINE_DATA,
        Incompat::ENCRYPT,
        Incompat::CASEFOLD,
        unknown,
    ];
    for feature in features {
        let victim = Victim::new();
        let incompat = victim.sound.sb.s_incompat;
        let found = refused(victim.super_field(0x60, &(incompat | feature).bits().to_le_bytes()).mount());
        assert_eq!(found, Refused::Incompat(feature));
        let name = if feature == unknown { "0x80000000" } else { feature.iter_names().next().expect("named").0 };
        assert_eq!(found.to_string(), format!("unsupported incompatible features: {name}"));
    }
    let victim = Victim::new();
    let incompat = victim.sound.sb.s_incompat | Incompat::META_BG;
    victim.super_field(0x60, &incompat.bits().to_le_bytes()).super_field(0x104, &2u32.to_le_bytes());
    assert_eq!(refused(victim.mount()), Refused::FirstMetaBg(2));
}

#[test]
fn a_journal_that_needs_recovery_is_left_to_e2fsck() {
    let victim = Victim::new();
    let incompat = victim.sound.sb.s_incompat | Incompat::RECOVER;
    victim.super_field(0x60, &incompat.bits().to_le_bytes());
    let found = refused(victim.mount());
    assert_eq!(found, Refused::NeedsRecovery);
    assert!(found.to_string().contains("e2fsck"));
    assert!(ext4_fill_super(victim.bdev.clone(), "").is_err());
    let sb = ext4_fill_super(victim.bdev.clone(), "ro,noload").expect("as it is");
    assert!(sb.is_rdonly());
}

#[test]
fn what_could_only_be_spoiled_by_writing_is_mounted_read_only() {
    let mount = |victim: &Victim| ext4_fill_super(victim.bdev.clone(), "rw").expect("readable").is_rdonly();
    assert!(!mount(&Victim::new()));
    let features = [
        RoCompat::QUOTA,
        RoCompat::BIGALLOC,
        RoCompat::READONLY,
        RoCompat::PROJECT,
        RoCompat::VERITY,
        RoCompat::ORPHAN_PRESENT,
    ];
    for feature in features.into_iter().chain([RoCompat::from_bits_retain(0x4000_0000)]) {
        let victim = Victim::new();
        let ro_compat = victim.sound.sb.s_ro_compat | feature;
        assert!(mount(victim.super_field(0x64, &ro_compat.bits().to_le_bytes())), "{feature}");
    }
    let victim = Victim::new();
    assert!(mount(victim.super_field(0xe8, &12u32.to_le_bytes())), "orphans");
}

#[test]
fn a_changed_byte_of_the_super_block_is_a_wrong_checksum() {
    let victim = Victim::new();
    for offset in 0..1024u64 {
        let before = peek(&victim.bdev, 1024 + offset, 1)[0];
        poke(&victim.bdev, 1024 + offset, &[before ^ 0x40]);
        let found = refused(victim.mount());
        poke(&victim.bdev, 1024 + offset, &[before]);
        match offset {
            0x38 | 0x39 => assert!(matches!(found, Refused::Magic(_)), "{offset:#x}"),
            0x175 => assert_eq!(found, Refused::ChecksumType(0x41)),
            _ => assert_eq!(found, Refused::SuperChecksum, "{offset:#x}"),
        }
    }
    assert_eq!(Error::from(Ext4Error::from(Refused::SuperChecksum)), EFSBADCRC);
}

#[test]
fn mount_options_are_refused_by_name() {
    for options in ["frob", "ro,frob", "dio_window=x", "noload", "errors=sometimes"] {
        let error = ext4_fill_super(Victim::new().bdev, options).map(drop);
        assert_eq!(error, Err(Ext4Error::Refused(Refused::MountOption)), "{options}");
    }
}

#[test]
fn devices_too_small_for_a_super_block_are_no_file_system() {
    for len in [512, 1024, 1536, 2048] {
        assert!(Reader::new(&ram_disk(&vec![0; len])).is_err(), "{len}");
    }
}

// ---- group descriptors

#[test]
fn group_descriptors_that_cannot_be_are_corrupt() {
    let all = 8192;
    type Change = fn(&mut [u8]);
    let cases: [(Change, fn(Group) -> Corrupt); 9] = [
        (|raw| put32(raw, 0, 0), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 0, 1), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 0, 8192), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 0x20, 1), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 4, 2), Corrupt::InodeBitmapPlace),
        (|raw| put32(raw, 4, u32::MAX), Corrupt::InodeBitmapPlace),
        (|raw| put32(raw, 8, 8190), Corrupt::InodeTablePlace),
        (|raw| put32(raw, 0x28, u32::MAX), Corrupt::InodeTablePlace),
        (|raw| raw.copy_within(0..4, 4), Corrupt::SystemZoneOverlap),
    ];
    assert_eq!(Victim::new().sound.sb.s_blocks_count, all);
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        for group in 0..2 {
            let victim = Victim::new();
            let found = corrupt(victim.group_desc(group, change).mount());
            // Two owners are found where the second is, in the order of the disk.
            let found = if at == 8 { Corrupt::SystemZoneOverlap(Group(group)) } else { found };
            assert_eq!(found, expected(Group(group)), "case {at}");
        }
    }
    for group in 0..2u32 {
        for offset in 0..64 {
            let victim = Victim::new();
            let at = 2048 + u64::from(group) * 64 + offset;
            let before = peek(&victim.bdev, at, 1)[0];
            poke(&victim.bdev, at, &[before ^ 1]);
            assert_eq!(corrupt(victim.mount()), Corrupt::GroupDescChecksum(Group(group)), "byte {offset}");
        }
    }
}

// ---- inodes

#[test]
fn inodes_that_cannot_be_are_corrupt() {
    type Change = fn(&mut [u8]);
    let cases: [(Change, fn(Ino) -> Corrupt); 8] = [
        (|raw| put16(raw, 0x80, 200), Corrupt::InodeExtraIsize),
        (|raw| put16(raw, 0x80, 30), Corrupt::InodeExtraIsize),
        (|raw| put16(raw, 0x80, 0xffff), Corrupt::InodeExtraIsize),
        (|raw| put32(raw, 0x6c, 0x8000_0000), Corrupt::InodeSize),
        (|raw| put32(raw, 0x6c, 0x7fff_ffff), Corrupt::InodeSize),
        (|raw| put16(raw, 0, 0xf1a4), Corrupt::InodeMode),
        (|raw| put32(raw, 0x20, 0x1008_0000), Corrupt::InodeFlags),
        (|raw| put32(raw, 0x20, 0x0028_0000), Corrupt::InodeFlags),
    ];
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        let victim = Victim::new();
        let ino = victim.ino("hello.txt");
        let found = corrupt(victim.inode("hello.txt", change).mounted().lookup("hello.txt"));
        assert_eq!(found, expected(ino), "case {at}");
        assert_eq!(found.errno(), EFSCORRUPTED);
    }
    let victim = Victim::new();
    let ino = victim.ino("hello.txt");
    for offset in 0..256 {
        let at = victim.inode_at(ino) + offset;
        let before = peek(&victim.bdev, at, 1)[0];
        poke(&victim.bdev, at, &[before ^ 0x10]);
        let found = corrupt(victim.mounted().lookup("hello.txt"));
        poke(&victim.bdev, at, &[before]);
        let expected = if offset == 0x81 { Corrupt::InodeExtraIsize(ino) } else { Corrupt::InodeChecksum(ino) };
        assert_eq!(found, expected, "byte {offset:#x}");
    }
}

#[test]
fn the_root_must_be_a_directory_in_use() {
    let root = EXT4_ROOT_INO;
    let case = |change: fn(&mut [u8])| corrupt(Victim::new().inode("/", change).mounted().lookup("/").map(drop));
    assert_eq!(case(|raw| put16(raw, 0x1a, 0)), Corrupt::InodeUnallocated(root));
    assert_eq!(case(|raw| put16(raw, 0, 0)), Corrupt::InodeUnallocated(root));
    assert_eq!(case(|raw| put16(raw, 0, 0o100_755)), Corrupt::InodeMode(root));
}

#[test]
fn extents_in_the_inode_that_cannot_be_are_corrupt() {
    // A header of 12 bytes, then entries of 12 bytes: block, length, high and low half of the physical block.
    let table = |victim: &Victim| victim.sound.sb.ext4_get_group_desc(Group(0)).expect("there").inode_table.0 as u32;
    let first_table = table(&Victim::new()).to_le_bytes();
    let cases: Vec<(&str, usize, Vec<u8>, fn(Ino) -> Corrupt)> = vec![
        ("few", 0, vec![0, 0], Corrupt::ExtentMagic),
        ("few", 6, vec![6, 0], Corrupt::ExtentDepth),
        ("few", 6, vec![0xff, 0xff], Corrupt::ExtentDepth),
        ("few", 4, vec![0, 0], Corrupt::ExtentMax),
        ("few", 4, vec![5, 0], Corrupt::ExtentMax),
        ("few", 4, vec![0xff, 0xff], Corrupt::ExtentMax),
        ("few", 2, vec![5, 0], Corrupt::ExtentEntries),
        ("many", 2, vec![0, 0], Corrupt::ExtentEntries),
        ("few", 12 + 4, vec![0, 0], Corrupt::ExtentLength),
        ("few", 36 + 12, vec![0xff; 4], Corrupt::ExtentOrder),
        ("few", 36 + 12, vec![0xff, 0xff, 0xff, 0xff, 1, 0], Corrupt::ExtentOrder),
        ("few", 36 + 12, vec![0xfe, 0xff, 0xff, 0xff, 5, 0], Corrupt::ExtentLength),
        ("few", 12, vec![9, 0, 0, 0], Corrupt::ExtentOrder),
        ("few", 12 + 4, vec![3, 0], Corrupt::ExtentOrder),
        ("few", 12 + 4, vec![1, 0, 1, 0], Corrupt::ExtentRange),
        ("few", 12 + 8, vec![0xff; 4], Corrupt::ExtentRange),
        ("few", 12 + 8, vec![0; 4], Corrupt::ExtentRange),
        ("few", 12 + 8, vec![1, 0, 0, 0], Corrupt::ExtentRange),
        ("few", 12 + 8, first_table.to_vec(), Corrupt::ExtentRange),
        ("many", 12 + 4, first_table.to_vec(), Corrupt::ExtentIndexRange),
        ("many", 12 + 4, vec![0xff; 4], Corrupt::ExtentIndexRange),
        ("many", 12 + 8, vec![1, 0], Corrupt::ExtentIndexRange),
    ];
    for (path, offset, bytes, expected) in cases {
        let victim = Victim::new();
        let ino = victim.ino(path);
        let found = corrupt(victim.i_block(path, offset, &bytes).mounted().lookup(path));
        assert_eq!(found, expected(ino), "{path}: {bytes:?} at {offset}");
    }
}

#[test]
fn extent_nodes_that_cannot_be_are_corrupt() {
    type Change = fn(&mut [u8]);
    let index = 1;
    let leaf = 2;
    let cases: [(usize, Change, fn(Ino) -> Corrupt); 13] = [
        (index, |raw| put16(raw, 0, 0), Corrupt::ExtentMagic),
        (index, |raw| put16(raw, 6, 0), Corrupt::ExtentDepth),
        (index, |raw| put16(raw, 6, 2), Corrupt::ExtentDepth),
        (index, |raw| put16(raw, 4, 0), Corrupt::ExtentMax),
        (index, |raw| put16(raw, 4, 85), Corrupt::ExtentMax),
        (index, |raw| put16(raw, 2, 0), Corrupt::ExtentEntries),
        (index, |raw| put16(raw, 2, 84), Corrupt::ExtentOrder),
        (index, |raw| put32(raw, 12 + 4, 1), Corrupt::ExtentIndexRange),
        (leaf, |raw| put16(raw, 2, 0xffff), Corrupt::ExtentEntries),
        (leaf, |raw| put16(raw, 12 + 4, 0), Corrupt::ExtentLength),
        (leaf, |raw| put16(raw, 12 + 4, 0x8000), Corrupt::ExtentOrder),
        (leaf, |raw| put32(raw, 12 + 8, 3), Corrupt::ExtentRange),
        (leaf, |raw| put32(raw, 24, 0), Corrupt::ExtentOrder),
    ];
    for (at, (level, change, expected)) in cases.into_iter().enumerate() {
        let victim = Victim::new();
        let ino = victim.ino("many");
        let reader = victim.extent_block("many", level, change).mounted();
        let node = reader.lookup("many").expect("the root is sound");
        assert_eq!(corrupt(reader.extents(&node)), expected(ino), "case {at}");
    }
    for level in [index, leaf] {
        let victim = Victim::new();
        let block = victim.node("many", level);
        for offset in [12, 20, 500, 1007, 1008, 1010, 1011] {
            victim.block(block, |raw| raw[offset] ^= 4);
            let reader = victim.mounted();
            let node = reader.lookup("many").expect("the root is sound");
            let expected = Corrupt::ExtentBlockChecksum(victim.ino("many"));
            assert_eq!(corrupt(reader.extents(&node)), expected, "level {level} byte {offset}");
            victim.block(block, |raw| raw[offset] ^= 4);
        }
    }
}

#[test]
fn an_extent_tree_that_leads_back_into_itself_has_an_end() {
    let victim = Victim::new();
    let (index, leaf) = (victim.node("many", 1), victim.node("many", 2));
    let ino = victim.ino("many");
    // The index holds itself, in the leaf's place.
    victim.extent_block("many", 1, |raw| {
        let at = (0..4).map(|entry| 12 + 12 * entry).find(|at| raw[at + 4..at + 8] == (leaf as u32).to_le_bytes());
        put32(raw, at.expect("the leaf") + 4, index as u32);
    });
    let reader = victim.mounted();
    let node = reader.lookup("many").expect("the root is sound");
    assert_eq!(corrupt(reader.map(&node, 0)), Corrupt::ExtentDepth(ino));
    assert_eq!(corrupt(reader.map(&node, 0)), Corrupt::ExtentDepth(ino), "also when the block has been checked before");

    // A leaf that another file's tree has as its root's child, at another depth.
    let victim = Victim::new();
    victim.i_block("many", 12 + 4, &(leaf as u32).to_le_bytes());
    let reader = victim.mounted();
    let node = reader.lookup("many").expect("the root is sound");
    assert_eq!(corrupt(reader.map(&node, 0)), Corrupt::ExtentDepth(ino));
}

#[test]
fn trees_of_depth_5_are_read_and_of_depth_6_refused() {
    let victim = Victim::new();
    let seed = victim.csum_seed("hello.txt");
    let data = victim.pblk("hello.txt", 0);
    // Blocks of a file nobody will miss become the nodes.
    let nodes: Vec<u64> = (0..5).map(|i| victim.pblk("many", 2 * i)).collect();
    let node = |depth: u16, below: u64| {
        let mut raw = vec![0u8; BLOCK];
        put16(&mut raw, 0, 0xf30a);
        put16(&mut raw, 2, 1);
        put16(&mut raw, 4, 84);
        put16(&mut raw, 6, depth);
        if depth == 0 {
            put16(&mut raw, 12 + 4, 1);
            put32(&mut raw, 12 + 8, below as u32);
        } else {
            put32(&mut raw, 12 + 4, below as u32);
        }
        let csum = ext4_extent_block_csum(seed, &raw[..1020]);
        put32(&mut raw, 1020, csum);
        raw
    };
    let mut below = data;
    for (depth, block) in (0..).zip(&nodes) {
        poke(&victim.bdev, block * BLOCK as u64, &node(depth, below));
        below = *block;
    }
    let root = node(5, below);
    victim.i_block("hello.txt", 0, &root[..60]).i_block("hello.txt", 4, &[4, 0]);
    let reader = victim.mounted();
    let hello = reader.lookup("hello.txt").expect("depth 5 can be");
    assert_eq!(reader.read(&hello).expect("sound"), b"hello\n");
    victim.i_block("hello.txt", 6, &[6, 0]);
    assert_eq!(corrupt(victim.mounted().lookup("hello.txt")), Corrupt::ExtentDepth(victim.ino("hello.txt")));
}

#[test]
fn block_maps_without_extents_are_checked_as_they_are_followed() {
    let bad = |victim: &Victim, path: &str| {
        let reader = victim.mounted();
        let node = reader.lookup(path);
        corrupt(node.and_then(|node| reader.extents(&node)))
    };
    for index in [0, 12, 13, 14] {
        for block in [1u32, 3, 8192, u32::MAX] {
            let victim = Victim::ext2();
            victim.i_block("many", 4 * index, &block.to_le_bytes());
            assert_eq!(bad(&victim, "many"), Corrupt::IndirectBlock(victim.ino("many")), "{block} at {index}");
        }
    }
    let victim = Victim::ext2();
    let at = victim.inode_at(victim.ino("many")) + 0x28 + 4 * 12;
    let indirect = u32::from_le_bytes(peek(&victim.bdev, at, 4).try_into().expect("four bytes"));
    victim.block(u64::from(indirect), |raw| put32(raw, 8, 2));
    assert_eq!(bad(&victim, "many"), Corrupt::IndirectBlock(victim.ino("many")));
    // A table that holds itself is three steps deep and no more.
    let victim = Victim::ext2();
    victim.block(u64::from(indirect), |raw| raw.chunks_exact_mut(4).for_each(|entry| put32(entry, 0, indirect)));
    victim.i_block("many", 4 * 13, &indirect.to_le_bytes()).i_block("many", 4 * 14, &indirect.to_le_bytes());
    let reader = victim.mounted();
    let node = reader.lookup("many").expect("sound as far as it can be told");
    for lblk in [12, 300, 70_000, 1 << 24] {
        assert_eq!(reader.map(&node, lblk).expect("it leads somewhere").pblk(), Fsblk(u64::from(indirect)));
    }
}

// ---- directories

#[test]
fn directory_entries_that_cannot_be_are_corrupt() {
    // In the first block of "dir": ".", "..", "file", at 0, 12 and 24, and the checksum's entry at the end.
    type Change = fn(&mut [u8]);
    let cases: [(Change, fn(Ino) -> Corrupt); 11] = [
        (|raw| put16(raw, 12 + 4, 0), Corrupt::DirEntryRecLen),
        (|raw| put16(raw, 12 + 4, 8), Corrupt::DirEntryRecLen),
        (|raw| put16(raw, 12 + 4, 14), Corrupt::DirEntryAlign),
        (|raw| raw[12 + 6] = 255, Corrupt::DirEntryNameLen),
        (|raw| put16(raw, 24 + 4, 1024), Corrupt::DirEntryOverrun),
        (|raw| put16(raw, 24 + 4, 0xfffc), Corrupt::DirEntryOverrun),
        (|raw| put16(raw, 24 + 4, 992), Corrupt::DirEntryOverrun),
        (|raw| put32(raw, 24, u32::MAX), Corrupt::DirEntryInode),
        (|raw| put32(raw, 24, 1025), Corrupt::DirEntryInode),
        (|raw| raw.copy_within(0..4, 24), Corrupt::DirEntryLoop),
        (|raw| put16(raw, 1012 + 4, 16), Corrupt::DirBlockTail),
    ];
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        let victim = Victim::new();
        let ino = victim.ino("dir");
        let found = corrupt(victim.dir_block("dir", 0, change).mounted().lookup("dir/file"));
        assert_eq!(found, expected(ino), "case {at}");
    }
    let victim = Victim::new();
    let block = victim.pblk("dir", 0);
    for offset in 0..BLOCK {
        victim.block(block, |raw| raw[offset] ^= 2);
        let found = corrupt(victim.mounted().lookup("dir/file"));
        let tail = (1012..1020).contains(&offset);
        let ino = victim.ino("dir");
        let expected = if tail { Corrupt::DirBlockTail(ino) } else { Corrupt::DirBlockChecksum(ino) };
        assert_eq!(found, expected, "byte {offset}");
        victim.block(block, |raw| raw[offset] ^= 2);
    }
}

#[test]
fn directories_that_lead_nowhere_are_corrupt() {
    let lookup = |victim: &Victim, path: &str| corrupt(victim.mounted().lookup(path));
    let victim = Victim::new();
    let dir = victim.ino("dir");
    assert_eq!(lookup(victim.inode("dir", |raw| put32(raw, 4, 1000)), "dir/file"), Corrupt::DirSize(dir));
    // Behind its blocks there is nothing; names are looked for to the end.
    let victim = Victim::new();
    victim.inode("dir", |raw| put32(raw, 4, 0x8000_0000));
    assert!(victim.mounted().lookup("dir/file").is_ok());
    assert_eq!(lookup(&victim, "dir/no"), Corrupt::DirHole(dir));
    // A deleted inode, and one that is not for names to lead to.
    let victim = Victim::new();
    victim.inode("gone", |raw| put16(raw, 0x1a, 0));
    assert_eq!(lookup(&victim, "gone"), Corrupt::DirEntryDeleted(EXT4_ROOT_INO));
    let victim = Victim::new();
    assert_eq!(lookup(victim.dir_block("dir", 0, |raw| put32(raw, 24, 7)), "dir/file"), Corrupt::InodeNumber(Ino(7)));
}

/// A block of "d" that is a node of its hash tree, but not the root.
fn dx_node(victim: &Victim) -> u32 {
    let root = peek(&victim.bdev, victim.pblk("d", 0) * BLOCK as u64, BLOCK);
    assert_eq!(root[0x1e], 1, "two levels");
    u32::from_le_bytes(root[0x24..0x28].try_into().expect("four bytes"))
}

#[test]
fn hash_trees_that_cannot_be_are_taken_note_of_and_done_without() {
    type Change = fn(&mut [u8]);
    let cases: [(bool, Change, fn(Ino) -> Corrupt); 11] = [
        (true, |raw| raw[0x1c] = 3, Corrupt::DxHash),
        (true, |raw| raw[0x1c] = 6, Corrupt::DxHash),
        (true, |raw| raw[0x1f] = 1, Corrupt::DxFlags),
        (true, |raw| raw[0x1e] = 2, Corrupt::DxLevels),
        (true, |raw| raw[0x1e] = 255, Corrupt::DxLevels),
        (true, |raw| put16(raw, 0x20, 122), Corrupt::DxLimit),
        (true, |raw| put16(raw, 0x22, 0), Corrupt::DxCount),
        (true, |raw| raw.chunks_exact_mut(8).skip(4).take(123).for_each(|e| put32(e, 4, 0)), Corrupt::DxLoop),
        (false, |raw| raw[8..12].copy_from_slice(&[125, 0, 100, 0]), Corrupt::DxLimit),
        (false, |raw| put16(raw, 10, 0), Corrupt::DxCount),
        (false, |raw| raw[8..12].copy_from_slice(&[3, 0, 2, 0]), Corrupt::DxLimit),
    ];
    for (at, (root, change, expected)) in cases.into_iter().enumerate() {
        let victim = Victim::new();
        let ino = victim.ino("d");
        let sound = victim.sound.lookup("d").expect("there");
        let names = victim.sound.readdir(&sound).expect("sound");
        if root {
            victim.dx_block("d", 0, 0x20, change);
        } else {
            victim.dx_block("d", dx_node(&victim), 8, change);
        }
        let reader = victim.mounted();
        let dir = reader.lookup("d").expect("there");
        for (name, inode, _) in names {
            assert_eq!(ext4_find_entry(&dir, &name), Ok(Some(inode)), "case {at}");
        }
        assert_eq!(reader.sb.last_error(), Some(expected(ino)), "case {at}");
    }
}

#[test]
fn hash_trees_with_wrong_checksums_or_blocks_are_corrupt() {
    let sound = Victim::new().sound;
    let names = sound.lookup("d").and_then(|dir| sound.readdir(&dir)).expect("sound");
    let find = |victim: &Victim| {
        let reader = victim.mounted();
        let dir = reader.lookup("d")?;
        names.iter().try_for_each(|(name, ..)| ext4_find_entry(&dir, name).map(drop))
    };
    let victim = Victim::new();
    let ino = victim.ino("d");
    for lblk in [0, dx_node(&victim)] {
        let block = victim.pblk("d", lblk);
        for offset in [40, 45, 1019, 1023] {
            victim.block(block, |raw| raw[offset] ^= 1);
            assert_eq!(corrupt(find(&victim)), Corrupt::DxChecksum(ino), "block {lblk}, byte {offset}");
            victim.block(block, |raw| raw[offset] ^= 1);
        }
    }
    for block in [100_000, 0x0fff_ffff] {
        let victim = Victim::new();
        victim.dx_block("d", 0, 0x20, |raw| raw.chunks_exact_mut(8).skip(4).take(123).for_each(|e| put32(e, 4, block)));
        assert_eq!(corrupt(find(&victim)), Corrupt::DxBlock(ino), "{block}");
    }
}

#[test]
fn symbolic_links_that_do_not_fit_are_corrupt() {
    let readlink = |victim: &Victim, path: &str| {
        let reader = victim.mounted();
        let node = reader.lookup_nofollow(path)?;
        ext4_readlink(&node).map(drop)
    };
    let set_size = |path: &str, size: u32| {
        let victim = Victim::new();
        victim.inode(path, |raw| put32(raw, 4, size));
        victim
    };
    for (path, size) in [("fast", 0), ("slow", 1025), ("slow", u32::MAX)] {
        let victim = set_size(path, size);
        assert_eq!(corrupt(readlink(&victim, path)), Corrupt::SymlinkTarget(victim.ino(path)), "{path} {size}");
    }
    // Longer than the inode, so that there should be blocks.
    let victim = set_size("fast", 60);
    assert!(matches!(corrupt(readlink(&victim, "fast")), Corrupt::IndirectBlock(_)));
}

// ---- errors=

#[test]
fn errors_decide_whether_the_mount_goes_on_writing() {
    for (options, stops) in
        [("errors=continue", false), ("errors=remount-ro", true), ("errors=panic", true), ("", false)]
    {
        let victim = Victim::new();
        victim.i_block("hello.txt", 0, &[0, 0]);
        let sb = ext4_fill_super(victim.bdev.clone(), options).expect("the damage is elsewhere");
        let ino = victim.ino("hello.txt");
        let error = ext4_read_inode(&sb, ino, Iget::Normal).map(drop).expect_err("it is damaged");
        assert!(!sb.is_rdonly());
        assert_eq!(sb.ext4_error(error), EFSCORRUPTED);
        assert_eq!(sb.is_rdonly(), stops, "{options}");
        assert_eq!(sb.last_error(), Some(Corrupt::ExtentMagic(ino)));
        // The next e2fsck is told.
        sb.ext4_put_super().expect("the device works");
        let raw = peek(&victim.bdev, 1024, 1024);
        assert_eq!(raw[0x3a] & 2, 2, "{options}: error bit");
        assert_eq!(raw[0x194], 1, "{options}: error count");
        assert_eq!(raw[0x1d0..0x1d4], ino.0.to_le_bytes(), "{options}: inode");
        assert!(victim.mount().is_ok(), "{options}: the checksum is right");
    }
}

// ---- anything

/// A small file system with one of each structure.
fn tiny(features: &'static str, fs_type: &'static str) -> Vec<u8> {
    let source = Source::new();
    source.file("hello.txt", b"hello\n").fragmented("frag", 1024, 40).symlink("fast", "hello.txt");
    source.symlink("slow", &"./".repeat(40));
    for i in 0..40 {
        source.file(&format!("d/{i:04}{}", "x".repeat(120)), b"");
    }
    let spec = Mkfs { block_size: 1024, size_kib: 1 << 10, inodes: 128, features, fs_type, ..Mkfs::default() };
    let image = Image::make(&spec, Some(source.path()));
    image.index_directories();
    image.bytes()
}

/// Sets each byte of each of `ranges` to several other values, and each time reads all there is. With `fix` the
/// checksum of what was changed is made right.
fn change_every_byte(victim: &Victim, ranges: &[(u64, usize)], fix: &dyn Fn(&Victim, u64)) -> (usize, usize) {
    let (mut errors, mut mounts) = (0, 0);
    for (start, len) in ranges {
        let before = peek(&victim.bdev, *start, *len);
        for offset in 0..*len {
            for value in [0, 0xff, before[offset] ^ 1, before[offset] ^ 0x80] {
                if value == before[offset] {
                    continue;
                }
                let block = peek(&victim.bdev, start / 1024 * 1024, 1024);
                poke(&victim.bdev, start + offset as u64, &[value]);
                fix(victim, *start);
                mounts += 1;
                errors += usize::from(victim.mount().and_then(|reader| reader.walk(500)).is_err());
                poke(&victim.bdev, start / 1024 * 1024, &block);
            }
        }
    }
    assert!(victim.mount().and_then(|reader| reader.walk(500)).is_ok(), "all is as it was");
    (errors, mounts)
}

/// Runs a test that must end.
fn with_an_end(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(300)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
        _ => thread.join().expect("no panic"),
    }
}

#[test]
fn no_byte_of_the_super_block_makes_a_mount_panic_or_hang() {
    with_an_end(|| {
        let victim = Victim::from_bytes(&tiny("^has_journal", "ext4"));
        let (errors, mounts) = change_every_byte(&victim, &[(1024, 1020)], &|victim, _| {
            victim.super_block(|_| ());
        });
        assert!(errors > 100 && errors < mounts, "{errors} of {mounts}");
    });
}

#[test]
fn no_byte_of_a_group_descriptor_or_inode_makes_a_reader_panic_or_hang() {
    with_an_end(|| {
        let victim = Victim::from_bytes(&tiny("^has_journal", "ext4"));
        let (errors, mounts) = change_every_byte(&victim, &[(2048, 64)], &|victim, _| {
            victim.group_desc(0, |_| ());
        });
        assert!(errors > 20 && errors < mounts, "{errors} of {mounts}");
        for path in ["/", "d", "frag", "fast", "slow"] {
            let at = victim.inode_at(victim.ino(path));
            let (errors, mounts) = change_every_byte(&victim, &[(at, 160)], &|victim, _| {
                victim.inode(path, |_| ());
            });
            assert!(errors > 10 && errors < mounts, "{path}: {errors} of {mounts}");
        }
    });
}

#[test]
fn no_byte_of_a_tree_or_directory_makes_a_reader_panic_or_hang() {
    with_an_end(|| {
        let victim = Victim::from_bytes(&tiny("^has_journal", "ext4"));
        let leaf = victim.node("frag", 1) * 1024;
        let (errors, mounts) = change_every_byte(&victim, &[(leaf, 12 + 12 * 40)], &|victim, _| {
            victim.extent_block("frag", 1, |_| ());
        });
        assert!(errors > 100 && errors < mounts, "{errors} of {mounts}");
        let root = victim.pblk("d", 0) * 1024;
        let (errors, mounts) = change_every_byte(&victim, &[(root, 96)], &|victim, _| {
            victim.dx_block("d", 0, 0x20, |_| ());
        });
        assert!(errors > 20 && errors < mounts, "{errors} of {mounts}");
        let entries = victim.pblk("/", 0) * 1024;
        let (errors, mounts) = change_every_byte(&victim, &[(entries, 160)], &|victim, _| {
            victim.dir_block("/", 0, |_| ());
        });
        assert!(errors > 50 && errors < mounts, "{errors} of {mounts}");
    });
}

#[test]
fn nothing_without_checksums_makes_a_reader_panic_or_hang() {
    with_an_end(|| {
        let victim = Victim::from_bytes(&tiny("", "ext2"));
        let inode = |path: &str| (victim.inode_at(victim.ino(path)), 128);
        let block = |path: &str| (victim.pblk(path, 0) * 1024, 64);
        let ranges = [(1024, 0x280), (2048, 32), inode("/"), inode("frag"), inode("slow"), block("/"), block("d")];
        let (errors, mounts) = change_every_byte(&victim, &ranges, &|_, _| ());
        assert!(errors > 100 && errors < mounts, "{errors} of {mounts}");
    });
}
