// SPDX-License-Identifier: GPL-2.0-only
//! G1 to G12.

use super::*;

/// G1: W finds its blocks written, lets `i_mutex` go, and is counted in flight only then. T comes in between, sees
/// nothing in flight, and frees the blocks; another file gets them, and writes to them; then W's bio lands.
///
/// Harm: one file's data in another's blocks. Closed in [`DioLock::release`](ext4_dio::dio_lock::DioLock::release):
/// counted first.
#[test]
fn g1_counted_before_the_unlock() {
    for mode in [I_DATA_SEM, IN_FLIGHT] {
        let m = small_disk(mode);
        fill_up(&m);
        let (file, other, told) = (m.open("/data"), m.open("/unwritten"), Listener::new());
        let (at_lblk, blocks) = longest_extent(&file);
        let t = Rc::new(Cell::new(None));
        m.disk.hold(DATA);
        let tracing = at("i_mutex released", {
            let (t, file, other, disk) = (t.clone(), file.clone(), other.clone(), m.disk.clone());
            move || {
                let (file, other) = (file.clone(), other.clone());
                let truncate = Meanwhile::start_with(&["inode_dio_wait", "direct I/O stopped"], move || {
                    ext4_setattr_size(file.f_inode(), 0).expect("truncated");
                    let all = block(UNWRITTEN_BLOCKS + DATA_BLOCKS as usize);
                    ext4_fallocate(other.f_inode(), FallocFlags::empty(), 0, all).expect("what was freed")
                });
                if truncate.arrives() == Some("inode_dio_wait") {
                    disk.release();
                }
                t.set(Some(truncate));
            }
        });
        let mut queued =
            usize::from(write_async(&file, block(at_lblk), leaked(blocks * BLOCK, 0x11), &told, 0) == Err(EIOCBQUEUED));
        drop(tracing);
        t.take().expect("W was without i_mutex").join();
        let landing: Vec<_> = m.disk.pending().iter().map(|event| event.id).collect();
        let (pos, len) = (block(UNWRITTEN_BLOCKS), DATA_BLOCKS as usize * BLOCK);
        queued += usize::from(write_async(&other, pos, leaked(len, 0x22), &told, 1) == Err(EIOCBQUEUED));
        for event in m.disk.pending().iter().filter(|event| !landing.contains(&event.id)) {
            m.disk.complete(event.id);
        }
        m.disk.release();
        told.wait(queued);
        assert_eq!(filled(&other, pos, len), Some(0x22), "{mode}: one file's data in another's blocks");
        m.assert_idle(&file);
        drop((file, other, told));
        m.finish();
    }
}

/// G2: W is submitted, its bio in flight, all its locks given back. T punches a hole, without waiting, and frees the
/// blocks.
///
/// Harm: the bio lands in blocks that are free, or another file's. Closed in `stop_direct_io` (truncate.rs), with which
/// `fallocate` begins in every mode.
#[test]
fn g2_punching_a_hole_waits() {
    for (mode, block_size) in modes_and_sizes() {
        for how in [PUNCH, FallocFlags::ZERO_RANGE] {
            let m = mount(mode, block_size);
            let (file, told) = (m.open("/data"), Listener::new());
            m.disk.hold(DATA);
            assert_eq!(write_async(&file, block(2), leaked(4 * BLOCK, 0x21), &told, 0), Err(EIOCBQUEUED));
            let disk = m.disk.clone();
            let tracing = at("inode_dio_wait", move || disk.release());
            assert_eq!(ext4_fallocate(file.f_inode(), how, 0, block(8)), Ok(()), "{mode}");
            drop(tracing);
            let lost = data_in_flight(&m.disk).len();
            assert_eq!(lost, 0, "{mode}: {how:?}: on its way to blocks that are not the file's any more");
            assert_eq!(told.wait(1), [(0, Ok(4 * BLOCK))], "{mode}");
            assert_eq!(filled(&file, 0, 8 * BLOCK), Some(0), "{mode}: {how:?}");
            m.assert_idle(&file);
            drop((file, told));
            m.finish();
        }
    }
}

/// G3: in Linux defragmentation exchanges the extents of two files, and W's bio, in flight, lands in the block that was
/// the file's before. Nothing here exchanges extents, but COLLAPSE_RANGE and INSERT_RANGE move them within the file: W
/// has looked up its first blocks, T moves all by one, W looks up the others.
///
/// Harm: W's data where nobody wrote it, and not where W did. Closed in `stop_direct_io` (truncate.rs): whoever moves
/// waits for W.
#[test]
fn g3_whoever_moves_blocks_waits() {
    for (how, block_size) in [(FallocFlags::COLLAPSE_RANGE, 1024), (FallocFlags::INSERT_RANGE, 4096)] {
        let m = mount(IN_FLIGHT, block_size);
        let (file, bs) = (m.open("/pieces"), block_size as usize);
        let t = Rc::new(Cell::new(None));
        let tracing = at("ext4_get_block_write_nolock: not known", {
            let (t, file, begun) = (t.clone(), file.clone(), Cell::new(false));
            move || {
                if !begun.replace(true) {
                    let file = file.clone();
                    let mover = Meanwhile::start(move || ext4_fallocate(file.f_inode(), how, 0, bs as i64));
                    mover.waits();
                    t.set(Some(mover));
                }
            }
        });
        assert_eq!(write(&file, 2 * bs as i64, Pages::new(12 * bs, 0x33).bytes()), Ok(12 * bs));
        drop(tracing);
        assert_eq!(t.take().expect("several extents").join(), Ok(()));
        let mut model = stamped_blocks(PIECES_BLOCKS, block_size);
        model[2 * bs..14 * bs].fill(0x33);
        match how {
            FallocFlags::COLLAPSE_RANGE => drop(model.drain(..bs)),
            _ => drop(model.splice(..0, vec![0; bs])),
        }
        let now = read(&file, 0, model.len() + bs).expect("readable");
        assert!(now == model, "{how:?}: a part of the write is in another place");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// G4: A, into unwritten blocks, has made its `io_end`. B, an overwrite without `i_mutex`, makes its own. Then A finds
/// that blocks will have to be converted, and says so where the inode's one pointer leads: to B's.
///
/// Harm: A is acknowledged, never converted, and reads as zeros. Closed in [`Private::IoEnd`](ext4_dio::Private): the
/// write has it, and nobody else.
#[test]
fn g4_each_write_has_its_own_state() {
    for mode in [I_DATA_SEM, IN_FLIGHT] {
        let m = Mount::new(mode);
        let (file, told) = (m.open("/unwritten"), Listener::new());
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x40).bytes()), Ok(BLOCK));
        let a = Rc::new(Cell::new(None));
        let tracing = on_trace({
            let (a, file) = (a.clone(), file.clone());
            move |name| match name {
                "i_mutex released" => {
                    let file = file.clone();
                    let fill = move || write(&file, block(10), Pages::new(BLOCK, 0x41).bytes());
                    a.set(Some(Meanwhile::up_to(&["ext4_dio_prepare"], fill)));
                }
                "retake_lock" => {
                    let fill: Meanwhile<_> = a.take().expect("it was begun");
                    assert_eq!(fill.join(), Ok(BLOCK));
                }
                _ => {}
            }
        });
        let queued = write_async(&file, 0, leaked(BLOCK, 0x42), &told, 0) == Err(EIOCBQUEUED);
        drop(tracing);
        told.wait(usize::from(queued));
        assert_eq!(filled(&file, 0, BLOCK), Some(0x42), "{mode}");
        assert_eq!(filled(&file, block(10), BLOCK), Some(0x41), "{mode}: acknowledged, and never converted");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

/// G5: the last bio of an asynchronous write completes before its submission is over, and frees what the submitter goes
/// on with.
///
/// Harm: freed memory is written to; here, the write is told of with the wrong length. Closed in `dio_async`
/// (kernel-shim fs/direct_io.rs): the submitter has a reference of its own.
#[test]
fn g5_completion_before_submission_ends() {
    for mode in MODES {
        let m = Mount::new(mode);
        let (file, told, disk) = (m.open("/data"), Listener::new(), m.disk.clone());
        m.disk.hold(DATA);
        let tracing = at("dio_async: submitted", move || {
            // Sleeping sends what is plugged.
            WaitQueue::new().wait_event_timeout(|| false, 0);
            complete(&disk, data_in_flight(&disk));
        });
        let ret = write_async(&file, 0, leaked(BLOCK, 0x50), &told, 0);
        drop(tracing);
        assert_eq!((ret, told.told()), (Ok(BLOCK), vec![]), "{mode}: the submitter's part was gone");
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
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

/// G6: W has `i_data_sem` for reading when its memory turns out to be missing. The page fault, W's own or that of
/// somebody whom W's waits for, wants it for writing.
///
/// Harm: deadlock. Closed in `ext4_ext_direct_IO` (inode.rs): memory is faulted in before the window, and only pinned
/// in it.
#[test]
fn g6_page_faults_come_before_the_window() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let user = Faulting { file: file.clone(), present: AtomicBool::new(false), deadlocks: AtomicUsize::new(0) };
        let data = Pages::new(BLOCK, 0x60);
        let iov = [IoVec::source(data.bytes())];
        let ret = ext4_file_write(&mut Kiocb::new_sync(&file, 0), &mut IovIter::with_user_memory(&iov, &user));
        assert_eq!(ret, Ok(BLOCK), "{mode}");
        assert_eq!(user.deadlocks.load(Ordering::Relaxed), 0, "{mode}: the fault would wait for its own task");
        drop((user, file));
        m.finish();
    }
}

/// G7: `fcntl` takes O_DIRECT away between ext4's look at the flags and the generic code's, so that one leaves no
/// verdict and the other looks for it.
///
/// Harm: BUG. Closed in `ext4_set_verdict` (file.rs): there is one whatever the flags are by then.
#[test]
fn g7_fcntl_in_the_middle() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let tracing = at("ext4_file_dio_write", {
            let file = file.clone();
            move || file.set_flags(OpenFlags::empty()).expect("fcntl")
        });
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x70).bytes()), Ok(BLOCK), "{mode}");
        drop(tracing);
        assert!(!file.f_flags().contains(OpenFlags::O_DIRECT));
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// G8: the patch's own `f_op->write` forgets the right to write; and an asynchronous write has given it back when it is
/// queued.
///
/// Harm: a frozen file system changes. Closed in [`ext4_file_write`] (the right) and [`ext4_freeze`] (what is in flight
/// is waited for).
#[test]
fn g8_nothing_is_written_while_frozen() {
    for mode in MODES {
        let m = small_disk(mode);
        let (file, told, disk) = (m.open("/data"), Listener::new(), m.disk.clone());
        assert_eq!(write(&file, 0, Pages::new(BLOCK, 0x80).bytes()), Ok(BLOCK));
        m.disk.hold(DATA);
        assert_eq!(write_async(&file, 0, leaked(BLOCK, 0x81), &told, 0), Err(EIOCBQUEUED));
        let tracing = at("direct I/O drains", move || disk.release());
        assert_eq!(ext4_freeze(&m.sb), Ok(()));
        drop(tracing);
        let in_flight = data_in_flight(&m.disk).len();
        m.disk.release();
        let frozen = write_nowait(&file, 0, Pages::new(BLOCK, 0x82).bytes());
        assert_eq!((in_flight, frozen), (0, Err(EAGAIN)), "{mode}: written while frozen");
        ext4_unfreeze(&m.sb).expect("frozen");
        drop((file, told));
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

/// G9: half of the caller's memory is not there, and the blocks are looked up already: the rest of them is written from
/// the zero page.
///
/// Harm: good data is zeroed, and the caller hears EFAULT. Closed in `Submission::submit_mapped` (kernel-shim
/// fs/direct_io/submit.rs): what was pinned is written, and told.
#[test]
fn g9_a_fault_half_way_zeroes_nothing() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let data = Pages::new(4 * BLOCK, 0x90);
        let was = stamped_blocks(4, BLOCK as u32);
        for (limit, written) in
            [(0, Err(EFAULT)), (100, Err(EFAULT)), (512, Ok(512)), (2 * BLOCK + 700, Ok(2 * BLOCK + 512))]
        {
            let (ret, n) = (write_ending(&file, &data, limit), written.unwrap_or(0));
            let now = read(&file, 0, 4 * BLOCK).expect("readable");
            assert!(now[n..] == was[n..], "{mode}: old data behind the fault at {limit} is gone, after {ret:?}");
            assert!(now[..n] == data.bytes()[..n] && ret == written, "{mode}: {limit} bytes of memory: {ret:?}");
            m.assert_idle(&file);
        }
        drop(file);
        m.finish();
    }
}

/// G10: W's data is on the device, its count gone. T makes the file short. W takes `i_mutex` again, and the generic
/// code finds that it has written past the end.
///
/// Harm: the old size comes back, over blocks that are gone. Closed in `generic_file_direct_write` (kernel-shim
/// mm/filemap.rs), which does not move the size; who moves it does it counted in flight.
#[test]
fn g10_the_size_does_not_come_back() {
    for mode in [I_DATA_SEM, IN_FLIGHT] {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let tracing = at("retake_lock", {
            let file = file.clone();
            move || ext4_setattr_size(file.f_inode(), block(1)).expect("truncated")
        });
        assert_eq!(write(&file, block(8), Pages::new(BLOCK, 0xa0).bytes()), Ok(BLOCK), "{mode}");
        drop(tracing);
        assert_eq!(file.f_inode().i_size(), block(1), "{mode}: the size has come back");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// G11: W has found no cached pages, and is in flight. A buffered reader fills a page with what the block holds still.
/// The pages were dropped for the second time when W was submitted.
///
/// Harm: the cache shows old data until the page goes for another reason. Closed in `dio_end` (kernel-shim
/// fs/direct_io.rs): they are dropped when the data is on the device.
#[test]
fn g11_pages_are_dropped_when_the_data_is_there() {
    for (mode, block_size) in modes_and_sizes() {
        let m = mount(mode, block_size);
        let (file, cached, told) = (m.open("/data"), m.open_cached("/data"), Listener::new());
        m.disk.hold(DATA);
        assert_eq!(write_async(&file, 0, leaked(BLOCK, 0x11), &told, 0), Err(EIOCBQUEUED));
        assert!(read(&cached, 0, BLOCK) == Ok(stamped_blocks(BLOCK as u32 / block_size, block_size)), "{mode}");
        m.disk.release();
        assert_eq!(told.wait(1), [(0, Ok(BLOCK))], "{mode}");
        assert_eq!(filled(&cached, 0, BLOCK), Some(0x11), "{mode}: a write has ended, and is not seen");
        m.assert_idle(&file);
        drop((file, cached, told));
        m.finish();
    }
}

/// G12: W is in flight. A buffered writer takes the free `i_mutex`, reads the page, changes a part of it and leaves it
/// dirty. W ends, and cannot drop the page.
///
/// Harm: the page, written back, takes W's data with it. Closed in `ext4_buffered_write_iter` and `ext4_perform_write`
/// (aops.rs), which wait for W.
#[test]
fn g12_buffered_writers_wait() {
    for (mode, block_size) in modes_and_sizes() {
        let m = mount(mode, block_size);
        let (file, cached, told, disk) = (m.open("/data"), m.open_cached("/data"), Listener::new(), m.disk.clone());
        m.disk.hold(DATA);
        assert_eq!(write_async(&file, 0, leaked(BLOCK, 0x11), &told, 0), Err(EIOCBQUEUED));
        let tracing = at("inode_dio_wait", move || disk.release());
        assert_eq!(write(&cached, 0, &[0x22; 512]), Ok(512), "{mode}");
        drop(tracing);
        m.disk.release();
        assert_eq!(told.wait(1), [(0, Ok(BLOCK))], "{mode}");
        let both: Vec<u8> = [[0x22; 512].as_slice(), &[0x11; BLOCK - 512]].concat();
        for reader in [&cached, &file] {
            assert!(read(reader, 0, BLOCK).as_ref() == Ok(&both), "{mode}: of two writes one is lost");
        }
        m.assert_idle(&file);
        drop((file, cached, told));
        m.finish();
    }
}
