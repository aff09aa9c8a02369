// SPDX-License-Identifier: GPL-2.0-only
//! Runs a [`Plan`]: fio-like jobs against files of an ext4 image, or against a bare disk; before them a script of file
//! operations.
//!
//! The guest in QEMU is the usual place; the same code runs hosted, where tests check it.
//!
//! * [`engine`]: what one thread of a job does, synchronously or with many kiocbs in flight.
//! * [`target`]: a file or a disk, seen alike.
//! * [`pattern`]: which block comes next.
//! * [`table`]: which generation each block has, while it is written and afterwards.
//! * `layout`: how files come to be there before a step.
//! * [`script`]: file operations, one after the other.
#![no_std]
extern crate alloc;

pub mod engine;
mod layout;
pub mod pattern;
pub mod script;
pub mod table;
pub mod target;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ext4_dio::{SuperBlock, ext4_mount, ext4_umount};
use ext4_dio_protocol::{Event, Job, JobResult, ModeCounts, Plan, Step, Target};
use kernel_shim::alloc::Arc as KArc;
use kernel_shim::block::Bdev;
use kernel_shim::error::Error;
use kernel_shim::sched;

use engine::{Shared, Worker};
use layout::{Files, unlink_files};
use table::{TableKey, Tables};
use target::Opened;

/// What a plan needs of the machine it runs on.
pub trait Machine: Sync {
    /// Sends an event to whoever gave the plan.
    fn emit(&self, event: &Event);
    /// Sends bulk data, announced by an [`Event::Table`].
    fn bulk(&self, bytes: &[u8]);
    /// Instructions executed so far, idle time excluded, where the machine can tell.
    fn instructions(&self) -> Option<u64> {
        None
    }
}

/// Why a plan could not be finished, for people.
#[derive(Debug)]
pub struct Failure {
    /// [`Step::id`] under way.
    pub step: Option<u32>,
    /// Names the file, option or disk.
    pub message: String,
}

/// A file system that steps use one after the other.
struct Mounted {
    disk: u32,
    options: String,
    sb: KArc<SuperBlock>,
}

/// Runs all steps on `disks`. An event tells of each; a step with failed I/Os does not stop the plan, one that cannot be started
/// does. Whatever happens, what was mounted is unmounted.
pub fn run(plan: &Plan, disks: &[Bdev], machine: &dyn Machine) -> Result<(), Failure> {
    let mut tables = Tables::new();
    let mut mounted = None;
    let mut result = Ok(());
    if let Some(script) = &plan.script {
        script::run(script, disks, machine)?;
    }
    for step in &plan.steps {
        result = run_step(plan, step, disks, &mut mounted, &mut tables, machine)
            .map_err(|message| Failure { step: Some(step.id), message });
        if result.is_err() {
            break;
        }
    }
    if let Some(m) = mounted {
        let unmounted = unmount(m).map_err(|message| Failure { step: None, message });
        result = result.and(unmounted);
    }
    if plan.tables {
        for (key, table) in tables.iter().filter(|(_, table)| !table.is_gone()) {
            machine.emit(&Event::Table {
                disk: key.disk,
                file: key.file.clone(),
                unit: table.unit(),
                blocks: table.len() as u64,
            });
            table.for_each_chunk(|bytes| machine.bulk(bytes));
        }
    }
    result
}

fn unmount(m: Mounted) -> Result<(), String> {
    ext4_umount(&m.sb).map_err(|e| format!("unmounting disk {}: {}", m.disk, errno(e)))
}

pub(crate) fn errno(e: Error) -> String {
    match e.name() {
        Some(name) => name.to_string(),
        None => format!("error {}", e.to_errno()),
    }
}

/// The mount that `step` wants, made if it is not there.
fn mount_for<'m>(step: &Step, disks: &[Bdev], mounted: &'m mut Option<Mounted>) -> Result<Option<&'m Mounted>, String> {
    let Target::Ext4 { disk, options } = &step.target else { return Ok(None) };
    if let Some(m) = mounted.take_if(|m| m.disk != *disk || m.options != *options) {
        unmount(m)?;
    }
    if mounted.is_none() {
        let bdev = disks.get(*disk as usize).ok_or_else(|| format!("there is no disk {disk}"))?;
        let sb = ext4_mount(bdev.clone(), options)
            .map_err(|e| format!("mounting disk {disk} with \"{options}\": {}", errno(e)))?;
        *mounted = Some(Mounted { disk: *disk, options: options.clone(), sb });
    }
    Ok(mounted.as_ref())
}

/// Opens what `job`'s threads work on, one file each.
fn open_for(step: &Step, job: &Job, disks: &[Bdev], mount: Option<&Mounted>) -> Result<Opened, String> {
    match (&step.target, mount) {
        (Target::Raw { disk }, _) => {
            let bdev = disks.get(*disk as usize).ok_or_else(|| format!("there is no disk {disk}"))?;
            Ok(Opened::disk(bdev.clone(), job))
        }
        (Target::Ext4 { .. }, Some(m)) => {
            Opened::file(&m.sb, job).map_err(|e| format!("job {}: opening {}: {}", job.name, job.filename, errno(e)))
        }
        (Target::Ext4 { .. }, None) => Err("no file system is mounted".to_string()),
    }
}

fn table_key(step: &Step, job: &Job) -> TableKey {
    match step.target {
        Target::Raw { disk } => TableKey { disk, file: String::new() },
        Target::Ext4 { disk, .. } => TableKey { disk, file: job.filename.clone() },
    }
}

fn modes(mount: Option<&Mounted>) -> ModeCounts {
    let Some(m) = mount else { return ModeCounts::default() };
    let stats = &m.sb.s_fs_info().dio.stats;
    ModeCounts {
        exclusive: stats.exclusive.load(Ordering::Relaxed).into(),
        i_data_sem: stats.i_data_sem.load(Ordering::Relaxed).into(),
        in_flight: stats.in_flight.load(Ordering::Relaxed).into(),
    }
}

fn run_step(
    plan: &Plan,
    step: &Step,
    disks: &[Bdev],
    mounted: &mut Option<Mounted>,
    tables: &mut Tables,
    machine: &dyn Machine,
) -> Result<(), String> {
    let mount = mount_for(step, disks, mounted)?;
    let sb = mount.map(|m| &m.sb);
    let files = Files::prepare(step, sb, tables)?;
    let shared = Arc::new(Shared::new(plan.count_instructions));
    let mut workers = Vec::new();
    let mut touched = Vec::new();
    for (index, job) in step.jobs.iter().enumerate() {
        if job.bs == 0 || job.bs % 512 != 0 || job.numjobs == 0 || job.iodepth == 0 {
            return Err(format!("job {}: bs {}, numjobs {}, iodepth {}", job.name, job.bs, job.numjobs, job.iodepth));
        }
        if job.unlink && matches!(step.target, Target::Raw { .. }) {
            return Err(format!("job {}: a disk cannot be removed", job.name));
        }
        for n in 0..job.numjobs {
            let opened = open_for(step, job, disks, mount)?;
            let table = if job.verify {
                let (size, zero_from) = files.table_size(job, opened.size());
                let table = tables
                    .get(&table_key(step, job), job.bs, size, zero_from)
                    .map_err(|e| format!("job {}: {e}", job.name))?;
                if !touched.iter().any(|(_, t, _): &(TableKey, _, _)| Arc::ptr_eq(t, &table)) {
                    touched.push((table_key(step, job), table.clone(), open_for(step, job, disks, mount)?));
                }
                Some(table)
            } else {
                None
            };
            let range = files.range(job, opened.size());
            workers.push(Worker::new(job, index, n, range, opened, table, shared.clone())?);
        }
    }
    for (_, table, _) in &touched {
        table.begin_step();
    }
    let before = modes(mount);
    machine.emit(&Event::StepStart { step: step.id });
    let (elapsed_ns, instructions) = run_workers(plan, step, &shared, workers, machine)?;
    let after = modes(mount);
    let mut jobs = alloc::vec![JobResult::default(); step.jobs.len()];
    shared.collect(&mut jobs);
    machine.emit(&Event::StepDone {
        step: step.id,
        elapsed_ns,
        jobs,
        modes: ModeCounts {
            exclusive: after.exclusive.wrapping_sub(before.exclusive),
            i_data_sem: after.i_data_sem.wrapping_sub(before.i_data_sem),
            in_flight: after.in_flight.wrapping_sub(before.in_flight),
        },
        instructions,
    });
    for (key, table, opened) in &touched {
        let (blocks, bad) = table.verify(opened)?;
        machine.emit(&Event::Verified { step: step.id, file: key.file.clone(), blocks, bad });
    }
    drop(touched);
    unlink_files(step, sb, tables)
}

/// Starts the threads, opens the gate, tells of progress, and waits for the last of them. Nanoseconds, and instructions if
/// the machine counts them.
fn run_workers(
    plan: &Plan,
    step: &Step,
    shared: &Arc<Shared>,
    workers: Vec<Worker>,
    machine: &dyn Machine,
) -> Result<(u64, Option<u64>), String> {
    let total = workers.len() as u32;
    let mut threads = Vec::new();
    let mut failed = None;
    for worker in workers {
        match sched::spawn("job", move || worker.run()) {
            Ok(thread) => threads.push(thread),
            Err(e) => failed = Some(format!("starting {total} threads: {}", errno(e))),
        }
    }
    // Those that were started come to the gate even if others were not: let them through to their end.
    shared.wait_ready(threads.len() as u32);
    if failed.is_some() {
        shared.stop();
    }
    let instructions = machine.instructions();
    let start = sched::now_ns();
    shared.open_gate();
    let step_ns = plan.progress_ms.max(10) * 1_000_000;
    while !shared.wait_done(threads.len() as u32, step_ns) {
        if !plan.count_instructions {
            let elapsed_ms = (sched::now_ns() - start) / 1_000_000;
            machine.emit(&Event::Progress { step: step.id, elapsed_ms, ios: shared.ios() });
        }
    }
    let elapsed = sched::now_ns() - start;
    let instructions = instructions.and_then(|before| machine.instructions().map(|now| now.wrapping_sub(before)));
    for thread in threads {
        thread.join();
    }
    failed.map_or(Ok((elapsed, instructions)), Err)
}
