// SPDX-License-Identifier: GPL-2.0-only
//! `struct file`: an inode opened with flags.

use core::sync::atomic::{AtomicU64, Ordering};

use super::super_block::{FileSystem, SbFlags};
use super::{IRef, InodeFlags, IocbFlags};
use crate::alloc::{Arc, GFP_KERNEL, GFP_NOFAIL};
use crate::error::{Result, code::*};
use crate::mm::filemap::AddressSpace;

bitflags::bitflags! {
    /// C's `f_flags`, with the values of x86's `<asm/fcntl.h>`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Write only; neither bit: read only.
        const O_WRONLY = 0o1;
        /// Read and write.
        const O_RDWR = 0o2;
        /// Make the file if there is none.
        const O_CREAT = 0o100;
        /// With [`OpenFlags::O_CREAT`]: there must be none.
        const O_EXCL = 0o200;
        /// Cut it to nothing.
        const O_TRUNC = 0o1_000;
        /// It must be a directory.
        const O_DIRECTORY = 0o200_000;
        /// It must not be a symbolic link.
        const O_NOFOLLOW = 0o400_000;
        /// A new file without a name, in a directory; contains [`OpenFlags::O_DIRECTORY`].
        const O_TMPFILE = 0o20_200_000;
        /// Each write goes to the end of the file.
        const O_APPEND = 0o2_000;
        /// Data is durable when a write returns.
        const O_DSYNC = 0o10_000;
        /// Past the page cache.
        const O_DIRECT = 0o40_000;
        /// Data and inode are durable when a write returns; contains [`OpenFlags::O_DSYNC`].
        const O_SYNC = 0o4_010_000;
    }
}

/// An open file. Lives in an [`Arc`]; requests in flight hold a reference.
#[repr(align(64))]
pub struct File<F: FileSystem> {
    /// [`OpenFlags`], and above them the [`IocbFlags`] that they mean: one word, so that the two always agree.
    f_flags: AtomicU64,
    f_inode: IRef<F>,
    /// The opener may keep set-user-ID bits when writing: `CAP_FSETID`.
    f_cap_fsetid: bool,
}

/// See [`File::f_flags`].
fn flags_word(flags: OpenFlags) -> u64 {
    u64::from(IocbFlags::from_open(flags).bits()) << 32 | u64::from(flags.bits())
}

impl<F: FileSystem> File<F> {
    /// Opens `inode`.
    ///
    /// [`EROFS`] for writing on a read-only mount, [`EISDIR`] for writing a directory, [`EPERM`] for writing an immutable
    /// file or an append-only one without `O_APPEND`, [`EINVAL`] for direct I/O on what is no regular file.
    pub fn open(inode: IRef<F>, flags: OpenFlags) -> Result<Arc<Self>> {
        if flags.intersects(OpenFlags::O_WRONLY | OpenFlags::O_RDWR) {
            if inode.i_sb().s_flags().contains(SbFlags::RDONLY) {
                return Err(EROFS);
            }
            if inode.is_dir() {
                return Err(EISDIR);
            }
            if inode.i_flags().contains(InodeFlags::IMMUTABLE)
                || inode.i_flags().contains(InodeFlags::APPEND) && !flags.contains(OpenFlags::O_APPEND)
            {
                return Err(EPERM);
            }
        }
        if flags.contains(OpenFlags::O_DIRECT) && !inode.is_reg() {
            return Err(EINVAL);
        }
        let f_flags = AtomicU64::new(flags_word(flags));
        if flags.intersects(OpenFlags::O_WRONLY | OpenFlags::O_RDWR) {
            inode.get_write_count();
            // Counted, then looked again; a remount sets the flag, then looks who is counted.
            core::sync::atomic::fence(Ordering::SeqCst);
            if inode.i_sb().s_flags().contains(SbFlags::RDONLY) {
                inode.put_write_count();
                return Err(EROFS);
            }
        }
        // C allocates it before it makes the file that is not there; here that has been made by now.
        Ok(Arc::new(Self { f_flags, f_inode: inode, f_cap_fsetid: false }, GFP_KERNEL | GFP_NOFAIL)?)
    }

    /// Flags as they are now: `fcntl(F_SETFL)` changes them at any moment, so one I/O reads them once,
    /// into [`Kiocb::ki_flags`](super::Kiocb::ki_flags).
    #[inline]
    pub fn f_flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.f_flags.load(Ordering::Relaxed) as u32)
    }

    /// What the file's flags mean for an I/O that starts now: C's `iocb_flags()`.
    #[inline]
    pub fn f_iocb_flags(&self) -> IocbFlags {
        IocbFlags::from_bits_retain((self.f_flags.load(Ordering::Relaxed) >> 32) as u32)
    }

    /// `fcntl(F_SETFL)`: only [`OpenFlags::O_APPEND`] and [`OpenFlags::O_DIRECT`] can be changed.
    pub fn set_flags(&self, flags: OpenFlags) -> Result {
        let may = OpenFlags::O_APPEND | OpenFlags::O_DIRECT;
        if flags.contains(OpenFlags::O_DIRECT) && !self.f_inode.is_reg() {
            return Err(EINVAL);
        }
        if self.f_inode.i_flags().contains(InodeFlags::APPEND) && !flags.contains(OpenFlags::O_APPEND) {
            return Err(EPERM);
        }
        // OK to unwrap: the closure always returns Some.
        let _ = self.f_flags.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| {
            let old = OpenFlags::from_bits_retain(old as u32);
            Some(flags_word(old.difference(may) | flags & may))
        });
        Ok(())
    }

    /// The inode.
    #[inline]
    pub fn f_inode(&self) -> &IRef<F> {
        &self.f_inode
    }

    /// `file->f_mapping`.
    #[inline]
    pub fn f_mapping(&self) -> &AddressSpace {
        self.f_inode.i_mapping()
    }

    /// Whether writing keeps set-user-ID and set-group-ID bits.
    pub fn cap_fsetid(&self) -> bool {
        self.f_cap_fsetid
    }

    /// [`EBADF`] unless opened for writing.
    #[inline]
    pub fn may_write(&self) -> Result {
        if self.f_flags().intersects(OpenFlags::O_WRONLY | OpenFlags::O_RDWR) { Ok(()) } else { Err(EBADF) }
    }

    /// [`EBADF`] unless opened for reading.
    pub fn may_read(&self) -> Result {
        if self.f_flags().contains(OpenFlags::O_WRONLY) { Err(EBADF) } else { Ok(()) }
    }
}

impl<F: FileSystem> Drop for File<F> {
    fn drop(&mut self) {
        let writable = self.f_flags().intersects(OpenFlags::O_WRONLY | OpenFlags::O_RDWR);
        let last_writer = writable && self.f_inode.put_write_count();
        F::release(self, last_writer);
    }
}
