// SPDX-License-Identifier: GPL-2.0-only
//! A disk under load: random 4 KiB writes, [`DEPTH`] in flight on every CPU, read back and compared; then
//! figures at several depths.

use alloc::{alloc::alloc_zeroed, boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{
    alloc::Layout,
    ptr::NonNull,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering::*},
};

use kernel_shim::{
    alloc::GFP_KERNEL,
    block::{BIO_MAX_VECS, Bdev, BioPtr, BlkPlug, ReqOpf, bio_alloc, blkdev_issue_flush, submit_bio, submit_bio_wait},
    pr_info,
    sched::{self, Task, now_ns, spawn_on},
    sync::Mutex,
};

use super::Outcome;
use crate::{
    arch::percpu::{Work, nr_cpus},
    virtio::FoundDisk,
};

const BLOCK: usize = 4096;
const SECTORS_PER_BLOCK: u64 = 8;
/// In flight per CPU while data is checked.
const DEPTH: usize = 128;
/// Most blocks that are written and checked.
const MAX_BLOCKS: u64 = 8192;

/// One I/O's memory, and its place in the list of the done.
struct Slot {
    data: NonNull<[u64; BLOCK / 8]>,
    block: u64,
    next: AtomicPtr<Slot>,
    owner: *const Engine,
}

/// Keeps I/Os in flight for the thread that made it.
struct Engine {
    task: &'static Task,
    /// Slots whose I/O has ended, latest first.
    done: AtomicPtr<Slot>,
    failed: AtomicU32,
    slots: Vec<Slot>,
}

impl Engine {
    fn new(depth: usize) -> Box<Self> {
        let mut engine = Box::new(Self {
            task: sched::current(),
            done: AtomicPtr::new(core::ptr::null_mut()),
            failed: AtomicU32::new(0),
            slots: Vec::new(),
        });
        let owner = core::ptr::from_ref(&*engine);
        for _ in 0..depth {
            // SAFETY: the layout has a size. Selftests do not free their memory.
            let data = unsafe { alloc_zeroed(Layout::new::<[u8; BLOCK]>().align_to(BLOCK).expect("a power of two")) };
            let data = NonNull::new(data.cast()).expect("memory for a selftest");
            engine.slots.push(Slot { data, block: 0, next: AtomicPtr::new(core::ptr::null_mut()), owner });
        }
        engine
    }

    /// In completion context.
    fn end_io(bio: BioPtr) {
        // SAFETY: `run` keeps engine and slots until all I/O has ended.
        let slot = unsafe { &*bio.bi_private.cast::<Slot>() };
        // SAFETY: as above.
        let engine = unsafe { &*slot.owner };
        if bio.result().is_err() {
            engine.failed.fetch_add(1, Relaxed);
        }
        drop(bio);
        let this = core::ptr::from_ref(slot).cast_mut();
        let mut head = engine.done.load(Relaxed);
        loop {
            slot.next.store(head, Relaxed);
            match engine.done.compare_exchange_weak(head, this, Release, Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        if head.is_null() {
            sched::unpark(engine.task);
        }
    }

    fn submit(slot: *mut Slot, bdev: &Bdev, opf: ReqOpf) -> Outcome {
        let mut bio = bio_alloc(bdev, opf, GFP_KERNEL).map_err(|e| format!("bio: {e:?}"))?;
        // SAFETY: the slot is not in flight, so it is ours.
        let slot = unsafe { &mut *slot };
        bio.bi_sector = slot.block * SECTORS_PER_BLOCK;
        bio.bi_end_io = Self::end_io;
        bio.bi_private = core::ptr::from_mut(slot).cast();
        // SAFETY: nobody touches the slot's data while it is in flight.
        if !unsafe { bio.bio_add_page(slot.data.cast(), BLOCK as u32) } {
            return Err(String::from("a page does not fit into a bio"));
        }
        submit_bio(bdev, bio);
        Ok(())
    }

    /// Does one I/O per item, all slots in flight: `before` gets data and block, and so does `after`.
    fn run(
        &mut self,
        bdev: &Bdev,
        opf: ReqOpf,
        mut blocks: impl Iterator<Item = u64>,
        mut before: impl FnMut(&mut [u64; BLOCK / 8], u64),
        mut after: impl FnMut(&[u64; BLOCK / 8], u64) -> Outcome,
    ) -> Outcome {
        let mut in_flight = 0;
        let mut outcome = Ok(());
        let mut start = |slot: *mut Slot| -> Result<bool, String> {
            let Some(block) = blocks.next() else { return Ok(false) };
            // SAFETY: the slot is not in flight.
            unsafe {
                (*slot).block = block;
                before((*slot).data.as_mut(), block);
            }
            Self::submit(slot, bdev, opf)?;
            Ok(true)
        };
        let first = self.slots.as_mut_ptr();
        let plug = BlkPlug::start();
        for i in 0..self.slots.len() {
            // SAFETY: within the slots.
            in_flight += u32::from(start(unsafe { first.add(i) })?);
        }
        plug.finish();
        while in_flight > 0 {
            let mut slot = self.done.swap(core::ptr::null_mut(), Acquire);
            if slot.is_null() {
                sched::schedule();
                continue;
            }
            let plug = BlkPlug::start();
            while !slot.is_null() {
                // SAFETY: its I/O has ended, and it is in the list no more.
                let next = unsafe { (*slot).next.load(Relaxed) };
                in_flight -= 1;
                // SAFETY: as above.
                outcome = outcome.and(unsafe { after((*slot).data.as_ref(), (*slot).block) });
                if outcome.is_ok() {
                    in_flight += u32::from(start(slot)?);
                }
                slot = next;
            }
            plug.finish();
        }
        outcome.and(match self.failed.load(Relaxed) {
            0 => Ok(()),
            n => Err(format!("{n} I/Os failed")),
        })
    }
}

fn stamp(block: u64, word: usize) -> u64 {
    (block << 16 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Every `step`th block from `first`, in an order that jumps about.
fn shuffled(blocks: u64, first: u64, step: u64) -> impl Iterator<Item = u64> {
    // Odd, so that multiplying by it permutes the numbers below a power of two.
    (first..blocks).step_by(step as usize).map(move |i| i.wrapping_mul(0x9e37_79b1) & (blocks - 1))
}

fn write_and_read_back(bdev: &Bdev, blocks: u64, cpu: u64, cpus: u64) -> Outcome {
    let mut engine = Engine::new(DEPTH);
    let fill = |data: &mut [u64; BLOCK / 8], block| {
        for (i, w) in data.iter_mut().enumerate() {
            *w = stamp(block, i);
        }
    };
    engine.run(bdev, ReqOpf::REQ_OP_WRITE, shuffled(blocks, cpu, cpus), fill, |_, _| Ok(()))?;
    blkdev_issue_flush(bdev).map_err(|e| format!("flush: {e:?}"))?;
    let check = |data: &[u64; BLOCK / 8], block| match (0..BLOCK / 8).find(|i| data[*i] != stamp(block, *i)) {
        None => Ok(()),
        Some(i) => Err(format!("block {block}, word {i}: {:#x}, not {:#x}", data[i], stamp(block, i))),
    };
    engine.run(bdev, ReqOpf::REQ_OP_READ, shuffled(blocks, cpu, cpus), |data, _| data.fill(0), check)
}

/// Requests of many pieces: bios that name pages here and there, and bios that the plug merges; then flush and,
/// where the disk can, discard and write-zeroes.
fn pieces(bdev: &Bdev) -> Outcome {
    const PAGES: usize = 48;
    let mut engine = Engine::new(2 * PAGES);
    let wrote = AtomicU32::new(0);
    // Every other page, so that no two of a bio touch.
    let pages: Vec<_> = engine.slots.iter().step_by(2).map(|s| s.data).collect();
    for (n, page) in (1u64..).zip(&pages) {
        // SAFETY: nothing is in flight.
        unsafe { page.cast::<u64>().write(stamp(n, 0)) };
    }
    let plug = BlkPlug::start();
    let per_bio = (BIO_MAX_VECS - 1).min(bdev.limits().max_segments.into());
    for (n, chunk) in (0u64..).zip(pages.chunks(per_bio)) {
        let mut bio = bio_alloc(bdev, ReqOpf::REQ_OP_WRITE, GFP_KERNEL).map_err(|e| format!("bio: {e:?}"))?;
        bio.bi_sector = n * per_bio as u64 * SECTORS_PER_BLOCK;
        bio.bi_private = core::ptr::from_ref(&wrote).cast_mut().cast();
        bio.bi_end_io = |bio| {
            // SAFETY: `pieces` waits until all have ended.
            let wrote = unsafe { &*bio.bi_private.cast::<AtomicU32>() };
            wrote.fetch_add(if bio.result().is_ok() { bio.size() / BLOCK as u32 } else { 1 << 16 }, SeqCst);
        };
        for page in chunk {
            // SAFETY: nobody touches the pages until the end.
            if !unsafe { bio.bio_add_page(page.cast(), BLOCK as u32) } {
                return Err(String::from("a page does not fit into a bio"));
            }
        }
        submit_bio(bdev, bio);
    }
    plug.finish();
    while wrote.load(SeqCst) < PAGES as u32 {
        sched::yield_now();
    }
    blkdev_issue_flush(bdev).map_err(|e| format!("flush: {e:?}"))?;
    let check = |data: &[u64; BLOCK / 8], block| match data[0] == stamp(block + 1, 0) {
        true => Ok(()),
        false => Err(format!("block {block} of many pieces: {:#x}", data[0])),
    };
    engine.run(bdev, ReqOpf::REQ_OP_READ, 0..PAGES as u64, |data, _| data.fill(0), check)?;
    for (can, op) in
        [(bdev.limits().discard, ReqOpf::REQ_OP_DISCARD), (bdev.limits().write_zeroes, ReqOpf::REQ_OP_WRITE_ZEROES)]
    {
        let mut bio = bio_alloc(bdev, op, GFP_KERNEL).map_err(|e| format!("bio: {e:?}"))?;
        bio.set_size(16 * BLOCK as u32);
        match submit_bio_wait(bdev, bio) {
            Err(e) if can => return Err(format!("{op:?}: {e:?}")),
            Ok(()) if !can => return Err(format!("{op:?} worked though the disk has none")),
            _ => {}
        }
    }
    if !bdev.limits().write_zeroes {
        return Ok(());
    }
    let zero = |data: &[u64; BLOCK / 8], block| match data.iter().all(|w| *w == 0) {
        true => Ok(()),
        false => Err(format!("block {block} was to be zeroed")),
    };
    engine.run(bdev, ReqOpf::REQ_OP_READ, 0..16, |data, _| data.fill(1), zero)
}

/// So many random writes at one depth from one CPU, or fewer if time runs out.
fn measure(bdev: &Bdev, blocks: u64, depth: usize, ios: u64, ns: u64) -> Outcome {
    let mut engine = Engine::new(depth);
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let random = core::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x & (blocks - 1)
    });
    let (before, start) = (Work::now(), now_ns());
    let mut done = 0;
    let in_time = random.take(ios as usize).take_while(|_| now_ns() - start < ns);
    engine.run(bdev, ReqOpf::REQ_OP_WRITE, in_time.inspect(|_| done += 1), |_, _| (), |_, _| Ok(()))?;
    let (after, ns) = (Work::now(), now_ns() - start);
    pr_info!(
        "depth {depth:3}: {:7} IOPS, {} busy ticks per I/O, {} wakes per 100 I/Os",
        done * 1_000_000_000 / ns.max(1),
        after.since(&before).ticks / done,
        after.since(&before).wakes * 100 / done,
    );
    Ok(())
}

/// What [`measure`] does, once.
pub(super) fn bench(bdev: &Bdev, depth: usize, ios: u64) -> Outcome {
    let blocks = bdev.nr_sectors() / SECTORS_PER_BLOCK;
    if blocks == 0 || depth == 0 || ios == 0 {
        return Err(String::from("nothing to measure"));
    }
    measure(bdev, 1 << blocks.ilog2(), depth, ios, u64::MAX)
}

/// Overwrites the start of disk `number` and reads it back.
pub(super) fn run(number: usize, disk: &'static FoundDisk) -> Outcome {
    let bdev = &disk.bdev;
    let blocks = (bdev.nr_sectors() / SECTORS_PER_BLOCK).min(MAX_BLOCKS);
    if bdev.read_only() || blocks < 64 {
        pr_info!("disk {number} is too small or read only: not tested");
        return Ok(());
    }
    let blocks = 1 << blocks.ilog2();
    let cpus = nr_cpus();
    let outcome = Arc::new(Mutex::new(Ok(())));
    let threads = (0..cpus)
        .map(|cpu| {
            let outcome = outcome.clone();
            let thread = move || {
                if let Err(e) = write_and_read_back(bdev, blocks, cpu.into(), cpus.into()) {
                    *outcome.lock() = Err(format!("disk {number}: {e}"));
                }
            };
            spawn_on(cpu, "disk", thread).map_err(|e| format!("spawn: {e:?}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    threads.into_iter().for_each(|t| t.join());
    core::mem::replace(&mut *outcome.lock(), Ok(()))?;
    pr_info!("disk {number}: {blocks} blocks written and read back, {DEPTH} in flight on each of {cpus} CPUs");
    pieces(bdev)?;
    for depth in [1, 4, 16, 32, 128, 512] {
        measure(bdev, blocks, depth, 20_000, 2_000_000_000)?;
    }
    Ok(())
}
