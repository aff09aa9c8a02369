// SPDX-License-Identifier: GPL-2.0-only
//! Cases at random. The same seed makes the same ones.

use std::collections::BTreeMap;
use std::time::Instant;

use ext4_dio_tests::damage::layout::{Kind, Place};
use ext4_dio_tests::damage::{Case, Edit, Outcome, Rng, Target, base, drive, mutate, patch};

use crate::{corpus, env, tell, with_an_end};

/// What came of many cases.
#[derive(Default)]
struct Sum {
    cases: u64,
    mounted: u64,
    found: BTreeMap<String, u32>,
    requests: u64,
    steps: u64,
    memory: u64,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        self.mounted += u64::from(outcome.mounted);
        self.requests = self.requests.max(outcome.requests);
        self.steps = self.steps.max(outcome.steps);
        self.memory = self.memory.max(outcome.memory);
        for word in outcome.found {
            *self.found.entry(word).or_default() += 1;
        }
    }

    fn tell(&self, what: &str, seed: u64, start: Instant) {
        let Self { cases, mounted, found, requests, steps, memory } = self;
        let (kinds, kib, seconds) = (found.len(), memory >> 10, start.elapsed().as_secs_f64());
        tell(&format!(
            "{what}: {cases} images from seed {seed} on, {mounted} of them mounted for writing, {kinds} kinds of findings; \
             at most {requests} requests, {steps} look-ups and {kib} KiB; {seconds:.1} s"
        ));
        // Else they were not damaged, or never mounted.
        assert!(*cases < 500 || kinds > 30 && *mounted > cases / 4, "{mounted} mounted, found {found:?}");
    }
}

#[test]
fn random_damage_ends_without_a_panic() {
    with_an_end(|| {
        let (start, seed, cases) = (Instant::now(), env("EXT4_DIO_SEED", 1), env("EXT4_DIO_CASES", 1500));
        let mut sum = Sum::default();
        for n in seed..seed + cases {
            let _seed = SeedOf("random_damage", n);
            sum.add(drive(&mutate::random(&mut Rng(n)), Target::All));
        }
        sum.tell("random damage", seed, start);
    });
}

#[test]
fn more_damage_to_the_corpus_ends_without_a_panic() {
    with_an_end(|| {
        let (start, seed, cases) = (Instant::now(), env("EXT4_DIO_SEED", 1), env("EXT4_DIO_CASES", 700));
        let corpus: Vec<Case> = corpus::files().iter().map(|path| corpus::load(path)).collect();
        let mut sum = Sum::default();
        for n in seed..seed + cases {
            let _seed = SeedOf("more_damage", n);
            let mut rng = Rng(n);
            let mut case = rng.pick(&corpus).clone();
            case.expect.clear();
            (0..1 + rng.below(4)).for_each(|_| mutate::mutate(&mut case, &mut rng));
            sum.add(drive(&case, Target::All));
        }
        sum.tell("more damage to the corpus", seed, start);
    });
}

/// Tells the seed when the test fails.
struct SeedOf(&'static str, u64);

impl Drop for SeedOf {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(test, seed) = self;
            eprintln!(
                "again: EXT4_DIO_SEED={seed} EXT4_DIO_CASES=1 cargo test -p ext4-dio-tests --test damaged {test}"
            );
        }
    }
}

#[test]
fn cases_are_read_as_they_are_written() {
    for n in 0..300 {
        let mut rng = Rng(n);
        let mut case = mutate::random(&mut rng);
        (0..5).for_each(|_| mutate::mutate(&mut case, &mut rng));
        assert_eq!(Case::parse(&case.to_string()), Ok(case));
    }
}

#[test]
fn checksums_that_are_made_right_are_those_that_mke2fs_made() {
    for name in base::NAMES {
        let base = base::base(name);
        // Groups without files have bitmaps that were never written, and checksums of none.
        let flags = |group| base.bytes[base.layout.geo.desc_at(group) as usize + 0x12];
        let written = |place: &&Place| match place.kind {
            Kind::InodeBitmap(group) => flags(group) & 1 == 0,
            Kind::BlockBitmap(group) => flags(group) & 2 == 0,
            _ => true,
        };
        for place in base.layout.places.iter().filter(written) {
            let case = Case { edits: vec![Edit::nothing(&place.name)], ..Case::sound(name) };
            let (image, unknown) = patch::patched(base, &case);
            assert!(unknown.is_empty(), "{unknown:?}");
            assert!(
                image.get(place.at, place.len) == base.bytes[place.at as usize..][..place.len],
                "{name}: {place:?}"
            );
            assert!(image.bytes() == *base.bytes, "{name}: {place:?}");
        }
    }
}
