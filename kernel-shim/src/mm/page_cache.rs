// SPDX-License-Identifier: GPL-2.0-only
//! `mm/filemap.c`: the page cache.
//!
//! The cache holds clean pages only: buffered reads fill it, direct writes drop what they changed from it, before and after.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::alloc::{Arc, GFP_ATOMIC, GFP_KERNEL, KBox, KVec};
use crate::error::{Result, code::*};
use crate::fs::{FileSystem, IovIter, Kiocb};
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
