// SPDX-License-Identifier: GPL-2.0-only
//! The submission of a direct I/O: mapping, pinning, bios.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::rmw::ZERO_PAGE;
use super::{DIO_MAX_BLOCKS, DioFlags, DioRequest, Flight, MapResult};
use crate::alloc::GFP_NOFS;
use crate::block::{Bdev, BioPtr, ReqOpf, bio_alloc, submit_bio, submit_bio_last};
use crate::error::{Error, Result, code::*};
use crate::fs::{FileSystem, IovIter, Rw};
use crate::testing::{Fix, reverted};

/// What all bios of an I/O have in common.
#[derive(Clone, Copy)]
pub(super) struct BioTarget<'a> {
    pub(super) flight: &'a Flight,
    pub(super) bdev: &'a Bdev,
    pub(super) end_io: fn(BioPtr),
    pub(super) private: NonNull<()>,
    /// The submitter sleeps next.
    pub(super) waits: bool,
}

impl BioTarget<'_> {
    /// A bio for `len` bytes at `page`.
    #[inline(always)]
    fn bio(&self, op: ReqOpf, sector: u64, page: NonNull<u8>, len: u32) -> Result<BioPtr> {
        let mut bio = bio_alloc(self.bdev, op, GFP_NOFS)?;
        bio.bi_sector = sector;
        bio.bi_end_io = self.end_io;
        bio.bi_private = self.private.as_ptr();
        // SAFETY: the memory was pinned until the I/O ends, and whoever made the kiocb vouches for its use till then.
        if !unsafe { bio.bio_add_page(page, len) } {
            return Err(EIO);
        }
        Ok(bio)
    }

    /// Sends the last bio on its way.
    #[inline(always)]
    fn submit(&self, bio: BioPtr) {
        self.flight.refcount.fetch_add(1, Ordering::Relaxed);
        if self.waits {
            submit_bio_last(self.bdev, bio);
        } else {
            submit_bio(self.bdev, bio);
        }
    }
}

#[inline(always)]
fn bio_op<F: FileSystem, G>(req: &DioRequest<'_, F, G>) -> ReqOpf {
    let mut op = match req.rw {
        Rw::Read => ReqOpf::REQ_OP_READ,
        Rw::Write => ReqOpf::REQ_OP_WRITE | ReqOpf::SYNC,
    };
    if req.flags.intersects(DioFlags::FUA | DioFlags::NOWAIT) {
        op.set(ReqOpf::FUA, req.flags.contains(DioFlags::FUA));
        op.set(ReqOpf::NOWAIT, req.flags.contains(DioFlags::NOWAIT));
    }
    op
}

/// Where `count` bytes `done` bytes behind the I/O's start are: at least one block, and no more than needed.
#[inline(always)]
fn get_block<F, G>(req: &mut DioRequest<'_, F, G>, done: usize, count: usize) -> Result<MapResult>
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let blkbits = req.inode.i_blkbits();
    let pos = req.offset as u64 + done as u64;
    let in_block = pos as usize & ((1 << blkbits) - 1);
    let blocks = ((in_block + count + (1 << blkbits) - 1) >> blkbits).min(DIO_MAX_BLOCKS as usize) as u32;
    let create = req.rw == Rw::Write && !req.flags.contains(DioFlags::SKIP_HOLES);
    match (req.get_block)(pos >> blkbits, blocks, create)? {
        MapResult::Mapped { len: 0, .. } => Err(EIO),
        MapResult::Mapped { pblk, len, fresh } => Ok(MapResult::Mapped { pblk, len: len.min(blocks), fresh }),
        MapResult::Hole { len } => Ok(MapResult::Hole { len: len.min(blocks) }),
    }
}

/// Maps, pins and submits until `iter` is empty or something fails. Returns how many bytes that was, and what failed.
#[inline(always)]
pub(super) fn submit_all<F, G>(
    to: BioTarget<'_>,
    iter: &mut IovIter<'_>,
    mut req: DioRequest<'_, F, G>,
) -> (usize, Option<Error>)
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let count = iter.count();
    let map = match get_block(&mut req, 0, count) {
        Ok(map) => map,
        Err(e) => return (0, Some(e)),
    };
    // The usual I/O is one stretch of memory and one of the device.
    let blkbits = req.inode.i_blkbits();
    let in_block = req.offset as usize & ((1 << blkbits) - 1);
    if let MapResult::Mapped { pblk, len, fresh } = map
        && !(fresh && (in_block | count) & ((1 << blkbits) - 1) != 0)
        && ((len as usize) << blkbits) - in_block >= count
        && count <= to.bdev.max_piece() as usize
        && let Some(page) = iter.pin_all()
    {
        let sector = (pblk << (blkbits - 9)) + (in_block as u64 >> 9);
        return match to.bio(bio_op(&req), sector, page, count as u32) {
            Ok(bio) => {
                to.submit(bio);
                (count, None)
            }
            Err(e) => (0, Some(e)),
        };
    }
    submit_many(to, iter, req, map)
}

/// [`submit_all`] in general; `map` is for what comes first.
#[inline(never)]
fn submit_many<F, G>(
    to: BioTarget<'_>,
    iter: &mut IovIter<'_>,
    mut req: DioRequest<'_, F, G>,
    map: MapResult,
) -> (usize, Option<Error>)
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let mut s = Submission { to, bio: None, next_sector: 0, bytes: 0, fresh: false };
    let mut failed = s.submit_pieces(iter, &mut req, map).err();
    // Also if memory gave out in the middle of a block that holds no data yet: what is before is written, and shows the block.
    if let Err(e) = s.zero_tail(&req) {
        failed = Some(failed.unwrap_or(e));
    }
    if let Some(bio) = s.bio.take() {
        to.submit(bio);
    }
    (s.bytes, failed)
}

/// An I/O of several pieces under way.
struct Submission<'a> {
    to: BioTarget<'a>,
    bio: Option<BioPtr>,
    /// Sector behind the last one in `bio`.
    next_sector: u64,
    bytes: usize,
    /// The block written last holds nothing but what was written.
    fresh: bool,
}

impl Submission<'_> {
    /// All but the last bio.
    fn submit_pieces<F, G>(
        &mut self,
        iter: &mut IovIter<'_>,
        req: &mut DioRequest<'_, F, G>,
        mut map: MapResult,
    ) -> Result
    where
        F: FileSystem,
        G: FnMut(u64, u32, bool) -> Result<MapResult>,
    {
        let blkbits = req.inode.i_blkbits();
        loop {
            let in_block = (req.offset as usize + self.bytes) & ((1 << blkbits) - 1);
            let left = |len: u32| ((len as usize) << blkbits).saturating_sub(in_block).min(iter.count());
            match map {
                MapResult::Hole { len } => {
                    let left = left(len);
                    self.read_hole(iter, left, req.rw)?;
                }
                MapResult::Mapped { pblk, len, fresh } => {
                    let left = left(len);
                    let sector = (pblk << (blkbits - 9)) + (in_block as u64 >> 9);
                    if fresh && in_block != 0 {
                        self.zero(bio_op(req), pblk << (blkbits - 9), in_block as u32)?;
                    }
                    self.fresh = fresh;
                    self.submit_mapped(iter, bio_op(req), sector, left)?;
                }
            }
            if iter.count() == 0 {
                return Ok(());
            }
            map = get_block(req, self.bytes, iter.count())?;
        }
    }

    /// Zeros what a write leaves out at the end of a block that had no data. If that cannot be, the block is not reported, and
    /// so not converted.
    #[doc(alias = "dio_zero_block")]
    fn zero_tail<F: FileSystem, G>(&mut self, req: &DioRequest<'_, F, G>) -> Result {
        let bs = 1usize << req.inode.i_blkbits();
        let in_block = (req.offset as usize + self.bytes) & (bs - 1);
        if !self.fresh || in_block == 0 || self.bytes == 0 {
            return Ok(());
        }
        let sector = self.next_sector;
        let zeroed = self.zero(bio_op(req), sector, (bs - in_block) as u32);
        if zeroed.is_err() {
            self.bytes = self.bytes.saturating_sub(in_block);
        }
        zeroed
    }

    /// `len` bytes of zeros, less than a block, at `sector`.
    fn zero(&mut self, op: ReqOpf, sector: u64, len: u32) -> Result {
        self.add_page(op, sector, NonNull::from(&ZERO_PAGE.0).cast(), len)
    }

    /// `left` bytes from `sector` on.
    fn submit_mapped(&mut self, iter: &mut IovIter<'_>, op: ReqOpf, mut sector: u64, mut left: usize) -> Result {
        let piece_max = self.to.bdev.max_piece() as usize;
        let lbs = self.to.bdev.logical_block_size() as usize;
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

    /// To the bio that there is, or, if it cannot go there, to a new one.
    fn add_page(&mut self, op: ReqOpf, sector: u64, page: NonNull<u8>, len: u32) -> Result {
        let joins = self.next_sector == sector;
        self.next_sector = sector + u64::from(len >> 9);
        if let Some(bio) = &mut self.bio {
            // SAFETY: as in `BioTarget::bio`.
            if joins && unsafe { bio.bio_add_page(page, len) } {
                return Ok(());
            }
        }
        // To the plug: more follows.
        if let Some(full) = self.bio.take() {
            self.to.flight.refcount.fetch_add(1, Ordering::Relaxed);
            submit_bio(self.to.bdev, full);
        }
        self.bio = Some(self.to.bio(op, sector, page, len)?);
        Ok(())
    }
}
