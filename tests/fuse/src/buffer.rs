// SPDX-License-Identifier: GPL-2.0-only
//! Memory for a request's data. How the caller's own is aligned FUSE does not tell; this is as the strictest device wants it.

use std::cell::RefCell;

/// What the memory is aligned to.
const ALIGN: usize = 4096;

thread_local! {
    /// Grows to the largest request that the thread has seen.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` bytes of the thread's own memory, whatever they hold. `f` must not come back here.
pub fn with_buffer<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|memory| {
        if memory.len() < len + ALIGN {
            *memory = vec![0; len.next_power_of_two() + ALIGN];
        }
        let start = memory.as_ptr().align_offset(ALIGN);
        f(&mut memory[start..start + len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_as_long_as_asked_for() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20, 3] {
            with_buffer(len, |bytes| {
                assert_eq!(bytes.len(), len);
                assert!(bytes.as_ptr().addr().is_multiple_of(ALIGN));
            });
        }
    }
}
