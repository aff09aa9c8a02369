// SPDX-License-Identifier: GPL-2.0-only
//! `hash.c`: the hashes of names that order a directory's hash tree.
//!
//! Each comes in two kinds, for bytes taken as signed and as unsigned, because the first machines to
//! write such directories disagreed; the super block says which it is.

use crate::ext4::EXT2_FLAGS_UNSIGNED_HASH;

/// The largest hash is kept for the end of a directory.
pub(crate) const EXT4_HTREE_EOF: u32 = 0x7fff_ffff;

/// How a file system hashes names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "dx_hash_info")]
pub struct HashInfo {
    seed: [u32; 4],
    unsigned: bool,
}

/// Which hash a directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DxHash {
    /// The first one.
    #[doc(alias = "DX_HASH_LEGACY")]
    Legacy,
    /// MD4, cut down.
    #[doc(alias = "DX_HASH_HALF_MD4")]
    HalfMd4,
    /// The tiny encryption algorithm.
    #[doc(alias = "DX_HASH_TEA")]
    Tea,
}

impl DxHash {
    /// `hash_version` of a hash tree's root.
    pub fn version(self) -> u8 {
        match self {
            DxHash::Legacy => 0,
            DxHash::HalfMd4 => 1,
            DxHash::Tea => 2,
        }
    }

    /// From `hash_version` of a hash tree's root.
    pub fn from_version(version: u8) -> Option<Self> {
        match version {
            0 => Some(DxHash::Legacy),
            1 => Some(DxHash::HalfMd4),
            2 => Some(DxHash::Tea),
            _ => None,
        }
    }
}

impl HashInfo {
    /// From `s_hash_seed` and `s_flags`. Without either flag bytes are signed, as they are on x86.
    pub fn new(s_hash_seed: [u32; 4], s_flags: u32) -> Self {
        // A seed of zeros stands for the initial state of MD4.
        let default = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        let seed = if s_hash_seed == [0; 4] { default } else { s_hash_seed };
        Self { seed, unsigned: s_flags & EXT2_FLAGS_UNSIGNED_HASH != 0 }
    }

    /// The hash of a name; the low bit is 0.
    #[doc(alias = "ext4fs_dirhash")]
    pub fn hash(&self, version: DxHash, name: &[u8]) -> u32 {
        self.hash_pair(version, name).0
    }

    /// The hash, and a second one that tells most of those apart that have the same first.
    ///
    /// PORT: C has no second hash for the oldest version, and lists names that collide from a list in the open file. The
    /// second hash is not on disk, so another version's does as well.
    #[doc(alias = "minor_hash")]
    pub fn hash_pair(&self, version: DxHash, name: &[u8]) -> (u32, u32) {
        let (hash, minor) = match version {
            DxHash::Legacy => (self.dx_hack_hash(name), self.half_md4(name)[2]),
            DxHash::HalfMd4 => {
                let state = self.half_md4(name);
                (state[1], state[2])
            }
            DxHash::Tea => {
                let mut state = self.seed;
                for chunk in Remaining(name, 16) {
                    tea_transform(&mut state, &self.str2hashbuf(chunk));
                }
                (state[0], state[1])
            }
        };
        let hash = hash & !1;
        (if hash == EXT4_HTREE_EOF << 1 { (EXT4_HTREE_EOF - 1) << 1 } else { hash }, minor)
    }

    fn half_md4(&self, name: &[u8]) -> [u32; 4] {
        let mut state = self.seed;
        for chunk in Remaining(name, 32) {
            half_md4_transform(&mut state, &self.str2hashbuf(chunk));
        }
        state
    }

    /// A byte as the numbers of this file system have it.
    fn char(&self, byte: u8) -> u32 {
        if self.unsigned { u32::from(byte) } else { i32::from(byte.cast_signed()).cast_unsigned() }
    }

    fn dx_hack_hash(&self, name: &[u8]) -> u32 {
        let (mut hash, mut before) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
        for byte in name {
            let mut next = before.wrapping_add(hash ^ self.char(*byte).wrapping_mul(7_152_373));
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(0x7fff_ffff);
            }
            before = hash;
            hash = next;
        }
        hash << 1
    }

    /// The beginning of `name`, four bytes to a word, filled up with the length of all of it.
    fn str2hashbuf<const N: usize>(&self, name: &[u8]) -> [u32; N] {
        let len = name.len() as u32;
        let pad = (len | len << 8) | (len | len << 8) << 16;
        let mut buf = [pad; N];
        for (word, bytes) in buf.iter_mut().zip(name.chunks(4)) {
            for byte in bytes {
                *word = self.char(*byte).wrapping_add(*word << 8);
            }
        }
        buf
    }
}

/// What is left of a name after each step of so many bytes.
struct Remaining<'a>(&'a [u8], usize);

impl<'a> Iterator for Remaining<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let now = self.0;
        self.0 = now.get(self.1..).unwrap_or_default();
        (!now.is_empty()).then_some(now)
    }
}

/// One round of MD4: its function of three words, its constant, the order it takes the input words in, and by how
/// many bits each fourth step rotates.
struct Md4Round {
    f: fn(u32, u32, u32) -> u32,
    constant: u32,
    order: [usize; 8],
    shifts: [u32; 4],
}

const MD4_ROUNDS: [Md4Round; 3] = [
    Md4Round { f: |x, y, z| z ^ (x & (y ^ z)), constant: 0, order: [0, 1, 2, 3, 4, 5, 6, 7], shifts: [3, 7, 11, 19] },
    Md4Round {
        f: |x, y, z| (x & y).wrapping_add((x ^ y) & z),
        constant: 0x5a82_7999,
        order: [1, 3, 5, 7, 0, 2, 4, 6],
        shifts: [3, 5, 9, 13],
    },
    Md4Round { f: |x, y, z| x ^ y ^ z, constant: 0x6ed9_eba1, order: [3, 7, 2, 6, 1, 5, 0, 4], shifts: [3, 9, 11, 15] },
];

/// Three rounds over half of MD4's block. Each step adds a function of three words and an input word to the
/// fourth word, and rotates it; then the words change places.
fn half_md4_transform(state: &mut [u32; 4], input: &[u32; 8]) {
    let [mut a, mut b, mut c, mut d] = *state;
    for Md4Round { f, constant, order, shifts } in MD4_ROUNDS {
        for (step, index) in order.into_iter().enumerate() {
            let sum = a.wrapping_add(f(b, c, d)).wrapping_add(input[index]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

fn tea_transform(state: &mut [u32; 4], input: &[u32; 4]) {
    let [mut x, mut y, ..] = *state;
    let [a, b, c, d] = *input;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        let mix =
            |v: u32, k0: u32, k1: u32| (v << 4).wrapping_add(k0) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(k1);
        x = x.wrapping_add(mix(y, a, b));
        y = y.wrapping_add(mix(x, c, d));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "a_name_of_more_than_sixteen_and_more_than_thirty-two_bytes.txt";
    const SEEDS: [[u32; 4]; 2] = [[0; 4], [0x1111_1111, 0x3333_2222, 0x5555_4444, 0x5555_5555]];

    /// From `debugfs -R "dx_hash -h ALGORITHM -s SEED NAME"`, which takes bytes as signed.
    #[test]
    fn hashes_are_those_of_debugfs() {
        let vectors: [(DxHash, &str, u32, u32); 18] = [
            (DxHash::Legacy, "a", 0xe74b_53e2, 0xe74b_53e2),
            (DxHash::Legacy, "file", 0x10c3_0fca, 0x10c3_0fca),
            (DxHash::Legacy, "hello.txt", 0x65a0_5776, 0x65a0_5776),
            (DxHash::Legacy, LONG, 0x94ac_415e, 0x94ac_415e),
            (DxHash::Legacy, "grün", 0xc202_f150, 0xc202_f150),
            (DxHash::Legacy, "0123456789abcdef0123456789abcdef", 0x6d4a_15ee, 0x6d4a_15ee),
            (DxHash::HalfMd4, "a", 0xd5fa_7d7a, 0x61ab_28ce),
            (DxHash::HalfMd4, "file", 0x019c_cbc2, 0xd78d_e9f0),
            (DxHash::HalfMd4, "hello.txt", 0xa26e_1d86, 0x8d4f_0414),
            (DxHash::HalfMd4, LONG, 0xed95_c486, 0x6387_f7b2),
            (DxHash::HalfMd4, "grün", 0x095d_9284, 0x660d_c60c),
            (DxHash::HalfMd4, "0123456789abcdef0123456789abcdef", 0x3618_4620, 0xc8f8_c286),
            (DxHash::Tea, "a", 0x6d0e_a4c0, 0xc60e_f7d0),
            (DxHash::Tea, "file", 0x53fc_f74e, 0xb431_5cda),
            (DxHash::Tea, "hello.txt", 0x5107_c3f2, 0xf97f_49a0),
            (DxHash::Tea, LONG, 0x4b9c_8b6c, 0x5d74_a732),
            (DxHash::Tea, "grün", 0xa7ae_33b6, 0x3c6c_6262),
            (DxHash::Tea, "0123456789abcdef0123456789abcdef", 0xcbe9_5e3c, 0xeab2_d754),
        ];
        for (version, name, unseeded, seeded) in vectors {
            assert_eq!(HashInfo::new(SEEDS[0], 0).hash(version, name.as_bytes()), unseeded, "{name}");
            assert_eq!(HashInfo::new(SEEDS[1], 0).hash(version, name.as_bytes()), seeded, "{name}");
        }
    }

    #[test]
    fn signs_matter_from_128_on_only() {
        let signed = HashInfo::new(SEEDS[1], 1);
        let unsigned = HashInfo::new(SEEDS[1], EXT2_FLAGS_UNSIGNED_HASH);
        for version in [DxHash::Legacy, DxHash::HalfMd4, DxHash::Tea] {
            assert_eq!(signed.hash(version, b"plain"), unsigned.hash(version, b"plain"));
            assert_ne!(signed.hash(version, b"gr\xfcn"), unsigned.hash(version, b"gr\xfcn"));
        }
    }
}
