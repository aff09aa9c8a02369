// SPDX-License-Identifier: GPL-2.0-only
//! A map that many threads use at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A power of two.
const SHARDS: usize = 32;

/// A map from numbers to `V`, in parts with a lock each. Nothing but the map is touched under a lock: what is dropped is
/// dropped by the caller.
#[derive(Debug)]
pub struct Sharded<V> {
    shards: [Mutex<HashMap<u64, V>>; SHARDS],
}

impl<V> Default for Sharded<V> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl<V> Sharded<V> {
    /// The part that `key` is in, locked.
    pub fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, V>> {
        // What panicked under the lock left the map whole: every change of it is one call.
        self.shards[key as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what `key` leads to.
    pub fn get(&self, key: u64) -> Option<V>
    where
        V: Clone,
    {
        self.shard(key).get(&key).cloned()
    }

    /// Takes out everything.
    pub fn drain(&self) -> Vec<V> {
        let parts = (0..SHARDS as u64).map(|key| std::mem::take(&mut *self.shard(key)));
        parts.flat_map(HashMap::into_values).collect()
    }
}
