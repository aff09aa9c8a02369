// SPDX-License-Identifier: GPL-2.0-only
//! What the patch is for: many overwrites of one file in the device at once, and nothing lost.

use std::sync::Mutex;

use ext4_dio::Kiocb;
use ext4_dio::file::ext4_file_write;
use ext4_dio_protocol::{STAMP_LEN, Stamp};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, Source, stamped};
use kernel_shim::block::ramdisk::{Mode, OpMask, RamDiskOptions};
use kernel_shim::error::code::*;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};

/// No write completes before two are in the device: passes only if both can be.
#[test]
fn two_overwrites_are_in_the_device_at_once() {
    for mode in [I_DATA_SEM, IN_FLIGHT] {
        let m = Mount::new(mode);
        let file = m.open("/data");
        m.disk.barrier(2);
        std::thread::scope(|s| {
            for n in 0..2 {
                let file = &file;
                s.spawn(move || assert_eq!(write(file, n << 12, Pages::new(4096, n as u8).bytes()), Ok(4096)));
            }
        });
        assert!(!m.disk.is_held(), "{mode}: they did not meet");
        assert!(m.disk.stats().max_in_flight >= 2, "{mode}");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// Two writers, many writes each. Unless `alone`, none of the first ones completes before both are in the device.
fn assert_most_at_once(m: &Mount, path: &str, alone: bool) {
    let file = m.open(path);
    if !alone {
        m.disk.barrier(2);
    }
    std::thread::scope(|s| {
        for n in 0..2 {
            let file = &file;
            s.spawn(move || {
                let page = Pages::new(4096, n as u8);
                for i in 0..40 {
                    assert_eq!(write(file, (2 * i + n) << 12, page.bytes()), Ok(4096));
                }
            });
        }
    });
    m.assert_idle(&file);
    assert!(!m.disk.is_held(), "they did not meet");
    assert_eq!(m.disk.stats().max_in_flight == 1, alone);
}

/// While one write is in the device, `i_mutex` is held: the second cannot even begin.
fn assert_alone(m: &Mount, path: &str) {
    let file = m.open(path);
    m.disk.hold(OpMask::WRITE);
    std::thread::scope(|s| {
        let writer = s.spawn(|| write(&file, 0, Pages::new(4096, 1).bytes()));
        m.disk.wait_in_flight(1);
        assert!(file.f_inode().try_lock().is_none(), "i_mutex is free during the write");
        m.disk.release();
        assert_eq!(writer.join().expect("the writer"), Ok(4096));
    });
    m.assert_idle(&file);
}

#[test]
fn in_exclusive_mode_they_are_not() {
    let m = Mount::new(EXCLUSIVE);
    assert_alone(&m, "/data");
    assert_most_at_once(&m, "/data", true);
    m.finish();
}

/// The patch keeps the lock if the file has any page in the cache. By default only pages in the way of the write matter, and they go.
#[test]
fn with_a_cached_page() {
    for (mode, alone) in [(I_DATA_SEM, true), (IN_FLIGHT, false)] {
        let m = Mount::new(mode);
        let reader = m.open("/data");
        reader.set_flags(OpenFlags::empty()).expect("fcntl");
        // A page that no write touches, so that it stays.
        let last = (i64::from(DATA_BLOCKS) - 1) << 12;
        assert_eq!(read(&reader, last, 4096).as_deref(), Ok(&stamped(DATA_BLOCKS - 1, 4096)[..]));
        if alone {
            assert_alone(&m, "/data");
        }
        assert_most_at_once(&m, "/data", alone);
        assert_eq!(m.modes().1 + m.modes().2 == 0, alone, "{mode}");
        drop(reader);
        m.finish();
    }
}

/// Into blocks that hold no data, into holes and past the end: `i_mutex` is free meanwhile by default, and held as in C before.
#[test]
fn writes_that_change_the_map() {
    for mode in MODES {
        for (path, pos) in [("/unwritten", 0), ("/holes", 4096), ("/data", i64::from(DATA_BLOCKS) << 12)] {
            let m = Mount::new(mode);
            let file = m.open(path);
            m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
            std::thread::scope(|s| {
                let _release = LetGo(|| m.disk.release());
                let writer = s.spawn(|| write(&file, pos, Pages::new(4096, 1).bytes()));
                m.wait_for_data();
                assert_eq!(file.f_inode().try_lock().is_some(), mode == IN_FLIGHT, "{mode} {path}");
                assert!(file.f_inode().i_dio_count() > 0, "{mode} {path}: not counted");
                m.disk.release();
                assert_eq!(writer.join().expect("the writer"), Ok(4096));
            });
            assert_eq!(read(&file, pos, 4096), Ok(vec![1; 4096]), "{mode} {path}");
            m.assert_idle(&file);
            drop(file);
            m.finish();
        }
    }
}

/// A buffered reader sees the new data after each direct write, whatever was cached.
#[test]
fn cached_pages_are_dropped() {
    let m = Mount::new(IN_FLIGHT);
    let (direct, buffered) = (m.open("/data"), m.open("/data"));
    buffered.set_flags(OpenFlags::empty()).expect("fcntl");
    let told = Listener::new();
    for n in 1..20u8 {
        assert_eq!(read(&buffered, 0, 8192).map(|b| b.len()), Ok(8192));
        if n % 2 == 0 {
            assert_eq!(write(&direct, 0, Pages::new(4096, n).bytes()), Ok(4096));
        } else {
            let before = told.told().len();
            assert_eq!(write_async(&direct, 0, leaked(4096, n), &told, 0), Err(EIOCBQUEUED));
            told.wait(before + 1);
        }
        assert_eq!(read(&buffered, 0, 4096).as_deref(), Ok(&[n; 4096][..]));
    }
    drop((direct, buffered, told));
    m.finish();
}

/// 64 writers, blocks of their own, several rounds; after unmount and mount each block is what was acknowledged last.
#[test]
fn sixty_four_writers_and_a_fresh_mount() {
    let slow = RamDiskOptions { mode: Mode::Auto { workers: 4, latency_ns: 0..50_000 }, seed: 64, ..auto() };
    for mode in MODES {
        let m = Mount::with(&image(&Mkfs::default()), mode, slow.clone());
        let acknowledged = Mutex::new(vec![0u32; DATA_BLOCKS as usize]);
        if mode != EXCLUSIVE {
            m.disk.barrier(64);
        }
        std::thread::scope(|s| {
            for writer in 0..64u32 {
                let (m, acknowledged) = (&m, &acknowledged);
                s.spawn(move || {
                    let file = m.open("/data");
                    let mut page = Pages::new(4096, 0);
                    Stamp::fill_body(page.bytes_mut(), writer);
                    let body_crc = Stamp::body_crc(page.bytes());
                    for generation in 1..=3 {
                        for block in (writer..DATA_BLOCKS).step_by(64) {
                            let offset = u64::from(block) * 4096;
                            let stamp = Stamp { offset, generation, writer, body_crc };
                            page.bytes_mut()[..STAMP_LEN].copy_from_slice(&stamp.encode());
                            assert_eq!(write(&file, offset as i64, page.bytes()), Ok(4096));
                            acknowledged.lock().unwrap()[block as usize] = generation;
                        }
                    }
                });
            }
        });
        assert!(!m.disk.is_held(), "{mode}: they did not meet: {:?}", m.disk.stats());
        let bytes = m.finish();
        let m = Mount::with(&bytes, mode, auto());
        let file = m.open("/data");
        for (block, generation) in acknowledged.into_inner().unwrap().into_iter().enumerate() {
            let data = read(&file, (block as i64) << 12, 4096).expect("reading");
            let stamp = Stamp::check(&data, block as u64 * 4096).unwrap_or_else(|e| panic!("{mode}, {block}: {e:?}"));
            assert_eq!((stamp.generation, stamp.writer), (generation, block as u32 % 64), "{mode}, block {block}");
        }
        drop(file);
        m.finish();
    }
}

/// Blocks of 1, 2 and 4 KiB, with and without 64bit and checksums: overwrites of blocks, of parts of blocks, over extents.
#[test]
fn every_kind_of_image() {
    for block_size in [1024, 2048, 4096] {
        for features in ["", "^64bit", "^metadata_csum", "^64bit,^metadata_csum", "^flex_bg"] {
            let spec = Mkfs { block_size, features, ..Mkfs::default() };
            let bytes = image(&spec);
            for mode in MODES {
                overwrite_all_over(&bytes, block_size as usize, mode);
            }
        }
    }
}

fn overwrite_all_over(image: &[u8], bs: usize, mode: &str) {
    let m = Mount::with(image, mode, auto());
    for (path, blocks) in [("/data", DATA_BLOCKS), ("/pieces", PIECES_BLOCKS)] {
        let file = m.open(path);
        let size = blocks as usize * bs;
        assert_eq!(file.f_inode().i_size(), size as i64);
        let mut model: Vec<u8> = (0..blocks).flat_map(|b| stamped(b, bs as u32)).collect();
        let mut seed = 7u64;
        for n in 0..60u8 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pos = (seed >> 33) as usize % (size / 512) * 512;
            let len = (1 + (seed >> 20) as usize % 24) * 512;
            let len = len.min(size - pos);
            let data = Pages::new(len, n);
            // In two segments, the second of which begins at any 512 bytes.
            let cut = len / 1024 * 512;
            let iov = [IoVec::source(&data.bytes()[..cut]), IoVec::source(&data.bytes()[cut..])];
            let mut iocb = Kiocb::new_sync(&file, pos as i64);
            assert_eq!(ext4_file_write(&mut iocb, &mut IovIter::new(&iov)), Ok(len), "{mode} {path} {pos}+{len}");
            assert_eq!(iocb.ki_pos, (pos + len) as i64);
            model[pos..pos + len].fill(n);
        }
        assert!(read(&file, 0, size).as_deref() == Ok(&model[..]), "{mode} {path}");
        m.assert_idle(&file);
    }
    m.finish();
}

/// Extent trees of every depth from 0 to 3: overwrites by several writers, each found again, nothing else touched.
#[test]
fn every_depth_of_extents() {
    let bs = 1024;
    for (depth, extents) in [(0, 3u32), (1, 300), (2, 2000), (3, 29_000)] {
        let source = Source::new();
        source.fragmented("deep", bs, extents);
        let spec = Mkfs { block_size: bs, size_kib: 64 << 10, ..Mkfs::default() };
        let m = Mount::with(&Image::make(&spec, Some(source.path())).bytes(), IN_FLIGHT, auto());
        let file = m.open("/deep");
        assert_eq!(file.f_inode().i_private().i_data_sem.read().depth(), depth, "{extents} extents");
        std::thread::scope(|s| {
            for writer in 0..4u32 {
                let file = &file;
                s.spawn(move || {
                    let data = Pages::new(bs as usize, writer as u8);
                    for i in 0..100 {
                        // Spread over the whole tree; each writer has extents of its own.
                        let extent = (i * 7919 + 13) % extents.div_ceil(4) * 4 + writer;
                        if extent < extents {
                            let pos = i64::from(2 * extent) * i64::from(bs);
                            assert_eq!(write(file, pos, data.bytes()), Ok(bs as usize), "extent {extent}");
                            assert_eq!(read(file, pos, bs as usize).as_deref(), Ok(data.bytes()));
                        }
                    }
                });
            }
        });
        // What nobody wrote is what it was.
        let untouched = (0..extents).filter(|e| (0..100).all(|i| (i * 7919 + 13) % extents.div_ceil(4) != e / 4));
        for extent in untouched.take(200) {
            let pos = i64::from(2 * extent) * i64::from(bs);
            assert_eq!(read(&file, pos, bs as usize).as_deref(), Ok(&stamped(2 * extent, bs)[..]), "extent {extent}");
        }
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}
