// SPDX-License-Identifier: GPL-2.0-only
//! Instructions per write, counted by callgrind: a figure that other load on the machine does not touch.
//!
//! The benchmark runs itself under valgrind, twice for each subject, with few writes and with many. The difference has
//! neither start nor end in it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::subject::{Disk, Mode, Prepared, Subject};

/// Tells a process that it is the one that is counted: `SUBJECT WRITES BLOCKS IMAGE`.
const CHILD_VAR: &str = "EXT4_DIO_BENCH_COUNTED";
/// MiB of the file: it is loaded under valgrind, and what is counted does not depend on it.
pub(crate) const MIB: u64 = 1;
/// Writes of the two runs.
const WRITES: [u64; 2] = [1 << 10, 5 << 10];

fn subjects() -> Vec<Subject> {
    let mut all = vec![Subject::Loop, Subject::Memcpy, Subject::Bio(Disk::Null)];
    all.extend(Mode::ALL.map(|mode| Subject::Sync(Disk::Null, mode)));
    all.extend(Mode::ALL.map(|mode| Subject::Async(Disk::Null, mode)));
    all
}

/// Does what is counted, if this process is meant to; whether it was.
pub(crate) fn child() -> bool {
    let Ok(order) = std::env::var(CHILD_VAR) else { return false };
    let mut words = order.splitn(4, ' ');
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number");
    let (subject, writes, blocks) = (number(), number(), number());
    let image = words.next().expect("an image");
    let prepared = Prepared::new(subjects()[subject as usize], Path::new(image), blocks);
    prepared.writer(0).run(writes);
    prepared.finish();
    true
}

/// Instructions that this program executes for `subject` with so many writes.
fn count(subject: usize, writes: u64, image: &Path) -> Result<u64, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(exe);
    valgrind.env(CHILD_VAR, format!("{subject} {writes} {} {}", MIB << 8, image.display()));
    let output = valgrind.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(text.into_owned());
    }
    let collected = text.lines().filter_map(|line| line.split_once("Collected : ")).next_back();
    collected.and_then(|(_, n)| n.trim().parse().ok()).ok_or_else(|| text.into_owned())
}

/// Counts, and prints the table. `image` has a file of [`MIB`] MiB.
pub(crate) fn run(image: &Path) {
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("Instructions are not counted: there is no valgrind here (Debian, Ubuntu: apt install valgrind).");
        return;
    }
    println!("Instructions per write of 4 KiB, one thread, on the null disk; the loop included.\n");
    for (index, subject) in subjects().into_iter().enumerate() {
        match (count(index, WRITES[0], image), count(index, WRITES[1], image)) {
            (Ok(few), Ok(many)) => {
                let each = (many as f64 - few as f64) / (WRITES[1] - WRITES[0]) as f64;
                println!("{:26}{each:9.1}", subject.name());
            }
            (Err(e), _) | (_, Err(e)) => println!("{:26}not counted: {e}", subject.name()),
        }
    }
}
