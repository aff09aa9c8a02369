// SPDX-License-Identifier: GPL-2.0-only
//! G13 to G24.

use super::*;

/// G13: an asynchronous O_DSYNC write is synced when its submission returns, with its data still under way.
///
/// Harm: acknowledged, and lost when the power fails. Closed in `dio_complete` (kernel-shim fs/direct_io.rs): synced
/// when the data is there, and told of then.
#[test]
fn g13_async_dsync_is_durable_when_told() {
    for (mode, flags) in MODES.into_iter().flat_map(|mode| [(mode, OpenFlags::O_DSYNC), (mode, OpenFlags::O_SYNC)]) {
        let m = Mount::new(mode);
        let (file, told) = (m.open_with("/data", flags), Listener::new());
        m.disk.hold(DATA);
        assert_eq!(write_async(&file, 0, leaked(BLOCK, 0x93), &told, 0), Err(EIOCBQUEUED));
        assert!(told.told().is_empty());
        m.disk.release();
        assert_eq!(told.wait(1), [(0, Ok(BLOCK))]);
        let durable = m.disk.durable_image();
        assert!(durable.chunks(BLOCK).any(|b| b == [0x93; BLOCK]), "{mode} {flags:?}: acknowledged, and not durable");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

/// G14: T has `i_mutex` and sleeps until W, into unwritten blocks, is no longer in flight. W's data is on the device;
/// to convert its blocks it takes `i_mutex`.
///
/// Harm: both wait for ever. Closed in `ext4_end_io_convert` (page_io.rs), which takes a handle and `i_data_sem`, and
/// nothing above.
#[test]
fn g14_the_end_of_a_write_takes_no_i_mutex() {
    for (mode, block_size) in modes_and_sizes() {
        let m = mount(mode, block_size);
        let (file, told) = (m.open("/unwritten"), Listener::new());
        m.disk.hold(DATA);
        assert_eq!(write_async(&file, 0, leaked(BLOCK, 0x14), &told, 0), Err(EIOCBQUEUED));
        let truncated = file.clone();
        let t = Meanwhile::start(move || ext4_setattr_size(truncated.f_inode(), block(1)));
        assert!(t.waits(), "{mode}: nothing in flight");
        m.disk.release();
        while told.told().is_empty() {
            assert!(!file.f_inode().is_contended(), "{mode}: the end of a write waits for who waits for it");
            std::thread::yield_now();
        }
        assert_eq!((t.join(), told.told()), (Ok(()), vec![(0, Ok(BLOCK))]), "{mode}");
        assert_eq!((filled(&file, 0, BLOCK), file.f_inode().i_size()), (Some(0x14), block(1)), "{mode}");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

/// G15: data is on the device, but the map does not say so yet: the blocks are still to be converted. fsync finds
/// nothing dirty and nothing on its way to the device.
///
/// Harm: fsync returns, the power fails, and the blocks read as zeros. Closed in `Writeback::io_done` (kernel-shim
/// mm/writeback.rs): pages are on their way until the map says so. (A direct write is told of after its conversion: who
/// syncs afterwards has it.)
#[test]
fn g15_fsync_waits_for_conversions() {
    let m = Mount::new(IN_FLIGHT);
    let cached = m.open_cached("/unwritten");
    assert_eq!(write(&cached, 0, &[0x15; BLOCK]), Ok(BLOCK));
    let sync = Rc::new(Cell::new(None));
    let tracing = at("ext4_write_batch: on the device", {
        let (sync, file, disk) = (sync.clone(), cached.clone(), m.disk.clone());
        move || {
            let (file, disk) = (file.clone(), disk.clone());
            let fsync = Meanwhile::start(move || {
                ext4_sync_file(file.f_inode(), 0, i64::MAX, true).expect("synced");
                disk.durable_image()
            });
            fsync.waits();
            sync.set(Some(fsync));
        }
    });
    ext4_writepages(cached.f_inode(), 0, i64::MAX, false).expect("written back");
    drop(tracing);
    let crashed = Mount::with(&sync.take().expect("a batch was written").join(), IN_FLIGHT, auto());
    let file = crashed.open("/unwritten");
    assert_eq!(filled(&file, 0, BLOCK), Some(0x15), "fsync has returned, and the data is not there");
    drop(file);
    crashed.finish();
    drop(cached);
    m.finish();
}

/// G16: W was cut out of an unwritten extent, as a piece that is converted without a block more. T allocates the blocks
/// behind it, and they are merged.
///
/// Harm: in 2012 the whole is converted, and shows old data; else W has to be cut out again, for which there may be no
/// block. Closed in `ext4_fallocate`, which waits for W, and `TreeEdit::merge_rule` (extents/insert.rs): nothing
/// unwritten is merged while W is in flight.
#[test]
fn g16_what_is_under_io_is_not_merged() {
    for mode in MODES {
        let m = Mount::new(mode);
        let (file, told, disk) = (m.open("/unwritten"), Listener::new(), m.disk.clone());
        let at_end = UNWRITTEN_BLOCKS - 4;
        m.disk.hold(DATA);
        assert_eq!(write_async(&file, block(at_end), leaked(4 * BLOCK, 0x16), &told, 0), Err(EIOCBQUEUED));
        let tracing = at("inode_dio_wait", move || disk.release());
        let end = block(UNWRITTEN_BLOCKS);
        assert_eq!(ext4_fallocate(file.f_inode(), FallocFlags::empty(), end, block(4)), Ok(()), "{mode}");
        drop(tracing);
        let [cut, behind] = [at_end, UNWRITTEN_BLOCKS]
            .map(|lblk| ext4_ext_next(file.f_inode(), Lblk(lblk as u32)).expect("the map is whole"));
        m.disk.release();
        assert_eq!((cut.lblk().0 as usize, cut.len()), (at_end, 4), "{mode}: merged while under I/O: {cut:?}");
        assert_eq!(cut.pblk().0 + 4, behind.pblk().0, "{mode}: they could not be merged anyhow");
        assert_eq!(told.wait(1), [(0, Ok(4 * BLOCK))], "{mode}");
        assert_eq!(filled(&file, block(at_end), 4 * BLOCK), Some(0x16), "{mode}");
        assert_eq!(filled(&file, end, 4 * BLOCK), Some(0), "{mode}");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

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

/// Does something to a file that waits for direct I/O on it.
type Waiter = fn(&Mount, &KArc<File>);
/// What waits for direct I/O on `/holes`, and may not be starved by it.
const WAITERS: [(&str, Waiter); 5] = [
    ("truncate", |_, file| ext4_setattr_size(file.f_inode(), 4 << 12).expect("truncate")),
    ("punch", |_, file| ext4_fallocate(file.f_inode(), PUNCH, 4 << 12, 4096).expect("punch")),
    ("fallocate", |_, file| ext4_fallocate(file.f_inode(), FallocFlags::empty(), 5 << 12, 4096).expect("fallocate")),
    ("buffered write", |m, _| {
        assert_eq!(write(&m.open_cached("/holes"), 0, &[0x21; 4096]), Ok(4096));
    }),
    ("unaligned write", |_, file| {
        assert_eq!(write(file, (5 << 12) + 512, Pages::new(512, 0x21).bytes()), Ok(512));
    }),
];

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
