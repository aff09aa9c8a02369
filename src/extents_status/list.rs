// SPDX-License-Identifier: GPL-2.0-only
//! The extents that a cache holds.

use kernel_shim::alloc::GFP_ATOMIC;

use super::ExtentStatus;
use crate::chunks::{At, Chunks};

/// Extents that a file's cache holds at most: 32 KiB, and not three times that in chunks that are not full.
pub(super) const ES_MAX: usize = 2048;
/// Extents in a chunk, which take 1 KiB with their number.
const CHUNK: usize = 63;

static_assertions::const_assert!(size_of::<heapless::Vec<ExtentStatus, CHUNK>>() <= 1024);

/// The extents, sorted and without overlaps.
pub(super) struct Extents {
    list: Chunks<ExtentStatus, CHUNK>,
    /// Goes round the chunks: the next one to give an extent when there are too many.
    victim: usize,
}

impl Extents {
    pub(super) const fn new() -> Self {
        Self { list: Chunks::new(), victim: 0 }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// The extent that has `lblk`.
    pub(super) fn find(&self, lblk: u32) -> Option<ExtentStatus> {
        self.list.get(self.list.seek(|es| es.end() <= lblk)).filter(|es| es.contains(lblk))
    }

    /// Cuts `start..end` out. False if an extent had to be cut in two and there was no memory for
    /// the second piece; then nothing is cut out.
    pub(super) fn remove(&mut self, start: u32, end: u32) -> bool {
        let first = self.list.seek(|es| es.end() <= start);
        let after = self.list.seek_on(first, |es| es.es_lblk < end);
        if start >= end || first >= after {
            return true;
        }
        let Some(last) = self.list.before(after) else { return true };
        let left = self.list.get(first).and_then(|es| es.clip(0, start));
        let right = self.list.get(last).and_then(|es| es.clip(end, u32::MAX));
        if first == last
            && let (Some(left), Some(right)) = (left, right)
        {
            if self.list.len() >= ES_MAX {
                // Not known is as good as known, only slower. That may have been this one, so look again.
                self.evict();
                return self.remove(start, end);
            }
            let Some(whole) = self.replace(first, right) else { return true };
            if self.list.put(first, left, GFP_ATOMIC).is_err() {
                self.replace(first, whole);
                return false;
            }
            return true;
        }
        // What is left of the outer two stays where it is.
        if let Some(left) = left {
            self.replace(first, left);
        }
        if let Some(right) = right {
            self.replace(last, right);
        }
        self.list
            .delete((first.0, first.1 + usize::from(left.is_some()))..(last.0, last.1 + usize::from(right.is_none())));
        true
    }

    /// Adds an extent to a range that is empty, merging it with its neighbours: returns what it is part of then.
    /// Without memory nothing is added.
    pub(super) fn insert(&mut self, es: ExtentStatus) -> ExtentStatus {
        if self.list.len() >= ES_MAX {
            self.evict();
        }
        let next = self.list.seek(|other| other.end() <= es.es_lblk);
        let before = self.list.before(next).and_then(|at| Some((at, self.list.get(at)?.merge(&es)?)));
        let es = before.map_or(es, |(_, es)| es);
        let after = self.list.get(next).and_then(|next| es.merge(&next));
        match (before, after) {
            (Some((at, _)), Some(all)) => {
                self.replace(at, all);
                self.list.remove(next);
                all
            }
            (Some((at, es)), None) => {
                self.replace(at, es);
                es
            }
            (None, Some(es)) => {
                self.replace(next, es);
                es
            }
            (None, None) => {
                // Not known is as good as known, only slower.
                let _ = self.list.put(next, es, GFP_ATOMIC);
                es
            }
        }
    }

    /// Puts `es` in the place of what is there, which it returns.
    fn replace(&mut self, at: At, es: ExtentStatus) -> Option<ExtentStatus> {
        self.list.get_mut(at).map(|place| core::mem::replace(place, es))
    }

    /// One extent gives way.
    fn evict(&mut self) {
        let chunk = self.victim % self.list.nr_chunks().max(1);
        self.victim = chunk + 1;
        if let Some(at) = self.list.last_in(chunk) {
            self.list.remove(at);
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = ExtentStatus> {
        self.list.iter()
    }

    /// Whether all is as it should be. Returns how many chunks there are.
    #[cfg(test)]
    pub(super) fn check(&self) -> usize {
        self.list.check();
        assert!(self.list.len() <= ES_MAX, "too many");
        for (es, next) in self.iter().zip(self.iter().skip(1)) {
            assert!(es.end() <= next.es_lblk, "sorted, without overlaps: {es:?} {next:?}");
            assert!(es.merge(&next).is_none(), "merged: {es:?} {next:?}");
        }
        self.list.nr_chunks()
    }
}
