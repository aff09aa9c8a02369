// SPDX-License-Identifier: GPL-2.0-only
//! `namei.c`: names in directories.
//!
//! What changes a directory is called with its `i_mutex` held, which the caller shows as a [`Locked`], and runs under one journal
//! handle. The VFS's part, locks and checks, is in [`crate::path`].

mod rename;

use core::sync::atomic::Ordering;

use kernel_shim::block::blkdev_issue_flush;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, EIO, EMLINK, ENAMETOOLONG, ENOENT, ENOSPC, ENOTEMPTY, ESTALE};
use kernel_shim::fs::I_MUTEX_NEW;
use kernel_shim::fs::buffer::BufferHead;
use kernel_shim::fs::inode::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

use crate::corrupt::{Corrupt, Ext4Error, Ext4Result};
use crate::dir::{DirBlock, DirEntries, Node, dir_blocks, ext4_read_dirblock, is_dx};
use crate::dirblock::{NewEntry, change_dirblock, ext4_generic_delete_entry, ext4_init_dot_dotdot, init_dirblock};
use crate::dx::{DxPath, add_dirent_to_buf, ext4_dx_add_entry, make_indexed_dir};
use crate::ext4::*;
use crate::ext4_jbd2::{Handle, ext4_journal_start};
use crate::ialloc::{NewInodeSpec, ext4_new_inode};
use crate::iget::{InodeCtx, ext4_mark_inode_dirty, ino_of};
use crate::inode::ext4_map_create_blocks;
use crate::ops::ext4_error;
use crate::orphan::{ORPHAN_CREDITS, ext4_orphan_add, ext4_orphan_del};
use crate::sb::Ext4SbInfo;
use crate::symlink::ext4_init_symlink;
use crate::{Ext4State, IRef, Inode, Locked};

pub use crate::path::walk::path_lookup;
pub use crate::symlink::ext4_readlink;
pub use rename::{RenameEnd, RenameFlags, ext4_rename2};

/// Where a name is.
pub(crate) struct Found {
    /// The directory's block.
    pub(crate) bh: BufferHead,
    /// The entry's place in it.
    pub(crate) offset: usize,
    /// Where the name leads.
    pub(crate) ino: Ino,
}

/// The inode that `name` leads to in directory `dir`, or nothing. ENOTDIR, ENAMETOOLONG, EIO, corruptions. The
/// directory must not change meanwhile. Sleeps.
pub fn ext4_find_entry(dir: &impl Node, name: &[u8]) -> Ext4Result<Option<Ino>> {
    Ok(find_entry(dir, name)?.map(|found| found.ino))
}

/// [`ext4_find_entry`], and the entry's place.
pub(crate) fn find_entry(dir: &impl Node, name: &[u8]) -> Ext4Result<Option<Found>> {
    let ctx = dir.ctx();
    if name.len() > EXT4_NAME_LEN {
        return Err(ENAMETOOLONG.into());
    }
    let blocks = dir_blocks(dir)?;
    // "." and ".." are in no hash tree, but before its root.
    let dots = name == b"." || name == b"..";
    if is_dx(&ctx) && !dots {
        match ext4_dx_find_entry(dir, name) {
            // A tree of another making is no use, but all names can be found without it.
            Err(Ext4Error::Corrupt(corrupt)) if is_bad_dx_dir(corrupt) => ctx.sb.note_corrupt(corrupt),
            found => return found,
        }
    }
    for lblk in 0..if dots { blocks.min(1) } else { blocks } {
        if let Some(found) = search_dirblock(dir, Lblk(lblk), name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Corruptions of a hash tree that make it unusable and leave the entries alone: C's `ERR_BAD_DX_DIR`.
pub(crate) fn is_bad_dx_dir(corrupt: Corrupt) -> bool {
    matches!(
        corrupt,
        Corrupt::DxHash(_)
            | Corrupt::DxFlags(_)
            | Corrupt::DxLevels(_)
            | Corrupt::DxLimit(_)
            | Corrupt::DxCount(_)
            | Corrupt::DxLoop(_)
    )
}

fn ext4_dx_find_entry(dir: &impl Node, name: &[u8]) -> Ext4Result<Option<Found>> {
    let mut path = DxPath::probe(dir, name)?;
    loop {
        if let Some(found) = search_dirblock(dir, path.leaf(dir)?, name)? {
            return Ok(Some(found));
        }
        if !path.next(dir)? {
            return Ok(None);
        }
    }
}

fn search_dirblock(dir: &impl Node, lblk: Lblk, name: &[u8]) -> Ext4Result<Option<Found>> {
    let bh = ext4_read_dirblock(dir, lblk, DirBlock::Any)?;
    let bytes = bh.read();
    let mut entries = DirEntries::new(dir.ctx(), &bytes);
    while let Some(raw) = entries.next_raw() {
        let raw = raw?;
        if let Some(entry) = raw.entry.filter(|entry| entry.name == name) {
            let (offset, ino) = (raw.offset, entry.inode);
            drop(bytes);
            return Ok(Some(Found { bh, offset, ino }));
        }
    }
    Ok(None)
}

/// The inode that `name` leads to in directory `dir`, read by `iget`. ENOENT if there is none.
pub fn ext4_lookup<N>(dir: &impl Node, name: &[u8], iget: &mut impl FnMut(Ino) -> Ext4Result<N>) -> Ext4Result<N> {
    let dir_ino = dir.ctx().i_ino;
    let ino = ext4_find_entry(dir, name)?.ok_or(ENOENT)?;
    if ino == dir_ino && name != b"." && name != b".." {
        return Err(Corrupt::DirEntryLoop(dir_ino).into());
    }
    match iget(ino) {
        // Nobody deletes behind our back: the directory is wrong, not stale.
        Err(Ext4Error::Errno(ESTALE)) => Err(Corrupt::DirEntryDeleted(dir_ino).into()),
        found => found,
    }
}

// ---- credits

/// Most blocks that one change of a file's map and data dirties.
#[doc(alias = "EXT4_DATA_TRANS_BLOCKS")]
pub(crate) fn data_trans_blocks(sb: &Ext4SbInfo) -> u32 {
    const XATTR_TRANS_BLOCKS: u32 = 6;
    let single = if sb.s_incompat.contains(Incompat::EXTENTS) { 20 } else { 8 };
    single + XATTR_TRANS_BLOCKS - 2
}

/// The blocks that splits of a hash tree dirty beside that.
const EXT4_INDEX_EXTRA_TRANS_BLOCKS: u32 = 12;
/// The bitmap, the descriptor and the inode of a new inode.
const NEW_INODE_CREDITS: u32 = 3;

fn create_credits(sb: &Ext4SbInfo) -> u32 {
    data_trans_blocks(sb) + EXT4_INDEX_EXTRA_TRANS_BLOCKS + NEW_INODE_CREDITS + ORPHAN_CREDITS
}

// ---- small things

/// Starts the handle of an operation on a directory, one that waits for its commit if the directory asks for that.
fn start<'s>(dir: &'s Inode, credits: u32) -> Result<Handle<'s>> {
    let mut handle = ext4_journal_start(dir.i_sb().s_fs_info(), credits)?;
    if dir.is_dirsync() {
        handle.sync();
    }
    Ok(handle)
}

/// Ends it: the operation's error, or the journal's.
fn finish<T>(handle: Handle<'_>, dir: &Inode, done: Ext4Result<T>) -> Result<T> {
    let journalled = handle.is_valid();
    let stopped = handle.stop();
    let done = done.map_err(|error| ext4_error(dir.i_sb(), error))?;
    stopped?;
    if !journalled && dir.is_dirsync() {
        // PORT: C writes the blocks that the operation dirtied; here it is all that are dirty.
        dir.i_sb().s_fs_info().buffers.sync_all()?;
        blkdev_issue_flush(dir.i_sb().s_bdev())?;
    }
    Ok(done)
}

/// `i_ctime` becomes now.
#[doc(alias = "inode_set_ctime_current")]
pub(crate) fn ctime_now(inode: &Inode) {
    let now = inode.i_sb().truncate_time(kernel_shim::time::ktime_get_coarse_real());
    inode.set_times(|t| t.i_ctime = now);
}

/// A directory's contents changed: times and version, and the inode is written.
fn dir_changed(handle: &mut Handle<'_>, dir: &Inode) -> Result {
    let now = dir.i_sb().truncate_time(kernel_shim::time::ktime_get_coarse_real());
    dir.set_times(|t| {
        t.i_mtime = now;
        t.i_ctime = now;
    });
    inode_inc_iversion(dir);
    ext4_update_dx_flag(dir);
    note_unsynced(handle, dir);
    ext4_mark_inode_dirty(handle, dir)
}

/// Without a journal fsync of the inode has to write more than its table block: the directory's blocks, for one.
fn note_unsynced(handle: &Handle<'_>, inode: &Inode) {
    if !handle.is_valid() {
        inode.i_private().state_set(Ext4State::UNSYNCED_META);
    }
}

fn inode_inc_iversion(inode: &Inode) {
    inode.i_private().i_version.fetch_add(1, Ordering::Relaxed);
}

/// A flag without its feature goes away with the next change.
fn ext4_update_dx_flag(dir: &Inode) {
    if !dir.i_sb().s_fs_info().s_compat.contains(Compat::DIR_INDEX) {
        dir.i_private().set_flags(InodeFlags::INDEX, false);
    }
}

/// A directory cannot have another subdirectory.
#[doc(alias = "EXT4_DIR_LINK_MAX")]
fn dir_link_max(dir: &Inode) -> bool {
    let uncounted = dir.i_sb().s_fs_info().s_ro_compat.contains(RoCompat::DIR_NLINK) && is_dx(&InodeCtx::of(dir));
    dir.i_nlink() >= u32::from(EXT4_LINK_MAX) && !uncounted
}

/// One link more. A directory with a hash tree that has more than can be counted says 1 from then on.
fn ext4_inc_count(inode: &Inode) {
    let nlink = inode.i_nlink().saturating_add(1);
    let stop = inode.is_dir() && is_dx(&InodeCtx::of(inode)) && (nlink > u32::from(EXT4_LINK_MAX) || nlink == 2);
    inode.set_nlink(if stop { 1 } else { nlink });
}

/// One link less; a directory keeps those for itself, or its 1 for "not counted".
fn ext4_dec_count(inode: &Inode) {
    let nlink = inode.i_nlink();
    if !inode.is_dir() || nlink > 2 {
        inode.set_nlink(nlink.saturating_sub(1));
    }
}

/// Both sizes. Of an inode whose `i_mutex` is held.
pub(crate) fn i_size_set(inode: &Locked<'_>, size: i64) {
    inode.i_size_write(size);
    inode.i_private().i_disksize.store(size, Ordering::Release);
}

/// What directory entries say of an inode's type.
#[doc(alias = "ext4_set_de_type")]
fn de_type(sb: &Ext4SbInfo, i_mode: u32) -> u8 {
    if !sb.s_incompat.contains(Incompat::FILETYPE) {
        return EXT4_FT_UNKNOWN;
    }
    match i_mode & S_IFMT {
        S_IFREG => EXT4_FT_REG_FILE,
        S_IFDIR => EXT4_FT_DIR,
        S_IFCHR => EXT4_FT_CHRDEV,
        S_IFBLK => EXT4_FT_BLKDEV,
        S_IFIFO => EXT4_FT_FIFO,
        S_IFSOCK => EXT4_FT_SOCK,
        S_IFLNK => EXT4_FT_SYMLINK,
        _ => EXT4_FT_UNKNOWN,
    }
}

// ---- blocks of directories

/// Allocates block `lblk` of a directory or a symbolic link, and gets the right to fill it: what it holds means nothing. ENOSPC.
pub(crate) fn bread_new(handle: &mut Handle<'_>, inode: &Inode, lblk: Lblk) -> Ext4Result<BufferHead> {
    let mut map = MapBlocks::new(lblk, 1);
    let n = ext4_map_create_blocks(handle, inode, &mut map, GetBlocks::CREATE)?;
    if n == 0 || !map.m_flags.contains(MapFlags::NEW) {
        return Err(Corrupt::DirNotEmptied(ino_of(inode)).into());
    }
    let bh = handle.sb().buffers.getblk(map.m_pblk.0)?;
    handle.get_create_access(&bh)?;
    Ok(bh)
}

/// Adds a block without names to the end of a directory. ENOSPC, and then nothing has happened. Sleeps.
pub(crate) fn ext4_append(handle: &mut Handle<'_>, dir: &Locked<'_>) -> Ext4Result<(BufferHead, Lblk)> {
    let ctx = InodeCtx::of(dir.inode());
    let lblk = Lblk(dir_blocks(dir.inode())?);
    let size = (u64::from(lblk.0) + 1) << ctx.sb.s_blocksize_bits;
    // The size of a directory has 32 bits, and but for the feature 31.
    if size > i32::MAX as u64 && !ctx.sb.s_incompat.contains(Incompat::LARGEDIR) {
        return Err(ENOSPC.into());
    }
    if dir.inode().bmap(lblk)?.is_some() {
        return Err(Corrupt::DirNotEmptied(ctx.i_ino).into());
    }
    let bh = bread_new(handle, dir, lblk)?;
    init_dirblock(handle, &ctx, &bh)?;
    i_size_set(dir, i64::try_from(size).map_err(|_| ENOSPC)?);
    ext4_mark_inode_dirty(handle, dir)?;
    Ok((bh, lblk))
}

/// Adds a name that is not there. EEXIST, ENOSPC, EIO, ENOMEM, corruptions; then the name is not there. Sleeps.
fn ext4_add_entry(handle: &mut Handle<'_>, dir: &Locked<'_>, name: &[u8], inode: &Inode) -> Ext4Result {
    if name.is_empty() {
        return Err(EINVAL.into());
    }
    let new = NewEntry { inode: ino_of(inode), name, file_type: de_type(handle.sb(), inode.i_mode()) };
    add_entry(handle, dir, &new)?;
    note_unsynced(handle, inode);
    Ok(dir_changed(handle, dir)?)
}

fn add_entry(handle: &mut Handle<'_>, dir: &Locked<'_>, new: &NewEntry<'_>) -> Ext4Result {
    let node = dir.inode();
    let mut fallback = false;
    if is_dx(&InodeCtx::of(node)) {
        match ext4_dx_add_entry(handle, dir, new) {
            // With checksums the tree was meant to be as it is. Without, it may be of another making, and is given up: all
            // names can be found without it.
            Err(Ext4Error::Corrupt(corrupt)) if is_bad_dx_dir(corrupt) && !handle.sb().has_metadata_csum() => {
                handle.sb().note_corrupt(corrupt);
                node.i_private().set_flags(InodeFlags::INDEX, false);
                fallback = true;
                ext4_mark_inode_dirty(handle, node)?;
            }
            done => return done,
        }
    }
    let ctx = InodeCtx::of(node);
    let blocks = dir_blocks(node)?;
    for lblk in 0..blocks {
        let bh = ext4_read_dirblock(node, Lblk(lblk), DirBlock::Any)?;
        if add_dirent_to_buf(handle, &ctx, &bh, new)? {
            return Ok(());
        }
        if blocks == 1 && !fallback && ctx.sb.s_compat.contains(Compat::DIR_INDEX) {
            return make_indexed_dir(handle, dir, &bh, new);
        }
    }
    let (bh, _) = ext4_append(handle, dir)?;
    if add_dirent_to_buf(handle, &ctx, &bh, new)? { Ok(()) } else { Err(ENOSPC.into()) }
}

/// Removes a name that leads to `inode`. ENOENT if it does not, EIO, corruptions. Sleeps.
fn ext4_delete_entry(handle: &mut Handle<'_>, dir: &Inode, name: &[u8], ino: Ino) -> Ext4Result {
    let found = find_entry(dir, name)?.ok_or(ENOENT)?;
    let ctx = InodeCtx::of(dir);
    if found.ino != ino {
        return Err(Corrupt::DirEntryOther(ctx.i_ino).into());
    }
    change_dirblock(handle, &ctx, &found.bh, |area| {
        if ext4_generic_delete_entry(ctx, area, name, ino)? { Ok(()) } else { Err(ENOENT.into()) }
    })
}

/// Whether a directory holds nothing but itself and its parent. EIO, corruptions. Called with its `i_mutex` held. Sleeps.
pub fn ext4_empty_dir(dir: &Inode) -> Ext4Result<bool> {
    let ino = ino_of(dir);
    for lblk in 0..dir_blocks(dir)? {
        let bh = ext4_read_dirblock(dir, Lblk(lblk), DirBlock::Any)?;
        let bytes = bh.read();
        for (at, entry) in DirEntries::new(InodeCtx::of(dir), &bytes).enumerate() {
            let expected: &[u8] = match (lblk, at) {
                (0, 0) => b".",
                (0, 1) => b"..",
                _ => return entry.map(|_| false),
            };
            if entry?.name != expected {
                return Err(Corrupt::DirDots(ino).into());
            }
        }
    }
    Ok(true)
}

// ---- operations

fn spec(i_mode: u32, i_uid: u32, i_gid: u32) -> NewInodeSpec {
    NewInodeSpec { i_mode, i_uid, i_gid }
}

/// Does it again after ENOSPC, as long as a commit may give back what it needs. Between attempts no handle is open.
#[doc(alias = "ext4_should_retry_alloc")]
fn retry_alloc<T>(dir: &Inode, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut retries = 0;
    loop {
        match attempt() {
            Err(ENOSPC) if dir.i_sb().s_fs_info().ext4_should_retry_alloc(&mut retries) => {}
            done => return done,
        }
    }
}

/// Makes an inode, lets `fill` complete it, and gives it a name. If anything fails, nothing is left of it.
fn make(
    dir: &Locked<'_>,
    name: &[u8],
    spec: &NewInodeSpec,
    fill: impl Fn(&mut Handle<'_>, &IRef) -> Ext4Result,
) -> Result<IRef> {
    check_dir(dir, name)?;
    retry_alloc(dir, || make_once(dir, name, spec, &fill))
}

fn make_once(
    dir: &Locked<'_>,
    name: &[u8],
    spec: &NewInodeSpec,
    fill: impl Fn(&mut Handle<'_>, &IRef) -> Ext4Result,
) -> Result<IRef> {
    let mut handle = start(dir.inode(), create_credits(dir.i_sb().s_fs_info()))?;
    let inode = match ext4_new_inode(&mut handle, dir.inode(), spec) {
        Ok(inode) => inode,
        Err(error) => return finish(handle, dir, Err(error.into())),
    };
    let done = fill(&mut handle, &inode)
        .and_then(|()| Ok(ext4_mark_inode_dirty(&mut handle, &inode)?))
        .and_then(|()| ext4_add_entry(&mut handle, dir, name, &inode));
    let done = match done {
        Ok(()) if inode.is_dir() => {
            ext4_inc_count(dir);
            ext4_mark_inode_dirty(&mut handle, dir).map_err(Ext4Error::from)
        }
        Ok(()) => Ok(()),
        Err(error) => {
            // As if it had had a name and lost it. Errors on this way have an error before them.
            inode.set_nlink(0);
            let _ = ext4_orphan_add(&mut handle, &inode);
            let _ = ext4_mark_inode_dirty(&mut handle, &inode);
            Err(error)
        }
    };
    // The handle has stopped when the reference goes, and the inode with it if it has no name.
    finish(handle, dir, done)?;
    Ok(inode)
}

/// What every operation on a name asks first.
fn check_dir(dir: &Locked<'_>, name: &[u8]) -> Result {
    if name.len() > EXT4_NAME_LEN {
        return Err(ENAMETOOLONG);
    }
    // It was removed while we waited for its lock.
    if dir.i_nlink() == 0 { Err(ENOENT) } else { Ok(()) }
}

/// Makes a regular file. `mode` has permissions only.
///
/// EEXIST, ENOENT in a directory that was removed, ENAMETOOLONG, ENOSPC (and nothing is left), EROFS, EIO, ENOMEM,
/// corruptions. Sleeps.
pub fn ext4_create(dir: &Locked<'_>, name: &[u8], mode: u32, uid: u32, gid: u32) -> Result<IRef> {
    make(dir, name, &spec(S_IFREG | mode & 0o7777, uid, gid), |_, _| Ok(()))
}

/// Makes a device, pipe or socket (or a regular file), as the type in `mode` says. `rdev` is a device's number as user
/// space has it. As [`ext4_create`]; EINVAL for other types.
pub fn ext4_mknod(dir: &Locked<'_>, name: &[u8], mode: u32, rdev: u32, uid: u32, gid: u32) -> Result<IRef> {
    let mode = if mode & S_IFMT == 0 { mode | S_IFREG } else { mode };
    if !matches!(mode & S_IFMT, S_IFREG | S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK) {
        return Err(EINVAL);
    }
    let spec = spec(mode & (S_IFMT | 0o7777), uid, gid);
    make(dir, name, &spec, |_, inode| {
        if !inode.is_reg() {
            let rdev = if matches!(mode & S_IFMT, S_IFCHR | S_IFBLK) { rdev } else { 0 };
            init_special_inode(inode, rdev);
        }
        Ok(())
    })
}

/// A device's number goes where others have the block map: in the old form if it fits, in the new one behind that.
fn init_special_inode(inode: &Inode, rdev: u32) {
    let (major, minor) = (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00);
    let mut tree = inode.i_private().i_data_sem.write();
    inode.i_private().set_flags(InodeFlags::EXTENTS, false);
    let data = tree.i_data_mut();
    data.fill(0);
    let (at, value) = if major < 256 && minor < 256 { (0, major << 8 | minor) } else { (4, rdev) };
    if let Some(place) = data.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// A device's number as user space has it, from the place of the block map.
#[doc(alias = "old_decode_dev")]
#[doc(alias = "new_decode_dev")]
pub(crate) fn decode_rdev(i_data: &[u8; EXT4_I_DATA_LEN]) -> u32 {
    let word = |at: usize| i_data.get(at..).and_then(|b| b.first_chunk()).map_or(0, |c| u32::from_le_bytes(*c));
    // The two forms are the same where the old one is used.
    if word(0) != 0 { word(0) & 0xffff } else { word(4) }
}

/// Makes a directory. As [`ext4_create`]; EMLINK.
pub fn ext4_mkdir(dir: &Locked<'_>, name: &[u8], mode: u32, uid: u32, gid: u32) -> Result<IRef> {
    if dir_link_max(dir) {
        return Err(EMLINK);
    }
    let parent = ino_of(dir);
    make(dir, name, &spec(S_IFDIR | mode & 0o7777, uid, gid), |handle, inode| {
        // Nobody else knows it, so this waits for nobody.
        let inode = inode.lock_nested(I_MUTEX_NEW);
        let ctx = InodeCtx::of(inode.inode());
        let (bh, _) = ext4_append(handle, &inode)?;
        let file_type = de_type(ctx.sb, S_IFDIR);
        change_dirblock(handle, &ctx, &bh, |area| {
            Ok(ext4_init_dot_dotdot(area, ctx.i_ino, parent, file_type).ok_or(EIO)?)
        })?;
        inode.set_nlink(2);
        note_unsynced(handle, inode.inode());
        Ok(())
    })
}

/// Makes a symbolic link. As [`ext4_create`]; ENAMETOOLONG for a target that does not fit a block, ENOENT for an empty one.
pub fn ext4_symlink(dir: &Locked<'_>, name: &[u8], target: &[u8], uid: u32, gid: u32) -> Result<IRef> {
    if target.is_empty() {
        return Err(ENOENT);
    }
    if target.len() >= dir.i_sb().s_fs_info().s_blocksize as usize {
        return Err(ENAMETOOLONG);
    }
    make(dir, name, &spec(S_IFLNK | 0o777, uid, gid), |handle, inode| {
        ext4_init_symlink(handle, &inode.lock_nested(I_MUTEX_NEW), target)
    })
}

/// Makes a regular file without a name, near `dir`: an orphan until it is given one by [`ext4_link`]. ENOSPC, EROFS, EIO,
/// ENOMEM. `i_mutex` need not be held. Sleeps.
pub fn ext4_tmpfile(dir: &Inode, mode: u32, uid: u32, gid: u32) -> Result<IRef> {
    let sb = dir.i_sb().s_fs_info();
    let mut handle = ext4_journal_start(sb, NEW_INODE_CREDITS + ORPHAN_CREDITS + 1)?;
    let inode = match ext4_new_inode(&mut handle, dir, &spec(S_IFREG | mode & 0o7777, uid, gid)) {
        Ok(inode) => inode,
        Err(error) => return finish(handle, dir, Err(error.into())),
    };
    inode.set_nlink(0);
    let done = ext4_orphan_add(&mut handle, &inode).and_then(|()| ext4_mark_inode_dirty(&mut handle, &inode));
    finish(handle, dir, done.map_err(Ext4Error::from))?;
    Ok(inode)
}

/// Gives an inode another name, or its first. As [`ext4_create`]; EMLINK beyond 65000.
pub fn ext4_link(inode: &Locked<'_>, dir: &Locked<'_>, name: &[u8]) -> Result {
    check_dir(dir, name)?;
    if inode.i_nlink() >= u32::from(EXT4_LINK_MAX) {
        return Err(EMLINK);
    }
    retry_alloc(dir, || link_once(inode, dir, name))
}

fn link_once(inode: &Locked<'_>, dir: &Locked<'_>, name: &[u8]) -> Result {
    let credits = data_trans_blocks(dir.i_sb().s_fs_info()) + EXT4_INDEX_EXTRA_TRANS_BLOCKS + 1 + ORPHAN_CREDITS;
    let mut handle = start(dir.inode(), credits)?;
    let nlink = inode.i_nlink();
    inode.set_nlink(nlink + 1);
    let done = match ext4_add_entry(&mut handle, dir, name, inode) {
        Ok(()) => {
            ctime_now(inode);
            let dirty = ext4_mark_inode_dirty(&mut handle, inode);
            // It was made without a name, and is no orphan any more.
            let found = if nlink == 0 { ext4_orphan_del(Some(&mut handle), inode) } else { Ok(()) };
            dirty.and(found).map_err(Ext4Error::from)
        }
        Err(error) => {
            inode.set_nlink(nlink);
            Err(error)
        }
    };
    finish(handle, dir, done)
}

/// Removes a name of `inode`, which is no directory. With the last one the inode becomes an orphan, which goes away with the last
/// reference to it: the caller drops its own with no lock held.
///
/// ENOENT, EROFS, EIO, ENOMEM, corruptions. Sleeps.
pub fn ext4_unlink(dir: &Locked<'_>, name: &[u8], inode: &Locked<'_>) -> Result {
    check_dir(dir, name)?;
    let mut handle = start(dir.inode(), data_trans_blocks(dir.i_sb().s_fs_info()) + ORPHAN_CREDITS)?;
    let done = unlink(&mut handle, dir, name, inode);
    finish(handle, dir, done)
}

fn unlink(handle: &mut Handle<'_>, dir: &Locked<'_>, name: &[u8], inode: &Locked<'_>) -> Ext4Result {
    ext4_delete_entry(handle, dir, name, ino_of(inode))?;
    dir_changed(handle, dir)?;
    drop_link(handle, inode)
}

/// One name less: with the last the inode becomes an orphan. Its `i_mutex` is held.
fn drop_link(handle: &mut Handle<'_>, inode: &Inode) -> Ext4Result {
    match inode.i_nlink() {
        0 => handle.sb().note_corrupt(Corrupt::UnlinkedEntry(ino_of(inode))),
        nlink => inode.set_nlink(nlink - 1),
    }
    ctime_now(inode);
    note_unsynced(handle, inode);
    let orphan = if inode.i_nlink() == 0 { ext4_orphan_add(handle, inode) } else { Ok(()) };
    Ok(orphan.and(ext4_mark_inode_dirty(handle, inode))?)
}

/// Removes an empty directory. As [`ext4_unlink`]; ENOTEMPTY.
pub fn ext4_rmdir(dir: &Locked<'_>, name: &[u8], inode: &Locked<'_>) -> Result {
    check_dir(dir, name)?;
    if !ext4_empty_dir(inode.inode()).map_err(|error| ext4_error(dir.i_sb(), error))? {
        return Err(ENOTEMPTY);
    }
    let mut handle = start(dir.inode(), data_trans_blocks(dir.i_sb().s_fs_info()) + ORPHAN_CREDITS)?;
    let done = rmdir(&mut handle, dir, name, inode);
    finish(handle, dir, done)
}

fn rmdir(handle: &mut Handle<'_>, dir: &Locked<'_>, name: &[u8], inode: &Locked<'_>) -> Ext4Result {
    ext4_delete_entry(handle, dir, name, ino_of(inode))?;
    inode_inc_iversion(inode);
    inode.set_nlink(0);
    // Whoever has it open sees nothing in it any more. i_disksize stays: eviction does what is right without.
    inode.i_size_write(0);
    ctime_now(inode);
    note_unsynced(handle, inode);
    let orphan = ext4_orphan_add(handle, inode);
    orphan.and(ext4_mark_inode_dirty(handle, inode))?;
    ext4_dec_count(dir);
    Ok(dir_changed(handle, dir)?)
}
