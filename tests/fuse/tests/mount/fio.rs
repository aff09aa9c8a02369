// SPDX-License-Identifier: GPL-2.0-only
//! fio writes, verifies, and verifies again after another mount.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use ext4_dio_runner::deps;

use crate::support::{BLOCKS, Mount, available};

const FIO: [deps::Tool; 1] = [deps::Tool { program: "fio", package: "fio" }];

/// Runs fio with a job file. Panics with what it says unless all went well.
fn fio(dir: &Path, job: &str) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| deps::ensure(&FIO, &mut deps::Host).unwrap_or_else(|error| panic!("{error:#}")));
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("job.fio");
    std::fs::write(&file, job).expect("room for a job file");
    let mut command = Command::new("fio");
    // Its states and indexes go where it runs.
    command.arg("--directory").arg(dir).arg(&file).current_dir(scratch.path()).stdin(Stdio::null());
    let output = command.output().expect("fio");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{job}\n{text}", output.status);
}

/// A job file: all ways of writing at the same time, each to its part of one file. `more` goes into the global section.
fn job(bs: u32, more: &str) -> String {
    let mut out = format!(
        "[global]\nfilename=data\nbs={bs}\nverify=crc32c\nverify_fatal=1\nrandrepeat=1\nthread\n{more}\n\
         [psync]\nioengine=psync\ndirect=1\nrw=randwrite\nnumjobs=8\noffset_increment={0}\nsize={0}\n",
        128 * bs
    );
    let parts = [
        ("libaio", "ioengine=libaio\niodepth=32\ndirect=1\nrw=randwrite"),
        ("io_uring", "ioengine=io_uring\niodepth=32\ndirect=1\nrw=randwrite"),
        ("buffered", "ioengine=psync\ndirect=0\nrw=randwrite"),
    ];
    for (n, (name, lines)) in parts.iter().enumerate() {
        let size = 1024 * bs;
        writeln!(out, "[{name}]\n{lines}\noffset={}\nsize={size}", (n as u32 + 1) * size).expect("memory");
    }
    out
}

/// Into holes, into allocated blocks, and over what is there; direct beside buffered on one file.
#[test]
fn all_engines_at_once_on_one_file() {
    if !available() {
        return;
    }
    for bs in BLOCKS {
        let mut mount = Mount::new(bs, "");
        for (name, more) in
            [("holes", "fallocate=none"), ("over", "fallocate=none\nrandseed=2"), ("new", "fallocate=native")]
        {
            if name == "new" {
                std::fs::remove_file(mount.path("data")).expect("it is there");
            }
            fio(mount.root(), &job(bs, more));
            mount.remount();
            fio(mount.root(), &job(bs, &format!("{more}\nverify_only")));
        }
        mount.umount();
    }
}

/// Where blocks are larger than what is written, writers to one block exclude each other.
#[test]
fn parts_of_blocks() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    fio(mount.root(), &job(512, "fallocate=none"));
    mount.remount();
    fio(mount.root(), &job(512, "fallocate=none\nverify_only"));
    mount.umount();
}
