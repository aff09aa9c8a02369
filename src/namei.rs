// SPDX-License-Identifier: GPL-2.0-only
//! `namei.c`: names in directories, and (the VFS's part) paths.

use kernel_shim::alloc::{Arc, GFP_KERNEL, KVec};
use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ESTALE};

use crate::corrupt::{Corrupt, Ext4Error, Ext4Result};
use crate::dir::{DirBlock, DirEntries, Node, dir_blocks, ext4_read_dirblock, is_dx};
use crate::dx::DxPath;
use crate::ext4::*;
use crate::ops::{ext4_error, ext4_iget};
use crate::{IRef, SuperBlock};

/// Longest path in bytes, the terminating zero of C included.
const PATH_MAX: usize = 4096;
/// Symbolic links that one path may lead through.
const MAXSYMLINKS: u32 = 40;

/// The inode that `name` leads to in directory `dir`, or nothing. ENOTDIR, ENAMETOOLONG, EIO, corruptions. The
/// directory must not change meanwhile. Sleeps.
pub fn ext4_find_entry(dir: &impl Node, name: &[u8]) -> Ext4Result<Option<Ino>> {
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
fn is_bad_dx_dir(corrupt: Corrupt) -> bool {
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

fn ext4_dx_find_entry(dir: &impl Node, name: &[u8]) -> Ext4Result<Option<Ino>> {
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

fn search_dirblock(dir: &impl Node, lblk: Lblk, name: &[u8]) -> Ext4Result<Option<Ino>> {
    let bh = ext4_read_dirblock(dir, lblk, DirBlock::Any)?;
    let bytes = bh.read();
    for entry in DirEntries::new(dir.ctx(), &bytes) {
        let entry = entry?;
        if entry.name == name {
            return Ok(Some(entry.inode));
        }
    }
    Ok(None)
}

/// The inode that `name` leads to in directory `dir`, read by `iget`. ENOENT if there is none.
pub fn ext4_lookup<N: Node>(dir: &N, name: &[u8], iget: &mut impl FnMut(Ino) -> Ext4Result<N>) -> Ext4Result<N> {
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

/// The target of a symbolic link. EINVAL for anything else, EIO, ENOMEM, corruptions. Sleeps.
#[doc(alias = "ext4_get_link")]
pub fn ext4_readlink(node: &impl Node) -> Ext4Result<KVec<u8>> {
    let ctx = node.ctx();
    if !node.is_lnk() {
        return Err(EINVAL.into());
    }
    let wrong = Corrupt::SymlinkTarget(ctx.i_ino);
    let len = usize::try_from(node.i_size()).map_err(|_| wrong)?;
    let mut target = KVec::new();
    let mut take = |bytes: &[u8]| -> Ext4Result {
        let bytes = bytes.get(..len).ok_or(wrong)?;
        // To C the target ends at the first zero.
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
        Ok(target.extend_from_slice(bytes.get(..end).unwrap_or_default(), GFP_KERNEL)?)
    };
    if len < EXT4_I_DATA_LEN && !ctx.i_flags.contains(InodeFlags::EXTENTS) {
        take(&node.i_data())?;
    } else {
        let pblk = node.bmap(Lblk(0))?.ok_or(wrong)?;
        take(&ctx.sb.buffers.bread(pblk.0)?.read())?;
    }
    if target.is_empty() { Err(wrong.into()) } else { Ok(target) }
}

/// Follows a path from `root`, with inodes read by `iget`; through a symbolic link at its end only if
/// `follow` says so, or a slash comes behind it.
///
/// ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP after 40 symbolic links, EIO, ENOMEM, corruptions. Directories must not
/// change meanwhile. Sleeps.
#[doc(alias = "path_lookupat")]
pub fn path_lookup<N: Node + Clone>(
    root: &N,
    path: &[u8],
    follow: bool,
    iget: &mut impl FnMut(Ino) -> Ext4Result<N>,
) -> Ext4Result<N> {
    if path.is_empty() {
        return Err(ENOENT.into());
    }
    if path.len() >= PATH_MAX {
        return Err(ENAMETOOLONG.into());
    }
    let root_ino = root.ctx().i_ino;
    // What is left to be followed, and how far we are in it.
    let mut left = KVec::new();
    left.extend_from_slice(path, GFP_KERNEL)?;
    let mut at = 0;
    let mut links = 0;
    let mut here = root.clone();
    while let Some(component) = next_component(&left, at) {
        at = component.end;
        if !here.is_dir() {
            return Err(ENOTDIR.into());
        }
        let name = left.get(component).unwrap_or_default();
        if name == b"." || (name == b".." && here.ctx().i_ino == root_ino) {
            continue;
        }
        let child = ext4_lookup(&here, name, iget)?;
        if !child.is_lnk() || (at == left.len() && !follow) {
            here = child;
            continue;
        }
        links += 1;
        if links > MAXSYMLINKS {
            return Err(ELOOP.into());
        }
        // The target takes the link's place in the path.
        let mut target = ext4_readlink(&child)?;
        if target.first() == Some(&b'/') {
            here = root.clone();
        }
        target.extend_from_slice(left.get(at..).unwrap_or_default(), GFP_KERNEL)?;
        left = target;
        at = 0;
    }
    if left.last() == Some(&b'/') && !here.is_dir() {
        return Err(ENOTDIR.into());
    }
    Ok(here)
}

/// The inode at `path` of a mount, followed from the root and through symbolic links. As [`path_lookup`], with
/// corruptions logged.
pub fn ext4_path_lookup(sb: &Arc<SuperBlock>, path: &[u8]) -> Result<IRef> {
    let root = ext4_iget(sb, EXT4_ROOT_INO)?;
    let found = path_lookup(&root, path, true, &mut |ino| Ok(ext4_iget(sb, ino)?));
    found.map_err(|error| ext4_error(sb, error))
}

/// The next name from `at` on, between slashes.
fn next_component(path: &[u8], at: usize) -> Option<core::ops::Range<usize>> {
    let rest = path.get(at..)?;
    let start = at + rest.iter().position(|byte| *byte != b'/')?;
    let len = path.get(start..)?.iter().position(|byte| *byte == b'/');
    Some(start..len.map_or(path.len(), |len| start + len))
}

#[cfg(test)]
mod tests {
    use super::next_component;

    #[test]
    fn components_are_what_slashes_leave() {
        let names = |path: &'static str| {
            let mut at = 0;
            core::iter::from_fn(move || {
                let range = next_component(path.as_bytes(), at)?;
                at = range.end;
                path.get(range)
            })
        };
        assert!(names("/a//bc/").eq(["a", "bc"]));
        assert!(names("a").eq(["a"]));
        assert!(names("///").eq([] as [&str; 0]));
        assert!(names("").eq([] as [&str; 0]));
    }
}
