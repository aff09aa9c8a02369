// SPDX-License-Identifier: GPL-2.0-only
//! No inode with a wrong checksum is ever given out.

use ext4_dio::corrupt::{Corrupt, Ext4Error};
use ext4_dio::ext4::Ino;
use ext4_dio::iget::{Iget, ext4_read_inode};
use ext4_dio_tests::damage::base::base;
use ext4_dio_tests::damage::layout::Kind;
use ext4_dio_tests::images::{peek, poke, ram_disk};
use ext4_dio_tests::reader::Reader;
use kernel_shim::error::Error;
use kernel_shim::error::code::EFSBADCRC;

use crate::tell;

#[test]
fn every_bad_inode_checksum_is_rejected() {
    let (mut inodes, mut bits) = (0, 0);
    for name in ["ext4", "ext4-4k", "log-v2"] {
        let base = base(name);
        let bdev = ram_disk(&base.bytes);
        let reader = Reader::new(&bdev).expect("sound");
        for place in &base.layout.places {
            let Kind::Inode(ino) = place.kind else { continue };
            let read = || {
                // From the disk, not from memory.
                reader.sb.buffers.invalidate(place.at / base.layout.geo.block_size as u64, 1);
                ext4_read_inode(&reader.sb, Ino(ino), Iget::Special).map(drop)
            };
            assert_eq!(read(), Ok(()), "{name}: {}", place.name);
            inodes += 1;
            for byte in 0..place.len as u64 {
                let before = peek(&bdev, place.at + byte, 1)[0];
                // A bit of each byte, another for each.
                poke(&bdev, place.at + byte, &[before ^ 1 << (byte % 8)]);
                let found = read();
                poke(&bdev, place.at + byte, &[before]);
                bits += 1;
                // How long the inode is has to be known first.
                let length = found == Err(Ext4Error::Corrupt(Corrupt::InodeExtraIsize(Ino(ino))));
                if !(length && [0x80, 0x81].contains(&byte)) {
                    assert_eq!(found.map_err(Error::from), Err(EFSBADCRC), "{name}: {} byte {byte:#x}", place.name);
                }
            }
        }
    }
    tell(&format!("inode checksums: {bits} bits of {inodes} inodes, each refused"));
}
