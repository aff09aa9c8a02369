// SPDX-License-Identifier: GPL-2.0-only
//! `ioctl`.
//!
//! FUSE carries those whose number tells how much goes which way, and no pointers. So what the shutdown ioctl is asked for does
//! not get here: by its number it reads, though it writes. It always commits what is in the journal, which is what two of its three
//! ways promise, and the third does not rule out.

use ext4_dio::ext4::InodeFlags;
use ext4_dio::ioctl::{ext4_ioctl_getflags, ext4_ioctl_getversion, ext4_ioctl_setflags};
use ext4_dio::{GoingDown, ext4_force_shutdown};
use fuser::INodeNo;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EINVAL, ENOTTY, EOPNOTSUPP, EPERM};

use crate::fs::Fs;

/// A number as `_IOC` makes it: direction (1: to the kernel, 2: from it), size, type, number.
const fn ioc(direction: u32, size: u32, kind: u8, nr: u32) -> u32 {
    direction << 30 | size << 16 | (kind as u32) << 8 | nr
}

/// The size of C's `long` here, and that of 32-bit programs.
const LONG: u32 = size_of::<libc::c_long>() as u32;

/// `FS_IOC_GETFLAGS`; the value has 32 bits, whatever the number says.
pub const FS_IOC_GETFLAGS: u32 = ioc(2, LONG, b'f', 1);
/// `FS_IOC32_GETFLAGS`.
pub const FS_IOC32_GETFLAGS: u32 = ioc(2, 4, b'f', 1);
/// `FS_IOC_SETFLAGS`.
pub const FS_IOC_SETFLAGS: u32 = ioc(1, LONG, b'f', 2);
/// `FS_IOC32_SETFLAGS`.
pub const FS_IOC32_SETFLAGS: u32 = ioc(1, 4, b'f', 2);
/// `FS_IOC_GETVERSION`.
pub const FS_IOC_GETVERSION: u32 = ioc(2, LONG, b'v', 1);
/// Bytes in `struct fsxattr`: flags, then extent size, extents, project, extent size of copies, and nothing.
const FSXATTR: usize = 28;
/// `FS_IOC_FSGETXATTR`, which Linux itself asks for before it sets flags.
pub const FS_IOC_FSGETXATTR: u32 = ioc(2, FSXATTR as u32, b'X', 31);
/// `FS_IOC_FSSETXATTR`.
pub const FS_IOC_FSSETXATTR: u32 = ioc(1, FSXATTR as u32, b'X', 32);
/// Flags as `struct fsxattr` has them (`FS_XFLAG_*`), and as the other calls do: immutable, append-only, synchronous, no access times,
/// not to be dumped.
const XFLAGS: [(u32, u32); 5] = [(0x8, 0x10), (0x10, 0x20), (0x20, 0x8), (0x40, 0x80), (0x80, 0x40)];

/// What of `flags` there is in `struct fsxattr`.
fn xflags(flags: InodeFlags) -> u32 {
    XFLAGS.iter().filter(|(_, flag)| flags.bits() & flag != 0).fold(0, |all, (xflag, _)| all | xflag)
}

/// `EXT4_IOC_SHUTDOWN`, `FS_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`.
pub const EXT4_IOC_SHUTDOWN: u32 = ioc(2, 4, b'X', 125);

impl Fs {
    /// `ioctl`: what goes back to the caller. ENOTTY for others, EPERM for a shutdown by who is not root.
    pub fn ioctl(&self, node: INodeNo, uid: u32, cmd: u32, input: &[u8]) -> Result<Vec<u8>> {
        match cmd {
            FS_IOC_GETFLAGS | FS_IOC32_GETFLAGS => {
                let inode = self.inode(node)?;
                Ok(ext4_ioctl_getflags(&inode).bits().to_ne_bytes().to_vec())
            }
            FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS => {
                let flags = u32::from_ne_bytes(*input.first_chunk().ok_or(EINVAL)?);
                let inode = self.inode(node)?;
                self.may_setflags(uid, &inode, flags)?;
                ext4_ioctl_setflags(&inode, InodeFlags::from_bits_retain(flags))?;
                Ok(Vec::new())
            }
            FS_IOC_GETVERSION => {
                let inode = self.inode(node)?;
                Ok(ext4_ioctl_getversion(&inode).to_ne_bytes().to_vec())
            }
            EXT4_IOC_SHUTDOWN if uid != 0 => Err(EPERM),
            EXT4_IOC_SHUTDOWN => {
                ext4_force_shutdown(&self.sb, GoingDown::LogFlush)?;
                Ok(Vec::new())
            }
            FS_IOC_FSGETXATTR => {
                let inode = self.inode(node)?;
                let mut xattr = [0; FSXATTR];
                xattr[..4].copy_from_slice(&xflags(ext4_ioctl_getflags(&inode)).to_ne_bytes());
                Ok(xattr.to_vec())
            }
            FS_IOC_FSSETXATTR => {
                let field =
                    |at: usize| input.get(at..).and_then(|rest| rest.first_chunk()).map(|n| u32::from_ne_bytes(*n));
                let wanted = field(0).ok_or(EINVAL)?;
                // Extent sizes and projects there are not.
                if [4, 12, 16].iter().any(|at| field(*at) != Some(0))
                    || wanted & !XFLAGS.iter().fold(0, |all, (x, _)| all | x) != 0
                {
                    return Err(EOPNOTSUPP);
                }
                let inode = self.inode(node)?;
                let mut flags = ext4_ioctl_getflags(&inode);
                XFLAGS
                    .iter()
                    .for_each(|(xflag, flag)| flags.set(InodeFlags::from_bits_retain(*flag), wanted & xflag != 0));
                self.may_setflags(uid, &inode, flags.bits())?;
                ext4_ioctl_setflags(&inode, flags)?;
                Ok(Vec::new())
            }
            _ => Err(ENOTTY),
        }
    }

    /// Flags change the owner and root; immutable, append-only and data through the journal root alone.
    fn may_setflags(&self, uid: u32, inode: &ext4_dio::IRef, new: u32) -> Result {
        let privileged = InodeFlags::IMMUTABLE | InodeFlags::APPEND | InodeFlags::JOURNAL_DATA;
        let changed = ext4_ioctl_getflags(inode) ^ InodeFlags::from_bits_retain(new);
        let may = uid == 0 || uid == inode.i_uid() && !changed.intersects(privileged);
        if may { Ok(()) } else { Err(EPERM) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_linux_s() {
        assert_eq!(FS_IOC_GETFLAGS as libc::Ioctl, libc::FS_IOC_GETFLAGS);
        assert_eq!(FS_IOC_SETFLAGS as libc::Ioctl, libc::FS_IOC_SETFLAGS);
        assert_eq!(FS_IOC_GETVERSION as libc::Ioctl, libc::FS_IOC_GETVERSION);
        assert_eq!(FS_IOC32_GETFLAGS as libc::Ioctl, libc::FS_IOC32_GETFLAGS);
        assert_eq!(FS_IOC32_SETFLAGS as libc::Ioctl, libc::FS_IOC32_SETFLAGS);
        assert_eq!(EXT4_IOC_SHUTDOWN, 0x8004_587d);
    }
}
