// SPDX-License-Identifier: GPL-2.0-only
//! ext4's direct-I/O engine: aligned overwrites of one file, many at once, without `i_mutex`.
//!
//! In 2012 Linux took "ext4: don't take the i_mutex lock when doing DIO overwrites". A direct write over blocks that are allocated and
//! written changes nothing but data, so it need not hold the inode's lock while the device works. This crate is that patch in
//! Rust, on real `mke2fs` file systems, with the holes closed that the patch had, and built like `fs/ext4`: C names in files
//! of the C files' names, against [`kernel_shim`] instead of the kernel.
//!
//! ```no_run
//! use ext4_dio::{Kiocb, ext4_mount, ext4_open, ext4_umount, file::ext4_file_write};
//! use kernel_shim::{block::Bdev, error::Result, fs::{IoVec, IovIter, OpenFlags}};
//!
//! fn overwrite(disk: Bdev, block: &[u8]) -> Result {
//!     let sb = ext4_mount(disk, "dioread_nolock")?;
//!     let file = ext4_open(&sb, "/data", OpenFlags::O_RDWR | OpenFlags::O_DIRECT)?;
//!     let iov = [IoVec::source(block)];
//!     let written = ext4_file_write(&mut Kiocb::new_sync(&file, 0), &mut IovIter::new(&iov))?;
//!     assert_eq!(written, block.len());
//!     drop(file);
//!     ext4_umount(&sb)
//! }
//! ```
//!
//! Around it is a whole ext4: allocation, journal, truncate and its family, page cache, names, extended attributes. What goes past
//! the patch of 2012 goes past Linux, too: writes into holes and unwritten blocks, and appends, run side by side as overwrites do.
//!
//! # One write, from entry to bio
//!
//! ```text
//! ext4_file_write                          file.rs: the right to write (freeze)
//!  └ ext4_file_dio_write                    lock i_mutex; plug; checks; verdict -> iocb.private; unlock; sync; unplug
//!     └ __generic_file_aio_write             kernel-shim mm/filemap.rs: set-user-ID off, times
//!        └ generic_file_direct_write          writes and drops cached pages in the way
//!           └ ext4_direct_IO                   inode.rs
//!              └ ext4_ext_direct_IO              the verdict lets it: DioLock::release, i_mutex is free
//!                 ├ ext4_dio_alloc                 dio.rs, if blocks are missing or unwritten: handle, i_data_sem, mballoc
//!                 ├ __blockdev_direct_IO           kernel-shim fs/direct_io.rs: map, pin, bios
//!                 │  ├ ext4_get_block_write[_nolock] -> ext4_map_blocks -> extents_status.rs, extents/
//!                 │  └ submit_bio -> the device
//!                 'retake_lock: DioLock::retake_lock, i_mutex is held again
//! completion: bio's end, any context -> dio_complete -> ext4_end_io_dio (dio.rs: convert, size) -> cached pages -> O_DSYNC
//!             -> i_dio_count -> ki_complete
//! ```
//!
//! # The verdict
//!
//! | a write | C, 2012 | by default here |
//! |---|---|---|
//! | over written blocks | leaves `i_mutex` if one extent and no cached page | leaves it |
//! | into unwritten blocks or holes, whole blocks | holds it until the data is there (asynchronous: until it is submitted) | leaves it |
//! | past the end, whole blocks | holds it, and waits | leaves it; the size moves at the end, outwards only |
//! | parts of blocks that hold no data; behind a ragged end | holds it | holds it, alone in the device, and waits |
//! | to a file of block numbers | holds it | holds it; holes go through the page cache |
//!
//! # Lock modes
//!
//! | mount option | a write that leaves `i_mutex` is protected by | is |
//! |---|---|---|
//! | `dioread_lock` | (none leaves it) | before the patch |
//! | `dioread_nolock,dio_window=i_data_sem` | its count in `i_dio_count`, and `i_data_sem` for reading | the patch, counted in time |
//! | `dioread_nolock` (default) | its count alone | ours: the right column above |
//!
//! Whatever takes blocks from a file takes `i_mutex`, which keeps new writes from leaving it, closes the gate for reads without
//! locks, and waits until `i_dio_count` is 0. So while a write is counted, the blocks it has looked up stay the file's, and
//! nothing else is needed.
//!
//! # Lock order
//!
//! right to write → `aio_mutex` → `i_mutex` (directories: see [`namei`]) → `invalidate_lock` → journal handle → a page's lock →
//! `xattr_sem` → extending writes, orphans → `i_data_sem` → a group's lock → a buffer's lock → (spin) `i_es_tree`, `i_times`, tables
//! of inodes and pages. Within the journal: see [`jbd2`].
//!
//! * Nobody waits for `i_mutex` with `i_data_sem` held: [`dio_lock::DioLock::retake_lock`] gives the semaphore back first.
//! * A write is counted before its first unlock (G1), and the count goes when everything else is done.
//! * After any unlock and lock all checks are made anew.
//! * Memory is faulted in before `i_data_sem` is taken (G6).
//! * A task has one handle at most, and starts none under anything below it in the order. Nobody with a handle waits for a commit.
//! * No completion waits for `i_mutex`: whoever holds it may be waiting for the completion (G14).
//! * A completion in an interrupt neither sleeps nor allocates; what must, goes to a worker.
//!
//! # Races, and what closes them
//!
//! By the numbers that the sources mark them with. `tests/races` has a test for each, with the interleaving in words; the test run
//! switches each fix off in turn ([`kernel_shim::testing::Fix`]), and sees the test fail.
//!
//! | race | without the fix | closed by | test |
//! |---|---|---|---|
//! | G1 | one file's data in another's blocks | dio_lock.rs `DioLock::release`: counted, then unlocked | `g1_counted_before_the_unlock` |
//! | G2 | a write lands in blocks that were freed | fallocate.rs, truncate.rs `stop_direct_io` | `g2_punching_a_hole_waits` |
//! | G3 | parts of a write land elsewhere in the file | fallocate.rs, truncate.rs `stop_direct_io` | `g3_whoever_moves_blocks_waits` |
//! | G4 | acknowledged data reads as zeros | page_io.rs `IoEnd`: owned by its write | `g4_each_write_has_its_own_state` |
//! | G5 | freed memory is used | kernel-shim fs/direct_io.rs `dio_async`: a reference of its own | `g5_completion_before_submission_ends` |
//! | G6 | deadlock with page faults | inode.rs `ext4_ext_direct_IO`: `fault_in` before the window | `g6_page_faults_come_before_the_window` |
//! | G7 | panic | file.rs `ext4_set_verdict`: always one | `g7_fcntl_in_the_middle` |
//! | G8 | a frozen file system changes | file.rs `ext4_file_write`, sb_remount.rs `ext4_freeze` | `g8_nothing_is_written_while_frozen` |
//! | G9 | good data is zeroed | kernel-shim fs/direct_io/submit.rs `submit_mapped`: only what was pinned | `g9_a_fault_half_way_zeroes_nothing` |
//! | G10 | a truncated file has its old size | kernel-shim mm/filemap.rs `generic_file_direct_write`: the size is not its business | `g10_the_size_does_not_come_back` |
//! | G11 | the cache shows old data for good | kernel-shim fs/direct_io.rs `dio_end` | `g11_pages_are_dropped_when_the_data_is_there` |
//! | G12 | of two writes one is lost | aops.rs `ext4_buffered_write_iter`, `ext4_perform_write` | `g12_buffered_writers_wait` |
//! | G13 | acknowledged O_DSYNC data is lost by a power failure | kernel-shim fs/direct_io.rs `dio_complete` | `g13_async_dsync_is_durable_when_told` |
//! | G14 | truncate and a write wait for each other | page_io.rs `ext4_end_io_convert`: no `i_mutex` | `g14_the_end_of_a_write_takes_no_i_mutex` |
//! | G15 | fsync returns, and the data is not found again | kernel-shim mm/writeback.rs `Writeback::io_done` | `g15_fsync_waits_for_conversions` |
//! | G16 | more is converted than was written, or nothing can be | fallocate.rs, extents/insert.rs `merge_rule` | `g16_what_is_under_io_is_not_merged` |
//! | G17 | one write zeroes another's data | inode.rs `ext4_dio_prepare`: alone in the device | `g17_a_write_that_zeroes_is_alone` |
//! | G18 | one write zeroes another's data | file.rs `ext4_dio_verdict_change`: whole blocks, wherever the end is | `g18_past_the_end_is_not_aligned` |
//! | G19 | a write waits for ever | inode.rs `ext4_dio_prepare`: waits with `i_mutex` | `g19_newcomers_stand_behind_a_write_that_zeroes` |
//! | G20 | strangers wait for each other | page_io.rs `AioInfo`: one per inode | `g20_strangers_do_not_wait_for_each_other` |
//! | G21 | truncate waits for ever | truncate.rs `ext4_inode_dio_begin_unlocked` | `g21_readers_do_not_starve_who_waits_for_them` |
//! | G22 | another file's data is read | setattr.rs `ext4_setattr_size_locked`: the gate stays closed | `g22_no_read_between_the_waiting_and_the_size` |
//! | G23 | overwrites one after the other | file.rs `ext4_overwrite_io_many` | `g23_an_overwrite_of_several_extents` |
//! | G24 | acknowledged data is past the end after a crash | file.rs `ext4_dio_verdict`: past `i_disksize` extends | `g24_past_the_size_on_disk` |
//! | G25 | zeros in the cache over what was written | kernel-shim fs/direct_io.rs `dio_end`: size, then pages | `g25_pages_are_dropped_after_the_size_moved` |
//! | G26 | O_SYNC data is past the end after a crash | kernel-shim fs/direct_io.rs `dio_complete`: size, then sync | `g26_the_size_is_durable_when_told` |
//! | G27 | a longer file is short on disk | aops.rs `ext4_update_disksize`, dio.rs `extend_sizes` | `g27_both_sizes_are_seen_under_one_lock` |
//! | G28 | data in blocks that are not the file's | file.rs `ext4_dio_write_checked`: one lock throughout | `g28_no_answer_is_older_than_its_lock` |
//! | G29 | deleted data is seen | extents/convert.rs `split_before_io`: whole, or not at all | `g29_no_block_for_a_cut_shows_nothing` |
//! | G30 | deleted data is seen | kernel-shim fs/direct_io.rs `dio_end`, page_io.rs `ext4_end_io_convert` | `g30_a_failed_write_converts_nothing` |
//! | G31 | locks are held for ever | inode.rs `ext4_ext_direct_IO`: one way out | `g31_enomem_leaves_the_locks_right` |
//! | G32 | who waits for conversions waits for ever | page_io.rs `ext4_end_io_convert`, aops.rs `Unwritten` | `g32_a_write_that_fails_is_counted_out` |
//! | G33 | a write ends in another mode than it began in | ioctl.rs `setflags_locked` | `g33_flags_change_with_nothing_in_flight` |
//! | G34 | a write sleeps that must not | kernel-shim fs/kiocb.rs `Kiocb::is_nowait`, wherever it is asked | `g34_nowait_does_not_sleep` |
//! | G35 | nothing is written while reads are in the device | inode.rs `ext4_ext_direct_IO`: waits only to zero | `g35_overwrites_go_past_reads_in_flight` |
//! | G36 | one file's data in another's blocks | truncate.rs `stop_direct_io`: journal or not | `g36_truncate_waits_without_a_journal` |
//! | G37 | an append is taken for an overwrite | file.rs `ext4_dio_write_checked`: checks first | `g37_checks_before_the_verdict` |
//!
//! # C and Rust
//!
//! | fs/ext4 | here |
//! |---|---|
//! | file.c | [`mod@file`] |
//! | inode.c | [`inode`]; reading and writing inodes in [`iget`]; tables of operations, `iget`, mount in `ops` |
//! | inode.c: `address_space`, buffered writes, writing back | [`aops`] |
//! | page-io.c | [`page_io`] |
//! | fsync.c | [`fsync`] |
//! | extents.c, extents_status.c, indirect.c | [`extents`], [`extents_status`], [`indirect`] |
//! | parts of inode.c and extents.c: truncate, setattr, fallocate, FIEMAP | [`truncate`], [`setattr`], [`fallocate`], [`fiemap`] |
//! | xattr.c, ioctl.c | [`xattr`], [`ioctl`] |
//! | super.c | [`sb`], its parts [`sb_geometry`], [`sb_options`], [`sb_error`] and [`sb_remount`]; sysfs.c, statfs: [`sb_stats`] |
//! | orphan.c; `ext4_evict_inode` | [`orphan`], its part `orphan_file`; `evict` |
//! | fs/fs-writeback.c | [`writeback`] |
//! | balloc.c, block_validity.c, bitmap.c | [`balloc`], [`block_validity`], `bitmap` |
//! | mballoc.c, ialloc.c | [`mballoc`], [`ialloc`] |
//! | dir.c, namei.c, symlink.c, hash.c | [`dir`], [`namei`], its parts `dx` and `dirblock`, [`symlink`], [`hash`] |
//! | the VFS's namei.c, open.c, stat.c | [`path`] |
//! | ext4.h | [`ext4`], [`disk`], [`corrupt`], [`checksum`] |
//! | nothing | [`dio_lock`]: what C does with statements, as a type |
//! | lib/rbtree.c | `chunks`: sorted lists |
//!
//! # Where it deviates from C
//!
//! Each place bears `PORT:` in the source.
//!
//! | what | C | here | why |
//! |---|---|---|---|
//! | held `i_mutex` | a rule | [`Locked`], a value that moves | leaving without it does not compile |
//! | `kiocb.private` | a pointer used by submission and completion | moves into the request | no two owners (G4, G5) |
//! | write checks | after the verdict | before | `O_APPEND` moves the write (G37) |
//! | counting in flight | after the unlock | before | G1 |
//! | `ext4_map_blocks` | looks up, allocates and converts, as its flags say | looks up; `ext4_map_create_blocks` does the rest | who looks up needs no handle |
//! | the verdict's look-up | made again by `direct_IO` | handed on in `kiocb.private` | the count keeps it true |
//! | verdict over several extents | one look-up, so no | each extent is asked, in the default mode | G23 |
//! | bad address half-way | rest of the blocks from the zero page | what was before it is written, the rest keeps its data | G9 |
//! | `O_DSYNC` when queued | synced at submission | synced at completion | G13 |
//! | cached pages | dropped after submission | dropped at completion | G11 |
//! | buffered writes | delayed allocation | unwritten blocks at once, converted when the data is there | ENOSPC is known when `write()` returns, and nothing is reserved |
//! | `data=journal` | data goes to the journal first | data is ordered, and goes through the page cache | direct I/O is what this is about |
//! | unaligned at or past `i_size` | taken for aligned | unaligned | G18 |
//! | aio mutex and wait queue | 37 for all inodes of all mounts | one per inode | G20 |
//! | waiting for conversions before an unaligned write | with `i_mutex` free | under it, for all in flight | G19 |
//! | extent status tree | red-black tree, rwlock | sorted chunks, bounded in all, spin lock; last hits in front | no allocation that must succeed |
//! | changing an extent tree | a function for each case, undone by hand | one splice from the leaf up, after all that can fail | G29 |
//! | checksum of an extent node | at each change | when the transaction is committed, by a trigger | thousands of changes, one checksum |
//! | checksum of the super block | at each change | as that of a node | each append is on the list of orphans for a while |
//! | checksum of a block bitmap | computed anew | changed by what the bits that change make of it | a few bytes for 4 KiB |
//! | checksum of an inode | computed anew | changed by what its fields make of it | fewer bytes, and damage elsewhere in it is not blessed |
//! | unwritten extents side by side | merged at any time | not while I/O into the file is under way | G16 |
//! | ZERO_RANGE with no block for a split | ENOSPC | zeroed on the device, and written | the file reads the same |
//! | truncate of indirect blocks | branches are cut off, then freed | each number goes in the transaction that frees its block | no block is lost |
//! | times | reach the disk with the inode's next change | stay in memory until fsync, sync or unmount (`lazytime`) | no journal handle in the write path |
//! | SEEK_DATA, SEEK_HOLE | look for dirty pages over unwritten blocks | write them first | the map has all there is to know |
//! | attribute blocks | shared by inodes with the same attributes | read and un-shared, not newly shared | no cache of blocks by hash |
//! | blocks of a direct write | allocated while it is submitted, conversion noted in a shared `io_end` | allocated before the first bio | submission and completion share nothing (G4, G5) |
//! | writes into holes, appends | `i_mutex` throughout | in flight, whole blocks in the default mode | see the verdict above |
//! | a write that must not sleep | sleeps for `i_mutex` at `retake_lock` | returns without it | `NOWAIT` (G34) |
//! | blocks of a committing transaction | copied when somebody changes them | copied while the transaction is closed | no second state of a buffer |
//! | what jbd2 keeps of a buffer | hangs on the buffer | in a table by block number | the buffer cache knows nothing of journals |
//! | inode table not zeroed yet | zeroed by a thread | zeroed when its first inode is made | no thread |
//! | names in memory | dcache | none: looked up on disk, under the directory's `i_mutex` | smaller |
//! | `errors=panic` | panics | read-only from then on | no image panics |
//! | half a commit block, and its first sector | damage: no mount | a commit block | it has all there is to it |
//! | a log that is not empty, `RECOVER` not set | thrown away | replayed | it is what `e2fsck` asks to be done |
//! | read-only-compatible features that are not there | no mount for writing | mounted read-only, and told | what can be read can be read |
//! | unmounting a frozen file system | stays frozen without a mount | `EBUSY` | nobody could thaw it |
//!
//! # Limits
//!
//! Refused with a message, or mounted read-only where the format allows: quota, encryption, verity, casefold, inline data, bigalloc,
//! multiple-mount protection, DAX, journals on other devices, journals with fast commits that are not replayed. Values in inodes of
//! their own (`ea_inode`) and access control lists are kept, and not used. Files are not defragmented, so nobody swaps extents under a
//! write in flight (G3). There is no permission check: that is the caller's VFS's.
//!
//! `src/` has no `unsafe`, no `std` and no `alloc` crate, and does not know what it runs on: [`kernel_shim::sched`] does.
#![no_std]
#![forbid(unsafe_code)]

pub mod aops;
pub mod balloc;
mod bitmap;
pub mod block_validity;
pub mod checksum;
mod chunks;
pub mod corrupt;
pub mod dio;
pub mod dio_lock;
pub mod dir;
pub(crate) mod dirblock;
pub mod disk;
mod dx;
mod evict;
pub mod ext4;
pub mod ext4_jbd2;
pub mod extents;
pub mod extents_status;
pub mod fallocate;
pub mod fiemap;
pub mod file;
pub mod fsync;
pub mod hash;
pub mod ialloc;
pub mod iget;
pub mod indirect;
pub mod inode;
pub mod ioctl;
pub mod jbd2;
mod le;
pub mod mballoc;
pub mod namei;
mod ops;
pub mod orphan;
mod orphan_file;
pub mod page_io;
pub mod path;
pub mod sb;
pub mod sb_error;
pub mod sb_geometry;
pub mod sb_options;
pub mod sb_remount;
pub mod sb_stats;
pub mod setattr;
pub mod symlink;
pub mod truncate;
pub mod writeback;
pub mod xattr;

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use kernel_shim::alloc::{Arc, PoolBox};
use kernel_shim::sync::{Mutex, RwSemaphore, SpinLock};

pub use ops::{ext4_iget, ext4_mount, ext4_open, ext4_sync_fs, ext4_umount};
pub use sb_remount::{GoingDown, ext4_force_shutdown, ext4_freeze, ext4_remount, ext4_unfreeze};
pub use sb_stats::{Ext4Statfs, Ext4Stats, ext4_sb_stats, ext4_statfs};

/// The order in the head of this file, as lockdep is told it: by name, and beside the locks what is waited for like one. What is in
/// none of the lists nests in one way only, too, whichever is seen first.
#[rustfmt::skip]
const LOCK_ORDER: &[&[&str]] = &[
    &["sb_writers", "aio_mutex", "i_mutex", "i_mutex/1", "i_dio_count", "invalidate_lock", "page_writeback", "sb_internal",
      "jbd2_commit", "jbd2_handle", "page_io", "page", "xattr_sem", "extending", "orphan_inode", "s_orphan_lock",
      "i_data_sem", "group", "buffer", "buffer/1", "bio"],
    // Directories: the upper one or the one of the lower number, the other one, what is in them; all above files.
    &["sb_writers", "s_vfs_rename_mutex", "i_mutex_dir", "i_mutex_dir/1", "i_mutex_dir/2", "i_mutex_dir/3", "i_mutex"],
    // Inodes that nobody else knows yet, or any more.
    &["jbd2_handle", "i_mutex/4", "i_data_sem"],
    &["jbd2_handle", "i_mutex_dir/4", "i_data_sem"],
    &["i_mutex_dir", "i_mutex/5", "page_writeback"],
    &["i_mutex_dir", "i_mutex_dir/5", "page_writeback"],
    // Spinlocks.
    &["bio", "j_state_lock", "i_es_lock"],
    &["bio", "jh_hash", "jh_state", "t_lists"],
    &["i_data_sem", "i_es_lock"],
    &["i_data_sem", "i_times"],
    &["bio", "i_pages"],
    &["bio", "bh_hash"],
    &["bio", "inode_hash"],
    // The journal's own.
    &["jbd2_commit", "j_checkpoint_mutex", "j_spare", "buffer", "j_sb_buf", "bio"],
];

/// The file system's type, for the shim's generic VFS objects.
pub enum Ext4 {}

/// `struct inode` of an ext4 file.
pub type Inode = kernel_shim::fs::Inode<Ext4>;
/// A counted reference to an inode.
pub type IRef = kernel_shim::fs::IRef<Ext4>;
/// An inode whose `i_mutex` is held.
pub type Locked<'i> = kernel_shim::fs::Locked<'i, Ext4>;
/// One direct I/O in flight.
pub type DioCount<'i> = kernel_shim::fs::DioCount<'i, Ext4>;
/// An open file.
pub type File = kernel_shim::fs::File<Ext4>;
/// One read or write.
pub type Kiocb<'f> = kernel_shim::fs::Kiocb<'f, Ext4>;
/// A mount.
pub type SuperBlock = kernel_shim::fs::SuperBlock<Ext4>;

/// What `kiocb.private` holds. In C one `void *` is both, one after the other.
#[derive(Debug)]
pub enum Private {
    /// `iocb->private = &overwrite`: file.rs's verdict, taken once by inode.rs.
    Verdict(file::Verdict),
    /// `iocb->private = io_end`: the write's companion, which goes on into the request.
    IoEnd(PoolBox<page_io::IoEnd>),
}

bitflags::bitflags! {
    /// C's `EXT4_STATE_*`: what is known of an inode in memory only.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ext4State: u32 {
        /// Not yet written to its place in the table.
        #[doc(alias = "EXT4_STATE_NEW")]
        const NEW = 1 << 1;
        /// Has extended attributes behind `i_extra_isize`.
        #[doc(alias = "EXT4_STATE_XATTR")]
        const XATTR = 1 << 2;
        /// Known to have no `security.capability`, so that a write need not look. Changed under `xattr_sem`.
        #[doc(alias = "S_NOSEC")]
        const NOSEC = 1 << 7;
        /// Metadata other than the table block was changed without a journal: fsync writes all.
        const UNSYNCED_META = 1 << 8;
    }
}

/// C's `struct ext4_inode_info`.
pub struct Ext4InodeInfo {
    /// The map of the file, reached through the guard. Lock order: `i_mutex`, then this; nobody who holds it waits for
    /// `i_mutex`.
    pub i_data_sem: RwSemaphore<extents::ExtentTree>,
    /// What recent look-ups found. Has a spin lock of its own, below `i_data_sem`.
    pub i_es_tree: extents_status::ExtentStatusTree,
    i_flags: AtomicU32,
    i_state: AtomicU32,
    /// Seed of this inode's metadata checksums.
    pub i_csum_seed: u32,
    /// NFS generation.
    pub i_generation: u32,
    /// Bytes of the inode past the old 128 that are in use.
    pub i_extra_isize: u16,
    /// When the file was made.
    pub i_crtime: kernel_shim::time::Timespec64,
    /// The size on disk, in bytes: what a crash leaves. Changed with `i_data_sem` held for writing. At most `i_size`, but while
    /// truncate is under way.
    pub i_disksize: AtomicI64,
    /// Disk space in units of 512 bytes.
    pub i_blocks: AtomicU64,
    /// Write-back of unwritten blocks that is under way, from before their extents are cut out (`PRE_IO`) until they are converted: as long as there
    /// is any, no unwritten extents are merged nor zeroed in parts (G16, G29). Direct I/O is counted in `i_dio_count`.
    pub i_unwritten: AtomicU32,
    /// Block of extended attributes, or 0. Under `xattr_sem`.
    pub i_file_acl: AtomicU64,
    /// Change counter.
    pub i_version: AtomicU64,
    /// When it was deleted. What the disk has there is another if it is on the list of orphans: see `i_dtime_on_disk`.
    pub i_dtime: AtomicU32,
    /// Its place among the orphans, if it is one.
    i_orphan: SpinLock<Option<Arc<orphan::Orphan>>>,
    /// The transaction that last wrote the inode, for fsync.
    pub i_sync_tid: AtomicU32,
    /// The same for what fdatasync needs.
    pub i_datasync_tid: AtomicU32,
    /// Extended attributes. Below a handle, above `i_data_sem`.
    pub xattr_sem: RwSemaphore<()>,
    /// What the allocator keeps ready for this file.
    pub i_prealloc: mballoc::InodePrealloc,
    /// Closed while no direct read may go without `i_mutex`.
    pub i_dio_gate: truncate::DioGate,
    /// For asynchronous writes that are not whole blocks.
    pub aio: page_io::AioInfo,
    /// Held while the inode goes to its table block, so that nobody takes "not dirty" for "on disk". Below `i_mutex`, which its
    /// holder never waits for. For mounts without a journal.
    pub(crate) i_sync: Mutex<()>,
    /// The table block in the buffer cache may be newer than on disk because of this inode. For mounts without a journal.
    pub(crate) i_unsynced: AtomicBool,
}

impl Ext4InodeInfo {
    /// What the VFS does not keep of an inode that was read from the disk, or that is being made.
    pub fn new(disk: &iget::Ext4InodeDisk) -> Self {
        Self {
            i_data_sem: RwSemaphore::named("i_data_sem", disk.tree()),
            i_es_tree: extents_status::ExtentStatusTree::new(),
            i_flags: AtomicU32::new(disk.i_flags.bits()),
            i_state: AtomicU32::new(0),
            i_csum_seed: disk.i_csum_seed,
            i_generation: disk.i_generation,
            i_extra_isize: disk.i_extra_isize,
            i_crtime: disk.i_crtime,
            i_disksize: AtomicI64::new(i64::try_from(disk.i_size).unwrap_or(i64::MAX)),
            i_blocks: AtomicU64::new(disk.i_blocks),
            i_unwritten: AtomicU32::new(0),
            i_file_acl: AtomicU64::new(disk.i_file_acl.0),
            i_version: AtomicU64::new(disk.i_version),
            i_dtime: AtomicU32::new(disk.i_dtime),
            i_orphan: SpinLock::named("i_orphan", None),
            i_sync_tid: AtomicU32::new(0),
            i_datasync_tid: AtomicU32::new(0),
            xattr_sem: RwSemaphore::named("xattr_sem", ()),
            i_prealloc: mballoc::InodePrealloc::default(),
            i_dio_gate: truncate::DioGate::new(),
            aio: page_io::AioInfo::new(),
            i_sync: Mutex::named("i_sync", ()),
            i_unsynced: AtomicBool::new(false),
        }
    }

    /// Its place among the orphans.
    pub fn orphan(&self) -> Option<Arc<orphan::Orphan>> {
        self.i_orphan.lock().clone()
    }

    pub(crate) fn set_orphan(&self, orphan: Option<Arc<orphan::Orphan>>) {
        // What was there is dropped with the lock released.
        let _before = core::mem::replace(&mut *self.i_orphan.lock(), orphan);
    }

    /// What belongs in `i_dtime` on the disk: the number of the next orphan on the list, or when it was deleted.
    pub(crate) fn i_dtime_on_disk(&self) -> u32 {
        match &*self.i_orphan.lock() {
            Some(orphan) => orphan.next(),
            None => self.i_dtime.load(Ordering::Relaxed),
        }
    }

    /// `i_flags` on disk.
    #[inline]
    pub fn i_flags(&self) -> ext4::InodeFlags {
        ext4::InodeFlags::from_bits_retain(self.i_flags.load(Ordering::Relaxed))
    }

    /// C's `ext4_set_inode_flag()` and `ext4_clear_inode_flag()`. The caller holds `i_mutex`, and writes the inode.
    pub fn set_flags(&self, flags: ext4::InodeFlags, on: bool) {
        if on {
            self.i_flags.fetch_or(flags.bits(), Ordering::Relaxed);
        } else {
            self.i_flags.fetch_and(!flags.bits(), Ordering::Relaxed);
        }
    }

    /// C's `ext4_test_inode_state()`.
    #[inline]
    pub fn state(&self, state: Ext4State) -> bool {
        self.i_state.load(Ordering::Acquire) & state.bits() != 0
    }

    /// C's `ext4_set_inode_state()`.
    pub fn state_set(&self, state: Ext4State) {
        self.i_state.fetch_or(state.bits(), Ordering::AcqRel);
    }

    /// Clears it; whether it was set.
    #[doc(alias = "ext4_clear_inode_state")]
    pub fn state_take(&self, state: Ext4State) -> bool {
        // Most of the time there is nothing to clear.
        self.state(state) && self.i_state.fetch_and(!state.bits(), Ordering::AcqRel) & state.bits() != 0
    }

    /// Whether the file is mapped by extents: C's `ext4_test_inode_flag(inode, EXT4_INODE_EXTENTS)`.
    #[inline]
    pub fn is_extents(&self) -> bool {
        self.i_flags().contains(ext4::InodeFlags::EXTENTS)
    }
}
