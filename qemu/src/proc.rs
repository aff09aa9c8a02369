// SPDX-License-Identifier: GPL-2.0-only
//! Child processes that end with the runner: whatever ends the runner (ctrl-C, a signal, a panic),
//! no QEMU, cargo or e2fsck stays behind.
//!
//! Each child is killed by the kernel when the thread that started it dies, sits in a process group
//! of its own (so a ctrl-C on the terminal reaches the runner alone, which decides what to end and
//! in which order) and is waited for with a limit.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

/// The user asked the runner to stop (ctrl-C, SIGTERM, SIGHUP).
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A child outlived its limit and was killed.
#[derive(Debug, thiserror::Error)]
#[error("{what} was killed: it had not ended after {} s", limit.as_secs())]
pub struct TimedOut {
    /// The program, for people.
    pub what: String,
    /// How long it had.
    pub limit: Duration,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static INTERRUPT_FD: OnceLock<OwnedFd> = OnceLock::new();

/// Turns ctrl-C, SIGTERM and SIGHUP into [`Interrupted`] errors of whatever waits. To be called once.
///
/// # Errors
///
/// The signal handler could not be installed.
pub fn catch_interrupts() -> Result<()> {
    let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?;
    if INTERRUPT_FD.set(fd).is_err() {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        if let Some(fd) = INTERRUPT_FD.get() {
            // It is never read, so it stays readable for everybody; a full counter is as good.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    })
    .context("signal handler")
}

/// Fails once the user has asked to stop.
///
/// # Errors
///
/// [`Interrupted`].
pub fn check_interrupt() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err(Interrupted) } else { Ok(()) }
}

/// Waits until one of `fds` can be read or is closed; tells which. None are ready when the time is up.
///
/// # Errors
///
/// [`Interrupted`], or poll(2)'s error.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<Vec<bool>> {
    let deadline = limit.map(|l| Instant::now() + l);
    loop {
        check_interrupt()?;
        let mut polls: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        if let Some(fd) = INTERRUPT_FD.get() {
            polls.push(PollFd::new(fd, PollFlags::IN));
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let spec = left.map(|l| Timespec { tv_sec: l.as_secs() as i64, tv_nsec: i64::from(l.subsec_nanos()) });
        match rustix::event::poll(&mut polls, spec.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(io::Error::from(e)).context("poll"),
        }
        check_interrupt()?;
        return Ok(polls.iter().take(fds.len()).map(|p| !p.revents().is_empty()).collect());
    }
}

/// A running child; killed with all of its process group when dropped.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    what: String,
}

impl Proc {
    /// Starts `cmd`; its stdin is empty.
    ///
    /// # Errors
    ///
    /// The program could not be started.
    pub fn spawn(mut cmd: Command) -> Result<Proc> {
        let what = cmd.get_program().to_string_lossy().into_owned();
        cmd.stdin(Stdio::null()).process_group(0);
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before that call: then nobody would end this child.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        };
        // SAFETY: between fork and exec the closure makes two system calls; it takes no lock and allocates nothing.
        unsafe { cmd.pre_exec(die_with_parent) };
        let mut child = cmd.spawn().with_context(|| format!("cannot start {what}"))?;
        let pidfd = rustix::process::pidfd_open(pid_of(&child), rustix::process::PidfdFlags::empty());
        match pidfd {
            Ok(pidfd) => Ok(Proc { child, pidfd, status: None, what }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(io::Error::from(e)).context("pidfd_open")
            }
        }
    }

    /// The child's standard output, if it was piped.
    pub(crate) fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// The child's standard error, if it was piped.
    pub(crate) fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Becomes readable when the child has ended.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its number, which is nobody else's until it has been waited for.
    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Waits for the end, at most `limit`; what has not ended by then is killed.
    ///
    /// # Errors
    ///
    /// [`TimedOut`], [`Interrupted`] (the child is killed then too), or waitpid(2)'s error.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<ExitStatus> {
        if self.status.is_none() {
            match wait_readable(&[self.pidfd.as_fd()], limit) {
                Ok(ready) if ready == [true] => {}
                Ok(_) => {
                    self.kill();
                    bail!(TimedOut { what: self.what.clone(), limit: limit.unwrap_or_default() });
                }
                Err(e) => {
                    self.kill();
                    return Err(e);
                }
            }
        }
        self.reap()
    }

    /// Collects a child that has ended, or waits for it without a limit.
    fn reap(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.what))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Ends the child and its group at once; nothing happens if it has ended already.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // The child is not reaped yet, so its number cannot be somebody else's.
            let _ = rustix::process::kill_process_group(pid_of(&self.child), Signal::KILL);
            let _ = self.reap();
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// What a tool said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output and standard error, as they came.
    pub text: String,
}

/// Runs `cmd` to its end and collects what it says.
///
/// # Errors
///
/// As [`Proc::spawn`] and [`Proc::wait`]; a failing exit status is not an error here.
pub fn capture(mut cmd: Command, limit: Duration) -> Result<Output> {
    // A file rather than a pipe: nobody has to drain it while the tool runs.
    let mut out = tempfile::tempfile().context("temporary file")?;
    cmd.stdout(dup(&out)?).stderr(dup(&out)?);
    let status = Proc::spawn(cmd)?.wait(Some(limit))?;
    let mut bytes = Vec::new();
    out.rewind()?;
    out.read_to_end(&mut bytes)?;
    Ok(Output { status, text: String::from_utf8_lossy(&bytes).into_owned() })
}

/// Runs `cmd` to its end and wants success.
///
/// # Errors
///
/// As [`capture`]; a failing exit status becomes an error with the command line and what it said.
pub fn succeed(cmd: Command, limit: Duration) -> Result<String> {
    let line = command_line(&cmd);
    let out = capture(cmd, limit)?;
    if !out.status.success() {
        bail!("`{line}` failed ({}):\n{}", out.status, out.text.trim_end());
    }
    Ok(out.text)
}

fn dup(file: &File) -> Result<Stdio> {
    Ok(file.try_clone().context("temporary file")?.into())
}

/// `cmd` as one would type it.
pub fn command_line(cmd: &Command) -> String {
    let words = std::iter::once(cmd.get_program()).chain(cmd.get_args());
    let quoted = words.map(|w| {
        let w = w.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+%@".contains(c);
        if !w.is_empty() && w.chars().all(plain) { w.into_owned() } else { format!("'{}'", w.replace('\'', r"'\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Finds a program in `PATH` and in the places where Debian keeps the administrator's tools, which are not in every
/// user's `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name))
        .find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

/// A command for a program that [`find_program`] knows.
///
/// # Errors
///
/// The program is not installed.
pub fn tool(name: &str) -> Result<Command> {
    let path = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let mut cmd = Command::new(path);
    // Messages are matched and shown: one language.
    cmd.env("LC_ALL", "C");
    Ok(cmd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut cmd = Command::new("/bin/sh");
        cmd.args(["-c", script]);
        cmd
    }

    #[test]
    fn capture_keeps_both_streams_and_the_status() {
        let out = capture(sh("echo one; echo two >&2; exit 3"), Duration::from_secs(20)).unwrap();
        assert_eq!((out.text.as_str(), out.status.code()), ("one\ntwo\n", Some(3)));
        let err = succeed(sh("echo why >&2; exit 4"), Duration::from_secs(20)).unwrap_err().to_string();
        assert!(err.contains("why") && err.contains("exit status: 4"), "{err}");
    }

    #[test]
    fn a_child_that_does_not_end_is_killed_with_its_children() {
        let (reader, writer) = io::pipe().unwrap();
        let mut cmd = sh("sleep 1000 & sleep 1000");
        cmd.stdout(writer);
        let mut proc = Proc::spawn(cmd).unwrap();
        let err = proc.wait(Some(Duration::ZERO)).unwrap_err();
        assert!(err.is::<TimedOut>(), "{err}");
        drop(proc);
        // The grandchild held the pipe too: it ends only when both are gone.
        let mut rest = String::new();
        { reader }.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }

    #[test]
    fn command_lines_can_be_pasted() {
        let mut cmd = Command::new("debugfs");
        cmd.args(["-R", "dump /it's x", ""]);
        assert_eq!(command_line(&cmd), r"debugfs -R 'dump /it'\''s x' ''");
    }
}
