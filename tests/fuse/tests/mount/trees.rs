// SPDX-License-Identifier: GPL-2.0-only
//! Trees: what we write Linux reads, and what Linux writes we read.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use ext4_dio_tests::dio::Pages;
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::oplang::{Rng, pattern};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, fallocate,
    lgetxattr, llistxattr, lsetxattr, mknodat, utimensat,
};

use crate::support::{BLOCKS, Mount, available, left_out};

/// All that can be told of a name.
#[derive(Debug, PartialEq)]
struct Entry {
    ino: u64,
    mode: u32,
    nlink: u64,
    owner: (u32, u32),
    size: u64,
    rdev: u64,
    /// Access, change of contents, change of the inode.
    times: [(i64, i64); 3],
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file its bytes, of a link its target.
    contents: u64,
}

/// All names below `dir`, by their paths.
fn tree(dir: &Path) -> BTreeMap<String, Entry> {
    let mut out = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).expect("stat");
        let entry = entry(&path, &meta);
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("reading").map(|e| e.expect("an entry").path()));
        }
        out.insert(path.strip_prefix(dir).expect("below").to_string_lossy().into_owned(), entry);
    }
    out
}

fn entry(path: &Path, meta: &std::fs::Metadata) -> Entry {
    let mut hasher = DefaultHasher::new();
    if meta.is_file() {
        std::fs::read(path).expect("reading").hash(&mut hasher);
    } else if meta.is_symlink() {
        std::fs::read_link(path).expect("reading").hash(&mut hasher);
    }
    let mut names = vec![0; 65536];
    let n = llistxattr(path, &mut names).expect("listing");
    let xattrs = names[..n].split(|b| *b == 0).filter(|name| !name.is_empty()).map(|name| {
        let mut value = vec![0; 65536];
        let n = lgetxattr(path, name, &mut value).expect("it is listed");
        value.truncate(n);
        (name.to_vec(), value)
    });
    Entry {
        ino: meta.ino(),
        mode: meta.mode(),
        nlink: meta.nlink(),
        owner: (meta.uid(), meta.gid()),
        size: meta.len(),
        rdev: if meta.file_type().is_char_device() || meta.file_type().is_block_device() { meta.rdev() } else { 0 },
        times: [
            (meta.atime(), meta.atime_nsec()),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        ],
        xattrs: xattrs.collect(),
        contents: hasher.finish(),
    }
}

fn compare(what: &str, got: &BTreeMap<String, Entry>, want: &BTreeMap<String, Entry>) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}: names");
    for (name, want) in want {
        assert_eq!(got[name], *want, "{what}: {name}");
    }
}

/// Makes all sorts of things in `root`.
fn plant(root: &Path, seed: u64) {
    let mut rng = Rng(seed);
    let base = root.join(format!("tree{seed}"));
    std::fs::create_dir(&base).expect("mkdir");
    let any = XattrFlags::empty();
    for n in 0..12u32 {
        let dir = base.join(format!("d{n}"));
        std::fs::create_dir(&dir).expect("mkdir");
        for m in 0..8u32 {
            let path = dir.join(format!("f{m}-{}", "y".repeat(rng.below(100) as usize)));
            std::fs::write(&path, pattern(n * 100 + m, 0, rng.below(40_000) as usize)).expect("writing");
            let (uid, gid) = (rng.below(1 << 31) as u32, rng.below(70_000) as u32);
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("chown");
            let mode = Mode::from_bits_retain(rng.below(0o10000) as u32);
            chmodat(CWD, &path, mode, AtFlags::empty()).expect("chmod");
            for x in 0..rng.below(3) {
                let value = pattern(n, 0, rng.below(if x == 0 { 40 } else { 300 }) as usize);
                lsetxattr(&path, format!("user.{x}"), &value, any).expect("setxattr");
            }
            let time = |rng: &mut Rng| Timespec {
                tv_sec: rng.below(1 << 33) as i64,
                tv_nsec: rng.below(1_000_000_000) as i64,
            };
            let times = Timestamps { last_access: time(&mut rng), last_modification: time(&mut rng) };
            utimensat(CWD, &path, &times, AtFlags::empty()).expect("utimens");
        }
    }
    special(&base);
    files(&base, &mut rng);
    // A directory of several blocks, some of whose names are gone.
    let many = base.join("many");
    std::fs::create_dir(&many).expect("mkdir");
    for n in 0..600 {
        File::create(many.join(format!("{n}-{}", "z".repeat(n % 40)))).expect("a file");
    }
    for n in (0..600).step_by(3) {
        std::fs::remove_file(many.join(format!("{n}-{}", "z".repeat(n % 40)))).expect("it is there");
    }
    std::fs::rename(base.join("d0"), base.join("d1/moved")).expect("rename");
}

fn special(base: &Path) {
    let mode = Mode::from_bits_truncate(0o604);
    let dev = rustix::fs::makedev(259, 300_000);
    for (name, kind) in
        [("c", FileType::CharacterDevice), ("b", FileType::BlockDevice), ("p", FileType::Fifo), ("s", FileType::Socket)]
    {
        mknodat(CWD, base.join(name), kind, mode, dev).expect("mknod");
    }
    std::os::unix::fs::symlink("short", base.join("l1")).expect("symlink");
    std::os::unix::fs::symlink("long/".repeat(60), base.join("l2")).expect("symlink");
    std::fs::hard_link(base.join("l1"), base.join("l3")).expect("link");
    lsetxattr(base.join("l2"), "trusted.link", b"of a link", XattrFlags::empty()).expect("setxattr");
}

/// Files with holes, allocated blocks, tails, and several names.
fn files(base: &Path, rng: &mut Rng) {
    let file = File::create(base.join("sparse")).expect("a file");
    for n in 0..40 {
        let at = rng.below(1 << 24);
        file.write_all_at(&pattern(n, at, rng.below(9000) as usize), at).expect("writing");
    }
    let open = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT;
    let direct = File::from(rustix::fs::openat(CWD, base.join("direct"), open, Mode::RWXU).expect("open"));
    fallocate(&direct, FallocateFlags::empty(), 0, 1 << 20).expect("fallocate");
    fallocate(&direct, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).expect("fallocate");
    for n in 0..20u32 {
        let at = rng.below(256) * 4096;
        direct.write_all_at(Pages::of(&pattern(n, at, 4096)).bytes(), at).expect("writing");
    }
    fallocate(&direct, FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE, 100_000, 50_000).expect("punching");
    std::fs::hard_link(base.join("direct"), base.join("again")).expect("link");
    let tail = File::create(base.join("tail")).expect("a file");
    tail.write_all_at(&pattern(1, 0, 5000), 0).expect("writing");
    tail.set_len(3333).expect("truncating");
    tail.set_len(9999).expect("truncating");
}

#[test]
fn linux_sees_the_same_tree() {
    if !available() {
        return;
    }
    if !linux::available() {
        left_out("Linux mounts what we have written");
        return;
    }
    for block_size in BLOCKS {
        let mut mount = Mount::new(block_size, "noatime");
        plant(mount.root(), 1);
        let ours = tree(mount.root());
        mount.umount();
        let mut linux = Linux::mount(mount.image(), "noatime").expect("Linux mounts it");
        compare("Linux sees", &tree(linux.root()), &ours);
        plant(linux.root(), 2);
        std::fs::remove_dir_all(linux.root().join("tree1/d5")).expect("removing");
        let theirs = tree(linux.root());
        linux.unmount().expect("unmounting");
        mount.mount();
        compare("we see", &tree(mount.root()), &theirs);
        std::fs::remove_dir_all(mount.path("tree2")).expect("removing");
        mount.remount();
        assert!(!mount.path("tree2").exists() && mount.path("tree1").exists());
        mount.umount();
    }
}
