// SPDX-License-Identifier: GPL-2.0-only
//! What a power failure leaves of names.

use ext4_dio::ext4_sync_fs;
use ext4_dio_tests::images::e2fsprogs;
use ext4_dio_tests::oplang::Rng;
use kernel_shim::fs::InodeFlags;

use super::model::{Model, all_ours, all_theirs, step};
use super::*;

/// A crashed image with its journal replayed by `e2fsck`. What is left to do of orphans is not done.
fn replayed_by_e2fsck(bytes: &[u8]) -> Vec<u8> {
    let image = Image::from_bytes(bytes);
    let output = e2fsprogs("e2fsck").args(["-y", "-E", "journal_only"]).arg(image.path()).output();
    let output = output.expect("running e2fsck");
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stdout));
    image.bytes()
}

/// After a crash there is what there was after some operation, no earlier than the last sync: none is half done, none is
/// there without those before it.
#[test]
fn a_crash_leaves_what_was_there_after_some_operation() {
    for seed in 1..=4 {
        let mut rng = Rng(seed);
        let mut model = Model::new();
        let m = mount(&small_blocks());
        let mut past = vec![model.clone()];
        let mut synced = 0;
        for n in 1..=240 {
            let (what, ours, theirs) = step(&m.sb, &mut model, &mut rng);
            assert_eq!(ours, theirs, "seed {seed}, step {n}: {what}");
            past.push(model.clone());
            if rng.one_in(30) {
                ext4_sync_fs(&m.sb).expect("syncing");
                synced = n;
            }
            if n % 24 != 0 {
                continue;
            }
            let crashed = m.disk.crash(rng.next_u64());
            let back = if n % 48 == 0 { replayed_by_e2fsck(&crashed) } else { crashed };
            let back = Mount::with(&back, "", auto());
            let found = all_ours(&back.sb);
            assert!(
                (synced..=n).rev().any(|k| all_theirs(&past[k]) == found),
                "seed {seed}, step {n}, synced at {synced}: {found:#?}"
            );
            back.finish();
        }
        m.finish();
    }
}

/// In a synchronous directory what is done is done.
#[test]
fn changes_of_a_synchronous_directory_are_durable() {
    for features in ["", "^has_journal"] {
        let m = mount(&Mkfs { features, ..small_blocks() });
        mkdir(&m.sb, "/d").expect("mkdir");
        let d = iref(&m.sb, "/d");
        d.set_i_flags(InodeFlags::DIRSYNC);
        let there = |what: &str, expected: &[&str]| {
            let back = Mount::with(&m.disk.durable_image(), "ro", auto());
            assert_eq!(names(&back.sb, "/d"), expected, "{features} {what}");
        };
        create(&m.sb, "/d/f").expect("create");
        there("create", &["f"]);
        link(&m.sb, "/d/f", "/d/g").expect("link");
        there("link", &["f", "g"]);
        rename(&m.sb, "/d/g", "/d/h", RenameFlags::empty()).expect("rename");
        there("rename", &["f", "h"]);
        unlink(&m.sb, "/d/f").expect("unlink");
        there("unlink", &["h"]);
        drop(d);
        m.finish();
    }
}
