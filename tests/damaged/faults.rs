// SPDX-License-Identifier: GPL-2.0-only
//! No memory, and a device that cannot be read: each allocation and each read of mounting and reading everything
//! fails once.

use ext4_dio::corrupt::{Ext4Error, Ext4Result};
use ext4_dio_tests::images::ram_disk;
use ext4_dio_tests::reader::Reader;
use kernel_shim::alloc::fault::fail_nth_allocation;
use kernel_shim::block::Bdev;
use kernel_shim::block::fault::FaultDisk;
use kernel_shim::block::ramdisk::{OpMask, RamDisk};
use kernel_shim::error::code::{EIO, ENOMEM};
use kernel_shim::sync::Arc;

use crate::anything::tiny;

fn read_all(bdev: &Bdev) -> Ext4Result<usize> {
    Reader::new(bdev)?.walk(500)
}

#[test]
fn every_allocation_that_fails_is_enomem_or_done_without() {
    let bdev = ram_disk(&tiny("", "ext4"));
    let names = read_all(&bdev).expect("sound");
    let mut failures = 0;
    for n in 1.. {
        let fail = fail_nth_allocation(n);
        let result = read_all(&bdev);
        if !fail.fired() {
            break;
        }
        drop(fail);
        match result {
            Ok(found) => assert_eq!(found, names, "allocation {n}"),
            Err(error) => {
                assert_eq!(error, Ext4Error::Errno(ENOMEM), "allocation {n}");
                failures += 1;
            }
        }
    }
    assert!(failures > 20, "{failures}");
    assert_eq!(read_all(&bdev), Ok(names));
}

#[test]
fn every_read_that_fails_is_eio() {
    let bytes = tiny("", "ext4");
    let mut ram = RamDisk::fast(bytes.len() as u64).expect("memory");
    ram.load(&bytes);
    let disk = Arc::new(FaultDisk::new(ram), kernel_shim::alloc::GFP_KERNEL).expect("memory");
    let bdev = Bdev::new(disk.clone()).expect("good limits");
    let names = read_all(&bdev).expect("sound");
    let mut failures = 0;
    for n in 1.. {
        let fired = disk.fired();
        disk.fail_nth(n, OpMask::READ);
        let result = read_all(&bdev);
        if disk.fired() == fired {
            break;
        }
        assert_eq!(result, Err(Ext4Error::Errno(EIO)), "read {n}");
        failures += 1;
    }
    assert!(failures > 10, "{failures}");
    disk.repair();
    assert_eq!(read_all(&bdev), Ok(names));
}
