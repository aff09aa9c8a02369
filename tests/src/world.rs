// SPDX-License-Identifier: GPL-2.0-only
//! Random worlds: a few tasks that do a few things to a few blocks of a few files, drawn from a seed.
//!
//! A [`World`] is plain data: who does what. It can be printed, run any number of times, and cut down to fewer operations. What an
//! operation writes is its number, so that whoever reads it knows whose it is: see [`history`](crate::history).

use std::fmt;

use crate::dio::MODES;
use crate::history::Change;
use crate::images::Mkfs;

pub use crate::oplang::Falloc;

/// Numbers that look random: splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    /// True in `n` of `of` cases.
    pub fn chance(&mut self, n: u64, of: u64) -> bool {
        self.below(of) < n
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// How a write or a read is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Past the page cache.
    pub direct: bool,
    /// Its end is not waited for at once.
    pub queued: bool,
    /// At the end of the file, wherever that is.
    pub append: bool,
    /// `O_DSYNC`.
    pub dsync: bool,
    /// Rather EAGAIN than sleep.
    pub nowait: bool,
}

/// What a task does. Files are numbered, positions and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes.
    Write {
        /// Which file.
        file: u8,
        /// Where.
        pos: u32,
        /// How much.
        len: u32,
        /// How.
        how: How,
    },
    /// Reads.
    Read {
        /// Which file.
        file: u8,
        /// Where.
        pos: u32,
        /// How much.
        len: u32,
        /// How.
        how: How,
    },
    /// `ftruncate`.
    Truncate {
        /// Which file.
        file: u8,
        /// How large it becomes.
        size: u32,
    },
    /// `fallocate`.
    Fallocate {
        /// Which file.
        file: u8,
        /// How.
        how: Falloc,
        /// Where.
        pos: u32,
        /// How much.
        len: u32,
    },
    /// `fsync` or `fdatasync`.
    Fsync {
        /// Which file.
        file: u8,
        /// `fdatasync`.
        datasync: bool,
    },
    /// `syncfs`.
    Sync,
    /// Freezes the file system, lets others run so often, and thaws it.
    Freeze {
        /// How often.
        pause: u8,
    },
    /// Closes the file and opens it again.
    Reopen {
        /// Which file.
        file: u8,
    },
    /// Takes the file's name away and makes a new one. Who has it open goes on with the old one.
    Unlink {
        /// Which file.
        file: u8,
    },
    /// Changes the lock mode: the number of one of [`MODES`].
    Remount {
        /// Which.
        mode: u8,
    },
    /// Waits for what this task has queued.
    Reap,
    /// Lets go of what is cached and clean.
    Shrink,
}

impl Op {
    /// How it changes a file.
    pub fn change(&self) -> Change {
        match self {
            Op::Write { how, .. } => Change::Write { buffered: !how.direct, durable: how.dsync },
            Op::Truncate { .. } => Change::Truncate,
            Op::Fallocate { how, .. } => match how {
                Falloc::Alloc => Change::Grow,
                Falloc::Keep => Change::None,
                Falloc::Punch | Falloc::ZeroKeep => Change::Zero,
                Falloc::Zero => Change::ZeroGrow,
                Falloc::Collapse | Falloc::Insert => Change::Shift,
            },
            Op::Fsync { .. } => Change::Sync { all: false },
            Op::Sync => Change::Sync { all: true },
            _ => Change::None,
        }
    }

    /// Which file it is about.
    pub fn file(&self) -> Option<u8> {
        match self {
            Op::Write { file, .. }
            | Op::Read { file, .. }
            | Op::Truncate { file, .. }
            | Op::Fallocate { file, .. }
            | Op::Fsync { file, .. }
            | Op::Reopen { file }
            | Op::Unlink { file } => Some(*file),
            _ => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = |how: &How| {
            let names =
                [(how.queued, " queued"), (how.append, " append"), (how.dsync, " dsync"), (how.nowait, " nowait")];
            let flags: String = names.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
            format!("{}{flags}", if how.direct { "direct" } else { "buffered" })
        };
        match self {
            Op::Write { file, pos, len, how } => write!(f, "write    /f{file} {pos}+{len} {}", flags(how)),
            Op::Read { file, pos, len, how } => write!(f, "read     /f{file} {pos}+{len} {}", flags(how)),
            Op::Truncate { file, size } => write!(f, "truncate /f{file} {size}"),
            Op::Fallocate { file, how, pos, len } => write!(f, "falloc   /f{file} {pos}+{len} {how:?}"),
            Op::Fsync { file, datasync: false } => write!(f, "fsync    /f{file}"),
            Op::Fsync { file, datasync: true } => write!(f, "fdatasync /f{file}"),
            Op::Sync => f.write_str("sync"),
            Op::Freeze { pause } => write!(f, "freeze   for {pause} turns"),
            Op::Reopen { file } => write!(f, "reopen   /f{file}"),
            Op::Unlink { file } => write!(f, "unlink   /f{file}, and make a new one"),
            Op::Remount { mode } => write!(f, "remount  {}", MODES[usize::from(*mode)]),
            Op::Reap => f.write_str("reap"),
            Op::Shrink => f.write_str("shrink caches"),
        }
    }
}

/// A request that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The n-th of its kind from when the tasks start, from 1.
    pub nth: u64,
    /// Writes; else reads. Of data, not of metadata.
    pub write: bool,
}

/// Who does what.
#[derive(Clone, Debug)]
pub struct World {
    /// What it was drawn from.
    pub seed: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// With a journal.
    pub journal: bool,
    /// Which of [`MODES`] it is mounted with.
    pub mode: u8,
    /// Whether the disk has a volatile cache, and whether it knows FUA.
    pub cache: (bool, bool),
    /// How many files there are.
    pub files: u8,
    /// What is done before the tasks start.
    pub prelude: Vec<Op>,
    /// The tasks.
    pub tasks: Vec<Vec<Op>>,
    /// What fails.
    pub fault: Option<Fault>,
}

/// How large worlds are.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Tasks, at least 2 and below.
    pub tasks: (u64, u64),
    /// Operations of each.
    pub ops: (u64, u64),
}

/// Worlds of which there are many.
pub const SMALL: Scale = Scale { tasks: (2, 5), ops: (1, 4) };
/// Worlds of which there are few.
pub const LARGE: Scale = Scale { tasks: (5, 33), ops: (2, 7) };

/// What a world is mostly about: which operations, how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Everything but what moves data.
    Mixed,
    /// Appends, and reads.
    Appends,
    /// Writes over what is there.
    Overwrites,
    /// Writes and what takes blocks away.
    Truncates,
    /// With collapse and insert.
    Shifts,
    /// Direct and buffered side by side.
    Caches,
}

struct Generator {
    rng: Rng,
    theme: Theme,
    bs: u32,
    blocks: u32,
    files: u8,
    faults: bool,
}

impl World {
    /// The world of a seed.
    pub fn draw(seed: u64, scale: Scale) -> Self {
        let mut rng = Rng(seed ^ 0x0057_0a1d);
        let theme = rng.pick(&[
            Theme::Mixed,
            Theme::Mixed,
            Theme::Appends,
            Theme::Overwrites,
            Theme::Truncates,
            Theme::Truncates,
            Theme::Shifts,
            Theme::Caches,
        ]);
        let bs = rng.pick(&[1024, 1024, 2048, 4096]);
        let faults = rng.chance(1, 8);
        let files = rng.pick(&[1, 1, 1, 2, 2, 3]);
        let blocks = rng.pick(&[2, 3, 4, 6]);
        let mut g = Generator { rng, theme, bs, blocks, files, faults };
        let prelude = g.prelude();
        let tasks = scale.tasks.0 + g.rng.below(scale.tasks.1 - scale.tasks.0);
        let tasks = (0..tasks).map(|_| g.task(scale.ops)).collect();
        let fault = g.faults.then(|| Fault { nth: 1 + g.rng.below(6), write: g.rng.chance(4, 5) });
        Self {
            seed,
            block_size: bs,
            journal: g.rng.chance(1, 2),
            mode: g.rng.pick(&[0, 1, 2, 2, 2, 2]),
            cache: g.rng.pick(&[(true, false), (true, true), (false, false)]),
            files,
            prelude,
            tasks,
            fault,
        }
    }

    /// The file system that it begins with.
    pub fn mkfs(&self) -> Mkfs {
        let size_kib = match (self.journal, self.block_size) {
            (false, 1024) => 256,
            (false, _) => 512,
            // Below 2048 blocks mke2fs makes no journal, and does not say so; the smallest has 1024.
            (true, block_size) => 2304 * u64::from(block_size / 1024),
        };
        Mkfs {
            block_size: self.block_size,
            features: if self.journal { "^resize_inode" } else { "^resize_inode,^has_journal" },
            size_kib,
            inodes: 32,
            args: match (self.journal, self.block_size) {
                (false, _) => &["-m", "0"],
                (true, 1024) => &["-m", "0", "-J", "size=1"],
                (true, 2048) => &["-m", "0", "-J", "size=2"],
                (true, _) => &["-m", "0", "-J", "size=4"],
            },
            ..Mkfs::default()
        }
    }

    /// All operations in the order of their numbers: the prelude's, then each task's.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.prelude.iter().chain(self.tasks.iter().flatten())
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.ops().count()
    }

    /// Whether nobody does anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether data moves inside files.
    pub fn shifts(&self) -> bool {
        self.ops().any(|op| matches!(op, Op::Fallocate { how: Falloc::Collapse | Falloc::Insert, .. }))
    }

    /// Whether files only grow.
    pub fn only_grows(&self) -> bool {
        !self.shifts() && !self.ops().any(|op| matches!(op, Op::Truncate { .. } | Op::Unlink { .. }))
    }

    /// Worlds with one task or one operation less.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut without = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            all.push(world);
        };
        for n in 0..self.tasks.len() {
            without(&|world| {
                world.tasks.remove(n);
            });
        }
        for n in 0..self.tasks.len() {
            for m in 0..self.tasks[n].len() {
                without(&|world| {
                    world.tasks[n].remove(m);
                });
            }
        }
        for n in 0..self.prelude.len() {
            without(&|world| {
                world.prelude.remove(n);
            });
        }
        all.retain(|world| !world.tasks.is_empty());
        all
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let journal = if self.journal { "with" } else { "without" };
        let mode = MODES[usize::from(self.mode)];
        writeln!(f, "world {}: blocks of {}, {journal} journal, {mode}", self.seed, self.block_size)?;
        writeln!(f, "  volatile cache: {}, FUA: {}, fault: {:?}", self.cache.0, self.cache.1, self.fault)?;
        let mut tag = 0;
        let mut list = |f: &mut fmt::Formatter<'_>, name: String, ops: &[Op]| {
            writeln!(f, "  {name}")?;
            for op in ops {
                writeln!(f, "    {tag:3} {op}")?;
                tag += 1;
            }
            Ok(())
        };
        list(f, "before".to_string(), &self.prelude)?;
        for (n, ops) in self.tasks.iter().enumerate() {
            list(f, format!("task {n}"), ops)?;
        }
        Ok(())
    }
}

impl Generator {
    fn file(&mut self) -> u8 {
        self.rng.below(u64::from(self.files)) as u8
    }

    /// A place and a length inside the few blocks; `unit` is what both are multiples of.
    fn range(&mut self, unit: u32) -> (u32, u32) {
        let units = u64::from(self.blocks * self.bs / unit);
        let pos = self.rng.below(units);
        let most = (units - pos).min(u64::from(3 * self.bs / unit)).max(1);
        (pos as u32 * unit, (1 + self.rng.below(most) as u32) * unit)
    }

    fn unit(&mut self) -> u32 {
        if self.rng.chance(1, 4) { 512 } else { self.bs }
    }

    /// Files that exist, with data, holes, unwritten blocks, or nothing.
    fn prelude(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        let (bs, all) = (self.bs, self.blocks * self.bs);
        let how = How { direct: true, ..How::default() };
        for file in 0..self.files {
            let kind = match self.theme {
                Theme::Overwrites => 0,
                Theme::Appends => 5,
                _ => self.rng.below(6),
            };
            match kind {
                0 => ops.push(Op::Write { file, pos: 0, len: all, how }),
                1 => ops.push(Op::Write { file, pos: all - bs, len: bs, how }),
                2 => ops.push(Op::Fallocate { file, how: Falloc::Alloc, pos: 0, len: all }),
                3 => {
                    ops.push(Op::Fallocate { file, how: Falloc::Alloc, pos: 0, len: all });
                    ops.push(Op::Write { file, pos: bs, len: bs, how });
                }
                4 => {
                    ops.push(Op::Write { file, pos: 0, len: all, how });
                    ops.push(Op::Fallocate { file, how: Falloc::Punch, pos: bs, len: bs });
                }
                _ => {}
            }
        }
        if self.rng.chance(1, 3) {
            ops.push(Op::Sync);
        }
        if self.rng.chance(1, 4) {
            let file = self.file();
            ops.push(Op::Read { file, pos: 0, len: all, how: How::default() });
        }
        ops
    }

    fn task(&mut self, (least, most): (u64, u64)) -> Vec<Op> {
        let n = least + self.rng.below(most - least);
        (0..n).map(|_| self.op()).collect()
    }

    fn op(&mut self) -> Op {
        let file = self.file();
        // Of 100: writes, reads, truncates, other ways to take blocks away or give them, syncs; the rest is rare.
        let [write, read, truncate, falloc, sync] = match self.theme {
            Theme::Mixed => [40, 20, 10, 12, 8],
            Theme::Appends => [60, 25, 0, 0, 10],
            Theme::Overwrites => [60, 25, 0, 0, 8],
            Theme::Truncates => [40, 15, 22, 18, 3],
            Theme::Shifts => [40, 15, 5, 30, 4],
            Theme::Caches => [50, 40, 2, 2, 4],
        };
        let at = self.rng.below(100);
        if at < write {
            return self.write(file);
        }
        if at < write + read {
            let unit = self.unit();
            let (pos, len) = self.range(unit);
            let how = How { direct: self.rng.chance(1, 2), queued: self.rng.chance(1, 5), ..How::default() };
            let how = How { queued: how.queued && how.direct, ..how };
            return Op::Read { file, pos, len, how };
        }
        if at < write + read + truncate {
            let unit = self.rng.pick(&[self.bs, self.bs, 512, 8]);
            let size = self.rng.below(u64::from((self.blocks + 1) * self.bs / unit)) as u32 * unit;
            return Op::Truncate { file, size };
        }
        if at < write + read + truncate + falloc {
            return self.falloc(file);
        }
        if at < write + read + truncate + falloc + sync {
            return match self.rng.below(4) {
                0 => Op::Sync,
                1 => Op::Fsync { file, datasync: true },
                _ => Op::Fsync { file, datasync: false },
            };
        }
        self.rare(file)
    }

    fn rare(&mut self, file: u8) -> Op {
        match self.rng.below(10) {
            0 | 1 => Op::Freeze { pause: self.rng.below(20) as u8 },
            2 | 3 => Op::Reopen { file },
            4 | 5 if self.theme != Theme::Appends => Op::Unlink { file },
            6 => Op::Remount { mode: self.rng.below(3) as u8 },
            7 => Op::Shrink,
            _ => Op::Reap,
        }
    }

    fn write(&mut self, file: u8) -> Op {
        let buffered = match self.theme {
            Theme::Caches => 50,
            Theme::Overwrites | Theme::Appends => 8,
            _ => 25,
        };
        let direct = !self.rng.chance(buffered, 100);
        let unit = self.unit();
        let (mut pos, len) = self.range(unit);
        let append = self.theme == Theme::Appends || self.rng.chance(1, 12);
        if append {
            pos = 0;
        }
        let how = How {
            direct,
            queued: direct && self.rng.chance(2, 5),
            append,
            dsync: self.rng.chance(1, 8),
            nowait: direct && self.rng.chance(1, 10),
        };
        Op::Write { file, pos, len, how }
    }

    fn falloc(&mut self, file: u8) -> Op {
        let hows: &[Falloc] = match self.theme {
            Theme::Shifts => &[Falloc::Collapse, Falloc::Insert, Falloc::Punch, Falloc::Alloc],
            _ => &[Falloc::Alloc, Falloc::Keep, Falloc::Punch, Falloc::Punch, Falloc::Zero, Falloc::ZeroKeep],
        };
        let how = self.rng.pick(hows);
        let unit = match how {
            Falloc::Collapse | Falloc::Insert => self.bs,
            _ => self.rng.pick(&[self.bs, self.bs, 512, 8]),
        };
        let (pos, len) = self.range(unit);
        Op::Fallocate { file, how, pos, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_world() {
        for seed in 0..100 {
            let world = World::draw(seed, SMALL);
            assert_eq!(world.to_string(), World::draw(seed, SMALL).to_string());
            assert!((2..5).contains(&world.tasks.len()));
            assert!(
                world
                    .smaller()
                    .iter()
                    .all(|smaller| smaller.len() < world.len() || world.tasks.iter().any(Vec::is_empty))
            );
        }
    }
}
