// SPDX-License-Identifier: GPL-2.0-only
//! Races of the patch's history, by their numbers. Each test fails when the fix it is about is switched off: the last one sees
//! to that.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ext4_dio::file::ext4_file_write;
use ext4_dio::{File, Kiocb};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::stamped;
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::alloc::fault::fail_nth_allocation;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IoVec, IovIter, OpenFlags, UserMemory};
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

// ---- G18 ----

// ---- G19 ----

// ---- G20 ----

// ---- G21 ----

// ---- G22 ----

// ---- G23 ----

// ---- G24 ----

// ---- G25 ----

// ---- G26 ----

// ---- G27 ----

// ---- G28 ----

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

// ---- G33 ----

// ---- G34 ----

// ---- G35 ----

// ---- G36 ----

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
        (Fix::G29, "extents::g29_without_a_block_for_a_node_the_map_stays_as_it_was"),
        (Fix::G30, "g30_a_failed_write_converts_nothing"),
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
