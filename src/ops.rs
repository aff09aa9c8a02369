// SPDX-License-Identifier: GPL-2.0-only
//! The tables of operations that C has at the ends of file.c, inode.c and super.c, and mounting.

use kernel_shim::alloc::{Arc, GFP_KERNEL};
use kernel_shim::block::{Bdev, blkdev_issue_flush};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{FileSystem, IovIter, NewInode, OpenFlags};
use kernel_shim::sync::RwSemaphore;

use crate::ext4::Ino;
use crate::extents::ExtentTree;
use crate::sb::Ext4SbInfo;
use crate::{Ext4, Ext4InodeInfo, File, Inode, Kiocb, Locked, Private, SuperBlock};

impl FileSystem for Ext4 {
    type SbInfo = Ext4SbInfo;
    type InodeInfo = Ext4InodeInfo;
    type Private = Private;

    fn direct_IO<'i>(
        iocb: &mut Kiocb,
        i_mutex: Locked<'i>,
        iter: &mut IovIter<'_>,
        offset: i64,
    ) -> (Locked<'i>, Result<usize>) {
        crate::inode::ext4_direct_IO(iocb, i_mutex, iter, offset)
    }

    fn direct_IO_read(iocb: &mut Kiocb, iter: &mut IovIter<'_>, offset: i64) -> Result<usize> {
        crate::inode::ext4_direct_IO_read(iocb, iter, offset)
    }

    fn fsync(inode: &Inode, start: i64, end: i64, datasync: bool) -> Result {
        crate::fsync::ext4_sync_file(inode, start, end, datasync)
    }

    fn buffered_write(_: &mut Kiocb, _: &Locked<'_>, _: &mut IovIter<'_>) -> Result<usize> {
        Err(EOPNOTSUPP)
    }

    fn readpage(inode: &Inode, offset: i64, page: &mut [u8]) -> Result {
        crate::inode::ext4_readpage(inode, offset, page)
    }

    fn write_inode(inode: &Inode) -> Result {
        crate::ialloc::ext4_write_inode(inode)
    }

    fn s_maxbytes(inode: &Inode) -> i64 {
        let sbi = inode.i_sb().s_fs_info();
        if inode.i_private().is_extents() { sbi.s_maxbytes() } else { sbi.s_bitmap_maxbytes() }
    }
}
