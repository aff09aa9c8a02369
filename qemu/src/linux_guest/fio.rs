// SPDX-License-Identifier: GPL-2.0-only
//! Jobs for fio itself: what our guest takes for granted is said there in so many words. And what fio tells in the end.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use ext4_dio_protocol::{Fallocate, Job, Layout, Rw, Step, SyncMode, Target};
use serde_json::Value;

use crate::fiojob::{Group, JobSpec};

/// Where Linux' I/O goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The disk without a file system.
    Raw,
    /// ext4, of the same image recipe as ours.
    Ext4,
    /// XFS, of mkfs.xfs's defaults.
    Xfs,
}

impl Place {
    /// All.
    pub const ALL: [Place; 3] = [Place::Raw, Place::Ext4, Place::Xfs];

    /// In names of files and on mount points.
    pub fn name(self) -> &'static str {
        match self {
            Place::Raw => "raw",
            Place::Ext4 => "ext4",
            Place::Xfs => "xfs",
        }
    }

    /// A path there; on the raw disk there is but the disk.
    pub fn path(self, file: &str) -> String {
        match self {
            Place::Raw => format!("/dev/disk{}", self.slot()),
            _ => format!("/mnt/{}{file}", self.name()),
        }
    }

    /// Its disk's place on the PCI bus.
    pub fn slot(self) -> usize {
        match self {
            Place::Ext4 => 2,
            Place::Raw => 3,
            Place::Xfs => 4,
        }
    }
}

/// Fails for what fio does not do, or does not do so that it could be compared.
///
/// # Errors
///
/// Names the section and what is wrong with it.
pub fn comparable(groups: &[Group]) -> Result<()> {
    for job in groups.iter().flat_map(|g| &g.jobs) {
        let refuse = |key: &str, why: &str| bail!("{}: [{}]: {key}: cannot be compared: {why}", job.origin, job.name);
        if job.rw.trims() {
            return refuse("rw", "fio trims disks, and holes into no file; our guest does punch them");
        }
        if !job.direct {
            return refuse("direct", "0 measures page caches; compare is about direct I/O");
        }
        if job.time_based && job.layout() == Layout::Append {
            return refuse(
                "time_based",
                "fio begins to overwrite what it appended; leave it out, and runtime= ends the job",
            );
        }
    }
    Ok(())
}

/// The name of fio's engine: the job file's, since our guest makes no difference between libaio and io_uring.
pub fn engine(spec: &JobSpec) -> &str {
    spec.options.iter().rev().find(|(k, _)| k == "ioengine").map_or("psync", |(_, v)| v)
}

/// The job file for a step of a plan. `specs` are the sections behind its jobs.
///
/// # Errors
///
/// The step is not one of `place`'s.
pub fn job_file(step: &Step, specs: &[JobSpec], place: Place) -> Result<String> {
    let raw = matches!(step.target, Target::Raw { .. });
    ensure!(raw == (place == Place::Raw), "{} is no step for {}", step.label, place.name());
    let mut text = format!(
        "# {}, {}\n[global]\nthread=1\ngroup_reporting=1\ngtod_reduce=1\nrandrepeat=1\n",
        step.label.split(',').next().unwrap_or(""),
        place.name()
    );
    for (job, spec) in step.jobs.iter().zip(specs) {
        section(&mut text, job, spec, place).context("no memory for a job file")?;
    }
    Ok(text)
}

fn section(text: &mut String, job: &Job, spec: &JobSpec, place: Place) -> std::fmt::Result {
    let engine = engine(spec);
    writeln!(text, "[{}]\nfilename={}", job.name, place.path(&job.filename))?;
    let skip = if job.skip > 0 { format!(":{}", job.skip) } else { String::new() };
    writeln!(text, "rw={}{skip}\nbs={}\ndirect={}", rw_name(job.rw), job.bs, u8::from(job.direct))?;
    if matches!(job.rw, Rw::ReadWrite | Rw::RandRw) {
        writeln!(text, "rwmixread={}", job.rwmixread)?;
    }
    writeln!(text, "ioengine={engine}\nnumjobs={}", job.numjobs)?;
    if engine != "psync" {
        writeln!(text, "iodepth={}", job.iodepth)?;
    }
    writeln!(text, "offset={}\noffset_increment={}", job.offset, job.offset_increment)?;
    // A file that is not there has no end that fio could go to.
    let made = !matches!(job.layout, Layout::There | Layout::Written);
    if let Some(size) = job.size.or_else(|| made.then(|| job.file_bytes.saturating_sub(job.offset))) {
        writeln!(text, "size={size}")?;
    }
    file_keys(text, job, place)?;
    if let Some(ms) = job.runtime_ms {
        writeln!(text, "runtime={ms}ms")?;
    }
    if job.time_based {
        writeln!(text, "time_based=1")?;
    }
    if let Some(n) = job.number_ios {
        writeln!(text, "number_ios={n}")?;
    }
    // Our guest visits each block once in a pass, without a map of them: over files that are there, a map is fio's own cost and
    // changes nothing. In new ones it does: each block is new once.
    writeln!(text, "norandommap={}\nrandseed={}", u8::from(!made), job.randseed)?;
    for (key, n) in [("fsync", job.fsync), ("fdatasync", job.fdatasync)] {
        if n > 0 {
            writeln!(text, "{key}={n}")?;
        }
    }
    for (key, on) in [("end_fsync", job.end_fsync), ("fsync_on_close", job.fsync_on_close)] {
        if on {
            writeln!(text, "{key}=1")?;
        }
    }
    match job.sync {
        SyncMode::None => Ok(()),
        SyncMode::Dsync => writeln!(text, "sync=dsync"),
        SyncMode::Sync => writeln!(text, "sync=sync"),
    }
}

/// How the file comes to be there.
fn file_keys(text: &mut String, job: &Job, place: Place) -> std::fmt::Result {
    if place == Place::Raw {
        return Ok(());
    }
    let fallocate = match job.fallocate {
        Fallocate::None => "none",
        Fallocate::Native => "native",
        Fallocate::Posix => "posix",
        Fallocate::Keep => "keep",
        Fallocate::Truncate => "truncate",
    };
    writeln!(text, "fallocate={fallocate}")?;
    match job.layout {
        // It is there, written and long enough: nothing is laid out.
        Layout::There | Layout::Written => writeln!(text, "overwrite=1")?,
        Layout::OnOpen => writeln!(text, "create_on_open=1")?,
        Layout::Append => writeln!(text, "file_append=1")?,
        Layout::Fresh => {}
    }
    if job.unlink { writeln!(text, "unlink=1") } else { Ok(()) }
}

fn rw_name(rw: Rw) -> &'static str {
    match rw {
        Rw::Read => "read",
        Rw::Write => "write",
        Rw::ReadWrite => "rw",
        Rw::RandRead => "randread",
        Rw::RandWrite => "randwrite",
        Rw::RandRw => "randrw",
        Rw::Trim => "trim",
        Rw::RandTrim => "randtrim",
        Rw::TrimWrite => "trimwrite",
    }
}

/// A word for the shell.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What the shell is to do before fio runs a step: files that are made anew are removed, directories made.
pub fn before(step: &Step, place: Place) -> String {
    let mut text = String::new();
    if place == Place::Raw {
        return text;
    }
    for job in &step.jobs {
        let path = place.path(&job.filename);
        if let Some((dir, _)) = path.rsplit_once('/') {
            let _ = write!(text, "mkdir -p {}; ", quoted(dir));
        }
        if matches!(job.layout, Layout::Fresh | Layout::OnOpen) {
            let _ = write!(text, "rm -f {}; ", quoted(&path));
        }
    }
    text
}

/// What the shell is to do for a file that is to be there, fully written.
pub fn lay_out(path: &str, bytes: u64) -> String {
    let (path, dir) = (quoted(path), quoted(path.rsplit_once('/').map_or("/", |p| p.0)));
    let blocks = bytes.div_ceil(1 << 20);
    format!(
        "mkdir -p {dir} && dd if=/dev/zero of={path} bs=1M count={blocks} conv=fsync 2>/dev/null && truncate -s {bytes} {path}"
    )
}

/// The shell's command for a step: fio's JSON comes as one line.
pub fn command(before: &str, file: &str) -> String {
    format!(
        "{before}fio --eta=never --output-format=json --output=/tmp/out /jobs/{file}; s=$?; tr -d '\\n\\t ' < /tmp/out; echo; (exit $s)"
    )
}

/// What fio measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// I/Os done.
    pub ios: u64,
    /// From the first thread's start to the last one's end.
    pub ms: u64,
}

impl Measured {
    /// I/Os per second.
    pub fn iops(&self) -> f64 {
        if self.ms == 0 { 0.0 } else { self.ios as f64 * 1e3 / self.ms as f64 }
    }
}

/// Reads `fio --output-format=json`; there may be remarks in front of it.
///
/// # Errors
///
/// It is not that, or fio tells of an error.
pub fn parse(text: &str) -> Result<Measured> {
    let json = text.find('{').zip(text.rfind('}')).filter(|(a, b)| a < b).map(|(a, b)| &text[a..=b]);
    let Some(json) = json else { bail!("fio printed no JSON: `{}`", text.chars().take(300).collect::<String>()) };
    let value: Value = serde_json::from_str(json).context("fio's JSON")?;
    let jobs = value["jobs"].as_array().filter(|j| !j.is_empty()).context("no jobs in fio's JSON")?;
    let mut measured = Measured { ios: 0, ms: 0 };
    for job in jobs {
        let error = job["error"].as_i64().context("no error in fio's JSON")?;
        if error != 0 {
            let name = job["jobname"].as_str().unwrap_or("?");
            bail!("fio: [{name}]: {}", std::io::Error::from_raw_os_error(error as i32));
        }
        for direction in ["read", "write", "trim"] {
            let d = &job[direction];
            measured.ios +=
                d["total_ios"].as_u64().with_context(|| format!("no total_ios of {direction} in fio's JSON"))?;
            measured.ms = measured.ms.max(d["runtime"].as_u64().unwrap_or(0));
        }
    }
    ensure!(measured.ios > 0 && measured.ms > 0, "fio did no I/O");
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{self, Mode, Planned, Settings};

    fn planned(text: &str) -> Planned {
        let groups = crate::fiojob::parse(text, "t.fio").unwrap();
        let files = plan::files_needed(&groups).unwrap();
        let settings = Settings { count_instructions: false, memory: 1 << 30, rounds: 1 };
        plan::build(groups, &[Mode::Raw, Mode::InFlight], &files, settings).unwrap()
    }

    fn files(text: &str) -> (String, String) {
        let p = planned(text);
        let specs = &p.groups[0].jobs;
        (job_file(&p.plan.steps[0], specs, Place::Raw).unwrap(), job_file(&p.plan.steps[1], specs, Place::Xfs).unwrap())
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn what_ours_takes_for_granted_is_said() {
        let (raw, xfs) = files(
            "[w]\nfilename=/d/x\nrw=randwrite\nsize=1m\noffset=64k\nnumjobs=3\nruntime=2\ntime_based\nioengine=libaio\niodepth=8\n",
        );
        let both =
            ["[w]", "rw=randwrite", "bs=4096", "direct=1", "numjobs=3", "ioengine=libaio", "iodepth=8", "size=1048576"];
        has(&raw, &both);
        has(&xfs, &both);
        has(&raw, &["filename=/dev/disk3", "offset=65536", "norandommap=1", "runtime=2000ms", "time_based=1"]);
        has(&xfs, &["filename=/mnt/xfs/d/x", "fallocate=none", "overwrite=1", "thread=1", "offset_increment=0"]);
        assert!(!raw.contains("overwrite") && !raw.contains("fallocate"), "{raw}");
    }

    #[test]
    fn new_files_are_made_as_fio_makes_them() {
        let (raw, xfs) = files(
            "[w]\nfilename=/x\nrw=write:28k\nsize=8m\noffset_increment=4k\nnumjobs=8\nfallocate=none\ncreate_on_open=1\nfdatasync=5\nsync=dsync\n",
        );
        has(
            &xfs,
            &[
                "rw=write:28672",
                "create_on_open=1",
                "fallocate=none",
                "ioengine=psync",
                "norandommap=0",
                "fdatasync=5",
                "sync=dsync",
            ],
        );
        assert!(!xfs.contains("overwrite") && !xfs.contains("iodepth"), "{xfs}");
        assert!(!raw.contains("create_on_open"), "{raw}");
        let text = "[w]\nfilename=/x\nrw=write\noffset=1m\nfile_append=1\nunlink=1\nend_fsync=1\n";
        let (raw, xfs) = files(text);
        has(&xfs, &["file_append=1", "unlink=1", "end_fsync=1", "offset=1048576", "size=268435456"]);
        assert!(!raw.contains("file_append"), "{raw}");
        let p = planned("[w]\nfilename=/it's\nrw=write\nsize=1m\nfallocate=native\n");
        assert_eq!(before(&p.plan.steps[1], Place::Ext4), r"mkdir -p '/mnt/ext4'; rm -f '/mnt/ext4/it'\''s'; ");
        assert_eq!(before(&p.plan.steps[0], Place::Raw), "");
        assert!(job_file(&p.plan.steps[0], &p.groups[0].jobs, Place::Ext4).is_err());
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let refused = |text: &str| comparable(&crate::fiojob::parse(text, "t.fio").unwrap()).unwrap_err().to_string();
        assert!(refused("[t]\nfilename=/x\nrw=trim\n").starts_with("t.fio:1: [t]: rw: cannot be compared"));
        assert!(refused("[t]\nfilename=/x\ndirect=0\n").contains("direct: cannot"));
        assert!(refused("[t]\nfilename=/x\nrw=write\nfile_append=1\nruntime=1\ntime_based\n").contains("time_based"));
        comparable(&crate::fiojob::parse("[t]\nfilename=/x\nrw=randrw\n", "t.fio").unwrap()).unwrap();
    }

    #[test]
    fn figures_of_fio() {
        let job = |error: i32, ios: u64| {
            format!(
                r#"{{"jobname":"a","error":{error},"read":{{"total_ios":{ios},"runtime":500}},"write":{{"total_ios":20,"runtime":400}},"trim":{{"total_ios":0,"runtime":0}}}}"#
            )
        };
        let text = format!("note: hm\n{{\"fio version\":\"fio-3.33\",\"jobs\":[{},{}]}}\n", job(0, 10), job(0, 50));
        let m = parse(&text).unwrap();
        assert_eq!(m, Measured { ios: 100, ms: 500 });
        assert_eq!(m.iops(), 200.0);
        let text = format!("{{\"jobs\":[{}]}}", job(28, 10));
        assert!(parse(&text).unwrap_err().to_string().contains("fio: [a]: No space left"));
        for bad in ["", "}{", "{", "{}", r#"{"jobs":[]}"#, r#"{"jobs":[{}]}"#, r#"{"jobs":[{"error":0}]}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    /// fio itself takes the files, where it is installed.
    #[test]
    fn fio_understands_the_files() {
        let Ok(mut cmd) = crate::proc::tool("fio") else {
            eprintln!("fio is not installed: nobody to ask whether it understands the files");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let (_, xfs) = files(
            "[w]\nfilename=/x\nrw=randrw:4k\nrwmixread=30\nsize=64k\nfallocate=truncate\nrandseed=7\nsync=sync\nfsync=3\nfsync_on_close=1\n"
                .replace(":4k", "")
                .as_str(),
        );
        let text = xfs.replace("/mnt/xfs", &dir.path().display().to_string()).replace("direct=1", "direct=0");
        std::fs::write(dir.path().join("j.fio"), text).unwrap();
        cmd.args(["--output-format=json", "--output=out", "j.fio"]).current_dir(dir.path());
        crate::proc::succeed(cmd, std::time::Duration::from_secs(60)).unwrap();
        let m = parse(&std::fs::read_to_string(dir.path().join("out")).unwrap());
        // So short a run may take no millisecond.
        assert!(
            m.as_ref().is_ok_and(|m| m.ios == 16) || m.as_ref().is_err_and(|e| e.to_string().contains("no I/O")),
            "{m:?}"
        );
    }
}
