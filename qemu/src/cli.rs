// SPDX-License-Identifier: GPL-2.0-only
//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare::args::CompareArgs;
use crate::plan::{Mode, ModeList};

/// Boots ext4-dio in QEMU, measures parallel direct overwrites of one file, and checks the disk afterwards.
///
/// Without a command: 1 to 32 writers of one file, 4 KiB random overwrites on a disk that takes 2 ms, in each lock mode
/// and on the bare disk. Missing programs are installed with apt-get where that is possible.
///
/// Exit status: 0 if everything held, 1 if something did not, 2 for a wrong command line or job file and for programs
/// that are missing, 130 if interrupted.
#[derive(Debug, Parser)]
#[command(name = "ext4-dio", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boots the guest and runs fio job files in it
    Boot(BootArgs),
    /// Runs fio job files in our guest and in a Debian Linux, on the same machine, and shows both
    ///
    /// Linux (busybox, fio of this machine, the newest kernel image that Debian offers) is fetched into cargo's target directory,
    /// through an apt state of its own: this machine's package lists are left alone. fio and xfsprogs are installed if they are
    /// missing. Without job files it takes some ten minutes.
    Compare(CompareArgs),
}

/// How to boot, and what to run.
#[derive(Args, Clone, Debug)]
pub struct BootArgs {
    /// fio job files, one after the other; without any, the default run's points
    ///
    /// Keys: rw, rwmixread, bs, size, offset, offset_increment, numjobs, iodepth, ioengine (psync, libaio, io_uring),
    /// direct, fsync, fdatasync, end_fsync, fsync_on_close, sync, runtime, time_based, number_ios, filename, fallocate,
    /// create_on_open, file_append, overwrite, unlink, verify (crc32c), randseed, stonewall, group_reporting. I/O is direct
    /// unless direct=0 is given. Files are there and fully written unless fallocate= (even none) or create_on_open=1 is
    /// given: then they are made anew before each step, as fio makes them.
    #[arg(value_name = "JOB.fio")]
    pub jobs: Vec<PathBuf>,
    /// Work on this ext4 image, which is WRITTEN TO, rather than on one made for the run
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Do the file operations in this script on the image, one per line, and show what each gave
    ///
    /// Operations: mkdir, rmdir, create, write, read, truncate, fallocate, rename, link, symlink, readlink, unlink, chmod, chown,
    /// utimens, setxattr, getxattr, listxattr, removexattr, ls, stat, statfs, fiemap, seek, fsync, fdatasync, sync, remount,
    /// mount; `expect ERRNO` before one says that it has to fail so; # begins a comment. A wrong line is told with what it
    /// should be like.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jobs", "modes", "json", "plot", "count_instructions"])]
    pub script: Option<PathBuf>,
    /// What the script's mount begins with, as mount -o takes it
    #[arg(long, value_name = "OPTIONS", default_value = "", requires = "script")]
    pub options: String,
    /// CPUs of the guest, 1 to 8 [default: 2, or 1 with --count-instructions]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub smp: Option<u32>,
    /// RAM of the guest, such as 512M or 2G
    #[arg(long, value_name = "M", default_value = "512M", value_parser = memory)]
    pub mem: u64,
    /// What each write to a disk takes longer, such as 2ms, 500us or 0 [default: 2ms, or 0 with --count-instructions or --script]
    #[arg(long, value_name = "TIME", value_parser = delay)]
    pub disk_delay: Option<Duration>,
    /// Which of raw, exclusive, i_data_sem, in_flight to run; mount options (dioread_lock, …) are taken as well
    #[arg(long, value_name = "MODES", default_value = "raw,exclusive,i_data_sem,in_flight")]
    pub modes: ModeList,
    /// Where results go, in the shape of fio's JSON [default: ext4-dio.json in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where the picture goes, SVG [default: ext4-dio.svg in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Count guest instructions per I/O instead of time (QEMU's icount, one CPU)
    #[arg(long, conflicts_with = "gdb")]
    pub count_instructions: bool,
    /// Boot a guest that checks itself: debug assertions, overflow of numbers, and lockdep, which reports locks in a wrong order,
    /// sleeping under spinlocks and locks left held. Figures are not worth anything then
    #[arg(long, conflicts_with = "count_instructions")]
    pub debug: bool,
    /// Wait for gdb on port 1234 before the guest's first instruction
    #[arg(long)]
    pub gdb: bool,
}

impl Default for BootArgs {
    fn default() -> Self {
        BootArgs {
            jobs: Vec::new(),
            image: None,
            script: None,
            options: String::new(),
            smp: None,
            mem: 512 << 20,
            disk_delay: None,
            modes: ModeList(Mode::ALL.into()),
            json: None,
            plot: None,
            count_instructions: false,
            debug: false,
            gdb: false,
        }
    }
}

impl BootArgs {
    /// CPUs.
    pub fn cpus(&self) -> u32 {
        self.smp.unwrap_or(if self.count_instructions { 1 } else { 2 })
    }

    /// What a write takes longer.
    pub fn delay(&self) -> Duration {
        let none = self.count_instructions || self.script.is_some();
        self.disk_delay.unwrap_or(if none { Duration::ZERO } else { Duration::from_millis(2) })
    }
}

/// Splits off the number at the start.
fn number(s: &str) -> Result<(u64, &str), String> {
    let end = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let value = s[..end].parse().map_err(|_| format!("`{s}` does not start with a number"))?;
    Ok((value, &s[end..]))
}

pub(crate) fn memory(s: &str) -> Result<u64, String> {
    let (value, unit) = number(s)?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return Err(format!("`{unit}` is no unit; M and G are")),
    };
    let bytes = value.checked_mul(1 << shift).ok_or("too much")?;
    // Below, the guest's own tables do not fit; above, memory reaches past what it maps at boot.
    if (64 << 20..=64 << 30).contains(&bytes) { Ok(bytes) } else { Err("not between 64M and 64G".into()) }
}

pub(crate) fn delay(s: &str) -> Result<Duration, String> {
    let (value, unit) = number(s)?;
    let delay = match unit {
        "ns" => Duration::from_nanos(value),
        "us" => Duration::from_micros(value),
        "ms" => Duration::from_millis(value),
        "s" => Duration::from_secs(value),
        "" if value == 0 => Duration::ZERO,
        _ => return Err("write a unit: 2ms, 500us".into()),
    };
    if delay <= Duration::from_secs(10) { Ok(delay) } else { Err("more than 10 s".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn boot(args: &[&str]) -> Result<BootArgs, String> {
        let all = ["ext4-dio", "boot"].iter().chain(args);
        match Cli::try_parse_from(all).map_err(|e| e.to_string())?.command {
            Some(Command::Boot(args)) => Ok(args),
            _ => Err("not boot".into()),
        }
    }

    #[test]
    fn the_command_line_is_sound_and_its_defaults_are_the_default_run() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["ext4-dio"]).unwrap().command.is_none());
        assert_eq!(format!("{:?}", boot(&[]).unwrap()), format!("{:?}", BootArgs::default()));
        assert_eq!((boot(&[]).unwrap().cpus(), boot(&[]).unwrap().delay()), (2, Duration::from_millis(2)));
        let counting = boot(&["--count-instructions"]).unwrap();
        assert_eq!((counting.cpus(), counting.delay()), (1, Duration::ZERO));
    }

    #[test]
    fn values() {
        let a = boot(&[
            "a.fio",
            "b.fio",
            "--smp",
            "4",
            "--mem",
            "2G",
            "--disk-delay",
            "500us",
            "--modes",
            "raw,dioread_nolock",
        ]);
        let a = a.unwrap();
        assert_eq!(a.jobs.len(), 2);
        assert_eq!((a.cpus(), a.mem, a.delay()), (4, 2 << 30, Duration::from_micros(500)));
        assert_eq!(a.modes.0, [Mode::Raw, Mode::InFlight]);
        assert_eq!(boot(&["--disk-delay", "0"]).unwrap().delay(), Duration::ZERO);
    }

    #[test]
    fn wrong_values_are_named() {
        for (args, word) in [
            (&["--smp", "9"][..], "1..=8"),
            (&["--mem", "1M"], "64M"),
            (&["--mem", "4X"], "no unit"),
            (&["--disk-delay", "2"], "unit"),
            (&["--disk-delay", "1h"], "unit"),
            (&["--disk-delay", "99s"], "10 s"),
            (&["--modes", "raw,fast"], "`fast` is not one of raw, exclusive"),
            (&["--modes", ""], "is not one of"),
            (&["--what"], "--what"),
            (&["--gdb", "--count-instructions"], "cannot be used with"),
            (&["--script", "a", "b.fio"], "cannot be used with"),
            (&["--script", "a", "--modes", "raw"], "cannot be used with"),
            (&["--options", "ro"], "--script"),
        ] {
            let err = boot(args).unwrap_err();
            assert!(err.contains(word), "{args:?}: {err}");
        }
    }
}
