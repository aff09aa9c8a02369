// SPDX-License-Identifier: GPL-2.0-only
//! What reads may return: the history of a run, kept as one register for each 512 bytes of each file, and one for its size.
//!
//! Each operation notes the clock when it is called and when it has ended ([`Log`]); nothing is checked while the run goes on. Afterwards
//! [`check`] asks of every word that any read returned who wrote it. What is written says who it is: [`stamp`].
//!
//! # What is assumed of Linux, and so of this
//!
//! * A file is an endless row of sectors, zero at first, and a size. Truncation writes zeros to all that lies past the new size;
//!   punching and zeroing write zeros. So growing a file writes nothing. Reading stops at the size.
//! * A sector is a *regular register*: a read returns what the last write before it left, or what any write wrote that runs at the same time
//!   (of two writes that overlap in time either may win, for each sector by itself: they are different bios, or different pages).
//!   What is wider than a sector is atomic for nobody.
//! * Between reads of one kind (direct, or buffered) it is an *atomic* one: once a read has returned a value, none that starts later returns
//!   one that had been replaced before that. Not between the two kinds while the write still runs: its data may be on the device while a
//!   page read before is still cached, and Linux drops that page when the write ends (G11).
//! * A write that fails, or the part past what it says it wrote, may have happened or not, and replaces nothing for certain. One that
//!   answers EAGAIN, EINVAL, EBADF or EROFS has not happened.
//! * A word counts, not a sector: a buffered read may see a buffered write half done.
//! * With a disk that fails, the page cache may lose what it was given (and `fsync` tells, once): buffered writes replace nothing then,
//!   and neither do zeros in a part of a block.
//!   A read that the disk fails in the middle of is short.
//! * COLLAPSE_RANGE and INSERT_RANGE move data. In a world that has them a read may return what was written to this file at any place
//!   that a sum of such moves leads to; nothing else is asked of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// Bytes of a register.
pub const SECTOR: u64 = 512;
/// Bytes of a block, at most.
const BLOCK: u64 = 4096;
/// Has not come yet.
pub const NEVER: u64 = u64::MAX;
/// What an operation that has no answer yet has for one.
const NO_ANSWER: i64 = i64::MIN;

/// The upper bits of each word that an operation of a world writes.
const STAMP: u64 = 0xd10 << 52;
/// The upper bits of each word of a disk that nobody has written to.
const POISON: u64 = 0xbad << 52;

/// A word of the `rel`-th sector that operation `tag` writes.
pub fn stamp(tag: u32, rel: u32) -> u64 {
    STAMP | u64::from(tag) << 24 | u64::from(rel)
}

/// The bytes that operation `tag` writes: each word says which, and of which of its sectors.
pub fn payload(tag: u32, bytes: &mut [u8]) {
    for (rel, sector) in bytes.chunks_mut(SECTOR as usize).enumerate() {
        let word = stamp(tag, rel as u32).to_le_bytes();
        sector.chunks_mut(8).for_each(|to| to.copy_from_slice(&word[..to.len()]));
    }
}

/// What a disk of `bytes` holds before there is a file system: each word names its block of 1 KiB.
pub fn poison(bytes: usize) -> Vec<u8> {
    (0..bytes / 8).flat_map(|word| (POISON | (word as u64 * 8) >> 10).to_le_bytes()).collect()
}

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// Nothing was written.
    Zero,
    /// Operation, and which of its sectors.
    Stamp(u32, u32),
    /// The old contents of a block of the disk, counted in KiB.
    Poison(u64),
    /// Something else.
    Rubbish(u64),
}

impl Word {
    /// Of its value.
    pub fn of(word: u64) -> Self {
        match word & (0xfff << 52) {
            0 if word == 0 => Self::Zero,
            STAMP => Self::Stamp((word >> 24) as u32 & 0xfff_ffff, word as u32 & 0xff_ffff),
            POISON => Self::Poison(word & !(0xfff << 52)),
            _ => Self::Rubbish(word),
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zeros"),
            Self::Stamp(tag, rel) => write!(f, "sector {rel} of operation {tag}"),
            Self::Poison(kib) => write!(f, "STALE DATA: what was at KiB {kib} of the disk before anything was written"),
            Self::Rubbish(word) => write!(f, "RUBBISH that nobody wrote: {word:#018x}"),
        }
    }
}

/// How an operation changes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Puts its stamps there; `buffered` through the page cache; `durable` when it has ended well.
    Write {
        /// Through the page cache.
        buffered: bool,
        /// `O_DSYNC`.
        durable: bool,
    },
    /// Zeros, to all that it covers.
    Zero,
    /// The size becomes where the range begins; zeros beyond.
    Truncate,
    /// The size becomes at least where the range ends.
    Grow,
    /// Zeros, and [`Change::Grow`].
    ZeroGrow,
    /// Moves data.
    Shift,
    /// All that ended before it began is durable when it has ended well, of this file or of all.
    Sync {
        /// Of all files.
        all: bool,
    },
    /// Changes nothing.
    None,
}

/// What an operation that changes something did: filled in by those who run it, from any thread.
pub struct Record {
    /// The file: counted, so that one that was unlinked is another than the next one with its name.
    pub obj: AtomicU32,
    /// Where it began, in bytes: known when it was submitted, for appends.
    pub pos: AtomicI64,
    /// How many bytes it was to change.
    pub len: AtomicU64,
    /// How.
    pub change: Change,
    invoke: AtomicU64,
    ret: AtomicU64,
    /// Bytes, or the errno, negative.
    answer: AtomicI64,
}

impl Record {
    /// Of an operation that has not begun.
    pub fn new(change: Change) -> Self {
        Self {
            obj: AtomicU32::new(u32::MAX),
            pos: AtomicI64::new(-1),
            len: AtomicU64::new(0),
            change,
            invoke: AtomicU64::new(NEVER),
            ret: AtomicU64::new(NEVER),
            answer: AtomicI64::new(NO_ANSWER),
        }
    }

    /// Its answer, if it has one.
    pub fn answer(&self) -> Option<i64> {
        Some(self.answer.load(SeqCst)).filter(|answer| *answer != NO_ANSWER)
    }

    /// When it was called, and when it had ended.
    pub fn times(&self) -> (u64, u64) {
        (self.invoke.load(SeqCst), self.ret.load(SeqCst))
    }
}

/// How a read was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Past the page cache.
    Direct,
    /// Through it.
    Buffered,
    /// Of what would be left if the power failed: what was durable when it was looked at must be there.
    Durable,
}

/// What a read returned.
#[derive(Clone, Debug)]
pub struct Read {
    /// Its operation, for messages.
    pub tag: u32,
    /// The file.
    pub obj: u32,
    /// How it was made.
    pub way: Way,
    /// Where, in bytes: a multiple of 512.
    pub pos: u64,
    /// How many bytes it asked for.
    pub asked: usize,
    /// What it got.
    pub bytes: Vec<u8>,
    /// When it was called.
    pub invoke: u64,
    /// When it had ended.
    pub ret: u64,
}

/// The history of a run.
pub struct Log {
    clock: AtomicU64,
    /// By operation, that is by [`stamp`].
    pub records: Vec<Record>,
    reads: Mutex<Vec<Read>>,
}

impl Log {
    /// Of operations that have these effects.
    pub fn new(changes: impl Iterator<Item = Change>) -> Self {
        Self { clock: AtomicU64::new(1), records: changes.map(Record::new).collect(), reads: Mutex::default() }
    }

    /// The time: later than any that was told before.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    /// Operation `tag` begins, on `pos..pos + len` of file `obj`.
    pub fn begin(&self, tag: u32, obj: u32, pos: i64, len: u64) {
        let record = &self.records[tag as usize];
        record.obj.store(obj, SeqCst);
        record.pos.store(pos, SeqCst);
        record.len.store(len, SeqCst);
        record.invoke.store(self.now(), SeqCst);
    }

    /// Where an append goes is known.
    pub fn moved(&self, tag: u32, pos: i64) {
        self.records[tag as usize].pos.store(pos, SeqCst);
    }

    /// Operation `tag` has ended. Any context.
    pub fn end(&self, tag: u32, answer: i64) {
        let record = &self.records[tag as usize];
        record.answer.store(answer, SeqCst);
        record.ret.store(self.now(), SeqCst);
    }

    /// A read has ended.
    pub fn read(&self, read: Read) {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).push(read);
    }

    /// All that was read.
    pub fn take_reads(&self) -> Vec<Read> {
        std::mem::take(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is not asked of this run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leniency {
    /// The disk fails: buffered writes may be lost.
    pub faults: bool,
    /// It fails to read: a read may be short of what it could not get.
    pub bad_reads: bool,
    /// Data moves inside files.
    pub shifts: bool,
}

/// What one operation did to one sector.
#[derive(Clone, Copy, Debug)]
struct Effect {
    tag: u32,
    invoke: u64,
    ret: u64,
    word: Word,
    /// It has happened, to all of the sector.
    sure: bool,
    /// When it was durable for certain.
    durable: u64,
}

/// What one operation did to a size.
#[derive(Clone, Copy, Debug)]
struct Resize {
    invoke: u64,
    ret: u64,
    /// The size that it makes, or at least makes.
    size: u64,
    /// Makes it smaller if it was larger.
    exact: bool,
    sure: bool,
    durable: u64,
}

/// The history of one file.
#[derive(Default)]
struct FileHistory {
    /// By sector.
    sectors: BTreeMap<u64, Vec<Effect>>,
    /// Zeros to all sectors from here on.
    tails: Vec<(u64, Effect)>,
    resizes: Vec<Resize>,
    /// For each kind of read and sector: stamps that were seen, and when the first read ended that saw them.
    seen: BTreeMap<(bool, u64), Vec<(u32, u64)>>,
}

/// Asks of all `reads` whether they could be. How many words of how many sectors were looked at, or what is wrong.
pub fn check(log: &Log, mut reads: Vec<Read>, lenient: Leniency) -> Result<u64, String> {
    let files = histories(log, lenient);
    let nobody = FileHistory::default();
    let mut files = files;
    let mut checked = 0;
    // In the order of their ends, so that what is known of earlier ones is complete.
    reads.sort_by_key(|read| read.ret);
    for read in &reads {
        see(&mut files, read);
    }
    for read in &reads {
        let file = files.get(&read.obj).unwrap_or(&nobody);
        check_read(log, file, read, lenient).map_err(|what| format!("{what}\n  read: {}", describe(read)))?;
        checked += read.bytes.len() as u64 / SECTOR;
    }
    Ok(checked)
}

fn describe(read: &Read) -> String {
    let Read { tag, obj, way, pos, asked, bytes, invoke, ret } = read;
    format!("operation {tag}, {way:?}, object {obj}, {pos}+{asked} -> {} bytes, in {invoke}..{ret}", bytes.len())
}

fn see(files: &mut BTreeMap<u32, FileHistory>, read: &Read) {
    let Some(file) = files.get_mut(&read.obj).filter(|_| read.way != Way::Durable) else { return };
    for (sector, words) in sectors(read) {
        for word in words {
            if let Word::Stamp(tag, _) = word {
                let seen = file.seen.entry((read.way == Way::Direct, sector)).or_default();
                // The first is the earliest: reads come in the order of their ends.
                if seen.iter().all(|(t, _)| *t != tag) {
                    seen.push((tag, read.ret));
                }
            }
        }
    }
}

/// The sectors of a read, each with the different words that are in it.
fn sectors(read: &Read) -> impl Iterator<Item = (u64, Vec<Word>)> {
    read.bytes.chunks(SECTOR as usize).enumerate().map(|(n, bytes)| {
        let mut words: Vec<Word> = Vec::new();
        let mut last = None;
        for word in bytes.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            if last.replace(word) != Some(word) && !words.contains(&Word::of(word)) {
                words.push(Word::of(word));
            }
        }
        (read.pos / SECTOR + n as u64, words)
    })
}

/// Whether an operation that answered so may have changed something.
fn may_have_happened(answer: Option<i64>) -> bool {
    !answer.is_some_and(|answer| {
        [libc::EAGAIN, libc::EINVAL, libc::EBADF, libc::EROFS].map(|e| -i64::from(e)).contains(&answer)
    })
}

/// When each operation was durable: its own end, or that of a sync that began after it had ended.
fn durable_at(log: &Log, record: &Record) -> u64 {
    let (_, ret) = record.times();
    let own = match record.change {
        Change::Write { durable: true, .. } => ret,
        _ => NEVER,
    };
    let synced = log.records.iter().filter(|sync| match sync.change {
        Change::Sync { all } => {
            (all || sync.obj.load(SeqCst) == record.obj.load(SeqCst))
                && sync.answer() == Some(0)
                && sync.times().0 > ret
        }
        _ => false,
    });
    synced.map(|sync| sync.times().1).min().unwrap_or(NEVER).min(own)
}

fn histories(log: &Log, lenient: Leniency) -> BTreeMap<u32, FileHistory> {
    let mut files: BTreeMap<u32, FileHistory> = BTreeMap::new();
    for (tag, record) in (0..).zip(&log.records) {
        let (invoke, ret) = record.times();
        let answer = record.answer();
        let pos = record.pos.load(SeqCst);
        if invoke == NEVER || !may_have_happened(answer) {
            continue;
        }
        let file = files.entry(record.obj.load(SeqCst)).or_default();
        if pos < 0 {
            // An append that failed: it may have grown the file, nobody knows from where.
            let grown = Resize { invoke, ret, size: u64::MAX, exact: false, sure: false, durable: NEVER };
            file.resizes.push(grown);
            continue;
        }
        let (pos, len) = (pos as u64, record.len.load(SeqCst));
        let done = match (record.change, answer) {
            (Change::Write { .. }, Some(n)) => n.max(0) as u64,
            (_, Some(0)) => len,
            _ => 0,
        };
        let durable = durable_at(log, record);
        let buffered = matches!(record.change, Change::Write { buffered: true, .. });
        let sure = answer.is_some_and(|answer| answer >= 0) && !(lenient.faults && buffered);
        let effect = Effect { tag, invoke, ret, word: Word::Zero, sure, durable };
        let range = (pos, pos.saturating_add(len), pos.saturating_add(done));
        add_data(file, record.change, effect, range, lenient.faults);
        let resize =
            Resize { invoke, ret, size: pos + len, exact: false, sure: answer.is_some_and(|a| a >= 0), durable };
        match record.change {
            Change::Write { .. } => {
                file.resizes.push(Resize { size: pos + done, sure: done > 0, ..resize });
                // What it did not say that it wrote.
                file.resizes.push(Resize { sure: false, ..resize });
            }
            Change::Truncate => file.resizes.push(Resize { size: pos, exact: true, ..resize }),
            Change::Grow | Change::ZeroGrow => file.resizes.push(resize),
            _ => {}
        }
    }
    files
}

/// Notes what an operation on bytes `pos..end`, of which `..done` are done for certain, did to sectors. With `faults`, zeros in a part of
/// a block, which go through the page cache, are not certain.
fn add_data(file: &mut FileHistory, change: Change, effect: Effect, (pos, end, done): (u64, u64, u64), faults: bool) {
    let zeroes = !matches!(change, Change::Write { .. });
    // Of zeros, what is neither in the first nor in the last block.
    let certain = if faults && zeroes { pos.next_multiple_of(BLOCK)..done / BLOCK * BLOCK } else { pos..done };
    match change {
        Change::Truncate => {
            let kept = pos / SECTOR..certain.start.div_ceil(SECTOR);
            for sector in kept.clone() {
                file.sectors.entry(sector).or_default().push(Effect { sure: false, ..effect });
            }
            file.tails.push((kept.end, effect));
        }
        Change::Write { .. } | Change::Zero | Change::ZeroGrow => {
            for sector in pos / SECTOR..end.div_ceil(SECTOR) {
                let (first, last) = ((sector * SECTOR).max(pos), ((sector + 1) * SECTOR).min(end) - 1);
                let whole = sector * SECTOR >= certain.start && (sector + 1) * SECTOR <= certain.end;
                let effect = Effect { sure: effect.sure && whole, ..effect };
                let all = file.sectors.entry(sector).or_default();
                if zeroes {
                    all.push(effect);
                    continue;
                }
                // Of an append in the middle of a sector there are parts of two of its own in one of the file's.
                for rel in (first - pos) / SECTOR..=(last - pos) / SECTOR {
                    all.push(Effect { word: Word::Stamp(effect.tag, rel as u32), ..effect });
                }
            }
        }
        Change::Grow | Change::Shift | Change::Sync { .. } | Change::None => {}
    }
}

fn check_read(log: &Log, file: &FileHistory, read: &Read, lenient: Leniency) -> Result<(), String> {
    for (sector, words) in sectors(read) {
        for word in words {
            check_word(log, file, read, sector, word, lenient)
                .map_err(|what| format!("sector {sector} (byte {}): {word}: {what}", sector * SECTOR))?;
        }
        if !lenient.shifts {
            check_inside(file, read, sector * SECTOR)?;
        }
    }
    let end = read.pos + read.bytes.len() as u64;
    if read.bytes.len() < read.asked && !lenient.shifts && !lenient.bad_reads {
        check_end(file, read, end)?;
    }
    Ok(())
}

/// Whether `effect`'s value can still be there when `read` looks.
fn replaced(file: &FileHistory, read: &Read, sector: u64, effect: &Effect) -> Option<Effect> {
    let effects = file.sectors.get(&sector).into_iter().flatten();
    let tails = file.tails.iter().filter(|(from, _)| *from <= sector).map(|(_, effect)| effect);
    let seen = file.seen.get(&(read.way == Way::Direct, sector));
    effects
        .chain(tails)
        .find(|later| {
            if later.invoke < effect.ret || later.tag == effect.tag {
                return false;
            }
            if read.way == Way::Durable {
                return later.sure && later.durable <= read.invoke;
            }
            let seen =
                || seen.is_some_and(|seen| seen.iter().any(|(tag, ret)| *tag == later.tag && *ret < read.invoke));
            later.sure && (later.ret < read.invoke || matches!(later.word, Word::Stamp(..)) && seen())
        })
        .copied()
}

fn check_word(
    log: &Log,
    file: &FileHistory,
    read: &Read,
    sector: u64,
    word: Word,
    lenient: Leniency,
) -> Result<(), String> {
    match word {
        Word::Poison(_) | Word::Rubbish(_) => return Err("nobody may see this".to_string()),
        Word::Stamp(tag, _) => {
            let Some(record) = log.records.get(tag as usize) else { return Err("no such operation".to_string()) };
            let obj = record.obj.load(SeqCst);
            if obj != read.obj {
                return Err(format!("data of ANOTHER FILE (object {obj})"));
            }
            if record.times().0 > read.ret {
                return Err("before it was written".to_string());
            }
            // It failed, and nobody knows where it went; or it may be anywhere by now.
            if lenient.shifts || record.pos.load(SeqCst) < 0 && may_have_happened(record.answer()) {
                return Ok(());
            }
        }
        Word::Zero if lenient.shifts => return Ok(()),
        Word::Zero => {}
    }
    let first = Effect { tag: u32::MAX, invoke: 0, ret: 0, word: Word::Zero, sure: true, durable: 0 };
    let effects = file.sectors.get(&sector).into_iter().flatten();
    let tails = file.tails.iter().filter(|(from, _)| *from <= sector).map(|(_, effect)| effect);
    let mut why = "it was never written here".to_string();
    for effect in effects.chain(tails).chain([&first]).filter(|effect| effect.word == word) {
        if effect.invoke > read.ret {
            continue;
        }
        match replaced(file, read, sector, effect) {
            None => return Ok(()),
            Some(by) => {
                why = format!(
                    "written by {} in {}..{}, and replaced by operation {} in {}..{}",
                    Tag(effect.tag),
                    effect.invoke,
                    effect.ret,
                    by.tag,
                    by.invoke,
                    by.ret
                );
            }
        }
    }
    Err(why)
}

struct Tag(u32);

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == u32::MAX { f.write_str("nobody") } else { write!(f, "operation {}", self.0) }
    }
}

/// `read` found something at byte `pos`: the file may have reached so far.
fn check_inside(file: &FileHistory, read: &Read, pos: u64) -> Result<(), String> {
    let durable = read.way == Way::Durable;
    let shrunk = |grown: &Resize| {
        file.resizes.iter().any(|cut| {
            let ended = if durable { cut.durable <= read.invoke } else { cut.ret < read.invoke };
            cut.exact && cut.sure && cut.size <= pos && grown.ret < cut.invoke && ended
        })
    };
    let may = file.resizes.iter().any(|grown| grown.size > pos && grown.invoke < read.ret && !shrunk(grown));
    if may { Ok(()) } else { Err(format!("byte {pos} is past the end of the file for certain")) }
}

/// `read` found the end of the file at byte `pos`: it may have ended there.
fn check_end(file: &FileHistory, read: &Read, pos: u64) -> Result<(), String> {
    let durable = read.way == Way::Durable;
    let maybe_cut = |grown: &Resize| {
        file.resizes.iter().any(|cut| cut.exact && cut.size <= pos && cut.invoke < read.ret && cut.ret > grown.invoke)
    };
    let grown = file.resizes.iter().find(|grown| {
        let ended = if durable { grown.durable <= read.invoke } else { grown.ret < read.invoke };
        grown.sure && grown.size > pos && ended && !maybe_cut(grown)
    });
    match grown {
        None => Ok(()),
        Some(grown) => Err(format!(
            "the file ends at byte {pos}, but reached to {} since an operation in {}..{}",
            grown.size, grown.invoke, grown.ret
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(ops: &[(Change, i64, u64, u64, u64)]) -> Log {
        let log = Log::new(ops.iter().map(|op| op.0));
        for (record, (_, pos, len, invoke, ret)) in log.records.iter().zip(ops) {
            record.obj.store(0, SeqCst);
            record.pos.store(*pos, SeqCst);
            record.len.store(*len, SeqCst);
            record.invoke.store(*invoke, SeqCst);
            record.ret.store(*ret, SeqCst);
            let answer = if matches!(record.change, Change::Write { .. }) { *len as i64 } else { 0 };
            record.answer.store(answer, SeqCst);
        }
        log
    }

    fn read(way: Way, word: u64, invoke: u64, ret: u64) -> Read {
        let bytes = word.to_le_bytes().repeat(64);
        Read { tag: 99, obj: 0, way, pos: 0, asked: 512, bytes, invoke, ret }
    }

    const WRITE: Change = Change::Write { buffered: false, durable: false };

    #[test]
    fn a_write_that_ended_before_another_began_does_not_come_back() {
        let ops = [(WRITE, 0, 512, 1, 2), (WRITE, 0, 512, 3, 6)];
        let ok = |reads: Vec<Read>| check(&log(&ops), reads, Leniency::default());
        // While the second runs, either; after it only the second.
        assert!(ok(vec![read(Way::Direct, stamp(0, 0), 4, 5)]).is_ok());
        assert!(ok(vec![read(Way::Direct, stamp(1, 0), 4, 5)]).is_ok());
        assert!(ok(vec![read(Way::Direct, stamp(0, 0), 7, 8)]).is_err());
        assert!(ok(vec![read(Way::Direct, 0, 4, 5)]).is_err());
        // Once seen, it stays, for reads of the same kind.
        assert!(ok(vec![read(Way::Direct, stamp(1, 0), 4, 4), read(Way::Direct, stamp(0, 0), 5, 5)]).is_err());
        assert!(ok(vec![read(Way::Direct, stamp(1, 0), 4, 4), read(Way::Buffered, stamp(0, 0), 5, 5)]).is_ok());
        // Its place counts, and so does its time.
        assert!(ok(vec![read(Way::Direct, stamp(1, 1), 7, 8)]).is_err());
        assert!(ok(vec![read(Way::Direct, stamp(1, 0), 2, 2)]).is_err());
    }

    #[test]
    fn an_append_that_failed_may_have_grown_the_file() {
        let log = log(&[(WRITE, 0, 512, 1, 2), (WRITE, -1, 512, 3, 4)]);
        let longer = |invoke, ret| {
            let bytes = [stamp(0, 0).to_le_bytes().repeat(64), stamp(1, 0).to_le_bytes().repeat(64)].concat();
            let read = Read { tag: 99, obj: 0, way: Way::Direct, pos: 0, asked: 4096, bytes, invoke, ret };
            check(&log, vec![read], Leniency::default())
        };
        let answers = |errno: i32| log.records[1].answer.store(-i64::from(errno), SeqCst);
        answers(libc::EIO);
        assert!(longer(5, 6).is_ok());
        // Not before it began, and not if it has not happened.
        assert!(longer(2, 2).is_err());
        answers(libc::EAGAIN);
        assert!(longer(5, 6).is_err());
    }

    #[test]
    fn stale_data_and_other_files_are_seen() {
        let ops = [(WRITE, 0, 512, 1, 2)];
        let log = log(&ops);
        let bad = |word| check(&log, vec![read(Way::Direct, word, 3, 4)], Leniency::default()).unwrap_err();
        assert!(bad(u64::from_le_bytes(poison(4096)[2048..2056].try_into().unwrap())).contains("STALE"));
        assert!(bad(0xa5a5_a5a5_a5a5_a5a5).contains("RUBBISH"));
        log.records[0].obj.store(1, SeqCst);
        assert!(bad(stamp(0, 0)).contains("ANOTHER FILE"));
    }

    #[test]
    fn sizes() {
        let ops = [(WRITE, 0, 1024, 1, 2), (Change::Truncate, 512, 0, 5, 8), (WRITE, 0, 1024, 11, 12)];
        let log = log(&ops);
        let at = |len, invoke, ret| {
            let mut bytes = Vec::new();
            let tag = if invoke > 10 { 2 } else { 0 };
            (0..len / 512).for_each(|n| bytes.extend(stamp(tag, n as u32).to_le_bytes().repeat(64)));
            let read = Read { tag: 9, obj: 0, way: Way::Direct, pos: 0, asked: 1024, bytes, invoke, ret };
            check(&log, vec![read], Leniency::default())
        };
        assert!(at(1024, 3, 4).is_ok() && at(512, 3, 4).is_err());
        assert!(at(1024, 6, 7).is_ok() && at(512, 6, 7).is_ok());
        assert!(at(1024, 9, 10).is_err() && at(512, 9, 10).is_ok() && at(0, 9, 10).is_err());
        assert!(at(1024, 13, 14).is_ok() && at(512, 13, 14).is_err());
    }

    #[test]
    fn what_was_synced_is_durable() {
        let ops = [(WRITE, 0, 512, 1, 2), (Change::Sync { all: false }, 0, 0, 3, 4), (WRITE, 0, 512, 5, 6)];
        let ok = |word, at| check(&log(&ops), vec![read(Way::Durable, word, at, at)], Leniency::default()).is_ok();
        assert!(ok(0, 3) && !ok(0, 4) && ok(stamp(0, 0), 4));
        // Nobody synced the third: it may be there or not.
        assert!(ok(stamp(0, 0), 9) && ok(stamp(2, 0), 9) && !ok(0, 9));
    }
}
