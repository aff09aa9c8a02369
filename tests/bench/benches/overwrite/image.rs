// SPDX-License-Identifier: GPL-2.0-only
//! The file system that is written to: made by `mke2fs`, as for the tests, with one file in it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Name of the file that is overwritten.
pub(crate) const FILE: &str = "/data";
/// Bytes of a block, of the file system and of each write.
pub(crate) const BLOCK: usize = 4096;

/// A directory in memory, if there is one.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory for the image")
}

/// Makes, at `path`, an ext4 with [`FILE`] of `mib` MiB, all of it written.
pub(crate) fn make(path: &Path, mib: u64) {
    let source = scratch();
    // mke2fs leaves blocks of zeros out.
    let bytes = vec![0x5a; (mib << 20) as usize];
    fs::write(source.path().join(FILE.trim_start_matches('/')), bytes).expect("room for the file");
    let dirs = std::env::var("PATH").unwrap_or_default();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", format!("{dirs}:/usr/local/sbin:/usr/sbin:/sbin")).stdin(Stdio::null());
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0", "-d"]);
    mke2fs.arg(source.path()).arg(path).arg(format!("{}M", mib + 16));
    let output = mke2fs.output().unwrap_or_else(|e| panic!("{mke2fs:?}: {e} (is e2fsprogs installed?)"));
    assert!(output.status.success(), "{mke2fs:?}: {}", String::from_utf8_lossy(&output.stderr));
}
