// SPDX-License-Identifier: GPL-2.0-only
//! What a file system has promised at each moment of a run, and whether what a crash has left keeps it.
//!
//! # Names
//!
//! With a journal every operation on names or attributes is in one transaction, and transactions are committed in order. So after a
//! crash names, kinds, link counts, targets of symbolic links and attributes are all as they were after one and the same operation:
//! not before the last that was made durable, not after the last that had begun. A rename is never half there, for one. fsync makes
//! durable the last operation that changed the inode, and with it all before it; a sync, all.
//!
//! # Contents
//!
//! A byte of a file is what it was after some operation since it was made durable last (so it may be zero where the file was
//! shorter); anything else is somebody else's, or what was in the block before. The size is one of those that the file had since
//! its size was made durable; where it was growing, also one in between. Where blocks were moved within the file, and the disk does not
//! know it yet, what was written over them since is seen at the old place, in Linux too.
//!
//! Without a journal nothing is promised but what was synced, of files that were not changed after it; they are known by their
//! numbers, since they may have lost their names.

use std::collections::BTreeMap;
use std::sync::Arc;

pub use crate::crash_step::Step;
use crate::crash_step::apply;
use crate::model::data::Data;
use crate::oplang::*;
use crate::ours::Ours;

type Nid = usize;
const ROOT: Nid = 0;
type Xattrs = BTreeMap<String, Vec<u8>>;

/// What was made durable of a file's contents, by the operation `op`: its state `state`.
#[derive(Clone, Copy, Debug)]
struct Ack {
    op: usize,
    state: usize,
    /// All of it, or these bytes.
    range: Option<(usize, usize)>,
}

/// An inode.
struct Node {
    kind: Kind,
    ino: u64,
    nlink: u32,
    names: BTreeMap<String, Nid>,
    target: String,
    xattrs: Arc<Xattrs>,
    data: Data,
    /// Which operation made it, and which changed it last, other than by data alone.
    made: usize,
    changed: usize,
    /// Its contents after the operations that changed them.
    states: Vec<(usize, Arc<Vec<u8>>)>,
    acks: Vec<Ack>,
    /// Which states came of moving the contents, behind which byte, and how far.
    shifts: Vec<(usize, usize, i64)>,
    /// From this operation on nobody knows: it failed half-way.
    unknown_from: usize,
}

impl Node {
    /// Whether a byte is what was written, at a place that moved later, over a block that the disk still has where it was: in state `map`.
    /// Blocks of collapsed and inserted ranges keep their contents; so this is the file's own data, and nobody has synced it.
    fn was_moved(&self, map: usize, pos: usize, byte: u8, states: &[&[u8]]) -> bool {
        let mut at = pos;
        let mut shifts = self.shifts.iter().filter(|(state, ..)| *state > map).peekable();
        for (n, state) in states.iter().enumerate().skip(map + 1) {
            while let Some((_, from, by)) = shifts.next_if(|(state, ..)| *state == n) {
                match by.unsigned_abs() as usize {
                    _ if at < *from => {}
                    len if *by > 0 => at += len,
                    len if at < from + len => return false,
                    len => at -= len,
                }
            }
            if at != pos && state.get(at) == Some(&byte) {
                return true;
            }
        }
        false
    }
}

/// What can be seen of one name.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    kind: Kind,
    ino: u64,
    nlink: u32,
    target: String,
    xattrs: Arc<Xattrs>,
}

type Names = BTreeMap<String, (Entry, Nid)>;

/// One operation of the run. Moments are numbers of events of the disk.
struct Record {
    text: String,
    begin: usize,
    end: usize,
    /// Names are durable at least as they were after this operation.
    durable: usize,
}

/// A run, and what it has promised.
pub struct World {
    journal: bool,
    nodes: Vec<Node>,
    slots: [Option<(Nid, OFlags)>; SLOTS],
    /// From 1 on; 0 is what was there before.
    ops: Vec<Record>,
    /// Names after each.
    names: Vec<Arc<Names>>,
    /// How many operations failed.
    pub failed: usize,
}

impl World {
    /// Of what is on the disk that `vfs` shows: directories and empty files, all of it durable.
    pub fn new(vfs: &mut dyn Vfs, block: u32, journal: bool) -> Result<Self, String> {
        let before = Record { text: "before".to_string(), begin: 0, end: 0, durable: 0 };
        let mut world =
            Self { journal, nodes: Vec::new(), slots: [None; SLOTS], ops: vec![before], names: Vec::new(), failed: 0 };
        let found = walk(vfs)?;
        world.add(Kind::Dir, block);
        for (path, (entry, _)) in &found {
            let nid = world.add(entry.kind, block);
            let node = &mut world.nodes[nid];
            (node.ino, node.nlink) = (entry.ino, entry.nlink);
            let (dir, name) = world.parent(path).ok_or_else(|| format!("{path}: no parent"))?;
            world.nodes[dir].names.insert(name, nid);
        }
        for node in &mut world.nodes {
            node.acks.push(Ack { op: 0, state: 0, range: None });
        }
        world.names.push(Arc::new(world.snapshot()));
        Ok(world)
    }

    fn now(&self) -> usize {
        self.ops.len() - 1
    }

    fn add(&mut self, kind: Kind, block: u32) -> Nid {
        let now = self.now();
        self.nodes.push(Node {
            kind,
            ino: 0,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            names: BTreeMap::new(),
            target: String::new(),
            xattrs: Arc::default(),
            data: Data::new(u64::from(block)),
            made: now,
            changed: now,
            states: vec![(now, Arc::default())],
            acks: Vec::new(),
            shifts: Vec::new(),
            unknown_from: usize::MAX,
        });
        self.nodes.len() - 1
    }

    fn find(&self, path: &str) -> Option<Nid> {
        path.split('/')
            .filter(|c| !c.is_empty() && *c != ".")
            .try_fold(ROOT, |dir, name| self.nodes[dir].names.get(name).copied())
    }

    fn parent(&self, path: &str) -> Option<(Nid, String)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Some((self.find(dir)?, name.to_string()))
    }

    fn snapshot(&self) -> Names {
        let mut out = BTreeMap::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for (name, &nid) in &self.nodes[dir].names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                let node = &self.nodes[nid];
                if node.kind == Kind::Dir {
                    todo.push((path.clone(), nid));
                }
                let entry = Entry {
                    kind: node.kind,
                    ino: node.ino,
                    nlink: node.nlink,
                    target: node.target.clone(),
                    xattrs: node.xattrs.clone(),
                };
                out.insert(path, (entry, nid));
            }
        }
        out
    }

    /// Does a step, and takes down what it has changed and promised. `recorded`: how many events the disk has seen.
    pub fn run(&mut self, ours: &mut Ours, step: &Step, recorded: &dyn Fn() -> usize) -> Reply {
        let begin = recorded();
        let reply = apply(ours, step);
        let durable = self.ops.last().map_or(0, |op| op.durable);
        self.ops.push(Record { text: step.to_string(), begin, end: recorded(), durable });
        let nodes = self.nodes.len();
        match step {
            Step::Op(op) => self.note(op, &reply),
            _ if reply.is_err() => self.failed += 1,
            Step::Tmpfile { slot, direct, .. } => {
                let nid = self.add(Kind::File, self.block());
                self.nodes[nid].nlink = 0;
                let flags = if *direct { OFlags::RDWR | OFlags::DIRECT } else { OFlags::RDWR };
                self.slots[usize::from(*slot)] = Some((nid, flags));
            }
            Step::LinkSlot { slot, path } => {
                if let Some((nid, _)) = self.slots[usize::from(*slot)] {
                    self.link(nid, path);
                }
            }
            Step::FsyncDir { path } => {
                let changed = self.find(path).map_or(0, |nid| self.nodes[nid].changed);
                self.names_durable(changed);
            }
            Step::WriteBack { .. } => {}
            Step::Freeze => self.all_durable(),
        }
        if self.nodes.len() > nodes {
            self.learn_number(ours, step, nodes);
        }
        self.names.push(Arc::new(self.snapshot()));
        reply
    }

    /// Closes all and unmounts: then everything is durable.
    pub fn unmount(&mut self, ours: &mut Ours, recorded: &dyn Fn() -> usize) -> Result<(), Errno> {
        let begin = recorded();
        let durable = self.ops.last().map_or(0, |op| op.durable);
        ours.leave()?;
        self.ops.push(Record { text: "unmount".to_string(), begin, end: recorded(), durable });
        self.all_durable();
        self.names.push(Arc::new(self.snapshot()));
        Ok(())
    }

    fn block(&self) -> u32 {
        self.nodes[ROOT].data.bs as u32
    }

    fn learn_number(&mut self, ours: &mut Ours, step: &Step, nid: Nid) {
        let op = match step {
            Step::Op(Op::Mkdir { path, .. } | Op::Symlink { path, .. }) => Op::Lstat { path: path.clone() },
            Step::Op(Op::Open { slot, .. }) | Step::Tmpfile { slot, .. } => Op::Fstat { slot: *slot },
            _ => return,
        };
        if let Ok(Out::Stat(st)) = ours.apply(&op) {
            self.nodes[nid].ino = st.ino;
        }
    }

    fn names_durable(&mut self, op: usize) {
        if let Some(last) = self.ops.last_mut() {
            last.durable = last.durable.max(op);
        }
    }

    fn all_durable(&mut self) {
        let now = self.now();
        self.names_durable(now);
        for nid in 0..self.nodes.len() {
            self.ack(nid, None);
        }
    }

    fn ack(&mut self, nid: Nid, range: Option<(usize, usize)>) {
        let now = self.now();
        let node = &mut self.nodes[nid];
        node.acks.push(Ack { op: now, state: node.states.len() - 1, range });
    }

    /// The inode was changed other than by data alone.
    fn touch(&mut self, nid: Nid) {
        self.nodes[nid].changed = self.now();
    }

    /// The contents have changed.
    fn changed(&mut self, nid: Nid, was: u64) {
        let now = self.now();
        let node = &mut self.nodes[nid];
        let bytes = node.data.read(0, node.data.size as usize);
        node.states.push((now, Arc::new(bytes)));
        if node.data.size != was {
            node.changed = now;
        }
    }

    fn slot(&self, slot: u8) -> Option<(Nid, OFlags)> {
        self.slots[usize::from(slot)]
    }

    fn link(&mut self, nid: Nid, path: &str) {
        let Some((dir, name)) = self.parent(path) else { return };
        self.nodes[dir].names.insert(name, nid);
        self.nodes[nid].nlink += 1;
        self.touch(dir);
        self.touch(nid);
    }

    /// A new node with a name.
    fn make(&mut self, kind: Kind, path: &str) -> Nid {
        let nid = self.add(kind, self.block());
        if let Some((dir, name)) = self.parent(path) {
            self.nodes[dir].names.insert(name, nid);
            if kind == Kind::Dir {
                self.nodes[dir].nlink += 1;
            }
            self.touch(dir);
        }
        nid
    }

    /// Takes a name away.
    fn remove(&mut self, path: &str) -> Option<Nid> {
        let (dir, name) = self.parent(path)?;
        let nid = self.nodes[dir].names.remove(&name)?;
        if self.nodes[nid].kind == Kind::Dir {
            self.nodes[dir].nlink -= 1;
            self.nodes[nid].nlink = 0;
        } else {
            self.nodes[nid].nlink -= 1;
        }
        self.touch(dir);
        self.touch(nid);
        Some(nid)
    }

    /// What `op` has done, if it did.
    fn note(&mut self, op: &Op, reply: &Reply) {
        let Ok(out) = reply else { return self.note_failed(op, reply) };
        match op {
            Op::Open { slot, path, flags, .. } => self.opened(*slot, path, *flags),
            Op::Close { slot } => self.slots[usize::from(*slot)] = None,
            Op::SetDirect { .. } => {}
            Op::Write { slot, pos, tag, rwf, .. } => {
                if let Out::Count(n) = out {
                    self.written(*slot, *tag, *pos, *n, rwf.has(Rwf::APPEND), rwf.has(Rwf::DSYNC));
                }
            }
            Op::Aio { slot, tag, list } => {
                let Out::Ends(ends) = out else { return };
                for (&(pos, len), end) in list.iter().zip(ends) {
                    match end {
                        Ok(n) if *n == len => self.written(*slot, *tag, pos, *n, false, false),
                        _ => self.doubt(*slot),
                    }
                }
            }
            Op::Ftruncate { slot, size } => {
                if let Some((nid, _)) = self.slot(*slot) {
                    let was = self.nodes[nid].data.size;
                    self.nodes[nid].data.truncate(*size);
                    self.changed(nid, was);
                }
            }
            Op::Fallocate { slot, how, pos, len } => {
                if let Some((nid, _)) = self.slot(*slot) {
                    let was = self.nodes[nid].data.size;
                    self.nodes[nid].data.fallocate(*how, *pos, *len);
                    self.changed(nid, was);
                    self.touch(nid);
                    let by = match how {
                        Falloc::Collapse => -len.cast_signed(),
                        Falloc::Insert => len.cast_signed(),
                        _ => return,
                    };
                    let node = &mut self.nodes[nid];
                    node.shifts.push((node.states.len() - 1, *pos as usize, by));
                }
            }
            Op::Fsync { slot } => self.synced(*slot, false),
            Op::Fdatasync { slot } => self.synced(*slot, true),
            Op::Sync {} => self.all_durable(),
            _ => self.note_names(op),
        }
    }

    fn note_failed(&mut self, op: &Op, reply: &Reply) {
        self.failed += 1;
        if !matches!(reply, Err(libc::ENOSPC | libc::EIO)) {
            return;
        }
        if let Op::Write { slot, .. } | Op::Ftruncate { slot, .. } | Op::Fallocate { slot, .. } = op {
            self.doubt(*slot);
        }
    }

    fn doubt(&mut self, slot: u8) {
        let now = self.now();
        if let Some((nid, _)) = self.slot(slot) {
            let node = &mut self.nodes[nid];
            node.unknown_from = node.unknown_from.min(now);
        }
    }

    fn opened(&mut self, slot: u8, path: &str, flags: OFlags) {
        let nid = match self.find(path) {
            Some(nid) => nid,
            None => self.make(Kind::File, path),
        };
        self.slots[usize::from(slot)] = Some((nid, flags));
        if flags.has(OFlags::TRUNC) {
            let was = self.nodes[nid].data.size;
            self.nodes[nid].data.truncate(0);
            self.changed(nid, was);
        }
    }

    fn written(&mut self, slot: u8, tag: u32, pos: u64, n: usize, append: bool, dsync: bool) {
        let Some((nid, flags)) = self.slot(slot) else { return };
        let was = self.nodes[nid].data.size;
        let at = if append || flags.has(OFlags::APPEND) { was } else { pos };
        self.nodes[nid].data.write(at, &pattern(tag, pos, n));
        self.changed(nid, was);
        if flags.has(OFlags::SYNC) || flags.has(OFlags::DSYNC) || dsync {
            let made = self.nodes[nid].made;
            self.names_durable(made);
            self.ack(nid, Some((at as usize, at as usize + n)));
        }
    }

    fn synced(&mut self, slot: u8, data: bool) {
        if let Some((nid, _)) = self.slot(slot) {
            let node = &self.nodes[nid];
            self.names_durable(if data { node.made } else { node.changed });
            self.ack(nid, None);
        }
    }

    fn note_names(&mut self, op: &Op) {
        match op {
            Op::Mkdir { path, .. } => drop(self.make(Kind::Dir, path)),
            Op::Symlink { target, path } => {
                let nid = self.make(Kind::Link, path);
                self.nodes[nid].target.clone_from(target);
            }
            Op::Unlink { path } | Op::Rmdir { path } => drop(self.remove(path)),
            Op::Link { from, to } => {
                if let Some(nid) = self.find(from) {
                    self.link(nid, to);
                }
            }
            Op::Rename { from, to, how } => self.renamed(from, to, *how),
            Op::SetXattr { path, name, len, tag, .. } => {
                if let Some(nid) = self.find(path) {
                    Arc::make_mut(&mut self.nodes[nid].xattrs).insert(name.clone(), xattr_value(name, *tag, *len));
                    self.touch(nid);
                }
            }
            Op::RemoveXattr { path, name } => {
                if let Some(nid) = self.find(path) {
                    Arc::make_mut(&mut self.nodes[nid].xattrs).remove(name);
                    self.touch(nid);
                }
            }
            _ => {}
        }
    }

    fn renamed(&mut self, from: &str, to: &str, how: RenameHow) {
        let (Some(a), b) = (self.find(from), self.find(to)) else { return };
        if b == Some(a) {
            return;
        }
        let nlink = |world: &Self, nid: Nid| world.nodes[nid].nlink;
        let (a_links, b_links) = (nlink(self, a), b.map(|b| nlink(self, b)));
        self.remove(from);
        self.remove(to);
        let mut put = |path: &str, nid: Nid, links: u32| {
            let Some((dir, name)) = self.parent(path) else { return };
            self.nodes[dir].names.insert(name, nid);
            self.nodes[nid].nlink = links;
            if self.nodes[nid].kind == Kind::Dir {
                self.nodes[dir].nlink += 1;
            }
        };
        put(to, a, a_links);
        if let (RenameHow::Exchange, Some(b), Some(links)) = (how, b, b_links) {
            put(from, b, links);
        }
    }

    /// Operations, with what they did to whom, for a message.
    pub fn story(&self, at: usize) -> String {
        let mut out = String::new();
        for (n, op) in self.ops.iter().enumerate().skip(1) {
            let state = if op.end <= at {
                " "
            } else if op.begin < at {
                ">"
            } else {
                "-"
            };
            out += &format!("{state}{n:3} [{}..{}] {} (names durable: {})\n", op.begin, op.end, op.text, op.durable);
        }
        out
    }

    // ---- after a crash

    /// Whether an operation may have done something by moment `at`.
    fn begun(&self, op: usize, at: usize) -> bool {
        self.ops[op].begin < at || self.ops[op].end <= at
    }

    /// Whether a file system that crashed at moment `at`, and was recovered, keeps what was promised.
    pub fn check(&self, vfs: &mut dyn Vfs, at: usize) -> Result<(), String> {
        let found = walk(vfs)?;
        if !self.journal {
            return self.check_synced(vfs, &found, at);
        }
        let durable = self.ops.iter().filter(|op| op.end <= at).map(|op| op.durable).max().unwrap_or(0);
        let begun = (0..self.ops.len()).rfind(|op| self.begun(*op, at)).unwrap_or(0);
        let fits: Vec<&Arc<Names>> = (durable..=begun).map(|n| &self.names[n]).filter(|n| same(&found, n)).collect();
        if fits.is_empty() {
            let differs =
                (durable..=begun).map(|n| format!("as after {n}, but for {}", differs(&found, &self.names[n])));
            let differs: Vec<String> = differs.collect();
            return Err(format!("names are as after no operation:\n  {}", differs.join("\n  ")));
        }
        for (path, (entry, _)) in found.iter().filter(|(_, (entry, _))| entry.kind == Kind::File) {
            let seen = vfs.see(&Target::Path(path.clone())).map_err(|e| format!("{path}: errno {e}"))?;
            let mut nids: Vec<Nid> = fits.iter().filter_map(|names| names.get(path)).map(|(_, nid)| *nid).collect();
            nids.dedup();
            let mut wrong = Ok(());
            for nid in nids {
                wrong = self.check_file(nid, &seen, at);
                if wrong.is_ok() {
                    break;
                }
            }
            wrong.map_err(|e| format!("{path} (inode {}): {e}", entry.ino))?;
        }
        Ok(())
    }

    /// Without a journal.
    fn check_synced(&self, vfs: &mut dyn Vfs, found: &Names, at: usize) -> Result<(), String> {
        for (nid, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.kind == Kind::File) {
            let last = node.acks.iter().rfind(|ack| ack.range.is_none() && self.ops[ack.op].end <= at);
            let Some(ack) = last.filter(|ack| ack.op > 0) else { continue };
            let begun = node.states.iter().rposition(|(op, _)| self.begun(*op, at)).unwrap_or(0);
            let named = self.names[ack.op].values().any(|(_, named)| *named == nid);
            if begun != ack.state || !named || node.changed > ack.op && self.begun(node.changed, at) {
                continue;
            }
            let path = found.iter().find(|(_, (entry, _))| entry.ino == node.ino && entry.kind == Kind::File);
            let Some((path, _)) = path else {
                return Err(format!("inode {}, synced by {}, is gone", node.ino, self.ops[ack.op].text));
            };
            let seen = vfs.see(&Target::Path(path.clone())).map_err(|e| format!("{path}: errno {e}"))?;
            self.check_file(nid, &seen, at).map_err(|e| format!("{path} (inode {}): {e}", node.ino))?;
        }
        Ok(())
    }

    fn check_file(&self, nid: Nid, seen: &Seen, at: usize) -> Result<(), String> {
        let node = &self.nodes[nid];
        if node.unknown_from < self.ops.len() && self.begun(node.unknown_from, at) {
            return Ok(());
        }
        let begun = node.states.iter().rposition(|(op, _)| self.begun(*op, at)).unwrap_or(0);
        let acks: Vec<&Ack> = node.acks.iter().filter(|ack| self.ops[ack.op].end <= at).collect();
        let durable = acks.iter().filter(|ack| ack.range.is_none()).map(|ack| ack.state).max().unwrap_or(0);
        self.check_size(node, seen.size as usize, (durable, begun), &acks)?;
        let mut all = vec![0; seen.size as usize];
        for (lblk, bytes) in &seen.blocks {
            let at = (lblk * seen.block) as usize;
            all[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let states: Vec<&[u8]> = node.states[..=begun].iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let ranges: Vec<&Ack> = acks.iter().copied().filter(|a| a.range.is_some() && a.state > durable).collect();
        for start in (0..all.len()).step_by(512) {
            let chunk = &all[start..all.len().min(start + 512)];
            let promised = ranges.iter().any(|a| a.range.is_some_and(|(from, to)| from < start + 512 && start < to));
            if !promised && states[durable..].iter().rev().any(|state| is_at(state, start, chunk)) {
                continue;
            }
            for (n, &byte) in chunk.iter().enumerate() {
                let pos = start + n;
                let holds = |a: &&&Ack| a.range.is_some_and(|(from, to)| from <= pos && pos < to);
                let from = ranges.iter().filter(holds).map(|a| a.state).max().unwrap_or(durable);
                let of = |state: &&[u8]| state.get(pos).copied().unwrap_or(0);
                let moved = || (from..states.len()).any(|map| node.was_moved(map, pos, byte, &states));
                if !states[from..].iter().any(|state| of(state) == byte) && !moved() {
                    return Err(self.wrong_byte(node, pos, byte, from, &states));
                }
            }
        }
        Ok(())
    }

    fn wrong_byte(&self, node: &Node, pos: usize, byte: u8, from: usize, states: &[&[u8]]) -> String {
        let old = states[..from].iter().rposition(|state| state.get(pos) == Some(&byte));
        let what = match old {
            Some(n) => format!("as after \"{}\", which is lost", self.ops[node.states[n].0].text),
            None => "never this file's".to_string(),
        };
        let since = &self.ops[node.states[from].0].text;
        format!("byte {pos} is {byte:#04x}, {what}; durable since \"{since}\"")
    }

    fn check_size(&self, node: &Node, size: usize, states: (usize, usize), acks: &[&Ack]) -> Result<(), String> {
        let (durable, begun) = states;
        let len = |n: usize| node.states[n].1.len();
        // What was written through is inside the file, until something later cuts it off.
        let floor_of = |n: usize| {
            let later = acks.iter().filter(|ack| ack.state > n).filter_map(|ack| ack.range);
            later.map(|(_, to)| to).max().unwrap_or(0)
        };
        let fits = (durable..=begun).any(|n| {
            let (now, before) = (len(n), if n > durable { len(n - 1) } else { len(n) });
            let possible = size == now || (before <= size && size <= now);
            possible && size >= floor_of(n)
        });
        if fits {
            return Ok(());
        }
        let sizes: Vec<usize> = (durable..=begun).map(len).collect();
        Err(format!("size {size} is none of {sizes:?}, of which the first was made durable"))
    }
}

/// Whether `chunk` is what `state` has at `start`, with zeros behind its end.
fn is_at(state: &[u8], start: usize, chunk: &[u8]) -> bool {
    let there = state.get(start..).unwrap_or_default();
    let n = there.len().min(chunk.len());
    there[..n] == chunk[..n] && chunk[n..].iter().all(|b| *b == 0)
}

fn same(found: &Names, names: &Names) -> bool {
    found.len() == names.len() && found.iter().zip(names).all(|(a, b)| a.0 == b.0 && a.1.0 == b.1.0)
}

/// The first difference.
fn differs(found: &Names, names: &Names) -> String {
    for (path, (entry, _)) in names {
        match found.get(path) {
            Some((got, _)) if got == entry => {}
            got => return format!("{path}: {:?}, should be {entry:?}", got.map(|(entry, _)| entry)),
        }
    }
    found.keys().find(|path| !names.contains_key(*path)).map_or_else(String::new, |path| format!("{path} is there"))
}

/// Everything that has a name.
fn walk(vfs: &mut dyn Vfs) -> Result<Names, String> {
    let mut out = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        let mut ask = |op: Op| vfs.apply(&op).map_err(|e| format!("{op}: errno {e}"));
        let path = if dir.is_empty() { ".".to_string() } else { dir.clone() };
        let Out::Names(names) = ask(Op::Readdir { path, chunk: 100 })? else { continue };
        for name in names {
            let path = if dir.is_empty() { name.name.clone() } else { format!("{dir}/{}", name.name) };
            let Out::Stat(st) = ask(Op::Lstat { path: path.clone() })? else { continue };
            if (st.kind, st.ino) != (name.kind, name.ino) {
                return Err(format!(
                    "{path}: {:?} {} by name, {:?} {} by itself",
                    name.kind, name.ino, st.kind, st.ino
                ));
            }
            let mut entry =
                Entry { kind: st.kind, ino: st.ino, nlink: st.nlink, target: String::new(), xattrs: Arc::default() };
            match st.kind {
                Kind::Link => {
                    if let Out::Text(target) = ask(Op::Readlink { path: path.clone() })? {
                        entry.target = target;
                    }
                }
                Kind::Dir => todo.push(path.clone()),
                _ => {}
            }
            if st.kind != Kind::Link {
                let mut xattrs = Xattrs::new();
                if let Out::List(names) = ask(Op::ListXattr { path: path.clone() })? {
                    for name in names {
                        if let Out::Bytes(value) = ask(Op::GetXattr { path: path.clone(), name: name.clone() })? {
                            xattrs.insert(name, value);
                        }
                    }
                }
                entry.xattrs = Arc::new(xattrs);
            }
            out.insert(path, (entry, usize::MAX));
        }
    }
    Ok(out)
}
