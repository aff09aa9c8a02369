// SPDX-License-Identifier: GPL-2.0-only
//! The language of the differential tests: operations on a file system, as values and as lines of text, and what they answer.
//!
//! Files are opened into numbered slots. Data is never in the text: a write has a tag, and tag and file position determine every
//! byte, so that a byte in the wrong place, of another write or of nobody's, is known when it is seen.

use std::fmt;
use std::str::FromStr;

use ext4_dio::fallocate::FallocFlags;

/// A positive errno.
pub type Errno = i32;

/// How many files may be open at once.
pub const SLOTS: usize = 6;

/// A part of a line: `key=word`.
trait Word: Sized {
    fn put(&self) -> String;
    fn get(word: &str) -> Option<Self>;
}

macro_rules! words {
    ($($t:ty),*) => {$(
        impl Word for $t {
            fn put(&self) -> String {
                self.to_string()
            }
            fn get(word: &str) -> Option<Self> {
                word.parse().ok()
            }
        }
    )*};
}
words!(u8, u32, u64, i64, usize, bool);

impl Word for String {
    /// What is repeated is put once, as in `{x*300}`.
    fn put(&self) -> String {
        let mut out = String::new();
        let mut rest = self.as_str();
        while let Some(first) = rest.chars().next() {
            let longest = [1, 2].into_iter().filter_map(|n| rest.get(..n)).find_map(|unit| {
                let times = rest.as_bytes().chunks(unit.len()).take_while(|c| *c == unit.as_bytes()).count();
                (times > 8).then_some((unit, times))
            });
            match longest {
                Some((unit, times)) => {
                    out.push_str(&format!("{{{unit}*{times}}}"));
                    rest = &rest[unit.len() * times..];
                }
                None => {
                    out.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        out
    }
    fn get(word: &str) -> Option<Self> {
        let mut out = String::new();
        let mut rest = word;
        while let Some((plain, tail)) = rest.split_once('{') {
            let (inside, tail) = tail.split_once('}')?;
            let (unit, times) = inside.split_once('*')?;
            out.push_str(plain);
            out.push_str(&unit.repeat(times.parse().ok()?));
            rest = tail;
        }
        Some(out + rest)
    }
}

impl Word for Vec<(u64, usize)> {
    fn put(&self) -> String {
        self.iter().map(|(pos, len)| format!("{pos}+{len}")).collect::<Vec<_>>().join(",")
    }
    fn get(word: &str) -> Option<Self> {
        word.split(',')
            .map(|piece| piece.split_once('+').and_then(|(pos, len)| Some((pos.parse().ok()?, len.parse().ok()?))))
            .collect()
    }
}

macro_rules! flag_words {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $flag:ident = $bit:expr, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub u32);
        impl $name {
            $($(#[$fdoc])* pub const $flag: Self = Self($bit);)*
            /// All bits of `other` are set.
            pub fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }
        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
        impl Word for $name {
            fn put(&self) -> String {
                let words: Vec<&str> = [$(($bit, $word)),*].iter().filter(|(b, _)| self.0 & b == *b).map(|(_, w)| *w).collect();
                if words.is_empty() { "0".to_string() } else { words.join(",") }
            }
            fn get(word: &str) -> Option<Self> {
                let mut bits = 0;
                for w in word.split(',').filter(|w| *w != "0") {
                    bits |= [$(($bit, $word)),*].iter().find(|(_, name)| *name == w)?.0;
                }
                Some(Self(bits))
            }
        }
    };
}

flag_words! {
    /// How to open.
    OFlags {
        /// Write only.
        WRONLY = 1, "wronly";
        /// Read and write.
        RDWR = 2, "rdwr";
        /// Make it.
        CREAT = 4, "creat";
        /// It must not be there.
        EXCL = 8, "excl";
        /// Cut it to nothing.
        TRUNC = 16, "trunc";
        /// Write at the end.
        APPEND = 32, "append";
        /// Past the page cache.
        DIRECT = 64, "direct";
        /// Durable data.
        DSYNC = 128, "dsync";
        /// Durable everything.
        SYNC = 256, "sync";
    }
}

impl OFlags {
    /// May be written to.
    pub fn writes(self) -> bool {
        self.0 & 3 != 0
    }
    /// May be read.
    pub fn reads(self) -> bool {
        self.0 & 3 != 1
    }
}

flag_words! {
    /// Flags of one write.
    Rwf {
        /// As if the file were open with O_DSYNC.
        DSYNC = 1, "dsync";
        /// At the end of the file.
        APPEND = 2, "append";
        /// EAGAIN instead of sleeping.
        NOWAIT = 4, "nowait";
        /// Polled for.
        HIPRI = 8, "hipri";
    }
}

macro_rules! choice_words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $v:ident = $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $v,)* }
        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$v),*];
        }
        impl Word for $name {
            fn put(&self) -> String {
                match self { $(Self::$v => $word.to_string(),)* }
            }
            fn get(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$v),)* _ => None }
            }
        }
    };
}

choice_words! {
    /// What `fallocate` is asked for.
    Falloc {
        /// Allocate, and grow.
        Alloc = "alloc";
        /// Allocate, and keep the size.
        Keep = "keep";
        /// Make a hole.
        Punch = "punch";
        /// Zeros, and grow.
        Zero = "zero";
        /// Zeros, and keep the size.
        ZeroKeep = "zerokeep";
        /// Take a piece out.
        Collapse = "collapse";
        /// Put a hole between.
        Insert = "insert";
    }
}

impl Falloc {
    /// As `fallocate` is asked for it.
    pub fn flags(self) -> FallocFlags {
        match self {
            Falloc::Alloc => FallocFlags::empty(),
            Falloc::Keep => FallocFlags::KEEP_SIZE,
            Falloc::Punch => FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE,
            Falloc::Zero => FallocFlags::ZERO_RANGE,
            Falloc::ZeroKeep => FallocFlags::ZERO_RANGE | FallocFlags::KEEP_SIZE,
            Falloc::Collapse => FallocFlags::COLLAPSE_RANGE,
            Falloc::Insert => FallocFlags::INSERT_RANGE,
        }
    }
}

choice_words! {
    /// What `renameat2` is asked for.
    RenameHow {
        /// Replaces what is there.
        Plain = "plain";
        /// EEXIST if something is there.
        NoReplace = "noreplace";
        /// Both change places.
        Exchange = "exchange";
    }
}

choice_words! {
    /// What `setxattr` is asked for.
    XattrHow {
        /// Set it.
        Any = "any";
        /// EEXIST if it is there.
        Create = "create";
        /// ENODATA unless it is there.
        Replace = "replace";
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $word:literal { $($field:ident: $t:ty),* };)*) => {
        /// One operation.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "fields are named after the parameters of the system calls")]
        pub enum Op { $($(#[$doc])* $name { $($field: $t),* },)* }

        impl fmt::Display for Op {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Op::$name { $($field),* } => {
                        f.write_str($word)?;
                        $(write!(f, concat!(" ", stringify!($field), "={}"), Word::put($field))?;)*
                        Ok(())
                    })*
                }
            }
        }

        impl FromStr for Op {
            type Err = String;
            fn from_str(line: &str) -> Result<Self, String> {
                let mut words = line.split_whitespace();
                let name = words.next().unwrap_or("");
                let given: Vec<(&str, &str)> = words.filter_map(|w| w.split_once('=')).collect();
                let find = |key: &str| given.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
                match name {
                    $($word => Ok(Op::$name {
                        $($field: find(stringify!($field)).and_then(<$t as Word>::get)
                            .ok_or_else(|| format!("{line}: {}", stringify!($field)))?,)*
                    }),)*
                    _ => Err(format!("no such operation: {line}")),
                }
            }
        }
    };
}

ops! {
    /// Opens into a slot, which is closed first.
    Open = "open" { slot: u8, path: String, flags: OFlags, mode: u32 };
    /// Closes.
    Close = "close" { slot: u8 };
    /// `fcntl(F_SETFL)`: O_DIRECT on or off.
    SetDirect = "setdirect" { slot: u8, on: bool };
    /// `preadv` into `segs` pieces.
    Read = "read" { slot: u8, pos: u64, len: usize, segs: usize };
    /// `pwritev2` from `segs` pieces.
    Write = "write" { slot: u8, pos: u64, len: usize, segs: usize, tag: u32, rwf: Rwf };
    /// Writes that are all submitted before the first is waited for.
    Aio = "aio" { slot: u8, tag: u32, list: Vec<(u64, usize)> };
    /// By path.
    Truncate = "truncate" { path: String, size: u64 };
    /// Of an open file.
    Ftruncate = "ftruncate" { slot: u8, size: u64 };
    /// All modes.
    Fallocate = "fallocate" { slot: u8, how: Falloc, pos: u64, len: u64 };
    /// Data and inode durable.
    Fsync = "fsync" { slot: u8 };
    /// Data durable.
    Fdatasync = "fdatasync" { slot: u8 };
    /// Everything durable.
    Sync = "sync" {};
    /// `SEEK_DATA`.
    SeekData = "seekdata" { slot: u8, pos: u64 };
    /// `SEEK_HOLE`.
    SeekHole = "seekhole" { slot: u8, pos: u64 };
    /// The map of the whole file, synced.
    Fiemap = "fiemap" { slot: u8 };
    /// Takes a name away.
    Unlink = "unlink" { path: String };
    /// Another name.
    Link = "link" { from: String, to: String };
    /// A symbolic link.
    Symlink = "symlink" { target: String, path: String };
    /// Its target.
    Readlink = "readlink" { path: String };
    /// A directory.
    Mkdir = "mkdir" { path: String, mode: u32 };
    /// No directory.
    Rmdir = "rmdir" { path: String };
    /// `renameat2`.
    Rename = "rename" { from: String, to: String, how: RenameHow };
    /// All names, `chunk` at a time.
    Readdir = "readdir" { path: String, chunk: usize };
    /// Follows links.
    Stat = "stat" { path: String };
    /// Does not.
    Lstat = "lstat" { path: String };
    /// Of an open file.
    Fstat = "fstat" { slot: u8 };
    /// Permissions.
    Chmod = "chmod" { path: String, mode: u32 };
    /// Owner.
    Chown = "chown" { path: String, uid: u32, gid: u32 };
    /// Times, each in seconds and nanoseconds.
    Utimens = "utimens" { path: String, asec: i64, ansec: u32, msec: i64, mnsec: u32 };
    /// Sets an attribute of `len` bytes.
    SetXattr = "setxattr" { path: String, name: String, len: usize, tag: u32, how: XattrHow };
    /// Its value.
    GetXattr = "getxattr" { path: String, name: String };
    /// Takes it away.
    RemoveXattr = "removexattr" { path: String, name: String };
    /// Names of all.
    ListXattr = "listxattr" { path: String };
    /// What is free.
    Statfs = "statfs" {};
    /// Closes all, unmounts, mounts.
    Remount = "remount" {};
}

/// Parses lines; empty ones and those that begin with `#` are left out.
pub fn parse_script(text: &str) -> Result<Vec<Op>, String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::parse).collect()
}

/// The text of a sequence.
pub fn script(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

/// What kind of thing a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// A time: seconds, nanoseconds.
pub type Time = (i64, u32);

/// What `stat` tells.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of struct stat")]
pub struct Stat {
    pub ino: u64,
    pub kind: Kind,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
}

/// A piece of a file's map, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block in the file.
    pub lblk: u64,
    /// How many.
    pub len: u64,
    /// Allocated, never written.
    pub unwritten: bool,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The name.
    pub name: String,
    /// Of what.
    pub kind: Kind,
    /// Its number.
    pub ino: u64,
}

/// What `statfs` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of struct statfs")]
pub struct Statfs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Out {
    /// Nothing but success.
    Done,
    /// Bytes written.
    Count(usize),
    /// The end of each asynchronous write.
    Ends(Vec<Result<usize, Errno>>),
    /// Bytes read, an attribute's value.
    Bytes(Vec<u8>),
    /// A position.
    Pos(u64),
    /// A map.
    Map(Vec<Extent>),
    /// Names, without `.` and `..`.
    Names(Vec<Name>),
    /// `stat`.
    Stat(Stat),
    /// A link's target.
    Text(String),
    /// Names of attributes.
    List(Vec<String>),
    /// `statfs`.
    Statfs(Statfs),
}

/// The answer, or the errno.
pub type Reply = Result<Out, Errno>;

/// Which file.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// An open one.
    Slot(u8),
    /// One with a name; links are followed.
    Path(String),
}

/// All that can be seen of a file's data.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Bytes in a block.
    pub block: u64,
    /// Bytes.
    pub size: u64,
    /// What is allocated; or, if that is not known, what may hold data.
    pub map: Vec<Extent>,
    /// The map is of what is allocated.
    pub exact: bool,
    /// Contents of what is allocated below `size`, and of all below [`Seen::DENSE`]: block and its bytes, cut off at the size.
    /// Zeros are left out.
    pub blocks: Vec<(u64, Vec<u8>)>,
}

impl Seen {
    /// Up to here holes are read, too.
    pub const DENSE: u64 = 2 << 20;

    /// Reads by `read(pos, len)` what there is to see of a file with blocks of `block` bytes.
    pub fn collect(
        size: u64,
        map: Vec<Extent>,
        block: u64,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, Errno>,
    ) -> Result<Self, Errno> {
        let mut blocks = Vec::new();
        let dense = size.min(Self::DENSE);
        let mut take = |from: u64, to: u64| {
            let bytes = read(from, (to - from) as usize)?;
            for (n, chunk) in bytes.chunks(block as usize).enumerate() {
                if chunk.iter().any(|b| *b != 0) {
                    blocks.push((from / block + n as u64, chunk.to_vec()));
                }
            }
            Ok::<(), Errno>(())
        };
        take(0, dense)?;
        for extent in &map {
            let mut at = (extent.lblk * block).max(dense / block * block);
            let end = ((extent.lblk + extent.len) * block).min(size);
            while at < end {
                let to = end.min(at + (1 << 20));
                take(at, to)?;
                at = to;
            }
        }
        blocks.sort();
        blocks.dedup_by_key(|(lblk, _)| *lblk);
        Ok(Self { block, size, map, exact: true, blocks })
    }
}

/// A file system, whoever's.
pub trait Vfs {
    /// Whose.
    fn name(&self) -> &'static str;
    /// Does it.
    fn apply(&mut self, op: &Op) -> Reply;
    /// Looks at a file's data without changing it, whatever it was opened for.
    fn see(&mut self, of: &Target) -> Result<Seen, Errno>;
}

/// A small generator of numbers that look random: splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// Below `len`, or 0: a place in a list.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What the write with `tag` puts at `pos` and behind: never zeros in all of eight bytes, and not what another tag puts there.
pub fn pattern(tag: u32, pos: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    let mut word = pos / 8;
    out.extend_from_slice(&mix(u64::from(tag) << 40 ^ word).to_le_bytes()[(pos % 8) as usize..]);
    while out.len() < len {
        word += 1;
        out.extend_from_slice(&mix(u64::from(tag) << 40 ^ word).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// The value that `setxattr` sets.
pub fn xattr_value(name: &str, tag: u32, len: usize) -> Vec<u8> {
    if name == CAPABILITY { capability() } else { pattern(tag, 0, len) }
}

/// Falls when the file is written to.
pub const CAPABILITY: &str = "security.capability";

/// Version 2 of file capabilities, with one permitted: others than the kernel knows are refused.
fn capability() -> Vec<u8> {
    let mut value = vec![0; 20];
    value[3] = 2;
    value[5] = 0x04;
    value
}

/// How a write of `len` bytes is cut into `segs` pieces: all but the last are multiples of 512.
pub fn cut(len: usize, segs: usize) -> Vec<usize> {
    let mut rest = len;
    let mut out = Vec::new();
    for n in (1..segs.max(1)).rev() {
        let piece = rest / (n + 1) / 512 * 512;
        if piece == 0 {
            break;
        }
        out.push(piece);
        rest -= piece;
    }
    out.push(rest);
    out
}
