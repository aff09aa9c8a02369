// SPDX-License-Identifier: GPL-2.0-only
//! A group's free blocks in memory: one bitmap, and the buddies made of its free runs.
//!
//! A buddy of order `k` is `1 << k` blocks, at a multiple of that. The free blocks of a group fall apart, in one way only, into
//! largest free buddies: a buddy that is free, while the one twice its size around it is not. Those are kept in a bitmap for each order, so
//! that a free power of two is found without looking at the blocks.

use kernel_shim::alloc::{AllocError, GFP_NOFAIL, GFP_NOFS, KVec};

use crate::bitmap::{next_clear, next_set, scan};

/// Orders there can be: blocks of 4 KiB have bitmaps of 2^15 bits, and the largest buddy is a quarter of that.
const ORDERS: usize = 14;

/// The free blocks of one group.
///
/// # Invariants
///
/// A bit of `chunks` is set if and only if it is a largest free buddy; `counts`, `free` and `fragments` count what they say.
#[derive(Debug)]
pub(crate) struct Buddy {
    /// Blocks of the group.
    blocks: u32,
    /// Largest order, at most `ORDERS - 1`.
    max_order: u32,
    /// A set bit is a block that cannot be had.
    used: KVec<u64>,
    /// Largest free buddies, a bitmap for each order.
    chunks: [KVec<u64>; ORDERS],
    /// How many there are of each order.
    counts: [u32; ORDERS],
    free: u32,
    /// Runs of free blocks.
    fragments: u32,
}

fn get(map: &[u64], bit: u32) -> bool {
    map.get(bit as usize / 64).is_none_or(|word| word >> (bit % 64) & 1 != 0)
}

fn put(map: &mut [u64], bit: u32, on: bool) {
    if let Some(word) = map.get_mut(bit as usize / 64) {
        let mask = 1 << (bit % 64);
        *word = if on { *word | mask } else { *word & !mask };
    }
}

/// Sets or clears `len` bits.
fn put_range(map: &mut [u64], start: u32, len: u32, on: bool) {
    let end = start.saturating_add(len);
    let mut bit = start;
    while bit < end {
        let next = end.min((bit / 64 + 1).saturating_mul(64));
        let mask = (!0u64 >> (64 - (next - bit))) << (bit % 64);
        if let Some(word) = map.get_mut(bit as usize / 64) {
            *word = if on { *word | mask } else { *word & !mask };
        }
        bit = next;
    }
}

impl Buddy {
    /// The free blocks of a group with `blocks` blocks of `1 << blkbits` bytes, after its bitmap.
    #[doc(alias = "ext4_mb_generate_buddy")]
    pub(crate) fn from_bitmap(map: &[u8], blocks: u32, blkbits: u8) -> Result<Self, AllocError> {
        let max_order = (u32::from(blkbits) + 1).min(ORDERS as u32 - 1);
        let mut chunks = [const { KVec::new() }; ORDERS];
        for (order, chunk) in chunks.iter_mut().enumerate().take(max_order as usize + 1) {
            *chunk = KVec::from_elem(0, (blocks >> order).div_ceil(64) as usize, GFP_NOFS | GFP_NOFAIL)?;
        }
        // Who frees blocks has taken them out of a map already.
        let used = KVec::from_elem(!0, blocks.div_ceil(64) as usize, GFP_NOFS | GFP_NOFAIL)?;
        let mut buddy = Self { blocks, max_order, used, chunks, counts: [0; ORDERS], free: 0, fragments: 0 };
        let mut start = next_clear(map, 0, blocks);
        while start < blocks {
            let end = next_set(map, start, blocks);
            buddy.free_blocks(start, end - start);
            start = next_clear(map, end, blocks);
        }
        Ok(buddy)
    }

    /// Blocks that can be had.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// Runs they are in.
    pub(crate) fn fragments(&self) -> u32 {
        self.fragments
    }

    /// Order of the largest free buddy.
    pub(crate) fn largest_free_order(&self) -> Option<u32> {
        (0..=self.max_order).rev().find(|order| self.count(*order) != 0)
    }

    fn count(&self, order: u32) -> u32 {
        self.counts.get(order as usize).copied().unwrap_or(0)
    }

    fn set_chunk(&mut self, order: u32, index: u32, on: bool) {
        if let (Some(map), Some(count)) = (self.chunks.get_mut(order as usize), self.counts.get_mut(order as usize)) {
            put(map, index, on);
            *count = if on { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// Whether this is a largest free buddy.
    fn chunk(&self, order: u32, index: u32) -> bool {
        // What lies beyond the group is no buddy.
        let beyond = (u64::from(index) + 1) << order > u64::from(self.blocks);
        !beyond && self.chunks.get(order as usize).is_some_and(|map| get(map, index))
    }

    fn is_used(&self, block: u32) -> bool {
        block >= self.blocks || get(&self.used, block)
    }

    /// Whether all of a range can be had; it must not be empty.
    pub(crate) fn is_free(&self, start: u32, len: u32) -> bool {
        self.run_at(start, len) == len
    }

    /// Whether nothing of a range can be had.
    pub(crate) fn is_all_used(&self, start: u32, len: u32) -> bool {
        let end = start.saturating_add(len);
        end <= self.blocks && self.next_free(start, end) == end
    }

    fn word(&self, index: u32) -> u64 {
        self.used.get(index as usize).copied().unwrap_or(!0)
    }

    /// The first block of `from..end` that can be had, or `end`.
    pub(crate) fn next_free(&self, from: u32, end: u32) -> u32 {
        scan(from, end, |index| !self.word(index))
    }

    /// How many blocks from `start` on can be had, up to `max`.
    #[doc(alias = "mb_find_extent")]
    pub(crate) fn run_at(&self, start: u32, max: u32) -> u32 {
        let end = start.saturating_add(max).min(self.blocks);
        if start >= end {
            return 0;
        }
        scan(start, end, |index| self.word(index)) - start
    }

    /// A free buddy of order `order`: out of the smallest there is, the first of those.
    #[doc(alias = "ext4_mb_simple_scan_group")]
    pub(crate) fn find_order(&self, order: u32) -> Option<u32> {
        let from = (order..=self.max_order).find(|order| self.count(*order) != 0)?;
        let map = self.chunks.get(from as usize)?;
        let bits = self.blocks >> from;
        let index = scan(0, bits, |index| map.get(index as usize).copied().unwrap_or(0));
        (index < bits).then_some(index << from)
    }

    /// The run of free blocks that fits `len` best: as long, or the shortest that is longer, or the longest there is. Of those longer,
    /// it looks at `max_scan` at most.
    #[doc(alias = "ext4_mb_complex_scan_group")]
    pub(crate) fn find_best(&self, len: u32, max_scan: u32) -> Option<(u32, u32)> {
        let mut best: Option<(u32, u32)> = None;
        let mut fitting = 0;
        let mut start = self.next_free(0, self.blocks);
        while start < self.blocks {
            let run = self.run_at(start, u32::MAX);
            let better = match best {
                None => true,
                Some((_, best)) if best < len => run > best,
                Some((_, best)) => run >= len && run < best,
            };
            if better {
                best = Some((start, run));
            }
            fitting += u32::from(run >= len);
            if run == len || fitting >= max_scan {
                break;
            }
            start = self.next_free(start + run, self.blocks);
        }
        best
    }

    /// Takes blocks, all of which [are free](Self::is_free).
    #[doc(alias = "mb_mark_used")]
    pub(crate) fn mark_used(&mut self, start: u32, len: u32) {
        let end = start + len;
        let before = start > 0 && !self.is_used(start - 1);
        let behind = !self.is_used(end);
        self.fragments = (self.fragments + u32::from(before) + u32::from(behind)).saturating_sub(1);
        self.free = self.free.saturating_sub(len);
        put_range(&mut self.used, start, len, true);
        let mut at = start;
        while at < end {
            // The buddy that the block is in.
            let Some(order) = (0..=self.max_order).find(|order| self.chunk(*order, at >> order)) else { return };
            let (first, size) = (at >> order << order, 1 << order);
            self.set_chunk(order, at >> order, false);
            // What is left of it on either side: smaller ones, and as large as they can be.
            self.add_run(first, at.max(first) - first);
            let last = first + size;
            if last > end {
                self.add_run(end, last - end);
            }
            at = last;
        }
    }

    /// Gives blocks back, all of which [were taken](Self::is_all_used).
    #[doc(alias = "mb_free_blocks")]
    pub(crate) fn free_blocks(&mut self, start: u32, len: u32) {
        let before = start > 0 && !self.is_used(start - 1);
        let behind = !self.is_used(start + len);
        self.fragments = (self.fragments + 1).saturating_sub(u32::from(before) + u32::from(behind));
        self.free += len;
        put_range(&mut self.used, start, len, false);
        self.add_run(start, len);
    }

    /// Adds the largest buddies of a run, each joined with its other half as long as that is free.
    fn add_run(&mut self, start: u32, len: u32) {
        let end = start + len;
        let mut at = start;
        while at < end {
            let aligned = if at == 0 { self.max_order } else { at.trailing_zeros() };
            let mut order = aligned.min((end - at).ilog2()).min(self.max_order);
            let mut index = at >> order;
            at += 1 << order;
            while order < self.max_order && self.chunk(order, index ^ 1) {
                self.set_chunk(order, index ^ 1, false);
                index >>= 1;
                order += 1;
            }
            self.set_chunk(order, index, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random; no crate for that here.
    struct Rng(u64);

    impl Rng {
        fn below(&mut self, end: u32) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) % u64::from(end)) as u32
        }
    }

    const BLOCKS: u32 = 1000;

    fn check(buddy: &Buddy, free: &[bool; BLOCKS as usize]) {
        let is_free = |from: u32, len: u32| {
            from.checked_add(len).is_some_and(|end| end <= BLOCKS) && (from..from + len).all(|b| free[b as usize])
        };
        assert_eq!(buddy.free, free.iter().filter(|free| **free).count() as u32);
        let runs = (0..BLOCKS).filter(|b| free[*b as usize] && (*b == 0 || !free[*b as usize - 1])).count();
        assert_eq!(buddy.fragments, runs as u32);
        for order in 0..=buddy.max_order {
            let mut count = 0;
            for index in 0..(BLOCKS >> order) {
                let largest = is_free(index << order, 1 << order)
                    && (order == buddy.max_order || !is_free(index >> 1 << (order + 1), 2 << order));
                assert_eq!(buddy.chunk(order, index), largest, "order {order}, {index}");
                count += u32::from(largest);
            }
            assert_eq!(buddy.count(order), count);
        }
    }

    #[test]
    fn buddies_follow_the_bitmap_through_random_changes() {
        for seed in 0..20 {
            let mut rng = Rng(seed);
            let map = [0u8; BLOCKS as usize / 8];
            let mut buddy = Buddy::from_bitmap(&map, BLOCKS, (seed % 5) as u8).expect("memory");
            let mut free = [true; BLOCKS as usize];
            for _ in 0..200 {
                let start = rng.below(BLOCKS);
                let most = 1 << rng.below(9);
                let len = (1 + rng.below(most)).min(BLOCKS - start);
                let range = start as usize..(start + len) as usize;
                if buddy.is_free(start, len) {
                    assert!(free[range.clone()].iter().all(|free| *free), "seed {seed}");
                    buddy.mark_used(start, len);
                    free[range].fill(false);
                } else if buddy.is_all_used(start, len) {
                    assert!(free[range.clone()].iter().all(|free| !*free), "seed {seed}");
                    buddy.free_blocks(start, len);
                    free[range].fill(true);
                }
                check(&buddy, &free);
            }
            // Made anew from the bitmap it is the same.
            let mut map = [0u8; BLOCKS as usize / 8];
            for (block, _) in free.iter().enumerate().filter(|(_, free)| !**free) {
                map[block / 8] |= 1 << (block % 8);
            }
            check(&Buddy::from_bitmap(&map, BLOCKS, (seed % 5) as u8).expect("memory"), &free);
        }
    }

    #[test]
    fn the_best_run_and_the_smallest_buddy_are_found() {
        let mut buddy = Buddy::from_bitmap(&[0xff; 125], BLOCKS, 10).expect("memory");
        assert_eq!((buddy.find_best(1, 10), buddy.find_order(0), buddy.largest_free_order()), (None, None, None));
        for (start, len) in [(10, 5), (100, 16), (300, 20), (512, 64)] {
            buddy.free_blocks(start, len);
        }
        for (len, found) in [(5, (10, 5)), (6, (100, 16)), (17, (300, 20)), (64, (512, 64)), (65, (512, 64))] {
            assert_eq!(buddy.find_best(len, 100), Some(found), "{len}");
        }
        assert_eq!(buddy.find_order(6), Some(512));
        assert_eq!(buddy.find_order(7), None);
        assert_eq!(buddy.find_order(0), Some(14));
        assert_eq!((buddy.run_at(102, 100), buddy.run_at(102, 3), buddy.run_at(99, 3)), (14, 3, 0));
    }
}
