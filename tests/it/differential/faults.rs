// SPDX-License-Identifier: GPL-2.0-only
//! Every request of a workload fails once, or is the last that the disk does: no panic, no hang, errors that tell, and what was
//! acknowledged before is there after the next mount.

use ext4_dio_tests::crash::{Ledger, workload};
use ext4_dio_tests::differential::*;
use ext4_dio_tests::dio::{IN_FLIGHT, auto};
use ext4_dio_tests::images::{Image, Mkfs};
use ext4_dio_tests::oplang::{Op, Out, Reply, Vfs};
use ext4_dio_tests::ours::Ours;
use kernel_shim::block::ramdisk::OpMask;

/// What a failing disk may make of an operation, besides what is wrong with the operation itself.
fn plausible(got: &Reply) -> bool {
    const OK: [i32; 16] = [
        libc::EIO,
        libc::EROFS,
        libc::ENOSPC,
        libc::EUCLEAN,
        libc::EBADMSG,
        libc::EINVAL,
        libc::ENOENT,
        libc::EEXIST,
        libc::ENOTDIR,
        libc::EISDIR,
        libc::ENOTEMPTY,
        libc::EPERM,
        libc::EBADF,
        libc::EOPNOTSUPP,
        libc::ENODATA,
        libc::ESTALE,
    ];
    match got {
        Err(e) => OK.contains(e),
        Ok(Out::Ends(ends)) => ends.iter().all(|end| end.map_or_else(|e| OK.contains(&e), |_| true)),
        Ok(_) => true,
    }
}

/// Fails request `n` of `mask`, and all that follow if it `dies`. Whether it came to that.
fn one(mkfs: &Mkfs, image: &[u8], seed: u64, n: u64, mask: OpMask, dies: bool) -> Result<bool, String> {
    let options = format!("{IN_FLIGHT},noatime");
    let mut ours = Ours::mount(image, &options, auto()).map_err(|e| format!("mounting: errno {e}"))?;
    let mount = ours.mount.as_ref().ok_or("no mount")?;
    let (disk, faults) = (mount.disk.clone(), mount.faults.clone());
    if dies {
        faults.die_at(n, mask)
    } else {
        faults.fail_nth(n, mask)
    }
    let mut ledger = Ledger::default();
    for op in workload(seed, mkfs.block_size, mkfs.fs_type == "ext4", 60) {
        let got = ours.apply(&op);
        if !plausible(&got) {
            return Err(format!("{op}: {got:?}"));
        }
        // Whoever syncs everything is not told of what was lost before: fsync of the file tells.
        if !(matches!(op, Op::Sync {}) && faults.fired() > 0) {
            ledger.note(&op, &got);
        }
        if std::env::var_os("EXT4_DIO_TRACE").is_some() {
            eprintln!("{op}: {} ({} faults)", ext4_dio_tests::model::brief(&got), faults.fired());
        }
    }
    let ended = ours.unmount();
    let fired = faults.fired() > 0;
    match ended {
        Ok(_) if !fired => ledger.all_synced(),
        Ok(_) => ledger.doubt(),
        Err(e) if fired => {
            ledger.doubt();
            if ![libc::EIO, libc::EROFS, libc::EUCLEAN].contains(&e) {
                return Err(format!("unmounting: errno {e}"));
            }
        }
        Err(e) => return Err(format!("unmounting without a fault: errno {e}")),
    }
    let left = Image::from_bytes(&disk.image());
    left.repair()?;
    check_clean(&left.path())?;
    let mut again = Ours::mount(&left.bytes(), &options, auto()).map_err(|e| format!("mounting again: errno {e}"))?;
    // Without a journal a change of metadata that was cut off may take along what was there before.
    if !(fired && mkfs.features.contains("^has_journal")) {
        ledger.check(&mut again, fired && mkfs.fs_type != "ext4")?;
    }
    let bytes = again.unmount().map_err(|e| format!("unmounting again: errno {e}"))?;
    check_clean(&Image::from_bytes(&bytes).path())?;
    Ok(fired)
}

fn every_request(what: &str, mkfs: &Mkfs, mask: OpMask, dies: bool, stride: u64) {
    let image = Image::make_over(mkfs, POISON).bytes();
    seeds(what, 1, 1, |seed| {
        // Each seed another offset, so that many seeds reach every request.
        let mut n = number("EXT4_DIO_REQUEST").unwrap_or(1 + seed % stride);
        loop {
            let (mkfs, image) = (mkfs.clone(), image.clone());
            let (tell, told) = std::sync::mpsc::channel();
            let ret =
                guarded(move || one(&mkfs, &image, seed, n, mask, dies).map(|fired| tell.send(fired).unwrap_or(())));
            ret.unwrap_or_else(|e| panic!("{what}, seed {seed}, request {n}: {e}"));
            if told.recv() != Ok(true) {
                assert!(n > 8, "{what}: only {n} requests");
                return;
            }
            n += stride;
        }
    });
}

fn disks() -> [(&'static str, Mkfs); 3] {
    let base = Mkfs { size_kib: 8 << 10, inodes: 128, block_size: 1024, ..Mkfs::default() };
    [
        ("ext4", Mkfs { args: &["-J", "size=1"], ..base.clone() }),
        ("no journal", Mkfs { features: "^has_journal", ..base.clone() }),
        ("ext3", Mkfs { fs_type: "ext3", args: &["-J", "size=1"], ..base }),
    ]
}

#[test]
fn every_write_fails_once() {
    for (what, mkfs) in disks() {
        every_request(&format!("writes fail, {what}"), &mkfs, OpMask::WRITE, false, 7);
    }
}

#[test]
fn every_flush_and_read_fails_once() {
    for (what, mkfs) in disks() {
        every_request(&format!("reads and flushes fail, {what}"), &mkfs, OpMask::READ | OpMask::FLUSH, false, 3);
    }
}

#[test]
fn the_disk_dies_at_every_write() {
    for (what, mkfs) in disks() {
        every_request(&format!("dies, {what}"), &mkfs, OpMask::WRITE | OpMask::FLUSH, true, 11);
    }
}
