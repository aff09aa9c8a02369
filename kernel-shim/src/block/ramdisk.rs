// SPDX-License-Identifier: GPL-2.0-only
//! A RAM disk that punishes misuse, for tests.
//!
//! It keeps the letter of what a disk promises and nothing beyond:
//!
//! * requests complete in an order drawn from a seed, after latencies drawn from it, or one by one
//!   when the test says so ([`Mode::Manual`]); none starts before `commit_rqs`;
//! * the memory of a read is overwritten with [`POISON`] when the read is queued, and filled when
//!   it completes: whoever looks early sees rubbish;
//! * the memory of a write is taken when the write completes, and must be then what it was when it
//!   was queued, or the disk panics;
//! * reads see completed writes only;
//! * completed writes are in a volatile cache until a flush that was queued after their completion
//!   completes. [`RamDisk::crash`] gives what a power failure might leave: of each write that was not made durable
//!   all, nothing, or any of its blocks;
//! * a discarded range reads as rubbish.
//!
//! Tests of concurrency need no clock: [`RamDisk::barrier`] keeps writes in the disk until so many
//! are in it together, which proves that they can be; [`RamDisk::wait_in_flight`] waits for them.

use core::ops::Range;
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc as StdArc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::vec::Vec;

use bitflags::bitflags;

mod memory;

pub(super) use memory::{checksum, copy_out, fill};

use super::bio::{ReqOp, ReqOpf, SECTOR_SHIFT};
use super::blkdev::{BlockDevice, QueueLimits};
use super::brd::FastRamDisk;
use super::request::Request;
use crate::alloc::{Arc, GFP_KERNEL};
use crate::error::{Result, code};
use crate::sched::host::InterruptContext;

/// What the memory of a read holds while the read is in flight.
pub const POISON: u8 = 0xA5;
/// What a discarded range reads as.
pub const DISCARDED: u8 = 0xDD;

/// After how long a wait for something that a test expects is given up with a panic.
const DEADLOCK: Duration = Duration::from_secs(60);

bitflags! {
    /// A choice of requests.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpMask: u8 {
        /// Reads.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Flushes.
        const FLUSH = 1 << 2;
        /// Discards.
        const DISCARD = 1 << 3;
        /// Writes of zeroes.
        const WRITE_ZEROES = 1 << 4;
        /// Not those that are marked [`ReqOpf::META`].
        const NOT_META = 1 << 7;
    }
}

impl OpMask {
    /// Whether a request that does `opf` is among them.
    pub fn matches(self, opf: ReqOpf) -> bool {
        let op = match opf.op() {
            ReqOp::Read => Self::READ,
            ReqOp::Write => Self::WRITE,
            ReqOp::Flush => Self::FLUSH,
            ReqOp::Discard => Self::DISCARD,
            ReqOp::WriteZeroes => Self::WRITE_ZEROES,
            ReqOp::Unknown => return false,
        };
        self.contains(op) && !(self.contains(Self::NOT_META) && opf.contains(ReqOpf::META))
    }
}

/// Who completes requests.
#[derive(Clone, Debug)]
pub enum Mode {
    /// The test, by [`RamDisk::complete_next`] and its like, in its own context.
    Manual,
    /// Threads of the disk.
    Auto {
        /// How many. All may be inside completions at once.
        workers: usize,
        /// Nanoseconds each request takes, drawn evenly; requests pass this time side by side.
        latency_ns: Range<u64>,
    },
}

/// How a [`RamDisk`] behaves.
#[derive(Clone, Debug)]
pub struct RamDiskOptions {
    /// Who completes requests.
    pub mode: Mode,
    /// Determines order and latencies.
    pub seed: u64,
    /// What the disk claims.
    pub limits: QueueLimits,
}

impl Default for RamDiskOptions {
    /// Two threads, no latency, a volatile cache, no FUA, discard and zeroing.
    fn default() -> Self {
        let limits = QueueLimits { write_cache: true, discard: true, write_zeroes: true, ..QueueLimits::DEFAULT };
        Self { mode: Mode::Auto { workers: 2, latency_ns: 0..0 }, seed: 1, limits }
    }
}

/// Something that happened to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Queued, counted from 0; also its name for [`RamDisk::complete`].
    pub id: u64,
    /// Completed now; else queued.
    pub done: bool,
    /// What it does.
    pub opf: ReqOpf,
    /// Where, in 512 bytes.
    pub sector: u64,
    /// How much.
    pub bytes: u32,
}

/// What the disk has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RamDiskStats {
    /// Requests queued.
    pub requests: u64,
    /// Calls of `commit_rqs` that had something to commit.
    pub doorbells: u64,
    /// Most requests that were in flight at once.
    pub max_in_flight: usize,
    /// Pairs of writes that were in flight at once and shared a sector.
    pub overlaps: u64,
    /// Pairs of a read and a write of which the same is true.
    pub read_write_overlaps: u64,
}

/// All that happened on a disk, with the data: enough to say what a power failure at any moment of it might have left.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// In order.
    pub events: Vec<Event>,
    /// What each write wrote that completed, by [`Event::id`], in order of completion; zeros and rubbish included.
    pub written: Vec<(u64, Vec<u8>)>,
}

struct Pending {
    rq: Request,
    event: Event,
    /// Of the memory of a write, when it was queued.
    sum: u64,
    due: Instant,
    /// For a flush: how many writes had completed when it was queued.
    covers: u64,
}

/// A completed write that a crash may take back.
struct Volatile {
    number: u64,
    sector: u64,
    data: Vec<u8>,
    /// A crash may not take it back; it is here to keep the order.
    durable: bool,
}

struct State {
    /// What reads see.
    image: Vec<u8>,
    /// What is certain to survive, but for what `volatile` says is durable.
    media: Vec<u8>,
    volatile: Vec<Volatile>,
    completed_writes: u64,
    uncommitted: Vec<Pending>,
    pending: Vec<Pending>,
    next_id: u64,
    rng: Rng,
    /// Requests of the mask stay until so many are in flight.
    hold: Option<(usize, OpMask)>,
    log: Option<Vec<Event>>,
    /// What completed writes wrote, by [`Event::id`], while a [`Recording`] is made.
    written: Option<Vec<(u64, Vec<u8>)>>,
    stats: RamDiskStats,
    violation: Option<String>,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    /// There may be something to complete.
    work: Condvar,
    /// Requests came or went.
    progress: Condvar,
    mode: Mode,
    limits: QueueLimits,
    nr_sectors: u64,
}

/// The disk: see the head of this file.
pub struct RamDisk {
    shared: StdArc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// A small generator of numbers that look random: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`, or 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }
}

impl RamDisk {
    /// A disk of zeroes, `bytes` long (whole sectors). ENOMEM; EAGAIN if a thread cannot be made.
    pub fn new(bytes: u64, options: RamDiskOptions) -> Result<Arc<Self>> {
        let len = usize::try_from(bytes).map_err(|_| code::ENOMEM)?;
        Self::from_image(std::vec![0; len], options)
    }

    /// A disk that holds `image`, all of it durable.
    pub fn from_image(mut image: Vec<u8>, options: RamDiskOptions) -> Result<Arc<Self>> {
        image.truncate(image.len() >> SECTOR_SHIFT << SECTOR_SHIFT);
        let nr_sectors = (image.len() >> SECTOR_SHIFT) as u64;
        let state = State {
            media: image.clone(),
            image,
            volatile: Vec::new(),
            completed_writes: 0,
            uncommitted: Vec::new(),
            pending: Vec::new(),
            next_id: 0,
            rng: Rng(options.seed),
            hold: None,
            log: None,
            written: None,
            stats: RamDiskStats::default(),
            violation: None,
            stop: false,
        };
        let shared = StdArc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            mode: options.mode,
            limits: options.limits,
            nr_sectors,
        });
        let mut disk = Self { shared: shared.clone(), workers: Vec::new() };
        if let Mode::Auto { workers, .. } = shared.mode {
            for _ in 0..workers.max(1) {
                let shared = shared.clone();
                let worker = thread::Builder::new().name("ramdisk".to_string()).spawn(move || shared.worker())?;
                disk.workers.push(worker);
            }
        }
        Ok(Arc::new(disk, GFP_KERNEL)?)
    }

    /// A disk for benchmarks instead: no checks, and requests complete before `queue_rq` returns.
    pub fn fast(bytes: u64) -> Result<FastRamDisk> {
        FastRamDisk::new(bytes)
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.lock().pending.len()
    }

    /// What was counted so far.
    pub fn stats(&self) -> RamDiskStats {
        self.shared.lock().stats
    }

    /// Sleeps until at least `n` requests are in flight. Panics after a minute without.
    pub fn wait_in_flight(&self, n: usize) {
        self.shared.wait(|state| state.pending.len() >= n, "so many requests in flight");
    }

    /// Sleeps until none is. Panics after a minute.
    pub fn wait_idle(&self) {
        self.shared.wait(|state| state.pending.is_empty(), "no request in flight");
    }

    /// Lets no write of file data complete until `n` of them are in flight together; then all may.
    pub fn barrier(&self, n: usize) {
        self.barrier_on(n, OpMask::WRITE | OpMask::NOT_META);
    }

    /// [`RamDisk::barrier`] for the requests of `mask`. Others complete as ever.
    pub fn barrier_on(&self, n: usize, mask: OpMask) {
        self.shared.lock().hold = Some((n, mask));
    }

    /// Lets no request of `mask` complete until [`RamDisk::release`].
    pub fn hold(&self, mask: OpMask) {
        self.barrier_on(usize::MAX, mask);
    }

    /// Ends a barrier or hold, whatever is in flight.
    pub fn release(&self) {
        self.shared.lock().hold = None;
        self.shared.work.notify_all();
    }

    /// Whether a barrier or hold is on: then so many have not met yet.
    pub fn is_held(&self) -> bool {
        self.shared.lock().hold.is_some()
    }

    /// The requests in flight, oldest first.
    pub fn pending(&self) -> Vec<Event> {
        self.shared.lock().pending.iter().map(|p| p.event).collect()
    }

    /// Completes one request in flight, drawn from the seed; whether there was one.
    pub fn complete_next(&self) -> bool {
        let mut state = self.shared.lock();
        let count = state.pending.len() as u64;
        if count == 0 {
            return false;
        }
        let at = state.rng.below(count) as usize;
        let pending = state.pending.remove(at);
        self.complete_here(state, pending);
        true
    }

    /// Completes the request `id`; whether it was in flight.
    pub fn complete(&self, id: u64) -> bool {
        let mut state = self.shared.lock();
        let Some(at) = state.pending.iter().position(|p| p.event.id == id) else { return false };
        let pending = state.pending.remove(at);
        self.complete_here(state, pending);
        true
    }

    /// Completes until none is in flight, those included that completions queue; how many.
    pub fn complete_all(&self) -> usize {
        let mut count = 0;
        while self.complete_next() {
            count += 1;
        }
        count
    }

    fn complete_here(&self, state: MutexGuard<'_, State>, pending: Pending) {
        if let Err(violation) = self.shared.complete(state, pending) {
            // Told now, and so not again when the disk is dropped.
            self.shared.lock().violation = None;
            panic!("{violation}");
        }
    }

    /// Starts recording what happens to requests.
    pub fn start_log(&self) {
        self.shared.lock().log = Some(Vec::new());
    }

    /// What happened since the recording started, or since the last call.
    pub fn take_log(&self) -> Vec<Event> {
        self.shared.lock().log.as_mut().map(core::mem::take).unwrap_or_default()
    }

    /// Starts a [`Recording`], in place of a log.
    pub fn start_recording(&self) {
        let mut state = self.shared.lock();
        (state.log, state.written) = (Some(Vec::new()), Some(Vec::new()));
    }

    /// How many events have been recorded so far.
    pub fn recorded(&self) -> usize {
        self.shared.lock().log.as_ref().map_or(0, Vec::len)
    }

    /// Ends the recording.
    pub fn take_recording(&self) -> Recording {
        let mut state = self.shared.lock();
        Recording { events: state.log.take().unwrap_or_default(), written: state.written.take().unwrap_or_default() }
    }

    /// What reads would see of the whole disk.
    pub fn image(&self) -> Vec<u8> {
        self.shared.lock().image.clone()
    }

    /// What is certain to survive a power failure now.
    pub fn durable_image(&self) -> Vec<u8> {
        self.shared.lock().durable_image()
    }

    /// What a power failure now might leave, one possibility for each seed. The disk goes on unharmed.
    ///
    /// Writes in flight count as well: their memory is read.
    pub fn crash(&self, seed: u64) -> Vec<u8> {
        self.shared.lock().crash(seed, self.shared.limits.logical_block_size as usize)
    }

    /// Panics if a thread of the disk has found a buffer changed in flight. Dropping the disk does it, too.
    pub fn check(&self) {
        let violation = self.shared.lock().violation.take();
        if let Some(violation) = violation {
            panic!("{violation}");
        }
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked in somebody's bi_end_io has said so.
            let _ = worker.join();
        }
        if !thread::panicking() {
            self.check();
        }
    }
}

impl BlockDevice for RamDisk {
    fn limits(&self) -> &QueueLimits {
        &self.shared.limits
    }

    fn nr_sectors(&self) -> u64 {
        self.shared.nr_sectors
    }

    fn queue_rq(&self, rq: Request) {
        let mut state = self.shared.lock();
        let event = Event { id: state.next_id, done: false, opf: rq.opf(), sector: rq.sector(), bytes: rq.nr_bytes() };
        state.next_id += 1;
        state.stats.requests += 1;
        state.record(event);
        let mut sum = 0;
        match rq.op() {
            ReqOp::Write => sum = checksum(&copy_out(&rq)),
            ReqOp::Read => fill(&rq, None),
            _ => {}
        }
        let covers = state.completed_writes;
        let latency = match &self.shared.mode {
            Mode::Auto { latency_ns, .. } => {
                latency_ns.start + state.rng.below(latency_ns.end.saturating_sub(latency_ns.start))
            }
            Mode::Manual => 0,
        };
        let due = Instant::now() + Duration::from_nanos(latency);
        state.uncommitted.push(Pending { rq, event, sum, due, covers });
    }

    fn commit_rqs(&self) {
        let mut state = self.shared.lock();
        if state.uncommitted.is_empty() {
            return;
        }
        state.stats.doorbells += 1;
        let new = core::mem::take(&mut state.uncommitted);
        for pending in new {
            state.count_overlaps(&pending.event);
            state.pending.push(pending);
        }
        state.stats.max_in_flight = state.stats.max_in_flight.max(state.pending.len());
        if let Some((n, mask)) = state.hold
            && state.pending.iter().filter(|p| mask.matches(p.event.opf)).count() >= n
        {
            state.hold = None;
        }
        drop(state);
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
    }

    fn name(&self) -> &str {
        "ramdisk"
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, mut until: impl FnMut(&State) -> bool, what: &str) {
        let state = self.lock();
        let (state, timeout) = self
            .progress
            .wait_timeout_while(state, DEADLOCK, |state| !until(state))
            .unwrap_or_else(PoisonError::into_inner);
        let in_flight = state.pending.len();
        drop(state);
        assert!(!timeout.timed_out(), "waited in vain for {what}: there are {in_flight}");
    }

    fn worker(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            match state.pick(now) {
                Ok(pending) => {
                    // A violation is kept for `check`: a panic here would be seen by nobody.
                    let _ = self.complete(state, pending);
                    state = self.lock();
                }
                Err(_) if state.stop => return,
                Err(None) => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Err(Some(due)) => {
                    state = self.work.wait_timeout(state, due - now).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Completes a request that has been taken out of `pending`: the data moves, and with the lock
    /// released the request ends. Says what the submitter did wrong.
    fn complete(&self, mut state: MutexGuard<'_, State>, pending: Pending) -> Result<(), String> {
        let Pending { rq, event, sum, covers, .. } = pending;
        let at = (event.sector << SECTOR_SHIFT) as usize;
        let range = at..at + event.bytes as usize;
        let mut violation = None;
        match rq.op() {
            ReqOp::Read => fill(&rq, Some(&state.image[range])),
            ReqOp::Write => {
                let data = copy_out(&rq);
                if checksum(&data) == sum {
                    let durable = event.opf.contains(ReqOpf::FUA) || !self.limits.write_cache;
                    state.write(&event, data, durable);
                } else {
                    violation = Some(format!("buffer changed while in flight: {event:?}"));
                }
            }
            ReqOp::WriteZeroes => state.write(&event, std::vec![0; range.len()], !self.limits.write_cache),
            ReqOp::Discard => state.write(&event, std::vec![DISCARDED; range.len()], !self.limits.write_cache),
            ReqOp::Flush => state.flush(covers),
            ReqOp::Unknown => {}
        }
        state.record(Event { done: true, ..event });
        if violation.is_some() {
            state.violation.clone_from(&violation);
        }
        drop(state);
        self.progress.notify_all();
        let _irq = InterruptContext::enter();
        match violation {
            None => {
                rq.end(Ok(()));
                Ok(())
            }
            Some(violation) => {
                rq.end(Err(code::EIO));
                Err(violation)
            }
        }
    }
}

impl State {
    fn record(&mut self, event: Event) {
        if let Some(log) = &mut self.log {
            log.push(event);
        }
    }

    /// One of the requests that may complete at `now`; else when the next may.
    fn pick(&mut self, now: Instant) -> Result<Pending, Option<Instant>> {
        let hold = self.hold;
        let free = |p: &Pending| !hold.is_some_and(|(_, mask)| mask.matches(p.event.opf));
        let ready = self.pending.iter().filter(|p| free(p) && p.due <= now).count() as u64;
        if ready == 0 {
            return Err(self.pending.iter().filter(|p| free(p)).map(|p| p.due).min());
        }
        let nth = self.rng.below(ready) as usize;
        let at = self.pending.iter().enumerate().filter(|(_, p)| free(p) && p.due <= now).nth(nth);
        match at.map(|(at, _)| at) {
            Some(at) => Ok(self.pending.remove(at)),
            None => Err(None),
        }
    }

    fn count_overlaps(&mut self, new: &Event) {
        let end = |e: &Event| e.sector + u64::from(e.bytes >> SECTOR_SHIFT);
        for old in self.pending.iter().map(|p| p.event) {
            if old.sector < end(new) && new.sector < end(&old) {
                match (old.opf.is_write(), new.opf.is_write()) {
                    (true, true) => self.stats.overlaps += 1,
                    (false, false) => {}
                    _ => self.stats.read_write_overlaps += 1,
                }
            }
        }
    }

    fn write(&mut self, event: &Event, data: Vec<u8>, durable: bool) {
        let sector = event.sector;
        if let Some(written) = &mut self.written {
            written.push((event.id, data.clone()));
        }
        put(&mut self.image, sector, &data);
        self.completed_writes += 1;
        if durable && self.volatile.is_empty() {
            return put(&mut self.media, sector, &data);
        }
        self.volatile.push(Volatile { number: self.completed_writes, sector, data, durable });
    }

    /// Makes the first `covers` completed writes durable.
    fn flush(&mut self, covers: u64) {
        let count = self.volatile.partition_point(|v| v.number <= covers);
        for v in self.volatile.drain(..count) {
            put(&mut self.media, v.sector, &v.data);
        }
    }

    fn durable_image(&self) -> Vec<u8> {
        let mut image = self.media.clone();
        for v in self.volatile.iter().filter(|v| v.durable) {
            put(&mut image, v.sector, &v.data);
        }
        image
    }

    fn crash(&self, seed: u64, block: usize) -> Vec<u8> {
        let mut rng = Rng(seed);
        let mut image = self.media.clone();
        for v in &self.volatile {
            if v.durable {
                put(&mut image, v.sector, &v.data);
            } else {
                put_some(&mut image, v.sector, &v.data, block, &mut rng);
            }
        }
        let writes = self.pending.iter().chain(&self.uncommitted).filter(|p| p.rq.op() == ReqOp::Write);
        let mut left: Vec<_> = writes.map(|p| (p.event.sector, copy_out(&p.rq))).collect();
        while !left.is_empty() {
            let (sector, data) = left.swap_remove(rng.below(left.len() as u64) as usize);
            put_some(&mut image, sector, &data, block, &mut rng);
        }
        image
    }
}

pub(super) fn put(image: &mut [u8], sector: u64, data: &[u8]) {
    let at = (sector << SECTOR_SHIFT) as usize;
    image[at..at + data.len()].copy_from_slice(data);
}

/// All of `data`, nothing of it, or some of its blocks.
fn put_some(image: &mut [u8], sector: u64, data: &[u8], block: usize, rng: &mut Rng) {
    let how = rng.below(3);
    for (i, chunk) in data.chunks(block).enumerate() {
        if how == 1 || (how == 2 && rng.below(2) == 1) {
            put(image, sector + ((i * block) >> SECTOR_SHIFT) as u64, chunk);
        }
    }
}
