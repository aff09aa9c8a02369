// SPDX-License-Identifier: GPL-2.0-only
//! `struct super_block`, its inode cache, and what a file system gives to the VFS.

use core::sync::atomic::{AtomicU32, Ordering};

use super::direct_io::DioPool;
use super::{File, IRef, Inode, IovIter, Kiocb, Locked};
use crate::alloc::{Arc, GFP_KERNEL, KVec};
use crate::block::Bdev;
use crate::error::Result;
use crate::mm::page_cache::{BlockRun, PageAccount};
use crate::sync::{Mutex, SpinLock};
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
}

/// A mounted file system. Lives in an [`Arc`].
pub struct SuperBlock<F: FileSystem> {
    /// log2 of the block size in bytes.
    pub s_blocksize_bits: u8,
    /// Granularity of time stamps in nanoseconds: 1, or 1 000 000 000 where there is no room.
    pub s_time_gran: u32,
    s_flags: AtomicU32,
    s_bdev: Bdev,
    s_inodes: SpinLock<KVec<Arc<Inode<F>>>>,
    /// Serialises the reading of inodes that are not in the cache, so that one number never has
    /// two inodes. Taken with no other lock of this layer held.
    s_iget: Mutex<()>,
    /// For inodes whose last reference is dropped where one cannot sleep.
    pub(super) s_evict_wq: Arc<Workqueue>,
    pub(crate) s_dio: DioPool<F>,
    /// Pages of all its files.
    pub(crate) s_pages: Arc<PageAccount>,
    s_fs_info: F::SbInfo,
}

/// Inodes nobody uses are let go beyond this many.
const INODES_MAX: usize = 1024;

impl<F: FileSystem> SuperBlock<F> {
    /// A super block without inodes. [`ENOMEM`](crate::error::code::ENOMEM) if its pools cannot be had.
    pub fn new(bdev: Bdev, blocksize_bits: u8, time_gran: u32, flags: SbFlags, info: F::SbInfo) -> Result<Arc<Self>> {
        let sb = Self {
            s_blocksize_bits: blocksize_bits,
            s_time_gran: time_gran,
            s_flags: AtomicU32::new(flags.bits()),
            s_bdev: bdev,
            s_inodes: SpinLock::new(KVec::with_capacity(INODES_MAX, GFP_KERNEL)?),
            s_iget: Mutex::new(()),
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
        self.s_flags.fetch_or(SbFlags::RDONLY.bits(), Ordering::Relaxed);
    }

    /// `t` at the granularity this file system stores.
    #[doc(alias = "timestamp_truncate")]
    pub fn truncate_time(&self, t: Timespec64) -> Timespec64 {
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
        let _iget = self.s_iget.lock();
        if let Some(inode) = self.ilookup(ino) {
            return Ok(inode);
        }
        self.insert_inode(read()?)
    }

    /// Adds an inode that was just made on disk, and that nobody can know yet. Sleeps.
    #[doc(alias = "insert_inode_locked")]
    pub fn insert_new_inode(&self, inode: Arc<Inode<F>>) -> Result<IRef<F>> {
        let _iget = self.s_iget.lock();
        self.insert_inode(inode)
    }

    /// Called with `s_iget` held. EEXIST if there is one of this number, which would be somebody's who thinks it is in use.
    fn insert_inode(&self, inode: Arc<Inode<F>>) -> Result<IRef<F>> {
        self.shrink_inodes(INODES_MAX - 1)?;
        let mut inodes = self.s_inodes.lock();
        match inodes.binary_search_by_key(&inode.i_ino(), |i| i.i_ino()) {
            Ok(_) => Err(crate::error::code::EEXIST),
            Err(at) => {
                inodes.insert(at, inode.clone(), crate::alloc::GFP_ATOMIC)?;
                Ok(IRef::new(inode))
            }
        }
    }

    /// The inode with number `ino` if it is in memory.
    pub fn ilookup(&self, ino: u64) -> Option<IRef<F>> {
        let inodes = self.s_inodes.lock();
        inodes.binary_search_by_key(&ino, |i| i.i_ino()).ok().map(|at| IRef::new(inodes[at].clone()))
    }

    /// Takes an inode without links that nobody refers to out of the cache. Whether the caller is the one who did.
    pub(super) fn forget_unused(&self, inode: &Arc<Inode<F>>) -> bool {
        let gone = {
            let mut inodes = self.s_inodes.lock();
            if inode.i_count() != 0 || inode.i_nlink() != 0 {
                return false;
            }
            match inodes.binary_search_by_key(&inode.i_ino(), |i| i.i_ino()) {
                Ok(at) if Arc::ptr_eq(&inodes[at], inode) => inodes.remove(at),
                _ => return false,
            }
        };
        drop(gone);
        true
    }

    /// Sleeps until every inode whose last reference was dropped somewhere is gone.
    pub fn drain_evictions(&self) {
        self.s_evict_wq.drain();
    }

    /// Lets go of clean inodes that only the cache holds, until at most `keep` are left; dirty ones are
    /// written first. Called with `s_iget` held, so that none of them can be read back meanwhile.
    fn shrink_inodes(&self, keep: usize) -> Result {
        if self.s_inodes.lock().len() <= keep {
            return Ok(());
        }
        // On the device, not in the buffer cache alone: an inode that is read back does not know that its table block is newer
        // in memory, and its next fsync would leave that there.
        self.for_each_dirty(|inode| F::fsync(inode, 0, i64::MAX, false))?;
        let mut at = 0;
        loop {
            // One at a time, dropped outside the spin lock: dropping frees memory.
            let victim = {
                let mut inodes = self.s_inodes.lock();
                if inodes.len() <= keep || at >= inodes.len() {
                    return Ok(());
                }
                if inodes[at].i_count() == 0
                    && Arc::strong_count(&inodes[at]) == 1
                    && inodes[at].i_state().is_empty()
                    && !inodes[at].i_mapping().is_dirty()
                {
                    inodes.remove(at)
                } else {
                    at += 1;
                    continue;
                }
            };
            drop(victim);
        }
    }

    /// Brings every dirty inode's table block up to date in the buffer cache; writes nothing to
    /// the device. The first error is returned, after all were tried.
    pub fn write_inodes(&self) -> Result {
        self.for_each_dirty(F::write_inode)
    }

    /// Calls `f` with each dirty inode. The first error is returned, after all were tried.
    pub fn for_each_dirty(&self, f: impl Fn(&Inode<F>) -> Result) -> Result {
        let mut result = Ok(());
        let mut next = 0;
        loop {
            let inode = {
                let inodes = self.s_inodes.lock();
                let at = inodes.partition_point(|i| i.i_ino() < next);
                match inodes.get(at) {
                    Some(inode) => IRef::new(inode.clone()),
                    None => return result,
                }
            };
            next = inode.i_ino() + 1;
            if !inode.i_state().is_empty() || inode.i_mapping().is_dirty() {
                result = result.and(f(&inode));
            }
        }
    }

    /// Drops clean pages of all files that were not looked at lately.
    pub(crate) fn shrink_page_caches(&self) {
        let mut next = 0;
        loop {
            let inode = {
                let inodes = self.s_inodes.lock();
                let at = inodes.partition_point(|i| i.i_ino() < next);
                match inodes.get(at) {
                    Some(inode) => IRef::new(inode.clone()),
                    None => return,
                }
            };
            next = inode.i_ino() + 1;
            inode.i_mapping().shrink(usize::MAX);
            inode.put_deferred();
        }
    }

    /// Inodes that somebody else holds, for instance as open files.
    pub fn busy_inodes(&self) -> usize {
        self.s_inodes.lock().iter().filter(|inode| inode.i_count() > 0).count()
    }

    /// Sleeps until no direct I/O of this mount is under way, its completion included. New ones are the caller's to keep away.
    pub fn drain_direct_io(&self) {
        self.s_dio.drain();
    }

    /// Forgets all inodes: the end of a mount. Returns how many were still in use by others.
    pub fn evict_inodes(&self) -> usize {
        let mut busy = 0;
        while let Some(inode) = { self.s_inodes.lock().pop() } {
            busy += usize::from(inode.i_count() > 0);
        }
        busy
    }
}
