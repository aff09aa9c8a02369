// SPDX-License-Identifier: GPL-2.0-only
//! What a caller sees: positions, times, modes, errors, reads, and devices with large sectors.

use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::fsync::ext4_sync_file;
use ext4_dio::setattr::{AttrValid, Iattr, ext4_setattr, ext4_setattr_size};
use ext4_dio::writeback::ext4_writeback;
use ext4_dio::{Kiocb, ext4_mount, ext4_open, ext4_sync_fs, ext4_umount};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{FAKE_TIME, Image, Mkfs, Source, stamped, stamped_blocks};
use kernel_shim::block::QueueLimits;
use kernel_shim::block::ramdisk::RamDiskOptions;
use kernel_shim::error::code::*;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};
use kernel_shim::sched::current;

fn debugged(requests: &[String]) -> Vec<u8> {
    let image = Image::from_bytes(&image(&Mkfs::default()));
    image.debugfs_script(requests);
    image.bytes()
}

#[test]
fn a_write_moves_the_times_and_a_mount_later_they_are_there() {
    let times: Vec<String> =
        ["atime", "mtime", "ctime"].map(|name| format!("set_inode_field data {name} @{FAKE_TIME}")).into();
    let m = Mount::with(&debugged(&times), IN_FLIGHT, auto());
    let file = m.open("/data");
    let before = file.f_inode().i_times();
    assert_eq!(before.i_mtime.tv_sec, FAKE_TIME as i64);
    assert_eq!(write(&file, 0, Pages::new(4096, 1).bytes()), Ok(4096));
    let after = file.f_inode().i_times();
    assert!(after.i_mtime > before.i_mtime && after.i_ctime == after.i_mtime, "{after:?}");
    assert_eq!(after.i_atime, before.i_atime);
    assert_eq!(read(&file, 0, 4096).map(|b| b.len()), Ok(4096));
    assert!(file.f_inode().i_times().i_atime >= after.i_mtime, "relatime");
    let last = file.f_inode().i_times();
    drop(file);
    let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
    assert_eq!(m.open("/data").f_inode().i_times(), last);
    m.finish();
}

/// What a power failure leaves: fdatasync, O_DSYNC and a file marked as synchronous do not write the times, fsync and O_SYNC do; also
/// where the device could write the data through.
#[test]
fn which_sync_writes_the_times() {
    let page = Pages::new(4096, 2);
    let plain = image(&Mkfs::default());
    // EXT4_SYNC_FL, and EXT4_EXTENTS_FL as before.
    let marked = debugged(&["set_inode_field data flags 0x80008".to_string()]);
    for (image, flags, sync, times, fua) in [
        (&plain, OpenFlags::empty(), None, false, false),
        (&plain, OpenFlags::O_DSYNC, None, false, false),
        (&plain, OpenFlags::O_DSYNC, None, false, true),
        (&plain, OpenFlags::O_SYNC, None, true, false),
        (&plain, OpenFlags::O_SYNC, None, true, true),
        (&marked, OpenFlags::empty(), None, false, false),
        (&marked, OpenFlags::empty(), None, false, true),
        (&plain, OpenFlags::empty(), Some(true), false, false),
        (&plain, OpenFlags::empty(), Some(false), true, false),
    ] {
        let limits = QueueLimits { fua, ..auto().limits };
        let m = Mount::with(image, IN_FLIGHT, RamDiskOptions { limits, ..auto() });
        let file = m.open_with("/data", flags);
        assert_eq!(write(&file, 0, page.bytes()), Ok(4096));
        if let Some(datasync) = sync {
            ext4_sync_file(file.f_inode(), 0, i64::MAX, datasync).expect("fsync");
        }
        let written = file.f_inode().i_times();
        let durable = m.disk.durable_image();
        let crashed = Mount::with(&durable, "ro", auto());
        let kept = ext4_open(&crashed.sb, "/data", OpenFlags::O_DIRECT).expect("opening");
        assert_eq!(kept.f_inode().i_times().i_mtime == written.i_mtime, times, "{flags:?} {sync:?} {fua}");
        let synced = flags.intersects(OpenFlags::O_SYNC) || sync.is_some() || file.f_inode().is_sync();
        if synced {
            assert_eq!(read(&kept, 0, 4096).as_deref(), Ok(page.bytes()), "{flags:?} {sync:?}");
        }
        drop((file, kept));
        crashed.finish();
        m.finish();
    }
}

/// Times that somebody else has put into the table block in memory are written by the next fsync all the same.
#[test]
fn fsync_after_sync_fs_in_memory() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    assert_eq!(write(&file, 0, Pages::new(4096, 3).bytes()), Ok(4096));
    m.sb.write_inodes().expect("memory only");
    assert!(file.f_inode().i_state().is_empty());
    ext4_sync_file(file.f_inode(), 0, i64::MAX, false).expect("fsync");
    let crashed = Mount::with(&m.disk.durable_image(), "ro", auto());
    let kept = ext4_open(&crashed.sb, "/data", OpenFlags::empty()).expect("opening");
    assert_eq!(kept.f_inode().i_times().i_mtime, file.f_inode().i_times().i_mtime);
    drop((file, kept));
    crashed.finish();
    ext4_sync_fs(&m.sb).expect("sync");
    m.finish();
}

#[test]
fn a_write_takes_set_user_id_away() {
    for (mode, left) in [(0o104755, 0o100755), (0o106775, 0o100775), (0o102664, 0o102664), (0o100644, 0o100644)] {
        let bytes = debugged(&[format!("set_inode_field data mode 0{mode:o}")]);
        let m = Mount::with(&bytes, IN_FLIGHT, auto());
        let file = m.open("/data");
        assert_eq!(file.f_inode().i_mode(), mode);
        // A write that is refused leaves it.
        assert_eq!(write(&file, 1, Pages::new(4096, 1).bytes()), Err(EINVAL));
        assert_eq!(file.f_inode().i_mode(), mode);
        assert_eq!(write(&file, 0, Pages::new(4096, 1).bytes()), Ok(4096));
        assert_eq!(file.f_inode().i_mode(), left);
        drop(file);
        let m = Mount::with(&m.finish(), IN_FLIGHT, auto());
        assert_eq!(m.open("/data").f_inode().i_mode(), left);
        m.finish();
    }
}

#[test]
fn who_may_give_set_user_id_keeps_it_when_he_changes_the_file() {
    const MODE: u32 = 0o104755;
    let m = Mount::with(&debugged(&[format!("set_inode_field data mode 0{MODE:o}")]), IN_FLIGHT, auto());
    let (file, cached) = (m.open("/data"), m.open_cached("/data"));
    let inode = file.f_inode();
    let mut size = inode.i_size();
    let mut change = |how: usize| match how {
        0 => assert_eq!(write(&file, 0, Pages::new(4096, 1).bytes()), Ok(4096)),
        1 => assert_eq!(write(&cached, 0, &[1]), Ok(1)),
        2 => assert_eq!(ext4_fallocate(inode, FallocFlags::KEEP_SIZE, 0, 4096), Ok(())),
        _ => {
            size -= 1;
            assert_eq!(ext4_setattr_size(inode, size), Ok(()));
        }
    };
    for how in 0..4 {
        current().set_cap_fsetid(true);
        change(how);
        assert_eq!(inode.i_mode(), MODE, "{how}");
        current().set_cap_fsetid(false);
        change(how);
        assert_eq!(inode.i_mode(), MODE & !0o4000, "{how}");
        let chmod = Iattr { ia_valid: AttrValid::MODE, ia_mode: MODE, ..Iattr::default() };
        assert_eq!(ext4_setattr(inode, &chmod), Ok(()));
    }
    // A new owner never keeps it.
    current().set_cap_fsetid(true);
    let chown = Iattr { ia_valid: AttrValid::UID, ia_uid: 7, ..Iattr::default() };
    assert_eq!(ext4_setattr(inode, &chown), Ok(()));
    assert_eq!(inode.i_mode(), MODE & !0o4000);
    current().set_cap_fsetid(false);
    drop((file, cached));
    m.finish();
}

#[test]
fn alignment_is_the_devices_logical_block() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        let data = Pages::new(8192, 4);
        let (aligned, off) = (&data.bytes()[..512], &data.bytes()[100..612]);
        assert_eq!(write(&file, 512, aligned), Ok(512));
        assert_eq!(write(&file, 100, aligned), Err(EINVAL), "{mode}: position");
        assert_eq!(write(&file, 0, &aligned[..100]), Err(EINVAL), "{mode}: length");
        assert_eq!(write(&file, 0, off), Err(EINVAL), "{mode}: address");
        assert_eq!(write(&file, -512, aligned), Err(EINVAL), "{mode}: negative");
        let mut memory = Pages::new(4096, 0);
        for (pos, range) in [(1, 0..512), (0, 0..100), (0, 8..520)] {
            let iov = [IoVec::dest(&mut memory.bytes_mut()[range])];
            let ret = ext4_file_read(&mut Kiocb::new_sync(&file, pos), &mut IovIter::new(&iov));
            assert_eq!(ret, Err(EINVAL), "{mode}");
        }
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// A device with sectors of 4 KiB under writes of 512 bytes: what is beside them in the sector stays, also when several
/// writers share it.
#[test]
fn finer_than_the_device() {
    for mode in MODES {
        let m = Mount::with(&image(&Mkfs::default()), mode, sectors_4k());
        let file = m.open("/data");
        std::thread::scope(|s| {
            for writer in 0..8 {
                let file = &file;
                s.spawn(move || {
                    let page = Pages::new(512, 0x80 + writer as u8);
                    for block in 0..6 {
                        assert_eq!(write(file, block * 4096 + writer * 512, page.bytes()), Ok(512));
                    }
                });
            }
            // Whole blocks beside them, which need no such care.
            let (file, page) = (&file, Pages::new(8192, 0x77));
            s.spawn(move || {
                for n in 0..20 {
                    assert_eq!(write(file, (8 + 2 * n) * 4096, page.bytes()), Ok(8192));
                }
            });
        });
        let data = read(&file, 0, 6 * 4096).expect("reading");
        for (n, sector) in data.chunks(512).enumerate() {
            assert_eq!(sector, [0x80 + (n % 8) as u8; 512], "{mode}: sector {n}");
        }
        // An asynchronous one, over the border of two blocks.
        let told = Listener::new();
        assert_eq!(write_async(&file, 4096 - 512, leaked(1024, 9), &told, 0), Ok(1024), "{mode}: done at once");
        let data = read(&file, 0, 8192).expect("reading");
        assert_eq!(data[4096 - 512..4096 + 512], [9; 1024]);
        assert_eq!(data[..4096 - 512].iter().filter(|b| **b == 9).count(), 0);
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

#[test]
fn reads_of_everything() {
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/holes");
        let size = file.f_inode().i_size() as usize;
        let want: Vec<u8> =
            (0..size as u32 / 4096).flat_map(|b| if b % 2 == 0 { stamped(b, 4096) } else { vec![0; 4096] }).collect();
        assert!(read(&file, 0, size).as_deref() == Ok(&want[..]), "{mode}");
        // Past the end, over the end, at an odd place of 512 bytes.
        assert_eq!(read(&file, size as i64, 4096).as_deref(), Ok(&[][..]));
        assert_eq!(read(&file, size as i64 + 4096, 4096).as_deref(), Ok(&[][..]));
        assert_eq!(read(&file, size as i64 - 512, 4096).as_deref(), Ok(&want[size - 512..]));
        assert_eq!(read(&file, 512, 8192).as_deref(), Ok(&want[512..512 + 8192]));
        let zeros = vec![0; 64 * 4096];
        assert!(read(&m.open("/unwritten"), 0, 64 * 4096).as_deref() == Ok(&zeros[..]), "{mode}");
        // Into many segments.
        let mut memory = Pages::new(16 * 512, 0);
        let iov: Vec<_> = memory.bytes_mut().chunks_mut(512).map(IoVec::dest).collect();
        let mut iocb = Kiocb::new_sync(&file, 0);
        assert_eq!(ext4_file_read(&mut iocb, &mut IovIter::new(&iov)), Ok(16 * 512));
        assert_eq!(iocb.ki_pos, 16 * 512);
        assert_eq!(memory.bytes(), &want[..16 * 512]);
        // Into memory that may not be written.
        let iov = [IoVec::source(memory.bytes())];
        assert_eq!(ext4_file_read(&mut Kiocb::new_sync(&file, 0), &mut IovIter::new(&iov)), Err(EFAULT));
        m.assert_idle(&file);
        drop(iocb);
        drop(file);
        m.finish();
    }
}

/// A file whose size is not a multiple of anything.
#[test]
fn a_ragged_end() {
    let source = Source::new();
    source.file("ragged", &stamped_blocks(3, 4096)[..10_000]);
    let image = Image::make(&Mkfs::default(), Some(source.path()));
    let m = Mount::with(&image.bytes(), IN_FLIGHT, auto());
    let file = m.open("/ragged");
    assert_eq!(read(&file, 8192, 4096).map(|b| b.len()), Ok(1808));
    assert_eq!(read(&file, 9728, 512).map(|b| b.len()), Ok(272));
    assert_eq!(read(&file, 10_240, 512).map(|b| b.len()), Ok(0));
    assert_eq!(write(&file, 8192, Pages::new(1536, 1).bytes()), Ok(1536));
    assert_eq!(file.f_inode().i_size(), 10_000);
    // Over the block with the end in it: the end moves.
    assert_eq!(write(&file, 8192, Pages::new(4096, 2).bytes()), Ok(4096));
    assert_eq!(file.f_inode().i_size(), 12_288);
    assert_eq!(read(&file, 8192, 8192), Ok(vec![2; 4096]));
    drop(file);
    m.finish();
}

#[test]
fn limits_and_refusals() {
    let m = Mount::new(IN_FLIGHT);
    let page = Pages::new(4096, 1);
    let file = m.open("/data");
    // The largest file: 2^32 - 1 blocks.
    let max = ((1i64 << 32) - 1) << 12;
    assert_eq!(write(&file, max, page.bytes()), Err(EFBIG));
    assert_eq!(write(&file, i64::MAX - 511, page.bytes()), Err(EFBIG));
    // What fits is written.
    assert_eq!(write(&file, max - 4096, Pages::new(8192, 1).bytes()), Ok(4096));
    assert_eq!(file.f_inode().i_size(), max);
    drop(file);
    // Opened for reading.
    let file = ext4_open(&m.sb, "/data", OpenFlags::O_DIRECT).expect("opening");
    assert_eq!(write(&file, 0, page.bytes()), Err(EBADF));
    // Opened for writing.
    let writer = ext4_open(&m.sb, "/data", OpenFlags::O_DIRECT | OpenFlags::O_WRONLY).expect("opening");
    assert_eq!(read(&writer, 0, 4096), Err(EBADF));
    assert_eq!(write(&writer, 0, page.bytes()), Ok(4096));
    for (path, flags, errno) in [
        ("/nothing", OpenFlags::empty(), ENOENT),
        ("/data/x", OpenFlags::empty(), ENOTDIR),
        ("/crumbs", OpenFlags::O_RDWR, EISDIR),
        ("/crumbs", OpenFlags::O_DIRECT, EINVAL),
    ] {
        assert_eq!(ext4_open(&m.sb, path, flags).err(), Some(errno), "{path}");
    }
    // An open file keeps the mount.
    assert_eq!(ext4_umount(&m.sb), Err(EBUSY));
    assert_eq!(write(&writer, 0, page.bytes()), Ok(4096));
    drop((file, writer));
    m.finish();
}

#[test]
fn read_only() {
    let bytes = image(&Mkfs::default());
    let m = Mount::with(&bytes, "ro", auto());
    assert_eq!(ext4_open(&m.sb, "/data", OpenFlags::O_RDWR).err(), Some(EROFS));
    let file = ext4_open(&m.sb, "/data", OpenFlags::O_DIRECT).expect("opening");
    assert_eq!(read(&file, 0, 4096).as_deref(), Ok(&stamped(0, 4096)[..]));
    drop(file);
    assert!(m.finish() == bytes, "a read-only mount wrote something");
}

#[test]
fn immutable_and_append_only() {
    let bytes = debugged(&["set_inode_field data flags 0x80010".into(), "set_inode_field pieces flags 0x80020".into()]);
    let m = Mount::with(&bytes, IN_FLIGHT, auto());
    assert_eq!(ext4_open(&m.sb, "/data", OpenFlags::O_RDWR).err(), Some(EPERM));
    assert_eq!(ext4_open(&m.sb, "/pieces", OpenFlags::O_RDWR).err(), Some(EPERM));
    let file = m.open_with("/pieces", OpenFlags::O_APPEND);
    assert_eq!(file.set_flags(OpenFlags::O_DIRECT), Err(EPERM));
    drop(file);
    m.finish();
}

#[test]
fn mount_options_are_named_when_unknown() {
    let bytes = image(&Mkfs::default());
    for options in ["", "rw", "noatime", "relatime,lazytime", "dioread_lock", "dioread_nolock,dio_window=in_flight"] {
        Mount::with(&bytes, options, auto()).finish();
    }
    for options in ["dioread_nolok", "dio_window=mutex", "rw,,bogus=1", "dio_window"] {
        let refused = Mount::try_with(&bytes, options, auto()).err();
        assert_eq!(refused, Some(EINVAL), "{options}");
    }
}

/// Files without extents: overwritten under `i_mutex`, in each mode.
#[test]
fn indirect_files() {
    let spec = Mkfs { fs_type: "ext4", features: "^extent,^64bit", ..Mkfs::default() };
    let source = Source::new();
    source.file("data", &stamped_blocks(40, 4096));
    let image = Image::make(&spec, Some(source.path()));
    for mode in MODES {
        let m = Mount::with(&image.bytes(), mode, auto());
        let file = m.open("/data");
        assert!(!file.f_inode().i_private().is_extents());
        let data = Pages::new(30 * 4096, 5);
        assert_eq!(write(&file, 4096, data.bytes()), Ok(30 * 4096));
        assert_eq!(m.modes(), (1, 0, 0), "{mode}");
        assert_eq!(read(&file, 0, 32 * 4096).map(|b| b[4096..31 * 4096] == *data.bytes()), Ok(true));
        let told = Listener::new();
        let ret = write_async(&file, 0, leaked(4096, 6), &told, 0);
        assert_eq!(ret.or_else(|e| if e == EIOCBQUEUED { told.wait(1)[0].1 } else { Err(e) }), Ok(4096));
        m.assert_idle(&file);
        drop((file, told));
        m.finish();
    }
}

/// Position of a synchronous kiocb: moved on by what was written, and left alone by what was not.
#[test]
fn the_position_moves() {
    let m = Mount::new(IN_FLIGHT);
    let file = m.open("/data");
    let page = Pages::new(4096, 1);
    let mut iocb = Kiocb::new_sync(&file, 0);
    for n in 1..=3 {
        let iov = [IoVec::source(page.bytes())];
        assert_eq!(ext4_file_write(&mut iocb, &mut IovIter::new(&iov)), Ok(4096));
        assert_eq!(iocb.ki_pos, n * 4096);
    }
    iocb.ki_pos = 100;
    let iov = [IoVec::source(page.bytes())];
    assert_eq!(ext4_file_write(&mut iocb, &mut IovIter::new(&iov)), Err(EINVAL));
    assert_eq!(iocb.ki_pos, 100);
    drop(iocb);
    drop(file);
    m.finish();
}

/// Not an ext4 file system at all, and one cut short.
#[test]
fn what_is_no_file_system() {
    assert_eq!(Mount::try_with(&vec![0; 1 << 20], "", auto()).err(), Some(EINVAL));
    let bytes = image(&Mkfs::default());
    assert!(Mount::try_with(&bytes[..bytes.len() / 2], "", auto()).is_err());
    let disk = kernel_shim::block::ramdisk::RamDisk::from_image(bytes[..1024].to_vec(), auto()).expect("a disk");
    assert!(ext4_mount(kernel_shim::block::Bdev::new(disk).expect("a disk"), "").is_err());
}

/// A direct read keeps `i_mutex` while it looks blocks up, and not while the device works.
#[test]
fn reads_do_not_hold_the_lock_in_the_device() {
    use kernel_shim::block::ramdisk::OpMask;
    for mode in MODES {
        let m = Mount::new(mode);
        let file = m.open("/data");
        assert_eq!(read(&file, 0, 4096).map(|b| b.len()), Ok(4096));
        m.disk.hold(OpMask::READ);
        std::thread::scope(|s| {
            let reader = s.spawn(|| read(&file, 0, 4096));
            m.disk.wait_in_flight(1);
            // Sleeps until the reader, which may still be on its way out of the submission, has given it up.
            file.f_inode().lock().unlock();
            assert_eq!(m.disk.in_flight(), 1, "{mode}: the lock came free with the end of the read");
            assert!(file.f_inode().i_dio_count() > 0, "{mode}: not counted in flight");
            m.disk.release();
            assert_eq!(reader.join().expect("the reader").as_deref(), Ok(&stamped(0, 4096)[..]));
        });
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

/// An inode that was dirty when the cache let it go is on the device: an fsync after it was read back has nothing to write.
#[test]
fn fsync_after_the_inode_was_let_go() {
    let source = Source::new();
    source.file("first", &stamped_blocks(1, 4096));
    let image = Image::make(&Mkfs { features: "^has_journal", ..Mkfs::default() }, Some(source.path()));
    let m = Mount::with(&image.bytes(), IN_FLIGHT, auto());
    let file = m.open("/first");
    assert_eq!(write(&file, 0, Pages::new(4096, 1).bytes()), Ok(4096));
    let written = file.f_inode().i_times();
    drop(file);
    m.sb.shrink_inodes();
    assert!(!m.open("/first").f_inode().i_state().is_empty(), "the cache let go of a dirty inode");
    m.sb.write_inodes().expect("memory only");
    m.sb.shrink_inodes();
    assert_ne!(m.sb.nr_inodes(), 0, "the cache let go of what is on the disk in memory only");
    ext4_writeback(&m.sb, true).expect("writable");
    m.sb.shrink_inodes();
    assert_eq!(m.sb.nr_inodes(), 0, "nothing holds it any more");
    let file = m.open("/first");
    assert!(file.f_inode().i_state().is_empty(), "it is still the dirty one: the cache let nothing go");
    ext4_sync_file(file.f_inode(), 0, i64::MAX, false).expect("fsync");
    let crashed = Mount::with(&m.disk.durable_image(), "ro", auto());
    let kept = ext4_open(&crashed.sb, "/first", OpenFlags::empty()).expect("opening");
    assert_eq!(kept.f_inode().i_times().i_mtime, written.i_mtime);
    drop((file, kept));
    crashed.finish();
    m.finish();
}
