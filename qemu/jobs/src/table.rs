// SPDX-License-Identifier: GPL-2.0-only
//! Generations: which write of each block is the newest, while jobs run and for the checks afterwards.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ext4_dio_protocol::{GEN_ANY, GEN_ZERO, Stamp};
use kernel_shim::pr_err;

use crate::errno;
use crate::target::{Buffer, Opened};

/// Set in an entry while a write of the block is under way: no second one is started, so that "newest" means something.
const BUSY: u32 = 1 << 31;
/// The generation alone.
const GENERATION: u32 = GEN_ANY - 1;
/// Blocks read at once when checking.
const VERIFY_BYTES: usize = 1 << 20;
/// Wrong blocks that get a line each.
const COMPLAINTS: u64 = 8;

/// Which file a table is of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableKey {
    /// Index of the disk.
    pub disk: u32,
    /// Path, empty for the disk itself.
    pub file: String,
}

/// One file's generations.
pub struct Table {
    unit: u32,
    entries: Vec<AtomicU32>,
    /// Written in the step under way.
    touched: Vec<AtomicBool>,
    /// The file has been removed.
    gone: AtomicBool,
}

/// A block taken for writing.
#[derive(Clone, Copy)]
pub struct Claim {
    /// The generation to stamp.
    pub generation: u32,
    block: usize,
}

impl Table {
    /// Bytes per stamp.
    pub fn unit(&self) -> u32 {
        self.unit
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is not one whole block.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a block for writing, unless somebody has it.
    #[inline]
    pub fn claim(&self, block: u64) -> Option<Claim> {
        let block = block as usize;
        let entry = self.entries.get(block)?;
        let old = entry.load(Ordering::Relaxed);
        if old & BUSY != 0 || entry.compare_exchange(old, old | BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        Some(Claim { generation: (old + 1) & GENERATION, block })
    }

    /// The write was acknowledged: its generation is the newest.
    #[inline]
    pub fn acknowledge(&self, claim: &Claim) {
        self.touched[claim.block].store(true, Ordering::Relaxed);
        self.entries[claim.block].store(claim.generation, Ordering::Release);
    }

    /// Ends the claim of a block that was just claimed, with the generation that the claim had.
    pub(crate) fn settle(&self, block: u64) {
        if let Some(entry) = self.entries.get(block as usize) {
            let generation = (entry.load(Ordering::Relaxed) + 1) & GENERATION;
            entry.store(generation, Ordering::Release);
        }
    }

    /// The trim was acknowledged: the block reads as zeros, or as anything on a disk that does not promise more.
    #[inline]
    pub fn acknowledge_trim(&self, claim: &Claim, zero: bool) {
        self.touched[claim.block].store(true, Ordering::Relaxed);
        let state = if zero { GEN_ZERO } else { GEN_ANY };
        self.entries[claim.block].store(claim.generation | state, Ordering::Release);
    }

    /// The file is new: it reads as zeros everywhere. Generations go on, so that what an old file left is told from new blocks.
    pub(crate) fn begin_file(&self) {
        self.gone.store(false, Ordering::Relaxed);
        for entry in &self.entries {
            let generation = entry.load(Ordering::Relaxed) & GENERATION;
            entry.store(generation | GEN_ZERO, Ordering::Relaxed);
        }
    }

    /// The file was removed: there is nothing to be looked at any more.
    pub(crate) fn end_file(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether the file was removed.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// The write failed: what is on the disk is the old or the new; the table keeps the old.
    pub fn abandon(&self, claim: &Claim) {
        self.entries[claim.block].fetch_and(!BUSY, Ordering::Release);
    }

    /// Forgets which blocks were written.
    pub(crate) fn begin_step(&self) {
        for t in &self.touched {
            t.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a block is to be looked at after a step.
    fn is_due(&self, block: usize) -> bool {
        self.touched[block].load(Ordering::Relaxed) || self.entries[block].load(Ordering::Relaxed) & GEN_ZERO != 0
    }

    /// Reads the blocks that were written since [`Table::begin_step`], and those that are to be zeros, and compares: how many are
    /// right, and how many not. What is past the end counts as zeros.
    pub(crate) fn verify(&self, opened: &Opened) -> Result<(u64, u64), String> {
        let unit = self.unit as usize;
        let per_read = (VERIFY_BYTES / unit).max(1);
        let mut buffer = Buffer::new(per_read * unit).ok_or("no memory to read back")?;
        let (mut good, mut bad) = (0, 0);
        let mut at = 0;
        while at < self.len() {
            let n = per_read.min(self.len() - at);
            if !(at..at + n).any(|block| self.is_due(block)) {
                at += n;
                continue;
            }
            let bytes = &mut buffer.bytes_mut()[..n * unit];
            let got = opened.read_some(at as u64 * unit as u64, bytes);
            let got = got.map_err(|e| format!("reading back: {}", errno(e)))?;
            bytes[got..].fill(0);
            for (i, data) in bytes.chunks_exact(unit).enumerate() {
                let block = at + i;
                let want = self.entries[block].load(Ordering::Acquire);
                if !self.is_due(block) || want & GEN_ANY != 0 {
                    continue;
                }
                if is_right(data, block as u64 * unit as u64, want) {
                    good += 1;
                } else {
                    bad += 1;
                    if bad <= COMPLAINTS {
                        complain(data, block as u64 * unit as u64, want);
                    }
                }
            }
            at += n;
        }
        Ok((good, bad))
    }

    /// All newest acknowledged generations as little-endian words, in pieces.
    pub(crate) fn for_each_chunk(&self, mut f: impl FnMut(&[u8])) {
        let mut bytes = [0u8; 1024];
        for chunk in self.entries.chunks(bytes.len() / 4) {
            for (to, entry) in bytes.chunks_exact_mut(4).zip(chunk) {
                to.copy_from_slice(&(entry.load(Ordering::Acquire) & !BUSY).to_le_bytes());
            }
            f(&bytes[..chunk.len() * 4]);
        }
    }
}

fn is_right(data: &[u8], offset: u64, want: u32) -> bool {
    if want & GEN_ZERO != 0 {
        return data.chunks(8).all(|chunk| chunk == &[0; 8][..chunk.len()]);
    }
    Stamp::check(data, offset).is_ok_and(|s| s.generation == want)
}

#[cold]
fn complain(data: &[u8], offset: u64, want: u32) {
    let found = Stamp::check(data, offset);
    if want & GEN_ZERO != 0 {
        pr_err!("verify: offset {offset} should read as zeros, and does not: {found:?}\n");
    } else {
        pr_err!("verify: offset {offset}: generation {want} was acknowledged, found {found:?}\n");
    }
}

/// The tables of a plan, by file.
pub struct Tables(BTreeMap<TableKey, Arc<Table>>);

impl Tables {
    /// None.
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The file's table, made at first use, and larger than before if it has to be: nobody may hold an older one then. All jobs that
    /// stamp a file use the same block size. Blocks from `zero_from` on, in bytes, are past the end as yet.
    pub(crate) fn get(&mut self, key: &TableKey, unit: u32, size: u64, zero_from: u64) -> Result<Arc<Table>, String> {
        let blocks = size / u64::from(unit);
        let old = self.0.get(key);
        if let Some(table) = old {
            if table.unit != unit {
                return Err(format!("verify with bs {unit} on a file that was stamped with bs {}", table.unit));
            }
            if table.len() as u64 >= blocks {
                return Ok(table.clone());
            }
        }
        let mut entries = Vec::new();
        let mut touched = Vec::new();
        if entries.try_reserve_exact(blocks as usize).is_err() || touched.try_reserve_exact(blocks as usize).is_err() {
            return Err(format!("no memory for the generations of {blocks} blocks"));
        }
        if let Some(old) = old {
            entries.extend(old.entries.iter().map(|entry| AtomicU32::new(entry.load(Ordering::Acquire))));
        }
        for block in entries.len() as u64..blocks {
            entries.push(AtomicU32::new(if block * u64::from(unit) >= zero_from { GEN_ZERO } else { 0 }));
        }
        touched.resize_with(blocks as usize, || AtomicBool::new(false));
        let table = Arc::new(Table { unit, entries, touched, gone: AtomicBool::new(false) });
        self.0.insert(key.clone(), table.clone());
        Ok(table)
    }

    /// The table, if there is one.
    pub(crate) fn find(&self, key: &TableKey) -> Option<&Arc<Table>> {
        self.0.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TableKey, &Arc<Table>)> {
        self.0.iter()
    }
}
