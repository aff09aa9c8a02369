// SPDX-License-Identifier: GPL-2.0-only
//! Mounts for the tests.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use ext4_dio_runner::proc::Proc;
use ext4_dio_tests::images::{Image, Mkfs, assert_clean};
use ext4_dio_tests::linux::{Mounter, private_mounts};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use tempfile::{NamedTempFile, TempDir};

/// The program.
pub(crate) const DAEMON: &str = env!("CARGO_BIN_EXE_ext4-dio-fuse");
/// What takes longer hangs.
pub(crate) const HANGS: Duration = Duration::from_secs(120);
/// Sizes of blocks.
pub(crate) const BLOCKS: [u32; 3] = [1024, 2048, 4096];

/// Tells what is left out. Past libtest, which shows what passing tests say to nobody.
pub(crate) fn left_out(what: &str) {
    // If nobody listens, nobody is told.
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {what}");
}

/// Whether this machine lets us mount; says once what is missing if not.
pub(crate) fn available() -> bool {
    static SAY: Once = Once::new();
    let fuse = File::options().read(true).write(true).open("/dev/fuse");
    let missing = match fuse {
        _ if !rustix::process::geteuid().is_root() => Some("root".to_string()),
        Err(error) => Some(format!("/dev/fuse ({error})")),
        Ok(_) if !private_mounts() => Some("the right to a view of mounts of their own".to_string()),
        Ok(_) => None,
    };
    if let Some(missing) = &missing {
        SAY.call_once(|| left_out(&format!("tests of the mount need {missing}")));
    }
    missing.is_none()
}

/// A disk for most tests.
pub(crate) fn disk(block_size: u32) -> Mkfs {
    let journal: &[&str] = if block_size == 4096 { &[] } else { &["-J", "size=4"] };
    Mkfs { block_size, size_kib: 64 << 10, inodes: 4096, args: journal, ..Mkfs::default() }
}

/// The daemon in the foreground, as a child that dies with the thread that started it.
pub(crate) struct Fuse {
    options: String,
    daemon: Option<Proc>,
    /// What it says.
    log: NamedTempFile,
}

impl Fuse {
    /// One that is not started yet.
    pub(crate) fn new(options: &str) -> Self {
        Self { options: options.to_string(), daemon: None, log: NamedTempFile::new().expect("room for a log") }
    }

    /// What it has said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("its log")
    }

    /// Waits for it to end by itself. `Err` unless it ends well, and has found nothing wrong with itself.
    fn wait(&mut self) -> Result<(), String> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let status = daemon.wait(Some(HANGS)).map_err(|e| format!("{e:#}\n{}", self.said()))?;
        let said = self.said();
        let bug = ["panicked", "BUG", "lockdep"].iter().any(|word| said.contains(word));
        if status.success() && !bug { Ok(()) } else { Err(format!("the daemon: {status}\n{said}")) }
    }
}

impl Mounter for Fuse {
    fn name(&self) -> &'static str {
        "mount"
    }

    fn attach(&mut self, image: &Path, dir: &Path) -> Result<(), String> {
        let mut command = Command::new(DAEMON);
        command.args([image, dir]).arg("-f");
        if !self.options.is_empty() {
            command.args(["-o", &self.options]);
        }
        let log = || self.log.reopen().map(Stdio::from).map_err(|e| e.to_string());
        command.stdout(log()?).stderr(log()?);
        let mut daemon = Proc::spawn(command).map_err(|e| format!("{e:#}"))?;
        // The kernel's first question is answered only after mount(2) has returned; who unmounts before ends a mount that never was.
        if is_mounted_before_it_ends(dir, &daemon) && std::fs::metadata(dir).is_ok() {
            self.daemon = Some(daemon);
            return Ok(());
        }
        let status = daemon.wait(Some(HANGS)).map_err(|e| format!("{e:#}"))?;
        Err(format!("{status}: {}", self.said()))
    }

    fn detached(&mut self) -> Result<(), String> {
        self.wait()
    }
}

/// The line of this thread's mountinfo for `dir`, if something is mounted there.
pub(crate) fn mount_line(dir: &Path) -> Option<String> {
    let info = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("procfs");
    let dir = dir.to_string_lossy();
    info.lines().find(|line| line.split(' ').nth(4) == Some(&dir)).map(str::to_string)
}

fn is_mounted_before_it_ends(dir: &Path, daemon: &Proc) -> bool {
    let mut info = File::open("/proc/thread-self/mountinfo").expect("procfs");
    loop {
        // Changes after this are told by poll().
        let mut text = String::new();
        info.read_to_string(&mut text).expect("procfs");
        if mount_line(dir).is_some() {
            return true;
        }
        let mut fds = [
            PollFd::from_borrowed_fd(info.as_fd(), PollFlags::PRI),
            PollFd::from_borrowed_fd(daemon.end_fd(), PollFlags::IN),
        ];
        let limit = Timespec { tv_sec: HANGS.as_secs() as i64, tv_nsec: 0 };
        let changed = rustix::event::poll(&mut fds, Some(&limit)).expect("poll");
        assert!(changed > 0, "it is neither mounted nor ended");
        if !fds[1].revents().is_empty() {
            return mount_line(dir).is_some();
        }
    }
}

/// Whether there is something in the journal. `e2fsck -fn` does not mind that.
pub(crate) fn needs_recovery(image: &Path) -> bool {
    let mut incompat = [0; 4];
    // s_feature_incompat, in the super block at 1024.
    File::open(image).and_then(|file| file.read_exact_at(&mut incompat, 1024 + 0x60)).expect("a super block");
    u32::from_le_bytes(incompat) & 4 != 0
}

/// umount(2). Another thread's child may have our files until it calls exec.
pub(crate) fn umount(dir: &Path) {
    let mut tries = 0;
    while let Err(error) = unmount(dir, UnmountFlags::empty()) {
        tries += 1;
        assert!(error == Errno::BUSY && tries < 500, "unmounting {}: {error}", dir.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An image and its mount.
pub(crate) struct Mount {
    image: PathBuf,
    /// If the image is ours.
    _image: Option<Image>,
    dir: TempDir,
    fuse: Fuse,
}

impl Mount {
    /// Mounts a new disk with blocks of `block_size`.
    pub(crate) fn new(block_size: u32, options: &str) -> Self {
        let image = Image::make(&disk(block_size), None);
        let mut mount = Self::of(&image.path(), options).unwrap_or_else(|e| panic!("{e}"));
        mount._image = Some(image);
        mount
    }

    /// Mounts this image or device.
    pub(crate) fn of(image: &Path, options: &str) -> Result<Self, String> {
        assert!(private_mounts(), "needs root");
        let dir = TempDir::new().expect("a directory");
        let mut fuse = Fuse::new(options);
        fuse.attach(image, dir.path())?;
        Ok(Self { image: image.to_path_buf(), _image: None, dir, fuse })
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file or device below it.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Opens for reading and writing, with more flags of open(2), and makes it if it is not there.
    pub(crate) fn open(&self, name: &str, flags: rustix::fs::OFlags) -> File {
        let flags = flags.bits().cast_signed();
        let file = File::options().read(true).write(true).create(true).custom_flags(flags).open(self.path(name));
        file.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Unmounts, waits for the daemon, and has the image checked. What the daemon has said.
    pub(crate) fn umount(&mut self) -> String {
        umount(self.dir.path());
        self.ended()
    }

    /// Sends the daemon a signal that ends it well, and has the image checked. What the daemon has said.
    pub(crate) fn signal(&mut self, signal: Signal) -> String {
        rustix::process::kill_process(self.process(), signal).expect("it runs");
        self.ended()
    }

    fn ended(&mut self) -> String {
        self.fuse.wait().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(mount_line(self.dir.path()), None, "nothing is mounted any more");
        assert_clean(&self.image);
        assert!(!needs_recovery(&self.image), "the journal is left to be replayed");
        self.fuse.said()
    }

    /// Unmounts what was shut down: it leaves the image as it is.
    pub(crate) fn umount_dirty(&mut self) {
        umount(self.dir.path());
        // It may say that not everything was written.
        if let Err(text) = self.fuse.wait() {
            assert!(!text.contains("panicked"), "{text}");
        }
    }

    /// The daemon's process.
    pub(crate) fn process(&self) -> rustix::process::Pid {
        self.fuse.daemon.as_ref().expect("it runs").pid()
    }

    /// Kills the daemon at once, and takes away what it has left mounted.
    pub(crate) fn kill(&mut self) {
        drop(self.fuse.daemon.take());
        unmount(self.dir.path(), UnmountFlags::DETACH).expect("unmounting");
    }

    /// Mounts it again.
    pub(crate) fn mount(&mut self) {
        self.fuse.attach(&self.image, self.dir.path()).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Unmounts and mounts again.
    pub(crate) fn remount(&mut self) {
        self.umount();
        self.mount();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.fuse.daemon.is_some() {
            if std::thread::panicking() {
                eprintln!("the daemon said: {}", self.fuse.said());
            }
            drop(self.fuse.daemon.take());
            // If that fails it is not mounted, or goes away with this thread's view.
            let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
        }
    }
}
