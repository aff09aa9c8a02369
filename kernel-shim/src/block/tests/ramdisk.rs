// SPDX-License-Identifier: GPL-2.0-only
//! The RAM disk does punish: each misuse is committed, and caught.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::thread;

use super::*;
use crate::block::ramdisk::{DISCARDED, OpMask, POISON};

const CACHED: QueueLimits = QueueLimits { write_cache: true, fua: true, discard: true, ..QueueLimits::DEFAULT };

/// A bio on `mem`.
fn on(bdev: &Bdev, opf: ReqOpf, sector: u64, mem: NonNull<u8>, len: u32) -> BioPtr {
    let mut bio = bio_alloc(bdev, opf, GFP_NOIO).unwrap();
    bio.bi_sector = sector;
    // SAFETY: the memory of these tests is leaked.
    assert!(unsafe { bio.bio_add_page(mem, len) });
    bio
}

fn peek(mem: NonNull<u8>) -> u8 {
    // SAFETY: leaked memory, and the disk does nothing to it at this moment.
    unsafe { mem.as_ptr().read_volatile() }
}

fn poke(mem: NonNull<u8>, byte: u8) {
    // SAFETY: as above.
    unsafe { mem.as_ptr().write_volatile(byte) }
}

fn message(panic: &(dyn core::any::Any + Send)) -> String {
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_read_is_poisoned_until_it_ends() {
    let (disk, bdev) = manual(CACHED);
    let mem = memory(512, 7);
    submit_bio(&bdev, on(&bdev, READ, 0, mem, 512));
    assert_eq!(peek(mem), POISON);
    disk.complete_all();
    assert_eq!(peek(mem), 0);
}

#[test]
fn a_read_does_not_see_writes_in_flight() {
    let (disk, bdev) = manual(CACHED);
    let mem = memory(512, 7);
    let ended = Ended::default();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 9, &ended));
    submit_bio(&bdev, on(&bdev, READ, 0, mem, 512));
    assert!(disk.complete(1));
    assert_eq!(peek(mem), 0);
    assert!(disk.complete(0));
    submit_bio(&bdev, on(&bdev, READ, 0, mem, 512));
    disk.complete_all();
    assert_eq!(peek(mem), 9);
    assert!(!disk.complete(0));
    assert_eq!(disk.stats().read_write_overlaps, 1);
}

#[test]
fn a_changed_buffer_panics_in_manual_mode() {
    let (disk, bdev) = manual(CACHED);
    let mem = memory(512, 7);
    submit_bio(&bdev, on(&bdev, WRITE, 0, mem, 512));
    poke(mem, 8);
    let panic = catch_unwind(AssertUnwindSafe(|| disk.complete_all())).unwrap_err();
    assert!(message(&*panic).contains("buffer changed while in flight"));
    assert_eq!(disk.image()[0], 0);
}

#[test]
fn a_changed_buffer_panics_in_check_and_drop() {
    for by_drop in [false, true] {
        let (disk, bdev) = automatic();
        disk.hold(OpMask::WRITE);
        let mem = memory(512, 7);
        let bio = on(&bdev, WRITE, 0, mem, 512);
        submit_bio(&bdev, bio);
        disk.wait_in_flight(1);
        poke(mem, 8);
        disk.release();
        disk.wait_idle();
        let panic = if by_drop {
            drop(bdev);
            catch_unwind(AssertUnwindSafe(|| drop(disk))).unwrap_err()
        } else {
            catch_unwind(AssertUnwindSafe(|| disk.check())).unwrap_err()
        };
        assert!(message(&*panic).contains("buffer changed while in flight"));
    }
}

#[test]
fn nothing_moves_before_commit() {
    let (disk, bdev) = manual(CACHED);
    let ended = Ended::default();
    let rq = Request::new(bio(&bdev, WRITE, 0, 512, 9, &ended), WRITE);
    disk.queue_rq(rq);
    assert_eq!((disk.in_flight(), disk.complete_all()), (0, 0));
    disk.commit_rqs();
    assert_eq!((disk.in_flight(), disk.complete_all()), (1, 1));
    disk.commit_rqs();
    assert_eq!(disk.stats().doorbells, 1);
}

#[test]
fn a_flush_covers_what_had_ended_when_it_was_queued() {
    let (disk, bdev) = manual(CACHED);
    let ended = Ended::default();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 1, &ended));
    assert!(disk.complete(0));
    submit_bio(&bdev, bio(&bdev, WRITE, 1, 512, 2, &ended));
    submit_bio(&bdev, bio(&bdev, ReqOpf::REQ_OP_FLUSH, 0, 0, 0, &ended));
    assert_eq!(disk.durable_image()[0], 0);
    // The second write ends before the flush, but after it was queued.
    assert!(disk.complete(1) && disk.complete(2));
    let durable = disk.durable_image();
    assert_eq!((durable[0], durable[512]), (1, 0));
}

#[test]
fn fua_is_durable_and_not_undone_by_older_writes() {
    let (disk, bdev) = manual(CACHED);
    let ended = Ended::default();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 1, &ended));
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, WRITE | ReqOpf::FUA, 0, 512, 2, &ended));
    disk.complete_all();
    assert_eq!(disk.durable_image()[0], 2);
    assert!((0..50).all(|seed| disk.crash(seed)[0] == 2));
    submit_bio(&bdev, bio(&bdev, ReqOpf::REQ_OP_FLUSH, 0, 0, 0, &ended));
    disk.complete_all();
    assert_eq!(disk.durable_image()[0], 2);
}

#[test]
fn a_crash_keeps_all_none_or_some() {
    let (disk, bdev) = manual(CACHED);
    let ended = Ended::default();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 1, &ended));
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, ReqOpf::REQ_OP_FLUSH, 0, 0, 0, &ended));
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, WRITE, 8, 1024, 2, &ended));
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, WRITE, 16, 512, 3, &ended));
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let image = disk.crash(seed);
        assert_eq!(image, disk.crash(seed), "one seed, one image");
        assert_eq!(image[0], 1, "flushed");
        seen.insert((image[8 * 512], image[9 * 512], image[16 * 512]));
    }
    // Two blocks of one write each on their own, and a write in flight.
    assert_eq!(seen.len(), 8, "{seen:?}");
    disk.complete_all();
}

#[test]
fn discarded_is_rubbish() {
    let (disk, bdev) = manual(CACHED);
    submit_bio(&bdev, bio(&bdev, ReqOpf::REQ_OP_DISCARD, 8, 4096, 0, &Ended::default()));
    disk.complete_all();
    assert_eq!((disk.image()[4095], disk.image()[4096], disk.image()[8191]), (0, DISCARDED, DISCARDED));
}

#[test]
fn overlapping_writes_are_counted() {
    let (disk, bdev) = manual(CACHED);
    let ended = Ended::default();
    for (sector, len) in [(0, 1024), (1, 1024), (3, 512), (0, 4096)] {
        submit_bio(&bdev, bio(&bdev, WRITE, sector, len, 0, &ended));
    }
    assert_eq!((disk.stats().overlaps, disk.stats().max_in_flight), (1 + 3, 4));
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 4096, 0, &ended));
    assert_eq!(disk.stats().overlaps, 4);
    disk.complete_all();
}

#[test]
fn the_seed_makes_the_order() {
    let order = |seed| {
        let limits = QueueLimits::DEFAULT;
        let disk = RamDisk::new(1 << 20, RamDiskOptions { mode: Mode::Manual, seed, limits }).unwrap();
        let bdev = Bdev::with_bios(disk.clone(), 16).unwrap();
        let ended = Ended::default();
        for i in 0..10 {
            submit_bio(&bdev, bio(&bdev, WRITE, i * 8, 512, 0, &ended));
        }
        assert_eq!(disk.complete_all(), 10);
        ended.take().iter().map(|e| e.0 / 8).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    let orders: BTreeSet<_> = (0..20).map(order).collect();
    assert!(orders.len() > 15, "{orders:?}");
}

#[test]
fn a_barrier_holds_until_all_have_met() {
    let (disk, bdev) = automatic();
    disk.barrier(2);
    let writer = |sector| {
        let bdev = bdev.clone();
        thread::spawn(move || bdev_rw(&bdev, WRITE, sector, &mut [1; 512]))
    };
    let first = writer(0);
    disk.wait_in_flight(1);
    // Others pass.
    bdev_rw(&bdev, READ, 8, &mut [0; 512]).unwrap();
    bdev_rw(&bdev, WRITE | ReqOpf::META, 16, &mut [0; 512]).unwrap();
    assert!(disk.is_held());
    assert_eq!((disk.in_flight(), first.is_finished()), (1, false));
    let second = writer(8);
    first.join().unwrap().unwrap();
    second.join().unwrap().unwrap();
    assert!(!disk.is_held());
    assert!(disk.stats().max_in_flight >= 2);

    disk.barrier(3);
    let third = writer(0);
    disk.wait_in_flight(1);
    assert!(disk.is_held());
    disk.release();
    third.join().unwrap().unwrap();
}

#[test]
fn latencies_pass_side_by_side() {
    let mode = Mode::Auto { workers: 1, latency_ns: 1000..200_000 };
    let disk = RamDisk::new(1 << 20, RamDiskOptions { mode, ..RamDiskOptions::default() }).unwrap();
    let bdev = Bdev::with_bios(disk.clone(), 64).unwrap();
    let ended = Ended::default();
    disk.hold(OpMask::all().difference(OpMask::NOT_META));
    for i in 0..32 {
        submit_bio(&bdev, bio(&bdev, WRITE, i * 8, 512, 0, &ended));
    }
    disk.wait_in_flight(32);
    disk.release();
    disk.wait_idle();
    drop(bdev);
    assert_eq!(ended.take().len(), 32);
}
