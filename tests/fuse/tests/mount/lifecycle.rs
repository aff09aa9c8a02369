// SPDX-License-Identifier: GPL-2.0-only
//! Mounting and unmounting, and what is refused.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use ext4_dio_tests::images::{Image, Mkfs, assert_clean};
use ext4_dio_tests::linux;
use rustix::fs::{FlockOperation, OFlags};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{BLOCKS, DAEMON, HANGS, Mount, available, disk, left_out, mount_line, needs_recovery, umount};

/// Runs the program to its end, or until it has gone to the background.
fn run(args: &[&Path], options: &[&str]) -> Output {
    Command::new(DAEMON).args(args).args(options).output().expect("it starts")
}

/// Waits until nobody has the image any more, and has it checked.
fn wait_for_the_image(image: &Path) {
    let start = Instant::now();
    let file = File::open(image).expect("the image");
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(start.elapsed() < HANGS, "somebody has the image still");
        std::thread::yield_now();
    }
    assert_clean(image);
    assert!(!needs_recovery(image), "the journal is left to be replayed");
}

/// It must fail, say so in words that have all of `words`, leave nothing mounted, and not take long.
fn refused(args: &[&Path], options: &[&str], words: &[&str]) {
    let output = run(args, options);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{args:?} {options:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "{args:?} {options:?}: no \"{word}\" in: {said}");
    }
    if let Some(dir) = args.get(1) {
        assert_eq!(mount_line(dir), None);
    }
}

fn name(path: &Path) -> &str {
    path.to_str().expect("ASCII")
}

/// In the background: it is mounted when the program returns, and the image is nobody's after it was unmounted.
#[test]
fn in_the_background() {
    if !available() {
        return;
    }
    for block_size in BLOCKS {
        let image = Image::make(&disk(block_size), None);
        let dir = TempDir::new().expect("a directory");
        for n in 0..3 {
            // With the words of mount(8) behind the two names.
            let output = run(&[&image.path(), dir.path()], &["-o", "rw,allow_other,nosuid"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stderr.is_empty() && output.stdout.is_empty(), "what goes well goes without words");
            let line = mount_line(dir.path()).expect("it is mounted");
            assert!(line.contains(" fuse.") && line.contains("nosuid") && line.contains("allow_other"), "{line}");
            assert!(line.contains(name(&image.path())), "{line}");
            let path = dir.path().join("f");
            assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), "x".repeat(n * 1000));
            std::fs::write(&path, "x".repeat((n + 1) * 1000)).expect("writing");
            umount(dir.path());
            // The next one waits for the one before to be done with it.
        }
        wait_for_the_image(&image.path());
    }
}

/// Whatever ends it, all that was written is on the disk.
#[test]
fn everything_is_written_at_the_end() {
    if !available() {
        return;
    }
    type End = fn(&mut Mount) -> String;
    let end: [(&str, End); 3] = [
        ("umount", Mount::umount),
        ("SIGINT", |mount| mount.signal(Signal::INT)),
        ("SIGTERM", |mount| mount.signal(Signal::TERM)),
    ];
    for block_size in BLOCKS {
        let mut mount = Mount::new(block_size, "");
        for (n, (what, end)) in end.into_iter().enumerate() {
            let path = |m: usize| format!("{n}-{m}");
            for m in 0..50 {
                std::fs::write(mount.path(&path(m)), vec![m as u8; 10_000 + m]).expect("writing");
            }
            mount.open("sparse", OFlags::empty()).write_all_at(what.as_bytes(), 1 << 30).expect("writing");
            end(&mut mount);
            mount.mount();
            for m in 0..50 {
                let bytes = std::fs::read(mount.path(&path(m))).expect("reading");
                assert!(bytes == vec![m as u8; 10_000 + m], "{what}: file {m} has {} bytes", bytes.len());
            }
            let mut bytes = vec![0; what.len()];
            mount.open("sparse", OFlags::empty()).read_exact_at(&mut bytes, 1 << 30).expect("reading");
            assert_eq!(bytes, what.as_bytes());
        }
        mount.umount();
    }
}

/// Files that are open do not keep a signal from ending it; umount says that it is busy.
#[test]
fn with_files_open() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    let file = mount.open("f", OFlags::empty());
    file.write_all_at(b"before", 0).expect("writing");
    let busy = rustix::mount::unmount(mount.root(), rustix::mount::UnmountFlags::empty());
    assert_eq!(busy, Err(rustix::io::Errno::BUSY));
    std::fs::write(mount.path("g"), b"it works still").expect("writing");
    mount.signal(Signal::TERM);
    assert!(file.write_all_at(b"after", 0).is_err(), "the file is gone");
    drop(file);
    mount.mount();
    assert_eq!(std::fs::read(mount.path("f")).expect("reading"), b"before");
    assert_eq!(std::fs::read(mount.path("g")).expect("reading"), b"it works still");
    mount.umount();
}

/// Nor do other mount namespaces, which have what was mounted when they were made.
#[test]
fn in_another_mount_namespace() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    std::fs::write(mount.path("f"), b"before").expect("writing");
    // Ends with its input, which is ours.
    let mut other = Command::new("unshare");
    other.args(["--mount", "--propagation", "private", "sh", "-c", "echo there; read end"]);
    let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare(1)");
    let mut there = [0; 6];
    other.stdout.as_mut().expect("piped").read_exact(&mut there).expect("it has the mount");
    let said = mount.signal(Signal::TERM);
    assert!(said.contains("is mounted elsewhere"), "{said}");
    drop(other.stdin.take());
    other.wait().expect("it ends");
    mount.mount();
    assert_eq!(std::fs::read(mount.path("f")).expect("reading"), b"before");
    mount.umount();
}

/// Nobody mounts what is mounted: not we, and of a device not Linux either.
#[test]
fn what_is_mounted_is_not_mounted_again() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    std::fs::write(mount.path("f"), b"x").expect("writing");
    let dir = TempDir::new().expect("a directory");
    let image = mount.image().to_path_buf();
    for options in [&["-f"][..], &[], &["-o", "ro"]] {
        refused(&[&image, dir.path()], options, &[name(&image), "mounted already"]);
    }
    assert_eq!(std::fs::read(mount.path("f")).expect("reading"), b"x", "the first one does not mind");
    mount.umount();
    let mut again = Mount::of(&image, "").expect("now it can be mounted");
    again.umount();
}

/// Each is told by name, with a reason.
#[test]
fn bad_words_are_refused() {
    if !available() {
        return;
    }
    let image = Image::make(&disk(4096), None);
    let image = image.path();
    let dir = TempDir::new().expect("a directory");
    let d = dir.path();
    let junk = dir.path().join("junk");
    std::fs::write(&junk, vec![0x5a; 1 << 20]).expect("writing");
    let short = dir.path().join("short");
    std::fs::write(&short, &std::fs::read(&image).expect("reading")[..100_000]).expect("writing");
    let empty = dir.path().join("empty");
    File::create(&empty).expect("a file");
    let none: PathBuf = dir.path().join("none");
    refused(&[&none, d], &[], &[name(&none), "No such file"]);
    refused(&[d, d], &[], &[name(d)]);
    refused(&[&junk, d], &[], &[name(&junk), "ext4"]);
    refused(&[&short, d], &[], &[name(&short)]);
    refused(&[&empty, d], &[], &[name(&empty)]);
    refused(&[Path::new("/dev/null"), d], &[], &["/dev/null"]);
    refused(&[&image, &none], &[], &[name(&none), "No such file"]);
    refused(&[&image, &junk], &[], &[name(&junk), "not a directory"]);
    refused(&[&image, d], &["-o", "frobnicate"], &["frobnicate"]);
    refused(&[&image, d], &["-o", "rw,data=sideways"], &["data=sideways"]);
    refused(&[&image, d], &["-o", "threads=0"], &["threads=0"]);
    refused(&[&image, d], &["--frobnicate"], &["--frobnicate"]);
    refused(&[&image], &[], &["MOUNTPOINT"]);
    refused(&[], &[], &["IMAGE"]);
    // Features that are not there: see the crate's limits.
    let newer = Image::make(&Mkfs { features: "casefold", ..disk(4096) }, None);
    refused(&[&newer.path(), d], &[], &[name(&newer.path())]);
    assert_clean(&image);
}

/// Read-only: nothing is written, not even to a journal that has nothing in it.
#[test]
fn read_only() {
    if !available() {
        return;
    }
    let mut mount = Mount::new(4096, "");
    std::fs::write(mount.path("f"), b"text").expect("writing");
    mount.umount();
    let before = std::fs::read(mount.image()).expect("reading");
    let mut second = Mount::of(mount.image(), "ro").expect("mounting");
    assert_eq!(std::fs::read(second.path("f")).expect("reading"), b"text");
    let errno = |e: std::io::Error| e.raw_os_error();
    assert_eq!(std::fs::write(second.path("f"), b"x").map_err(errno), Err(Some(libc::EROFS)));
    assert_eq!(std::fs::create_dir(second.path("d")).map_err(errno), Err(Some(libc::EROFS)));
    assert_eq!(std::fs::remove_file(second.path("f")).map_err(errno), Err(Some(libc::EROFS)));
    second.umount();
    assert!(std::fs::read(mount.image()).expect("reading") == before, "not a byte has changed");
}

/// A block device: a loop device over an image.
#[test]
fn a_block_device() {
    if !available() {
        return;
    }
    if !linux::available() {
        left_out("mounting a loop device");
        return;
    }
    let image = Image::make(&disk(4096), None);
    let device = Loop::new(&image.path());
    let mut mount = Mount::of(&device.0, "").expect("mounting");
    let file = mount.open("f", OFlags::DIRECT);
    file.write_all_at(ext4_dio_tests::dio::Pages::new(1 << 20, 7).bytes(), 0).expect("writing");
    drop(file);
    let dir = TempDir::new().expect("a directory");
    refused(&[&device.0, dir.path()], &[], &[name(&device.0), "mounted already"]);
    // The device is ours alone: Linux's mount is refused.
    let theirs = Command::new("mount").args(["-t", "ext4"]).args([&device.0, dir.path()]).output().expect("mount");
    assert!(!theirs.status.success() && mount_line(dir.path()).is_none(), "Linux mounts it beside us");
    mount.umount();
    // Nor do we mount what Linux has mounted.
    let linux = Command::new("mount").args(["-t", "ext4"]).args([&device.0, dir.path()]).output().expect("mount");
    assert!(linux.status.success(), "{}", String::from_utf8_lossy(&linux.stderr));
    let other = TempDir::new().expect("a directory");
    refused(&[&device.0, other.path()], &[], &[name(&device.0), "mounted already"]);
    umount(dir.path());
    drop(device);
    let mut mount = Mount::of(&image.path(), "").expect("mounting the file");
    assert!(std::fs::read(mount.path("f")).expect("reading") == vec![7; 1 << 20]);
    mount.umount();
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path) -> Self {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(image).output().expect("losetup");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8_lossy(&output.stdout).trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.0).status();
        assert!(detached.is_ok_and(|s| s.success()) || std::thread::panicking(), "losetup -d");
    }
}

/// umount, and mount again at once, many times, each time with something that was not written yet.
#[test]
fn mounts_follow_each_other() {
    if !available() {
        return;
    }
    let image = Image::make(&disk(4096), None);
    let dir = TempDir::new().expect("a directory");
    for n in 0..8u8 {
        let output = run(&[&image.path(), dir.path()], &[]);
        assert!(output.status.success(), "mount {n}: {}", String::from_utf8_lossy(&output.stderr));
        for m in 0..n {
            let bytes = std::fs::read(dir.path().join(m.to_string())).expect("reading");
            assert!(bytes == vec![m; 500_000], "file {m} at mount {n}");
        }
        std::fs::write(dir.path().join(n.to_string()), vec![n; 500_000]).expect("writing");
        umount(dir.path());
    }
    wait_for_the_image(&image.path());
}
