// SPDX-License-Identifier: GPL-2.0-only
//! Cases at random. The same seed makes the same ones.

use std::collections::BTreeMap;
use std::time::Instant;

use ext4_dio_tests::damage::layout::{Kind, Place};
use ext4_dio_tests::damage::{Case, Edit, Rng, Target, base, drive, mutate, patch};

use crate::{env, tell};

#[test]
fn random_damage_ends_without_a_panic() {
    let (start, seed, cases) = (Instant::now(), env("EXT4_DIO_SEED", 1), env("EXT4_DIO_CASES", 1500));
    let mut mounted = 0;
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    let (mut requests, mut steps, mut memory) = (0, 0, 0);
    for n in seed..seed + cases {
        let mut rng = Rng(n);
        let case = mutate::random(&mut rng);
        let _seed = SeedOf(n);
        let outcome = drive(&case, Target::All);
        mounted += u32::from(outcome.mounted);
        requests = requests.max(outcome.requests);
        steps = steps.max(outcome.steps);
        memory = memory.max(outcome.memory);
        for word in outcome.found {
            *found.entry(word).or_default() += 1;
        }
    }
    tell(&format!(
        "random damage: {cases} images from seed {seed} on, {mounted} of them mounted for writing, {} kinds of findings; at most {requests} requests, {steps} look-ups and {} KiB; {:.1} s",
        found.len(),
        memory >> 10,
        start.elapsed().as_secs_f64()
    ));
    // Else they were not damaged, or never mounted.
    assert!(cases < 500 || found.len() > 30 && u64::from(mounted) > cases / 4, "{mounted} mounted, found {found:?}");
}

/// Tells the seed when the test fails.
struct SeedOf(u64);

impl Drop for SeedOf {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "again: EXT4_DIO_SEED={} EXT4_DIO_CASES=1 cargo test -p ext4-dio-tests --test damaged random_damage",
                self.0
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
