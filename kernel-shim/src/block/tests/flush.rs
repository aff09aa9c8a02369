// SPDX-License-Identifier: GPL-2.0-only
//! Flush sequences: every device, every combination of flags, every step that can fail.

use std::vec;

use super::*;
use crate::block::fault::FaultDisk;
use crate::block::ramdisk::OpMask;
use crate::error::code::EIO;

const FLUSH: ReqOpf = ReqOpf::REQ_OP_FLUSH.union(ReqOpf::SYNC);
const FUA: ReqOpf = ReqOpf::FUA;
const PREFLUSH: ReqOpf = ReqOpf::PREFLUSH;

/// A device's (write_cache, fua), and for a submission its flags, whether it has data, and what the device sees.
type Case = ((bool, bool), ReqOpf, bool, Vec<ReqOpf>);

fn cases() -> Vec<Case> {
    let plain = (false, false);
    let cached = (true, false);
    let fua = (true, true);
    vec![
        (plain, WRITE | PREFLUSH | FUA, true, vec![WRITE]),
        (plain, WRITE | FUA, true, vec![WRITE]),
        (plain, WRITE | PREFLUSH, false, vec![]),
        (plain, ReqOpf::REQ_OP_FLUSH, false, vec![]),
        ((false, true), WRITE | FUA, true, vec![WRITE]),
        (cached, WRITE, true, vec![WRITE]),
        (cached, WRITE | PREFLUSH, true, vec![FLUSH, WRITE]),
        (cached, WRITE | FUA, true, vec![WRITE, FLUSH]),
        (cached, WRITE | PREFLUSH | FUA, true, vec![FLUSH, WRITE, FLUSH]),
        (cached, WRITE | PREFLUSH, false, vec![FLUSH]),
        (cached, WRITE | PREFLUSH | FUA, false, vec![FLUSH]),
        (cached, ReqOpf::REQ_OP_FLUSH, false, vec![FLUSH]),
        (cached, READ | PREFLUSH, true, vec![FLUSH, READ]),
        (fua, WRITE | FUA, true, vec![WRITE | FUA]),
        (fua, WRITE | PREFLUSH | FUA, true, vec![FLUSH, WRITE | FUA]),
        (fua, WRITE | PREFLUSH, true, vec![FLUSH, WRITE]),
        (fua, ReqOpf::REQ_OP_WRITE_ZEROES | FUA, true, vec![ReqOpf::REQ_OP_WRITE_ZEROES, FLUSH]),
        (fua, ReqOpf::REQ_OP_FLUSH, false, vec![FLUSH]),
    ]
}

fn limits((write_cache, fua): (bool, bool)) -> QueueLimits {
    QueueLimits { write_cache, fua, write_zeroes: true, ..QueueLimits::DEFAULT }
}

#[test]
fn one_step_after_the_other() {
    for (device, opf, data, want) in cases() {
        let (disk, bdev) = manual(limits(device));
        let ended = Ended::default();
        disk.start_log();
        submit_bio(&bdev, bio(&bdev, opf, 16, if data { 4096 } else { 0 }, 3, &ended));
        for (i, step) in want.iter().enumerate() {
            let now = disk.pending();
            assert_eq!(now.len(), 1, "{device:?} {opf:?} step {i}");
            let place = if *step == FLUSH { (0, 0) } else { (16, 4096) };
            assert_eq!((now[0].opf, (now[0].sector, now[0].bytes)), (*step, place), "{device:?} {opf:?}");
            assert!(ended.take().is_empty());
            assert!(disk.complete_next());
        }
        assert_eq!(disk.in_flight(), 0);
        assert_eq!(ended.take(), [(16, Ok(()))], "{device:?} {opf:?}");
        let durable = !device.0 || opf.contains(FUA);
        if opf.op() == ReqOp::Write && data {
            assert_eq!(disk.image()[8192], 3);
            assert_eq!(disk.durable_image()[8192] == 3, durable, "{device:?} {opf:?}");
        }
    }
}

#[test]
fn a_failed_step_ends_it() {
    for (device, opf, data, want) in cases() {
        for fail in 0..want.len() {
            let ram =
                RamDisk::new(1 << 20, RamDiskOptions { mode: Mode::Manual, seed: 1, limits: limits(device) }).unwrap();
            let faulty = Arc::new(FaultDisk::new(ram.clone()), GFP_NOIO).unwrap();
            let bdev = Bdev::with_bios(faulty.clone(), 8).unwrap();
            let ended = Ended::default();
            ram.start_log();
            faulty.fail_nth(fail as u64 + 1, OpMask::all().difference(OpMask::NOT_META));
            submit_bio(&bdev, bio(&bdev, opf, 16, if data { 4096 } else { 0 }, 3, &ended));
            ram.complete_all();
            assert_eq!(ended.take(), [(16, Err(EIO))], "{device:?} {opf:?} step {fail}");
            let seen: Vec<_> = queued(&ram.take_log()).iter().map(|r| r.0).collect();
            assert_eq!(seen, want[..fail], "nothing after the failed step");
        }
    }
}

#[test]
fn a_preflush_covers_what_has_ended() {
    let (disk, bdev) = manual(limits((true, false)));
    let ended = Ended::default();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 1, &ended));
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, WRITE | PREFLUSH, 8, 512, 2, &ended));
    disk.complete_all();
    let durable = disk.durable_image();
    assert_eq!((durable[0], durable[8 * 512], disk.image()[8 * 512]), (1, 0, 2));
}

#[test]
fn issue_flush() {
    let (disk, bdev) = automatic();
    bdev_rw(&bdev, WRITE, 0, &mut [5; 512]).unwrap();
    assert_eq!(disk.durable_image()[0], 0);
    blkdev_issue_flush(&bdev).unwrap();
    assert_eq!(disk.durable_image()[0], 5);
    bdev_rw(&bdev, WRITE | FUA, 1, &mut [6; 512]).unwrap();
    assert_eq!(disk.durable_image()[512], 6);
    bdev_rw(&bdev, WRITE, 2, &mut [7; 512]).unwrap();
    bdev_rw(&bdev, WRITE | PREFLUSH, 3, &mut [8; 512]).unwrap();
    let durable = disk.durable_image();
    assert_eq!((durable[1024], durable[1536]), (7, 0));
}
