// SPDX-License-Identifier: GPL-2.0-only
//! `fs/ext4/xattr.c`: extended attributes.
//!
//! An inode's attributes are behind its `i_extra_isize`, as far as they fit, and in one block (`i_file_acl`), which inodes with the
//! same attributes may share. The inode's place is tried first. A shared block is never changed: who wants to makes a
//! copy, and takes itself off the old one's count.
//!
//! Lock order: handle, `xattr_sem`, `i_data_sem`, a buffer's lock. `xattr_sem` protects an inode's attributes and
//! `i_file_acl`; the count of a shared block is changed under the buffer's lock.
//!
//! PORT: new blocks are not shared (C's `mbcache`). Access control lists and values in inodes of their own (`ea_inode`) are kept
//! and not understood, as on a mount with `noacl`.

use core::sync::atomic::Ordering;

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::InodeFlags as VfsFlags;
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::sync::lockdep::syscall;

use crate::corrupt::{Corrupt, Ext4Result};
use crate::disk::InodeView;
use crate::ext4::{Compat, Fsblk, Lblk};
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::iget::{ext4_get_inode_loc, ext4_mark_inode_dirty, ino_of, put_inode_csum};
use crate::mballoc::{AllocationRequest, FreeFlags, MbFlags, ext4_free_blocks, ext4_mb_new_blocks};
use crate::setattr::current_time;
use crate::{Ext4State, Inode, Locked};

pub mod area;

use area::{Entry, Place, XattrHeader};

/// Longest name, prefix included, in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value in bytes.
pub const XATTR_SIZE_MAX: usize = 65536;

const INDEX_USER: u8 = 1;
const INDEX_TRUSTED: u8 = 4;
const INDEX_SECURITY: u8 = 6;
/// What stands for which prefix. The first three can be set.
const PREFIXES: [(u8, &[u8]); 3] =
    [(INDEX_USER, b"user."), (INDEX_TRUSTED, b"trusted."), (INDEX_SECURITY, b"security.")];
/// `security.capability`, which a write takes away.
const CAPABILITY: &[u8] = b"capability";

/// Credits for setting one attribute: the inode; a new block with bitmap, descriptor and super block; the old one with its own.
const XATTR_TRANS_BLOCKS: u32 = 10;
/// Credits for [`ext4_xattr_delete_inode`].
pub const XATTR_DELETE_CREDITS: u32 = 5;

/// What [`ext4_setxattr`] insists on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrSet {
    /// Nothing.
    #[default]
    Any,
    /// There is none of this name: else EEXIST.
    #[doc(alias = "XATTR_CREATE")]
    Create,
    /// There is one of this name: else ENODATA.
    #[doc(alias = "XATTR_REPLACE")]
    Replace,
}

/// Index and rest of a whole name.
#[doc(alias = "xattr_resolve_name")]
fn resolve_name(name: &[u8]) -> Result<(u8, &[u8])> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(ERANGE);
    }
    let found = PREFIXES.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)));
    match found {
        // A name ends at its first zero byte.
        Some((_, rest)) if rest.is_empty() || rest.contains(&0) => Err(EINVAL),
        Some(found) => Ok(found),
        None => Err(EOPNOTSUPP),
    }
}

// ---- the two places

/// The part of an inode that is for attributes; none if it has no room for any.
fn read_ibody(inode: &Inode) -> Ext4Result<Option<KVec<u8>>> {
    let sb = inode.i_sb().s_fs_info();
    let (bh, offset) = ext4_get_inode_loc(sb, ino_of(inode))?;
    let Some((from, to)) = ibody_range(inode, offset) else { return Ok(None) };
    let mut copy = KVec::new();
    copy.extend_from_slice(bh.read().get(from..to).ok_or(EIO)?, GFP_KERNEL)?;
    Ok(Some(copy))
}

/// Where in its table block the inode that begins at `offset` has its attributes.
fn ibody_range(inode: &Inode, offset: usize) -> Option<(usize, usize)> {
    let size = usize::from(inode.i_sb().s_fs_info().s_inode_size);
    let extra = usize::from(inode.i_private().i_extra_isize);
    // Without an i_extra_isize it is not known what the rest of the inode is.
    let from = InodeView::LEN + extra;
    (extra != 0 && from + 8 <= size).then_some((offset + from, offset + size))
}

/// Where on the device the attributes in the inode are, and how much room there is for them, in bytes; none if there are none.
pub(crate) fn ext4_xattr_ibody_place(inode: &Inode) -> Result<Option<(u64, u64)>> {
    let sb = inode.i_sb().s_fs_info();
    let (bh, offset) = ext4_get_inode_loc(sb, ino_of(inode)).map_err(|error| sb.ext4_error(error))?;
    let Some((from, to)) = ibody_range(inode, offset) else { return Ok(None) };
    let there = bh.read().get(from..to).is_some_and(area::has_magic);
    Ok(there.then_some(((bh.block() << inode.i_blkbits()) + from as u64, (to - from) as u64)))
}

fn parse_ibody<'a>(inode: &Inode, copy: &'a Option<KVec<u8>>) -> Ext4Result<KVec<Entry<'a>>> {
    match copy {
        Some(copy) if area::has_magic(copy) => area::parse(ino_of(inode), Place::Inode, copy),
        _ => Ok(KVec::new()),
    }
}

/// The inode's attribute block, checked, with a copy of what is in it.
fn read_block(inode: &Inode) -> Ext4Result<Option<(BufferHead, KVec<u8>)>> {
    let block = Fsblk(inode.i_private().i_file_acl.load(Ordering::Acquire));
    if block.0 == 0 {
        return Ok(None);
    }
    let (sb, ino) = (inode.i_sb().s_fs_info(), ino_of(inode));
    if !sb.ext4_inode_block_valid(ino, block, 1) {
        return Err(Corrupt::XattrBlockRange(ino).into());
    }
    let bh = sb.buffers.bread(block.0)?;
    let mut copy = KVec::new();
    copy.extend_from_slice(&bh.read(), GFP_KERNEL)?;
    let head = XattrHeader::<&[u8; 32]>::at(&copy, 0).ok_or(EIO)?;
    if head.h_magic() != area::EXT4_XATTR_MAGIC || head.h_blocks() != 1 || head.h_refcount() == 0 {
        return Err(Corrupt::XattrHeader(ino).into());
    }
    if sb.has_metadata_csum() && head.h_checksum() != area::ext4_xattr_block_csum(sb.s_csum_seed, block, &copy) {
        return Err(Corrupt::XattrBlockChecksum(ino).into());
    }
    Ok(Some((bh, copy)))
}

fn parse_block<'a>(inode: &Inode, block: &'a Option<(BufferHead, KVec<u8>)>) -> Ext4Result<KVec<Entry<'a>>> {
    match block {
        Some((_, copy)) => area::parse(ino_of(inode), Place::Block, copy),
        None => Ok(KVec::new()),
    }
}

/// Calls `f` with the attributes in the inode and with those in the block. Takes `xattr_sem` for reading.
fn with_entries<T>(inode: &Inode, f: impl FnOnce(&[Entry<'_>], &[Entry<'_>]) -> Ext4Result<T>) -> Ext4Result<T> {
    let _sem = inode.i_private().xattr_sem.read();
    let (ibody, block) = (read_ibody(inode)?, read_block(inode)?);
    f(&parse_ibody(inode, &ibody)?, &parse_block(inode, &block)?)
}

// ---- reading

/// Copies the value of attribute `name` (`user.`, `trusted.` or `security.` something) to `buffer`. Returns its length, also
/// for an empty buffer, which asks for nothing else.
///
/// ENODATA, ERANGE for a buffer that is too short or a name that is too long, EOPNOTSUPP for other prefixes and for values
/// that are inodes of their own; EINVAL, EIO, ENOMEM, corruptions. Sleeps.
#[doc(alias = "ext4_xattr_get")]
pub fn ext4_getxattr(inode: &Inode, name: &[u8], buffer: &mut [u8]) -> Result<usize> {
    let _syscall = syscall("ext4_getxattr");
    let (index, rest) = resolve_name(name)?;
    if index == INDEX_USER && !inode.is_reg() && !inode.is_dir() {
        return Err(ENODATA);
    }
    let found = with_entries(inode, |ibody, block| {
        let entry = ibody.iter().chain(block).find(|entry| entry.is(index, rest)).ok_or(ENODATA)?;
        if entry.e_value_inum != 0 {
            return Err(EOPNOTSUPP.into());
        }
        if !buffer.is_empty() {
            buffer.get_mut(..entry.value.len()).ok_or(ERANGE)?.copy_from_slice(entry.value);
        }
        Ok(entry.value.len())
    });
    found.map_err(|error| inode.i_sb().s_fs_info().ext4_error(error))
}

/// The names of all attributes, each with a zero byte behind it. As [`ext4_getxattr`].
pub fn ext4_listxattr(inode: &Inode, buffer: &mut [u8]) -> Result<usize> {
    let _syscall = syscall("ext4_listxattr");
    let query = buffer.is_empty();
    let done = with_entries(inode, |ibody, block| {
        let mut at = 0;
        for entry in ibody.iter().chain(block) {
            let Some((_, prefix)) = PREFIXES.iter().find(|(index, _)| *index == entry.e_name_index) else { continue };
            for part in [*prefix, entry.name, &[0]] {
                if !query {
                    buffer.get_mut(at..at + part.len()).ok_or(ERANGE)?.copy_from_slice(part);
                }
                at += part.len();
            }
        }
        Ok(at)
    });
    done.map_err(|error| inode.i_sb().s_fs_info().ext4_error(error))
}

// ---- changing

/// Sets an attribute. ENODATA, EEXIST, ENOSPC if it does not fit, ERANGE, E2BIG, EINVAL, EOPNOTSUPP, EPERM for immutable and
/// append-only inodes, EROFS, EIO. Takes the right to write, then `i_mutex`; sleeps. Called with no handle open.
#[doc(alias = "ext4_xattr_set")]
pub fn ext4_setxattr(inode: &Inode, name: &[u8], value: &[u8], flags: XattrSet) -> Result {
    let _syscall = syscall("ext4_setxattr");
    if value.len() > XATTR_SIZE_MAX {
        return Err(E2BIG);
    }
    change(inode, name, Some(value), flags)
}

/// Removes an attribute. ENODATA, and as [`ext4_setxattr`].
pub fn ext4_removexattr(inode: &Inode, name: &[u8]) -> Result {
    let _syscall = syscall("ext4_removexattr");
    change(inode, name, None, XattrSet::Replace)
}

fn change(inode: &Inode, name: &[u8], value: Option<&[u8]>, flags: XattrSet) -> Result {
    let sb = inode.i_sb().s_fs_info();
    if sb.is_rdonly() {
        return Err(EROFS);
    }
    // A frozen file system stays as it is (G8).
    let _write = inode.i_sb().start_write();
    let i_mutex = inode.lock();
    if inode.i_flags().intersects(VfsFlags::IMMUTABLE | VfsFlags::APPEND) {
        return Err(EPERM);
    }
    let (index, rest) = resolve_name(name)?;
    if index == INDEX_USER && !inode.is_reg() && !inode.is_dir() {
        return Err(EPERM);
    }
    let done = set_in_own_handle(inode, index, rest, value, flags);
    i_mutex.unlock();
    done
}

/// Under a handle of its own, with `i_mutex` held.
fn set_in_own_handle(inode: &Inode, index: u8, name: &[u8], value: Option<&[u8]>, flags: XattrSet) -> Result {
    let sb = inode.i_sb().s_fs_info();
    let mut retries = 0;
    loop {
        match set_once(inode, index, name, value, flags) {
            // There may be a block for it after a commit, if that is what was missing.
            Err(ENOSPC)
                if value.is_none_or(|value| value.len() < sb.s_blocksize as usize)
                    && sb.ext4_should_retry_alloc(&mut retries) => {}
            done => return done,
        }
    }
}

fn set_once(inode: &Inode, index: u8, name: &[u8], value: Option<&[u8]>, flags: XattrSet) -> Result {
    let mut handle = ext4_journal_start(inode.i_sb().s_fs_info(), XATTR_TRANS_BLOCKS)?;
    if inode.is_sync() {
        handle.sync();
    }
    let done = ext4_xattr_set_handle(&mut handle, inode, index, name, value, flags);
    let stopped = handle.stop();
    done.and(stopped)
}

/// [`ext4_setxattr`] (or, without a value, removal) within the caller's handle, which has credits for 10 blocks. `i_mutex`
/// is held, or nobody knows the inode yet. Takes `xattr_sem` for writing; writes the inode.
pub fn ext4_xattr_set_handle(
    handle: &mut Handle<'_>,
    inode: &Inode,
    index: u8,
    name: &[u8],
    value: Option<&[u8]>,
    flags: XattrSet,
) -> Result {
    let sb = handle.sb();
    if !sb.s_compat.contains(Compat::EXT_ATTR) {
        // PORT: C sets the feature with the first attribute.
        return Err(EOPNOTSUPP);
    }
    // An inode that was never written is all zeros when it is: not after its attributes are there.
    if inode.i_private().state(Ext4State::NEW) {
        ext4_mark_inode_dirty(handle, inode)?;
    }
    {
        let _sem = inode.i_private().xattr_sem.write();
        // Looked for again by the next write.
        inode.i_private().state_take(Ext4State::NOSEC);
        match set_locked(handle, inode, Entry::new(index, name, value.unwrap_or_default()), value.is_some(), flags) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(sb.ext4_error(error)),
        }
        let now = current_time(inode);
        inode.set_times(|times| times.i_ctime = now);
    }
    ext4_mark_inode_dirty(handle, inode)
}

/// With `xattr_sem` held for writing. Whether anything has changed.
fn set_locked(handle: &mut Handle<'_>, inode: &Inode, new: Entry<'_>, set: bool, flags: XattrSet) -> Ext4Result<bool> {
    let (ibody, block) = (read_ibody(inode)?, read_block(inode)?);
    let (in_ibody, in_block) = (parse_ibody(inode, &ibody)?, parse_block(inode, &block)?);
    let find = |entries: &[Entry<'_>]| entries.iter().position(|entry| entry.is(new.e_name_index, new.name));
    let (ibody_at, block_at) = (find(&in_ibody), find(&in_block));
    let old = match (ibody_at, block_at) {
        (Some(at), _) => in_ibody.get(at),
        (None, Some(at)) => in_block.get(at),
        (None, None) => None,
    };
    match (flags, old) {
        (XattrSet::Replace, None) => return Err(ENODATA.into()),
        (XattrSet::Create, Some(_)) => return Err(EEXIST.into()),
        // Its inode would have to be counted down, too.
        (_, Some(old)) if old.e_value_inum != 0 => return Err(EOPNOTSUPP.into()),
        (_, Some(old)) if set && old.value == new.value => return Ok(false),
        _ => {}
    }
    let ibody_len = ibody.as_ref().map_or(0, |copy| copy.len());
    let (to_ibody, to_block) = if set {
        let with = list_with(&in_ibody, ibody_at, new, false)?;
        if ibody_len > 0 && area::fits(Place::Inode, ibody_len, &with) {
            (Some(with), list_if_in(&in_block, block_at)?)
        } else {
            (list_if_in(&in_ibody, ibody_at)?, Some(list_with(&in_block, block_at, new, true)?))
        }
    } else {
        (list_if_in(&in_ibody, ibody_at)?, list_if_in(&in_block, block_at)?)
    };
    // The block first: it may not fit, or there may be no room on the disk, and then nothing has happened.
    if let Some(list) = to_block {
        ext4_xattr_block_set(handle, inode, block.as_ref(), &list)?;
    }
    if let (Some(list), Some(copy)) = (to_ibody, &ibody) {
        ext4_xattr_ibody_set(handle, inode, copy.len(), &list)?;
    }
    Ok(true)
}

/// `entries` but for the one at `at`, if there is such a one.
fn list_if_in<'a>(entries: &[Entry<'a>], at: Option<usize>) -> Ext4Result<Option<KVec<Entry<'a>>>> {
    if at.is_none() { Ok(None) } else { Ok(Some(list_without(entries, at)?)) }
}

/// `entries` but for the one at `at`.
fn list_without<'a>(entries: &[Entry<'a>], at: Option<usize>) -> Ext4Result<KVec<Entry<'a>>> {
    let mut list = KVec::with_capacity(entries.len() + 1, GFP_KERNEL)?;
    for (index, entry) in entries.iter().enumerate() {
        if Some(index) != at {
            list.push(*entry, GFP_KERNEL)?;
        }
    }
    Ok(list)
}

/// `entries` with `new` in the place of the one at `at`, or added: in a block, which is sorted, where it belongs.
fn list_with<'a>(
    entries: &[Entry<'a>],
    at: Option<usize>,
    new: Entry<'a>,
    sorted: bool,
) -> Ext4Result<KVec<Entry<'a>>> {
    let mut list = list_without(entries, at)?;
    let place = match at {
        Some(at) => at,
        None if sorted => list.partition_point(|entry| entry.key() < new.key()),
        None => list.len(),
    };
    list.insert(place, new, GFP_KERNEL)?;
    Ok(list)
}

/// Writes the attributes in the inode.
fn ext4_xattr_ibody_set(handle: &mut Handle<'_>, inode: &Inode, len: usize, list: &[Entry<'_>]) -> Ext4Result {
    let sb = handle.sb();
    let mut filled = KVec::from_elem(0u8, len, GFP_KERNEL)?;
    area::build(Place::Inode, &mut filled, list).ok_or(ENOSPC)?;
    let (bh, offset) = ext4_get_inode_loc(sb, ino_of(inode))?;
    let (from, to) = ibody_range(inode, offset).ok_or(EIO)?;
    handle.get_write_access(&bh)?;
    {
        let mut bytes = bh.write();
        let place = bytes.get_mut(from..to).filter(|place| place.len() == len).ok_or(EIO)?;
        place.copy_from_slice(&filled);
        let raw = bytes.get_mut(offset..to).ok_or(EIO)?;
        put_inode_csum(sb, ino_of(inode), raw, None).ok_or(EIO)?;
    }
    handle.dirty_metadata(&bh)?;
    inode.i_private().state_take(Ext4State::XATTR);
    if !list.is_empty() {
        inode.i_private().state_set(Ext4State::XATTR);
    }
    Ok(())
}

/// Makes `list` what is in the attribute block: in place if the block is the inode's alone, else in a new one.
fn ext4_xattr_block_set(
    handle: &mut Handle<'_>,
    inode: &Inode,
    old: Option<&(BufferHead, KVec<u8>)>,
    list: &[Entry<'_>],
) -> Ext4Result {
    let sb = handle.sb();
    let i_file_acl = &inode.i_private().i_file_acl;
    if list.is_empty() {
        i_file_acl.store(0, Ordering::Release);
        return old.map_or(Ok(()), |(bh, _)| ext4_xattr_release_block(handle, inode, bh));
    }
    let mut filled = KVec::from_elem(0u8, sb.s_blocksize as usize, GFP_KERNEL)?;
    area::build(Place::Block, &mut filled, list).ok_or(ENOSPC)?;
    {
        let mut head = XattrHeader::<&mut [u8; 32]>::at_mut(&mut filled, 0).ok_or(EIO)?;
        head.set_h_magic(area::EXT4_XATTR_MAGIC);
        head.set_h_refcount(1);
        head.set_h_blocks(1);
    }
    let mine = |bytes: &[u8]| XattrHeader::<&[u8; 32]>::at(bytes, 0).is_some_and(|head| head.h_refcount() == 1);
    if let Some((bh, copy)) = old
        // Nobody takes up another's block here, so one that is the inode's alone stays so.
        && mine(copy)
    {
        handle.get_write_access(bh)?;
        fill_block(sb, bh, &mut filled, false)?;
        return Ok(handle.dirty_metadata(bh)?);
    }
    let request = AllocationRequest { inode, goal: Fsblk(0), logical: Lblk(0), len: 1, flags: MbFlags::NOPREALLOC };
    let (block, _) = ext4_mb_new_blocks(handle, &request)?;
    let made = new_block(handle, block, &mut filled);
    if let Err(error) = made {
        // Nobody has seen it.
        let _ = ext4_free_blocks(handle, inode, block, 1, FreeFlags::METADATA);
        return Err(error);
    }
    i_file_acl.store(block.0, Ordering::Release);
    old.map_or(Ok(()), |(bh, _)| ext4_xattr_release_block(handle, inode, bh))
}

fn new_block(handle: &mut Handle<'_>, block: Fsblk, filled: &mut [u8]) -> Ext4Result {
    let sb = handle.sb();
    let bh = sb.buffers.getblk(block.0)?;
    handle.get_create_access(&bh)?;
    fill_block(sb, &bh, filled, true)?;
    Ok(handle.dirty_metadata(&bh)?)
}

fn fill_block(sb: &crate::sb::Ext4SbInfo, bh: &BufferHead, filled: &mut [u8], new: bool) -> Ext4Result {
    put_block_csum(sb, bh, filled).ok_or(EIO)?;
    let mut bytes = bh.write();
    if bytes.len() != filled.len() {
        return Err(EIO.into());
    }
    bytes.copy_from_slice(filled);
    if new {
        bytes.set_uptodate();
    }
    Ok(())
}

fn put_block_csum(sb: &crate::sb::Ext4SbInfo, bh: &BufferHead, bytes: &mut [u8]) -> Option<()> {
    if sb.has_metadata_csum() {
        let csum = area::ext4_xattr_block_csum(sb.s_csum_seed, Fsblk(bh.block()), bytes);
        XattrHeader::<&mut [u8; 32]>::at_mut(bytes, 0)?.set_h_checksum(csum);
    }
    Some(())
}

/// Takes the inode off a block's count, and frees the block if it was the last. The caller has set `i_file_acl`, and writes the inode.
fn ext4_xattr_release_block(handle: &mut Handle<'_>, inode: &Inode, bh: &BufferHead) -> Ext4Result {
    let sb = handle.sb();
    handle.get_write_access(bh)?;
    let shared = {
        // In one piece: two inodes may let go of it at once.
        let mut bytes = bh.write();
        let mut head = XattrHeader::<&mut [u8; 32]>::at_mut(&mut bytes, 0).ok_or(EIO)?;
        let shared = head.h_refcount() > 1;
        if shared {
            let left = head.h_refcount() - 1;
            head.set_h_refcount(left);
            put_block_csum(sb, bh, &mut bytes).ok_or(EIO)?;
        }
        shared
    };
    if !shared {
        return Ok(ext4_free_blocks(handle, inode, Fsblk(bh.block()), 1, FreeFlags::METADATA)?);
    }
    handle.dirty_metadata(bh)?;
    // Every inode that shares it counts it.
    let sectors = u64::from(sb.s_blocksize >> 9);
    let _ = inode.i_private().i_blocks.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(sectors));
    Ok(())
}

/// Gives back the attribute block of an inode that is going away, whose caller writes the inode or frees it. Needs
/// [`XATTR_DELETE_CREDITS`]. Sleeps.
pub fn ext4_xattr_delete_inode(handle: &mut Handle<'_>, inode: &Inode) -> Result {
    let _sem = inode.i_private().xattr_sem.write();
    let deleted = read_block(inode).and_then(|block| match block {
        Some((bh, _)) => {
            inode.i_private().i_file_acl.store(0, Ordering::Release);
            ext4_xattr_release_block(handle, inode, &bh)
        }
        None => Ok(()),
    });
    deleted.map_err(|error| handle.sb().ext4_error(error))
}

// ---- what a write takes away

/// Whether a write has to call [`ext4_file_remove_privs`] first, which starts a handle. Costs one load once it is known that there
/// is no `security.capability`; reads attributes the first time, and then sleeps.
#[doc(alias = "security_inode_need_killpriv")]
#[inline]
pub fn ext4_need_remove_privs(inode: &Inode) -> Result<bool> {
    if inode.i_private().state(Ext4State::NOSEC) { Ok(false) } else { look_for_capability(inode) }
}

#[cold]
fn look_for_capability(inode: &Inode) -> Result<bool> {
    if !inode.is_reg() {
        return Ok(false);
    }
    let found = with_entries(inode, |ibody, block| {
        let found = ibody.iter().chain(block).any(|entry| entry.is(INDEX_SECURITY, CAPABILITY));
        if !found {
            // Noted under xattr_sem: who sets one clears it afterwards.
            inode.i_private().state_set(Ext4State::NOSEC);
        }
        Ok(found)
    });
    found.map_err(|error| inode.i_sb().s_fs_info().ext4_error(error))
}

/// A write or truncate takes `security.capability` away. (Set-user-ID is `file_remove_suid()`'s.) Called with no handle open. Sleeps.
#[doc(alias = "file_remove_privs")]
#[doc(alias = "security_inode_killpriv")]
#[inline]
pub fn ext4_file_remove_privs(i_mutex: &Locked<'_>) -> Result {
    if ext4_need_remove_privs(i_mutex)? { remove_capability(i_mutex) } else { Ok(()) }
}

#[cold]
fn remove_capability(i_mutex: &Locked<'_>) -> Result {
    set_in_own_handle(i_mutex, INDEX_SECURITY, CAPABILITY, None, XattrSet::Replace)
}
