// SPDX-License-Identifier: GPL-2.0-only
//! Direct writes of every kind: into holes and unwritten blocks, past the end, appending, unaligned, asynchronous, without sleeping,
//! polled, on disks that are full or fail.

use std::sync::atomic::Ordering;

use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::{File, Kiocb};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, stamped_blocks};
use ext4_dio_tests::oplang::Rng;
use kernel_shim::alloc::Arc;
use kernel_shim::block::ramdisk::{Event, OpMask, RamDiskOptions};
use kernel_shim::block::{QueueLimits, ReqOp, ReqOpf};
use kernel_shim::error::{Error, Result, code::*};
use kernel_shim::fs::{IoVec, IovIter, OpenFlags, RwfFlags};

/// What a fresh disk holds where nobody has written: must never be seen in a file.
const POISON: u8 = 0xdb;

/// A small file system with `/data` of so many written blocks, and poison in every free block.
fn poisoned(block_size: u32, features: &'static str, size_kib: u64) -> Vec<u8> {
    let spec = Mkfs { block_size, features, size_kib, inodes: 64, ..Mkfs::default() };
    let source = ext4_dio_tests::images::Source::new();
    source.file("data", &stamped_blocks(4, block_size));
    let image = Image::make(&spec, Some(source.path()));
    let mut bytes = image.bytes();
    for (first, last) in free_blocks(&image) {
        bytes[first * block_size as usize..(last + 1) * block_size as usize].fill(POISON);
    }
    bytes
}

/// The ranges that `dumpe2fs` says are free.
fn free_blocks(image: &Image) -> Vec<(usize, usize)> {
    let out = ext4_dio_tests::images::e2fsprogs("dumpe2fs").arg(image.path()).output().expect("dumpe2fs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut ranges = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("  Free blocks: ")) {
        for range in line.split(", ").filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            ranges.push((first.parse().expect("a block"), last.parse().expect("a block")));
        }
    }
    assert!(!ranges.is_empty(), "{text}");
    ranges
}

fn seed() -> u64 {
    std::env::var("EXT4_DIO_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_0001)
}

/// The model: a file's bytes.
fn put(model: &mut Vec<u8>, pos: usize, bytes: &[u8]) {
    let end = pos + bytes.len();
    if model.len() < end {
        model.resize(end, 0);
    }
    model[pos..end].copy_from_slice(bytes);
}

/// Waits for an asynchronous write that was begun.
fn finish(ret: Result<usize>, told: &Arc<Listener>, nth: usize) -> Result<usize> {
    match ret {
        Err(EIOCBQUEUED) => told.wait(nth)[nth - 1].1,
        ret => ret,
    }
}

fn assert_same(file: &Arc<File>, model: &[u8], what: &str) {
    assert_eq!(file.f_inode().i_size(), model.len() as i64, "{what}: size");
    let found = read(file, 0, model.len().next_multiple_of(4096)).expect("reading");
    if let Some(at) = (0..model.len()).find(|at| found.get(*at) != Some(&model[*at])) {
        panic!("{what}: byte {at} is {:#x}, not {:#x}", found[at], model[at]);
    }
}

/// Writes of 512 bytes and multiples anywhere in and behind the file, synchronous and not, against a model in memory.
#[test]
fn random_writes_are_where_they_were_put() {
    let seed = seed();
    for block_size in [1024, 2048, 4096] {
        for features in ["", "^has_journal", "^extent,^64bit"] {
            let image = poisoned(block_size, features, 16 << 10);
            for mode in MODES {
                let what = format!("EXT4_DIO_SEED={seed} {block_size} {features:?} {mode}");
                let mut rng = Rng(seed);
                let m = Mount::with(&image, mode, auto());
                let file = m.open("/data");
                let mut model = stamped_blocks(4, block_size);
                for n in 0..120u32 {
                    let unit = if rng.below(2) == 0 { 512 } else { u64::from(block_size) };
                    let pos = rng.below((256 << 10) / unit) * unit;
                    let len = ((rng.below(if n % 8 == 0 { 80 } else { 8 }) + 1) * unit) as usize;
                    let fill = n as u8 | 1;
                    let ret = if rng.below(2) == 0 {
                        write(&file, pos as i64, Pages::new(len, fill).bytes())
                    } else {
                        let told = Listener::new();
                        finish(write_async(&file, pos as i64, leaked(len, fill), &told, 0), &told, 1)
                    };
                    assert_eq!(ret, Ok(len), "{what}: write {n} at {pos}");
                    put(&mut model, pos as usize, &vec![fill; len]);
                    if n % 10 == 0 {
                        assert_same(&file, &model, &format!("{what}: after write {n} at {pos}+{len}"));
                    }
                }
                assert_same(&file, &model, &what);
                m.assert_idle(&file);
                drop(file);
                let m = Mount::with(&m.finish(), mode, auto());
                let file = m.open("/data");
                assert_same(&file, &model, &format!("{what}: mounted again"));
                drop(file);
                m.finish();
            }
        }
    }
}

/// Many asynchronous writes at once, into holes and past the end, each block its own; ends in any order.
#[test]
fn asynchronous_writes_fill_a_file() {
    for mode in MODES {
        let m = Mount::with(&poisoned(4096, "", 16 << 10), mode, auto());
        let file = m.open("/data");
        let told = Listener::new();
        let mut queued = 0;
        let mut order: Vec<usize> = (0..256).collect();
        let mut rng = Rng(seed());
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i as u64 + 1) as usize);
        }
        for &n in &order {
            match write_async(&file, (n << 12) as i64, leaked(4096, n as u8), &told, n) {
                Err(EIOCBQUEUED) => queued += 1,
                ret => assert_eq!(ret, Ok(4096), "{mode}"),
            }
        }
        for (tag, ret) in told.wait(queued) {
            assert_eq!(ret, Ok(4096), "{mode}: write {tag}");
        }
        m.assert_idle(&file);
        let model: Vec<u8> = (0..256).flat_map(|n| [n as u8; 4096]).collect();
        assert_same(&file, &model, mode);
        drop((file, told));
        m.finish();
    }
}

/// O_APPEND from several writers: each block is there once, and nothing between them.
#[test]
fn appends_do_not_overlap() {
    for mode in MODES {
        let m = Mount::with(&poisoned(4096, "", 16 << 10), mode, auto());
        let file = m.open_with("/data", OpenFlags::O_APPEND);
        std::thread::scope(|s| {
            for writer in 0..4u8 {
                let file = &file;
                s.spawn(move || {
                    for n in 0..32 {
                        let page = Pages::new(4096, 1 + writer * 32 + n);
                        assert_eq!(write(file, 0, page.bytes()), Ok(4096));
                    }
                });
            }
        });
        assert_eq!(file.f_inode().i_size(), (4 + 4 * 32) << 12, "{mode}");
        let all = read(&file, 4 << 12, 128 << 12).expect("reading");
        let mut seen: Vec<u8> = all
            .chunks(4096)
            .map(|block| {
                assert!(block.iter().all(|byte| *byte == block[0]), "{mode}: a torn block");
                block[0]
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=128).collect::<Vec<u8>>(), "{mode}");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// Two appends in the device at once, the second ends first: the size goes to its end, what the first has not written yet reads as
/// zeros, and the size does not move back.
#[test]
fn the_end_only_moves_outwards() {
    let m = Mount::with(&poisoned(4096, "", 16 << 10), IN_FLIGHT, auto());
    let file = m.open("/data");
    m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
    let release = LetGo(|| m.disk.release());
    let told = Listener::new();
    for n in 0..2 {
        let ret = write_async(&file, (4 + n) << 12, leaked(4096, 7 + n as u8), &told, n as usize);
        assert_eq!(ret, Err(EIOCBQUEUED));
    }
    assert_eq!(file.f_inode().i_size(), 4 << 12);
    let data = |event: &&Event| event.opf.op() == ReqOp::Write && !event.opf.contains(ReqOpf::META);
    let pending = m.disk.pending();
    let writes: Vec<u64> = pending.iter().filter(data).map(|event| event.id).collect();
    assert_eq!(writes.len(), 2, "both are in the device");
    assert!(m.disk.complete(writes[1]));
    assert_eq!(told.wait(1), [(1, Ok(4096))]);
    assert_eq!(file.f_inode().i_size(), 6 << 12);
    assert_eq!(read(&file, 5 << 12, 4096), Ok(vec![8; 4096]));
    assert_eq!(read(&file, 4 << 12, 4096), Ok(vec![0; 4096]), "what is not written yet reads as something");
    m.disk.release();
    assert_eq!(told.wait(2)[1], (0, Ok(4096)));
    assert_eq!(file.f_inode().i_size(), 6 << 12);
    assert_eq!(read(&file, 4 << 12, 4096), Ok(vec![7; 4096]));
    m.assert_idle(&file);
    drop((file, told));
    drop(release);
    m.finish();
}

/// A full disk: what is reported written is there, nothing else shows, and the next write says ENOSPC.
#[test]
fn a_disk_that_runs_full() {
    for block_size in [1024, 4096] {
        for mode in MODES {
            let m = Mount::with(&poisoned(block_size, "^has_journal", 1024), mode, auto());
            let file = m.open("/data");
            let len = 64 << 10;
            let mut size = 4 * block_size as usize;
            let mut full = false;
            for n in 0..64u8 {
                match write(&file, size as i64, Pages::new(len, n | 1).bytes()) {
                    Ok(done) => {
                        assert!(!full || done == 0, "{mode}: room again");
                        assert_eq!(file.f_inode().i_size(), (size + done) as i64, "{mode}");
                        let found = read(&file, size as i64, done).expect("reading");
                        assert!(found.iter().all(|byte| *byte == n | 1), "{mode}: something else shows");
                        size += done;
                    }
                    Err(e) => {
                        assert_eq!(e, ENOSPC, "{mode}");
                        full = true;
                        break;
                    }
                }
            }
            assert!(full, "the disk is larger than thought");
            assert_eq!(file.f_inode().i_size(), size as i64);
            m.assert_idle(&file);
            drop(file);
            m.finish();
        }
    }
}

/// A write fails in the device: its blocks read as zeros, and if it was past the end the file is as long as before.
#[test]
fn a_failed_write_shows_nothing() {
    for mode in MODES {
        for (pos, asynchronous) in [(1 << 20, false), (1 << 20, true), (4 << 12, false), (4 << 12, true)] {
            let m = Mount::with(&poisoned(4096, "", 16 << 10), mode, auto());
            let file = m.open("/data");
            let before = file.f_inode().i_private().i_blocks.load(Ordering::Relaxed);
            m.faults.fail_nth(1, OpMask::WRITE | OpMask::NOT_META);
            let ret = if asynchronous {
                let told = Listener::new();
                finish(write_async(&file, pos, leaked(4096, 1), &told, 0), &told, 1)
            } else {
                write(&file, pos, Pages::new(4096, 1).bytes())
            };
            assert_eq!(ret, Err(EIO), "{mode} {pos} {asynchronous}");
            m.faults.repair();
            m.sb.drain_direct_io();
            m.sb.s_fs_info().dio.drain_trims();
            assert_eq!(file.f_inode().i_size(), 4 << 12, "{mode} {pos} {asynchronous}");
            let after = file.f_inode().i_private().i_blocks.load(Ordering::Relaxed);
            assert_eq!(after, before, "{mode} {pos} {asynchronous}: blocks are left past the end");
            // The file grows over the place, which shows nothing.
            assert_eq!(write(&file, 2 << 20, Pages::new(4096, 2).bytes()), Ok(4096));
            assert_eq!(read(&file, pos, 4096), Ok(vec![0; 4096]), "{mode}");
            m.assert_idle(&file);
            drop(file);
            m.finish();
        }
    }
}

/// NOWAIT: EAGAIN for all that would sleep, and then nothing has changed; what need not sleep is done.
#[test]
fn nowait() {
    let nowait = |file: &Arc<File>, pos: i64, flags: RwfFlags| -> Result<usize> {
        let page = Pages::new(4096, 0x77);
        let iov = [IoVec::source(page.bytes())];
        let mut iocb = Kiocb::new_sync(file, pos);
        iocb.kiocb_set_rw_flags(RwfFlags::NOWAIT | flags).expect("known flags");
        ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
    };
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        assert_eq!(nowait(&file, 0, RwfFlags::empty()), Err(EAGAIN), "{mode}: attributes to be read");
        assert_eq!(write(&file, 0, Pages::new(4096, 0x76).bytes()), Ok(4096), "{mode}");
        assert_eq!(nowait(&file, 0, RwfFlags::empty()), Ok(4096), "{mode}");
        assert_eq!(nowait(&file, i64::from(DATA_BLOCKS) << 12, RwfFlags::empty()), Err(EAGAIN), "{mode}: extending");
        assert_eq!(nowait(&file, 0, RwfFlags::APPEND), Err(EAGAIN), "{mode}: appending");
        assert_eq!(nowait(&m.open("/holes"), 4096, RwfFlags::empty()), Err(EAGAIN), "{mode}: a hole");
        assert_eq!(nowait(&m.open("/unwritten"), 0, RwfFlags::empty()), Err(EAGAIN), "{mode}: unwritten");
        let i_mutex = file.f_inode().lock();
        assert_eq!(nowait(&file, 0, RwfFlags::empty()), Err(EAGAIN), "{mode}: i_mutex");
        i_mutex.unlock();
        // A write that somebody with i_mutex waits for does not wait for i_mutex.
        m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
        let told = Listener::new();
        std::thread::scope(|s| {
            // SAFETY: the memory is never freed.
            let mut iocb = unsafe { Kiocb::new_async(&file, 4096, told.clone(), 5) };
            iocb.kiocb_set_rw_flags(RwfFlags::NOWAIT).expect("known flags");
            let iov = [IoVec::source(leaked(4096, 0x78))];
            assert_eq!(ext4_file_write(&mut iocb, &mut IovIter::new(&iov)), Err(EIOCBQUEUED), "{mode}");
            let waiter = s.spawn(|| {
                let i_mutex = file.f_inode().lock();
                i_mutex.inode_dio_wait();
                i_mutex.unlock();
            });
            m.disk.release();
            waiter.join().expect("the waiter");
        });
        assert_eq!(told.wait(1), [(5, Ok(4096))], "{mode}");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

#[test]
fn flags_of_one_call() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let page = Pages::new(4096, 0x66);
    let iov = [IoVec::source(page.bytes())];
    let write = |flags| -> Result<usize> {
        let mut iocb = Kiocb::new_sync(&file, 0);
        iocb.kiocb_set_rw_flags(flags)?;
        ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
    };
    assert_eq!(write(RwfFlags::HIPRI), Ok(4096), "polled");
    assert_eq!(write(RwfFlags::from_bits_retain(0x8000)), Err(EOPNOTSUPP));
    m.disk.start_log();
    assert_eq!(write(RwfFlags::empty()), Ok(4096));
    assert_eq!(flushes(&m), 0);
    m.disk.start_log();
    assert_eq!(write(RwfFlags::DSYNC), Ok(4096));
    assert!(flushes(&m) > 0, "RWF_DSYNC does not flush");
    assert_eq!(write(RwfFlags::APPEND), Ok(4096));
    assert_eq!(file.f_inode().i_size(), i64::from(DATA_BLOCKS + 1) << 12);
    let mut memory = Pages::new(4096, 0);
    let iov = [IoVec::dest(memory.bytes_mut())];
    let mut iocb = Kiocb::new_sync(&file, 0);
    iocb.kiocb_set_rw_flags(RwfFlags::HIPRI | RwfFlags::NOWAIT).expect("known flags");
    assert_eq!(ext4_file_read(&mut iocb, &mut IovIter::new(&iov)), Ok(4096));
    drop(iocb);
    assert_eq!(memory.bytes(), page.bytes());
    drop(file);
    m.finish();
}

/// O_DSYNC of an overwrite: written through where the device can, without a flush; a write that changes the map is committed.
#[test]
fn fua_where_it_suffices() {
    let limits = QueueLimits { fua: true, ..RamDiskOptions::default().limits };
    for asynchronous in [false, true] {
        let disk = RamDiskOptions { limits: limits.clone(), ..RamDiskOptions::default() };
        let m = Mount::with(&image(&Mkfs::default()), IN_FLIGHT, disk);
        let file = m.open_with("/data", OpenFlags::O_DSYNC);
        let write = |pos: i64, fill: u8| {
            if asynchronous {
                let told = Listener::new();
                finish(write_async(&file, pos, leaked(4096, fill), &told, 0), &told, 1)
            } else {
                write(&file, pos, Pages::new(4096, fill).bytes())
            }
        };
        m.disk.start_log();
        assert_eq!(write(0, 9), Ok(4096));
        assert_eq!(flushes(&m), 0, "asynchronous {asynchronous}: a flush");
        let durable = Mount::with(&m.disk.durable_image(), "ro,noload", auto());
        assert_eq!(read(&open_ro(&durable, "/data"), 0, 4096), Ok(vec![9; 4096]), "asynchronous {asynchronous}");
        assert_eq!(write(i64::from(DATA_BLOCKS) << 12, 10), Ok(4096));
        let durable = Mount::with(&m.disk.durable_image(), "", auto());
        assert_eq!(open_ro(&durable, "/data").f_inode().i_size(), i64::from(DATA_BLOCKS + 1) << 12);
        drop(file);
        m.finish();
    }
}

/// Flushes since the log was started.
fn flushes(m: &Mount) -> usize {
    m.disk.take_log().iter().filter(|event| !event.done && event.opf.op() == ReqOp::Flush).count()
}

fn open_ro(m: &Mount, path: &str) -> Arc<File> {
    ext4_dio::ext4_open(&m.sb, path, OpenFlags::O_DIRECT).unwrap_or_else(|e: Error| panic!("{path}: {e:?}"))
}
