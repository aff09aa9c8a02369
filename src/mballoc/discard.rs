// SPDX-License-Identifier: GPL-2.0-only
//! Telling the device of blocks that are free: after a commit (`discard`), or when asked (`FITRIM`).

use core::ops::Range;

use kernel_shim::alloc::GFP_NOFS;
use kernel_shim::block::{BioPtr, IoBatch, ReqOpf, bio_alloc, submit_bio_wait};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, EOPNOTSUPP, EROFS};

use super::{GroupFlags, Run};
use crate::corrupt::Ext4Result;
use crate::ext4::{Fsblk, Group};
use crate::jbd2::Freed;
use crate::sb::Ext4SbInfo;

/// Discards that are under way at once.
const DISCARD_BATCH: usize = 32;

impl Ext4SbInfo {
    /// Tells the device that it may forget these blocks, and waits. They must be nobody's, and nobody may get them meanwhile.
    pub(super) fn ext4_issue_discard(&self, run: Run) -> Result {
        submit_bio_wait(&self.bdev, self.discard_bio(run)?)
    }

    /// EOPNOTSUPP if the device does not know what that is.
    fn discard_bio(&self, run: Run) -> Result<BioPtr> {
        if !self.bdev.limits().discard {
            return Err(EOPNOTSUPP);
        }
        let mut bio = bio_alloc(&self.bdev, ReqOpf::REQ_OP_DISCARD, GFP_NOFS)?;
        bio.bi_sector = self.run_start(run).0 << (self.s_blocksize_bits - 9);
        // A group has 128 MiB at most.
        bio.set_size(run.len << self.s_blocksize_bits);
        Ok(bio)
    }

    /// Tells the device of what a transaction freed, before anybody can have it: many at once, and neighbours as one. What the
    /// device makes of it is its own affair.
    pub(super) fn discard_freed(&self, freed: &[Freed]) {
        let mut rest = freed.iter().map(|f| Run { group: f.group, start: f.start, len: f.count }).peekable();
        while rest.peek().is_some() {
            // Each bio comes from a pool that others want something of.
            let told = IoBatch::run(&self.bdev, |batch| {
                for _ in 0..DISCARD_BATCH {
                    let Some(mut run) = rest.next() else { break };
                    while let Some(next) = rest.next_if(|n| n.group == run.group && n.start == run.start + run.len) {
                        run.len += next.len;
                    }
                    batch.submit(self.discard_bio(run)?);
                }
                Ok(())
            });
            if told.is_err() {
                return;
            }
        }
    }

    /// Discards the free runs of at least `minlen` bytes in bytes `range` of the file system; how many bytes those were. Sleeps.
    ///
    /// EOPNOTSUPP if the device cannot; EINVAL for a range beyond the end or less than a block; EROFS, EIO.
    pub fn ext4_trim_fs(&self, range: Range<u64>, minlen: u64) -> Result<u64> {
        let bits = self.s_blocksize_bits;
        if !self.bdev.limits().discard {
            return Err(EOPNOTSUPP);
        }
        if self.is_rdonly() {
            return Err(EROFS);
        }
        let first = (range.start >> bits).max(u64::from(self.s_first_data_block));
        let end = (range.end >> bits).min(self.s_blocks_count);
        let minlen = minlen.div_ceil(u64::from(self.s_blocksize)).max(1);
        if minlen > u64::from(self.s_blocks_per_group) || first >= self.s_blocks_count || range.end <= range.start {
            return Err(EINVAL);
        }
        let mut trimmed = 0;
        for group in (0..self.s_groups_count).map(Group) {
            let start = self.ext4_group_first_block_no(group).0;
            let blocks = u64::from(self.blocks_in_group(group));
            let (from, to) = (first.max(start), end.min(start + blocks));
            // A damaged group is told of when somebody wants its blocks.
            if from < to && self.mb.check_group(group, GroupFlags::BBITMAP_CORRUPT).is_ok() {
                let within = (from - start) as u32..(to - start) as u32;
                trimmed += self.ext4_trim_all_free(group, within, minlen as u32).map_err(|e| self.ext4_error(e))?;
            }
        }
        Ok(trimmed << bits)
    }

    /// One group's part of it, in blocks.
    fn ext4_trim_all_free(&self, group: Group, range: Range<u32>, minlen: u32) -> Ext4Result<u64> {
        let mut trimmed = 0;
        let mut at = range.start;
        while at < range.end {
            let run = {
                let mut locked = self.ext4_lock_group(group)?;
                let buddy = locked.buddy()?;
                let start = buddy.next_free(at, range.end);
                let len = buddy.run_at(start, range.end - start);
                if len >= minlen {
                    // In use for the time being, so that nobody writes what is then discarded.
                    buddy.mark_used(start, len);
                }
                Run { group, start, len }
            };
            at = run.start.saturating_add(run.len.max(1));
            if run.len >= minlen {
                let done = self.ext4_issue_discard(run);
                self.give_back(run);
                done?;
                trimmed += u64::from(run.len);
            }
        }
        Ok(trimmed)
    }

    /// The first block of a run.
    pub(crate) fn run_start(&self, run: Run) -> Fsblk {
        Fsblk(self.ext4_group_first_block_no(run.group).0 + u64::from(run.start))
    }
}
