// SPDX-License-Identifier: GPL-2.0-only
//! `symlink.c`, and what `namei.c` has of symbolic links: where their targets are.

use kernel_shim::alloc::{GFP_KERNEL, KVec};
use kernel_shim::error::code::{EINVAL, EIO, ENAMETOOLONG};

use crate::Locked;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::dir::Node;
use crate::ext4::*;
use crate::ext4_jbd2::Handle;
use crate::iget::ext4_mark_inode_dirty;
use crate::namei::{bread_new, i_size_set};

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

/// Gives a new symbolic link its target: in the inode if it is short, else in a block, journalled like other metadata.
///
/// ENAMETOOLONG for what does not fit a block with the zero behind it, ENOSPC, EIO. Sleeps. The caller writes the inode.
#[doc(alias = "ext4_init_symlink_block")]
pub(crate) fn ext4_init_symlink(handle: &mut Handle<'_>, inode: &Locked<'_>, target: &[u8]) -> Ext4Result {
    let sb = handle.sb();
    if target.len() >= sb.s_blocksize as usize {
        return Err(ENAMETOOLONG.into());
    }
    let size = i64::try_from(target.len()).map_err(|_| ENAMETOOLONG)?;
    if target.len() < EXT4_I_DATA_LEN {
        // Under one hold of the lock the place stops being a block map and becomes the target.
        let mut tree = inode.i_private().i_data_sem.write();
        inode.i_private().set_flags(InodeFlags::EXTENTS, false);
        let data = tree.i_data_mut();
        data.fill(0);
        data.get_mut(..target.len()).ok_or(EIO)?.copy_from_slice(target);
        i_size_set(inode, size);
        return Ok(());
    }
    let bh = bread_new(handle, inode, Lblk(0))?;
    {
        let mut bytes = bh.write();
        bytes.fill(0);
        bytes.get_mut(..target.len()).ok_or(EIO)?.copy_from_slice(target);
        bytes.set_uptodate();
    }
    handle.dirty_metadata(&bh)?;
    i_size_set(inode, size);
    Ok(ext4_mark_inode_dirty(handle, inode)?)
}
