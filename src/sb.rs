// SPDX-License-Identifier: GPL-2.0-only
//! `super.c`: mounting and unmounting, and what is known of a mounted file system.
//!
//! # The state on disk
//!
//! Linux without a journal clears [`EXT4_VALID_FS`] while a file system is mounted for writing, so that
//! `e2fsck` looks at it after a crash. PORT: nothing here changes metadata that depend on each other (data
//! are overwritten in place, inodes get new times), so there is no moment at which a crash leaves
//! anything to repair, and the state is left as it was found. A journal, if there is one, is empty
//! ([`Refused::NeedsRecovery`]) and stays so.

use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel_shim::alloc::{Arc, GFP_KERNEL, KVec};
use kernel_shim::block::Bdev;
use kernel_shim::error::Error;
use kernel_shim::error::code::EIO;
use kernel_shim::fs::buffer::{BufferCache, BufferHead};
use kernel_shim::sync::{Mutex, SpinLock};
use kernel_shim::time::{Timespec64, ktime_get_real};
use kernel_shim::{pr_err, pr_notice, pr_warn};

use crate::block_validity::SystemZone;
use crate::checksum::ext4_superblock_csum;
use crate::corrupt::{Corrupt, Ext4Error, Ext4Result, Place, Refused};
use crate::disk::SuperBlockView;
use crate::ext4::*;
use crate::extents::ext4_ext_lookup;
use crate::extents_status::EsStatus;
use crate::iget::{Iget, ext4_read_inode};
use crate::indirect::ext4_ind_lookup;
use crate::jbd2::Journal;
use crate::mballoc::MbInfo;
use crate::page_io::DioInfo;
use crate::sb_options::{Errors, MountOptions};

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
    /// The options the mount was made with.
    pub s_options: MountOptions,
    /// What the direct-I/O engine keeps of a mount.
    pub dio: DioInfo,
    /// What the allocator keeps of a mount.
    pub mb: MbInfo,
    /// None on a mount without one.
    s_journal: Option<Arc<Journal>>,
    /// The mount was made read-only, or had to be.
    mounted_rdonly: bool,
    /// Nothing is to be written: the same, or an error has struck since.
    s_rdonly: AtomicBool,
    /// The block that holds the super block.
    s_sbh: BufferHead,
    /// The blocks of group descriptors.
    pub(crate) s_group_desc: KVec<BufferHead>,
    /// The blocks that hold metadata.
    pub system_zone: SystemZone,
    /// Held by whoever moves something from one directory to another, so that who is above whom stays as it is. Above every
    /// `i_mutex`.
    pub(crate) s_vfs_rename_mutex: Mutex<()>,
    /// Kinds of corruption that were logged, a bit each.
    s_logged: [AtomicU64; 2],
    s_error_count: AtomicU32,
    s_last_error: SpinLock<Option<Corrupt>>,
}

impl Deref for Ext4SbInfo {
    type Target = Geometry;
    #[inline]
    fn deref(&self) -> &Geometry {
        &self.geometry
    }
}

/// Mounts the file system on `bdev` with options between commas: reads and checks the super block
/// and all group descriptors, and decides whether it can be written. The reason for a refusal is logged.
///
/// Writes nothing; [`Ext4SbInfo::ext4_setup_super`] does.
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
    let geometry = read_geometry(bdev, &options)?;
    let max_blocks = BUFFER_CACHE_BYTES / geometry.s_blocksize as usize;
    let buffers = BufferCache::new(bdev.clone(), geometry.s_blocksize, max_blocks)?;
    let s_sbh = buffers.bread(geometry.sb_block().0)?;
    let s_group_desc = geometry.read_group_descs(&buffers)?;
    let system_zone = SystemZone::setup(&geometry, &s_group_desc)?;
    let mb = MbInfo::new(&geometry, &s_group_desc)?;
    let rdonly = options.rdonly || must_be_rdonly(bdev, &geometry);
    let sb = Ext4SbInfo {
        geometry,
        bdev: bdev.clone(),
        buffers,
        s_options: options,
        dio: DioInfo::new()?,
        mb,
        s_journal: None,
        mounted_rdonly: rdonly,
        s_rdonly: AtomicBool::new(rdonly),
        s_sbh,
        s_group_desc,
        system_zone,
        s_vfs_rename_mutex: Mutex::new(()),
        s_logged: [const { AtomicU64::new(0) }; 2],
        s_error_count: AtomicU32::new(0),
        s_last_error: SpinLock::new(None),
    };
    protect_journal(sb)
}

/// Counts the journal's blocks as metadata: it is written without asking its map.
fn protect_journal(mut sb: Ext4SbInfo) -> Ext4Result<Ext4SbInfo> {
    let ino = sb.s_journal_inum;
    if ino == Ino(0) {
        return Ok(sb);
    }
    let journal = ext4_read_inode(&sb, ino, Iget::Special)?;
    let (ctx, tree) = (journal.ctx(&sb), journal.tree());
    let blocks = u32::try_from(journal.i_size >> sb.s_blocksize_bits).map_err(|_| Corrupt::InodeSize(ino))?;
    let mut extents = KVec::new();
    let mut lblk = 0;
    while lblk < blocks {
        let es = if ctx.i_flags.contains(InodeFlags::EXTENTS) {
            ext4_ext_lookup(&ctx, &tree, Lblk(lblk))?
        } else {
            ext4_ind_lookup(&ctx, &tree, Lblk(lblk))?
        };
        if es.status() == EsStatus::Hole {
            return Err(Corrupt::JournalHole(ino).into());
        }
        lblk = es.end();
        extents.push(es, GFP_KERNEL)?;
    }
    let zone = core::mem::take(&mut sb.system_zone);
    sb.system_zone = zone.protect(ino, &extents)?;
    Ok(sb)
}

/// Reads and checks the super block, through blocks of a size that any ext4 and the device have.
fn read_geometry(bdev: &Bdev, options: &MountOptions) -> Ext4Result<Geometry> {
    let lbs = bdev.limits().logical_block_size;
    let size = u64::from(lbs).max(SUPERBLOCK_OFFSET);
    let first = BufferCache::new(bdev.clone(), lbs.max(1024), 1)?;
    let bh = first.bread(SUPERBLOCK_OFFSET / size)?;
    let bytes = bh.read();
    let raw = bytes.get((SUPERBLOCK_OFFSET % size) as usize..).and_then(|bytes| bytes.first_chunk()).ok_or(EIO)?;
    Geometry::from_super(raw, lbs, bdev.nr_sectors(), options)
}

/// Whether the file system can be read but not written; says why.
fn must_be_rdonly(bdev: &Bdev, geometry: &Geometry) -> bool {
    let name = bdev.name();
    let unknown = geometry.s_ro_compat.difference(EXT4_FEATURE_RO_COMPAT_SUPP);
    if !unknown.is_empty() {
        pr_warn!("EXT4-fs ({name}): mounted read-only: unsupported read-only-compatible features: {unknown}");
    }
    if geometry.s_last_orphan != 0 {
        pr_warn!("EXT4-fs ({name}): mounted read-only: there are orphan inodes, which e2fsck can clear");
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
    !unknown.is_empty() || geometry.s_last_orphan != 0 || read_only_disk
}

impl Ext4SbInfo {
    /// Whether nothing may be written.
    #[doc(alias = "sb_rdonly")]
    #[inline]
    pub fn is_rdonly(&self) -> bool {
        self.s_rdonly.load(Ordering::Relaxed)
    }

    /// The journal, if the mount has one.
    #[inline]
    pub fn s_journal(&self) -> Option<&Arc<Journal>> {
        self.s_journal.as_ref()
    }

    /// Which of the three lock modes direct overwrites run in.
    #[inline]
    pub fn dio_mode(&self) -> DioMode {
        self.s_options.dio
    }

    /// What to do after a corruption: the option, or what the super block says.
    pub fn errors_policy(&self) -> Errors {
        self.s_options.errors.unwrap_or(self.s_errors)
    }

    /// Takes note of an error on its way out of the file system: logs a corruption if it is the first of
    /// its kind, does what `errors=` says, and gives the errno. Sleeps not; any lock may be held.
    #[cold]
    pub fn ext4_error(&self, error: Ext4Error) -> Error {
        if let Ext4Error::Corrupt(corrupt) = error {
            self.note_corrupt(corrupt);
            if self.errors_policy() != Errors::Continue && !self.s_rdonly.swap(true, Ordering::Relaxed) {
                pr_err!("EXT4-fs ({}): writes nothing from now on", self.bdev.name());
            }
        }
        error.into()
    }

    /// Takes note of a corruption that there is a way around.
    #[doc(alias = "ext4_warning")]
    #[cold]
    pub fn note_corrupt(&self, corrupt: Corrupt) {
        self.s_error_count.fetch_add(1, Ordering::Relaxed);
        *self.s_last_error.lock() = Some(corrupt);
        let (word, bit) = (corrupt.kind() as usize / 64 % 2, 1 << (corrupt.kind() % 64));
        if self.s_logged[word].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            pr_err!("EXT4-fs error ({}): {corrupt}", self.bdev.name());
        }
    }

    /// The corruption that was found last in this mount.
    pub fn last_error(&self) -> Option<Corrupt> {
        *self.s_last_error.lock()
    }

    /// Writes the beginning of a mount to the super block: time and count. Nothing if read-only. EIO. Sleeps.
    pub fn ext4_setup_super(&self) -> Ext4Result {
        if self.is_rdonly() {
            return Ok(());
        }
        self.ext4_commit_super(|sb, now| {
            sb.set_s_mtime(now as u32);
            sb.set_s_mtime_hi((now >> 32) as u8);
            sb.set_s_mnt_count(sb.s_mnt_count().saturating_add(1));
        })
    }

    /// Writes back all metadata, and the end of a mount to the super block. EIO. Sleeps.
    ///
    /// Writes nothing if the mount is read-only; if that was an error's doing, the super block, which
    /// tells of it. Not durable before a flush of the device, which is the caller's.
    pub fn ext4_put_super(&self) -> Ext4Result {
        if self.mounted_rdonly {
            return Ok(());
        }
        let written = if self.is_rdonly() { Ok(()) } else { self.buffers.sync_all() };
        self.ext4_commit_super(|sb, now| {
            sb.set_s_wtime(now as u32);
            sb.set_s_wtime_hi((now >> 32) as u8);
        })?;
        Ok(written?)
    }

    /// Changes the super block and writes it, with the errors there were and a new checksum.
    fn ext4_commit_super(&self, change: impl FnOnce(&mut SuperBlockView<&mut [u8; 1024]>, u64)) -> Ext4Result {
        let now: Timespec64 = ktime_get_real().to_timespec64();
        let now = u64::try_from(now.tv_sec).unwrap_or(0);
        {
            let mut block = self.s_sbh.write();
            let bytes = block.get_mut(self.sb_offset()..).and_then(|bytes| bytes.first_chunk_mut()).ok_or(EIO)?;
            let mut sb = SuperBlockView::at_mut(bytes, 0).ok_or(EIO)?;
            change(&mut sb, now);
            self.ext4_update_super_counts(&mut sb);
            self.put_errors(&mut sb, now);
            if self.s_ro_compat.contains(RoCompat::METADATA_CSUM) {
                let csum = ext4_superblock_csum(bytes);
                SuperBlockView::at_mut(bytes, 0).ok_or(EIO)?.set_s_checksum(csum);
            }
            block.mark_dirty();
        }
        Ok(self.buffers.sync_dirty_buffer(&self.s_sbh)?)
    }

    /// Adds the corruptions found since the last time to those the super block tells of.
    fn put_errors(&self, sb: &mut SuperBlockView<&mut [u8; 1024]>, now: u64) {
        let count = self.s_error_count.swap(0, Ordering::Relaxed);
        let Some(corrupt) = self.last_error().filter(|_| count != 0) else { return };
        let ino = match corrupt.place() {
            Place::Inode(ino) => ino.0,
            Place::Group(_) => 0,
        };
        sb.set_s_state(sb.s_state() | EXT4_ERROR_FS);
        if sb.s_error_count() == 0 {
            sb.set_s_first_error_time(now as u32);
            sb.set_s_first_error_ino(ino);
        }
        sb.set_s_last_error_time(now as u32);
        sb.set_s_last_error_ino(ino);
        sb.set_s_error_count(sb.s_error_count().saturating_add(count));
    }
}
