// SPDX-License-Identifier: GPL-2.0-only
//! `struct inode`: what the VFS keeps of a file, and the two things a direct write is about,
//! `i_mutex` and `i_dio_count`.
//!
//! Lock order: `i_mutex`, then the file system's own locks, then (spin) the times.

use core::ops::Deref;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::super_block::{FileSystem, SbFlags, SuperBlock};
use crate::alloc::Arc;
use crate::mm::filemap::AddressSpace;
use crate::percpu::CacheAligned;
use crate::sched::{Point, sched_point};
use crate::sync::lockdep::{self, Dep, HeldDep, Kind, Mode};
use crate::sync::{Mutex, MutexGuard, SpinLock, WaitQueue};
use crate::testing::trace;
use crate::time::Timespec64;
use crate::workqueue::{Work, WorkItem};

/// File type bits of [`Inode::i_mode`].
pub const S_IFMT: u32 = 0o170_000;
/// Regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// Character device.
pub const S_IFCHR: u32 = 0o020_000;
/// Block device.
pub const S_IFBLK: u32 = 0o060_000;
/// Named pipe.
pub const S_IFIFO: u32 = 0o010_000;
/// Socket.
pub const S_IFSOCK: u32 = 0o140_000;
/// Only owners remove names from a directory.
pub const S_ISVTX: u32 = 0o1_000;
/// Set-user-ID on execution.
pub const S_ISUID: u32 = 0o4_000;
/// Set-group-ID on execution.
pub const S_ISGID: u32 = 0o2_000;
/// Group may execute.
pub const S_IXGRP: u32 = 0o010;

/// How [`Inode::lock_nested`] is called for one that is not nested.
pub const I_MUTEX_NORMAL: u8 = 0;
/// For the second of two directories, the upper or lower-numbered one first, and for the
/// second of two files.
#[doc(alias = "I_MUTEX_PARENT2")]
#[doc(alias = "I_MUTEX_NONDIR2")]
pub const I_MUTEX_SECOND: u8 = 1;
/// For a directory in a locked one.
pub const I_MUTEX_CHILD: u8 = 2;
/// For the second of two such.
pub const I_MUTEX_CHILD2: u8 = 3;
/// For one that is being made and that nobody else knows, with a handle open.
pub const I_MUTEX_NEW: u8 = 4;
/// For one that has no name and no user any more.
pub const I_MUTEX_DYING: u8 = 5;

bitflags::bitflags! {
    /// Per-inode switches the VFS looks at: C's `i_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        /// Writes are synced at once.
        #[doc(alias = "S_SYNC")]
        const SYNC = 1 << 0;
        /// Access times are not kept.
        #[doc(alias = "S_NOATIME")]
        const NOATIME = 1 << 1;
        /// Only appending writes.
        #[doc(alias = "S_APPEND")]
        const APPEND = 1 << 2;
        /// No writes at all.
        #[doc(alias = "S_IMMUTABLE")]
        const IMMUTABLE = 1 << 3;
        /// Changes of a directory are synced at once.
        #[doc(alias = "S_DIRSYNC")]
        const DIRSYNC = 1 << 6;
        /// Modification and change times are not kept.
        #[doc(alias = "S_NOCMTIME")]
        const NOCMTIME = 1 << 7;
    }

    /// What of the inode is newer in memory than on disk: C's `i_state`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeState: u32 {
        /// Something that `fdatasync` need not write.
        #[doc(alias = "I_DIRTY_SYNC")]
        const DIRTY_SYNC = 1 << 0;
        /// Something that `fdatasync` must write, for instance the size.
        #[doc(alias = "I_DIRTY_DATASYNC")]
        const DIRTY_DATASYNC = 1 << 1;
        /// Only time stamps (`lazytime`).
        #[doc(alias = "I_DIRTY_TIME")]
        const DIRTY_TIME = 1 << 11;
    }
}

/// Access, modification and change times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InodeTimes {
    /// Last read.
    pub i_atime: Timespec64,
    /// Last change of the contents.
    pub i_mtime: Timespec64,
    /// Last change of the inode.
    pub i_ctime: Timespec64,
}

/// What a file system knows of an inode when it makes one; see [`Inode::new`].
pub struct NewInode<F: FileSystem> {
    /// The mount it belongs to.
    pub i_sb: Arc<SuperBlock<F>>,
    /// Inode number.
    pub i_ino: u64,
    /// Type and permissions.
    pub i_mode: u32,
    /// Owner.
    pub i_uid: u32,
    /// Group.
    pub i_gid: u32,
    /// Hard links.
    pub i_nlink: u32,
    /// Bytes.
    pub i_size: i64,
    /// See [`InodeFlags`].
    pub i_flags: InodeFlags,
    /// Times as they are on disk.
    pub i_times: InodeTimes,
    /// The file system's part.
    pub i_private: F::InodeInfo,
}

/// What every direct write of an inode writes: taking `i_mutex` brings the count along.
struct Hot {
    i_mutex: Mutex<()>,
    i_dio_count: AtomicI32,
}

/// An inode in memory. Lives in an [`Arc`], so that its locks never move; all but the inode cache hold it by [`IRef`]s.
pub struct Inode<F: FileSystem> {
    i_ino: u64,
    /// [`IRef`]s.
    i_count: AtomicUsize,
    /// Files open for writing.
    i_writecount: AtomicUsize,
    /// For an eviction that has to wait for a worker.
    i_evict: Work,
    i_mode: AtomicU32,
    i_uid: AtomicU32,
    i_gid: AtomicU32,
    i_nlink: AtomicU32,
    i_blkbits: u8,
    i_size: AtomicI64,
    i_flags: AtomicU32,
    i_state: AtomicU32,
    i_times: SpinLock<InodeTimes>,
    /// Clock tick (`time::coarse_tick`) of the last `file_update_time`, 0 if something else set
    /// the times since: a second write within the tick has nothing to update.
    i_time_tick: AtomicU64,
    /// Written by every direct write, and on a line without anything that is only read.
    hot: CacheAligned<Hot>,
    i_dio_wait: WaitQueue,
    /// Being counted in `i_dio_count` is like having a lock.
    i_dio_dep: Dep,
    i_mapping: AddressSpace,
    i_sb: Arc<SuperBlock<F>>,
    i_private: F::InodeInfo,
}

impl<F: FileSystem> Inode<F> {
    /// An inode, unlocked, clean, without pages or I/O in flight.
    pub fn new(n: NewInode<F>) -> Self {
        Self {
            i_ino: n.i_ino,
            i_count: AtomicUsize::new(0),
            i_writecount: AtomicUsize::new(0),
            i_evict: Work::new(),
            i_mode: AtomicU32::new(n.i_mode),
            i_uid: AtomicU32::new(n.i_uid),
            i_gid: AtomicU32::new(n.i_gid),
            i_nlink: AtomicU32::new(n.i_nlink),
            i_blkbits: n.i_sb.s_blocksize_bits,
            i_size: AtomicI64::new(n.i_size),
            i_flags: AtomicU32::new(n.i_flags.bits()),
            i_state: AtomicU32::new(0),
            i_times: SpinLock::named("i_times", n.i_times),
            i_time_tick: AtomicU64::new(0),
            hot: CacheAligned(Hot {
                i_mutex: Mutex::named(if n.i_mode & S_IFMT == S_IFDIR { "i_mutex_dir" } else { "i_mutex" }, ()),
                i_dio_count: AtomicI32::new(0),
            }),
            i_dio_dep: Dep::new(Kind::Map, Some("i_dio_count"), || "()"),
            i_dio_wait: WaitQueue::new(),
            i_mapping: AddressSpace::new(n.i_sb.s_blocksize_bits, n.i_sb.s_pages.clone()),
            i_sb: n.i_sb,
            i_private: n.i_private,
        }
    }

    /// Inode number.
    #[inline]
    pub fn i_ino(&self) -> u64 {
        self.i_ino
    }

    /// Type and permissions.
    #[inline]
    pub fn i_mode(&self) -> u32 {
        self.i_mode.load(Ordering::Relaxed)
    }

    /// Owner.
    pub fn i_uid(&self) -> u32 {
        self.i_uid.load(Ordering::Relaxed)
    }

    /// Group.
    pub fn i_gid(&self) -> u32 {
        self.i_gid.load(Ordering::Relaxed)
    }

    /// Hard links.
    pub fn i_nlink(&self) -> u32 {
        self.i_nlink.load(Ordering::Acquire)
    }

    /// Sets the number of hard links. Callers hold `i_mutex`, or are the only ones who know the inode. An inode without links
    /// goes away with its last [`IRef`].
    #[doc(alias = "inc_nlink")]
    #[doc(alias = "drop_nlink")]
    #[doc(alias = "clear_nlink")]
    pub fn set_nlink(&self, nlink: u32) {
        self.i_nlink.store(nlink, Ordering::Release);
    }

    /// Sets type and permissions, without times. Callers hold `i_mutex`.
    pub fn set_i_mode(&self, mode: u32) {
        self.i_mode.store(mode, Ordering::Relaxed);
    }

    /// Sets the owner, without times. Callers hold `i_mutex`.
    pub fn set_owner(&self, uid: u32, gid: u32) {
        self.i_uid.store(uid, Ordering::Relaxed);
        self.i_gid.store(gid, Ordering::Relaxed);
    }

    /// Sets the VFS's flags.
    pub fn set_i_flags(&self, flags: InodeFlags) {
        self.i_flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// [`IRef`]s. A value that was true at some moment.
    pub fn i_count(&self) -> usize {
        self.i_count.load(Ordering::Acquire)
    }

    /// Files open for writing. A value that was true at some moment.
    pub fn i_writecount(&self) -> usize {
        self.i_writecount.load(Ordering::Acquire)
    }

    pub(super) fn get_write_count(&self) {
        self.i_writecount.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether it was the last.
    pub(super) fn put_write_count(&self) -> bool {
        self.i_writecount.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// log2 of the block size in bytes.
    #[inline]
    pub fn i_blkbits(&self) -> u8 {
        self.i_blkbits
    }

    /// Whether it is a regular file.
    pub fn is_reg(&self) -> bool {
        self.i_mode() & S_IFMT == S_IFREG
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.i_mode() & S_IFMT == S_IFDIR
    }

    /// Whether it is a symbolic link.
    pub fn is_lnk(&self) -> bool {
        self.i_mode() & S_IFMT == S_IFLNK
    }

    /// Bytes in the file. Without `i_mutex` it is a value that was true at some moment.
    #[doc(alias = "i_size_read")]
    #[inline]
    pub fn i_size(&self) -> i64 {
        sched_point(Point::Load, core::ptr::from_ref(&self.i_size).cast());
        self.i_size.load(Ordering::Acquire)
    }

    /// Moves the end of the file outwards to `size`, never inwards: for the completion of an extending write, which is counted in flight, so
    /// that nobody with `i_mutex` changes the size meanwhile but by this, too.
    pub fn i_size_extend(&self, size: i64) {
        sched_point(Point::Atomic, core::ptr::from_ref(&self.i_size).cast());
        self.i_size.fetch_max(size, Ordering::AcqRel);
    }

    /// See [`InodeFlags`].
    #[inline]
    pub fn i_flags(&self) -> InodeFlags {
        InodeFlags::from_bits_retain(self.i_flags.load(Ordering::Relaxed))
    }

    /// The mount.
    #[inline]
    pub fn i_sb(&self) -> &Arc<SuperBlock<F>> {
        &self.i_sb
    }

    /// The page cache's view of the file.
    #[inline]
    pub fn i_mapping(&self) -> &AddressSpace {
        &self.i_mapping
    }

    /// The file system's part: C's `EXT4_I(inode)`.
    #[inline]
    pub fn i_private(&self) -> &F::InodeInfo {
        &self.i_private
    }

    /// Writes must be durable when they return, whatever the file was opened with.
    #[doc(alias = "IS_SYNC")]
    #[inline]
    pub fn is_sync(&self) -> bool {
        self.i_flags().contains(InodeFlags::SYNC) || self.i_sb.s_flags().contains(SbFlags::SYNCHRONOUS)
    }

    /// Changes of a directory must be durable when they return.
    #[doc(alias = "IS_DIRSYNC")]
    pub fn is_dirsync(&self) -> bool {
        self.is_sync() || self.i_flags().contains(InodeFlags::DIRSYNC)
    }

    // ---- i_mutex

    /// `mutex_lock(&inode->i_mutex)`. Sleeps.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn lock(&self) -> Locked<'_, F> {
        Locked { inode: self, guard: self.hot.i_mutex.lock() }
    }

    /// The same with another's `i_mutex` held, as `subclass` says: [`I_MUTEX_SECOND`] and so on.
    #[doc(alias = "mutex_lock_nested")]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn lock_nested(&self, subclass: u8) -> Locked<'_, F> {
        lockdep::subclass(subclass);
        self.lock()
    }

    /// `mutex_trylock(&inode->i_mutex)`.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn try_lock(&self) -> Option<Locked<'_, F>> {
        self.hot.i_mutex.try_lock().map(|guard| Locked { inode: self, guard })
    }

    /// Whether somebody waits for `i_mutex` at this moment, for assertions.
    pub fn is_contended(&self) -> bool {
        // SAFETY: the lock is only looked at.
        unsafe { self.hot.i_mutex.raw() }.is_contended()
    }

    /// Whether somebody holds `i_mutex`, for assertions.
    pub fn is_locked(&self) -> bool {
        self.hot.i_mutex.is_locked()
    }

    /// Tells a simulation what its locks and atomics are called.
    #[cfg(all(feature = "sim", not(feature = "bare")))]
    pub fn name_for_traces(&self) {
        use crate::sched::sim::name;
        // SAFETY: only its address is taken.
        name(unsafe { self.hot.i_mutex.raw() }, "i_mutex");
        name(&self.hot.i_dio_count, "i_dio_count");
        name(&self.i_size, "i_size");
        name(&self.i_dio_wait, "i_dio_wait");
    }

    // ---- direct I/O in flight

    /// Counts one direct I/O in flight until the guard goes away. Whoever is about to unmap or
    /// move blocks waits for the count ([`Locked::inode_dio_wait`]) with `i_mutex` held, so the
    /// count must be taken before `i_mutex` is given up.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn inode_dio_begin(&self) -> DioCount<'_, F> {
        sched_point(Point::Add, core::ptr::from_ref(&self.hot.i_dio_count).cast());
        self.i_dio_dep.hold_tried(Mode::Read);
        self.hot.i_dio_count.fetch_add(1, Ordering::Acquire);
        DioCount { inode: self }
    }

    /// What completes an I/O keeps those waiting who wait for the count, until the guard goes.
    #[inline]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub(crate) fn inode_dio_completes(&self) -> HeldDep<'_> {
        self.i_dio_dep.held()
    }

    /// The other half of a [`DioCount`] that was [forgotten](DioCount::into_request). Any context.
    #[inline]
    pub(crate) fn inode_dio_done(&self) {
        sched_point(Point::Atomic, core::ptr::from_ref(&self.hot.i_dio_count).cast());
        if self.hot.i_dio_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.i_dio_wait.wake_up_all();
        }
    }

    /// Direct I/O in flight. A value that was true at some moment.
    pub fn i_dio_count(&self) -> i32 {
        sched_point(Point::Load, core::ptr::from_ref(&self.hot.i_dio_count).cast());
        self.hot.i_dio_count.load(Ordering::Acquire)
    }

    // ---- dirty state and times

    /// Notes that the inode is newer in memory than on disk. Does no I/O, takes no lock.
    #[inline]
    pub fn mark_inode_dirty(&self, what: InodeState) {
        if self.i_state.load(Ordering::Relaxed) & what.bits() != what.bits() {
            self.i_state.fetch_or(what.bits(), Ordering::Release);
        }
    }

    /// What is dirty.
    pub fn i_state(&self) -> InodeState {
        InodeState::from_bits_retain(self.i_state.load(Ordering::Acquire))
    }

    /// Takes the dirty bits, so that whoever writes the inode next must do it after us. To be
    /// called before the fields are read; if the write fails, [`Inode::mark_inode_dirty`] again.
    pub fn take_dirty(&self) -> InodeState {
        InodeState::from_bits_retain(self.i_state.swap(0, Ordering::AcqRel))
    }

    /// A consistent copy of the times.
    pub fn i_times(&self) -> InodeTimes {
        *self.i_times.lock()
    }

    /// Sets times other than "now"; the next write sets `i_mtime` again even within this tick.
    pub fn set_times(&self, f: impl FnOnce(&mut InodeTimes)) {
        f(&mut self.i_times.lock());
        self.i_time_tick.store(0, Ordering::Release);
        self.mark_inode_dirty(InodeState::DIRTY_SYNC);
    }

    /// Brings `i_mtime` and `i_ctime` up to the clock's tick (4 ms, as `current_time()` has it). Only the
    /// memory copy changes; it reaches the disk when the inode is written (`lazytime`).
    ///
    /// Callers hold `i_mutex`, or are the only writer for another reason; it does not sleep.
    #[inline]
    pub fn file_update_time(&self) {
        let tick = crate::time::coarse_tick();
        if self.i_time_tick.load(Ordering::Relaxed) != tick {
            self.update_time_slow(tick);
        }
    }

    #[cold]
    fn update_time_slow(&self, tick: u64) {
        if self.i_flags().contains(InodeFlags::NOCMTIME) {
            return;
        }
        let now = self.i_sb.truncate_time(crate::time::ktime_get_coarse_real());
        let mut t = self.i_times.lock();
        if t.i_mtime != now || t.i_ctime != now {
            t.i_mtime = now;
            t.i_ctime = now;
            self.mark_inode_dirty(InodeState::DIRTY_TIME);
        }
        self.i_time_tick.store(tick, Ordering::Relaxed);
    }

    /// `relatime`, as Linux mounts by default: the access time moves when it is not newer than
    /// the modification or change time, or a day old; `strictatime`: always. Nothing on read-only or `noatime` mounts.
    pub fn file_accessed(&self) {
        let sb = self.i_sb.s_flags();
        if sb.intersects(SbFlags::RDONLY | SbFlags::NOATIME) || self.i_flags().contains(InodeFlags::NOATIME) {
            return;
        }
        let mut t = self.i_times.lock();
        if !sb.contains(SbFlags::STRICTATIME) && t.i_atime > t.i_mtime && t.i_atime > t.i_ctime {
            let now = crate::time::ktime_get_coarse_real();
            if now.tv_sec.saturating_sub(t.i_atime.tv_sec) < 24 * 60 * 60 {
                return;
            }
        }
        let now = self.i_sb.truncate_time(crate::time::ktime_get_coarse_real());
        if t.i_atime != now {
            t.i_atime = now;
            self.mark_inode_dirty(InodeState::DIRTY_TIME);
        }
    }
}

/// A counted reference to an inode: `igrab` to clone it, `iput` to drop it. (Rust-for-Linux: `ARef<Inode>`.)
///
/// With the last one an inode without links goes away, for good: its blocks and its number are freed, which starts a journal handle
/// and sleeps. So no reference that may be the last is dropped with a handle open or a lock of the file system held; where
/// that cannot be told, [`IRef::put_deferred`] leaves it to a worker, and so does dropping it in an interrupt.
pub struct IRef<F: FileSystem>(Arc<Inode<F>>);

impl<F: FileSystem> IRef<F> {
    /// A reference more. Called with the inode cache's lock held, or of an inode that nobody knows yet.
    pub(super) fn new(inode: Arc<Inode<F>>) -> Self {
        inode.i_count.fetch_add(1, Ordering::AcqRel);
        Self(inode)
    }

    /// Drops the reference; if the inode goes away with it, in a worker.
    #[doc(alias = "iput")]
    pub fn put_deferred(self) {
        let this = core::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not used again, and not dropped.
        let inode = unsafe { core::ptr::read(&this.0) };
        if inode.i_count.fetch_sub(1, Ordering::AcqRel) == 1 && inode.i_nlink() == 0 {
            iput_final(inode, true);
        }
    }

    /// Has a worker call [`FileSystem::deferred_release`]. Any context.
    pub fn defer_release(&self) {
        // Queued already: the worker has yet to look at it.
        let _ = self.i_sb.s_evict_wq.queue(self.0.clone());
    }

    /// Whether both are the same inode.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        Arc::ptr_eq(&a.0, &b.0)
    }
}

impl<F: FileSystem> Clone for IRef<F> {
    fn clone(&self) -> Self {
        self.0.i_count.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<F: FileSystem> Deref for IRef<F> {
    type Target = Inode<F>;

    #[inline]
    fn deref(&self) -> &Inode<F> {
        &self.0
    }
}

impl<F: FileSystem> Drop for IRef<F> {
    #[inline]
    fn drop(&mut self) {
        // Whoever takes the last link away holds a reference, so that one of the two sees both at 0.
        if self.0.i_count.fetch_sub(1, Ordering::AcqRel) == 1 && self.0.i_nlink() == 0 {
            iput_final(self.0.clone(), crate::sched::in_interrupt());
        }
    }
}

#[cold]
fn iput_final<F: FileSystem>(inode: Arc<Inode<F>>, defer: bool) {
    if defer {
        let sb = inode.i_sb.clone();
        // Queued already: by somebody who found it unused, too.
        let _ = sb.s_evict_wq.queue(inode);
        return;
    }
    if inode.i_sb.forget_unused(&inode) {
        F::evict_inode(&inode);
    }
}

impl<F: FileSystem> WorkItem for Inode<F> {
    type Pointer = Arc<Self>;

    fn work(&self) -> &Work {
        &self.i_evict
    }

    fn run(this: Arc<Self>) {
        F::deferred_release(&this);
        if this.i_count() == 0 {
            iput_final(this, false);
        }
    }
}

/// An inode whose `i_mutex` is held. Guard and inode travel together, so holding some other
/// inode's mutex is no evidence for this one.
#[must_use = "i_mutex unlocks immediately when unused"]
pub struct Locked<'i, F: FileSystem> {
    inode: &'i Inode<F>,
    guard: MutexGuard<'i, ()>,
}

impl<'i, F: FileSystem> Locked<'i, F> {
    /// The inode, for as long as it lives rather than as long as it is locked.
    #[inline]
    pub fn inode(&self) -> &'i Inode<F> {
        self.inode
    }

    /// `mutex_unlock(&inode->i_mutex)`.
    #[inline]
    pub fn unlock(self) {
        drop(self.guard);
    }

    /// Sleeps until no direct I/O of this inode is in flight. New ones may start as soon as
    /// `i_mutex` is released, and reads that do not take `i_mutex` at any time.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn inode_dio_wait(&self) {
        self.inode.i_dio_dep.might_wait();
        if self.inode.i_dio_count() != 0 {
            trace("inode_dio_wait");
            self.inode.i_dio_wait.wait_event(|| self.inode.i_dio_count() == 0);
        }
    }

    /// Moves the end of the file.
    pub fn i_size_write(&self, size: i64) {
        sched_point(Point::Atomic, core::ptr::from_ref(&self.inode.i_size).cast());
        self.inode.i_size.store(size, Ordering::Release);
    }

    /// Changes permission bits and marks the inode dirty.
    pub fn set_mode(&self, mode: u32) {
        self.inode.i_mode.store(mode, Ordering::Relaxed);
        let now = self.inode.i_sb.truncate_time(crate::time::ktime_get_coarse_real());
        self.inode.set_times(|t| t.i_ctime = now);
        self.inode.mark_inode_dirty(InodeState::DIRTY_SYNC | InodeState::DIRTY_DATASYNC);
    }
}

impl<F: FileSystem> Deref for Locked<'_, F> {
    type Target = Inode<F>;

    #[inline]
    fn deref(&self) -> &Inode<F> {
        self.inode
    }
}

/// One direct I/O in flight; see [`Inode::inode_dio_begin`].
#[must_use = "the I/O is counted only as long as this lives"]
pub struct DioCount<'i, F: FileSystem> {
    inode: &'i Inode<F>,
}

impl<'i, F: FileSystem> DioCount<'i, F> {
    /// The inode it is counted on.
    #[inline]
    pub fn inode(&self) -> &'i Inode<F> {
        self.inode
    }

    /// Hands the count to a request in flight, which ends it with `inode_dio_done`.
    #[inline]
    pub(crate) fn into_request(self) {
        self.inode.i_dio_dep.release();
        core::mem::forget(self);
    }
}

impl<F: FileSystem> Drop for DioCount<'_, F> {
    #[inline]
    fn drop(&mut self) {
        self.inode.i_dio_dep.release();
        self.inode.inode_dio_done();
    }
}
