// SPDX-License-Identifier: GPL-2.0-only
//! An image file or block device of the host as a disk.
//!
//! Requests are done by threads with `preadv` and `pwritev`, many at once. A flush is `fdatasync`, FUA is
//! `RWF_DSYNC`, or a write and `fdatasync` where the host does not know that; discard and zeroing
//! are `fallocate`. With [`FileDiskOptions::direct`] the host's page cache is not used if it lets us.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::sync::{Arc as StdArc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::vec::Vec;

use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::bio::{ReqOp, ReqOpf, SECTOR_SHIFT, SECTOR_SIZE};
use super::blkdev::{BlockDevice, QueueLimits};
use super::request::{Request, RqList};
use crate::error::{Error, Result};
use crate::sched::host::InterruptContext;

/// Stretches of memory in one request; the host takes 1024.
const MAX_SEGMENTS: u16 = 256;

/// How to open a [`FileDisk`].
#[derive(Clone, Debug)]
pub struct FileDiskOptions {
    /// Refuse writes, and open without the right to.
    pub read_only: bool,
    /// Go past the host's page cache, if the host can do that for this file.
    pub direct: bool,
    /// How many requests are done at once.
    pub threads: usize,
}

impl Default for FileDiskOptions {
    /// Read and write, through the host's page cache, 8 at once.
    fn default() -> Self {
        Self { read_only: false, direct: false, threads: 8 }
    }
}

/// Why a file could not be opened as a disk.
#[derive(Debug)]
pub struct FileDiskError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl fmt::Display for FileDiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.path.display(), self.what, self.source)
    }
}

impl core::error::Error for FileDiskError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<FileDiskError> for Error {
    fn from(error: FileDiskError) -> Self {
        error.source.into()
    }
}

struct Queue {
    /// Queued, and not yet committed.
    held: RqList,
    ready: VecDeque<Request>,
    stop: bool,
}

struct Shared {
    file: OwnedFd,
    name: String,
    direct: bool,
    limits: QueueLimits,
    nr_sectors: u64,
    queue: Mutex<Queue>,
    work: Condvar,
    /// The host has refused `RWF_DSYNC`.
    no_dsync: AtomicBool,
    complained: AtomicBool,
}

/// See the head of this file.
pub struct FileDisk {
    shared: StdArc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl FileDisk {
    /// Opens the file at `path`. A device is opened with `O_EXCL`, so that the host does not mount it.
    /// It is locked (`flock`) against a second opening: for itself alone, or, read-only, with
    /// other readers. A size that is not a whole number of sectors is rounded down.
    pub fn open(path: impl AsRef<Path>, options: &FileDiskOptions) -> Result<Self, FileDiskError> {
        let path = path.as_ref();
        let failed = |what| move |source: io::Error| FileDiskError { path: path.to_path_buf(), what, source };
        let (file, direct) = open_file(path, options).map_err(failed("cannot be opened"))?;
        let lock = match options.read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        rustix::fs::flock(&file, lock).map_err(|e| failed("is in use")(e.into()))?;
        let (bytes, block) = geometry(file.as_fd()).map_err(failed("has no size"))?;
        let logical_block_size = block.max(if direct { direct_alignment(file.as_fd()) } else { SECTOR_SIZE });
        let limits = QueueLimits {
            logical_block_size,
            physical_block_size: logical_block_size.max(4096),
            max_segments: MAX_SEGMENTS,
            max_segment_size: 1 << 24,
            max_bytes: 1 << 24,
            write_cache: true,
            fua: true,
            discard: !options.read_only,
            write_zeroes: !options.read_only,
            read_only: options.read_only,
        };
        let shared = StdArc::new(Shared {
            file,
            name: path.display().to_string(),
            direct,
            limits,
            nr_sectors: bytes >> SECTOR_SHIFT,
            queue: Mutex::new(Queue { held: RqList::new(), ready: VecDeque::new(), stop: false }),
            work: Condvar::new(),
            no_dsync: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        });
        let mut disk = Self { shared: shared.clone(), workers: Vec::new() };
        for _ in 0..options.threads.max(1) {
            let shared = shared.clone();
            let worker = thread::Builder::new().name("filedisk".to_string()).spawn(move || shared.worker());
            disk.workers.push(worker.map_err(failed("gets no thread"))?);
        }
        Ok(disk)
    }

    /// Whether the host's page cache is out of the way.
    pub fn is_direct(&self) -> bool {
        self.shared.direct
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // One that panicked in somebody's bi_end_io has said so.
            let _ = worker.join();
        }
    }
}

impl BlockDevice for FileDisk {
    fn limits(&self) -> &QueueLimits {
        &self.shared.limits
    }

    fn nr_sectors(&self) -> u64 {
        self.shared.nr_sectors
    }

    fn queue_rq(&self, rq: Request) {
        self.shared.lock().held.push_back(rq);
    }

    fn commit_rqs(&self) {
        let mut queue = self.shared.lock();
        let mut count = 0;
        while let Some(rq) = queue.held.pop_front() {
            queue.ready.push_back(rq);
            count += 1;
        }
        drop(queue);
        match count {
            0 => {}
            1 => self.shared.work.notify_one(),
            _ => self.shared.work.notify_all(),
        }
    }

    fn name(&self) -> &str {
        &self.shared.name
    }
}

fn open_file(path: &Path, options: &FileDiskOptions) -> io::Result<(OwnedFd, bool)> {
    let mut access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR } | OFlags::CLOEXEC;
    let is_device = rustix::fs::stat(path).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::BlockDevice);
    if is_device && !options.read_only {
        // Nor may the host mount it.
        access |= OFlags::EXCL;
    }
    if options.direct {
        match rustix::fs::open(path, access | OFlags::DIRECT, Mode::empty()) {
            Ok(file) => return Ok((file, true)),
            // This file system has none (tmpfs of old kernels, FUSE): the page cache will do.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok((rustix::fs::open(path, access, Mode::empty())?, false))
}

/// Size in bytes, and logical block size as far as the host tells one.
fn geometry(file: BorrowedFd<'_>) -> io::Result<(u64, u32)> {
    let stat = rustix::fs::fstat(file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((u64::try_from(stat.st_size).unwrap_or(0), SECTOR_SIZE)),
        FileType::BlockDevice => {
            let bytes = rustix::fs::ioctl_blksszget(file).and_then(|block| {
                let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
                Ok((end, block))
            })?;
            Ok(bytes)
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device")),
    }
}

/// What direct I/O on `file` is aligned to: found by trying, as not every host tells.
fn direct_alignment(file: BorrowedFd<'_>) -> u32 {
    let mut page = Page([0; 4096]);
    match rustix::io::pread(file, &mut page.0[..SECTOR_SIZE as usize], u64::from(SECTOR_SIZE)) {
        Err(Errno::INVAL) => 4096,
        _ => SECTOR_SIZE,
    }
}

/// The memory of a write.
fn sources(rq: &Request) -> impl Iterator<Item = &[u8]> {
    // SAFETY: valid and unchanged until the request ends, by the contract of `bio_add_page`.
    rq.vecs().map(|vec| unsafe { core::slice::from_raw_parts(vec.bv_page.as_ptr(), vec.bv_len as usize) })
}

/// The memory of a read. To be called once at a time.
fn targets(rq: &Request) -> impl Iterator<Item = &mut [u8]> {
    // SAFETY: valid until the request ends, and the device's alone, by the contract of `bio_add_page`.
    rq.vecs().map(|vec| unsafe { core::slice::from_raw_parts_mut(vec.bv_page.as_ptr(), vec.bv_len as usize) })
}

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Memory aligned for direct I/O.
struct Bounce {
    pages: Vec<Page>,
    len: usize,
}

impl Bounce {
    fn new(len: usize) -> Self {
        Self { pages: std::vec![Page([0; 4096]); len.div_ceil(4096)], len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: a page is its bytes, `u8` has no requirements, and there are `len` at least.
        unsafe { core::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(rq) = queue.ready.pop_front() {
                drop(queue);
                let result = self.execute(&rq);
                {
                    let _irq = InterruptContext::enter();
                    rq.end(result);
                }
                queue = self.lock();
            } else if queue.stop {
                return;
            } else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn execute(&self, rq: &Request) -> Result {
        let at = rq.sector() << SECTOR_SHIFT;
        let bytes = u64::from(rq.nr_bytes());
        let result = match rq.op() {
            ReqOp::Read => self.read(rq, at),
            ReqOp::Write => self.write(rq, at),
            ReqOp::Flush => rustix::fs::fdatasync(&self.file),
            ReqOp::Discard => self.punch(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, bytes),
            ReqOp::WriteZeroes => self.punch(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, bytes),
            ReqOp::Unknown => Err(Errno::OPNOTSUPP),
        };
        result.map_err(|errno| {
            let err = Error::from_errno(-errno.raw_os_error());
            // Not knowing fallocate is an answer; the rest is trouble.
            if errno != Errno::OPNOTSUPP && !self.complained.swap(true, Ordering::Relaxed) {
                crate::pr_err!("{}: {:?}: {}; further errors not logged", self.name, rq, err);
            }
            err
        })
    }

    /// Memory to go through if the request's own is not aligned as direct I/O needs it.
    fn bounce(&self, rq: &Request) -> Option<Bounce> {
        let mask = (SECTOR_SIZE - 1) as usize;
        let aligned = || rq.vecs().all(|vec| (vec.bv_page.as_ptr().addr() | vec.bv_len as usize) & mask == 0);
        if !self.direct || aligned() { None } else { Some(Bounce::new(rq.nr_bytes() as usize)) }
    }

    fn read(&self, rq: &Request, at: u64) -> Result<(), Errno> {
        let mut bounce = self.bounce(rq);
        let mut slices: Vec<IoSliceMut<'_>> = match &mut bounce {
            Some(bounce) => std::vec![IoSliceMut::new(bounce.bytes())],
            None => targets(rq).map(IoSliceMut::new).collect(),
        };
        let (mut slices, mut at) = (&mut slices[..], at);
        while !slices.is_empty() {
            match rustix::io::preadv(&self.file, slices, at) {
                // The file has become shorter than it was.
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    at += n as u64;
                    IoSliceMut::advance_slices(&mut slices, n);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if let Some(mut bounce) = bounce {
            let mut from = &*bounce.bytes();
            for to in targets(rq) {
                let (now, later) = from.split_at(to.len());
                to.copy_from_slice(now);
                from = later;
            }
        }
        Ok(())
    }

    fn write(&self, rq: &Request, at: u64) -> Result<(), Errno> {
        let mut bounce = self.bounce(rq);
        let mut slices: Vec<IoSlice<'_>> = match &mut bounce {
            Some(bounce) => {
                let mut to = bounce.bytes();
                for from in sources(rq) {
                    let (now, later) = to.split_at_mut(from.len());
                    now.copy_from_slice(from);
                    to = later;
                }
                std::vec![IoSlice::new(bounce.bytes())]
            }
            None => sources(rq).map(IoSlice::new).collect(),
        };
        let fua = rq.opf().contains(ReqOpf::FUA);
        let (mut slices, mut at) = (&mut slices[..], at);
        let mut sync_after = false;
        while !slices.is_empty() {
            let dsync = fua && !self.no_dsync.load(Ordering::Relaxed);
            let written = match dsync {
                true => rustix::io::pwritev2(&self.file, slices, at, ReadWriteFlags::DSYNC),
                false => rustix::io::pwritev(&self.file, slices, at),
            };
            match written {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    sync_after |= fua && !dsync;
                    at += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) if dsync => self.no_dsync.store(true, Ordering::Relaxed),
                Err(errno) => return Err(errno),
            }
        }
        if sync_after { rustix::fs::fdatasync(&self.file) } else { Ok(()) }
    }

    fn punch(&self, flags: FallocateFlags, at: u64, bytes: u64) -> Result<(), Errno> {
        loop {
            match rustix::fs::fallocate(&self.file, flags, at, bytes) {
                Err(Errno::INTR) => {}
                // Zeroes are what a hole reads as.
                Err(Errno::OPNOTSUPP) if flags.contains(FallocateFlags::ZERO_RANGE) => {
                    return self.punch(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, bytes);
                }
                other => return other,
            }
        }
    }
}
