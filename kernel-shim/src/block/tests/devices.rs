// SPDX-License-Identifier: GPL-2.0-only
//! Faults, the fast RAM disk, and files of the host.

use std::path::PathBuf;
use std::{env, format, fs, process};

use super::*;
use crate::block::fault::FaultDisk;
use crate::block::file::{FileDisk, FileDiskOptions};
use crate::block::ramdisk::OpMask;
use crate::error::code::*;

/// A file that goes when the test ends.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, bytes: u64) -> Self {
        let path = env::temp_dir().join(format!("kernel-shim-{}-{name}", process::id()));
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn faulty() -> (Arc<FaultDisk<Arc<RamDisk>>>, Bdev) {
    let disk = Arc::new(FaultDisk::new(automatic().0), GFP_NOIO).unwrap();
    (disk.clone(), Bdev::with_bios(disk, 64).unwrap())
}

#[test]
fn the_nth_fails_and_no_other() {
    let (disk, bdev) = faulty();
    let mut n = 0;
    loop {
        n += 1;
        let before = disk.fired();
        disk.fail_nth(n, OpMask::WRITE);
        let results: Vec<_> = (0..5)
            .map(|i| {
                bdev_rw(&bdev, READ, i, &mut [0; 512]).unwrap();
                bdev_rw(&bdev, WRITE, i, &mut [1; 512])
            })
            .collect();
        let failed: Vec<_> = (0..5).filter(|i| results[*i].is_err()).collect();
        if disk.fired() == before {
            assert!(failed.is_empty());
            break;
        }
        assert_eq!((failed, results[n as usize - 1]), (std::vec![n as usize - 1], Err(EIO)));
    }
    assert_eq!((n, disk.fired()), (6, 5));
}

#[test]
fn sectors_and_death() {
    let (disk, bdev) = faulty();
    disk.fail_sectors(10..12, OpMask::READ);
    let read = |sector, sectors: usize| bdev_rw(&bdev, READ, sector, &mut std::vec![0; sectors * 512]);
    assert_eq!((read(8, 2), read(12, 1), read(0, 11), read(11, 4)), (Ok(()), Ok(()), Err(EIO), Err(EIO)));
    assert_eq!(bdev_rw(&bdev, WRITE, 10, &mut [0; 1024]), Ok(()));
    disk.repair();
    assert_eq!(read(8, 8), Ok(()));
    disk.die_at(2, OpMask::FLUSH);
    assert_eq!((blkdev_issue_flush(&bdev), read(0, 1), blkdev_issue_flush(&bdev)), (Ok(()), Ok(()), Err(EIO)));
    assert_eq!((read(0, 1), bdev_rw(&bdev, WRITE, 0, &mut [0; 512])), (Err(EIO), Err(EIO)));
    disk.repair();
    assert_eq!(read(0, 1), Ok(()));
    disk.die();
    assert_eq!(read(0, 1), Err(EIO));
    assert!(disk.seen() > disk.fired());
}

#[test]
fn the_fast_disk_is_a_disk() {
    let mut disk = RamDisk::fast((1 << 20) + 100).unwrap();
    disk.load(&[9; 700]);
    let bdev = Bdev::new(disk).unwrap();
    assert_eq!(bdev.nr_sectors(), 2048);
    let mut data = std::vec![0; 1 << 20];
    bdev_rw(&bdev, READ, 0, &mut data).unwrap();
    assert!(data[..700].iter().all(|b| *b == 9) && data[700..].iter().all(|b| *b == 0));
    data.iter_mut().enumerate().for_each(|(i, b)| *b = (i * 7) as u8);
    let want = data.clone();
    bdev_rw(&bdev, WRITE, 0, &mut data).unwrap();
    submit_bio_wait(&bdev, bio(&bdev, ReqOpf::REQ_OP_WRITE_ZEROES, 8, 4096, 0, &Ended::default())).unwrap();
    bdev_rw(&bdev, READ, 0, &mut data).unwrap();
    assert_eq!((&data[..4096], &data[8192..]), (&want[..4096], &want[8192..]));
    assert_eq!(data[4096..8192], [0; 4096]);
}

fn file_round_trip(options: &FileDiskOptions, name: &str) {
    let file = TempFile::new(name, (1 << 20) + 3);
    let disk = FileDisk::open(&file.0, options).unwrap();
    let block = disk.limits().logical_block_size;
    let bdev = Bdev::with_bios(disk, 64).unwrap();
    assert_eq!(bdev.nr_sectors(), 2048);
    let mut data: Vec<u8> = (0..64 * block).map(|i| (i / 97) as u8).collect();
    let want = data.clone();
    let sector = u64::from(3 * block / 512);
    bdev_rw(&bdev, WRITE, sector, &mut data).unwrap();
    bdev_rw(&bdev, WRITE | ReqOpf::FUA, sector, &mut data[..4096]).unwrap();
    blkdev_issue_flush(&bdev).unwrap();
    assert_eq!(fs::read(&file.0).unwrap()[3 * block as usize..][..data.len()], want);
    data.fill(0);
    bdev_rw(&bdev, READ, sector, &mut data).unwrap();
    assert_eq!(data, want);
    for op in [ReqOpf::REQ_OP_WRITE_ZEROES, ReqOpf::REQ_OP_DISCARD] {
        bdev_rw(&bdev, WRITE, 0, &mut [1; 8192]).unwrap();
        let mut gone = bio_alloc(&bdev, op, GFP_NOIO).unwrap();
        gone.set_size(4096);
        match submit_bio_wait(&bdev, gone) {
            Ok(()) => {
                let now = fs::read(&file.0).unwrap();
                assert_eq!((&now[..4096], now[4096]), (&[0; 4096][..], 1));
            }
            // The host's file system may not know how.
            Err(err) => assert_eq!(err, EOPNOTSUPP),
        }
    }
    assert_eq!(fs::metadata(&file.0).unwrap().len(), (1 << 20) + 3, "its size stays");
}

#[test]
fn a_file_is_a_disk() {
    file_round_trip(&FileDiskOptions::default(), "cached");
    file_round_trip(&FileDiskOptions { direct: true, ..FileDiskOptions::default() }, "direct");
    file_round_trip(&FileDiskOptions { threads: 1, ..FileDiskOptions::default() }, "one");
}

#[test]
fn many_segments_and_many_at_once() {
    let file = TempFile::new("many", 4 << 20);
    let bdev = Bdev::new(FileDisk::open(&file.0, &FileDiskOptions::default()).unwrap()).unwrap();
    let ended = Ended::default();
    let plug = BlkPlug::start();
    for i in 0..1000u64 {
        submit_bio(&bdev, bio(&bdev, WRITE, i * BLOCK, 4096, i as u8, &ended));
    }
    plug.finish();
    while bdev.stats().bios_out > 0 {
        std::thread::yield_now();
    }
    assert_eq!(ended.take().iter().filter(|e| e.1.is_ok()).count(), 1000);
    assert!(bdev.stats().merges > 900);
    let now = fs::read(&file.0).unwrap();
    assert!((0..1000).all(|i| now[i * 4096..][..4096].iter().all(|b| *b == i as u8)));
}

#[test]
fn read_only_files_and_locks() {
    let file = TempFile::new("ro", 8192);
    let read_only = FileDiskOptions { read_only: true, ..FileDiskOptions::default() };
    let reader = FileDisk::open(&file.0, &read_only).unwrap();
    let second = FileDisk::open(&file.0, &read_only).unwrap();
    let taken = FileDisk::open(&file.0, &FileDiskOptions::default()).err().unwrap();
    assert!(format!("{taken}").contains("ro: is in use"), "{taken}");
    drop(second);
    let bdev = Bdev::with_bios(reader, 4).unwrap();
    assert!(bdev.read_only());
    assert_eq!(bdev_rw(&bdev, WRITE, 0, &mut [0; 512]), Err(EROFS));
    assert_eq!(bdev_rw(&bdev, READ, 0, &mut [0; 512]), Ok(()));
    // It shrinks behind our back: an error, not a hang.
    fs::OpenOptions::new().write(true).open(&file.0).unwrap().set_len(100).unwrap();
    assert_eq!(bdev_rw(&bdev, READ, 0, &mut [0; 512]), Err(EIO));
}

#[test]
fn errors_name_the_file() {
    let open = |path: &str| FileDisk::open(path, &FileDiskOptions::default()).err().unwrap();
    let err = open("/nonexistent/image.ext4");
    assert!(format!("{err}").starts_with("/nonexistent/image.ext4: cannot be opened: No such file"), "{err}");
    assert_eq!(Error::from(err), ENOENT);
    assert!(format!("{}", open("/dev/null")).contains("neither a regular file nor a block device"));
}
