// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2/checkpoint.c`: blocks are written home, so that their place in the log can be used again.

use kernel_shim::alloc::{Arc, GFP_NOFAIL, GFP_NOFS, KVec};
use kernel_shim::block::{ReqOpf, blkdev_issue_flush};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::buffer::{BufferHead, BufferWrite, write_dirty_buffers};
use kernel_shim::pr_err;

use super::Tid;
use super::disk::Be;
use super::journal::{Journal, State};
use super::transaction::{JournalHead, Transaction};

/// Blocks that are written home in one go.
const BATCH: usize = 128;

/// How a block of a checkpoint list stands.
enum Home {
    /// The log is not needed for it any more.
    Done,
    /// It has to be written.
    Dirty,
    /// It was changed since, and may be written when that transaction is committed.
    Busy(Tid),
}

impl Journal {
    /// The oldest transaction that the log has to keep, and where it begins.
    #[doc(alias = "jbd2_journal_get_log_tail")]
    pub(super) fn log_tail(&self, state: &State) -> (Tid, u32) {
        if let Some(logged) = state.checkpoints.first().or(state.committing.as_ref()) {
            return (logged.trans.tid, logged.start);
        }
        let tid = state.running.as_ref().map_or(state.next_tid, |running| running.trans.tid);
        (tid, state.head)
    }

    /// Blocks of the log from the tail to `block`.
    pub(super) fn freed_by(&self, state: &State, block: u32) -> u32 {
        if block >= state.tail { block - state.tail } else { self.last - self.first - (state.tail - block) }
    }

    /// Moves the tail to `tail`: all that was needed before it is home, and flushed. With `j_checkpoint_mutex` held. EIO, and the
    /// journal is aborted. Sleeps.
    #[doc(alias = "jbd2_update_log_tail")]
    pub(super) fn update_log_tail(&self, (tid, block): (Tid, u32)) -> Result {
        // Durable before the blocks are used again: or a crash would replay from where there is something else now.
        let written = self.write_sb(ReqOpf::FUA, |sb| {
            sb.set_s_sequence(Be(tid));
            sb.set_s_start(Be(block));
        });
        if let Err(error) = written {
            self.abort(error);
            return Err(error);
        }
        let mut state = self.state.lock();
        state.free += self.freed_by(&state, block);
        state.tail = block;
        Ok(())
    }

    /// Moves the tail as far as it goes. With `j_checkpoint_mutex` held. Whether it moved.
    #[doc(alias = "jbd2_cleanup_journal_tail")]
    fn cleanup_journal_tail(&self) -> Result<bool> {
        let tail = {
            let state = self.state.lock();
            if state.aborted.is_some() {
                return Err(EIO);
            }
            let tail = self.log_tail(&state);
            if state.flushed || tail.1 == state.tail {
                return Ok(false);
            }
            tail
        };
        // What was written home may be in the device's cache.
        if self.barrier()
            && let Err(error) = blkdev_issue_flush(&self.bdev)
        {
            self.abort(error);
            return Err(error);
        }
        self.update_log_tail(tail).map(|()| true)
    }

    /// How a block stands that transaction `tid` has left to be written home. `guard` is the block's: with it there is no
    /// write under way.
    fn check_home(&self, jh: &Arc<JournalHead>, tid: Tid, guard: Option<BufferWrite<'_>>) -> Home {
        {
            let mut state = jh.state.lock();
            if state.cp != Some(tid) {
                return Home::Done;
            }
            if let Some(member) = state.tx.or(state.ctx) {
                return Home::Busy(member.tid);
            }
            if guard.is_none() || jh.bh.is_dirty() {
                return Home::Dirty;
            }
            state.cp = None;
        }
        drop(guard);
        self.heads.put_if_idle(jh);
        Home::Done
    }

    /// Lets go of transactions all of whose blocks somebody has written home, oldest first. Writes nothing, waits for nothing.
    #[doc(alias = "__jbd2_journal_clean_checkpoint_list")]
    pub(super) fn clean_checkpoint_list(&self) {
        let Some(_checkpoint) = self.j_checkpoint_mutex.try_lock() else { return };
        loop {
            let Some(trans) = self.state.lock().checkpoints.first().map(|logged| logged.trans.clone()) else { return };
            loop {
                let Some(jh) = trans.lists.lock().buffers.last().cloned() else { break };
                match self.check_home(&jh, trans.tid, jh.bh.try_write()) {
                    Home::Done => drop(trans.lists.lock().buffers.pop()),
                    _ => return,
                }
            }
            self.drop_transaction(&trans);
        }
    }

    /// Nothing is left of a committed transaction.
    #[doc(alias = "__jbd2_journal_drop_transaction")]
    fn drop_transaction(&self, trans: &Arc<Transaction>) {
        let mut state = self.state.lock();
        let at = state.checkpoints.iter().position(|logged| Arc::ptr_eq(&logged.trans, trans));
        let gone = at.map(|at| state.checkpoints.remove(at));
        drop(state);
        drop(gone);
    }

    /// Writes home what `trans` has left. With `j_checkpoint_mutex` held. If that is not all, which transaction has to be
    /// committed first. EIO, and the journal is aborted; ENOMEM. Sleeps.
    fn checkpoint_transaction(&self, trans: &Arc<Transaction>) -> Result<Option<Tid>> {
        let mut buffers = core::mem::take(&mut trans.lists.lock().buffers);
        buffers.sort_unstable_by_key(|jh| jh.bh.block());
        let mut result = Ok(());
        for jhs in buffers.chunks(BATCH) {
            result = self.write_home(trans.tid, jhs);
            if result.is_err() {
                break;
            }
        }
        let (mut busy, mut failed) = (None, false);
        buffers.retain(|jh| {
            if result.is_err() {
                return true;
            }
            match self.check_home(jh, trans.tid, Some(jh.bh.write())) {
                Home::Done => false,
                Home::Dirty => {
                    failed = true;
                    true
                }
                Home::Busy(tid) => {
                    busy = Some(tid);
                    true
                }
            }
        });
        trans.lists.lock().buffers = buffers;
        if failed && busy.is_none() {
            // Somebody has failed to write it, or has made it dirty past the journal: the next round tries again.
            busy = Some(trans.tid);
        }
        result?;
        if busy.is_none() {
            self.drop_transaction(trans);
        }
        Ok(busy)
    }

    fn write_home(&self, tid: Tid, jhs: &[Arc<JournalHead>]) -> Result {
        let mut list = KVec::<BufferHead>::with_capacity(jhs.len(), GFP_NOFS | GFP_NOFAIL)?;
        for jh in jhs {
            let state = jh.state.lock();
            if state.cp == Some(tid) && state.tx.is_none() && state.ctx.is_none() {
                list.push(jh.bh.clone(), kernel_shim::alloc::GFP_ATOMIC)?;
            }
        }
        write_dirty_buffers(&self.bdev, &list, ReqOpf::META | ReqOpf::SYNC).inspect_err(|&error| self.abort(error))
    }

    /// Makes room in the log for a transaction, as large as it may become. Called with no handle open. EROFS if the journal is
    /// aborted; ENOMEM. Sleeps.
    #[doc(alias = "__jbd2_log_wait_for_space")]
    pub(super) fn log_wait_for_space(&self) -> Result {
        loop {
            let checkpoint = self.j_checkpoint_mutex.lock();
            if self.has_space()? {
                return Ok(());
            }
            // More than is needed now, so that it is not this way again at once.
            let busy = self.make_space(|state| {
                let left = self.space_left(state) + self.freed_by(state, self.log_tail(state).1);
                left >= (self.last - self.first) / 2
            })?;
            // Asked while nobody else can be between writing home and moving the tail.
            let hopeless = {
                let state = self.state.lock();
                let empty = state.running.is_none() && state.committing.is_none() && state.checkpoints.is_empty();
                empty && self.space_left(&state) < self.reserve
            };
            if hopeless {
                pr_err!("JBD2: {}: no space in an empty log", self.bdev.name());
                self.abort(EIO);
            }
            // Whoever commits may want it.
            drop(checkpoint);
            if self.has_space()? {
                return Ok(());
            }
            let newest = {
                let state = self.state.lock();
                state.committing.as_ref().map(|logged| logged.trans.tid)
            };
            // If there is none any more, the one that was has been committed meanwhile: the next round writes it home.
            if let Some(tid) = busy.or(newest).or(self.newest_tid()) {
                self.complete_transaction(tid).map_err(|_| EROFS)?;
            }
        }
    }

    fn has_space(&self) -> Result<bool> {
        let state = self.state.lock();
        if state.aborted.is_some() { Err(EROFS) } else { Ok(self.space_left(&state) >= self.reserve) }
    }

    /// Writes transactions home, oldest first, until `enough`, and moves the tail. With `j_checkpoint_mutex` held. If there are
    /// blocks that cannot go home yet: the transaction that has to be committed first.
    #[doc(alias = "jbd2_log_do_checkpoint")]
    fn make_space(&self, enough: impl Fn(&State) -> bool) -> Result<Option<Tid>> {
        let mut busy = None;
        while busy.is_none() {
            let oldest = {
                let state = self.state.lock();
                if enough(&state) { None } else { state.checkpoints.first().map(|logged| logged.trans.clone()) }
            };
            let Some(trans) = oldest else { break };
            busy = self.checkpoint_transaction(&trans)?;
        }
        self.cleanup_journal_tail()?;
        Ok(busy)
    }

    /// Writes everything home that is committed. EIO; ENOMEM. Sleeps.
    pub(super) fn checkpoint_all(&self) -> Result {
        loop {
            let busy = {
                let _checkpoint = self.j_checkpoint_mutex.lock();
                self.make_space(|_| false)?
            };
            match busy {
                Some(tid) => self.complete_transaction(tid)?,
                None => return Ok(()),
            }
        }
    }
}
