// SPDX-License-Identifier: GPL-2.0-only
//! Whatever is done to an image, there is no panic and an end.

use ext4_dio_tests::images::{Image, Mkfs, Source, peek, poke};

use crate::victim::Victim;
use crate::with_an_end;

/// A small file system with one of each structure.
pub(crate) fn tiny(features: &'static str, fs_type: &'static str) -> Vec<u8> {
    let source = Source::new();
    source.file("hello.txt", b"hello\n").fragmented("frag", 1024, 40).symlink("fast", "hello.txt");
    source.symlink("slow", &"./".repeat(40));
    for i in 0..40 {
        source.file(&format!("d/{i:04}{}", "x".repeat(120)), b"");
    }
    let spec = Mkfs { block_size: 1024, size_kib: 4 << 10, inodes: 128, features, fs_type, ..Mkfs::default() };
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
        for (offset, old) in (*start..).zip(before) {
            for value in [0, 0xff, old ^ 1, old ^ 0x80] {
                if value == old {
                    continue;
                }
                let block = peek(&victim.bdev, start / 1024 * 1024, 1024);
                poke(&victim.bdev, offset, &[value]);
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
