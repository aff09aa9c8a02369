// SPDX-License-Identifier: GPL-2.0-only
//! Cases in which the caller is not root.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ext4_dio_tests::dio::Pages;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, StatxFlags, XattrFlags, chmodat, chownat, fallocate,
    ftruncate, linkat, listxattr, mkdirat, renameat_with, setxattr, statx, unlinkat,
};
use rustix::io::pwrite;
use rustix::process::{Gid, Uid};

use super::{Answer, Case, at, done, io, shown};

/// All of them.
pub(super) const CASES: &[Case] = &[
    ("permissions", permissions),
    ("set-user-ID falls", suid_falls),
    ("sticky directories", sticky),
    ("attributes, of others", xattrs),
];

/// Somebody.
const USER: u32 = 12_345;

/// Runs `f` as [`USER`], in a thread of its own: credentials are a thread's.
fn as_user<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_groups(&[]).expect("groups");
            let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("gid");
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("uid");
            f()
        });
        thread.join().expect("no panic")
    })
}

/// A file of this owner and mode, with some bytes.
fn make(path: &Path, uid: u32, mode: u32) {
    std::fs::write(path, [b'x'; 8192]).expect("writing");
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)));
    chownat(CWD, path, owner.0, owner.1, AtFlags::empty()).expect("chown");
    chmodat(CWD, path, Mode::from_bits_retain(mode), AtFlags::empty()).expect("chmod");
}

fn permissions(d: &Path) -> Vec<Answer> {
    make(&d.join("root"), 0, 0o600);
    make(&d.join("all"), 0, 0o666);
    make(&d.join("mine"), USER, 0o400);
    mkdirat(CWD, d.join("dir"), Mode::from_bits_truncate(0o700)).expect("mkdir");
    make(&d.join("dir/f"), 0, 0o666);
    mkdirat(CWD, d.join("open"), Mode::from_bits_truncate(0o755)).expect("mkdir");
    chmodat(CWD, d.join("open"), Mode::from_bits_retain(0o777), AtFlags::empty()).expect("chmod");
    chmodat(CWD, d, Mode::from_bits_retain(0o755), AtFlags::empty()).expect("chmod");
    let mode = Mode::from_bits_truncate(0o644);
    as_user(|| {
        vec![
            done(at(&d.join("root"), OFlags::RDONLY)),
            done(at(&d.join("all"), OFlags::RDWR)),
            done(at(&d.join("mine"), OFlags::RDONLY)),
            done(at(&d.join("mine"), OFlags::WRONLY)),
            done(at(&d.join("dir/f"), OFlags::RDONLY)),
            io(std::fs::read_dir(d.join("dir")).map(|_| ())),
            done(at(&d.join("new"), OFlags::RDWR | OFlags::CREATE)),
            done(mkdirat(CWD, d.join("new"), mode)),
            done(unlinkat(CWD, d.join("mine"), AtFlags::empty())),
            done(chmodat(CWD, d.join("all"), mode, AtFlags::empty())),
            done(chmodat(CWD, d.join("mine"), mode, AtFlags::empty())),
            done(chownat(CWD, d.join("mine"), Some(Uid::ROOT), None, AtFlags::empty())),
            done(at(&d.join("open/new"), OFlags::RDWR | OFlags::CREATE)),
            io(std::fs::metadata(d.join("open/new")).map(|m| (m.uid(), m.gid(), m.mode()))),
            done(renameat_with(CWD, d.join("all"), CWD, d.join("open/x"), RenameFlags::empty())),
            done(linkat(CWD, d.join("mine"), CWD, d.join("open/x"), AtFlags::empty())),
        ]
    })
}

fn suid_falls(d: &Path) -> Vec<Answer> {
    chmodat(CWD, d, Mode::from_bits_retain(0o755), AtFlags::empty()).expect("chmod");
    type Change = fn(&OwnedFd) -> Answer;
    let changes: [(&str, OFlags, Change); 7] = [
        ("buffered", OFlags::WRONLY, |fd| shown(pwrite(fd, b"y", 0))),
        ("direct", OFlags::WRONLY | OFlags::DIRECT, |fd| shown(pwrite(fd, Pages::new(4096, 1).bytes(), 0))),
        ("append", OFlags::WRONLY | OFlags::APPEND, |fd| shown(pwrite(fd, b"y", 0))),
        ("past", OFlags::WRONLY | OFlags::DIRECT, |fd| shown(pwrite(fd, Pages::new(4096, 1).bytes(), 8192))),
        ("truncate", OFlags::WRONLY, |fd| done(ftruncate(fd, 10))),
        ("open", OFlags::WRONLY | OFlags::TRUNC, |_| Ok(String::new())),
        ("fallocate", OFlags::WRONLY, |fd| done(fallocate(fd, FallocateFlags::empty(), 0, 20_000))),
    ];
    let mut out = Vec::new();
    for (name, flags, change) in changes {
        for mode in [0o6777, 0o2767, 0o4777] {
            let path = d.join(format!("{name}-{mode:o}"));
            make(&path, USER, mode);
            // Whoever asks for the mode alone is told of it without a look at anything else.
            let mode = || shown(statx(CWD, &path, AtFlags::empty(), StatxFlags::MODE).map(|s| s.stx_mode));
            out.push(mode());
            out.push(as_user(|| at(&path, flags).and_then(|fd| change(&fd))));
            out.push(mode());
            out.push(io(std::fs::metadata(&path).map(|m| format!("{:o} {}", m.mode(), m.len()))));
        }
    }
    out
}

fn sticky(d: &Path) -> Vec<Answer> {
    chmodat(CWD, d, Mode::from_bits_retain(0o1777), AtFlags::empty()).expect("chmod");
    make(&d.join("root"), 0, 0o666);
    make(&d.join("mine"), USER, 0o666);
    as_user(|| {
        vec![
            done(unlinkat(CWD, d.join("root"), AtFlags::empty())),
            done(renameat_with(CWD, d.join("root"), CWD, d.join("x"), RenameFlags::empty())),
            done(renameat_with(CWD, d.join("mine"), CWD, d.join("root"), RenameFlags::empty())),
            done(renameat_with(CWD, d.join("mine"), CWD, d.join("x"), RenameFlags::empty())),
            done(unlinkat(CWD, d.join("x"), AtFlags::empty())),
        ]
    })
}

fn xattrs(d: &Path) -> Vec<Answer> {
    chmodat(CWD, d, Mode::from_bits_retain(0o755), AtFlags::empty()).expect("chmod");
    let any = XattrFlags::empty();
    for (name, uid, mode) in [("mine", USER, 0o644), ("root", 0, 0o644), ("dark", 0, 0o600)] {
        let path = d.join(name);
        make(&path, uid, mode);
        setxattr(&path, "trusted.t", b"1", any).expect("setxattr");
        setxattr(&path, "user.u", b"1", any).expect("setxattr");
    }
    as_user(|| {
        let mut out = Vec::new();
        for name in ["mine", "root", "dark"] {
            let path = d.join(name);
            out.push(done(setxattr(&path, "user.u", b"2", any)));
            out.push(done(setxattr(&path, "trusted.t", b"2", any)));
            out.push(done(setxattr(&path, "security.s", b"2", any)));
            out.push(shown(rustix::fs::getxattr(&path, "user.u", &mut [0u8; 8])));
            out.push(shown(rustix::fs::getxattr(&path, "trusted.t", &mut [0u8; 8])));
            let mut list = [0u8; 100];
            out.push(shown(listxattr(&path, &mut list).map(|n| String::from_utf8_lossy(&list[..n]).into_owned())));
        }
        out
    })
}
