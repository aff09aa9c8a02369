// SPDX-License-Identifier: GPL-2.0-only
//! From job groups to what the guest is to do: one step per group and lock mode, in turns, so that a noisy machine hits
//! all modes of a group alike.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use ext4_dio_protocol::{Engine, Fallocate, Job, Layout, Plan, Rw, Step, Target};

use crate::fiojob::{Amount, Group, JobSpec};

/// The disk that holds the ext4 image: first on the PCI bus.
pub const EXT4_DISK: u32 = 0;
/// The disk without a file system.
pub const RAW_DISK: u32 = 1;
/// Length of a file that no job gives a size.
pub const DEFAULT_FILE_BYTES: u64 = 256 << 20;
/// ext4's limit with 4 KiB blocks; what is below does not overflow when it is added up.
const MAX_FILE_BYTES: u64 = 1 << 44;
/// Writers of the default run's points.
pub const DEFAULT_WRITERS: [u32; 6] = [1, 2, 4, 8, 16, 32];
/// File of the default run.
pub const DEFAULT_FILE: &str = "/data";
/// Length of each point of the default run.
pub const DEFAULT_RUNTIME_MS: u64 = 1200;
/// How often the default run does each point.
pub const DEFAULT_ROUNDS: u32 = 2;
/// I/Os of each thread when instructions are counted.
pub const COUNTED_IOS: u64 = 20_000;

/// What a step measures: the bare disk, or ext4 with one of the lock modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The disk alone.
    Raw,
    /// `i_mutex` over the whole write, as before the patch.
    Exclusive,
    /// The patch: `i_data_sem` held for read instead.
    IDataSem,
    /// Counted in `i_dio_count` only.
    InFlight,
}

impl Mode {
    /// All, in the order in which they are shown.
    pub const ALL: [Mode; 4] = [Mode::Raw, Mode::Exclusive, Mode::IDataSem, Mode::InFlight];

    /// Name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Raw => "raw",
            Mode::Exclusive => "exclusive",
            Mode::IDataSem => "i_data_sem",
            Mode::InFlight => "in_flight",
        }
    }

    /// Mount options that choose the mode; none for the bare disk.
    pub fn mount_options(self) -> Option<&'static str> {
        match self {
            Mode::Raw => None,
            Mode::Exclusive => Some("dioread_lock"),
            Mode::IDataSem => Some("dioread_nolock,dio_window=i_data_sem"),
            Mode::InFlight => Some("dioread_nolock"),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A list of modes as given on the command line: names or mount options, between commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeList(pub Vec<Mode>);

impl FromStr for ModeList {
    type Err = String;

    fn from_str(s: &str) -> Result<ModeList, String> {
        let mut modes: Vec<Mode> = Vec::new();
        let mut words = s.split(',').map(str::trim).peekable();
        while let Some(word) = words.next() {
            let mode = match word {
                "raw" => Mode::Raw,
                "exclusive" | "dioread_lock" => Mode::Exclusive,
                "i_data_sem" | "dio_window=i_data_sem" => Mode::IDataSem,
                // One mount option string of two words.
                "dioread_nolock" if words.next_if_eq(&"dio_window=i_data_sem").is_some() => Mode::IDataSem,
                "in_flight" | "dioread_nolock" => Mode::InFlight,
                _ => {
                    return Err(format!(
                        "`{word}` is not one of raw, exclusive, i_data_sem, in_flight (or a mount option: \
                         dioread_lock, dioread_nolock,dio_window=i_data_sem, dioread_nolock)"
                    ));
                }
            };
            if !modes.contains(&mode) {
                modes.push(mode);
            }
        }
        Ok(ModeList(modes))
    }
}

/// What a step of the plan measures; several measure the same in turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// [`Step::id`].
    pub step: u32,
    /// Index into [`Planned::groups`].
    pub group: usize,
    /// What it measures.
    pub mode: Mode,
}

/// A plan, and what its steps stand for.
#[derive(Clone, Debug)]
pub struct Planned {
    /// For the guest.
    pub plan: Plan,
    /// One per step, in its order.
    pub points: Vec<Point>,
    /// The job groups behind the points.
    pub groups: Vec<Group>,
    /// The modes that are measured.
    pub modes: Vec<Mode>,
    /// Bytes of the raw disk that jobs may touch; 0 without raw steps.
    pub raw_bytes: u64,
    /// Bytes per stamp on the raw disk, if its blocks are to be stamped at first.
    pub raw_unit: Option<u32>,
    /// Why the raw disk is not verified though jobs say `verify=`.
    pub raw_note: Option<String>,
}

impl Planned {
    /// The steps that run a group in a mode.
    pub fn steps_of(&self, group: usize, mode: Mode) -> impl Iterator<Item = &Step> {
        let same = move |(p, _): &(&Point, &Step)| p.group == group && p.mode == mode;
        self.points.iter().zip(&self.plan.steps).filter(same).map(|(_, step)| step)
    }
}

/// A file that jobs work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Absolute path in the image.
    pub path: String,
    /// Length before the run; 0 if the guest makes it.
    pub bytes: u64,
    /// Bytes per stamp.
    pub unit: u32,
    /// How far jobs reach that begin at its start.
    pub span: u64,
    /// How far jobs reach behind its end.
    pub append: u64,
    /// Some job makes it anew, appends to it or removes it: its length says nothing.
    pub changes: bool,
    /// Jobs take it for granted, but it is not there.
    pub missing: bool,
}

impl FileSpec {
    /// A file of `bytes` that is there, all written.
    pub fn written(path: &str, bytes: u64, unit: u32) -> FileSpec {
        FileSpec { path: path.into(), bytes, unit, span: bytes, append: 0, changes: false, missing: false }
    }

    /// Bytes that jobs touch.
    pub fn reach(&self) -> u64 {
        self.span.max(self.bytes).saturating_add(self.append)
    }

    /// Whether the host makes it, for an image that is made for the run.
    pub fn by_host(&self) -> bool {
        self.bytes > 0
    }
}

/// The default run: random 4 KiB overwrites of one file by ever more writers.
pub fn default_groups() -> Vec<Group> {
    let group = |n: u32| {
        let mut job = JobSpec::new(&format!("{n}-writers"), "default run");
        job.filename = Some(DEFAULT_FILE.into());
        job.rw = Rw::RandWrite;
        job.size = Some(Amount::Bytes(DEFAULT_FILE_BYTES));
        job.numjobs = n;
        job.runtime_ms = Some(DEFAULT_RUNTIME_MS);
        job.time_based = true;
        job.verify = true;
        job.randseed = u64::from(n) << 32;
        job.options = describe(&job);
        Group { label: format!("{n} writer{}", if n == 1 { "" } else { "s" }), jobs: vec![job] }
    };
    DEFAULT_WRITERS.map(group).into()
}

/// What `--count-instructions` runs: one thread, ever deeper.
pub fn counting_groups() -> Vec<Group> {
    let group = |engine: Engine, depth: u32, label: &str| {
        let mut job = JobSpec::new(label, "instruction count");
        job.filename = Some(DEFAULT_FILE.into());
        job.rw = Rw::RandWrite;
        job.size = Some(Amount::Bytes(DEFAULT_FILE_BYTES));
        job.engine = engine;
        job.iodepth = depth;
        job.number_ios = Some(COUNTED_IOS);
        job.randseed = u64::from(depth);
        job.options = describe(&job);
        Group { label: label.into(), jobs: vec![job] }
    };
    vec![
        group(Engine::Sync, 1, "sync 1"),
        group(Engine::Async, 1, "async 1"),
        group(Engine::Async, 4, "async 4"),
        group(Engine::Async, 16, "async 16"),
        group(Engine::Async, 32, "async 32"),
    ]
}

/// The job as fio options, for the report of a run that had no job file.
fn describe(job: &JobSpec) -> Vec<(String, String)> {
    let engine = if job.engine == Engine::Sync { "psync" } else { "libaio" };
    let mut options = vec![
        ("rw", "randwrite".to_string()),
        ("bs", "4k".into()),
        ("size", DEFAULT_FILE_BYTES.to_string()),
        ("filename", DEFAULT_FILE.into()),
        ("direct", "1".into()),
        ("ioengine", engine.into()),
        ("numjobs", job.numjobs.to_string()),
        ("iodepth", job.iodepth.to_string()),
    ];
    options.extend(job.runtime_ms.map(|ms| ("runtime", format!("{ms}ms"))));
    options.extend(job.time_based.then(|| ("time_based", "1".into())));
    options.extend(job.number_ios.map(|n| ("number_ios", n.to_string())));
    options.extend(job.verify.then(|| ("verify", "crc32c".into())));
    options.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
}

/// The files that an image made for `groups` must hold.
///
/// # Errors
///
/// A section without a file name; jobs of one file that would disagree about its stamps.
pub fn files_needed(groups: &[Group]) -> Result<Vec<FileSpec>> {
    let mut files: Vec<FileSpec> = Vec::new();
    for job in groups.iter().flat_map(|g| &g.jobs) {
        let path = filename(job)?;
        let absolute = |a: Amount| if let Amount::Bytes(n) = a { n } else { 0 };
        let steps = u64::from(job.numjobs - 1);
        let start = absolute(job.offset).saturating_add(absolute(job.offset_increment).saturating_mul(steps));
        let bytes = match job.size {
            Some(Amount::Bytes(n)) => start.saturating_add(n),
            _ => start.saturating_add(DEFAULT_FILE_BYTES),
        };
        ensure!(bytes <= MAX_FILE_BYTES, "{}: [{}] reaches past 16 TiB, ext4's longest file", job.origin, job.name);
        let at = files.iter().position(|f| f.path == path).unwrap_or(files.len());
        if at == files.len() {
            files.push(FileSpec::written(path, 0, 4096));
        }
        let file = &mut files[at];
        file.changes |= job.unlink || job.layout() != Layout::There;
        match job.layout() {
            Layout::Append => file.append = file.append.max(bytes),
            Layout::Fresh | Layout::OnOpen => file.span = file.span.max(bytes),
            Layout::There | Layout::Written => {
                file.span = file.span.max(bytes);
                file.bytes = file.span;
            }
        }
    }
    for file in &mut files {
        let users = groups.iter().flat_map(|g| &g.jobs).filter(|j| j.filename.as_deref() == Some(&file.path));
        if let Some(unit) = stamp_unit(users, &file.path)? {
            file.unit = unit;
        }
        // Whole stamps and whole blocks.
        let unit = u64::from(file.unit);
        file.span = file.span.next_multiple_of(unit);
        file.append = file.append.next_multiple_of(unit);
        if file.by_host() {
            file.bytes = file.span.max(unit);
        }
    }
    Ok(files)
}

/// Bytes per stamp that `jobs` use on one target; none if nobody verifies.
fn stamp_unit<'a>(jobs: impl Iterator<Item = &'a JobSpec>, target: &str) -> Result<Option<u32>> {
    let (mut verified, mut plain): (Option<&JobSpec>, Option<&JobSpec>) = (None, None);
    for job in jobs.filter(|j| j.writes()) {
        match (job.verify, verified) {
            (true, Some(first)) if first.bs != job.bs => bail!(
                "{}: [{}] stamps {target} every {} bytes and [{}] every {}: verify= needs one bs for all writers of it",
                job.origin,
                job.name,
                job.bs,
                first.name,
                first.bs
            ),
            (true, _) => verified = Some(job),
            (false, _) => plain = Some(job),
        }
    }
    if let (Some(v), Some(p)) = (verified, plain) {
        bail!(
            "{}: [{}] overwrites {target}, which [{}] verifies: give both verify=crc32c, or neither",
            p.origin,
            p.name,
            v.name
        );
    }
    Ok(verified.map(|j| j.bs))
}

fn filename(job: &JobSpec) -> Result<&str> {
    match &job.filename {
        Some(name) => Ok(name),
        None => {
            bail!("{}: [{}] has no filename: name a file of the image, such as filename=/data", job.origin, job.name)
        }
    }
}

/// How a plan is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Count instructions rather than time.
    pub count_instructions: bool,
    /// RAM of the guest, bytes.
    pub memory: u64,
    /// How often each group runs in each mode, at least once. Every other time the modes take their turns backwards, so
    /// that a machine that slows down or speeds up favours none of them.
    pub rounds: u32,
}

/// Who comes when: the round and the mode.
fn turns(modes: &[Mode], rounds: u32) -> impl Iterator<Item = (u32, Mode)> {
    (0..rounds.max(1)).flat_map(move |round| {
        let place = move |i: usize| if round % 2 == 0 { i } else { modes.len() - 1 - i };
        (0..modes.len()).map(move |i| (round, modes[place(i)]))
    })
}

/// Makes the plan: for each group, each mode in turn.
///
/// `files` are those of the image, with their lengths; the raw disk is laid out as they are, one after the other.
///
/// # Errors
///
/// A job that reaches past its file, that is not aligned, or that needs more memory than the guest has.
pub fn build(groups: Vec<Group>, modes: &[Mode], files: &[FileSpec], settings: Settings) -> Result<Planned> {
    ensure!(!modes.is_empty(), "no mode to run in");
    for group in &groups {
        check_memory(group, settings.memory)?;
    }
    let with_raw = modes.contains(&Mode::Raw);
    // Files with different stamps, or with and without, are neighbours there; the guest keeps one table of a disk.
    let raw_stamps = if with_raw { stamp_unit(groups.iter().flat_map(|g| &g.jobs), "the raw disk") } else { Ok(None) };
    let raw_note = raw_stamps.as_ref().err().map(|e| format!("writes to the raw disk are not verified ({e:#})"));
    let raw_unit = raw_stamps.unwrap_or(None);
    let (bases, raw_bytes) = if with_raw { raw_layout(files, raw_unit) } else { (BTreeMap::new(), 0) };
    let mut steps = Vec::new();
    let mut points = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        for (round, mode) in turns(modes, settings.rounds) {
            let id = steps.len() as u32;
            let target = match mode.mount_options() {
                None => Target::Raw { disk: RAW_DISK },
                Some(options) => Target::Ext4 { disk: EXT4_DISK, options: options.into() },
            };
            let mut jobs = Vec::new();
            for spec in &group.jobs {
                let path = filename(spec)?;
                let Some(file) = files.iter().find(|f| f.path == path) else {
                    bail!("{}: no file {path}", spec.origin)
                };
                let mut job = place(spec, file, bases.get(path).copied().filter(|_| mode == Mode::Raw))?;
                job.randseed = job.randseed.wrapping_add(u64::from(round) << 16);
                job.verify &= mode != Mode::Raw || raw_unit.is_some();
                jobs.push(job);
            }
            steps.push(Step { id, label: format!("{}, {mode}", group.label), target, jobs });
            points.push(Point { step: id, group: index, mode });
        }
    }
    let tables = steps.iter().flat_map(|s| &s.jobs).any(|j| j.verify && j.rw.changes());
    let plan = Plan { steps, script: None, progress_ms: 200, tables, count_instructions: settings.count_instructions };
    Ok(Planned { plan, points, groups, modes: modes.into(), raw_bytes, raw_unit, raw_note })
}

fn check_memory(group: &Group, memory: u64) -> Result<()> {
    let buffers = group
        .jobs
        .iter()
        .map(|j| u64::from(j.bs).saturating_mul(u64::from(j.numjobs)).saturating_mul(u64::from(j.depth())));
    let need = buffers.fold(0, u64::saturating_add);
    if need > memory / 2 {
        bail!(
            "{}: the buffers of numjobs × iodepth × bs take {} MiB, more than half of the guest's {} MiB (see --mem)",
            group.label,
            need >> 20,
            memory >> 20
        );
    }
    Ok(())
}

/// Where each file's blocks lie on the raw disk, and how long that is.
fn raw_layout(files: &[FileSpec], unit: Option<u32>) -> (BTreeMap<&str, u64>, u64) {
    // A multiple of the stamp's unit and of 4 KiB: no block of the raw disk is split differently from the file's.
    let unit = u64::from(unit.unwrap_or(4096));
    let align = if unit % 4096 == 0 { unit } else { unit * 4096 };
    let mut bases = BTreeMap::new();
    let mut end = 0;
    for file in files {
        bases.insert(file.path.as_str(), end);
        end = (end + file.reach()).next_multiple_of(align);
    }
    (bases, end)
}

/// A job on a file, or on that file's region of the raw disk.
fn place(spec: &JobSpec, file: &FileSpec, raw_base: Option<u64>) -> Result<Job> {
    let layout = match (raw_base, spec.layout()) {
        (Some(_), _) => Layout::There,
        (None, Layout::There) if file.missing => Layout::Written,
        (None, layout) => layout,
    };
    let appends = spec.layout() == Layout::Append;
    let len = if appends { file.append } else { file.span.max(file.bytes) };
    // Where the file would end, for what is appended to it on a disk that has no files.
    let raw_base = raw_base.map(|base| if appends { base + file.span.max(file.bytes) } else { base });
    let offset = spec.offset.of(len);
    let increment = spec.offset_increment.of(len);
    let size = spec.size.map(|s| s.of(len));
    let last = increment.checked_mul(u64::from(spec.numjobs - 1)).and_then(|n| n.checked_add(offset));
    let end = last.and_then(|l| l.checked_add(size.unwrap_or(u64::from(spec.bs))));
    let what = |why: String| anyhow::anyhow!("{}: [{}]: {why}", spec.origin, spec.name);
    if end.is_none_or(|end| end > len) {
        return Err(what(format!("reaches past the end of {}, which has {len} bytes", filename(spec)?)));
    }
    if spec.verify && !spec.skip.is_multiple_of(u64::from(spec.bs)) {
        return Err(what(format!("rw= leaves out {} bytes, which has to be a multiple of bs with verify=", spec.skip)));
    }
    let grain = if spec.verify { u64::from(spec.bs) } else { 512 };
    if !offset.is_multiple_of(grain) || (spec.numjobs > 1 && !increment.is_multiple_of(grain)) {
        return Err(what(format!("offset and offset_increment must be multiples of {grain}")));
    }
    if size.is_some_and(|s| s < u64::from(spec.bs)) {
        return Err(what("size is smaller than bs".into()));
    }
    Ok(Job {
        name: spec.name.clone(),
        filename: filename(spec)?.into(),
        rw: spec.rw,
        rwmixread: spec.rwmixread,
        bs: spec.bs,
        // On the raw disk a region ends where the file would, not where the disk does: there the last thread's length
        // holds for all.
        size: raw_base.and(last).map(|last| len - last).filter(|_| size.is_none()).or(size),
        offset: offset + raw_base.unwrap_or(0),
        offset_increment: increment,
        numjobs: spec.numjobs,
        iodepth: spec.depth(),
        engine: spec.engine,
        fsync: spec.fsync,
        fdatasync: spec.fdatasync,
        sync: spec.sync,
        runtime_ms: spec.runtime_ms,
        time_based: spec.time_based,
        number_ios: spec.number_ios,
        direct: spec.direct,
        layout,
        fallocate: if raw_base.is_some() { Fallocate::None } else { spec.fallocate.unwrap_or_default() },
        file_bytes: if layout == Layout::There { 0 } else { len },
        skip: spec.skip,
        unlink: spec.unlink && raw_base.is_none(),
        end_fsync: spec.end_fsync,
        fsync_on_close: spec.fsync_on_close,
        verify: spec.verify,
        randseed: spec.randseed,
    })
}

#[cfg(test)]
mod tests;
