// SPDX-License-Identifier: GPL-2.0-only
//! What a power failure may leave on a disk: every write of a run is recorded, with the moments at which it was queued, ended, and
//! became durable; from that, the disk at any moment is put together again.
//!
//! A moment is a place in the sequence of events. Durable then is what a flush covers that had ended (it covers the writes that had
//! ended when it was queued), and what was written with FUA and had ended. Of the other writes that had been queued, some may be on
//! the disk: a [`Choice`]. Two that overlap, of which one ended before the other was queued, keep their order.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kernel_shim::block::ramdisk::{Event, Recording};
use kernel_shim::block::{BlockDevice, QueueLimits, ReqOp, ReqOpf, Request, SECTOR_SHIFT};
use kernel_shim::sched::host::InterruptContext;

use crate::oplang::Rng;

/// Bytes in a sector, the smallest piece that is written wholly or not at all.
pub const SECTOR: usize = 1 << SECTOR_SHIFT;

/// The second sector of the super block. No ext4 survives half of it, as it has a checksum and, on a disk this small, no copy: so it
/// comes with the first.
const SUPER_SECOND: u64 = 3;

/// A disk in memory that ends each request before `queue_rq` returns, has a volatile cache by what it says, and records what is written.
///
/// One run of one task on it is like the other.
pub struct CrashDisk {
    state: Mutex<State>,
    limits: QueueLimits,
    sectors: u64,
}

struct State {
    bytes: Vec<u8>,
    recording: Option<Recording>,
    next: u64,
}

impl CrashDisk {
    /// A disk with these bytes. With `fua` it knows of that.
    pub fn new(bytes: Vec<u8>, fua: bool) -> Self {
        let limits = QueueLimits { write_cache: true, fua, write_zeroes: true, discard: true, ..QueueLimits::DEFAULT };
        let sectors = (bytes.len() / SECTOR) as u64;
        Self { state: Mutex::new(State { bytes, recording: None, next: 0 }), limits, sectors }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts recording.
    pub fn start_recording(&self) {
        self.lock().recording = Some(Recording::default());
    }

    /// How many events there were since.
    pub fn recorded(&self) -> usize {
        self.lock().recording.as_ref().map_or(0, |r| r.events.len())
    }

    /// What was recorded.
    pub fn take_recording(&self) -> Recording {
        self.lock().recording.take().unwrap_or_default()
    }

    /// All bytes as they are now.
    pub fn image(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// All bytes, taken out: the disk is empty from now on.
    pub fn take_image(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().bytes)
    }
}

impl State {
    fn put(&mut self, event: Event, data: Vec<u8>) {
        let at = event.sector as usize * SECTOR;
        self.bytes[at..at + data.len()].copy_from_slice(&data);
        if let Some(recording) = &mut self.recording {
            recording.written.push((event.id, data));
        }
    }

    fn record(&mut self, event: Event) {
        if let Some(recording) = &mut self.recording {
            recording.events.push(event);
        }
    }
}

impl BlockDevice for CrashDisk {
    fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    fn nr_sectors(&self) -> u64 {
        self.sectors
    }

    fn queue_rq(&self, rq: Request) {
        {
            let mut guard = self.lock();
            let state = &mut *guard;
            let event = Event { id: state.next, done: false, opf: rq.opf(), sector: rq.sector(), bytes: rq.nr_bytes() };
            state.next += 1;
            state.record(event);
            let len = event.bytes as usize;
            match rq.op() {
                ReqOp::Write => {
                    let mut data = Vec::with_capacity(len);
                    rq.for_each_vec(|vec| {
                        // SAFETY: a bio's memory is valid, and not written to by its submitter, until the request ends.
                        data.extend_from_slice(unsafe {
                            std::slice::from_raw_parts(vec.bv_page.as_ptr(), vec.bv_len as usize)
                        });
                    });
                    state.put(event, data);
                }
                ReqOp::Read => {
                    let mut at = event.sector as usize * SECTOR;
                    rq.for_each_vec(|vec| {
                        let from = &state.bytes[at..at + vec.bv_len as usize];
                        // SAFETY: the memory is the device's to write until the request ends, and as long.
                        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), vec.bv_page.as_ptr(), from.len()) };
                        at += from.len();
                    });
                }
                ReqOp::WriteZeroes => state.put(event, vec![0; len]),
                ReqOp::Discard => state.put(event, vec![kernel_shim::block::ramdisk::DISCARDED; len]),
                _ => {}
            }
            state.record(Event { done: true, ..event });
        }
        let _irq = InterruptContext::enter();
        rq.end(Ok(()));
    }

    fn commit_rqs(&self) {}

    fn name(&self) -> &str {
        "crashdisk"
    }
}

/// One write of a run. Moments are numbers of events.
struct Write {
    sector: u64,
    data: Vec<u8>,
    queued: usize,
    done: usize,
    /// From here on no crash takes it back.
    durable: usize,
}

/// All writes of a run, in the order in which they ended.
pub struct Trace {
    writes: Vec<Write>,
    /// The run has so many events.
    pub events: usize,
    /// Moments at which something may be on the disk that was not before, or something is durable.
    pub points: Vec<usize>,
}

impl Trace {
    /// From a recording that began on a disk with nothing in its cache. A disk that `lies` says that it flushes, and does not.
    pub fn new(recording: Recording, lies: bool) -> Self {
        let Recording { events, written } = recording;
        let mut queued = BTreeMap::new();
        let mut ended: BTreeMap<u64, (usize, ReqOpf)> = BTreeMap::new();
        let mut flushes = Vec::new();
        let mut points = vec![0];
        for (n, event) in events.iter().enumerate() {
            let op = event.opf.op();
            if op == ReqOp::Read {
                continue;
            }
            points.push(n + 1);
            if !event.done {
                queued.insert(event.id, (n, event.sector));
            } else if op == ReqOp::Flush {
                flushes.push((queued[&event.id].0, n));
            } else {
                ended.insert(event.id, (n, event.opf));
            }
        }
        let mut writes: Vec<Write> = written
            .into_iter()
            .filter_map(|(id, data)| {
                let (&(at, sector), &(done, opf)) = (queued.get(&id)?, ended.get(&id)?);
                let flush = flushes.iter().filter(|(from, _)| *from > done).map(|(_, to)| to + 1).min();
                let fua = opf.contains(ReqOpf::FUA).then_some(done + 1);
                let durable = if lies { None } else { fua.or(flush) };
                Some(Write { sector, data, queued: at, done, durable: durable.unwrap_or(usize::MAX) })
            })
            .collect();
        writes.sort_by_key(|write| write.done);
        Self { writes, events: events.len(), points }
    }

    /// Commit blocks of a journal: when each had been queued, where it goes, and the block.
    pub fn commit_blocks(&self) -> impl Iterator<Item = (usize, u64, &[u8])> {
        // The magic number, and the kind of block.
        const COMMIT: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2];
        self.writes.iter().filter(|w| w.data.starts_with(&COMMIT)).map(|w| (w.queued + 1, w.sector, w.data.as_slice()))
    }

    /// How many writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// What is on the disk of the writes that are not durable. In order of submission, where a number is of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing.
    None,
    /// The first so many; with the number of them, all.
    Prefix(u32),
    /// All but this.
    Drop(u32),
    /// Some, drawn from this seed.
    Subset(u64),
    /// Sectors of them, drawn from this seed.
    Torn(u64),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::None => write!(f, "none"),
            Choice::Prefix(n) => write!(f, "prefix:{n}"),
            Choice::Drop(n) => write!(f, "drop:{n}"),
            Choice::Subset(n) => write!(f, "subset:{n}"),
            Choice::Torn(n) => write!(f, "torn:{n}"),
        }
    }
}

impl FromStr for Choice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, n) = text.split_once(':').unwrap_or((text, "0"));
        let number: u64 = n.parse().map_err(|_| text.to_string())?;
        match kind {
            "none" => Ok(Choice::None),
            "prefix" => Ok(Choice::Prefix(number as u32)),
            "drop" => Ok(Choice::Drop(number as u32)),
            "subset" => Ok(Choice::Subset(number)),
            "torn" => Ok(Choice::Torn(number)),
            _ => Err(text.to_string()),
        }
    }
}

/// A run at one moment, which moves on: what is durable, and what else may be there.
pub struct Moment<'t> {
    trace: &'t Trace,
    /// The moment.
    pub at: usize,
    /// What is durable.
    bytes: Vec<u8>,
    /// Of each sector, when the write ended that is durable there; 0 for none.
    ended: Vec<usize>,
    applied: Vec<bool>,
    sum: u64,
}

/// What a sector adds to the sum of a disk.
fn sector_sum(sector: u64, data: &[u8]) -> u64 {
    let mut sum = sector.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for word in data.chunks_exact(8) {
        let word = u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
        sum = (sum.rotate_left(23) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
    sum ^ (sum >> 29)
}

impl<'t> Moment<'t> {
    /// The beginning: `bytes` are on the disk, and durable.
    pub fn new(trace: &'t Trace, bytes: Vec<u8>) -> Self {
        let ended = vec![0; bytes.len() / SECTOR];
        let sum = bytes.chunks_exact(SECTOR).enumerate().fold(0, |sum, (n, data)| sum ^ sector_sum(n as u64, data));
        Self { trace, at: 0, bytes, ended, applied: vec![false; trace.writes.len()], sum }
    }

    /// Moves on to moment `at`, which is not earlier.
    pub fn advance(&mut self, at: usize) {
        self.at = at;
        for (n, write) in self.trace.writes.iter().enumerate() {
            if self.applied[n] || write.durable > at {
                continue;
            }
            self.applied[n] = true;
            for (k, data) in write.data.chunks_exact(SECTOR).enumerate() {
                let sector = write.sector as usize + k;
                if self.ended[sector] <= write.done {
                    let place = &mut self.bytes[sector * SECTOR..(sector + 1) * SECTOR];
                    self.sum ^= sector_sum(sector as u64, place) ^ sector_sum(sector as u64, data);
                    place.copy_from_slice(data);
                    self.ended[sector] = write.done + 1;
                }
            }
        }
    }

    /// How many writes are neither durable nor to come.
    pub fn volatile(&self) -> u32 {
        self.trace.writes.iter().filter(|w| w.queued < self.at && w.durable > self.at).count() as u32
    }

    /// The disk with a choice of these writes: a sum that is the same for the same bytes, and the sectors that are not as in
    /// what is durable.
    pub fn choose(&self, choice: Choice) -> (u64, BTreeMap<u64, &'t [u8]>) {
        let volatile = || self.trace.writes.iter().filter(|w| w.queued < self.at && w.durable > self.at);
        let mut order: Vec<usize> = volatile().map(|w| w.queued).collect();
        order.sort_unstable();
        let nth = |w: &Write| order.partition_point(|queued| *queued < w.queued) as u32;
        let mut rng = match choice {
            Choice::Subset(seed) | Choice::Torn(seed) => Rng(seed),
            _ => Rng(0),
        };
        let mut sectors = BTreeMap::new();
        for write in volatile() {
            let whole = match choice {
                Choice::None => false,
                Choice::Prefix(n) => nth(write) < n,
                Choice::Drop(n) => nth(write) != n,
                Choice::Subset(_) => rng.one_in(2),
                Choice::Torn(_) => rng.one_in(3),
            };
            let torn = matches!(choice, Choice::Torn(_)) && !whole && rng.one_in(2);
            let mut there = whole;
            for (k, data) in write.data.chunks_exact(SECTOR).enumerate() {
                let sector = write.sector + k as u64;
                if torn && sector != SUPER_SECOND {
                    there = rng.one_in(2);
                }
                if there && self.ended[sector as usize] <= write.done {
                    sectors.insert(sector, data);
                }
            }
        }
        let sum = sectors.iter().fold(self.sum, |sum, (sector, data)| {
            let at = *sector as usize * SECTOR;
            sum ^ sector_sum(*sector, &self.bytes[at..at + SECTOR]) ^ sector_sum(*sector, data)
        });
        (sum, sectors)
    }

    /// The bytes of such a disk.
    pub fn image(&self, sectors: &BTreeMap<u64, &[u8]>) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for (sector, data) in sectors {
            let at = *sector as usize * SECTOR;
            bytes[at..at + SECTOR].copy_from_slice(data);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64, done: bool, opf: ReqOpf, sector: u64) -> Event {
        Event { id, done, opf, sector, bytes: if opf.op() == ReqOp::Flush { 0 } else { 1024 } }
    }

    /// Two overlapping writes, one after the other, a flush that covers the first alone, and one with FUA.
    fn recording() -> Recording {
        let (write, flush) = (ReqOpf::REQ_OP_WRITE, ReqOpf::REQ_OP_FLUSH);
        let events = vec![
            event(0, false, write, 1),
            event(0, true, write, 1),
            event(1, false, write, 2),
            event(2, false, flush, 0),
            event(1, true, write, 2),
            event(2, true, flush, 0),
            event(3, false, write | ReqOpf::FUA, 2),
            event(3, true, write | ReqOpf::FUA, 2),
        ];
        Recording { events, written: vec![(0, vec![1; 1024]), (1, vec![2; 1024]), (3, vec![3; 1024])] }
    }

    fn sectors(moment: &Moment<'_>, choice: Choice) -> Vec<u8> {
        let (_, sectors) = moment.choose(choice);
        moment.image(&sectors).chunks(SECTOR).map(|s| s[0]).collect()
    }

    #[test]
    fn what_is_durable_and_what_may_be_there() {
        let trace = Trace::new(recording(), false);
        let mut moment = Moment::new(&trace, vec![0; 5 * SECTOR]);
        let mut see = |at, choice| {
            moment.advance(at);
            (moment.volatile(), sectors(&moment, choice))
        };
        assert_eq!(see(1, Choice::None), (1, vec![0, 0, 0, 0, 0]));
        assert_eq!(see(1, Choice::Prefix(1)), (1, vec![0, 1, 1, 0, 0]), "in flight, and there");
        assert_eq!(see(5, Choice::Drop(0)), (2, vec![0, 0, 2, 2, 0]), "the second without the first");
        assert_eq!(see(5, Choice::Prefix(2)), (2, vec![0, 1, 2, 2, 0]));
        assert_eq!(see(6, Choice::None), (1, vec![0, 1, 1, 0, 0]), "the flush covered what had ended");
        assert_eq!(see(8, Choice::None), (1, vec![0, 1, 3, 3, 0]));
        assert_eq!(see(8, Choice::Prefix(1)), (1, vec![0, 1, 3, 3, 0]), "an older one does not come back");
    }

    #[test]
    fn a_disk_that_lies_keeps_nothing() {
        let trace = Trace::new(recording(), true);
        let mut moment = Moment::new(&trace, vec![0; 5 * SECTOR]);
        moment.advance(8);
        assert_eq!((moment.volatile(), sectors(&moment, Choice::None)), (3, vec![0; 5]));
    }

    #[test]
    fn sums_are_of_the_bytes() {
        let trace = Trace::new(recording(), false);
        let mut moment = Moment::new(&trace, vec![0; 5 * SECTOR]);
        moment.advance(5);
        let all = moment.choose(Choice::Prefix(2));
        let whole = Moment::new(&trace, moment.image(&all.1));
        assert_eq!(all.0, whole.sum);
        assert_ne!(all.0, moment.choose(Choice::None).0);
        for choice in [Choice::None, Choice::Prefix(3), Choice::Drop(1), Choice::Subset(7), Choice::Torn(9)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }
}
