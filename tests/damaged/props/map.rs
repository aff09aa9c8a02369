// SPDX-License-Identifier: GPL-2.0-only
//! A file's map: blocks written, allocated, converted, taken out and moved, against a model that knows each block. After each step the
//! cache and the tree say what the model says, and the nodes of the tree are as they have to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use ext4_dio::checksum::ext4_extent_block_csum;
use ext4_dio::ext4::{Lblk, MapBlocks, MapFlags};
use ext4_dio::extents::ext4_ext_next;
use ext4_dio::extents_status::EsStatus;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::inode::ext4_map_blocks;
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, Inode};
use ext4_dio_tests::dio::{IN_FLIGHT, Mount, Pages, auto, read, write};
use ext4_dio_tests::images::{Image, Mkfs};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::code::EINVAL;
use proptest::prelude::*;

const BLOCK: u32 = 1024;
/// Blocks of the file at first.
const BLOCKS: u32 = 1200;
/// And at most.
const MOST: u32 = 2000;

#[derive(Clone, Debug)]
enum Op {
    /// Writes every `step`-th block of so many, each with a tag.
    Comb {
        at: u32,
        step: u32,
        count: u32,
        tag: u8,
    },
    Write {
        at: u32,
        len: u32,
        tag: u8,
    },
    Allocate {
        at: u32,
        len: u32,
    },
    Punch {
        at: u32,
        len: u32,
    },
    Zero {
        at: u32,
        len: u32,
    },
    Collapse {
        at: u32,
        len: u32,
    },
    Insert {
        at: u32,
        len: u32,
    },
    Truncate {
        blocks: u32,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0..BLOCKS;
    let len = prop_oneof![3 => 1..8u32, 1 => 8..300u32];
    prop_oneof![
        3 => (at.clone(), 2..4u32, 1..260u32, 1..=255u8).prop_map(|(at, step, count, tag)| Op::Comb { at, step, count, tag }),
        3 => (at.clone(), 1..40u32, 1..=255u8).prop_map(|(at, len, tag)| Op::Write { at, len, tag }),
        3 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Allocate { at, len }),
        3 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Punch { at, len }),
        1 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Zero { at, len }),
        1 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Collapse { at, len }),
        1 => (at.clone(), len).prop_map(|(at, len)| Op::Insert { at, len }),
        1 => at.prop_map(|blocks| Op::Truncate { blocks }),
    ]
}

/// The file as it should be: blocks that are allocated, with the tag of those that were written.
#[derive(Clone, Default)]
struct Model {
    cells: BTreeMap<u32, Option<u8>>,
    blocks: u32,
}

impl Model {
    fn punch(&mut self, from: u32, to: u32) {
        self.cells.retain(|at, _| !(from..to).contains(at));
    }

    fn shift(&mut self, from: u32, by: i32) {
        let moved = std::mem::take(&mut self.cells).into_iter();
        self.cells = moved.map(|(at, cell)| (if at >= from { at.wrapping_add_signed(by) } else { at }, cell)).collect();
        self.blocks = self.blocks.wrapping_add_signed(by);
    }
}

fn image() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let spec =
            Mkfs { block_size: BLOCK, size_kib: 8 << 10, inodes: 32, args: &["-J", "size=1"], ..Mkfs::default() };
        let image = Image::make(&spec, None);
        image.debugfs("write /dev/null f");
        image.bytes()
    })
}

struct World {
    m: Mount,
    file: KArc<File>,
    model: Model,
}

impl World {
    fn new() -> Self {
        let m = Mount::with(image(), IN_FLIGHT, auto());
        let file = m.open("/f");
        let world = Self { m, file, model: Model { blocks: BLOCKS, ..Model::default() } };
        ext4_setattr_size(world.file.f_inode(), i64::from(BLOCKS * BLOCK)).expect("a hole");
        world
    }

    fn inode(&self) -> &Inode {
        self.file.f_inode()
    }

    fn write(&mut self, at: u32, len: u32, tag: u8) {
        let bytes = Pages::new((len * BLOCK) as usize, tag);
        assert_eq!(write(&self.file, i64::from(at * BLOCK), bytes.bytes()), Ok((len * BLOCK) as usize), "write");
        self.model.cells.extend((at..at + len).map(|at| (at, Some(tag))));
        self.model.blocks = self.model.blocks.max(at + len);
    }

    fn fallocate(&mut self, mode: FallocFlags, at: u32, len: u32) -> bool {
        let (pos, bytes) = (i64::from(at * BLOCK), i64::from(len * BLOCK));
        let done = ext4_fallocate(self.file.f_inode(), mode, pos, bytes);
        let end = at + len;
        let refused = match mode {
            FallocFlags::COLLAPSE_RANGE => end >= self.model.blocks,
            FallocFlags::INSERT_RANGE => at >= self.model.blocks,
            _ => false,
        };
        assert_eq!(done, if refused { Err(EINVAL) } else { Ok(()) }, "{mode:?} {at}+{len} of {}", self.model.blocks);
        !refused
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Comb { at, step, count, tag } => {
                for at in (at..BLOCKS).step_by(step as usize).take(count as usize) {
                    self.write(at, 1, tag);
                }
            }
            Op::Write { at, len, tag } => self.write(at, len, tag),
            Op::Allocate { at, len } => {
                self.fallocate(FallocFlags::empty(), at, len);
                for at in at..at + len {
                    self.model.cells.entry(at).or_insert(None);
                }
                self.model.blocks = self.model.blocks.max(at + len);
            }
            Op::Punch { at, len } => {
                self.fallocate(FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE, at, len);
                self.model.punch(at, at + len);
            }
            Op::Zero { at, len } => {
                self.fallocate(FallocFlags::ZERO_RANGE, at, len);
                self.model.cells.extend((at..at + len).map(|at| (at, None)));
                self.model.blocks = self.model.blocks.max(at + len);
            }
            Op::Collapse { at, len } => {
                if self.fallocate(FallocFlags::COLLAPSE_RANGE, at, len) {
                    self.model.punch(at, at + len);
                    self.model.shift(at + len, -len.cast_signed());
                }
            }
            Op::Insert { at, len } => {
                if self.model.blocks + len <= MOST && self.fallocate(FallocFlags::INSERT_RANGE, at, len) {
                    self.model.shift(at, len.cast_signed());
                }
            }
            Op::Truncate { blocks } => {
                ext4_setattr_size(self.file.f_inode(), i64::from(blocks * BLOCK)).expect("truncate");
                self.model.punch(blocks, u32::MAX);
                self.model.blocks = blocks;
            }
        }
    }

    /// The map as the cache has it, and as the tree has it: what each block is, and where.
    fn maps(&self) -> [Vec<(EsStatus, u64)>; 2] {
        let (mut cached, mut walked) = (Vec::new(), Vec::new());
        let cell = |status, pblk: u64, n: u32| (status, if status == EsStatus::Hole { 0 } else { pblk + u64::from(n) });
        while cached.len() < MOST as usize {
            let at = cached.len() as u32;
            let mut map = MapBlocks::new(Lblk(at), MOST - at);
            let found = ext4_map_blocks(self.inode(), &mut map).expect("a map");
            let status = match (found, map.m_flags.contains(MapFlags::MAPPED)) {
                (0, _) => EsStatus::Hole,
                (_, true) => EsStatus::Written,
                (_, false) => EsStatus::Unwritten,
            };
            assert!(map.m_len > 0, "no progress at {at}");
            cached.extend((0..map.m_len).map(|n| cell(status, map.m_pblk.0, n)));
        }
        while walked.len() < MOST as usize {
            let at = walked.len() as u32;
            let es = ext4_ext_next(self.inode(), Lblk(at)).expect("a map");
            assert!(es.contains(at), "{es:?} is not about {at}");
            let skip = at - es.lblk().0;
            walked.extend((skip..es.len().min(skip + MOST)).map(|n| cell(es.status(), es.pblk().0, n)));
            walked.truncate(MOST as usize);
        }
        [cached, walked]
    }

    fn agree(&self) {
        // The nodes' checksums are set then.
        self.m.sb.s_fs_info().s_journal().expect("a journal").force_commit().expect("commit");
        let [cached, walked] = self.maps();
        let mut owned = BTreeSet::new();
        for at in 0..MOST {
            let found = cached[at as usize];
            assert_eq!(found, walked[at as usize], "block {at}: cached, and in the tree");
            let expected = self.model.cells.get(&at);
            let good = match (expected, found.0) {
                (None, status) => status == EsStatus::Hole,
                (Some(Some(_)), status) => status == EsStatus::Written,
                // What is short beside a write may have been zeroed instead of cut off.
                (Some(None), status) => status != EsStatus::Hole,
            };
            assert!(good, "block {at} is {:?}, not {expected:?}", found.0);
            assert!(found.1 == 0 || owned.insert(found.1), "block {at} has the place of another");
        }
        let nodes = self.nodes();
        let i_blocks = self.inode().i_private().i_blocks.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(i_blocks, (owned.len() + nodes.len()) as u64 * 2, "i_blocks");
        assert!(nodes.iter().all(|node| owned.insert(*node)), "a node in the place of data");
    }

    /// The blocks of the tree's nodes, each checked.
    fn nodes(&self) -> BTreeSet<u64> {
        let tree = self.inode().i_private().i_data_sem.read();
        let mut nodes = BTreeSet::new();
        self.node(tree.i_data(), None, (0, u64::from(u32::MAX) + 1), &mut nodes);
        nodes
    }

    /// One node, which may speak of blocks in `bounds` only.
    fn node(&self, raw: &[u8], depth: Option<u16>, bounds: (u64, u64), nodes: &mut BTreeSet<u64>) {
        let le16 = |at: usize| u16::from_le_bytes(raw[at..at + 2].try_into().expect("two bytes"));
        let le32 = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        let (entries, max, own_depth) = (usize::from(le16(2)), usize::from(le16(4)), le16(6));
        assert_eq!(le16(0), 0xf30a, "magic");
        assert!(depth.is_none_or(|depth| depth == own_depth), "depth");
        assert_eq!(max, (raw.len() - 12) / 12, "room");
        assert!(entries <= max && (entries > 0 || depth.is_none()), "{entries} entries");
        if depth.is_some() {
            let csum = ext4_extent_block_csum(self.inode().i_private().i_csum_seed, &raw[..12 + 12 * max]);
            assert_eq!(le32(12 + 12 * max), csum, "checksum");
        }
        let mut from = bounds.0;
        for entry in (0..entries).map(|n| 12 + 12 * n) {
            let first = u64::from(le32(entry));
            assert!(first >= from && first < bounds.1, "{first} is not from {from} to {}", bounds.1);
            if own_depth == 0 {
                let len = u64::from(le16(entry + 4));
                let len = if len > 32768 { len - 32768 } else { len };
                assert!(len > 0 && first + len <= bounds.1, "{first}+{len} is not below {}", bounds.1);
                from = first + len;
            } else {
                let child = u64::from(le32(entry + 4));
                assert!(nodes.insert(child), "a node twice");
                let next = if entry + 12 < 12 + 12 * entries { u64::from(le32(entry + 12)) } else { bounds.1 };
                let bh = self.m.sb.s_fs_info().buffers.bread(child).expect("a node");
                let raw = bh.read().to_vec();
                self.node(&raw, Some(own_depth - 1), (first, next), nodes);
                from = next;
            }
        }
    }

    /// The file reads as the model says, and the disk is clean.
    fn finish(self) {
        for at in (0..self.model.blocks).step_by(64) {
            let len = 64.min(self.model.blocks - at);
            let bytes = read(&self.file, i64::from(at * BLOCK), (len * BLOCK) as usize).expect("read");
            for (n, block) in (at..).zip(bytes.chunks(BLOCK as usize)) {
                let tag = self.model.cells.get(&n).copied().flatten().unwrap_or(0);
                assert!(block.iter().all(|byte| *byte == tag), "block {n}");
            }
        }
        let Self { m, file, .. } = self;
        m.assert_idle(&file);
        drop(file);
        m.finish();
    }
}

#[test]
fn maps_follow_the_model() {
    super::check("maps_follow_the_model", 24, prop::collection::vec(op(), 1..24), |ops| {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.agree();
        }
        world.finish();
    });
}
