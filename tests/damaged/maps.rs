// SPDX-License-Identifier: GPL-2.0-only
//! Inodes and the block maps in and below them.

use ext4_dio::checksum::ext4_extent_block_csum;
use ext4_dio::corrupt::Corrupt;
use ext4_dio::ext4::{EXT4_ROOT_INO, Fsblk, Group};
use ext4_dio_tests::images::{peek, poke};
use ext4_dio_tests::reader::corrupt;
use kernel_shim::error::code::EFSCORRUPTED;

use crate::victim::{BLOCK, Change, Expected, Victim, put16, put32};

#[test]
fn inodes_that_cannot_be_are_corrupt() {
    let cases: [(Change, Expected); 8] = [
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
    let cases: Vec<(&str, usize, Vec<u8>, Expected)> = vec![
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
    let index = 1;
    let leaf = 2;
    let cases: [(usize, Change, Expected); 13] = [
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
