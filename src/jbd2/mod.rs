// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2`: the journal.

use kernel_shim::alloc::Arc;
use kernel_shim::block::Bdev;
use kernel_shim::error::{Error, Result, code::EOPNOTSUPP};
use kernel_shim::fs::buffer::BufferHead;

use crate::ext4::Group;
use crate::{IRef, Inode, SuperBlock};

/// Number of a transaction: C's `tid_t`. Wraps around.
pub type Tid = u32;

/// Blocks of a group that were freed in a transaction, and may be used again when it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The group.
    pub group: Group,
    /// First block, counted within the group.
    pub start: u32,
    /// Blocks.
    pub count: u32,
}

/// A piece of the journal's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogExtent {
    /// First block, counted in the journal.
    pub lblk: u32,
    /// Where that is on the device.
    pub pblk: u64,
    /// Blocks.
    pub len: u32,
}

/// What the mount asks of its journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// Flush the device's cache where the order of writes matters: `barrier`.
    pub barrier: bool,
    /// How old a transaction gets before it is committed, in milliseconds: `commit=`.
    pub commit_interval_ms: u64,
    /// The file system has the feature `64bit`.
    pub has_64bit: bool,
    /// The file system has the feature `metadata_csum`: the log is to have checksums.
    pub metadata_csum: bool,
    /// Writes the data of an inode that was given to [`Handle::add_ordered`], as far as they have their blocks, and waits. It
    /// starts no handle.
    pub submit_data: fn(&Inode) -> Result,
    /// The journal was aborted: what `errors=` says is to be done. Called once, in any context; must not sleep.
    pub on_abort: fn(&SuperBlock, Error),
}

/// A journal: C's `journal_t`.
pub struct Journal {}

impl Journal {
    /// Reads the journal's super block through its map, and checks it: C's `jbd2_journal_init_inode()`. Nothing is written. Sleeps.
    pub fn load(
        _bdev: &Bdev,
        _blocksize: u32,
        _extents: &[LogExtent],
        _options: JournalOptions,
    ) -> Result<Arc<Journal>> {
        Err(EOPNOTSUPP)
    }
    /// Whether there are transactions in the log that have to be replayed.
    pub fn needs_recovery(&self) -> bool {
        false
    }
    /// Replays the log and makes it empty. The caller's caches hold nothing of the device that was read before, or forget it. Sleeps.
    #[doc(alias = "jbd2_journal_recover")]
    pub fn recover(&self) -> Result {
        Err(EOPNOTSUPP)
    }
    /// The error that an earlier mount left in the journal, if any; the file system has to be checked then.
    #[doc(alias = "jbd2_journal_errno")]
    pub fn errno(&self) -> Option<Error> {
        None
    }
    /// Takes that error out of the journal. Sleeps.
    #[doc(alias = "jbd2_journal_clear_err")]
    pub fn clear_err(&self) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Begins: sets the features, and starts the thread that commits, which holds the mount until [`Journal::destroy`]. The log
    /// must be empty. Sleeps.
    #[doc(alias = "jbd2_journal_load")]
    pub fn start_thread(_journal: &Arc<Self>, _sb: Option<Arc<SuperBlock>>) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Commits what runs, and brings everything home: the log is empty afterwards. Called with no handle open. Sleeps.
    #[doc(alias = "jbd2_journal_flush")]
    pub fn flush(&self) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Lets no handle start until [`Journal::unlock_updates`], and waits for those that are open: freeze.
    #[doc(alias = "jbd2_journal_lock_updates")]
    pub fn lock_updates(&self) {}
    /// Ends [`Journal::lock_updates`].
    #[doc(alias = "jbd2_journal_unlock_updates")]
    pub fn unlock_updates(&self) {}
    /// The end: [`Journal::flush`], and the thread is gone. An aborted journal is left as it is on disk. Sleeps.
    #[doc(alias = "jbd2_journal_destroy")]
    pub fn destroy(&self) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Stops everything: nothing of what is not committed reaches the disk. Any context; sleeps not.
    #[doc(alias = "jbd2_journal_abort")]
    pub fn abort(&self, _errno: Error) {}
    /// The error it was aborted with.
    #[doc(alias = "is_journal_aborted")]
    pub fn aborted(&self) -> Option<Error> {
        None
    }
    /// Asks for the commit of transaction `tid`, if it is the running one; does not wait.
    #[doc(alias = "jbd2_log_start_commit")]
    pub fn log_start_commit(&self, _tid: Tid) {}
    /// Sleeps until transaction `tid` is committed, which somebody has asked for. EIO if the journal was aborted.
    #[doc(alias = "jbd2_log_wait_commit")]
    pub fn log_wait_commit(&self, _tid: Tid) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Sleeps until transaction `tid` is committed, and asks for it if need be. At once if it is already. EIO.
    #[doc(alias = "jbd2_complete_transaction")]
    pub fn complete_transaction(&self, _tid: Tid) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Commits what was done so far, and waits for it. EIO.
    #[doc(alias = "jbd2_journal_force_commit")]
    pub fn force_commit(&self) -> Result {
        Err(EOPNOTSUPP)
    }
    /// Whether the commit of `tid` will still flush the device's cache: then data that are written by now need no flush of
    /// their own.
    #[doc(alias = "jbd2_trans_will_send_data_barrier")]
    pub fn trans_will_send_data_barrier(&self, _tid: Tid) -> bool {
        false
    }
}

/// C's `handle_t`.
pub struct Handle {}

impl Handle {
    /// See [`crate::ext4_jbd2::ext4_journal_start`].
    pub fn start(_journal: &Arc<Journal>, _credits: u32) -> Result<Self> {
        Err(EOPNOTSUPP)
    }
    /// The transaction.
    pub fn tid(&self) -> Tid {
        0
    }
    /// Blocks that may still be dirtied.
    pub fn credits(&self) -> u32 {
        0
    }
    /// See [`crate::ext4_jbd2::Handle::get_write_access`].
    pub fn get_write_access(&mut self, _bh: &BufferHead) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::get_create_access`].
    pub fn get_create_access(&mut self, _bh: &BufferHead) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::dirty_metadata`].
    pub fn dirty_metadata(&mut self, _bh: &BufferHead) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::forget`].
    pub fn revoke(&mut self, _block: u64) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::extend`].
    pub fn extend(&mut self, _credits: u32) -> Result<bool> {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::restart`].
    pub fn restart(&mut self, _credits: u32) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::add_freed`].
    pub fn add_freed(&mut self, _freed: Freed) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::add_ordered`].
    pub fn add_ordered(&mut self, _inode: &IRef) -> Result {
        Err(EOPNOTSUPP)
    }
    /// See [`crate::ext4_jbd2::Handle::sync`].
    pub fn set_sync(&mut self) {}
    /// See [`crate::ext4_jbd2::Handle::stop`].
    pub fn stop(self) -> Result {
        Ok(())
    }
}
