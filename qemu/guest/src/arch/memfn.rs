// SPDX-License-Identifier: GPL-2.0-only
//! The C library's memory functions. `core` and the compiler call them, and for a linux-gnu target
//! `compiler_builtins` leaves them to libc, of which there is none.
//!
//! The copy loops move 16 bytes an instruction and finish with an overlapping tail: under QEMU's TCG
//! `rep movsb` costs one instruction a byte. They are asm so that the compiler does not
//! recognise a memcpy in them and call itself.

use core::arch::asm;

/// Copies forward, front to back; right for overlapping regions if `d` is below `s`.
///
/// # Safety
///
/// As for C's `memmove`, and `n >= 16`.
#[inline(always)]
unsafe fn copy_forward(d: *mut u8, s: *const u8, n: usize) {
    // SAFETY: the caller's regions hold n >= 16 bytes. The last 16 are loaded before anything is
    // stored and stored last, so an overlap with d < s cannot spoil them.
    unsafe {
        asm!(
            "movups {tail}, [{s} + {n} - 16]",
            "lea {end}, [{d} + {n} - 16]",
            "2:",
            "cmp {d}, {end}",
            "jae 3f",
            "movups {x}, [{s}]",
            "movups [{d}], {x}",
            "add {s}, 16",
            "add {d}, 16",
            "jmp 2b",
            "3:",
            "movups [{end}], {tail}",
            s = inout(reg) s => _,
            d = inout(reg) d => _,
            n = in(reg) n,
            end = out(reg) _,
            x = out(xmm_reg) _,
            tail = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// Copies back to front; right for overlapping regions if `d` is above `s`.
///
/// # Safety
///
/// As for C's `memmove`, and `n >= 16`.
#[inline(always)]
unsafe fn copy_backward(d: *mut u8, s: *const u8, n: usize) {
    // SAFETY: the caller's regions hold n >= 16 bytes. The first 16 are loaded before anything is
    // stored and stored last, so an overlap with d > s cannot spoil them.
    unsafe {
        asm!(
            "movups {head}, [{s}]",
            "2:",
            "cmp {n}, 16",
            "jbe 3f",
            "sub {n}, 16",
            "movups {x}, [{s} + {n}]",
            "movups [{d} + {n}], {x}",
            "jmp 2b",
            "3:",
            "movups [{d}], {head}",
            s = in(reg) s,
            d = in(reg) d,
            n = inout(reg) n => _,
            x = out(xmm_reg) _,
            head = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// Fewer than 16 bytes, any overlap: everything is loaded before anything is stored.
///
/// # Safety
///
/// As for C's `memmove`, and `n < 16`.
#[inline(always)]
unsafe fn copy_short(d: *mut u8, s: *const u8, n: usize) {
    // SAFETY: each access is inside the n bytes that the caller vouches for.
    unsafe {
        if n >= 8 {
            let (a, b) = (s.cast::<u64>().read_unaligned(), s.add(n - 8).cast::<u64>().read_unaligned());
            d.cast::<u64>().write_unaligned(a);
            d.add(n - 8).cast::<u64>().write_unaligned(b);
        } else if n >= 4 {
            let (a, b) = (s.cast::<u32>().read_unaligned(), s.add(n - 4).cast::<u32>().read_unaligned());
            d.cast::<u32>().write_unaligned(a);
            d.add(n - 4).cast::<u32>().write_unaligned(b);
        } else if n > 0 {
            let (a, b, c) = (s.read(), s.add(n / 2).read(), s.add(n - 1).read());
            d.write(a);
            d.add(n / 2).write(b);
            d.add(n - 1).write(c);
        }
    }
}

/// C's `memcpy`.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memcpy(d: *mut u8, s: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe { if n < 16 { copy_short(d, s, n) } else { copy_forward(d, s, n) } }
    d
}

/// C's `memmove`.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memmove(d: *mut u8, s: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's contract. Back to front when d lies inside the source.
    unsafe {
        if n < 16 {
            copy_short(d, s, n);
        } else if d.addr().wrapping_sub(s.addr()) >= n {
            copy_forward(d, s, n);
        } else {
            copy_backward(d, s, n);
        }
    }
    d
}

/// C's `memset`.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memset(d: *mut u8, c: i32, n: usize) -> *mut u8 {
    let fill = u64::from(c as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's n bytes; the tail store overlaps what is already set to the same value.
    unsafe {
        if n < 8 {
            asm!("rep stosb", inout("rcx") n => _, inout("rdi") d => _, in("al") c as u8, options(nostack));
        } else {
            d.add(n - 8).cast::<u64>().write_unaligned(fill);
            asm!("rep stosq", inout("rcx") n / 8 => _, inout("rdi") d => _, in("rax") fill, options(nostack));
        }
    }
    d
}

/// C's `memcmp`.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    // SAFETY: i + 8 <= n, then i < n.
    unsafe {
        while n - i >= 8 {
            let (x, y) = (a.add(i).cast::<u64>().read_unaligned(), b.add(i).cast::<u64>().read_unaligned());
            if x != y {
                return if x.swap_bytes() < y.swap_bytes() { -1 } else { 1 };
            }
            i += 8;
        }
        while i < n {
            // Volatile, or the loop would be compiled into a call of itself.
            let (x, y) = (a.add(i).read_volatile(), b.add(i).read_volatile());
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            i += 1;
        }
    }
    0
}

/// BSD's `bcmp`.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's contract.
    unsafe { memcmp(a, b, n) }
}

/// C's `strlen`.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strlen(s: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the caller's string ends with a zero. Volatile for the reason given in memcmp.
    while unsafe { s.add(n).read_volatile() } != 0 {
        n += 1;
    }
    n
}

/// `core` was compiled to unwind and names this; with `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// See [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding in a kernel that cannot")
}
