// SPDX-License-Identifier: GPL-2.0-only
//! `block/blk-lib.c`, and what else waits for bios: several at once, flushes, zeros, and plain reads and writes of memory.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::bio::{BIO, BioPtr, ReqOp, ReqOpf, SECTOR_SHIFT};
use super::blkdev::{Bdev, bio_alloc, submit_bio, submit_bio_last};
use super::plug::BlkPlug;
use crate::alloc::GFP_NOIO;
use crate::error::{Error, Result, code};
use crate::sched::{self, Task};
use crate::sync::Completion;

/// Several bios, and one task that waits for all of them. On the waiter's stack.
pub struct IoBatch<'a> {
    bdev: &'a Bdev,
    /// Bios in flight, and one for the waiter.
    pending: AtomicU32,
    /// First error, as an errno below 0.
    status: AtomicI32,
    done: Completion,
}

impl<'a> IoBatch<'a> {
    /// Calls `f`, which submits into the batch, with current plugged; then sleeps until all of it has
    /// ended. The error is `f`'s, or the first of a bio.
    ///
    /// It does not return, nor unwind, before the last bio has ended: memory that outlives the call outlives the I/O.
    pub fn run(bdev: &'a Bdev, f: impl FnOnce(&IoBatch<'a>) -> Result) -> Result {
        struct Wait<'b, 'a>(&'b IoBatch<'a>);
        impl Drop for Wait<'_, '_> {
            fn drop(&mut self) {
                self.0.put();
                BIO.might_wait();
                self.0.done.wait();
                // All who counted down have come before this, in whatever order.
                sched::sched_touch(core::ptr::from_ref(&self.0.pending).cast(), sched::Touch::After);
            }
        }
        let batch = Self { bdev, pending: AtomicU32::new(1), status: AtomicI32::new(0), done: Completion::new() };
        let wait = Wait(&batch);
        let plug = BlkPlug::start();
        let result = f(&batch);
        plug.finish();
        drop(wait);
        result.and(match batch.status.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        })
    }

    /// The disk.
    pub fn bdev(&self) -> &'a Bdev {
        self.bdev
    }

    /// Submits a bio of the batch's disk. Its `bi_end_io` and `bi_private` are the batch's.
    pub fn submit(&self, mut bio: BioPtr) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        bio.bi_private = core::ptr::from_ref(self).cast_mut().cast();
        bio.bi_end_io = |bio| {
            // SAFETY: `run` does not return before the count that this bio has in `pending` is gone.
            let batch = unsafe { &*bio.bi_private.cast_const().cast::<IoBatch<'_>>() };
            if let Some(err) = bio.bi_status {
                let _ = batch.status.compare_exchange(0, err.to_errno(), Ordering::Relaxed, Ordering::Relaxed);
            }
            drop(bio);
            batch.put();
        };
        submit_bio(self.bdev, bio);
    }

    fn put(&self) {
        // Who is the last does the same, whoever it is.
        sched::sched_touch(core::ptr::from_ref(&self.pending).cast(), sched::Touch::Add);
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.complete();
        }
    }
}

/// Submits a bio and sleeps until it has ended.
#[inline]
pub fn submit_bio_wait(bdev: &Bdev, mut bio: BioPtr) -> Result {
    /// On the waiter's stack.
    struct Wait {
        /// 0, an errno, or [`PENDING`].
        state: AtomicI32,
        task: &'static Task,
    }
    const PENDING: i32 = 1;
    let wait = Wait { state: AtomicI32::new(PENDING), task: sched::current() };
    bio.bi_private = core::ptr::from_ref(&wait).cast_mut().cast();
    bio.bi_end_io = |bio| {
        // SAFETY: the waiter does not go on before the store below.
        let wait = unsafe { &*bio.bi_private.cast_const().cast::<Wait>() };
        let state = bio.bi_status.map_or(0, Error::to_errno);
        drop(bio);
        // Read before the store: with it goes the waiter's stack. Tasks live for ever.
        let task = wait.task;
        sched::sched_access(core::ptr::from_ref(&wait.state).cast(), true);
        wait.state.store(state, Ordering::Release);
        sched::unpark(task);
    };
    submit_bio_last(bdev, bio);
    BIO.might_wait();
    sched::sched_wait(sched::Point::Wait, &wait.state, |state| state.load(Ordering::Relaxed) != PENDING);
    loop {
        match wait.state.load(Ordering::Acquire) {
            PENDING => sched::schedule(),
            0 => return Ok(()),
            errno => return Err(Error::from_errno(errno)),
        }
    }
}

/// Makes all writes that have ended durable. Sleeps.
pub fn blkdev_issue_flush(bdev: &Bdev) -> Result {
    if !bdev.limits().write_cache {
        return Ok(());
    }
    submit_bio_wait(bdev, bio_alloc(bdev, ReqOpf::REQ_OP_FLUSH | ReqOpf::SYNC, GFP_NOIO)?)
}

/// What [`blkdev_issue_zeroout`] writes to devices that cannot zero by themselves.
#[repr(align(4096))]
struct Zeroes([u8; 4096]);
static ZEROES: Zeroes = Zeroes([0; 4096]);

/// Zeroes `sectors` sectors from `sector` on, both multiples of the logical block: the device does it if it knows how, else zeros are
/// written. Returns when it is done, maybe only in the device's cache. EIO and the device's errors. Sleeps.
pub fn blkdev_issue_zeroout(bdev: &Bdev, sector: u64, sectors: u64) -> Result {
    let end = sector.checked_add(sectors).ok_or(code::EIO)?;
    if bdev.limits().write_zeroes {
        let zeroed = zeroout(bdev, ReqOpf::REQ_OP_WRITE_ZEROES, sector..end);
        // A file's host may not know how after all.
        if zeroed != Err(code::EOPNOTSUPP) {
            return zeroed;
        }
    }
    zeroout(bdev, ReqOpf::REQ_OP_WRITE, sector..end)
}

fn zeroout(bdev: &Bdev, op: ReqOpf, range: core::ops::Range<u64>) -> Result {
    let max = bdev.max_piece();
    IoBatch::run(bdev, |batch| {
        let mut at = range.start;
        while at < range.end {
            let left = u32::try_from((range.end - at) << SECTOR_SHIFT).unwrap_or(u32::MAX).min(max);
            let mut bio = bio_alloc(bdev, op | ReqOpf::SYNC, GFP_NOIO)?;
            bio.bi_sector = at;
            if op == ReqOpf::REQ_OP_WRITE_ZEROES {
                bio.set_size(left);
            } else {
                let mut more = true;
                while more && bio.size() < left {
                    let len = (left - bio.size()).min(ZEROES.0.len() as u32);
                    // SAFETY: the memory lives for ever, and the device only reads it.
                    more = unsafe { bio.bio_add_page(NonNull::from(&ZEROES.0).cast(), len) };
                }
            }
            if bio.size() == 0 {
                return Err(code::EIO);
            }
            at += u64::from(bio.size() >> SECTOR_SHIFT);
            batch.submit(bio);
        }
        Ok(())
    })
}

/// Reads `buf` from, or writes it to, `sector` (512 bytes) onwards; `opf` is a READ or a WRITE. Sleeps.
///
/// The buffer may have any length that is a multiple of the logical block; it goes in as many bios as it takes, all in flight
/// together. PREFLUSH applies before the first, FUA to each. After an error the buffer or the range holds some of the data.
pub fn bdev_rw(bdev: &Bdev, opf: ReqOpf, sector: u64, buf: &mut [u8]) -> Result {
    if !matches!(opf.op(), ReqOp::Read | ReqOp::Write) {
        return Err(code::EOPNOTSUPP);
    }
    if opf.contains(ReqOpf::PREFLUSH) {
        blkdev_issue_flush(bdev)?;
    }
    let opf = opf.difference(ReqOpf::PREFLUSH);
    let step = bdev.max_piece();
    IoBatch::run(bdev, |batch| {
        let mut at = sector;
        for chunk in buf.chunks_mut(step as usize) {
            let mut bio = bio_alloc(bdev, opf, GFP_NOIO)?;
            bio.bi_sector = at;
            // SAFETY: the batch keeps us in `run`, and with that `buf` borrowed, until the bio has ended.
            if !unsafe { bio.bio_add_page(NonNull::from(&mut *chunk).cast(), chunk.len() as u32) } {
                return Err(code::EINVAL);
            }
            batch.submit(bio);
            at = at.checked_add(chunk.len() as u64 >> SECTOR_SHIFT).ok_or(code::EIO)?;
        }
        Ok(())
    })
}

/// Writes stretches of bytes, each to its sector (512 bytes) onwards, all in flight together, and sleeps until all have ended.
/// `opf` goes with each bio: no PREFLUSH, unless it is one. Lengths are multiples of the logical block. The error is the
/// first; some of the others may have been written, then.
pub fn bdev_write_pieces<'a>(bdev: &Bdev, opf: ReqOpf, pieces: impl Iterator<Item = (u64, &'a [u8])>) -> Result {
    let opf = (opf & !ReqOpf::from_bits_retain(ReqOpf::OP_MASK)) | ReqOpf::REQ_OP_WRITE;
    let step = bdev.max_piece();
    IoBatch::run(bdev, |batch| {
        for (sector, piece) in pieces {
            let mut at = sector;
            for chunk in piece.chunks(step as usize) {
                let mut bio = bio_alloc(bdev, opf, GFP_NOIO)?;
                bio.bi_sector = at;
                // SAFETY: the batch keeps us in `run`, and with that the bytes borrowed and unchanged, until the bio has
                // ended. The device only reads them.
                if !unsafe { bio.bio_add_page(NonNull::from(chunk).cast(), chunk.len() as u32) } {
                    return Err(code::EINVAL);
                }
                batch.submit(bio);
                at = at.checked_add(chunk.len() as u64 >> SECTOR_SHIFT).ok_or(code::EIO)?;
            }
        }
        Ok(())
    })
}
