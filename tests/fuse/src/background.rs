// SPDX-License-Identifier: GPL-2.0-only
//! A process that stays when the one that was called has gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::exit;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

use crate::daemon::Error;

/// What the child says when it is mounted. Anything else is its error.
const MOUNTED: &[u8] = b"\0mounted";

/// Forks, and lets the child run `f`; returns in the parent when the child calls what `f` was given, or with its error. In the child it
/// does not return. To be called while the process has one thread.
pub fn run(f: impl FnOnce(&mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>) -> Result<(), Error> {
    let (told, tell) = pipe().map_err(|errno| Error::new("pipe", errno.into()))?;
    // SAFETY: There is one thread, so no lock that the child needs is held by somebody who is not in it.
    match unsafe { fork() }.map_err(|errno| Error::new("fork", errno.into()))? {
        ForkResult::Parent { child } => {
            drop(tell);
            parent(child, File::from(told))
        }
        ForkResult::Child => {
            drop(told);
            child(File::from(tell), f)
        }
    }
}

/// Waits for what the child has to say.
fn parent(child: Pid, mut told: File) -> Result<(), Error> {
    let mut text = Vec::new();
    // Over when the child closes its end, or is gone.
    let read = told.read_to_end(&mut text);
    if text == MOUNTED {
        return Ok(());
    }
    // It has ended, or is about to.
    let status = waitpid(child, None);
    if text.is_empty() {
        return Err(Error::text(format!("the process that was to serve ended: {status:?}, {read:?}")));
    }
    Err(Error::text(String::from_utf8_lossy(&text).into_owned()))
}

fn child(tell: File, f: impl FnOnce(&mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>) -> ! {
    let mut tell = Some(tell);
    let done = f(&mut || {
        let Some(mut pipe) = tell.take() else { return Ok(()) };
        leave_terminal().map_err(|error| Error::new("leaving the terminal", error))?;
        // A parent that was killed meanwhile misses nothing.
        let _ = pipe.write_all(MOUNTED);
        Ok(())
    });
    match (done, tell) {
        (Ok(()), _) => exit(0),
        (Err(error), Some(mut pipe)) => {
            let _ = pipe.write_all(error.to_string().as_bytes());
            exit(1)
        }
        (Err(error), None) => {
            crate::log::error(&error.to_string());
            exit(1)
        }
    }
}

/// A session of its own, no directory that somebody may want to unmount, and nothing of the terminal.
fn leave_terminal() -> io::Result<()> {
    setsid()?;
    chdir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    dup2_stderr(null.as_fd())?;
    Ok(())
}
