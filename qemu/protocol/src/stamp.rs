// SPDX-License-Identifier: GPL-2.0-only
//! The stamp that test data carries, so that whoever reads a block can tell whose it is, which
//! write of it this is, and whether it is whole.
//!
//! Little-endian, at the start of each `unit` bytes of a file:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `ext4_DIO` |
//! | 8 | 8 | offset in the file, bytes |
//! | 16 | 4 | generation: 0 as made on the host, then counted up per block |
//! | 20 | 4 | writer |
//! | 24 | 4 | CRC-32C of the rest of the unit, from byte 32 |
//! | 28 | 4 | CRC-32C of bytes 0..28 |

use crc::{CRC_32_ISCSI, Crc, Table};

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
const MAGIC: u64 = u64::from_le_bytes(*b"ext4_DIO");

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// Bytes a stamp takes at the start of its unit.
pub const STAMP_LEN: usize = 32;

/// A block's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where in the file the unit starts, bytes.
    pub offset: u64,
    /// Which write of this unit it is.
    pub generation: u32,
    /// Who wrote it.
    pub writer: u32,
    /// CRC-32C of the unit behind the stamp.
    pub body_crc: u32,
}

/// Why a unit is not a stamped one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampError {
    /// Shorter than a stamp.
    Short,
    /// No stamp at all.
    Magic,
    /// The stamp is torn.
    HeaderCrc,
    /// The data behind the stamp is not what was written with it.
    BodyCrc,
    /// A good stamp of another place: the block went to the wrong address.
    Offset(u64),
}

impl Stamp {
    /// CRC-32C of `unit`'s body, for [`Stamp::body_crc`].
    pub fn body_crc(unit: &[u8]) -> u32 {
        CRC32C.checksum(unit.get(STAMP_LEN..).unwrap_or(&[]))
    }

    /// Fills a unit's body with bytes that depend on `writer` alone.
    pub fn fill_body(unit: &mut [u8], writer: u32) {
        let mut x = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(writer) << 17 | 1);
        for b in unit.iter_mut().skip(STAMP_LEN) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *b = (x >> 32) as u8;
        }
    }

    /// The stamp's bytes.
    pub fn encode(&self) -> [u8; STAMP_LEN] {
        let mut b = [0; STAMP_LEN];
        b[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        b[8..16].copy_from_slice(&self.offset.to_le_bytes());
        b[16..20].copy_from_slice(&self.generation.to_le_bytes());
        b[20..24].copy_from_slice(&self.writer.to_le_bytes());
        b[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = CRC32C.checksum(&b[..28]);
        b[28..32].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads and checks a whole unit that was read from `offset`.
    pub fn check(unit: &[u8], offset: u64) -> Result<Stamp, StampError> {
        let head = unit.first_chunk::<STAMP_LEN>().ok_or(StampError::Short)?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u64_at(0) != MAGIC {
            return Err(StampError::Magic);
        }
        if u32_at(28) != CRC32C.checksum(&head[..28]) {
            return Err(StampError::HeaderCrc);
        }
        let stamp = Stamp { offset: u64_at(8), generation: u32_at(16), writer: u32_at(20), body_crc: u32_at(24) };
        if stamp.body_crc != Self::body_crc(unit) {
            return Err(StampError::BodyCrc);
        }
        if stamp.offset != offset {
            return Err(StampError::Offset(stamp.offset));
        }
        Ok(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut unit = [0u8; 512];
        Stamp::fill_body(&mut unit, 7);
        let stamp = Stamp { offset: 4096, generation: 3, writer: 7, body_crc: Stamp::body_crc(&unit) };
        unit[..STAMP_LEN].copy_from_slice(&stamp.encode());
        assert_eq!(Stamp::check(&unit, 4096), Ok(stamp));
        assert_eq!(Stamp::check(&unit, 8192), Err(StampError::Offset(4096)));
        assert_eq!(Stamp::check(&unit[..31], 4096), Err(StampError::Short));
        for bit in 0..unit.len() * 8 {
            unit[bit / 8] ^= 1 << (bit % 8);
            assert!(Stamp::check(&unit, 4096).is_err(), "bit {bit}");
            unit[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
