// SPDX-License-Identifier: GPL-2.0-only
//! [`KVec`]: a growing array, each growth of which can fail.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::slice;

use super::{AllocError, Flags, GFP_ATOMIC, GFP_NOFAIL, GFP_NOFS, kfree, kmalloc};
use crate::sync::SpinLock;

/// A contiguous growing array in kernel memory. What does not fit into memory leaves it as it was.
///
/// # Invariants
///
/// `ptr` is from the allocator, for `cap` elements (dangling if that is no memory at all), and the
/// first `len <= cap` are initialised.
pub struct KVec<T> {
    ptr: NonNull<T>,
    cap: usize,
    len: usize,
    _owns: PhantomData<T>,
}

// SAFETY: A vector owns its elements as variables do.
unsafe impl<T: Send> Send for KVec<T> {}
// SAFETY: A shared vector gives shared access to the elements and nothing else.
unsafe impl<T: Sync> Sync for KVec<T> {}

impl<T> KVec<T> {
    /// Elements that fit into a vector that has no memory: none, unless they need none.
    const MIN_CAP: usize = if size_of::<T>() == 0 { usize::MAX } else { 0 };

    /// An empty vector, without memory.
    pub const fn new() -> KVec<T> {
        KVec { ptr: NonNull::dangling(), cap: Self::MIN_CAP, len: 0, _owns: PhantomData }
    }

    /// An empty vector into which `capacity` elements will fit without another allocation.
    pub fn with_capacity(capacity: usize, flags: Flags) -> Result<KVec<T>, AllocError> {
        let mut vec = KVec::new();
        vec.set_capacity(capacity, flags)?;
        Ok(vec)
    }

    /// `n` clones of `value`.
    pub fn from_elem(value: T, n: usize, flags: Flags) -> Result<KVec<T>, AllocError>
    where
        T: Clone,
    {
        let mut vec = KVec::with_capacity(n, flags)?;
        vec.resize(n, value, flags)?;
        Ok(vec)
    }

    /// How many elements fit without another allocation.
    pub const fn capacity(&self) -> usize {
        self.cap
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        self
    }

    /// The elements, for change.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self
    }

    /// Makes room for `additional` more elements, and some to spare.
    pub fn reserve(&mut self, additional: usize, flags: Flags) -> Result<(), AllocError> {
        let needed = self.len.checked_add(additional).ok_or(AllocError)?;
        if needed <= self.cap {
            return Ok(());
        }
        // Doubling keeps a row of pushes linear in their number.
        self.set_capacity(needed.max(self.cap.saturating_mul(2)).max(4), flags)
    }

    /// Moves the elements to memory for exactly `cap` of them, if that is more than now.
    #[cold]
    fn set_capacity(&mut self, cap: usize, flags: Flags) -> Result<(), AllocError> {
        if cap <= self.cap {
            return Ok(());
        }
        let layout = Layout::array::<T>(cap).map_err(|_| AllocError)?;
        let new = kmalloc(layout, flags)?.cast::<T>();
        // SAFETY: `len` elements are initialised in the old memory and fit into the new, other
        // memory; they are moved, and the old memory is only freed.
        unsafe {
            ptr::copy_nonoverlapping(self.ptr.as_ptr(), new.as_ptr(), self.len);
            self.free_memory();
        }
        // INVARIANT: Allocated just now, and the elements have moved in.
        self.ptr = new;
        self.cap = cap;
        Ok(())
    }

    /// Frees the memory without dropping what is in it.
    ///
    /// # Safety
    ///
    /// Neither `ptr` nor the elements are used afterwards.
    unsafe fn free_memory(&mut self) {
        if size_of::<T>() != 0 {
            match Layout::array::<T>(self.cap) {
                // SAFETY: By the type invariant this is the layout it was allocated with.
                Ok(layout) => unsafe { kfree(self.ptr.cast(), layout) },
                Err(_) => unreachable!("this layout has been allocated"),
            }
        }
    }

    /// Appends `value`, which is dropped if there is no memory.
    #[inline]
    pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        if self.len == self.cap {
            self.reserve(1, flags)?;
        }
        // SAFETY: There is room for one more.
        unsafe { self.ptr.add(self.len).write(value) };
        // INVARIANT: Written just now.
        self.len += 1;
        Ok(())
    }

    /// Takes off the last element.
    pub fn pop(&mut self) -> Option<T> {
        // INVARIANT: The last element is moved out below.
        self.len = self.len.checked_sub(1)?;
        // SAFETY: It was initialised, and `len` does not cover it any more.
        Some(unsafe { self.ptr.add(self.len).read() })
    }

    /// Puts `value` before element `index`; it is dropped if there is no memory.
    ///
    /// # Panics
    ///
    /// If `index` is greater than the length.
    pub fn insert(&mut self, index: usize, value: T, flags: Flags) -> Result<(), AllocError> {
        bug_on!(index > self.len, "insert at {index} of {}", self.len);
        self.reserve(1, flags)?;
        // SAFETY: There is room for one more, and `index <= len`, so the elements behind it can
        // move up by one.
        unsafe {
            let at = self.ptr.add(index);
            ptr::copy(at.as_ptr(), at.add(1).as_ptr(), self.len - index);
            at.write(value);
        }
        // INVARIANT: The gap is filled.
        self.len += 1;
        Ok(())
    }

    /// Takes out element `index`; those behind it move down.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    pub fn remove(&mut self, index: usize) -> T {
        bug_on!(index >= self.len, "remove {index} of {}", self.len);
        // INVARIANT: One element is moved out, the others are moved together.
        self.len -= 1;
        // SAFETY: `index` was below the old length.
        unsafe {
            let at = self.ptr.add(index);
            let value = at.read();
            ptr::copy(at.add(1).as_ptr(), at.as_ptr(), self.len - index);
            value
        }
    }

    /// Takes out element `index` and puts the last one in its place.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    pub fn swap_remove(&mut self, index: usize) -> T {
        let last = self.len.saturating_sub(1);
        self.swap(index, last);
        match self.pop() {
            Some(value) => value,
            None => unreachable!("swap has checked the index"),
        }
    }

    /// Drops all elements from `len` on, if there are so many.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let tail = ptr::slice_from_raw_parts_mut(self.ptr.as_ptr().wrapping_add(len), self.len - len);
        // INVARIANT: Shortened first, so that a drop that panics does not lead to a second one.
        self.len = len;
        // SAFETY: They were initialised, and `len` does not cover them any more.
        unsafe { ptr::drop_in_place(tail) };
    }

    /// Drops all elements, and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Keeps the elements for which `keep` says so, in their order.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        let mut kept = 0;
        for index in 0..self.len {
            if keep(&mut self[index]) {
                self.swap(kept, index);
                kept += 1;
            }
        }
        self.truncate(kept);
    }

    /// Appends clones of `other`'s elements: all, or without memory none.
    pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError>
    where
        T: Clone,
    {
        self.reserve(other.len(), flags)?;
        for value in other {
            self.push(value.clone(), flags)?;
        }
        Ok(())
    }

    /// Makes it `len` elements long, with clones of `value` where there are none yet.
    pub fn resize(&mut self, len: usize, value: T, flags: Flags) -> Result<(), AllocError>
    where
        T: Clone,
    {
        self.truncate(len);
        self.reserve(len - self.len, flags)?;
        while self.len < len {
            self.push(value.clone(), flags)?;
        }
        Ok(())
    }

    /// A vector of clones.
    pub fn try_clone(&self, flags: Flags) -> Result<KVec<T>, AllocError>
    where
        T: Clone,
    {
        let mut vec = KVec::with_capacity(self.len, flags)?;
        vec.extend_from_slice(self, flags)?;
        Ok(vec)
    }
}

impl<T> Default for KVec<T> {
    fn default() -> KVec<T> {
        KVec::new()
    }
}

impl<T> Drop for KVec<T> {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: Nothing is left in it, and the vector is gone after this.
        unsafe { self.free_memory() };
    }
}

impl<T> Deref for KVec<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: By the type invariant these are initialised.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for KVec<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: By the type invariant these are initialised; the vector is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for KVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: PartialEq<U>, U> PartialEq<KVec<U>> for KVec<T> {
    fn eq(&self, other: &KVec<U>) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for KVec<T> {}

impl<T: PartialEq<U>, U> PartialEq<[U]> for KVec<T> {
    fn eq(&self, other: &[U]) -> bool {
        **self == *other
    }
}

impl<T: PartialEq<U>, U, const N: usize> PartialEq<[U; N]> for KVec<T> {
    fn eq(&self, other: &[U; N]) -> bool {
        **self == *other
    }
}

impl<'a, T> IntoIterator for &'a KVec<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> slice::Iter<'a, T> {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut KVec<T> {
    type Item = &'a mut T;
    type IntoIter = slice::IterMut<'a, T>;

    fn into_iter(self) -> slice::IterMut<'a, T> {
        self.iter_mut()
    }
}

impl<T> IntoIterator for KVec<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        let vec = ManuallyDrop::new(self);
        // INVARIANT: All of the vector's elements are still to be given out.
        IntoIter { ptr: vec.ptr, cap: vec.cap, next: 0, len: vec.len, _owns: PhantomData }
    }
}

/// A vector's elements, one after the other, by value.
///
/// # Invariants
///
/// `ptr` and `cap` are a vector's, and the elements `next..len` of it are initialised.
pub struct IntoIter<T> {
    ptr: NonNull<T>,
    cap: usize,
    next: usize,
    len: usize,
    _owns: PhantomData<T>,
}

// SAFETY: It owns its elements, as the vector did.
unsafe impl<T: Send> Send for IntoIter<T> {}
// SAFETY: Shared, it gives no access at all.
unsafe impl<T: Sync> Sync for IntoIter<T> {}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.next == self.len {
            return None;
        }
        // SAFETY: `next` is below `len`, hence initialised; it is passed below.
        let value = unsafe { self.ptr.add(self.next).read() };
        // INVARIANT: Moved out just now.
        self.next += 1;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.len - self.next;
        (left, Some(left))
    }
}

impl<T> ExactSizeIterator for IntoIter<T> {}

impl<T> Drop for IntoIter<T> {
    fn drop(&mut self) {
        // INVARIANT: A vector without elements, in the memory that the iterator gives up; it frees
        // the memory even if the drop of an element panics.
        let _memory = KVec { ptr: self.ptr, cap: self.cap, len: 0, _owns: PhantomData };
        let left = ptr::slice_from_raw_parts_mut(self.ptr.as_ptr().wrapping_add(self.next), self.len - self.next);
        // SAFETY: By the type invariant these are initialised, and nobody looks at them again.
        unsafe { ptr::drop_in_place(left) };
    }
}

/// Makes room for one more element of a vector that a spin lock protects, unless there is some: with the lock released, since it may
/// take until there is memory. Others may be faster: so the caller looks again.
///
/// `list` finds the vector in what the lock protects. Sleeps.
pub fn make_room<L, T>(lock: &SpinLock<L>, list: impl Fn(&mut L) -> &mut KVec<T>) {
    let len = list(&mut lock.lock()).len();
    let Ok(mut bigger) = KVec::<T>::with_capacity(len.saturating_mul(2).max(4), GFP_NOFS | GFP_NOFAIL) else { return };
    let mut guard = lock.lock();
    let list = list(&mut guard);
    if list.len() < bigger.cap && list.cap < bigger.cap {
        for element in mem::take(list) {
            // There is room for all of them.
            let _ = bigger.push(element, GFP_ATOMIC);
        }
        mem::swap(list, &mut bigger);
    }
    drop(guard);
}
