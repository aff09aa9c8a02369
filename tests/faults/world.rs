// SPDX-License-Identifier: GPL-2.0-only
//! The file systems that workloads run on, with what their preparation has left there.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ext4_dio_tests::clean::Log;
use ext4_dio_tests::differential::POISON;
use ext4_dio_tests::images::{Image, Mkfs};

use crate::disk::Cow;
use crate::script::{Machine, Step};

/// A kind of file system and of mount.
#[derive(Clone, Copy)]
pub(crate) struct World {
    /// For messages and the replay.
    pub(crate) name: &'static str,
    /// Bytes in a block.
    pub(crate) block: u32,
    fs_type: &'static str,
    features: &'static str,
    args: &'static [&'static str],
    size_kib: u64,
    inode_size: u32,
    /// Mount options.
    pub(crate) options: &'static str,
    /// Requests end after their submission.
    pub(crate) late: bool,
}

const SMALL: World = World {
    name: "",
    block: 1024,
    fs_type: "ext4",
    features: "^resize_inode",
    args: &["-J", "size=1"],
    size_kib: 4 << 10,
    inode_size: 256,
    options: "",
    late: false,
};

/// All of them.
pub(crate) const WORLDS: [World; 6] = [
    World { name: "1k", options: "dioread_nolock,noatime,errors=remount-ro,commit=600", ..SMALL },
    World {
        name: "4k",
        block: 4096,
        args: &["-J", "size=4"],
        size_kib: 10 << 10,
        options: "dioread_nolock,dio_window=i_data_sem,noatime,errors=continue,commit=600",
        late: true,
        ..SMALL
    },
    World {
        name: "2k-nojournal",
        block: 2048,
        features: "^resize_inode,^has_journal",
        args: &[],
        options: "dioread_nolock,noatime,errors=continue,commit=600",
        ..SMALL
    },
    World {
        name: "ext3",
        fs_type: "ext3",
        inode_size: 128,
        options: "dioread_lock,noatime,errors=continue,commit=600",
        ..SMALL
    },
    World {
        name: "2k-panic",
        block: 2048,
        args: &["-J", "size=2"],
        size_kib: 6 << 10,
        options: "dioread_nolock,noatime,errors=panic,commit=600",
        late: true,
        ..SMALL
    },
    World { name: "1k-lock", options: "dioread_lock,noatime,errors=remount-ro,commit=600", ..SMALL },
];

impl World {
    /// Has a journal.
    pub(crate) fn journal(&self) -> bool {
        !self.features.contains("^has_journal")
    }

    /// Files are mapped by extents.
    pub(crate) fn extents(&self) -> bool {
        self.fs_type == "ext4"
    }

    fn mkfs(&self) -> Mkfs {
        Mkfs {
            fs_type: self.fs_type,
            block_size: self.block,
            features: self.features,
            inode_size: self.inode_size,
            size_kib: self.size_kib,
            inodes: 256,
            args: self.args,
            ..Mkfs::default()
        }
    }
}

/// A disk to begin with.
#[derive(Clone)]
pub(crate) struct Prepared {
    /// All its bytes.
    pub(crate) base: Arc<Vec<u8>>,
    /// Where the journal is, in sectors.
    pub(crate) journal: Vec<Range<u64>>,
    /// The same, for who looks at it.
    pub(crate) log: Log,
}

/// Sectors of the journal, which `debugfs` lists the blocks of.
fn journal_of(image: &Image, block: u32) -> Vec<Range<u64>> {
    let per_block = u64::from(block / 512);
    let text = image.debugfs("blocks <8>");
    let blocks = text.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    blocks.map(|block| block * per_block..(block + 1) * per_block).collect()
}

/// A disk of `world` on which `setup` was run in `a` and `b`; `dirty`: it was not unmounted then.
pub(crate) fn prepare(world: &World, setup: &str, dirty: bool) -> Prepared {
    static MADE: Mutex<Vec<(String, Prepared)>> = Mutex::new(Vec::new());
    let key = format!("{} {dirty} {setup}", world.name);
    let known = |made: &[(String, Prepared)]| made.iter().find(|(k, _)| *k == key).map(|(_, p)| p.clone());
    if let Some(made) = known(&MADE.lock().unwrap_or_else(PoisonError::into_inner)) {
        return made;
    }
    let image = Image::make_over(&world.mkfs(), POISON);
    let journal = if world.journal() { journal_of(&image, world.block) } else { Vec::new() };
    let log = if world.journal() { Log::of(&image, world.block as usize) } else { Log::default() };
    let mut machine = Machine::new(Cow::new(Arc::new(image.bytes())), world.late, world.options);
    let mut steps = vec![Step::Mount];
    for dir in ["a", "b"] {
        steps.extend(Step::script(&format!("mkdir path=@ mode=493\n{setup}"), dir, world.block));
    }
    for step in &steps {
        let got = machine.apply(step);
        assert!(got.is_ok(), "{}: preparing: {step:?}: {got:?}", world.name);
    }
    let left = dirty.then(|| machine.disk.image());
    machine.apply(&Step::Umount).expect("unmounting");
    let base = left.unwrap_or_else(|| machine.disk.image());
    if !dirty {
        Image::from_bytes(&base).assert_clean();
    }
    let prepared = Prepared { base: Arc::new(base), journal, log };
    MADE.lock().unwrap_or_else(PoisonError::into_inner).push((key, prepared.clone()));
    prepared
}
