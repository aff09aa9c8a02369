// SPDX-License-Identifier: GPL-2.0-only
//! `statfs`, and what `sysfs.c` shows in `/sys/fs/ext4/<dev>`.

use core::sync::atomic::{AtomicU64, Ordering};

use kernel_shim::alloc::Arc;
use kernel_shim::block::Bdev;
use kernel_shim::error::{Result, code::EIO};
use kernel_shim::sync::lockdep::syscall;

use crate::SuperBlock;
use crate::ext4::{EXT4_NAME_LEN, EXT4_SUPER_MAGIC};
use crate::sb::Ext4SbInfo;
use crate::sb_error::SbMut;

/// What a mount counts.
pub(crate) struct SbCounters {
    /// Sectors that the device had been given to write when the mount was made.
    s_sectors_written_start: u64,
    /// Sectors that `s_kbytes_written` has been told of.
    told: AtomicU64,
}

impl SbCounters {
    pub(crate) fn new(bdev: &Bdev) -> Self {
        let start = bdev.stats().write_sectors;
        Self { s_sectors_written_start: start, told: AtomicU64::new(start) }
    }
}

/// A mount in numbers: C's `/sys/fs/ext4/<dev>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ext4Stats {
    /// Blocks that are promised and not allocated: none, since there is no delayed allocation.
    pub delayed_allocation_blocks: u64,
    /// KiB written since the mount.
    pub session_write_kbytes: u64,
    /// KiB written ever.
    pub lifetime_write_kbytes: u64,
    /// Errors found since the mount.
    pub errors_count: u32,
    /// Asynchronous direct writes under way.
    pub io_ends_in_flight: usize,
    /// Direct writes under `i_mutex` throughout.
    pub dio_exclusive: u32,
    /// Direct writes without `i_mutex`, under `i_data_sem`.
    pub dio_i_data_sem: u32,
    /// Direct writes without `i_mutex`, counted only.
    pub dio_in_flight: u32,
    /// Inodes in memory.
    pub inodes: usize,
    /// Those that are newer in memory than on disk.
    pub dirty_inodes: usize,
    /// Metadata blocks in memory.
    pub buffers: usize,
    /// Requests given to the device, by whomever.
    pub requests: u64,
    /// Whether there is a journal, and it was not aborted.
    pub journal: bool,
    /// Transactions committed since the mount.
    pub commits: u64,
    /// Blocks of the log, and how many of them are free.
    pub log_blocks: (u32, u32),
}

/// Counters of a mount. Each was true at some moment.
pub fn ext4_sb_stats(sb: &SuperBlock) -> Ext4Stats {
    let sbi = sb.s_fs_info();
    let dio = &sbi.dio;
    let disk = sbi.bdev.stats();
    let session = disk.write_sectors.saturating_sub(sbi.s_counters.s_sectors_written_start) / 2;
    Ext4Stats {
        delayed_allocation_blocks: 0,
        session_write_kbytes: session,
        lifetime_write_kbytes: sbi.s_kbytes_written.saturating_add(session),
        errors_count: sbi.s_errlog.count(),
        io_ends_in_flight: dio.io_ends().saturating_sub(dio.io_ends_available()),
        dio_exclusive: dio.stats.exclusive.load(Ordering::Relaxed),
        dio_i_data_sem: dio.stats.i_data_sem.load(Ordering::Relaxed),
        dio_in_flight: dio.stats.in_flight.load(Ordering::Relaxed),
        inodes: sb.nr_inodes(),
        dirty_inodes: sb.count_inodes(|inode| !inode.i_state().is_empty()),
        buffers: sbi.buffers.nr_cached(),
        requests: disk.requests,
        journal: sbi.s_journal().is_some() && !sbi.journal_aborted(),
        commits: sbi.s_journal().map_or(0, |journal| journal.nr_commits()),
        log_blocks: sbi.s_journal().map_or((0, 0), |journal| journal.log_blocks()),
    }
}

/// C's `struct kstatfs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ext4Statfs {
    /// [`EXT4_SUPER_MAGIC`].
    pub f_type: u32,
    /// Bytes in a block.
    pub f_bsize: u32,
    /// Blocks that files can have.
    pub f_blocks: u64,
    /// Free ones.
    pub f_bfree: u64,
    /// Free ones that are not kept for the super-user.
    pub f_bavail: u64,
    /// Inodes.
    pub f_files: u64,
    /// Free ones.
    pub f_ffree: u64,
    /// Names the file system, from its UUID.
    pub f_fsid: u64,
    /// Longest name in bytes.
    pub f_namelen: u32,
}

/// `s_op->statfs`. EIO.
pub fn ext4_statfs(sb: &Arc<SuperBlock>) -> Result<Ext4Statfs> {
    let _syscall = syscall("ext4_statfs");
    let sbi = sb.s_fs_info();
    if sbi.ext4_forced_shutdown() {
        return Err(EIO);
    }
    let f_bfree = sbi.free_clusters().saturating_mul(u64::from(sbi.s_cluster_ratio));
    let [a, b]: [u64; 2] = core::array::from_fn(|half| {
        let bytes = sbi.s_uuid.get(half * 8..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    });
    Ok(Ext4Statfs {
        f_type: u32::from(EXT4_SUPER_MAGIC),
        f_bsize: sbi.s_blocksize,
        f_blocks: sbi.s_blocks_count.saturating_sub(sbi.overhead()),
        f_bfree,
        f_bavail: f_bfree.saturating_sub(sbi.s_r_blocks_count.saturating_add(sbi.resv_clusters())),
        f_files: u64::from(sbi.s_inodes_count),
        f_ffree: sbi.free_inodes(),
        f_fsid: a ^ b,
        f_namelen: EXT4_NAME_LEN as u32,
    })
}

impl Ext4SbInfo {
    /// Blocks that files can never have: super blocks, descriptors, bitmaps, inode tables, the journal.
    #[doc(alias = "ext4_calculate_overhead")]
    fn overhead(&self) -> u64 {
        u64::from(self.s_first_data_block).saturating_add(self.system_zone.blocks())
    }

    /// What the super block has of the counters: free blocks and inodes, and what was written.
    pub(crate) fn ext4_update_super(&self, sb: &mut SbMut<'_>) {
        self.ext4_update_super_counts(sb);
        let written = self.bdev.stats().write_sectors;
        let told = self.s_counters.told.fetch_max(written, Ordering::AcqRel);
        // The odd sector is told of next time.
        let kbytes = written.saturating_sub(told) / 2;
        sb.set_s_kbytes_written(sb.s_kbytes_written().saturating_add(kbytes));
    }
}
