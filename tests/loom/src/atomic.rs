// SPDX-License-Identifier: GPL-2.0-only
//! Loom's atomics and cells, as `kernel-shim/src/sync/atomic.rs` has the language's.
//!
//! Integers can be made at compile time, as the locks' `new` needs it: loom hears of one with its first use, which has to
//! happen before all others. So a model uses what it has made once before it starts threads.
//!
//! With `EXT4_DIO_WEAKEN` in the environment, orderings are weaker than what was asked for: `release`, `acquire` or `seqcst`.

use std::cell::UnsafeCell as StdUnsafeCell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use loom::sync::atomic as imp;

pub use loom::cell::Cell;
pub use std::sync::atomic::Ordering;

use Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

/// Enough for the threads of a model to have their own, and to find others'.
pub const COPIES: usize = 2;

/// The environment variable, and what it can be.
pub const WEAKEN_VAR: &str = "EXT4_DIO_WEAKEN";

/// What is taken out of all orderings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weaken {
    Nothing,
    Release,
    Acquire,
    SeqCst,
}

pub fn weaken() -> Weaken {
    static WEAKEN: OnceLock<Weaken> = OnceLock::new();
    *WEAKEN.get_or_init(|| match std::env::var(WEAKEN_VAR).as_deref() {
        Err(_) => Weaken::Nothing,
        Ok("release") => Weaken::Release,
        Ok("acquire") => Weaken::Acquire,
        Ok("seqcst") => Weaken::SeqCst,
        Ok(other) => panic!("{WEAKEN_VAR}={other}"),
    })
}

/// What is left of an ordering. [`SeqCst`] is the fences around the access, if anything.
fn left(order: Ordering) -> Ordering {
    match (order, weaken()) {
        (Release, Weaken::Release) | (Acquire, Weaken::Acquire) => Relaxed,
        (AcqRel | SeqCst, Weaken::Release) => Acquire,
        (AcqRel | SeqCst, Weaken::Acquire) => Release,
        (SeqCst, _) => AcqRel,
        (order, _) => order,
    }
}

fn load_order(order: Ordering) -> Ordering {
    match left(order) {
        AcqRel => Acquire,
        Release => Relaxed,
        order => order,
    }
}

fn store_order(order: Ordering) -> Ordering {
    match left(order) {
        AcqRel => Release,
        Acquire => Relaxed,
        order => order,
    }
}

/// An access, sequentially consistent if `order` says so.
fn access<R>(order: Ordering, f: impl FnOnce() -> R) -> R {
    let fenced = order == SeqCst && weaken() != Weaken::SeqCst;
    if fenced {
        imp::fence(SeqCst);
    }
    let result = f();
    if fenced {
        imp::fence(SeqCst);
    }
    result
}

/// As the language's.
pub fn fence(order: Ordering) {
    match (order, weaken()) {
        (SeqCst, weaken) if weaken != Weaken::SeqCst => imp::fence(SeqCst),
        (order, _) if left(order) != Relaxed => imp::fence(left(order)),
        _ => {}
    }
}

std::thread_local! {
    /// Exchanges so far in the models that this thread runs.
    pub static EXCHANGES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

macro_rules! atomic_int {
    ($name:ident, $int:ty) => {
        /// As the language's.
        #[derive(Default)]
        pub struct $name {
            start: $int,
            seen: OnceLock<imp::$name>,
        }

        impl $name {
            pub const fn new(start: $int) -> $name {
                $name { start, seen: OnceLock::new() }
            }

            fn get(&self) -> &imp::$name {
                self.seen.get_or_init(|| imp::$name::new(self.start))
            }

            pub fn load(&self, order: Ordering) -> $int {
                access(order, || self.get().load(load_order(order)))
            }

            pub fn store(&self, value: $int, order: Ordering) {
                access(order, || self.get().store(value, store_order(order)));
            }

            pub fn swap(&self, value: $int, order: Ordering) -> $int {
                EXCHANGES.set(EXCHANGES.get() + 1);
                access(order, || self.get().swap(value, left(order)))
            }

            pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                access(order, || self.get().fetch_add(value, left(order)))
            }

            pub fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                access(order, || self.get().fetch_sub(value, left(order)))
            }

            pub fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                access(order, || self.get().fetch_or(value, left(order)))
            }

            pub fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                access(order, || self.get().fetch_and(value, left(order)))
            }

            pub fn compare_exchange(
                &self,
                old: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                access(success, || self.get().compare_exchange(old, new, left(success), load_order(failure)))
            }

            /// Does not fail for no reason: the model would have no end.
            pub fn compare_exchange_weak(
                &self,
                old: $int,
                new: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                self.compare_exchange(old, new, success, failure)
            }
        }

        impl Drop for $name {
            /// Nobody else uses it any more: loom hears of that.
            fn drop(&mut self) {
                if let Some(mut seen) = self.seen.take().filter(|_| !std::thread::panicking()) {
                    seen.with_mut(|_| ());
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

atomic_int!(AtomicU32, u32);
atomic_int!(AtomicUsize, usize);

/// As the language's, but not to be made at compile time: loom hears of it at once.
#[derive(Debug)]
pub struct AtomicBool(imp::AtomicBool);

impl Drop for AtomicBool {
    /// As of an integer.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: nobody else uses it, which loom checks.
            unsafe { self.0.unsync_load() };
        }
    }
}

impl AtomicBool {
    pub fn new(value: bool) -> AtomicBool {
        AtomicBool(imp::AtomicBool::new(value))
    }

    pub fn load(&self, order: Ordering) -> bool {
        access(order, || self.0.load(load_order(order)))
    }

    pub fn store(&self, value: bool, order: Ordering) {
        access(order, || self.0.store(value, store_order(order)));
    }
}

/// As the language's. Loom takes each call of [`get`](UnsafeCell::get) for a write at that moment.
pub struct UnsafeCell<T: ?Sized> {
    seen: OnceLock<loom::cell::UnsafeCell<()>>,
    value: StdUnsafeCell<T>,
}

impl<T> UnsafeCell<T> {
    pub const fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell { seen: OnceLock::new(), value: StdUnsafeCell::new(value) }
    }

    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: both are moved out, once; the rest is not looked at again.
        let (seen, value) = unsafe { (std::ptr::read(&raw const this.seen), std::ptr::read(&raw const this.value)) };
        drop(seen);
        value.into_inner()
    }
}

impl<T: ?Sized> UnsafeCell<T> {
    pub fn get(&self) -> *mut T {
        self.seen.get_or_init(|| loom::cell::UnsafeCell::new(())).with_mut(|_| self.value.get())
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: ?Sized> Drop for UnsafeCell<T> {
    /// As of an integer.
    fn drop(&mut self) {
        if let Some(seen) = self.seen.take().filter(|_| !std::thread::panicking()) {
            seen.with_mut(|_| ());
        }
    }
}

/// How the spinning lock passes the time: nothing to do here.
pub trait RelaxStrategy {
    fn relax();
}

/// As the `spin` crate's, with loom's mutex inside: what a spinning one goes through is no business of these models.
pub struct SpinMutex<T, R> {
    seen: OnceLock<loom::sync::Mutex<()>>,
    /// While it is locked.
    guard: StdUnsafeCell<Option<loom::sync::MutexGuard<'static, ()>>>,
    _value: PhantomData<(T, R)>,
}

/// In the guard's place, which nobody keeps here.
pub struct Forgotten(());

impl Drop for Forgotten {
    fn drop(&mut self) {
        unreachable!("spinlocks forget it");
    }
}

// SAFETY: `guard` is used by who has the mutex.
unsafe impl<T, R> Sync for SpinMutex<T, R> {}
// SAFETY: all models of a process run in the threads that they were started in.
unsafe impl<T, R> Send for SpinMutex<T, R> {}

impl<T, R> SpinMutex<T, R> {
    pub const fn new(_value: T) -> SpinMutex<T, R>
    where
        T: Copy,
    {
        SpinMutex { seen: OnceLock::new(), guard: StdUnsafeCell::new(None), _value: PhantomData }
    }

    fn mutex(&self) -> &'static loom::sync::Mutex<()> {
        let mutex = self.seen.get_or_init(|| loom::sync::Mutex::new(()));
        // SAFETY: the guard is dropped before the mutex: in `force_unlock`.
        unsafe { &*std::ptr::from_ref(mutex) }
    }

    fn keep(&self, guard: loom::sync::MutexGuard<'static, ()>) {
        // SAFETY: the lock is ours.
        unsafe { *self.guard.get() = Some(guard) };
    }

    pub fn lock(&self) -> Forgotten {
        self.keep(self.mutex().lock().expect("no model goes on after a panic"));
        Forgotten(())
    }

    pub fn try_lock(&self) -> Option<Forgotten> {
        self.mutex().try_lock().ok().map(|guard| {
            self.keep(guard);
            Forgotten(())
        })
    }

    pub fn is_locked(&self) -> bool {
        self.mutex().try_lock().is_err()
    }

    /// # Safety
    ///
    /// The caller has it locked, and forgotten.
    pub unsafe fn force_unlock(&self) {
        // SAFETY: the lock is the caller's.
        let guard = unsafe { (*self.guard.get()).take() };
        drop(guard);
    }
}
