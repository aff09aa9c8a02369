// SPDX-License-Identifier: GPL-2.0-only
//! Random transactions and a power failure at any moment.

use super::*;
use ext4_dio_tests::images::Source;
use ext4_dio_tests::oplang::Rng;

const BLOCKS: usize = 24;

/// What is expected of the blocks after each handle; nothing for blocks that have been freed.
type Expected = [Option<u32>; BLOCKS];

/// A run up to a crash: the disk then, what each handle made of the blocks, and which of these states a crash may go back to at most.
fn run_and_crash(place: &Place, bytes: &[u8], seed: u64, stamp: &mut u32) -> (Vec<u8>, Vec<Expected>, usize) {
    let mut rng = Rng(seed);
    let engine = Engine::with(place, bytes, place.options());
    let mut now: Expected = [None; BLOCKS];
    for (n, slot) in now.iter_mut().enumerate() {
        *slot = Some(stamp_of(place.block(bytes, place.free[n])));
    }
    let (mut states, mut durable) = (vec![now], 0);
    // Blocks that were freed, and the transaction that did it.
    let mut freed: Vec<(usize, u32)> = Vec::new();
    for _ in 0..30 + rng.below(170) {
        let count = 1 + rng.below(4);
        let mut handle = engine.handle(count as u32 + 1);
        for _ in 0..count {
            let n = rng.below(BLOCKS as u64) as usize;
            if freed.iter().any(|entry| entry.0 == n) {
                continue;
            }
            if rng.below(8) == 0 {
                handle.revoke(place.free[n]).expect("revoke");
                freed.push((n, handle.tid()));
                now[n] = None;
                continue;
            }
            *stamp += 1;
            let value = if rng.below(16) == 0 { MAGIC } else { *stamp };
            let bh = engine.cache.getblk(place.free[n]).expect("block");
            handle.get_create_access(&bh).expect("access");
            {
                let mut bytes = bh.write();
                bytes.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&value.to_be_bytes()));
                bytes.set_uptodate();
            }
            handle.dirty_metadata(&bh).expect("dirty");
            now[n] = Some(value);
        }
        let tid = handle.tid();
        states.push(now);
        handle.stop().expect("stop");
        match rng.below(12) {
            0 => {
                engine.journal.complete_transaction(tid).expect("commit");
                durable = states.len() - 1;
                // What was freed and is committed may be a file's now.
                if let Some((n, _)) = freed.pop() {
                    *stamp += 1;
                    write_data(&engine, place.free[n], *stamp);
                    freed.retain(|entry| entry.0 != n);
                    now[n] = Some(*stamp);
                    states.push(now);
                    durable = states.len() - 1;
                }
            }
            1..=3 => engine.journal.log_start_commit(tid),
            4 => engine.cache.sync_all().expect("written"),
            5 if rng.below(4) == 0 => {
                engine.journal.flush().expect("flush");
                durable = states.len() - 1;
            }
            _ => {}
        }
    }
    (engine.disk.crash(seed), states, durable)
}

fn fits(place: &Place, bytes: &[u8], expected: &Expected) -> bool {
    expected.iter().enumerate().all(|(n, value)| {
        let block = place.block(bytes, place.free[n]);
        let word = u32::from_be_bytes([block[0], block[1], block[2], block[3]]);
        value.is_none_or(|value| value == word && block.chunks_exact(4).all(|w| w == word.to_be_bytes()))
    })
}

#[test]
fn a_crash_at_any_moment_leaves_a_state_that_was() {
    for (at, kind) in KINDS.into_iter().enumerate() {
        let place = Place::new(kind);
        for seed in 0..8 {
            let seed = seed * 4 + at as u64;
            let mut stamp = 100;
            let mut bytes = place.bytes.clone();
            // The log goes on where the one before ended.
            for round in 0..2 {
                let (crashed, states, durable) = run_and_crash(&place, &bytes, seed * 2 + round, &mut stamp);
                bytes = if seed < 8 {
                    place.assert_same_replay(&crashed, &format!("seed {seed}"))
                } else {
                    let mut ours = crashed;
                    place.recover(&mut ours).unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
                    ours
                };
                let found = states[durable..].iter().position(|state| fits(&place, &bytes, state));
                assert!(found.is_some(), "seed {seed}, round {round}: no state from {durable} of {}", states.len());
                // A freed block holds anything.
                for n in 0..BLOCKS {
                    let at = place.free[n] as usize * place.block_size as usize;
                    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
                    bytes[at..at + place.block_size as usize]
                        .chunks_exact_mut(4)
                        .for_each(|w| w.copy_from_slice(&word));
                }
            }
        }
    }
}

#[test]
fn a_log_that_linux_left_is_replayed() {
    for kind in KINDS {
        let source = Source::new();
        source.directory("d");
        let spec = Mkfs {
            block_size: kind.block_size,
            features: kind.features,
            size_kib: 8192 * u64::from(kind.block_size / 1024),
            ..Mkfs::default()
        };
        let image = Image::make(&spec, Some(source.path()));
        let place = Place::of(&image, kind);
        // As mke2fs made it: Linux sets the flag itself.
        image.debugfs("feature ^needs_recovery");
        let script = format!(
            "set -e; d=$(mktemp -d); mount -o loop,commit=300 {image} $d; trap 'umount $d; rmdir $d' EXIT; cd $d; \
             for i in $(seq 1 300); do echo $i > d/f$i; done; sync; \
             for i in $(seq 1 2 300); do rm d/f$i; mkdir d/f$i; done; sync; rmdir d/f1 d/f3; sync; \
             cp --sparse=always {image} {image}.dirty; cd /",
            image = image.path().display()
        );
        if !run(Command::new("unshare").args(["--mount", "--propagation", "slave", "sh", "-c", &script])) {
            eprintln!("left out: no loop mounts here");
            return;
        }
        let dirty = std::fs::read(image.path().with_extension("img.dirty")).expect("the copy");
        let theirs = place.fsck(&dirty);
        let mut ours = dirty;
        let info = place.recover(&mut ours).expect("recovery");
        assert!(info.nr_replays > 0, "{info:?}");
        // All but what e2fsck writes for itself: the super blocks, and the journal.
        let sb = 1024 / kind.block_size as u64;
        let journal = &place.extents;
        let in_journal = |block: u64| journal.iter().any(|e| (e.pblk..e.pblk + u64::from(e.len)).contains(&block));
        let blocks = (theirs.len() / kind.block_size as usize) as u64;
        let differ: Vec<u64> = (0..blocks)
            .filter(|&block| block != sb && !in_journal(block))
            .filter(|&block| place.block(&ours, block) != place.block(&theirs, block))
            .collect();
        assert!(differ.is_empty(), "blocks {differ:?} differ after {info:?}");
    }
}
