// SPDX-License-Identifier: GPL-2.0-only
//! The tables, and what they come to.

use std::time::Duration;

use super::samples::{Column, Counted, EXT4, Point};
use crate::linux_guest::fio::Place;
use crate::plan::Mode;
use crate::report::{new_table, number};

/// Columns in the order in which they are shown; those of our guest that were asked for.
pub fn columns(modes: &[Mode]) -> Vec<Column> {
    let ours = Mode::ALL.into_iter().filter(|m| modes.contains(m)).map(Column::Ours);
    let places = Place::ALL.into_iter().filter(|p| *p != Place::Raw || modes.contains(&Mode::Raw));
    ours.chain(places.map(Column::Linux)).collect()
}

/// A delay, for people.
pub fn delay_name(delay: Duration) -> String {
    if delay.is_zero() { "disk without delay".into() } else { format!("disk with {delay:?} to each write") }
}

/// Medians, with how far the rounds of our guest and of Linux lie apart at most.
pub fn iops(points: &[&Point], columns: &[Column]) -> String {
    let mut header = vec!["IOPS".to_string()];
    header.extend(columns.iter().map(Column::to_string));
    header.extend(["spread".into(), "Linux' spread".into()]);
    let mut table = new_table(header);
    for p in points {
        let mut cells = vec![p.label.clone()];
        cells.extend(columns.iter().map(|c| number(p.median(*c), 0, "")));
        for linux in [false, true] {
            let side = columns.iter().filter(|c| matches!(c, Column::Linux(_)) == linux);
            let widest = side.filter_map(|c| p.spread(*c)).max_by(f64::total_cmp);
            cells.push(number(widest.map(|s| s * 100.0), 0, " %"));
        }
        table.add_row(cells);
    }
    format!("{table}\n")
}

/// Each over Linux' ext4, with the rounds that differ most.
pub fn over_ext4(points: &[&Point], columns: &[Column]) -> String {
    let shown: Vec<Column> = columns.iter().copied().filter(|c| *c != c.raw() && *c != EXT4).collect();
    let mut header = vec!["over Linux ext4".to_string()];
    header.extend(shown.iter().map(Column::to_string));
    let mut table = new_table(header);
    for p in points {
        let mut cells = vec![p.label.clone()];
        for column in &shown {
            let rounds = p.ratios(*column, EXT4);
            let middle = number(p.ratio(*column, EXT4), 2, "");
            cells.push(match (rounds.first(), rounds.last()) {
                (Some(low), Some(high)) if rounds.len() > 1 => format!("{middle} ({low:.2}-{high:.2})"),
                _ => middle,
            });
        }
        table.add_row(cells);
    }
    format!("{table}\n")
}

/// Each file system over the disk alone in the same guest.
pub fn over_raw(points: &[&Point], columns: &[Column]) -> String {
    let shown: Vec<Column> = columns.iter().copied().filter(|c| *c != c.raw() && columns.contains(&c.raw())).collect();
    let mut header = vec!["over its raw disk".to_string()];
    header.extend(shown.iter().map(Column::to_string));
    let mut table = new_table(header);
    for p in points {
        let mut cells = vec![p.label.clone()];
        cells.extend(shown.iter().map(|c| number(p.ratio(*c, c.raw()), 2, "")));
        table.add_row(cells);
    }
    format!("{table}\n")
}

/// What the mode does on each disk, in a line: where it is behind Linux' ext4, if anywhere.
pub fn verdict(points: &[&Point], mode: Mode) -> String {
    let rated = points.iter().filter_map(|p| Some((p, p.ratio(Column::Ours(mode), EXT4)?)));
    let (ahead, behind): (Vec<_>, Vec<_>) = rated.partition(|(_, r)| *r >= 1.0);
    let list =
        |v: &[(&&Point, f64)]| v.iter().map(|(p, r)| format!("{} {r:.2}", p.label)).collect::<Vec<_>>().join("; ");
    let all = ahead.len() + behind.len();
    if behind.is_empty() {
        format!("{mode} is not behind Linux' ext4 in any of {all} jobs")
    } else {
        format!("{mode} is behind Linux' ext4 in {} of {all} jobs: {}", behind.len(), list(&behind))
    }
}

/// Instructions of an I/O; for file systems what they add to the disk alone.
pub fn instructions(counted: &[Counted], columns: &[Column]) -> String {
    let mut header = vec!["instructions per I/O".to_string()];
    for c in columns {
        header.push(c.to_string());
        if *c != c.raw() && columns.contains(&c.raw()) {
            header.push("- raw".into());
        }
    }
    header.push("fio's own".into());
    let mut table = new_table(header);
    for job in counted {
        let kernel = |c: &Column| job.counts.get(c).map(|i| i.kernel);
        let mut cells = vec![job.label.clone()];
        for c in columns {
            cells.push(number(kernel(c), 0, ""));
            if *c != c.raw() && columns.contains(&c.raw()) {
                cells.push(number(kernel(c).zip(kernel(&c.raw())).map(|(a, b)| a - b), 0, ""));
            }
        }
        cells.push(number(job.counts.get(&EXT4).map(|i| i.user), 0, ""));
        table.add_row(cells);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::super::samples::Instructions;
    use super::super::samples::tests::{OURS, point};
    use super::*;

    #[test]
    fn medians_ratios_and_spread() {
        let a = point("a", 0, &[[400.0, 300.0, 60.0, 30.0], [420.0, 330.0, 60.0, 30.0]]);
        let b = point("b", 0, &[[400.0, 15.0, 60.0, 30.0]]);
        let columns = [OURS.raw(), OURS, EXT4.raw(), EXT4];
        let want = "\
| IOPS | raw | in_flight | Linux raw | Linux ext4 | spread | Linux' spread |
|------|-----|-----------|-----------|------------|--------|---------------|
| a    | 410 |       315 |        60 |         30 |   10 % |           0 % |
| b    | 400 |        15 |        60 |         30 |      - |             - |
";
        assert_eq!(iops(&[&a, &b], &columns), want);
        let want = "\
| over Linux ext4 |           in_flight |
|-----------------|---------------------|
| a               | 10.50 (10.00-11.00) |
| b               |                0.50 |
";
        assert_eq!(over_ext4(&[&a, &b], &columns), want);
        let want = "\
| over its raw disk | in_flight | Linux ext4 |
|-------------------|-----------|------------|
| a                 |      0.77 |       0.50 |
| b                 |      0.04 |       0.50 |
";
        assert_eq!(over_raw(&[&a, &b], &columns), want);
        assert_eq!(verdict(&[&a, &b], Mode::InFlight), "in_flight is behind Linux' ext4 in 1 of 2 jobs: b 0.50");
        assert_eq!(verdict(&[&a], Mode::InFlight), "in_flight is not behind Linux' ext4 in any of 1 jobs");
    }

    #[test]
    fn instructions_beside_the_disk_alone() {
        let count = |kernel| Instructions { kernel, user: 500.0 };
        let counts = [(EXT4.raw(), count(8000.0)), (EXT4, count(10_100.0))].into();
        let job = Counted { label: "a".into(), counts };
        let want = "\
| instructions per I/O | in_flight | Linux raw | Linux ext4 | - raw | fio's own |
|----------------------|-----------|-----------|------------|-------|-----------|
| a                    |         - |      8000 |      10100 |  2100 |       500 |
";
        assert_eq!(instructions(&[job], &[OURS, EXT4.raw(), EXT4]), want);
    }

    #[test]
    fn columns_are_those_that_were_asked_for() {
        assert_eq!(columns(&Mode::ALL).len(), 7);
        assert_eq!(columns(&[Mode::InFlight]), [OURS, EXT4, Column::Linux(Place::Xfs)]);
        assert_eq!(delay_name(Duration::ZERO), "disk without delay");
        assert_eq!(delay_name(Duration::from_millis(2)), "disk with 2ms to each write");
    }
}
