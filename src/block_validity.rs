// SPDX-License-Identifier: GPL-2.0-only
//! `block_validity.c`: the blocks that hold the file system's own metadata, so that no file's map can
//! send reads or writes there.

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::fs::buffer::BufferHead;

use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::{Fsblk, Group, Ino};
use crate::extents_status::ExtentStatus;
use crate::sb::{Ext4SbInfo, Geometry};

/// Blocks `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    start: u64,
    end: u64,
    /// The group whose metadata they are, or were counted with.
    group: Group,
    /// The inode whose blocks they are, and nobody else's; 0 for what is no inode's.
    ino: Ino,
}

/// The metadata blocks of a file system.
///
/// # Invariants
///
/// Sorted, without overlaps, neighbours of one owner merged.
#[derive(Default)]
pub struct SystemZone(KVec<Zone>);

impl SystemZone {
    /// How many blocks these are.
    pub(crate) fn blocks(&self) -> u64 {
        self.0.iter().fold(0, |sum, zone| sum.saturating_add(zone.end.saturating_sub(zone.start)))
    }

    /// Super blocks, descriptors, bitmaps and inode tables, after the group descriptors, which are
    /// checked on the way.
    #[doc(alias = "ext4_setup_system_zone")]
    pub(crate) fn setup(geometry: &Geometry, group_desc: &[BufferHead]) -> Ext4Result<Self> {
        let mut zones = KVec::new();
        let mut add = |start: Fsblk, blocks: u32, group: Group| -> Ext4Result {
            if blocks == 0 {
                return Ok(());
            }
            let zone = Zone { start: start.0, end: start.0.saturating_add(u64::from(blocks)), group, ino: Ino(0) };
            // With flex_bg bitmaps and tables of many groups follow each other: keep that short.
            match zones.last_mut() {
                Some(Zone { end, .. }) if *end == zone.start => *end = zone.end,
                _ => zones.push(zone, GFP_KERNEL)?,
            }
            Ok(())
        };
        geometry.for_each_group_desc(group_desc, |group, desc| {
            let first = geometry.ext4_group_first_block_no(group);
            let last = geometry.ext4_group_last_block_no(group);
            let blocks = (last.0 + 1).saturating_sub(first.0).try_into().unwrap_or(u32::MAX);
            add(first, geometry.ext4_num_base_meta_blocks(group).min(blocks), group)?;
            add(desc.block_bitmap, 1, group)?;
            add(desc.inode_bitmap, 1, group)?;
            add(desc.inode_table, geometry.itb_per_group(), group)
        })?;
        Self::merge(zones)
    }

    /// Sorts, and joins what touches. What overlaps belongs to two owners.
    fn merge(mut zones: KVec<Zone>) -> Ext4Result<Self> {
        zones.sort_unstable_by_key(|zone| zone.start);
        let mut kept = 0;
        for i in 1..zones.len() {
            let zone = zones[i];
            if zone.start < zones[kept].end {
                return Err(Corrupt::SystemZoneOverlap(zone.group).into());
            }
            if zone.start == zones[kept].end && zone.ino == zones[kept].ino {
                zones[kept].end = zone.end;
            } else {
                kept += 1;
                zones[kept] = zone;
            }
        }
        // INVARIANT: `kept` is the last of those that were sorted and merged above.
        zones.truncate(kept + 1);
        Ok(Self(zones))
    }

    /// Adds the blocks of a reserved inode, which are written past its map and so must be no other
    /// file's. They were looked up against the zones so far.
    #[doc(alias = "ext4_protect_reserved_inode")]
    pub(crate) fn protect(self, ino: Ino, extents: &[ExtentStatus]) -> Ext4Result<Self> {
        let mut zones = self.0;
        for es in extents {
            let (start, len) = (es.pblk().0, u64::from(es.len()));
            zones.push(Zone { start, end: start.saturating_add(len), group: Group(0), ino }, GFP_KERNEL)?;
        }
        Self::merge(zones)
    }

    /// Whether one of `blocks` blocks from `start` on is metadata, other than that of inode `ino`.
    pub fn overlaps(&self, ino: Ino, start: Fsblk, blocks: u64) -> bool {
        let next = self.0.partition_point(|zone| zone.end <= start.0);
        let end = start.0.saturating_add(blocks);
        let rest = self.0.get(next..).unwrap_or_default();
        rest.iter().take_while(|zone| zone.start < end).any(|zone| zone.ino.0 == 0 || zone.ino != ino)
    }
}

impl Ext4SbInfo {
    /// Whether `blocks` blocks from `start` on, one at least, can be inode `ino`'s: inside the file
    /// system, and no metadata.
    pub fn ext4_inode_block_valid(&self, ino: Ino, start: Fsblk, blocks: u32) -> bool {
        let blocks = u64::from(blocks);
        blocks != 0
            && start.0 > u64::from(self.s_first_data_block)
            && start.0.checked_add(blocks).is_some_and(|end| end <= self.s_blocks_count)
            && !self.system_zone.overlaps(ino, start, blocks)
    }

    /// [`Ext4SbInfo::ext4_inode_block_valid`], as an error that names the inode.
    pub fn check_block_validity(&self, ino: Ino, start: Fsblk, blocks: u32) -> Ext4Result {
        if self.ext4_inode_block_valid(ino, start, blocks) { Ok(()) } else { Err(Corrupt::InodeBlockRange(ino).into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corrupt::Ext4Error;
    use crate::ext4::Lblk;
    use crate::extents_status::EsStatus;

    fn zones(list: &[(u64, u64)]) -> Ext4Result<SystemZone> {
        let mut zones = KVec::new();
        for (start, end) in list {
            zones.push(Zone { start: *start, end: *end, group: Group(*start as u32), ino: Ino(0) }, GFP_KERNEL)?;
        }
        SystemZone::merge(zones)
    }

    #[test]
    fn every_block_of_a_zone_and_none_beside_it() {
        let zone = zones(&[(20, 22), (5, 8), (8, 10)]).expect("no overlaps");
        for start in 0..30 {
            for blocks in 1..30 {
                let expected = (start..start + blocks).any(|b| (5..10).contains(&b) || (20..22).contains(&b));
                assert_eq!(zone.overlaps(Ino(0), Fsblk(start), blocks), expected, "{start}+{blocks}");
            }
        }
        assert!(!zone.overlaps(Ino(0), Fsblk(u64::MAX), 1));
        assert!(!zones(&[]).expect("nothing").overlaps(Ino(0), Fsblk(0), u64::MAX));
    }

    #[test]
    fn a_reserved_inodes_blocks_are_its_own() {
        let journal = ExtentStatus::new(Lblk(0), 4, Fsblk(8), EsStatus::Written).expect("not empty");
        let zone = zones(&[(5, 8), (20, 22)]).and_then(|zone| zone.protect(Ino(8), &[journal])).expect("no overlaps");
        assert!(!zone.overlaps(Ino(8), Fsblk(8), 4));
        assert!(zone.overlaps(Ino(8), Fsblk(7), 2));
        assert!(zone.overlaps(Ino(8), Fsblk(8), 13));
        assert!(zone.overlaps(Ino(9), Fsblk(11), 1));
        assert!(zone.overlaps(Ino(0), Fsblk(11), 1));
        assert!(!zone.overlaps(Ino(9), Fsblk(12), 8));
    }

    #[test]
    fn two_owners_of_a_block_are_an_error() {
        let error = zones(&[(5, 8), (7, 9)]).err();
        assert_eq!(error, Some(Ext4Error::Corrupt(Corrupt::SystemZoneOverlap(Group(7)))));
    }
}
