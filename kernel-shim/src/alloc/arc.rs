// SPDX-License-Identifier: GPL-2.0-only
//! [`Arc`]: one value on the heap, shared by counting.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, offset_of};
use core::ops::Deref;
use core::ptr::NonNull;

use super::{AllocError, Flags, kfree, kmalloc};
use crate::sync::atomic::{AtomicUsize, Ordering, fence};

/// Shared owner of a value in kernel memory. There are no weak references.
///
/// # Invariants
///
/// The pointer is to the `data` of an `ArcInner` from the allocator whose count includes this one.
#[doc(alias = "refcount_t")]
pub struct Arc<T: ?Sized>(NonNull<T>, PhantomData<T>);

/// What an [`Arc`] allocates.
#[repr(C)]
struct ArcInner<T> {
    refcount: AtomicUsize,
    data: T,
}

// SAFETY: Any holder may be the last one and drop the value (Send), and all share it (Sync).
unsafe impl<T: ?Sized + Send + Sync> Send for Arc<T> {}
// SAFETY: A shared Arc can be cloned: the same as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for Arc<T> {}

impl<T> Arc<T> {
    /// Puts `value` on the heap, with a count of 1. Without memory the value is dropped.
    pub fn new(value: T, flags: Flags) -> Result<Arc<T>, AllocError> {
        let memory = kmalloc(Layout::new::<ArcInner<T>>(), flags)?.cast::<ArcInner<T>>();
        // SAFETY: Fresh memory with the layout of ArcInner<T>; `data` lies within it.
        // INVARIANT: The count of 1 is ours.
        unsafe {
            memory.write(ArcInner { refcount: AtomicUsize::new(1), data: value });
            Ok(Arc(memory.byte_add(offset_of!(ArcInner<T>, data)).cast(), PhantomData))
        }
    }

    /// The value, if this was the last reference; else it only gives up the reference.
    #[doc(alias = "into_unique_or_drop")]
    pub fn into_inner(this: Arc<T>) -> Option<T> {
        let this = ManuallyDrop::new(this);
        if !this.put() {
            return None;
        }
        let (offset, layout) = this.layout();
        // SAFETY: The count is 0, so the value is ours to move out and the memory ours to free.
        unsafe {
            let value = this.0.read();
            kfree(this.0.cast::<u8>().sub(offset), layout);
            Some(value)
        }
    }
}

impl<T: ?Sized> Arc<T> {
    /// How far behind the start of its allocation the value lies, and the allocation's layout.
    #[inline]
    fn layout(&self) -> (usize, Layout) {
        let header = Layout::new::<AtomicUsize>();
        match header.extend(Layout::for_value(&**self)) {
            Ok((layout, offset)) => (offset, layout.pad_to_align()),
            Err(_) => unreachable!("this layout has been allocated"),
        }
    }

    /// The count.
    #[inline]
    fn refcount(&self) -> &AtomicUsize {
        let (offset, _) = self.layout();
        // SAFETY: By the type invariant the value is in an ArcInner: the count starts it.
        unsafe { self.0.cast::<u8>().sub(offset).cast().as_ref() }
    }

    /// Gives up one reference, and says whether it was the last.
    #[inline]
    fn put(&self) -> bool {
        // Release: what this holder did to the value happens before the last one drops it.
        if self.refcount().fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// Whether both are the same allocation.
    pub fn ptr_eq(a: &Arc<T>, b: &Arc<T>) -> bool {
        core::ptr::addr_eq(a.0.as_ptr(), b.0.as_ptr())
    }

    /// How many references there are at this moment; others may change it at any time.
    pub fn strong_count(this: &Arc<T>) -> usize {
        this.refcount().load(Ordering::Relaxed)
    }

    /// The value for change, if there is no other reference.
    pub fn get_mut(this: &mut Arc<T>) -> Option<&mut T> {
        // Acquire: what former holders did happens before our change.
        if this.refcount().load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: The only reference is borrowed exclusively, so no other can come into being.
        Some(unsafe { this.0.as_mut() })
    }

    /// Hands the reference over to a raw pointer; [`from_raw`](Arc::from_raw) takes it back.
    pub fn into_raw(this: Arc<T>) -> *const T {
        ManuallyDrop::new(this).0.as_ptr()
    }

    /// Takes back what [`into_raw`](Arc::into_raw) gave; the type may have been unsized meanwhile.
    ///
    /// # Safety
    ///
    /// `raw` comes from `into_raw`, possibly coerced to a trait object or slice of the same value,
    /// and its reference is taken back only once.
    pub unsafe fn from_raw(raw: *const T) -> Arc<T> {
        // SAFETY: What `into_raw` gives is not null.
        // INVARIANT: The reference that `into_raw` handed over is counted.
        Arc(unsafe { NonNull::new_unchecked(raw.cast_mut()) }, PhantomData)
    }
}

impl<T: ?Sized> Clone for Arc<T> {
    #[inline]
    fn clone(&self) -> Arc<T> {
        // Relaxed: whoever clones has a reference, so the value is visible to it already.
        let before = self.refcount().fetch_add(1, Ordering::Relaxed);
        // Only leaks can get here, and a wrapped count would free what is in use.
        bug_on!(before > isize::MAX as usize, "reference count overflow");
        // INVARIANT: Counted just now.
        Arc(self.0, PhantomData)
    }
}

impl<T: ?Sized> Drop for Arc<T> {
    #[inline]
    fn drop(&mut self) {
        if self.put() {
            let (offset, layout) = self.layout();
            // SAFETY: The count is 0: nobody else has the value. It is where, and with the layout
            // with which, `new` allocated it.
            unsafe {
                self.0.drop_in_place();
                kfree(self.0.cast::<u8>().sub(offset), layout);
            }
        }
    }
}

impl<T: ?Sized> Deref for Arc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: Valid by the type invariant; shared with all other holders.
        unsafe { self.0.as_ref() }
    }
}

impl<T: ?Sized> AsRef<T> for Arc<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Arc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for Arc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
