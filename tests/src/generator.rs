// SPDX-License-Identifier: GPL-2.0-only
//! Draws sequences of operations from a seed. It keeps no account of what they do: names, slots and positions come from small sets,
//! so that most operations meet what others have made, and the rest are errors, which are compared like everything else.

use crate::oplang::*;

/// What a sequence is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Few files, much I/O.
    Data,
    /// Names, links, directories, attributes.
    Names,
    /// All of it.
    Mixed,
    /// Large writes and allocations: the disk runs full.
    Full,
}

/// Draws operations.
pub struct Generator {
    rng: Rng,
    theme: Theme,
    block: u64,
    extents: bool,
    tag: u32,
}

const FILES: [&str; 6] = ["f0", "f1", "f2", "d0/f3", "d1/f4", "d0/d2/f5"];
const DIRS: [&str; 5] = ["d0", "d1", "d0/d2", "d3", "d1/d4"];
const LINKS: [&str; 3] = ["l0", "d0/l1", "l2"];
const XATTRS: [&str; 6] =
    ["user.a", "user.bb", "trusted.c", "security.d", "user.a-much-longer-name-than-the-others", CAPABILITY];

impl Generator {
    /// For a file system with blocks of `block` bytes, mapped by extents or not.
    pub fn new(seed: u64, theme: Theme, block: u32, extents: bool) -> Self {
        Self { rng: Rng(seed), theme, block: u64::from(block), extents, tag: 0 }
    }

    /// `n` operations, the first of which make directories and files.
    pub fn sequence(&mut self, n: usize) -> Vec<Op> {
        let mut ops = Vec::new();
        for path in ["d0", "d1", "d0/d2"] {
            ops.push(Op::Mkdir { path: path.to_string(), mode: 0o755 });
        }
        for slot in 0..SLOTS as u8 - 1 {
            ops.push(self.open(slot));
        }
        while ops.len() < n {
            ops.push(self.op());
        }
        ops
    }

    fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    fn slot(&mut self) -> u8 {
        self.rng.below(SLOTS as u64) as u8
    }

    fn file(&mut self) -> String {
        // Fewer files have more happen to each.
        let n = if self.theme == Theme::Data { 3 } else { FILES.len() };
        self.rng.pick(&FILES[..n]).to_string()
    }

    fn path(&mut self) -> String {
        match self.rng.below(16) {
            0..9 => self.file(),
            9..12 => self.rng.pick(&DIRS).to_string(),
            12..14 => self.rng.pick(&LINKS).to_string(),
            14 => format!("{}/{}", self.rng.pick(&DIRS), self.name()),
            _ => match self.rng.below(8) {
                0 => "f0/under-a-file".to_string(),
                1 => "no/such/thing".to_string(),
                2 => "n".repeat(256),
                3 => format!("d1/{}", "m".repeat(255)),
                _ => self.name(),
            },
        }
    }

    /// One of many names, for directories of some size.
    fn name(&mut self) -> String {
        let n = self.rng.below(40);
        format!("n{n}{}", "-".repeat((n as usize * 7) % 60))
    }

    fn open(&mut self, slot: u8) -> Op {
        let mut flags = if self.rng.one_in(8) { OFlags(self.rng.below(2) as u32) } else { OFlags::RDWR };
        if !self.rng.one_in(6) {
            flags = flags | OFlags::CREAT;
        }
        for (flag, odds) in [(OFlags::EXCL, 12), (OFlags::APPEND, 8), (OFlags::DSYNC, 10), (OFlags::SYNC, 16)] {
            if self.rng.one_in(odds) {
                flags = flags | flag;
            }
        }
        if flags.writes() && self.rng.one_in(10) {
            flags = flags | OFlags::TRUNC;
        }
        if self.rng.one_in(2) {
            flags = flags | OFlags::DIRECT;
        }
        let path = if self.rng.one_in(6) { self.path() } else { self.file() };
        Op::Open { slot, path, flags, mode: *self.rng.pick(&[0o644, 0o600, 0o755]) }
    }

    /// A position: near the start, near where the map changes its kind, now and then far away.
    fn pos(&mut self) -> u64 {
        let b = self.block;
        let base = match self.rng.below(20) {
            0..12 => self.rng.below(24) * b,
            12..15 => self.rng.below(200) * b,
            15..17 => (10 + self.rng.below(5)) * b,
            17 => (12 + b / 4 + self.rng.below(4)) * b - 2 * b,
            18 => self.rng.below(64) * 512,
            _ if self.theme == Theme::Full => self.rng.below(400) * b,
            _ => (12 + b / 4 + (b / 4) * (b / 4)) * b + self.rng.below(4) * b,
        };
        match self.rng.below(10) {
            0..6 => base,
            6..8 => base + self.rng.below(b / 512) * 512,
            _ => base + self.rng.below(b),
        }
    }

    fn len(&mut self) -> usize {
        let b = self.block;
        let len = match self.rng.below(16) {
            0..7 => (1 + self.rng.below(6)) * b,
            7..10 => (1 + self.rng.below(8)) * 512,
            10..13 => 1 + self.rng.below(3 * b),
            13 => (1 + self.rng.below(40)) * b,
            14 if self.theme == Theme::Full => (1 + self.rng.below(300)) * b,
            14 => (1 + self.rng.below(64)) * b,
            _ => self.rng.below(3),
        };
        len as usize
    }

    fn size(&mut self) -> u64 {
        match self.rng.below(12) {
            0..2 => 0,
            2..5 => self.rng.below(32) * self.block,
            5..8 => self.rng.below(32 * self.block),
            8 => self.rng.below(300) * self.block,
            9 => (12 + self.block / 4) * self.block + self.rng.below(2 * self.block),
            10 => 1 << (20 + self.rng.below(12)),
            _ => self.pos(),
        }
    }

    fn op(&mut self) -> Op {
        let data = match self.theme {
            Theme::Data => 90,
            Theme::Names => 15,
            Theme::Mixed => 50,
            Theme::Full => 75,
        };
        if self.rng.below(100) < data { self.data_op() } else { self.name_op() }
    }

    fn data_op(&mut self) -> Op {
        let slot = self.slot();
        match self.rng.below(100) {
            0..7 => self.open(slot),
            7..8 => Op::Close { slot },
            8..10 => Op::SetDirect { slot, on: self.rng.one_in(2) },
            10..24 => Op::Read { slot, pos: self.pos(), len: self.len(), segs: self.segs() },
            24..54 => self.write(slot),
            54..60 => self.aio(slot),
            60..65 => Op::Ftruncate { slot, size: self.size() },
            65..67 => Op::Truncate { path: self.file(), size: self.size() },
            67..84 => self.fallocate(slot),
            84..87 => Op::Fsync { slot },
            87..89 => Op::Fdatasync { slot },
            89..91 => Op::SeekData { slot, pos: self.pos() },
            91..93 => Op::SeekHole { slot, pos: self.pos() },
            93..96 => Op::Fiemap { slot },
            96..98 => Op::Fstat { slot },
            98 => Op::Sync {},
            _ => {
                if self.rng.one_in(3) {
                    Op::Remount {}
                } else {
                    Op::Statfs {}
                }
            }
        }
    }

    fn segs(&mut self) -> usize {
        if self.rng.one_in(5) { 2 + self.rng.below(4) as usize } else { 1 }
    }

    fn write(&mut self, slot: u8) -> Op {
        let mut rwf = Rwf::default();
        for (flag, odds) in [(Rwf::DSYNC, 16), (Rwf::APPEND, 16), (Rwf::NOWAIT, 24), (Rwf::HIPRI, 24)] {
            if self.rng.one_in(odds) {
                rwf = rwf | flag;
            }
        }
        Op::Write { slot, pos: self.pos(), len: self.len(), segs: self.segs(), tag: self.tag(), rwf }
    }

    /// Pieces of one stretch, so that they are different places, in some order.
    fn aio(&mut self, slot: u8) -> Op {
        let unit = if self.rng.one_in(4) { 512 } else { self.block };
        let mut pos = self.pos() / unit * unit;
        let mut list = Vec::new();
        for _ in 0..1 + self.rng.below(8) {
            let len = (1 + self.rng.below(4)) * unit;
            list.push((pos, len as usize));
            pos += len + if self.rng.one_in(3) { unit * self.rng.below(3) } else { 0 };
        }
        for n in (1..list.len()).rev() {
            if self.rng.one_in(2) {
                list.swap(n, self.rng.below(n as u64 + 1) as usize);
            }
        }
        Op::Aio { slot, tag: self.tag(), list }
    }

    fn fallocate(&mut self, slot: u8) -> Op {
        let mut how = *self.rng.pick(Falloc::ALL);
        if !self.extents && !self.rng.one_in(8) {
            how = Falloc::Punch;
        }
        let (mut pos, mut len) = (self.pos(), self.len() as u64);
        if matches!(how, Falloc::Collapse | Falloc::Insert) && !self.rng.one_in(6) {
            pos = self.rng.below(24) * self.block;
            len = (1 + self.rng.below(8)) * self.block;
        }
        if self.theme == Theme::Full && self.rng.one_in(4) {
            len *= 8;
        }
        Op::Fallocate { slot, how, pos, len }
    }

    fn name_op(&mut self) -> Op {
        let slot = self.slot();
        match self.rng.below(100) {
            0..12 => self.open(slot),
            12..14 => Op::Close { slot },
            14..24 => Op::Unlink { path: self.path() },
            24..31 => Op::Link { from: self.path(), to: self.path() },
            31..36 => self.symlink(),
            36..38 => Op::Readlink { path: if self.rng.one_in(3) { self.path() } else { self.link() } },
            38..45 => Op::Mkdir { path: self.dir(), mode: *self.rng.pick(&[0o755, 0o700, 0o1777]) },
            45..50 => Op::Rmdir { path: self.dir() },
            50..66 => self.rename(),
            66..70 => Op::Readdir { path: self.dir(), chunk: 1 + self.rng.below(20) as usize },
            70..75 => Op::Stat { path: self.path() },
            75..77 => Op::Lstat { path: self.path() },
            77..80 => {
                Op::Chmod { path: self.path(), mode: *self.rng.pick(&[0o644, 0o4755, 0o2755, 0o6711, 0o2744, 0o1777]) }
            }
            80..82 => {
                Op::Chown { path: self.path(), uid: self.rng.below(3) as u32 * 500, gid: self.rng.below(90_000) as u32 }
            }
            82..85 => self.utimens(),
            85..92 => self.setxattr(),
            92..94 => Op::GetXattr { path: self.path(), name: self.xattr() },
            94..96 => Op::RemoveXattr { path: self.path(), name: self.xattr() },
            96..98 => Op::ListXattr { path: self.path() },
            98 => Op::Statfs {},
            _ => {
                if self.rng.one_in(2) {
                    Op::Remount {}
                } else {
                    Op::Sync {}
                }
            }
        }
    }

    fn dir(&mut self) -> String {
        match self.rng.below(10) {
            0..8 => self.rng.pick(&DIRS).to_string(),
            8 => self.path(),
            _ => format!("{}/{}", self.rng.pick(&DIRS), self.name()),
        }
    }

    fn link(&mut self) -> String {
        self.rng.pick(&LINKS).to_string()
    }

    fn xattr(&mut self) -> String {
        self.rng.pick(&XATTRS).to_string()
    }

    fn symlink(&mut self) -> Op {
        let target = match self.rng.below(8) {
            0..4 => self.path(),
            4 => self.link(),
            5 => format!("to-nowhere-{}", "x".repeat(self.rng.below(60) as usize)),
            6 => "y/".repeat(30 + self.rng.below(200) as usize),
            // The longest that fits, and what is longer; paths themselves have 4095.
            _ => "z".repeat((self.block as usize - 3 + self.rng.below(5) as usize).min(4095)),
        };
        Op::Symlink { target, path: if self.rng.one_in(3) { self.path() } else { self.link() } }
    }

    fn rename(&mut self) -> Op {
        let how = match self.rng.below(6) {
            0..3 => RenameHow::Plain,
            3..4 => RenameHow::NoReplace,
            _ => RenameHow::Exchange,
        };
        let dirs = self.rng.one_in(3);
        let one = |g: &mut Self| if dirs { g.dir() } else { g.path() };
        Op::Rename { from: one(self), to: one(self), how }
    }

    fn utimens(&mut self) -> Op {
        let mut time = || (self.rng.below(1 << 31) as i64, self.rng.below(1_000_000_000) as u32);
        let ((asec, ansec), (msec, mnsec)) = (time(), time());
        Op::Utimens { path: self.path(), asec, ansec, msec, mnsec }
    }

    fn setxattr(&mut self) -> Op {
        let len = match self.rng.below(8) {
            0..4 => self.rng.below(24),
            4..6 => self.rng.below(200),
            6 => self.rng.below(self.block / 2),
            _ => self.block - 100 + self.rng.below(200),
        };
        let how = if self.rng.one_in(4) { *self.rng.pick(XattrHow::ALL) } else { XattrHow::Any };
        Op::SetXattr { path: self.path(), name: self.xattr(), len: len as usize, tag: self.tag(), how }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for theme in [Theme::Data, Theme::Names, Theme::Mixed, Theme::Full] {
            let ops = Generator::new(7, theme, 1024, true).sequence(3000);
            assert_eq!(parse_script(&script(&ops)).expect("it parses"), ops);
            assert_eq!(ops, Generator::new(7, theme, 1024, true).sequence(3000), "a seed means one sequence");
        }
    }

    #[test]
    fn patterns_differ_by_tag_and_place() {
        assert_eq!(pattern(3, 1000, 100)[24..], pattern(3, 1024, 76)[..]);
        assert_ne!(pattern(3, 0, 64), pattern(4, 0, 64));
        assert_ne!(pattern(3, 0, 64), pattern(3, 64, 64));
        assert_eq!(cut(4096, 3).iter().sum::<usize>(), 4096);
    }
}
