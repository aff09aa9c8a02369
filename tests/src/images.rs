// SPDX-License-Identifier: GPL-2.0-only
//! File systems for the tests, made by the programs that everybody makes them with: `mke2fs`,
//! `debugfs` and `e2fsck` of e2fsprogs. The same specification gives the same bytes, and no root is needed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use ext4_dio_runner::deps;
use kernel_shim::block::ramdisk::RamDisk;
use kernel_shim::block::{Bdev, ReqOpf, bdev_rw};
use tempfile::TempDir;

/// When the images say they were made: seconds since 1970.
pub const FAKE_TIME: u64 = 1_600_000_000;

/// What `mke2fs` is asked for.
#[derive(Clone, Debug)]
pub struct Mkfs {
    /// `-t`: "ext4", "ext3", "ext2".
    pub fs_type: &'static str,
    /// `-b`: bytes in a block.
    pub block_size: u32,
    /// `-O`, without those of the type.
    pub features: &'static str,
    /// `-I`: bytes in an inode.
    pub inode_size: u32,
    /// Size of the image in KiB.
    pub size_kib: u64,
    /// `-N`: inodes.
    pub inodes: u32,
    /// `-E`, besides the hash seed.
    pub extended: &'static str,
    /// Further arguments.
    pub args: &'static [&'static str],
}

impl Default for Mkfs {
    fn default() -> Self {
        Self {
            fs_type: "ext4",
            block_size: 4096,
            features: "",
            inode_size: 256,
            size_kib: 16 << 10,
            inodes: 1024,
            extended: "",
            args: &[],
        }
    }
}

/// An image in a file of its own, which goes away with it.
pub struct Image {
    dir: TempDir,
}

/// A directory in memory if the machine has a place for that: images are synced by those who make them.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory for images and files")
}

/// A program of e2fsprogs, found where root would find it, too, and with a clock that stands still.
///
/// Panics if it is not installed and cannot be.
pub fn e2fsprogs(program: &str) -> Command {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        deps::ensure(&deps::E2FSPROGS, &mut deps::Host).unwrap_or_else(|error| panic!("{error:#}"));
    });
    // By its full name, and with the environment's PATH left alone: else std forks, which copies the page tables of this process with
    // all its disks in memory, thousands of times in a run of all tests.
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    let found = dirs.map(|dir| Path::new(dir).join(program)).find(|file| file.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| program.into()));
    command.env("E2FSPROGS_FAKE_TIME", FAKE_TIME.to_string());
    command.env("MKE2FS_CONFIG", "/dev/null");
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error} (is e2fsprogs installed?)"),
    }
}

impl Image {
    /// Makes a file system with the files of directory `source`, if any.
    pub fn make(spec: &Mkfs, source: Option<&Path>) -> Self {
        Self { dir: scratch() }.mke2fs(spec, source)
    }

    /// Makes a file system over `fill`, which is what blocks hold that nobody has written.
    pub fn make_over(spec: &Mkfs, fill: u8) -> Self {
        Self::make_over_bytes(spec, &vec![fill; (spec.size_kib << 10) as usize])
    }

    /// The same over `bytes`, as many as the image is to have.
    pub fn make_over_bytes(spec: &Mkfs, bytes: &[u8]) -> Self {
        let image = Self { dir: scratch() };
        fs::write(image.path(), bytes).expect("room for the image");
        image.mke2fs(spec, None)
    }

    fn mke2fs(self, spec: &Mkfs, source: Option<&Path>) -> Self {
        let image = self;
        let mut command = e2fsprogs("mke2fs");
        // mke2fs's own configuration is left out so that what a type means does not depend on the machine.
        let features = match spec.fs_type {
            "ext4" => {
                "has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,large_file,ext_attr,\
                       resize_inode,dir_index,filetype,sparse_super"
            }
            "ext3" => "has_journal,ext_attr,resize_inode,dir_index,filetype,sparse_super,large_file",
            _ => "ext_attr,resize_inode,dir_index,filetype,sparse_super,large_file",
        };
        let seed = "hash_seed=11111111-2222-3333-4444-555555555555,lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let join = |a: &str, b: &str| if b.is_empty() { a.to_string() } else { format!("{a},{b}") };
        command.args(["-q", "-F", "-t", spec.fs_type]);
        command.args(["-U", "01234567-89ab-4def-8123-456789abcdef"]);
        command.args(["-b", &spec.block_size.to_string(), "-I", &spec.inode_size.to_string()]);
        command.args(["-N", &spec.inodes.to_string()]);
        command.args(["-O", &join(&format!("none,{features}"), spec.features)]);
        command.args(["-E", &join(seed, spec.extended)]);
        command.args(spec.args);
        if let Some(source) = source {
            command.arg("-d").arg(source);
        }
        command.arg(image.path()).arg(format!("{}k", spec.size_kib));
        let output = run(&mut command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        image
    }

    /// An image with these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let image = Self { dir: scratch() };
        fs::write(image.path(), bytes).expect("room for the image");
        image
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fs.img")
    }

    /// All its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).expect("the image is readable")
    }

    /// Runs one command of `debugfs`, which may write, and gives what it prints.
    pub fn debugfs(&self, request: &str) -> String {
        self.debugfs_script(&[request.to_string()])
    }

    /// Runs many commands of `debugfs`.
    pub fn debugfs_script(&self, requests: &[String]) -> String {
        let script = self.dir.path().join("script");
        let mut file = fs::File::create(&script).expect("room for a script");
        for request in requests {
            writeln!(file, "{request}").expect("room for a script");
        }
        drop(file);
        let output = run(e2fsprogs("debugfs").arg("-w").arg("-f").arg(&script).arg(self.path()));
        assert!(output.status.success(), "debugfs: {}", String::from_utf8_lossy(&output.stderr));
        // Commands are echoed after the prompt.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| !line.starts_with("debugfs: ")).map(|line| format!("{line}\n")).collect()
    }

    /// `e2fsck -fyD`: gives large directories hash trees.
    pub fn index_directories(&self) {
        let output = run(e2fsprogs("e2fsck").args(["-fyD"]).arg(self.path()));
        // 1: changes were made.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// `e2fsck -fy`, for what a crash has left. `Err` if there is something that it cannot repair.
    pub fn repair(&self) -> Result<String, String> {
        let output = run(e2fsprogs("e2fsck").env_remove("E2FSPROGS_FAKE_TIME").args(["-fy"]).arg(self.path()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if matches!(output.status.code(), Some(0 | 1)) { Ok(text) } else { Err(format!("e2fsck -fy: {text}")) }
    }

    /// Panics unless `e2fsck -fn` finds nothing to complain of.
    pub fn assert_clean(&self) {
        assert_clean(&self.path());
    }

    /// Runs `e2fsck -fy`, which may have something to repair, and panics unless there is nothing left afterwards. What it said.
    pub fn e2fsck_repairs(&self) -> String {
        let output = run(e2fsprogs("e2fsck").env_remove("E2FSPROGS_FAKE_TIME").args(["-fy"]).arg(self.path()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // 1: changes were made.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {text}", output.status);
        self.assert_clean();
        text
    }

    /// A RAM disk with the image's bytes.
    pub fn bdev(&self) -> Bdev {
        ram_disk(&self.bytes())
    }
}

/// Panics unless `e2fsck -fn` finds nothing to complain of in the file system at `path`.
pub fn assert_clean(path: &Path) {
    let output = run(e2fsprogs("e2fsck").env_remove("E2FSPROGS_FAKE_TIME").args(["-fn"]).arg(path));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "e2fsck -fn {}: {}\n{text}", path.display(), output.status);
}

/// A RAM disk with these bytes.
pub fn ram_disk(bytes: &[u8]) -> Bdev {
    let mut disk = RamDisk::fast(bytes.len() as u64).expect("memory for a disk");
    disk.load(bytes);
    Bdev::new(disk).expect("good limits")
}

/// Writes `bytes` at byte `offset` of a disk, past whatever is mounted on it; returns what was there.
pub fn poke(bdev: &Bdev, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let sector = offset / 512;
    let skip = (offset % 512) as usize;
    let mut buf = vec![0; (skip + bytes.len()).next_multiple_of(512)];
    bdev_rw(bdev, ReqOpf::REQ_OP_READ, sector, &mut buf).expect("within the disk");
    let before = buf[skip..skip + bytes.len()].to_vec();
    buf[skip..skip + bytes.len()].copy_from_slice(bytes);
    bdev_rw(bdev, ReqOpf::REQ_OP_WRITE, sector, &mut buf).expect("within the disk");
    before
}

/// Reads `len` bytes at byte `offset` of a disk.
pub fn peek(bdev: &Bdev, offset: u64, len: usize) -> Vec<u8> {
    let skip = (offset % 512) as usize;
    let mut buf = vec![0; (skip + len).next_multiple_of(512)];
    bdev_rw(bdev, ReqOpf::REQ_OP_READ, offset / 512, &mut buf).expect("within the disk");
    buf[skip..skip + len].to_vec()
}

/// Writes a directory of files to make an image from.
pub struct Source {
    dir: TempDir,
}

impl Default for Source {
    fn default() -> Self {
        Self::new()
    }
}

impl Source {
    /// An empty directory.
    pub fn new() -> Self {
        Self { dir: scratch() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn place(&self, path: &str) -> PathBuf {
        let place = self.dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().expect("inside the directory")).expect("room for a directory");
        place
    }

    /// A file with these bytes; directories are made as needed.
    pub fn file(&self, path: &str, bytes: &[u8]) -> &Self {
        fs::write(self.place(path), bytes).expect("room for a file");
        self
    }

    /// A directory.
    pub fn directory(&self, path: &str) -> &Self {
        fs::create_dir_all(self.place(path)).expect("room for a directory");
        self
    }

    /// A symbolic link at `path` to `target`.
    pub fn symlink(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.place(path)).expect("room for a link");
        self
    }

    /// A file of `extents` extents of one block of `block_size` bytes, with holes of a block between
    /// them. `mke2fs` leaves blocks of zeros out.
    pub fn fragmented(&self, path: &str, block_size: u32, extents: u32) -> &Self {
        let write = || -> io::Result<()> {
            let mut file = io::BufWriter::new(fs::File::create(self.place(path))?);
            for extent in 0..extents {
                file.write_all(&stamped(2 * extent, block_size))?;
                file.write_all(&vec![0; block_size as usize])?;
            }
            file.flush()
        };
        write().expect("room for a file");
        self
    }
}

/// A block whose bytes tell its number in the file; never zeros.
pub fn stamped(block: u32, block_size: u32) -> Vec<u8> {
    (0..block_size / 4).flat_map(|_| (block ^ 0x5aa5_0ff0).to_le_bytes()).collect()
}

/// A file of `blocks` [stamped] blocks.
pub fn stamped_blocks(blocks: u32, block_size: u32) -> Vec<u8> {
    (0..blocks).flat_map(|block| stamped(block, block_size)).collect()
}
