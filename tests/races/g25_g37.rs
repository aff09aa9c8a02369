// SPDX-License-Identifier: GPL-2.0-only
//! G25 to G37.

use super::*;

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

/// G27: data has got to the device, and who moves the size on disk for it looks at the two sizes; a truncate makes the file
/// longer, and sets both; then the end of the data, which was found before, is stored: the longer file is short on disk. Here
/// truncate waits for direct writes, so it is writing back that it can meet.
///
/// `ext4_update_disksize` (aops.rs), as `extend_sizes` (dio.rs): looks and stores with `i_data_sem`, under which `move_size`
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
                    ext4_fallocate(file.f_inode(), PUNCH, 0, 4096).expect("punch");
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

/// G29: W is to be cut out of an unwritten extent, and there is no block for the node that takes. The kernel zeroes
/// what it can, marks all of the extent written and goes on; then the I/O fails.
///
/// Harm: what the blocks held before is seen. Closed in `TreeEdit::split_before_io` (extents/convert.rs): a cut is made
/// whole or not at all.
#[test]
fn g29_no_block_for_a_cut_shows_nothing() {
    for mode in MODES {
        let m = small_disk(mode);
        make_stale(&m);
        let file = m.open("/unwritten");
        // Four extents: the root is full.
        for hole in [10, 20, 30] {
            assert_eq!(ext4_fallocate(file.f_inode(), PUNCH, block(hole), block(1)), Ok(()));
        }
        fill_up(&m);
        m.faults.fail_nth(1, DATA);
        let wrote = write(&file, block(40), Pages::new(BLOCK, 0x29).bytes());
        m.faults.repair();
        let now = filled(&file, 0, UNWRITTEN_BLOCKS * BLOCK);
        assert_eq!(now, Some(0), "{mode}: what was deleted is seen, after {wrote:?}");
        assert_eq!(wrote, Err(ENOSPC), "{mode}");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// G30: W's bio fails, and its end converts the blocks all the same.
///
/// Harm: what the blocks held before is seen. Closed in `dio_end` (kernel-shim fs/direct_io.rs), which says that it
/// failed, and `ext4_end_io_convert` (page_io.rs), which listens.
#[test]
fn g30_a_failed_write_converts_nothing() {
    for mode in MODES {
        let m = Mount::new(mode);
        make_stale(&m);
        let (file, told) = (m.open("/unwritten"), Listener::new());
        m.faults.fail_nth(1, DATA);
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x30).bytes()), Err(EIO), "{mode}");
        assert_eq!(filled(&file, 0, BLOCK), Some(0), "{mode}: what was deleted is seen");
        m.faults.fail_nth(1, DATA);
        let ret = write_async(&file, 0, leaked(BLOCK, 0x31), &told, 0);
        assert_eq!(if ret == Err(EIOCBQUEUED) { told.wait(1)[0].1 } else { ret }, Err(EIO), "{mode}");
        assert_eq!(filled(&file, 0, BLOCK), Some(0), "{mode}: what was deleted is seen");
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x32).bytes()), Ok(BLOCK), "{mode}");
        assert_eq!(filled(&file, 0, BLOCK), Some(0x32), "{mode}");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

/// G31: W has swapped its locks, and finds no memory for its `io_end`.
///
/// Harm: it leaves with the wrong ones. Closed in `ext4_ext_direct_IO` (inode.rs), where every way out goes through
/// `'retake_lock`; that leaving early does not compile is in the documentation of [`dio_lock`](ext4_dio::dio_lock).
#[test]
fn g31_enomem_leaves_the_locks_right() {
    for mode in MODES {
        let m = Mount::new(mode);
        let (file, told) = (m.open("/data"), Listener::new());
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x31).bytes()), Ok(BLOCK));
        let fault = fail_nth_allocation(1);
        assert_eq!(write_async(&file, 0, leaked(BLOCK, 0x32), &told, 0), Err(ENOMEM), "{mode}");
        assert!(fault.fired());
        drop(fault);
        m.assert_idle(&file);
        assert!(told.told().is_empty(), "{mode}: told of a write that was refused");
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x33).bytes()), Ok(BLOCK), "{mode}");
        drop((file, told));
        m.finish();
    }
}

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

/// Starts a write that must not sleep as if under a spin lock, where sleeping is a bug; with no more memory than the two places
/// in pools that every asynchronous write has; and without the look-up that may sleep.
fn nowait(file: &KArc<File>, pos: i64, bytes: &'static [u8], told: &KArc<Listener>) -> Result<usize> {
    let _tracing = at("ext4_map_blocks", || panic!("a look-up that may sleep"));
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
        let files = ["/unwritten", "/holes", "/data", "/pieces"].map(|path| m.open(path));
        let [unwritten, holes, data, pieces] = &files;
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
        let len = (PIECES_BLOCKS as usize) << 12;
        assert_eq!(write(pieces, 0, Pages::new(len, 0x34).bytes()), Ok(len));
        assert_eq!(ended(nowait(pieces, 0, leaked(len, 0x34), &told), &told, 3), Ok(len), "{mode}");
        m.assert_idle(data);
        drop((files, told));
        m.finish();
    }
}

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

/// G37: the verdict looks where the write seems to go; then O_APPEND moves it to the end of the file.
///
/// Harm: an append is taken for an overwrite of what is at the old place; by luck, what is looked up again where it
/// goes to is a hole. Closed in `ext4_dio_write_checked` (file.rs): the checks come first.
#[test]
fn g37_checks_before_the_verdict() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open_with("/data", OpenFlags::O_APPEND);
        let page = Pages::new(BLOCK, 0x37);
        assert_eq!(write(&file, 0, page.bytes()), Ok(BLOCK), "{mode}");
        let extends = m.sb.s_fs_info().dio.stats.extend.load(Ordering::Relaxed);
        assert_eq!(extends, 1, "{mode}: an append was taken for an overwrite");
        assert_eq!(read(&file, 0, BLOCK), Ok(stamped(0, BLOCK as u32)), "{mode}");
        assert_eq!(read(&file, block(DATA_BLOCKS as usize), BLOCK).as_deref(), Ok(page.bytes()), "{mode}");
        drop(file);
        m.finish();
    }
}
