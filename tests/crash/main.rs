// SPDX-License-Identifier: GPL-2.0-only
//! Crash images.

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
        "crashes: {} runs, {} moments, {} different images, and {} of a crash in recovery; {} runs of e2fsck, {} mounts by Linux; {:.1} s",
        of(&counts.runs),
        of(&counts.points),
        of(&counts.images),
        of(&counts.second),
        of(&counts.fsck),
        of(&counts.linux),
        start.elapsed().as_secs_f64(),
    );
    let failures = outcome.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
