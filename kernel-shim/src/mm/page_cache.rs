// SPDX-License-Identifier: GPL-2.0-only
//! `mm/filemap.c`, `mm/truncate.c`: the page cache.
//!
//! # A page
//!
//! Readers hold its lock for reading while they copy, whoever fills, changes or zeroes it for writing. It can be found from before it
//! is filled, so that a direct write that ends meanwhile can drop it and leaves no old data behind (G11).
//!
//! Each block in it is clean or dirty. Blocks are marked dirty *before* they are changed, with the lock held: so whoever drops clean
//! pages without their locks never drops one that somebody is about to change. A dirty page is up to date.
//!
//! On its way to the disk a page bears two marks. `IO`: the device reads its memory, nobody may change it (stable pages).
//! `WRITEBACK`: it is not finished; what its blocks need afterwards (an unwritten extent is converted, the size on disk moves) may
//! still be to be done, and until then the page stays in the cache, which alone knows what the blocks hold. Who changes a page waits for
//! the first only, since that end needs no journal and can be waited for with a handle open; who drops pages or promises
//! durability waits for the second, too.
//!
//! # Lock order
//!
//! `i_mutex` → [`AddressSpace::invalidate_lock`] → journal handle → a page's lock → what maps blocks. The tree's lock is a spin
//! lock, below all.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use super::page_tree::{PageTree, Tag};
use crate::alloc::{Arc, GFP_KERNEL, KBox};
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::fs::Inode;
use crate::sched::{Point, sched_access, sched_point};
use crate::sync::lockdep::LockMap;
use crate::sync::{RwSemWriteGuard, RwSemaphore, SpinLock, WaitQueue};
use crate::testing::trace;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
const PAGE_SHIFT: u8 = 12;
/// Pages of a mount; beyond that clean ones are dropped.
const PAGES_MAX: usize = 16384;
/// Dirty pages of a mount; beyond that writers write them back.
const DIRTY_MAX: usize = 4096;

/// Held by who ends `IO`, which neither takes locks nor starts a handle before that.
pub(super) static PAGE_IO: LockMap = LockMap::new("page_io");
/// Held by who ends `WRITEBACK`, which may start a handle before that.
pub(super) static PAGE_WRITEBACK: LockMap = LockMap::new("page_writeback");

#[repr(C, align(4096))]
pub(super) struct PageData(pub(super) [u8; PAGE_SIZE]);

/// Where neighbouring blocks of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first of them on the device, in blocks; `None` if they hold no data.
    pub pblk: Option<u64>,
    /// How many, at least 1.
    pub len: u32,
}

bitflags::bitflags! {
    /// See the head of this file. The low bits are its dirty blocks, the first block's lowest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct PageFlags: u32 {
        const DIRTY = 0xff;
        const UPTODATE = 1 << 8;
        const IO = 1 << 9;
        const WRITEBACK = 1 << 10;
        /// Not in the cache any more.
        const GONE = 1 << 11;
        /// Looked at since reclaim came by.
        const REFERENCED = 1 << 12;
        const BUSY = Self::DIRTY.bits() | Self::IO.bits() | Self::WRITEBACK.bits();
    }
}

/// One page of a file.
pub struct Page {
    index: u64,
    /// `UPTODATE` changes under the page's lock, `REFERENCED` at any time, the rest under the tree's.
    flags: AtomicU32,
    pub(super) data: RwSemaphore<KBox<PageData>>,
}

impl Page {
    /// A page that nobody knows. ENOMEM.
    pub(super) fn new(index: u64) -> Result<Arc<Self>> {
        let data = KBox::new(PageData([0; PAGE_SIZE]), GFP_KERNEL)?;
        Ok(Arc::new(Self { index, flags: AtomicU32::new(0), data: RwSemaphore::named("page", data) }, GFP_KERNEL)?)
    }

    /// Its number in the file.
    pub fn index(&self) -> u64 {
        self.index
    }

    #[inline]
    pub(super) fn flags(&self) -> PageFlags {
        sched_access(core::ptr::from_ref(&self.flags).cast(), false);
        PageFlags::from_bits_retain(self.flags.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn set(&self, flags: PageFlags) -> PageFlags {
        sched_access(core::ptr::from_ref(&self.flags).cast(), true);
        PageFlags::from_bits_retain(self.flags.fetch_or(flags.bits(), Ordering::AcqRel))
    }

    #[inline]
    pub(super) fn clear(&self, flags: PageFlags) -> PageFlags {
        sched_access(core::ptr::from_ref(&self.flags).cast(), true);
        PageFlags::from_bits_retain(self.flags.fetch_and(!flags.bits(), Ordering::AcqRel))
    }

    /// Holds the file's data. True for good only with its lock held.
    #[inline]
    pub(super) fn uptodate(&self) -> bool {
        self.flags().contains(PageFlags::UPTODATE)
    }

    fn referenced(&self) {
        if !self.flags().contains(PageFlags::REFERENCED) {
            self.set(PageFlags::REFERENCED);
        }
    }
}

/// A page whose lock is held for writing, and which the device does not read.
pub struct LockedPage<'a> {
    pub(super) mapping: &'a AddressSpace,
    pub(super) page: &'a Arc<Page>,
    pub(super) data: RwSemWriteGuard<'a, KBox<PageData>>,
}

impl LockedPage<'_> {
    /// Its number in the file.
    pub fn index(&self) -> u64 {
        self.page.index
    }

    /// Whether it holds the file's data. If not, all of it is to be filled before [`LockedPage::set_uptodate`].
    pub fn is_uptodate(&self) -> bool {
        self.page.uptodate()
    }

    /// All of it was filled.
    pub fn set_uptodate(&mut self) {
        self.page.set(PageFlags::UPTODATE);
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.data.0
    }
}

impl Drop for LockedPage<'_> {
    /// A page that was made dirty and could not be filled has nothing to write, and nothing to show.
    fn drop(&mut self) {
        if !self.page.uptodate() && self.page.flags().intersects(PageFlags::DIRTY) {
            let gone = self.mapping.remove(self.page, PageFlags::empty());
            drop(gone);
        }
    }
}

/// How many pages a mount has in its caches.
#[derive(Debug, Default)]
pub(crate) struct PageAccount {
    nr_pages: AtomicUsize,
    nr_dirty: AtomicUsize,
    /// First error of writing back any file that whoever syncs all of them has not been told of: an errno below 0.
    wb_err: AtomicI32,
}

impl PageAccount {
    /// The first error that was noted for any file since the last call.
    pub(crate) fn check_errors(&self) -> Result {
        take_error(&self.wb_err)
    }
}

fn take_error(wb_err: &AtomicI32) -> Result {
    if wb_err.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    match wb_err.swap(0, Ordering::AcqRel) {
        0 => Ok(()),
        errno => Err(Error::from_errno(errno)),
    }
}

/// `struct address_space`: the pages of one file.
pub struct AddressSpace {
    /// Held for reading while pages are filled, for writing by whoever takes blocks away from the file, from before the pages
    /// are dropped until the blocks are gone: a page that was filled in between would show what is somebody else's by then.
    pub invalidate_lock: RwSemaphore<()>,
    tree: SpinLock<PageTree>,
    nrpages: AtomicUsize,
    nrdirty: AtomicUsize,
    /// For the end of `IO` or `WRITEBACK` of any page.
    wait: WaitQueue,
    /// First error of writing back that nobody has been told of: an errno below 0.
    wb_err: AtomicI32,
    blkbits: u8,
    account: Arc<PageAccount>,
}

impl AddressSpace {
    /// Without pages.
    pub(crate) const fn new(blkbits: u8, account: Arc<PageAccount>) -> Self {
        Self {
            invalidate_lock: RwSemaphore::named("invalidate_lock", ()),
            tree: SpinLock::named("i_pages", PageTree::new()),
            nrpages: AtomicUsize::new(0),
            nrdirty: AtomicUsize::new(0),
            wait: WaitQueue::new(),
            wb_err: AtomicI32::new(0),
            blkbits,
            account,
        }
    }

    /// Pages in the cache. A value that was true at some moment; ordered after a bio that has ended, it counts every page whose
    /// read began before.
    #[inline]
    pub fn nrpages(&self) -> usize {
        sched_point(Point::Load, core::ptr::from_ref(&self.nrpages).cast());
        self.nrpages.load(Ordering::SeqCst)
    }

    /// Pages that are newer than on disk, and not on their way there. A value that was true at some moment.
    #[inline]
    pub fn nrdirty(&self) -> usize {
        sched_access(core::ptr::from_ref(&self.nrdirty).cast(), false);
        self.nrdirty.load(Ordering::SeqCst)
    }

    /// Whether a page is dirty, or on its way to the disk: as long as that is so, the inode stays in memory.
    #[doc(alias = "mapping_tagged")]
    pub fn is_dirty(&self) -> bool {
        self.nrpages() != 0
            && (self.nrdirty() != 0 || self.tree.lock().next_tagged(0, u64::MAX, Tag::Writeback).is_some())
    }

    /// Bytes of the file's blocks.
    pub(super) fn blkbits(&self) -> u8 {
        self.blkbits
    }

    /// Number of a page's first block.
    pub(super) fn first_block(&self, index: u64) -> u64 {
        index << (PAGE_SHIFT - self.blkbits)
    }

    /// The blocks of a page that bytes `from..to` of it touch.
    fn blocks(&self, from: usize, to: usize) -> u32 {
        if from >= to {
            return 0;
        }
        let (first, last) = (from >> self.blkbits, (to - 1) >> self.blkbits);
        ((2u32 << last) - 1) & !((1u32 << first) - 1)
    }

    // ---- finding pages

    pub(super) fn find(&self, index: u64) -> Option<Arc<Page>> {
        let page = self.tree.lock().get(index).cloned()?;
        page.referenced();
        Some(page)
    }

    /// How many pages from `index` on are not there, at most `max`.
    pub(super) fn missing(&self, index: u64, max: u64) -> u64 {
        match self.tree.lock().next_page(index, index.saturating_add(max)) {
            Some(page) => (page.index - index).min(max),
            None => max,
        }
    }

    /// Whether there is a page of that number.
    pub(super) fn has(&self, index: u64) -> bool {
        self.tree.lock().get(index).is_some()
    }

    /// Adds pages in order, up to the first that is there already or has no memory; how many.
    pub(super) fn add(&self, pages: &[Arc<Page>]) -> Result<usize> {
        let mut tree = self.tree.lock();
        let mut added = 0;
        let mut result = Ok(());
        for page in pages {
            if tree.get(page.index).is_some() {
                break;
            }
            result = tree.insert(page.clone());
            if result.is_err() {
                break;
            }
            added += 1;
        }
        sched_access(core::ptr::from_ref(&self.nrpages).cast(), true);
        self.nrpages.store(tree.len(), Ordering::SeqCst);
        self.account.nr_pages.fetch_add(added, Ordering::Relaxed);
        if added == 0 { result.map(|()| 0) } else { Ok(added) }
    }

    fn find_or_add(&self, index: u64) -> Result<Arc<Page>> {
        loop {
            if let Some(page) = self.find(index) {
                return Ok(page);
            }
            let page = Page::new(index)?;
            if self.add(core::slice::from_ref(&page))? == 1 {
                return Ok(page);
            }
        }
    }

    /// Locks a page for writing when the device does not read it.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub(super) fn lock_page<'a>(&'a self, page: &'a Arc<Page>) -> LockedPage<'a> {
        PAGE_IO.might_wait();
        loop {
            let data = page.data.write();
            if !page.flags().contains(PageFlags::IO) {
                return LockedPage { mapping: self, page, data };
            }
            // Not with the lock held: readers need not wait.
            drop(data);
            self.wait_for(page, PageFlags::IO);
        }
    }

    /// Sleeps until a page has none of the marks.
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub(super) fn wait_for(&self, page: &Page, marks: PageFlags) {
        if marks.contains(PageFlags::WRITEBACK) {
            PAGE_WRITEBACK.might_wait();
        }
        PAGE_IO.might_wait();
        if page.flags().intersects(marks) {
            trace("wait_on_page_writeback");
            self.wait.wait_event(|| !page.flags().intersects(marks));
        }
    }

    /// Calls `f` with page `index` locked, its blocks that bytes `from..to` of it touch marked dirty before: `f` is to change nothing
    /// else, and leaves the page up to date. If it does not, the page is dropped.
    ///
    /// ENOMEM. Sleeps for the device at most, so a journal handle may be open.
    pub fn write_page<R>(
        &self,
        index: u64,
        from: usize,
        to: usize,
        f: impl FnOnce(&mut LockedPage<'_>) -> R,
    ) -> Result<R> {
        let blocks = PageFlags::from_bits_retain(self.blocks(from, to.min(PAGE_SIZE)));
        loop {
            let page = self.find_or_add(index)?;
            let mut locked = self.lock_page(&page);
            // Dropped before we had it: another may be in its place.
            if self.set_dirty(&page, blocks) {
                return Ok(f(&mut locked));
            }
        }
    }

    /// Calls `f` with page `index` locked, if it is there and holds data. `f` changes nothing but what the file reads as
    /// anyhow.
    pub fn with_cached_page<R>(&self, index: u64, f: impl FnOnce(&mut LockedPage<'_>) -> R) -> Option<R> {
        let page = self.find(index)?;
        let mut locked = self.lock_page(&page);
        locked.is_uptodate().then(|| f(&mut locked))
    }

    // ---- marks

    /// With the page's lock held. `false` if it is not in the cache any more.
    fn set_dirty(&self, page: &Page, blocks: PageFlags) -> bool {
        let mut tree = self.tree.lock();
        if page.flags().contains(PageFlags::GONE) {
            return false;
        }
        if !page.set(blocks).intersects(PageFlags::DIRTY) && !blocks.is_empty() {
            tree.tag(page.index, Tag::Dirty, true);
            self.count_dirty(true);
        }
        true
    }

    fn count_dirty(&self, more: bool) {
        if more {
            sched_access(core::ptr::from_ref(&self.nrdirty).cast(), true);
            self.nrdirty.fetch_add(1, Ordering::SeqCst);
            self.account.nr_dirty.fetch_add(1, Ordering::Relaxed);
        } else {
            sched_access(core::ptr::from_ref(&self.nrdirty).cast(), true);
            self.nrdirty.fetch_sub(1, Ordering::SeqCst);
            self.account.nr_dirty.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn clear_dirty_locked(&self, tree: &mut PageTree, page: &Page, blocks: PageFlags) {
        let old = page.clear(blocks & PageFlags::DIRTY);
        let dirty = old & PageFlags::DIRTY;
        if !dirty.is_empty() && blocks.contains(dirty) {
            tree.tag(page.index, Tag::Dirty, false);
            self.count_dirty(false);
        }
    }

    /// With the page's lock held: takes those of its dirty blocks that `want` says, and marks it. `None` if there are none.
    pub(super) fn start_io(&self, page: &Page, want: impl FnOnce(u32) -> u32, marks: PageFlags) -> Option<u32> {
        // Looked up without the spin lock; more blocks do not become dirty while the page is locked.
        let wanted = PageFlags::from_bits_retain(want((page.flags() & PageFlags::DIRTY).bits())) & PageFlags::DIRTY;
        let mut tree = self.tree.lock();
        let blocks = page.flags() & wanted;
        if blocks.is_empty() || page.flags().contains(PageFlags::GONE) {
            return None;
        }
        self.clear_dirty_locked(&mut tree, page, blocks);
        page.set(marks);
        tree.tag(page.index, Tag::Writeback, true);
        Some(blocks.bits())
    }

    /// Takes marks away again.
    pub(super) fn end_io(&self, page: &Page, marks: PageFlags) {
        {
            let mut tree = self.tree.lock();
            page.clear(marks);
            if !page.flags().intersects(PageFlags::IO | PageFlags::WRITEBACK) {
                tree.tag(page.index, Tag::Writeback, false);
            }
        }
        self.wait.wake_up_all();
    }

    /// The first page from `first` to `last` that is dirty or on its way to the disk.
    pub(super) fn next_unclean(&self, first: u64, last: u64) -> Option<Arc<Page>> {
        if self.nrpages() == 0 {
            return None;
        }
        self.tree.lock().next_unclean(first, last).cloned()
    }

    // ---- errors

    /// Notes that data was not written: whoever asks next for this file is told, once, and so is who asks next for all files.
    #[doc(alias = "mapping_set_error")]
    pub fn set_error(&self, error: Error) {
        // The first is the one that is told.
        for wb_err in [&self.wb_err, &self.account.wb_err] {
            let _ = wb_err.compare_exchange(0, error.to_errno(), Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// What [`AddressSpace::set_error`] noted since the last call.
    #[doc(alias = "filemap_check_errors")]
    pub fn check_errors(&self) -> Result {
        take_error(&self.wb_err)
    }

    // ---- dropping pages

    /// Takes a page out unless it has one of `unless`. The caller drops it without a spin lock held.
    fn remove(&self, page: &Arc<Page>, unless: PageFlags) -> Option<Arc<Page>> {
        let mut tree = self.tree.lock();
        self.remove_locked(&mut tree, page, unless)
    }

    fn remove_locked(&self, tree: &mut PageTree, page: &Arc<Page>, unless: PageFlags) -> Option<Arc<Page>> {
        if page.flags().intersects(unless | PageFlags::GONE) {
            return None;
        }
        self.clear_dirty_locked(tree, page, PageFlags::DIRTY);
        page.set(PageFlags::GONE);
        let gone = tree.remove(page.index);
        sched_access(core::ptr::from_ref(&self.nrpages).cast(), true);
        self.nrpages.store(tree.len(), Ordering::SeqCst);
        self.account.nr_pages.fetch_sub(1, Ordering::Relaxed);
        gone
    }

    /// Drops a page that could not be filled.
    pub(super) fn forget(&self, page: &Arc<Page>) {
        let gone = self.remove(page, PageFlags::BUSY);
        drop(gone);
    }

    /// Drops the pages of bytes `start..=end`, which are about to be, or were, written past the cache. A reader that has one goes
    /// on with what it read, but nobody finds it any more. Waits for those on their way to the disk.
    ///
    /// `false` if some are dirty: those stay, as nobody has written what they hold. Callers have them written before.
    #[doc(alias = "invalidate_inode_pages2_range")]
    pub fn invalidate_pages(&self, start: i64, end: i64) -> bool {
        let (first, last) = (start.max(0) as u64 >> PAGE_SHIFT, end.max(0) as u64 >> PAGE_SHIFT);
        let mut at = first;
        let mut all = true;
        loop {
            let Some(page) = self.tree.lock().next_page(at, last).cloned() else { return all };
            let gone = self.remove(&page, PageFlags::BUSY);
            let flags = page.flags();
            if gone.is_none() && flags.intersects(PageFlags::IO | PageFlags::WRITEBACK) {
                self.wait_for(&page, PageFlags::IO | PageFlags::WRITEBACK);
                continue;
            }
            if gone.is_none() && !flags.intersects(PageFlags::BUSY | PageFlags::GONE) {
                // It was on its way, and has arrived since.
                continue;
            }
            all &= !page.flags().intersects(PageFlags::DIRTY);
            at = page.index + 1;
        }
    }

    /// Drops pages `first..=last`, whatever they hold.
    fn drop_pages(&self, first: u64, last: u64) {
        let mut at = first;
        loop {
            let Some(page) = self.tree.lock().next_page(at, last).cloned() else { return };
            let locked = self.lock_page(&page);
            let gone = self.remove(&page, PageFlags::IO | PageFlags::WRITEBACK);
            drop(locked);
            if gone.is_none() && !page.flags().contains(PageFlags::GONE) {
                // It was on its way to the disk when we looked: if it is not any more, it is dropped at the next look.
                self.wait_for(&page, PageFlags::WRITEBACK);
                continue;
            }
            at = page.index + 1;
        }
    }

    /// Zeroes bytes `from..to` of a page in memory. Blocks wholly within have nothing to be written any more. Waits for the
    /// page if it is on its way to the disk: some of its blocks are about to be freed.
    fn zero_part(&self, index: u64, from: usize, to: usize) {
        let Some(page) = self.find(index) else { return };
        loop {
            let mut locked = self.lock_page(&page);
            if page.flags().contains(PageFlags::WRITEBACK) {
                drop(locked);
                self.wait_for(&page, PageFlags::WRITEBACK);
                continue;
            }
            // To a page that somebody is about to fill it does not matter.
            locked.bytes()[from..to].fill(0);
            let bs = 1usize << self.blkbits;
            let whole = self.blocks(from.next_multiple_of(bs), to & !(bs - 1));
            let mut tree = self.tree.lock();
            if !page.flags().contains(PageFlags::GONE) {
                self.clear_dirty_locked(&mut tree, &page, PageFlags::from_bits_retain(whole));
            }
            return;
        }
    }

    /// Bytes `start..=end` of the file are no longer there: whole pages go, parts of pages are zeroed in memory, and of both what
    /// is dirty is not written any more, as far as it is whole blocks. Waits for what is on its way to the disk. Parts of blocks that are
    /// to read as zeros from the disk, too, are the caller's to zero.
    ///
    /// Called with `i_mutex` and `invalidate_lock` held for writing, or for an inode that nobody knows; with no handle open and no
    /// page locked.
    pub fn truncate_pagecache_range(&self, start: i64, end: i64) {
        PAGE_WRITEBACK.might_wait();
        if self.nrpages() == 0 || end < start {
            return;
        }
        let (start, end) = (start.max(0) as u64, end.max(0) as u64);
        let (first, last) = (start >> PAGE_SHIFT, end >> PAGE_SHIFT);
        let from = start as usize % PAGE_SIZE;
        let to = end as usize % PAGE_SIZE + 1;
        let whole_first = first + u64::from(from != 0);
        // Exclusive, so that 0 is possible.
        let whole_end = last + u64::from(to == PAGE_SIZE);
        if whole_first < whole_end {
            self.drop_pages(whole_first, whole_end - 1);
        }
        if first == last {
            if from != 0 || to != PAGE_SIZE {
                self.zero_part(first, from, to);
            }
            return;
        }
        if from != 0 {
            self.zero_part(first, from, PAGE_SIZE);
        }
        if to != PAGE_SIZE {
            self.zero_part(last, 0, to);
        }
    }

    /// [`AddressSpace::truncate_pagecache_range`] for everything from `size` on. Called when `i_size` is `size` already, so that
    /// no page beyond is filled with anything but zeros.
    pub fn truncate_pagecache(&self, size: i64) {
        self.truncate_pagecache_range(size, i64::MAX);
    }

    /// Drops clean pages that nobody uses and that were not looked at since this came by before, at most about `max`; how many.
    #[doc(alias = "invalidate_mapping_pages")]
    pub fn shrink(&self, max: usize) -> usize {
        let mut dropped = 0;
        let mut at = 0;
        while dropped < max {
            let mut gone: heapless::Vec<Arc<Page>, 16> = heapless::Vec::new();
            {
                let mut tree = self.tree.lock();
                while !gone.is_full() {
                    let Some(page) = tree.next_page(at, u64::MAX).cloned() else { break };
                    at = page.index + 1;
                    // Whoever has it found it under this lock, and would be counted. One is ours.
                    let unused = Arc::strong_count(&page) == 2;
                    if unused
                        && !page.clear(PageFlags::REFERENCED).contains(PageFlags::REFERENCED)
                        && self.remove_locked(&mut tree, &page, PageFlags::BUSY).is_some()
                    {
                        // There is room: looked at above. It is dropped outside the lock.
                        let _ = gone.push(page);
                    }
                }
            }
            if gone.is_empty() {
                break;
            }
            dropped += gone.len();
        }
        dropped
    }

    /// Whether the mount has more dirty pages than it should.
    #[doc(alias = "balance_dirty_pages")]
    pub fn over_dirty_limit(&self) -> bool {
        self.account.nr_dirty.load(Ordering::Relaxed) > DIRTY_MAX
    }

    /// Whether the mount has more pages than it should.
    pub(super) fn over_limit(&self) -> bool {
        self.account.nr_pages.load(Ordering::Relaxed) > PAGES_MAX
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.account.nr_pages.fetch_sub(self.nrpages(), Ordering::Relaxed);
        self.account.nr_dirty.fetch_sub(self.nrdirty(), Ordering::Relaxed);
    }
}

/// Drops clean pages of the mount if there are too many: of this file's first, then of all files'. With no page locked.
#[doc(alias = "shrink_node")]
pub fn reclaim<F: FileSystem>(inode: &Inode<F>) {
    let mapping = inode.i_mapping();
    if !mapping.over_limit() {
        return;
    }
    // The first round takes from every page the mark that it was looked at.
    for _ in 0..2 {
        if mapping.shrink(PAGES_MAX / 8) > 0 && !mapping.over_limit() {
            return;
        }
        inode.i_sb().shrink_page_caches();
        if !mapping.over_limit() {
            return;
        }
    }
}
