// SPDX-License-Identifier: GPL-2.0-only
//! Disks and guests, and their turns: job by job our guest and Linux take turns, each with its modes in turn, and every other
//! round backwards, so that a machine that is busy now and then favours nobody.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ext4_dio_protocol::Target;

use super::args::CompareArgs;
use super::jobs;
use super::samples::{Column, Point};
use crate::cli::BootArgs;
use crate::disks::Disks;
use crate::fiojob::Group;
use crate::linux_guest::fio::{self, Place};
use crate::linux_guest::{self, Died, Fetched, LinuxGuest, initramfs};
use crate::plan::{self, Mode, Planned, Settings};
use crate::progress::Silent;
use crate::qemu::{Accel, Config, Disk, Machine};
use crate::session::{self, Usage};
use crate::symbols::Unknown;
use crate::{check, guest_build, image, proc, report, run};

/// How often Linux may die under way.
const RESTARTS: u32 = 4;
/// What Linux' file systems are mounted with, ours too.
const MOUNT: &str = "noatime";
/// What a shell command may take that is no job.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// All that is needed to measure.
pub(super) struct Bench {
    groups: Vec<Group>,
    rounds: u32,
    boot: BootArgs,
    kernel: PathBuf,
    linux: Fetched,
    ours: Disks,
    theirs: Disks,
    xfs: PathBuf,
    /// With what executes guests.
    choice: Accel,
    /// Its name.
    pub(super) accel: String,
    /// Linux' release, once it has come up.
    pub(super) release: String,
    /// What did not hold.
    pub(super) failures: Vec<String>,
    restarts: u32,
}

/// A plan of a group, with the mount options that both guests have.
fn plan_of(group: &Group, modes: &[Mode], disks: &Disks, memory: u64) -> Result<Planned> {
    let settings = Settings { count_instructions: false, memory, rounds: 1 };
    let mut planned = plan::build(vec![group.clone()], modes, &disks.files, settings)?;
    for step in &mut planned.plan.steps {
        if let Target::Ext4 { options, .. } = &mut step.target {
            *options = format!("{options},{MOUNT}");
        }
    }
    Ok(planned)
}

/// In their order, or backwards.
fn in_turn<T: Clone>(all: &[T], round: u32) -> Vec<T> {
    let mut all = all.to_vec();
    if round % 2 == 1 {
        all.reverse();
    }
    all
}

/// Linux' job files by name, and what the shell does before each.
pub(super) fn linux_jobs(groups: &[Group], disks: &Disks, memory: u64, raw: bool) -> Result<Vec<LinuxJob>> {
    let modes: &[Mode] = if raw { &[Mode::Raw, Mode::InFlight] } else { &[Mode::InFlight] };
    let mut jobs = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let planned = plan_of(group, modes, disks, memory)?;
        for (point, step) in planned.points.iter().zip(&planned.plan.steps) {
            let places: &[Place] = if point.mode == Mode::Raw { &[Place::Raw] } else { &[Place::Ext4, Place::Xfs] };
            for &place in places {
                jobs.push(LinuxJob {
                    group: index,
                    place,
                    file: format!("{index}-{}.fio", place.name()),
                    text: fio::job_file(step, &group.jobs, place)?,
                    before: fio::before(step, place),
                });
            }
        }
    }
    Ok(jobs)
}

/// A job file for Linux.
pub(super) struct LinuxJob {
    group: usize,
    place: Place,
    pub(super) file: String,
    text: String,
    pub(super) before: String,
}

/// One delay's run.
struct Phase {
    delay: Duration,
    jobs: Vec<LinuxJob>,
    initrd: PathBuf,
    /// None after it died.
    linux: Option<LinuxGuest>,
}

impl Bench {
    /// Makes the disks.
    pub(super) fn prepare(args: &CompareArgs, groups: Vec<Group>, kernel: PathBuf, linux: Fetched) -> Result<Bench> {
        let boot = BootArgs { smp: Some(args.smp), mem: args.mem, modes: args.modes.clone(), ..BootArgs::default() };
        let target = guest_build::target_dir();
        // What instructions are counted with works on the first file as well.
        let mut all = groups.clone();
        all.extend(jobs::counting_groups(1));
        let mut ours = Disks::prepare(None, &all, &args.modes.0, &target)?;
        let mut theirs = Disks::prepare(None, &all, &args.modes.0, &target)?;
        let settings = Settings { count_instructions: false, memory: args.mem, rounds: 1 };
        let planned = plan::build(all, &args.modes.0, &ours.files, settings).map_err(|e| Usage(e.to_string()))?;
        ours.fill(&planned)?;
        theirs.fill(&planned)?;
        let xfs = theirs.large.path().join("xfs.img");
        make_xfs(&xfs, theirs.ext4_bytes)?;
        let choice = session::choose_accel(&boot, &kernel)?;
        Ok(Bench {
            groups,
            rounds: args.rounds,
            boot,
            kernel,
            linux,
            ours,
            theirs,
            xfs,
            accel: choice.name(),
            choice: choice.accel,
            release: String::new(),
            failures: Vec::new(),
            restarts: 0,
        })
    }

    fn raw(&self) -> bool {
        self.modes().contains(&Mode::Raw)
    }

    pub(super) fn modes(&self) -> &[Mode] {
        &self.boot.modes.0
    }

    fn places(&self) -> Vec<Place> {
        Place::ALL.into_iter().filter(|p| *p != Place::Raw || self.raw()).collect()
    }

    /// How long it is going to take, from what steps and boots take on a machine with nothing else to do.
    pub(super) fn expected(&self, delays: usize, counting: bool) -> String {
        let mut seconds = 0.0;
        let mut unknown = 0;
        for group in &self.groups {
            let Some(run) = jobs::runtime(group) else {
                unknown += 1;
                continue;
            };
            let run = run.as_secs_f64();
            let ours = 1.5 + self.modes().len() as f64 * (run + 0.1);
            seconds += ours + self.places().len() as f64 * (run + 1.2);
        }
        seconds = delays as f64 * (seconds * f64::from(self.rounds) + 20.0);
        seconds += if counting { 90.0 } else { 0.0 };
        let more =
            if unknown > 0 { format!(", and what {unknown} jobs without a runtime take") } else { String::new() };
        if delays == 0 {
            return format!(
                "counting instructions only: about {:.0} minutes on a quiet machine",
                (seconds / 60.0).ceil()
            );
        }
        format!(
            "{} jobs, {} rounds: about {:.0} minutes on a quiet machine{more}",
            self.groups.len(),
            self.rounds,
            (seconds / 60.0).ceil()
        )
    }

    /// All jobs on disks that take `delay` longer for a write.
    pub(super) fn phase(&mut self, delay: Duration) -> Result<Vec<Point>> {
        self.boot.disk_delay = Some(delay);
        let jobs = self.jobs(&self.groups)?;
        keep_jobs(&jobs)?;
        let initrd = self.write_initramfs(&jobs)?;
        let linux = Some(self.boot_linux(&initrd, delay, None)?);
        let mut phase = Phase { delay, jobs, initrd, linux };
        let point = |g: &Group| Point {
            label: g.label.clone(),
            in_flight: g.in_flight(),
            delay,
            rounds: vec![BTreeMap::new(); self.rounds as usize],
        };
        let mut points: Vec<Point> = self.groups.iter().map(point).collect();
        for round in 0..self.rounds {
            for (index, point) in points.iter_mut().enumerate() {
                let figures = self.turns(&mut phase, index, round)?;
                self.show(round, &phase, &point.label, &figures);
                point.rounds[round as usize] = figures;
            }
        }
        if let Some(linux) = phase.linux {
            linux.shut_down().unwrap_or_else(|e| self.failures.push(format!("{e:#}")));
        }
        Ok(points)
    }

    /// A group in both guests. Linux stands still while ours has its turn.
    fn turns(&mut self, phase: &mut Phase, index: usize, round: u32) -> Result<BTreeMap<Column, f64>> {
        let mut figures = BTreeMap::new();
        for ours in in_turn(&[true, false], round) {
            if ours {
                phase.linux.iter().for_each(|l| l.pause(true));
                let result = self.run_ours(index, round, phase.delay, &mut figures);
                phase.linux.iter().for_each(|l| l.pause(false));
                result?;
            } else {
                self.run_linux(phase, index, round, &mut figures)?;
            }
        }
        Ok(figures)
    }

    /// A line of progress.
    fn show(&self, round: u32, phase: &Phase, label: &str, figures: &BTreeMap<Column, f64>) {
        let figures: Vec<String> = figures.iter().map(|(c, v)| format!("{c} {v:.0}")).collect();
        eprintln!("[{}/{} {:?}] {label:<22} {}", round + 1, self.rounds, phase.delay, figures.join(", "));
    }

    /// A group in our guest.
    fn run_ours(
        &mut self,
        index: usize,
        round: u32,
        delay: Duration,
        figures: &mut BTreeMap<Column, f64>,
    ) -> Result<()> {
        let planned = plan_of(&self.groups[index], &in_turn(self.modes(), round), &self.ours, self.boot.mem)?;
        let disks = self.ours.for_qemu(delay);
        let (out, _) = self.drive_ours(&planned, disks, self.boot.cpus(), Vec::new())?;
        for (point, step) in planned.points.iter().zip(&planned.plan.steps) {
            if let Some(result) = out.steps.get(&step.id) {
                figures.insert(Column::Ours(point.mode), result.iops());
            }
        }
        self.failures.extend(report::mode_failures(&planned, &out, false));
        Ok(())
    }

    /// Boots our guest with a plan. What it told, and what QEMU said.
    pub(super) fn drive_ours(
        &mut self,
        planned: &Planned,
        disks: Vec<Disk>,
        cpus: u32,
        extra: Vec<std::ffi::OsString>,
    ) -> Result<(run::Outcome, Vec<String>)> {
        let dir = self.ours.small.path();
        let mut config = session::config(&self.boot, &self.kernel, &planned.plan, self.choice, dir, disks)?;
        config.smp = cpus;
        config.extra = extra;
        let mut vm = Machine::boot(&config)?;
        let limits = session::limits(planned);
        let out = run::drive(&mut vm, &planned.plan, Some(limits), &Unknown, &mut Silent)?;
        let label = planned.groups.first().map_or("", |g| g.label.as_str());
        if !out.failures.is_empty() {
            session::log_tail(&out.log).for_each(|l| eprintln!("  {l}"));
        }
        self.failures.extend(out.failures.iter().map(|f| format!("our guest, {label}: {f}")));
        let said = out.log.iter().filter_map(|l| l.strip_prefix("qemu: ")).map(str::to_string).collect();
        Ok((out, said))
    }

    /// A group in Linux, on each of its disks.
    fn run_linux(
        &mut self,
        phase: &mut Phase,
        index: usize,
        round: u32,
        figures: &mut BTreeMap<Column, f64>,
    ) -> Result<()> {
        for place in in_turn(&self.places(), round) {
            let Some(job) = phase.jobs.iter().find(|j| j.is(index) == Some(place)) else { continue };
            let guest = match &mut phase.linux {
                Some(guest) => guest,
                gone => gone.insert(self.boot_linux(&phase.initrd, phase.delay, None)?),
            };
            let what = format!("running {} on {}", self.groups[index].label, place.name());
            // New files of slow disks are flushed, removed and laid out as well.
            let limit = COMMAND_LIMIT + jobs::runtime(&self.groups[index]).unwrap_or(Duration::from_secs(1800));
            match guest.run(&fio::command(&job.before, &job.file), &what, limit).and_then(|text| fio::parse(&text)) {
                Ok(measured) => drop(figures.insert(Column::Linux(place), measured.iops())),
                Err(e) if e.is::<proc::Interrupted>() => return Err(e),
                Err(e) => {
                    eprintln!("{e:#}");
                    if e.is::<Died>() {
                        phase.linux = None;
                        self.restarts += 1;
                        ensure!(self.restarts <= RESTARTS, "Linux died {} times while it was measured", self.restarts);
                    }
                    self.failures.push(format!("{what}: {e:#}"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn write_initramfs(&self, jobs: &[LinuxJob]) -> Result<PathBuf> {
        let path = self.theirs.large.path().join("initramfs");
        let files: Vec<(String, String)> = jobs.iter().map(|j| (j.file.clone(), j.text.clone())).collect();
        initramfs::write(&path, &self.linux.unpacked, &files, self.linux_disks(Duration::ZERO).len())?;
        Ok(path)
    }

    /// In the order of [`Place::slot`].
    fn linux_disks(&self, delay: Duration) -> Vec<Disk> {
        let mut disks = self.theirs.for_qemu(delay);
        let xfs = Disk { path: self.xfs.clone(), ..disks[0].clone() };
        if disks.len() == 1 {
            // Without a raw disk its place is taken all the same.
            disks.push(disks[0].clone());
            disks[1].path = self.xfs.clone();
            return disks;
        }
        disks.push(xfs);
        disks
    }

    /// Boots Linux and mounts what it has. `counting`: with one CPU and a plugin.
    pub(super) fn boot_linux(
        &mut self,
        initrd: &Path,
        delay: Duration,
        counting: Option<&[std::ffi::OsString]>,
    ) -> Result<LinuxGuest> {
        let small = self.theirs.small.path();
        let mut config = Config {
            kernel: self.linux.unpacked.kernel.clone(),
            plan: initrd.into(),
            smp: if counting.is_some() { 1 } else { self.boot.cpus() },
            mem_mib: self.boot.mem >> 20,
            disks: self.linux_disks(delay),
            accel: self.choice,
            gdb: false,
            qmp: small.join("qmp"),
            debugcon: small.join("bulk"),
            extra: counting.unwrap_or_default().to_vec(),
        };
        let socket = small.join("commands");
        linux_guest::dress(&mut config, &socket);
        eprintln!("booting Linux {} with writes that take {delay:?} longer", self.linux.unpacked.version);
        let mut guest = LinuxGuest::boot(&config, &socket)?;
        self.release.clone_from(&guest.release);
        let xfs = if self.raw() { Place::Xfs.slot() } else { Place::Raw.slot() };
        let mount = format!(
            "mount -t ext4 -o {MOUNT} /dev/disk{} /mnt/ext4 && mount -t xfs -o {MOUNT} /dev/disk{xfs} /mnt/xfs",
            Place::Ext4.slot()
        );
        guest.run(&mount, "mounting", COMMAND_LIMIT)?;
        for file in self.theirs.files.iter().filter(|f| f.by_host()) {
            let path = Place::Xfs.path(&file.path);
            // Once: the disks stay the same over all boots.
            let command = format!("[ -f {0} ] || {{ {1}; }}", fio::quoted(&path), fio::lay_out(&path, file.bytes));
            guest.run(&command, &format!("writing {path}"), COMMAND_LIMIT)?;
        }
        Ok(guest)
    }

    /// What is on the disks when all is done.
    pub(super) fn check_disks(&mut self) -> Result<()> {
        for (whose, disks) in [("our guest", &self.ours), ("Linux", &self.theirs)] {
            match check::e2fsck(&disks.ext4) {
                Ok(()) => {}
                Err(e) if e.is::<proc::Interrupted>() => return Err(e),
                Err(e) => self.failures.push(format!("the ext4 image of {whose}: {e:#}")),
            }
        }
        Ok(())
    }

    /// The disks of our guest, without a delay.
    pub(super) fn our_disks(&self) -> Vec<Disk> {
        self.ours.for_qemu(Duration::ZERO)
    }

    /// A plan for our guest.
    pub(super) fn plan(&self, group: &Group) -> Result<Planned> {
        plan_of(group, self.modes(), &self.ours, self.boot.mem)
    }

    /// Job files for Linux.
    pub(super) fn jobs(&self, groups: &[Group]) -> Result<Vec<LinuxJob>> {
        linux_jobs(groups, &self.theirs, self.boot.mem, self.raw())
    }
}

impl LinuxJob {
    pub(super) fn is(&self, group: usize) -> Option<Place> {
        (self.group == group).then_some(self.place)
    }
}

/// Makes an XFS image of mkfs.xfs's defaults.
fn make_xfs(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    let mut cmd = proc::tool("mkfs.xfs")?;
    cmd.args(["-q", "-f"]).arg(path);
    proc::succeed(cmd, image::TOOL_LIMIT)?;
    Ok(())
}

/// Leaves Linux' job files where the user finds them.
fn keep_jobs(jobs: &[LinuxJob]) -> Result<()> {
    let dir = guest_build::target_dir().join("compare-jobs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for job in jobs {
        fs::write(dir.join(&job.file), &job.text).with_context(|| format!("cannot write {}", dir.display()))?;
    }
    eprintln!("job files for fio: {}", dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        assert_eq!(in_turn(&[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(in_turn(&[1, 2, 3], 1), [3, 2, 1]);
        assert_eq!(in_turn(&[1, 2, 3], 2), [1, 2, 3]);
    }

    #[test]
    fn linux_has_a_job_file_for_each_disk() {
        let dir = tempfile::tempdir().unwrap();
        let groups = jobs::default_groups();
        let disks = Disks::prepare(None, &groups, &Mode::ALL, dir.path()).unwrap();
        let all = linux_jobs(&groups, &disks, 1 << 30, true).unwrap();
        assert_eq!(all.len(), groups.len() * 3);
        assert_eq!(linux_jobs(&groups, &disks, 1 << 30, false).unwrap().len(), groups.len() * 2);
        let holes = all.iter().find(|j| j.text.contains("[holes") && j.place == Place::Ext4).unwrap();
        assert!(holes.before.contains("rm -f '/mnt/ext4/new'") && holes.text.contains("fallocate=truncate"));
        // Behind the file that is there.
        let raw = all.iter().find(|j| j.text.contains("[holes") && j.place == Place::Raw).unwrap();
        assert!(raw.text.contains("\noffset=268435456\n"), "{}", raw.text);
        let planned = plan_of(&groups[0], &[Mode::InFlight], &disks, 1 << 30).unwrap();
        let want = Target::Ext4 { disk: 0, options: "dioread_nolock,noatime".into() };
        assert_eq!(planned.plan.steps[0].target, want);
    }
}
