// SPDX-License-Identifier: GPL-2.0-only
//! Runs sequences of operations on a file system and on the model side by side, and makes a failing one short.
//!
//! * `EXT4_DIO_SEED=n`: this seed instead of those of the test.
//! * `EXT4_DIO_OPS=n`: so many operations in a sequence.
//! * `EXT4_DIO_REQUEST=n`, `EXT4_DIO_TRACE=1`: of the tests with failing requests, begin with this, and print all answers.
//! * `EXT4_DIO_SECONDS=n`: sequences with new seeds for so long.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::generator::{Generator, Theme};
use crate::images::{Image, Mkfs, assert_clean};
use crate::model::{Expect, Model};
use crate::oplang::{Op, Vfs, script};

/// What fills blocks that nobody has written: none of it may ever be seen.
pub const POISON: u8 = 0xdb;
/// A sequence that takes longer hangs.
const HANGS: Duration = Duration::from_secs(120);
/// So long a failing sequence is being made shorter.
const SHRINKING: Duration = Duration::from_secs(40);

/// A sequence and where it runs.
#[derive(Clone, Debug)]
pub struct Case {
    /// The disk.
    pub mkfs: Mkfs,
    /// Mount options.
    pub options: String,
    /// Determines the sequence.
    pub seed: u64,
    /// What it is about.
    pub theme: Theme,
    /// Operations in it.
    pub ops: usize,
    /// The disk may run full.
    pub tight: bool,
}

impl Case {
    /// Files are mapped by extents.
    pub fn extents(&self) -> bool {
        self.mkfs.fs_type == "ext4"
    }

    /// What the model is to expect.
    pub fn expect(&self, ours: bool) -> Expect {
        Expect {
            block: self.mkfs.block_size,
            extents: self.extents(),
            inode_size: self.mkfs.inode_size,
            tight: self.tight,
            ours,
        }
    }

    /// The sequence.
    pub fn sequence(&self) -> Vec<Op> {
        Generator::new(self.seed, self.theme, self.mkfs.block_size, self.extents()).sequence(self.ops)
    }

    /// A new disk, poisoned where nothing is.
    pub fn image(&self) -> Vec<u8> {
        static MADE: Mutex<Vec<(String, Vec<u8>)>> = Mutex::new(Vec::new());
        let key = format!("{:?}", self.mkfs);
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = made.iter().find(|(k, _)| *k == key) {
            return bytes.clone();
        }
        let bytes = Image::make_over(&self.mkfs, POISON).bytes();
        made.push((key, bytes.clone()));
        bytes
    }
}

/// How often an operation has met ENOSPC so far.
pub static NO_SPACE: AtomicUsize = AtomicUsize::new(0);

/// Runs `ops`; `Err` tells which operation was answered wrongly, and how.
pub fn run(vfs: &mut dyn Vfs, model: &mut Model, ops: &[Op]) -> Result<(), String> {
    for (n, op) in ops.iter().enumerate() {
        let wrong = |e: String| format!("operation {n}, {op}: {e}");
        let got = vfs.apply(op);
        if got == Err(libc::ENOSPC) {
            NO_SPACE.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(target) = model.step(op, &got).map_err(wrong)? {
            let seen = vfs.see(&target).map_err(|e| wrong(format!("looking: errno {e}")))?;
            model.resync(&seen).map_err(wrong)?;
        }
    }
    Ok(())
}

/// `Err` unless `e2fsck -fn` finds nothing wrong.
pub fn check_clean(path: &Path) -> Result<(), String> {
    catch_unwind(|| assert_clean(path)).map_err(|p| words(&*p))
}

/// A panic's words.
pub fn words(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()))
        .unwrap_or_else(|| "panic".to_string())
}

/// Runs `check` in a thread of its own; a panic is an `Err`, and so is a hang.
pub fn guarded(check: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let ret = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|p| Err(words(&*p)));
        let _ = tell.send(ret);
    });
    told.recv_timeout(HANGS).unwrap_or_else(|_| Err("HANG".to_string()))
}

/// Makes `ops`, which fail, shorter as long as they do: leaves out halves, quarters, …, single operations.
pub fn shrink(mut ops: Vec<Op>, fails: impl Fn(&[Op]) -> bool) -> Vec<Op> {
    let start = Instant::now();
    let mut size = ops.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < ops.len() && start.elapsed() < SHRINKING {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + size).min(ops.len()));
            if fails(&fewer) {
                ops = fewer;
                shorter = true;
            } else {
                at += size;
            }
        }
        if start.elapsed() >= SHRINKING {
            break;
        }
        if !shorter || size > 1 {
            size /= 2;
        }
    }
    ops
}

/// Runs a case; if it fails, panics with seed, reason and the shortest sequence found that fails, too.
pub fn check(case: &Case, test: impl Fn(&Case, &[Op]) -> Result<(), String> + Clone + Send + 'static) {
    let once = |ops: &[Op]| {
        let (case, ops, test) = (case.clone(), ops.to_vec(), test.clone());
        guarded(move || test(&case, &ops))
    };
    let ops = case.sequence();
    let Err(first) = once(&ops) else { return };
    let (ops, reason) = if first == "HANG" || std::env::var_os("EXT4_DIO_NO_SHRINK").is_some() {
        (ops, first)
    } else {
        eprintln!("seed {}: {first}; making it shorter", case.seed);
        let ops = shrink(ops, |ops| once(ops).is_err());
        let last = once(&ops).err().unwrap_or_else(|| format!("{first} (not each time)"));
        (ops, last)
    };
    panic!("{reason}\nEXT4_DIO_SEED={} EXT4_DIO_OPS={}, {case:?}\n{}", case.seed, case.ops, script(&ops));
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `one` with `n` seeds from `first` on, or as the environment says.
pub fn seeds(what: &str, first: u64, n: u64, one: impl Fn(u64)) {
    let start = Instant::now();
    let mut done = 0;
    match (number("EXT4_DIO_SEED"), number("EXT4_DIO_SECONDS")) {
        (Some(seed), _) => {
            one(seed);
            done = 1;
        }
        (None, Some(seconds)) => {
            while start.elapsed().as_secs() < seconds {
                one(first + done);
                done += 1;
            }
        }
        (None, None) => {
            for seed in first..first + n {
                one(seed);
                done += 1;
            }
        }
    }
    eprintln!("{what}: {done} sequences, {:.1} s", start.elapsed().as_secs_f64());
}

/// How many operations a sequence has, unless the environment says otherwise.
pub fn ops_or(n: usize) -> usize {
    number("EXT4_DIO_OPS").map_or(n, |n| n as usize)
}
