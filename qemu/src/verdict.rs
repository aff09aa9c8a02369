// SPDX-License-Identifier: GPL-2.0-only
//! What is left to find out when the guest has ended: did everything hold?

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ext4_dio_protocol::ExitCode;

use crate::check::{self, Blocks, MountResult, Mounted};
use crate::cli::BootArgs;
use crate::disks::Disks;
use crate::image;
use crate::plan::{EXT4_DISK, Mode, Planned, RAW_DISK};
use crate::proc::Interrupted;
use crate::report;
use crate::run::{End, Outcome, TableHead};
use crate::session::{log_tail, uses_ext4};

/// Collects what held and what did not, and shows it as it comes.
struct Findings {
    held: bool,
    disks_at_fault: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Everything did what it should.
    pub held: bool,
    /// What is on the disks is wrong, or could not be read.
    pub disks_at_fault: bool,
}

impl Findings {
    fn ok(&mut self, what: impl AsRef<str>) {
        println!("  ok    {}", what.as_ref());
    }

    fn skipped(&mut self, what: impl AsRef<str>) {
        println!("  --    {}", what.as_ref());
    }

    fn failed(&mut self, what: impl AsRef<str>) {
        self.held = false;
        println!("  FAIL  {}", what.as_ref().trim_end().replace('\n', "\n        "));
    }

    /// Takes a check's end; only an interrupted one goes further up.
    fn take(&mut self, result: Result<String>) -> Result<()> {
        match result {
            Ok(what) => self.ok(what),
            Err(e) if e.is::<Interrupted>() => return Err(e),
            Err(e) => {
                self.disks_at_fault = true;
                self.failed(format!("{e:#}"));
            }
        }
        Ok(())
    }
}

/// Checks what the guest told and what is on the disks, and shows it.
///
/// # Errors
///
/// The user stopped it.
pub fn tell(args: &BootArgs, planned: &Planned, out: &Outcome, disks: &Disks) -> Result<Verdict> {
    let mut findings = Findings { held: true, disks_at_fault: false };
    println!("\nchecks");
    for failure in &out.failures {
        findings.failed(failure);
    }
    if !out.failures.is_empty() {
        println!("\nthe end of the guest's log:");
        log_tail(&out.log).for_each(|l| println!("  {l}"));
        println!();
        if !out.done {
            findings.skipped("the disks are not looked at: the guest did not get to its end");
            return Ok(Verdict { held: false, disks_at_fault: false });
        }
    }
    for line in report::lock_lines(planned, out) {
        findings.ok(line);
    }
    for failure in report::mode_failures(planned, out, args.jobs.is_empty()) {
        findings.failed(failure);
    }
    if let Some(note) = &planned.raw_note {
        findings.skipped(note);
    }
    if planned.plan.tables {
        let (good, bad) = out.verified;
        if good == 0 && bad == 0 {
            findings.failed("the guest read no block back");
        } else if bad == 0 {
            findings.ok(format!("the guest read {good} blocks back after its steps: all right"));
        }
        for (disk, file) in targets(planned) {
            if is_removed(planned, out, disk, &file) {
                findings.ok(format!("{file} was removed after its last step"));
                continue;
            }
            findings.take(check_target(planned, out, disks, disk, &file))?;
        }
    }
    if uses_ext4(&planned.modes) {
        check_image(&mut findings, disks, through_linux)?;
    }
    Ok(Verdict { held: findings.held, disks_at_fault: findings.disks_at_fault })
}

/// Checks what a script told and left, and shows it.
///
/// # Errors
///
/// The user stopped it.
pub fn tell_script(planned: &Planned, out: &Outcome, disks: &Disks) -> Result<Verdict> {
    let mut findings = Findings { held: true, disks_at_fault: false };
    println!("\nchecks");
    for failure in &out.failures {
        findings.failed(failure);
    }
    let lines = planned.plan.script.as_ref().map_or(0, |s| s.lines.len());
    if out.failures.is_empty() && out.ran == lines {
        findings.ok(format!("all {lines} operations did as they should"));
    } else {
        findings.failed(format!("{} of {lines} operations did as they should", out.ran));
        log_tail(&out.log).for_each(|l| println!("  {l}"));
    }
    let known = [ExitCode::Success, ExitCode::Failed].map(|code| Some(End::Code(code.qemu_status())));
    if known.contains(&out.end) {
        check_image(&mut findings, disks, all_through_linux)?;
    } else {
        findings.skipped("the image is not looked at: the guest did not unmount it");
    }
    Ok(Verdict { held: findings.held, disks_at_fault: findings.disks_at_fault })
}

/// The image as a whole.
fn check_image(
    findings: &mut Findings,
    disks: &Disks,
    through_linux: fn(&Disks) -> Result<Result<String, String>>,
) -> Result<()> {
    findings.take(check::e2fsck(&disks.ext4).map(|()| "e2fsck -fn finds nothing".into()))?;
    match through_linux(disks) {
        Ok(Ok(what)) => findings.ok(what),
        Ok(Err(why)) => findings.skipped(format!("not mounted by Linux: {why}")),
        other => findings.take(other.map(|_| String::new()))?,
    }
    Ok(())
}

/// The disks and files whose blocks jobs stamp.
fn targets(planned: &Planned) -> Vec<(u32, String)> {
    let mut targets = Vec::new();
    for (point, step) in planned.points.iter().zip(&planned.plan.steps) {
        for job in step.jobs.iter().filter(|j| j.verify && j.rw.changes()) {
            let target =
                if point.mode == Mode::Raw { (RAW_DISK, String::new()) } else { (EXT4_DISK, job.filename.clone()) };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
    }
    targets
}

/// Whether jobs remove the file, and it was gone in the end.
fn is_removed(planned: &Planned, out: &Outcome, disk: u32, file: &str) -> bool {
    let removes = planned.plan.steps.iter().flat_map(|s| &s.jobs).any(|j| j.unlink && j.filename == file);
    removes && out.done && !out.tables.iter().any(|t| t.disk == disk && t.file == file)
}

/// Every block of a target against the guest's table of it.
fn check_target(planned: &Planned, out: &Outcome, disks: &Disks, disk: u32, file: &str) -> Result<String> {
    let shown = check::shown(file);
    // The last one counts, should there be several.
    let head = out.tables.iter().rev().find(|t| t.disk == disk && t.file == file);
    let head = head.with_context(|| format!("{shown}: the guest sent no table of acknowledged writes"))?;
    let table = check::read_table(&disks.small.path().join("bulk"), head)?;
    let (mut data, bytes, prestamped): (Box<dyn std::io::Read>, u64, bool) = if disk == RAW_DISK {
        let path = disks.raw.as_deref().context("no raw disk")?;
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        // Behind the jobs' region the disk is empty.
        (Box::new(std::io::Read::take(file, planned.raw_bytes)), planned.raw_bytes, true)
    } else {
        let copy = copy_of(disks, file);
        let spec = disks.files.iter().find(|f| f.path == file).context("an unknown file")?;
        let data = image::dump(&disks.ext4, file, &copy)?;
        let length = data.metadata()?.len();
        ensure!(spec.changes || spec.missing || length == spec.bytes, "{shown} changed its length to {length}");
        let bytes = if spec.changes || spec.missing { u64::MAX } else { spec.bytes };
        (Box::new(data), bytes, disks.prestamped() && spec.by_host() && spec.unit == head.unit)
    };
    let reach = bytes / u64::from(head.unit.max(1));
    // Entries behind the region are of a disk's empty rest: nobody wrote there.
    let table = in_region(&table, reach, shown)?;
    let blocks = check::check_blocks(&mut data, head.unit, table, prestamped)?;
    describe(&blocks, shown, head)
}

fn in_region<'a>(table: &'a [u32], reach: u64, shown: &str) -> Result<&'a [u32]> {
    let reach = usize::try_from(reach).unwrap_or(usize::MAX).min(table.len());
    let (inside, outside) = table.split_at(reach);
    ensure!(outside.iter().all(|g| *g == 0), "{shown}: the guest acknowledged writes outside of the jobs' region");
    Ok(inside)
}

fn describe(blocks: &Blocks, shown: &str, head: &TableHead) -> Result<String> {
    if blocks.bad > 0 {
        let first: Vec<String> =
            blocks.first.iter().map(|(at, fault)| format!("\n  the block at {at} {fault}")).collect();
        bail!("{shown}: {} of {} blocks are wrong{}", blocks.bad, blocks.bad + blocks.good, first.concat());
    }
    ensure!(blocks.overwritten + blocks.zeros > 0, "{shown}: no block was overwritten");
    let skipped = if blocks.skipped > 0 {
        format!("; {} others were not written and not looked into", blocks.skipped)
    } else {
        String::new()
    };
    let zeros = if blocks.zeros > 0 {
        format!("; {} that nobody wrote, or that were trimmed, are zeros", blocks.zeros)
    } else {
        String::new()
    };
    Ok(format!(
        "{shown}: all {} blocks of {} bytes carry their offset and a good checksum; {} were overwritten, and each is the \
         newest acknowledged write{zeros}{skipped}",
        blocks.good - blocks.zeros,
        head.unit,
        blocks.overwritten
    ))
}

/// Where the copy of a file goes that debugfs took out of the image.
fn copy_of(disks: &Disks, file: &str) -> std::path::PathBuf {
    disks.large.path().join(format!("copy{}", file.replace('/', "_")))
}

/// Mounts the image with Linux and compares what it reads with what debugfs reads; the inner error tells why that
/// cannot be done here.
fn through_linux(disks: &Disks) -> Result<Result<String, String>> {
    let mounted = match Mounted::mount(&disks.ext4, disks.large.path())? {
        MountResult::Mounted(mounted) => mounted,
        MountResult::Unable(why) => return Ok(Err(why)),
    };
    let mut bytes = 0;
    for file in &disks.files {
        if (file.changes || file.missing) && !mounted.path(&file.path).exists() {
            continue;
        }
        bytes += compare(&mounted.path(&file.path), &copy_of(disks, &file.path), disks, &file.path)?;
    }
    mounted.unmount()?;
    Ok(Ok(format!("Linux mounts the image and reads the same {bytes} bytes")))
}

/// Files of an image that are compared; there may be any number.
const MAX_COMPARED: usize = 500;

/// [`through_linux`] for whatever files there are.
fn all_through_linux(disks: &Disks) -> Result<Result<String, String>> {
    let mounted = match Mounted::mount(&disks.ext4, disks.large.path())? {
        MountResult::Mounted(mounted) => mounted,
        MountResult::Unable(why) => return Ok(Err(why)),
    };
    let root = mounted.path("/");
    let mut files = Vec::new();
    let (mut directories, mut others) = (vec![root.clone()], 0);
    while let Some(directory) = directories.pop() {
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("Linux cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry.context("Linux cannot list a directory of the image")?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            } else {
                std::fs::symlink_metadata(entry.path()).context("Linux cannot look at a file of the image")?;
                others += 1;
            }
        }
    }
    files.sort();
    // debugfs takes no quotes in names.
    files.retain(|f| f.to_str().is_some_and(|f| !f.contains('"')));
    let (mut bytes, compared) = (0, files.len().min(MAX_COMPARED));
    for (n, path) in files.iter().take(MAX_COMPARED).enumerate() {
        let name = format!("/{}", path.strip_prefix(&root)?.display());
        let copy = disks.large.path().join(format!("copy-{n}"));
        bytes += compare(path, &copy, disks, &name)?;
        std::fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    }
    mounted.unmount()?;
    Ok(Ok(format!(
        "Linux mounts the image, lists {} files and {others} others, and reads the same {bytes} bytes in {compared} of them",
        files.len()
    )))
}

fn compare(theirs: &Path, copy: &Path, disks: &Disks, file: &str) -> Result<u64> {
    let mut ours = if copy.exists() { File::open(copy)? } else { image::dump(&disks.ext4, file, copy)? };
    let mut theirs = File::open(theirs).with_context(|| format!("Linux cannot open {file} of the image"))?;
    if let Some(at) =
        check::first_difference(&mut ours, &mut theirs).with_context(|| format!("reading {file} through Linux"))?
    {
        bail!("{file}: Linux reads other bytes than debugfs, first at {at}");
    }
    Ok(ours.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::run::tests_support::planned;
    use crate::{plan, proc};
    use ext4_dio_protocol::Stamp;

    #[test]
    fn each_stamped_target_is_checked_once() {
        assert_eq!(targets(&planned()), [(RAW_DISK, String::new()), (EXT4_DISK, "/data".to_string())]);
    }

    #[test]
    fn writes_outside_of_the_region_are_noticed() {
        assert_eq!(in_region(&[1, 2, 0, 0], 2, "x").unwrap(), [1, 2]);
        assert_eq!(in_region(&[1, 2], 9, "x").unwrap(), [1, 2]);
        assert!(in_region(&[1, 2, 0, 1], 2, "x").is_err());
    }

    #[test]
    fn a_run_that_overwrote_nothing_proves_nothing() {
        let head = TableHead { disk: 0, file: "/data".into(), unit: 4096, blocks: 2, at: 0 };
        assert!(describe(&Blocks { good: 2, ..Blocks::default() }, "/data", &head).is_err());
        let good = describe(&Blocks { good: 2, overwritten: 1, ..Blocks::default() }, "/data", &head).unwrap();
        assert!(good.contains("all 2 blocks") && good.contains("1 were overwritten"), "{good}");
        let bad = Blocks { bad: 1, first: vec![(4096, check::Fault::Missing)], ..Blocks::default() };
        let text = describe(&bad, "/data", &head).unwrap_err().to_string();
        assert!(text.contains("the block at 4096 is missing"), "{text}");
    }

    /// A run as it looks when the guest has ended: one block of the target overwritten once.
    fn ended(mode: Mode, target: &Path) -> (BootArgs, Planned, Outcome, Disks) {
        let text = "[a]\nfilename=/x\nrw=randwrite\nsize=64k\nverify=crc32c\n";
        let groups = crate::fiojob::parse(text, "t.fio").unwrap();
        let mut disks = Disks::prepare(None, &groups, &[mode], target).unwrap();
        let settings = plan::Settings { count_instructions: false, memory: 1 << 30, rounds: 1 };
        let planned = plan::build(groups, &[mode], &disks.files, settings).unwrap();
        disks.fill(&planned).unwrap();
        let (disk, file, path, block) = if mode == Mode::Raw {
            (RAW_DISK, "", disks.raw.clone().unwrap(), 3)
        } else {
            let mut cmd = proc::tool("debugfs").unwrap();
            cmd.args(["-R", "bmap /x 3"]).arg(&disks.ext4);
            let said = proc::succeed(cmd, image::TOOL_LIMIT).unwrap();
            let block = said.lines().find_map(|l| l.trim().parse::<u64>().ok()).unwrap();
            (EXT4_DISK, "/x", disks.ext4.clone(), block)
        };
        let mut unit = [0; 4096];
        Stamp::fill_body(&mut unit, 9);
        let stamp = Stamp { offset: 3 * 4096, generation: 1, writer: 9, body_crc: Stamp::body_crc(&unit) };
        unit[..ext4_dio_protocol::STAMP_LEN].copy_from_slice(&stamp.encode());
        let device = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        device.write_all_at(&unit, block * 4096).unwrap();
        let mut out = Outcome { done: true, verified: (1, 0), ..Outcome::default() };
        out.tables.push(TableHead { disk, file: file.into(), unit: 4096, blocks: 16, at: 0 });
        let args = BootArgs { jobs: vec!["t.fio".into()], ..BootArgs::default() };
        (args, planned, out, disks)
    }

    /// What the guest says it acknowledged of block 3.
    fn acknowledge(disks: &Disks, generation: u32) {
        let table: Vec<u8> = (0..16).flat_map(|i| if i == 3 { generation } else { 0 }.to_le_bytes()).collect();
        std::fs::write(disks.small.path().join("bulk"), table).unwrap();
    }

    #[test]
    fn a_run_holds_only_if_the_disk_says_so_too() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [Mode::Raw, Mode::InFlight] {
            let (args, planned, mut out, disks) = ended(mode, dir.path());
            let verdict = |out: &Outcome| tell(&args, &planned, out, &disks).unwrap();
            let held = Verdict { held: true, disks_at_fault: false };
            let at_fault = Verdict { held: false, disks_at_fault: true };
            acknowledge(&disks, 1);
            assert_eq!(verdict(&out), held, "{mode}");
            // A write that was acknowledged and is not there; one that nobody acknowledged.
            for generation in [2, 0] {
                acknowledge(&disks, generation);
                assert_eq!(verdict(&out), at_fault, "{mode}");
            }
            acknowledge(&disks, 1);
            out.verified = (0, 0);
            assert!(!verdict(&out).held, "the guest looked at nothing");
            out.verified = (1, 0);
            out.failures.push("something".into());
            assert!(!verdict(&out).held);
            out.failures.clear();
            out.tables.clear();
            assert_eq!(verdict(&out), at_fault, "no table");
        }
    }

    #[test]
    fn a_damaged_image_does_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        let (args, planned, out, disks) = ended(Mode::InFlight, dir.path());
        acknowledge(&disks, 1);
        let device = std::fs::OpenOptions::new().read(true).write(true).open(&disks.ext4).unwrap();
        // The free block count of the superblock.
        let mut count = [0];
        device.read_exact_at(&mut count, 1024 + 12).unwrap();
        device.write_all_at(&[!count[0]], 1024 + 12).unwrap();
        assert!(!tell(&args, &planned, &out, &disks).unwrap().held);
    }
}
