// SPDX-License-Identifier: GPL-2.0-only
//! The format of extended attributes: entries from the front, their values from the back, zeros in between.
//!
//! There are two places for them. Behind `i_extra_isize` of an inode: a magic number, entries in any order, and values
//! whose offsets are counted from the first entry. And one block: a longer header with a checksum and a count of inodes that
//! share the block, sorted entries with hashes, and values whose offsets are counted from the block's start.

use kernel_shim::alloc::{GFP_KERNEL, KVec};

use crate::checksum::ext4_chksum;
use crate::corrupt::{Corrupt, Ext4Result};
use crate::ext4::{Fsblk, Ino};
use crate::le::le_view;

/// `h_magic`.
pub const EXT4_XATTR_MAGIC: u32 = 0xEA02_0000;
/// More inodes than this never share a block.
pub const EXT4_XATTR_REFCOUNT_MAX: u32 = 1024;
/// Entries and values begin at multiples of this.
const PAD: usize = 4;
/// The largest value, which is in an inode of its own.
const EXT4_XATTR_SIZE_MAX: u32 = 1 << 24;

le_view! {
    /// Head of an attribute block.
    #[doc(alias = "ext4_xattr_header")]
    pub struct XattrHeader[32] {
        h_magic / set_h_magic: u32 = 0;
        /// Inodes that have this block.
        h_refcount / set_h_refcount: u32 = 4;
        h_blocks / set_h_blocks: u32 = 8;
        h_hash / set_h_hash: u32 = 12;
        h_checksum / set_h_checksum: u32 = 16;
        h_reserved: [u32; 3] = 20;
    }
}

le_view! {
    /// Head of an entry; the name follows.
    #[doc(alias = "ext4_xattr_entry")]
    pub struct XattrEntryHead[16] {
        e_name_len / set_e_name_len: u8 = 0;
        e_name_index / set_e_name_index: u8 = 1;
        e_value_offs / set_e_value_offs: u16 = 2;
        /// Inode that holds the value, or 0.
        e_value_inum / set_e_value_inum: u32 = 4;
        e_value_size / set_e_value_size: u32 = 8;
        e_hash / set_e_hash: u32 = 12;
    }
}

/// Which of the two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind `i_extra_isize`, with its magic number.
    Inode,
    /// A block.
    Block,
}

impl Place {
    /// Where entries begin.
    fn first(self) -> usize {
        match self {
            Place::Inode => 4,
            Place::Block => XattrHeader::LEN,
        }
    }

    /// Where offsets of values are counted from.
    fn base(self) -> usize {
        match self {
            Place::Inode => self.first(),
            Place::Block => 0,
        }
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Stands for the prefix of the name.
    pub e_name_index: u8,
    /// What follows the prefix.
    pub name: &'a [u8],
    /// Inode that holds the value, or 0.
    pub e_value_inum: u32,
    /// Bytes of the value.
    pub e_value_size: u32,
    /// As it is on disk.
    e_hash: u32,
    /// The value; empty if an inode holds it.
    pub value: &'a [u8],
}

impl<'a> Entry<'a> {
    /// A new one.
    pub fn new(e_name_index: u8, name: &'a [u8], value: &'a [u8]) -> Self {
        let e_value_size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        Self { e_name_index, name, e_value_inum: 0, e_value_size, e_hash: 0, value }
    }

    /// Whether it is the attribute of this name.
    pub fn is(&self, index: u8, name: &[u8]) -> bool {
        self.e_name_index == index && self.name == name
    }

    /// Order in a block.
    pub fn key(&self) -> (u8, usize, &[u8]) {
        (self.e_name_index, self.name.len(), self.name)
    }

    fn entry_len(&self) -> usize {
        (XattrEntryHead::LEN + self.name.len()).next_multiple_of(PAD)
    }

    /// Over name and value, with the value taken as words.
    #[doc(alias = "ext4_xattr_hash_entry")]
    fn hash(&self) -> u32 {
        if self.e_value_inum != 0 {
            return self.e_hash;
        }
        let mut hash = self.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        for word in self.value.chunks(PAD) {
            let mut bytes = [0; PAD];
            for (to, from) in bytes.iter_mut().zip(word) {
                *to = *from;
            }
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(bytes);
        }
        hash
    }
}

/// Whether there are attributes in `area` at all.
pub fn has_magic(area: &[u8]) -> bool {
    area.first_chunk().is_some_and(|magic| u32::from_le_bytes(*magic) == EXT4_XATTR_MAGIC)
}

/// All entries of `area`, which begins with its header, checked.
#[doc(alias = "ext4_xattr_check_entries")]
pub fn parse(ino: Ino, place: Place, area: &[u8]) -> Ext4Result<KVec<Entry<'_>>> {
    let mut entries = KVec::new();
    let mut at = place.first();
    let corrupt = || Corrupt::XattrEntry(ino);
    // Four bytes of zeros end the list.
    while area.get(at..at + PAD).ok_or_else(corrupt)?.iter().any(|byte| *byte != 0) {
        let head = XattrEntryHead::<&[u8; 16]>::at(area, at).ok_or_else(corrupt)?;
        let name_at = at + XattrEntryHead::LEN;
        let name = area.get(name_at..name_at + usize::from(head.e_name_len())).ok_or_else(corrupt)?;
        if name.contains(&0) || head.e_value_size() > EXT4_XATTR_SIZE_MAX {
            return Err(corrupt().into());
        }
        let entry = Entry {
            e_name_index: head.e_name_index(),
            name,
            e_value_inum: head.e_value_inum(),
            e_value_size: head.e_value_size(),
            e_hash: head.e_hash(),
            value: value(place, area, &head).ok_or_else(corrupt)?,
        };
        at += entry.entry_len();
        entries.push(entry, GFP_KERNEL)?;
    }
    // Values lie behind the end of the list.
    let end = at + PAD;
    let inside = |entry: &Entry<'_>| {
        entry.value.is_empty() || (entry.value.as_ptr() as usize).wrapping_sub(area.as_ptr() as usize) >= end
    };
    if entries.iter().all(inside) { Ok(entries) } else { Err(corrupt().into()) }
}

fn value<'a>(place: Place, area: &'a [u8], head: &XattrEntryHead<&[u8; 16]>) -> Option<&'a [u8]> {
    if head.e_value_inum() != 0 || head.e_value_size() == 0 {
        return Some(&[]);
    }
    let from = place.base() + usize::from(head.e_value_offs());
    let size = usize::try_from(head.e_value_size()).ok()?;
    // With what pads it.
    area.get(from..from.checked_add(size.next_multiple_of(PAD))?)?.get(..size)
}

/// Whether `entries` fit into `len` bytes at `place`.
pub fn fits(place: Place, len: usize, entries: &[Entry<'_>]) -> bool {
    let needed = |entry: &Entry<'_>| entry.entry_len() + entry.value.len().next_multiple_of(PAD);
    entries.iter().map(needed).sum::<usize>() + PAD + place.first() <= len
}

/// Fills `area` with `entries`, which [fit](fits). Of a block's header only the hash is set, of an inode's the magic number.
/// None if they do not fit.
#[doc(alias = "ext4_xattr_set_entry")]
pub fn build(place: Place, area: &mut [u8], entries: &[Entry<'_>]) -> Option<()> {
    if !fits(place, area.len(), entries) {
        return None;
    }
    area.get_mut(place.first()..)?.fill(0);
    let (mut at, mut end) = (place.first(), area.len() / PAD * PAD);
    let mut block_hash = 0u32;
    // One without a hash, which is an inode's: nobody else can have the same block.
    let mut shareable = true;
    for entry in entries {
        let hash = entry.hash();
        let padded = entry.value.len().next_multiple_of(PAD);
        end -= padded;
        let offs = if padded == 0 { 0 } else { u16::try_from(end - place.base()).ok()? };
        area.get_mut(end..end + entry.value.len())?.copy_from_slice(entry.value);
        let mut head = XattrEntryHead::<&mut [u8; 16]>::at_mut(area, at)?;
        head.set_e_name_len(u8::try_from(entry.name.len()).ok()?);
        head.set_e_name_index(entry.e_name_index);
        head.set_e_value_offs(offs);
        head.set_e_value_inum(entry.e_value_inum);
        head.set_e_value_size(entry.e_value_size);
        // In an inode only values that are elsewhere have one.
        head.set_e_hash(if place == Place::Block || entry.e_value_inum != 0 { hash } else { 0 });
        let name_at = at + XattrEntryHead::LEN;
        area.get_mut(name_at..name_at + entry.name.len())?.copy_from_slice(entry.name);
        at += entry.entry_len();
        shareable &= hash != 0;
        block_hash = block_hash.rotate_left(16) ^ hash;
    }
    match place {
        Place::Inode => {
            let magic = if entries.is_empty() { 0 } else { EXT4_XATTR_MAGIC };
            *area.first_chunk_mut()? = magic.to_le_bytes();
        }
        Place::Block => {
            XattrHeader::<&mut [u8; 32]>::at_mut(area, 0)?.set_h_hash(if shareable { block_hash } else { 0 });
        }
    }
    Some(())
}

/// Checksum of a block, over its number and all of it, with its own place taken as zeros.
pub fn ext4_xattr_block_csum(fs_seed: u32, block: Fsblk, bytes: &[u8]) -> u32 {
    const AT: usize = 16;
    let mut crc = ext4_chksum(fs_seed, &block.0.to_le_bytes());
    crc = ext4_chksum(crc, bytes.get(..AT).unwrap_or_default());
    crc = ext4_chksum(crc, &[0; 4]);
    ext4_chksum(crc, bytes.get(AT + 4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(12);

    fn sample(place: Place) -> [u8; 128] {
        let mut area = [0u8; 128];
        let entries = [Entry::new(1, b"a", b"one"), Entry::new(1, b"empty", b""), Entry::new(6, b"x", b"12345678")];
        build(place, &mut area, &entries).expect("they fit");
        area
    }

    #[test]
    fn what_is_built_is_parsed() {
        for place in [Place::Inode, Place::Block] {
            let area = sample(place);
            let entries = parse(INO, place, &area).expect("good");
            let found: heapless::Vec<_, 4> = entries.iter().map(|e| (e.e_name_index, e.name, e.value)).collect();
            assert_eq!(found.as_slice(), [(1, &b"a"[..], &b"one"[..]), (1, b"empty", b""), (6, b"x", b"12345678")]);
        }
    }

    #[test]
    fn room_is_used_to_the_last_byte() {
        for place in [Place::Inode, Place::Block] {
            let mut area = [0u8; 128];
            let room = 128 - place.first() - PAD - XattrEntryHead::LEN - 4;
            let value = [7u8; 128];
            let fit = [Entry::new(1, b"name", &value[..room])];
            assert!(build(place, &mut area, &fit).is_some());
            assert_eq!(parse(INO, place, &area).expect("good")[0].value.len(), room);
            assert!(build(place, &mut area, &[Entry::new(1, b"name", &value[..room + 1])]).is_none());
        }
    }

    /// Whatever one byte says, there is an answer.
    #[test]
    fn no_byte_leads_outside() {
        for place in [Place::Inode, Place::Block] {
            for at in 0..128 {
                for byte in [0, 1, 4, 0x7f, 0x80, 0xff] {
                    let mut area = sample(place);
                    area[at] = byte;
                    let _ = parse(INO, place, &area);
                    let _ = parse(INO, place, &area[..at]);
                }
            }
        }
    }

    #[test]
    fn values_over_their_own_entries_are_corrupt() {
        let mut area = sample(Place::Block);
        XattrEntryHead::<&mut [u8; 16]>::at_mut(&mut area, 32).expect("there").set_e_value_offs(36);
        assert!(parse(INO, Place::Block, &area).is_err());
    }
}
