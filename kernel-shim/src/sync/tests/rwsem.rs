// SPDX-License-Identifier: GPL-2.0-only
//! Tests of [`RwSemaphore`].

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::vec::Vec;
use std::{sync, thread};

use super::super::RwSemaphore;
use super::super::rwsem::{RawRwSem, RwSemWriteGuard};
use super::{Pair, THREADS, bounded, leak, until};
use crate::sched::{self, JoinHandle};

fn raw<T>(sem: &RwSemaphore<T>) -> &RawRwSem {
    // SAFETY: Only looked at.
    unsafe { sem.raw() }
}

/// A semaphore, who has had it in which order, and who may give it up.
struct Scene {
    sem: RwSemaphore<()>,
    log: sync::Mutex<Vec<&'static str>>,
    leave: [AtomicBool; 8],
    /// Threads started so far; also the next one's place in `leave`.
    started: AtomicU32,
}

impl Scene {
    fn new() -> &'static Scene {
        leak(Scene {
            sem: RwSemaphore::new(()),
            log: sync::Mutex::new(Vec::new()),
            leave: [const { AtomicBool::new(false) }; 8],
            started: AtomicU32::new(0),
        })
    }

    /// A thread that takes the lock, logs it, and keeps the lock until it may leave. Returns when it
    /// stands in the queue.
    fn queue(&'static self, name: &'static str, write: bool) -> Actor {
        let number = self.started.fetch_add(1, Ordering::Relaxed) as usize;
        let before = raw(&self.sem).nr_waiting();
        let stay = move || {
            self.log.lock().unwrap().push(name);
            until("may leave", || self.leave[number].load(Ordering::Acquire));
        };
        let thread = sched::spawn(name, move || {
            if write {
                let _held = self.sem.write();
                stay();
            } else {
                let _held = self.sem.read();
                stay();
            }
        });
        until("it queues", || raw(&self.sem).nr_waiting() == before + 1);
        Actor { scene: self, number, thread: thread.unwrap() }
    }

    /// Who has had the lock so far, once that are so many.
    fn log(&self, count: usize) -> Vec<&'static str> {
        until("they get the lock", || self.log.lock().unwrap().len() >= count);
        self.log.lock().unwrap().clone()
    }
}

/// A thread of a [`Scene`].
struct Actor {
    scene: &'static Scene,
    number: usize,
    thread: JoinHandle,
}

impl Actor {
    /// Lets it give up the lock, and waits for that.
    fn leave(self) {
        self.scene.leave[self.number].store(true, Ordering::Release);
        self.thread.join();
    }
}

#[test]
fn states() {
    let sem = RwSemaphore::new(1);
    let one = sem.read();
    let two = sem.try_read().unwrap();
    assert_eq!((*one, *two), (1, 1));
    assert!(sem.is_locked() && !sem.is_locked_exclusive());
    assert!(sem.try_write().is_none());
    drop((one, two));
    assert!(!sem.is_locked());
    let mut writer = sem.try_write().unwrap();
    *writer += 1;
    assert!(sem.is_locked() && sem.is_locked_exclusive());
    assert!(sem.try_read().is_none() && sem.try_write().is_none());
    let reader = RwSemWriteGuard::downgrade(writer);
    assert!(sem.is_locked() && !sem.is_locked_exclusive());
    assert_eq!((*sem.try_read().unwrap(), *reader), (2, 2));
    drop(reader);
    *sem.write() += 1;
    assert_eq!(sem.into_inner(), 3);
}

/// A reader that comes while a writer waits stands behind him, though the lock is held by readers.
#[test]
fn readers_do_not_overtake_a_waiting_writer() {
    bounded(|| {
        let scene = Scene::new();
        let reading = scene.sem.read();
        let writer = scene.queue("writer", true);
        assert!(raw(&scene.sem).is_contended());
        assert!(scene.sem.try_read().is_none(), "a writer waits");
        assert!(scene.sem.try_write().is_none());
        let reader = scene.queue("reader", false);
        let second = scene.queue("second writer", true);
        assert!(scene.log.lock().unwrap().is_empty());
        drop(reading);
        assert_eq!(scene.log(1), ["writer"]);
        assert!(scene.sem.is_locked_exclusive());
        assert!(scene.sem.try_read().is_none());
        writer.leave();
        assert_eq!(scene.log(2), ["writer", "reader"]);
        assert!(scene.sem.try_read().is_none(), "the second writer waits");
        reader.leave();
        assert_eq!(scene.log(3), ["writer", "reader", "second writer"]);
        second.leave();
        assert!(!scene.sem.is_locked() && !raw(&scene.sem).is_contended());
        drop(scene.sem.try_write().unwrap());
    });
}

/// Readers that stand together at the head of the queue go together; those behind the next writer wait.
#[test]
fn readers_at_the_head_go_together() {
    bounded(|| {
        let scene = Scene::new();
        let writing = scene.sem.write();
        let first = scene.queue("reader", false);
        let second = scene.queue("reader", false);
        let writer = scene.queue("writer", true);
        let last = scene.queue("last reader", false);
        drop(writing);
        // Both are in, and neither has left.
        assert_eq!(scene.log(2), ["reader", "reader"]);
        assert_eq!(raw(&scene.sem).nr_waiting(), 2);
        first.leave();
        assert!(scene.sem.try_read().is_none());
        assert_eq!(scene.log(2).len(), 2, "one reader still reads");
        second.leave();
        assert_eq!(scene.log(3), ["reader", "reader", "writer"]);
        assert_eq!(raw(&scene.sem).nr_waiting(), 1);
        writer.leave();
        assert_eq!(scene.log(4), ["reader", "reader", "writer", "last reader"]);
        last.leave();
    });
}

#[test]
fn downgrade_lets_in_the_readers_at_the_head() {
    bounded(|| {
        let scene = Scene::new();
        let writing = scene.sem.write();
        let reader = scene.queue("reader", false);
        let writer = scene.queue("writer", true);
        let reading = RwSemWriteGuard::downgrade(writing);
        assert_eq!(scene.log(1), ["reader"]);
        assert_eq!(raw(&scene.sem).nr_waiting(), 1);
        assert!(scene.sem.try_read().is_none(), "a writer waits");
        reader.leave();
        assert_eq!(scene.log(1), ["reader"], "we still read");
        drop(reading);
        assert_eq!(scene.log(2), ["reader", "writer"]);
        writer.leave();
    });
}

/// Downgrading with a writer at the head lets nobody in.
#[test]
fn downgrade_keeps_a_writer_out() {
    bounded(|| {
        let scene = Scene::new();
        let writing = scene.sem.write();
        let writer = scene.queue("writer", true);
        let reader = scene.queue("reader", false);
        let reading = RwSemWriteGuard::downgrade(writing);
        assert_eq!(raw(&scene.sem).nr_waiting(), 2);
        drop(reading);
        assert_eq!(scene.log(1), ["writer"]);
        writer.leave();
        assert_eq!(scene.log(2), ["writer", "reader"]);
        reader.leave();
    });
}

/// The last reader does not wake the writer if another one seems to be there, who turns out to have to wait
/// behind that writer: then it is him who wakes the writer.
#[test]
fn a_reader_that_was_in_the_way_wakes_the_writer() {
    bounded(|| {
        let scene = Scene::new();
        let (counted, proceed) = leak((AtomicBool::new(false), AtomicBool::new(false)));
        let reading = scene.sem.read();
        let writer = scene.queue("writer", true);
        let late = sched::spawn("late", || {
            raw(&scene.sem).lock_shared_late(|| {
                counted.store(true, Ordering::Release);
                until("the reader leaves", || proceed.load(Ordering::Acquire));
            });
            scene.log.lock().unwrap().push("late");
            // SAFETY: Locked just above.
            unsafe { scene.sem.force_unlock_read() };
        })
        .unwrap();
        until("it has counted itself", || counted.load(Ordering::Acquire));
        drop(reading);
        assert!(scene.log.lock().unwrap().is_empty());
        proceed.store(true, Ordering::Release);
        assert_eq!(scene.log(1), ["writer"]);
        writer.leave();
        late.join();
        assert_eq!(scene.log(2), ["writer", "late"]);
        drop(scene.sem.try_write().unwrap());
    });
}

/// Such a reader has the lock if the writer who was in his way has gone and nobody waits.
#[test]
fn a_reader_may_find_the_writer_gone() {
    let sem = RwSemaphore::new(());
    let writing = sem.write();
    raw(&sem).lock_shared_late(|| drop(writing));
    assert!(sem.try_write().is_none());
    drop(sem.try_read().unwrap());
    // SAFETY: Locked above.
    unsafe { sem.force_unlock_read() };
    drop(sem.try_write().unwrap());
}

/// Readers share, writers exclude, and every way in and out comes to an end.
#[test]
fn stress() {
    bounded(|| {
        const ROUNDS: u32 = 10_000;
        let (sem, start) = leak((RwSemaphore::new(Pair::default()), sync::Barrier::new(THREADS as usize)));
        // Readers inside; -1 for a writer.
        let inside = leak(AtomicI32::new(0));
        let read = |pair: &Pair| {
            assert!(inside.fetch_add(1, Ordering::Relaxed) >= 0);
            assert_eq!(pair.0, pair.1);
            thread::yield_now();
            assert!(inside.fetch_sub(1, Ordering::Relaxed) > 0);
        };
        let write = |pair: &mut Pair| {
            assert_eq!(inside.swap(-1, Ordering::Relaxed), 0);
            pair.step();
            assert_eq!(inside.swap(0, Ordering::Relaxed), -1);
        };
        let threads: Vec<_> = (0..THREADS as u32)
            .map(|me| {
                thread::spawn(move || {
                    let mut steps = 0;
                    start.wait();
                    for round in 0..ROUNDS {
                        match (round * 7 + me * 3) % 8 {
                            0..=3 => read(&sem.read()),
                            4 => {
                                if let Some(pair) = sem.try_read() {
                                    read(&pair);
                                }
                            }
                            5 => {
                                if let Some(mut pair) = sem.try_write() {
                                    write(&mut pair);
                                    steps += 1;
                                }
                            }
                            6 => {
                                let mut pair = sem.write();
                                write(&mut pair);
                                steps += 1;
                                read(&RwSemWriteGuard::downgrade(pair));
                            }
                            _ => {
                                write(&mut sem.write());
                                steps += 1;
                            }
                        }
                    }
                    steps
                })
            })
            .collect();
        let steps: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(sem.read().0, steps);
        assert!(steps >= u64::from(ROUNDS) / 4 * THREADS);
        assert!(!sem.is_locked() && !raw(sem).is_contended());
        // Nothing is left over in the word.
        drop(sem.try_write().unwrap());
    });
}
