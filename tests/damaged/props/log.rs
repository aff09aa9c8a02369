// SPDX-License-Identifier: GPL-2.0-only
//! Recovery: a log of random transactions, written here block by block and cut off anywhere, against what should come home.

use std::collections::BTreeMap;

use ext4_dio::jbd2::disk::*;
use ext4_dio::jbd2::{Journal, JournalOptions, LogExtent};
use ext4_dio_tests::images::{peek, poke, ram_disk};
use proptest::prelude::*;

/// Blocks of the log, and the first of them on the disk.
const LOG: u32 = 1024;
const LOG_AT: u64 = 512;
/// Blocks that may be written home.
const HOME: u64 = 40;
/// Blocks of the disk.
const DISK: usize = 2048;

#[derive(Clone, Debug)]
struct Transaction {
    /// Block, what it is filled with, and whether it begins with the journal's magic number.
    blocks: Vec<(u64, u8, bool)>,
    revoked: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Input {
    blocksize: usize,
    /// 0, 2, 3: the version of checksums.
    csum: u32,
    is_64bit: bool,
    /// Where the first transaction begins, and its number.
    start: u32,
    tid: u32,
    transactions: Vec<Transaction>,
    /// How many blocks of the log reached the disk, of a thousand; more is all.
    cut: u32,
    /// What is behind them: the log of an earlier time around, or nothing.
    stale: bool,
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let blocks = prop::collection::vec((0..HOME, 1..=255u8, any::<bool>()), 0..30);
    let revoked = prop::collection::vec(0..HOME, 0..4);
    (blocks, revoked).prop_map(|(mut blocks, revoked)| {
        // A transaction has a block once.
        blocks.sort_by_key(|(block, ..)| *block);
        blocks.dedup_by_key(|(block, ..)| *block);
        Transaction { blocks, revoked }
    })
}

fn input() -> impl Strategy<Value = Input> {
    let start = prop_oneof![Just(1u32), 1..LOG, LOG - 20..LOG];
    let tid = prop_oneof![Just(1u32), any::<u32>(), u32::MAX - 3..=u32::MAX];
    let shape = (prop_oneof![Just(1024usize), Just(4096)], prop_oneof![Just(0u32), Just(2), Just(3)], any::<bool>());
    let log = (start, tid, prop::collection::vec(transaction(), 0..12));
    (shape, log, prop_oneof![2 => 0..1000u32, 1 => Just(2000)], any::<bool>()).prop_map(|(shape, log, cut, stale)| {
        let ((blocksize, csum, is_64bit), (start, tid, transactions)) = (shape, log);
        Input { blocksize, csum, is_64bit, start, tid, transactions, cut, stale }
    })
}

impl Input {
    fn format(&self) -> Format {
        let mut incompat = Incompat::REVOKE;
        incompat.set(Incompat::BIT64, self.is_64bit);
        incompat.set(Incompat::CSUM_V2, self.csum == 2);
        incompat.set(Incompat::CSUM_V3, self.csum == 3);
        let uuid = [9; 16];
        let csum_seed = ext4_dio::checksum::ext4_chksum(!0, &uuid);
        Format { blocksize: self.blocksize, compat: Compat::empty(), incompat, csum_seed, uuid }
    }

    /// What a block is to be filled with.
    fn content(&self, fill: u8, magic: bool) -> Vec<u8> {
        let mut bytes = vec![fill; self.blocksize];
        if magic {
            bytes[..4].copy_from_slice(&JBD2_MAGIC_NUMBER.to_be_bytes());
        }
        bytes
    }

    /// The blocks of one transaction in the log.
    fn log_of(&self, n: usize, tid: u32) -> Vec<Vec<u8>> {
        let format = self.format();
        let Transaction { blocks, revoked } = &self.transactions[n];
        let mut log = Vec::new();
        if !revoked.is_empty() {
            let mut raw = vec![0; self.blocksize];
            put_header(&mut raw, blocktype::REVOKE, tid).expect("room");
            let record = format.revoke_bytes();
            for (at, block) in revoked.iter().enumerate() {
                raw[16 + at * record..16 + (at + 1) * record].copy_from_slice(&block.to_be_bytes()[8 - record..]);
            }
            raw[12..16].copy_from_slice(&((16 + revoked.len() * record) as u32).to_be_bytes());
            format.set_tail_csum(&mut raw);
            log.push(raw);
        }
        for part in blocks.chunks(format.tags_per_block()) {
            let mut raw = vec![0; self.blocksize];
            put_header(&mut raw, blocktype::DESCRIPTOR, tid).expect("room");
            let (mut at, mut data) = (12, Vec::new());
            for (tag, (block, fill, magic)) in part.iter().enumerate() {
                let mut bytes = self.content(*fill, *magic);
                let mut flags = TagFlags::empty();
                if *magic {
                    bytes[..4].fill(0);
                    flags |= TagFlags::ESCAPE;
                }
                flags.set(TagFlags::SAME_UUID, tag > 0);
                flags.set(TagFlags::LAST_TAG, tag + 1 == part.len());
                let checksum = format.tag_csum(tid, &bytes);
                at += format.put_tag(&mut raw[at..], Tag { block: *block, flags, checksum }).expect("room");
                data.push(bytes);
            }
            format.set_tail_csum(&mut raw);
            log.push(raw);
            log.extend(data);
        }
        let mut raw = vec![0; self.blocksize];
        format.put_commit(&mut raw, tid, 1000 + n as u64, 0).expect("room");
        log.push(raw);
        log
    }

    fn super_block(&self) -> Vec<u8> {
        let format = self.format();
        let mut raw = vec![0; self.blocksize];
        put_header(&mut raw, blocktype::SUPERBLOCK_V2, 0).expect("room");
        let mut put = |at: usize, value: u32| raw[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put(12, self.blocksize as u32);
        put(16, LOG);
        put(20, 1);
        put(24, self.tid);
        put(28, self.start);
        put(40, format.incompat.bits());
        raw[48..64].copy_from_slice(&format.uuid);
        if format.has_csum() {
            raw[80] = JBD2_CRC32C_CHKSUM;
            let csum = superblock_csum(&raw);
            raw[252..256].copy_from_slice(&csum.to_be_bytes());
        }
        raw
    }

    /// The disk after the crash, and what recovery should make of its first blocks.
    fn crash(&self) -> (Vec<u8>, BTreeMap<u64, Vec<u8>>) {
        let bs = self.blocksize;
        let mut disk = vec![0u8; DISK * bs];
        let mut put = |block: u64, bytes: &[u8]| disk[block as usize * bs..][..bs].copy_from_slice(bytes);
        put(LOG_AT, &self.super_block());
        let place = |n: u32| LOG_AT + u64::from(1 + (self.start - 1 + n) % (LOG - 1));
        let logs: Vec<_> =
            (0..self.transactions.len()).map(|n| self.log_of(n, self.tid.wrapping_add(n as u32))).collect();
        if self.stale {
            // The same blocks with the numbers of long ago, where nothing newer was written.
            let old = (0..self.transactions.len()).flat_map(|n| self.log_of(n, self.tid.wrapping_sub(500 - n as u32)));
            old.zip(0..LOG - 1).for_each(|(bytes, n)| put(place(n), &bytes));
        }
        let all: usize = logs.iter().map(Vec::len).sum();
        let reached = if self.cut >= 1000 { all } else { all * self.cut as usize / 1000 };
        logs.iter().flatten().take(reached).zip(0..).for_each(|(bytes, n)| put(place(n), bytes));
        // Whole transactions count, and each block's last revocation.
        let mut end = 0;
        let whole = logs.iter().take_while(|log| {
            end += log.len();
            end <= reached
        });
        let whole = whole.count();
        let mut revoked = BTreeMap::new();
        let mut home = BTreeMap::new();
        for (n, transaction) in self.transactions.iter().take(whole).enumerate() {
            revoked.extend(transaction.revoked.iter().map(|block| (*block, n)));
        }
        for (n, transaction) in self.transactions.iter().take(whole).enumerate() {
            for (block, fill, magic) in &transaction.blocks {
                if revoked.get(block).is_none_or(|last| *last < n) {
                    home.insert(*block, self.content(*fill, *magic));
                }
            }
        }
        (disk, home)
    }
}

#[test]
fn recovery_brings_home_what_the_model_has() {
    super::check("recovery_brings_home_what_the_model_has", 150, input(), |input| {
        let (disk, home) = input.crash();
        let bdev = ram_disk(&disk);
        let options = JournalOptions {
            barrier: true,
            commit_interval_ms: 5000,
            has_64bit: input.is_64bit,
            metadata_csum: input.csum != 0,
            submit_data: |_| Ok(()),
            on_abort: |_, _| {},
        };
        let extents = [LogExtent { lblk: 0, pblk: LOG_AT, len: LOG }];
        let journal = Journal::load(&bdev, input.blocksize as u32, &extents, options).expect("a journal");
        let info = journal.recover().expect("a log that was cut off");
        assert!(!journal.needs_recovery());
        for block in 0..HOME {
            let found = peek(&bdev, block * input.blocksize as u64, input.blocksize);
            let expected = home.get(&block).cloned().unwrap_or_else(|| vec![0; input.blocksize]);
            assert!(
                found == expected,
                "block {block}: begins with {:?}, not {:?}; {info:?}",
                &found[..8],
                &expected[..8]
            );
        }
        // Once more there is nothing to do, whatever is on the disk.
        poke(&bdev, 0, &[0x55; 8]);
        let again = Journal::load(&bdev, input.blocksize as u32, &extents, options).expect("a journal");
        assert_eq!(again.recover().expect("nothing to do").nr_replays, 0);
        assert_eq!(peek(&bdev, 0, 8), [0x55; 8]);
    });
}
