// SPDX-License-Identifier: GPL-2.0-only
//! The n-th allocation and the n-th bio fail, for every n: the right errno, nothing leaked, and the next write works.

use ext4_dio_tests::dio::*;
use kernel_shim::alloc::fault::fail_nth_allocation;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::OpenFlags;

/// Every n up to the first that is not reached. `one` runs the write and says how it ended; an error must be `errno`.
fn for_every_n(what: &str, errno: kernel_shim::error::Error, mut one: impl FnMut(u64) -> (bool, Result<usize>)) {
    let mut failed = 0;
    for n in 1..1000 {
        let (fired, ret) = one(n);
        if !fired {
            assert!(ret.is_ok(), "{what}: {ret:?} without a fault");
            assert!(failed > 0, "{what}: no fault made it fail");
            return;
        }
        match ret {
            Err(e) => {
                assert_eq!(e, errno, "{what}: fault {n}");
                failed += 1;
            }
            // What only remembers things can be done without.
            Ok(len) => assert_eq!(len, 4096 * PIECES_BLOCKS as usize, "{what}: fault {n}"),
        }
    }
    panic!("{what}: a thousand faults and no end");
}

/// A write over all extents of `/pieces`, synchronous or not, as its submitter sees it end.
fn write_pieces(m: &Mount, asynchronous: bool, flags: OpenFlags) -> Result<usize> {
    let file = m.open_with("/pieces", flags);
    let len = 4096 * PIECES_BLOCKS as usize;
    let ret = if asynchronous {
        let told = Listener::new();
        match write_async(&file, 0, leaked(len, 0xaa), &told, 3) {
            Err(EIOCBQUEUED) => {
                let ends = told.wait(1);
                assert_eq!(ends.len(), 1);
                assert_eq!(ends[0].0, 3);
                ends[0].1
            }
            ret => {
                assert!(told.told().is_empty(), "an answer, and told as well");
                ret
            }
        }
    } else {
        write(&file, 0, Pages::new(len, 0xab).bytes())
    };
    m.assert_idle(&file);
    ret
}

#[test]
fn the_nth_bio_fails() {
    for mode in MODES {
        for asynchronous in [false, true] {
            for flags in [OpenFlags::empty(), OpenFlags::O_DSYNC, OpenFlags::O_SYNC] {
                let what = format!("{mode}, {flags:?}, asynchronous {asynchronous}");
                // With a journal, one that it cannot write to is the end of it: see tests of the journal.
                let spec = ext4_dio_tests::images::Mkfs { features: "^has_journal", ..Default::default() };
                let m = Mount::with(&image(&spec), mode, auto());
                assert_eq!(write_pieces(&m, asynchronous, flags), Ok(4096 * PIECES_BLOCKS as usize));
                for_every_n(&what, EIO, |n| {
                    let before = m.faults.fired();
                    m.faults.fail_nth(n, OpMask::WRITE | OpMask::READ | OpMask::FLUSH);
                    let ret = write_pieces(&m, asynchronous, flags);
                    let fired = m.faults.fired() > before;
                    m.faults.repair();
                    (fired, ret)
                });
                m.finish();
            }
        }
    }
}

#[test]
fn the_nth_allocation_fails() {
    for mode in MODES {
        for asynchronous in [false, true] {
            let what = format!("{mode}, asynchronous {asynchronous}");
            let m = Mount::new(mode);
            let file = m.open("/pieces");
            let len = 4096 * PIECES_BLOCKS as usize;
            assert_eq!(write(&file, 0, Pages::new(len, 1).bytes()), Ok(len));
            let (data, told) = (leaked(len, 2), Listener::new());
            let mut queued = 0;
            if !asynchronous {
                // All that it needs is on the stack, or was set aside.
                let fault = fail_nth_allocation(1);
                assert_eq!(write(&file, 0, data), Ok(len), "{what}");
                assert!(!fault.fired(), "{what}: it allocates");
                drop((fault, file, told));
                m.finish();
                continue;
            }
            for_every_n(&what, ENOMEM, |n| {
                let fault = fail_nth_allocation(n);
                let ret = write_async(&file, 0, data, &told, 0);
                let fired = fault.fired();
                drop(fault);
                let ret = match ret {
                    Err(EIOCBQUEUED) => {
                        queued += 1;
                        told.wait(queued)[queued - 1].1
                    }
                    ret => ret,
                };
                m.assert_idle(&file);
                (fired, ret)
            });
            drop((file, told));
            m.finish();
        }
    }
}

/// Mounting fails at every allocation and every read; then it works, and the image is untouched by the attempts.
#[test]
fn mounting_at_every_fault() {
    let image = image(&ext4_dio_tests::images::Mkfs::default());
    let disk = kernel_shim::block::ramdisk::RamDisk::from_image(image.clone(), auto()).expect("a RAM disk");
    let faults = kernel_shim::alloc::Arc::new(
        kernel_shim::block::fault::FaultDisk::new(disk.clone()),
        kernel_shim::alloc::GFP_KERNEL,
    )
    .expect("memory");
    let bdev = kernel_shim::block::Bdev::new(faults.clone()).expect("a disk");
    let mut allocations = 0;
    loop {
        let fault = fail_nth_allocation(allocations + 1);
        let mounted = ext4_dio::ext4_mount(bdev.clone(), IN_FLIGHT);
        let fired = fault.fired();
        drop(fault);
        if let Ok(sb) = mounted {
            ext4_dio::ext4_umount(&sb).expect("unmounting");
            if !fired {
                break;
            }
        } else {
            assert_eq!(mounted.err(), Some(ENOMEM), "allocation {}", allocations + 1);
        }
        allocations += 1;
    }
    assert!(allocations > 5, "{allocations}");
    for n in 1.. {
        let before = faults.fired();
        faults.fail_nth(n, OpMask::READ);
        let mounted = ext4_dio::ext4_mount(bdev.clone(), "ro");
        let fired = faults.fired() > before;
        faults.repair();
        if !fired {
            ext4_dio::ext4_umount(&mounted.expect("no fault")).expect("unmounting");
            break;
        }
        assert_eq!(mounted.err(), Some(EIO), "read {n}");
    }
    ext4_dio_tests::images::Image::from_bytes(&disk.image()).assert_clean();
}

/// The device dies in the middle and stays dead: every write ends, with EIO, and unmounting says so.
#[test]
fn a_dead_device() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        std::thread::scope(|s| {
            for n in 0..8 {
                let (m, file) = (&m, &file);
                s.spawn(move || {
                    let page = Pages::new(4096, 9);
                    for i in 0..20 {
                        if n == 0 && i == 10 {
                            m.faults.die();
                        }
                        let ret = write(file, (8 * i + n) << 12, page.bytes());
                        assert!(matches!(ret, Ok(4096) | Err(EIO)), "{ret:?}");
                    }
                });
            }
        });
        assert_eq!(write(&file, 0, Pages::new(4096, 9).bytes()), Err(EIO));
        m.assert_idle(&file);
        drop(file);
        assert_eq!(ext4_dio::ext4_umount(&m.sb), Err(EIO), "{mode}");
        ext4_dio_tests::images::Image::from_bytes(&m.disk.image()).assert_clean();
    }
}
