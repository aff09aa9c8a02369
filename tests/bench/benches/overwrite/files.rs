// SPDX-License-Identifier: GPL-2.0-only
//! Small files: each is made, written with one block, synced and closed; by one thread, and by several, which share commits.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use ext4_dio::file::ext4_file_write;
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::path::{Cred, path_mkdir, path_open, path_unlink};
use ext4_dio::{Kiocb, SuperBlock, ext4_mount, ext4_umount};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::Bdev;
use kernel_shim::block::ramdisk::RamDisk;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};

use crate::image::BLOCK;

#[repr(C, align(4096))]
struct Page([u8; BLOCK]);

/// One file, from nothing to durable.
fn one_file(sb: &KArc<SuperBlock>, path: &str, direct: OpenFlags) {
    let flags = OpenFlags::O_CREAT | OpenFlags::O_EXCL | OpenFlags::O_WRONLY | direct;
    let file = path_open(sb, path.as_bytes(), flags, 0o644, &Cred::default()).expect("creating a file");
    let page = Page([0x5a; BLOCK]);
    let iov = [IoVec::source(&page.0)];
    assert_eq!(ext4_file_write(&mut Kiocb::new_sync(&file, 0), &mut IovIter::new(&iov)), Ok(BLOCK));
    ext4_sync_file(file.f_inode(), 0, i64::MAX, false).expect("fsync");
}

/// Makes `files` files by `threads` threads, in a directory each; files per second, and per commit.
fn run_one(sb: &KArc<SuperBlock>, threads: usize, files: usize, direct: OpenFlags) -> (f64, f64) {
    let commits = || sb.s_fs_info().s_journal().map_or(0, |journal| journal.nr_commits());
    for t in 0..threads {
        path_mkdir(sb, format!("/{t}").as_bytes(), 0o755, &Cred::default()).expect("mkdir");
    }
    let barrier = Barrier::new(threads + 1);
    let (seconds, made) = thread::scope(|s| {
        let each = files / threads;
        for t in 0..threads {
            let barrier = &barrier;
            s.spawn(move || {
                barrier.wait();
                for n in 0..each {
                    one_file(sb, &format!("/{t}/{n}"), direct);
                }
                barrier.wait();
            });
        }
        let before = commits();
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        (start.elapsed().as_secs_f64(), (each * threads, commits() - before))
    });
    for t in 0..threads {
        for n in 0..files / threads {
            path_unlink(sb, format!("/{t}/{n}").as_bytes()).expect("unlink");
        }
        ext4_dio::path::path_rmdir(sb, format!("/{t}").as_bytes()).expect("rmdir");
    }
    (made.0 as f64 / seconds, made.0 as f64 / made.1.max(1) as f64)
}

/// Measures, and prints the table. `files` for each figure.
pub(crate) fn run(image: &Path, files: usize) {
    println!(
        "Files made, written with 4 KiB, fsynced and closed, per second by the clock, on a RAM disk; files per commit.\n"
    );
    println!("{:24}|{:^24}|{:^24}", "", "one thread", "16 threads");
    println!("{:24}|{:>12} {:>11}|{:>12} {:>11}", "", "files/s", "/commit", "files/s", "/commit");
    for (name, options) in [("journal", ""), ("journal, nobarrier", "nobarrier")] {
        for (how, direct) in [("direct", OpenFlags::O_DIRECT), ("buffered", OpenFlags::empty())] {
            let bytes = std::fs::read(image).expect("the image");
            let mut disk = RamDisk::fast(bytes.len() as u64).expect("a RAM disk");
            disk.load(&bytes);
            let sb = ext4_mount(Bdev::new(disk).expect("a disk"), options).expect("mounting");
            let one = run_one(&sb, 1, files, direct);
            let many = run_one(&sb, 16, files, direct);
            ext4_umount(&sb).expect("unmounting");
            println!("{:24}|{:12.0} {:11.2}|{:12.0} {:11.2}", format!("{name}, {how}"), one.0, one.1, many.0, many.1);
        }
    }
}
