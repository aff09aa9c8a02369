// SPDX-License-Identifier: GPL-2.0-only
//! Damaged images: a case is a sound file system and a list of edits to it, written as text, so that a person can read it, a fuzzer can
//! change it, and a test can keep it. See [`Case`] for the language.
//!
//! * [`base`]: the sound file systems, made by `mke2fs` and `debugfs`;
//! * [`layout`]: where in them what is, found by reading the bytes, without the code under test;
//! * [`patch`]: edits; what is changed gets its checksums right again, unless a line says `bad`;
//! * [`mutate`]: random edits that know what they change;
//! * [`drive()`]: mounts an image, does all there is to do with it, and holds it to bounds.

pub mod base;
pub mod disk;
pub mod drive;
pub mod layout;
pub mod mutate;
pub mod patch;
pub mod sums;
mod tree;
mod visit;

use std::fmt;

pub use base::Base;
pub use drive::{Outcome, Target, drive};

/// Numbers that look random: splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.any() % (end.max(1) as u64)) as usize
    }

    /// Whether one of `n` dice shows.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// A number in an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Itself.
    Num(u64),
    /// `@PLACE+N`: the block that the place begins in, and some more.
    Block(String, i64),
}

/// What is done to the bytes of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `u8`, `le16`, `le32`, `le64`, `be16`, `be32`: a number takes the bytes' place.
    Int {
        /// 1, 2, 4 or 8 bytes.
        width: u8,
        /// As the journal has it.
        be: bool,
        /// What is put there.
        value: Value,
    },
    /// `hex`: these bytes.
    Hex(Vec<u8>),
    /// `xor`: each is combined with what is there.
    Xor(Vec<u8>),
    /// `fill BYTE LEN`.
    Fill(u8, u32),
    /// `words VALUE COUNT`: a number of four bytes, again and again.
    Words(Value, u32),
    /// `copy PLACE`: what the other place holds by then.
    Copy(String),
}

/// One line: `PLACE OFFSET OP VALUE [bad]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The name of a [`layout::Place`].
    pub place: String,
    /// Counted from where it begins.
    pub offset: u32,
    /// What is done there.
    pub op: Op,
    /// The place's checksum stays as it was.
    pub bad: bool,
}

/// A damaged image. As text, one line each, `#` for comments:
///
/// ```text
/// base ext4                       which file system, see [`base::NAMES`]
/// options errors=remount-ro       how it is mounted
/// expect ExtentDepth              what is found when all is done with it: see [`Outcome::found`]
/// sb 0x18 le32 30                 edits
/// extent:/many:0 16 le32 @extent:/many:0
/// inode:/hello.txt 0x28 xor 01 bad
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// Name of the base.
    pub base: String,
    /// Mount options.
    pub options: String,
    /// Words that have to be among what is found, or must not be, with a `!` before them; `mounted`, `refused`; `clean` if nothing may be.
    pub expect: Vec<String>,
    /// In order.
    pub edits: Vec<Edit>,
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok().or_else(|| word.parse().ok().map(i64::cast_unsigned)),
    }
}

fn value(word: &str) -> Option<Value> {
    let Some(name) = word.strip_prefix('@') else { return number(word).map(Value::Num) };
    // Names may have the sign in them.
    let more = name.rsplit_once('+').and_then(|(name, more)| Some((name, more.parse().ok()?)));
    let (name, more) = more.unwrap_or((name, 0));
    Some(Value::Block(name.to_string(), more))
}

fn hex(word: &str) -> Option<Vec<u8>> {
    if word.is_empty() || !word.len().is_multiple_of(2) || !word.is_ascii() {
        return None;
    }
    (0..word.len() / 2).map(|at| u8::from_str_radix(&word[2 * at..2 * at + 2], 16).ok()).collect()
}

impl Edit {
    /// One that changes nothing, but makes the checksum right.
    pub fn nothing(place: &str) -> Self {
        Self { place: place.to_string(), offset: 0, op: Op::Xor(vec![0]), bad: false }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let bad = words.last() == Some(&"bad");
        if bad {
            words.pop();
        }
        let (&place, rest) = words.split_first()?;
        let (&offset, rest) = rest.split_first()?;
        let int = |width, be, word| value(word).map(|value| Op::Int { width, be, value });
        let op = match *rest {
            ["u8", word] => int(1, false, word)?,
            ["le16", word] => int(2, false, word)?,
            ["le32", word] => int(4, false, word)?,
            ["le64", word] => int(8, false, word)?,
            ["be16", word] => int(2, true, word)?,
            ["be32", word] => int(4, true, word)?,
            ["hex", word] => Op::Hex(hex(word)?),
            ["xor", word] => Op::Xor(hex(word)?),
            ["fill", byte, len] => Op::Fill(number(byte)? as u8, number(len)?.min(65536) as u32),
            ["words", word, count] => Op::Words(value(word)?, number(count)?.min(65536) as u32),
            ["copy", from] => Op::Copy(from.to_string()),
            _ => return None,
        };
        Some(Self { place: place.to_string(), offset: u32::try_from(number(offset)?).ok()?, op, bad })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Num(n) if *n < 4096 => write!(f, "{n}"),
            Value::Num(n) => write!(f, "{n:#x}"),
            Value::Block(name, 0) => write!(f, "@{name}"),
            Value::Block(name, more) => write!(f, "@{name}+{more}"),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        write!(f, "{} {:#x} ", self.place, self.offset)?;
        match &self.op {
            Op::Int { width: 1, value, .. } => write!(f, "u8 {value}")?,
            Op::Int { width, be, value } => write!(f, "{}{} {value}", if *be { "be" } else { "le" }, width * 8)?,
            Op::Hex(bytes) => write!(f, "hex {}", hex(bytes))?,
            Op::Xor(bytes) => write!(f, "xor {}", hex(bytes))?,
            Op::Fill(byte, len) => write!(f, "fill {byte:#x} {len}")?,
            Op::Words(value, count) => write!(f, "words {value} {count}")?,
            Op::Copy(from) => write!(f, "copy {from}")?,
        }
        f.write_str(if self.bad { " bad" } else { "" })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "base {}", self.base)?;
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options)?;
        }
        if !self.expect.is_empty() {
            writeln!(f, "expect {}", self.expect.join(" "))?;
        }
        self.edits.iter().try_for_each(|edit| writeln!(f, "{edit}"))
    }
}

impl Case {
    /// Nothing is wrong with it.
    pub fn sound(base: &str) -> Self {
        Self { base: base.to_string(), ..Self::default() }
    }

    /// From text; with the first line that is none of ours.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut case = Self::default();
        for line in text.lines() {
            case.line(line).ok_or_else(|| format!("not understood: {line}"))?;
        }
        if base::NAMES.contains(&case.base.as_str()) { Ok(case) } else { Err(format!("no such base: {}", case.base)) }
    }

    /// From anything: lines that are none of ours are left out.
    pub fn parse_any(bytes: &[u8]) -> Self {
        let mut case = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let _ = case.line(line);
        }
        if !base::NAMES.contains(&case.base.as_str()) {
            case.base = base::NAMES[0].to_string();
        }
        case.edits.truncate(mutate::MOST_EDITS);
        case
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let line = line.split('#').next().map(str::trim).unwrap_or_default();
        match line.split_once(' ') {
            None if line.is_empty() => {}
            Some(("base", name)) => self.base = name.trim().to_string(),
            Some(("options", options)) => self.options = options.trim().to_string(),
            Some(("expect", words)) => self.expect.extend(words.split_whitespace().map(str::to_string)),
            _ => self.edits.push(Edit::parse(line)?),
        }
        Some(())
    }
}
