// SPDX-License-Identifier: GPL-2.0-only
//! The checksums of `metadata_csum` and of the older `gdt_csum`, one function for each structure.
//!
//! ext4 runs crc32c without the final inversion and chains pieces by handing one piece's result to
//! the next as the seed; the same goes for its crc16. Each function here computes the value that
//! belongs into the structure; whoever reads compares, whoever writes stores it.

use crc::{Algorithm, Crc, Table};

use crate::disk::{BG_CHECKSUM_OFFSET, I_CHECKSUM_HI_OFFSET, I_CHECKSUM_LO_OFFSET};
use crate::ext4::{EXT4_GOOD_OLD_INODE_SIZE, Group, Ino};

/// crc32c with everything that is done outside the polynomial left out.
const CRC32C_RAW: Algorithm<u32> = Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: 0,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0x58e3_fa20,
    residue: 0,
};

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC32C_RAW);
static CRC16: Crc<u16> = Crc::<u16>::new(&crc::CRC_16_ARC);

/// crc32c of `bytes`, continuing from `crc`.
#[doc(alias = "crc32c")]
pub fn ext4_chksum(crc: u32, bytes: &[u8]) -> u32 {
    // The crate takes the register in the order of the polynomial, ext4 keeps it reflected.
    let mut digest = CRC32C.digest_with_initial(crc.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// What four coefficients do to a product: the first multiplied by each polynomial of a degree below 4.
type Multiples = [u32; 16];

const fn multiples(a: u32) -> Multiples {
    let mut table = [0; 16];
    let mut n = 0;
    while n < table.len() {
        table[n] = gf2_multiply(a, (n as u32) << 28);
        n += 1;
    }
    table
}

/// Multiples of x to the power of 8 · v · 16^d modulo crc32c's polynomial, for each d and v: what v · 16^d zero bytes do to a checksum.
static ZEROS: [[Multiples; 16]; 4] = {
    let mut powers = [[multiples(1 << 31); 16]; 4];
    // Of one byte; then of 16, of 256.
    let mut base = 1 << 23;
    let mut d = 0;
    while d < powers.len() {
        let (mut v, mut power) = (1, base);
        while v < 16 {
            powers[d][v] = multiples(power);
            power = gf2_multiply(power, base);
            v += 1;
        }
        base = power;
        d += 1;
    }
    powers
};

/// Four coefficients that go out at the end, when something is multiplied by x to the power of 4: what is left of them.
static OUT: [u32; 16] = {
    let mut table = [0; 16];
    let mut n = 0;
    while n < table.len() {
        table[n] = gf2_multiply(n as u32, 1 << 27);
        n += 1;
    }
    table
};

/// The product of a polynomial and the one that `multiples` are of.
fn multiply(crc: u32, multiples: &Multiples) -> u32 {
    (0..8).fold(0, |product, digit| {
        (product >> 4) ^ OUT[product as usize % 16] ^ multiples[(crc >> (4 * digit)) as usize % 16]
    })
}

/// Product of two polynomials modulo crc32c's. As in checksums, the highest bit is the coefficient of x^0.
const fn gf2_multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1u32 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ (CRC32C_RAW.poly.reverse_bits() & (b & 1).wrapping_neg());
        bit >>= 1;
    }
    product
}

/// [`ext4_chksum`] of so many zero bytes, in a step for each hexadecimal digit of their number.
///
/// Checksums are linear: if `changed` is the exclusive or of old and new contents, and the checksum of it starts from 0, then that is
/// the exclusive or of the old checksum and the new. Zeros in front of what changed do nothing to it, and those behind are
/// skipped here.
#[doc(alias = "crc32c_combine")]
pub fn ext4_chksum_zeros(mut crc: u32, zeros: u16) -> u32 {
    for (d, powers) in ZEROS.iter().enumerate() {
        let digit = usize::from(zeros >> (4 * d)) % powers.len();
        if digit != 0 {
            crc = multiply(crc, &powers[digit]);
        }
    }
    crc
}

/// By what the checksum of a structure changes when it has `new` in place of `old`, with `behind` more bytes after them that stay as they
/// are: see [`ext4_chksum_zeros`]. Cheap where little has changed.
pub fn ext4_chksum_change(old: &[[u8; 16]], new: &[[u8; 16]], behind: u16) -> u32 {
    let both = || old.iter().zip(new);
    let Some(first) = both().position(|(old, new)| old != new) else { return 0 };
    let Some(last) = both().rposition(|(old, new)| old != new) else { return 0 };
    let mut crc = 0;
    for (old, new) in both().skip(first).take(last + 1 - first) {
        let changed = u128::from_ne_bytes(*old) ^ u128::from_ne_bytes(*new);
        crc = ext4_chksum(crc, &changed.to_ne_bytes());
    }
    let rest = (both().len() - last - 1) * size_of::<[u8; 16]>();
    ext4_chksum_zeros(crc, behind.saturating_add(rest as u16))
}

/// crc16 of `bytes`, continuing from `crc`.
pub fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    let mut digest = CRC16.digest_with_initial(crc.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// Of the super block, over all but its last word.
pub fn ext4_superblock_csum(bytes: &[u8; 1024]) -> u32 {
    ext4_chksum(!0, bytes.get(..1020).unwrap_or_default())
}

/// What the checksums of an inode and of the blocks that belong to it start from.
#[doc(alias = "i_csum_seed")]
pub fn ext4_inode_csum_seed(fs_seed: u32, ino: Ino, generation: u32) -> u32 {
    ext4_chksum(ext4_chksum(fs_seed, &ino.0.to_le_bytes()), &generation.to_le_bytes())
}

/// Whether an inode with `extra_isize` bytes beyond the first 128 has the upper checksum half.
pub fn has_checksum_hi(extra_isize: u16) -> bool {
    extra_isize >= 4
}

/// Of an inode, over all of `raw` with the places of the checksum itself taken as zeros. Only the
/// low half counts if [`has_checksum_hi`] says so.
pub fn ext4_inode_csum(inode_seed: u32, raw: &[u8], extra_isize: u16) -> u32 {
    let base = usize::from(EXT4_GOOD_OLD_INODE_SIZE);
    let piece = |from: usize, to: usize| raw.get(from..to.min(raw.len())).unwrap_or_default();
    let mut crc = ext4_chksum(inode_seed, piece(0, I_CHECKSUM_LO_OFFSET));
    crc = ext4_chksum(crc, &[0; 2]);
    crc = ext4_chksum(crc, piece(I_CHECKSUM_LO_OFFSET + 2, base));
    if raw.len() > base {
        crc = ext4_chksum(crc, piece(base, I_CHECKSUM_HI_OFFSET));
        let mut next = I_CHECKSUM_HI_OFFSET;
        if has_checksum_hi(extra_isize) {
            crc = ext4_chksum(crc, &[0; 2]);
            next += 2;
        }
        crc = ext4_chksum(crc, piece(next, raw.len()));
    }
    crc
}

/// Of a group descriptor with `metadata_csum`.
pub fn ext4_group_desc_csum(fs_seed: u32, group: Group, desc: &[u8]) -> u16 {
    let mut crc = ext4_chksum(fs_seed, &group.0.to_le_bytes());
    crc = ext4_chksum(crc, desc.get(..BG_CHECKSUM_OFFSET).unwrap_or_default());
    crc = ext4_chksum(crc, &[0; 2]);
    crc = ext4_chksum(crc, desc.get(BG_CHECKSUM_OFFSET + 2..).unwrap_or_default());
    crc as u16
}

/// Of a group descriptor with `gdt_csum` alone.
pub fn ext4_group_desc_crc16(uuid: &[u8; 16], group: Group, desc: &[u8]) -> u16 {
    let mut crc = crc16(!0, uuid);
    crc = crc16(crc, &group.0.to_le_bytes());
    crc = crc16(crc, desc.get(..BG_CHECKSUM_OFFSET).unwrap_or_default());
    crc16(crc, desc.get(BG_CHECKSUM_OFFSET + 2..).unwrap_or_default())
}

/// Of an extent tree node, over all that comes before its tail.
pub fn ext4_extent_block_csum(inode_seed: u32, before_tail: &[u8]) -> u32 {
    ext4_chksum(inode_seed, before_tail)
}

/// Of a directory block, over all that comes before its tail.
pub fn ext4_dirblock_csum(inode_seed: u32, before_tail: &[u8]) -> u32 {
    ext4_chksum(inode_seed, before_tail)
}

/// Of a hash tree node: over the block up to the last entry in use, and over the tail's first word.
pub fn ext4_dx_csum(inode_seed: u32, used: &[u8], tail_reserved: u32) -> u32 {
    let mut crc = ext4_chksum(inode_seed, used);
    crc = ext4_chksum(crc, &tail_reserved.to_le_bytes());
    ext4_chksum(crc, &[0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    // "123456789" is what catalogues of checksums are indexed by.
    const CHECK: &[u8] = b"123456789";

    #[test]
    fn crc32c_is_the_catalogues_without_the_final_inversion() {
        assert_eq!(!ext4_chksum(!0, CHECK), 0xe306_9283);
        assert_eq!(ext4_chksum(0, &[]), 0);
        assert_eq!(ext4_chksum(0x1234_5678, &[]), 0x1234_5678);
    }

    #[test]
    fn crc16_is_the_catalogues() {
        assert_eq!(crc16(0, CHECK), 0xbb3d);
        // Started from all ones, as ext4 does, it is the one called MODBUS.
        assert_eq!(crc16(!0, CHECK), 0x4b37);
        assert_eq!(crc16(0x1234, &[]), 0x1234);
    }

    #[test]
    fn pieces_chain() {
        for cut in 0..CHECK.len() {
            let (a, b) = CHECK.split_at(cut);
            assert_eq!(ext4_chksum(ext4_chksum(!0, a), b), ext4_chksum(!0, CHECK));
            assert_eq!(crc16(crc16(!0, a), b), crc16(!0, CHECK));
        }
    }

    #[test]
    fn zeros_are_skipped() {
        let zeros = [0; 5000];
        for crc in [0, 1, !0, 0x1234_5678] {
            for n in (0..300).chain([4095, 4096, 5000]) {
                assert_eq!(
                    ext4_chksum_zeros(crc, n),
                    ext4_chksum(crc, &zeros[..usize::from(n)]),
                    "{crc:#x}, {n} zeros"
                );
            }
        }
    }

    #[test]
    fn what_has_changed_tells_the_new_checksum() {
        let old: [[u8; 16]; 10] = core::array::from_fn(|n| [n as u8; 16]);
        let behind = [0xa5; 200];
        let sum = |bytes: &[[u8; 16]], behind: &[u8]| ext4_chksum(ext4_chksum(7, bytes.as_flattened()), behind);
        for first in 0..160 {
            for last in first..160 {
                let mut new = old;
                for n in [first, last] {
                    new.as_flattened_mut()[n] ^= (n + 1) as u8;
                }
                let behind = &behind[..first + 40];
                let change = ext4_chksum_change(&old, &new, behind.len() as u16);
                assert_eq!(sum(&old, behind) ^ change, sum(&new, behind), "{first} and {last}");
            }
        }
        assert_eq!(ext4_chksum_change(&old, &old, 100), 0);
        assert_eq!(ext4_chksum_change(&[], &[], 100), 0);
    }

    #[test]
    fn an_inodes_checksum_leaves_out_its_own_place() {
        let mut raw = [0x5au8; 256];
        let sum = ext4_inode_csum(7, &raw, 32);
        raw[I_CHECKSUM_LO_OFFSET] = 1;
        raw[I_CHECKSUM_HI_OFFSET + 1] = 1;
        assert_eq!(ext4_inode_csum(7, &raw, 32), sum);
        // Without room for the upper half, its place is covered like any other byte.
        let sum = ext4_inode_csum(7, &raw, 0);
        raw[I_CHECKSUM_HI_OFFSET] ^= 1;
        assert_ne!(ext4_inode_csum(7, &raw, 0), sum);
        raw[255] ^= 1;
        assert_ne!(ext4_inode_csum(7, &raw, 32), ext4_inode_csum(7, &[0x5a; 256], 32));
    }
}
