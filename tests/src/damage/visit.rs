// SPDX-License-Identifier: GPL-2.0-only
//! What is done with a damaged file system, and no more of it than a bounded amount: errors are noted and gone past.

use std::collections::BTreeSet;

use ext4_dio::dir::{DiskNode, Node};
use ext4_dio::ext4::{Lblk, MapBlocks};
use ext4_dio::extents_status::EsStatus;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::fiemap::{FiemapFlags, Whence, ext4_fiemap, ext4_seek};
use ext4_dio::file::{ext4_file_read, ext4_file_write};
use ext4_dio::inode::ext4_map_blocks;
use ext4_dio::namei::{RenameFlags, ext4_find_entry, ext4_readlink};
use ext4_dio::path::*;
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::xattr::{XattrSet, ext4_getxattr, ext4_listxattr, ext4_removexattr, ext4_setxattr};
use ext4_dio::{File, IRef, Inode, Kiocb, SuperBlock, ext4_statfs, ext4_sync_fs};
use kernel_shim::alloc::{Arc as KArc, KVec};
use kernel_shim::block::Bdev;
use kernel_shim::error::Result;
use kernel_shim::fs::{IoVec, IovIter, OpenFlags};

use crate::dio::Pages;
use crate::reader::Reader;

use super::drive::{Outcome, Target};

/// Names in all that are visited.
const MOST_NAMES: usize = 60;
/// Names of one directory that are.
const MOST_IN_DIR: usize = 16;
/// Extents of one file that are looked at.
const MOST_EXTENTS: usize = 1000;

// ---- without the VFS

/// Reads through the look-ups alone.
pub(super) fn read_only(bdev: &Bdev, target: Target, outcome: &mut Outcome) {
    let Some(reader) = outcome.note_ext4(Reader::new(bdev)) else { return };
    if target == Target::Mount {
        return;
    }
    let mut names = MOST_NAMES;
    let mut seen = BTreeSet::new();
    let Some(root) = outcome.note_ext4(reader.iget(ext4_dio::ext4::EXT4_ROOT_INO)) else { return };
    let mut dirs = vec![root];
    while let Some(dir) = dirs.pop() {
        let Some(list) = outcome.note_ext4(reader.readdir(&dir)) else { continue };
        let step = (list.len() / MOST_IN_DIR).max(1);
        for (name, ino, _) in list.iter().step_by(step).filter(|(name, ..)| name != b"." && name != b"..") {
            names = names.saturating_sub(1);
            outcome.note_ext4(ext4_find_entry(&dir, name));
            if names == 0 || !seen.insert(*ino) {
                continue;
            }
            let Some(node) = outcome.note_ext4(reader.iget(*ino)) else { continue };
            if node.is_lnk() {
                outcome.note_ext4(ext4_readlink(&node));
            } else if node.is_dir() {
                dirs.push(node);
            } else if node.disk.has_block_map() && target != Target::Lookup {
                walk_map(&reader, &node, outcome);
            }
        }
        outcome.note_ext4(ext4_find_entry(&dir, b"no such name"));
    }
}

/// The whole map of a file, from extent to extent.
fn walk_map(reader: &Reader, node: &DiskNode<'_>, outcome: &mut Outcome) {
    let (mut lblk, mut extents) = (0, 0);
    while lblk < u32::MAX && extents < MOST_EXTENTS {
        let Some(es) = outcome.note_ext4(reader.map(node, lblk)) else { return };
        assert!(es.contains(lblk), "the answer for block {lblk} is not about it: {es:?}");
        if es.status() != EsStatus::Hole {
            let blocks = reader.sb.s_blocks_count;
            assert!(es.pblk().0 + u64::from(es.len()) <= blocks, "mapped outside of the file system: {es:?}");
        }
        (lblk, extents) = (es.end(), extents + 1);
    }
}

// ---- with it

struct Visitor<'a> {
    sb: &'a KArc<SuperBlock>,
    outcome: &'a mut Outcome,
    /// Files and directories, each with the directory it was found in and its name.
    found: Vec<(IRef, Vec<u8>, IRef)>,
    links: Vec<IRef>,
}

/// Goes through a mount, then changes it.
pub(super) fn writable(sb: &KArc<SuperBlock>, target: Target, outcome: &mut Outcome) {
    let mut visitor = Visitor { sb, outcome, found: Vec::new(), links: Vec::new() };
    if target == Target::Mount {
        let sync = ext4_sync_fs(sb);
        visitor.note(sync);
        return;
    }
    visitor.walk();
    let found = std::mem::take(&mut visitor.found);
    let files = || found.iter().filter(|(_, _, inode)| inode.is_reg()).map(|(_, _, inode)| inode);
    if matches!(target, Target::MapBlocks | Target::All) {
        files().for_each(|inode| visitor.maps(inode));
    }
    if matches!(target, Target::Read | Target::All | Target::Recovery) {
        files().for_each(|inode| visitor.reads(inode));
    }
    if matches!(target, Target::Directory | Target::All) {
        found.iter().for_each(|(_, _, inode)| visitor.names(inode));
    }
    if target == Target::All {
        found.iter().for_each(|(_, _, inode)| visitor.attributes(inode));
        files().for_each(|inode| visitor.changes(inode));
        let sync = ext4_sync_fs(sb);
        visitor.note(sync);
    }
    if matches!(target, Target::Directory | Target::All) {
        visitor.removes(&found);
    }
    let stat = ext4_statfs(sb);
    visitor.note(stat);
}

impl Visitor<'_> {
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        self.outcome.note(Some(self.sb), result)
    }

    /// Finds files, some of each directory.
    fn walk(&mut self) {
        let root = path_lookupat(self.sb, b"/", true);
        let Some(root) = self.note(root) else { return };
        let mut seen = BTreeSet::from([root.i_ino()]);
        let mut dirs = vec![root];
        while let Some(dir) = dirs.pop() {
            let mut list = KVec::new();
            let (mut pos, mut rounds) = (0, 0);
            // In pieces, as programs do.
            while rounds < 20 {
                let before = list.len();
                let read = vfs_readdir(&dir, &mut pos, 100, &mut list);
                if self.note(read).is_none() || list.len() == before {
                    break;
                }
                rounds += 1;
            }
            let step = (list.len() / MOST_IN_DIR).max(1);
            for entry in list.iter().step_by(step).filter(|entry| *entry.name != *b"." && *entry.name != *b"..") {
                let inode = vfs_lookup(&dir, &entry.name);
                let Some(inode) = self.note(inode) else { continue };
                vfs_getattr(&inode);
                if !seen.insert(inode.i_ino()) || self.found.len() >= MOST_NAMES {
                    continue;
                }
                if inode.is_dir() {
                    dirs.push(inode.clone());
                }
                if inode.is_lnk() {
                    let path: Vec<u8> = [b"/".as_slice(), &entry.name].concat();
                    let target = path_readlink(self.sb, &path);
                    self.note(target);
                    let end = path_lookupat(self.sb, &path, true);
                    self.note(end);
                    self.links.push(inode);
                } else {
                    self.found.push((dir.clone(), entry.name.to_vec(), inode));
                }
            }
        }
    }

    fn maps(&mut self, inode: &IRef) {
        let mut list = KVec::new();
        let fiemap = ext4_fiemap(inode, 0, u64::MAX, FiemapFlags::empty(), MOST_EXTENTS, &mut list);
        self.note(fiemap);
        let (mut lblk, mut extents) = (0u32, 0);
        while lblk < u32::MAX - 1 && extents < MOST_EXTENTS {
            let mut map = MapBlocks::new(Lblk(lblk), u32::MAX - 1 - lblk);
            let mapped = ext4_map_blocks(inode, &mut map);
            if self.note(mapped).is_none() {
                break;
            }
            assert!(map.m_len > 0, "no progress at block {lblk}: {map:?}");
            (lblk, extents) = (lblk + map.m_len, extents + 1);
        }
        for whence in [Whence::Data, Whence::Hole] {
            for pos in [0, 5000, Inode::i_size(inode) / 2] {
                let at = ext4_seek(inode, pos, whence);
                self.note(at);
            }
        }
    }

    fn open(&mut self, inode: &IRef, flags: OpenFlags) -> Option<KArc<File>> {
        let file = File::open(inode.clone(), flags);
        self.note(file)
    }

    /// At the beginning, in the middle and at the end; all of it if it is short.
    fn reads(&mut self, inode: &IRef) {
        let mut pages = Pages::new(32 << 10, 0);
        for flags in [OpenFlags::empty(), OpenFlags::O_DIRECT] {
            let Some(file) = self.open(inode, flags) else { continue };
            let size = Inode::i_size(inode);
            for pos in [0, 32 << 10, (size / 2) & !4095, (size - 8192).max(0) & !4095] {
                let iov = [IoVec::dest(pages.bytes_mut())];
                let read = ext4_file_read(&mut Kiocb::new_sync(&file, pos), &mut IovIter::new(&iov));
                self.note(read);
            }
        }
    }

    fn attributes(&mut self, inode: &IRef) {
        let mut buf = [0; 4096];
        let list = ext4_listxattr(inode, &mut buf);
        self.note(list);
        for name in [b"user.small".as_slice(), b"user.large", b"user.other"] {
            let get = ext4_getxattr(inode, name, &mut buf);
            self.note(get);
        }
        let set = ext4_setxattr(inode, b"user.new", &[1; 100], XattrSet::Any);
        self.note(set);
        let set = ext4_setxattr(inode, b"user.small", &[2; 300], XattrSet::Any);
        self.note(set);
        for name in [b"user.large".as_slice(), b"user.new"] {
            let removed = ext4_removexattr(inode, name);
            self.note(removed);
        }
    }

    fn write(&mut self, inode: &IRef, flags: OpenFlags, pos: i64, bytes: &[u8]) {
        let Some(file) = self.open(inode, flags | OpenFlags::O_RDWR) else { return };
        let iov = [IoVec::source(bytes)];
        let wrote = ext4_file_write(&mut Kiocb::new_sync(&file, pos), &mut IovIter::new(&iov));
        self.note(wrote);
    }

    /// Writes, holes, sizes.
    fn changes(&mut self, inode: &IRef) {
        let pages = Pages::new(8192, 0x77);
        let size = Inode::i_size(inode);
        let bs = 1i64 << inode.i_blkbits();
        for flags in [OpenFlags::O_DIRECT, OpenFlags::empty()] {
            self.write(inode, flags, 0, pages.bytes());
            self.write(inode, flags, 4096, &pages.bytes()[..4096]);
            self.write(inode, flags, size & !4095, pages.bytes());
            self.write(inode, flags, 100, &pages.bytes()[..1]);
        }
        let punch = FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE;
        for (mode, pos, len) in [
            (FallocFlags::empty(), 3 * bs, 5 * bs),
            (punch, 4 * bs + 1, 3 * bs),
            (FallocFlags::ZERO_RANGE, bs, 3 * bs),
            (FallocFlags::COLLAPSE_RANGE, bs, bs),
            (FallocFlags::INSERT_RANGE, 2 * bs, bs),
        ] {
            let done = ext4_fallocate(inode, mode, pos, len);
            self.note(done);
        }
        let sync = <ext4_dio::Ext4 as kernel_shim::fs::FileSystem>::fsync(inode, 0, i64::MAX, false);
        self.note(sync);
        for size in [size / 2, size.saturating_add(1), 0] {
            let done = ext4_setattr_size(inode, size);
            self.note(done);
        }
        self.write(inode, OpenFlags::O_DIRECT, 0, pages.bytes());
    }

    /// Names made in a directory.
    fn names(&mut self, dir: &IRef) {
        if !dir.is_dir() {
            return;
        }
        let cred = Cred::default();
        for n in 0..8 {
            let name = format!("new{n:03}{}", "y".repeat(20 * n));
            let made = vfs_create(dir, name.as_bytes(), 0o644, &cred);
            let Some(inode) = self.note(made) else { continue };
            let linked = vfs_link(&inode, dir, format!("link{n}").as_bytes());
            self.note(linked);
        }
        let made = vfs_mkdir(dir, b"newdir", 0o755, &cred);
        self.note(made);
        let made = vfs_symlink(dir, b"newlink", &[b'z'; 100], &cred);
        self.note(made);
        let qstr = |name| Qstr { name, slash: false };
        let moved = vfs_rename((dir, qstr(b"link0")), (dir, qstr(b"link1")), RenameFlags::empty());
        self.note(moved);
        let removed = vfs_rmdir(dir, b"newdir");
        self.note(removed);
    }

    /// Everything that was found, the last first.
    fn removes(&mut self, found: &[(IRef, Vec<u8>, IRef)]) {
        for (dir, name, inode) in found.iter().rev() {
            let removed =
                if inode.is_dir() { vfs_rmdir(dir, name) } else { vfs_unlink(dir, Qstr { name, slash: false }) };
            self.note(removed);
        }
    }
}
