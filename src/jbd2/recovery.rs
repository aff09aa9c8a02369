// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2/recovery.c`: after a crash.
//!
//! Three passes over the log: one finds its end, one collects what was revoked, one writes blocks home. Nothing in the log is
//! trusted; a pass ends at the latest when it has gone around it once. What a crash leaves half-done is done again: the log
//! says that it is empty only after all blocks are home.

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::block::{ReqOpf, bdev_rw, bdev_write_pieces, blkdev_issue_flush};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::buffer::IoBuf;
use kernel_shim::{pr_err, pr_notice};

use super::Tid;
use super::disk::*;
use super::journal::Journal;
use super::revoke::RevokeTable;

/// Blocks that are read from the log at once, and blocks that are written home at once.
const WINDOW: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Scan,
    Revoke,
    Replay,
}

/// What recovery has found: C's `struct recovery_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryInfo {
    /// The first transaction in the log, and the one after the last that is whole.
    pub start_transaction: Tid,
    /// See there.
    pub end_transaction: Tid,
    /// Blocks written home.
    pub nr_replays: usize,
    /// Revoke records.
    pub nr_revokes: usize,
    /// Blocks that were not written because of them.
    pub nr_revoke_hits: usize,
}

/// Reads the log, some blocks ahead.
struct LogReader<'j> {
    journal: &'j Journal,
    buf: IoBuf,
    /// What of the log is in `buf`.
    first: u32,
    count: u32,
}

impl<'j> LogReader<'j> {
    fn new(journal: &'j Journal) -> Result<Self> {
        let buf = IoBuf::new(WINDOW as usize * journal.blocksize, GFP_KERNEL)?;
        Ok(Self { journal, buf, first: 0, count: 0 })
    }

    /// Block `lblk` of the journal. EIO.
    #[doc(alias = "jread")]
    fn read(&mut self, lblk: u32) -> Result<&[u8]> {
        let bs = self.journal.blocksize;
        if lblk.wrapping_sub(self.first) >= self.count {
            self.count = 0;
            let run = self.journal.bmap_run(lblk)?.1.min(WINDOW);
            // If one of several cannot be read, the others can.
            self.fill(lblk, run).or_else(|_| self.fill(lblk, 1))?;
        }
        let at = lblk.wrapping_sub(self.first) as usize * bs;
        self.buf.bytes().get(at..at + bs).ok_or(EIO)
    }

    fn fill(&mut self, lblk: u32, count: u32) -> Result {
        let journal = self.journal;
        let sector = journal.bmap(lblk)? * journal.sectors_per_block();
        let bytes = self.buf.bytes_mut().get_mut(..count as usize * journal.blocksize).ok_or(EIO)?;
        bdev_rw(&journal.bdev, ReqOpf::REQ_OP_READ | ReqOpf::META | ReqOpf::SYNC, sector, bytes)?;
        (self.first, self.count) = (lblk, count);
        Ok(())
    }
}

/// Collects blocks, and writes them home many at a time.
struct HomeWriter<'j> {
    journal: &'j Journal,
    buf: IoBuf,
    blocks: KVec<u64>,
}

impl<'j> HomeWriter<'j> {
    fn new(journal: &'j Journal) -> Result<Self> {
        let buf = IoBuf::new(WINDOW as usize * journal.blocksize, GFP_KERNEL)?;
        Ok(Self { journal, buf, blocks: KVec::with_capacity(WINDOW as usize, GFP_KERNEL)? })
    }

    /// A block that is to be written. A later one of the same number comes after it.
    fn add(&mut self, block: u64, bytes: &[u8], escaped: bool) -> Result {
        // Two writes of one block in flight have no order.
        if self.blocks.len() >= WINDOW as usize || self.blocks.contains(&block) {
            self.write()?;
        }
        let at = self.blocks.len() * bytes.len();
        let place = self.buf.bytes_mut().get_mut(at..at + bytes.len()).ok_or(EIO)?;
        place.copy_from_slice(bytes);
        if escaped {
            place.get_mut(..4).ok_or(EIO)?.copy_from_slice(&JBD2_MAGIC_NUMBER.to_be_bytes());
        }
        self.blocks.push(block, GFP_KERNEL)?;
        Ok(())
    }

    fn write(&mut self) -> Result {
        let journal = self.journal;
        let pieces = self.blocks.iter().zip(self.buf.bytes().chunks(journal.blocksize));
        let pieces = pieces.map(|(block, bytes)| (block * journal.sectors_per_block(), bytes));
        let written = bdev_write_pieces(&journal.bdev, ReqOpf::META, pieces);
        self.blocks.clear();
        written
    }
}

/// One pass on its way.
struct Walk<'j> {
    journal: &'j Journal,
    format: Format,
    pass: Pass,
    log: LogReader<'j>,
    /// The next block of the log, and how many may still be looked at.
    at: u32,
    left: u32,
    /// The transaction that comes now.
    tid: Tid,
    /// A checksum was wrong in it. That is a corruption if it goes on as if it were whole, and else what was there before.
    suspect: bool,
    last_commit_sec: u64,
    /// Over all blocks of a transaction, for logs that have such checksums.
    crc32: u32,
    /// The pass goes on, but not all is well.
    error: Result,
    /// A commit block's checksum is wrong.
    bad_commit: bool,
}

/// What a block of the log means for the pass.
enum Step {
    Next,
    /// The log ends before the transaction at hand.
    End,
}

impl Walk<'_> {
    /// The number of the next block of the log, which is then passed. Nothing if all have been.
    fn advance(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let at = self.at;
        self.at = self.journal.advance(at, 1);
        Some(at)
    }

    fn run(&mut self, info: &mut RecoveryInfo, revoked: &mut RevokeTable, home: &mut HomeWriter<'_>) -> Result {
        let mut block = KVec::from_elem(0u8, self.format.blocksize, GFP_KERNEL)?;
        loop {
            if self.pass != Pass::Scan && tid_geq(self.tid, info.end_transaction) {
                return Ok(());
            }
            let Some(at) = self.advance() else { return Ok(()) };
            block.copy_from_slice(self.log.read(at)?);
            let header = HeaderView::at(&block, 0).ok_or(EIO)?;
            if header.h_magic().0 != JBD2_MAGIC_NUMBER || header.h_sequence().0 != self.tid {
                return Ok(());
            }
            let step = match header.h_blocktype().0 {
                blocktype::DESCRIPTOR => self.descriptor(&block, info, revoked, home)?,
                blocktype::COMMIT => self.commit(&block)?,
                blocktype::REVOKE => self.revoke(&block, info, revoked)?,
                _ => Step::End,
            };
            if matches!(step, Step::End) {
                return Ok(());
            }
        }
    }

    fn descriptor(
        &mut self,
        block: &[u8],
        info: &mut RecoveryInfo,
        revoked: &RevokeTable,
        home: &mut HomeWriter<'_>,
    ) -> Result<Step> {
        if !self.format.tail_csum_ok(block) {
            if self.pass != Pass::Scan {
                pr_err!("JBD2: descriptor block of transaction {} has a wrong checksum", self.tid);
                return Err(EFSBADCRC);
            }
            self.suspect = true;
        }
        let sum = self.pass == Pass::Scan && self.format.compat.contains(Compat::CHECKSUM) && !self.suspect;
        if sum {
            self.crc32 = crc32_be(self.crc32, block);
        }
        let mut end = HeaderView::LEN;
        while end + self.format.tag_bytes() <= self.format.end() {
            let tag = self.format.get_tag(block.get(end..).unwrap_or_default()).ok_or(EIO)?;
            let Some(at) = self.advance() else { return Ok(Step::End) };
            if sum {
                self.crc32 = crc32_be(self.crc32, self.log.read(at)?);
            }
            if self.pass == Pass::Replay {
                self.replay(at, tag, info, revoked, home)?;
            }
            end += self.format.tag_bytes();
            if !tag.flags.contains(TagFlags::SAME_UUID) {
                end += 16;
            }
            if tag.flags.contains(TagFlags::LAST_TAG) {
                break;
            }
        }
        Ok(Step::Next)
    }

    /// Writes one block home, unless it was revoked or is damaged: then the others are still written.
    fn replay(
        &mut self,
        at: u32,
        tag: Tag,
        info: &mut RecoveryInfo,
        revoked: &RevokeTable,
        home: &mut HomeWriter<'_>,
    ) -> Result {
        if revoked.test(tag.block, self.tid) {
            info.nr_revoke_hits += 1;
            return Ok(());
        }
        let bytes = match self.log.read(at) {
            Ok(bytes) => bytes,
            Err(error) => {
                pr_err!("JBD2: {error:?} recovering block {at} in log");
                self.error = Err(error);
                return Ok(());
            }
        };
        if self.format.has_csum() && self.format.tag_csum(self.tid, bytes) != tag.checksum {
            pr_err!("JBD2: wrong checksum recovering block {} in log", tag.block);
            self.error = Err(EFSBADCRC);
            return Ok(());
        }
        let blocks = self.journal.bdev.nr_sectors() / self.journal.sectors_per_block();
        if tag.block >= blocks {
            pr_err!("JBD2: block {} in log is beyond the end of the device", tag.block);
            self.error = Err(EFSCORRUPTED);
            return Ok(());
        }
        home.add(tag.block, bytes, tag.flags.contains(TagFlags::ESCAPE))?;
        info.nr_replays += 1;
        Ok(())
    }

    fn commit(&mut self, block: &[u8]) -> Result<Step> {
        if self.pass == Pass::Scan {
            let commit = CommitView::at(block, 0).ok_or(EIO)?;
            let sec = commit.h_commit_sec().0;
            // A commit block older than the one before is of an earlier time around.
            let stale = sec < self.last_commit_sec;
            if self.suspect {
                if stale {
                    return Ok(Step::End);
                }
                pr_err!("JBD2: wrong checksum in transaction {}", self.tid);
                return Err(EFSBADCRC);
            }
            let kind = (commit.h_chksum_type(), commit.h_chksum_size());
            let found = commit.h_chksum().0;
            let crc32_ok = !self.format.compat.contains(Compat::CHECKSUM)
                || (kind == JBD2_CRC32_CHKSUM && found == self.crc32)
                || (kind == (0, 0) && found == 0);
            self.crc32 = !0;
            if !crc32_ok || !self.format.commit_csum_ok(block) {
                // Without async_commit the block was written when all before it was there, so that it is damage. With it the
                // transaction was under way.
                self.bad_commit = !stale && !self.format.incompat.contains(Incompat::ASYNC_COMMIT);
                return Ok(Step::End);
            }
            self.last_commit_sec = sec;
        }
        self.tid = self.tid.wrapping_add(1);
        Ok(Step::Next)
    }

    #[doc(alias = "scan_revoke_records")]
    fn revoke(&mut self, block: &[u8], info: &mut RecoveryInfo, revoked: &mut RevokeTable) -> Result<Step> {
        if self.pass == Pass::Scan && !self.format.tail_csum_ok(block) {
            self.suspect = true;
        }
        if self.pass != Pass::Revoke {
            return Ok(Step::Next);
        }
        let count = RevokeView::at(block, 0).ok_or(EIO)?.r_count().0 as usize;
        if count > self.format.end() {
            pr_err!("JBD2: revoke block of transaction {} is longer than a block", self.tid);
            return Err(EINVAL);
        }
        let records = block.get(RevokeView::LEN..count).unwrap_or_default();
        for record in records.chunks_exact(self.format.revoke_bytes()) {
            let number = record.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            revoked.set(number, self.tid)?;
            info.nr_revokes += 1;
        }
        Ok(Step::Next)
    }
}

impl Journal {
    /// Replays the log and makes it empty. The caller's caches hold nothing of the device that was read before, or forget it.
    /// Sleeps.
    ///
    /// `EFSBADCRC`, `EFSCORRUPTED`, `EIO`: what could be written home was, and the log stays as it is. `EOPNOTSUPP`: there are fast
    /// commits to be replayed, which nothing was done about. `EROFS`: the device cannot be written.
    #[doc(alias = "jbd2_journal_recover")]
    pub fn recover(&self) -> Result<RecoveryInfo> {
        if self.state.lock().started {
            return Err(EBUSY);
        }
        if !self.needs_recovery() {
            return Ok(RecoveryInfo::default());
        }
        if self.bdev.read_only() {
            return Err(EROFS);
        }
        let (tid, start) = self.read_sb(|sb| (sb.s_sequence().0, sb.s_start().0))?;
        let mut info = RecoveryInfo { start_transaction: tid, end_transaction: tid, ..RecoveryInfo::default() };
        let mut revoked = RevokeTable::default();
        let mut bad_commit = false;
        let mut result = Ok(());
        for pass in [Pass::Scan, Pass::Revoke, Pass::Replay] {
            let walk = self.do_one_pass(pass, tid, start, &mut info, &mut revoked)?;
            match pass {
                Pass::Scan => {
                    info.end_transaction = walk.tid;
                    bad_commit = walk.bad_commit;
                    self.refuse_fast_commits(walk.tid)?;
                }
                Pass::Revoke => revoked.finish(),
                Pass::Replay => {}
            }
            if walk.tid != info.end_transaction {
                pr_err!("JBD2: recovery ended at transaction {}, expected {}", walk.tid, info.end_transaction);
                result = result.and(Err(EIO));
            }
            result = result.and(walk.error);
        }
        blkdev_issue_flush(&self.bdev)?;
        result?;
        if bad_commit {
            pr_err!("JBD2: transaction {} is corrupt", info.end_transaction);
            return Err(EFSCORRUPTED);
        }
        // One more: of the one that was under way at the crash there may be blocks in the log.
        self.reset(info.end_transaction.wrapping_add(1))?;
        pr_notice!(
            "JBD2: {}: recovery: transactions {} to {}, {} blocks replayed, {} of {} revoked",
            self.bdev.name(),
            info.start_transaction,
            info.end_transaction,
            info.nr_replays,
            info.nr_revoke_hits,
            info.nr_revokes
        );
        Ok(info)
    }

    fn do_one_pass(
        &self,
        pass: Pass,
        tid: Tid,
        start: u32,
        info: &mut RecoveryInfo,
        revoked: &mut RevokeTable,
    ) -> Result<Walk<'_>> {
        let mut walk = Walk {
            journal: self,
            format: *self.format.lock(),
            pass,
            log: LogReader::new(self)?,
            at: start,
            left: self.last - self.first,
            tid,
            suspect: false,
            last_commit_sec: 0,
            crc32: !0,
            error: Ok(()),
            bad_commit: false,
        };
        let mut home = HomeWriter::new(self)?;
        let walked = walk.run(info, revoked, &mut home);
        home.write()?;
        walked.map(|()| walk)
    }

    /// Fast commits say in ext4's own words what happened after the last transaction. They are not understood here.
    #[doc(alias = "fc_do_one_pass")]
    fn refuse_fast_commits(&self, tid: Tid) -> Result {
        if !self.format.lock().incompat.contains(Incompat::FAST_COMMIT) || self.last >= self.fc_last {
            return Ok(());
        }
        let mut log = LogReader::new(self)?;
        // Linux leaves the first block out.
        for first in [self.last, self.last + 1] {
            if first < self.fc_last && fast_commit_of(&mut log, first, self.fc_last, tid)? {
                pr_err!("JBD2: {}: fast commits are pending, which e2fsck can replay", self.bdev.name());
                return Err(EOPNOTSUPP);
            }
        }
        Ok(())
    }
}

/// Whether there is a fast commit that follows on transaction `tid` - 1, from block `first` on, that has an end.
fn fast_commit_of(log: &mut LogReader<'_>, first: u32, last: u32, tid: Tid) -> Result<bool> {
    const HEAD: u16 = 9;
    const TAIL: u16 = 8;
    let word = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    let half = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|half| u16::from_le_bytes(*half));
    for block in first..last {
        let bytes = log.read(block)?;
        let mut at = 0;
        if block == first && (half(bytes, 0), word(bytes, 8)) != (Some(HEAD), Some(tid)) {
            return Ok(false);
        }
        // Each a tag and a length, and what it says.
        while let (Some(tag @ 1..=HEAD), Some(len)) = (half(bytes, at), half(bytes, at + 2)) {
            if tag == TAIL {
                return Ok(word(bytes, at + 4) == Some(tid));
            }
            at += 4 + usize::from(len);
        }
    }
    Ok(false)
}
