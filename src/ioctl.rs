// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/ioctl.c`: the flags of an inode, as `chattr` and `lsattr` have them.

use kernel_shim::error::{Result, code::*};
use kernel_shim::sync::lockdep::syscall;
use kernel_shim::testing::{Fix, reverted};

use crate::aops::filemap_write_and_wait_range;
use crate::ext4::InodeFlags;
use crate::ext4_jbd2::ext4_journal_start;
use crate::iget::ext4_mark_inode_dirty;
use crate::ops::ext4_set_inode_flags;
use crate::setattr::current_time;
use crate::truncate::stop_direct_io;
use crate::{IRef, Inode, Locked};

/// Flags that `lsattr` shows.
const EXT4_FL_USER_VISIBLE: u32 = 0x705B_DFFF;
/// Flags that `chattr` changes.
const EXT4_FL_USER_MODIFIABLE: u32 = 0x604B_C0FF;
/// Of those, the ones that files have: not directories' alone (synchronous, top of a hierarchy, project).
const EXT4_REG_FLMASK: u32 = !(0x0001_0000 | 0x0002_0000 | 0x4000_0000 | 0x2000_0000);
/// And the ones that all else has: not to be dumped, no access times.
const EXT4_OTHER_FLMASK: u32 = 0x40 | 0x80;

/// `FS_IOC_GETFLAGS`: the flags that a user may see.
pub fn ext4_ioctl_getflags(inode: &Inode) -> InodeFlags {
    InodeFlags::from_bits_retain(inode.i_private().i_flags().bits() & EXT4_FL_USER_VISIBLE)
}

/// `FS_IOC_SETFLAGS`: immutable, append-only, no access times, synchronous, data through the journal, and those that mean nothing to
/// us. Flags that cannot be changed by a user stay.
///
/// EOPNOTSUPP for flags there are not, and for a change from extents to block numbers or back; EROFS, EIO. Takes the right to write,
/// then `i_mutex`; sleeps.
#[doc(alias = "ext4_fileattr_set")]
pub fn ext4_ioctl_setflags(inode: &IRef, flags: InodeFlags) -> Result {
    let _syscall = syscall("ext4_ioctl_setflags");
    if flags.bits() & !EXT4_FL_USER_VISIBLE != 0 {
        return Err(EOPNOTSUPP);
    }
    if inode.i_sb().s_fs_info().is_rdonly() {
        return Err(EROFS);
    }
    // A frozen file system stays as it is (G8).
    let _write = inode.i_sb().start_write();
    let i_mutex = inode.lock();
    let done = setflags_locked(&i_mutex, flags);
    i_mutex.unlock();
    done
}

fn setflags_locked(i_mutex: &Locked<'_>, flags: InodeFlags) -> Result {
    let inode = i_mutex.inode();
    let info = inode.i_private();
    let old = info.i_flags();
    let mask = match (inode.is_dir(), inode.is_reg()) {
        (true, _) => u32::MAX,
        (_, true) => EXT4_REG_FLMASK,
        _ => EXT4_OTHER_FLMASK,
    };
    let modifiable = InodeFlags::from_bits_retain(EXT4_FL_USER_MODIFIABLE & mask);
    let new = (flags & modifiable) | (old - modifiable);
    let changed = old ^ new;
    if changed.contains(InodeFlags::EXTENTS) {
        // PORT: C converts the map.
        return Err(EOPNOTSUPP);
    }
    if inode.is_reg() && changed.intersects(InodeFlags::JOURNAL_DATA | InodeFlags::IMMUTABLE) {
        // A write in flight began in one mode and must not end in the other (G33); an immutable file has no writes to come.
        let _gate = (!reverted(Fix::G33)).then(|| stop_direct_io(i_mutex));
        let _exclusive = inode.i_mapping().invalidate_lock.write();
        filemap_write_and_wait_range(inode, 0, i64::MAX)?;
        if changed.contains(InodeFlags::JOURNAL_DATA) {
            inode.i_mapping().invalidate_pages(0, i64::MAX);
        }
        return write_flags(inode, new);
    }
    write_flags(inode, new)
}

fn write_flags(inode: &Inode, new: InodeFlags) -> Result {
    let info = inode.i_private();
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), 1)?;
    let old = info.i_flags();
    info.set_flags(new - old, true);
    info.set_flags(old - new, false);
    inode.set_i_flags(ext4_set_inode_flags(new));
    let now = current_time(inode);
    inode.set_times(|times| times.i_ctime = now);
    if inode.is_sync() || (old ^ new).contains(InodeFlags::JOURNAL_DATA) {
        handle.sync();
    }
    let written = ext4_mark_inode_dirty(&mut handle, inode);
    let stopped = handle.stop();
    written.and(stopped)
}

/// `FS_IOC_GETVERSION`: the generation, which tells an inode from the one that had its number before.
pub fn ext4_ioctl_getversion(inode: &Inode) -> u32 {
    inode.i_private().i_generation
}
