// SPDX-License-Identifier: GPL-2.0-only
//! Linux in the same machine as our guest: Debian's kernel, busybox and fio.
//!
//! ```text
//! sources ─ apt       Debian's packages, through an apt state of our own
//! initramfs           what Linux starts with
//! fio                 our jobs as fio's job files, and what fio tells
//! this module         the machine: starts it, gives it commands, and sees to it that nothing hangs
//! ```

pub mod apt;
pub mod fio;
pub mod initramfs;
pub mod sources;

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::proc::Interrupted;
use crate::qemu::{Config, Machine, escaped};
use crate::run::{End, Msg, Vm};

/// How often Linux is started before it is given up.
const TRIES: u32 = 5;
/// What it has from power on to its first command.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// What it has to unmount and power off.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Lines of its console that are kept.
const LOG_LINES: usize = 2000;
/// Kernel parameters: no work-arounds for faults of CPUs that QEMU does not have, the clock that our guest uses, and no test
/// of a timer that a busy machine fails.
const COMMAND_LINE: &str = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable clocksource=tsc no_timer_check no5lvl \
                            panic=-1 nmi_watchdog=0 nowatchdog";

/// Linux ended, or did not get on.
#[derive(Debug, thiserror::Error)]
#[error("Linux {what}; the end of its console:\n{log}")]
pub struct Died {
    /// What happened, while what.
    pub what: String,
    /// Its last lines.
    pub log: String,
}

/// A machine with Linux on it.
#[derive(Debug)]
pub struct LinuxGuest<V = Machine> {
    vm: V,
    commands: Option<UnixStream>,
    log: VecDeque<String>,
    /// What QEMU itself printed since somebody last looked.
    said: Vec<String>,
    /// As `uname -r` says.
    pub release: String,
}

/// What `config` needs to be a machine for Linux: `socket` is where commands go in.
pub fn dress(config: &mut Config, socket: &Path) {
    let words = ["-append", COMMAND_LINE, "-chardev"].map(Into::into);
    config.extra.extend(words);
    config.extra.push(format!("socket,id=commands,path={},server=on,wait=off", escaped(socket)).into());
    config.extra.extend(["-serial", "chardev:commands"].map(Into::into));
}

impl LinuxGuest {
    /// Boots Linux; again if it dies before it has come up, which it does now and then where QEMU translates its code while
    /// another CPU changes it.
    ///
    /// # Errors
    ///
    /// It does not come up, or the user stops it.
    pub fn boot(config: &Config, socket: &Path) -> Result<LinuxGuest> {
        let mut tries = 1;
        loop {
            // QEMU does not bind a socket that is there.
            let _ = std::fs::remove_file(socket);
            let mut guest = LinuxGuest::around(Machine::boot(config)?);
            match guest.wait_ready(BOOT_LIMIT) {
                Ok(()) => {
                    guest.commands = Some(UnixStream::connect(socket).context("the socket of Linux' commands")?);
                    return Ok(guest);
                }
                Err(e) => {
                    let Some(died) = e.downcast_ref::<Died>().filter(|_| tries < TRIES) else { return Err(e) };
                    let words =
                        died.log.lines().find(|l| l.contains("panic")).or(died.log.lines().last()).unwrap_or("");
                    eprintln!("Linux {} (`{}`): starting it again, try {tries} of {TRIES}", died.what, words.trim());
                    tries += 1;
                }
            }
        }
    }

    /// Stops it while something else is measured, or lets it go on. A monitor that does not answer costs some noise only.
    pub fn pause(&self, paused: bool) {
        if let Err(e) = self.vm.pause(paused) {
            eprintln!("Linux is not {}: {e:#}", if paused { "stopped" } else { "going on" });
        }
    }
}

impl<V: Vm> LinuxGuest<V> {
    fn around(vm: V) -> Self {
        LinuxGuest { vm, commands: None, log: VecDeque::new(), said: Vec::new(), release: String::new() }
    }

    fn died(&self, what: String) -> anyhow::Error {
        let tail = self.log.iter().skip(self.log.len().saturating_sub(30));
        Died { what, log: tail.map(|l| format!("  {l}\n")).collect() }.into()
    }

    /// Takes lines until `take` has what it wants.
    fn lines<T>(&mut self, limit: Duration, what: &str, mut take: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = self.vm.now() + limit;
        loop {
            let left = deadline.saturating_sub(self.vm.now());
            let msg = self.vm.next(left).inspect_err(|Interrupted| self.vm.kill())?;
            let line = match msg {
                Msg::Line(line) => line,
                Msg::Stderr(line) => {
                    self.said.push(line);
                    continue;
                }
                Msg::End(end) => {
                    let how = match end {
                        End::Code(n) => format!("QEMU's exit status {n}"),
                        End::Signal(n) => format!("QEMU was ended by signal {n}"),
                    };
                    return Err(self.died(format!("ended while {what} ({how})")));
                }
                Msg::Quiet if left.is_zero() => {
                    self.vm.kill();
                    return Err(self.died(format!("did not get on: {what} took longer than {} s", limit.as_secs())));
                }
                Msg::Quiet => continue,
            };
            if self.log.len() == LOG_LINES {
                self.log.pop_front();
            }
            let found = take(&line);
            self.log.push_back(line);
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        // Something may stand before it on the console's line.
        let ready = |line: &str| line.split_once("@ready ").map(|(_, release)| release.trim().to_string());
        self.release = self.lines(limit, "booting", ready)?;
        Ok(())
    }

    /// Runs a shell command; what it prints. `what` is for messages.
    ///
    /// # Errors
    ///
    /// The command fails; [`Died`] if Linux did, or the time is up.
    pub fn run(&mut self, command: &str, what: &str, limit: Duration) -> Result<String> {
        self.said.clear();
        let commands = self.commands.as_mut().context("Linux takes no commands")?;
        if let Err(e) = writeln!(commands, "{command}") {
            return Err(self.died(format!("took no command while {what} ({e})")));
        }
        let mut out = String::new();
        let status = self.lines(limit, what, |line| match line.split_once("@done ") {
            Some((before, status)) => {
                out.push_str(before);
                Some(status.trim().to_string())
            }
            None => {
                out.push_str(line);
                out.push('\n');
                None
            }
        })?;
        if status != "0" {
            bail!("in Linux, {what}: exit status {status}: {}", out.trim());
        }
        Ok(out)
    }

    /// What QEMU itself printed while the last command ran; waits until `want` lines have come, for a moment.
    pub fn said(&mut self, want: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.said.len() < want && Instant::now() < deadline {
            match self.vm.next(Duration::from_millis(100)) {
                Ok(Msg::Stderr(line)) => self.said.push(line),
                Ok(Msg::Line(line)) => self.log.push_back(line),
                Ok(Msg::Quiet) => {}
                Ok(Msg::End(_)) | Err(Interrupted) => break,
            }
        }
        std::mem::take(&mut self.said)
    }

    /// Unmounts everything and powers off.
    ///
    /// # Errors
    ///
    /// It could not unmount, or did not end.
    pub fn shut_down(mut self) -> Result<()> {
        self.run("cd /; umount /mnt/ext4 /mnt/xfs && sync", "unmounting", END_LIMIT)?;
        if let Some(commands) = &mut self.commands {
            let _ = writeln!(commands, "echo o > /proc/sysrq-trigger; sleep 60");
        }
        let deadline = self.vm.now() + END_LIMIT;
        while self.vm.now() < deadline {
            if let Msg::End(_) = self.vm.next(Duration::from_secs(1))? {
                return Ok(());
            }
        }
        // Its disks are unmounted: nothing is lost.
        self.vm.kill();
        Ok(())
    }
}

/// Where a fetched Linux lies.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its files.
    pub unpacked: initramfs::Unpacked,
    /// Everything that was fetched.
    pub cache: PathBuf,
}

/// Fetches Debian's kernel and busybox into `cache`, where they are not there already.
///
/// # Errors
///
/// No apt, no network, no space, no such kernel.
pub fn fetch(cache: &Path, wanted: Option<&str>) -> Result<Fetched> {
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let apt = apt::Apt::new(&cache.join("apt"))?;
    apt.update()?;
    let kernel = apt.kernel(wanted)?;
    let unpacked = initramfs::unpack(&apt, &kernel, cache)?;
    Ok(Fetched { unpacked, cache: cache.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that says what it is told to.
    #[derive(Debug)]
    struct Script {
        says: VecDeque<Msg>,
        now: Duration,
        killed: bool,
    }

    impl Vm for Script {
        fn next(&mut self, limit: Duration) -> Result<Msg, Interrupted> {
            Ok(self.says.pop_front().unwrap_or_else(|| {
                self.now += limit;
                Msg::Quiet
            }))
        }
        fn now(&self) -> Duration {
            self.now
        }
        fn registers(&mut self) -> Result<String> {
            bail!("none")
        }
        fn inject_nmi(&mut self) -> Result<()> {
            bail!("none")
        }
        fn kill(&mut self) {
            self.killed = true;
        }
    }

    fn guest(says: &[Msg]) -> (LinuxGuest<Script>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let vm = Script { says: says.iter().cloned().collect(), now: Duration::ZERO, killed: false };
        let mut guest = LinuxGuest::around(vm);
        guest.commands = Some(ours);
        (guest, theirs)
    }

    fn line(s: &str) -> Msg {
        Msg::Line(s.into())
    }

    const LIMIT: Duration = Duration::from_secs(9);

    #[test]
    fn commands_and_what_they_print() {
        let (mut g, theirs) = guest(&[
            line("[    0.1] hello"),
            line("x@ready 7.3.4"),
            Msg::Stderr("MARK,0".into()),
            line("one"),
            line("two@done 0"),
            line("bad"),
            line("@done 3"),
        ]);
        g.wait_ready(LIMIT).unwrap();
        assert_eq!(g.release, "7.3.4");
        assert_eq!(g.run("do this", "doing", LIMIT).unwrap(), "one\ntwo");
        assert_eq!(g.said(1), ["MARK,0"]);
        let e = g.run("do that", "doing that", LIMIT).unwrap_err();
        assert_eq!(e.to_string(), "in Linux, doing that: exit status 3: bad");
        assert!(!e.is::<Died>());
        drop(g);
        let mut sent = String::new();
        std::io::Read::read_to_string(&mut { theirs }, &mut sent).unwrap();
        assert_eq!(sent, "do this\ndo that\n");
    }

    #[test]
    fn the_end_and_a_hang_name_what_was_under_way() {
        let (mut g, _theirs) = guest(&[line("Kernel panic"), Msg::End(End::Code(0))]);
        let e = g.wait_ready(LIMIT).unwrap_err();
        assert!(e.is::<Died>() && e.to_string().contains("ended while booting (QEMU's exit status 0)"), "{e}");
        assert!(e.to_string().contains("Kernel panic"), "{e}");
        let (mut g, _theirs) = guest(&[line("a")]);
        let e = g.run("x", "running fio", LIMIT).unwrap_err();
        assert!(e.to_string().contains("running fio took longer than 9 s") && g.vm.killed, "{e}");
        let (mut g, theirs) = guest(&[]);
        drop(theirs);
        assert!(
            g.run("x", "running fio", LIMIT).unwrap_err().to_string().contains("took no command while running fio")
        );
    }

    #[test]
    fn it_unmounts_before_it_ends() {
        let (g, theirs) = guest(&[line("@done 0"), Msg::End(End::Code(0))]);
        g.shut_down().unwrap();
        let mut sent = String::new();
        std::io::Read::read_to_string(&mut { theirs }, &mut sent).unwrap();
        assert!(sent.starts_with("cd /; umount /mnt/ext4 /mnt/xfs"), "{sent}");
        let (g, _theirs) = guest(&[line("umount: busy"), line("@done 1")]);
        assert!(g.shut_down().unwrap_err().to_string().contains("umount: busy"));
    }
}
