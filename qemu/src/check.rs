// SPDX-License-Identifier: GPL-2.0-only
//! What is on the disk after a run: block by block, by e2fsck, and through Linux.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ext4_dio_protocol::{GEN_ANY, GEN_ZERO, Stamp, StampError};

use crate::image::{self, TOOL_LIMIT, read_full};
use crate::proc;
use crate::run::TableHead;

/// How long a file system may stay busy that nobody uses any more.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// Wrong blocks that a report names one by one.
const NAMED: usize = 8;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file ends before it.
    Missing,
    /// It is not a stamped block, or not this one.
    Stamp(StampError),
    /// It was never written, or was trimmed, and does not read as zeros.
    NotZero,
    /// It is not the newest write that was acknowledged.
    Generation {
        /// In the block.
        found: u32,
        /// Acknowledged.
        want: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("is missing: the file is too short"),
            Fault::Stamp(StampError::Magic) => f.write_str("holds something else"),
            Fault::Stamp(StampError::Offset(at)) => write!(f, "is the block of offset {at}"),
            Fault::Stamp(StampError::HeaderCrc) => f.write_str("has a torn stamp"),
            Fault::Stamp(StampError::BodyCrc) => f.write_str("has a good stamp and other data"),
            Fault::Stamp(StampError::Short) => f.write_str("is too short for a stamp"),
            Fault::NotZero => f.write_str("should read as zeros, and holds data nobody wrote there (stale data)"),
            Fault::Generation { found, want } if found < want => {
                write!(f, "is old: generation {found}, though {want} was acknowledged (a lost write)")
            }
            Fault::Generation { found, want } => {
                write!(f, "is of generation {found}, but the newest acknowledged one is {want}")
            }
        }
    }
}

/// What became of a file's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Right ones.
    pub good: u64,
    /// Right ones that were overwritten in the run.
    pub overwritten: u64,
    /// Right ones that read as zeros, since nobody wrote them in a new file, or they were trimmed.
    pub zeros: u64,
    /// Wrong ones.
    pub bad: u64,
    /// Never stamped by anybody, and so not looked into.
    pub skipped: u64,
    /// The first few wrong ones, with the offset.
    pub first: Vec<(u64, Fault)>,
}

/// Checks each `unit` bytes of `data` against its newest acknowledged generation in `table`. Where that is 0, the block
/// must be as the host stamped it if `prestamped`, and may be anything if not; with [`GEN_ZERO`] it must read as zeros or be past the
/// end, with [`GEN_ANY`] it may be anything. Blocks that `table` does not reach count as 0.
///
/// # Errors
///
/// `data` cannot be read.
pub fn check_blocks(data: &mut impl Read, unit: u32, table: &[u32], prestamped: bool) -> Result<Blocks> {
    ensure!(unit as usize >= ext4_dio_protocol::STAMP_LEN, "{unit} bytes hold no stamp");
    let mut out = Blocks::default();
    let mut block = vec![0; unit as usize];
    let mut generations = table.iter().copied();
    let mut offset = 0;
    loop {
        let generation = generations.next();
        let got = read_full(data, &mut block)?;
        let want = match (generation, got) {
            (None, 0) => return Ok(out),
            (generation, _) => generation.unwrap_or(0),
        };
        let verdict = if want & GEN_ZERO != 0 {
            if block[..got].iter().all(|b| *b == 0) { Ok(()) } else { Err(Fault::NotZero) }
        } else if got == 0 {
            Err(Fault::Missing)
        } else if want & GEN_ANY != 0 || want == 0 && (!prestamped || got < block.len()) {
            out.skipped += 1;
            offset += u64::from(unit);
            continue;
        } else {
            verdict(&block[..got], offset, want)
        };
        match verdict {
            Ok(()) => {
                out.good += 1;
                out.zeros += u64::from(want & GEN_ZERO != 0);
                out.overwritten += u64::from(want > 0 && want & GEN_ZERO == 0);
            }
            Err(fault) => {
                out.bad += 1;
                if out.first.len() < NAMED {
                    out.first.push((offset, fault));
                }
            }
        }
        offset += u64::from(unit);
    }
}

fn verdict(block: &[u8], offset: u64, want: u32) -> Result<(), Fault> {
    let stamp = Stamp::check(block, offset).map_err(Fault::Stamp)?;
    if stamp.generation == want { Ok(()) } else { Err(Fault::Generation { found: stamp.generation, want }) }
}

/// Reads a table that the guest sent.
///
/// # Errors
///
/// It is not there as a whole.
pub fn read_table(bulk: &Path, head: &TableHead) -> Result<Vec<u32>> {
    let mut file = File::open(bulk).with_context(|| format!("cannot open {}", bulk.display()))?;
    let len = head.blocks.checked_mul(4).context("table size")?;
    let have = file.metadata()?.len().saturating_sub(head.at);
    ensure!(have >= len, "the guest's table of {} is cut short: {have} of {len} bytes", shown(&head.file));
    file.seek(SeekFrom::Start(head.at))?;
    let mut bytes = vec![0; usize::try_from(len)?];
    file.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// A file's name, or what a nameless one is.
pub fn shown(file: &str) -> &str {
    if file.is_empty() { "the raw disk" } else { file }
}

/// Runs `e2fsck -fn`.
///
/// # Errors
///
/// It finds something: then with what it says.
pub fn e2fsck(image: &Path) -> Result<()> {
    let mut cmd = proc::tool("e2fsck")?;
    cmd.arg("-fn").arg(image);
    let line = proc::command_line(&cmd);
    let out = proc::capture(cmd, TOOL_LIMIT)?;
    if out.status.code() != Some(0) {
        // One damaged block can be told in a thousand lines.
        let lines: Vec<&str> = out.text.trim_end().lines().collect();
        let (head, rest) = lines.split_at(lines.len().min(30));
        let more = if rest.is_empty() { String::new() } else { format!("\n… and {} lines more", rest.len()) };
        bail!("`{line}` is not content ({}):\n{}{more}", out.status, head.join("\n"));
    }
    Ok(())
}

/// An image mounted read-only by Linux; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    point: tempfile::TempDir,
    active: bool,
}

/// What came of trying to mount.
#[derive(Debug)]
pub enum MountResult {
    /// It is mounted.
    Mounted(Mounted),
    /// This machine cannot mount an image, whatever is in it; why.
    Unable(String),
}

impl Mounted {
    /// Mounts an ext4 image through a loop device, read-only.
    ///
    /// # Errors
    ///
    /// Linux refuses this image, though it takes a fresh one.
    pub fn mount(image: &Path, scratch: &Path) -> Result<MountResult> {
        if !rustix::process::geteuid().is_root() {
            return Ok(MountResult::Unable("only root can mount".into()));
        }
        let why = match Self::try_mount(image)? {
            Ok(mounted) => return Ok(MountResult::Mounted(mounted)),
            Err(why) => why,
        };
        // Is it the image, or the machine? An image that nobody touched tells.
        let control = scratch.join("control.img");
        image::make_ext4(&control, 16 << 20, &[])?;
        match Self::try_mount(&control)? {
            Ok(_) => bail!("Linux does not mount {}, though it mounts a fresh image: {why}", image.display()),
            Err(_) => Ok(MountResult::Unable(format!("this machine does not mount even a fresh image: {why}"))),
        }
    }

    fn try_mount(image: &Path) -> Result<Result<Mounted, String>> {
        let point = tempfile::Builder::new().prefix("ext4-dio-mnt-").tempdir().context("temporary directory")?;
        let Ok(mut cmd) = proc::tool("mount") else { return Ok(Err("there is no mount(8)".into())) };
        cmd.args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(point.path());
        // From here on it may be mounted, even if waiting for mount(8) fails.
        let mounted = Mounted { point, active: true };
        let out = proc::capture(cmd, TOOL_LIMIT)?;
        if out.status.success() {
            return Ok(Ok(mounted));
        }
        let status = out.status.signal().map_or_else(String::new, |s| format!(" (signal {s})"));
        Ok(Err(format!("{}{status}", out.text.trim())))
    }

    /// Where a file of the image is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.point.path().join(file.trim_start_matches('/'))
    }

    /// Unmounts. Somebody else may be in there for a moment, be it a process that was just forked off this one and still
    /// has its open files: that is given a few seconds.
    ///
    /// # Errors
    ///
    /// umount(8) fails.
    pub fn unmount(mut self) -> Result<()> {
        let give_up = Instant::now() + BUSY_LIMIT;
        loop {
            let mut cmd = proc::tool("umount")?;
            cmd.arg(self.point.path());
            match proc::succeed(cmd, TOOL_LIMIT) {
                Ok(_) => break,
                Err(_) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(50)),
                Err(e) => return Err(e),
            }
        }
        self.active = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.active {
            // Not through `proc`: an interrupted run cleans up all the same. MNT_DETACH leaves nothing to wait for, and
            // the loop device goes with the mount (autoclear).
            let _ = rustix::mount::unmount(self.point.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Where two files differ first; none if they are the same.
///
/// # Errors
///
/// One cannot be read.
pub fn first_difference(a: &mut impl Read, b: &mut impl Read) -> Result<Option<u64>> {
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let (n, m) = (read_full(a, &mut left)?, read_full(b, &mut right)?);
        let same = left[..n].iter().zip(&right[..m]).take_while(|(x, y)| x == y).count();
        if same < n.max(m) {
            return Ok(Some(offset + same as u64));
        }
        if n == 0 {
            return Ok(None);
        }
        offset += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: usize = 512;

    fn block(offset: u64, generation: u32) -> Vec<u8> {
        let mut b = vec![0; UNIT];
        Stamp::fill_body(&mut b, 3);
        let stamp = Stamp { offset, generation, writer: 3, body_crc: Stamp::body_crc(&b) };
        b[..ext4_dio_protocol::STAMP_LEN].copy_from_slice(&stamp.encode());
        b
    }

    fn file(generations: &[u32]) -> Vec<u8> {
        generations.iter().enumerate().flat_map(|(i, g)| block((i * UNIT) as u64, *g)).collect()
    }

    fn check(data: &[u8], table: &[u32], prestamped: bool) -> Blocks {
        check_blocks(&mut &data[..], UNIT as u32, table, prestamped).unwrap()
    }

    #[test]
    fn right_blocks_are_right() {
        let data = file(&[0, 5, 0, 1]);
        let want = Blocks { good: 4, overwritten: 2, ..Blocks::default() };
        assert_eq!(check(&data, &[0, 5, 0, 1], true), want);
        assert_eq!(check(&data[..2 * UNIT], &[0, 5], true).good, 2);
        assert_eq!(
            check(&data, &[0, 5, 0, 1], false),
            Blocks { good: 2, overwritten: 2, skipped: 2, ..Blocks::default() }
        );
    }

    #[test]
    fn each_kind_of_wrong_block_is_found_and_named() {
        let table = [2, 2, 2, 2, 2, 2, 2];
        let mut data = file(&table);
        data[..UNIT].copy_from_slice(&block(0, 1));
        data[UNIT..2 * UNIT].copy_from_slice(&block(UNIT as u64, 3));
        data[2 * UNIT..3 * UNIT].copy_from_slice(&block(0, 2));
        data[3 * UNIT..4 * UNIT].fill(0);
        data[4 * UNIT + 20] ^= 1;
        data[5 * UNIT + 100] ^= 1;
        data.truncate(6 * UNIT);
        let got = check(&data, &table, true);
        assert_eq!((got.good, got.bad), (0, 7));
        let faults: Vec<Fault> = got.first.iter().map(|f| f.1).collect();
        assert_eq!(
            faults,
            [
                Fault::Generation { found: 1, want: 2 },
                Fault::Generation { found: 3, want: 2 },
                Fault::Stamp(StampError::Offset(0)),
                Fault::Stamp(StampError::Magic),
                Fault::Stamp(StampError::HeaderCrc),
                Fault::Stamp(StampError::BodyCrc),
                Fault::Missing,
            ]
        );
        assert_eq!(got.first[2].0, 2 * UNIT as u64);
        assert!(faults[0].to_string().contains("lost write"));
        assert!(faults[1].to_string().contains("newest acknowledged one is 2"));
    }

    #[test]
    fn holes_and_trimmed_blocks_are_zeros() {
        let mut data = file(&[0, 5, 3, 0, 4]);
        data[..UNIT].fill(0);
        data[3 * UNIT..4 * UNIT].fill(0);
        // New, written, discarded, trimmed at generation 7, written, past the end.
        let table = [GEN_ZERO, 5, 9 | GEN_ANY, 7 | GEN_ZERO, 4, GEN_ZERO];
        let want = Blocks { good: 5, overwritten: 2, zeros: 3, skipped: 1, ..Blocks::default() };
        assert_eq!(check(&data, &table, true), want);
        assert_eq!(check(&data, &table, false), want);
        data[3 * UNIT + 9] = 1;
        let got = check(&data, &table, true);
        assert_eq!((got.bad, got.first[0]), (1, (3 * UNIT as u64, Fault::NotZero)));
        assert_eq!(check(&data[..2 * UNIT], &[GEN_ZERO, 5, 3], true).first[0].1, Fault::Missing);
    }

    #[test]
    fn a_block_nobody_wrote_must_be_as_it_was_stamped() {
        let data = file(&[0, 7]);
        assert_eq!(check(&data, &[0, 0], true).bad, 1);
        assert_eq!(check(&data, &[0], true).bad, 1, "behind the table too");
        assert_eq!(check(&data, &[0, 0], false).bad, 0);
        // A wrong block's number is told however many there are.
        let many = check(&[0; 40 * UNIT], &[1; 40], true);
        assert_eq!((many.bad, many.first.len()), (40, NAMED));
    }

    #[test]
    fn tables_are_read_from_their_place_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let bulk = dir.path().join("bulk");
        std::fs::write(&bulk, [1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 0, 0]).unwrap();
        let head = |at, blocks| TableHead { disk: 0, file: "/data".into(), unit: 4096, blocks, at };
        assert_eq!(read_table(&bulk, &head(0, 1)).unwrap(), [1]);
        assert_eq!(read_table(&bulk, &head(4, 2)).unwrap(), [2, 259]);
        assert!(read_table(&bulk, &head(4, 3)).is_err());
        assert!(read_table(&bulk, &head(0, u64::MAX)).is_err());
    }

    #[test]
    fn differences_are_found() {
        let diff = |a: &[u8], b: &[u8]| first_difference(&mut &*a, &mut &*b).unwrap();
        assert_eq!(diff(b"abc", b"abc"), None);
        assert_eq!(diff(b"abc", b"abd"), Some(2));
        assert_eq!(diff(b"abc", b"ab"), Some(2));
        assert_eq!(diff(b"", b""), None);
        let (a, mut b) = (vec![1; 3 << 20], vec![1; 3 << 20]);
        b[(2 << 20) + 5] = 0;
        assert_eq!(diff(&a, &b), Some((2 << 20) + 5));
    }

    #[test]
    fn e2fsck_and_linux_judge_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("img");
        let spec = crate::plan::FileSpec::written("/data", 1 << 20, 4096);
        image::make_ext4(&path, 64 << 20, &[spec]).unwrap();
        e2fsck(&path).unwrap();
        match Mounted::mount(&path, dir.path()).unwrap() {
            MountResult::Mounted(mounted) => {
                let mut through_linux = File::open(mounted.path("/data")).unwrap();
                let mut copy = image::dump(&path, "/data", &dir.path().join("copy")).unwrap();
                assert_eq!(first_difference(&mut through_linux, &mut copy).unwrap(), None);
                drop(through_linux);
                mounted.unmount().unwrap();
            }
            MountResult::Unable(why) => eprintln!("not mounted: {why}"),
        }
        // The free block count of the superblock; its checksum too is wrong then.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[1024 + 12] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(e2fsck(&path).unwrap_err().to_string().contains("is not content"));
    }
}
