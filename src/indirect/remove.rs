// SPDX-License-Identifier: GPL-2.0-only
//! Unmapping and freeing blocks of a file without extents, and the tables that nothing is left in.

use kernel_shim::error::Result;
use kernel_shim::error::code::EIO;

use super::create::{Chain, IndEdit};
use super::{Offsets, check_entry, entry, ext4_block_to_path};
use crate::Inode;
use crate::corrupt::Ext4Result;
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::extents::{ensure_or_restart, ext4_blocks_for_truncate, free_credits, prepare_to_free};
use crate::iget::ext4_get_inode_loc;
use crate::mballoc::{FreeFlags, ext4_free_blocks};

/// Pieces that are freed at once.
const BATCH: usize = 16;

/// Unmaps blocks `start` to before `end`, and frees them. Takes `i_data_sem` for writing, and lets it go where the handle has to
/// be restarted: the caller keeps everybody else away by `i_mutex` and the wait for direct I/O, has put the inode on the
/// list of orphans if it must not stay half-done, and has dropped the pages. Writes the inode. Sleeps.
///
/// Goes from the end to the beginning. PORT: C cuts whole branches off first and frees them afterwards, so that a block may be lost with a
/// crash in between; here a number goes from its table in the transaction that frees its block.
pub fn ext4_ind_remove_space(handle: &mut Handle<'_>, inode: &Inode, start: Lblk, end: Lblk) -> Result {
    let sb = inode.i_sb().s_fs_info();
    // A batch and the three tables above it, which may go, too; each is a block that changes, or a bitmap and a descriptor.
    let needed = (BATCH as u32 + 3) * free_credits(inode, 1) + 3 * 2 + ext4_blocks_for_truncate(inode);
    let n = 1u64 << (sb.s_blocksize_bits - 2);
    let mappable = u64::from(EXT4_NDIR_BLOCKS) + n + n * n + n * n * n;
    let mut before = end.0.min(u32::try_from(mappable).unwrap_or(u32::MAX));
    while before > start.0 {
        ensure_or_restart(handle, needed)?;
        let mut tree = inode.i_private().i_data_sem.write();
        let mut edit = IndEdit::new(handle, inode, &mut tree);
        let mut done = edit.remove_step(start.0, before);
        // Holes need no transaction each.
        while let Ok(next) = done
            && !edit.changed
            && next > start.0
            && next < before
        {
            before = next;
            done = edit.remove_step(start.0, before);
        }
        let written = edit.finish();
        let next = done.and_then(|next| written.map(|()| next)).map_err(|error| sb.ext4_error(error))?;
        // Each step ends lower than it began.
        if next >= before {
            return Err(EIO);
        }
        before = next;
    }
    inode.i_private().i_es_tree.remove(start, end.0.saturating_sub(start.0));
    Ok(())
}

impl IndEdit<'_, '_> {
    /// Removes some of what is between `start` and before `before`, from the end. Returns before which block there may be more.
    fn remove_step(&mut self, start: u32, before: u32) -> Ext4Result<u32> {
        let lblk = before - 1;
        let Offsets { path, .. } = ext4_block_to_path(self.ctx.sb.s_blocksize_bits, lblk).ok_or(EIO)?;
        let chain = self.branch(&path)?;
        let _table_block = ext4_get_inode_loc(self.ctx.sb, self.ctx.i_ino)?;
        // The tables on the way may go, too.
        for (table, _) in &chain {
            if let Some(bh) = table {
                prepare_to_free(self.ctx.sb, bh.block(), 1)?;
            }
        }
        let next = if chain.len() == path.len() {
            self.clear_numbers(&chain, start, lblk)?
        } else {
            // Nothing below this entry: its first block, counted back from this one by what is left of the path.
            let bits = u32::from(self.ctx.sb.s_blocksize_bits) - 2;
            let inside = path.iter().skip(chain.len()).fold(0u64, |sum, index| sum << bits | u64::from(*index));
            lblk.saturating_sub(u32::try_from(inside).unwrap_or(u32::MAX))
        };
        self.free_empty(chain)?;
        Ok(next.max(start))
    }

    /// Clears numbers of the last table, from that of `lblk` down to that of `start` at most, and frees the blocks. Returns the lowest block
    /// that was looked at.
    #[doc(alias = "ext4_free_data")]
    fn clear_numbers(&mut self, chain: &Chain, start: u32, lblk: u32) -> Ext4Result<u32> {
        let (table, last) = chain.last().ok_or(EIO)?;
        let lowest = last.saturating_sub(lblk - start);
        let mut runs = heapless::Vec::<(u32, u32), BATCH>::new();
        let mut from = *last;
        self.with_table(table, |bytes| -> Ext4Result {
            for index in (lowest..=*last).rev() {
                let block = entry(bytes, index)?;
                check_entry(&self.ctx, block)?;
                let grown = runs.last_mut().filter(|(first, _)| block.checked_add(1) == Some(*first));
                match grown {
                    _ if block == 0 => {}
                    Some((first, len)) => (*first, *len) = (block, *len + 1),
                    None => {
                        if runs.push((block, 1)).is_err() {
                            break;
                        }
                    }
                }
                from = index;
            }
            Ok(())
        })?;
        let low = lblk - (*last - from);
        for (first, len) in &runs {
            prepare_to_free(self.ctx.sb, u64::from(*first), *len)?;
        }
        if !runs.is_empty() {
            self.inode.i_private().i_es_tree.remove(Lblk(low), lblk - low + 1);
            self.put(table, from, (from..=*last).map(|_| 0))?;
            for (first, len) in runs {
                self.free_data(first, len)?;
            }
        }
        Ok(low)
    }

    /// Frees the tables on the way that nothing is left in, from the last one up.
    #[doc(alias = "ext4_free_branches")]
    fn free_empty(&mut self, mut chain: Chain) -> Ext4Result {
        while let Some((Some(bh), _)) = chain.pop() {
            if bh.read().iter().any(|byte| *byte != 0) {
                return Ok(());
            }
            let (parent, index) = chain.last().ok_or(EIO)?;
            self.put(parent, *index, [0].into_iter())?;
            ext4_free_blocks(self.handle, self.inode, Fsblk(bh.block()), 1, FreeFlags::METADATA)?;
        }
        Ok(())
    }
}
