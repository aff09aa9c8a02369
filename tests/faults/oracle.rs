// SPDX-License-Identifier: GPL-2.0-only
//! What a run with a fault must leave: it is asked of runs without one.
//!
//! A step that answered with the fault's errno has done nothing, or a part of what it does with a file's data; so the rest must be as
//! in a run in which that step is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;

use ext4_dio::file::ext4_file_read;
use ext4_dio::path::path_lookupat;
use ext4_dio::{File, Kiocb};
use ext4_dio_tests::oplang::{Errno, Kind, Op, Out, Reply, Vfs};
use ext4_dio_tests::ours::Ours;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};

use crate::disk::Cow;
use crate::script::{About, Durable, Machine, Slots, Step};
use crate::workloads::Task;

/// More of a file is not looked at.
const MAX_BYTES: usize = 1 << 20;

/// What can be seen of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    kind: Kind,
    nlink: u32,
    mode: u32,
    /// Bytes of a regular file.
    pub(crate) size: u64,
    /// Of a regular file its data, of a link its target.
    pub(crate) bytes: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// Everything, by path. Hard links come once for each name.
pub(crate) type Tree = BTreeMap<String, Node>;

fn read_file(ours: &Ours, path: &str) -> Result<Vec<u8>, Errno> {
    let errno = |e: kernel_shim::error::Error| -e.to_errno();
    let inode = path_lookupat(ours.sb()?, path.as_bytes(), false).map_err(errno)?;
    let mut buf = vec![0xee; (inode.i_size() as usize).min(MAX_BYTES)];
    let file = File::open(inode, OpenFlags::empty()).map_err(errno)?;
    let iov = [IoVec::dest(&mut buf)];
    let n = ext4_file_read(&mut Kiocb::new_sync(&file, 0), &mut IovIter::new(&iov)).map_err(errno)?;
    buf.truncate(n);
    Ok(buf)
}

fn node(ours: &mut Ours, path: &str, xattrs: bool) -> Result<Node, String> {
    let wrong = |what: &str, e: Errno| format!("{path}: {what}: errno {e}");
    let stat = match ours.apply(&Op::Lstat { path: path.to_string() }) {
        Ok(Out::Stat(stat)) => stat,
        other => return Err(format!("{path}: stat: {other:?}")),
    };
    let bytes = match stat.kind {
        Kind::File => read_file(ours, path).map_err(|e| wrong("reading", e))?,
        Kind::Link => match ours.apply(&Op::Readlink { path: path.to_string() }) {
            Ok(Out::Text(target)) => target.into_bytes(),
            other => return Err(format!("{path}: readlink: {other:?}")),
        },
        _ => Vec::new(),
    };
    let mut values = BTreeMap::new();
    if xattrs && stat.kind == Kind::File {
        let Ok(Out::List(names)) = ours.apply(&Op::ListXattr { path: path.to_string() }) else {
            return Err(format!("{path}: its attributes"));
        };
        for name in names {
            match ours.apply(&Op::GetXattr { path: path.to_string(), name: name.clone() }) {
                Ok(Out::Bytes(value)) => values.insert(name, value),
                other => return Err(format!("{path}: {name}: {other:?}")),
            };
        }
    }
    let size = if stat.kind == Kind::File { stat.size } else { 0 };
    Ok(Node { kind: stat.kind, nlink: stat.nlink, mode: stat.mode, size, bytes, xattrs: values })
}

/// Looks at everything. `xattrs`: at attributes, too.
pub(crate) fn look(ours: &mut Ours, xattrs: bool) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        let path = if dir.is_empty() { "." } else { dir.as_str() }.to_string();
        let names = match ours.apply(&Op::Readdir { path, chunk: 200 }) {
            Ok(Out::Names(names)) => names,
            other => return Err(format!("{dir:?}: readdir: {other:?}")),
        };
        for name in names {
            let path = if dir.is_empty() { name.name } else { format!("{dir}/{}", name.name) };
            if tree.insert(path.clone(), node(ours, &path, xattrs)?).is_some() {
                return Err(format!("{path} is there twice"));
            }
            if name.kind == Kind::Dir {
                todo.push(path);
            }
        }
    }
    Ok(tree)
}

/// A run without faults.
pub(crate) struct Reference {
    /// Of the steps in `a`, those left out included (as they would have been answered).
    pub(crate) replies: Vec<Reply>,
    /// Of the steps in `b`.
    pub(crate) second: Vec<Reply>,
    /// Before the first step, and after each in `a`.
    pub(crate) after: Vec<Rc<Tree>>,
    /// After those in `b`.
    pub(crate) last: Rc<Tree>,
}

/// All references of a task that were asked for.
#[derive(Default)]
pub(crate) struct References(HashMap<Vec<usize>, Rc<Reference>>);

impl References {
    /// The run without the steps `omitted` in `a`.
    pub(crate) fn without(&mut self, task: &Task, omitted: &BTreeSet<usize>) -> Rc<Reference> {
        let key: Vec<usize> = omitted.iter().copied().collect();
        self.0.entry(key).or_insert_with(|| Rc::new(Reference::run(task, omitted))).clone()
    }
}

fn must_look(task: &Task, machine: &mut Machine) -> Rc<Tree> {
    let ours = machine.vfs().expect("mounted");
    Rc::new(look(ours, task.xattrs()).unwrap_or_else(|e| panic!("{}: without a fault: {e}", task.name())))
}

impl Reference {
    fn run(task: &Task, omitted: &BTreeSet<usize>) -> Self {
        let mut machine = Machine::new(Cow::new(task.prepared.base.clone()), task.world.late, task.world.options);
        machine.apply(&Step::Mount).expect("mounting without a fault");
        let mut after = vec![must_look(task, &mut machine)];
        let mut replies = Vec::new();
        for (n, step) in task.steps.iter().enumerate() {
            // A mount that stays frozen would stop everything; and unmounting is done, whatever it answers.
            if omitted.contains(&n) && !matches!(step, Step::Thaw | Step::Remount) {
                if let Step::Op(Op::Open { slot, .. }) = step {
                    // It fails with what was open in the slot closed.
                    let _ = machine.apply(&Step::Op(Op::Close { slot: *slot }));
                }
                replies.push(Ok(Out::Done));
                after.push(after[n].clone());
                continue;
            }
            replies.push(machine.apply(step));
            let same = matches!(step, Step::Op(Op::Fsync { .. } | Op::Read { .. } | Op::Stat { .. }));
            let now = if same || task.sparse(n) { after[n].clone() } else { must_look(task, &mut machine) };
            after.push(now);
        }
        if task.steps.last().is_some_and(|_| !omitted.contains(&(task.steps.len() - 1))) {
            after.pop();
            after.push(must_look(task, &mut machine));
        }
        machine.close_all();
        let second = task.second.iter().map(|step| machine.apply(step)).collect();
        machine.close_all();
        let last = must_look(task, &mut machine);
        machine.apply(&Step::Umount).unwrap_or_else(|e| panic!("{}: unmounting without a fault: {e}", task.name()));
        Self { replies, second, after, last }
    }
}

/// Whether two answers say the same. Numbers of inodes, free blocks and times are nobody's business.
pub(crate) fn same_answer(a: &Reply, b: &Reply) -> bool {
    match (a, b) {
        (Ok(Out::Stat(a)), Ok(Out::Stat(b))) => (a.kind, a.mode, a.nlink, a.size) == (b.kind, b.mode, b.nlink, b.size),
        (Ok(Out::Names(a)), Ok(Out::Names(b))) => {
            let names = |list: &[ext4_dio_tests::oplang::Name]| {
                list.iter().map(|n| (n.name.clone(), n.kind)).collect::<BTreeSet<_>>()
            };
            names(a) == names(b) && a.len() == b.len()
        }
        (Ok(Out::Statfs(_)), Ok(Out::Statfs(_))) => true,
        // Where extents end is the allocator's business.
        (Ok(Out::Map(_)), Ok(Out::Map(_))) => true,
        (a, b) => a == b,
    }
}

/// Of which steps in `a` what is known after a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Those that answered with the fault's errno.
    pub(crate) omitted: BTreeSet<usize>,
    /// Files whose data may be as before or after such a step, byte for byte, and the first such step.
    pub(crate) torn: BTreeMap<String, usize>,
    /// The first after which that goes for all files.
    pub(crate) all_torn: Option<usize>,
    /// What steps have made durable.
    pub(crate) durable: Vec<(usize, Durable)>,
}

impl Account {
    /// What the answers say. `fault(errno)`: whether the fault may have made a step answer so.
    pub(crate) fn of(task: &Task, replies: &[Reply], full: &Reference, fault: impl Fn(Errno) -> bool) -> Self {
        let mut this = Self::default();
        let mut slots = Slots::default();
        for (n, (step, got)) in task.steps.iter().zip(replies).enumerate() {
            let failed = matches!(got, Err(e) if fault(*e) && full.replies.get(n) != Some(got));
            let short = match (got, full.replies.get(n)) {
                (Ok(Out::Count(a)), Some(Ok(Out::Count(b)))) => a != b,
                (Ok(Out::Ends(ends)), _) => ends.iter().any(|end| matches!(end, Err(e) if fault(*e))),
                _ => false,
            };
            if failed {
                this.omitted.insert(n);
            }
            if failed || short {
                match slots.about(step) {
                    About::Data(path) => {
                        this.torn.entry(path).or_insert(n);
                    }
                    About::All => this.all_torn = this.all_torn.or(Some(n)),
                    About::Else => {}
                }
            }
            this.durable.extend(slots.makes_durable(step, got).into_iter().map(|what| (n, what)));
            slots.done(step, got);
        }
        this
    }

    /// Whether any file may have data in part.
    pub(crate) fn is_torn(&self) -> bool {
        !self.torn.is_empty() || self.all_torn.is_some()
    }

    /// The first step that may have done a part of what it does to this file.
    fn torn_by(&self, path: &str) -> Option<usize> {
        self.torn.get(path).copied().into_iter().chain(self.all_torn).min()
    }

    /// `tree` must be what one of `wanted` is, but for data that may be there in part: as in any of `also`.
    ///
    /// What is in part there is not looked at with `stale`: such a file may show what its blocks held before.
    pub(crate) fn compare(&self, tree: &Tree, want: &Tree, also: &[&Tree], stale: bool) -> Result<(), String> {
        for (path, node) in want {
            let Some(got) = tree.get(path) else { return Err(format!("{path} is missing")) };
            if self.torn_by(path).is_some() && node.kind == Kind::File {
                if stale {
                    continue;
                }
                let others: Vec<&Node> = also.iter().filter_map(|tree| tree.get(path)).chain([node]).collect();
                within(path, got, &others, true, None)?;
                continue;
            }
            if got != node {
                return Err(format!("{path}: {}", difference(got, node)));
            }
        }
        match tree.keys().find(|path| !want.contains_key(*path)) {
            Some(path) => Err(format!("{path} should not be there")),
            None => Ok(()),
        }
    }

    /// What was durable must be in `tree`, which recovery has left; nor may there be data that nobody has written, unless `stale`.
    pub(crate) fn durable_in(&self, tree: &Tree, runs: &[&Reference], stale: bool) -> Result<(), String> {
        let first = runs.first().ok_or("no reference")?;
        for (path, got) in tree.iter().filter(|_| !stale) {
            let all = runs.iter().flat_map(|run| run.after.iter().chain([&run.last])).filter_map(|tree| tree.get(path));
            let all: Vec<&Node> = all.collect();
            if got.kind == Kind::File && !all.is_empty() {
                within(path, got, &all, true, None).map_err(|e| format!("never written: {e}"))?;
            }
        }
        for (n, what) in &self.durable {
            let (path, part) = match what {
                Durable::File(path) => (path, None),
                Durable::Part(path, pos, len) => (path, Some(*pos as usize..(pos + len) as usize)),
                Durable::All => {
                    for path in first.after.get(n + 1).iter().flat_map(|tree| tree.keys()) {
                        self.durable_file(tree, runs, *n, path, None, stale)?;
                    }
                    continue;
                }
            };
            // A file without a name, or that is gone, is nobody's business.
            if first.after.get(n + 1).is_some_and(|tree| tree.contains_key(path)) {
                self.durable_file(tree, runs, *n, path, part, stale)?;
            }
        }
        Ok(())
    }

    /// A file, or `part` of it, was durable when step `n` had answered.
    fn durable_file(
        &self,
        tree: &Tree,
        runs: &[&Reference],
        n: usize,
        path: &str,
        part: Option<Range<usize>>,
        stale: bool,
    ) -> Result<(), String> {
        // Whatever it was from then on; or before a step that failed half-way and came before.
        let torn = self.torn_by(path);
        // (Of what was written before that, too: that it is lost may be what the step told.)
        let from = if torn.is_some_and(|torn| torn <= n) { 0 } else { n + 1 };
        let states = || runs.iter().flat_map(|run| run.after.iter().skip(from).chain([&run.last]));
        let nodes: Vec<&Node> = states().filter_map(|tree| tree.get(path)).collect();
        match tree.get(path) {
            None if states().any(|tree| !tree.contains_key(path)) => Ok(()),
            None => Err(format!("{path} was synced by step {n}, and is missing")),
            // It may have other names.
            Some(_) if self.is_torn() && stale => Ok(()),
            Some(got) if got.kind == Kind::File && !nodes.is_empty() => {
                within(path, got, &nodes, torn.is_some(), part).map_err(|e| format!("synced by step {n}: {e}"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// Each byte of `got`, or of `part` of it, must be that of one of `nodes`, or, with `zeros`, zero; behind the end of a file there are
/// zeros. The size lies between theirs.
fn within(path: &str, got: &Node, nodes: &[&Node], zeros: bool, part: Option<Range<usize>>) -> Result<(), String> {
    let sizes = || nodes.iter().map(|node| node.size);
    let least = sizes().min().unwrap_or(0).min(part.as_ref().map_or(u64::MAX, |part| part.end as u64));
    let most = sizes().max().unwrap_or(0);
    if !zeros && got.size < least || got.size > most {
        return Err(format!("{path}: {} bytes, should be {least} to {most}", got.size));
    }
    if nodes.iter().any(|node| node.bytes == got.bytes) {
        return Ok(());
    }
    let inside = |at: &usize| part.as_ref().is_none_or(|part| part.contains(at));
    for (at, byte) in got.bytes.iter().enumerate().filter(|(at, _)| inside(at)) {
        let some = |node: &&Node| node.bytes.get(at).copied().unwrap_or(0) == *byte;
        if !(nodes.iter().any(some) || zeros && *byte == 0) {
            let want: BTreeSet<u8> = nodes.iter().map(|node| node.bytes.get(at).copied().unwrap_or(0)).collect();
            return Err(format!("{path}: byte {at} of {} is {byte:#04x}, should be of {want:02x?}", got.bytes.len()));
        }
    }
    Ok(())
}

fn difference(got: &Node, want: &Node) -> String {
    let head = |n: &Node| format!("{:?} {:o}, {} links, {} bytes", n.kind, n.mode, n.nlink, n.size);
    if head(got) != head(want) {
        return format!("{}, should be {}", head(got), head(want));
    }
    if got.xattrs != want.xattrs {
        return "other attributes".to_string();
    }
    let at = got.bytes.iter().zip(&want.bytes).position(|(a, b)| a != b).unwrap_or(got.bytes.len());
    format!("byte {at} is {:#04x?}, should be {:#04x?}", got.bytes.get(at), want.bytes.get(at))
}
