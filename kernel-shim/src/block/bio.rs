// SPDX-License-Identifier: GPL-2.0-only
//! `include/linux/blk_types.h`, `block/bio.c`: one piece of I/O on its way to a device and back.
//!
//! A [`Bio`] names a range of sectors and the memory that goes there or comes from there. It is
//! owned by whoever holds its [`BioPtr`]: first the submitter, from [`submit_bio`] on the block
//! layer and the driver, and at the end `bi_end_io`, which runs in any context, interrupts
//! included, and so neither sleeps nor allocates. Bios come from their device's set and go
//! back to it when their handle is dropped; no memory is allocated between submission and completion.
//!
//! [`submit_bio`]: super::blkdev::submit_bio

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};

use bitflags::bitflags;

use super::blkdev::{Gendisk, QueueLimits};
use super::flush::FlushSeq;
use super::request::RqHead;
use crate::error::{Error, Result};
use crate::sync::lockdep::LockMap;

/// Held by who ends a bio, which many wait for.
pub(crate) static BIO: LockMap = LockMap::new("bio");

/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;
/// Bytes in a sector: the unit of `bi_sector` whatever the device's logical block is.
pub const SECTOR_SIZE: u32 = 1 << SECTOR_SHIFT;
/// How many stretches of memory one bio can name.
pub const BIO_MAX_VECS: usize = 16;

/// What a bio or request asks of the device: the low byte of [`ReqOpf`].
#[doc(alias = "req_op")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReqOp {
    /// Device to memory.
    Read,
    /// Memory to device.
    Write,
    /// Make all writes that have completed durable. No sectors, no data.
    Flush,
    /// The contents of the range are no longer needed. No data.
    Discard,
    /// The range reads as zeroes from now on. No data.
    WriteZeroes,
    /// A value that is none of these. [`submit_bio`](super::blkdev::submit_bio) refuses it: no driver sees one.
    Unknown,
}

bitflags! {
    /// The operation in the low eight bits (exactly one `REQ_OP_*`), and how to do it above them.
    #[doc(alias = "blk_opf_t")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReqOpf: u32 {
        /// Device to memory.
        const REQ_OP_READ = 0;
        /// Memory to device.
        const REQ_OP_WRITE = 1;
        /// Make completed writes durable.
        const REQ_OP_FLUSH = 2;
        /// Forget the range.
        const REQ_OP_DISCARD = 3;
        /// Zero the range.
        const REQ_OP_WRITE_ZEROES = 9;
        /// Somebody waits for it.
        const SYNC = 1 << 11;
        /// Metadata of the file system.
        const META = 1 << 12;
        /// The write is durable when it completes.
        const FUA = 1 << 17;
        /// All writes that completed before this one was submitted are durable before it starts.
        const PREFLUSH = 1 << 18;
        /// Rather fail with EAGAIN than sleep for a resource at allocation.
        const NOWAIT = 1 << 21;
        /// The submitter will poll for the completion. Only a hint here.
        const POLLED = 1 << 24;
        const _ = 0xff;
    }
}

impl ReqOpf {
    pub(crate) const OP_MASK: u32 = 0xff;

    /// The operation.
    #[doc(alias = "bio_op")]
    #[inline]
    pub const fn op(self) -> ReqOp {
        match self.bits() & Self::OP_MASK {
            0 => ReqOp::Read,
            1 => ReqOp::Write,
            2 => ReqOp::Flush,
            3 => ReqOp::Discard,
            9 => ReqOp::WriteZeroes,
            _ => ReqOp::Unknown,
        }
    }

    /// Whether the device's contents change: every odd operation, as in Linux.
    #[doc(alias = "op_is_write")]
    #[inline]
    pub const fn is_write(self) -> bool {
        self.bits() & 1 != 0
    }

    /// Whether it reads or writes and needs no flush: the common case, known by one test.
    #[inline]
    pub(crate) const fn is_plain(self) -> bool {
        self.bits() & ((Self::OP_MASK & !1) | Self::PREFLUSH.bits() | Self::FUA.bits()) == 0
    }

    /// Whether flush.rs has to look at it: PREFLUSH, FUA, or a flush itself.
    #[doc(alias = "op_is_flush")]
    #[inline]
    pub(crate) const fn is_flush(self) -> bool {
        self.bits() & (Self::PREFLUSH.bits() | Self::FUA.bits()) != 0 || matches!(self.op(), ReqOp::Flush)
    }
}

/// A stretch of memory: contiguous for the device too.
#[doc(alias = "bio_vec")]
#[derive(Clone, Copy, Debug)]
pub struct BioVec {
    /// Address of the first byte.
    pub bv_page: NonNull<u8>,
    /// Length in bytes, never 0.
    pub bv_len: u32,
}

/// One I/O: see the head of this file. Reached through a [`BioPtr`] only, and never moved.
///
/// # Invariants
///
/// `bi_disk` is the disk whose set the bio belongs to, and that disk outlives the bio.
#[repr(align(64))]
pub struct Bio {
    /// Operation and flags.
    pub bi_opf: ReqOpf,
    pub(crate) bi_size: u32,
    /// First sector, in units of 512 bytes.
    pub bi_sector: u64,
    /// How it ended: `None` is success. Set before `bi_end_io` runs.
    pub bi_status: Option<Error>,
    pub(crate) flush_seq: FlushSeq,
    /// Called once with the bio when it is done; in any context. The default gives the bio back.
    pub bi_end_io: fn(BioPtr),
    /// The submitter's. Whoever dereferences it vouches for its being usable in completion context.
    pub bi_private: *mut (),
    /// Next bio of the same request, or of the free list.
    pub(crate) bi_next: Option<NonNull<Bio>>,
    pub(crate) bi_disk: NonNull<Gendisk>,
    pub(crate) rq: RqHead,
    pub(crate) bi_io_vec: heapless::Vec<BioVec, BIO_MAX_VECS>,
}

impl Bio {
    /// A bio for `disk`'s set to hand out.
    pub(crate) const fn unused(disk: NonNull<Gendisk>) -> Self {
        Self {
            bi_opf: ReqOpf::REQ_OP_READ,
            bi_size: 0,
            bi_sector: 0,
            bi_status: None,
            flush_seq: FlushSeq::empty(),
            bi_end_io: drop::<BioPtr>,
            bi_private: ptr::null_mut(),
            bi_next: None,
            bi_disk: disk,
            rq: RqHead::new(),
            bi_io_vec: heapless::Vec::new(),
        }
    }

    /// Makes it as new, for an operation `opf`.
    #[inline]
    pub(crate) fn init(&mut self, opf: ReqOpf) {
        self.bi_opf = opf;
        self.bi_size = 0;
        self.bi_sector = 0;
        self.bi_status = None;
        self.flush_seq = FlushSeq::empty();
        self.bi_end_io = drop::<BioPtr>;
        self.bi_private = ptr::null_mut();
        self.bi_next = None;
        self.bi_io_vec.clear();
    }

    /// Bytes it transfers, or the length of the range for an operation without data.
    #[inline]
    pub fn size(&self) -> u32 {
        self.bi_size
    }

    /// The sector after its last.
    #[doc(alias = "bio_end_sector")]
    #[inline]
    pub fn end_sector(&self) -> u64 {
        self.bi_sector.saturating_add(u64::from(self.bi_size >> SECTOR_SHIFT))
    }

    /// The memory it names.
    #[inline]
    pub fn io_vec(&self) -> &[BioVec] {
        &self.bi_io_vec
    }

    /// The length in bytes of a DISCARD or WRITE_ZEROES. A bio with memory keeps the size of that.
    pub fn set_size(&mut self, bytes: u32) {
        if self.bi_io_vec.is_empty() {
            self.bi_size = bytes;
        }
    }

    /// Appends `len` bytes at `page`, joined to the last stretch where they touch. Returns false,
    /// and changes nothing, if the bio or the device's limits have no room for it: submit what there
    /// is and go on in a new bio.
    ///
    /// # Safety
    ///
    /// The memory must stay valid until the bio has ended. Until then nobody may read it if the
    /// device writes to it (a READ), nor change it if the device reads it (a WRITE).
    #[inline]
    pub unsafe fn bio_add_page(&mut self, page: NonNull<u8>, len: u32) -> bool {
        // SAFETY: by the type's invariant the disk outlives the bio.
        let disk = unsafe { self.bi_disk.as_ref() };
        if self.bi_io_vec.is_empty() && len.wrapping_sub(1) < disk.max_piece() {
            self.bi_size = len;
            return self.bi_io_vec.push(BioVec { bv_page: page, bv_len: len }).is_ok();
        }
        self.bio_add_another(&disk.limits, page, len)
    }

    /// [`Bio::bio_add_page`] in general.
    fn bio_add_another(&mut self, limits: &QueueLimits, page: NonNull<u8>, len: u32) -> bool {
        let Some(size) = self.bi_size.checked_add(len) else { return false };
        if size > limits.max_bytes || len == 0 {
            return false;
        }
        if let Some(last) = self.bi_io_vec.last_mut()
            && last.bv_page.as_ptr().wrapping_add(last.bv_len as usize) == page.as_ptr()
            && len <= limits.max_segment_size.saturating_sub(last.bv_len)
        {
            last.bv_len += len;
        } else if len > limits.max_segment_size
            || self.bi_io_vec.len() >= usize::from(limits.max_segments)
            || self.bi_io_vec.push(BioVec { bv_page: page, bv_len: len }).is_err()
        {
            return false;
        }
        self.bi_size = size;
        true
    }
}

impl fmt::Debug for Bio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bio")
            .field("bi_opf", &self.bi_opf)
            .field("bi_sector", &self.bi_sector)
            .field("bi_size", &self.bi_size)
            .field("bi_status", &self.bi_status)
            .finish_non_exhaustive()
    }
}

/// The one owner of a [`Bio`]. Dropping it gives the bio back to its set, without calling `bi_end_io`.
#[repr(transparent)]
pub struct BioPtr(NonNull<Bio>);

// SAFETY: the handle owns its bio alone. The memory that the bio names may be used from any context by
// the contract of `bio_add_page`, and `bi_private` is only a number until somebody vouches for it.
unsafe impl Send for BioPtr {}

impl BioPtr {
    /// Takes over a bio.
    ///
    /// # Safety
    ///
    /// `bio` must be a bio of its disk's set, off the free list, and without another owner.
    #[inline]
    pub(crate) unsafe fn from_nonnull(bio: NonNull<Bio>) -> Self {
        Self(bio)
    }

    /// Gives up ownership; [`BioPtr::from_nonnull`] takes it back.
    #[inline]
    pub(crate) fn into_nonnull(self) -> NonNull<Bio> {
        ManuallyDrop::new(self).0
    }

    /// Ends the bio: sets `bi_status` and calls `bi_end_io` with it. Callable in any context.
    #[doc(alias = "bio_endio")]
    #[inline]
    pub fn endio(mut self, result: Result) {
        let _bio = BIO.hold();
        self.bi_status = result.err();
        (self.bi_end_io)(self);
    }

    /// How it ended, as a `Result`.
    #[inline]
    pub fn result(&self) -> Result {
        self.bi_status.map_or(Ok(()), Err)
    }
}

impl Deref for BioPtr {
    type Target = Bio;
    #[inline]
    fn deref(&self) -> &Bio {
        // SAFETY: owned, hence valid and not shared.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for BioPtr {
    #[inline]
    fn deref_mut(&mut self) -> &mut Bio {
        // SAFETY: owned, hence valid and not shared.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for BioPtr {
    #[doc(alias = "bio_put")]
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the disk outlives its bios; this was the bio's only owner and forgets it.
        unsafe { self.bi_disk.as_ref().bios.put(self.0) };
    }
}

impl fmt::Debug for BioPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
