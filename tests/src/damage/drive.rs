// SPDX-License-Identifier: GPL-2.0-only
//! Does with a damaged image all there is to do, and holds the code under test to bounds: requests to the disk, blocks and maps
//! looked up, and memory. None of these is a clock.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use ext4_dio::corrupt::{Ext4Error, Ext4Result};
use ext4_dio::{SuperBlock, ext4_mount, ext4_umount};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL, meter};
use kernel_shim::block::Bdev;
use kernel_shim::error::code::{EFSBADCRC, EFSCORRUPTED};
use kernel_shim::error::{Error, Result};
use kernel_shim::testing::on_trace;

use super::base::base;
use super::disk::OverlayDisk;
use super::patch::patched;
use super::{Case, visit};

/// What is done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Mounted and unmounted, for reading and for writing.
    Mount,
    /// Names looked up, inodes read, links read, attributes.
    Lookup,
    /// Files read, through the cache and past it.
    Read,
    /// Every file's map, by extents and by blocks.
    MapBlocks,
    /// Mounted, so that the log is replayed and orphans are finished with; then looked at.
    Recovery,
    /// Directories listed, names made and removed.
    Directory,
    /// All that, and all changes of files.
    All,
}

/// Requests to the disk that one image may cost. A sound one takes some hundreds.
const MOST_REQUESTS: u64 = 20_000;
/// Blocks and maps looked up that one image may cost. A sound one takes some thousands.
const MOST_STEPS: u64 = 300_000;
/// Memory that one image may cost: so many times its size, and so much more.
const MEMORY: (u64, u64) = (3, 4 << 20);

/// What came of it.
#[derive(Clone, Default)]
pub struct Outcome {
    /// It was mounted for writing.
    pub mounted: bool,
    /// Words: `Refused::…` and the names of corruptions as [`ext4_dio::corrupt`] has them, and of errnos.
    pub found: BTreeSet<String>,
    /// Requests to the disk.
    pub requests: u64,
    /// Blocks and maps looked up, by the thread that called.
    pub steps: u64,
    /// Bytes at once, of the thread that called.
    pub memory: u64,
    /// The image afterwards.
    pub image: Option<super::disk::Patched>,
}

impl Outcome {
    pub(super) fn note<T>(&mut self, sb: Option<&SuperBlock>, result: Result<T>) -> Option<T> {
        if let Some(corrupt) = sb.and_then(|sb| sb.s_fs_info().last_error()) {
            self.found.insert(corrupt.name().to_string());
        }
        let word = |error: Error| match error {
            // As ext4 calls them.
            EFSBADCRC => "EFSBADCRC".to_string(),
            EFSCORRUPTED => "EFSCORRUPTED".to_string(),
            _ => error.name().map_or(format!("{error:?}"), str::to_string),
        };
        result.map_err(|error| self.found.insert(word(error))).ok()
    }

    pub(super) fn note_ext4<T>(&mut self, result: Ext4Result<T>) -> Option<T> {
        let word = |of: &dyn Debug| format!("{of:?}").split('(').next().unwrap_or_default().to_string();
        match result {
            Ok(value) => return Some(value),
            Err(Ext4Error::Corrupt(corrupt)) => {
                self.found.insert(corrupt.name().to_string());
                return self.note::<T>(None, Err(corrupt.errno()));
            }
            Err(Ext4Error::Refused(refused)) => self.found.insert(format!("Refused::{}", word(&refused))),
            Err(Ext4Error::Errno(error)) => return self.note::<T>(None, Err(error)),
        };
        None
    }

    /// Whether nothing was found that is wrong with the image: what a sound one answers is not.
    pub fn is_clean(&self) -> bool {
        let errno = |word: &str| !word.contains(char::is_lowercase);
        self.found
            .iter()
            .all(|word| errno(word) && !["EIO", "EFSBADCRC", "EFSCORRUPTED", "EROFS"].contains(&word.as_str()))
    }

    /// Compares with what a case expects. A list of what is missing.
    pub fn missing<'c>(&self, case: &'c Case) -> Vec<&'c str> {
        let there = |word: &str| match word {
            "clean" => self.is_clean(),
            "mounted" => self.mounted,
            "refused" => !self.mounted,
            word if word.starts_with('!') => !self.found.contains(&word[1..]),
            _ => self.found.contains(word),
        };
        case.expect.iter().map(String::as_str).filter(|word| !there(word)).collect()
    }
}

/// The cases that are run now, by thread.
static UNDER_WAY: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// What [`drive()`] is at: for whom waits for it in vain.
pub fn under_way() -> Vec<String> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).values().map(|case| again(case)).collect()
}

fn again(case: &str) -> String {
    let how = "EXT4_DIO_CASE=FILE cargo test -p ext4-dio-tests --test damaged one_case";
    format!("---- the image: save this as FILE, and run {how}\n{case}----")
}

/// Says which case it was when a test fails within.
struct Telling<'a>(&'a Case);

impl<'a> Telling<'a> {
    fn new(case: &'a Case) -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).insert(thread, case.to_string());
        Self(case)
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let thread = format!("{:?}", std::thread::current().id());
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).remove(&thread);
        if std::thread::panicking() {
            eprintln!("{}", again(&self.0.to_string()));
        }
    }
}

/// Runs one case.
///
/// # Panics
///
/// If a bound is passed, something is left behind at the end, or the code under test panics; it says how to do it again.
pub fn drive(case: &Case, target: Target) -> Outcome {
    let _telling = Telling::new(case);
    if std::env::var_os("EXT4_DIO_CASE").is_none() {
        // Each image has much to say.
        kernel_shim::printk::set_console_loglevel(0);
    }
    let base = base(&case.base);
    let (image, _unknown) = patched(base, case);
    let size = image.size();
    let disk = KArc::new(OverlayDisk::new(image, MOST_REQUESTS), GFP_KERNEL).expect("memory");
    let bdev = Bdev::new(disk.clone()).expect("good limits");
    let mut outcome = Outcome::default();
    let steps = Rc::new(Cell::new(0));
    let count = steps.clone();
    let tracing = on_trace(move |_| {
        count.set(count.get() + 1);
        assert!(count.get() < MOST_STEPS, "it does not end: {MOST_STEPS} look-ups");
    });
    meter::start();
    if matches!(target, Target::Mount | Target::Lookup | Target::MapBlocks | Target::All) {
        visit::read_only(&bdev, target, &mut outcome);
    }
    if target != Target::Lookup {
        writable(&bdev, case, target, &mut outcome);
    }
    drop(tracing);
    outcome.memory = meter::peak();
    outcome.steps = steps.get();
    outcome.requests = disk.requests();
    assert!(outcome.requests < MOST_REQUESTS, "it does not end: {MOST_REQUESTS} requests to the disk");
    assert!(outcome.memory <= MEMORY.0 * size + MEMORY.1, "{} bytes of memory for an image of {size}", outcome.memory);
    outcome.image = Some(disk.image().clone());
    outcome
}

fn writable(bdev: &Bdev, case: &Case, target: Target, outcome: &mut Outcome) {
    let mounted = ext4_mount(bdev.clone(), &case.options);
    let Some(sb) = outcome.note(None, mounted) else { return };
    outcome.mounted = true;
    visit::writable(&sb, target, outcome);
    let umounted = ext4_umount(&sb);
    // Nobody has anything open any more.
    assert!(umounted != Err(kernel_shim::error::code::EBUSY), "an inode is held by nobody");
    outcome.note(Some(&sb), umounted);
    let dio = &sb.s_fs_info().dio;
    assert_eq!(dio.io_ends_available(), dio.io_ends(), "an io_end is missing");
    drop(sb);
}
