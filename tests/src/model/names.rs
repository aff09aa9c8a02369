// SPDX-License-Identifier: GPL-2.0-only
//! Names, links, directories, permissions, attributes in the model. Orders of checks are those of Linux's VFS.

use super::{Data, Model, Nid, Node, ROOT, Slot, Stamp, What, Wrong, brief, same};
use crate::oplang::*;

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;
/// A path may have so many symbolic links.
const MAXSYMLINKS: u32 = 40;

/// Where a path ends: its last directory, the name in it, and what is there.
struct Found {
    dir: Nid,
    name: String,
    nid: Option<Nid>,
}

impl Model {
    /// What a path is of; `follow` a symbolic link at its end.
    pub(super) fn resolve(&self, path: &str, follow: bool) -> Result<Nid, Errno> {
        self.walk(path, follow)?.nid.ok_or(libc::ENOENT)
    }

    fn walk(&self, path: &str, follow: bool) -> Result<Found, Errno> {
        self.walk_from(ROOT, path, follow, &mut 0)
    }

    fn walk_from(&self, mut dir: Nid, path: &str, follow: bool, links: &mut u32) -> Result<Found, Errno> {
        if path.is_empty() {
            return Err(libc::ENOENT);
        }
        if path.len() > 4000 {
            return Err(libc::ENAMETOOLONG);
        }
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
        let Some((last, before)) = parts.split_last() else {
            return Ok(Found { dir, name: ".".to_string(), nid: Some(dir) });
        };
        for part in before {
            let nid = self.lookup(dir, part)?.ok_or(libc::ENOENT)?;
            dir = match &self.node(nid).what {
                What::Dir(..) => nid,
                What::Link(target) => {
                    *links += 1;
                    if *links > MAXSYMLINKS {
                        return Err(libc::ELOOP);
                    }
                    self.walk_from(dir, target, true, links)?.nid.ok_or(libc::ENOENT)?
                }
                What::File(_) => return Err(libc::ENOTDIR),
            };
            if !self.node(dir).is_dir() {
                return Err(libc::ENOTDIR);
            }
        }
        let nid = self.lookup(dir, last)?;
        if let Some(nid) = nid
            && let What::Link(target) = &self.node(nid).what
            && (follow || path.ends_with('/'))
        {
            *links += 1;
            if *links > MAXSYMLINKS {
                return Err(libc::ELOOP);
            }
            return self.walk_from(dir, target, true, links);
        }
        if path.ends_with('/') && nid.is_some_and(|nid| !self.node(nid).is_dir()) {
            return Err(libc::ENOTDIR);
        }
        Ok(Found { dir, name: last.to_string(), nid })
    }

    fn lookup(&self, dir: Nid, name: &str) -> Result<Option<Nid>, Errno> {
        if name.len() > 255 {
            return Err(libc::ENAMETOOLONG);
        }
        Ok(self.dir(dir).get(name).copied())
    }

    /// The place for a new name.
    fn vacant(&self, path: &str) -> Result<(Nid, String), Errno> {
        let found = self.walk(path, false)?;
        if found.nid.is_some() {
            return Err(libc::EEXIST);
        }
        if self.node(found.dir).nlink == 0 {
            return Err(libc::ENOENT);
        }
        Ok((found.dir, found.name))
    }

    fn make(&mut self, dir: Nid, name: String, what: What, mode: u32) -> Nid {
        let now = Stamp::Op(self.now);
        let parent = self.node(dir);
        let is_dir = matches!(what, What::Dir(..));
        let (mut mode, mut gid) = (mode, 0);
        if parent.mode & S_ISGID != 0 {
            gid = parent.gid;
            if is_dir {
                mode |= S_ISGID;
            }
        }
        let node = Node {
            what,
            mode,
            uid: 0,
            gid,
            nlink: if is_dir { 2 } else { 1 },
            xattrs: Default::default(),
            atime: now,
            mtime: now,
            ctime: now,
            opens: 0,
            ino: None,
            unsure: false,
        };
        let nid = self.add(node);
        self.dir_mut(dir).insert(name, nid);
        if is_dir {
            self.node_mut(dir).nlink += 1;
        }
        self.modified(dir);
        nid
    }

    /// What an operation on names answers; it is done.
    pub(super) fn names_op(&mut self, op: &Op) -> Reply {
        match op {
            Op::Open { slot, path, flags, mode } => self.open(*slot, path, *flags, *mode)?,
            Op::Close { slot } => {
                self.open_slot(*slot)?;
                self.close(*slot);
            }
            Op::SetDirect { slot, on } => self.set_direct(*slot, *on)?,
            Op::Fsync { slot } | Op::Fdatasync { slot } => drop(self.open_slot(*slot)?),
            Op::Sync {} => {}
            Op::Remount {} => self.close_all(),
            Op::Unlink { path } => self.unlink(path)?,
            Op::Link { from, to } => self.link(from, to)?,
            Op::Symlink { target, path } => self.symlink(target, path)?,
            Op::Readlink { path } => {
                return match &self.node(self.resolve(path, false)?).what {
                    What::Link(target) => Ok(Out::Text(target.clone())),
                    _ => Err(libc::EINVAL),
                };
            }
            Op::Mkdir { path, mode } => {
                let (dir, name) = self.vacant(path)?;
                self.make(dir, name, What::Dir(Default::default(), dir), *mode);
            }
            Op::Rmdir { path } => self.rmdir(path)?,
            Op::Rename { from, to, how } => self.rename(from, to, *how)?,
            Op::Chmod { path, mode } => {
                let nid = self.resolve(path, true)?;
                self.node_mut(nid).mode = mode & 0o7777;
                self.changed(nid);
            }
            Op::Chown { path, uid, gid } => self.chown(path, *uid, *gid)?,
            Op::Utimens { path, asec, ansec, msec, mnsec } => {
                let nid = self.resolve(path, true)?;
                self.changed(nid);
                let node = self.node_mut(nid);
                (node.atime, node.mtime) = (Stamp::At((*asec, *ansec)), Stamp::At((*msec, *mnsec)));
            }
            Op::GetXattr { path, name } => {
                let nid = self.resolve(path, true)?;
                return self.node(nid).xattrs.get(name).cloned().map(Out::Bytes).ok_or(libc::ENODATA);
            }
            Op::RemoveXattr { path, name } => {
                let nid = self.resolve(path, true)?;
                self.node_mut(nid).xattrs.remove(name).ok_or(libc::ENODATA)?;
                self.changed(nid);
            }
            _ => return Err(libc::ENOSYS),
        }
        Ok(Out::Done)
    }

    fn open(&mut self, slot: u8, path: &str, flags: OFlags, mode: u32) -> Result<(), Errno> {
        self.close(slot);
        let create = flags.has(OFlags::CREAT);
        let found = self.walk(path, !(create && flags.has(OFlags::EXCL)))?;
        let nid = match found.nid {
            Some(_) if create && flags.has(OFlags::EXCL) => return Err(libc::EEXIST),
            Some(nid) => {
                match self.node(nid).kind() {
                    Kind::Dir if create || flags.writes() => return Err(libc::EISDIR),
                    Kind::Dir if flags.has(OFlags::DIRECT) => return Err(libc::EINVAL),
                    Kind::File if flags.has(OFlags::TRUNC) => {
                        self.data_mut(nid).truncate(0);
                        self.modified(nid);
                        self.privileges_fall(nid);
                    }
                    _ => {}
                }
                nid
            }
            None if create => {
                let data = Data::new(u64::from(self.expect.block));
                self.make(found.dir, found.name, What::File(data), mode)
            }
            None => return Err(libc::ENOENT),
        };
        self.node_mut(nid).opens += 1;
        self.slots[usize::from(slot)] = Some(Slot { nid, flags });
        Ok(())
    }

    fn set_direct(&mut self, slot: u8, on: bool) -> Result<(), Errno> {
        let open = self.open_slot(slot)?;
        if on && self.node(open.nid).is_dir() {
            return Err(libc::EINVAL);
        }
        let bits = open.flags.0 & !OFlags::DIRECT.0 | if on { OFlags::DIRECT.0 } else { 0 };
        self.slots[usize::from(slot)] = Some(Slot { flags: OFlags(bits), ..open });
        Ok(())
    }

    /// Set-user-ID, set-group-ID and capabilities do not outlive a change of the contents.
    pub(super) fn privileges_fall(&mut self, nid: Nid) {
        let drops = self.expect.ours;
        let node = self.node_mut(nid);
        node.xattrs.remove(CAPABILITY);
        if drops {
            node.mode &= !S_ISUID;
            if node.mode & S_IXGRP != 0 {
                node.mode &= !S_ISGID;
            }
        }
    }

    fn chown(&mut self, path: &str, uid: u32, gid: u32) -> Result<(), Errno> {
        let nid = self.resolve(path, true)?;
        self.changed(nid);
        let node = self.node_mut(nid);
        (node.uid, node.gid) = (uid, gid);
        if !node.is_dir() {
            node.mode &= !S_ISUID;
            if node.mode & S_IXGRP != 0 {
                node.mode &= !S_ISGID;
            }
            node.xattrs.remove(CAPABILITY);
        }
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Result<(), Errno> {
        let found = self.walk(path, false)?;
        let nid = found.nid.ok_or(libc::ENOENT)?;
        if self.node(nid).is_dir() {
            return Err(libc::EISDIR);
        }
        self.dir_mut(found.dir).remove(&found.name);
        self.modified(found.dir);
        self.drop_link(nid);
        Ok(())
    }

    fn drop_link(&mut self, nid: Nid) {
        self.changed(nid);
        let node = self.node_mut(nid);
        node.nlink = if node.is_dir() { 0 } else { node.nlink - 1 };
        self.reap(nid);
    }

    fn link(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        let nid = self.resolve(from, false)?;
        let (dir, name) = self.vacant(to)?;
        if self.node(nid).is_dir() {
            return Err(libc::EPERM);
        }
        self.dir_mut(dir).insert(name, nid);
        self.node_mut(nid).nlink += 1;
        self.changed(nid);
        self.modified(dir);
        Ok(())
    }

    fn symlink(&mut self, target: &str, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.vacant(path)?;
        if target.len() + 1 > self.expect.block as usize {
            return Err(libc::ENAMETOOLONG);
        }
        self.make(dir, name, What::Link(target.to_string()), 0o777);
        Ok(())
    }

    fn rmdir(&mut self, path: &str) -> Result<(), Errno> {
        let found = self.walk(path, false)?;
        let nid = found.nid.ok_or(libc::ENOENT)?;
        if nid == ROOT {
            return Err(libc::EINVAL);
        }
        match &self.node(nid).what {
            What::Dir(names, _) if !names.is_empty() => return Err(libc::ENOTEMPTY),
            What::Dir(..) => {}
            _ => return Err(libc::ENOTDIR),
        }
        self.dir_mut(found.dir).remove(&found.name);
        self.node_mut(found.dir).nlink -= 1;
        self.modified(found.dir);
        self.drop_link(nid);
        Ok(())
    }

    /// `dir` is `of`, or in it.
    fn is_below(&self, mut dir: Nid, of: Nid) -> bool {
        loop {
            if dir == of {
                return true;
            }
            match &self.node(dir).what {
                What::Dir(_, parent) if dir != ROOT => dir = *parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str, how: RenameHow) -> Result<(), Errno> {
        // Both directories come first, then both names.
        let split = |path: &str| {
            path.rsplit_once('/').map_or((".".to_string(), path.to_string()), |(d, n)| (d.to_string(), n.to_string()))
        };
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        let dir = |path: &str| {
            let nid = self.resolve(path, true)?;
            if self.node(nid).is_dir() { Ok(nid) } else { Err(libc::ENOTDIR) }
        };
        let (old_dir, new_dir) = (dir(&from_dir)?, dir(&to_dir)?);
        let old = self.lookup(old_dir, &from_name)?.ok_or(libc::ENOENT)?;
        let new = self.lookup(new_dir, &to_name)?;
        match (how, new) {
            (RenameHow::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameHow::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if self.node(old).is_dir() && self.is_below(new_dir, old) {
            return Err(libc::EINVAL);
        }
        if let Some(new) = new
            && self.node(new).is_dir()
            && self.is_below(old_dir, new)
        {
            return Err(if how == RenameHow::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if new == Some(old) {
            return Ok(());
        }
        let old_is_dir = self.node(old).is_dir();
        if let (Some(new), false) = (new, how == RenameHow::Exchange) {
            match (&self.node(new).what, old_is_dir) {
                (What::Dir(..), false) => return Err(libc::EISDIR),
                (What::Dir(names, _), true) if !names.is_empty() => return Err(libc::ENOTEMPTY),
                (What::Dir(..), true) => {}
                (_, true) => return Err(libc::ENOTDIR),
                _ => {}
            }
        }
        self.dir_mut(old_dir).remove(&from_name);
        self.modified(old_dir);
        self.modified(new_dir);
        self.dir_mut(new_dir).insert(to_name, old);
        self.moved(old, old_dir, new_dir);
        if let Some(new) = new {
            if how == RenameHow::Exchange {
                self.dir_mut(old_dir).insert(from_name, new);
                self.moved(new, new_dir, old_dir);
            } else {
                if self.node(new).is_dir() {
                    self.node_mut(new_dir).nlink -= 1;
                }
                self.drop_link(new);
            }
        }
        Ok(())
    }

    fn moved(&mut self, nid: Nid, from: Nid, to: Nid) {
        self.changed(nid);
        if let What::Dir(_, parent) = &mut self.node_mut(nid).what {
            *parent = to;
            self.node_mut(from).nlink -= 1;
            self.node_mut(to).nlink += 1;
        }
    }

    pub(super) fn step_readdir(&mut self, path: &str, got: &Reply) -> Result<(), Wrong> {
        let nid = match self.resolve(path, true) {
            Ok(nid) if !self.node(nid).is_dir() => return Self::failed(libc::ENOTDIR, got),
            Ok(nid) => nid,
            Err(e) => return Self::failed(e, got),
        };
        let Ok(Out::Names(names)) = got else { return Err(brief(got)) };
        let mut got: Vec<&Name> = names.iter().collect();
        got.sort();
        let want: Vec<(String, Nid)> = self.dir(nid).iter().map(|(name, nid)| (name.clone(), *nid)).collect();
        let listed: Vec<&String> = got.iter().map(|n| &n.name).collect();
        same("names", &listed, &want.iter().map(|(name, _)| name).collect())?;
        for (got, (name, nid)) in got.into_iter().zip(want) {
            same(&format!("kind of {name}"), &got.kind, &self.node(nid).kind())?;
            self.check_ino(nid, got.ino)?;
        }
        Ok(())
    }

    /// One number for each file as long as it lives, and for no other.
    pub(super) fn check_ino(&mut self, nid: Nid, ino: u64) -> Result<(), Wrong> {
        match self.node(nid).ino {
            Some(known) => same("inode number", &ino, &known),
            None => {
                if let Some((other, _)) = self.nodes.iter().find(|(_, n)| n.ino == Some(ino)) {
                    return Err(format!("inode number {ino} is another file's ({other})"));
                }
                self.node_mut(nid).ino = Some(ino);
                Ok(())
            }
        }
    }

    /// Bytes that an attribute takes.
    fn xattr_cost(name: &str, len: usize) -> usize {
        let short = name.split_once('.').map_or(name, |(_, rest)| rest);
        16 + short.len().next_multiple_of(4) + len.next_multiple_of(4)
    }

    pub(super) fn step_setxattr(
        &mut self,
        path: &str,
        name: &str,
        len: usize,
        tag: u32,
        how: XattrHow,
        got: &Reply,
    ) -> Result<(), Wrong> {
        let nid = match self.resolve(path, true) {
            Ok(nid) => nid,
            Err(e) => return Self::failed(e, got),
        };
        let (tight, block, inode_size) =
            (self.expect.tight, self.expect.block as usize, self.expect.inode_size as usize);
        let value = xattr_value(name, tag, len);
        let node = self.node_mut(nid);
        match (how, node.xattrs.contains_key(name)) {
            (XattrHow::Create, true) => return Self::failed(libc::EEXIST, got),
            (XattrHow::Replace, false) => return Self::failed(libc::ENODATA, got),
            _ => {}
        }
        let others = node.xattrs.iter().filter(|(n, _)| *n != name).map(|(n, v)| Self::xattr_cost(n, v.len()));
        let cost = others.sum::<usize>() + Self::xattr_cost(name, value.len());
        let fits_surely = cost + 36 <= block;
        let fits_never = Self::xattr_cost(name, value.len()) + 36 > block.max(inode_size) || cost > block + inode_size;
        match got {
            Ok(Out::Done) if !fits_never => {
                node.xattrs.insert(name.to_string(), value);
                self.changed(nid);
                Ok(())
            }
            Err(libc::ENOSPC) if !fits_surely || tight => Ok(()),
            _ => Err(format!("{}, with {cost} bytes in a block of {block}", brief(got))),
        }
    }

    pub(super) fn step_listxattr(&mut self, path: &str, got: &Reply) -> Result<(), Wrong> {
        let nid = match self.resolve(path, true) {
            Ok(nid) => nid,
            Err(e) => return Self::failed(e, got),
        };
        let Ok(Out::List(names)) = got else { return Err(brief(got)) };
        let mut got: Vec<&String> = names.iter().collect();
        got.sort();
        same("attributes", &got, &self.node(nid).xattrs.keys().collect())
    }
}
