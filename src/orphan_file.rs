// SPDX-License-Identifier: GPL-2.0-only
//! The part of `orphan.c` that is about the orphan file: blocks of inode numbers, with a tail that has a magic number and a checksum.

use core::sync::atomic::{AtomicU32, Ordering};

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EIO, ENOSPC};
use kernel_shim::fs::buffer::BufferHead;

use crate::checksum::ext4_chksum;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::iget::{Iget, ext4_read_inode};
use crate::le::Le;
use crate::sb::Ext4SbInfo;

/// `ob_magic`.
const EXT4_ORPHAN_BLOCK_MAGIC: u32 = 0x0b10_ca04;
/// Bytes of the tail: `ob_magic` and `ob_checksum`.
const TAIL: usize = 8;
/// Most bytes that an orphan file may have.
const EXT4_MAX_ORPHAN_FILE: u64 = 8 << 20;

/// C's `struct ext4_orphan_info`.
pub(crate) struct OrphanFile {
    csum_seed: u32,
    has_csum: bool,
    slots_per_block: u32,
    blocks: KVec<OrphanBlock>,
}

struct OrphanBlock {
    bh: BufferHead,
    /// Slots that nobody has, or is about to take.
    free: AtomicU32,
}

impl OrphanFile {
    /// Reads and checks all of it.
    pub(crate) fn read(sb: &Ext4SbInfo) -> Ext4Result<Self> {
        let ino = sb.s_orphan_file_inum;
        let inode = ext4_read_inode(sb, ino, Iget::Special)?;
        if inode.i_size > EXT4_MAX_ORPHAN_FILE {
            return Err(Corrupt::OrphanFileSize(ino).into());
        }
        let slots_per_block = (sb.s_blocksize - TAIL as u32) / 4;
        let mut file = Self {
            csum_seed: inode.i_csum_seed,
            has_csum: sb.has_metadata_csum(),
            slots_per_block,
            blocks: KVec::new(),
        };
        for es in sb.map_special(&inode)? {
            for at in 0..u64::from(es.len()) {
                let bh = sb.buffers.bread(es.pblk().0 + at)?;
                let free = file.check_block(ino, &bh)?;
                file.blocks.push(OrphanBlock { bh, free: AtomicU32::new(free) }, GFP_KERNEL)?;
            }
        }
        Ok(file)
    }

    /// Checks a block; how many slots are free.
    fn check_block(&self, ino: Ino, bh: &BufferHead) -> Ext4Result<u32> {
        let bytes = bh.read();
        let (slots, tail) = bytes.split_at_checked(bytes.len().wrapping_sub(TAIL)).ok_or(EIO)?;
        if u32::get(tail) != EXT4_ORPHAN_BLOCK_MAGIC {
            return Err(Corrupt::OrphanFileMagic(ino).into());
        }
        if self.has_csum && u32::get(tail.get(4..).unwrap_or_default()) != self.csum(bh.block(), slots) {
            return Err(Corrupt::OrphanFileChecksum(ino).into());
        }
        Ok(u32::try_from(slots.chunks_exact(4).filter(|slot| u32::get(slot) == 0).count()).unwrap_or(0))
    }

    /// C's `ext4_orphan_file_block_csum`.
    fn csum(&self, block: u64, slots: &[u8]) -> u32 {
        ext4_chksum(ext4_chksum(self.csum_seed, &block.to_le_bytes()), slots)
    }

    /// Puts an inode's number into a free slot; which one. ENOSPC if there is none. Needs a credit. Sleeps.
    #[doc(alias = "ext4_orphan_file_add")]
    pub(crate) fn add(&self, handle: &mut Handle<'_>, ino: Ino) -> Result<u32> {
        let nr = u32::try_from(self.blocks.len()).unwrap_or(0);
        // CPUs begin at different blocks.
        let first = kernel_shim::sched::cpu_id() * 13;
        for at in (0..nr).map(|at| first.wrapping_add(at) % nr) {
            let Some(block) = self.blocks.get(at as usize) else { continue };
            let take = |free: u32| free.checked_sub(1);
            if block.free.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_err() {
                continue;
            }
            let slot = self.change(handle, block, |slots| {
                let at = slots.chunks_exact(4).position(|slot| u32::get(slot) == 0)?;
                ino.0.put(slots.get_mut(at * 4..at * 4 + 4)?);
                u32::try_from(at).ok()
            });
            return match slot {
                Ok(slot) => Ok(at * self.slots_per_block + slot),
                Err(error) => {
                    block.free.fetch_add(1, Ordering::AcqRel);
                    Err(error)
                }
            };
        }
        Err(ENOSPC)
    }

    /// Empties a slot. As [`OrphanFile::add`].
    #[doc(alias = "ext4_orphan_file_del")]
    pub(crate) fn del(&self, handle: &mut Handle<'_>, slot: u32) -> Result {
        let block = self.blocks.get((slot / self.slots_per_block) as usize).ok_or(EIO)?;
        let at = (slot % self.slots_per_block) as usize * 4;
        self.change(handle, block, |slots| {
            0u32.put(slots.get_mut(at..at + 4)?);
            Some(())
        })?;
        block.free.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Changes a block's slots under a handle.
    fn change<R>(
        &self,
        handle: &mut Handle<'_>,
        block: &OrphanBlock,
        change: impl FnOnce(&mut [u8]) -> Option<R>,
    ) -> Result<R> {
        handle.get_write_access(&block.bh)?;
        let done = {
            let mut bytes = block.bh.write();
            let len = bytes.len();
            let (slots, tail) = bytes.split_at_mut_checked(len.wrapping_sub(TAIL)).ok_or(EIO)?;
            let done = change(slots).ok_or(EIO)?;
            if self.has_csum {
                self.csum(block.bh.block(), slots).put(tail.get_mut(4..).unwrap_or_default());
            }
            done
        };
        handle.dirty_metadata(&block.bh)?;
        Ok(done)
    }

    /// Whether nobody is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.iter().all(|block| block.free.load(Ordering::Acquire) == self.slots_per_block)
    }

    /// The slots in use, and who is in them. ENOMEM.
    pub(crate) fn slots(&self) -> Result<KVec<(u32, Ino)>> {
        let mut used = KVec::new();
        for (block, first) in self.blocks.iter().zip((0u32..).step_by(self.slots_per_block as usize)) {
            let bytes = block.bh.read();
            let slots = bytes.chunks_exact(4).take(self.slots_per_block as usize);
            for (slot, at) in slots.zip(first..) {
                if u32::get(slot) != 0 {
                    used.push((at, Ino(u32::get(slot))), GFP_KERNEL)?;
                }
            }
        }
        Ok(used)
    }
}
