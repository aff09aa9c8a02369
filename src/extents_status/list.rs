// SPDX-License-Identifier: GPL-2.0-only
//! The extents that a cache holds, in chunks: to find one takes two binary searches, and a change moves what is in one chunk, or two.

use kernel_shim::alloc::{AllocError, GFP_ATOMIC, KBox, KVec};

use super::ExtentStatus;

/// Extents that a file's cache holds at most: 32 KiB, and not three times that in chunks that are not full.
pub(super) const ES_MAX: usize = 2048;
/// Extents in a chunk, which take 1 KiB with their number.
const CHUNK: usize = 63;
/// As many in two neighbours become one chunk. Fewer than there are in the two halves of a full one: it takes many
/// changes to come from one to the other.
const JOIN: usize = 47;

type Chunk = heapless::Vec<ExtentStatus, CHUNK>;

static_assertions::const_assert!(size_of::<Chunk>() <= 1024);

/// A place in the list: a chunk, and a place in it.
type At = (usize, usize);

/// The extents, sorted and without overlaps.
///
/// # Invariants
///
/// No chunk is empty, and any two neighbours have more than [`JOIN`] extents together. `nr` is the number of all.
pub(super) struct Extents {
    chunks: KVec<KBox<Chunk>>,
    nr: usize,
    /// Goes round the chunks: the next one to give an extent when there are too many.
    victim: usize,
}

impl Extents {
    pub(super) const fn new() -> Self {
        Self { chunks: KVec::new(), nr: 0, victim: 0 }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.nr
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.nr = 0;
    }

    /// The extent that has `lblk`.
    pub(super) fn find(&self, lblk: u32) -> Option<ExtentStatus> {
        self.get(self.seek(|es| es.end() <= lblk)).filter(|es| es.contains(lblk))
    }

    /// Cuts `start..end` out. False if an extent had to be cut in two and there was no memory for
    /// the second piece; then nothing is cut out.
    pub(super) fn remove(&mut self, start: u32, end: u32) -> bool {
        let first = self.seek(|es| es.end() <= start);
        let after = self.seek(|es| es.es_lblk < end);
        if start >= end || first >= after {
            return true;
        }
        let Some(last) = self.before(after) else { return true };
        let left = self.get(first).and_then(|es| es.clip(0, start));
        let right = self.get(last).and_then(|es| es.clip(end, u32::MAX));
        if first == last
            && let (Some(left), Some(right)) = (left, right)
        {
            if self.nr >= ES_MAX {
                // Not known is as good as known, only slower. That may have been this one, so look again.
                self.evict();
                return self.remove(start, end);
            }
            let whole = core::mem::replace(&mut self.chunks[first.0][first.1], right);
            if self.put(first, left).is_err() {
                self.chunks[first.0][first.1] = whole;
                return false;
            }
            return true;
        }
        // What is left of the outer two stays where it is.
        if let Some(left) = left {
            self.chunks[first.0][first.1] = left;
        }
        if let Some(right) = right {
            self.chunks[last.0][last.1] = right;
        }
        self.delete((first.0, first.1 + usize::from(left.is_some())), (last.0, last.1 + usize::from(right.is_none())));
        true
    }

    /// Adds an extent to a range that is empty, merging it with its neighbours: returns what it is part of then.
    /// Without memory nothing is added.
    pub(super) fn insert(&mut self, es: ExtentStatus) -> ExtentStatus {
        if self.nr >= ES_MAX {
            self.evict();
        }
        let next = self.seek(|other| other.end() <= es.es_lblk);
        let before = self.before(next).and_then(|at| Some((at, self.get(at)?.merge(&es)?)));
        let es = before.map_or(es, |(_, es)| es);
        let after = self.get(next).and_then(|next| es.merge(&next));
        match (before, after) {
            (Some((at, _)), Some(all)) => {
                self.chunks[at.0][at.1] = all;
                self.delete(next, (next.0, next.1 + 1));
                all
            }
            (Some((at, es)), None) => {
                self.chunks[at.0][at.1] = es;
                es
            }
            (None, Some(es)) => {
                self.chunks[next.0][next.1] = es;
                es
            }
            (None, None) => {
                // Not known is as good as known, only slower.
                let _ = self.put(next, es);
                es
            }
        }
    }

    /// The first extent of which `is_before` does not hold, or the end of the list.
    #[inline]
    fn seek(&self, is_before: impl Fn(&ExtentStatus) -> bool) -> At {
        let chunk = self.chunks.partition_point(|chunk| chunk.last().is_some_and(&is_before));
        (chunk, self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(&is_before)))
    }

    fn get(&self, (chunk, at): At) -> Option<ExtentStatus> {
        self.chunks.get(chunk)?.get(at).copied()
    }

    /// The place of the extent before `at`.
    fn before(&self, (chunk, at): At) -> Option<At> {
        match at.checked_sub(1) {
            Some(at) => Some((chunk, at)),
            None => Some((chunk.checked_sub(1)?, self.chunks[chunk - 1].len().checked_sub(1)?)),
        }
    }

    /// Puts `es` before the extent at a place. Without memory nothing changes.
    fn put(&mut self, (mut chunk, mut at): At, es: ExtentStatus) -> Result<(), AllocError> {
        if at == 0 && self.chunks.get(chunk).is_none_or(|chunk| chunk.is_full()) {
            // The end of the chunk before is the same place, unless there is none.
            match chunk.checked_sub(1) {
                Some(before) => (chunk, at) = (before, self.chunks[before].len()),
                None if self.chunks.is_empty() => self.add_chunk(0)?,
                None => {}
            }
        }
        let split = self.chunks[chunk].is_full().then_some(chunk);
        if split.is_some() {
            self.add_chunk(chunk + 1)?;
            // A row of extents leaves full chunks behind.
            let keep = if at == CHUNK { CHUNK } else { CHUNK / 2 };
            self.shift(chunk, keep);
            if at >= keep {
                (chunk, at) = (chunk + 1, at - keep);
            }
        }
        self.chunks[chunk].insert(at, es).map_err(|_| AllocError)?;
        self.nr += 1;
        if let Some(left) = split {
            self.tidy(left);
        }
        Ok(())
    }

    /// An empty chunk, which is not to stay so.
    fn add_chunk(&mut self, chunk: usize) -> Result<(), AllocError> {
        self.chunks.insert(chunk, KBox::new(Chunk::new(), GFP_ATOMIC)?, GFP_ATOMIC)
    }

    /// Moves what is behind the first `keep` extents of a chunk to the empty one behind it.
    fn shift(&mut self, chunk: usize, keep: usize) {
        if let [from, to, ..] = &mut self.chunks[chunk..] {
            // There is room for all that can be.
            let _ = to.extend_from_slice(&from[keep..]);
            from.truncate(keep);
        }
    }

    /// Takes out what is between two places, each in a chunk or at its end.
    fn delete(&mut self, from: At, to: At) {
        if from.0 == to.0 {
            self.chunks[from.0].drain(from.1..to.1);
            self.nr -= to.1 - from.1;
        } else {
            let whole = from.0 + 1..to.0;
            self.nr -= self.chunks[whole.clone()].iter().map(|chunk| chunk.len()).sum::<usize>();
            self.nr -= self.chunks[from.0].len() - from.1 + to.1;
            self.chunks[from.0].truncate(from.1);
            self.chunks[to.0].drain(..to.1);
            self.chunks[whole.start..].rotate_left(whole.len());
            self.chunks.truncate(self.chunks.len() - whole.len());
        }
        self.tidy(from.0);
    }

    /// One extent gives way.
    fn evict(&mut self) {
        let chunk = self.victim % self.chunks.len();
        self.victim = chunk + 1;
        let len = self.chunks[chunk].len();
        self.delete((chunk, len - 1), (chunk, len));
    }

    /// Makes the invariants true again when a chunk, or the one behind it, too, has changed: joins them with their neighbours.
    fn tidy(&mut self, chunk: usize) {
        for left in (chunk.saturating_sub(1)..=chunk + 1).rev() {
            let Some([into, from, ..]) = self.chunks.get_mut(left..) else { continue };
            if into.len() + from.len() <= JOIN || into.is_empty() || from.is_empty() {
                // There is room for JOIN, and for one of them.
                let _ = into.extend_from_slice(from);
                self.chunks.remove(left + 1);
            }
        }
        if self.nr == 0 {
            self.chunks.clear();
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = ExtentStatus> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied())
    }

    /// Whether all is as it should be. Returns how many chunks there are.
    #[cfg(test)]
    pub(super) fn check(&self) -> usize {
        assert!(self.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK), "a chunk is empty");
        for pair in self.chunks.windows(2) {
            assert!(pair[0].len() + pair[1].len() > JOIN, "small neighbours: {} and {}", pair[0].len(), pair[1].len());
        }
        assert_eq!(self.iter().count(), self.nr, "counted wrongly");
        assert!(self.nr <= ES_MAX, "too many");
        for (es, next) in self.iter().zip(self.iter().skip(1)) {
            assert!(es.end() <= next.es_lblk, "sorted, without overlaps: {es:?} {next:?}");
            assert!(es.merge(&next).is_none(), "merged: {es:?} {next:?}");
        }
        self.chunks.len()
    }
}
