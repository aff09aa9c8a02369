// SPDX-License-Identifier: GPL-2.0-only
//! The sound file systems that are damaged: small, with one of each structure, and always the same.

use std::sync::{Arc, OnceLock};

use crate::images::{Image, Mkfs, Source, stamped};

use super::layout::Layout;

/// Their names:
///
/// * `ext4`: blocks of 1 KiB, checksums, two groups, a journal, an orphan file;
/// * `ext4-4k`: the same with blocks of 4 KiB, one group, without the orphan file;
/// * `ext3`: block numbers, small inodes, a journal without checksums;
/// * `old-2k`: blocks of 2 KiB, extents, checksums of group descriptors only, no journal;
/// * `log`, `log-v2`, `log-ext3`: with a log that has to be replayed, with checksums of version 3, 2 and none.
pub const NAMES: [&str; 7] = ["ext4", "ext4-4k", "ext3", "old-2k", "log", "log-v2", "log-ext3"];

/// A sound file system.
pub struct Base {
    /// See [`NAMES`].
    pub name: &'static str,
    /// The image.
    pub bytes: Arc<[u8]>,
    /// Where what is in it.
    pub layout: Layout,
}

/// The base with a name, made once in a process.
///
/// # Panics
///
/// If there is none, or e2fsprogs does not work.
pub fn base(name: &str) -> &'static Base {
    static MADE: [OnceLock<Base>; NAMES.len()] = [const { OnceLock::new() }; NAMES.len()];
    let at = NAMES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no such base: {name}"));
    MADE[at].get_or_init(|| {
        let bytes: Arc<[u8]> = make(NAMES[at]).into();
        Base { name: NAMES[at], layout: Layout::of(&bytes), bytes }
    })
}

fn spec(name: &str) -> Mkfs {
    let ext4 = Mkfs {
        block_size: 1024,
        size_kib: 4096,
        inodes: 128,
        features: "orphan_file",
        args: &["-g", "2048", "-J", "size=1"],
        ..Mkfs::default()
    };
    let ext3 = Mkfs { fs_type: "ext3", features: "^resize_inode", inode_size: 128, ..ext4.clone() };
    match name {
        "ext4" => ext4,
        "ext4-4k" => Mkfs { block_size: 4096, features: "", size_kib: 12288, args: &["-J", "size=4"], ..ext4 },
        "old-2k" => Mkfs {
            fs_type: "ext2",
            block_size: 2048,
            features: "extent,uninit_bg,flex_bg,dir_nlink",
            inode_size: 128,
            args: &["-g", "1024"],
            ..ext4
        },
        "ext3" | "log-ext3" => ext3,
        _ => Mkfs { features: "", ..ext4 },
    }
}

fn make(name: &str) -> Vec<u8> {
    let spec = spec(name);
    let bs = spec.block_size;
    let source = Source::new();
    source.file("hello.txt", b"hello\n").file("dir/file", b"in a directory\n").directory("dir/below");
    source.fragmented("few", bs, 4).fragmented("many", bs, 400).symlink("fast", "hello.txt");
    source.symlink("slow", &"./".repeat(60)).symlink("loop", "loop");
    sparse(&source, "far", bs);
    // Names of one inode: more than a block of a hash tree's nodes has room for leaves, where there are small blocks.
    source.file("d/0", b"");
    for n in 1..600 {
        let name = format!("d/{n:04}{}", "x".repeat(if bs == 1024 { 200 } else { 40 }));
        std::fs::hard_link(source.path().join("d/0"), source.path().join(name)).expect("room for a name");
    }
    let image = Image::make(&spec, Some(source.path()));
    let value = source.path().join("value");
    std::fs::write(&value, [b'v'; 400]).expect("room for a value");
    let mut script = vec![
        "ea_set /hello.txt user.small value".to_string(),
        format!("ea_set -f {} /few user.large", value.display()),
        "ea_set /few user.other other".to_string(),
        format!("ea_set -f {} /dir user.large", value.display()),
        "mknod fifo p".to_string(),
    ];
    if spec.fs_type == "ext4" {
        let size = 64 * bs;
        script.extend(["write /dev/null unwritten".to_string(), "fallocate unwritten 0 63".to_string()]);
        script.push(format!("set_inode_field unwritten size {size}"));
    }
    image.debugfs_script(&script);
    image.index_directories();
    image.assert_clean();
    if name.starts_with("log") {
        write_log(&image, name, bs);
    }
    image.bytes()
}

/// A file with a block here and there, so that one with block numbers has all three kinds of indirect blocks.
fn sparse(source: &Source, path: &str, bs: u32) {
    use std::os::unix::fs::FileExt;
    source.file(path, b"");
    let file = std::fs::File::options().write(true).open(source.path().join(path)).expect("it was just made");
    for lblk in [0, 5, 30, 300, 12 + 256 + 65536 + 700] {
        file.write_all_at(&stamped(lblk, bs), u64::from(lblk) * u64::from(bs)).expect("room for a block");
    }
}

/// Has `debugfs` write a log: metadata as they are, data, a block that begins with the journal's magic number, revoked blocks, and a
/// transaction that was not committed.
fn write_log(image: &Image, name: &str, bs: u32) {
    let bytes = image.bytes();
    let layout = Layout::of(&bytes);
    let block = |name: &str| layout.place(name).unwrap_or_else(|| panic!("no {name}")).at / u64::from(bs);
    let metadata = ["inode:/", "inode:/hello.txt", "bbitmap:0", "dir:/:0", "dxroot:/d:0"].map(block);
    let data = [0, 2, 4, 6].map(|n| block(&format!("data:/many:{n}")));
    let join = |list: &[u64]| list.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let mut files = 0;
    let mut file = |bytes: &[u8]| {
        files += 1;
        let path = image.path().with_extension(format!("log{files}"));
        std::fs::write(&path, bytes).expect("room");
        path.display().to_string()
    };
    let mut kept: Vec<u64> = metadata.to_vec();
    kept.dedup();
    let content: Vec<u8> =
        kept.iter().flat_map(|b| bytes[(b * u64::from(bs)) as usize..][..bs as usize].to_vec()).collect();
    let magic: Vec<u8> = std::iter::repeat_n(0xc03b_3998u32.to_be_bytes(), bs as usize / 4).flatten().collect();
    let stamp: Vec<u8> = stamped(7, bs).repeat(2);
    let script = [
        match name {
            "log" => "jo -c -v 3".to_string(),
            "log-v2" => "jo -c -v 2".to_string(),
            _ => "jo".to_string(),
        },
        format!("jw -b {} {}", join(&kept), file(&content)),
        format!("jw -b {} {}", join(&data[..2]), file(&stamp)),
        format!("jw -r {}", join(&data[1..2])),
        format!("jw -b {} {}", data[2], file(&magic)),
        format!("jw -r {}", join(&data[3..])),
        format!("jw -b {} {}", data[3], file(&stamped(8, bs))),
        format!("jw -b {} -c {}", data[0], file(&stamped(9, bs))),
        "jc".to_string(),
    ];
    image.debugfs_script(&script);
}
