// SPDX-License-Identifier: GPL-2.0-only
//! Classes of locks, in which order they were taken, and which chains are known to be right.

use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::mutex::SpinMutex;
use spin::relax::RelaxStrategy;

use super::Kind;
use crate::sched;

/// Classes at most; one more, and lockdep gives up.
const MAX_CLASSES: usize = 512;
/// Edges at most.
const MAX_EDGES: usize = 4096;
const WORDS: usize = MAX_CLASSES / 64;
/// Slots of the table that classes are found by.
const CLASS_SLOTS: usize = 2 * MAX_CLASSES;
/// Slots for chains, and how many of them are looked at for one.
const CHAINS: usize = 1 << 14;
const PROBES: usize = 4;

/// A class's number.
pub(super) type ClassId = u16;

/// What makes locks one class.
#[derive(Clone, Copy)]
pub(super) struct ClassKey {
    /// What it is: a derived `Default` makes all its locks at one place.
    pub(super) kind: Kind,
    /// Its name, which then is all that counts beside the subclass.
    pub(super) name: Option<&'static str>,
    /// The type of what the lock protects.
    pub(super) ty: fn() -> &'static str,
    /// Where it was made.
    pub(super) site: &'static Location<'static>,
    /// Which of several of one name, in the order they are taken in.
    pub(super) subclass: u8,
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

impl ClassKey {
    fn hash(&self) -> usize {
        let hash = match self.name {
            Some(name) => fnv(u64::from(self.subclass), name.as_bytes()),
            None => {
                let place = u64::from(self.site.line()) << 16 ^ u64::from(self.site.column());
                fnv(place ^ u64::from(self.subclass) << 40, (self.ty)().as_bytes())
            }
        };
        (hash ^ hash >> 29) as usize
    }

    fn same(&self, other: &ClassKey) -> bool {
        let what = match (self.name, other.name) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.kind == other.kind && self.site == other.site && (self.ty)() == (other.ty)(),
            _ => false,
        };
        what && self.subclass == other.subclass
    }
}

impl fmt::Display for ClassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name, (self.ty)()) {
            (Some(name), _) => f.write_str(name)?,
            (None, "()") => write!(f, "{}:{}", self.site.file(), self.site.line())?,
            (None, ty) => write!(f, "<{}>", ty.get(..80).unwrap_or(ty))?,
        }
        if self.subclass != 0 { write!(f, "/{}", self.subclass) } else { Ok(()) }
    }
}

/// The second was taken under the first.
#[derive(Clone, Copy)]
pub(super) struct Edge {
    pub(super) from: ClassId,
    pub(super) to: ClassId,
    /// Where, and by whom; `None` for one that was declared.
    pub(super) seen: Option<Seen>,
}

/// The first time that an edge came up.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) from_site: &'static Location<'static>,
    pub(super) to_site: &'static Location<'static>,
    pub(super) task: &'static str,
}

pub(super) struct Graph {
    classes: [Option<ClassKey>; MAX_CLASSES],
    nr_classes: usize,
    /// Numbers of classes plus 1, by their hash.
    slots: [u16; CLASS_SLOTS],
    /// Bit `to` of row `from`.
    after: [[u64; WORDS]; MAX_CLASSES],
    edges: [Option<Edge>; MAX_EDGES],
    nr_edges: usize,
}

/// Between two looks at the graph's lock. Not the scheduler's business.
pub(super) struct Relax;

impl RelaxStrategy for Relax {
    fn relax() {
        #[cfg(feature = "host")]
        std::thread::yield_now();
        core::hint::spin_loop();
    }
}

static GRAPH: SpinMutex<Graph, Relax> = SpinMutex::new(Graph {
    classes: [None; MAX_CLASSES],
    nr_classes: 0,
    slots: [0; CLASS_SLOTS],
    after: [[0; WORDS]; MAX_CLASSES],
    edges: [None; MAX_EDGES],
    nr_edges: 0,
});

/// There was no more room: nothing is checked from then on.
static FULL: AtomicBool = AtomicBool::new(false);

/// Hashes of the chains that were found to be right, 0 for none. One that finds no place is checked anew each time.
static KNOWN: [AtomicU64; CHAINS] = [const { AtomicU64::new(0) }; CHAINS];

/// Calls `f` with the graph locked, and interrupts off. `f` takes no locks and does not panic.
pub(super) fn with<R>(f: impl FnOnce(&mut Graph) -> R) -> R {
    let irq = sched::irq_save();
    let result = f(&mut GRAPH.lock());
    sched::irq_restore(irq);
    result
}

/// Whether lockdep has given up.
pub(super) fn is_full() -> bool {
    FULL.load(Ordering::Relaxed)
}

fn full(what: &str) {
    if !FULL.swap(true, Ordering::Relaxed) {
        crate::pr_err!("lockdep: too many {what}: turned off");
    }
}

fn slots_of(key: u64) -> impl Iterator<Item = &'static AtomicU64> {
    let first = (key ^ key >> 31) as usize;
    (0..PROBES).map(move |n| &KNOWN[(first + n) % CHAINS])
}

/// Whether a chain was found to be right before. `key` is not 0.
#[inline]
pub(super) fn is_known(key: u64) -> bool {
    slots_of(key).any(|slot| slot.load(Ordering::Relaxed) == key)
}

/// Remembers that a chain is right.
pub(super) fn remember(key: u64) {
    for slot in slots_of(key) {
        if slot.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            break;
        }
    }
}

/// The number of a class, new or old.
pub(super) fn class_of(key: &ClassKey) -> ClassId {
    let hash = key.hash();
    let found = with(|graph| graph.class(key, hash));
    found.unwrap_or_else(|| {
        full("classes of locks");
        0
    })
}

impl Graph {
    fn class(&mut self, key: &ClassKey, hash: usize) -> Option<ClassId> {
        let mut slot = hash % CLASS_SLOTS;
        loop {
            match self.slots[slot] {
                0 => break,
                id if self.classes[id as usize - 1].is_some_and(|class| class.same(key)) => return Some(id - 1),
                _ => slot = (slot + 1) % CLASS_SLOTS,
            }
        }
        let id = self.nr_classes;
        *self.classes.get_mut(id)? = Some(*key);
        self.nr_classes += 1;
        self.slots[slot] = id as u16 + 1;
        Some(id as ClassId)
    }

    /// What a class is.
    pub(super) fn key(&self, class: ClassId) -> Option<&ClassKey> {
        self.classes.get(class as usize)?.as_ref()
    }

    /// Whether the second was taken under the first, or is declared to be.
    pub(super) fn has(&self, from: ClassId, to: ClassId) -> bool {
        self.after[from as usize][to as usize / 64] & 1 << (to % 64) != 0
    }

    /// Notes that it was. `false` if there is no more room.
    pub(super) fn add(&mut self, edge: Edge) -> bool {
        if self.has(edge.from, edge.to) {
            return true;
        }
        let Some(place) = self.edges.get_mut(self.nr_edges) else { return false };
        *place = Some(edge);
        self.nr_edges += 1;
        self.after[edge.from as usize][edge.to as usize / 64] |= 1 << (edge.to % 64);
        true
    }

    /// An edge that was declared comes up.
    fn see(&mut self, from: ClassId, to: ClassId, seen: Seen) {
        let mut edges = self.edges[..self.nr_edges].iter_mut().flatten();
        if let Some(edge) = edges.find(|edge| edge.from == from && edge.to == to) {
            edge.seen.get_or_insert(seen);
        }
    }

    fn edge(&self, from: ClassId, to: ClassId) -> Option<&Edge> {
        self.edges[..self.nr_edges].iter().flatten().find(|edge| edge.from == from && edge.to == to)
    }

    /// The shortest way in the graph from one class to another, edge by edge; nothing if there is none.
    pub(super) fn path(&self, from: ClassId, to: ClassId) -> heapless::Vec<Edge, 16> {
        // By whom each class was reached first; its own number for the first one.
        let mut reached = [ClassId::MAX; MAX_CLASSES];
        let mut queue = [0 as ClassId; MAX_CLASSES];
        (reached[from as usize], queue[0]) = (from, from);
        let (mut head, mut tail) = (0, 1);
        while head < tail && reached[to as usize] == ClassId::MAX {
            let at = queue[head];
            head += 1;
            for next in 0..self.nr_classes as ClassId {
                if reached[next as usize] == ClassId::MAX && self.has(at, next) {
                    reached[next as usize] = at;
                    queue[tail] = next;
                    tail += 1;
                }
            }
        }
        let mut path = heapless::Vec::new();
        let mut at = to;
        while reached[to as usize] != ClassId::MAX && at != from {
            let before = reached[at as usize];
            // A path that is too long to be shown whole is shown from its end.
            let Some(edge) = self.edge(before, at) else { break };
            if path.push(*edge).is_err() {
                break;
            }
            at = before;
        }
        path.reverse();
        path
    }
}

/// Locks of these names are taken in this order. Whatever contradicts it is reported as if it had been seen. A name may end in `/` and
/// a [subclass](super::subclass).
#[track_caller]
pub fn lock_order(names: &'static [&'static str]) {
    let site = Location::caller();
    let class = |name: &'static str| {
        let (name, subclass) = match name.split_once('/') {
            Some((name, subclass)) => (name, subclass.bytes().fold(0, |n: u8, digit| n * 10 + (digit - b'0'))),
            None => (name, 0),
        };
        class_of(&ClassKey { kind: Kind::Sleeping, name: Some(name), ty: || "()", site, subclass })
    };
    for pair in names.windows(2) {
        let (from, to) = (class(pair[0]), class(pair[1]));
        let (path, room) = with(|graph| {
            let path = graph.path(to, from);
            let room = !path.is_empty() || graph.add(Edge { from, to, seen: None });
            (path, room)
        });
        if !room {
            full("orders of locks");
        }
        if !path.is_empty() {
            super::report::contradiction(from, to, &path);
        }
    }
}

/// Adds what is new in holding `held` (each with where it was taken) and taking `new`. If that contradicts what was before: which of `held`, and
/// the path that leads from `new` to it.
pub(super) fn take_under(
    held: impl Iterator<Item = (ClassId, &'static Location<'static>)>,
    new: ClassId,
    to_site: &'static Location<'static>,
    task: &'static str,
) -> Option<(ClassId, heapless::Vec<Edge, 16>)> {
    let mut room = true;
    let bad = with(|graph| {
        for (from, from_site) in held {
            if from == new {
                continue;
            }
            let seen = Seen { from_site, to_site, task };
            if graph.has(from, new) {
                graph.see(from, new, seen);
                continue;
            }
            let path = graph.path(new, from);
            if !path.is_empty() {
                return Some((from, path));
            }
            room &= graph.add(Edge { from, to: new, seen: Some(seen) });
        }
        None
    });
    if !room {
        full("orders of locks");
    }
    bad
}

/// Calls `f` with the names and [subclasses](super::subclass) of two locks of which the second was seen to be taken under the first, for all
/// such that have names.
pub fn for_each_order(f: &mut dyn FnMut((&'static str, u8), (&'static str, u8))) {
    let mut n = 0;
    loop {
        let names = with(|graph| {
            let edge = graph.edges[..graph.nr_edges].get(n)?.as_ref()?;
            let name = |class| graph.key(class).and_then(|key| Some((key.name?, key.subclass)));
            Some((name(edge.from), name(edge.to), edge.seen.is_some()))
        });
        match names {
            None => return,
            Some((Some(from), Some(to), true)) => f(from, to),
            Some(_) => {}
        }
        n += 1;
    }
}
