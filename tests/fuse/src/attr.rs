// SPDX-License-Identifier: GPL-2.0-only
//! Attributes, times and errors, from here to FUSE and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ext4_dio::ext4::*;
use ext4_dio::path::{Kstat, vfs_getattr};
use ext4_dio::{IRef, ioctl::ext4_ioctl_getversion};
use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, TimeOrNow};
use kernel_shim::error::Error;
use kernel_shim::fs::inode::*;
use kernel_shim::time::Timespec64;

/// How long the kernel may believe what it was told. Nobody but the kernel changes anything, and of what it changes it knows: but for
/// set-user-ID, which falls with a write without its taking note.
pub fn ttl(attr: &FileAttr) -> Duration {
    let falls = attr.kind == FileType::RegularFile && u32::from(attr.perm) & (S_ISUID | S_ISGID) != 0;
    if falls { Duration::ZERO } else { Duration::from_secs(3600) }
}

/// An error as the kernel takes it: what is no errno of user space would not be taken at all, and the caller would wait for ever.
pub fn errno(error: Error) -> Errno {
    match -error.to_errno() {
        errno @ 1..512 => Errno::from_i32(errno),
        _ => Errno::EIO,
    }
}

/// FUSE's time for one of ours.
pub fn system_time(time: Timespec64) -> SystemTime {
    let whole = Duration::from_secs(time.tv_sec.unsigned_abs());
    let second = if time.tv_sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    // What is too far away is not on any disk.
    second.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(u64::from(time.tv_nsec))
}

/// Our time for one that the kernel has sent. fuser turns seconds before 1970 round together with the nanoseconds that come on top of
/// them; here they are turned back.
pub fn timespec(time: SystemTime) -> Timespec64 {
    let (sign, distance) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (1, since),
        Err(before) => (-1, before.duration()),
    };
    Timespec64 { tv_sec: sign * distance.as_secs().cast_signed(), tv_nsec: distance.subsec_nanos() }
}

/// The time that was asked for; `None` is now.
pub fn specific(time: TimeOrNow) -> Option<Timespec64> {
    match time {
        TimeOrNow::SpecificTime(time) => Some(timespec(time)),
        TimeOrNow::Now => None,
    }
}

/// The type in `i_mode`.
pub fn file_type(mode: u32) -> FileType {
    match mode & S_IFMT {
        S_IFDIR => FileType::Directory,
        S_IFLNK => FileType::Symlink,
        S_IFCHR => FileType::CharDevice,
        S_IFBLK => FileType::BlockDevice,
        S_IFIFO => FileType::NamedPipe,
        S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// The type that a directory's entry tells; none if it does not.
pub fn entry_type(file_type: u8) -> Option<FileType> {
    Some(match file_type {
        EXT4_FT_REG_FILE => FileType::RegularFile,
        EXT4_FT_DIR => FileType::Directory,
        EXT4_FT_CHRDEV => FileType::CharDevice,
        EXT4_FT_BLKDEV => FileType::BlockDevice,
        EXT4_FT_FIFO => FileType::NamedPipe,
        EXT4_FT_SOCK => FileType::Socket,
        EXT4_FT_SYMLINK => FileType::Symlink,
        _ => return None,
    })
}

/// What `stat` shows of an inode.
pub fn attr_of(inode: &IRef) -> FileAttr {
    let stat: Kstat = vfs_getattr(inode);
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size.cast_unsigned(),
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: system_time(stat.crtime),
        kind: file_type(stat.mode),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: stat.blksize,
        flags: 0,
    }
}

/// What tells an inode from the one that had its number before.
pub fn generation(inode: &IRef) -> Generation {
    Generation(u64::from(ext4_ioctl_getversion(inode)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_shim::error::code::{EFSCORRUPTED, EIOCBQUEUED, ENOSPC};

    #[test]
    fn times_before_1970() {
        for (tv_sec, tv_nsec) in [(0, 0), (-1, 0), (-1, 999_999_999), (-2, 1), (1, 1), (1 << 33, 5), (-(1 << 31), 7)] {
            let time = Timespec64 { tv_sec, tv_nsec };
            let distance = Duration::new(tv_sec.unsigned_abs(), tv_nsec);
            let of_fuser = if tv_sec < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            assert_eq!(timespec(of_fuser), time, "from the kernel");
            let on_top = Duration::from_nanos(u64::from(tv_nsec));
            let second = UNIX_EPOCH + Duration::from_secs(1 << 34) - Duration::from_secs(((1 << 34) - tv_sec) as u64);
            assert_eq!(system_time(time), second + on_top, "to the kernel");
        }
    }

    #[test]
    fn errors_keep_their_numbers() {
        assert_eq!(errno(ENOSPC).code(), libc::ENOSPC);
        assert_eq!(errno(EFSCORRUPTED).code(), libc::EUCLEAN);
        assert_eq!(errno(EIOCBQUEUED).code(), libc::EIO);
    }
}
