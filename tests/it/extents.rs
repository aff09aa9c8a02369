// SPDX-License-Identifier: GPL-2.0-only
//! Changes of a file's map, against a model that knows each block: hole, unwritten or written, and where.

use std::sync::atomic::Ordering;

use ext4_dio::corrupt::Ext4Error;
use ext4_dio::ext4::{GetBlocks, Lblk, MapBlocks, MapFlags};
use ext4_dio::ext4_jbd2::{Handle, ext4_journal_start};
use ext4_dio::extents::{ext4_chunk_trans_blocks, ext4_ext_next, ext4_ext_remove_space, ext4_ext_shift_extents};
use ext4_dio::extents_status::EsStatus;
use ext4_dio::indirect::ext4_ind_remove_space;
use ext4_dio::inode::{ext4_map_blocks, ext4_map_create_blocks};
use ext4_dio::{File, Inode};
use ext4_dio_tests::dio::*;
use ext4_dio_tests::images::{Image, Mkfs};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::ramdisk::OpMask;
use kernel_shim::block::{ReqOpf, bdev_rw};
use kernel_shim::error::{Result, code::*};

mod fixture;

use fixture::*;

const CONVERT_UNWRITTEN: GetBlocks = GetBlocks::CREATE_UNINIT_EXT.union(GetBlocks::CONVERT_UNWRITTEN);
const CREATE_ZERO: GetBlocks = GetBlocks::CREATE.union(GetBlocks::ZERO);

/// `steps` random changes of a file of `blocks` blocks.
fn random_changes(spec: &Mkfs, seed: u64, blocks: u32, steps: u32) {
    let mut f = Fixture::new(spec, blocks, format!("{} {} seed {seed}", spec.fs_type, spec.block_size));
    let extents = f.inode().i_private().is_extents();
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    for step in 0..steps {
        f.what = format!("{} {} seed {seed} step {step}", spec.fs_type, spec.block_size);
        let lblk = rng.below(blocks - 1);
        let longest = [1, 4, 40, 300][rng.below(4) as usize].min(blocks - lblk);
        let len = 1 + rng.below(longest);
        let kind = rng.below(if extents { 20 } else { 12 });
        let done = match kind {
            0..=2 => f.create(lblk, len, GetBlocks::CREATE).map(drop),
            3..=5 => f.create(lblk, len, GetBlocks::CREATE_UNINIT_EXT).map(drop),
            6 => f.create(lblk, len, CREATE_ZERO).map(drop),
            7..=9 => f.punch(lblk, lblk + len),
            10..=11 => f.create(lblk, len.min(3), GetBlocks::IO_CREATE_EXT).map(drop),
            12..=13 => f.create(lblk, len, GetBlocks::IO_CREATE_EXT).map(drop),
            14..=16 => f.create(lblk, len, GetBlocks::IO_CONVERT_EXT).map(drop),
            17 => f.create(lblk, len, CONVERT_UNWRITTEN).map(drop),
            18 => f.collapse(lblk, len),
            _ => f.insert(lblk, len.min(blocks - lblk)),
        };
        match done {
            Err(ENOSPC) => {
                // Room again, by and by.
                let start = rng.below(blocks / 2);
                let _ = f.punch(start, start + blocks / 2);
            }
            Err(EIO) if (14..=16).contains(&kind) => {}
            done => done.unwrap_or_else(|e| panic!("{}: {e:?}", f.what)),
        }
        if step % 50 == 0 {
            f.inode().i_private().i_es_tree.clear();
        }
    }
    f.finish();
}

#[test]
fn random_changes_of_extents_agree_with_the_model() {
    for block_size in [1024, 2048, 4096] {
        for seed in 1..5 {
            random_changes(&spec("ext4", block_size, 4 << 10), seed, 1200, 600);
        }
    }
    // The same in transactions.
    for seed in 11..13 {
        random_changes(&Mkfs { features: "", size_kib: 8 << 10, ..spec("ext4", 1024, 0) }, seed, 1200, 400);
    }
}

#[test]
fn random_changes_of_block_numbers_agree_with_the_model() {
    for fs_type in ["ext2", "ext3"] {
        for block_size in [1024, 2048, 4096] {
            random_changes(&spec(fs_type, block_size, 4 << 10), 7, 1400, 300);
        }
    }
}

#[test]
fn small_disks_run_full_and_empty_again() {
    for block_size in [1024, 4096] {
        for seed in 20..23 {
            random_changes(
                &spec("ext4", block_size, if block_size == 1024 { 1 << 10 } else { 3 << 10 }),
                seed,
                1500,
                400,
            );
        }
    }
    random_changes(&spec("ext2", 1024, 1 << 10), 31, 1500, 400);
}

#[test]
fn a_tree_grows_to_depth_three_and_shrinks_back() {
    for (upwards, journal) in [(false, false), (true, false), (false, true)] {
        // Every second block, one by one: no two can be merged. From the end on, nodes are left half full.
        let extents = if upwards { 2000 } else { 11_000 };
        let spec = Mkfs { features: if journal { "" } else { "^has_journal" }, ..spec("ext4", 1024, 24 << 10) };
        let mut f = Fixture::new(&spec, 2 * extents, format!("upwards {upwards}, journal {journal}"));
        for n in 0..extents {
            let lblk = 2 * if upwards { n } else { extents - 1 - n };
            let (n, map) = f.map_create(lblk, 1, GetBlocks::CREATE).expect("room on the disk");
            assert_eq!(n, 1);
            f.model[lblk as usize] = Written(map.m_pblk.0);
        }
        f.agree();
        assert_eq!(f.depth(), if upwards { 2 } else { 3 });
        let (i_blocks, data) = (f.inode().i_private().i_blocks.load(Ordering::Relaxed) / 2, u64::from(extents));
        let nodes = i_blocks - data;
        assert!(nodes >= data / 84 && nodes < data / 40, "{nodes} nodes for {data} extents");
        ext4_dio::ext4_sync_fs(&f.m.sb).expect("syncing");
        // What is on the disk is a tree that e2fsck takes; the counts in the super block follow at unmount.
        let mut depths = vec![f.depth()];
        let mut end = 2 * extents;
        while end > 0 {
            // With a journal all in one call, which restarts its handle as it goes.
            let start = if journal { 0 } else { end - end.min(500) };
            f.remove(start, end).expect("removing");
            f.model[start as usize..end as usize].fill(Hole);
            depths.push(f.depth());
            end = start;
        }
        assert!(depths.is_sorted_by(|a, b| a >= b), "{depths:?}");
        f.finish();
    }
}

#[test]
fn a_deep_tree_is_clean_on_disk() {
    let mut f = Fixture::new(&spec("ext4", 1024, 24 << 10), 8000, "deep".to_string());
    for n in (0..4000).rev() {
        let (_, map) = f
            .map_create(2 * n, 1, if n % 3 == 0 { GetBlocks::CREATE } else { GetBlocks::CREATE_UNINIT_EXT })
            .expect("room");
        f.model[2 * n as usize] = if n % 3 == 0 { Written(map.m_pblk.0) } else { Unwritten(map.m_pblk.0) };
    }
    for n in 0..300 {
        f.remove(n * 20 + 1, n * 20 + 8).expect("room");
        f.model[n as usize * 20 + 1..n as usize * 20 + 8].fill(Hole);
    }
    f.collapse(4001, 77).expect("room");
    f.insert(100, 51).expect("room");
    f.finish_full();
}

/// A file whose root is full, and in the leaf below, if `deep`, every place as well.
fn full_nodes(deep: bool, leave: u32) -> Fixture {
    let mut f = Fixture::new(&spec("ext4", 1024, 2 << 10), 1000, format!("deep {deep}, {leave} left"));
    let extents = if deep { 84 } else { 4 };
    for n in 0..extents {
        f.map_create(n * 10, 8, GetBlocks::CREATE_UNINIT_EXT).expect("room on the disk");
    }
    f.model = f.look();
    assert_eq!(f.depth(), u16::from(deep));
    fill_disk(&f.m, leave);
    f
}

#[test]
fn without_a_block_for_a_node_the_map_stays_as_it_was() {
    for deep in [false, true] {
        for leave in [0, 1, 2, 4] {
            let flags = [
                GetBlocks::CREATE,
                CREATE_ZERO,
                GetBlocks::CREATE_UNINIT_EXT,
                GetBlocks::IO_CREATE_EXT,
                GetBlocks::IO_CONVERT_EXT,
                CONVERT_UNWRITTEN,
            ];
            for flags in flags {
                for (lblk, len) in [(3, 2), (0, 3), (13, 1), (908, 3)] {
                    let mut f = full_nodes(deep, leave);
                    let state = f.model[lblk as usize];
                    let done = f.create(lblk, len, flags);
                    if state != Hole && !flags.contains(GetBlocks::PRE_IO) {
                        // Zeroed instead, from what is reserved, or nothing to do.
                        done.unwrap_or_else(|e| panic!("{}: {flags:?} at {lblk}: {e:?}", f.what));
                    } else if done.is_err() && !flags.contains(GetBlocks::CONVERT) {
                        assert!(leave < 4, "{}: {flags:?} at {lblk}: {done:?}", f.what);
                    }
                    if leave == 0 && (lblk, len) == (3, 2) && flags == GetBlocks::IO_CREATE_EXT {
                        assert_eq!(done, Err(ENOSPC), "{}: nothing else can be done before I/O", f.what);
                    }
                    // Each kind of end is looked at on disk.
                    if leave < 2 && [3, 13].contains(&lblk) {
                        f.finish_full();
                    }
                }
            }
        }
    }
}

#[test]
fn the_nth_read_of_metadata_fails() {
    for (fs_type, deep) in [("ext4", true), ("ext2", true)] {
        for op in 0..5 {
            let mut failed = 0;
            for n in 1.. {
                let mut f =
                    Fixture::new(&spec(fs_type, 1024, 4 << 10), 2000, format!("{fs_type} {deep} {op}, read {n}"));
                for at in 0..if deep { 200 } else { 3 } {
                    f.map_create(at * 10, 4, GetBlocks::CREATE_UNINIT_EXT).expect("room");
                }
                f.model = f.look();
                let sb = f.m.sb.s_fs_info();
                sb.buffers.sync_all().expect("the disk works");
                sb.buffers.invalidate_clean();
                f.inode().i_private().i_es_tree.clear();
                let fired = f.m.faults.fired();
                f.m.faults.fail_nth(n, OpMask::READ);
                let (start, end) = (995, 1012);
                let done = match op {
                    0 => f.map_create(1005, 2, GetBlocks::CREATE).map(drop),
                    1 => f.map_create(1001, 2, GetBlocks::IO_CREATE_EXT).map(drop),
                    2 => f.map_create(1001, 2, GetBlocks::CREATE).map(drop),
                    3 => f.map_create(1001, 2, CONVERT_UNWRITTEN).map(drop),
                    _ => f.remove(start, end),
                };
                f.m.faults.repair();
                let fired = f.m.faults.fired() > fired;
                f.inode().i_private().i_es_tree.clear();
                let now = f.look();
                if done.is_err() {
                    assert!(fired, "{}: {done:?}", f.what);
                    failed += 1;
                    for (at, (now, old)) in now.iter().zip(&f.model).enumerate() {
                        let may_go = op == 4 && (start as usize..end as usize).contains(&at);
                        assert!(now == old || (may_go && *now == Hole), "{}: block {at}", f.what);
                    }
                }
                f.model = now;
                f.agree();
                if !fired {
                    done.unwrap_or_else(|e| panic!("{}: {e:?} without a fault", f.what));
                    // Whatever failed before left a disk in order; a block that was lost is none of ours.
                    f.finish_full();
                    break;
                }
            }
            assert!(failed > 0, "{fs_type} {op}: no fault made it fail");
        }
    }
}

#[test]
fn unwritten_extents_under_io_stay_as_they_were_cut() {
    let mut f = Fixture::new(&spec("ext4", 4096, 8 << 10), 200, "G16".to_string());
    f.create_all(0, 60, GetBlocks::CREATE_UNINIT_EXT);
    f.inode().i_private().i_unwritten.fetch_add(1, Ordering::AcqRel);
    f.create_all(50, 10, GetBlocks::IO_CREATE_EXT);
    // What fallocate adds goes beside it, on the disk too, and does not become one with it.
    f.create_all(60, 40, GetBlocks::CREATE_UNINIT_EXT);
    assert_eq!(f.model[60].pblk(), f.model[59].pblk().map(|p| p + 1), "they could be merged");
    f.create_all(20, 10, GetBlocks::IO_CREATE_EXT);
    f.create_all(30, 5, GetBlocks::CREATE);
    for (lblk, len) in [(20, 10), (50, 10)] {
        let es = ext4_ext_next(f.inode(), Lblk(lblk)).expect("the map is whole");
        assert_eq!((es.lblk().0, es.len(), es.status()), (lblk, len, EsStatus::Unwritten));
    }
    // With nothing left on the disk each can be converted.
    fill_disk(&f.m, 0);
    f.create_all(20, 10, GetBlocks::IO_CONVERT_EXT);
    f.create_all(50, 10, GetBlocks::IO_CONVERT_EXT);
    f.inode().i_private().i_unwritten.fetch_sub(1, Ordering::AcqRel);
    f.finish_full();
}

#[test]
fn short_remainders_are_zeroed_instead_of_cut_off() {
    // 32 KiB are 8 blocks.
    let states = |f: &Fixture| -> String {
        f.model
            .iter()
            .map(|cell| match cell {
                Hole => '.',
                Unwritten(_) => 'u',
                Written(_) => 'w',
            })
            .collect()
    };
    let mut f = Fixture::new(&spec("ext4", 4096, 8 << 10), 40, "zeroed".to_string());
    f.create_all(0, 20, GetBlocks::CREATE_UNINIT_EXT);
    f.create_all(5, 2, GetBlocks::CREATE);
    assert_eq!(states(&f), format!("{}{}{}", "w".repeat(7), "u".repeat(13), ".".repeat(20)));
    // What goes to the extent beside it needs no zeros.
    f.create_all(7, 6, GetBlocks::CREATE);
    assert_eq!(states(&f), format!("{}{}{}", "w".repeat(13), "u".repeat(7), ".".repeat(20)));
    // The rest may be on its way to being written.
    let counted = f.inode().i_private().i_unwritten.fetch_add(1, Ordering::AcqRel);
    f.create_all(15, 2, GetBlocks::CREATE);
    assert_eq!(states(&f), format!("{}uuwwuuu{}", "w".repeat(13), ".".repeat(20)));
    f.inode().i_private().i_unwritten.store(counted, Ordering::Release);
    // Nothing is written past the end of the file but what was asked for.
    f.create_all(30, 8, GetBlocks::CREATE_UNINIT_EXT);
    f.inode().i_private().i_disksize.store(20 * 4096, Ordering::Release);
    f.create_all(32, 2, GetBlocks::CREATE);
    assert_eq!(states(&f)[28..], *"..uuwwuuuu..");
    f.finish();
}

#[test]
fn lengths_and_ends_are_kept() {
    // Nothing is in the way between the groups: there are no copies of the super block.
    let features = "^has_journal,^resize_inode,^sparse_super,sparse_super2";
    let spec = |fs_type, size_kib| spec(fs_type, 1024, size_kib);
    let long = Mkfs { features, extended: "num_backup_sb=0", ..spec("ext4", 80 << 10) };
    let mut f = Fixture::new(&long, 70_000, "long".to_string());
    let longest = |f: &Fixture| {
        let (mut at, mut longest) = (0, 0);
        while at < 66_000 {
            let es = ext4_ext_next(f.inode(), Lblk(at)).expect("the map is whole");
            longest = longest.max(es.len());
            at = es.end();
        }
        longest
    };
    // In pieces of 256 blocks, of which 128 make the longest written extent. Unwritten ones are one block shorter.
    let mut at = 0;
    for (flags, most) in [(GetBlocks::CREATE, 32768), (GetBlocks::CREATE_UNINIT_EXT, 32768 - 256)] {
        f.remove(0, 66_000).expect("removing");
        at = 0;
        while at < 66_000 {
            let (n, map) = f.map_create(at, 256, flags).expect("room");
            for i in 0..n {
                let pblk = map.m_pblk.0 + u64::from(i);
                f.model[(at + i) as usize] = if most == 32768 { Written(pblk) } else { Unwritten(pblk) };
            }
            at += n;
        }
        f.agree();
        assert_eq!(longest(&f), most);
    }
    while at > 0 {
        let start = at - at.min(5000);
        let mut done = start;
        while done < at {
            let (n, _) = f.map_create(done, at - done, GetBlocks::IO_CONVERT_EXT).expect("room");
            for cell in &mut f.model[done as usize..(done + n) as usize] {
                *cell = Written(cell.pblk().expect("allocated"));
            }
            done += n;
        }
        at = start;
    }
    f.agree();
    assert!(longest(&f) > 30_000 && longest(&f) <= 32768);
    assert_eq!(f.map_create(u32::MAX, 1, GetBlocks::CREATE), Err(EFBIG));
    assert_eq!(f.shift(0, u32::MAX - 60_000, true), Err(EINVAL));
    assert_eq!(f.shift(5, 3, false), Err(EINVAL), "there is no hole");
    f.finish();
    // Block numbers of one level after the other end where three levels do.
    let f = Fixture::new(&spec("ext2", 4 << 10), 10, "ext2".to_string());
    let last = 12 + 256 + 65536 + (1 << 24) - 1;
    assert_eq!(f.map_create(last + 1, 1, GetBlocks::CREATE), Err(EFBIG));
    for lblk in [last, 12 + 256 + 65536, 12 + 256, 12, 11] {
        assert_eq!(
            f.map_create(lblk, 2, GetBlocks::CREATE).expect("room").0,
            if lblk == 11 || lblk == last { 1 } else { 2 }
        );
    }
    f.remove(0, u32::MAX).expect("removing");
    f.finish();
}

#[test]
fn a_file_grows_where_it_is() {
    // The file grows where it is, although it is written block by block.
    for fs_type in ["ext4", "ext2"] {
        let mut f = Fixture::new(&spec(fs_type, 1024, 4 << 10), 400, format!("goal {fs_type}"));
        for at in 0..200 {
            f.create_all(at, 1, GetBlocks::CREATE);
        }
        let apart = f.model[..200].windows(2).filter(|w| w[1].pblk() != w[0].pblk().map(|p| p + 1)).count();
        // The first one takes what fits; an indirect block is in between.
        assert!(apart <= 3, "{fs_type}: {apart} breaks");
        f.finish();
    }
}
