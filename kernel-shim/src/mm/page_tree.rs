// SPDX-License-Identifier: GPL-2.0-only
//! `lib/xarray.c`, as small as the page cache needs it: pages by number, with two tags.
//!
//! Nodes of 64 neighbours in a sorted array: finding the next dirty page is a look at a few words, and a page that comes in moves
//! one pointer for every 64 pages behind it, at most.

use super::page_cache::Page;
use crate::alloc::{Arc, GFP_ATOMIC, KBox, KVec};
use crate::error::Result;

/// Pages in a node: one bit each in its words.
const FANOUT: u64 = 64;

/// What pages can be looked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// Has blocks that are newer than on disk.
    Dirty = 0,
    /// Is on its way to the disk.
    Writeback = 1,
}

/// # Invariants
///
/// A bit of `present` is set exactly if its place in `pages` is filled; tags are set for pages that are there.
struct Node {
    present: u64,
    tags: [u64; 2],
    pages: [Option<Arc<Page>>; FANOUT as usize],
}

/// The pages of one file.
///
/// # Invariants
///
/// `nodes` is sorted, and no node is empty.
pub(super) struct PageTree {
    nodes: KVec<(u64, KBox<Node>)>,
    count: usize,
}

impl PageTree {
    pub(super) const fn new() -> Self {
        Self { nodes: KVec::new(), count: 0 }
    }

    /// Pages.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn place(&self, index: u64) -> core::result::Result<usize, usize> {
        let key = index / FANOUT;
        // Files are written from front to back.
        match self.nodes.last() {
            Some((last, _)) if *last == key => Ok(self.nodes.len() - 1),
            Some((last, _)) if *last < key => Err(self.nodes.len()),
            _ => self.nodes.binary_search_by_key(&key, |(key, _)| *key),
        }
    }

    fn node(&self, index: u64) -> Option<&Node> {
        self.place(index).ok().map(|at| &*self.nodes[at].1)
    }

    pub(super) fn get(&self, index: u64) -> Option<&Arc<Page>> {
        self.node(index)?.pages[(index % FANOUT) as usize].as_ref()
    }

    /// Adds a page that is not there. [`ENOMEM`](crate::error::code::ENOMEM).
    pub(super) fn insert(&mut self, page: Arc<Page>) -> Result {
        let index = page.index();
        let at = match self.place(index) {
            Ok(at) => at,
            Err(at) => {
                let node = Node { present: 0, tags: [0; 2], pages: [const { None }; FANOUT as usize] };
                let node = KBox::new(node, GFP_ATOMIC)?;
                // INVARIANT: filled below.
                self.nodes.insert(at, (index / FANOUT, node), GFP_ATOMIC)?;
                at
            }
        };
        let node = &mut self.nodes[at].1;
        let bit = index % FANOUT;
        if node.pages[bit as usize].replace(page).is_none() {
            node.present |= 1 << bit;
            self.count += 1;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, index: u64) -> Option<Arc<Page>> {
        let at = self.place(index).ok()?;
        let node = &mut self.nodes[at].1;
        let bit = index % FANOUT;
        let page = node.pages[bit as usize].take()?;
        node.present &= !(1 << bit);
        node.tags.iter_mut().for_each(|tag| *tag &= !(1 << bit));
        self.count -= 1;
        if node.present == 0 {
            self.nodes.remove(at);
        }
        Some(page)
    }

    /// Sets or clears a tag of a page that is there.
    pub(super) fn tag(&mut self, index: u64, tag: Tag, on: bool) {
        let Ok(at) = self.place(index) else { return };
        let node = &mut self.nodes[at].1;
        let bit = 1 << (index % FANOUT);
        if on {
            node.tags[tag as usize] |= bit & node.present;
        } else {
            node.tags[tag as usize] &= !bit;
        }
    }

    /// The first page from `first` to `last` whose bit is set in what `word` makes of a node's words: pages, dirty, written back.
    fn next(&self, first: u64, last: u64, word: impl Fn(u64, [u64; 2]) -> u64) -> Option<&Arc<Page>> {
        let start = self.place(first).unwrap_or_else(|at| at);
        for (key, node) in self.nodes.get(start..)? {
            let mut bits = word(node.present, node.tags);
            if *key == first / FANOUT {
                bits &= u64::MAX << (first % FANOUT);
            }
            if bits != 0 {
                let bit = bits.trailing_zeros();
                return node.pages[bit as usize].as_ref().filter(|page| page.index() <= last);
            }
            if *key >= last / FANOUT {
                return None;
            }
        }
        None
    }

    /// The first page from `first` to `last`.
    pub(super) fn next_page(&self, first: u64, last: u64) -> Option<&Arc<Page>> {
        self.next(first, last, |present, _| present)
    }

    /// The first page from `first` to `last` that is dirty or on its way to the disk.
    pub(super) fn next_unclean(&self, first: u64, last: u64) -> Option<&Arc<Page>> {
        self.next(first, last, |_, tags| tags[Tag::Dirty as usize] | tags[Tag::Writeback as usize])
    }

    /// The first page from `first` to `last` with a tag.
    pub(super) fn next_tagged(&self, first: u64, last: u64, tag: Tag) -> Option<&Arc<Page>> {
        self.next(first, last, |_, tags| tags[tag as usize])
    }
}
