// SPDX-License-Identifier: GPL-2.0-only
//! Races of the patch's history, by their numbers. Each test fails when the fix it is about is switched off: the last
//! one sees to that, and prints the table that stands in the documentation of the crate.
//!
//! W is the writer that is without `i_mutex`, T whoever takes blocks away meanwhile: truncate, fallocate. Interleavings
//! are not left to chance: the disk keeps writes of data until it is told to let them go, and a thread acts, or lets
//! others act, where it comes to a tracepoint.

use std::cell::{Cell, RefCell};
use std::io::{Write, stderr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ext4_dio::aops::ext4_writepages;
use ext4_dio::ext4::{InodeFlags, Lblk, MapBlocks, MapFlags};
use ext4_dio::extents::ext4_ext_next;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::ext4_file_write;
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::inode::ext4_map_blocks;
use ext4_dio::ioctl::{ext4_ioctl_getflags, ext4_ioctl_setflags};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, GoingDown, Kiocb, ext4_force_shutdown, ext4_freeze, ext4_statfs, ext4_umount, ext4_unfreeze};
use ext4_dio_tests::alone::run_alone;
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Mkfs, poke, stamped, stamped_blocks};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::alloc::fault::{allocations, fail_nth_allocation};
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IoVec, IocbFlags, IovIter, OpenFlags, RwfFlags, UserMemory};
use kernel_shim::sync::{SpinLock, WaitQueue};
use kernel_shim::testing::{Fix, on_trace};

/// Bytes in a block, if the test does not care.
const BLOCK: usize = 4096;
/// Blocks of `/unwritten`.
const UNWRITTEN_BLOCKS: usize = 64;
/// What is kept in the device: writes of files' data.
const DATA: OpMask = OpMask::WRITE.union(OpMask::NOT_META);
/// What a disk holds where no file has written.
const STALE: u8 = 0xdb;

const KEEP: FallocFlags = FallocFlags::KEEP_SIZE;
const PUNCH: FallocFlags = FallocFlags::PUNCH_HOLE.union(KEEP);

/// Where block `n` of a file begins.
fn block(n: usize) -> i64 {
    (n * BLOCK) as i64
}

/// A mount whose blocks are so many bytes.
fn mount(mode: &str, block_size: u32) -> Mount {
    Mount::with(&image(&Mkfs { block_size, ..Mkfs::default() }), mode, auto())
}

/// The modes, and sizes of blocks with them.
fn modes_and_sizes() -> impl Iterator<Item = (&'static str, u32)> {
    [(EXCLUSIVE, 1024), (I_DATA_SEM, 2048)].into_iter().chain(MODES.map(|mode| (mode, 4096))).chain([(IN_FLIGHT, 1024)])
}

/// A small disk without a journal: what is freed can be had at once.
fn small_disk(mode: &str) -> Mount {
    let spec = Mkfs { features: "^has_journal", size_kib: 4 << 10, inodes: 64, args: &["-m", "0"], ..Mkfs::default() };
    Mount::with(&image(&spec), mode, auto())
}

/// Nobody gets a block any more, unless somebody gives one back.
fn fill_up(m: &Mount) {
    assert_eq!(ext4_fallocate(m.open("/pieces").f_inode(), KEEP, 0, 1 << 30), Err(ENOSPC));
}

/// Where the longest extent of `/data` begins, and its length, in blocks.
fn longest_extent(file: &KArc<File>) -> (usize, usize) {
    let extents = std::iter::successors(ext4_ext_next(file.f_inode(), Lblk(0)).ok(), |es| {
        Some(es.end()).filter(|end| *end < DATA_BLOCKS).and_then(|end| ext4_ext_next(file.f_inode(), Lblk(end)).ok())
    });
    extents.map(|es| (es.lblk().0 as usize, es.len() as usize)).max_by_key(|(_, len)| *len).expect("it has extents")
}

/// The blocks of `/unwritten`, which is one extent, hold what somebody else has deleted.
fn make_stale(m: &Mount) {
    let file = m.open("/unwritten");
    let mut map = MapBlocks::new(Lblk(0), UNWRITTEN_BLOCKS as u32);
    assert_eq!(ext4_map_blocks(file.f_inode(), &mut map), Ok(UNWRITTEN_BLOCKS as u32));
    assert!(map.m_flags.contains(MapFlags::UNWRITTEN));
    poke(m.sb.s_bdev(), map.m_pblk.0 * BLOCK as u64, &[STALE; UNWRITTEN_BLOCKS * BLOCK]);
}

/// The byte that all of a file's `len` bytes from `pos` on are; none if there are fewer, or others.
fn filled(file: &KArc<File>, pos: i64, len: usize) -> Option<u8> {
    let bytes = read(file, pos, len).expect("readable");
    bytes.first().copied().filter(|first| bytes.len() == len && bytes.iter().all(|byte| byte == first))
}

/// A write that must not sleep.
fn write_nowait(file: &KArc<File>, pos: i64, bytes: &[u8]) -> Result<usize> {
    let iov = [IoVec::source(bytes)];
    let mut iocb = Kiocb::new_sync(file, pos);
    iocb.ki_flags |= IocbFlags::NOWAIT;
    ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
}

// ---- G1 ----

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

// ---- G2 ----

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

// ---- G3 ----

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

// ---- G4 ----

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

// ---- G5 ----

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

// ---- G6 ----

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

// ---- G7 ----

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

// ---- G8 ----

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

// ---- G9 ----

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

// ---- G10 ----

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

// ---- G11 ----

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

// ---- G12 ----

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

// ---- G13 ----

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

// ---- G14 ----

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

// ---- G15 ----

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

// ---- G16 ----

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

// ---- G30 ----

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

// ---- G31 ----

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

// ---- all of them ----

/// A race, and what becomes of it.
struct Race {
    fix: Fix,
    test: &'static str,
    /// What happens without the fix, in a few words.
    harm: &'static str,
    /// Where it is closed: function, and file here or in kernel-shim.
    closed: &'static str,
}

const fn race(fix: Fix, test: &'static str, harm: &'static str, closed: &'static str) -> Race {
    Race { fix, test, harm, closed }
}

/// In the order of their numbers. The same table, as [`Race::row`] has it, stands in the documentation of ext4-dio.
const RACES: &[Race] = &[
    race(
        Fix::G1,
        "g1_counted_before_the_unlock",
        "one file's data in another's blocks",
        "dio_lock.rs `DioLock::release`: counted, then unlocked",
    ),
    race(
        Fix::G2,
        "g2_punching_a_hole_waits",
        "a write lands in blocks that were freed",
        "fallocate.rs, truncate.rs `stop_direct_io`",
    ),
    race(
        Fix::G3,
        "g3_whoever_moves_blocks_waits",
        "parts of a write land elsewhere in the file",
        "fallocate.rs, truncate.rs `stop_direct_io`",
    ),
    race(
        Fix::G4,
        "g4_each_write_has_its_own_state",
        "acknowledged data reads as zeros",
        "page_io.rs `IoEnd`: owned by its write",
    ),
    race(
        Fix::G5,
        "g5_completion_before_submission_ends",
        "freed memory is used",
        "kernel-shim fs/direct_io.rs `dio_async`: a reference of its own",
    ),
    race(
        Fix::G6,
        "g6_page_faults_come_before_the_window",
        "deadlock with page faults",
        "inode.rs `ext4_ext_direct_IO`: `fault_in` before the window",
    ),
    race(Fix::G7, "g7_fcntl_in_the_middle", "panic", "file.rs `ext4_set_verdict`: always one"),
    race(
        Fix::G8,
        "g8_nothing_is_written_while_frozen",
        "a frozen file system changes",
        "file.rs `ext4_file_write`, sb_remount.rs `ext4_freeze`",
    ),
    race(
        Fix::G9,
        "g9_a_fault_half_way_zeroes_nothing",
        "good data is zeroed",
        "kernel-shim fs/direct_io/submit.rs `submit_mapped`: only what was pinned",
    ),
    race(
        Fix::G10,
        "g10_the_size_does_not_come_back",
        "a truncated file has its old size",
        "kernel-shim mm/filemap.rs `generic_file_direct_write`: the size is not its business",
    ),
    race(
        Fix::G11,
        "g11_pages_are_dropped_when_the_data_is_there",
        "the cache shows old data for good",
        "kernel-shim fs/direct_io.rs `dio_end`",
    ),
    race(
        Fix::G12,
        "g12_buffered_writers_wait",
        "of two writes one is lost",
        "aops.rs `ext4_buffered_write_iter`, `ext4_perform_write`",
    ),
    race(
        Fix::G13,
        "g13_async_dsync_is_durable_when_told",
        "acknowledged O_DSYNC data is lost by a power failure",
        "kernel-shim fs/direct_io.rs `dio_complete`",
    ),
    race(
        Fix::G14,
        "g14_the_end_of_a_write_takes_no_i_mutex",
        "truncate and a write wait for each other",
        "page_io.rs `ext4_end_io_convert`: no `i_mutex`",
    ),
    race(
        Fix::G15,
        "g15_fsync_waits_for_conversions",
        "fsync returns, and the data is not found again",
        "kernel-shim mm/writeback.rs `Writeback::io_done`",
    ),
    race(
        Fix::G16,
        "g16_what_is_under_io_is_not_merged",
        "more is converted than was written, or nothing can be",
        "fallocate.rs, extents/insert.rs `merge_rule`",
    ),
    race(
        Fix::G17,
        "g17_a_write_that_zeroes_is_alone",
        "one write zeroes another's data",
        "inode.rs `ext4_dio_prepare`: alone in the device",
    ),
    race(
        Fix::G18,
        "g18_past_the_end_is_not_aligned",
        "one write zeroes another's data",
        "file.rs `ext4_dio_verdict_change`: whole blocks, wherever the end is",
    ),
    race(
        Fix::G19,
        "g19_newcomers_stand_behind_a_write_that_zeroes",
        "a write waits for ever",
        "inode.rs `ext4_dio_prepare`: waits with `i_mutex`",
    ),
    race(
        Fix::G20,
        "g20_strangers_do_not_wait_for_each_other",
        "strangers wait for each other",
        "page_io.rs `AioInfo`: one per inode",
    ),
    race(
        Fix::G21,
        "g21_readers_do_not_starve_who_waits_for_them",
        "truncate waits for ever",
        "truncate.rs `ext4_inode_dio_begin_unlocked`",
    ),
    race(
        Fix::G22,
        "g22_no_read_between_the_waiting_and_the_size",
        "another file's data is read",
        "setattr.rs `ext4_setattr_size_locked`: the gate stays closed",
    ),
    race(
        Fix::G23,
        "g23_an_overwrite_of_several_extents",
        "overwrites one after the other",
        "file.rs `ext4_overwrite_io_many`",
    ),
    race(
        Fix::G24,
        "g24_past_the_size_on_disk",
        "acknowledged data is past the end after a crash",
        "file.rs `ext4_dio_verdict`: past `i_disksize` extends",
    ),
    race(
        Fix::G25,
        "g25_pages_are_dropped_after_the_size_moved",
        "zeros in the cache over what was written",
        "kernel-shim fs/direct_io.rs `dio_end`: size, then pages",
    ),
    race(
        Fix::G26,
        "g26_the_size_is_durable_when_told",
        "O_SYNC data is past the end after a crash",
        "kernel-shim fs/direct_io.rs `dio_complete`: size, then sync",
    ),
    race(
        Fix::G27,
        "g27_both_sizes_are_seen_under_one_lock",
        "a longer file is short on disk",
        "aops.rs `ext4_update_disksize`, dio.rs `ext4_update_size`",
    ),
    race(
        Fix::G28,
        "g28_no_answer_is_older_than_its_lock",
        "data in blocks that are not the file's",
        "file.rs `ext4_dio_write_checked`: one lock throughout",
    ),
    race(
        Fix::G29,
        "g29_no_block_for_a_cut_shows_nothing",
        "deleted data is seen",
        "extents/convert.rs `split_before_io`: whole, or not at all",
    ),
    race(
        Fix::G30,
        "g30_a_failed_write_converts_nothing",
        "deleted data is seen",
        "kernel-shim fs/direct_io.rs `dio_end`, page_io.rs `ext4_end_io_convert`",
    ),
    race(
        Fix::G31,
        "g31_enomem_leaves_the_locks_right",
        "locks are held for ever",
        "inode.rs `ext4_ext_direct_IO`: one way out",
    ),
    race(
        Fix::G32,
        "g32_a_write_that_fails_is_counted_out",
        "who waits for conversions waits for ever",
        "page_io.rs `ext4_end_io_convert`, aops.rs `Unwritten`",
    ),
    race(
        Fix::G33,
        "g33_flags_change_with_nothing_in_flight",
        "a write ends in another mode than it began in",
        "ioctl.rs `setflags_locked`",
    ),
    race(
        Fix::G34,
        "g34_nowait_does_not_sleep",
        "a write sleeps that must not",
        "kernel-shim fs/kiocb.rs `Kiocb::is_nowait`, wherever it is asked",
    ),
    race(
        Fix::G35,
        "g35_overwrites_go_past_reads_in_flight",
        "nothing is written while reads are in the device",
        "inode.rs `ext4_ext_direct_IO`: waits only to zero",
    ),
    race(
        Fix::G36,
        "g36_truncate_waits_without_a_journal",
        "one file's data in another's blocks",
        "truncate.rs `stop_direct_io`: journal or not",
    ),
    race(
        Fix::G37,
        "g37_checks_before_the_verdict",
        "an append is taken for an overwrite",
        "file.rs `ext4_dio_write_checked`: checks first",
    ),
];

impl Race {
    /// Its line of the table in the documentation.
    fn row(&self) -> String {
        let Self { fix, test, harm, closed } = self;
        format!("//! | {fix:?} | {harm} | {closed} | `{test}` |\n")
    }
}

/// The documentation says what is tested.
#[test]
fn the_documentation_has_the_same_table() {
    const LIB: &str = include_str!("../../src/lib.rs");
    let table: String = RACES.iter().map(Race::row).collect();
    assert!(LIB.contains(&table), "src/lib.rs should have:\n{table}");
}

/// So many tests run beside each other.
const AT_ONCE: usize = 4;
/// Every test is run twice in a process of its own: it passes with its fix, and fails without. Told in a table.
#[test]
fn every_test_fails_without_its_fix() {
    let covered: Vec<Fix> = RACES.iter().map(|race| race.fix).collect();
    assert_eq!(covered, Fix::ALL, "a race without a test");
    let start = Instant::now();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|s| {
        for _ in 0..AT_ONCE {
            s.spawn(|| {
                while let Some(race) = RACES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let fix = format!("{:?}", race.fix);
                    let (on, off) = (run_alone(race.test, None), run_alone(race.test, Some(&fix)));
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((race.fix, on, off));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(fix, ..)| *fix as u8);
    let mut table = format!("{:5} {:54} {:7} {:7} {:53} closed by\n", "race", "test", "with", "without", "harm");
    for (Race { test, harm, closed, .. }, (fix, on, off)) in RACES.iter().zip(&results) {
        let fix = format!("{fix:?}");
        table += &format!("{fix:5} {test:54} {:7} {:7} {harm:53} {closed}\n", on.0, off.0);
    }
    let took = start.elapsed().as_secs_f64();
    table += &format!("{} races: each test passes with its fix and fails without: {took:.1} s\n", results.len());
    stderr().write_all(table.as_bytes()).expect("stderr");
    results.retain(|(_, on, off)| on.0 != "passes" || !["fails", "hangs"].contains(&off.0));
    for (fix, (on, on_text), (off, off_text)) in &results {
        println!("{fix:?} {on} with the fix:\n{on_text}\n{fix:?} {off} without it:\n{off_text}");
    }
    assert!(results.is_empty(), "{} tests do not show what they should", results.len());
}
