// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/inode.c`: from a file's blocks to the device's, and `direct_IO` with the swap of locks (hunks 2 to 4 of the patch).

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::block::{ReqOpf, bdev_rw};
use kernel_shim::bug_on;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{__blockdev_direct_IO, DioFlags, DioRequest, FileSystem, IocbFlags, IovIter, MapResult, Rw};
use kernel_shim::testing::{Fix, reverted, trace};

use crate::dio::ext4_dio_alloc;
use crate::dio_lock::{DioLock, Window};
use crate::ext4::{DioMode, GetBlocks, Lblk, MapBlocks, MapFlags};
use crate::ext4_jbd2::Handle;
use crate::extents::{ExtentTree, ext4_ext_map_blocks, ext4_ext_map_create_blocks};
use crate::file::{LockedDio, Verdict};
use crate::indirect::{ext4_ind_map_blocks, ext4_ind_map_create_blocks};
use crate::page_io::{ext4_abandon_io_end, ext4_end_io_dio, ext4_init_io_end};
use crate::truncate::{ext4_inode_block_unlocked_dio, ext4_inode_dio_begin_unlocked};
use crate::{Inode, Kiocb, Locked, Private};

/// Whether reads, and with them overwrites, may do without `i_mutex`: the mount's `mode` says so, and the file is a regular one mapped
/// by extents. A remount may change the mode at any time, so who decides by it asks for it once.
#[inline]
pub fn ext4_should_dioread_nolock(inode: &Inode, mode: DioMode) -> bool {
    mode != DioMode::Exclusive && inode.is_reg() && inode.i_private().is_extents()
}

/// Looks up `map.m_len` blocks from `map.m_lblk` on. Returns how many are mapped alike from the first on, 0 for a hole;
/// `m_pblk`, `m_flags` and `m_len` say where and how. Written ones are `MAPPED`, allocated ones that hold no data `UNWRITTEN`.
///
/// Takes `i_data_sem` for reading unless the extent status cache knows. `EFSCORRUPTED` and `EFSBADCRC` for a map that cannot be.
///
/// PORT: C's allocates, too, if its flags say so: here that is [`ext4_map_create_blocks`].
#[inline]
pub fn ext4_map_blocks(inode: &Inode, map: &mut MapBlocks) -> Result<u32> {
    trace("ext4_map_blocks");
    if let Some(n) = inode.i_private().i_es_tree.lookup_last(map) {
        return Ok(n);
    }
    // Not by reference: the caller's may stay in registers.
    let (n, answer) = ext4_map_blocks_slow(inode, map.m_lblk, map.m_len)?;
    *map = answer;
    Ok(n)
}

#[inline(never)]
fn ext4_map_blocks_slow(inode: &Inode, lblk: Lblk, len: u32) -> Result<(u32, MapBlocks)> {
    let mut map = MapBlocks::new(lblk, len);
    if let Some(n) = inode.i_private().i_es_tree.lookup(&mut map) {
        return Ok((n, map));
    }
    let tree = inode.i_private().i_data_sem.read();
    let n = ext4_map_blocks_locked(inode, &tree, &mut map)?;
    Ok((n, map))
}

/// The same with `i_data_sem` held by the caller, whose guard leads to `tree`: C's `EXT4_GET_BLOCKS_NO_LOCK`. To take the
/// semaphore again for reading could deadlock behind a writer that waits for it.
pub fn ext4_map_blocks_locked(inode: &Inode, tree: &ExtentTree, map: &mut MapBlocks) -> Result<u32> {
    if let Some(n) = inode.i_private().i_es_tree.lookup(map) {
        return Ok(n);
    }
    if inode.i_private().is_extents() {
        ext4_ext_map_blocks(inode, tree, map)
    } else {
        ext4_ind_map_blocks(inode, tree, map)
    }
}

/// [`ext4_map_blocks`] under a handle, which allocates what is missing or converts, as `flags` say (`CREATE`, `UNINIT_EXT`, `PRE_IO`,
/// `CONVERT`, `CONVERT_UNWRITTEN`, `ZERO`): blocks from `m_lblk` on, as many as are alike, at most `m_len`. What was allocated
/// by this call bears [`MapFlags::NEW`]. The inode has been written under the handle when it returns.
///
/// Takes `i_data_sem` for writing; EOPNOTSUPP never, ENOSPC, EIO, EFSCORRUPTED. Sleeps. Credits: `ext4_chunk_trans_blocks`.
pub fn ext4_map_create_blocks(
    handle: &mut Handle<'_>,
    inode: &Inode,
    map: &mut MapBlocks,
    flags: GetBlocks,
) -> Result<u32> {
    let mut tree = inode.i_private().i_data_sem.write();
    if inode.i_private().is_extents() {
        ext4_ext_map_create_blocks(handle, inode, &mut tree, map, flags, None)
    } else {
        ext4_ind_map_create_blocks(handle, inode, &mut tree, map, flags)
    }
}

/// [`ext4_map_create_blocks`] with `IO_CONVERT_EXT`, for the end of a write past the end of the file. If all of `map` is written then, both
/// sizes move out to `size`, with `i_data_sem` held still and in the same change of the inode.
///
/// Entered with a handle and counted in flight, and left so; takes `i_data_sem` for writing in between. As there, and EIO for a hole: whoever
/// frees blocks waits for who is counted. Sleeps.
pub(crate) fn ext4_map_convert_blocks(
    handle: &mut Handle<'_>,
    inode: &Inode,
    map: &mut MapBlocks,
    size: Option<i64>,
) -> Result<u32> {
    if !inode.i_private().is_extents() {
        // Nothing is unwritten.
        return Err(EIO);
    }
    let mut tree = inode.i_private().i_data_sem.write();
    ext4_ext_map_create_blocks(handle, inode, &mut tree, map, GetBlocks::IO_CONVERT_EXT, size)
}

/// [`ext4_map_blocks`] without sleeping: what the extent status cache knows, or the root of the extent tree; else `EAGAIN`.
#[doc(alias = "EXT4_GET_BLOCKS_CACHED_NOWAIT")]
pub fn ext4_map_blocks_nowait(inode: &Inode, map: &mut MapBlocks) -> Result<u32> {
    let info = inode.i_private();
    if let Some(n) = info.i_es_tree.lookup(map) {
        return Ok(n);
    }
    match info.i_data_sem.try_read() {
        Some(tree) if info.is_extents() && tree.depth() == 0 => ext4_ext_map_blocks(inode, &tree, map),
        _ => Err(EAGAIN),
    }
}

/// A look-up in the words of the direct-I/O layer: for a read, which sees nothing of unwritten blocks.
#[inline]
fn map_result(map: &MapBlocks, n: u32) -> MapResult {
    if n > 0 && map.m_flags.contains(MapFlags::MAPPED) {
        MapResult::Mapped { pblk: map.m_pblk.0, len: n, fresh: false }
    } else {
        MapResult::Hole { len: map.m_len.max(1) }
    }
}

fn map_blocks_for(lblk: u64, len: u32) -> Result<MapBlocks> {
    Ok(MapBlocks::new(Lblk(u32::try_from(lblk).map_err(|_| EFBIG)?), len))
}

/// For reads: maps, and allocates nothing.
pub fn ext4_get_block(inode: &Inode, lblk: u64, len: u32) -> Result<MapResult> {
    let mut map = map_blocks_for(lblk, len)?;
    let n = ext4_map_blocks(inode, &mut map)?;
    Ok(map_result(&map, n))
}

/// [`ext4_get_block`] without sleeping: see [`ext4_map_blocks_nowait`].
fn ext4_get_block_nowait(inode: &Inode, lblk: u64, len: u32) -> Result<MapResult> {
    let mut map = map_blocks_for(lblk, len)?;
    let n = ext4_map_blocks_nowait(inode, &mut map)?;
    Ok(map_result(&map, n))
}

/// For writes whose blocks [`ext4_dio_alloc`] has seen to, if they needed it: a look-up. Unwritten blocks,
/// and with `new_from` those from there on, hold nothing but what is going to be written.
pub fn ext4_get_block_write(inode: &Inode, lblk: u64, len: u32, new_from: Option<u64>) -> Result<MapResult> {
    let mut map = map_blocks_for(lblk, len)?;
    if let Some(new_from) = new_from.filter(|new_from| lblk < *new_from) {
        map.m_len = map.m_len.min(u32::try_from(new_from - lblk).unwrap_or(u32::MAX));
    }
    let n = ext4_map_blocks(inode, &mut map)?;
    if n == 0 {
        return Ok(map_result(&map, n));
    }
    let fresh = map.m_flags.contains(MapFlags::UNWRITTEN) || new_from.is_some_and(|new_from| lblk >= new_from);
    Ok(MapResult::Mapped { pblk: map.m_pblk.0, len: n, fresh })
}

/// For overwrites: a pure look-up, with what [`DioLock::InFlight`] holds. Finding nothing ends the write with `ENOTBLK`, which
/// the verdict has ruled out.
///
/// `known` is what the verdict found under `i_mutex`. The write has been counted in flight since before `i_mutex` was given
/// up, so the blocks are still there and need not be looked up a second time. `nowait`: EAGAIN where that would sleep.
#[inline(always)]
pub fn ext4_get_block_write_nolock(
    inode: &Inode,
    window: &Window<'_>,
    known: &MapBlocks,
    nowait: bool,
    lblk: u64,
    len: u32,
) -> Result<MapResult> {
    if u64::from(known.m_lblk.0) == lblk {
        return Ok(map_result(known, known.m_len));
    }
    if nowait {
        ext4_get_block_nowait(inode, lblk, len)
    } else {
        ext4_get_block_nolock_unknown(inode, window, lblk, len)
    }
}

#[inline(never)]
fn ext4_get_block_nolock_unknown(inode: &Inode, window: &Window<'_>, lblk: u64, len: u32) -> Result<MapResult> {
    trace("ext4_get_block_write_nolock: not known");
    let mut map = map_blocks_for(lblk, len)?;
    let n = match window {
        Window::IDataSem(tree) => ext4_map_blocks_locked(inode, tree, &mut map)?,
        Window::Count => ext4_map_blocks(inode, &mut map)?,
    };
    Ok(map_result(&map, n))
}

/// `a_ops->direct_IO` for writes. Entered, and left, with `i_mutex` held; only one that must not sleep may be left without.
#[expect(non_snake_case, reason = "C name")]
#[inline(always)]
pub fn ext4_direct_IO<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    offset: i64,
) -> (Option<Locked<'i>>, Result<usize>) {
    if i_mutex.i_private().is_extents() {
        ext4_ext_direct_IO(iocb, i_mutex, iter, offset)
    } else {
        let (i_mutex, ret) = ext4_ind_direct_IO(iocb, i_mutex, iter, offset);
        (Some(i_mutex), ret)
    }
}

/// Direct writes to files mapped by extents.
///
/// Entered with `i_mutex` held and the verdict in `iocb.private`; returns with `i_mutex` held. If the verdict says so it is
/// given up in between, and whatever was true of size, map and cache before has to be looked at again.
#[expect(non_snake_case, reason = "C name")]
#[inline(always)]
pub fn ext4_ext_direct_IO<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    offset: i64,
) -> (Option<Locked<'i>>, Result<usize>) {
    let inode = i_mutex.inode();

    bug_on!(iocb.private.is_none());
    let verdict = match iocb.private.take() {
        Some(Private::Verdict(verdict)) => verdict,
        _ => Verdict::Locked(LockedDio::empty()),
    };

    // The caller's memory is brought in before anything but i_mutex is held: a page fault may need i_data_sem, and whoever
    // holds it for writing may be waiting for the page's address space (G6). In the window below it is only pinned.
    if !reverted(Fix::G6) {
        iter.fault_in();
    }

    if verdict.changes()
        && let Err(e) = ext4_dio_begin_change(iocb, iter, &verdict, offset)
    {
        return (Some(i_mutex), Err(e));
    }

    // An overwrite needs i_mutex no longer: swap it.
    if reverted(Fix::G35) {
        // Everything exclusive at first, as C had it from 4.9 to 5.5: behind reads in flight, with everybody behind.
        ext4_dio_wait(&i_mutex);
    }
    let lock = match verdict.leaves() {
        true if iocb.is_nowait() => match DioLock::try_release(i_mutex, verdict.mode()) {
            Ok(lock) => lock,
            Err(i_mutex) => return (Some(i_mutex), Err(EAGAIN)),
        },
        true => DioLock::release(i_mutex, verdict.mode()),
        false => DioLock::IMutex(i_mutex),
    };

    if reverted(Fix::G6) {
        iter.fault_in();
    }

    let ret = 'retake_lock: {
        let mut flags = DioFlags::empty();
        if verdict.changes() {
            match ext4_dio_prepare(iocb, iter, &lock, &verdict, offset) {
                Ok(prepared) => flags = prepared,
                Err(e) => {
                    ext4_dio_not_submitted(iocb, inode);
                    break 'retake_lock Err(e);
                }
            }
        } else if !iocb.is_sync() {
            let Some(io_end) = ext4_init_io_end(inode) else {
                if reverted(Fix::G31) && lock.is_in_flight() {
                    core::mem::forget(lock);
                    return (None, Err(ENOMEM));
                }
                break 'retake_lock Err(ENOMEM);
            };
            iocb.private = Some(Private::IoEnd(io_end));
        }

        let nowait = iocb.is_nowait();
        let ret = match (&lock, &verdict) {
            (DioLock::InFlight(_, window), Verdict::Overwrite(known, _)) => {
                let flags = DioFlags::COUNTED | ext4_dio_fua(iocb, inode);
                let get_block = |lblk, len, _| ext4_get_block_write_nolock(inode, window, known, nowait, lblk, len);
                blockdev_direct_io(iocb, iter, inode, offset, flags, get_block)
            }
            (DioLock::InFlight(..), _) => {
                let get_block = |lblk, len, _| ext4_get_block_write(inode, lblk, len, None);
                blockdev_direct_io_locked(iocb, iter, inode, offset, DioFlags::COUNTED | flags, get_block)
            }
            (DioLock::IMutex(i_mutex), _) => {
                let flags = ext4_dio_flags(i_mutex, iter, offset) | flags;
                let get_block = |lblk, len, _| match nowait {
                    false => ext4_get_block_write(inode, lblk, len, None),
                    true => ext4_get_block_nowait(inode, lblk, len),
                };
                blockdev_direct_io_locked(iocb, iter, inode, offset, flags, get_block)
            }
        };

        // Never taken up by a request.
        if iocb.private.is_some() {
            ext4_dio_not_submitted(iocb, inode);
        }
        ret
    };

    // The caller gets back what it gave.
    if iocb.is_nowait() {
        return (lock.try_retake_lock(), ret);
    }
    (Some(lock.retake_lock()), ret)
}

/// A write that changes the map or the size gets its `io_end`, and says where the file is going to end before anybody else can ask.
/// Called with `i_mutex`. ENOMEM.
#[cold]
fn ext4_dio_begin_change(iocb: &mut Kiocb<'_>, iter: &IovIter<'_>, verdict: &Verdict, offset: i64) -> Result {
    let inode = iocb.ki_filp.f_inode();
    let mut io_end = ext4_init_io_end(inode).ok_or(ENOMEM)?;
    if verdict.extends() {
        let end = offset.saturating_add(iter.count() as i64);
        inode.i_private().aio.extend_begin(end);
        io_end.set_extends(inode, end);
    }
    iocb.private = Some(Private::IoEnd(io_end));
    Ok(())
}

/// What a write that changes the map or the size needs before its first bio: blocks, and word of them in its `io_end`.
#[cold]
fn ext4_dio_prepare(
    iocb: &mut Kiocb<'_>,
    iter: &mut IovIter<'_>,
    lock: &DioLock<'_>,
    verdict: &Verdict,
    offset: i64,
) -> Result<DioFlags> {
    trace("ext4_dio_prepare");
    let inode = iocb.ki_filp.f_inode();
    let Some(Private::IoEnd(io_end)) = &mut iocb.private else { return Err(EIO) };
    let mut flags = DioFlags::DEFER;
    if let (DioLock::IMutex(i_mutex), Verdict::Locked(locked)) = (lock, verdict)
        && locked.contains(LockedDio::WAIT)
    {
        // Parts of blocks are zeroed, or the end of the file is a part of one: nobody else may be in the device with this
        // write, before or after (G17). Waited for with i_mutex, so that newcomers cannot starve it (G19).
        if !reverted(Fix::G17) {
            ext4_dio_wait(i_mutex);
            flags |= DioFlags::WAIT;
        }
        ext4_zero_tail(i_mutex, offset)?;
    }
    let allocated = ext4_dio_alloc(inode, offset, iter.count(), verdict.extends());
    // Out of space, with nothing done: what `fallocate` has put behind the end stays there.
    io_end.allocated = !matches!(allocated, Err(ENOSPC));
    let allocated = allocated?;
    if allocated.unwritten {
        io_end.set_unwritten(inode);
    }
    if allocated.bytes < iter.count() {
        let lbs = inode.i_sb().s_bdev().logical_block_size() as usize;
        iter.truncate(allocated.bytes & !(lbs - 1));
        io_end.cut_extends(offset.saturating_add(iter.count() as i64));
    }
    Ok(flags)
}

/// The `io_end` of a write that did not become a request, if there is one, is given back.
#[cold]
fn ext4_dio_not_submitted(iocb: &mut Kiocb<'_>, inode: &Inode) {
    if let Some(Private::IoEnd(io_end)) = iocb.private.take() {
        ext4_abandon_io_end(inode, io_end);
    }
}

/// A file that ends inside a block is about to have data behind it: the rest of that block becomes zeros, whatever was there.
/// Called with `i_mutex`, and nothing in flight.
#[doc(alias = "ext4_block_zero_eof")]
fn ext4_zero_tail(i_mutex: &Locked<'_>, offset: i64) -> Result {
    let (size, blkbits) = (i_mutex.i_size(), i_mutex.i_blkbits());
    let in_block = size & ((1 << blkbits) - 1);
    if offset <= size || in_block == 0 {
        return Ok(());
    }
    let mut map = map_blocks_for(size as u64 >> blkbits, 1)?;
    let n = ext4_map_blocks(i_mutex, &mut map)?;
    if n == 0 || !map.m_flags.contains(MapFlags::MAPPED) {
        return Ok(());
    }
    // The page that the block is in, as a page is no less than a block.
    crate::Ext4::write_and_wait(i_mutex, size, size)?;
    i_mutex.i_mapping().invalidate_pages(size, size);
    let bdev = i_mutex.i_sb().s_bdev();
    let sector = map.m_pblk.0 << (blkbits - 9);
    let mut block = KVec::from_elem(Aligned([0; 4096]), 1, GFP_KERNEL)?;
    let block = block.first_mut().ok_or(ENOMEM)?.0.get_mut(..1 << blkbits).ok_or(EIO)?;
    bdev_rw(bdev, ReqOpf::REQ_OP_READ, sector, block)?;
    let tail = block.get_mut(in_block as usize..).ok_or(EIO)?;
    if tail.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    tail.fill(0);
    bdev_rw(bdev, ReqOpf::REQ_OP_WRITE, sector, block)
}

/// A block for the device.
#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Aligned([u8; 4096]);

/// An `O_DSYNC` overwrite of a file whose map is on disk is durable when the device has written it through: no flush, no commit.
#[doc(alias = "ext4_inode_datasync_dirty")]
#[inline(always)]
fn ext4_dio_fua(iocb: &mut Kiocb<'_>, inode: &Inode) -> DioFlags {
    if iocb.is_dsync() { ext4_dio_fua_slow(iocb, inode) } else { DioFlags::empty() }
}

#[inline(never)]
fn ext4_dio_fua_slow(iocb: &mut Kiocb<'_>, inode: &Inode) -> DioFlags {
    let limits = inode.i_sb().s_bdev().limits();
    let can = limits.fua || !limits.write_cache;
    // O_SYNC also wants the times.
    if !can
        || iocb.ki_flags.contains(IocbFlags::SYNC)
        || reverted(Fix::G13)
        || crate::fsync::ext4_inode_datasync_dirty(inode)
    {
        return DioFlags::empty();
    }
    iocb.ki_flags.insert(IocbFlags::WRITE_THROUGH);
    DioFlags::FUA
}

/// Direct writes to indirect-mapped files, always under `i_mutex`. Entered, and left, with it.
///
/// Such a file has no unwritten blocks, and a block in a hole would show what was in it before: a write that meets a hole
/// inside the file goes through the page cache (`Ok(0)`), whose data reaches the disk before the map does. Past the end nobody
/// can look, and until the size has moved the list of orphans has the inode.
#[expect(non_snake_case, reason = "C name")]
#[cold]
pub fn ext4_ind_direct_IO<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    offset: i64,
) -> (Locked<'i>, Result<usize>) {
    let inode = i_mutex.inode();
    let locked = match iocb.private.take() {
        Some(Private::Verdict(Verdict::Locked(locked))) => locked,
        _ => LockedDio::empty(),
    };
    let extends = locked.contains(LockedDio::EXTEND);
    if locked.contains(LockedDio::FILL) && !extends {
        return (i_mutex, Ok(0));
    }
    let mut flags = ext4_dio_flags(&i_mutex, iter, offset);
    if !extends {
        let get_block = |lblk, len, _| ext4_get_block_write(inode, lblk, len, None);
        let ret = blockdev_direct_io_locked(iocb, iter, inode, offset, flags | DioFlags::SKIP_HOLES, get_block);
        return (i_mutex, ret);
    }
    // From here on blocks are new.
    let blkbits = inode.i_blkbits();
    let new_from = (i_mutex.i_size() as u64).div_ceil(1 << blkbits);
    match ext4_ind_hole_inside(inode, offset, new_from) {
        Ok(false) => {}
        Ok(true) => return (i_mutex, Ok(0)),
        Err(e) => return (i_mutex, Err(e)),
    }
    let verdict = Verdict::Locked(locked);
    if let Err(e) = ext4_dio_begin_change(iocb, iter, &verdict, offset) {
        return (i_mutex, Err(e));
    }
    let lock = DioLock::IMutex(i_mutex);
    let ret = match ext4_dio_prepare(iocb, iter, &lock, &verdict, offset) {
        Ok(prepared) => {
            flags |= prepared;
            let get_block = |lblk, len, _| ext4_get_block_write(inode, lblk, len, Some(new_from));
            blockdev_direct_io_locked(iocb, iter, inode, offset, flags, get_block)
        }
        Err(e) => Err(e),
    };
    ext4_dio_not_submitted(iocb, inode);
    (lock.retake_lock(), ret)
}

/// Whether there is a hole between `offset` and block `end`.
fn ext4_ind_hole_inside(inode: &Inode, offset: i64, end: u64) -> Result<bool> {
    let mut at = offset as u64 >> inode.i_blkbits();
    while at < end {
        let mut map = map_blocks_for(at, u32::try_from(end - at).unwrap_or(u32::MAX))?;
        match ext4_map_blocks(inode, &mut map)? {
            0 => return Ok(true),
            n => at += u64::from(n),
        }
    }
    Ok(false)
}

/// Waits until nothing is in flight, with readers that take no lock kept out of the count meanwhile (G21).
pub(crate) fn ext4_dio_wait(i_mutex: &Locked<'_>) {
    let _gate = ext4_inode_block_unlocked_dio(i_mutex);
    i_mutex.inode_dio_wait();
}

/// How a write under `i_mutex` is run. One that is finer than the device's blocks waits here until nothing else is in
/// flight, so that what it reads is still there when it writes it back.
fn ext4_dio_flags(i_mutex: &Locked<'_>, iter: &IovIter<'_>, offset: i64) -> DioFlags {
    let lbs = i_mutex.i_sb().s_bdev().logical_block_size() as usize;
    if (offset as usize | iter.alignment()) & (lbs - 1) == 0 {
        return DioFlags::LOCKING;
    }
    ext4_dio_wait(i_mutex);
    DioFlags::LOCKING | DioFlags::READ_MODIFY_WRITE
}

#[inline(always)]
fn blockdev_direct_io(
    iocb: &mut Kiocb<'_>,
    iter: &mut IovIter<'_>,
    inode: &Inode,
    offset: i64,
    flags: DioFlags,
    get_block: impl FnMut(u64, u32, bool) -> Result<MapResult>,
) -> Result<usize> {
    let end_io = Some(ext4_end_io_dio as kernel_shim::fs::direct_io::DioIodone<crate::Ext4>);
    __blockdev_direct_IO(iocb, iter, DioRequest { rw: Rw::Write, inode, offset, flags, get_block, end_io })
}

/// [`blockdev_direct_io`], out of line: so the overwrite's stays the one that is inlined.
#[inline(never)]
fn blockdev_direct_io_locked(
    iocb: &mut Kiocb<'_>,
    iter: &mut IovIter<'_>,
    inode: &Inode,
    offset: i64,
    flags: DioFlags,
    get_block: impl FnMut(u64, u32, bool) -> Result<MapResult>,
) -> Result<usize> {
    blockdev_direct_io(iocb, iter, inode, offset, flags, get_block)
}

/// `a_ops->direct_IO` for reads. With `dioread_nolock` no lock is taken, unless somebody is about to change the map; else
/// `i_mutex` while the blocks are looked up.
#[expect(non_snake_case, reason = "C name")]
pub fn ext4_direct_IO_read(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>, offset: i64) -> Result<usize> {
    let inode: &Inode = iocb.ki_filp.f_inode();
    let count = match ext4_should_dioread_nolock(inode, inode.i_sb().s_fs_info().dio_mode()) {
        true => ext4_inode_dio_begin_unlocked(inode),
        false => None,
    };
    let flags = if count.is_some() { DioFlags::COUNTED } else { DioFlags::LOCKING };
    let nowait = iocb.is_nowait();
    let get_block = |lblk, len, _| match nowait {
        false => ext4_get_block(inode, lblk, len),
        true => ext4_get_block_nowait(inode, lblk, len),
    };
    __blockdev_direct_IO(iocb, iter, DioRequest { rw: Rw::Read, inode, offset, flags, get_block, end_io: None })
}
