// SPDX-License-Identifier: GPL-2.0-only
//! Allocating blocks for a file without extents, and changing its tables.

use kernel_shim::error::Result;
use kernel_shim::error::code::{EFBIG, EINVAL, EIO, ENOSPC};
use kernel_shim::fs::buffer::BufferHead;

use super::{Offsets, check_entry, entry, ext4_block_to_path, ext4_ind_lookup};
use crate::Inode;
use crate::corrupt::{Ext4Error, Ext4Result};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::extents::{ExtentTree, ext4_issue_zeroout, finish_map_change, free_flags};
use crate::extents_status::{EsStatus, ExtentStatus};
use crate::iget::{InodeCtx, ext4_get_inode_loc};
use crate::le::Le;
use crate::mballoc::{AllocationRequest, FreeFlags, MbFlags, ext4_free_blocks, ext4_mb_new_blocks};

/// [`ext4_map_create_blocks`](crate::inode::ext4_map_create_blocks) for an inode's block numbers, with `i_data_sem` held for writing,
/// which `tree` was reached through. Brings the extent status cache up to date and writes the inode.
///
/// There is no unwritten here: with `CREATE` holes become written blocks that hold whatever was there, or zeros with `ZERO`. The
/// caller sees to it that nobody reads them before they are filled. EFBIG beyond the last block that can be mapped.
pub fn ext4_ind_map_create_blocks(
    handle: &mut Handle<'_>,
    inode: &Inode,
    tree: &mut ExtentTree,
    map: &mut MapBlocks,
    flags: GetBlocks,
) -> Result<u32> {
    if map.m_len == 0 {
        return Err(EINVAL);
    }
    let mut edit = IndEdit::new(handle, inode, tree);
    let done = edit.map_create(map, flags);
    let written = edit.finish();
    let sb = inode.i_sb().s_fs_info();
    let (es, new) = done.and_then(|answer| written.map(|()| answer)).map_err(|error| sb.ext4_error(error))?;
    inode.i_private().i_es_tree.insert(es);
    let blocks = es.answer(map);
    map.m_flags.set(MapFlags::NEW, new);
    Ok(blocks)
}

/// A table of block numbers: the inode's, or a block.
pub(super) type Table = Option<BufferHead>;

/// The way to the first entry that is 0, root first: a table and an index into it, for each level.
pub(super) type Chain = heapless::Vec<(Table, u32), 4>;

/// Somebody who changes a file's block numbers, with `i_data_sem` held for writing.
pub(super) struct IndEdit<'e, 's> {
    pub handle: &'e mut Handle<'s>,
    pub inode: &'e Inode,
    pub tree: &'e mut ExtentTree,
    pub ctx: InodeCtx<'e>,
    /// The inode has to be written.
    pub changed: bool,
}

impl<'e, 's> IndEdit<'e, 's> {
    pub(super) fn new(handle: &'e mut Handle<'s>, inode: &'e Inode, tree: &'e mut ExtentTree) -> Self {
        Self { handle, inode, tree, ctx: InodeCtx::of(inode), changed: false }
    }

    /// Block numbers in a table that is a block.
    pub(super) fn addr_per_block(&self) -> u32 {
        1 << (self.ctx.sb.s_blocksize_bits - 2)
    }

    /// Calls `f` with a table's bytes.
    pub(super) fn with_table<R>(&self, table: &Table, f: impl FnOnce(&[u8]) -> R) -> R {
        match table {
            Some(bh) => f(&bh.read()),
            None => f(self.tree.i_data()),
        }
    }

    /// Puts numbers into a table from the `index`-th entry on.
    pub(super) fn put(&mut self, table: &Table, index: u32, numbers: impl Iterator<Item = u32>) -> Ext4Result {
        self.changed = true;
        let Some(bh) = table else {
            put_numbers(self.tree.i_data_mut(), index, numbers);
            return Ok(());
        };
        self.handle.get_write_access(bh)?;
        put_numbers(&mut bh.write(), index, numbers);
        self.handle.dirty_metadata(bh)?;
        Ok(())
    }

    /// Writes the inode if its map or the number of its blocks has changed.
    pub(super) fn finish(&mut self) -> Ext4Result {
        if !self.changed {
            return Ok(());
        }
        self.changed = false;
        finish_map_change(self.handle, self.inode, self.tree)
    }

    /// As far as there are tables on the way of `path`. The last entry is 0, or of the last level.
    #[doc(alias = "ext4_get_branch")]
    pub(super) fn branch(&self, path: &[u32]) -> Ext4Result<Chain> {
        let mut chain = Chain::new();
        let mut table = None;
        for (level, index) in path.iter().enumerate() {
            let block = self.with_table(&table, |bytes| entry(bytes, *index))?;
            chain.push((table, *index)).map_err(|_| EIO)?;
            check_entry(&self.ctx, block)?;
            if block == 0 || level + 1 == path.len() {
                return Ok(chain);
            }
            table = Some(self.ctx.sb.buffers.bread(u64::from(block))?);
        }
        Err(EIO.into())
    }

    /// What is at `m_lblk` when it returns, and whether the blocks are new.
    fn map_create(&mut self, map: &MapBlocks, flags: GetBlocks) -> Ext4Result<(ExtentStatus, bool)> {
        let _table_block = ext4_get_inode_loc(self.ctx.sb, self.ctx.i_ino)?;
        let es = ext4_ind_lookup(&self.ctx, self.tree, map.m_lblk)?;
        if es.status() != EsStatus::Hole || !flags.contains(GetBlocks::CREATE) {
            return Ok((es, false));
        }
        if flags.contains(GetBlocks::CONVERT) {
            // Whoever unmaps waits for I/O: its blocks cannot be gone.
            return Err(EIO.into());
        }
        let lblk = map.m_lblk.0;
        let Offsets { path, .. } = ext4_block_to_path(self.ctx.sb.s_blocksize_bits, lblk).ok_or(EFBIG)?;
        let chain = self.branch(&path)?;
        let count = self.blks_to_allocate(&chain, &path, map.m_len)?.min(EXT_MAX_BLOCKS - lblk);
        let (pblk, len) = self.alloc_branch(&chain, &path, lblk, count, flags)?;
        self.inode.i_private().i_es_tree.remove(Lblk(lblk), len);
        let es = ExtentStatus::new(Lblk(lblk), len, Fsblk(u64::from(pblk)), EsStatus::Written);
        Ok((es.ok_or(EIO)?, true))
    }

    /// How many blocks can be added in one table, up to `max`.
    #[doc(alias = "ext4_blks_to_allocate")]
    fn blks_to_allocate(&self, chain: &Chain, path: &[u32], max: u32) -> Ext4Result<u32> {
        let (table, _) = chain.last().ok_or(EIO)?;
        let index = *path.last().ok_or(EIO)?;
        let limit = if path.len() == 1 { EXT4_NDIR_BLOCKS } else { self.addr_per_block() };
        let room = max.min(limit.saturating_sub(index));
        if chain.len() < path.len() {
            return Ok(room);
        }
        self.with_table(table, |bytes| {
            let mut count = 0;
            while count < room && entry(bytes, index + count)? == 0 {
                count += 1;
            }
            Ok(count)
        })
    }

    /// Where new blocks should best be: as far behind the nearest one before in the same table as they are in the file, near the table, or where the inode is.
    #[doc(alias = "ext4_find_near")]
    fn goal(&self, chain: &Chain) -> Ext4Result<Fsblk> {
        let (table, index) = chain.last().ok_or(EIO)?;
        let near = self.with_table(table, |bytes| {
            for before in (0..*index).rev() {
                let block = entry(bytes, before)?;
                if block != 0 {
                    return Ok::<u32, Ext4Error>(block.saturating_add(index - before));
                }
            }
            Ok(0)
        })?;
        Ok(match (near, table) {
            (0, Some(bh)) => Fsblk(bh.block()),
            (0, None) => self.ctx.sb.ext4_inode_to_goal_block(self.inode),
            (near, _) => Fsblk(u64::from(near)),
        })
    }

    /// Allocates blocks `lblk` and following, `count` at most, and the tables that lead to them; then makes all of it part of the file with
    /// the last write. All or nothing.
    #[doc(alias = "ext4_splice_branch")]
    fn alloc_branch(
        &mut self,
        chain: &Chain,
        path: &[u32],
        lblk: u32,
        count: u32,
        flags: GetBlocks,
    ) -> Ext4Result<(u32, u32)> {
        let (parent, index) = chain.last().ok_or(EIO)?;
        if let Some(bh) = parent {
            self.handle.get_write_access(bh)?;
        }
        let below = path.get(chain.len()..).unwrap_or_default();
        let mut goal = self.goal(chain)?;
        let mut tables = heapless::Vec::<BufferHead, 3>::new();
        let mut data = None;
        let made = self.alloc_all(&mut goal, below.len(), &mut tables, lblk, count, &mut data);
        let made = match (made, data) {
            (Ok(()), Some((pblk, len))) if flags.contains(GetBlocks::ZERO) => {
                ext4_issue_zeroout(self.inode, Fsblk(u64::from(pblk)), len)
            }
            (made, _) => made,
        };
        let (pblk, len) = match (made, data) {
            (Ok(()), Some(data)) => data,
            (made, data) => {
                // Nobody has seen any of it.
                for bh in tables {
                    ext4_free_blocks(self.handle, self.inode, Fsblk(bh.block()), 1, FreeFlags::UNUSED)?;
                }
                if let Some((pblk, len)) = data {
                    ext4_free_blocks(self.handle, self.inode, Fsblk(u64::from(pblk)), len, FreeFlags::UNUSED)?;
                }
                return Err(made.err().unwrap_or(ENOSPC.into()));
            }
        };
        let numbers = |at: usize| {
            // What a table below the parent leads to: the next one, or the data.
            let next = tables.get(at).map(|bh| bh.block() as u32);
            (0..if next.is_some() { 1 } else { len }).map(move |n| next.unwrap_or(pblk + n))
        };
        for ((at, bh), index) in tables.iter().enumerate().zip(below) {
            {
                let mut bytes = bh.write();
                bytes.fill(0);
                put_numbers(&mut bytes, *index, numbers(at + 1));
                bytes.set_uptodate();
            }
            self.handle.dirty_metadata(bh)?;
        }
        self.put(parent, *index, numbers(0))?;
        Ok((pblk, len))
    }

    /// The blocks of [`IndEdit::alloc_branch`]: what is in `tables` and `data` was allocated, whatever the result.
    fn alloc_all(
        &mut self,
        goal: &mut Fsblk,
        nr_tables: usize,
        tables: &mut heapless::Vec<BufferHead, 3>,
        lblk: u32,
        count: u32,
        data: &mut Option<(u32, u32)>,
    ) -> Ext4Result {
        while tables.len() < nr_tables {
            let (block, _) = self.new_blocks(*goal, lblk, 1, MbFlags::NOPREALLOC)?;
            let bh = match self.ctx.sb.buffers.getblk(u64::from(block)) {
                Ok(bh) => bh,
                Err(error) => {
                    ext4_free_blocks(self.handle, self.inode, Fsblk(u64::from(block)), 1, FreeFlags::UNUSED)?;
                    return Err(error.into());
                }
            };
            // At most three, as a path has four parts.
            tables.push(bh.clone()).map_err(|_| EIO)?;
            self.handle.get_create_access(&bh)?;
            *goal = Fsblk(u64::from(block) + 1);
        }
        let flags = if self.inode.is_reg() { MbFlags::DATA } else { MbFlags::NOPREALLOC };
        *data = Some(self.new_blocks(*goal, lblk, count, flags)?);
        Ok(())
    }

    /// Allocates blocks whose numbers fit a table.
    fn new_blocks(&mut self, goal: Fsblk, lblk: u32, len: u32, flags: MbFlags) -> Ext4Result<(u32, u32)> {
        let ar = AllocationRequest { inode: self.inode, goal, logical: Lblk(lblk), len, flags };
        let (pblk, got) = ext4_mb_new_blocks(self.handle, &ar)?;
        self.changed = true;
        match (u32::try_from(pblk.0), u32::try_from(pblk.0 + u64::from(got))) {
            (Ok(first), Ok(_)) => Ok((first, got)),
            _ => {
                ext4_free_blocks(self.handle, self.inode, pblk, got, FreeFlags::UNUSED)?;
                Err(ENOSPC.into())
            }
        }
    }

    /// Frees blocks of data.
    pub(super) fn free_data(&mut self, first: u32, len: u32) -> Ext4Result {
        let flags = free_flags(self.inode);
        Ok(ext4_free_blocks(self.handle, self.inode, Fsblk(u64::from(first)), len, flags)?)
    }
}

fn put_numbers(table: &mut [u8], index: u32, numbers: impl Iterator<Item = u32>) {
    let places = table.get_mut(index as usize * u32::SIZE..).unwrap_or_default();
    for (place, number) in places.chunks_exact_mut(u32::SIZE).zip(numbers) {
        number.put(place);
    }
}
