// SPDX-License-Identifier: GPL-2.0-only
//! What a crash may leave: runs of random and written steps on fresh, poisoned file systems; at every moment of each run several
//! images of what the disk may hold; each of them recovered and looked at.
//!
//! # An image
//!
//! Writes are recorded with flushes and FUA (`tests/src/crash_disk.rs`). A moment is a place between two events of the disk: a write or
//! a flush is queued, or ends. At a moment, on the disk is what is durable, and of the other writes that have been queued: none, all, the
//! first so many, all but one, some, or sectors of some. The super block's two sectors come together: no ext4 survives half of it. Of a
//! commit block the first sector may be there alone: Linux and `e2fsck` take that for damage, and are then not asked for more than a
//! file system without contradictions; we take it for the commit that it is.
//! Images are counted once, however often they come up.
//!
//! # What is done with each
//!
//! | | how many | what |
//! |---|---|---|
//! | `e2fsck -fy` on the image, then `e2fsck -fn` | each | with a journal it must find nothing to repair but what the journal does not know of: sums in the super block |
//! | a mount of ours, a look, an unmount, `e2fsck -fn` | each | without a journal: on what `e2fsck -fy` has left |
//! | a mount of ours and a look at what `e2fsck -fy` has left | one in 16 | |
//! | a mount by Linux, a look, an unmount, `e2fsck -fn` | one in 400 | where there are root and loop devices |
//! | writing after the recovery | one in 8 | |
//! | a crash in the recovery | of one in 400 with something to recover, each moment of it | our mount, a look, `e2fsck -fn`; one in four as the first |
//!
//! `e2fsck -fn` is not run again on what it has seen in the same run, but for an empty log: many images are recovered to one.
//!
//! The look compares all names, attributes, sizes and bytes with what was promised: see `tests/src/crash_world.rs`.
//!
//! # Runs
//!
//! A third of them are on a disk that ends each request at once: they are the same each time. A third are on one that ends requests in
//! any order, a third on one where somebody else commits all the time, so that commits come in the middle of operations: there a seed
//! gives the same steps, but not the same moments.
//!
//! # To change that
//!
//! * `EXT4_DIO_IMAGES=n`: so many images instead of 10 000. `EXT4_DIO_SECONDS=n`: for so long.
//! * `EXT4_DIO_FIRST=n`: the first run's number; others give other images.
//! * `EXT4_DIO_SEED=n`: this run alone, `EXT4_DIO_POINT=n` at this moment, `EXT4_DIO_CHOICE=…` with these writes, `EXT4_DIO_AGAIN=…` and
//!   in its recovery again, as a failure tells; then everything is done with each image.
//! * `EXT4_DIO_KEEP=dir`: the image that failed is left there.

mod campaign;
mod check;
mod ordered;
mod switches;
mod unit;
mod workload;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use campaign::{Campaign, Only, campaign};
use ext4_dio_tests::differential::number;

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn only() -> Option<Only> {
    let again = text("EXT4_DIO_AGAIN").map(|again| {
        let (point, choice) = again.split_once(',').expect("EXT4_DIO_AGAIN=point,choice");
        (point.parse().expect("a point"), choice.parse().expect("a choice"))
    });
    Some(Only {
        seed: number("EXT4_DIO_SEED")?,
        point: number("EXT4_DIO_POINT").map(|n| n as usize),
        choice: text("EXT4_DIO_CHOICE").map(|choice| choice.parse().expect("a choice")),
        again,
    })
}

#[test]
fn crash_images() {
    let start = Instant::now();
    if only().is_none() {
        // Each mount says that it has recovered.
        kernel_shim::sched::host::set_sink(Some(Box::new(|_, _| {})));
    }
    let outcome = campaign(&Campaign {
        first: number("EXT4_DIO_FIRST").unwrap_or(0),
        images: number("EXT4_DIO_IMAGES").map_or(10_000, |n| n as usize),
        until: number("EXT4_DIO_SECONDS").map(|n| start + Duration::from_secs(n)),
        only: only(),
        keep: text("EXT4_DIO_KEEP").map(Into::into),
    });
    let counts = &outcome.counts;
    let of = |n: &std::sync::atomic::AtomicUsize| n.load(Ordering::Relaxed);
    let _ = writeln!(
        std::io::stderr(),
        "crashes: {} runs, {} moments, {} different images, and {} of a crash in recovery, all mounted here, all but {} of the latter by \
         e2fsck -fy; {} with half a commit block; {} runs of e2fsck, {} mounts by Linux; {:.1} s",
        of(&counts.runs),
        of(&counts.points),
        of(&counts.images),
        of(&counts.second),
        of(&counts.without),
        of(&counts.torn),
        of(&counts.fsck),
        of(&counts.linux),
        start.elapsed().as_secs_f64(),
    );
    let failures = outcome.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
