// SPDX-License-Identifier: GPL-2.0-only
//! What is measured: writes of one block at random places of a region, each by another way.

use std::cell::UnsafeCell;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_dio::file::ext4_file_write;
use ext4_dio::{File, Kiocb, SuperBlock, ext4_mount, ext4_open, ext4_umount};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::brd::FastRamDisk;
use kernel_shim::block::ramdisk::RamDisk;
use kernel_shim::block::{
    Bdev, BioPtr, BlkPlug, BlockDevice, QueueLimits, ReqOp, ReqOpf, Request, bio_alloc, submit_bio,
};
use kernel_shim::error::{Result, code::EIOCBQUEUED};
use kernel_shim::fs::kiocb::AioComplete;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};
use kernel_shim::sched::host::InterruptContext;

use crate::image::{BLOCK, FILE};

/// Threads there are at most.
pub(crate) const THREADS: u64 = 2;
/// Asynchronous writes that are submitted together.
pub(crate) const DEPTH: usize = 16;

/// A lock mode of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `i_mutex` throughout.
    Exclusive,
    /// The patch of 2012.
    IDataSem,
    /// The default.
    InFlight,
}

impl Mode {
    /// All three, the slowest first.
    pub(crate) const ALL: [Self; 3] = [Self::Exclusive, Self::IDataSem, Self::InFlight];

    /// The mount options that choose it.
    fn options(self) -> &'static str {
        match self {
            Self::Exclusive => "dioread_lock",
            Self::IDataSem => "dioread_nolock,dio_window=i_data_sem",
            Self::InFlight => "dioread_nolock",
        }
    }
}

/// Whether data is copied to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// [`RamDisk::fast`].
    Ram,
    /// The same, but writes are ended and nothing is done: what is left is the way there and back.
    Null,
}

/// A way to write a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// None: the random number and the loop, which all the others have as well.
    Loop,
    /// A plain copy in memory.
    Memcpy,
    /// A bio for the disk, without a file system.
    Bio(Disk),
    /// `ext4_file_write` with a synchronous kiocb.
    Sync(Disk, Mode),
    /// The same with [`DEPTH`] asynchronous ones under one plug.
    Async(Disk, Mode),
}

impl Subject {
    /// For tables.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Loop => "the loop alone".into(),
            Self::Memcpy => "memcpy".into(),
            Self::Bio(disk) => format!("{} bio", disk.name()),
            Self::Sync(disk, mode) => format!("{} {mode:?}", disk.name()),
            Self::Async(disk, mode) => format!("{} {mode:?}, async {DEPTH}", disk.name()),
        }
    }
}

impl Disk {
    fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram ",
            Self::Null => "null",
        }
    }
}

/// [`RamDisk::fast`] that forgets what is written to it.
struct NullDisk(FastRamDisk);

impl BlockDevice for NullDisk {
    fn limits(&self) -> &QueueLimits {
        self.0.limits()
    }

    fn nr_sectors(&self) -> u64 {
        self.0.nr_sectors()
    }

    #[inline]
    fn queue_rq(&self, rq: Request) {
        // Metadata must be there when it is read again.
        if rq.op() == ReqOp::Write && !rq.opf().contains(ReqOpf::META) {
            let _irq = InterruptContext::enter();
            rq.end(Ok(()));
        } else {
            self.0.queue_rq(rq);
        }
    }

    #[inline]
    fn commit_rqs(&self) {}
}

/// Memory that threads copy to, each to blocks of its own.
struct Region(Vec<UnsafeCell<[u8; BLOCK]>>);

// SAFETY: `Writer::memcpy` says which blocks a thread writes, and nobody reads.
unsafe impl Sync for Region {}

enum Target {
    None,
    Region(Region),
    Disk(Bdev),
    Mount(KArc<SuperBlock>, Mode),
}

/// A subject with all that it needs.
pub(crate) struct Prepared {
    /// What it is.
    pub(crate) subject: Subject,
    target: Target,
    /// Blocks of the region.
    blocks: u64,
    /// Blocks that were written.
    written: AtomicU64,
}

impl Prepared {
    /// Makes it ready: a region as large as the file, or a disk loaded from the image in `image`.
    pub(crate) fn new(subject: Subject, image: &Path, blocks: u64) -> Self {
        let disk = |disk| {
            let image = std::fs::read(image).expect("the image is readable");
            let mut ram = RamDisk::fast(image.len() as u64).expect("memory for a disk");
            ram.load(&image);
            match disk {
                Disk::Ram => Bdev::new(ram),
                Disk::Null => Bdev::new(NullDisk(ram)),
            }
            .expect("good limits")
        };
        let target = match subject {
            Subject::Loop => Target::None,
            Subject::Memcpy => Target::Region(Region((0..blocks).map(|_| UnsafeCell::new([0x5a; BLOCK])).collect())),
            Subject::Bio(kind) => Target::Disk(disk(kind)),
            Subject::Sync(kind, mode) | Subject::Async(kind, mode) => {
                Target::Mount(ext4_mount(disk(kind), mode.options()).expect("mounting"), mode)
            }
        };
        Self { subject, target, blocks, written: AtomicU64::new(0) }
    }

    /// For thread `thread`. Each has the file open for itself and writes its own blocks, every [`THREADS`]th of the file,
    /// whether others write at the same time or not: the gain is not that of smaller working sets.
    pub(crate) fn writer(&self, thread: u64) -> Writer<'_> {
        let file = match &self.target {
            Target::Mount(sb, _) => {
                Some(ext4_open(sb, FILE, OpenFlags::O_RDWR | OpenFlags::O_DIRECT).expect("opening the file"))
            }
            _ => None,
        };
        let done = Counter::new();
        let buffer = Box::new(Page([thread as u8 + 1; BLOCK]));
        let random = 0x9e37_79b9_7f4a_7c15 + thread;
        Writer { of: self, file, done, buffer, random, thread, own: self.blocks / THREADS, written: 0 }
    }

    /// Takes it down. Panics if writes went another way than was asked for: the figures would be of something else.
    pub(crate) fn finish(self) {
        if let Target::Mount(sb, mode) = self.target {
            let stats = &sb.s_fs_info().dio.stats;
            let of_mode = match mode {
                Mode::Exclusive => &stats.exclusive,
                Mode::IDataSem => &stats.i_data_sem,
                Mode::InFlight => &stats.in_flight,
            };
            assert_eq!(u64::from(of_mode.load(Ordering::Relaxed)), self.written.into_inner() & u64::from(u32::MAX));
            ext4_umount(&sb).expect("unmounting");
        }
    }
}

#[repr(C, align(4096))]
struct Page([u8; BLOCK]);

/// Counts ends. Owned by one thread, on a cache line of its own.
#[repr(align(128))]
struct Counter(AtomicU64);

impl Counter {
    fn new() -> KArc<Self> {
        KArc::new(Self(AtomicU64::new(0)), GFP_KERNEL).expect("memory")
    }
}

impl AioComplete for Counter {
    #[inline]
    fn ki_complete(this: &KArc<Self>, ret: Result<usize>, _tag: usize) {
        assert_eq!(ret, Ok(BLOCK));
        this.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One thread's side of a [`Prepared`].
pub(crate) struct Writer<'p> {
    of: &'p Prepared,
    file: Option<KArc<File>>,
    done: KArc<Counter>,
    buffer: Box<Page>,
    random: u64,
    thread: u64,
    /// How many blocks are this thread's.
    own: u64,
    written: u64,
}

impl Writer<'_> {
    /// Writes `n` blocks, rounded up to whole batches.
    #[inline(never)]
    pub(crate) fn run(&mut self, n: u64) -> u64 {
        let before = self.written;
        match (&self.of.target, self.of.subject) {
            (Target::None, _) => self.repeat(n, |_, block| {
                std::hint::black_box(block);
            }),
            (Target::Region(region), _) => self.repeat(n, |this, block| this.memcpy(region, block)),
            (Target::Disk(disk), _) => self.repeat(n, |this, block| this.bio(disk, block)),
            (Target::Mount(..), Subject::Async(..)) => {
                while self.written < before + n {
                    self.batch();
                }
            }
            (Target::Mount(..), _) => self.repeat(n, Self::sync),
        }
        self.written - before
    }

    #[inline(always)]
    fn repeat(&mut self, n: u64, mut write: impl FnMut(&mut Self, u64)) {
        for _ in 0..n {
            let block = self.next();
            write(self, block);
        }
        self.written += n;
    }

    /// A random block of this thread's: xorshift64.
    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The high half scaled to the range: no division.
        let own = ((self.random >> 32) * self.own) >> 32;
        own * THREADS + self.thread
    }

    #[inline(always)]
    fn memcpy(&mut self, region: &Region, block: u64) {
        let to = region.0[block as usize].get().cast::<u8>();
        let from = std::hint::black_box(self.buffer.0.as_ptr());
        // SAFETY: both are a block long; this thread alone writes the blocks that `next` gives it.
        unsafe { std::ptr::copy_nonoverlapping(from, to, std::hint::black_box(BLOCK)) };
    }

    #[inline(always)]
    fn bio(&mut self, disk: &Bdev, block: u64) {
        let mut bio = bio_alloc(disk, ReqOpf::REQ_OP_WRITE | ReqOpf::SYNC, GFP_KERNEL).expect("a bio");
        bio.bi_sector = block * (BLOCK as u64 / 512);
        bio.bi_private = (&raw const *self.done).cast_mut().cast();
        bio.bi_end_io = |bio: BioPtr| {
            // SAFETY: the disk ends requests inside `submit_bio`, which the writer calls.
            let done = unsafe { &*bio.bi_private.cast_const().cast::<Counter>() };
            assert_eq!(bio.result(), Ok(()));
            drop(bio);
            done.0.fetch_add(1, Ordering::Relaxed);
        };
        // SAFETY: the buffer is left alone until the bio has ended, which it has when `submit_bio` returns.
        assert!(unsafe { bio.bio_add_page(NonNull::from(&mut self.buffer.0).cast(), BLOCK as u32) });
        submit_bio(disk, bio);
    }

    #[inline(always)]
    fn sync(&mut self, block: u64) {
        let file = self.file.as_ref().expect("open");
        let iov = [IoVec::source(&self.buffer.0)];
        let ret = ext4_file_write(&mut Kiocb::new_sync(file, (block * BLOCK as u64) as i64), &mut IovIter::new(&iov));
        assert_eq!(ret, Ok(BLOCK));
    }

    /// As `io_submit` does: all are submitted, then the plug is pulled, which sends them to the disk.
    #[inline(always)]
    fn batch(&mut self) {
        let plug = BlkPlug::start();
        for _ in 0..DEPTH {
            let pos = (self.next() * BLOCK as u64) as i64;
            let file = self.file.as_ref().expect("open");
            // SAFETY: the buffer is left alone until all have ended, which is checked below.
            let mut iocb = unsafe { Kiocb::new_async(file, pos, self.done.clone(), 0) };
            let iov = [IoVec::source(&self.buffer.0)];
            assert_eq!(ext4_file_write(&mut iocb, &mut IovIter::new(&iov)), Err(EIOCBQUEUED));
        }
        plug.finish();
        self.written += DEPTH as u64;
        assert_eq!(self.done.0.load(Ordering::Relaxed), self.written);
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.of.written.fetch_add(self.written, Ordering::Relaxed);
    }
}
