// SPDX-License-Identifier: GPL-2.0-only
//! Bios, requests, plugs, the bio set, and what `submit_bio` refuses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::{format, vec};

use super::*;
use crate::alloc::GFP_ATOMIC;
use crate::block::ramdisk::OpMask;
use crate::error::code::*;
use crate::sync::Completion;

#[test]
fn data_comes_back() {
    let (disk, bdev) = automatic();
    let mut data: Vec<u8> = (0..300 * 512).map(|i| (i / 512 + i) as u8).collect();
    let want = data.clone();
    bdev_rw(&bdev, WRITE, 5, &mut data).unwrap();
    assert_eq!(disk.image()[5 * 512..305 * 512], want);
    data.fill(0);
    bdev_rw(&bdev, READ, 5, &mut data).unwrap();
    assert_eq!(data, want);
    assert_eq!(bdev_rw(&bdev, ReqOpf::REQ_OP_DISCARD, 0, &mut data), Err(EOPNOTSUPP));
    assert_eq!(bdev_rw(&bdev, READ, 2047, &mut data), Err(EIO));
    assert_eq!(bdev_rw(&bdev, READ, u64::MAX, &mut data), Err(EIO));
    assert_eq!(bdev_rw(&bdev, READ, 0, &mut data[..100]), Err(EINVAL));
    assert_eq!(bdev_rw(&bdev, READ, 0, &mut []), Ok(()));
    assert_eq!(bdev.stats().bios_out, 0);
}

#[test]
fn a_plug_sorts_and_merges() {
    let (disk, bdev) = manual(QueueLimits::DEFAULT);
    let ended = Ended::default();
    disk.start_log();
    let plug = BlkPlug::start();
    for block in [7, 2, 0, 1, 9, 8] {
        submit_bio(&bdev, bio(&bdev, WRITE, block * BLOCK, 4096, block as u8, &ended));
    }
    submit_bio(&bdev, bio(&bdev, READ, 3 * BLOCK, 4096, 0, &ended));
    assert_eq!(disk.stats().requests, 0);
    plug.finish();
    assert_eq!(queued(&disk.take_log()), [(WRITE, 0, 3 * 4096), (READ, 24, 4096), (WRITE, 56, 3 * 4096)]);
    assert_eq!((disk.stats().doorbells, disk.in_flight()), (1, 3));
    assert_eq!((bdev.stats().requests, bdev.stats().merges), (3, 4));
    disk.complete_all();
    let mut sectors: Vec<u64> = ended.take().iter().map(|e| e.0 / BLOCK).collect();
    sectors.sort_unstable();
    assert_eq!(sectors, [0, 1, 2, 3, 7, 8, 9]);
    for block in [0, 1, 2, 7, 8, 9] {
        assert_eq!(disk.image()[block * 4096..][..4096], [block as u8; 4096]);
    }
}

#[test]
fn merges_respect_limits_and_flags() {
    let limits = QueueLimits { max_segments: 2, fua: true, write_cache: true, ..QueueLimits::DEFAULT };
    let (disk, bdev) = manual(limits);
    let ended = Ended::default();
    disk.start_log();
    let plug = BlkPlug::start();
    for block in 0..5 {
        submit_bio(&bdev, bio(&bdev, WRITE, block * BLOCK, 4096, 1, &ended));
    }
    for (block, opf) in [(5, WRITE | ReqOpf::FUA), (6, WRITE | ReqOpf::FUA), (7, WRITE)] {
        submit_bio(&bdev, bio(&bdev, opf, block * BLOCK, 4096, 1, &ended));
    }
    plug.finish();
    let lens: Vec<u32> = queued(&disk.take_log()).iter().map(|r| r.2).collect();
    assert_eq!(lens, [8192, 8192, 4096, 8192, 4096]);
    disk.complete_all();
    assert_eq!(ended.errors(), vec![None; 8]);

    let (disk, bdev) = manual(QueueLimits { max_bytes: 12288, ..QueueLimits::DEFAULT });
    disk.start_log();
    let plug = BlkPlug::start();
    for block in 0..5 {
        submit_bio(&bdev, bio(&bdev, WRITE, block * BLOCK, 4096, 1, &ended));
    }
    plug.finish();
    let lens: Vec<u32> = queued(&disk.take_log()).iter().map(|r| r.2).collect();
    assert_eq!(lens, [12288, 8192]);
    disk.complete_all();
}

#[test]
fn equal_sectors_keep_their_order() {
    let (disk, bdev) = manual(QueueLimits::DEFAULT);
    let ended = Ended::default();
    let plug = BlkPlug::start();
    for (sector, byte) in [(8, 1), (0, 2), (8, 3), (0, 4), (8, 5)] {
        submit_bio(&bdev, bio(&bdev, WRITE, sector, 512, byte, &ended));
    }
    plug.finish();
    for id in 0..5 {
        assert!(disk.complete(id));
    }
    assert_eq!((disk.image()[0], disk.image()[8 * 512]), (4, 5));
}

#[test]
fn two_disks_in_one_plug() {
    let (disk_a, a) = manual(QueueLimits::DEFAULT);
    let (disk_b, b) = manual(QueueLimits::DEFAULT);
    let ended = Ended::default();
    let plug = BlkPlug::start();
    for i in 0..4 {
        submit_bio(&a, bio(&a, WRITE, i * BLOCK, 4096, 1, &ended));
        submit_bio(&b, bio(&b, WRITE, (4 + i) * BLOCK, 4096, 1, &ended));
    }
    plug.finish();
    for disk in [&disk_a, &disk_b] {
        assert_eq!((disk.stats().doorbells, disk.pending().len(), disk.pending()[0].bytes), (1, 1, 4 * 4096));
        disk.complete_all();
    }
    assert_eq!(ended.errors(), vec![None; 8]);
}

#[test]
fn a_full_plug_is_flushed() {
    let (disk, bdev) = manual(QueueLimits::DEFAULT);
    let ended = Ended::default();
    let plug = BlkPlug::start();
    for i in 0..33 {
        assert_eq!(disk.in_flight(), 0, "at {i}");
        submit_bio(&bdev, bio(&bdev, WRITE, i * 16, 4096, 1, &ended));
    }
    assert_eq!(disk.in_flight(), 32);
    plug.finish();
    assert_eq!(disk.in_flight(), 33);
    disk.complete_all();
}

#[test]
fn an_inner_plug_does_nothing() {
    let (disk, bdev) = manual(QueueLimits::DEFAULT);
    let ended = Ended::default();
    let outer = BlkPlug::start();
    let inner = BlkPlug::start();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 1, &ended));
    inner.finish();
    assert_eq!(disk.in_flight(), 0);
    outer.finish();
    assert_eq!(disk.in_flight(), 1);
    disk.complete_all();
    submit_bio(&bdev, bio(&bdev, WRITE, 0, 512, 1, &ended));
    assert_eq!(disk.in_flight(), 1, "no plug is left");
    disk.complete_all();
}

#[test]
fn a_sleeper_takes_its_plug_along() {
    let (disk, bdev) = automatic();
    for forget in [false, true] {
        static DONE: Completion = Completion::new();
        let ended = Ended::default();
        let plug = BlkPlug::start();
        let mut first = bio(&bdev, WRITE, 0, 512, 1, &ended);
        first.bi_end_io = |bio| {
            drop(bio);
            DONE.complete();
        };
        let before = disk.stats().requests;
        submit_bio(&bdev, first);
        assert_eq!(disk.stats().requests, before);
        if forget {
            core::mem::forget(plug);
        }
        // Would sleep for ever if the write stayed where it is.
        DONE.wait();
        assert_eq!(disk.stats().requests, before + 1);
    }
}

#[test]
fn a_bio_that_ends_early_may_submit_into_the_plug() {
    // The fast disk completes inside queue_rq; the second write is submitted from there.
    let bdev = Bdev::new(RamDisk::fast(1 << 20).unwrap()).unwrap();
    static BDEV: Mutex<Option<Bdev>> = Mutex::new(None);
    static DONE: Completion = Completion::new();
    *BDEV.lock().unwrap() = Some(bdev.clone());
    let mut first = bio(&bdev, WRITE, 0, 512, 1, &Ended::default());
    first.bi_end_io = |bio| {
        drop(bio);
        let bdev = BDEV.lock().unwrap().take().unwrap();
        let mut second = super::bio(&bdev, WRITE, 8, 512, 2, &Ended::default());
        second.bi_end_io = |bio| {
            drop(bio);
            DONE.complete();
        };
        submit_bio(&bdev, second);
    };
    let plug = BlkPlug::start();
    submit_bio(&bdev, first);
    plug.finish();
    DONE.wait();
    let mut data = [0; 512];
    bdev_rw(&bdev, READ, 8, &mut data).unwrap();
    assert_eq!(data, [2; 512]);
}

/// A device that ends everything well, and says when it is dropped.
struct Null {
    limits: QueueLimits,
    dropped: StdArc<AtomicBool>,
    lose: bool,
}

impl BlockDevice for Null {
    fn limits(&self) -> &QueueLimits {
        &self.limits
    }
    fn nr_sectors(&self) -> u64 {
        64
    }
    fn queue_rq(&self, rq: Request) {
        if self.lose {
            drop(rq);
        } else {
            rq.end(Ok(()));
        }
    }
    fn commit_rqs(&self) {}
    fn name(&self) -> &str {
        "null-of-tests"
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

fn null(limits: QueueLimits, nr_bios: usize) -> (Bdev, StdArc<AtomicBool>) {
    let dropped = StdArc::new(AtomicBool::new(false));
    (Bdev::with_bios(Null { limits, dropped: dropped.clone(), lose: false }, nr_bios).unwrap(), dropped)
}

#[test]
fn what_is_refused_and_how() {
    let limits = QueueLimits { logical_block_size: 4096, max_bytes: 8192, ..QueueLimits::DEFAULT };
    let (bdev, _) = null(limits.clone(), 8);
    let ended = Ended::default();
    let cases = [
        (WRITE, 0, 4096, Ok(())),
        (READ, 56, 4096, Ok(())),
        (WRITE, 64, 4096, Err(EIO)),
        (WRITE, 56, 8192, Err(EIO)),
        (READ, u64::MAX, 4096, Err(EIO)),
        (READ, u64::MAX - 7, 4096, Err(EIO)),
        (READ, 1 << 60, 4096, Err(EIO)),
        (READ, 1, 4096, Err(EINVAL)),
        (READ, 0, 512, Err(EINVAL)),
        (READ, 0, 0, Err(EINVAL)),
        (WRITE | ReqOpf::FUA, 0, 0, Err(EINVAL)),
        (WRITE | ReqOpf::PREFLUSH, 0, 0, Ok(())),
        (ReqOpf::REQ_OP_FLUSH, 0, 0, Ok(())),
        (ReqOpf::REQ_OP_DISCARD, 0, 4096, Err(EOPNOTSUPP)),
        (ReqOpf::REQ_OP_WRITE_ZEROES, 0, 4096, Err(EOPNOTSUPP)),
        (ReqOpf::from_bits_retain(77), 0, 0, Err(EOPNOTSUPP)),
    ];
    for (opf, sector, len, want) in cases {
        submit_bio(&bdev, bio(&bdev, opf, sector, len, 0, &ended));
        assert_eq!(ended.take(), [(sector, want)], "{opf:?} of {len} at {sector}");
    }
    let (bdev, _) = null(QueueLimits { read_only: true, write_cache: true, ..limits }, 8);
    for (opf, len, want) in [(WRITE, 4096, Err(EROFS)), (READ, 4096, Ok(())), (ReqOpf::REQ_OP_FLUSH, 0, Ok(()))] {
        submit_bio(&bdev, bio(&bdev, opf, 0, len, 0, &ended));
        assert_eq!(ended.take(), [(0, want)], "{opf:?}");
    }
    let (other, _) = null(QueueLimits::DEFAULT, 8);
    submit_bio(&other, bio(&bdev, READ, 0, 4096, 0, &ended));
    assert_eq!(ended.take(), [(0, Err(EINVAL))], "a bio of another disk");
}

#[test]
fn limits_that_make_no_sense() {
    for limits in [
        QueueLimits { logical_block_size: 0, ..QueueLimits::DEFAULT },
        QueueLimits { logical_block_size: 256, ..QueueLimits::DEFAULT },
        QueueLimits { logical_block_size: 1000, ..QueueLimits::DEFAULT },
        QueueLimits { max_segments: 0, ..QueueLimits::DEFAULT },
        QueueLimits { max_bytes: 511, ..QueueLimits::DEFAULT },
        QueueLimits { max_segment_size: 0, ..QueueLimits::DEFAULT },
    ] {
        let dropped = StdArc::new(AtomicBool::new(false));
        let bdev = Bdev::new(Null { limits: limits.clone(), dropped: dropped.clone(), lose: false });
        assert_eq!(bdev.err(), Some(EINVAL), "{limits:?}");
        assert!(dropped.load(Ordering::SeqCst));
    }
}

#[test]
fn a_lost_request_is_an_error() {
    let dropped = StdArc::new(AtomicBool::new(false));
    let bdev = Bdev::new(Null { limits: QueueLimits::DEFAULT, dropped, lose: true }).unwrap();
    assert_eq!(bdev_rw(&bdev, READ, 0, &mut [0; 512]), Err(EIO));
}

#[test]
fn bio_add_page_joins_and_stops() {
    let limits = QueueLimits { max_segments: 3, max_segment_size: 2048, max_bytes: 5 * 1024, ..QueueLimits::DEFAULT };
    let (bdev, _) = null(limits, 8);
    let mem = memory(1 << 16, 0);
    // SAFETY: inside the memory.
    let at = |offset| unsafe { mem.add(offset) };
    let mut bio = bio_alloc(&bdev, WRITE, GFP_NOIO).unwrap();
    // SAFETY: the memory is leaked.
    let mut add = |offset, len| unsafe { bio.bio_add_page(at(offset), len) };
    assert!(add(0, 1024));
    assert!(add(1024, 1024), "joined to the first");
    assert!(!add(8192, 4096), "longer than a segment");
    assert!(add(2048, 512), "touches, but the segment is full");
    assert!(add(8192, 512));
    assert!(!add(16384, 512), "no fourth segment");
    assert!(!add(8704, 0));
    assert!(add(8704, 1024));
    assert!(add(9728, 512), "the last segment is now 2048 long");
    assert!(!add(10240, 512), "no more bytes");
    assert_eq!((bio.size(), bio.io_vec().len()), (4608, 3));

    let (bdev, _) = null(QueueLimits::DEFAULT, 8);
    let mut bio = bio_alloc(&bdev, WRITE, GFP_NOIO).unwrap();
    for i in 0..BIO_MAX_VECS {
        // SAFETY: as above.
        assert!(unsafe { bio.bio_add_page(at(i * 1024), 512) });
    }
    // SAFETY: as above.
    assert!(!unsafe { bio.bio_add_page(at(60_000), 512) });
}

#[test]
fn no_bio_to_be_had() {
    let (disk, _) = manual(QueueLimits::DEFAULT);
    let bdev = Bdev::with_bios(disk.clone(), 3).unwrap();
    let ended = Ended::default();
    let plug = BlkPlug::start();
    for i in 0..3 {
        submit_bio(&bdev, bio(&bdev, WRITE, 2 * i, 512, 1, &ended));
    }
    assert_eq!(bio_alloc(&bdev, WRITE | ReqOpf::NOWAIT, GFP_NOIO).err(), Some(EAGAIN));
    assert_eq!(bio_alloc(&bdev, WRITE, GFP_ATOMIC).err(), Some(EAGAIN));
    assert_eq!(disk.in_flight(), 0, "who must not wait does not flush either");
    // Four threads wait for three bios, two rounds each; the plug goes when its owner waits.
    let (started, starts) = mpsc::channel();
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let (bdev, started) = (bdev.clone(), started.clone());
            thread::spawn(move || {
                started.send(()).unwrap();
                for _ in 0..2 {
                    drop(bio_alloc(&bdev, READ, GFP_NOIO).unwrap());
                }
            })
        })
        .collect();
    for _ in 0..4 {
        starts.recv().unwrap();
    }
    let completer = thread::spawn({
        let disk = disk.clone();
        move || {
            disk.wait_in_flight(3);
            disk.complete_all();
        }
    });
    drop(bio_alloc(&bdev, READ, GFP_NOIO).unwrap());
    completer.join().unwrap();
    for waiter in waiters {
        waiter.join().unwrap();
    }
    plug.finish();
    assert_eq!((bdev.stats().bios_out, ended.take().len()), (0, 3));
}

#[test]
fn bios_are_found_on_all_cpus() {
    let (bdev, _) = null(QueueLimits::DEFAULT, 3);
    let turn = std::sync::Mutex::new(());
    let start = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            // Threads that are alive together are on different CPUs.
            scope.spawn(|| {
                crate::sched::current();
                start.wait();
                let _turn = turn.lock().unwrap();
                let all = [(); 3].map(|()| bio_alloc(&bdev, WRITE | ReqOpf::NOWAIT, GFP_NOIO).unwrap());
                assert_eq!(bio_alloc(&bdev, WRITE | ReqOpf::NOWAIT, GFP_NOIO).err(), Some(EAGAIN));
                assert_eq!(bdev.stats().bios_out, 3);
                drop(all);
            });
        }
    });
    assert_eq!(bdev.stats().bios_out, 0);
}

#[test]
fn a_disk_outlives_its_bios() {
    let (bdev, dropped) = null(QueueLimits::DEFAULT, 4);
    let ended = Ended::default();
    let held = bio(&bdev, READ, 0, 512, 0, &ended);
    let dropper = thread::spawn(move || drop(bdev));
    // Whether or not the other thread has come to its wait: the device is there.
    for _ in 0..1000 {
        assert!(!dropped.load(Ordering::SeqCst));
        thread::yield_now();
    }
    held.endio(Ok(()));
    dropper.join().unwrap();
    assert!(dropped.load(Ordering::SeqCst));
}

#[test]
fn a_plug_outlives_the_handle() {
    let (bdev, dropped) = null(QueueLimits::DEFAULT, 4);
    let ended = Ended::default();
    let plug = BlkPlug::start();
    submit_bio(&bdev, bio(&bdev, READ, 0, 512, 0, &ended));
    drop(bdev);
    assert!(dropped.load(Ordering::SeqCst), "the drop flushed the plug, or it would have waited in vain");
    plug.finish();
    assert_eq!(ended.errors(), [None]);
}

#[test]
fn request_lists() {
    let (bdev, _) = null(QueueLimits::DEFAULT, 8);
    let ended = Ended::default();
    let rq = |sector| Request::new(bio(&bdev, READ, sector, 512, 0, &ended), READ);
    let mut list = RqList::new();
    let mut more = RqList::new();
    assert!(list.pop_front().is_none());
    list.push_back(rq(1));
    more.push_back(rq(2));
    more.push_back(rq(3));
    list.append(&mut more);
    assert!(more.is_empty() && !list.is_empty());
    let first = list.pop_front().unwrap();
    assert_eq!(first.sector(), 1);
    // SAFETY: the word is the one just made.
    unsafe { Request::from_raw(first.into_raw()) }.end(Err(ENOSPC));
    drop(list);
    assert_eq!(ended.take(), [(1, Err(ENOSPC)), (2, Err(EIO)), (3, Err(EIO))]);
}

#[test]
fn a_merged_request_fails_as_one_and_names_its_memory() {
    let (bdev, _) = null(QueueLimits::DEFAULT, 8);
    let ended = Ended::default();
    let rq = |sector, byte| Request::new(bio(&bdev, WRITE, sector, 512, byte, &ended), WRITE);
    let mut one = rq(0, 1);
    one.try_merge(rq(1, 2), bdev.limits()).unwrap();
    let mut two = rq(2, 3);
    two.try_merge(rq(3, 4), bdev.limits()).unwrap();
    one.try_merge(two, bdev.limits()).unwrap();
    let apart = one.try_merge(rq(5, 9), bdev.limits()).unwrap_err();
    assert_eq!((one.nr_bios(), one.nr_segments(), one.nr_bytes(), one.end_sector()), (4, 4, 2048, 4));
    // SAFETY: the memory is there, and nobody writes it.
    let bytes: Vec<u8> = one.vecs().map(|v| unsafe { *v.bv_page.as_ptr() }).collect();
    assert_eq!(bytes, [1, 2, 3, 4]);
    let mut again = Vec::new();
    one.for_each_vec(|v| again.push(v.bv_len));
    assert_eq!(again, [512; 4]);
    assert!(format!("{one:?}").contains("2048"));
    one.end(Err(ENOSPC));
    apart.end(Ok(()));
    let want = [(0, Err(ENOSPC)), (1, Err(ENOSPC)), (2, Err(ENOSPC)), (3, Err(ENOSPC)), (5, Ok(()))];
    assert_eq!(ended.take(), want);
}

#[test]
fn a_batch_reports_its_first_error_and_waits_for_all() {
    let (disk, bdev) = automatic();
    disk.hold(OpMask::WRITE);
    let ended = Ended::default();
    let result = IoBatch::run(&bdev, |batch| {
        for sector in [0, 1 << 40, 8] {
            batch.submit(bio(&bdev, WRITE, sector, 512, 7, &ended));
        }
        disk.release();
        Ok(())
    });
    assert_eq!((result, disk.in_flight()), (Err(EIO), 0));
    assert_eq!((disk.image()[0], disk.image()[8 * 512]), (7, 7));
    assert_eq!(IoBatch::run(&bdev, |_| Err(ENOSPC)), Err(ENOSPC));
}
