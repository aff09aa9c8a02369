// SPDX-License-Identifier: GPL-2.0-only
//! Plans and results for tests of what reads them.

use ext4_dio_protocol::{IoStats, JobResult, ModeCounts, Plan, Step, Target};

use super::{Outcome, StepResult};
use crate::plan::{self, Mode, Planned, Settings};

/// A plan of empty steps.
pub(crate) fn plan(steps: u32) -> Plan {
    let step = |id| Step { id, label: format!("step {id}"), target: Target::Raw { disk: 0 }, jobs: Vec::new() };
    Plan {
        steps: (0..steps).map(step).collect(),
        script: None,
        progress_ms: 100,
        tables: false,
        count_instructions: false,
    }
}

/// The default run's first two points.
pub(crate) fn planned() -> Planned {
    let mut groups = plan::default_groups();
    groups.truncate(2);
    let files = plan::files_needed(&groups).unwrap();
    plan::build(groups, &Mode::ALL, &files, Settings { count_instructions: false, memory: 512 << 20, rounds: 2 })
        .unwrap()
}

/// Two seconds of 1000 writes in each step of [`planned`], of 2000 in its second rounds, all as their mode says.
pub(crate) fn outcome() -> Outcome {
    let mut out = Outcome::default();
    for point in planned().points {
        let n = if point.step % 8 < 4 { 1000 } else { 2000 };
        let mut lat_log2 = vec![0; 24];
        lat_log2[20] = n;
        let write = IoStats {
            ios: n,
            bytes: n * 4096,
            lat_sum_ns: n * 2_000_000,
            lat_min_ns: 1_100_000,
            lat_max_ns: 2_090_000,
            lat_log2,
        };
        let read = IoStats { ios: 10, bytes: 40_960, ..write.clone() };
        // Some reads in the first, so that every member of fio's JSON has something to show.
        let read = if point.step == 0 { read } else { IoStats::default() };
        let modes = match point.mode {
            Mode::Raw => ModeCounts::default(),
            Mode::Exclusive => ModeCounts { exclusive: n, ..ModeCounts::default() },
            Mode::IDataSem => ModeCounts { i_data_sem: n, ..ModeCounts::default() },
            Mode::InFlight => ModeCounts { in_flight: n, ..ModeCounts::default() },
        };
        let job = JobResult { read, write, elapsed_ns: 2_000_000_000, ..JobResult::default() };
        out.steps
            .insert(point.step, StepResult { elapsed_ns: 2_000_000_000, jobs: vec![job], modes, instructions: None });
    }
    out
}
