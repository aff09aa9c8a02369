// SPDX-License-Identifier: GPL-2.0-only
//! The part of `super.c` that changes a mount: `ext4_remount`, `ext4_freeze`, `ext4_force_shutdown`.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::Arc;
use kernel_shim::block::blkdev_issue_flush;
use kernel_shim::error::code::{EBUSY, EINVAL, EIO, EROFS};
use kernel_shim::error::{Error, Result};
use kernel_shim::fs::SbFlags;
use kernel_shim::sync::lockdep::syscall;
use kernel_shim::testing::{Fix, reverted, trace};
use kernel_shim::{pr_err, pr_info, pr_warn};

use crate::SuperBlock;
use crate::ext4::Compat;
use crate::ops::{ext4_error, ext4_sync_fs};
use crate::sb_options::{Atime, MountOptions};

/// Flags of the VFS that options mean.
pub(crate) fn sb_flags(options: &MountOptions, rdonly: bool) -> SbFlags {
    let mut flags = SbFlags::empty();
    flags.set(SbFlags::RDONLY, rdonly);
    flags.set(SbFlags::NOATIME, options.atime == Atime::No);
    flags.set(SbFlags::STRICTATIME, options.atime == Atime::Strict);
    flags.set(SbFlags::LAZYTIME, options.lazytime);
    flags
}

/// Changes the options of a mount; what `options` does not speak of stays. `ro` and `rw` change whether it can be written.
/// Sleeps.
///
/// `EINVAL` for an unknown option and one that a remount cannot change, each with a log line that names it; `EBUSY` for `ro` while files
/// are open for writing, or open without a name; `EROFS` for `rw` if device or features forbid it, or an error has struck. Then
/// nothing has changed.
pub fn ext4_remount(sb: &Arc<SuperBlock>, options: &str) -> Result {
    let _syscall = syscall("ext4_remount");
    let _umount = sb.s_umount.write();
    let sbi = sb.s_fs_info();
    if sbi.ext4_forced_shutdown() {
        return Err(EIO);
    }
    let name = sbi.bdev.name();
    let old = sbi.options();
    let new = old.parse_over(options).map_err(|error| {
        pr_err!("EXT4-fs ({name}): {error}");
        EINVAL
    })?;
    if sb.s_writers.is_shut() {
        pr_err!("EXT4-fs ({name}): cannot be remounted while it is frozen");
        return Err(EBUSY);
    }
    check_unchangeable(name, &old, &new)?;
    match (sb.s_flags().contains(SbFlags::RDONLY), new.rdonly) {
        (false, true) => remount_ro(sb)?,
        (true, false) => remount_rw(sb)?,
        _ => {}
    }
    sbi.set_options(new);
    if let Some(journal) = sbi.s_journal() {
        journal.set_options(&sbi.journal_options());
    }
    for flag in [SbFlags::NOATIME, SbFlags::STRICTATIME, SbFlags::LAZYTIME] {
        sb.set_flag(flag, sb_flags(&new, new.rdonly).contains(flag));
    }
    sbi.s_flusher.kick();
    pr_info!("EXT4-fs ({name}): re-mounted {}", if new.rdonly { "ro" } else { "rw" });
    Ok(())
}

/// What cannot be changed while somebody may be in the middle of it.
fn check_unchangeable(name: &str, old: &MountOptions, new: &MountOptions) -> Result {
    if old.data.unwrap_or_default() != new.data.unwrap_or_default() {
        pr_err!("EXT4-fs ({name}): can't change data mode on remount");
        return Err(EINVAL);
    }
    if old.noload != new.noload {
        pr_err!("EXT4-fs ({name}): can't change \"noload\" on remount: the journal is opened at mount");
        return Err(EINVAL);
    }
    Ok(())
}

/// Called with `s_umount` held for writing.
fn remount_ro(sb: &Arc<SuperBlock>) -> Result {
    let sbi = sb.s_fs_info();
    // Writers that are inside finish; those that come wait for the outcome.
    sb.s_writers.shut();
    let done = (|| {
        sb.set_rdonly();
        sb.drain_direct_io();
        sbi.dio.drain_trims();
        sb.drain_evictions();
        // Who opens a file counts it, then looks at the flag; here it is the other way round. A file without a name would
        // have to be deleted when it is closed.
        let busy = |inode: &crate::Inode| inode.i_writecount() > 0 || inode.i_nlink() == 0 && inode.i_count() > 0;
        if sb.count_inodes(busy) > 0 {
            return Err(EBUSY);
        }
        // The file system itself is written still: the flag is the VFS's.
        sync_all(sb)?;
        sbi.mark_clean().map_err(|error| ext4_error(sb, error))?;
        sbi.s_rdonly.store(true, Ordering::SeqCst);
        blkdev_issue_flush(sb.s_bdev())
    })();
    if done.is_err() && !sbi.is_rdonly() {
        sb.set_flag(SbFlags::RDONLY, false);
    }
    sb.s_writers.open();
    done
}

/// Called with `s_umount` held for writing.
fn remount_rw(sb: &Arc<SuperBlock>) -> Result {
    let sbi = sb.s_fs_info();
    let name = sbi.bdev.name();
    if sbi.is_rdonly_for_good() {
        pr_err!("EXT4-fs ({name}): couldn't remount RDWR because of unsupported features or a read-only device");
        return Err(EROFS);
    }
    if sbi.s_errlog.count() > 0 || sbi.journal_aborted() {
        pr_err!("EXT4-fs ({name}): couldn't remount RDWR after errors: unmount, and run e2fsck");
        return Err(EROFS);
    }
    if sbi.s_journal().is_none() && sbi.s_compat.contains(Compat::HAS_JOURNAL) && sbi.options().noload {
        pr_err!("EXT4-fs ({name}): couldn't remount RDWR: mounted with \"noload\", so without its journal");
        return Err(EINVAL);
    }
    if crate::orphan::ext4_has_orphans(sbi) {
        // Mounting has cleared them if it could.
        pr_err!("EXT4-fs ({name}): couldn't remount RDWR because of unprocessed orphan inodes; umount and mount again");
        return Err(EINVAL);
    }
    let edge = |error| ext4_error(sb, error);
    sbi.start_journal(Some(sb.clone())).map_err(edge)?;
    sbi.s_rdonly.store(false, Ordering::SeqCst);
    if let Err(error) = sbi.ext4_setup_super() {
        sbi.s_rdonly.store(true, Ordering::SeqCst);
        return Err(edge(error));
    }
    sb.set_flag(SbFlags::RDONLY, false);
    Ok(())
}

/// Everything is on the device, and the journal is empty. Called with writers kept out.
fn sync_all(sb: &Arc<SuperBlock>) -> Result {
    ext4_sync_fs(sb)?;
    let sbi = sb.s_fs_info();
    match sbi.s_journal() {
        Some(journal) => journal.flush().and(sbi.buffers.sync_all()).and(blkdev_issue_flush(sb.s_bdev())),
        None => Ok(()),
    }
}

/// Stops all changes, and brings the file system on the device into a state as after unmounting: for a snapshot of the device. Those who
/// want to write sleep until [`ext4_unfreeze`]. Writers that are inside finish first, and so does direct I/O in flight, that
/// of asynchronous submitters too (G8). Sleeps.
///
/// `EBUSY` if it is frozen already; EIO, and then it is not frozen.
#[doc(alias = "freeze_super")]
pub fn ext4_freeze(sb: &Arc<SuperBlock>) -> Result {
    let _syscall = syscall("ext4_freeze");
    let _umount = sb.s_umount.write();
    let sbi = sb.s_fs_info();
    if sbi.ext4_forced_shutdown() {
        return Err(EIO);
    }
    if sb.s_writers.is_shut() {
        return Err(EBUSY);
    }
    sb.s_writers.shut();
    trace("ext4_freeze: no writers");
    if !reverted(Fix::G8) {
        // Those that were submitted asynchronously have left the gate, and are counted there.
        sb.drain_direct_io();
        sbi.dio.drain_trims();
    }
    trace("ext4_freeze: no direct I/O");
    if sb.s_flags().contains(SbFlags::RDONLY) {
        return Ok(());
    }
    sb.drain_evictions();
    let done = ext4_sync_fs(sb).and_then(|()| {
        // From here on no handle is started: what a worker has to do waits.
        sbi.s_intwrite.shut();
        sync_all_frozen(sb)
    });
    if let Err(error) = done {
        pr_err!("EXT4-fs ({}): freezing failed: {error:?}", sbi.bdev.name());
        sbi.s_intwrite.open();
        sb.s_writers.open();
        return Err(error);
    }
    Ok(())
}

/// Called with nobody inside, not even a handle.
fn sync_all_frozen(sb: &Arc<SuperBlock>) -> Result {
    let sbi = sb.s_fs_info();
    if let Some(journal) = sbi.s_journal() {
        journal.flush()?;
    }
    sbi.buffers.sync_all()?;
    sbi.mark_clean().map_err(|error| ext4_error(sb, error))?;
    blkdev_issue_flush(sb.s_bdev())
}

/// Ends [`ext4_freeze`]. `EINVAL` if it is not frozen; EIO, and then the mount is read-only. Sleeps.
#[doc(alias = "thaw_super")]
pub fn ext4_unfreeze(sb: &Arc<SuperBlock>) -> Result {
    let _syscall = syscall("ext4_unfreeze");
    let _umount = sb.s_umount.write();
    if !sb.s_writers.is_shut() {
        return Err(EINVAL);
    }
    let sbi = sb.s_fs_info();
    let marked = if sb.s_flags().contains(SbFlags::RDONLY) || sbi.ext4_forced_shutdown() {
        Ok(())
    } else {
        // Before the first who waits can change anything.
        sbi.mark_writing().map_err(|error: crate::corrupt::Ext4Error| {
            sbi.s_rdonly.store(true, Ordering::SeqCst);
            sb.set_rdonly();
            Error::from(error)
        })
    };
    sbi.s_intwrite.open();
    sb.s_writers.open();
    sbi.s_flusher.kick();
    marked
}

/// How [`ext4_force_shutdown`] leaves the disk: `EXT4_IOC_SHUTDOWN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoingDown {
    /// As after a freeze: everything is written.
    #[doc(alias = "EXT4_GOING_FLAGS_DEFAULT")]
    Default,
    /// What is in the running transaction is committed; data and metadata are not brought home.
    #[doc(alias = "EXT4_GOING_FLAGS_LOGFLUSH")]
    LogFlush,
    /// As after a power cut.
    #[doc(alias = "EXT4_GOING_FLAGS_NOLOGFLUSH")]
    NoLogFlush,
}

/// Stops the mount: everything that is asked of it afterwards is EIO, and nothing of it reaches the disk any more. It can be unmounted
/// still. Sleeps, but not with [`GoingDown::NoLogFlush`].
pub fn ext4_force_shutdown(sb: &Arc<SuperBlock>, how: GoingDown) -> Result {
    let _syscall = syscall("ext4_force_shutdown");
    let sbi = sb.s_fs_info();
    if sbi.ext4_forced_shutdown() {
        return Ok(());
    }
    pr_warn!("EXT4-fs ({}): shut down requested ({how:?})", sbi.bdev.name());
    match how {
        GoingDown::Default => {
            ext4_freeze(sb)?;
            sbi.s_shutdown.store(true, Ordering::SeqCst);
            ext4_unfreeze(sb)
        }
        GoingDown::LogFlush => {
            let flushed = match sbi.s_journal() {
                Some(journal) if !sbi.is_rdonly() => journal.force_commit(),
                _ => Ok(()),
            };
            stop(sb);
            flushed
        }
        GoingDown::NoLogFlush => {
            stop(sb);
            Ok(())
        }
    }
}

fn stop(sb: &SuperBlock) {
    let sbi = sb.s_fs_info();
    sbi.s_shutdown.store(true, Ordering::SeqCst);
    if let Some(journal) = sbi.s_journal() {
        journal.shut_down();
    }
}
