// SPDX-License-Identifier: GPL-2.0-only
//! Questions of the verdict on a direct write at their edges, where one operator in place of another gives another answer.

use std::thread;

use ext4_dio::dio_lock::DioLock;
use ext4_dio::ext4::{DioMode, Lblk, MapBlocks, MapFlags};
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::ext4_file_write;
use ext4_dio::inode::{ext4_map_blocks, ext4_should_dioread_nolock};
use ext4_dio::path::{Cred, path_lookupat, path_open, path_truncate};
use ext4_dio::{File, Kiocb, ext4_remount};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, stamped, stamped_blocks};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::alloc::fault::fail_nth_allocation;
use kernel_shim::block::QueueLimits;
use kernel_shim::block::ramdisk::{OpMask, RamDiskOptions};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IoVec, IovIter, OpenFlags, RwfFlags};
use kernel_shim::testing::on_trace;

/// A block's length, from its middle on: both ends are unaligned by the same, which is no whole block.
#[test]
fn a_blocks_length_that_is_no_block() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/unwritten");
    assert_eq!(write(&file, 512, Pages::new(4096, 1).bytes()), Ok(4096));
    assert_eq!(m.modes(), (1, 0, 0), "it zeroes what is beside it, and has to be alone");
    let read = read(&file, 0, 8192).expect("reading");
    assert!(read[..512] == [0; 512] && read[512..4608] == [1; 4096] && read[4608..] == [0; 3584]);
    // Asynchronous and over written blocks it keeps the lock, as in C.
    let told = Listener::new();
    assert_eq!(ended(write_async(&file, 512, leaked(4096, 2), &told, 0), &told, 1), Ok(4096));
    assert_eq!(m.modes(), (2, 0, 0));
    m.assert_idle(&file);
    drop((file, told));
    m.finish();
}

/// With an end inside a block, what begins behind that block has to zero its rest first; what covers it has nothing to zero.
#[test]
fn behind_a_ragged_end() {
    for (pos, modes) in [(12288, (1, 0, 0)), (8192, (1, 0, 0)), (4096, (0, 0, 1))] {
        let m = Mount::new(IN_FLIGHT);
        path_truncate(&m.sb, b"/data", 6144).expect("truncate");
        let file = m.open("/data");
        assert_eq!(write(&file, pos, Pages::new(8192, 3).bytes()), Ok(8192));
        assert_eq!(m.modes(), modes, "at {pos}");
        let read = read(&file, 6144, 8192).expect("reading");
        let zeros = (pos - 6144).max(0) as usize;
        assert!(read[..zeros].iter().all(|byte| *byte == 0), "at {pos}");
        assert!(read[zeros..].iter().all(|byte| *byte == 3), "at {pos}");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// A write into a hole that fails takes back nothing that `fallocate` has put behind the end: it does not extend the file.
#[test]
fn a_failed_fill_trims_nothing() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/holes");
    let end = file.f_inode().i_size();
    ext4_fallocate(file.f_inode(), FallocFlags::KEEP_SIZE, end, 8192).expect("fallocate");
    m.faults.fail_nth(1, OpMask::WRITE | OpMask::NOT_META);
    assert_eq!(write(&file, 4096, Pages::new(4096, 4).bytes()), Err(EIO));
    m.assert_idle(&file);
    let mut map = MapBlocks::new(Lblk(u32::try_from(end >> 12).expect("a block")), 2);
    assert_eq!(ext4_map_blocks(file.f_inode(), &mut map), Ok(2), "trimmed");
    assert!(map.m_flags.contains(MapFlags::UNWRITTEN));
    assert_eq!(read(&file, 4096, 4096).as_deref(), Ok(&[0; 4096][..]));
    drop(file);
    m.finish();
}

/// A write that must not sleep gets `i_mutex` back if it is free, and goes without if it is not; its count is given back all the same.
#[test]
fn what_must_not_sleep_gets_back_what_is_free() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let inode = file.f_inode();
    for mode in [DioMode::Exclusive, DioMode::IDataSem, DioMode::InFlight] {
        let lock = DioLock::try_release(inode.lock(), mode).ok().expect("nobody has i_data_sem");
        assert_eq!(inode.is_locked(), mode == DioMode::Exclusive);
        let i_mutex = lock.try_retake_lock().expect("nobody has it");
        assert!(inode.is_locked());
        i_mutex.unlock();
        m.assert_idle(&file);
    }
    for mode in [DioMode::IDataSem, DioMode::InFlight] {
        let lock = DioLock::try_release(inode.lock(), mode).ok().expect("nobody has i_data_sem");
        assert_eq!(inode.i_dio_count(), 1);
        let other = inode.try_lock().expect("it is free");
        assert!(lock.try_retake_lock().is_none(), "it is taken");
        assert_eq!(inode.i_dio_count(), 0);
        other.unlock();
        m.assert_idle(&file);
    }
    let i_mutex = inode.lock();
    let tree = inode.i_private().i_data_sem.write();
    let i_mutex = DioLock::try_release(i_mutex, DioMode::IDataSem).err().expect("i_data_sem is taken");
    assert_eq!(inode.i_dio_count(), 0);
    i_mutex.unlock();
    drop(tree);
    drop(file);
    m.finish();
}

/// Position and memory, wrong by the same: together they are as wrong as each.
#[test]
fn twice_unaligned_is_not_aligned() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let pages = Pages::new(4096, 5);
    let times = file.f_inode().i_times();
    assert_eq!(write(&file, 256, &pages.bytes()[256..512]), Err(EINVAL));
    assert_eq!(file.f_inode().i_times(), times, "refused before anything has changed");
    // Aligned for every disk but this.
    let fine = Mount::with(&image(&Mkfs::default()), IN_FLIGHT, sectors_4k());
    let on_fine = fine.open("/data");
    assert_eq!(write(&on_fine, 512, &pages.bytes()[512..1024]), Ok(512));
    assert_eq!(fine.modes(), (1, 0, 0), "the rest of its sector is read first: alone");
    let around = read(&on_fine, 0, 4096).expect("reading");
    let old = stamped(0, 4096);
    assert!(around[..512] == old[..512] && around[512..1024] == [5; 512] && around[1024..] == old[1024..]);
    for (m, file) in [(m, file), (fine, on_fine)] {
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// A remount between the verdict and the unlock: the write keeps to the mode that it was judged by. With the other's window it would
/// allocate with `i_data_sem` held, or drop pages.
#[test]
fn a_remount_does_not_change_a_writes_mode() {
    let modes = [EXCLUSIVE, I_DATA_SEM, "dioread_nolock,dio_window=in_flight"];
    for (from, to) in modes.iter().flat_map(|from| modes.iter().map(move |to| (*from, *to))) {
        for (path, at_end) in [("/data", false), ("/unwritten", false), ("/data", true)] {
            let m = Mount::new(from);
            let file = m.open(path);
            let pos = if at_end { file.f_inode().i_size() } else { 0 };
            let sb = m.sb.clone();
            let tracing = at("ext4_dio_verdict", move || {
                let sb = sb.clone();
                thread::spawn(move || ext4_remount(&sb, to).expect("good options")).join().expect("no panic");
            });
            assert_eq!(write(&file, pos, Pages::new(4096, 7).bytes()), Ok(4096), "{from} to {to}: {path} at {pos}");
            drop(tracing);
            assert_eq!(m.sb.s_fs_info().dio_mode(), Mount::new(to).sb.s_fs_info().dio_mode());
            assert_eq!(read(&file, pos, 4096).as_deref(), Ok(&[7; 4096][..]), "{from} to {to}: {path} at {pos}");
            m.assert_idle(&file);
            drop(file);
            m.finish();
        }
    }
}

/// No lock for readers: where the mount says so, and of regular files mapped by extents alone.
#[test]
fn where_readers_need_no_lock() {
    let indirect = image(&Mkfs { features: "^extent,^64bit", ..Mkfs::default() });
    for mode in MODES {
        for (image, extents) in [(&image(&Mkfs::default()), true), (&indirect, false)] {
            let m = Mount::with(image, mode, auto());
            let nolock = |path: &str| {
                let inode = path_lookupat(&m.sb, path.as_bytes(), true).expect("the image has it");
                ext4_should_dioread_nolock(&inode, m.sb.s_fs_info().dio_mode())
            };
            assert_eq!(nolock("/data"), extents && mode != EXCLUSIVE, "{mode}");
            assert!(!nolock("/crumbs"), "a directory, {mode}");
            m.finish();
        }
    }
}

/// A write from a block that is there into one that is new, with numbers instead of extents: beside what is written, the new one is
/// zeroed.
#[test]
fn over_the_end_of_an_indirect_file() {
    for block_size in [1024, 4096u32] {
        let spec = Mkfs {
            fs_type: "ext3",
            block_size,
            size_kib: 4096,
            inodes: 64,
            args: &["-J", "size=1"],
            ..Mkfs::default()
        };
        let spec = if block_size == 4096 { Mkfs { size_kib: 16 << 10, args: &[], ..spec } } else { spec };
        let m = Mount::with(&Image::make_over(&spec, 0xdb).bytes(), IN_FLIGHT, auto());
        let flags = OpenFlags::O_RDWR | OpenFlags::O_CREAT | OpenFlags::O_DIRECT;
        let file = path_open(&m.sb, b"/f", flags, 0o644, &Cred::default()).expect("creating");
        let block = i64::from(block_size);
        let pages = Pages::new(4 * block_size as usize, 6);
        assert_eq!(write(&file, 0, &pages.bytes()[..2 * block_size as usize]), Ok(2 * block_size as usize));
        let len = block_size as usize + 512;
        assert_eq!(write(&file, block, &pages.bytes()[..len]), Ok(len));
        let mut map = MapBlocks::new(Lblk(0), 3);
        assert_eq!(ext4_map_blocks(file.f_inode(), &mut map), Ok(3), "in one piece, so that one look-up finds all");
        let at = (map.m_pblk.0 * u64::from(block_size)) as usize;
        m.assert_idle(&file);
        drop(file);
        let (bytes, written) = (m.finish(), 2 * block_size as usize + 512);
        assert!(bytes[at..at + written].iter().all(|byte| *byte == 6));
        assert!(bytes[at + written..at + 3 * block_size as usize].iter().all(|byte| *byte == 0), "stale");
    }
}

fn write_nowait(file: &KArc<File>, pos: i64, bytes: &[u8]) -> Result<usize> {
    let mut iocb = Kiocb::new_sync(file, pos);
    iocb.kiocb_set_rw_flags(RwfFlags::NOWAIT).expect("known flags");
    ext4_file_write(&mut iocb, &mut IovIter::new(&[IoVec::source(bytes)]))
}

/// What the inode itself says of its blocks is known without reading: a write that must not sleep goes ahead. What a block says is
/// not, until somebody has read it.
#[test]
fn without_sleeping_by_the_root_of_the_tree() {
    let page = Pages::new(4096, 7);
    let numbers = image(&Mkfs { features: "^extent,^64bit", ..Mkfs::default() });
    for (image, path, pos, known) in [
        (&image(&Mkfs::default()), "/data", 4096, true),
        // 64 extents are not in the inode; nor are they one.
        (&image(&Mkfs::default()), "/holes", 0, false),
        (&numbers, "/data", 4096, false),
    ] {
        let m = Mount::with(image, IN_FLIGHT, auto());
        let file = m.open(path);
        assert_eq!(write(&file, pos, page.bytes()), Ok(4096), "so that its attributes are known");
        file.f_inode().i_private().i_es_tree.remove(Lblk(0), u32::MAX);
        assert_eq!(write_nowait(&file, pos, page.bytes()), if known { Ok(4096) } else { Err(EAGAIN) }, "{path}");
        assert_eq!(read(&file, pos, 4096).as_deref(), Ok(page.bytes()));
        assert_eq!(write_nowait(&file, pos, page.bytes()), Ok(4096), "{path}: known by now");
        drop(file);
        m.finish();
    }
}

/// The patch's window is entered when `i_data_sem` is free; only one that must not sleep is sent away.
#[test]
fn an_overwrite_waits_for_the_map() {
    let m = Mount::new(I_DATA_SEM);
    let file = m.open("/data");
    assert_eq!(read(&file, 0, 8192).expect("so that the map is known").len(), 8192);
    let page = Pages::new(4096, 8);
    let inode = file.f_inode();
    std::thread::scope(|s| {
        let tree = inode.i_private().i_data_sem.write();
        assert_eq!(s.spawn(|| write_nowait(&file, 0, page.bytes())).join().expect("the writer"), Err(EAGAIN));
        let writer = s.spawn(|| write(&file, 4096, page.bytes()));
        // It is counted, and then waits.
        while inode.i_dio_count() == 0 && !writer.is_finished() {
            std::thread::yield_now();
        }
        drop(tree);
        assert_eq!(writer.join().expect("the writer"), Ok(4096));
    });
    assert_eq!(m.modes().1, 2, "both verdicts were the same");
    m.assert_idle(&file);
    drop(file);
    m.finish();
}

/// A piece of a device's block at the end of the file is written as it is: all there was room for is no less than what was asked for.
#[test]
fn a_piece_of_a_sector_stays_direct() {
    let m = Mount::with(&image(&Mkfs::default()), IN_FLIGHT, sectors_4k());
    let file = m.open("/data");
    let end = file.f_inode().i_size();
    assert_eq!(through_the_cache(|| write(&file, end, Pages::new(512, 9).bytes())), (Ok(512), 0));
    assert_eq!(read(&file, end, 4096).as_deref(), Ok(&[9; 512][..]));
    m.assert_idle(&file);
    drop(file);
    m.finish();
}

/// Where block `lblk` of a file is on the disk, in bytes.
fn place(m: &Mount, path: &str, lblk: u32) -> usize {
    let mut map = MapBlocks::new(Lblk(lblk), 1);
    let file = m.open(path);
    ext4_map_blocks(file.f_inode(), &mut map).expect("a block of the file");
    (map.m_pblk.0 << m.sb.s_blocksize_bits) as usize
}

/// What another kernel left behind the end of a file, in the block it ends in, must not come to light when the file grows. What is
/// before the end stays, and so does all else.
#[test]
fn what_is_behind_the_end_is_zeroed() {
    for (block_size, cached) in [(1024u32, true), (4096, false), (4096, true)] {
        let spec = Mkfs { block_size, ..Mkfs::default() };
        let (bs, size) = (i64::from(block_size), i64::from(block_size) * 2 + 512);
        let m = Mount::with(&image(&spec), IN_FLIGHT, auto());
        path_truncate(&m.sb, b"/data", size).expect("truncate");
        let at = place(&m, "/data", 2);
        let mut bytes = m.finish();
        bytes[at + 512..at + 2 * block_size as usize].fill(0xdb);

        let m = Mount::with(&bytes, IN_FLIGHT, auto());
        let file = m.open("/data");
        let reader = cached.then(|| m.open_cached("/data"));
        if let Some(reader) = &reader {
            assert_eq!(read(reader, 0, 3 * block_size as usize).expect("reading").len() as i64, size);
        }
        let pages = Pages::new(block_size as usize, 3);
        assert_eq!(write(&file, 4 * bs, pages.bytes()), Ok(block_size as usize));
        for file in [Some(&file), reader.as_ref()].into_iter().flatten() {
            let read = read(file, 0, 5 * block_size as usize).expect("reading");
            let (data, rest) = read.split_at(size as usize);
            let (zeros, written) = rest.split_at((4 * bs - size) as usize);
            assert!(data == &stamped_blocks(3, block_size)[..size as usize], "before the end");
            assert!(zeros.iter().all(|byte| *byte == 0), "behind the end");
            assert!(written == pages.bytes());
        }
        m.assert_idle(&file);
        drop((file, reader));
        let now = m.finish();
        assert!(now[at + 512..at + block_size as usize].iter().all(|byte| *byte == 0), "on the disk");
    }
}

/// The block that a file ends in may hold no data: then nothing is written there, least of all to the first block of the disk.
#[test]
fn behind_an_end_without_data() {
    for (path, lblk) in [("/holes", 1), ("/unwritten", 1)] {
        let m = Mount::new(IN_FLIGHT);
        path_truncate(&m.sb, path.as_bytes(), 4096 + 512).expect("truncate");
        let at = place(&m, path, lblk);
        let mut bytes = m.finish();
        if at != 0 {
            bytes[at..at + 4096].fill(0xdb);
        }
        let m = Mount::with(&bytes, IN_FLIGHT, auto());
        let file = m.open(path);
        assert_eq!(write(&file, 16384, Pages::new(4096, 3).bytes()), Ok(4096));
        assert!(read(&file, 4096, 12288).expect("reading").iter().all(|byte| *byte == 0), "{path}");
        drop(file);
        let now = m.finish();
        assert!(at == 0 || now[at..at + 4096] == bytes[at..at + 4096], "{path}: written to");
    }
}

/// A write that is not whole blocks, on a disk with room for some of it: as many of its sectors as there is room for.
#[test]
fn unaligned_and_too_long() {
    let m = Mount::new(IN_FLIGHT);
    m.fill_disk();
    let file = m.open("/data");
    let end = file.f_inode().i_size();
    // Four blocks are free.
    path_truncate(&m.sb, b"/data", end - 16384).expect("truncate");
    let pos = end - 16384 + 512;
    let len = 1 << 20;
    let done = write(&file, pos, Pages::new(len, 5).bytes()).expect("some of it");
    assert!(done >= 16384 - 512 && done < len && (pos + done as i64) % 4096 == 0, "{done} bytes");
    assert_eq!(file.f_inode().i_size(), pos + done as i64);
    assert!(read(&file, pos, done).expect("reading").iter().all(|byte| *byte == 5));
    m.assert_idle(&file);
    drop(file);
    m.finish();
}

/// A write for which there is not room enough ends where the room does, and has not failed: nothing that `fallocate` has put behind it
/// is taken back.
#[test]
fn a_short_write_trims_nothing() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let end = file.f_inode().i_size();
    let ahead = end + (1 << 20);
    ext4_fallocate(file.f_inode(), FallocFlags::KEEP_SIZE, ahead, 8192).expect("fallocate");
    m.fill_disk();
    path_truncate(&m.sb, b"/unwritten", 60 * 4096).expect("four blocks are free");
    let len = 1 << 19;
    let done = write(&file, end, Pages::new(len, 5).bytes()).expect("some of it");
    assert!(done >= 4096 && done < len && done.is_multiple_of(4096), "{done} bytes");
    m.assert_idle(&file);
    assert_eq!(file.f_inode().i_size(), end + done as i64);
    let mut map = MapBlocks::new(Lblk(u32::try_from(ahead >> 12).expect("a block")), 2);
    assert_eq!(ext4_map_blocks(file.f_inode(), &mut map), Ok(2), "trimmed");
    assert!(map.m_flags.contains(MapFlags::UNWRITTEN));
    drop(file);
    m.finish();
}

/// How often `op` comes to where the size on the disk follows data that went through the cache.
fn through_the_cache<R>(op: impl FnOnce() -> R) -> (R, u32) {
    let count = std::rc::Rc::new(std::cell::Cell::new(0));
    let seen = count.clone();
    let _tracing = on_trace(move |name| seen.set(seen.get() + u32::from(name == "ext4_update_disksize")));
    (op(), count.get())
}

/// With numbers for blocks, too, what is written behind the end goes to the device directly, and is waited for.
#[test]
fn an_indirect_file_grows_directly() {
    let m = Mount::with(&image(&Mkfs { features: "^extent,^64bit", ..Mkfs::default() }), IN_FLIGHT, auto());
    let file = m.open("/data");
    let told = Listener::new();
    let end = file.f_inode().i_size();
    let first = through_the_cache(|| write(&file, end, Pages::new(8192, 4).bytes()));
    assert_eq!(first, (Ok(8192), 0));
    // From a block that is there on.
    let second = through_the_cache(|| write_async(&file, end + 4096, leaked(8192, 5), &told, 0));
    assert_eq!(second, (Ok(8192), 0));
    let read = read(&file, end, 1 << 20).expect("reading");
    assert!(read.len() == 12288 && read[..4096] == [4; 4096] && read[4096..] == [5; 8192]);
    // All of it, and beyond.
    let all = Pages::new(end as usize + 16384, 7);
    assert_eq!(through_the_cache(|| write(&file, 0, all.bytes())), (Ok(end as usize + 16384), 0));
    // With a hole before the end it does not.
    path_truncate(&m.sb, b"/data", end + 5 * 4096).expect("truncate");
    assert_eq!(through_the_cache(|| write(&file, end + 4 * 4096, Pages::new(8192, 6).bytes())), (Ok(8192), 1));
    m.assert_idle(&file);
    drop((file, told));
    m.finish();
}

/// A device that can write through: what was written before and is not yet committed is, with the first write that must be durable.
#[test]
fn written_through_but_not_yet_mapped() {
    let limits = QueueLimits { fua: true, ..RamDiskOptions::default().limits };
    let m = Mount::with(&image(&Mkfs::default()), IN_FLIGHT, RamDiskOptions { limits, ..auto() });
    let file = m.open("/data");
    let end = file.f_inode().i_size();
    assert_eq!(write(&file, end, Pages::new(4096, 4).bytes()), Ok(4096));
    let durable = m.open_with("/data", OpenFlags::O_DSYNC);
    assert_eq!(write(&durable, end, Pages::new(4096, 5).bytes()), Ok(4096));
    let crashed = m.after_crash();
    let kept = crashed.open("/data");
    assert_eq!(kept.f_inode().i_size(), end + 4096);
    assert_eq!(read(&kept, end, 4096), Ok(vec![5; 4096]));
    drop((file, durable, kept));
    crashed.finish();
    m.finish();
}

/// Each allocation of a write into blocks without data fails once, its request's among them: what was counted for it before is counted
/// out, though there is no request that could end.
#[test]
fn a_write_that_is_not_submitted_is_counted_out() {
    for mode in MODES {
        let m = Mount::new(mode);
        let (file, told) = (m.open("/unwritten"), Listener::new());
        let mut struck = 0;
        for n in 0..32 {
            let pos = n << 12;
            let fault = fail_nth_allocation(n as u64 + 1);
            let ret = write_async(&file, pos, leaked(4096, 7), &told, n as usize);
            let fired = fault.fired();
            drop(fault);
            if ret == Err(EIOCBQUEUED) {
                m.sb.drain_direct_io();
            }
            m.assert_idle(&file);
            match ret {
                Err(ENOMEM) if fired => {
                    assert_eq!(read(&file, pos, 4096), Ok(vec![0; 4096]), "{mode} {n}");
                    struck += 1;
                }
                ret => assert!(matches!(ret, Ok(4096) | Err(EIOCBQUEUED)), "{mode} {n}: {ret:?}"),
            }
            if !fired {
                break;
            }
        }
        assert!(struck >= 1, "{mode}: a write needs no memory");
        drop((file, told));
        m.finish();
    }
}
