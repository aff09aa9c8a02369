// SPDX-License-Identifier: GPL-2.0-only
//! `mm/filemap.c`: the way of a write from `f_op->write` to `a_ops->direct_IO`, and the page cache it has to stay right with.
//!
//! The cache itself is in [`page_cache`](super::page_cache), [`readahead`](super::readahead) and [`writeback`](super::writeback).

use crate::error::{Result, code::*};
use crate::fs::inode::{S_ISGID, S_ISUID, S_IXGRP};
use crate::fs::{File, FileSystem, Inode, IocbFlags, IovIter, Kiocb, Locked};

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
        iocb.ki_pos = i_mutex.i_size();
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

/// A write takes set-user-ID and set-group-ID away from a file, unless the writer may keep them. Entered with `i_mutex`.
#[inline]
pub fn file_remove_suid<F: FileSystem>(file: &File<F>, i_mutex: &Locked<'_, F>) {
    let mode = i_mutex.i_mode();
    if mode & (S_ISUID | S_ISGID) == 0 || !i_mutex.is_reg() || file.cap_fsetid() {
        return;
    }
    let mut kill = mode & S_ISUID;
    if mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP {
        kill |= S_ISGID;
    }
    if kill != 0 {
        i_mutex.set_mode(mode & !kill);
    }
}

/// The checked write: privileges, times, and the data, directly or, for what was left over, through the cache.
///
/// Entered with `i_mutex` held, returns with it held; a direct write may have been without in between.
#[doc(alias = "__generic_file_write_iter")]
#[inline(always)]
pub fn __generic_file_aio_write<'i, F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: Locked<'i, F>,
    range: WriteRange,
    iter: &mut IovIter<'_>,
) -> (Locked<'i, F>, Result<usize>) {
    file_remove_suid(iocb.ki_filp, &i_mutex);
    i_mutex.file_update_time();
    let (i_mutex, written) = if iocb.ki_flags.contains(IocbFlags::DIRECT) {
        match generic_file_direct_write(iocb, i_mutex, range, iter) {
            (i_mutex, Ok(n)) if n < range.count && iter.count() > 0 => (i_mutex, n),
            done => return done,
        }
    } else {
        (i_mutex, 0)
    };
    let ret = match F::buffered_write(iocb, &i_mutex, iter) {
        Ok(n) => Ok(written + n),
        Err(_) if written > 0 => Ok(written),
        Err(e) => Err(e),
    };
    (i_mutex, ret)
}

/// The direct part of a write. Returns short, with `iter` at what is left, if the rest has to go through the cache.
///
/// Entered with `i_mutex` held, returns with it held; in between, `direct_IO` may be without.
#[inline(always)]
pub fn generic_file_direct_write<'i, F: FileSystem>(
    iocb: &mut Kiocb<'_, F>,
    i_mutex: Locked<'i, F>,
    range: WriteRange,
    iter: &mut IovIter<'_>,
) -> (Locked<'i, F>, Result<usize>) {
    let WriteRange { pos, count } = range;
    if i_mutex.i_mapping().nrpages() != 0 {
        i_mutex.i_mapping().invalidate_pages(pos, pos.saturating_add(count as i64 - 1));
    }
    let (i_mutex, ret) = F::direct_IO(iocb, i_mutex, iter, pos);
    // PORT: C drops pages once more here, which for an asynchronous write is before its data is on disk. It is part of
    // completion (fs/direct_io.rs).
    match ret {
        Ok(0) | Err(ENOTBLK) => (i_mutex, Ok(0)),
        Ok(n) => {
            iocb.ki_pos = pos + n as i64;
            // A short count is the answer if memory or the device gave out; the cache cannot do better.
            iter.truncate(0);
            (i_mutex, Ok(n))
        }
        err => (i_mutex, err),
    }
}

/// After a direct write: drops what the cache has of it.
pub(crate) fn dio_invalidate_pages<F: FileSystem>(inode: &Inode<F>, start: i64, end: i64) {
    inode.i_mapping().invalidate_pages(start, end);
}

/// Makes a finished write durable if file or inode ask for it. Sleeps; takes no `i_mutex`.
#[inline]
pub fn generic_write_sync<F: FileSystem>(iocb: &Kiocb<'_, F>, pos: i64, count: usize) -> Result {
    if !iocb.is_dsync() {
        return Ok(());
    }
    let datasync = !iocb.ki_flags.contains(IocbFlags::SYNC);
    F::fsync(iocb.ki_filp.f_inode(), pos, pos.saturating_add(count as i64 - 1), datasync)
}
