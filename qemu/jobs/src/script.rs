// SPDX-License-Identifier: GPL-2.0-only
//! Runs a [`Script`]: file operations on a mount, line by line, up to the first that does not do as it should.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::fiemap::{FiemapExtentFlags, FiemapFlags, Whence, ext4_fiemap, ext4_seek};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::namei::RenameFlags;
use ext4_dio::path::{
    Cred, Kstat, Utime, path_chmod, path_chown, path_link, path_lookupat, path_mkdir, path_open, path_readdir,
    path_readlink, path_rename, path_rmdir, path_stat, path_statfs, path_symlink, path_truncate, path_unlink,
    path_utimens,
};
use ext4_dio::sb_remount::ext4_remount;
use ext4_dio::xattr::{XATTR_SIZE_MAX, XattrSet, ext4_getxattr, ext4_listxattr, ext4_removexattr, ext4_setxattr};
use ext4_dio::{Kiocb, SuperBlock, ext4_mount, ext4_sync_fs, ext4_umount};
use ext4_dio_protocol::script::{FallocMode, How, Line, Op, RenameMode, Script, Time, XattrMode};
use ext4_dio_protocol::{Event, crc32c, errno as errnos};
use kernel_shim::alloc::{Arc, KVec};
use kernel_shim::block::Bdev;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};
use kernel_shim::time::Timespec64;

use crate::target::Buffer;
use crate::{Failure, Machine, errno};

/// Bytes that are shown one by one; of more, only their checksum is.
const SHOWN: usize = 32;
/// Extents of a file that are shown.
const EXTENTS: usize = 64;

/// Runs `script` on a file system that is mounted for it, and unmounted whatever happens. An event tells of each line.
pub fn run(script: &Script, disks: &[Bdev], machine: &dyn Machine) -> core::result::Result<(), Failure> {
    let fail = |message| Err(Failure { step: None, message });
    let Some(bdev) = disks.get(script.disk as usize) else { return fail(format!("there is no disk {}", script.disk)) };
    let mut sb = match ext4_mount(bdev.clone(), &script.options) {
        Ok(sb) => Some(sb),
        Err(e) => return fail(format!("mounting with \"{}\": {}", script.options, errno(e))),
    };
    let mut failed = None;
    for line in &script.lines {
        let did = match (&line.op, sb.as_ref()) {
            (Op::Mount { options }, _) => mount_again(bdev, &mut sb, options).map(|()| String::new()),
            (op, Some(sb)) => run_op(op, sb),
            // A mount that failed, as was expected.
            (_, None) => Err(ENXIO),
        };
        match judge(line, did) {
            Ok(out) => machine.emit(&Event::Ran { line: line.number, text: line.text.clone(), out }),
            Err(what) => {
                failed = Some(format!("{}:{}: {}: {what}", script.file, line.number, line.text));
                break;
            }
        }
    }
    let unmounted = sb.map_or(Ok(()), |sb| ext4_umount(&sb)).map_err(|e| format!("unmounting: {}", errno(e)));
    match (failed, unmounted) {
        (Some(message), _) | (None, Err(message)) => fail(message),
        (None, Ok(())) => Ok(()),
    }
}

/// What the line is to say, or what is wrong.
fn judge(line: &Line, did: Result<String>) -> core::result::Result<String, String> {
    match (line.expect, did) {
        (None, Ok(out)) => Ok(out),
        (None, Err(e)) => Err(errno(e)),
        (Some(want), Err(e)) if e.to_errno() == -want => Ok(format!("{}, as expected", errno(e))),
        (Some(want), Err(e)) => Err(format!("{} instead of {}", errno(e), name(want))),
        (Some(want), Ok(_)) => Err(format!("did not fail with {}", name(want))),
    }
}

fn name(number: i32) -> String {
    errnos::name(number).map_or_else(|| format!("error {number}"), ToString::to_string)
}

fn mount_again(bdev: &Bdev, sb: &mut Option<Arc<SuperBlock>>, options: &str) -> Result {
    if let Some(old) = sb {
        // Busy: it stays mounted.
        ext4_umount(old)?;
        *sb = None;
    }
    *sb = Some(ext4_mount(bdev.clone(), options)?);
    Ok(())
}

/// Does one operation; what it has to say.
fn run_op(op: &Op, sb: &Arc<SuperBlock>) -> Result<String> {
    let cred = Cred::default();
    match op {
        Op::Mkdir { path, mode } => path_mkdir(sb, path.as_bytes(), *mode, &cred)?,
        Op::Rmdir { path } => path_rmdir(sb, path.as_bytes())?,
        Op::Create { path, mode } => {
            let flags = OpenFlags::O_RDWR | OpenFlags::O_CREAT | OpenFlags::O_EXCL;
            drop(path_open(sb, path.as_bytes(), flags, *mode, &cred)?);
        }
        Op::Write { path, offset, length, with, how } => return write(sb, path, *offset, *length, with, *how),
        Op::Read { path, offset, length, how } => return read(sb, path, *offset, *length, *how),
        Op::Truncate { path, size } => path_truncate(sb, path.as_bytes(), signed(*size)?)?,
        Op::Fallocate { path, mode, offset, length } => {
            let file = path_open(sb, path.as_bytes(), OpenFlags::O_RDWR, 0, &cred)?;
            ext4_fallocate(file.f_inode(), falloc_flags(*mode), signed(*offset)?, signed(*length)?)?;
        }
        Op::Rename { from, to, mode } => {
            let flags = match mode {
                RenameMode::Replace => RenameFlags::empty(),
                RenameMode::NoReplace => RenameFlags::NOREPLACE,
                RenameMode::Exchange => RenameFlags::EXCHANGE,
            };
            path_rename(sb, from.as_bytes(), to.as_bytes(), flags)?;
        }
        Op::Link { from, to } => path_link(sb, from.as_bytes(), to.as_bytes())?,
        Op::Symlink { target, path } => path_symlink(sb, target.as_bytes(), path.as_bytes(), &cred)?,
        Op::Unlink { path } => path_unlink(sb, path.as_bytes())?,
        Op::Chmod { path, mode } => path_chmod(sb, path.as_bytes(), *mode)?,
        Op::Chown { path, uid, gid } => path_chown(sb, path.as_bytes(), *uid, *gid, false)?,
        Op::Utimens { path, atime, mtime } => path_utimens(sb, path.as_bytes(), time(*atime), time(*mtime), false)?,
        Op::Setxattr { path, name, value, mode } => {
            let mode = match mode {
                XattrMode::Any => XattrSet::Any,
                XattrMode::Create => XattrSet::Create,
                XattrMode::Replace => XattrSet::Replace,
            };
            ext4_setxattr(&*path_lookupat(sb, path.as_bytes(), true)?, name.as_bytes(), value, mode)?;
        }
        Op::Removexattr { path, name } => {
            ext4_removexattr(&*path_lookupat(sb, path.as_bytes(), true)?, name.as_bytes())?;
        }
        Op::Fsync { path, datasync } => {
            let inode = path_lookupat(sb, path.as_bytes(), true)?;
            ext4_sync_file(&inode, 0, i64::MAX, *datasync)?;
        }
        Op::Sync => ext4_sync_fs(sb)?,
        Op::Remount { options } => ext4_remount(sb, options)?,
        _ => return look(op, sb),
    }
    Ok(String::new())
}

/// Operations that change nothing.
fn look(op: &Op, sb: &Arc<SuperBlock>) -> Result<String> {
    match op {
        Op::Readlink { path } => Ok(text(path_readlink(sb, path.as_bytes())?.as_slice())),
        Op::Getxattr { path, name } => getxattr(sb, path, name),
        Op::Listxattr { path } => listxattr(sb, path),
        Op::Ls { path } => ls(sb, path),
        Op::Stat { path } => Ok(show_stat(&path_stat(sb, path.as_bytes(), false)?)),
        Op::Statfs => {
            let s = path_statfs(sb, b"/")?;
            Ok(format!(
                "{} blocks of {} bytes, {} free, {} available; {} inodes, {} free",
                s.f_blocks, s.f_bsize, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree
            ))
        }
        Op::Fiemap { path } => fiemap(sb, path),
        Op::Seek { path, hole, offset } => {
            let whence = if *hole { Whence::Hole } else { Whence::Data };
            Ok(ext4_seek(&path_lookupat(sb, path.as_bytes(), true)?, signed(*offset)?, whence)?.to_string())
        }
        _ => Err(EOPNOTSUPP),
    }
}

fn signed(n: u64) -> Result<i64> {
    i64::try_from(n).map_err(|_| EFBIG)
}

fn falloc_flags(mode: FallocMode) -> FallocFlags {
    match mode {
        FallocMode::Default => FallocFlags::empty(),
        FallocMode::Keep => FallocFlags::KEEP_SIZE,
        FallocMode::Punch => FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE,
        FallocMode::Zero => FallocFlags::ZERO_RANGE,
        FallocMode::Collapse => FallocFlags::COLLAPSE_RANGE,
        FallocMode::Insert => FallocFlags::INSERT_RANGE,
    }
}

fn time(time: Time) -> Utime {
    match time {
        Time::Now => Utime::Now,
        Time::Omit => Utime::Omit,
        Time::At(tv_sec, tv_nsec) => Utime::At(Timespec64 { tv_sec, tv_nsec }),
    }
}

fn open_flags(access: OpenFlags, how: How) -> OpenFlags {
    let mut flags = access;
    flags.set(OpenFlags::O_DIRECT, how.direct);
    flags.set(OpenFlags::O_APPEND, how.append);
    flags.set(OpenFlags::O_DSYNC, how.dsync);
    flags
}

/// Memory for one I/O, as a device may want it.
fn memory(length: u64) -> Result<Buffer> {
    usize::try_from(length).ok().and_then(Buffer::new).ok_or(ENOMEM)
}

/// Writes all of it, or fails: what a short write leaves is asked for again.
fn write(sb: &Arc<SuperBlock>, path: &str, offset: u64, length: u64, with: &[u8], how: How) -> Result<String> {
    let file = path_open(sb, path.as_bytes(), open_flags(OpenFlags::O_RDWR, how), 0, &Cred::default())?;
    let mut buffer = memory(length.max(1))?;
    let bytes = buffer.bytes_mut().get_mut(..length as usize).ok_or(ENOMEM)?;
    for (to, from) in bytes.iter_mut().zip(with.iter().cycle()) {
        *to = *from;
    }
    let mut done = 0;
    loop {
        let rest = bytes.get(done..).unwrap_or_default();
        let iov = [IoVec::source(rest)];
        let n = ext4_file_write(&mut Kiocb::new_sync(&file, signed(offset)? + done as i64), &mut IovIter::new(&iov))?;
        done += n;
        if done >= bytes.len() {
            return Ok(String::new());
        }
        if n == 0 {
            return Err(EIO);
        }
    }
}

/// Reads up to the end of the file.
fn read(sb: &Arc<SuperBlock>, path: &str, offset: u64, length: u64, how: How) -> Result<String> {
    let file = path_open(sb, path.as_bytes(), open_flags(OpenFlags::empty(), how), 0, &Cred::default())?;
    let mut buffer = memory(length.max(1))?;
    let bytes = buffer.bytes_mut().get_mut(..length as usize).ok_or(ENOMEM)?;
    let mut done = 0;
    while done < bytes.len() {
        let iov = [IoVec::dest(bytes.get_mut(done..).unwrap_or_default())];
        let n = ext4_file_read(&mut Kiocb::new_sync(&file, signed(offset)? + done as i64), &mut IovIter::new(&iov))?;
        if n == 0 {
            break;
        }
        done += n;
    }
    Ok(show_bytes(bytes.get(..done).unwrap_or_default()))
}

fn show_bytes(bytes: &[u8]) -> String {
    let mut out = format!("{} bytes, crc32c {:08x}", bytes.len(), crc32c(bytes));
    if !bytes.is_empty() && bytes.len() <= SHOWN {
        out.push_str(": ");
        out.push_str(&text(bytes));
    }
    out
}

/// A text in quotes, or else its bytes.
fn text(bytes: &[u8]) -> String {
    match core::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => format!("{text:?}"),
        _ => bytes.iter().fold(String::new(), |mut out, byte| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{byte:02x}");
            out
        }),
    }
}

fn getxattr(sb: &Arc<SuperBlock>, path: &str, name: &str) -> Result<String> {
    let inode = path_lookupat(sb, path.as_bytes(), true)?;
    let mut value = alloc::vec![0; XATTR_SIZE_MAX];
    let n = ext4_getxattr(&inode, name.as_bytes(), &mut value)?;
    Ok(show_bytes(value.get(..n).unwrap_or_default()))
}

fn listxattr(sb: &Arc<SuperBlock>, path: &str) -> Result<String> {
    let inode = path_lookupat(sb, path.as_bytes(), true)?;
    let mut names = alloc::vec![0; XATTR_SIZE_MAX];
    let n = ext4_listxattr(&inode, &mut names)?;
    let names = names.get(..n).unwrap_or_default().split(|b| *b == 0).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    Ok(if names.is_empty() { "none".into() } else { names.join(" ") })
}

/// A line for each entry, in the order of their names.
fn ls(sb: &Arc<SuperBlock>, path: &str) -> Result<String> {
    let mut entries: Vec<(String, u64, char)> = Vec::new();
    for entry in path_readdir(sb, path.as_bytes())?.as_slice() {
        let kind = match entry.file_type {
            1 => '-',
            2 => 'd',
            3 => 'c',
            4 => 'b',
            5 => 'p',
            6 => 's',
            7 => 'l',
            _ => '?',
        };
        entries.push((String::from_utf8_lossy(&entry.name).into_owned(), entry.d_ino, kind));
    }
    entries.sort();
    let lines: Vec<String> = entries.iter().map(|(name, ino, kind)| format!("{kind} {ino:6} {name}")).collect();
    Ok(lines.join("\n"))
}

fn show_stat(s: &Kstat) -> String {
    let at = |t: Timespec64| format!("{}.{:09}", t.tv_sec, t.tv_nsec);
    format!(
        "inode {}, mode {:o}, {} link{}, owner {}:{}, {} bytes in {} sectors, atime {}, mtime {}, ctime {}, crtime {}",
        s.ino,
        s.mode,
        s.nlink,
        if s.nlink == 1 { "" } else { "s" },
        s.uid,
        s.gid,
        s.size,
        s.blocks,
        at(s.atime),
        at(s.mtime),
        at(s.ctime),
        at(s.crtime)
    )
}

fn fiemap(sb: &Arc<SuperBlock>, path: &str) -> Result<String> {
    let inode = path_lookupat(sb, path.as_bytes(), true)?;
    let mut extents = KVec::new();
    ext4_fiemap(&inode, 0, u64::MAX, FiemapFlags::SYNC, EXTENTS + 1, &mut extents)?;
    let mut lines: Vec<String> = Vec::new();
    for e in extents.as_slice().iter().take(EXTENTS) {
        let state = if e.fe_flags.contains(FiemapExtentFlags::UNWRITTEN) { ", unwritten" } else { "" };
        lines.push(format!("{} bytes at {} are at {} of the disk{state}", e.fe_length, e.fe_logical, e.fe_physical));
    }
    if extents.as_slice().len() > EXTENTS {
        lines.push("… and more".to_string());
    }
    Ok(if lines.is_empty() { "no blocks".into() } else { lines.join("\n") })
}
