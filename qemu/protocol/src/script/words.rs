// SPDX-License-Identifier: GPL-2.0-only
//! The words of a line, and what they mean.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::{IntoIter, Vec};

use super::{How, Time};

/// A word, and whether it was in quotes.
pub(super) struct Word {
    text: String,
    quoted: bool,
}

/// The words of a line, and the line without comment and blanks around it.
pub(super) fn split(line: &str) -> Result<(Vec<Word>, &str), String> {
    let mut words = Vec::new();
    let mut chars = line.char_indices().peekable();
    let mut end = 0;
    while let Some((at, c)) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        if c == '#' {
            break;
        }
        let word = if c == '"' {
            let word = quoted(&mut chars)?;
            if chars.peek().is_some_and(|(_, c)| !c.is_whitespace()) {
                return Err(format!("`\"{}\"`: a blank has to come after the closing quote", word.text));
            }
            word
        } else {
            while chars.next_if(|(_, c)| !c.is_whitespace()).is_some() {}
            let stop = chars.peek().map_or(line.len(), |(at, _)| *at);
            let text = line.get(at..stop).unwrap_or_default();
            if text.contains('"') {
                return Err(format!("`{text}`: quotes go around the whole word"));
            }
            Word { text: text.to_string(), quoted: false }
        };
        end = chars.peek().map_or(line.len(), |(at, _)| *at);
        words.push(word);
    }
    Ok((words, line.get(..end).unwrap_or_default().trim()))
}

/// The rest of a word in quotes, after the first of them.
fn quoted(chars: &mut impl Iterator<Item = (usize, char)>) -> Result<Word, String> {
    let mut text = String::new();
    let mut chars = chars.map(|(_, c)| c);
    loop {
        match chars.next() {
            None => return Err(format!("`\"{text}`: the closing quote is missing")),
            Some('"') => return Ok(Word { text, quoted: true }),
            Some('\\') => text.push(escaped(&mut chars)?),
            Some(c) => text.push(c),
        }
    }
}

fn escaped(chars: &mut impl Iterator<Item = char>) -> Result<char, String> {
    let c = chars.next();
    match c {
        Some('n') => Ok('\n'),
        Some('t') => Ok('\t'),
        Some(c @ ('"' | '\\')) => Ok(c),
        Some('x') => {
            let digits: String = chars.take(2).collect();
            let code =
                u8::from_str_radix(&digits, 16).ok().filter(|code| (1..0x80).contains(code) && digits.len() == 2);
            code.map(char::from).ok_or_else(|| format!("`\\x{digits}`: two hexadecimal digits from 01 to 7f"))
        }
        other => {
            Err(format!("`\\{}`: known are \\n, \\t, \\\", \\\\ and \\x41", other.map_or(String::new(), String::from)))
        }
    }
}

/// Words, taken one by one. Errors name the word.
pub(super) struct Words(IntoIter<Word>);

impl Words {
    pub(super) fn new(words: Vec<Word>) -> Self {
        Self(words.into_iter())
    }

    pub(super) fn next(&mut self) -> Option<String> {
        self.0.next().map(|word| word.text)
    }

    pub(super) fn word(&mut self, what: &str) -> Result<String, String> {
        self.next().ok_or_else(|| format!("{what} is missing"))
    }

    pub(super) fn end(&mut self) -> Result<(), String> {
        match self.next() {
            Some(word) => Err(format!("`{word}` is one word too many")),
            None => Ok(()),
        }
    }

    pub(super) fn path(&mut self) -> Result<String, String> {
        let word = self.word("PATH")?;
        if word.starts_with('/') { Ok(word) } else { Err(format!("`{word}`: a path begins with /")) }
    }

    pub(super) fn bytes(&mut self, what: &str) -> Result<u64, String> {
        let word = self.word(what)?;
        // File offsets are signed.
        let value = bytes(&word).filter(|n| i64::try_from(*n).is_ok());
        value.ok_or_else(|| format!("`{word}` is no {what}; 4096, 0x1000, 4k and 1m are"))
    }

    /// A byte or a text.
    pub(super) fn fill(&mut self) -> Result<Vec<u8>, String> {
        let word = self.0.next().ok_or("BYTE or TEXT is missing")?;
        if word.text.is_empty() {
            return Err("`\"\"`: an empty text fills nothing".into());
        }
        if word.quoted || !word.text.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(word.text.into_bytes());
        }
        let byte = integer(&word.text).and_then(|n| u8::try_from(n).ok());
        let byte =
            byte.ok_or_else(|| format!("`{}` is no byte from 0 to 255; a text with digits goes in quotes", word.text))?;
        Ok([byte].into())
    }

    pub(super) fn mode(&mut self) -> Result<u32, String> {
        let word = self.word("MODE")?;
        octal(&word)
    }

    pub(super) fn mode_or(&mut self, default: u32) -> Result<u32, String> {
        self.next().map_or(Ok(default), |word| octal(&word))
    }

    pub(super) fn id(&mut self, what: &str) -> Result<Option<u32>, String> {
        let word = self.word(what)?;
        if word == "-" {
            return Ok(None);
        }
        // The largest means "leave it".
        let id = integer(&word).and_then(|n| u32::try_from(n).ok()).filter(|id| *id != u32::MAX);
        id.map(Some).ok_or_else(|| format!("`{word}` is no {what}; 0 to 4294967294 are, and - leaves it"))
    }

    pub(super) fn time(&mut self, what: &str) -> Result<Time, String> {
        let word = self.word(what)?;
        let at = || {
            let (seconds, nanoseconds) = word.split_once('.').unwrap_or((&word, "0"));
            let digits = nanoseconds.len() <= 9 && nanoseconds.bytes().all(|b| b.is_ascii_digit());
            let rest: u32 = nanoseconds.parse().ok().filter(|_| digits)?;
            // As a fraction: .5 is half a second.
            Some(Time::At(seconds.parse().ok()?, rest * 10u32.pow(9 - nanoseconds.len() as u32)))
        };
        match word.as_str() {
            "now" => Ok(Time::Now),
            "omit" => Ok(Time::Omit),
            _ => at().ok_or_else(|| format!("`{word}` is no {what}; 1700000000, 1700000000.5, now and omit are")),
        }
    }

    pub(super) fn choice<T: Copy>(&mut self, what: &str, all: &[(&str, T)]) -> Result<T, String> {
        let word = self.word(what)?;
        pick(&word, all)
    }

    pub(super) fn option<T: Copy>(&mut self, all: &[(&str, T)]) -> Result<Option<T>, String> {
        self.next().map(|word| pick(&word, all)).transpose()
    }

    pub(super) fn how(&mut self, allowed: &[&str]) -> Result<How, String> {
        let mut how = How::default();
        while let Some(word) = self.next() {
            let known = allowed.contains(&word.as_str());
            match word.as_str() {
                "direct" if known => how.direct = true,
                "append" if known => how.append = true,
                "dsync" if known => how.dsync = true,
                _ => return Err(format!("`{word}` is not one of {}", allowed.join(", "))),
            }
        }
        Ok(how)
    }
}

fn pick<T: Copy>(word: &str, all: &[(&str, T)]) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        format!("`{word}` is not one of {}", names.join(", "))
    })
}

fn octal(word: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(word, 8).ok().filter(|mode| *mode <= 0o7777 && !word.starts_with('+'));
    mode.ok_or_else(|| format!("`{word}` is no MODE; 644 and 0755 are"))
}

fn integer(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')),
        None => word.parse().ok().filter(|_| !word.starts_with('+')),
    }
}

fn bytes(word: &str) -> Option<u64> {
    let shift = match word.bytes().last()? {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        b't' => 40,
        _ => return integer(word),
    };
    integer(word.get(..word.len() - 1)?)?.checked_mul(1 << shift)
}
