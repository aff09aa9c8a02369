// SPDX-License-Identifier: GPL-2.0-only
//! `fallocate` in all its modes: what C has in extents.c and, for punching holes, in inode.c.
//!
//! Every mode begins alike: `i_mutex`, direct I/O stopped (`stop_direct_io`: G2, G21, G36), set-user-ID off, times. Those that take
//! blocks away or move them go on with `invalidate_lock`, so that no reader fills pages meanwhile, and drop the pages of
//! the range. Then the map is changed, under one handle or several.

use core::sync::atomic::Ordering;

use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::inode::{S_IFDIR, S_IFIFO, S_IFMT, S_IFREG};
use kernel_shim::fs::{InodeFlags as VfsFlags, InodeState};
use kernel_shim::mm::filemap::PAGE_SIZE;
use kernel_shim::sync::lockdep::syscall;
use kernel_shim::testing::{Fix, reverted, trace};

use crate::aops::{ext4_block_zero_page_range, filemap_write_and_wait_range};
use crate::ext4::{EXT_INIT_MAX_LEN, GetBlocks, Lblk, MapBlocks};
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::extents::{ext4_blocks_for_truncate, ext4_chunk_trans_blocks, ext4_ext_shift_extents};
use crate::iget::{ext4_mark_inode_dirty, ext4_mark_inode_dirty_tree};
use crate::inode::ext4_map_create_blocks;
use crate::mballoc::ext4_discard_preallocations;
use crate::setattr::{current_time, ext4_file_modified, move_size};
use crate::truncate::{ext4_remove_space, order_data, partial_tail, size_to_lblk, stop_direct_io};
use crate::{IRef, Inode, Locked};

bitflags::bitflags! {
    /// What is to be done to the range; nothing set: allocate it, and let the file grow.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FallocFlags: u32 {
        /// The size stays as it is.
        #[doc(alias = "FALLOC_FL_KEEP_SIZE")]
        const KEEP_SIZE = 0x01;
        /// Free the range. Only with `KEEP_SIZE`.
        #[doc(alias = "FALLOC_FL_PUNCH_HOLE")]
        const PUNCH_HOLE = 0x02;
        /// Remove the range; what is behind it moves down.
        #[doc(alias = "FALLOC_FL_COLLAPSE_RANGE")]
        const COLLAPSE_RANGE = 0x08;
        /// Make the range read as zeros, allocated.
        #[doc(alias = "FALLOC_FL_ZERO_RANGE")]
        const ZERO_RANGE = 0x10;
        /// Insert a hole; what is behind it moves up.
        #[doc(alias = "FALLOC_FL_INSERT_RANGE")]
        const INSERT_RANGE = 0x20;
        // What others mean nothing here, and are refused.
        const _ = !0;
    }
}

/// [`FallocFlags`] that make sense together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Allocate,
    PunchHole,
    CollapseRange,
    ZeroRange,
    InsertRange,
}

impl Mode {
    fn of(flags: FallocFlags) -> Result<Self> {
        let keep = flags.contains(FallocFlags::KEEP_SIZE);
        match (flags - FallocFlags::KEEP_SIZE, keep) {
            (FallocFlags::PUNCH_HOLE, true) => Ok(Mode::PunchHole),
            (FallocFlags::COLLAPSE_RANGE, false) => Ok(Mode::CollapseRange),
            (FallocFlags::INSERT_RANGE, false) => Ok(Mode::InsertRange),
            (FallocFlags::ZERO_RANGE, _) => Ok(Mode::ZeroRange),
            (rest, _) if rest.is_empty() => Ok(Mode::Allocate),
            _ => Err(EOPNOTSUPP),
        }
    }

    /// What would happen if it did not stop direct I/O first.
    fn waits_for(self) -> Fix {
        match self {
            Mode::Allocate => Fix::G16,
            Mode::PunchHole | Mode::ZeroRange => Fix::G2,
            Mode::CollapseRange | Mode::InsertRange => Fix::G3,
        }
    }
}

/// Bytes `start` to before `end`, within what a file can be.
#[derive(Clone, Copy)]
struct Range {
    start: i64,
    end: i64,
}

impl Range {
    /// The blocks that are wholly inside; empty if there are none.
    fn whole_blocks(self, inode: &Inode) -> Result<(Lblk, Lblk)> {
        let first = size_to_lblk(inode, self.start)?;
        let end = u32::try_from(self.end >> inode.i_blkbits()).map_err(|_| EFBIG)?;
        Ok((first, Lblk(end.max(first.0))))
    }

    /// The blocks that it touches: the first, and how many.
    fn touched_blocks(self, inode: &Inode) -> Result<(Lblk, u32)> {
        let first = u32::try_from(self.start >> inode.i_blkbits()).map_err(|_| EFBIG)?;
        Ok((Lblk(first), size_to_lblk(inode, self.end)?.0.saturating_sub(first)))
    }

    fn is_aligned(self, inode: &Inode) -> bool {
        (self.start | self.end) & ((1 << inode.i_blkbits()) - 1) == 0
    }
}

/// `fallocate`. Whether the file is open for writing is the caller's to know.
///
/// EOPNOTSUPP for a mode there is not, or not for a file without extents; EINVAL for an empty or negative range, and one that
/// `COLLAPSE_RANGE` or `INSERT_RANGE` cannot have; EFBIG; ENOSPC, with what was allocated kept; EPERM for immutable and
/// append-only files; EISDIR, ESPIPE, ENODEV for what is no regular file; EROFS; EIO. Takes the right to write, then `i_mutex`; sleeps.
pub fn ext4_fallocate(inode: &IRef, mode: FallocFlags, offset: i64, len: i64) -> Result {
    let _syscall = syscall("ext4_fallocate");
    let sb = inode.i_sb().s_fs_info();
    if offset < 0 || len <= 0 {
        return Err(EINVAL);
    }
    let keep_size = mode.contains(FallocFlags::KEEP_SIZE);
    let mode = Mode::of(mode)?;
    if sb.is_rdonly() {
        return Err(EROFS);
    }
    let append_only = inode.i_flags().contains(VfsFlags::APPEND) && mode != Mode::Allocate;
    if append_only || inode.i_flags().contains(VfsFlags::IMMUTABLE) {
        return Err(EPERM);
    }
    match inode.i_mode() & S_IFMT {
        S_IFREG => {}
        S_IFIFO => return Err(ESPIPE),
        S_IFDIR => return Err(EISDIR),
        _ => return Err(ENODEV),
    }
    let end = offset.checked_add(len).filter(|end| *end <= sb.s_maxbytes()).ok_or(EFBIG)?;
    let range = Range { start: offset, end };

    // A frozen file system stays as it is (G8).
    let _write = inode.i_sb().start_write();
    let i_mutex = inode.lock();
    let done = fallocate_locked(&i_mutex, mode, keep_size, range);
    i_mutex.unlock();
    done
}

fn fallocate_locked(i_mutex: &Locked<'_>, mode: Mode, keep_size: bool, range: Range) -> Result {
    let inode = i_mutex.inode();
    let _gate = (!reverted(mode.waits_for())).then(|| stop_direct_io(i_mutex));
    ext4_file_modified(i_mutex)?;
    // Only extents can say that a block is not written, and only they can be moved.
    if mode != Mode::PunchHole && !inode.i_private().is_extents() {
        return Err(EOPNOTSUPP);
    }
    let new_size = grows(inode, range, keep_size);
    if mode == Mode::Allocate {
        return ext4_do_fallocate(i_mutex, range, new_size);
    }
    let _exclusive = inode.i_mapping().invalidate_lock.write();
    match mode {
        Mode::Allocate => Ok(()),
        Mode::PunchHole => ext4_punch_hole(inode, range),
        Mode::ZeroRange => ext4_zero_range(i_mutex, range, new_size),
        Mode::CollapseRange => ext4_collapse_range(i_mutex, range),
        Mode::InsertRange => ext4_insert_range(i_mutex, range),
    }
}

/// The size after an allocation of `range`, if it changes one of the two sizes.
fn grows(inode: &Inode, range: Range, keep_size: bool) -> Option<i64> {
    let disksize = inode.i_private().i_disksize.load(Ordering::Acquire);
    (!keep_size && (range.end > inode.i_size() || range.end > disksize)).then_some(range.end)
}

/// The mode without a name: unwritten blocks wherever there are none.
fn ext4_do_fallocate(i_mutex: &Locked<'_>, range: Range, new_size: Option<i64>) -> Result {
    let (first, blocks) = range.touched_blocks(i_mutex)?;
    zero_old_tail(i_mutex, new_size)?;
    ext4_alloc_file_blocks(i_mutex, first, blocks, new_size, GetBlocks::CREATE_UNINIT_EXT)
}

/// If the file is about to grow, the rest of its last block becomes part of it.
fn zero_old_tail(inode: &Inode, new_size: Option<i64>) -> Result {
    let size = inode.i_size();
    if new_size.is_some_and(|new| new > size) {
        ext4_block_zero_page_range(inode, size, partial_tail(inode, size))?;
    }
    Ok(())
}

/// Allocates `len` blocks from `first` on, or converts them, as `flags` say: a handle for each piece. The file grows with what has
/// been done, to `new_size` at most, so that a full disk leaves no more and no less than was allocated.
fn ext4_alloc_file_blocks(
    i_mutex: &Locked<'_>,
    first: Lblk,
    len: u32,
    new_size: Option<i64>,
    mut flags: GetBlocks,
) -> Result {
    let inode = i_mutex.inode();
    let sb = inode.i_sb().s_fs_info();
    if len < u32::from(EXT_INIT_MAX_LEN) {
        // It fits one extent: rounded up it might become two.
        flags |= GetBlocks::NO_NORMALIZE;
    }
    let (mut at, mut left) = (first, len);
    let mut retries = 0;
    while left > 0 {
        let mut handle = ext4_journal_start(sb, ext4_chunk_trans_blocks(inode, left))?;
        if new_size.is_some() {
            // The old tail, which comes into the file with the first piece.
            order_data(&mut handle, inode)?;
        }
        let mut map = MapBlocks::new(at, left);
        let done = match ext4_map_create_blocks(&mut handle, inode, &mut map, flags) {
            // Neither more nor nothing: the loop must end.
            Ok(n) if n == 0 || n > left => Err(EIO),
            Ok(n) => {
                at = Lblk(at.0.saturating_add(n));
                left -= n;
                retries = 0;
                let end = i64::from(at.0) << inode.i_blkbits();
                ext4_update_inode_size(&mut handle, i_mutex, new_size.map(|size| size.min(end)))
            }
            Err(error) => Err(error),
        };
        let stopped = handle.stop();
        match done.and(stopped) {
            Ok(()) => trace("ext4_alloc_file_blocks: a piece"),
            // What was freed may be waiting for a commit.
            Err(ENOSPC) if sb.ext4_should_retry_alloc(&mut retries) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Moves both sizes up to `size`, never down, and writes the inode, with a new change time.
fn ext4_update_inode_size(handle: &mut Handle<'_>, i_mutex: &Locked<'_>, size: Option<i64>) -> Result {
    let inode = i_mutex.inode();
    let now = current_time(inode);
    inode.set_times(|times| times.i_ctime = now);
    let Some(size) = size else { return ext4_mark_inode_dirty(handle, inode) };
    let tree = inode.i_private().i_data_sem.write();
    if size > inode.i_size() {
        inode.set_times(|times| times.i_mtime = now);
        i_mutex.i_size_write(size);
    }
    if size > inode.i_private().i_disksize.load(Ordering::Acquire) {
        inode.i_private().i_disksize.store(size, Ordering::Release);
        inode.mark_inode_dirty(InodeState::DIRTY_DATASYNC);
    }
    ext4_mark_inode_dirty_tree(handle, inode, &tree)
}

/// What was written to pages that are about to be dropped would have moved the size on disk when it got there: it is moved now.
fn ext4_update_disksize_before_punch(inode: &Inode, range: Range) -> Result {
    let size = inode.i_size().min(range.end);
    if range.start > inode.i_size() || inode.i_private().i_disksize.load(Ordering::Acquire) >= size {
        return Ok(());
    }
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
    let written = {
        let tree = inode.i_private().i_data_sem.write();
        inode.i_private().i_disksize.fetch_max(size, Ordering::AcqRel);
        inode.mark_inode_dirty(InodeState::DIRTY_DATASYNC);
        ext4_mark_inode_dirty_tree(&mut handle, inode, &tree)
    };
    let stopped = handle.stop();
    written.and(stopped)
}

/// Where the page ends that has the byte before `at`.
fn page_end(at: i64) -> i64 {
    at.saturating_add(PAGE_SIZE as i64 - 1) / PAGE_SIZE as i64 * PAGE_SIZE as i64
}

/// Zeros what a range has of blocks that it does not wholly cover, where they are written.
fn ext4_zero_partial_blocks(inode: &Inode, range: Range) -> Result {
    let mask = (1i64 << inode.i_blkbits()) - 1;
    let (first, last) = (range.start & !mask, range.end & !mask);
    if first == last {
        return ext4_block_zero_page_range(inode, range.start, range.end - range.start);
    }
    if range.start != first {
        ext4_block_zero_page_range(inode, range.start, first + mask + 1 - range.start)?;
    }
    if range.end != last {
        ext4_block_zero_page_range(inode, last, range.end - last)?;
    }
    Ok(())
}

/// `PUNCH_HOLE`. Entered, and left, with `i_mutex` and `invalidate_lock`.
fn ext4_punch_hole(inode: &Inode, range: Range) -> Result {
    let sb = inode.i_sb().s_fs_info();
    let size = inode.i_size();
    if range.start >= size {
        return Ok(());
    }
    let max_end = if inode.i_private().is_extents() {
        sb.s_maxbytes()
    } else {
        sb.s_bitmap_maxbytes() - i64::from(sb.s_blocksize)
    };
    // Up to the end of the page that the file ends in.
    let past_eof = page_end(size);
    let end = if range.end > size { past_eof } else { range.end };
    let range = Range { start: range.start, end: end.min(max_end) };
    if range.start >= range.end {
        return Ok(());
    }
    if !inode.i_private().is_extents() {
        // A transaction that gave the file blocks here may be committed before the one that takes them away, and finds no pages then
        // whose data it could write first.
        filemap_write_and_wait_range(inode, range.start, range.end - 1)?;
    }
    ext4_update_disksize_before_punch(inode, range)?;
    inode.i_mapping().truncate_pagecache_range(range.start, range.end - 1);
    trace("pages dropped");
    let (first, end) = range.whole_blocks(inode)?;
    let mut handle = ext4_journal_start(sb, ext4_blocks_for_truncate(inode))?;
    if inode.is_sync() {
        handle.sync();
    }
    let mut done = Ok(());
    if first < end {
        ext4_discard_preallocations(inode);
        done = ext4_remove_space(&mut handle, inode, first, end);
    }
    let written = ext4_mark_inode_dirty(&mut handle, inode);
    let stopped = handle.stop();
    done.and(written).and(stopped)?;
    ext4_zero_edges(inode, range)
}

/// Zeros the edges of a range, and has the data ordered before the inode.
fn ext4_zero_edges(inode: &Inode, range: Range) -> Result {
    if range.is_aligned(inode) {
        return Ok(());
    }
    ext4_zero_partial_blocks(inode, range)?;
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
    if inode.is_sync() {
        handle.sync();
    }
    let done = order_data(&mut handle, inode).and_then(|()| ext4_mark_inode_dirty(&mut handle, inode));
    let stopped = handle.stop();
    done.and(stopped)
}

/// `ZERO_RANGE`: what is written becomes unwritten, what is missing is allocated. Entered, and left, with `i_mutex` and `invalidate_lock`.
fn ext4_zero_range(i_mutex: &Locked<'_>, range: Range, new_size: Option<i64>) -> Result {
    let inode = i_mutex.inode();
    // Before pages are dropped: it may bring one back, and the range's blocks are still there.
    zero_old_tail(inode, new_size)?;
    if !range.is_aligned(inode) {
        // The edges too get blocks, if they have none.
        let (first, blocks) = range.touched_blocks(inode)?;
        ext4_alloc_file_blocks(i_mutex, first, blocks, new_size, GetBlocks::CREATE_UNINIT_EXT)?;
    }
    ext4_update_disksize_before_punch(inode, range)?;
    inode.i_mapping().truncate_pagecache_range(range.start, range.end - 1);
    trace("pages dropped");
    let (first, end) = range.whole_blocks(inode)?;
    if first < end {
        let flags = GetBlocks::CREATE_UNINIT_EXT | GetBlocks::CONVERT_UNWRITTEN;
        ext4_alloc_file_blocks(i_mutex, first, end.0 - first.0, new_size, flags)?;
    }
    ext4_zero_edges(inode, range)
}

/// Brings all of a file's data from `start` on to the device and drops its pages, as their contents are about to be elsewhere.
fn write_and_drop_pages(inode: &Inode, start: i64) -> Result {
    let page = PAGE_SIZE as i64;
    let start = start / page * page;
    filemap_write_and_wait_range(inode, start, i64::MAX)?;
    inode.i_mapping().truncate_pagecache_range(start, i64::MAX);
    trace("pages dropped");
    Ok(())
}

/// `COLLAPSE_RANGE`. Entered, and left, with `i_mutex` and `invalidate_lock`.
fn ext4_collapse_range(i_mutex: &Locked<'_>, range: Range) -> Result {
    let inode = i_mutex.inode();
    // Up to the end or beyond it would be a truncate.
    if !range.is_aligned(inode) || range.end >= inode.i_size() {
        return Err(EINVAL);
    }
    write_and_drop_pages(inode, range.start)?;
    let (first, end) = range.whole_blocks(inode)?;
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), ext4_blocks_for_truncate(inode))?;
    if inode.is_sync() {
        handle.sync();
    }
    ext4_discard_preallocations(inode);
    let moved = ext4_remove_space(&mut handle, inode, first, end)
        .and_then(|()| ext4_ext_shift_extents(&mut handle, inode, end, end.0 - first.0, false))
        .and_then(|()| {
            let old = inode.i_size();
            move_size(&mut handle, i_mutex, old, old - (range.end - range.start))
        });
    let stopped = handle.stop();
    moved.and(stopped)
}

/// `INSERT_RANGE`. Entered, and left, with `i_mutex` and `invalidate_lock`.
fn ext4_insert_range(i_mutex: &Locked<'_>, range: Range) -> Result {
    let inode = i_mutex.inode();
    let sb = inode.i_sb().s_fs_info();
    let (old, len) = (inode.i_size(), range.end - range.start);
    if !range.is_aligned(inode) || range.start >= old {
        return Err(EINVAL);
    }
    let size = old.checked_add(len).filter(|size| *size <= sb.s_maxbytes()).ok_or(EFBIG)?;
    write_and_drop_pages(inode, range.start)?;
    let (first, end) = range.whole_blocks(inode)?;
    let mut handle = ext4_journal_start(sb, ext4_blocks_for_truncate(inode))?;
    if inode.is_sync() {
        handle.sync();
    }
    ext4_discard_preallocations(inode);
    // Longer first: nothing is lost if it stops half-way.
    let moved = move_size(&mut handle, i_mutex, old, size)
        .and_then(|()| ext4_ext_shift_extents(&mut handle, inode, first, end.0 - first.0, true));
    let stopped = handle.stop();
    moved.and(stopped)
}
