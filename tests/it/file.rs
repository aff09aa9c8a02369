// SPDX-License-Identifier: GPL-2.0-only
//! An image in a file, with the host's own I/O below, and Linux's ext4 as the second opinion where it may mount.

use std::fs;
use std::process::Command;

use ext4_dio::{ext4_mount, ext4_open, ext4_umount};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, stamped};
use kernel_shim::block::Bdev;
use kernel_shim::block::file::{FileDisk, FileDiskOptions};
use kernel_shim::error::code::EIOCBQUEUED;
use kernel_shim::fs::OpenFlags;

/// `/data` as Linux sees it, or why it was not asked.
fn linux_reads(image: &Image) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = Command::new("mount")
        .args(["-t", "ext4", "-o", "loop,ro,noload"])
        .arg(image.path())
        .arg(dir.path())
        .output()
        .map_err(|e| format!("mount: {e}"))?;
    if !mount.status.success() {
        return Err(String::from_utf8_lossy(&mount.stderr).trim().to_string());
    }
    let data = fs::read(dir.path().join("data"));
    // Another test's child that was forked a moment ago may still have our open files: the mount goes when it execs.
    let umount = Command::new("umount").arg("--lazy").arg(dir.path()).status().expect("umount");
    assert!(umount.success(), "umount");
    Ok(data.expect("Linux cannot read /data"))
}

/// Eight writers, synchronous and asynchronous, on an image file; then `e2fsck`, our own fresh mount's and Linux's reading.
#[test]
fn an_image_file_and_linux() {
    for block_size in [1024, 2048, 4096] {
        for mode in MODES {
            let image = Image::from_bytes(&image(&Mkfs { block_size, ..Mkfs::default() }));
            let disk = FileDisk::open(image.path(), &FileDiskOptions::default()).expect("opening the image");
            let sb = ext4_mount(Bdev::new(disk).expect("a disk"), mode).expect("mounting");
            let size = DATA_BLOCKS as usize * block_size as usize;
            std::thread::scope(|s| {
                for writer in 0..8usize {
                    let sb = &sb;
                    s.spawn(move || {
                        let flags = OpenFlags::O_RDWR | OpenFlags::O_DIRECT;
                        let dsync = if writer % 2 == 0 { OpenFlags::O_DSYNC } else { OpenFlags::empty() };
                        let file = ext4_open(sb, "/data", flags | dsync).expect("opening");
                        let told = Listener::new();
                        let mut queued = 0;
                        for at in (writer * 4096..size).step_by(8 * 4096).take(4) {
                            if writer < 4 {
                                let page = Pages::new(4096, 0x10 + writer as u8);
                                assert_eq!(write(&file, at as i64, page.bytes()), Ok(4096));
                            } else {
                                let data = leaked(4096, 0x10 + writer as u8);
                                match write_async(&file, at as i64, data, &told, at) {
                                    Err(EIOCBQUEUED) => queued += 1,
                                    ret => assert_eq!(ret, Ok(4096)),
                                }
                            }
                        }
                        assert!(told.wait(queued).iter().all(|(_, ret)| *ret == Ok(4096)));
                    });
                }
            });
            ext4_umount(&sb).expect("unmounting");
            drop(sb);
            image.assert_clean();

            let mut want: Vec<u8> = (0..DATA_BLOCKS).flat_map(|b| stamped(b, block_size)).collect();
            for (n, page) in want.chunks_mut(4096).enumerate().take(32) {
                page.fill(0x10 + (n % 8) as u8);
            }
            let ours = Mount::with(&image.bytes(), "ro", auto());
            let file = ext4_open(&ours.sb, "/data", OpenFlags::O_DIRECT).expect("opening");
            assert!(read(&file, 0, size).as_deref() == Ok(&want[..]), "{mode}, {block_size}");
            drop(file);
            ours.finish();
            match linux_reads(&image) {
                Ok(data) => assert!(data == want, "{mode}, {block_size}: Linux reads something else"),
                Err(why) => eprintln!("not compared with Linux's reading: {why}"),
            }
        }
    }
}
