// SPDX-License-Identifier: GPL-2.0-only
//! What several users of a mount see of each other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

use ext4_dio_tests::dio::Pages;
use ext4_dio_tests::images::{Image, Mkfs};
use ext4_dio_tests::linux::{self, Linux};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use crate::support::{BLOCKS, HANGS, Mount, available, disk, left_out};

/// A shared mapping of the beginning of a file.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn of(file: &File, len: usize) -> Self {
        let all = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping wherever there is room.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, all, MapFlags::SHARED, file, 0) };
        Self { at: at.expect("mapping").cast(), len }
    }

    fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: within the mapping; the file is not made shorter in these tests.
        (at..at + len).map(|n| unsafe { self.at.add(n).read_volatile() }).collect()
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: as above.
            unsafe { self.at.add(at + n).write_volatile(*byte) };
        }
    }

    fn sync(&self) {
        // SAFETY: the mapping is ours.
        unsafe { rustix::mm::msync(self.at.cast(), self.len, MsyncFlags::SYNC) }.expect("msync");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody has references into it.
        unsafe { rustix::mm::munmap(self.at.cast(), self.len) }.expect("unmapping");
    }
}

/// Writes by a mapping are seen by reads, and writes by the mapping, whether direct or not.
#[test]
fn mappings_and_descriptors_are_coherent() {
    if !available() {
        return;
    }
    // In our page cache, and in the kernel's.
    let both = BLOCKS.into_iter().flat_map(|block_size| [(block_size, ""), (block_size, "page_cache=kernel")]);
    for (block_size, options) in both {
        let mut mount = Mount::new(block_size, options);
        let buffered = mount.open("f", OFlags::empty());
        let direct = mount.open("f", OFlags::DIRECT);
        buffered.set_len(64 << 10).expect("truncating");
        let map = Map::of(&buffered, 64 << 10);
        let mut memory = Pages::new(4096, 0);
        for n in 0..16u8 {
            let at = usize::from(n) * 4096;
            let file = if n % 2 == 0 { &direct } else { &buffered };
            assert_eq!(map.get(at, 1), [0], "the page is in the cache now");
            file.write_all_at(Pages::new(4096, n + 1).bytes(), at as u64).expect("writing");
            assert_eq!(map.get(at, 4096), vec![n + 1; 4096], "the mapping shows what was written");
            map.put(at + 100, b"by the mapping");
            file.read_exact_at(memory.bytes_mut(), at as u64).expect("reading");
            assert_eq!(&memory.bytes()[100..114], b"by the mapping", "a read shows what the mapping has");
            assert_eq!(memory.bytes()[99], n + 1);
        }
        map.put(5, b"the last");
        map.sync();
        drop(map);
        drop((buffered, direct));
        mount.remount();
        assert_eq!(&std::fs::read(mount.path("f")).expect("reading")[5..13], b"the last");
        mount.umount();
    }
}

/// A private mapping, and the loader's: a program is copied to the mount, and runs there.
#[test]
fn programs_run_from_it() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    std::fs::copy("/bin/true", mount.path("true")).expect("copying");
    std::fs::copy("/bin/false", mount.path("false")).expect("copying");
    for _ in 0..2 {
        let run = |name| std::process::Command::new(mount.path(name)).status().expect("it starts").code();
        assert_eq!((run("true"), run("false")), (Some(0), Some(1)));
        mount.remount();
    }
    mount.umount();
}

/// Each record is where one writer alone has put it, and all are there.
#[test]
fn appends_of_many_writers() {
    const WRITERS: u64 = 8;
    const RECORDS: u64 = 60;
    if !available() {
        return;
    }
    for (block_size, direct) in [(4096, false), (4096, true), (1024, true)] {
        let mut mount = Mount::new(block_size, "");
        let flags = if direct { OFlags::APPEND | OFlags::DIRECT } else { OFlags::APPEND };
        let record = if direct { 512 } else { 100 };
        let word = |writer: u64, n: u64| (writer << 32 | n).to_ne_bytes();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let mut file = mount.open("f", flags);
                scope.spawn(move || {
                    for n in 0..RECORDS {
                        let memory = Pages::of(&word(writer, n).repeat(record / 8 + 1)[..record]);
                        file.write_all(memory.bytes()).expect("appending");
                    }
                });
            }
        });
        let check = |bytes: &[u8]| {
            assert_eq!(bytes.len() as u64, WRITERS * RECORDS * record as u64);
            let mut next = [0; WRITERS as usize];
            for piece in bytes.chunks(record) {
                let value = u64::from_ne_bytes(*piece.first_chunk().expect("a record"));
                let writer = (value >> 32) as usize;
                assert_eq!(piece, &value.to_ne_bytes().repeat(record / 8 + 1)[..record], "a whole record");
                assert_eq!(value & 0xffff_ffff, next[writer], "each writer's in their order");
                next[writer] += 1;
            }
        };
        check(&std::fs::read(mount.path("f")).expect("reading"));
        mount.remount();
        check(&std::fs::read(mount.path("f")).expect("reading"));
        mount.umount();
    }
}

/// While names go away, those that stay are each told once.
#[test]
fn readdir_while_names_go_away() {
    const FILES: usize = 2000;
    if !available() {
        return;
    }
    for block_size in [1024, 4096] {
        let mut mount = Mount::new(block_size, "");
        let name = |n: usize| format!("{n:05}-{}", "x".repeat(n % 50));
        let dir = mount.path("d");
        std::fs::create_dir(&dir).expect("mkdir");
        for n in 0..FILES {
            File::create(dir.join(name(n))).expect("a file");
        }
        let mut seen = BTreeSet::new();
        for (n, entry) in std::fs::read_dir(&dir).expect("reading").enumerate() {
            let found = entry.expect("an entry").file_name().into_string().expect("ASCII");
            assert!(seen.insert(found.clone()), "{found} is told twice");
            // What was told goes away, and from the other end what was not: it may be told all the same.
            for gone in [Some(found), (n % 3 == 0).then(|| name(FILES - 1 - n))].into_iter().flatten() {
                let removed = std::fs::remove_file(dir.join(gone)).map_err(|e| e.kind());
                assert!(matches!(removed, Ok(()) | Err(std::io::ErrorKind::NotFound)), "{removed:?}");
            }
        }
        let left: Vec<_> =
            std::fs::read_dir(&dir).expect("reading").map(|e| e.expect("an entry").file_name()).collect();
        assert!(left.is_empty(), "never told: {left:?}");
        std::fs::remove_dir(&dir).expect("it is empty");
        mount.umount();
    }
}

/// A file without names lives until it is closed, and then its blocks are free.
#[test]
fn deleted_files_live_until_they_are_closed() {
    if !available() {
        return;
    }
    for block_size in BLOCKS {
        let mut mount = Mount::new(block_size, "");
        let free = |mount: &Mount| {
            rustix::fs::syncfs(File::open(mount.root()).expect("open")).expect("syncfs");
            let stat = rustix::fs::statvfs(mount.root()).expect("statvfs");
            (stat.f_bfree, stat.f_ffree)
        };
        let before = free(&mount);
        let mut files: Vec<File> = (0..8).map(|n| mount.open(&n.to_string(), OFlags::empty())).collect();
        for (n, file) in files.iter_mut().enumerate() {
            file.write_all(&vec![n as u8; 300_000]).expect("writing");
            std::fs::remove_file(mount.path(&n.to_string())).expect("unlinking");
        }
        assert_eq!(std::fs::read_dir(mount.root()).expect("reading").count(), 1, "lost+found");
        for (n, file) in files.iter_mut().enumerate() {
            file.write_all(&vec![n as u8; 300_000]).expect("writing");
            let mut all = vec![0xee; 600_000];
            file.read_exact_at(&mut all, 0).expect("reading");
            assert!(all.iter().all(|b| usize::from(*b) == n));
            file.rewind().expect("seeking");
        }
        drop(files);
        // The kernel tells the daemon of a close when nobody waits for it.
        let start = Instant::now();
        while free(&mount) != before {
            assert!(start.elapsed() < HANGS, "{:?} free, should be {before:?}", free(&mount));
            std::thread::yield_now();
        }
        mount.umount();
    }
}

/// Names in a file system, as a file system of its own sees them, and statfs: both before and after Linux has had it.
#[test]
fn statfs_is_linux_s() {
    if !available() {
        return;
    }
    if !linux::available() {
        left_out("statfs beside Linux's");
        return;
    }
    for block_size in BLOCKS {
        let image = Image::make(&disk(block_size), None);
        let stat = |dir: &Path| {
            let s = rustix::fs::statvfs(dir).expect("statvfs");
            (s.f_bsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_namemax)
        };
        let mut mount = Mount::of(&image.path(), "").expect("mounting");
        std::fs::write(mount.path("f"), vec![1; 1 << 20]).expect("writing");
        std::fs::create_dir(mount.path("d")).expect("mkdir");
        let ours = stat(mount.root());
        mount.umount();
        let linux = Linux::mount(&image.path(), "").expect("Linux mounts it");
        assert_eq!(ours, stat(linux.root()), "ours, and Linux's, of one image");
    }
}

/// A file system of Linux's that writes nothing for a while.
struct Frozen(OwnedFd);

impl Frozen {
    const FIFREEZE: libc::Ioctl = 0xC004_5877;
    const FITHAW: libc::Ioctl = 0xC004_5878;

    fn new(dir: &Path) -> Self {
        let fd = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
        // SAFETY: no memory is passed.
        let ret = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), Self::FIFREEZE, 0) };
        assert_eq!(ret, 0, "freezing: {}", std::io::Error::last_os_error());
        Self(fd)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: no memory is passed.
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&self.0), Self::FITHAW, 0) };
    }
}

/// How many threads of a process are in uninterruptible sleep, as one is that writes to a frozen file system.
fn stuck(pid: rustix::process::Pid) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).expect("it runs");
    let states = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    // The name may have blanks and brackets of its own.
    states.filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))).count()
}

/// Direct writes to one file are all in the device at the same time: the disk below is stopped until they are.
#[test]
fn direct_writes_to_one_file_are_parallel() {
    const WRITERS: usize = 8;
    if !available() {
        return;
    }
    if !linux::available() {
        left_out("whether direct writes are parallel is seen on a disk in Linux's ext4");
        return;
    }
    for (options, buffered) in [("", false), ("", true), ("dioread_nolock,dio_window=i_data_sem", false)] {
        let below = Image::make(&Mkfs { size_kib: 128 << 10, ..disk(4096) }, None);
        let linux = Linux::mount(&below.path(), "").expect("Linux mounts it");
        let inner = Image::make(&disk(4096), None);
        let image: PathBuf = linux.root().join("inner.img");
        std::fs::write(&image, inner.bytes()).expect("room for the image");
        let mut mount = Mount::of(&image, options).expect("mounting");
        let file = mount.open("f", OFlags::DIRECT);
        file.write_all_at(Pages::new(WRITERS << 16, 1).bytes(), 0).expect("writing");
        file.sync_all().expect("fsync");
        // Somebody who reads the file through the cache does not change that.
        let other = buffered.then(|| mount.open("f", OFlags::empty()));
        if let Some(other) = &other {
            other.read_exact_at(&mut [0; 100], 0).expect("reading");
        }
        let frozen = Frozen::new(linux.root());
        let all = Barrier::new(WRITERS + 1);
        let start = Instant::now();
        let met = std::thread::scope(|scope| {
            for n in 0..WRITERS {
                let (file, all) = (&file, &all);
                scope.spawn(move || {
                    all.wait();
                    file.write_all_at(Pages::new(4096, 2).bytes(), (n << 16) as u64).expect("writing");
                });
            }
            all.wait();
            let mut most = 0;
            while most < WRITERS && start.elapsed() < HANGS / 4 {
                most = most.max(stuck(mount.process()));
                std::thread::yield_now();
            }
            drop(frozen);
            most
        });
        assert!(met >= WRITERS, "of {WRITERS} writes {met} were in the device at once, with \"{options}\"");
        drop((file, other));
        assert_eq!(std::fs::metadata(mount.path("f")).expect("stat").size(), (WRITERS << 16) as u64);
        mount.umount();
        drop(linux);
    }
}
