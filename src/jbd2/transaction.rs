// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2/transaction.c`: handles, and which transaction a block belongs to.
//!
//! # Where a block stands
//!
//! A [`JournalHead`] pins its buffer in the cache, and says with its lock held
//!
//! * `tx`: it is part of the running transaction, or of the one that is being closed;
//! * `ctx`: the transaction that is being committed has a copy of it;
//! * `cp`: that committed transaction's log blocks are its newest contents on disk, until it has been written home.
//!
//! With `tx` the buffer is marked ([`BufferHead::set_jbd`]): write-back leaves it alone. With `cp` alone it is dirty, and anybody may
//! write it back. A head that has none of the three goes away.

use kernel_shim::alloc::{Arc, GFP_ATOMIC, GFP_KERNEL, GFP_NOFAIL, GFP_NOFS, KVec, make_room};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::sync::SpinLock;
use kernel_shim::sync::lockdep::HeldMap;

use super::journal::{Journal, Running};
use super::revoke::RevokeSet;
use super::{Freed, JBD2_COMMIT, JBD2_HANDLE, Tid};
use crate::IRef;

/// A block's part in a transaction.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) tid: Tid,
    /// It was changed, and goes into the log.
    pub(super) dirty: bool,
    /// It was freed: it does not go into the log, nor home.
    pub(super) forgotten: bool,
    /// Finishes its contents before they are copied to the log.
    pub(super) trigger: Option<Trigger>,
}

/// What the commit calls with a block's contents and `seed`, once, when no handle may change them any more: a checksum in the block need
/// not be computed at each change.
///
/// PORT: C has triggers, and uses them for quota files alone.
#[doc(alias = "jbd2_buffer_trigger_type")]
#[derive(Clone, Copy, Debug)]
pub struct Trigger {
    /// Must not sleep.
    #[doc(alias = "t_frozen")]
    pub frozen: fn(&mut [u8], u32),
    /// For `frozen`.
    pub seed: u32,
}

/// C's `struct journal_head`.
pub(super) struct JournalHead {
    pub(super) bh: BufferHead,
    pub(super) state: SpinLock<JhState>,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct JhState {
    pub(super) tx: Option<Member>,
    pub(super) ctx: Option<Member>,
    pub(super) cp: Option<Tid>,
    /// It was dirty in the cache when it came to `tx`.
    pub(super) was_dirty: bool,
    /// It is not in the table any more.
    gone: bool,
}

impl JhState {
    fn idle(&self) -> bool {
        self.tx.is_none() && self.ctx.is_none() && self.cp.is_none()
    }
}

/// A transaction: C's `transaction_t`. What of it changes with each handle is in the journal's state.
pub(super) struct Transaction {
    pub(super) tid: Tid,
    pub(super) lists: SpinLock<TransactionLists>,
}

/// What a transaction has collected.
#[derive(Default)]
pub(super) struct TransactionLists {
    /// Its blocks. After the commit: those that may have to be written home; [`JhState::cp`] says whether they still do.
    pub(super) buffers: KVec<Arc<JournalHead>>,
    pub(super) revoked: RevokeSet,
    pub(super) freed: KVec<Freed>,
    /// Inodes whose data have to be on disk first, by number.
    pub(super) ordered: KVec<IRef>,
}

impl Transaction {
    pub(super) fn new(tid: Tid) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self { tid, lists: SpinLock::named("t_lists", TransactionLists::default()) },
            GFP_NOFS | GFP_NOFAIL,
        )?)
    }
}

/// The heads by block number: each bucket under its own spin lock, below which is that of a head.
pub(super) struct HeadTable {
    /// A power of two of them.
    buckets: KVec<SpinLock<KVec<Arc<JournalHead>>>>,
}

impl HeadTable {
    /// A table for about `heads` blocks. ENOMEM.
    pub(super) fn new(heads: usize) -> Result<Self> {
        let count = (heads / 4).clamp(64, 1 << 14).next_power_of_two();
        let mut buckets = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            buckets.push(SpinLock::named("jh_hash", KVec::new()), GFP_KERNEL)?;
        }
        Ok(Self { buckets })
    }

    fn bucket(&self, block: u64) -> Option<&SpinLock<KVec<Arc<JournalHead>>>> {
        let hash = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        self.buckets.get(hash as usize & self.buckets.len().saturating_sub(1))
    }

    /// The head of a block, if there is one.
    pub(super) fn find(&self, block: u64) -> Option<Arc<JournalHead>> {
        self.bucket(block)?.lock().iter().find(|jh| jh.bh.block() == block).cloned()
    }

    /// The head of `bh`, new or old. Whoever asks has a handle open, and maybe half of a change done: it waits for memory. Sleeps.
    #[doc(alias = "jbd2_journal_add_journal_head")]
    fn get(&self, bh: &BufferHead) -> Result<Arc<JournalHead>> {
        if let Some(jh) = self.find(bh.block()) {
            return Ok(jh);
        }
        let new = JournalHead { bh: bh.clone(), state: SpinLock::named("jh_state", JhState::default()) };
        let new = Arc::new(new, GFP_NOFS | GFP_NOFAIL)?;
        let bucket = self.bucket(bh.block()).ok_or(ENOMEM)?;
        loop {
            let mut heads = bucket.lock();
            if let Some(jh) = heads.iter().find(|jh| jh.bh.block() == bh.block()) {
                return Ok(jh.clone());
            }
            if heads.push(new.clone(), GFP_ATOMIC).is_ok() {
                return Ok(new);
            }
            drop(heads);
            make_room(bucket, |heads| heads);
        }
    }

    /// Takes a head out if nothing is left of it.
    #[doc(alias = "jbd2_journal_put_journal_head")]
    pub(super) fn put_if_idle(&self, jh: &Arc<JournalHead>) {
        let Some(bucket) = self.bucket(jh.bh.block()) else { return };
        let taken = {
            let mut bucket = bucket.lock();
            let mut state = jh.state.lock();
            if state.gone || !state.idle() {
                return;
            }
            state.gone = true;
            bucket.iter().position(|other| Arc::ptr_eq(other, jh)).map(|at| bucket.swap_remove(at))
        };
        // Its memory is freed with the locks released.
        drop(taken);
    }

    /// Forgets all heads: what belongs to a transaction is never written. For the end of an aborted journal.
    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            while let Some(jh) = { bucket.lock().pop() } {
                let mut state = jh.state.lock();
                if jh.bh.is_jbd() {
                    jh.bh.clear_jbd(false);
                }
                *state = JhState { gone: true, ..JhState::default() };
            }
        }
    }
}

/// C's `handle_t`. Dropping it stops it.
pub struct Handle {
    journal: Arc<Journal>,
    trans: Arc<Transaction>,
    /// Blocks that may still be dirtied.
    credits: u32,
    /// Credits that were spent for revoke records, of which many fit into a block.
    revokes: u32,
    sync: bool,
    open: bool,
    /// As long as it is part of a transaction.
    held: Option<HeldMap>,
}

impl Handle {
    /// See [`crate::ext4_jbd2::ext4_journal_start`].
    #[doc(alias = "jbd2_journal_start")]
    pub fn start(journal: &Arc<Journal>, credits: u32) -> Result<Self> {
        let trans = journal.start_this_handle(credits)?;
        let held = Some(JBD2_HANDLE.hold());
        Ok(Self { journal: journal.clone(), trans, credits, revokes: 0, sync: false, open: true, held })
    }

    /// The transaction.
    #[inline]
    pub fn tid(&self) -> Tid {
        self.trans.tid
    }

    /// Blocks that may still be dirtied.
    #[inline]
    pub fn credits(&self) -> u32 {
        self.credits
    }

    fn check(&self) -> Result {
        if self.open && self.journal.aborted().is_none() { Ok(()) } else { Err(EROFS) }
    }

    /// See [`crate::ext4_jbd2::Handle::get_write_access`].
    pub fn get_write_access(&mut self, bh: &BufferHead) -> Result {
        self.check()?;
        self.join(bh).map(drop)
    }

    /// See [`crate::ext4_jbd2::Handle::get_create_access`].
    pub fn get_create_access(&mut self, bh: &BufferHead) -> Result {
        self.check()?;
        self.join(bh).map(drop)
    }

    /// Makes the block part of the transaction. Nobody waits: the transaction before has a copy of its own, and who writes the
    /// block home holds its lock, for which whoever changes it waits.
    #[doc(alias = "do_get_write_access")]
    fn join(&self, bh: &BufferHead) -> Result<Arc<JournalHead>> {
        let tid = self.trans.tid;
        loop {
            let jh = self.journal.heads.get(bh)?;
            let mut state = jh.state.lock();
            if state.gone {
                continue;
            }
            match &mut state.tx {
                Some(member) if !member.forgotten => {}
                Some(member) => {
                    // Freed in this transaction, and metadata again: what the log has of it counts from here on.
                    member.forgotten = false;
                    self.trans.lists.lock().revoked.remove(bh.block());
                }
                None => {
                    let mut lists = self.trans.lists.lock();
                    if lists.buffers.push(jh.clone(), GFP_ATOMIC).is_err() {
                        drop(lists);
                        drop(state);
                        make_room(&self.trans.lists, |lists| &mut lists.buffers);
                        continue;
                    }
                    lists.revoked.remove(bh.block());
                    drop(lists);
                    state.tx = Some(Member { tid, dirty: false, forgotten: false, trigger: None });
                    // In one go with the line before, so that another handle that finds it done may change the block at once.
                    state.was_dirty |= jh.bh.set_jbd();
                }
            }
            drop(state);
            return Ok(jh);
        }
    }

    /// See [`crate::ext4_jbd2::Handle::dirty_metadata`].
    pub fn dirty_metadata(&mut self, bh: &BufferHead) -> Result {
        self.dirty_metadata_triggered(bh, None)
    }

    /// See [`crate::ext4_jbd2::Handle::dirty_metadata_triggered`]. What was said last counts.
    #[doc(alias = "jbd2_journal_dirty_metadata")]
    pub fn dirty_metadata_triggered(&mut self, bh: &BufferHead, trigger: Option<Trigger>) -> Result {
        self.check()?;
        let jh = match self.journal.heads.find(bh.block()) {
            Some(jh) => jh,
            None => self.join(bh)?,
        };
        let fresh = match &mut jh.state.lock().tx {
            Some(member) => {
                member.trigger = trigger;
                !core::mem::replace(&mut member.dirty, true)
            }
            None => {
                kernel_shim::warn_on_once!(true, "block {} dirtied without access", bh.block());
                return Err(EINVAL);
            }
        };
        if fresh && !self.spend() {
            kernel_shim::warn_on_once!(true, "more blocks dirtied than credits");
            // The change is made, and there is some room to spare.
            self.journal.with_running(self.tid(), |running| running.outstanding += 1);
        }
        Ok(())
    }

    fn spend(&mut self) -> bool {
        match self.credits.checked_sub(1) {
            Some(left) => {
                self.credits = left;
                true
            }
            None => false,
        }
    }

    /// See [`crate::ext4_jbd2::Handle::forget`].
    #[doc(alias = "jbd2_journal_forget")]
    pub fn revoke(&mut self, block: u64) -> Result {
        self.check()?;
        let added = loop {
            let added = self.trans.lists.lock().revoked.insert(block);
            match added {
                Ok(added) => break added,
                Err(_) => make_room(&self.trans.lists, |lists| lists.revoked.list()),
            }
        };
        if added && self.spend() {
            self.revokes += 1;
        }
        while let Some(jh) = self.journal.heads.find(block) {
            let mut state = jh.state.lock();
            if state.gone {
                break;
            }
            match &mut state.tx {
                Some(member) => {
                    if member.dirty {
                        self.credits += 1;
                    }
                    (member.dirty, member.forgotten) = (false, true);
                }
                // Until this transaction is committed a crash has to find the contents before, in the log or at home; so the block
                // stays where it stands, and goes away with the commit.
                None => {
                    if self.trans.lists.lock().buffers.push(jh.clone(), GFP_ATOMIC).is_err() {
                        drop(state);
                        make_room(&self.trans.lists, |lists| &mut lists.buffers);
                        continue;
                    }
                    state.tx = Some(Member { tid: self.trans.tid, dirty: false, forgotten: true, trigger: None });
                    state.was_dirty |= jh.bh.set_jbd();
                }
            }
            break;
        }
        Ok(())
    }

    /// See [`crate::ext4_jbd2::Handle::extend`].
    #[doc(alias = "jbd2_journal_extend")]
    pub fn extend(&mut self, credits: u32) -> Result<bool> {
        self.check()?;
        let max = self.journal.max_transaction;
        let extended = self.journal.with_running(self.tid(), |running| {
            let wanted = running.outstanding.saturating_add(credits);
            let fits = !running.locked && wanted <= max;
            if fits {
                running.outstanding = wanted;
            }
            fits
        });
        if extended == Some(true) {
            self.credits += credits;
        }
        Ok(extended == Some(true))
    }

    /// See [`crate::ext4_jbd2::Handle::restart`].
    #[doc(alias = "jbd2_journal_restart")]
    pub fn restart(&mut self, credits: u32) -> Result {
        self.check()?;
        let tid = self.tid();
        self.leave();
        self.journal.log_start_commit_if_full(tid, credits);
        self.trans = self.journal.start_this_handle(credits)?;
        (self.credits, self.open, self.held) = (credits, true, Some(JBD2_HANDLE.hold()));
        Ok(())
    }

    /// See [`crate::ext4_jbd2::Handle::add_freed`].
    pub fn add_freed(&mut self, freed: Freed) -> Result {
        // The blocks are free on the disk when this is committed: forgotten here, they would be in use in memory for ever.
        while self.trans.lists.lock().freed.push(freed, GFP_ATOMIC).is_err() {
            make_room(&self.trans.lists, |lists| &mut lists.freed);
        }
        Ok(())
    }

    /// See [`crate::ext4_jbd2::Handle::add_ordered`].
    #[doc(alias = "jbd2_journal_inode_ranged_write")]
    pub fn add_ordered(&mut self, inode: &IRef) -> Result {
        loop {
            let mut lists = self.trans.lists.lock();
            let Err(at) = lists.ordered.binary_search_by_key(&inode.i_ino(), |i| i.i_ino()) else { return Ok(()) };
            if lists.ordered.reserve(1, GFP_ATOMIC).is_ok() {
                return Ok(lists.ordered.insert(at, inode.clone(), GFP_ATOMIC)?);
            }
            drop(lists);
            make_room(&self.trans.lists, |lists| &mut lists.ordered);
        }
    }

    /// Whether the transaction before this one is being committed.
    pub fn commit_under_way(&self) -> bool {
        self.journal.state.lock().committing.is_some()
    }

    /// See [`crate::ext4_jbd2::Handle::sync`].
    pub fn set_sync(&mut self) {
        self.sync = true;
    }

    /// Gives back what it did not use.
    fn leave(&mut self) {
        if !core::mem::take(&mut self.open) {
            return;
        }
        let unused = self.credits + core::mem::take(&mut self.revokes);
        let records = self.journal.revokes_per_block;
        let blocks = |revoked: usize| revoked.div_ceil(records) as u32;
        let revoked = blocks(self.trans.lists.lock().revoked.blocks().len());
        self.credits = 0;
        self.held = None;
        let wake = self.journal.with_running(self.tid(), |running| {
            // What the records of all handles take so far is counted once.
            let more = revoked.saturating_sub(running.revoke_blocks);
            running.revoke_blocks += more;
            running.outstanding = running.outstanding.saturating_sub(unused).saturating_add(more);
            running.updates = running.updates.saturating_sub(1);
            running.updates == 0
        });
        if wake == Some(true) {
            self.journal.j_wait_updates.wake_up_all();
        }
    }

    /// See [`crate::ext4_jbd2::Handle::stop`].
    #[doc(alias = "jbd2_journal_stop")]
    pub fn stop(mut self) -> Result {
        self.leave();
        if self.sync {
            self.journal.complete_transaction(self.tid())?;
        }
        if self.journal.aborted().is_some() { Err(EIO) } else { Ok(()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What came of looking for room in the running transaction.
enum Room {
    Got(Arc<Transaction>),
    /// There is none running, and here is memory for one.
    NeedTransaction,
    /// Wait until that one is not running any more.
    WaitLocked(Tid),
    WaitBarrier,
    WaitSpace,
}

impl Journal {
    /// Joins the running transaction with `credits`, or starts one. Sleeps.
    #[doc(alias = "add_transaction_credits")]
    fn start_this_handle(&self, credits: u32) -> Result<Arc<Transaction>> {
        if credits > self.max_transaction {
            kernel_shim::pr_warn!("JBD2: a handle wants {credits} credits, and there are {}", self.max_transaction);
            return Err(ENOSPC);
        }
        let mut new = None;
        JBD2_COMMIT.might_wait();
        loop {
            match self.look_for_room(credits, &mut new)? {
                Room::Got(trans) => return Ok(trans),
                Room::NeedTransaction => new = Some(Transaction::new(0)?),
                Room::WaitLocked(tid) => {
                    self.log_start_commit(tid);
                    self.j_wait_transaction_locked.wait_event(|| {
                        let state = self.state.lock();
                        state.aborted.is_some() || state.running.as_ref().is_none_or(|running| running.trans.tid != tid)
                    });
                }
                Room::WaitBarrier => self.j_wait_transaction_locked.wait_event(|| {
                    let state = self.state.lock();
                    state.aborted.is_some() || state.barrier == 0
                }),
                Room::WaitSpace => self.log_wait_for_space()?,
            }
        }
    }

    fn look_for_room(&self, credits: u32, new: &mut Option<Arc<Transaction>>) -> Result<Room> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.aborted.is_some() || !state.started {
            return Err(EROFS);
        }
        if state.barrier > 0 {
            return Ok(Room::WaitBarrier);
        }
        if let Some(running) = &state.running {
            let tid = running.trans.tid;
            if running.locked || running.outstanding.saturating_add(credits) > self.max_transaction {
                return Ok(Room::WaitLocked(tid));
            }
        }
        // Room for all that one transaction can be: so it can always be committed, however it grows.
        if self.space_left(state) < self.reserve {
            return Ok(Room::WaitSpace);
        }
        let mut fresh = false;
        if state.running.is_none() {
            let Some(mut trans) = new.take() else { return Ok(Room::NeedTransaction) };
            state.checkpoints.reserve(2, GFP_ATOMIC)?;
            if let Some(trans) = Arc::get_mut(&mut trans) {
                trans.tid = state.next_tid;
            }
            state.next_tid = state.next_tid.wrapping_add(1);
            state.running = Some(Running::new(trans));
            fresh = true;
        }
        let Some(running) = &mut state.running else { return Err(EIO) };
        running.outstanding += credits;
        running.updates += 1;
        let trans = running.trans.clone();
        drop(guard);
        if fresh {
            // The thread looks at the clock from now on.
            self.j_wait_commit.wake_up_all();
        }
        Ok(Room::Got(trans))
    }
}
