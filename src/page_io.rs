// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/page-io.c`: `ext4_io_end`, what a direct write carries to its completion.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use kernel_shim::alloc::{Arc, GFP_KERNEL, Pool, PoolBox};
use kernel_shim::error::{Result, code::EIO};
use kernel_shim::percpu::Counter;
use kernel_shim::sched::{Point, sched_point};
use kernel_shim::sync::{Mutex, WaitQueue};
use kernel_shim::testing::{Fix, reverted, trace};
use kernel_shim::workqueue::{Work, WorkItem, Workqueue};

use crate::dio::{Extending, ext4_convert_unwritten_extents, ext4_dio_trim};
use crate::{IRef, Inode, Private};

bitflags::bitflags! {
    /// C's `EXT4_IO_END_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IoEndFlags: u32 {
        /// Some of the blocks are unwritten, and are converted when the data is there.
        #[doc(alias = "EXT4_IO_END_UNWRITTEN")]
        const UNWRITTEN = 0x1;
        /// A direct write.
        #[doc(alias = "EXT4_IO_END_DIRECT")]
        const DIRECT = 0x8;
    }
}

/// C's `ext4_io_end_t`: state of one write. It belongs to the write alone: ext4 once kept a pointer to "the" current one
/// in the inode, which a second writer without `i_mutex` overwrote (G4), and which dangled when the first had completed (G5).
pub struct IoEnd {
    /// See [`IoEndFlags`].
    pub flag: IoEndFlags,
    /// Of a write past the end: where it ends, in bytes, and the inode, for the worker that trims it if it fails.
    extends: Option<(i64, IRef)>,
    /// It has, or may have, allocated blocks: if it fails there are some to give back.
    pub(crate) allocated: bool,
    work: Work,
}

impl fmt::Debug for IoEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoEnd({:?})", self.flag)
    }
}

impl IoEnd {
    /// Blocks of the write are unwritten: counted until they are converted, or not to be.
    pub(crate) fn set_unwritten(&mut self, inode: &Inode) {
        if reverted(Fix::G4) && CUR_AIO_DIO.load(Ordering::Acquire) != self.address() {
            return;
        }
        self.flag.insert(IoEndFlags::UNWRITTEN);
        let count = &inode.i_private().aio.i_aiodio_unwritten;
        sched_point(Point::Add, core::ptr::from_ref(count).cast());
        count.fetch_add(1, Ordering::AcqRel);
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// The write ends at byte `end`, past the end of the file.
    pub(crate) fn set_extends(&mut self, inode: &IRef, end: i64) {
        self.extends = Some((end, inode.clone()));
    }

    /// There was no room for all of it: it ends at byte `end`.
    pub(crate) fn cut_extends(&mut self, end: i64) {
        if let Some((at, _)) = &mut self.extends {
            *at = end;
        }
    }

    /// Whether its end has to do what takes sleeping.
    pub(crate) fn sleeps(&self) -> bool {
        self.flag.contains(IoEndFlags::UNWRITTEN) || self.extends.is_some()
    }
}

/// Where the inode's one pointer of 2012 would lead, for the test that shows what comes of it (G4): word of unwritten blocks goes there.
/// That one file at a time is written to is enough for the test.
static CUR_AIO_DIO: AtomicUsize = AtomicUsize::new(0);

impl WorkItem for IoEnd {
    type Pointer = PoolBox<Self>;

    fn work(&self) -> &Work {
        &self.work
    }

    fn run(this: PoolBox<Self>) {
        if let Some((_, inode)) = &this.extends {
            ext4_dio_trim(inode);
        }
    }
}

/// For the 1024 direct writes of one mount that the direct-I/O layer lets be under way at once, and for as many submitters that
/// have theirs already and wait for a place there.
const IO_END_POOL: usize = 2048;

/// The part of the mount that direct I/O owns.
pub struct DioInfo {
    io_end: Pool<IoEnd, IO_END_POOL>,
    /// For what waits for `i_mutex`: see [`ext4_dio_trim`]. Not the queue of completions, for those it waits for.
    trim_wq: Arc<Workqueue>,
    /// Direct writes by how they ran: see [`DioStats`].
    pub stats: DioStats,
}

impl DioInfo {
    /// [`ENOMEM`](kernel_shim::error::code::ENOMEM) if there is no memory for the pool.
    pub fn new() -> Result<Self> {
        Ok(Self {
            io_end: Pool::new(IO_END_POOL, GFP_KERNEL, "ext4_io_end")?,
            trim_wq: Workqueue::new("ext4-dio-trim", 1)?,
            stats: DioStats::default(),
        })
    }

    /// Sleeps until what failed writes had allocated past the end is given back. Called after direct I/O was drained, without
    /// locks.
    pub fn drain_trims(&self) {
        self.trim_wq.drain();
    }

    /// How many `io_end`s there are.
    pub fn io_ends(&self) -> usize {
        self.io_end.capacity()
    }

    /// `io_end`s that are not in use.
    pub fn io_ends_available(&self) -> usize {
        self.io_end.available()
    }
}

/// Direct writes by how they ran.
#[derive(Debug, Default)]
pub struct DioStats {
    /// Under `i_mutex` throughout.
    pub exclusive: Counter,
    /// Without `i_mutex`, `i_data_sem` held.
    pub i_data_sem: Counter,
    /// Without `i_mutex`, counted only.
    pub in_flight: Counter,
    /// Of all, those that had blocks allocated or converted.
    pub fill: Counter,
    /// Of all, those past the end of the file.
    pub extend: Counter,
}

/// Per inode, for asynchronous writes that are not whole blocks.
///
/// PORT: C hashes inodes of all mounts into 37 mutexes and wait queues, so that strangers wait for each other (G20).
pub struct AioInfo {
    /// C's `ext4_aio_mutex()`: one unaligned asynchronous write is submitted at a time, since each may zero what is
    /// beside it in its blocks. Taken before `i_mutex`.
    pub aio_mutex: Mutex<()>,
    /// Writes that will convert unwritten blocks when they complete.
    i_aiodio_unwritten: AtomicU32,
    ioend_wq: WaitQueue,
    /// Writes past the end that are in flight. Lock order: `i_mutex`, handle, this.
    pub(crate) extending: Mutex<Extending>,
}

impl AioInfo {
    /// None under way.
    pub const fn new() -> Self {
        Self {
            aio_mutex: Mutex::named("aio_mutex", ()),
            i_aiodio_unwritten: AtomicU32::new(0),
            ioend_wq: WaitQueue::new(),
            extending: Mutex::named("extending", Extending::NONE),
        }
    }

    /// Whether a conversion is outstanding. A value that was true at some moment.
    pub fn is_unwritten(&self) -> bool {
        sched_point(Point::Load, core::ptr::from_ref(&self.i_aiodio_unwritten).cast());
        self.i_aiodio_unwritten.load(Ordering::Acquire) != 0
    }

    fn unwritten_done(&self) {
        sched_point(Point::Atomic, core::ptr::from_ref(&self.i_aiodio_unwritten).cast());
        if self.i_aiodio_unwritten.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ioend_wq.wake_up_all();
        }
    }

    /// Sleeps until no conversion is outstanding: C's `ext4_aiodio_wait()`.
    #[doc(alias = "ext4_aiodio_wait")]
    pub fn wait(&self) {
        if self.is_unwritten() {
            trace("ext4_aiodio_wait");
            self.ioend_wq.wait_event(|| !self.is_unwritten());
        }
    }
}

impl Default for AioInfo {
    fn default() -> Self {
        Self::new()
    }
}

/// A new `io_end`, or `None` if there is none to be had. Does not sleep.
pub fn ext4_init_io_end(inode: &Inode) -> Option<PoolBox<IoEnd>> {
    let io_end = IoEnd { flag: IoEndFlags::DIRECT, extends: None, allocated: false, work: Work::new() };
    let io_end = inode.i_sb().s_fs_info().dio.io_end.try_alloc(io_end).ok();
    if reverted(Fix::G4) {
        CUR_AIO_DIO.store(io_end.as_ref().map_or(0, |io_end| io_end.address()), Ordering::Release);
    }
    io_end
}

/// Called when all bios of a direct write have ended, also if they failed. Any context, unless the write changes the map or the
/// size (`IoEnd::sleeps`): then one that may sleep, without locks and counted in flight.
pub fn ext4_end_io_dio(inode: &Inode, offset: i64, ret: Result<usize>, private: Option<Private>) -> Result {
    trace(if ret.is_err() { "ext4_end_io_dio: error" } else { "ext4_end_io_dio" });
    match private {
        Some(Private::IoEnd(io_end)) if io_end.sleeps() => ext4_end_io_convert(inode, offset, ret, io_end),
        // An overwrite has nothing to convert, so all there is to do is to give the `io_end` back.
        _ => Ok(()),
    }
}

/// The end of a write that allocated or converts blocks, or that moves the size. A failed one converts nothing: its blocks stay
/// unwritten, and read as zeros (G30).
#[doc(alias = "ext4_end_io_nolock")]
#[cold]
fn ext4_end_io_convert(inode: &Inode, offset: i64, ret: Result<usize>, io_end: PoolBox<IoEnd>) -> Result {
    // PORT: C converts under i_mutex, tries to get it again and again, and whoever waits for this write has it (G14).
    let _i_mutex = reverted(Fix::G14).then(|| inode.lock());
    let aio = &inode.i_private().aio;
    let unwritten = io_end.flag.contains(IoEndFlags::UNWRITTEN);
    let extends = io_end.extends.as_ref().map(|(end, _)| *end);
    let done = match ret {
        Ok(size @ 1..) => ext4_convert_unwritten_extents(inode, offset, size, unwritten, extends.is_some()),
        _ => Ok(()),
    };
    // Also if the write or the conversion failed: whoever waits for it would wait for ever (G32).
    if unwritten && !(reverted(Fix::G32) && ret.is_err()) {
        aio.unwritten_done();
    }
    if let Some(end) = extends {
        let reached = ret.is_ok_and(|size| offset.saturating_add(size as i64) >= end);
        if aio.extend_end(inode, io_end.allocated && (done.is_err() || !reached)) {
            // Queued once: it was made for this write alone.
            let _ = inode.i_sb().s_fs_info().dio.trim_wq.queue(io_end);
        }
    }
    done
}

/// A write that ended before it was submitted: nothing is to be converted, and blocks past the end are given back.
#[doc(alias = "ext4_free_io_end")]
pub(crate) fn ext4_abandon_io_end(inode: &Inode, io_end: PoolBox<IoEnd>) {
    if io_end.sleeps() {
        let _ = ext4_end_io_convert(inode, 0, Err(EIO), io_end);
    }
}
