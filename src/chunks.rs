// SPDX-License-Identifier: GPL-2.0-only
//! A sorted list in chunks: to find something takes two binary searches, and a change moves what is in one chunk, or two.

use core::ops::Range;

use kernel_shim::alloc::{AllocError, Flags, KBox, KVec};

/// A place in a list: a chunk, and a place in it.
pub(crate) type At = (usize, usize);

/// Things in an order that is their user's, `N` at most in a chunk.
///
/// # Invariants
///
/// No chunk is empty, and any two neighbours have more than [`Chunks::JOIN`] things together. `nr` is the number of all.
pub(crate) struct Chunks<T, const N: usize> {
    chunks: KVec<KBox<heapless::Vec<T, N>>>,
    nr: usize,
}

impl<T: Copy, const N: usize> Chunks<T, N> {
    /// As many in two neighbours become one chunk. Fewer than there are in the two halves of a full one: it takes many
    /// changes to come from one to the other.
    const JOIN: usize = N * 3 / 4;

    pub(crate) const fn new() -> Self {
        Self { chunks: KVec::new(), nr: 0 }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.nr
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.nr = 0;
    }

    /// How many chunks there are.
    pub(crate) fn nr_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The last place in a chunk.
    pub(crate) fn last_in(&self, chunk: usize) -> Option<At> {
        Some((chunk, self.chunks.get(chunk)?.len().checked_sub(1)?))
    }

    /// The first of which `is_before` does not hold, or the end of the list.
    #[inline]
    pub(crate) fn seek(&self, is_before: impl Fn(&T) -> bool) -> At {
        let chunk = self.chunks.partition_point(|chunk| chunk.last().is_some_and(&is_before));
        (chunk, self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(&is_before)))
    }

    /// The same, from `from` on: it is not far, mostly.
    #[inline]
    pub(crate) fn seek_on(&self, (chunk, mut at): At, is_before: impl Fn(&T) -> bool) -> At {
        match self.chunks.get(chunk) {
            Some(here) if here.last().is_some_and(|last| !is_before(last)) => {
                while here.get(at).is_some_and(&is_before) {
                    at += 1;
                }
                (chunk, at)
            }
            _ => self.seek(is_before),
        }
    }

    #[inline]
    pub(crate) fn get(&self, (chunk, at): At) -> Option<T> {
        self.chunks.get(chunk)?.get(at).copied()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, (chunk, at): At) -> Option<&mut T> {
        self.chunks.get_mut(chunk)?.get_mut(at)
    }

    /// The place before `at`.
    pub(crate) fn before(&self, (chunk, at): At) -> Option<At> {
        match at.checked_sub(1) {
            Some(at) => Some((chunk, at)),
            None => self.last_in(chunk.checked_sub(1)?),
        }
    }

    /// Puts `new` before what is at a place. Without memory nothing changes.
    pub(crate) fn put(&mut self, (mut chunk, mut at): At, new: T, flags: Flags) -> Result<(), AllocError> {
        if at == 0 && self.chunks.get(chunk).is_none_or(|chunk| chunk.is_full()) {
            // The end of the chunk before is the same place, unless there is none.
            match chunk.checked_sub(1) {
                Some(before) => (chunk, at) = (before, self.chunks[before].len()),
                None if self.chunks.is_empty() => self.add_chunk(0, flags)?,
                None => {}
            }
        }
        let split = self.chunks[chunk].is_full().then_some(chunk);
        if split.is_some() {
            self.add_chunk(chunk + 1, flags)?;
            // A row of additions leaves full chunks behind.
            let keep = if at == N { N } else { N / 2 };
            self.shift(chunk, keep);
            if at >= keep {
                (chunk, at) = (chunk + 1, at - keep);
            }
        }
        self.chunks[chunk].insert(at, new).map_err(|_| AllocError)?;
        self.nr += 1;
        if let Some(left) = split {
            self.tidy(left);
        }
        Ok(())
    }

    /// An empty chunk, which is not to stay so.
    fn add_chunk(&mut self, chunk: usize, flags: Flags) -> Result<(), AllocError> {
        self.chunks.insert(chunk, KBox::new(heapless::Vec::new(), flags)?, flags)
    }

    /// Moves what is behind the first `keep` of a chunk to the empty one behind it.
    fn shift(&mut self, chunk: usize, keep: usize) {
        if let [from, to, ..] = &mut self.chunks[chunk..] {
            // There is room for all that can be.
            let _ = to.extend_from_slice(&from[keep..]);
            from.truncate(keep);
        }
    }

    /// Takes out what is between two places, the first of which is not the end of the list.
    pub(crate) fn delete(&mut self, places: Range<At>) {
        let Range { start: from, end: mut to } = places;
        if let Some(last) = self.chunks.len().checked_sub(1).filter(|last| to.0 > *last) {
            to = (last, self.chunks[last].len());
        }
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

    /// Takes one out.
    pub(crate) fn remove(&mut self, at: At) -> Option<T> {
        let gone = self.get(at)?;
        self.delete(at..(at.0, at.1 + 1));
        Some(gone)
    }

    /// Takes the last one out.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.remove(self.last_in(self.nr_chunks().checked_sub(1)?)?)
    }

    /// Makes the invariants true again when a chunk, or the one behind it, too, has changed: joins them with their neighbours.
    fn tidy(&mut self, chunk: usize) {
        for left in (chunk.saturating_sub(1)..=chunk + 1).rev() {
            let Some([into, from, ..]) = self.chunks.get_mut(left..) else { continue };
            if into.len() + from.len() <= Self::JOIN || into.is_empty() || from.is_empty() {
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
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied())
    }

    /// Whether all is as it should be.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= N), "a chunk is empty");
        for pair in self.chunks.windows(2) {
            let (one, two) = (pair[0].len(), pair[1].len());
            assert!(one + two > Self::JOIN, "small neighbours: {one} and {two}");
        }
        assert_eq!(self.iter().count(), self.nr, "counted wrongly");
    }
}

#[cfg(test)]
mod tests {
    use kernel_shim::alloc::{GFP_KERNEL, KVec};

    use super::Chunks;

    /// Against a plain list: numbers are put in, taken out alone and in rows, and found.
    #[test]
    fn any_sequence_of_changes_agrees_with_a_list() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as usize % below.max(1)
        };
        let mut chunks = Chunks::<usize, 7>::new();
        let mut list = KVec::<usize>::new();
        for step in 0..20_000 {
            let number = random(300);
            let at = chunks.seek(|other| *other < number);
            let index = list.partition_point(|other| *other < number);
            assert_eq!(chunks.get(at), list.get(index).copied());
            assert_eq!(chunks.before(at).and_then(|at| chunks.get(at)), index.checked_sub(1).map(|n| list[n]));
            // More at first, fewer later on, and so on.
            if random(20) == 0 {
                assert_eq!(chunks.pop(), list.pop());
            } else if random(10) < if step / 1000 % 2 == 0 { 7 } else { 4 } {
                chunks.put(at, number, GFP_KERNEL).expect("memory");
                list.insert(index, number, GFP_KERNEL).expect("memory");
            } else if random(4) > 0 {
                let gone = chunks.remove(at);
                assert_eq!(gone, (index < list.len()).then(|| list.remove(index)));
            } else {
                let end = number + random(20);
                let behind = chunks.seek_on(at, |other| *other < end);
                assert_eq!(behind, chunks.seek(|other| *other < end));
                let count = list[index..].partition_point(|other| *other < end);
                if count > 0 {
                    chunks.delete(at..behind);
                    (0..count).for_each(|_| {
                        list.remove(index);
                    });
                }
            }
            chunks.check();
            assert!(chunks.iter().eq(list.iter().copied()), "step {step}");
            assert_eq!(chunks.len(), list.len());
        }
        chunks.clear();
        chunks.check();
    }
}
