// SPDX-License-Identifier: GPL-2.0-only
//! `block/blk-flush.c`: PREFLUSH and FUA on devices that do not know them.
//!
//! | the device | PREFLUSH | FUA |
//! |---|---|---|
//! | has no volatile cache | dropped | dropped |
//! | has one | a flush, and when that has ended, the data | the data, and when that has ended, a flush |
//! | has one, and FUA | as above | passed on |
//!
//! A flush covers the writes that had *ended* when it was queued, no others, so each step waits
//! for the one before. The bio is its own state machine: [`FlushSeq`] holds the steps it has not
//! finished, and the next is queued from the completion of the last, in that context, with no
//! memory and no lock. A step that fails ends the bio with its error and skips the rest: data that
//! was to follow a flush is not written after the flush failed.

use bitflags::bitflags;

use super::bio::{BioPtr, ReqOp, ReqOpf};
use super::blkdev::Gendisk;
use super::request::Request;
use crate::error::Result;

bitflags! {
    /// The steps a bio has before it, the lowest first.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct FlushSeq: u8 {
        /// Flush before the data.
        const PREFLUSH = 1 << 0;
        /// The data.
        const DATA = 1 << 1;
        /// Flush after the data.
        const POSTFLUSH = 1 << 2;
    }
}

impl FlushSeq {
    /// What `opf` takes on `disk`, and with which flags the data goes to the device.
    #[doc(alias = "blk_flush_policy")]
    fn policy(disk: &Gendisk, opf: ReqOpf, has_data: bool) -> (FlushSeq, ReqOpf) {
        let flush = matches!(opf.op(), ReqOp::Flush);
        let mut seq = FlushSeq::empty();
        let mut data_opf = opf.difference(ReqOpf::PREFLUSH | ReqOpf::FUA);
        if has_data && !flush {
            seq |= FlushSeq::DATA;
        }
        if disk.limits.write_cache {
            if flush || opf.contains(ReqOpf::PREFLUSH) {
                seq |= FlushSeq::PREFLUSH;
            }
            if seq.contains(FlushSeq::DATA) && opf.contains(ReqOpf::FUA) {
                if disk.limits.fua && matches!(opf.op(), ReqOp::Write) {
                    data_opf |= ReqOpf::FUA;
                } else {
                    seq |= FlushSeq::POSTFLUSH;
                }
            }
        }
        (seq, data_opf)
    }
}

/// Submits a checked bio that is a flush, or has PREFLUSH or FUA.
#[doc(alias = "blk_insert_flush")]
pub(crate) fn submit(disk: &Gendisk, mut bio: BioPtr) {
    let (seq, data_opf) = FlushSeq::policy(disk, bio.bi_opf, bio.bi_size != 0);
    if seq.is_empty() {
        bio.endio(Ok(()));
    } else if seq == FlushSeq::DATA {
        // One step and no sequence: it may be plugged like any other.
        disk.queue(Request::new(bio, data_opf));
    } else {
        bio.flush_seq = seq;
        step(disk, bio, data_opf);
    }
}

/// Queues the first of the steps that are left.
fn step(disk: &Gendisk, bio: BioPtr, data_opf: ReqOpf) {
    let data_next = !bio.flush_seq.contains(FlushSeq::PREFLUSH) && bio.flush_seq.contains(FlushSeq::DATA);
    let opf = if data_next { data_opf } else { ReqOpf::REQ_OP_FLUSH | ReqOpf::SYNC };
    disk.queue_now(Request::new(bio, opf));
}

/// A step of `bio` ended with `result`: on to the next, or the end. In completion context.
#[doc(alias = "blk_flush_complete_seq")]
#[cold]
pub(crate) fn advance(mut bio: BioPtr, result: Result) {
    let seq = bio.flush_seq;
    // Without its lowest bit, the step that has ended.
    let left = FlushSeq::from_bits_truncate(seq.bits() & seq.bits().wrapping_sub(1));
    if left.is_empty() || result.is_err() {
        bio.flush_seq = FlushSeq::empty();
        return bio.endio(result);
    }
    bio.flush_seq = left;
    let disk = bio.bi_disk;
    // SAFETY: the disk outlives the bio that we hold.
    let disk = unsafe { disk.as_ref() };
    // The bio may end, and the last handle of the disk go, while we are still in its driver.
    let _pin = disk.pin();
    let (_, data_opf) = FlushSeq::policy(disk, bio.bi_opf, bio.bi_size != 0);
    step(disk, bio, data_opf);
}
