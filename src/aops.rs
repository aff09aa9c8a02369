// SPDX-License-Identifier: GPL-2.0-only
//! `inode.c`, the part about `address_space`: buffered writes, writing back, and zeroing parts of blocks.
//!
//! # From `write()` to the disk
//!
//! A buffered write allocates its blocks at once, as *unwritten* ones, and leaves the data in the cache. Writing back puts the
//! data on the device, then converts the blocks, and in the same transaction moves the size on disk up to what is there. So whenever
//! the machine stops, a block shows its data, or zeros, or is not part of the file yet; never what was on the disk before.
//!
//! A file that is mapped by indirect blocks has no unwritten ones. There the blocks are allocated as written, and the transaction
//! that does it is not committed before the data is on the device (`data=ordered`): [`ext4_submit_inode_data`].
//!
//! A write that grows the file within a block that is written already moves the size on disk itself, in a transaction that is ordered so,
//! too: the commit may be the one that writes the page back, and moves no size.
//!
//! PORT: C reserves space and allocates when the data is written back (delayed allocation). Here ENOSPC is known when `write()`
//! returns, and nothing has to be reserved.
//!
//! # Order
//!
//! `i_mutex` → `invalidate_lock` → journal handle → page lock → `i_data_sem`. Writing back takes no `i_mutex`; it starts its handles
//! when the device has ended, since writers who have a handle open wait for that.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{GFP_NOFS, KVec};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{FileSystem, InodeState, IovIter};
use kernel_shim::mm::filemap::{
    BlockRun, PAGE_SIZE, Writeback, WritebackMode, fill_page, generic_write_checks, generic_write_sync, reclaim,
};
use kernel_shim::sched::{Point, sched_point};
use kernel_shim::testing::{Fix, reverted, trace};

use crate::ext4::{GetBlocks, InodeFlags, Lblk, MapBlocks, MapFlags};
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::extents::ext4_chunk_trans_blocks;
use crate::iget::ext4_mark_inode_dirty_tree;
use crate::inode::{ext4_map_blocks, ext4_map_create_blocks};
use crate::truncate::{ext4_truncate, order_data};
use crate::{Ext4State, Inode, Kiocb, Locked};

/// Bytes that one handle allocates for.
const CHUNK: usize = 64 * PAGE_SIZE;

fn lblk_of(lblk: u64) -> Result<Lblk> {
    u32::try_from(lblk).map(Lblk).map_err(|_| EFBIG)
}

/// A look-up; the length is at least 1 also for holes.
fn lookup(inode: &Inode, lblk: u64, len: u32) -> Result<MapBlocks> {
    let mut map = MapBlocks::new(lblk_of(lblk)?, len);
    let n = ext4_map_blocks(inode, &mut map)?;
    map.m_len = if n > 0 { n } else { map.m_len }.clamp(1, len.max(1));
    if n == 0 {
        map.m_flags = MapFlags::empty();
    }
    Ok(map)
}

/// Where blocks are read from, for the page cache. Unwritten ones hold no data. Takes `i_data_sem` for reading.
#[doc(alias = "ext4_mpage_readpages")]
pub fn ext4_read_block(inode: &Inode, lblk: u64, len: u32) -> Result<BlockRun> {
    let map = lookup(inode, lblk, len)?;
    let pblk = map.m_flags.contains(MapFlags::MAPPED).then_some(map.m_pblk.0);
    Ok(BlockRun { pblk, len: map.m_len })
}

/// Whether data of this file goes through the cache in any case: `data=journal`, for the mount or the file.
///
/// PORT: C writes such data to the journal, and then to its place. Here it goes to its place, before the metadata that shows it.
#[inline]
pub fn ext4_should_journal_data(inode: &Inode) -> bool {
    inode.i_private().i_flags().contains(InodeFlags::JOURNAL_DATA) || inode.i_sb().s_fs_info().journal_data()
}

// ---- writing into the cache

/// Buffered writes: `f_op->write` without `O_DIRECT`. Bytes written; what came before an error is told instead of it.
///
/// Takes and returns `i_mutex`; sleeps, and so EAGAIN for a kiocb that must not. ENOSPC, EFBIG, EFAULT, EIO, ENOMEM.
///
/// PORT: C answers EOPNOTSUPP to `NOWAIT`.
pub fn ext4_buffered_write_iter(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>) -> Result<usize> {
    if iocb.is_nowait() {
        return Err(EAGAIN);
    }
    let inode: &Inode = iocb.ki_filp.f_inode();
    let i_mutex = inode.lock();
    // Before the checks: what is in flight may move the end of the file, where O_APPEND goes to.
    if !reverted(Fix::G12) {
        crate::inode::ext4_dio_wait(&i_mutex);
    }
    let Some(range) = generic_write_checks(iocb, &i_mutex, iter)? else { return Ok(0) };
    crate::Ext4::file_remove_privs(iocb, &i_mutex)?;
    i_mutex.file_update_time();
    let ret = ext4_perform_write(iocb, &i_mutex, iter);
    i_mutex.unlock();
    match ret {
        Ok(n @ 1..) => generic_write_sync(iocb, range.pos, n).map(|()| n),
        ret => ret,
    }
}

/// Writes `iter` at `ki_pos` into the cache, as far as it goes, and moves `ki_pos`. Entered and left with `i_mutex`, after the checks.
#[doc(alias = "generic_perform_write")]
pub fn ext4_perform_write(iocb: &mut Kiocb<'_>, i_mutex: &Locked<'_>, iter: &mut IovIter<'_>) -> Result<usize> {
    let inode = i_mutex.inode();
    // A direct write in flight and a page that is written back later would meet on the device in any order, and its end would
    // find a dirty page to drop (G12). With i_mutex held no new one leaves it.
    if !reverted(Fix::G12) {
        crate::inode::ext4_dio_wait(i_mutex);
    }
    let old_size = inode.i_size();
    if iocb.ki_pos > old_size {
        ext4_zero_old_tail(inode, old_size)?;
    }
    let mut done = 0;
    let result = loop {
        if iter.count() == 0 {
            break Ok(());
        }
        match ext4_write_chunk(i_mutex, iocb.ki_pos, iter) {
            Ok(n) => {
                iocb.ki_pos += n as i64;
                done += n;
            }
            Err(error) => break Err(error),
        }
        reclaim(inode);
        ext4_balance_dirty_pages(inode);
    };
    if result.is_err() && iocb.ki_pos.saturating_add(iter.count() as i64) > inode.i_size() {
        ext4_truncate_failed_write(inode);
    }
    match result {
        Err(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}

/// The rest of the last block is about to be inside the file. It reads as zeros in the cache anyhow; on the device it may be
/// anything that somebody left there.
fn ext4_zero_old_tail(inode: &Inode, old_size: i64) -> Result {
    let bs = 1i64 << inode.i_blkbits();
    match old_size % bs {
        0 => Ok(()),
        used => ext4_block_zero_page_range(inode, old_size, bs - used),
    }
}

/// A writer that has filled the cache empties it: its own file first, and if that does not help, everybody's.
#[doc(alias = "balance_dirty_pages_ratelimited")]
fn ext4_balance_dirty_pages(inode: &Inode) {
    if !inode.i_mapping().over_dirty_limit() {
        return;
    }
    // An error is noted in the mapping, and told to whoever syncs it.
    let _ = ext4_writepages(inode, 0, i64::MAX, true);
    if inode.i_mapping().over_dirty_limit() {
        let _ = inode.i_sb().for_each_dirty(|inode| ext4_writepages(inode, 0, i64::MAX, false));
    }
}

/// A write that failed may have left blocks, and pages, past the end of the file: they go. Entered with `i_mutex`.
fn ext4_truncate_failed_write(inode: &Inode) {
    let _exclusive = inode.i_mapping().invalidate_lock.write();
    inode.i_mapping().truncate_pagecache(inode.i_size());
    // If it fails they stay: unwritten, or not part of the file for its size.
    let _ = ext4_truncate(inode);
}

/// One stretch of a write: up to [`CHUNK`] bytes, with one handle. Bytes written, at least 1.
fn ext4_write_chunk(i_mutex: &Locked<'_>, pos: i64, iter: &mut IovIter<'_>) -> Result<usize> {
    let inode = i_mutex.inode();
    let sbi = inode.i_sb().s_fs_info();
    // Before any lock below i_mutex: a page fault may need them (G6).
    let present = iter.fault_in();
    let len = iter.count().min(present).min(CHUNK - pos as usize % CHUNK);
    if len == 0 {
        return Err(EFAULT);
    }
    let end = pos + len as i64;
    for edge in [pos, end] {
        if edge % PAGE_SIZE as i64 != 0 && edge - edge % (PAGE_SIZE as i64) < inode.i_size() {
            ext4_read_edge(inode, edge as u64 / PAGE_SIZE as u64)?;
        }
    }
    let mut retries = 0;
    loop {
        match ext4_write_begin_end(i_mutex, pos, len, iter) {
            Err(ENOSPC) if sbi.ext4_should_retry_alloc(&mut retries) => {}
            ret => return ret,
        }
    }
}

/// A page of which a part is about to be written is brought up to date, before there is a handle that would wait with it.
fn ext4_read_edge(inode: &Inode, index: u64) -> Result {
    let mapping = inode.i_mapping();
    if mapping.with_cached_page(index, |_| ()).is_some() {
        return Ok(());
    }
    let _shared = mapping.invalidate_lock.read();
    mapping.write_page(index, 0, 0, |page| fill_page(inode, page))?
}

/// Allocates and copies. Bytes written, at least 1.
#[doc(alias = "ext4_write_begin")]
#[doc(alias = "ext4_write_end")]
fn ext4_write_begin_end(i_mutex: &Locked<'_>, pos: i64, len: usize, iter: &mut IovIter<'_>) -> Result<usize> {
    let inode = i_mutex.inode();
    let bits = inode.i_blkbits();
    let first = pos as u64 >> bits;
    let end = (pos as u64 + len as u64).div_ceil(1 << bits);
    if ext4_blocks_there(inode, first, end)? == end {
        // Nothing to allocate: no journal, unless the size has to move. With i_mutex held nobody takes them away.
        let copied = at_least_one(ext4_copy_pages(i_mutex, pos, len, iter)?)?;
        if ext4_da_should_update_i_disksize(inode, pos + copied as i64)? {
            let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
            let moved = ext4_update_disksize_ordered(&mut handle, inode, pos + copied as i64);
            let stopped = handle.stop();
            moved.and(stopped)?;
        }
        return Ok(copied);
    }
    let credits = ext4_chunk_trans_blocks(inode, (end - first) as u32);
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), credits)?;
    let (there, allocated) = ext4_allocate_range(&mut handle, inode, first, end, credits);
    let room = ((there << bits) as i64 - pos).clamp(0, len as i64) as usize;
    let copied = if room > 0 { ext4_copy_pages(i_mutex, pos, room, iter) } else { Ok(0) };
    let moved = match &copied {
        Ok(n @ 1..) => {
            let end = pos + *n as i64;
            // Without extents what was allocated counts as written.
            let shows =
                if inode.i_private().is_extents() { ext4_da_should_update_i_disksize(inode, end) } else { Ok(true) };
            shows.and_then(|shows| if shows { ext4_update_disksize_ordered(&mut handle, inode, end) } else { Ok(()) })
        }
        _ => Ok(()),
    };
    let stopped = handle.stop();
    match copied? {
        0 => Err(allocated.and(stopped).err().unwrap_or(EFAULT)),
        n => moved.and(stopped).map(|()| n),
    }
}

/// Whether a write up to byte `end` has to move the size on disk itself. If its last block is unwritten, whoever writes that back
/// does it ([`ext4_end_io`]). One that is written the journal's commit may write back, too, which can move nothing
/// ([`ext4_submit_inode_data`]): the page would be clean, and the bytes past the old size lost with the page.
fn ext4_da_should_update_i_disksize(inode: &Inode, end: i64) -> Result<bool> {
    if end <= inode.i_private().i_disksize.load(Ordering::Acquire) {
        return Ok(false);
    }
    let last = lookup(inode, (end - 1) as u64 >> inode.i_blkbits(), 1)?;
    Ok(last.m_flags.contains(MapFlags::MAPPED) && !last.m_flags.contains(MapFlags::UNWRITTEN))
}

/// [`ext4_update_disksize`] for data that is in the page cache, in written blocks: these show what they hold when the file has them and
/// the size says so, at the latest, so the data goes first.
fn ext4_update_disksize_ordered(handle: &mut Handle<'_>, inode: &Inode, end: i64) -> Result {
    order_data(handle, inode)?;
    ext4_update_disksize(handle, inode, end)
}

fn at_least_one(n: usize) -> Result<usize> {
    if n > 0 { Ok(n) } else { Err(EFAULT) }
}

/// Up to which block all from `first` on have a place on the device, at most `end`.
fn ext4_blocks_there(inode: &Inode, first: u64, end: u64) -> Result<u64> {
    let mut at = first;
    while at < end {
        let map = lookup(inode, at, (end - at) as u32)?;
        if !map.m_flags.intersects(MapFlags::MAPPED | MapFlags::UNWRITTEN) {
            break;
        }
        at += u64::from(map.m_len);
    }
    Ok(at)
}

/// Allocates what is missing of blocks `first..end`. Up to where it got, and what stopped it.
fn ext4_allocate_range(handle: &mut Handle<'_>, inode: &Inode, first: u64, end: u64, credits: u32) -> (u64, Result) {
    let flags = if inode.i_private().is_extents() { GetBlocks::CREATE_UNINIT_EXT } else { GetBlocks::CREATE };
    let mut at = first;
    while at < end {
        // What is there needs no credits.
        match ext4_blocks_there(inode, at, end) {
            Ok(there) if there > at => {
                at = there;
                continue;
            }
            Ok(_) => {}
            Err(error) => return (at, Err(error)),
        }
        let done = handle.ensure_credits(credits, credits).and_then(|room| match room {
            // The caller comes again with a new handle.
            false if at > first => Ok(None),
            _ => {
                let mut map = MapBlocks::new(lblk_of(at)?, (end - at) as u32);
                ext4_map_create_blocks(handle, inode, &mut map, flags).map(Some)
            }
        });
        match done {
            Ok(Some(n @ 1..)) => at += u64::from(n),
            Ok(Some(0)) => return (at, Err(EIO)),
            Ok(None) => return (at, Ok(())),
            Err(error) => return (at, Err(error)),
        }
        ext4_note_change(handle, inode);
    }
    (at, Ok(()))
}

/// The map or the size was changed: fdatasync has to wait for this transaction.
#[doc(alias = "ext4_update_inode_fsync_trans")]
fn ext4_note_change(handle: &Handle<'_>, inode: &Inode) {
    if !handle.is_valid() {
        inode.i_private().state_set(Ext4State::UNSYNCED_META);
    }
    handle.note_inode(inode.i_private(), InodeState::DIRTY_DATASYNC);
}

/// Copies into pages that have their blocks; bytes copied, which may be fewer if memory is missing on either side.
fn ext4_copy_pages(i_mutex: &Locked<'_>, pos: i64, len: usize, iter: &mut IovIter<'_>) -> Result<usize> {
    let inode = i_mutex.inode();
    let mut done = 0;
    while done < len {
        let at = pos as usize + done;
        let (index, off) = (at as u64 / PAGE_SIZE as u64, at % PAGE_SIZE);
        let n = (len - done).min(PAGE_SIZE - off);
        let copied = inode.i_mapping().write_page(index, off, off + n, |page| {
            let whole = n == PAGE_SIZE && !page.is_uptodate();
            if !whole {
                fill_page(inode, page)?;
            }
            let before = iter.clone();
            let copied = iter.copy_from_iter(page.bytes().get_mut(off..off + n).ok_or(EIO)?);
            if whole {
                if copied < n {
                    // The rest of the page holds nothing: it is as if nothing had been copied.
                    *iter = before;
                    return Ok(0);
                }
                page.set_uptodate();
            }
            // With the page locked: whoever writes it back finds it inside the file.
            let end = pos + (done + copied) as i64;
            if end > i_mutex.i_size() {
                i_mutex.i_size_write(end);
            }
            Ok(copied)
        });
        match copied.and_then(|copied| copied) {
            Ok(copied) => {
                done += copied;
                if copied < n {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

// ---- writing back

/// Writes dirty pages of bytes `start..=end`. With `sync`, when it returns all that was dirty when it was called is on the device,
/// and the file knows, also what others were writing; else what others write is left to them.
///
/// The first error, which is noted in the mapping as well. Takes no `i_mutex`; called with no handle open and no page locked. Sleeps.
pub fn ext4_writepages(inode: &Inode, start: i64, end: i64, sync: bool) -> Result {
    let mapping = inode.i_mapping();
    let page_of = |byte: i64| byte.max(0) as u64 / PAGE_SIZE as u64;
    let (mut at, last) = (page_of(start), page_of(end));
    let mode = if sync { WritebackMode::Sync } else { WritebackMode::Background };
    let mut result = Ok(());
    loop {
        let inside = |first, dirty| ext4_inside(inode, first, dirty);
        match mapping.writeback_begin(&mut at, last, mode, inside) {
            Ok(Some(batch)) => result = result.and(ext4_write_batch(inode, batch)),
            Ok(None) => return result,
            Err(error) => return result.and(Err(error)),
        }
    }
}

/// [`ext4_writepages`] for whoever is about to go past the cache, or promises durability.
pub fn filemap_write_and_wait_range(inode: &Inode, start: i64, end: i64) -> Result {
    if inode.i_mapping().is_dirty() { ext4_writepages(inode, start, end, true) } else { Ok(()) }
}

/// Of a page's blocks from `first` on, `dirty` as bits, those that are inside the file. Others are about to be truncated.
fn ext4_inside(inode: &Inode, first: u64, dirty: u32) -> u32 {
    let end = (inode.i_size().max(0) as u64).div_ceil(1 << inode.i_blkbits());
    let inside = end.saturating_sub(first).min(31);
    dirty & ((1u32 << inside) - 1)
}

/// Unwritten blocks of a file are on their way to being written as long as this lives: nobody zeroes the rest of their extents, which
/// could overtake the data (G16, G29).
struct Unwritten<'i>(&'i Inode);

impl<'i> Unwritten<'i> {
    fn begin(inode: &'i Inode) -> Self {
        let count = &inode.i_private().i_unwritten;
        sched_point(Point::Atomic, core::ptr::from_ref(count).cast());
        count.fetch_add(1, Ordering::AcqRel);
        Self(inode)
    }
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        // On every way out, also after errors (G32).
        let count = &self.0.i_private().i_unwritten;
        sched_point(Point::Atomic, core::ptr::from_ref(count).cast());
        count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Writes a batch, converts what was unwritten, and moves the size on disk.
#[doc(alias = "ext4_end_io_end")]
fn ext4_write_batch(inode: &Inode, mut batch: Writeback<'_>) -> Result {
    let bdev = inode.i_sb().s_bdev();
    let _unwritten = Unwritten::begin(inode);
    let mut map = |lblk, len| ext4_writeback_block(inode, lblk, len);
    let mut bad: KVec<u64> = KVec::new();
    let mut result = batch.write(bdev, &mut map);
    if result.is_err() {
        // Which of them? What cannot be written is not converted (G30); the rest is.
        for (lblk, len) in batch.runs() {
            if batch.write_run(bdev, lblk, len, &mut map).is_err() && bad.push(lblk, GFP_NOFS).is_err() {
                inode.i_mapping().set_error(EIO);
                return Err(EIO);
            }
        }
        if bad.is_empty() {
            // It was written after all.
            result = Ok(());
        }
    }
    batch.io_done();
    trace("ext4_write_batch: on the device");
    for (lblk, len) in batch.runs().filter(|(lblk, _)| !bad.contains(lblk)) {
        result = result.and(ext4_end_io(inode, lblk, lblk + u64::from(len)));
    }
    if let Err(error) = result {
        // The data stays in the cache, and is clean: as in C, nobody tries again unless it is written again.
        inode.i_mapping().set_error(error);
    }
    result
}

/// Where a dirty block goes. All have their places: they were allocated before they became dirty, and who takes them away drops
/// the page first, or waits for us.
fn ext4_writeback_block(inode: &Inode, lblk: u64, len: u32) -> Result<BlockRun> {
    let map = lookup(inode, lblk, len)?;
    if !map.m_flags.intersects(MapFlags::MAPPED | MapFlags::UNWRITTEN) {
        return Err(EIO);
    }
    Ok(BlockRun { pblk: Some(map.m_pblk.0), len: map.m_len })
}

/// Blocks `at..end` are on the device: now they may be seen. Each piece in a transaction of its own, with the size.
fn ext4_end_io(inode: &Inode, mut at: u64, end: u64) -> Result {
    let bits = inode.i_blkbits();
    while at < end {
        let map = lookup(inode, at, (end - at) as u32)?;
        at += if map.m_flags.contains(MapFlags::UNWRITTEN) {
            ext4_convert_and_size(inode, map)?
        } else {
            u64::from(map.m_len)
        };
    }
    let size = inode.i_size().min((end << bits) as i64);
    if size > inode.i_private().i_disksize.load(Ordering::Acquire) {
        let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
        let updated = ext4_update_disksize(&mut handle, inode, (end << bits) as i64);
        let stopped = handle.stop();
        updated.and(stopped)?;
    }
    Ok(())
}

/// Converts the first blocks of an unwritten piece, and moves the size on disk behind them, in one transaction: so that a size
/// that is on disk is never past what is there (G24, G26). How many blocks.
#[doc(alias = "ext4_convert_unwritten_extents")]
fn ext4_convert_and_size(inode: &Inode, piece: MapBlocks) -> Result<u64> {
    let credits = ext4_chunk_trans_blocks(inode, piece.m_len);
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), credits)?;
    let mut map = MapBlocks::new(piece.m_lblk, piece.m_len);
    let done = ext4_map_create_blocks(&mut handle, inode, &mut map, GetBlocks::IO_CONVERT_EXT).and_then(|n| {
        if n == 0 {
            return Err(EIO);
        }
        ext4_note_change(&handle, inode);
        let end = (u64::from(piece.m_lblk.0) + u64::from(n)) << inode.i_blkbits();
        ext4_update_disksize(&mut handle, inode, end as i64)?;
        Ok(u64::from(n))
    });
    let stopped = handle.stop();
    done.and_then(|n| stopped.map(|()| n))
}

/// Data up to byte `end` is on the device, or goes there before this transaction is committed: the size on disk may say so, as far as it
/// is the size. Never backwards.
///
/// Both sizes are looked at with `i_data_sem` held for writing, as whoever changes them does (G27).
#[doc(alias = "ext4_update_i_disksize")]
fn ext4_update_disksize(handle: &mut Handle<'_>, inode: &Inode, end: i64) -> Result {
    let info = inode.i_private();
    let look = || Some(inode.i_size().min(end)).filter(|size| *size > info.i_disksize.load(Ordering::Acquire));
    let early = reverted(Fix::G27).then(look);
    trace("ext4_update_disksize");
    let tree = info.i_data_sem.write();
    let Some(size) = early.unwrap_or_else(look) else { return Ok(()) };
    info.i_disksize.store(size, Ordering::Release);
    inode.mark_inode_dirty(InodeState::DIRTY_SYNC | InodeState::DIRTY_DATASYNC);
    ext4_mark_inode_dirty_tree(handle, inode, &tree)
}

/// For the journal's commit: writes what is dirty and has written blocks, and waits for the device. Blocks that are unwritten show
/// nothing until they are converted, and stay as they are: converting takes a handle, which nobody can have now.
///
/// Takes page locks, and `i_data_sem` for reading. The first error, which is noted in the mapping as well.
#[doc(alias = "ext4_journal_submit_inode_data_buffers")]
#[doc(alias = "jbd2_journal_finish_inode_data_buffers")]
pub fn ext4_submit_inode_data(inode: &Inode) -> Result {
    let mapping = inode.i_mapping();
    let mut at = 0;
    let mut result = Ok(());
    loop {
        let written = |first, dirty| ext4_written(inode, first, dirty);
        match mapping.writeback_begin(&mut at, u64::MAX, WritebackMode::Data, written) {
            Ok(Some(batch)) => {
                let done = batch.write(inode.i_sb().s_bdev(), &mut |lblk, len| ext4_writeback_block(inode, lblk, len));
                if let Err(error) = done {
                    mapping.set_error(error);
                }
                result = result.and(done);
            }
            Ok(None) => return result,
            Err(error) => return result.and(Err(error)),
        }
    }
}

/// Of a page's dirty blocks those that are written, and inside the file.
fn ext4_written(inode: &Inode, first: u64, dirty: u32) -> u32 {
    let dirty = ext4_inside(inode, first, dirty);
    let (mut n, mut written) = (0, 0);
    while n < 8 && dirty >> n != 0 {
        // One that cannot be looked up is not written by this commit; whoever syncs the file hears of it.
        let Ok(map) = lookup(inode, first + u64::from(n), 8 - n) else { return written };
        let run = ((1u32 << map.m_len.min(8)) - 1) << n;
        if map.m_flags.contains(MapFlags::MAPPED) {
            written |= run;
        }
        n += map.m_len.min(8);
    }
    dirty & written
}

// ---- zeroing

/// Bytes `from..from + len`, within one block, read as zeros from now on, in the cache and, when it is written back, on the disk. A
/// block that holds no data on the disk needs nothing there.
///
/// A caller whose transaction relies on the zeros has them ordered before it (`order_data`). Called with `i_mutex`, or for an inode
/// that nobody knows; without page locks or `i_data_sem`; a handle may be open. EIO, ENOMEM. Sleeps.
#[doc(alias = "__ext4_block_zero_page_range")]
#[doc(alias = "ext4_block_truncate_page")]
pub fn ext4_block_zero_page_range(inode: &Inode, from: i64, len: i64) -> Result {
    if len <= 0 || from < 0 {
        return Ok(());
    }
    let mapping = inode.i_mapping();
    let bs = 1usize << inode.i_blkbits();
    let (index, off) = (from as u64 / PAGE_SIZE as u64, from as usize % PAGE_SIZE);
    let room = bs - off % bs;
    let to = off + usize::try_from(len).map_or(room, |len| len.min(room));
    let map = lookup(inode, from as u64 >> inode.i_blkbits(), 1)?;
    if !map.m_flags.contains(MapFlags::MAPPED) {
        // If it is dirty it stays so, with its zeros.
        mapping.with_cached_page(index, |page| page.bytes().get_mut(off..to).map(|bytes| bytes.fill(0)));
        return Ok(());
    }
    mapping.write_page(index, off, to, |page| -> Result {
        fill_page(inode, page)?;
        page.bytes().get_mut(off..to).ok_or(EIO)?.fill(0);
        Ok(())
    })?
}
