// SPDX-License-Identifier: GPL-2.0-only
//! `mm/page-writeback.c`: dirty pages on their way to the disk.
//!
//! The file system takes some dirty pages of a file ([`AddressSpace::writeback_begin`]), writes what it wants of them
//! ([`Writeback::write`]), does what must be done before they count as clean, and lets them go by dropping the [`Writeback`].

use core::ptr::NonNull;

use super::page_cache::{AddressSpace, BlockRun, PAGE_IO, PAGE_SIZE, PAGE_WRITEBACK, Page, PageFlags};
use super::readahead::BioBuilder;
use crate::alloc::{Arc, GFP_NOFS, KVec};
use crate::block::{Bdev, IoBatch, ReqOpf};
use crate::error::Result;
use crate::sync::lockdep::HeldMap;
use crate::testing::{Fix, reverted};

/// Pages in one [`Writeback`].
const BATCH: usize = 256;

/// What a [`Writeback`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritebackMode {
    /// Everything: pages that somebody else is writing are waited for, to the very end.
    Sync,
    /// What nobody else is writing.
    Background,
    /// Data alone, for a journal's commit: waits for the device, and for nothing that may wait for the commit.
    Data,
}

struct WritebackPage {
    page: Arc<Page>,
    /// Blocks that are written.
    blocks: u32,
    /// What the device reads: the page's bytes, which nobody changes as long as it bears `IO`.
    data: NonNull<u8>,
}

/// Pages in ascending order, marked; the marks go with it.
pub struct Writeback<'m> {
    mapping: &'m AddressSpace,
    pages: KVec<WritebackPage>,
    /// Which marks its pages still bear.
    marks: PageFlags,
    /// For `IO` and `WRITEBACK`, if it has a page.
    io: Option<HeldMap>,
    writeback: Option<HeldMap>,
}

impl AddressSpace {
    /// Takes dirty pages of which `want` (first block of the page, its dirty blocks as bits) takes a block, from `*at` up to `last`,
    /// and moves `*at` behind them. `None`: there are no more.
    ///
    /// ENOMEM. Called without page locks; except for `Data` with no handle open. Sleeps. `want` is called with the page locked.
    pub fn writeback_begin(
        &self,
        at: &mut u64,
        last: u64,
        mode: WritebackMode,
        mut want: impl FnMut(u64, u32) -> u32,
    ) -> Result<Option<Writeback<'_>>> {
        let marks = match mode {
            WritebackMode::Data => PageFlags::IO,
            _ => PageFlags::IO | PageFlags::WRITEBACK,
        };
        let mut batch = Writeback { mapping: self, pages: KVec::new(), marks, io: None, writeback: None };
        while *at <= last {
            let Some(page) = self.next_unclean(*at, last) else { break };
            let busy = page.flags() & marks;
            if !busy.is_empty() && mode != WritebackMode::Background {
                // Not with pages of our own marked: whoever has this one may wait for a commit, which may wait for ours.
                if batch.pages.is_empty() {
                    self.wait_for(&page, marks);
                    continue;
                }
                break;
            }
            if busy.is_empty() && !self.take_page(&mut batch, &page, &mut want)? {
                // Somebody was faster.
                continue;
            }
            *at = page.index() + 1;
            if batch.pages.len() >= BATCH {
                break;
            }
        }
        Ok(if batch.pages.is_empty() { None } else { Some(batch) })
    }

    /// `false` if the page has come to be on its way meanwhile.
    fn take_page(
        &self,
        batch: &mut Writeback<'_>,
        page: &Arc<Page>,
        want: &mut impl FnMut(u64, u32) -> u32,
    ) -> Result<bool> {
        if batch.pages.capacity() == batch.pages.len() {
            batch.pages.reserve(self.nrdirty().clamp(1, BATCH), GFP_NOFS)?;
        }
        // Not lock_page(), which would wait for the device with pages of our own marked.
        let mut data = page.data.write();
        if page.flags().intersects(batch.marks) {
            return Ok(false);
        }
        let first = self.first_block(page.index());
        if let Some(blocks) = self.start_io(page, |dirty| want(first, dirty), batch.marks) {
            let data = NonNull::from(&mut data.0).cast();
            if batch.pages.is_empty() {
                batch.writeback = batch.marks.contains(PageFlags::WRITEBACK).then(|| PAGE_WRITEBACK.hold());
                batch.io = Some(PAGE_IO.hold());
            }
            // There is room: reserved above.
            let _ = batch.pages.push(WritebackPage { page: page.clone(), blocks, data }, GFP_NOFS);
        }
        Ok(true)
    }
}

impl<'m> Writeback<'m> {
    /// Runs of neighbouring blocks that are to be written: first block and length.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let per_page = (PAGE_SIZE >> self.mapping.blkbits()) as u64;
        let mut blocks = self
            .pages
            .iter()
            .flat_map(move |p| {
                let first = self.mapping.first_block(p.page.index());
                (0..per_page).filter(move |n| p.blocks & 1 << n != 0).map(move |n| first + n)
            })
            .peekable();
        core::iter::from_fn(move || {
            let first = blocks.next()?;
            let mut len = 1;
            while blocks.next_if_eq(&(first + u64::from(len))).is_some() {
                len += 1;
            }
            Some((first, len))
        })
    }

    /// Memory of a block.
    fn block(&self, lblk: u64) -> Option<NonNull<u8>> {
        let bits = self.mapping.blkbits();
        let index = (lblk << bits) / PAGE_SIZE as u64;
        let at = self.pages.binary_search_by_key(&index, |p| p.page.index()).ok()?;
        let off = (lblk << bits) as usize % PAGE_SIZE;
        // SAFETY: within the page.
        Some(unsafe { self.pages[at].data.add(off) })
    }

    /// Writes the run of `len` blocks from `lblk` on to where `map` says they are; holes are left out. Sleeps until all is on the
    /// device. The first error of mapping or writing.
    pub fn write_run(
        &self,
        bdev: &Bdev,
        lblk: u64,
        len: u32,
        map: &mut impl FnMut(u64, u32) -> Result<BlockRun>,
    ) -> Result {
        IoBatch::run(bdev, |batch| {
            let mut bios = BioBuilder::new(batch, ReqOpf::REQ_OP_WRITE);
            let result = self.add_run(&mut bios, lblk, len, map);
            bios.submit();
            result
        })
    }

    fn add_run(
        &self,
        bios: &mut BioBuilder<'_, '_>,
        lblk: u64,
        len: u32,
        map: &mut impl FnMut(u64, u32) -> Result<BlockRun>,
    ) -> Result {
        let (mut at, end) = (lblk, lblk + u64::from(len));
        let bits = self.mapping.blkbits();
        while at < end {
            let want = (end - at) as u32;
            let BlockRun { pblk, len } = map(at, want)?;
            let len = u64::from(len.clamp(1, want));
            for (n, pblk) in pblk.into_iter().flat_map(|pblk| (0..len).map(move |n| (n, pblk + n))) {
                let Some(memory) = self.block(at + n) else { continue };
                // SAFETY: the page bears IO, so nobody changes it, and it lives as long as we do; the batch ends before.
                unsafe { bios.add(pblk << (bits - 9), memory, 1 << bits)? };
            }
            at += len;
        }
        Ok(())
    }

    /// Writes all its runs, many bios in flight. As [`Writeback::write_run`].
    pub fn write(&self, bdev: &Bdev, map: &mut impl FnMut(u64, u32) -> Result<BlockRun>) -> Result {
        IoBatch::run(bdev, |batch| {
            let mut bios = BioBuilder::new(batch, ReqOpf::REQ_OP_WRITE);
            let mut result = Ok(());
            for (lblk, len) in self.runs() {
                result = result.and(self.add_run(&mut bios, lblk, len, map));
            }
            bios.submit();
            result
        })
    }

    /// Nothing is written any more: the pages may be changed again, and be dirty again, before all is done. Called when the
    /// writes have ended, and before a journal handle is started: writers who have one wait for this.
    pub fn io_done(&mut self) {
        // WRITEBACK stays until all is done: who waits for it promises that the data is found again (G15).
        let over = if reverted(Fix::G15) { self.marks } else { PageFlags::IO };
        for p in &*self.pages {
            self.mapping.end_io(&p.page, over);
        }
        self.marks.remove(over);
        self.io = None;
    }
}

impl Drop for Writeback<'_> {
    #[doc(alias = "folio_end_writeback")]
    fn drop(&mut self) {
        for p in &*self.pages {
            self.mapping.end_io(&p.page, self.marks);
        }
    }
}
