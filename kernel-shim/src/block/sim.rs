// SPDX-License-Identifier: GPL-2.0-only
//! The disk of a simulation ([`sched::sim`](crate::sched::sim)): each request is a task that ends it when the schedule has it run, so
//! requests complete in any order, at any step, and what is in flight can be looked at.
//!
//! It promises as little as [`RamDisk`](super::ramdisk::RamDisk) does: the memory of a read is poisoned until it completes, that of a
//! write is taken at completion and must be the same then as when it was queued; what is completed is in a volatile cache until a flush
//! that was queued afterwards completes, or written through by FUA. Errors come on request.
//!
//! Under [`quiet`](crate::sched::sim::quiet), and outside of simulations, requests complete at once.

use std::format;
use std::string::String;
use std::sync::{Arc as StdArc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::bio::{ReqOp, ReqOpf, SECTOR_SHIFT};
use super::blkdev::{BlockDevice, QueueLimits};
use super::ramdisk::{DISCARDED, OpMask, checksum, copy_out, fill, put};
use super::request::Request;
use crate::alloc::{Arc, GFP_KERNEL};
use crate::error::{Error, Result};
use crate::sched::host::InterruptContext;
use crate::sched::{Point, sched_access, sched_point, sim};

/// Memory is copied back in pieces of this many bytes when a disk is used again.
const PIECE_SHIFT: u32 = 12;
/// Stand for what the disk has, beside the addresses of what others have: a sector, and the cache.
const SECTORS: usize = 1 << 62;
const CACHE: usize = 1 << 61;

/// The bytes of a disk at the start of each run, shared by all runs.
#[derive(Clone)]
pub struct DiskImage(StdArc<Vec<u8>>);

impl DiskImage {
    /// These bytes; the last incomplete sector is left off.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(bytes.len() >> SECTOR_SHIFT << SECTOR_SHIFT);
        Self(StdArc::new(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Counted from 0.
    pub id: u64,
    /// What it does.
    pub opf: ReqOpf,
    /// Where, in 512 bytes.
    pub sector: u64,
    /// How much.
    pub bytes: u32,
}

struct Pending {
    rq: Request,
    event: InFlight,
    /// Of the memory of a write, when it was queued.
    sum: u64,
    /// For a flush: how many writes had completed when it was queued.
    covers: usize,
}

/// A completed write.
struct Written {
    sector: u64,
    data: Vec<u8>,
    durable: bool,
}

/// Memory like an image, of which only what was changed is copied back.
struct Memory {
    image: DiskImage,
    bytes: Vec<u8>,
    changed: Vec<bool>,
}

impl Memory {
    fn new(image: &DiskImage) -> Self {
        let pieces = image.0.len().div_ceil(1 << PIECE_SHIFT);
        Self { image: image.clone(), bytes: image.0.to_vec(), changed: std::vec![false; pieces] }
    }

    fn reset(&mut self) {
        for (at, changed) in self.changed.iter_mut().enumerate().filter(|(_, changed)| **changed) {
            *changed = false;
            let start = at << PIECE_SHIFT;
            let end = self.bytes.len().min(start + (1 << PIECE_SHIFT));
            self.bytes[start..end].copy_from_slice(&self.image.0[start..end]);
        }
    }

    fn write(&mut self, sector: u64, data: &[u8]) {
        let at = (sector << SECTOR_SHIFT) as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        let (first, last) = (at >> PIECE_SHIFT, (at + data.len() - 1) >> PIECE_SHIFT);
        self.changed[first..=last].fill(true);
    }
}

std::thread_local! {
    /// Memory of disks that are gone.
    static SPARE: core::cell::RefCell<Vec<Memory>> = const { core::cell::RefCell::new(Vec::new()) };
}

struct State {
    memory: Memory,
    /// All completed writes, oldest first, if they are kept.
    written: Vec<Written>,
    keep: bool,
    /// How many of `written` a flush has made durable.
    flushed: usize,
    uncommitted: Vec<Pending>,
    pending: Vec<Pending>,
    next_id: u64,
    /// The n-th request from now on that matches fails so.
    fault: Option<(u64, OpMask, Error)>,
}

/// The disk: see the head of this file.
pub struct SimDisk {
    state: Mutex<State>,
    limits: QueueLimits,
    nr_sectors: u64,
}

/// Keeps a disk alive for a request's task.
struct Completer {
    disk: Arc<SimDisk>,
    id: u64,
}

impl SimDisk {
    /// A disk that holds `image`, all of it durable; with a volatile cache, discard and zeroing, without FUA. ENOMEM.
    pub fn new(image: &DiskImage) -> Result<Arc<Self>> {
        let limits = QueueLimits { write_cache: true, discard: true, write_zeroes: true, ..QueueLimits::DEFAULT };
        Self::with(image, limits)
    }

    /// The same, with other limits.
    pub fn with(image: &DiskImage, limits: QueueLimits) -> Result<Arc<Self>> {
        let spare = SPARE.with_borrow_mut(|spare| {
            let at = spare.iter().position(|memory| StdArc::ptr_eq(&memory.image.0, &image.0));
            at.map(|at| spare.swap_remove(at))
        });
        let memory = match spare {
            Some(mut memory) => {
                memory.reset();
                memory
            }
            None => Memory::new(image),
        };
        let state = State {
            memory,
            written: Vec::new(),
            keep: false,
            flushed: 0,
            uncommitted: Vec::new(),
            pending: Vec::new(),
            next_id: 0,
            fault: None,
        };
        let nr_sectors = (image.0.len() >> SECTOR_SHIFT) as u64;
        Ok(Arc::new(Self { state: Mutex::new(state), limits, nr_sectors }, GFP_KERNEL)?)
    }

    /// Nobody changes tasks while this is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests in flight, oldest first.
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.lock().pending.iter().map(|p| p.event).collect()
    }

    /// Calls `f` for each request in flight, oldest first. `f` may not use the disk.
    pub fn for_each_in_flight(&self, mut f: impl FnMut(&InFlight)) {
        self.lock().pending.iter().for_each(|p| f(&p.event));
    }

    /// What reads see of the whole disk.
    pub fn image(&self) -> Vec<u8> {
        self.lock().memory.bytes.clone()
    }

    /// Copies what reads see from byte `at` on.
    pub fn peek(&self, at: u64, into: &mut [u8]) {
        let at = at as usize;
        into.copy_from_slice(&self.lock().memory.bytes[at..at + into.len()]);
    }

    /// Keeps all writes from now on, for [`durable_image`](Self::durable_image).
    pub fn keep_writes(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        state.keep = true;
        // What there is now is what it starts from.
        state.memory.image = DiskImage::new(state.memory.bytes.clone());
        state.memory.changed.fill(false);
    }

    /// What is certain to survive a power failure now. Everything before [`keep_writes`](Self::keep_writes) is.
    pub fn durable_image(&self) -> Vec<u8> {
        let state = self.lock();
        let mut image = state.memory.image.0.to_vec();
        for (n, written) in state.written.iter().enumerate() {
            if n < state.flushed || written.durable {
                put(&mut image, written.sector, &written.data);
            }
        }
        image
    }

    /// Fails the `n`-th request from now on (from 1) that is among `mask`.
    pub fn fail_nth(&self, n: u64, mask: OpMask, error: Error) {
        self.lock().fault = Some((n, mask, error));
    }

    fn complete(&self, id: u64) {
        let (pending, result) = {
            let mut state = self.lock();
            let Some(at) = state.pending.iter().position(|p| p.event.id == id) else { return };
            let pending = state.pending.remove(at);
            let result = self.transfer(&mut state, &pending);
            (pending, result)
        };
        let _irq = InterruptContext::enter();
        note(&pending.event, "completes");
        pending.rq.end(result);
    }

    /// The data moves.
    fn transfer(&self, state: &mut State, pending: &Pending) -> Result {
        let Pending { rq, event, sum, covers } = pending;
        let at = (event.sector << SECTOR_SHIFT) as usize;
        let len = event.bytes as usize;
        touch(event);
        if let Some((n, mask, error)) = &mut state.fault
            && mask.matches(event.opf)
        {
            *n -= 1;
            if *n == 0 {
                let error = *error;
                state.fault = None;
                return Err(error);
            }
        }
        let durable = event.opf.contains(ReqOpf::FUA) || !self.limits.write_cache;
        match rq.op() {
            ReqOp::Read => fill(rq, Some(&state.memory.bytes[at..at + len])),
            ReqOp::Write => {
                let data = copy_out(rq);
                assert!(checksum(&data) == *sum, "buffer changed while in flight: {event:?}");
                state.write(event.sector, data, durable);
            }
            ReqOp::WriteZeroes => state.write(event.sector, std::vec![0; len], durable),
            ReqOp::Discard => state.write(event.sector, std::vec![DISCARDED; len], durable),
            ReqOp::Flush => state.flushed = state.flushed.max(*covers),
            ReqOp::Unknown => {}
        }
        Ok(())
    }
}

impl State {
    fn write(&mut self, sector: u64, data: Vec<u8>, durable: bool) {
        if data.is_empty() {
            return;
        }
        self.memory.write(sector, &data);
        if self.keep {
            self.written.push(Written { sector, data, durable });
        }
    }
}

/// What a request touches, for schedulers: its sectors, and the order of writes and flushes.
fn touch(event: &InFlight) {
    let write = event.opf.is_write();
    let object = |at: usize| core::ptr::without_provenance::<()>(at);
    for sector in event.sector..event.sector + u64::from(event.bytes >> SECTOR_SHIFT) {
        sched_access(object(SECTORS + sector as usize), write);
    }
    if write || event.opf.op() == ReqOp::Flush {
        sched_access(object(CACHE), event.opf.op() == ReqOp::Flush);
    }
}

fn note(event: &InFlight, what: &str) {
    sim::note(|| {
        let InFlight { id, opf, sector, bytes } = event;
        let marks = if opf.contains(ReqOpf::META) { " (metadata)" } else { "" };
        format!("request {id} {what}: {:?} sector {sector} + {bytes} bytes{marks}", opf.op())
    });
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A disk of an image that nobody else has will not be wanted again.
        if !state.keep && StdArc::strong_count(&state.memory.image.0) > 1 {
            let empty = Memory { image: DiskImage(StdArc::new(Vec::new())), bytes: Vec::new(), changed: Vec::new() };
            let memory = core::mem::replace(&mut state.memory, empty);
            // Not there any more when the thread ends.
            let _ = SPARE.try_with(|spare| spare.borrow_mut().push(memory));
        }
    }
}

/// What is handed to the block layer: a reference to the disk.
pub struct SimQueue(pub Arc<SimDisk>);

impl BlockDevice for SimQueue {
    fn limits(&self) -> &QueueLimits {
        &self.0.limits
    }

    fn nr_sectors(&self) -> u64 {
        self.0.nr_sectors
    }

    fn queue_rq(&self, rq: Request) {
        let mut state = self.0.lock();
        let id = state.next_id;
        state.next_id += 1;
        let event = InFlight { id, opf: rq.opf(), sector: rq.sector(), bytes: rq.nr_bytes() };
        let mut sum = 0;
        match rq.op() {
            ReqOp::Write => sum = checksum(&copy_out(&rq)),
            ReqOp::Read => fill(&rq, None),
            _ => {}
        }
        let covers = state.written.len();
        state.uncommitted.push(Pending { rq, event, sum, covers });
    }

    fn commit_rqs(&self) {
        sched_point(Point::Submit, core::ptr::null());
        let new: Vec<InFlight> = {
            let mut state = self.0.lock();
            let new = core::mem::take(&mut state.uncommitted);
            let events = new.iter().map(|p| p.event).collect();
            state.pending.extend(new);
            events
        };
        for event in new {
            note(&event, "is submitted");
            if sim::is_quiet() {
                self.0.complete(event.id);
                continue;
            }
            let work = Completer { disk: self.0.clone(), id: event.id };
            if event.opf.op() == ReqOp::Flush {
                // What it covers are the writes that have completed.
                sched_access(core::ptr::without_provenance(CACHE), true);
            }
            sim::start("disk", move || {
                let Completer { disk, id } = work;
                disk.complete(id);
            });
        }
    }

    fn name(&self) -> &str {
        "sim"
    }
}

/// What is wrong with requests in flight together: two of them share a sector, and one is a write.
pub fn overlapping(in_flight: &[InFlight]) -> Option<String> {
    let end = |e: &InFlight| e.sector + u64::from(e.bytes >> SECTOR_SHIFT);
    let pairs = in_flight.iter().enumerate().flat_map(|(n, a)| in_flight[n + 1..].iter().map(move |b| (a, b)));
    let mut bad =
        pairs.filter(|(a, b)| a.sector < end(b) && b.sector < end(a) && (a.opf.is_write() || b.opf.is_write()));
    bad.next().map(|(a, b)| format!("{a:?} and {b:?} overlap"))
}
