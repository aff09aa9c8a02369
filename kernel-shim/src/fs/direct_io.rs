// SPDX-License-Identifier: GPL-2.0-only
//! `fs/direct-io.c`: from a caller's memory to bios and back, without a page cache between.
//!
//! The bios of one I/O share a `Flight`: a reference count, which is the number of bios in flight plus one for
//! the submitter, and the first error. Whoever drops the last reference completes the I/O:
//!
//! * synchronous: the submitter, on whose stack the flight is, and who sleeps until only its own reference is left;
//! * asynchronous: the last bio's completion, in interrupt context, or, if completing may sleep
//!   (`O_DSYNC`, cached pages to drop), a worker it is handed to. The flight is part of a `Dio` then, which comes from
//!   a fixed pool and has with it all that completing takes.
//!
//! Completion goes: file system (`end_io`), page cache, durability, `i_dio_count`, the submitter. A
//! write that failed tells `end_io` so, and converts nothing.
//!
//! State of an I/O lives there and nowhere else: not in the inode, not in the kiocb, which is
//! the submitter's alone and may be gone when the first bio ends.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::{DioCount, FileSystem, Inode, IocbFlags, IovIter, KiComplete, Kiocb, Locked, Rw};
use crate::alloc::{Arc, GFP_KERNEL, Pool, PoolBox};
use crate::block::{BIO, Bdev, BioPtr};
use crate::error::{Error, Result, code::*};
use crate::mm::filemap;
use crate::sched::{self, Task};
use crate::sync::WaitQueue;
use crate::testing::{Fix, HOOKS, reverted, trace};
use crate::workqueue::{Work, WorkItem, Workqueue};

mod rmw;
mod submit;

use rmw::dio_read_modify_write;
use submit::{BioTarget, submit_all};

/// Blocks one `get_block` call is asked for at most.
pub const DIO_MAX_BLOCKS: u32 = 4096;
/// Direct I/Os of one mount in flight at once; the next one waits.
const DIO_POOL: usize = 1024;
/// Completions that may sleep at once: each may wait for a journal commit or a flush, which they then share.
const DONE_WORKERS: usize = 8;
const SECTOR: usize = 512;
/// How long a polling submitter looks before it sleeps: longer than any fast device takes.
const POLL_NS: u64 = 2_000_000;

bitflags::bitflags! {
    /// How a direct I/O is to be run.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DioFlags: u32 {
        /// The file is locked throughout: a read takes `i_mutex` here while it looks up blocks, a write is
        /// entered with it.
        #[doc(alias = "DIO_LOCKING")]
        const LOCKING = 0x01;
        /// A write inside the file does not fill holes.
        #[doc(alias = "DIO_SKIP_HOLES")]
        const SKIP_HOLES = 0x02;
        /// A write may be finer than the device's logical block: the rest of the block is read first. The caller
        /// holds `i_mutex` and has waited for all I/O in flight, so that nothing changes between reading and writing.
        const READ_MODIFY_WRITE = 0x04;
        /// The caller waits, whatever the kiocb says: nobody else may be in the device with it.
        #[doc(alias = "IOMAP_DIO_FORCE_WAIT")]
        const WAIT = 0x10;
        /// The device writes the data through: it is durable when it completes.
        #[doc(alias = "REQ_FUA")]
        const FUA = 0x20;
        /// `end_io` may sleep, for this write changes the map: an asynchronous one completes in a worker.
        #[doc(alias = "dio->defer_completion")]
        const DEFER = 0x40;
        /// No sleeping for a bio: set for a kiocb that says so.
        #[doc(alias = "REQ_NOWAIT")]
        const NOWAIT = 0x80;
        /// The caller has counted itself in `i_dio_count` for as long as the call lasts: a synchronous I/O need not.
        const COUNTED = 0x08;
    }
}

/// Where a stretch of a file is: what C returns in `struct buffer_head`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapResult {
    /// `len` blocks of the device from `pblk` on.
    Mapped {
        /// First block on the device, in blocks of the file system.
        pblk: u64,
        /// Blocks, at least 1.
        len: u32,
        /// They hold no data of the file yet: what a write leaves out of a block is zeroed, and a read does not get here.
        #[doc(alias = "buffer_new")]
        fresh: bool,
    },
    /// `len` blocks, at least 1, without data: they read as zeros.
    Hole {
        /// Blocks.
        len: u32,
    },
}

/// Called once when the I/O's bios have ended, before anybody is told: C's `dio_iodone_t`. Gets the inode, the
/// offset, how many bytes were moved or what went wrong, and what the file system had left in `kiocb.private`.
/// Runs where the completion runs, so it must not sleep, unless the I/O has [`DioFlags::DEFER`].
pub type DioIodone<F> = fn(&Inode<F>, i64, Result<usize>, Option<<F as FileSystem>::Private>) -> Result;

/// What is to be done: the arguments of C's `__blockdev_direct_IO` that stay the same throughout.
pub struct DioRequest<'i, F: FileSystem, G> {
    /// Direction.
    pub rw: Rw,
    /// The file.
    pub inode: &'i Inode<F>,
    /// Byte of the file it starts at.
    pub offset: i64,
    /// See [`DioFlags`].
    pub flags: DioFlags,
    /// Maps up to so many blocks from a block of the file on; `true` asks it to allocate what is missing.
    pub get_block: G,
    /// See [`DioIodone`].
    pub end_io: Option<DioIodone<F>>,
}

/// What the bios of one I/O share while they are in flight.
struct Flight {
    /// Bios in flight, and one for the submitter.
    refcount: AtomicU32,
    /// errno of the first bio that failed, or 0.
    io_error: AtomicI32,
    /// The submitter; woken when its reference is the only one left.
    waiter: &'static Task,
}

impl Flight {
    #[inline]
    fn new() -> Self {
        Self { refcount: AtomicU32::new(1), io_error: AtomicI32::new(0), waiter: sched::current() }
    }

    #[inline]
    fn references(&self) -> u32 {
        sched::sched_point(sched::Point::Load, core::ptr::from_ref(&self.refcount).cast());
        self.refcount.load(Ordering::Acquire)
    }

    /// Gives a reference back; how many there were.
    #[inline]
    fn put(&self) -> u32 {
        sched::sched_point(sched::Point::Atomic, core::ptr::from_ref(&self.refcount).cast());
        self.refcount.fetch_sub(1, Ordering::AcqRel)
    }

    /// For the submitter: sleeps until no bio is in flight any more.
    #[inline]
    fn land(&self) {
        BIO.might_wait();
        sched::sched_wait(sched::Point::Wait, &self.refcount, |refcount| refcount.load(Ordering::Relaxed) == 1);
        while self.references() != 1 {
            sched::schedule();
        }
    }

    /// The same for one that asked to poll (`HIPRI`): asks the device for a while before it sleeps after all.
    #[cold]
    fn poll(&self, bdev: &Bdev) {
        let give_up = sched::now_ns() + POLL_NS;
        while self.references() != 1 && sched::now_ns() < give_up {
            if !bdev.poll() {
                core::hint::spin_loop();
            }
        }
    }

    #[inline]
    fn note(&self, result: Result) {
        if let Err(e) = result {
            // The first error is the one that is told.
            let _ = self.io_error.compare_exchange(0, e.to_errno(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// What became of `size` bytes that were submitted; `failed` is what ended the submission early.
    #[inline]
    fn result(&self, size: usize, failed: Option<Error>) -> Result<usize> {
        match (self.io_error.load(Ordering::Relaxed), failed) {
            (0, Some(e)) if size == 0 => Err(e),
            (0, _) => Ok(size),
            (e, _) => Err(Error::from_errno(e)),
        }
    }
}

/// C's `struct dio`: an asynchronous I/O.
///
/// # Invariants
/// All fields but the atomics are written by the submitter only, and read by others only after the last reference
/// was dropped. `inode` is valid: `filp` keeps it.
pub(crate) struct Dio<F: FileSystem> {
    flight: Flight,
    rw: Rw,
    /// Completion may sleep.
    defer: bool,
    /// `O_DSYNC`: durable before anybody is told.
    dsync: bool,
    /// Without the inode's times: not `O_SYNC`.
    datasync: bool,
    offset: i64,
    /// Bytes submitted, clipped to the end of the file for reads.
    size: usize,
    inode: NonNull<Inode<F>>,
    filp: Option<Arc<super::File<F>>>,
    end_io: Option<DioIodone<F>>,
    private: Option<F::Private>,
    ki_complete: Option<KiComplete>,
    work: Work,
}

// SAFETY: by the invariant there is one user at a time but for the atomics, and everything in it may be
// used from any thread: `Private` is Send, inodes and files are Sync.
unsafe impl<F: FileSystem> Send for Dio<F> {}

/// A mount's direct I/Os, and the workers that complete those that may sleep.
pub(crate) struct DioPool<F: FileSystem> {
    pool: Pool<Dio<F>, DIO_POOL>,
    /// For one to come free.
    wait: WaitQueue,
    /// How many wait for all to be complete: new ones wait for them, or it might never be so.
    draining: core::sync::atomic::AtomicU32,
    /// C's `s_dio_done_wq`.
    done_wq: Arc<Workqueue>,
}

impl<F: FileSystem> DioPool<F> {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pool: Pool::new(DIO_POOL, GFP_KERNEL, "dio")?,
            wait: WaitQueue::new(),
            done_wq: Workqueue::new("dio_done", DONE_WORKERS)?,
            draining: core::sync::atomic::AtomicU32::new(0),
        })
    }

    /// A place with what `init` returns; sleeps while all are in flight. [`ENOMEM`] if the pool has some and gives
    /// none, which is a test's doing; [`EAGAIN`] if it would sleep and must not.
    #[inline]
    fn alloc(&self, nowait: bool, mut init: impl FnMut() -> Dio<F>) -> Result<PoolBox<Dio<F>>> {
        loop {
            if self.draining.load(Ordering::Relaxed) != 0 {
                if nowait {
                    return Err(EAGAIN);
                }
                self.wait_for_drain();
            }
            if let Some(dio) = self.pool.try_alloc_with(&mut init) {
                return Ok(dio);
            }
            if HOOKS && self.pool.available() > 0 {
                return Err(ENOMEM);
            }
            if nowait {
                return Err(EAGAIN);
            }
            self.wait.wait_event(|| self.pool.available() > 0);
        }
    }

    fn free(&self, dio: PoolBox<Dio<F>>) {
        drop(dio);
        self.wait.wake_up_all();
    }

    #[cold]
    fn wait_for_drain(&self) {
        self.wait.wait_event(|| self.draining.load(Ordering::Relaxed) == 0);
    }

    /// Sleeps until all I/Os are complete.
    pub(crate) fn drain(&self) {
        self.draining.fetch_add(1, Ordering::Relaxed);
        if self.pool.available() != DIO_POOL {
            trace("direct I/O drains");
        }
        self.wait.wait_event(|| self.pool.available() == DIO_POOL);
        self.draining.fetch_sub(1, Ordering::Relaxed);
        self.wait.wake_up_all();
        // One that has given its place back may still be on its way out of a worker.
        self.done_wq.drain();
    }
}

/// Reads or writes past the page cache. Returns bytes moved, or [`EIOCBQUEUED`] if the kiocb is
/// asynchronous and its completion will tell.
///
/// A write is entered with whatever protects the file's blocks from being unmapped: `i_mutex`, or a count in
/// `i_dio_count`; the I/O counts itself from here to its completion. [`EINVAL`] if offset, addresses or lengths are not
/// multiples of the device's logical block. If memory or mapping fails half-way, what was before is written and
/// reported; nothing is written for the rest.
#[expect(non_snake_case, reason = "C name")]
#[inline(always)]
pub fn __blockdev_direct_IO<F, G>(
    iocb: &mut Kiocb<'_, F>,
    iter: &mut IovIter<'_>,
    mut req: DioRequest<'_, F, G>,
) -> Result<usize>
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let sb = req.inode.i_sb();
    let bdev = sb.s_bdev();
    let lbs = bdev.limits().logical_block_size as usize;
    let last = i64::try_from(iter.count()).ok().and_then(|count| req.offset.checked_add(count));
    if req.offset < 0 || last.is_none() {
        return Err(EINVAL);
    }
    if iter.count() == 0 {
        return Ok(0);
    }
    let unaligned = req.offset as usize | iter.alignment();
    if unaligned & (lbs - 1) != 0 {
        if unaligned & (SECTOR - 1) != 0 || req.rw == Rw::Read || !req.flags.contains(DioFlags::READ_MODIFY_WRITE) {
            return Err(EINVAL);
        }
        return dio_read_modify_write(iocb, iter, &mut req, lbs);
    }
    // A reader that must not see blocks move keeps i_mutex while it looks them up, and not while the device works.
    let i_mutex = match req.rw == Rw::Read && req.flags.contains(DioFlags::LOCKING) {
        true if iocb.is_nowait() => Some(req.inode.try_lock().ok_or(EAGAIN)?),
        locking => locking.then(|| req.inode.lock()),
    };
    if iocb.is_nowait() {
        req.flags |= DioFlags::NOWAIT;
    }
    let waits = iocb.is_sync() || req.flags.contains(DioFlags::WAIT);
    let count = (!(req.flags.contains(DioFlags::COUNTED) && waits)).then(|| req.inode.inode_dio_begin());
    let mut limit = usize::MAX;
    if req.rw == Rw::Read {
        let i_size = req.inode.i_size();
        if req.offset >= i_size {
            return Ok(0);
        }
        // The device reads whole logical blocks; what lies behind the end of the file is not reported.
        limit = (i_size - req.offset) as usize;
        iter.truncate(limit.div_ceil(lbs) * lbs);
    }
    if waits {
        let ret = dio_sync(iocb, iter, req, limit, i_mutex);
        drop(count);
        ret
    } else {
        dio_async(iocb, iter, req, limit, count)
    }
}

/// Submits, waits and completes. At most `limit` bytes are reported. `i_mutex` is given up in between.
#[inline(always)]
fn dio_sync<F, G>(
    iocb: &mut Kiocb<'_, F>,
    iter: &mut IovIter<'_>,
    req: DioRequest<'_, F, G>,
    limit: usize,
    i_mutex: Option<Locked<'_, F>>,
) -> Result<usize>
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    /// Bios refer to the flight until it has landed, whatever way the submission is left.
    struct Landing<'a>(&'a Flight);
    impl Drop for Landing<'_> {
        #[inline]
        fn drop(&mut self) {
            self.0.land();
        }
    }
    let flight = Flight::new();
    let landing = Landing(&flight);
    let to = BioTarget {
        flight: &flight,
        bdev: req.inode.i_sb().s_bdev(),
        end_io: dio_bio_end_io,
        private: NonNull::from(&flight).cast(),
        waits: true,
    };
    let (inode, rw, end_io, offset) = (req.inode, req.rw, req.end_io, req.offset);
    let (bytes, failed) = submit_all(to, iter, req);
    drop(i_mutex);
    if iocb.ki_flags.contains(IocbFlags::HIPRI) {
        flight.poll(inode.i_sb().s_bdev());
    }
    drop(landing);
    let size = bytes.min(limit);
    dio_end(inode, rw, end_io, iocb.private.take(), offset, size, flight.result(size, failed))
}

/// Submits, and answers [`EIOCBQUEUED`], unless all has ended by then or something failed, which is the answer then. At
/// most `limit` bytes are reported.
#[inline(never)]
fn dio_async<F, G>(
    iocb: &mut Kiocb<'_, F>,
    iter: &mut IovIter<'_>,
    req: DioRequest<'_, F, G>,
    limit: usize,
    count: Option<DioCount<'_, F>>,
) -> Result<usize>
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let inode = req.inode;
    let dsync = req.rw == Rw::Write && iocb.is_dsync() && !req.flags.contains(DioFlags::FUA);
    let dio = inode.i_sb().s_dio.alloc(iocb.is_nowait(), || Dio {
        flight: Flight::new(),
        rw: req.rw,
        defer: dsync || req.flags.contains(DioFlags::DEFER) || req.rw == Rw::Write && inode.i_mapping().nrpages() != 0,
        dsync,
        datasync: !iocb.ki_flags.contains(IocbFlags::SYNC),
        offset: req.offset,
        size: 0,
        inode: NonNull::from(inode),
        filp: Some(iocb.ki_filp.clone()),
        end_io: req.end_io,
        private: iocb.private.take(),
        ki_complete: iocb.take_complete(),
        work: Work::new(),
    })?;
    if let Some(count) = count {
        count.into_request();
    }
    let dio = PoolBox::into_raw(dio);
    // SAFETY: the submitter's reference keeps it to the end of this function.
    let flight: &Flight = unsafe { &(*dio.as_ptr()).flight };
    if reverted(Fix::G5) {
        // The submitter goes on with what it has no reference on any more.
        flight.refcount.fetch_sub(1, Ordering::AcqRel);
    }
    let to = BioTarget {
        flight,
        bdev: inode.i_sb().s_bdev(),
        end_io: dio_bio_end_aio::<F>,
        private: dio.cast(),
        waits: false,
    };
    let (bytes, failed) = submit_all(to, iter, req);
    trace("dio_async: submitted");
    let size = bytes.min(limit);
    // SAFETY: completions do not look at `size` before the last reference is gone, and we hold one.
    unsafe { (&raw mut (*dio.as_ptr()).size).write(size) };
    if reverted(Fix::G5) {
        return Err(EIOCBQUEUED);
    }
    if failed.is_some() {
        // Half-way: it is waited for, so that the answer can say how far it got.
        flight.land();
    } else if flight.put() != 1 {
        return Err(EIOCBQUEUED);
    }
    // All bios have ended, and none was the last: it is ours to complete, and our answer tells the submitter.
    // SAFETY: the last reference is ours.
    dio_complete(unsafe { PoolBox::from_raw(dio) }, failed, false)
}

/// `bi_end_io` of a synchronous I/O's bios. Any context.
fn dio_bio_end_io(bio: BioPtr) {
    // SAFETY: `dio_sync` does not return before the bio has given up its reference, in the `fetch_sub` below.
    let flight = unsafe { &*bio.bi_private.cast_const().cast::<Flight>() };
    flight.note(bio.result());
    drop(bio);
    // Read before our reference goes: with it goes the flight. Tasks live for ever.
    let waiter = flight.waiter;
    if flight.put() == 2 {
        sched::unpark(waiter);
    }
}

/// `bi_end_io` of an asynchronous I/O's bios. Any context.
fn dio_bio_end_aio<F: FileSystem>(bio: BioPtr) {
    // OK to unwrap: `dio_async` set it.
    let Some(dio) = NonNull::new(bio.bi_private.cast::<Dio<F>>()) else { return };
    // SAFETY: the bio holds a reference on its dio until the `fetch_sub` below.
    let flight = unsafe { &dio.as_ref().flight };
    flight.note(bio.result());
    drop(bio);
    // Read before our reference goes: a submitter that sees it gone frees the dio. Tasks live for ever.
    let waiter = flight.waiter;
    match flight.put() {
        2 => sched::unpark(waiter),
        // SAFETY: that was the last reference: the dio is ours.
        1 => dio_aio_complete(unsafe { PoolBox::from_raw(dio) }),
        _ => {}
    }
}

/// Completes an asynchronous I/O here, or has a worker do it where it may sleep.
#[inline]
fn dio_aio_complete<F: FileSystem>(dio: PoolBox<Dio<F>>) {
    // SAFETY: by the type's invariant.
    let inode = unsafe { dio.inode.as_ref() };
    // Pages may have come into the cache after the I/O was submitted: a buffered read of the old data. They
    // are dropped where sleeping is allowed (G11).
    if dio.defer || dio.rw == Rw::Write && inode.i_mapping().nrpages() != 0 {
        if let Err(dio) = inode.i_sb().s_dio.done_wq.queue(dio) {
            // A dio is queued once; were it pending, completing it here is all that is left.
            let _ = dio_complete(dio, None, true);
        }
    } else {
        // The listener was told; the result has no other reader.
        let _ = dio_complete(dio, None, true);
    }
}

impl<F: FileSystem> WorkItem for Dio<F> {
    type Pointer = PoolBox<Self>;

    fn work(&self) -> &Work {
        &self.work
    }

    fn run(this: PoolBox<Self>) {
        let _ = dio_complete(this, None, true);
    }
}

/// The file system and the page cache hear of the end of an I/O, with `ret` as the bios have it. Returns what the submitter
/// is to hear.
#[inline]
fn dio_end<F: FileSystem>(
    inode: &Inode<F>,
    rw: Rw,
    end_io: Option<DioIodone<F>>,
    private: Option<F::Private>,
    offset: i64,
    size: usize,
    ret: Result<usize>,
) -> Result<usize> {
    let mut ret = ret;
    let drop_pages = || {
        if rw == Rw::Write && size > 0 && inode.i_mapping().nrpages() != 0 && !reverted(Fix::G11) {
            filemap::dio_invalidate_pages(inode, offset, offset + size as i64 - 1);
        }
    };
    if reverted(Fix::G25) {
        drop_pages();
    }
    if let Some(end_io) = end_io {
        // Called for a failed I/O, too, which must not convert anything (G30).
        let told = if reverted(Fix::G30) { Ok(size) } else { ret };
        if let Err(e) = end_io(inode, offset, told, private) {
            ret = ret.and(Err(e));
        }
    }
    // After the file system's part: a page that is read before the data counts, or before the size has moved, holds zeros (G25).
    if !reverted(Fix::G25) {
        drop_pages();
    }
    ret
}

/// The end of an asynchronous I/O whose bios have all ended: conversion, cache, durability, count, and, if `aio`, the
/// listener. Sleeps only if the dio was marked so, or called by the submitter.
fn dio_complete<F: FileSystem>(mut dio: PoolBox<Dio<F>>, failed: Option<Error>, aio: bool) -> Result<usize> {
    // SAFETY: by the type's invariant; `filp` below keeps it as long as it is used.
    let inode = unsafe { dio.inode.as_ref() };
    let completes = inode.inode_dio_completes();
    let (offset, size) = (dio.offset, dio.size);
    let private = dio.private.take();
    // One whose submission ended with a result is synced by the submitter. Not at submission: that would promise
    // durability of data that is still under way (G13).
    let syncs = aio && dio.dsync && size > 0 && !reverted(Fix::G13);
    let datasync = dio.datasync;
    let sync = || F::fsync(inode, offset, offset + size as i64 - 1, datasync);
    if syncs && reverted(Fix::G26) {
        let _ = sync();
    }
    let mut ret = dio_end(inode, dio.rw, dio.end_io, private, offset, size, dio.flight.result(size, failed));
    // After the file system's part, which moves the size: that has to be durable, too (G26).
    if syncs
        && ret.is_ok()
        && !reverted(Fix::G26)
        && let Err(e) = sync()
    {
        ret = Err(e);
    }
    let (ki_complete, filp) = (dio.ki_complete.take(), dio.filp.take());
    inode.i_sb().s_dio.free(dio);
    drop(completes);
    // From here on truncate may pass.
    inode.inode_dio_done();
    // Before the listener hears: who closes the file then and unmounts does not find it open. Nothing of the inode is touched
    // any more.
    drop(filp);
    if let (true, Some(ki_complete)) = (aio, ki_complete) {
        ki_complete.complete(ret);
    }
    ret
}
