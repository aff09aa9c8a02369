// SPDX-License-Identifier: GPL-2.0-only
//! What of the journal's super block and map has to be true: `journal_check_superblock` of `fs/jbd2/journal.c`.

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::block::{Bdev, SECTOR_SHIFT};
use kernel_shim::error::{Error, Result, code::*};

use super::disk::*;
use super::{LogExtent, Tid};
use crate::checksum::ext4_chksum;

/// The map in order, without holes, on the device; and how many blocks it has. EFSCORRUPTED if it is something else; ENOMEM.
pub(super) fn check_map(bdev: &Bdev, blocksize: u32, extents: &[LogExtent]) -> Result<(KVec<LogExtent>, u32)> {
    let blocks_on_disk = bdev.nr_sectors() / (u64::from(blocksize) >> SECTOR_SHIFT).max(1);
    let mut map = KVec::with_capacity(extents.len(), GFP_KERNEL)?;
    let mut next = 0u32;
    for extent in extents {
        let end = extent.pblk.checked_add(u64::from(extent.len)).ok_or(EFSCORRUPTED)?;
        if extent.lblk != next || extent.len == 0 || end > blocks_on_disk {
            return Err(EFSCORRUPTED);
        }
        next = next.checked_add(extent.len).ok_or(EFSCORRUPTED)?;
        map.push(*extent, GFP_KERNEL)?;
    }
    let good = next > 0 && blocksize >= 1024 && blocksize.is_power_of_two();
    if good { Ok((map, next)) } else { Err(EFSCORRUPTED) }
}

/// A super block that makes sense.
pub(super) struct CheckedSb {
    pub(super) format: Format,
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) fc_last: u32,
    pub(super) sequence: Tid,
    pub(super) start: u32,
}

impl CheckedSb {
    #[doc(alias = "journal_check_superblock")]
    pub(super) fn check(bytes: &[u8], blocksize: u32, blocks: u32) -> Result<Self, (&'static str, Error)> {
        let sb = JournalSbView::at(bytes, 0).ok_or(("too small", EINVAL))?;
        let blocktype = sb.h_blocktype().0;
        if sb.h_magic().0 != JBD2_MAGIC_NUMBER || sb.s_blocksize().0 != blocksize {
            return Err(("no journal super block", EINVAL));
        }
        let v2 = match blocktype {
            blocktype::SUPERBLOCK_V1 => false,
            blocktype::SUPERBLOCK_V2 => true,
            _ => return Err(("unknown super block format", EINVAL)),
        };
        let (mut compat, mut incompat) = (Compat::empty(), Incompat::empty());
        if v2 {
            compat = Compat::from_bits(sb.s_feature_compat().0)
                .unwrap_or(Compat::from_bits_truncate(sb.s_feature_compat().0));
            incompat = Incompat::from_bits(sb.s_feature_incompat().0).ok_or(("unknown features", EINVAL))?;
            if sb.s_feature_ro_compat().0 != 0 {
                return Err(("unknown features", EINVAL));
            }
        }
        let csum = incompat.intersection(Incompat::CSUM_V2 | Incompat::CSUM_V3);
        if csum == Incompat::CSUM_V2 | Incompat::CSUM_V3 || (!csum.is_empty() && compat.contains(Compat::CHECKSUM)) {
            return Err(("several kinds of checksums", EINVAL));
        }
        if !csum.is_empty() {
            if sb.s_checksum_type() != JBD2_CRC32C_CHKSUM {
                return Err(("unknown checksum algorithm", EINVAL));
            }
            if sb.s_checksum().0 != superblock_csum(bytes) {
                return Err(("super block's checksum is wrong", EFSBADCRC));
            }
        }
        let (first, maxlen, start) = (sb.s_first().0, sb.s_maxlen().0, sb.s_start().0);
        if maxlen > blocks || maxlen < JBD2_MIN_JOURNAL_BLOCKS {
            return Err(("wrong length", EINVAL));
        }
        let mut last = maxlen;
        if incompat.contains(Incompat::FAST_COMMIT) {
            let fc = match sb.s_num_fc_blks().0 {
                0 => JBD2_DEFAULT_FAST_COMMIT_BLOCKS,
                fc => fc,
            };
            if maxlen.saturating_sub(fc) >= JBD2_MIN_JOURNAL_BLOCKS {
                last = maxlen - fc;
            }
        }
        if first == 0 || first >= last || last - first < JBD2_MIN_JOURNAL_BLOCKS / 2 {
            return Err(("first block is out of range", EINVAL));
        }
        if start != 0 && (start < first || start >= last) {
            return Err(("start is out of range", EFSCORRUPTED));
        }
        let uuid = sb.s_uuid();
        let csum_seed = ext4_chksum(!0, &uuid);
        let format = Format { blocksize: blocksize as usize, compat, incompat, csum_seed, uuid };
        Ok(Self { format, first, last, fc_last: maxlen, sequence: sb.s_sequence().0, start })
    }
}
