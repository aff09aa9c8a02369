// SPDX-License-Identifier: GPL-2.0-only
//! Where to allocate: the goal, or the next best place.
//!
//! Four rounds over the groups, beginning with the goal's, each less demanding than the one before; see [`Criterion`]. Most
//! groups are passed by after a look at what they last said of themselves, without their lock.

use super::Run;
use super::group::GroupInfo;
use crate::corrupt::Ext4Result;
use crate::ext4::{Fsblk, Group};
use crate::sb::{Ext4SbInfo, Geometry};

/// How many runs that are long enough are compared within a group.
const MB_MAX_TO_SCAN: u32 = 200;

/// What a group must promise to be looked at, and what is taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "criteria")]
enum Criterion {
    /// A power of two is wanted: a free buddy of that order.
    #[doc(alias = "CR_POWER2_ALIGNED")]
    Power2(u32),
    /// Runs are long enough on average: the best one.
    #[doc(alias = "CR_BEST_AVAIL_LEN")]
    Average,
    /// Enough blocks are free: a run that is long enough, if there is one.
    #[doc(alias = "CR_GOAL_LEN_SLOW")]
    Enough,
    /// Any: the longest run of all groups.
    #[doc(alias = "CR_ANY_FREE")]
    Any,
}

impl Geometry {
    /// How many groups have block numbers that files without extents can have.
    pub(crate) fn s_blockfile_groups(&self) -> u32 {
        self.s_groups_count.min(u32::MAX / self.s_blocks_per_group)
    }
}

impl Ext4SbInfo {
    /// Takes up to `len` blocks from the buddies of the first `groups` groups: at `goal` if all are free there, else where they
    /// fit. Nothing if no block can be had; the first error if there may be some in groups that could not be looked at.
    pub(crate) fn ext4_mb_regular_allocator(&self, goal: Fsblk, len: u32, groups: u32) -> Ext4Result<Option<Run>> {
        let goal = self.ext4_get_group_no_and_offset(goal).filter(|(group, _)| group.0 < groups);
        let (first, start) = goal.unwrap_or((Group(0), 0));
        let mut error = None;
        if goal.is_some() {
            match self.take_at(Run { group: first, start, len }) {
                Ok(Some(run)) => return Ok(Some(run)),
                Ok(None) => {}
                Err(e) => error = Some(e),
            }
        }
        let power2 = len.is_power_of_two().then(|| Criterion::Power2(len.ilog2()));
        for criterion in power2.into_iter().chain([Criterion::Average, Criterion::Enough]) {
            for group in ring(first, groups) {
                if self.is_good(group, criterion, len)?
                    && let Some(run) = self.take(group, criterion, len).unwrap_or_else(|e| {
                        error.get_or_insert(e);
                        None
                    })
                {
                    return Ok(Some(run));
                }
            }
        }
        match (self.take_longest(first, len, groups, &mut error)?, error) {
            (None, Some(error)) => Err(error),
            (run, _) => Ok(run),
        }
    }

    /// Whether the group is worth its lock.
    #[doc(alias = "ext4_mb_good_group")]
    fn is_good(&self, group: Group, criterion: Criterion, len: u32) -> Ext4Result<bool> {
        let info: &GroupInfo = self.mb.group(group)?;
        let free = info.bb_free();
        Ok(match criterion {
            _ if free == 0 || self.mb.check_group(group, super::GroupFlags::BBITMAP_CORRUPT).is_err() => false,
            Criterion::Power2(_) => free >= len && info.may_have_run(len),
            Criterion::Average => info.average_run() >= len,
            Criterion::Enough => free >= len && info.may_have_run(len),
            Criterion::Any => true,
        })
    }

    /// Takes the run if all of it is free.
    #[doc(alias = "ext4_mb_find_by_goal")]
    fn take_at(&self, run: Run) -> Ext4Result<Option<Run>> {
        if !self.is_good(run.group, Criterion::Any, 1)? {
            return Ok(None);
        }
        let mut group = self.ext4_lock_group(run.group)?;
        let buddy = group.buddy()?;
        if !buddy.is_free(run.start, run.len) {
            return Ok(None);
        }
        buddy.mark_used(run.start, run.len);
        Ok(Some(run))
    }

    /// Takes `len` blocks, or with [`Criterion::Any`] as many as there are in one piece.
    fn take(&self, group: Group, criterion: Criterion, len: u32) -> Ext4Result<Option<Run>> {
        let mut locked = self.ext4_lock_group(group)?;
        let buddy = locked.buddy()?;
        let found = match criterion {
            Criterion::Power2(order) => buddy.find_order(order).map(|start| (start, len)),
            _ => buddy.find_best(len, MB_MAX_TO_SCAN),
        };
        let found = found.filter(|(_, run)| *run >= len || criterion == Criterion::Any);
        Ok(found.map(|(start, run)| {
            let len = run.min(len);
            buddy.mark_used(start, len);
            Run { group, start, len }
        }))
    }

    /// The last resort: the longest run of all, which is shorter than `len`, or was not there a moment ago.
    #[doc(alias = "ext4_mb_try_best_found")]
    fn take_longest(
        &self,
        first: Group,
        len: u32,
        groups: u32,
        error: &mut Option<crate::corrupt::Ext4Error>,
    ) -> Ext4Result<Option<Run>> {
        // Others may take what was found before it is taken; as often as that happens, somebody gets on.
        loop {
            let mut best: Option<(u32, Group)> = None;
            for group in ring(first, groups) {
                if !self.is_good(group, Criterion::Any, 1)? {
                    continue;
                }
                let longest = self
                    .ext4_lock_group(group)
                    .and_then(|mut group| Ok(group.buddy()?.find_best(len, MB_MAX_TO_SCAN).map_or(0, |(_, run)| run)));
                match longest {
                    Ok(0) => {}
                    Ok(run) if best.is_none_or(|(best, _)| run > best) => best = Some((run, group)),
                    Ok(_) => {}
                    Err(e) => drop(error.get_or_insert(e)),
                }
                if best.is_some_and(|(best, _)| best >= len) {
                    break;
                }
            }
            let Some((_, group)) = best else { return Ok(None) };
            if let Some(run) = self.take(group, Criterion::Any, len)? {
                return Ok(Some(run));
            }
        }
    }
}

/// All groups, `first` first.
fn ring(first: Group, groups: u32) -> impl Iterator<Item = Group> {
    let first = if first.0 < groups { first.0 } else { 0 };
    (first..groups).chain(0..first).map(Group)
}
