// SPDX-License-Identifier: GPL-2.0-only
//! Results in the shape of `fio --output-format=json`, for the scripts that read that: a fio job for each section and
//! mode.
//!
//! The guest counts latencies by powers of two, so percentiles and standard deviations are interpolated within such a
//! bucket; minimum, maximum and mean are exact. What the guest does not know (CPU shares, context switches) is 0.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ext4_dio_protocol::{IoStats, Job, JobResult};
use serde_json::{Map, Value, json};

use crate::plan::{Mode, Planned};
use crate::run::{Outcome, StepResult};

/// fio's default list.
const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

/// Where bucket `i` of a latency histogram starts, ns.
fn bucket_start(i: usize) -> f64 {
    2f64.powi(i as i32)
}

/// The latency that `percent` of the I/Os do not exceed, ns.
pub fn percentile(stats: &IoStats, percent: f64) -> u64 {
    let total: u64 = stats.lat_log2.iter().sum();
    let rank = (percent / 100.0 * total as f64).ceil().max(1.0);
    let mut below = 0.0;
    for (i, &count) in stats.lat_log2.iter().enumerate() {
        if count > 0 && below + count as f64 >= rank {
            let within = (rank - below) / count as f64;
            let estimate = bucket_start(i) * (1.0 + within);
            // The ends are known exactly.
            return (estimate as u64).clamp(stats.lat_min_ns, stats.lat_max_ns.max(stats.lat_min_ns));
        }
        below += count as f64;
    }
    stats.lat_max_ns
}

fn mean(stats: &IoStats) -> f64 {
    if stats.ios == 0 { 0.0 } else { stats.lat_sum_ns as f64 / stats.ios as f64 }
}

fn stddev(stats: &IoStats) -> f64 {
    let total: u64 = stats.lat_log2.iter().sum();
    let mean = mean(stats);
    let squares = stats.lat_log2.iter().enumerate().map(|(i, n)| {
        let d = bucket_start(i) * 1.5 - mean;
        d * d * *n as f64
    });
    if total == 0 { 0.0 } else { (squares.sum::<f64>() / total as f64).sqrt() }
}

fn latency(stats: &IoStats, percentiles: bool) -> Value {
    let mut v = json!({
        "min": stats.lat_min_ns, "max": stats.lat_max_ns, "mean": mean(stats), "stddev": stddev(stats), "N": stats.ios,
    });
    if percentiles && stats.ios > 0 {
        let list = PERCENTILES.iter().map(|p| (format!("{p:.6}"), json!(percentile(stats, *p))));
        v["percentile"] = Value::Object(list.collect());
    }
    v
}

fn direction(stats: &IoStats, elapsed_ns: u64) -> Value {
    let seconds = elapsed_ns as f64 / 1e9;
    let rate = |n: u64| if stats.ios > 0 && seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    let bw = rate(stats.bytes) as u64;
    let zero = IoStats::default();
    json!({
        "io_bytes": stats.bytes,
        "io_kbytes": stats.bytes >> 10,
        "bw_bytes": bw,
        "bw": bw >> 10,
        "iops": rate(stats.ios),
        "runtime": if stats.ios > 0 { elapsed_ns / 1_000_000 } else { 0 },
        "total_ios": stats.ios,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": latency(&zero, false),
        "clat_ns": latency(stats, true),
        "lat_ns": latency(stats, false),
        "bw_min": 0, "bw_max": 0, "bw_agg": 0.0, "bw_mean": 0.0, "bw_dev": 0.0, "bw_samples": 0,
        "iops_min": 0, "iops_max": 0, "iops_mean": 0.0, "iops_stddev": 0.0, "iops_samples": 0,
    })
}

/// Shares of latencies below fio's limits, in one unit; `over` also counts what is above the last.
fn latency_shares(result: &JobResult, unit_ns: f64, from: f64, limits: &[u32], over: bool) -> Value {
    let mut shares = vec![0.0; limits.len() + 1];
    let mut total = 0.0;
    for stats in [&result.read, &result.write, &result.trim] {
        for (i, &n) in stats.lat_log2.iter().enumerate() {
            total += n as f64;
            let middle = bucket_start(i) * 1.5;
            if middle < from {
                continue;
            }
            let slot = limits.iter().position(|l| middle < f64::from(*l) * unit_ns).unwrap_or(limits.len());
            shares[slot] += n as f64;
        }
    }
    let percent = |n: f64| json!(if total > 0.0 { n * 100.0 / total } else { 0.0 });
    let mut map: Map<String, Value> = limits.iter().zip(&shares).map(|(l, n)| (l.to_string(), percent(*n))).collect();
    if over && let Some(last) = limits.last() {
        map.insert(format!(">={last}"), percent(shares[limits.len()]));
    }
    Value::Object(map)
}

fn depth_shares(depth: u32, first: &str) -> Value {
    let names = [first, "2", "4", "8", "16", "32", ">=64"];
    let slot = (depth.max(1).ilog2() as usize).min(6);
    let share = |i| json!(if i == slot { 100.0 } else { 0.0 });
    Value::Object(names.iter().enumerate().map(|(i, n)| ((*n).to_string(), share(i))).collect())
}

/// fio's buckets of batch sizes; the guest submits one by one.
fn batches() -> Value {
    json!({"0": 0.0, "4": 100.0, "8": 0.0, "16": 0.0, "32": 0.0, "64": 0.0, ">=64": 0.0})
}

fn job(
    job: &Job,
    options: &[(String, String)],
    result: &JobResult,
    mode: Mode,
    group: usize,
    step: &StepResult,
) -> Value {
    let sync = IoStats { ios: result.syncs, ..IoStats::default() };
    let mut listed: Map<String, Value> = Map::new();
    listed.insert("name".into(), json!(job.name));
    listed.extend(options.iter().map(|(k, v)| (k.clone(), json!(v))));
    let below_us = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];
    let ms = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000];
    let run_ms = result.elapsed_ns / 1_000_000;
    let mut v = json!({
        "jobname": format!("{}/{mode}", job.name),
        "groupid": group,
        "error": result.first_error.abs(),
        "eta": 0,
        "elapsed": result.elapsed_ns.div_ceil(1_000_000_000),
        "job options": listed,
        "read": direction(&result.read, result.elapsed_ns),
        "write": direction(&result.write, result.elapsed_ns),
        "trim": direction(&result.trim, result.elapsed_ns),
        "sync": { "total_ios": result.syncs, "lat_ns": latency(&sync, false) },
        "job_runtime": run_ms,
        "usr_cpu": 0.0, "sys_cpu": 0.0, "ctx": 0, "majf": 0, "minf": 0,
        "iodepth_level": depth_shares(job.iodepth, "1"),
        "iodepth_submit": batches(),
        "iodepth_complete": batches(),
        "latency_ns": latency_shares(result, 1.0, 0.0, &below_us, false),
        "latency_us": latency_shares(result, 1e3, 1e3, &below_us, false),
        "latency_ms": latency_shares(result, 1e6, 1e6, &ms, true),
        "latency_depth": job.iodepth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    });
    // Not fio's: what was measured, and how its writes ran.
    v["ext4-dio"] = json!({
        "mode": mode.name(),
        "mount options": mode.mount_options(),
        "writes": {
            "i_mutex": step.modes.exclusive, "i_data_sem": step.modes.i_data_sem, "in_flight": step.modes.in_flight,
        },
        "instructions": step.instructions,
    });
    v
}

/// The whole run.
pub fn document(planned: &Planned, out: &Outcome, now: SystemTime, accel: &str) -> Value {
    let mut jobs = Vec::new();
    for (index, group) in planned.groups.iter().enumerate() {
        for &mode in &planned.modes {
            let step = planned.steps_of(index, mode).next();
            let (Some(step), Some(result)) = (step, out.result(planned, index, mode)) else { continue };
            for ((j, spec), r) in step.jobs.iter().zip(&group.jobs).zip(&result.jobs) {
                jobs.push(job(j, &spec.options, r, mode, step.id as usize, &result));
            }
        }
    }
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    json!({
        "fio version": format!("ext4-dio-{}", env!("CARGO_PKG_VERSION")),
        "timestamp": since.as_secs(),
        "timestamp_ms": since.as_millis() as u64,
        "time": utc(since.as_secs()),
        "jobs": jobs,
        "disk_util": [],
        "ext4-dio": { "accelerator": accel, "failures": out.failures },
    })
}

/// ctime(3)'s form, in UTC.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that start in March, so that a leap day is the last of its year.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = (mp + 2) % 12;
    let year = yoe + era * 400 + u64::from(month < 2);
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let weekdays = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let (weekday, name) = (weekdays[(days % 7) as usize], names[month as usize]);
    format!("{weekday} {name} {day:2} {:02}:{:02}:{:02} {year}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;
    use crate::run::tests_support::{outcome, planned};

    #[test]
    fn percentiles_stay_in_their_bucket() {
        let mut stats =
            IoStats { ios: 100, lat_min_ns: 1100, lat_max_ns: 9000, lat_sum_ns: 200_000, ..IoStats::default() };
        stats.lat_log2 = vec![0; 14];
        stats.lat_log2[10] = 90;
        stats.lat_log2[13] = 10;
        assert_eq!(percentile(&stats, 45.0), 1024 + 512);
        assert_eq!(percentile(&stats, 90.0), 2048);
        assert_eq!(percentile(&stats, 0.1), 1100, "not below the minimum");
        assert_eq!(percentile(&stats, 99.99), 9000, "not above the maximum");
        assert!((8192..=9000).contains(&percentile(&stats, 91.0)));
        assert_eq!(percentile(&IoStats::default(), 50.0), 0);
        assert_eq!(mean(&stats), 2000.0);
    }

    #[test]
    fn dates() {
        assert_eq!(utc(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(utc(1_709_210_096), "Thu Feb 29 12:34:56 2024");
        assert_eq!(utc(1_735_689_599), "Tue Dec 31 23:59:59 2024");
    }

    /// Names and kinds of all members, in depth. Latencies of no I/O have no percentiles, in fio too.
    fn shape(v: &Value, path: &str, out: &mut Vec<String>) {
        match v {
            Value::Object(map) => {
                for (k, v) in
                    map.iter().filter(|(k, _)| !["ext4-dio", "job options", "disk_util"].contains(&k.as_str()))
                {
                    shape(v, &format!("{path}/{k}"), out);
                }
            }
            Value::Array(list) => list.iter().take(1).for_each(|v| shape(v, &format!("{path}[]"), out)),
            other => {
                let kind = match other {
                    Value::Number(n) if n.is_f64() => "float",
                    Value::Number(_) => "int",
                    Value::String(_) => "string",
                    _ => "other",
                };
                out.push(format!("{path}: {kind}"));
            }
        }
    }

    /// Against fio itself, where it is installed: same members, same kinds, in each job.
    #[test]
    fn same_members_as_fio() {
        let Ok(mut cmd) = proc::tool("fio") else {
            eprintln!("fio is not installed: nothing to compare with");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        cmd.args([
            "--name=x",
            "--rw=randrw",
            "--bs=4k",
            "--size=256k",
            "--output-format=json",
            "--output=out",
            "--filename=f",
        ]);
        cmd.current_dir(dir.path());
        proc::succeed(cmd, Duration::from_secs(60)).unwrap();
        let theirs: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out")).unwrap()).unwrap();
        let ours = document(&planned(), &outcome(), UNIX_EPOCH, "tcg");
        let (mut a, mut b) = (Vec::new(), Vec::new());
        shape(&theirs, "", &mut a);
        shape(&ours, "", &mut b);
        let missing: Vec<_> = a.iter().filter(|m| !b.contains(m)).collect();
        assert!(a.len() > 150 && missing.is_empty(), "fio has, we have not: {missing:#?}");
        let extra: Vec<_> = b.iter().filter(|m| !a.contains(m)).collect();
        assert!(extra.is_empty(), "we have, fio has not: {extra:#?}");
    }

    #[test]
    fn a_job_per_section_and_mode_with_its_figures() {
        let doc = document(&planned(), &outcome(), UNIX_EPOCH, "tcg");
        let jobs = doc["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), 8);
        let job = &jobs[1];
        assert_eq!(job["jobname"], "1-writers/exclusive");
        // Both rounds.
        assert_eq!(job["write"]["total_ios"], 3000);
        assert_eq!(job["write"]["io_bytes"], 12_288_000);
        assert_eq!(job["write"]["iops"], 750.0);
        assert_eq!(job["write"]["bw"], 3000);
        assert_eq!(job["write"]["clat_ns"]["percentile"].as_object().unwrap().len(), 17);
        assert_eq!(job["job options"]["bs"], "4k");
        assert_eq!(job["ext4-dio"]["mount options"], "dioread_lock");
    }
}
