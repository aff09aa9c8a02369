// SPDX-License-Identifier: GPL-2.0-only
//! Where what is in a sound image, by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ext4_dio::checksum::ext4_inode_csum_seed;
use ext4_dio::ext4::Ino;
use ext4_dio::jbd2::disk::{Compat, Format, Incompat, TagFlags, blocktype};

use super::tree::{Geometry, Inode, Raw, Tree};

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes of a file. No checksum, but if they are in the log.
    Data,
    /// A symbolic link's target, in a block.
    Symlink,
    /// Block numbers.
    Indirect,
    /// A block of attributes.
    Xattr,
    /// A node of an extent tree.
    Extent,
    /// Directory entries.
    Dir,
    /// The root of a hash tree.
    DxRoot,
    /// Another node of one.
    DxNode,
    /// A block of the orphan file.
    Orphan,
    /// A block in the log that a descriptor tells of: which, and where the tag is in it.
    LogData(usize, usize),
    /// A descriptor, commit or revoke block.
    Log,
    /// The journal's super block.
    JournalSuper,
    /// Of a group.
    BlockBitmap(u32),
    /// Of a group.
    InodeBitmap(u32),
    /// An inode.
    Inode(u32),
    /// A group's descriptor.
    Group(u32),
    /// The super block.
    Super,
}

/// A structure in the image.
#[derive(Clone, Debug)]
pub struct Place {
    /// `sb`, `gd:0`, `bbitmap:0`, `ibitmap:0`, `inode:/path`, `inode:8`, `extent:/path:N`, `ind:/path:N`, `dir:/path:LBLK`,
    /// `dxroot:/path:0`, `dxnode:/path:LBLK`, `xattr:/path`, `symlink:/path`, `data:/path:LBLK`, `jsb`, `log:LBLK`, `orphan:N`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its first byte in the image.
    pub at: u64,
    /// Bytes.
    pub len: usize,
    /// What its checksum starts from.
    pub seed: u32,
}

/// All there is in an image.
pub struct Layout {
    /// Sizes.
    pub geo: Geometry,
    /// In no order.
    pub places: Vec<Place>,
    /// How the log is written, if there is one.
    pub log: Option<Format>,
    by_name: BTreeMap<String, usize>,
}

/// How many blocks of one file's data, or of the log's unused part, are places.
const FEW: usize = 4;

impl Layout {
    /// Of a sound image.
    pub fn of(image: &[u8]) -> Self {
        let geo = Geometry::of(image);
        let mut finder = Finder { tree: Tree { image, geo: &geo }, places: Vec::new(), log: None };
        finder.groups();
        finder.files();
        finder.special();
        let (places, log) = (finder.places, finder.log);
        let by_name = places.iter().enumerate().map(|(at, place)| (place.name.clone(), at)).collect();
        Self { geo, places, log, by_name }
    }

    /// The place with a name.
    pub fn place(&self, name: &str) -> Option<&Place> {
        self.by_name.get(name).map(|at| &self.places[*at])
    }
}

struct Finder<'a> {
    tree: Tree<'a>,
    places: Vec<Place>,
    log: Option<Format>,
}

impl Finder<'_> {
    fn add(&mut self, name: String, kind: Kind, at: u64, len: usize, seed: u32) {
        self.places.push(Place { name, kind, at, len, seed });
    }

    fn add_block(&mut self, name: String, kind: Kind, pblk: u64, seed: u32) {
        let bs = self.tree.geo.block_size;
        self.add(name, kind, pblk * bs as u64, bs, seed);
    }

    fn groups(&mut self) {
        let geo = self.tree.geo;
        self.add("sb".into(), Kind::Super, 1024, 1024, !0);
        for group in 0..geo.groups {
            let desc = self.tree.desc(group);
            self.add(format!("gd:{group}"), Kind::Group(group), geo.desc_at(group), geo.desc_size, geo.seed);
            self.add_block(format!("bbitmap:{group}"), Kind::BlockBitmap(group), desc.le32(0).into(), geo.seed);
            self.add_block(format!("ibitmap:{group}"), Kind::InodeBitmap(group), desc.le32(4).into(), geo.seed);
        }
    }

    fn seed(&self, inode: &Inode) -> u32 {
        ext4_inode_csum_seed(self.tree.geo.seed, Ino(inode.ino), inode.generation)
    }

    /// Goes down from the root.
    fn files(&mut self) {
        let mut seen = BTreeSet::from([2]);
        let mut todo = VecDeque::from([("/".to_string(), 2u32)]);
        while let Some((path, ino)) = todo.pop_front() {
            let inode = self.tree.inode(ino);
            for (name, child) in self.file(&path, &inode) {
                if seen.insert(child) {
                    let slash = if path == "/" { "" } else { "/" };
                    todo.push_back((format!("{path}{slash}{name}"), child));
                }
            }
        }
    }

    /// One file; the names in it, if it is a directory.
    fn file(&mut self, path: &str, inode: &Inode) -> Vec<(String, u32)> {
        let seed = self.seed(inode);
        self.add(format!("inode:{path}"), Kind::Inode(inode.ino), inode.at, self.tree.geo.inode_size, seed);
        if inode.file_acl != 0 {
            self.add_block(format!("xattr:{path}"), Kind::Xattr, inode.file_acl, self.tree.geo.seed);
        }
        let map = self.tree.map(inode);
        for (n, node) in map.nodes.iter().enumerate() {
            match inode.flags & 0x8_0000 {
                0 => self.add_block(format!("ind:{path}:{n}"), Kind::Indirect, *node, seed),
                _ => self.add_block(format!("extent:{path}:{n}"), Kind::Extent, *node, seed),
            }
        }
        let mut names = Vec::new();
        match inode.mode & 0o170_000 {
            0o040_000 => {
                let nodes = self.dx_nodes(inode, &map.blocks);
                for (lblk, pblk) in map.blocks {
                    let (what, kind) = match nodes.iter().position(|node| *node == lblk) {
                        Some(0) => ("dxroot", Kind::DxRoot),
                        Some(_) => ("dxnode", Kind::DxNode),
                        None => ("dir", Kind::Dir),
                    };
                    self.add_block(format!("{what}:{path}:{lblk}"), kind, pblk, seed);
                    if kind == Kind::Dir {
                        names.extend(self.tree.names(pblk));
                    }
                }
            }
            0o120_000 => {
                for (_, pblk) in map.blocks {
                    self.add_block(format!("symlink:{path}"), Kind::Symlink, pblk, seed);
                }
            }
            _ => {
                for (lblk, pblk) in map.blocks.into_iter().take(FEW) {
                    self.add_block(format!("data:{path}:{lblk}"), Kind::Data, pblk, seed);
                }
            }
        }
        names
    }

    /// The blocks of a directory that are nodes of its hash tree, the root first.
    fn dx_nodes(&self, inode: &Inode, blocks: &[(u32, u64)]) -> Vec<u32> {
        if inode.flags & 0x1000 == 0 {
            return Vec::new();
        }
        let root = self.tree.block(blocks[0].1);
        let mut nodes = vec![0];
        if root.u8(0x1e) > 0 {
            let count = root.le16(0x22) as usize;
            nodes.extend((0..count).map(|at| root.le32(0x20 + 8 * at + 4)));
        }
        nodes
    }

    /// Inodes without names, and what is in them.
    fn special(&mut self) {
        let sb = Raw(&self.tree.image[1024..2048]);
        let (journal, orphans) = (sb.le32(0xe0), sb.le32(0x280));
        for ino in [7, 8, orphans] {
            if ino == 0 || self.places.iter().any(|place| place.kind == Kind::Inode(ino)) {
                continue;
            }
            let inode = self.tree.inode(ino);
            let seed = self.seed(&inode);
            self.add(format!("inode:{ino}"), Kind::Inode(ino), inode.at, self.tree.geo.inode_size, seed);
            let map = self.tree.map(&inode);
            for (n, node) in map.nodes.iter().take(FEW).enumerate() {
                let kind = if inode.flags & 0x8_0000 != 0 { Kind::Extent } else { Kind::Indirect };
                let what = if kind == Kind::Extent { "extent" } else { "ind" };
                self.add_block(format!("{what}:{ino}:{n}"), kind, *node, seed);
            }
            if ino == journal {
                self.journal(&map.blocks);
            } else if ino == orphans {
                for (lblk, pblk) in map.blocks {
                    self.add_block(format!("orphan:{lblk}"), Kind::Orphan, pblk, seed);
                }
            }
        }
    }

    fn journal(&mut self, blocks: &[(u32, u64)]) {
        let bs = self.tree.geo.block_size;
        let sb = self.tree.block(blocks[0].1);
        self.add("jsb".into(), Kind::JournalSuper, blocks[0].1 * bs as u64, 1024, !0);
        let uuid: [u8; 16] = sb.0[48..64].try_into().expect("16 bytes");
        let format = Format {
            blocksize: bs,
            compat: Compat::from_bits_retain(sb.be32(36)),
            incompat: Incompat::from_bits_retain(sb.be32(40)),
            csum_seed: ext4_dio::checksum::ext4_chksum(!0, &uuid),
            uuid,
        };
        self.log = Some(format);
        let (maxlen, start) = (sb.be32(16) as usize, sb.be32(28) as usize);
        let mut at = if start == 0 { 1 } else { start };
        let mut left = if start == 0 { 0 } else { maxlen - 1 };
        while left > 0 && self.tree.block(blocks[at].1).be32(0) == 0xc03b_3998 {
            let (n, used) = (self.places.len(), self.log_block(&format, blocks, at));
            debug_assert!(self.places.len() > n);
            at += used;
            left = left.saturating_sub(used);
        }
        for lblk in (at..blocks.len()).take(FEW) {
            self.add_block(format!("log:{lblk}"), Kind::Data, blocks[lblk].1, 0);
        }
    }

    /// A block of the log's own, and those that it tells of; how many they are.
    fn log_block(&mut self, format: &Format, blocks: &[(u32, u64)], at: usize) -> usize {
        let raw = self.tree.block(blocks[at].1);
        let own = self.places.len();
        self.add_block(format!("log:{at}"), Kind::Log, blocks[at].1, 0);
        let mut used = 1;
        if raw.be32(4) == blocktype::DESCRIPTOR {
            let mut tag_at = 12;
            while let Some(tag) = format.get_tag(&raw.0[tag_at..format.end()]) {
                self.add_block(format!("log:{}", at + used), Kind::LogData(own, tag_at), blocks[at + used].1, 0);
                used += 1;
                tag_at += format.tag_bytes();
                if !tag.flags.contains(TagFlags::SAME_UUID) {
                    tag_at += 16;
                }
                if tag.flags.contains(TagFlags::LAST_TAG) {
                    break;
                }
            }
        }
        used
    }
}
