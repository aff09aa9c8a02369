// SPDX-License-Identifier: GPL-2.0-only
//! Files' data.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ext4_dio_tests::dio::Pages;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, fcntl_getfl, fcntl_setfl,
    fdatasync, flock, fsync, ftruncate, seek, syncfs, unlinkat,
};
use rustix::io::{ReadWriteFlags, pread, pwrite};

use super::{Answer, Case, at, done, file, io, shown};

/// All cases.
pub(super) const CASES: &[Case] = &[
    ("truncate", truncate),
    ("fallocate, every mode", fallocate_modes),
    ("fallocate, errors", fallocate_errors),
    ("seek", seeks),
    ("read and write", read_write),
    ("direct I/O, alignment", alignment),
    ("fcntl(F_SETFL, O_DIRECT)", set_direct),
    ("copy_file_range", copy),
    ("sync", sync),
    ("stat of an open file without a name", nameless),
];

fn truncate(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    let read_only = at(&d.join("f"), OFlags::RDONLY).expect("open");
    let dir = at(d, OFlags::RDONLY).expect("open");
    let path = |name: &str, size: u64| io(File::options().write(true).open(d.join(name)).and_then(|f| f.set_len(size)));
    let stat = || io(std::fs::metadata(d.join("f")).map(|m| (m.len(), m.blocks())));
    vec![
        done(ftruncate(&fd, 5000)),
        stat(),
        done(ftruncate(&fd, 1 << 40)),
        stat(),
        done(ftruncate(&fd, 1 << 62)),
        done(ftruncate(&fd, i64::MAX as u64)),
        done(ftruncate(&fd, 0)),
        stat(),
        done(ftruncate(&read_only, 0)),
        done(ftruncate(&dir, 0)),
        path("none", 0),
        path(".", 0),
    ]
}

fn modes() -> [FallocateFlags; 8] {
    let keep = FallocateFlags::KEEP_SIZE;
    [
        FallocateFlags::empty(),
        keep,
        keep | FallocateFlags::PUNCH_HOLE,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        keep | FallocateFlags::ZERO_RANGE,
        FallocateFlags::PUNCH_HOLE,
    ]
}

fn fallocate_modes(d: &Path) -> Vec<Answer> {
    let one = |n: usize, mode| {
        let path = d.join(n.to_string());
        let fd = file(&path);
        pwrite(&fd, &[7; 32768], 0).expect("writing");
        fallocate(&fd, mode, 4096, 8192)?;
        Ok(format!("{}", std::fs::metadata(path).expect("stat").len()))
    };
    let mut out: Vec<Answer> = modes().into_iter().enumerate().map(|(n, mode)| one(n, mode)).collect();
    for n in [0, 1, 2, 3, 6] {
        let bytes = std::fs::read(d.join(n.to_string())).expect("reading");
        out.push(Ok(format!("{} zeros", bytes.iter().filter(|b| **b == 0).count())));
        let meta = std::fs::metadata(d.join(n.to_string())).expect("stat");
        out.push(Ok(format!("{} sectors", meta.blocks())));
    }
    out
}

fn fallocate_errors(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    let read_only = at(&d.join("f"), OFlags::RDONLY).expect("open");
    let dir = at(d, OFlags::RDONLY).expect("open");
    let append = at(&d.join("f"), OFlags::RDWR | OFlags::APPEND).expect("open");
    let keep = FallocateFlags::KEEP_SIZE;
    let none = FallocateFlags::empty();
    let answers = vec![
        done(fallocate(&fd, none, 0, 0)),
        done(fallocate(&fd, none, 1 << 62, 4096)),
        done(fallocate(&fd, none, i64::MAX as u64, 4096)),
        done(fallocate(&fd, keep, 0, 1 << 40)),
        done(fallocate(&read_only, none, 0, 4096)),
        done(fallocate(&dir, none, 0, 4096)),
        done(fallocate(&append, none, 0, 4096)),
        done(fallocate(&append, keep | FallocateFlags::PUNCH_HOLE, 0, 4096)),
        done(fallocate(&fd, FallocateFlags::from_bits_retain(0x1000), 0, 4096)),
        done(fallocate(&fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE, 0, 4096)),
    ];
    // It may have got anything up to all there is.
    ftruncate(&fd, 0).expect("truncating");
    answers
}

fn seeks(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    pwrite(&fd, &[1; 4096], 16384).expect("writing");
    ftruncate(&fd, 65536).expect("truncating");
    fsync(&fd).expect("fsync");
    let dir = at(d, OFlags::RDONLY).expect("open");
    [
        SeekFrom::Data(0),
        SeekFrom::Data(16384),
        SeekFrom::Data(17000),
        SeekFrom::Data(20480),
        SeekFrom::Data(65536),
        SeekFrom::Hole(0),
        SeekFrom::Hole(16384),
        SeekFrom::Hole(65535),
        SeekFrom::Hole(65536),
        SeekFrom::End(0),
        SeekFrom::End(-100_000),
        SeekFrom::Current(-100_000),
    ]
    .into_iter()
    .map(|to| shown(seek(&fd, to)))
    .chain([shown(seek(&dir, SeekFrom::Start(0)))])
    .collect()
}

fn read_write(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    let read_only = at(&d.join("f"), OFlags::RDONLY).expect("open");
    let write_only = at(&d.join("f"), OFlags::WRONLY).expect("open");
    let append = at(&d.join("f"), OFlags::WRONLY | OFlags::APPEND).expect("open");
    let dir = at(d, OFlags::RDONLY).expect("open");
    let mut buf = [0u8; 5000];
    let mut read = |fd: &OwnedFd, pos| shown(pread(fd, &mut buf[..], pos));
    let write = |fd: &OwnedFd, len: usize, pos| shown(pwrite(fd, &vec![1; len], pos));
    vec![
        read(&fd, 0),
        write(&fd, 0, 100),
        write(&fd, 3000, 0),
        read(&fd, 0),
        read(&fd, 2999),
        read(&fd, 3000),
        read(&fd, 1 << 40),
        write(&read_only, 10, 0),
        read(&write_only, 0),
        read(&dir, 0),
        write(&fd, 10, 1 << 62),
        write(&fd, 10, i64::MAX as u64 - 5),
        write(&append, 10, 0),
        io(std::fs::metadata(d.join("f")).map(|m| m.len())),
        shown(rustix::io::pwritev2(&fd, &[std::io::IoSlice::new(b"xyz")], 7, ReadWriteFlags::APPEND)),
        shown(rustix::io::pwritev2(&fd, &[std::io::IoSlice::new(b"xyz")], 7, ReadWriteFlags::DSYNC)),
        io(std::fs::metadata(d.join("f")).map(|m| m.len())),
        write(&fd, 10, 1 << 41),
        io(std::fs::metadata(d.join("f")).map(|m| m.len())),
    ]
}

fn alignment(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    pwrite(&fd, &[3; 10_000], 0).expect("writing");
    let direct = at(&d.join("f"), OFlags::RDWR | OFlags::DIRECT).expect("open");
    let mut memory = Pages::new(16384, 9);
    let mut out = Vec::new();
    for (len, pos) in [
        (4096, 0),
        (4096, 512),
        (512, 512),
        (100, 0),
        (4096, 100),
        (513, 512),
        (4096, 8192),
        (512, 9728),
        (4096, 12288),
    ] {
        out.push(shown(pread(&direct, &mut memory.bytes_mut()[..len], pos)));
    }
    for (len, pos) in [(4096, 0), (512, 512), (100, 0), (4096, 100), (513, 512), (1024, 16384), (4096, 1 << 62)] {
        out.push(shown(pwrite(&direct, &memory.bytes()[..len], pos)));
    }
    out.push(io(std::fs::metadata(d.join("f")).map(|m| m.len())));
    out
}

fn set_direct(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    let memory = Pages::new(4096, 9);
    let write = |len: usize, pos| shown(pwrite(&fd, &memory.bytes()[..len], pos));
    let flags = || fcntl_getfl(&fd).expect("flags");
    let mut out =
        vec![write(100, 0), done(fcntl_setfl(&fd, flags() | OFlags::DIRECT)), write(100, 0), write(4096, 4096)];
    out.push(done(fcntl_setfl(&fd, flags() - OFlags::DIRECT)));
    out.push(write(100, 50));
    out.push(done(fcntl_setfl(&fd, flags() | OFlags::APPEND | OFlags::DIRECT)));
    out.push(write(512, 0));
    out.push(io(std::fs::metadata(d.join("f")).map(|m| m.len())));
    out
}

fn copy(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    pwrite(&fd, &[5; 20_000], 0).expect("writing");
    let other = file(&d.join("g"));
    let read_only = at(&d.join("g"), OFlags::RDONLY).expect("open");
    let append = at(&d.join("g"), OFlags::RDWR | OFlags::APPEND).expect("open");
    let dir = at(d, OFlags::RDONLY).expect("open");
    let copy = |from: &OwnedFd, at: u64, to: &OwnedFd, pos: u64, len| {
        let (mut at, mut pos) = (at, pos);
        shown(copy_file_range(from, Some(&mut at), to, Some(&mut pos), len).map(|n| (n, at, pos)))
    };
    vec![
        copy(&fd, 0, &other, 100, 10_000),
        copy(&fd, 19_000, &other, 0, 10_000),
        copy(&fd, 20_000, &other, 0, 10_000),
        copy(&fd, 0, &fd, 30_000, 5000),
        copy(&fd, 0, &fd, 100, 5000),
        copy(&fd, 0, &read_only, 0, 10),
        copy(&fd, 0, &append, 0, 10),
        copy(&dir, 0, &other, 0, 10),
        copy(&fd, 0, &dir, 0, 10),
        copy(&fd, 0, &other, 0, 0),
        io(std::fs::metadata(d.join("g")).map(|m| m.len())),
        io(std::fs::read(d.join("g")).map(|b| b.iter().filter(|b| **b == 5).count())),
    ]
}

fn sync(d: &Path) -> Vec<Answer> {
    let fd = file(&d.join("f"));
    let read_only = at(&d.join("f"), OFlags::RDONLY).expect("open");
    let dir = at(d, OFlags::RDONLY).expect("open");
    let lock = || flock(&fd, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    let other = || flock(&read_only, rustix::fs::FlockOperation::NonBlockingLockShared);
    vec![
        done(fsync(&fd)),
        done(fdatasync(&read_only)),
        done(fsync(&dir)),
        done(fdatasync(&dir)),
        done(syncfs(&dir)),
        done(lock()),
        done(other()),
    ]
}

fn nameless(d: &Path) -> Vec<Answer> {
    let path = d.join("f");
    let fd = file(&path);
    pwrite(&fd, &[1; 8192], 0).expect("writing");
    let stat = || shown(rustix::fs::fstat(&fd).map(|s| (s.st_nlink, s.st_size)));
    vec![
        stat(),
        done(unlinkat(CWD, &path, AtFlags::empty())),
        stat(),
        shown(pwrite(&fd, &[2; 100], 8192)),
        done(ftruncate(&fd, 9000)),
        done(fallocate(&fd, FallocateFlags::empty(), 0, 20_000)),
        done(rustix::fs::fchmod(&fd, Mode::RUSR)),
        done(fsync(&fd)),
        stat(),
        shown(pread(&fd, &mut [0u8; 300], 8100)),
        done(at(&path, OFlags::RDWR)),
    ]
}
