// SPDX-License-Identifier: GPL-2.0-only
//! What system calls answer: each case is run on our mount, and on Linux's ext4 on an image that the same mke2fs made, and the answers are
//! compared. What FUSE itself answers otherwise stands in [`DIFFERENT`].

mod attrs;
mod data;
mod names;
mod users;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use ext4_dio_tests::images::Image;
use ext4_dio_tests::linux::{self, Linux};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::support::{Mount, available, disk, left_out};

/// What a call answers, in words.
pub(crate) type Answer = Result<String, Errno>;

/// A name, and what is done in a directory of its own.
pub(crate) type Case = (&'static str, fn(&Path) -> Vec<Answer>);

/// Where the kernel's side of FUSE answers by itself, before it asks anybody: case, number of the answer, and that answer.
const DIFFERENT: [(&str, usize, Errno); 3] = [
    // It knows three modes of fallocate.
    ("fallocate, every mode", 4, Errno::OPNOTSUPP),
    ("fallocate, every mode", 5, Errno::OPNOTSUPP),
    ("rename, flags", 7, Errno::INVAL),
];

/// The errno, or "done".
fn done<T>(result: Result<T, Errno>) -> Answer {
    result.map(|_| "done".to_string())
}

/// The errno, or what the value looks like.
fn shown<T: std::fmt::Debug>(result: Result<T, Errno>) -> Answer {
    result.map(|value| format!("{value:?}"))
}

fn io<T: std::fmt::Debug>(result: std::io::Result<T>) -> Answer {
    shown(result.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)))
}

fn at(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(CWD, path, flags | OFlags::CLOEXEC, Mode::from_bits_truncate(0o644))
}

fn file(path: &Path) -> OwnedFd {
    at(path, OFlags::RDWR | OFlags::CREATE).expect("a new file")
}

fn mkdir(path: &Path) -> Result<(), Errno> {
    mkdirat(CWD, path, Mode::from_bits_truncate(0o755))
}

/// The answers of all cases.
fn ask(root: &Path) -> BTreeMap<&'static str, Vec<Answer>> {
    let mut out = BTreeMap::new();
    for (n, (name, case)) in names::CASES.iter().chain(data::CASES).chain(attrs::CASES).chain(users::CASES).enumerate()
    {
        let dir = root.join(n.to_string());
        std::fs::create_dir(&dir).expect("a directory");
        let before = out.insert(*name, case(&dir));
        assert!(before.is_none(), "{name} is there twice");
    }
    out
}

#[test]
fn answers_are_linux_s() {
    if !available() {
        return;
    }
    if !linux::available() {
        left_out("answers beside Linux's");
        return;
    }
    for block_size in [1024, 4096] {
        let image = Image::make(&disk(block_size), None);
        let mut linux = Linux::mount(&image.path(), "").expect("Linux mounts it");
        let want = ask(linux.root());
        linux.unmount().expect("unmounting");
        let mut mount = Mount::new(block_size, "allow_other");
        let got = ask(mount.root());
        mount.umount();
        let mut wrong = String::new();
        for (name, want) in &want {
            let got = &got[name];
            assert_eq!(got.len(), want.len(), "{name}: so many answers");
            for (n, (got, want)) in got.iter().zip(want).enumerate() {
                let other = DIFFERENT.iter().find(|(case, at, _)| case == name && *at == n).map(|(_, _, errno)| *errno);
                let want = other.map_or_else(|| want.clone(), Err);
                if *got != want {
                    wrong += &format!("{name}, answer {n}: {got:?}, should be {want:?}\n");
                }
            }
        }
        assert!(wrong.is_empty(), "blocks of {block_size}:\n{wrong}");
    }
}
