// SPDX-License-Identifier: GPL-2.0-only
//! `extents_status.c`: what recent look-ups in a file's block map found, written and unwritten extents
//! and holes, so that the next one need not go to the map nor take `i_data_sem`.
//!
//! PORT: C keeps a red-black tree under an rwlock. Here it is a sorted list of bounded length under
//! a spin lock, and in front of it, by parts of the file, the extents that were hit last, readable without any lock (a
//! sequence count): a file in a few pieces is looked up without writing to memory that CPUs share.
//!
//! Whoever adds what a look-up found still holds `i_data_sem` from the look-up; whoever changes the map
//! holds it for writing and [removes](ExtentStatusTree::remove) the range. So nothing stale is ever added.

mod list;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use kernel_shim::sched::{Point, sched_access, sched_point};
use kernel_shim::sync::SpinLock;

use self::list::Extents;
use crate::ext4::{Fsblk, Lblk, MapBlocks, MapFlags};

/// Extents that are remembered in front, a power of two, and the blocks that share one, as a power of two.
const LAST_HITS: usize = 16;
const LAST_HIT_BITS: u32 = 12;
/// Physical blocks have 48 bits; the state is kept above them.
const ES_PBLK_MASK: u64 = (1 << 48) - 1;

/// What a range of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EsStatus {
    /// Blocks with data.
    #[doc(alias = "EXTENT_STATUS_WRITTEN")]
    Written = 1,
    /// Blocks without.
    #[doc(alias = "EXTENT_STATUS_UNWRITTEN")]
    Unwritten = 2,
    /// No blocks.
    #[doc(alias = "EXTENT_STATUS_HOLE")]
    Hole = 3,
}

/// A range of a file's blocks that are alike, and contiguous on the device if they are there at all.
///
/// # Invariants
///
/// Not empty, and its end is at most `u32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "extent_status")]
pub struct ExtentStatus {
    es_lblk: u32,
    es_len: u32,
    /// Physical block, and above it the [`EsStatus`].
    es_pblk: u64,
}

static_assertions::assert_eq_size!(ExtentStatus, [u8; 16]);

impl ExtentStatus {
    /// `len` blocks from `lblk` on; `pblk` means nothing for a hole. Nothing if that is empty or out of range.
    pub fn new(lblk: Lblk, len: u32, pblk: Fsblk, status: EsStatus) -> Option<Self> {
        lblk.0.checked_add(len)?;
        if len == 0 || pblk.0 > ES_PBLK_MASK {
            return None;
        }
        let pblk = if status == EsStatus::Hole { 0 } else { pblk.0 };
        // INVARIANT: checked above.
        Some(Self { es_lblk: lblk.0, es_len: len, es_pblk: (status as u64) << 48 | pblk })
    }

    /// A hole from `start` to before `end`.
    pub fn hole(start: u32, end: u32) -> Option<Self> {
        Self::new(Lblk(start), end.checked_sub(start)?, Fsblk(0), EsStatus::Hole)
    }

    /// First block.
    pub fn lblk(&self) -> Lblk {
        Lblk(self.es_lblk)
    }

    /// Blocks.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u32 {
        self.es_len
    }

    /// First block behind it.
    #[inline]
    pub fn end(&self) -> u32 {
        // OK not to check: cannot overflow by the invariant.
        self.es_lblk.wrapping_add(self.es_len)
    }

    /// Where the first block is, if it is anywhere.
    pub fn pblk(&self) -> Fsblk {
        Fsblk(self.es_pblk & ES_PBLK_MASK)
    }

    /// What the blocks are.
    #[inline]
    pub fn status(&self) -> EsStatus {
        match self.es_pblk >> 48 {
            1 => EsStatus::Written,
            2 => EsStatus::Unwritten,
            _ => EsStatus::Hole,
        }
    }

    /// Whether `lblk` is in it.
    #[inline]
    pub fn contains(&self, lblk: u32) -> bool {
        lblk.wrapping_sub(self.es_lblk) < self.es_len
    }

    /// The part of it between `start` and before `end`.
    pub(crate) fn clip(&self, start: u32, end: u32) -> Option<Self> {
        let start = start.max(self.es_lblk);
        let len = end.min(self.end()).checked_sub(start)?;
        let pblk = Fsblk(self.pblk().0 + u64::from(start - self.es_lblk));
        Self::new(Lblk(start), len, pblk, self.status())
    }

    /// Both as one, if `next` goes on where this one ends.
    #[doc(alias = "ext4_es_can_be_merged")]
    fn merge(&self, next: &Self) -> Option<Self> {
        let adjacent = self.end() == next.es_lblk && self.status() == next.status();
        let contiguous = self.status() == EsStatus::Hole || self.pblk().0 + u64::from(self.es_len) == next.pblk().0;
        if !adjacent || !contiguous {
            return None;
        }
        Self::new(self.lblk(), self.es_len.checked_add(next.es_len)?, self.pblk(), self.status())
    }

    /// Answers `map` as `ext4_map_blocks` does: returns how many blocks from `m_lblk` on are alike, 0 for a
    /// hole, whose length is in `m_len` then. `m_lblk` must be in this extent.
    #[inline]
    pub fn answer(&self, map: &mut MapBlocks) -> u32 {
        let offset = map.m_lblk.0.wrapping_sub(self.es_lblk);
        map.m_len = map.m_len.min(self.es_len.wrapping_sub(offset));
        let (flags, blocks) = match self.status() {
            EsStatus::Written => (MapFlags::MAPPED, map.m_len),
            EsStatus::Unwritten => (MapFlags::UNWRITTEN, map.m_len),
            EsStatus::Hole => {
                map.m_pblk = Fsblk(0);
                map.m_flags = MapFlags::empty();
                return 0;
            }
        };
        map.m_pblk = Fsblk((self.es_pblk & ES_PBLK_MASK) + u64::from(offset));
        map.m_flags = flags;
        blocks
    }
}

/// An extent that was hit last, behind a sequence count: odd while it is being changed, by whoever
/// holds the tree's lock, and different afterwards.
struct LastHit {
    seq: AtomicU32,
    /// `es_len`, and above it `es_lblk`. An empty range contains nothing.
    range: AtomicU64,
    es_pblk: AtomicU64,
}

impl LastHit {
    const fn new() -> Self {
        Self { seq: AtomicU32::new(0), range: AtomicU64::new(0), es_pblk: AtomicU64::new(0) }
    }

    /// The extent, unless it does not contain `lblk` or is just being changed.
    #[inline]
    fn get(&self, lblk: u32) -> Option<ExtentStatus> {
        self.get_in_steps(lblk, |_| ())
    }

    /// [`LastHit::get`], with something done before each of its steps from the second on: a test's way between them.
    #[inline(always)]
    fn get_in_steps(&self, lblk: u32, between: impl Fn(u32)) -> Option<ExtentStatus> {
        sched_point(Point::Load, core::ptr::from_ref(self).cast());
        let seq = self.seq.load(Ordering::Acquire);
        between(1);
        let range = self.range.load(Ordering::Relaxed);
        between(2);
        let es_pblk = self.es_pblk.load(Ordering::Relaxed);
        between(3);
        // The two words are read before the count is read again.
        fence(Ordering::Acquire);
        if seq & 1 != 0 || self.seq.load(Ordering::Relaxed) != seq {
            return None;
        }
        let es = ExtentStatus { es_lblk: (range >> 32) as u32, es_len: range as u32, es_pblk };
        es.contains(lblk).then_some(es)
    }

    /// Whether the extent has one of the blocks from `start` to before `end`. Called with the tree's lock held.
    #[inline]
    fn overlaps(&self, start: u32, end: u32) -> bool {
        let range = self.range.load(Ordering::Relaxed);
        let (es_lblk, es_len) = ((range >> 32) as u32, range as u32);
        // OK not to check: cannot overflow by the invariant of an extent.
        es_lblk < end && es_lblk.wrapping_add(es_len) > start
    }

    /// Called with the tree's lock held.
    fn set(&self, es: Option<ExtentStatus>) {
        self.set_in_steps(es, |_| ());
    }

    /// [`LastHit::set`], as [`LastHit::get_in_steps`].
    #[inline(always)]
    fn set_in_steps(&self, es: Option<ExtentStatus>, between: impl Fn(u32)) {
        sched_access(core::ptr::from_ref(self).cast(), true);
        let range = es.map_or(0, |es| u64::from(es.es_lblk) << 32 | u64::from(es.es_len));
        let seq = self.seq.load(Ordering::Relaxed);
        self.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees one of the two words below sees the odd count, too.
        fence(Ordering::Release);
        between(1);
        self.range.store(range, Ordering::Relaxed);
        between(2);
        self.es_pblk.store(es.map_or(0, |es| es.es_pblk), Ordering::Relaxed);
        between(3);
        self.seq.store(seq.wrapping_add(2), Ordering::Release);
    }
}

/// A file's extent status cache.
#[doc(alias = "ext4_es_tree")]
pub struct ExtentStatusTree {
    last: [LastHit; LAST_HITS],
    extents: SpinLock<Extents>,
}

impl Default for ExtentStatusTree {
    fn default() -> Self {
        Self::new()
    }
}

impl ExtentStatusTree {
    /// Empty.
    pub const fn new() -> Self {
        Self { last: [const { LastHit::new() }; LAST_HITS], extents: SpinLock::named("i_es_lock", Extents::new()) }
    }

    /// Which of the last hits a block is looked for in.
    #[inline]
    fn last(&self, lblk: u32) -> &LastHit {
        &self.last[(lblk >> LAST_HIT_BITS) as usize % LAST_HITS]
    }

    /// Called with the tree's lock held, when what is known of `start` to before `end` changes.
    ///
    /// What was hit elsewhere may stay, even if the tree does not know it any more: it was true when it was added, and whoever
    /// changes the map of those blocks removes them, and so comes here, too. So it is as true as what the tree still knows.
    fn forget_last(&self, start: u32, end: u32) {
        for last in self.last.iter().filter(|last| last.overlaps(start, end)) {
            last.set(None);
        }
    }

    /// Called with the tree's lock held.
    fn clear_locked(&self, extents: &mut Extents) {
        self.forget_last(0, u32::MAX);
        extents.clear();
    }

    /// [`ExtentStatusTree::lookup`] in the last hits alone: takes no lock.
    #[inline]
    pub fn lookup_last(&self, map: &mut MapBlocks) -> Option<u32> {
        self.last(map.m_lblk.0).get(map.m_lblk.0).map(|es| es.answer(map))
    }

    /// Answers `map` if the cache knows about `m_lblk`, as [`ExtentStatus::answer`] does. Any context; sleeps not.
    #[doc(alias = "ext4_es_lookup_extent")]
    #[inline]
    pub fn lookup(&self, map: &mut MapBlocks) -> Option<u32> {
        let es = match self.last(map.m_lblk.0).get(map.m_lblk.0) {
            Some(es) => es,
            None => self.lookup_slow(map.m_lblk)?,
        };
        Some(es.answer(map))
    }

    #[cold]
    fn lookup_slow(&self, lblk: Lblk) -> Option<ExtentStatus> {
        let extents = self.extents.lock();
        let es = extents.find(lblk.0)?;
        self.last(lblk.0).set(Some(es));
        Some(es)
    }

    /// Adds what a look-up found, with `i_data_sem` held since. What was known of the range is replaced.
    /// Without memory nothing is added.
    #[doc(alias = "ext4_es_cache_extent")]
    pub fn insert(&self, es: ExtentStatus) {
        let mut extents = self.extents.lock();
        // With the neighbours that it becomes one with: of those, a last hit would know a part only.
        let changed = if extents.remove(es.es_lblk, es.end()) { extents.insert(es) } else { es };
        self.forget_last(changed.es_lblk, changed.end());
    }

    /// Forgets `len` blocks from `lblk` on, which have changed, with `i_data_sem` held for writing.
    #[doc(alias = "ext4_es_remove_extent")]
    pub fn remove(&self, lblk: Lblk, len: u32) {
        let end = lblk.0.saturating_add(len);
        let mut extents = self.extents.lock();
        self.forget_last(lblk.0, end);
        if !extents.remove(lblk.0, end) {
            // There was no memory to cut an extent in two. All of it may go, none of it may stay.
            self.clear_locked(&mut extents);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.clear_locked(&mut self.extents.lock());
    }

    /// How many extents are known.
    pub fn nr_extents(&self) -> usize {
        self.extents.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use kernel_shim::alloc::{GFP_KERNEL, KVec};
    use kernel_shim::pr_info;

    use super::list::ES_MAX;
    use super::*;

    /// Blocks of the files below.
    const BLOCKS: u32 = 24;

    fn es(lblk: u32, len: u32, pblk: u64, status: EsStatus) -> ExtentStatus {
        ExtentStatus::new(Lblk(lblk), len, Fsblk(pblk), status).expect("not empty")
    }

    fn ask(tree: &ExtentStatusTree, lblk: u32) -> Option<(u32, MapBlocks)> {
        let mut map = MapBlocks::new(Lblk(lblk), BLOCKS);
        tree.lookup(&mut map).map(|blocks| (blocks, map))
    }

    #[test]
    fn extents_are_never_empty_or_out_of_range() {
        assert_eq!(ExtentStatus::new(Lblk(5), 0, Fsblk(1), EsStatus::Written), None);
        assert_eq!(ExtentStatus::new(Lblk(u32::MAX), 1, Fsblk(1), EsStatus::Written), None);
        assert_eq!(ExtentStatus::new(Lblk(0), 1, Fsblk(1 << 48), EsStatus::Written), None);
        assert!(ExtentStatus::new(Lblk(u32::MAX - 1), 1, Fsblk((1 << 48) - 1), EsStatus::Unwritten).is_some());
        assert_eq!(ExtentStatus::hole(7, 7), None);
        assert_eq!(ExtentStatus::hole(7, 3), None);
    }

    #[test]
    fn answers_are_those_of_ext4_map_blocks() {
        let tree = ExtentStatusTree::new();
        tree.insert(es(10, 4, 1000, EsStatus::Written));
        tree.insert(es(14, 4, 2000, EsStatus::Unwritten));
        tree.insert(ExtentStatus::hole(18, 30).expect("not empty"));
        let answer =
            |m_pblk, m_lblk, m_len, m_flags| MapBlocks { m_pblk: Fsblk(m_pblk), m_lblk: Lblk(m_lblk), m_len, m_flags };
        for _ in 0..2 {
            assert_eq!(ask(&tree, 9), None);
            assert_eq!(ask(&tree, 11), Some((3, answer(1001, 11, 3, MapFlags::MAPPED))));
            assert_eq!(ask(&tree, 17), Some((1, answer(2003, 17, 1, MapFlags::UNWRITTEN))));
            assert_eq!(ask(&tree, 20), Some((0, answer(0, 20, 10, MapFlags::empty()))));
            assert_eq!(ask(&tree, 30), None);
        }
        let mut two = MapBlocks::new(Lblk(11), 2);
        assert_eq!((tree.lookup(&mut two), two.m_len), (Some(2), 2));
    }

    #[test]
    fn neighbours_are_merged() {
        let tree = ExtentStatusTree::new();
        tree.insert(es(0, 2, 100, EsStatus::Written));
        tree.insert(es(4, 2, 104, EsStatus::Written));
        assert_eq!(tree.nr_extents(), 2);
        tree.insert(es(2, 2, 102, EsStatus::Written));
        assert_eq!(tree.nr_extents(), 1);
        assert_eq!(ask(&tree, 0).map(|(blocks, _)| blocks), Some(6));
        // Elsewhere on the device, or in another state, it is another extent.
        tree.insert(es(6, 2, 200, EsStatus::Written));
        tree.insert(es(8, 2, 202, EsStatus::Unwritten));
        assert_eq!(tree.nr_extents(), 3);
    }

    /// What each block of a file is, one by one.
    type Block = Option<(EsStatus, u64)>;

    /// Whether the list is as it should be, and the last hits are what it says, or of what it does not know any more. Returns its chunks.
    fn check(tree: &ExtentStatusTree) -> usize {
        let extents = tree.extents.lock();
        for last in &tree.last {
            let Some(hit) = last.get((last.range.load(Ordering::Relaxed) >> 32) as u32) else { continue };
            for es in [extents.find(hit.es_lblk), extents.find(hit.end() - 1)].into_iter().flatten() {
                assert_eq!(es, hit, "a last hit that is a part");
            }
        }
        extents.check()
    }

    /// Whether what the tree says of a block is right, and of those after it that it knows to be like it; or that it knows nothing.
    fn agree_at(tree: &ExtentStatusTree, model: &[Block], lblk: u32, may_forget: bool) {
        let Some((blocks, map)) = ask(tree, lblk) else {
            assert!(may_forget || model[lblk as usize].is_none(), "block {lblk} is not known");
            return;
        };
        let status = match map.m_flags {
            MapFlags::MAPPED => EsStatus::Written,
            MapFlags::UNWRITTEN => EsStatus::Unwritten,
            _ => EsStatus::Hole,
        };
        assert_eq!(blocks, if status == EsStatus::Hole { 0 } else { map.m_len });
        for i in 0..map.m_len {
            let pblk = if status == EsStatus::Hole { 0 } else { map.m_pblk.0 + u64::from(i) };
            assert_eq!(model[(lblk + i) as usize], Some((status, pblk)), "block {lblk} + {i}");
        }
    }

    fn agree(tree: &ExtentStatusTree, model: &[Block]) {
        check(tree);
        for lblk in 0..model.len() as u32 {
            agree_at(tree, model, lblk, false);
        }
    }

    fn insert(tree: &ExtentStatusTree, model: &mut [Block], es: ExtentStatus) {
        tree.insert(es);
        for lblk in es.es_lblk..es.end() {
            let pblk = es.pblk().0 + u64::from(lblk - es.es_lblk);
            let pblk = if es.status() == EsStatus::Hole { 0 } else { pblk };
            model[lblk as usize] = Some((es.status(), pblk));
        }
    }

    #[test]
    fn every_removal_from_every_two_extents_leaves_the_rest() {
        for gap in 0..3 {
            for status in [EsStatus::Written, EsStatus::Unwritten, EsStatus::Hole] {
                for start in 0..14 {
                    for len in 0..14 {
                        let (tree, mut model) = (ExtentStatusTree::new(), [None; BLOCKS as usize]);
                        insert(&tree, &mut model, es(2, 4, 1002, EsStatus::Written));
                        insert(&tree, &mut model, es(6 + gap, 4, 1006, status));
                        tree.remove(Lblk(start), len);
                        model[start as usize..(start + len).min(BLOCKS) as usize].fill(None);
                        agree(&tree, &model);
                    }
                }
            }
        }
    }

    fn random(state: &mut u64, below: u32) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32 % below
    }

    /// One change of `len` blocks from `lblk` on. `pblk` is where block 0 would be.
    fn change(tree: &ExtentStatusTree, model: &mut [Block], (lblk, len): (u32, u32), what: u32, pblk: u64) {
        let pblk = pblk + u64::from(lblk);
        match what {
            0 => insert(tree, model, es(lblk, len, pblk, EsStatus::Written)),
            1 => insert(tree, model, es(lblk, len, pblk, EsStatus::Unwritten)),
            2 => insert(tree, model, es(lblk, len, 0, EsStatus::Hole)),
            _ => {
                tree.remove(Lblk(lblk), len);
                model[lblk as usize..(lblk + len) as usize].fill(None);
            }
        }
    }

    #[test]
    fn any_sequence_of_changes_agrees_with_a_table() {
        for seed in 1..200u64 {
            let (tree, mut model) = (ExtentStatusTree::new(), [None; BLOCKS as usize]);
            let mut state = seed;
            for _ in 0..60 {
                let lblk = random(&mut state, BLOCKS);
                let len = 1 + random(&mut state, BLOCKS - lblk);
                change(&tree, &mut model, (lblk, len), random(&mut state, 4), 1000);
                agree(&tree, &model);
            }
        }
    }

    /// A file of which nothing is known.
    fn unknown(blocks: u32) -> KVec<Block> {
        KVec::from_elem(None, blocks as usize, GFP_KERNEL).expect("memory")
    }

    /// Changes all over a file, in rows up and down, and seldom of great ranges. Returns whether the tree was full at times.
    fn change_many(seed: u64, blocks: u32) -> bool {
        pr_info!("seed {seed}, {blocks} blocks");
        let (tree, mut model, mut state) = (ExtentStatusTree::new(), unknown(blocks), seed);
        let (mut full, mut chunks, mut most, mut fewer) = (false, 0, 0, 0);
        let (mut row, mut step) = (0, 0);
        for i in 0..12_000 {
            if i % 250 == 0 {
                (row, step) = (random(&mut state, blocks), [0, 0, 3, blocks - 3][random(&mut state, 4) as usize]);
            }
            row = if step == 0 { random(&mut state, blocks) } else { (row + step) % blocks };
            let len = match random(&mut state, 500) {
                0 => blocks / 3,
                1..40 => 40,
                _ => 3,
            };
            let len = (1 + random(&mut state, len)).min(blocks - row);
            // Not always contiguous with what is beside it.
            let pblk = 1 << (20 + random(&mut state, 3));
            change(&tree, &mut model, (row, len), random(&mut state, 5), pblk);
            full |= tree.nr_extents() == ES_MAX;
            let before = core::mem::replace(&mut chunks, check(&tree));
            most = most.max(chunks);
            fewer += u32::from(chunks < before);
            for lblk in [row.saturating_sub(1), row, row + len - 1, row + len, random(&mut state, blocks)] {
                agree_at(&tree, &model, lblk.min(blocks - 1), full);
            }
            if i % 500 == 0 {
                (0..blocks).for_each(|lblk| agree_at(&tree, &model, lblk, full));
            }
        }
        assert!(most > 20 && fewer > 10, "few chunks split or go: {most} at most, fewer {fewer} times");
        tree.remove(Lblk(0), u32::MAX);
        assert_eq!((check(&tree), tree.nr_extents()), (0, 0));
        full
    }

    #[test]
    fn any_sequence_of_changes_of_many_extents_agrees_with_a_table() {
        for seed in 1..=6 {
            // Nothing may be forgotten as long as there is room.
            assert!(!change_many(seed, 4_000));
            assert!(change_many(seed, 24_000));
        }
    }

    #[test]
    fn cutting_in_two_does_not_exceed_the_bound() {
        let tree = ExtentStatusTree::new();
        let mut model = unknown(5 * ES_MAX as u32);
        insert(&tree, &mut model, es(0, 5 * ES_MAX as u32, 1000, EsStatus::Written));
        for lblk in (1..5 * ES_MAX as u32).step_by(2) {
            change(&tree, &mut model, (lblk, 1), 3, 0);
            check(&tree);
            agree_at(&tree, &model, lblk, true);
        }
        (0..5 * ES_MAX as u32).for_each(|lblk| agree_at(&tree, &model, lblk, true));
    }

    #[test]
    fn what_changes_is_forgotten_by_the_last_hits_and_what_is_elsewhere_is_not() {
        let last = |tree: &ExtentStatusTree, lblk| {
            let mut map = MapBlocks::new(Lblk(lblk), BLOCKS);
            tree.lookup_last(&mut map).map(|blocks| (blocks, map.m_pblk.0))
        };
        // Two parts of the file, each with a last hit, share the extent in the second round.
        for lblk in [10, (1 << LAST_HIT_BITS) - 2] {
            for start in lblk - 8..lblk + 8 {
                for len in 1..12 {
                    for removed in [true, false] {
                        let tree = ExtentStatusTree::new();
                        tree.insert(es(lblk, 4, 1000, EsStatus::Written));
                        let asked =
                            [ask(&tree, lblk), ask(&tree, lblk + 3)].map(|answer| answer.map(|(blocks, _)| blocks));
                        assert_eq!(asked, [Some(4), Some(1)]);
                        match removed {
                            true => tree.remove(Lblk(start), len),
                            false => tree.insert(es(start, len, 9000, EsStatus::Unwritten)),
                        }
                        let overlap = start < lblk + 4 && lblk < start + len;
                        for (i, answer) in [(0, (4, 1000)), (3, (1, 1003))] {
                            assert_eq!(
                                last(&tree, lblk + i),
                                (!overlap).then_some(answer),
                                "{lblk}: {len} from {start}"
                            );
                        }
                        check(&tree);
                        tree.clear();
                        assert_eq!([last(&tree, lblk), last(&tree, lblk + 3)], [None; 2]);
                    }
                }
            }
        }
        // Nor does a last hit know a part of what has become one.
        let tree = ExtentStatusTree::new();
        tree.insert(es(10, 4, 1000, EsStatus::Written));
        assert_eq!(ask(&tree, 10).map(|(blocks, _)| blocks), Some(4));
        tree.insert(es(14, 4, 1004, EsStatus::Written));
        assert_eq!((last(&tree, 10), ask(&tree, 10).map(|(blocks, _)| blocks)), (None, Some(8)));
    }

    #[test]
    fn memory_is_bounded_and_what_stays_is_right() {
        let tree = ExtentStatusTree::new();
        for i in 0..3 * ES_MAX as u32 {
            tree.insert(es(2 * i, 1, 5000 + 7 * u64::from(i), EsStatus::Written));
            assert!(tree.nr_extents() <= ES_MAX);
        }
        assert_eq!(tree.nr_extents(), ES_MAX);
        let mut known = 0;
        for i in 0..3 * ES_MAX as u32 {
            if let Some((blocks, map)) = ask(&tree, 2 * i) {
                assert_eq!((blocks, map.m_pblk.0), (1, 5000 + 7 * u64::from(i)));
                known += 1;
            }
            assert_eq!(ask(&tree, 2 * i + 1), None);
        }
        assert_eq!(known, ES_MAX);
        tree.clear();
        assert_eq!(ask(&tree, 0), None);
    }

    #[test]
    fn a_read_without_the_lock_is_whole_wherever_a_change_comes_in_between() {
        let (old, new) = (es(0, 8, 1000, EsStatus::Written), es(0, 16, 1 << 40, EsStatus::Unwritten));
        for changed in [Some(new), None] {
            for step in 0..5 {
                // The change between two steps of the reader.
                let last = LastHit::new();
                last.set(Some(old));
                let read = last.get_in_steps(3, |at| {
                    if at == step {
                        last.set(changed)
                    }
                });
                assert_eq!(read, (!(1..=3).contains(&step)).then_some(old), "step {step}");
                // The reader between two steps of the change.
                let last = LastHit::new();
                last.set(Some(old));
                last.set_in_steps(changed, |at| {
                    if at == step {
                        assert_eq!(last.get(3), None, "step {step}");
                    }
                });
                assert_eq!(last.get(3), changed);
            }
        }
    }
}
