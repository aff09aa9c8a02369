// SPDX-License-Identifier: GPL-2.0-only
//! Properties, by proptest: sequences of operations against models. What fails is made smaller before it is told of.
//!
//! * [`map`]: a file's extents, and the cache of them;
//! * [`space`]: bitmaps and buddies;
//! * [`names`]: names in hash trees;
//! * [`log`]: what recovery brings home.

mod log;
mod map;
mod names;
mod space;

use std::fmt::Debug;
use std::time::Instant;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::{env, tell};

/// Runs `test` with so many inputs, or with `EXT4_DIO_CASES`. The same `EXT4_DIO_SEED` makes the same inputs.
fn check<S: Strategy>(name: &str, cases: u64, strategy: S, test: impl Fn(S::Value))
where
    S::Value: Debug,
{
    let (start, seed, cases) = (Instant::now(), env("EXT4_DIO_SEED", 1), env("EXT4_DIO_CASES", cases));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: cases as u32, max_shrink_iters: 400, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let done = runner.run(&strategy, |input| {
        test(input);
        Ok(())
    });
    if let Err(TestError::Fail(why, input)) = done {
        let again =
            format!("EXT4_DIO_SEED={seed} EXT4_DIO_CASES={cases} cargo test -p ext4-dio-tests --test damaged {name}");
        panic!("{why}\nthe smallest input that fails: {input:#?}\nagain: {again}");
    }
    done.expect("no input was given up");
    tell(&format!("{name}: {cases} sequences in {:.1} s", start.elapsed().as_secs_f64()));
}
