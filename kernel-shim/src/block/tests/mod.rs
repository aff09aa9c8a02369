// SPDX-License-Identifier: GPL-2.0-only
//! Tests of the block layer and its hosted devices, on a RAM disk whose requests the test completes.

mod devices;
mod flush;
mod queue;
mod ramdisk;

use core::ptr::NonNull;
use std::boxed::Box;
use std::sync::{Arc as StdArc, Mutex};
use std::vec::Vec;

use super::ramdisk::{Event, Mode, RamDisk, RamDiskOptions};
use super::*;
use crate::alloc::{Arc, GFP_NOIO};
use crate::error::{Error, Result};

/// Sectors in 4 KiB.
const BLOCK: u64 = 8;

/// A disk of 1 MiB that completes when told.
fn manual(limits: QueueLimits) -> (Arc<RamDisk>, Bdev) {
    let disk = RamDisk::new(1 << 20, RamDiskOptions { mode: Mode::Manual, seed: 1, limits }).unwrap();
    let bdev = Bdev::with_bios(disk.clone(), 64).unwrap();
    (disk, bdev)
}

fn automatic() -> (Arc<RamDisk>, Bdev) {
    let disk = RamDisk::new(1 << 20, RamDiskOptions::default()).unwrap();
    let bdev = Bdev::with_bios(disk.clone(), 64).unwrap();
    (disk, bdev)
}

/// What ended, in order: first sector and result.
#[derive(Clone, Default)]
struct Ended(StdArc<Mutex<Vec<(u64, Result)>>>);

impl Ended {
    fn watch(&self, bio: &mut BioPtr) {
        bio.bi_private = Box::into_raw(Box::new(self.clone())).cast();
        bio.bi_end_io = |bio| {
            // SAFETY: boxed in `watch`, and a bio ends once.
            let ended = unsafe { Box::from_raw(bio.bi_private.cast::<Ended>()) };
            ended.0.lock().unwrap().push((bio.bi_sector, bio.result()));
        };
    }

    fn take(&self) -> Vec<(u64, Result)> {
        core::mem::take(&mut self.0.lock().unwrap())
    }

    fn errors(&self) -> Vec<Option<Error>> {
        self.take().into_iter().map(|(_, result)| result.err()).collect()
    }
}

/// Memory that outlives every I/O on it.
fn memory(len: usize, byte: u8) -> NonNull<u8> {
    NonNull::from(Box::leak(std::vec![byte; len].into_boxed_slice())).cast()
}

/// A bio of `len` bytes of `byte` at `sector`, watched by `ended`.
fn bio(bdev: &Bdev, opf: ReqOpf, sector: u64, len: u32, byte: u8, ended: &Ended) -> BioPtr {
    let mut bio = bio_alloc(bdev, opf, GFP_NOIO).unwrap();
    bio.bi_sector = sector;
    if len > 0 && matches!(opf.op(), ReqOp::Read | ReqOp::Write) {
        // SAFETY: the memory is leaked, and only the device uses it.
        assert!(unsafe { bio.bio_add_page(memory(len as usize, byte), len) });
    } else {
        bio.set_size(len);
    }
    ended.watch(&mut bio);
    bio
}

/// The queued requests of a log: flags, sector, bytes.
fn queued(log: &[Event]) -> Vec<(ReqOpf, u64, u32)> {
    log.iter().filter(|e| !e.done).map(|e| (e.opf, e.sector, e.bytes)).collect()
}

const READ: ReqOpf = ReqOpf::REQ_OP_READ;
const WRITE: ReqOpf = ReqOpf::REQ_OP_WRITE;
