// SPDX-License-Identifier: GPL-2.0-only
//! Mounting, remounting, freezing, unmounting, and what is left on the disk by that.

use ext4_dio::corrupt::{Corrupt, Ext4Error};
use ext4_dio::ext4::{EXT4_ERROR_FS, Incompat, RoCompat};
use ext4_dio::file::ext4_file_write;
use ext4_dio::path::{Cred, path_mkdir, path_unlink};
use ext4_dio::{
    GoingDown, Kiocb, ext4_force_shutdown, ext4_freeze, ext4_iget, ext4_open, ext4_remount, ext4_sb_stats, ext4_statfs,
    ext4_sync_fs, ext4_umount, ext4_unfreeze,
};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs, Source, peek, poke, ram_disk};
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::reader::Reader;
use kernel_shim::block::ramdisk::{OpMask, RamDiskOptions};
use kernel_shim::block::{Bdev, QueueLimits};
use kernel_shim::error::code::*;
use kernel_shim::fs::{IoVec, IocbFlags, IovIter, OpenFlags, SbFlags};
use kernel_shim::testing::on_trace;

/// What `mke2fs` of e2fsprogs 1.47 does by itself.
const DEFAULTS_1_47: &str = "orphan_file,metadata_csum_seed";

fn spec(features: &'static str) -> Mkfs {
    Mkfs { features, ..Mkfs::default() }
}

/// Bytes of the super block on the disk, whatever is in memory.
fn super_block(m: &Mount) -> Vec<u8> {
    m.disk.durable_image()[1024..2048].to_vec()
}

fn word(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"))
}

/// `s_state`, whether RECOVER is set, whether ORPHAN_PRESENT is.
fn state(raw: &[u8]) -> (u32, bool, bool) {
    (
        word(raw, 0x3a) & 0xffff,
        word(raw, 0x60) & Incompat::RECOVER.bits() != 0,
        word(raw, 0x64) & RoCompat::ORPHAN_PRESENT.bits() != 0,
    )
}

// ---- what the super block says

#[test]
fn the_super_block_says_whether_it_is_mounted_for_writing() {
    for block_size in [1024, 2048, 4096] {
        for features in ["^has_journal", "^has_journal,^metadata_csum", "", DEFAULTS_1_47] {
            let spec = Mkfs { block_size, ..spec(features) };
            let orphan_file = features == DEFAULTS_1_47;
            let clean = (1, false, false);
            let m = Mount::with(&image(&spec), "", auto());
            let journal = !features.contains("^has_journal");
            assert_eq!(m.sb.s_fs_info().s_journal().is_some(), journal);
            let mounted = (u32::from(journal), journal, orphan_file);
            assert_eq!(state(&super_block(&m)), mounted, "{features}, {block_size}: mounted");
            ext4_remount(&m.sb, "ro").expect("nobody writes");
            assert_eq!(state(&super_block(&m)), clean, "{features}, {block_size}: read-only");
            ext4_remount(&m.sb, "rw").expect("writable");
            assert_eq!(state(&super_block(&m)), mounted, "{features}, {block_size}: writable again");
            ext4_freeze(&m.sb).expect("nobody writes");
            assert_eq!(state(&super_block(&m)), clean, "{features}, {block_size}: frozen");
            ext4_unfreeze(&m.sb).expect("frozen");
            assert_eq!(state(&super_block(&m)), mounted, "{features}, {block_size}: thawed");
            assert_eq!(state(&m.finish()[1024..]), clean, "{features}, {block_size}: unmounted");
        }
    }
}

#[test]
fn a_read_only_mount_leaves_every_byte_as_it_is() {
    for features in ["^has_journal", "", DEFAULTS_1_47] {
        let before = image(&spec(features));
        let m = Mount::with(&before, "ro", auto());
        let file = ext4_open(&m.sb, "/data", OpenFlags::empty()).expect("readable");
        assert_eq!(read(&file, 0, 4096).map(|bytes| bytes.len()), Ok(4096));
        assert_eq!(ext4_open(&m.sb, "/data", OpenFlags::O_RDWR).map(drop), Err(EROFS));
        drop(file);
        assert!(m.finish() == before, "{features}");
    }
}

#[test]
fn what_a_mount_has_written_is_counted() {
    let m = Mount::with(&image(&spec("^has_journal")), "", auto());
    let lifetime = u64::from(word(&super_block(&m), 0x178));
    let file = m.open("/data");
    for n in 0..64 {
        assert_eq!(write(&file, n * 4096, Pages::new(4096, 7).bytes()), Ok(4096));
    }
    let stats = ext4_sb_stats(&m.sb);
    assert!((256..512).contains(&stats.session_write_kbytes), "{stats:?}");
    assert_eq!((stats.delayed_allocation_blocks, stats.errors_count, stats.io_ends_in_flight), (0, 0, 0));
    assert_eq!(stats.dio_in_flight + stats.dio_exclusive, 64);
    assert!(stats.inodes >= 2 && stats.dirty_inodes >= 1, "{stats:?}");
    drop(file);
    let after = u64::from(word(&m.finish()[1024..], 0x178));
    assert!((256..512).contains(&(after - lifetime)), "{lifetime} to {after}");
}

#[test]
fn statfs_is_what_dumpe2fs_says() {
    for block_size in [1024, 4096] {
        let bytes = image(&Mkfs { block_size, ..spec("") });
        let m = Mount::with(&bytes, "", auto());
        let statfs = ext4_statfs(&m.sb).expect("readable");
        let raw = &bytes[1024..];
        assert_eq!(statfs.f_bsize, block_size);
        assert_eq!(statfs.f_bfree, u64::from(word(raw, 0xc)));
        // Some more are kept for the file system's own needs, as Linux does.
        let kept = u64::from(word(raw, 8)) + (u64::from(word(raw, 4)) / 50).min(4096);
        assert_eq!(statfs.f_bavail, statfs.f_bfree - kept);
        assert_eq!((statfs.f_files, statfs.f_ffree), (u64::from(word(raw, 0)), u64::from(word(raw, 0x10))));
        assert!(statfs.f_blocks < u64::from(word(raw, 4)) && statfs.f_blocks > statfs.f_bfree);
        m.finish();
    }
}

// ---- options

#[test]
fn options_are_refused_by_name_and_leave_the_disk_alone() {
    let bytes = image(&spec("^has_journal"));
    for options in
        ["dax", "usrquota", "commit=x", "data=none", "inlinecrypt", "noload", "barrier=7", "test_dummy_encryption"]
    {
        assert_eq!(Mount::try_with(&bytes, options, auto()).map(drop), Err(EINVAL), "{options}");
    }
    for options in [
        "rw,relatime,errors=remount-ro,data=ordered,barrier,commit=5",
        "noatime,lazytime,dioread_nolock,dio_window=i_data_sem,nobarrier",
        "strictatime,nolazytime,dioread_lock,barrier=1,data=writeback,nodelalloc",
        "data=journal,discard,delalloc,user_xattr,journal_checksum",
        "ro,norecovery",
    ] {
        Mount::with(&bytes, options, auto()).finish();
    }
}

#[test]
fn a_remount_changes_what_may_change() {
    let m = Mount::with(&image(&spec("")), "data=ordered", auto());
    for (options, expected) in [
        ("data=writeback", Err(EINVAL)),
        ("data=ordered", Ok(())),
        ("ro,noload", Err(EINVAL)),
        ("frob", Err(EINVAL)),
        ("commit=1,noatime,discard,errors=continue", Ok(())),
        ("dioread_lock", Ok(())),
    ] {
        assert_eq!(ext4_remount(&m.sb, options), expected, "{options}");
    }
    let options = m.sb.s_fs_info().options();
    assert_eq!((options.commit, options.discard), (1, true));
    assert!(m.sb.s_flags().contains(SbFlags::NOATIME));
    ext4_remount(&m.sb, "strictatime").expect("good");
    assert_eq!(m.sb.s_flags() & (SbFlags::NOATIME | SbFlags::STRICTATIME), SbFlags::STRICTATIME);
    // The lock mode counts for the next write.
    let file = m.open("/data");
    let page = Pages::new(4096, 1);
    write(&file, 0, page.bytes()).expect("written");
    ext4_remount(&m.sb, "dioread_nolock").expect("good");
    write(&file, 0, page.bytes()).expect("written");
    ext4_remount(&m.sb, "dio_window=i_data_sem").expect("good");
    write(&file, 0, page.bytes()).expect("written");
    assert_eq!(m.modes(), (1, 1, 1));
    drop(file);
    m.finish();
}

#[test]
fn read_only_waits_for_nobody_who_may_still_write() {
    for features in ["^has_journal", ""] {
        let m = Mount::with(&image(&spec(features)), "", auto());
        let file = m.open("/data");
        write(&file, 0, Pages::new(4096, 9).bytes()).expect("written");
        assert_eq!(ext4_remount(&m.sb, "ro"), Err(EBUSY));
        // It did not happen.
        write(&file, 0, Pages::new(4096, 10).bytes()).expect("written");
        drop(file);
        let reader = ext4_open(&m.sb, "/data", OpenFlags::O_DIRECT).expect("readable");
        ext4_remount(&m.sb, "ro").expect("nobody has it open for writing");
        assert_eq!(ext4_open(&m.sb, "/data", OpenFlags::O_RDWR).map(drop), Err(EROFS));
        // What is there is what an unmounted file system would be.
        Image::from_bytes(&m.disk.durable_image()).assert_clean();
        assert_eq!(read(&reader, 0, 4096).expect("readable")[0], 10);
        ext4_remount(&m.sb, "rw").expect("writable");
        let file = m.open("/data");
        write(&file, 0, Pages::new(4096, 11).bytes()).expect("written");
        drop((file, reader));
        m.finish();
    }
}

#[test]
fn what_cannot_be_written_cannot_be_remounted_so() {
    // Loaded without its journal.
    let m = Mount::with(&image(&spec("")), "ro,noload", auto());
    assert_eq!(ext4_remount(&m.sb, "rw"), Err(EINVAL));
    m.finish();
    // Features.
    let image = Image::make(&spec("project,quota"), None);
    let m = Mount::with(&image.bytes(), "", auto());
    assert!(m.sb.s_flags().contains(SbFlags::RDONLY));
    assert_eq!(ext4_remount(&m.sb, "ro").and(ext4_remount(&m.sb, "rw")), Err(EROFS));
    m.finish();
}

#[test]
fn features_that_are_not_there_are_named() {
    for (features, named) in
        [("inline_data", "INLINE_DATA"), ("mmp", "MMP"), ("encrypt", "ENCRYPT"), ("casefold", "CASEFOLD")]
    {
        let bdev = Image::make(&spec(features), None).bdev();
        let error = ext4_dio::sb::ext4_fill_super(bdev, "").map(drop).expect_err(features);
        assert_eq!(error.to_string(), format!("unsupported incompatible features: {named}"));
    }
    for features in ["quota", "bigalloc", "verity"] {
        let m = Mount::with(&Image::make(&spec(features), None).bytes(), "", auto());
        assert!(m.sb.s_flags().contains(SbFlags::RDONLY), "{features}");
        m.finish();
    }
}

// ---- errors

#[test]
fn an_error_does_what_the_option_says() {
    for (options, stops) in [("errors=continue", false), ("errors=remount-ro", true), ("errors=panic", true)] {
        for features in ["^has_journal", ""] {
            let m = Mount::with(&image(&spec(features)), options, auto());
            let file = m.open("/data");
            let error = Ext4Error::Corrupt(Corrupt::ExtentMagic(ext4_dio::ext4::Ino(12)));
            assert_eq!(m.sb.s_fs_info().ext4_error(error), EFSCORRUPTED);
            let wrote = write(&file, 0, Pages::new(4096, 3).bytes());
            assert_eq!(wrote, if stops { Err(EROFS) } else { Ok(4096) }, "{options}");
            drop(file);
            assert_eq!(ext4_sb_stats(&m.sb).errors_count, 1);
            assert!(ext4_remount(&m.sb, "ro").and(ext4_remount(&m.sb, "rw")).is_err(), "{options}");
            let _ = ext4_umount(&m.sb);
            let raw = m.disk.image()[1024..2048].to_vec();
            assert_eq!(state(&raw).0 & 2, 2, "{options}: error bit");
            assert_eq!(word(&raw, 0x194), 1, "{options}: count");
            assert_eq!((word(&raw, 0x19c), word(&raw, 0x1d0)), (12, 12), "{options}: inode");
            assert_eq!(&raw[0x1a8..0x1b4], b"ExtentMagic\0", "{options}: which");
            // Who mounts it next is told, and it is still sound.
            Image::from_bytes(&m.disk.image()).e2fsck_repairs();
        }
    }
}

// ---- freezing

/// When `ext4_freeze` returns nothing is in flight any more, asynchronous writes included; and nothing starts before the thaw.
#[test]
fn nothing_changes_while_frozen() {
    let m = Mount::with(&image(&spec("^has_journal")), IN_FLIGHT, auto());
    let file = m.open("/data");
    let told = Listener::new();
    m.disk.hold(OpMask::WRITE);
    for tag in 0..8 {
        let ret = write_async(&file, 4096 * tag as i64, leaked(4096, 0x80 + tag as u8), &told, tag);
        assert_eq!(ret, Err(EIOCBQUEUED));
    }
    let disk = m.disk.clone();
    let tracing = on_trace(move |name| match name {
        "direct I/O drains" => disk.release(),
        "ext4_freeze: no direct I/O" => assert_eq!(disk.in_flight(), 0, "frozen with writes in flight"),
        _ => {}
    });
    assert_eq!(ext4_freeze(&m.sb), Ok(()));
    drop(tracing);
    told.wait(8);

    let frozen = m.disk.durable_image();
    Image::from_bytes(&frozen).assert_clean();
    assert_eq!(state(&frozen[1024..]), (1, false, false));
    assert_eq!(ext4_freeze(&m.sb), Err(EBUSY));
    assert_eq!(ext4_remount(&m.sb, "ro"), Err(EBUSY));
    assert!(m.sb.try_start_write().is_none());
    // Readers go on.
    assert_eq!(read(&file, 0, 4096).expect("readable")[0], 0x80);
    // Writers wait, or are told to come again.
    let page = Pages::new(4096, 0x99);
    let iov = [IoVec::source(page.bytes())];
    let mut nowait = Kiocb::new_sync(&file, 0);
    nowait.ki_flags |= IocbFlags::NOWAIT;
    assert_eq!(ext4_file_write(&mut nowait, &mut IovIter::new(&iov)), Err(EAGAIN));
    drop(nowait);
    std::thread::scope(|s| {
        let writer = s.spawn(|| write(&file, 4096, Pages::new(4096, 0x9a).bytes()));
        let unlinker = s.spawn(|| path_unlink(&m.sb, b"/unwritten"));
        for _ in 0..100 {
            std::thread::yield_now();
            assert!(m.disk.image() == frozen, "written while frozen");
        }
        assert!(!writer.is_finished() && !unlinker.is_finished());
        ext4_unfreeze(&m.sb).expect("frozen");
        assert_eq!(writer.join().expect("no panic"), Ok(4096));
        assert_eq!(unlinker.join().expect("no panic"), Ok(()));
    });
    assert_eq!(read(&file, 4096, 4096).expect("readable")[0], 0x9a);
    assert_eq!(ext4_unfreeze(&m.sb), Err(EINVAL));
    write(&file, 0, Pages::new(4096, 1).bytes()).expect("thawed");
    m.assert_idle(&file);
    drop((file, told));
    m.finish();
}

// ---- shutdown

#[test]
fn after_a_shutdown_everything_is_eio() {
    for how in [GoingDown::Default, GoingDown::LogFlush, GoingDown::NoLogFlush] {
        for features in ["^has_journal", ""] {
            let m = Mount::with(&image(&spec(features)), "", auto());
            let file = m.open("/data");
            write(&file, 0, Pages::new(4096, 3).bytes()).expect("written");
            ext4_force_shutdown(&m.sb, how).expect("the device works");
            assert_eq!(write(&file, 0, Pages::new(4096, 4).bytes()), Err(EIO), "{how:?}");
            assert_eq!(read(&file, 0, 4096), Err(EIO), "{how:?}");
            assert_eq!(ext4_open(&m.sb, "/pieces", OpenFlags::empty()).map(drop), Err(EIO), "{how:?}");
            assert_eq!(ext4_iget(&m.sb, ext4_dio::ext4::Ino(13)).map(drop), Err(EIO), "{how:?}");
            let made = path_mkdir(&m.sb, b"/directory", 0o755, &Cred::default());
            assert_eq!(made, Err(EIO), "{how:?}: a directory");
            assert_eq!(ext4_sync_fs(&m.sb), Err(EIO), "{how:?}");
            assert_eq!(ext4_freeze(&m.sb), Err(EIO), "{how:?}");
            assert_eq!(ext4_remount(&m.sb, "ro"), Err(EIO), "{how:?}");
            assert_eq!(ext4_umount(&m.sb), Err(EBUSY), "{how:?}");
            drop(file);
            assert_eq!(ext4_umount(&m.sb), Err(EIO), "{how:?}");
            let left = m.disk.image();
            if how == GoingDown::Default {
                Image::from_bytes(&left).assert_clean();
                assert_eq!(state(&left[1024..]), (1, false, false));
            }
            // As after a power cut: it mounts, and nothing is wrong with it.
            let left = Mount::with(&left, "", auto()).finish();
            assert_eq!(state(&left[1024..]).0 & u32::from(EXT4_ERROR_FS), 0, "{how:?}");
        }
    }
}

// ---- orphans

/// `/victim` of 100 000 bytes, `/cut` of as many, and `/keep`.
fn files(spec: &Mkfs) -> Image {
    let source = Source::new();
    source.file("keep", b"keep\n").file("victim", &vec![0x5a; 100_000]).file("cut", &vec![0xa5; 100_000]);
    Image::make(spec, Some(source.path()))
}

fn ino_of(bytes: &[u8], path: &str) -> u32 {
    let reader = Reader::new(&ram_disk(bytes)).expect("sound");
    reader.lookup(path).expect("there").disk.i_ino.0
}

/// Free blocks and inodes, as the super block of an image has them.
fn free(raw: &[u8]) -> (u32, u32) {
    (word(raw, 1024 + 0xc), word(raw, 1024 + 0x10))
}

/// An image whose list of orphans leads to `/victim`, which has no name any more, and from there to `/cut`, which was to be cut
/// to 5000 bytes; and what is free when both are done.
fn with_orphans(spec: &Mkfs) -> (Vec<u8>, (u32, u32)) {
    let image = files(spec);
    let (victim, cut) = (ino_of(&image.bytes(), "/victim"), ino_of(&image.bytes(), "/cut"));
    image.debugfs_script(&[
        "unlink victim".to_string(),
        format!("set_inode_field <{victim}> links_count 0"),
        format!("set_inode_field <{victim}> dtime @{cut}"),
        format!("set_inode_field <{cut}> size 5000"),
        format!("set_super_value last_orphan {victim}"),
    ]);
    let left = image.bytes();
    let text = image.e2fsck_repairs();
    assert!(text.contains("orphan"), "{text}");
    (left, free(&image.bytes()))
}

#[test]
fn a_list_of_orphans_made_by_debugfs_is_worked_off() {
    for block_size in [1024, 2048, 4096] {
        for (features, fs_type) in [("", "ext4"), (DEFAULTS_1_47, "ext4"), ("^has_journal", "ext4"), ("", "ext3")] {
            let (bytes, expected) = with_orphans(&Mkfs { block_size, fs_type, ..spec(features) });
            for options in ["", "ro"] {
                let m = Mount::with(&bytes, options, auto());
                let left = m.finish();
                assert_eq!(free(&left), expected, "{fs_type} {features} {block_size} {options}");
                assert_eq!(word(&left, 1024 + 0xe8), 0, "s_last_orphan");
            }
            // Who asked for nothing to be written gets that.
            let m = Mount::with(&bytes, "ro,noload", auto());
            ext4_umount(&m.sb).expect("unmounting");
            assert!(m.disk.image() == bytes);
        }
    }
}

#[test]
fn orphans_that_cannot_be_are_left_to_e2fsck() {
    let bytes = files(&spec("^has_journal")).bytes();
    for last in [5u32, 900, u32::MAX] {
        let m = Mount::with(&bytes, "", auto());
        ext4_umount(&m.sb).expect("unmounting");
        let bdev = Bdev::new(m.disk.clone()).expect("a disk");
        poke(&bdev, 1024 + 0xe8, &last.to_le_bytes());
        let mut raw: [u8; 1024] = peek(&bdev, 1024, 1024).try_into().expect("its size");
        let csum = ext4_dio::checksum::ext4_superblock_csum(&raw);
        raw[0x3fc..].copy_from_slice(&csum.to_le_bytes());
        poke(&bdev, 1024, &raw);
        let sb = ext4_dio::ext4_mount(bdev, "").expect("mounted all the same");
        assert!(ext4_sb_stats(&sb).errors_count > 0);
        ext4_umount(&sb).expect("unmounting");
        Image::from_bytes(&m.disk.image()).e2fsck_repairs();
    }
}

/// Files that were deleted while open: after a crash whoever comes next frees them, us, `e2fsck` or Linux.
#[test]
fn open_files_without_names_are_freed_after_a_crash() {
    for block_size in [1024, 4096] {
        for (features, fs_type) in [("", "ext4"), (DEFAULTS_1_47, "ext4"), ("", "ext3")] {
            let m = Mount::with(&files(&Mkfs { block_size, fs_type, ..spec(features) }).bytes(), "", auto());
            let open: Vec<_> = ["/victim", "/cut"].map(|path| m.open(path)).into();
            let before = ext4_statfs(&m.sb).expect("readable");
            for path in ["/victim", "/cut"] {
                path_unlink(&m.sb, path.as_bytes()).expect("there");
            }
            assert_eq!(ext4_statfs(&m.sb).expect("readable").f_ffree, before.f_ffree, "they are in use");
            assert_eq!(read(&open[0], 0, 4096).expect("still open")[0], 0x5a);
            assert_eq!(ext4_remount(&m.sb, "ro"), Err(EBUSY), "somebody would have to delete them");
            ext4_sync_fs(&m.sb).expect("the device works");
            let crash = m.disk.durable_image();
            drop(open);
            let after = ext4_statfs(&m.sb).expect("readable");
            assert_eq!(after.f_ffree, before.f_ffree + 2);
            assert!(after.f_bfree >= before.f_bfree + 2 * 100_000 / u64::from(block_size));
            let expected = free(&m.finish());

            for options in ["", "ro"] {
                let cleaned = Mount::with(&crash, options, auto()).finish();
                assert_eq!(free(&cleaned), expected, "{fs_type} {features} {block_size} {options}");
                assert_eq!(word(&cleaned, 1024 + 0xe8), 0, "s_last_orphan");
            }
            let image = Image::from_bytes(&crash);
            image.e2fsck_repairs();
            assert_eq!(free(&image.bytes()), expected, "{fs_type} {features} {block_size} e2fsck");
            if linux::available() {
                let image = Image::from_bytes(&crash);
                Linux::mount(&image.path(), "").expect("Linux mounts it").unmount().expect("the device works");
                image.assert_clean();
                assert_eq!(free(&image.bytes()), expected, "{fs_type} {features} {block_size} Linux");
            }
        }
    }
}

/// More files without names than the orphan file has room for: the rest are on the list.
#[test]
fn an_orphan_file_that_is_full() {
    let source = Source::new();
    let nr = 1100;
    for n in 0..nr {
        source.file(&format!("d/{n}"), b"x");
    }
    // One block of it has room for 254 numbers.
    let spec = Mkfs { block_size: 1024, inodes: 2048, extended: "orphan_file_size=2048", ..spec(DEFAULTS_1_47) };
    let m = Mount::with(&Image::make(&spec, Some(source.path())).bytes(), "", auto());
    let mut open = Vec::new();
    for n in 0..nr {
        let path = format!("/d/{n}");
        open.push(m.open(&path));
        path_unlink(&m.sb, path.as_bytes()).expect("there");
    }
    ext4_sync_fs(&m.sb).expect("the device works");
    let crash = m.disk.durable_image();
    // In an order that takes them out of the middle of the list.
    while !open.is_empty() {
        open.swap_remove(open.len() / 3);
    }
    let expected = free(&m.finish());
    assert_eq!(free(&Mount::with(&crash, "", auto()).finish()), expected);
    let image = Image::from_bytes(&crash);
    image.e2fsck_repairs();
    // It takes empty blocks out of the directory, too.
    let (blocks, inodes) = free(&image.bytes());
    assert!(blocks >= expected.0 && inodes == expected.1, "{blocks}, {inodes}: {expected:?}");
}

/// What Linux left when its power was cut: a log to replay, and files without names.
#[test]
fn what_linux_left_is_recovered() {
    if !linux::available() {
        return;
    }
    for (features, fs_type) in [("", "ext4"), (DEFAULTS_1_47, "ext4"), ("", "ext3")] {
        let image = files(&Mkfs { fs_type, ..spec(features) });
        let mut linux = Linux::mount(&image.path(), "").expect("Linux mounts it");
        let victim = std::fs::File::open(linux.root().join("victim")).expect("there");
        std::fs::remove_file(linux.root().join("victim")).expect("there");
        std::fs::create_dir(linux.root().join("new")).expect("room");
        for n in 0..50 {
            std::fs::write(linux.root().join(format!("new/{n}")), vec![n; 3000]).expect("room");
        }
        std::fs::File::open(linux.root().join("new")).and_then(|dir| dir.sync_all()).expect("the device works");
        for n in 0..50 {
            let file = std::fs::File::open(linux.root().join(format!("new/{n}"))).expect("there");
            file.sync_all().expect("the device works");
        }
        linux.shutdown().expect("root may");
        drop(victim);
        let _ = linux.unmount();
        let dirty = image.bytes();
        assert!(state(&dirty[1024..]).1, "{features}: RECOVER");
        // Not replayed if the device cannot be written, and then not mounted.
        let read_only = RamDiskOptions {
            limits: QueueLimits { read_only: true, ..RamDiskOptions::default().limits },
            ..RamDiskOptions::default()
        };
        assert_eq!(Mount::try_with(&dirty, "ro", read_only).map(drop), Err(EROFS));
        for options in ["", "ro"] {
            let m = Mount::with(&dirty, options, auto());
            for n in 0..50u8 {
                let file = ext4_open(&m.sb, &format!("/new/{n}"), OpenFlags::empty()).expect("it was synced");
                assert_eq!(read(&file, 0, 4096).as_deref(), Ok(&vec![n; 3000][..]), "{features} {options}: {n}");
            }
            assert_eq!(ext4_open(&m.sb, "/victim", OpenFlags::empty()).map(drop), Err(ENOENT));
            let clean = m.finish();
            assert_eq!(state(&clean[1024..]), (1, false, false), "{features} {options}");
            let image = Image::from_bytes(&clean);
            let mut linux = Linux::mount(&image.path(), "").expect("Linux mounts it");
            assert_eq!(std::fs::read(linux.root().join("new/7")).expect("there"), vec![7; 3000]);
            linux.unmount().expect("the device works");
        }
    }
}

/// An error of the device in the middle of a commit: the journal is aborted, and nothing is said to be clean.
#[test]
fn an_aborted_journal_makes_the_mount_read_only() {
    // No commit but the one asked for: it has to be that one which fails.
    let m = Mount::with(&files(&spec("")).bytes(), "commit=300", auto());
    path_unlink(&m.sb, b"/victim").expect("there");
    m.faults.fail_nth(1, OpMask::WRITE);
    assert!(ext4_sync_fs(&m.sb).is_err());
    m.faults.repair();
    assert_eq!(path_unlink(&m.sb, b"/cut"), Err(EROFS));
    // The thread that has aborted it makes the mount read-only next.
    while !m.sb.s_flags().contains(SbFlags::RDONLY) {
        std::thread::yield_now();
    }
    assert_eq!(ext4_open(&m.sb, "/keep", OpenFlags::O_RDWR).map(drop), Err(EROFS));
    let file = ext4_open(&m.sb, "/keep", OpenFlags::empty()).expect("readable");
    assert_eq!(read(&file, 0, 4096).as_deref(), Ok(&b"keep\n"[..]));
    assert_eq!(ext4_remount(&m.sb, "ro").and(ext4_remount(&m.sb, "rw")), Err(EROFS));
    drop(file);
    assert!(ext4_umount(&m.sb).is_err());
    let left = m.disk.image();
    assert!(state(&left[1024..]).1, "RECOVER stays");
    assert_eq!(state(&left[1024..]).0 & 2, 2, "and the error is known");
    Image::from_bytes(&left).e2fsck_repairs();
}
