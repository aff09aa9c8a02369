// SPDX-License-Identifier: GPL-2.0-only
//! The programs the runner needs, and their installation where they are missing.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::proc;

/// A program and the Debian package it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Name of the executable.
    pub program: &'static str,
    /// Name of the package.
    pub package: &'static str,
}

/// The emulator.
pub const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };
/// What makes and checks file systems.
pub const E2FSPROGS: [Tool; 3] = [
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "e2fsck", package: "e2fsprogs" },
    Tool { program: "debugfs", package: "e2fsprogs" },
];
/// All that a run needs.
pub const ALL: [Tool; 4] = [QEMU, E2FSPROGS[0], E2FSPROGS[1], E2FSPROGS[2]];

/// Something is missing and cannot be installed from here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} missing, and {why}; install {packages}, for instance with `apt-get install {packages}`")]
pub struct Missing {
    /// Programs.
    pub what: String,
    /// Why the runner does not install them.
    pub why: &'static str,
    /// Debian's names.
    pub packages: String,
}

/// What installation needs to know of the machine; tests have their own.
pub trait Machine {
    /// Where a program is.
    fn find(&self, program: &str) -> Option<PathBuf>;
    /// Whether packages may be installed.
    fn is_root(&self) -> bool;
    /// Whether apt has package lists at all.
    fn has_package_lists(&self) -> bool;
    /// Runs a command in full view; tells whether it succeeded.
    ///
    /// # Errors
    ///
    /// It could not be run, or the user stopped it.
    fn run(&mut self, cmd: Command) -> Result<bool>;
    /// Tells the user.
    fn say(&mut self, line: &str);
}

/// This machine.
#[derive(Debug, Default)]
pub struct Host;

impl Machine for Host {
    fn find(&self, program: &str) -> Option<PathBuf> {
        proc::find_program(program)
    }

    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn has_package_lists(&self) -> bool {
        let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
        lists.map(|e| e.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
    }

    fn run(&mut self, cmd: Command) -> Result<bool> {
        // Mirrors can be slow, but nothing here waits for ever.
        Ok(proc::Proc::spawn(cmd)?.wait(Some(Duration::from_secs(900)))?.success())
    }

    fn say(&mut self, line: &str) {
        eprintln!("{line}");
    }
}

/// Installs what is missing of `tools`, saying each command before it runs.
///
/// # Errors
///
/// [`Missing`] without root or apt-get; else why the installation failed.
pub fn ensure(tools: &[Tool], machine: &mut dyn Machine) -> Result<()> {
    let missing: Vec<Tool> = tools.iter().copied().filter(|t| machine.find(t.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|t| t.package).collect();
    packages.dedup();
    let what = missing.iter().map(|t| t.program).collect::<Vec<_>>().join(", ");
    let fail = |why| Missing { what: what.clone(), why, packages: packages.join(" ") };
    if machine.find("apt-get").is_none() {
        bail!(fail("there is no apt-get here"));
    }
    if !machine.is_root() {
        bail!(fail("only root can install it"));
    }
    machine.say(&format!("{what}: not installed"));
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&packages);
    let fresh = !machine.has_package_lists();
    if fresh && !apt_get(machine, &["update"])? {
        bail!("`apt-get update` failed; install {} by hand", packages.join(" "));
    }
    // Lists that are there may be too old: then the packages they name are gone.
    let installed =
        apt_get(machine, &install)? || (!fresh && apt_get(machine, &["update"])? && apt_get(machine, &install)?);
    let left: Vec<&str> = tools.iter().filter(|t| machine.find(t.program).is_none()).map(|t| t.program).collect();
    if !installed || !left.is_empty() {
        bail!("`apt-get {}` did not bring {}; install it by hand", install.join(" "), what);
    }
    Ok(())
}

fn apt_get(machine: &mut dyn Machine, args: &[&str]) -> Result<bool> {
    let mut cmd = Command::new("apt-get");
    cmd.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    machine.say(&format!("running: DEBIAN_FRONTEND=noninteractive {}", proc::command_line(&cmd)));
    machine.run(cmd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake {
        installed: Vec<&'static str>,
        root: bool,
        lists: bool,
        /// Commands that fail, by their place.
        failing: Vec<usize>,
        ran: Vec<String>,
        said: Vec<String>,
    }

    impl Machine for Fake {
        fn find(&self, program: &str) -> Option<PathBuf> {
            self.installed.iter().find(|p| **p == program).map(PathBuf::from)
        }
        fn is_root(&self) -> bool {
            self.root
        }
        fn has_package_lists(&self) -> bool {
            self.lists
        }
        fn run(&mut self, cmd: Command) -> Result<bool> {
            let line = proc::command_line(&cmd);
            let ok = !self.failing.contains(&self.ran.len());
            assert!(self.said.last().unwrap().ends_with(&line), "said before it ran: {line}");
            if ok && line.contains(" install ") {
                self.installed.extend(ALL.iter().filter(|t| line.contains(t.package)).map(|t| t.program));
            }
            self.ran.push(line);
            Ok(ok)
        }
        fn say(&mut self, line: &str) {
            self.said.push(line.into());
        }
    }

    const INSTALL: &str = "apt-get install -y --no-install-recommends qemu-system-x86 e2fsprogs";

    #[test]
    fn nothing_runs_when_all_is_there() {
        let mut m = Fake { installed: ALL.iter().map(|t| t.program).collect(), ..Fake::default() };
        ensure(&ALL, &mut m).unwrap();
        assert!(m.ran.is_empty() && m.said.is_empty());
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let mut m = Fake {
            installed: vec!["apt-get", "mke2fs", "e2fsck", "debugfs"],
            root: true,
            lists: true,
            ..Fake::default()
        };
        ensure(&ALL, &mut m).unwrap();
        assert_eq!(m.ran, ["apt-get install -y --no-install-recommends qemu-system-x86"]);
    }

    #[test]
    fn lists_are_fetched_first_where_there_are_none() {
        let mut m = Fake { installed: vec!["apt-get"], root: true, ..Fake::default() };
        ensure(&ALL, &mut m).unwrap();
        assert_eq!(m.ran, ["apt-get update", INSTALL]);
    }

    #[test]
    fn old_lists_are_renewed() {
        let mut m = Fake { installed: vec!["apt-get"], root: true, lists: true, failing: vec![0], ..Fake::default() };
        ensure(&ALL, &mut m).unwrap();
        assert_eq!(m.ran, [INSTALL, "apt-get update", INSTALL]);
        let mut m =
            Fake { failing: vec![0, 2], installed: vec!["apt-get"], root: true, lists: true, ..Fake::default() };
        assert!(ensure(&ALL, &mut m).is_err());
    }

    #[test]
    fn without_root_or_apt_the_packages_are_named() {
        let mut m = Fake { installed: vec!["apt-get", "e2fsck"], ..Fake::default() };
        let err = ensure(&ALL, &mut m).unwrap_err();
        assert!(m.ran.is_empty());
        assert_eq!(
            err.to_string(),
            "qemu-system-x86_64, mke2fs, debugfs missing, and only root can install it; \
             install qemu-system-x86 e2fsprogs, for instance with `apt-get install qemu-system-x86 e2fsprogs`"
        );
        let mut m = Fake { root: true, ..Fake::default() };
        assert!(ensure(&ALL, &mut m).unwrap_err().is::<Missing>());
    }
}
