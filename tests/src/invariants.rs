// SPDX-License-Identifier: GPL-2.0-only
//! What must be true of a mount at every moment, looked at while tasks stand where they stand: nothing here sleeps, or waits for a lock.
//!
//! # At each step ([`Watch::step`])
//!
//! * No block under a write in flight is free in its bitmap. A block that is freed under one is seen free by the first step after that,
//!   before anybody can allocate it.
//! * No two writes in flight overlap, if one of them is of metadata: neither knows of the other, so the last one wins.
//! * `i_dio_count`, `i_unwritten`, the `io_end`s in use and the writers inside are not negative, that is have not wrapped.
//! * In worlds whose files only grow, no `i_size` gets smaller.
//! * Nothing is written to a frozen file system.
//!
//! # At each [`DEEP`]-th step, and whenever nobody runs ([`Watch::deep`])
//!
//! * No block is mapped twice, by one file or by two, counting the nodes of extent trees; each is one that was free when the file system
//!   was made, and is not free now. The trees are read here, not by what is tested. A tree is left out while somebody changes it.
//! * In each tree, extents are in order and do not overlap.
//! * `i_disksize` is at most `i_size`, but for truncate under way, and at most what anybody asked for.
//!
//! # At rest ([`Watch::rest`])
//!
//! * All of that; no lock is held, nothing is counted, no `io_end` is out, nothing is in flight.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};

use ext4_dio::ext4::{Extent, ExtentHeader, ExtentIdx, Group};
use ext4_dio::extents::ExtentTree;
use ext4_dio::{Inode, SuperBlock};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::sim::InFlight;
use kernel_shim::block::{ReqOp, ReqOpf};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::sync::RwSemReadGuard;

/// After so many steps all is looked at.
pub const DEEP: u64 = 16;

/// More than any count in a world can be: a count that is larger went below 0.
const WRAPPED: u32 = 1 << 20;

/// What is remembered of a file from one look to the next.
#[derive(Default)]
pub struct Watched {
    /// Of which inode, so that a new one begins anew.
    ino: AtomicU64,
    generation: AtomicU32,
    size: AtomicI64,
    /// How many operations that make it smaller are under way.
    pub truncating: AtomicU32,
}

/// Looks at a mount.
pub struct Watch {
    sb: KArc<SuperBlock>,
    bitmaps: Vec<BufferHead>,
    /// The bitmaps as they were before the first file.
    used_before: Vec<Vec<u8>>,
    /// Files only grow.
    pub only_grows: AtomicBool,
    /// Nobody may write.
    pub frozen: AtomicBool,
    /// No file may reach further than this.
    pub limit: AtomicI64,
    steps: AtomicU64,
    deep: AtomicU64,
}

/// A piece of the disk that somebody has, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    start: u64,
    len: u64,
    /// Which of the files looked at.
    file: usize,
    /// A node of its tree.
    node: bool,
}

impl Watch {
    /// Of a mount on which there is no file yet. Reads the bitmaps; sleeps.
    pub fn new(sb: &KArc<SuperBlock>) -> Self {
        let sbi = sb.s_fs_info();
        let bitmaps: Vec<BufferHead> =
            (0..sbi.s_groups_count).map(|g| sbi.ext4_read_block_bitmap(Group(g)).expect("a bitmap")).collect();
        let used_before = bitmaps.iter().map(|bh| bh.read().to_vec()).collect();
        Self {
            sb: sb.clone(),
            bitmaps,
            used_before,
            only_grows: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            limit: AtomicI64::new(i64::MAX),
            steps: AtomicU64::new(0),
            deep: AtomicU64::new(0),
        }
    }

    /// How often it has looked, and how often at all there is.
    pub fn looks(&self) -> (u64, u64) {
        (self.steps.load(SeqCst), self.deep.load(SeqCst))
    }

    /// Where a block's bit is: its group, and which of the bits.
    fn bit(&self, block: u64) -> Option<(usize, usize)> {
        let sbi = self.sb.s_fs_info();
        let at = block.checked_sub(u64::from(sbi.s_first_data_block))?;
        let per_group = u64::from(sbi.s_blocks_per_group);
        let group = (at / per_group) as usize;
        (group < self.bitmaps.len()).then_some((group, (at % per_group) as usize))
    }

    /// Whether a block is used; `None` if somebody changes the bitmap just now, or there is no such block.
    fn used(&self, block: u64) -> Option<bool> {
        let (group, bit) = self.bit(block)?;
        let map = self.bitmaps[group].try_read()?;
        Some(map[bit / 8] >> (bit % 8) & 1 == 1)
    }

    /// What costs little. `disk`: what is in flight now. `files`: those that there are, with what is remembered of them.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn step<'a>(
        &self,
        disk: &[InFlight],
        files: impl Iterator<Item = (&'a Inode, &'a Watched)>,
    ) -> Result<(), String> {
        self.steps.fetch_add(1, SeqCst);
        for (n, event) in disk.iter().enumerate().filter(|(_, event)| event.opf.op() == ReqOp::Write) {
            self.check_in_flight(event)?;
            if let Some(other) = disk[..n].iter().find(|other| clash(event, other)) {
                return Err(format!("writes in flight overlap: {event:?} and {other:?}"));
            }
        }
        for (inode, watched) in files {
            self.check_counts(inode)?;
            self.check_size(inode, watched)?;
        }
        let dio = &self.sb.s_fs_info().dio;
        if dio.io_ends_available() > dio.io_ends() {
            return Err("more io_ends were given back than there are".to_string());
        }
        Ok(())
    }

    fn check_in_flight(&self, event: &InFlight) -> Result<(), String> {
        if self.frozen.load(SeqCst) {
            return Err(format!("written while frozen: {event:?}"));
        }
        if event.opf.contains(ReqOpf::META) {
            return Ok(());
        }
        let per_block = u64::from(self.sb.s_fs_info().s_blocksize) / 512;
        let end = (event.sector + u64::from(event.bytes / 512)).div_ceil(per_block);
        for block in event.sector / per_block..end {
            if self.used(block) == Some(false) {
                return Err(format!("block {block} is free, and a write of it is in flight: {event:?}"));
            }
        }
        Ok(())
    }

    fn check_counts(&self, inode: &Inode) -> Result<(), String> {
        let count = inode.i_dio_count();
        let unwritten = inode.i_private().i_unwritten.load(SeqCst);
        if count < 0 || count as u32 > WRAPPED || unwritten > WRAPPED {
            return Err(format!("inode {}: i_dio_count {count}, i_unwritten {unwritten}", inode.i_ino()));
        }
        Ok(())
    }

    fn check_size(&self, inode: &Inode, watched: &Watched) -> Result<(), String> {
        let size = inode.i_size();
        let same = watched.ino.swap(inode.i_ino(), SeqCst) == inode.i_ino()
            && watched.generation.swap(inode.i_private().i_generation, SeqCst) == inode.i_private().i_generation;
        let before = watched.size.swap(size, SeqCst);
        if same && size < before && self.only_grows.load(SeqCst) {
            return Err(format!("inode {}: i_size went from {before} to {size}", inode.i_ino()));
        }
        Ok(())
    }

    /// What costs more. As [`Watch::step`].
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn deep<'a>(&self, files: impl Iterator<Item = (&'a Inode, &'a Watched)>) -> Result<(), String> {
        self.deep.fetch_add(1, SeqCst);
        // All trees at once, so that no block changes hands between two looks.
        let locked: Vec<(&Inode, &Watched, RwSemReadGuard<'_, ExtentTree>)> = files
            .filter(|(inode, _)| inode.i_private().is_extents())
            .filter_map(|(inode, watched)| Some((inode, watched, inode.i_private().i_data_sem.try_read()?)))
            .collect();
        let mut pieces = Vec::new();
        for (n, (inode, watched, tree)) in locked.iter().enumerate() {
            let (size, disksize) = (inode.i_size(), inode.i_private().i_disksize.load(SeqCst));
            if disksize > size && watched.truncating.load(SeqCst) == 0 {
                return Err(format!("inode {}: i_disksize {disksize} past i_size {size}", inode.i_ino()));
            }
            if size.max(disksize) > self.limit.load(SeqCst) {
                return Err(format!(
                    "inode {}: i_size {size}, i_disksize {disksize}: nobody wrote there",
                    inode.i_ino()
                ));
            }
            let ino = inode.i_ino();
            self.node(&tree.i_data()[..], n, &mut 0, &mut pieces).map_err(|what| format!("inode {ino}: {what}"))?;
        }
        pieces.sort_unstable();
        for pair in pieces.windows(2) {
            if pair[0].start + pair[0].len > pair[1].start {
                let ino = |piece: &Piece| locked.get(piece.file).map_or(0, |(inode, ..)| inode.i_ino());
                let (a, b) = (ino(&pair[0]), ino(&pair[1]));
                return Err(format!("mapped twice, by inodes {a} and {b}: {:?} and {:?}", pair[0], pair[1]));
            }
        }
        for piece in &pieces {
            self.check_piece(piece)?;
        }
        Ok(())
    }

    fn check_piece(&self, piece: &Piece) -> Result<(), String> {
        for block in piece.start..piece.start + piece.len {
            let Some((group, bit)) = self.bit(block) else { return Err(format!("outside of the disk: {piece:?}")) };
            if self.used_before[group][bit / 8] >> (bit % 8) & 1 == 1 {
                return Err(format!("block {block} is the file system's own: {piece:?}"));
            }
            if self.used(block) == Some(false) {
                return Err(format!("block {block} is mapped, and free: {piece:?}"));
            }
        }
        Ok(())
    }

    /// Adds what a node of a tree has. `from`: the next logical block there may be. A node that is not at hand is left out.
    fn node(&self, bytes: &[u8], file: usize, from: &mut u64, pieces: &mut Vec<Piece>) -> Result<(), String> {
        let header = ExtentHeader::at(bytes, 0).ok_or("no header")?;
        if header.eh_magic() != 0xf30a || header.eh_entries() > header.eh_max() || header.eh_depth() > 5 {
            return Err(format!("bad header: {:?}", &bytes[..12]));
        }
        for n in 0..usize::from(header.eh_entries()) {
            if header.eh_depth() == 0 {
                let extent = Extent::at(bytes, 12 * (n + 1)).ok_or("no extent")?;
                let (lblk, len) = (u64::from(extent.ee_block()), u64::from(extent.ext4_ext_get_actual_len()));
                if lblk < *from || len == 0 {
                    return Err(format!("extent {n} is of {lblk}+{len}, and {from} was next"));
                }
                *from = lblk + len;
                pieces.push(Piece { start: extent.ext4_ext_pblock().0, len, file, node: false });
                continue;
            }
            let idx = ExtentIdx::at(bytes, 12 * (n + 1)).ok_or("no index")?;
            let block = idx.ext4_idx_pblock().0;
            if u64::from(idx.ei_block()) < *from {
                return Err(format!("index {n} is of {}, and {from} was next", idx.ei_block()));
            }
            pieces.push(Piece { start: block, len: 1, file, node: true });
            if let Some(bh) = self.sb.s_fs_info().buffers.find(block)
                && bh.is_uptodate()
                && let Some(bytes) = bh.try_read()
            {
                self.node(&bytes, file, from, pieces)?;
            }
        }
        Ok(())
    }

    /// What must be true when nothing goes on any more, before anything is closed.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn rest<'a>(
        &self,
        disk: &[InFlight],
        files: impl Iterator<Item = (&'a Inode, &'a Watched)> + Clone,
    ) -> Result<(), String> {
        self.step(disk, files.clone())?;
        self.deep(files.clone())?;
        for (inode, _) in files {
            let (ino, info) = (inode.i_ino(), inode.i_private());
            let held = [
                (inode.is_locked(), "i_mutex"),
                (info.i_data_sem.try_write().is_none(), "i_data_sem"),
                (info.aio.aio_mutex.is_locked(), "the aio mutex"),
                (info.xattr_sem.try_write().is_none(), "xattr_sem"),
                (inode.i_mapping().invalidate_lock.try_write().is_none(), "invalidate_lock"),
                (info.i_dio_gate.is_closed(), "the gate for direct reads"),
            ];
            if let Some((_, what)) = held.iter().find(|(held, _)| *held) {
                return Err(format!("inode {ino}: {what} is held, and nobody runs"));
            }
            let counts = (inode.i_dio_count(), info.i_unwritten.load(SeqCst), info.aio.is_unwritten());
            if counts != (0, 0, false) {
                return Err(format!("inode {ino}: i_dio_count, i_unwritten, i_aiodio_unwritten at rest: {counts:?}"));
            }
        }
        let dio = &self.sb.s_fs_info().dio;
        if dio.io_ends_available() != dio.io_ends() {
            return Err(format!("{} of {} io_ends are there", dio.io_ends_available(), dio.io_ends()));
        }
        Ok(())
    }
}

/// Whether two writes in flight have no order and should have one: direct writes of the same place are their writers' business, metadata is
/// the file system's.
fn clash(a: &InFlight, b: &InFlight) -> bool {
    let meta = |event: &InFlight| event.opf.contains(ReqOpf::META);
    let end = |event: &InFlight| event.sector + u64::from(event.bytes / 512);
    b.opf.op() == ReqOp::Write && (meta(a) || meta(b)) && a.sector < end(b) && b.sector < end(a)
}
