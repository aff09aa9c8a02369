// SPDX-License-Identifier: GPL-2.0-only
//! Makes the checksum of a structure right, as a program would that wrote it on purpose.

use ext4_dio::checksum::*;
use ext4_dio::ext4::{Fsblk, Group, Ino};
use ext4_dio::jbd2::disk::{Incompat, blocktype, superblock_csum};
use ext4_dio::xattr::area::ext4_xattr_block_csum;

use super::disk::Patched;
use super::layout::{Kind, Layout, Place};

fn word(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).map_or(0, |b| usize::from(b[0]) | usize::from(b[1]) << 8)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

/// crc32c of `bytes` with the word at `hole` taken as zero.
fn csum_without(seed: u32, bytes: &[u8], hole: usize) -> u32 {
    let crc = ext4_chksum(ext4_chksum(seed, &bytes[..hole]), &[0; 4]);
    ext4_chksum(crc, &bytes[hole + 4..])
}

/// Makes the checksum right that a place has in itself; says which other place has one of it, to be made right then.
pub(super) fn fix(image: &mut Patched, layout: &Layout, place: &Place) -> Option<String> {
    let geo = &layout.geo;
    let mut bytes = image.get(place.at, place.len);
    let block = place.at / geo.block_size as u64;
    let mut next = None;
    match place.kind {
        Kind::Log | Kind::LogData(..) => next = fix_log(image, layout, place, &mut bytes),
        Kind::JournalSuper if layout.log.is_some_and(|log| log.has_csum()) => {
            let csum = superblock_csum(&bytes);
            put(&mut bytes, 252, &csum.to_be_bytes());
        }
        Kind::Group(group) if geo.csum => {
            let csum = ext4_group_desc_csum(geo.seed, Group(group), &bytes);
            put(&mut bytes, 0x1e, &csum.to_le_bytes());
        }
        Kind::Group(group) if geo.gdt_csum => {
            let csum = ext4_group_desc_crc16(&geo.uuid, Group(group), &bytes);
            put(&mut bytes, 0x1e, &csum.to_le_bytes());
        }
        _ if !geo.csum => {}
        Kind::Super => {
            let csum = ext4_superblock_csum(bytes[..].first_chunk().expect("1024 bytes"));
            put(&mut bytes, 1020, &csum.to_le_bytes());
        }
        Kind::BlockBitmap(group) => next = fix_bitmap(image, layout, &bytes, group, geo.blocks_per_group, 0x18),
        Kind::InodeBitmap(group) => next = fix_bitmap(image, layout, &bytes, group, geo.inodes_per_group, 0x1a),
        Kind::Inode(ino) => {
            let extra = word(&bytes, 0x80) as u16;
            let generation = u32::from_le_bytes(bytes[0x64..0x68].try_into().expect("four bytes"));
            let csum = ext4_inode_csum(ext4_inode_csum_seed(geo.seed, Ino(ino), generation), &bytes, extra);
            put(&mut bytes, 0x7c, &csum.to_le_bytes()[..2]);
            if extra >= 4 {
                put(&mut bytes, 0x82, &csum.to_le_bytes()[2..]);
            }
        }
        Kind::Extent => {
            let tail = 12 + 12 * word(&bytes, 4);
            let csum = ext4_extent_block_csum(place.seed, bytes.get(..tail).unwrap_or_default());
            put(&mut bytes, tail, &csum.to_le_bytes());
        }
        Kind::Dir => {
            let tail = bytes.len() - 12;
            let csum = ext4_dirblock_csum(place.seed, &bytes[..tail]);
            put(&mut bytes, tail + 8, &csum.to_le_bytes());
        }
        Kind::DxRoot | Kind::DxNode => {
            let entries = if place.kind == Kind::DxRoot { 0x18 + usize::from(bytes[0x1d]) } else { 8 };
            let (tail, used) = (entries + 8 * word(&bytes, entries), entries + 8 * word(&bytes, entries + 2));
            if let (Some(used), Some(Ok(first))) =
                (bytes.get(..used), bytes.get(tail..tail + 4).map(<[u8; 4]>::try_from))
            {
                let csum = ext4_dx_csum(place.seed, used, u32::from_le_bytes(first));
                put(&mut bytes, tail + 4, &csum.to_le_bytes());
            }
        }
        Kind::Xattr => {
            let csum = ext4_xattr_block_csum(geo.seed, Fsblk(block), &bytes);
            put(&mut bytes, 16, &csum.to_le_bytes());
        }
        Kind::Orphan => {
            let tail = bytes.len() - 8;
            let csum = ext4_chksum(ext4_chksum(place.seed, &block.to_le_bytes()), &bytes[..tail]);
            put(&mut bytes, tail + 4, &csum.to_le_bytes());
        }
        Kind::Data | Kind::Symlink | Kind::Indirect | Kind::JournalSuper | Kind::Group(_) => {}
    }
    image.write(place.at, &bytes);
    next
}

/// A bitmap's checksum is in the group's descriptor.
fn fix_bitmap(image: &mut Patched, layout: &Layout, bytes: &[u8], group: u32, bits: u32, at: usize) -> Option<String> {
    let desc = layout.place(&format!("gd:{group}"))?;
    let csum = ext4_chksum(layout.geo.seed, bytes.get(..bits as usize / 8)?).to_le_bytes();
    image.write(desc.at + at as u64, &csum[..2]);
    if desc.len >= 64 {
        image.write(desc.at + 0x20 + at as u64, &csum[2..]);
    }
    Some(desc.name.clone())
}

fn fix_log(image: &mut Patched, layout: &Layout, place: &Place, bytes: &mut [u8]) -> Option<String> {
    let log = layout.log.as_ref()?;
    if !log.has_csum() {
        return None;
    }
    if let Kind::LogData(descriptor, tag) = place.kind {
        let descriptor = &layout.places[descriptor];
        let mut head = image.get(descriptor.at, descriptor.len);
        let tid = u32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
        let csum = log.tag_csum(tid, bytes);
        if log.incompat.contains(Incompat::CSUM_V3) {
            put(&mut head, tag + 12, &csum.to_be_bytes());
        } else {
            put(&mut head, tag + 4, &csum.to_be_bytes()[2..]);
        }
        image.write(descriptor.at, &head);
        return Some(descriptor.name.clone());
    }
    match u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes")) {
        blocktype::COMMIT => {
            let csum = csum_without(log.csum_seed, bytes, 16);
            put(bytes, 16, &csum.to_be_bytes());
        }
        _ => log.set_tail_csum(bytes),
    }
    None
}
