// SPDX-License-Identifier: GPL-2.0-only
//! The journal alone: transactions over free blocks of a file system, crashes, and recovery by us and by `e2fsck`.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use ext4_dio::jbd2::{Handle, Journal, JournalOptions, LogExtent, RecoveryInfo, Trigger};
use ext4_dio_tests::images::{Image, Mkfs, e2fsprogs};
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::fault::FaultDisk;
use kernel_shim::block::ramdisk::{OpMask, RamDisk, RamDiskOptions};
use kernel_shim::block::{Bdev, ReqOpf, bdev_rw, blkdev_issue_flush};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::buffer::{BufferCache, BufferHead};

mod crash;
mod logs;

/// A file system, and what the tests use of it.
struct Place {
    block_size: u32,
    metadata_csum: bool,
    is_64bit: bool,
    extents: Vec<LogExtent>,
    /// Blocks that no file has.
    free: Vec<u64>,
    bytes: Vec<u8>,
}

/// A kind of file system.
#[derive(Clone, Copy)]
struct Kind {
    block_size: u32,
    features: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind { block_size: 4096, features: "" },
    Kind { block_size: 1024, features: "" },
    Kind { block_size: 2048, features: "^metadata_csum" },
    Kind { block_size: 1024, features: "^metadata_csum,^64bit" },
];

impl Place {
    fn new(kind: Kind) -> Self {
        let Kind { block_size, features } = kind;
        let spec = Mkfs { block_size, features, size_kib: 8192 * u64::from(block_size / 1024), ..Mkfs::default() };
        Self::of(&Image::make(&spec, None), kind)
    }

    /// `e2fsck` replays a journal only if the super block says that there is something in it.
    fn of(image: &Image, kind: Kind) -> Self {
        image.debugfs("feature needs_recovery");
        let numbers = |text: &str| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
        let mut extents: Vec<LogExtent> = Vec::new();
        let journal = numbers(&image.debugfs("blocks <8>"));
        for (lblk, pblk) in journal.into_iter().enumerate() {
            match extents.last_mut() {
                Some(last) if last.pblk + u64::from(last.len) == pblk => last.len += 1,
                _ => extents.push(LogExtent { lblk: lblk as u32, pblk, len: 1 }),
            }
        }
        let free = numbers(&image.debugfs("ffb 200"));
        assert!(free.len() >= 200, "{} free blocks", free.len());
        Self {
            block_size: kind.block_size,
            metadata_csum: !kind.features.contains("^metadata_csum"),
            is_64bit: !kind.features.contains("^64bit"),
            extents,
            free,
            bytes: image.bytes(),
        }
    }

    fn options(&self) -> JournalOptions {
        JournalOptions {
            barrier: true,
            commit_interval_ms: 5000,
            has_64bit: self.is_64bit,
            metadata_csum: self.metadata_csum,
            submit_data: |_| Ok(()),
            on_abort: |_, _| {},
        }
    }

    fn load(&self, bdev: &Bdev) -> Result<KArc<Journal>> {
        Journal::load(bdev, self.block_size, &self.extents, self.options())
    }

    /// Replays what is in the log of `bytes`, which become what recovery makes of them.
    fn recover(&self, bytes: &mut Vec<u8>) -> Result<RecoveryInfo> {
        let disk = RamDisk::from_image(core::mem::take(bytes), RamDiskOptions::default()).expect("a RAM disk");
        let bdev = Bdev::new(disk.clone()).expect("good limits");
        let info = self.load(&bdev).and_then(|journal| {
            let info = journal.recover()?;
            assert!(!journal.needs_recovery());
            Ok(info)
        });
        // All of it has been flushed.
        *bytes = if info.is_ok() { disk.durable_image() } else { disk.image() };
        info
    }

    fn block<'a>(&self, bytes: &'a [u8], block: u64) -> &'a [u8] {
        let at = block as usize * self.block_size as usize;
        &bytes[at..at + self.block_size as usize]
    }

    /// What `e2fsck` makes of the same bytes, and that it is content then.
    fn fsck(&self, bytes: &[u8]) -> Vec<u8> {
        let image = Image::from_bytes(bytes);
        let output = e2fsprogs("e2fsck").args(["-fy"]).arg(image.path()).output().expect("e2fsck");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{text}");
        image.assert_clean();
        image.bytes()
    }

    /// That `e2fsck` and we replay to the same contents. Ours.
    fn assert_same_replay(&self, bytes: &[u8], what: &str) -> Vec<u8> {
        let theirs = self.fsck(bytes);
        let mut ours = bytes.to_vec();
        let info = self.recover(&mut ours).unwrap_or_else(|e| panic!("{what}: recovery: {e:?}"));
        for &block in &self.free {
            assert!(self.block(&ours, block) == self.block(&theirs, block), "{what}: block {block} differs: {info:?}");
        }
        ours
    }
}

/// A journal that runs.
struct Engine<'p> {
    place: &'p Place,
    disk: KArc<RamDisk>,
    faults: KArc<FaultDisk<KArc<RamDisk>>>,
    bdev: Bdev,
    journal: KArc<Journal>,
    cache: BufferCache,
}

impl<'p> Engine<'p> {
    fn new(place: &'p Place) -> Self {
        Self::with(place, &place.bytes, place.options())
    }

    fn with(place: &'p Place, bytes: &[u8], options: JournalOptions) -> Self {
        let disk = RamDisk::from_image(bytes.to_vec(), RamDiskOptions::default()).expect("a RAM disk");
        let faults = KArc::new(FaultDisk::new(disk.clone()), GFP_KERNEL).expect("memory");
        let bdev = Bdev::new(faults.clone()).expect("good limits");
        let journal = Journal::load(&bdev, place.block_size, &place.extents, options).expect("a journal");
        Journal::start_thread(&journal, None).expect("a thread");
        let cache = BufferCache::new(bdev.clone(), place.block_size, 1024).expect("memory");
        Self { place, disk, faults, bdev, journal, cache }
    }

    fn handle(&self, credits: u32) -> Handle {
        Handle::start(&self.journal, credits).expect("a handle")
    }

    /// Fills a block with a number, as metadata.
    fn stamp(&self, handle: &mut Handle, block: u64, stamp: u32) -> Result {
        let bh = self.cache.bread(block)?;
        handle.get_write_access(&bh)?;
        fill(&bh, stamp);
        handle.dirty_metadata(&bh)
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let _ = self.journal.destroy();
    }
}

/// Every word of the block is the number: the magic number among them.
fn fill(bh: &BufferHead, stamp: u32) {
    for word in bh.write().chunks_exact_mut(4) {
        word.copy_from_slice(&stamp.to_be_bytes());
    }
}

fn stamp_of(block: &[u8]) -> u32 {
    let word = u32::from_be_bytes([block[0], block[1], block[2], block[3]]);
    assert!(block.chunks_exact(4).all(|w| w == word.to_be_bytes()), "block is torn");
    word
}

/// What a block of the log's own begins with: such blocks must be escaped.
const MAGIC: u32 = 0xc03b_3998;

#[test]
fn what_was_committed_comes_home_and_the_log_is_empty_at_the_end() {
    for kind in KINDS {
        let place = Place::new(kind);
        let engine = Engine::new(&place);
        for (n, &block) in place.free.iter().enumerate() {
            let mut handle = engine.handle(1);
            engine.stamp(&mut handle, block, if n == 3 { MAGIC } else { n as u32 }).expect("access");
            assert_eq!(handle.credits(), 0);
            handle.stop().expect("stop");
        }
        engine.journal.flush().expect("flush");
        let (all, free) = engine.journal.log_blocks();
        assert_eq!(all, free);
        engine.journal.destroy().expect("destroy");
        let bytes = engine.disk.durable_image();
        for (n, &block) in place.free.iter().enumerate() {
            assert_eq!(stamp_of(place.block(&bytes, block)), if n == 3 { MAGIC } else { n as u32 });
        }
        let bdev =
            Bdev::new(RamDisk::from_image(bytes.clone(), RamDiskOptions::default()).expect("disk")).expect("limits");
        assert!(!place.load(&bdev).expect("load").needs_recovery());
        place.fsck(&bytes);
    }
}

#[test]
fn blocks_of_open_transactions_are_not_written_back() {
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let block = place.free[0];
    let mut handle = engine.handle(1);
    engine.stamp(&mut handle, block, 7).expect("access");
    // Even if somebody thinks that it is dirty.
    engine.cache.find(block).expect("cached").mark_dirty();
    engine.cache.sync_all().expect("written");
    assert_eq!(stamp_of(place.block(&engine.disk.image(), block)), 0);
    let tid = handle.tid();
    handle.stop().expect("stop");
    engine.journal.complete_transaction(tid).expect("commit");
    engine.cache.sync_all().expect("written");
    assert_eq!(stamp_of(place.block(&engine.disk.image(), block)), 7);
}

#[test]
fn triggers_finish_what_is_committed_once() {
    /// Adds to every word, so that twice shows.
    fn frozen(bytes: &mut [u8], seed: u32) {
        for word in bytes.chunks_exact_mut(4) {
            let sum = u32::from_be_bytes([word[0], word[1], word[2], word[3]]) + seed;
            word.copy_from_slice(&sum.to_be_bytes());
        }
    }
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let block = place.free[0];
    let bh = engine.cache.bread(block).expect("read");
    let dirty = |handle: &mut Handle, stamp, seed: Option<u32>| {
        handle.get_write_access(&bh).expect("access");
        fill(&bh, stamp);
        handle.dirty_metadata_triggered(&bh, seed.map(|seed| Trigger { frozen, seed })).expect("dirty");
    };
    let commit = |handle: Handle| {
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
        let after = place.assert_same_replay(&engine.disk.durable_image(), "triggers");
        assert_eq!(stamp_of(place.block(&after, block)), stamp_of(&bh.read()), "log and cache differ");
        stamp_of(&bh.read())
    };
    // Twice in one transaction, by two handles.
    for stamp in [10, 20] {
        let mut handle = engine.handle(1);
        dirty(&mut handle, stamp, Some(3));
        assert_eq!(stamp_of(&bh.read()), stamp, "too early");
        if stamp == 10 {
            handle.stop().expect("stop");
        } else {
            assert_eq!(commit(handle), 23);
        }
    }
    // It was that transaction's alone; and the last word counts.
    let mut handle = engine.handle(1);
    dirty(&mut handle, 30, None);
    assert_eq!(commit(handle), 30);
    let mut handle = engine.handle(1);
    dirty(&mut handle, 40, Some(3));
    dirty(&mut handle, 50, None);
    assert_eq!(commit(handle), 50);
    // Freed, and metadata of another kind in the same transaction.
    let mut handle = engine.handle(3);
    dirty(&mut handle, 60, Some(3));
    handle.revoke(block).expect("revoke");
    handle.get_create_access(&bh).expect("access");
    fill(&bh, 70);
    handle.dirty_metadata(&bh).expect("dirty");
    assert_eq!(commit(handle), 70, "the trigger of what was freed");
}

#[test]
fn the_next_transaction_does_not_change_what_is_being_committed() {
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let block = place.free[0];
    let mut handle = engine.handle(1);
    engine.stamp(&mut handle, block, 1).expect("access");
    let tid = handle.tid();
    handle.stop().expect("stop");
    // The commit stops half-way.
    engine.disk.hold(OpMask::WRITE);
    engine.journal.log_start_commit(tid);
    engine.disk.wait_in_flight(1);
    let mut handle = engine.handle(1);
    assert_ne!(handle.tid(), tid);
    engine.stamp(&mut handle, block, 2).expect("access");
    engine.disk.release();
    // Nobody who has a handle waits for a commit: somebody else does.
    thread::scope(|scope| scope.spawn(|| engine.journal.log_wait_commit(tid)).join())
        .expect("a thread")
        .expect("commit");
    let mut bytes = engine.disk.durable_image();
    place.recover(&mut bytes).expect("recovery");
    assert_eq!(stamp_of(place.block(&bytes, block)), 1);
    handle.stop().expect("stop");
}

#[test]
fn many_who_wait_share_commits() {
    const THREADS: usize = 16;
    const EACH: usize = 40;
    let place = Place::new(KINDS[0]);
    let disk = RamDiskOptions {
        mode: kernel_shim::block::ramdisk::Mode::Auto { workers: 2, latency_ns: 200_000..400_000 },
        ..RamDiskOptions::default()
    };
    let disk = RamDisk::from_image(place.bytes.clone(), disk).expect("disk");
    let bdev = Bdev::new(disk).expect("limits");
    let journal = place.load(&bdev).expect("journal");
    Journal::start_thread(&journal, None).expect("thread");
    let cache = BufferCache::new(bdev, place.block_size, 1024).expect("memory");
    let before = journal.nr_commits();
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (journal, cache, place) = (&journal, &cache, &place);
            scope.spawn(move || {
                for round in 0..EACH {
                    let mut handle = Handle::start(journal, 1).expect("handle");
                    let bh = cache.bread(place.free[n]).expect("read");
                    handle.get_write_access(&bh).expect("access");
                    fill(&bh, round as u32);
                    handle.dirty_metadata(&bh).expect("dirty");
                    let tid = handle.tid();
                    handle.stop().expect("stop");
                    journal.complete_transaction(tid).expect("commit");
                }
            });
        }
    });
    let commits = journal.nr_commits() - before;
    journal.destroy().expect("destroy");
    let syncs = (THREADS * EACH) as u64;
    assert!(commits * 4 <= syncs, "{commits} commits for {syncs} syncs");
    assert!(commits >= EACH as u64);
}

#[test]
fn the_log_goes_round_and_handles_wait_for_space() {
    for kind in KINDS {
        let place = Place::new(kind);
        let options = JournalOptions { commit_interval_ms: 1_000_000, ..place.options() };
        let engine = Engine::with(&place, &place.bytes, options);
        let (all, _) = engine.journal.log_blocks();
        let stamp = AtomicUsize::new(1);
        // Every handle changes 25 blocks, so that the log is written several times over.
        let rounds = 6 * all as usize / 25 / 4;
        thread::scope(|scope| {
            for thread in 0..4 {
                let (engine, place, stamp) = (&engine, &place, &stamp);
                scope.spawn(move || {
                    for round in 0..rounds {
                        let mut handle = engine.handle(25);
                        for n in 0..25 {
                            let block = place.free[thread * 50 + (round + n) % 50];
                            let stamp = stamp.fetch_add(1, Ordering::Relaxed) as u32;
                            engine.stamp(&mut handle, block, stamp).expect("access");
                        }
                        let tid = handle.tid();
                        handle.stop().expect("stop");
                        if round % 3 == 0 {
                            engine.journal.complete_transaction(tid).expect("commit");
                        }
                    }
                });
            }
        });
        engine.journal.force_commit().expect("commit");
        assert!(engine.journal.nr_commits() > 10);
        let bytes = engine.disk.durable_image();
        let after = place.assert_same_replay(&bytes, "log around");
        for &block in &place.free {
            let bh = engine.cache.bread(block).expect("read");
            assert_eq!(stamp_of(place.block(&after, block)), stamp_of(&bh.read()));
        }
    }
}

#[test]
fn a_handle_can_be_extended_and_restarted() {
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let max = engine.journal.max_credits();
    assert!(Handle::start(&engine.journal, max + 1).is_err_and(|e| e == ENOSPC));
    let mut handle = engine.handle(max - 10);
    assert_eq!(handle.extend(10), Ok(true));
    assert_eq!(handle.extend(1), Ok(false));
    assert_eq!(handle.credits(), max);
    engine.stamp(&mut handle, place.free[0], 1).expect("access");
    let tid = handle.tid();
    // No room beside what was used, so in the next transaction.
    handle.restart(max).expect("restart");
    assert_ne!(handle.tid(), tid);
    assert_eq!(handle.credits(), max);
    handle.stop().expect("stop");
    engine.journal.log_wait_commit(tid).expect("commit");
}

#[test]
fn an_error_of_the_log_aborts() {
    let place = Place::new(KINDS[0]);
    for n in 1.. {
        let engine = Engine::new(&place);
        let mut handle = engine.handle(2);
        engine.stamp(&mut handle, place.free[0], 1).expect("access");
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
        let mut handle = engine.handle(2);
        engine.stamp(&mut handle, place.free[0], 2).expect("access");
        engine.stamp(&mut handle, place.free[1], 2).expect("access");
        let tid = handle.tid();
        handle.stop().expect("stop");
        engine.faults.fail_nth(n, OpMask::WRITE | OpMask::FLUSH);
        let committed = engine.journal.complete_transaction(tid);
        if engine.faults.fired() == 0 {
            assert_eq!(committed, Ok(()));
            assert!(n > 2, "a commit has at least two writes");
            break;
        }
        assert_eq!(committed, Err(EIO), "write {n}");
        assert_eq!(engine.journal.aborted(), Some(EIO));
        assert!(Handle::start(&engine.journal, 1).is_err_and(|e| e == EROFS));
        assert_eq!(engine.journal.destroy(), Err(EIO));
        // Nothing of it came home, and what was committed before is still to be had.
        engine.cache.sync_all().expect("the disk works again");
        let mut bytes = engine.disk.image();
        let bdev =
            Bdev::new(RamDisk::from_image(bytes.clone(), RamDiskOptions::default()).expect("disk")).expect("limits");
        let journal = place.load(&bdev).expect("load");
        assert_eq!(journal.errno(), Some(EIO));
        place.recover(&mut bytes).expect("recovery");
        let stamps = [0, 1].map(|at| stamp_of(place.block(&bytes, place.free[at])));
        // The last flush comes after the commit block: nobody can tell what became of that.
        assert!(stamps == [1, 0] || (n > 3 && stamps == [2, 2]), "write {n}: {stamps:?}");
    }
}

#[test]
fn an_error_of_a_checkpoint_aborts_and_leaves_the_log() {
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let mut handle = engine.handle(1);
    engine.stamp(&mut handle, place.free[5], 9).expect("access");
    handle.stop().expect("stop");
    engine.journal.force_commit().expect("commit");
    let sectors = u64::from(place.block_size / 512);
    engine.faults.fail_sectors(place.free[5] * sectors..(place.free[5] + 1) * sectors, OpMask::WRITE);
    assert_eq!(engine.journal.flush(), Err(EIO));
    assert!(engine.journal.aborted().is_some());
    assert_eq!(engine.journal.destroy(), Err(EIO));
    let mut bytes = engine.disk.durable_image();
    let info = place.recover(&mut bytes).expect("recovery");
    assert_eq!(info.nr_replays, 1);
    assert_eq!(stamp_of(place.block(&bytes, place.free[5])), 9);
}

#[test]
fn freeze_waits_for_handles_and_keeps_new_ones_away() {
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let handle = engine.handle(1);
    let frozen = AtomicBool::new(false);
    let started = AtomicBool::new(false);
    thread::scope(|scope| {
        let locker = scope.spawn(|| {
            engine.journal.lock_updates();
            frozen.store(true, Ordering::SeqCst);
        });
        assert!(!frozen.load(Ordering::SeqCst));
        handle.stop().expect("stop");
        locker.join().expect("locked");
        engine.journal.flush().expect("flush");
        let other = scope.spawn(|| {
            engine.handle(1).stop().expect("stop");
            started.store(true, Ordering::SeqCst);
        });
        assert!(!started.load(Ordering::SeqCst));
        engine.journal.unlock_updates();
        other.join().expect("handle");
    });
}

#[test]
fn the_barrier_question_has_three_answers() {
    let place = Place::new(KINDS[0]);
    let engine = Engine::new(&place);
    let mut handle = engine.handle(1);
    engine.stamp(&mut handle, place.free[0], 1).expect("access");
    let tid = handle.tid();
    assert!(engine.journal.trans_will_send_data_barrier(tid));
    handle.stop().expect("stop");
    engine.journal.complete_transaction(tid).expect("commit");
    assert!(!engine.journal.trans_will_send_data_barrier(tid));
    assert_eq!(engine.journal.complete_transaction(tid), Ok(()));
}

/// Writes file data, past the journal, and durably.
fn write_data(engine: &Engine<'_>, block: u64, stamp: u32) {
    let size = engine.place.block_size;
    let mut data: Vec<u8> = (0..size / 4).flat_map(|_| stamp.to_be_bytes()).collect();
    let sector = block * u64::from(size / 512);
    bdev_rw(&engine.bdev, ReqOpf::REQ_OP_WRITE, sector, &mut data).expect("written");
    blkdev_issue_flush(&engine.bdev).expect("flushed");
}

#[test]
fn freed_blocks_are_not_replayed_over_data() {
    for kind in KINDS {
        let place = Place::new(kind);
        let engine = Engine::new(&place);
        let (freed, other) = (place.free[0], place.free[1]);
        let mut handle = engine.handle(2);
        engine.stamp(&mut handle, freed, 1).expect("access");
        engine.stamp(&mut handle, other, 1).expect("access");
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
        let mut handle = engine.handle(2);
        handle.revoke(freed).expect("revoke");
        engine.stamp(&mut handle, other, 2).expect("access");
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
        write_data(&engine, freed, 77);
        engine.cache.sync_all().expect("written");
        assert_eq!(stamp_of(place.block(&engine.disk.image(), freed)), 77, "metadata came home over data");
        let bytes = engine.disk.durable_image();
        let after = place.assert_same_replay(&bytes, "revoke");
        assert_eq!(stamp_of(place.block(&after, freed)), 77);
        assert_eq!(stamp_of(place.block(&after, other)), 2);
        // Metadata again: that counts.
        let bh = engine.cache.getblk(freed).expect("block");
        let mut handle = engine.handle(1);
        handle.get_create_access(&bh).expect("access");
        {
            let mut bytes = bh.write();
            for word in bytes.chunks_exact_mut(4) {
                word.copy_from_slice(&3u32.to_be_bytes());
            }
            bytes.set_uptodate();
        }
        handle.dirty_metadata(&bh).expect("dirty");
        handle.stop().expect("stop");
        engine.journal.force_commit().expect("commit");
        let after = place.assert_same_replay(&engine.disk.durable_image(), "metadata again");
        assert_eq!(stamp_of(place.block(&after, freed)), 3);
    }
}

/// Runs a program and wants it to succeed.
fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
