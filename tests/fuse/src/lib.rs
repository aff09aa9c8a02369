// SPDX-License-Identifier: GPL-2.0-only
//! Mounts an ext4 image or a block device with `ext4-dio`, over FUSE, for ordinary programs to use.
//!
//! ```text
//! ext4-dio-fuse IMAGE-OR-DEVICE MOUNTPOINT [-o OPTIONS] [-f]
//! ```
//!
//! It is a mount(8) helper, too: under the name `mount.fuse.ext4`, say, `mount -t fuse.ext4 IMAGE DIR` finds it.
//!
//! | module | what |
//! |---|---|
//! | [`cli`], [`options`] | the command line, alone or as mount(8) gives it; `-o` |
//! | [`background`], [`log`] | the process that stays; where its log goes |
//! | [`daemon`] | disk, mount, session, signals, and the end of them |
//! | [`server`] | FUSE's requests, each handed to a function in [`fs`] |
//! | [`fs`] | what they do, by kind |
//! | [`nodes`], [`handles`], [`sharded`] | inodes that the kernel knows, files that it has open |
//! | [`ioctl`], [`attr`], [`buffer`], [`gate`] | numbers of ioctls; attributes and errors; aligned memory; requests under way |
//!
//! # Whose page cache
//!
//! All opens are `FOPEN_DIRECT_IO`: reads and writes come here as they are, and those without `O_DIRECT` go through the page cache of
//! `ext4-dio`, which is coherent with direct I/O by itself. So a file that somebody has open for buffered I/O still takes its
//! direct writes in parallel, which Linux does not give to files that it caches. The kernel caches pages for `mmap` alone
//! (`FUSE_DIRECT_IO_ALLOW_MMAP`, Linux 6.6): it writes dirty ones back before a read or a write of the same bytes, and drops them
//! after a write. Older kernels do not map such files shared. There the kernel's
//! cache is used for all files, direct I/O on them included, which it serialises, and with `-o page_cache=kernel` for those that are open
//! without `O_DIRECT`.
//!
//! # What FUSE does not carry
//!
//! | what | what comes of it |
//! |---|---|
//! | `fallocate` to collapse or insert a range, `FIEMAP`, `FIBMAP`, `RENAME_WHITEOUT` | EOPNOTSUPP, EINVAL |
//! | `O_TMPFILE` | EOPNOTSUPP: fuser does not know it |
//! | `syncfs`, `sync` | mapped pages are sent here, and nothing is committed at once: at most `commit=` seconds later; `fsync` is as ever |
//! | what the shutdown ioctl is asked for | it always commits the journal first: see [`ioctl`] |
//! | appends | one after the other: the kernel settles where the end is, under its lock |
//! | the end of `umount` | it returns before all is written; a new mount waits for it, and so does `flock IMAGE true` |
//! | `umount`, while another mount namespace has it | it is served there as long as that has it, as with any file system; a signal ends it |
//!
//! # Who may do what
//!
//! `ext4-dio` leaves permissions to its caller. Here that is the kernel, so `default_permissions` is always on.

pub mod attr;
pub mod background;
pub mod buffer;
pub mod cli;
pub mod daemon;
pub mod fs;
pub mod gate;
pub mod handles;
pub mod ioctl;
pub mod log;
pub mod nodes;
pub mod options;
pub mod server;
pub mod sharded;
