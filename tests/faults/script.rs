// SPDX-License-Identifier: GPL-2.0-only
//! What a workload does, a line for each step; and the machine that it is done on.
//!
//! Steps are the operations of `oplang` and a few about the mount as a whole. In a workload's text `@` stands for the directory it
//! runs in, and a number with `b` behind it for so many blocks.

use ext4_dio::path::{Cred, path_link_file, path_open};
use ext4_dio::{SuperBlock, ext4_freeze, ext4_mount, ext4_remount, ext4_umount, ext4_unfreeze};
use ext4_dio_tests::oplang::{OFlags, Op, Out, Reply, Rwf, SLOTS, Vfs};
use ext4_dio_tests::ours::Ours;
use kernel_shim::alloc::{Arc as KArc, GFP_KERNEL};
use kernel_shim::block::Bdev;
use kernel_shim::block::fault::FaultDisk;
use kernel_shim::error::Error;
use kernel_shim::fs::OpenFlags;

use crate::disk::{Cow, Late};

/// One thing that is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// An operation.
    Op(Op),
    /// Opens a file without a name in a directory.
    Tmpfile(u8, String),
    /// Gives what is open in a slot a name.
    LinkFile(u8, String),
    /// Freezes.
    Freeze,
    /// Thaws.
    Thaw,
    /// Remounts with options.
    Options(String),
    /// Unmounts and mounts.
    Remount,
    /// Forgets what is clean: it will be read again.
    Drop,
    /// Mounts: before the first step.
    Mount,
    /// Closes all, and unmounts: behind the last step.
    Umount,
}

/// What a step has made durable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Durable {
    /// A file.
    File(String),
    /// So many bytes of one, from a position on.
    Part(String, u64, u64),
    /// Everything.
    All,
}

/// What a step is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum About {
    /// The data of this file.
    Data(String),
    /// All data.
    All,
    /// Names, attributes; or nothing that could be there in part.
    Else,
}

fn numbers(word: &str, block: u32) -> String {
    let number = |text: &str| match text.strip_suffix('b').and_then(|n| n.parse::<u64>().ok()) {
        Some(n) => (n * u64::from(block)).to_string(),
        None => text.to_string(),
    };
    let pair = |text: &str| text.split('+').map(number).collect::<Vec<_>>().join("+");
    match word.split_once('=') {
        Some((key @ ("pos" | "len" | "size" | "list"), value)) => {
            format!("{key}={}", value.split(',').map(pair).collect::<Vec<_>>().join(","))
        }
        _ => word.to_string(),
    }
}

impl Step {
    /// Parses a workload's text for directory `dir` and blocks of `block` bytes.
    pub(crate) fn script(text: &str, dir: &str, block: u32) -> Vec<Step> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(|line| Self::parse(&line.replace('@', dir), block)).collect()
    }

    fn parse(line: &str, block: u32) -> Step {
        let line = line.split_whitespace().map(|word| numbers(word, block)).collect::<Vec<_>>().join(" ");
        let mut words = line.split(' ');
        let (name, first, second) = (words.next(), words.next().unwrap_or(""), words.next().unwrap_or(""));
        let slot = || first.parse().expect("a slot");
        match name {
            Some("tmpfile") => Step::Tmpfile(slot(), second.to_string()),
            Some("linkfile") => Step::LinkFile(slot(), second.to_string()),
            Some("freeze") => Step::Freeze,
            Some("thaw") => Step::Thaw,
            Some("options") => Step::Options(first.to_string()),
            Some("remount") => Step::Remount,
            Some("drop") => Step::Drop,
            _ => Step::Op(line.parse().unwrap_or_else(|e| panic!("{line}: {e}"))),
        }
    }
}

/// Which file is open in each slot while the steps of a script are gone through; names as they are after renames.
#[derive(Clone, Default)]
pub(crate) struct Slots([Option<(String, OFlags)>; SLOTS]);

impl Slots {
    fn path(&self, slot: u8) -> Option<String> {
        self.0[usize::from(slot)].as_ref().map(|(path, _)| path.clone())
    }

    /// What `step` is about, before it is done.
    pub(crate) fn about(&self, step: &Step) -> About {
        let slot = |slot: &u8| self.path(*slot).map_or(About::Else, About::Data);
        match step {
            Step::Op(op) => match op {
                Op::Open { path, flags, .. } if flags.has(OFlags::TRUNC) => About::Data(path.clone()),
                Op::Truncate { path, .. } => About::Data(path.clone()),
                Op::Write { slot: s, .. }
                | Op::Aio { slot: s, .. }
                | Op::Ftruncate { slot: s, .. }
                | Op::Fallocate { slot: s, .. }
                | Op::Fsync { slot: s }
                | Op::Fdatasync { slot: s }
                | Op::SeekData { slot: s, .. }
                | Op::SeekHole { slot: s, .. }
                | Op::Read { slot: s, .. }
                | Op::Fiemap { slot: s } => slot(s),
                Op::Sync {} | Op::Statfs {} => About::All,
                _ => About::Else,
            },
            Step::Freeze | Step::Options(_) | Step::Remount | Step::Umount => About::All,
            _ => About::Else,
        }
    }

    /// What is durable if `step` has answered `got`.
    pub(crate) fn makes_durable(&self, step: &Step, got: &Reply) -> Vec<Durable> {
        let Ok(out) = got else { return Vec::new() };
        let some = |slot: &u8| self.0[usize::from(*slot)].as_ref();
        let whole = |slot| some(slot).map(|(path, _)| Durable::File(path.clone())).into_iter().collect();
        let dsync = |slot| some(slot).filter(|(_, flags)| flags.has(OFlags::DSYNC) || flags.has(OFlags::SYNC));
        match (step, out) {
            (Step::Op(Op::Fsync { slot } | Op::Fdatasync { slot }), _) => whole(slot),
            (Step::Op(Op::Write { slot, pos, rwf, .. }), Out::Count(n)) if !rwf.has(Rwf::APPEND) => {
                let file = if rwf.has(Rwf::DSYNC) { some(slot) } else { dsync(slot) };
                let file = file.filter(|(_, flags)| !flags.has(OFlags::APPEND));
                file.map(|(path, _)| Durable::Part(path.clone(), *pos, *n as u64)).into_iter().collect()
            }
            (Step::Op(Op::Aio { slot, list, .. }), Out::Ends(ends)) => {
                let Some((path, _)) = dsync(slot) else { return Vec::new() };
                let done = list.iter().zip(ends).filter_map(|(&(pos, _), end)| Some((pos, *end.as_ref().ok()? as u64)));
                done.map(|(pos, n)| Durable::Part(path.clone(), pos, n)).collect()
            }
            (Step::Op(Op::Sync {} | Op::Statfs {}) | Step::Freeze | Step::Remount | Step::Umount, _) => {
                vec![Durable::All]
            }
            (Step::Options(options), _) if options.contains("ro") => vec![Durable::All],
            _ => Vec::new(),
        }
    }

    /// Goes on: `step` was done.
    pub(crate) fn done(&mut self, step: &Step, got: &Reply) {
        match step {
            Step::Op(Op::Open { slot, path, flags, .. }) => {
                self.0[usize::from(*slot)] = got.is_ok().then(|| (path.clone(), *flags));
            }
            Step::Op(Op::Close { slot }) | Step::Tmpfile(slot, _) => self.0[usize::from(*slot)] = None,
            Step::LinkFile(slot, path) if got.is_ok() => {
                self.0[usize::from(*slot)] = Some((path.clone(), OFlags::default()));
            }
            Step::Op(Op::Rename { from, to, .. }) if got.is_ok() => {
                for (path, _) in self.0.iter_mut().flatten().filter(|(path, _)| path == from) {
                    path.clone_from(to);
                }
            }
            Step::Remount | Step::Umount => *self = Self::default(),
            _ => {}
        }
    }
}

/// A disk, and what is mounted on it.
pub(crate) struct Machine {
    /// What is below the faults.
    pub(crate) disk: KArc<Cow>,
    /// Where they come from.
    pub(crate) faults: KArc<FaultDisk<KArc<Cow>>>,
    /// `None` if mounting has failed, or before and after it.
    pub(crate) sb: Option<KArc<SuperBlock>>,
    ours: Option<Ours>,
    bdev: Bdev,
    options: String,
}

fn answer(ret: Result<(), Error>) -> Reply {
    ret.map(|()| Out::Done).map_err(|e| -e.to_errno())
}

impl Machine {
    /// Nothing is mounted yet. `late`: requests end after their submission.
    pub(crate) fn new(disk: Cow, late: bool, options: &str) -> Self {
        let disk = KArc::new(disk, GFP_KERNEL).expect("memory");
        let faults = KArc::new(FaultDisk::new(disk.clone()), GFP_KERNEL).expect("memory");
        let bdev = if late { Bdev::new(Late::new(faults.clone())) } else { Bdev::new(faults.clone()) };
        let bdev = bdev.expect("good limits");
        Self { disk, faults, sb: None, ours: None, bdev, options: options.to_string() }
    }

    fn mount(&mut self) -> Reply {
        let sb = ext4_mount(self.bdev.clone(), &self.options).map_err(|e| -e.to_errno())?;
        self.ours = Some(Ours::on(sb.clone()));
        self.sb = Some(sb);
        Ok(Out::Done)
    }

    fn umount(&mut self) -> Reply {
        self.close_all();
        let sb = self.sb.take().ok_or(libc::EINVAL)?;
        self.ours = None;
        let ret = answer(ext4_umount(&sb));
        assert_ne!(ret, Err(libc::EBUSY), "unmounting: somebody holds an inode");
        // What the evictions of the last inodes hold goes with their worker.
        sb.drain_evictions();
        assert_eq!(KArc::strong_count(&sb), 1, "somebody holds the mount");
        ret
    }

    /// Closes all files.
    pub(crate) fn close_all(&mut self) {
        if let Some(ours) = &mut self.ours {
            ours.close_all();
        }
    }

    /// The mounted file system.
    pub(crate) fn vfs(&mut self) -> Option<&mut Ours> {
        self.ours.as_mut()
    }

    /// Does a step. EINVAL if there is no mount to do it on.
    pub(crate) fn apply(&mut self, step: &Step) -> Reply {
        match step {
            Step::Mount => return self.mount(),
            Step::Umount => return self.umount(),
            Step::Remount => {
                let ended = self.umount();
                return self.mount().and(ended);
            }
            _ => {}
        }
        let (Some(sb), Some(ours)) = (self.sb.clone(), &mut self.ours) else { return Err(libc::EINVAL) };
        match step {
            Step::Op(op) => return ours.apply(op),
            Step::Tmpfile(slot, dir) => {
                let flags = OpenFlags::O_TMPFILE | OpenFlags::O_RDWR;
                let file = path_open(&sb, dir.as_bytes(), flags, 0o600, &Cred::default()).map_err(|e| -e.to_errno())?;
                ours.install(*slot, file);
            }
            Step::LinkFile(slot, path) => {
                let file = ours.file(*slot)?;
                return answer(path_link_file(&sb, file, path.as_bytes()));
            }
            Step::Freeze => return answer(ext4_freeze(&sb)),
            Step::Thaw => return answer(ext4_unfreeze(&sb)),
            Step::Options(options) => return answer(ext4_remount(&sb, options)),
            Step::Drop => {
                sb.shrink_inodes();
                sb.s_fs_info().buffers.invalidate_clean();
            }
            Step::Mount | Step::Umount | Step::Remount => {}
        }
        Ok(Out::Done)
    }
}
