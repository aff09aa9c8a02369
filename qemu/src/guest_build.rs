// SPDX-License-Identifier: GPL-2.0-only
//! Builds the guest, a crate of its own workspace, for the machine it boots on.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::proc::Proc;

/// Longest that the build may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// Where cargo puts what it builds, the runner's own reports too.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        _ => Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"),
    }
}

/// Whether an environment variable of the cargo that runs us would change what the guest's cargo does.
pub(crate) fn leaks(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_TERM_", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    let cargo = name.starts_with("CARGO") && !kept.iter().any(|k| name.starts_with(k));
    // The outer job server's pipes are not ours to inherit; wrappers belong to clippy or rustdoc of the outer build.
    cargo
        || ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_WORKSPACE_WRAPPER", "MAKEFLAGS", "MFLAGS", "LD_LIBRARY_PATH"]
            .contains(&name)
}

/// The command that builds the guest, or the one that checks itself.
fn command(guest: &Path, target: &Path, debug: bool, env: impl Iterator<Item = OsString>) -> Command {
    let cargo = std::env::var_os("CARGO").filter(|c| !c.is_empty()).unwrap_or_else(|| "cargo".into());
    let mut cmd = Command::new(cargo);
    cmd.arg("build");
    cmd.args(if debug { &["--profile=checked", "--features=lockdep"][..] } else { &["--release"] });
    cmd.args(["--message-format=json-render-diagnostics", "--target-dir"]).arg(target);
    // Cargo reads the guest's .cargo/config.toml (target, linker script) because it runs there.
    cmd.current_dir(guest);
    for name in env.filter(|n| leaks(&n.to_string_lossy())) {
        cmd.env_remove(name);
    }
    cmd
}

/// Builds the guest, with `debug` the one that checks itself, and returns its ELF file. Cargo's progress goes to stderr.
///
/// # Errors
///
/// Cargo could not be run, or the guest does not compile.
pub fn build(debug: bool) -> Result<PathBuf> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let mut cmd = command(&guest, &target_dir().join("guest"), debug, std::env::vars_os().map(|(name, _)| name));
    let mut messages = tempfile::tempfile().context("temporary file")?;
    cmd.stdout(messages.try_clone()?);
    let status = Proc::spawn(cmd)?.wait(Some(LIMIT))?;
    if !status.success() {
        bail!("the guest in {} does not build ({status})", guest.display());
    }
    messages.rewind()?;
    executable(messages).with_context(|| format!("cargo built no executable in {}", guest.display()))
}

/// The executable that cargo's messages name.
fn executable(messages: File) -> Option<PathBuf> {
    let mut found = None;
    for line in BufReader::new(messages).lines().map_while(Result::ok) {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        if let Some(path) = message["executable"].as_str() {
            found = Some(PathBuf::from(path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_outer_cargo_does_not_leak() {
        for name in
            ["CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTFLAGS", "CARGO_MAKEFLAGS"]
        {
            assert!(leaks(name), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"]
        {
            assert!(!leaks(name), "{name}");
        }
        let env = ["RUSTFLAGS", "PATH"].map(OsString::from).into_iter();
        let cmd = command(Path::new("/g"), Path::new("/t"), false, env);
        let removed: Vec<_> = cmd.get_envs().map(|(k, v)| (k.to_owned(), v.is_none())).collect();
        assert_eq!(removed, [(OsString::from("RUSTFLAGS"), true)]);
        assert_eq!(cmd.get_current_dir(), Some(Path::new("/g")));
    }

    #[test]
    fn the_executable_is_read_from_cargos_messages() {
        let mut f = tempfile::tempfile().unwrap();
        writeln!(f, r#"{{"reason":"compiler-artifact","executable":null}}"#).unwrap();
        writeln!(f, "not JSON").unwrap();
        writeln!(f, r#"{{"reason":"compiler-artifact","executable":"/t/guest"}}"#).unwrap();
        writeln!(f, r#"{{"reason":"build-finished","success":true}}"#).unwrap();
        f.rewind().unwrap();
        assert_eq!(executable(f), Some(PathBuf::from("/t/guest")));
        assert_eq!(executable(tempfile::tempfile().unwrap()), None);
    }
}
