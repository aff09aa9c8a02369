// SPDX-License-Identifier: GPL-2.0-only
//! The block layer: `block/*.c`, as far as a file system and one driver need it.
//!
//! ```text
//!  bio_alloc → bio_add_page → submit_bio ─┬→ the task's plug ──(full, finish, sleep)─┐
//!                                         ├→ flush.rs: flush, write, flush           ├→ queue_rq* → commit_rqs
//!                                         └──────────────────────────────────────────┘       │
//!  bi_end_io(bio) ←──────────────────── Request::end(result) ←──────────── the device, any context
//! ```
//!
//! Nothing on this way allocates. Bios come from the device's fixed set (`bioset.rs`), requests are
//! chains of bios ([`request`]), and plugs and driver queues link them through themselves.
//!
//! Many requests are in flight at once and they complete in any order. Two that overlap and are in
//! flight together have no order at all: whoever needs one waits for the first to end.

pub mod bio;
mod bioset;
pub mod blk_lib;
pub mod blkdev;
#[cfg(all(feature = "host", not(feature = "bare")))]
pub mod brd;
#[cfg(all(feature = "host", not(feature = "bare")))]
pub mod fault;
#[cfg(all(feature = "host", not(feature = "bare")))]
pub mod file;
mod flush;
pub mod plug;
#[cfg(all(feature = "host", not(feature = "bare")))]
pub mod ramdisk;
pub mod request;
#[cfg(all(feature = "sim", not(feature = "bare")))]
pub mod sim;
#[cfg(all(test, feature = "host"))]
mod tests;

pub(crate) use bio::BIO;
pub use bio::{BIO_MAX_VECS, Bio, BioPtr, BioVec, ReqOp, ReqOpf, SECTOR_SHIFT, SECTOR_SIZE};
pub use blk_lib::{IoBatch, bdev_rw, bdev_write_pieces, blkdev_issue_flush, blkdev_issue_zeroout, submit_bio_wait};
pub use blkdev::{Bdev, BlockDevice, DiskStats, QueueLimits, bio_alloc, submit_bio, submit_bio_last};
pub use plug::{BlkPlug, PlugSlot};
pub use request::{Request, RqList};
