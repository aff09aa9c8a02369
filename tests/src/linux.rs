// SPDX-License-Identifier: GPL-2.0-only
//! Operations on what Linux has mounted: its own ext4 on a loop device, or what a [`Mounter`] mounts. Needs root, and is left out
//! where that is missing.
//!
//! Mounts are private to the thread that makes them: whatever happens to it, they and their loop devices go away with it.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use tempfile::TempDir;

use crate::dio::Pages;
use crate::oplang::*;

/// What mounts images.
pub trait Mounter {
    /// Whose file system it is.
    fn name(&self) -> &'static str;
    /// Mounts the image on a directory. `Err` has what was said.
    fn attach(&mut self, image: &Path, dir: &Path) -> Result<(), String>;
    /// Waits, after umount(2), until nobody has the image any more.
    fn detached(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Linux's ext4 on a loop device, with these mount options.
struct Loop(String);

impl Mounter for Loop {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn attach(&mut self, image: &Path, dir: &Path) -> Result<(), String> {
        // Devices are found and taken in two steps, so somebody else may be quicker.
        let mut last = String::new();
        for _ in 0..20 {
            let mount = Command::new("mount").args(["-t", "ext4", "-o", &self.0]).args([image, dir]).output();
            let output = mount.map_err(|e| e.to_string())?;
            if output.status.success() {
                return Ok(());
            }
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            if !last.contains("loop") {
                break;
            }
        }
        Err(last)
    }
}

/// A mount of an image.
pub struct Linux {
    image: PathBuf,
    dir: TempDir,
    mounter: Box<dyn Mounter>,
    mounted: bool,
    slots: [Option<OwnedFd>; SLOTS],
    block: u64,
}

/// `EXT4_IOC_SHUTDOWN`.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// `FS_IOC_FIEMAP`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
/// Of [`Linux::shutdown`]: what is in the journal's memory is lost.
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

fn errno() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(ret: libc::c_int) -> Result<(), Errno> {
    if ret < 0 { Err(errno()) } else { Ok(()) }
}

fn check_long(ret: libc::ssize_t) -> Result<usize, Errno> {
    usize::try_from(ret).map_err(|_| errno())
}

/// Gives this thread, and what it starts from now on, a view of mounts of their own. `false` if it may not have that.
pub fn private_mounts() -> bool {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.get() {
        return true;
    }
    // SAFETY: changes what this thread sees mounted, and its umask, and nothing else.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                // What is unmounted elsewhere is not kept here.
                libc::MS_REC | libc::MS_SLAVE,
                std::ptr::null(),
            ) == 0
    };
    if done {
        // SAFETY: with CLONE_NEWNS the thread's umask became its own.
        unsafe { libc::umask(0) };
    }
    DONE.set(done);
    done
}

/// Whether this machine lets us mount; says so once if not.
pub fn available() -> bool {
    static SAY: Once = Once::new();
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    let ok = root && Path::new("/dev/loop-control").exists() && private_mounts();
    if !ok {
        SAY.call_once(|| eprintln!("LEFT OUT: comparisons with Linux need root and loop devices"));
    }
    ok
}

impl Linux {
    /// Mounts the image in file `image`, as ext4 whatever it is, with `options`. `Err` has what `mount` said.
    pub fn mount(image: &Path, options: &str) -> Result<Self, String> {
        let options = if options.is_empty() { "loop".to_string() } else { format!("loop,{options}") };
        Self::mount_by(Box::new(Loop(options)), image)
    }

    /// Has the image mounted by `mounter`. `Err` has what that said.
    pub fn mount_by(mounter: Box<dyn Mounter>, image: &Path) -> Result<Self, String> {
        assert!(private_mounts(), "needs root");
        let dir = TempDir::new().map_err(|e| e.to_string())?;
        let slots = std::array::from_fn(|_| None);
        let mut linux = Self { image: image.to_path_buf(), dir, mounter, mounted: false, slots, block: 0 };
        linux.attach()?;
        Ok(linux)
    }

    fn attach(&mut self) -> Result<(), String> {
        self.mounter.attach(&self.image, self.dir.path())?;
        self.mounted = true;
        self.block = self.statvfs().map_err(|e| format!("statvfs: errno {e}"))?.f_bsize;
        Ok(())
    }

    /// Unmounts. EIO if writing back fails.
    pub fn unmount(&mut self) -> Result<(), Errno> {
        self.slots = std::array::from_fn(|_| None);
        if std::mem::take(&mut self.mounted) {
            let path = self.path(".")?;
            let mut tries = 0;
            // SAFETY: a path that ends in NUL.
            while let Err(error) = check(unsafe { libc::umount2(path.as_ptr(), 0) }) {
                // Another thread's child has our files until it calls exec.
                tries += 1;
                if error != libc::EBUSY || tries > 200 {
                    self.mounted = true;
                    return Err(error);
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            self.mounter.detached().map_err(|e| {
                eprintln!("after unmounting: {e}");
                libc::EIO
            })?;
        }
        Ok(())
    }

    /// Stops the file system as a power failure would: nothing more is written.
    pub fn shutdown(&self) -> Result<(), Errno> {
        let fd = self.open_at(".", libc::O_RDONLY, 0)?;
        let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
        // SAFETY: the ioctl reads one u32.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, path: &str) -> Result<CString, Errno> {
        let path = format!("{}/{path}", self.dir.path().display());
        CString::new(path).map_err(|_| libc::EINVAL)
    }

    fn statvfs(&self) -> Result<libc::statvfs, Errno> {
        let path = self.path(".")?;
        let mut out = MaybeUninit::uninit();
        // SAFETY: `out` is filled if it succeeds.
        unsafe {
            check(libc::statvfs(path.as_ptr(), out.as_mut_ptr()))?;
            Ok(out.assume_init())
        }
    }

    fn open_at(&self, path: &str, flags: libc::c_int, mode: u32) -> Result<OwnedFd, Errno> {
        open_path(&self.path(path)?, flags, mode)
    }

    fn fd(&self, slot: u8) -> Result<libc::c_int, Errno> {
        self.slots.get(usize::from(slot)).and_then(Option::as_ref).map(AsRawFd::as_raw_fd).ok_or(libc::EBADF)
    }

    fn open(&mut self, slot: u8, path: &str, flags: OFlags, mode: u32) -> Reply {
        self.slots[usize::from(slot)] = None;
        let mut bits = (flags.0 & 3) as libc::c_int;
        for (flag, bit) in [
            (OFlags::CREAT, libc::O_CREAT),
            (OFlags::EXCL, libc::O_EXCL),
            (OFlags::TRUNC, libc::O_TRUNC),
            (OFlags::APPEND, libc::O_APPEND),
            (OFlags::DIRECT, libc::O_DIRECT),
            (OFlags::DSYNC, libc::O_DSYNC),
            (OFlags::SYNC, libc::O_SYNC),
        ] {
            if flags.has(flag) {
                bits |= bit;
            }
        }
        self.slots[usize::from(slot)] = Some(self.open_at(path, bits, mode)?);
        Ok(Out::Done)
    }

    fn set_direct(&self, slot: u8, on: bool) -> Reply {
        let fd = self.fd(slot)?;
        // SAFETY: no memory is passed.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        let flags = if on { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
        // SAFETY: as above.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) })?;
        Ok(Out::Done)
    }

    fn read(&self, slot: u8, pos: u64, len: usize, segs: usize) -> Reply {
        let fd = self.fd(slot)?;
        let mut memory = Pages::new(len, 0xee);
        let iov = vectors(memory.bytes_mut(), segs);
        // SAFETY: the vectors are parts of `memory`.
        let n = check_long(unsafe { libc::preadv(fd, iov.as_ptr(), iov.len() as libc::c_int, pos.cast_signed()) })?;
        Ok(Out::Bytes(memory.bytes()[..n].to_vec()))
    }

    fn write(&self, slot: u8, pos: u64, len: usize, segs: usize, tag: u32, rwf: Rwf) -> Result<usize, Errno> {
        let fd = self.fd(slot)?;
        let mut memory = Pages::of(&pattern(tag, pos, len));
        let iov = vectors(memory.bytes_mut(), segs);
        let mut flags = 0;
        for (flag, bit) in [
            (Rwf::DSYNC, libc::RWF_DSYNC),
            (Rwf::APPEND, libc::RWF_APPEND),
            (Rwf::NOWAIT, libc::RWF_NOWAIT),
            (Rwf::HIPRI, libc::RWF_HIPRI),
        ] {
            if rwf.has(flag) {
                flags |= bit;
            }
        }
        // SAFETY: the vectors are parts of `memory`.
        check_long(unsafe { libc::pwritev2(fd, iov.as_ptr(), iov.len() as libc::c_int, pos.cast_signed(), flags) })
    }

    fn fallocate(&self, slot: u8, how: Falloc, pos: u64, len: u64) -> Reply {
        use libc::*;
        let mode = match how {
            Falloc::Alloc => 0,
            Falloc::Keep => FALLOC_FL_KEEP_SIZE,
            Falloc::Punch => FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            Falloc::Zero => FALLOC_FL_ZERO_RANGE,
            Falloc::ZeroKeep => FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
            Falloc::Collapse => FALLOC_FL_COLLAPSE_RANGE,
            Falloc::Insert => FALLOC_FL_INSERT_RANGE,
        };
        // SAFETY: no memory is passed.
        check(unsafe { libc::fallocate(self.fd(slot)?, mode, pos.cast_signed(), len.cast_signed()) })?;
        Ok(Out::Done)
    }

    fn seek(&self, slot: u8, pos: u64, whence: libc::c_int) -> Reply {
        // SAFETY: no memory is passed.
        let at = unsafe { libc::lseek(self.fd(slot)?, pos.cast_signed(), whence) };
        u64::try_from(at).map(Out::Pos).map_err(|_| errno())
    }

    fn stat(&self, path: &str, flags: libc::c_int) -> Reply {
        let path = self.path(path)?;
        let mut out = MaybeUninit::uninit();
        // SAFETY: `out` is filled if it succeeds.
        let st = unsafe {
            check(libc::fstatat(libc::AT_FDCWD, path.as_ptr(), out.as_mut_ptr(), flags))?;
            out.assume_init()
        };
        Ok(Out::Stat(stat_of(&st)))
    }

    fn readdir(&self, path: &str, chunk: usize) -> Reply {
        let path = self.path(path)?;
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            // SAFETY: a path that ends in NUL.
            let dir = unsafe { libc::opendir(path.as_ptr()) };
            if dir.is_null() {
                return Err(errno());
            }
            let mut got = 0;
            // SAFETY: `dir` is open until closedir, and entries are read before the next call.
            unsafe {
                libc::seekdir(dir, cookie);
                while got < chunk {
                    let entry = libc::readdir64(dir);
                    if entry.is_null() {
                        break;
                    }
                    got += 1;
                    let name = CStr::from_ptr((*entry).d_name.as_ptr()).to_string_lossy().into_owned();
                    let kind = kind_of_dirent((*entry).d_type);
                    if name != "." && name != ".." {
                        names.push(Name { name, kind, ino: (*entry).d_ino });
                    }
                }
                cookie = libc::telldir(dir);
                libc::closedir(dir);
            }
            if got < chunk {
                return Ok(Out::Names(names));
            }
        }
    }

    fn xattr(&self, op: &Op) -> Reply {
        let mut buf = vec![0u8; 65536];
        match op {
            Op::SetXattr { path, name, len, tag, how } => {
                let flags = match how {
                    XattrHow::Any => 0,
                    XattrHow::Create => libc::XATTR_CREATE,
                    XattrHow::Replace => libc::XATTR_REPLACE,
                };
                let (path, value, cname) = (self.path(path)?, xattr_value(name, *tag, *len), cstring(name)?);
                // SAFETY: strings end in NUL, and the value is as long as it is said to be.
                check(unsafe {
                    libc::setxattr(path.as_ptr(), cname.as_ptr(), value.as_ptr().cast(), value.len(), flags)
                })?;
                Ok(Out::Done)
            }
            Op::GetXattr { path, name } => {
                let (path, name) = (self.path(path)?, cstring(name)?);
                // SAFETY: strings end in NUL, and `buf` is as long as it is said to be.
                let n = check_long(unsafe {
                    libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
                })?;
                buf.truncate(n);
                Ok(Out::Bytes(buf))
            }
            Op::RemoveXattr { path, name } => {
                let (path, name) = (self.path(path)?, cstring(name)?);
                // SAFETY: strings end in NUL.
                check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })?;
                Ok(Out::Done)
            }
            Op::ListXattr { path } => {
                let path = self.path(path)?;
                // SAFETY: `buf` is as long as it is said to be.
                let n = check_long(unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })?;
                let names = buf[..n].split(|b| *b == 0).filter(|s| !s.is_empty());
                Ok(Out::List(names.map(|s| String::from_utf8_lossy(s).into_owned()).collect()))
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn rename(&self, from: &str, to: &str, how: RenameHow) -> Reply {
        let flags = match how {
            RenameHow::Plain => 0,
            RenameHow::NoReplace => libc::RENAME_NOREPLACE,
            RenameHow::Exchange => libc::RENAME_EXCHANGE,
        };
        let (from, to) = (self.path(from)?, self.path(to)?);
        // SAFETY: paths that end in NUL.
        check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })?;
        Ok(Out::Done)
    }

    fn readlink(&self, path: &str) -> Reply {
        let path = self.path(path)?;
        let mut buf = vec![0u8; 8192];
        // SAFETY: `buf` is as long as it is said to be.
        let n = check_long(unsafe { libc::readlink(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })?;
        Ok(Out::Text(String::from_utf8_lossy(&buf[..n]).into_owned()))
    }

    fn statfs(&self) -> Reply {
        let st = self.statvfs()?;
        Ok(Out::Statfs(Statfs {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
        }))
    }

    fn remount(&mut self) -> Reply {
        self.unmount()?;
        self.attach().map_err(|e| {
            eprintln!("mounting again: {e}");
            libc::EIO
        })?;
        Ok(Out::Done)
    }

    /// What needs a path that ends in NUL and nothing else.
    fn by_path(&self, op: &Op) -> Reply {
        // SAFETY: all paths end in NUL and live until the end of their statements.
        unsafe {
            check(match op {
                Op::Truncate { path, size } => libc::truncate(self.path(path)?.as_ptr(), size.cast_signed()),
                Op::Unlink { path } => libc::unlink(self.path(path)?.as_ptr()),
                Op::Link { from, to } => libc::link(self.path(from)?.as_ptr(), self.path(to)?.as_ptr()),
                Op::Symlink { target, path } => libc::symlink(cstring(target)?.as_ptr(), self.path(path)?.as_ptr()),
                Op::Mkdir { path, mode } => libc::mkdir(self.path(path)?.as_ptr(), *mode),
                Op::Rmdir { path } => libc::rmdir(self.path(path)?.as_ptr()),
                Op::Chmod { path, mode } => libc::chmod(self.path(path)?.as_ptr(), *mode),
                Op::Chown { path, uid, gid } => libc::chown(self.path(path)?.as_ptr(), *uid, *gid),
                Op::Utimens { path, asec, ansec, msec, mnsec } => {
                    let spec = |sec: i64, nsec: u32| libc::timespec { tv_sec: sec, tv_nsec: i64::from(nsec) };
                    let times = [spec(*asec, *ansec), spec(*msec, *mnsec)];
                    libc::utimensat(libc::AT_FDCWD, self.path(path)?.as_ptr(), times.as_ptr(), 0)
                }
                _ => return Err(libc::ENOSYS),
            })?;
        }
        Ok(Out::Done)
    }

    /// What needs an open file and nothing else.
    fn by_slot(&self, op: &Op) -> Reply {
        // SAFETY: no memory is passed.
        unsafe {
            check(match op {
                Op::Ftruncate { slot, size } => libc::ftruncate(self.fd(*slot)?, size.cast_signed()),
                Op::Fsync { slot } => libc::fsync(self.fd(*slot)?),
                Op::Fdatasync { slot } => libc::fdatasync(self.fd(*slot)?),
                _ => return Err(libc::ENOSYS),
            })?;
        }
        Ok(Out::Done)
    }

    fn sync(&self) -> Reply {
        let root = self.open_at(".", libc::O_RDONLY, 0)?;
        // SAFETY: no memory is passed.
        check(unsafe { libc::syncfs(root.as_raw_fd()) })?;
        Ok(Out::Done)
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        if self.unmount().is_err()
            && let Ok(path) = self.path(".")
        {
            // SAFETY: a path that ends in NUL.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn cstring(s: &str) -> Result<CString, Errno> {
    CString::new(s).map_err(|_| libc::EINVAL)
}

fn open_path(path: &CStr, flags: libc::c_int, mode: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: a path that ends in NUL; the descriptor is nobody else's.
    unsafe {
        let fd = libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode);
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn vectors(memory: &mut [u8], segs: usize) -> Vec<libc::iovec> {
    let mut rest = memory;
    let mut out = Vec::new();
    for n in cut(rest.len(), segs) {
        let (piece, tail) = rest.split_at_mut(n);
        out.push(libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: n });
        rest = tail;
    }
    out
}

fn stat_of(st: &libc::stat) -> Stat {
    Stat {
        ino: st.st_ino,
        kind: match st.st_mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Link,
            _ => Kind::Other,
        },
        mode: st.st_mode & 0o7777,
        nlink: st.st_nlink as u32,
        uid: st.st_uid,
        gid: st.st_gid,
        size: st.st_size.cast_unsigned(),
        blocks: st.st_blocks.cast_unsigned(),
        atime: (st.st_atime, st.st_atime_nsec as u32),
        mtime: (st.st_mtime, st.st_mtime_nsec as u32),
        ctime: (st.st_ctime, st.st_ctime_nsec as u32),
    }
}

fn kind_of_dirent(kind: u8) -> Kind {
    match kind {
        libc::DT_REG => Kind::File,
        libc::DT_DIR => Kind::Dir,
        libc::DT_LNK => Kind::Link,
        _ => Kind::Other,
    }
}

fn fstat(fd: libc::c_int) -> Result<Stat, Errno> {
    let mut out = MaybeUninit::uninit();
    // SAFETY: `out` is filled if it succeeds.
    unsafe {
        check(libc::fstat(fd, out.as_mut_ptr()))?;
        Ok(stat_of(&out.assume_init()))
    }
}

/// `struct fiemap` with room for some extents, as 64-bit words.
fn fiemap(fd: libc::c_int, block: u64) -> Result<Vec<Extent>, Errno> {
    const ROOM: usize = 128;
    const LAST: u64 = 1;
    const UNWRITTEN: u64 = 0x800;
    let mut out: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        // Head: start, length, flags and mapped, count and reserved. Extent: logical, physical, length, 2 reserved, flags, 1.
        let mut words = vec![0u64; 4 + 7 * ROOM];
        (words[0], words[1], words[2], words[3]) = (start, u64::MAX - start, 1, ROOM as u64);
        // SAFETY: the kernel fills in no more extents than there is room for.
        check(unsafe { libc::ioctl(fd, FS_IOC_FIEMAP, words.as_mut_ptr()) })?;
        let mapped = (words[2] >> 32) as usize;
        for e in words[4..].chunks(7).take(mapped) {
            let flags = e[5] & 0xffff_ffff;
            out.push(Extent { lblk: e[0] / block, len: e[2] / block, unwritten: flags & UNWRITTEN != 0 });
            start = e[0] + e[2];
            if flags & LAST != 0 {
                return Ok(out);
            }
        }
        if mapped == 0 {
            return Ok(out);
        }
    }
}

/// Where there may be data, by `SEEK_DATA`: for mounts that have no FIEMAP.
fn data_map(fd: libc::c_int, block: u64) -> Result<Vec<Extent>, Errno> {
    // SAFETY: no memory is passed.
    let seek = |pos: u64, whence| unsafe { libc::lseek(fd, pos.cast_signed(), whence) };
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let Ok(from) = u64::try_from(seek(at, libc::SEEK_DATA)) else {
            // There is no more.
            return if errno() == libc::ENXIO { Ok(out) } else { Err(errno()) };
        };
        let to = u64::try_from(seek(from, libc::SEEK_HOLE)).map_err(|_| errno())?;
        out.push(Extent { lblk: from / block, len: to.div_ceil(block) - from / block, unwritten: false });
        at = to;
    }
}

impl Vfs for Linux {
    fn name(&self) -> &'static str {
        self.mounter.name()
    }

    fn apply(&mut self, op: &Op) -> Reply {
        match op {
            Op::Open { slot, path, flags, mode } => self.open(*slot, path, *flags, *mode),
            Op::Close { slot } => {
                self.fd(*slot)?;
                self.slots[usize::from(*slot)] = None;
                Ok(Out::Done)
            }
            Op::SetDirect { slot, on } => self.set_direct(*slot, *on),
            Op::Read { slot, pos, len, segs } => self.read(*slot, *pos, *len, *segs),
            Op::Write { slot, pos, len, segs, tag, rwf } => {
                self.write(*slot, *pos, *len, *segs, *tag, *rwf).map(Out::Count)
            }
            Op::Aio { slot, tag, list } => {
                self.fd(*slot)?;
                let one = |&(pos, len): &(u64, usize)| self.write(*slot, pos, len, 1, *tag, Rwf::default());
                Ok(Out::Ends(list.iter().map(one).collect()))
            }
            Op::Fallocate { slot, how, pos, len } => self.fallocate(*slot, *how, *pos, *len),
            Op::SeekData { slot, pos } => self.seek(*slot, *pos, libc::SEEK_DATA),
            Op::SeekHole { slot, pos } => self.seek(*slot, *pos, libc::SEEK_HOLE),
            Op::Fiemap { slot } => fiemap(self.fd(*slot)?, self.block).map(Out::Map),
            Op::Readlink { path } => self.readlink(path),
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            Op::Readdir { path, chunk } => self.readdir(path, *chunk),
            Op::Stat { path } => self.stat(path, 0),
            Op::Lstat { path } => self.stat(path, libc::AT_SYMLINK_NOFOLLOW),
            Op::Fstat { slot } => fstat(self.fd(*slot)?).map(Out::Stat),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. } | Op::ListXattr { .. } => self.xattr(op),
            Op::Sync {} => self.sync(),
            Op::Statfs {} => self.statfs(),
            Op::Remount {} => self.remount(),
            Op::Ftruncate { .. } | Op::Fsync { .. } | Op::Fdatasync { .. } => self.by_slot(op),
            Op::Truncate { .. }
            | Op::Unlink { .. }
            | Op::Link { .. }
            | Op::Symlink { .. }
            | Op::Mkdir { .. }
            | Op::Rmdir { .. }
            | Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::Utimens { .. } => self.by_path(op),
        }
    }

    fn see(&mut self, of: &Target) -> Result<Seen, Errno> {
        let fd = match of {
            Target::Slot(slot) => {
                let again = cstring(&format!("/proc/self/fd/{}", self.fd(*slot)?))?;
                open_path(&again, libc::O_RDONLY, 0)?
            }
            Target::Path(path) => self.open_at(path, libc::O_RDONLY, 0)?,
        };
        let fd = fd.as_raw_fd();
        let size = fstat(fd)?.size;
        let (map, exact) = match fiemap(fd, self.block) {
            Err(libc::EOPNOTSUPP) => (data_map(fd, self.block)?, false),
            map => (map?, true),
        };
        let mut seen = Seen::collect(size, map, self.block, |pos, len| {
            let mut buf = vec![0; len];
            // SAFETY: `buf` is as long as it is said to be.
            let n = check_long(unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), len, pos.cast_signed()) })?;
            buf.truncate(n);
            Ok(buf)
        })?;
        seen.exact = exact;
        Ok(seen)
    }
}
