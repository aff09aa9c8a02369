// SPDX-License-Identifier: GPL-2.0-only
//! As much of `kernel-shim`'s `sched` as its primitives need, over loom's threads.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

/// As `kernel-shim`'s. What matters of it is its address.
#[derive(Debug)]
#[repr(align(64))]
pub struct Task {
    id: usize,
}

/// Threads of a model.
const MAX_TASKS: usize = 5;
static TASKS: [Task; MAX_TASKS] = [Task { id: 0 }, Task { id: 1 }, Task { id: 2 }, Task { id: 3 }, Task { id: 4 }];

/// What a task sleeps on: an unpark that comes first is kept. Loom's own park forgets one that comes while the thread waits for a mutex.
struct Token {
    set: Mutex<bool>,
    wake: Condvar,
}

std::thread_local! {
    /// The tokens of the model that this thread runs, by task.
    static TOKENS: RefCell<Vec<Arc<Token>>> = const { RefCell::new(Vec::new()) };
}

loom::thread_local! {
    static CURRENT: Cell<Option<&'static Task>> = Cell::new(None);
}

/// A model begins anew: nothing of the last one may be left when loom ends it.
pub struct Tasks(());

impl Tasks {
    /// With this thread as the first.
    pub fn start() -> Tasks {
        TOKENS.with_borrow_mut(Vec::clear);
        current();
        Tasks(())
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let tokens = TOKENS.take();
        drop(tokens);
    }
}

pub fn current() -> &'static Task {
    CURRENT.with(|current| {
        if let Some(task) = current.get() {
            return task;
        }
        let token = Arc::new(Token { set: Mutex::new(false), wake: Condvar::new() });
        let task = TOKENS.with_borrow_mut(|tokens| {
            tokens.push(token);
            &TASKS[tokens.len() - 1]
        });
        current.set(Some(task));
        task
    })
}

fn token(task: &Task) -> Arc<Token> {
    TOKENS.with_borrow(|tokens| tokens[task.id].clone())
}

/// Its CPU: each has its own.
pub fn cpu_id() -> u32 {
    current().id as u32
}

/// One, so that nobody spins for a mutex.
pub fn nr_cpus() -> u32 {
    1
}

pub fn schedule() {
    let token = token(current());
    let mut set = token.set.lock().expect("no model goes on after a panic");
    while !*set {
        set = token.wake.wait(set).expect("no model goes on after a panic");
    }
    *set = false;
}

/// Time stands still.
pub fn schedule_until(_deadline_ns: u64) {
    schedule();
}

pub fn yield_now() {
    loom::thread::yield_now();
}

pub fn now_ns() -> u64 {
    0
}

pub fn unpark(task: &'static Task) {
    let token = token(task);
    *token.set.lock().expect("no model goes on after a panic") = true;
    token.wake.notify_one();
}

/// As `kernel-shim`'s: loom needs no telling.
pub enum Point {
    Spin,
    Lock,
    LockShared,
    Unlock,
    UnlockShared,
    TryLock,
    TryLockShared,
    Pool,
    Wait,
}

/// As `kernel-shim`'s.
pub enum Touch {
    Add,
}

pub fn sched_point(_point: Point, _object: *const ()) {}
pub fn sched_wait<T>(_point: Point, _object: &T, _free: impl Fn(&T) -> bool) -> bool {
    false
}
pub fn sched_touch(_object: *const (), _touch: Touch) {}
pub fn sched_reused(_at: *const (), _bytes: usize) {}
pub fn sched_access(_object: *const (), _write: bool) {}
pub fn flush_plug() {}
pub fn might_sleep() {}
pub fn spin_relax() {}
pub fn spin_acquired() {}
pub fn spin_released() {}

#[derive(Clone, Copy)]
pub struct IrqFlags;

pub fn irq_save() -> IrqFlags {
    IrqFlags
}

pub fn irq_restore(_flags: IrqFlags) {}
