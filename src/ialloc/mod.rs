// SPDX-License-Identifier: GPL-2.0-only
//! `ialloc.c`: giving out inodes and taking them back.
//!
//! An inode's bit and its group's descriptor change under the [group's lock](crate::mballoc), as those of blocks do. Which group a
//! new inode goes to is in `orlov`.

mod orlov;

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{Arc, GFP_KERNEL};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EEXIST, ENOSPC};
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::fs::inode::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID};
use kernel_shim::fs::{InodeState, InodeTimes, NewInode};
use kernel_shim::testing::trace;
use kernel_shim::time::{Timespec64, ktime_get_coarse_real, ktime_get_real};

use crate::bitmap::{clear_bits, count_clear, ext4_bitmap_csum, next_clear, set_bits};
use crate::checksum::ext4_inode_csum_seed;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::disk::GroupDesc;
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::iget::{Ext4InodeDisk, ext4_mark_inode_dirty, ino_of};
use crate::mballoc::{GroupFlags, ext4_discard_preallocations};
use crate::sb::{Ext4SbInfo, Geometry};
use crate::{Ext4InodeInfo, Ext4State, IRef, Inode};

/// What a new inode is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewInodeSpec {
    /// Type and permissions.
    pub i_mode: u32,
    /// Owner.
    pub i_uid: u32,
    /// Group.
    pub i_gid: u32,
}

/// Flags that a new inode takes over from its directory.
#[doc(alias = "EXT4_FL_INHERITED")]
const FL_INHERITED: u32 = 0x1 // secure deletion
    | 0x2 // undelete
    | 0x4 // compress
    | InodeFlags::SYNC.bits()
    | 0x40 // not dumped
    | InodeFlags::NOATIME.bits()
    | 0x400 // not compressed
    | InodeFlags::JOURNAL_DATA.bits()
    | 0x8000 // tails are not merged
    | DIRSYNC
    | 0x0200_0000 // direct access
    | 0x2000_0000 // project
    | InodeFlags::CASEFOLD.bits();
/// Changes of the directory are synchronous.
const DIRSYNC: u32 = 0x0001_0000;
/// Those that are for directories alone: synchronous changes, top of a hierarchy, project, case folding.
const DIR_ONLY: u32 = DIRSYNC | orlov::TOPDIR.bits() | 0x2000_0000 | InodeFlags::CASEFOLD.bits();
/// Those that inodes other than files and directories have: not dumped, no access times.
#[doc(alias = "EXT4_OTHER_FLMASK")]
const OTHER_FLMASK: u32 = 0x40 | InodeFlags::NOATIME.bits();

/// The flags that an inode of type and permissions `mode` in a directory with `flags` begins with.
#[doc(alias = "ext4_mask_flags")]
fn inherited(mode: u32, flags: InodeFlags) -> InodeFlags {
    let mask = match mode & S_IFMT {
        S_IFDIR => !0,
        S_IFREG => !DIR_ONLY,
        _ => OTHER_FLMASK,
    };
    InodeFlags::from_bits_retain(flags.bits() & FL_INHERITED & mask)
}

impl Geometry {
    /// The group an inode is in, and which of the group's inodes it is.
    pub(crate) fn inode_group(&self, ino: Ino) -> (Group, u32) {
        let index = ino.0.saturating_sub(1);
        (Group(index / self.s_inodes_per_group), index % self.s_inodes_per_group)
    }

    /// The checksum that goes into the descriptor for inode bitmap `map`.
    fn inode_bitmap_csum(&self, map: &[u8]) -> u32 {
        ext4_bitmap_csum(self.s_csum_seed, map, self.s_inodes_per_group, self.s_desc_size)
    }

    /// Extra bytes that a new inode uses: what there are fields for, or more if the super block says so and there is room.
    pub(crate) fn new_extra_isize(&self) -> u16 {
        const FIELDS: u16 = 32;
        let room = self.s_inode_size.saturating_sub(EXT4_GOOD_OLD_INODE_SIZE);
        let wanted = match self.s_ro_compat.contains(RoCompat::EXTRA_ISIZE) {
            true => self.s_want_extra_isize.max(FIELDS),
            false => FIELDS,
        };
        match wanted {
            _ if room < FIELDS => 0,
            wanted if wanted <= room && wanted.is_multiple_of(4) => wanted,
            _ => FIELDS,
        }
    }
}

impl Ext4SbInfo {
    /// A group's inode bitmap, read and checked, or made if the group was never used. As
    /// [`Ext4SbInfo::ext4_read_block_bitmap`].
    pub fn ext4_read_inode_bitmap(&self, group: Group) -> Ext4Result<BufferHead> {
        let place = self.ext4_get_group_desc(group)?.inode_bitmap;
        let init = |_: &GroupDesc, map: &mut [u8]| {
            map.fill(0);
            set_bits(map, self.s_inodes_per_group, (map.len() as u32 * 8).saturating_sub(self.s_inodes_per_group));
        };
        let validate = |desc: &GroupDesc, map: &[u8]| {
            if self.has_metadata_csum() && self.inode_bitmap_csum(map) != desc.inode_bitmap_csum {
                return Err(Corrupt::InodeBitmapChecksum(group).into());
            }
            Ok(())
        };
        self.read_bitmap((group, place), (BgFlags::INODE_UNINIT, GroupFlags::IBITMAP_CORRUPT), init, validate)
    }

    /// The first inode of the group that is free and not reserved.
    fn find_inode_bit(&self, group: Group, map: &[u8]) -> Option<u32> {
        // The first group has the reserved ones.
        let reserved = if group.0 == 0 { self.s_first_ino.saturating_sub(1) } else { 0 };
        let index = next_clear(map, reserved, self.s_inodes_per_group);
        (index < self.s_inodes_per_group).then_some(index)
    }

    /// Takes an inode of the group; nothing if it has none.
    fn take_inode(&self, handle: &mut Handle<'_>, group: Group, is_dir: bool) -> Ext4Result<Option<Ino>> {
        let bitmap = self.ext4_read_inode_bitmap(group)?;
        if self.find_inode_bit(group, &bitmap.read()).is_none() {
            // Unless others are just taking and returning them, the descriptor was wrong.
            let _group = self.ext4_lock_group_desc(group)?;
            let none = self.find_inode_bit(group, &bitmap.read()).is_none();
            if none && self.ext4_get_group_desc(group)?.free_inodes > self.reserved_inodes_free(group, &bitmap.read()) {
                self.ext4_mark_group_bitmap_corrupted(group, GroupFlags::IBITMAP_CORRUPT);
                return Err(Corrupt::InodeBitmapCount(group).into());
            }
            return Ok(None);
        }
        let desc_bh = self.group_desc_bh(group)?;
        handle.get_write_access(&bitmap)?;
        handle.get_write_access(desc_bh)?;
        let (index, fresh_block) = {
            let _group = self.ext4_lock_group_desc(group)?;
            let mut map = bitmap.write();
            let Some(index) = self.find_inode_bit(group, &map) else { return Ok(None) };
            set_bits(&mut map, index, 1);
            let csum = self.inode_bitmap_csum(&map);
            drop(map);
            let mut used = self.s_inodes_per_group;
            self.change_group_desc(group, |desc| {
                if self.has_group_desc_csum() {
                    used = match desc.flags.contains(BgFlags::INODE_UNINIT) {
                        true => 0,
                        false => self.s_inodes_per_group.saturating_sub(desc.itable_unused),
                    };
                    desc.flags.remove(BgFlags::INODE_UNINIT);
                    desc.itable_unused = self.s_inodes_per_group - used.max(index + 1);
                }
                desc.free_inodes = desc.free_inodes.saturating_sub(1);
                desc.used_dirs = desc.used_dirs.saturating_add(u32::from(is_dir)).min(self.s_inodes_per_group);
                desc.inode_bitmap_csum = csum;
            })?;
            // No inode of this one's block of the table was ever in use, and mke2fs may have left it as it was.
            (index, index / self.s_inodes_per_block * self.s_inodes_per_block >= used)
        };
        self.mb.counts.s_freeinodes.fetch_sub(1, Ordering::Relaxed);
        self.mb.counts.s_dirs.fetch_add(i64::from(is_dir), Ordering::Relaxed);
        handle.dirty_metadata(&bitmap)?;
        handle.dirty_metadata(desc_bh)?;
        if fresh_block {
            trace("ext4_new_inode: a fresh block of the table");
            self.zero_table_block(handle, group, index, &bitmap)?;
        }
        Ok(Some(Ino(group.0 * self.s_inodes_per_group + index + 1)))
    }

    /// Reserved inodes that the bitmap of the first group has as free, which are nobody's to take.
    fn reserved_inodes_free(&self, group: Group, map: &[u8]) -> u32 {
        if group.0 != 0 {
            return 0;
        }
        count_clear(map, self.s_first_ino.saturating_sub(1).min(self.s_inodes_per_group))
    }

    /// Fills the block of the inode table that an inode is in with zeros, but for inodes that others have taken meanwhile: those may be
    /// written already, and are written as a whole.
    ///
    /// PORT: C does that when it reads the block (`ext4_get_inode_loc` looks whether its other inodes are in use), and has a thread
    /// that zeroes whole tables after mount (`lazyinit`). Inodes are taken from the first free one on, so no block between
    /// those in use stays as it was.
    fn zero_table_block(&self, handle: &mut Handle<'_>, group: Group, index: u32, bitmap: &BufferHead) -> Ext4Result {
        let block = self.ext4_get_group_desc(group)?.inode_table.0 + u64::from(index / self.s_inodes_per_block);
        let bh = self.buffers.getblk(block)?;
        handle.get_create_access(&bh)?;
        {
            // Whoever takes one from here on writes it afterwards.
            let _group = self.ext4_lock_group_desc(group)?;
            let first = index / self.s_inodes_per_block * self.s_inodes_per_block;
            // As many as a block of 64 KiB has at most.
            let mut free = [true; (1 << 16) / EXT4_GOOD_OLD_INODE_SIZE as usize];
            let map = bitmap.read();
            for (at, free) in (first..first + self.s_inodes_per_block).zip(&mut free) {
                *free = at == index || next_clear(&map, at, at + 1) == at;
            }
            drop(map);
            let mut bytes = bh.write();
            for (raw, _) in bytes.chunks_mut(usize::from(self.s_inode_size)).zip(free).filter(|(_, free)| *free) {
                raw.fill(0);
            }
            bytes.set_uptodate();
        }
        Ok(handle.dirty_metadata(&bh)?)
    }
}

/// An NFS generation for a new inode, which differs from that of those that had its number before.
fn next_generation(sb: &Ext4SbInfo, ino: Ino) -> u32 {
    let n = sb.s_next_generation.fetch_add(1, Ordering::Relaxed);
    let time = ktime_get_real().to_ns() as u64;
    // Each bit of time, counter and number goes to all bits of the result.
    let seed = time ^ u64::from(n) << 32 ^ u64::from(ino.0) << 8 ^ u64::from(sb.s_csum_seed);
    let hash = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((hash ^ hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32) as u32
}

/// Makes an inode near directory `dir`: marks it in bitmap and descriptor, and writes it, empty, with one link (`i_nlink` 1) and
/// the flags it inherits. The caller gives it a name, or takes the link away again, under the same handle.
///
/// ENOSPC, EIO, EFSCORRUPTED. Needs 3 credits: bitmap, descriptor, inode. Sleeps.
#[doc(alias = "__ext4_new_inode")]
pub fn ext4_new_inode(handle: &mut Handle<'_>, dir: &Inode, spec: &NewInodeSpec) -> Result<IRef> {
    let sb = handle.sb();
    let is_dir = spec.i_mode & S_IFMT == S_IFDIR;
    let ino = find_inode(handle, dir, is_dir).map_err(|error| sb.ext4_error(error))?;
    let inode = match new_inode(sb, dir, spec, ino) {
        Ok(inode) => inode,
        Err(error) => {
            if error == EEXIST {
                // Somebody has an inode open that the bitmap says is free. The bit stays set.
                let (group, _) = sb.inode_group(ino);
                sb.ext4_mark_group_bitmap_corrupted(group, GroupFlags::IBITMAP_CORRUPT);
                return Err(sb.ext4_error(Corrupt::InodeDoublyAllocated(ino).into()));
            }
            // Best effort: what fails here is the journal, and then nothing of it reaches the disk.
            let _ = free_ino(handle, ino, is_dir);
            return Err(error);
        }
    };
    if let Err(error) = ext4_mark_inode_dirty(handle, &inode) {
        // It is freed without the handle that the caller has open.
        inode.set_nlink(0);
        inode.put_deferred();
        return Err(error);
    }
    // That there is a file at all is what fdatasync needs most.
    handle.note_inode(inode.i_private(), InodeState::DIRTY_DATASYNC);
    Ok(inode)
}

/// Takes an inode of the best group, or of those behind it.
fn find_inode(handle: &mut Handle<'_>, dir: &Inode, is_dir: bool) -> Ext4Result<Ino> {
    let sb = handle.sb();
    let best = orlov::find_group(sb, dir, is_dir).ok_or(ENOSPC)?;
    let mut bad = None;
    for i in 0..sb.s_groups_count {
        let group = Group(((u64::from(best.0) + u64::from(i)) % u64::from(sb.s_groups_count)) as u32);
        if sb.ext4_get_group_desc(group)?.free_inodes == 0
            || sb.mb.check_group(group, GroupFlags::IBITMAP_CORRUPT).is_err()
        {
            continue;
        }
        match sb.take_inode(handle, group, is_dir) {
            Ok(Some(ino)) => {
                dir.i_private().i_prealloc.set_last_alloc_group(group);
                return Ok(ino);
            }
            Ok(None) => {}
            // A damaged group has no inodes to give; others may.
            Err(crate::corrupt::Ext4Error::Corrupt(corrupt)) => {
                sb.ext4_error(corrupt.into());
                bad.get_or_insert(corrupt);
            }
            Err(error) => return Err(error),
        }
    }
    Err(bad.map_or(ENOSPC.into(), Into::into))
}

/// The inode in memory, in the inode cache.
fn new_inode(sb: &Ext4SbInfo, dir: &Inode, spec: &NewInodeSpec, ino: Ino) -> Result<IRef> {
    let vfs_sb = dir.i_sb();
    let mut i_mode = spec.i_mode;
    let mut i_gid = spec.i_gid;
    if dir.i_mode() & S_ISGID != 0 {
        i_gid = dir.i_gid();
        if i_mode & S_IFMT == S_IFDIR {
            i_mode |= S_ISGID;
        }
    }
    let now = vfs_sb.truncate_time(ktime_get_coarse_real());
    let disk = new_inode_disk(sb, ino, i_mode, (spec.i_uid, i_gid), now, dir.i_private().i_flags());
    let inode = Inode::new(NewInode {
        i_sb: vfs_sb.clone(),
        i_ino: u64::from(ino.0),
        i_mode,
        i_uid: spec.i_uid,
        i_gid,
        i_nlink: 1,
        i_size: 0,
        i_flags: crate::ops::ext4_set_inode_flags(disk.i_flags),
        i_times: disk.i_times,
        i_private: Ext4InodeInfo::new(&disk),
    });
    inode.i_private().state_set(Ext4State::NEW);
    vfs_sb.insert_new_inode(Arc::new(inode, GFP_KERNEL)?)
}

/// The inode as it is going to be on disk.
fn new_inode_disk(
    sb: &Ext4SbInfo,
    ino: Ino,
    mode: u32,
    (i_uid, i_gid): (u32, u32),
    now: Timespec64,
    dir_flags: InodeFlags,
) -> Ext4InodeDisk {
    let mut i_flags = inherited(mode, dir_flags);
    let mut i_data = [0; EXT4_I_DATA_LEN];
    // Special inodes have no map; a short symbolic link has its target there, which takes the flag away again.
    if sb.s_incompat.contains(Incompat::EXTENTS) && matches!(mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK) {
        i_flags |= InodeFlags::EXTENTS;
        ext4_ext_tree_init(&mut i_data);
    }
    let generation = next_generation(sb, ino);
    Ext4InodeDisk {
        i_ino: ino,
        i_mode: mode as u16,
        i_uid,
        i_gid,
        i_links_count: 1,
        i_size: 0,
        i_blocks: 0,
        i_times: InodeTimes { i_atime: now, i_mtime: now, i_ctime: now },
        i_crtime: now,
        i_flags,
        i_generation: generation,
        i_dtime: 0,
        i_version: 1,
        i_extra_isize: sb.new_extra_isize(),
        i_file_acl: Fsblk(0),
        i_data,
        i_csum_seed: ext4_inode_csum_seed(sb.s_csum_seed, ino, generation),
    }
}

/// The root of an extent tree without extents.
pub(crate) fn ext4_ext_tree_init(i_data: &mut [u8; EXT4_I_DATA_LEN]) {
    i_data.fill(0);
    if let Some(mut header) = ExtentHeader::<&mut [u8; 12]>::at_mut(i_data, 0) {
        header.set_eh_magic(EXT4_EXT_MAGIC);
        header.set_eh_max(((EXT4_I_DATA_LEN - ExtentHeader::LEN) / Extent::LEN) as u16);
    }
}

/// Frees an inode that has no blocks any more. Its number may be given out again at once. Needs 2 credits. Sleeps.
///
/// EFSCORRUPTED if it is free already, or reserved; EIO.
pub fn ext4_free_inode(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let sb = handle.sb();
    let ino = ino_of(inode);
    // They are found by its number, which will be somebody else's.
    ext4_discard_preallocations(inode);
    let done = match ino.0 < sb.s_first_ino || ino.0 > sb.s_inodes_count {
        true => Err(Corrupt::InodeNumber(ino).into()),
        false => free_ino(handle, ino, inode.is_dir()),
    };
    done.map_err(|error| sb.ext4_error(error))
}

fn free_ino(handle: &mut Handle<'_>, ino: Ino, is_dir: bool) -> Ext4Result {
    let sb = handle.sb();
    let (group, index) = sb.inode_group(ino);
    let bitmap = sb.ext4_read_inode_bitmap(group)?;
    let desc_bh = sb.group_desc_bh(group)?;
    handle.get_write_access(&bitmap)?;
    handle.get_write_access(desc_bh)?;
    {
        let _group = sb.ext4_lock_group_desc(group)?;
        let mut map = bitmap.write();
        if next_clear(&map, index, index + 1) == index {
            drop(map);
            sb.ext4_mark_group_bitmap_corrupted(group, GroupFlags::IBITMAP_CORRUPT);
            return Err(Corrupt::InodeBitmapDoubleFree(group).into());
        }
        clear_bits(&mut map, index, 1);
        let csum = sb.inode_bitmap_csum(&map);
        drop(map);
        sb.change_group_desc(group, |desc| {
            desc.free_inodes = desc.free_inodes.saturating_add(1).min(sb.s_inodes_per_group);
            desc.used_dirs = desc.used_dirs.saturating_sub(u32::from(is_dir));
            desc.inode_bitmap_csum = csum;
        })?;
    }
    sb.mb.counts.s_freeinodes.fetch_add(1, Ordering::Relaxed);
    sb.mb.counts.s_dirs.fetch_sub(i64::from(is_dir), Ordering::Relaxed);
    handle.dirty_metadata(&bitmap)?;
    Ok(handle.dirty_metadata(desc_bh)?)
}
