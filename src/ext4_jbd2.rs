// SPDX-License-Identifier: GPL-2.0-only
//! `ext4_jbd2.c`: journal handles as the file system sees them, with or without a journal.
//!
//! Every change of metadata is made under a [`Handle`]: access to a block is asked for, the block is changed under its lock, and
//! the change is handed over with [`Handle::dirty_metadata`]. Without a journal a handle costs nothing and the block is
//! merely dirty.
//!
//! # Order
//!
//! `i_mutex` → `invalidate_lock` → handle → page lock → `i_data_sem` → group lock → a buffer's lock. A task has one handle at
//! most and hands it down; none is started with a page lock, `i_data_sem` or a buffer's lock held, and nobody who has one
//! waits for a commit, for direct I/O in flight or for `i_mutex`.

use kernel_shim::error::Result;
use kernel_shim::fs::InodeState;
use kernel_shim::fs::buffer::BufferHead;

use crate::Ext4InodeInfo;
use crate::ext4::Fsblk;
use crate::jbd2::{self, Trigger};
use crate::sb::Ext4SbInfo;

/// A running operation's part in a transaction: C's `handle_t`. Dropping it stops it, with errors lost; [`Handle::stop`]
/// tells them.
#[must_use = "the handle stops at once when unused"]
pub struct Handle<'s> {
    sb: &'s Ext4SbInfo,
    /// Nothing on a mount without a journal.
    h: Option<jbd2::Handle>,
    _access: kernel_shim::fs::WriteAccess<'s>,
}

/// Starts a handle that may dirty `credits` blocks. Sleeps while the transaction before is being closed or the log is full.
///
/// EROFS if the mount is read-only or the journal was aborted, EIO after a shutdown, ENOSPC for more credits than a transaction may have, ENOMEM.
/// Called with no handle open.
pub fn ext4_journal_start(sb: &Ext4SbInfo, credits: u32) -> Result<Handle<'_>> {
    // While the file system is frozen nothing is changed, not even by a worker that came through no other gate.
    let access = sb.s_intwrite.enter();
    sb.ext4_journal_check_start()?;
    let h = match sb.s_journal() {
        Some(journal) => Some(jbd2::Handle::start(journal, credits)?),
        None => None,
    };
    Ok(Handle { sb, h, _access: access })
}

impl<'s> Handle<'s> {
    /// The mount.
    #[inline]
    pub fn sb(&self) -> &'s Ext4SbInfo {
        self.sb
    }

    /// Whether there is a journal behind it.
    #[doc(alias = "ext4_handle_valid")]
    pub fn is_valid(&self) -> bool {
        self.h.is_some()
    }

    /// The transaction it belongs to, or 0 without a journal.
    #[doc(alias = "h_transaction")]
    pub fn tid(&self) -> jbd2::Tid {
        self.h.as_ref().map_or(0, jbd2::Handle::tid)
    }

    /// Before a block's contents are changed. EIO, EROFS. Sleeps. Called without the block's lock.
    #[doc(alias = "ext4_journal_get_write_access")]
    pub fn get_write_access(&mut self, bh: &BufferHead) -> Result {
        match &mut self.h {
            Some(h) => h.get_write_access(bh),
            None => Ok(()),
        }
    }

    /// Before a newly allocated block is filled, which need not be read. As [`Handle::get_write_access`].
    #[doc(alias = "ext4_journal_get_create_access")]
    pub fn get_create_access(&mut self, bh: &BufferHead) -> Result {
        match &mut self.h {
            Some(h) => h.get_create_access(bh),
            None => Ok(()),
        }
    }

    /// After a block was changed: it is part of the transaction. Called without the block's lock. Sleeps not.
    #[doc(alias = "ext4_handle_dirty_metadata")]
    pub fn dirty_metadata(&mut self, bh: &BufferHead) -> Result {
        self.dirty_metadata_triggered(bh, None)
    }

    /// The same for a block that `trigger` finishes when it goes to the log. Without a journal nobody calls that, and the block is to
    /// be finished already.
    #[doc(alias = "jbd2_journal_set_triggers")]
    pub fn dirty_metadata_triggered(&mut self, bh: &BufferHead, trigger: Option<Trigger>) -> Result {
        match &mut self.h {
            Some(h) => h.dirty_metadata_triggered(bh, trigger),
            None => {
                bh.mark_dirty();
                Ok(())
            }
        }
    }

    /// A block that was metadata is being freed: nothing of it is to reach its place any more, by write-back or by recovery.
    /// Called without the block's lock.
    #[doc(alias = "ext4_forget")]
    #[doc(alias = "jbd2_journal_revoke")]
    pub fn forget(&mut self, block: Fsblk) -> Result {
        match &mut self.h {
            Some(h) => h.revoke(block.0),
            None => {
                self.sb.buffers.invalidate(block.0, 1);
                Ok(())
            }
        }
    }

    /// Whether `needed` more blocks may be dirtied.
    #[doc(alias = "ext4_handle_has_enough_credits")]
    pub fn has_enough_credits(&self, needed: u32) -> bool {
        self.h.as_ref().is_none_or(|h| h.credits() >= needed)
    }

    /// Asks for `credits` more within the same transaction; `false` if it has no room, and then the caller brings its blocks
    /// into a state that may be committed and [restarts](Handle::restart). Sleeps not.
    #[doc(alias = "ext4_journal_extend")]
    pub fn extend(&mut self, credits: u32) -> Result<bool> {
        match &mut self.h {
            Some(h) => h.extend(credits),
            None => Ok(true),
        }
    }

    /// Ends its part in this transaction and goes on in one that may be the next, with `credits`. What was done before may
    /// be committed without what comes after. Called with no lock held that a handle is below of in the order above. Sleeps.
    #[doc(alias = "ext4_journal_restart")]
    pub fn restart(&mut self, credits: u32) -> Result {
        match &mut self.h {
            Some(h) => h.restart(credits),
            None => Ok(()),
        }
    }

    /// [`Handle::extend`] unless there are `needed` credits; `false`: the caller has to restart.
    #[doc(alias = "ext4_journal_ensure_credits")]
    pub fn ensure_credits(&mut self, needed: u32, extend: u32) -> Result<bool> {
        if self.has_enough_credits(needed) { Ok(true) } else { self.extend(extend) }
    }

    /// Blocks were freed that nobody may use before the transaction is committed: they are given to
    /// [`Ext4SbInfo::ext4_process_freed_data`] then, or at once without a journal.
    pub fn add_freed(&mut self, freed: jbd2::Freed) -> Result {
        match &mut self.h {
            Some(h) => h.add_freed(freed),
            None => {
                self.sb.ext4_process_freed_data(&[freed]);
                Ok(())
            }
        }
    }

    /// Dirty pages of `inode` that already have their blocks must be on the device before this transaction is committed:
    /// `data=ordered`.
    #[doc(alias = "ext4_jbd2_inode_add_write")]
    pub fn add_ordered(&mut self, inode: &crate::IRef) -> Result {
        match &mut self.h {
            Some(h) => h.add_ordered(inode),
            None => Ok(()),
        }
    }

    /// Whether the transaction before this one is being committed, and maybe still about to write its files' data.
    pub(crate) fn commit_under_way(&self) -> bool {
        self.h.as_ref().is_some_and(jbd2::Handle::commit_under_way)
    }

    /// The caller waits for the commit when the handle is stopped: `O_SYNC`, `dirsync`.
    #[doc(alias = "ext4_handle_sync")]
    pub fn sync(&mut self) {
        if let Some(h) = &mut self.h {
            h.set_sync();
        }
    }

    /// The inode was written in this transaction, which is the one that fsync has to wait for.
    #[doc(alias = "ext4_update_inode_fsync_trans")]
    pub(crate) fn note_inode(&self, info: &Ext4InodeInfo, dirty: InodeState) {
        use core::sync::atomic::Ordering;
        if let Some(h) = &self.h {
            info.i_sync_tid.store(h.tid(), Ordering::Release);
            if dirty.contains(InodeState::DIRTY_DATASYNC) {
                info.i_datasync_tid.store(h.tid(), Ordering::Release);
            }
        } else {
            info.i_unsynced.store(true, Ordering::Release);
        }
    }

    /// Ends it. The error is the journal's, if it was aborted. Sleeps if [`Handle::sync`] was called.
    #[doc(alias = "ext4_journal_stop")]
    pub fn stop(self) -> Result {
        match self.h {
            Some(h) => h.stop(),
            None => Ok(()),
        }
    }
}
