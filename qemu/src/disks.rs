// SPDX-License-Identifier: GPL-2.0-only
//! The disks of a run: the ext4 image, made or the user's, and the raw one beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ext4_dio_protocol::Layout;
use tempfile::TempDir;

use crate::fiojob::{Group, JobSpec};
use crate::image::{self, UserImage};
use crate::plan::{self, FileSpec, Mode, Planned};
use crate::session::{usage, uses_ext4};
use crate::{check, qemu};

/// Everything that a run keeps on disk while it lasts.
#[derive(Debug)]
pub struct Disks {
    /// Files of the image that jobs work on.
    pub files: Vec<FileSpec>,
    /// For sockets and small files: a short path.
    pub small: TempDir,
    /// For disks.
    pub large: TempDir,
    /// The ext4 image.
    pub ext4: PathBuf,
    /// Its length.
    pub ext4_bytes: u64,
    /// The raw disk, if a mode needs it.
    pub raw: Option<PathBuf>,
    user: Option<UserImage>,
}

impl Disks {
    /// Finds out which files there are, or will be, and where. Writes nothing yet.
    ///
    /// # Errors
    ///
    /// The user's image or its files are not fit; no room; jobs that contradict each other.
    pub fn prepare(image: Option<&Path>, groups: &[Group], modes: &[Mode], target: &Path) -> Result<Disks> {
        let user = image.map(UserImage::open).transpose();
        let user = usage(user)?;
        let mut files = usage(plan::files_needed(groups))?;
        if let Some(user) = &user {
            for file in &mut files {
                let there = usage(user.stat(&file.path))?;
                file.missing = file.by_host() && there.is_none();
                file.bytes = there.unwrap_or(0);
                if !file.changes && !file.missing {
                    file.span = file.bytes;
                }
            }
            if uses_ext4(modes) {
                usage(check::e2fsck(&user.path).context("the image has to be clean before it is used"))?;
            }
        }
        let data = files.iter().fold(0u64, |sum, f| sum.saturating_add(f.reach()));
        let ext4_bytes = user.as_ref().map_or_else(|| image::image_bytes(&files), |u| u.bytes);
        // The raw disk, a copy of a file for the checks, and for an image of ours its files and their copies in it, and
        // its metadata.
        let need =
            if user.is_some() { data.saturating_mul(2) } else { data.saturating_mul(3).saturating_add(64 << 20) };
        let large = image::scratch_dir(need, &target.join("ext4-dio"))?;
        let small = tempfile::Builder::new().prefix("ext4-dio-").tempdir().context("temporary directory")?;
        let ext4 = user.as_ref().map_or_else(|| large.path().join("ext4.img"), |u| u.path.clone());
        let raw = modes.contains(&Mode::Raw).then(|| large.path().join("raw.img"));
        Ok(Disks { files, small, large, ext4, ext4_bytes, raw, user })
    }

    /// Whether all blocks that no job wrote carry the host's stamps.
    pub fn prestamped(&self) -> bool {
        self.user.is_none()
    }

    /// Says what will be written to an image that is not ours.
    pub fn announce(&self, planned: &Planned) {
        let Some(user) = &self.user else { return };
        for line in announcement(user, &self.files, planned) {
            println!("{line}");
        }
    }

    /// Says that a script will write to an image that is not ours.
    pub fn announce_script(&self, script: &str, lines: usize) {
        if let Some(user) = &self.user {
            println!(
                "{} is opened for WRITING: the {lines} operations of {script} are done on it for good",
                user.path.display()
            );
        }
    }

    /// Makes the disks that are ours.
    ///
    /// # Errors
    ///
    /// They cannot be written, or mke2fs fails.
    pub fn fill(&mut self, planned: &Planned) -> Result<()> {
        if self.user.is_none() {
            eprintln!("making {} with mke2fs -t ext4: {} MiB", self.ext4.display(), self.ext4_bytes >> 20);
            image::make_ext4(&self.ext4, self.ext4_bytes, &self.files)?;
        }
        if let Some(raw) = &self.raw {
            ensure!(planned.raw_bytes > 0, "nothing to do on the raw disk");
            image::make_raw(raw, self.ext4_bytes, planned.raw_bytes, planned.raw_unit.unwrap_or(4096))?;
        }
        Ok(())
    }

    /// As QEMU sees them.
    pub fn for_qemu(&self, write_delay: Duration) -> Vec<qemu::Disk> {
        let disk = |path: &Path, scratch| qemu::Disk {
            path: path.into(),
            bytes: std::fs::metadata(path).map_or(self.ext4_bytes, |m| m.len()),
            write_delay,
            // Past the page cache only where that is memory anyhow: a real disk would add its own delays.
            direct: scratch && path.starts_with("/dev/shm") && image::takes_direct_io(path),
            scratch,
        };
        let ext4 = disk(&self.ext4, self.user.is_none());
        std::iter::once(ext4).chain(self.raw.as_deref().map(|raw| disk(raw, true))).collect()
    }

    /// Leaves the disks for whoever wants to know what went wrong.
    pub fn keep(self) {
        let path = self.large.keep();
        eprintln!("the disks are kept in {}", path.display());
    }
}

/// What a run writes to a user's image, line by line.
fn announcement(user: &UserImage, files: &[FileSpec], planned: &Planned) -> Vec<String> {
    let mut lines = vec![format!("{} is opened for WRITING:", user.path.display())];
    let ext4: Vec<&str> = planned.modes.iter().filter(|m| **m != Mode::Raw).map(|m| m.name()).collect();
    for file in files {
        if file.changes || file.missing {
            lines.push(announce_made(file, planned));
            continue;
        }
        let jobs = planned.groups.iter().flat_map(|g| &g.jobs).filter(|j| j.filename.as_deref() == Some(&file.path));
        let writers: Vec<_> = jobs.filter(|j| j.writes()).collect();
        if writers.is_empty() || ext4.is_empty() {
            lines.push(format!("  {}: is only read", file.path));
            continue;
        }
        let start = writers.iter().map(|j| j.offset.of(file.bytes)).min().unwrap_or(0);
        let end = writers.iter().map(|j| {
            let first = j.offset.of(file.bytes) + j.offset_increment.of(file.bytes) * u64::from(j.numjobs - 1);
            j.size.map_or(file.bytes, |s| first + s.of(file.bytes))
        });
        let end = end.max().unwrap_or(file.bytes).min(file.bytes);
        let names: Vec<String> = writers.iter().map(|j| format!("[{}]", j.name)).collect();
        lines.push(format!(
            "  {}: the content of up to {} of its {} bytes, from {start} to {end}, is overwritten for good by {} \
             (modes {}); its mtime and ctime change",
            file.path,
            end.saturating_sub(start),
            file.bytes,
            names.join(" "),
            ext4.join(", ")
        ));
    }
    if !ext4.is_empty() {
        lines
            .push("  and, as by any mount: the journal, the superblock, and the inodes and bitmaps these touch".into());
    }
    lines.push("  Nothing else in it is written; no other file's data changes.".into());
    lines
}

/// A file that jobs make, remove or let grow.
fn announce_made(file: &FileSpec, planned: &Planned) -> String {
    let jobs = planned.groups.iter().flat_map(|g| &g.jobs).filter(|j| j.filename.as_deref() == Some(&file.path));
    let jobs: Vec<_> = jobs.collect();
    let anew = jobs.iter().any(|j| matches!(j.layout(), Layout::Fresh | Layout::OnOpen));
    let mut what: Vec<String> = Vec::new();
    match (anew, file.missing || file.bytes == 0) {
        (true, true) => what.push("is made anew before each step".into()),
        (true, false) => {
            what.push(format!("is REMOVED, with its {} bytes, and made anew before each step", file.bytes))
        }
        (false, true) => what.push("is made".into()),
        (false, false) => {}
    }
    if jobs.iter().any(|j| j.layout() == Layout::Append) {
        what.push(format!("grows by up to {} bytes in each step", file.append));
    }
    if jobs.iter().any(|j| j.unlink) {
        what.push("is REMOVED after the step".into());
    }
    format!("  {}: {}, up to {} bytes, by [{}]", file.path, what.join(", "), file.reach(), names(&jobs))
}

fn names(jobs: &[&JobSpec]) -> String {
    jobs.iter().map(|j| j.name.as_str()).collect::<Vec<_>>().join("] [")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{DEFAULT_FILE_BYTES, Settings, default_groups};

    #[test]
    fn an_image_of_our_own_and_a_raw_disk_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[a]\nfilename=/x\nrw=randwrite\nsize=1m\nverify=crc32c\nbs=8k\n";
        let groups = crate::fiojob::parse(text, "a.fio").unwrap();
        let mut disks = Disks::prepare(None, &groups, &Mode::ALL, dir.path()).unwrap();
        let planned = plan::build(
            groups,
            &Mode::ALL,
            &disks.files,
            Settings { count_instructions: false, memory: 1 << 30, rounds: 1 },
        );
        disks.fill(&planned.unwrap()).unwrap();
        assert!(disks.prestamped());
        check::e2fsck(&disks.ext4).unwrap();
        let mut copy = image::dump(&disks.ext4, "/x", &disks.large.path().join("copy")).unwrap();
        assert_eq!(check::check_blocks(&mut copy, 8192, &[0; 128], true).unwrap().good, 128);
        let qemu = disks.for_qemu(Duration::from_millis(2));
        assert_eq!(qemu.len(), 2);
        assert!(qemu.iter().all(|d| d.bytes == 1 << 30 && d.scratch && d.write_delay == Duration::from_millis(2)));
        let large = disks.large.path().to_owned();
        drop(disks);
        assert!(!large.exists(), "nothing stays behind");
    }

    #[test]
    fn a_users_image_is_never_used_without_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("img");
        let file = |p: &str| FileSpec::written(p, 1 << 20, 4096);
        image::make_ext4(&path, 64 << 20, &[file("/data"), file("/b")]).unwrap();
        let text = "[w]\nfilename=/data\nrw=randwrite\nsize=64k\noffset=64k\nnumjobs=2\noffset_increment=128k\n\
                    [r]\nfilename=/b\n";
        let groups = crate::fiojob::parse(text, "a.fio").unwrap();
        let disks = Disks::prepare(Some(&path), &groups, &Mode::ALL, dir.path()).unwrap();
        assert!(!disks.prestamped());
        let planned = plan::build(
            groups,
            &Mode::ALL,
            &disks.files,
            Settings { count_instructions: false, memory: 1 << 30, rounds: 1 },
        );
        let text = announcement(disks.user.as_ref().unwrap(), &disks.files, &planned.unwrap()).join("\n");
        assert!(text.contains("opened for WRITING"), "{text}");
        assert!(
            text.contains("/data: the content of up to 196608 of its 1048576 bytes, from 65536 to 262144"),
            "{text}"
        );
        assert!(text.contains("by [w] (modes exclusive, i_data_sem, in_flight); its mtime and ctime change"), "{text}");
        assert!(text.contains("/b: is only read"), "{text}");
        assert!(text.contains("journal"), "{text}");
        assert!(!disks.for_qemu(Duration::ZERO)[0].scratch, "flushes of a user's image are real");
        drop(disks);
        // A file that is not there is made; the default run's file of another length is told at once.
        let text = "[w]\nfilename=/none\nsize=64k\n[f]\nfilename=/b\nrw=write\nsize=64k\nfallocate=none\nunlink=1\n\
                    [g]\nfilename=/data\nrw=write\nsize=8k\nfile_append=1\n";
        let groups = crate::fiojob::parse(text, "a.fio").unwrap();
        let disks = Disks::prepare(Some(&path), &groups, &Mode::ALL, dir.path()).unwrap();
        let settings = Settings { count_instructions: false, memory: 1 << 30, rounds: 1 };
        let planned = plan::build(groups, &Mode::ALL, &disks.files, settings).unwrap();
        let layouts: Vec<Layout> = planned.plan.steps[1].jobs.iter().map(|j| j.layout).collect();
        assert_eq!(layouts, [Layout::Written, Layout::Fresh, Layout::Append]);
        let text = announcement(disks.user.as_ref().unwrap(), &disks.files, &planned).join("\n");
        for want in [
            "/none: is made, up to 65536 bytes, by [w]",
            "/b: is REMOVED, with its 1048576 bytes, and made anew before each step, is REMOVED after the step",
            "/data: grows by up to 8192 bytes in each step",
        ] {
            assert!(text.contains(want), "{text}");
        }
        drop(disks);
        let disks = Disks::prepare(Some(&path), &default_groups(), &Mode::ALL, dir.path()).unwrap();
        assert!(disks.files[0].bytes < DEFAULT_FILE_BYTES);
        let settings = Settings { count_instructions: false, memory: 1 << 30, rounds: 1 };
        let err = plan::build(default_groups(), &Mode::ALL, &disks.files, settings).unwrap_err();
        assert!(err.to_string().contains("reaches past the end of /data"));
    }
}
