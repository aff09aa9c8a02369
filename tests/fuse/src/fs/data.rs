// SPDX-License-Identifier: GPL-2.0-only
//! Open files: reading, writing, and what else is done to their data.

use ext4_dio::dir::Node;
use ext4_dio::ext4::Lblk;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::fiemap::{Whence, ext4_seek};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::{Ext4, File, Kiocb};
use fuser::{FileHandle, FopenFlags, INodeNo, WriteFlags};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::code::{EFBIG, EINVAL, EISDIR};
use kernel_shim::error::{Error, Result};
use kernel_shim::fs::{FileSystem, IoVec, IocbFlags, IovIter, OpenFlags};

use super::{Fs, keeps_suid};
use crate::buffer::with_buffer;

/// Bytes that `copy_file_range` copies at a time.
const COPY: usize = 1 << 20;
/// What it copies before it answers: the kernel asks for the rest, and others get their turn.
const COPY_MOST: u64 = 64 << 20;

/// What the kernel's open flags are here.
pub fn open_flags(flags: i32) -> OpenFlags {
    let passing = OpenFlags::O_CREAT | OpenFlags::O_EXCL | OpenFlags::O_TRUNC;
    OpenFlags::from_bits_truncate(flags.cast_unsigned()).difference(passing)
}

/// What one read or write is like. The kernel tells the flags of the file anew with each, as `fcntl` and `pwritev2` have left them.
///
/// `O_APPEND` is left out: where the end is the kernel has settled, under its inode lock, and it has cut long writes into pieces.
fn iocb_flags(flags: i32) -> IocbFlags {
    let mut iocb = IocbFlags::from_open(OpenFlags::from_bits_truncate(flags.cast_unsigned()));
    iocb.remove(IocbFlags::APPEND);
    iocb
}

fn position(offset: u64) -> Result<i64> {
    i64::try_from(offset).map_err(|_| EINVAL)
}

impl Fs {
    /// `open`: the number for the file, and how the kernel is to treat it.
    pub fn open(&self, node: INodeNo, flags: i32) -> Result<(FileHandle, FopenFlags)> {
        let inode = self.inode(node)?;
        if inode.is_dir() {
            return Err(EISDIR);
        }
        let file = File::open(inode, open_flags(flags))?;
        Ok((self.handles.add(file), self.fopen_flags(flags)))
    }

    /// `read`: calls `reply` with what was read.
    pub fn read(&self, fh: FileHandle, offset: u64, size: u32, flags: i32, reply: impl FnOnce(&[u8])) -> Result {
        let file = self.handles.get(fh)?;
        let mut iocb = Kiocb::new_sync(&file, position(offset)?);
        iocb.ki_flags = iocb_flags(flags);
        let _direct = match iocb.ki_flags.contains(IocbFlags::DIRECT) {
            true => Some(self.direct_reads.enter()?),
            false => None,
        };
        with_buffer(size as usize, |memory| {
            let n = {
                let iov = [IoVec::dest(memory)];
                ext4_file_read(&mut iocb, &mut IovIter::new(&iov))?
            };
            reply(&memory[..n]);
            Ok(())
        })
    }

    /// `write`. What the kernel writes back of mapped pages is cut where the file ends, so it is never direct.
    pub fn write(&self, fh: FileHandle, offset: u64, data: &[u8], how: WriteFlags, flags: i32) -> Result<u32> {
        let file = self.handles.get(fh)?;
        let mut iocb = Kiocb::new_sync(&file, position(offset)?);
        iocb.ki_flags = iocb_flags(flags);
        let _mapped = if how.contains(WriteFlags::FUSE_WRITE_CACHE) {
            iocb.ki_flags.remove(IocbFlags::DIRECT);
            Some(self.written_back.enter()?)
        } else {
            None
        };
        keeps_suid(!how.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID));
        let n = if iocb.ki_flags.contains(IocbFlags::DIRECT) {
            let _direct = self.direct_writes.enter()?;
            with_buffer(data.len(), |memory| {
                memory.copy_from_slice(data);
                let iov = [IoVec::source(memory)];
                ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
            })?
        } else {
            let iov = [IoVec::source(data)];
            ext4_file_write(&mut iocb, &mut IovIter::new(&iov))?
        };
        u32::try_from(n).map_err(|_| EFBIG)
    }

    /// `fsync`, `fdatasync`, and of directories.
    pub fn fsync(&self, node: INodeNo, datasync: bool) -> Result {
        let inode = self.inode(node)?;
        Ext4::fsync(&inode, 0, i64::MAX, datasync)
    }

    /// `fallocate`, in the modes that the kernel lets through.
    pub fn fallocate(&self, uid: u32, fh: FileHandle, offset: u64, len: u64, mode: i32) -> Result {
        keeps_suid(uid == 0);
        let file = self.handles.get(fh)?;
        file.may_write()?;
        let mode = FallocFlags::from_bits_retain(mode.cast_unsigned());
        ext4_fallocate(file.f_inode(), mode, position(offset)?, position(len)?)
    }

    /// `lseek` with `SEEK_DATA` and `SEEK_HOLE`; the others the kernel does itself.
    pub fn lseek(&self, fh: FileHandle, offset: i64, whence: i32) -> Result<i64> {
        let file = self.handles.get(fh)?;
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return Err(EINVAL),
        };
        ext4_seek(file.f_inode(), offset, whence)
    }

    /// `bmap`: where on the disk a block of a file is, in blocks of `blocksize` bytes; 0 for a hole. EINVAL for other blocks than the
    /// file system's.
    pub fn bmap(&self, node: INodeNo, blocksize: u32, block: u64) -> Result<u64> {
        let inode = self.inode(node)?;
        if blocksize != self.sb.s_fs_info().s_blocksize || !inode.is_reg() {
            return Err(EINVAL);
        }
        let lblk = Lblk(u32::try_from(block).map_err(|_| EINVAL)?);
        let place = Node::bmap(&*inode, lblk).map_err(Error::from)?;
        Ok(place.map_or(0, |place| place.0))
    }

    /// `copy_file_range`: through the page cache, which is coherent with direct I/O. How much was copied, possibly less than asked for.
    ///
    /// EINVAL for ranges of one file that overlap.
    pub fn copy(&self, uid: u32, from: (FileHandle, u64), to: (FileHandle, u64), len: u64) -> Result<u32> {
        keeps_suid(uid == 0);
        let (source, dest) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let (mut read_at, mut write_at) = (position(from.1)?, position(to.1)?);
        let same = source.f_inode().i_ino() == dest.f_inode().i_ino();
        if same && from.1.abs_diff(to.1) < len {
            return Err(EINVAL);
        }
        let (mut left, mut done) = (len.min(COPY_MOST), 0);
        while left > 0 {
            let piece = COPY.min(usize::try_from(left).unwrap_or(COPY));
            match copy_piece(&source, read_at, &dest, write_at, piece) {
                Ok(0) => break,
                Ok(n) => {
                    (read_at, write_at) = (read_at + n as i64, write_at + n as i64);
                    (left, done) = (left - n as u64, done + n as u64);
                }
                // What was copied was copied.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        u32::try_from(done).map_err(|_| EFBIG)
    }
}

/// Copies up to `len` bytes; how many.
fn copy_piece(source: &KArc<File>, read_at: i64, dest: &KArc<File>, write_at: i64, len: usize) -> Result<usize> {
    with_buffer(len, |memory| {
        let n = {
            let mut iocb = Kiocb::new_sync(source, read_at);
            iocb.ki_flags = IocbFlags::empty();
            let iov = [IoVec::dest(memory)];
            ext4_file_read(&mut iocb, &mut IovIter::new(&iov))?
        };
        let mut iocb = Kiocb::new_sync(dest, write_at);
        iocb.ki_flags.remove(IocbFlags::DIRECT | IocbFlags::APPEND);
        let iov = [IoVec::source(&memory[..n])];
        ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
    })
}
