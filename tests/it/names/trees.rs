// SPDX-License-Identifier: GPL-2.0-only
//! Directories that grow: from one block to a hash tree, to a second level, until it is full; and reading them meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use ext4_dio_tests::oplang::Rng;
use ext4_dio_tests::reader::Reader;
use kernel_shim::error::code::*;

use super::*;

/// What `debugfs` says of a directory's tree.
fn htree_dump(bytes: &[u8], path: &str) -> String {
    Image::from_bytes(bytes).debugfs(&format!("htree_dump {path}"))
}

/// All names are found, listed once, and nothing else is.
fn check(sb: &Sb, dir: &str, expected: &BTreeSet<String>) {
    assert_eq!(names(sb, dir), expected.iter().cloned().collect::<Vec<_>>());
    for name in expected {
        stat(sb, &format!("{dir}/{name}")).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    assert_eq!(stat(sb, &format!("{dir}/no such name")), Err(ENOENT));
}

/// Fills a directory with links to one file, takes two thirds away again, and adds as many new ones.
fn grow(spec: &Mkfs, count: u32, len: usize) -> Vec<u8> {
    let m = mount(spec);
    mkdir(&m.sb, "/d").expect("mkdir");
    create(&m.sb, "/file").expect("create");
    let (dir, file) = (iref(&m.sb, "/d"), iref(&m.sb, "/file"));
    let mut expected = BTreeSet::new();
    for n in 0..count {
        let name = long_name(n, len + n as usize % 7);
        vfs_link(&file, &dir, name.as_bytes()).unwrap_or_else(|e| panic!("{n}: {e:?}"));
        assert_eq!(vfs_link(&file, &dir, name.as_bytes()), Err(EEXIST));
        expected.insert(name);
    }
    check(&m.sb, "/d", &expected);
    for n in (0..count).filter(|n| n % 3 != 0) {
        let name = long_name(n, len + n as usize % 7);
        unlink(&m.sb, &format!("/d/{name}")).expect("unlink");
        expected.remove(&name);
    }
    for n in (0..count).filter(|n| n % 3 != 0) {
        let name = format!("again-{n}");
        vfs_link(&file, &dir, name.as_bytes()).expect("link");
        expected.insert(name);
    }
    drop((dir, file));
    let m = remount(m);
    check(&m.sb, "/d", &expected);
    assert_eq!(stat(&m.sb, "/file").expect("stat").nlink as usize, expected.len() + 1);
    m.finish()
}

#[test]
fn a_directory_gets_a_tree_and_a_second_level() {
    let bytes = grow(&small_blocks(), 3000, 40);
    let dump = htree_dump(&bytes, "/d");
    assert!(dump.contains("Indirect levels: 1"), "{}", &dump[..dump.len().min(400)]);
    assert!(dump.contains("Hash Version: 1"), "{}", &dump[..dump.len().min(400)]);
    let reader = Reader::new(&Image::from_bytes(&bytes).bdev()).expect("mounting");
    reader.walk(100_000).expect("all can be read");
}

#[test]
fn trees_of_all_block_sizes_with_and_without_checksums() {
    for (block_size, features, fs_type) in
        [(2048, "", "ext4"), (4096, "", "ext4"), (1024, "^metadata_csum", "ext4"), (1024, "", "ext2")]
    {
        let spec = Mkfs { block_size, features, fs_type, ..small_blocks() };
        let bytes = grow(&spec, 700, 100);
        assert!(htree_dump(&bytes, "/d").contains("Hash Version: 1"), "{spec:?}");
    }
}

#[test]
fn without_the_feature_a_directory_stays_a_list() {
    let bytes = grow(&Mkfs { features: "^dir_index", ..small_blocks() }, 300, 40);
    assert!(htree_dump(&bytes, "/d").contains("Not a hash-indexed directory") || htree_dump(&bytes, "/d").is_empty());
}

#[test]
fn the_other_hashes_do_as_well() {
    for hash in ["tea", "legacy"] {
        let image = Image::make(&small_blocks(), None);
        image.debugfs(&format!("set_super_value def_hash_version {hash}"));
        let m = Mount::with(&image.bytes(), "", auto());
        create(&m.sb, "/file").expect("create");
        let (root, file) = (iref(&m.sb, "/"), iref(&m.sb, "/file"));
        let mut expected = BTreeSet::from(["file".to_string(), "lost+found".to_string()]);
        for n in 0..400 {
            let name = long_name(n, 50);
            vfs_link(&file, &root, name.as_bytes()).expect("link");
            expected.insert(name);
        }
        check(&m.sb, "/", &expected);
        drop((root, file));
        m.finish();
    }
}

/// With names of 255 bytes a tree of two levels holds some 30000; then it is full, whatever room the disk has.
#[test]
fn a_full_tree_is_enospc_and_stays_whole() {
    let spec = Mkfs { size_kib: 64 << 10, inodes: 64, ..small_blocks() };
    let m = mount(&spec);
    mkdir(&m.sb, "/d").expect("mkdir");
    create(&m.sb, "/file").expect("create");
    let (dir, file) = (iref(&m.sb, "/d"), iref(&m.sb, "/file"));
    let mut made = 0;
    let error = loop {
        match vfs_link(&file, &dir, long_name(made, 255).as_bytes()) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, ENOSPC);
    assert!(made > 20_000, "{made}");
    assert_eq!(file.i_nlink(), made + 1);
    let size = stat(&m.sb, "/d").expect("stat").size;
    // It costs nothing more to be told so again.
    assert_eq!(vfs_link(&file, &dir, long_name(made, 255).as_bytes()), Err(ENOSPC));
    assert_eq!(stat(&m.sb, "/d").expect("stat").size, size);
    assert_eq!(names(&m.sb, "/d").len(), made as usize);
    drop((dir, file));
    m.finish();
}

/// With large directories there is a third level.
#[test]
fn a_third_level_where_the_feature_is() {
    let spec = Mkfs { features: "large_dir", size_kib: 64 << 10, inodes: 64, ..small_blocks() };
    let m = mount(&spec);
    mkdir(&m.sb, "/d").expect("mkdir");
    create(&m.sb, "/file").expect("create");
    let (dir, file) = (iref(&m.sb, "/d"), iref(&m.sb, "/file"));
    for n in 0..40_000 {
        vfs_link(&file, &dir, long_name(n, 255).as_bytes()).unwrap_or_else(|e| panic!("{n}: {e:?}"));
    }
    for n in (0..40_000).step_by(997) {
        vfs_lookup(&dir, long_name(n, 255).as_bytes()).unwrap_or_else(|e| panic!("{n}: {e:?}"));
    }
    drop((dir, file));
    let bytes = m.finish();
    let dump = Image::from_bytes(&bytes).debugfs("htree_dump /d");
    assert!(dump.contains("Indirect levels: 2"), "{}", &dump[..dump.len().min(400)]);
}

/// A tree that cannot be used: without checksums it is given up with the first new name, with them that is an error.
#[test]
fn a_bad_tree_is_left_for_a_list() {
    for features in ["^metadata_csum", ""] {
        let spec = Mkfs { features, ..small_blocks() };
        let m = mount(&spec);
        create(&m.sb, "/file").expect("create");
        for n in 0..100 {
            link(&m.sb, "/file", &format!("/{}", long_name(n, 60))).expect("link");
        }
        let image = Image::from_bytes(&m.finish());
        // An unknown hash version, in the root's description of the tree.
        let block: u64 = image.debugfs("bmap / 0").trim().parse().expect("a block");
        let mut bytes = image.bytes();
        bytes[block as usize * 1024 + 28] = 77;
        let m = Mount::with(&bytes, "errors=continue", auto());
        let made = link(&m.sb, &format!("/{}", long_name(1, 60)), "/new");
        if features.is_empty() {
            assert_eq!(made, Err(EFSBADCRC));
            continue;
        }
        made.expect("the list does as well");
        assert!(!stat(&m.sb, "/").expect("stat").flags.contains(ext4_dio::ext4::InodeFlags::INDEX));
        assert_eq!(names(&m.sb, "/").len(), 103);
        stat(&m.sb, "/new").expect("it is there");
        // The rest of it is e2fsck's.
        drop(m);
    }
}

/// Reads a directory a few entries at a time, with changes between, and sees what was there throughout once.
fn read_while_changing(spec: &Mkfs, stay: u32, seed: u64) {
    let mut rng = Rng(seed);
    let m = mount(spec);
    mkdir(&m.sb, "/d").expect("mkdir");
    create(&m.sb, "/file").expect("create");
    let (dir, file) = (iref(&m.sb, "/d"), iref(&m.sb, "/file"));
    for n in 0..stay {
        vfs_link(&file, &dir, format!("stays-{n}").as_bytes()).expect("link");
    }
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut others = Vec::new();
    let (mut pos, mut made) = (0, 0);
    loop {
        let mut list = KVec::new();
        vfs_readdir(&dir, &mut pos, 1 + rng.below(7) as usize, &mut list).expect("readdir");
        if list.is_empty() {
            break;
        }
        assert!(list.last().expect("not empty").d_off <= pos);
        for d in &list {
            *seen.entry(String::from_utf8_lossy(&d.name).into_owned()).or_default() += 1;
        }
        for _ in 0..rng.below(12).min(u64::from(3000 - u32::min(made, 3000))) {
            if rng.one_in(3) && !others.is_empty() {
                let name: String = others.swap_remove(rng.below(others.len() as u64) as usize);
                unlink(&m.sb, &format!("/d/{name}")).expect("unlink");
            } else {
                let name = format!("other-{made}-{}", "y".repeat(rng.below(100) as usize));
                made += 1;
                vfs_link(&file, &dir, name.as_bytes()).expect("link");
                others.push(name);
            }
        }
    }
    for n in 0..stay {
        assert_eq!(seen.get(&format!("stays-{n}")), Some(&1), "seed {seed}, {spec:?}: stays-{n}");
    }
    assert!(seen.values().all(|times| *times == 1), "seed {seed}, {spec:?}: something came twice");
    assert_eq!((seen["."], seen[".."]), (1, 1));
    // From any position that was given, the rest comes again.
    let all = path_readdir(&m.sb, b"/d").expect("readdir");
    for at in (0..all.len()).step_by(17) {
        let mut pos = all[at].d_off;
        let mut list = KVec::new();
        vfs_readdir(&dir, &mut pos, usize::MAX, &mut list).expect("readdir");
        assert!(list.iter().map(|d| &d.name[..]).eq(all[at + 1..].iter().map(|d| &d.name[..])), "after {at}");
    }
    drop((dir, file));
    m.finish();
}

#[test]
fn positions_stay_good_while_a_directory_changes() {
    for (seed, stay) in [(1, 3), (2, 20), (3, 400)] {
        read_while_changing(&small_blocks(), stay, seed);
        read_while_changing(&Mkfs::default(), stay, seed);
        read_while_changing(&Mkfs { features: "^dir_index", ..small_blocks() }, stay, seed);
    }
}
