// SPDX-License-Identifier: GPL-2.0-only
//! Random operations, determined by a seed: the ones of the hosted tests, through the mount; and on one file by descriptors and
//! mappings at once. `EXT4_DIO_SEED=n` and `EXT4_DIO_OPS=n` run the sequence that a failure names.

use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ext4_dio_tests::differential::{Case, check, check_clean, ops_or, run, seeds};
use ext4_dio_tests::dio::Pages;
use ext4_dio_tests::generator::Theme;
use ext4_dio_tests::images::{Image, Mkfs};
use ext4_dio_tests::linux::{self, Linux};
use ext4_dio_tests::model::Model;
use ext4_dio_tests::oplang::{Falloc, Op, Rng, pattern};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::support::{BLOCKS, Fuse, Mount, available};

/// What FUSE does not carry is replaced by what is most like it.
fn carried(op: &Op) -> Op {
    match op.clone() {
        Op::Fallocate { slot, how: Falloc::Collapse, pos, len } => Op::Fallocate { slot, how: Falloc::Punch, pos, len },
        Op::Fallocate { slot, how: Falloc::Insert, pos, len } => Op::Fallocate { slot, how: Falloc::Zero, pos, len },
        Op::Fiemap { slot } => Op::Fstat { slot },
        op => op,
    }
}

/// The mount does what the model says, and Linux then finds on the disk what the model has.
fn case(case: &Case, ops: &[Op]) -> Result<(), String> {
    let ops: Vec<Op> = ops.iter().map(carried).collect();
    let image = Image::from_bytes(&case.image());
    let mut mount = Linux::mount_by(Box::new(Fuse::new(&case.options)), &image.path())?;
    let mut model = Model::new(case.expect(false));
    run(&mut mount, &mut model, &ops)?;
    model.compare(&mut mount).map_err(|e| format!("in the end: {e}"))?;
    mount.unmount().map_err(|e| format!("unmounting: errno {e}"))?;
    check_clean(&image.path())?;
    model.close_all();
    if linux::available() {
        let mut linux = Linux::mount(&image.path(), "noatime")?;
        model.compare(&mut linux).map_err(|e| format!("in Linux: {e}"))?;
    }
    Ok(())
}

#[test]
fn the_mount_does_what_the_model_says() {
    if !available() {
        return;
    }
    for (n, block_size) in BLOCKS.into_iter().enumerate() {
        let themes = [Theme::Data, Theme::Mixed, Theme::Names];
        seeds(&format!("mount, {block_size}"), 100 * n as u64, 3, |seed| {
            let args: &[&str] = if block_size == 4096 { &[] } else { &["-J", "size=4"] };
            let mkfs = Mkfs { block_size, size_kib: 32 << 10, inodes: 256, args, ..Mkfs::default() };
            let theme = themes[seed as usize % 3];
            let ops = ops_or(150);
            check(&Case { mkfs, options: "noatime".to_string(), seed, theme, ops, tight: false }, case);
        });
    }
}

/// A file, open twice, and what it has to hold.
struct Fsx {
    direct: File,
    buffered: File,
    model: Vec<u8>,
    rng: Rng,
    /// What direct I/O is aligned to.
    unit: usize,
    done: String,
    tag: u32,
}

/// The file does not get longer.
const LONGEST: usize = 600_000;

impl Fsx {
    fn new(mount: &Mount, seed: u64, unit: usize) -> Self {
        let direct = mount.open("f", OFlags::DIRECT | OFlags::TRUNC);
        let buffered = mount.open("f", OFlags::empty());
        Self { direct, buffered, model: Vec::new(), rng: Rng(seed), unit, done: String::new(), tag: 0 }
    }

    /// Somewhere below [`LONGEST`], a multiple of `unit`, and at least one of them.
    fn range(&mut self, unit: usize) -> (usize, usize) {
        let units = (LONGEST / unit) as u64;
        let at = self.rng.below(units);
        let most = if self.rng.one_in(4) { 65_536 } else { 16_384 };
        let len = 1 + self.rng.below((most / unit) as u64).min(units - at - 1);
        (at as usize * unit, len as usize * unit)
    }

    fn grow(&mut self, to: usize) {
        self.model.resize(self.model.len().max(to), 0);
    }

    fn bytes(&mut self, at: usize, len: usize) -> Vec<u8> {
        self.tag += 1;
        pattern(self.tag, at as u64, len)
    }

    /// What is at `at` must be this.
    fn compare(&self, how: &str, at: usize, got: &[u8]) {
        let want = &self.model[at.min(self.model.len())..(at + got.len()).min(self.model.len())];
        assert_eq!(got.len(), want.len(), "{how} at {at}: so many bytes");
        if let Some(n) = got.iter().zip(want).position(|(a, b)| a != b) {
            panic!("{how} at {at}: byte {} is {:#04x}, should be {:#04x}", at + n, got[n], want[n]);
        }
    }

    fn write(&mut self, direct: bool) {
        let (at, len) = self.range(if direct { self.unit } else { 1 });
        let bytes = self.bytes(at, len);
        let memory = Pages::of(&bytes);
        writeln!(self.done, "write direct={direct} {at} {len}").expect("memory");
        let file = if direct { &self.direct } else { &self.buffered };
        file.write_all_at(memory.bytes(), at as u64).expect("writing");
        self.grow(at + len);
        self.model[at..at + len].copy_from_slice(&bytes);
    }

    fn read(&mut self, direct: bool) {
        let (at, len) = self.range(if direct { self.unit } else { 1 });
        writeln!(self.done, "read direct={direct} {at} {len}").expect("memory");
        let mut memory = Pages::new(len, 0xee);
        let file = if direct { &self.direct } else { &self.buffered };
        let got = file.read_at(memory.bytes_mut(), at as u64).expect("reading");
        let want = self.model.len().saturating_sub(at).min(len);
        assert_eq!(got, want, "read direct={direct} {at} {len}: so many bytes");
        self.compare("read", at.min(self.model.len()), &memory.bytes()[..got]);
    }

    /// Reads or writes through a mapping of what is there.
    fn mapped(&mut self, write: bool) {
        let (at, len) = self.range(1);
        let len = len.min(self.model.len().saturating_sub(at));
        if len == 0 {
            return;
        }
        writeln!(self.done, "mmap write={write} {at} {len}").expect("memory");
        let base = at / 4096 * 4096;
        let skip = at - base;
        let bytes = self.bytes(at, len);
        // SAFETY: a new mapping wherever there is room; nobody shortens the file while it is there.
        let got = unsafe {
            let all = ProtFlags::READ | ProtFlags::WRITE;
            let size = skip + len;
            let file = &self.buffered;
            let map = rustix::mm::mmap(std::ptr::null_mut(), size, all, MapFlags::SHARED, file, base as u64);
            let map = map.expect("mapping");
            let place = map.cast::<u8>().add(skip);
            if write {
                place.copy_from_nonoverlapping(bytes.as_ptr(), len);
            }
            let got = std::slice::from_raw_parts(place, len).to_vec();
            rustix::mm::munmap(map, size).expect("unmapping");
            got
        };
        if write {
            self.model[at..at + len].copy_from_slice(&bytes);
        }
        self.compare("mapping", at, &got);
    }

    fn truncate(&mut self) {
        let size = self.rng.below(LONGEST as u64);
        writeln!(self.done, "truncate {size}").expect("memory");
        self.buffered.set_len(size).expect("truncating");
        self.model.resize(size as usize, 0);
    }

    fn fallocate(&mut self) {
        let (at, len) = self.range(1);
        let keep = FallocateFlags::KEEP_SIZE;
        let modes = [
            FallocateFlags::empty(),
            keep,
            keep | FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            keep | FallocateFlags::ZERO_RANGE,
        ];
        let mode = *self.rng.pick(&modes);
        writeln!(self.done, "fallocate {mode:?} {at} {len}").expect("memory");
        rustix::fs::fallocate(&self.direct, mode, at as u64, len as u64).expect("fallocate");
        if !mode.contains(keep) {
            self.grow(at + len);
        }
        if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let end = (at + len).min(self.model.len());
            self.model[at.min(end)..end].fill(0);
        }
    }

    fn copy(&mut self) {
        let (from, len) = self.range(1);
        let len = len.min(self.model.len().saturating_sub(from));
        let to = self.rng.below((LONGEST - len) as u64) as usize;
        if len == 0 || (from < to + len && to < from + len) {
            return;
        }
        writeln!(self.done, "copy {from} {to} {len}").expect("memory");
        let (mut off_in, mut off_out, mut left) = (from as u64, to as u64, len);
        while left > 0 {
            let (input, output) = (Some(&mut off_in), Some(&mut off_out));
            let n = rustix::fs::copy_file_range(&self.buffered, input, &self.direct, output, left).expect("copying");
            assert!(n > 0, "copy_file_range ends early");
            left -= n;
        }
        self.grow(to + len);
        self.model.copy_within(from..from + len, to);
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..20 => self.write(true),
            20..35 => self.write(false),
            35..48 => self.read(true),
            48..60 => self.read(false),
            60..70 => self.mapped(true),
            70..78 => self.mapped(false),
            78..82 => self.truncate(),
            82..93 => self.fallocate(),
            93..98 => self.copy(),
            98 => self.direct.sync_data().expect("fdatasync"),
            _ => self.buffered.sync_all().expect("fsync"),
        }
    }

    /// All of the file.
    fn check(&self) {
        let got = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.buffered)));
        let got = got.expect("reading");
        assert_eq!(got.len(), self.model.len(), "the size");
        self.compare("at the end", 0, &got);
    }
}

#[test]
fn one_file_by_descriptors_and_mappings() {
    if !available() {
        return;
    }
    let kinds = [(1024, ""), (2048, ""), (4096, ""), (4096, "page_cache=kernel")];
    for (n, (block_size, options)) in kinds.into_iter().enumerate() {
        let mut mount = Mount::new(block_size, options);
        seeds(&format!("one file, {block_size} {options}"), 1000 + 10 * n as u64, 2, |seed| {
            let unit = if seed % 2 == 0 { 512 } else { 4096 };
            let mut fsx = Fsx::new(&mount, seed, unit);
            let ops = ops_or(400);
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                (0..ops).for_each(|_| fsx.step());
                fsx.check();
            }));
            if ran.is_err() {
                panic!("EXT4_DIO_SEED={seed} EXT4_DIO_OPS={ops}, blocks of {block_size}\n{}", fsx.done);
            }
            std::fs::write(mount.path("last"), &fsx.model).expect("writing");
        });
        mount.remount();
        let (file, model) = (std::fs::read(mount.path("f")), std::fs::read(mount.path("last")));
        assert!(file.expect("reading") == model.expect("reading"), "another mount shows the same");
        mount.umount();
    }
}
