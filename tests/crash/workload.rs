// SPDX-License-Identifier: GPL-2.0-only
//! What is done before the crash: steps drawn from a seed, and steps by hand.

use ext4_dio_tests::crash_world::Step;
use ext4_dio_tests::oplang::*;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Writes of all kinds, and what makes them durable.
    Data,
    /// As before, and the map changes under them.
    Map,
    /// Names, links, directories, attributes.
    Names,
    /// All of it.
    Mixed,
}

const THEMES: [Theme; 4] = [Theme::Data, Theme::Map, Theme::Names, Theme::Mixed];

/// Files that are open throughout, by slot; the last two slots are for others.
const FILES: [&str; 4] = ["d0/f0", "f1", "d1/f2", "f3"];
const SPARE: u8 = 4;

/// Opens with `O_CREAT`.
pub(crate) fn open(slot: u8, path: &str, more: OFlags) -> Step {
    Step::Op(Op::Open { slot, path: path.to_string(), flags: OFlags::RDWR | OFlags::CREAT | more, mode: 0o644 })
}

/// A write.
pub(crate) fn write(slot: u8, pos: u64, len: u64, tag: u32) -> Step {
    Step::Op(Op::Write { slot, pos, len: len as usize, segs: 1, tag, rwf: Rwf(0) })
}

/// What there is before the recording begins, all of it synced: two directories, and four files, every second of them open for direct
/// I/O: one with data, one with data and a hole, one with blocks that were never written, one empty. And `log` transactions, so that
/// the log does not begin at its beginning.
pub(crate) fn setup(block: u32, extents: bool, log: u64) -> Vec<Step> {
    let b = u64::from(block);
    let dir = |path: &str| Step::Op(Op::Mkdir { path: path.to_string(), mode: 0o755 });
    let mut steps = vec![dir("d0"), dir("d1")];
    for (slot, path) in (0..).zip(FILES) {
        let more = if slot % 2 == 0 { OFlags::DIRECT } else { OFlags(0) };
        steps.push(open(slot, path, more));
    }
    steps.push(write(0, 0, 8 * b, 1_000_001));
    steps.push(write(1, 0, 3 * b, 1_000_002));
    steps.push(write(1, 6 * b, 2 * b + 100, 1_000_003));
    if extents {
        steps.push(Step::Op(Op::Fallocate { slot: 2, how: Falloc::Alloc, pos: 0, len: 16 * b }));
    }
    for n in 0..log {
        let (path, name) = ("f3".to_string(), "user.log".to_string());
        steps.push(Step::Op(Op::SetXattr { path, name, len: 8, tag: n as u32, how: XattrHow::Any }));
        steps.push(Step::Op(Op::Fsync { slot: 3 }));
    }
    steps.push(Step::Op(Op::Sync {}));
    steps
}

/// Steps for [`setup`]'s files.
pub(crate) fn random(seed: u64, block: u32, n: usize) -> Vec<Step> {
    let theme = THEMES[(seed / 16 % 4) as usize];
    let mut draw = Draw { rng: Rng(seed), b: u64::from(block), tag: 0, theme, cut: [0; FILES.len() + 1] };
    (0..n).map(|_| draw.step()).collect()
}

struct Draw {
    rng: Rng,
    b: u64,
    tag: u32,
    theme: Theme,
    /// Where each file was cut last.
    cut: [u64; FILES.len() + 1],
}

impl Draw {
    fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    fn slot(&mut self) -> u8 {
        if self.rng.one_in(12) { SPARE } else { self.rng.below(FILES.len() as u64) as u8 }
    }

    /// Mostly whole blocks near the start; for indirect maps, near the first indirect block, too.
    fn pos(&mut self) -> u64 {
        let at = self.rng.below(18) * self.b;
        match self.rng.below(8) {
            0 => at + 512 * self.rng.below(self.b / 512),
            1 => at + self.rng.below(self.b),
            _ => at,
        }
    }

    fn len(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => 512 * (1 + self.rng.below(5)),
            1 => 1 + self.rng.below(2 * self.b),
            _ => self.b * (1 + self.rng.below(4)),
        }
    }

    fn step(&mut self) -> Step {
        let (data, map, sync) = match self.theme {
            Theme::Data => (55, 8, 30),
            Theme::Map => (40, 35, 20),
            Theme::Names => (10, 5, 20),
            Theme::Mixed => (35, 15, 22),
        };
        let n = self.rng.below(100);
        if n < data {
            self.data()
        } else if n < data + map {
            self.map()
        } else if n < data + map + sync {
            self.sync()
        } else {
            self.names()
        }
    }

    fn data(&mut self) -> Step {
        let (slot, tag) = (self.slot(), self.tag());
        let (pos, len) = (self.pos(), self.len());
        match self.rng.below(10) {
            0..2 => {
                // Side by side, in any order.
                let b = self.b;
                let first = pos / b * b;
                let mut list: Vec<(u64, usize)> =
                    (0..2 + self.rng.below(3)).map(|k| (first + 2 * k * b, b as usize)).collect();
                if self.rng.one_in(2) {
                    list.reverse();
                }
                Step::Op(Op::Aio { slot, tag, list })
            }
            3 => Step::WriteBack { slot },
            2 => Step::Op(Op::SetDirect { slot, on: self.rng.one_in(2) }),
            4 => {
                // Over the end that a truncation has left in a block.
                let end = self.cut[usize::from(slot)];
                let pos = end.saturating_sub(self.rng.below(600));
                let len = end - pos + 1 + self.rng.below(self.b / 2);
                write(slot, pos, len, tag)
            }
            _ => {
                let mut rwf = Rwf(0);
                if self.rng.one_in(4) {
                    rwf = rwf | Rwf::APPEND;
                }
                if self.rng.one_in(5) {
                    rwf = rwf | Rwf::DSYNC;
                }
                let segs = 1 + self.rng.below(2) as usize;
                Step::Op(Op::Write { slot, pos, len: len as usize, segs, tag, rwf })
            }
        }
    }

    fn map(&mut self) -> Step {
        let slot = self.slot();
        let (pos, len) = (self.pos(), self.len());
        let how = *self.rng.pick(Falloc::ALL);
        match self.rng.below(8) {
            0..3 => {
                // Often in the middle of a block.
                let size = if self.rng.one_in(2) { pos } else { pos + self.rng.below(self.b) };
                self.cut[usize::from(slot)] = size;
                Step::Op(Op::Ftruncate { slot, size })
            }
            _ if matches!(how, Falloc::Collapse | Falloc::Insert) => {
                let pos = self.rng.below(6) * self.b;
                let len = (1 + self.rng.below(3)) * self.b;
                Step::Op(Op::Fallocate { slot, how, pos, len })
            }
            _ => Step::Op(Op::Fallocate { slot, how, pos, len }),
        }
    }

    fn sync(&mut self) -> Step {
        let slot = self.slot();
        match self.rng.below(12) {
            0..6 => Step::Op(Op::Fsync { slot }),
            6..9 => Step::Op(Op::Fdatasync { slot }),
            9 => Step::FsyncDir { path: self.dir() },
            10 => Step::Op(Op::Sync {}),
            _ => Step::Freeze,
        }
    }

    fn dir(&mut self) -> String {
        (*self.rng.pick(&[".", "d0", "d1", "d0/e"])).to_string()
    }

    fn name(&mut self) -> String {
        let dir = self.dir();
        let n = self.rng.below(5);
        match self.rng.below(4) {
            0 => (*self.rng.pick(&FILES)).to_string(),
            1 => format!("{dir}/long-name-{n}-{}", "x".repeat(40 * n as usize)),
            _ => format!("{dir}/n{n}"),
        }
    }

    fn names(&mut self) -> Step {
        let (a, b) = (self.name(), self.name());
        match self.rng.below(24) {
            0..5 => {
                let how = *self.rng.pick(&[RenameHow::Plain, RenameHow::Plain, RenameHow::Exchange]);
                Step::Op(Op::Rename { from: a, to: b, how })
            }
            5..7 => Step::Op(Op::Unlink { path: a }),
            7..9 => Step::Op(Op::Link { from: a, to: b }),
            9..11 => {
                let long = if self.rng.one_in(2) { 100 } else { 4 };
                Step::Op(Op::Symlink { target: "to/".repeat(long), path: a })
            }
            11..13 => Step::Op(Op::Mkdir { path: self.new_dir(), mode: 0o755 }),
            13 => Step::Op(Op::Rmdir { path: self.new_dir() }),
            14..16 => Step::Tmpfile { slot: SPARE, dir: self.dir(), direct: self.rng.one_in(2) },
            16 => Step::LinkSlot { slot: SPARE, path: a },
            17 => Step::Op(Op::Close { slot: SPARE }),
            18..20 => {
                let flags = [OFlags::DIRECT, OFlags(0), OFlags::SYNC, OFlags::APPEND, OFlags::TRUNC | OFlags::DSYNC];
                open(SPARE, &a, *self.rng.pick(&flags))
            }
            20..23 => {
                let name = (*self.rng.pick(&["user.a", "trusted.b", "security.c"])).to_string();
                let most = if self.rng.one_in(2) { 30 } else { 500 };
                let len = self.rng.below(most) as usize;
                Step::Op(Op::SetXattr { path: a, name, len, tag: self.tag(), how: XattrHow::Any })
            }
            _ => Step::Op(Op::RemoveXattr { path: a, name: "user.a".to_string() }),
        }
    }

    fn new_dir(&mut self) -> String {
        (*self.rng.pick(&["d0/e", "d1/e", "d2", "d0/e/g"])).to_string()
    }
}

/// A run by hand, and what it is for.
pub(crate) struct Script {
    /// For messages.
    pub(crate) name: &'static str,
    /// After [`setup`].
    pub(crate) steps: fn(u64) -> Vec<Step>,
}

/// Runs that are worth having each time.
pub(crate) const SCRIPTS: [Script; 7] = [
    Script { name: "replace by rename", steps: replace_by_rename },
    Script { name: "appends", steps: appends },
    Script { name: "blocks that were another's", steps: second_hand },
    Script { name: "files without names", steps: nameless },
    Script { name: "a log that goes round", steps: many_commits },
    Script { name: "a directory that grows", steps: many_names },
    Script { name: "cut, and grown in a block", steps: cut_and_grown },
];

/// What editors do: write beside it, fsync, rename over it.
fn replace_by_rename(b: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..4 {
        let direct = if n % 2 == 0 { OFlags::DIRECT } else { OFlags(0) };
        steps.push(open(SPARE, "d0/new", direct));
        steps.push(write(SPARE, 0, (n + 1) * b, n as u32 + 1));
        steps.push(Step::Op(Op::Fsync { slot: SPARE }));
        let how = if n == 2 { RenameHow::Exchange } else { RenameHow::Plain };
        steps.push(Step::Op(Op::Rename { from: "d0/new".to_string(), to: "d0/f0".to_string(), how }));
        if n % 2 == 1 {
            steps.push(Step::FsyncDir { path: "d0".to_string() });
        }
    }
    steps
}

/// Logs: appends of whole blocks and of parts, through the cache and past it, synced and not.
fn appends(b: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..16u32 {
        let slot = if n % 3 == 0 { 3 } else { 2 };
        let len = if n % 4 == 3 { 700 } else { b as usize * (1 + n as usize % 3) };
        let len = if slot == 2 { len.next_multiple_of(512) } else { len };
        let rwf = if n % 5 == 0 { Rwf::APPEND | Rwf::DSYNC } else { Rwf::APPEND };
        steps.push(Step::Op(Op::Write { slot, pos: 0, len, segs: 1, tag: n + 1, rwf }));
        if n % 6 == 5 {
            steps.push(Step::Op(Op::Fdatasync { slot }));
        }
        if n == 9 {
            let list = (0..4).map(|k| ((40 + 3 - k) * b, b as usize)).collect();
            steps.push(Step::Op(Op::Aio { slot: 2, tag: 100, list }));
        }
    }
    steps
}

/// A file is cut in the middle of a block, which orders its data, and grows within that; a commit for another file writes it.
fn cut_and_grown(b: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..6u32 {
        let size = u64::from(6 - n) * b - 3 * b / 4;
        steps.push(write(3, size - 100, b, 3 * n + 1));
        steps.push(Step::Op(Op::Fsync { slot: 3 }));
        steps.push(Step::Op(Op::Ftruncate { slot: 3, size }));
        steps.push(write(3, size - 10, 10 + b / 8, 3 * n + 2));
        steps.push(write(1, u64::from(n) * b, b, 3 * n + 3));
        steps.push(Step::Op(Op::Fsync { slot: 1 }));
        steps.push(Step::Op(if n % 2 == 0 { Op::Fsync { slot: 3 } } else { Op::Fdatasync { slot: 3 } }));
    }
    steps
}

/// Blocks go from file to file, and nobody sees what was in them.
fn second_hand(b: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..5u32 {
        let (from, to) = (n as u8 % 4, (n as u8 + 1) % 4);
        steps.push(write(from, 0, 12 * b, 2 * n + 1));
        steps.push(Step::Op(Op::Fsync { slot: from }));
        steps.push(Step::Op(Op::Ftruncate { slot: from, size: u64::from(n) * b / 2 }));
        if n % 2 == 0 {
            steps.push(Step::Op(Op::Sync {}));
        }
        steps.push(write(to, 4 * b, 10 * b, 2 * n + 2));
        steps.push(Step::Op(Op::Fdatasync { slot: to }));
    }
    steps
}

/// Unlinked and open, made without a name, given one.
fn nameless(b: u64) -> Vec<Step> {
    let mut steps = vec![
        Step::Tmpfile { slot: SPARE, dir: "d1".to_string(), direct: true },
        write(SPARE, 0, 5 * b, 1),
        Step::Op(Op::Fsync { slot: SPARE }),
        Step::Op(Op::Unlink { path: FILES[0].to_string() }),
        write(0, 8 * b, 4 * b, 2),
        Step::Op(Op::Sync {}),
        Step::LinkSlot { slot: SPARE, path: "d0/named".to_string() },
        Step::Op(Op::Fsync { slot: SPARE }),
        Step::Op(Op::Unlink { path: FILES[1].to_string() }),
        Step::Op(Op::Fsync { slot: 1 }),
        Step::Op(Op::Close { slot: 0 }),
        open(0, "d0/f0", OFlags::DIRECT),
        write(0, 0, 3 * b, 3),
    ];
    steps.push(Step::Tmpfile { slot: SPARE + 1, dir: ".".to_string(), direct: false });
    steps.push(write(SPARE + 1, 0, 6 * b, 4));
    steps.push(Step::Op(Op::Sync {}));
    steps
}

/// Transactions enough to fill the log, so that blocks are brought home and their places in it used again.
fn many_commits(b: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..36u32 {
        let path = format!("d{}/n{}", n % 2, n % 7);
        steps.push(open(SPARE, &path, OFlags::DIRECT));
        steps.push(write(SPARE, u64::from(n % 5) * b, b, n + 1));
        steps.push(if n % 9 == 8 { Step::Freeze } else { Step::Op(Op::Fsync { slot: SPARE }) });
        if n % 4 == 3 {
            steps.push(Step::Op(Op::Unlink { path }));
        }
    }
    steps
}

/// Names enough for a second block, and for an index of them.
fn many_names(_b: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let name = |n: u32| format!("d0/{n}-{}", "name".repeat(40));
    for n in 0..26 {
        let path = name(n);
        steps.push(match n % 3 {
            0 => Step::Op(Op::Symlink { target: path.clone(), path }),
            1 => Step::Op(Op::Link { from: "f1".to_string(), to: path }),
            _ => open(SPARE, &path, OFlags(0)),
        });
        if n % 5 == 4 {
            steps.push(Step::FsyncDir { path: "d0".to_string() });
        }
    }
    for n in (0..26).step_by(2) {
        let how = RenameHow::Plain;
        steps.push(if n % 4 == 0 {
            Step::Op(Op::Rename { from: name(n), to: format!("d1/{n}"), how })
        } else {
            Step::Op(Op::Unlink { path: name(n) })
        });
    }
    steps.push(Step::Op(Op::Sync {}));
    steps
}
