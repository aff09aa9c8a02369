// SPDX-License-Identifier: GPL-2.0-only
//! `include/linux/blk-mq.h`: what a driver is given. One or more bios, adjacent on disk and of one operation.
//!
//! A [`Request`] is not an object of its own: the first of its bios carries what the chain has in
//! common, so that making, merging, queueing and ending one needs no memory.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use super::bio::{Bio, BioPtr, BioVec, ReqOp, ReqOpf, SECTOR_SHIFT};
use super::blkdev::{Gendisk, QueueLimits};
use super::flush;
use crate::error::{Result, code};

/// What the first bio of a request knows of the whole.
pub(crate) struct RqHead {
    /// What the driver is asked: not the bio's own flags while flush.rs takes them one by one.
    opf: ReqOpf,
    bytes: u32,
    segments: u16,
    /// Last bio of the chain.
    tail: Option<NonNull<Bio>>,
    /// Next request in an [`RqList`].
    next: Option<NonNull<Bio>>,
}

impl RqHead {
    pub(crate) const fn new() -> Self {
        Self { opf: ReqOpf::REQ_OP_READ, bytes: 0, segments: 0, tail: None, next: None }
    }
}

/// A request, owned. It is ended once, with [`Request::end`]; a driver that drops it instead ends it with EIO.
#[repr(transparent)]
pub struct Request(NonNull<Bio>);

// SAFETY: it owns its bios alone, and a BioPtr is Send.
unsafe impl Send for Request {}

impl Request {
    /// A request of one bio, which asks the driver for `opf`. A flush carries no sectors and no
    /// memory, whatever the bio has.
    #[inline]
    pub(crate) fn new(mut bio: BioPtr, opf: ReqOpf) -> Self {
        let flush = matches!(opf.op(), ReqOp::Flush);
        bio.rq.opf = opf;
        bio.rq.bytes = if flush { 0 } else { bio.bi_size };
        // At most BIO_MAX_VECS.
        bio.rq.segments = if flush { 0 } else { bio.bi_io_vec.len() as u16 };
        bio.rq.tail = None;
        Self(bio.into_nonnull())
    }

    /// A request of one bio that reads or writes, and nothing else.
    #[inline]
    pub(crate) fn plain(mut bio: BioPtr) -> Self {
        debug_assert!(bio.bi_opf.is_plain());
        bio.rq.opf = bio.bi_opf;
        bio.rq.bytes = bio.bi_size;
        // At most BIO_MAX_VECS.
        bio.rq.segments = bio.bi_io_vec.len() as u16;
        bio.rq.tail = None;
        Self(bio.into_nonnull())
    }

    #[inline]
    fn head(&self) -> &Bio {
        // SAFETY: the request owns its bios.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn head_mut(&mut self) -> &mut Bio {
        // SAFETY: the request owns its bios.
        unsafe { self.0.as_mut() }
    }

    /// First sector, in units of 512 bytes. 0 for a flush.
    #[doc(alias = "blk_rq_pos")]
    #[inline]
    pub fn sector(&self) -> u64 {
        if matches!(self.op(), ReqOp::Flush) { 0 } else { self.head().bi_sector }
    }

    /// Length in bytes: of the data, or of the range to discard or zero. 0 for a flush.
    #[doc(alias = "blk_rq_bytes")]
    #[inline]
    pub fn nr_bytes(&self) -> u32 {
        self.head().rq.bytes
    }

    /// The sector after its last.
    #[inline]
    pub fn end_sector(&self) -> u64 {
        self.sector() + u64::from(self.nr_bytes() >> SECTOR_SHIFT)
    }

    /// What to do. Never [`ReqOp::Unknown`].
    #[doc(alias = "req_op")]
    #[inline]
    pub fn op(&self) -> ReqOp {
        self.opf().op()
    }

    /// What to do and how. PREFLUSH is never set, FUA only if [`QueueLimits::fua`] is.
    #[doc(alias = "cmd_flags")]
    #[inline]
    pub fn opf(&self) -> ReqOpf {
        self.head().rq.opf
    }

    /// How many stretches of memory [`Request::for_each_vec`] visits.
    #[doc(alias = "blk_rq_nr_phys_segments")]
    #[inline]
    pub fn nr_segments(&self) -> u16 {
        self.head().rq.segments
    }

    /// How many bios were merged into it, counted by walking them.
    pub fn nr_bios(&self) -> usize {
        self.bios().count()
    }

    fn bios(&self) -> impl Iterator<Item = &Bio> {
        core::iter::successors(Some(self.head()), |bio| {
            // SAFETY: the chain belongs to the request, and lives as long as it is borrowed.
            bio.bi_next.map(|next| unsafe { next.as_ref() })
        })
    }

    /// The memory of the request in the order of its sectors. Empty for an operation without data.
    #[doc(alias = "rq_for_each_segment")]
    #[inline]
    pub fn vecs(&self) -> impl Iterator<Item = BioVec> + '_ {
        let flush = matches!(self.op(), ReqOp::Flush);
        self.bios().filter(move |_| !flush).flat_map(|bio| bio.bi_io_vec.iter().copied())
    }

    /// The memory, if it is one stretch and the request one bio: the usual case, for drivers that treat it by itself.
    #[inline]
    pub fn single_vec(&self) -> Option<BioVec> {
        match self.head().bi_io_vec.as_slice() {
            [only] if self.nr_segments() == 1 => Some(*only),
            _ => None,
        }
    }

    /// Calls `f` with each stretch of memory in the order of the sectors.
    #[inline]
    pub fn for_each_vec(&self, mut f: impl FnMut(BioVec)) {
        if matches!(self.op(), ReqOp::Flush) {
            return;
        }
        let mut bio = Some(self.0);
        while let Some(this) = bio {
            // SAFETY: the chain belongs to the request, which is borrowed.
            let this = unsafe { this.as_ref() };
            for vec in &this.bi_io_vec {
                f(*vec);
            }
            bio = this.bi_next;
        }
    }

    /// The disk it is for.
    #[inline]
    pub(crate) fn disk(&self) -> NonNull<Gendisk> {
        self.head().bi_disk
    }

    /// Appends `next`, for the same disk, if it starts where this ends, does the same, and the sum is within `limits`;
    /// else gives it back.
    #[doc(alias = "ll_back_merge_fn")]
    pub(crate) fn try_merge(&mut self, next: Request, limits: &QueueLimits) -> Result<(), Request> {
        let opf = self.opf();
        let bytes = self.nr_bytes().checked_add(next.nr_bytes());
        let segments = self.nr_segments().checked_add(next.nr_segments());
        let (Some(bytes), Some(segments)) = (bytes, segments) else { return Err(next) };
        debug_assert_eq!(self.disk(), next.disk());
        if opf != next.opf()
            || !matches!(opf.op(), ReqOp::Read | ReqOp::Write)
            || self.end_sector() != next.sector()
            || bytes > limits.max_bytes
            || segments > limits.max_segments
        {
            return Err(next);
        }
        let next = next.into_head();
        // SAFETY: both chains belong to us now.
        let next_tail = unsafe { next.as_ref() }.rq.tail.unwrap_or(next);
        let mut tail = self.head().rq.tail.unwrap_or(self.0);
        // SAFETY: as above; no reference to the tail is alive.
        unsafe { tail.as_mut() }.bi_next = Some(next);
        let head = self.head_mut();
        head.rq.tail = Some(next_tail);
        head.rq.bytes = bytes;
        head.rq.segments = segments;
        Ok(())
    }

    /// Ends the request: each of its bios ends with `result`. Callable in any context.
    ///
    /// The bios' `bi_end_io` run from here, and a flush sequence queues its next step from here: a
    /// driver must hold no lock that its `queue_rq` or `commit_rqs` takes.
    #[doc(alias = "blk_mq_end_request")]
    #[inline]
    pub fn end(self, result: Result) {
        let mut next = Some(self.into_head());
        while let Some(bio) = next {
            // SAFETY: the bio was the request's, which no longer exists.
            let mut bio = unsafe { BioPtr::from_nonnull(bio) };
            next = bio.bi_next.take();
            if bio.flush_seq.is_empty() {
                bio.endio(result);
            } else {
                flush::advance(bio, result);
            }
        }
    }

    #[inline]
    fn into_head(self) -> NonNull<Bio> {
        ManuallyDrop::new(self).0
    }

    /// A word that stands for the request while the hardware has it. Not null, aligned to 8.
    #[inline]
    pub fn into_raw(self) -> NonNull<()> {
        self.into_head().cast()
    }

    /// Takes the request back from its word.
    ///
    /// # Safety
    ///
    /// `raw` must come from [`Request::into_raw`], and each such word is taken back once.
    #[inline]
    pub unsafe fn from_raw(raw: NonNull<()>) -> Self {
        Self(raw.cast())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        crate::pr_err!("block: a driver lost a request: {:?}", self);
        Request(self.0).end(Err(code::EIO));
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("opf", &self.opf())
            .field("sector", &self.sector())
            .field("bytes", &self.nr_bytes())
            .finish_non_exhaustive()
    }
}

/// A first-in first-out list of requests, linked through them: it needs no memory and has no limit.
/// What is left in it when it is dropped ends with EIO.
pub struct RqList {
    head: Option<NonNull<Bio>>,
    tail: Option<NonNull<Bio>>,
}

// SAFETY: it owns its requests, and they are Send.
unsafe impl Send for RqList {}

impl RqList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { head: None, tail: None }
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Appends one.
    #[inline]
    pub fn push_back(&mut self, rq: Request) {
        let mut new = rq.into_head();
        // SAFETY: the request was ours and is now the list's.
        unsafe { new.as_mut() }.rq.next = None;
        match self.tail.replace(new) {
            // SAFETY: the list owns its last element.
            Some(mut tail) => unsafe { tail.as_mut() }.rq.next = Some(new),
            None => self.head = Some(new),
        }
    }

    /// Takes the oldest.
    #[inline]
    pub fn pop_front(&mut self) -> Option<Request> {
        let mut head = self.head?;
        // SAFETY: the list owns its elements.
        self.head = unsafe { head.as_mut() }.rq.next.take();
        if self.head.is_none() {
            self.tail = None;
        }
        Some(Request(head))
    }

    /// Moves all of `other` behind what is here.
    pub fn append(&mut self, other: &mut RqList) {
        while let Some(rq) = other.pop_front() {
            self.push_back(rq);
        }
    }
}

impl Default for RqList {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for RqList {
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}
