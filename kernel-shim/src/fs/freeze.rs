// SPDX-License-Identifier: GPL-2.0-only
//! `sb_start_write` and `freeze_super`: a gate that writers go through, and that can be shut.

use crate::percpu::{CacheAligned, PerCpu};
use crate::sync::WaitQueue;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::lockdep::{Dep, Kind, Mode};

/// Counts those who are inside, one counter to a CPU, and can be shut: then nobody gets in, and who shuts it waits until those
/// inside have left. (`struct percpu_rw_semaphore` in `s_writers`.)
///
/// Going in and out costs an atomic addition each, on a cache line of the CPU's own, and a look at a flag.
pub struct FreezeGate {
    /// How many are inside that came in by this counter. They leave by the same one, wherever they run by then: so none of the
    /// counters is ever too low, and all of them at 0 means that nobody is inside.
    inside: PerCpu<AtomicU32>,
    shut: AtomicBool,
    /// Those who wait to get in, and the one who waits for all to have left.
    wait: WaitQueue,
    /// Being inside is like having a lock for reading.
    dep: Dep,
}

/// Somebody is inside a [`FreezeGate`] as long as this lives.
#[must_use = "the access ends at once when unused"]
pub struct WriteAccess<'a> {
    gate: &'a FreezeGate,
    counter: &'a AtomicU32,
}

impl FreezeGate {
    /// Open. [lockdep](crate::sync::lockdep) knows it by `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            inside: PerCpu::new([const { CacheAligned(AtomicU32::new(0)) }; crate::percpu::COPIES]),
            shut: AtomicBool::new(false),
            wait: WaitQueue::new(),
            dep: Dep::new(Kind::Map, Some(name), || "()"),
        }
    }

    /// Goes in, unless it is shut. Does not sleep; any context.
    #[doc(alias = "sb_start_write_trylock")]
    #[inline(always)]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn try_enter(&self) -> Option<WriteAccess<'_>> {
        self.dep.hold_tried(Mode::Read);
        let counter = self.inside.this();
        // Counted, then looked; who shuts it has it the other way round. So one of the two sees the other.
        counter.fetch_add(1, Ordering::SeqCst);
        let access = WriteAccess { gate: self, counter };
        // Dropped again by the way out if it is shut.
        if self.shut.load(Ordering::SeqCst) { None } else { Some(access) }
    }

    /// Goes in; sleeps while it is shut.
    #[doc(alias = "sb_start_write")]
    #[inline(always)]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    pub fn enter(&self) -> WriteAccess<'_> {
        self.dep.might_wait();
        match self.try_enter() {
            Some(access) => access,
            None => self.enter_slow(),
        }
    }

    #[cold]
    #[cfg_attr(all(feature = "lockdep", debug_assertions), track_caller)]
    fn enter_slow(&self) -> WriteAccess<'_> {
        loop {
            self.wait.wait_event(|| !self.is_shut());
            if let Some(access) = self.try_enter() {
                return access;
            }
        }
    }

    /// Whether it is shut. A value that was true at some moment.
    #[inline]
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    /// Shuts it, and sleeps until nobody is inside. One shuts it at a time.
    #[doc(alias = "sb_wait_write")]
    pub fn shut(&self) {
        self.dep.might_wait();
        self.shut.store(true, Ordering::SeqCst);
        self.wait.wait_event(|| self.inside.iter().all(|counter| counter.load(Ordering::SeqCst) == 0));
    }

    /// Lets in who waits, and everybody from now on.
    pub fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
        self.wait.wake_up_all();
    }
}

impl Drop for WriteAccess<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.gate.dep.release();
        self.counter.fetch_sub(1, Ordering::SeqCst);
        if self.gate.shut.load(Ordering::SeqCst) {
            self.gate.wait.wake_up_all();
        }
    }
}

impl core::fmt::Debug for WriteAccess<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("WriteAccess")
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool as Flag;
    use std::thread;

    #[test]
    fn shutting_waits_for_those_inside_and_keeps_others_out() {
        let gate = FreezeGate::new("test");
        let access = gate.try_enter().expect("it is open");
        let (shut, left) = (Flag::new(false), Flag::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.shut();
                assert!(left.load(Ordering::SeqCst), "somebody was still inside");
                shut.store(true, Ordering::SeqCst);
            });
            while !gate.is_shut() {
                thread::yield_now();
            }
            assert!(gate.try_enter().is_none());
            left.store(true, Ordering::SeqCst);
            drop(access);
        });
        assert!(shut.load(Ordering::SeqCst) && gate.try_enter().is_none());
        thread::scope(|scope| {
            let inside = scope.spawn(|| drop(gate.enter()));
            gate.open();
            inside.join().expect("it got in");
        });
    }

    #[test]
    fn nobody_is_inside_once_it_is_shut() {
        let gate = FreezeGate::new("test");
        let busy = AtomicU32::new(0);
        let stop = Flag::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let access = gate.enter();
                        busy.fetch_add(1, Ordering::SeqCst);
                        busy.fetch_sub(1, Ordering::SeqCst);
                        drop(access);
                    }
                });
            }
            for _ in 0..200 {
                gate.shut();
                for _ in 0..50 {
                    assert_eq!(busy.load(Ordering::SeqCst), 0);
                }
                gate.open();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
