// SPDX-License-Identifier: GPL-2.0-only
//! What a job's thread works on: a file of the mount, or a bare disk, with the same few operations.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::path::{Cred, path_open};
use ext4_dio::{File, Kiocb, SuperBlock};
use ext4_dio_protocol::{Job, Layout as FileLayout, SyncMode};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::{Bdev, BioPtr, ReqOpf, bio_alloc, blkdev_issue_flush, submit_bio, submit_bio_wait};
use kernel_shim::error::{Error, Result, code::*};
use kernel_shim::fs::kiocb::AioComplete;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};
use kernel_shim::sched::{self, Task};

/// Most I/Os one thread has in flight.
pub const MAX_DEPTH: usize = 1024;

/// Page-aligned memory that a device may transfer.
pub struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Zeroed memory; `None` if there is none, or for no bytes.
    pub fn new(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, 4096).ok().filter(|l| l.size() > 0)?;
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { base, layout })
    }

    /// Its first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// All of it. The caller has no I/O under way in it: `&mut self` says so to the borrow checker for synchronous I/O only.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size, initialised with zeros, and borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Completions of one thread's asynchronous I/Os, by slot.
pub struct AioRing {
    task: &'static Task,
    sleeping: AtomicBool,
    done: [AtomicU64; MAX_DEPTH / 64],
    results: [AtomicI64; MAX_DEPTH],
}

impl AioRing {
    /// For the current thread. `ENOMEM` if there is no memory.
    pub fn new() -> Result<KArc<Self>> {
        let ring = Self {
            task: sched::current(),
            sleeping: AtomicBool::new(false),
            done: [const { AtomicU64::new(0) }; MAX_DEPTH / 64],
            results: [const { AtomicI64::new(0) }; MAX_DEPTH],
        };
        Ok(KArc::new(ring, GFP_KERNEL)?)
    }

    /// Any context. The slot has one I/O under way, and this is its end.
    #[inline]
    fn complete(&self, slot: usize, ret: Result<usize>) {
        let ret = match ret {
            Ok(n) => n as i64,
            Err(e) => i64::from(e.to_errno()),
        };
        self.results[slot].store(ret, Ordering::Relaxed);
        self.done[slot / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            sched::unpark(self.task);
        }
    }

    /// Calls `f` with each I/O that has ended since; how many.
    #[inline]
    pub fn reap(&self, depth: usize, mut f: impl FnMut(usize, Result<usize>)) -> usize {
        let mut n = 0;
        for (word, done) in self.done[..depth.div_ceil(64)].iter().enumerate() {
            if done.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = done.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let ret = self.results[slot].load(Ordering::Relaxed);
                let ret = usize::try_from(ret).map_err(|_| Error::from_errno(ret as i32));
                f(slot, ret);
                n += 1;
            }
        }
        n
    }

    /// Sleeps until something has ended. Only the thread that made the ring.
    pub fn wait(&self, depth: usize) {
        let any = || self.done[..depth.div_ceil(64)].iter().any(|d| d.load(Ordering::SeqCst) != 0);
        while !any() {
            self.sleeping.store(true, Ordering::SeqCst);
            if !any() {
                sched::schedule();
            }
            self.sleeping.store(false, Ordering::Relaxed);
        }
    }
}

impl AioComplete for AioRing {
    #[inline]
    fn ki_complete(this: &KArc<Self>, ret: Result<usize>, tag: usize) {
        this.complete(tag, ret);
    }
}

/// Where a bare disk's asynchronous bio reports to; stays in place while it is under way.
pub struct RawSlot {
    ring: KArc<AioRing>,
    slot: usize,
}

impl RawSlot {
    /// For slot `slot` of `ring`.
    pub fn new(ring: &KArc<AioRing>, slot: usize) -> Self {
        Self { ring: ring.clone(), slot }
    }
}

/// A file or a disk.
pub enum Opened {
    /// Opened `O_DIRECT`, or not.
    File(KArc<File>),
    /// The disk itself, and whether its writes are to be durable.
    Disk(Bdev, bool),
}

impl Opened {
    /// A bare disk.
    pub fn disk(bdev: Bdev, job: &Job) -> Self {
        Self::Disk(bdev, job.sync != SyncMode::None)
    }

    /// A file of the mount.
    pub fn file(sb: &KArc<SuperBlock>, job: &Job) -> Result<Self> {
        let sync = match job.sync {
            SyncMode::None => OpenFlags::empty(),
            SyncMode::Dsync => OpenFlags::O_DSYNC,
            SyncMode::Sync => OpenFlags::O_SYNC,
        };
        let mut flags = OpenFlags::O_RDWR | sync;
        flags.set(OpenFlags::O_DIRECT, job.direct);
        flags.set(OpenFlags::O_CREAT, job.layout == FileLayout::OnOpen);
        Ok(Self::File(path_open(sb, job.filename.as_bytes(), flags, 0o644, &Cred::default())?))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.f_inode().i_size().max(0) as u64,
            Self::Disk(bdev, _) => bdev.nr_sectors() * 512,
        }
    }

    /// fsync, or a flush of the disk.
    pub fn sync(&self, datasync: bool) -> Result {
        match self {
            Self::File(file) => ext4_sync_file(file.f_inode(), 0, i64::MAX, datasync),
            Self::Disk(bdev, _) => blkdev_issue_flush(bdev),
        }
    }

    /// Reads, and sleeps until it is done.
    pub fn read_sync(&self, pos: u64, to: &mut [u8]) -> Result {
        let len = to.len();
        whole(self.read_some(pos, to), len)
    }

    /// Reads up to the end of the file, and sleeps until it is done.
    #[inline]
    pub fn read_some(&self, pos: u64, to: &mut [u8]) -> Result<usize> {
        match self {
            Self::File(file) => {
                let iov = [IoVec::dest(to)];
                ext4_file_read(&mut Kiocb::new_sync(file, pos as i64), &mut IovIter::new(&iov))
            }
            Self::Disk(bdev, _) => {
                let len = to.len();
                kernel_shim::block::bdev_rw(bdev, ReqOpf::REQ_OP_READ, pos >> 9, to).map(|()| len)
            }
        }
    }

    /// Punches a hole, or has the disk discard, and sleeps until it is done.
    #[cold]
    pub fn trim(&self, pos: u64, len: usize) -> Result {
        match self {
            Self::File(file) => {
                let mode = FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE;
                ext4_fallocate(file.f_inode(), mode, pos as i64, len as i64)
            }
            Self::Disk(bdev, _) => {
                if !bdev.limits().discard {
                    return Err(EOPNOTSUPP);
                }
                let mut bio = bio_alloc(bdev, ReqOpf::REQ_OP_DISCARD | ReqOpf::SYNC, GFP_KERNEL)?;
                bio.bi_sector = pos >> 9;
                bio.set_size(u32::try_from(len).map_err(|_| EINVAL)?);
                submit_bio_wait(bdev, bio)
            }
        }
    }

    /// Whether what was trimmed reads as zeros.
    pub fn trims_to_zero(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Writes, and sleeps until it is done.
    #[inline]
    pub fn write_sync(&self, pos: u64, from: &[u8]) -> Result {
        match self {
            Self::File(file) => {
                let iov = [IoVec::source(from)];
                whole(ext4_file_write(&mut Kiocb::new_sync(file, pos as i64), &mut IovIter::new(&iov)), from.len())
            }
            Self::Disk(bdev, sync) => {
                let mut bio = bio_alloc(bdev, write_op(*sync), GFP_KERNEL)?;
                bio.bi_sector = pos >> 9;
                // SAFETY: the memory is borrowed for the call, which waits for the bio.
                if !unsafe { bio.bio_add_page(NonNull::from(from).cast(), from.len() as u32) } {
                    return Err(EINVAL);
                }
                submit_bio_wait(bdev, bio)
            }
        }
    }

    /// Starts an I/O that ends in `raw`'s slot, or returns what it ended with already.
    ///
    /// # Safety
    /// `len` bytes at `base`, and `raw`, stay in place, and the bytes alone, until the slot has ended. `read` needs memory that
    /// may be written.
    #[inline]
    pub unsafe fn start(
        &self,
        raw: &RawSlot,
        read: bool,
        pos: u64,
        base: NonNull<u8>,
        len: usize,
    ) -> Option<Result<usize>> {
        match self {
            Self::File(file) => {
                // SAFETY: as the caller says.
                let mut iocb = unsafe { Kiocb::new_async(file, pos as i64, raw.ring.clone(), raw.slot) };
                // SAFETY: as the caller says.
                let iov = [unsafe { IoVec::from_raw(base, len, read) }];
                let mut iter = IovIter::new(&iov);
                let ret =
                    if read { ext4_file_read(&mut iocb, &mut iter) } else { ext4_file_write(&mut iocb, &mut iter) };
                match ret {
                    Err(EIOCBQUEUED) => None,
                    ret => Some(ret),
                }
            }
            Self::Disk(bdev, sync) => {
                let op = if read { ReqOpf::REQ_OP_READ } else { write_op(*sync) };
                let mut bio = match bio_alloc(bdev, op, GFP_KERNEL) {
                    Ok(bio) => bio,
                    Err(e) => return Some(Err(e)),
                };
                bio.bi_sector = pos >> 9;
                bio.bi_end_io = raw_end_io;
                bio.bi_private = core::ptr::from_ref(raw).cast_mut().cast();
                // SAFETY: as the caller says.
                if !unsafe { bio.bio_add_page(base, len as u32) } {
                    return Some(Err(EINVAL));
                }
                submit_bio(bdev, bio);
                None
            }
        }
    }
}

fn write_op(sync: bool) -> ReqOpf {
    let op = ReqOpf::REQ_OP_WRITE | ReqOpf::SYNC;
    if sync { op | ReqOpf::FUA } else { op }
}

fn raw_end_io(bio: BioPtr) {
    // SAFETY: `start`'s caller keeps the slot in place until this has reported.
    let raw = unsafe { &*bio.bi_private.cast::<RawSlot>() };
    let ret = bio.result().map(|()| bio.size() as usize);
    drop(bio);
    raw.ring.complete(raw.slot, ret);
}

fn whole(ret: Result<usize>, len: usize) -> Result {
    match ret {
        Ok(n) if n == len => Ok(()),
        // A job's blocks are inside the file and written: short is a fault.
        Ok(_) => Err(EIO),
        Err(e) => Err(e),
    }
}
