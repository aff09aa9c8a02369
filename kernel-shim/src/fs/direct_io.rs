// SPDX-License-Identifier: GPL-2.0-only
//! `fs/direct-io.c`: from a caller's memory to bios and back, without a page cache between.
//!
//! One I/O is one `Dio`, from a fixed pool. Its reference count is the number of bios in flight, plus one
//! for the submitter until it has submitted all. Whoever drops the last reference completes the I/O:
//!
//! * synchronous: the submitter, which sleeps until only its own reference is left;
//! * asynchronous: the last bio's completion, in interrupt context, or, if completing may sleep
//!   (`O_DSYNC`, cached pages to drop), a worker it is handed to.
//!
//! Completion goes: file system (`end_io`), page cache, durability, `i_dio_count`, the submitter. A
//! write that failed tells `end_io` so, and converts nothing.
//!
//! State of an I/O lives in its `Dio` and nowhere else: not in the inode, not in the kiocb, which is
//! the submitter's alone and may be gone when the first bio ends.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::{FileSystem, Inode, IocbFlags, IovIter, KiComplete, Kiocb, Rw};
use crate::alloc::{Arc, GFP_KERNEL, GFP_NOFS, KVec, Pool, PoolBox};
use crate::block::{Bdev, BioPtr, ReqOpf, bdev_rw, bio_alloc, submit_bio};
use crate::error::{Error, Result, code::*};
use crate::mm::filemap;
use crate::sched::{self, Task};
use crate::sync::WaitQueue;
use crate::testing::{Fix, reverted};
use crate::workqueue::{Work, WorkItem, Workqueue};

/// Blocks one `get_block` call is asked for at most.
pub const DIO_MAX_BLOCKS: u32 = 4096;
/// Direct I/Os of one mount in flight at once; the next one waits.
const DIO_POOL: usize = 1024;
/// Bytes a read-modify-write carries at once.
const RMW_BYTES: usize = 64 << 10;
const SECTOR: usize = 512;

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
    },
    /// `len` blocks, at least 1, without data: they read as zeros.
    Hole {
        /// Blocks.
        len: u32,
    },
}

/// Called once when the I/O's bios have ended, before anybody is told: C's `dio_iodone_t`. Gets the inode, the
/// offset, how many bytes were moved or what went wrong, and what the file system had left in `kiocb.private`.
/// Runs where the completion runs, so it must not sleep.
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

/// One direct I/O.
///
/// # Invariants
/// All fields but the atomics are written by the submitter only, and read by others only after the last reference
/// was dropped. `inode` is valid: `filp` keeps it for an asynchronous I/O, the submitter's kiocb for a synchronous one.
pub(crate) struct Dio<F: FileSystem> {
    refcount: AtomicU32,
    /// errno of the first bio that failed, or 0.
    io_error: AtomicI32,
    /// The submitter; woken when its reference is the only one left.
    waiter: &'static Task,
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
    /// C's `s_dio_done_wq`.
    done_wq: Arc<Workqueue>,
}

impl<F: FileSystem> DioPool<F> {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pool: Pool::new(DIO_POOL, GFP_KERNEL, "dio")?,
            wait: WaitQueue::new(),
            done_wq: Workqueue::new("dio_done", 2)?,
        })
    }

    /// A place for `dio`; sleeps while all are in flight. [`ENOMEM`] if the pool has some and gives none.
    fn alloc(&self, dio: Dio<F>) -> Result<PoolBox<Dio<F>>> {
        let mut dio = dio;
        loop {
            match self.pool.try_alloc(dio) {
                Ok(b) => return Ok(b),
                Err(_) if self.pool.available() > 0 => return Err(ENOMEM),
                Err(back) => dio = back,
            }
            self.wait.wait_event(|| self.pool.available() > 0);
        }
    }

    fn free(&self, dio: PoolBox<Dio<F>>) {
        drop(dio);
        self.wait.wake_up_all();
    }

    /// Sleeps until all I/Os are complete.
    pub(crate) fn drain(&self) {
        self.wait.wait_event(|| self.pool.available() == DIO_POOL);
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
pub fn __blockdev_direct_IO<F, G>(
    iocb: &mut Kiocb<F>,
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
    let end = req.offset.checked_add(i64::try_from(iter.count()).map_err(|_| EINVAL)?).ok_or(EINVAL)?;
    if req.offset < 0 {
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
    // A reader that must not see blocks move keeps i_mutex while it looks them up.
    let _i_mutex = (req.rw == Rw::Read && req.flags.contains(DioFlags::LOCKING)).then(|| req.inode.lock());
    let count = req.inode.inode_dio_begin();
    let i_size = req.inode.i_size();
    if req.rw == Rw::Read {
        if req.offset >= i_size {
            return Ok(0);
        }
        // The device reads whole logical blocks; what lies behind the end of the file is not reported.
        let whole = (i_size - req.offset) as usize;
        iter.truncate(whole.div_ceil(lbs) * lbs);
    }
    let extends = req.rw == Rw::Write && end > i_size;
    let is_async = !iocb.is_sync() && !extends;
    let dsync = req.rw == Rw::Write && iocb.is_dsync();
    let dio = sb.s_dio.alloc(Dio {
        refcount: AtomicU32::new(1),
        io_error: AtomicI32::new(0),
        waiter: sched::current(),
        rw: req.rw,
        defer: dsync || req.rw == Rw::Write && req.inode.i_mapping().nrpages() != 0,
        dsync,
        datasync: !iocb.ki_flags.contains(IocbFlags::SYNC),
        offset: req.offset,
        size: 0,
        inode: NonNull::from(req.inode),
        filp: is_async.then(|| iocb.ki_filp.clone()),
        end_io: req.end_io,
        private: iocb.private.take(),
        ki_complete: if is_async { iocb.take_complete() } else { None },
        work: Work::new(),
    })?;
    count.into_request();

    let mut s = Submission { dio: PoolBox::into_raw(dio), bdev, bio: None, next_sector: 0, bytes: 0 };
    let failed = s.submit_all(iter, &mut req).err();
    let size = if req.rw == Rw::Read { s.bytes.min((i_size - req.offset) as usize) } else { s.bytes };
    s.finish(size, is_async, failed)
}

/// The submitter's side of a [`Dio`] under way.
struct Submission<'b, F: FileSystem> {
    dio: NonNull<Dio<F>>,
    bdev: &'b Bdev,
    bio: Option<BioPtr>,
    /// Sector behind the last one in `bio`.
    next_sector: u64,
    bytes: usize,
}

impl<F: FileSystem> Submission<'_, F> {
    /// Maps, pins and submits until `iter` is empty or something fails.
    fn submit_all<G>(&mut self, iter: &mut IovIter<'_>, req: &mut DioRequest<'_, F, G>) -> Result
    where
        G: FnMut(u64, u32, bool) -> Result<MapResult>,
    {
        let blkbits = req.inode.i_blkbits();
        let bs = 1usize << blkbits;
        let limits = self.bdev.limits();
        let lbs = limits.logical_block_size as usize;
        let piece_max = (limits.max_bytes.min(limits.max_segment_size)) as usize & !(lbs - 1);
        let op = match req.rw {
            Rw::Read => ReqOpf::REQ_OP_READ,
            Rw::Write => ReqOpf::REQ_OP_WRITE | ReqOpf::SYNC,
        };
        let create = req.rw == Rw::Write && !req.flags.contains(DioFlags::SKIP_HOLES);
        while iter.count() > 0 {
            let pos = req.offset as u64 + self.bytes as u64;
            let in_block = pos as usize & (bs - 1);
            let blocks = (in_block + iter.count()).div_ceil(bs).min(DIO_MAX_BLOCKS as usize) as u32;
            let (pblk, len) = match (req.get_block)(pos >> blkbits, blocks, create)? {
                MapResult::Mapped { pblk, len } => (Some(pblk), len),
                MapResult::Hole { len } => (None, len),
            };
            let mut left = ((len.min(blocks) as usize) << blkbits).saturating_sub(in_block).min(iter.count());
            let Some(pblk) = pblk else {
                self.read_hole(iter, left, req.rw)?;
                continue;
            };
            let mut sector = (pblk << (blkbits - 9)) + (in_block as u64 >> 9);
            if left == 0 {
                return Err(EIO);
            }
            while left > 0 {
                let pinned = match iter.pin(left.min(piece_max)) {
                    // What the old code did: blocks that were asked for were written from the zero page.
                    Err(_) if reverted(Fix::G9) => Some((NonNull::from(&ZERO_PAGE.0).cast(), lbs)),
                    pinned => pinned?,
                };
                let Some((page, n)) = pinned else { return Err(EFAULT) };
                // A page that is missing behind the pinned ones can leave part of a block.
                let n = n & !(lbs - 1);
                if n == 0 {
                    return Err(EFAULT);
                }
                self.add_page(op, sector, page, n as u32)?;
                iter.advance(n);
                self.bytes += n;
                left -= n;
                sector += n as u64 >> 9;
            }
        }
        Ok(())
    }

    fn read_hole(&mut self, iter: &mut IovIter<'_>, len: usize, rw: Rw) -> Result {
        if rw == Rw::Write {
            return Err(ENOTBLK);
        }
        let n = iter.zero(len);
        self.bytes += n;
        if n == len && n > 0 { Ok(()) } else { Err(EFAULT) }
    }

    #[inline]
    fn add_page(&mut self, op: ReqOpf, sector: u64, page: NonNull<u8>, len: u32) -> Result {
        if let Some(bio) = &mut self.bio {
            // SAFETY: the memory was pinned until the I/O ends, and whoever made the kiocb vouches for its use till then.
            if self.next_sector == sector && unsafe { bio.bio_add_page(page, len) } {
                self.next_sector = sector + u64::from(len >> 9);
                return Ok(());
            }
            self.submit_bio();
        }
        let mut bio = bio_alloc(self.bdev, op, GFP_NOFS)?;
        bio.bi_sector = sector;
        bio.bi_end_io = dio_bio_end_io::<F>;
        bio.bi_private = self.dio.as_ptr().cast();
        // SAFETY: as above.
        if !unsafe { bio.bio_add_page(page, len) } {
            return Err(EIO);
        }
        self.next_sector = sector + u64::from(len >> 9);
        self.bio = Some(bio);
        Ok(())
    }

    #[inline]
    fn submit_bio(&mut self) {
        if let Some(bio) = self.bio.take() {
            // SAFETY: the submitter's own reference keeps the dio.
            unsafe { self.dio.as_ref() }.refcount.fetch_add(1, Ordering::Relaxed);
            submit_bio(self.bdev, bio);
        }
    }

    /// Sends what is left, gives up the submitter's reference, and waits if the I/O is synchronous. An I/O that failed
    /// half-way is waited for, too, so that the answer can say how far it got.
    fn finish(mut self, size: usize, is_async: bool, failed: Option<Error>) -> Result<usize> {
        self.submit_bio();
        let mut dio = self.dio;
        // SAFETY: completions do not look at `size` before the last reference is gone, and we hold one.
        unsafe { dio.as_mut().size = size };
        if is_async && failed.is_none() {
            // SAFETY: our reference.
            if unsafe { dio.as_ref() }.refcount.fetch_sub(1, Ordering::AcqRel) != 1 {
                return Err(EIOCBQUEUED);
            }
            // All bios have ended, and none was the last: it is ours to complete, and our answer tells the submitter.
        } else {
            // SAFETY: our reference.
            while unsafe { dio.as_ref() }.refcount.load(Ordering::Acquire) != 1 {
                sched::schedule();
            }
        }
        // SAFETY: the last reference is ours.
        let dio = unsafe { PoolBox::from_raw(dio) };
        dio_complete(dio, failed, false)
    }
}

/// `bi_end_io` of a data bio. Any context.
#[doc(alias = "dio_bio_end_aio")]
fn dio_bio_end_io<F: FileSystem>(bio: BioPtr) {
    // OK to unwrap: `add_page` set it.
    let Some(dio) = NonNull::new(bio.bi_private.cast::<Dio<F>>()) else { return };
    // SAFETY: the bio holds a reference on its dio until the `fetch_sub` below.
    let d = unsafe { dio.as_ref() };
    if let Err(e) = bio.result() {
        // The first error is the one that is told.
        let _ = d.io_error.compare_exchange(0, e.to_errno(), Ordering::Relaxed, Ordering::Relaxed);
    }
    drop(bio);
    // Read before our reference goes: a submitter that sees it gone frees the dio. Tasks live for ever.
    let waiter = d.waiter;
    match d.refcount.fetch_sub(1, Ordering::AcqRel) {
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

/// The end of an I/O whose bios have all ended: conversion, cache, durability, count, and, if `aio`, the
/// listener. Sleeps only if the dio was marked so, or called by the submitter.
fn dio_complete<F: FileSystem>(mut dio: PoolBox<Dio<F>>, failed: Option<Error>, aio: bool) -> Result<usize> {
    // SAFETY: by the type's invariant; `filp` below keeps it as long as it is used.
    let inode = unsafe { dio.inode.as_ref() };
    let mut ret = match (dio.io_error.load(Ordering::Relaxed), failed) {
        (0, Some(e)) if dio.size == 0 => Err(e),
        (0, _) => Ok(dio.size),
        (e, _) => Err(Error::from_errno(e)),
    };
    let (offset, size) = (dio.offset, dio.size as i64);
    if let Some(end_io) = dio.end_io {
        // Called for a failed I/O, too, which must not convert anything (G30).
        let told = if reverted(Fix::G30) { Ok(dio.size) } else { ret };
        if let Err(e) = end_io(inode, offset, told, dio.private.take()) {
            ret = ret.and(Err(e));
        }
    }
    if dio.rw == Rw::Write && size > 0 && inode.i_mapping().nrpages() != 0 {
        filemap::dio_invalidate_pages(inode, offset, offset + size - 1);
    }
    // A synchronous writer, and one whose submission ended with a result, syncs by itself. Not at submission of an
    // asynchronous one: that would promise durability of data that is still under way (G13).
    if aio
        && dio.dsync
        && matches!(ret, Ok(1..))
        && !reverted(Fix::G13)
        && let Err(e) = F::fsync(inode, offset, offset + size - 1, dio.datasync)
    {
        ret = Err(e);
    }
    let (ki_complete, filp) = (dio.ki_complete.take(), dio.filp.take());
    inode.i_sb().s_dio.free(dio);
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

/// For the test that shows what came of writing it.
static ZERO_PAGE: Bounce = Bounce([0; 4096]);

/// Memory a device may transfer, whatever alignment it asks for up to a page.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Bounce([u8; 4096]);

/// A write finer than the device's logical block: reads the blocks at both ends, puts the new bytes between,
/// writes all. Synchronous, whatever the kiocb asks for. The caller keeps every other I/O to the file away (see
/// [`DioFlags::READ_MODIFY_WRITE`]).
#[cold]
fn dio_read_modify_write<F, G>(
    iocb: &mut Kiocb<F>,
    iter: &mut IovIter<'_>,
    req: &mut DioRequest<'_, F, G>,
    lbs: usize,
) -> Result<usize>
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let (inode, bdev) = (req.inode, req.inode.i_sb().s_bdev());
    let _count = inode.inode_dio_begin();
    let blkbits = inode.i_blkbits();
    let bs = 1usize << blkbits;
    let mut bounce = KVec::from_elem(Bounce([0; 4096]), RMW_BYTES / 4096, GFP_KERNEL)?;
    // SAFETY: a Bounce is 4096 bytes without padding, and the vector's length of them is initialised.
    let buf = unsafe { core::slice::from_raw_parts_mut(bounce.as_mut_ptr().cast::<u8>(), RMW_BYTES) };
    let mut done = 0;
    let ret = loop {
        if iter.count() == 0 {
            break Ok(());
        }
        let pos = req.offset as u64 + done as u64;
        let (in_block, head) = (pos as usize & (bs - 1), pos as usize & (lbs - 1));
        let blocks = (in_block + iter.count()).div_ceil(bs).min(RMW_BYTES / bs) as u32;
        let (pblk, len) = match (req.get_block)(pos >> blkbits, blocks, true) {
            Ok(MapResult::Mapped { pblk, len }) => (pblk, len.min(blocks)),
            Ok(MapResult::Hole { .. }) => break Err(ENOTBLK),
            Err(e) => break Err(e),
        };
        let n = (((len as usize) << blkbits) - in_block).min(iter.count()).min(RMW_BYTES - head);
        let whole = (head + n).div_ceil(lbs) * lbs;
        let sector = (pblk << (blkbits - 9)) + ((in_block - head) as u64 >> 9);
        match rmw_chunk(bdev, sector, &mut buf[..whole], lbs, head, n, iter) {
            Ok(copied) => {
                done += copied;
                if copied < n {
                    break Err(EFAULT);
                }
            }
            Err(e) => break Err(e),
        }
    };
    if done > 0 && inode.i_mapping().nrpages() != 0 {
        filemap::dio_invalidate_pages(inode, req.offset, req.offset + done as i64 - 1);
    }
    drop(iocb.private.take());
    match ret {
        Err(e) if done == 0 || e == EIO => Err(e),
        _ => Ok(done),
    }
}

/// One stretch of [`dio_read_modify_write`]: `n` bytes from `head` on in `buf`, which is what the device has at `sector`.
/// Returns how many bytes the caller's memory had; the rest of the stretch keeps its old data.
fn rmw_chunk(
    bdev: &Bdev,
    sector: u64,
    buf: &mut [u8],
    lbs: usize,
    head: usize,
    n: usize,
    iter: &mut IovIter<'_>,
) -> Result<usize> {
    // Old data under everything: a bad address half-way must not put other bytes there (G9).
    bdev_rw(bdev, ReqOpf::REQ_OP_READ, sector, buf)?;
    let copied = iter.copy_from_iter(&mut buf[head..head + n]);
    if copied > 0 {
        let whole = (head + copied).div_ceil(lbs) * lbs;
        bdev_rw(bdev, ReqOpf::REQ_OP_WRITE, sector, &mut buf[..whole])?;
    }
    Ok(copied)
}
