// SPDX-License-Identifier: GPL-2.0-only
//! What is compared: the default jobs, or the user's.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use ext4_dio_protocol::{Engine, Fallocate, Rw};

use super::args::CompareArgs;
use crate::fiojob::{self, Amount, Group, JobSpec};
use crate::linux_guest::fio;
use crate::session::{Usage, usage};

/// The file that is there, fully written.
const FILE: &str = "/data";
/// Its length: as that of `boot`'s default run.
const FILE_BYTES: u64 = 256 << 20;
/// The file that is made anew each time.
const NEW_FILE: &str = "/new";
/// What each of its writers has of it.
const REGION: u64 = 16 << 20;
/// Its writers.
const WRITERS: u32 = 8;
/// Length of each run of a default job.
pub const RUNTIME: Duration = Duration::from_millis(600);

fn job(label: &str, rw: Rw, engine: (&str, Engine)) -> JobSpec {
    let mut job = JobSpec::new(label, "default jobs");
    job.rw = rw;
    job.engine = engine.1;
    job.runtime_ms = Some(RUNTIME.as_millis() as u64);
    // fio's engine is looked for there.
    job.options = vec![("ioengine".into(), engine.0.into())];
    job
}

fn group(job: JobSpec) -> Group {
    Group { label: job.name.clone(), jobs: vec![job] }
}

const PSYNC: (&str, Engine) = ("psync", Engine::Sync);
const URING: (&str, Engine) = ("io_uring", Engine::Async);

/// Random I/O in the file that is there.
fn over(label: &str, rw: Rw, engine: (&str, Engine), threads: u32, depth: u32) -> Group {
    let mut job = job(label, rw, engine);
    job.filename = Some(FILE.into());
    job.size = Some(Amount::Bytes(FILE_BYTES));
    job.rwmixread = 70;
    job.time_based = true;
    (job.numjobs, job.iodepth) = (threads, depth);
    job.randseed = u64::from(threads * depth) << 32;
    group(job)
}

/// Writers of a new file, each in a region of its own. They end when that is full.
fn into(label: &str, rw: Rw, fallocate: Fallocate, on_open: bool) -> Group {
    let mut job = job(label, rw, PSYNC);
    job.filename = Some(NEW_FILE.into());
    job.size = Some(Amount::Bytes(REGION));
    job.offset_increment = Amount::Bytes(REGION);
    job.numjobs = WRITERS;
    job.fallocate = Some(fallocate);
    job.create_on_open = on_open;
    group(job)
}

/// The default jobs.
pub fn default_groups() -> Vec<Group> {
    let mut groups: Vec<Group> = [1, 2, 8, 32]
        .map(|n| over(&format!("psync, {n} writer{}", if n == 1 { "" } else { "s" }), Rw::RandWrite, PSYNC, n, 1))
        .into();
    groups.extend([1, 8, 32].map(|n| over(&format!("io_uring, depth {n}"), Rw::RandWrite, URING, 1, n)));
    groups.push(over("70 % reads, 8 threads", Rw::RandRw, PSYNC, WRITERS, 1));
    groups.push(into("fallocated, 8 writers", Rw::RandWrite, Fallocate::Native, false));
    groups.push(into("holes, 8 writers", Rw::RandWrite, Fallocate::Truncate, false));
    groups.push(into("append, 8 writers", Rw::Write, Fallocate::None, true));
    groups
}

/// What instructions are counted for: `ios` I/Os in all.
pub fn counting_groups(ios: u64) -> Vec<Group> {
    let count = |mut group: Group| {
        for job in &mut group.jobs {
            job.number_ios = Some(ios / u64::from(job.numjobs));
            (job.runtime_ms, job.time_based) = (None, false);
        }
        group
    };
    let of = |label: &str, engine, depth| count(over(label, Rw::RandWrite, engine, 1, depth));
    vec![of("psync, 1 writer", PSYNC, 1), of("io_uring, depth 1", URING, 1), of("io_uring, depth 32", URING, 32)]
}

/// What the command line asks for.
///
/// # Errors
///
/// A job file that is not there, that is wrong, or that cannot be compared.
pub fn load(args: &CompareArgs) -> Result<Vec<Group>> {
    let mut groups = if args.jobs.is_empty() { default_groups() } else { Vec::new() };
    for path in &args.jobs {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|e| Usage(format!("cannot read the job file {shown}: {e}")))?;
        groups.extend(fiojob::parse(&text, &shown)?);
    }
    usage(fio::comparable(&groups))?;
    let mut verified = Vec::new();
    for job in groups.iter_mut().flat_map(|g| &mut g.jobs) {
        if job.verify {
            verified.push(format!("[{}]", job.name));
            job.verify = false;
        }
        if let Some(runtime) = args.runtime {
            job.runtime_ms = Some(runtime.as_millis() as u64);
        }
    }
    if !verified.is_empty() {
        eprintln!("verify= is left out: the guests would not do the same for it ({})", verified.join(" "));
    }
    Ok(groups)
}

/// How long a group's measurement takes at least; without a runtime nobody knows.
pub fn runtime(group: &Group) -> Option<Duration> {
    group.jobs.iter().map(|j| j.runtime_ms).collect::<Option<Vec<_>>>()?.into_iter().max().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_default_jobs_cover_what_files_are_used_for() {
        let groups = default_groups();
        let flights: Vec<u32> = groups.iter().map(Group::in_flight).collect();
        assert_eq!(flights, [1, 2, 8, 32, 1, 8, 32, 8, 8, 8, 8]);
        fio::comparable(&groups).unwrap();
        let kinds: Vec<_> = groups.iter().map(|g| (g.jobs[0].fallocate, g.jobs[0].create_on_open)).collect();
        assert_eq!(
            kinds[8..],
            [(Some(Fallocate::Native), false), (Some(Fallocate::Truncate), false), (Some(Fallocate::None), true)]
        );
        assert!(groups.iter().all(|g| runtime(g) == Some(RUNTIME)));
        let counted = counting_groups(4000);
        assert!(counted.iter().all(|g| g.jobs[0].number_ios == Some(4000) && runtime(g).is_none()));
    }

    fn args(jobs: &[PathBuf]) -> CompareArgs {
        CompareArgs { jobs: jobs.into(), ..CompareArgs::default() }
    }

    #[test]
    fn job_files_are_read_and_faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.fio");
        let e = load(&args(std::slice::from_ref(&path))).unwrap_err();
        assert!(e.is::<Usage>() && e.to_string().contains("a.fio"), "{e}");
        fs::write(&path, "[a]\nfilename=/x\nwhat=1\n").unwrap();
        let e = load(&args(std::slice::from_ref(&path))).unwrap_err();
        assert!(e.is::<fiojob::Error>() && e.to_string().contains("what: unknown key"), "{e}");
        fs::write(&path, "[a]\nfilename=/x\nrw=trim\n").unwrap();
        assert!(load(&args(std::slice::from_ref(&path))).unwrap_err().is::<Usage>());
        fs::write(&path, "[a]\nfilename=/x\nrw=write\nverify=crc32c\nioengine=libaio\n").unwrap();
        let a = CompareArgs { runtime: Some(Duration::from_secs(2)), ..args(&[path]) };
        let groups = load(&a).unwrap();
        assert!(!groups[0].jobs[0].verify);
        assert_eq!(groups[0].jobs[0].runtime_ms, Some(2000));
        assert_eq!(fio::engine(&groups[0].jobs[0]), "libaio");
    }
}
