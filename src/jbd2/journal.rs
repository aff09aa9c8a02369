// SPDX-License-Identifier: GPL-2.0-only
//! `fs/jbd2/journal.c`: the journal itself, its super block, and its end.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kernel_shim::alloc::{Arc, GFP_KERNEL, KVec};
use kernel_shim::block::{Bdev, ReqOpf, SECTOR_SHIFT, bdev_rw, bdev_write_pieces};
use kernel_shim::error::{Error, Result, code::*};
use kernel_shim::fs::buffer::IoBuf;
use kernel_shim::sched::{JoinHandle, Point, sched_wait};
use kernel_shim::sync::{Mutex, SpinLock, WaitQueue};
use kernel_shim::{pr_err, pr_notice};

use super::check::{CheckedSb, check_map};
use super::disk::*;
use super::transaction::{HeadTable, Transaction};
use super::{JBD2_COMMIT, JBD2_HANDLE, JournalOptions, LogExtent, Tid};
use crate::SuperBlock;

mod kjournald;

/// Blocks that are never given to a transaction.
const RESERVED_BLOCKS: u32 = 32;

/// The transaction that handles join.
pub(super) struct Running {
    pub(super) trans: Arc<Transaction>,
    /// It is being closed: no more handles.
    pub(super) locked: bool,
    /// Open handles.
    pub(super) updates: u32,
    /// Blocks that it has, and that its handles may add.
    pub(super) outstanding: u32,
    /// How many of these are for revoke records.
    pub(super) revoke_blocks: u32,
    /// When it is committed without being asked for, on the clock of `now_ns`; 0 as long as nobody has looked.
    expires_ns: u64,
}

impl Running {
    pub(super) fn new(trans: Arc<Transaction>) -> Self {
        Self { trans, locked: false, updates: 0, outstanding: 0, revoke_blocks: 0, expires_ns: 0 }
    }
}

/// A transaction that has a place in the log.
pub(super) struct Logged {
    pub(super) trans: Arc<Transaction>,
    /// Its first block, counted in the log.
    pub(super) start: u32,
}

/// What the spin lock protects.
pub(super) struct State {
    pub(super) aborted: Option<Error>,
    /// The error is still to be written to the journal's super block.
    record_errno: bool,
    pub(super) started: bool,
    stop: bool,
    /// How many keep handles from starting.
    pub(super) barrier: u32,
    pub(super) running: Option<Running>,
    pub(super) committing: Option<Logged>,
    /// Its commit block, and with it the flush, is under way or done.
    pub(super) barrier_sent: bool,
    /// Those that are committed and may have blocks that are not home, oldest first. There is room for two more.
    pub(super) checkpoints: KVec<Logged>,
    /// Of the next transaction.
    pub(super) next_tid: Tid,
    /// The last that was committed.
    pub(super) commit_sequence: Tid,
    /// The last that somebody has asked for.
    commit_request: Tid,
    /// Where the next transaction goes.
    pub(super) head: u32,
    /// Where the oldest that is needed begins, as the super block has it, unless `flushed`.
    pub(super) tail: u32,
    /// Free blocks of the log.
    pub(super) free: u32,
    /// The super block says that the log is empty.
    pub(super) flushed: bool,
    /// Transactions committed.
    pub(super) nr_commits: u64,
}

/// A journal: C's `journal_t`.
pub struct Journal {
    pub(super) bdev: Bdev,
    pub(super) options: JournalOptions,
    /// [`JournalOptions::barrier`] and [`JournalOptions::commit_interval_ms`] as they are now.
    barrier: AtomicBool,
    commit_interval_ms: AtomicU64,
    extents: KVec<LogExtent>,
    pub(super) blocksize: usize,
    /// First block of the log proper, and the one after its last.
    pub(super) first: u32,
    pub(super) last: u32,
    /// The one after the last for fast commits.
    pub(super) fc_last: u32,
    pub(super) format: SpinLock<Format>,
    pub(super) revokes_per_block: usize,
    /// Credits that one transaction can have.
    pub(super) max_transaction: u32,
    /// Blocks of the log that one transaction can take at most.
    pub(super) reserve: u32,
    pub(super) state: SpinLock<State>,
    /// The same as `state.aborted`, without the lock.
    aborted: AtomicBool,
    /// The journal's block 0. The innermost of the mutexes.
    sb_buf: Mutex<IoBuf>,
    /// Held by whoever writes blocks home or moves the tail.
    pub(super) j_checkpoint_mutex: Mutex<()>,
    /// Memory for a commit that gets none.
    pub(super) spare: Mutex<IoBuf>,
    pub(super) heads: HeadTable,
    /// The running transaction is another, the barrier is gone, or the journal is aborted.
    pub(super) j_wait_transaction_locked: WaitQueue,
    /// A handle was the last of its transaction.
    pub(super) j_wait_updates: WaitQueue,
    /// There is something for the thread.
    pub(super) j_wait_commit: WaitQueue,
    /// A transaction was committed, or the journal is aborted.
    pub(super) j_wait_done_commit: WaitQueue,
    thread: Mutex<Option<JoinHandle>>,
    /// The mount, from [`Journal::start_thread`] to [`Journal::destroy`]: a circle of references until then.
    pub(super) sb: SpinLock<Option<Arc<SuperBlock>>>,
}

impl Journal {
    /// Reads the journal's super block through its map, and checks it: C's `jbd2_journal_init_inode()` and
    /// `journal_load_superblock()`. Nothing is written. Sleeps.
    ///
    /// `EINVAL` for what is no journal or an unknown one, `EFSBADCRC`, `EFSCORRUPTED`, each with a message; `EIO`, `ENOMEM`.
    pub fn load(bdev: &Bdev, blocksize: u32, extents: &[LogExtent], options: JournalOptions) -> Result<Arc<Journal>> {
        let refuse = |why: &str, errno: Error| {
            pr_err!("JBD2: {}: journal: {why}", bdev.name());
            errno
        };
        let (map, blocks) = check_map(bdev, blocksize, extents).map_err(|errno| refuse("no map of it", errno))?;
        let mut buf = IoBuf::new(blocksize as usize, GFP_KERNEL)?;
        let sector = map.first().map_or(0, |extent| extent.pblk) * (u64::from(blocksize) >> SECTOR_SHIFT);
        bdev_rw(bdev, ReqOpf::REQ_OP_READ | ReqOpf::META | ReqOpf::SYNC, sector, buf.bytes_mut())?;
        let checked = CheckedSb::check(buf.bytes(), blocksize, blocks).map_err(|(why, errno)| refuse(why, errno))?;
        let CheckedSb { format, first, last, fc_last, .. } = checked;
        let len = last - first;
        let whole = len / 4;
        // Descriptor blocks, with the longest tags there are; one of revoke records, and the commit block.
        let overhead = whole / (blocksize / 16).min(GROUP_TAGS as u32).saturating_sub(2).max(1) + 3;
        let state = State {
            aborted: None,
            record_errno: false,
            started: false,
            stop: false,
            barrier: 0,
            running: None,
            committing: None,
            barrier_sent: false,
            checkpoints: KVec::with_capacity(16, GFP_KERNEL)?,
            next_tid: checked.sequence.wrapping_add(1),
            commit_sequence: checked.sequence,
            commit_request: checked.sequence,
            head: first,
            tail: first,
            free: len,
            flushed: checked.start == 0,
            nr_commits: 0,
        };
        let spare = IoBuf::new((1 + GROUP_TAGS.min(blocksize as usize / 8)) * blocksize as usize, GFP_KERNEL)?;
        let journal = Journal {
            bdev: bdev.clone(),
            barrier: AtomicBool::new(options.barrier),
            commit_interval_ms: AtomicU64::new(options.commit_interval_ms),
            options,
            extents: map,
            blocksize: blocksize as usize,
            first,
            last,
            fc_last,
            revokes_per_block: (blocksize as usize - 20) / 8,
            format: SpinLock::named("j_format", format),
            max_transaction: whole.saturating_sub(overhead),
            reserve: whole,
            state: SpinLock::named("j_state_lock", state),
            aborted: AtomicBool::new(false),
            sb_buf: Mutex::named("j_sb_buf", buf),
            j_checkpoint_mutex: Mutex::named("j_checkpoint_mutex", ()),
            spare: Mutex::named("j_spare", spare),
            heads: HeadTable::new(len as usize)?,
            j_wait_transaction_locked: WaitQueue::new(),
            j_wait_updates: WaitQueue::new(),
            j_wait_commit: WaitQueue::new(),
            j_wait_done_commit: WaitQueue::new(),
            thread: Mutex::named("j_thread", None),
            sb: SpinLock::named("j_sb", None),
        };
        Ok(Arc::new(journal, GFP_KERNEL)?)
    }

    /// Whether the device's cache is flushed where order matters.
    pub(super) fn barrier(&self) -> bool {
        self.barrier.load(Ordering::Relaxed)
    }

    /// A remount: the barrier and the commit interval, from the next transaction on.
    pub fn set_options(&self, options: &JournalOptions) {
        self.barrier.store(options.barrier, Ordering::Relaxed);
        self.commit_interval_ms.store(options.commit_interval_ms, Ordering::Relaxed);
    }

    // ---- the super block

    /// A field of the super block as it is in memory.
    pub(super) fn read_sb<T>(&self, read: impl FnOnce(JournalSbView<&[u8; 1024]>) -> T) -> Result<T> {
        JournalSbView::at(self.sb_buf.lock().bytes(), 0).map(read).ok_or(EIO)
    }

    /// Changes the super block and writes it. EIO. Sleeps.
    #[doc(alias = "jbd2_write_superblock")]
    pub(super) fn write_sb(&self, flags: ReqOpf, change: impl FnOnce(&mut JournalSbView<&mut [u8; 1024]>)) -> Result {
        let mut buf = self.sb_buf.lock();
        let mut sb = JournalSbView::at_mut(buf.bytes_mut(), 0).ok_or(EIO)?;
        change(&mut sb);
        let incompat = Incompat::from_bits_retain(sb.s_feature_incompat().0);
        if incompat.intersects(Incompat::CSUM_V2 | Incompat::CSUM_V3) {
            let csum = superblock_csum(buf.bytes());
            JournalSbView::at_mut(buf.bytes_mut(), 0).ok_or(EIO)?.set_s_checksum(Be(csum));
        }
        let mut flags = flags | ReqOpf::META | ReqOpf::SYNC;
        if !self.barrier() {
            flags.remove(ReqOpf::FUA);
        }
        let sector = self.bmap(0)? * self.sectors_per_block();
        bdev_write_pieces(&self.bdev, ReqOpf::REQ_OP_WRITE | flags, core::iter::once((sector, buf.bytes())))
    }

    /// Whether there are transactions in the log that have to be replayed.
    pub fn needs_recovery(&self) -> bool {
        !self.state.lock().flushed
    }

    /// The error that an earlier mount left in the journal, if any; the file system has to be checked then.
    #[doc(alias = "jbd2_journal_errno")]
    pub fn errno(&self) -> Option<Error> {
        match self.read_sb(|sb| sb.s_errno().0 as i32) {
            Ok(0) => None,
            Ok(errno) => Some(Error::from_errno(errno)),
            Err(error) => Some(error),
        }
    }

    /// Takes that error out of the journal. Sleeps.
    #[doc(alias = "jbd2_journal_clear_err")]
    pub fn clear_err(&self) -> Result {
        self.write_sb(ReqOpf::FUA, |sb| sb.set_s_errno(Be(0)))
    }

    /// Sets the features that the log has from now on, while it is empty.
    #[doc(alias = "set_journal_csum_feature_set")]
    fn set_features(&self) -> Result {
        let mut format = *self.format.lock();
        let before = (format.compat, format.incompat);
        format.compat.remove(Compat::CHECKSUM);
        format.incompat.remove(Incompat::ASYNC_COMMIT | Incompat::CSUM_V2);
        format.incompat.set(Incompat::CSUM_V3, self.options.metadata_csum);
        format.incompat.insert(Incompat::REVOKE);
        if self.options.has_64bit {
            format.incompat.insert(Incompat::BIT64);
        }
        if before == (format.compat, format.incompat) {
            return Ok(());
        }
        self.write_sb(ReqOpf::FUA, |sb| {
            sb.set_h_blocktype(Be(blocktype::SUPERBLOCK_V2));
            sb.set_s_feature_compat(Be(format.compat.bits()));
            sb.set_s_feature_incompat(Be(format.incompat.bits()));
            sb.set_s_checksum_type(if format.has_csum() { JBD2_CRC32C_CHKSUM } else { 0 });
            sb.set_s_checksum(Be(0));
        })?;
        *self.format.lock() = format;
        Ok(())
    }

    // ---- blocks of the log

    pub(super) fn sectors_per_block(&self) -> u64 {
        self.blocksize as u64 >> SECTOR_SHIFT
    }

    /// Where a block of the journal is on the device.
    #[doc(alias = "jbd2_journal_bmap")]
    pub(super) fn bmap(&self, lblk: u32) -> Result<u64> {
        self.bmap_run(lblk).map(|run| run.0)
    }

    /// The same, and how many follow each other from there.
    pub(super) fn bmap_run(&self, lblk: u32) -> Result<(u64, u32)> {
        let at = self.extents.partition_point(|extent| extent.lblk <= lblk).checked_sub(1).ok_or(EIO)?;
        let extent = self.extents.get(at).ok_or(EIO)?;
        let skip = lblk - extent.lblk;
        if skip < extent.len { Ok((extent.pblk + u64::from(skip), extent.len - skip)) } else { Err(EIO) }
    }

    /// `lblk` plus `count`, around the end of the log.
    #[doc(alias = "wrap")]
    pub(super) fn advance(&self, lblk: u32, count: u32) -> u32 {
        let len = self.last - self.first;
        let at = u64::from(lblk.saturating_sub(self.first)) + u64::from(count);
        self.first + (at % u64::from(len)) as u32
    }

    /// Where on the device `bytes` go that are written to the log from `lblk` on: sectors, and the pieces that follow each other there.
    pub(super) fn log_pieces<'a>(
        &'a self,
        mut lblk: u32,
        mut bytes: &'a [u8],
    ) -> impl Iterator<Item = (u64, &'a [u8])> {
        core::iter::from_fn(move || {
            if bytes.is_empty() {
                return None;
            }
            // The map was checked; what is not on it is refused by the block layer.
            let (pblk, run) = self.bmap_run(lblk).unwrap_or((u64::from(u32::MAX) << 16, 1));
            let run = run.min(self.last.saturating_sub(lblk)).max(1);
            let (now, rest) = bytes.split_at(bytes.len().min(run as usize * self.blocksize));
            lblk = self.advance(lblk, (now.len() / self.blocksize) as u32);
            bytes = rest;
            Some((pblk * self.sectors_per_block(), now))
        })
    }

    /// Blocks of the log that a transaction may take.
    #[doc(alias = "jbd2_log_space_left")]
    pub(super) fn space_left(&self, state: &State) -> u32 {
        state.free.saturating_sub(RESERVED_BLOCKS)
    }

    /// Calls `f` with the running transaction, if that is `tid`.
    pub(super) fn with_running<T>(&self, tid: Tid, f: impl FnOnce(&mut Running) -> T) -> Option<T> {
        self.state.lock().running.as_mut().filter(|running| running.trans.tid == tid).map(f)
    }

    // ---- errors

    /// Stops everything: nothing of what is not committed reaches the disk. Any context; sleeps not. The error is written to
    /// the journal's super block by the thread that commits, or at the end.
    #[doc(alias = "jbd2_journal_abort")]
    pub fn abort(&self, errno: Error) {
        if !self.stop(errno, true) {
            return;
        }
        pr_err!("JBD2: {}: aborted journal: {errno:?}", self.bdev.name());
        let sb = self.sb.lock().clone();
        if let Some(sb) = sb {
            (self.options.on_abort)(&sb, errno);
        }
    }

    /// [`Journal::abort`] because somebody wants it so: the error is EIO, and neither the disk nor the file system is told of one, as there
    /// is nothing wrong with either. Any context; sleeps not.
    #[doc(alias = "ESHUTDOWN")]
    pub fn shut_down(&self) {
        self.stop(EIO, false);
    }

    /// Whether it was going until now.
    fn stop(&self, errno: Error, record_errno: bool) -> bool {
        {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return false;
            }
            state.aborted = Some(errno);
            state.record_errno = record_errno;
            self.aborted.store(true, Ordering::Release);
        }
        for queue in
            [&self.j_wait_transaction_locked, &self.j_wait_updates, &self.j_wait_commit, &self.j_wait_done_commit]
        {
            queue.wake_up_all();
        }
        true
    }

    /// The error it was aborted with.
    #[doc(alias = "is_journal_aborted")]
    #[inline]
    pub fn aborted(&self) -> Option<Error> {
        if self.aborted.load(Ordering::Acquire) { self.state.lock().aborted } else { None }
    }

    /// Writes the error of an abort where the next mount finds it.
    #[doc(alias = "jbd2_journal_update_sb_errno")]
    fn record_errno(&self) {
        let errno = {
            let mut state = self.state.lock();
            if !core::mem::take(&mut state.record_errno) {
                return;
            }
            state.aborted.unwrap_or(EIO)
        };
        if self.write_sb(ReqOpf::FUA, |sb| sb.set_s_errno(Be(errno.to_errno() as u32))).is_err() {
            pr_err!("JBD2: {}: the error could not be written to the journal", self.bdev.name());
        }
    }

    // ---- commits

    /// Asks for the commit of transaction `tid`, if it is the running one; does not wait.
    #[doc(alias = "jbd2_log_start_commit")]
    pub fn log_start_commit(&self, tid: Tid) {
        {
            let mut state = self.state.lock();
            let running = state.running.as_ref().is_some_and(|running| running.trans.tid == tid);
            if !running || tid_geq(state.commit_request, tid) {
                return;
            }
            state.commit_request = tid;
        }
        self.j_wait_commit.wake_up_all();
    }

    /// The same if the transaction has no room for `credits` more, so that who restarts need not wait for the clock.
    pub(super) fn log_start_commit_if_full(&self, tid: Tid, credits: u32) {
        let full = self.with_running(tid, |running| running.outstanding.saturating_add(credits) > self.max_transaction);
        if full == Some(true) {
            self.log_start_commit(tid);
        }
    }

    /// Sleeps until transaction `tid` is committed, which somebody has asked for. EIO if the journal was aborted.
    #[doc(alias = "jbd2_log_wait_commit")]
    pub fn log_wait_commit(&self, tid: Tid) -> Result {
        let mut done = Ok(());
        JBD2_COMMIT.might_wait();
        let over = |state: &State| {
            if tid_geq(state.commit_sequence, tid) {
                return Some(Ok(()));
            }
            // What neither runs nor is being committed will not be, either.
            let known = state.running.as_ref().is_some_and(|running| running.trans.tid == tid)
                || state.committing.as_ref().is_some_and(|logged| logged.trans.tid == tid);
            if state.aborted.is_some() { Some(Err(EIO)) } else { (!known).then_some(Ok(())) }
        };
        if sched_wait(Point::Passed, &self.state, |state| state.peek(|state| over(state).is_some()) == Some(true)) {
            return self.state.peek(over).flatten().unwrap_or(done);
        }
        self.j_wait_done_commit.wait_event(|| over(&self.state.lock()).map(|result| done = result).is_some());
        done
    }

    /// Sleeps until transaction `tid` is committed, and asks for it if need be. At once if it is already. EIO.
    #[doc(alias = "jbd2_complete_transaction")]
    pub fn complete_transaction(&self, tid: Tid) -> Result {
        self.log_start_commit(tid);
        self.log_wait_commit(tid)
    }

    /// Commits what was done so far, and waits for it. EIO.
    #[doc(alias = "jbd2_journal_force_commit")]
    pub fn force_commit(&self) -> Result {
        let tid = {
            let state = self.state.lock();
            if state.aborted.is_some() {
                return Err(EIO);
            }
            let running = state.running.as_ref().map(|running| running.trans.tid);
            running.or(state.committing.as_ref().map(|logged| logged.trans.tid))
        };
        tid.map_or(Ok(()), |tid| self.complete_transaction(tid))
    }

    /// Whether the commit of `tid` will still flush the device's cache: then data that are written by now need no flush of
    /// their own.
    #[doc(alias = "jbd2_trans_will_send_data_barrier")]
    pub fn trans_will_send_data_barrier(&self, tid: Tid) -> bool {
        if !self.barrier() {
            return false;
        }
        let state = self.state.lock();
        match &state.committing {
            Some(logged) if logged.trans.tid == tid => !state.barrier_sent,
            _ => state.running.as_ref().is_some_and(|running| running.trans.tid == tid),
        }
    }

    /// Whether transaction `tid` is on disk. Takes a spin lock.
    #[doc(alias = "tid_geq")]
    pub fn is_committed(&self, tid: Tid) -> bool {
        tid_geq(self.state.lock().commit_sequence, tid)
    }

    /// The transaction that runs, if any, or else the one that is being committed.
    pub fn newest_tid(&self) -> Option<Tid> {
        let state = self.state.lock();
        let running = state.running.as_ref().map(|running| running.trans.tid);
        running.or(state.committing.as_ref().map(|logged| logged.trans.tid))
    }

    /// Transactions that were committed since the mount.
    pub fn nr_commits(&self) -> u64 {
        self.state.lock().nr_commits
    }

    /// Blocks of the log, and how many of them are free.
    pub fn log_blocks(&self) -> (u32, u32) {
        (self.last - self.first, self.state.lock().free)
    }

    /// Most credits that a handle can have.
    #[doc(alias = "j_max_transaction_buffers")]
    pub fn max_credits(&self) -> u32 {
        self.max_transaction
    }

    // ---- the end

    /// Lets no handle start until [`Journal::unlock_updates`], and waits for those that are open: freeze. Sleeps.
    #[doc(alias = "jbd2_journal_lock_updates")]
    pub fn lock_updates(&self) {
        self.state.lock().barrier += 1;
        JBD2_HANDLE.might_wait();
        self.j_wait_updates.wait_event(|| {
            let state = self.state.lock();
            state.running.as_ref().is_none_or(|running| running.updates == 0)
        });
    }

    /// Ends [`Journal::lock_updates`].
    #[doc(alias = "jbd2_journal_unlock_updates")]
    pub fn unlock_updates(&self) {
        {
            let mut state = self.state.lock();
            state.barrier = state.barrier.saturating_sub(1);
        }
        self.j_wait_transaction_locked.wake_up_all();
    }

    /// Commits what runs, and brings everything home: the log is empty afterwards. Called with no handle open, and with
    /// nobody starting one, or it may not come to an end. EIO if the journal is aborted. Sleeps.
    #[doc(alias = "jbd2_journal_flush")]
    pub fn flush(&self) -> Result {
        loop {
            self.force_commit()?;
            self.checkpoint_all()?;
            if self.mark_empty()? {
                return Ok(());
            }
        }
    }

    /// Says in the super block that there is nothing to replay, if that is so.
    #[doc(alias = "jbd2_mark_journal_empty")]
    fn mark_empty(&self) -> Result<bool> {
        let _checkpoint = self.j_checkpoint_mutex.lock();
        let sequence = {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return Err(EIO);
            }
            if state.flushed {
                return Ok(true);
            }
            if state.committing.is_some() || !state.checkpoints.is_empty() || state.running.is_some() {
                return Ok(false);
            }
            state.flushed = true;
            state.tail = state.head;
            state.free = self.last - self.first;
            state.next_tid
        };
        let written = self.write_sb(ReqOpf::FUA, |sb| {
            sb.set_s_sequence(Be(sequence));
            sb.set_s_start(Be(0));
            sb.set_s_head(Be(0));
        });
        if let Err(error) = written {
            self.abort(error);
        }
        written.map(|()| true)
    }

    /// The end: what [`Journal::flush`] does, and the thread is gone. An aborted journal stays as it is on disk: EIO. Called
    /// with no handle open. Sleeps.
    #[doc(alias = "jbd2_journal_destroy")]
    pub fn destroy(&self) -> Result {
        let started = self.state.lock().started;
        let flushed = if started { self.flush() } else { Ok(()) };
        self.state.lock().stop = true;
        self.j_wait_commit.wake_up_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            thread.join();
        }
        self.record_errno();
        let running = {
            let mut state = self.state.lock();
            state.started = false;
            state.running.take()
        };
        if let Some(running) = running {
            super::commit::put_ordered(&running.trans);
            pr_notice!("JBD2: {}: transaction {} is lost", self.bdev.name(), running.trans.tid);
        }
        self.heads.clear();
        let sb = self.sb.lock().take();
        drop(sb);
        flushed
    }

    /// Lets go of the inodes that the running transaction of an aborted journal waits for: it will never be committed. Called with no handle
    /// open. Sleeps.
    pub fn put_lost_inodes(&self) {
        let lost = {
            let state = self.state.lock();
            state.aborted.and(state.running.as_ref()).map(|running| running.trans.clone())
        };
        if let Some(trans) = lost {
            super::commit::put_ordered(&trans);
        }
    }

    /// The log was replayed, and is empty: the next transaction is `next_tid`.
    pub(super) fn reset(&self, next_tid: Tid) -> Result {
        self.write_sb(ReqOpf::FUA, |sb| {
            sb.set_s_sequence(Be(next_tid.wrapping_sub(1)));
            sb.set_s_start(Be(0));
            sb.set_s_head(Be(0));
        })?;
        let mut state = self.state.lock();
        state.flushed = true;
        state.next_tid = next_tid;
        state.commit_sequence = next_tid.wrapping_sub(1);
        state.commit_request = next_tid.wrapping_sub(1);
        (state.head, state.tail, state.free) = (self.first, self.first, self.last - self.first);
        Ok(())
    }
}

/// Most tags that go into one descriptor block, so that it and its blocks stay within a megabyte.
pub(super) const GROUP_TAGS: usize = 254;
