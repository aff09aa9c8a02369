// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2/revoke.c`: blocks whose older contents in the log mean nothing any more.
//!
//! A block of metadata that is freed may be used for data next, which are written past the log. Replaying an older transaction
//! would then put the metadata back over them. So the transaction that frees the block says so in its revoke records, and
//! recovery leaves out what older transactions, and that one, have of it.

use kernel_shim::alloc::{GFP_ATOMIC, GFP_KERNEL, KVec};
use kernel_shim::error::Result;

use super::Tid;
use super::disk::{Format, RevokeView, blocktype, put_header, tid_gt};

/// The blocks that one transaction revokes, in order.
#[derive(Default)]
pub(super) struct RevokeSet(KVec<u64>);

impl RevokeSet {
    /// Adds a block, unless it is there; whether it was added. ENOMEM. Any context.
    pub(super) fn insert(&mut self, block: u64) -> Result<bool> {
        match self.0.binary_search(&block) {
            Ok(_) => Ok(false),
            Err(at) => {
                self.0.insert(at, block, GFP_ATOMIC)?;
                Ok(true)
            }
        }
    }

    /// The block is metadata again.
    #[doc(alias = "jbd2_journal_cancel_revoke")]
    pub(super) fn remove(&mut self, block: u64) {
        if let Ok(at) = self.0.binary_search(&block) {
            self.0.remove(at);
        }
    }

    /// The memory, for [`make_room`](kernel_shim::alloc::make_room).
    pub(super) fn list(&mut self) -> &mut KVec<u64> {
        &mut self.0
    }

    pub(super) fn blocks(&self) -> &[u64] {
        &self.0
    }
}

/// Fills one block of the log, which is all zeros, with records.
#[doc(alias = "write_one_revoke_record")]
pub(super) fn put_revoke_block(format: &Format, tid: Tid, block: &mut [u8], records: &[u64]) -> Option<()> {
    put_header(block, blocktype::REVOKE, tid)?;
    let size = format.revoke_bytes();
    let mut end = RevokeView::LEN;
    for &record in records {
        let place = block.get_mut(end..end + size)?;
        if size == 8 {
            place.copy_from_slice(&record.to_be_bytes());
        } else {
            place.copy_from_slice(&(record as u32).to_be_bytes());
        }
        end += size;
    }
    RevokeView::at_mut(block, 0)?.set_r_count(super::disk::Be(end as u32));
    format.set_tail_csum(block);
    Some(())
}

/// What recovery knows of revoked blocks: for each the last transaction that revokes it.
#[derive(Default)]
pub(super) struct RevokeTable {
    /// Block, transaction, and the how-manieth record it was.
    records: KVec<(u64, Tid, usize)>,
    sorted: bool,
}

impl RevokeTable {
    /// Notes a record; they come in the order of transactions. ENOMEM.
    #[doc(alias = "jbd2_journal_set_revoke")]
    pub(super) fn set(&mut self, block: u64, tid: Tid) -> Result {
        self.records.push((block, tid, self.records.len()), GFP_KERNEL)?;
        self.sorted = false;
        Ok(())
    }

    /// After the last record: of several of one block the newest stays.
    pub(super) fn finish(&mut self) {
        // The log is read in order, so that the latest record of a block is of its newest transaction.
        self.records.sort_unstable_by_key(|record| (record.0, core::cmp::Reverse(record.2)));
        let mut last = None;
        self.records.retain(|record| last.replace(record.0) != Some(record.0));
        self.sorted = true;
    }

    /// Whether what transaction `tid` has of `block` is not to be replayed.
    #[doc(alias = "jbd2_journal_test_revoke")]
    pub(super) fn test(&self, block: u64, tid: Tid) -> bool {
        let at = self.records.binary_search_by_key(&block, |record| record.0);
        self.sorted && at.ok().and_then(|at| self.records.get(at)).is_some_and(|record| !tid_gt(tid, record.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_a_block_counts() {
        let mut table = RevokeTable::default();
        for (block, tid) in [(7, u32::MAX), (7, 1), (7, 2), (9, 3)] {
            table.set(block, tid).expect("memory");
        }
        table.finish();
        assert!(table.test(7, u32::MAX) && table.test(7, 2) && !table.test(7, 3));
        assert!(table.test(9, 3) && !table.test(9, 4) && !table.test(8, 1));
    }

    #[test]
    fn a_set_holds_each_block_once() {
        let mut set = RevokeSet::default();
        assert_eq!(set.insert(5), Ok(true));
        assert_eq!(set.insert(5), Ok(false));
        assert_eq!(set.insert(3), Ok(true));
        set.remove(5);
        set.remove(4);
        assert_eq!(set.blocks(), &[3]);
    }
}
