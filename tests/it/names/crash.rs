// SPDX-License-Identifier: GPL-2.0-only
//! What a power failure leaves of names where they are synchronous. Of names at large: test `crash`.

use kernel_shim::fs::InodeFlags;

use super::*;

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
