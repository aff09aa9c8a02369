// SPDX-License-Identifier: GPL-2.0-only
//! Free space: several files that grow, shrink and get holes on a disk that is often full, against sets of blocks. What is given to one is
//! nobody else's and no metadata, the bitmaps on the disk have exactly what is owned, and what is free can be had.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use ext4_dio::ext4::{Group, Lblk};
use ext4_dio::extents::ext4_ext_next;
use ext4_dio::extents_status::EsStatus;
use ext4_dio::fallocate::{FallocFlags, ext4_fallocate};
use ext4_dio::setattr::ext4_setattr_size;
use ext4_dio::{File, ext4_sync_fs};
use ext4_dio_tests::dio::{IN_FLIGHT, Mount, auto};
use ext4_dio_tests::images::{Image, Mkfs};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::code::ENOSPC;
use proptest::prelude::*;

const BLOCK: i64 = 1024;
const FILES: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Allocate {
        file: usize,
        at: u32,
        len: u32,
    },
    Punch {
        file: usize,
        at: u32,
        len: u32,
    },
    Truncate {
        file: usize,
        blocks: u32,
    },
    /// What was freed may be given out again.
    Commit,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![2 => 1..20u32, 2 => 20..300u32, 1 => 300..2500u32];
    prop_oneof![
        5 => (0..FILES, 0..3000u32, len.clone()).prop_map(|(file, at, len)| Op::Allocate { file, at, len }),
        3 => (0..FILES, 0..3000u32, len).prop_map(|(file, at, len)| Op::Punch { file, at, len }),
        1 => (0..FILES, 0..3000u32).prop_map(|(file, blocks)| Op::Truncate { file, blocks }),
        2 => Just(Op::Commit),
    ]
}

fn image() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let args: &[&str] = &["-g", "1024", "-J", "size=1", "-m", "0"];
        let spec = Mkfs { block_size: 1024, size_kib: 4 << 10, inodes: 64, args, ..Mkfs::default() };
        let image = Image::make(&spec, None);
        image.debugfs_script(&(0..FILES).map(|n| format!("write /dev/null f{n}")).collect::<Vec<_>>());
        image.bytes()
    })
}

struct World {
    m: Mount,
    files: Vec<KArc<File>>,
    /// Blocks that were in use when there were no files.
    metadata: BTreeMap<u64, ()>,
}

impl World {
    fn new() -> Self {
        let m = Mount::with(image(), IN_FLIGHT, auto());
        let files = (0..FILES).map(|n| m.open(&format!("/f{n}"))).collect();
        let mut world = Self { m, files, metadata: BTreeMap::new() };
        world.metadata = world.used();
        world
    }

    /// What the bitmaps have as used.
    fn used(&self) -> BTreeMap<u64, ()> {
        let sb = self.m.sb.s_fs_info();
        let mut used = BTreeMap::new();
        for group in (0..sb.s_groups_count).map(Group) {
            let bitmap = sb.ext4_read_block_bitmap(group).expect("a bitmap");
            let first = sb.ext4_group_first_block_no(group).0;
            let map = bitmap.read();
            let blocks = (0..sb.blocks_in_group(group)).filter(|bit| map[*bit as usize / 8] & 1 << (bit % 8) != 0);
            used.extend(blocks.map(|bit| (first + u64::from(bit), ())));
        }
        used
    }

    fn apply(&self, op: &Op) {
        let file = |n: usize| self.files[n].f_inode();
        let done = match *op {
            Op::Allocate { file: n, at, len } => {
                ext4_fallocate(file(n), FallocFlags::empty(), i64::from(at) * BLOCK, i64::from(len) * BLOCK)
            }
            Op::Punch { file: n, at, len } => {
                let mode = FallocFlags::PUNCH_HOLE | FallocFlags::KEEP_SIZE;
                ext4_fallocate(file(n), mode, i64::from(at) * BLOCK, i64::from(len) * BLOCK)
            }
            Op::Truncate { file: n, blocks } => ext4_setattr_size(file(n), i64::from(blocks) * BLOCK),
            Op::Commit => ext4_sync_fs(&self.m.sb),
        };
        // Only those who ask for blocks may find none.
        let fine = matches!(op, Op::Allocate { .. } | Op::Punch { .. }) && done == Err(ENOSPC);
        assert!(done.is_ok() || fine, "{op:?}: {done:?}");
    }

    fn agree(&self) {
        let mut owners: BTreeMap<u64, usize> = BTreeMap::new();
        let mut i_blocks = 0;
        for (n, file) in self.files.iter().enumerate() {
            let mut at = 0;
            while at < 8192 {
                let es = ext4_ext_next(file.f_inode(), Lblk(at)).expect("a map");
                at = es.end();
                if es.status() == EsStatus::Hole {
                    continue;
                }
                for block in (0..es.len()).map(|n| es.pblk().0 + u64::from(n)) {
                    assert!(!self.metadata.contains_key(&block), "f{n} has block {block}, which is metadata");
                    assert_eq!(owners.insert(block, n), None, "block {block} has two owners");
                }
            }
            i_blocks += file.f_inode().i_private().i_blocks.load(std::sync::atomic::Ordering::Relaxed) / 2;
        }
        let used = self.used();
        assert!(owners.keys().all(|block| used.contains_key(block)), "a block of a file is free");
        // Nodes of trees are the rest.
        assert_eq!(
            used.len() as u64,
            self.metadata.len() as u64 + i_blocks,
            "used blocks, and those that somebody has"
        );
        let sb = self.m.sb.s_fs_info();
        assert_eq!(sb.ext4_count_free_clusters(), Ok(sb.s_blocks_count - 1 - used.len() as u64), "descriptors");
        assert_eq!(sb.free_clusters(), sb.s_blocks_count - 1 - used.len() as u64, "the count in memory");
    }

    /// All of it comes back.
    fn finish(self) {
        for file in &self.files {
            ext4_setattr_size(file.f_inode(), 0).expect("truncate");
        }
        ext4_sync_fs(&self.m.sb).expect("sync");
        assert!(self.used() == self.metadata, "blocks that nobody has");
        let Self { m, files, .. } = self;
        drop(files);
        m.finish();
    }
}

#[test]
fn space_is_given_out_once_and_comes_back() {
    super::check("space_is_given_out_once_and_comes_back", 24, prop::collection::vec(op(), 1..40), |ops| {
        let world = World::new();
        for op in &ops {
            world.apply(op);
            world.agree();
        }
        world.finish();
    });
}
