// SPDX-License-Identifier: GPL-2.0-only
//! The files that the kernel has open.

use std::sync::atomic::{AtomicU64, Ordering};

use ext4_dio::File;
use fuser::FileHandle;
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::{Result, code::EBADF};

use crate::sharded::Sharded;

/// Open files by the numbers that the kernel was given for them. Directories need none: where a reader is, the kernel says.
#[derive(Default)]
pub struct Handles {
    next: AtomicU64,
    open: Sharded<KArc<File>>,
}

impl Handles {
    /// Gives `file` a number.
    pub fn add(&self, file: KArc<File>) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.shard(number).insert(number, file);
        FileHandle(number)
    }

    /// The file of a number. EBADF.
    pub fn get(&self, handle: FileHandle) -> Result<KArc<File>> {
        self.open.get(handle.0).ok_or(EBADF)
    }

    /// Closes a file.
    pub fn close(&self, handle: FileHandle) {
        // The last reference may free blocks: not under the lock.
        let _file = self.open.shard(handle.0).remove(&handle.0);
    }

    /// Closes all.
    pub fn close_all(&self) {
        drop(self.open.drain());
    }
}
