// SPDX-License-Identifier: GPL-2.0-only
//! `bitmap.c`: counting, finding and changing bits of block and inode bitmaps, and the bitmaps' checksums.
//!
//! Bit `n` of a bitmap is bit `n % 8` of byte `n / 8`. A set bit is a block or inode in use; what lies beyond a map counts as
//! in use.

use crate::checksum::{ext4_chksum, ext4_chksum_zeros};

/// 64 bits of a map; bits beyond it are set.
fn word(map: &[u8], index: u32) -> u64 {
    let mut bytes = [0xff; 8];
    let from = index as usize * 8;
    let rest = map.get(from..).unwrap_or_default();
    let some = rest.len().min(8);
    if let (Some(to), Some(rest)) = (bytes.get_mut(..some), rest.get(..some)) {
        to.copy_from_slice(rest);
    }
    u64::from_le_bytes(bytes)
}

/// The first set bit of `from..end`, or `end`, in a map whose 64-bit words `word` gives.
pub(crate) fn scan(from: u32, end: u32, word: impl Fn(u32) -> u64) -> u32 {
    if from >= end {
        return end;
    }
    let mut index = from / 64;
    let mut bits = word(index) & !0 << (from % 64);
    while bits == 0 {
        index += 1;
        if index.saturating_mul(64) >= end {
            return end;
        }
        bits = word(index);
    }
    (index * 64 + bits.trailing_zeros()).min(end)
}

/// The first bit of `from..end` that is clear, or `end`.
#[doc(alias = "mb_find_next_zero_bit")]
pub(crate) fn next_clear(map: &[u8], from: u32, end: u32) -> u32 {
    scan(from, end, |index| !word(map, index))
}

/// The first bit of `from..end` that is set, or `end`.
#[doc(alias = "mb_find_next_bit")]
pub(crate) fn next_set(map: &[u8], from: u32, end: u32) -> u32 {
    scan(from, end, |index| word(map, index))
}

/// Clear bits among the first `end`.
#[doc(alias = "ext4_count_free")]
pub(crate) fn count_clear(map: &[u8], end: u32) -> u32 {
    let whole: u32 = (0..end / 64).map(|index| word(map, index).count_zeros()).sum();
    let rest = match end % 64 {
        0 => 0,
        bits => (!word(map, end / 64) & ((1 << bits) - 1)).count_ones(),
    };
    whole + rest
}

/// Calls `f` with each byte that has bits of `start..start + len`, and those bits.
fn each_byte(map: &mut [u8], start: u32, len: u32, f: impl Fn(&mut u8, u8)) {
    let end = u64::from(start) + u64::from(len);
    let mut bit = u64::from(start);
    while bit < end {
        let next = end.min((bit / 8 + 1) * 8);
        // The bits below `next`, without those below `bit`.
        let mask = (0xffu16 << (bit % 8)) as u8 & (0xffu16 >> ((8 - next % 8) % 8)) as u8;
        let Some(byte) = map.get_mut((bit / 8) as usize) else { return };
        f(byte, mask);
        bit = next;
    }
}

/// Sets `len` bits from `start` on.
#[doc(alias = "mb_set_bits")]
pub(crate) fn set_bits(map: &mut [u8], start: u32, len: u32) {
    each_byte(map, start, len, |byte, mask| *byte |= mask);
}

/// Clears `len` bits from `start` on.
#[doc(alias = "mb_clear_bits")]
pub(crate) fn clear_bits(map: &mut [u8], start: u32, len: u32) {
    each_byte(map, start, len, |byte, mask| *byte &= !mask);
}

/// Of a bitmap with `bits` bits in use, a multiple of 8. A descriptor of 32 bytes has room for the low half alone.
#[doc(alias = "ext4_inode_bitmap_csum_set")]
#[doc(alias = "ext4_block_bitmap_csum_set")]
pub(crate) fn ext4_bitmap_csum(fs_seed: u32, map: &[u8], bits: u32, desc_size: u16) -> u32 {
    let csum = ext4_chksum(fs_seed, map.get(..bits as usize / 8).unwrap_or_default());
    if desc_size >= 64 { csum } else { csum & 0xffff }
}

/// What [`ext4_bitmap_csum`] changes by, as an exclusive or, if `len` bits from `start` on change, which are below `bits`. Costs no look at
/// the map, of which they are a few bytes as a rule.
///
/// PORT: C computes the whole checksum anew.
pub(crate) fn ext4_bitmap_csum_change(start: u32, len: u32, bits: u32, desc_size: u16) -> u32 {
    const CHUNK: u32 = 64;
    let (mut crc, mut at) = (0, start / 8);
    let end = start + len;
    let after = end.div_ceil(8);
    while at < after {
        let mut changed = [0; CHUNK as usize];
        let bytes = CHUNK.min(after - at);
        let (from, to) = (start.max(at * 8), end.min((at + bytes) * 8));
        set_bits(&mut changed, from - at * 8, to - from);
        crc = ext4_chksum(crc, changed.get(..bytes as usize).unwrap_or_default());
        at += bytes;
    }
    // No bits are lost: a bitmap is one block.
    let csum = ext4_chksum_zeros(crc, (bits / 8).saturating_sub(after) as u16);
    if desc_size >= 64 { csum } else { csum & 0xffff }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_bits_changes_the_checksum_by_what_is_told() {
        let bits = 8192;
        for (start, len) in [
            (0, 1),
            (0, 8192),
            (7, 1),
            (7, 2),
            (8, 8),
            (8191, 1),
            (100, 0),
            (511, 3),
            (500, 1100),
            (4096, 512),
            (3, 511),
        ] {
            for desc_size in [32, 64] {
                let mut map: [u8; 1024] = core::array::from_fn(|n| (n * n / 8) as u8);
                clear_bits(&mut map, start, len);
                let before = ext4_bitmap_csum(0x1234_5678, &map, bits, desc_size);
                set_bits(&mut map, start, len);
                let after = ext4_bitmap_csum(0x1234_5678, &map, bits, desc_size);
                assert_eq!(before ^ after, ext4_bitmap_csum_change(start, len, bits, desc_size), "{start}+{len}");
            }
        }
    }

    /// Every range of a small map, with bits before, in and behind it.
    #[test]
    fn ranges_are_set_and_cleared_exactly() {
        for start in 0..70u32 {
            for len in 0..=(72 - start) {
                let mut map = [0u8; 9];
                set_bits(&mut map, start, len);
                for bit in 0..72 {
                    let set = map[bit as usize / 8] >> (bit % 8) & 1 != 0;
                    assert_eq!(set, (start..start + len).contains(&bit), "{start}+{len}: {bit}");
                }
                assert_eq!(next_set(&map, 0, 72), if len == 0 { 72 } else { start });
                assert_eq!(next_clear(&map, start, 72), start + len);
                assert_eq!(count_clear(&map, 72), 72 - len);
                assert_eq!(count_clear(&map, start + len), start);
                clear_bits(&mut map, start, len);
                assert_eq!(map, [0; 9]);
            }
        }
    }

    #[test]
    fn what_is_beyond_the_map_is_in_use() {
        let mut map = [0u8; 3];
        assert_eq!(next_set(&map, 0, 100), 24);
        assert_eq!(next_clear(&map, 24, 100), 100);
        set_bits(&mut map, 20, 100);
        assert_eq!(map, [0, 0, 0xf0]);
        assert_eq!(next_clear(&map, 20, u32::MAX), u32::MAX);
    }
}
