// SPDX-License-Identifier: GPL-2.0-only
//! What each task holds, and what is done when it takes and gives up locks.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::panic::Location;
use core::sync::atomic::{AtomicU16, Ordering};

use super::graph::{self, ClassId, ClassKey};
use super::report;
use super::{Kind, Mode};
use crate::sched;

/// Locks that a task holds at once, at most: read-ahead has this many pages and a few more.
const MAX_HELD: usize = 128;
/// How many subclasses a class may have, the first included.
const SUBCLASSES: usize = 8;
/// A class that is not known yet.
const UNKNOWN: ClassId = ClassId::MAX;

/// What a lock has of lockdep.
pub(crate) struct Dep {
    kind: Kind,
    key: ClassKey,
    /// Its classes, once they are known.
    classes: [AtomicU16; SUBCLASSES],
}

/// Proof of [`Dep::check`]: the class that the lock is taken as.
#[derive(Clone, Copy)]
pub(crate) struct Checked(ClassId);

/// A lock that is held.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Which, by its address.
    dep: usize,
    pub(super) site: &'static Location<'static>,
    pub(super) class: ClassId,
    pub(super) kind: Kind,
    pub(super) mode: Mode,
    /// It was taken in interrupt context, which has nothing to do with the task.
    irq: bool,
}

/// What a task holds: part of its `Task`.
pub(crate) struct Held(UnsafeCell<Stack>);

// SAFETY: only the task that it belongs to looks into it (in `with`), and handlers that interrupt it, which `with` keeps out.
unsafe impl Sync for Held {}
// SAFETY: addresses and references to what lives for ever.
unsafe impl Send for Held {}

pub(super) struct Stack {
    len: usize,
    /// How many of them are set aside: see [`aside`].
    base: usize,
    /// The sum of the hashes of the classes that are not held in interrupt context.
    chain: u64,
    /// Of the next lock.
    subclass: u8,
    /// A report is being made.
    reporting: bool,
    held: [Option<Entry>; MAX_HELD],
}

impl Held {
    /// Nothing.
    pub(crate) const fn new() -> Held {
        Held(UnsafeCell::new(Stack {
            len: 0,
            base: 0,
            chain: 0,
            subclass: 0,
            reporting: false,
            held: [None; MAX_HELD],
        }))
    }
}

/// Calls `f` with what the running task holds. `f` neither takes locks nor panics.
#[inline]
pub(super) fn with<R>(f: impl FnOnce(&mut Stack) -> R) -> R {
    let irq = sched::irq_save();
    // SAFETY: the running task's, interrupts are off, and `f` does not come back here.
    let result = f(unsafe { &mut *sched::current().held.0.get() });
    sched::irq_restore(irq);
    result
}

fn mix(class: ClassId) -> u64 {
    (u64::from(class) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl Stack {
    /// What is held, the first first.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + Clone {
        self.held[self.base..self.len].iter().flatten()
    }

    /// The same, of this context only.
    fn here(&self, irq: bool) -> impl DoubleEndedIterator<Item = &Entry> + Clone {
        self.entries().filter(move |entry| entry.irq == irq)
    }

    fn sum(&self, irq: bool) -> u64 {
        match irq {
            false => self.chain,
            true => self.here(true).fold(0, |sum, entry| sum.wrapping_add(mix(entry.class))),
        }
    }

    /// `false` if there is no more room.
    #[inline]
    fn push(&mut self, entry: Entry) -> bool {
        let Some(place) = self.held.get_mut(self.len) else { return false };
        *place = Some(entry);
        self.len += 1;
        if !entry.irq {
            self.chain = self.chain.wrapping_add(mix(entry.class));
        }
        true
    }

    /// Whether it was held.
    #[inline]
    fn remove(&mut self, dep: usize) -> bool {
        let is_it = |entry: &Option<Entry>| entry.is_some_and(|entry| entry.dep == dep);
        let Some(at) = self.held[..self.len].iter().rposition(is_it) else { return false };
        if let Some(entry) = self.held[at]
            && !entry.irq
        {
            self.chain = self.chain.wrapping_sub(mix(entry.class));
        }
        self.held.copy_within(at + 1..self.len, at);
        self.len -= 1;
        true
    }

    pub(super) fn set_reporting(&mut self, reporting: bool) {
        self.reporting = reporting;
    }

    pub(super) fn is_reporting(&self) -> bool {
        self.reporting
    }
}

/// What [`Dep::check`] finds at first sight.
enum Look {
    Fine,
    Twice(Entry),
    New,
}

impl Dep {
    /// For a lock of this kind that protects a `ty`.
    #[track_caller]
    pub(crate) const fn new(kind: Kind, name: Option<&'static str>, ty: fn() -> &'static str) -> Dep {
        let key = ClassKey { kind, name, ty, site: Location::caller(), subclass: 0 };
        Dep { kind, key, classes: [const { AtomicU16::new(UNKNOWN) }; SUBCLASSES] }
    }

    fn addr(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    #[inline]
    fn class(&self, subclass: u8) -> ClassId {
        let cache = &self.classes[subclass as usize % SUBCLASSES];
        match cache.load(Ordering::Relaxed) {
            UNKNOWN => self.find_class(subclass),
            class => class,
        }
    }

    #[cold]
    fn find_class(&self, subclass: u8) -> ClassId {
        let class = graph::class_of(&ClassKey { subclass, ..self.key });
        self.classes[subclass as usize % SUBCLASSES].store(class, Ordering::Relaxed);
        class
    }

    /// Before the lock is taken in a way that may wait: whether that is in order.
    #[inline]
    #[track_caller]
    pub(crate) fn check(&self, mode: Mode) -> Checked {
        if self.kind == Kind::Untracked || graph::is_full() {
            return Checked(0);
        }
        let class = self.class(with(|stack| core::mem::take(&mut stack.subclass)));
        let irq = sched::in_interrupt();
        let (key, look) = with(|stack| {
            if stack.len == stack.base || stack.reporting {
                return (0, Look::Fine);
            }
            // A map is no one thing: what its address is means nothing.
            if let Some(entry) = stack.here(irq).rfind(|entry| entry.dep == self.addr()) {
                return (0, Look::Twice(*entry));
            }
            let key = (stack.sum(irq) ^ u64::from(irq)).wrapping_add(mix(class).rotate_left(17)) | 1;
            (key, if graph::is_known(key) { Look::Fine } else { Look::New })
        });
        match look {
            Look::Fine => {}
            Look::Twice(entry) => report::twice(&self.key, entry, mode, Location::caller()),
            Look::New => self.check_new(class, irq, key, mode, Location::caller()),
        }
        Checked(class)
    }

    #[cold]
    fn check_new(&self, class: ClassId, irq: bool, key: u64, mode: Mode, site: &'static Location<'static>) {
        let task = sched::current().name();
        let (same, bad) = with(|stack| {
            let same = stack.here(irq).rfind(|entry| entry.class == class).copied();
            let held = stack.here(irq).map(|entry| (entry.class, entry.site));
            (same, if same.is_none() { graph::take_under(held, class, site, task) } else { None })
        });
        match (same, bad) {
            (Some(entry), _) => report::same_class(&self.key, entry, mode, site),
            (None, Some((from, path))) => report::inversion(class, mode, site, from, &path),
            (None, None) => graph::remember(key),
        }
    }

    /// The lock was taken.
    #[inline]
    #[track_caller]
    pub(crate) fn hold(&self, mode: Mode, checked: Checked) {
        if self.kind == Kind::Untracked || graph::is_full() {
            return;
        }
        let entry = Entry {
            dep: self.addr(),
            site: Location::caller(),
            class: checked.0,
            kind: self.kind,
            mode,
            irq: sched::in_interrupt(),
        };
        if !with(|stack| stack.push(entry)) {
            report::too_many(&self.key);
        }
    }

    /// The lock was taken by one that would not have waited, so the order does not matter.
    #[inline]
    #[track_caller]
    pub(crate) fn hold_tried(&self, mode: Mode) {
        if self.kind != Kind::Untracked {
            self.hold(mode, Checked(self.class(0)));
        }
    }

    /// The lock was taken for writing and is held for reading from now on.
    pub(crate) fn downgrade(&self) {
        let dep = self.addr();
        with(|stack| {
            let len = stack.len;
            if let Some(entry) = stack.held[..len].iter_mut().flatten().rfind(|entry| entry.dep == dep) {
                entry.mode = Mode::Read;
            }
        });
    }

    /// [`Dep::hold_tried`] for reading, until the guard goes.
    #[track_caller]
    pub(crate) fn held(&self) -> HeldDep<'_> {
        self.hold_tried(Mode::Read);
        HeldDep { dep: self, _not_send: PhantomData }
    }

    /// Waits until nobody holds it, or may do so.
    #[inline]
    #[track_caller]
    pub(crate) fn might_wait(&self) {
        self.check(Mode::Write);
    }

    /// Before the lock is given up.
    #[inline]
    pub(crate) fn release(&self) {
        if self.kind != Kind::Untracked && !with(|stack| stack.remove(self.addr())) && !graph::is_full() {
            report::not_held(&self.key);
        }
    }
}

impl Drop for Dep {
    /// A lock that goes away must be free. What other tasks hold is not looked at.
    #[inline]
    fn drop(&mut self) {
        // Of one that was never taken nobody knows.
        if self.classes[0].load(Ordering::Relaxed) != UNKNOWN && with(|stack| stack.remove(self.addr())) {
            report::freed(&self.key);
        }
    }
}

/// A [`Dep`] is held while this lives.
pub(crate) struct HeldDep<'a> {
    dep: &'a Dep,
    /// It is the task's that has it.
    _not_send: PhantomData<*mut ()>,
}

impl Drop for HeldDep<'_> {
    fn drop(&mut self) {
        self.dep.release();
    }
}

/// Something that is waited for like a lock. Who can end the wait holds it, who waits takes it.
pub struct LockMap(Dep);

impl LockMap {
    /// One of that name.
    #[track_caller]
    pub const fn new(name: &'static str) -> LockMap {
        LockMap(Dep::new(Kind::Map, Some(name), || "()"))
    }

    /// This task can end the wait of others, until the guard goes.
    #[track_caller]
    pub fn hold(&'static self) -> HeldMap {
        self.0.hold_tried(Mode::Read);
        HeldMap { map: self, _not_send: PhantomData }
    }

    /// This task may be about to wait for those who hold it.
    #[track_caller]
    pub fn might_wait(&'static self) {
        self.0.might_wait();
    }
}

/// A [`LockMap`] is held while this lives.
#[must_use = "held only as long as it lives"]
pub struct HeldMap {
    map: &'static LockMap,
    /// It is the task's that has it.
    _not_send: PhantomData<*mut ()>,
}

impl Drop for HeldMap {
    fn drop(&mut self) {
        self.map.0.release();
    }
}

impl core::fmt::Debug for HeldMap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "HeldMap({})", self.map.0.key)
    }
}

/// A system call; see [`syscall`].
#[must_use = "the call is over when this goes"]
#[derive(Debug)]
pub struct Syscall {
    name: &'static str,
    held: usize,
    _not_send: PhantomData<*mut ()>,
}

/// A system call begins: when the guard goes, the task must hold what it holds now.
#[doc(alias = "lockdep_sys_exit")]
pub fn syscall(name: &'static str) -> Syscall {
    Syscall { name, held: with(|stack| stack.len), _not_send: PhantomData }
}

impl Drop for Syscall {
    fn drop(&mut self) {
        if with(|stack| stack.len) > self.held {
            report::held_at("end of", self.name, self.held);
        }
    }
}

/// The next lock that this task takes is of class `n` of its name, below `SUBCLASSES`: for several of one kind in an order that is known.
#[doc(alias = "mutex_lock_nested")]
pub fn subclass(n: u8) {
    with(|stack| stack.subclass = n);
}

/// Whether the task may sleep here.
#[track_caller]
#[inline]
pub(crate) fn might_sleep() {
    let irq = sched::in_interrupt();
    let spin =
        with(|stack| if stack.reporting { None } else { stack.here(irq).rfind(|e| e.kind == Kind::Spin).copied() });
    if irq {
        report::sleeping("in interrupt context", None);
    } else if let Some(spin) = spin {
        report::sleeping("under a spinlock", Some(spin));
    }
}

/// A task is about to be used by a thread: whatever another has left in it is not its own.
#[cfg(feature = "host")]
pub(crate) fn start_of(task: &sched::Task) {
    // SAFETY: no thread has it.
    let stack = unsafe { &mut *task.held.0.get() };
    (stack.len, stack.base, stack.chain, stack.subclass, stack.reporting) = (0, 0, 0, 0, false);
}

/// Calls `f`, which is no part of what the task does: for it nothing is held. A test's look at the world in the middle of an
/// operation, or another operation that it has come in between.
#[cfg(feature = "host")]
pub(crate) fn aside(f: impl FnOnce()) {
    /// What was held comes back, also if `f` panics.
    struct Back(usize, u64, u8);
    impl Drop for Back {
        fn drop(&mut self) {
            with(|stack| (stack.base, stack.chain, stack.subclass) = (self.0, self.1, self.2));
        }
    }
    let _back = with(|stack| {
        let back = Back(stack.base, stack.chain, stack.subclass);
        (stack.base, stack.chain, stack.subclass) = (stack.len, 0, 0);
        back
    });
    f();
}

/// The running thread ends: it must hold nothing.
pub(crate) fn end_of_thread() {
    if with(|stack| stack.len) > 0 {
        report::held_at("end of thread", sched::current().name(), 0);
    }
}

/// For a report: forgets what is held beyond the first `len`, so that it is reported once.
pub(super) fn forget_from(len: usize) {
    with(|stack| {
        while stack.len > len {
            let dep = stack.held[stack.len - 1].map_or(0, |entry| entry.dep);
            if !stack.remove(dep) {
                break;
            }
        }
    });
}
