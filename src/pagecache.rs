// SPDX-License-Identifier: GPL-2.0-only
//! What the truncate family asks of the page cache, as long as that has clean pages only.

use kernel_shim::block::{ReqOpf, bdev_rw};
use kernel_shim::error::Result;

use crate::Inode;
use crate::ext4::*;
use crate::inode::ext4_map_blocks;

pub(crate) fn filemap_write_and_wait_range(_inode: &Inode, _start: i64, _end: i64) -> Result {
    Ok(())
}

pub(crate) fn truncate_pagecache(inode: &Inode, size: i64) {
    inode.i_mapping().invalidate_pages(size / 4096 * 4096, i64::MAX);
}

pub(crate) fn invalidate_lock(_inode: &Inode) {}

pub(crate) fn ext4_block_zero_page_range(inode: &Inode, from: i64, len: i64) -> Result {
    let mut map = MapBlocks::new(Lblk((from >> inode.i_blkbits()) as u32), 1);
    if ext4_map_blocks(inode, &mut map, GetBlocks::empty())? == 0 || !map.m_flags.contains(MapFlags::MAPPED) {
        return Ok(());
    }
    let bs = 1usize << inode.i_blkbits();
    let mut buf = kernel_shim::alloc::KVec::from_elem(0u8, bs + 4096, kernel_shim::alloc::GFP_KERNEL)?;
    let skip = buf.as_ptr().align_offset(4096);
    let buf = &mut buf[skip..skip + bs];
    let sector = map.m_pblk.0 << (inode.i_blkbits() - 9);
    bdev_rw(inode.i_sb().s_bdev(), ReqOpf::REQ_OP_READ, sector, buf)?;
    let at = from as usize & (bs - 1);
    buf[at..at + len as usize].fill(0);
    bdev_rw(inode.i_sb().s_bdev(), ReqOpf::REQ_OP_WRITE, sector, buf)?;
    inode.i_mapping().invalidate_pages(from, from);
    Ok(())
}
