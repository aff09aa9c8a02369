// SPDX-License-Identifier: GPL-2.0-only
//! Reading, writing, truncating, allocating in the model.

use super::data::{Block, Partly, write_of};
use super::{Model, Nid, Pending, Slot, Stamp, What, Wrong, brief, same};
use crate::oplang::*;

/// What direct I/O has to be a multiple of: the disks' logical block.
const LBS: u64 = 512;

impl Model {
    /// The largest size of a file.
    fn maxbytes(&self) -> u64 {
        let block = u64::from(self.expect.block);
        if self.expect.extents {
            return block * 0xffff_ffff;
        }
        let per = block / 4;
        block * (12 + per + per * per + per * per * per)
    }

    /// An open regular file.
    fn open_file(&self, slot: u8) -> Result<Slot, Errno> {
        let open = self.open_slot(slot)?;
        if self.node(open.nid).is_dir() { Err(libc::EISDIR) } else { Ok(open) }
    }

    pub(super) fn step_read(&mut self, slot: u8, pos: u64, len: usize, got: &Reply) -> Result<(), Wrong> {
        let open = match self.open_slot(slot) {
            Ok(open) if open.flags.reads() => open,
            _ => return Self::failed(libc::EBADF, got),
        };
        if self.node(open.nid).is_dir() {
            return Self::failed(libc::EISDIR, got);
        }
        let direct = open.flags.has(OFlags::DIRECT);
        let misaligned = direct && !(pos | len as u64).is_multiple_of(LBS);
        let want = self.data_mut(open.nid).read(pos, len);
        match got {
            // Where there is nothing to read from the device, not everybody asks.
            Err(libc::EINVAL) if misaligned => Ok(()),
            Ok(Out::Bytes(bytes)) if misaligned || *bytes == want => compare_bytes(pos, bytes, &want),
            Ok(Out::Bytes(bytes)) => compare_bytes(pos, bytes, &want),
            _ => Err(format!("{}, should be {} bytes", brief(got), want.len())),
        }
    }

    pub(super) fn step_write(
        &mut self,
        slot: u8,
        pos: u64,
        len: usize,
        tag: u32,
        rwf: Rwf,
        got: &Reply,
    ) -> Result<Option<Target>, Wrong> {
        let open = match self.open_slot(slot) {
            Ok(open) if open.flags.writes() => open,
            _ => return Self::failed(libc::EBADF, got).map(|()| None),
        };
        let got = match got {
            Ok(Out::Count(n)) => Ok(*n),
            Err(e) => Err(*e),
            _ => return Err(brief(got)),
        };
        let old_size = self.data_mut(open.nid).size;
        let changes = self.one_write(open, pos, len, tag, rwf, got)?;
        Ok(self.look(open.nid, changes.into_iter().collect(), old_size, Target::Slot(slot)))
    }

    pub(super) fn step_aio(
        &mut self,
        slot: u8,
        tag: u32,
        list: &[(u64, usize)],
        got: &Reply,
    ) -> Result<Option<Target>, Wrong> {
        let Ok(open) = self.open_slot(slot) else { return Self::failed(libc::EBADF, got).map(|()| None) };
        let Ok(Out::Ends(ends)) = got else { return Err(brief(got)) };
        same("ends", &ends.len(), &list.len())?;
        if !open.flags.writes() {
            return same("ends", ends, &vec![Err(libc::EBADF); list.len()]).map(|()| None);
        }
        let old_size = self.data_mut(open.nid).size;
        let mut changes = Vec::new();
        for (&(pos, len), &end) in list.iter().zip(ends) {
            let change = self.one_write(open, pos, len, tag, Rwf::default(), end);
            changes.extend(change.map_err(|e| format!("at {pos}: {e}"))?);
        }
        Ok(self.look(open.nid, changes, old_size, Target::Slot(slot)))
    }

    /// The file must be looked at if there are changes that may be there in part.
    fn look(&mut self, nid: Nid, changes: Vec<Partly>, old_size: u64, target: Target) -> Option<Target> {
        if changes.is_empty() {
            return None;
        }
        let size = self.data_mut(nid).size;
        let end = changes.iter().map(|c| c.pos + c.len).max().unwrap_or(0);
        let (low, high) = (size.max(old_size), size.max(end));
        self.pending = Some(Pending { nid, changes, sizes: low..=high });
        Some(target)
    }

    /// Does what was answered; `Some` if it may be there in part.
    fn one_write(
        &mut self,
        open: Slot,
        pos: u64,
        len: usize,
        tag: u32,
        rwf: Rwf,
        got: Result<usize, Errno>,
    ) -> Result<Option<Partly>, Wrong> {
        if len == 0 {
            if rwf.has(Rwf::NOWAIT) && got == Err(libc::EAGAIN) {
                return Ok(None);
            }
            return same("empty write", &got, &Ok(0)).map(|()| None);
        }
        let size = self.data_mut(open.nid).size;
        let append = open.flags.has(OFlags::APPEND) || rwf.has(Rwf::APPEND);
        let at = if append { size } else { pos };
        if at >= self.maxbytes() {
            return same("beyond all files", &got, &Err(libc::EFBIG)).map(|()| None);
        }
        let len = (len as u64).min(self.maxbytes() - at);
        let direct = open.flags.has(OFlags::DIRECT);
        let partly = |done| Some(write_of(tag, pos, at, len, done));
        match got {
            Err(libc::EINVAL) if direct && !(at | len).is_multiple_of(LBS) => {
                // Blocks may have been allocated before that was seen, and the times set.
                let data = self.data_mut(open.nid);
                data.reserve(at, len, &Block::Vague);
                if at + len > size {
                    // Cleaning up takes what was set aside behind the end along.
                    data.doubt_beyond(size);
                }
                let node = self.node_mut(open.nid);
                (node.mtime, node.ctime) = (Stamp::Any, Stamp::Any);
                // Whether privileges fall first is a matter of taste, too.
                self.node_mut(open.nid).unsure = true;
                // Of several pieces the first may have been written.
                Ok(if self.expect.ours { None } else { partly(0) })
            }
            Ok(n) if direct && !(at | len).is_multiple_of(LBS) && self.expect.extents => {
                Err(format!("wrote {n} bytes, should be EINVAL"))
            }
            Err(libc::EAGAIN | libc::EOPNOTSUPP) if rwf.has(Rwf::NOWAIT) => {
                let node = self.node_mut(open.nid);
                (node.mtime, node.ctime) = (Stamp::Any, Stamp::Any);
                Ok(partly(0))
            }
            Ok(n) if n as u64 == len => {
                self.data_mut(open.nid).write(at, &pattern(tag, pos, len as usize));
                self.modified(open.nid);
                self.privileges_fall(open.nid);
                Ok(None)
            }
            Ok(n) if (n as u64) < len && n > 0 && (self.expect.tight || rwf.has(Rwf::NOWAIT)) => {
                self.data_mut(open.nid).write(at, &pattern(tag, pos, n));
                self.modified(open.nid);
                self.privileges_fall(open.nid);
                Ok(partly(n as u64))
            }
            Err(libc::ENOSPC) if self.expect.tight => {
                let node = self.node_mut(open.nid);
                (node.mtime, node.ctime) = (Stamp::Any, Stamp::Any);
                self.privileges_fall(open.nid);
                Ok(partly(0))
            }
            _ => Err(format!("{got:?}, should be Ok({len})")),
        }
    }

    pub(super) fn truncate_path(&mut self, path: &str) -> Result<Nid, Errno> {
        let nid = self.resolve(path, true)?;
        if self.node(nid).is_dir() { Err(libc::EISDIR) } else { Ok(nid) }
    }

    pub(super) fn truncate_slot(&mut self, slot: u8) -> Result<Nid, Errno> {
        let open = self.open_slot(slot)?;
        if open.flags.writes() { Ok(open.nid) } else { Err(libc::EINVAL) }
    }

    pub(super) fn step_truncate(
        &mut self,
        nid: Result<Nid, Errno>,
        size: u64,
        by_path: bool,
        got: &Reply,
        target: Target,
    ) -> Result<Option<Target>, Wrong> {
        let nid = match nid {
            Ok(_) if size > self.maxbytes() => return Self::failed(libc::EFBIG, got).map(|()| None),
            Ok(nid) => nid,
            Err(e) => return Self::failed(e, got).map(|()| None),
        };
        let old = self.data_mut(nid).size;
        if *got == Err(libc::ENOSPC) && self.expect.tight {
            let zeros = Partly { pos: size.min(old), bytes: None, len: size.abs_diff(old), done: 0 };
            let node = self.node_mut(nid);
            (node.mtime, node.ctime) = (Stamp::Any, Stamp::Any);
            self.pending = Some(Pending { nid, changes: vec![zeros], sizes: size.min(old)..=size.max(old) });
            return Ok(Some(target));
        }
        same("truncating", got, &Ok(Out::Done))?;
        self.data_mut(nid).truncate(size);
        self.modified(nid);
        if by_path && size == old {
            // Whether that is a change of the contents is a matter of taste.
            self.node_mut(nid).mtime = Stamp::Any;
        }
        self.privileges_fall(nid);
        Ok(None)
    }

    pub(super) fn step_fallocate(
        &mut self,
        slot: u8,
        how: Falloc,
        pos: u64,
        len: u64,
        got: &Reply,
    ) -> Result<Option<Target>, Wrong> {
        let want = self.fallocate_errno(slot, how, pos, len);
        let nid = match want {
            Ok(nid) => nid,
            Err(e) => {
                if let Ok(open) = self.open_file(slot) {
                    // It may have been seen late.
                    let node = self.node_mut(open.nid);
                    (node.mtime, node.ctime) = (Stamp::Any, Stamp::Any);
                    if open.flags.writes() && len > 0 && got.is_err() {
                        self.node_mut(open.nid).unsure = true;
                    }
                }
                return Self::failed(e, got).map(|()| None);
            }
        };
        let old = self.data_mut(nid).size;
        if *got == Err(libc::ENOSPC) && self.expect.tight {
            let bytes = None;
            let change = match how {
                Falloc::Alloc | Falloc::Keep => Partly { pos, bytes, len: 0, done: 0 },
                _ => Partly { pos, bytes, len, done: 0 },
            };
            let node = self.node_mut(nid);
            (node.mtime, node.ctime) = (Stamp::Any, Stamp::Any);
            self.privileges_fall(nid);
            let high = if how == Falloc::Insert { old + len } else { old.max(pos + len) };
            self.pending = Some(Pending { nid, changes: vec![change], sizes: old..=high });
            return Ok(Some(Target::Slot(slot)));
        }
        same("fallocate", got, &Ok(Out::Done))?;
        self.data_mut(nid).fallocate(how, pos, len);
        self.modified(nid);
        self.privileges_fall(nid);
        Ok(None)
    }

    fn fallocate_errno(&mut self, slot: u8, how: Falloc, pos: u64, len: u64) -> Result<Nid, Errno> {
        let open = self.open_slot(slot)?;
        if len == 0 {
            return Err(libc::EINVAL);
        }
        if !open.flags.writes() {
            return Err(libc::EBADF);
        }
        if pos + len > self.maxbytes() {
            return Err(libc::EFBIG);
        }
        if !self.expect.extents && how != Falloc::Punch {
            return Err(libc::EOPNOTSUPP);
        }
        let block = u64::from(self.expect.block);
        let size = self.data_mut(open.nid).size;
        match how {
            Falloc::Collapse | Falloc::Insert if !(pos | len).is_multiple_of(block) => Err(libc::EINVAL),
            Falloc::Collapse if pos + len >= size => Err(libc::EINVAL),
            Falloc::Insert if pos >= size => Err(libc::EINVAL),
            Falloc::Insert if len > self.maxbytes() - size => Err(libc::EFBIG),
            _ => Ok(open.nid),
        }
    }

    pub(super) fn step_seek(&mut self, slot: u8, pos: u64, data: bool, got: &Reply) -> Result<(), Wrong> {
        let nid = match self.open_slot(slot) {
            // What a directory answers is its own affair.
            Ok(open) if self.node(open.nid).is_dir() => return Ok(()),
            Ok(open) => open.nid,
            Err(e) => return Self::failed(e, got),
        };
        let file = self.data_mut(nid);
        let (size, bs) = (file.size, file.bs);
        if pos >= size {
            return Self::failed(libc::ENXIO, got);
        }
        let last = size.div_ceil(bs);
        let written = |lblk: &u64| matches!(file.blocks.get(lblk), Some(Block::Written(_)));
        if data {
            let next = file.blocks.range(pos / bs..last).map(|(l, _)| *l).find(written);
            return match (got, next) {
                (Err(libc::ENXIO), None) => Ok(()),
                (Ok(Out::Pos(at)), next) if *at >= pos && *at < size && (*at == pos || at % bs == 0) => {
                    if next.is_some_and(|next| next < at / bs) || !file.blocks.contains_key(&(at / bs)) {
                        return Err(format!("data at {at}, should be in block {next:?}"));
                    }
                    Ok(())
                }
                _ => Err(format!("{}, should be block {next:?}", brief(got))),
            };
        }
        let Ok(Out::Pos(at)) = *got else { return Err(brief(got)) };
        let no_hole = (pos / bs..at / bs).find(|lblk| !file.blocks.contains_key(lblk));
        let fits = at >= pos && at <= size && (at == size || at % bs == 0 || at == pos) && no_hole.is_none();
        if fits && (at == size || !written(&(at / bs))) { Ok(()) } else { Err(format!("hole at {at}, of {size}")) }
    }

    pub(super) fn step_fiemap(&mut self, slot: u8, got: &Reply) -> Result<(), Wrong> {
        let nid = match self.open_slot(slot) {
            Ok(open) if self.node(open.nid).is_dir() => return Ok(()),
            Ok(open) => open.nid,
            Err(e) => return Self::failed(e, got),
        };
        let Ok(Out::Map(map)) = got else { return Err(brief(got)) };
        self.data_mut(nid).check_map(map)
    }

    pub(super) fn step_stat(&mut self, nid: Nid, got: &Reply) -> Result<(), Wrong> {
        let Ok(Out::Stat(st)) = got else { return Err(brief(got)) };
        let node = self.node_mut(nid);
        if node.unsure && node.mode & !0o6000 == st.mode & !0o6000 {
            node.mode &= st.mode;
        }
        same("kind", &st.kind, &node.kind())?;
        same("mode", &format!("{:o}", st.mode), &format!("{:o}", node.mode))?;
        same("links", &st.nlink, &node.nlink)?;
        same("owner", &(st.uid, st.gid), &(node.uid, node.gid))?;
        match &node.what {
            What::File(data) => {
                same("size", &st.size, &data.size)?;
                let (sure, most) = data.allocated();
                let has = st.blocks * 512 / data.bs;
                // Trees and tables: a few, and some for many pieces; one for attributes.
                if has < sure || has > most + most / 4 + 12 {
                    return Err(format!("{has} blocks, should be {sure} to {most} and metadata"));
                }
            }
            What::Link(target) => same("size", &st.size, &(target.len() as u64))?,
            What::Dir(..) => {}
        }
        let stamps =
            [("atime", st.atime, node.atime), ("mtime", st.mtime, node.mtime), ("ctime", st.ctime, node.ctime)];
        for (what, got, want) in stamps {
            self.check_stamp(what, got, want)?;
        }
        self.check_ino(nid, st.ino)
    }

    pub(super) fn step_statfs(&mut self, got: &Reply) -> Result<(), Wrong> {
        let Ok(Out::Statfs(st)) = got else { return Err(brief(got)) };
        if st.bfree > st.blocks || st.bavail > st.bfree || st.ffree > st.files {
            return Err(format!("more is free than there is: {st:?}"));
        }
        if !self.expect.ours && self.nodes.values().any(|n| n.nlink == 0) {
            // Linux keeps a removed directory as long as a file that was in it is open.
            return Ok(());
        }
        let ours = self.nodes.len() as u64;
        let base = (st.files - st.ffree).saturating_sub(ours);
        match self.base_inodes {
            Some(known) => same("inodes in use besides ours", &base, &known),
            None => {
                self.base_inodes = Some(base);
                Ok(())
            }
        }
    }
}

fn compare_bytes(pos: u64, got: &[u8], want: &[u8]) -> Result<(), Wrong> {
    same("bytes read", &got.len(), &want.len())?;
    match got.iter().zip(want).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(n) => {
            let at = pos + n as u64;
            Err(format!("byte {at} is {:#04x}, should be {:#04x}", got[n], want[n]))
        }
    }
}
