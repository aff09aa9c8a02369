// SPDX-License-Identifier: GPL-2.0-only
//! What is done with a crash image: `e2fsck`, a mount of ours, one by Linux, and the look at what is there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ext4_dio_tests::clean::changed;
use ext4_dio_tests::crash_disk::CrashDisk;
use ext4_dio_tests::images::e2fsprogs;
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::oplang::*;
use ext4_dio_tests::ours::Ours;
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::Bdev;
use kernel_shim::block::ramdisk::Recording;
use tempfile::TempDir;

use crate::unit::Run;

/// What was done so far.
#[derive(Default)]
pub(crate) struct Counts {
    /// Runs.
    pub(crate) runs: AtomicUsize,
    /// Moments of them.
    pub(crate) points: AtomicUsize,
    /// Images, each counted once.
    pub(crate) images: AtomicUsize,
    /// Images of a crash in recovery.
    pub(crate) second: AtomicUsize,
    /// Of these, those that e2fsck has not recovered.
    pub(crate) without: AtomicUsize,
    /// Images with half a commit block, which only we take as they are.
    pub(crate) torn: AtomicUsize,
    /// Runs of `e2fsck`.
    pub(crate) fsck: AtomicUsize,
    /// Mounts by Linux.
    pub(crate) linux: AtomicUsize,
}

fn count(what: &AtomicUsize) {
    what.fetch_add(1, Ordering::Relaxed);
}

/// A place for an image in a file, used again and again: `e2fsck` reads files.
pub(crate) struct Scratch {
    _dir: TempDir,
    path: PathBuf,
    file: File,
}

impl Scratch {
    /// In memory if the machine has a place for that.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory for images");
        let path = dir.path().join("crash.img");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file for images");
        Self { _dir: dir, path, file }
    }

    fn put(&self, bytes: &[u8]) {
        self.file
            .set_len(bytes.len() as u64)
            .and_then(|()| self.file.write_all_at(bytes, 0))
            .expect("room for an image");
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).expect("the image is readable")
    }
}

/// What more is to be done with an image than with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    /// `e2fsck -fy` on the image as it is, `-fn`, and then a look at what it has left.
    pub(crate) theirs: bool,
    /// `e2fsck -fy` and `-fn` without the look.
    pub(crate) fsck: bool,
    /// A mount by Linux.
    pub(crate) linux: bool,
    /// There may be half a commit block on it.
    pub(crate) torn: bool,
    /// The recovered file system is written to before it is unmounted.
    pub(crate) used: bool,
}

fn e2fsck(path: &Path, how: &str, counts: &Counts) -> Result<(i32, String), String> {
    count(&counts.fsck);
    let mut command = e2fsprogs("e2fsck");
    // Linux's clock does not stand still: what it has mounted comes from the future if that of `e2fsck` does.
    if how == "-fn" {
        command.env_remove("E2FSPROGS_FAKE_TIME");
    }
    command.arg(how).arg(path);
    let output = command.output().map_err(|e| format!("e2fsck: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.code().map(|code| (code, text)).ok_or_else(|| format!("e2fsck: {}", output.status))
}

fn clean(path: &Path, whose: &str, counts: &Counts) -> Result<(), String> {
    match e2fsck(path, "-fn", counts)? {
        (0, _) => Ok(()),
        (code, text) => Err(format!("{whose}, then e2fsck -fn: {code}\n{text}")),
    }
}

/// [`clean`] of `bytes`, unless it has said so of the same. `there`: they are in the file already.
fn clean_once(
    run: &Run,
    bytes: &[u8],
    there: bool,
    whose: &str,
    scratch: &Scratch,
    counts: &Counts,
) -> Result<(), String> {
    run.clean.once(&run.base, &changed(&run.base, bytes), || {
        if !there {
            scratch.put(bytes);
        }
        clean(&scratch.path, whose, counts)
    })
}

/// Problems of which the journal knows nothing, in Linux either: sums in the super block, which every mount counts anew, and the flag
/// that says where to look for orphans.
const NOT_LOGGED: [&str; 4] = [
    "Free blocks count wrong (",
    "Free inodes count wrong (",
    "Feature orphan_present is set but orphan file is clean",
    // e2fsck has just finished with the orphans in it, and now wonders that they are there.
    "Orphan file (inode ",
];

/// What `e2fsck -fy` has asked about, and answered itself, that a journal should have kept whole.
fn repairs(text: &str) -> Vec<&str> {
    let mut problem = "";
    let mut out = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if line.ends_with("? yes") {
            let what = if line.len() < 20 { problem } else { line };
            // A tree that could be smaller, as it may be where e2fsck has just cut off what was past the end, is as good.
            let whole = line.ends_with("Optimize? yes");
            if !whole && !NOT_LOGGED.iter().any(|known| what.starts_with(known)) {
                out.push(what);
            }
        }
        problem = line;
    }
    out
}

/// Checks a crash image of `run` at moment `at`; what our mount wrote to recover it.
pub(crate) fn check(
    run: &Run,
    at: usize,
    bytes: Vec<u8>,
    extra: Extra,
    scratch: &Scratch,
    counts: &Counts,
) -> Result<Recording, String> {
    let journal = run.unit.config.journal();
    let mut whole = true;
    if extra.fsck || extra.theirs || !journal {
        whole = by_e2fsck(run, at, &bytes, extra, scratch, counts)?;
    }
    if journal && whole && extra.linux && linux::available() {
        by_linux(run, at, &bytes, scratch, counts)?;
    }
    // Without a journal there is nothing to go by but what e2fsck makes of it.
    let bytes = if journal { bytes } else { scratch.bytes() };
    by_us(run, at, bytes, extra.used, scratch, counts)
}

/// `false` if there is half a commit block.
fn by_e2fsck(
    run: &Run,
    at: usize,
    bytes: &[u8],
    extra: Extra,
    scratch: &Scratch,
    counts: &Counts,
) -> Result<bool, String> {
    scratch.put(bytes);
    let (code, text) = e2fsck(&scratch.path, "-fy", counts)?;
    if !matches!(code, 0 | 1) {
        return Err(format!("e2fsck -fy: {code}\n{text}"));
    }
    if extra.torn && text.contains("was corrupt, replay was aborted") {
        // Of a commit block only the first sector is there: Linux and e2fsck take that for damage.
        count(&counts.torn);
        return clean(&scratch.path, "e2fsck -fy", counts).map(|()| false);
    }
    // What the journal has is whole: there is nothing that would have to be repaired.
    if run.unit.config.journal() && !repairs(&text).is_empty() {
        return Err(format!("e2fsck -fy had to repair: {text}"));
    }
    let left = scratch.bytes();
    clean_once(run, &left, true, "e2fsck -fy", scratch, counts)?;
    if extra.theirs {
        let mut ours = mount(left, run)?.0;
        run.world.check(&mut ours, at).map_err(|e| format!("after e2fsck: {e}"))?;
        ours.leave().map_err(|e| format!("unmounting after e2fsck: errno {e}"))?;
    }
    Ok(true)
}

fn by_linux(run: &Run, at: usize, bytes: &[u8], scratch: &Scratch, counts: &Counts) -> Result<(), String> {
    count(&counts.linux);
    scratch.put(bytes);
    let mut linux = Linux::mount(&scratch.path, "noatime").map_err(|e| format!("Linux does not mount it: {e}"))?;
    run.world.check(&mut linux, at).map_err(|e| format!("as Linux sees it: {e}"))?;
    linux.unmount().map_err(|e| format!("Linux unmounting: errno {e}"))?;
    clean(&scratch.path, "Linux", counts)
}

fn mount(bytes: Vec<u8>, run: &Run) -> Result<(Ours, KArc<CrashDisk>), String> {
    let disk = KArc::new(CrashDisk::new(bytes, run.unit.config.fua), GFP_KERNEL).map_err(|e| format!("{e:?}"))?;
    disk.start_recording();
    let bdev = Bdev::new(disk.clone()).map_err(|e| format!("{e:?}"))?;
    let ours = Ours::over(bdev, &run.unit.options).map_err(|e| format!("mounting: errno {e}"))?;
    Ok((ours, disk))
}

fn by_us(
    run: &Run,
    at: usize,
    bytes: Vec<u8>,
    used: bool,
    scratch: &Scratch,
    counts: &Counts,
) -> Result<Recording, String> {
    let (mut ours, disk) = mount(bytes, run)?;
    // Of a file system that e2fsck has repaired there is nothing to recover.
    let journal = run.unit.config.journal();
    let recording = if journal { disk.take_recording() } else { Recording::default() };
    run.world.check(&mut ours, at)?;
    if used {
        use_it(&mut ours)?;
    }
    ours.leave().map_err(|e| format!("unmounting: errno {e}"))?;
    clean_once(run, &disk.take_image(), false, "mounted and unmounted", scratch, counts)?;
    Ok(recording)
}

/// It is a file system like any other.
fn use_it(ours: &mut Ours) -> Result<(), String> {
    let path = "after".to_string();
    let flags = OFlags::RDWR | OFlags::CREAT | OFlags::DIRECT;
    let steps = [
        Op::Open { slot: 0, path: path.clone(), flags, mode: 0o600 },
        Op::Write { slot: 0, pos: 0, len: 8192, segs: 1, tag: 7, rwf: Rwf(0) },
        Op::Fsync { slot: 0 },
        Op::Unlink { path },
        Op::Close { slot: 0 },
    ];
    for op in steps {
        match ours.apply(&op) {
            Ok(_) | Err(libc::ENOSPC) => {}
            Err(e) => return Err(format!("afterwards, {op}: errno {e}")),
        }
    }
    Ok(())
}
