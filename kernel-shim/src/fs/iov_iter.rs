// SPDX-License-Identifier: GPL-2.0-only
//! `struct iov_iter`: the caller's memory of one I/O, in segments.
//!
//! The memory is opaque to file systems: they count, cut and align it. The direct-I/O layer asks for its next stretch
//! ([`IovIter::pin`]) and hands that to bios.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::error::{Result, code::EFAULT};

/// One segment: C's `struct iovec`.
#[derive(Clone, Copy, Debug)]
pub struct IoVec<'a> {
    iov_base: NonNull<u8>,
    iov_len: usize,
    writable: bool,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> IoVec<'a> {
    /// Memory to write to the file.
    #[inline]
    pub fn source(memory: &'a [u8]) -> Self {
        Self { iov_base: NonNull::from(memory).cast(), iov_len: memory.len(), writable: false, _memory: PhantomData }
    }

    /// Memory to read the file into.
    #[inline]
    pub fn dest(memory: &'a mut [u8]) -> Self {
        let iov_len = memory.len();
        Self { iov_base: NonNull::from(memory).cast(), iov_len, writable: true, _memory: PhantomData }
    }

    /// Memory that the borrow checker does not follow, for asynchronous I/O.
    ///
    /// # Safety
    /// `len` bytes at `base` are valid for `'a`, for writes too if `writable`, and, beyond `'a`, as long as
    /// [`Kiocb::new_async`](super::Kiocb::new_async) asks for.
    #[inline]
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize, writable: bool) -> Self {
        Self { iov_base: base, iov_len: len, writable, _memory: PhantomData }
    }
}

/// Memory that may not be there when it is touched: a user's address space.
///
/// Kernel memory, and every hosted buffer, is simply there; a mount or a test that serves memory on
/// demand implements this.
pub trait UserMemory: Sync {
    /// Makes as much as it can of `len` bytes at `addr` present, in order, and says how many bytes. Sleeps; may take any lock
    /// that a page fault may take, the file system's included. 0 is a bad address.
    #[doc(alias = "fault_in_iov_iter_readable")]
    fn fault_in(&self, addr: usize, len: usize) -> usize;

    /// How many of `len` bytes at `addr` are present now, and stay so until the I/O ends. Takes no lock that sleeps.
    #[doc(alias = "iov_iter_extract_pages")]
    fn pin(&self, addr: usize, len: usize) -> usize;
}

/// Where an I/O's data is. `'a` is the life of the memory.
///
/// # Invariants
///
/// `here` is at most `count`, and 0 only if `count` is.
#[derive(Clone)]
pub struct IovIter<'a> {
    /// What comes next, and how much of what is left is there in one piece.
    base: NonNull<u8>,
    here: usize,
    count: usize,
    /// It may be written to.
    writable: bool,
    /// The segments behind it, at least as long together as what is left of `count`.
    rest: &'a [IoVec<'a>],
    user: Option<&'a dyn UserMemory>,
}

impl<'a> IovIter<'a> {
    /// All of `iov`.
    #[inline]
    pub fn new(iov: &'a [IoVec<'a>]) -> Self {
        match iov {
            // INVARIANT: all there is.
            [v] => Self {
                base: v.iov_base,
                here: v.iov_len,
                count: v.iov_len,
                writable: v.writable,
                rest: &[],
                user: None,
            },
            _ => Self::new_many(iov),
        }
    }

    fn new_many(iov: &'a [IoVec<'a>]) -> Self {
        let count = iov.iter().fold(0usize, |n, v| n.saturating_add(v.iov_len));
        let mut iter = Self { base: NonNull::dangling(), here: 0, count, writable: false, rest: iov, user: None };
        iter.next_segment();
        iter
    }

    /// The same, in memory that `user` serves.
    pub fn with_user_memory(iov: &'a [IoVec<'a>], user: &'a dyn UserMemory) -> Self {
        Self { user: Some(user), ..Self::new(iov) }
    }

    /// Bytes left.
    #[doc(alias = "iov_iter_count")]
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes that come next in one piece; 0 at the end.
    #[doc(alias = "iov_iter_single_seg_count")]
    #[inline]
    pub fn single_seg_count(&self) -> usize {
        self.here
    }

    /// Whether every segment that is left may be written to, as reading a file needs.
    pub fn is_dest(&self) -> bool {
        (self.here == 0 || self.writable) && self.rest.iter().all(|v| v.writable)
    }

    /// Leaves out what is beyond the first `count` bytes.
    #[doc(alias = "iov_iter_truncate")]
    #[inline]
    pub fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
        self.here = self.here.min(count);
    }

    /// Address and length of each segment that is left.
    fn segments(&self) -> impl Iterator<Item = (NonNull<u8>, usize)> + '_ {
        let mut left = self.count - self.here;
        let rest = self.rest.iter().map_while(move |v| {
            let n = v.iov_len.min(left);
            left -= n;
            (n > 0 || left > 0).then_some((v.iov_base, n))
        });
        core::iter::once((self.base, self.here)).chain(rest).filter(|(_, n)| *n > 0)
    }

    /// All addresses and lengths that are left, ORed: its low bits tell the coarsest alignment all have.
    #[doc(alias = "iov_iter_alignment")]
    #[inline]
    pub fn alignment(&self) -> usize {
        if self.here == self.count && self.count > 0 {
            return self.base.addr().get() | self.count;
        }
        self.segments().fold(0, |bits, (base, n)| bits | base.addr().get() | n)
    }

    /// Goes to the next segment that is not empty; the one before is done.
    fn next_segment(&mut self) {
        while let ([v, rest @ ..], true) = (self.rest, self.here == 0 && self.count > 0) {
            // INVARIANT: cut to what is left.
            (self.base, self.here, self.writable, self.rest) =
                (v.iov_base, v.iov_len.min(self.count), v.writable, rest);
        }
    }

    /// Makes the memory present before locks are taken that a page fault may need. Sleeps.
    ///
    /// Returns how many bytes from the start are present; what is missing behind them is
    /// [`EFAULT`] when [`IovIter::pin`] gets there. Free for memory that is simply there.
    #[inline]
    pub fn fault_in(&self) -> usize {
        let Some(user) = self.user else { return self.count };
        let mut done = 0;
        for (base, n) in self.segments() {
            let got = user.fault_in(base.addr().get(), n).min(n);
            done += got;
            if got < n {
                break;
            }
        }
        done
    }

    /// The next stretch, at most `max` bytes of it, present until the I/O ends; `None` at the end. Takes no lock that sleeps.
    /// [`EFAULT`] if it is not present. Does not advance.
    #[inline]
    pub fn pin(&mut self, max: usize) -> Result<Option<(NonNull<u8>, usize)>> {
        if self.here == 0 {
            return Ok(None);
        }
        let len = self.here.min(max);
        match self.user {
            None => Ok(Some((self.base, len))),
            Some(user) => match user.pin(self.base.addr().get(), len).min(len) {
                0 => Err(EFAULT),
                n => Ok(Some((self.base, n))),
            },
        }
    }

    /// Pins all that is left and goes to the end, if it is one stretch and all of it is present. Else nothing has happened.
    #[inline]
    pub fn pin_all(&mut self) -> Option<NonNull<u8>> {
        if self.here != self.count {
            return None;
        }
        if let Some(user) = self.user
            && user.pin(self.base.addr().get(), self.count) < self.count
        {
            return None;
        }
        (self.here, self.count) = (0, 0);
        Some(self.base)
    }

    /// Goes on by `n` bytes, at most to the end.
    #[doc(alias = "iov_iter_advance")]
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let mut n = n.min(self.count);
        loop {
            let step = n.min(self.here);
            // SAFETY: not beyond the end of the segment.
            self.base = unsafe { self.base.add(step) };
            self.here -= step;
            self.count -= step;
            n -= step;
            if self.here > 0 || self.count == 0 {
                return;
            }
            self.next_segment();
        }
    }

    /// Copies the next bytes out of the memory, and advances. Short at a bad address.
    pub fn copy_from_iter(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() {
            let Ok(Some((base, n))) = self.pin(to.len() - done) else { break };
            // SAFETY: `pin` gave `n` valid bytes; `to` has as many from `done` on, and is the
            // caller's own, so they do not overlap.
            unsafe { core::ptr::copy_nonoverlapping(base.as_ptr(), to[done..].as_mut_ptr(), n) };
            self.advance(n);
            done += n;
        }
        done
    }

    /// Copies `from` into the memory, and advances. Short at a bad address or where the memory may not be written.
    pub fn copy_to_iter(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        while done < from.len() {
            done += match self.fill(from.len() - done, |base, n| {
                // SAFETY: `fill` gives `n` writable bytes; `from` has as many from `done` on.
                unsafe { core::ptr::copy_nonoverlapping(from[done..].as_ptr(), base.as_ptr(), n) };
            }) {
                0 => break,
                n => n,
            };
        }
        done
    }

    /// Zeroes the next `len` bytes of memory, and advances. Short as [`IovIter::copy_to_iter`].
    #[doc(alias = "iov_iter_zero")]
    pub fn zero(&mut self, len: usize) -> usize {
        let mut done = 0;
        while done < len {
            done += match self.fill(len - done, |base, n| {
                // SAFETY: `fill` gives `n` writable bytes.
                unsafe { core::ptr::write_bytes(base.as_ptr(), 0, n) };
            }) {
                0 => break,
                n => n,
            };
        }
        done
    }

    fn fill(&mut self, max: usize, write: impl FnOnce(NonNull<u8>, usize)) -> usize {
        let Ok(Some((base, n))) = self.pin(max) else { return 0 };
        if !self.writable {
            return 0;
        }
        write(base, n);
        self.advance(n);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_cuts_and_aligns_over_segments() {
        let (a, b) = ([1u8; 1024], [2u8; 512]);
        let iov = [IoVec::source(&a), IoVec::source(&[]), IoVec::source(&b)];
        let mut it = IovIter::new(&iov);
        assert_eq!(it.count(), 1536);
        it.advance(1000);
        let mut out = [0; 100];
        assert_eq!(it.copy_from_iter(&mut out), 100);
        assert_eq!((&out[..24], &out[24..]), (&[1u8; 24][..], &[2u8; 76][..]));
        it.truncate(36);
        assert_eq!(it.count(), 36);
        let (base, n) = it.pin(usize::MAX).unwrap().unwrap();
        assert_eq!((base.as_ptr().cast_const(), n), (b[76..].as_ptr(), 36));
        assert_eq!(it.alignment(), (b[76..].as_ptr() as usize) | 36);
        it.advance(usize::MAX);
        assert!(it.pin(1).unwrap().is_none());
        assert_eq!(it.alignment(), 0);
    }

    #[test]
    fn reading_needs_writable_memory() {
        let a = [1u8; 8];
        let iov = [IoVec::source(&a)];
        assert_eq!(IovIter::new(&iov).copy_to_iter(&[9; 8]), 0);
        let mut b = [0u8; 8];
        let iov = [IoVec::dest(&mut b)];
        assert_eq!(IovIter::new(&iov).copy_to_iter(&[9; 16]), 8);
        assert_eq!(b, [9; 8]);
    }
}
