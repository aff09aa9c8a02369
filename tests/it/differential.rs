// SPDX-License-Identifier: GPL-2.0-only
//! Seeded random operations on our file system, on Linux's and on a model.

mod exchange;
mod faults;

use ext4_dio_tests::differential::*;
use ext4_dio_tests::dio::{EXCLUSIVE, I_DATA_SEM, IN_FLIGHT, auto};
use ext4_dio_tests::generator::Theme;
use ext4_dio_tests::images::Image;
use ext4_dio_tests::images::Mkfs;
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::model::Model;
use ext4_dio_tests::oplang::Op;
use ext4_dio_tests::ours::Ours;
use std::sync::atomic::Ordering;

/// One of each kind of file system, with blocks of `block` bytes.
fn kinds(block: u32) -> [Mkfs; 3] {
    let size_kib = if block == 4096 { 32 << 10 } else { 16 << 10 };
    let base = Mkfs { block_size: block, size_kib, inodes: 256, ..Mkfs::default() };
    let journal: &[&str] = &["-J", "size=4"];
    [
        Mkfs { args: if block == 4096 { &[] } else { journal }, ..base.clone() },
        Mkfs { features: "^has_journal", ..base.clone() },
        Mkfs { fs_type: "ext3", inode_size: if block == 1024 { 128 } else { 256 }, ..base },
    ]
}

fn themes(seed: u64) -> Theme {
    [Theme::Data, Theme::Mixed, Theme::Names, Theme::Data][seed as usize % 4]
}

/// Disks that run full: the journal needs the most of it.
fn small() -> [Mkfs; 4] {
    let base = Mkfs { inodes: 64, ..Mkfs::default() };
    [
        Mkfs { block_size: 1024, size_kib: 1 << 10, features: "^has_journal", ..base.clone() },
        Mkfs { block_size: 1024, size_kib: 3 << 10, args: &["-J", "size=1"], ..base.clone() },
        Mkfs { block_size: 4096, size_kib: 3 << 10, features: "^has_journal", ..base.clone() },
        Mkfs { fs_type: "ext3", block_size: 1024, size_kib: 3 << 10, args: &["-J", "size=1"], ..base },
    ]
}

/// Linux does what the model says: else the model is wrong, and so is what it says of us.
fn linux_case(case: &Case, ops: &[Op]) -> Result<(), String> {
    let image = Image::from_bytes(&case.image());
    // Seeking in files without extents does not see what Linux has yet to allocate.
    let options = if case.tight || !case.extents() { "noatime,nodelalloc" } else { "noatime" };
    let mut linux = Linux::mount(&image.path(), options)?;
    let mut model = Model::new(case.expect(false));
    run(&mut linux, &mut model, ops)?;
    model.compare(&mut linux).map_err(|e| format!("in the end: {e}"))?;
    linux.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    check_clean(&image.path())?;
    Ok(())
}

#[test]
fn linux_does_what_the_model_says() {
    if !linux::available() {
        return;
    }
    for block in [1024, 2048, 4096] {
        for (n, mkfs) in kinds(block).into_iter().enumerate() {
            let what = format!("linux, {block}, {} {}", mkfs.fs_type, mkfs.features);
            seeds(&what, u64::from(block) + 10 * n as u64, 4, |seed| {
                let (mkfs, options, tight) = (mkfs.clone(), String::new(), false);
                check(&Case { mkfs, options, seed, theme: themes(seed), ops: ops_or(150), tight }, linux_case);
            });
        }
    }
}

#[test]
fn linux_does_what_the_model_says_on_a_full_disk() {
    if !linux::available() {
        return;
    }
    for (n, mkfs) in small().into_iter().enumerate() {
        let what = format!("linux, full, {}, {} {}", mkfs.block_size, mkfs.fs_type, mkfs.features);
        seeds(&what, 500 + 10 * n as u64, 4, |seed| {
            let (mkfs, options, tight) = (mkfs.clone(), String::new(), true);
            check(&Case { mkfs, options, seed, theme: Theme::Full, ops: ops_or(200), tight }, linux_case);
        });
    }
}

/// We do what the model says; and what we leave on the disk is what `e2fsck` and Linux want, too.
fn our_case(case: &Case, ops: &[Op]) -> Result<(), String> {
    let mut ours = Ours::mount(&case.image(), &case.options, auto()).map_err(|e| format!("mounting: errno {e}"))?;
    let mut model = Model::new(case.expect(true));
    run(&mut ours, &mut model, ops)?;
    model.compare(&mut ours).map_err(|e| format!("in the end: {e}"))?;
    let bytes = ours.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    let image = Image::from_bytes(&bytes);
    check_clean(&image.path())?;
    model.close_all();
    if linux::available() {
        let mut linux = Linux::mount(&image.path(), "noatime")?;
        model.compare(&mut linux).map_err(|e| format!("in Linux: {e}"))?;
    }
    Ok(())
}

#[test]
fn we_do_what_the_model_says() {
    for block in [1024, 2048, 4096] {
        for (n, mkfs) in kinds(block).into_iter().enumerate() {
            for (m, options) in [EXCLUSIVE, I_DATA_SEM, IN_FLIGHT].into_iter().enumerate() {
                let what = format!("ours, {block}, {} {}, {options}", mkfs.fs_type, mkfs.features);
                seeds(&what, u64::from(block) + 100 + 10 * (3 * n + m) as u64, 2, |seed| {
                    let (mkfs, options, tight) = (mkfs.clone(), format!("{options},noatime"), false);
                    check(&Case { mkfs, options, seed, theme: themes(seed), ops: ops_or(150), tight }, our_case);
                });
            }
        }
    }
}

#[test]
fn we_do_what_the_model_says_on_a_full_disk() {
    for (n, mkfs) in small().into_iter().enumerate() {
        let what = format!("ours, full, {}, {} {}", mkfs.block_size, mkfs.fs_type, mkfs.features);
        seeds(&what, 500 + 10 * n as u64, 3, |seed| {
            let (mkfs, options, tight) = (mkfs.clone(), format!("{IN_FLIGHT},noatime"), true);
            check(&Case { mkfs, options, seed, theme: Theme::Full, ops: ops_or(200), tight }, our_case);
        });
    }
    assert!(NO_SPACE.load(Ordering::Relaxed) > 20, "the disks were never full");
}
