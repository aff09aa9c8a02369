// SPDX-License-Identifier: GPL-2.0-only
//! Questions of the verdict on a direct write at their edges, where one operator in place of another gives another answer.

use ext4_dio::ext4::{Lblk, MapBlocks, MapFlags};
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::inode::ext4_map_blocks;
use ext4_dio::path::path_truncate;
use ext4_dio_tests::dio::*;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::error::code::*;

/// A block's length, from its middle on: both ends are unaligned by the same, which is no whole block.
#[test]
fn a_blocks_length_that_is_no_block() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/unwritten");
    assert_eq!(write(&file, 512, Pages::new(4096, 1).bytes()), Ok(4096));
    assert_eq!(m.modes(), (1, 0, 0), "it zeroes what is beside it, and has to be alone");
    let read = read(&file, 0, 8192).expect("reading");
    assert!(read[..512] == [0; 512] && read[512..4608] == [1; 4096] && read[4608..] == [0; 3584]);
    // Asynchronous and over written blocks it keeps the lock, as in C.
    let told = Listener::new();
    assert_eq!(ended(write_async(&file, 512, leaked(4096, 2), &told, 0), &told, 1), Ok(4096));
    assert_eq!(m.modes(), (2, 0, 0));
    m.assert_idle(&file);
    drop((file, told));
    m.finish();
}

/// With an end inside a block, what begins behind that block has to zero its rest first; what covers it has nothing to zero.
#[test]
fn behind_a_ragged_end() {
    for (pos, modes) in [(12288, (1, 0, 0)), (8192, (1, 0, 0)), (4096, (0, 0, 1))] {
        let m = Mount::new(IN_FLIGHT);
        path_truncate(&m.sb, b"/data", 6144).expect("truncate");
        let file = m.open("/data");
        assert_eq!(write(&file, pos, Pages::new(8192, 3).bytes()), Ok(8192));
        assert_eq!(m.modes(), modes, "at {pos}");
        let read = read(&file, 6144, 8192).expect("reading");
        let zeros = (pos - 6144).max(0) as usize;
        assert!(read[..zeros].iter().all(|byte| *byte == 0), "at {pos}");
        assert!(read[zeros..].iter().all(|byte| *byte == 3), "at {pos}");
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// A write into a hole that fails takes back nothing that `fallocate` has put behind the end: it does not extend the file.
#[test]
fn a_failed_fill_trims_nothing() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/holes");
    let end = file.f_inode().i_size();
    ext4_fallocate(file.f_inode(), FallocFlags::KEEP_SIZE, end, 8192).expect("fallocate");
    m.faults.fail_nth(1, OpMask::WRITE | OpMask::NOT_META);
    assert_eq!(write(&file, 4096, Pages::new(4096, 4).bytes()), Err(EIO));
    m.assert_idle(&file);
    let mut map = MapBlocks::new(Lblk(u32::try_from(end >> 12).expect("a block")), 2);
    assert_eq!(ext4_map_blocks(file.f_inode(), &mut map), Ok(2), "trimmed");
    assert!(map.m_flags.contains(MapFlags::UNWRITTEN));
    assert_eq!(read(&file, 4096, 4096).as_deref(), Ok(&[0; 4096][..]));
    drop(file);
    m.finish();
}
