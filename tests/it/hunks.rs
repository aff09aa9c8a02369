// SPDX-License-Identifier: GPL-2.0-only
//! The patch of 2012, hunk by hunk: one test each, named by where the hunk is in fs/ext4.

use std::cell::Cell;
use std::rc::Rc;

use ext4_dio_tests::dio::*;
use kernel_shim::alloc::fault::fail_nth_allocation;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::code::*;
use kernel_shim::fs::OpenFlags;
use kernel_shim::testing::on_trace;

const BS: i64 = 4096;

/// file.c, ext4_file_dio_write, the declarations: file and mapping's host, `overwrite = 0`, the write's length.
#[test]
fn file_c_93_the_verdict_starts_as_no() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        // A write of no bytes has no verdict to take: nothing is looked up, nothing is counted.
        assert_eq!(write(&file, 0, &[]), Ok(0));
        assert_eq!(m.modes(), (0, 0, 0));
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// file.c, ext4_file_dio_write: the verdict, with each of its conditions.
#[test]
fn file_c_115_the_verdict_asks_for_every_condition() {
    let page = Pages::new(4096, 0x11);
    let two = Pages::new(8192, 0x12);

    // All hold.
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    assert_eq!(write(&file, 0, page.bytes()), Ok(4096));
    assert_eq!(m.modes(), (0, 0, 1));
    // ... at the very end of the file, too.
    assert_eq!(write(&file, (i64::from(DATA_BLOCKS) - 1) * BS, page.bytes()), Ok(4096));
    assert_eq!(m.modes(), (0, 0, 2));

    // The other conditions make the patch keep the lock. By default some of them are other verdicts: see the table in src/file.rs.
    drop(file);
    m.finish();
    let end = i64::from(DATA_BLOCKS) * BS;
    let unmet = [
        // pos + length <= i_size.
        ("/data", end - BS, 8192),
        ("/data", end, 4096),
        // All blocks mapped ...
        ("/holes", BS, 4096),
        ("/holes", 0, 8192),
        // ... and written.
        ("/unwritten", 0, 4096),
    ];
    for (mode, kept) in [(I_DATA_SEM, (1, 0, 0)), (IN_FLIGHT, (0, 0, 1))] {
        for (path, pos, len) in unmet {
            let m = Mount::new(mode);
            let file = m.open(path);
            assert_eq!(write(&file, pos, &two.bytes()[..len]), Ok(len), "{mode} {path} {pos}");
            assert_eq!(m.modes(), kept, "{mode} {path} {pos}");
            assert_eq!(read(&file, pos, len).as_deref(), Ok(&two.bytes()[..len]));
            drop(file);
            m.finish();
        }
    }

    // One written block of a file with holes will do.
    let m = Mount::new(I_DATA_SEM);
    let (file, holes) = (m.open("/data"), m.open("/holes"));
    assert_eq!(write(&holes, 0, page.bytes()), Ok(4096));
    assert_eq!(m.modes(), (0, 1, 0));

    // !nrpages: a buffered read has left pages.
    let buffered = m.open_with("/data", OpenFlags::empty());
    buffered.set_flags(OpenFlags::empty()).expect("fcntl");
    assert_eq!(read(&buffered, 0, 100).map(|b| b.len()), Ok(100));
    assert_eq!(write(&file, 8 * BS, page.bytes()), Ok(4096));
    assert_eq!(m.modes(), (1, 1, 0));
    drop((file, holes, buffered));
    m.finish();

    // dioread_nolock.
    let m = Mount::new(EXCLUSIVE);
    let file = m.open("/data");
    assert_eq!(write(&file, 0, page.bytes()), Ok(4096));
    assert_eq!(m.modes(), (1, 0, 0));
    drop(file);
    m.finish();
}

/// The same hunk's `!unaligned_aio`: an asynchronous write of less than blocks keeps the lock, a synchronous one does not.
#[test]
fn file_c_115_unaligned_aio_keeps_the_lock() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let half = Pages::new(512, 0x33);
    assert_eq!(write(&file, 512, half.bytes()), Ok(512));
    assert_eq!(m.modes(), (0, 0, 1));
    let told = Listener::new();
    let ret = write_async(&file, 1024, leaked(512, 0x34), &told, 7);
    assert_eq!(ret.or_else(|e| if e == EIOCBQUEUED { told.wait(1)[0].1 } else { Err(e) }), Ok(512));
    assert_eq!(m.modes(), (1, 0, 1));
    // Both are there, and the rest of the block is as it was.
    let block = read(&file, 0, 4096).expect("reading");
    let was = ext4_dio_tests::images::stamped(0, 4096);
    assert_eq!(&block[..512], &was[..512]);
    assert_eq!(&block[512..1024], &[0x33; 512]);
    assert_eq!(&block[1024..1536], &[0x34; 512]);
    assert_eq!(&block[1536..], &was[1536..]);
    m.assert_idle(&file);
    drop((file, told));
    m.finish();
}

/// The same hunk's one look-up: across the border of two extents the patch keeps the lock, and we do not (G23).
#[test]
fn file_c_115_one_extent_or_several() {
    let all = Pages::new(4096 * PIECES_BLOCKS as usize, 0x44);
    for (mode, modes) in [(I_DATA_SEM, (1, 0, 0)), (IN_FLIGHT, (0, 0, 1))] {
        let m = Mount::new(mode);
        let file = m.open("/pieces");
        assert_eq!(write(&file, 0, all.bytes()), Ok(all.bytes().len()), "{mode}");
        assert_eq!(m.modes(), modes, "{mode}: is /pieces in several extents?");
        assert_eq!(read(&file, 0, all.bytes().len()).as_deref(), Ok(all.bytes()));
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// inode.c, ext4_ext_direct_IO: `i_data_sem` down for reading, then `i_mutex` up.
#[test]
fn inode_c_2996_an_overwrite_swaps_the_locks() {
    // i_mutex free?  i_data_sem free for a writer?
    for (mode, mutex_free, sem_free) in [(EXCLUSIVE, false, true), (I_DATA_SEM, true, false), (IN_FLIGHT, true, true)] {
        let m = Mount::new(mode);
        let file = m.open("/data");
        m.disk.hold(OpMask::WRITE);
        std::thread::scope(|s| {
            let writer = s.spawn(|| write(&file, 0, Pages::new(4096, 0x55).bytes()));
            m.disk.wait_in_flight(1);
            let inode = file.f_inode();
            assert_eq!(inode.try_lock().is_some(), mutex_free, "{mode}: i_mutex while the data is in the device");
            assert_eq!(inode.i_private().i_data_sem.try_write().is_some(), sem_free, "{mode}: i_data_sem");
            // Readers of the map are never in the way.
            assert!(inode.i_private().i_data_sem.try_read().is_some(), "{mode}");
            // Whoever is about to free blocks sees the write, in each mode.
            assert!(inode.i_dio_count() > 0, "{mode}: not counted in flight");
            m.disk.release();
            assert_eq!(writer.join().expect("the writer"), Ok(4096));
        });
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// inode.c, ext4_ext_direct_IO: no `io_end` for an asynchronous write goes to `retake_lock`, not out of the function.
#[test]
fn inode_c_3021_enomem_goes_through_retake_lock() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let told = Listener::new();
        // What a first write allocates to remember where the blocks are, it can do without.
        assert_eq!(write(&file, 0, Pages::new(4096, 0x65).bytes()), Ok(4096));
        let mut fired = 0;
        for n in 1.. {
            let fault = fail_nth_allocation(n);
            let ret = write_async(&file, 0, leaked(4096, 0x66), &told, 0);
            if !fault.fired() {
                break;
            }
            drop(fault);
            fired += 1;
            assert_eq!(ret, Err(ENOMEM), "{mode}: allocation {n}");
            m.assert_idle(&file);
        }
        assert!(fired >= 2, "{mode}: an io_end and a dio are allocated, {fired} failed");
        told.wait(1);
        drop((file, told));
        m.finish();
    }
}

/// inode.c, ext4_ext_direct_IO: at `retake_lock` the semaphore goes up, then `i_mutex` down; the caller has it back.
#[test]
fn inode_c_3083_retake_lock_gives_the_caller_its_lock() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        // Somebody takes i_mutex while the write is in the device: it can come back with its count only when it gets the
        // lock, and its semaphore is given up before it waits for that.
        m.disk.hold(OpMask::WRITE);
        std::thread::scope(|s| {
            let writer = s.spawn(|| write(&file, 0, Pages::new(4096, 0x77).bytes()));
            m.disk.wait_in_flight(1);
            let inode = file.f_inode();
            let Some(i_mutex) = inode.try_lock() else {
                assert_eq!(mode, EXCLUSIVE);
                m.disk.release();
                assert_eq!(writer.join().expect("the writer"), Ok(4096));
                return;
            };
            m.disk.release();
            // Truncate's wait: it ends although the writer now wants the lock that we hold.
            i_mutex.inode_dio_wait();
            assert!(inode.i_private().i_data_sem.try_write().is_some(), "{mode}: waits for i_mutex under i_data_sem");
            assert!(!writer.is_finished(), "{mode}: back without i_mutex");
            i_mutex.unlock();
            assert_eq!(writer.join().expect("the writer"), Ok(4096));
        });
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// What the first hunk moves out of generic_file_aio_write: sync after the lock is released, and the plug around it all.
#[test]
fn file_c_115_sync_comes_after_unlock() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open_with("/data", OpenFlags::O_DSYNC);
    m.disk.hold(OpMask::FLUSH);
    std::thread::scope(|s| {
        let writer = s.spawn(|| write(&file, 0, Pages::new(4096, 0x78).bytes()));
        m.disk.wait_in_flight(1);
        assert!(file.f_inode().try_lock().is_some(), "i_mutex is held during the flush");
        m.disk.release();
        assert_eq!(writer.join().expect("the writer"), Ok(4096));
    });
    let durable = m.disk.durable_image();
    assert!(durable.windows(4096).step_by(4096).any(|b| b == [0x78; 4096]), "acknowledged, and not durable");
    drop(file);
    m.finish();
}

/// The tracepoint sees what the type system promises: between unlock and retake the write is counted.
#[test]
fn the_window_is_counted_throughout() {
    for mode in [I_DATA_SEM, IN_FLIGHT] {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let seen = Rc::new(Cell::new(None));
        let tracing = on_trace({
            let (seen, file) = (seen.clone(), file.clone());
            move |name| {
                if name == "i_mutex released" {
                    seen.set(Some((file.f_inode().is_locked(), file.f_inode().i_dio_count())));
                }
            }
        });
        assert_eq!(write(&file, 0, Pages::new(4096, 0x79).bytes()), Ok(4096));
        drop(tracing);
        assert_eq!(seen.get(), Some((false, 1)), "{mode}");
        drop(file);
        m.finish();
    }
}
