// SPDX-License-Identifier: GPL-2.0-only
//! Queues of sleepers, each an entry on the stack of the thread that sleeps. All waiting in
//! [`sync`](super) is built on this list.

use core::ptr;

use super::atomic::{AtomicBool, Cell, Ordering};
use crate::sched::{self, Task};

/// What a sleeper in the queue of an rwsem wants; the other locks have only writers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
}

/// A thread in a queue.
///
/// # Invariants
///
/// `next`, `prev` and `queued` are only used by whoever holds the lock that the list is in, and
/// after [`WaitList::detach`] by whoever detached it.
pub(super) struct Waiter {
    task: &'static Task,
    want: Want,
    next: Cell<*const Waiter>,
    prev: Cell<*const Waiter>,
    queued: Cell<bool>,
    /// Set last of all by [`Waiter::grant`]; after that the entry may be gone.
    granted: AtomicBool,
}

impl Waiter {
    /// An entry for the running thread, in no queue.
    pub(super) fn new(want: Want) -> Waiter {
        Waiter {
            task: sched::current(),
            want,
            next: Cell::new(ptr::null()),
            prev: Cell::new(ptr::null()),
            queued: Cell::new(false),
            granted: AtomicBool::new(false),
        }
    }

    /// Who sleeps.
    pub(super) fn task(&self) -> &'static Task {
        self.task
    }

    /// What it wants.
    pub(super) fn want(&self) -> Want {
        self.want
    }

    /// Whether it stands in the queue. For the holder of the list's lock.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.get()
    }

    /// Tells a sleeper in [`wait_granted`](Waiter::wait_granted) that it has what it wants.
    ///
    /// # Safety
    ///
    /// `this` is a live entry in no queue that has not been granted before. It may be gone when
    /// this returns: its thread is on its way.
    unsafe fn grant(this: *const Waiter) {
        // SAFETY: Lives until the store below. The task, which is needed after it, lives for ever.
        let task = unsafe {
            let task = (*this).task;
            (*this).granted.store(true, Ordering::Release);
            task
        };
        sched::unpark(task);
    }

    /// Sleeps until granted. What was done before the grant is visible afterwards.
    pub(super) fn wait_granted(&self) {
        while !self.granted.load(Ordering::Acquire) {
            sched::schedule();
        }
    }
}

/// First come, first served.
///
/// # Invariants
///
/// A doubly linked list of live entries whose `queued` is set; both ends are null or neither.
pub(super) struct WaitList {
    head: *const Waiter,
    tail: *const Waiter,
}

// SAFETY: Entries are used by the holder of the list's lock only, from whichever thread; what they
// have besides (a task, an atomic) may be shared.
unsafe impl Send for WaitList {}

impl WaitList {
    pub(super) const fn new() -> WaitList {
        WaitList { head: ptr::null(), tail: ptr::null() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Whether there is exactly one entry.
    pub(super) fn has_one(&self) -> bool {
        !self.head.is_null() && ptr::eq(self.head, self.tail)
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let mut count = 0;
        let mut at = self.head;
        // SAFETY: By the type invariant the entries live.
        while let Some(waiter) = unsafe { at.as_ref() } {
            count += 1;
            at = waiter.next.get();
        }
        count
    }

    /// The entry that came first.
    pub(super) fn first(&self) -> Option<&Waiter> {
        // SAFETY: By the type invariant it is live, and stays so while the list is borrowed.
        unsafe { self.head.as_ref() }
    }

    /// Whether `waiter` came first.
    pub(super) fn is_first(&self, waiter: &Waiter) -> bool {
        ptr::eq(self.head, waiter)
    }

    /// Puts `waiter` at the end.
    ///
    /// # Safety
    ///
    /// It is in no list, and stays in place until it has left this one.
    pub(super) unsafe fn push_back(&mut self, waiter: &Waiter) {
        debug_assert!(!waiter.queued.get());
        waiter.next.set(ptr::null());
        waiter.prev.set(self.tail);
        // INVARIANT: `waiter` is the new end, reached from the old one.
        waiter.queued.set(true);
        // SAFETY: By the type invariant the old end is null or live.
        match unsafe { self.tail.as_ref() } {
            Some(last) => last.next.set(waiter),
            None => self.head = waiter,
        }
        self.tail = waiter;
    }

    /// Takes `waiter` out.
    ///
    /// # Safety
    ///
    /// It is in this list.
    pub(super) unsafe fn remove(&mut self, waiter: &Waiter) {
        debug_assert!(waiter.queued.get());
        let (prev, next) = (waiter.prev.get(), waiter.next.get());
        // INVARIANT: Its neighbours, or the ends, close the gap.
        waiter.queued.set(false);
        // SAFETY: By the type invariant the neighbours are null or live.
        unsafe {
            match prev.as_ref() {
                Some(prev) => prev.next.set(next),
                None => self.head = next,
            }
            match next.as_ref() {
                Some(next) => next.prev.set(prev),
                None => self.tail = prev,
            }
        }
    }

    /// Takes out the entry that came first, and wakes its thread. Whether there was one.
    ///
    /// The thread is woken with the list's lock held: once that is free, the entry may be gone.
    pub(super) fn wake_first(&mut self) -> bool {
        // SAFETY: By the type invariant it is live.
        let Some(first) = (unsafe { self.head.as_ref() }) else { return false };
        let task = first.task;
        // SAFETY: It is in this list.
        unsafe { self.remove(first) };
        sched::unpark(task);
        true
    }

    /// Takes the entry that came first over to `chain`.
    pub(super) fn detach(&mut self, chain: &mut Granted) {
        // SAFETY: By the type invariant it is live.
        let Some(first) = (unsafe { self.head.as_ref() }) else { return };
        // SAFETY: It is in this list.
        unsafe { self.remove(first) };
        first.next.set(ptr::null());
        // SAFETY: The chain's invariant: its entries live.
        match unsafe { chain.tail.as_ref() } {
            Some(last) => last.next.set(first),
            None => chain.head = first,
        }
        // INVARIANT: `first` is in no queue, and its thread sleeps until it is granted.
        chain.tail = first;
    }
}

/// Entries that have left their queue and are to be granted once the queue's lock is free.
///
/// # Invariants
///
/// A list, linked by `next`, of live entries in no queue, none of them granted.
#[must_use = "the threads in it sleep until wake() is called"]
pub(super) struct Granted {
    head: *const Waiter,
    tail: *const Waiter,
}

impl Granted {
    pub(super) const fn new() -> Granted {
        Granted { head: ptr::null(), tail: ptr::null() }
    }

    /// Grants and wakes them all, in the order of their coming.
    pub(super) fn wake(self) {
        let mut at = self.head;
        // SAFETY: By the type invariant the entry lives; the next one is read before it is granted,
        // for then it may be gone.
        while let Some(waiter) = unsafe { at.as_ref() } {
            let this = at;
            at = waiter.next.get();
            // SAFETY: Live, in no queue, not granted yet.
            unsafe { Waiter::grant(this) };
        }
    }
}
