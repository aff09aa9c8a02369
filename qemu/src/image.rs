// SPDX-License-Identifier: GPL-2.0-only
//! Disk images: made for a run with plain `mke2fs -t ext4`, or brought by the user.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ext4_dio_protocol::{STAMP_LEN, Stamp};
use rustix::fs::{FlockOperation, OFlags};

use crate::plan::FileSpec;
use crate::proc;

/// Smallest image: at this size mke2fs chooses 4 KiB blocks.
pub const IMAGE_BYTES: u64 = 1 << 30;
/// Longest that mke2fs or debugfs may take.
pub(crate) const TOOL_LIMIT: Duration = Duration::from_secs(300);

/// Makes a directory for a run's disks: in memory where there is room for `need` bytes, else below `fallback`. It is
/// removed with everything in it when dropped.
///
/// # Errors
///
/// Neither place takes it.
pub fn scratch_dir(need: u64, fallback: &Path) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("ext4-dio-");
    // Half as much again: others use it too, and what does not fit there takes QEMU down with SIGBUS or ENOSPC.
    let room =
        |dir: &Path| rustix::fs::statvfs(dir).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >= need / 2 * 3);
    let shm = Path::new("/dev/shm");
    if room(shm)
        && let Ok(dir) = builder.tempdir_in(shm)
    {
        return Ok(dir);
    }
    fs::create_dir_all(fallback).with_context(|| format!("cannot make {}", fallback.display()))?;
    ensure!(room(fallback), "no {} MiB free in /dev/shm or {}", (need / 2 * 3) >> 20, fallback.display());
    builder.tempdir_in(fallback).with_context(|| format!("cannot make a directory in {}", fallback.display()))
}

/// Writes stamps of generation 0 over the first `bytes` of a new file, one per `unit`, each with the offset it is at.
///
/// # Errors
///
/// The file cannot be written, or `unit` is too small for a stamp.
pub fn write_stamped(path: &Path, bytes: u64, unit: u32) -> Result<()> {
    ensure!(unit as usize >= STAMP_LEN, "{unit} bytes hold no stamp");
    let fail = || format!("cannot write {}", path.display());
    let mut out = BufWriter::with_capacity(1 << 20, File::create_new(path).with_context(fail)?);
    let mut block = vec![0u8; unit as usize];
    Stamp::fill_body(&mut block, 0);
    // The body is the same in all: only the head tells them apart.
    let body_crc = Stamp::body_crc(&block);
    let mut offset = 0;
    while offset < bytes {
        let stamp = Stamp { offset, generation: 0, writer: 0, body_crc };
        block[..STAMP_LEN].copy_from_slice(&stamp.encode());
        let len = (bytes - offset).min(u64::from(unit)) as usize;
        out.write_all(&block[..len]).with_context(fail)?;
        offset += u64::from(unit);
        if offset % (16 << 20) < u64::from(unit) {
            proc::check_interrupt()?;
        }
    }
    out.flush().with_context(fail)
}

/// Makes a sparse disk of `bytes` whose first `stamped` bytes hold stamps.
///
/// # Errors
///
/// As [`write_stamped`].
pub fn make_raw(path: &Path, bytes: u64, stamped: u64, unit: u32) -> Result<()> {
    write_stamped(path, stamped, unit)?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(bytes.max(stamped)).with_context(|| format!("cannot write {}", path.display()))
}

/// How large an image for `files` is, bytes.
pub fn image_bytes(files: &[FileSpec]) -> u64 {
    // What is appended to grows with each step.
    let append = |f: &FileSpec| f.append.saturating_mul(16);
    let data = files.iter().fold(0u64, |sum, f| sum.saturating_add(f.reach()).saturating_add(append(f)));
    // Inode tables, bitmaps and a journal of up to 1 GiB take less than an eighth and 256 MiB.
    let need = data.saturating_add(data / 8).saturating_add(256 << 20);
    need.max(IMAGE_BYTES).next_multiple_of(1 << 20)
}

/// Makes an ext4 image of `files`, each fully written and stamped, with mke2fs's defaults.
///
/// # Errors
///
/// No room, or mke2fs fails.
pub fn make_ext4(path: &Path, bytes: u64, files: &[FileSpec]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    // Beside the image: it is as large as the image's data.
    let tree = tempfile::Builder::new().prefix("tree-").tempdir_in(parent).context("temporary directory")?;
    for file in files.iter().filter(|f| f.by_host()) {
        let at = tree.path().join(file.path.trim_start_matches('/'));
        if let Some(dir) = at.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        write_stamped(&at, file.bytes, file.unit)?;
    }
    let mut cmd = proc::tool("mke2fs")?;
    cmd.args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree.path()).arg(path).arg(format!("{}k", bytes >> 10));
    proc::succeed(cmd, TOOL_LIMIT)?;
    Ok(())
}

/// Whether a file can be opened past the page cache, as QEMU's `aio=native` needs it.
pub fn takes_direct_io(path: &Path) -> bool {
    rustix::fs::open(path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, rustix::fs::Mode::empty()).is_ok()
}

/// The user's own image, locked against other users of the lock for as long as this lives.
#[derive(Debug)]
pub struct UserImage {
    /// Canonical path.
    pub path: PathBuf,
    /// Length, bytes.
    pub bytes: u64,
    _lock: File,
}

impl UserImage {
    /// Opens an image that the guest will write to.
    ///
    /// # Errors
    ///
    /// It is not there, not a regular file, not ext4, mounted, in use by a loop device, or locked.
    pub fn open(path: &Path) -> Result<UserImage> {
        let shown = path.display();
        let meta = fs::metadata(path).with_context(|| format!("cannot open the image {shown}"))?;
        if meta.file_type().is_block_device() {
            bail!("{shown} is a block device; --image takes a file, so that no disk of this machine is at risk");
        }
        ensure!(meta.is_file(), "{shown} is not a regular file");
        let file =
            OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("cannot open {shown}"))?;
        check_ext4(&file, path)?;
        let path = path.canonicalize().with_context(|| format!("cannot resolve {shown}"))?;
        if let Some(user) = user_of(&path, &meta)? {
            bail!("{shown} is in use ({user}): two users of one image destroy it");
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!("{shown} is locked by another program (flock)"),
            Err(e) => return Err(e).with_context(|| format!("cannot lock {shown}")),
        }
        Ok(UserImage { path, bytes: meta.len(), _lock: file })
    }

    /// Finds a file of the image and its length.
    ///
    /// # Errors
    ///
    /// It is no regular file. None if it is not there.
    pub fn stat(&self, file: &str) -> Result<Option<u64>> {
        let mut cmd = proc::tool("debugfs")?;
        cmd.arg("-R").arg(format!("stat \"{file}\"")).arg(&self.path);
        let text = proc::succeed(cmd, TOOL_LIMIT)?;
        let kind = field(&text, "Type:");
        let size = field(&text, "Size:").and_then(|s| s.parse().ok());
        match (kind, size) {
            (Some("regular"), Some(size)) => Ok(Some(size)),
            (Some(kind), _) => bail!("{file} in {} is no regular file ({kind})", self.path.display()),
            _ => Ok(None),
        }
    }
}

/// The word after `name` in debugfs's output.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut words = text.split_whitespace();
    words.find(|w| *w == name)?;
    words.next()
}

fn check_ext4(file: &File, path: &Path) -> Result<()> {
    let mut sb = [0u8; 1024];
    let shown = path.display();
    if file.read_exact_at(&mut sb, 1024).is_err() {
        bail!("{shown} is not an ext4 image: it is too short for a superblock");
    }
    if sb[0x38..0x3a] != [0x53, 0xef] {
        bail!(
            "{shown} is not an ext4 image: there is no superblock in it (a partitioned disk? give the partition's file)"
        );
    }
    let incompat = u32::from_le_bytes([sb[0x60], sb[0x61], sb[0x62], sb[0x63]]);
    const EXTENTS: u32 = 0x40;
    ensure!(incompat & EXTENTS != 0, "{shown} is ext2 or ext3, not ext4: it has no extents feature");
    Ok(())
}

/// Who else uses the file as a disk: a mount or a loop device.
fn user_of(path: &Path, meta: &fs::Metadata) -> Result<Option<String>> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (source, point) = (unescape(words.next().unwrap_or("")), unescape(words.next().unwrap_or("")));
        if Path::new(&source) == path {
            return Ok(Some(format!("mounted at {point}")));
        }
    }
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        let backing = Path::new(backing.trim_end_matches('\n'));
        let same = !backing.as_os_str().is_empty()
            && (backing == path || fs::metadata(backing).is_ok_and(|b| (b.dev(), b.ino()) == (meta.dev(), meta.ino())));
        if same {
            return Ok(Some(format!("behind /dev/{}", entry.file_name().to_string_lossy())));
        }
    }
    // Knows hard links and other namespaces' names as well, where it may look.
    if let Ok(mut cmd) = proc::tool("losetup") {
        cmd.arg("-j").arg(path);
        let out = proc::capture(cmd, TOOL_LIMIT)?;
        if out.status.success() && !out.text.trim().is_empty() {
            return Ok(Some(format!("loop device {}", out.text.trim())));
        }
    }
    Ok(None)
}

/// Undoes the octal escapes of /proc/mounts.
fn unescape(s: &str) -> String {
    let mut out = Vec::new();
    let bytes = s.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        let code = octal.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        out.push(code.unwrap_or(bytes[i]));
        i += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Copies a file out of an image, without mounting it.
///
/// # Errors
///
/// debugfs fails or finds no such file.
pub fn dump(image: &Path, file: &str, to: &Path) -> Result<File> {
    let target = to.display().to_string();
    ensure!(!target.contains('"'), "debugfs cannot write to {target}");
    let mut cmd = proc::tool("debugfs")?;
    cmd.arg("-R").arg(format!("dump \"{file}\" \"{target}\"")).arg(image);
    let said = proc::succeed(cmd, TOOL_LIMIT)?;
    let mut out = File::open(to).with_context(|| format!("debugfs did not copy {file}: {}", said.trim()))?;
    out.seek(SeekFrom::Start(0))?;
    Ok(out)
}

/// Reads up to a whole buffer; less only at the end.
pub(crate) fn read_full(r: &mut impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match r.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str, bytes: u64) -> FileSpec {
        FileSpec::written(path, bytes, 4096)
    }

    #[test]
    fn stamped_files_check_out_block_by_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_stamped(&path, 3 * 1536 + 100, 1536).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * 1536 + 100);
        for i in 0..3 {
            let stamp = Stamp::check(&bytes[i * 1536..][..1536], i as u64 * 1536).unwrap();
            assert_eq!((stamp.generation, stamp.writer), (0, 0));
        }
        assert!(write_stamped(&path, 4096, 4096).is_err(), "an existing file is not overwritten");
        make_raw(&dir.path().join("raw"), 1 << 20, 8192, 4096).unwrap();
        let meta = fs::metadata(dir.path().join("raw")).unwrap();
        assert_eq!(meta.len(), 1 << 20);
        assert!(meta.blocks() * 512 < 1 << 19, "sparse behind what is stamped");
    }

    #[test]
    fn an_image_has_mke2fs_defaults_and_gives_its_files_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("img");
        let files = [spec("/data", 1 << 20), spec("/sub dir/b", 8192)];
        assert_eq!(image_bytes(&files), IMAGE_BYTES);
        make_ext4(&path, 64 << 20, &files).unwrap();
        let image = UserImage::open(&path).unwrap();
        assert_eq!(image.stat("/data").unwrap(), Some(1 << 20));
        assert_eq!(image.stat("/sub dir/b").unwrap(), Some(8192));
        assert_eq!(image.stat("/none").unwrap(), None);
        assert!(image.stat("/sub dir").unwrap_err().to_string().contains("no regular file (directory)"));
        let mut copy = dump(&path, "/sub dir/b", &dir.path().join("copy")).unwrap();
        let mut unit = [0; 4096];
        assert_eq!(read_full(&mut copy, &mut unit).unwrap(), 4096);
        assert!(Stamp::check(&unit, 0).is_ok());
        assert!(dump(&path, "/none", &dir.path().join("copy2")).is_err());
        // While one run has it, no other does.
        assert!(UserImage::open(&path).unwrap_err().to_string().contains("locked"));
        drop(image);
        UserImage::open(&path).unwrap();
    }

    #[test]
    fn what_is_no_ext4_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let error = |p: &Path| format!("{:#}", UserImage::open(p).unwrap_err());
        assert!(error(&path).contains("cannot open the image"));
        assert!(error(dir.path()).contains("not a regular file"));
        fs::write(&path, [0; 100]).unwrap();
        assert!(error(&path).contains("too short"));
        fs::write(&path, [0; 4096]).unwrap();
        assert!(error(&path).contains("no superblock"));
        let mut cmd = proc::tool("mke2fs").unwrap();
        cmd.args(["-q", "-F", "-t", "ext2"]).arg(&path).arg("1m");
        proc::succeed(cmd, TOOL_LIMIT).unwrap();
        assert!(error(&path).contains("ext2 or ext3"));
    }

    #[test]
    fn mount_table_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\04"), r"/a\04");
    }
}
