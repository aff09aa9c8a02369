// SPDX-License-Identifier: GPL-2.0-only
//! Races of the patch's history, by their numbers. Each test fails when the fix it is about is switched off: the last one sees
//! to that.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ext4_dio::ext4::InodeFlags;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::ext4_file_write;
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::ioctl::{ext4_ioctl_getflags, ext4_ioctl_setflags};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, GoingDown, Kiocb, ext4_force_shutdown, ext4_freeze, ext4_statfs, ext4_umount, ext4_unfreeze};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Mkfs, stamped};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::alloc::fault::{allocations, fail_nth_allocation};
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IoVec, IovIter, OpenFlags, RwfFlags, UserMemory};
use kernel_shim::sync::SpinLock;
use kernel_shim::testing::{Fix, on_trace};

// ---- G1 ----

/// G1: counted only after the unlock, a truncate in between sees nothing in flight and frees the blocks that the bio, soon to be
/// sent, will write to.
#[test]
fn g1_counted_before_the_unlock() {
    for mode in [I_DATA_SEM, IN_FLIGHT] {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let truncate_would_pass = Rc::new(RefCell::new(None));
        let tracing = on_trace({
            let (seen, file) = (truncate_would_pass.clone(), file.clone());
            move |name| {
                if name == "i_mutex released" {
                    // What truncate does first: takes i_mutex, and looks whether anything is in flight.
                    let i_mutex = file.f_inode().try_lock().expect("i_mutex was released");
                    *seen.borrow_mut() = Some(i_mutex.i_dio_count() == 0);
                }
            }
        });
        assert_eq!(write(&file, 0, Pages::new(4096, 1).bytes()), Ok(4096));
        drop(tracing);
        assert_eq!(*truncate_would_pass.borrow(), Some(false), "{mode}: truncate would free blocks under the write");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

// ---- G2 ----

// ---- G3 ----

// ---- G4 ----

/// G4: two writes under way at once, each with state of its own: whichever ends first, the other's end is not lost and not
/// mixed up.
#[test]
fn g4_each_write_has_its_own_state() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        // The map is known from here on, so that only data goes to the disk, and stays there till the test says so.
        assert_eq!(read(&file, 0, 8192).map(|b| b.len()), Ok(8192));
        m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
        let told = Listener::new();
        for first in [0, 1] {
            let before = told.told().len();
            for tag in [0, 1] {
                let ret = write_async(&file, 4096 * tag as i64, leaked(4096, 0x40 + tag as u8), &told, tag);
                assert_eq!(ret, Err(EIOCBQUEUED), "{mode}");
            }
            let dio = &m.sb.s_fs_info().dio;
            assert_eq!(dio.io_ends() - dio.io_ends_available(), 2, "{mode}: one io_end each");
            let pending = m.disk.pending();
            assert_eq!(pending.len(), 2, "{mode}");
            assert!(m.disk.complete(pending[first].id));
            assert_eq!(told.told()[before..], [(first, Ok(4096))], "{mode}");
            assert_eq!(m.disk.complete_all(), 1);
            assert_eq!(told.told()[before..], [(first, Ok(4096)), (1 - first, Ok(4096))], "{mode}");
        }
        m.assert_idle(&file);
        m.disk.release();
        drop((file, told));
        m.finish();
    }
}

// ---- G5 ----

/// G5: a write that completes before its submission returns: what the submitter still touches is its own.
#[test]
fn g5_completion_before_submission_ends() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let data = leaked(4096, 0x50);
    let told = Listener::new();
    let mut queued = 0;
    for n in 0..2000 {
        match write_async(&file, 4096 * (n % i64::from(DATA_BLOCKS)), data, &told, n as usize) {
            Err(EIOCBQUEUED) => queued += 1,
            ret => assert_eq!(ret, Ok(4096)),
        }
    }
    let mut tags: Vec<_> = told.wait(queued).into_iter().map(|(tag, ret)| (tag, ret.expect("a write"))).collect();
    tags.sort_unstable();
    tags.dedup();
    assert_eq!(tags.len(), queued, "somebody was told twice");
    m.assert_idle(&file);
    drop((file, told));
    m.finish();
}

/// A user's memory that is brought in by a page fault, which takes `i_data_sem` for writing, as a fault on a page of a
/// mapped file does.
struct Faulting {
    file: KArc<File>,
    present: AtomicBool,
    deadlocks: AtomicUsize,
}

impl UserMemory for Faulting {
    fn fault_in(&self, _addr: usize, len: usize) -> usize {
        if self.file.f_inode().i_private().i_data_sem.try_write().is_none() {
            self.deadlocks.fetch_add(1, Ordering::Relaxed);
        }
        self.present.store(true, Ordering::Relaxed);
        len
    }

    fn pin(&self, _addr: usize, len: usize) -> usize {
        if self.present.load(Ordering::Relaxed) { len } else { 0 }
    }
}

// ---- G6 ----

/// G6: memory is faulted in before `i_data_sem` is held, since the fault may need it.
#[test]
fn g6_page_faults_come_before_the_window() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let user = Faulting { file: file.clone(), present: AtomicBool::new(false), deadlocks: AtomicUsize::new(0) };
        let data = Pages::new(4096, 0x60);
        let iov = [IoVec::source(data.bytes())];
        let ret = ext4_file_write(&mut Kiocb::new_sync(&file, 0), &mut IovIter::with_user_memory(&iov, &user));
        assert_eq!(ret, Ok(4096), "{mode}");
        assert_eq!(user.deadlocks.load(Ordering::Relaxed), 0, "{mode}: the fault would wait for its own task");
        drop((user, file));
        m.finish();
    }
}

// ---- G7 ----

/// G7: `fcntl` takes O_DIRECT away between ext4's look at the flags and the generic code's.
#[test]
fn g7_fcntl_in_the_middle() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let tracing = on_trace({
            let file = file.clone();
            move |name| {
                if name == "ext4_file_dio_write" {
                    file.set_flags(OpenFlags::empty()).expect("fcntl");
                }
            }
        });
        assert_eq!(write(&file, 0, Pages::new(4096, 0x70).bytes()), Ok(4096), "{mode}");
        drop(tracing);
        assert!(!file.f_flags().contains(OpenFlags::O_DIRECT));
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// Memory that ends after `limit` bytes from `start` on.
struct Ending {
    start: usize,
    limit: usize,
}

impl UserMemory for Ending {
    fn fault_in(&self, addr: usize, len: usize) -> usize {
        self.pin(addr, len)
    }

    fn pin(&self, addr: usize, len: usize) -> usize {
        (self.start + self.limit).saturating_sub(addr).min(len)
    }
}

fn write_ending(file: &KArc<File>, data: &Pages, limit: usize) -> Result<usize> {
    let user = Ending { start: data.bytes().as_ptr() as usize, limit };
    let iov = [IoVec::source(data.bytes())];
    ext4_file_write(&mut Kiocb::new_sync(file, 0), &mut IovIter::with_user_memory(&iov, &user))
}

// ---- G8 ----

// ---- G9 ----

/// G9: a bad address half-way writes what came before it, and leaves the rest of the file alone.
#[test]
fn g9_a_fault_half_way_zeroes_nothing() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let data = Pages::new(4 * 4096, 0x90);
        for (limit, written) in
            [(0, Err(EFAULT)), (100, Err(EFAULT)), (512, Ok(512)), (2 * 4096 + 700, Ok(2 * 4096 + 512))]
        {
            assert_eq!(write_ending(&file, &data, limit), written, "{mode}: {limit} bytes of memory");
            let n = written.unwrap_or(0);
            let now = read(&file, 0, 4 * 4096).expect("reading");
            let was: Vec<u8> = (0..4).flat_map(|b| stamped(b, 4096)).collect();
            assert_eq!(now[..n], data.bytes()[..n], "{mode}");
            assert!(now[n..] == was[n..], "{mode}: old data behind the fault at {limit} is gone");
            m.assert_idle(&file);
        }
        drop(file);
        m.finish();
    }
}

// ---- G10 ----

// ---- G11 ----

// ---- G12 ----

// ---- G13 ----

/// G13: an asynchronous O_DSYNC write is told of when its data is durable; a sync at submission does nothing for data that is
/// still under way.
#[test]
fn g13_async_dsync_is_durable_when_told() {
    for flags in [OpenFlags::O_DSYNC, OpenFlags::O_SYNC] {
        let m = Mount::new(IN_FLIGHT);
        let file = m.open_with("/data", flags);
        let told = Listener::new();
        m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
        assert_eq!(write_async(&file, 0, leaked(4096, 0x93), &told, 0), Err(EIOCBQUEUED));
        assert!(told.told().is_empty());
        m.disk.release();
        assert_eq!(told.wait(1), [(0, Ok(4096))]);
        let durable = m.disk.durable_image();
        assert!(durable.chunks(4096).any(|b| b == [0x93; 4096]), "{flags:?}: acknowledged, and not durable");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

// ---- G14 ----

// ---- G15 ----

// ---- G16 ----

// ---- G17 ----

/// Two writes that share a block of which nothing is written: `first` is begun, and, if `i_mutex` is free while it is in the device,
/// so is `second`, which then ends before it. Else one after the other. Each is (where, what).
fn at_once_if_they_may(m: &Mount, file: &KArc<File>, first: (i64, &'static [u8]), second: (i64, &'static [u8])) {
    let told = Listener::new();
    m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
    std::thread::scope(|s| {
        let _release = LetGo(|| m.disk.release());
        let writer = s.spawn(|| write_async(file, first.0, first.1, &told, 1));
        // What it plugs goes there when it sleeps under the lock, or when it has left it.
        m.wait_for_data();
        if file.f_inode().try_lock().is_some() {
            assert_eq!(writer.join().expect("the writer"), Err(EIOCBQUEUED));
            let of_first = data_in_flight(&m.disk);
            assert_eq!(write_async(file, second.0, second.1, &told, 2), Err(EIOCBQUEUED));
            complete(&m.disk, data_in_flight(&m.disk).into_iter().filter(|id| !of_first.contains(id)));
            m.disk.release();
            told.wait(2).into_iter().for_each(|(tag, ret)| assert!(ret.is_ok(), "write {tag}: {ret:?}"));
        } else {
            m.disk.release();
            assert_eq!(writer.join().expect("the writer"), Ok(first.1.len()), "it zeroes, and is waited for");
            assert_eq!(ended(write_async(file, second.0, second.1, &told, 2), &told, 1), Ok(second.1.len()));
        }
    });
    m.assert_idle(file);
}

/// G17: A writes a part of a block that holds no data, and zeroes the rest of it. B writes the whole block, does not wait for A,
/// and ends first; then A's zeros land on B's data. Or B is there already, and A does not wait for it.
///
/// `ext4_dio_prepare` (inode.rs): one that zeroes waits for all in flight, and is waited for, under `i_mutex` throughout.
#[test]
fn g17_a_write_that_zeroes_is_alone() {
    for block_size in [1024, 2048, 4096] {
        let image = image(&Mkfs { block_size, ..Mkfs::default() });
        let bs = block_size as usize;
        for mode in MODES {
            let m = Mount::with(&image, mode, auto());
            let file = m.open("/unwritten");
            at_once_if_they_may(&m, &file, (512, leaked(512, 0xa)), (0, leaked(bs, 0xb)));
            assert_eq!(read(&file, 0, bs), Ok(vec![0xb; bs]), "{mode} {bs}: A zeroed what B had written");

            // The other way round. A sleeps for B, and not before B is about to end.
            let told = Listener::new();
            m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
            let pos = 8 * bs as i64;
            assert_eq!(write_async(&file, pos, leaked(bs, 0xb), &told, 2), Err(EIOCBQUEUED));
            let of_b = data_in_flight(&m.disk);
            let waits = at("inode_dio_wait", {
                let disk = m.disk.clone();
                move || disk.release()
            });
            let ret = write_async(&file, pos + 512, leaked(512, 0xa), &told, 1);
            drop(waits);
            complete(&m.disk, of_b);
            m.disk.release();
            assert_eq!(ended(ret, &told, 2), Ok(512));
            let mut expected = vec![0xb; bs];
            expected[512..1024].fill(0xa);
            assert_eq!(read(&file, pos, bs), Ok(expected), "{mode} {bs}: A zeroed around itself what B had written");
            m.assert_idle(&file);
            drop((file, told));
            m.finish();
        }
    }
}

// ---- G18 ----

/// G18: the file ends inside a block. Two asynchronous writes of 512 bytes go there, at the end and behind it; at or past the end
/// they were taken for aligned, so each zeroes the other's half of the block.
///
/// `ext4_dio_verdict_change` (file.rs): whole blocks are whole blocks, wherever the end is.
#[test]
fn g18_past_the_end_is_not_aligned() {
    for (block_size, size) in [(1024, 0), (2048, 512), (4096, 512)] {
        let image = image(&Mkfs { block_size, ..Mkfs::default() });
        for mode in MODES {
            let m = Mount::with(&image, mode, auto());
            let file = m.open("/data");
            ext4_setattr_size(file.f_inode(), 0).expect("truncate");
            ext4_setattr_size(file.f_inode(), size).expect("truncate");
            at_once_if_they_may(&m, &file, (size, leaked(512, 0xa)), (size + 512, leaked(512, 0xb)));
            let expected = [vec![0; size as usize], vec![0xa; 512], vec![0xb; 512]].concat();
            assert_eq!(read(&file, 0, 4096), Ok(expected), "{mode} {block_size}: one zeroed the other");
            drop(file);
            m.finish();
        }
    }
}

// ---- G19 ----

/// G19: a write that zeroes waits until nothing is to be converted, without `i_mutex`. Aligned writes into blocks that hold no data
/// come one after the other, each before the one before it ends: it waits for ever.
///
/// `ext4_aio_mutex` (file.rs) does not wait; `ext4_dio_prepare` (inode.rs) does, with `i_mutex`, which newcomers need.
#[test]
fn g19_newcomers_stand_behind_a_write_that_zeroes() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/unwritten");
        let told = Listener::new();
        m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
        assert_eq!(write_async(&file, 0, leaked(4096, 0x19), &told, 0), Err(EIOCBQUEUED));
        let admitted = Rc::new(Cell::new(0));
        let waits = on_trace({
            let (admitted, file, told, disk) = (admitted.clone(), file.clone(), told.clone(), m.disk.clone());
            move |name| {
                if !["inode_dio_wait", "ext4_aiodio_wait"].contains(&name) {
                    return;
                }
                while admitted.get() < 20 && file.f_inode().try_lock().is_some() {
                    admitted.set(admitted.get() + 1);
                    let before = data_in_flight(&disk);
                    let ret = write_async(&file, admitted.get() << 12, leaked(4096, 0x19), &told, 0);
                    assert_eq!(ret, Err(EIOCBQUEUED));
                    complete(&disk, before);
                }
                disk.release();
            }
        });
        let ret = write_async(&file, (40 << 12) + 512, leaked(512, 0x20), &told, 1);
        drop(waits);
        m.disk.release();
        assert_eq!(admitted.get(), 0, "{mode}: writes go past one that waits, and would for ever");
        assert_eq!(ended(ret, &told, 2), Ok(512));
        assert_eq!(read(&file, (40 << 12) + 512, 1024), Ok([[0x20; 512], [0; 512]].concat()), "{mode}");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

// ---- G20 ----

/// G20: locks and queues for unaligned writes were 37 for all inodes of all mounts. One file's write is in the device; another's, on
/// another mount, waits for it, because its inode's address has the same remainder.
///
/// `AioInfo` (page_io.rs): each inode has its own.
#[test]
fn g20_strangers_do_not_wait_for_each_other() {
    for mode in MODES {
        let (m, other) = (Mount::new(mode), Mount::new(mode));
        let file = m.open("/unwritten");
        let strangers = [m.open("/data"), other.open("/data")];
        for stranger in &strangers {
            assert_eq!(write(stranger, 0, Pages::new(4096, 0x20).bytes()), Ok(4096));
        }
        let told = Listener::new();
        m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
        std::thread::scope(|s| {
            let _release = LetGo(|| m.disk.release());
            let writer = s.spawn(|| write_async(&file, 512, leaked(512, 0x20), &Listener::new(), 0));
            m.wait_for_data();
            for (nth, stranger) in strangers.iter().enumerate() {
                // One that must not sleep says so if it would.
                let ret = write_async_with(RwfFlags::NOWAIT, stranger, 512, leaked(512, 0x21), &told, nth);
                assert!(matches!(ret, Err(EIOCBQUEUED) | Ok(512)), "{mode}: a stranger's write would wait: {ret:?}");
            }
            m.disk.release();
            assert_eq!(writer.join().expect("the writer"), Ok(512));
        });
        m.assert_idle(&file);
        strangers.iter().for_each(|stranger| {
            stranger.f_inode().i_sb().drain_direct_io();
            assert_eq!(read(stranger, 512, 512), Ok(vec![0x21; 512]));
        });
        drop((file, strangers, told));
        m.finish();
        other.finish();
    }
}

// ---- G21 ----

/// Does something to a file that waits for direct I/O on it.
type Waiter = fn(&Mount, &KArc<File>);
/// What waits for direct I/O on `/holes`, and may not be starved by it.
const WAITERS: [(&str, Waiter); 5] = [
    ("truncate", |_, file| ext4_setattr_size(file.f_inode(), 4 << 12).expect("truncate")),
    ("punch", |_, file| ext4_fallocate(file.f_inode(), PUNCH_HOLE, 4 << 12, 4096).expect("punch")),
    ("fallocate", |_, file| ext4_fallocate(file.f_inode(), FallocFlags::empty(), 5 << 12, 4096).expect("fallocate")),
    ("buffered write", |m, _| {
        assert_eq!(write(&m.open_cached("/holes"), 0, &[0x21; 4096]), Ok(4096));
    }),
    ("unaligned write", |_, file| {
        assert_eq!(write(file, (5 << 12) + 512, Pages::new(512, 0x21).bytes()), Ok(512));
    }),
];
const PUNCH_HOLE: FallocFlags = FallocFlags::PUNCH_HOLE.union(FallocFlags::KEEP_SIZE);

/// G21: reads that take no lock come one after the other, each before the one before it ends: the count of direct I/O in flight
/// never is 0, and who waits for that, with `i_mutex`, waits for ever.
///
/// `ext4_inode_dio_begin_unlocked` (truncate.rs): the gate, closed before the waiting, sends new reads to `i_mutex`.
#[test]
fn g21_readers_do_not_starve_who_waits_for_them() {
    for mode in MODES {
        for (what, wait_for_io) in WAITERS {
            let m = Mount::new(mode);
            let file = m.open("/holes");
            let told = Listener::new();
            assert_eq!(read(&file, 0, 4096).as_deref(), Ok(&stamped(0, 4096)[..]));
            m.disk.hold(OpMask::READ | OpMask::NOT_META);
            assert_eq!(read_async(RwfFlags::empty(), &file, 0, 4096, &told, 0).0, Err(EIOCBQUEUED));
            let (waited, admitted) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
            let waits = at("inode_dio_wait", {
                let (waited, admitted) = (waited.clone(), admitted.clone());
                let (file, told, disk) = (file.clone(), told.clone(), m.disk.clone());
                move || {
                    waited.set(true);
                    while admitted.get() < 20 {
                        let before = data_in_flight(&disk);
                        match read_async(RwfFlags::NOWAIT, &file, 0, 4096, &told, 0).0 {
                            Err(EIOCBQUEUED) => admitted.set(admitted.get() + 1),
                            ret => {
                                assert_eq!(ret, Err(EAGAIN));
                                break;
                            }
                        }
                        complete(&disk, before);
                    }
                    disk.release();
                }
            });
            wait_for_io(&m, &file);
            drop(waits);
            assert!(waited.get(), "{mode}: {what} did not wait for a read in flight");
            assert_eq!(admitted.get(), 0, "{mode}: reads go past {what}, and would for ever");
            m.assert_idle(&file);
            assert_eq!(told.wait(1), [(0, Ok(4096))]);
            drop((file, told));
            m.finish();
        }
    }
}

// ---- G22 ----

/// G22: truncate has waited for direct I/O, and has not moved the size yet. A read that takes no lock begins, finds the old size,
/// and looks up blocks; those are freed, and go to another file, whose data the read then brings.
///
/// `ext4_setattr_size_locked` (setattr.rs): the gate is closed from before the waiting until the blocks are freed.
#[test]
fn g22_no_read_between_the_waiting_and_the_size() {
    let image = image(&Mkfs { args: &["-m", "0"], ..Mkfs::default() });
    for mode in MODES {
        let m = Mount::with(&image, mode, auto());
        let (file, other) = (m.open("/data"), m.open("/pieces"));
        let told = Listener::new();
        let len = (DATA_BLOCKS as usize) << 12;
        assert_eq!(read(&file, 0, len).map(|bytes| bytes.len()), Ok(len));
        m.fill_disk();
        m.disk.hold(OpMask::READ | OpMask::NOT_META);
        let begun = Rc::new(RefCell::new(None));
        let window = at("ext4_setattr: no direct I/O", {
            let (begun, file, told) = (begun.clone(), file.clone(), told.clone());
            move || *begun.borrow_mut() = Some(read_async(RwfFlags::NOWAIT, &file, 0, len, &told, 0))
        });
        ext4_setattr_size(file.f_inode(), 0).expect("truncate");
        drop(window);
        // The other file gets the blocks that the read is about to read.
        let secret = Pages::new(len, 0x5e);
        assert_eq!(write(&other, i64::from(PIECES_BLOCKS) << 12, secret.bytes()), Ok(len));
        m.disk.release();
        match begun.take().expect("the window") {
            (Err(EAGAIN), _) => {}
            (Err(EIOCBQUEUED), landing) => {
                let stolen = landing.wait(&told).chunks(4096).filter(|block| **block == [0x5e; 4096]).count();
                panic!("{mode}: a read began in the window, and brings {stolen} blocks of another file");
            }
            (ret, _) => panic!("{mode}: {ret:?}"),
        }
        m.assert_idle(&file);
        drop((file, other, told));
        m.finish();
    }
}

// ---- G23 ----

/// G23: the look-up finds one extent. Over the border of two, all written, the answer is shorter than the question: "not an
/// overwrite", and the write holds `i_mutex` while it is in the device. False from 2012 to 2026.
///
/// `ext4_overwrite_io_many` and `ext4_dio_verdict` (file.rs): each extent is asked. In the patch's own mode it is as it was.
#[test]
fn g23_an_overwrite_of_several_extents() {
    for block_size in [1024, 4096] {
        let image = image(&Mkfs { block_size, ..Mkfs::default() });
        let len = (PIECES_BLOCKS * block_size) as usize;
        for mode in MODES {
            let m = Mount::with(&image, mode, auto());
            let file = m.open("/pieces");
            let released = Rc::new(Cell::new(0));
            let tracing = at("i_mutex released", {
                let released = released.clone();
                move || released.set(released.get() + 1)
            });
            assert_eq!(write(&file, 0, Pages::new(len, 0x23).bytes()), Ok(len));
            drop(tracing);
            let expected = if mode == IN_FLIGHT { (0, 0, 1) } else { (1, 0, 0) };
            assert_eq!(m.modes(), expected, "{mode} {block_size}: under i_mutex, under i_data_sem, in flight");
            assert_eq!(released.get(), expected.2, "{mode} {block_size}: i_mutex is held throughout");
            assert_eq!(read(&file, 0, len), Ok(vec![0x23; len]), "{mode} {block_size}");
            // One written block and one that is not: no overwrite.
            let holes = m.open("/holes");
            assert_eq!(
                write(&holes, 0, Pages::new(2 * block_size as usize, 0x23).bytes()),
                Ok(2 * block_size as usize)
            );
            assert_eq!(m.sb.s_fs_info().dio.stats.fill.load(Ordering::Relaxed), 1, "{mode} {block_size}");
            m.assert_idle(&file);
            drop((file, holes));
            m.finish();
        }
    }
}

// ---- G24 ----

/// G24: a buffered write has moved the end of the file far out, and its page is not written back: in memory the file is long,
/// on disk it is not. A direct write in between goes for one inside the file; it is told of, the power fails, and its data is past
/// the end of the file that is found.
///
/// `ext4_dio_verdict` (file.rs): what ends past `i_disksize` extends the file.
#[test]
fn g24_past_the_size_on_disk() {
    for block_size in [1024, 4096] {
        let image = image(&Mkfs { block_size, ..Mkfs::default() });
        for (mode, asynchronous) in MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
            let m = Mount::with(&image, mode, auto());
            let (file, cached) = (m.open_with("/data", OpenFlags::O_DSYNC), m.open_cached("/data"));
            let end = file.f_inode().i_size();
            assert_eq!(write(&cached, end + (8 << 12), &[0x42; 4096]), Ok(4096));
            assert_eq!(file.f_inode().i_private().i_disksize.load(Ordering::Relaxed), end);
            let told = Listener::new();
            let ret = match asynchronous {
                true => ended(write_async(&file, end + 4096, leaked(4096, 0x24), &told, 0), &told, 1),
                false => write(&file, end + 4096, Pages::new(4096, 0x24).bytes()),
            };
            assert_eq!(ret, Ok(4096));
            let found = m.after_crash();
            let data = read(&found.open("/data"), end + 4096, 4096);
            assert_eq!(
                data,
                Ok(vec![0x24; 4096]),
                "{mode} {block_size} asynchronous {asynchronous}: told of, and lost"
            );
            found.finish();
            assert_eq!(file.f_inode().i_size(), end + (9 << 12));
            assert_eq!(read(&cached, end + (8 << 12), 4096), Ok(vec![0x42; 4096]));
            m.assert_idle(&file);
            drop((file, cached, told));
            m.finish();
        }
    }
}

// ---- G25 ----

/// G25: a direct write moves the end of the file. Its data is on the device, and cached pages have been dropped; the size has not
/// moved. A buffered read fills the last page, with zeros behind the old end. Then the size moves: the zeros are in the file.
///
/// `dio_end` (kernel-shim fs/direct_io.rs): conversion and size first, then the pages.
#[test]
fn g25_pages_are_dropped_after_the_size_moved() {
    for block_size in [1024, 2048, 4096] {
        let image = image(&Mkfs { block_size, ..Mkfs::default() });
        for mode in MODES {
            let m = Mount::with(&image, mode, auto());
            let (file, cached) = (m.open("/data"), m.open_cached("/data"));
            let page = 4 << 12;
            ext4_setattr_size(file.f_inode(), page + 512).expect("truncate");
            let reader = at("ext4_end_io_dio", {
                let cached = cached.clone();
                move || assert_eq!(read(&cached, page, 4096).map(|bytes| bytes.len()), Ok(512))
            });
            assert_eq!(write(&file, page, Pages::new(4096, 0x25).bytes()), Ok(4096));
            drop(reader);
            let found = read(&cached, page, 4096).expect("reading");
            assert!(
                found == [0x25; 4096],
                "{mode} {block_size}: {} bytes are stale",
                found.iter().filter(|b| **b == 0).count()
            );
            m.assert_idle(&file);
            drop((file, cached));
            m.finish();
        }
    }
}

// ---- G26 ----

/// G26: an asynchronous O_SYNC write past the end: data on the device, synced, then the size moved and the submitter told. The
/// power fails: the size on disk is the old one.
///
/// `dio_complete` (kernel-shim fs/direct_io.rs): the file system's part of the end comes before the sync.
#[test]
fn g26_the_size_is_durable_when_told() {
    for mode in MODES {
        for (flags, asynchronous) in
            [OpenFlags::O_DSYNC, OpenFlags::O_SYNC].into_iter().flat_map(|flags| [(flags, false), (flags, true)])
        {
            let m = Mount::new(mode);
            let file = m.open_with("/data", flags);
            let end = file.f_inode().i_size();
            let told = Listener::new();
            let ret = match asynchronous {
                true => ended(write_async(&file, end, leaked(4096, 0x26), &told, 0), &told, 1),
                false => write(&file, end, Pages::new(4096, 0x26).bytes()),
            };
            assert_eq!(ret, Ok(4096));
            let found = m.after_crash();
            let data = read(&found.open("/data"), end, 4096);
            assert_eq!(data, Ok(vec![0x26; 4096]), "{mode} {flags:?} asynchronous {asynchronous}: told of, and lost");
            found.finish();
            m.assert_idle(&file);
            drop((file, told));
            m.finish();
        }
    }
}

// ---- G27 ----

/// G27: data has got to the device, and who moves the size on disk for it looks at the two sizes; a truncate makes the file
/// longer, and sets both; then the end of the data, which was found before, is stored: the longer file is short on disk. Here
/// truncate waits for direct writes, so it is writing back that it can meet.
///
/// `ext4_update_disksize` (aops.rs), as `ext4_update_size` (dio.rs): looks and stores with `i_data_sem`, under which `move_size`
/// (setattr.rs) sets both.
#[test]
fn g27_both_sizes_are_seen_under_one_lock() {
    for block_size in [1024, 4096] {
        let m = Mount::with(&image(&Mkfs { block_size, ..Mkfs::default() }), IN_FLIGHT, auto());
        let cached = m.open_cached("/data");
        let (end, longer) = (cached.f_inode().i_size(), 2 << 20);
        assert_eq!(write(&cached, end, &[0x27; 3 << 12]), Ok(3 << 12));
        let truncated = Rc::new(Cell::new(false));
        let tracing = at("ext4_update_disksize", {
            let (truncated, file) = (truncated.clone(), cached.clone());
            move || {
                if !truncated.replace(true) {
                    // Not by this task, which has a handle.
                    let truncate = || ext4_setattr_size(file.f_inode(), longer).expect("truncate");
                    std::thread::scope(|s| drop(s.spawn(truncate)));
                }
            }
        });
        ext4_sync_file(cached.f_inode(), 0, i64::MAX, false).expect("fsync");
        drop(tracing);
        assert!(truncated.get());
        let i_disksize = cached.f_inode().i_private().i_disksize.load(Ordering::Relaxed);
        assert_eq!((cached.f_inode().i_size(), i_disksize), (longer, longer), "{block_size}: in memory, on disk");
        drop(cached);
        let found = Mount::with(&m.finish(), IN_FLIGHT, auto());
        assert_eq!(found.open("/data").f_inode().i_size(), longer);
        found.finish();
    }
}

// ---- G28 ----

/// G28: the verdict is "overwrite". To get another lock the one it was taken under is given up; a hole is punched; with the new
/// lock the verdict is used: the data goes to blocks that are not the file's.
///
/// `ext4_dio_write_checked` (file.rs): one lock, from before the first question until the write is counted in flight.
#[test]
fn g28_no_answer_is_older_than_its_lock() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let tracing = at("ext4_dio_verdict", {
            let file = file.clone();
            move || {
                // Whoever punches holes takes i_mutex first.
                if let Some(i_mutex) = file.f_inode().try_lock() {
                    i_mutex.unlock();
                    ext4_fallocate(file.f_inode(), PUNCH_HOLE, 0, 4096).expect("punch");
                }
            }
        });
        assert_eq!(write(&file, 0, Pages::new(4096, 0x28).bytes()), Ok(4096));
        drop(tracing);
        assert_eq!(read(&file, 0, 4096), Ok(vec![0x28; 4096]), "{mode}: written to where the file is no more");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

// ---- G29 ----

// ---- G30 ----

/// G30: the end of a failed write says that it failed: nothing may be converted for it.
#[test]
fn g30_a_failed_write_converts_nothing() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let seen = Rc::new(RefCell::new(Vec::new()));
    let tracing = on_trace({
        let seen = seen.clone();
        move |name| {
            if name.starts_with("ext4_end_io_dio") {
                seen.borrow_mut().push(name);
            }
        }
    });
    m.faults.fail_nth(1, OpMask::WRITE);
    // A synchronous write ends on the thread that waits for it.
    assert_eq!(write(&file, 0, Pages::new(4096, 0x30).bytes()), Err(EIO));
    assert_eq!(*seen.borrow(), ["ext4_end_io_dio: error"]);
    assert_eq!(write(&file, 0, Pages::new(4096, 0x30).bytes()), Ok(4096));
    assert_eq!(*seen.borrow(), ["ext4_end_io_dio: error", "ext4_end_io_dio"]);
    drop(tracing);
    m.assert_idle(&file);
    drop(file);
    m.finish();
}

// ---- G31 ----

/// G31: out of io_ends after the swap of locks: both locks are as the caller knows them. That leaving early does not compile is
/// in the documentation of `dio_lock`.
#[test]
fn g31_enomem_leaves_the_locks_right() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let told = Listener::new();
        assert_eq!(write(&file, 0, Pages::new(4096, 0x31).bytes()), Ok(4096));
        let fault = fail_nth_allocation(1);
        assert_eq!(write_async(&file, 0, leaked(4096, 0x32), &told, 0), Err(ENOMEM), "{mode}");
        assert!(fault.fired());
        drop(fault);
        m.assert_idle(&file);
        assert!(told.told().is_empty(), "{mode}: told of a write that was refused");
        assert_eq!(write(&file, 0, Pages::new(4096, 0x33).bytes()), Ok(4096), "{mode}");
        drop((file, told));
        m.finish();
    }
}

// ---- G32 ----

/// G32: a write into unwritten blocks is counted until they are converted. It fails, there is nothing to convert, and the count
/// stays: whoever waits for conversions waits for ever.
///
/// `ext4_end_io_convert` (page_io.rs): counted out on every way. For pages that are written back: `Unwritten` (aops.rs).
#[test]
fn g32_a_write_that_fails_is_counted_out() {
    for mode in MODES {
        let m = Mount::new(mode);
        let (file, cached) = (m.open("/unwritten"), m.open_cached("/unwritten"));
        let info = file.f_inode().i_private();
        let counted_out = |what: &str| {
            m.sb.drain_direct_io();
            assert!(!info.aio.is_unwritten(), "{mode}: {what}: a conversion is counted that never comes");
            assert_eq!(info.i_unwritten.load(Ordering::Relaxed), 0, "{mode}: {what}: a write-back is counted for ever");
            assert_eq!(file.f_inode().i_dio_count(), 0, "{mode}: {what}");
            m.faults.repair();
        };
        for asynchronous in [false, true] {
            m.faults.fail_nth(1, OpMask::WRITE | OpMask::NOT_META);
            let told = Listener::new();
            let ret = match asynchronous {
                true => ended(write_async(&file, 0, leaked(4096, 0x32), &told, 0), &told, 1),
                false => write(&file, 0, Pages::new(4096, 0x32).bytes()),
            };
            assert_eq!(ret, Err(EIO), "{mode} asynchronous {asynchronous}");
            counted_out("a bad write");
        }
        assert_eq!(write(&cached, 4096, &[0x32; 4096]), Ok(4096));
        m.faults.die_at(1, OpMask::WRITE | OpMask::NOT_META);
        assert_eq!(ext4_sync_file(cached.f_inode(), 0, i64::MAX, true), Err(EIO));
        counted_out("bad writing back");
        // All that waits for conversions.
        assert_eq!(write_async(&file, 512, leaked(512, 0x33), &Listener::new(), 0), Ok(512), "{mode}");
        ext4_setattr_size(file.f_inode(), 8192).expect("truncate");
        // The data is there, and the file system goes away before it is converted.
        let tracing = at("ext4_end_io_dio", {
            let sb = m.sb.clone();
            move || ext4_force_shutdown(&sb, GoingDown::NoLogFlush).expect("shutdown")
        });
        assert_eq!(write(&file, 4096, Pages::new(4096, 0x34).bytes()), Err(EIO), "{mode}");
        drop(tracing);
        counted_out("a bad conversion");
        drop((file, cached));
        let _ = ext4_umount(&m.sb);
    }
}

// ---- G33 ----

/// G33: a direct write is in the device, and the file is told to have its data go through the journal and the cache (`chattr +j`),
/// or to be written no more (`chattr +i`): the write ends in a mode that it was not begun in.
///
/// `setflags_locked` (ioctl.rs): the flags change with direct I/O stopped.
#[test]
fn g33_flags_change_with_nothing_in_flight() {
    for mode in MODES {
        for flag in [InodeFlags::JOURNAL_DATA, InodeFlags::IMMUTABLE] {
            let m = Mount::new(mode);
            let file = m.open("/data");
            let told = Listener::new();
            m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
            assert_eq!(write_async(&file, 0, leaked(4096, 0x33), &told, 0), Err(EIOCBQUEUED));
            let waited = Rc::new(Cell::new(false));
            let waits = at("inode_dio_wait", {
                let (waited, file, disk) = (waited.clone(), file.clone(), m.disk.clone());
                move || {
                    waited.set(!file.f_inode().i_private().i_flags().contains(flag));
                    disk.release();
                }
            });
            let flags = ext4_ioctl_getflags(file.f_inode());
            assert_eq!(ext4_ioctl_setflags(file.f_inode(), flags | flag), Ok(()));
            drop(waits);
            m.disk.release();
            assert!(waited.get(), "{mode}: {flag:?} was set with a write in flight");
            assert_eq!(told.wait(1), [(0, Ok(4096))]);
            m.assert_idle(&file);
            drop((file, told));
            m.finish();
        }
    }
}

// ---- G34 ----

/// Starts a write that must not sleep as if under a spin lock, where sleeping is a bug, and with no more memory than the two places
/// in pools that every asynchronous write has.
fn nowait(file: &KArc<File>, pos: i64, bytes: &'static [u8], told: &KArc<Listener>) -> Result<usize> {
    let atomic = SpinLock::new(());
    let spin = atomic.lock();
    let before = allocations();
    let ret = write_async_with(RwfFlags::NOWAIT, file, pos, bytes, told, 0);
    assert!(allocations() - before <= 2, "{} allocations", allocations() - before);
    drop(spin);
    ret
}

/// G34: a write that must not sleep allocates blocks, starts a handle, or waits for a lock, a page, or a reader's memory.
///
/// Each such place asks `Kiocb::is_nowait` (kernel-shim fs/kiocb.rs), and answers EAGAIN; nothing has changed then.
#[test]
fn g34_nowait_does_not_sleep() {
    for mode in MODES {
        let m = Mount::new(mode);
        let (page, told) = (leaked(4096, 0x34), Listener::new());
        let end = i64::from(DATA_BLOCKS) << 12;
        let files = ["/unwritten", "/holes", "/data"].map(|path| m.open(path));
        let [unwritten, holes, data] = &files;
        let again = |file: &KArc<File>, pos, what: &str| {
            let of = |file: &KArc<File>| (file.f_inode().i_size(), ext4_statfs(&m.sb).expect("statfs").f_bfree);
            let before = of(file);
            assert_eq!(nowait(file, pos, page, &told), Err(EAGAIN), "{mode}: {what}");
            assert_eq!(of(file), before, "{mode}: {what}");
        };
        again(unwritten, 0, "attributes that nobody has read yet");
        // Looked at, and found without capabilities.
        for file in &files {
            assert_eq!(write(file, 0, Pages::new(4096, 0x34).bytes()), Ok(4096));
        }
        again(unwritten, 4096, "blocks to convert");
        again(holes, 4096, "blocks to allocate");
        again(data, end, "a size to move");
        again(data, end + 4096, "a hole to leave");
        let i_mutex = data.f_inode().lock();
        again(data, 0, "i_mutex");
        i_mutex.unlock();
        let aio_mutex = data.f_inode().i_private().aio.aio_mutex.lock();
        assert_eq!(nowait(data, 512, leaked(512, 0x34), &told), Err(EAGAIN), "{mode}: the aio mutex");
        drop(aio_mutex);
        let i_data_sem = data.f_inode().i_private().i_data_sem.write();
        if mode == I_DATA_SEM {
            again(data, 0, "i_data_sem");
        }
        drop(i_data_sem);
        let cached = m.open_cached("/data");
        assert_eq!(write(&cached, 0, &[0x35; 4096]), Ok(4096));
        again(data, 0, "a dirty page");
        ext4_sync_file(cached.f_inode(), 0, i64::MAX, false).expect("fsync");
        ext4_freeze(&m.sb).expect("freezing");
        again(data, 0, "a frozen file system");
        ext4_unfreeze(&m.sb).expect("thawing");
        files.iter().for_each(|file| m.assert_idle(file));
        assert!(told.told().is_empty());
        // And where there is nothing to wait for it does not ask to come again.
        drop(cached);
        assert_eq!(write(data, 0, Pages::new(4096, 0x36).bytes()), Ok(4096), "{mode}: which drops the pages");
        assert_eq!(ended(nowait(data, 0, page, &told), &told, 1), Ok(4096), "{mode}");
        assert_eq!(ended(nowait(data, 4096 + 512, leaked(512, 0x34), &told), &told, 2), Ok(512), "{mode}");
        m.assert_idle(data);
        drop((files, told));
        m.finish();
    }
}

// ---- G35 ----

/// G35: long reads are in the device. A write that takes its lock exclusively first, to take a weaker one later, waits for them, and
/// all writes to come stand behind it: nothing is written until the reads are done.
///
/// `ext4_ext_direct_IO` (inode.rs): a write waits for others in flight only if it zeroes; `i_mutex` is held for moments.
#[test]
fn g35_overwrites_go_past_reads_in_flight() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let told = Listener::new();
        m.disk.hold(OpMask::READ | OpMask::WRITE | OpMask::NOT_META);
        let (read, landing) = read_async(RwfFlags::empty(), &file, 0, 4096, &told, 0);
        assert_eq!(read, Err(EIOCBQUEUED));
        let stalled = Rc::new(Cell::new(false));
        let waits = at("inode_dio_wait", {
            let (stalled, disk) = (stalled.clone(), m.disk.clone());
            move || {
                stalled.set(true);
                disk.release();
            }
        });
        for n in 1..=8 {
            assert_eq!(
                write_async(&file, n << 12, leaked(4096, 0x35), &told, n as usize).or(Err(EIOCBQUEUED)),
                Err(EIOCBQUEUED)
            );
            assert!(!stalled.get(), "{mode}: write {n} waits for a read");
        }
        drop(waits);
        assert_eq!(data_in_flight(&m.disk).len(), 9, "{mode}: one read and eight writes");
        m.disk.release();
        assert_eq!(landing.wait(&told), stamped(0, 4096));
        told.wait(9);
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

// ---- G36 ----

/// G36: as G1, without a journal: truncate waited for direct I/O only where it put the inode on the list of orphans. The write is
/// in the device, its blocks are freed and given to another file, and then it lands there.
///
/// `stop_direct_io` (truncate.rs) does not ask for a journal.
#[test]
fn g36_truncate_waits_without_a_journal() {
    for block_size in [1024, 4096] {
        let image = image(&Mkfs { block_size, features: "^has_journal", args: &["-m", "0"], ..Mkfs::default() });
        let len = (DATA_BLOCKS * block_size) as usize;
        for mode in MODES {
            let m = Mount::with(&image, mode, auto());
            let (file, other) = (m.open("/data"), m.open("/pieces"));
            let told = Listener::new();
            m.fill_disk();
            m.disk.hold(OpMask::WRITE | OpMask::NOT_META);
            assert_eq!(write_async(&file, 0, leaked(len, 0x36), &told, 0), Err(EIOCBQUEUED));
            let in_flight = data_in_flight(&m.disk);
            let waits = at("inode_dio_wait", {
                let (disk, in_flight) = (m.disk.clone(), in_flight.clone());
                move || complete(&disk, in_flight.iter().copied())
            });
            ext4_setattr_size(file.f_inode(), 0).expect("truncate");
            drop(waits);
            // The other file gets what was freed, and the data goes there before the write in flight does.
            let end = other.f_inode().i_size();
            std::thread::scope(|s| {
                let _release = LetGo(|| m.disk.release());
                let writer = s.spawn(|| write(&other, end, leaked(len, 0x5e)));
                while !writer.is_finished() {
                    complete(&m.disk, data_in_flight(&m.disk).into_iter().filter(|id| !in_flight.contains(id)));
                    std::thread::yield_now();
                }
                assert_eq!(writer.join().expect("the writer"), Ok(len), "{mode} {block_size}");
                m.disk.release();
                told.wait(1);
                let found = read(&other, end, len).expect("reading");
                assert!(
                    found.iter().all(|byte| *byte == 0x5e),
                    "{mode} {block_size}: the write landed in another file"
                );
            });
            m.assert_idle(&file);
            drop((file, other, told));
            m.finish();
        }
    }
}

// ---- G37 ----

/// G37: O_APPEND moves the write before the verdict looks where it goes. Else it is taken for an overwrite of what is at the old
/// place, and lands where no block is.
#[test]
fn g37_checks_before_the_verdict() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open_with("/data", OpenFlags::O_APPEND);
        let page = Pages::new(4096, 0x37);
        assert_eq!(write(&file, 0, page.bytes()), Ok(4096), "{mode}");
        let extends = m.sb.s_fs_info().dio.stats.extend.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(extends, 1, "{mode}: an append was taken for an overwrite");
        assert_eq!(read(&file, 0, 4096).as_deref(), Ok(&stamped(0, 4096)[..]), "{mode}");
        assert_eq!(read(&file, i64::from(DATA_BLOCKS) << 12, 4096).as_deref(), Ok(page.bytes()), "{mode}");
        drop(file);
        m.finish();
    }
}

/// Every fix that has a switch is switched off once, in a process of its own; its test must fail then.
#[test]
fn every_test_fails_without_its_fix() {
    let tests = [
        (Fix::G1, "g1_counted_before_the_unlock"),
        (Fix::G6, "g6_page_faults_come_before_the_window"),
        (Fix::G7, "g7_fcntl_in_the_middle"),
        (Fix::G8, "mount::g8_freezing_waits_for_direct_io_in_flight"),
        (Fix::G9, "g9_a_fault_half_way_zeroes_nothing"),
        (Fix::G13, "g13_async_dsync_is_durable_when_told"),
        (Fix::G16, "extents::g16_unwritten_extents_under_io_stay_as_they_were_cut"),
        (Fix::G17, "g17_a_write_that_zeroes_is_alone"),
        (Fix::G18, "g18_past_the_end_is_not_aligned"),
        (Fix::G19, "g19_newcomers_stand_behind_a_write_that_zeroes"),
        (Fix::G20, "g20_strangers_do_not_wait_for_each_other"),
        (Fix::G21, "g21_readers_do_not_starve_who_waits_for_them"),
        (Fix::G22, "g22_no_read_between_the_waiting_and_the_size"),
        (Fix::G23, "g23_an_overwrite_of_several_extents"),
        (Fix::G24, "g24_past_the_size_on_disk"),
        (Fix::G25, "g25_pages_are_dropped_after_the_size_moved"),
        (Fix::G26, "g26_the_size_is_durable_when_told"),
        (Fix::G27, "g27_both_sizes_are_seen_under_one_lock"),
        (Fix::G28, "g28_no_answer_is_older_than_its_lock"),
        (Fix::G29, "extents::g29_without_a_block_for_a_node_the_map_stays_as_it_was"),
        (Fix::G30, "g30_a_failed_write_converts_nothing"),
        (Fix::G32, "g32_a_write_that_fails_is_counted_out"),
        (Fix::G33, "g33_flags_change_with_nothing_in_flight"),
        (Fix::G34, "g34_nowait_does_not_sleep"),
        (Fix::G35, "g35_overwrites_go_past_reads_in_flight"),
        (Fix::G36, "g36_truncate_waits_without_a_journal"),
        (Fix::G37, "g37_checks_before_the_verdict"),
    ];
    let covered: Vec<Fix> = tests.iter().map(|(fix, _)| *fix).collect();
    assert_eq!(covered, Fix::ALL, "a fix without a test");
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for (fix, test) in tests {
            let missed = &missed;
            s.spawn(move || {
                let (failed, text) = fails_without(test, &format!("{fix:?}"));
                println!("{fix:?} off: {test} {}", if failed { "fails, as it must" } else { "PASSES" });
                if !failed {
                    missed.lock().unwrap().push((fix, text));
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
