// SPDX-License-Identifier: GPL-2.0-only
//! A file's contents in the model: block by block, as far as they can be told from outside.

use std::collections::BTreeMap;

use crate::oplang::{Extent, Falloc, Seen, pattern};

/// One block that is, or may be, allocated. A hole is a block that is not there.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Has data. Behind the end of the file there are zeros.
    Written(Vec<u8>),
    /// Reads as zeros: allocated, and written or not. The file system may write zeros instead of splitting an extent.
    Unwritten,
    /// Reads as zeros, and may be a hole as well.
    Vague,
}

/// Contents and size.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// Bytes in a block.
    pub bs: u64,
    /// Bytes in the file.
    pub size: u64,
    /// By number.
    pub blocks: BTreeMap<u64, Block>,
}

/// A change that may have been made in part.
#[derive(Clone, Debug)]
pub struct Partly {
    /// Where it begins in the file.
    pub pos: u64,
    /// What it puts there; `None` for zeros.
    pub bytes: Option<Vec<u8>>,
    /// How far it reaches.
    pub len: u64,
    /// So much of it was said to be done.
    pub done: u64,
}

impl Data {
    /// An empty file.
    pub fn new(bs: u64) -> Self {
        Self { bs, ..Self::default() }
    }

    /// Blocks that certainly, and that possibly, are allocated.
    pub fn allocated(&self) -> (u64, u64) {
        let sure = self.blocks.values().filter(|b| **b != Block::Vague).count();
        (sure as u64, self.blocks.len() as u64)
    }

    /// The bytes that a read gets.
    pub fn read(&self, pos: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(pos.saturating_add(len as u64));
        let mut out = vec![0; end.saturating_sub(pos) as usize];
        if out.is_empty() {
            return out;
        }
        for (lblk, block) in self.blocks.range(pos / self.bs..end.div_ceil(self.bs)) {
            if let Block::Written(bytes) = block {
                let from = pos.max(lblk * self.bs);
                let to = end.min((lblk + 1) * self.bs);
                out[(from - pos) as usize..(to - pos) as usize]
                    .copy_from_slice(&bytes[(from - lblk * self.bs) as usize..(to - lblk * self.bs) as usize]);
            }
        }
        out
    }

    /// Writes, and moves the end.
    pub fn write(&mut self, pos: u64, bytes: &[u8]) {
        self.put(pos, bytes);
        if !bytes.is_empty() {
            self.size = self.size.max(pos + bytes.len() as u64);
        }
    }

    fn put(&mut self, pos: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = pos + done as u64;
            let off = (at % self.bs) as usize;
            let n = (self.bs as usize - off).min(bytes.len() - done);
            let block = self.blocks.entry(at / self.bs).or_insert(Block::Vague);
            if !matches!(block, Block::Written(_)) {
                *block = Block::Written(vec![0; self.bs as usize]);
            }
            if let Block::Written(old) = block {
                old[off..off + n].copy_from_slice(&bytes[done..done + n]);
            }
            done += n;
        }
    }

    /// Zeros in what has data.
    fn zero(&mut self, from: u64, to: u64) {
        for (lblk, block) in self.blocks.range_mut(from / self.bs..to.div_ceil(self.bs)) {
            if let Block::Written(bytes) = block {
                let start = from.max(lblk * self.bs) - lblk * self.bs;
                let end = to.min((lblk + 1) * self.bs) - lblk * self.bs;
                bytes[start as usize..end as usize].fill(0);
            }
        }
    }

    /// Makes holes of a range of blocks `Unwritten` or `Vague`.
    pub fn reserve(&mut self, pos: u64, len: u64, what: &Block) {
        for lblk in pos / self.bs..(pos + len).div_ceil(self.bs) {
            let block = self.blocks.entry(lblk).or_insert_with(|| what.clone());
            if *block == Block::Vague {
                *block = what.clone();
            }
        }
    }

    /// What is allocated behind the end of the file may be gone.
    pub fn doubt_beyond(&mut self, size: u64) {
        for (_, block) in self.blocks.range_mut(size.div_ceil(self.bs)..) {
            *block = Block::Vague;
        }
    }

    /// Cuts, or grows.
    pub fn truncate(&mut self, size: u64) {
        if size <= self.size {
            self.blocks.retain(|lblk, _| lblk * self.bs < size);
            self.zero(size, u64::MAX / 2);
        }
        self.size = size;
    }

    /// The effect of `fallocate`, which has found its arguments good.
    pub fn fallocate(&mut self, how: Falloc, pos: u64, len: u64) {
        let (bs, end) = (self.bs, pos + len);
        match how {
            Falloc::Alloc | Falloc::Keep => self.reserve(pos, len, &Block::Unwritten),
            Falloc::Zero | Falloc::ZeroKeep => {
                self.reserve(pos, len, &Block::Unwritten);
                for lblk in pos.div_ceil(bs)..end / bs {
                    self.blocks.insert(lblk, Block::Unwritten);
                }
                self.zero(pos, end);
            }
            Falloc::Punch => {
                // Behind the end of the file there is nothing to make a hole in, but blocks may have been set aside.
                let eof = self.size.div_ceil(bs);
                for lblk in pos.div_ceil(bs)..end / bs {
                    if lblk < eof {
                        self.blocks.remove(&lblk);
                    } else if let Some(block) = self.blocks.get_mut(&lblk) {
                        *block = Block::Vague;
                    }
                }
                self.zero(pos, end);
                // Of the last block, all that is of the file may be enough to make a hole of it.
                let last = self.size.saturating_sub(1) / bs;
                if pos <= last * bs
                    && end > self.size
                    && let Some(block) = self.blocks.get_mut(&last)
                {
                    *block = Block::Vague;
                }
            }
            Falloc::Collapse => {
                let (from, n) = (pos / bs, len / bs);
                let old = std::mem::take(&mut self.blocks);
                let kept = old.into_iter().filter(|(lblk, _)| *lblk < from || *lblk >= from + n);
                self.blocks = kept.map(|(lblk, b)| (if lblk < from { lblk } else { lblk - n }, b)).collect();
                self.size -= len;
            }
            Falloc::Insert => {
                let (from, n) = (pos / bs, len / bs);
                let old = std::mem::take(&mut self.blocks);
                self.blocks = old.into_iter().map(|(l, b)| (if l < from { l } else { l + n }, b)).collect();
                self.size += len;
            }
        }
        if matches!(how, Falloc::Alloc | Falloc::Zero) {
            self.size = self.size.max(end);
        }
    }

    /// Whether a map fits. What was vague is not afterwards.
    pub fn check_map(&mut self, map: &[Extent]) -> Result<(), String> {
        let mut last = 0;
        for e in map {
            if e.len == 0 || e.lblk < last {
                return Err(format!("extents in disorder at {e:?}"));
            }
            last = e.lblk + e.len;
            if let Some(hole) = (e.lblk..last).find(|lblk| !self.blocks.contains_key(lblk)) {
                return Err(format!("block {hole} should be a hole, but there is {e:?}"));
            }
        }
        let find = |lblk: u64| {
            let at = map.partition_point(|e| e.lblk + e.len <= lblk);
            map.get(at).filter(|e| e.lblk <= lblk)
        };
        let mut error = None;
        self.blocks.retain(|lblk, block| {
            let found = find(*lblk);
            match (&*block, found) {
                (Block::Written(_), None) => error = Some(format!("block {lblk} has data, and is a hole")),
                (Block::Written(_), Some(e)) if e.unwritten => error = Some(format!("block {lblk}: unwritten data")),
                (Block::Unwritten, None) => error = Some(format!("block {lblk} should be allocated")),
                (Block::Vague, None) => return false,
                (Block::Vague, Some(_)) => *block = Block::Unwritten,
                _ => {}
            }
            true
        });
        error.map_or(Ok(()), Err)
    }

    /// Whether what is seen is what is known.
    pub fn check_seen(&mut self, seen: &Seen) -> Result<(), String> {
        if seen.size != self.size {
            return Err(format!("size {}, should be {}", seen.size, self.size));
        }
        if seen.exact {
            self.check_map(&seen.map)?;
        }
        self.resync(seen, &[], self.size..=self.size)
    }

    /// Takes what is seen for true after changes of which it is not known how far they got: what was said to be done must be
    /// there, the rest of them may be there, not be there, or be zeros; and nothing else may have changed.
    pub fn resync(
        &mut self,
        seen: &Seen,
        changes: &[Partly],
        sizes: std::ops::RangeInclusive<u64>,
    ) -> Result<(), String> {
        if !sizes.contains(&seen.size) {
            return Err(format!("size {}, should be in {sizes:?}", seen.size));
        }
        let mut numbers: Vec<u64> = seen.blocks.iter().map(|(l, _)| *l).chain(self.blocks.keys().copied()).collect();
        for change in changes {
            let reach = if seen.exact { change.done } else { change.len };
            numbers.extend(change.pos / self.bs..(change.pos + reach).div_ceil(self.bs));
        }
        numbers.sort_unstable();
        numbers.dedup();
        let mut new = BTreeMap::new();
        for lblk in numbers {
            let mut got = vec![0; self.bs as usize];
            if let Ok(at) = seen.blocks.binary_search_by_key(&lblk, |(l, _)| *l) {
                let bytes = &seen.blocks[at].1;
                got[..bytes.len()].copy_from_slice(bytes);
            }
            self.check_block(lblk, &got, seen.size, changes)?;
            let at = seen.map.partition_point(|e| e.lblk + e.len <= lblk);
            let zeros = got.iter().all(|b| *b == 0);
            if !seen.exact {
                new.insert(lblk, self.guess(lblk, got));
                continue;
            }
            match seen.map.get(at).filter(|e| e.lblk <= lblk) {
                None if !zeros => return Err(format!("block {lblk}: data in a hole")),
                Some(e) if e.unwritten && !zeros => return Err(format!("block {lblk}: data, and unwritten")),
                None => {}
                Some(_) if zeros && !matches!(self.blocks.get(&lblk), Some(Block::Written(_))) => {
                    new.insert(lblk, Block::Unwritten);
                }
                Some(e) if e.unwritten => drop(new.insert(lblk, Block::Unwritten)),
                Some(_) => drop(new.insert(lblk, Block::Written(got))),
            }
        }
        for e in seen.map.iter().filter(|_| seen.exact) {
            for lblk in e.lblk..e.lblk + e.len {
                new.entry(lblk).or_insert(Block::Unwritten);
            }
        }
        self.blocks = new;
        self.size = seen.size;
        Ok(())
    }

    /// What a block is that reads as `got`, if the map is not known.
    fn guess(&self, lblk: u64, got: Vec<u8>) -> Block {
        match self.blocks.get(&lblk) {
            _ if got.iter().any(|b| *b != 0) => Block::Written(got),
            Some(Block::Written(old)) if *old == got => Block::Written(got),
            Some(Block::Unwritten) => Block::Unwritten,
            _ => Block::Vague,
        }
    }

    fn check_block(&self, lblk: u64, got: &[u8], size: u64, changes: &[Partly]) -> Result<(), String> {
        let base = lblk * self.bs;
        let zeros = vec![0; self.bs as usize];
        let old = match self.blocks.get(&lblk) {
            Some(Block::Written(bytes)) => bytes,
            _ => &zeros,
        };
        let near: Vec<&Partly> = changes.iter().filter(|c| c.pos < base + self.bs && base < c.pos + c.len).collect();
        if near.is_empty() && got == old.as_slice() {
            return Ok(());
        }
        for (n, (&got, &old)) in got.iter().zip(old).enumerate() {
            let at = base + n as u64;
            if at >= size {
                break;
            }
            let mut old_may_stay = true;
            let mut fits = false;
            for c in near.iter().filter(|c| c.pos <= at && at < c.pos + c.len) {
                let byte = c.bytes.as_ref().map_or(0, |b| b[(at - c.pos) as usize]);
                fits |= got == byte;
                if at < c.pos + c.done {
                    old_may_stay = false;
                } else {
                    fits |= got == 0;
                }
            }
            if !(fits || old_may_stay && got == old) {
                let what = if near.is_empty() { "" } else { " (not old, not new, not zero)" };
                return Err(format!("byte {at} (block {lblk}) is {got:#04x}, was {old:#04x}{what}"));
            }
        }
        Ok(())
    }
}

/// What the write with `tag` at `pos` (as it was asked for) puts `at` in the end.
pub fn write_of(tag: u32, pos: u64, at: u64, len: u64, done: u64) -> Partly {
    Partly { pos: at, bytes: Some(pattern(tag, pos, len as usize)), len, done }
}
