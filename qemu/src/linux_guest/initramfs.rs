// SPDX-License-Identifier: GPL-2.0-only
//! What Linux starts with: busybox, fio with its libraries, the modules it needs, the jobs, and a script that does what it
//! is told over the second serial port.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::apt::{Apt, Kernel};
use crate::proc;

/// Longest that unpacking may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Modules that are loaded where they are not built in, in this order, each after those it depends on.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "crc32c_intel", "crc32c_cryptoapi", "ext4", "xfs"];

/// The kernel's files, unpacked.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Version as `uname -r` has it.
    pub version: String,
    /// The image.
    pub kernel: PathBuf,
    /// Modules, in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
    /// The static one.
    pub busybox: PathBuf,
}

/// A `cpio` archive in the form that Linux unpacks at boot (newc).
struct Cpio<W> {
    out: W,
    at: u64,
    inode: u32,
    made: BTreeSet<String>,
}

impl<W: Write> Cpio<W> {
    fn new(out: W) -> Self {
        Cpio { out, at: 0, inode: 0, made: BTreeSet::new() }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(data.len()).ok().with_context(|| format!("{name} is too long"))?;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let mut head = String::from("070701");
        for field in fields {
            head += &format!("{field:08x}");
        }
        head += name;
        head.push('\0');
        self.put(head.as_bytes())?;
        self.put(data)
    }

    /// Writes, up to the next multiple of four.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        let pad = self.at.next_multiple_of(4) - self.at;
        self.out.write_all(&[0; 3][..pad as usize])?;
        self.at += pad;
        Ok(())
    }

    /// Makes the directories over `path`.
    fn parents(&mut self, path: &str) -> Result<()> {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            self.directory(&path[..end])?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        if self.made.insert(path.into()) { self.entry(path, 0o040_755, &[]) } else { Ok(()) }
    }

    fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        self.parents(path)?;
        if self.made.insert(path.into()) { self.entry(path, 0o100_000 | mode, data) } else { Ok(()) }
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, 0o120_777, to.as_bytes())
    }

    fn end(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Files below `dir`, of any depth.
fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files_below(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Name of the module in a file: `kernel/fs/xfs/xfs.ko.xz` has `xfs`. Dashes and underscores are the same.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, rest) = name.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"].contains(&rest).then(|| stem.replace('-', "_"))
}

/// What a module says it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|b| *b == 0).next().unwrap_or(&[]);
    let value = String::from_utf8_lossy(value).into_owned();
    value.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

/// Unpacks what `packages` hold into `dir`, or finds it there from last time.
///
/// # Errors
///
/// A package is broken, or does not hold what it should; no space.
pub fn unpack(apt: &Apt, kernel: &Kernel, dir: &Path) -> Result<Unpacked> {
    let at = dir.join(format!("linux-{}", kernel.version));
    if !at.join("complete").exists() {
        let mut packages = kernel.packages.clone();
        packages.push("busybox-static".into());
        let debs = apt.download(&packages)?;
        let tmp = tempfile::Builder::new().prefix("unpack-").tempdir_in(dir).context("temporary directory")?;
        for deb in &debs {
            let mut cmd = proc::tool("dpkg-deb")?;
            cmd.arg("-x").arg(deb).arg(tmp.path());
            proc::succeed(cmd, LIMIT)?;
        }
        let picked = tempfile::Builder::new().prefix("linux-").tempdir_in(dir).context("temporary directory")?;
        pick(tmp.path(), picked.path()).with_context(|| format!("in {}", kernel.packages.join(" ")))?;
        if at.exists() {
            fs::remove_dir_all(&at).with_context(|| format!("cannot remove {}", at.display()))?;
        }
        fs::rename(picked.keep(), &at).with_context(|| format!("cannot make {}", at.display()))?;
        fs::write(at.join("complete"), &kernel.version)?;
    }
    let list = fs::read_to_string(at.join("modules")).with_context(|| format!("cannot read {}", at.display()))?;
    let modules = list.lines().map(|m| at.join(m)).collect();
    Ok(Unpacked { version: kernel.version.clone(), kernel: at.join("vmlinuz"), modules, busybox: at.join("busybox") })
}

/// Takes from an unpacked tree what is needed of it.
fn pick(tree: &Path, to: &Path) -> Result<()> {
    let mut files = Vec::new();
    files_below(tree, &mut files)?;
    let find = |what: &str, is: &dyn Fn(&str) -> bool| {
        let found = files.iter().find(|f| f.file_name().and_then(|n| n.to_str()).is_some_and(is));
        found.with_context(|| format!("there is no {what}"))
    };
    fs::copy(find("kernel image", &|n| n == "vmlinuz" || n.starts_with("vmlinuz-"))?, to.join("vmlinuz"))?;
    let busybox = to.join("busybox");
    // Other packages bring scripts of that name.
    let program = files.iter().find(|f| f.ends_with("bin/busybox")).context("there is no busybox")?;
    fs::copy(program, &busybox)?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    let mut list = Vec::new();
    for name in MODULES {
        take_module(name, &files, to, &busybox, &mut list, 0)?;
    }
    fs::write(to.join("modules"), list.join("\n"))?;
    Ok(())
}

/// Unpacks a module after those it depends on. One that is not there is built in.
fn take_module(
    name: &str,
    files: &[PathBuf],
    to: &Path,
    busybox: &Path,
    list: &mut Vec<String>,
    depth: u32,
) -> Result<()> {
    let Some(file) = files.iter().find(|f| module_name(f).is_some_and(|n| n == name)) else { return Ok(()) };
    let target = format!("{name}.ko");
    if list.contains(&target) {
        return Ok(());
    }
    ensure!(depth < 16, "the modules depend on each other in a circle: {name}");
    let at = to.join(&target);
    let applet = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => Some("xz"),
        Some("gz") => Some("gzip"),
        Some("ko") => None,
        other => {
            bail!("{} is packed with {}, which busybox does not know", file.display(), other.unwrap_or("something"))
        }
    };
    fs::copy(file, to.join("packed"))?;
    match applet {
        None => fs::rename(to.join("packed"), &at)?,
        Some(applet) => {
            let mut cmd = std::process::Command::new(busybox);
            cmd.args([applet, "-dc"]).arg(to.join("packed")).stdout(File::create(&at)?);
            let status = proc::Proc::spawn(cmd)?.wait(Some(LIMIT))?;
            ensure!(status.success(), "cannot unpack {}: {status}", file.display());
            fs::remove_file(to.join("packed"))?;
        }
    }
    for dependency in dependencies(&fs::read(&at)?) {
        take_module(&dependency, files, to, busybox, list, depth + 1)?;
    }
    list.push(target);
    Ok(())
}

/// Libraries in what `ldd` prints, the loader among them.
fn libraries(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

/// Linux' first program. It sets up what there is, then runs each line that comes over the second serial port as a command,
/// and tells how that ended.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for m in $(cat /modules/order); do insmod /modules/$m || echo "no module $m"; done
# Disks are known by their place on the bus, not by when they were found.
i=0; while [ $i -lt 100 ] && [ $(ls -d /sys/block/vd* 2>/dev/null | wc -l) -lt $(cat /disks) ]; do usleep 50000; i=$((i+1)); done
for b in /sys/block/vd*; do
  p=$(readlink -f $b); p=${p#*/0000:00:0}; ln -s /dev/${b##*/} /dev/disk${p%%.*}
  echo none > $b/queue/scheduler 2>/dev/null
done
ulimit -l unlimited; ulimit -n 65536
exec 3</dev/ttyS1; stty raw -echo <&3
echo "@ready $(uname -r)"
while read -r line <&3; do eval "$line" 3<&-; echo "@done $?"; done
echo o > /proc/sysrq-trigger; sleep 60
"#;

/// A program that does nothing but the instruction at which the counter of instructions tells its counts: `xchg %r11,%r11`,
/// and exit(0).
pub(crate) fn marker_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE: [u8; 12] = [0x4d, 0x87, 0xdb, 0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    const HEADERS: u64 = 64 + 56;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |value: u64, bytes: usize| elf.extend_from_slice(&value.to_le_bytes()[..bytes]);
    // An executable for x86-64, with one program header behind this one.
    put(2, 2);
    put(62, 2);
    put(1, 4);
    put(BASE + HEADERS, 8);
    put(64, 8);
    put(0, 8);
    put(0, 4);
    put(64, 2);
    put(56, 2);
    put(1, 2);
    put(64, 2);
    put(0, 4);
    // All of the file, to be read and executed.
    put(1, 4);
    put(5, 4);
    put(0, 8);
    put(BASE, 8);
    put(BASE, 8);
    put(HEADERS + CODE.len() as u64, 8);
    put(HEADERS + CODE.len() as u64, 8);
    put(4096, 8);
    elf.extend_from_slice(&CODE);
    elf
}

/// Writes the archive. `jobs` are job files by name, `disks` how many disks to wait for.
///
/// # Errors
///
/// fio or one of its libraries cannot be read; no space.
pub fn write(to: &Path, unpacked: &Unpacked, jobs: &[(String, String)], disks: usize) -> Result<()> {
    let fail = || format!("cannot write {}", to.display());
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut cpio = Cpio::new(BufWriter::new(File::create(to).with_context(fail)?));
    for dir in ["bin", "dev", "proc", "sys", "tmp", "mnt", "mnt/ext4", "mnt/xfs", "modules", "jobs"] {
        cpio.directory(dir)?;
    }
    cpio.file("init", 0o755, INIT.as_bytes())?;
    cpio.file("disks", 0o644, disks.to_string().as_bytes())?;
    cpio.file("bin/busybox", 0o755, &read(&unpacked.busybox)?)?;
    cpio.file("bin/mark", 0o755, &marker_program())?;
    cpio.link("bin/sh", "busybox")?;
    let fio = proc::find_program("fio").context("fio is not installed")?;
    let mut ldd = proc::tool("ldd")?;
    ldd.arg(&fio);
    cpio.file("usr/bin/fio", 0o755, &read(&fio)?)?;
    for library in libraries(&proc::succeed(ldd, LIMIT)?) {
        cpio.file(&library.to_string_lossy(), 0o755, &read(&library)?)?;
    }
    let mut order = String::new();
    for module in &unpacked.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        cpio.file(&format!("modules/{name}"), 0o644, &read(module)?)?;
        order += &name;
        order.push('\n');
    }
    cpio.file("modules/order", 0o644, order.as_bytes())?;
    for (name, text) in jobs {
        cpio.file(&format!("jobs/{name}"), 0o644, text.as_bytes())?;
    }
    cpio.end().with_context(fail)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_what_they_depend_on() {
        assert_eq!(module_name(Path::new("a/crc32c-intel.ko.xz")).as_deref(), Some("crc32c_intel"));
        assert_eq!(module_name(Path::new("xfs.ko")).as_deref(), Some("xfs"));
        assert_eq!(module_name(Path::new("xfs.kobject")), None);
        assert_eq!(module_name(Path::new("xfs.c")), None);
        assert_eq!(dependencies(b"\0license=GPL\0depends=libcrc32c,crc-16\0name=x\0"), ["libcrc32c", "crc_16"]);
        assert_eq!(dependencies(b"\0depends=\0x"), Vec::<String>::new());
        assert_eq!(dependencies(b""), Vec::<String>::new());
    }

    #[test]
    fn a_tree_gives_its_kernel_and_its_modules_in_order() {
        let (tree, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |path: &str, data: &[u8]| {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        };
        put("usr/lib/modules/9/kernel/fs/xfs.ko", b"\0depends=libcrc32c\0");
        put("usr/lib/modules/9/kernel/lib/libcrc32c.ko", b"\0depends=\0");
        put("usr/a/hooks/busybox", b"a script");
        put("usr/bin/busybox", b"#!/bin/sh\n");
        assert!(pick(tree.path(), to.path()).unwrap_err().to_string().contains("no kernel image"));
        put("boot/vmlinuz-9", b"kernel");
        pick(tree.path(), to.path()).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("modules")).unwrap(), "libcrc32c.ko\nxfs.ko");
        assert_eq!(fs::read(to.path().join("vmlinuz")).unwrap(), b"kernel");
        assert_eq!(fs::read(to.path().join("busybox")).unwrap(), b"#!/bin/sh\n");
        put("usr/lib/modules/9/kernel/lib/libcrc32c.ko", b"\0depends=xfs\0");
        assert!(pick(tree.path(), to.path()).unwrap_err().to_string().contains("in a circle"));
    }

    #[test]
    fn libraries_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007fd1)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x2)\n\tlibnone.so => not found\n";
        let want = ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(text), want);
    }

    #[test]
    fn archives_are_as_the_kernel_reads_them() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.file("/lib/x/a.so", 0o755, b"12345").unwrap();
        cpio.file("/lib/x/a.so", 0o755, b"twice").unwrap();
        cpio.link("bin/sh", "busybox").unwrap();
        let bytes = cpio.end().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(text.matches("070701").count(), 6, "lib, lib/x, a.so, bin, sh, trailer");
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        assert_eq!(bytes.len() % 4, 0);
        let at = text.find("lib/x/a.so\0").unwrap();
        assert_eq!(&text[at - 110 + 54..at - 110 + 62], "00000005");
        // The data begin at a multiple of four behind the name.
        assert_eq!(&bytes[(at + 11).next_multiple_of(4)..][..5], b"12345");
        assert!(!text.contains("twice"));
    }

    #[test]
    fn the_marker_is_a_program() {
        let elf = marker_program();
        let file = object::File::parse(&*elf).unwrap();
        let segment = object::Object::segments(&file).next().unwrap();
        assert_eq!(object::ObjectSegment::address(&segment), 0x40_0000);
        assert_eq!(object::Object::entry(&file), 0x40_0000 + 120);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        fs::write(&path, elf).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let out = proc::capture(std::process::Command::new(path), LIMIT).unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}
