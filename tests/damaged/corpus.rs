// SPDX-License-Identifier: GPL-2.0-only
//! The cases that are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ext4_dio_tests::damage::{Case, Target, base, drive, patch};
use ext4_dio_tests::images::Image;

use crate::tell;

pub(crate) fn load(path: &Path) -> Case {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Case::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = fs::read_dir(dir).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

#[test]
fn sound_bases_are_mounted_and_stay_sound() {
    for name in base::NAMES {
        let case = Case::sound(name);
        let outcome = drive(&case, Target::All);
        assert!(outcome.mounted, "{name}: {:?}", outcome.found);
        assert!(outcome.is_clean(), "{name}: {:?}", outcome.found);
        let image = outcome.image.expect("what is left");
        Image::from_bytes(&image.bytes()).assert_clean();
    }
}

#[test]
fn the_corpus_is_found_out() {
    crate::with_an_end(corpus);
}

fn corpus() {
    let start = Instant::now();
    let (mut requests, mut steps, mut memory) = (0, 0, 0);
    let mut wrong = Vec::new();
    let files = files();
    for path in &files {
        let case = load(path);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let (_, unknown) = patch::patched(base::base(&case.base), &case);
        // The others are run all the same.
        let Ok(outcome) = std::panic::catch_unwind(|| drive(&case, Target::All)) else {
            wrong.push(format!("{name}: a panic, see above"));
            continue;
        };
        requests = requests.max(outcome.requests);
        steps = steps.max(outcome.steps);
        memory = memory.max(outcome.memory);
        let missing = outcome.missing(&case);
        if !unknown.is_empty() || !missing.is_empty() || case.expect.is_empty() {
            wrong.push(format!("{name}: {missing:?} not among {:?}; unknown: {unknown:?}", outcome.found));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    tell(&format!(
        "corpus: {} damaged images; at most {requests} requests, {steps} look-ups and {} KiB; {:.1} s",
        files.len(),
        memory >> 10,
        start.elapsed().as_secs_f64()
    ));
}

/// For whom a test has told of a case, and for whom writes one.
#[test]
fn one_case() {
    if let Ok(name) = std::env::var("EXT4_DIO_LAYOUT") {
        let layout = &base::base(&name).layout;
        layout.places.iter().for_each(|place| tell(&format!("{}: {:?} at {:#x}", place.name, place.kind, place.at)));
    }
    let Ok(path) = std::env::var("EXT4_DIO_CASE") else { return };
    let case = load(Path::new(&path));
    let outcome = drive(&case, Target::All);
    tell(&format!(
        "{path}: {:?}, {} requests, {} look-ups, {} KiB",
        outcome.found,
        outcome.requests,
        outcome.steps,
        outcome.memory >> 10
    ));
    assert!(outcome.missing(&case).is_empty(), "not found: {:?}", outcome.missing(&case));
}
