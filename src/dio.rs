// SPDX-License-Identifier: GPL-2.0-only
//! Direct writes that change more than data: into holes and unwritten blocks, and past the end of the file.
//!
//! C has this in `inode.c` (`ext4_get_block_write`, `ext4_ind_direct_IO`), `page-io.c` and `extents.c`
//! (`ext4_convert_unwritten_extents`), and since 2019 in `file.c` (`ext4_handle_inode_extension`).
//!
//! # A write into blocks that hold no data
//!
//! 1. [`ext4_dio_alloc`], before the first bio: holes get blocks, as *unwritten* ones, and unwritten extents are split at the
//!    write's borders (so that converting them cannot fail for want of a block, G29). From now on mapping is a look-up.
//! 2. The data goes to the device.
//! 3. [`ext4_end_io_dio`](crate::page_io::ext4_end_io_dio): if all went well, exactly the blocks written become written (G30). Nobody
//!    ever sees a block's old contents, whatever fails, and whenever.
//!
//! PORT: C allocates while it submits, and leaves word in an `io_end` that submission and completion share (G4, G5).
//!
//! # A write past the end
//!
//! The inode is on the list of orphans from before the first block is allocated until no extending write is in flight, so that
//! recovery gives back what lies past `i_disksize`. The size moves when the data is there, `i_disksize` in the transaction that
//! converts the blocks, and only outwards: of several in flight the last to end may be the first in the file. If one fails, what
//! it had allocated is given back by a worker that takes `i_mutex`, which no completion may wait for (G14).

use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::InodeState;
use kernel_shim::warn_on;

use crate::ext4::{GetBlocks, Lblk, MapBlocks, MapFlags};
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::extents::ext4_chunk_trans_blocks;
use crate::iget::ext4_mark_inode_dirty_tree;
use crate::inode::{ext4_map_blocks, ext4_map_convert_blocks, ext4_map_create_blocks};
use crate::orphan::{ORPHAN_CREDITS, ext4_orphan_add, ext4_orphan_del};
use crate::{IRef, Inode};

/// Blocks that one handle allocates or converts at most.
const DIO_CHUNK_BLOCKS: u64 = 4096;

/// The blocks of bytes `pos..pos + len`: the first, and the one behind the last. `EFBIG` past what a file can have.
pub(crate) fn block_range(inode: &Inode, pos: i64, len: usize) -> Result<(u64, u64)> {
    let blkbits = inode.i_blkbits();
    let end = u64::try_from(pos).map_err(|_| EINVAL)?.checked_add(len as u64).ok_or(EFBIG)?;
    let last = end.checked_add((1 << blkbits) - 1).ok_or(EFBIG)? >> blkbits;
    if last > u64::from(u32::MAX) { Err(EFBIG) } else { Ok((pos as u64 >> blkbits, last)) }
}

/// What [`ext4_dio_alloc`] did.
#[derive(Clone, Copy, Debug)]
pub struct DioAlloc {
    /// Bytes from the start that have blocks now.
    pub bytes: usize,
    /// Some of them are unwritten, and have to be converted when the data is there.
    pub unwritten: bool,
}

/// Gives the blocks of a write places: what is missing is allocated, as unwritten blocks if the file has extents. If space gives out
/// half-way the write is cut to what there is.
///
/// `extend`: the write moves the end of the file, and puts the inode on the list of orphans first. Called with whatever keeps
/// truncate away (`i_mutex`, or the count), and without a handle. ENOSPC, EIO, EFBIG. Sleeps.
pub fn ext4_dio_alloc(inode: &Inode, pos: i64, len: usize, extend: bool) -> Result<DioAlloc> {
    let blkbits = inode.i_blkbits();
    let (first, end) = block_range(inode, pos, len)?;
    let mut unwritten = false;
    let mut orphan = extend;
    let mut at = first;
    while at < end {
        let left = (end - at).min(DIO_CHUNK_BLOCKS) as u32;
        let mut map = MapBlocks::new(Lblk(at as u32), left);
        let n = ext4_map_blocks(inode, &mut map)?;
        if n > 0 && map.m_flags.contains(MapFlags::MAPPED) && !orphan {
            at += u64::from(n);
            continue;
        }
        match ext4_dio_alloc_chunk(inode, at, left, core::mem::take(&mut orphan)) {
            Ok(map) => {
                unwritten |= map.m_flags.contains(MapFlags::UNWRITTEN);
                at += u64::from(map.m_len);
            }
            // What has blocks is written, and reported.
            Err(ENOSPC) if at > first => break,
            Err(e) => return Err(e),
        }
    }
    let bytes = ((at << blkbits) - pos as u64).min(len as u64);
    Ok(DioAlloc { bytes: bytes as usize, unwritten })
}

/// One handle's part of [`ext4_dio_alloc`].
fn ext4_dio_alloc_chunk(inode: &Inode, at: u64, len: u32, orphan: bool) -> Result<MapBlocks> {
    let sb = inode.i_sb().s_fs_info();
    let flags = if inode.i_private().is_extents() { GetBlocks::IO_CREATE_EXT } else { GetBlocks::CREATE };
    let credits = ext4_chunk_trans_blocks(inode, len) + if orphan { ORPHAN_CREDITS } else { 0 };
    let mut retries = 0;
    loop {
        let mut map = MapBlocks::new(Lblk(at as u32), len);
        let mut handle = ext4_journal_start(sb, credits)?;
        let done = if orphan { inode.i_private().aio.orphan_add(&mut handle, inode) } else { Ok(()) }
            .and_then(|()| ext4_map_create_blocks(&mut handle, inode, &mut map, flags));
        let stopped = handle.stop();
        match done {
            Ok(0) => {
                warn_on!(true, "inode {}: no blocks for {at}", inode.i_ino());
                return Err(EIO);
            }
            Ok(n) => {
                map.m_len = n;
                return stopped.map(|()| map);
            }
            // Blocks that were freed a moment ago may be had after the next commit.
            Err(ENOSPC) if sb.ext4_should_retry_alloc(&mut retries) => {}
            Err(e) => return Err(e),
        }
    }
}

/// After the data of bytes `offset..offset + len` is on the device: their unwritten blocks become written, and, with `extends`, the
/// file reaches to their end, on disk in the same transaction as the last of them.
///
/// Called from a completion that may sleep, counted in flight, without a handle. EIO, EROFS if the journal was aborted.
#[doc(alias = "ext4_handle_inode_extension")]
pub fn ext4_convert_unwritten_extents(
    inode: &Inode,
    offset: i64,
    len: usize,
    unwritten: bool,
    extends: bool,
) -> Result {
    let sb = inode.i_sb().s_fs_info();
    let (mut at, end) = block_range(inode, offset, len)?;
    let size = extends.then(|| offset.saturating_add(len as i64));
    if !unwritten {
        at = end;
    }
    loop {
        let len_blocks = end.saturating_sub(at).min(DIO_CHUNK_BLOCKS) as u32;
        let mut handle = ext4_journal_start(sb, ext4_chunk_trans_blocks(inode, len_blocks.max(1)) + ORPHAN_CREDITS)?;
        let mut done = Ok(());
        if len_blocks > 0 {
            let mut map = MapBlocks::new(Lblk(at as u32), len_blocks);
            let last = at + u64::from(len_blocks) >= end;
            match ext4_map_convert_blocks(&mut handle, inode, &mut map, size.filter(|_| last)) {
                Ok(n @ 1..) => at += u64::from(n),
                Ok(0) => done = Err(EIO),
                Err(e) => done = Err(e),
            }
        } else if let Some(size) = size {
            done = ext4_update_size(&mut handle, inode, size);
        }
        let stopped = handle.stop();
        done.and(stopped)?;
        if at >= end {
            return Ok(());
        }
    }
}

/// Moves the end of the file, on disk and in memory, outwards to `size`. Takes `i_data_sem` for writing.
fn ext4_update_size(handle: &mut Handle<'_>, inode: &Inode, size: i64) -> Result {
    let tree = inode.i_private().i_data_sem.write();
    extend_sizes(inode, size);
    ext4_mark_inode_dirty_tree(handle, inode, &tree)
}

/// Moves both sizes outwards, under `i_data_sem` for writing. Each by itself: writeback may have moved one of them already, and another
/// write past the end may have moved both (G26, G27). The caller writes the inode.
#[doc(alias = "ext4_update_inode_size")]
pub(crate) fn extend_sizes(inode: &Inode, size: i64) {
    use core::sync::atomic::Ordering;
    inode.i_private().i_disksize.fetch_max(size, Ordering::AcqRel);
    inode.i_size_extend(size);
    inode.mark_inode_dirty(InodeState::DIRTY_DATASYNC);
}

/// What extending writes in flight have in common: see [`AioInfo`](crate::page_io::AioInfo).
#[derive(Debug)]
pub(crate) struct Extending {
    /// How many there are.
    count: u32,
    /// How far the last of them reaches, in bytes: where a write with `O_APPEND` goes.
    end: i64,
    /// They have put the inode on the list of orphans.
    orphan: bool,
    /// One has failed: there may be blocks past the end.
    trim: bool,
}

impl Extending {
    /// None in flight.
    pub(crate) const NONE: Self = Self { count: 0, end: 0, orphan: false, trim: false };
}

impl crate::page_io::AioInfo {
    /// A write that ends at byte `end`, past the end of the file, is about to leave. Called with `i_mutex`.
    pub(crate) fn extend_begin(&self, end: i64) {
        let mut extending = self.extending.lock();
        extending.end = if extending.count == 0 { end } else { extending.end.max(end) };
        extending.count += 1;
    }

    /// Where the file will end if all that is in flight succeeds. Called with `i_mutex`.
    pub(crate) fn append_pos(&self, i_size: i64) -> i64 {
        let extending = self.extending.lock();
        if extending.count == 0 { i_size } else { extending.end.max(i_size) }
    }

    fn orphan_add(&self, handle: &mut Handle<'_>, inode: &Inode) -> Result {
        let mut extending = self.extending.lock();
        if !extending.orphan {
            ext4_orphan_add(handle, inode)?;
            extending.orphan = true;
        }
        Ok(())
    }

    /// A write past the end has ended; `trim` if it may have left blocks there. Whether somebody has to give them back, with
    /// [`ext4_dio_trim`]. Counted in flight still, without a handle. Sleeps.
    pub(crate) fn extend_end(&self, inode: &Inode, trim: bool) -> bool {
        let sb = inode.i_sb().s_fs_info();
        {
            let mut extending = self.extending.lock();
            extending.trim |= trim;
            if extending.count > 1 || extending.trim || !extending.orphan {
                extending.count -= 1;
                return extending.count == 0 && extending.trim;
            }
        }
        // The last one. Another may come and go meanwhile, so the state is looked at again below the handle.
        let handle = ext4_journal_start(sb, ORPHAN_CREDITS);
        let mut extending = self.extending.lock();
        extending.count -= 1;
        if extending.count == 0 && extending.orphan && !extending.trim {
            extending.orphan = false;
            orphan_done(handle, inode);
        }
        extending.count == 0 && extending.trim
    }
}

/// Off the list of orphans, unless the inode belongs there for another reason. If the journal is no more, in memory only.
fn orphan_done(handle: Result<Handle<'_>>, inode: &Inode) {
    let mut handle = handle.ok();
    if inode.i_nlink() == 0 {
        return;
    }
    let mut done = ext4_orphan_del(handle.as_mut(), inode);
    // Unlinked between the two looks: whoever did that found it on the list and left it there.
    if inode.i_nlink() == 0
        && let Some(handle) = handle.as_mut()
    {
        done = done.and(ext4_orphan_add(handle, inode));
    }
    if let Some(handle) = handle {
        done = done.and(handle.stop());
    }
    // The list has it until the next mount looks, which finds nothing to do.
    warn_on!(done.is_err() && !inode.i_sb().s_fs_info().is_rdonly(), "inode {} stays an orphan", inode.i_ino());
}

/// Gives back what failed writes have allocated past the end. Takes `i_mutex`, and waits for what is in flight. Sleeps.
#[doc(alias = "ext4_truncate_failed_write")]
pub(crate) fn ext4_dio_trim(inode: &IRef) {
    let i_mutex = inode.lock();
    crate::inode::ext4_dio_wait(&i_mutex);
    let orphan = {
        let mut extending = inode.i_private().aio.extending.lock();
        if !core::mem::take(&mut extending.trim) {
            return;
        }
        core::mem::take(&mut extending.orphan)
    };
    // It stays on the list if that fails, and the next mount does it.
    let trimmed = crate::truncate::ext4_truncate(inode);
    if orphan && trimmed.is_ok() {
        orphan_done(ext4_journal_start(inode.i_sb().s_fs_info(), ORPHAN_CREDITS), inode);
    }
    i_mutex.unlock();
}
