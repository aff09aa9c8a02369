// SPDX-License-Identifier: GPL-2.0-only
//! Where the log goes: to a file, to standard error, or, in the background, to the system's log once it is mounted.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, OnceLock, PoisonError};

use kernel_shim::printk::{KERN_ERR, KERN_INFO, set_sink};

/// Where lines go.
#[derive(Debug)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// Nowhere until it is known whether the mount succeeds: then to the system's log, else to standard error. Who mounts in a script
    /// expects no words from what goes well.
    Held(Vec<(u8, String)>),
    /// `/dev/log`, if somebody listens there.
    Syslog,
    /// A file.
    File(File),
}

static TARGET: OnceLock<Mutex<Target>> = OnceLock::new();

/// Sends all lines to `target`: the file system's, fuser's, and this program's.
pub fn set(target: Target) {
    let mut target = Some(target);
    let lock = TARGET.get_or_init(|| Mutex::new(target.take().unwrap_or(Target::Stderr)));
    if let Some(target) = target {
        let before = std::mem::replace(&mut *lock.lock().unwrap_or_else(PoisonError::into_inner), target);
        if let Target::Held(lines) = before {
            lines.iter().for_each(|(level, text)| line(*level, text));
        }
    }
    set_sink(Some(Box::new(line)));
    // A second call finds it there.
    let _ = ::log::set_logger(&Fuser);
    ::log::set_max_level(::log::LevelFilter::Warn);
    // In the background nobody sees standard error.
    std::panic::set_hook(Box::new(|panic| error(&panic.to_string())));
}

/// If lines are held, it is known now that there is no mount.
pub fn tell() {
    let held = TARGET
        .get()
        .is_some_and(|target| matches!(*target.lock().unwrap_or_else(PoisonError::into_inner), Target::Held(_)));
    if held {
        set(Target::Stderr);
    }
}

/// Logs an error.
pub fn error(text: &str) {
    line(KERN_ERR, text);
}

/// Logs something worth knowing.
pub fn info(text: &str) {
    line(KERN_INFO, text);
}

fn line(level: u8, text: &str) {
    let target = TARGET.get_or_init(|| Mutex::new(Target::Stderr));
    // What cannot be logged is lost.
    let _ = match &mut *target.lock().unwrap_or_else(PoisonError::into_inner) {
        Target::Stderr => writeln!(std::io::stderr(), "ext4-dio-fuse: {text}"),
        Target::Held(lines) => {
            lines.push((level, text.to_string()));
            Ok(())
        }
        Target::File(file) => writeln!(file, "<{level}>{text}"),
        Target::Syslog => syslog(level, text),
    };
}

/// RFC 3164: facility "daemon" is 3.
fn syslog(level: u8, text: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let line = format!("<{}>ext4-dio-fuse[{}]: {text}", 3 << 3 | level, std::process::id());
    socket.send_to(line.as_bytes(), "/dev/log").map(drop)
}

/// fuser's lines.
struct Fuser;

impl ::log::Log for Fuser {
    fn enabled(&self, metadata: &::log::Metadata<'_>) -> bool {
        metadata.level() <= ::log::Level::Warn
    }

    fn log(&self, record: &::log::Record<'_>) {
        if self.enabled(record.metadata()) {
            error(&format!("{}", record.args()));
        }
    }

    fn flush(&self) {}
}
