// SPDX-License-Identifier: GPL-2.0-only
//! [`Pool`]: as many objects of one type as were asked for, and no more. What a `kmem_cache` with
//! a `mempool` is to Linux's I/O path: bios and io_ends come from here, in any context, without
//! the allocator; and running out is an ordinary event that tests can bring about.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use heapless::{Vec, VecView};

use super::{AllocError, Flags, KBox, KVec, injected_failure};
use crate::percpu::{COPIES, CacheAligned, PerCpu};
use crate::sync::SpinLock;

/// How many free slots a CPU keeps to itself.
const CACHE: usize = 32;

/// The free slots.
struct Free<T, L: ?Sized> {
    /// What each CPU gave back last, still in its caches, behind a lock that nobody else wants.
    own: PerCpu<SpinLock<Vec<SlotPtr<T>, CACHE>>>,
    /// The others.
    list: SpinLock<L>,
}

/// [`Free`] of a pool of any size.
type FreeView<T> = Free<T, VecView<SlotPtr<T>>>;

impl<T> FreeView<T> {
    #[inline]
    fn take(&self) -> Option<SlotPtr<T>> {
        let own = self.own.this().lock_pool().pop();
        own.or_else(|| self.take_other())
    }

    #[cold]
    fn take_other(&self) -> Option<SlotPtr<T>> {
        let slot = self.list.lock_pool().pop();
        slot.or_else(|| self.own.iter().find_map(|own| own.lock_pool().pop()))
    }

    #[inline]
    fn put(&self, slot: SlotPtr<T>) {
        let kept = self.own.this().lock_pool().push(slot);
        if let Err(slot) = kept {
            self.put_other(slot);
        }
    }

    #[cold]
    fn put_other(&self, slot: SlotPtr<T>) {
        // As the list has room for every slot once, this cannot fail.
        let room = self.list.lock_pool().push(slot).is_ok();
        debug_assert!(room, "a slot was returned twice");
    }

    /// How many there are: exactly, while none is taken or given back.
    fn len(&self) -> usize {
        // One lock at a time.
        let listed = self.list.lock_pool().len();
        listed + self.own.iter().map(|own| own.lock_pool().len()).sum::<usize>()
    }
}

/// Memory for one object, and the way back to the pool. On cache lines of its own: two objects are used by two CPUs.
#[repr(C, align(64))]
struct Slot<T> {
    /// First, so that an object's address is its slot's.
    value: MaybeUninit<T>,
    /// Where the slot returns to.
    home: NonNull<FreeView<T>>,
}

/// A slot as an entry of the free list.
struct SlotPtr<T>(NonNull<Slot<T>>);

// SAFETY: A slot on the free list holds no object: it is plain memory.
unsafe impl<T> Send for SlotPtr<T> {}

/// A pool of at most `N` objects. A pool that is dropped while objects are in use leaks its memory,
/// with a complaint in the log, so that they stay valid.
///
/// # Invariants
///
/// Each slot of `slots` is either on the `free` list, once, or owned by one [`PoolBox`].
#[doc(alias = "kmem_cache")]
#[doc(alias = "mempool_t")]
pub struct Pool<T, const N: usize> {
    /// Where a slot's `home` points to: in a box, because a pool may move.
    free: ManuallyDrop<KBox<Free<T, Vec<SlotPtr<T>, N>>>>,
    /// Never dereferenced while objects are in use: they have references into it.
    slots: ManuallyDrop<KVec<Slot<T>>>,
    capacity: usize,
    name: &'static str,
}

// SAFETY: Objects are made on one thread and dropped on another, which is what T's Send is for; the
// free list has its lock, and nothing else changes.
unsafe impl<T: Send, const N: usize> Send for Pool<T, N> {}
// SAFETY: As above: sharing a pool only lets several threads make and drop objects.
unsafe impl<T: Send, const N: usize> Sync for Pool<T, N> {}

impl<T, const N: usize> Pool<T, N> {
    /// A pool of `capacity` objects, all memory for which is allocated now.
    ///
    /// # Panics
    ///
    /// If `capacity` exceeds `N`.
    pub fn new(capacity: usize, flags: Flags, name: &'static str) -> Result<Pool<T, N>, AllocError> {
        bug_on!(capacity > N, "pool {name}: {capacity} objects in room for {N}");
        let own = PerCpu::new([const { CacheAligned(SpinLock::named("pool_cpu", Vec::new())) }; COPIES]);
        let free = KBox::new(Free { own, list: SpinLock::named("pool", Vec::<SlotPtr<T>, N>::new()) }, flags)?;
        let mut slots = KVec::with_capacity(capacity, flags)?;
        let home: NonNull<FreeView<T>> = NonNull::from(&*free);
        for _ in 0..capacity {
            slots.push(Slot { value: MaybeUninit::uninit(), home }, flags)?;
        }
        {
            let mut list = free.list.lock_pool();
            // Backwards: the first objects are those at the lowest addresses.
            for slot in slots.iter_mut().rev() {
                // INVARIANT: Each slot is put on the list once.
                let room = list.push(SlotPtr(NonNull::from(slot))).is_ok();
                bug_on!(!room, "pool {name}: free list overflow");
            }
        }
        Ok(Pool { free: ManuallyDrop::new(free), slots: ManuallyDrop::new(slots), capacity, name })
    }

    /// An object with this value, or the value back if the pool is empty. Any context.
    #[inline]
    pub fn try_alloc(&self, value: T) -> Result<PoolBox<T>, T> {
        match self.take() {
            Some(slot) => Ok(slot.fill(value)),
            None => Err(value),
        }
    }

    /// An object with what `init` returns, which is not called if the pool is empty; for objects
    /// that are too big to be moved about. Any context.
    #[inline]
    pub fn try_alloc_with(&self, init: impl FnOnce() -> T) -> Option<PoolBox<T>> {
        let slot = self.take()?;
        Some(slot.fill(init()))
    }

    /// Takes a slot off the free list.
    #[inline]
    fn take(&self) -> Option<FreeSlot<T>> {
        if injected_failure() {
            return None;
        }
        // INVARIANT: Taken off the list, the slot belongs to the FreeSlot.
        let free: &FreeView<T> = &**self.free;
        let slot = free.take()?;
        crate::sched::sched_reused(slot.0.as_ptr().cast(), size_of::<Slot<T>>());
        Some(FreeSlot(slot.0))
    }

    /// How many objects can be had at this moment. While objects are taken and given back it is not exact.
    pub fn available(&self) -> usize {
        let free: &FreeView<T> = &**self.free;
        free.len()
    }

    /// How many objects there are, in use and free.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The pool's name.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl<T, const N: usize> Drop for Pool<T, N> {
    fn drop(&mut self) {
        let in_use = self.capacity().saturating_sub(self.available());
        if in_use != 0 {
            pr_err!("pool {}: {in_use} objects still in use, memory leaked", self.name);
            return;
        }
        // SAFETY: All slots are on the free list, so no object refers to either, and new ones
        // cannot be had; whoever returned the last one has left the lock that we just held.
        unsafe {
            ManuallyDrop::drop(&mut self.slots);
            ManuallyDrop::drop(&mut self.free);
        }
    }
}

impl<T, const N: usize> fmt::Debug for Pool<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {} of {} free)", self.name, self.available(), self.capacity())
    }
}

/// A slot off the free list without an object; it goes back when dropped.
///
/// # Invariants
///
/// The slot is a live pool's and not on its free list.
struct FreeSlot<T>(NonNull<Slot<T>>);

impl<T> FreeSlot<T> {
    #[inline]
    fn fill(self, value: T) -> PoolBox<T> {
        let slot = ManuallyDrop::new(self).0;
        // SAFETY: By the type invariant the slot is ours and empty.
        unsafe { slot.cast::<T>().write(value) };
        // INVARIANT: Filled just now.
        PoolBox(slot.cast(), PhantomData)
    }
}

impl<T> Drop for FreeSlot<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pool lives, and with it its free list.
        let home = unsafe { self.0.as_ref().home.as_ref() };
        // INVARIANT: We owned the slot; now a list does.
        home.put(SlotPtr(self.0));
    }
}

/// Sole owner of one object of a [`Pool`]. Dropping it drops the object and returns its memory to
/// the pool, in any context.
///
/// # Invariants
///
/// Points to the initialised value of a live pool's slot that nothing else owns.
pub struct PoolBox<T>(NonNull<T>, PhantomData<T>);

// SAFETY: It owns its value as a variable does; the way back to the pool has a lock.
unsafe impl<T: Send> Send for PoolBox<T> {}
// SAFETY: Shared, it gives shared access to the value and nothing else.
unsafe impl<T: Sync> Sync for PoolBox<T> {}

impl<T> PoolBox<T> {
    /// Hands the object over to a raw pointer; [`from_raw`](PoolBox::from_raw) takes it back.
    #[inline]
    pub fn into_raw(this: PoolBox<T>) -> NonNull<T> {
        ManuallyDrop::new(this).0
    }

    /// Takes back what [`into_raw`](PoolBox::into_raw) gave.
    ///
    /// # Safety
    ///
    /// `raw` comes from `into_raw` and is not used otherwise from now on.
    #[inline]
    pub unsafe fn from_raw(raw: NonNull<T>) -> PoolBox<T> {
        // INVARIANT: It is what a box held.
        PoolBox(raw, PhantomData)
    }

    /// Takes the value out and returns the memory to the pool.
    #[inline]
    pub fn into_inner(this: PoolBox<T>) -> T {
        let raw = PoolBox::into_raw(this);
        // SAFETY: By the type invariant there is a value; it is moved out, so that
        // INVARIANT: the slot is empty and ours.
        unsafe {
            let _slot = FreeSlot(raw.cast::<Slot<T>>());
            raw.read()
        }
    }
}

impl<T> Drop for PoolBox<T> {
    // Not inlined: it would be a part of each place that might drop one, at most of which there is none to drop.
    #[inline(never)]
    fn drop(&mut self) {
        // Returned when this goes out of scope: after the value's drop, even if that panics.
        // INVARIANT: The value is dropped before that.
        let _slot = FreeSlot(self.0.cast::<Slot<T>>());
        // SAFETY: By the type invariant there is a value, and nobody looks at it again.
        unsafe { self.0.drop_in_place() };
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: Valid by the type invariant.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for PoolBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: Valid by the type invariant, and the box is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for PoolBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
