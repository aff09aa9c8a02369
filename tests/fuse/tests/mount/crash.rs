// SPDX-License-Identifier: GPL-2.0-only
//! The daemon ends without a chance to write anything: killed, or the file system is shut down.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use ext4_dio_tests::dio::Pages;
use ext4_dio_tests::images::{Image, assert_clean};
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::oplang::{Rng, pattern};
use rustix::fs::OFlags;

use crate::support::{BLOCKS, HANGS, Mount, available, disk};

/// Bytes in a record.
const RECORD: usize = 4096;
/// Writers, each with a file of its own.
const WRITERS: usize = 4;
/// Records in a file.
const RECORDS: u64 = 64;

/// What was acknowledged: the tag of each record, and which names are durable.
#[derive(Debug, Default)]
struct Durable {
    /// By writer and record: the tag that was synced last, 0 for none, and those that were written after it.
    records: BTreeMap<(usize, u64), Vec<u32>>,
    /// Made, and their directory was synced.
    names: Vec<String>,
}

/// Writes and syncs until there is nothing to write to, and counts what was acknowledged.
fn write_until_it_dies(root: &Path, writer: usize, acknowledged: &AtomicUsize) -> Durable {
    let mut durable = Durable::default();
    let mut rng = Rng(writer as u64);
    let path = root.join(format!("w{writer}"));
    // Two of them write directly, one of those with O_DSYNC.
    let flags = [OFlags::DIRECT, OFlags::DIRECT | OFlags::DSYNC, OFlags::empty(), OFlags::DSYNC][writer % 4];
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).expect("a file");
    let all = rustix::fs::fcntl_getfl(&file).expect("flags") | (flags & OFlags::DIRECT);
    rustix::fs::fcntl_setfl(&file, all).expect("flags");
    let dir = File::open(root).expect("the root");
    for tag in 1.. {
        let n = rng.below(RECORDS);
        let memory = Pages::of(&pattern(tag, n * RECORD as u64, RECORD));
        durable.records.entry((writer, n)).or_insert_with(|| vec![0]).push(tag);
        if file.write_all_at(memory.bytes(), n * RECORD as u64).is_err() || file.sync_data().is_err() {
            break;
        }
        durable.records.insert((writer, n), vec![tag]);
        if tag % 8 == 0 {
            let name = format!("n{writer}-{tag}");
            if File::create(root.join(&name)).is_err() || dir.sync_all().is_err() {
                break;
            }
            durable.names.push(name);
        }
        acknowledged.fetch_add(1, Ordering::Release);
    }
    durable
}

impl Durable {
    /// All of it must be there.
    fn check(&self, root: &Path) {
        let mut bytes = BTreeMap::new();
        for ((writer, n), tags) in &self.records {
            let path = root.join(format!("w{writer}"));
            let file = bytes.entry(*writer).or_insert_with(|| std::fs::read(path).expect("it was made durable"));
            let at = *n as usize * RECORD;
            let mut got = vec![0; RECORD];
            let end = file.len().min(at + RECORD);
            got[..end.saturating_sub(at)].copy_from_slice(&file[at.min(end)..end]);
            // Sectors of a write that was not acknowledged may be there or not.
            for (m, got) in got.chunks(512).enumerate() {
                let fits = |tag: &u32| match tag {
                    0 => got.iter().all(|b| *b == 0),
                    tag => got == pattern(*tag, (at + m * 512) as u64, 512),
                };
                assert!(tags.iter().any(fits), "writer {writer}, record {n}, sector {m}: none of {tags:?}");
            }
        }
        for name in &self.names {
            assert!(root.join(name).exists(), "{name} was made durable");
        }
    }
}

/// Runs writers on a mount until `enough` writes were acknowledged; then `end` ends it under them.
fn run_until(mount: &Mount, enough: usize, end: impl FnOnce()) -> Vec<Durable> {
    let acknowledged = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for writer in 0..WRITERS {
            let (acknowledged, tell, root) = (&acknowledged, tell.clone(), mount.root());
            scope.spawn(move || tell.send(write_until_it_dies(root, writer, acknowledged)));
        }
        while acknowledged.load(Ordering::Acquire) < enough {
            std::thread::yield_now();
        }
        end();
        (0..WRITERS).map(|_| told.recv_timeout(HANGS).expect("writers see that it is gone")).collect()
    })
}

/// Killed in the middle of writes: what was synced is there, by our replay and by e2fsck's.
#[test]
fn killed_in_the_middle() {
    if !available() {
        return;
    }
    for (block_size, enough) in BLOCKS.into_iter().zip([150, 200, 250]) {
        let mut mount = Mount::new(block_size, "");
        let pid = mount.process();
        let durable = run_until(&mount, enough, || {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
        });
        mount.kill();
        // e2fsck and Linux have copies.
        let copy = || Image::from_bytes(&std::fs::read(mount.image()).expect("reading"));
        let (theirs, repaired) = (copy(), copy());
        repaired.e2fsck_repairs();
        for image in [&theirs, &repaired].into_iter().filter(|_| linux::available()) {
            let linux = Linux::mount(&image.path(), "").expect("Linux mounts it");
            durable.iter().for_each(|d| d.check(linux.root()));
        }
        mount.mount();
        durable.iter().for_each(|d| d.check(mount.root()));
        std::fs::write(mount.path("after"), b"it can be written to").expect("writing");
        mount.umount();
    }
}

/// `EXT4_IOC_SHUTDOWN`, on the root directory.
fn shutdown(root: &Path, how: u32) -> i32 {
    let dir = File::open(root).expect("the root");
    // SAFETY: the ioctl reads one u32.
    let ret = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&dir), 0x8004_587d, &raw const how) };
    if ret == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
}

/// Shut down by ioctl: nothing works any more but unmounting, nothing is written, and what was synced is there at the next mount.
#[test]
fn shut_down_by_ioctl() {
    if !available() {
        return;
    }
    for (block_size, how) in BLOCKS.into_iter().zip([0, 1, 2]) {
        let mut mount = Mount::new(block_size, "");
        let durable = run_until(&mount, 60, || assert_eq!(shutdown(mount.root(), how), 0));
        let errno = |error: std::io::Error| error.raw_os_error();
        assert_eq!(File::create(mount.path("new")).map(drop).map_err(errno), Err(Some(libc::EIO)));
        assert_eq!(std::fs::write(mount.path("w0"), b"x").map_err(errno), Err(Some(libc::EIO)));
        mount.umount_dirty();
        mount.mount();
        durable.iter().for_each(|d| d.check(mount.root()));
        std::fs::write(mount.path("after"), b"it can be written to").expect("writing");
        mount.umount();
    }
}

/// `O_SYNC` alone makes a new file's data and size durable, whether buffered, direct or asynchronous.
#[test]
fn o_sync_writes_survive_a_shutdown() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    for (n, flags) in [OFlags::SYNC, OFlags::DSYNC, OFlags::SYNC | OFlags::DIRECT].into_iter().enumerate() {
        let name = format!("f{n}");
        let path = mount.path(&name);
        let open = OFlags::RDWR | OFlags::CREATE | flags;
        let fd = rustix::fs::openat(rustix::fs::CWD, &path, open, rustix::fs::Mode::RWXU).expect("open");
        File::from(fd).write_all_at(Pages::new(1 << 20, 0x5a).bytes(), 0).expect("writing");
        assert_eq!(shutdown(mount.root(), 2), 0);
        mount.umount_dirty();
        mount.mount();
        let bytes = std::fs::read(&path).expect("reading");
        assert!(bytes.len() == 1 << 20 && bytes.iter().all(|b| *b == 0x5a), "{flags:?}: {} bytes", bytes.len());
    }
    mount.umount();
}

/// A killed daemon leaves a mount that answers nothing; once that is taken away the image can be mounted again at once.
#[test]
fn a_dead_mount_is_no_obstacle() {
    if !available() {
        return;
    }
    let image = Image::make(&disk(4096), None);
    for n in 0..3 {
        let mut mount = Mount::of(&image.path(), "").expect("mounting");
        let name = format!("f{n}");
        std::fs::write(mount.path(&name), &name).expect("writing");
        File::open(mount.path(&name)).and_then(|f| f.sync_all()).expect("fsync");
        mount.kill();
    }
    let mut mount = Mount::of(&image.path(), "").expect("mounting");
    for n in 0..3 {
        assert_eq!(std::fs::read_to_string(mount.path(&format!("f{n}"))).expect("synced"), format!("f{n}"));
    }
    mount.umount();
    assert_clean(&image.path());
}
