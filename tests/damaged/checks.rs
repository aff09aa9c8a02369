// SPDX-License-Identifier: GPL-2.0-only
//! Damaged file systems: each of the checks strikes where it should, with its own error, and whatever is done to
//! an image there is no panic and an end.
//!
//! The damage is done byte by byte to sound images. Where it says so the checksum over the damaged structure
//! is made right again, as if a buggy program had written it, so that it is the structure that is judged.

use ext4_dio::corrupt::{Corrupt, Ext4Error, Ext4Result, Refused};
use ext4_dio::ext4::{Compat, Group, Incompat, RoCompat};
use ext4_dio::iget::{Iget, ext4_read_inode};
use ext4_dio::sb::ext4_fill_super;
use ext4_dio_tests::images::{peek, poke, ram_disk};
use ext4_dio_tests::reader::{Reader, corrupt};
use kernel_shim::error::Error;
use kernel_shim::error::code::{EFSBADCRC, EFSCORRUPTED};

use crate::victim::{Change, Victim, put32};

fn refused(result: Ext4Result<Reader>) -> Refused {
    match result.map(|_| ()) {
        Err(Ext4Error::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

// ---- the super block

#[test]
fn super_blocks_that_cannot_be_are_refused_by_name() {
    let u16s = |value: u16| value.to_le_bytes().to_vec();
    let u32s = |value: u32| value.to_le_bytes().to_vec();
    let cases: Vec<(usize, Vec<u8>, Refused)> = vec![
        (0x38, u16s(0), Refused::Magic(0)),
        (0x38, u16s(0xef52), Refused::Magic(0xef52)),
        (0x175, vec![2], Refused::ChecksumType(2)),
        (0x4c, u32s(9), Refused::Revision(9)),
        (0x18, u32s(3), Refused::LogBlockSize(3)),
        (0x18, u32s(30), Refused::LogBlockSize(30)),
        (0x18, u32s(u32::MAX), Refused::LogBlockSize(u32::MAX)),
        (0x1c, u32s(4), Refused::LogClusterSize(4)),
        (0x1c, u32s(u32::MAX), Refused::LogClusterSize(u32::MAX)),
        (0x58, u16s(0), Refused::InodeSize(0)),
        (0x58, u16s(64), Refused::InodeSize(64)),
        (0x58, u16s(192), Refused::InodeSize(192)),
        (0x58, u16s(2048), Refused::InodeSize(2048)),
        (0x58, u16s(65535), Refused::InodeSize(65535)),
        (0x54, u32s(2), Refused::FirstIno(2)),
        (0xfe, u16s(0), Refused::DescSize(0)),
        (0xfe, u16s(32), Refused::DescSize(32)),
        (0xfe, u16s(96), Refused::DescSize(96)),
        (0xfe, u16s(2048), Refused::DescSize(2048)),
        (0xfe, u16s(65535), Refused::DescSize(65535)),
        (0x20, u32s(0), Refused::BlocksPerGroup(0)),
        (0x20, u32s(4095), Refused::BlocksPerGroup(4095)),
        (0x20, u32s(8200), Refused::BlocksPerGroup(8200)),
        (0x20, u32s(u32::MAX), Refused::BlocksPerGroup(u32::MAX)),
        (0x24, u32s(0), Refused::ClustersPerGroup(0)),
        (0x24, u32s(8192), Refused::ClustersPerGroup(8192)),
        (0x28, u32s(0), Refused::InodesPerGroup(0)),
        (0x28, u32s(3), Refused::InodesPerGroup(3)),
        (0x28, u32s(510), Refused::InodesPerGroup(510)),
        (0x28, u32s(u32::MAX), Refused::InodesPerGroup(u32::MAX)),
        (0x0, u32s(0), Refused::InodesCount(0)),
        (0x0, u32s(1023), Refused::InodesCount(1023)),
        (0x0, u32s(u32::MAX), Refused::InodesCount(u32::MAX)),
        (0x14, u32s(0), Refused::FirstDataBlock(0)),
        (0x14, u32s(2), Refused::FirstDataBlock(2)),
        (0x14, u32s(u32::MAX), Refused::FirstDataBlock(u32::MAX)),
        (0x4, u32s(0), Refused::BlocksCount(0)),
        (0x4, u32s(8193), Refused::DeviceSize(8193)),
        (0x150, u32s(1), Refused::DeviceSize(0x1_0000_2000)),
        (0x150, u32s(u32::MAX), Refused::BlocksCount(0xffff_ffff_0000_2000)),
        (0x8, u32s(8193), Refused::ReservedBlocks(8193)),
        (0x154, u32s(u32::MAX), Refused::ReservedBlocks(0xffff_ffff_0000_0199)),
        (0xce, u16s(257), Refused::ReservedGdtBlocks(257)),
    ];
    for (offset, bytes, expected) in cases {
        let victim = Victim::new();
        let found = refused(victim.super_field(offset, &bytes).mount());
        assert_eq!(found, expected, "{bytes:?} at {offset:#x}");
        assert_eq!(Error::from(Ext4Error::from(found)).name(), Some("EINVAL"));
    }
}

#[test]
fn features_that_must_be_known_are_refused_by_name() {
    let unknown = Incompat::from_bits_retain(0x8000_0000);
    let features = [
        Incompat::COMPRESSION,
        Incompat::JOURNAL_DEV,
        Incompat::MMP,
        Incompat::DIRDATA,
        Incompat::INLINE_DATA,
        Incompat::ENCRYPT,
        Incompat::CASEFOLD,
        unknown,
    ];
    for feature in features {
        let victim = Victim::new();
        let incompat = victim.sound.sb.s_incompat;
        let found = refused(victim.super_field(0x60, &(incompat | feature).bits().to_le_bytes()).mount());
        assert_eq!(found, Refused::Incompat(feature));
        let name = if feature == unknown { "0x80000000" } else { feature.iter_names().next().expect("named").0 };
        assert_eq!(found.to_string(), format!("unsupported incompatible features: {name}"));
    }
    let victim = Victim::new();
    let incompat = victim.sound.sb.s_incompat | Incompat::META_BG;
    victim.super_field(0x60, &incompat.bits().to_le_bytes()).super_field(0x104, &2u32.to_le_bytes());
    assert_eq!(refused(victim.mount()), Refused::FirstMetaBg(2));
}

#[test]
fn recover_without_a_journal_is_left_to_e2fsck() {
    let victim = Victim::new();
    let incompat = victim.sound.sb.s_incompat;
    victim.super_field(0x60, &(incompat | Incompat::RECOVER).bits().to_le_bytes());
    let found = refused(victim.mount());
    assert_eq!(found, Refused::NeedsRecovery);
    assert!(found.to_string().contains("e2fsck"));
    assert!(ext4_fill_super(victim.bdev.clone(), "").is_err());
    let sb = ext4_fill_super(victim.bdev.clone(), "ro,noload").expect("as it is");
    assert!(sb.is_rdonly());
}

#[test]
fn a_journal_elsewhere_is_refused() {
    let with_journal = |inum: u32, dev: u32| {
        let victim = Victim::new();
        let compat = victim.sound.sb.s_compat | Compat::HAS_JOURNAL;
        victim.super_field(0x5c, &compat.bits().to_le_bytes());
        victim.super_field(0xe0, &inum.to_le_bytes()).super_field(0xe4, &dev.to_le_bytes());
        victim
    };
    let victim = with_journal(0, 0x801);
    let found = refused(victim.mount());
    assert_eq!(found, Refused::ExternalJournal(0x801));
    assert!(found.to_string().contains("on another device (0x801)"));
    assert!(ext4_fill_super(victim.bdev.clone(), "ro,noload").is_ok());
    assert_eq!(refused(with_journal(0, 0).mount()), Refused::ExternalJournal(0));
}

#[test]
fn what_could_only_be_spoiled_by_writing_is_mounted_read_only() {
    let mount = |victim: &Victim| ext4_fill_super(victim.bdev.clone(), "rw").expect("readable").is_rdonly();
    assert!(!mount(&Victim::new()));
    let features = [RoCompat::QUOTA, RoCompat::BIGALLOC, RoCompat::READONLY, RoCompat::PROJECT, RoCompat::VERITY];
    for feature in features.into_iter().chain([RoCompat::from_bits_retain(0x4000_0000)]) {
        let victim = Victim::new();
        let ro_compat = victim.sound.sb.s_ro_compat | feature;
        assert!(mount(victim.super_field(0x64, &ro_compat.bits().to_le_bytes())), "{feature}");
    }
}

#[test]
fn a_changed_byte_of_the_super_block_is_a_wrong_checksum() {
    let victim = Victim::new();
    for offset in 0..1024u64 {
        let before = peek(&victim.bdev, 1024 + offset, 1)[0];
        poke(&victim.bdev, 1024 + offset, &[before ^ 0x40]);
        let found = refused(victim.mount());
        poke(&victim.bdev, 1024 + offset, &[before]);
        match offset {
            0x38 | 0x39 => assert!(matches!(found, Refused::Magic(_)), "{offset:#x}"),
            0x175 => assert_eq!(found, Refused::ChecksumType(0x41)),
            _ => assert_eq!(found, Refused::SuperChecksum, "{offset:#x}"),
        }
    }
    assert_eq!(Error::from(Ext4Error::from(Refused::SuperChecksum)), EFSBADCRC);
}

#[test]
fn mount_options_are_refused_by_name() {
    for options in ["frob", "ro,frob", "dio_window=x", "noload", "errors=sometimes"] {
        let error = ext4_fill_super(Victim::new().bdev, options).map(drop);
        assert_eq!(error, Err(Ext4Error::Refused(Refused::MountOption)), "{options}");
    }
}

#[test]
fn devices_too_small_for_a_super_block_are_no_file_system() {
    for len in [512, 1024, 1536, 2048] {
        assert!(Reader::new(&ram_disk(&vec![0; len])).is_err(), "{len}");
    }
}

// ---- group descriptors

#[test]
fn group_descriptors_that_cannot_be_are_corrupt() {
    let all = 8192;
    type Expected = fn(Group) -> Corrupt;
    let cases: [(Change, Expected); 9] = [
        (|raw| put32(raw, 0, 0), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 0, 1), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 0, 8192), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 0x20, 1), Corrupt::BlockBitmapPlace),
        (|raw| put32(raw, 4, 2), Corrupt::InodeBitmapPlace),
        (|raw| put32(raw, 4, u32::MAX), Corrupt::InodeBitmapPlace),
        (|raw| put32(raw, 8, 8190), Corrupt::InodeTablePlace),
        (|raw| put32(raw, 0x28, u32::MAX), Corrupt::InodeTablePlace),
        (|raw| raw.copy_within(0..4, 4), Corrupt::SystemZoneOverlap),
    ];
    assert_eq!(Victim::new().sound.sb.s_blocks_count, all);
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        for group in 0..2 {
            let victim = Victim::new();
            let found = corrupt(victim.group_desc(group, change).mount());
            // Two owners are found where the second is, in the order of the disk.
            let found = if at == 8 { Corrupt::SystemZoneOverlap(Group(group)) } else { found };
            assert_eq!(found, expected(Group(group)), "case {at}");
        }
    }
    for group in 0..2u32 {
        for offset in 0..64 {
            let victim = Victim::new();
            let at = 2048 + u64::from(group) * 64 + offset;
            let before = peek(&victim.bdev, at, 1)[0];
            poke(&victim.bdev, at, &[before ^ 1]);
            assert_eq!(corrupt(victim.mount()), Corrupt::GroupDescChecksum(Group(group)), "byte {offset}");
        }
    }
}

// ---- errors=

#[test]
fn errors_decide_whether_the_mount_goes_on_writing() {
    for (options, stops) in
        [("errors=continue", false), ("errors=remount-ro", true), ("errors=panic", true), ("", false)]
    {
        let victim = Victim::new();
        victim.i_block("hello.txt", 0, &[0, 0]);
        let sb = ext4_fill_super(victim.bdev.clone(), options).expect("the damage is elsewhere");
        let ino = victim.ino("hello.txt");
        let error = ext4_read_inode(&sb, ino, Iget::Normal).map(drop).expect_err("it is damaged");
        assert!(!sb.is_rdonly());
        assert_eq!(sb.ext4_error(error), EFSCORRUPTED);
        assert_eq!(sb.is_rdonly(), stops, "{options}");
        assert_eq!(sb.last_error(), Some(Corrupt::ExtentMagic(ino)));
        // The next e2fsck is told.
        sb.ext4_put_super().expect("the device works");
        let raw = peek(&victim.bdev, 1024, 1024);
        assert_eq!(raw[0x3a] & 2, 2, "{options}: error bit");
        assert_eq!(raw[0x194], 1, "{options}: error count");
        assert_eq!(raw[0x1d0..0x1d4], ino.0.to_le_bytes(), "{options}: inode");
        assert!(victim.mount().is_ok(), "{options}: the checksum is right");
    }
}
