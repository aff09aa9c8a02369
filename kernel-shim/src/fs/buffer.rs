// SPDX-License-Identifier: GPL-2.0-only
//! `fs/buffer.c`: a cache of a device's blocks, for metadata.
//!
//! A [`BufferHead`] is a counted reference to one block in memory. All holders of a block have the
//! same one, and get at the bytes through [`BufferHead::read`] and [`BufferHead::write`], which lock the
//! data as an rwsem does. That lock is also what I/O takes: whoever finds a block not read yet holds it
//! for writing until the block is there, so that others wait instead of reading it again; and
//! write-back holds it for reading, so that what goes to the device does not change on the way.
//!
//! The cache holds one reference to each block. When there are more blocks than agreed, it lets go
//! of clean ones that nobody else holds, roughly the longest unused first (a clock). Blocks that are dirty
//! or in use stay, whatever their number.
//!
//! # Lock order
//!
//! Data lock → bucket lock (spin). Never take the data locks of two blocks unless all who do agree
//! on an order; write-back of many takes one, and further ones only if they are free. A task that
//! holds a block's guard must not write the block back: it would wait for itself.

use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use bitflags::bitflags;

use crate::alloc::{Arc, GFP_ATOMIC, GFP_KERNEL, GFP_NOFAIL, GFP_NOFS, KVec, make_room};
use crate::block::{Bdev, IoBatch, ReqOpf, SECTOR_SHIFT, SECTOR_SIZE, bio_alloc, submit_bio_wait};
use crate::error::{Result, code};
use crate::sched::sched_access;
use crate::sync::lockdep;
use crate::sync::{RwSemReadGuard, RwSemWriteGuard, RwSemaphore, SpinLock};

mod cache;
#[cfg(all(test, feature = "host"))]
mod tests;

pub use cache::{BufferCache, write_dirty_buffers};

bitflags! {
    /// C's `b_state`.
    #[derive(Clone, Copy)]
    struct BhState: u32 {
        /// The memory holds what the device has, or newer.
        const UPTODATE = 1 << 0;
        /// The memory is newer than the device.
        const DIRTY = 1 << 1;
        /// The file system has checked what it read.
        const VERIFIED = 1 << 2;
        /// Used since the clock's hand went by.
        const REFERENCED = 1 << 3;
        /// The last write failed.
        const WRITE_EIO = 1 << 4;
        /// Belongs to a transaction that is not committed: write-back leaves it alone.
        const JBD = 1 << 5;
    }
}

/// How many writes of a block are under way is counted in its state, above the flags.
const WRITEBACK: u32 = 1 << 16;

/// The unit that buffers are made of, aligned for direct I/O of the host.
#[derive(Clone, Copy)]
#[repr(C, align(512))]
struct Sector([u8; SECTOR_SIZE as usize]);

static_assertions::const_assert_eq!(size_of::<Sector>(), SECTOR_SIZE as usize);

/// Bytes that devices can transfer, aligned for any of them.
pub struct IoBuf(KVec<Sector>);

type Data = IoBuf;

impl IoBuf {
    /// Memory for `len` bytes, rounded up to whole sectors, of zeros. ENOMEM.
    pub fn new(len: usize, flags: crate::alloc::Flags) -> Result<Self> {
        let sectors = len.div_ceil(SECTOR_SIZE as usize);
        Ok(Self(KVec::from_elem(Sector([0; SECTOR_SIZE as usize]), sectors, flags)?))
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a sector is its bytes, without padding, and `u8` has no requirements.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(&self.0[..])) }
    }

    /// All of it, for change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), size_of_val(&self.0[..])) }
    }
}

struct Buffer {
    block: u64,
    state: AtomicU32,
    data: RwSemaphore<Data>,
}

impl Buffer {
    fn has(&self, flag: BhState) -> bool {
        sched_access(core::ptr::from_ref(&self.state).cast(), false);
        self.state.load(Ordering::Acquire) & flag.bits() != 0
    }

    fn set(&self, flag: BhState) {
        sched_access(core::ptr::from_ref(&self.state).cast(), true);
        self.state.fetch_or(flag.bits(), Ordering::AcqRel);
    }

    fn is_writeback(&self) -> bool {
        self.state.load(Ordering::Acquire) >= WRITEBACK
    }

    /// Whether it was set.
    fn clear(&self, flag: BhState) -> bool {
        sched_access(core::ptr::from_ref(&self.state).cast(), true);
        self.state.fetch_and(!flag.bits(), Ordering::AcqRel) & flag.bits() != 0
    }
}

/// A counted reference to a cached block. Outlives the cache if it must.
#[doc(alias = "buffer_head")]
#[derive(Clone)]
pub struct BufferHead(Arc<Buffer>);

impl BufferHead {
    /// Its number, in blocks of the cache's size.
    #[doc(alias = "b_blocknr")]
    #[inline]
    pub fn block(&self) -> u64 {
        self.0.block
    }

    /// Locks the bytes for reading. Sleeps while somebody has them for writing, or reads them in.
    ///
    /// Not twice in one task: a writer that comes in between would stop the second for ever.
    #[doc(alias = "b_data")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn read(&self) -> BufferRead<'_> {
        BufferRead { guard: self.0.data.read() }
    }

    /// [`BufferHead::read`] of a block that may be locked with others locked; `subclass`, 1 to 3, says which of them goes first.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn read_nested(&self, subclass: u8) -> BufferRead<'_> {
        lockdep::subclass(subclass);
        self.read()
    }

    /// [`BufferHead::write`], the same way.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn write_nested(&self, subclass: u8) -> BufferWrite<'_> {
        lockdep::subclass(subclass);
        self.write()
    }

    /// [`BufferHead::read`], if it need not sleep.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn try_read(&self) -> Option<BufferRead<'_>> {
        Some(BufferRead { guard: self.0.data.try_read()? })
    }

    /// Locks the bytes for writing. Sleeps while somebody has them, write-back included.
    #[doc(alias = "lock_buffer")]
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn write(&self) -> BufferWrite<'_> {
        BufferWrite { bh: self, guard: self.0.data.write() }
    }

    /// [`BufferHead::write`], if it need not sleep. Any context.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn try_write(&self) -> Option<BufferWrite<'_>> {
        Some(BufferWrite { bh: self, guard: self.0.data.try_write()? })
    }

    /// Sleeps until no I/O of the block is under way, and nobody has its bytes.
    pub fn wait_on_buffer(&self) {
        drop(self.0.data.write());
    }

    /// From now on the block is a transaction's: it is not dirty, and write-back leaves it alone even if somebody marks it
    /// so. Whether it was dirty. A write under way goes on; it keeps whoever changes the block waiting. Any context.
    #[doc(alias = "set_buffer_jbd")]
    pub fn set_jbd(&self) -> bool {
        self.0.set(BhState::JBD);
        self.0.clear(BhState::DIRTY)
    }

    /// Its transaction is over: the block has to be written back if `dirty`, and need not if not. Any context.
    #[doc(alias = "clear_buffer_jbd")]
    pub fn clear_jbd(&self, dirty: bool) {
        if dirty {
            self.0.set(BhState::DIRTY);
        } else {
            self.0.clear(BhState::DIRTY);
        }
        // Last, so that what somebody marked meanwhile is not written as long as nobody has decided.
        self.0.clear(BhState::JBD);
    }

    /// Whether the block belongs to a transaction that is not committed.
    #[doc(alias = "buffer_jbd")]
    pub fn is_jbd(&self) -> bool {
        self.0.has(BhState::JBD)
    }

    /// What the block held means nothing any more: it is not written, and read anew by who wants it. Waits for I/O that is
    /// under way. Sleeps.
    #[doc(alias = "bforget")]
    pub fn forget(&self) {
        let _guard = self.0.data.write();
        self.0.clear(BhState::DIRTY | BhState::JBD | BhState::UPTODATE | BhState::VERIFIED | BhState::WRITE_EIO);
    }

    /// The block has to be written back: called with changes made, and the write guard still held,
    /// or before anybody else can tell. EIO-safe: it is not lost if write-back fails.
    #[doc(alias = "mark_buffer_dirty")]
    #[inline]
    pub fn mark_dirty(&self) {
        crate::warn_on!(!self.is_uptodate(), "block {} dirtied before it was filled", self.block());
        self.0.set(BhState::DIRTY);
    }

    /// Takes back [`BufferHead::mark_dirty`]: what is in memory need not reach the device.
    /// A write that is under way is not stopped.
    #[doc(alias = "clear_buffer_dirty")]
    pub fn clear_dirty(&self) -> bool {
        self.0.clear(BhState::DIRTY)
    }

    /// Whether the device is behind.
    #[doc(alias = "buffer_dirty")]
    pub fn is_dirty(&self) -> bool {
        self.0.has(BhState::DIRTY)
    }

    /// Whether the memory holds the block.
    #[doc(alias = "buffer_uptodate")]
    #[inline]
    pub fn is_uptodate(&self) -> bool {
        self.0.has(BhState::UPTODATE)
    }

    /// Whether the last attempt to write it back failed. Cleared by one that succeeds.
    #[doc(alias = "buffer_write_io_error")]
    pub fn write_io_error(&self) -> bool {
        self.0.has(BhState::WRITE_EIO)
    }

    /// Whether [`BufferHead::set_verified`] was called since the block was read.
    #[doc(alias = "buffer_verified")]
    #[inline]
    pub fn verified(&self) -> bool {
        self.0.has(BhState::VERIFIED)
    }

    /// The contents have been checked: others need not do it again.
    #[doc(alias = "set_buffer_verified")]
    #[inline]
    pub fn set_verified(&self) {
        self.0.set(BhState::VERIFIED);
    }

    /// They have to be checked (again).
    #[doc(alias = "clear_buffer_verified")]
    pub fn clear_verified(&self) {
        self.0.clear(BhState::VERIFIED);
    }

    /// Whether the cache may let go of it. With the lock of its bucket held, which keeps new holders away.
    fn idle(&self) -> bool {
        if Arc::strong_count(&self.0) != 1 {
            return false;
        }
        // What the last holder did, marking it dirty for one, happens before we look.
        fence(Ordering::Acquire);
        !self.is_dirty()
    }

    /// Whether both are the same block of the same cache.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        Arc::ptr_eq(&a.0, &b.0)
    }
}

impl fmt::Debug for BufferHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferHead({}, {:#x})", self.block(), self.0.state.load(Ordering::Relaxed))
    }
}

/// A block's bytes, locked for reading.
pub struct BufferRead<'a> {
    guard: RwSemReadGuard<'a, Data>,
}

impl Deref for BufferRead<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.guard.bytes()
    }
}

/// A block's bytes, locked for writing.
pub struct BufferWrite<'a> {
    bh: &'a BufferHead,
    guard: RwSemWriteGuard<'a, Data>,
}

impl BufferWrite<'_> {
    /// The whole block has been filled: it needs no reading. For blocks from [`BufferCache::getblk`].
    #[doc(alias = "set_buffer_uptodate")]
    pub fn set_uptodate(&mut self) {
        self.bh.0.set(BhState::UPTODATE);
    }

    /// [`BufferHead::mark_dirty`], under the lock.
    pub fn mark_dirty(&mut self) {
        self.bh.mark_dirty();
    }
}

impl Deref for BufferWrite<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.guard.bytes()
    }
}

impl DerefMut for BufferWrite<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.guard.bytes_mut()
    }
}
