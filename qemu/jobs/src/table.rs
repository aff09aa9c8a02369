// SPDX-License-Identifier: GPL-2.0-only
//! Generations: which write of each block is the newest, while jobs run and for the checks afterwards.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ext4_dio_protocol::Stamp;
use kernel_shim::pr_err;

use crate::errno;
use crate::target::{Buffer, Opened};

/// Set in an entry while a write of the block is under way: no second one is started, so that "newest" means something.
const BUSY: u32 = 1 << 31;
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
        Some(Claim { generation: (old + 1) & !BUSY, block })
    }

    /// The write was acknowledged: its generation is the newest.
    #[inline]
    pub fn acknowledge(&self, claim: &Claim) {
        self.touched[claim.block].store(true, Ordering::Relaxed);
        self.entries[claim.block].store(claim.generation, Ordering::Release);
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

    /// Reads the blocks that were written since [`Table::begin_step`] and compares: how many are right, and how many not.
    pub(crate) fn verify(&self, opened: &Opened) -> Result<(u64, u64), String> {
        let unit = self.unit as usize;
        let per_read = (VERIFY_BYTES / unit).max(1);
        let mut buffer = Buffer::new(per_read * unit).ok_or("no memory to read back")?;
        let (mut good, mut bad) = (0, 0);
        let mut at = 0;
        while at < self.len() {
            let n = per_read.min(self.len() - at);
            if !self.touched[at..at + n].iter().any(|t| t.load(Ordering::Relaxed)) {
                at += n;
                continue;
            }
            let bytes = &mut buffer.bytes_mut()[..n * unit];
            opened.read_sync(at as u64 * unit as u64, bytes).map_err(|e| format!("reading back: {}", errno(e)))?;
            for (i, data) in bytes.chunks_exact(unit).enumerate() {
                let block = at + i;
                if !self.touched[block].load(Ordering::Relaxed) {
                    continue;
                }
                let want = self.entries[block].load(Ordering::Acquire);
                let found = Stamp::check(data, block as u64 * unit as u64);
                if found.is_ok_and(|s| s.generation == want) {
                    good += 1;
                } else {
                    bad += 1;
                    if bad <= COMPLAINTS {
                        pr_err!("verify: block {block}: generation {want} was acknowledged, found {found:?}\n");
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

/// The tables of a plan, by file.
pub struct Tables(BTreeMap<TableKey, Arc<Table>>);

impl Tables {
    /// None.
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The file's table, made at first use. All jobs that stamp a file use the same block size.
    pub(crate) fn get(&mut self, key: &TableKey, unit: u32, size: u64) -> Result<Arc<Table>, String> {
        if let Some(table) = self.0.get(key) {
            if table.unit != unit {
                return Err(format!("verify with bs {unit} on a file that was stamped with bs {}", table.unit));
            }
            return Ok(table.clone());
        }
        let blocks = size / u64::from(unit);
        let mut entries = Vec::new();
        let mut touched = Vec::new();
        if entries.try_reserve_exact(blocks as usize).is_err() || touched.try_reserve_exact(blocks as usize).is_err() {
            return Err(format!("no memory for the generations of {blocks} blocks"));
        }
        entries.resize_with(blocks as usize, || AtomicU32::new(0));
        touched.resize_with(blocks as usize, || AtomicBool::new(false));
        let table = Arc::new(Table { unit, entries, touched });
        self.0.insert(key.clone(), table.clone());
        Ok(table)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TableKey, &Arc<Table>)> {
        self.0.iter()
    }
}
