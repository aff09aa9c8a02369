// SPDX-License-Identifier: GPL-2.0-only
//! Results for programs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::Results;
use super::samples::{Column, Counted, EXT4, Point};

fn point(p: &Point, columns: &[Column]) -> Value {
    let mut figures = Map::new();
    for column in columns {
        let Some((low, high)) = p.range(*column) else { continue };
        figures.insert(
            column.to_string(),
            json!({
                "iops": p.median(*column), "min": low, "max": high, "rounds": p.values(*column),
                "over Linux ext4": p.ratio(*column, EXT4), "over raw": p.ratio(*column, column.raw()),
            }),
        );
    }
    json!({
        "job": p.label, "in flight": p.in_flight, "delay_ns": p.delay.as_nanos() as u64, "figures": figures,
    })
}

fn counted(job: &Counted) -> Value {
    let counts = job.counts.iter().map(|(c, i)| (c.to_string(), json!({"kernel": i.kernel, "user": i.user})));
    json!({ "job": job.label, "instructions": counts.collect::<Map<_, _>>() })
}

/// All that was measured.
pub(super) fn document(results: &Results, columns: &[Column], now: SystemTime) -> Value {
    let s = &results.setup;
    json!({
        "timestamp": now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        "linux": s.release,
        "qemu": s.qemu,
        "accelerator": s.accel,
        "cpus": s.cpus,
        "memory_mib": s.mem_mib,
        "rounds": s.rounds,
        "points": results.points.iter().map(|p| point(p, columns)).collect::<Vec<_>>(),
        "instructions": results.counted.iter().map(counted).collect::<Vec<_>>(),
        "failures": results.failures,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Setup;
    use super::super::samples::tests::{OURS, point};
    use super::*;

    #[test]
    fn figures_and_their_ratios() {
        let setup = Setup {
            release: "7.3.4".into(),
            qemu: "QEMU 7.2".into(),
            accel: "TCG".into(),
            cpus: 2,
            mem_mib: 1024,
            rounds: 2,
        };
        let points = vec![point("a", 2, &[[400.0, 300.0, 60.0, 30.0], [420.0, 330.0, 60.0, 30.0]])];
        let results = Results { points, counted: Vec::new(), failures: vec!["x".into()], setup };
        let doc = document(&results, &[OURS, EXT4, OURS.raw()], UNIX_EPOCH);
        let p = &doc["points"][0];
        assert_eq!(p["delay_ns"], 2_000_000);
        assert_eq!(p["figures"]["in_flight"]["iops"], 315.0);
        assert_eq!(p["figures"]["in_flight"]["over Linux ext4"], 10.5);
        assert_eq!(p["figures"]["Linux ext4"]["over raw"], 0.5);
        assert_eq!(doc["failures"][0], "x");
    }
}
