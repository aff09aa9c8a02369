// SPDX-License-Identifier: GPL-2.0-only
//! Fuzzing with `cargo-fuzz`, on a stable compiler:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none --fuzz-dir tests/fuzz mount /tmp/corpus-mount tests/corpus -- -max_len=4096 -max_total_time=300
//! ```
//!
//! Targets: `mount`, `lookup`, `read`, `map_blocks`, `recovery`, `directory`, and `all` for everything at once; what each does is in
//! `tests/src/damage/visit.rs`. The first directory takes what is new (cargo-fuzz wants it to be there), the second has the cases that `cargo
//! test` runs. An input is a case as text: which file system, and which bytes of which of its structures are changed. libFuzzer changes it
//! through [`change`], which knows the structures and makes their checksums right again. So a crash that it finds is a file that can be
//! read, run by `EXT4_DIO_CASE=FILE cargo test -p ext4-dio-tests --test damaged one_case`, and put into `tests/corpus` with a name.
//!
//! A hang is found by the bounds in `tests/src/damage/drive.rs`, or else by libFuzzer's `-timeout`.

use ext4_dio_tests::damage::{self, Case, Rng, Target};

/// Runs one input.
pub fn run(data: &[u8], target: Target) {
    damage::drive(&Case::parse_any(data), target);
}

/// libFuzzer's custom mutator: the first `size` bytes of `data` are changed, and may become as many as there is room for. Returns how many
/// there are then.
pub fn change(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = Rng(u64::from(seed));
    let mut case = Case::parse_any(&data[..size]);
    case.expect.clear();
    let before = case.clone();
    for _ in 0..1 + rng.below(3) {
        damage::mutate::mutate(&mut case, &mut rng);
    }
    let fits = |case: &Case| case.to_string().len() <= max_size.min(data.len());
    let text = if fits(&case) { case.to_string() } else { before.to_string() };
    let len = text.len().min(max_size).min(data.len());
    data[..len].copy_from_slice(&text.as_bytes()[..len]);
    len
}

/// A target of libFuzzer.
#[macro_export]
macro_rules! target {
    ($target:ident) => {
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::run(data, ext4_dio_tests::damage::Target::$target));
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::change(data, size, max_size, seed)
        });
    };
}
