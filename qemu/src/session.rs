// SPDX-License-Identifier: GPL-2.0-only
//! A whole run, from what is missing on this machine to what is on the disk at the end.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use ext4_dio_protocol::script::{self, ScriptError};
use ext4_dio_protocol::{Event, Job, Plan, Script};

use crate::cli::BootArgs;
use crate::disks::Disks;
use crate::fiojob::{self, Group};
use crate::plan::{self, EXT4_DISK, Mode, Planned, Settings};
use crate::proc::{self, Interrupted};
use crate::progress::{Lines, Progress, Silent, Ticker};
use crate::qemu::{Accel, Config, Machine};
use crate::report::{self, Matrix};
use crate::run::{self, End, Limits, Outcome};
use crate::symbols::{Annotate, Symbols, Unknown};
use crate::{deps, fiojson, guest_build, plot, verdict};

/// What the user asked for cannot be done as it stands.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Lines of the guest's log that a failure shows.
const LOG_TAIL: usize = 400;

/// The process's exit status; an error is told on stderr.
pub fn exit_status(result: Result<bool>) -> u8 {
    match result {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(e) => {
            eprintln!("ext4-dio: {e:#}");
            if e.is::<Interrupted>() {
                130
            } else if e.is::<Usage>() || e.is::<fiojob::Error>() || e.is::<ScriptError>() || e.is::<deps::Missing>() {
                2
            } else {
                1
            }
        }
    }
}

/// Does what the command line says; tells whether everything held.
///
/// # Errors
///
/// The run could not get as far as a verdict.
pub fn run(args: &BootArgs) -> Result<bool> {
    let start = Instant::now();
    if let Some(path) = &args.script {
        return run_script(args, path, start);
    }
    let groups = load_groups(args)?;
    deps::ensure(&deps::ALL, &mut deps::Host)?;
    eprintln!("building the guest");
    let kernel = guest_build::build(args.debug)?;
    proc::check_interrupt()?;
    let built = Instant::now();

    let target = guest_build::target_dir();
    let mut disks = Disks::prepare(args.image.as_deref(), &groups, &args.modes.0, &target)?;
    let rounds = if args.jobs.is_empty() && !args.count_instructions { plan::DEFAULT_ROUNDS } else { 1 };
    let settings = Settings { count_instructions: args.count_instructions, memory: args.mem, rounds };
    let planned = plan::build(groups, &args.modes.0, &disks.files, settings).map_err(|e| Usage(e.to_string()))?;
    disks.announce(&planned);
    disks.fill(&planned)?;
    let accel = choose_accel(args, &kernel)?;
    let out = boot(args, &kernel, &planned, &disks, &accel, &mut Ticker::stderr())?;

    write_log(&target, &out.log);
    report(args, &planned, &out, &accel.name(), &target)?;
    let verdict = verdict::tell(args, &planned, &out, &disks)?;
    Ok(conclude(verdict, disks, start, built))
}

/// The last line, and whether everything held.
fn conclude(verdict: verdict::Verdict, disks: Disks, start: Instant, built: Instant) -> bool {
    println!(
        "{} after {:.0} s, {:.0} s of them installing and building",
        if verdict.held { "everything held" } else { "NOT EVERYTHING HELD" },
        start.elapsed().as_secs_f64(),
        (built - start).as_secs_f64()
    );
    if verdict.disks_at_fault {
        disks.keep();
    }
    verdict.held
}

/// Runs the script in the guest, and checks the image afterwards.
fn run_script(args: &BootArgs, path: &Path, start: Instant) -> Result<bool> {
    let shown = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| Usage(format!("cannot read the script {shown}: {e}")))?;
    let lines = script::parse(&text, &shown)?;
    deps::ensure(&deps::ALL, &mut deps::Host)?;
    eprintln!("building the guest");
    let kernel = guest_build::build(args.debug)?;
    proc::check_interrupt()?;
    let built = Instant::now();

    let target = guest_build::target_dir();
    let modes = [Mode::InFlight];
    let mut disks = Disks::prepare(args.image.as_deref(), &[], &modes, &target)?;
    let settings = Settings { count_instructions: false, memory: args.mem, rounds: 1 };
    let mut planned = plan::build(Vec::new(), &modes, &[], settings)?;
    disks.announce_script(&shown, lines.len());
    disks.fill(&planned)?;
    planned.plan.script = Some(Script { file: shown, disk: EXT4_DISK, options: args.options.clone(), lines });
    let accel = choose_accel(args, &kernel)?;
    let out = boot(args, &kernel, &planned, &disks, &accel, &mut Lines(std::io::stdout()))?;
    write_log(&target, &out.log);
    let verdict = verdict::tell_script(&planned, &out, &disks)?;
    Ok(conclude(verdict, disks, start, built))
}

/// What is to be run.
fn load_groups(args: &BootArgs) -> Result<Vec<Group>> {
    if args.jobs.is_empty() {
        return Ok(if args.count_instructions { plan::counting_groups() } else { plan::default_groups() });
    }
    let mut groups = Vec::new();
    for path in &args.jobs {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|e| Usage(format!("cannot read the job file {shown}: {e}")))?;
        groups.extend(fiojob::parse(&text, &shown)?);
    }
    for job in groups.iter().flat_map(|g| &g.jobs).filter(|j| j.depth() != j.iodepth) {
        eprintln!(
            "{}: [{}]: psync has one I/O in flight per thread: iodepth={} counts as 1",
            job.origin, job.name, job.iodepth
        );
    }
    Ok(groups)
}

/// What executes the guest, and why not something faster.
pub(crate) struct Choice {
    pub(crate) accel: Accel,
    why: Option<String>,
}

impl Choice {
    pub(crate) fn name(&self) -> String {
        let name = match self.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
            Accel::Icount => "TCG counting instructions",
        };
        match &self.why {
            Some(why) => format!("{name} (no KVM: {why})"),
            None => name.into(),
        }
    }
}

/// KVM where a guest survives in it, else TCG.
pub(crate) fn choose_accel(args: &BootArgs, kernel: &Path) -> Result<Choice> {
    if args.count_instructions {
        return Ok(Choice { accel: Accel::Icount, why: None });
    }
    if let Err(e) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(Choice { accel: Accel::Tcg, why: Some(format!("/dev/kvm: {e}")) });
    }
    let why = probe_kvm(args, kernel)?;
    Ok(Choice { accel: if why.is_none() { Accel::Kvm } else { Accel::Tcg }, why })
}

/// Boots the guest with nothing to do; none if that works, else what happened. On some machines `/dev/kvm` is there,
/// and what runs in it dies.
fn probe_kvm(args: &BootArgs, kernel: &Path) -> Result<Option<String>> {
    let dir = tempfile::Builder::new().prefix("ext4-dio-").tempdir().context("temporary directory")?;
    let plan = Plan { steps: Vec::new(), script: None, progress_ms: 1000, tables: false, count_instructions: false };
    let config = config(args, kernel, &plan, Accel::Kvm, dir.path(), Vec::new())?;
    let mut vm = Machine::boot(&config)?;
    let limits = Limits { silence: Duration::from_secs(5), grace: Duration::ZERO };
    let out = run::drive(&mut vm, &plan, Some(limits), &Unknown, &mut Silent)?;
    let said = out.log.iter().rev().find_map(|l| l.strip_prefix("qemu: ")).map(|l| format!(": {l}"));
    // A signal's number says enough; what QEMU asserts before it is long.
    let said = said.filter(|_| !matches!(out.end, Some(End::Signal(_))));
    Ok(out.failures.into_iter().next().map(|why| why + &said.unwrap_or_default()))
}

/// A machine's description, its plan written to `dir`.
pub(crate) fn config(
    args: &BootArgs,
    kernel: &Path,
    plan: &Plan,
    accel: Accel,
    dir: &Path,
    disks: Vec<crate::qemu::Disk>,
) -> Result<Config> {
    let file = dir.join("plan.json");
    fs::write(&file, serde_json::to_vec(plan)?).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Config {
        kernel: kernel.into(),
        plan: file,
        smp: args.cpus(),
        mem_mib: args.mem >> 20,
        disks,
        accel,
        gdb: args.gdb && accel != Accel::Kvm,
        qmp: dir.join("qmp"),
        debugcon: dir.join("bulk"),
        extra: Vec::new(),
    })
}

/// Runs the plan.
fn boot(
    args: &BootArgs,
    kernel: &Path,
    planned: &Planned,
    disks: &Disks,
    choice: &Choice,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    // gdb's breakpoints and the first stop are simplest without KVM.
    let accel = if args.gdb && choice.accel == Accel::Kvm { Accel::Tcg } else { choice.accel };
    let config = config(args, kernel, &planned.plan, accel, disks.small.path(), disks.for_qemu(args.delay()))?;
    eprintln!(
        "booting {} CPU{}, {} MiB, {}; writes take {} longer",
        config.smp,
        if config.smp == 1 { "" } else { "s" },
        config.mem_mib,
        choice.name(),
        if args.delay().is_zero() { "nothing".into() } else { format!("{:?}", args.delay()) }
    );
    let symbols = Symbols::load(kernel);
    let symbols: &dyn Annotate = match &symbols {
        Ok(symbols) => symbols,
        Err(e) => {
            eprintln!("no names in backtraces: {e:#}");
            &Unknown
        }
    };
    let limits = if args.gdb {
        println!("waiting for: gdb -ex 'target remote :1234' {}", kernel.display());
        None
    } else {
        Some(limits(planned))
    };
    let mut vm = Machine::boot(&config)?;
    let mut out = run::drive(&mut vm, &planned.plan, limits, symbols, progress)?;
    if let Some(Event::Boot { cpus, .. }) = out.boot
        && cpus != config.smp
    {
        out.failures.push(format!("the guest found {cpus} of {} CPUs", config.smp));
    }
    Ok(out)
}

/// How long a guest may be silent: it reads stamped blocks back after a step, at 10 MB/s or more.
pub(crate) fn limits(planned: &Planned) -> Limits {
    let stamped = |s: &ext4_dio_protocol::Step| -> u64 {
        let bytes = |j: &Job| j.file_bytes.saturating_add(j.size.unwrap_or(0).saturating_mul(u64::from(j.numjobs)));
        s.jobs.iter().filter(|j| j.verify).map(bytes).fold(0, u64::saturating_add)
    };
    let most = planned.plan.steps.iter().map(stamped).max().unwrap_or(0);
    Limits { silence: Duration::from_secs(30 + (most / 10_000_000).min(600)), grace: Duration::from_secs(5) }
}

fn write_log(target: &Path, log: &VecDeque<String>) {
    let path = target.join("ext4-dio.log");
    let text: String = log.iter().map(|l| format!("{l}\n")).collect();
    // A help for later, not a result.
    if fs::write(&path, text).is_ok() {
        eprintln!("guest's log: {}", path.display());
    }
}

/// Shows and writes what was measured.
fn report(args: &BootArgs, planned: &Planned, out: &Outcome, accel: &str, target: &Path) -> Result<()> {
    if out.steps.is_empty() {
        return Ok(());
    }
    let default = |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| target.join(name));
    let json = default(&args.json, "ext4-dio.json");
    let document = fiojson::document(planned, out, SystemTime::now(), accel);
    fs::write(&json, format!("{document:#}\n")).with_context(|| format!("cannot write {}", json.display()))?;
    println!();
    if args.count_instructions {
        print!("{}", report::instruction_table(&Matrix::instructions(planned, out)));
    } else {
        let m = Matrix::iops(planned, out);
        print!("{}", report::iops_table(&m, args.jobs.is_empty()));
        if let Some(line) = report::spread_line(planned, out) {
            println!("\n{line}");
        }
        let svg = default(&args.plot, "ext4-dio.svg");
        let title = format!("Direct overwrites of one file, {} CPUs, writes +{:?}", args.cpus(), args.delay());
        plot::draw(&m, if args.jobs.is_empty() { &title } else { "Jobs by lock mode" }, &svg)?;
        println!("\nplot: {}", svg.display());
    }
    println!("{}json: {}", if args.count_instructions { "\n" } else { "" }, json.display());
    Ok(())
}

/// The end of the guest's log, for a failure.
pub(crate) fn log_tail(log: &VecDeque<String>) -> impl Iterator<Item = &String> {
    log.iter().skip(log.len().saturating_sub(LOG_TAIL))
}

/// Modes that work on the ext4 image.
pub(crate) fn uses_ext4(modes: &[Mode]) -> bool {
    modes.iter().any(|m| *m != Mode::Raw)
}

/// Fails unless `groups` can be run with an image at all.
///
/// # Errors
///
/// [`Usage`].
pub(crate) fn usage<T>(result: Result<T>) -> Result<T> {
    match result {
        Ok(v) => Ok(v),
        Err(e) => bail!(Usage(format!("{e:#}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses() {
        assert_eq!(exit_status(Ok(true)), 0);
        assert_eq!(exit_status(Ok(false)), 1);
        assert_eq!(exit_status(Err(Interrupted.into())), 130);
        assert_eq!(exit_status(Err(Usage("x".into()).into())), 2);
        assert_eq!(exit_status(fiojob::parse("", "x").map(|_| true).map_err(Into::into)), 2);
        assert_eq!(exit_status(script::parse("", "x").map(|_| true).map_err(Into::into)), 2);
        assert_eq!(exit_status(Err(anyhow::anyhow!("x"))), 1);
        assert_eq!(exit_status(Err(anyhow::Error::from(Interrupted).context("while booting"))), 130);
    }

    #[test]
    fn a_guest_that_reads_back_much_may_be_silent_longer() {
        let planned = crate::run::tests_support::planned();
        assert_eq!(limits(&planned).silence, Duration::from_secs(30 + 2 * (256 << 20) / 10_000_000));
    }
}
