// SPDX-License-Identifier: GPL-2.0-only
//! What inodes have besides data.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
    chmodat, chownat, ftruncate, getxattr, ioctl_getflags, ioctl_setflags, lgetxattr, linkat, listxattr, lsetxattr,
    mknodat, removexattr, renameat_with, setxattr, statvfs, symlinkat, unlinkat, utimensat,
};
use rustix::process::{Gid, Uid};

use super::{Answer, Case, at, done, file, io, mkdir, shown};

/// All cases.
pub(super) const CASES: &[Case] = &[
    ("attributes, values", xattr_values),
    ("attributes, errors", xattr_errors),
    ("attributes of what is no file", xattr_others),
    ("modes and owners", owners),
    ("times", times),
    ("flags of inodes", flags),
    ("statfs", statfs),
];

fn xattr_values(d: &Path) -> Vec<Answer> {
    let path = d.join("f");
    drop(file(&path));
    let set = |name: &str, len: usize, how| done(setxattr(&path, name, &vec![b'v'; len], how));
    let get = |name: &str, room: usize| shown(getxattr(&path, name, &mut vec![0; room]));
    let list = |room: usize| {
        let mut buf = vec![0; room];
        listxattr(&path, &mut buf).map(|n| {
            let mut names: Vec<_> =
                buf[..n].split(|b| *b == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect();
            names.sort();
            format!("{names:?}")
        })
    };
    let (any, new, old) = (XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE);
    vec![
        list(100),
        set("user.a", 10, any),
        set("user.a", 20, new),
        set("user.b", 20, old),
        set("user.a", 0, old),
        get("user.a", 100),
        set("user.a", 100, any),
        get("user.a", 0),
        get("user.a", 99),
        get("user.a", 100),
        set("trusted.t", 5, any),
        set("security.s", 5, any),
        list(0),
        list(3),
        list(200),
        done(removexattr(&path, "user.a")),
        done(removexattr(&path, "user.a")),
        get("user.a", 100),
        list(200),
        set("user.large", 500, any),
        get("user.large", 0),
    ]
}

fn xattr_errors(d: &Path) -> Vec<Answer> {
    let path = d.join("f");
    drop(file(&path));
    let set = |name: &str, len: usize| done(setxattr(&path, name, &vec![b'v'; len], XattrFlags::empty()));
    let both = XattrFlags::CREATE | XattrFlags::REPLACE;
    vec![
        set("nothing", 1),
        set("other.a", 1),
        set("user.", 1),
        set("user", 1),
        set(".", 1),
        set("", 1),
        set(&format!("user.{}", "n".repeat(250)), 1),
        set(&format!("user.{}", "n".repeat(251)), 1),
        set("user.big", 65536),
        set("user.big", 65537),
        set("user.big", 5000),
        done(setxattr(&path, "user.x", b"1", both)),
        shown(getxattr(&path, "nothing", &mut [0u8; 10])),
        shown(getxattr(&path, "user.none", &mut [0u8; 10])),
        done(removexattr(&path, "user.none")),
        done(removexattr(&path, "nothing")),
        shown(getxattr(d.join("none"), "user.a", &mut [0u8; 10])),
    ]
}

fn xattr_others(d: &Path) -> Vec<Answer> {
    symlinkat("to", CWD, d.join("l")).expect("symlink");
    mknodat(CWD, d.join("p"), FileType::Fifo, Mode::from_bits_truncate(0o644), 0).expect("mkfifo");
    let any = XattrFlags::empty();
    vec![
        done(lsetxattr(d.join("l"), "user.a", b"1", any)),
        done(lsetxattr(d.join("l"), "trusted.a", b"1", any)),
        shown(lgetxattr(d.join("l"), "trusted.a", &mut [0u8; 10])),
        done(setxattr(d.join("p"), "user.a", b"1", any)),
        done(setxattr(d.join("p"), "trusted.a", b"1", any)),
        done(setxattr(d, "user.a", b"1", any)),
        shown(getxattr(d, "user.a", &mut [0u8; 10])),
    ]
}

fn owners(d: &Path) -> Vec<Answer> {
    let path = d.join("f");
    drop(file(&path));
    let chmod = |mode: u32| done(chmodat(CWD, &path, Mode::from_bits_retain(mode), AtFlags::empty()));
    let chown = |uid: Option<u32>, gid: Option<u32>| {
        done(chownat(CWD, &path, uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::empty()))
    };
    let stat = || io(std::fs::metadata(&path).map(|m| format!("{:o} {} {}", m.mode(), m.uid(), m.gid())));
    vec![
        chmod(0o6755),
        stat(),
        chown(Some(70_000), None),
        stat(),
        chmod(0o2644),
        chown(None, Some(100_000)),
        stat(),
        chown(None, None),
        chmod(0o7777),
        stat(),
        io(std::fs::write(&path, b"root's writes leave the bits")),
        stat(),
        done(chmodat(CWD, d.join("none"), Mode::RUSR, AtFlags::empty())),
        done(mkdir(&d.join("s"))),
        done(chmodat(CWD, d.join("s"), Mode::from_bits_retain(0o2777), AtFlags::empty())),
        done(chownat(CWD, d.join("s"), None, Some(Gid::from_raw(77)), AtFlags::empty())),
        done(mkdir(&d.join("s/t"))),
        io(std::fs::metadata(d.join("s/t")).map(|m| format!("{:o} {}", m.mode(), m.gid()))),
        done(at(&d.join("s/f"), OFlags::RDWR | OFlags::CREATE)),
        io(std::fs::metadata(d.join("s/f")).map(|m| format!("{:o} {}", m.mode(), m.gid()))),
    ]
}

fn times(d: &Path) -> Vec<Answer> {
    let path = d.join("f");
    drop(file(&path));
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let set = |a, m| {
        let times = Timestamps { last_access: a, last_modification: m };
        done(utimensat(CWD, &path, &times, AtFlags::empty()))
    };
    let stat = || io(std::fs::metadata(&path).map(|m| (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec())));
    let omit = time(0, UTIME_OMIT as _);
    let mut out = vec![
        set(time(1, 2), time(3, 999_999_999)),
        stat(),
        set(omit, time(1 << 33, 5)),
        stat(),
        set(time(-5, 7), omit),
        stat(),
        set(time(0, 1_000_000_000), omit),
        set(time(1 << 40, 0), time(-(1 << 40), 0)),
        stat(),
        set(omit, omit),
        stat(),
        set(time(0, UTIME_NOW as _), omit),
    ];
    let before = std::fs::metadata(&path).expect("stat");
    std::fs::write(&path, b"x").expect("writing");
    let after = std::fs::metadata(&path).expect("stat");
    out.push(Ok(format!("{}", after.mtime() > before.mtime() && after.ctime() >= before.ctime())));
    out.push(Ok(format!("{}", after.atime() > 1_500_000_000)));
    out
}

fn flags(d: &Path) -> Vec<Answer> {
    let path = d.join("f");
    let fd = file(&path);
    // As chattr does it: that blocks are mapped by extents stays. What else is set is set anew.
    let set = |flags| {
        done(ioctl_getflags(&fd).and_then(|old| ioctl_setflags(&fd, flags | (old & IFlags::from_bits_retain(0x80000)))))
    };
    let get = || shown(ioctl_getflags(&fd));
    let mut out = vec![get(), set(IFlags::NODUMP | IFlags::NOATIME), get(), set(IFlags::IMMUTABLE), get()];
    out.extend([
        done(at(&path, OFlags::RDWR)),
        done(unlinkat(CWD, &path, AtFlags::empty())),
        done(linkat(CWD, &path, CWD, d.join("g"), AtFlags::empty())),
        done(renameat_with(CWD, &path, CWD, d.join("g"), RenameFlags::empty())),
        done(chmodat(CWD, &path, Mode::RUSR, AtFlags::empty())),
        done(setxattr(&path, "user.a", b"1", XattrFlags::empty())),
        done(ftruncate(&fd, 100)),
        set(IFlags::APPEND),
        done(at(&path, OFlags::RDWR)),
        done(at(&path, OFlags::RDWR | OFlags::APPEND)),
        done(at(&path, OFlags::RDWR | OFlags::APPEND | OFlags::TRUNC)),
        done(unlinkat(CWD, &path, AtFlags::empty())),
        set(IFlags::empty()),
        get(),
        shown(ioctl_getflags(at(d, OFlags::RDONLY).expect("open"))),
    ]);
    out
}

fn statfs(d: &Path) -> Vec<Answer> {
    let of = |path: &Path| shown(statvfs(path).map(|s| (s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax)));
    drop(file(&d.join("f")));
    vec![of(d), of(&d.join("f")), of(&d.join("none"))]
}
