// SPDX-License-Identifier: GPL-2.0-only
//! Small worlds in all their orders, or as many as there is time for: two tasks, a few blocks, and a device that completes requests in
//! any order. What was covered is printed.
//!
//! Orders that end alike because they only exchange steps that have nothing to do with each other are run once: see
//! `tests/src/sim_dpor.rs`, and [`reduction`] for whether that is right. A step goes from one lock operation (or wake-up, or marked
//! atomic) to the next, and locking is one step: all orders in which tasks get locks, not those in which they queue for them. Each world looks at every step for a write in flight to a block that is not the file's, and at the end for what
//! the blocks hold, counts, locks, and now and then has `e2fsck` look at the image.

use std::sync::atomic::{AtomicU64, Ordering};

use ext4_dio::ext4::{Group, Lblk, MapBlocks, MapFlags};
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::inode::ext4_map_blocks;
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, Inode, ext4_sync_fs};
use ext4_dio_tests::alone::run_alone;
use ext4_dio_tests::dio::{IN_FLIGHT, Pages};
use ext4_dio_tests::images::Image;
use ext4_dio_tests::sim::{self, Layout, Listener, World};
use ext4_dio_tests::sim_dpor::Exhaustive;
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::sim::{DiskImage, InFlight, SimDisk};
use kernel_shim::block::{ReqOp, ReqOpf};
use kernel_shim::error::code::EIOCBQUEUED;
use kernel_shim::fs::OpenFlags;
use kernel_shim::fs::buffer::BufferHead;

/// Bytes in a block.
const BS: u32 = 1024;
/// The same, where it counts positions.
const B: i64 = BS as i64;
/// Every so many orders `e2fsck` looks at the image.
const SAMPLE: u64 = 97;

/// One world, and what is left of it at the end.
struct Small {
    world: World,
    file: KArc<File>,
}

impl Small {
    /// Mounts, and opens a file; from now on no data write may be in flight to a block that the bitmap says is free.
    fn new(image: &DiskImage, path: &str) -> Self {
        let world = World::mount(image, IN_FLIGHT);
        let file = world.open(path);
        let bitmap = {
            let _quiet = sim::quiet();
            world.sb.s_fs_info().ext4_read_block_bitmap(Group(0)).expect("the bitmap")
        };
        watch(&world.disk, bitmap);
        Self { world, file }
    }

    /// Where block `lblk` is on the device.
    fn place(&self, lblk: u32) -> Option<u64> {
        let _quiet = sim::quiet();
        place(self.file.f_inode(), lblk)
    }

    /// All is at rest, and the image is clean. The bytes of the disk.
    fn finish(self) -> KArc<SimDisk> {
        sim::end_on_step();
        self.world.assert_idle(&self.file);
        let Self { world, file } = self;
        drop(file);
        let disk = world.finish();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if COUNT.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE) {
            Image::from_bytes(&disk.image()).assert_clean();
        }
        disk
    }
}

/// Where block `lblk` of `inode` is, written or not.
fn place(inode: &Inode, lblk: u32) -> Option<u64> {
    let mut map = MapBlocks::new(Lblk(lblk), 1);
    let n = ext4_map_blocks(inode, &mut map).expect("a good map");
    (n != 0 || map.m_flags.contains(MapFlags::UNWRITTEN)).then_some(map.m_pblk.0)
}

/// Panics at the first step at which file data is on its way to a free block.
fn watch(disk: &KArc<SimDisk>, bitmap: BufferHead) {
    let disk = disk.clone();
    sim::on_step(move || {
        // Whoever changes the bitmap has it locked: then the next step will show.
        let Some(bits) = bitmap.try_read() else { return };
        disk.for_each_in_flight(|event: &InFlight| {
            if event.opf.op() != ReqOp::Write || event.opf.contains(ReqOpf::META) {
                return;
            }
            let blocks = event.sector / 2..(event.sector + u64::from(event.bytes) / 512).div_ceil(2);
            for block in blocks {
                // The first block of the first group is block 1.
                let bit = (block - 1) as usize;
                assert!(bits[bit / 8] & 1 << (bit % 8) != 0, "{event:?} goes to block {block}, which is free");
            }
        });
    });
}

/// The bytes of block `place` of the device.
fn peek(disk: &SimDisk, place: u64) -> Vec<u8> {
    let mut bytes = vec![0; BS as usize];
    disk.peek(place * u64::from(BS), &mut bytes);
    bytes
}

fn image(journal: bool) -> DiskImage {
    sim::image(&Layout { block_size: BS, journal })
}

/// A block full of `fill`.
fn block(fill: u8) -> Vec<u8> {
    vec![fill; BS as usize]
}

/// An asynchronous write of ones to block `lblk`, and the wait for its end.
fn write_async_whole(file: &KArc<File>, lblk: i64) {
    let buffer = Box::new(Pages::of(&block(1)));
    let listener = Listener::new();
    match sim::write_async(file, lblk * B, &buffer, &listener, 7) {
        Ok(written) => assert_eq!(written, BS as usize),
        Err(error) => {
            assert_eq!(error, EIOCBQUEUED);
            assert_eq!(listener.wait(1), [(7, Ok(BS as usize))]);
        }
    }
}

/// Starts tasks: none runs before all are there.
fn together<T>(spawn: impl FnOnce() -> T) -> T {
    let _quiet = sim::quiet();
    spawn()
}

/// More runs than the worlds that are covered without a bound need.
const ENOUGH: u64 = 10_000;

/// Runs one of the worlds in all orders that differ, but in `runs` at most; if there are more, also in all of those in which no task is
/// stopped that could go on. Panics if that is not all of those, either.
/// `EXT4_DIO_SIM_ALL=runs` allows so many, and `EXT4_DIO_SIM_PREEMPTIONS=n` sets another bound at once.
fn explore(name: &str, runs: u64, world: impl Fn() + Clone + 'static) {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let runs = number("EXT4_DIO_SIM_ALL").unwrap_or(runs);
    let bound = number("EXT4_DIO_SIM_PREEMPTIONS").and_then(|n| u32::try_from(n).ok());
    let covered = Exhaustive::new(name).lock_steps().preemptions(bound).at_most(runs).run(world.clone());
    covered.tell();
    if covered.complete || bound.is_some() || std::env::var_os(sim::SEED_VAR).is_some() {
        return;
    }
    assert!(runs != ENOUGH, "{name} has more orders than it used to: {covered:?}");
    let covered = Exhaustive::new(name).lock_steps().preemptions(Some(0)).at_most(ENOUGH).run(world);
    covered.tell();
    assert!(covered.complete, "{covered:?}");
}

/// Two overwrites of the same block.
fn two_writers() -> impl Fn() + Clone {
    let image = image(false);
    move || {
        let small = Small::new(&image, "/data");
        let at = small.place(1).expect("mapped");
        let writer = |fill: u8| {
            let file = small.file.clone();
            sim::spawn("writer", move || assert_eq!(sim::write(&file, B, &block(fill)), Ok(BS as usize)))
        };
        together(|| [writer(1), writer(2)]).into_iter().for_each(sim::Joined::join);
        let disk = small.finish();
        let got = peek(&disk, at);
        assert!(got == block(1) || got == block(2), "{:?}", &got[..4]);
    }
}

/// An overwrite of the last block, and somebody who takes that block from the file and has another file get it.
fn writer_and(
    name: &'static str,
    take: fn(&File) -> kernel_shim::error::Result,
    reads_after: &'static [u8],
) -> impl Fn() + Clone {
    let image = image(false);
    move || {
        let small = Small::new(&image, "/data");
        let other = small.world.open("/empty");
        let file = small.file.clone();
        let (shrunk, heir) = (small.file.clone(), other.clone());
        let writes = move || sim::write(&file, 7 * B, &block(1));
        let takes = move || {
            take(&shrunk).expect("taken");
            // The first free block is the one that has just become free, or the write has got it again.
            assert_eq!(sim::write(&heir, 0, &block(9)), Ok(BS as usize));
        };
        let (writer, taker) = together(|| (sim::spawn("writer", writes), sim::spawn(name, takes)));
        assert_eq!(writer.join(), Ok(BS as usize));
        taker.join();
        let _quiet = sim::quiet();
        assert_eq!(sim::read(&other, 0, BS as usize), Ok(block(9)), "the other file");
        let got = sim::read(&small.file, 7 * B, BS as usize).expect("read");
        assert!(got == block(1) || got == reads_after, "{:?}", &got[..got.len().min(4)]);
        drop(other);
        small.finish();
    }
}

/// An asynchronous overwrite, and a reader through the page cache.
fn async_writer_and_buffered_reader() -> impl Fn() + Clone {
    let image = image(false);
    move || {
        let small = Small::new(&image, "/empty");
        let buffered = small.world.open_with("/empty", OpenFlags::empty());
        // One block: a page of several is read in several requests.
        assert_eq!(together(|| sim::write(&small.file, 0, &block(3))), Ok(BS as usize));
        let (file, reader) = (small.file.clone(), buffered.clone());
        let reads = move || {
            let got = sim::read(&reader, 0, BS as usize).expect("read");
            assert!(got == block(1) || got == block(3), "{:?}", &got[..4]);
        };
        let writes = move || write_async_whole(&file, 0);
        let (writer, reader) = together(|| (sim::spawn("writer", writes), sim::spawn("reader", reads)));
        writer.join();
        reader.join();
        // Who was told of the end finds the new data, whoever has filled the cache meanwhile.
        let _quiet = sim::quiet();
        assert_eq!(sim::read(&buffered, 0, BS as usize), Ok(block(1)));
        drop(buffered);
        small.finish();
    }
}

/// An asynchronous write to an unwritten block, and an fallocate of blocks beside it and past the end, or one that zeroes.
fn async_writer_and_fallocate(mode: FallocFlags) -> impl Fn() + Clone {
    let image = image(false);
    move || {
        let small = Small::new(&image, "/unwritten");
        let (file, other) = (small.file.clone(), small.file.clone());
        let writes = move || write_async_whole(&file, 2);
        let allocates = move || ext4_fallocate(other.f_inode(), mode, B, 9 * B);
        let (writer, fallocate) = together(|| (sim::spawn("writer", writes), sim::spawn("fallocate", allocates)));
        writer.join();
        assert_eq!(fallocate.join(), Ok(()));
        let _quiet = sim::quiet();
        assert_eq!(small.file.f_inode().i_size(), 10 * B);
        let bytes = sim::read(&small.file, 0, 10 * BS as usize).expect("read");
        for (n, got) in bytes.chunks(BS as usize).enumerate() {
            let zeroed = mode.contains(FallocFlags::ZERO_RANGE) && got == block(0);
            assert!(got == block(u8::from(n == 2)) || zeroed, "block {n}: {:?}", &got[..4]);
        }
        small.finish();
    }
}

/// A write to an unwritten block, and its fsync, while somebody else has the journal commit.
fn writer_fsync_and_commit() -> impl Fn() + Clone {
    let image = image(true);
    move || {
        let small = Small::new(&image, "/unwritten");
        together(|| {
            // No time passes: the inode's is that of this write, so the other one has nothing to change but the extent.
            assert_eq!(sim::write(&small.file, 3 * B, &block(3)), Ok(BS as usize));
            ext4_sync_fs(&small.world.sb).expect("synced");
        });
        small.world.disk.keep_writes();
        let (file, disk) = (small.file.clone(), small.world.disk.clone());
        let writes = move || {
            assert_eq!(sim::write(&file, 2 * B, &block(1)), Ok(BS as usize));
            ext4_sync_file(file.f_inode(), 0, i64::MAX, false).expect("fsync");
            disk.durable_image()
        };
        let sb = small.world.sb.clone();
        let commits = move || sb.s_fs_info().s_journal().expect("a journal").force_commit();
        let (writer, commit) = together(|| (sim::spawn("writer", writes), sim::spawn("commit", commits)));
        let durable = DiskImage::new(writer.join());
        assert_eq!(commit.join(), Ok(()));
        small.finish();
        // What a power failure at the moment of fsync's return would have left.
        let after = World::mount(&durable, IN_FLIGHT);
        let file = after.open("/unwritten");
        let _quiet = sim::quiet();
        assert_eq!(sim::read(&file, 2 * B, 2 * BS as usize), Ok([block(1), block(3)].concat()));
        drop(file);
        after.finish();
    }
}

#[test]
fn small_two_writers() {
    explore("two writers", ENOUGH, two_writers());
}

#[test]
fn small_writer_and_truncate() {
    let take: fn(&File) -> _ = |file| ext4_setattr_size(file.f_inode(), 7 * B);
    explore("writer and truncate", ENOUGH, writer_and("truncate", take, &[]));
}

#[test]
fn small_writer_and_punch() {
    let take: fn(&File) -> _ =
        |file| ext4_fallocate(file.f_inode(), FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE, 7 * B, B);
    explore("writer and punch hole", ENOUGH, writer_and("punch", take, &[0; BS as usize]));
}

#[test]
fn small_async_writer_and_buffered_reader() {
    explore("async writer and buffered reader", ENOUGH, async_writer_and_buffered_reader());
}

#[test]
fn small_async_writer_and_fallocate() {
    explore("async writer and fallocate", ENOUGH, async_writer_and_fallocate(FallocFlags::empty()));
}

#[test]
fn small_async_writer_and_zero_range() {
    explore("async writer and fallocate that zeroes", ENOUGH, async_writer_and_fallocate(FallocFlags::ZERO_RANGE));
}

#[test]
fn small_writer_fsync_and_commit() {
    explore("writer, fsync and commit", 1000, writer_fsync_and_commit());
}

/// Worlds that notice that a fix is switched off, and what they say then. Two overwrites of a block need none of those.
const NOTICED: [(&str, &str, &str); 6] = [
    ("small::small_writer_and_truncate", "G1", "writer and truncate"),
    ("small::small_writer_and_punch", "G2", "writer and punch hole"),
    ("small::small_writer_and_truncate", "G36", "writer and truncate"),
    ("small::small_async_writer_and_buffered_reader", "G11", "async writer and buffered reader"),
    ("small::small_async_writer_and_fallocate", "G14", "async writer and fallocate"),
    ("small::small_writer_fsync_and_commit", "G14", "writer, fsync and commit"),
];

#[test]
fn small_worlds_notice_what_is_switched_off() {
    for (test, fix, world) in NOTICED {
        let (came_to, text) = run_alone(test, Some(fix));
        assert_eq!(came_to, "fails", "{test} without {fix}: {text}");
        assert!(
            text.contains(&format!("world \"{world}\" fails in its schedule number")),
            "{test} without {fix}: {text}"
        );
    }
}
