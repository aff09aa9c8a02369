// SPDX-License-Identifier: GPL-2.0-only
//! `ext4_rename2`: a name moves, replaces another, or changes places with it.

use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, EIO, EMLINK, ENOENT, ENOTEMPTY};
use kernel_shim::fs::buffer::BufferHead;

use super::*;
use crate::dirblock::{change_dx_node, set_entry_inode};

bitflags::bitflags! {
    /// How to rename, with Linux's values.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// The new name must not exist.
        #[doc(alias = "RENAME_NOREPLACE")]
        const NOREPLACE = 1;
        /// Both names exist, and change places.
        #[doc(alias = "RENAME_EXCHANGE")]
        const EXCHANGE = 2;
        /// Not supported: EINVAL.
        #[doc(alias = "RENAME_WHITEOUT")]
        const WHITEOUT = 4;
    }
}

/// One end of a rename.
#[derive(Clone, Copy)]
pub struct RenameEnd<'a> {
    /// The directory. Both ends may have the same.
    pub dir: &'a Locked<'a>,
    /// The name in it.
    pub name: &'a [u8],
    /// What the name leads to; nothing if there is no such name.
    pub inode: Option<&'a IRef>,
}

/// An end of which it is known where it leads.
#[derive(Clone, Copy)]
struct End<'a> {
    dir: &'a Locked<'a>,
    name: &'a [u8],
    inode: &'a IRef,
}

impl End<'_> {
    fn ino(&self) -> Ino {
        ino_of(self.inode)
    }
}

/// Renames `old` to `new`.
///
/// The caller holds the mount's rename mutex if the directories differ, and `i_mutex` of what `new` leads to, and, if the directories
/// differ, of what `old` leads to if that is a directory; and has seen that neither end is above the other. It drops its
/// reference to what was replaced with no lock held.
///
/// ENOENT, ENOTEMPTY, EMLINK, ENOSPC, EINVAL for flags, EROFS, EIO, ENOMEM, corruptions; then both names are as they were. Sleeps.
pub fn ext4_rename2(old: RenameEnd<'_>, new: RenameEnd<'_>, flags: RenameFlags) -> Result {
    if flags.contains(RenameFlags::WHITEOUT) || !RenameFlags::all().contains(flags) {
        return Err(EINVAL);
    }
    check_dir(old.dir, old.name)?;
    check_dir(new.dir, new.name)?;
    let from = old.inode.ok_or(ENOENT)?;
    let old = End { dir: old.dir, name: old.name, inode: from };
    check_rename(&old, &new, flags).map_err(|error| ext4_error(old.dir.i_sb(), error))?;
    retry_alloc(new.dir, || rename_once(&old, &new, flags))
}

fn rename_once(old: &End<'_>, new: &RenameEnd<'_>, flags: RenameFlags) -> Result {
    let sb = old.dir.i_sb().s_fs_info();
    let credits = 2 * data_trans_blocks(sb) + 2 * EXT4_INDEX_EXTRA_TRANS_BLOCKS + 2 + ORPHAN_CREDITS;
    let mut handle = start(old.dir.inode(), credits)?;
    if new.dir.is_dirsync() {
        handle.sync();
    }
    let done = match new.inode {
        Some(inode) if flags.contains(RenameFlags::EXCHANGE) => {
            ext4_cross_rename(&mut handle, old, &End { dir: new.dir, name: new.name, inode })
        }
        _ => ext4_rename(&mut handle, old, new),
    };
    finish(handle, if new.dir.is_dirsync() { new.dir } else { old.dir }, done)
}

fn same_dir(old: &End<'_>, new: &Inode) -> bool {
    old.dir.i_ino() == new.i_ino()
}

/// What forbids it, before anything is changed.
fn check_rename(old: &End<'_>, new: &RenameEnd<'_>, flags: RenameFlags) -> Ext4Result {
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    let crossing = !same_dir(old, new.dir);
    let Some(target) = new.inode else {
        if exchange {
            return Err(ENOENT.into());
        }
        // The new directory gets one subdirectory more.
        return if crossing && old.inode.is_dir() && dir_link_max(new.dir) { Err(EMLINK.into()) } else { Ok(()) };
    };
    if exchange {
        let gains = |dir: &Inode, comes: &Inode, goes: &Inode| comes.is_dir() && !goes.is_dir() && dir_link_max(dir);
        let full = gains(new.dir, old.inode, target) || gains(old.dir, target, old.inode);
        return if crossing && full { Err(EMLINK.into()) } else { Ok(()) };
    }
    if old.inode.is_dir() && !ext4_empty_dir(target)? {
        return Err(ENOTEMPTY.into());
    }
    Ok(())
}

/// A directory's block with the entry for its parent, which is checked.
#[doc(alias = "ext4_rename_dir_prepare")]
fn dotdot_block(end: &End<'_>) -> Ext4Result<(BufferHead, usize)> {
    let found = find_entry(&**end.inode, b"..")?.ok_or(Corrupt::DirDots(end.ino()))?;
    if found.ino != ino_of(end.dir) {
        return Err(Corrupt::DirDots(end.ino()).into());
    }
    Ok((found.bh, found.offset))
}

/// The entry for a directory's parent leads to `parent` from now on.
#[doc(alias = "ext4_rename_dir_finish")]
fn set_dotdot(handle: &mut Handle<'_>, dir: &Inode, place: &(BufferHead, usize), parent: Ino) -> Ext4Result {
    let ctx = InodeCtx::of(dir);
    let file_type = de_type(ctx.sb, S_IFDIR);
    let set = |bytes: &mut [u8]| Ok(set_entry_inode(bytes, place.1, parent, file_type).ok_or(EIO)?);
    note_unsynced(handle, dir);
    // The first block of a hash tree is its root.
    if is_dx(&ctx) { change_dx_node(handle, &ctx, &place.0, set) } else { change_dirblock(handle, &ctx, &place.0, set) }
}

/// Lets a name lead to another inode.
fn ext4_setent(handle: &mut Handle<'_>, dir: &Inode, name: &[u8], from: Ino, to: &Inode) -> Ext4Result {
    let ctx = InodeCtx::of(dir);
    let found = find_entry(dir, name)?.ok_or(ENOENT)?;
    if found.ino != from {
        return Err(Corrupt::DirEntryOther(ctx.i_ino).into());
    }
    let file_type = de_type(ctx.sb, to.i_mode());
    change_dirblock(handle, &ctx, &found.bh, |area| {
        Ok(set_entry_inode(area, found.offset, ino_of(to), file_type).ok_or(EIO)?)
    })?;
    Ok(dir_changed(handle, dir)?)
}

fn ext4_rename(handle: &mut Handle<'_>, old: &End<'_>, new: &RenameEnd<'_>) -> Ext4Result {
    let crossing = !same_dir(old, new.dir);
    let dotdot = if crossing && old.inode.is_dir() { Some(dotdot_block(old)?) } else { None };
    // The old name is looked for first, so that nothing has happened if it is not there.
    if find_entry(old.dir.inode(), old.name)?.is_none_or(|found| found.ino != old.ino()) {
        return Err(ENOENT.into());
    }
    match new.inode {
        Some(target) => ext4_setent(handle, new.dir, new.name, ino_of(target), old.inode)?,
        None => ext4_add_entry(handle, new.dir, new.name, old.inode)?,
    }
    ctime_now(old.inode);
    note_unsynced(handle, old.inode);
    ext4_mark_inode_dirty(handle, old.inode)?;
    // Looked for again: the new name may have split the block that it was in.
    ext4_delete_entry(handle, old.dir, old.name, old.ino())?;
    if let Some(place) = &dotdot {
        set_dotdot(handle, old.inode, place, ino_of(new.dir))?;
    }
    if old.inode.is_dir() {
        ext4_dec_count(old.dir);
        if new.inode.is_none() {
            ext4_inc_count(new.dir);
            ext4_mark_inode_dirty(handle, new.dir)?;
        }
    }
    dir_changed(handle, old.dir)?;
    match new.inode {
        // It is empty, and one link less would not do for one that does not count them.
        Some(target) if target.is_dir() => {
            target.set_nlink(1);
            drop_link(handle, target)
        }
        Some(target) => drop_link(handle, target),
        None => Ok(()),
    }
}

fn ext4_cross_rename(handle: &mut Handle<'_>, old: &End<'_>, new: &End<'_>) -> Ext4Result {
    let crossing = !same_dir(old, new.dir);
    let dotdot = |end: &End<'_>| if crossing && end.inode.is_dir() { dotdot_block(end).map(Some) } else { Ok(None) };
    let (old_dotdot, new_dotdot) = (dotdot(old)?, dotdot(new)?);
    ext4_setent(handle, new.dir, new.name, new.ino(), old.inode)?;
    ext4_setent(handle, old.dir, old.name, old.ino(), new.inode)?;
    for (inode, place, parent) in [(old.inode, &old_dotdot, new.dir), (new.inode, &new_dotdot, old.dir)] {
        if let Some(place) = place {
            set_dotdot(handle, inode, place, ino_of(parent))?;
        }
        ctime_now(inode);
        note_unsynced(handle, inode);
        ext4_mark_inode_dirty(handle, inode)?;
    }
    if crossing && old.inode.is_dir() != new.inode.is_dir() {
        let (loses, gains) = if old.inode.is_dir() { (old.dir, new.dir) } else { (new.dir, old.dir) };
        ext4_dec_count(loses);
        ext4_inc_count(gains);
        ext4_mark_inode_dirty(handle, loses)?;
        ext4_mark_inode_dirty(handle, gains)?;
    }
    Ok(())
}
