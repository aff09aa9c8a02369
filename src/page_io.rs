// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/page-io.c`: `ext4_io_end`, what one asynchronous direct write carries to its completion.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel_shim::alloc::{GFP_KERNEL, Pool, PoolBox};
use kernel_shim::error::Result;
use kernel_shim::percpu::Counter;
use kernel_shim::sync::{Mutex, WaitQueue};
use kernel_shim::testing::trace;

use crate::{Inode, Private};

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
#[derive(Debug)]
pub struct IoEnd {
    /// See [`IoEndFlags`].
    pub flag: IoEndFlags,
}

/// For the 1024 direct writes of one mount that the direct-I/O layer lets be under way at once, and for as many submitters that
/// have theirs already and wait for a place there.
const IO_END_POOL: usize = 2048;

/// The part of the mount that direct I/O owns.
pub struct DioInfo {
    io_end: Pool<IoEnd, IO_END_POOL>,
    /// Direct writes by how they ran: see [`DioStats`].
    pub stats: DioStats,
}

impl DioInfo {
    /// [`ENOMEM`](kernel_shim::error::code::ENOMEM) if there is no memory for the pool.
    pub fn new() -> Result<Self> {
        Ok(Self { io_end: Pool::new(IO_END_POOL, GFP_KERNEL, "ext4_io_end")?, stats: DioStats::default() })
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
}

impl AioInfo {
    /// None under way.
    pub const fn new() -> Self {
        Self { aio_mutex: Mutex::new(()), i_aiodio_unwritten: AtomicU32::new(0), ioend_wq: WaitQueue::new() }
    }

    /// Sleeps until no conversion is outstanding: C's `ext4_aiodio_wait()`.
    #[doc(alias = "ext4_aiodio_wait")]
    pub fn wait(&self) {
        if self.i_aiodio_unwritten.load(Ordering::Acquire) != 0 {
            self.ioend_wq.wait_event(|| self.i_aiodio_unwritten.load(Ordering::Acquire) == 0);
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
    inode.i_sb().s_fs_info().dio.io_end.try_alloc(IoEnd { flag: IoEndFlags::DIRECT }).ok()
}

/// Called when all bios of a direct write have ended, also if they failed; any context.
///
/// An overwrite has nothing to convert, so all there is to do is to give the `io_end` back.
pub fn ext4_end_io_dio(_inode: &Inode, _offset: i64, ret: Result<usize>, private: Option<Private>) -> Result {
    trace(if ret.is_err() { "ext4_end_io_dio: error" } else { "ext4_end_io_dio" });
    if let Some(Private::IoEnd(io_end)) = private {
        // An unwritten block is never the target of a write that gets here; a failed one would convert nothing (G30).
        kernel_shim::warn_on!(io_end.flag.contains(IoEndFlags::UNWRITTEN) && ret.is_ok());
    }
    Ok(())
}
