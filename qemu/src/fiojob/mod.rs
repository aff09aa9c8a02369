// SPDX-License-Identifier: GPL-2.0-only
//! fio job files, the part of them that the guest can run.
//!
//! Syntax and meaning are fio's: `[global]` sections add up and hold for the sections after them, the last of two equal
//! keys wins, `;` and `#` start a comment anywhere in a line, sections run together unless `stonewall` makes one wait
//! for those before it. What cannot be honoured is an error that names file, line and key; nothing is skipped in
//! silence.
//!
//! Two defaults are not fio's, since overwrites are what is measured: I/O is direct, and files are there, fully written. With
//! `fallocate=`, even `none`, or `create_on_open=1` a file is made anew before each step instead, as fio makes it; with
//! `file_append=1` it is made if there is none.

mod value;

use std::collections::BTreeMap;
use std::fmt;

use ext4_dio_protocol::{Engine, Fallocate, Layout, Rw, SyncMode};
pub use value::Amount;

/// Largest `bs`.
pub const MAX_BS: u64 = 16 << 20;
/// Largest `numjobs`.
pub const MAX_NUMJOBS: u64 = 256;
/// Largest `iodepth`.
pub const MAX_IODEPTH: u64 = 1024;

/// What is wrong with a job file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// As given on the command line.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// The key at fault, if it is one.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        match &self.key {
            Some(key) => write!(f, "{key}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Error {}

/// One job section, with everything that `[global]` gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// Section name.
    pub name: String,
    /// `file:line` of the section, for messages.
    pub origin: String,
    /// Absolute path in the image.
    pub filename: Option<String>,
    /// Access pattern.
    pub rw: Rw,
    /// Per cent of reads in mixed patterns.
    pub rwmixread: u8,
    /// Bytes that ascending I/O leaves out after each I/O.
    pub skip: u64,
    /// Bytes of one I/O.
    pub bs: u32,
    /// Region each thread works on; to the file's end if absent.
    pub size: Option<Amount>,
    /// Where the first thread's region starts.
    pub offset: Amount,
    /// What each further thread adds to `offset`.
    pub offset_increment: Amount,
    /// Threads.
    pub numjobs: u32,
    /// As written: a synchronous engine has one I/O in flight whatever it says.
    pub iodepth: u32,
    /// Kind of kiocb.
    pub engine: Engine,
    /// fsync after so many writes; 0 never.
    pub fsync: u32,
    /// fdatasync after so many writes; 0 never.
    pub fdatasync: u32,
    /// Open flags.
    pub sync: SyncMode,
    /// Milliseconds.
    pub runtime_ms: Option<u64>,
    /// Start over until the time is up.
    pub time_based: bool,
    /// End a thread after so many I/Os.
    pub number_ios: Option<u64>,
    /// Past the page cache.
    pub direct: bool,
    /// What is done to a new file; if given at all, the file is a new one.
    pub fallocate: Option<Fallocate>,
    /// The file is new, and opening it makes it.
    pub create_on_open: bool,
    /// I/O begins at the end of the file.
    pub file_append: bool,
    /// The file is removed in the end.
    pub unlink: bool,
    /// fsync when the I/O is done.
    pub end_fsync: bool,
    /// fsync before the file is closed.
    pub fsync_on_close: bool,
    /// Stamp and check.
    pub verify: bool,
    /// Seed of the first thread.
    pub randseed: u64,
    /// Keys and values as the file has them, global ones first.
    pub options: Vec<(String, String)>,
}

impl JobSpec {
    /// fio's defaults; `direct=1`.
    pub fn new(name: &str, origin: &str) -> JobSpec {
        JobSpec {
            name: name.into(),
            origin: origin.into(),
            filename: None,
            rw: Rw::Read,
            rwmixread: 50,
            skip: 0,
            bs: 4096,
            size: None,
            offset: Amount::Bytes(0),
            offset_increment: Amount::Bytes(0),
            numjobs: 1,
            iodepth: 1,
            engine: Engine::Sync,
            fsync: 0,
            fdatasync: 0,
            sync: SyncMode::None,
            runtime_ms: None,
            time_based: false,
            number_ios: None,
            direct: true,
            fallocate: None,
            create_on_open: false,
            file_append: false,
            unlink: false,
            end_fsync: false,
            fsync_on_close: false,
            verify: false,
            randseed: 1,
            options: Vec::new(),
        }
    }

    /// I/Os that each thread keeps in flight.
    pub fn depth(&self) -> u32 {
        match self.engine {
            Engine::Sync => 1,
            Engine::Async => self.iodepth,
        }
    }

    /// Whether any of its I/Os is a write or a trim.
    pub fn writes(&self) -> bool {
        self.rw.changes()
    }

    /// How its file comes to be there.
    pub fn layout(&self) -> Layout {
        match self.fallocate {
            _ if self.file_append => Layout::Append,
            _ if self.create_on_open => Layout::OnOpen,
            Some(_) => Layout::Fresh,
            None => Layout::There,
        }
    }
}

/// Sections that run together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// For people: file and sections.
    pub label: String,
    /// At least one.
    pub jobs: Vec<JobSpec>,
}

impl Group {
    /// I/Os in flight at most.
    pub fn in_flight(&self) -> u32 {
        self.jobs.iter().map(|j| j.numjobs.saturating_mul(j.depth())).fold(0, u32::saturating_add)
    }
}

/// What is known of a section while it is read.
#[derive(Clone)]
struct Draft {
    job: JobSpec,
    stonewall: bool,
    /// Where each key was last given.
    lines: BTreeMap<String, usize>,
}

/// Reads a job file. `file` is for messages.
///
/// # Errors
///
/// The first thing that fio would not understand, or that the guest cannot do.
pub fn parse(text: &str, file: &str) -> Result<Vec<Group>, Error> {
    let mut global = Draft { job: JobSpec::new("global", file), stonewall: false, lines: BTreeMap::new() };
    let mut section: Option<(usize, bool, Draft)> = None;
    let mut done: Vec<(bool, JobSpec)> = Vec::new();
    let mut line = 0;
    for raw in text.lines() {
        line += 1;
        let error = |key: Option<&str>, what: String| Error { file: file.into(), line, key: key.map(Into::into), what };
        let content = raw.split([';', '#']).next().unwrap_or("").trim();
        if content.is_empty() {
            continue;
        }
        if let Some(header) = content.strip_prefix('[') {
            close(section.take(), &mut global, &mut done, file)?;
            let name = header.strip_suffix(']').filter(|n| !n.is_empty() && !n.contains(']'));
            let name = name.ok_or_else(|| error(None, format!("`{content}` is not a section; write [name]")))?;
            let mut draft = global.clone();
            draft.job.name = name.into();
            draft.job.origin = format!("{file}:{line}");
            section = Some((line, name == "global", draft));
            continue;
        }
        let (key, value) = match content.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (content, None),
        };
        let Some((_, _, draft)) = section.as_mut() else {
            return Err(error(Some(key), "outside of a section; start one with [name] or [global]".into()));
        };
        set(draft, key, value).map_err(|what| error(Some(key), what))?;
        draft.lines.insert(canonical(key).into(), line);
        draft.job.options.push((canonical(key).into(), value.unwrap_or("1").into()));
    }
    close(section.take(), &mut global, &mut done, file)?;
    if done.is_empty() {
        return Err(Error { file: file.into(), line, key: None, what: "no job section; start one with [name]".into() });
    }
    Ok(group(done, file))
}

/// Ends a section: a global one becomes what later sections start from, a job is checked as a whole.
fn close(
    section: Option<(usize, bool, Draft)>,
    global: &mut Draft,
    done: &mut Vec<(bool, JobSpec)>,
    file: &str,
) -> Result<(), Error> {
    let Some((start, is_global, draft)) = section else { return Ok(()) };
    if is_global {
        *global = draft;
        return Ok(());
    }
    let fault = |key: &str, what: &str| {
        let line = draft.lines.get(key).copied().unwrap_or(start);
        Err(Error { file: file.into(), line, key: Some(key.into()), what: format!("in [{}]: {what}", draft.job.name) })
    };
    let job = &draft.job;
    if job.create_on_open && job.fallocate.is_some_and(|f| f != Fallocate::None) {
        return fault("create_on_open", "leaves the file as opening makes it; fallocate= does more");
    }
    if job.create_on_open && job.rw.reads() {
        return fault("create_on_open", "leaves nothing to read; without it the file is laid out");
    }
    if job.file_append && (job.create_on_open || job.rw.reads() || job.rw.trims()) {
        return fault("file_append", "goes with rw=write and rw=randwrite, and without create_on_open");
    }
    if job.skip != 0 && matches!(job.rw, Rw::RandRead | Rw::RandWrite | Rw::RandRw | Rw::RandTrim) {
        return fault("rw", "random I/O leaves nothing out");
    }
    if draft.job.time_based && draft.job.runtime_ms.is_none() {
        return fault("time_based", "needs a runtime, such as runtime=10s");
    }
    done.push((draft.stonewall, draft.job));
    Ok(())
}

fn group(jobs: Vec<(bool, JobSpec)>, file: &str) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (stonewall, job) in jobs {
        match groups.last_mut() {
            Some(last) if !stonewall => last.jobs.push(job),
            _ => groups.push(Group { label: String::new(), jobs: vec![job] }),
        }
    }
    let stem = std::path::Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for g in &mut groups {
        let names: Vec<&str> = g.jobs.iter().map(|j| j.name.as_str()).collect();
        g.label = format!("{stem}: {}", names.join("+"));
    }
    groups
}

/// Every key, in the order in which messages name them.
pub const KEYS: [&str; 30] = [
    "rw",
    "rwmixread",
    "bs",
    "size",
    "offset",
    "offset_increment",
    "numjobs",
    "iodepth",
    "ioengine",
    "direct",
    "fsync",
    "fdatasync",
    "sync",
    "runtime",
    "time_based",
    "number_ios",
    "filename",
    "fallocate",
    "create_on_open",
    "file_append",
    "unlink",
    "end_fsync",
    "fsync_on_close",
    "overwrite",
    "verify",
    "randseed",
    "stonewall",
    "group_reporting",
    "readwrite",
    "blocksize",
];

fn canonical(key: &str) -> &str {
    match key {
        "readwrite" => "rw",
        "blocksize" => "bs",
        other => other,
    }
}

/// Takes one `key=value` into a section.
fn set(draft: &mut Draft, key: &str, value: Option<&str>) -> Result<(), String> {
    let job = &mut draft.job;
    match canonical(key) {
        // Keys that stand alone come first; all others need a value.
        "stonewall" => draft.stonewall = alone(value)?,
        // Results are always per section.
        "group_reporting" => drop(alone(value)?),
        "time_based" => job.time_based = value.map_or(Ok(true), switch)?,
        "sync_file_range" => {
            return Err(
                "not there: ext4 would write a range and leave its metadata; fdatasync=N makes it durable".into()
            );
        }
        known if !KEYS.contains(&known) => return Err(format!("unknown key; known are {}", KEYS.join(", "))),
        known => {
            let value = value.filter(|v| !v.is_empty()).ok_or("needs a value")?;
            set_value(job, known, value)?;
        }
    }
    Ok(())
}

fn set_value(job: &mut JobSpec, key: &str, value: &str) -> Result<(), String> {
    match key {
        "rw" => (job.rw, job.skip) = pattern(value)?,
        "direct" => job.direct = switch(value)?,
        "fallocate" => job.fallocate = Some(fallocate(value)?),
        "create_on_open" => job.create_on_open = switch(value)?,
        "file_append" => job.file_append = switch(value)?,
        "unlink" => job.unlink = switch(value)?,
        "end_fsync" => job.end_fsync = switch(value)?,
        "fsync_on_close" => job.fsync_on_close = switch(value)?,
        "overwrite" => {
            if !switch(value)? {
                return Err(
                    "`0`: files are there and written unless fallocate= is given; fallocate=none is fio's".into()
                );
            }
            job.fallocate = None;
        }
        "rwmixread" => job.rwmixread = ranged(value, value::integer(value), 0, 100, "per cent of reads")? as u8,
        "bs" => job.bs = block_size(value)?,
        "size" => {
            let size = amount(value)?;
            if matches!(size, Amount::Bytes(0) | Amount::Percent(0)) {
                return Err("0 leaves nothing to work on".into());
            }
            job.size = Some(size);
        }
        "offset" => job.offset = amount(value)?,
        "offset_increment" => job.offset_increment = amount(value)?,
        "numjobs" => job.numjobs = ranged(value, value::integer(value), 1, MAX_NUMJOBS, "threads")? as u32,
        "iodepth" => job.iodepth = ranged(value, value::integer(value), 1, MAX_IODEPTH, "I/Os in flight")? as u32,
        "ioengine" => job.engine = engine(value)?,
        "fsync" => job.fsync = count(value)?,
        "fdatasync" => job.fdatasync = count(value)?,
        "sync" => job.sync = sync_mode(value)?,
        "runtime" => {
            let ms = value::time_ms(value).ok_or_else(|| format!("`{value}` is no time; 30, 30s, 2m and 500ms are"))?;
            job.runtime_ms = Some(ms).filter(|ms| *ms > 0);
        }
        "number_ios" => {
            let n = value::bytes(value).ok_or_else(|| format!("`{value}` is no number"))?;
            job.number_ios = Some(n).filter(|n| *n > 0);
        }
        "filename" => job.filename = Some(filename(value)?),
        "verify" => job.verify = verify(value)?,
        "randseed" => job.randseed = value::bytes(value).ok_or_else(|| format!("`{value}` is no number"))?,
        other => return Err(format!("`{other}` has no meaning here")),
    }
    Ok(())
}

/// A key that fio takes as given however it is spelled.
fn alone(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1") => Ok(true),
        Some(v) => Err(format!("`{v}`: the key stands alone; leave it out to switch it off")),
    }
}

fn switch(value: &str) -> Result<bool, String> {
    value::boolean(value).ok_or_else(|| format!("`{value}` is not 0 or 1"))
}

fn ranged(text: &str, value: Option<u64>, min: u64, max: u64, unit: &str) -> Result<u64, String> {
    value.filter(|v| (min..=max).contains(v)).ok_or_else(|| format!("`{text}` is not {min} to {max} {unit}"))
}

fn count(value: &str) -> Result<u32, String> {
    ranged(value, value::bytes(value), 0, u64::from(u32::MAX), "writes").map(|n| n as u32)
}

fn amount(value: &str) -> Result<Amount, String> {
    value::amount(value).ok_or_else(|| format!("`{value}` is no size; 4096, 64k, 2m, 1g and 25% are"))
}

fn block_size(value: &str) -> Result<u32, String> {
    let bs =
        value::bytes(value).ok_or_else(|| format!("`{value}` is no size; 4096, 4k and 1m are (one for all I/Os)"))?;
    if bs == 0 || bs % 512 != 0 || bs > MAX_BS {
        return Err(format!("{bs} bytes is not a multiple of 512 up to 16m"));
    }
    Ok(bs as u32)
}

/// The pattern, and what it leaves out after each I/O.
fn pattern(value: &str) -> Result<(Rw, u64), String> {
    let (name, skip) = match value.split_once(':') {
        Some((name, skip)) => {
            (name, value::bytes(skip).ok_or_else(|| format!("`{skip}` is no size; 4096 and 64k are"))?)
        }
        None => (value, 0),
    };
    if skip % 512 != 0 {
        return Err(format!("{skip} bytes left out is not a multiple of 512"));
    }
    let rw = match name {
        "read" => Rw::Read,
        "write" => Rw::Write,
        "rw" | "readwrite" => Rw::ReadWrite,
        "randread" => Rw::RandRead,
        "randwrite" => Rw::RandWrite,
        "randrw" => Rw::RandRw,
        "trim" => Rw::Trim,
        "randtrim" => Rw::RandTrim,
        "trimwrite" => Rw::TrimWrite,
        _ => {
            return Err(format!(
                "`{value}` is not one of read, write, rw, readwrite, randread, randwrite, randrw, trim, randtrim, trimwrite"
            ));
        }
    };
    Ok((rw, skip))
}

fn fallocate(value: &str) -> Result<Fallocate, String> {
    Ok(match value {
        "none" | "0" => Fallocate::None,
        "native" => Fallocate::Native,
        "posix" | "1" => Fallocate::Posix,
        "keep" => Fallocate::Keep,
        "truncate" => Fallocate::Truncate,
        _ => return Err(format!("`{value}` is not one of none, native, posix, keep, truncate, 0, 1")),
    })
}

fn engine(value: &str) -> Result<Engine, String> {
    match value {
        "psync" => Ok(Engine::Sync),
        "libaio" | "io_uring" => Ok(Engine::Async),
        _ => Err(format!("`{value}` is not one of psync, libaio, io_uring")),
    }
}

fn sync_mode(value: &str) -> Result<SyncMode, String> {
    match value {
        "none" | "0" => Ok(SyncMode::None),
        "sync" | "1" => Ok(SyncMode::Sync),
        "dsync" => Ok(SyncMode::Dsync),
        _ => Err(format!("`{value}` is not one of none, 0, sync, 1, dsync")),
    }
}

fn verify(value: &str) -> Result<bool, String> {
    match value {
        "crc32c" => Ok(true),
        "0" => Ok(false),
        _ => Err(format!("`{value}` is not one of crc32c, 0")),
    }
}

fn filename(value: &str) -> Result<String, String> {
    if value.contains(':') {
        return Err(format!("`{value}`: one file for a section, and no colon in its name"));
    }
    if value.chars().any(|c| c.is_control() || c == '"') {
        return Err(format!("`{value}`: control characters and quotes do not go into a name here"));
    }
    let parts: Vec<&str> = value.split('/').filter(|p| !p.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|p| matches!(*p, "." | "..")) {
        return Err(format!("`{value}` does not name a file; a path from the image's root does, without . and .."));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests;
