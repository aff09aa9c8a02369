// SPDX-License-Identifier: GPL-2.0-only
//! The cache of a device's blocks, and write-back of many.

use super::*;

/// How many blocks a hash bucket has when the cache is full, on average.
const BUCKET_SIZE: usize = 4;
/// How many blocks one round of write-back has in flight.
pub(super) const WRITE_BATCH: usize = 32;

/// The cached blocks of one hash value, with their numbers at hand.
type Bucket = SpinLock<KVec<(u64, BufferHead)>>;

fn lookup(bucket: &[(u64, BufferHead)], block: u64) -> Option<&BufferHead> {
    bucket.iter().find(|entry| entry.0 == block).map(|entry| &entry.1)
}

/// The cache of one device at one block size.
///
/// Two caches of one device know nothing of each other: make one, after the block size is known.
pub struct BufferCache {
    bdev: Bdev,
    block_size: u32,
    nr_blocks: u64,
    /// A power of two of them.
    buckets: KVec<Bucket>,
    max: usize,
    nr: AtomicUsize,
    /// How many there may be before the clock is wound again: `max`, or more if it found nothing.
    threshold: AtomicUsize,
    /// The clock's hand: a bucket.
    hand: AtomicUsize,
}

impl BufferCache {
    /// A cache that keeps about `max_blocks` blocks of `block_size` bytes. EINVAL unless that is a power of
    /// two, at least the device's logical block and no more than it transfers at once; ENOMEM.
    pub fn new(bdev: Bdev, block_size: u32, max_blocks: usize) -> Result<Self> {
        let limits = bdev.limits();
        if !block_size.is_power_of_two()
            || block_size < limits.logical_block_size
            || block_size > limits.max_bytes.min(limits.max_segment_size)
            || max_blocks == 0
        {
            return Err(code::EINVAL);
        }
        let nr_buckets = (max_blocks / BUCKET_SIZE).clamp(16, 1 << 16).next_power_of_two();
        let mut buckets = KVec::with_capacity(nr_buckets, GFP_KERNEL)?;
        for _ in 0..nr_buckets {
            buckets.push(Bucket::named("bh_hash", KVec::new()), GFP_KERNEL)?;
        }
        let nr_blocks = bdev.nr_sectors() >> (block_size.trailing_zeros() - SECTOR_SHIFT);
        Ok(Self {
            bdev,
            block_size,
            nr_blocks,
            buckets,
            max: max_blocks,
            nr: AtomicUsize::new(0),
            threshold: AtomicUsize::new(max_blocks),
            hand: AtomicUsize::new(0),
        })
    }

    /// The device.
    pub fn bdev(&self) -> &Bdev {
        &self.bdev
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whole blocks on the device.
    pub fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// How many blocks are in memory.
    pub fn nr_cached(&self) -> usize {
        self.nr.load(Ordering::Relaxed)
    }

    fn bucket(&self, block: u64) -> &Bucket {
        // Fibonacci hashing: neighbours, and blocks a group apart, spread alike.
        let hash = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        &self.buckets[hash as usize & (self.buckets.len() - 1)]
    }

    /// The block if it is in memory, read or not.
    #[doc(alias = "sb_find_get_block")]
    #[inline]
    pub fn find(&self, block: u64) -> Option<BufferHead> {
        let bucket = self.bucket(block).lock();
        let found = lookup(&bucket, block)?.clone();
        drop(bucket);
        if !found.0.has(BhState::REFERENCED) {
            found.0.set(BhState::REFERENCED);
        }
        Some(found)
    }

    /// The block, without reading it: for one that is going to be filled. Unless it
    /// [is up to date](BufferHead::is_uptodate) its bytes mean nothing.
    ///
    /// EIO beyond the end of the device. Sleeps for no I/O, but for memory as long as it takes: most who ask have a handle open.
    #[doc(alias = "sb_getblk")]
    pub fn getblk(&self, block: u64) -> Result<BufferHead> {
        if let Some(bh) = self.find(block) {
            return Ok(bh);
        }
        if block >= self.nr_blocks {
            return Err(code::EIO);
        }
        let new = Buffer {
            block,
            state: AtomicU32::new(BhState::REFERENCED.bits()),
            data: RwSemaphore::named("buffer", Data::new(self.block_size as usize, GFP_NOFS | GFP_NOFAIL)?),
        };
        self.insert(BufferHead(Arc::new(new, GFP_NOFS | GFP_NOFAIL)?))
    }

    /// Adds a block that was not there a moment ago. If somebody has been faster, gives that one instead.
    pub(super) fn insert(&self, new: BufferHead) -> Result<BufferHead> {
        let bucket = self.bucket(new.block());
        loop {
            let mut blocks = bucket.lock();
            if let Some(found) = lookup(&blocks, new.block()) {
                return Ok(found.clone());
            }
            if blocks.push((new.block(), new.clone()), GFP_ATOMIC).is_ok() {
                break;
            }
            drop(blocks);
            make_room(bucket, |blocks| blocks);
        }
        if self.nr.fetch_add(1, Ordering::Relaxed) >= self.threshold.load(Ordering::Relaxed) {
            self.evict();
        }
        Ok(new)
    }

    /// The block, read. EIO if it cannot be read or lies beyond the end of the device, and then the next
    /// caller tries again; ENOMEM. Sleeps.
    #[doc(alias = "sb_bread")]
    #[inline]
    pub fn bread(&self, block: u64) -> Result<BufferHead> {
        crate::testing::trace("bread");
        if let Some(bh) = self.find(block)
            && bh.is_uptodate()
        {
            return Ok(bh);
        }
        let bh = self.getblk(block)?;
        self.read_in(&bh)?;
        Ok(bh)
    }

    /// Reads a block that [`BufferCache::getblk`] gave, unless it is up to date. EIO. Sleeps.
    #[doc(alias = "bh_read")]
    #[cold]
    pub fn read_in(&self, bh: &BufferHead) -> Result {
        // The first to come reads; the others get the lock when it has, and find the block there.
        let mut guard = bh.0.data.write();
        if bh.is_uptodate() {
            return Ok(());
        }
        bh.clear_verified();
        let mut bio = bio_alloc(&self.bdev, ReqOpf::REQ_OP_READ | ReqOpf::META | ReqOpf::SYNC, GFP_NOFS)?;
        bio.bi_sector = self.sector(bh);
        let bytes = guard.bytes_mut();
        // SAFETY: we hold the data for writing until the bio has ended.
        let added = unsafe { bio.bio_add_page(core::ptr::NonNull::from(&mut bytes[0]), self.block_size) };
        if !added || submit_bio_wait(&self.bdev, bio).is_err() {
            return Err(code::EIO);
        }
        bh.0.set(BhState::UPTODATE);
        Ok(())
    }

    fn sector(&self, bh: &BufferHead) -> u64 {
        bh.block() << (self.block_size.trailing_zeros() - SECTOR_SHIFT)
    }

    /// Writes the block back if it is dirty, and waits for that. EIO or the device's error: then it is dirty still.
    ///
    /// Not durable on a device with a volatile cache before a flush, which is the caller's. Sleeps.
    pub fn sync_dirty_buffer(&self, bh: &BufferHead) -> Result {
        self.write_buffers(core::slice::from_ref(bh), ReqOpf::SYNC)
    }

    /// [`write_dirty_buffers`] to the cache's device.
    pub fn write_buffers(&self, list: &[BufferHead], flags: ReqOpf) -> Result {
        write_dirty_buffers(&self.bdev, list, flags)
    }

    /// Writes back all that is dirty now, in block order, and waits for it. As [`BufferCache::write_buffers`]. Sleeps.
    #[doc(alias = "sync_blockdev")]
    pub fn sync_all(&self) -> Result {
        let mut dirty = KVec::new();
        if self.gather_dirty(&mut dirty).is_err() {
            return self.sync_unsorted();
        }
        dirty.sort_unstable_by_key(BufferHead::block);
        self.write_buffers(&dirty, ReqOpf::META)
    }

    fn gather_dirty(&self, dirty: &mut KVec<BufferHead>) -> Result {
        for bucket in &self.buckets {
            loop {
                let bucket = bucket.lock();
                // Memory is to be had outside of a spinlock, so there must be room for any.
                let room = bucket.len();
                if dirty.capacity() - dirty.len() >= room {
                    for (_, bh) in bucket.iter().filter(|entry| entry.1.is_dirty() || entry.1.0.is_writeback()) {
                        dirty.push(bh.clone(), GFP_ATOMIC)?;
                    }
                    break;
                }
                drop(bucket);
                dirty.reserve(room.max(64), GFP_NOFS)?;
            }
        }
        Ok(())
    }

    /// [`BufferCache::sync_all`] when there is no memory for a list: a few blocks at a time, in no order.
    #[cold]
    fn sync_unsorted(&self) -> Result {
        let mut result = Ok(());
        for bucket in &self.buckets {
            let mut index = 0;
            loop {
                let mut some = heapless::Vec::<BufferHead, WRITE_BATCH>::new();
                for (_, bh) in bucket.lock().iter().skip(index).take(WRITE_BATCH) {
                    // Cannot fail: as many as fit were taken.
                    let _ = some.push(bh.clone());
                }
                if some.is_empty() {
                    break;
                }
                index += some.len();
                result = result.and(self.write_buffers(&some, ReqOpf::META));
            }
        }
        result
    }

    /// Forgets `count` blocks from `block` on: they belong to somebody else now, and what memory holds of them
    /// must never be written. Waits for writes that are under way. Sleeps.
    #[doc(alias = "clean_bdev_aliases")]
    pub fn invalidate(&self, block: u64, count: u64) {
        for block in block..block.saturating_add(count).min(self.nr_blocks) {
            let Some(bh) = self.find(block) else { continue };
            bh.clear_dirty();
            {
                let _guard = bh.0.data.write();
                bh.clear_dirty();
                bh.0.clear(BhState::UPTODATE | BhState::VERIFIED);
            }
            let mut bucket = self.bucket(bh.block()).lock();
            // Ours and the cache's; whoever else holds it gets no other block of this number.
            if Arc::strong_count(&bh.0) == 2
                && let Some(at) = bucket.iter().position(|entry| BufferHead::ptr_eq(&entry.1, &bh))
            {
                bucket.remove(at);
                drop(bucket);
                self.nr.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Forgets all that is clean and that nobody holds: it will be read again. How many blocks stay.
    #[doc(alias = "invalidate_bdev")]
    pub fn invalidate_clean(&self) -> usize {
        for bucket in &self.buckets {
            while self.take_idle(bucket, |_| true) {}
        }
        self.nr_cached()
    }

    /// Drops one idle block of `bucket` for which `which` says so; whether there was one.
    fn take_idle(&self, bucket: &Bucket, which: impl Fn(&BufferHead) -> bool) -> bool {
        let mut bucket = bucket.lock();
        let Some(at) = bucket.iter().position(|(_, bh)| bh.idle() && which(bh)) else { return false };
        let entry = bucket.remove(at);
        // Its memory is freed with the lock released.
        drop(bucket);
        drop(entry);
        self.nr.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Turns the clock until there are no more than `max` blocks, at most twice around: the first time takes
    /// from blocks the mark of having been used, the second time takes those that still have none.
    #[cold]
    fn evict(&self) {
        for _ in 0..2 * self.buckets.len() {
            if self.nr.load(Ordering::Relaxed) <= self.max {
                self.threshold.store(self.max, Ordering::Relaxed);
                return;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed) & (self.buckets.len() - 1);
            let Some(bucket) = self.buckets.get(at) else { return };
            while self.nr.load(Ordering::Relaxed) > self.max
                && self.take_idle(bucket, |bh| !bh.0.clear(BhState::REFERENCED))
            {}
        }
        // What is left is in use or dirty. Do not look through all of it for each block to come.
        let nr = self.nr.load(Ordering::Relaxed);
        self.threshold.store(if nr > self.max { nr + nr / 8 } else { self.max }, Ordering::Relaxed);
    }
}

/// Writes back those of `list` that are dirty, many at once, and waits for all, those that somebody else is writing included: a flush
/// that comes next covers them. `flags` (SYNC, META, PREFLUSH, FUA) apply to each. Blocks of transactions that are not committed are
/// left out. Tries all; the error is the first. What may not have been written is dirty still. Sleeps.
#[doc(alias = "write_dirty_buffer")]
pub fn write_dirty_buffers(bdev: &Bdev, list: &[BufferHead], flags: ReqOpf) -> Result {
    let mut result = Ok(());
    let mut rest = list;
    while !rest.is_empty() {
        let (done, outcome) = write_some(bdev, rest, flags);
        result = result.and(outcome);
        rest = &rest[done..];
    }
    for bh in list.iter().filter(|bh| bh.0.is_writeback()) {
        bh.wait_on_buffer();
        if bh.write_io_error() {
            result = result.and(Err(code::EIO));
        }
    }
    result
}

/// Writes the first few of `list`: how many that are, at least one, and how it went.
fn write_some(bdev: &Bdev, list: &[BufferHead], flags: ReqOpf) -> (usize, Result) {
    let mut held = heapless::Vec::<BufferRead<'_>, WRITE_BATCH>::new();
    let mut written = heapless::Vec::<&BufferHead, WRITE_BATCH>::new();
    let mut done = 0;
    let result = IoBatch::run(bdev, |batch| {
        for bh in list {
            if held.is_full() {
                break;
            }
            // With one block locked, wait for no other: its holder may be waiting for ours.
            let guard = if held.is_empty() { Some(bh.read()) } else { bh.try_read() };
            let Some(guard) = guard else { break };
            done += 1;
            // Dirt from now on comes after this guard, and is for the next round.
            if bh.is_jbd() || !bh.is_dirty() {
                continue;
            }
            // Counted first: whoever finds it clean finds it counted, until it is on the device.
            bh.0.state.fetch_add(WRITEBACK, Ordering::AcqRel);
            if !bh.clear_dirty() {
                bh.0.state.fetch_sub(WRITEBACK, Ordering::AcqRel);
                continue;
            }
            if written.push(bh).is_err() {
                bh.0.set(BhState::DIRTY);
                bh.0.state.fetch_sub(WRITEBACK, Ordering::AcqRel);
                break;
            }
            let mut bio = bio_alloc(bdev, ReqOpf::REQ_OP_WRITE | flags, GFP_NOFS)?;
            bio.bi_sector = bh.block() * (guard.len() as u64 >> SECTOR_SHIFT);
            let (first, len) = (core::ptr::NonNull::from(&guard[0]), guard.len() as u32);
            let kept = held.push(guard).is_ok();
            // SAFETY: `held` keeps the data from changing, and is dropped after `run` has
            // waited for the bio. The device only reads it.
            if !kept || !unsafe { bio.bio_add_page(first, len) } {
                return Err(code::EIO);
            }
            batch.submit(bio);
        }
        Ok(())
    });
    for bh in &written {
        if result.is_err() {
            // Which of them it was is not known, and writing one twice does no harm.
            bh.0.set(BhState::DIRTY | BhState::WRITE_EIO);
        } else {
            bh.0.clear(BhState::WRITE_EIO);
        }
        // Before the locks are given back, which those wait for who find it counted.
        bh.0.state.fetch_sub(WRITEBACK, Ordering::AcqRel);
    }
    (done, result)
}
