// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2`: the journal.
//!
//! Changes of metadata go into a log first, many of them as one transaction, and home later. A crash finds all of a transaction in
//! the log or nothing that counts.
//!
//! ```text
//!  Handle::start ─ get_write_access ─ change ─ dirty_metadata ─ stop       transaction.rs: the running transaction
//!        │ (as many at once as want to)
//!        ▼ 5 s old, large, or somebody waits
//!  the thread: close it, finish and copy its blocks; next one               commit.rs: the committing transaction
//!    ordered data ∥ revoke, descriptor and metadata blocks → FLUSH, commit block, FUA
//!        │
//!        ▼ dirty in the buffer cache, written back at any time
//!  checkpoint: write home what is left, FLUSH, move the tail               checkpoint.rs: committed transactions
//! ```
//!
//! # Locks
//!
//! `j_checkpoint_mutex` → `spare` → (the device's block locks of buffers) → `sb_buf` → (spin) `state` → a bucket of heads → a head →
//! a transaction's lists. None of the mutexes is held while waiting for a commit or for handles to stop. Nobody who has an
//! open handle waits for a commit or for space in the log; so a transaction can always be closed, its log has always room,
//! and space can always be made by committing and writing home.
//!
//! PORT: what C hangs on each buffer is in a table by block number (`transaction`); log blocks do not go through the buffer cache.
//! Journals on other devices, `async_commit`, fast commits and checksums over whole transactions are not written; the last are
//! understood in recovery.

mod check;
mod checkpoint;
mod commit;
pub mod disk;
mod journal;
mod recovery;
mod revoke;
mod transaction;

use kernel_shim::error::{Error, Result};
use kernel_shim::sync::lockdep::LockMap;

pub use journal::Journal;
pub use recovery::RecoveryInfo;
pub use transaction::{Handle, Trigger};

use crate::ext4::Group;
use crate::{Inode, SuperBlock};

/// Held by who has a handle: the end of a transaction waits for them all.
#[doc(alias = "j_trans_commit_map")]
static JBD2_HANDLE: LockMap = LockMap::new("jbd2_handle");
/// Held by the thread while it commits.
static JBD2_COMMIT: LockMap = LockMap::new("jbd2_commit");

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
