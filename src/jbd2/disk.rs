// SPDX-License-Identifier: GPL-2.0-only
//! `include/linux/jbd2.h`: what is on the disk. All of it is big-endian, unlike the rest of ext4.

use crate::checksum::ext4_chksum;
use crate::le::{Le, le_view};

/// A big-endian field of a view.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Be<T>(
    /// The value.
    pub T,
);

macro_rules! be_int {
    ($($ty:ty),*) => {$(
        impl Le for Be<$ty> {
            const SIZE: usize = size_of::<$ty>();
            fn get(bytes: &[u8]) -> Self {
                Be(bytes.first_chunk().map_or(0, |chunk| <$ty>::from_be_bytes(*chunk)))
            }
            fn put(self, bytes: &mut [u8]) {
                if let Some(chunk) = bytes.first_chunk_mut() {
                    *chunk = self.0.to_be_bytes();
                }
            }
        }
    )*};
}
be_int!(u16, u32, u64);

/// What every block of the log's own starts with; and what blocks of data must not start with.
pub const JBD2_MAGIC_NUMBER: u32 = 0xc03b_3998;
/// The smallest log.
pub const JBD2_MIN_JOURNAL_BLOCKS: u32 = 1024;
/// How many blocks at the end are for fast commits, if the super block does not say.
pub const JBD2_DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// `h_blocktype`.
pub mod blocktype {
    /// Tags of the blocks that follow.
    pub const DESCRIPTOR: u32 = 1;
    /// The end of a transaction.
    pub const COMMIT: u32 = 2;
    /// Block 0, without features.
    pub const SUPERBLOCK_V1: u32 = 3;
    /// Block 0.
    pub const SUPERBLOCK_V2: u32 = 4;
    /// Revoke records.
    pub const REVOKE: u32 = 5;
}

bitflags::bitflags! {
    /// `s_feature_compat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// Commit blocks have a checksum over the whole transaction.
        const CHECKSUM = 1;
    }

    /// `s_feature_incompat`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// There may be revoke blocks.
        const REVOKE = 0x1;
        /// Block numbers have 64 bits.
        const BIT64 = 0x2;
        /// Commit blocks do not wait for the blocks before them.
        const ASYNC_COMMIT = 0x4;
        /// Checksums in all blocks, cut off to 16 bits in tags.
        const CSUM_V2 = 0x8;
        /// Checksums in all blocks.
        const CSUM_V3 = 0x10;
        /// The last blocks are for fast commits.
        const FAST_COMMIT = 0x20;
    }

    /// `t_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TagFlags: u32 {
        /// The block starts with the magic number, and has zeros there in the log.
        const ESCAPE = 1;
        /// No UUID follows the tag.
        const SAME_UUID = 2;
        /// Not used by anybody.
        const DELETED = 4;
        /// The last one of the descriptor block.
        const LAST_TAG = 8;
    }
}

le_view! {
    /// `journal_header_t`.
    pub struct HeaderView[12] {
        h_magic / set_h_magic: Be<u32> = 0;
        h_blocktype / set_h_blocktype: Be<u32> = 4;
        h_sequence / set_h_sequence: Be<u32> = 8;
    }
}

le_view! {
    /// `journal_superblock_t`.
    pub struct JournalSbView[1024] {
        h_magic: Be<u32> = 0;
        h_blocktype / set_h_blocktype: Be<u32> = 4;
        h_sequence: Be<u32> = 8;
        s_blocksize: Be<u32> = 12;
        s_maxlen: Be<u32> = 16;
        s_first: Be<u32> = 20;
        s_sequence / set_s_sequence: Be<u32> = 24;
        s_start / set_s_start: Be<u32> = 28;
        s_errno / set_s_errno: Be<u32> = 32;
        s_feature_compat / set_s_feature_compat: Be<u32> = 36;
        s_feature_incompat / set_s_feature_incompat: Be<u32> = 40;
        s_feature_ro_compat: Be<u32> = 44;
        s_uuid: [u8; 16] = 48;
        s_nr_users: Be<u32> = 64;
        s_dynsuper: Be<u32> = 68;
        s_max_transaction: Be<u32> = 72;
        s_max_trans_data: Be<u32> = 76;
        s_checksum_type / set_s_checksum_type: u8 = 80;
        s_padding2: [u8; 3] = 81;
        s_num_fc_blks: Be<u32> = 84;
        s_head / set_s_head: Be<u32> = 88;
        s_padding: [u8; 160] = 92;
        s_checksum / set_s_checksum: Be<u32> = 252;
        s_users: [u8; 768] = 256;
    }
}

le_view! {
    /// `struct commit_header`.
    pub struct CommitView[60] {
        h_magic: Be<u32> = 0;
        h_blocktype: Be<u32> = 4;
        h_sequence: Be<u32> = 8;
        h_chksum_type: u8 = 12;
        h_chksum_size: u8 = 13;
        h_padding: [u8; 2] = 14;
        h_chksum / set_h_chksum: Be<u32> = 16;
        h_chksum_rest: [u8; 28] = 20;
        h_commit_sec / set_h_commit_sec: Be<u64> = 48;
        h_commit_nsec / set_h_commit_nsec: Be<u32> = 56;
    }
}

le_view! {
    /// `jbd2_journal_revoke_header_t`.
    pub struct RevokeView[16] {
        h_magic: Be<u32> = 0;
        h_blocktype: Be<u32> = 4;
        h_sequence: Be<u32> = 8;
        r_count / set_r_count: Be<u32> = 12;
    }
}

/// `s_checksum_type` of crc32c.
pub const JBD2_CRC32C_CHKSUM: u8 = 4;
/// `h_chksum_type` and `h_chksum_size` of checksums over all blocks of a transaction.
pub const JBD2_CRC32_CHKSUM: (u8, u8) = (1, 4);
/// Where the super block has its checksum.
const S_CHECKSUM: usize = 252;
/// Where a commit block has its checksum.
const H_CHKSUM: usize = 16;

static CRC32_BE: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_MPEG_2);

/// The checksum that is not c, over all blocks of a transaction, continuing from `crc`, at first all ones.
pub fn crc32_be(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32_BE.digest_with_initial(crc);
    digest.update(bytes);
    digest.finalize()
}

/// What a device writes wholly or not at all, at the least.
const SECTOR: usize = 512;

/// crc32c of `bytes` with the word at `hole` taken as zero.
fn csum_without(seed: u32, bytes: &[u8], hole: usize) -> u32 {
    let crc = ext4_chksum(seed, bytes.get(..hole).unwrap_or_default());
    let crc = ext4_chksum(crc, &[0; 4]);
    ext4_chksum(crc, bytes.get(hole + 4..).unwrap_or_default())
}

/// Of the journal's super block.
#[doc(alias = "jbd2_superblock_csum")]
pub fn superblock_csum(sb: &[u8]) -> u32 {
    csum_without(!0, sb.get(..JournalSbView::LEN).unwrap_or_default(), S_CHECKSUM)
}

/// How the log is written: what of the features matters for its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bytes in a block.
    pub blocksize: usize,
    /// `s_feature_compat`.
    pub compat: Compat,
    /// `s_feature_incompat`.
    pub incompat: Incompat,
    /// Of all checksums but the super block's.
    pub csum_seed: u32,
    /// `s_uuid`.
    pub uuid: [u8; 16],
}

/// One tag of a descriptor block, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Where the block belongs.
    pub block: u64,
    /// See there.
    pub flags: TagFlags,
    /// Of the block as it is in the log.
    pub checksum: u32,
}

impl Format {
    /// Whether there are checksums in the blocks: version 2 or 3.
    #[doc(alias = "jbd2_journal_has_csum_v2or3")]
    pub fn has_csum(&self) -> bool {
        self.incompat.intersects(Incompat::CSUM_V2.union(Incompat::CSUM_V3))
    }

    /// Bytes at the end of descriptor and revoke blocks.
    fn tail(&self) -> usize {
        if self.has_csum() { 4 } else { 0 }
    }

    /// Bytes of a tag, without the UUID.
    #[doc(alias = "journal_tag_bytes")]
    pub fn tag_bytes(&self) -> usize {
        if self.incompat.contains(Incompat::CSUM_V3) {
            return 16;
        }
        // Version 2 came with two bytes that nobody uses.
        let bytes = if self.incompat.contains(Incompat::CSUM_V2) { 14 } else { 12 };
        if self.incompat.contains(Incompat::BIT64) { bytes } else { bytes - 4 }
    }

    /// Tags in a descriptor block, the first of which has a UUID.
    pub fn tags_per_block(&self) -> usize {
        (self.blocksize.saturating_sub(HeaderView::LEN + 16 + self.tail()) / self.tag_bytes()).max(1)
    }

    /// Bytes of a revoke record.
    pub fn revoke_bytes(&self) -> usize {
        if self.incompat.contains(Incompat::BIT64) { 8 } else { 4 }
    }

    /// Records in a revoke block.
    pub fn revokes_per_block(&self) -> usize {
        (self.blocksize.saturating_sub(RevokeView::LEN + self.tail()) / self.revoke_bytes()).max(1)
    }

    /// The end of what a descriptor or revoke block holds.
    pub fn end(&self) -> usize {
        self.blocksize.saturating_sub(self.tail())
    }

    /// Of a block in the log, which its tag has.
    #[doc(alias = "jbd2_block_tag_csum_set")]
    pub fn tag_csum(&self, tid: u32, in_log: &[u8]) -> u32 {
        let csum = ext4_chksum(ext4_chksum(self.csum_seed, &tid.to_be_bytes()), in_log);
        if self.incompat.contains(Incompat::CSUM_V3) { csum } else { csum & 0xffff }
    }

    /// Puts a tag at the start of `at`; how many bytes it takes.
    #[doc(alias = "write_tag_block")]
    pub fn put_tag(&self, at: &mut [u8], tag: Tag) -> Option<usize> {
        let len = self.tag_bytes();
        let bytes = at.get_mut(..len)?;
        let v3 = self.incompat.contains(Incompat::CSUM_V3);
        Be(tag.block as u32).put(bytes.get_mut(..4)?);
        if v3 {
            Be(tag.flags.bits()).put(bytes.get_mut(4..)?);
            Be(tag.checksum).put(bytes.get_mut(12..)?);
        } else {
            Be(if self.has_csum() { tag.checksum as u16 } else { 0 }).put(bytes.get_mut(4..)?);
            Be(tag.flags.bits() as u16).put(bytes.get_mut(6..)?);
        }
        if v3 || self.incompat.contains(Incompat::BIT64) {
            Be((tag.block >> 32) as u32).put(bytes.get_mut(8..)?);
        }
        if tag.flags.contains(TagFlags::SAME_UUID) {
            return Some(len);
        }
        at.get_mut(len..len + 16)?.copy_from_slice(&self.uuid);
        Some(len + 16)
    }

    /// The tag at the start of `at`.
    #[doc(alias = "read_tag_block")]
    pub fn get_tag(&self, at: &[u8]) -> Option<Tag> {
        let bytes = at.get(..self.tag_bytes())?;
        let word = |from: usize| Be::<u32>::get(bytes.get(from..).unwrap_or_default()).0;
        let half = |from: usize| u32::from(Be::<u16>::get(bytes.get(from..).unwrap_or_default()).0);
        let v3 = self.incompat.contains(Incompat::CSUM_V3);
        let (flags, checksum) = if v3 { (word(4), word(12)) } else { (half(6), half(4)) };
        // Linux looks at the upper half only where there can be one.
        let high = if self.incompat.contains(Incompat::BIT64) { word(8) } else { 0 };
        Some(Tag {
            block: u64::from(high) << 32 | u64::from(word(0)),
            flags: TagFlags::from_bits_retain(flags),
            checksum,
        })
    }

    /// Stores the checksum at the end of a descriptor or revoke block.
    #[doc(alias = "jbd2_descriptor_block_csum_set")]
    pub fn set_tail_csum(&self, block: &mut [u8]) {
        if self.has_csum() {
            let csum = csum_without(self.csum_seed, block, self.end());
            Be(csum).put(block.get_mut(self.end()..).unwrap_or_default());
        }
    }

    /// Whether that checksum is right.
    #[doc(alias = "jbd2_descriptor_block_csum_verify")]
    pub fn tail_csum_ok(&self, block: &[u8]) -> bool {
        let found = Be::<u32>::get(block.get(self.end()..).unwrap_or_default()).0;
        !self.has_csum() || csum_without(self.csum_seed, block, self.end()) == found
    }

    /// Fills in a commit block. PORT: nothing is stored for checksums over whole transactions, which those who look for them accept.
    pub fn put_commit(&self, block: &mut [u8], tid: u32, sec: u64, nsec: u32) -> Option<()> {
        put_header(block, blocktype::COMMIT, tid)?;
        let mut commit = CommitView::at_mut(block, 0)?;
        commit.set_h_commit_sec(Be(sec));
        commit.set_h_commit_nsec(Be(nsec));
        if self.has_csum() {
            let csum = csum_without(self.csum_seed, block, H_CHKSUM);
            CommitView::at_mut(block, 0)?.set_h_chksum(Be(csum));
        }
        Some(())
    }

    /// Whether a commit block's checksum is right, or there is none.
    ///
    /// PORT: C takes one of which only the first sector was written, when the power failed, for damage, and does not mount. That sector has
    /// all there is, the rest is zeros, and what it commits was on the device before it was sent.
    #[doc(alias = "jbd2_commit_block_csum_verify")]
    pub fn commit_csum_ok(&self, block: &[u8]) -> bool {
        let found = CommitView::at(block, 0).map(|commit| commit.h_chksum().0);
        !self.has_csum()
            || found == Some(csum_without(self.csum_seed, block, H_CHKSUM))
            || found == Some(self.csum_of_first_sector(block))
    }

    /// As if there were zeros behind the first sector.
    #[cold]
    fn csum_of_first_sector(&self, block: &[u8]) -> u32 {
        let (first, rest) = block.split_at(block.len().min(SECTOR));
        rest.chunks(SECTOR).fold(csum_without(self.csum_seed, first, H_CHKSUM), |crc, sector| {
            ext4_chksum(crc, [0; SECTOR].get(..sector.len()).unwrap_or_default())
        })
    }
}

/// Starts a block of the log's own.
pub fn put_header(block: &mut [u8], blocktype: u32, tid: u32) -> Option<()> {
    let mut header = HeaderView::at_mut(block, 0)?;
    header.set_h_magic(Be(JBD2_MAGIC_NUMBER));
    header.set_h_blocktype(Be(blocktype));
    header.set_h_sequence(Be(tid));
    Some(())
}

/// Whether `a` is after `b`: numbers of transactions go round.
pub fn tid_gt(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Whether `a` is `b` or after it.
pub fn tid_geq(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) >= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(incompat: Incompat) -> Format {
        Format { blocksize: 1024, compat: Compat::empty(), incompat, csum_seed: 1, uuid: [7; 16] }
    }

    #[test]
    fn tags_have_linuxs_lengths() {
        assert_eq!(format(Incompat::empty()).tag_bytes(), 8);
        assert_eq!(format(Incompat::BIT64).tag_bytes(), 12);
        assert_eq!(format(Incompat::CSUM_V2).tag_bytes(), 10);
        assert_eq!(format(Incompat::CSUM_V2 | Incompat::BIT64).tag_bytes(), 14);
        assert_eq!(format(Incompat::CSUM_V3).tag_bytes(), 16);
    }

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        for incompat in [Incompat::empty(), Incompat::CSUM_V2, Incompat::CSUM_V3, Incompat::CSUM_V2 | Incompat::BIT64] {
            let format = format(incompat);
            let mut bytes = [0; 64];
            let block = if incompat.contains(Incompat::BIT64) { 0x12_3456_789a } else { 0x1234_5678 };
            let checksum = if incompat.contains(Incompat::CSUM_V3) { 0xdead_beef } else { 0xbeef };
            let checksum = if format.has_csum() { checksum } else { 0 };
            let tag = Tag { block, flags: TagFlags::ESCAPE | TagFlags::LAST_TAG, checksum };
            assert_eq!(format.put_tag(&mut bytes, tag), Some(format.tag_bytes() + 16));
            assert_eq!(format.get_tag(&bytes), Some(tag), "{incompat:?}");
        }
    }

    #[test]
    fn numbers_go_round() {
        assert!(tid_gt(1, u32::MAX) && tid_geq(0, u32::MAX) && !tid_gt(u32::MAX, 1) && tid_geq(5, 5) && !tid_gt(5, 5));
    }
}
