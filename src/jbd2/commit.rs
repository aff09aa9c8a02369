// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2/commit.c`: a transaction goes into the log.
//!
//! PORT: C writes the buffers themselves, and makes a copy of one only when the next transaction wants to change it too
//! early. Here all are copied while nobody has a handle, which takes memory for a moment; then nobody ever waits for a buffer
//! because it is being logged, and log and blocks are written in a few large requests.

use kernel_shim::alloc::{Arc, GFP_ATOMIC, GFP_NOFS, KVec};
use kernel_shim::block::{ReqOpf, bdev_write_pieces};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::buffer::IoBuf;
use kernel_shim::time::ktime_get_real;
use kernel_shim::{pr_err, pr_warn};

use super::disk::*;
use super::journal::{GROUP_TAGS, Journal, Logged};
use super::revoke::put_revoke_block;
use super::transaction::{JournalHead, Transaction, TransactionLists, Trigger};
use super::{Freed, JBD2_COMMIT, JBD2_HANDLE, Tid};
use crate::IRef;

/// A transaction on its way into the log.
struct Commit {
    trans: Arc<Transaction>,
    format: Format,
    lists: TransactionLists,
    /// How many of `lists.buffers`, from the first on, go into the log.
    logged: usize,
    /// Its first block, and where its next one goes.
    start: u32,
    at: u32,
    /// Blocks that are still to be written.
    groups: KVec<Group>,
}

/// Blocks that follow each other in the log.
struct Group {
    at: u32,
    buf: IoBuf,
    /// The first of the buffers that it has; none for revoke records.
    first: Option<usize>,
}

/// How the log is written.
const LOG_WRITE: ReqOpf = ReqOpf::REQ_OP_WRITE.union(ReqOpf::META).union(ReqOpf::SYNC);

impl Journal {
    /// Commits the running transaction, if there is one. By the thread alone. An error aborts the journal.
    pub(super) fn jbd2_journal_commit_transaction(&self) {
        let _commit = JBD2_COMMIT.hold();
        self.clean_checkpoint_list();
        let Some(trans) = self.lock_transaction() else { return };
        let format = *self.format.lock();
        let lists = core::mem::take(&mut *trans.lists.lock());
        let mut commit = Commit { trans, format, lists, logged: 0, start: 0, at: 0, groups: KVec::new() };
        take_buffers(&mut commit);
        pull_triggers(&commit);
        let filled = self.place(&mut commit).and_then(|()| self.fill(&mut commit));
        self.switch(&commit);
        self.submit_data(&mut commit.lists.ordered);
        let written = filled
            .and_then(|()| self.begin_log(&commit))
            .and_then(|()| self.write_log(&mut commit))
            .and_then(|()| self.write_commit_block(&commit));
        if let Err(error) = written {
            self.abort(error);
        }
        self.finish(commit);
        self.j_wait_done_commit.wake_up_all();
    }

    /// Closes the running transaction and waits until its handles are stopped.
    fn lock_transaction(&self) -> Option<Arc<Transaction>> {
        let trans = {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return None;
            }
            let running = state.running.as_mut()?;
            running.locked = true;
            running.trans.clone()
        };
        JBD2_HANDLE.might_wait();
        self.j_wait_updates.wait_event(|| {
            let state = self.state.lock();
            state.running.as_ref().is_none_or(|running| running.updates == 0)
        });
        Some(trans)
    }

    /// Tags in one descriptor block.
    fn group_tags(format: &Format) -> usize {
        format.tags_per_block().min(GROUP_TAGS)
    }

    /// Takes the blocks of the log that it needs. EIO if there are too few, which is a mistake of ours.
    fn place(&self, commit: &mut Commit) -> Result {
        let revokes = commit.lists.revoked.blocks().len().div_ceil(commit.format.revokes_per_block());
        let groups = commit.logged.div_ceil(Self::group_tags(&commit.format));
        let blocks = u32::try_from(revokes + groups + commit.logged + 1)?;
        let mut state = self.state.lock();
        (commit.start, commit.at) = (state.head, state.head);
        if state.aborted.is_some() {
            return Err(EIO);
        }
        if blocks > state.free {
            drop(state);
            pr_err!("JBD2: {}: no space for a transaction of {blocks} blocks", self.bdev.name());
            return Err(EIO);
        }
        state.head = self.advance(state.head, blocks);
        state.free -= blocks;
        Ok(())
    }

    /// Copies the blocks. Without memory for all of them some are written to the log right away, and handles wait longer.
    fn fill(&self, commit: &mut Commit) -> Result {
        let tid = commit.trans.tid;
        for records in commit.lists.revoked.blocks().chunks(commit.format.revokes_per_block()) {
            let room = commit.groups.reserve(1, GFP_NOFS);
            match IoBuf::new(self.blocksize, GFP_NOFS) {
                Ok(mut buf) if room.is_ok() => {
                    put_revoke_block(&commit.format, tid, buf.bytes_mut(), records).ok_or(EIO)?;
                    commit.groups.push(Group { at: commit.at, buf, first: None }, GFP_NOFS)?;
                }
                _ => self.write_spare(commit.at, 1, |bytes| put_revoke_block(&commit.format, tid, bytes, records))?,
            }
            commit.at = self.advance(commit.at, 1);
        }
        let mut first = 0;
        for jhs in
            commit.lists.buffers.get(..commit.logged).unwrap_or_default().chunks(Self::group_tags(&commit.format))
        {
            let room = commit.groups.reserve(1, GFP_NOFS);
            match IoBuf::new((1 + jhs.len()) * self.blocksize, GFP_NOFS) {
                Ok(mut buf) if room.is_ok() => {
                    copy_blocks(buf.bytes_mut(), self.blocksize, jhs);
                    commit.groups.push(Group { at: commit.at, buf, first: Some(first) }, GFP_NOFS)?;
                }
                _ => self.write_spare(commit.at, 1 + jhs.len(), |bytes| {
                    copy_blocks(bytes, self.blocksize, jhs);
                    finish_group(&commit.format, tid, bytes, jhs)
                })?,
            }
            commit.at = self.advance(commit.at, 1 + jhs.len() as u32);
            first += jhs.len();
        }
        Ok(())
    }

    /// Has `blocks` blocks filled in the memory that is kept for such times, and writes them.
    #[cold]
    fn write_spare(&self, at: u32, blocks: usize, fill: impl FnOnce(&mut [u8]) -> Option<()>) -> Result {
        let mut spare = self.spare.lock();
        let bytes = spare.bytes_mut().get_mut(..blocks * self.blocksize).ok_or(EIO)?;
        bytes.fill(0);
        fill(bytes).ok_or(EIO)?;
        bdev_write_pieces(&self.bdev, LOG_WRITE, self.log_pieces(at, bytes))
    }

    /// The next transaction may run.
    fn switch(&self, commit: &Commit) {
        {
            let mut state = self.state.lock();
            state.running = None;
            state.barrier_sent = false;
            state.committing = Some(Logged { trans: commit.trans.clone(), start: commit.start });
        }
        self.j_wait_transaction_locked.wake_up_all();
    }

    /// Ordered data: on the device before the commit block is, so that no block that the transaction gives to a file shows what it
    /// held before. An error is the file's, whose fsync tells.
    #[doc(alias = "jbd2_journal_submit_data_buffers")]
    fn submit_data(&self, ordered: &mut KVec<IRef>) {
        for inode in core::mem::take(ordered) {
            if self.aborted().is_none()
                && let Err(error) = (self.options.submit_data)(&inode)
            {
                pr_warn!("JBD2: {}: data of inode {}: {error:?}", self.bdev.name(), inode.i_ino());
            }
            // The thread must not be the one who frees an inode: that takes a handle.
            inode.put_deferred();
        }
    }

    /// If the super block says that there is nothing in the log: from now on recovery has to look. What it finds there without
    /// a commit block is of no use to it, and that block's flush comes after this write.
    fn begin_log(&self, commit: &Commit) -> Result {
        if !self.state.lock().flushed {
            return Ok(());
        }
        let _checkpoint = self.j_checkpoint_mutex.lock();
        self.write_sb(ReqOpf::empty(), |sb| {
            sb.set_s_sequence(Be(commit.trans.tid));
            sb.set_s_start(Be(commit.start));
        })?;
        let mut state = self.state.lock();
        state.flushed = false;
        state.tail = commit.start;
        Ok(())
    }

    /// Writes what was copied. EIO. Sleeps.
    fn write_log(&self, commit: &mut Commit) -> Result {
        for group in &mut commit.groups {
            let Some(first) = group.first else { continue };
            let jhs = commit.lists.buffers.get(first..).ok_or(EIO)?;
            finish_group(&commit.format, commit.trans.tid, group.buf.bytes_mut(), jhs).ok_or(EIO)?;
        }
        let pieces = commit.groups.iter().flat_map(|group| {
            // The memory may end in half a block only for a revoke block, which is one.
            let len = group.buf.bytes().len() / self.blocksize * self.blocksize;
            self.log_pieces(group.at, group.buf.bytes().get(..len).unwrap_or_default())
        });
        bdev_write_pieces(&self.bdev, LOG_WRITE, pieces)
    }

    /// Writes the block that makes all of it count. With barriers its flush covers the log before it, ordered data, and
    /// what has been written home; so the tail can move, too, without another one.
    #[doc(alias = "journal_submit_commit_record")]
    fn write_commit_block(&self, commit: &Commit) -> Result {
        let (old, tail) = {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return Err(EIO);
            }
            state.barrier_sent = true;
            let tail = self.log_tail(&state);
            (state.tail, (self.freed_by(&state, tail.1) >= self.max_transaction).then_some(tail))
        };
        {
            let mut spare = self.spare.lock();
            let block = spare.bytes_mut().get_mut(..self.blocksize).ok_or(EIO)?;
            block.fill(0);
            let now = ktime_get_real().to_timespec64();
            let sec = u64::try_from(now.tv_sec).unwrap_or(0);
            commit.format.put_commit(block, commit.trans.tid, sec, now.tv_nsec).ok_or(EIO)?;
            let opf = if self.barrier() { ReqOpf::PREFLUSH | ReqOpf::FUA } else { ReqOpf::empty() };
            bdev_write_pieces(&self.bdev, LOG_WRITE | opf, self.log_pieces(commit.at, block))?;
        }
        if let Some(tail) = tail
            && self.barrier()
            && let Some(_checkpoint) = self.j_checkpoint_mutex.try_lock()
            // Nobody has moved it meanwhile, further maybe.
            && self.state.lock().tail == old
        {
            self.update_log_tail(tail)?;
        }
        Ok(())
    }

    /// The transaction is committed, or lost: its blocks are let go.
    fn finish(&self, mut commit: Commit) {
        let tid = commit.trans.tid;
        let committed = self.aborted().is_none();
        for jh in &commit.lists.buffers {
            self.refile(jh, tid, committed);
        }
        // Only now nothing of the freed blocks is on its way home any more.
        if committed {
            self.process_freed(&commit.lists.freed);
        }
        commit.lists.buffers.truncate(commit.logged);
        let any = !commit.lists.buffers.is_empty();
        commit.trans.lists.lock().buffers = core::mem::take(&mut commit.lists.buffers);
        let mut state = self.state.lock();
        let logged = state.committing.take();
        if committed {
            state.commit_sequence = tid;
            state.nr_commits += 1;
            if any && let Some(logged) = logged {
                // There is room: made when the next transaction began, or this one.
                let kept = state.checkpoints.push(logged, GFP_ATOMIC);
                drop(state);
                if kept.is_err() {
                    self.abort(ENOMEM);
                }
            }
        }
    }

    /// Where a block stands after the commit.
    #[doc(alias = "jbd2_journal_refile_buffer")]
    fn refile(&self, jh: &Arc<JournalHead>, tid: Tid, committed: bool) {
        let mut forget = false;
        {
            let mut guard = jh.state.lock();
            let state = &mut *guard;
            let Some(member) = state.ctx.take() else { return };
            if !committed {
                // Newer than the log, and so never to go home.
                if state.tx.is_none() {
                    jh.bh.clear_jbd(false);
                }
            } else if member.forgotten {
                (state.cp, state.was_dirty) = (None, false);
                forget = state.tx.is_none();
            } else {
                if member.dirty {
                    (state.cp, state.was_dirty) = (Some(tid), false);
                }
                if state.tx.is_none() {
                    // With a newer transaction it is that one's business.
                    let was_dirty = core::mem::take(&mut state.was_dirty);
                    jh.bh.clear_jbd(was_dirty || state.cp.is_some());
                }
            }
        }
        if forget {
            jh.bh.forget();
        }
        self.heads.put_if_idle(jh);
    }

    /// Blocks that it freed may be used again.
    fn process_freed(&self, freed: &[Freed]) {
        if freed.is_empty() {
            return;
        }
        let sb = self.sb.lock().clone();
        if let Some(sb) = sb {
            sb.s_fs_info().ext4_process_freed_data(freed);
        }
    }
}

/// Makes its blocks those of a transaction being committed; those that go into the log come first in the list.
fn take_buffers(commit: &mut Commit) {
    let mut logged = 0;
    for at in 0..commit.lists.buffers.len() {
        let Some(jh) = commit.lists.buffers.get(at) else { break };
        let member = {
            let mut state = jh.state.lock();
            state.ctx = state.tx.take();
            state.ctx
        };
        if member.is_some_and(|member| member.dirty && !member.forgotten) {
            commit.lists.buffers.swap(logged, at);
            logged += 1;
        }
    }
    commit.logged = logged;
}

/// Finishes what is about to be copied. Nobody has a handle, so this is the last change.
#[doc(alias = "jbd2_buffer_frozen_trigger")]
fn pull_triggers(commit: &Commit) {
    for jh in commit.lists.buffers.get(..commit.logged).unwrap_or_default() {
        let trigger = jh.state.lock().ctx.and_then(|member| member.trigger);
        if let Some(Trigger { frozen, seed }) = trigger {
            frozen(&mut jh.bh.write(), seed);
        }
    }
}

/// Copies the contents of `jhs` behind the first block of `bytes`. Nobody has a handle, so they do not change.
fn copy_blocks(bytes: &mut [u8], blocksize: usize, jhs: &[Arc<JournalHead>]) {
    for (place, jh) in bytes.chunks_exact_mut(blocksize).skip(1).zip(jhs) {
        let block = jh.bh.read();
        if block.len() == place.len() {
            place.copy_from_slice(&block);
        }
    }
}

/// Makes the first block of `bytes` the descriptor of those behind it, which are copies of the first of `jhs`.
fn finish_group(format: &Format, tid: Tid, bytes: &mut [u8], jhs: &[Arc<JournalHead>]) -> Option<()> {
    let (descriptor, blocks) = bytes.split_at_mut_checked(format.blocksize)?;
    put_header(descriptor, blocktype::DESCRIPTOR, tid)?;
    let count = blocks.len() / format.blocksize;
    let mut end = HeaderView::LEN;
    for (n, (block, jh)) in blocks.chunks_exact_mut(format.blocksize).zip(jhs).enumerate() {
        let mut flags = TagFlags::empty();
        flags.set(TagFlags::SAME_UUID, n > 0);
        flags.set(TagFlags::LAST_TAG, n + 1 == count);
        let start = block.first_chunk_mut::<4>()?;
        if *start == JBD2_MAGIC_NUMBER.to_be_bytes() {
            // Recovery would take it for a block of the log's own.
            *start = [0; 4];
            flags |= TagFlags::ESCAPE;
        }
        let tag = Tag { block: jh.bh.block(), flags, checksum: format.tag_csum(tid, block) };
        let room = descriptor.get_mut(..format.end())?;
        end += format.put_tag(room.get_mut(end..)?, tag)?;
    }
    format.set_tail_csum(descriptor);
    Some(())
}

/// Gives up the inodes of a transaction that will not be committed.
pub(super) fn put_ordered(trans: &Transaction) {
    let ordered = core::mem::take(&mut trans.lists.lock().ordered);
    for inode in ordered {
        inode.put_deferred();
    }
}
