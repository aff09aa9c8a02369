// SPDX-License-Identifier: GPL-2.0-only
//! Blocks and inodes given out and taken back, against a model that knows who has what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use ext4_dio::corrupt::Corrupt;
use ext4_dio::ext4::{BgFlags, EXT4_ROOT_INO, Fsblk, Group, Ino, Lblk};
use ext4_dio::ext4_jbd2::ext4_journal_start;
use ext4_dio::ialloc::{NewInodeSpec, ext4_new_inode};
use ext4_dio::mballoc::{AllocationRequest, FreeFlags, MbFlags, ext4_free_blocks, ext4_mb_new_blocks};
use ext4_dio::sb::Ext4SbInfo;
use ext4_dio::{File, IRef, ext4_iget, ext4_sync_fs};
use ext4_dio_tests::dio::{Mount, auto};
use ext4_dio_tests::images::{Image, Mkfs, Source, peek, poke, stamped_blocks};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::error::Result;
use kernel_shim::error::code::{EFSBADCRC, EFSCORRUPTED, EINVAL, ENOSPC};

/// Numbers that look random, the same for the same seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }

    /// Less than `1 << bits`, and small more often than large.
    fn length(&mut self, bits: u64) -> u32 {
        let end = 1 << self.below(bits);
        1 + self.below(end) as u32
    }
}

/// File systems that differ in what the allocator looks at, small enough to be filled.
fn kinds() -> Vec<(&'static str, Mkfs)> {
    let base = |block_size, size_kib| Mkfs { block_size, size_kib, inodes: 256, ..Mkfs::default() };
    let lazy = "lazy_itable_init=1";
    vec![
        ("4k", base(4096, 16 << 10)),
        ("2k", base(2048, 12 << 10)),
        ("1k", base(1024, 10 << 10)),
        ("no journal", Mkfs { features: "^has_journal", ..base(4096, 16 << 10) }),
        ("1k, groups of 1024", Mkfs { args: &["-g", "1024"], features: "^has_journal", ..base(1024, 10_001) }),
        ("uninit", Mkfs { args: &["-g", "1024"], extended: lazy, features: "^has_journal", ..base(4096, 24 << 10) }),
        (
            "gdt_csum",
            Mkfs {
                args: &["-g", "1024"],
                extended: lazy,
                features: "^metadata_csum,uninit_bg,^has_journal",
                ..base(2048, 12 << 10)
            },
        ),
        (
            "no checksums",
            Mkfs { args: &["-g", "1024"], features: "^metadata_csum,^has_journal", ..base(1024, 10 << 10) },
        ),
        (
            "no flex_bg",
            Mkfs { args: &["-g", "512"], extended: lazy, features: "^flex_bg,^has_journal", ..base(4096, 16 << 10) },
        ),
        (
            "meta_bg",
            Mkfs { args: &["-g", "512"], features: "meta_bg,^resize_inode,^has_journal", ..base(1024, 12 << 10) },
        ),
        ("32 bit", Mkfs { args: &["-g", "1024"], features: "^64bit,^has_journal", ..base(4096, 16 << 10) }),
        ("bare", Mkfs { fs_type: "ext2", inode_size: 128, ..base(1024, 8 << 10) }),
    ]
}

/// A mount, and a file, open for writing, that blocks are allocated for.
struct Env {
    mount: Mount,
    root: IRef,
    file: KArc<File>,
}

impl Env {
    fn new(spec: &Mkfs) -> Self {
        Self::of(&image(spec))
    }

    fn of(bytes: &[u8]) -> Self {
        let mount = Mount::with(bytes, "errors=continue", auto());
        let root = ext4_iget(&mount.sb, EXT4_ROOT_INO).expect("the root");
        let file = mount.open("/file");
        Self { mount, root, file }
    }

    fn sb(&self) -> &Ext4SbInfo {
        self.mount.sb.s_fs_info()
    }

    fn alloc(&self, goal: u64, len: u32, flags: MbFlags) -> Result<(u64, u32)> {
        self.alloc_at(0, goal, len, flags)
    }

    fn alloc_at(&self, logical: u32, goal: u64, len: u32, flags: MbFlags) -> Result<(u64, u32)> {
        self.alloc_for(&self.file, logical, goal, len, flags)
    }

    fn alloc_for(&self, file: &File, logical: u32, goal: u64, len: u32, flags: MbFlags) -> Result<(u64, u32)> {
        let mut handle = ext4_journal_start(self.sb(), 16)?;
        let ar = AllocationRequest { inode: file.f_inode(), goal: Fsblk(goal), logical: Lblk(logical), len, flags };
        let got = ext4_mb_new_blocks(&mut handle, &ar);
        handle.stop()?;
        got.map(|(block, len)| (block.0, len))
    }

    /// As those do who allocate: frees that are not committed yet are waited for.
    fn alloc_retry(&self, goal: u64, len: u32, flags: MbFlags) -> Result<(u64, u32)> {
        let mut retries = 0;
        loop {
            match self.alloc(goal, len, flags) {
                Err(ENOSPC) if self.sb().ext4_should_retry_alloc(&mut retries) => {}
                got => return got,
            }
        }
    }

    fn free(&self, block: u64, len: u32) -> Result {
        let mut handle = ext4_journal_start(self.sb(), 64)?;
        let done = ext4_free_blocks(&mut handle, self.file.f_inode(), Fsblk(block), len, FreeFlags::empty());
        handle.stop()?;
        done
    }

    fn i_blocks(&self) -> u64 {
        self.file.f_inode().i_private().i_blocks.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Blocks that the bitmaps say are free.
    fn free_blocks(&self) -> BTreeSet<u64> {
        let sb = self.sb();
        let mut free = BTreeSet::new();
        for group in (0..sb.s_groups_count).map(Group) {
            let bitmap = sb.ext4_read_block_bitmap(group).expect("a good bitmap");
            let first = sb.ext4_group_first_block_no(group).0;
            let map = bitmap.read();
            let clear = (0..sb.blocks_in_group(group)).filter(|bit| map[*bit as usize / 8] >> (bit % 8) & 1 == 0);
            free.extend(clear.map(|bit| first + u64::from(bit)));
        }
        free
    }

    /// Counters, descriptors and bitmaps agree.
    fn check_counts(&self, expected: u64) {
        let sb = self.sb();
        assert_eq!(sb.free_clusters(), expected, "the counter");
        assert_eq!(sb.ext4_count_free_clusters(), Ok(expected), "the descriptors");
        assert_eq!(self.free_blocks().len() as u64, expected, "the bitmaps");
    }

    fn finish(self) -> Vec<u8> {
        drop(self.root);
        drop(self.file);
        self.mount.finish()
    }
}

/// A file system with a file of some blocks.
fn image(spec: &Mkfs) -> Vec<u8> {
    let source = Source::new();
    source.file("file", &stamped_blocks(4, spec.block_size)).file("other", b"");
    Image::make(spec, Some(source.path())).bytes()
}

/// Who has which blocks: start and length.
#[derive(Default)]
struct Model {
    held: BTreeMap<u64, u32>,
}

impl Model {
    fn add(&mut self, block: u64, len: u32) {
        let end = block + u64::from(len);
        let before = self.held.range(..end).next_back();
        assert!(before.is_none_or(|(b, l)| b + u64::from(*l) <= block), "{block}+{len} is held already: {before:?}");
        self.held.insert(block, len);
    }

    fn blocks(&self) -> u64 {
        self.held.values().map(|len| u64::from(*len)).sum()
    }

    /// A part of something held, which is no longer.
    fn take(&mut self, rng: &mut Rng) -> Option<(u64, u32)> {
        let nth = rng.below(self.held.len() as u64) as usize;
        let (block, len) = self.held.iter().nth(nth).map(|(b, l)| (*b, *l))?;
        self.held.remove(&block);
        let from = if rng.below(3) == 0 { rng.below(u64::from(len)) as u32 } else { 0 };
        let part = if rng.below(3) == 0 { 1 + rng.below(u64::from(len - from)) as u32 } else { len - from };
        if from > 0 {
            self.held.insert(block, from);
        }
        if from + part < len {
            self.held.insert(block + u64::from(from + part), len - from - part);
        }
        Some((block + u64::from(from), part))
    }
}

#[test]
fn what_is_given_out_was_free_and_what_is_freed_comes_back() {
    for (seed, (name, spec)) in (0..).zip(kinds()) {
        println!("{name}, seed {seed}");
        let env = Env::new(&spec);
        let free = env.free_blocks();
        let initial = free.len() as u64;
        env.check_counts(initial);
        let i_blocks = env.i_blocks();
        let (mut rng, mut model) = (Rng(seed), Model::default());
        for _ in 0..300 {
            if rng.below(5) < 3 {
                let len = rng.length(11);
                let goal = rng.below(env.sb().s_blocks_count + 10);
                let data = MbFlags::DATA;
                let flags = [MbFlags::empty(), MbFlags::NOPREALLOC | data, MbFlags::USE_RESERVED, data, data];
                let flags = flags[rng.below(5) as usize];
                match env.alloc_at(rng.below(64) as u32, goal, len, flags) {
                    Ok((block, got)) => {
                        assert!(got >= 1 && got <= len);
                        assert!((block..block + u64::from(got)).all(|block| free.contains(&block)));
                        model.add(block, got);
                    }
                    Err(error) => assert_eq!(error, ENOSPC),
                }
            } else if let Some((block, len)) = model.take(&mut rng) {
                env.free(block, len).expect("it is ours");
            }
        }
        env.check_counts(initial - model.blocks());
        for (block, len) in std::mem::take(&mut model.held) {
            env.free(block, len).expect("it is ours");
        }
        env.check_counts(initial);
        assert_eq!(env.i_blocks(), i_blocks);
        assert_eq!(env.free_blocks(), free);
        env.finish();
    }
}

#[test]
fn a_file_system_is_full_when_no_block_is_free_and_not_before() {
    for (name, spec) in kinds() {
        println!("{name}");
        let env = Env::new(&spec);
        let initial = env.sb().free_clusters();
        let mut model = Model::default();
        // What is kept back is for those who say so.
        let plain = loop {
            match env.alloc_retry(0, 100, MbFlags::empty()) {
                Ok((block, len)) => model.add(block, len),
                Err(error) => break error,
            }
        };
        assert_eq!(plain, ENOSPC);
        assert_eq!(env.sb().free_clusters(), env.sb().resv_clusters());
        while let Ok((block, len)) = env.alloc_retry(0, 7, MbFlags::USE_RESERVED) {
            model.add(block, len);
        }
        assert_eq!(env.alloc_retry(0, 1, MbFlags::USE_RESERVED), Err(ENOSPC));
        assert_eq!(model.blocks(), initial);
        env.check_counts(0);
        for (block, len) in model.held {
            env.free(block, len).expect("it is ours");
        }
        env.check_counts(initial);
        // And all of it can be had again.
        let (block, len) = env.alloc_retry(0, 64, MbFlags::empty()).expect("room");
        env.free(block, len).expect("it is ours");
        env.finish();
    }
}

#[test]
fn the_goal_is_met_if_it_is_free() {
    let env = Env::new(&kinds()[3].1);
    let free = env.free_blocks();
    let mut rng = Rng(1);
    for _ in 0..100 {
        let goal = rng.below(env.sb().s_blocks_count - 20);
        let (block, len) = env.alloc(goal, 9, MbFlags::empty()).expect("room");
        if (goal..goal + 9).all(|block| free.contains(&block)) {
            assert_eq!((block, len), (goal, 9));
        }
        env.free(block, len).expect("it is ours");
    }
    env.finish();
}

#[test]
fn files_that_grow_side_by_side_are_in_one_piece_each() {
    for (kind, step, steps) in [(0, 3, 40), (3, 1, 200), (2, 1, 12)] {
        let (name, spec) = &kinds()[kind];
        println!("{name}, {step}");
        let env = Env::new(spec);
        let other = env.mount.open("/other");
        let initial = env.sb().free_clusters();
        let mut held = [Vec::new(), Vec::new()];
        for _ in 0..steps {
            for (file, held) in [&env.file, &other].into_iter().zip(&mut held) {
                let goal = held.last().map_or(0, |(block, len)| block + u64::from(*len));
                let logical = 4 + held.iter().map(|(_, len)| len).sum::<u32>();
                held.push(env.alloc_for(file, logical, goal, step, MbFlags::DATA).expect("room"));
            }
        }
        let total: u32 = held.iter().flatten().map(|(_, len)| len).sum();
        for held in &held {
            let breaks = held.windows(2).filter(|w| w[0].0 + u64::from(w[0].1) != w[1].0).count();
            // A small file's first blocks are among those of others.
            assert!(breaks <= 12, "{breaks} breaks: {held:?}");
        }
        // What is ahead of them is not on disk, and others get it when there is nothing else.
        env.check_counts(initial - u64::from(total));
        let mut model = Model::default();
        held.into_iter().flatten().for_each(|(block, len)| model.add(block, len));
        while let Ok((block, len)) = env.alloc(0, 1000, MbFlags::USE_RESERVED) {
            model.add(block, len);
        }
        env.check_counts(0);
        for (block, len) in model.held {
            env.free(block, len).expect("it is ours");
        }
        drop(other);
        env.check_counts(initial);
        env.finish();
    }
}

/// Until then a crash brings back the old owner, who must not find another's data.
#[test]
fn what_was_freed_is_given_out_again_when_that_is_committed() {
    let mount = Mount::with(&image(&kinds()[0].1), "commit=300", auto());
    let root = ext4_iget(&mount.sb, EXT4_ROOT_INO).expect("the root");
    let file = mount.open("/file");
    let env = Env { mount, root, file };
    let initial = env.sb().free_clusters();
    let goal = 3000;
    assert_eq!(env.alloc(goal, 50, MbFlags::empty()), Ok((goal, 50)));
    ext4_sync_fs(&env.mount.sb).expect("syncing");
    env.free(goal, 50).expect("it is ours");
    env.check_counts(initial);
    if env.sb().s_journal().is_some() {
        let (block, len) = env.alloc(goal, 50, MbFlags::empty()).expect("room elsewhere");
        assert!(block + u64::from(len) <= goal || goal + 50 <= block, "{block}+{len}");
        env.free(block, len).expect("it is ours");
        // Nor does a full file system get it, before it waits.
        let mut model = Model::default();
        while let Ok((block, len)) = env.alloc(0, 500, MbFlags::USE_RESERVED) {
            model.add(block, len);
        }
        env.check_counts(50 + u64::from(len));
        let (block, len) = env.alloc_retry(goal, 50, MbFlags::USE_RESERVED).expect("room after a commit");
        assert_eq!((block, len), (goal, 50));
        for (block, len) in model.held {
            env.free(block, len).expect("it is ours");
        }
    } else {
        assert_eq!(env.alloc(goal, 50, MbFlags::empty()), Ok((goal, 50)));
    }
    env.free(goal, 50).expect("it is ours");
    env.check_counts(initial);
    env.finish();
}

#[test]
fn four_threads_never_get_the_same_block() {
    for kind in [0, 3, 4, 5] {
        let (name, spec) = &kinds()[kind];
        println!("{name}");
        let env = Env::new(spec);
        let initial = env.sb().free_clusters();
        let all = Mutex::new(Model::default());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (env, all) = (&env, &all);
                scope.spawn(move || {
                    let (mut rng, mut mine) = (Rng(thread), Model::default());
                    for _ in 0..200 {
                        if rng.below(5) < 3 {
                            let len = rng.length(8);
                            if let Ok((block, len)) = env.alloc(rng.below(4096), len, MbFlags::empty()) {
                                all.lock().expect("no panic").add(block, len);
                                mine.add(block, len);
                            }
                        } else if let Some(block) = mine.held.keys().next().copied() {
                            let len = mine.held.remove(&block).expect("it is there");
                            all.lock().expect("no panic").held.remove(&block);
                            env.free(block, len).expect("it is ours");
                        }
                    }
                });
            }
        });
        let held = all.into_inner().expect("no panic");
        env.check_counts(initial - held.blocks());
        for (block, len) in held.held {
            env.free(block, len).expect("it is ours");
        }
        env.check_counts(initial);
        env.finish();
    }
}

#[test]
fn freeing_what_is_free_or_metadata_is_an_error_and_changes_nothing() {
    let env = Env::new(&kinds()[5].1);
    let initial = env.sb().free_clusters();
    let (block, len) = env.alloc(0, 8, MbFlags::empty()).expect("room");
    let other_group = env.sb().ext4_group_first_block_no(Group(3)).0 + 100;
    let (other, other_len) = env.alloc(other_group, 8, MbFlags::empty()).expect("room");
    for metadata in [0, 1, env.sb().ext4_get_group_desc(Group(0)).expect("a group").inode_table.0] {
        assert_eq!(env.free(metadata, 1), Err(EFSCORRUPTED));
    }
    assert_eq!(env.free(env.sb().s_blocks_count - 1, 2), Err(EFSCORRUPTED));
    assert_eq!(env.free(u64::MAX, 2), Err(EFSCORRUPTED));
    assert_eq!(
        env.mount.sb.s_fs_info().last_error(),
        Some(Corrupt::FreeSystemZone(Ino(env.file.f_inode().i_ino() as u32)))
    );
    env.free(block, len).expect("it is ours");
    env.check_counts(initial - 8);
    env.free(other, other_len).expect("it is ours");
    env.check_counts(initial);
    // The second time its group goes out of service.
    let group = env.sb().ext4_get_group_no_and_offset(Fsblk(other)).expect("a block").0;
    assert_eq!(env.free(other, other_len), Err(EFSCORRUPTED));
    assert_eq!(env.mount.sb.s_fs_info().last_error(), Some(Corrupt::BlockBitmapDoubleFree(group)));
    let gone = u64::from(env.sb().ext4_get_group_desc(group).expect("a group").free_clusters);
    assert_eq!(env.sb().free_clusters(), initial - gone);
    let (block, len) = env.alloc_retry(other, 8, MbFlags::empty()).expect("room");
    assert_ne!(env.sb().ext4_get_group_no_and_offset(Fsblk(block)).expect("a block").0, group);
    env.free(block, len).expect("it is ours");
}

#[test]
fn a_group_with_a_damaged_bitmap_is_passed_by() {
    let spec = &kinds()[4].1;
    // A bitmap that was never used is not read.
    let probe = Env::new(spec);
    let groups = probe.sb().s_groups_count;
    for group in (0..groups).map(Group) {
        let goal = probe.sb().ext4_group_last_block_no(group).0;
        assert_eq!(probe.alloc(goal, 1, MbFlags::empty()), Ok((goal, 1)));
    }
    ext4_sync_fs(&probe.mount.sb).expect("syncing");
    let image = probe.mount.disk.image();
    let place = |group| probe.sb().ext4_get_group_desc(Group(group)).expect("a group").block_bitmap.0 * 1024;
    // One bit less, and the checksum does not fit.
    let damage = |env: &Env, group| {
        let byte = peek(&env.mount.sb.s_bdev().clone(), place(group) + 40, 1)[0];
        poke(env.mount.sb.s_bdev(), place(group) + 40, &[byte ^ 1]);
    };
    let env = Env::of(&image);
    damage(&env, 2);
    let goal = env.sb().ext4_group_first_block_no(Group(2)).0 + 50;
    let (block, _) = env.alloc(goal, 4, MbFlags::empty()).expect("room elsewhere");
    assert_ne!(env.sb().ext4_get_group_no_and_offset(Fsblk(block)).expect("a block").0, Group(2));
    assert_eq!(env.sb().last_error(), Some(Corrupt::BlockBitmapChecksum(Group(2))));
    assert_eq!(env.free(goal, 1), Err(EFSCORRUPTED));
    // Without any good group one hears why.
    let env = Env::of(&image);
    (0..groups).for_each(|group| damage(&env, group));
    assert_eq!(env.alloc(0, 1, MbFlags::empty()), Err(EFSBADCRC));
    assert_eq!(env.alloc(0, 1, MbFlags::empty()), Err(ENOSPC));
    assert_eq!(env.sb().free_clusters(), 0);
    drop(probe);
}

/// Makes an inode without a name.
fn new_inode(env: &Env, mode: u32) -> Result<IRef> {
    let mut handle = ext4_journal_start(env.sb(), 16)?;
    let inode = ext4_new_inode(&mut handle, &env.root, &NewInodeSpec { i_mode: mode, i_uid: 7, i_gid: 8 });
    handle.stop()?;
    inode
}

#[test]
fn inodes_run_out_when_all_are_taken_and_come_back() {
    for (name, spec) in kinds() {
        println!("{name}");
        let env = Env::new(&spec);
        let initial = env.sb().free_inodes();
        let free = env.sb().free_clusters();
        let mut inodes = Vec::new();
        let error = loop {
            match new_inode(&env, if inodes.len() % 5 == 0 { 0o040_755 } else { 0o100_644 }) {
                Ok(inode) => inodes.push(inode),
                Err(error) => break error,
            }
        };
        assert_eq!(error, ENOSPC);
        assert_eq!(inodes.len() as u64, initial);
        let numbers: BTreeSet<u64> = inodes.iter().map(|inode| inode.i_ino()).collect();
        assert_eq!(numbers.len(), inodes.len());
        assert!(numbers.iter().all(|ino| *ino >= u64::from(env.sb().s_first_ino)));
        ext4_sync_fs(&env.mount.sb).expect("syncing");
        for group in (0..env.sb().s_groups_count).map(Group) {
            let desc = env.sb().ext4_get_group_desc(group).expect("a group");
            assert!(desc.free_inodes == 0 && desc.itable_unused == 0 && !desc.flags.contains(BgFlags::INODE_UNINIT));
        }
        let last = inodes.last().expect("at least one");
        assert_eq!((last.i_uid(), last.i_gid(), last.i_nlink(), last.i_size()), (7, 8, 1, 0));
        for inode in inodes {
            inode.set_nlink(0);
            drop(inode);
        }
        env.mount.sb.drain_evictions();
        assert_eq!(env.sb().free_inodes(), initial);
        assert_eq!(env.sb().free_clusters(), free);
        env.finish();
    }
}

#[test]
fn what_mke2fs_left_as_it_was_is_never_read() {
    for kind in [5, 6, 8] {
        let (name, spec) = &kinds()[kind];
        println!("{name}");
        let mut bytes = image(spec);
        let size = spec.block_size as usize;
        let probe = Env::of(&bytes);
        let sb = probe.sb();
        let mut poisoned = 0;
        for group in (0..sb.s_groups_count).map(Group) {
            let desc = sb.ext4_get_group_desc(group).expect("a group");
            let used = (sb.s_inodes_per_group - desc.itable_unused).div_ceil(sb.s_inodes_per_block);
            let table = desc.inode_table.0 as usize;
            let mut poison = |from: usize, to: usize| {
                bytes[from * size..to * size].fill(0xa5);
                poisoned += to - from;
            };
            poison(table + used as usize, table + sb.itb_per_group() as usize);
            for (flag, place) in
                [(BgFlags::BLOCK_UNINIT, desc.block_bitmap), (BgFlags::INODE_UNINIT, desc.inode_bitmap)]
            {
                if desc.flags.contains(flag) {
                    poison(place.0 as usize, place.0 as usize + 1);
                }
            }
        }
        assert!(poisoned > 10);
        drop(probe);
        let env = Env::of(&bytes);
        let initial = env.sb().free_clusters();
        let inodes: Vec<IRef> = (0..150).map(|_| new_inode(&env, 0o040_755).expect("room")).collect();
        let mut model = Model::default();
        for group in 0..env.sb().s_groups_count {
            let goal = env.sb().ext4_group_last_block_no(Group(group)).0 - 40;
            let (block, len) = env.alloc(goal, 30, MbFlags::empty()).expect("room");
            model.add(block, len);
        }
        for inode in inodes {
            inode.set_nlink(0);
            drop(inode);
        }
        env.mount.sb.drain_evictions();
        for (block, len) in model.held {
            env.free(block, len).expect("it is ours");
        }
        env.check_counts(initial);
        // Nothing that is in use has anything of it.
        ext4_sync_fs(&env.mount.sb).expect("syncing");
        for group in (0..env.sb().s_groups_count).map(Group) {
            let desc = env.sb().ext4_get_group_desc(group).expect("a group");
            let used = (env.sb().s_inodes_per_group - desc.itable_unused).div_ceil(env.sb().s_inodes_per_block);
            let table = peek(env.mount.sb.s_bdev(), desc.inode_table.0 * size as u64, used as usize * size);
            assert!(!table.windows(8).any(|bytes| bytes == [0xa5; 8]), "{group}");
        }
        env.finish();
    }
}

#[test]
fn four_threads_never_get_the_same_inode() {
    let env = Env::new(&kinds()[4].1);
    let initial = env.sb().free_inodes();
    let all = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..30 {
                    let inode = new_inode(&env, 0o100_644).expect("room");
                    assert!(all.lock().expect("no panic").insert(inode.i_ino()));
                    if inode.i_ino().is_multiple_of(3) {
                        assert!(all.lock().expect("no panic").remove(&inode.i_ino()));
                        inode.set_nlink(0);
                    }
                }
            });
        }
    });
    let left = all.into_inner().expect("no panic");
    assert_eq!(env.sb().free_inodes(), initial - left.len() as u64);
    for ino in left {
        ext4_iget(&env.mount.sb, Ino(ino as u32)).expect("it is in use").set_nlink(0);
    }
    env.mount.sb.drain_evictions();
    assert_eq!(env.sb().free_inodes(), initial);
    env.finish();
}

#[test]
fn what_is_freed_is_discarded_if_one_says_so() {
    for discard in [false, true] {
        let option = if discard { "discard" } else { "nodiscard" };
        let mount = Mount::with(&image(&kinds()[3].1), option, auto());
        let root = ext4_iget(&mount.sb, EXT4_ROOT_INO).expect("the root");
        let file = mount.open("/file");
        let env = Env { mount, root, file };
        let (block, len) = env.alloc(2000, 3, MbFlags::empty()).expect("room");
        poke(env.mount.sb.s_bdev(), block * 4096, &[7; 3 * 4096]);
        env.free(block, len).expect("it is ours");
        ext4_sync_fs(&env.mount.sb).expect("syncing");
        let gone = peek(env.mount.sb.s_bdev(), block * 4096, 3 * 4096).iter().all(|byte| *byte != 7);
        assert_eq!(gone, discard);
        env.finish();
    }
}

#[test]
fn a_damaged_inode_bitmap_takes_its_group_out_of_service() {
    let env = Env::new(&kinds()[4].1);
    let place = env.sb().ext4_get_group_desc(Group(0)).expect("a group").inode_bitmap.0 * 1024;
    let byte = peek(env.mount.sb.s_bdev(), place + 1, 1)[0];
    poke(env.mount.sb.s_bdev(), place + 1, &[byte ^ 0x80]);
    let inode = new_inode(&env, 0o100_600).expect("other groups have inodes");
    assert!(inode.i_ino() > u64::from(env.sb().s_inodes_per_group));
    assert_eq!(env.sb().last_error(), Some(Corrupt::InodeBitmapChecksum(Group(0))));
}

#[test]
fn trimming_takes_what_is_free_and_nothing_else() {
    let env = Env::new(&kinds()[4].1);
    let free = env.sb().free_clusters();
    let all = env.sb().s_blocks_count * 1024;
    assert_eq!(env.sb().ext4_trim_fs(0..u64::MAX, 0), Ok(free * 1024));
    let (start, len) = env.alloc(5000, 100, MbFlags::empty()).expect("room");
    assert_eq!((start, len), (5000, 100));
    assert_eq!(env.sb().ext4_trim_fs(4990 << 10..5110 << 10, 0), Ok(20 << 10));
    assert_eq!(env.sb().ext4_trim_fs(4990 << 10..5110 << 10, 11 << 10), Ok(0));
    assert_eq!(env.sb().ext4_trim_fs(all..u64::MAX, 0), Err(EINVAL));
    env.free(start, len).expect("it is ours");
    env.check_counts(free);
    env.finish();
}
