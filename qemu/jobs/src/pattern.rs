// SPDX-License-Identifier: GPL-2.0-only
//! Which block of its region a thread does next: in order, or each once in an order that looks random.

use ext4_dio_protocol::Rw;

/// xorshift64*: small, and good enough to spread I/O.
pub struct Rng(u64);

impl Rng {
    /// Any seed.
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Evenly from `0..n`, `n` at least 1.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        // The top 32 bits scaled: no division, and a bias far below what I/O could show.
        if n <= u64::from(u32::MAX) { ((self.next_u64() >> 32) * n) >> 32 } else { self.next_u64() % n }
    }
}

/// What is done to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is read.
    Read,
    /// It is written.
    Write,
    /// It is given back.
    Trim,
}

/// A thread's walk over its region, pass after pass.
pub struct Pattern {
    random: bool,
    /// What is done if nothing is read.
    kind: Kind,
    /// Each block comes twice: to be trimmed, and to be written.
    twice: bool,
    /// Trimmed just now, and to be written.
    again: Option<u64>,
    /// Per cent.
    reads: u32,
    blocks: u64,
    next: u64,
    /// A random pass visits `scramble(i)` for all `i` below the power of two over `blocks`, and leaves out what is too large.
    bits: u32,
    key: u64,
    rng: Rng,
}

impl Pattern {
    /// Over `blocks` blocks, at least 1.
    pub fn new(rw: Rw, rwmixread: u8, blocks: u64, seed: u64) -> Self {
        let (random, reads) = match rw {
            Rw::Read => (false, 100),
            Rw::Write => (false, 0),
            Rw::ReadWrite => (false, u32::from(rwmixread)),
            Rw::RandRead => (true, 100),
            Rw::RandWrite => (true, 0),
            Rw::RandRw => (true, u32::from(rwmixread)),
            Rw::Trim | Rw::TrimWrite => (false, 0),
            Rw::RandTrim => (true, 0),
        };
        let kind = if rw.trims() { Kind::Trim } else { Kind::Write };
        let twice = rw == Rw::TrimWrite;
        let mut rng = Rng::new(seed);
        let key = rng.next_u64();
        let bits = blocks.max(2).next_power_of_two().trailing_zeros();
        Self { random, kind, twice, again: None, reads, blocks, next: 0, bits, key, rng }
    }

    /// What is done to the block that came last.
    #[inline]
    pub fn kind(&mut self) -> Kind {
        match self.reads {
            0 => self.kind,
            100 => Kind::Read,
            n if self.rng.below(100) < u64::from(n) => Kind::Read,
            _ => Kind::Write,
        }
    }

    /// The next block, or `None` when each has come once; then the next pass begins.
    #[inline]
    pub fn next_block(&mut self) -> Option<u64> {
        if self.twice { self.next_of_pair() } else { self.next_in_pass() }
    }

    #[cold]
    fn next_of_pair(&mut self) -> Option<u64> {
        if let Some(block) = self.again.take() {
            self.kind = Kind::Write;
            return Some(block);
        }
        self.kind = Kind::Trim;
        self.again = self.next_in_pass();
        self.again
    }

    #[inline]
    fn next_in_pass(&mut self) -> Option<u64> {
        if !self.random {
            return if self.next < self.blocks {
                self.next += 1;
                Some(self.next - 1)
            } else {
                self.next = 0;
                None
            };
        }
        while self.next < 1 << self.bits {
            let block = self.scramble(self.next);
            self.next += 1;
            if block < self.blocks {
                return Some(block);
            }
        }
        self.next = 0;
        self.key = self.rng.next_u64();
        None
    }

    /// One-to-one on `bits` bits: each step can be undone.
    #[inline]
    fn scramble(&self, i: u64) -> u64 {
        let mask = (1u64 << self.bits) - 1;
        let half = self.bits / 2 + 1;
        let mut x = (i ^ self.key) & mask;
        x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15) & mask;
        x ^= x >> half;
        x = (x ^ self.key >> 32).wrapping_mul(0xd134_2543_de82_ef95) & mask;
        x ^= x >> half;
        x
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    #[test]
    fn a_pass_visits_each_block_once() {
        for rw in [Rw::RandWrite, Rw::Write] {
            for blocks in [1, 2, 3, 64, 1000, 4097] {
                let mut p = Pattern::new(rw, 0, blocks, 42);
                for _pass in 0..3 {
                    let mut seen = vec![false; blocks as usize];
                    while let Some(b) = p.next_block() {
                        assert!(!core::mem::replace(&mut seen[b as usize], true), "{rw:?} {blocks}: {b} twice");
                    }
                    assert!(seen.iter().all(|s| *s), "{rw:?} {blocks}");
                }
            }
        }
    }

    #[test]
    fn passes_differ_and_are_not_in_order() {
        let mut p = Pattern::new(Rw::RandWrite, 0, 512, 1);
        let first: std::vec::Vec<_> = core::iter::from_fn(|| p.next_block()).collect();
        let second: std::vec::Vec<_> = core::iter::from_fn(|| p.next_block()).collect();
        assert_ne!(first, second);
        let runs = first.windows(2).filter(|w| w[1] == w[0] + 1).count();
        assert!(runs < 32, "{runs} of 511 steps go to the next block");
    }

    #[test]
    fn what_is_trimmed_is_written_next() {
        let mut p = Pattern::new(Rw::TrimWrite, 50, 3, 1);
        for _pass in 0..2 {
            let got: std::vec::Vec<_> = core::iter::from_fn(|| Some((p.next_block()?, p.kind()))).collect();
            let want: std::vec::Vec<_> = (0..3).flat_map(|b| [(b, Kind::Trim), (b, Kind::Write)]).collect();
            assert_eq!(got, want);
        }
        assert_eq!(Pattern::new(Rw::RandTrim, 50, 3, 1).kind(), Kind::Trim);
    }

    #[test]
    fn the_mix_is_as_asked() {
        let mut p = Pattern::new(Rw::RandRw, 30, 8, 9);
        let reads = (0..10_000).filter(|_| p.kind() == Kind::Read).count();
        assert!((2700..3300).contains(&reads), "{reads}");
    }
}
