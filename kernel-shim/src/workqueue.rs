// SPDX-License-Identifier: GPL-2.0-only
//! Work queues: what cannot be done in interrupt context is queued there and done by a thread.
//!
//! A [`Work`] is embedded in the object that needs something done, as `struct work_struct` is, so
//! that queueing neither allocates nor sleeps. The queue owns the object from [`Workqueue::queue`]
//! until it passes it to [`WorkItem::run`]:
//!
//! ```
//! use kernel_shim::alloc::{Arc, GFP_KERNEL, Pool, PoolBox};
//! use kernel_shim::workqueue::{Work, WorkItem, Workqueue};
//!
//! struct IoEnd {
//!     work: Work,
//!     offset: u64,
//! }
//!
//! impl WorkItem for IoEnd {
//!     type Pointer = PoolBox<IoEnd>;
//!
//!     fn work(&self) -> &Work {
//!         &self.work
//!     }
//!
//!     fn run(this: PoolBox<IoEnd>) {
//!         assert_eq!(this.offset, 4096);
//!     }
//! }
//!
//! # fn main() -> kernel_shim::error::Result {
//! let pool = Pool::<IoEnd, 16>::new(16, GFP_KERNEL, "io_end")?;
//! let queue = Workqueue::new("unwritten", 2)?;
//! let io_end = pool.try_alloc(IoEnd { work: Work::new(), offset: 4096 }).ok().unwrap();
//! queue.queue(io_end).ok().unwrap();
//! queue.drain();
//! assert_eq!(pool.available(), 16);
//! # Ok(())
//! # }
//! ```

#[cfg(all(test, feature = "host"))]
mod tests;

use core::cell::Cell;
use core::fmt;
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::alloc::{Arc, GFP_KERNEL, KBox, KVec, PoolBox};
use crate::error::{Result, code};
use crate::sched::{self, JoinHandle};
use crate::sync::lockdep::{self, Dep, Kind};
use crate::sync::{SpinLock, WaitQueue};

/// How many threads a queue can have.
pub const MAX_WORKERS: usize = 16;

/// What an object needs to be queued; embedded in it.
///
/// # Invariants
///
/// While `pending` is set the object is owned by a queue, through `item`, and stays in place; the
/// other fields are used by whoever set it, and then under the queue's lock.
#[doc(alias = "work_struct")]
pub struct Work {
    next: Cell<*const Work>,
    /// Its number in the order of queueing.
    seq: Cell<u64>,
    /// The object, from [`WorkPointer::into_raw`].
    item: Cell<*mut ()>,
    run: Cell<fn(*mut ())>,
    pending: AtomicBool,
}

// SAFETY: It refers to its object only while that is queued, and then the object's pointer is Send.
unsafe impl Send for Work {}
// SAFETY: `pending` is an atomic; by the type invariant the cells are used by one thread at a time.
unsafe impl Sync for Work {}

impl Work {
    /// Not queued.
    #[doc(alias = "INIT_WORK")]
    pub const fn new() -> Work {
        Work {
            next: Cell::new(ptr::null()),
            seq: Cell::new(0),
            item: Cell::new(ptr::null_mut()),
            run: Cell::new(|_| {}),
            pending: AtomicBool::new(false),
        }
    }

    /// Whether it is queued and its [`WorkItem::run`] has not begun.
    #[doc(alias = "work_pending")]
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }
}

impl Default for Work {
    fn default() -> Work {
        Work::new()
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_pending() { "Work(pending)" } else { "Work(idle)" })
    }
}

/// An owning pointer that can wait in a queue.
///
/// # Safety
///
/// `from_raw` undoes `into_raw`. In between the object lives, does not move, and is not given to
/// anybody for exclusive use.
pub unsafe trait WorkPointer: Send + Sized + 'static {
    /// What it points to.
    type Item;
    /// Hands the object over.
    fn into_raw(self) -> NonNull<Self::Item>;
    /// Takes it back.
    ///
    /// # Safety
    ///
    /// `raw` comes from `into_raw` and has not been taken back yet.
    unsafe fn from_raw(raw: NonNull<Self::Item>) -> Self;
}

// SAFETY: A box's object lives, in place, until the box is dropped, and nobody else has it.
unsafe impl<T: Send + 'static> WorkPointer for PoolBox<T> {
    type Item = T;

    fn into_raw(self) -> NonNull<T> {
        PoolBox::into_raw(self)
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        // SAFETY: The caller's promise.
        unsafe { PoolBox::from_raw(raw) }
    }
}

// SAFETY: A box's object lives, in place, until the box is dropped, and nobody else has it.
unsafe impl<T: Send + 'static> WorkPointer for KBox<T> {
    type Item = T;

    fn into_raw(self) -> NonNull<T> {
        NonNull::from(KBox::leak(self))
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        // SAFETY: The caller's promise; `leak` is `into_raw` with a reference.
        unsafe { KBox::from_raw(raw.as_ptr()) }
    }
}

// SAFETY: The object lives, in place, while there is a reference, and is shared meanwhile: the one
// in the queue makes every other one not the only one.
unsafe impl<T: Send + Sync + 'static> WorkPointer for Arc<T> {
    type Item = T;

    fn into_raw(self) -> NonNull<T> {
        match NonNull::new(Arc::into_raw(self).cast_mut()) {
            Some(raw) => raw,
            None => unreachable!("an Arc is not null"),
        }
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        // SAFETY: The caller's promise.
        unsafe { Arc::from_raw(raw.as_ptr()) }
    }
}

// SAFETY: The object lives for ever, in place, and is shared.
unsafe impl<T: Sync + 'static> WorkPointer for &'static T {
    type Item = T;

    fn into_raw(self) -> NonNull<T> {
        NonNull::from(self)
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        // SAFETY: It was such a reference.
        unsafe { raw.as_ref() }
    }
}

/// An object that can be queued.
pub trait WorkItem: Sized {
    /// What owns it while it is queued: [`PoolBox`], [`KBox`], [`Arc`], or a static reference.
    type Pointer: WorkPointer<Item = Self>;

    /// Its [`Work`]; the same one each time.
    fn work(&self) -> &Work;

    /// What is to be done, in a thread of the queue. May sleep, and may queue the object again.
    fn run(this: Self::Pointer);
}

/// What a [`Work`] calls.
fn run_item<P: WorkPointer>(item: *mut ())
where
    P::Item: WorkItem<Pointer = P>,
{
    if let Some(raw) = NonNull::new(item.cast()) {
        // SAFETY: `queue` got it from `into_raw`, and only the one who dequeued it calls this.
        P::Item::run(unsafe { P::from_raw(raw) });
    }
}

/// The part of a queue that its threads share with it.
struct Shared {
    state: SpinLock<State>,
    /// Held by who runs a work.
    dep: Dep,
    /// Workers wait here for work.
    more: WaitQueue,
    /// Flushers wait here for the end of works.
    done: WaitQueue,
}

/// What a dequeued work wants: `run(item)`, once.
struct Todo {
    run: fn(*mut ()),
    item: *mut (),
}

/// # Invariants
///
/// `head` to `tail` is a list, linked by `next`, of works that are pending; null if empty.
struct State {
    head: *const Work,
    tail: *const Work,
    /// The number that the next work gets.
    next_seq: u64,
    /// The number of the work that each worker runs; [`IDLE`] if it does not.
    running: [u64; MAX_WORKERS],
    /// The queue is being dropped: workers end when nothing is left.
    stopping: bool,
    /// A work has panicked, which only a hosted thread survives.
    panicked: bool,
}

// SAFETY: The works in the list are owned by it, and their objects' pointers are Send.
unsafe impl Send for State {}

const IDLE: u64 = u64::MAX;

impl State {
    const fn new() -> State {
        State {
            head: ptr::null(),
            tail: ptr::null(),
            next_seq: 0,
            running: [IDLE; MAX_WORKERS],
            stopping: false,
            panicked: false,
        }
    }

    /// Puts a work at the end.
    fn push(&mut self, work: &Work) {
        work.next.set(ptr::null());
        work.seq.set(self.next_seq);
        self.next_seq += 1;
        // SAFETY: By the type invariant the last one is null or alive.
        match unsafe { self.tail.as_ref() } {
            Some(last) => last.next.set(work),
            None => self.head = work,
        }
        // INVARIANT: The caller has made it pending.
        self.tail = work;
    }

    /// Takes off the first work, as what `worker` runs now, and says how to run it.
    fn start(&mut self, worker: usize) -> Option<Todo> {
        // SAFETY: By the type invariant it is null or alive.
        let work = unsafe { self.head.as_ref() }?;
        self.head = work.next.get();
        if self.head.is_null() {
            self.tail = ptr::null();
        }
        self.running[worker] = work.seq.get();
        let todo = Todo { run: work.run.get(), item: work.item.get() };
        // From here on others who have the object may queue it again. Release: after we have read it.
        sched::sched_access(core::ptr::from_ref(&work.pending).cast(), true);
        work.pending.store(false, Ordering::Release);
        Some(todo)
    }

    /// The number of the oldest work that has not ended; [`IDLE`] if all have.
    fn oldest(&self) -> u64 {
        // SAFETY: By the type invariant it is null or alive.
        let queued = unsafe { self.head.as_ref() }.map_or(IDLE, |work| work.seq.get());
        self.running.iter().fold(queued, |oldest, &seq| oldest.min(seq))
    }
}

/// A queue of works and the threads that run them, in the order of queueing as far as they are begun.
/// With one thread each work ends before the next begins.
#[doc(alias = "alloc_workqueue")]
#[doc(alias = "workqueue_struct")]
pub struct Workqueue {
    shared: Arc<Shared>,
    workers: KVec<JoinHandle>,
    name: &'static str,
}

impl Workqueue {
    /// A queue with `nr_workers` threads, spread over the CPUs.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no or more than [`MAX_WORKERS`] threads, `ENOMEM`, and what
    /// [`spawn`](sched::spawn) has.
    pub fn new(name: &'static str, nr_workers: usize) -> Result<Arc<Workqueue>> {
        if nr_workers == 0 || nr_workers > MAX_WORKERS {
            return Err(code::EINVAL);
        }
        let shared = Shared {
            state: SpinLock::named("wq", State::new()),
            dep: Dep::new(Kind::Map, Some(name), || "()"),
            more: WaitQueue::new(),
            done: WaitQueue::new(),
        };
        let shared = Arc::new(shared, GFP_KERNEL)?;
        let workers = KVec::with_capacity(nr_workers, GFP_KERNEL)?;
        // From here on an error drops the queue, which ends the threads that there are already.
        let mut queue = Workqueue { shared, workers, name };
        for (worker, cpu) in (0..nr_workers).zip((0..sched::nr_cpus()).cycle()) {
            let shared = queue.shared.clone();
            let handle = sched::spawn_on(cpu, name, move || work_for(&shared, worker))?;
            queue.workers.push(handle, GFP_KERNEL)?;
        }
        Ok(Arc::new(queue, GFP_KERNEL)?)
    }

    /// Queues an object, which belongs to the queue until it is run. Any context: neither sleeps nor
    /// allocates. If it is pending already (one that is shared can be), the pointer comes back.
    #[doc(alias = "queue_work")]
    pub fn queue<P: WorkPointer>(&self, item: P) -> Result<(), P>
    where
        P::Item: WorkItem<Pointer = P>,
    {
        let raw = item.into_raw();
        // SAFETY: Between `into_raw` and `from_raw` the object lives, and is only shared: so this
        // reference, and with it the one to the work, is good until `from_raw` in `run_item`.
        let work = unsafe { raw.as_ref() }.work();
        // Acquire: whoever ran it before has read it.
        sched::sched_access(core::ptr::from_ref(&work.pending).cast(), true);
        if work.pending.swap(true, Ordering::Acquire) {
            // SAFETY: Handed over just above.
            return Err(unsafe { P::from_raw(raw) });
        }
        // INVARIANT: We set `pending`, and own the object through `raw`.
        work.item.set(raw.as_ptr().cast());
        work.run.set(run_item::<P>);
        let mut state = self.shared.state.lock();
        state.push(work);
        // With the lock held: from the unlock on the object is the worker's, and with it may go whatever keeps this queue. Nothing
        // of either is touched after that.
        self.shared.more.wake_up_one();
        drop(state);
        Ok(())
    }

    /// Sleeps until all that was queued before this call has been run. Not from a work of this queue.
    #[doc(alias = "flush_workqueue")]
    pub fn flush(&self) {
        let next_seq = self.shared.state.lock().next_seq;
        self.wait_until(|oldest| oldest >= next_seq);
    }

    /// Sleeps until the queue is empty and nothing runs: all that was queued before this call, and
    /// what that has queued, has been run. Not from a work of this queue.
    #[doc(alias = "drain_workqueue")]
    pub fn drain(&self) {
        self.wait_until(|oldest| oldest == IDLE);
    }

    fn wait_until(&self, reached: impl Fn(u64) -> bool) {
        sched::might_sleep();
        self.shared.dep.might_wait();
        bug_on!(self.is_worker(), "{}: a work waits for its own end", self.name);
        self.shared.done.wait_event(|| {
            let state = self.shared.state.lock();
            reached(state.oldest()) || state.panicked
        });
        bug_on!(self.shared.state.lock().panicked, "{}: a work has panicked", self.name);
    }

    /// Whether this is one of the queue's threads.
    fn is_worker(&self) -> bool {
        self.workers.iter().any(|worker| worker.task().is_current())
    }

    /// The queue's name, which is its threads' as well.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl Drop for Workqueue {
    /// Runs all that is queued, then ends the threads and waits for that; if a work drops the queue, the
    /// threads end by themselves.
    fn drop(&mut self) {
        let wait = !self.is_worker();
        if wait {
            self.shared.dep.might_wait();
        }
        self.shared.state.lock().stopping = true;
        self.shared.more.wake_up_all();
        for worker in mem::take(&mut self.workers) {
            if wait {
                worker.join();
            }
        }
    }
}

impl fmt::Debug for Workqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workqueue({})", self.name)
    }
}

/// Tells those who wait for a work that panics.
struct PanicNotice<'a>(&'a Shared);

impl Drop for PanicNotice<'_> {
    fn drop(&mut self) {
        self.0.state.lock().panicked = true;
        self.0.done.wake_up_all();
    }
}

/// What thread number `worker` of a queue does.
fn work_for(shared: &Shared, worker: usize) {
    let notice = PanicNotice(shared);
    loop {
        let mut todo = None;
        shared.more.wait_event(|| {
            let mut state = shared.state.lock();
            state.running[worker] = IDLE;
            todo = state.start(worker);
            let stop = state.stopping;
            drop(state);
            // The work before has ended.
            shared.done.wake_up_all();
            todo.is_some() || stop
        });
        match todo {
            Some(Todo { run, item }) => {
                let _work = lockdep::syscall("work");
                let _running = shared.dep.held();
                run(item);
            }
            None => break,
        }
    }
    mem::forget(notice);
}

static_assertions::assert_impl_all!(Workqueue: Send, Sync);
