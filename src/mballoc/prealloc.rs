// SPDX-License-Identifier: GPL-2.0-only
//! Preallocation: blocks that are taken from the buddies ahead of their use, so that what is written bit by bit lies in one piece.
//!
//! A file that grows gets room for its next blocks (*inode preallocation*); small files share a stretch with others that are
//! written on the same CPU (*locality group*). Nothing of it is on disk: a crash, or the end of the mount, gives it all back.
//!
//! PORT: C keeps used and unused blocks of a preallocation together and tells them apart by the bitmap on disk; here one consists of
//! unused blocks alone, and is cut in two when blocks inside it come into use. C also preallocates in front of what is
//! asked for, here only behind.

use kernel_shim::alloc::GFP_NOFS;
use kernel_shim::percpu::{COPIES as PERCPU_COPIES, CacheAligned, PerCpu};
use kernel_shim::sync::Mutex;

use super::{AllocationRequest, MbFlags, Run};
use crate::Inode;
use crate::chunks::{At, Chunks};
use crate::ext4::Ino;
use crate::iget::ino_of;
use crate::sb::Ext4SbInfo;

/// Lists of inode preallocations; an inode's are all in one.
const SHARDS: usize = 16;
/// Stretches that a CPU keeps for small files.
const LOCALITY_RUNS: usize = 8;
/// Files of up to so many blocks are small.
#[doc(alias = "s_mb_stream_request")]
const MB_DEFAULT_STREAM_THRESHOLD: u64 = 16;
/// Blocks of a stretch for small files.
#[doc(alias = "s_mb_group_prealloc")]
const MB_DEFAULT_GROUP_PREALLOC: u32 = 512;

/// Blocks for those of a file from `lstart` on.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "ext4_prealloc_space")]
struct InodePa {
    ino: Ino,
    lstart: u32,
    run: Run,
}

/// Of the inodes of a shard, sorted by inode and place in the file. A file that is written all over has thousands, each what is left
/// of a larger one.
type InodePas = Chunks<InodePa, 50>;

static_assertions::const_assert!(size_of::<heapless::Vec<InodePa, 50>>() <= 1024);

/// All preallocations of a mount. The locks are taken with none of the allocator's held, and nothing is locked under them.
pub(crate) struct Preallocs {
    inodes: [Mutex<InodePas>; SHARDS],
    #[doc(alias = "ext4_locality_group")]
    locality: PerCpu<Mutex<heapless::Vec<Run, LOCALITY_RUNS>>>,
}

impl Default for Preallocs {
    fn default() -> Self {
        Self {
            inodes: [const { Mutex::named("pa_inode", InodePas::new()) }; SHARDS],
            locality: PerCpu::new(
                [const { CacheAligned(Mutex::named("lg_mutex", heapless::Vec::new())) }; PERCPU_COPIES],
            ),
        }
    }
}

/// What is done with blocks beyond those asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// There are none.
    Nothing,
    /// They are for the file.
    Inode,
    /// They are for small files.
    Group,
}

/// The first that is behind block `logical` of inode `ino`.
fn behind(list: &InodePas, ino: Ino, logical: u32) -> At {
    list.seek(|pa| (pa.ino, pa.lstart) <= (ino, logical))
}

impl Preallocs {
    fn shard(&self, ino: Ino) -> &Mutex<InodePas> {
        &self.inodes[ino.0 as usize % SHARDS]
    }

    /// Takes up to `len` blocks for those from `logical` on, if some are kept for that very block.
    fn take_inode(&self, ino: Ino, logical: u32, len: u32, usable: impl Fn(Run) -> bool) -> Option<Run> {
        let mut list = self.shard(ino).lock();
        let next = behind(&list, ino, logical);
        let at = list.before(next)?;
        let pa = list.get(at).filter(|pa| pa.ino == ino && logical - pa.lstart < pa.run.len && usable(pa.run))?;
        let before = logical - pa.lstart;
        let got = len.min(pa.run.len - before);
        let start = pa.run.start + before;
        let left = pa.run.len - before - got;
        let rest = InodePa { lstart: logical + got, run: Run { start: start + got, len: left, ..pa.run }, ..pa };
        match (before, left) {
            (0, 0) => {
                list.remove(at);
            }
            // The usual one: the file grows.
            (0, _) => *list.get_mut(at)? = rest,
            (_, 0) => list.get_mut(at)?.run.len = before,
            _ => {
                // That may have moved the one in front.
                list.put(next, rest, GFP_NOFS).ok()?;
                let at = list.before(behind(&list, ino, logical))?;
                list.get_mut(at)?.run.len = before;
            }
        }
        Some(Run { start, len: got, ..pa.run })
    }

    /// Takes `len` blocks from a stretch of this CPU's.
    fn take_locality(&self, len: u32, usable: impl Fn(Run) -> bool) -> Option<Run> {
        let mut runs = self.locality.this().lock();
        let at = runs.iter().position(|run| run.len >= len && usable(*run))?;
        let run = runs.get_mut(at)?;
        let taken = Run { len, ..*run };
        run.start += len;
        run.len -= len;
        if run.len == 0 {
            runs.swap_remove(at);
        }
        Some(taken)
    }

    /// Where the next preallocation of the file behind `logical` begins.
    fn next_behind(&self, ino: Ino, logical: u32) -> Option<u32> {
        let list = self.shard(ino).lock();
        list.get(behind(&list, ino, logical)).filter(|pa| pa.ino == ino).map(|pa| pa.lstart)
    }

    /// Keeps blocks, or says no.
    fn keep(&self, ino: Ino, ahead: Ahead, lstart: u32, run: Run) -> Result<(), Run> {
        match ahead {
            Ahead::Nothing => Err(run),
            Ahead::Inode => {
                let mut list = self.shard(ino).lock();
                let at = behind(&list, ino, lstart);
                list.put(at, InodePa { ino, lstart, run }, GFP_NOFS).map_err(|_| run)
            }
            Ahead::Group => {
                let mut runs = self.locality.this().lock();
                if !runs.is_full() {
                    return runs.push(run);
                }
                // In place of the shortest.
                match runs.iter_mut().min_by_key(|run| run.len) {
                    Some(shortest) if shortest.len < run.len => Err(core::mem::replace(shortest, run)),
                    _ => Err(run),
                }
            }
        }
    }

    /// Some blocks of the inode's, or of anybody's.
    fn pop_inode(&self, ino: Ino) -> Option<Run> {
        let mut list = self.shard(ino).lock();
        // From the end of what is the file's: nothing else of it has to move.
        let at = list.before(behind(&list, ino, u32::MAX))?;
        if list.get(at)?.ino != ino {
            return None;
        }
        list.remove(at).map(|pa| pa.run)
    }

    fn pop_any(&self) -> Option<Run> {
        let pa = self.inodes.iter().find_map(|list| list.lock().pop());
        pa.map(|pa| pa.run).or_else(|| self.locality.iter().find_map(|runs| runs.lock().pop()))
    }
}

impl Ext4SbInfo {
    /// Blocks that were preallocated for what is asked now.
    pub(super) fn ext4_mb_use_preallocated(&self, ar: &AllocationRequest<'_>, len: u32, groups: u32) -> Option<Run> {
        if !ar.flags.contains(MbFlags::DATA) {
            return None;
        }
        let usable = |run: Run| run.group.0 < groups;
        let own = self.mb.preallocs.take_inode(ino_of(ar.inode), ar.logical.0, len, usable);
        own.or_else(|| match self.ahead(ar, len) {
            Ahead::Group => self.mb.preallocs.take_locality(len, usable),
            _ => None,
        })
    }

    /// Whether more than what is asked for is taken, and for whom.
    #[doc(alias = "ext4_mb_group_or_file")]
    fn ahead(&self, ar: &AllocationRequest<'_>, len: u32) -> Ahead {
        // Without a writer nobody would give it back at the last close.
        if !ar.flags.contains(MbFlags::DATA) || ar.flags.contains(MbFlags::NOPREALLOC) || ar.inode.i_writecount() == 0 {
            return Ahead::Nothing;
        }
        match self.blocks_of_file(ar, len) {
            0..=MB_DEFAULT_STREAM_THRESHOLD => Ahead::Group,
            _ => Ahead::Inode,
        }
    }

    /// Blocks of the file when this is allocated.
    fn blocks_of_file(&self, ar: &AllocationRequest<'_>, len: u32) -> u64 {
        let size = u64::try_from(ar.inode.i_size()).unwrap_or(0).div_ceil(u64::from(self.s_blocksize));
        size.max(u64::from(ar.logical.0) + u64::from(len))
    }

    /// How many blocks are looked for where `len` are wanted, and what becomes of the rest.
    pub(super) fn ext4_mb_normalize_request(&self, ar: &AllocationRequest<'_>, len: u32) -> (u32, Ahead) {
        let ahead = self.ahead(ar, len);
        let want = match ahead {
            Ahead::Nothing => len,
            Ahead::Group => len.max(MB_DEFAULT_GROUP_PREALLOC),
            Ahead::Inode => {
                let end = self.window_end(ar, len);
                let next = self.mb.preallocs.next_behind(ino_of(ar.inode), ar.logical.0);
                let end = next.map_or(end, |next| end.min(u64::from(next)));
                u32::try_from(end.saturating_sub(u64::from(ar.logical.0))).unwrap_or(len).max(len)
            }
        };
        let want = want.min(self.s_blocks_per_group).max(len);
        // Where space is short, others need it more.
        if want == len || self.free_clusters() < 8 * u64::from(want) { (len, Ahead::Nothing) } else { (want, ahead) }
    }

    /// The end, as a block of the file, of the piece that is allocated at once: the larger the file, the more.
    fn window_end(&self, ar: &AllocationRequest<'_>, len: u32) -> u64 {
        let bits = self.s_blocksize_bits;
        let size = self.blocks_of_file(ar, len) << bits;
        let logical = u64::from(ar.logical.0) << bits;
        let aligned = |log: u32| ((logical >> log) + 1) << log;
        let end = match size {
            0..=0x10_0000 => size.next_power_of_two().max(0x4000),
            0x10_0001..=0x40_0000 => aligned(21),
            0x40_0001..=0x80_0000 => aligned(22),
            _ if u64::from(len) << bits <= 0x80_0000 => aligned(23),
            _ => logical + (u64::from(len) << bits),
        };
        end >> bits
    }

    /// Keeps what was found beyond `len` blocks; the rest is what was asked for.
    #[doc(alias = "ext4_mb_new_preallocation")]
    pub(super) fn keep_rest(&self, ar: &AllocationRequest<'_>, run: Run, len: u32, ahead: Ahead) -> Run {
        if run.len <= len {
            return run;
        }
        let rest = Run { start: run.start + len, len: run.len - len, ..run };
        let lstart = ar.logical.0.saturating_add(len);
        if let Err(left) = self.mb.preallocs.keep(ino_of(ar.inode), ahead, lstart, rest) {
            self.give_back(left);
        }
        Run { len, ..run }
    }

    /// Gives back all that is preallocated. Whether there was anything. Sleeps.
    #[doc(alias = "ext4_mb_discard_preallocations")]
    pub(crate) fn discard_all_preallocations(&self) -> bool {
        let mut any = false;
        // What is added meanwhile may stay; an end is needed.
        for _ in 0..1 << 20 {
            let Some(run) = self.mb.preallocs.pop_any() else { break };
            self.give_back(run);
            any = true;
        }
        any
    }
}

/// Gives back what is preallocated for an inode. Starts no handle; no lock of the allocator is held. Sleeps.
pub fn ext4_discard_preallocations(inode: &Inode) {
    let sb = inode.i_sb().s_fs_info();
    // Somebody who writes may go on preallocating.
    for _ in 0..1 << 20 {
        let Some(run) = sb.mb.preallocs.pop_inode(ino_of(inode)) else { break };
        sb.give_back(run);
    }
}
