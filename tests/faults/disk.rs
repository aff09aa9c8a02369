// SPDX-License-Identifier: GPL-2.0-only
//! A disk that keeps only what differs from an image, so that a thousand runs begin with the same one; and a thread that requests go
//! through, so that they end after the submitter has gone on.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ext4_dio_tests::clean::{Clean, Log};
use ext4_dio_tests::differential::check_clean;
use ext4_dio_tests::images::Image;
use kernel_shim::block::fault::Tear;
use kernel_shim::block::{BlockDevice, QueueLimits, ReqOp, Request};
use kernel_shim::sched::host::InterruptContext;

const PAGE: usize = 4096;

/// Pages that differ from the image, by number.
pub(crate) type Pages = BTreeMap<usize, Box<[u8; PAGE]>>;

/// A number for what is there: equal for equal contents over the same image.
pub(crate) fn hash(pages: &Pages) -> u64 {
    let mut sum = 0u64;
    for (page, bytes) in pages {
        sum = (sum ^ *page as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        for word in bytes.as_chunks::<8>().0 {
            sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        }
    }
    sum
}

/// A file with the image, in which programs look at disks.
pub(crate) struct Scratch {
    base: Arc<Vec<u8>>,
    image: Image,
    clean: Clean,
    /// How often `e2fsck` looked.
    pub(crate) fscks: Cell<usize>,
}

impl Scratch {
    /// With what `base` has, and a journal at `log`.
    pub(crate) fn new(base: Arc<Vec<u8>>, log: Log) -> Self {
        let image = Image::from_bytes(&base);
        Self { base, image, clean: Clean::new(log), fscks: Cell::new(0) }
    }

    fn put(&self, page: usize, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.image.path()).expect("the image");
        file.write_all_at(bytes, (page * PAGE) as u64).expect("room for the image");
    }

    /// Calls `f` with the image as it is with `pages`; if it may change that, what differs then.
    fn with<R>(&self, pages: &Pages, changes: bool, f: impl FnOnce(&Image) -> R) -> (R, Pages) {
        for (page, bytes) in pages {
            self.put(*page, &**bytes);
        }
        let ret = f(&self.image);
        let mut left = Pages::new();
        if changes {
            let bytes = self.image.bytes();
            for (page, (now, base)) in
                bytes.as_chunks::<PAGE>().0.iter().zip(self.base.as_chunks::<PAGE>().0).enumerate()
            {
                if now != base {
                    left.insert(page, Box::new(*now));
                }
            }
        }
        for page in left.keys().chain(pages.keys()) {
            self.put(*page, &self.base[page * PAGE..(page + 1) * PAGE]);
        }
        (ret, left)
    }

    /// `Err` unless `e2fsck -fn` finds nothing wrong, or has found nothing wrong before with the same.
    pub(crate) fn check_clean(&self, pages: &Pages) -> Result<(), String> {
        let changed = pages.iter().map(|(page, bytes)| (*page, &bytes[..])).collect();
        self.clean.once(&self.base, &changed, || {
            self.fscks.update(|n| n + 1);
            self.with(pages, false, |image| check_clean(&image.path())).0
        })
    }

    /// What `e2fsck -fy` makes of it, of which `e2fsck -fn` finds nothing wrong.
    pub(crate) fn repaired(&self, pages: &Pages) -> Result<Pages, String> {
        self.fscks.update(|n| n + 1);
        let (done, left) = self.with(pages, true, Image::repair);
        done?;
        self.check_clean(&left)?;
        Ok(left)
    }
}

#[derive(Default)]
struct State {
    /// What reads see.
    now: Pages,
    /// Of pages that were written since the last flush, what was there at that flush: `None` for what the image has.
    unflushed: BTreeMap<usize, Option<Box<[u8; PAGE]>>>,
}

/// See the head of this file. Requests end in `queue_rq`.
pub(crate) struct Cow {
    base: Arc<Vec<u8>>,
    limits: QueueLimits,
    state: Mutex<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cow {
    /// A disk that holds `base`, whole pages of it.
    pub(crate) fn new(base: Arc<Vec<u8>>) -> Self {
        let limits = QueueLimits { write_cache: true, write_zeroes: true, ..QueueLimits::DEFAULT };
        Self { base, limits, state: Mutex::new(State::default()) }
    }

    /// A disk of which some pages are others.
    pub(crate) fn with(base: Arc<Vec<u8>>, pages: Pages) -> Self {
        let this = Self::new(base);
        lock(&this.state).now = pages;
        this
    }

    /// What differs from the image; with `durable` what did at the last flush.
    pub(crate) fn pages(&self, durable: bool) -> Pages {
        let state = lock(&self.state);
        let mut pages = state.now.clone();
        for (page, before) in state.unflushed.iter().filter(|_| durable) {
            match before {
                Some(before) => pages.insert(*page, before.clone()),
                None => pages.remove(page),
            };
        }
        pages.retain(|page, bytes| self.base[page * PAGE..(page + 1) * PAGE] != **bytes);
        pages
    }

    /// All bytes.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = self.base.as_ref().clone();
        for (page, bytes) in self.pages(false) {
            image[page * PAGE..(page + 1) * PAGE].copy_from_slice(&*bytes);
        }
        image
    }

    /// Calls `f` with each piece of `len` bytes from `at` on that lies in one page.
    fn pieces(mut at: usize, len: usize, mut f: impl FnMut(usize, usize, usize)) {
        let end = at + len;
        while at < end {
            let n = (PAGE - at % PAGE).min(end - at);
            f(at / PAGE, at % PAGE, n);
            at += n;
        }
    }

    fn write(&self, state: &mut State, at: usize, bytes: &[u8]) {
        let mut rest = bytes;
        Self::pieces(at, bytes.len(), |page, from, n| {
            let (piece, tail) = rest.split_at(n);
            rest = tail;
            let before = state.now.get(&page).cloned();
            let now = state.now.entry(page).or_insert_with(|| {
                let mut copy = Box::new([0; PAGE]);
                copy.copy_from_slice(&self.base[page * PAGE..(page + 1) * PAGE]);
                copy
            });
            now[from..from + n].copy_from_slice(piece);
            state.unflushed.entry(page).or_insert(before);
        });
    }

    fn read(&self, state: &State, at: usize, bytes: &mut [u8]) {
        let mut done = 0;
        Self::pieces(at, bytes.len(), |page, from, n| {
            let source = match state.now.get(&page) {
                Some(page) => &page[from..from + n],
                None => &self.base[page * PAGE + from..page * PAGE + from + n],
            };
            bytes[done..done + n].copy_from_slice(source);
            done += n;
        });
    }

    /// The memory of a write, one after the other.
    fn data(rq: &Request) -> Vec<u8> {
        let mut data = Vec::with_capacity(rq.nr_bytes() as usize);
        rq.for_each_vec(|vec| {
            // SAFETY: the submitter's memory is valid, and not changed, until the request ends.
            data.extend_from_slice(unsafe { std::slice::from_raw_parts(vec.bv_page.as_ptr(), vec.bv_len as usize) });
        });
        data
    }
}

impl Tear for Cow {
    fn write_sectors(&self, rq: &Request, keep: &dyn Fn(u64) -> bool) {
        let data = Self::data(rq);
        let mut state = lock(&self.state);
        for (n, sector) in data.chunks(512).enumerate().filter(|(n, _)| keep(*n as u64)) {
            self.write(&mut state, (rq.sector() as usize + n) * 512, sector);
        }
    }
}

impl BlockDevice for Cow {
    fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    fn nr_sectors(&self) -> u64 {
        (self.base.len() / PAGE * PAGE / 512) as u64
    }

    fn queue_rq(&self, rq: Request) {
        let mut at = rq.sector() as usize * 512;
        {
            let mut state = lock(&self.state);
            match rq.op() {
                ReqOp::Write => self.write(&mut state, at, &Self::data(&rq)),
                ReqOp::WriteZeroes => self.write(&mut state, at, &vec![0; rq.nr_bytes() as usize]),
                ReqOp::Read => rq.for_each_vec(|vec| {
                    // SAFETY: the submitter's memory is valid, and the disk's, until the request ends.
                    let to = unsafe { std::slice::from_raw_parts_mut(vec.bv_page.as_ptr(), vec.bv_len as usize) };
                    self.read(&state, at, to);
                    at += to.len();
                }),
                ReqOp::Flush => state.unflushed.clear(),
                _ => {}
            }
        }
        let _irq = InterruptContext::enter();
        rq.end(Ok(()));
    }

    fn commit_rqs(&self) {}

    fn name(&self) -> &str {
        "cow"
    }
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    stop: bool,
}

#[derive(Default)]
struct Line {
    queue: Mutex<Queue>,
    more: Condvar,
}

/// Hands requests to the device behind on a thread of its own, in order.
pub(crate) struct Late<D: BlockDevice + Clone + 'static> {
    inner: D,
    line: Arc<Line>,
    thread: Option<JoinHandle<()>>,
}

impl<D: BlockDevice + Clone + 'static> Late<D> {
    /// In front of `inner`.
    pub(crate) fn new(inner: D) -> Self {
        let line = Arc::new(Line::default());
        let (behind, from) = (inner.clone(), line.clone());
        let thread = std::thread::spawn(move || {
            loop {
                let mut queue = lock(&from.queue);
                while queue.requests.is_empty() && !queue.stop {
                    queue = from.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                let Some(rq) = queue.requests.pop_front() else { return };
                drop(queue);
                behind.queue_last(rq);
            }
        });
        Self { inner, line, thread: Some(thread) }
    }
}

impl<D: BlockDevice + Clone + 'static> Drop for Late<D> {
    fn drop(&mut self) {
        lock(&self.line.queue).stop = true;
        self.line.more.notify_all();
        if let Some(thread) = self.thread.take()
            // The last reference may go with the end of a request.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl<D: BlockDevice + Clone + 'static> BlockDevice for Late<D> {
    fn limits(&self) -> &QueueLimits {
        self.inner.limits()
    }

    fn nr_sectors(&self) -> u64 {
        self.inner.nr_sectors()
    }

    fn queue_rq(&self, rq: Request) {
        lock(&self.line.queue).requests.push_back(rq);
        self.line.more.notify_one();
    }

    fn commit_rqs(&self) {}

    fn name(&self) -> &str {
        "late"
    }
}
