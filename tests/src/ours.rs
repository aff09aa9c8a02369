// SPDX-License-Identifier: GPL-2.0-only
//! Operations on our own file system, through its public calls.

use ext4_dio::fallocate::ext4_fallocate;
use ext4_dio::fiemap::{FiemapExtentFlags, FiemapFlags, Whence, ext4_fiemap, ext4_seek};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::namei::RenameFlags;
use ext4_dio::path::*;
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::xattr::{XattrSet, ext4_getxattr, ext4_listxattr, ext4_removexattr, ext4_setxattr};
use ext4_dio::{File, IRef, Kiocb, SuperBlock, ext4_mount, ext4_statfs, ext4_sync_fs, ext4_umount};
use kernel_shim::alloc::fault::exempt;
use kernel_shim::alloc::{Arc as KArc, KVec};
use kernel_shim::block::Bdev;
use kernel_shim::block::ramdisk::RamDiskOptions;
use kernel_shim::error::{Error, code};
use kernel_shim::fs::{FileSystem, IoVec, IocbFlags, IovIter, OpenFlags};
use kernel_shim::time::Timespec64;

use crate::dio::{Listener, Mount, Pages};
use crate::oplang::*;

/// A mount of ours.
pub struct Ours {
    /// Disk, faults, mount. `None` if mounting again failed.
    pub mount: Option<Mount>,
    /// A mount of any other disk.
    bare: Option<KArc<SuperBlock>>,
    options: String,
    slots: [Option<KArc<File>>; SLOTS],
}

fn errno(error: Error) -> Errno {
    -error.to_errno()
}

impl Ours {
    /// Mounts `image` with `options`.
    pub fn mount(image: &[u8], options: &str, disk: RamDiskOptions) -> Result<Self, Errno> {
        let mount = Mount::try_with(image, options, disk).map_err(errno)?;
        Ok(Self { mount: Some(mount), bare: None, options: options.to_string(), slots: std::array::from_fn(|_| None) })
    }

    /// Mounts what is on `disk`, whatever disk that is. It cannot be mounted anew.
    pub fn over(disk: Bdev, options: &str) -> Result<Self, Errno> {
        let sb = ext4_mount(disk, options).map_err(errno)?;
        let slots = std::array::from_fn(|_| None);
        Ok(Self { mount: None, bare: Some(sb), options: options.to_string(), slots })
    }

    /// Closes all and unmounts, where the disk is somebody else's.
    pub fn leave(&mut self) -> Result<(), Errno> {
        self.close_all();
        let sb = self.bare.take().ok_or(libc::EIO)?;
        ext4_umount(&sb).map_err(errno)
    }

    /// Takes an open file into a slot.
    pub fn install(&mut self, slot: u8, file: KArc<File>) {
        self.slots[usize::from(slot)] = Some(file);
    }

    /// Operations on a mount that the caller has made, and will unmount.
    pub fn on(sb: KArc<SuperBlock>) -> Self {
        Self { mount: None, bare: Some(sb), options: String::new(), slots: std::array::from_fn(|_| None) }
    }

    /// Closes all and unmounts. What is on the disk then.
    pub fn unmount(&mut self) -> Result<Vec<u8>, Errno> {
        self.close_all();
        let mount = self.mount.take().ok_or(libc::EIO)?;
        let ret = ext4_umount(&mount.sb).map_err(errno);
        mount.disk.check();
        ret.map(|()| mount.disk.image())
    }

    /// Closes all.
    pub fn close_all(&mut self) {
        self.slots = std::array::from_fn(|_| None);
    }

    /// The mount. EIO if there is none any more.
    pub fn sb(&self) -> Result<&KArc<SuperBlock>, Errno> {
        self.mount.as_ref().map(|m| &m.sb).or(self.bare.as_ref()).ok_or(libc::EIO)
    }

    /// The file that is open in a slot. EBADF.
    pub fn file(&self, slot: u8) -> Result<&KArc<File>, Errno> {
        self.slots.get(usize::from(slot)).and_then(Option::as_ref).ok_or(libc::EBADF)
    }

    fn inode(&self, slot: u8) -> Result<&IRef, Errno> {
        self.file(slot).map(|file| file.f_inode())
    }

    fn lookup(&self, path: &str) -> Result<IRef, Errno> {
        path_lookupat(self.sb()?, path.as_bytes(), true).map_err(errno)
    }

    fn open(&mut self, slot: u8, path: &str, flags: OFlags, mode: u32) -> Reply {
        self.slots[usize::from(slot)] = None;
        let mut bits = OpenFlags::from_bits_retain(flags.0 & 3);
        for (flag, bit) in [
            (OFlags::CREAT, OpenFlags::O_CREAT),
            (OFlags::EXCL, OpenFlags::O_EXCL),
            (OFlags::TRUNC, OpenFlags::O_TRUNC),
            (OFlags::APPEND, OpenFlags::O_APPEND),
            (OFlags::DIRECT, OpenFlags::O_DIRECT),
            (OFlags::DSYNC, OpenFlags::O_DSYNC),
            (OFlags::SYNC, OpenFlags::O_SYNC),
        ] {
            if flags.has(flag) {
                bits |= bit;
            }
        }
        let file = path_open(self.sb()?, path.as_bytes(), bits, mode, &Cred::default()).map_err(errno)?;
        self.slots[usize::from(slot)] = Some(file);
        Ok(Out::Done)
    }

    fn set_direct(&self, slot: u8, on: bool) -> Reply {
        let file = self.file(slot)?;
        let mut flags = file.f_flags();
        flags.set(OpenFlags::O_DIRECT, on);
        file.set_flags(flags).map_err(errno)?;
        Ok(Out::Done)
    }

    fn read(&self, slot: u8, pos: u64, len: usize, segs: usize) -> Reply {
        let file = self.file(slot)?;
        let mut memory = Pages::new(len, 0xee);
        let mut rest = memory.bytes_mut();
        let mut iov = Vec::new();
        for n in cut(len, segs) {
            let (piece, tail) = rest.split_at_mut(n);
            iov.push(IoVec::dest(piece));
            rest = tail;
        }
        let n =
            ext4_file_read(&mut Kiocb::new_sync(file, pos.cast_signed()), &mut IovIter::new(&iov)).map_err(errno)?;
        Ok(Out::Bytes(memory.bytes()[..n].to_vec()))
    }

    fn write(&self, slot: u8, pos: u64, len: usize, segs: usize, tag: u32, rwf: Rwf) -> Reply {
        let file = self.file(slot)?;
        let memory = Pages::of(&pattern(tag, pos, len));
        let mut rest = memory.bytes();
        let mut iov = Vec::new();
        for n in cut(len, segs) {
            let (piece, tail) = rest.split_at(n);
            iov.push(IoVec::source(piece));
            rest = tail;
        }
        let mut iocb = Kiocb::new_sync(file, pos.cast_signed());
        iocb.ki_flags |= iocb_flags(rwf);
        ext4_file_write(&mut iocb, &mut IovIter::new(&iov)).map(Out::Count).map_err(errno)
    }

    /// All are submitted before the first is waited for.
    fn aio(&self, slot: u8, tag: u32, list: &[(u64, usize)]) -> Reply {
        let file = self.file(slot)?;
        let memory: Vec<Pages> = list.iter().map(|&(pos, len)| Pages::of(&pattern(tag, pos, len))).collect();
        // What a test needs for itself is not what is to fail.
        let listener = exempt(Listener::new);
        let mut ends = Vec::new();
        let mut queued = 0;
        for (n, (&(pos, _), memory)) in list.iter().zip(&memory).enumerate() {
            // SAFETY: the memory is neither changed nor freed before the end of this function, which waits for all.
            let mut iocb = unsafe { Kiocb::new_async(file, pos.cast_signed(), listener.clone(), n) };
            let iov = [IoVec::source(memory.bytes())];
            let ret = ext4_file_write(&mut iocb, &mut IovIter::new(&iov));
            queued += usize::from(ret == Err(code::EIOCBQUEUED));
            ends.push(ret);
        }
        for (n, ret) in listener.wait(queued) {
            if ends[n] != Err(code::EIOCBQUEUED) {
                // Leaked rather than freed under a write that has ended twice.
                std::mem::forget(memory);
                panic!("write {n} answered {:?} and ended with {ret:?} as well", ends[n]);
            }
            ends[n] = ret;
        }
        Ok(Out::Ends(ends.into_iter().map(|ret| ret.map_err(errno)).collect()))
    }

    fn fallocate(&self, slot: u8, how: Falloc, pos: u64, len: u64) -> Reply {
        let file = self.file(slot)?;
        // The VFS's checks.
        if len == 0 {
            return Err(libc::EINVAL);
        }
        file.may_write().map_err(errno)?;
        ext4_fallocate(file.f_inode(), how.flags(), pos.cast_signed(), len.cast_signed()).map_err(errno)?;
        Ok(Out::Done)
    }

    fn ftruncate(&self, slot: u8, size: u64) -> Reply {
        let file = self.file(slot)?;
        if file.may_write().is_err() {
            return Err(libc::EINVAL);
        }
        ext4_setattr_size(file.f_inode(), size.cast_signed()).map_err(errno)?;
        Ok(Out::Done)
    }

    fn fsync(&self, slot: u8, datasync: bool) -> Reply {
        ext4_dio::Ext4::fsync(self.inode(slot)?, 0, i64::MAX, datasync).map_err(errno)?;
        Ok(Out::Done)
    }

    fn seek(&self, slot: u8, pos: u64, whence: Whence) -> Reply {
        let at = ext4_seek(self.inode(slot)?, pos.cast_signed(), whence).map_err(errno)?;
        Ok(Out::Pos(at.cast_unsigned()))
    }

    fn readdir(&self, path: &str, chunk: usize) -> Reply {
        let dir = self.lookup(path)?;
        let mut names = Vec::new();
        let mut pos = 0;
        loop {
            let mut list = KVec::new();
            vfs_readdir(&dir, &mut pos, chunk, &mut list).map_err(errno)?;
            for entry in list.iter() {
                let kind = match entry.file_type {
                    1 => Kind::File,
                    2 => Kind::Dir,
                    7 => Kind::Link,
                    _ => Kind::Other,
                };
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                if name != "." && name != ".." {
                    names.push(Name { name, kind, ino: entry.d_ino });
                }
            }
            if list.len() < chunk {
                return Ok(Out::Names(names));
            }
        }
    }

    fn xattr(&self, op: &Op) -> Reply {
        let mut buf = vec![0u8; 65536];
        match op {
            Op::SetXattr { path, name, len, tag, how } => {
                let how = match how {
                    XattrHow::Any => XattrSet::Any,
                    XattrHow::Create => XattrSet::Create,
                    XattrHow::Replace => XattrSet::Replace,
                };
                let value = xattr_value(name, *tag, *len);
                ext4_setxattr(&*self.lookup(path)?, name.as_bytes(), &value, how).map_err(errno)?;
                Ok(Out::Done)
            }
            Op::GetXattr { path, name } => {
                let n = ext4_getxattr(&*self.lookup(path)?, name.as_bytes(), &mut buf).map_err(errno)?;
                buf.truncate(n);
                Ok(Out::Bytes(buf))
            }
            Op::RemoveXattr { path, name } => {
                ext4_removexattr(&*self.lookup(path)?, name.as_bytes()).map_err(errno)?;
                Ok(Out::Done)
            }
            Op::ListXattr { path } => {
                let n = ext4_listxattr(&*self.lookup(path)?, &mut buf).map_err(errno)?;
                let names = buf[..n].split(|b| *b == 0).filter(|s| !s.is_empty());
                Ok(Out::List(names.map(|s| String::from_utf8_lossy(s).into_owned()).collect()))
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn by_path(&self, op: &Op) -> Reply {
        let sb = self.sb()?;
        let cred = Cred::default();
        match op {
            Op::Truncate { path, size } => path_truncate(sb, path.as_bytes(), size.cast_signed()),
            Op::Unlink { path } => path_unlink(sb, path.as_bytes()),
            Op::Link { from, to } => path_link(sb, from.as_bytes(), to.as_bytes()),
            Op::Symlink { target, path } => path_symlink(sb, target.as_bytes(), path.as_bytes(), &cred),
            Op::Mkdir { path, mode } => path_mkdir(sb, path.as_bytes(), *mode, &cred),
            Op::Rmdir { path } => path_rmdir(sb, path.as_bytes()),
            Op::Chmod { path, mode } => path_chmod(sb, path.as_bytes(), *mode),
            Op::Chown { path, uid, gid } => path_chown(sb, path.as_bytes(), Some(*uid), Some(*gid), true),
            Op::Utimens { path, asec, ansec, msec, mnsec } => {
                let at = |tv_sec, tv_nsec| Utime::At(Timespec64 { tv_sec, tv_nsec });
                path_utimens(sb, path.as_bytes(), at(*asec, *ansec), at(*msec, *mnsec), true)
            }
            Op::Rename { from, to, how } => {
                let flags = match how {
                    RenameHow::Plain => RenameFlags::empty(),
                    RenameHow::NoReplace => RenameFlags::NOREPLACE,
                    RenameHow::Exchange => RenameFlags::EXCHANGE,
                };
                path_rename(sb, from.as_bytes(), to.as_bytes(), flags)
            }
            Op::Sync {} => ext4_sync_fs(sb),
            _ => return Err(libc::ENOSYS),
        }
        .map_err(errno)?;
        Ok(Out::Done)
    }

    fn statfs(&self) -> Reply {
        let sb = self.sb()?;
        // Inodes without names are in use until the commit of what they wait for.
        ext4_sync_fs(sb).map_err(errno)?;
        sb.drain_evictions();
        let st = ext4_statfs(sb).map_err(errno)?;
        Ok(Out::Statfs(Statfs {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
        }))
    }

    fn readlink(&self, path: &str) -> Reply {
        let target = path_readlink(self.sb()?, path.as_bytes()).map_err(errno)?;
        Ok(Out::Text(String::from_utf8_lossy(&target).into_owned()))
    }

    fn remount(&mut self) -> Reply {
        self.close_all();
        let mount = self.mount.take().ok_or(libc::EIO)?;
        ext4_umount(&mount.sb).map_err(errno)?;
        let Mount { disk, faults, sb } = mount;
        drop(sb);
        let bdev = Bdev::new(faults.clone()).map_err(errno)?;
        let sb = ext4_mount(bdev, &self.options).map_err(errno)?;
        self.mount = Some(Mount { disk, faults, sb });
        Ok(Out::Done)
    }
}

fn iocb_flags(rwf: Rwf) -> IocbFlags {
    let mut flags = IocbFlags::empty();
    for (flag, bit) in [
        (Rwf::DSYNC, IocbFlags::DSYNC),
        (Rwf::APPEND, IocbFlags::APPEND),
        (Rwf::NOWAIT, IocbFlags::NOWAIT),
        (Rwf::HIPRI, IocbFlags::HIPRI),
    ] {
        if rwf.has(flag) {
            flags |= bit;
        }
    }
    flags
}

fn stat_of(st: &Kstat) -> Stat {
    let time = |t: Timespec64| (t.tv_sec, t.tv_nsec);
    Stat {
        ino: st.ino,
        kind: match st.mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Link,
            _ => Kind::Other,
        },
        mode: st.mode & 0o7777,
        nlink: st.nlink,
        uid: st.uid,
        gid: st.gid,
        size: st.size.cast_unsigned(),
        blocks: st.blocks,
        atime: time(st.atime),
        mtime: time(st.mtime),
        ctime: time(st.ctime),
    }
}

fn fiemap(inode: &IRef) -> Result<Vec<Extent>, Errno> {
    let block = 1u64 << inode.i_blkbits();
    let mut out = KVec::new();
    ext4_fiemap(inode, 0, u64::MAX, FiemapFlags::SYNC, usize::MAX, &mut out).map_err(errno)?;
    let extent = |e: &ext4_dio::fiemap::FiemapExtent| Extent {
        lblk: e.fe_logical / block,
        len: e.fe_length / block,
        unwritten: e.fe_flags.contains(FiemapExtentFlags::UNWRITTEN),
    };
    Ok(out.iter().map(extent).collect())
}

impl Vfs for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn apply(&mut self, op: &Op) -> Reply {
        match op {
            Op::Open { slot, path, flags, mode } => self.open(*slot, path, *flags, *mode),
            Op::Close { slot } => {
                self.file(*slot)?;
                self.slots[usize::from(*slot)] = None;
                Ok(Out::Done)
            }
            Op::SetDirect { slot, on } => self.set_direct(*slot, *on),
            Op::Read { slot, pos, len, segs } => self.read(*slot, *pos, *len, *segs),
            Op::Write { slot, pos, len, segs, tag, rwf } => self.write(*slot, *pos, *len, *segs, *tag, *rwf),
            Op::Aio { slot, tag, list } => self.aio(*slot, *tag, list),
            Op::Ftruncate { slot, size } => self.ftruncate(*slot, *size),
            Op::Fallocate { slot, how, pos, len } => self.fallocate(*slot, *how, *pos, *len),
            Op::Fsync { slot } => self.fsync(*slot, false),
            Op::Fdatasync { slot } => self.fsync(*slot, true),
            Op::SeekData { slot, pos } => self.seek(*slot, *pos, Whence::Data),
            Op::SeekHole { slot, pos } => self.seek(*slot, *pos, Whence::Hole),
            Op::Fiemap { slot } => fiemap(self.inode(*slot)?).map(Out::Map),
            Op::Readlink { path } => self.readlink(path),
            Op::Readdir { path, chunk } => self.readdir(path, *chunk),
            Op::Stat { path } => {
                path_stat(self.sb()?, path.as_bytes(), true).map(|st| Out::Stat(stat_of(&st))).map_err(errno)
            }
            Op::Lstat { path } => {
                path_stat(self.sb()?, path.as_bytes(), false).map(|st| Out::Stat(stat_of(&st))).map_err(errno)
            }
            Op::Fstat { slot } => Ok(Out::Stat(stat_of(&vfs_getattr(self.inode(*slot)?)))),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. } | Op::ListXattr { .. } => self.xattr(op),
            Op::Statfs {} => self.statfs(),
            Op::Remount {} => self.remount(),
            Op::Truncate { .. }
            | Op::Sync {}
            | Op::Unlink { .. }
            | Op::Link { .. }
            | Op::Symlink { .. }
            | Op::Mkdir { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::Utimens { .. } => self.by_path(op),
        }
    }

    fn see(&mut self, of: &Target) -> Result<Seen, Errno> {
        let inode = match of {
            Target::Slot(slot) => self.inode(*slot)?.clone(),
            Target::Path(path) => self.lookup(path)?,
        };
        let block = 1u64 << inode.i_blkbits();
        let size = inode.i_size().cast_unsigned();
        let map = fiemap(&inode)?;
        let file = File::open(inode, OpenFlags::empty()).map_err(errno)?;
        Seen::collect(size, map, block, |pos, len| {
            let mut buf = vec![0xee; len];
            let iov = [IoVec::dest(&mut buf)];
            let ret = ext4_file_read(&mut Kiocb::new_sync(&file, pos.cast_signed()), &mut IovIter::new(&iov));
            buf.truncate(ret.map_err(errno)?);
            Ok(buf)
        })
    }
}
