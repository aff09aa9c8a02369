// SPDX-License-Identifier: GPL-2.0-only
//! The mount from its beginning to its end.
//!
//! It ends with `umount`, after which the kernel hangs up on every thread; or with SIGINT or SIGTERM, after which it is unmounted. If
//! somebody has files open there still, the mount is taken away from them: what they ask for later is an error, what they
//! have written is on the disk.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ext4_dio::ext4_mount;
use fuser::{Config, MountOption, Session};
use kernel_shim::block::Bdev;
use kernel_shim::block::file::{FileDisk, FileDiskOptions};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};

use crate::cli::Request;
use crate::fs::Fs;
use crate::log::{self, Target};
use crate::server::Server;

/// Why something could not be done: what, and the reason.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// `what` has failed because of `why`.
    pub fn new(what: impl fmt::Display, why: io::Error) -> Self {
        Self(format!("{what}: {why}"))
    }

    /// All of it.
    pub fn text(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Says where `name` is, without following symbolic links at its end: the background has another directory.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| Error::new(path.display(), error))
}

/// What ends a mount.
enum Event {
    /// The kernel has hung up: it was unmounted.
    Over,
    /// A signal.
    Stop(Signal),
}

/// Mounts, calls `mounted`, and serves until it is unmounted. The process is to end afterwards.
pub fn serve(request: &Request, mut mounted: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let (image, mountpoint) = (absolute(&request.image)?, absolute(&request.mountpoint)?);
    log::set(target(request)?);
    check_mountpoint(&mountpoint)?;
    // Threads that are made from here on leave them to the one that waits for them.
    let signals = stopping_signals();
    signals.thread_block().map_err(|errno| Error::new("signals", errno.into()))?;
    let fs = Arc::new(open(&image, request)?);
    let (tell, events) = channel();
    let session = match start(&fs, &image, &mountpoint, request, tell.clone()) {
        Ok(session) => session,
        Err(error) => return end(&fs, &image, request).and(Err(error)),
    };
    spawn("signals", move || {
        while let Ok(signal) = signals.wait() {
            if tell.send(Event::Stop(signal)).is_err() {
                break;
            }
        }
    })?;
    spawn("session", move || {
        if let Err(error) = session.run() {
            log::error(&format!("serving FUSE: {error}"));
        }
    })?;
    // What is mounted there, to be told from what may be mounted there later.
    let device =
        std::fs::metadata(&mountpoint).map(|stat| stat.dev()).map_err(|error| Error::new("the mount", error))?;
    mounted()?;
    if !request.foreground && request.log.is_none() {
        log::set(Target::Syslog);
    }
    let mut event = events.recv().unwrap_or(Event::Over);
    while let Event::Stop(signal) = event {
        log::info(&format!("{signal}: unmounting {}", mountpoint.display()));
        if !unmount(&fs, &mountpoint, device) {
            break;
        }
        event = events.recv_timeout(ELSEWHERE).unwrap_or_else(|_| {
            // Another mount namespace was made while it was mounted, and has it as long as there is somebody in it.
            log::error(&format!("{} is mounted elsewhere, and goes away all the same", mountpoint.display()));
            Event::Over
        });
    }
    end(&fs, &image, request)
}

fn target(request: &Request) -> Result<Target, Error> {
    let Some(path) = &request.log else {
        return Ok(if request.foreground { Target::Stderr } else { Target::Held(Vec::new()) });
    };
    let file = OpenOptions::new().create(true).append(true).open(path);
    Ok(Target::File(file.map_err(|error| Error::new(path.display(), error))?))
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = thread::Builder::new().name(name.to_string()).spawn(f);
    spawned.map(drop).map_err(|error| Error::new(format!("thread {name}"), error))
}

/// Better told now than by the system call that fails, or after a fork.
fn check_mountpoint(path: &Path) -> Result<(), Error> {
    let stat = std::fs::metadata(path).map_err(|error| Error::new(format!("mount point {}", path.display()), error))?;
    if !stat.is_dir() {
        return Err(Error::text(format!("mount point {}: not a directory", path.display())));
    }
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_there) => Ok(()),
        Err(error) => Err(Error::new("/dev/fuse", error)),
    }
}

/// Opens the disk, and mounts what is on it.
fn open(image: &Path, request: &Request) -> Result<Fs, Error> {
    let disk = open_disk(image, request)?;
    let failed = |why: kernel_shim::error::Error| {
        let why = io::Error::from_raw_os_error(-why.to_errno());
        Error::new(format!("{}: cannot be mounted as ext4", image.display()), why)
    };
    let disk = Bdev::new(disk).map_err(failed)?;
    let sb = ext4_mount(disk, &request.options.ext4).map_err(failed)?;
    Fs::new(sb, request.options.page_cache).map_err(failed)
}

/// Opens the disk for this mount alone.
///
/// `umount` returns before the process that has served a mount has written everything: that is waited for, as a script that
/// mounts again at once expects. An image that is mounted still is refused at once.
fn open_disk(image: &Path, request: &Request) -> Result<FileDisk, Error> {
    // Read-only mounts write, too, if there is a journal to replay; where they cannot, or are told not to, they do without.
    let (only_read, noload) = (request.options.read_only, request.options.noload);
    let mut options = FileDiskOptions { read_only: noload, direct: true, threads: request.options.threads };
    let patience = Instant::now() + ENDING;
    loop {
        let error = match FileDisk::open(image, &options) {
            Ok(disk) => return Ok(disk),
            Err(error) => error,
        };
        let why = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        match why.map(io::Error::kind) {
            Some(io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy) => {}
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
                if only_read && !options.read_only =>
            {
                options.read_only = true;
                continue;
            }
            _ => return Err(Error::text(error.to_string())),
        }
        if let Some(there) = mounted_on(image) {
            return Err(Error::text(format!("{}: mounted already, on {there}", image.display())));
        }
        if Instant::now() > patience {
            return Err(Error::text(format!("{}: in use already", image.display())));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// How long after it was unmounted the kernel may take to hang up.
const ELSEWHERE: Duration = Duration::from_secs(3);
/// How long the end of a mount may take.
const ENDING: Duration = Duration::from_secs(15);

/// Where the kernel has a mount of `image`, over FUSE or, of a device, its own; by the name that it was mounted by.
fn mounted_on(image: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    // Source, directory, type and others; spaces and the like are in octal.
    let octal =
        |path: &Path| path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    let mut names = vec![octal(image)];
    names.extend(image.canonicalize().ok().map(|path| octal(&path)));
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (source, dir) = (words.next()?, words.next()?);
        names.iter().any(|name| name == source).then(|| dir.to_string())
    })
}

/// Mounts it on the directory, and shakes hands with the kernel.
fn start(
    fs: &Arc<Fs>,
    image: &Path,
    mountpoint: &Path,
    request: &Request,
    tell: Sender<Event>,
) -> Result<Session<Server>, Error> {
    let options = &request.options;
    let mut config = Config::default();
    config.mount_options = options.mount.clone();
    let fsname = options.fsname.clone().unwrap_or_else(|| image.display().to_string());
    config.mount_options.push(MountOption::FSName(fsname));
    if let Some(subtype) = &options.subtype {
        // fuser has a word for it that it tells fusermount, and not the kernel.
        config.mount_options.push(MountOption::CUSTOM(format!("subtype={subtype}")));
    }
    config.acl = options.acl;
    config.n_threads = Some(options.threads);
    config.clone_fd = true;
    let served = Arc::new(AtomicBool::new(false));
    let begun = served.clone();
    let server = Server::new(fs.clone(), move || {
        // A session that could not be begun is told of by its error.
        if begun.load(Ordering::Acquire) {
            // Whoever has gone already needs not be told.
            let _ = tell.send(Event::Over);
            // fuser would unmount now, without asking whether it is our mount that is there still: what was mounted on the same directory
            // since would go. The process is about to end.
            loop {
                thread::park();
            }
        }
    });
    let session = Session::new(server, mountpoint, &config)
        .map_err(|error| Error::new(format!("mounting on {}", mountpoint.display()), error))?;
    served.store(true, Ordering::Release);
    Ok(session)
}

/// Unmounts what is on the disk.
fn end(fs: &Fs, image: &Path, request: &Request) -> Result<(), Error> {
    let closed = fs.close();
    if request.verbose {
        log::info(&format!(
            "requests at once: at most {}, direct writes {}, direct reads {}",
            fs.requests.most(),
            fs.direct_writes.most(),
            fs.direct_reads.most()
        ));
    }
    closed.map_err(|error| {
        let why = io::Error::from_raw_os_error(-error.to_errno());
        Error::new(format!("{}: not everything was written at unmount", image.display()), why)
    })
}

fn stopping_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals
}

/// Unmounts, after which the session ends by itself. Where files are open still the mount is taken away, and false returned.
fn unmount(fs: &Fs, mountpoint: &Path, device: u64) -> bool {
    if !std::fs::metadata(mountpoint).is_ok_and(|stat| stat.dev() == device) {
        // Somebody was faster, and something else is there. Files may be open still: it goes away all the same.
        return false;
    }
    if let Err(error) = write_back(fs, mountpoint) {
        log::error(&format!("writing back {}: {error}", mountpoint.display()));
    }
    match umount(mountpoint, MntFlags::empty()) {
        Ok(()) => return true,
        Err(Errno::EBUSY) => log::error(&format!("{} is in use, and goes away all the same", mountpoint.display())),
        Err(errno) => log::error(&format!("unmounting {}: {errno}", mountpoint.display())),
    }
    if let Err(errno) = umount(mountpoint, MntFlags::MNT_DETACH) {
        log::error(&format!("unmounting {}: {errno}", mountpoint.display()));
    }
    false
}

/// Pages that programs have mapped and changed are the kernel's until it writes them. Returns when it has.
///
/// `syncfs` alone waits until the kernel has sent them on their way: it does not wait for FUSE (Linux 6.16), lest it wait for itself.
/// Requests are handed out in their order. So when one that was sent afterwards is answered they are in the hands of our threads, and
/// done when there are none any more. What a thread has read it counts a moment later: so it has to be quiet a few times.
fn write_back(fs: &Fs, mountpoint: &Path) -> io::Result<()> {
    nix::unistd::syncfs(File::open(mountpoint)?)?;
    let mut quiet = 0;
    while quiet < 3 {
        let (_, before) = fs.written_back.counts();
        nix::sys::statvfs::statvfs(mountpoint)?;
        thread::sleep(Duration::from_millis(2));
        quiet = if fs.written_back.counts() == (0, before) { quiet + 1 } else { 0 };
    }
    Ok(())
}

/// `umount2`, by fusermount for those who may not.
fn umount(mountpoint: &Path, flags: MntFlags) -> Result<(), Errno> {
    let done = umount2(mountpoint, flags);
    if done != Err(Errno::EPERM) {
        return done;
    }
    let mut fusermount = Command::new("fusermount3");
    fusermount.arg("-u");
    if flags.contains(MntFlags::MNT_DETACH) {
        fusermount.arg("-z");
    }
    match fusermount.arg("--").arg(mountpoint).status() {
        Ok(status) if status.success() => Ok(()),
        // It says why on standard error; mostly the mount is in use.
        Ok(_) => Err(Errno::EBUSY),
        Err(_) => Err(Errno::EPERM),
    }
}
