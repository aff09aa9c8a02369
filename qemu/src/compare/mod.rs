// SPDX-License-Identifier: GPL-2.0-only
//! `compare`: the same jobs in our guest and in Linux, on the same machine.
//!
//! ```text
//! args ─ jobs         what is compared
//! bench               disks, guests, and their turns
//! count               instructions of an I/O, by a plugin of QEMU that counts in both guests alike
//! samples ─ table ─ plot ─ json     what came out
//! ```

pub mod args;
mod bench;
mod count;
pub mod jobs;
mod json;
pub mod plot;
pub mod samples;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};

use self::args::CompareArgs;
use self::bench::Bench;
use self::samples::{Counted, Point};
use crate::deps::{self, Tool};
use crate::plan::Mode;
use crate::{guest_build, linux_guest, proc};

/// Programs that are needed besides those of `boot`.
const TOOLS: [Tool; 2] = [Tool { program: "fio", package: "fio" }, Tool { program: "mkfs.xfs", package: "xfsprogs" }];

/// All that came out.
struct Results {
    points: Vec<Point>,
    counted: Vec<Counted>,
    /// What did not hold, or could not be measured.
    failures: Vec<String>,
    /// What the machine was.
    setup: Setup,
}

/// What was compared with what.
#[derive(Clone, Debug)]
struct Setup {
    release: String,
    qemu: String,
    accel: String,
    cpus: u32,
    mem_mib: u64,
    rounds: u32,
}

/// Does what the command line says; tells whether everything held.
///
/// # Errors
///
/// It could not get as far as figures.
pub fn run(args: &CompareArgs) -> Result<bool> {
    let start = Instant::now();
    let groups = jobs::load(args)?;
    let mut tools = deps::ALL.to_vec();
    tools.extend(TOOLS);
    deps::ensure(&tools, &mut deps::Host)?;
    let target = guest_build::target_dir();
    let linux = linux_guest::fetch(&target.join("linux"), args.kernel.as_deref())?;
    eprintln!("Linux {} is in {}", linux.unpacked.version, linux.cache.display());
    eprintln!("building the guest");
    let kernel = guest_build::build(false)?;
    let counter = if args.no_instructions { None } else { count::build() };
    proc::check_interrupt()?;
    let built = Instant::now();

    let mut bench = Bench::prepare(args, groups, kernel, linux)?;
    let delays = if args.only_instructions { 0 } else { args.disk_delay.0.len() };
    eprintln!("{}", bench.expected(delays, counter.is_some()));
    let mut points = Vec::new();
    for delay in &args.disk_delay.0[..delays] {
        points.extend(bench.phase(*delay)?);
    }
    let counted = match &counter {
        Some(plugin) => count::run(&mut bench, plugin)?,
        None => Vec::new(),
    };
    bench.check_disks()?;
    let setup = Setup {
        release: bench.release.clone(),
        qemu: qemu_version().unwrap_or_default(),
        accel: bench.accel.clone(),
        cpus: args.smp,
        mem_mib: args.mem >> 20,
        rounds: args.rounds,
    };
    let results = Results { points, counted, failures: std::mem::take(&mut bench.failures), setup };
    report(args, &results, &target)?;
    println!(
        "{} after {:.0} s, {:.0} s of them fetching and building",
        if results.failures.is_empty() { "everything held" } else { "NOT EVERYTHING HELD" },
        start.elapsed().as_secs_f64(),
        (built - start).as_secs_f64()
    );
    Ok(results.failures.is_empty())
}

/// The first line of `qemu-system-x86_64 --version`.
fn qemu_version() -> Result<String> {
    let mut cmd = proc::tool(deps::QEMU.program)?;
    cmd.arg("--version");
    let text = proc::succeed(cmd, Duration::from_secs(30))?;
    Ok(text.lines().next().unwrap_or_default().replace("QEMU emulator version ", "QEMU "))
}

/// Shows and writes what was measured.
fn report(args: &CompareArgs, results: &Results, target: &Path) -> Result<()> {
    let columns = table::columns(&args.modes.0);
    let s = &results.setup;
    let about = format!(
        "Linux {} and our guest: {}, {}, {} CPU{}, {} MiB",
        s.release,
        s.qemu,
        s.accel,
        s.cpus,
        if s.cpus == 1 { "" } else { "s" },
        s.mem_mib
    );
    println!(
        "\n{about}{}\n",
        if results.points.is_empty() { String::new() } else { format!("; medians of {} rounds", s.rounds) }
    );
    let best = [Mode::InFlight, Mode::IDataSem, Mode::Exclusive].into_iter().find(|m| args.modes.0.contains(m));
    for delay in &args.disk_delay.0 {
        let points: Vec<&Point> = results.points.iter().filter(|p| p.delay == *delay).collect();
        if points.is_empty() {
            continue;
        }
        println!("{}\n\n{}", table::delay_name(*delay), table::iops(&points, &columns));
        println!("{}", table::over_ext4(&points, &columns));
        if args.modes.0.contains(&Mode::Raw) {
            println!("{}", table::over_raw(&points, &columns));
        }
        if let Some(mode) = best {
            println!("{}\n", table::verdict(&points, mode));
        }
    }
    if !results.counted.is_empty() {
        println!(
            "instructions, with one CPU, by a plugin of QEMU\n\n{}",
            table::instructions(&results.counted, &columns)
        );
    }
    let default = |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| target.join(name));
    if !results.points.is_empty() {
        let svg = default(&args.plot, "compare.svg");
        let title = format!("Linux {} and our guest, {} CPUs", s.release, s.cpus);
        plot::draw(&results.points, &columns, &title, &svg)?;
        println!("plot: {}", svg.display());
    }
    let json = default(&args.json, "compare.json");
    let document = json::document(results, &columns, SystemTime::now());
    fs::write(&json, format!("{document:#}\n")).with_context(|| format!("cannot write {}", json.display()))?;
    println!("json: {}", json.display());
    for failure in &results.failures {
        println!("  FAIL  {}", failure.trim_end().replace('\n', "\n        "));
    }
    Ok(())
}
