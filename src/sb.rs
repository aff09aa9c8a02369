// SPDX-License-Identifier: GPL-2.0-only
//! `super.c`: mounting and unmounting, and what is known of a mounted file system.
//!
//! # The state on disk
//!
//! With a journal, [`Incompat::RECOVER`] is set while the file system is mounted for writing, so that whoever comes after a
//! crash replays the log first; [`EXT4_VALID_FS`] stays as it is, since there is nothing more to repair. Without one,
//! [`EXT4_VALID_FS`] is cleared while the file system is mounted for writing, and `e2fsck` looks at it after a crash. After an
//! error [`EXT4_ERROR_FS`] is set, and if the journal was aborted nothing is said to be clean at the end.
//!
//! Its other parts: [`crate::sb_geometry`] (is this a file system at all), [`crate::sb_options`], [`crate::sb_error`] (what
//! errors do), [`crate::sb_remount`] (remount, freeze, shutdown) and [`crate::sb_stats`].

use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use kernel_shim::alloc::{Arc, GFP_KERNEL, KVec};
use kernel_shim::block::Bdev;
use kernel_shim::error::code::{EIO, EROFS};
use kernel_shim::fs::FreezeGate;
use kernel_shim::fs::buffer::{BufferCache, BufferHead};
use kernel_shim::sync::{Mutex, SpinLock};
use kernel_shim::{pr_err, pr_info, pr_notice, pr_warn};

use crate::SuperBlock;
use crate::block_validity::SystemZone;
use crate::corrupt::{Corrupt, Ext4Result, Refused};
use crate::disk::SuperBlockView;
use crate::ext4::*;
use crate::extents::ext4_ext_lookup;
use crate::extents_status::{EsStatus, ExtentStatus};
use crate::iget::{Ext4InodeDisk, Iget, ext4_read_inode};
use crate::indirect::ext4_ind_lookup;
use crate::jbd2::{Journal, JournalOptions, LogExtent};
use crate::mballoc::MbInfo;
use crate::orphan::Orphans;
use crate::page_io::DioInfo;
use crate::sb_error::ErrorLog;
use crate::sb_options::{Errors, MountOptions};
use crate::sb_stats::SbCounters;
use crate::writeback::Flusher;

pub use crate::sb_geometry::Geometry;

/// Bytes of metadata blocks that the buffer cache keeps when nobody uses them.
const BUFFER_CACHE_BYTES: usize = 16 << 20;

/// A mounted file system: C's `struct ext4_sb_info`.
pub struct Ext4SbInfo {
    geometry: Geometry,
    /// The device.
    pub bdev: Bdev,
    /// The metadata blocks in memory.
    pub buffers: BufferCache,
    /// The options as they are now: a remount changes some.
    s_options: SpinLock<MountOptions>,
    /// [`MountOptions::dio`], for those in a hurry.
    s_dio_mode: AtomicU8,
    /// `data=journal`, which a remount does not change.
    s_journal_data: bool,
    /// What the direct-I/O engine keeps of a mount.
    pub dio: DioInfo,
    /// What the allocator keeps of a mount.
    pub mb: MbInfo,
    /// None on a mount without one.
    s_journal: Option<Arc<Journal>>,
    /// The journal's thread runs.
    s_journal_started: AtomicBool,
    /// Nothing is to be written: by the mount's options, or an error has struck since.
    pub(crate) s_rdonly: AtomicBool,
    /// The file system can only be read: its features, or the device, are such.
    s_rdonly_for_good: bool,
    /// The super block says that it is mounted for writing, and must hear of the end of that.
    s_marked: AtomicBool,
    /// Whatever is asked of the mount is EIO.
    pub(crate) s_shutdown: AtomicBool,
    /// Where handles go through: shut while the file system is frozen.
    pub(crate) s_intwrite: FreezeGate,
    /// The block that holds the super block.
    pub(crate) s_sbh: BufferHead,
    /// The blocks of group descriptors.
    pub(crate) s_group_desc: KVec<BufferHead>,
    /// The blocks that hold metadata.
    pub system_zone: SystemZone,
    /// Held by whoever moves something from one directory to another, so that who is above whom stays as it is. Above every
    /// `i_mutex`.
    pub(crate) s_vfs_rename_mutex: Mutex<()>,
    /// Inodes that somebody has to finish with after a crash.
    pub(crate) s_orphans: Orphans,
    /// The errors there were.
    pub(crate) s_errlog: ErrorLog,
    /// Writes back in the background.
    pub(crate) s_flusher: Flusher,
    pub(crate) s_counters: SbCounters,
    /// How many inodes got a generation.
    pub(crate) s_next_generation: AtomicU32,
    /// How many directories were spread.
    pub(crate) s_next_spread: AtomicU32,
}

impl Deref for Ext4SbInfo {
    type Target = Geometry;
    #[inline]
    fn deref(&self) -> &Geometry {
        &self.geometry
    }
}

/// Mounts the file system on `bdev` with options between commas: reads and checks the super block
/// and all group descriptors, replays the journal if it needs that, and decides whether the file system can be written. The
/// reason for a refusal is logged.
///
/// Apart from the replay it writes nothing; [`Ext4SbInfo::ext4_setup_super`] does.
pub fn ext4_fill_super(bdev: Bdev, options: &str) -> Ext4Result<Ext4SbInfo> {
    let options = match MountOptions::parse(options) {
        Ok(options) => options,
        Err(error) => {
            pr_err!("EXT4-fs ({}): {error}", bdev.name());
            return Err(Refused::MountOption.into());
        }
    };
    let filled = fill_super(&bdev, options);
    if let Err(error) = &filled {
        pr_err!("EXT4-fs ({}): not mounted: {error}", bdev.name());
    }
    filled
}

fn fill_super(bdev: &Bdev, options: MountOptions) -> Ext4Result<Ext4SbInfo> {
    let mut sb = read_super(bdev, options)?;
    let mut journal = sb.open_journal()?;
    if let Some(found) = &journal
        && sb.recover_journal(found)?
    {
        // What was read before the replay is not what is on the disk now: all of it is read and checked again.
        drop(sb);
        sb = read_super(bdev, options)?;
        // The super block still says that there is a log to replay.
        sb.s_marked.store(true, Ordering::Release);
        // The journal, too: the log may have had another block size in it, or another place of the journal.
        journal = sb.open_journal()?;
        if journal.as_ref().is_some_and(|journal| journal.needs_recovery()) {
            return Err(Refused::NeedsRecovery.into());
        }
    }
    sb.s_journal = journal;
    sb.protect_journal()?;
    sb.s_orphans = Orphans::ext4_init_orphan_info(&sb)?;
    Ok(sb)
}

/// Reads super block and descriptors.
fn read_super(bdev: &Bdev, options: MountOptions) -> Ext4Result<Ext4SbInfo> {
    let geometry = read_geometry(bdev)?;
    let max_blocks = BUFFER_CACHE_BYTES / geometry.s_blocksize as usize;
    let buffers = BufferCache::new(bdev.clone(), geometry.s_blocksize, max_blocks)?;
    let s_sbh = buffers.bread(geometry.sb_block().0)?;
    let s_group_desc = geometry.read_group_descs(&buffers)?;
    let system_zone = SystemZone::setup(&geometry, &s_group_desc)?;
    let mb = MbInfo::new(&geometry, &s_group_desc)?;
    let s_rdonly_for_good = must_be_rdonly(bdev, &geometry);
    if options.delalloc {
        pr_notice!("EXT4-fs ({}): delalloc: blocks are allocated at once all the same", bdev.name());
    }
    Ok(Ext4SbInfo {
        bdev: bdev.clone(),
        buffers,
        s_options: SpinLock::named("s_options", options),
        s_dio_mode: AtomicU8::new(options.dio as u8),
        s_journal_data: options.data == Some(crate::sb_options::DataMode::Journal),
        dio: DioInfo::new()?,
        mb,
        s_journal: None,
        s_journal_started: AtomicBool::new(false),
        s_rdonly: AtomicBool::new(options.rdonly || s_rdonly_for_good),
        s_rdonly_for_good,
        s_marked: AtomicBool::new(false),
        s_shutdown: AtomicBool::new(false),
        s_intwrite: FreezeGate::new("sb_internal"),
        s_sbh,
        s_group_desc,
        system_zone,
        s_vfs_rename_mutex: Mutex::named("s_vfs_rename_mutex", ()),
        s_orphans: Orphans::default(),
        s_errlog: ErrorLog::new(geometry.s_state),
        s_flusher: Flusher::default(),
        s_counters: SbCounters::new(bdev),
        s_next_generation: AtomicU32::new(0),
        s_next_spread: AtomicU32::new(0),
        geometry,
    })
}

/// Reads and checks the super block, through blocks of a size that any ext4 and the device have.
fn read_geometry(bdev: &Bdev) -> Ext4Result<Geometry> {
    let lbs = bdev.limits().logical_block_size;
    let size = u64::from(lbs).max(SUPERBLOCK_OFFSET);
    let first = BufferCache::new(bdev.clone(), lbs.max(1024), 1)?;
    let bh = first.bread(SUPERBLOCK_OFFSET / size)?;
    let bytes = bh.read();
    let raw = bytes.get((SUPERBLOCK_OFFSET % size) as usize..).and_then(|bytes| bytes.first_chunk()).ok_or(EIO)?;
    Geometry::from_super(raw, lbs, bdev.nr_sectors())
}

/// Whether the file system can be read but never written; says why. PORT: C does not mount it at all, unless asked to read-only.
fn must_be_rdonly(bdev: &Bdev, geometry: &Geometry) -> bool {
    let name = bdev.name();
    let unknown = geometry.s_ro_compat.difference(EXT4_FEATURE_RO_COMPAT_SUPP);
    if !unknown.is_empty() {
        pr_warn!("EXT4-fs ({name}): mounted read-only: unsupported read-only-compatible features: {unknown}");
    }
    let read_only_disk = bdev.limits().read_only;
    if read_only_disk {
        pr_notice!("EXT4-fs ({name}): mounted read-only: the device is");
    }
    if geometry.s_state & EXT4_ERROR_FS != 0 {
        pr_warn!("EXT4-fs ({name}): mounting fs with errors, running e2fsck is recommended");
    } else if geometry.s_state & EXT4_VALID_FS == 0 {
        pr_warn!("EXT4-fs ({name}): mounting unchecked fs, running e2fsck is recommended");
    }
    !unknown.is_empty() || read_only_disk
}

// ---- the journal, before there is anybody to use it

impl Ext4SbInfo {
    /// Finds and opens the journal, if there is one and it is to be used. What may have to be replayed is still in it.
    #[doc(alias = "ext4_load_and_init_journal")]
    fn open_journal(&self) -> Ext4Result<Option<Arc<Journal>>> {
        let options = self.options();
        if !self.s_compat.contains(Compat::HAS_JOURNAL) {
            return if self.s_incompat.contains(Incompat::RECOVER) && !(options.noload && options.rdonly) {
                Err(Refused::NeedsRecovery.into())
            } else {
                Ok(None)
            };
        }
        if options.noload {
            return Ok(None);
        }
        if self.s_journal_inum == Ino(0) {
            return Err(Refused::ExternalJournal(self.s_journal_dev).into());
        }
        let mut map = KVec::new();
        for es in self.map_special(&self.journal_inode()?)? {
            map.push(LogExtent { lblk: es.lblk().0, pblk: es.pblk().0, len: es.len() }, GFP_KERNEL)?;
        }
        Ok(Some(Journal::load(&self.bdev, self.s_blocksize, &map, self.journal_options())?))
    }

    /// Replays the journal if there is something in it; whether it was. PORT: C throws away a log that is not empty if `RECOVER`
    /// is not set. Read-only mounts do that, too: what they would read
    /// otherwise is not what was written. EIO, corruptions; EROFS if the device cannot be written.
    fn recover_journal(&self, journal: &Journal) -> Ext4Result<bool> {
        if !journal.needs_recovery() {
            return Ok(false);
        }
        let name = self.bdev.name();
        if self.bdev.limits().read_only {
            return Err(Refused::RecoveryReadOnly.into());
        }
        if self.options().rdonly {
            pr_info!("EXT4-fs ({name}): recovery required on readonly filesystem; it is written all the same");
        }
        journal.recover()?;
        pr_info!("EXT4-fs ({name}): recovery complete");
        Ok(true)
    }

    /// What the journal has to know.
    pub(crate) fn journal_options(&self) -> JournalOptions {
        let options = self.options();
        JournalOptions {
            barrier: options.barrier,
            commit_interval_ms: u64::from(options.commit) * 1000,
            has_64bit: self.s_incompat.contains(Incompat::BIT64),
            metadata_csum: self.has_metadata_csum(),
            submit_data: crate::aops::ext4_submit_inode_data,
            on_abort: crate::sb_error::ext4_journal_aborted,
        }
    }

    /// The journal's inode, checked.
    fn journal_inode(&self) -> Ext4Result<Ext4InodeDisk> {
        let ino = self.s_journal_inum;
        let inode = ext4_read_inode(self, ino, Iget::Special)?;
        if inode.file_type() != kernel_shim::fs::inode::S_IFREG {
            return Err(Corrupt::InodeMode(ino).into());
        }
        Ok(inode)
    }

    /// All blocks of an inode of the file system's own, which has no holes.
    pub(crate) fn map_special(&self, inode: &Ext4InodeDisk) -> Ext4Result<KVec<ExtentStatus>> {
        let (ctx, tree) = (inode.ctx(self), inode.tree());
        let blocks =
            u32::try_from(inode.i_size >> self.s_blocksize_bits).map_err(|_| Corrupt::InodeSize(inode.i_ino))?;
        if u64::from(blocks) > self.s_blocks_count {
            // A few blocks of numbers can say this; the list of extents would be longer than the file system.
            return Err(Corrupt::InodeSize(inode.i_ino).into());
        }
        let mut extents = KVec::new();
        let mut lblk = 0;
        while lblk < blocks {
            let es = if ctx.i_flags.contains(InodeFlags::EXTENTS) {
                ext4_ext_lookup(&ctx, &tree, Lblk(lblk))?
            } else {
                ext4_ind_lookup(&ctx, &tree, Lblk(lblk))?
            };
            if es.status() == EsStatus::Hole {
                return Err(Corrupt::JournalHole(inode.i_ino).into());
            }
            // What there is behind the end is not part of it.
            let inside = es.clip(es.lblk().0, blocks).ok_or(Corrupt::InodeSize(inode.i_ino))?;
            lblk = es.end();
            extents.push(inside, GFP_KERNEL)?;
        }
        Ok(extents)
    }

    /// Counts the journal's blocks as metadata: it is written without asking its map.
    fn protect_journal(&mut self) -> Ext4Result {
        let ino = self.s_journal_inum;
        if ino == Ino(0) {
            return Ok(());
        }
        let extents = self.map_special(&self.journal_inode()?)?;
        let zone = core::mem::take(&mut self.system_zone);
        self.system_zone = zone.protect(ino, &extents)?;
        Ok(())
    }

    /// Has the journal begin, unless it has; from then on handles can be started. `sb` is told of its end.
    #[doc(alias = "jbd2_journal_load")]
    pub(crate) fn start_journal(&self, sb: Option<Arc<SuperBlock>>) -> Ext4Result {
        let Some(journal) = &self.s_journal else { return Ok(()) };
        if self.s_journal_started.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(errno) = journal.errno() {
            // An earlier mount ended with an error that the super block may not have heard of.
            pr_warn!("EXT4-fs ({}): filesystem error {errno:?} recorded from previous mount", self.bdev.name());
            self.s_errlog.set_error_state();
            self.ext4_commit_super(|_, _| ())?;
            journal.clear_err()?;
        }
        Journal::start_thread(journal, sb)?;
        self.s_journal_started.store(true, Ordering::Release);
        Ok(())
    }
}

// ---- what is known of a mount

impl Ext4SbInfo {
    /// Whether nothing may be written.
    #[doc(alias = "sb_rdonly")]
    #[inline]
    pub fn is_rdonly(&self) -> bool {
        self.s_rdonly.load(Ordering::Relaxed)
    }

    /// Whether it can never be written: EROFS for whoever wants to.
    pub(crate) fn is_rdonly_for_good(&self) -> bool {
        self.s_rdonly_for_good
    }

    /// Whether [`ext4_force_shutdown`](crate::ext4_force_shutdown) was called.
    #[inline]
    pub fn ext4_forced_shutdown(&self) -> bool {
        self.s_shutdown.load(Ordering::Relaxed)
    }

    /// EIO after [`ext4_force_shutdown`](crate::ext4_force_shutdown): asked on the way in by whatever needs no handle.
    #[inline(always)]
    pub fn ext4_emergency_state(&self) -> kernel_shim::error::Result {
        if self.ext4_forced_shutdown() { Err(EIO) } else { Ok(()) }
    }

    /// The journal, if the mount has one.
    #[inline]
    pub fn s_journal(&self) -> Option<&Arc<Journal>> {
        self.s_journal.as_ref()
    }

    /// Whether the journal was aborted: nothing of what is not committed will ever be on the disk.
    #[doc(alias = "is_journal_aborted")]
    pub fn journal_aborted(&self) -> bool {
        self.s_journal.as_ref().is_some_and(|journal| journal.aborted().is_some())
    }

    /// The options as they are now.
    pub fn options(&self) -> MountOptions {
        *self.s_options.lock()
    }

    /// Those of a remount.
    pub(crate) fn set_options(&self, options: MountOptions) {
        *self.s_options.lock() = options;
        self.s_dio_mode.store(options.dio as u8, Ordering::Relaxed);
    }

    /// `data=journal`: nothing is written past the page cache.
    #[inline]
    pub fn journal_data(&self) -> bool {
        self.s_journal_data
    }

    /// Which of the three lock modes direct overwrites run in.
    #[inline]
    pub fn dio_mode(&self) -> DioMode {
        const EXCLUSIVE: u8 = DioMode::Exclusive as u8;
        const I_DATA_SEM: u8 = DioMode::IDataSem as u8;
        match self.s_dio_mode.load(Ordering::Relaxed) {
            EXCLUSIVE => DioMode::Exclusive,
            I_DATA_SEM => DioMode::IDataSem,
            _ => DioMode::InFlight,
        }
    }

    /// What to do after a corruption: the option, or what the super block says.
    pub fn errors_policy(&self) -> Errors {
        self.options().errors.unwrap_or(self.s_errors)
    }

    /// Whether barriers are asked for: flushes of the device's cache.
    pub fn barrier(&self) -> bool {
        self.options().barrier
    }
}

// ---- the beginning and the end of writing

impl Ext4SbInfo {
    /// Writes the beginning of a mount to the super block: time and count, and that it is being written. Nothing if read-only.
    /// Starts the journal, if nobody has. EIO. Sleeps.
    pub fn ext4_setup_super(&self) -> Ext4Result {
        if self.is_rdonly() {
            return Ok(());
        }
        self.start_journal(None)?;
        self.ext4_commit_super(|sb, now| {
            sb.set_s_mtime(now as u32);
            sb.set_s_mtime_hi((now >> 32) as u8);
            sb.set_s_mnt_count(sb.s_mnt_count().saturating_add(1));
            self.mark_in_use(sb);
        })?;
        self.s_marked.store(true, Ordering::Release);
        Ok(())
    }

    /// From now on the disk may be in a state that somebody has to look at after a crash. EIO. Sleeps.
    pub(crate) fn mark_writing(&self) -> Ext4Result {
        self.ext4_commit_super(|sb, _| self.mark_in_use(sb))?;
        self.s_marked.store(true, Ordering::Release);
        Ok(())
    }

    fn mark_in_use(&self, sb: &mut SuperBlockView<&mut [u8; 1024]>) {
        if self.s_journal.is_some() {
            sb.set_s_feature_incompat(sb.s_feature_incompat() | Incompat::RECOVER.bits());
        } else {
            sb.set_s_state(sb.s_state() & !EXT4_VALID_FS);
        }
        if self.s_compat.contains(Compat::ORPHAN_FILE) {
            sb.set_s_feature_ro_compat(sb.s_feature_ro_compat() | RoCompat::ORPHAN_PRESENT.bits());
        }
    }

    /// Everything is on the device and the journal is empty: says so in the super block. Nothing if it never said otherwise, or if
    /// it is not so, because the journal was aborted. EIO. Sleeps.
    #[doc(alias = "ext4_mark_recovery_complete")]
    pub(crate) fn mark_clean(&self) -> Ext4Result {
        if self.journal_aborted() || self.ext4_forced_shutdown() {
            return Err(EROFS.into());
        }
        if !self.s_marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let no_orphans = self.s_orphans.is_empty();
        self.ext4_commit_super(|sb, now| {
            sb.set_s_wtime(now as u32);
            sb.set_s_wtime_hi((now >> 32) as u8);
            sb.set_s_feature_incompat(sb.s_feature_incompat() & !Incompat::RECOVER.bits());
            if no_orphans {
                sb.set_s_feature_ro_compat(sb.s_feature_ro_compat() & !RoCompat::ORPHAN_PRESENT.bits());
            }
            if self.s_state & EXT4_VALID_FS != 0 {
                sb.set_s_state(sb.s_state() | EXT4_VALID_FS);
            }
        })?;
        self.s_marked.store(false, Ordering::Release);
        Ok(())
    }

    /// Writes back all metadata, ends the journal, and writes the end of a mount to the super block. EIO. Sleeps.
    ///
    /// Writes nothing if the mount was never written; after an error that stopped it, only the super block, which
    /// tells of it. Not durable before a flush of the device, which is the caller's.
    pub fn ext4_put_super(&self) -> Ext4Result {
        let ended = match &self.s_journal {
            Some(journal) if self.s_journal_started.swap(false, Ordering::AcqRel) => journal.destroy(),
            _ => Ok(()),
        };
        if !self.s_marked.load(Ordering::Acquire) {
            if self.s_errlog.is_pending() && !self.options().rdonly {
                self.ext4_commit_super(|_, _| ())?;
            }
            return Ok(ended?);
        }
        let stopped = self.is_rdonly() || self.journal_aborted() || self.ext4_forced_shutdown();
        if self.ext4_forced_shutdown() {
            ended?;
            return Err(EIO.into());
        }
        if stopped || ended.is_err() {
            // What there is to tell, and nothing of an end.
            self.ext4_commit_super(|_, _| ())?;
            return Ok(ended?);
        }
        let written = self.buffers.sync_all();
        if written.is_err() {
            self.ext4_commit_super(|_, _| ())?;
            return Ok(written?);
        }
        self.mark_clean()
    }
}
