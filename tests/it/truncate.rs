// SPDX-License-Identifier: GPL-2.0-only
//! Truncate, fallocate in all its modes, FIEMAP, SEEK_DATA and SEEK_HOLE: against a model of bytes and allocated blocks.

use std::sync::{Arc, Mutex};

use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::fiemap::*;
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::ioctl::*;
use ext4_dio::path::{Cred, path_open};
use ext4_dio::setattr::*;
use ext4_dio::truncate::ext4_inode_block_unlocked_dio;
use ext4_dio::xattr::{XattrSet, ext4_getxattr, ext4_setxattr};
use ext4_dio::{File, IRef, ext4_open, ext4_sync_fs};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, e2fsprogs};
use ext4_dio_tests::oplang::Rng;
use kernel_shim::alloc::{Arc as KArc, KVec};
use kernel_shim::error::code::*;
use kernel_shim::error::{Error, Result};
use kernel_shim::fs::OpenFlags;
use kernel_shim::testing::on_trace;
use kernel_shim::time::Timespec64;

const PAGE: usize = 4096;
const KEEP: FallocFlags = FallocFlags::KEEP_SIZE;
const PUNCH: FallocFlags = FallocFlags::PUNCH_HOLE.union(KEEP);
const ZERO: FallocFlags = FallocFlags::ZERO_RANGE;
const COLLAPSE: FallocFlags = FallocFlags::COLLAPSE_RANGE;
const INSERT: FallocFlags = FallocFlags::INSERT_RANGE;

/// What a file should be.
#[derive(Clone)]
struct Model {
    bs: usize,
    extents: bool,
    bytes: Vec<u8>,
    /// Which blocks have a place on the device, past the end too.
    blocks: Vec<bool>,
}

impl Model {
    fn allocate(&mut self, start: usize, end: usize) {
        let last = end.div_ceil(self.bs);
        if self.blocks.len() < last {
            self.blocks.resize(last, false);
        }
        self.blocks[start / self.bs..last].fill(true);
    }

    fn grow(&mut self, end: usize) {
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
    }

    fn write(&mut self, start: usize, data: &[u8]) {
        self.allocate(start, start + data.len());
        self.grow(start + data.len());
        self.bytes[start..start + data.len()].copy_from_slice(data);
    }

    fn truncate(&mut self, size: usize) {
        if size <= self.bytes.len() {
            self.blocks.truncate(size.div_ceil(self.bs));
        }
        self.bytes.resize(size, 0);
    }

    fn zero(&mut self, start: usize, end: usize) {
        let end = end.min(self.bytes.len());
        if start < end {
            self.bytes[start..end].fill(0);
        }
    }

    fn fallocate(&mut self, mode: FallocFlags, start: usize, len: usize) -> Result {
        let (size, mut end) = (self.bytes.len(), start + len);
        if mode == PUNCH {
            if start >= size {
                return Ok(());
            }
            if end > size {
                end = size.next_multiple_of(PAGE);
            }
            self.zero(start, end);
            let (first, last) = (start.div_ceil(self.bs), (end / self.bs).min(self.blocks.len()));
            if first < last {
                self.blocks[first..last].fill(false);
            }
            return Ok(());
        }
        if !self.extents {
            return Err(EOPNOTSUPP);
        }
        let aligned = (start | len).is_multiple_of(self.bs);
        match mode - KEEP {
            COLLAPSE if !aligned || end >= size => return Err(EINVAL),
            COLLAPSE => {
                self.bytes.drain(start..end);
                let (first, last) = (start / self.bs, (end / self.bs).min(self.blocks.len()));
                if first < last {
                    self.blocks.drain(first..last);
                }
            }
            INSERT if !aligned || start >= size => return Err(EINVAL),
            INSERT => {
                self.bytes.splice(start..start, vec![0; len]);
                let first = start / self.bs;
                if first < self.blocks.len() {
                    self.blocks.splice(first..first, vec![false; len / self.bs]);
                }
            }
            flags => {
                self.allocate(start, end);
                if flags == ZERO {
                    self.zero(start, end);
                }
                if !mode.contains(KEEP) {
                    self.grow(end);
                }
            }
        }
        Ok(())
    }
}

fn fiemap(inode: &IRef, start: u64, len: u64, flags: FiemapFlags) -> Vec<FiemapExtent> {
    let mut out = KVec::new();
    ext4_fiemap(inode, start, len, flags, usize::MAX, &mut out).expect("fiemap");
    out.iter().copied().collect()
}

/// Contents, by both ways; blocks; holes.
fn compare(m: &Mount, path: &str, model: &Model, context: &str) {
    let buffered = ext4_open(&m.sb, path, OpenFlags::empty()).expect("opening");
    let inode = buffered.f_inode();
    assert_eq!(inode.i_size(), model.bytes.len() as i64, "{context}: size");
    let found = read(&buffered, 0, model.bytes.len() + PAGE).expect("reading");
    same(&found, &model.bytes, &format!("{context}: buffered"));
    let extents = fiemap(inode, 0, u64::MAX, FiemapFlags::SYNC);
    let direct = m.open(path);
    let found = read(&direct, 0, model.bytes.len().next_multiple_of(PAGE) + PAGE).expect("reading");
    same(&found, &model.bytes, &format!("{context}: direct"));

    let mut blocks = vec![false; model.blocks.len()];
    for (n, extent) in extents.iter().enumerate() {
        let (first, count) = (extent.fe_logical as usize / model.bs, extent.fe_length as usize / model.bs);
        assert!(first + count <= blocks.len(), "{context}: blocks past the model's: {extent:?}");
        assert_eq!(extent.fe_flags.contains(FiemapExtentFlags::LAST), n + 1 == extents.len(), "{context}");
        blocks[first..first + count].fill(true);
        if extent.fe_flags.contains(FiemapExtentFlags::UNWRITTEN) {
            let end = (extent.fe_logical + extent.fe_length).min(model.bytes.len() as u64) as usize;
            let start = (extent.fe_logical as usize).min(end);
            assert!(model.bytes[start..end].iter().all(|b| *b == 0), "{context}: data in unwritten blocks: {extent:?}");
        }
    }
    assert_eq!(blocks, model.blocks, "{context}: allocated blocks");
    seeks(inode, &extents, model, context);
}

fn same(found: &[u8], expected: &[u8], context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}: length");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{context}: byte {at} of {} is {:#x}, not {:#x}", found.len(), found[at], expected[at]);
    }
}

/// Data are where FIEMAP has written extents.
fn seeks(inode: &IRef, extents: &[FiemapExtent], model: &Model, context: &str) {
    let size = model.bytes.len();
    let mut data = vec![false; size.div_ceil(model.bs)];
    for extent in extents.iter().filter(|e| !e.fe_flags.contains(FiemapExtentFlags::UNWRITTEN)) {
        for block in extent.fe_logical as usize / model.bs..(extent.fe_logical + extent.fe_length) as usize / model.bs {
            if let Some(block) = data.get_mut(block) {
                *block = true;
            }
        }
    }
    for offset in [0, 1, size / 3, size / 2, size.saturating_sub(1), size, size + 1] {
        for (whence, want) in [(Whence::Data, true), (Whence::Hole, false)] {
            let from = offset / model.bs;
            let expected = if offset >= size {
                Err(ENXIO)
            } else {
                match data[from..].iter().position(|d| *d == want) {
                    Some(n) => Ok((((from + n) * model.bs).max(offset)) as i64),
                    None if want => Err(ENXIO),
                    None => Ok(size as i64),
                }
            };
            assert_eq!(ext4_seek(inode, offset as i64, whence), expected, "{context}: {whence:?} from {offset}");
        }
    }
    assert_eq!(ext4_seek(inode, -1, Whence::Data), Err(ENXIO));
}

struct Run {
    m: Mount,
    path: &'static str,
    model: Model,
    rng: Rng,
    max: usize,
}

impl Run {
    fn range(&mut self) -> (usize, usize) {
        let (start, len) = (self.rng.index(self.max), 1 + self.rng.index(self.max / 3));
        match self.rng.index(3) {
            // Whole blocks, whole pages, anything.
            0 => (start / self.model.bs * self.model.bs, len.next_multiple_of(self.model.bs)),
            1 => (start / PAGE * PAGE, len.next_multiple_of(PAGE)),
            _ => (start, len),
        }
    }

    fn open(&self, direct: bool) -> KArc<File> {
        let flags = if direct { OpenFlags::O_RDWR | OpenFlags::O_DIRECT } else { OpenFlags::O_RDWR };
        ext4_open(&self.m.sb, self.path, flags).expect("opening")
    }

    fn step(&mut self, context: &str) {
        let (start, len) = self.range();
        let op = self.rng.index(12);
        // Shown with a failure.
        println!("{context}: {op} {start}+{len}, size {}", self.model.bytes.len());
        match op {
            0..=2 => {
                let data = Pages::new(len, 1 + self.rng.index(200) as u8);
                assert_eq!(write(&self.open(false), start as i64, data.bytes()), Ok(len), "{context}: write");
                self.model.write(start, data.bytes());
            }
            3..=4 => {
                let (start, len) = (start / 512 * 512, len.next_multiple_of(512));
                let data = Pages::new(len, 1 + self.rng.index(200) as u8);
                assert_eq!(write(&self.open(true), start as i64, data.bytes()), Ok(len), "{context}: direct write");
                self.model.write(start, data.bytes());
            }
            5..=6 => {
                let size = self.rng.index(self.max);
                let size = if self.rng.index(2) == 0 { size / self.model.bs * self.model.bs } else { size };
                assert_eq!(ext4_setattr_size(self.open(false).f_inode(), size as i64), Ok(()), "{context}: truncate");
                self.model.truncate(size);
            }
            7 => ext4_sync_file(self.open(false).f_inode(), 0, i64::MAX, false).expect("fsync"),
            _ => {
                let modes = [FallocFlags::empty(), KEEP, PUNCH, PUNCH, ZERO, ZERO | KEEP, COLLAPSE, INSERT];
                let mode = modes[self.rng.index(8)];
                println!("  {mode:?}");
                if mode == INSERT && self.model.bytes.len() + len > 2 * self.max {
                    return;
                }
                let ret = ext4_fallocate(self.open(false).f_inode(), mode, start as i64, len as i64);
                assert_eq!(ret, self.model.fallocate(mode, start, len), "{context}: {mode:?} {start}+{len}");
            }
        }
    }
}

fn kinds() -> Vec<Mkfs> {
    let mut kinds = Vec::new();
    for block_size in [1024, 2048, 4096] {
        kinds.push(Mkfs { block_size, ..Mkfs::default() });
        kinds.push(Mkfs { block_size, features: "^extent,^64bit", ..Mkfs::default() });
    }
    kinds
}

fn random(spec: &Mkfs, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let bs = spec.block_size as usize;
        let extents = !spec.features.contains("^extent");
        let m = Mount::with(&image(spec), IN_FLIGHT, auto());
        let path = "/holes";
        let model = Model { bs, extents, bytes: vec![], blocks: vec![] };
        let mut run = Run { m, path, model, rng: Rng(seed * 77 + bs as u64), max: 40 * bs.max(2048) };
        ext4_setattr_size(run.open(false).f_inode(), 0).expect("empty");
        for op in 0..60 {
            let context = format!("bs {bs} extents {extents} seed {seed} op {op}");
            run.step(&context);
            if op % 4 == 3 {
                compare(&run.m, path, &run.model, &context);
            }
            if op % 20 == 19 {
                let bytes = run.m.finish();
                run.m = Mount::with(&bytes, [IN_FLIGHT, EXCLUSIVE][run.rng.index(2)], auto());
                compare(&run.m, path, &run.model, &format!("{context} remounted"));
            }
        }
        run.m.finish();
    }
}

#[test]
fn random_operations_on_extents() {
    kinds().iter().filter(|spec| spec.features.is_empty()).for_each(|spec| random(spec, 1..4));
}

#[test]
fn random_operations_on_indirect_blocks() {
    kinds().iter().filter(|spec| !spec.features.is_empty()).for_each(|spec| random(spec, 1..4));
}

/// Each mode at each combination of edges, on a file with every kind of block.
#[test]
fn every_mode_at_every_edge() {
    for spec in [Mkfs { block_size: 1024, ..Mkfs::default() }, Mkfs::default()] {
        let bs = spec.block_size as usize;
        let m = Mount::with(&image(&spec), IN_FLIGHT, auto());
        let file = ext4_open(&m.sb, "/holes", OpenFlags::O_RDWR).expect("opening");
        let inode = file.f_inode();
        let points = [0, 1, bs - 1, bs, bs + 1, 3 * bs, 5 * bs + 7, 8 * bs, 11 * bs + 5, 12 * bs, 16 * bs];
        for mode in [FallocFlags::empty(), KEEP, PUNCH, ZERO, ZERO | KEEP, COLLAPSE, INSERT] {
            for (n, start) in points.iter().enumerate() {
                for end in &points[n + 1..] {
                    let mut model = Model { bs, extents: true, bytes: vec![], blocks: vec![] };
                    ext4_setattr_size(inode, 0).expect("empty");
                    // Written, a hole, unwritten, written and dirty, and two blocks past the end.
                    for (block, count, kind) in [(0, 3, 'w'), (5, 3, 'u'), (8, 4, 'w'), (12, 2, 'k')] {
                        let (at, len) = (block * bs, count * bs - if block == 8 { 9 } else { 0 });
                        if kind == 'w' {
                            let data = Pages::new(len, 0x40 + block as u8);
                            assert_eq!(write(&file, at as i64, data.bytes()), Ok(len));
                            model.write(at, data.bytes());
                        } else {
                            let mode = if kind == 'k' { KEEP } else { FallocFlags::empty() };
                            assert_eq!(ext4_fallocate(inode, mode, at as i64, len as i64), Ok(()));
                            model.fallocate(mode, at, len).expect("an allocation");
                        }
                        if block == 0 {
                            ext4_sync_file(inode, 0, i64::MAX, false).expect("fsync");
                        }
                    }
                    let context = format!("bs {bs} {mode:?} {start}..{end}");
                    let ret = ext4_fallocate(inode, mode, *start as i64, (end - start) as i64);
                    assert_eq!(ret, model.fallocate(mode, *start, end - start), "{context}");
                    compare(&m, "/holes", &model, &context);
                }
            }
        }
        drop(file);
        m.finish();
    }
}

#[test]
fn fallocate_refuses() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let inode = file.f_inode();
    let size = inode.i_size();
    let max = m.sb.s_fs_info().s_maxbytes();
    let unknown = FallocFlags::from_bits_retain(0x40);
    let refused: [(FallocFlags, i64, i64, Error); 16] = [
        (KEEP, -1, 1, EINVAL),
        (KEEP, 0, 0, EINVAL),
        (KEEP, 0, -1, EINVAL),
        (FallocFlags::PUNCH_HOLE, 0, 4096, EOPNOTSUPP),
        (PUNCH | ZERO, 0, 4096, EOPNOTSUPP),
        (COLLAPSE | KEEP, 0, 4096, EOPNOTSUPP),
        (INSERT | KEEP, 0, 4096, EOPNOTSUPP),
        (unknown, 0, 4096, EOPNOTSUPP),
        (KEEP, max, 1, EFBIG),
        (KEEP, i64::MAX, i64::MAX, EFBIG),
        (COLLAPSE, 1, 4096, EINVAL),
        (COLLAPSE, 0, 4097, EINVAL),
        (COLLAPSE, 0, size, EINVAL),
        (INSERT, 512, 4096, EINVAL),
        (INSERT, size, 4096, EINVAL),
        (INSERT, 0, (max - size + 4096) / 4096 * 4096, EFBIG),
    ];
    for (mode, offset, len, error) in refused {
        assert_eq!(ext4_fallocate(inode, mode, offset, len), Err(error), "{mode:?} {offset} {len}");
    }
    assert_eq!(inode.i_size(), size);
    let directory = ext4_open(&m.sb, "/", OpenFlags::empty()).expect("opening");
    assert_eq!(ext4_fallocate(directory.f_inode(), KEEP, 0, 1), Err(EISDIR));
    assert_eq!(ext4_setattr_size(directory.f_inode(), 0), Err(EISDIR));
    assert_eq!(ext4_setattr_size(inode, -1), Err(EINVAL));
    assert_eq!(ext4_setattr_size(inode, max + 1), Err(EFBIG));
    let flags = ext4_ioctl_getflags(inode);
    use ext4_dio::ext4::InodeFlags as Flags;
    assert_eq!(ext4_ioctl_setflags(inode, flags | Flags::APPEND), Ok(()));
    assert_eq!(ext4_fallocate(inode, KEEP, 0, 4096), Ok(()));
    assert_eq!(ext4_fallocate(inode, PUNCH, 0, 4096), Err(EPERM));
    assert_eq!(ext4_setattr_size(inode, 0), Err(EPERM));
    assert_eq!(ext4_ioctl_setflags(inode, flags | Flags::IMMUTABLE), Ok(()));
    for mode in [KEEP, PUNCH] {
        assert_eq!(ext4_fallocate(inode, mode, 0, 4096), Err(EPERM));
    }
    let chmod = Iattr { ia_valid: AttrValid::MODE, ia_mode: 0o600, ..Iattr::default() };
    assert_eq!(ext4_setattr(inode, &chmod), Err(EPERM));
    assert_eq!(ext4_setxattr(inode, b"user.a", b"", XattrSet::Any), Err(EPERM));
    assert_eq!(ext4_ioctl_setflags(inode, flags - Flags::EXTENTS), Err(EOPNOTSUPP));
    assert_eq!(ext4_ioctl_setflags(inode, flags), Ok(()));
    assert_eq!(ext4_setattr(inode, &chmod), Ok(()));
    drop((file, directory));
    m.finish();
}

#[test]
fn attributes_are_set_and_stay() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let inode = file.f_inode();
    let time = |tv_sec, tv_nsec| Timespec64 { tv_sec, tv_nsec };
    let set = |ia_valid, ia_mode| Iattr { ia_valid, ia_mode, ia_uid: 70_000, ia_gid: 80_000, ..Iattr::default() };
    assert_eq!(ext4_setattr(inode, &set(AttrValid::MODE, 0o106_755)), Ok(()));
    assert_eq!(inode.i_mode(), 0o106_755);
    ext4_setxattr(inode, b"security.capability", &[1; 20], XattrSet::Any).expect("set");
    assert_eq!(ext4_setattr(inode, &set(AttrValid::UID | AttrValid::GID, 0)), Ok(()));
    assert_eq!((inode.i_uid(), inode.i_gid(), inode.i_mode()), (70_000, 80_000, 0o100_755));
    assert_eq!(ext4_getxattr(inode, b"security.capability", &mut []), Err(ENODATA));
    // Without permission for the group to execute, set-group-ID stays.
    for (mode, left) in [(0o6_644, 0o2_644), (0o2_755, 0o755), (0o4_711, 0o711)] {
        assert_eq!(ext4_setattr(inode, &set(AttrValid::MODE, mode)), Ok(()));
        assert_eq!(ext4_setattr_size(inode, inode.i_size() - 1), Ok(()));
        assert_eq!(inode.i_mode() & 0o7777, left);
        assert_eq!(ext4_setattr(inode, &set(AttrValid::MODE, mode)), Ok(()));
        assert_eq!(ext4_fallocate(inode, PUNCH, 0, 4096), Ok(()));
        assert_eq!(inode.i_mode() & 0o7777, left);
    }
    let times = Iattr {
        ia_valid: AttrValid::ATIME_SET | AttrValid::ATIME | AttrValid::MTIME_SET | AttrValid::MTIME,
        ia_atime: time(-5, 7),
        ia_mtime: time(0x2_0000_0001, 999_999_999),
        ..Iattr::default()
    };
    assert_eq!(ext4_setattr(inode, &times), Ok(()));
    let kept = inode.i_times();
    assert_eq!((kept.i_atime, kept.i_mtime), (times.ia_atime, times.ia_mtime));
    drop(file);
    let m = Mount::with(&m.finish(), "ro", auto());
    let file = ext4_open(&m.sb, "/data", OpenFlags::empty()).expect("opening");
    let inode = file.f_inode();
    assert_eq!(inode.i_times(), kept);
    assert_eq!((inode.i_uid(), inode.i_gid(), inode.i_mode()), (70_000, 80_000, 0o100_711));
    assert_eq!(ext4_setattr(inode, &times), Err(EROFS));
    assert_eq!(ext4_setattr_size(inode, 0), Err(EROFS));
    assert_eq!(ext4_fallocate(inode, KEEP, 0, 1), Err(EROFS));
    drop(file);
    m.finish();
}

/// Two requests for parts of a map, and one that has no room for the answer.
#[test]
fn fiemap_in_parts() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/holes");
    let inode = file.f_inode();
    let all = fiemap(inode, 0, u64::MAX, FiemapFlags::empty());
    assert_eq!(all.len(), 64);
    let part = fiemap(inode, 2 * 4096 + 5, 4 * 4096, FiemapFlags::empty());
    assert_eq!(part.iter().map(|e| e.fe_logical).collect::<Vec<_>>(), [2 * 4096, 4 * 4096, 6 * 4096]);
    let mut some = KVec::new();
    assert_eq!(ext4_fiemap(inode, 0, u64::MAX, FiemapFlags::empty(), 10, &mut some), Ok(()));
    assert_eq!(some[..], all[..10]);
    let mut out = KVec::new();
    let mut ask = |start, len, flags| ext4_fiemap(inode, start, len, flags, 1, &mut out);
    assert_eq!(ask(0, 0, FiemapFlags::empty()), Err(EINVAL));
    assert_eq!(ask(u64::MAX / 2, 1, FiemapFlags::empty()), Err(EFBIG));
    assert_eq!(ask(0, 1, FiemapFlags::from_bits_retain(0x80)), Err(EBADR));
    assert!(fiemap(inode, 0, u64::MAX, FiemapFlags::XATTR).is_empty());
    ext4_setxattr(inode, b"user.a", b"1", XattrSet::Any).expect("set");
    let inline = fiemap(inode, 0, u64::MAX, FiemapFlags::XATTR);
    assert!(inline[0].fe_flags.contains(FiemapExtentFlags::DATA_INLINE) && inline[0].fe_length == 256 - 160);
    drop(file);
    m.finish();
}

/// Readers that take no lock come and go all the time, and truncate gets through all the same (G21); none of them sees a block of
/// another file (G22).
#[test]
fn truncate_against_readers_without_lock() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let m = Mount::new(IN_FLIGHT);
    let stop = AtomicBool::new(false);
    let file = m.open("/data");
    let other = m.open("/holes");
    ext4_setattr_size(file.f_inode(), 0).expect("empty");
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let found = read(&file, 0, 16 * PAGE).expect("reading");
                    assert!(found.iter().all(|b| matches!(b, 0 | 1)), "a block of another file");
                }
            });
        }
        let (ones, twos) = (Pages::new(16 * PAGE, 1), Pages::new(16 * PAGE, 2));
        for _ in 0..60 {
            assert_eq!(write(&file, 0, ones.bytes()), Ok(16 * PAGE));
            ext4_setattr_size(file.f_inode(), 0).expect("truncate");
            // The blocks that were just freed, most of the time.
            assert_eq!(write(&other, 0, twos.bytes()), Ok(16 * PAGE));
            ext4_setattr_size(other.f_inode(), 0).expect("truncate");
        }
        stop.store(true, Ordering::Relaxed);
    });
    m.assert_idle(&file);
    drop((file, other));
    m.finish();
}

/// What `e2fsck` says of a crashed image, and what it makes of it.
fn repaired(bytes: &[u8], context: &str) -> (String, Vec<u8>) {
    let image = Image::from_bytes(bytes);
    let output = e2fsprogs("e2fsck").args(["-fy"]).arg(image.path()).output().expect("e2fsck");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // 1: the journal was replayed, or orphans were finished with.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{context}: {text}");
    image.assert_clean();
    (text, image.bytes())
}

/// A crash between the transaction that makes a file short and those that free its blocks: recovery, ours and that of
/// `e2fsck`, goes on with it.
#[test]
fn a_crash_in_the_middle_of_truncate() {
    for spec in kinds() {
        let bs = spec.block_size as usize;
        let m = Mount::with(&image(&spec), IN_FLIGHT, auto());
        let file = ext4_open(&m.sb, "/holes", OpenFlags::O_RDWR).expect("opening");
        let data = Pages::new(bs, 7);
        for block in 0..300 {
            assert_eq!(write(&file, (2 * block * bs) as i64, data.bytes()), Ok(bs));
        }
        ext4_sync_fs(&m.sb).expect("sync");
        let context = format!("bs {bs} {}", spec.features);
        let size = 100 * bs + bs / 2;
        let crashes = Arc::new(Mutex::new(Vec::new()));
        let tracing = on_trace({
            let (sb, disk, crashes) = (m.sb.clone(), m.disk.clone(), crashes.clone());
            move |name| {
                if name == "ext4_setattr: short" {
                    sb.s_fs_info().s_journal().expect("a journal").force_commit().expect("a commit");
                    crashes.lock().expect("no panic").push(disk.durable_image());
                }
            }
        });
        // And commits at any moment while the blocks go.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                for seed in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    m.sb.s_fs_info().s_journal().expect("a journal").force_commit().expect("a commit");
                    let crash = m.disk.crash(seed);
                    let mut crashes = crashes.lock().expect("no panic");
                    if crashes.len() < 8 {
                        crashes.push(crash);
                    }
                }
            });
            ext4_setattr_size(file.f_inode(), size as i64).expect("truncate");
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        drop(tracing);
        drop(file);
        let crashes = std::mem::take(&mut *crashes.lock().expect("no panic"));
        m.finish();
        let mut orphans = 0;
        for (n, crash) in crashes.iter().enumerate() {
            let context = format!("{context} crash {n}");
            let (said, bytes) = repaired(crash, &context);
            orphans += usize::from(said.contains("orphaned inode"));
            for bytes in [crash, &bytes] {
                let m = Mount::with(bytes, IN_FLIGHT, auto());
                let file = m.open("/holes");
                let found = file.f_inode().i_size() as usize;
                assert!(found == size || found == 599 * bs, "{context}: size {found}");
                let (bytes, keep) = (read(&file, 0, 600 * bs).expect("reading"), found.min(size));
                let good = |at: usize| if (at / bs).is_multiple_of(2) { 7 } else { 0 };
                assert!((0..keep).all(|at| bytes[at] == good(at)), "{context}");
                let last = fiemap(file.f_inode(), 0, u64::MAX, FiemapFlags::empty()).pop().expect("blocks");
                assert!(
                    (last.fe_logical + last.fe_length) as usize <= found.next_multiple_of(bs),
                    "{context}: {last:?}"
                );
                drop(file);
                m.finish();
            }
        }
        assert!(orphans > 0, "{context}: no crash came in the middle");
    }
}

/// Random operations, a crash, and what recovery makes of it: a clean file system, in which no file shows what was on the
/// disk before it.
#[test]
fn a_crash_at_any_moment() {
    const POISON: u8 = 0xd5;
    for (at, spec) in kinds().into_iter().enumerate() {
        let fresh = crate::buffered::poisoned(&spec, POISON);
        for seed in 0..3u64 {
            let bs = spec.block_size as usize;
            let context = format!("bs {bs} {} seed {seed}", spec.features);
            let m = Mount::with(&fresh, IN_FLIGHT, auto());
            let created = path_open(&m.sb, b"/f", OpenFlags::O_RDWR | OpenFlags::O_CREAT, 0o644, &Cred::default());
            drop(created.expect("creating"));
            let model = Model { bs, extents: spec.features.is_empty(), bytes: vec![], blocks: vec![] };
            let mut run = Run { m, path: "/f", model, rng: Rng(seed + 100 * at as u64 + 1), max: 40 * bs };
            ext4_sync_fs(&run.m.sb).expect("sync");
            for op in 0..25 {
                run.step(&format!("{context} op {op}"));
                if run.rng.index(4) == 0 {
                    run.m.sb.s_fs_info().s_journal().expect("a journal").force_commit().expect("a commit");
                }
            }
            let crash = run.m.disk.crash(seed);
            let (_, bytes) = repaired(&crash, &context);
            for bytes in [&crash, &bytes] {
                let m = Mount::with(bytes, IN_FLIGHT, auto());
                let file = ext4_open(&m.sb, "/f", OpenFlags::empty()).expect("opening");
                let found = read(&file, 0, 4 * run.max).expect("reading");
                let stale = found.iter().position(|b| *b == POISON);
                assert_eq!(stale, None, "{context}: a byte of what was there before");
                drop(file);
                m.finish();
            }
            run.m.finish();
        }
    }
}

/// While the gate is closed a read without lock waits for `i_mutex`, and the count is 0.
#[test]
fn the_gate_sends_readers_to_i_mutex() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let i_mutex = file.f_inode().lock();
    let gate = ext4_inode_block_unlocked_dio(&i_mutex);
    std::thread::scope(|s| {
        let reader = s.spawn(|| read(&file, 0, PAGE).map(|bytes| bytes.len()));
        for _ in 0..100 {
            i_mutex.inode_dio_wait();
            std::thread::yield_now();
        }
        assert!(!reader.is_finished(), "it went past the gate");
        drop(gate);
        i_mutex.unlock();
        assert_eq!(reader.join().expect("no panic"), Ok(PAGE));
    });
    drop(file);
    m.finish();
}
