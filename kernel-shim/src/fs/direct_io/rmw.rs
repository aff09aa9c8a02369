// SPDX-License-Identifier: GPL-2.0-only
//! Writes finer than what the device can write: read, put the new bytes in, write.

use super::{DioRequest, MapResult};
use crate::alloc::{GFP_KERNEL, KVec};
use crate::block::{Bdev, ReqOpf, bdev_rw};
use crate::error::{Result, code::*};
use crate::fs::{FileSystem, IovIter, Kiocb};

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
        let in_block = pos as usize & (bs - 1);
        let blocks = (in_block + iter.count()).div_ceil(bs).min(RMW_BYTES / bs) as u32;
        let (pblk, len, fresh) = match (req.get_block)(pos >> blkbits, blocks, true) {
            Ok(MapResult::Mapped { pblk, len, fresh }) => (pblk, len.min(blocks), fresh),
            Ok(MapResult::Hole { .. }) => break Err(ENOTBLK),
            Err(e) => break Err(e),
        };
        // What holds no data yet is written in whole blocks, with zeros for old data.
        let unit = if fresh { bs } else { lbs };
        let head = pos as usize & (unit - 1);
        let n = (((len as usize) << blkbits) - in_block).min(iter.count()).min(RMW_BYTES - head);
        let whole = (head + n).div_ceil(unit) * unit;
        let sector = (pblk << (blkbits - 9)) + ((in_block - head) as u64 >> 9);
        match rmw_chunk(bdev, sector, &mut buf[..whole], (unit, fresh), head..head + n, iter) {
            Ok(copied) => {
                done += copied;
                if copied < n {
                    break Err(EFAULT);
                }
            }
            Err(e) => break Err(e),
        }
    };
    let ret = match ret {
        Err(e) if done == 0 || e == EIO => Err(e),
        _ => Ok(done),
    };
    super::dio_end(inode, req.rw, req.end_io, iocb.private.take(), req.offset, done, ret)
}

/// One stretch of [`dio_read_modify_write`]: bytes `part` of `buf`, which is what the device has at `sector`, or, if it is fresh, zeros;
/// written in multiples of the unit. Returns how many bytes the caller's memory had; the rest of the stretch keeps its old data.
fn rmw_chunk(
    bdev: &Bdev,
    sector: u64,
    buf: &mut [u8],
    (unit, fresh): (usize, bool),
    part: core::ops::Range<usize>,
    iter: &mut IovIter<'_>,
) -> Result<usize> {
    // Old data under everything: a bad address half-way must not put other bytes there (G9).
    if fresh {
        buf.fill(0);
    } else {
        bdev_rw(bdev, ReqOpf::REQ_OP_READ, sector, buf)?;
    }
    let head = part.start;
    let copied = iter.copy_from_iter(&mut buf[part]);
    if copied > 0 {
        let whole = (head + copied).div_ceil(unit) * unit;
        bdev_rw(bdev, ReqOpf::REQ_OP_WRITE, sector, &mut buf[..whole])?;
    }
    Ok(copied)
}
