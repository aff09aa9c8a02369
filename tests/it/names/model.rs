// SPDX-License-Identifier: GPL-2.0-only
//! Random sequences of operations on names, against a tree in memory that is as simple as can be.

use ext4_dio_tests::oplang::Rng;
use kernel_shim::error::code::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    File,
    Pipe,
    Link(String),
    Dir(BTreeMap<String, usize>),
}

/// An inode. Those without links stay in the list.
#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    nlink: u32,
    /// Of a directory.
    parent: usize,
}

/// A file system; the root is node 0.
#[derive(Clone)]
pub(super) struct Model(Vec<Node>);

/// A path's last name, and the directory it is in.
struct Place {
    dir: usize,
    name: String,
    slash: bool,
}

impl Model {
    pub(super) fn new() -> Self {
        let mut model = Self(vec![Node { kind: Kind::Dir(BTreeMap::new()), nlink: 2, parent: 0 }]);
        model.add(0, "lost+found", Kind::Dir(BTreeMap::new()));
        model
    }

    fn dir(&self, node: usize) -> Result<&BTreeMap<String, usize>> {
        if let Kind::Dir(names) = &self.0[node].kind { Ok(names) } else { Err(ENOTDIR) }
    }

    fn is_dir(&self, node: usize) -> bool {
        self.dir(node).is_ok()
    }

    fn put(&mut self, dir: usize, name: &str, node: Option<usize>) {
        let Kind::Dir(names) = &mut self.0[dir].kind else { panic!("a directory") };
        match node {
            Some(node) => names.insert(name.to_string(), node),
            None => names.remove(name),
        };
    }

    fn add(&mut self, dir: usize, name: &str, kind: Kind) {
        let is_dir = matches!(kind, Kind::Dir(_));
        self.0.push(Node { kind, nlink: 1 + u32::from(is_dir), parent: dir });
        self.0[dir].nlink += u32::from(is_dir);
        self.put(dir, name, Some(self.0.len() - 1));
    }

    fn child(&self, dir: usize, name: &str) -> Result<usize> {
        let names = self.dir(dir)?;
        match name {
            "." => Ok(dir),
            ".." => Ok(self.0[dir].parent),
            _ if name.len() > 255 => Err(ENAMETOOLONG),
            _ => names.get(name).copied().ok_or(ENOENT),
        }
    }

    fn resolve(&self, start: usize, path: &str, follow: bool, links: &mut u32) -> Result<usize> {
        if path.is_empty() {
            return Err(ENOENT);
        }
        let mut here = if path.starts_with('/') { 0 } else { start };
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        for (n, name) in names.iter().enumerate() {
            let child = self.child(here, name)?;
            let last = n + 1 == names.len();
            here = match &self.0[child].kind {
                Kind::Link(target) if !last || follow || path.ends_with('/') => {
                    *links += 1;
                    if *links > 40 {
                        return Err(ELOOP);
                    }
                    self.resolve(here, target, true, links)?
                }
                _ => child,
            };
            if (!last || path.ends_with('/')) && !self.is_dir(here) {
                return Err(ENOTDIR);
            }
        }
        Ok(here)
    }

    fn stat(&self, path: &str, follow: bool) -> Result<usize> {
        self.resolve(0, path, follow, &mut 0)
    }

    /// `dots`: what it means if there is no name at the end.
    fn place(&self, path: &str, dots: impl Fn(&str) -> kernel_shim::error::Error) -> Result<Place> {
        if path.is_empty() {
            return Err(ENOENT);
        }
        let trimmed = path.trim_end_matches('/');
        let at = trimmed.rfind('/').map_or(0, |at| at + 1);
        let (above, name) = trimmed.split_at(at);
        let dir = if above.is_empty() { 0 } else { self.resolve(0, above, true, &mut 0)? };
        self.dir(dir)?;
        if matches!(name, "" | "." | "..") {
            return Err(dots(name));
        }
        Ok(Place { dir, name: name.to_string(), slash: path.ends_with('/') })
    }

    fn new_place(&self, path: &str, is_dir: bool) -> Result<Place> {
        let place = self.place(path, |_| EEXIST)?;
        match self.child(place.dir, &place.name) {
            Ok(_) => Err(EEXIST),
            Err(ENOENT) if place.slash && !is_dir => Err(ENOENT),
            Err(ENOENT) => Ok(place),
            Err(error) => Err(error),
        }
    }

    fn make(&mut self, path: &str, kind: Kind) -> Result {
        let place = self.new_place(path, matches!(kind, Kind::Dir(_)))?;
        self.add(place.dir, &place.name, kind);
        Ok(())
    }

    fn link(&mut self, old: &str, new: &str) -> Result {
        let node = self.stat(old, false)?;
        let place = self.new_place(new, false)?;
        if self.is_dir(node) {
            return Err(EPERM);
        }
        self.0[node].nlink += 1;
        self.put(place.dir, &place.name, Some(node));
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result {
        let place = self.place(path, |_| EISDIR)?;
        let node = self.child(place.dir, &place.name)?;
        if self.is_dir(node) {
            return Err(EISDIR);
        }
        if place.slash {
            return Err(ENOTDIR);
        }
        self.0[node].nlink -= 1;
        self.put(place.dir, &place.name, None);
        Ok(())
    }

    fn rmdir(&mut self, path: &str) -> Result {
        let place = self.place(path, |name| match name {
            "." => EINVAL,
            ".." => ENOTEMPTY,
            _ => EBUSY,
        })?;
        let node = self.child(place.dir, &place.name)?;
        if !self.dir(node)?.is_empty() {
            return Err(ENOTEMPTY);
        }
        self.0[node].nlink = 0;
        self.0[place.dir].nlink -= 1;
        self.put(place.dir, &place.name, None);
        Ok(())
    }

    /// Whether `node` is `dir` or above it.
    fn is_above(&self, node: usize, mut dir: usize) -> bool {
        while dir != node && dir != 0 {
            dir = self.0[dir].parent;
        }
        dir == node
    }

    fn rename(&mut self, old: &str, new: &str, flags: RenameFlags) -> Result {
        let (keep, swap) = (flags.contains(RenameFlags::NOREPLACE), flags.contains(RenameFlags::EXCHANGE));
        if keep && swap {
            return Err(EINVAL);
        }
        // Both ways are gone before the ends are looked at.
        let old = self.place(old, |_| EBUSY);
        if !matches!(old, Ok(_) | Err(EBUSY)) {
            return old.map(drop);
        }
        let new = self.place(new, |_| if keep { EEXIST } else { EBUSY });
        let (old, new) = match (old, new) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(old), Ok(_) | Err(EBUSY | EEXIST)) => return Err(old),
            (_, Err(new)) => return Err(new),
        };
        let source = self.child(old.dir, &old.name)?;
        let target = match self.child(new.dir, &new.name) {
            Ok(target) => Some(target),
            Err(ENOENT) => None,
            Err(error) => return Err(error),
        };
        match target {
            Some(_) if keep => return Err(EEXIST),
            None if swap => return Err(ENOENT),
            Some(target) if swap && new.slash => drop(self.dir(target)?),
            _ => {}
        }
        if !self.is_dir(source) && (old.slash || (new.slash && !swap)) {
            return Err(ENOTDIR);
        }
        if self.is_dir(source) && self.is_above(source, new.dir) {
            return Err(EINVAL);
        }
        let target_dir = target.is_some_and(|target| self.is_dir(target));
        if target_dir && self.is_above(target.expect("there is one"), old.dir) {
            return Err(if swap { EINVAL } else { ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        if let (Some(target), false) = (target, swap) {
            match (self.is_dir(source), target_dir) {
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                (true, true) if !self.dir(target)?.is_empty() => return Err(ENOTEMPTY),
                _ => {}
            }
            self.0[target].nlink -= if target_dir { 2 } else { 1 };
        }
        self.put(old.dir, &old.name, target.filter(|_| swap));
        self.put(new.dir, &new.name, Some(source));
        for (node, from, to) in [(Some(source), old.dir, new.dir), (target, new.dir, if swap { old.dir } else { 0 })] {
            let Some(node) = node.filter(|node| self.is_dir(*node)) else { continue };
            self.0[from].nlink -= 1;
            if swap || node == source {
                self.0[to].nlink += 1;
                self.0[node].parent = to;
            }
        }
        Ok(())
    }
}

/// What there is, by path: type, links, target; and which paths are one inode.
pub(super) type Seen = BTreeMap<String, (u32, u32, String, usize)>;

fn see_model(model: &Model, node: usize, path: &str, seen: &mut Seen) {
    let Kind::Dir(names) = &model.0[node].kind else { panic!("a directory") };
    for (name, child) in names {
        let path = format!("{path}/{name}");
        let (kind, target) = match &model.0[*child].kind {
            Kind::File => (8, ""),
            Kind::Pipe => (1, ""),
            Kind::Link(target) => (10, target.as_str()),
            Kind::Dir(_) => (4, ""),
        };
        seen.insert(path.clone(), (kind, model.0[*child].nlink, target.to_string(), *child));
        if kind == 4 {
            see_model(model, *child, &path, seen);
        }
    }
}

fn see_ours(sb: &Sb, path: &str, seen: &mut Seen) {
    for name in names(sb, if path.is_empty() { "/" } else { path }) {
        let path = format!("{path}/{name}");
        let st = stat(sb, &path).unwrap_or_else(|e| panic!("{path}: {e:?}"));
        let target = match st.mode >> 12 {
            10 => String::from_utf8_lossy(&path_readlink(sb, path.as_bytes()).expect("readlink")).into_owned(),
            _ => String::new(),
        };
        seen.insert(path.clone(), (st.mode >> 12, st.nlink, target, st.ino as usize));
        if st.mode >> 12 == 4 {
            see_ours(sb, &path, seen);
        }
    }
}

/// Inodes have other numbers here and there; all get the place of their first path instead.
fn numbered(mut seen: Seen) -> Seen {
    let mut first = BTreeMap::new();
    for (n, entry) in seen.values_mut().enumerate() {
        entry.3 = *first.entry(entry.3).or_insert(n);
    }
    seen
}

/// All that a mount has.
pub(super) fn all_ours(sb: &Sb) -> Seen {
    let mut seen = Seen::new();
    see_ours(sb, "", &mut seen);
    numbered(seen)
}

/// All that the model has.
pub(super) fn all_theirs(model: &Model) -> Seen {
    let mut seen = Seen::new();
    see_model(model, 0, "", &mut seen);
    numbered(seen)
}

fn compare(sb: &Sb, model: &Model, what: &str) {
    let (ours, theirs) = (all_ours(sb), all_theirs(model));
    assert_eq!(stat(sb, "/").expect("stat").nlink, model.0[0].nlink, "{what}: the root");
    for (path, entry) in &theirs {
        assert_eq!(ours.get(path), Some(entry), "{what}: {path}");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

fn random_path(rng: &mut Rng) -> String {
    let names = ["a", "b", "c", "dd", "eee"];
    let odd = ["link", "lost+found", "file.txt", "..", ".", "another-name-that-is-longer"];
    let mut path = String::new();
    for _ in 0..*rng.pick(&[1, 1, 1, 2, 2, 2, 3, 4]) {
        path += if rng.one_in(40) { "//" } else { "/" };
        match rng.below(80) {
            0 => path += &"l".repeat(255),
            1 => path += &"l".repeat(256),
            2..25 => path += &format!("n{}", rng.below(30)),
            25..33 => path += *rng.pick(&odd[..]),
            _ => path += *rng.pick(&names[..]),
        }
    }
    if rng.one_in(16) {
        path += "/";
    }
    path
}

/// One operation, on both; what it was, and what came of it.
pub(super) fn step(sb: &Sb, model: &mut Model, rng: &mut Rng) -> (String, Result, Result) {
    let (a, b) = (random_path(rng), random_path(rng));
    match rng.below(14) {
        0 | 1 => (format!("mkdir {a}"), mkdir(sb, &a), model.make(&a, Kind::Dir(BTreeMap::new()))),
        2 | 3 => {
            let made = path_mknod(sb, a.as_bytes(), 0o100_644, 0, &CRED);
            (format!("create {a}"), made, model.make(&a, Kind::File))
        }
        4 => (format!("mkfifo {a}"), path_mknod(sb, a.as_bytes(), 0o010_644, 0, &CRED), model.make(&a, Kind::Pipe)),
        5 => {
            let mut target = if rng.one_in(2) { b } else { b[1..].to_string() };
            if rng.one_in(4) {
                target = format!("{}{target}", "./".repeat(40));
            }
            (format!("symlink {target} {a}"), symlink(sb, &target, &a), model.make(&a, Kind::Link(target.clone())))
        }
        6 => (format!("link {a} {b}"), link(sb, &a, &b), model.link(&a, &b)),
        7 => (format!("unlink {a}"), unlink(sb, &a), model.unlink(&a)),
        8 => (format!("rmdir {a}"), rmdir(sb, &a), model.rmdir(&a)),
        9 => {
            let follow = rng.one_in(2);
            let ours = path_stat(sb, a.as_bytes(), follow).map(drop);
            (format!("stat {a}, follow: {follow}"), ours, model.stat(&a, follow).map(drop))
        }
        n => {
            let none = RenameFlags::empty();
            let flags = *rng.pick(&[none, none, RenameFlags::NOREPLACE, RenameFlags::EXCHANGE, RenameFlags::EXCHANGE]);
            let flags = if n == 13 && rng.one_in(20) { RenameFlags::NOREPLACE | flags } else { flags };
            (format!("rename {a} {b} {flags:?}"), rename(sb, &a, &b, flags), model.rename(&a, &b, flags))
        }
    }
}

fn run(spec: &Mkfs, options: &str, seed: u64, steps: u32) {
    let mut rng = Rng(seed);
    let mut model = Model::new();
    let mut m = mount_with(spec, options);
    let mut done = 0;
    for n in 0..steps {
        let (what, ours, theirs) = step(&m.sb, &mut model, &mut rng);
        let what = format!("seed {seed}, {spec:?}, step {n}: {what}");
        assert_eq!(ours, theirs, "{what}");
        done += u32::from(ours.is_ok());
        if n % 200 == 199 {
            compare(&m.sb, &model, &what);
        }
        if n % 600 == 599 {
            let bytes = m.finish();
            m = Mount::with(&bytes, options, auto());
            compare(&m.sb, &model, &what);
        }
    }
    assert!(done > steps / 10, "seed {seed}: too little came of it, {done}");
    m.finish();
}

#[test]
fn random_names_are_what_the_model_has() {
    for seed in 1..=3 {
        run(&small_blocks(), "", seed, 1800);
        run(&Mkfs { block_size: 2048, ..small_blocks() }, "", seed + 10, 900);
        run(&Mkfs::default(), "", seed + 20, 900);
    }
}

#[test]
fn random_names_on_other_kinds_of_file_systems() {
    run(&Mkfs { fs_type: "ext2", inode_size: 128, ..small_blocks() }, "", 31, 1200);
    run(&Mkfs { features: "^has_journal", ..small_blocks() }, "", 32, 1200);
    run(&Mkfs { features: "^dir_index,^filetype", ..small_blocks() }, "", 33, 1200);
    run(&Mkfs { fs_type: "ext3", ..small_blocks() }, "", 34, 1200);
}
