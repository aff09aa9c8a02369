// SPDX-License-Identifier: GPL-2.0-only
//! `block/blk-core.c`, `include/linux/blkdev.h`: disks, and the way a bio takes to one.
//!
//! A driver implements [`BlockDevice`]. [`Bdev::new`] makes a disk of it: the driver, a copy of its
//! limits, and the disk's bios. `Bdev` is the handle, shared by cloning.
//!
//! # How long a disk lives
//!
//! A bio refers to its disk without counting: that would cost every I/O two atomic operations on one
//! cache line. Instead the last handle waits, when it is dropped, for the bios to come home, and if
//! they do not, the disk and its driver are left in memory, with a message. So a disk outlives its bios.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::bio::{BioPtr, ReqOp, ReqOpf, SECTOR_SHIFT, SECTOR_SIZE};
use super::bioset::{BIO_POOL_SIZE, BioSet};
use super::request::Request;
use super::{flush, plug};
use crate::alloc::{Flags, GFP_KERNEL, KBox};
use crate::error::{Error, Result, code};
use crate::percpu::PerCpu;
use crate::sched;
use crate::sync::Arc;

/// What a device can do, fixed for its lifetime.
#[doc(alias = "queue_limits")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Bytes; a power of two, at least 512. Every transfer is a multiple of it, at a multiple of it.
    pub logical_block_size: u32,
    /// Bytes that the device writes without having to read: a hint.
    pub physical_block_size: u32,
    /// Stretches of memory in one request.
    pub max_segments: u16,
    /// Bytes in one stretch.
    pub max_segment_size: u32,
    /// Bytes in one request with data.
    pub max_bytes: u32,
    /// Completed writes may be lost with power until a flush.
    pub write_cache: bool,
    /// Understands [`ReqOpf::FUA`].
    pub fua: bool,
    /// Understands DISCARD.
    pub discard: bool,
    /// Understands WRITE_ZEROES.
    pub write_zeroes: bool,
    /// Refuses whatever changes it.
    pub read_only: bool,
}

impl QueueLimits {
    /// A disk with 512-byte blocks, no volatile cache and no extras.
    pub const DEFAULT: Self = Self {
        logical_block_size: SECTOR_SIZE,
        physical_block_size: SECTOR_SIZE,
        max_segments: 128,
        max_segment_size: 1 << 20,
        max_bytes: 1 << 20,
        write_cache: false,
        fua: false,
        discard: false,
        write_zeroes: false,
        read_only: false,
    };

    fn valid(&self) -> bool {
        self.logical_block_size.is_power_of_two()
            && self.logical_block_size >= SECTOR_SIZE
            && self.max_segments > 0
            && self.max_segment_size >= self.logical_block_size
            && self.max_bytes >= self.logical_block_size
    }
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A driver.
///
/// It ends every request it is given, once, in any order and any context, with [`Request::end`].
/// While it does, it holds none of the locks that its methods take: the end of one request may
/// queue another from inside. When the last request has ended the device may be dropped on another
/// thread, and `drop` has to wait for whatever else the driver has running.
#[doc(alias = "blk_mq_ops")]
pub trait BlockDevice: Send + Sync {
    /// What it can do. Asked once.
    fn limits(&self) -> &QueueLimits;

    /// Its size in units of 512 bytes. Asked once.
    #[doc(alias = "get_capacity")]
    fn nr_sectors(&self) -> u64;

    /// Takes a request that is within the limits and the size. Never sleeps and never fails: an
    /// error comes as the request's end. May hold it back until [`BlockDevice::commit_rqs`].
    /// Any context.
    fn queue_rq(&self, rq: Request);

    /// Makes all that was queued visible to the hardware: one doorbell. Any context.
    fn commit_rqs(&self);

    /// [`BlockDevice::queue_rq`] and [`BlockDevice::commit_rqs`] in one.
    #[doc(alias = "blk_mq_queue_data")]
    #[inline]
    fn queue_last(&self, rq: Request) {
        self.queue_rq(rq);
        self.commit_rqs();
    }

    /// Looks for requests that have ended, and ends them; whether there were any. Called by tasks that rather poll than sleep. A device
    /// that interrupts anyway need not know how.
    #[doc(alias = "blk_mq_ops::poll")]
    fn poll(&self) -> bool {
        false
    }

    /// For messages.
    fn name(&self) -> &str {
        "disk"
    }
}

impl<T: BlockDevice + ?Sized> BlockDevice for &T {
    fn limits(&self) -> &QueueLimits {
        (**self).limits()
    }
    fn nr_sectors(&self) -> u64 {
        (**self).nr_sectors()
    }
    fn queue_rq(&self, rq: Request) {
        (**self).queue_rq(rq);
    }
    fn commit_rqs(&self) {
        (**self).commit_rqs();
    }
    fn queue_last(&self, rq: Request) {
        (**self).queue_last(rq);
    }
    fn poll(&self) -> bool {
        (**self).poll()
    }
    fn name(&self) -> &str {
        (**self).name()
    }
}

impl<T: BlockDevice> BlockDevice for Arc<T> {
    fn limits(&self) -> &QueueLimits {
        (**self).limits()
    }
    fn nr_sectors(&self) -> u64 {
        (**self).nr_sectors()
    }
    fn queue_rq(&self, rq: Request) {
        (**self).queue_rq(rq);
    }
    fn commit_rqs(&self) {
        (**self).commit_rqs();
    }
    fn queue_last(&self, rq: Request) {
        (**self).queue_last(rq);
    }
    fn poll(&self) -> bool {
        (**self).poll()
    }
    fn name(&self) -> &str {
        (**self).name()
    }
}

/// Counters of a disk since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Requests given to the driver.
    pub requests: u64,
    /// Sectors of 512 bytes that were to be written, to within a few.
    pub write_sectors: u64,
    /// Bios that went as part of another's request.
    pub merges: u64,
    /// Bios that are allocated now.
    pub bios_out: usize,
}

/// A disk: the driver with what the block layer knows of it.
///
/// # Invariants
///
/// `dev` is valid until the disk is destroyed, and `free` destroys it.
pub(crate) struct Gendisk {
    dev: NonNull<dyn BlockDevice>,
    free: unsafe fn(NonNull<()>),
    pub(crate) limits: QueueLimits,
    nr_sectors: u64,
    /// Most bytes of memory in one stretch that a bio can be all of, in whole blocks.
    max_piece: u32,
    pub(crate) bios: BioSet,
    cpus: PerCpu<DiskCpu>,
    merges: AtomicU64,
    complained: AtomicBool,
}

/// What each CPU that submits counts for itself.
#[derive(Default)]
struct DiskCpu {
    /// Contexts inside the driver on behalf of a bio that may already have ended.
    pins: AtomicUsize,
    requests: AtomicU64,
    write_sectors: AtomicU64,
}

impl DiskCpu {
    #[inline]
    fn count(&self, rq: &Request) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if rq.op() == ReqOp::Write {
            // Not in one step: a thread that moves to another CPU in between may lose a few, which is all right for a statistic.
            let sectors = self.write_sectors.load(Ordering::Relaxed) + u64::from(rq.nr_bytes() >> SECTOR_SHIFT);
            self.write_sectors.store(sectors, Ordering::Relaxed);
        }
    }
}

// SAFETY: a BlockDevice is Send and Sync, and the raw pointers to it are the disk's own.
unsafe impl Send for Gendisk {}
// SAFETY: as above.
unsafe impl Sync for Gendisk {}

/// Keeps a disk from being destroyed.
pub(crate) struct DiskPin<'a>(&'a AtomicUsize);

impl Drop for DiskPin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Gendisk {
    #[inline]
    fn dev(&self) -> &dyn BlockDevice {
        // SAFETY: valid by the invariant.
        unsafe { self.dev.as_ref() }
    }

    /// To be held by whoever calls the driver without a handle of the disk, from before the request is out of hand.
    #[inline]
    pub(crate) fn pin(&self) -> DiskPin<'_> {
        let pins = &self.cpus.this().pins;
        pins.fetch_add(1, Ordering::Relaxed);
        DiskPin(pins)
    }

    /// To the task's plug, or the driver. The caller has a handle of the disk.
    #[inline]
    pub(crate) fn queue(&self, rq: Request) {
        // In an interrupt current is whoever was interrupted, maybe in the middle of its plug.
        if !sched::in_interrupt() {
            let slot = &sched::current().plug;
            if slot.active() {
                return slot.add(rq);
            }
        }
        self.queue_now(rq);
    }

    /// To the driver, at once. The caller has a handle or a pin.
    #[inline]
    pub(crate) fn queue_now(&self, rq: Request) {
        self.cpus.this().count(&rq);
        self.dev().queue_last(rq);
    }

    /// To the driver, with a [`Gendisk::commit`] to follow. The caller has a handle or a pin.
    #[inline]
    pub(crate) fn queue_only(&self, rq: Request) {
        self.cpus.this().count(&rq);
        self.dev().queue_rq(rq);
    }

    /// See [`Bdev::max_piece`].
    #[inline]
    pub(crate) fn max_piece(&self) -> u32 {
        self.max_piece
    }

    #[inline]
    pub(crate) fn commit(&self) {
        self.dev().commit_rqs();
    }

    pub(crate) fn note_merge(&self) {
        self.merges.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether `bio` lies within the device, in whole blocks.
    #[inline]
    fn check_place(&self, bio: &BioPtr) -> Result {
        let sectors = u64::from(bio.bi_size >> SECTOR_SHIFT);
        if bio.bi_sector > self.nr_sectors || sectors > self.nr_sectors - bio.bi_sector {
            return Err(code::EIO);
        }
        // No bits are lost: the size of the disk in bytes fits (see `Bdev::with_bios`).
        let bytes = u64::from(bio.bi_size) | (bio.bi_sector << SECTOR_SHIFT);
        if bytes & u64::from(self.limits.logical_block_size - 1) != 0 {
            return Err(code::EINVAL);
        }
        Ok(())
    }

    /// Whether `bio` is a plain read or write that the driver may be asked for: all but always so.
    #[inline(always)]
    fn check_plain(&self, bio: &BioPtr) -> bool {
        bio.bi_opf.is_plain()
            && bio.bi_size.wrapping_sub(1) < self.limits.max_bytes
            && !(self.limits.read_only && bio.bi_opf.is_write())
            && self.check_place(bio).is_ok()
    }

    /// Whether `bio` is something that the driver may be asked for.
    #[doc(alias = "submit_bio_noacct")]
    fn check(&self, bio: &BioPtr) -> Result {
        self.check_place(bio)?;
        let bytes = bio.bi_size;
        if bio.bi_opf.is_write() && self.limits.read_only && bytes != 0 {
            return Err(code::EROFS);
        }
        match bio.bi_opf.op() {
            ReqOp::Read | ReqOp::Write if bytes == 0 && !bio.bi_opf.contains(ReqOpf::PREFLUSH) => Err(code::EINVAL),
            ReqOp::Read | ReqOp::Write if bytes > self.limits.max_bytes => Err(code::EINVAL),
            ReqOp::Read | ReqOp::Write | ReqOp::Flush => Ok(()),
            ReqOp::Discard if self.limits.discard => Ok(()),
            ReqOp::WriteZeroes if self.limits.write_zeroes => Ok(()),
            _ => Err(code::EOPNOTSUPP),
        }
    }

    #[cold]
    fn refuse(&self, bio: BioPtr, err: Error) {
        // Not supported is an answer that callers ask for; the others are bugs or corruption.
        if err != code::EOPNOTSUPP && !self.complained.swap(true, Ordering::Relaxed) {
            crate::pr_err!(
                "{}: refused {:?} of {} bytes at sector {} of {}, errno {}; further ones not logged",
                self.dev().name(),
                bio.bi_opf,
                bio.bi_size,
                bio.bi_sector,
                self.nr_sectors,
                -err.to_errno()
            );
        }
        bio.endio(Err(err));
    }
}

/// Destroys the disk when the last handle goes.
struct DiskOwner(NonNull<Gendisk>);

// SAFETY: a Gendisk is Send and Sync.
unsafe impl Send for DiskOwner {}
// SAFETY: as above.
unsafe impl Sync for DiskOwner {}

/// How long the last handle waits for bios that are still out.
const DRAIN_NS: u64 = 30_000_000_000;

/// Whether a test has failed in this thread, perhaps between a submission and its end.
fn panicking() -> bool {
    #[cfg(feature = "host")]
    return std::thread::panicking();
    #[cfg(not(feature = "host"))]
    return false;
}

impl Drop for DiskOwner {
    fn drop(&mut self) {
        // SAFETY: this owner is what keeps the disk.
        let disk = unsafe { self.0.as_ref() };
        // Some of the bios may be in our own plug.
        plug::blk_flush_plug_current();
        if !disk.bios.drain(if panicking() { 0 } else { DRAIN_NS }) {
            crate::pr_err!("{}: {} bios never came back, disk not freed", disk.dev().name(), disk.bios.outstanding());
            return;
        }
        while disk.cpus.iter().any(|cpu| cpu.pins.load(Ordering::Acquire) != 0) {
            sched::yield_now();
        }
        let (dev, free) = (disk.dev, disk.free);
        // SAFETY: the device was made for `free`, its bios are home and nobody is inside it.
        unsafe { free(dev.cast()) };
        // SAFETY: it came from a KBox in `Bdev::new`, and no handle, bio or pin refers to it.
        drop(unsafe { KBox::from_raw(self.0.as_ptr()) });
    }
}

/// A handle of a disk. Clone it to share it; the last one to go sleeps until the disk's bios are home.
#[doc(alias = "block_device")]
#[derive(Clone)]
pub struct Bdev {
    /// What `owner` owns, at hand.
    disk: NonNull<Gendisk>,
    _owner: Arc<DiskOwner>,
}

// SAFETY: a shared reference to a Gendisk, which is Sync, with a share of its ownership.
unsafe impl Send for Bdev {}
// SAFETY: as above.
unsafe impl Sync for Bdev {}

impl Bdev {
    /// Makes a disk of a driver: its value, an `Arc` of it, or a `&'static` to it. EINVAL if its limits make no sense.
    #[doc(alias = "device_add_disk")]
    pub fn new<D: BlockDevice + 'static>(dev: D) -> Result<Self> {
        Self::with_bios(dev, BIO_POOL_SIZE)
    }

    /// As [`Bdev::new`], with `nr_bios` bios instead of 1024: the bound of what can be in flight.
    pub fn with_bios<D: BlockDevice + 'static>(dev: D, nr_bios: usize) -> Result<Self> {
        let limits = dev.limits().clone();
        let nr_sectors = dev.nr_sectors();
        if !limits.valid() || nr_sectors > u64::MAX >> SECTOR_SHIFT || nr_bios == 0 {
            return Err(code::EINVAL);
        }
        let dev = KBox::into_raw(KBox::new(dev, GFP_KERNEL)?);
        // SAFETY: the pointer of a box is not null.
        let dev = unsafe { NonNull::new_unchecked(dev as *mut dyn BlockDevice) };
        let disk = Gendisk {
            dev,
            free: free_dev::<D>,
            max_piece: limits.max_bytes.min(limits.max_segment_size) & !(limits.logical_block_size - 1),
            limits,
            nr_sectors,
            bios: BioSet::new(),
            cpus: PerCpu::default(),
            merges: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        };
        let disk = match KBox::new(disk, GFP_KERNEL) {
            // SAFETY: the pointer of a box is not null.
            Ok(disk) => unsafe { NonNull::new_unchecked(KBox::into_raw(disk)) },
            Err(err) => {
                // SAFETY: made above, and nobody else has it.
                unsafe { free_dev::<D>(dev.cast()) };
                return Err(err.into());
            }
        };
        // SAFETY: nobody else has it yet.
        let filled = unsafe { (*disk.as_ptr()).bios.fill(disk, nr_bios, GFP_KERNEL) };
        // From here on the owner frees both.
        let owner = DiskOwner(disk);
        filled?;
        Ok(Self { disk, _owner: Arc::new(owner, GFP_KERNEL)? })
    }

    #[inline]
    pub(crate) fn disk(&self) -> &Gendisk {
        // SAFETY: the owner keeps it.
        unsafe { self.disk.as_ref() }
    }

    /// What the device can do.
    #[inline]
    pub fn limits(&self) -> &QueueLimits {
        &self.disk().limits
    }

    /// Size in units of 512 bytes.
    #[doc(alias = "bdev_nr_sectors")]
    #[inline]
    pub fn nr_sectors(&self) -> u64 {
        self.disk().nr_sectors
    }

    /// Bytes that transfers and their places are multiples of.
    #[doc(alias = "bdev_logical_block_size")]
    #[inline]
    pub fn logical_block_size(&self) -> u32 {
        self.limits().logical_block_size
    }

    /// Most bytes, in whole logical blocks, that one bio can carry in one stretch of memory.
    #[inline]
    pub fn max_piece(&self) -> u32 {
        self.disk().max_piece
    }

    /// Whether writes are refused.
    #[doc(alias = "bdev_read_only")]
    pub fn read_only(&self) -> bool {
        self.limits().read_only
    }

    /// Has the driver look for requests that have ended; whether there were any. See [`BlockDevice::poll`].
    #[doc(alias = "bio_poll")]
    pub fn poll(&self) -> bool {
        self.disk().dev().poll()
    }

    /// The driver's name for messages.
    pub fn name(&self) -> &str {
        self.disk().dev().name()
    }

    /// Counters.
    pub fn stats(&self) -> DiskStats {
        let disk = self.disk();
        DiskStats {
            requests: disk.cpus.iter().map(|cpu| cpu.requests.load(Ordering::Relaxed)).sum(),
            write_sectors: disk.cpus.iter().map(|cpu| cpu.write_sectors.load(Ordering::Relaxed)).sum(),
            merges: disk.merges.load(Ordering::Relaxed),
            bios_out: disk.bios.outstanding(),
        }
    }
}

/// Destroys what `Bdev::new::<D>` boxed.
///
/// # Safety
///
/// `dev` must come from there, and not be used afterwards.
unsafe fn free_dev<D: BlockDevice>(dev: NonNull<()>) {
    // SAFETY: the caller's promise.
    drop(unsafe { KBox::from_raw(dev.as_ptr().cast::<D>()) });
}

/// A bio for `bdev`. Sleeps until one is free, having queued what current's plug holds; with
/// [`ReqOpf::NOWAIT`] it rather fails with EAGAIN. No other error: bios are not made of new memory.
///
/// Who holds bios without submitting them may wait here for itself.
#[doc(alias = "bio_alloc_bioset")]
#[inline(always)]
pub fn bio_alloc(bdev: &Bdev, opf: ReqOpf, gfp: Flags) -> Result<BioPtr> {
    match bdev.disk().bios.try_get(opf) {
        Some(bio) => Ok(bio),
        None => bio_alloc_slow(bdev, opf, gfp),
    }
}

#[cold]
fn bio_alloc_slow(bdev: &Bdev, opf: ReqOpf, gfp: Flags) -> Result<BioPtr> {
    if opf.contains(ReqOpf::NOWAIT) || sched::in_interrupt() || !gfp.contains(Flags::DIRECT_RECLAIM) {
        return Err(code::EAGAIN);
    }
    plug::blk_flush_plug_current();
    Ok(bdev.disk().bios.get(opf))
}

/// Sends a bio on its way. Its end, good or bad, comes through `bi_end_io`, perhaps before this returns.
///
/// Ends with EIO if it goes past the end of the device, EINVAL if it is not aligned to the logical
/// block, larger than [`QueueLimits::max_bytes`] or of another disk, EROFS if it would change a read-only device,
/// EOPNOTSUPP if the device does not know the operation. Any context; never sleeps.
#[inline]
pub fn submit_bio(bdev: &Bdev, bio: BioPtr) {
    let disk = bdev.disk();
    if bio.bi_disk == bdev.disk && disk.check_plain(&bio) {
        disk.queue(Request::plain(bio));
    } else {
        submit_bio_slow(bdev, bio);
    }
}

/// [`submit_bio`] by a task that goes to sleep for it next, so that there is nothing to be gained by holding it back. Task
/// context only.
#[inline(always)]
pub fn submit_bio_last(bdev: &Bdev, bio: BioPtr) {
    let disk = bdev.disk();
    if bio.bi_disk == bdev.disk && disk.check_plain(&bio) && !plug::holds_some() {
        disk.queue_now(Request::plain(bio));
    } else {
        submit_bio(bdev, bio);
    }
}

#[cold]
fn submit_bio_slow(bdev: &Bdev, bio: BioPtr) {
    let disk = bdev.disk();
    if bio.bi_disk != bdev.disk {
        return disk.refuse(bio, code::EINVAL);
    }
    match disk.check(&bio) {
        Err(err) => disk.refuse(bio, err),
        Ok(()) if bio.bi_opf.is_flush() => flush::submit(disk, bio),
        Ok(()) => {
            let opf = bio.bi_opf;
            disk.queue(Request::new(bio, opf));
        }
    }
}
