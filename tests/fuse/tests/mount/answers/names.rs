// SPDX-License-Identifier: GPL-2.0-only
//! Names and directories.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, linkat, mknodat, readlinkat, renameat_with, statat,
    symlinkat, unlinkat,
};

use super::{Answer, Case, at, done, file, io, mkdir, shown};

/// All cases.
pub(super) const CASES: &[Case] = &[
    ("open", open),
    ("make and remove directories", directories),
    ("link and unlink", links),
    ("symbolic links", symlinks),
    ("rename", rename),
    ("rename, flags", rename_flags),
    ("special files", special),
    ("readdir", readdir),
    ("names", names),
];

fn open(d: &Path) -> Vec<Answer> {
    drop(file(&d.join("f")));
    symlinkat("loop", CWD, d.join("loop")).expect("symlink");
    symlinkat("f", CWD, d.join("l")).expect("symlink");
    let long = d.join("n".repeat(256));
    [
        ("none", OFlags::RDONLY),
        ("none/f", OFlags::RDWR | OFlags::CREATE),
        ("f", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
        ("l", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
        ("l", OFlags::RDWR | OFlags::NOFOLLOW),
        ("f/x", OFlags::RDONLY),
        ("loop", OFlags::RDONLY),
        ("f", OFlags::RDONLY | OFlags::DIRECTORY),
        (".", OFlags::RDWR),
        (".", OFlags::RDONLY | OFlags::CREATE),
        (".", OFlags::RDONLY | OFlags::DIRECT),
        (".", OFlags::RDONLY | OFlags::TRUNC),
        ("f", OFlags::RDWR | OFlags::TRUNC | OFlags::DIRECT),
        ("f", OFlags::RDWR | OFlags::APPEND | OFlags::SYNC),
        ("f", OFlags::PATH),
        ("new", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::DIRECT),
    ]
    .into_iter()
    .map(|(name, flags)| done(at(&d.join(name), flags)))
    .chain([done(at(&long, OFlags::RDWR | OFlags::CREATE)), done(at(&long, OFlags::RDONLY))])
    .collect()
}

fn directories(d: &Path) -> Vec<Answer> {
    drop(file(&d.join("f")));
    let rmdir = |name: &str| done(unlinkat(CWD, d.join(name), AtFlags::REMOVEDIR));
    vec![
        done(mkdir(&d.join("a"))),
        done(mkdir(&d.join("a"))),
        done(mkdir(&d.join("a/b"))),
        done(mkdir(&d.join("x/y"))),
        done(mkdir(&d.join("f/y"))),
        done(mkdir(&d.join("f"))),
        done(mkdir(&d.join("m".repeat(256)))),
        io(std::fs::metadata(d.join("a")).map(|m| (m.nlink(), m.mode(), m.is_dir()))),
        rmdir("a"),
        rmdir("f"),
        rmdir("none"),
        rmdir("a/."),
        rmdir("a/b/.."),
        rmdir("a/b"),
        rmdir("a"),
        done(unlinkat(CWD, d, AtFlags::empty())),
        io(std::fs::metadata(d).map(|m| m.nlink())),
    ]
}

fn links(d: &Path) -> Vec<Answer> {
    drop(file(&d.join("f")));
    mkdir(&d.join("dir")).expect("mkdir");
    symlinkat("f", CWD, d.join("l")).expect("symlink");
    let link = |from: &str, to: &str| done(linkat(CWD, d.join(from), CWD, d.join(to), AtFlags::empty()));
    let unlink = |name: &str| done(unlinkat(CWD, d.join(name), AtFlags::empty()));
    vec![
        link("f", "f2"),
        link("f", "f2"),
        link("none", "f3"),
        link("dir", "dir2"),
        link("l", "l2"),
        link("f", "dir/x/y"),
        link("f", "f/y"),
        io(std::fs::metadata(d.join("f")).map(|m| m.nlink())),
        io(std::fs::symlink_metadata(d.join("l2")).map(|m| m.nlink())),
        unlink("f"),
        unlink("f"),
        unlink("dir"),
        unlink("f2/x"),
        io(std::fs::metadata(d.join("f2")).map(|m| m.nlink())),
        unlink("f2"),
        unlink("l"),
        io(std::fs::read_link(d.join("l2"))),
    ]
}

fn symlinks(d: &Path) -> Vec<Answer> {
    drop(file(&d.join("f")));
    let link = |target: &str, name: &str| done(symlinkat(target, CWD, d.join(name)));
    let read = |name: &str| shown(readlinkat(CWD, d.join(name), Vec::new()).map(|t| t.to_bytes().len()));
    let size = |name: &str| io(std::fs::symlink_metadata(d.join(name)).map(|m| (m.len(), m.mode())));
    vec![
        link("", "empty"),
        link("to", "f"),
        link(&"a".repeat(59), "l59"),
        link(&"a".repeat(60), "l60"),
        link(&"a".repeat(1000), "l1000"),
        // Linux has room for a block with a NUL.
        link(&"a".repeat(1023), "l1023"),
        link(&"a".repeat(1024), "l1024"),
        link(&"a".repeat(4095), "l4095"),
        link("to", "none/l"),
        read("l59"),
        read("l60"),
        read("l1000"),
        read("f"),
        read("."),
        read("none"),
        size("l59"),
        size("l1000"),
        done(at(&d.join("l59/x"), OFlags::RDONLY)),
    ]
}

fn rename(d: &Path) -> Vec<Answer> {
    for name in ["f", "g"] {
        drop(file(&d.join(name)));
    }
    for name in ["a", "b", "b/c", "e"] {
        mkdir(&d.join(name)).expect("mkdir");
    }
    linkat(CWD, d.join("f"), CWD, d.join("f2"), AtFlags::empty()).expect("link");
    let mv = |from: &str, to: &str| done(renameat_with(CWD, d.join(from), CWD, d.join(to), RenameFlags::empty()));
    let there = |name: &str| io(std::fs::symlink_metadata(d.join(name)).map(|m| (m.nlink(), m.is_dir())));
    vec![
        mv("f", "a"),
        mv("a", "f"),
        mv("a", "b"),
        mv("b", "b/c/d"),
        mv("b/c", "b"),
        mv("none", "x"),
        mv("f", "none/x"),
        mv("f", "f/x"),
        mv("f", "f2"),
        there("f"),
        mv("f", "g"),
        there("f"),
        there("g"),
        mv("a", "e"),
        there("a"),
        mv("b/c", "e/c"),
        there("b"),
        there("e"),
        mv("e/.", "x"),
        mv("e/c/..", "x"),
        mv("g", &"n".repeat(256)),
        mv("g", "e/c/g"),
        there("e/c/g"),
    ]
}

fn rename_flags(d: &Path) -> Vec<Answer> {
    for name in ["f", "g", "h"] {
        drop(file(&d.join(name)));
    }
    mkdir(&d.join("a")).expect("mkdir");
    mkdir(&d.join("a/b")).expect("mkdir");
    let mv = |from: &str, to: &str, how| done(renameat_with(CWD, d.join(from), CWD, d.join(to), how));
    let (no, swap) = (RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
    vec![
        mv("f", "g", no),
        mv("f", "new", no),
        mv("new", "none", swap),
        mv("new", "a", swap),
        io(std::fs::metadata(d.join("a")).map(|m| m.is_dir())),
        io(std::fs::metadata(d.join("new/b")).map(|m| m.is_dir())),
        mv("new", "new/b", swap),
        mv("g", "moved", RenameFlags::WHITEOUT),
        mv("g", "h", no | swap),
        mv("g", "h", RenameFlags::from_bits_retain(8)),
        io(std::fs::metadata(d).map(|m| m.nlink())),
    ]
}

fn special(d: &Path) -> Vec<Answer> {
    let mode = Mode::from_bits_truncate(0o640);
    let dev = rustix::fs::makedev(300, 70_000);
    let make = |name: &str, kind, dev| done(mknodat(CWD, d.join(name), kind, mode, dev));
    let stat =
        |name: &str| io(std::fs::metadata(d.join(name)).map(|m| format!("{:o} {:x} {}", m.mode(), m.rdev(), m.len())));
    vec![
        make("c", FileType::CharacterDevice, dev),
        make("b", FileType::BlockDevice, rustix::fs::makedev(8, 1)),
        make("p", FileType::Fifo, 0),
        make("s", FileType::Socket, 0),
        make("r", FileType::RegularFile, 0),
        make("r", FileType::RegularFile, 0),
        make("x/r", FileType::RegularFile, 0),
        stat("c"),
        stat("b"),
        stat("p"),
        stat("s"),
        stat("r"),
        done(at(&d.join("s"), OFlags::RDONLY)),
        done(at(&d.join("c"), OFlags::RDONLY)),
        done(at(&d.join("p"), OFlags::WRONLY | OFlags::NONBLOCK)),
    ]
}

fn readdir(d: &Path) -> Vec<Answer> {
    for n in 0..300 {
        drop(file(&d.join(format!("{n}{}", "-".repeat(n % 100)))));
    }
    mkdir(&d.join("dir")).expect("mkdir");
    symlinkat("x", CWD, d.join("link")).expect("symlink");
    let mut entries: Vec<String> = Dir::new(at(d, OFlags::RDONLY).expect("open"))
        .expect("reading")
        .map(|e| e.expect("an entry"))
        .map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            let stat = statat(CWD, d.join(&name), AtFlags::SYMLINK_NOFOLLOW).expect("stat");
            format!("{name} {:?} {}", e.file_type(), e.ino() == stat.st_ino)
        })
        .collect();
    entries.sort();
    entries.into_iter().map(Ok).collect()
}

fn names(d: &Path) -> Vec<Answer> {
    let make = |name: &str| done(at(&d.join(name), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL));
    vec![
        make(&"x".repeat(255)),
        make(&"x".repeat(256)),
        make("with blanks\nand \x01 more"),
        make("ünïcödé"),
        make("Case"),
        make("case"),
        make(&"é".repeat(127)),
        make(&"é".repeat(128)),
        io(std::fs::read_dir(d).map(Iterator::count)),
    ]
}
