// SPDX-License-Identifier: GPL-2.0-only
//! A sound file system, and the tools to damage it.

use std::sync::OnceLock;

use ext4_dio::checksum::*;
use ext4_dio::corrupt::{Corrupt, Ext4Result};
use ext4_dio::dir::Node;
use ext4_dio::ext4::{Group, Ino, Lblk};
use ext4_dio::extents::ext4_find_extent;
use ext4_dio::iget::ext4_get_inode_loc;
use ext4_dio_tests::images::{Image, Mkfs, Source, peek, poke, ram_disk};
use ext4_dio_tests::reader::Reader;
use kernel_shim::block::Bdev;

/// Damage to the bytes of one structure.
pub(crate) type Change = fn(&mut [u8]);
/// The corruption to be found, but for its inode.
pub(crate) type Expected = fn(Ino) -> Corrupt;

pub(crate) const BLOCK: usize = 1024;

/// Makes the bytes of an image once.
pub(crate) fn base(cell: &'static OnceLock<Vec<u8>>, features: &'static str, fs_type: &'static str) -> &'static [u8] {
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
pub(crate) struct Victim {
    pub(crate) bdev: Bdev,
    pub(crate) sound: Reader,
}

impl Victim {
    /// With checksums and extents.
    pub(crate) fn new() -> Self {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        Self::from_bytes(base(&BYTES, "^has_journal", "ext4"))
    }

    /// With neither.
    pub(crate) fn ext2() -> Self {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        Self::from_bytes(base(&BYTES, "", "ext2"))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let bdev = ram_disk(bytes);
        let sound = Reader::new(&bdev).expect("sound so far");
        Self { bdev, sound }
    }

    pub(crate) fn mount(&self) -> Ext4Result<Reader> {
        Reader::new(&self.bdev)
    }

    /// Mounts, though damaged.
    pub(crate) fn mounted(&self) -> Reader {
        self.mount().expect("the damage is elsewhere")
    }

    /// Changes the super block.
    pub(crate) fn super_block(&self, change: impl FnOnce(&mut [u8])) -> &Self {
        let mut raw = peek(&self.bdev, 1024, 1024);
        change(&mut raw);
        let csum = ext4_superblock_csum(raw[..].first_chunk().expect("1024 bytes"));
        raw[1020..].copy_from_slice(&csum.to_le_bytes());
        poke(&self.bdev, 1024, &raw);
        self
    }

    /// Sets a field of the super block.
    pub(crate) fn super_field(&self, offset: usize, bytes: &[u8]) -> &Self {
        self.super_block(|raw| raw[offset..offset + bytes.len()].copy_from_slice(bytes))
    }

    /// Changes a group descriptor.
    pub(crate) fn group_desc(&self, group: u32, change: impl FnOnce(&mut [u8])) -> &Self {
        let size = usize::from(self.sound.sb.s_desc_size);
        let at = 2048 + u64::from(group) * size as u64;
        let mut raw = peek(&self.bdev, at, size);
        change(&mut raw);
        let csum = ext4_group_desc_csum(self.sound.sb.s_csum_seed, Group(group), &raw);
        raw[0x1e..0x20].copy_from_slice(&csum.to_le_bytes());
        poke(&self.bdev, at, &raw);
        self
    }

    pub(crate) fn ino(&self, path: &str) -> Ino {
        self.sound.lookup_nofollow(path).expect("there").disk.i_ino
    }

    pub(crate) fn csum_seed(&self, path: &str) -> u32 {
        self.sound.lookup_nofollow(path).expect("there").disk.i_csum_seed
    }

    /// Where an inode is on the disk, in bytes.
    pub(crate) fn inode_at(&self, ino: Ino) -> u64 {
        let (bh, offset) = ext4_get_inode_loc(&self.sound.sb, ino).expect("there");
        bh.block() * BLOCK as u64 + offset as u64
    }

    /// Changes an inode.
    pub(crate) fn inode(&self, path: &str, change: impl FnOnce(&mut [u8])) -> &Self {
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
    pub(crate) fn i_block(&self, path: &str, offset: usize, bytes: &[u8]) -> &Self {
        self.inode(path, |raw| raw[0x28 + offset..0x28 + offset + bytes.len()].copy_from_slice(bytes))
    }

    /// The block of the node at `level`, counted from the root, of a file's extent tree, on the way to its first block.
    pub(crate) fn node(&self, path: &str, level: usize) -> u64 {
        let node = self.sound.lookup(path).expect("there");
        let (way, _) = ext4_find_extent(&node.ctx(), &node.disk.tree(), Lblk(0)).expect("sound");
        way[level].p_bh.as_ref().expect("not the root").block()
    }

    /// Changes a node of a file's extent tree; see [`Victim::node`].
    pub(crate) fn extent_block(&self, path: &str, level: usize, change: impl FnOnce(&mut [u8])) -> &Self {
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
    pub(crate) fn pblk(&self, path: &str, lblk: u32) -> u64 {
        self.sound.lookup_nofollow(path).expect("there").bmap(Lblk(lblk)).expect("sound").expect("mapped").0
    }

    /// Changes a block, and leaves the checksum to the caller.
    pub(crate) fn block(&self, pblk: u64, change: impl FnOnce(&mut [u8])) -> &Self {
        let mut raw = peek(&self.bdev, pblk * BLOCK as u64, BLOCK);
        change(&mut raw);
        poke(&self.bdev, pblk * BLOCK as u64, &raw);
        self
    }

    /// Changes a block of entries of a directory.
    pub(crate) fn dir_block(&self, path: &str, lblk: u32, change: impl FnOnce(&mut [u8])) -> &Self {
        let seed = self.csum_seed(path);
        self.block(self.pblk(path, lblk), |raw| {
            change(raw);
            let csum = ext4_dirblock_csum(seed, &raw[..BLOCK - 12]);
            raw[BLOCK - 4..].copy_from_slice(&csum.to_le_bytes());
        })
    }

    /// Changes a node of a directory's hash tree, whose entries begin at byte `entries`.
    pub(crate) fn dx_block(&self, path: &str, lblk: u32, entries: usize, change: impl FnOnce(&mut [u8])) -> &Self {
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

pub(crate) fn put16(raw: &mut [u8], at: usize, value: u16) {
    raw[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(raw: &mut [u8], at: usize, value: u32) {
    raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
