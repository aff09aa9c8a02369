// SPDX-License-Identifier: GPL-2.0-only
//! Directories, hash trees and symbolic links.

use ext4_dio::corrupt::Corrupt;
use ext4_dio::ext4::{EXT4_ROOT_INO, Ino};
use ext4_dio::namei::{ext4_find_entry, ext4_readlink};
use ext4_dio_tests::images::peek;
use ext4_dio_tests::reader::corrupt;

use crate::victim::{BLOCK, Change, Expected, Victim, put16, put32};

#[test]
fn directory_entries_that_cannot_be_are_corrupt() {
    // In the first block of "dir": ".", "..", "file", at 0, 12 and 24, and the checksum's entry at the end.
    let cases: [(Change, Expected); 11] = [
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
    victim.inode("dir", |raw| put32(raw, 4, 0x0010_0000));
    assert!(victim.mounted().lookup("dir/file").is_ok());
    assert_eq!(lookup(&victim, "dir/no"), Corrupt::DirHole(dir));
    // More blocks than the file system has.
    let victim = Victim::new();
    assert_eq!(lookup(victim.inode("dir", |raw| put32(raw, 4, 0x8000_0000)), "dir/file"), Corrupt::DirSize(dir));
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
    let cases: [(bool, Change, Expected); 11] = [
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
