// SPDX-License-Identifier: GPL-2.0-only
//! Images in which `e2fsck -fn` has found nothing wrong, so that it is not asked twice about the same.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use crate::images::Image;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// `s_maxlen` and `s_start` of the journal's super block.
const MAXLEN: usize = 16;
const START: usize = 28;

/// Pages that differ from the image that all began with, by number, in order.
pub type Changed<'p> = Vec<(usize, &'p [u8])>;

/// What of `bytes` is not as in `base`.
pub fn changed<'p>(base: &[u8], bytes: &'p [u8]) -> Changed<'p> {
    let pages = bytes.chunks(PAGE).zip(base.chunks(PAGE)).enumerate();
    pages.filter(|(_, (now, base))| now != base).map(|(page, (now, _))| (page, now)).collect()
}

/// Where a journal is.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Byte at which its super block is, if there is a journal.
    superblock: Option<usize>,
    /// Of each sector, whether it is in the log behind that.
    sectors: Vec<bool>,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Log {
    /// The journal of an image with blocks of `block_size` bytes, as `debugfs` tells.
    pub fn of(image: &Image, block_size: usize) -> Self {
        let places = |blocks: std::ops::Range<u32>| -> Vec<usize> {
            let asked: Vec<String> = blocks.map(|block| format!("bmap <8> {block}")).collect();
            let said = image.debugfs_script(&asked);
            said.lines().filter_map(|line| line.trim().parse().ok()).filter(|place| *place != 0).collect()
        };
        let Some(first) = places(0..1).first().map(|block| block * block_size) else { return Self::default() };
        let bytes = image.bytes();
        let mut sectors = vec![false; bytes.len() / SECTOR];
        let blocks = be32(&bytes, first + MAXLEN);
        let log = places(1..blocks);
        assert_eq!(log.len() + 1, blocks as usize, "the journal has holes");
        let per_block = block_size / SECTOR;
        log.iter().for_each(|block| sectors[block * per_block..(block + 1) * per_block].fill(true));
        Self { superblock: Some(first), sectors }
    }

    /// A number for what a program sees that has nothing to recover: all but what is in an empty log. Nothing if it is not empty.
    fn sum(&self, base: &[u8], pages: &Changed<'_>) -> Option<u64> {
        if let Some(at) = self.superblock {
            let changed = pages.binary_search_by_key(&(at / PAGE), |(page, _)| *page);
            let start = match changed {
                Ok(n) => be32(pages[n].1, at % PAGE + START),
                Err(_) => be32(base, at + START),
            };
            if start != 0 {
                return None;
            }
        }
        let mut hasher = DefaultHasher::new();
        for (page, bytes) in pages {
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                let at = page * (PAGE / SECTOR) + n;
                if !self.sectors.get(at).is_some_and(|log| *log) && base[at * SECTOR..][..sector.len()] != *sector {
                    (at, sector).hash(&mut hasher);
                }
            }
        }
        Some(hasher.finish())
    }
}

/// See the head of this file. One for each image that is begun with.
#[derive(Debug, Default)]
pub struct Clean {
    log: Log,
    known: Mutex<HashSet<u64>>,
}

impl Clean {
    /// None are known.
    pub fn new(log: Log) -> Self {
        Self { log, known: Mutex::default() }
    }

    /// Calls `look` unless it has found nothing wrong before with an image that is like `base` with these pages, but for what an empty
    /// log has in it.
    pub fn once(
        &self,
        base: &[u8],
        pages: &Changed<'_>,
        look: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = self.log.sum(base, pages);
        if sum.is_some_and(|sum| known().contains(&sum)) {
            return Ok(());
        }
        look()?;
        known().extend(sum);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Mkfs;

    /// Whether `image` is looked at.
    fn looked_at(clean: &Clean, base: &[u8], image: &[u8]) -> bool {
        let mut looked = false;
        let look = || {
            looked = true;
            Ok(())
        };
        clean.once(base, &changed(base, image), look).expect("nothing wrong");
        looked
    }

    #[test]
    fn only_what_is_in_an_empty_log_does_not_count() {
        for (fs_type, block_size) in [("ext4", 1024), ("ext3", 1024), ("ext4", 4096), ("ext2", 1024)] {
            let spec = Mkfs { fs_type, block_size, ..Mkfs::default() };
            let image = Image::make(&spec, None);
            let (log, base) = (Log::of(&image, block_size as usize), image.bytes());
            assert_eq!(log.superblock.is_some(), fs_type != "ext2");
            let clean = Clean::new(log.clone());
            assert!(looked_at(&clean, &base, &base));
            assert!(!looked_at(&clean, &base, &base), "twice");
            let with = |at: usize| {
                let mut bytes = base.clone();
                bytes[at] ^= 1;
                bytes
            };
            assert!(looked_at(&clean, &base, &with(base.len() - 1)), "other data");
            assert!(!looked_at(&clean, &base, &with(base.len() - 1)));
            let Some(superblock) = log.superblock else { continue };
            assert!(looked_at(&clean, &base, &with(superblock + 0x18)), "another sequence number");
            let in_log = log.sectors.iter().position(|log| *log).expect("a log") * SECTOR;
            assert!(!looked_at(&clean, &base, &with(in_log)), "of a transaction that is over");
            let full = with(superblock + START);
            assert!(looked_at(&clean, &base, &full) && looked_at(&clean, &base, &full), "something to recover");
        }
    }

    #[test]
    fn what_was_found_wrong_is_found_wrong_again() {
        let clean = Clean::default();
        let base = vec![0; 2 * PAGE];
        for _ in 0..2 {
            assert_eq!(clean.once(&base, &Changed::new(), || Err("wrong".to_string())), Err("wrong".to_string()));
        }
    }
}
