// SPDX-License-Identifier: GPL-2.0-only
//! How files come to be there before a step: made anew, laid out, or appended to.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use core::ops::Range;

use ext4_dio::SuperBlock;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::path::{Cred, path_mkdir, path_open, path_stat, path_unlink};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio_protocol::{Fallocate, Job, Layout, STAMP_LEN, Stamp, Step, Target};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::{Result, code::*};
use kernel_shim::fs::{IRef, OpenFlags};

use crate::errno;
use crate::table::{TableKey, Tables};
use crate::target::{Buffer, Opened};

/// Bytes written at once when a file is laid out.
const CHUNK: usize = 1 << 20;
/// Who lays files out.
const WRITER: u32 = u32::MAX;

/// A step's files, as they are when its threads start.
pub(crate) struct Files(BTreeMap<String, File>);

struct File {
    layout: Layout,
    /// Length before the step.
    eof: u64,
    /// How far the step's jobs reach.
    reach: u64,
}

impl Files {
    /// Makes what the step's jobs want made on `sb`; nothing for a bare disk. Tables of files that are new are, too.
    pub(crate) fn prepare(
        step: &Step,
        sb: Option<&KArc<SuperBlock>>,
        tables: &mut Tables,
    ) -> core::result::Result<Self, String> {
        let mut files = BTreeMap::new();
        let (Target::Ext4 { disk, .. }, Some(sb)) = (&step.target, sb) else { return Ok(Self(files)) };
        for job in &step.jobs {
            if files.contains_key(&job.filename) {
                continue;
            }
            let users = || step.jobs.iter().filter(|j| j.filename == job.filename);
            let layout = users().map(|j| j.layout).max_by_key(|l| strength(*l)).unwrap_or_default();
            let bytes = users().map(|j| j.file_bytes).max().unwrap_or(0);
            let key = TableKey { disk: *disk, file: job.filename.clone() };
            let how = Making {
                sb,
                path: &job.filename,
                bytes,
                fallocate: users().map(|j| j.fallocate).find(|f| *f != Fallocate::None).unwrap_or_default(),
                filled: layout == Layout::Written || users().any(|j| j.rw.reads()),
                stamped: users().find(|j| j.verify),
            };
            let eof = how.make(layout, &key, tables).map_err(|e| format!("making {}: {e}", job.filename))?;
            let reach = if layout == Layout::Append { eof.saturating_add(bytes) } else { bytes.max(eof) };
            files.insert(job.filename.clone(), File { layout, eof, reach });
        }
        Ok(Self(files))
    }

    /// Bytes that `job` may work on, of what has `size` bytes.
    pub(crate) fn range(&self, job: &Job, size: u64) -> Range<u64> {
        match self.0.get(&job.filename) {
            Some(file) if job.layout == Layout::Append => file.eof..file.reach,
            Some(file) if matches!(file.layout, Layout::Fresh | Layout::OnOpen | Layout::Append) => 0..file.reach,
            _ => 0..size,
        }
    }

    /// Bytes that a table of `job`'s file reaches over, and from where on there is nothing as yet.
    pub(crate) fn table_size(&self, job: &Job, size: u64) -> (u64, u64) {
        match self.0.get(&job.filename) {
            Some(file) if matches!(file.layout, Layout::Fresh | Layout::OnOpen) => (file.reach, 0),
            Some(file) if file.layout == Layout::Append => (file.reach, file.eof),
            _ => (size, u64::MAX),
        }
    }
}

/// Which layout of several on one file is the one that is done.
fn strength(layout: Layout) -> u32 {
    match layout {
        Layout::There => 0,
        Layout::Append => 1,
        Layout::Written => 2,
        Layout::OnOpen => 3,
        Layout::Fresh => 4,
    }
}

/// A file to be made.
struct Making<'a> {
    sb: &'a KArc<SuperBlock>,
    path: &'a str,
    bytes: u64,
    fallocate: Fallocate,
    /// With data.
    filled: bool,
    /// A job that stamps it.
    stamped: Option<&'a Job>,
}

impl Making<'_> {
    /// Makes it; how long it was before, or is now if that is to be kept.
    fn make(&self, layout: Layout, key: &TableKey, tables: &mut Tables) -> core::result::Result<u64, String> {
        let name = |e| errno(e);
        let there = match path_stat(self.sb, self.path.as_bytes(), true) {
            Ok(stat) => Some(stat.size.max(0) as u64),
            Err(ENOENT) => None,
            Err(e) => return Err(errno(e)),
        };
        match layout {
            Layout::There => Ok(there.unwrap_or(0)),
            Layout::Written if there.is_some() => Ok(there.unwrap_or(0)),
            Layout::Append => {
                let eof = there.unwrap_or(0);
                self.make_directories().map_err(name)?;
                let inode = self.open(OpenFlags::empty()).map_err(name)?;
                self.allocate(&inode, eof).map_err(name)?;
                if there.is_none()
                    && let Some(table) = tables.find(key)
                {
                    table.begin_file();
                }
                Ok(eof)
            }
            Layout::Written | Layout::Fresh | Layout::OnOpen => {
                if there.is_some() {
                    path_unlink(self.sb, self.path.as_bytes()).map_err(name)?;
                }
                if let Some(table) = tables.find(key) {
                    table.begin_file();
                }
                self.make_directories().map_err(name)?;
                if layout == Layout::OnOpen {
                    return Ok(0);
                }
                let inode = self.open(OpenFlags::O_EXCL).map_err(name)?;
                self.allocate(&inode, 0).map_err(name)?;
                drop(inode);
                if self.filled {
                    self.fill(key, tables)?;
                }
                Ok(if self.filled { self.bytes } else { 0 })
            }
        }
    }

    fn open(&self, flags: OpenFlags) -> Result<IRef<ext4_dio::Ext4>> {
        let flags = OpenFlags::O_RDWR | OpenFlags::O_CREAT | flags;
        Ok(path_open(self.sb, self.path.as_bytes(), flags, 0o644, &Cred::default())?.f_inode().clone())
    }

    fn make_directories(&self) -> Result {
        let ends = self.path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        for end in ends {
            match path_mkdir(self.sb, &self.path.as_bytes()[..end], 0o755, &Cred::default()) {
                Ok(()) | Err(EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// What `fallocate=` says, for the bytes from `eof` on.
    fn allocate(&self, inode: &IRef<ext4_dio::Ext4>, eof: u64) -> Result {
        let (from, len) = (i64::try_from(eof).map_err(|_| EFBIG)?, i64::try_from(self.bytes).map_err(|_| EFBIG)?);
        match self.fallocate {
            Fallocate::None => Ok(()),
            Fallocate::Native | Fallocate::Posix => ext4_fallocate(inode, FallocFlags::empty(), from, len),
            Fallocate::Keep => ext4_fallocate(inode, FallocFlags::KEEP_SIZE, from, len),
            Fallocate::Truncate => ext4_setattr_size(inode, from.checked_add(len).ok_or(EFBIG)?),
        }
    }

    /// Writes all of it, with stamps if a job wants that, and makes it durable.
    fn fill(&self, key: &TableKey, tables: &mut Tables) -> core::result::Result<(), String> {
        let unit = self.stamped.map_or(4096, |job| job.bs) as usize;
        let table = self.stamped.map(|_| tables.get(key, unit as u32, self.bytes, 0)).transpose()?;
        let per_write = (CHUNK / unit).max(1);
        let mut buffer = Buffer::new(per_write * unit).ok_or("no memory")?;
        let opened = Opened::File(
            path_open(self.sb, self.path.as_bytes(), OpenFlags::O_RDWR | OpenFlags::O_DIRECT, 0, &Cred::default())
                .map_err(errno)?,
        );
        buffer.bytes_mut().chunks_exact_mut(unit).for_each(|data| Stamp::fill_body(data, WRITER));
        let body_crc = Stamp::body_crc(&buffer.bytes_mut()[..unit]);
        let blocks = self.bytes / unit as u64;
        let mut block = 0;
        while block < blocks {
            let n = (blocks - block).min(per_write as u64);
            let bytes = &mut buffer.bytes_mut()[..n as usize * unit];
            for (at, data) in (block..).zip(bytes.chunks_exact_mut(unit)) {
                let generation = table.as_ref().and_then(|t| t.claim(at)).map_or(0, |claim| claim.generation);
                let stamp = Stamp { offset: at * unit as u64, generation, writer: WRITER, body_crc };
                data[..STAMP_LEN].copy_from_slice(&stamp.encode());
            }
            opened.write_sync(block * unit as u64, bytes).map_err(errno)?;
            if let Some(table) = &table {
                (block..block + n).for_each(|at| table.settle(at));
            }
            block += n;
        }
        // The rest is shorter than a block.
        let rest = opened.size().max(self.bytes);
        if let Opened::File(file) = &opened
            && rest > opened.size()
        {
            ext4_setattr_size(file.f_inode(), i64::try_from(rest).map_err(|_| "too long")?).map_err(errno)?;
        }
        opened.sync(false).map_err(errno)
    }
}

/// Removes the files of `step` that are to be removed after it.
pub(crate) fn unlink_files(
    step: &Step,
    sb: Option<&KArc<SuperBlock>>,
    tables: &Tables,
) -> core::result::Result<(), String> {
    let (Target::Ext4 { disk, .. }, Some(sb)) = (&step.target, sb) else { return Ok(()) };
    for job in step.jobs.iter().filter(|j| j.unlink) {
        match path_unlink(sb, job.filename.as_bytes()) {
            // Another job of the step was first.
            Ok(()) | Err(ENOENT) => {}
            Err(e) => return Err(format!("removing {}: {}", job.filename, errno(e))),
        }
        if let Some(table) = tables.find(&TableKey { disk: *disk, file: job.filename.clone() }) {
            table.end_file();
        }
    }
    Ok(())
}
