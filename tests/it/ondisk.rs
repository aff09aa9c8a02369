// SPDX-License-Identifier: GPL-2.0-only
//! What ext4-dio finds on sound file systems, against what e2fsprogs says is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ext4_dio::dir::{Node, is_dx};
use ext4_dio::disk::InodeExtraView;
use ext4_dio::ext4::{Compat, EXT4_ROOT_INO, Incompat, Ino, InodeFlags, Lblk, RoCompat};
use ext4_dio::ext4_jbd2::ext4_journal_start;
use ext4_dio::extents::ext4_find_extent;
use ext4_dio::extents_status::EsStatus;
use ext4_dio::iget::{Iget, InodeUpdate, ext4_do_update_inode, ext4_read_inode};
use ext4_dio::namei::{ext4_find_entry, ext4_readlink};
use ext4_dio::sb::ext4_fill_super;
use ext4_dio_tests::images::{FAKE_TIME, Image, Mkfs, Source, peek, stamped_blocks};
use ext4_dio_tests::reader::Reader;
use kernel_shim::error::Error;
use kernel_shim::error::code::{ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EROFS};
use kernel_shim::fs::InodeTimes;
use kernel_shim::time::Timespec64;

/// A target too long for the inode.
const SLOW: &str = "dir/sub/../sub/../sub/../sub/../sub/../sub/../sub/../../dir/sub/deep.txt";

/// Files of every kind there is a way to map.
fn standard_source(block_size: u32) -> Source {
    let source = Source::new();
    source.file("hello.txt", b"hello\n").file("empty", b"").file("dir/sub/deep.txt", b"deep\n");
    source.file("big.bin", &stamped_blocks(900, block_size));
    source.fragmented("few", block_size, 4).fragmented("many", block_size, 700);
    source.symlink("fast", "hello.txt").symlink("slow", SLOW).symlink("abs", "/dir/sub/deep.txt");
    source
        .symlink("dirlink", "dir")
        .symlink("dir/up", "../dir/sub")
        .symlink("loop1", "loop2")
        .symlink("loop2", "loop1");
    source.symlink("dangling", "no/such/file").symlink("slashed", "hello.txt/");
    for i in 0..41 {
        source
            .symlink(&format!("chain{i:02}"), &if i == 0 { "hello.txt".into() } else { format!("chain{:02}", i - 1) });
    }
    for i in 0..300 {
        source.file(&format!("names/a_file_with_number_{i:04}"), b"");
    }
    source
}

/// The kinds of file systems that are tried, each for a reason.
fn kinds() -> Vec<(&'static str, Mkfs)> {
    let small = |block_size| Mkfs { block_size, ..Mkfs::default() };
    vec![
        ("default 4k", small(4096)),
        ("default 2k", small(2048)),
        ("default 1k", small(1024)),
        ("many groups", Mkfs { args: &["-g", "256"], ..small(4096) }),
        ("no 64bit", Mkfs { features: "^64bit", args: &["-g", "2048"], ..small(4096) }),
        ("no metadata_csum", Mkfs { features: "^metadata_csum", ..small(1024) }),
        ("gdt_csum", Mkfs { features: "^metadata_csum,uninit_bg", args: &["-g", "2048"], ..small(2048) }),
        ("gdt_csum, no 64bit", Mkfs { features: "^metadata_csum,^64bit,uninit_bg", ..small(1024) }),
        ("no flex_bg", Mkfs { features: "^flex_bg", ..small(1024) }),
        ("meta_bg", Mkfs { features: "meta_bg,^resize_inode", args: &["-g", "256"], ..small(1024) }),
        ("csum seed", Mkfs { features: "metadata_csum_seed", ..small(4096) }),
        ("sparse_super2", Mkfs { features: "sparse_super2,^resize_inode", args: &["-g", "1024"], ..small(4096) }),
        ("no journal", Mkfs { features: "^has_journal", ..small(4096) }),
        ("inodes of 128", Mkfs { inode_size: 128, features: "^extra_isize", ..small(4096) }),
        ("inodes of 1024", Mkfs { inode_size: 1024, ..small(2048) }),
        ("large_dir", Mkfs { features: "large_dir", ..small(4096) }),
        ("ext3 4k", Mkfs { fs_type: "ext3", ..small(4096) }),
        ("ext3 1k", Mkfs { fs_type: "ext3", ..small(1024) }),
        ("ext2 2k", Mkfs { fs_type: "ext2", inode_size: 128, ..small(2048) }),
    ]
}

/// An image of one of the kinds; its bytes are made once, for many tests.
fn make(spec: &Mkfs) -> Image {
    static MADE: Mutex<BTreeMap<String, Arc<OnceLock<Vec<u8>>>>> = Mutex::new(BTreeMap::new());
    let made = {
        let mut all = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(format!("{spec:?}")).or_default().clone()
    };
    Image::from_bytes(made.get_or_init(|| Image::make(spec, Some(standard_source(spec.block_size).path())).bytes()))
}

/// An extent as `debugfs` prints it: logical block, length, physical block, unwritten.
type Ex = (u32, u32, u64, bool);

/// What `debugfs` says of a file's extents, and the depth of their tree.
fn debugfs_ex(image: &Image, path: &str) -> (u16, Vec<Ex>) {
    let mut depth = 0;
    let mut extents = Vec::new();
    for line in image.debugfs(&format!("ex {path}")).lines().skip(1) {
        let words: Vec<&str> =
            line.split(|c: char| c == '/' || c == '-' || c.is_whitespace()).filter(|w| !w.is_empty()).collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("debugfs ex: {line}"));
        depth = number(1) as u16;
        if number(0) == number(1) {
            extents.push((number(4) as u32, number(8) as u32, number(6), line.contains("Uninit")));
        }
    }
    (depth, extents)
}

fn our_ex(reader: &Reader, path: &str) -> Vec<Ex> {
    let node = reader.lookup(path).expect("it is there");
    let extents = reader.extents(&node).expect("its map is sound");
    extents.iter().map(|es| (es.lblk().0, es.len(), es.pblk().0, es.status() == EsStatus::Unwritten)).collect()
}

#[test]
fn every_kind_reads_as_it_was_written() {
    for (kind, spec) in kinds() {
        let (image, source) = (make(&spec), standard_source(spec.block_size));
        let reader = Reader::new(&image.bdev()).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(reader.sb.s_blocksize, spec.block_size, "{kind}");
        for path in ["hello.txt", "empty", "dir/sub/deep.txt", "big.bin", "few", "many"] {
            let node = reader.lookup(path).unwrap_or_else(|error| panic!("{kind}: {path}: {error}"));
            let bytes = reader.read(&node).unwrap_or_else(|error| panic!("{kind}: {path}: {error}"));
            let expected = std::fs::read(source.path().join(path)).expect("it was written");
            assert!(bytes == expected, "{kind}: {path}: other bytes");
        }
        for (link, target) in [("fast", "hello.txt"), ("slow", SLOW), ("abs", "/dir/sub/deep.txt")] {
            let node = reader.lookup_nofollow(link).unwrap_or_else(|error| panic!("{kind}: {link}: {error}"));
            assert_eq!(node.disk.is_fast_symlink(), link != "slow", "{kind}: {link}");
            let found = ext4_readlink(&node).unwrap_or_else(|error| panic!("{kind}: {link}: {error}"));
            assert_eq!(&found[..], target.as_bytes(), "{kind}");
        }
        let walked = reader.walk(10_000).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(walked > 350, "{kind}: {walked} names");
        assert_eq!(reader.sb.last_error(), None, "{kind}");
    }
}

#[test]
fn the_kinds_are_what_they_are_called() {
    let reader = |name: &str| {
        let (_, spec) = kinds().into_iter().find(|(kind, _)| *kind == name).expect("a kind");
        Reader::new(&Image::make(&spec, None).bdev()).expect("sound")
    };
    assert!(reader("default 4k").sb.has_metadata_csum());
    assert_eq!(reader("default 4k").sb.s_desc_size, 64);
    assert!(reader("many groups").sb.s_groups_count >= 16);
    assert_eq!(reader("no 64bit").sb.s_desc_size, 32);
    let gdt_csum = reader("gdt_csum").sb.s_ro_compat;
    assert!(gdt_csum.contains(RoCompat::GDT_CSUM) && !gdt_csum.contains(RoCompat::METADATA_CSUM));
    assert!(!reader("no flex_bg").sb.s_incompat.contains(Incompat::FLEX_BG));
    let meta_bg = reader("meta_bg");
    assert!(meta_bg.sb.s_incompat.contains(Incompat::META_BG) && meta_bg.sb.s_gdb_count > 2);
    assert!(reader("csum seed").sb.s_incompat.contains(Incompat::CSUM_SEED));
    assert!(reader("sparse_super2").sb.s_compat.contains(Compat::SPARSE_SUPER2));
    assert_eq!(reader("inodes of 128").sb.s_time_gran(), 1_000_000_000);
    assert!(!reader("ext3 1k").sb.s_incompat.contains(Incompat::EXTENTS));
}

#[test]
fn block_maps_agree_with_debugfs() {
    for (kind, spec) in kinds() {
        let image = make(&spec);
        let reader = Reader::new(&image.bdev()).expect("sound");
        for path in ["/big.bin", "/few", "/many"] {
            let ours = our_ex(&reader, path);
            if spec.fs_type == "ext4" {
                assert_eq!(ours, debugfs_ex(&image, path).1, "{kind}: {path}");
                continue;
            }
            // Of block maps debugfs tells one block at a time.
            let asked: Vec<u32> = ours.iter().flat_map(|(lblk, len, ..)| [*lblk, lblk + len - 1, lblk + len]).collect();
            let script: Vec<String> = asked.iter().map(|lblk| format!("bmap {path} {lblk}")).collect();
            let theirs = image.debugfs_script(&script);
            let ours = asked.iter().map(|asked| {
                let within = ours.iter().find(|(lblk, len, ..)| (*lblk..lblk + len).contains(asked));
                within.map_or(0, |(lblk, _, pblk, _)| pblk + u64::from(asked - lblk))
            });
            assert!(theirs.lines().map(|line| line.trim().parse::<u64>().expect("a block")).eq(ours), "{kind}: {path}");
        }
    }
}

#[test]
fn trees_of_depth_0_to_3_agree_with_debugfs() {
    let spec = Mkfs { block_size: 1024, size_kib: 64 << 10, ..Mkfs::default() };
    let source = Source::new();
    let files = [("depth0", 4), ("depth1", 60), ("depth2", 700), ("depth3", 29_000)];
    for (path, extents) in files {
        source.fragmented(path, spec.block_size, extents);
    }
    let image = Image::make(&spec, Some(source.path()));
    let reader = Reader::new(&image.bdev()).expect("sound");
    for (depth, (path, extents)) in (0..).zip(files) {
        let theirs = debugfs_ex(&image, path);
        assert_eq!((theirs.0, theirs.1.len()), (depth, extents as usize), "{path}");
        assert_eq!(our_ex(&reader, path), theirs.1, "{path}");
        let node = reader.lookup(path).expect("it is there");
        assert_eq!(node.disk.tree().depth(), depth);
        let (way, _) = ext4_find_extent(&node.ctx(), &node.disk.tree(), Lblk(3)).expect("sound");
        assert!(way.iter().map(|node| node.p_depth).eq((0..=depth).rev()), "{path}");
        let bytes = reader.read(&node).expect("sound");
        assert!(bytes == std::fs::read(source.path().join(path)).expect("it was written"), "{path}");
    }
}

#[test]
fn unwritten_extents_are_told_apart() {
    for block_size in [1024, 4096] {
        let spec = Mkfs { block_size, ..Mkfs::default() };
        let image = make(&spec);
        // Into a file with a leaf block, into an empty one, and over the longest an unwritten extent can be.
        image.debugfs("fallocate /many 2000 2100");
        image.debugfs("fallocate /empty 10 60");
        let reader = Reader::new(&image.bdev()).expect("sound");
        for path in ["/many", "/empty"] {
            let (ours, theirs) = (our_ex(&reader, path), debugfs_ex(&image, path).1);
            assert!(ours.iter().any(|extent| extent.3), "{path}");
            assert_eq!(ours, theirs, "{path}");
        }
    }
}

#[test]
fn holes_are_as_long_as_they_are() {
    let image = make(&Mkfs::default());
    let reader = Reader::new(&image.bdev()).expect("sound");
    let few = reader.lookup("few").expect("there");
    let hole = reader.map(&few, 1).expect("sound");
    assert_eq!((hole.status(), hole.lblk().0, hole.len()), (EsStatus::Hole, 1, 1));
    let behind = reader.map(&few, 1000).expect("sound");
    assert_eq!((behind.status(), behind.lblk().0, behind.end()), (EsStatus::Hole, 7, u32::MAX));
    let empty = reader.lookup("empty").expect("there");
    let all = reader.map(&empty, 5).expect("sound");
    assert_eq!((all.status(), all.lblk().0, all.end()), (EsStatus::Hole, 0, u32::MAX));
}

/// The fields of `debugfs stat` that we read, by name.
fn debugfs_stat(image: &Image, path: &str) -> BTreeMap<String, String> {
    let text = image.debugfs(&format!("stat {path}"));
    let mut fields = BTreeMap::new();
    for name in [
        "Inode",
        "Mode",
        "Flags",
        "Generation",
        "User",
        "Group",
        "Size",
        "Links",
        "Blockcount",
        "ctime",
        "atime",
        "mtime",
        "crtime",
    ] {
        let marks = [format!(" {name}: "), format!("\n{name}: ")];
        let at = marks.iter().find_map(|mark| format!("\n{text}").find(mark.as_str()).map(|at| at + mark.len() - 1));
        if let Some(value) = at.and_then(|at| text[at..].split_whitespace().next()) {
            fields.insert(name.to_string(), value.to_string());
        }
    }
    fields
}

/// A time as debugfs writes it: both words in hexadecimal, or one.
fn debugfs_time(words: &str) -> Timespec64 {
    let mut words = words.split(':').map(|w| u32::from_str_radix(w.trim_start_matches("0x"), 16).expect("hexadecimal"));
    let seconds = words.next().expect("seconds");
    ext4_dio::ext4::ext4_decode_time(seconds, words.next())
}

#[test]
fn inodes_agree_with_debugfs() {
    for (kind, spec) in kinds() {
        let image = make(&spec);
        let set = |field: &str, value: &str| format!("set_inode_field /hello.txt {field} {value}");
        let mut script =
            vec![set("uid", "70000"), set("gid", "80000"), set("mode", "0104755"), set("generation", "77")];
        script.extend([set("mtime", "@1700000000"), set("atime", "@1800000000")]);
        if spec.inode_size > 128 {
            script.extend([set("mtime_extra", "0x2a2a2a28"), set("atime_extra", "0x00000005")]);
        }
        image.debugfs_script(&script);
        let reader = Reader::new(&image.bdev()).expect("sound");
        for path in ["/", "/hello.txt", "/big.bin", "/dir", "/fast", "/slow"] {
            let disk = reader.lookup_nofollow(path).unwrap_or_else(|error| panic!("{kind}: {path}: {error}")).disk;
            let stat = debugfs_stat(&image, path);
            let text =
                |name: &str| stat.get(name).unwrap_or_else(|| panic!("{kind}: {path}: no {name} in {stat:?}")).as_str();
            let number = |name: &str| text(name).parse::<u64>().expect("a number");
            assert_eq!(u64::from(disk.i_ino.0), number("Inode"), "{kind}: {path}");
            assert_eq!(disk.i_mode & 0o7777, u16::from_str_radix(text("Mode"), 8).expect("octal"), "{kind}: {path}");
            assert_eq!(
                disk.i_flags.bits(),
                u32::from_str_radix(&text("Flags")[2..], 16).expect("hex"),
                "{kind}: {path}"
            );
            assert_eq!(u64::from(disk.i_generation), number("Generation"), "{kind}: {path}");
            assert_eq!(
                (u64::from(disk.i_uid), u64::from(disk.i_gid)),
                (number("User"), number("Group")),
                "{kind}: {path}"
            );
            assert_eq!((disk.i_size, disk.i_blocks), (number("Size"), number("Blockcount")), "{kind}: {path}");
            assert_eq!(u64::from(disk.i_links_count), number("Links"), "{kind}: {path}");
            let InodeTimes { i_atime, i_mtime, i_ctime } = disk.i_times;
            for (name, ours) in [("atime", i_atime), ("mtime", i_mtime), ("ctime", i_ctime), ("crtime", disk.i_crtime)]
            {
                if name != "crtime" || spec.inode_size > 128 {
                    assert_eq!(ours, debugfs_time(text(name)), "{kind}: {path}: {name}");
                }
            }
        }
        let hello = reader.lookup("hello.txt").expect("there").disk;
        assert_eq!((hello.i_uid, hello.i_gid, hello.i_generation), (70000, 80000, 77), "{kind}");
    }
}

#[test]
fn directories_agree_with_debugfs() {
    for (kind, spec) in kinds() {
        let image = make(&spec);
        let reader = Reader::new(&image.bdev()).expect("sound");
        for path in ["/", "/dir", "/names"] {
            let node = reader.lookup(path).expect("there");
            let ours: BTreeSet<(String, u32)> = reader
                .readdir(&node)
                .unwrap_or_else(|error| panic!("{kind}: {path}: {error}"))
                .into_iter()
                .map(|(name, ino, _)| (String::from_utf8(name).expect("ASCII"), ino.0))
                .collect();
            let listing = image.debugfs(&format!("ls -p {path}"));
            let theirs = listing.lines().filter(|line| line.starts_with('/')).map(|line| {
                let fields: Vec<&str> = line.split('/').collect();
                (fields[5].to_string(), fields[1].parse().expect("an inode"))
            });
            assert_eq!(ours, theirs.collect(), "{kind}: {path}");
        }
    }
}

/// A directory with so many names that its hash tree has more than one level of nodes where blocks are small.
fn indexed(spec: &Mkfs, algorithm: Option<&str>) -> (Image, Vec<String>) {
    let source = Source::new();
    let names: Vec<String> = (0..2600).map(|i| format!("a_name_that_takes_some_room_in_a_block_{i:05}")).collect();
    for name in &names {
        source.file(&format!("d/{name}"), b"");
    }
    let image = Image::make(spec, Some(source.path()));
    if let Some(algorithm) = algorithm {
        image.debugfs(&format!("ssv def_hash_version {algorithm}"));
    }
    image.index_directories();
    (image, names)
}

#[test]
fn hash_trees_find_every_name_and_no_other() {
    let kinds = [
        (1024, "", None),
        (4096, "", None),
        (1024, "^metadata_csum", Some("tea")),
        (2048, "large_dir", Some("legacy")),
    ];
    for (block_size, features, algorithm) in kinds {
        let spec = Mkfs { block_size, features, inodes: 3000, ..Mkfs::default() };
        let (image, names) = indexed(&spec, algorithm);
        let reader = Reader::new(&image.bdev()).expect("sound");
        let dir = reader.lookup("d").expect("there");
        assert!(is_dx(&dir.ctx()), "{spec:?}");
        let levels = image.debugfs("htree_dump /d").lines().find_map(|line| {
            line.trim().strip_prefix("Indirect levels: ").and_then(|levels| levels.parse::<u32>().ok())
        });
        assert_eq!(levels, Some(u32::from(block_size == 1024)), "{spec:?}");
        let inodes: BTreeMap<Vec<u8>, Ino> =
            reader.readdir(&dir).expect("sound").into_iter().map(|(name, ino, _)| (name, ino)).collect();
        assert_eq!(inodes.len(), names.len() + 2);
        for name in &names {
            let found = ext4_find_entry(&dir, name.as_bytes()).expect("sound");
            assert_eq!(found.as_ref(), inodes.get(name.as_bytes()), "{name}");
            assert!(found.is_some(), "{name}");
            assert_eq!(ext4_find_entry(&dir, format!("{name}x").as_bytes()).expect("sound"), None, "{name}x");
        }
        assert_eq!(ext4_find_entry(&dir, b".").expect("sound"), Some(dir.disk.i_ino));
        assert_eq!(ext4_find_entry(&dir, b"..").expect("sound"), Some(EXT4_ROOT_INO));
        // The tree was used all along: giving up on it is taken note of.
        assert_eq!(reader.sb.last_error(), None, "{spec:?}");
    }
}

#[test]
fn names_with_one_hash_may_go_on_in_the_next_leaf() {
    // Without checksums, so that the tree can be changed by hand.
    let spec = Mkfs { block_size: 1024, features: "^metadata_csum", inodes: 3000, ..Mkfs::default() };
    let (image, names) = indexed(&spec, None);
    let bdev = image.bdev();
    let reader = Reader::new(&bdev).expect("sound");
    let dir = reader.lookup("d").expect("there");
    // Mark every leaf as going on with the hash of the leaf before: names with exactly that hash are then looked
    // for one leaf too early first.
    let mut marked = 0;
    for lblk in 1..(dir.disk.i_size / 1024) as u32 {
        let Some(pblk) = dir.bmap(Lblk(lblk)).expect("sound") else { continue };
        let mut block = peek(&bdev, pblk.0 * 1024, 1024);
        // Nodes are blocks with one unused entry.
        if block[0..4] != [0; 4] || u16::from_le_bytes([block[4], block[5]]) != 1024 {
            continue;
        }
        let count = usize::from(u16::from_le_bytes([block[10], block[11]]));
        for entry in 1..count {
            block[8 + entry * 8] |= 1;
            marked += 1;
        }
        ext4_dio_tests::images::poke(&bdev, pblk.0 * 1024, &block);
    }
    assert!(marked > 120, "{marked}");
    let reader = Reader::new(&bdev).expect("sound");
    let dir = reader.lookup("d").expect("there");
    for name in &names {
        assert!(ext4_find_entry(&dir, name.as_bytes()).expect("sound").is_some(), "{name}");
    }
    assert_eq!(reader.sb.last_error(), None);
}

#[test]
fn paths_lead_where_they_do_on_linux() {
    let image = make(&Mkfs::default());
    let reader = Reader::new(&image.bdev()).expect("sound");
    let ino = |path: &str| reader.lookup(path).map(|node| node.disk.i_ino).map_err(Error::from);
    let hello = ino("/hello.txt").expect("there");
    let deep = ino("/dir/sub/deep.txt").expect("there");
    for path in [
        "hello.txt",
        "//hello.txt",
        "./hello.txt",
        "/../hello.txt",
        "/dir/../hello.txt",
        "/dir/sub/../../hello.txt",
        "/fast",
        "/chain39",
    ] {
        assert_eq!(ino(path), Ok(hello), "{path}");
    }
    for path in ["/slow", "/abs", "/dirlink/sub/deep.txt", "/dir/up/deep.txt", "/dirlink/up/../sub/./deep.txt"] {
        assert_eq!(ino(path), Ok(deep), "{path}");
    }
    assert_eq!(ino("/"), Ok(EXT4_ROOT_INO));
    assert_eq!(ino("/.."), Ok(EXT4_ROOT_INO));
    assert_eq!(ino("/dir/"), ino("/dir"));
    assert_eq!(ino("/dirlink/"), ino("/dir"));
    for path in ["", "/no", "/dir/no", "/no/hello.txt", "/dangling"] {
        assert_eq!(ino(path), Err(ENOENT), "{path}");
    }
    for path in ["/hello.txt/", "/hello.txt/x", "/hello.txt/..", "/fast/", "/slashed", "/hello.txt/."] {
        assert_eq!(ino(path), Err(ENOTDIR), "{path}");
    }
    for path in ["/loop1", "/chain40", "/loop2/x"] {
        assert_eq!(ino(path), Err(ELOOP), "{path}");
    }
    assert_eq!(ino(&"x".repeat(255)), Err(ENOENT));
    assert_eq!(ino(&"x".repeat(256)), Err(ENAMETOOLONG));
    assert_eq!(ino(&"./".repeat(2047)), Ok(EXT4_ROOT_INO));
    assert_eq!(ino(&"./".repeat(2048)), Err(ENAMETOOLONG));
    let nofollow = |path: &str| reader.lookup_nofollow(path).map(|node| node.is_lnk()).map_err(Error::from);
    assert_eq!(nofollow("/fast"), Ok(true));
    assert_eq!(nofollow("/loop1"), Ok(true));
    assert_eq!(nofollow("/dirlink/"), Ok(false));
    assert_eq!(nofollow("/dirlink/up"), Ok(true));
}

#[test]
fn updated_inodes_are_what_e2fsck_and_debugfs_expect() {
    for (kind, spec) in kinds() {
        let image = make(&spec);
        let bdev = image.bdev();
        let sb = ext4_fill_super(bdev.clone(), "").unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(!sb.is_rdonly(), "{kind}");
        sb.ext4_setup_super().expect("writable");
        let (ino, before) = {
            let reader = Reader::new(&bdev).expect("sound");
            let node = reader.lookup("hello.txt").expect("there");
            (node.disk.i_ino, node.disk)
        };
        let at = |tv_sec, tv_nsec| Timespec64 { tv_sec, tv_nsec };
        let i_times =
            InodeTimes { i_atime: at(1_900_000_000, 1), i_mtime: at(1_700_000_000, 999_999_999), i_ctime: at(5, 7) };
        let update = InodeUpdate {
            i_mode: 0o100_640,
            i_uid: 100_000,
            i_gid: 200_000,
            i_times,
            i_size: 5,
            i_version: 9,
            ..InodeUpdate::of(&before)
        };
        let mut handle = ext4_journal_start(&sb, 1).expect("writable");
        ext4_do_update_inode(&mut handle, ino, || update).expect("writable");
        handle.stop().expect("written");
        sb.ext4_put_super().expect("writable");

        let after = Image::from_bytes(&peek(&bdev, 0, (spec.size_kib << 10) as usize));
        after.assert_clean();
        let stat = debugfs_stat(&after, "/hello.txt");
        assert_eq!(
            (stat["User"].as_str(), stat["Group"].as_str(), stat["Mode"].as_str()),
            ("100000", "200000", "0640"),
            "{kind}"
        );
        assert_eq!(stat["Size"], "5", "{kind}");
        let disk = ext4_read_inode(&sb, ino, Iget::Normal).expect("sound");
        let nsec = |t: Timespec64| if spec.inode_size > 128 { t } else { Timespec64 { tv_nsec: 0, ..t } };
        let InodeTimes { i_atime, i_mtime, i_ctime } = i_times;
        let expected = InodeTimes { i_atime: nsec(i_atime), i_mtime: nsec(i_mtime), i_ctime: nsec(i_ctime) };
        assert_eq!(disk.i_times, expected, "{kind}");
        for (name, time) in [("atime", expected.i_atime), ("mtime", expected.i_mtime), ("ctime", expected.i_ctime)] {
            assert_eq!(debugfs_time(&stat[name]), time, "{kind}: {name}");
        }
        // What was not to be changed is as before.
        assert_eq!(
            (disk.i_data, disk.i_flags, disk.i_crtime),
            (before.i_data, before.i_flags, before.i_crtime),
            "{kind}"
        );
    }
}

#[test]
fn a_mount_is_told_of_in_the_super_block() {
    for features in ["", "^metadata_csum", "^has_journal"] {
        let journal = features != "^has_journal";
        let spec = Mkfs { features, ..Mkfs::default() };
        let image = Image::make(&spec, None);
        let bdev = image.bdev();
        let before = peek(&bdev, 1024, 1024);
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sb = ext4_fill_super(bdev.clone(), "rw").expect("sound");
        assert_eq!(peek(&bdev, 1024, 1024), before, "nothing is written before it is meant to be");
        sb.ext4_setup_super().expect("writable");
        let mounted = peek(&bdev, 1024, 1024);
        assert_eq!(word(&mounted, 0x34) & 0xffff, (word(&before, 0x34) & 0xffff) + 1, "mount count");
        assert!(u64::from(word(&mounted, 0x2c)) > FAKE_TIME, "mount time");
        // After a crash: with a journal it is sound once that is replayed; without one e2fsck has to look.
        assert_eq!(mounted[0x3a] & 1, u8::from(journal), "state");
        assert_eq!(mounted[0x60] & 4, if journal { 4 } else { 0 }, "RECOVER");
        // Nothing has happened yet.
        Image::from_bytes(&peek(&bdev, 0, (spec.size_kib << 10) as usize)).assert_clean();
        sb.ext4_put_super().expect("writable");
        let unmounted = peek(&bdev, 1024, 1024);
        assert_eq!((unmounted[0x3a], unmounted[0x60] & 4), (before[0x3a], 0), "clean");
        Image::from_bytes(&peek(&bdev, 0, (spec.size_kib << 10) as usize)).assert_clean();
        assert!(u64::from(word(&peek(&bdev, 1024, 1024), 0x30)) > FAKE_TIME, "write time");
    }
}

#[test]
fn read_only_mounts_write_nothing() {
    let image = Image::make(&Mkfs::default(), None);
    let bdev = image.bdev();
    let sb = ext4_fill_super(bdev.clone(), "ro").expect("sound");
    sb.ext4_setup_super().expect("nothing to do");
    assert_eq!(ext4_journal_start(&sb, 1).map(drop), Err(EROFS));
    sb.ext4_put_super().expect("nothing to do");
    drop(sb);
    assert!(peek(&bdev, 0, image.bytes().len()) == image.bytes());
}

#[test]
fn reserved_inodes_are_for_insiders() {
    let image = Image::make(&Mkfs::default(), None);
    let reader = Reader::new(&image.bdev()).expect("sound");
    let journal = ext4_read_inode(&reader.sb, reader.sb.s_journal_inum, Iget::Special).expect("there is a journal");
    assert!(journal.i_flags.contains(InodeFlags::EXTENTS) && journal.i_size > 1 << 20);
    assert!(reader.iget(reader.sb.s_journal_inum).is_err());
    assert!(ext4_read_inode(&reader.sb, Ino(0), Iget::Special).is_err());
    assert!(ext4_read_inode(&reader.sb, Ino(reader.sb.s_inodes_count + 1), Iget::Special).is_err());
    assert_eq!(InodeExtraView::LEN + 128, 160);
}
