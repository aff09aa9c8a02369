// SPDX-License-Identifier: GPL-2.0-only
//! Names: directories large and small, errno by errno, at random against a model, and many threads at once.

mod crash;
mod errno;
mod model;
mod parallel;
mod trees;

use std::collections::BTreeMap;

use ext4_dio::ext4::{EXT4_FT_DIR, EXT4_FT_REG_FILE};
use ext4_dio::namei::RenameFlags;
use ext4_dio::path::*;
use ext4_dio::{IRef, SuperBlock};
use ext4_dio_tests::dio::{Mount, auto};
use ext4_dio_tests::images::{Image, Mkfs};
use ext4_dio_tests::linux::{self, Linux};
use kernel_shim::alloc::{Arc as KArc, KVec};
use kernel_shim::error::Result;
use kernel_shim::fs::OpenFlags;

type Sb = KArc<SuperBlock>;

/// Who makes what the tests make.
const CRED: Cred = Cred { uid: 7, gid: 70_000, umask: 0o022 };

/// An image of 1 KiB blocks, where directories fill soonest, with room for many inodes.
fn small_blocks() -> Mkfs {
    Mkfs { block_size: 1024, inodes: 8192, size_kib: 24 << 10, ..Mkfs::default() }
}

fn mount(spec: &Mkfs) -> Mount {
    mount_with(spec, "")
}

fn mount_with(spec: &Mkfs, options: &str) -> Mount {
    Mount::with(&Image::make(spec, None).bytes(), options, auto())
}

/// Unmounts and mounts again.
fn remount(m: Mount) -> Mount {
    let bytes = m.finish();
    Mount::with(&bytes, "", auto())
}

fn create(sb: &Sb, path: &str) -> Result {
    let flags = OpenFlags::O_CREAT | OpenFlags::O_EXCL | OpenFlags::O_WRONLY;
    path_open(sb, path.as_bytes(), flags, 0o666, &CRED).map(drop)
}

fn mkdir(sb: &Sb, path: &str) -> Result {
    path_mkdir(sb, path.as_bytes(), 0o777, &CRED)
}

fn unlink(sb: &Sb, path: &str) -> Result {
    path_unlink(sb, path.as_bytes())
}

fn rmdir(sb: &Sb, path: &str) -> Result {
    path_rmdir(sb, path.as_bytes())
}

fn link(sb: &Sb, old: &str, new: &str) -> Result {
    path_link(sb, old.as_bytes(), new.as_bytes())
}

fn symlink(sb: &Sb, target: &str, path: &str) -> Result {
    path_symlink(sb, target.as_bytes(), path.as_bytes(), &CRED)
}

fn rename(sb: &Sb, old: &str, new: &str, flags: RenameFlags) -> Result {
    path_rename(sb, old.as_bytes(), new.as_bytes(), flags)
}

fn stat(sb: &Sb, path: &str) -> Result<Kstat> {
    path_stat(sb, path.as_bytes(), false)
}

fn iref(sb: &Sb, path: &str) -> IRef {
    path_lookupat(sb, path.as_bytes(), false).unwrap_or_else(|e| panic!("{path}: {e:?}"))
}

/// Names in a directory, without dots, in order.
fn names(sb: &Sb, path: &str) -> Vec<String> {
    let mut list: Vec<String> = entries(sb, path).into_iter().map(|(name, _)| name).collect();
    assert_eq!(list.iter().filter(|name| *name == "." || *name == "..").count(), 2, "{path}");
    list.retain(|name| name != "." && name != "..");
    list.sort();
    list
}

/// All entries with their types, in the order they come.
fn entries(sb: &Sb, path: &str) -> Vec<(String, u8)> {
    let list = path_readdir(sb, path.as_bytes()).unwrap_or_else(|e| panic!("reading {path}: {e:?}"));
    list.iter().map(|d| (String::from_utf8_lossy(&d.name).into_owned(), d.file_type)).collect()
}

/// A name of `len` bytes that tells its number.
fn long_name(n: u32, len: usize) -> String {
    format!("{:x<len$}", format!("{n:06}"))
}

#[test]
fn what_is_made_is_there_and_says_so() {
    for spec in [Mkfs::default(), small_blocks(), Mkfs { fs_type: "ext2", inode_size: 128, ..small_blocks() }] {
        let m = mount(&spec);
        mkdir(&m.sb, "/d").expect("mkdir");
        create(&m.sb, "/d/f").expect("create");
        symlink(&m.sb, "d/f", "/short").expect("symlink");
        let far = format!("{}d/f", "./".repeat(100));
        symlink(&m.sb, &far, "/d/../long").expect("symlink");
        path_mknod(&m.sb, b"/tty", 0o020_666, 5 << 8 | 1, &CRED).expect("mknod");
        path_mknod(&m.sb, b"/big", 0o060_600, 0x123 << 8 | 0x45 | 0x678 << 20, &CRED).expect("mknod");
        path_mknod(&m.sb, b"/pipe", 0o010_644, 9, &CRED).expect("mknod");
        path_mknod(&m.sb, b"/sock", 0o140_755, 0, &CRED).expect("mknod");
        link(&m.sb, "/d/f", "/g").expect("link");

        let m = remount(m);
        let f = stat(&m.sb, "/d/f").expect("stat");
        assert_eq!((f.mode, f.nlink, f.uid, f.gid, f.size), (0o100_644, 2, 7, 70_000, 0));
        assert_eq!(f.ino, stat(&m.sb, "/g").expect("stat").ino);
        if spec.inode_size > 128 {
            assert!(f.crtime.tv_sec > 1_700_000_000 && f.crtime <= f.ctime, "{f:?}");
        }
        for through in [&b"/short"[..], b"/long", b"/d/./../long"] {
            assert_eq!(path_stat(&m.sb, through, true).expect("stat").ino, f.ino);
        }
        assert_eq!(&path_readlink(&m.sb, b"/long").expect("readlink")[..], far.as_bytes());
        let d = stat(&m.sb, "/d").expect("stat");
        assert_eq!((d.mode, d.nlink, d.size), (0o040_755, 2, i64::from(spec.block_size)));
        assert_eq!(stat(&m.sb, "/").expect("stat").nlink, 4);
        let link = stat(&m.sb, "/short").expect("stat");
        assert_eq!((link.mode, link.size, link.blocks), (0o120_777, 3, 0));
        assert_eq!(stat(&m.sb, "/long").expect("stat").blocks, u64::from(spec.block_size) / 512);
        let device = |path| {
            let s = stat(&m.sb, path).expect("stat");
            (s.mode, s.rdev)
        };
        assert_eq!(device("/tty"), (0o020_644, 5 << 8 | 1));
        assert_eq!(device("/big"), (0o060_600, 0x123 << 8 | 0x45 | 0x678 << 20));
        assert_eq!(device("/pipe"), (0o010_644, 0));
        assert_eq!(device("/sock"), (0o140_755, 0));
        let listed: BTreeMap<String, u8> = entries(&m.sb, "/").into_iter().collect();
        let types = [".", "d", "g", "short", "tty", "big", "pipe", "sock"].map(|name| listed[name]);
        assert_eq!(types, [EXT4_FT_DIR, EXT4_FT_DIR, EXT4_FT_REG_FILE, 7, 3, 4, 5, 6]);
        m.finish();
    }
}

#[test]
fn linux_sees_the_same_names() {
    if !linux::available() {
        return;
    }
    let m = mount(&small_blocks());
    mkdir(&m.sb, "/many").expect("mkdir");
    for n in 0..700 {
        create(&m.sb, &format!("/many/{}", long_name(n, 40 + n as usize % 100))).expect("create");
    }
    for n in (0..700).step_by(3) {
        let name = long_name(n, 40 + n as usize % 100);
        rename(&m.sb, &format!("/many/{name}"), &format!("/many/renamed-{n}"), RenameFlags::empty()).expect("rename");
    }
    symlink(&m.sb, &"../".repeat(100), "/many/link").expect("symlink");
    let ours = names(&m.sb, "/many");
    let bytes = m.finish();
    let image = Image::from_bytes(&bytes);
    let mut linux = Linux::mount(&image.path(), "").expect("Linux mounts what we made");
    let dir = linux.root().join("many");
    let mut theirs: Vec<String> = std::fs::read_dir(&dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
        .collect();
    theirs.sort();
    assert_eq!(ours, theirs);
    // Each is found by its hash, too, and Linux goes on where we stopped.
    for name in &ours {
        assert!(std::fs::symlink_metadata(dir.join(name)).is_ok(), "{name}");
    }
    for (n, name) in ours.iter().take(300).enumerate() {
        std::fs::write(dir.join(format!("linux-{n}")), b"").expect("room");
        std::fs::remove_file(dir.join(name)).expect("it is there");
    }
    linux.unmount().expect("unmounting");
    image.assert_clean();
    let m = Mount::with(&image.bytes(), "", auto());
    assert_eq!(names(&m.sb, "/many").len(), ours.len());
    for name in names(&m.sb, "/many") {
        stat(&m.sb, &format!("/many/{name}")).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        unlink(&m.sb, &format!("/many/{name}")).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    rmdir(&m.sb, "/many").expect("it is empty");
    m.finish();
}
