// SPDX-License-Identifier: GPL-2.0-only
//! Journals that Linux left replay here, and ours in Linux and with `e2fsck`.

use ext4_dio_tests::crash::{FILES, Ledger, same_tree, tree, workload};
use ext4_dio_tests::differential::*;
use ext4_dio_tests::dio::{IN_FLIGHT, auto};
use ext4_dio_tests::generator::{Generator, Theme};
use ext4_dio_tests::images::{Image, Mkfs};
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::oplang::{OFlags, Op, Vfs};
use ext4_dio_tests::ours::Ours;
use kernel_shim::fs::SbFlags;

/// File systems with a journal: with checksums and 64-bit numbers, without either, with a file of orphans.
fn journals() -> [Mkfs; 5] {
    let base = Mkfs { size_kib: 8 << 10, inodes: 128, ..Mkfs::default() };
    let journal: &[&str] = &["-J", "size=2"];
    [
        Mkfs { block_size: 1024, args: journal, ..base.clone() },
        Mkfs { block_size: 4096, size_kib: 12 << 10, args: &["-J", "size=4"], ..base.clone() },
        Mkfs { block_size: 2048, features: "^64bit,^metadata_csum", args: journal, ..base.clone() },
        Mkfs { block_size: 1024, features: "orphan_file", args: journal, ..base.clone() },
        Mkfs { fs_type: "ext3", block_size: 1024, inode_size: 128, args: journal, ..base },
    ]
}

/// Whether the super block says that the journal is to be replayed.
fn needs_recovery(image: &[u8]) -> bool {
    const INCOMPAT_RECOVER: u8 = 4;
    image[1024 + 0x60] & INCOMPAT_RECOVER != 0
}

/// What Linux makes of `image`.
fn linux_tree(image: &[u8]) -> Result<std::collections::BTreeMap<String, String>, String> {
    let image = Image::from_bytes(image);
    let mut linux = Linux::mount(&image.path(), "noatime")?;
    let lines = tree(&mut linux)?;
    linux.unmount().map_err(|e| format!("unmounting in Linux: errno {e}"))?;
    check_clean(&image.path())?;
    Ok(lines)
}

/// What we make of it; and what we leave is clean.
fn our_tree(image: &[u8]) -> Result<std::collections::BTreeMap<String, String>, String> {
    let mut ours = Ours::mount(image, "noatime", auto()).map_err(|e| format!("mounting: errno {e}"))?;
    let lines = tree(&mut ours)?;
    let bytes = ours.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    check_clean(&Image::from_bytes(&bytes).path())?;
    Ok(lines)
}

/// A file system as Linux leaves it when the power fails: in the middle, with and without its last commit.
fn left_by_linux(mkfs: &Mkfs, seed: u64, shutdown: bool) -> Result<Vec<u8>, String> {
    let image = Image::make_over(mkfs, POISON);
    let mut linux = Linux::mount(&image.path(), "noatime")?;
    let extents = mkfs.fs_type == "ext4";
    let theme = if seed.is_multiple_of(2) { Theme::Names } else { Theme::Mixed };
    let mut ops = Generator::new(seed, theme, mkfs.block_size, extents).sequence(160);
    ops.retain(|op| !matches!(op, Op::Remount {}));
    // An open file without a name is an orphan.
    let flags = OFlags::RDWR | OFlags::CREAT;
    ops.insert(100, Op::Open { slot: 5, path: "orphan".to_string(), flags, mode: 0o600 });
    ops.insert(101, Op::Fallocate { slot: 5, how: ext4_dio_tests::oplang::Falloc::Alloc, pos: 0, len: 20000 });
    ops.insert(102, Op::Unlink { path: "orphan".to_string() });
    ops.truncate(103);
    ops.push(Op::Sync {});
    ops.extend(Generator::new(seed + 1, theme, mkfs.block_size, extents).sequence(40));
    ops.retain(|op| !matches!(op, Op::Remount {}));
    for op in &ops {
        let _ = linux.apply(op);
    }
    if shutdown {
        linux.shutdown().map_err(|e| format!("shutdown: errno {e}"))?;
    }
    let bytes = image.bytes();
    if !shutdown {
        linux.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    }
    Ok(bytes)
}

#[test]
fn journals_that_linux_left() {
    if !linux::available() {
        return;
    }
    for mkfs in journals() {
        let what = format!("left by Linux, {}, {} {}", mkfs.block_size, mkfs.fs_type, mkfs.features);
        seeds(&what, 1, 3, |seed| {
            let mkfs = mkfs.clone();
            let ret = guarded(move || {
                let dirty = left_by_linux(&mkfs, seed, seed % 4 < 2)?;
                if !needs_recovery(&dirty) {
                    return Err("the journal is not dirty".to_string());
                }
                same_tree(&our_tree(&dirty)?, &linux_tree(&dirty)?)
            });
            ret.unwrap_or_else(|e| panic!("seed {seed}, {what}: {e}"));
        });
    }
}

/// Beside replaying, `e2fsck` may finish with orphans and count what is free, and has nothing to repair.
fn only_replayed(said: &str) -> Result<(), String> {
    const HARMLESS: [&str; 3] = [
        "Free blocks count wrong (",
        "Free inodes count wrong (",
        "Feature orphan_present is set but orphan file is clean",
    ];
    let mut before = "";
    for line in said.lines().filter(|line| !line.is_empty()) {
        let harmless = HARMLESS.iter().any(|h| before.starts_with(h));
        if line.contains("? yes") && !(harmless && line.find('?').is_some_and(|at| at < 6)) {
            return Err(format!("e2fsck had to repair: {before} {line}\n{said}"));
        }
        before = line;
    }
    Ok(())
}

/// Our disk at a power failure: replayed by `e2fsck`, by Linux and by us, it is one tree, and promises are kept.
fn check_crash(dirty: &[u8], ledger: &Ledger, with_linux: bool) -> Result<(), String> {
    let fixed = Image::from_bytes(dirty);
    only_replayed(&fixed.repair()?)?;
    check_clean(&fixed.path())?;
    let mut ours = Ours::mount(dirty, "noatime", auto()).map_err(|e| format!("mounting: errno {e}"))?;
    ledger.check(&mut ours, false).map_err(|e| format!("replayed by us: {e}"))?;
    let bytes = ours.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    check_clean(&Image::from_bytes(&bytes).path())?;
    if with_linux && linux::available() {
        let mut linux = Linux::mount(&fixed.path(), "noatime")?;
        ledger.check(&mut linux, false).map_err(|e| format!("replayed by e2fsck: {e}"))?;
        same_tree(&our_tree(dirty)?, &linux_tree(dirty)?)?;
    }
    Ok(())
}

/// The ledger asks for no more than Linux gives.
#[test]
fn linux_keeps_promises() {
    if !linux::available() {
        return;
    }
    for mkfs in journals() {
        let ret = guarded(move || {
            let image = Image::make_over(&mkfs, POISON);
            let mut linux = Linux::mount(&image.path(), "noatime")?;
            let mut ledger = Ledger::default();
            for (n, op) in workload(3, mkfs.block_size, mkfs.fs_type == "ext4", 150).iter().enumerate() {
                let got = linux.apply(op);
                ledger.note(op, &got);
                if n % 25 == 24 {
                    let dirty = Image::from_bytes(&image.bytes());
                    only_replayed(&dirty.repair()?)?;
                    let mut again = Linux::mount(&dirty.path(), "noatime")?;
                    ledger.check(&mut again, false).map_err(|e| format!("after operation {n} ({op}): {e}"))?;
                }
            }
            Ok(())
        });
        ret.unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn journals_that_we_left() {
    for mkfs in journals() {
        let what = format!("left by us, {}, {} {}", mkfs.block_size, mkfs.fs_type, mkfs.features);
        seeds(&what, 1, 1, |seed| {
            let mkfs = mkfs.clone();
            let ret = guarded(move || left_by_us(&mkfs, seed));
            ret.unwrap_or_else(|e| panic!("seed {seed}, {what}: {e}"));
        });
    }
}

fn left_by_us(mkfs: &Mkfs, seed: u64) -> Result<(), String> {
    let image = Image::make_over(mkfs, POISON).bytes();
    let options = format!("{IN_FLIGHT},noatime");
    let mut ours = Ours::mount(&image, &options, auto()).map_err(|e| format!("mounting: errno {e}"))?;
    let mut ledger = Ledger::default();
    let ops = workload(seed, mkfs.block_size, mkfs.fs_type == "ext4", ops_or(120));
    let mut promised = 0;
    for (n, op) in ops.iter().enumerate() {
        let got = ours.apply(op);
        ledger.note(op, &got);
        if n > usize::from(FILES) && n % 20 == 0 {
            promised += ledger.durable();
            let disk = &ours.mount.as_ref().ok_or("no mount")?.disk;
            let dirty = [disk.durable_image(), disk.crash(seed + n as u64)];
            for (which, dirty) in dirty.iter().enumerate() {
                let wrong = |e| format!("crash {which} after operation {n} ({op}): {e}");
                check_crash(dirty, &ledger, n % 40 == 0).map_err(wrong)?;
            }
        }
    }
    if promised == 0 {
        return Err("nothing was ever promised".to_string());
    }
    let rdonly = ours.mount.as_ref().is_some_and(|m| m.sb.s_flags().contains(SbFlags::RDONLY));
    if rdonly {
        return Err("it has become read-only".to_string());
    }
    ours.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    Ok(())
}
