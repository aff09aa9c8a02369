// SPDX-License-Identifier: GPL-2.0-only
//! The command line of `compare`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::cli;
use crate::plan::{Mode, ModeList};

/// Delays of disks, between commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delays(pub Vec<Duration>);

impl FromStr for Delays {
    type Err = String;

    fn from_str(s: &str) -> Result<Delays, String> {
        let mut delays = Vec::new();
        for word in s.split(',') {
            let delay = cli::delay(word.trim())?;
            if !delays.contains(&delay) {
                delays.push(delay);
            }
        }
        Ok(Delays(delays))
    }
}

/// What to compare, and how long.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// fio job files; without any, overwrites by 1 to 32 writers and with 1 to 32 I/Os in flight, and writes into preallocated
    /// blocks, into holes and behind the end, and reads beside writes
    ///
    /// Keys are those of `boot`. What our guest takes for granted is said to fio in so many words: the job files it gets are kept.
    /// Jobs that both cannot do alike (trim, direct=0) are refused; verify= is left out on both sides.
    #[arg(value_name = "JOB.fio")]
    pub jobs: Vec<PathBuf>,
    /// How often each job is run in each guest; figures are medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How long each job runs each time [default: 600ms, or what the job files say]
    #[arg(long, value_name = "TIME", value_parser = runtime)]
    pub runtime: Option<Duration>,
    /// What each write to a disk takes longer; everything is run for each of these
    #[arg(long, value_name = "TIMES", default_value = "0,2ms")]
    pub disk_delay: Delays,
    /// Which of raw, exclusive, i_data_sem, in_flight to run in our guest
    #[arg(long, value_name = "MODES", default_value = "raw,exclusive,i_data_sem,in_flight")]
    pub modes: ModeList,
    /// Kernel to compare with, such as 6.12, 7.3 or 7.3.4 [default: the newest that Debian offers]
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub kernel: Option<String>,
    /// CPUs of either guest, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub smp: u32,
    /// RAM of either guest, such as 1G
    #[arg(long, value_name = "M", default_value = "1G", value_parser = cli::memory)]
    pub mem: u64,
    /// Do not count instructions
    #[arg(long)]
    pub no_instructions: bool,
    /// Count instructions only
    #[arg(long, conflicts_with_all = ["no_instructions", "jobs"])]
    pub only_instructions: bool,
    /// Where results go, as JSON [default: compare.json in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where the picture goes, SVG [default: compare.svg in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

impl Default for CompareArgs {
    fn default() -> Self {
        CompareArgs {
            jobs: Vec::new(),
            rounds: 3,
            runtime: None,
            disk_delay: Delays(vec![Duration::ZERO, Duration::from_millis(2)]),
            modes: ModeList(Mode::ALL.into()),
            kernel: None,
            smp: 2,
            mem: 1 << 30,
            no_instructions: false,
            only_instructions: false,
            json: None,
            plot: None,
        }
    }
}

fn runtime(s: &str) -> Result<Duration, String> {
    match cli::delay(s) {
        Ok(d) if d >= Duration::from_millis(50) => Ok(d),
        Ok(_) => Err("less than 50 ms".into()),
        Err(e) if e == "more than 10 s" => {
            let seconds = s.strip_suffix('s').and_then(|n| n.parse::<u64>().ok()).filter(|n| *n <= 3600);
            seconds.map(Duration::from_secs).ok_or_else(|| "more than 3600 s".into())
        }
        Err(e) => Err(e),
    }
}

fn version(s: &str) -> Result<String, String> {
    let plain = s.chars().all(|c| c.is_ascii_alphanumeric() || ".+~-".contains(c));
    if plain && s.starts_with(|c: char| c.is_ascii_digit()) {
        Ok(s.into())
    } else {
        Err("write a version, such as 6.12 or 7.3.4".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parse(args: &[&str]) -> Result<CompareArgs, String> {
        let all = ["ext4-dio", "compare"].iter().chain(args);
        match Cli::try_parse_from(all).map_err(|e| e.to_string())?.command {
            Some(Command::Compare(args)) => Ok(args),
            _ => Err("no comparison".into()),
        }
    }

    #[test]
    fn defaults_and_values() {
        assert_eq!(format!("{:?}", parse(&[]).unwrap()), format!("{:?}", CompareArgs::default()));
        let a =
            parse(&["a.fio", "--disk-delay", "0,500us, 0", "--runtime", "30s", "--kernel", "6.12", "--rounds", "5"]);
        let a = a.unwrap();
        assert_eq!(a.disk_delay.0, [Duration::ZERO, Duration::from_micros(500)]);
        assert_eq!((a.runtime, a.kernel.as_deref(), a.rounds), (Some(Duration::from_secs(30)), Some("6.12"), 5));
    }

    #[test]
    fn wrong_values_are_named() {
        for (args, word) in [
            (&["--rounds", "0"][..], "1..=100"),
            (&["--runtime", "5ms"], "50 ms"),
            (&["--runtime", "9999s"], "3600 s"),
            (&["--disk-delay", "0,2"], "unit"),
            (&["--kernel", "new est"], "version"),
            (&["--kernel", "newest"], "version"),
            (&["--smp", "0"], "1..=8"),
            (&["--only-instructions", "a.fio"], "cannot be used with"),
            (&["--what"], "--what"),
        ] {
            let err = parse(args).unwrap_err();
            assert!(err.contains(word), "{args:?}: {err}");
        }
    }
}
