// SPDX-License-Identifier: GPL-2.0-only
//! Tests that are run again, each in a process of its own: with a fix of the code switched off, which holds for a whole
//! process.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use kernel_shim::testing::REVERT_VAR;

/// How long a test may take without its fix: if it hangs, it has noticed.
const GIVE_UP: Duration = Duration::from_secs(20);
/// How long with all: none should come near, on the slowest machine.
const NEVER: Duration = Duration::from_secs(300);

/// Runs one test of this binary again, in a process of its own, with a fix switched off or with all. What it came to,
/// in a word, and what it printed.
pub fn run_alone(test: &str, reverted: Option<&str>) -> (&'static str, String) {
    run_within(if reverted.is_some() { GIVE_UP } else { NEVER }, test, reverted)
}

fn run_within(patience: Duration, test: &str, reverted: Option<&str>) -> (&'static str, String) {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env_remove(REVERT_VAR).stdin(Stdio::null());
    if let Some(fix) = reverted {
        command.env(REVERT_VAR, fix);
    }
    let (mut out, to) = std::io::pipe().expect("a pipe");
    let mut child = command.stdout(to.try_clone().expect("a pipe")).stderr(to).spawn().expect("the test binary runs");
    // The command has the pipe's other end, too.
    drop(command);
    let (done, is_done) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = out.read_to_end(&mut text);
        // Nobody listens if it took too long.
        let _ = done.send(());
        read.map(|_| String::from_utf8_lossy(&text).into_owned()).expect("readable")
    });
    let hung = is_done.recv_timeout(patience).is_err();
    if hung {
        child.kill().expect("it is ours");
    }
    let status = child.wait().expect("it is ours");
    let text = reader.join().expect("no panic");
    assert!(text.contains("running 1 test\n"), "no such test: {test}: {text}");
    let failed = text.contains(&format!("\n    {test}\n\ntest result: FAILED. 0 passed; 1 failed"))
        && text.contains("panicked at");
    match (hung, status.success(), failed) {
        (true, ..) => ("hangs", text),
        (false, true, _) => ("passes", text),
        (false, false, true) => ("fails", text),
        // A signal, say: no assertion saw to that.
        (false, false, false) => ("dies", text),
    }
}

/// Whether `test` of this binary notices that the fix called `fix` is switched off, and what it printed: it is waited for until it has
/// said so, on a busy machine too.
pub fn fails_without(test: &str, fix: &str) -> (bool, String) {
    let (came_to, text) = run_within(NEVER, test, Some(fix));
    (came_to != "passes", text)
}
