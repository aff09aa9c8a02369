// SPDX-License-Identifier: GPL-2.0-only
//! A request queue of a virtio disk (virtio 1.2, 2.7 "Split Virtqueues" and 5.2 "Block Device").
//!
//! `virtio-drivers` 0.13 has queues too, but not for this: a queue's size is a constant of its type, a
//! notification reads two device registers, and each request is described anew from slices and undone
//! again, which takes 181 instructions in `VirtQueue::add` and 153 in `pop_used`. Here a request in flight has a
//! [`Slot`] whose descriptors are written once; the usual request, one piece of memory, stores address, length and sector
//! and nothing else: 72 instructions, and 40 in the interrupt that ends it (QEMU, `-icount`).
//!
//! The queue belongs to one CPU as a rule: its interrupt comes there and it is filled there, so
//! interrupts off is all the exclusion it needs. If the device has fewer queues than there are
//! CPUs, those who share a queue also take a spin lock.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use core::{
    alloc::Layout,
    cell::UnsafeCell,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::*, compiler_fence, fence},
};

use kernel_shim::{
    block::{BioVec, ReqOp, Request, RqList, SECTOR_SHIFT},
    error::code::{EIO, EOPNOTSUPP},
    pr_err,
    sched::{IrqFlags, irq_restore, irq_save},
};

use crate::arch::percpu::PerCpu;

/// A descriptor: address, then length, flags and next in one word, so that one store writes them.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Desc {
    address: u64,
    rest: u64,
}

const NEXT: u64 = 1 << 32;
const DEVICE_WRITES: u64 = 2 << 32;
const INDIRECT: u64 = 4 << 32;

/// `VRING_USED_F_NO_NOTIFY`: the device looks by itself.
const NO_NOTIFY: u16 = 1;
/// `VRING_AVAIL_F_NO_INTERRUPT`: we look by ourselves.
const NO_INTERRUPT: u16 = 1;

/// With so many requests still in flight after an interrupt the next ones to end need not interrupt: see [`poll_quiet`].
const QUIET_FROM: u16 = 4;

/// Request types of virtio-blk.
mod kind {
    pub(super) const IN: u64 = 0;
    pub(super) const OUT: u64 = 1;
    pub(super) const FLUSH: u64 = 4;
    pub(super) const DISCARD: u64 = 11;
    pub(super) const WRITE_ZEROES: u64 = 13;
}

/// Status bytes of virtio-blk.
mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const UNSUPPORTED: u8 = 2;
    /// None: the device writes another one.
    pub(super) const NONE: u8 = 0xff;
}

/// A request in flight. The device reads the header and writes the status.
#[repr(C, align(64))]
struct Slot {
    /// Header: type in the low half, then the first sector.
    kind: u64,
    sector: u64,
    /// The range of a discard or write-zeroes: sector, then length in sectors and flags.
    range: [u64; 2],
    status: u8,
    /// Whether the head descriptor is other than the usual request's.
    unusual: bool,
    /// Next free slot.
    next_free: u16,
    /// The request, while the slot is in use.
    request: Option<NonNull<()>>,
}

/// A queue that would have fewer slots of three descriptors has slots of one. The device is quicker with
/// descriptors in the ring, but requests in flight count for more.
const MIN_DEPTH: u16 = 128;

/// End of the list of free slots.
const NO_SLOT: u16 = u16::MAX;

/// Flags of a descriptor for data.
#[inline(always)]
fn data_flags(kind: u64) -> u64 {
    if kind == kind::IN { NEXT | DEVICE_WRITES } else { NEXT }
}

/// Everything that changes.
struct Ring {
    /// Next index to fill in the available ring.
    available: u16,
    /// What the device has been told of.
    published: u16,
    /// Next index to look at in the used ring.
    used: u16,
    free: u16,
    /// An interrupt is ending requests; it will publish what they queue.
    reaping: bool,
    /// The device has been asked for no interrupts. Only if the queue is one CPU's own.
    quiet: bool,
    /// Requests that found no slot, oldest first.
    pending: RqList,
}

/// See the module.
pub(crate) struct Queue {
    mask: u16,
    /// How many there are.
    nr_slots: u16,
    /// A slot has three descriptors of the ring: s, slots + s and 2 slots + s. Else it has one, and
    /// every request is described in the slot's indirect table.
    direct: bool,
    /// Most pieces of memory in a request.
    max_segments: u16,
    index: u16,
    desc: NonNull<Desc>,
    /// Available ring: flags, index, then entries.
    avail_ring: NonNull<u16>,
    /// Used ring: flags and index, then entries of two words.
    used_ring: NonNull<u32>,
    slots: NonNull<Slot>,
    /// Indirect tables, `max_segments + 2` descriptors for each slot.
    tables: NonNull<Desc>,
    doorbell: NonNull<u16>,
    shared: bool,
    locked: AtomicBool,
    ring: UnsafeCell<Ring>,
}

// SAFETY: `ring` and what the pointers point to are touched with interrupts off on the queue's own CPU
// or, if the queue is shared, under its lock.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

/// Zeroed memory for good.
fn leak_zeroed<T>(count: usize, align: usize) -> NonNull<T> {
    let layout = Layout::array::<T>(count).and_then(|l| l.align_to(align)).expect("a size that fits");
    // SAFETY: the size is not 0.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout)).cast()
}

fn address<T>(p: NonNull<T>) -> u64 {
    p.addr().get() as u64
}

impl Queue {
    /// A queue of `size` descriptors, a power of two. Never freed: the device has it.
    pub(super) fn new(index: u16, size: u16, max_segments: u16, doorbell: NonNull<u16>, shared: bool) -> Self {
        let direct = size / 3 >= MIN_DEPTH;
        let nr_slots = if direct { size / 3 } else { size };
        let queue = Self {
            mask: size - 1,
            nr_slots,
            direct,
            max_segments,
            index,
            desc: leak_zeroed(usize::from(size), 16),
            // Flags, index, entries, and the event index behind them.
            avail_ring: leak_zeroed(3 + usize::from(size), 64),
            used_ring: leak_zeroed(2 + 2 * usize::from(size), 64),
            slots: leak_zeroed(usize::from(nr_slots), 64),
            tables: leak_zeroed(usize::from(nr_slots) * (usize::from(max_segments) + 2), 64),
            doorbell,
            shared,
            locked: AtomicBool::new(false),
            ring: UnsafeCell::new(Ring {
                available: 0,
                published: 0,
                used: 0,
                free: 0,
                reaping: false,
                quiet: false,
                pending: RqList::new(),
            }),
        };
        for s in 0..nr_slots {
            // SAFETY: nobody else has the queue yet, and s is a slot.
            unsafe {
                queue.slot(s).write(Slot {
                    kind: 0,
                    sector: 0,
                    range: [0; 2],
                    status: status::NONE,
                    unusual: !direct,
                    next_free: if s + 1 < nr_slots { s + 1 } else { NO_SLOT },
                    request: None,
                });
                if direct {
                    queue.write_usual(s);
                    let status = Desc { address: queue.status_address(s), rest: 1 | DEVICE_WRITES };
                    queue.desc.add(usize::from(2 * nr_slots + s)).write(status);
                }
                queue.table(s).write(Desc { address: address(queue.slot(s)), rest: 16 | NEXT | 1 << 48 });
            }
        }
        queue
    }

    /// Addresses of descriptors, available ring and used ring.
    pub(super) fn addresses(&self) -> [u64; 3] {
        [address(self.desc), address(self.avail_ring), address(self.used_ring)]
    }

    /// Requests it holds in flight.
    pub(super) fn depth(&self) -> u16 {
        self.nr_slots
    }

    #[inline(always)]
    fn slot(&self, s: u16) -> NonNull<Slot> {
        debug_assert!(s < self.nr_slots);
        // SAFETY: there are that many.
        unsafe { self.slots.add(usize::from(s)) }
    }

    fn table(&self, s: u16) -> NonNull<Desc> {
        // SAFETY: there is one for each slot.
        unsafe { self.tables.add(usize::from(s) * (usize::from(self.max_segments) + 2)) }
    }

    fn status_address(&self, s: u16) -> u64 {
        address(self.slot(s)) + core::mem::offset_of!(Slot, status) as u64
    }

    /// Points a slot's head descriptor at header, data and status.
    ///
    /// # Safety
    ///
    /// The slot is the caller's and not with the device.
    unsafe fn write_usual(&self, s: u16) {
        let head = Desc { address: address(self.slot(s)), rest: 16 | NEXT | u64::from(self.nr_slots + s) << 48 };
        // SAFETY: descriptor s is the slot's.
        unsafe { self.desc.add(usize::from(s)).write(head) };
    }

    /// Takes the ring, until `unlock`.
    ///
    /// # Safety
    ///
    /// Interrupts are off, and `shared` is the queue's. Until `unlock` nothing is called that comes back here; after
    /// it the reference is not used any more.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "what a lock gives; a guard would cost the usual queue its second look at `shared`"
    )]
    unsafe fn lock(&self, shared: bool) -> &mut Ring {
        if shared {
            while self.locked.swap(true, Acquire) {
                core::hint::spin_loop();
            }
        }
        // SAFETY: interrupts are off and the queue is this CPU's or locked, so by the caller's promise
        // this is the only reference.
        unsafe { &mut *self.ring.get() }
    }

    /// Gives the ring back.
    #[inline(always)]
    fn unlock(&self, shared: bool) {
        if shared {
            self.locked.store(false, Release);
        }
    }

    /// Takes a request. The device hears of it with the next [`Queue::commit`].
    #[inline(always)]
    pub(super) fn queue_rq(&self, request: Request) {
        self.queue(request, false);
    }

    /// [`Queue::queue_rq`] and [`Queue::commit`] in one.
    #[inline(always)]
    pub(super) fn queue_last(&self, request: Request) {
        self.queue(request, true);
    }

    #[inline(always)]
    fn queue(&self, request: Request, commit: bool) {
        let flags = irq_save();
        if !self.shared {
            // SAFETY: interrupts are off; no request is ended before this CPU's ring is out of use.
            let ring = unsafe { self.lock(false) };
            // Pending requests came first; while there are any, no slot is free for long.
            if ring.free != NO_SLOT && ring.pending.is_empty() {
                // SAFETY: the slot is free, so it is ours.
                let slot = unsafe { self.slot(ring.free).as_mut() };
                let kind = u64::from(request.opf().bits() & 0xff);
                if let Some(v) = request.single_vec()
                    && kind <= kind::OUT
                    && !slot.unusual
                {
                    self.fill_usual(ring, slot, request, v, kind);
                    if commit && !ring.reaping {
                        self.publish(ring);
                    }
                    return irq_restore(flags);
                }
            }
        }
        self.queue_other(request, flags);
        if commit {
            self.commit();
        }
    }

    /// [`Queue::queue_rq`] out of the usual way.
    #[cold]
    #[inline(never)]
    fn queue_other(&self, request: Request, flags: IrqFlags) {
        // SAFETY: interrupts are off; no request is ended before `unlock`.
        let ring = unsafe { self.lock(self.shared) };
        if ring.free == NO_SLOT || !ring.pending.is_empty() {
            ring.pending.push_back(request);
        } else {
            self.fill(ring, request);
        }
        self.unlock(self.shared);
        irq_restore(flags);
    }

    /// Tells the device what has been queued.
    #[inline]
    pub(super) fn commit(&self) {
        let flags = irq_save();
        // SAFETY: interrupts are off; no request is ended before `unlock`.
        let ring = unsafe { self.lock(self.shared) };
        if !ring.reaping {
            self.publish(ring);
        }
        self.unlock(self.shared);
        irq_restore(flags);
    }

    /// Gives a request to read or write one piece of memory the next free slot, which is `slot`. Reads and writes
    /// have the same numbers in both worlds.
    #[inline(always)]
    fn fill_usual(&self, ring: &mut Ring, slot: &mut Slot, request: Request, v: BioVec, kind: u64) {
        let s = ring.free;
        slot.kind = kind;
        slot.sector = request.sector();
        self.describe_one(s, v, kind);
        self.make_available(ring, s, slot, request);
    }

    /// Gives any request the next free slot, which there has to be.
    fn fill(&self, ring: &mut Ring, request: Request) {
        let s = ring.free;
        // SAFETY: the slot is free, so it is ours.
        let slot = unsafe { self.slot(s).as_mut() };
        self.describe(s, slot, &request);
        self.make_available(ring, s, slot, request);
    }

    #[inline(always)]
    fn make_available(&self, ring: &mut Ring, s: u16, slot: &mut Slot, request: Request) {
        ring.free = slot.next_free;
        slot.status = status::NONE;
        slot.request = Some(request.into_raw());
        // SAFETY: entries lie behind flags and index, and there are mask + 1 of them.
        unsafe { self.avail_ring.add(2 + usize::from(ring.available & self.mask)).write(s) };
        ring.available = ring.available.wrapping_add(1);
    }

    /// One piece of memory to read or write.
    #[inline(always)]
    fn describe_one(&self, s: u16, v: BioVec, kind: u64) {
        let status = u64::from(2 * self.nr_slots + s) << 48;
        let data = usize::from(self.nr_slots) + usize::from(s);
        let rest = u64::from(v.bv_len) | data_flags(kind) | status;
        // SAFETY: the descriptor is the slot's.
        unsafe { self.desc.add(data).write(Desc { address: address(v.bv_page), rest }) };
    }

    /// Any request: header, pieces or range, and status in the slot's indirect table, if it is not one
    /// piece of memory to read or write.
    fn describe(&self, s: u16, slot: &mut Slot, request: &Request) {
        slot.sector = request.sector();
        slot.kind = match request.op() {
            ReqOp::Read => kind::IN,
            ReqOp::Write => kind::OUT,
            ReqOp::Flush => kind::FLUSH,
            ReqOp::Discard => kind::DISCARD,
            _ => kind::WRITE_ZEROES,
        };
        match (slot.kind, request.single_vec()) {
            (kind::IN | kind::OUT, Some(v)) if self.direct => {
                if slot.unusual {
                    // SAFETY: the slot is ours.
                    unsafe { self.write_usual(s) };
                    slot.unusual = false;
                }
                self.describe_one(s, v, slot.kind);
            }
            (kind::IN | kind::OUT, _) => self.describe_many(s, slot, request),
            (kind::FLUSH, _) => self.finish_table(s, slot, 1),
            _ => self.describe_range(s, slot, request),
        }
    }

    /// Pieces of memory.
    fn describe_many(&self, s: u16, slot: &mut Slot, request: &Request) {
        let mut n = 1u16;
        let table = self.table(s);
        request.for_each_vec(|v| {
            assert!(n <= self.max_segments, "a request has more than {} pieces", self.max_segments);
            let rest = u64::from(v.bv_len) | data_flags(slot.kind) | u64::from(n + 1) << 48;
            // SAFETY: n is within the slot's table.
            unsafe { table.add(usize::from(n)).write(Desc { address: address(v.bv_page), rest }) };
            n += 1;
        });
        self.finish_table(s, slot, n);
    }

    /// A range to discard or zero.
    fn describe_range(&self, s: u16, slot: &mut Slot, request: &Request) {
        slot.range = [request.sector(), u64::from(request.nr_bytes() >> SECTOR_SHIFT)];
        // The header's sector has no meaning here.
        slot.sector = 0;
        let range = address(self.slot(s)) + core::mem::offset_of!(Slot, range) as u64;
        // SAFETY: the table has at least three descriptors.
        unsafe { self.table(s).add(1).write(Desc { address: range, rest: 16 | NEXT | 2 << 48 }) };
        self.finish_table(s, slot, 2);
    }

    /// Ends the slot's table of `n` descriptors with the status, and points the head at it.
    fn finish_table(&self, s: u16, slot: &mut Slot, n: u16) {
        slot.unusual = true;
        let status = Desc { address: self.status_address(s), rest: 1 | DEVICE_WRITES };
        let head = Desc { address: address(self.table(s)), rest: (16 * (u64::from(n) + 1)) | INDIRECT };
        // SAFETY: n <= max_segments + 1; both places are the slot's.
        unsafe {
            self.table(s).add(usize::from(n)).write(status);
            self.desc.add(usize::from(s)).write(head);
        }
    }

    #[inline]
    fn publish(&self, ring: &mut Ring) {
        if ring.published == ring.available {
            return;
        }
        ring.published = ring.available;
        // SAFETY: the rings and the doorbell are valid for good. The device sees the index after the
        // entries, for x86 keeps stores in order; it reads the index again after it has cleared NO_NOTIFY,
        // and the full fence keeps us from reading the flag before our index is out.
        unsafe {
            compiler_fence(Release);
            self.avail_ring.add(1).write_volatile(ring.available);
            fence(SeqCst);
            if self.used_ring.cast::<u16>().read_volatile() & NO_NOTIFY == 0 {
                self.doorbell.write_volatile(self.index);
            }
        }
    }

    /// Takes one request that the device is done with.
    #[inline(always)]
    fn take_done(&self, ring: &mut Ring) -> Option<(Request, u8)> {
        // SAFETY: the used ring is valid for good; its index is the upper half of the first word.
        let used = unsafe { self.used_ring.cast::<u16>().add(1).read_volatile() };
        if used == ring.used {
            return None;
        }
        compiler_fence(Acquire);
        let entry = 1 + 2 * usize::from(ring.used & self.mask);
        // SAFETY: entries lie behind the first word, and there are mask + 1 of them.
        let s = unsafe { self.used_ring.add(entry).read_volatile() };
        ring.used = ring.used.wrapping_add(1);
        assert!(s < u32::from(self.nr_slots), "virtio-blk: the device is done with a slot that does not exist");
        let s = s as u16;
        // SAFETY: the device is done with the slot.
        let slot = unsafe { self.slot(s).as_mut() };
        slot.next_free = ring.free;
        ring.free = s;
        // Volatile: the device wrote it, no Rust code did.
        // SAFETY: a reference is valid for reading.
        let status = unsafe { (&raw const slot.status).read_volatile() };
        let raw = slot.request.take().expect("virtio-blk: the device is done with a slot twice");
        // SAFETY: `fill` put it there, and it was taken out just now.
        Some((unsafe { Request::from_raw(raw) }, status))
    }

    /// Ends everything that is done, and hands out the slots that this freed. Interrupts are off.
    #[inline(always)]
    fn reap(&self, shared: bool) {
        // SAFETY: interrupts are off, and this is all that is done.
        unsafe { self.lock(shared) }.reaping = true;
        self.unlock(shared);
        loop {
            // SAFETY: interrupts are off; the request that is taken is ended after `unlock`.
            let done = self.take_done(unsafe { self.lock(shared) });
            self.unlock(shared);
            match done {
                Some((request, status::OK)) => request.end(Ok(())),
                Some((request, status)) => end_with_error(request, status),
                None => break,
            }
        }
        // SAFETY: interrupts are off; no request is ended before `unlock`.
        let ring = unsafe { self.lock(shared) };
        ring.reaping = false;
        if !ring.pending.is_empty() {
            self.refill(ring);
        }
        self.publish(ring);
        if !shared && !ring.quiet && ring.available.wrapping_sub(ring.used) >= QUIET_FROM {
            ring.quiet = true;
            self.ask_for_interrupts(false);
            PerCpu::this().quiet.set(true);
        }
        self.unlock(shared);
    }

    /// Whether the device is to interrupt when a request has ended. It may do so a last time after it was told not to.
    #[inline(always)]
    fn ask_for_interrupts(&self, wanted: bool) {
        // SAFETY: the flags are the first word of the ring, which is valid for good.
        unsafe { self.avail_ring.write_volatile(if wanted { 0 } else { NO_INTERRUPT }) };
    }

    /// Whether a request has ended that nobody has looked at.
    #[inline(always)]
    fn any_done(&self, ring: &Ring) -> bool {
        // SAFETY: as in `take_done`.
        unsafe { self.used_ring.cast::<u16>().add(1).read_volatile() != ring.used }
    }

    /// Ends what is done without waiting for the interrupt; whether there was anything. Only on a CPU that uses the queue.
    #[cold]
    pub(super) fn poll(&self) -> bool {
        let flags = irq_save();
        // SAFETY: interrupts are off, and this is all that is done.
        let done = self.any_done(unsafe { self.lock(self.shared) });
        self.unlock(self.shared);
        if done {
            self.reap(self.shared);
        }
        irq_restore(flags);
        done
    }

    /// Gives free slots to those who wait for one.
    #[cold]
    #[inline(never)]
    fn refill(&self, ring: &mut Ring) {
        while ring.free != NO_SLOT
            && let Some(request) = ring.pending.pop_front()
        {
            self.fill(ring, request);
        }
    }
}

/// Errors that are logged: a broken disk would fill the log.
const MAX_COMPLAINTS: u32 = 16;

#[cold]
fn end_with_error(request: Request, status: u8) {
    static COMPLAINTS: AtomicU32 = AtomicU32::new(0);
    match COMPLAINTS.fetch_add(1, Relaxed) {
        n if n < MAX_COMPLAINTS => pr_err!("virtio-blk: {request:?} failed with status {status}"),
        MAX_COMPLAINTS => pr_err!("virtio-blk: further errors are not logged"),
        _ => {}
    }
    request.end(Err(if status == status::UNSUPPORTED { EOPNOTSUPP } else { EIO }));
}

/// A disk interrupts this CPU.
#[inline]
pub(crate) fn interrupt(cpu: &PerCpu, disk: usize) {
    // SAFETY: null, or a queue that is never freed.
    if let Some(queue) = unsafe { cpu.queues[disk].load(Relaxed).as_ref() } {
        // Two copies of the loop: the usual one does not look at locks.
        if queue.shared {
            queue.reap(true);
        } else {
            queue.reap(false);
        }
    }
}

/// Ends what is done in this CPU's queues that do not interrupt; whether there was anything. While several requests are in flight the
/// scheduler asks here between two rounds of the CPU's threads, and when the only one has nothing more to do: that is cheaper than
/// being interrupted in the middle of them. Who computes for long keeps completions waiting, as it does the CPU's other
/// threads. Interrupts are off.
#[inline]
pub(crate) fn poll_quiet(cpu: &PerCpu) -> bool {
    cpu.quiet.get() && for_each_quiet(cpu, |_, _| {})
}

/// Lets this CPU's queues interrupt again, for it has nothing else to do; whether something had been done meanwhile, so that
/// there may be. Interrupts are off.
#[inline]
pub(crate) fn rearm(cpu: &PerCpu) -> bool {
    cpu.quiet.replace(false)
        && for_each_quiet(cpu, |queue, ring| {
            ring.quiet = false;
            queue.ask_for_interrupts(true);
            // The device reads the flag after it has said what is done; so does this after it has set the flag.
            fence(SeqCst);
        })
}

#[cold]
fn for_each_quiet(cpu: &PerCpu, before: impl Fn(&Queue, &mut Ring)) -> bool {
    let mut any = false;
    for queue in &cpu.queues {
        // SAFETY: null, or a queue that is never freed.
        let Some(queue) = (unsafe { queue.load(Relaxed).as_ref() }) else { continue };
        // SAFETY: interrupts are off; no request is ended before `unlock`.
        let ring = unsafe { queue.lock(queue.shared) };
        let quiet = ring.quiet;
        if quiet {
            before(queue, ring);
        }
        let done = quiet && queue.any_done(ring);
        queue.unlock(queue.shared);
        if done {
            // As in an interrupt: what ends a request may tell by it that it must not sleep.
            cpu.irq_depth.set(cpu.irq_depth.get() + 1);
            queue.reap(queue.shared);
            cpu.irq_depth.set(cpu.irq_depth.get() - 1);
            any = true;
        }
    }
    any
}

/// Sends disk `disk`'s interrupts on CPU `cpu` to a queue.
pub(super) fn set_handler(cpu: &PerCpu, disk: usize, queue: &'static Queue) {
    cpu.queues[disk].store(core::ptr::from_ref(queue).cast_mut(), Release);
}
