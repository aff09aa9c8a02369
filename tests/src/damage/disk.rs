// SPDX-License-Identifier: GPL-2.0-only
//! A disk that begins as a shared image, keeps what is changed beside it, and does only so many requests: what never ends runs into
//! errors, and the test is told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel_shim::block::{BlockDevice, QueueLimits, ReqOp, Request};
use kernel_shim::error::code::EIO;
use kernel_shim::sched::host::InterruptContext;

const PAGE: usize = 4096;

/// An image, and what is changed of it.
#[derive(Clone)]
pub struct Patched {
    base: Arc<[u8]>,
    pages: HashMap<usize, Box<[u8; PAGE]>>,
}

impl Patched {
    /// Unchanged. The image is whole pages.
    pub fn new(base: Arc<[u8]>) -> Self {
        assert!(base.len().is_multiple_of(PAGE), "whole pages");
        Self { base, pages: HashMap::new() }
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.base.len() as u64
    }

    /// Visits the pieces of a range within the image: the page, the range in the page, and where that is in the caller's.
    fn pieces(&self, at: u64, len: usize, mut f: impl FnMut(usize, std::ops::Range<usize>, usize)) {
        let end = (at.saturating_add(len as u64)).min(self.size());
        let mut pos = at;
        while pos < end {
            let (page, skip) = ((pos / PAGE as u64) as usize, (pos % PAGE as u64) as usize);
            let n = (PAGE - skip).min((end - pos) as usize);
            f(page, skip..skip + n, (pos - at) as usize);
            pos += n as u64;
        }
    }

    /// Copies from the image. What is behind its end stays as it is.
    pub fn read(&self, at: u64, to: &mut [u8]) {
        self.pieces(at, to.len(), |page, range, skip| {
            let from = match self.pages.get(&page) {
                Some(own) => &own[range],
                None => &self.base[page * PAGE..][range],
            };
            to[skip..skip + from.len()].copy_from_slice(from);
        });
    }

    /// `len` bytes.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes);
        bytes
    }

    /// Changes the image. What is behind its end is left off.
    pub fn write(&mut self, at: u64, from: &[u8]) {
        let mut todo = Vec::new();
        self.pieces(at, from.len(), |page, range, skip| todo.push((page, range, skip)));
        for (page, range, skip) in todo {
            let base = &self.base[page * PAGE..(page + 1) * PAGE];
            let own = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new(*base.first_chunk().expect("images are whole pages")));
            let len = range.len();
            own[range].copy_from_slice(&from[skip..skip + len]);
        }
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        self.get(0, self.base.len())
    }
}

/// See the head of this file.
pub struct OverlayDisk {
    image: Mutex<Patched>,
    limits: QueueLimits,
    sectors: u64,
    /// Requests so far, and how many are done.
    requests: AtomicU64,
    most: u64,
}

impl OverlayDisk {
    /// A disk that does `most` requests, and answers EIO from then on.
    pub fn new(image: Patched, most: u64) -> Self {
        let sectors = image.size() / 512;
        let limits = QueueLimits { write_cache: true, discard: true, write_zeroes: true, ..QueueLimits::DEFAULT };
        Self { image: Mutex::new(image), limits, sectors, requests: AtomicU64::new(0), most }
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What is on it.
    pub fn image(&self) -> MutexGuard<'_, Patched> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transfer(&self, rq: &Request) {
        let mut at = rq.sector() * 512;
        let mut image = self.image();
        match rq.op() {
            ReqOp::Read => rq.for_each_vec(|vec| {
                // SAFETY: the submitter's memory is valid, and the disk's alone, until the request ends.
                let to = unsafe { std::slice::from_raw_parts_mut(vec.bv_page.as_ptr(), vec.bv_len as usize) };
                image.read(at, to);
                at += u64::from(vec.bv_len);
            }),
            ReqOp::Write => rq.for_each_vec(|vec| {
                // SAFETY: the submitter's memory is valid until the request ends.
                let from = unsafe { std::slice::from_raw_parts(vec.bv_page.as_ptr(), vec.bv_len as usize) };
                image.write(at, from);
                at += u64::from(vec.bv_len);
            }),
            ReqOp::WriteZeroes | ReqOp::Discard => image.write(at, &vec![0; rq.nr_bytes() as usize]),
            _ => {}
        }
    }
}

impl BlockDevice for OverlayDisk {
    fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    fn nr_sectors(&self) -> u64 {
        self.sectors
    }

    fn queue_rq(&self, rq: Request) {
        let done = if self.requests.fetch_add(1, Ordering::Relaxed) < self.most {
            self.transfer(&rq);
            Ok(())
        } else {
            Err(EIO)
        };
        let _irq = InterruptContext::enter();
        rq.end(done);
    }

    fn commit_rqs(&self) {}

    fn name(&self) -> &str {
        "overlay"
    }
}
