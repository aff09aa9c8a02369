// SPDX-License-Identifier: GPL-2.0-only
//! Steps of runs that a crash ends: operations, and what only a kernel does.

use std::fmt;

use ext4_dio::aops::ext4_writepages;
use ext4_dio::path::{Cred, path_link_file, path_lookupat, path_open};
use ext4_dio::{Ext4, ext4_freeze, ext4_unfreeze};
use kernel_shim::fs::{FileSystem, OpenFlags};

use crate::oplang::*;
use crate::ours::Ours;

/// One step of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An operation.
    Op(Op),
    /// `O_TMPFILE`: a file without a name.
    Tmpfile {
        /// Where it is open.
        slot: u8,
        /// The directory.
        dir: String,
        /// Past the page cache.
        direct: bool,
    },
    /// Gives an open file a name.
    LinkSlot {
        /// Where it is open.
        slot: u8,
        /// The name.
        path: String,
    },
    /// fsync of a directory.
    FsyncDir {
        /// Which.
        path: String,
    },
    /// What the flusher does: data goes to the disk, and nothing is promised.
    WriteBack {
        /// Where the file is open.
        slot: u8,
    },
    /// Freezes and thaws.
    Freeze,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Op(op) => write!(f, "{op}"),
            Step::Tmpfile { slot, dir, direct } => write!(f, "tmpfile slot={slot} dir={dir} direct={direct}"),
            Step::LinkSlot { slot, path } => write!(f, "linkslot slot={slot} path={path}"),
            Step::FsyncDir { path } => write!(f, "fsyncdir path={path}"),
            Step::WriteBack { slot } => write!(f, "writeback slot={slot}"),
            Step::Freeze => write!(f, "freeze"),
        }
    }
}

/// Does a step.
pub(crate) fn apply(ours: &mut Ours, step: &Step) -> Reply {
    let errno = |e: kernel_shim::error::Error| -e.to_errno();
    let cred = Cred::default();
    match step {
        Step::Op(op) => return ours.apply(op),
        Step::Tmpfile { slot, dir, direct } => {
            let mut flags = OpenFlags::O_TMPFILE | OpenFlags::O_RDWR;
            flags.set(OpenFlags::O_DIRECT, *direct);
            let file = path_open(ours.sb()?, dir.as_bytes(), flags, 0o600, &cred).map_err(errno)?;
            ours.install(*slot, file);
        }
        Step::LinkSlot { slot, path } => {
            path_link_file(ours.sb()?, ours.file(*slot)?, path.as_bytes()).map_err(errno)?;
        }
        Step::FsyncDir { path } => {
            let dir = path_lookupat(ours.sb()?, path.as_bytes(), true).map_err(errno)?;
            Ext4::fsync(&dir, 0, i64::MAX, false).map_err(errno)?;
        }
        Step::WriteBack { slot } => {
            ext4_writepages(ours.file(*slot)?.f_inode(), 0, i64::MAX, false).map_err(errno)?;
        }
        Step::Freeze => {
            ext4_freeze(ours.sb()?).map_err(errno)?;
            ext4_unfreeze(ours.sb()?).map_err(errno)?;
        }
    }
    Ok(Out::Done)
}
