// SPDX-License-Identifier: GPL-2.0-only
//! The part of `super.c` that is about errors: what `errors=` asks for, and what the super block is told.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use kernel_shim::error::code::{EFSBADCRC, EIO, EROFS};
use kernel_shim::error::{Error, Result};
use kernel_shim::pr_err;
use kernel_shim::sync::SpinLock;
use kernel_shim::time::{Timespec64, ktime_get_real};

use crate::SuperBlock;
use crate::checksum::ext4_superblock_csum;
use crate::corrupt::{Corrupt, Ext4Error, Ext4Result, Place};
use crate::disk::SuperBlockView;
use crate::ext4::EXT4_ERROR_FS;
use crate::ext4_jbd2::Handle;
use crate::jbd2::Trigger;
use crate::sb::Ext4SbInfo;
use crate::sb_options::Errors;

/// The super block, to be changed.
pub(crate) type SbMut<'a> = SuperBlockView<&'a mut [u8; 1024]>;

/// The errors of a mount, as far as the super block has not been told of them, and a little more.
pub(crate) struct ErrorLog {
    /// Kinds of corruption that were logged, a bit each.
    logged: [AtomicU64; 2],
    /// Errors that the super block does not know of.
    fresh: AtomicU32,
    /// Errors since the mount.
    total: AtomicU32,
    first: SpinLock<Option<Noted>>,
    last: SpinLock<Option<Noted>>,
    /// What the super block's state is to be, apart from the bit that comes and goes with mounts.
    state: AtomicU16,
    /// The super block has to be written for it.
    state_changed: AtomicBool,
}

/// One error.
#[derive(Clone, Copy)]
struct Noted {
    what: Option<Corrupt>,
    time: u64,
    errcode: u8,
}

/// `s_last_error_errcode`: values of the format.
const EXT4_ERR_EIO: u8 = 2;
const EXT4_ERR_EFSBADCRC: u8 = 4;
const EXT4_ERR_EFSCORRUPTED: u8 = 5;

impl ErrorLog {
    pub(crate) fn new(s_state: u16) -> Self {
        Self {
            logged: [const { AtomicU64::new(0) }; 2],
            fresh: AtomicU32::new(0),
            total: AtomicU32::new(0),
            first: SpinLock::named("s_error", None),
            last: SpinLock::named("s_error", None),
            state: AtomicU16::new(s_state & EXT4_ERROR_FS),
            state_changed: AtomicBool::new(false),
        }
    }

    /// The file system has errors, whatever they are.
    pub(crate) fn set_error_state(&self) {
        self.state.fetch_or(EXT4_ERROR_FS, Ordering::Relaxed);
        self.state_changed.store(true, Ordering::Release);
    }

    /// Whether the file system has errors, from this mount or before.
    pub(crate) fn has_error_state(&self) -> bool {
        self.state.load(Ordering::Relaxed) & EXT4_ERROR_FS != 0
    }

    /// Whether the super block has something to hear.
    pub(crate) fn is_pending(&self) -> bool {
        self.fresh.load(Ordering::Acquire) != 0 || self.state_changed.load(Ordering::Acquire)
    }

    /// Errors since the mount.
    pub(crate) fn count(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }

    fn note(&self, what: Option<Corrupt>) {
        let errcode = match what.map(|corrupt| corrupt.errno()) {
            None => EXT4_ERR_EIO,
            Some(EFSBADCRC) => EXT4_ERR_EFSBADCRC,
            Some(_) => EXT4_ERR_EFSCORRUPTED,
        };
        let noted = Noted { what, time: now_seconds(), errcode };
        self.first.lock().get_or_insert(noted);
        *self.last.lock() = Some(noted);
        self.total.fetch_add(1, Ordering::Relaxed);
        self.fresh.fetch_add(1, Ordering::AcqRel);
    }
}

fn now_seconds() -> u64 {
    let now: Timespec64 = ktime_get_real().to_timespec64();
    u64::try_from(now.tv_sec).unwrap_or(0)
}

impl Ext4SbInfo {
    /// Takes note of an error on its way out of the file system: logs a corruption if it is the first of
    /// its kind, does what `errors=` says, and gives the errno. Sleeps not; any lock may be held.
    #[cold]
    pub fn ext4_error(&self, error: Ext4Error) -> Error {
        if let Ext4Error::Corrupt(corrupt) = error {
            self.note_corrupt(corrupt);
            self.ext4_handle_error();
        }
        error.into()
    }

    /// What `errors=` says, after an error was noted. Sleeps not.
    fn ext4_handle_error(&self) {
        self.s_errlog.set_error_state();
        if self.errors_policy() != Errors::Continue {
            self.go_rdonly();
            if let Some(journal) = self.s_journal() {
                journal.abort(EIO);
            }
        }
        // The super block is written where one can sleep.
        self.s_flusher.kick();
    }

    /// Writes nothing from now on. PORT: `errors=panic` does the same, since an image must not stop the machine.
    fn go_rdonly(&self) {
        if !self.s_rdonly.swap(true, Ordering::SeqCst) {
            pr_err!("EXT4-fs ({}): Remounting filesystem read-only: nothing is written from now on", self.bdev.name());
        }
    }

    /// The journal, or something that it cannot do without, has failed.
    #[cold]
    pub(crate) fn ext4_abort(&self, errno: Error) {
        // Asked for, by a shutdown or by what `errors=` says, it is not an error of its own.
        if self.ext4_forced_shutdown() || self.is_rdonly() {
            return;
        }
        pr_err!("EXT4-fs error ({}): the journal was aborted: {errno:?}", self.bdev.name());
        self.s_errlog.note(None);
        self.s_errlog.set_error_state();
        self.go_rdonly();
        self.s_flusher.kick();
    }

    /// Whether a handle can be started: EIO after a shutdown, EROFS on a read-only mount or one whose journal was aborted.
    #[inline]
    pub(crate) fn ext4_journal_check_start(&self) -> Result {
        if self.ext4_forced_shutdown() {
            return Err(EIO);
        }
        if self.is_rdonly() || self.journal_aborted() {
            return Err(EROFS);
        }
        Ok(())
    }

    /// Takes note of a corruption that there is a way around.
    #[doc(alias = "ext4_warning")]
    #[cold]
    pub fn note_corrupt(&self, corrupt: Corrupt) {
        self.s_errlog.note(Some(corrupt));
        let (word, bit) = (corrupt.kind() as usize / 64 % 2, 1 << (corrupt.kind() % 64));
        if self.s_errlog.logged[word].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            pr_err!("EXT4-fs error ({}): {corrupt}", self.bdev.name());
        }
    }

    /// The corruption that was found last in this mount.
    pub fn last_error(&self) -> Option<Corrupt> {
        self.s_errlog.last.lock().and_then(|noted| noted.what)
    }

    /// Changes the super block and writes it, with the errors there were and a new checksum; at once, past the journal. EIO.
    /// Sleeps.
    pub(crate) fn ext4_commit_super(&self, change: impl FnOnce(&mut SbMut<'_>, u64)) -> Ext4Result {
        self.change_super(
            |sb, now| {
                change(sb, now);
                self.ext4_update_super(sb);
            },
            true,
        )?;
        self.s_sbh.mark_dirty();
        let flags = kernel_shim::block::ReqOpf::SYNC | kernel_shim::block::ReqOpf::META;
        // What depends on it comes after it, and it after what it depends on.
        let fua = kernel_shim::block::ReqOpf::FUA | kernel_shim::block::ReqOpf::PREFLUSH;
        let flags = if self.barrier() { flags | fua } else { flags };
        Ok(self.buffers.write_buffers(core::slice::from_ref(&self.s_sbh), flags)?)
    }

    /// Changes the super block under a handle, with a credit for it. EIO, EROFS. Sleeps.
    pub(crate) fn ext4_journal_super(&self, handle: &mut Handle<'_>, change: impl FnOnce(&mut SbMut<'_>)) -> Result {
        handle.get_write_access(&self.s_sbh)?;
        // With a journal the commit does it, once for all changes of the transaction.
        let now = !handle.is_valid();
        self.change_super(|sb, _| change(sb), now)?;
        let trigger = Trigger { frozen: put_super_csum, seed: self.sb_offset() as u32 };
        handle.dirty_metadata_triggered(&self.s_sbh, self.has_metadata_csum().then_some(trigger))
    }

    /// Changes the super block in memory, and puts errors in; a new checksum, too, if it is not left to the commit.
    fn change_super(&self, change: impl FnOnce(&mut SbMut<'_>, u64), csum: bool) -> Result {
        let now = now_seconds();
        let mut block = self.s_sbh.write();
        let mut sb = SbMut::at_mut(&mut block, self.sb_offset()).ok_or(EIO)?;
        change(&mut sb, now);
        self.put_errors(&mut sb);
        if csum && self.has_metadata_csum() {
            put_super_csum(&mut block, self.sb_offset() as u32);
        }
        Ok(())
    }

    /// A field of the super block as it is in memory.
    pub(crate) fn with_super<R>(&self, get: impl FnOnce(&SuperBlockView<&[u8; 1024]>) -> R) -> Result<R> {
        let block = self.s_sbh.read();
        let sb = SuperBlockView::<&[u8; 1024]>::at(&block, self.sb_offset()).ok_or(EIO)?;
        Ok(get(&sb))
    }

    /// Adds the corruptions found since the last time to those the super block tells of.
    #[doc(alias = "save_error_info")]
    fn put_errors(&self, sb: &mut SbMut<'_>) {
        let log = &self.s_errlog;
        if log.state_changed.swap(false, Ordering::AcqRel) {
            sb.set_s_state(sb.s_state() | log.state.load(Ordering::Relaxed));
        }
        let count = log.fresh.swap(0, Ordering::AcqRel);
        if count == 0 {
            return;
        }
        sb.set_s_state(sb.s_state() | EXT4_ERROR_FS);
        if let Some(first) = log.first.lock().filter(|_| sb.s_error_count() == 0) {
            sb.set_s_first_error_time(first.time as u32);
            sb.set_s_first_error_time_hi((first.time >> 32) as u8);
            sb.set_s_first_error_ino(first.ino());
            sb.set_s_first_error_block(0);
            sb.set_s_first_error_func(first.func());
            sb.set_s_first_error_line(0);
            sb.set_s_first_error_errcode(first.errcode);
        }
        if let Some(last) = *log.last.lock() {
            sb.set_s_last_error_time(last.time as u32);
            sb.set_s_last_error_time_hi((last.time >> 32) as u8);
            sb.set_s_last_error_ino(last.ino());
            sb.set_s_last_error_block(0);
            sb.set_s_last_error_func(last.func());
            sb.set_s_last_error_line(0);
            sb.set_s_last_error_errcode(last.errcode);
        }
        sb.set_s_error_count(sb.s_error_count().saturating_add(count));
    }

    /// Tells the super block of the errors it does not know of, if there are any. Not on a read-only mount that was asked
    /// for, or after a shutdown. Sleeps.
    #[doc(alias = "update_super_work")]
    pub(crate) fn write_errors(&self) -> Ext4Result {
        if !self.s_errlog.is_pending() || self.options().rdonly || self.ext4_forced_shutdown() {
            return Ok(());
        }
        // In the journal if it can be: what recovery puts there would undo it else.
        if self.s_journal().is_some()
            && let Ok(mut handle) = crate::ext4_jbd2::ext4_journal_start(self, 1)
        {
            let done = self.ext4_journal_super(&mut handle, |_| ());
            return Ok(done.and(handle.stop())?);
        }
        self.ext4_commit_super(|_, _| ())
    }
}

/// Computes and stores the checksum of the super block, which is `offset` bytes into its block.
#[doc(alias = "ext4_superblock_csum_set")]
fn put_super_csum(block: &mut [u8], offset: u32) {
    let bytes = block.get(offset as usize..).and_then(|bytes| bytes.first_chunk());
    let csum = bytes.map(ext4_superblock_csum);
    if let (Some(csum), Some(mut sb)) = (csum, SbMut::at_mut(block, offset as usize)) {
        sb.set_s_checksum(csum);
    }
}

impl Noted {
    fn ino(&self) -> u32 {
        match self.what.map(|corrupt| corrupt.place()) {
            Some(Place::Inode(ino)) => ino.0,
            Some(Place::Group(_)) | None => 0,
        }
    }

    /// PORT: C has the function's name here; the check's says more.
    fn func(&self) -> [u8; 32] {
        let mut func = [0; 32];
        let name = self.what.map_or("journal", |corrupt| corrupt.name());
        // The last byte stays 0.
        for (to, from) in func.iter_mut().zip(name.bytes().take(31)) {
            *to = from;
        }
        func
    }
}

/// What the journal calls when it was aborted. Any context; sleeps not.
pub(crate) fn ext4_journal_aborted(sb: &SuperBlock, errno: Error) {
    sb.s_fs_info().ext4_abort(errno);
    sb.set_rdonly();
}
