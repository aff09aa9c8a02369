// SPDX-License-Identifier: GPL-2.0-only
//! `fs/fs-writeback.c`, as far as there is any: one thread to a mount, which now and then writes what is dirty, and tells the
//! super block of errors that were found where nobody could sleep.

use core::sync::atomic::{AtomicBool, Ordering};

use kernel_shim::alloc::Arc;
use kernel_shim::error::Result;
use kernel_shim::fs::{FileSystem, InodeState};
use kernel_shim::sched::{JoinHandle, spawn};
use kernel_shim::sync::{Mutex, WaitQueue};

use crate::aops::ext4_writepages;
use crate::fsync::ext4_sync_file;
use crate::mballoc::ext4_discard_preallocations;
use crate::{Ext4, Ext4State, Inode, SuperBlock};

/// The thread, and how to talk to it.
#[derive(Default)]
pub(crate) struct Flusher {
    wait: WaitQueue,
    stop: AtomicBool,
    kicked: AtomicBool,
    /// There are more inodes in memory than there should be.
    pressed: AtomicBool,
    thread: Mutex<Option<JoinHandle>>,
}

impl Flusher {
    /// Has it look what there is to do. Any context.
    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.wait.wake_up_all();
    }

    /// There are too many inodes in memory. Any context.
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Release);
        self.kick();
    }

    /// Starts the thread, which holds the mount until [`Flusher::stop`].
    pub(crate) fn start(sb: &Arc<SuperBlock>) -> Result {
        let this = &sb.s_fs_info().s_flusher;
        this.stop.store(false, Ordering::Release);
        let held = sb.clone();
        *this.thread.lock() = Some(spawn("ext4-flush", move || run(&held))?);
        Ok(())
    }

    /// Ends the thread, if there is one. Sleeps. Not called with `s_umount` held for writing, which it may be waiting for.
    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().take();
        self.stop.store(true, Ordering::Release);
        self.wait.wake_up_all();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

fn run(sb: &SuperBlock) {
    let sbi = sb.s_fs_info();
    let this = &sbi.s_flusher;
    while !this.stop.load(Ordering::Acquire) {
        let interval = u64::from(sbi.options().commit) * 1_000_000_000;
        let cond = || this.stop.load(Ordering::Acquire) || this.kicked.swap(false, Ordering::AcqRel);
        this.wait.wait_event_timeout(cond, interval);
        if sbi.is_rdonly() {
            // What an error has made read-only is so for the VFS, too.
            sb.set_rdonly();
        }
        // Whoever mounts, freezes or unmounts has it for writing, and does itself what is to be done.
        let Some(_umount) = sb.s_umount.try_read() else { continue };
        if sb.s_writers.is_shut() {
            continue;
        }
        // Nobody hears of an error here; those of data are kept for fsync, those of metadata strike whoever comes next.
        let _ = sbi.write_errors();
        let _ = ext4_writeback(sb, this.pressed.swap(false, Ordering::AcqRel));
    }
}

/// Writes what is dirty: data, and inodes but for their times; with `all` those too. Waits for no commit. Called with no handle
/// open. The first error, after everything was tried. Sleeps.
pub fn ext4_writeback(sb: &SuperBlock, all: bool) -> Result {
    let sbi = sb.s_fs_info();
    if sbi.ext4_journal_check_start().is_err() {
        return Ok(());
    }
    let data = ext4_write_data(sb, false);
    let only_times = |inode: &Inode| inode.i_state().difference(InodeState::DIRTY_TIME).is_empty();
    let inodes = sb.for_each_inode(|inode| !only_times(inode), |inode| Ext4::write_inode(inode));
    let buffers = if sbi.s_journal().is_none() { sbi.buffers.sync_all() } else { Ok(()) };
    if all {
        // So that the cache can let go of them.
        let held = |inode: &Inode| inode.i_count() == 0 && (!may_forget(inode) || !inode.i_state().is_empty());
        sb.for_each_inode(held, |inode| {
            ext4_discard_preallocations(inode);
            match sbi.s_journal() {
                Some(_) => Ext4::write_inode(inode),
                None => ext4_sync_file(inode, 0, i64::MAX, false),
            }
        })?;
    }
    data.and(inodes).and(buffers)
}

/// Writes dirty pages of all inodes; with `wait` all that are dirty now are on the device when it returns. Called with no handle
/// open. The first error, after all were tried. Sleeps.
pub(crate) fn ext4_write_data(sb: &SuperBlock, wait: bool) -> Result {
    sb.for_each_inode(|inode| inode.i_mapping().is_dirty(), |inode| ext4_writepages(inode, 0, i64::MAX, wait))
}

/// Whether the cache may let go of a clean inode: it has nothing that is not on the disk, or in the buffer cache where whoever
/// reads it back looks first.
pub(crate) fn may_forget(inode: &Inode) -> bool {
    let info = inode.i_private();
    // Read back, it would not know that its table block is newer in memory, and its next fsync would leave that there.
    !info.i_unsynced.load(Ordering::Acquire) && !info.state(Ext4State::UNSYNCED_META) && info.orphan().is_none()
}
