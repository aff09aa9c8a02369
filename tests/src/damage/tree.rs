// SPDX-License-Identifier: GPL-2.0-only
//! Reads the structures of a sound image: plainly, with no checks but the slices' own.

/// Bytes, as numbers.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl<'a> Raw<'a> {
    pub(super) fn u8(self, at: usize) -> u32 {
        u32::from(self.0[at])
    }

    pub(super) fn le16(self, at: usize) -> u32 {
        u32::from(u16::from_le_bytes(self.0[at..at + 2].try_into().expect("two bytes")))
    }

    pub(super) fn le32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    pub(super) fn be32(self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    pub(super) fn from(self, at: usize) -> Raw<'a> {
        Raw(&self.0[at..])
    }
}

/// What is to be known of a file system to find its inodes.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Bytes in a block.
    pub block_size: usize,
    /// Blocks of the file system.
    pub blocks: u64,
    /// 1 for blocks of 1 KiB.
    pub first_data_block: u32,
    /// Blocks in a group.
    pub blocks_per_group: u32,
    /// Inodes in a group.
    pub inodes_per_group: u32,
    /// Bytes of an inode.
    pub inode_size: usize,
    /// Bytes of a group descriptor.
    pub desc_size: usize,
    /// Groups.
    pub groups: u32,
    /// There are checksums everywhere.
    pub csum: bool,
    /// There are checksums in group descriptors.
    pub gdt_csum: bool,
    /// What they start from.
    pub seed: u32,
    /// Of the file system.
    pub uuid: [u8; 16],
}

impl Geometry {
    pub(super) fn of(image: &[u8]) -> Self {
        let sb = Raw(&image[1024..2048]);
        let block_size = 1024usize << sb.le32(0x18);
        let first_data_block = sb.le32(0x14);
        let blocks_per_group = sb.le32(0x20);
        let blocks = u64::from(sb.le32(4));
        let ro_compat = sb.le32(0x64);
        let incompat = sb.le32(0x60);
        let uuid: [u8; 16] = sb.0[0x68..0x78].try_into().expect("16 bytes");
        Self {
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            inodes_per_group: sb.le32(0x28),
            inode_size: sb.le16(0x58) as usize,
            desc_size: if incompat & 0x80 != 0 { sb.le16(0xfe) as usize } else { 32 },
            groups: (blocks as u32 - first_data_block).div_ceil(blocks_per_group),
            csum: ro_compat & 0x400 != 0,
            gdt_csum: ro_compat & 0x10 != 0,
            seed: ext4_dio::checksum::ext4_chksum(!0, &uuid),
            uuid,
        }
    }

    /// Where a descriptor is, in bytes.
    pub fn desc_at(&self, group: u32) -> u64 {
        let block = u64::from(self.first_data_block) + 1;
        block * self.block_size as u64 + u64::from(group) * self.desc_size as u64
    }
}

/// An inode of a sound image.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) ino: u32,
    pub(super) at: u64,
    pub(super) mode: u32,
    pub(super) flags: u32,
    pub(super) size: u64,
    pub(super) generation: u32,
    pub(super) file_acl: u64,
    pub(super) i_block: [u8; 60],
}

/// What an inode maps.
#[derive(Default)]
pub(super) struct Map {
    /// Nodes of the tree, or indirect blocks, parents first.
    pub(super) nodes: Vec<u64>,
    /// Logical and physical block, data only.
    pub(super) blocks: Vec<(u32, u64)>,
}

/// A sound image.
pub(super) struct Tree<'a> {
    pub(super) image: &'a [u8],
    pub(super) geo: &'a Geometry,
}

impl<'a> Tree<'a> {
    pub(super) fn block(&self, pblk: u64) -> Raw<'a> {
        let bs = self.geo.block_size;
        Raw(&self.image[pblk as usize * bs..][..bs])
    }

    pub(super) fn desc(&self, group: u32) -> Raw<'a> {
        Raw(&self.image[self.geo.desc_at(group) as usize..][..self.geo.desc_size])
    }

    pub(super) fn inode(&self, ino: u32) -> Inode {
        let (group, index) = ((ino - 1) / self.geo.inodes_per_group, (ino - 1) % self.geo.inodes_per_group);
        let table = u64::from(self.desc(group).le32(8));
        let at = table * self.geo.block_size as u64 + u64::from(index) * self.geo.inode_size as u64;
        let raw = Raw(&self.image[at as usize..][..self.geo.inode_size]);
        Inode {
            ino,
            at,
            mode: raw.le16(0),
            flags: raw.le32(0x20),
            size: u64::from(raw.le32(0x6c)) << 32 | u64::from(raw.le32(4)),
            generation: raw.le32(0x64),
            file_acl: u64::from(raw.le32(0x68)),
            i_block: raw.0[0x28..0x28 + 60].try_into().expect("60 bytes"),
        }
    }

    pub(super) fn map(&self, inode: &Inode) -> Map {
        let mut map = Map::default();
        let kind = inode.mode & 0o170_000;
        let fast = kind == 0o120_000 && inode.size < 60;
        if fast || ![0o100_000, 0o040_000, 0o120_000].contains(&kind) {
            return map;
        }
        if inode.flags & 0x8_0000 != 0 {
            self.extents(Raw(&inode.i_block), &mut map);
        } else {
            let root = Raw(&inode.i_block);
            let mut lblk = 0;
            for at in 0..12 {
                self.indirect(root.le32(4 * at), 0, &mut lblk, &mut map);
            }
            for level in 1..4 {
                self.indirect(root.le32(4 * (11 + level as usize)), level, &mut lblk, &mut map);
            }
        }
        map
    }

    fn extents(&self, node: Raw<'_>, map: &mut Map) {
        let (entries, depth) = (node.le16(2) as usize, node.le16(6));
        for entry in (0..entries).map(|at| node.from(12 + 12 * at)) {
            if depth > 0 {
                let child = u64::from(entry.le32(4));
                map.nodes.push(child);
                self.extents(self.block(child), map);
                continue;
            }
            let len = entry.le16(4);
            let (lblk, pblk) = (entry.le32(0), u64::from(entry.le32(8)));
            let len = if len > 0x8000 { len - 0x8000 } else { len };
            map.blocks.extend((0..len).map(|n| (lblk + n, pblk + u64::from(n))));
        }
    }

    fn indirect(&self, pblk: u32, level: u32, lblk: &mut u32, map: &mut Map) {
        let each = (self.geo.block_size / 4) as u32;
        if pblk == 0 {
            *lblk = lblk.wrapping_add(each.pow(level));
        } else if level == 0 {
            map.blocks.push((*lblk, u64::from(pblk)));
            *lblk += 1;
        } else {
            map.nodes.push(u64::from(pblk));
            let node = self.block(u64::from(pblk));
            for at in 0..each as usize {
                self.indirect(node.le32(4 * at), level - 1, lblk, map);
            }
        }
    }

    /// The names in a block of a directory, with their inodes.
    pub(super) fn names(&self, pblk: u64) -> Vec<(String, u32)> {
        let raw = self.block(pblk);
        let mut names = Vec::new();
        let mut at = 0;
        while at + 8 <= raw.0.len() {
            let (ino, rec_len, len) = (raw.le32(at), raw.le16(at + 4) as usize, raw.u8(at + 6) as usize);
            let name = String::from_utf8_lossy(&raw.0[at + 8..at + 8 + len]).into_owned();
            if ino != 0 && name != "." && name != ".." {
                names.push((name, ino));
            }
            at += rec_len.max(8);
        }
        names
    }
}
