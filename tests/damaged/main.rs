// SPDX-License-Identifier: GPL-2.0-only
//! Damaged images: each of the checks strikes where it should, with its own error, and whatever is done to an image there is no panic,
//! an end, and no more memory than the image's size allows.
//!
//! * [`corpus`]: the cases in `tests/corpus`, each mounted and exercised;
//! * [`random`]: random ones, made on the spot;
//! * [`checks`], [`maps`], [`directories`]: byte by byte, which check strikes where;
//! * [`inodes`]: every byte of every inode is under its checksum;
//! * [`anything`]: each byte of some structures has each of some values;
//! * [`props`]: sequences of operations against models;
//! * [`faults`]: no memory, and a device that cannot be read.
//!
//! | environment | |
//! |---|---|
//! | `EXT4_DIO_SEED` | where random cases and sequences begin |
//! | `EXT4_DIO_CASES` | how many there are |
//! | `EXT4_DIO_CASE` | a file with one case, for the test `one_case` |
//! | `EXT4_DIO_LAYOUT` | a base, whose places `one_case` lists |

mod anything;
mod checks;
mod corpus;
mod directories;
mod faults;
mod inodes;
mod maps;
mod props;
mod random;
mod victim;

/// A number in the environment.
fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Says something that is seen though the test passes.
fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a test that must end. If it does not, it tells of the images that are being looked at.
fn with_an_end(test: impl FnOnce() + Send + 'static) {
    use std::sync::mpsc;
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(std::time::Duration::from_secs(600)) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            panic!("it does not end\n{}", ext4_dio_tests::damage::drive::under_way().join("\n"))
        }
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}
