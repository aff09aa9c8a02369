// SPDX-License-Identifier: GPL-2.0-only
//! The VFS as far as a direct write meets it, and two libraries beside it.
//!
//! | module | stands for |
//! |---|---|
//! | [`super_block`] | `struct super_block`, the inode cache, [`FileSystem`] |
//! | [`inode`] | `struct inode`: `i_mutex`, `i_size`, `i_dio_count`, times |
//! | [`mod@file`] | `struct file` |
//! | [`kiocb`] | `struct kiocb`: one I/O request |
//! | [`iov_iter`] | `struct iov_iter`: where the data is |
//! | [`direct_io`] | `fs/direct-io.c` |
//! | [`buffer`] | `fs/buffer.c`, metadata blocks only |

pub mod buffer;
pub mod direct_io;
pub mod file;
pub mod freeze;
pub mod inode;
pub mod iov_iter;
pub mod kiocb;
pub mod super_block;

pub use direct_io::{__blockdev_direct_IO, DioFlags, DioRequest, MapResult};
pub use file::{File, OpenFlags};
pub use freeze::{FreezeGate, WriteAccess};
pub use inode::{
    DioCount, I_MUTEX_CHILD, I_MUTEX_CHILD2, I_MUTEX_DYING, I_MUTEX_NEW, I_MUTEX_NORMAL, I_MUTEX_SECOND, IRef, Inode,
    InodeFlags, InodeState, InodeTimes, Locked, NewInode,
};
pub use iov_iter::{IoVec, IovIter, UserMemory};
pub use kiocb::{IocbFlags, KiComplete, Kiocb, RwfFlags};
pub use super_block::{FileSystem, SbFlags, SuperBlock};

/// Which way the data goes: C's `READ` and `WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// From the device into memory.
    Read,
    /// From memory to the device.
    Write,
}
