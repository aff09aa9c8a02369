// SPDX-License-Identifier: GPL-2.0-only
//! `mm/readahead.c`, `fs/mpage.c`, and `filemap_read`: from the disk into pages, and from pages to the reader.

use core::ptr::NonNull;

use super::page_cache::{AddressSpace, BlockRun, LockedPage, PAGE_SIZE, Page, PageData, PageFlags, reclaim};
use crate::alloc::{Arc, GFP_NOIO, KBox};
use crate::block::{BioPtr, IoBatch, ReqOpf, bio_alloc};
use crate::error::{Result, code::*};
use crate::fs::{FileSystem, Inode, IovIter, Kiocb};
use crate::sync::RwSemWriteGuard;

/// Pages that are read at once.
const READAHEAD: usize = 32;

type Guards<'p> = heapless::Vec<RwSemWriteGuard<'p, KBox<PageData>>, READAHEAD>;

/// Bios in the making: what follows the last on the device goes into the same.
pub(super) struct BioBuilder<'b, 'a> {
    batch: &'b IoBatch<'a>,
    opf: ReqOpf,
    bio: Option<BioPtr>,
}

impl<'b, 'a> BioBuilder<'b, 'a> {
    pub(super) fn new(batch: &'b IoBatch<'a>, opf: ReqOpf) -> Self {
        Self { batch, opf, bio: None }
    }

    /// Adds `len` bytes of memory for `sector`.
    ///
    /// # Safety
    ///
    /// As [`bio_add_page`](crate::block::Bio::bio_add_page), until the batch has ended.
    pub(super) unsafe fn add(&mut self, mut sector: u64, mut page: NonNull<u8>, mut len: u32) -> Result {
        let bdev = self.batch.bdev();
        while len > 0 {
            let n = len.min(bdev.max_piece());
            if let Some(bio) = &mut self.bio
                && bio.end_sector() == sector
                // SAFETY: by the caller's promise.
                && unsafe { bio.bio_add_page(page, n) }
            {
            } else {
                self.submit();
                let mut bio = bio_alloc(bdev, self.opf, GFP_NOIO)?;
                bio.bi_sector = sector;
                // SAFETY: by the caller's promise.
                if !unsafe { bio.bio_add_page(page, n) } {
                    return Err(EINVAL);
                }
                self.bio = Some(bio);
            }
            sector += u64::from(n >> 9);
            // SAFETY: at most to the end of what the caller gave.
            page = unsafe { page.add(n as usize) };
            len -= n;
        }
        Ok(())
    }

    pub(super) fn submit(&mut self) {
        if let Some(bio) = self.bio.take() {
            self.batch.submit(bio);
        }
    }
}

/// Fills pages from `first` on, which hold zeros; past `i_size` they keep them. Their locks are the caller's, who has them in
/// the cache already.
fn read_pages<F: FileSystem>(
    inode: &Inode<F>,
    first: u64,
    pages: &mut [RwSemWriteGuard<'_, KBox<PageData>>],
) -> Result {
    let mapping = inode.i_mapping();
    let blkbits = mapping.blkbits();
    let bs = 1u64 << blkbits;
    let per_page = PAGE_SIZE as u64 / bs;
    // Read when the pages can be found: a direct write that moves it drops them afterwards, or else we see where it is now
    // (G25).
    let i_size = inode.i_size().max(0) as u64;
    let start = mapping.first_block(first);
    let end = (start + pages.len() as u64 * per_page).min(i_size.div_ceil(bs));
    IoBatch::run(inode.i_sb().s_bdev(), |batch| {
        let mut bios = BioBuilder::new(batch, ReqOpf::REQ_OP_READ);
        let mut lblk = start;
        while lblk < end {
            let want = u32::try_from(end - lblk).unwrap_or(u32::MAX);
            let BlockRun { pblk, len } = F::get_block(inode, lblk, want)?;
            let len = u64::from(len.clamp(1, want));
            for (n, pblk) in pblk.into_iter().flat_map(|pblk| (0..len).map(move |n| (n, pblk + n))) {
                let at = lblk + n - start;
                let page = &mut pages[(at / per_page) as usize].0[(at % per_page * bs) as usize..][..bs as usize];
                // SAFETY: the pages are locked for writing until the batch has ended, and nobody else looks at them.
                unsafe { bios.add(pblk << (blkbits - 9), NonNull::from(page).cast(), bs as u32)? };
            }
            lblk += len;
        }
        bios.submit();
        Ok(())
    })?;
    // Past the end a block may hold anything.
    let tail = i_size.saturating_sub(first * PAGE_SIZE as u64);
    if let Some(page) = pages.get_mut((tail / PAGE_SIZE as u64) as usize) {
        page.0[tail as usize % PAGE_SIZE..].fill(0);
    }
    Ok(())
}

/// Brings a locked page up to date. EIO and what mapping has for errors; then it holds anything.
pub fn fill_page<F: FileSystem>(inode: &Inode<F>, locked: &mut LockedPage<'_>) -> Result {
    if locked.is_uptodate() {
        return Ok(());
    }
    locked.bytes().fill(0);
    read_pages(inode, locked.index(), core::slice::from_mut(&mut locked.data))?;
    locked.set_uptodate();
    Ok(())
}

/// Reads `count` pages from `first` on that are not in the cache, as far as nobody else reads them meanwhile; at least the first is
/// there afterwards, or was.
fn read_new_pages<F: FileSystem>(inode: &Inode<F>, first: u64, count: usize) -> Result {
    let mapping = inode.i_mapping();
    let mut pages: heapless::Vec<Arc<Page>, READAHEAD> = heapless::Vec::new();
    for n in 0..count.clamp(1, READAHEAD) as u64 {
        match Page::new(first + n) {
            // There is room: see the bound of the loop.
            Ok(page) => drop(pages.push(page)),
            Err(error) if n == 0 => return Err(error),
            Err(_) => break,
        }
    }
    // Locked before they can be found, so that finders wait for the read; and so at once, as nobody else has them.
    let mut guards: Guards<'_> = pages.iter().filter_map(|page| page.data.try_write()).collect();
    let added = mapping.add(&pages)?;
    guards.truncate(added);
    if added == 0 {
        return Ok(());
    }
    let mut result = read_pages(inode, first, &mut guards);
    let mut good = added;
    if result.is_err() && added > 1 {
        // What nobody asked for may be what cannot be read.
        good = 1;
        guards[0].0.fill(0);
        result = read_pages(inode, first, &mut guards[..1]);
    }
    if result.is_err() {
        good = 0;
    }
    for (n, page) in pages.iter().enumerate().take(added) {
        if n < good {
            page.set(PageFlags::UPTODATE);
        } else {
            mapping.forget(page);
        }
    }
    result
}

/// Page `index`, up to date when it was found; `ahead` more may be read along with it.
///
/// Called without page locks. Takes `invalidate_lock` if there is something to read.
fn get_page<F: FileSystem>(inode: &Inode<F>, index: u64, ahead: usize) -> Result<Arc<Page>> {
    let mapping = inode.i_mapping();
    loop {
        if let Some(page) = mapping.find(index) {
            if page.uptodate() {
                return Ok(page);
            }
            // Somebody reads it, or tried to.
            let _shared = mapping.invalidate_lock.read();
            let mut locked = mapping.lock_page(&page);
            if !page.flags().contains(PageFlags::GONE) {
                if let Err(error) = fill_page(inode, &mut locked) {
                    mapping.forget(&page);
                    return Err(error);
                }
                drop(locked);
                return Ok(page);
            }
            // Dropped while it was read: what its reader got is good for him alone.
            continue;
        }
        reclaim(inode);
        let _shared = mapping.invalidate_lock.read();
        let count = mapping.missing(index, ahead as u64 + 1) as usize;
        if count > 0 {
            read_new_pages(inode, index, count)?;
        }
    }
}

/// How many pages to read beyond the one at `index`, of which a reader wants `wanted` more: all of them, and further where the file
/// is read from front to back. Not past its end.
fn ahead(mapping: &AddressSpace, index: u64, wanted: usize, i_size: i64) -> usize {
    let last = (i_size.max(1) - 1) as u64 / PAGE_SIZE as u64;
    let room = usize::try_from(last.saturating_sub(index)).unwrap_or(usize::MAX);
    let sequential = index == 0 || mapping.has(index - 1);
    (if sequential { READAHEAD - 1 } else { wanted.min(READAHEAD - 1) }).min(room)
}

/// Buffered read: fills the cache as it goes. Returns bytes read, 0 at the end of the file; EAGAIN for a kiocb that must not sleep, where the
/// cache does not have it.
#[doc(alias = "filemap_read")]
pub fn generic_file_buffered_read<F: FileSystem>(iocb: &mut Kiocb<'_, F>, iter: &mut IovIter<'_>) -> Result<usize> {
    let inode = iocb.ki_filp.f_inode();
    let mapping = inode.i_mapping();
    if iocb.ki_pos < 0 {
        return Err(EINVAL);
    }
    // Not with a page locked.
    iter.fault_in();
    let mut done = 0;
    let result = loop {
        // Before the page is found: see read_pages.
        let i_size = inode.i_size();
        let left = i_size.saturating_sub(iocb.ki_pos);
        if left <= 0 || iter.count() == 0 {
            break Ok(());
        }
        let (index, off) = (iocb.ki_pos as u64 / PAGE_SIZE as u64, iocb.ki_pos as usize % PAGE_SIZE);
        let n = (PAGE_SIZE - off).min(iter.count()).min(usize::try_from(left).unwrap_or(usize::MAX));
        let page = match mapping.find(index) {
            Some(page) if page.uptodate() => page,
            _ if iocb.is_nowait() => break Err(EAGAIN),
            _ => {
                let wanted = (off + iter.count() - 1) / PAGE_SIZE;
                match get_page(inode, index, ahead(mapping, index, wanted, i_size)) {
                    Ok(page) => page,
                    Err(error) => break Err(error),
                }
            }
        };
        let data = page.data.read();
        let copied = iter.copy_to_iter(&data.0[off..off + n]);
        drop(data);
        iocb.ki_pos += copied as i64;
        done += copied;
        if copied < n {
            break Err(EFAULT);
        }
    };
    match result {
        Err(error) if done == 0 => Err(error),
        _ => {
            inode.file_accessed();
            Ok(done)
        }
    }
}
