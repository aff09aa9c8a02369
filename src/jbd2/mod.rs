// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2`: the journal.

use kernel_shim::alloc::Arc;
use kernel_shim::error::{Result, code::EOPNOTSUPP};
use kernel_shim::fs::buffer::BufferHead;

use crate::IRef;
use crate::ext4::Group;

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

/// A journal: C's `journal_t`.
pub struct Journal {}

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
