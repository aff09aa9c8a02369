// SPDX-License-Identifier: GPL-2.0-only
//! Races of the patch's history, by their numbers. Each test fails when the fix it is about is switched off: the last
//! one sees to that, and prints the table that stands in the documentation of the crate.
//!
//! W is the writer that is without `i_mutex`, T whoever takes blocks away meanwhile: truncate, fallocate. Interleavings
//! are not left to chance: the disk keeps writes of data until it is told to let them go, and a thread acts, or lets
//! others act, where it comes to a tracepoint.

use std::cell::{Cell, RefCell};
use std::io::{Write, stderr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ext4_dio::aops::ext4_writepages;
use ext4_dio::ext4::{InodeFlags, Lblk, MapBlocks, MapFlags};
use ext4_dio::extents::ext4_ext_next;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::ext4_file_write;
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::inode::ext4_map_blocks;
use ext4_dio::ioctl::{ext4_ioctl_getflags, ext4_ioctl_setflags};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, GoingDown, Kiocb, ext4_force_shutdown, ext4_freeze, ext4_statfs, ext4_umount, ext4_unfreeze};
use ext4_dio_tests::alone::run_alone;
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Mkfs, poke, stamped, stamped_blocks};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::alloc::fault::{allocations, fail_nth_allocation};
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IoVec, IocbFlags, IovIter, OpenFlags, RwfFlags, UserMemory};
use kernel_shim::sync::{SpinLock, WaitQueue};
use kernel_shim::testing::{Fix, on_trace};

mod g13_g24;
mod g1_g12;
mod g25_g37;
mod table;

/// Bytes in a block, if the test does not care.
const BLOCK: usize = 4096;
/// Blocks of `/unwritten`.
const UNWRITTEN_BLOCKS: usize = 64;
/// What is kept in the device: writes of files' data.
const DATA: OpMask = OpMask::WRITE.union(OpMask::NOT_META);
/// What a disk holds where no file has written.
const STALE: u8 = 0xdb;

const KEEP: FallocFlags = FallocFlags::KEEP_SIZE;
const PUNCH: FallocFlags = FallocFlags::PUNCH_HOLE.union(KEEP);

/// Where block `n` of a file begins.
fn block(n: usize) -> i64 {
    (n * BLOCK) as i64
}

/// A mount whose blocks are so many bytes.
fn mount(mode: &str, block_size: u32) -> Mount {
    Mount::with(&image(&Mkfs { block_size, ..Mkfs::default() }), mode, auto())
}

/// The modes, and sizes of blocks with them.
fn modes_and_sizes() -> impl Iterator<Item = (&'static str, u32)> {
    [(EXCLUSIVE, 1024), (I_DATA_SEM, 2048)].into_iter().chain(MODES.map(|mode| (mode, 4096))).chain([(IN_FLIGHT, 1024)])
}

/// A small disk without a journal: what is freed can be had at once.
fn small_disk(mode: &str) -> Mount {
    let spec = Mkfs { features: "^has_journal", size_kib: 4 << 10, inodes: 64, args: &["-m", "0"], ..Mkfs::default() };
    Mount::with(&image(&spec), mode, auto())
}

/// Nobody gets a block any more, unless somebody gives one back.
fn fill_up(m: &Mount) {
    assert_eq!(ext4_fallocate(m.open("/pieces").f_inode(), KEEP, 0, 1 << 30), Err(ENOSPC));
}

/// Where the longest extent of `/data` begins, and its length, in blocks.
fn longest_extent(file: &KArc<File>) -> (usize, usize) {
    let extents = std::iter::successors(ext4_ext_next(file.f_inode(), Lblk(0)).ok(), |es| {
        Some(es.end()).filter(|end| *end < DATA_BLOCKS).and_then(|end| ext4_ext_next(file.f_inode(), Lblk(end)).ok())
    });
    extents.map(|es| (es.lblk().0 as usize, es.len() as usize)).max_by_key(|(_, len)| *len).expect("it has extents")
}

/// The blocks of `/unwritten`, which is one extent, hold what somebody else has deleted.
fn make_stale(m: &Mount) {
    let file = m.open("/unwritten");
    let mut map = MapBlocks::new(Lblk(0), UNWRITTEN_BLOCKS as u32);
    assert_eq!(ext4_map_blocks(file.f_inode(), &mut map), Ok(UNWRITTEN_BLOCKS as u32));
    assert!(map.m_flags.contains(MapFlags::UNWRITTEN));
    poke(m.sb.s_bdev(), map.m_pblk.0 * BLOCK as u64, &[STALE; UNWRITTEN_BLOCKS * BLOCK]);
}

/// The byte that all of a file's `len` bytes from `pos` on are; none if there are fewer, or others.
fn filled(file: &KArc<File>, pos: i64, len: usize) -> Option<u8> {
    let bytes = read(file, pos, len).expect("readable");
    bytes.first().copied().filter(|first| bytes.len() == len && bytes.iter().all(|byte| byte == first))
}

/// A write that must not sleep.
fn write_nowait(file: &KArc<File>, pos: i64, bytes: &[u8]) -> Result<usize> {
    let iov = [IoVec::source(bytes)];
    let mut iocb = Kiocb::new_sync(file, pos);
    iocb.ki_flags |= IocbFlags::NOWAIT;
    ext4_file_write(&mut iocb, &mut IovIter::new(&iov))
}
