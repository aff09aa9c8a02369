// SPDX-License-Identifier: GPL-2.0-only
//! The group of a new inode: Orlov's rules for directories, the parent's neighbourhood for all else.
//!
//! Directories at the top are spread over the file system, those below stay near their parent as long as it is not crowded there.
//! With `flex_bg` a flex group counts as one. What is read here may change at any time; the answer is advice.

use core::sync::atomic::Ordering;

use crate::Inode;
use crate::disk::GroupDesc;
use crate::ext4::{EXT4_ROOT_INO, Group, InodeFlags};
use crate::iget::ino_of;
use crate::mballoc::GroupFlags;
use crate::sb::Ext4SbInfo;

/// `i_flags`: the directories in this one have nothing to do with each other.
#[doc(alias = "EXT4_TOPDIR_FL")]
pub(super) const TOPDIR: InodeFlags = InodeFlags::from_bits_retain(0x0002_0000);

/// What a group, or a flex group, has.
#[derive(Default)]
#[doc(alias = "orlov_stats")]
struct Stats {
    free_inodes: u64,
    free_clusters: u64,
    used_dirs: u64,
}

/// A group to begin looking for an inode in; nothing if there is none with a free one.
pub(super) fn find_group(sb: &Ext4SbInfo, parent: &Inode, is_dir: bool) -> Option<Group> {
    let (parent_group, _) = sb.inode_group(ino_of(parent));
    if is_dir { find_group_orlov(sb, parent, parent_group) } else { find_group_other(sb, parent, parent_group) }
}

/// The descriptor, if the group has inodes to give.
fn with_free_inodes(sb: &Ext4SbInfo, group: u32) -> Option<GroupDesc> {
    sb.mb.check_group(Group(group), GroupFlags::IBITMAP_CORRUPT).ok()?;
    sb.ext4_get_group_desc(Group(group)).ok().filter(|desc| desc.free_inodes > 0)
}

#[doc(alias = "get_orlov_stats")]
fn stats(sb: &Ext4SbInfo, flex_group: u32, flex_size: u32) -> Stats {
    let first = flex_group.saturating_mul(flex_size);
    let mut stats = Stats::default();
    for group in first..first.saturating_add(flex_size).min(sb.s_groups_count) {
        let Ok(desc) = sb.ext4_get_group_desc(Group(group)) else { continue };
        stats.used_dirs += u64::from(desc.used_dirs);
        stats.free_clusters += u64::from(desc.free_clusters);
        if sb.mb.check_group(Group(group), GroupFlags::IBITMAP_CORRUPT).is_ok() {
            stats.free_inodes += u64::from(desc.free_inodes);
        }
    }
    stats
}

/// Numbers below `n`, from `first` on and around.
fn ring(first: u32, n: u32) -> impl Iterator<Item = u32> {
    let first = if n == 0 { 0 } else { first % n };
    (first..n).chain(0..first)
}

fn find_group_orlov(sb: &Ext4SbInfo, parent: &Inode, parent_group: Group) -> Option<Group> {
    let flex_size = sb.flex_bg_size();
    let ngroups = sb.s_groups_count.div_ceil(flex_size);
    let n = u64::from(ngroups.max(1));
    let avefreei = sb.free_inodes() / n;
    let avefreec = sb.free_clusters() / n;
    let top = ino_of(parent) == EXT4_ROOT_INO || parent.i_private().i_flags().contains(TOPDIR);
    let found = if top {
        // Where there is room above average, and the fewest directories.
        let mut best: Option<(u64, u32)> = None;
        for group in ring(spread(sb), ngroups) {
            let stats = stats(sb, group, flex_size);
            let room = stats.free_inodes > 0 && stats.free_inodes >= avefreei && stats.free_clusters >= avefreec;
            if room && best.is_none_or(|(dirs, _)| stats.used_dirs < dirs) {
                best = Some((stats.used_dirs, group));
            }
        }
        best.map(|(_, group)| group)
    } else {
        let per_flex = u64::from(flex_size) * u64::from(sb.s_inodes_per_group);
        let blocks = u64::from(flex_size) * u64::from(sb.s_blocks_per_group);
        let max_dirs = sb.mb.directories() / n + per_flex / 16;
        let min_inodes = avefreei.saturating_sub(per_flex / 4).max(1);
        let min_clusters = avefreec.saturating_sub(blocks / 4);
        let last = parent.i_private().i_prealloc.last_alloc_group().unwrap_or(parent_group);
        ring(last.0 / flex_size, ngroups).find(|group| {
            let stats = stats(sb, *group, flex_size);
            stats.used_dirs < max_dirs && stats.free_inodes >= min_inodes && stats.free_clusters >= min_clusters
        })
    };
    // Inodes of a flex group are packed at its beginning.
    let first = found.map(|group| group.saturating_mul(flex_size));
    let packed = first.and_then(|first| {
        (first..first.saturating_add(flex_size).min(sb.s_groups_count)).find(|g| with_free_inodes(sb, *g).is_some())
    });
    packed.map(Group).or_else(|| fallback(sb, parent_group))
}

/// The next group with as many free inodes as the others have; or with any.
fn fallback(sb: &Ext4SbInfo, parent_group: Group) -> Option<Group> {
    let avefreei = sb.free_inodes() / u64::from(sb.s_groups_count.max(1));
    let next = |least: u64| {
        let good = |group: &u32| with_free_inodes(sb, *group).is_some_and(|d| u64::from(d.free_inodes) >= least);
        ring(parent_group.0, sb.s_groups_count).find(good)
    };
    next(avefreei).or_else(|| next(1)).map(Group)
}

fn find_group_other(sb: &Ext4SbInfo, parent: &Inode, parent_group: Group) -> Option<Group> {
    let flex_size = sb.flex_bg_size();
    let ngroups = sb.s_groups_count;
    if flex_size > 1 {
        // The parent's flex group, or the one that its last inode went to; else as for a directory.
        let last = parent.i_private().i_prealloc.last_alloc_group();
        for group in [Some(parent_group), last].into_iter().flatten() {
            let first = group.0 / flex_size * flex_size;
            let mut flex = first..first.saturating_add(flex_size).min(ngroups);
            if let Some(group) = flex.find(|group| with_free_inodes(sb, *group).is_some()) {
                return Some(Group(group));
            }
        }
        return find_group_orlov(sb, parent, parent_group);
    }
    let with_room = |group: u32| with_free_inodes(sb, group).is_some_and(|desc| desc.free_clusters > 0);
    if with_room(parent_group.0) {
        return Some(parent_group);
    }
    // Files of one directory go to the same place, those of others to another.
    let mut group = (u64::from(parent_group.0) + parent.i_ino()) % u64::from(ngroups.max(1));
    let mut step = 1;
    while step < ngroups {
        group = (group + u64::from(step)) % u64::from(ngroups);
        if with_room(group as u32) {
            return Some(Group(group as u32));
        }
        step = step.saturating_mul(2);
    }
    ring(parent_group.0.saturating_add(1), ngroups).find(|group| with_free_inodes(sb, *group).is_some()).map(Group)
}

/// Where to begin spreading directories: elsewhere each time.
///
/// PORT: C takes a hash of the name, which is not known here.
fn spread(sb: &Ext4SbInfo) -> u32 {
    sb.s_next_spread.fetch_add(1, Ordering::Relaxed)
}
