// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/inode.c`: from a file's blocks to the device's, and `direct_IO` with the swap of locks (hunks 2 to 4 of the patch).

use kernel_shim::bug_on;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{__blockdev_direct_IO, DioFlags, DioRequest, IovIter, MapResult, Rw};
use kernel_shim::testing::{Fix, reverted};

use crate::dio_lock::{DioLock, Window};
use crate::ext4::{DioMode, GetBlocks, Lblk, MapBlocks, MapFlags};
use crate::ext4_jbd2::Handle;
use crate::extents::{ExtentTree, ext4_ext_map_blocks, ext4_ext_map_create_blocks};
use crate::indirect::{ext4_ind_map_blocks, ext4_ind_map_create_blocks};
use crate::page_io::{ext4_end_io_dio, ext4_init_io_end};
use crate::{Inode, Kiocb, Locked, Private};

/// Whether reads, and with them overwrites, may do without `i_mutex`: the mount says so, and the file is a regular one mapped
/// by extents.
#[inline]
pub fn ext4_should_dioread_nolock(inode: &Inode) -> bool {
    inode.i_sb().s_fs_info().dio_mode() != DioMode::Exclusive && inode.is_reg() && inode.i_private().is_extents()
}

/// Looks up `map.m_len` blocks from `map.m_lblk` on. Returns how many are mapped alike from the first on, 0 for a hole;
/// `m_pblk`, `m_flags` and `m_len` say where and how. Written ones are `MAPPED`, allocated ones that hold no data `UNWRITTEN`.
///
/// Takes `i_data_sem` for reading unless the extent status cache knows. `EOPNOTSUPP` for `CREATE` where there is something
/// to create; `EFSCORRUPTED` and `EFSBADCRC` for a map that cannot be.
#[inline]
pub fn ext4_map_blocks(inode: &Inode, map: &mut MapBlocks, flags: GetBlocks) -> Result<u32> {
    let n = match inode.i_private().i_es_tree.lookup_last(map) {
        Some(n) => n,
        None => {
            // Not by reference: the caller's may stay in registers.
            let (n, answer) = ext4_map_blocks_slow(inode, map.m_lblk, map.m_len)?;
            *map = answer;
            n
        }
    };
    ext4_map_blocks_create(map, flags, n)
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

#[inline]
fn ext4_map_blocks_create(map: &MapBlocks, flags: GetBlocks, n: u32) -> Result<u32> {
    if flags.contains(GetBlocks::CREATE) && !map.m_flags.contains(MapFlags::MAPPED) {
        return Err(EOPNOTSUPP);
    }
    Ok(n)
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
        ext4_ext_map_create_blocks(handle, inode, &mut tree, map, flags)
    } else {
        ext4_ind_map_create_blocks(handle, inode, &mut tree, map, flags)
    }
}

/// A look-up in the words of the direct-I/O layer.
#[inline]
fn map_result(map: &MapBlocks, n: u32) -> MapResult {
    if n > 0 && map.m_flags.contains(MapFlags::MAPPED) {
        MapResult::Mapped { pblk: map.m_pblk.0, len: n }
    } else {
        MapResult::Hole { len: if n > 0 { n } else { map.m_len.max(1) } }
    }
}

fn map_blocks_for(lblk: u64, len: u32) -> Result<MapBlocks> {
    Ok(MapBlocks::new(Lblk(u32::try_from(lblk).map_err(|_| EFBIG)?), len))
}

/// For reads: maps, and allocates nothing.
pub fn ext4_get_block(inode: &Inode, lblk: u64, len: u32) -> Result<MapResult> {
    let mut map = map_blocks_for(lblk, len)?;
    let n = ext4_map_blocks(inode, &mut map, GetBlocks::empty())?;
    Ok(map_result(&map, n))
}

/// For direct writes under `i_mutex`: maps, and allocates what is missing.
pub fn ext4_get_block_write(inode: &Inode, lblk: u64, len: u32) -> Result<MapResult> {
    let mut map = map_blocks_for(lblk, len)?;
    let n = ext4_map_blocks(inode, &mut map, GetBlocks::IO_CREATE_EXT)?;
    Ok(map_result(&map, n))
}

/// For overwrites: a pure look-up, with what [`DioLock::InFlight`] holds. Finding nothing ends the write with `ENOTBLK`, which
/// the verdict has ruled out.
///
/// `known` is what the verdict found under `i_mutex`. The write has been counted in flight since before `i_mutex` was given
/// up, so the blocks are still there and need not be looked up a second time.
#[inline(always)]
pub fn ext4_get_block_write_nolock(
    inode: &Inode,
    window: &Window<'_>,
    known: &Option<MapBlocks>,
    lblk: u64,
    len: u32,
) -> Result<MapResult> {
    if let Some(map) = known
        && u64::from(map.m_lblk.0) == lblk
    {
        return Ok(map_result(map, map.m_len));
    }
    ext4_get_block_nolock_unknown(inode, window, lblk, len)
}

#[inline(never)]
fn ext4_get_block_nolock_unknown(inode: &Inode, window: &Window<'_>, lblk: u64, len: u32) -> Result<MapResult> {
    let mut map = map_blocks_for(lblk, len)?;
    let n = match window {
        Window::IDataSem(tree) => ext4_map_blocks_locked(inode, tree, &mut map)?,
        Window::Count => ext4_map_blocks(inode, &mut map, GetBlocks::empty())?,
    };
    Ok(map_result(&map, n))
}

/// `a_ops->direct_IO` for writes. Entered, and left, with `i_mutex` held.
#[expect(non_snake_case, reason = "C name")]
#[inline(always)]
pub fn ext4_direct_IO<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    offset: i64,
) -> (Locked<'i>, Result<usize>) {
    if i_mutex.i_private().is_extents() {
        ext4_ext_direct_IO(iocb, i_mutex, iter, offset)
    } else {
        ext4_ind_direct_IO(iocb, i_mutex, iter, offset)
    }
}

/// Direct writes to files mapped by extents.
///
/// Entered with `i_mutex` held and the verdict in `iocb.private`; returns with `i_mutex` held. For an overwrite it is
/// given up in between, and whatever was true of size, map and cache before has to be looked at again.
#[expect(non_snake_case, reason = "C name")]
#[inline(always)]
pub fn ext4_ext_direct_IO<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    offset: i64,
) -> (Locked<'i>, Result<usize>) {
    let inode = i_mutex.inode();
    let final_size = offset.saturating_add(i64::try_from(iter.count()).unwrap_or(i64::MAX));
    if final_size > inode.i_size() {
        return ext4_ind_direct_IO(iocb, i_mutex, iter, offset);
    }

    bug_on!(iocb.private.is_none());
    let overwrite = match iocb.private.take() {
        Some(Private::Overwrite(map)) => map,
        _ => None,
    };

    // The caller's memory is brought in before anything but i_mutex is held: a page fault may need i_data_sem, and whoever
    // holds it for writing may be waiting for the page's address space (G6). In the window below it is only pinned.
    if !reverted(Fix::G6) {
        iter.fault_in();
    }

    // An overwrite needs i_mutex no longer: swap it.
    let lock = if overwrite.is_some() {
        DioLock::release(i_mutex, inode.i_sb().s_fs_info().dio_mode())
    } else {
        DioLock::IMutex(i_mutex)
    };

    if reverted(Fix::G6) {
        iter.fault_in();
    }

    let ret = 'retake_lock: {
        if !iocb.is_sync() {
            let Some(io_end) = ext4_init_io_end(inode) else {
                break 'retake_lock Err(ENOMEM);
            };
            iocb.private = Some(Private::IoEnd(io_end));
        }

        let ret = match &lock {
            DioLock::InFlight(_, window) => {
                let get_block = |lblk, len, _| ext4_get_block_write_nolock(inode, window, &overwrite, lblk, len);
                blockdev_direct_io(iocb, iter, inode, offset, DioFlags::COUNTED, get_block)
            }
            DioLock::IMutex(i_mutex) => {
                let flags = ext4_dio_flags(i_mutex, iter, offset);
                let get_block = |lblk, len, _| ext4_get_block_write(inode, lblk, len);
                blockdev_direct_io_locked(iocb, iter, inode, offset, flags, get_block)
            }
        };

        // Never taken up by a request: ext4_free_io_end().
        iocb.private = None;
        ret
    };

    // The caller gets back what it gave.
    (lock.retake_lock(), ret)
}

/// Direct writes to indirect-mapped files, always under `i_mutex`. Entered, and left, with it.
#[expect(non_snake_case, reason = "C name")]
#[cold]
pub fn ext4_ind_direct_IO<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    offset: i64,
) -> (Locked<'i>, Result<usize>) {
    let inode = i_mutex.inode();
    iocb.private = None;
    let end = offset.saturating_add(i64::try_from(iter.count()).unwrap_or(i64::MAX));
    if end > inode.i_size() {
        return (i_mutex, Err(EOPNOTSUPP));
    }
    let flags = ext4_dio_flags(&i_mutex, iter, offset) | DioFlags::SKIP_HOLES;
    let get_block = |lblk, len, _| ext4_get_block(inode, lblk, len);
    let ret = blockdev_direct_io_locked(iocb, iter, inode, offset, flags, get_block);
    (i_mutex, ret)
}

/// How a write under `i_mutex` is run. One that is finer than the device's blocks waits here until nothing else is in
/// flight, so that what it reads is still there when it writes it back.
fn ext4_dio_flags(i_mutex: &Locked<'_>, iter: &IovIter<'_>, offset: i64) -> DioFlags {
    let lbs = i_mutex.i_sb().s_bdev().logical_block_size() as usize;
    if (offset as usize | iter.alignment()) & (lbs - 1) == 0 {
        return DioFlags::LOCKING;
    }
    i_mutex.inode_dio_wait();
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

/// `a_ops->direct_IO` for reads. With `dioread_nolock` no lock is taken; else `i_mutex` while the blocks are looked up.
#[expect(non_snake_case, reason = "C name")]
pub fn ext4_direct_IO_read(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>, offset: i64) -> Result<usize> {
    let inode: &Inode = iocb.ki_filp.f_inode();
    let flags = if ext4_should_dioread_nolock(inode) { DioFlags::empty() } else { DioFlags::LOCKING };
    let get_block = |lblk, len, _| ext4_get_block(inode, lblk, len);
    __blockdev_direct_IO(iocb, iter, DioRequest { rw: Rw::Read, inode, offset, flags, get_block, end_io: None })
}
