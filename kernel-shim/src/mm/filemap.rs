// SPDX-License-Identifier: GPL-2.0-only
//! `mm/filemap.c`: the way of a write from `f_op->write` to `a_ops->direct_IO`, and the page cache it has to stay right with.
//!
//! The cache holds clean pages only: buffered reads fill it, direct writes drop what they changed from it, before and after.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::alloc::{Arc, GFP_ATOMIC, GFP_KERNEL, KBox, KVec};
use crate::error::{Result, code::*};
use crate::fs::inode::{S_ISGID, S_ISUID, S_IXGRP};
use crate::fs::{File, FileSystem, Inode, IocbFlags, IovIter, Kiocb, Locked};
use crate::sync::{RwSemaphore, SpinLock};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
/// A mapping drops its pages when it has this many.
const PAGES_MAX: usize = 8192;

#[repr(C, align(4096))]
struct PageData([u8; PAGE_SIZE]);

/// One page of a file. Its data is written once, by whoever put it into the cache, under its lock.
struct Page {
    /// Taken for writing before the page can be found, so that finders wait for the read.
    data: RwSemaphore<KBox<PageData>>,
    uptodate: AtomicBool,
}

/// `struct address_space`: the pages of one file.
///
/// Lock order: a page's lock, then (spin) the table.
pub struct AddressSpace {
    /// Sorted by page number.
    i_pages: SpinLock<KVec<(u64, Arc<Page>)>>,
    nrpages: AtomicUsize,
}

impl AddressSpace {
    /// Without pages.
    pub(crate) const fn new() -> Self {
        Self { i_pages: SpinLock::new(KVec::new()), nrpages: AtomicUsize::new(0) }
    }

    /// Pages in the cache. A value that was true at some moment; ordered after a bio that has ended, it counts every page whose
    /// read began before.
    #[inline]
    pub fn nrpages(&self) -> usize {
        self.nrpages.load(Ordering::SeqCst)
    }

    /// Drops the pages of bytes `start..=end`. A reader that has one goes on with what it read, but nobody finds it any more.
    #[doc(alias = "invalidate_inode_pages2_range")]
    pub fn invalidate_pages(&self, start: i64, end: i64) {
        let (first, last) = (start.max(0) as u64 / PAGE_SIZE as u64, end.max(0) as u64 / PAGE_SIZE as u64);
        loop {
            // Dropped outside the spin lock.
            let gone = {
                let mut pages = self.i_pages.lock();
                let at = pages.partition_point(|(index, _)| *index < first);
                match pages.get(at) {
                    Some((index, _)) if *index <= last => {
                        let gone = pages.remove(at);
                        self.nrpages.store(pages.len(), Ordering::SeqCst);
                        gone
                    }
                    _ => return,
                }
            };
            drop(gone);
        }
    }

    fn find(&self, index: u64) -> Option<Arc<Page>> {
        let pages = self.i_pages.lock();
        pages.binary_search_by_key(&index, |(i, _)| *i).ok().map(|at| pages[at].1.clone())
    }

    /// The page, read by `read` if it is not there. The page can be found, and dropped, from before its read starts, so that
    /// a direct write that ends meanwhile does not leave old data behind (G11).
    fn find_or_read(&self, index: u64, read: impl FnOnce(&mut [u8]) -> Result) -> Result<Arc<Page>> {
        if let Some(page) = self.find(index) {
            return Ok(page);
        }
        if self.nrpages() >= PAGES_MAX {
            self.invalidate_pages(0, i64::MAX);
        }
        let data = KBox::new(PageData([0; PAGE_SIZE]), GFP_KERNEL)?;
        let page = Arc::new(Page { data: RwSemaphore::new(data), uptodate: AtomicBool::new(false) }, GFP_KERNEL)?;
        let mut filling = page.data.write();
        {
            let mut pages = self.i_pages.lock();
            match pages.binary_search_by_key(&index, |(i, _)| *i) {
                Ok(at) => return Ok(pages[at].1.clone()),
                Err(at) => pages.insert(at, (index, page.clone()), GFP_ATOMIC)?,
            }
            self.nrpages.store(pages.len(), Ordering::SeqCst);
        }
        let result = read(&mut filling.0);
        page.uptodate.store(result.is_ok(), Ordering::Release);
        drop(filling);
        if let Err(e) = result {
            let at = (index * PAGE_SIZE as u64) as i64;
            self.invalidate_pages(at, at);
            return Err(e);
        }
        Ok(page)
    }
}

/// Buffered read: fills the cache as it goes. Returns bytes read, 0 at the end of the file.
#[doc(alias = "filemap_read")]
pub fn generic_file_buffered_read<F: FileSystem>(iocb: &mut Kiocb<'_, F>, iter: &mut IovIter<'_>) -> Result<usize> {
    let inode = iocb.ki_filp.f_inode();
    if iocb.ki_pos < 0 {
        return Err(EINVAL);
    }
    let mut done = 0;
    while iter.count() > 0 {
        let left = inode.i_size().saturating_sub(iocb.ki_pos);
        if left <= 0 {
            break;
        }
        let (index, off) = (iocb.ki_pos as u64 / PAGE_SIZE as u64, iocb.ki_pos as usize % PAGE_SIZE);
        let start = (index * PAGE_SIZE as u64) as i64;
        let page = match inode.i_mapping().find_or_read(index, |p| F::readpage(inode, start, p)) {
            Ok(page) => page,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        };
        let n = (PAGE_SIZE - off).min(iter.count()).min(usize::try_from(left).unwrap_or(usize::MAX));
        let data = page.data.read();
        if !page.uptodate.load(Ordering::Acquire) {
            return if done > 0 { Ok(done) } else { Err(EIO) };
        }
        let copied = iter.copy_to_iter(&data.0[off..off + n]);
        iocb.ki_pos += copied as i64;
        done += copied;
        if copied < n {
            return if done > 0 { Ok(done) } else { Err(EFAULT) };
        }
    }
    inode.file_accessed();
    Ok(done)
}

/// `f_op->read`: direct or buffered, as the kiocb says. [`EBADF`] unless open for reading, [`EFAULT`] for memory that may not
/// be written.
#[doc(alias = "generic_file_aio_read")]
pub fn generic_file_read<F: FileSystem>(iocb: &mut Kiocb<'_, F>, iter: &mut IovIter<'_>) -> Result<usize> {
    iocb.ki_filp.may_read()?;
    if !iter.is_dest() {
        return Err(EFAULT);
    }
    if iocb.ki_filp.f_inode().is_dir() {
        return Err(EISDIR);
    }
    if !iocb.ki_flags.contains(IocbFlags::DIRECT) {
        return generic_file_buffered_read(iocb, iter);
    }
    let offset = iocb.ki_pos;
    let ret = F::direct_IO_read(iocb, iter, offset);
    if let Ok(n) = ret {
        iocb.ki_pos += n as i64;
        iocb.ki_filp.f_inode().file_accessed();
    }
    ret
}

/// Where a write goes and how long it is, found under `i_mutex`: [`generic_write_checks`] gives it, and what follows needs it.
/// Good as long as that `i_mutex` is held.
#[derive(Clone, Copy, Debug)]
pub struct WriteRange {
    /// First byte.
    pub pos: i64,
    /// Bytes, at least 1.
    pub count: usize,
}

/// Settles where a write goes: the end of the file for `O_APPEND`, cut where the file system's largest file ends. `None` if
/// there is nothing to write. Entered with `i_mutex`, which the file size may not change without.
///
/// [`EFBIG`] at or past the largest size, [`EINVAL`] for a negative position.
#[inline(always)]
pub fn generic_write_checks<F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: &Locked<'_, F>,
    iter: &mut IovIter<'_>,
) -> Result<Option<WriteRange>> {
    if iter.count() == 0 {
        return Ok(None);
    }
    if iocb.ki_flags.contains(IocbFlags::APPEND) {
        iocb.ki_pos = i_mutex.i_size();
    }
    if iocb.ki_pos < 0 {
        return Err(EINVAL);
    }
    // No file is longer than the longest may be.
    let inside = i64::try_from(iter.count()).ok().and_then(|n| iocb.ki_pos.checked_add(n));
    if inside.is_some_and(|end| end <= i_mutex.i_size()) {
        return Ok(Some(WriteRange { pos: iocb.ki_pos, count: iter.count() }));
    }
    let room = F::s_maxbytes(i_mutex).saturating_sub(iocb.ki_pos);
    if room <= 0 {
        return Err(EFBIG);
    }
    iter.truncate(usize::try_from(room).unwrap_or(usize::MAX));
    Ok(Some(WriteRange { pos: iocb.ki_pos, count: iter.count() }))
}

/// A write takes set-user-ID and set-group-ID away from a file, unless the writer may keep them. Entered with `i_mutex`.
#[inline]
pub fn file_remove_suid<F: FileSystem>(file: &File<F>, i_mutex: &Locked<'_, F>) {
    let mode = i_mutex.i_mode();
    if mode & (S_ISUID | S_ISGID) == 0 || !i_mutex.is_reg() || file.cap_fsetid() {
        return;
    }
    let mut kill = mode & S_ISUID;
    if mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP {
        kill |= S_ISGID;
    }
    if kill != 0 {
        i_mutex.set_mode(mode & !kill);
    }
}

/// The checked write: privileges, times, and the data, directly or, for what was left over, through the cache.
///
/// Entered with `i_mutex` held, returns with it held; a direct write may have been without in between.
#[doc(alias = "__generic_file_write_iter")]
#[inline(always)]
pub fn __generic_file_aio_write<'i, F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: Locked<'i, F>,
    range: WriteRange,
    iter: &mut IovIter<'_>,
) -> (Locked<'i, F>, Result<usize>) {
    file_remove_suid(iocb.ki_filp, &i_mutex);
    i_mutex.file_update_time();
    let (i_mutex, written) = if iocb.ki_flags.contains(IocbFlags::DIRECT) {
        match generic_file_direct_write(iocb, i_mutex, range, iter) {
            (i_mutex, Ok(n)) if n < range.count && iter.count() > 0 => (i_mutex, n),
            done => return done,
        }
    } else {
        (i_mutex, 0)
    };
    let ret = match F::buffered_write(iocb, &i_mutex, iter) {
        Ok(n) => Ok(written + n),
        Err(_) if written > 0 => Ok(written),
        Err(e) => Err(e),
    };
    (i_mutex, ret)
}

/// The direct part of a write. Returns short, with `iter` at what is left, if the rest has to go through the cache.
///
/// Entered with `i_mutex` held, returns with it held; in between, `direct_IO` may be without.
#[inline(always)]
pub fn generic_file_direct_write<'i, F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: Locked<'i, F>,
    range: WriteRange,
    iter: &mut IovIter<'_>,
) -> (Locked<'i, F>, Result<usize>) {
    let WriteRange { pos, count } = range;
    if i_mutex.i_mapping().nrpages() != 0 {
        i_mutex.i_mapping().invalidate_pages(pos, pos.saturating_add(count as i64 - 1));
    }
    let (i_mutex, ret) = F::direct_IO(iocb, i_mutex, iter, pos);
    // PORT: C drops pages once more here, which for an asynchronous write is before its data is on disk. It is part of
    // completion (fs/direct_io.rs).
    match ret {
        Ok(0) | Err(ENOTBLK) => (i_mutex, Ok(0)),
        Ok(n) => {
            iocb.ki_pos = pos + n as i64;
            // A short count is the answer if memory or the device gave out; the cache cannot do better.
            iter.truncate(0);
            (i_mutex, Ok(n))
        }
        err => (i_mutex, err),
    }
}

/// After a direct write: drops what the cache has of it.
pub(crate) fn dio_invalidate_pages<F: FileSystem>(inode: &Inode<F>, start: i64, end: i64) {
    inode.i_mapping().invalidate_pages(start, end);
}

/// Makes a finished write durable if file or inode ask for it. Sleeps; takes no `i_mutex`.
#[inline]
pub fn generic_write_sync<F: FileSystem>(iocb: &Kiocb<'_, F>, pos: i64, count: usize) -> Result {
    if !iocb.is_dsync() {
        return Ok(());
    }
    let datasync = !iocb.ki_flags.contains(IocbFlags::SYNC);
    F::fsync(iocb.ki_filp.f_inode(), pos, pos.saturating_add(count as i64 - 1), datasync)
}
