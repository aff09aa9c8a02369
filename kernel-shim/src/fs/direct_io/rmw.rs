// SPDX-License-Identifier: GPL-2.0-only
//! Writes finer than what the device can write: read, put the new bytes in, write.

use super::{DioRequest, MapResult};
use crate::alloc::{GFP_KERNEL, KVec};
use crate::block::{Bdev, ReqOpf, bdev_rw};
use crate::error::{Result, code::*};
use crate::fs::{FileSystem, IovIter, Kiocb};
use crate::mm::filemap;

/// Bytes a read-modify-write carries at once.
const RMW_BYTES: usize = 64 << 10;

/// Memory a device may transfer, whatever alignment it asks for up to a page.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
pub(super) struct Bounce(pub(super) [u8; 4096]);

/// For the test that shows what came of writing it.
pub(super) static ZERO_PAGE: Bounce = Bounce([0; 4096]);

/// A write finer than the device's logical block: reads the blocks at both ends, puts the new bytes between,
/// writes all. Synchronous, whatever the kiocb asks for. The caller keeps every other I/O to the file away (see
/// [`DioFlags::READ_MODIFY_WRITE`](super::DioFlags::READ_MODIFY_WRITE)).
#[cold]
pub(super) fn dio_read_modify_write<F, G>(
    iocb: &mut Kiocb<'_, F>,
    iter: &mut IovIter<'_>,
    req: &mut DioRequest<'_, F, G>,
    lbs: usize,
) -> Result<usize>
where
    F: FileSystem,
    G: FnMut(u64, u32, bool) -> Result<MapResult>,
{
    let (inode, bdev) = (req.inode, req.inode.i_sb().s_bdev());
    let _count = inode.inode_dio_begin();
    let blkbits = inode.i_blkbits();
    let bs = 1usize << blkbits;
    let mut bounce = KVec::from_elem(Bounce([0; 4096]), RMW_BYTES / 4096, GFP_KERNEL)?;
    // SAFETY: a Bounce is 4096 bytes without padding, and the vector's length of them is initialised.
    let buf = unsafe { core::slice::from_raw_parts_mut(bounce.as_mut_ptr().cast::<u8>(), RMW_BYTES) };
    let mut done = 0;
    let ret = loop {
        if iter.count() == 0 {
            break Ok(());
        }
        let pos = req.offset as u64 + done as u64;
        let (in_block, head) = (pos as usize & (bs - 1), pos as usize & (lbs - 1));
        let blocks = (in_block + iter.count()).div_ceil(bs).min(RMW_BYTES / bs) as u32;
        let (pblk, len) = match (req.get_block)(pos >> blkbits, blocks, true) {
            Ok(MapResult::Mapped { pblk, len }) => (pblk, len.min(blocks)),
            Ok(MapResult::Hole { .. }) => break Err(ENOTBLK),
            Err(e) => break Err(e),
        };
        let n = (((len as usize) << blkbits) - in_block).min(iter.count()).min(RMW_BYTES - head);
        let whole = (head + n).div_ceil(lbs) * lbs;
        let sector = (pblk << (blkbits - 9)) + ((in_block - head) as u64 >> 9);
        match rmw_chunk(bdev, sector, &mut buf[..whole], lbs, head, n, iter) {
            Ok(copied) => {
                done += copied;
                if copied < n {
                    break Err(EFAULT);
                }
            }
            Err(e) => break Err(e),
        }
    };
    if done > 0 && inode.i_mapping().nrpages() != 0 {
        filemap::dio_invalidate_pages(inode, req.offset, req.offset + done as i64 - 1);
    }
    drop(iocb.private.take());
    match ret {
        Err(e) if done == 0 || e == EIO => Err(e),
        _ => Ok(done),
    }
}

/// One stretch of [`dio_read_modify_write`]: `n` bytes from `head` on in `buf`, which is what the device has at `sector`.
/// Returns how many bytes the caller's memory had; the rest of the stretch keeps its old data.
fn rmw_chunk(
    bdev: &Bdev,
    sector: u64,
    buf: &mut [u8],
    lbs: usize,
    head: usize,
    n: usize,
    iter: &mut IovIter<'_>,
) -> Result<usize> {
    // Old data under everything: a bad address half-way must not put other bytes there (G9).
    bdev_rw(bdev, ReqOpf::REQ_OP_READ, sector, buf)?;
    let copied = iter.copy_from_iter(&mut buf[head..head + n]);
    if copied > 0 {
        let whole = (head + copied).div_ceil(lbs) * lbs;
        bdev_rw(bdev, ReqOpf::REQ_OP_WRITE, sector, &mut buf[..whole])?;
    }
    Ok(copied)
}
