// SPDX-License-Identifier: GPL-2.0-only
//! Names in a directory with a hash tree, among them many that have the same hash, against a set.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use ext4_dio::IRef;
use ext4_dio::hash::{DxHash, HashInfo};
use ext4_dio::path::{Cred, Qstr, path_lookupat, vfs_create, vfs_link, vfs_lookup, vfs_mkdir, vfs_readdir, vfs_unlink};
use ext4_dio_tests::damage::{Base, Case, base, patch};
use ext4_dio_tests::dio::{IN_FLIGHT, Mount, auto};
use kernel_shim::alloc::KVec;
use kernel_shim::error::code::{EEXIST, ENOENT};
use proptest::prelude::*;

/// Names there may be.
const POOL: usize = 400;

#[derive(Clone, Debug)]
enum Op {
    /// So many names from the pool, from one on.
    Add {
        first: usize,
        count: usize,
    },
    Remove {
        first: usize,
        count: usize,
    },
    /// Lists in pieces of so many, and removes and adds some others meanwhile.
    List {
        chunk: usize,
        remove: usize,
        add: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..POOL, 1..120usize).prop_map(|(first, count)| Op::Add { first, count }),
        3 => (0..POOL, 1..120usize).prop_map(|(first, count)| Op::Remove { first, count }),
        2 => (1..30usize, 0..POOL, 0..POOL).prop_map(|(chunk, remove, add)| Op::List { chunk, remove, add }),
    ]
}

/// The oldest hash, which takes no seed and is quick to compute.
fn image() -> &'static (Vec<u8>, HashInfo) {
    static MADE: OnceLock<(Vec<u8>, HashInfo)> = OnceLock::new();
    MADE.get_or_init(|| {
        let base: &Base = base::base("ext4");
        let case = Case::parse("base ext4\nsb 0xfc u8 0").expect("a case");
        let bytes = patch::patched(base, &case).0.bytes();
        let flags = u32::from_le_bytes(bytes[1024 + 0x160..1024 + 0x164].try_into().expect("four bytes"));
        (bytes, HashInfo::new([1; 4], flags))
    })
}

/// Names, the first of which are pairs with the same hash.
fn pool() -> &'static Vec<String> {
    static MADE: OnceLock<Vec<String>> = OnceLock::new();
    MADE.get_or_init(|| {
        let long = |n: u32| format!("{n:x}{}", "n".repeat(36));
        let hash = |n: u32| image().1.hash(DxHash::Legacy, long(n).as_bytes());
        // 2^31 hashes: among n names there are n^2 / 2^32 pairs.
        let mut hashes: Vec<(u32, u32)> = (0..400_000).map(|n| (hash(n), n)).collect();
        hashes.sort_unstable();
        let alike = hashes.windows(2).filter(|pair| pair[0].0 == pair[1].0).flat_map(|pair| [pair[0].1, pair[1].1]);
        let alike: BTreeSet<u32> = alike.collect();
        let mut names: Vec<String> = alike.into_iter().map(long).take(POOL / 2).collect();
        assert!(names.len() >= 20, "only {} names with the same hash", names.len());
        names.extend((0..).map(|n| format!("other{n}{}", "o".repeat(n % 200))).take(POOL - names.len()));
        names
    })
}

struct World {
    m: Mount,
    dir: IRef,
    /// All names are its.
    file: IRef,
    model: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        let m = Mount::with(&image().0, IN_FLIGHT, auto());
        let root = path_lookupat(&m.sb, b"/", true).expect("the root");
        let dir = vfs_mkdir(&root, b"many-names", 0o755, &Cred::default()).expect("a directory");
        let file = vfs_create(&root, b"the-file", 0o644, &Cred::default()).expect("a file");
        Self { m, dir, file, model: BTreeSet::new() }
    }

    fn add(&mut self, name: &str) {
        let added = self.model.insert(name.to_string());
        let done = vfs_link(&self.file, &self.dir, name.as_bytes());
        assert_eq!(done, if added { Ok(()) } else { Err(EEXIST) }, "add {name}");
    }

    fn remove(&mut self, name: &str) {
        let removed = self.model.remove(name);
        let done = vfs_unlink(&self.dir, Qstr { name: name.as_bytes(), slash: false });
        assert_eq!(done, if removed { Ok(()) } else { Err(ENOENT) }, "remove {name}");
    }

    /// What is in the directory, in the order it is told; `between` is called after each piece.
    fn list(&mut self, chunk: usize, mut between: impl FnMut(&mut Self)) -> Vec<String> {
        let (mut names, mut pos) = (Vec::new(), 0);
        loop {
            let mut list = KVec::new();
            vfs_readdir(&self.dir, &mut pos, chunk, &mut list).expect("readdir");
            names.extend(list.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
            if list.len() < chunk {
                names.retain(|name| name != "." && name != "..");
                return names;
            }
            between(self);
        }
    }

    fn apply(&mut self, op: &Op) {
        let some = |first: usize, count: usize| pool()[first..].iter().chain(&pool()[..first]).take(count);
        match *op {
            Op::Add { first, count } => some(first, count).for_each(|name| self.add(name)),
            Op::Remove { first, count } => some(first, count).for_each(|name| self.remove(name)),
            Op::List { chunk, remove, add } => {
                let before = self.model.clone();
                let mut changes = some(remove, 40).zip(some(add, 40));
                let names = self.list(chunk, |world| {
                    if let Some((remove, add)) = changes.next() {
                        world.remove_if_there(remove);
                        world.add_if_missing(add);
                    }
                });
                let seen: BTreeSet<&String> = names.iter().collect();
                assert_eq!(seen.len(), names.len(), "a name twice");
                for name in before.intersection(&self.model) {
                    let stayed = !some(remove, 40).any(|other| other == name);
                    assert!(!stayed || seen.contains(name), "{name} was there throughout, and is not listed");
                }
                // What came meanwhile may have gone meanwhile.
                let known = |name: &String| before.contains(name) || some(add, 40).any(|other| other == name);
                assert!(names.iter().all(known), "a name of nobody's");
            }
        }
    }

    fn remove_if_there(&mut self, name: &str) {
        if self.model.contains(name) {
            self.remove(name);
        }
    }

    fn add_if_missing(&mut self, name: &str) {
        if !self.model.contains(name) {
            self.add(name);
        }
    }

    fn agree(&mut self) {
        let names = self.list(1000, |_| ());
        assert_eq!(names.len(), self.model.len(), "names");
        assert_eq!(names.iter().cloned().collect::<BTreeSet<_>>(), self.model);
        let hashes: Vec<u32> = names.iter().map(|name| image().1.hash(DxHash::Legacy, name.as_bytes())).collect();
        assert!(hashes.is_sorted(), "not in the order of hashes");
        for name in pool() {
            let found = vfs_lookup(&self.dir, name.as_bytes()).map(|inode| inode.i_ino());
            let expected = if self.model.contains(name) { Ok(self.file.i_ino()) } else { Err(ENOENT) };
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(self.file.i_nlink() as usize, 1 + self.model.len());
    }

    fn finish(self) {
        let Self { m, dir, file, .. } = self;
        drop((dir, file));
        m.finish();
    }
}

#[test]
fn names_follow_the_set() {
    super::check("names_follow_the_set", 16, prop::collection::vec(op(), 1..20), |ops| {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.agree();
        }
        world.finish();
    });
}
