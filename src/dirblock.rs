// SPDX-License-Identifier: GPL-2.0-only
//! Changing the blocks of a directory (in C part of `namei.c`).
//!
//! Entries fill a block without gaps, up to the checksum if there is one: a new one takes what another has too much, a removed one
//! falls to the one before it. So an entry stays where it is until its name is removed, or a hash tree's leaf is split.

use kernel_shim::error::code::{EEXIST, EIO};
use kernel_shim::fs::buffer::BufferHead;

use crate::checksum::{ext4_dirblock_csum, ext4_dx_csum};
use crate::corrupt::{Corrupt, Ext4Result};
use crate::dir::{DirEntries, DirEntry, dx_entries_offset, ext4_dir_rec_len};
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::iget::InodeCtx;
use crate::sb::Ext4SbInfo;

/// Bytes that a block's checksum takes from its entries.
pub(crate) fn tail_len(sb: &Ext4SbInfo) -> usize {
    if sb.has_metadata_csum() { DirEntryTail::LEN } else { 0 }
}

/// The part of a block that entries fill.
fn entries_mut<'a>(sb: &Ext4SbInfo, bytes: &'a mut [u8]) -> Ext4Result<&'a mut [u8]> {
    let len = bytes.len().checked_sub(tail_len(sb)).ok_or(EIO)?;
    Ok(bytes.get_mut(..len).ok_or(EIO)?)
}

/// Changes the entries of a block, which `f` gets without the checksum, and computes that. If `f` fails it has to leave them as
/// they were. EIO. Sleeps.
#[doc(alias = "ext4_handle_dirty_dirblock")]
pub(crate) fn change_dirblock<T>(
    handle: &mut Handle<'_>,
    ctx: &InodeCtx<'_>,
    bh: &BufferHead,
    f: impl FnOnce(&mut [u8]) -> Ext4Result<T>,
) -> Ext4Result<T> {
    handle.get_write_access(bh)?;
    let done = {
        let mut bytes = bh.write();
        let done = f(entries_mut(ctx.sb, &mut bytes)?)?;
        ext4_dirblock_csum_set(ctx, &mut bytes)?;
        done
    };
    bh.set_verified();
    handle.dirty_metadata(bh)?;
    Ok(done)
}

/// The same for a node of a hash tree. `f` gets the whole block.
#[doc(alias = "ext4_handle_dirty_dx_node")]
pub(crate) fn change_dx_node<T>(
    handle: &mut Handle<'_>,
    ctx: &InodeCtx<'_>,
    bh: &BufferHead,
    f: impl FnOnce(&mut [u8]) -> Ext4Result<T>,
) -> Ext4Result<T> {
    handle.get_write_access(bh)?;
    let done = {
        let mut bytes = bh.write();
        let done = f(&mut bytes)?;
        ext4_dx_csum_set(ctx, &mut bytes)?;
        done
    };
    bh.set_verified();
    handle.dirty_metadata(bh)?;
    Ok(done)
}

/// A block that was just allocated becomes one without names. EIO. Sleeps.
#[doc(alias = "ext4_initialize_dirent_tail")]
pub(crate) fn init_dirblock(handle: &mut Handle<'_>, ctx: &InodeCtx<'_>, bh: &BufferHead) -> Ext4Result {
    handle.get_create_access(bh)?;
    {
        let mut bytes = bh.write();
        bytes.fill(0);
        set_entry(entries_mut(ctx.sb, &mut bytes)?, 0, &NewEntry::UNUSED, None).ok_or(EIO)?;
        ext4_dirblock_csum_set(ctx, &mut bytes)?;
        bytes.set_uptodate();
    }
    bh.set_verified();
    Ok(handle.dirty_metadata(bh)?)
}

/// Stores the checksum of a block of entries, where there is one.
fn ext4_dirblock_csum_set(ctx: &InodeCtx<'_>, bytes: &mut [u8]) -> Ext4Result {
    if !ctx.sb.has_metadata_csum() {
        return Ok(());
    }
    let at = bytes.len().checked_sub(DirEntryTail::LEN).ok_or(EIO)?;
    let csum = ext4_dirblock_csum(ctx.i_csum_seed, bytes.get(..at).ok_or(EIO)?);
    let mut tail = DirEntryTail::at_mut(bytes, at).ok_or(EIO)?;
    tail.set_det_reserved_zero1(0);
    tail.set_det_rec_len(DirEntryTail::LEN as u16);
    tail.set_det_reserved_zero2(0);
    tail.set_det_reserved_ft(EXT4_FT_DIR_CSUM);
    tail.set_det_checksum(csum);
    Ok(())
}

/// Stores the checksum of a hash tree's node, where there is one.
fn ext4_dx_csum_set(ctx: &InodeCtx<'_>, bytes: &mut [u8]) -> Ext4Result {
    if !ctx.sb.has_metadata_csum() {
        return Ok(());
    }
    let bad = Corrupt::DxLimit(ctx.i_ino);
    let entries = dx_entries_offset(bytes).ok_or(bad)?;
    let countlimit = DxCountLimit::at(bytes, entries).ok_or(bad)?;
    let end = |entry: u16| entries + usize::from(entry) * DxEntry::LEN;
    let (used, tail) = (end(countlimit.count()), end(countlimit.limit()));
    let reserved = DxTail::at(bytes, tail).ok_or(bad)?.dt_reserved();
    let csum = ext4_dx_csum(ctx.i_csum_seed, bytes.get(..used).ok_or(bad)?, reserved);
    DxTail::<&mut [u8; 8]>::at_mut(bytes, tail).ok_or(bad)?.set_dt_checksum(csum);
    Ok(())
}

/// What an entry is to say.
#[derive(Clone, Copy)]
pub(crate) struct NewEntry<'a> {
    /// Where it leads.
    pub(crate) inode: Ino,
    /// The name: 1 to 255 bytes.
    pub(crate) name: &'a [u8],
    /// Type of the inode; 0 on a file system that does not keep it.
    pub(crate) file_type: u8,
}

impl<'a> From<DirEntry<'a>> for NewEntry<'a> {
    fn from(entry: DirEntry<'a>) -> Self {
        Self { inode: entry.inode, name: entry.name, file_type: entry.file_type }
    }
}

impl NewEntry<'_> {
    const UNUSED: Self = NewEntry { inode: Ino(0), name: b"", file_type: 0 };
}

/// Writes an entry of `rec_len` bytes at `at`, or as long as `area` reaches.
fn set_entry(area: &mut [u8], at: usize, new: &NewEntry<'_>, rec_len: Option<usize>) -> Option<()> {
    let blocksize = area.len();
    let rec_len = rec_len.unwrap_or(blocksize.checked_sub(at)?);
    let mut head = DirEntryHead::at_mut(area, at)?;
    head.set_inode(new.inode.0);
    head.set_rec_len(ext4_rec_len_to_disk(rec_len, blocksize));
    head.set_name_len(u8::try_from(new.name.len()).ok()?);
    head.set_file_type(new.file_type);
    area.get_mut(at + DirEntryHead::LEN..)?.get_mut(..new.name.len())?.copy_from_slice(new.name);
    Some(())
}

/// Where in a block there is room for a name: the offset of an entry that is not in use or longer than it need be. Nothing if
/// there is none; EEXIST if the name is there.
pub(crate) fn ext4_find_dest_de(ctx: InodeCtx<'_>, area: &[u8], name: &[u8]) -> Ext4Result<Option<usize>> {
    let needed = ext4_dir_rec_len(name.len());
    let mut entries = DirEntries::new(ctx, area);
    while let Some(raw) = entries.next_raw() {
        let raw = raw?;
        if raw.entry.is_some_and(|entry| entry.name == name) {
            return Err(EEXIST.into());
        }
        if raw.rec_len - raw.used_len() >= needed {
            return Ok(Some(raw.offset));
        }
    }
    Ok(None)
}

/// Puts an entry where [`ext4_find_dest_de`] found room.
pub(crate) fn ext4_insert_dentry(area: &mut [u8], at: usize, new: &NewEntry<'_>) -> Option<()> {
    let head = DirEntryHead::at(area, at)?;
    let rec_len = ext4_rec_len_from_disk(head.rec_len(), area.len());
    if head.inode() == 0 {
        return set_entry(area, at, new, Some(rec_len));
    }
    let used = ext4_dir_rec_len(usize::from(head.name_len()));
    let rest = rec_len.checked_sub(used)?;
    set_entry(area, at + used, new, Some(rest))?;
    let blocksize = area.len();
    DirEntryHead::<&mut [u8; 8]>::at_mut(area, at)?.set_rec_len(ext4_rec_len_to_disk(used, blocksize));
    Some(())
}

/// Removes a name that leads to `ino` from a block; whether it was there. What it was is overwritten.
pub(crate) fn ext4_generic_delete_entry(ctx: InodeCtx<'_>, area: &mut [u8], name: &[u8], ino: Ino) -> Ext4Result<bool> {
    let bad = Corrupt::DirEntryRecLen(ctx.i_ino);
    let mut before = None;
    let mut entries = DirEntries::new(ctx, area);
    let (at, rec_len) = loop {
        let Some(raw) = entries.next_raw() else { return Ok(false) };
        let raw = raw?;
        if raw.entry.is_some_and(|entry| entry.name == name && entry.inode == ino) {
            break (raw.offset, raw.rec_len);
        }
        before = Some((raw.offset, raw.rec_len));
    };
    let blocksize = area.len();
    area.get_mut(at..at + rec_len).ok_or(bad)?.fill(0);
    match before {
        Some((offset, len)) => {
            let mut head = DirEntryHead::at_mut(area, offset).ok_or(bad)?;
            head.set_rec_len(ext4_rec_len_to_disk(len + rec_len, blocksize));
        }
        // The first of a block has nobody to fall to.
        None => set_entry(area, at, &NewEntry::UNUSED, Some(rec_len)).ok_or(bad)?,
    }
    Ok(true)
}

/// Lets the entry at `at` lead to another inode.
#[doc(alias = "ext4_setent")]
pub(crate) fn set_entry_inode(area: &mut [u8], at: usize, ino: Ino, file_type: u8) -> Option<()> {
    let mut head = DirEntryHead::at_mut(area, at)?;
    head.set_inode(ino.0);
    head.set_file_type(file_type);
    Some(())
}

/// Fills a block with `entries`, close together; the last is as long as the block reaches. Nothing if they do not fit.
#[doc(alias = "dx_pack_dirents")]
#[doc(alias = "dx_move_dirents")]
pub(crate) fn fill_entries<'a>(area: &mut [u8], entries: impl Iterator<Item = NewEntry<'a>>) -> Option<()> {
    area.fill(0);
    let mut last = None;
    let mut at = 0;
    for entry in entries {
        let len = ext4_dir_rec_len(entry.name.len());
        area.get(at..at + len)?;
        set_entry(area, at, &entry, Some(len))?;
        last = Some(at);
        at += len;
    }
    let Some(last) = last else { return set_entry(area, 0, &NewEntry::UNUSED, None) };
    let blocksize = area.len();
    let mut head = DirEntryHead::at_mut(area, last)?;
    head.set_rec_len(ext4_rec_len_to_disk(blocksize - last, blocksize));
    Some(())
}

/// Fills a new directory's first block with the entries for itself and its parent.
pub(crate) fn ext4_init_dot_dotdot(area: &mut [u8], ino: Ino, parent: Ino, file_type: u8) -> Option<()> {
    let dots = [NewEntry { inode: ino, name: b".", file_type }, NewEntry { inode: parent, name: b"..", file_type }];
    fill_entries(area, dots.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(area: &[u8]) -> heapless::Vec<(usize, usize, u32), 8> {
        let mut list = heapless::Vec::new();
        let mut at = 0;
        while let Some(head) = DirEntryHead::at(area, at) {
            list.push((at, usize::from(head.rec_len()), head.inode())).expect("few entries");
            at += usize::from(head.rec_len());
        }
        list
    }

    #[test]
    fn an_entry_takes_what_another_has_too_much() {
        let mut area = [0xaa; 64];
        let a = NewEntry { inode: Ino(12), name: b"a", file_type: 1 };
        fill_entries(&mut area, [a].into_iter()).expect("it fits");
        assert_eq!(names(&area)[..], [(0, 64, 12)]);
        ext4_insert_dentry(&mut area, 0, &NewEntry { inode: Ino(13), name: b"bcdef", file_type: 1 }).expect("it fits");
        assert_eq!(names(&area)[..], [(0, 12, 12), (12, 52, 13)]);
        assert_eq!(&area[20..25], b"bcdef");
        fill_entries(&mut area, core::iter::empty()).expect("nothing fits");
        assert_eq!(names(&area)[..], [(0, 64, 0)]);
        ext4_insert_dentry(&mut area, 0, &a).expect("it fits");
        assert_eq!(names(&area)[..], [(0, 64, 12)]);
        let many = [a; 6];
        assert!(fill_entries(&mut area, many.into_iter()).is_none());
    }
}
