// SPDX-License-Identifier: GPL-2.0-only
//! Names for the addresses that a guest's panic, fault or backtrace prints.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSection, SectionKind};

/// Explains lines of the guest's log.
pub trait Annotate {
    /// A line for each code address in `line`: what is there.
    fn annotate(&self, line: &str) -> Vec<String>;
}

/// Knows no names.
#[derive(Clone, Copy, Debug)]
pub struct Unknown;

impl Annotate for Unknown {
    fn annotate(&self, _line: &str) -> Vec<String> {
        Vec::new()
    }
}

/// Functions and lines of an ELF file.
pub struct Symbols {
    loader: addr2line::Loader,
    code: Vec<Range<u64>>,
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Symbols").field("code", &self.code).finish_non_exhaustive()
    }
}

impl Symbols {
    /// Reads the symbols and line tables of `elf`.
    ///
    /// # Errors
    ///
    /// It cannot be read or is no ELF file.
    pub fn load(elf: &Path) -> Result<Symbols> {
        let name = || format!("cannot read {}", elf.display());
        let bytes = std::fs::read(elf).with_context(name)?;
        let file = object::File::parse(&*bytes).with_context(name)?;
        let code = file.sections().filter(|s| s.kind() == SectionKind::Text);
        let code = code.map(|s| s.address()..s.address().saturating_add(s.size())).collect();
        let loader = addr2line::Loader::new(elf).map_err(|e| anyhow::anyhow!("{}: {e}", name()))?;
        Ok(Symbols { loader, code })
    }

    /// What is at `address`, innermost inlined function first; none outside of the code.
    fn describe(&self, address: u64) -> Option<String> {
        if !self.code.iter().any(|c| c.contains(&address)) {
            return None;
        }
        // A return address is the instruction after the call, which may belong to another line or even function.
        let probe = address.saturating_sub(1);
        let mut parts = Vec::new();
        if let Ok(mut frames) = self.loader.find_frames(probe) {
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.as_ref().and_then(|f| f.demangle().ok().map(|n| n.into_owned()));
                let at = frame.location.and_then(|l| Some(format!(" ({}:{})", short(l.file?), l.line?)));
                parts.push(format!("{}{}", name.unwrap_or_else(|| "?".into()), at.unwrap_or_default()));
            }
        }
        if parts.iter().all(|p| p.starts_with('?')) {
            let symbol = self.loader.find_symbol(probe)?;
            let name = addr2line::demangle_auto(symbol.into(), None).into_owned();
            parts.insert(0, name);
            parts.truncate(2);
        }
        Some(parts.join(" <- "))
    }
}

/// The end of a path, enough to know the file by.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    parts[parts.len().saturating_sub(3)..].join("/")
}

impl Annotate for Symbols {
    fn annotate(&self, line: &str) -> Vec<String> {
        let found = addresses(line).into_iter().filter_map(|a| Some(format!("    {a:#x} = {}", self.describe(a)?)));
        found.collect()
    }
}

/// Hexadecimal numbers of at least five digits, with or without `0x`, as registers and backtraces are printed.
fn addresses(line: &str) -> Vec<u64> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric());
    let mut found = Vec::new();
    for word in words {
        let digits = word.strip_prefix("0x").unwrap_or(word);
        let plain = digits.len() == 16 || word.len() > digits.len();
        if plain
            && (5..=16).contains(&digits.len())
            && let Ok(address) = u64::from_str_radix(digits, 16)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_what_guests_print() {
        assert_eq!(addresses("  3: 0x100abc"), [0x100abc]);
        assert_eq!(addresses("rip=0x0000000000101234 rsp=0x5000"), [0x101234]);
        assert_eq!(addresses("RIP=00000000001018f0 RFL=00000246 [---Z-P-]"), [0x1018f0]);
        assert_eq!(addresses("12345678 ios, 0xzz, deadbeef, 0x"), Vec::<u64>::new());
    }

    #[inline(never)]
    extern "C" fn marker_function(x: u64) -> u64 {
        std::hint::black_box(x).wrapping_mul(3)
    }

    #[test]
    fn a_function_of_this_program_is_named() {
        let exe = std::env::current_exe().unwrap();
        let symbols = Symbols::load(&exe).unwrap();
        assert_eq!(marker_function(2), 6);
        // The file's address, not the one it was loaded at.
        let bytes = std::fs::read(&exe).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let symbol = object::Object::symbols(&file)
            .find(|s| object::ObjectSymbol::name(s).is_ok_and(|n| n.contains("marker_function")))
            .unwrap();
        let address = object::ObjectSymbol::address(&symbol) + 1;
        let lines = symbols.annotate(&format!("backtrace: 0x{address:016x} 0x5"));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("marker_function"), "{lines:?}");
        assert!(symbols.annotate("0xffffffffffff0000").is_empty());
        assert!(Symbols::load(Path::new("/dev/null")).is_err());
    }
}
