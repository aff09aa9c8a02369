// SPDX-License-Identifier: GPL-2.0-only
//! The command line: a user's, or mount(8)'s, which calls `/sbin/mount.TYPE SOURCE DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::options::Options;
use crate::{background, daemon, log};

/// What a mount without `subtype=` is of: its type is `fuse.` and this.
const SUBTYPE: &str = "ext4-dio-fuse";

/// Exit codes of mount(8).
mod code {
    /// Wrong words on the command line.
    pub(super) const USAGE: u8 = 1;
    /// It could not be mounted, or what was written could not be brought to the disk.
    pub(super) const FAIL: u8 = 32;
}

/// Mounts an ext4 file system over FUSE, with ext4-dio
#[derive(Debug, Parser)]
#[command(name = "ext4-dio-fuse", version, disable_version_flag = true)]
struct Cli {
    /// Image file or block device
    image: PathBuf,
    /// Directory to mount it on
    mountpoint: PathBuf,
    /// Mount options, separated by commas: those of ext4 and of FUSE; threads=N, page_cache=auto|ours|kernel
    #[arg(short, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Stay in the foreground, and log to standard error [as mount(8)'s helper: do not mount]
    #[arg(short)]
    foreground: bool,
    /// Tell at the end how many requests there were at once
    #[arg(short)]
    verbose: bool,
    /// Mount read-only
    #[arg(short)]
    read_only: bool,
    /// Mount read-write
    #[arg(short = 'w')]
    read_write: bool,
    /// Leave out options that nobody knows
    #[arg(short)]
    sloppy: bool,
    /// Do not write /etc/mtab: it is never written
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Type, as mount(8) says it: what is behind fuse. is the subtype
    #[arg(short = 't', value_name = "TYPE")]
    fstype: Option<String>,
    /// Append the log to a file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// What to do, from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Image file or block device.
    pub image: PathBuf,
    /// Directory to mount on.
    pub mountpoint: PathBuf,
    /// `-o`, and what the type says.
    pub options: Options,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Look at everything, and do not mount.
    pub fake: bool,
    /// Tell more.
    pub verbose: bool,
    /// Where the log goes.
    pub log: Option<PathBuf>,
}

impl Request {
    /// Reads the command line; `args` begins with the name that the program was called by. The error is what to print.
    ///
    /// # Errors
    ///
    /// clap's, with text and exit code of their own (`--help` is one), for words that it does not know and options that nobody knows.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let args: Vec<OsString> = args.into_iter().collect();
        let called = args.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or_default();
        let helper = called.strip_prefix("mount.");
        let cli = Cli::try_parse_from(&args)?;
        let mut words = cli.options;
        if cli.read_only {
            words.push("ro".to_string());
        }
        if cli.read_write {
            words.push("rw".to_string());
        }
        let mut options = Options::parse(&words.join(","), cli.sloppy)
            .map_err(|error| clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{error}\n")))?;
        let fstype = cli.fstype.as_deref().or(helper).filter(|fstype| *fstype != "fuse");
        let subtype = fstype.map_or(SUBTYPE, |fstype| fstype.strip_prefix("fuse.").unwrap_or(fstype));
        options.subtype.get_or_insert_with(|| subtype.to_string());
        Ok(Self {
            image: cli.image,
            mountpoint: cli.mountpoint,
            options,
            foreground: cli.foreground && helper.is_none(),
            fake: cli.foreground && helper.is_some(),
            verbose: cli.verbose && helper.is_none(),
            log: cli.log,
        })
    }
}

/// The program: parses, mounts, and serves until the end. In the background the process that was called ends when it is mounted.
pub fn main() -> ExitCode {
    let request = match Request::parse(std::env::args_os()) {
        Ok(request) => request,
        Err(error) => {
            // Nowhere to print it to is no reason to say anything else.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(code::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if request.fake {
        return ExitCode::SUCCESS;
    }
    let done = match request.foreground {
        true => daemon::serve(&request, || Ok(())),
        false => background::run(|mounted| {
            let done = daemon::serve(&request, mounted);
            if done.is_err() {
                log::tell();
            }
            done
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ext4-dio-fuse: {error}");
            ExitCode::from(code::FAIL)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Request, clap::Error> {
        Request::parse(words.split(' ').map(OsString::from))
    }

    #[test]
    fn a_user_s_command_line() {
        let request = parse("ext4-dio-fuse disk.img /mnt -o ro,noatime -f -v -o allow_other").expect("good words");
        assert!(request.foreground && request.verbose && !request.fake && request.options.read_only);
        assert_eq!(request.options.subtype.as_deref(), Some(SUBTYPE));
        assert_eq!(request.options.acl, fuser::SessionACL::All);
        assert!(!parse("/usr/bin/ext4-dio-fuse disk.img /mnt").expect("good words").foreground);
    }

    #[test]
    fn mount_s_command_line() {
        let request = parse("/sbin/mount.fuse.ext4 /dev/loop0 /mnt -n -s -v -o rw,frob,dev,suid").expect("good words");
        assert!(!request.foreground && !request.fake);
        assert_eq!(request.options.subtype.as_deref(), Some("ext4"));
        let request = parse("/sbin/mount.fuse /dev/loop0 /mnt -f -r -t fuse.other -o rw").expect("good words");
        assert!(request.fake && request.options.read_only);
        assert_eq!(request.options.subtype.as_deref(), Some("other"));
        let request = parse("mount.ext4-dio-fuse a b -t fuse -o subtype=x").expect("good words");
        assert_eq!(request.options.subtype.as_deref(), Some("x"));
    }

    #[test]
    fn errors_name_the_word() {
        for (words, named) in [("x img dir -o frob", "frob"), ("x img dir --frob", "--frob"), ("x img", "MOUNTPOINT")] {
            let error = parse(words).expect_err(words).to_string();
            assert!(error.to_lowercase().contains(&named.to_lowercase()), "{error}");
        }
    }
}
