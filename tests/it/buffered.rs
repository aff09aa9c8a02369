// SPDX-License-Identifier: GPL-2.0-only
//! Reads and writes through the page cache, against a model of bytes.

use std::sync::atomic::{AtomicBool, Ordering};

use ext4_dio::path::{Cred, path_open};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, ext4_sync_fs};
use ext4_dio_tests::dio::{self, *};
use ext4_dio_tests::images::{Image, Mkfs, stamped};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::code::*;
use kernel_shim::fs::{FileSystem, OpenFlags};

/// A generator of numbers, the same for the same seed.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
}

/// The kinds of file systems that the page cache has to be right on.
fn specs() -> Vec<Mkfs> {
    let mut specs = Vec::new();
    for block_size in [1024, 2048, 4096] {
        specs.push(Mkfs { block_size, ..Mkfs::default() });
        specs.push(Mkfs { fs_type: "ext3", block_size, ..Mkfs::default() });
    }
    specs.push(Mkfs { fs_type: "ext2", ..Mkfs::default() });
    specs
}

fn create(m: &Mount, path: &str) -> KArc<File> {
    let flags = OpenFlags::O_RDWR | OpenFlags::O_CREAT;
    path_open(&m.sb, path.as_bytes(), flags, 0o644, &Cred::default())
        .unwrap_or_else(|e| panic!("creating {path}: {e:?}"))
}

fn open(m: &Mount, path: &str, flags: OpenFlags) -> KArc<File> {
    path_open(&m.sb, path.as_bytes(), OpenFlags::O_RDWR | flags, 0, &Cred::default())
        .unwrap_or_else(|e| panic!("opening {path}: {e:?}"))
}

fn fsync(file: &File) -> kernel_shim::error::Result {
    ext4_dio::Ext4::fsync(file.f_inode(), 0, i64::MAX, false)
}

/// All of a file, and that it ends where it should.
fn contents(file: &KArc<File>, size: usize) -> Vec<u8> {
    let all = read(file, 0, size + 5000).expect("reading");
    assert_eq!(all.len(), size, "size");
    all
}

fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {:#x} and should be {:#x}", found[at], expected[at]);
    }
    assert_eq!(found.len(), expected.len(), "{what}: length");
}

#[derive(Default)]
struct Model(Vec<u8>);

impl Model {
    fn write(&mut self, pos: usize, bytes: &[u8]) {
        if self.0.len() < pos + bytes.len() {
            self.0.resize(pos + bytes.len(), 0);
        }
        self.0[pos..pos + bytes.len()].copy_from_slice(bytes);
    }
}

/// One random operation on file and model.
fn step(rng: &mut Rng, m: &Mount, file: &KArc<File>, direct: &KArc<File>, model: &mut Model) {
    const END: u64 = 300_000;
    let fill = (rng.below(255) + 1) as u8;
    match rng.below(20) {
        0..=9 => {
            let most = if rng.below(4) == 0 { 70_000 } else { 3000 };
            let (pos, len) = (rng.below(END), 1 + rng.below(most));
            let bytes = vec![fill; len as usize];
            assert_eq!(write(file, pos as i64, &bytes), Ok(bytes.len()), "write {pos}+{len}");
            model.write(pos as usize, &bytes);
        }
        10..=13 => {
            let (pos, len) = (rng.below(END), 1 + rng.below(60_000));
            let found = read(file, pos as i64, len as usize).expect("reading");
            let from = (pos as usize).min(model.0.len());
            let to = (from + len as usize).min(model.0.len());
            assert_same(&found, &model.0[from..to], &format!("read {pos}+{len}"));
        }
        14 => {
            // Direct reads see what is cached, and direct overwrites are seen.
            let pages = (model.0.len() / 4096) as u64;
            if pages > 0 {
                let at = rng.below(pages) as usize * 4096;
                let found = read(direct, at as i64, 4096).expect("reading directly");
                assert_same(&found, &model.0[at..at + 4096], &format!("direct read at {at}"));
            }
        }
        15 => {
            let pages = (model.0.len() / 4096) as u64;
            if pages > 0 {
                let at = rng.below(pages) as usize * 4096;
                let bytes = Pages::new(4096, fill);
                match write(direct, at as i64, bytes.bytes()) {
                    Ok(n) => {
                        assert_eq!(n, 4096, "direct write at {at}");
                        model.write(at, bytes.bytes());
                    }
                    Err(e) => panic!("direct write at {at}: {e:?}"),
                }
            }
        }
        16 => {
            let size = rng.below(END);
            ext4_setattr_size(file.f_inode(), size as i64).unwrap_or_else(|e| panic!("truncate to {size}: {e:?}"));
            model.0.resize(size as usize, 0);
        }
        17 => fsync(file).expect("fsync"),
        18 => ext4_sync_fs(&m.sb).expect("sync"),
        _ => {
            // As if there were no memory.
            file.f_inode().i_mapping().shrink(usize::MAX);
            file.f_inode().i_mapping().shrink(usize::MAX);
        }
    }
}

fn random_operations(seed: u64, spec: &Mkfs) {
    let m = Mount::with(&dio::image(spec), IN_FLIGHT, auto());
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    let file = create(&m, "/random");
    let direct = open(&m, "/random", OpenFlags::O_DIRECT);
    for _ in 0..150 {
        step(&mut rng, &m, &file, &direct, &mut model);
    }
    let expected = model.0;
    assert_same(&contents(&file, expected.len()), &expected, "at the end");
    drop((file, direct));
    let image = m.finish();
    let m = Mount::with(&image, IN_FLIGHT, auto());
    let file = open(&m, "/random", OpenFlags::empty());
    assert_same(&contents(&file, expected.len()), &expected, "mounted again");
    drop(file);
    m.finish();
}

#[test]
fn random_operations_match_a_model() {
    for spec in specs() {
        for seed in 0..2 {
            println!("{spec:?} seed {seed}");
            random_operations(seed, &spec);
        }
    }
}

/// The simplest: written, read, synced, mounted again.
#[test]
fn what_is_written_is_there_after_a_mount() {
    for spec in specs() {
        println!("{spec:?}");
        let m = Mount::with(&dio::image(&spec), IN_FLIGHT, auto());
        let file = create(&m, "/new");
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8 + 1).collect();
        assert_eq!(write(&file, 0, &bytes), Ok(bytes.len()));
        assert_same(&contents(&file, bytes.len()), &bytes, "cached");
        fsync(&file).expect("fsync");
        assert_eq!(file.f_inode().i_mapping().nrdirty(), 0);
        drop(file);
        let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
        let file = open(&m, "/new", OpenFlags::empty());
        assert_same(&contents(&file, bytes.len()), &bytes, "mounted again");
        drop(file);
        m.finish();
    }
}

/// What is behind the old end in its block is nobody's data when the file grows over it.
#[test]
fn growing_over_the_old_end_reads_zeros() {
    for spec in specs() {
        let m = Mount::with(&dio::image(&spec), IN_FLIGHT, auto());
        let file = create(&m, "/gap");
        assert_eq!(write(&file, 0, &[7; 5000]), Ok(5000));
        ext4_setattr_size(file.f_inode(), 100).expect("truncate");
        fsync(&file).expect("fsync");
        assert_eq!(write(&file, 9000, &[9; 10]), Ok(10));
        let mut expected = vec![7; 100];
        expected.resize(9000, 0);
        expected.extend([9; 10]);
        assert_same(&contents(&file, 9010), &expected, "cached");
        drop(file);
        let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
        let file = open(&m, "/gap", OpenFlags::empty());
        assert_same(&contents(&file, 9010), &expected, "mounted again");
        drop(file);
        m.finish();
    }
}

/// A file grows within a written block whose end a truncation has zeroed: the journal's commit writes the page, and the size
/// on disk must not stay behind for want of anything dirty.
#[test]
fn what_a_commit_writes_back_is_not_past_the_size_on_disk() {
    for spec in specs() {
        let m = Mount::with(&dio::image(&spec), IN_FLIGHT, auto());
        let file = create(&m, "/grows");
        assert_eq!(write(&file, 0, &[7; 12288]), Ok(12288));
        fsync(&file).expect("fsync");
        ext4_setattr_size(file.f_inode(), 8200).expect("truncate");
        assert_eq!(write(&file, 8000, &[9; 900]), Ok(900));
        let mut expected = vec![7; 8000];
        expected.extend([9; 900]);
        // Commits, and so writes what is ordered before.
        let other = create(&m, "/other");
        fsync(&other).expect("fsync");
        fsync(&file).expect("fsync");
        let crashed = m.after_crash();
        let found = open(&crashed, "/grows", OpenFlags::empty());
        assert_same(&contents(&found, 8900), &expected, "after a power failure");
        drop(found);
        crashed.finish();
        drop((file, other));
        let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
        let file = open(&m, "/grows", OpenFlags::empty());
        assert_same(&contents(&file, 8900), &expected, "mounted again");
        drop(file);
        m.finish();
    }
}

/// O_APPEND goes to the end, O_SYNC is on the disk when it returns.
#[test]
fn append_and_sync() {
    let m = Mount::new(IN_FLIGHT);
    let file = create(&m, "/log");
    let append = open(&m, "/log", OpenFlags::O_APPEND | OpenFlags::O_SYNC);
    let mut expected = Vec::new();
    for n in 0..20u8 {
        let line = vec![n + 1; 700];
        assert_eq!(write(&append, 0, &line), Ok(700));
        assert_eq!(file.f_inode().i_mapping().nrdirty(), 0, "O_SYNC");
        expected.extend(line);
    }
    assert_same(&contents(&file, expected.len()), &expected, "appended");
    let durable = m.disk.durable_image();
    assert!(durable.windows(700).any(|w| w == &[20u8; 700][..]), "O_SYNC, and not durable");
    drop((file, append));
    m.finish();
}

/// A direct write drops what is cached, and a dirty page beside it stays; a buffered write after it is not lost.
#[test]
fn direct_writes_beside_dirty_pages() {
    let m = Mount::new(IN_FLIGHT);
    let buffered = open(&m, "/data", OpenFlags::empty());
    let direct = open(&m, "/data", OpenFlags::O_DIRECT);
    assert_eq!(write(&buffered, 0, &[1; 16384]), Ok(16384));
    assert_eq!(write(&direct, 4096, Pages::new(8192, 2).bytes()), Ok(8192));
    let mut expected = vec![1; 4096];
    expected.extend([2; 8192]);
    expected.extend([1; 4096]);
    assert_same(&read(&buffered, 0, 16384).expect("reading"), &expected, "buffered");
    assert_same(&read(&direct, 0, 16384).expect("reading"), &expected, "direct");
    assert_eq!(write(&buffered, 5000, &[3; 100]), Ok(100));
    expected[5000..5100].fill(3);
    assert_same(&read(&direct, 0, 16384).expect("reading"), &expected, "direct read after a buffered write");
    m.assert_idle(&buffered);
    drop((buffered, direct));
    m.finish();
}

/// G12: a buffered write waits for direct I/O in flight.
#[test]
fn g12_buffered_writes_wait_for_direct_ones() {
    let m = Mount::new(IN_FLIGHT);
    let direct = open(&m, "/data", OpenFlags::O_DIRECT);
    assert_eq!(read(&direct, 0, 4096).map(|b| b.len()), Ok(4096));
    let told = Listener::new();
    m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
    assert_eq!(write_async(&direct, 0, leaked(4096, 0x12), &told, 0), Err(EIOCBQUEUED));
    let buffered = open(&m, "/data", OpenFlags::empty());
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            assert_eq!(write(&buffered, 100, &[0x21; 100]), Ok(100));
            assert_eq!(m.disk.in_flight(), 0, "the direct write was still in flight");
            done.store(true, Ordering::SeqCst);
        });
        while !direct.f_inode().is_locked() {
            std::thread::yield_now();
        }
        assert!(!done.load(Ordering::SeqCst));
        m.disk.release();
    });
    let mut expected = vec![0x12; 4096];
    expected[100..200].fill(0x21);
    assert_same(&read(&buffered, 0, 4096).expect("reading"), &expected, "both");
    assert_same(&read(&direct, 0, 4096).expect("reading"), &expected, "both, directly");
    drop((buffered, direct, told));
    m.finish();
}

/// A full disk: what was written is reported, what was not is not there, and nothing is left allocated past the end.
#[test]
fn enospc_midway() {
    for fs_type in ["ext4", "ext2"] {
        let spec = Mkfs { fs_type, size_kib: 4 << 10, inodes: 64, ..Mkfs::default() };
        let m = Mount::with(&dio::image(&spec), IN_FLIGHT, auto());
        let file = create(&m, "/full");
        let bytes: Vec<u8> = (0..6u32 << 20).map(|n| (n / 4096 % 255) as u8 + 1).collect();
        let mut written = 0;
        let error = loop {
            match write(&file, written as i64, &bytes[written..]) {
                Ok(n) => written += n,
                Err(e) => break e,
            }
        };
        assert_eq!(error, ENOSPC);
        assert!(written > 100 << 10 && written < 4 << 20, "{written}");
        assert_same(&contents(&file, written), &bytes[..written], fs_type);
        fsync(&file).expect("fsync");
        drop(file);
        let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
        let file = open(&m, "/full", OpenFlags::empty());
        assert_same(&contents(&file, written), &bytes[..written], "mounted again");
        drop(file);
        m.finish();
    }
}

/// Data that cannot be written: the next fsync says so, once; the cache still has it, and the file system is whole.
#[test]
fn errors_of_writing_back_are_told_by_fsync() {
    let m = Mount::new(IN_FLIGHT);
    let file = create(&m, "/bad");
    assert_eq!(write(&file, 0, &[5; 40_000]), Ok(40_000));
    m.faults.fail_nth(1, OpMask::WRITE | OpMask::NOT_META);
    // Written again piece by piece: the fault is gone by then.
    assert_eq!(fsync(&file), Ok(()));
    assert_eq!(write(&file, 0, &[6; 40_000]), Ok(40_000));
    m.faults.fail_sectors(0..u64::MAX, OpMask::WRITE | OpMask::NOT_META);
    assert_eq!(fsync(&file), Err(EIO));
    m.faults.repair();
    assert_eq!(fsync(&file), Ok(()), "told once");
    assert_same(&contents(&file, 40_000), &[6; 40_000], "cached");
    // Whoever syncs all files is told, too: it may be somebody else.
    assert_eq!(ext4_dio::ext4_sync_fs(&m.sb), Err(EIO));
    assert_eq!(ext4_dio::ext4_sync_fs(&m.sb), Ok(()), "told once");
    drop(file);
    m.finish();
}

/// Nobody sees half of what another writes into one page, and all arrive.
#[test]
fn parallel_writers_and_readers() {
    const PARTS: usize = 8;
    for spec in [Mkfs::default(), Mkfs { block_size: 1024, ..Mkfs::default() }] {
        let m = Mount::with(&dio::image(&spec), IN_FLIGHT, auto());
        let file = create(&m, "/shared");
        assert_eq!(write(&file, 0, &[0; PARTS * 10_000]), Ok(PARTS * 10_000));
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            let writers: Vec<_> = (0..PARTS)
                .map(|part| {
                    let file = &file;
                    s.spawn(move || {
                        let mut rng = Rng::new(part as u64 + 1);
                        for n in 1..40u8 {
                            assert_eq!(write(file, (part * 10_000) as i64, &[n; 10_000]), Ok(10_000));
                            match rng.below(6) {
                                0 => fsync(file).expect("fsync"),
                                1 => drop(file.f_inode().i_mapping().shrink(usize::MAX)),
                                _ => {}
                            }
                        }
                    })
                })
                .collect();
            s.spawn(|| {
                let mut last = [0u8; PARTS];
                while !stop.load(Ordering::Relaxed) {
                    for (part, last) in last.iter_mut().enumerate() {
                        let bytes = read(&file, (part * 10_000) as i64 + 4096, 1).expect("reading");
                        assert!(bytes[0] >= *last, "part {part} goes back");
                        *last = bytes[0];
                    }
                }
            });
            let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
            stop.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|r| r.expect("a writer"));
        });
        assert_same(&contents(&file, PARTS * 10_000), &[39; PARTS * 10_000], "at the end");
        drop(file);
        m.finish();
    }
}

/// More than the cache keeps: dirty pages are written, clean ones dropped.
#[test]
fn files_larger_than_the_cache() {
    let spec = Mkfs { size_kib: 112 << 10, ..Mkfs::default() };
    let m = Mount::with(&Image::make(&spec, None).bytes(), IN_FLIGHT, auto());
    let file = create(&m, "/large");
    let block: Vec<u8> = (0..256).flat_map(|n| stamped(n, 4096)).collect();
    for n in 0..80 {
        assert_eq!(write(&file, n << 20, &block), Ok(1 << 20));
        assert!(file.f_inode().i_mapping().nrdirty() <= 4200);
    }
    for n in (0..80).rev() {
        assert!(read(&file, n << 20, 1 << 20).expect("reading") == block, "MiB {n}");
        assert!(file.f_inode().i_mapping().nrpages() < 17_000);
    }
    drop(file);
    m.finish();
}

/// A file system all of whose free blocks are full of `poison`.
pub(crate) fn poisoned(spec: &Mkfs, poison: u8) -> Vec<u8> {
    let image = Image::make(spec, None);
    let dump = image.debugfs("stats -h");
    let field = |name: &str| -> usize {
        dump.lines()
            .find_map(|l| l.strip_prefix(name))
            .and_then(|v| v.trim().parse().ok())
            .unwrap_or_else(|| panic!("{name} in {dump}"))
    };
    let blocks = field("Block count:");
    let bs = spec.block_size as usize;
    let mut bytes = image.bytes();
    let free = image.debugfs(&format!("ffb {} 0", field("Free blocks:")));
    let mut poisoned = 0;
    for block in free.split_whitespace().filter_map(|w| w.parse::<usize>().ok()).filter(|b| *b < blocks) {
        bytes[block * bs..(block + 1) * bs].fill(poison);
        poisoned += 1;
    }
    assert!(poisoned > blocks / 2, "only {poisoned} of {blocks} free: {free}");
    bytes
}
