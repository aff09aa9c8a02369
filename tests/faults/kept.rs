// SPDX-License-Identifier: GPL-2.0-only
//! Faults that scripts of one thread have not: writers side by side on a device that dies, and what needs no memory at all.

use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::Image;
use kernel_shim::alloc::fault::fail_nth_allocation;
use kernel_shim::error::code::EIO;

/// All that a synchronous overwrite needs is on the stack, or was set aside.
#[test]
fn a_synchronous_overwrite_allocates_nothing() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/pieces");
        let len = 4096 * PIECES_BLOCKS as usize;
        assert_eq!(write(&file, 0, Pages::new(len, 1).bytes()), Ok(len));
        let data = Pages::new(len, 2);
        let fault = fail_nth_allocation(1);
        assert_eq!(write(&file, 0, data.bytes()), Ok(len), "{mode}");
        assert!(!fault.fired(), "{mode}: it allocates");
        drop((fault, file));
        m.finish();
    }
}

/// The device dies in the middle and stays dead: every write ends, with EIO, and unmounting says so.
#[test]
fn a_dead_device_under_many_writers() {
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
        Image::from_bytes(&m.disk.image()).assert_clean();
    }
}
