// SPDX-License-Identifier: GPL-2.0-only
//! Changing an extent tree.
//!
//! All changes are one operation, [`TreeEdit::splice`]: some entries that follow each other in a leaf give way to some others. What that
//! does to the nodes above (a node splits, the root grows a level, a node is empty and goes, the first block of a node is another and
//! its index entry with it) follows from the leaf up, one splice in each level. PORT: C has a function for each of these
//! and undoes by hand what was done when a later one fails. Here everything that can fail comes first (new blocks, memory, access
//! to the nodes), so a change happens or does not happen: a split that finds no space leaves the old extents (G29).

use kernel_shim::alloc::{GFP_NOFAIL, GFP_NOFS, KVec};
use kernel_shim::error::code::{EFBIG, EIO};
use kernel_shim::fs::InodeState;
use kernel_shim::fs::buffer::BufferHead;

use super::{Bounds, ExtentTree, Node, read_extent_tree_block};
use crate::checksum::ext4_extent_block_csum;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::extents_status::{EsStatus, ExtentStatus};
use crate::iget::{InodeCtx, ext4_get_inode_loc, ext4_mark_inode_dirty_tree};
use crate::jbd2::Trigger;
use crate::le::Le;
use crate::mballoc::{AllocationRequest, FreeFlags, MbFlags, ext4_free_blocks, ext4_mb_new_blocks};
use crate::sb::Ext4SbInfo;
use crate::{Ext4State, Inode};

/// An entry of a node as it is on disk; extents and index entries have one size, and their first block in one place.
pub(super) type Record = [u8; Extent::LEN];

/// An extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ext {
    pub start: u32,
    pub len: u32,
    pub pblk: u64,
    pub unwritten: bool,
}

impl Ext {
    /// First block behind it.
    pub(super) fn end(&self) -> u32 {
        self.start.saturating_add(self.len)
    }

    /// Most blocks that one extent can have in this state.
    pub(super) const fn max_len(unwritten: bool) -> u32 {
        if unwritten { EXT_INIT_MAX_LEN as u32 - 1 } else { EXT_INIT_MAX_LEN as u32 }
    }

    /// The part from `start` to before `end`, if there is one.
    pub(super) fn part(&self, start: u32, end: u32) -> Option<Ext> {
        let (start, end) = (start.max(self.start), end.min(self.end()));
        let len = end.checked_sub(start).filter(|len| *len > 0)?;
        Some(Ext { start, len, pblk: self.pblk + u64::from(start - self.start), unwritten: self.unwritten })
    }

    /// The same blocks in another state.
    pub(super) fn with(self, unwritten: bool) -> Ext {
        Ext { unwritten, ..self }
    }

    /// Both as one.
    #[doc(alias = "ext4_can_extents_be_merged")]
    fn merge(&self, next: &Ext) -> Option<Ext> {
        let touches = self.end() == next.start && self.pblk.checked_add(u64::from(self.len)) == Some(next.pblk);
        let len = self.len.checked_add(next.len)?;
        (touches && self.unwritten == next.unwritten && len <= Self::max_len(self.unwritten))
            .then_some(Ext { len, ..*self })
    }

    pub(super) fn status(&self) -> Option<ExtentStatus> {
        let status = if self.unwritten { EsStatus::Unwritten } else { EsStatus::Written };
        ExtentStatus::new(Lblk(self.start), self.len, Fsblk(self.pblk), status)
    }

    pub(super) fn record(&self) -> Record {
        let mut record = Record::default();
        // Below the greatest length of the state, which is what the callers keep to.
        let len = (self.len as u16).wrapping_add(if self.unwritten { EXT_INIT_MAX_LEN } else { 0 });
        if let Some(mut extent) = Extent::<&mut [u8; 12]>::at_mut(&mut record, 0) {
            extent.set_ee_block(self.start);
            extent.set_ee_len(len);
            extent.set_ee_start_hi((self.pblk >> 32) as u16);
            extent.set_ee_start_lo(self.pblk as u32);
        }
        record
    }

    fn of(extent: &Extent<&[u8; 12]>) -> Ext {
        Ext {
            start: extent.ee_block(),
            len: extent.ext4_ext_get_actual_len(),
            pblk: extent.ext4_ext_pblock().0,
            unwritten: extent.ext4_ext_is_unwritten(),
        }
    }
}

fn index_record(start: u32, block: u64) -> Record {
    let mut record = Record::default();
    if let Some(mut idx) = ExtentIdx::<&mut [u8; 12]>::at_mut(&mut record, 0) {
        idx.set_ei_block(start);
        idx.set_ei_leaf_lo(block as u32);
        idx.set_ei_leaf_hi((block >> 32) as u16);
    }
    record
}

/// First logical block of an entry.
fn key(record: &Record) -> u32 {
    u32::get(record)
}

/// With which neighbours what is new becomes one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// With none: the range is going to be written to, and is an extent of its own until then (G16).
    None,
    /// Written ones only: unwritten ones beside may be under I/O, which is going to convert them as they are (G16).
    Written,
    /// With all.
    All,
}

/// A node on the way to a leaf.
pub(super) struct Step {
    /// None for the root.
    pub bh: Option<BufferHead>,
    /// The entry that was followed; in a leaf, the last extent that begins at or before the block.
    pub at: u16,
    pub entries: u16,
    max: u16,
    depth: u16,
}

/// The way to a leaf, root first. Never empty. Good until the tree is changed.
pub(super) struct Walk {
    steps: heapless::Vec<Step, { EXT4_MAX_EXTENT_DEPTH as usize + 1 }>,
    /// What the leaf may be about.
    pub bounds: Bounds,
}

impl Walk {
    pub(super) fn leaf(&self) -> Option<&Step> {
        self.steps.last()
    }
}

/// Somebody who changes a file's extent tree, with `i_data_sem` held for writing.
pub(super) struct TreeEdit<'e, 's> {
    pub handle: &'e mut Handle<'s>,
    pub inode: &'e Inode,
    pub tree: &'e mut ExtentTree,
    pub ctx: InodeCtx<'e>,
    /// New nodes may come from what is reserved: for changes that are in the way of giving up space, or that complete a write.
    pub reserve: bool,
    /// The inode has to be written.
    pub changed: bool,
}

/// Blocks for the nodes that a change needs, with create access.
type Fresh = heapless::Vec<BufferHead, { EXT4_MAX_EXTENT_DEPTH as usize + 1 }>;
/// Blocks of nodes that a change leaves empty.
type Gone = heapless::Vec<u64, { EXT4_MAX_EXTENT_DEPTH as usize + 1 }>;

impl<'e, 's> TreeEdit<'e, 's> {
    pub(super) fn new(handle: &'e mut Handle<'s>, inode: &'e Inode, tree: &'e mut ExtentTree) -> Self {
        Self { handle, inode, tree, ctx: InodeCtx::of(inode), reserve: false, changed: false }
    }

    /// Brings in what the end of every change needs, the inode's block of the table: EIO before anything has changed, not after.
    pub(super) fn prepare(&self) -> Ext4Result<BufferHead> {
        Ok(ext4_get_inode_loc(self.ctx.sb, self.ctx.i_ino)?.0)
    }

    /// The same for blocks that are going to be freed: the bitmaps of their groups.
    pub(super) fn prepare_to_free(&self, pblk: u64, len: u32) -> Ext4Result {
        prepare_to_free(self.ctx.sb, pblk, len)
    }

    /// Calls `f` with the node's header and entries.
    fn with_node<R>(&self, step: &Step, f: impl FnOnce(&Node<'_>) -> R) -> Ext4Result<R> {
        let guard = step.bh.as_ref().map(BufferHead::read);
        let node = Node::new(self.ctx.i_ino, guard.as_deref().unwrap_or(self.tree.i_data()), step.depth)?;
        Ok(f(&node))
    }

    /// Walks to the leaf that has `lblk`, or would have it. EFBIG, EIO, corruptions.
    #[doc(alias = "ext4_find_extent")]
    pub(super) fn walk(&self, lblk: u32) -> Ext4Result<Walk> {
        let ino = self.ctx.i_ino;
        if lblk == EXT_MAX_BLOCKS {
            return Err(EFBIG.into());
        }
        let mut walk = Walk { steps: heapless::Vec::new(), bounds: Bounds { start: 0, end: EXT_MAX_BLOCKS } };
        let mut depth = self.tree.depth();
        let mut bh = None;
        loop {
            let mut step = Step { bh, at: 0, entries: 0, max: 0, depth };
            let bounds = &mut walk.bounds;
            let child = {
                let guard = step.bh.as_ref().map(BufferHead::read);
                let node = Node::new(ino, guard.as_deref().unwrap_or(self.tree.i_data()), depth)?;
                step.at = node.search(lblk);
                step.entries = node.entries;
                step.max = ExtentHeader::at(node.bytes, 0).map_or(0, |header| header.eh_max());
                match node.idx(step.at).filter(|_| depth > 0) {
                    Some(idx) => {
                        // A block before the first entry would go to the first leaf.
                        if idx.ei_block() <= lblk {
                            bounds.start = bounds.start.max(idx.ei_block());
                        }
                        if let Some(next) = node.idx(step.at + 1) {
                            bounds.end = bounds.end.min(next.ei_block());
                        }
                        Some(idx.ext4_idx_pblock())
                    }
                    None => None,
                }
            };
            let bounds = *bounds;
            walk.steps.push(step).map_err(|_| Corrupt::ExtentDepth(ino))?;
            match child {
                None => return Ok(walk),
                Some(child) => {
                    // An index node has an entry at least, so depth is above 0 here.
                    depth = depth.checked_sub(1).ok_or(Corrupt::ExtentDepth(ino))?;
                    bh = Some(read_extent_tree_block(&self.ctx, child, depth, bounds)?);
                }
            }
        }
    }

    /// The `index`-th extent of the leaf.
    pub(super) fn extent(&self, walk: &Walk, index: u16) -> Ext4Result<Option<Ext>> {
        let leaf = walk.leaf().ok_or(EIO)?;
        self.with_node(leaf, |node| node.extent(index).map(|extent| Ext::of(&extent)))
    }

    /// What is known of `lblk`, which the walk was for: its place in the leaf, and the extent or the hole that it is in.
    pub(super) fn find(&self, walk: &Walk, lblk: u32) -> Ext4Result<(u16, ExtentStatus)> {
        let leaf = walk.leaf().ok_or(EIO)?;
        self.with_node(leaf, |node| node.find(self.ctx.i_ino, lblk, walk.bounds))?
    }

    /// Replaces `count` extents of the leaf from `first` on by `pieces`, three at most, which become one with each other and with what
    /// is beside them in the leaf as `merge` says. The extent status cache forgets what was there. ENOSPC, EIO: then nothing has changed.
    pub(super) fn replace(&mut self, walk: &Walk, first: u16, count: u16, pieces: &[Ext], merge: Merge) -> Ext4Result {
        let mut list = heapless::Vec::<Ext, 5>::new();
        let (mut at, mut remove) = (first, count);
        // All of them at once: forgetting what is between them costs a look-up at most.
        let (mut changes, mut changes_end) = (u32::MAX, 0);
        for index in first..first.saturating_add(count) {
            if let Some(ext) = self.extent(walk, index)? {
                (changes, changes_end) = (changes.min(ext.start), changes_end.max(ext.end()));
            }
        }
        for ext in pieces {
            (changes, changes_end) = (changes.min(ext.start), changes_end.max(ext.end()));
        }
        // Nobody may find the old map in the cache any more.
        self.inode.i_private().i_es_tree.remove(Lblk(changes), changes_end.saturating_sub(changes));
        if merge != Merge::None
            && let Some(before) = first.checked_sub(1)
            && let Some(before) = self.extent(walk, before)?
        {
            list.push(before).map_err(|_| EIO)?;
            (at, remove) = (at - 1, remove + 1);
        }
        let after = self.extent(walk, first.saturating_add(count))?.filter(|_| merge != Merge::None);
        remove += u16::from(after.is_some());
        for ext in pieces.iter().copied().chain(after) {
            let may = merge == Merge::All || (merge == Merge::Written && !ext.unwritten);
            match list.last_mut().and_then(|last| Some((last.merge(&ext).filter(|_| may)?, last))) {
                Some((both, last)) => *last = both,
                None => list.push(ext).map_err(|_| EIO)?,
            }
        }
        let mut records = heapless::Vec::<Record, 5>::new();
        for ext in &list {
            records.push(ext.record()).map_err(|_| EIO)?;
        }
        self.splice(walk, at, remove, &records)
    }

    /// Replaces `remove` entries of the leaf from `at` on by `new`, and brings the nodes above up to date. See the top of this file. The
    /// walk is no longer good afterwards.
    pub(super) fn splice(&mut self, walk: &Walk, at: u16, remove: u16, new: &[Record]) -> Ext4Result {
        let plan = Plan::make(walk, at, remove, new.len()).ok_or(Corrupt::ExtentEntries(self.ctx.i_ino))?;
        if plan.grows && walk.steps.first().is_some_and(|root| root.depth >= EXT4_MAX_EXTENT_DEPTH) {
            return Err(EFBIG.into());
        }
        // What gives up space or completes a write cannot be tried again by anybody: C's EXT4_EX_NOFAIL.
        let gfp = if self.reserve { GFP_NOFS | GFP_NOFAIL } else { GFP_NOFS };
        let mut room = KVec::with_capacity(plan.room, gfp)?;
        for step in walk.steps.iter().rev().take(plan.touched) {
            if let Some(bh) = &step.bh {
                self.handle.get_write_access(bh)?;
            }
        }
        for step in walk.steps.iter().rev().take(plan.gone) {
            if let Some(bh) = &step.bh {
                self.prepare_to_free(bh.block(), 1)?;
            }
        }
        let fresh = self.new_nodes(walk, plan.splits)?;
        self.changed = true;
        let gone = self.apply(walk, (at, remove, new), fresh, &mut room)?;
        // What the map no longer has is given back last: a failure loses blocks, and gives no block to two.
        for block in gone {
            ext4_free_blocks(self.handle, self.inode, Fsblk(block), 1, FreeFlags::METADATA)?;
        }
        Ok(())
    }

    /// Allocates blocks for nodes. All or none.
    fn new_nodes(&mut self, walk: &Walk, count: usize) -> Ext4Result<Fresh> {
        // Near the leaf that splits, or the data it is about.
        let goal = match walk.leaf().and_then(|leaf| leaf.bh.as_ref()) {
            Some(bh) => bh.block(),
            None => self.extent(walk, 0)?.map_or(0, |ext| ext.pblk),
        };
        let mut fresh = Fresh::new();
        while fresh.len() < count {
            match self.new_node_block(Fsblk(goal)) {
                Ok(bh) => fresh.push(bh).map_err(|_| EIO)?,
                Err(error) => {
                    for bh in fresh {
                        ext4_free_blocks(self.handle, self.inode, Fsblk(bh.block()), 1, FreeFlags::UNUSED)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(fresh)
    }

    #[doc(alias = "ext4_ext_new_meta_block")]
    fn new_node_block(&mut self, goal: Fsblk) -> Ext4Result<BufferHead> {
        let mut flags = MbFlags::NOPREALLOC;
        flags.set(MbFlags::USE_RESERVED, self.reserve);
        let ar = AllocationRequest { inode: self.inode, goal, logical: Lblk(0), len: 1, flags };
        let (block, _) = ext4_mb_new_blocks(self.handle, &ar)?;
        self.changed = true;
        let ready = match self.ctx.sb.buffers.getblk(block.0) {
            Ok(bh) => self.handle.get_create_access(&bh).map(|()| bh),
            Err(error) => Err(error),
        };
        if ready.is_err() {
            ext4_free_blocks(self.handle, self.inode, block, 1, FreeFlags::UNUSED)?;
        }
        Ok(ready?)
    }

    /// Carries a splice up from the leaf. Returns the blocks of nodes that are gone.
    fn apply(
        &mut self,
        walk: &Walk,
        (mut at, mut remove, new): (u16, u16, &[Record]),
        mut fresh: Fresh,
        room: &mut KVec<Record>,
    ) -> Ext4Result<Gone> {
        let mut gone = Gone::new();
        let mut above = heapless::Vec::<Record, 2>::new();
        let mut above_level = walk.steps.len();
        for step in walk.steps.iter().rev() {
            above_level -= 1;
            let is_leaf = above_level + 1 == walk.steps.len();
            let records = if is_leaf { new } else { above.as_slice() };
            let after = usize::from(step.entries - remove) + records.len();
            if after > usize::from(step.max) {
                let block = fresh.pop().ok_or(EIO)?;
                self.gather(step, at, remove, records, room)?;
                let Some(bh) = &step.bh else {
                    return self.ext4_ext_grow_indent(step, &block, room).map(|()| gone);
                };
                // One behind the other, as files are mostly written: what is there stays together, and the new node has room. Else half.
                let appends = at + remove == step.entries && !records.is_empty();
                let left = if appends { after - 1 } else { after / 2 }.clamp(1, usize::from(step.max));
                let (low, high) = room.split_at_checked(left).ok_or(EIO)?;
                let (Some(first), Some(second)) = (low.first(), high.first()) else { return Err(EIO.into()) };
                self.new_node(&block, step.depth, high)?;
                self.modify(step, |bytes| put_records(bytes, 0, low, low.len()))?;
                above = [index_record(key(first), bh.block()), index_record(key(second), block.block())]
                    .into_iter()
                    .collect();
            } else if after == 0
                && let Some(bh) = &step.bh
            {
                gone.push(bh.block()).map_err(|_| EIO)?;
                above.clear();
            } else {
                let before = self.with_node(step, |node| node.block(0))?;
                let first = self.modify(step, |bytes| splice_bytes(bytes, step.entries, at, remove, records))?;
                let Some(bh) = &step.bh else {
                    return self.reset_empty_root().map(|()| gone);
                };
                if first == before {
                    return Ok(gone);
                }
                above = [index_record(first, bh.block())].into_iter().collect();
            }
            // The same one level up: the entry that led here gives way to what leads to what is here now.
            let parent = above_level.checked_sub(1).and_then(|level| walk.steps.get(level)).ok_or(EIO)?;
            (at, remove) = (parent.at, 1);
        }
        Err(EIO.into())
    }

    /// A node's entries with the splice made, into `room`, which has been made large enough.
    fn gather(&self, step: &Step, at: u16, remove: u16, new: &[Record], room: &mut KVec<Record>) -> Ext4Result {
        room.truncate(0);
        let guard = step.bh.as_ref().map(BufferHead::read);
        let bytes = guard.as_deref().unwrap_or(self.tree.i_data());
        let old = |index: u16| {
            let from = ExtentHeader::LEN + usize::from(index) * Extent::LEN;
            bytes.get(from..).and_then(|bytes| bytes.first_chunk()).copied()
        };
        let records = (0..at).map(old).chain(new.iter().copied().map(Some)).chain((at + remove..step.entries).map(old));
        for record in records {
            room.push(record.ok_or(EIO)?, GFP_NOFS)?;
        }
        Ok(())
    }

    /// The root is full: all of it goes to a new node, and the root has one entry for that.
    fn ext4_ext_grow_indent(&mut self, root: &Step, block: &BufferHead, records: &[Record]) -> Ext4Result {
        let first = records.first().ok_or(EIO)?;
        self.new_node(block, root.depth, records)?;
        let bytes = self.tree.i_data_mut();
        put_header(bytes, root.depth + 1);
        put_records(bytes, 0, &[index_record(key(first), block.block())], 1);
        Ok(())
    }

    /// A tree without entries is a leaf.
    fn reset_empty_root(&mut self) -> Ext4Result {
        let bytes = self.tree.i_data_mut();
        let empty = ExtentHeader::at(bytes, 0).is_some_and(|header| header.eh_entries() == 0);
        if empty {
            put_header(bytes, 0);
        }
        Ok(())
    }

    /// Fills a block that was just allocated.
    fn new_node(&mut self, bh: &BufferHead, depth: u16, records: &[Record]) -> Ext4Result {
        {
            let mut bytes = bh.write();
            bytes.fill(0);
            put_header(&mut bytes, depth);
            put_records(&mut bytes, 0, records, records.len());
            self.set_tail_now(&mut bytes);
            bytes.set_uptodate();
        }
        bh.set_verified();
        self.dirty(bh)
    }

    /// Sets a changed node's checksum, unless there is a journal: then the commit does it, once for all changes of the transaction.
    fn set_tail_now(&self, bytes: &mut [u8]) {
        if self.ctx.sb.has_metadata_csum() && !self.handle.is_valid() {
            set_tail(bytes, self.ctx.i_csum_seed);
        }
    }

    /// A node was changed.
    #[doc(alias = "ext4_ext_dirty")]
    fn dirty(&mut self, bh: &BufferHead) -> Ext4Result {
        let trigger = Trigger { frozen: set_tail, seed: self.ctx.i_csum_seed };
        Ok(self.handle.dirty_metadata_triggered(bh, self.ctx.sb.has_metadata_csum().then_some(trigger))?)
    }

    /// Changes a node that access was asked for.
    fn modify<R>(&mut self, step: &Step, f: impl FnOnce(&mut [u8]) -> R) -> Ext4Result<R> {
        let Some(bh) = &step.bh else { return Ok(f(self.tree.i_data_mut())) };
        let result = {
            let mut bytes = bh.write();
            let result = f(&mut bytes);
            self.set_tail_now(&mut bytes);
            result
        };
        self.dirty(bh)?;
        Ok(result)
    }

    /// While the root has one entry, and what that leads to has room in the root: takes it up. What cannot be read now stays as it is.
    #[doc(alias = "ext4_ext_try_to_merge_up")]
    pub(super) fn shrink(&mut self) -> Ext4Result {
        for _ in 0..EXT4_MAX_EXTENT_DEPTH {
            let depth = self.tree.depth();
            let root = Node::new(self.ctx.i_ino, self.tree.i_data(), depth)?;
            if depth == 0 || root.entries != 1 {
                return Ok(());
            }
            let Some(idx) = root.idx(0) else { return Ok(()) };
            let (start, child) = (idx.ei_block(), idx.ext4_idx_pblock());
            // A bitmap, a descriptor, a revoke record, and the inode that the caller writes.
            if !self.handle.ensure_credits(4, 4)? {
                return Ok(());
            }
            let bounds = Bounds { start, end: EXT_MAX_BLOCKS };
            let Ok(bh) = read_extent_tree_block(&self.ctx, child, depth - 1, bounds) else { return Ok(()) };
            let mut records = heapless::Vec::<Record, 4>::new();
            {
                let bytes = bh.read();
                let node = Node::new(self.ctx.i_ino, &bytes, depth - 1)?;
                let all = bytes.get(ExtentHeader::LEN..).unwrap_or_default().chunks_exact(Extent::LEN);
                for record in all.take(usize::from(node.entries)) {
                    let Some(record) = record.first_chunk() else { return Ok(()) };
                    if records.push(*record).is_err() {
                        return Ok(());
                    }
                }
            }
            if self.prepare_to_free(child.0, 1).is_err() {
                return Ok(());
            }
            let bytes = self.tree.i_data_mut();
            put_header(bytes, depth - 1);
            put_records(bytes, 0, &records, records.len());
            self.changed = true;
            ext4_free_blocks(self.handle, self.inode, child, 1, FreeFlags::METADATA)?;
        }
        Ok(())
    }

    /// Writes the inode if the map or the number of blocks has changed.
    pub(super) fn finish(&mut self) -> Ext4Result {
        if !self.changed {
            return Ok(());
        }
        self.changed = false;
        finish_map_change(self.handle, self.inode, self.tree)
    }
}

/// Reads the bitmaps of blocks that are going to be freed.
pub(crate) fn prepare_to_free(sb: &Ext4SbInfo, pblk: u64, len: u32) -> Ext4Result {
    let group = |block| sb.ext4_get_group_no_and_offset(Fsblk(block)).map_or(0, |(group, _)| group.0);
    for group in group(pblk)..=group(pblk + u64::from(len.saturating_sub(1))) {
        sb.ext4_read_block_bitmap(Group(group))?;
    }
    Ok(())
}

/// Writes an inode whose map was changed, so that fsync knows of it.
pub(crate) fn finish_map_change(handle: &mut Handle<'_>, inode: &Inode, tree: &ExtentTree) -> Ext4Result {
    inode.mark_inode_dirty(InodeState::DIRTY_SYNC | InodeState::DIRTY_DATASYNC);
    if !handle.is_valid() {
        inode.i_private().state_set(Ext4State::UNSYNCED_META);
    }
    Ok(ext4_mark_inode_dirty_tree(handle, inode, tree)?)
}

/// What a splice is going to do, seen from the leaf up.
struct Plan {
    /// Blocks to allocate.
    splits: usize,
    /// The last of them for a new root.
    grows: bool,
    /// Levels that change, the leaf's first.
    touched: usize,
    /// Levels that have nothing left, of these.
    gone: usize,
    /// Entries of the largest node that splits, before it does.
    room: usize,
}

impl Plan {
    /// Nothing if the numbers cannot be.
    fn make(walk: &Walk, at: u16, remove: u16, new: usize) -> Option<Self> {
        let mut plan = Plan { splits: 0, grows: false, touched: 0, gone: 0, room: 0 };
        let (mut at, mut remove, mut new) = (at, remove, new);
        for (level, step) in walk.steps.iter().enumerate().rev() {
            if at.checked_add(remove)? > step.entries {
                return None;
            }
            plan.touched += 1;
            let after = usize::from(step.entries - remove) + new;
            let root = step.bh.is_none();
            if after > usize::from(step.max) {
                plan.splits += 1;
                plan.room = plan.room.max(after);
                plan.grows = root;
                new = 2;
            } else if after == 0 {
                plan.gone += usize::from(!root);
                new = 0;
            } else if at > 0 {
                return Some(plan);
            } else {
                new = 1;
            }
            if root {
                return Some(plan);
            }
            (at, remove) = (walk.steps.get(level.checked_sub(1)?)?.at, 1);
        }
        None
    }
}

/// The header of a node that has room for as many entries as fit, and none so far.
fn put_header(bytes: &mut [u8], depth: u16) {
    let max = bytes.len().saturating_sub(ExtentHeader::LEN) / Extent::LEN;
    if let Some(mut header) = ExtentHeader::<&mut [u8; 12]>::at_mut(bytes, 0) {
        header.set_eh_magic(EXT4_EXT_MAGIC);
        header.set_eh_entries(0);
        header.set_eh_max(max as u16);
        header.set_eh_depth(depth);
    }
}

/// Puts entries into their places from the `at`-th on; the node has `entries` then.
fn put_records(bytes: &mut [u8], at: usize, records: &[Record], entries: usize) {
    let places = bytes.get_mut(ExtentHeader::LEN + at * Extent::LEN..).unwrap_or_default();
    for (place, record) in places.chunks_exact_mut(Extent::LEN).zip(records) {
        place.copy_from_slice(record);
    }
    if let Some(mut header) = ExtentHeader::<&mut [u8; 12]>::at_mut(bytes, 0) {
        header.set_eh_entries(entries as u16);
    }
}

/// A splice that fits into the node. Returns the first block of its first entry.
fn splice_bytes(bytes: &mut [u8], entries: u16, at: u16, remove: u16, new: &[Record]) -> u32 {
    let place = |index: usize| ExtentHeader::LEN + index * Extent::LEN;
    let (at, rest) = (usize::from(at), usize::from(at + remove));
    let entries = usize::from(entries);
    let after = entries - (rest - at) + new.len();
    if place(after) <= bytes.len() && place(entries) <= bytes.len() {
        bytes.copy_within(place(rest)..place(entries), place(at + new.len()));
        put_records(bytes, at, new, after);
    }
    bytes.get(ExtentHeader::LEN..).map_or(0, u32::get)
}

/// Computes and stores a node's checksum.
#[doc(alias = "ext4_extent_block_csum_set")]
fn set_tail(bytes: &mut [u8], i_csum_seed: u32) {
    let Some(header) = ExtentHeader::at(bytes, 0) else { return };
    let tail = ExtentHeader::LEN + usize::from(header.eh_max()) * Extent::LEN;
    let Some((before, tail)) = bytes.split_at_mut_checked(tail) else { return };
    if let Some(tail) = tail.first_chunk_mut::<4>() {
        ext4_extent_block_csum(i_csum_seed, before).put(tail);
    }
}
