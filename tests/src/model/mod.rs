// SPDX-License-Identifier: GPL-2.0-only
//! A model of a file system, in memory: what operations answer, and what is there afterwards.
//!
//! [`Model::step`] is told what the real one answered, and says whether that was right. Where more than one answer is, it goes on
//! from the one that was given: a write that met ENOSPC may have got anywhere, and then the file is looked at
//! ([`Model::resync`]), and whatever is neither old, nor new, nor zero is an error.

pub mod data;
mod files;
mod names;

use std::collections::BTreeMap;

use data::{Data, Partly};

use crate::oplang::*;

/// A node's name for itself.
pub type Nid = u32;
/// The root directory.
pub const ROOT: Nid = 0;

/// What is to be expected of the real file system.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// Bytes in a block.
    pub block: u32,
    /// Files are mapped by extents.
    pub extents: bool,
    /// Bytes in an inode: with 128, times are whole seconds, and attributes need a block.
    pub inode_size: u32,
    /// There may be no space left.
    pub tight: bool,
    /// It is our file system, not Linux's: its callers are not root, so that writing takes set-user-ID away, and what is
    /// misaligned changes nothing.
    pub ours: bool,
}

/// A time stamp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stamp {
    /// Set to this.
    At(Time),
    /// The time of the operation of this number.
    Op(u64),
    /// Not known.
    Any,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum What {
    /// A regular file.
    File(Data),
    /// A directory: names, and the directory it is in.
    Dir(BTreeMap<String, Nid>, Nid),
    /// A symbolic link.
    Link(String),
}

/// An inode.
#[derive(Clone, Debug)]
pub struct Node {
    what: What,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    atime: Stamp,
    mtime: Stamp,
    ctime: Stamp,
    opens: u32,
    ino: Option<u64>,
    /// Set-user-ID, set-group-ID and capabilities may have fallen: the next look tells.
    unsure: bool,
}

impl Node {
    fn kind(&self) -> Kind {
        match self.what {
            What::File(_) => Kind::File,
            What::Dir(..) => Kind::Dir,
            What::Link(_) => Kind::Link,
        }
    }

    fn is_dir(&self) -> bool {
        self.kind() == Kind::Dir
    }
}

/// An open file.
#[derive(Clone, Copy, Debug)]
struct Slot {
    nid: Nid,
    flags: OFlags,
}

/// A file that has to be looked at: see [`Model::resync`].
#[derive(Clone, Debug)]
struct Pending {
    nid: Nid,
    changes: Vec<Partly>,
    sizes: std::ops::RangeInclusive<u64>,
}

/// The model.
pub struct Model {
    expect: Expect,
    nodes: BTreeMap<Nid, Node>,
    slots: [Option<Slot>; SLOTS],
    next: Nid,
    /// The number of the operation.
    now: u64,
    /// When operations were, as far as stamps have told.
    clock: BTreeMap<u64, Time>,
    /// Inodes in use that are not in the model.
    base_inodes: Option<u64>,
    pending: Option<Pending>,
}

/// The answer was not the right one.
pub type Wrong = String;

/// `Err` unless both are the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, want: &T) -> Result<(), Wrong> {
    if got == want { Ok(()) } else { Err(format!("{what}: {got:?}, should be {want:?}")) }
}

impl Model {
    /// Of an empty file system: a root directory with `lost+found`.
    pub fn new(expect: Expect) -> Self {
        let mut model = Self {
            expect,
            nodes: BTreeMap::new(),
            slots: [None; SLOTS],
            next: 1,
            now: 0,
            clock: BTreeMap::new(),
            base_inodes: None,
            pending: None,
        };
        let dir = |parent, nlink, mode| Node {
            what: What::Dir(BTreeMap::new(), parent),
            mode,
            uid: 0,
            gid: 0,
            nlink,
            xattrs: BTreeMap::new(),
            atime: Stamp::Any,
            mtime: Stamp::Any,
            ctime: Stamp::Any,
            opens: 0,
            ino: None,
            unsure: false,
        };
        model.nodes.insert(ROOT, dir(ROOT, 3, 0o755));
        let lost = model.add(dir(ROOT, 2, 0o700));
        model.dir_mut(ROOT).insert("lost+found".to_string(), lost);
        model
    }

    /// What it was made for.
    pub fn expect(&self) -> Expect {
        self.expect
    }

    /// Whether `got` is a right answer to `op`; goes on from there. `Some`: look at this file and tell [`Model::resync`].
    pub fn step(&mut self, op: &Op, got: &Reply) -> Result<Option<Target>, Wrong> {
        self.now += 1;
        self.look_at_privileges(op, got);
        match op {
            Op::Read { slot, pos, len, .. } => self.step_read(*slot, *pos, *len, got),
            Op::Write { slot, pos, len, tag, rwf, .. } => return self.step_write(*slot, *pos, *len, *tag, *rwf, got),
            Op::Aio { slot, tag, list } => return self.step_aio(*slot, *tag, list, got),
            Op::Truncate { path, size } => {
                let to = self.truncate_path(path);
                return self.step_truncate(to, *size, true, got, Target::Path(path.clone()));
            }
            Op::Ftruncate { slot, size } => {
                let to = self.truncate_slot(*slot);
                return self.step_truncate(to, *size, false, got, Target::Slot(*slot));
            }
            Op::Fallocate { slot, how, pos, len } => return self.step_fallocate(*slot, *how, *pos, *len, got),
            Op::SeekData { slot, pos } => self.step_seek(*slot, *pos, true, got),
            Op::SeekHole { slot, pos } => self.step_seek(*slot, *pos, false, got),
            Op::Fiemap { slot } => self.step_fiemap(*slot, got),
            Op::Readdir { path, .. } => self.step_readdir(path, got),
            Op::Stat { path } => {
                self.resolve(path, true).map_or_else(|e| Self::failed(e, got), |n| self.step_stat(n, got))
            }
            Op::Lstat { path } => {
                self.resolve(path, false).map_or_else(|e| Self::failed(e, got), |n| self.step_stat(n, got))
            }
            Op::Fstat { slot } => {
                self.open_slot(*slot).map_or_else(|e| Self::failed(e, got), |s| self.step_stat(s.nid, got))
            }
            Op::SetXattr { path, name, len, tag, how } => self.step_setxattr(path, name, *len, *tag, *how, got),
            Op::ListXattr { path } => self.step_listxattr(path, got),
            Op::Statfs {} => self.step_statfs(got),
            // Of a new name or inode.
            Op::Open { slot, .. } if self.expect.tight && *got == Err(libc::ENOSPC) => {
                self.close(*slot);
                Ok(())
            }
            _ if self.expect.tight && *got == Err(libc::ENOSPC) && needs_space(op) => Ok(()),
            _ => {
                let want = self.names_op(op);
                if *got == want { Ok(()) } else { Err(format!("{got:?}, should be {want:?}")) }
            }
        }
        .map(|()| None)
    }

    /// If a file's capabilities may have fallen, what is told of its attributes tells.
    fn look_at_privileges(&mut self, op: &Op, got: &Reply) {
        let (path, fell) = match (op, got) {
            (Op::GetXattr { path, name } | Op::RemoveXattr { path, name }, Err(libc::ENODATA)) => {
                (path, name == CAPABILITY)
            }
            (Op::SetXattr { path, name, how, .. }, got) => {
                let created = *how == XattrHow::Create && got.is_ok();
                (path, name == CAPABILITY && (created || *got == Err(libc::ENODATA)))
            }
            (Op::ListXattr { path }, Ok(Out::List(names))) => (path, !names.iter().any(|n| n == CAPABILITY)),
            _ => return,
        };
        if let (true, Ok(nid)) = (fell, self.resolve(path, true))
            && self.node(nid).unsure
        {
            self.node_mut(nid).xattrs.remove(CAPABILITY);
        }
    }

    fn failed(want: Errno, got: &Reply) -> Result<(), Wrong> {
        match got {
            Err(e) if *e == want => Ok(()),
            _ => Err(format!("{}, should be errno {want}", brief(got))),
        }
    }

    /// After [`Model::step`] has asked for it.
    pub fn resync(&mut self, seen: &Seen) -> Result<(), Wrong> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        match self.nodes.get_mut(&pending.nid).map(|n| &mut n.what) {
            Some(What::File(data)) => data.resync(seen, &pending.changes, pending.sizes),
            _ => Err("no such file any more".to_string()),
        }
    }

    /// Compares everything with what `vfs` shows.
    pub fn compare(&mut self, vfs: &mut dyn Vfs) -> Result<(), Wrong> {
        let mut todo = vec![(".".to_string(), ROOT)];
        while let Some((path, nid)) = todo.pop() {
            let wrong = |what: &str, e: Wrong| format!("{path}: {what}: {e}");
            let op = Op::Lstat { path: path.clone() };
            self.step(&op, &vfs.apply(&op)).map_err(|e| wrong("stat", e))?;
            match &self.nodes[&nid].what {
                What::File(_) => {
                    let seen =
                        vfs.see(&Target::Path(path.clone())).map_err(|e| wrong("reading", format!("errno {e}")))?;
                    let What::File(data) = &mut self.node_mut(nid).what else { continue };
                    data.check_seen(&seen).map_err(|e| wrong("contents", e))?;
                }
                What::Dir(names, _) => {
                    let children: Vec<(String, Nid)> =
                        names.iter().map(|(name, nid)| (format!("{path}/{name}"), *nid)).collect();
                    todo.extend(children);
                    let op = Op::Readdir { path: path.clone(), chunk: 1000 };
                    self.step(&op, &vfs.apply(&op)).map_err(|e| wrong("readdir", e))?;
                }
                What::Link(_) => {
                    let op = Op::Readlink { path: path.clone() };
                    self.step(&op, &vfs.apply(&op)).map_err(|e| wrong("readlink", e))?;
                    continue;
                }
            }
            let op = Op::ListXattr { path: path.clone() };
            self.step(&op, &vfs.apply(&op)).map_err(|e| wrong("listxattr", e))?;
            for name in self.nodes[&nid].xattrs.keys().cloned().collect::<Vec<_>>() {
                let op = Op::GetXattr { path: path.clone(), name };
                self.step(&op, &vfs.apply(&op)).map_err(|e| wrong(&op.to_string(), e))?;
            }
        }
        Ok(())
    }

    /// After a mount that begins with what is on disk: nothing is open.
    pub fn close_all(&mut self) {
        for slot in 0..SLOTS as u8 {
            self.close(slot);
        }
    }

    fn add(&mut self, node: Node) -> Nid {
        let nid = self.next;
        self.next += 1;
        self.nodes.insert(nid, node);
        nid
    }

    fn node(&self, nid: Nid) -> &Node {
        &self.nodes[&nid]
    }

    fn node_mut(&mut self, nid: Nid) -> &mut Node {
        self.nodes.get_mut(&nid).expect("nodes live as long as they have names")
    }

    fn dir(&self, nid: Nid) -> &BTreeMap<String, Nid> {
        match &self.node(nid).what {
            What::Dir(names, _) => names,
            _ => panic!("no directory"),
        }
    }

    fn dir_mut(&mut self, nid: Nid) -> &mut BTreeMap<String, Nid> {
        match &mut self.node_mut(nid).what {
            What::Dir(names, _) => names,
            _ => panic!("no directory"),
        }
    }

    fn data_mut(&mut self, nid: Nid) -> &mut Data {
        match &mut self.node_mut(nid).what {
            What::File(data) => data,
            _ => panic!("no file"),
        }
    }

    fn open_slot(&self, slot: u8) -> Result<Slot, Errno> {
        self.slots.get(usize::from(slot)).copied().flatten().ok_or(libc::EBADF)
    }

    fn close(&mut self, slot: u8) {
        if let Some(slot) = self.slots[usize::from(slot)].take() {
            self.node_mut(slot.nid).opens -= 1;
            self.reap(slot.nid);
        }
    }

    /// Gone if nothing holds it.
    fn reap(&mut self, nid: Nid) {
        let node = self.node(nid);
        if node.nlink == 0 && node.opens == 0 {
            self.nodes.remove(&nid);
        }
    }

    fn changed(&mut self, nid: Nid) {
        let now = Stamp::Op(self.now);
        self.node_mut(nid).ctime = now;
    }

    fn modified(&mut self, nid: Nid) {
        let now = Stamp::Op(self.now);
        let node = self.node_mut(nid);
        (node.mtime, node.ctime) = (now, now);
    }

    /// A stamp that was seen.
    fn check_stamp(&mut self, what: &str, got: Time, want: Stamp) -> Result<(), Wrong> {
        match want {
            Stamp::Any => Ok(()),
            Stamp::At((sec, nsec)) => {
                let nsec = if self.expect.inode_size > 128 { nsec } else { 0 };
                // Until it is written and read again, memory may know more.
                if got.0 == sec && (got.1 == nsec || self.expect.inode_size == 128) {
                    Ok(())
                } else {
                    Err(format!("{what} is {got:?}, should be {sec}.{nsec}"))
                }
            }
            Stamp::Op(n) => {
                let got = if self.expect.inode_size > 128 { got } else { (got.0, 0) };
                if let Some((m, t)) = self.clock.range(..n).next_back()
                    && later(*t, got)
                {
                    return Err(format!("{what} {got:?} of operation {n} is before {t:?} of operation {m}"));
                }
                if let Some((m, t)) = self.clock.range(n + 1..).next()
                    && later(got, *t)
                {
                    return Err(format!("{what} {got:?} of operation {n} is after {t:?} of operation {m}"));
                }
                self.clock.insert(n, got);
                Ok(())
            }
        }
    }
}

/// Whether `a` is after `b`, by more than a virtual machine's clock is set back at a time.
fn later(a: Time, b: Time) -> bool {
    const SLACK: i64 = 100_000_000;
    (a.0 - b.0).saturating_mul(1_000_000_000).saturating_add(i64::from(a.1) - i64::from(b.1)) > SLACK
}

/// Operations on names that may meet ENOSPC.
fn needs_space(op: &Op) -> bool {
    matches!(op, Op::Link { .. } | Op::Symlink { .. } | Op::Mkdir { .. } | Op::Rename { .. })
}

/// A reply without its data.
pub fn brief(reply: &Reply) -> String {
    match reply {
        Ok(Out::Bytes(bytes)) => format!("{} bytes", bytes.len()),
        Ok(out) => format!("{out:?}"),
        Err(e) => format!("errno {e}"),
    }
}
