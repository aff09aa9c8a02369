// SPDX-License-Identifier: GPL-2.0-only
//! `drivers/block/brd.c`: a RAM disk for benchmarks. It copies in `queue_rq` and ends the request there.

use core::cell::UnsafeCell;
use std::vec::Vec;

use super::bio::{ReqOp, SECTOR_SHIFT};
use super::blkdev::{BlockDevice, QueueLimits};
use super::request::Request;
use crate::error::{Result, code};
use crate::sched::host::InterruptContext;

/// See the head of this file. Made by [`RamDisk::fast`](super::ramdisk::RamDisk::fast).
pub struct FastRamDisk {
    /// Changed through pointers only. Two requests that overlap race here as they do on a disk.
    memory: Vec<UnsafeCell<u8>>,
    limits: QueueLimits,
}

// SAFETY: the memory is only copied from and to, in ranges within it. Submitters that need an order between
// overlapping requests wait for one before they submit the other, as for any disk.
unsafe impl Sync for FastRamDisk {}

impl FastRamDisk {
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| code::ENOMEM)? >> SECTOR_SHIFT << SECTOR_SHIFT;
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes).map_err(|_| code::ENOMEM)?;
        memory.resize_with(bytes, || UnsafeCell::new(0));
        let limits =
            QueueLimits { max_bytes: 1 << 24, max_segment_size: 1 << 24, write_zeroes: true, ..QueueLimits::DEFAULT };
        Ok(Self { memory, limits })
    }

    /// Sets the contents from the start of the disk on; what is too much is left off.
    pub fn load(&mut self, image: &[u8]) {
        for (to, from) in self.memory.iter_mut().zip(image) {
            *to.get_mut() = *from;
        }
    }

    fn at(&self, sector: u64) -> *mut u8 {
        // Requests lie within the disk, so this does as well.
        self.memory.as_ptr().cast::<u8>().cast_mut().wrapping_add((sector << SECTOR_SHIFT) as usize)
    }
}

impl BlockDevice for FastRamDisk {
    fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    fn nr_sectors(&self) -> u64 {
        (self.memory.len() >> SECTOR_SHIFT) as u64
    }

    #[inline]
    fn queue_rq(&self, rq: Request) {
        let mut at = self.at(rq.sector());
        match rq.op() {
            ReqOp::Write => rq.for_each_vec(|vec| {
                // SAFETY: the block layer lets no request past the end; the submitter's memory is
                // valid until the request ends, and never ours.
                unsafe { core::ptr::copy_nonoverlapping(vec.bv_page.as_ptr(), at, vec.bv_len as usize) };
                at = at.wrapping_add(vec.bv_len as usize);
            }),
            ReqOp::Read => rq.for_each_vec(|vec| {
                // SAFETY: as above.
                unsafe { core::ptr::copy_nonoverlapping(at, vec.bv_page.as_ptr(), vec.bv_len as usize) };
                at = at.wrapping_add(vec.bv_len as usize);
            }),
            // SAFETY: as above.
            ReqOp::WriteZeroes => unsafe { core::ptr::write_bytes(at, 0, rq.nr_bytes() as usize) },
            _ => {}
        }
        let _irq = InterruptContext::enter();
        rq.end(Ok(()));
    }

    #[inline]
    fn commit_rqs(&self) {}

    fn name(&self) -> &str {
        "brd"
    }
}
