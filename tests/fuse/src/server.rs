// SPDX-License-Identifier: GPL-2.0-only
//! FUSE's requests: what came, to a function of [`Fs`], and what that says into a reply.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::*;
use kernel_shim::error::{Result, code::EOPNOTSUPP};

use crate::attr::{errno, ttl};
use crate::fs::attrs::Changes;
use crate::fs::xattrs::Answer;
use crate::fs::{Entry, Fs, cred};

/// Bytes that one request reads or writes at most; the kernel splits what is longer.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests that nobody waits for, asynchronous direct I/O among them: so many get here at once.
const MAX_BACKGROUND: u16 = 512;

/// What a session calls. The file system outlives it.
pub struct Server {
    fs: Arc<Fs>,
    /// Called when the session is over.
    over: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Server {
    /// Serves `fs`; when the kernel has hung up on all threads of the session the last of them calls `over`.
    pub fn new(fs: Arc<Fs>, over: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { fs, over: Some(Box::new(over)) }
    }

    /// Does `f` unless the end has come; then the reply's error is EIO.
    fn with<T>(&self, f: impl FnOnce(&Fs) -> Result<T>) -> Result<T, Errno> {
        let fs = &*self.fs;
        let inside = fs.requests.enter().map_err(errno)?;
        let done = f(fs);
        drop(inside);
        done.map_err(errno)
    }
}

/// Sends a reply of nothing.
fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// Sends a reply of an inode.
fn entry(done: Result<Entry, Errno>, reply: ReplyEntry) {
    match done {
        Ok(entry) => reply.entry(&ttl(&entry.attr), &entry.attr, entry.generation),
        Err(error) => reply.error(error),
    }
}

fn attr(done: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match done {
        Ok(attr) => reply.attr(&ttl(&attr), &attr),
        Err(error) => reply.error(error),
    }
}

fn xattr(done: Result<Answer, Errno>, reply: ReplyXattr) {
    match done {
        Ok(Answer::Length(len)) => reply.size(len),
        Ok(Answer::Bytes(bytes)) => reply.data(&bytes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let can = config.capabilities();
        let flags = InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_HAS_IOCTL_DIR
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        self.fs.agree(can);
        // OK to unwrap: no more than the kernel can.
        config.add_capabilities(flags & can).expect("capabilities of the kernel's");
        // Each of these says what it would take instead, and that is as good.
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_readahead(MAX_REQUEST).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(MAX_BACKGROUND);
        let gran = Duration::from_nanos(u64::from(self.fs.sb.s_time_gran.max(1)));
        let _ = config.set_time_granularity(gran);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(over) = self.over.take() {
            over();
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.with(|fs| fs.lookup(parent, name.as_bytes())), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let _ = self.with(|fs| {
            fs.nodes.forget(ino, nlookup);
            Ok(())
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        attr(self.with(|fs| fs.getattr(ino)), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Of a file that is open the kernel leaves the time to us.
        let mtime = if fh.is_some() && size.is_some() { mtime.or(Some(TimeOrNow::Now)) } else { mtime };
        let changes = Changes { mode, uid, gid, size, atime, mtime };
        attr(self.with(|fs| fs.setattr(req.uid(), ino, &changes)), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.with(|fs| fs.readlink(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        entry(self.with(|fs| fs.mknod(parent, name.as_bytes(), mode, rdev, &cred(req))), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        entry(self.with(|fs| fs.mkdir(parent, name.as_bytes(), mode, &cred(req))), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.with(|fs| fs.unlink(parent, name.as_bytes())), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.with(|fs| fs.rmdir(parent, name.as_bytes())), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        entry(self.with(|fs| fs.symlink(parent, link_name.as_bytes(), target, &cred(req))), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (old, new) = ((parent, name.as_bytes()), (newparent, newname.as_bytes()));
        empty(self.with(|fs| fs.rename(old, new, flags.bits())), reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        entry(self.with(|fs| fs.link(ino, newparent, newname.as_bytes())), reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.with(|fs| fs.open(ino, flags.0)) {
            Ok((fh, how)) => reply.opened(fh, how),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reply = Some(reply);
        let done = self.with(|fs| {
            fs.read(fh, offset, size, flags.0, |bytes| {
                if let Some(reply) = reply.take() {
                    reply.data(bytes);
                }
            })
        });
        if let (Err(error), Some(reply)) = (done, reply) {
            reply.error(error);
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(|fs| fs.write(fh, offset, data, write_flags, flags.0)) {
            Ok(n) => reply.written(n),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // There is nothing to do for close(), and the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.with(|fs| {
            fs.handles.close(fh);
            Ok(())
        });
        empty(closed, reply);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.with(|fs| fs.fsync(ino, datasync)), reply);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut any = false;
        let done = self.with(|fs| {
            fs.readdir(ino, offset, |name| {
                let full = reply.add(name.ino, name.next, name.kind, OsStr::from_bytes(name.name));
                any |= !full;
                full
            })
        });
        match done {
            // What was read before an error is told, and the error when the kernel asks for more.
            Err(error) if !any => reply.error(error),
            _ => reply.ok(),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut any = false;
        let done = self.with(|fs| {
            fs.readdirplus(ino, offset, |name, e| {
                let os_name = OsStr::from_bytes(name.name);
                let full = reply.add(name.ino, name.next, os_name, &ttl(&e.attr), &e.attr, e.generation);
                any |= !full;
                full
            })
        });
        match done {
            Err(error) if !any => reply.error(error),
            _ => reply.ok(),
        }
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.with(|fs| fs.fsync(ino, datasync)), reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.with(|fs| fs.statfs()) {
            Ok(st) => {
                let (bsize, namelen) = (st.f_bsize, st.f_namelen);
                reply.statfs(st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, bsize, namelen, bsize);
            }
            Err(error) => reply.error(error),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        empty(self.with(|fs| fs.setxattr(ino, name.as_bytes(), value, flags)), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(self.with(|fs| fs.getxattr(ino, name.as_bytes(), size)), reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(self.with(|fs| fs.listxattr(ino, size, req.uid() == 0)), reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.with(|fs| fs.removexattr(ino, name.as_bytes())), reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // Permissions are the kernel's business.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.with(|fs| {
            let (entry, file) = fs.create(parent, name.as_bytes(), mode, flags, &cred(req))?;
            Ok((entry, fs.handles.add(file), fs.fopen_flags(flags)))
        });
        match made {
            Ok((entry, fh, how)) => reply.created(&ttl(&entry.attr), &entry.attr, entry.generation, fh, how),
            Err(error) => reply.error(error),
        }
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        match self.with(|fs| fs.ioctl(ino, req.uid(), cmd, in_data)) {
            Ok(out) => reply.ioctl(0, &out),
            Err(error) => reply.error(error),
        }
    }

    fn bmap(&self, _req: &Request, ino: INodeNo, blocksize: u32, idx: u64, reply: ReplyBmap) {
        match self.with(|fs| fs.bmap(ino, blocksize, idx)) {
            Ok(block) => reply.bmap(block),
            Err(error) => reply.error(error),
        }
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready, which the kernel takes for granted from then on.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(self.with(|fs| fs.fallocate(req.uid(), fh, offset, length, mode)), reply);
    }

    fn lseek(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.with(|fs| fs.lseek(fh, offset, whence)) {
            Ok(at) => reply.offset(at),
            Err(error) => reply.error(error),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let done = self.with(|fs| {
            // There are none so far.
            if !flags.is_empty() {
                return Err(EOPNOTSUPP);
            }
            fs.copy(req.uid(), (fh_in, offset_in), (fh_out, offset_out), len)
        });
        match done {
            Ok(n) => reply.written(n),
            Err(error) => reply.error(error),
        }
    }
}
