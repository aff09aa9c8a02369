// SPDX-License-Identifier: GPL-2.0-only
//! The example of a block device: short enough to be read at a glance, and works.

#[path = "../examples/block_device.rs"]
#[expect(dead_code, reason = "its main is for people")]
mod block_device;

use ext4_dio_tests::dio::image;
use ext4_dio_tests::images::Mkfs;

#[test]
fn a_block_device_in_sixty_lines() {
    assert!(include_str!("../examples/block_device.rs").lines().count() < 60);
    for block_size in [1024, 2048, 4096] {
        let image = image(&Mkfs { block_size, ..Mkfs::default() });
        assert_eq!(block_device::write_and_read(&image, "/data"), Ok((4096, 4096, *b"!!!!!!!!")));
        assert!(block_device::write_and_read(&image, "/nothing").is_err());
    }
    assert!(block_device::write_and_read(&[0; 1 << 20], "/data").is_err());
}
