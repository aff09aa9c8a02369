// SPDX-License-Identifier: GPL-2.0-only
//! Values as fio writes them: numbers with binary suffixes, times, per cents, switches.
//!
//! Where fio takes the start of a value and ignores the rest (`2x`, `1.5k`), this refuses: a job that runs with another
//! number than the one in the file measures something else.

/// A number of bytes, or a part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Per cent of the file's length, 0 to 100.
    Percent(u8),
}

impl Amount {
    /// In bytes, of a file of `len` bytes.
    pub fn of(self, len: u64) -> u64 {
        match self {
            Amount::Bytes(n) => n,
            // Two steps, so that no length overflows.
            Amount::Percent(p) => len / 100 * u64::from(p) + len % 100 * u64::from(p) / 100,
        }
    }
}

/// Splits `0x1fK` into its number and what follows.
fn number(s: &str) -> Option<(u64, &str)> {
    let (radix, digits) = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
        Some(hex) => (16, hex),
        None => (10, s),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let value = u64::from_str_radix(&digits[..end], radix).ok()?;
    Some((value, &digits[end..]))
}

/// A plain number: no suffix.
pub(super) fn integer(s: &str) -> Option<u64> {
    number(s).filter(|(_, rest)| rest.is_empty()).map(|(n, _)| n)
}

/// A number with one of fio's suffixes under its default `kb_base=1024`: there `k`, `kb` and `ki` are 1024, while the
/// spelled-out `kib` is 1000 (fio documents it so). Case does not matter.
pub(super) fn bytes(s: &str) -> Option<u64> {
    let (value, suffix) = number(s)?;
    let suffix = suffix.to_ascii_lowercase();
    if suffix.is_empty() || suffix == "b" {
        return Some(value);
    }
    let power = "kmgtp".find(suffix.chars().next()?)? as u32 + 1;
    let base: u64 = match &suffix[1..] {
        "" | "b" | "i" => 1024,
        "ib" => 1000,
        _ => return None,
    };
    value.checked_mul(base.checked_pow(power)?)
}

/// [`bytes`], or `30%`.
pub(super) fn amount(s: &str) -> Option<Amount> {
    match s.strip_suffix('%') {
        Some(p) => integer(p).filter(|p| *p <= 100).map(|p| Amount::Percent(p as u8)),
        None => bytes(s).map(Amount::Bytes),
    }
}

/// A time in milliseconds; seconds where no unit is given.
pub(super) fn time_ms(s: &str) -> Option<u64> {
    let (value, unit) = number(s)?;
    match unit.to_ascii_lowercase().as_str() {
        "us" => Some(value.div_ceil(1000)),
        "ms" => Some(value),
        "" | "s" => value.checked_mul(1000),
        "m" => value.checked_mul(60_000),
        "h" => value.checked_mul(3_600_000),
        "d" => value.checked_mul(86_400_000),
        _ => None,
    }
}

/// A switch: `1`, `0`.
pub(super) fn boolean(s: &str) -> Option<bool> {
    match s {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_fio_reads_them() {
        // Each pair was checked with fio 3.33 (`--ioengine=null --size=…`, total io_bytes).
        for (s, want) in [
            ("512", 512),
            ("1k", 1024),
            ("1K", 1024),
            ("1kb", 1024),
            ("1KB", 1024),
            ("1ki", 1024),
            ("3kib", 3000),
            ("3KiB", 3000),
            ("2m", 2 << 20),
            ("1mi", 1 << 20),
            ("1g", 1 << 30),
            ("2t", 2 << 40),
            ("1p", 1 << 50),
            ("0x800", 2048),
            ("0x2k", 2048),
            ("2048b", 2048),
        ] {
            assert_eq!(bytes(s), Some(want), "{s}");
        }
        for s in
            ["", "k", "1.5k", "2x", "1kk", "-1", "1 k", "4k,8k", "4k-8k", "20000000t", "99999999999999999999", "0x"]
        {
            assert_eq!(bytes(s), None, "{s}");
        }
    }

    #[test]
    fn times_as_fio_reads_them() {
        for (s, want) in [("30", 30_000), ("30s", 30_000), ("2m", 120_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(time_ms(s), Some(want), "{s}");
        }
        assert_eq!(time_ms("1d"), Some(86_400_000));
        assert_eq!(time_ms("1500us"), Some(2));
        for s in ["", "1sec", "0.5", "s", "-3", "400000000000000000d"] {
            assert_eq!(time_ms(s), None, "{s}");
        }
    }

    #[test]
    fn amounts() {
        assert_eq!(amount("50%"), Some(Amount::Percent(50)));
        assert_eq!(amount("101%"), None);
        assert_eq!(amount("%"), None);
        assert_eq!(amount("8m"), Some(Amount::Bytes(8 << 20)));
        assert_eq!(Amount::Percent(50).of(1001), 500);
        assert_eq!(Amount::Percent(100).of(u64::MAX), u64::MAX);
        assert_eq!(Amount::Bytes(7).of(0), 7);
    }
}
