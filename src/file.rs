// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/file.c`: writes come in here, and here it is settled whether a direct one may leave `i_mutex` (hunk 1 of the patch).

use core::sync::atomic::Ordering;

use kernel_shim::block::BlkPlug;
use kernel_shim::bug_on;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IocbFlags, IovIter, OpenFlags};
use kernel_shim::mm::filemap::{
    __generic_file_aio_write, WriteRange, generic_file_read, generic_write_checks, generic_write_sync,
};
use kernel_shim::sync::lockdep::syscall;
use kernel_shim::sync::{Mutex, MutexGuard};
use kernel_shim::testing::{Fix, reverted, trace};

use crate::aops::{ext4_buffered_write_iter, ext4_should_journal_data};
use crate::ext4::{DioMode, Lblk, MapBlocks, MapFlags};
use crate::inode::{ext4_map_blocks, ext4_map_blocks_nowait, ext4_should_dioread_nolock};
use crate::{Inode, Kiocb, Locked, Private};

/// What a direct write may do, and what it needs: C's `overwrite`, with more answers than two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All blocks are written: nothing changes but data, and `i_mutex` may go. With it where the first blocks are, which stays
    /// true as long as the write is protected from truncate; and the lock mode that says so, for a remount may change that before
    /// the lock goes.
    Overwrite(MapBlocks, DioMode),
    /// Whole blocks inside the file, some of which hold no data yet: `i_mutex` may go, and they are allocated, and converted
    /// when the data is there, in the window. In the default mode alone.
    Fill,
    /// Whole blocks, and the file ends behind them: as [`Verdict::Fill`], and the size moves at the end.
    Extend,
    /// `i_mutex` stays.
    Locked(LockedDio),
}

bitflags::bitflags! {
    /// What a write under `i_mutex` needs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct LockedDio: u32 {
        /// Blocks that hold no data are among them.
        const FILL = 1;
        /// It ends past the end of the file.
        const EXTEND = 2;
        /// Nobody else may be in the device with it, and it is waited for.
        const WAIT = 4;
    }
}

impl Verdict {
    /// Whether `i_mutex` may go.
    #[inline]
    pub fn leaves(&self) -> bool {
        !matches!(self, Self::Locked(_))
    }

    /// What the window of a write that leaves `i_mutex` is made of.
    #[inline]
    pub fn mode(&self) -> DioMode {
        match self {
            Self::Overwrite(_, mode) => *mode,
            // The other window has i_data_sem, which allocating takes.
            Self::Fill | Self::Extend => DioMode::InFlight,
            Self::Locked(_) => DioMode::Exclusive,
        }
    }

    /// Whether blocks are allocated or converted, or the size moves.
    #[inline]
    pub fn changes(&self) -> bool {
        match self {
            Self::Overwrite(..) => false,
            Self::Fill | Self::Extend => true,
            Self::Locked(locked) => !locked.is_empty(),
        }
    }

    /// Whether the size moves.
    #[inline]
    pub fn extends(&self) -> bool {
        match self {
            Self::Extend => true,
            Self::Locked(locked) => locked.contains(LockedDio::EXTEND),
            _ => false,
        }
    }
}

/// `f_op->write`. Returns bytes written, or `EIOCBQUEUED` for an asynchronous kiocb whose completion will tell.
///
/// `EBADF` unless the file is open for writing, `EROFS` if the mount has become read-only, `EIO` if it was shut down, `EAGAIN` for
/// a kiocb that must not sleep and would.
///
/// Takes and returns `i_mutex`; sleeps.
#[doc(alias = "ext4_file_write_iter")]
pub fn ext4_file_write(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>) -> Result<usize> {
    let _syscall = syscall("ext4_file_write");
    iocb.ki_filp.may_write()?;
    let sb = iocb.ki_filp.f_inode().i_sb();
    sb.s_fs_info().ext4_emergency_state()?;
    // Nothing is written to a frozen file system (G8); what is queued when this returns is counted where freezing waits for it.
    let _write = match iocb.ki_flags.contains(IocbFlags::NOWAIT) {
        _ if reverted(Fix::G8) => None,
        true => Some(sb.try_start_write().ok_or(EAGAIN)?),
        false => Some(sb.start_write()),
    };
    if iocb.ki_filp.f_inode().i_sb().s_fs_info().is_rdonly() {
        return Err(EROFS);
    }
    // Asked once for the whole I/O: fcntl() may change the file's flags between here and the generic code, and C's
    // direct_IO then met a kiocb without a verdict (G7).
    if !iocb.ki_flags.contains(IocbFlags::DIRECT) || ext4_should_journal_data(iocb.ki_filp.f_inode()) {
        return ext4_buffered_write_iter(iocb, iter);
    }
    let pos = iocb.ki_pos;
    ext4_file_dio_write(iocb, iter, pos)
}

/// `f_op->read`: bytes read, 0 at the end of the file, or `EIOCBQUEUED`.
pub fn ext4_file_read(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>) -> Result<usize> {
    let _syscall = syscall("ext4_file_read");
    iocb.ki_filp.f_inode().i_sb().s_fs_info().ext4_emergency_state()?;
    generic_file_read(iocb, iter)
}

/// A write that is finer than the file system's blocks: it may zero what is beside it in them.
///
/// PORT: C lets a write at or past `i_size` go as aligned; with the size in the middle of a block it is not (G18).
#[inline]
fn ext4_unaligned_aio(inode: &Inode, iter: &IovIter<'_>, pos: i64) -> bool {
    let blockmask = (1i64 << inode.i_blkbits()) - 1;
    // Only the low bits count, and they are right even if the sum wraps.
    (pos | pos.wrapping_add(iter.count() as i64)) & blockmask != 0
}

/// O_DIRECT writes.
///
/// Entered with no lock of the inode, returns with none. In between, in this order: the inode's aio mutex, for unaligned
/// asynchronous writes; `i_mutex`, which `ext4_ext_direct_IO` gives up during the I/O if the verdict here was "overwrite".
pub fn ext4_file_dio_write(iocb: &mut Kiocb<'_>, iter: &mut IovIter<'_>, pos: i64) -> Result<usize> {
    let inode: &Inode = iocb.ki_filp.f_inode();

    let unaligned_aio = inode.i_private().is_extents() && !iocb.is_sync() && ext4_unaligned_aio(inode, iter, pos);
    // One unaligned asynchronous write at a time.
    let aio_mutex = match unaligned_aio {
        true => Some(ext4_aio_mutex(inode, iocb.is_nowait())?),
        false => None,
    };

    bug_on!(iocb.ki_pos != pos);

    trace("ext4_file_dio_write");
    let i_mutex = match iocb.is_nowait() {
        false => inode.lock(),
        true => match inode.try_lock() {
            Some(i_mutex) => i_mutex,
            None => return Err(EAGAIN),
        },
    };
    let plug = BlkPlug::start();

    // Always set, whatever path the write takes from here: who reads it must find it (G7, G37).
    ext4_set_verdict(iocb, Verdict::Locked(LockedDio::empty()));
    let (i_mutex, range, ret) = ext4_dio_write_checked(iocb, i_mutex, iter, unaligned_aio);
    // A path that never asked for the verdict leaves it behind.
    iocb.private = None;
    if let Some(i_mutex) = i_mutex {
        i_mutex.unlock();
    }

    let ret = match (ret, range) {
        // PORT: C also syncs here if the write was queued, long before its data is on disk (G13); that is done when it
        // completes.
        (Ok(n @ 1..), Some(range)) => generic_write_sync(iocb, range.pos, n).map(|()| n),
        (Err(EIOCBQUEUED), Some(range)) if reverted(Fix::G13) => {
            generic_write_sync(iocb, range.pos, 1).and(Err(EIOCBQUEUED))
        }
        (ret, _) => ret,
    };
    plug.finish();

    drop(aio_mutex);
    ret
}

/// The inode's aio mutex. `EAGAIN` if it is taken and the write must not sleep.
///
/// PORT: C waits here, with `i_mutex` free, until no conversion is outstanding; a stream of aligned writes keeps it waiting for
/// ever (G19). A write that zeroes waits under `i_mutex`: see `ext4_dio_prepare`.
#[cold]
fn ext4_aio_mutex(inode: &Inode, nowait: bool) -> Result<MutexGuard<'_, ()>> {
    /// C's table of 37, for the test that shows it wrong; with one slot, so that all collide.
    static AIO_MUTEXES: Mutex<()> = Mutex::new(());
    let aio = &inode.i_private().aio;
    let aio_mutex = if reverted(Fix::G20) { &AIO_MUTEXES } else { &aio.aio_mutex };
    if nowait {
        return aio_mutex.try_lock().ok_or(EAGAIN);
    }
    let guard = aio_mutex.lock();
    if reverted(Fix::G19) {
        aio.wait();
    }
    Ok(guard)
}

#[inline]
fn ext4_set_verdict(iocb: &mut Kiocb<'_>, verdict: Verdict) {
    // The file may have lost O_DIRECT since this write was found to be direct; the verdict stands all the same (G7).
    if reverted(Fix::G7) && !iocb.ki_filp.f_flags().contains(OpenFlags::O_DIRECT) {
        return;
    }
    iocb.private = Some(Private::Verdict(verdict));
}

/// The part under `i_mutex`: checks, verdict, write. Entered with `i_mutex`, returns with it; only a write that must not sleep may
/// return without.
#[inline]
fn ext4_dio_write_checked<'i>(
    iocb: &mut Kiocb<'_>,
    i_mutex: Locked<'i>,
    iter: &mut IovIter<'_>,
    unaligned_aio: bool,
) -> (Option<Locked<'i>>, Option<WriteRange>, Result<usize>) {
    // PORT: C takes the verdict first and then lets O_APPEND and the limits move and cut the write (G37).
    let early = WriteRange { pos: iocb.ki_pos, count: iter.count() };
    let range = match generic_write_checks(iocb, &i_mutex, iter) {
        Ok(Some(range)) => range,
        Ok(None) => return (Some(i_mutex), None, Ok(0)),
        Err(e) => return (Some(i_mutex), None, Err(e)),
    };
    let asked = if reverted(Fix::G37) { early } else { range };
    let verdict = match ext4_dio_verdict(iocb, &i_mutex, iter, asked, unaligned_aio) {
        Ok(verdict) => verdict,
        Err(e) => return (Some(i_mutex), None, Err(e)),
    };
    ext4_set_verdict(iocb, verdict);
    // The same lock as in the checks: after an unlock and lock they would all have to be made again (G28).
    let i_mutex = if reverted(Fix::G28) { ext4_dio_relock(i_mutex) } else { i_mutex };
    trace("ext4_dio_verdict");
    let (i_mutex, ret) = __generic_file_aio_write(iocb, i_mutex, range, iter);
    (i_mutex, Some(range), ret)
}

/// What C's `ext4_dio_write_checks()` did to get the lock exclusively, without looking again: for the test that shows it wrong.
#[cold]
fn ext4_dio_relock(i_mutex: Locked<'_>) -> Locked<'_> {
    let inode = i_mutex.inode();
    i_mutex.unlock();
    trace("ext4_dio_verdict");
    inode.lock()
}

/// May this write leave `i_mutex`? Entered and left with it: the answer is good while it is held, and afterwards as long as
/// the write is counted in flight.
///
/// `EINVAL` if the device cannot write it, `EAGAIN` if it would sleep and must not; `EFBIG`, `EIO`, `EFSCORRUPTED` from looking
/// the blocks up.
#[inline]
fn ext4_dio_verdict(
    iocb: &Kiocb<'_>,
    i_mutex: &Locked<'_>,
    iter: &IovIter<'_>,
    range: WriteRange,
    unaligned_aio: bool,
) -> Result<Verdict> {
    let inode = i_mutex.inode();
    let mode = inode.i_sb().s_fs_info().dio_mode();
    let end = range.pos.checked_add(i64::try_from(range.count).map_err(|_| EFBIG)?).ok_or(EFBIG)?;
    // Past i_size there is the size to move. The disk may know less of the file than memory: a buffered write is not there
    // yet; and what is written beyond what the disk knows is not there after a crash (G24).
    let i_disksize = inode.i_private().i_disksize.load(Ordering::Acquire);
    if end > inode.i_size() || end > i_disksize && !reverted(Fix::G24) {
        return ext4_dio_verdict_change(iocb, i_mutex, iter, range, LockedDio::EXTEND);
    }
    // Whole written extents, or not: asked once for both answers.
    let Some((map, one_extent)) = ext4_overwrite_io(inode, range, iocb.is_nowait())? else {
        return ext4_dio_verdict_change(iocb, i_mutex, iter, range, LockedDio::FILL);
    };

    let may_leave = ext4_should_dioread_nolock(inode, mode)
        && !unaligned_aio
        // Pages are written and dropped before, and dropped again at the end if somebody has read them meanwhile (G11). The patch
        // keeps the lock if the file has any.
        && (mode == DioMode::InFlight || inode.i_mapping().nrpages() == 0)
        // Finer than the device can write: the rest of its block is read first, so nobody may write there meanwhile.
        && ext4_device_aligned(inode, iter, range)
        // The patch asks with one look-up, which finds one extent; across a border of two it keeps the lock (G23).
        && (one_extent || mode == DioMode::InFlight && !reverted(Fix::G23));

    if !may_leave {
        ext4_sector_aligned(iter, range)?;
    }
    let stats = &inode.i_sb().s_fs_info().dio.stats;
    match (may_leave, mode) {
        (true, DioMode::InFlight) => &stats.in_flight,
        (true, DioMode::IDataSem) => &stats.i_data_sem,
        _ => &stats.exclusive,
    }
    .inc();
    if may_leave {
        return Ok(Verdict::Overwrite(map, mode));
    }
    if iocb.is_nowait() && !ext4_device_aligned(inode, iter, range) {
        return Err(EAGAIN);
    }
    Ok(Verdict::Locked(LockedDio::empty()))
}

/// The verdict on a write that fills (`FILL`) or extends (`EXTEND`) the file. As [`ext4_dio_verdict`].
///
/// There is one lock, held since before the first question: no answer is older than the lock it is used under (G28).
#[cold]
fn ext4_dio_verdict_change(
    iocb: &Kiocb<'_>,
    i_mutex: &Locked<'_>,
    iter: &IovIter<'_>,
    range: WriteRange,
    mut what: LockedDio,
) -> Result<Verdict> {
    let inode = i_mutex.inode();
    // It allocates, or converts when it ends: both sleep (G34).
    if iocb.is_nowait() {
        return Err(EAGAIN);
    }
    ext4_sector_aligned(iter, range)?;
    let device_aligned = ext4_device_aligned(inode, iter, range);
    let blockmask = (1i64 << inode.i_blkbits()) - 1;
    let i_size = inode.i_size();
    let whole_blocks = (range.pos | range.pos.wrapping_add(range.count as i64)) & blockmask == 0
        || reverted(Fix::G18) && range.pos >= i_size;
    // The block that the file ends in has to be zeroed to its end first.
    let gap = range.pos > i_size && i_size & blockmask != 0;
    let extends = what.contains(LockedDio::EXTEND);
    let mode = inode.i_sb().s_fs_info().dio_mode();
    let leaves =
        mode == DioMode::InFlight && ext4_should_dioread_nolock(inode, mode) && whole_blocks && device_aligned && !gap;
    let stats = &inode.i_sb().s_fs_info().dio.stats;
    if extends { &stats.extend } else { &stats.fill }.inc();
    if leaves { &stats.in_flight } else { &stats.exclusive }.inc();
    Ok(match (leaves, extends) {
        (true, true) => Verdict::Extend,
        (true, false) => Verdict::Fill,
        (false, _) => {
            // As in C one that extends is waited for, and one that zeroes is alone in the device.
            if extends || !whole_blocks || !device_aligned {
                what |= LockedDio::WAIT;
            }
            Verdict::Locked(what)
        }
    })
}

/// Where the range begins on the device, and whether all of it is one written extent; nothing if some of it is not written.
///
/// Mapped is not enough: an extent that was allocated ahead and never written must be converted after the write, which is a
/// change of the map.
#[inline]
fn ext4_overwrite_io(inode: &Inode, range: WriteRange, nowait: bool) -> Result<Option<(MapBlocks, bool)>> {
    let blkbits = inode.i_blkbits();
    let first = range.pos as u64 >> blkbits;
    let end = (range.pos as u64 + range.count as u64 + (1 << blkbits) - 1) >> blkbits;
    // Below 2^32, as it ends inside the file.
    let m_lblk = Lblk(u32::try_from(first).map_err(|_| EFBIG)?);
    let m_len = u32::try_from(end - first).map_err(|_| EFBIG)?;
    let Some(map) = ext4_written_blocks(inode, m_lblk, m_len, nowait)? else { return Ok(None) };
    if map.m_len < m_len && !ext4_overwrite_io_many(inode, first + u64::from(map.m_len), end, nowait)? {
        return Ok(None);
    }
    Ok(Some((map, map.m_len == m_len)))
}

/// Up to `len` blocks from `lblk` on, at least one, if they are written.
#[inline]
fn ext4_written_blocks(inode: &Inode, lblk: Lblk, len: u32, nowait: bool) -> Result<Option<MapBlocks>> {
    let mut map = MapBlocks::new(lblk, len);
    let n = match nowait {
        false => ext4_map_blocks(inode, &mut map)?,
        true => ext4_map_blocks_nowait(inode, &mut map)?,
    };
    Ok((n > 0 && map.m_flags.contains(MapFlags::MAPPED)).then_some(map))
}

/// Whether blocks `at..end` are all written, in however many extents.
#[cold]
fn ext4_overwrite_io_many(inode: &Inode, mut at: u64, end: u64, nowait: bool) -> Result<bool> {
    while at < end {
        let lblk = Lblk(u32::try_from(at).map_err(|_| EFBIG)?);
        let len = u32::try_from(end - at).map_err(|_| EFBIG)?;
        match ext4_written_blocks(inode, lblk, len, nowait)? {
            Some(map) => at += u64::from(map.m_len),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether the device can write the range as it is.
#[inline]
fn ext4_device_aligned(inode: &Inode, iter: &IovIter<'_>, range: WriteRange) -> bool {
    let lbs = u64::from(inode.i_sb().s_bdev().logical_block_size());
    (range.pos as u64 | iter.alignment() as u64) & (lbs - 1) == 0
}

/// `EINVAL` for what no device can write directly. Asked before anything changes, privileges and times included.
#[cold]
fn ext4_sector_aligned(iter: &IovIter<'_>, range: WriteRange) -> Result {
    if (range.pos as usize | iter.alignment()) & 511 == 0 { Ok(()) } else { Err(EINVAL) }
}
