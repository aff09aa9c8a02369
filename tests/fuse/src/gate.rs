// SPDX-License-Identifier: GPL-2.0-only
//! Requests under way: how many, and the end of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use kernel_shim::error::{Result, code::EIO};

/// What is added to the count when the gate is shut.
const SHUT: usize = 1 << (usize::BITS - 1);

/// Counts requests of one kind, or lets none in any more.
#[derive(Debug, Default)]
pub struct Gate {
    /// How many are inside, and [`SHUT`].
    inside: AtomicUsize,
    most: AtomicUsize,
    entered: AtomicU64,
    lock: Mutex<()>,
    left: Condvar,
}

/// A request that is under way, as long as it lives.
#[derive(Debug)]
pub struct Inside<'a>(&'a Gate);

impl Gate {
    /// Enters. EIO when the gate is shut.
    pub fn enter(&self) -> Result<Inside<'_>> {
        let before = self.inside.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(self);
        if before & SHUT != 0 {
            return Err(EIO);
        }
        self.entered.fetch_add(1, Ordering::AcqRel);
        self.most.fetch_max(before + 1, Ordering::Relaxed);
        Ok(inside)
    }

    /// The most that were inside at one time.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// How many are inside now, and how many have come in since the beginning.
    pub fn counts(&self) -> (usize, u64) {
        (self.inside.load(Ordering::Acquire) & !SHUT, self.entered.load(Ordering::Acquire))
    }

    /// Lets nobody in any more, and returns when all have left.
    pub fn shut(&self) {
        self.inside.fetch_or(SHUT, Ordering::AcqRel);
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.inside.load(Ordering::Acquire) != SHUT {
            lock = self.left.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.0.inside.fetch_sub(1, Ordering::AcqRel) == SHUT + 1 {
            // Whoever waits has the lock until it sleeps, so it misses nothing.
            drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.0.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutting_waits_for_those_inside() {
        let gate = Gate::default();
        let (first, second) = (gate.enter(), gate.enter());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!((gate.most(), gate.counts()), (2, (2, 2)));
        std::thread::scope(|scope| {
            let shut = scope.spawn(|| gate.shut());
            while gate.enter().is_ok() {
                std::thread::yield_now();
            }
            assert!(!shut.is_finished());
            drop((first, second));
            shut.join().expect("shutting");
        });
        assert_eq!(gate.enter().map(drop), Err(EIO));
    }
}
