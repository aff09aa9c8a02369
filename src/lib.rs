// SPDX-License-Identifier: GPL-2.0-only
//! ext4's direct-I/O engine.
#![no_std]
#![forbid(unsafe_code)]

pub mod balloc;
pub mod block_validity;
pub mod checksum;
pub mod corrupt;
pub mod dio_lock;
pub mod dir;
pub mod disk;
mod dx;
pub mod ext4;
pub mod extents;
pub mod extents_status;
pub mod file;
pub mod fsync;
pub mod hash;
pub mod ialloc;
pub mod indirect;
pub mod inode;
mod le;
pub mod namei;
mod ops;
pub mod page_io;
pub mod sb;
pub mod sb_geometry;
pub mod sb_options;

use core::sync::atomic::AtomicBool;

use kernel_shim::alloc::PoolBox;
use kernel_shim::sync::{Mutex, RwSemaphore};

pub use ops::{ext4_iget, ext4_mount, ext4_open, ext4_sync_fs, ext4_umount};

/// The file system's type, for the shim's generic VFS objects.
pub enum Ext4 {}

/// `struct inode` of an ext4 file.
pub type Inode = kernel_shim::fs::Inode<Ext4>;
/// An inode whose `i_mutex` is held.
pub type Locked<'i> = kernel_shim::fs::Locked<'i, Ext4>;
/// One direct I/O in flight.
pub type DioCount<'i> = kernel_shim::fs::DioCount<'i, Ext4>;
/// An open file.
pub type File = kernel_shim::fs::File<Ext4>;
/// One read or write.
pub type Kiocb = kernel_shim::fs::Kiocb<Ext4>;
/// A mount.
pub type SuperBlock = kernel_shim::fs::SuperBlock<Ext4>;

/// What `kiocb.private` holds. In C one `void *` is both, one after the other.
#[derive(Debug)]
pub enum Private {
    /// `iocb->private = &overwrite`: file.rs's verdict, taken once by inode.rs.
    Overwrite(bool),
    /// `iocb->private = io_end`: an asynchronous write's companion, which goes on into the request.
    IoEnd(PoolBox<page_io::IoEnd>),
}

/// C's `struct ext4_inode_info`.
pub struct Ext4InodeInfo {
    /// The map of the file, reached through the guard. Lock order: `i_mutex`, then this; nobody who holds it waits for
    /// `i_mutex`.
    pub i_data_sem: RwSemaphore<extents::ExtentTree>,
    /// What recent look-ups found. Has a spin lock of its own, below `i_data_sem`.
    pub i_es_tree: extents_status::ExtentStatusTree,
    /// As on disk, flags that can change excepted.
    pub i_flags: ext4::InodeFlags,
    /// Seed of this inode's metadata checksums.
    pub i_csum_seed: u32,
    /// NFS generation.
    pub i_generation: u32,
    /// Bytes of the inode past the old 128 that are in use.
    pub i_extra_isize: u16,
    /// When the file was made.
    pub i_crtime: kernel_shim::time::Timespec64,
    /// For asynchronous writes that are not whole blocks.
    pub aio: page_io::AioInfo,
    /// Held while the inode goes to its table block, so that nobody takes "not dirty" for "on disk". Below `i_mutex`, which its
    /// holder never waits for.
    pub(crate) i_sync: Mutex<()>,
    /// The table block in the buffer cache may be newer than on disk because of this inode.
    pub(crate) i_unsynced: AtomicBool,
}

impl Ext4InodeInfo {
    /// Whether the file is mapped by extents: C's `ext4_test_inode_flag(inode, EXT4_INODE_EXTENTS)`.
    #[inline]
    pub fn is_extents(&self) -> bool {
        self.i_flags.contains(ext4::InodeFlags::EXTENTS)
    }
}
