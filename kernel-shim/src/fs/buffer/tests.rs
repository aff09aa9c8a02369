// SPDX-License-Identifier: GPL-2.0-only
//! The buffer cache on the RAM disk.

use std::sync::mpsc;
use std::thread;
use std::vec::Vec;

use super::cache::WRITE_BATCH;
use super::*;
use crate::block::fault::FaultDisk;
use crate::block::ramdisk::{Mode, OpMask, RamDisk, RamDiskOptions};
use crate::block::{QueueLimits, ReqOp, bdev_rw, blkdev_issue_flush};
use crate::error::code::*;

const BLOCKS: u64 = 4096;

/// A disk of 4 MiB, whose blocks of 1 KiB begin with their numbers.
fn disk() -> Arc<RamDisk> {
    let mut image = std::vec![0; 4 << 20];
    for (i, block) in image.chunks_mut(1024).enumerate() {
        block[..8].copy_from_slice(&(i as u64).to_le_bytes());
    }
    RamDisk::from_image(image, RamDiskOptions::default()).unwrap()
}

fn cache(disk: &Arc<RamDisk>, max: usize) -> BufferCache {
    BufferCache::new(Bdev::new(disk.clone()).unwrap(), 1024, max).unwrap()
}

fn number(bh: &BufferHead) -> u64 {
    u64::from_le_bytes(bh.read()[..8].try_into().unwrap())
}

/// Sectors that were queued with this operation.
fn queued(disk: &RamDisk, op: ReqOp) -> Vec<u64> {
    disk.take_log().iter().filter(|e| !e.done && e.opf.op() == op).map(|e| e.sector).collect()
}

#[test]
fn blocks_come_from_the_disk_once() {
    let disk = disk();
    let cache = cache(&disk, 64);
    disk.start_log();
    for block in [0, 7, BLOCKS - 1, 7, 0] {
        let bh = cache.bread(block).unwrap();
        assert_eq!((bh.block(), number(&bh), bh.read().len()), (block, block, 1024));
        assert!(bh.is_uptodate() && !bh.is_dirty());
    }
    assert_eq!(queued(&disk, ReqOp::Read), [0, 14, 2 * (BLOCKS - 1)]);
    for block in [BLOCKS, BLOCKS + 1, u64::MAX, 1 << 63] {
        assert_eq!(cache.bread(block).err(), Some(EIO));
        assert_eq!(cache.getblk(block).err(), Some(EIO));
    }
    assert_eq!((cache.nr_cached(), cache.nr_blocks(), cache.block_size()), (3, BLOCKS, 1024));
}

#[test]
fn sizes_that_make_no_sense() {
    let disk = disk();
    let bdev = Bdev::new(disk.clone()).unwrap();
    for (size, max) in [(0, 1), (256, 1), (1000, 1), (1 << 21, 1), (1 << 31, 1), (1024, 0)] {
        assert_eq!(BufferCache::new(bdev.clone(), size, max).err(), Some(EINVAL), "{size} {max}");
    }
    let cache = BufferCache::new(bdev, 4096, 1).unwrap();
    assert_eq!(number(&cache.bread(3).unwrap()), 12);
}

#[test]
fn many_readers_one_read() {
    let disk = disk();
    let cache = cache(&disk, 64);
    disk.start_log();
    disk.hold(OpMask::READ);
    let (started, starts) = mpsc::channel();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (cache, started) = (&cache, started.clone());
                scope.spawn(move || {
                    started.send(()).unwrap();
                    number(&cache.bread(5).unwrap())
                })
            })
            .collect();
        for _ in 0..8 {
            starts.recv().unwrap();
        }
        disk.wait_in_flight(1);
        disk.release();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 5);
        }
    });
    assert_eq!(queued(&disk, ReqOp::Read), [10]);
}

#[test]
fn memory_is_bounded() {
    let disk = disk();
    let cache = cache(&disk, 16);
    for block in 0..500 {
        assert_eq!(number(&cache.bread(block % 301 * 7).unwrap()), block % 301 * 7);
        assert!(cache.nr_cached() <= 16, "{} after {block}", cache.nr_cached());
    }
    assert_eq!(cache.invalidate_clean(), 0);
}

#[test]
fn what_is_used_stays_longest() {
    let disk = disk();
    let cache = cache(&disk, 64);
    disk.start_log();
    for round in 0..100 {
        cache.bread(0).unwrap();
        for i in 0..8 {
            cache.bread(1 + round * 8 + i).unwrap();
        }
    }
    let reads = queued(&disk, ReqOp::Read).iter().filter(|sector| **sector == 0).count();
    assert!(reads < 5, "a block in steady use was read {reads} times");
}

#[test]
fn held_and_dirty_blocks_stay() {
    let disk = disk();
    let cache = cache(&disk, 16);
    let held: Vec<_> = (0..100).map(|block| cache.bread(block).unwrap()).collect();
    assert_eq!(cache.nr_cached(), 100);
    held[3].write()[8] = 77;
    held[3].mark_dirty();
    drop(held);
    for block in 100..400 {
        cache.bread(block).unwrap();
    }
    assert!(cache.nr_cached() <= 17, "{}", cache.nr_cached());
    let bh = cache.find(3).expect("dirty, so it must be there");
    assert_eq!(bh.read()[8], 77);
    cache.sync_dirty_buffer(&bh).unwrap();
    assert!(!bh.is_dirty());
    drop(bh);
    assert_eq!(cache.invalidate_clean(), 0);
    assert_eq!(cache.bread(3).unwrap().read()[8], 77);
}

#[test]
fn an_error_is_not_kept() {
    let ram = disk();
    let faulty = Arc::new(FaultDisk::new(ram), GFP_KERNEL).unwrap();
    let cache = BufferCache::new(Bdev::new(faulty.clone()).unwrap(), 1024, 16).unwrap();
    faulty.fail_nth(1, OpMask::READ);
    assert_eq!(cache.bread(9).err(), Some(EIO));
    assert!(!cache.find(9).unwrap().is_uptodate());
    assert_eq!(number(&cache.bread(9).unwrap()), 9);
    assert_eq!(faulty.fired(), 1);
}

#[test]
fn a_block_that_is_filled_is_not_read() {
    let disk = disk();
    let cache = cache(&disk, 16);
    disk.start_log();
    let bh = cache.getblk(4).unwrap();
    assert!(!bh.is_uptodate());
    {
        let mut data = bh.write();
        data.fill(0x44);
        data.set_uptodate();
        data.mark_dirty();
    }
    assert_eq!(cache.bread(4).unwrap().read()[0], 0x44);
    assert!(queued(&disk, ReqOp::Read).is_empty());
    cache.sync_all().unwrap();
    assert_eq!(disk.image()[4096..5120], [0x44; 1024]);
}

#[test]
fn sync_all_goes_in_order_and_merges() {
    let disk = disk();
    let cache = cache(&disk, 1024);
    for block in (0..300).rev().map(|i| i * 7 % 600) {
        let bh = cache.bread(block).unwrap();
        bh.write()[9] = block as u8;
        bh.mark_dirty();
    }
    disk.start_log();
    cache.sync_all().unwrap();
    let sectors = queued(&disk, ReqOp::Write);
    assert!(sectors.is_sorted(), "{sectors:?}");
    assert!(cache.bdev().stats().merges > 0 && disk.stats().max_in_flight > 4);
    let image = disk.image();
    assert!((0..300).map(|i| i * 7 % 600).all(|block| image[block * 1024 + 9] == block as u8));
    assert_ne!(disk.durable_image(), image, "a flush is the caller's");
    blkdev_issue_flush(cache.bdev()).unwrap();
    assert_eq!(disk.durable_image(), image);
    cache.sync_all().unwrap();
    assert!(queued(&disk, ReqOp::Write).is_empty(), "nothing is dirty any more");
}

#[test]
fn every_write_error_is_told_and_nothing_lost() {
    for n in 1.. {
        let ram = disk();
        let faulty = Arc::new(FaultDisk::new(ram.clone()), GFP_KERNEL).unwrap();
        let cache = BufferCache::new(Bdev::new(faulty.clone()).unwrap(), 1024, 64).unwrap();
        for block in (0..100).step_by(2) {
            let bh = cache.bread(block).unwrap();
            bh.write()[9] = 1;
            bh.mark_dirty();
        }
        faulty.fail_nth(n, OpMask::WRITE);
        let result = cache.sync_all();
        assert_eq!(result.is_err(), faulty.fired() == 1, "the {n}th write");
        if result.is_ok() {
            assert_eq!(n, 51);
            return;
        }
        let failed: Vec<_> = (0..100).step_by(2).filter(|b| cache.find(*b).is_some_and(|bh| bh.is_dirty())).collect();
        assert!(!failed.is_empty() && failed.len() <= WRITE_BATCH, "{failed:?}");
        assert!(failed.iter().all(|block| cache.find(*block).is_some_and(|bh| bh.write_io_error())));
        cache.sync_all().unwrap();
        assert!(failed.iter().all(|block| cache.find(*block).is_none_or(|bh| !bh.write_io_error())));
        let image = ram.image();
        assert!((0..100).step_by(2).all(|block| image[block * 1024 + 9] == 1));
    }
}

#[test]
fn contents_are_stable_on_their_way() {
    let disk = disk();
    let cache = cache(&disk, 16);
    let bh = cache.bread(1).unwrap();
    bh.write()[8] = 1;
    bh.mark_dirty();
    disk.hold(OpMask::WRITE);
    let (begun, begins) = mpsc::channel();
    thread::scope(|scope| {
        let syncer = scope.spawn(|| cache.sync_dirty_buffer(&bh));
        disk.wait_in_flight(1);
        assert_eq!(bh.try_read().expect("readers may")[8], 1);
        let writer = scope.spawn(|| {
            begun.send(()).unwrap();
            let mut data = bh.write();
            data[8] = 2;
            data.mark_dirty();
        });
        begins.recv().unwrap();
        for _ in 0..1000 {
            assert!(!writer.is_finished());
            thread::yield_now();
        }
        disk.release();
        syncer.join().unwrap().unwrap();
        writer.join().unwrap();
    });
    // Had the writer got in, the disk would say so.
    disk.check();
    assert_eq!((disk.image()[1032], bh.read()[8], bh.is_dirty()), (1, 2, true));
    cache.sync_all().unwrap();
    assert_eq!(disk.image()[1032], 2);
}

#[test]
fn write_back_waits_for_no_second_lock() {
    let disk = disk();
    let cache = cache(&disk, 16);
    let (a, b) = (cache.bread(1).unwrap(), cache.bread(2).unwrap());
    for bh in [&a, &b] {
        bh.write()[8] = 1;
        bh.mark_dirty();
    }
    let guard = b.write();
    thread::scope(|scope| {
        let syncer = scope.spawn(|| cache.write_buffers(&[a.clone(), b.clone()], ReqOpf::SYNC));
        // The first is written and released although the second is ours: else this would hang.
        while a.is_dirty() {
            thread::yield_now();
        }
        // Nobody else takes these two the other way round.
        crate::sync::lockdep::subclass(1);
        a.write()[8] = 2;
        drop(guard);
        syncer.join().unwrap().unwrap();
    });
    assert_eq!((disk.image()[1032], disk.image()[2056]), (1, 1));
}

#[test]
fn two_make_one_block() {
    let disk = disk();
    let (mine, theirs) = (cache(&disk, 16), cache(&disk, 16));
    let first = mine.getblk(7).unwrap();
    // Made by one who looked before the first was there.
    let second = theirs.getblk(7).unwrap();
    assert!(BufferHead::ptr_eq(&mine.insert(second).unwrap(), &first));
    assert_eq!(mine.nr_cached(), 1);
}

#[test]
fn verified_holds_until_the_block_is_read_again() {
    let disk = disk();
    let cache = cache(&disk, 16);
    let bh = cache.bread(1).unwrap();
    assert!(!bh.verified());
    bh.set_verified();
    assert!(cache.bread(1).unwrap().verified());
    cache.invalidate(1, 1);
    assert!(!bh.is_uptodate());
    assert!(!cache.bread(1).unwrap().verified());
    let bh = cache.getblk(2).unwrap();
    bh.set_verified();
    cache.read_in(&bh).unwrap();
    assert!(!bh.verified(), "whatever that was about, it is not what was read");
}

#[test]
fn what_is_invalidated_is_never_written() {
    let disk = disk();
    let cache = cache(&disk, 16);
    for block in 4..8 {
        let bh = cache.bread(block).unwrap();
        bh.write().fill(0xEE);
        bh.mark_dirty();
    }
    let held = cache.find(5).unwrap();
    cache.invalidate(5, 2);
    assert!(!held.is_dirty() && !held.is_uptodate());
    assert!(cache.find(6).is_none());
    // The new owner writes past the cache.
    bdev_rw(cache.bdev(), ReqOpf::REQ_OP_WRITE, 10, &mut [0x11; 1024]).unwrap();
    cache.sync_all().unwrap();
    let image = disk.image();
    assert_eq!([4, 5, 6, 7].map(|b| image[b * 1024 + 100]), [0xEE, 0x11, 0, 0xEE]);
    assert_eq!(cache.bread(5).unwrap().read()[0], 0x11);
    assert!(BufferHead::ptr_eq(&held, &cache.bread(5).unwrap()));
    cache.invalidate(0, u64::MAX);
    assert_eq!(cache.nr_cached(), 1, "the held one");
}

#[test]
fn a_handle_outlives_the_cache() {
    let disk = disk();
    let bh = cache(&disk, 16).bread(3).unwrap();
    assert_eq!(number(&bh), 3);
}

#[test]
fn threads_at_random() {
    let limits = RamDiskOptions::default().limits;
    let mode = Mode::Auto { workers: 2, latency_ns: 0..20_000 };
    let disk = RamDisk::new(1 << 20, RamDiskOptions { mode, seed: 3, limits: QueueLimits { ..limits } }).unwrap();
    // Fewer blocks than are used, so that they come and go.
    let cache = BufferCache::new(Bdev::with_bios(disk.clone(), 8).unwrap(), 1024, 8).unwrap();
    thread::scope(|scope| {
        for id in 0..4_u64 {
            let cache = &cache;
            scope.spawn(move || {
                let mut rng = id + 1;
                for _ in 0..400 {
                    rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let bh = cache.bread((rng >> 33) % 40).unwrap();
                    match (rng >> 60) % 4 {
                        0 => cache.sync_dirty_buffer(&bh).unwrap(),
                        1 => cache
                            .write_buffers(&[bh.clone(), cache.bread((rng >> 40) % 40).unwrap()], ReqOpf::SYNC)
                            .unwrap(),
                        _ => {
                            let mut data = bh.write();
                            let count = u64::from_le_bytes(data[..8].try_into().unwrap()) + 1;
                            data[..8].copy_from_slice(&count.to_le_bytes());
                            data[1016..].copy_from_slice(&count.to_le_bytes());
                            data.mark_dirty();
                        }
                    }
                }
            });
        }
    });
    cache.sync_all().unwrap();
    disk.check();
    let image = disk.image();
    let mut sum = 0;
    for block in image.chunks(1024) {
        assert_eq!(block[..8], block[1016..]);
        sum += u64::from_le_bytes(block[..8].try_into().unwrap());
    }
    // Half of 4 * 400, as these seeds have it: every one has survived eviction and write-back.
    let mut want = 0;
    for id in 0..4_u64 {
        let mut rng = id + 1;
        for _ in 0..400 {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            want += u64::from((rng >> 60) % 4 > 1);
        }
    }
    assert_eq!(sum, want);
}
