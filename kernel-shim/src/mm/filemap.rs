// SPDX-License-Identifier: GPL-2.0-only
//! `mm/filemap.c`: the way of a write from `f_op->write` to `a_ops->direct_IO`, and the page cache it has to stay right with.
//!
//! The cache itself is in [`page_cache`](super::page_cache), [`readahead`](super::readahead) and [`writeback`](super::writeback).

use crate::error::{Result, code::*};
use crate::fs::inode::{S_ISGID, S_ISUID, S_IXGRP};
use crate::fs::{File, FileSystem, Inode, IocbFlags, IovIter, Kiocb, Locked};
use crate::sched::current;
use crate::testing::{Fix, reverted};

pub use super::page_cache::{AddressSpace, BlockRun, LockedPage, PAGE_SIZE, reclaim};
pub use super::readahead::{fill_page, generic_file_buffered_read};
pub use super::writeback::{Writeback, WritebackMode};

/// `f_op->read`: direct or buffered, as the kiocb says. [`EBADF`] unless open for reading, [`EFAULT`] for memory that may not
/// be written.
#[doc(alias = "generic_file_aio_read")]
pub fn generic_file_read<F: FileSystem>(iocb: &mut Kiocb<'_, F>, iter: &mut IovIter<'_>) -> Result<usize> {
    iocb.ki_filp.may_read()?;
    if !iter.is_dest() {
        return Err(EFAULT);
    }
    if iocb.ki_filp.f_inode().is_dir() {
        return Err(EISDIR);
    }
    if !iocb.ki_flags.contains(IocbFlags::DIRECT) {
        return generic_file_buffered_read(iocb, iter);
    }
    let offset = iocb.ki_pos;
    let inode = iocb.ki_filp.f_inode();
    if inode.i_mapping().nrpages() != 0 && iter.count() > 0 && offset >= 0 {
        if iocb.is_nowait() {
            return Err(EAGAIN);
        }
        F::write_and_wait(inode, offset, offset.saturating_add(iter.count() as i64 - 1))?;
    }
    let ret = F::direct_IO_read(iocb, iter, offset);
    if let Ok(n) = ret {
        iocb.ki_pos += n as i64;
        iocb.ki_filp.f_inode().file_accessed();
    }
    ret
}

/// Where a write goes and how long it is, found under `i_mutex`: [`generic_write_checks`] gives it, and what follows needs it.
/// Good as long as that `i_mutex` is held.
#[derive(Clone, Copy, Debug)]
pub struct WriteRange {
    /// First byte.
    pub pos: i64,
    /// Bytes, at least 1.
    pub count: usize,
}

/// Settles where a write goes: the end of the file for `O_APPEND`, cut where the file system's largest file ends. `None` if
/// there is nothing to write. Entered with `i_mutex`, which the file size may not change without.
///
/// [`EFBIG`] at or past the largest size, [`EINVAL`] for a negative position.
#[inline(always)]
pub fn generic_write_checks<F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: &Locked<'_, F>,
    iter: &mut IovIter<'_>,
) -> Result<Option<WriteRange>> {
    if iter.count() == 0 {
        return Ok(None);
    }
    if iocb.ki_flags.contains(IocbFlags::APPEND) {
        iocb.ki_pos = F::append_pos(i_mutex);
    }
    if iocb.ki_pos < 0 {
        return Err(EINVAL);
    }
    // No file is longer than the longest may be.
    let inside = i64::try_from(iter.count()).ok().and_then(|n| iocb.ki_pos.checked_add(n));
    if inside.is_some_and(|end| end <= i_mutex.i_size()) {
        return Ok(Some(WriteRange { pos: iocb.ki_pos, count: iter.count() }));
    }
    let room = F::s_maxbytes(i_mutex).saturating_sub(iocb.ki_pos);
    if room <= 0 {
        return Err(EFBIG);
    }
    iter.truncate(usize::try_from(room).unwrap_or(usize::MAX));
    Ok(Some(WriteRange { pos: iocb.ki_pos, count: iter.count() }))
}

/// Which permission bits a write takes away from a file, unless the writer may keep them; 0 for none.
#[inline]
fn killed_suid<F: FileSystem>(file: &File<F>, i_mutex: &Locked<'_, F>) -> u32 {
    let mode = i_mutex.i_mode();
    let may_keep = || file.cap_fsetid() || current().cap_fsetid();
    if mode & (S_ISUID | S_ISGID) == 0 || !i_mutex.is_reg() || may_keep() {
        return 0;
    }
    let mut kill = mode & S_ISUID;
    if mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP {
        kill |= S_ISGID;
    }
    kill
}

/// Whether [`file_remove_suid`] has something to do.
#[inline]
pub fn should_remove_suid<F: FileSystem>(file: &File<F>, i_mutex: &Locked<'_, F>) -> bool {
    killed_suid(file, i_mutex) != 0
}

/// A write takes set-user-ID and set-group-ID away from a file, unless the writer may keep them. Entered with `i_mutex`.
#[inline]
pub fn file_remove_suid<F: FileSystem>(file: &File<F>, i_mutex: &Locked<'_, F>) {
    let kill = killed_suid(file, i_mutex);
    if kill != 0 {
        i_mutex.set_mode(i_mutex.i_mode() & !kill);
    }
}

/// The checked write: privileges, times, and the data, directly or, for what was left over, through the cache.
///
/// Entered with `i_mutex` held, returns with it held; a direct write may have been without in between, and one that must not sleep
/// may return without.
#[doc(alias = "__generic_file_write_iter")]
#[inline(always)]
pub fn __generic_file_aio_write<'i, F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: Locked<'i, F>,
    range: WriteRange,
    iter: &mut IovIter<'_>,
) -> (Option<Locked<'i, F>>, Result<usize>) {
    if let Err(e) = F::file_remove_privs(iocb, &i_mutex) {
        return (Some(i_mutex), Err(e));
    }
    i_mutex.file_update_time();
    if !iocb.ki_flags.contains(IocbFlags::DIRECT) {
        let ret = F::buffered_write(iocb, &i_mutex, iter);
        return (Some(i_mutex), ret);
    }
    match generic_file_direct_write(iocb, i_mutex, range, iter) {
        (Some(i_mutex), Ok(n)) if n < range.count && iter.count() > 0 => {
            let ret = direct_write_fallback(iocb, &i_mutex, iter, n);
            (Some(i_mutex), ret)
        }
        done => done,
    }
}

/// What a direct write left over goes through the cache, and then out of it: the caller expects the data on the device. `direct` bytes
/// were written before.
#[cold]
fn direct_write_fallback<F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: &Locked<'_, F>,
    iter: &mut IovIter<'_>,
    direct: usize,
) -> Result<usize> {
    if iocb.is_nowait() {
        return if direct > 0 { Ok(direct) } else { Err(EAGAIN) };
    }
    let pos = iocb.ki_pos;
    let n = match F::buffered_write(iocb, i_mutex, iter) {
        Ok(n) => n,
        Err(_) if direct > 0 => return Ok(direct),
        Err(e) => return Err(e),
    };
    let last = pos.saturating_add(n as i64 - 1);
    if n > 0 {
        // If it does not get to the device, it was not written directly.
        if let Err(e) = F::write_and_wait(i_mutex, pos, last) {
            return if direct > 0 { Ok(direct) } else { Err(e) };
        }
        i_mutex.i_mapping().invalidate_pages(pos, last);
    }
    Ok(direct + n)
}

/// The direct part of a write. Returns short, with `iter` at what is left, if the rest has to go through the cache.
///
/// Entered with `i_mutex` held, returns with it held; in between, `direct_IO` may be without, and one that must not sleep may
/// return without.
#[inline(always)]
pub fn generic_file_direct_write<'i, F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: Locked<'i, F>,
    range: WriteRange,
    iter: &mut IovIter<'_>,
) -> (Option<Locked<'i, F>>, Result<usize>) {
    let WriteRange { pos, count } = range;
    if i_mutex.i_mapping().nrpages() != 0
        && let Err(e) = flush_and_drop_pages(iocb, &i_mutex, range)
    {
        return (Some(i_mutex), if e == EBUSY { Ok(0) } else { Err(e) });
    }
    let (i_mutex, ret) = F::direct_IO(iocb, i_mutex, iter, pos);
    // PORT: C drops pages once more here, which for an asynchronous write is before its data is on disk. It is part of
    // completion (fs/direct_io.rs: G11). And C moves the size here, which a truncate may have moved since direct_IO let go of its
    // hold on the file (G10); whoever moves it does so while he is counted in flight.
    match ret {
        Ok(0) | Err(ENOTBLK) => (i_mutex, Ok(0)),
        Ok(n) => {
            iocb.ki_pos = pos + n as i64;
            if reverted(Fix::G10)
                && let Some(i_mutex) = i_mutex.as_ref().filter(|i_mutex| iocb.ki_pos > i_mutex.i_size())
            {
                i_mutex.i_size_write(iocb.ki_pos);
            }
            // A short count is the answer if memory, space or the device gave out; the cache cannot do better.
            if n < count {
                iter.truncate(0);
            }
            (i_mutex, Ok(n))
        }
        err => (i_mutex, err),
    }
}

/// Before a direct write: what the cache has of the range goes to the device, so that it does not go there later, over the direct data;
/// and then away. [`EBUSY`] if some of it cannot go.
#[cold]
fn flush_and_drop_pages<F: FileSystem>(iocb: &Kiocb<'_, F>, i_mutex: &Locked<'_, F>, range: WriteRange) -> Result {
    let last = range.pos.saturating_add(range.count as i64 - 1);
    if iocb.is_nowait() {
        return Err(EAGAIN);
    }
    F::write_and_wait(i_mutex, range.pos, last)?;
    if i_mutex.i_mapping().invalidate_pages(range.pos, last) { Ok(()) } else { Err(EBUSY) }
}

/// After a direct write: drops what the cache has of it.
pub(crate) fn dio_invalidate_pages<F: FileSystem>(inode: &Inode<F>, start: i64, end: i64) {
    inode.i_mapping().invalidate_pages(start, end);
}

/// Makes a finished write durable if file or inode ask for it. Sleeps; takes no `i_mutex`.
#[inline]
pub fn generic_write_sync<F: FileSystem>(iocb: &Kiocb<'_, F>, pos: i64, count: usize) -> Result {
    if !iocb.is_dsync() || iocb.ki_flags.contains(IocbFlags::WRITE_THROUGH) {
        return Ok(());
    }
    let datasync = !iocb.ki_flags.contains(IocbFlags::SYNC);
    F::fsync(iocb.ki_filp.f_inode(), pos, pos.saturating_add(count as i64 - 1), datasync)
}
