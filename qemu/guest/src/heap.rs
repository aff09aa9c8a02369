// SPDX-License-Identifier: GPL-2.0-only
//! All memory that is not the kernel image, the boot module or below 1 MiB, as one heap: `talc` behind a spin
//! lock, for kernel-shim's `kmalloc` and for the `alloc` crate. Memory is identity mapped, so any piece of it is fit for DMA.

use core::{
    alloc::{GlobalAlloc, Layout},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::*},
};

use kernel_shim::sync::SpinLock;
use talc::{DefaultBinning, base::Talc, source::Manual};

use crate::arch::{
    paging,
    pvh::{BootInfo, Range},
};

static HEAP: SpinLock<Talc<Manual, DefaultBinning>> = SpinLock::new(Talc::new(Manual));
/// Bytes that it got.
static SIZE: AtomicU64 = AtomicU64::new(0);

const FOUR_GIB: u64 = 4 << 30;
/// Low memory is left alone: the other CPUs start there.
const FLOOR: u64 = 1 << 20;

struct KernelAlloc;

#[global_allocator]
static GLOBAL: KernelAlloc = KernelAlloc;

// SAFETY: talc hands out each piece of its memory once until it is freed, aligned as asked.
unsafe impl GlobalAlloc for KernelAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { allocate(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { free(memory, layout) }
    }
}

/// Memory for `layout`, null if there is none. Any context.
///
/// # Safety
///
/// The layout's size is not 0.
pub(crate) unsafe fn allocate(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { HEAP.lock().allocate(layout) }.map_or(core::ptr::null_mut(), NonNull::as_ptr)
}

/// Frees memory. Any context.
///
/// # Safety
///
/// `memory` comes from [`allocate`] with this layout and is not used any more.
pub(crate) unsafe fn free(memory: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.lock().deallocate(memory, layout) }
}

/// Bytes that the heap was given.
pub(crate) fn size() -> u64 {
    SIZE.load(Relaxed)
}

/// Gives the heap a range except for `holes`, of which it cuts the first that is in the way.
fn claim(range: Range, holes: &[Range]) {
    let Some((hole, rest)) = holes.split_first() else {
        let base = core::ptr::with_exposed_provenance_mut(range.start as usize);
        if range.end > range.start + 65536 {
            // SAFETY: ordinary memory by the memory map, mapped, and used for nothing else.
            let end = unsafe { HEAP.lock().claim(base, (range.end - range.start) as usize) };
            if end.is_some() {
                SIZE.fetch_add(range.end - range.start, Relaxed);
            }
        }
        return;
    };
    claim(Range { start: range.start, end: range.end.min(hole.start) }, rest);
    claim(Range { start: range.start.max(hole.end), end: range.end }, rest);
}

/// Takes all memory. What lies above 4 GiB is mapped first, by tables from the memory below.
pub(crate) fn init(boot: &BootInfo) {
    let page = |r: Range| Range { start: r.start & !4095, end: (r.end + 4095) & !4095 };
    let holes = [page(paging::image()), page(boot.module)];
    for r in boot.ram() {
        claim(Range { start: r.start.max(FLOOR), end: r.end.min(FOUR_GIB) }, &holes);
    }
    for r in boot.ram().iter().filter(|r| r.end > FOUR_GIB) {
        let high = Range { start: r.start.max(FOUR_GIB), end: r.end };
        paging::map_ram(high);
        claim(high, &holes);
    }
    assert!(size() > 0, "no memory for a heap");
}
