// SPDX-License-Identifier: GPL-2.0-only
//! A file, and a model that knows each block of it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::*;

/// What a block of the file is, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Hole,
    Unwritten(u64),
    Written(u64),
}
pub(super) use Cell::*;

impl Cell {
    pub(super) fn pblk(self) -> Option<u64> {
        match self {
            Hole => None,
            Unwritten(p) | Written(p) => Some(p),
        }
    }
}

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % u64::from(n.max(1))) as u32
    }
}

/// What fills blocks that hold no data of the file.
pub(super) const OLD: u8 = 0xa5;

/// An empty file `/f` and one to take up space, `/filler`, on a small disk without a journal.
pub(super) fn empty_files(spec: &Mkfs) -> Vec<u8> {
    static MADE: Mutex<Vec<(String, Vec<u8>)>> = Mutex::new(Vec::new());
    let key = format!("{spec:?}");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, bytes)) = made.iter().find(|(k, _)| *k == key) {
        return bytes.clone();
    }
    let image = Image::make(spec, None);
    image.debugfs_script(&["write /dev/null f".to_string(), "write /dev/null filler".to_string()]);
    image.assert_clean();
    made.push((key, image.bytes()));
    image.bytes()
}

pub(super) fn spec(fs_type: &'static str, block_size: u32, size_kib: u64) -> Mkfs {
    let features = if fs_type == "ext2" { "" } else { "^has_journal" };
    Mkfs { fs_type, block_size, size_kib, features, inodes: 64, ..Mkfs::default() }
}

/// A file and its model.
pub(super) struct Fixture {
    pub(super) m: Mount,
    pub(super) file: KArc<File>,
    pub(super) bs: u32,
    pub(super) model: Vec<Cell>,
    /// Free blocks before anything was allocated.
    pub(super) free: u64,
    pub(super) what: String,
}

impl Fixture {
    pub(super) fn new(spec: &Mkfs, blocks: u32, what: String) -> Self {
        let m = Mount::with(&empty_files(spec), "", auto());
        let file = m.open("/f");
        let bs = spec.block_size;
        let free = free_blocks(&m);
        let fixture = Self { m, file, bs, model: vec![Hole; blocks as usize], free, what };
        // Blocks that are written lie within the file.
        let size = i64::from(blocks) * i64::from(bs);
        fixture.inode().lock().i_size_write(size);
        fixture.inode().i_private().i_disksize.store(size, Ordering::Release);
        fixture
    }

    pub(super) fn inode(&self) -> &Inode {
        self.file.f_inode()
    }

    pub(super) fn handle(&self, blocks: u32) -> Handle<'_> {
        let credits = ext4_chunk_trans_blocks(self.inode(), blocks);
        ext4_journal_start(self.inode().i_sb().s_fs_info(), credits).expect("a handle")
    }

    /// One call, and its answer.
    pub(super) fn map_create(&self, lblk: u32, len: u32, flags: GetBlocks) -> Result<(u32, MapBlocks)> {
        let _i_mutex = self.inode().lock();
        let mut handle = self.handle(len);
        let mut map = MapBlocks::new(Lblk(lblk), len);
        let done = ext4_map_create_blocks(&mut handle, self.inode(), &mut map, flags);
        handle.stop().expect("the handle stops");
        done.map(|n| (n, map))
    }

    pub(super) fn remove(&self, start: u32, end: u32) -> Result {
        let _i_mutex = self.inode().lock();
        let mut handle = self.handle(1);
        let done = if self.inode().i_private().is_extents() {
            ext4_ext_remove_space(&mut handle, self.inode(), Lblk(start), Lblk(end))
        } else {
            ext4_ind_remove_space(&mut handle, self.inode(), Lblk(start), Lblk(end))
        };
        handle.stop().expect("the handle stops");
        done
    }

    pub(super) fn shift(&self, start: u32, shift: u32, right: bool) -> Result {
        let _i_mutex = self.inode().lock();
        let mut handle = self.handle(1);
        let done = ext4_ext_shift_extents(&mut handle, self.inode(), Lblk(start), shift, right);
        handle.stop().expect("the handle stops");
        done
    }

    /// The file as its map has it, by what `ext4_map_blocks` says.
    pub(super) fn look(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        while cells.len() < self.model.len() {
            let lblk = cells.len() as u32;
            let mut map = MapBlocks::new(Lblk(lblk), self.model.len() as u32 - lblk);
            let n = ext4_map_blocks(self.inode(), &mut map)
                .unwrap_or_else(|e| panic!("{}: block {lblk}: {e:?}", self.what));
            assert!(map.m_len > 0 && (n == 0 || n == map.m_len), "{}: {map:?}", self.what);
            cells.extend((0..u64::from(map.m_len)).map(|i| match (n, map.m_flags.contains(MapFlags::MAPPED)) {
                (0, _) => Hole,
                (_, true) => Written(map.m_pblk.0 + i),
                (_, false) => Unwritten(map.m_pblk.0 + i),
            }));
        }
        cells
    }

    /// The same from extent to extent, past the cache.
    pub(super) fn walk(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        while cells.len() < self.model.len() {
            let es = ext4_ext_next(self.inode(), Lblk(cells.len() as u32)).expect("the map is whole");
            assert!(es.lblk().0 as usize <= cells.len() && es.end() as usize > cells.len(), "{}: {es:?}", self.what);
            let from = cells.len() as u32 - es.lblk().0;
            let most = self.model.len() as u32;
            cells.extend((from..es.len().min(from + most)).map(|i| match es.status() {
                EsStatus::Hole => Hole,
                EsStatus::Written => Written(es.pblk().0 + u64::from(i)),
                EsStatus::Unwritten => Unwritten(es.pblk().0 + u64::from(i)),
            }));
        }
        cells.truncate(self.model.len());
        cells
    }

    /// The map is what the model says, in the cache and on disk.
    pub(super) fn agree(&self) {
        for (how, cells) in [("cached", self.look()), ("walked", self.walk())] {
            if let Some(at) = (0..cells.len()).find(|at| cells[*at] != self.model[*at]) {
                panic!("{}: {how}: block {at} is {:?}, not {:?}", self.what, cells[at], self.model[at]);
            }
        }
    }

    pub(super) fn disk(&self, opf: ReqOpf, pblk: u64, buf: &mut [u8]) {
        bdev_rw(self.m.sb.s_bdev(), opf, pblk * u64::from(self.bs / 512), buf).expect("the disk works");
    }

    pub(super) fn block(&self, pblk: u64) -> Vec<u8> {
        let mut pages = Pages::new(self.bs as usize, 0);
        self.disk(ReqOpf::REQ_OP_READ, pblk, pages.bytes_mut());
        pages.bytes().to_vec()
    }

    pub(super) fn is_zero(&self, pblk: u64) -> bool {
        self.block(pblk).iter().all(|byte| *byte == 0)
    }

    pub(super) fn soil(&self, pblk: u64, blocks: u32) {
        let mut pages = Pages::new((blocks * self.bs) as usize, OLD);
        self.disk(ReqOpf::REQ_OP_WRITE, pblk, pages.bytes_mut());
    }

    /// A call of `ext4_map_create_blocks` whose answer and consequences must be right. `ENOSPC` changes nothing.
    pub(super) fn create(&mut self, lblk: u32, len: u32, flags: GetBlocks) -> Result<u32> {
        let taken: BTreeSet<u64> = self.model.iter().filter_map(|cell| cell.pblk()).collect();
        let before = self.model[lblk as usize];
        let answer = self.map_create(lblk, len, flags);
        let what = format!("{}: {flags:?} at {lblk}+{len}", self.what);
        if flags.contains(GetBlocks::CONVERT) && before == Hole {
            assert_eq!(answer, Err(EIO), "{what}");
            self.agree();
            return Err(EIO);
        }
        let (n, map) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                assert_eq!(error, ENOSPC, "{what}");
                self.agree();
                return Err(error);
            }
        };
        assert!((1..=len).contains(&n) && map.m_len == n, "{what}: {n} {map:?}");
        // Files without extents have no unwritten blocks.
        let unwritten = flags.contains(GetBlocks::UNINIT_EXT) && self.inode().i_private().is_extents();
        for i in 0..n {
            let (at, pblk) = ((lblk + i) as usize, map.m_pblk.0 + u64::from(i));
            let now = match self.model[at] {
                Hole => {
                    assert!(!taken.contains(&pblk), "{what}: block {pblk} is in use");
                    if unwritten { Unwritten(pblk) } else { Written(pblk) }
                }
                Unwritten(p) if flags.contains(GetBlocks::CONVERT) || !unwritten => Written(p),
                Written(p) if flags.contains(GetBlocks::CONVERT_UNWRITTEN) => {
                    let kept = map.m_flags.contains(MapFlags::MAPPED);
                    assert!(!kept || self.is_zero(p), "{what}: {at} was not zeroed");
                    if kept { Written(p) } else { Unwritten(p) }
                }
                cell => cell,
            };
            assert_eq!(now.pblk(), Some(pblk), "{what}: where {at} is");
            let new = before == Hole
                || (before.pblk().is_some()
                    && now == Written(pblk)
                    && matches!(self.model[at], Unwritten(_))
                    && !flags.contains(GetBlocks::CONVERT));
            assert_eq!(map.m_flags.contains(MapFlags::NEW), new, "{what}: {at} new");
            assert_eq!(map.m_flags.contains(MapFlags::MAPPED), matches!(now, Written(_)), "{what}: {map:?}");
            if flags.contains(GetBlocks::ZERO) && new {
                assert!(self.is_zero(pblk), "{what}: {at} was not zeroed");
            }
            self.model[at] = now;
        }
        if flags.contains(GetBlocks::PRE_IO) && matches!(self.model[lblk as usize], Unwritten(_)) {
            let es = ext4_ext_next(self.inode(), Lblk(lblk)).expect("the map is whole");
            assert_eq!((es.lblk(), es.len()), (Lblk(lblk), n), "{what}: an extent of its own");
        }
        // Beside what was made written, short remainders may have been zeroed and be written, too.
        if flags.contains(GetBlocks::CREATE) && !unwritten {
            for (at, cell) in self.look().into_iter().enumerate() {
                if let (Unwritten(p), Written(q)) = (self.model[at], cell) {
                    assert!(p == q && self.is_zero(p), "{what}: {at} shows what was there before");
                    self.model[at] = cell;
                }
            }
        }
        self.soil(map.m_pblk.0, n);
        self.agree();
        Ok(n)
    }

    /// [`Fixture::create`] until all of it is done.
    pub(super) fn create_all(&mut self, lblk: u32, len: u32, flags: GetBlocks) {
        let mut done = 0;
        while done < len {
            done += self.create(lblk + done, len - done, flags).expect("room on the disk");
        }
    }

    pub(super) fn punch(&mut self, start: u32, end: u32) -> Result {
        let done = self.remove(start, end);
        match done {
            Ok(()) => self.model[start as usize..end as usize].fill(Hole),
            Err(error) => {
                assert_eq!(error, ENOSPC, "{}: removing {start}..{end}", self.what);
                // From the end, and each block freed or as it was.
                let now = self.look();
                let range = start as usize..end as usize;
                for (model, now) in self.model[range.clone()].iter_mut().zip(&now[range]) {
                    if *now == Hole {
                        *model = Hole;
                    }
                }
            }
        }
        self.agree();
        done
    }

    pub(super) fn collapse(&mut self, start: u32, len: u32) -> Result {
        self.punch(start, start + len)?;
        self.shift(start + len, len, false)?;
        self.model.drain(start as usize..(start + len) as usize);
        self.model.extend((0..len).map(|_| Hole));
        self.agree();
        Ok(())
    }

    pub(super) fn insert(&mut self, start: u32, len: u32) -> Result {
        let blocks = self.model.len();
        // What would leave the model's end goes first.
        self.punch(blocks as u32 - len, blocks as u32)?;
        let done = self.shift(start, len, true);
        if done.is_ok() {
            self.model.truncate(blocks - len as usize);
            self.model.splice(start as usize..start as usize, (0..len).map(|_| Hole));
        }
        self.agree();
        done
    }

    pub(super) fn depth(&self) -> u16 {
        self.inode().i_private().i_data_sem.read().depth()
    }

    /// All blocks come back, and the disk is as `e2fsck` wants it with and without them.
    pub(super) fn finish(mut self) {
        let blocks = self.model.len() as u32;
        self.punch(0, blocks).expect("all of it can go");
        assert_eq!(self.depth(), 0, "{}: an empty tree is flat", self.what);
        assert_eq!(self.inode().i_private().i_blocks.load(Ordering::Relaxed), 0, "{}: i_blocks", self.what);
        assert_eq!(free_blocks(&self.m), self.free, "{}: free blocks", self.what);
        self.m.assert_idle(&self.file);
        drop(self.file);
        self.m.finish();
    }

    /// Unmounts with what there is, which is in order.
    pub(super) fn finish_full(self) {
        self.m.assert_idle(&self.file);
        drop(self.file);
        self.m.finish();
    }
}

pub(super) fn free_blocks(m: &Mount) -> u64 {
    m.sb.s_fs_info().ext4_count_free_clusters().map_err(|error: Ext4Error| error).expect("descriptors")
}

/// Takes all free blocks but `leave`.
pub(super) fn fill_disk(m: &Mount, leave: u32) {
    let file = m.open("/filler");
    let inode: &Inode = file.f_inode();
    let sb = m.sb.s_fs_info();
    let i_mutex = inode.lock();
    let mut at = 0;
    loop {
        let mut handle = ext4_journal_start(sb, ext4_chunk_trans_blocks(inode, 1000)).expect("a handle");
        let mut map = MapBlocks::new(Lblk(at), 1000);
        let done = ext4_map_create_blocks(&mut handle, inode, &mut map, GetBlocks::CREATE_UNINIT_EXT);
        handle.stop().expect("the handle stops");
        match done {
            Ok(n) => at += n,
            Err(error) => {
                assert_eq!(error, ENOSPC);
                break;
            }
        }
    }
    let mut handle = ext4_journal_start(sb, 100).expect("a handle");
    if inode.i_private().is_extents() {
        ext4_ext_remove_space(&mut handle, inode, Lblk(at - leave), Lblk(at)).expect("the end of it can go");
    } else {
        ext4_ind_remove_space(&mut handle, inode, Lblk(at - leave), Lblk(at)).expect("the end of it can go");
    }
    handle.stop().expect("the handle stops");
    let size = i64::from(at) * (1 << inode.i_blkbits());
    i_mutex.i_size_write(size);
    inode.i_private().i_disksize.store(size, Ordering::Release);
    inode.mark_inode_dirty(kernel_shim::fs::InodeState::DIRTY_SYNC);
}
