// SPDX-License-Identifier: GPL-2.0-only
//! One thread of a job: synchronous, or with many kiocbs in flight.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ext4_dio_protocol::{Engine, IoStats, Job, JobResult, STAMP_LEN, Stamp};
use kernel_shim::error::{Error, Result, code::EIO};
use kernel_shim::pr_err;
use kernel_shim::sched;
use kernel_shim::sync::{Mutex, WaitQueue};

use crate::errno;
use crate::pattern::{Kind, Pattern};
use crate::table::{Claim, Table};
use crate::target::{AioRing, Buffer, MAX_DEPTH, Opened, RawSlot};

/// Latency classes: up to 2^40 ns, 18 minutes.
const LAT_CLASSES: usize = 41;

/// What a step's threads and their starter share.
pub struct Shared {
    ready: AtomicU32,
    open: AtomicBool,
    done: AtomicU32,
    stopped: AtomicBool,
    wait: WaitQueue,
    results: Mutex<Vec<(usize, Stats)>>,
    counters: Mutex<Vec<Arc<AtomicU64>>>,
    /// Do not look at the clock: instructions are counted.
    untimed: bool,
}

impl Shared {
    pub(crate) fn new(untimed: bool) -> Self {
        Self {
            ready: AtomicU32::new(0),
            open: AtomicBool::new(false),
            done: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            wait: WaitQueue::new(),
            results: Mutex::new(Vec::new()),
            counters: Mutex::new(Vec::new()),
            untimed,
        }
    }

    /// Sleeps until `n` threads stand at the gate.
    pub(crate) fn wait_ready(&self, n: u32) {
        self.wait.wait_event(|| self.ready.load(Ordering::Acquire) >= n);
    }

    pub(crate) fn open_gate(&self) {
        self.open.store(true, Ordering::Release);
        self.wait.wake_up_all();
    }

    /// Lets every thread end after the I/O it is at.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Sleeps until `n` threads have ended, or for so long; whether they have.
    pub(crate) fn wait_done(&self, n: u32, ns: u64) -> bool {
        self.wait.wait_event_timeout(|| self.done.load(Ordering::Acquire) >= n, ns)
    }

    /// I/Os so far.
    pub(crate) fn ios(&self) -> u64 {
        self.counters.lock().iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    /// Sums up by job.
    pub(crate) fn collect(&self, jobs: &mut [JobResult]) {
        for (index, stats) in self.results.lock().drain(..) {
            if let Some(job) = jobs.get_mut(index) {
                stats.add_to(job);
            }
        }
    }

    fn enter(&self) {
        self.ready.fetch_add(1, Ordering::Release);
        self.wait.wake_up_all();
        self.wait.wait_event(|| self.open.load(Ordering::Acquire));
    }

    fn leave(&self, index: usize, stats: Stats) {
        self.results.lock().push((index, stats));
        self.done.fetch_add(1, Ordering::Release);
        self.wait.wake_up_all();
    }
}

#[derive(Clone)]
struct Direction {
    ios: u64,
    sum: u64,
    min: u64,
    max: u64,
    log2: [u64; LAT_CLASSES],
}

impl Direction {
    const NONE: Self = Self { ios: 0, sum: 0, min: u64::MAX, max: 0, log2: [0; LAT_CLASSES] };

    #[inline]
    fn record(&mut self, ns: u64) {
        self.sum += ns;
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
        self.log2[(ns | 1).ilog2().min(LAT_CLASSES as u32 - 1) as usize] += 1;
    }

    fn add_to(&self, to: &mut IoStats, bs: u64) {
        if self.ios == 0 {
            return;
        }
        // Without a clock there is none.
        let min = self.min.min(self.max);
        to.lat_min_ns = if to.ios == 0 { min } else { to.lat_min_ns.min(min) };
        to.lat_max_ns = to.lat_max_ns.max(self.max);
        to.ios += self.ios;
        to.bytes += self.ios * bs;
        to.lat_sum_ns += self.sum;
        to.lat_log2.resize(LAT_CLASSES, 0);
        for (to, n) in to.lat_log2.iter_mut().zip(&self.log2) {
            *to += n;
        }
    }
}

/// One thread's totals.
struct Stats {
    bs: u64,
    read: Direction,
    write: Direction,
    trim: Direction,
    syncs: u64,
    errors: u64,
    first_error: i32,
    elapsed_ns: u64,
}

impl Stats {
    fn add_to(&self, job: &mut JobResult) {
        self.read.add_to(&mut job.read, self.bs);
        self.write.add_to(&mut job.write, self.bs);
        self.trim.add_to(&mut job.trim, self.bs);
        job.syncs += self.syncs;
        job.errors += self.errors;
        if job.first_error == 0 {
            job.first_error = self.first_error;
        }
        job.elapsed_ns = job.elapsed_ns.max(self.elapsed_ns);
    }
}

/// One I/O, chosen. Handed on by value, so that it can stay in registers.
#[derive(Clone, Copy)]
struct Io {
    pos: u64,
    kind: Kind,
    /// For stamped blocks that are written or trimmed.
    claim: Option<Claim>,
}

enum Next {
    Io(Io),
    /// Somebody is writing the block that comes next.
    Busy,
    End,
}

/// One thread of a job.
pub struct Worker {
    name: String,
    index: usize,
    opened: Opened,
    table: Option<Arc<Table>>,
    shared: Arc<Shared>,
    counter: Arc<AtomicU64>,
    pattern: Pattern,
    held: Option<u64>,
    /// What is written, by slot: body once, stamp each time.
    buffers: Vec<Buffer>,
    /// Where reads go, which must not change what is written; none for a job without reads.
    read_buffers: Vec<Buffer>,
    body_crc: u32,
    writer: u32,
    engine: Engine,
    bs: usize,
    /// From one block to the next.
    stride: u64,
    start: u64,
    depth: usize,
    fsync: u32,
    fdatasync: u32,
    end_fsync: bool,
    fsync_on_close: bool,
    since_sync: (u32, u32),
    time_based: bool,
    runtime_ns: Option<u64>,
    deadline: u64,
    /// I/Os still to do, if they are counted.
    left: u64,
    counted: bool,
    stats: Stats,
}

impl Worker {
    /// The `n`-th thread of `job`, which is the `index`-th of its step. It works on bytes in `range`. What is wrong is told before
    /// anything starts.
    pub fn new(
        job: &Job,
        index: usize,
        n: u32,
        range: Range<u64>,
        opened: Opened,
        table: Option<Arc<Table>>,
        shared: Arc<Shared>,
    ) -> Result<Self, String> {
        let name = format!("{}.{n}", job.name);
        let bs = job.bs as usize;
        let start = u64::from(n).checked_mul(job.offset_increment).and_then(|o| o.checked_add(job.offset));
        let start = start.and_then(|start| start.checked_add(range.start));
        let start = start
            .filter(|s| *s < range.end)
            .ok_or_else(|| format!("job {name}: starts past the end ({} bytes) of {}", range.end, job.filename))?;
        let rest = range.end - start;
        let size = job.size.unwrap_or(rest);
        if size > rest {
            return Err(format!(
                "job {name}: size {size} from offset {start} is more than {} has ({} bytes)",
                job.filename, range.end
            ));
        }
        if size < u64::from(job.bs) {
            return Err(format!("job {name}: size {size} is less than one bs of {bs}"));
        }
        let stride = u64::from(job.bs).saturating_add(job.skip);
        let blocks = (size - u64::from(job.bs)) / stride + 1;
        if table.is_some() && stride % u64::from(job.bs) != 0 {
            return Err(format!("job {name}: verify needs what is left out to be a multiple of bs"));
        }
        if table.is_some() && start % u64::from(job.bs) != 0 {
            return Err(format!("job {name}: verify needs offsets that are multiples of bs"));
        }
        let depth = if job.engine == Engine::Sync { 1 } else { job.iodepth as usize };
        if depth > MAX_DEPTH {
            return Err(format!("job {name}: iodepth {depth} is more than {MAX_DEPTH}"));
        }
        let writer = (index as u32) << 16 | n;
        let mut buffers = Vec::new();
        let mut body_crc = 0;
        for _ in 0..depth {
            let mut buffer = Buffer::new(bs).ok_or_else(|| format!("job {name}: no memory for buffers"))?;
            Stamp::fill_body(buffer.bytes_mut(), writer);
            body_crc = Stamp::body_crc(buffer.bytes_mut());
            buffers.push(buffer);
        }
        let reads = if job.rw.reads() { depth } else { 0 };
        let read_buffers = (0..reads).map(|_| Buffer::new(bs)).collect::<Option<Vec<_>>>();
        let read_buffers = read_buffers.ok_or_else(|| format!("job {name}: no memory for buffers"))?;
        let counter = Arc::new(AtomicU64::new(0));
        shared.counters.lock().push(counter.clone());
        let time_based = job.time_based && job.runtime_ms.is_some();
        Ok(Self {
            name,
            index,
            opened,
            table,
            shared,
            counter,
            pattern: Pattern::new(job.rw, job.rwmixread, blocks, job.randseed.wrapping_add(u64::from(n))),
            held: None,
            buffers,
            read_buffers,
            body_crc,
            writer,
            engine: job.engine,
            bs,
            stride,
            start,
            depth,
            fsync: job.fsync,
            fdatasync: job.fdatasync,
            end_fsync: job.end_fsync,
            fsync_on_close: job.fsync_on_close,
            since_sync: (0, 0),
            time_based,
            runtime_ns: job.runtime_ms.map(|ms| ms.saturating_mul(1_000_000)),
            deadline: u64::MAX,
            left: job.number_ios.unwrap_or(u64::MAX),
            counted: job.number_ios.is_some(),
            stats: Stats {
                bs: u64::from(job.bs),
                read: Direction::NONE,
                write: Direction::NONE,
                trim: Direction::NONE,
                syncs: 0,
                errors: 0,
                first_error: 0,
                elapsed_ns: 0,
            },
        })
    }

    /// The thread's body.
    pub fn run(mut self) {
        // Before the gate: what a run allocates is not part of what is measured.
        let ring = if self.engine == Engine::Async { Some(AioRing::new()) } else { None };
        self.shared.enter();
        let start = sched::now_ns();
        if let Some(ns) = self.runtime_ns {
            self.deadline = start.saturating_add(ns);
        }
        match ring {
            None => self.run_sync(),
            Some(Ok(ring)) => self.run_async(&ring),
            Some(Err(e)) => self.fail(e, "starting"),
        }
        if self.end_fsync {
            self.sync_at_end();
        }
        self.stats.elapsed_ns = sched::now_ns() - start;
        if self.fsync_on_close {
            self.sync_at_end();
        }
        self.shared.leave(self.index, self.stats);
    }

    /// fsync of what was written.
    fn sync_at_end(&mut self) {
        if self.stats.write.ios + self.stats.trim.ios > 0 {
            self.sync(false);
        }
    }

    fn sync(&mut self, datasync: bool) {
        match self.opened.sync(datasync) {
            Ok(()) => self.stats.syncs += 1,
            Err(e) => self.fail(e, "fsync"),
        }
    }

    #[inline]
    fn now(&self) -> u64 {
        if self.shared.untimed { 0 } else { sched::now_ns() }
    }

    #[inline(always)]
    fn next(&mut self, now: u64) -> Next {
        if self.left == 0 || now >= self.deadline || self.shared.stopped.load(Ordering::Relaxed) {
            return Next::End;
        }
        let block = if self.held.is_some() { self.held.take() } else { self.pattern.next_block() };
        let Some(block) = block.or_else(|| self.next_pass()) else { return Next::End };
        let pos = self.start + block * self.stride;
        let kind = self.pattern.kind();
        let mut claim = None;
        if kind != Kind::Read
            && let Some(table) = &self.table
        {
            claim = table.claim(pos / self.bs as u64);
            if claim.is_none() {
                self.held = Some(block);
                return Next::Busy;
            }
        }
        self.left -= 1;
        Next::Io(Io { pos, kind, claim })
    }

    /// A pass over the region is over: the first block of the next one, which a count or a time asks for.
    #[cold]
    fn next_pass(&mut self) -> Option<u64> {
        if !self.time_based && !self.counted {
            // Also for whoever asks again while the last I/Os are in flight.
            self.left = 0;
            return None;
        }
        self.pattern.next_block()
    }

    /// Puts the stamp into slot `slot`'s buffer, which no I/O uses.
    #[inline]
    fn stamp(&mut self, slot: usize, io: Io) {
        if let Some(claim) = &io.claim {
            let stamp =
                Stamp { offset: io.pos, generation: claim.generation, writer: self.writer, body_crc: self.body_crc };
            self.buffers[slot].bytes_mut()[..STAMP_LEN].copy_from_slice(&stamp.encode());
        }
    }

    /// Notes an error, which is the end of this thread's I/O.
    #[cold]
    fn fail(&mut self, e: Error, what: &str) {
        self.left = 0;
        self.stats.errors += 1;
        if self.stats.first_error == 0 {
            self.stats.first_error = e.to_errno();
            pr_err!("job {}: {what}: {}\n", self.name, errno(e));
        }
    }

    #[inline(always)]
    fn ended(&mut self, io: Io, ret: Result, ns: u64) {
        if let Err(e) = ret {
            return self.ended_badly(io, e);
        }
        let stats = match io.kind {
            Kind::Read => &mut self.stats.read,
            Kind::Write => &mut self.stats.write,
            Kind::Trim => &mut self.stats.trim,
        };
        stats.ios += 1;
        if !self.shared.untimed {
            stats.record(ns);
        }
        self.counter.store(self.stats.read.ios + self.stats.write.ios + self.stats.trim.ios, Ordering::Relaxed);
        if let (Some(claim), Some(table)) = (&io.claim, &self.table) {
            if io.kind == Kind::Trim {
                table.acknowledge_trim(claim, self.opened.trims_to_zero());
            } else {
                table.acknowledge(claim);
            }
        }
    }

    #[cold]
    fn ended_badly(&mut self, io: Io, e: Error) {
        if let (Some(claim), Some(table)) = (&io.claim, &self.table) {
            table.abandon(claim);
        }
        let name = match io.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Trim => "trim",
        };
        let what = format!("{name} of {} bytes at {}", self.bs, io.pos);
        self.fail(e, &what);
    }

    /// fsync and fdatasync, where they are due.
    #[inline]
    fn sync_if_due(&mut self, io: Io) {
        if self.fsync | self.fdatasync != 0 && io.kind == Kind::Write {
            self.count_for_sync();
        }
    }

    #[cold]
    fn count_for_sync(&mut self) {
        self.since_sync.0 += 1;
        self.since_sync.1 += 1;
        for datasync in [false, true] {
            let (every, since) =
                if datasync { (self.fdatasync, &mut self.since_sync.1) } else { (self.fsync, &mut self.since_sync.0) };
            if every != 0 && *since >= every {
                *since = 0;
                self.sync(datasync);
            }
        }
    }

    #[inline(never)]
    fn run_sync(&mut self) {
        let mut now = self.now();
        loop {
            let io = match self.next(now) {
                Next::Io(io) => io,
                Next::End => return,
                Next::Busy => {
                    sched::yield_now();
                    now = self.now();
                    continue;
                }
            };
            self.stamp(0, io);
            let ret = match io.kind {
                Kind::Read => self.opened.read_sync(io.pos, self.read_buffers[0].bytes_mut()),
                Kind::Write => self.opened.write_sync(io.pos, self.buffers[0].bytes_mut()),
                Kind::Trim => self.opened.trim(io.pos, self.bs),
            };
            let then = core::mem::replace(&mut now, self.now());
            self.ended(io, ret, now.saturating_sub(then));
            self.sync_if_due(io);
        }
    }

    #[inline(never)]
    fn run_async(&mut self, ring: &kernel_shim::alloc::Arc<AioRing>) {
        let slots: Vec<RawSlot> = (0..self.depth).map(|slot| RawSlot::new(ring, slot)).collect();
        let mut ios: Vec<Option<(Io, u64)>> = (0..self.depth).map(|_| None).collect();
        let mut free: Vec<usize> = (0..self.depth).rev().collect();
        let mut ended: Vec<(usize, Result<usize>)> = Vec::with_capacity(self.depth);
        loop {
            // Each is started by itself, as fio does without iodepth_batch. A plug around them all would make guest and disk take
            // turns: nothing to do for the disk while they are made, and nothing for us until it has done them.
            let now = self.now();
            let mut more = true;
            while let Some(&slot) = free.last() {
                let io = match self.next(now) {
                    Next::Io(io) => io,
                    Next::Busy => break,
                    Next::End => {
                        more = false;
                        break;
                    }
                };
                free.pop();
                if io.kind == Kind::Trim {
                    // There is no asynchronous way; fio does the same.
                    ios[slot] = Some((io, now));
                    ended.push((slot, self.opened.trim(io.pos, self.bs).map(|()| self.bs)));
                    continue;
                }
                self.stamp(slot, io);
                let read = io.kind == Kind::Read;
                let buffer = if read { &self.read_buffers[slot] } else { &self.buffers[slot] };
                // SAFETY: buffer and slot belong to this I/O until it is reaped; both live to the end of this function, which
                // is not left with an I/O under way.
                let ret = unsafe { self.opened.start(&slots[slot], read, io.pos, buffer.base(), self.bs) };
                ios[slot] = Some((io, now));
                if let Some(ret) = ret {
                    ended.push((slot, ret));
                }
            }
            let in_flight = self.depth - free.len() - ended.len();
            if in_flight == 0 && ended.is_empty() {
                if !more {
                    return;
                }
                sched::yield_now();
                continue;
            }
            if ended.is_empty() {
                ring.wait(self.depth);
            }
            ring.reap(self.depth, |slot, ret| ended.push((slot, ret)));
            let now = self.now();
            while let Some((slot, ret)) = ended.pop() {
                if let Some((io, then)) = ios[slot].take() {
                    let ret = ret.and_then(|n| if n == self.bs { Ok(()) } else { Err(EIO) });
                    self.ended(io, ret, now.saturating_sub(then));
                    self.sync_if_due(io);
                }
                free.push(slot);
            }
        }
    }
}
