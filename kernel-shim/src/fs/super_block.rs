// SPDX-License-Identifier: GPL-2.0-only
//! `struct super_block`, its inode cache, and what a file system gives to the VFS.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::direct_io::DioPool;
use super::freeze::{FreezeGate, WriteAccess};
use super::{File, IRef, Inode, IovIter, Kiocb, Locked};
use crate::alloc::{Arc, GFP_KERNEL, KVec};
use crate::block::Bdev;
use crate::error::Result;
use crate::mm::page_cache::{BlockRun, PageAccount};
use crate::sync::{Mutex, RwSemaphore, SpinLock};
use crate::time::Timespec64;
use crate::workqueue::Workqueue;

bitflags::bitflags! {
    /// C's `s_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SbFlags: u32 {
        /// Nothing may be written.
        #[doc(alias = "SB_RDONLY")]
        const RDONLY = 1 << 0;
        /// Every write is synced at once.
        #[doc(alias = "SB_SYNCHRONOUS")]
        const SYNCHRONOUS = 1 << 4;
        /// Access times are not kept.
        #[doc(alias = "SB_NOATIME")]
        const NOATIME = 1 << 10;
        /// Access times are kept to the letter.
        const STRICTATIME = 1 << 24;
        /// Times reach the disk when they must.
        #[doc(alias = "SB_LAZYTIME")]
        const LAZYTIME = 1 << 25;
    }
}

/// What a file system is to the VFS: `file_operations`, `address_space_operations` and
/// `super_operations`, as far as direct I/O needs them.
#[expect(non_snake_case, reason = "C names")]
pub trait FileSystem: Sized + Send + Sync + 'static {
    /// C's `s_fs_info`.
    type SbInfo: Send + Sync;
    /// What C embeds `struct inode` in.
    type InodeInfo: Send + Sync;
    /// What a kiocb carries for the file system: C's `void *private`.
    type Private: Send;

    /// `a_ops->direct_IO` for writes.
    ///
    /// Entered with `i_mutex` held, returns with it held; in between it may be without. Answers
    /// `Ok(0)` for "not directly", and the caller writes through the page cache.
    ///
    /// PORT: C passes no lock and one function serves both directions. A write that must not sleep (`NOWAIT`) may return without
    /// `i_mutex`, where C sleeps for it.
    fn direct_IO<'i>(
        iocb: &mut Kiocb<'_, Self>,
        i_mutex: Locked<'i, Self>,
        iter: &mut IovIter<'_>,
        offset: i64,
    ) -> (Option<Locked<'i, Self>>, Result<usize>);

    /// `a_ops->direct_IO` for reads. Entered and left without locks.
    fn direct_IO_read(iocb: &mut Kiocb<'_, Self>, iter: &mut IovIter<'_>, offset: i64) -> Result<usize>;

    /// `f_op->fsync`: makes bytes `start..=end` durable, and the inode as far as they need it
    /// (`datasync`) or wholly. Sleeps; takes no `i_mutex`.
    fn fsync(inode: &Inode<Self>, start: i64, end: i64, datasync: bool) -> Result;

    /// Buffered write of what a direct write left over. Entered and left with `i_mutex`.
    fn buffered_write(iocb: &mut Kiocb<'_, Self>, i_mutex: &Locked<'_, Self>, iter: &mut IovIter<'_>) -> Result<usize>;

    /// Where the data of blocks from `lblk` on is, at most `len` of them; allocates nothing. Called with a page locked, so it takes
    /// no lock but what is below that, and starts no handle. Sleeps.
    fn get_block(inode: &Inode<Self>, lblk: u64, len: u32) -> Result<BlockRun>;

    /// Where a write with `O_APPEND` goes: to the end of the file, or of what is about to be its end. Called with `i_mutex`.
    fn append_pos(i_mutex: &Locked<'_, Self>) -> i64 {
        i_mutex.i_size()
    }

    /// Before a write: set-user-ID and its like go. [`EAGAIN`](crate::error::code::EAGAIN) for a kiocb that must not sleep, if
    /// there is something to do. Called with `i_mutex`.
    fn file_remove_privs(iocb: &Kiocb<'_, Self>, i_mutex: &Locked<'_, Self>) -> Result;

    /// Writes the dirty pages of bytes `start..=end`, and waits. Called with no lock but `i_mutex`. Sleeps.
    #[doc(alias = "filemap_write_and_wait_range")]
    fn write_and_wait(inode: &Inode<Self>, start: i64, end: i64) -> Result;

    /// `s_op->write_inode`: brings the inode's table block up to date in the buffer cache.
    fn write_inode(inode: &Inode<Self>) -> Result;

    /// Largest size this file can have, in bytes.
    fn s_maxbytes(inode: &Inode<Self>) -> i64;

    /// `s_op->evict_inode`: the last reference to an inode without links is gone, and nobody finds it any more: frees
    /// its blocks and its number. Sleeps.
    fn evict_inode(inode: &Arc<Inode<Self>>);

    /// `f_op->release`: the last reference to an open file goes; `last_writer` if nobody else has the inode open for writing.
    /// Called in any context in which a file may be dropped, completions included: it must not sleep.
    fn release(file: &File<Self>, last_writer: bool);

    /// Whether the cache may let go of an inode that is clean and that nobody refers to: whoever reads it back from the disk
    /// must miss nothing. Called under a spin lock: does not sleep.
    #[doc(alias = "drop_inode")]
    fn may_forget(inode: &Inode<Self>) -> bool;

    /// There are more inodes in memory than there should be, and none that [could be let go](FileSystem::may_forget) now. Does
    /// not sleep.
    fn inodes_pressed(info: &Self::SbInfo);

    /// What [`FileSystem::release`] has left to a worker by [`IRef::defer_release`]. Sleeps.
    fn deferred_release(inode: &Inode<Self>);
}

/// A mounted file system. Lives in an [`Arc`].
pub struct SuperBlock<F: FileSystem> {
    /// log2 of the block size in bytes.
    pub s_blocksize_bits: u8,
    /// Granularity of time stamps in nanoseconds: 1, or 1 000 000 000 where there is no room.
    pub s_time_gran: u32,
    /// The last second that a time stamp can have; the first is 2^31 seconds before 1970.
    pub s_time_max: i64,
    s_flags: AtomicU32,
    s_bdev: Bdev,
    s_inodes: InodeTable<F>,
    /// Serialise the reading of inodes that are not in the cache, so that one number never has two inodes. Taken with no other
    /// lock of this layer held; by number.
    s_iget: [Mutex<()>; IGET_LOCKS],
    /// Held for writing by those who mount, remount, freeze and unmount; for reading by who writes back in the background.
    pub s_umount: RwSemaphore<()>,
    /// What changes files goes through here; see [`SuperBlock::start_write`].
    pub s_writers: FreezeGate,
    /// For inodes whose last reference is dropped where one cannot sleep.
    pub(super) s_evict_wq: Arc<Workqueue>,
    pub(crate) s_dio: DioPool<F>,
    /// Pages of all its files.
    pub(crate) s_pages: Arc<PageAccount>,
    s_fs_info: F::SbInfo,
}

/// Locks for inodes that are being read in.
const IGET_LOCKS: usize = 16;
/// Inodes in memory beyond which those nobody uses are let go.
const INODES_MAX: usize = 8192;
/// Hash buckets of the inode cache. A power of two.
const INODE_BUCKETS: usize = 2048;

/// Inodes of one hash value, sorted by number.
type Bucket<F> = SpinLock<KVec<Arc<Inode<F>>>>;

/// The inode cache: a hash table of sorted buckets.
struct InodeTable<F: FileSystem> {
    buckets: KVec<Bucket<F>>,
    nr: AtomicUsize,
    /// How many there may be before the clock is wound again: `INODES_MAX`, or more if it found nothing.
    threshold: AtomicUsize,
    /// The clock's hand: a bucket.
    hand: AtomicUsize,
}

impl<F: FileSystem> InodeTable<F> {
    fn new() -> Result<Self> {
        let mut buckets = KVec::with_capacity(INODE_BUCKETS, GFP_KERNEL)?;
        for _ in 0..INODE_BUCKETS {
            buckets.push(Bucket::named("inode_hash", KVec::new()), GFP_KERNEL)?;
        }
        Ok(Self {
            buckets,
            nr: AtomicUsize::new(0),
            threshold: AtomicUsize::new(INODES_MAX),
            hand: AtomicUsize::new(0),
        })
    }

    #[inline]
    fn bucket(&self, ino: u64) -> &Bucket<F> {
        // Neighbours stay apart, and so do inodes that lie a group apart.
        let hash = ino.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        &self.buckets[hash as usize % INODE_BUCKETS]
    }

    /// Turns the clock once around at most, letting go of what can be, until there is some room again. Whether there is.
    #[cold]
    fn shrink(&self, keep: usize) -> bool {
        for _ in 0..INODE_BUCKETS {
            if self.nr.load(Ordering::Relaxed) <= keep {
                self.threshold.store(INODES_MAX, Ordering::Relaxed);
                return true;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % INODE_BUCKETS;
            while self.forget_one(&self.buckets[at]) {}
        }
        // What is left is in use, or dirty. Do not look through all of it for each inode to come.
        let nr = self.nr.load(Ordering::Relaxed);
        self.threshold.store(if nr > INODES_MAX { nr + nr / 8 } else { INODES_MAX }, Ordering::Relaxed);
        false
    }

    /// Lets go of one inode of a bucket that is clean, and that only the cache holds; whether there was one.
    fn forget_one(&self, bucket: &Bucket<F>) -> bool {
        let victim = {
            let mut inodes = bucket.lock();
            let idle = |inode: &Arc<Inode<F>>| {
                inode.i_count() == 0
                    && Arc::strong_count(inode) == 1
                    && inode.i_state().is_empty()
                    && inode.i_nlink() != 0
                    && !inode.i_mapping().is_dirty()
                    && F::may_forget(inode)
            };
            match inodes.iter().position(idle) {
                Some(at) => inodes.remove(at),
                None => return false,
            }
        };
        self.nr.fetch_sub(1, Ordering::Relaxed);
        // Dropped outside the spin lock: dropping frees memory.
        drop(victim);
        true
    }
}

impl<F: FileSystem> SuperBlock<F> {
    /// A super block without inodes; `time` is granularity and last second of its time stamps.
    /// [`ENOMEM`](crate::error::code::ENOMEM) if its pools cannot be had.
    pub fn new(bdev: Bdev, blocksize_bits: u8, time: (u32, i64), flags: SbFlags, info: F::SbInfo) -> Result<Arc<Self>> {
        let sb = Self {
            s_blocksize_bits: blocksize_bits,
            s_time_gran: time.0,
            s_time_max: time.1,
            s_flags: AtomicU32::new(flags.bits()),
            s_bdev: bdev,
            s_inodes: InodeTable::new()?,
            s_iget: [const { Mutex::named("s_iget", ()) }; IGET_LOCKS],
            s_umount: RwSemaphore::named("s_umount", ()),
            s_writers: FreezeGate::new("sb_writers"),
            s_evict_wq: Workqueue::new("evict", 1)?,
            s_dio: DioPool::new()?,
            s_pages: Arc::new(PageAccount::default(), GFP_KERNEL)?,
            s_fs_info: info,
        };
        Ok(Arc::new(sb, GFP_KERNEL)?)
    }

    /// The device it is on.
    #[inline]
    pub fn s_bdev(&self) -> &Bdev {
        &self.s_bdev
    }

    /// C's `EXT4_SB(sb)`.
    #[inline]
    pub fn s_fs_info(&self) -> &F::SbInfo {
        &self.s_fs_info
    }

    /// See [`SbFlags`].
    #[inline]
    pub fn s_flags(&self) -> SbFlags {
        SbFlags::from_bits_retain(self.s_flags.load(Ordering::Relaxed))
    }

    /// Makes the mount read-only, for instance after an error.
    pub fn set_rdonly(&self) {
        self.set_flag(SbFlags::RDONLY, true);
    }

    /// Sets or clears a flag: a remount.
    pub fn set_flag(&self, flag: SbFlags, on: bool) {
        if on {
            self.s_flags.fetch_or(flag.bits(), Ordering::SeqCst);
        } else {
            self.s_flags.fetch_and(!flag.bits(), Ordering::SeqCst);
        }
    }

    /// To be held by everything that changes a file on behalf of somebody outside, from before its first lock to its end, so
    /// that a frozen file system stays as it is (G8). Sleeps while it is frozen. A task takes one at a time.
    #[doc(alias = "sb_start_write")]
    #[inline(always)]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn start_write(&self) -> WriteAccess<'_> {
        self.s_writers.enter()
    }

    /// [`SuperBlock::start_write`] that gives nothing instead of sleeping.
    #[doc(alias = "sb_start_write_trylock")]
    #[inline(always)]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn try_start_write(&self) -> Option<WriteAccess<'_>> {
        self.s_writers.try_enter()
    }

    /// `t` at the granularity this file system stores, and within what it can store.
    #[doc(alias = "timestamp_truncate")]
    pub fn truncate_time(&self, t: Timespec64) -> Timespec64 {
        let first = i64::from(i32::MIN);
        if t.tv_sec <= first || t.tv_sec >= self.s_time_max {
            return Timespec64 { tv_sec: t.tv_sec.clamp(first, self.s_time_max), tv_nsec: 0 };
        }
        match self.s_time_gran {
            0 | 1 => t,
            gran => Timespec64 { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec / gran * gran },
        }
    }

    /// The inode with number `ino`, from the cache or made by `read`. Sleeps.
    #[doc(alias = "iget_locked")]
    pub fn iget(&self, ino: u64, read: impl FnOnce() -> Result<Arc<Inode<F>>>) -> Result<IRef<F>> {
        if let Some(inode) = self.ilookup(ino) {
            return Ok(inode);
        }
        let _iget = self.s_iget[ino as usize % IGET_LOCKS].lock();
        if let Some(inode) = self.ilookup(ino) {
            return Ok(inode);
        }
        self.insert_inode(read()?)
    }

    /// Adds an inode that was just made on disk, and that nobody can know yet. Sleeps.
    #[doc(alias = "insert_inode_locked")]
    pub fn insert_new_inode(&self, inode: Arc<Inode<F>>) -> Result<IRef<F>> {
        let _iget = self.s_iget[inode.i_ino() as usize % IGET_LOCKS].lock();
        self.insert_inode(inode)
    }

    /// Called with its `s_iget` held. EEXIST if there is one of this number, which would be somebody's who thinks it is in use.
    ///
    /// Does no I/O to make room: the caller may have a handle open.
    fn insert_inode(&self, inode: Arc<Inode<F>>) -> Result<IRef<F>> {
        let table = &self.s_inodes;
        if table.nr.load(Ordering::Relaxed) >= table.threshold.load(Ordering::Relaxed)
            && !table.shrink(INODES_MAX - INODES_MAX / 8)
        {
            F::inodes_pressed(&self.s_fs_info);
        }
        let mut inodes = table.bucket(inode.i_ino()).lock();
        match inodes.binary_search_by_key(&inode.i_ino(), |i| i.i_ino()) {
            Ok(_) => Err(crate::error::code::EEXIST),
            Err(at) => {
                inodes.insert(at, inode.clone(), crate::alloc::GFP_ATOMIC)?;
                table.nr.fetch_add(1, Ordering::Relaxed);
                Ok(IRef::new(inode))
            }
        }
    }

    /// The inode with number `ino` if it is in memory.
    pub fn ilookup(&self, ino: u64) -> Option<IRef<F>> {
        let inodes = self.s_inodes.bucket(ino).lock();
        inodes.binary_search_by_key(&ino, |i| i.i_ino()).ok().map(|at| IRef::new(inodes[at].clone()))
    }

    /// Inodes in memory.
    pub fn nr_inodes(&self) -> usize {
        self.s_inodes.nr.load(Ordering::Relaxed)
    }

    /// Takes an inode without links that nobody refers to out of the cache. Whether the caller is the one who did.
    pub(super) fn forget_unused(&self, inode: &Arc<Inode<F>>) -> bool {
        let gone = {
            let mut inodes = self.s_inodes.bucket(inode.i_ino()).lock();
            if inode.i_count() != 0 || inode.i_nlink() != 0 {
                return false;
            }
            match inodes.binary_search_by_key(&inode.i_ino(), |i| i.i_ino()) {
                Ok(at) if Arc::ptr_eq(&inodes[at], inode) => inodes.remove(at),
                _ => return false,
            }
        };
        self.s_inodes.nr.fetch_sub(1, Ordering::Relaxed);
        drop(gone);
        true
    }

    /// Sleeps until every inode whose last reference was dropped somewhere is gone.
    pub fn drain_evictions(&self) {
        self.s_evict_wq.drain();
    }

    /// Brings every dirty inode's table block up to date in the buffer cache; writes nothing to
    /// the device. The first error is returned, after all were tried.
    pub fn write_inodes(&self) -> Result {
        self.for_each_inode(|inode| !inode.i_state().is_empty(), |inode| F::write_inode(inode))
    }

    /// Calls `f` with each inode that is dirty, or has dirty pages. As [`SuperBlock::for_each_inode`].
    pub fn for_each_dirty(&self, f: impl Fn(&Inode<F>) -> Result) -> Result {
        self.for_each_inode(|inode| !inode.i_state().is_empty() || inode.i_mapping().is_dirty(), |inode| f(inode))
    }

    /// Calls `f` with each inode in memory for which `which` says so. The first error is returned, after all were tried.
    ///
    /// Inodes that come or go meanwhile may be left out. `which` is called under a spin lock; `f` without, with a reference
    /// to the inode, which may be the last by the time it is dropped: so called with no handle open. Sleeps.
    pub fn for_each_inode(&self, which: impl Fn(&Inode<F>) -> bool, mut f: impl FnMut(&IRef<F>) -> Result) -> Result {
        let mut result = Ok(());
        for bucket in &self.s_inodes.buckets {
            let mut next = 0;
            loop {
                let inode = {
                    let inodes = bucket.lock();
                    let at = inodes.partition_point(|i| i.i_ino() < next);
                    match inodes[at..].iter().find(|inode| which(inode)) {
                        Some(inode) => IRef::new(inode.clone()),
                        None => break,
                    }
                };
                next = inode.i_ino() + 1;
                result = result.and(f(&inode));
            }
        }
        result
    }

    /// The first error of writing back data of any file since the last call, whoever wrote it, and whether or not fsync of that
    /// file has told already.
    #[doc(alias = "s_wb_err")]
    #[doc(alias = "errseq_check_and_advance")]
    pub fn check_data_errors(&self) -> Result {
        self.s_pages.check_errors()
    }

    /// How many inodes there are for which `which` says so. It is called under a spin lock.
    pub fn count_inodes(&self, which: impl Fn(&Inode<F>) -> bool) -> usize {
        self.s_inodes.buckets.iter().map(|bucket| bucket.lock().iter().filter(|inode| which(inode)).count()).sum()
    }

    /// Drops clean pages of all files that were not looked at lately.
    pub(crate) fn shrink_page_caches(&self) {
        for bucket in &self.s_inodes.buckets {
            let mut next = 0;
            loop {
                let inode = {
                    let inodes = bucket.lock();
                    let at = inodes.partition_point(|i| i.i_ino() < next);
                    match inodes.get(at) {
                        Some(inode) => IRef::new(inode.clone()),
                        None => break,
                    }
                };
                next = inode.i_ino() + 1;
                inode.i_mapping().shrink(usize::MAX);
                inode.put_deferred();
            }
        }
    }

    /// Inodes that somebody else holds, for instance as open files.
    pub fn busy_inodes(&self) -> usize {
        self.count_inodes(|inode| inode.i_count() > 0)
    }

    /// Sleeps until no direct I/O of this mount is under way, its completion included. New ones are the caller's to keep away.
    pub fn drain_direct_io(&self) {
        self.s_dio.drain();
    }

    /// Lets go of all inodes that are clean and that nobody refers to: they will be read again. How many stay.
    #[doc(alias = "prune_icache_sb")]
    pub fn shrink_inodes(&self) -> usize {
        self.s_inodes.shrink(0);
        self.nr_inodes()
    }

    /// Forgets all inodes: the end of a mount. Returns how many were still in use by others.
    pub fn evict_inodes(&self) -> usize {
        let mut busy = 0;
        for bucket in &self.s_inodes.buckets {
            while let Some(inode) = { bucket.lock().pop() } {
                self.s_inodes.nr.fetch_sub(1, Ordering::Relaxed);
                busy += usize::from(inode.i_count() > 0);
            }
        }
        busy
    }
}
