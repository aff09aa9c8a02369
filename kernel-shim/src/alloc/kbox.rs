// SPDX-License-Identifier: GPL-2.0-only
//! [`KBox`]: one value on the heap.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::{AllocError, Flags, kfree, kmalloc};

/// Sole owner of a value in kernel memory; it never moves while the box lives.
///
/// # Invariants
///
/// The pointer is valid for the box's lifetime and comes from the allocator with the layout of
/// the value that it points to.
#[doc(alias = "kmalloc")]
pub struct KBox<T: ?Sized>(NonNull<T>, PhantomData<T>);

// SAFETY: A box owns its value as a variable does.
unsafe impl<T: ?Sized + Send> Send for KBox<T> {}
// SAFETY: A shared box gives shared access to the value and nothing else.
unsafe impl<T: ?Sized + Sync> Sync for KBox<T> {}

impl<T> KBox<T> {
    /// Puts `value` on the heap. Without memory the value is dropped.
    pub fn new(value: T, flags: Flags) -> Result<KBox<T>, AllocError> {
        let memory = kmalloc(Layout::new::<T>(), flags)?.cast::<T>();
        // SAFETY: Fresh memory with T's layout.
        unsafe { memory.write(value) };
        // INVARIANT: Written just now.
        Ok(KBox(memory, PhantomData))
    }

    /// Takes the value out and frees the memory.
    pub fn into_inner(this: KBox<T>) -> T {
        let raw = KBox::into_raw(this);
        // SAFETY: By the type invariant there is a T; it is moved out, and only memory is freed.
        unsafe {
            let value = raw.read();
            kfree(NonNull::new_unchecked(raw.cast()), Layout::new::<T>());
            value
        }
    }
}

impl<T: ?Sized> KBox<T> {
    /// Hands the value over to a raw pointer; [`from_raw`](KBox::from_raw) takes it back.
    pub fn into_raw(this: KBox<T>) -> *mut T {
        ManuallyDrop::new(this).0.as_ptr()
    }

    /// Takes back what [`into_raw`](KBox::into_raw) gave; the type may have been unsized meanwhile.
    ///
    /// # Safety
    ///
    /// `raw` comes from `into_raw`, possibly coerced to a trait object or slice of the same value,
    /// and is not used otherwise from now on.
    pub unsafe fn from_raw(raw: *mut T) -> KBox<T> {
        // SAFETY: What `into_raw` gives is not null.
        // INVARIANT: It is what a box held.
        KBox(unsafe { NonNull::new_unchecked(raw) }, PhantomData)
    }

    /// Never frees the value.
    pub fn leak<'a>(this: KBox<T>) -> &'a mut T
    where
        T: 'a,
    {
        // SAFETY: Valid by the type invariant, and nobody will ever free it.
        unsafe { &mut *KBox::into_raw(this) }
    }
}

impl<T: ?Sized> Drop for KBox<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a value, from the allocator, of this layout.
        unsafe {
            let layout = Layout::for_value(self.0.as_ref());
            self.0.drop_in_place();
            kfree(self.0.cast(), layout);
        }
    }
}

impl<T: ?Sized> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: Valid by the type invariant.
        unsafe { self.0.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: Valid by the type invariant, and the box is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for KBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for KBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
