// SPDX-License-Identifier: GPL-2.0-only
//! `kernel-shim`'s `alloc`, of its own sources, over std's memory.

use std::alloc::Layout;
use std::ptr::NonNull;

#[path = "../../../kernel-shim/src/alloc/arc.rs"]
pub mod arc;
#[path = "../../../kernel-shim/src/alloc/flags.rs"]
mod flags;
#[path = "../../../kernel-shim/src/alloc/kbox.rs"]
pub mod kbox;
#[path = "../../../kernel-shim/src/alloc/kvec.rs"]
pub mod kvec;
#[path = "../../../kernel-shim/src/alloc/pool.rs"]
pub mod pool;

pub use arc::Arc;
pub use flags::{Flags, GFP_ATOMIC, GFP_KERNEL, GFP_NOFAIL, GFP_NOFS, GFP_NOIO, GFP_ZERO};
pub use kbox::KBox;
pub use kvec::KVec;
pub use pool::Pool;

/// There is always memory.
#[derive(Debug)]
pub struct AllocError;

fn injected_failure() -> bool {
    false
}

fn kmalloc(layout: Layout, _flags: Flags) -> Result<NonNull<u8>, AllocError> {
    if layout.size() == 0 {
        return NonNull::new(std::ptr::without_provenance_mut(layout.align())).ok_or(AllocError);
    }
    // SAFETY: it has a size.
    NonNull::new(unsafe { std::alloc::alloc(layout) }).ok_or(AllocError)
}

/// # Safety
///
/// `memory` is from [`kmalloc`] with this layout, and not used any more.
unsafe fn kfree(memory: NonNull<u8>, layout: Layout) {
    if layout.size() == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
}
