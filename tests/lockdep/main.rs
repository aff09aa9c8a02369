// SPDX-License-Identifier: GPL-2.0-only
//! The order that locks are taken in, seen in a workload of everything, against the order that the documentation states.
//!
//! Every mount tells lockdep the documented order (`LOCK_ORDER` in `src/lib.rs`), so that any test that contradicts it fails. Here it is
//! looked at the other way round: whether what is documented is what happens, and whether everything that happens is documented.

// Without them there is no lockdep.
#![cfg(debug_assertions)]

use std::collections::BTreeSet;
use std::io::Write as _;

use ext4_dio::ext4::InodeFlags;
use ext4_dio::ioctl::{ext4_ioctl_getflags, ext4_ioctl_setflags};
use ext4_dio::{ext4_freeze, ext4_remount, ext4_unfreeze};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::generator::{Generator, Theme};
use ext4_dio_tests::images::Mkfs;
use ext4_dio_tests::oplang::Vfs as _;
use ext4_dio_tests::ours::Ours;
use kernel_shim::error::code::EIOCBQUEUED;
use kernel_shim::fs::{I_MUTEX_NEW, OpenFlags};
use kernel_shim::sync::lockdep::for_each_order;

/// `i_mutex` of inodes that are being made, which nobody else knows.
const NEW: &str = "i_mutex/4";
/// The same of directories.
const NEW_DIR: &str = "i_mutex_dir/4";

/// Sleeping locks, and what is waited for like one, from the outermost inwards. Names in one line are not taken one under the other.
const SLEEPING: &[&[&str]] = &[
    &["s_umount"],
    &["sb_writers"],
    &["aio_mutex"],
    &["s_vfs_rename_mutex"],
    &["i_mutex_dir"],
    &["i_mutex"],
    &["i_dio_count"],
    &["invalidate_lock"],
    &["page_writeback"],
    &["i_sync"],
    &["sb_internal"],
    &["jbd2_commit"],
    &["jbd2_handle"],
    &[NEW, NEW_DIR],
    &["page_io"],
    &["page"],
    &["xattr_sem"],
    &["extending"],
    &["s_iget"],
    &["orphan_inode"],
    &["s_orphan_lock"],
    &["i_data_sem"],
    &["pa_inode", "lg_mutex", "group"],
    &["j_checkpoint_mutex"],
    &["j_spare"],
    &["buffer"],
    &["j_sb_buf"],
    &["bio"],
];

/// Works that are waited for, with what they may do themselves; and threads of a mount, which are joined.
const WORKS: &[&str] = &["dio_done", "evict", "ext4-dio-trim", "j_thread"];

/// Spinlocks, under which only those further down are taken.
const SPIN: &[&[&str]] = &[
    &["j_state_lock", "jh_hash", "i_es_lock", "i_orphan", "s_error", "inode_hash"],
    &["jh_state"],
    &["t_lists", "i_times", "i_pages", "bh_hash", "wq", "s_options", "j_format", "j_sb"],
    &["pool_cpu", "bio_free"],
    &["pool"],
];

/// What a workload of everything cannot but show; if it does not, lockdep does not look.
const SEEN: &[(&str, &str)] = &[
    ("sb_writers", "i_mutex"),
    ("sb_writers", "i_mutex_dir"),
    ("i_mutex_dir", "i_mutex"),
    ("s_vfs_rename_mutex", "i_mutex_dir"),
    ("i_mutex", "invalidate_lock"),
    ("i_mutex", "i_dio_count"),
    ("i_mutex", "jbd2_commit"),
    ("i_dio_count", "jbd2_commit"),
    ("page_writeback", "jbd2_commit"),
    ("jbd2_commit", "jbd2_handle"),
    ("jbd2_handle", "i_data_sem"),
    ("jbd2_handle", "page"),
    ("i_data_sem", "group"),
    ("group", "buffer"),
    ("buffer", "bio"),
    ("i_data_sem", "i_es_lock"),
];

fn rank(name: &str) -> Option<usize> {
    let of = |table: &[&[&str]]| table.iter().position(|line| line.contains(&name));
    of(SLEEPING).or_else(|| of(SPIN).map(|rank| SLEEPING.len() + rank))
}

/// The name that a lock of a subclass has here: mostly that of all of them.
fn called(lock: (&'static str, u8)) -> &'static str {
    match lock {
        ("i_mutex", I_MUTEX_NEW) => NEW,
        ("i_mutex_dir", I_MUTEX_NEW) => NEW_DIR,
        (name, _) => name,
    }
}

/// Random operations, one after the other, as `Ours` does them.
fn anything(block_size: u32, features: &'static str, options: &str, theme: Theme, seed: u64) {
    let spec = Mkfs { block_size, features, ..Mkfs::default() };
    let mut ours = Ours::mount(&image(&spec), options, auto()).expect("mounting");
    for op in Generator::new(seed, theme, block_size, true).sequence(150) {
        // Whether it succeeds is for other tests.
        let _ = ours.apply(&op);
    }
    ours.unmount().expect("unmounting");
}

/// Writers side by side, asynchronous ones, past the end, into holes; with truncation, flags, freezing, remounting between.
fn direct_io(options: &str) {
    let m = Mount::new(options);
    let listener = Listener::new();
    let (data, holes) = (m.open("/data"), m.open_with("/holes", OpenFlags::O_DSYNC));
    let memory = leaked(8192, 7);
    let mut queued = 0;
    for round in 0..4 {
        std::thread::scope(|scope| {
            for n in 0..2 {
                let (data, holes) = (&data, &holes);
                scope.spawn(move || {
                    write(data, (2 * round + n) * 8192, memory).expect("writing");
                    write(holes, (2 * round + n) * 65536, memory).expect("writing");
                    read(data, 0, 4096).expect("reading");
                });
            }
        });
        for (file, pos) in [(&data, 1 << 20), (&holes, (1 << 21) + 8192 * round), (&data, 512)] {
            match write_async(file, pos, &memory[..if pos == 512 { 512 } else { 8192 }], &listener, queued) {
                Err(EIOCBQUEUED) => queued += 1,
                other => assert!(other.is_ok(), "{other:?}"),
            }
        }
        ext4_dio::setattr::ext4_setattr_size(holes.f_inode(), 100_000 + round).expect("truncating");
        ext4_freeze(&m.sb).expect("freezing");
        ext4_unfreeze(&m.sb).expect("thawing");
    }
    listener.wait(queued);
    let flags = ext4_ioctl_getflags(data.f_inode());
    ext4_ioctl_setflags(data.f_inode(), flags | InodeFlags::NOATIME).expect("flags");
    drop((data, holes));
    ext4_remount(&m.sb, "ro").expect("read-only");
    ext4_remount(&m.sb, "rw").expect("writable");
    m.finish();
}

#[test]
fn the_order_is_the_documented_one() {
    let start = std::time::Instant::now();
    let themes =
        [(Theme::Data, IN_FLIGHT), (Theme::Mixed, EXCLUSIVE), (Theme::Names, I_DATA_SEM), (Theme::Full, IN_FLIGHT)];
    for (seed, (theme, options)) in (0..).zip(themes) {
        anything(4096, "", options, theme, 10 + seed);
        anything(1024, "^has_journal", options, themes[3 - seed as usize].0, 20 + seed);
    }
    direct_io(IN_FLIGHT);
    direct_io(I_DATA_SEM);
    let mut orders = BTreeSet::new();
    for_each_order(&mut |from, to| {
        orders.insert((called(from), called(to)));
    });
    let names: BTreeSet<&str> = orders.iter().flat_map(|(from, to)| [*from, *to]).collect();
    let unknown: Vec<_> = names.iter().filter(|name| rank(name).is_none() && !WORKS.contains(name)).collect();
    assert!(unknown.is_empty(), "in no documented order: {unknown:?}");
    let wrong =
        |(from, to): &&(&str, &str)| matches!((rank(from), rank(to)), (Some(a), Some(b)) if a >= b && from != to);
    let wrong: Vec<_> = orders.iter().filter(wrong).collect();
    assert!(wrong.is_empty(), "taken the other way round: {wrong:?}");
    let missing: Vec<_> = SEEN.iter().filter(|order| !orders.contains(order)).collect();
    assert!(missing.is_empty(), "not seen: {missing:?} in {orders:?}");
    let line = format!(
        "lockdep: {} classes with names, {} orders of two, all as documented, {:.1} s\n",
        names.len(),
        orders.len(),
        start.elapsed().as_secs_f64()
    );
    std::io::stderr().write_all(line.as_bytes()).expect("standard error");
}
