// SPDX-License-Identifier: GPL-2.0-only
//! What may be on a disk after a crash or a failure, without saying what must be: a ledger of what was acknowledged.
//!
//! Each file's writes have one tag, so position alone determines a byte: it is that, or zero. What was written and then synced
//! must be there; the rest may be. Anything else is another file's data, or what was in the block before.

use std::collections::BTreeMap;

use crate::oplang::*;

/// Of one byte of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Byte {
    /// Nothing is promised.
    Open,
    /// It was written.
    Written,
    /// It was synced.
    Durable,
}

/// What was promised of one file.
#[derive(Clone, Debug)]
struct Promise {
    tag: u32,
    bytes: Vec<Byte>,
    /// Bytes in the file, as it should be now.
    size: u64,
    /// At least so many after a crash. `None`: the file need not be there.
    durable_size: Option<u64>,
}

/// What was promised.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    files: BTreeMap<String, Promise>,
    slots: BTreeMap<u8, String>,
}

/// Files that a [`workload`] writes to: slot, tag minus one, and name are the same number.
pub const FILES: u8 = 4;

/// `n` operations on [`FILES`] files, and on names that no promise is about.
pub fn workload(seed: u64, block: u32, extents: bool, n: usize) -> Vec<Op> {
    let mut rng = Rng(seed);
    let b = u64::from(block);
    let mut ops: Vec<Op> = vec![Op::Mkdir { path: "dir".to_string(), mode: 0o755 }];
    for slot in 0..FILES {
        let mut flags = OFlags::RDWR | OFlags::CREAT;
        if slot % 2 == 1 {
            flags = flags | OFlags::DIRECT;
        }
        ops.push(Op::Open { slot, path: format!("dir/w{slot}"), flags, mode: 0o644 });
    }
    while ops.len() < n {
        let slot = rng.below(u64::from(FILES)) as u8;
        let tag = u32::from(slot) + 1;
        let pos = rng.below(40) * b + if rng.one_in(4) { 512 * rng.below(b / 512) } else { 0 };
        let len = if rng.one_in(4) { 512 * (1 + rng.below(6)) } else { b * (1 + rng.below(5)) };
        let name = |n: u64| format!("{}n{n}", if n.is_multiple_of(2) { "dir/" } else { "" });
        ops.push(match rng.below(100) {
            0..40 => {
                let rwf = if rng.one_in(8) { Rwf::DSYNC } else { Rwf(0) };
                Op::Write { slot, pos, len: len as usize, segs: 1, tag, rwf }
            }
            40..48 => {
                let list = (0..4).map(|k| (pos + k * len, len as usize)).collect();
                Op::Aio { slot, tag, list }
            }
            48..62 => Op::Fsync { slot },
            62..65 => Op::Fdatasync { slot },
            65..67 => Op::Sync {},
            67..70 => Op::Ftruncate { slot, size: pos },
            70..76 => {
                let how = match rng.below(4) {
                    _ if !extents => Falloc::Punch,
                    0 => Falloc::Alloc,
                    1 => Falloc::Keep,
                    2 => Falloc::Punch,
                    _ => Falloc::Zero,
                };
                Op::Fallocate { slot, how, pos, len }
            }
            76..78 => Op::SetDirect { slot, on: rng.one_in(2) },
            78..82 => Op::Mkdir { path: name(rng.below(10)), mode: 0o755 },
            82..84 => Op::Rmdir { path: name(rng.below(10)) },
            84..88 => Op::Open { slot: 5, path: name(rng.below(10)), flags: OFlags::RDWR | OFlags::CREAT, mode: 0o600 },
            88..91 => Op::Unlink { path: name(rng.below(10)) },
            91..95 => Op::Rename { from: name(rng.below(10)), to: name(rng.below(10)), how: RenameHow::Plain },
            95..97 => Op::Link { from: name(rng.below(10)), to: name(rng.below(10)) },
            _ => {
                let name = if rng.one_in(2) { "user.a" } else { "trusted.b" }.to_string();
                let path = format!("dir/w{slot}");
                Op::SetXattr { path, name, len: rng.below(300) as usize, tag, how: XattrHow::Any }
            }
        });
    }
    ops
}

impl Ledger {
    /// Takes down what `op` has promised by answering `got`.
    pub fn note(&mut self, op: &Op, got: &Reply) {
        if got.is_err() {
            // It may have been the news that something written is lost.
            self.doubt();
        }
        match op {
            Op::Open { slot, path, .. } if got.is_ok() && *slot < FILES => {
                self.slots.insert(*slot, path.clone());
                let promise = Promise { tag: u32::from(*slot) + 1, bytes: Vec::new(), size: 0, durable_size: None };
                self.files.entry(path.clone()).or_insert(promise);
            }
            Op::Write { slot, pos, rwf, .. } => {
                if let (Ok(Out::Count(n)), Some(file)) = (got, self.file(*slot)) {
                    file.written(*pos, *n as u64, rwf.has(Rwf::DSYNC));
                }
            }
            Op::Aio { slot, list, .. } => {
                let Ok(Out::Ends(ends)) = got else { return };
                if ends.iter().any(Result::is_err) {
                    self.doubt();
                }
                let Some(file) = self.file(*slot) else { return };
                for (&(pos, _), end) in list.iter().zip(ends) {
                    if let Ok(n) = end {
                        file.written(pos, *n as u64, false);
                    }
                }
            }
            Op::Ftruncate { slot, size } => {
                if let Some(file) = self.file(*slot) {
                    file.open(*size, u64::MAX);
                    file.durable_size = file.durable_size.map(|s| s.min(*size));
                    if got.is_ok() {
                        file.size = *size;
                    }
                }
            }
            Op::Fallocate { slot, how, pos, len } => {
                if let Some(file) = self.file(*slot) {
                    if matches!(how, Falloc::Punch | Falloc::Zero | Falloc::ZeroKeep) {
                        file.open(*pos, pos + len);
                    }
                    if got.is_ok() && matches!(how, Falloc::Alloc | Falloc::Zero) {
                        file.size = file.size.max(pos + len);
                    }
                }
            }
            Op::Fsync { slot } | Op::Fdatasync { slot } if got.is_ok() => {
                if let Some(file) = self.file(*slot) {
                    file.synced();
                }
            }
            Op::Sync {} | Op::Remount {} if got.is_ok() => self.files.values_mut().for_each(Promise::synced),
            _ => {}
        }
    }

    /// Everything was unmounted without an error.
    pub fn all_synced(&mut self) {
        self.files.values_mut().for_each(Promise::synced);
    }

    /// What was written and not synced may be lost.
    pub fn doubt(&mut self) {
        for byte in self.files.values_mut().flat_map(|f| &mut f.bytes) {
            if *byte == Byte::Written {
                *byte = Byte::Open;
            }
        }
    }

    fn file(&mut self, slot: u8) -> Option<&mut Promise> {
        self.files.get_mut(self.slots.get(&slot)?)
    }

    /// Whether promises are kept; `stale`: what is not promised may be what was in the block before. So it is where a write of data
    /// has failed in a file whose new blocks cannot be marked as unwritten: its metadata are committed all the same, as in Linux.
    pub fn check(&self, vfs: &mut dyn Vfs, stale: bool) -> Result<(), String> {
        for (path, promise) in &self.files {
            match vfs.see(&Target::Path(path.clone())) {
                Ok(seen) => promise.check(&seen, stale).map_err(|e| format!("{path}: {e}"))?,
                Err(libc::ENOENT) if promise.durable_size.is_none() => {}
                Err(e) => return Err(format!("{path}, promised {:?}: errno {e}", promise.durable_size)),
            }
        }
        Ok(())
    }

    /// Bytes that must be there.
    pub fn durable(&self) -> usize {
        self.files.values().flat_map(|f| &f.bytes).filter(|b| **b == Byte::Durable).count()
    }
}

impl Promise {
    fn written(&mut self, pos: u64, len: u64, durable: bool) {
        let end = (pos + len) as usize;
        if self.bytes.len() < end {
            self.bytes.resize(end, Byte::Open);
        }
        for byte in &mut self.bytes[pos as usize..end] {
            if durable {
                *byte = Byte::Durable;
            } else if *byte == Byte::Open {
                *byte = Byte::Written;
            }
        }
        self.size = self.size.max(pos + len);
        if durable {
            self.durable_size = Some(self.durable_size.unwrap_or(0).max(pos + len));
        }
    }

    /// Takes promises back.
    fn open(&mut self, from: u64, to: u64) {
        let to = (self.bytes.len() as u64).min(to);
        for at in from..to {
            self.bytes[at as usize] = Byte::Open;
        }
    }

    fn synced(&mut self) {
        for byte in &mut self.bytes {
            if *byte == Byte::Written {
                *byte = Byte::Durable;
            }
        }
        self.durable_size = Some(self.size);
    }

    fn check(&self, seen: &Seen, stale: bool) -> Result<(), String> {
        if seen.size < self.durable_size.unwrap_or(0) {
            return Err(format!("{} bytes, promised {:?}", seen.size, self.durable_size));
        }
        let mut all = vec![0; seen.size as usize];
        for (lblk, bytes) in &seen.blocks {
            let at = (lblk * seen.block) as usize;
            all[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let want = pattern(self.tag, 0, all.len().max(self.bytes.len()));
        for (at, &got) in all.iter().enumerate() {
            let promised = self.bytes.get(at) == Some(&Byte::Durable);
            if got != want[at] && (promised || got != 0 && !stale) {
                let what = if promised { "synced" } else { "never written, or lost" };
                return Err(format!("byte {at} ({what}) is {got:#04x}, should be {:#04x}", want[at]));
            }
        }
        let short = self.bytes.iter().skip(all.len()).position(|b| *b == Byte::Durable);
        short.map_or(Ok(()), |n| Err(format!("byte {} was synced, and is behind the end", all.len() + n)))
    }
}

/// A line for everything in the tree.
pub fn tree(vfs: &mut dyn Vfs) -> Result<BTreeMap<String, String>, String> {
    let mut lines = BTreeMap::new();
    let mut todo = vec![".".to_string()];
    while let Some(path) = todo.pop() {
        let mut ask = |op: Op| vfs.apply(&op).map_err(|e| format!("{op}: errno {e}"));
        let Out::Stat(st) = ask(Op::Lstat { path: path.clone() })? else { continue };
        let mut line = format!(
            "{} {:?} {:o} {} {}:{} {} {:?} {:?}",
            st.ino, st.kind, st.mode, st.nlink, st.uid, st.gid, st.size, st.mtime, st.ctime
        );
        if st.kind == Kind::Link {
            line += &format!(" {:?}", ask(Op::Readlink { path: path.clone() })?);
            lines.insert(path, line);
            continue;
        }
        if let Out::List(mut names) = ask(Op::ListXattr { path: path.clone() })? {
            names.sort();
            for name in names {
                line += &format!(" {name}={:?}", ask(Op::GetXattr { path: path.clone(), name: name.clone() })?);
            }
        }
        if st.kind == Kind::Dir {
            let Out::Names(mut names) = ask(Op::Readdir { path: path.clone(), chunk: 100 })? else { continue };
            names.sort();
            todo.extend(names.iter().map(|name| format!("{path}/{}", name.name)));
        } else if st.kind == Kind::File {
            let seen = vfs.see(&Target::Path(path.clone())).map_err(|e| format!("{path}: errno {e}"))?;
            line += &format!(" {:?} {:016x}", merged(&seen.map), hash(&seen));
        }
        lines.insert(path, line);
    }
    Ok(lines)
}

/// Whether neighbours are one extent is nobody's business.
fn merged(map: &[Extent]) -> Vec<(u64, u64, bool)> {
    let mut out: Vec<(u64, u64, bool)> = Vec::new();
    for e in map {
        match out.last_mut() {
            Some((_, end, unwritten)) if *end == e.lblk && *unwritten == e.unwritten => *end += e.len,
            _ => out.push((e.lblk, e.lblk + e.len, e.unwritten)),
        }
    }
    out
}

fn hash(seen: &Seen) -> u64 {
    let mut sum = 0u64;
    for (lblk, bytes) in &seen.blocks {
        for byte in lblk.to_le_bytes().iter().chain(bytes) {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    sum
}

/// The first line that differs.
pub fn same_tree(got: &BTreeMap<String, String>, want: &BTreeMap<String, String>) -> Result<(), String> {
    for (path, line) in want {
        match got.get(path) {
            Some(found) if found == line => {}
            found => return Err(format!("{path}:\n  {found:?}, should be\n  {line:?}")),
        }
    }
    match got.keys().find(|path| !want.contains_key(*path)) {
        Some(path) => Err(format!("{path} should not be there")),
        None => Ok(()),
    }
}
