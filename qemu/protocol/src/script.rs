// SPDX-License-Identifier: GPL-2.0-only
//! Scripts: file operations, one per line, for an image to be worked on without a shell.
//!
//! Words are parted by blanks; a word in double quotes may have blanks, and `\n`, `\t`, `\"`, `\\` and `\x41` in it. A word that begins
//! with `#` begins a comment. Numbers are decimal, or hexadecimal after `0x`; bytes may be in `k`, `m`, `g` and `t` of 1024.
//! Modes are octal. Before an operation, `expect ERRNO` says that it has to fail so. [`OPERATIONS`] has them all.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::errno;

mod words;

use words::{Words, split};

/// Bytes that one line writes or reads at most: they are in the guest's memory.
pub const MAX_IO: u64 = 64 << 20;

/// A script, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// As given on the command line, for messages.
    pub file: String,
    /// The disk with the file system.
    pub disk: u32,
    /// What it is mounted with at first.
    pub options: String,
    /// Run one after the other, up to the first that does not do as it should.
    pub lines: Vec<Line>,
}

/// A line with an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counted from 1.
    pub number: u32,
    /// As written, without the comment.
    pub text: String,
    /// The errno that it has to fail with, positive.
    pub expect: Option<i32>,
    /// What is to be done.
    pub op: Op,
}

/// How a file is written or read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// `O_DIRECT`.
    pub direct: bool,
    /// `O_APPEND`.
    pub append: bool,
    /// `O_DSYNC`.
    pub dsync: bool,
}

/// Modes of `fallocate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallocMode {
    /// Allocate, and let the file grow.
    Default,
    /// Allocate alone.
    Keep,
    /// Free the range.
    Punch,
    /// Make it zeros.
    Zero,
    /// Take it out.
    Collapse,
    /// Put a hole in.
    Insert,
}

/// Modes of `rename`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// What has the new name loses it.
    Replace,
    /// Nothing may have the new name.
    NoReplace,
    /// Both change places.
    Exchange,
}

/// Modes of `setxattr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Set it.
    Any,
    /// There must be none.
    Create,
    /// There must be one.
    Replace,
}

/// A time for `utimens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Time {
    /// That of the machine.
    Now,
    /// It stays.
    Omit,
    /// Seconds since 1970, and nanoseconds.
    At(i64, u32),
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names of operations and of what they take")]
pub enum Op {
    Mkdir { path: String, mode: u32 },
    Rmdir { path: String },
    Create { path: String, mode: u32 },
    Write { path: String, offset: u64, length: u64, with: Vec<u8>, how: How },
    Read { path: String, offset: u64, length: u64, how: How },
    Truncate { path: String, size: u64 },
    Fallocate { path: String, mode: FallocMode, offset: u64, length: u64 },
    Rename { from: String, to: String, mode: RenameMode },
    Link { from: String, to: String },
    Symlink { target: String, path: String },
    Readlink { path: String },
    Unlink { path: String },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: Option<u32>, gid: Option<u32> },
    Utimens { path: String, atime: Time, mtime: Time },
    Setxattr { path: String, name: String, value: Vec<u8>, mode: XattrMode },
    Getxattr { path: String, name: String },
    Listxattr { path: String },
    Removexattr { path: String, name: String },
    Ls { path: String },
    Stat { path: String },
    Statfs,
    Fiemap { path: String },
    Seek { path: String, hole: bool, offset: u64 },
    Fsync { path: String, datasync: bool },
    Sync,
    Remount { options: String },
    Mount { options: String },
}

/// Each operation, and what it takes.
pub const OPERATIONS: [(&str, &str); 29] = [
    ("mkdir", "PATH [MODE]"),
    ("rmdir", "PATH"),
    ("create", "PATH [MODE]"),
    ("write", "PATH OFFSET LENGTH BYTE|TEXT [direct] [append] [dsync]"),
    ("read", "PATH OFFSET LENGTH [direct]"),
    ("truncate", "PATH SIZE"),
    ("fallocate", "PATH default|keep|punch|zero|collapse|insert OFFSET LENGTH"),
    ("rename", "OLD NEW [noreplace|exchange]"),
    ("link", "OLD NEW"),
    ("symlink", "TARGET PATH"),
    ("readlink", "PATH"),
    ("unlink", "PATH"),
    ("chmod", "PATH MODE"),
    ("chown", "PATH UID|- GID|-"),
    ("utimens", "PATH ATIME MTIME, each SECONDS[.NANOSECONDS], now or omit"),
    ("setxattr", "PATH NAME VALUE [create|replace]"),
    ("getxattr", "PATH NAME"),
    ("listxattr", "PATH"),
    ("removexattr", "PATH NAME"),
    ("ls", "PATH"),
    ("stat", "PATH"),
    ("statfs", ""),
    ("fiemap", "PATH"),
    ("seek", "PATH data|hole OFFSET"),
    ("fsync", "PATH"),
    ("fdatasync", "PATH"),
    ("sync", ""),
    ("remount", "OPTIONS"),
    ("mount", "[OPTIONS]"),
];

/// What is wrong with a script, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// The script's name.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

impl core::error::Error for ScriptError {}

/// Reads a script. `file` is for messages. The first line that is no operation is an error that names the word.
pub fn parse(text: &str, file: &str) -> Result<Vec<Line>, ScriptError> {
    let mut lines = Vec::new();
    for (number, raw) in (1u32..).zip(text.lines()) {
        let error = |what: String| ScriptError { file: file.into(), line: number, what };
        let (words, text) = split(raw).map_err(error)?;
        if words.is_empty() {
            continue;
        }
        let mut words = Words::new(words);
        let (expect, op) = line(&mut words).map_err(error)?;
        lines.push(Line { number, text: text.to_string(), expect, op });
    }
    if lines.is_empty() {
        return Err(ScriptError { file: file.into(), line: 1, what: "not one operation in it".into() });
    }
    Ok(lines)
}

fn line(words: &mut Words) -> Result<(Option<i32>, Op), String> {
    let mut name = words.word("an operation")?;
    let mut expect = None;
    if name == "expect" {
        let errno = words.word("an errno after expect")?;
        expect = Some(errno::number(&errno).ok_or_else(|| format!("`{errno}` is no errno; ENOENT and EEXIST are"))?);
        name = words.word("an operation after the errno")?;
    }
    let Some((_, usage)) = OPERATIONS.iter().find(|(n, _)| *n == name) else {
        let all: Vec<&str> = OPERATIONS.iter().map(|(n, _)| *n).collect();
        return Err(format!("`{name}` is no operation; {} are", all.join(", ")));
    };
    let op = operation(&name, words).and_then(|op| words.end().map(|()| op));
    Ok((expect, op.map_err(|what| format!("{what} ({name} {usage})").replace(" )", ")"))?))
}

fn operation(name: &str, w: &mut Words) -> Result<Op, String> {
    Ok(match name {
        "mkdir" => Op::Mkdir { path: w.path()?, mode: w.mode_or(0o755)? },
        "create" => Op::Create { path: w.path()?, mode: w.mode_or(0o644)? },
        "write" => write(w)?,
        "read" => {
            let (path, offset, length) = (w.path()?, w.bytes("OFFSET")?, w.bytes("LENGTH")?);
            Op::Read { path, offset, length: io_length(length)?, how: w.how(&["direct"])? }
        }
        "truncate" => Op::Truncate { path: w.path()?, size: w.bytes("SIZE")? },
        "fallocate" => {
            let path = w.path()?;
            let mode = w.choice(
                "MODE",
                &[
                    ("default", FallocMode::Default),
                    ("keep", FallocMode::Keep),
                    ("punch", FallocMode::Punch),
                    ("zero", FallocMode::Zero),
                    ("collapse", FallocMode::Collapse),
                    ("insert", FallocMode::Insert),
                ],
            )?;
            Op::Fallocate { path, mode, offset: w.bytes("OFFSET")?, length: w.bytes("LENGTH")? }
        }
        "rename" => {
            let (from, to) = (w.path()?, w.path()?);
            let modes = [("noreplace", RenameMode::NoReplace), ("exchange", RenameMode::Exchange)];
            Op::Rename { from, to, mode: w.option(&modes)?.unwrap_or(RenameMode::Replace) }
        }
        "link" => Op::Link { from: w.path()?, to: w.path()? },
        "symlink" => Op::Symlink { target: w.word("TARGET")?, path: w.path()? },
        "utimens" => Op::Utimens { path: w.path()?, atime: w.time("ATIME")?, mtime: w.time("MTIME")? },
        "chmod" => Op::Chmod { path: w.path()?, mode: w.mode()? },
        "chown" => Op::Chown { path: w.path()?, uid: w.id("UID")?, gid: w.id("GID")? },
        "setxattr" => {
            let (path, name, value) = (w.path()?, w.word("NAME")?, w.word("VALUE")?.into_bytes());
            let modes = [("create", XattrMode::Create), ("replace", XattrMode::Replace)];
            Op::Setxattr { path, name, value, mode: w.option(&modes)?.unwrap_or(XattrMode::Any) }
        }
        "getxattr" => Op::Getxattr { path: w.path()?, name: w.word("NAME")? },
        "removexattr" => Op::Removexattr { path: w.path()?, name: w.word("NAME")? },
        "seek" => {
            let (path, hole) = (w.path()?, w.choice("data or hole", &[("data", false), ("hole", true)])?);
            Op::Seek { path, hole, offset: w.bytes("OFFSET")? }
        }
        "statfs" => Op::Statfs,
        "sync" => Op::Sync,
        "remount" => Op::Remount { options: w.word("OPTIONS")? },
        "mount" => Op::Mount { options: w.next().unwrap_or_default() },
        "fsync" => Op::Fsync { path: w.path()?, datasync: false },
        "fdatasync" => Op::Fsync { path: w.path()?, datasync: true },
        _ => {
            let path = w.path()?;
            match name {
                "rmdir" => Op::Rmdir { path },
                "readlink" => Op::Readlink { path },
                "unlink" => Op::Unlink { path },
                "listxattr" => Op::Listxattr { path },
                "ls" => Op::Ls { path },
                "stat" => Op::Stat { path },
                _ => Op::Fiemap { path },
            }
        }
    })
}

fn write(w: &mut Words) -> Result<Op, String> {
    let (path, offset, length) = (w.path()?, w.bytes("OFFSET")?, io_length(w.bytes("LENGTH")?)?);
    let with = w.fill()?;
    let how = w.how(&["direct", "append", "dsync"])?;
    if how.append && offset != 0 {
        return Err(format!("`{offset}`: with append the file's end is the offset; write 0"));
    }
    Ok(Op::Write { path, offset, length, with, how })
}

fn io_length(length: u64) -> Result<u64, String> {
    if length <= MAX_IO { Ok(length) } else { Err(format!("`{length}` is more than {} MiB at once", MAX_IO >> 20)) }
}

#[cfg(test)]
mod tests;
