// SPDX-License-Identifier: GPL-2.0-only
//! Logs of others: written by `debugfs`, and damaged ones.

use super::*;

/// Has `debugfs` write transactions: each a list of blocks with one stamp for all, or of revoked blocks, and whether it is committed.
fn write_log(image: &Image, block_size: u32, csum: Option<u32>, transactions: &[(&[u64], u32, &[u64], bool)]) {
    let join = |list: &[u64]| list.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let mut script = Vec::new();
    script.push(match csum {
        Some(version) => format!("jo -c -v {version}"),
        None => "jo".to_string(),
    });
    for (n, (blocks, stamp, revoked, commit)) in transactions.iter().enumerate() {
        let data = image.path().with_extension(format!("data{n}"));
        let words = blocks.len() * block_size as usize / 4;
        let bytes: Vec<u8> = (0..words).flat_map(|_| stamp.to_be_bytes()).collect();
        std::fs::write(&data, bytes).expect("room");
        let mut line = "jw".to_string();
        if !blocks.is_empty() {
            line += &format!(" -b {}", join(blocks));
        }
        if !revoked.is_empty() {
            line += &format!(" -r {}", join(revoked));
        }
        if !commit {
            line += " -c";
        }
        if !blocks.is_empty() {
            line += &format!(" {}", data.display());
        }
        script.push(line);
    }
    script.push("jc".to_string());
    image.debugfs_script(&script);
}

fn small(kind: Kind) -> Image {
    let Kind { block_size, features } = kind;
    Image::make(&Mkfs { block_size, features, size_kib: 8192 * u64::from(block_size / 1024), ..Mkfs::default() }, None)
}

#[test]
fn logs_that_debugfs_wrote_are_replayed() {
    for kind in KINDS {
        for csum in [None, Some(2), Some(3)] {
            let image = small(kind);
            let place = Place::of(&image, kind);
            let f = &place.free;
            let what = format!("{} {:?} {csum:?}", kind.block_size, kind.features);
            write_log(
                &image,
                kind.block_size,
                csum,
                &[
                    (&f[0..100], 11, &[], true),
                    (&[f[0], f[1], f[2]], MAGIC, &[], true),
                    (&[f[3]], 13, &[], true),
                    (&[], 0, &[f[5], f[6]], true),
                    (&[f[6]], 14, &[], true),
                    (&[], 0, &[f[7]], true),
                    (&[f[8]], 15, &[], false),
                ],
            );
            let bytes = image.bytes();
            let ours = place.assert_same_replay(&bytes, &what);
            let stamp = |n: usize| stamp_of(place.block(&ours, f[n]));
            assert_eq!([0, 3, 4, 5, 6, 7, 8, 9].map(stamp), [MAGIC, 13, 11, 0, 14, 0, 11, 11], "{what}");
        }
    }
}

#[test]
fn numbers_of_transactions_go_round_in_the_log() {
    let place = Place::new(KINDS[0]);
    let mut bytes = place.bytes.clone();
    // An empty log's last number, without checksums.
    let at = place.extents[0].pblk as usize * place.block_size as usize + 24;
    bytes[at..at + 4].copy_from_slice(&(u32::MAX - 5).to_be_bytes());
    let engine = Engine::with(&place, &bytes, place.options());
    let mut tids = Vec::new();
    for n in 0..12u32 {
        let mut handle = engine.handle(2);
        tids.push(handle.tid());
        engine.stamp(&mut handle, place.free[n as usize], n + 1).expect("access");
        if n == 9 {
            handle.revoke(place.free[0]).expect("revoke");
        }
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
    }
    assert!(tids[0] > tids[11], "{tids:?}");
    let ours = place.assert_same_replay(&engine.disk.durable_image(), "numbers");
    assert_eq!(stamp_of(place.block(&ours, place.free[0])), 0);
    for n in 1..12 {
        assert_eq!(stamp_of(place.block(&ours, place.free[n])), n as u32 + 1);
    }
}

/// A disk with a log of some transactions.
fn logged(place: &Place) -> Vec<u8> {
    let engine = Engine::new(place);
    for n in 0..12u32 {
        let mut handle = engine.handle(6);
        for block in 0..4 {
            engine.stamp(&mut handle, place.free[(n * 3 + block) as usize], n + 1).expect("access");
        }
        handle.revoke(place.free[150 + n as usize]).expect("revoke");
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
    }
    engine.disk.durable_image()
}

#[test]
fn damaged_logs_are_refused_or_replayed_in_part_and_never_more() {
    let mut state = 12345u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for kind in KINDS {
        let place = Place::new(kind);
        let whole = logged(&place);
        let start = place.extents[0].pblk as usize * place.block_size as usize;
        let used = 100 * place.block_size as usize;
        let mut outcomes = [0; 2];
        for case in 0..40 {
            let mut bytes = whole.clone();
            // Most damage where it matters: in what the blocks of the log's own begin with.
            for _ in 0..1 + random(4) {
                let at = if random(3) == 0 {
                    start + random(used)
                } else {
                    start + random(100) * place.block_size as usize + random(64)
                };
                bytes[at] = if random(2) == 0 { random(256) as u8 } else { bytes[at] ^ (1 << random(8)) };
            }
            let refused = place.recover(&mut bytes).is_err();
            outcomes[usize::from(refused)] += 1;
            if place.metadata_csum {
                for &block in &place.free {
                    let block = place.block(&bytes, block);
                    let word = stamp_of(block);
                    assert!(word <= 12, "case {case}: damage was replayed");
                }
            }
        }
        assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
    }
}

#[test]
fn garbage_is_no_journal() {
    let place = Place::new(KINDS[0]);
    let start = place.extents[0].pblk as usize * place.block_size as usize;
    // Magic, block type, block size, length, first block, features.
    for at in [0, 7, 14, 17, 20, 40, 44] {
        let mut bytes = place.bytes.clone();
        bytes[start + at] ^= 0x55;
        let bdev = Bdev::new(RamDisk::from_image(bytes, RamDiskOptions::default()).expect("disk")).expect("limits");
        assert!(place.load(&bdev).is_err(), "byte {at}");
    }
    let bdev =
        Bdev::new(RamDisk::from_image(place.bytes.clone(), RamDiskOptions::default()).expect("disk")).expect("limits");
    for extents in [
        vec![],
        vec![LogExtent { lblk: 1, ..place.extents[0] }],
        vec![LogExtent { len: 1023, ..place.extents[0] }],
        vec![LogExtent { pblk: u64::MAX, ..place.extents[0] }],
    ] {
        assert!(Journal::load(&bdev, place.block_size, &extents, place.options()).is_err(), "{extents:?}");
    }
}

#[test]
fn a_log_that_is_one_loop_ends() {
    // Descriptor blocks of the expected number without end, and none of a commit.
    let place = Place::new(KINDS[3]);
    let mut bytes = logged(&place);
    let bs = place.block_size as usize;
    let start = place.extents[0].pblk as usize * bs;
    let sequence = bytes[start + 24..start + 28].to_vec();
    for block in 1..1024 {
        let at = start + block * bs;
        bytes[at..at + 4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&1u32.to_be_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&sequence);
        bytes[at + 12..at + bs].fill(0);
        // One tag, the last.
        bytes[at + 19] = 8;
    }
    let info = place.recover(&mut bytes).expect("nothing is whole");
    assert_eq!((info.nr_replays, info.start_transaction), (0, info.end_transaction));
}
