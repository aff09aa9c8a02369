// SPDX-License-Identifier: GPL-2.0-only
//! `extents_status.c`: what recent look-ups in a file's block map found, written and unwritten extents
//! and holes, so that the next one need not go to the map nor take `i_data_sem`.
//!
//! PORT: C keeps a red-black tree under an rwlock. Here it is a sorted array of bounded length under
//! a spin lock, and in front of it, by parts of the file, the extents that were hit last, readable without any lock (a
//! sequence count): a file in a few pieces is looked up without writing to memory that CPUs share.
//!
//! Whoever adds what a look-up found still holds `i_data_sem` from the look-up; whoever changes the map
//! holds it for writing and [removes](ExtentStatusTree::remove) the range. So nothing stale is ever added.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use kernel_shim::alloc::{GFP_ATOMIC, KVec};
use kernel_shim::sched::{Point, sched_access, sched_point};
use kernel_shim::sync::SpinLock;

use crate::ext4::{Fsblk, Lblk, MapBlocks, MapFlags};

/// Extents that a file's cache holds at most: 32 KiB.
const ES_MAX: usize = 2048;
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

/// The extents, sorted and without overlaps.
struct Extents {
    list: KVec<ExtentStatus>,
    /// Goes round the list: the next to give way when it is full.
    victim: usize,
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
        Self {
            last: [const { LastHit::new() }; LAST_HITS],
            extents: SpinLock::named("i_es_lock", Extents { list: KVec::new(), victim: 0 }),
        }
    }

    /// Which of the last hits a block is looked for in.
    #[inline]
    fn last(&self, lblk: u32) -> &LastHit {
        &self.last[(lblk >> LAST_HIT_BITS) as usize % LAST_HITS]
    }

    /// Called with the tree's lock held, when it changes.
    fn forget_last(&self) {
        for last in &self.last {
            last.set(None);
        }
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
        self.forget_last();
        if extents.remove(es.es_lblk, es.end()) {
            extents.insert(es);
        }
    }

    /// Forgets `len` blocks from `lblk` on, which have changed, with `i_data_sem` held for writing.
    #[doc(alias = "ext4_es_remove_extent")]
    pub fn remove(&self, lblk: Lblk, len: u32) {
        let mut extents = self.extents.lock();
        self.forget_last();
        if !extents.remove(lblk.0, lblk.0.saturating_add(len)) {
            // There was no memory to cut an extent in two. All of it may go, none of it may stay.
            extents.list.clear();
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut extents = self.extents.lock();
        self.forget_last();
        extents.list.clear();
    }

    /// How many extents are known.
    pub fn nr_extents(&self) -> usize {
        self.extents.lock().list.len()
    }
}

impl Extents {
    fn find(&self, lblk: u32) -> Option<ExtentStatus> {
        let at = self.list.partition_point(|es| es.end() <= lblk);
        self.list.get(at).copied().filter(|es| es.contains(lblk))
    }

    /// Cuts `start..end` out. False if an extent had to be cut in two and there was no memory for
    /// the second piece; then nothing has changed.
    fn remove(&mut self, start: u32, end: u32) -> bool {
        let first = self.list.partition_point(|es| es.end() <= start);
        let after = self.list.partition_point(|es| es.es_lblk < end);
        if start >= end || first >= after {
            return true;
        }
        let left = self.list.get(first).and_then(|es| es.clip(0, start));
        let right = self.list.get(after - 1).and_then(|es| es.clip(end, u32::MAX));
        if after - first == 1 && left.is_some() && right.is_some() && self.list.reserve(1, GFP_ATOMIC).is_err() {
            return false;
        }
        // Put the pieces over the extents that go, and close what gap is left.
        let mut at = first;
        for piece in left.into_iter().chain(right) {
            if at < after {
                self.list[at] = piece;
            } else if self.list.insert(at, piece, GFP_ATOMIC).is_err() {
                // Cannot be: room was made above.
                return false;
            }
            at += 1;
        }
        if at < after {
            self.list.as_mut_slice().copy_within(after.., at);
            self.list.truncate(self.list.len() - (after - at));
        }
        true
    }

    /// Adds an extent to a range that is empty, merging it with its neighbours.
    fn insert(&mut self, es: ExtentStatus) {
        let mut at = self.list.partition_point(|other| other.end() <= es.es_lblk);
        let before = at.checked_sub(1).and_then(|before| self.list[before].merge(&es));
        let es = before.unwrap_or(es);
        let after = self.list.get(at).and_then(|next| es.merge(next));
        match (before, after) {
            (Some(_), Some(all)) => {
                self.list[at - 1] = all;
                self.list.remove(at);
            }
            (Some(es), None) => self.list[at - 1] = es,
            (None, Some(es)) => self.list[at] = es,
            (None, None) => {
                if self.list.len() >= ES_MAX {
                    let victim = self.victim % self.list.len();
                    self.victim = victim + 1;
                    self.list.remove(victim);
                    at -= usize::from(victim < at);
                }
                // Not known is as good as known, only slower.
                let _ = self.list.insert(at, es, GFP_ATOMIC);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
    type Model = [Option<(EsStatus, u64)>; BLOCKS as usize];

    fn agree(tree: &ExtentStatusTree, model: &Model) {
        let extents = tree.extents.lock();
        for pair in extents.list.windows(2) {
            assert!(pair[0].end() <= pair[1].es_lblk, "sorted, without overlaps: {pair:?}");
            assert!(pair[0].merge(&pair[1]).is_none(), "merged: {pair:?}");
        }
        drop(extents);
        for (lblk, expected) in (0..).zip(model) {
            let found = ask(tree, lblk).map(|(blocks, map)| match map.m_flags {
                MapFlags::MAPPED => (EsStatus::Written, map.m_pblk.0),
                MapFlags::UNWRITTEN => (EsStatus::Unwritten, map.m_pblk.0),
                _ => {
                    assert_eq!(blocks, 0);
                    (EsStatus::Hole, 0)
                }
            });
            assert_eq!(found, *expected, "block {lblk}");
        }
    }

    fn insert(tree: &ExtentStatusTree, model: &mut Model, es: ExtentStatus) {
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

    #[test]
    fn any_sequence_of_changes_agrees_with_a_table() {
        for seed in 1..200u64 {
            let (tree, mut model) = (ExtentStatusTree::new(), [None; BLOCKS as usize]);
            let mut state = seed;
            let mut random = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            for _ in 0..60 {
                let lblk = random(u64::from(BLOCKS)) as u32;
                let len = 1 + random(u64::from(BLOCKS - lblk)) as u32;
                match random(4) {
                    0 => insert(&tree, &mut model, es(lblk, len, 1000 + u64::from(lblk), EsStatus::Written)),
                    1 => insert(&tree, &mut model, es(lblk, len, 1000 + u64::from(lblk), EsStatus::Unwritten)),
                    2 => insert(&tree, &mut model, es(lblk, len, 0, EsStatus::Hole)),
                    _ => {
                        tree.remove(Lblk(lblk), len);
                        model[lblk as usize..(lblk + len) as usize].fill(None);
                    }
                }
                agree(&tree, &model);
            }
        }
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
