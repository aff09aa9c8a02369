// SPDX-License-Identifier: GPL-2.0-only
//! The tables: what each lock mode reached, beside the bare disk and beside the exclusive lock.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use ext4_dio_protocol::ModeCounts;

use crate::plan::{Mode, Planned};
use crate::run::{Outcome, StepResult};

/// A group's figures, in the order of [`Matrix::modes`]; none where a step gave none.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The group's name.
    pub label: String,
    /// I/Os in flight at most.
    pub in_flight: u32,
    /// IOPS, or instructions per I/O.
    pub values: Vec<Option<f64>>,
}

/// Groups by modes.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Columns.
    pub modes: Vec<Mode>,
    /// In the order of the plan.
    pub rows: Vec<Row>,
}

impl Matrix {
    fn collect(planned: &Planned, out: &Outcome, value: impl Fn(StepResult) -> Option<f64>) -> Matrix {
        let rows = planned.groups.iter().enumerate().map(|(index, group)| {
            let values = planned.modes.iter().map(|m| out.result(planned, index, *m).and_then(&value)).collect();
            Row { label: group.label.clone(), in_flight: group.in_flight(), values }
        });
        Matrix { modes: planned.modes.clone(), rows: rows.collect() }
    }

    /// IOPS of each point.
    pub fn iops(planned: &Planned, out: &Outcome) -> Matrix {
        Matrix::collect(planned, out, |r| Some(r.iops()))
    }

    /// Instructions per I/O of each point.
    pub fn instructions(planned: &Planned, out: &Outcome) -> Matrix {
        Matrix::collect(planned, out, |result| {
            let ios = result.ios();
            (ios > 0).then_some(result.instructions? as f64 / ios as f64)
        })
    }

    fn column(&self, mode: Mode) -> Option<usize> {
        self.modes.iter().position(|m| *m == mode)
    }

    /// A value over another mode's of the same row.
    pub fn ratio(&self, row: usize, mode: Mode, to: Mode) -> Option<f64> {
        let row = self.rows.get(row)?;
        quotient(*row.values.get(self.column(mode)?)?, *row.values.get(self.column(to)?)?)
    }

    /// A value over the same mode's in the first row.
    pub fn scaling(&self, row: usize, mode: Mode) -> Option<f64> {
        let column = self.column(mode)?;
        quotient(*self.rows.get(row)?.values.get(column)?, *self.rows.first()?.values.get(column)?)
    }
}

fn quotient(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    let (a, b) = (a?, b?);
    (b > 0.0).then_some(a / b)
}

pub(crate) fn number(v: Option<f64>, decimals: usize, unit: &str) -> String {
    v.map_or_else(|| "-".into(), |v| format!("{v:.decimals$}{unit}"))
}

pub(crate) fn new_table(header: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// IOPS; for ext4 what part of the raw disk's that is and how many times the exclusive lock's; and below, where the
/// rows are one load by ever more writers, the last row over the first.
pub fn iops_table(m: &Matrix, scaling: bool) -> String {
    let has = |mode| m.modes.contains(&mode);
    let mut header = vec!["IOPS".to_string()];
    for &mode in &m.modes {
        header.push(mode.to_string());
        if mode != Mode::Raw && has(Mode::Raw) {
            header.push("/ raw".into());
        }
        if !matches!(mode, Mode::Raw | Mode::Exclusive) && has(Mode::Exclusive) {
            header.push("/ excl.".into());
        }
    }
    let mut table = new_table(header);
    for (index, row) in m.rows.iter().enumerate() {
        let mut cells = vec![row.label.clone()];
        for (&mode, value) in m.modes.iter().zip(&row.values) {
            cells.push(number(*value, 0, ""));
            if mode != Mode::Raw && has(Mode::Raw) {
                cells.push(number(m.ratio(index, mode, Mode::Raw), 2, ""));
            }
            if !matches!(mode, Mode::Raw | Mode::Exclusive) && has(Mode::Exclusive) {
                cells.push(number(m.ratio(index, mode, Mode::Exclusive), 1, "x"));
            }
        }
        table.add_row(cells);
    }
    let mut text = format!("{table}\n");
    if scaling && m.rows.len() > 1 {
        text += &format!("\n{}\n", scaling_table(m));
    }
    text
}

/// Each mode over its own first row.
fn scaling_table(m: &Matrix) -> Table {
    let first = m.rows.first().map_or("", |r| r.label.as_str());
    let mut header = vec![format!("gain over {first}")];
    header.extend(m.modes.iter().map(Mode::to_string));
    let mut table = new_table(header);
    for (index, row) in m.rows.iter().enumerate().skip(1) {
        let mut cells = vec![row.label.clone()];
        cells.extend(m.modes.iter().map(|mode| number(m.scaling(index, *mode), 1, "x")));
        table.add_row(cells);
    }
    table
}

/// Instructions per I/O; for ext4 how many more than the raw disk takes.
pub fn instruction_table(m: &Matrix) -> String {
    let has_raw = m.modes.contains(&Mode::Raw);
    let mut header = vec!["instructions per I/O".to_string()];
    for mode in &m.modes {
        header.push(mode.to_string());
        if *mode != Mode::Raw && has_raw {
            header.push("- raw".into());
        }
    }
    let mut table = new_table(header);
    for row in &m.rows {
        let raw = m.column(Mode::Raw).and_then(|c| row.values.get(c).copied().flatten());
        let mut cells = vec![row.label.clone()];
        for (mode, value) in m.modes.iter().zip(&row.values) {
            cells.push(number(*value, 0, ""));
            if *mode != Mode::Raw && has_raw {
                cells.push(number(value.zip(raw).map(|(v, r)| v - r), 0, ""));
            }
        }
        table.add_row(cells);
    }
    format!("{table}\n")
}

/// Where the rounds of a point lie farthest apart: how much a busy machine has to do with the figures. None with one round.
pub fn spread_line(planned: &Planned, out: &Outcome) -> Option<String> {
    let mut widest: Option<(f64, String)> = None;
    for (index, group) in planned.groups.iter().enumerate() {
        for &mode in &planned.modes {
            let rounds = planned.steps_of(index, mode).filter_map(|s| Some(out.steps.get(&s.id)?.iops()));
            let rounds: Vec<f64> = rounds.collect();
            let (low, high) = rounds.iter().fold((f64::MAX, 0.0f64), |(l, h), v| (l.min(*v), h.max(*v)));
            let spread = if rounds.len() > 1 && high > 0.0 { (high - low) / high } else { continue };
            if widest.as_ref().is_none_or(|(w, _)| spread > *w) {
                widest = Some((spread, format!("{}, {mode}", group.label)));
            }
        }
    }
    let (spread, place) = widest?;
    Some(format!("the rounds of a point differ by up to {:.0} % ({place})", spread * 100.0))
}

/// How the file system ran the direct writes of each mode, over all steps: a line each.
pub fn lock_lines(planned: &Planned, out: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    for &mode in planned.modes.iter().filter(|m| **m != Mode::Raw) {
        let c = lock_counts(planned, out, mode);
        lines.push(format!(
            "{mode:<10}  writes under i_mutex {}, under i_data_sem {}, counted in i_dio_count only {}",
            c.exclusive, c.i_data_sem, c.in_flight
        ));
    }
    lines
}

fn lock_counts(planned: &Planned, out: &Outcome, mode: Mode) -> ModeCounts {
    let of_mode = planned.points.iter().filter(|p| p.mode == mode).filter_map(|p| out.steps.get(&p.step));
    of_mode.fold(ModeCounts::default(), |sum, r| ModeCounts {
        exclusive: sum.exclusive + r.modes.exclusive,
        i_data_sem: sum.i_data_sem + r.modes.i_data_sem,
        in_flight: sum.in_flight + r.modes.in_flight,
    })
}

/// Modes in which no write ran as the mode says, though there were writes: their figures would mean nothing.
/// `overwrites` says that all writes may run in parallel.
pub fn mode_failures(planned: &Planned, out: &Outcome, overwrites: bool) -> Vec<String> {
    let mut failures = Vec::new();
    for &mode in &planned.modes {
        let c = lock_counts(planned, out, mode);
        let (own, others) = match mode {
            Mode::Raw => continue,
            Mode::Exclusive => (c.exclusive, c.i_data_sem + c.in_flight),
            // Blocks are allocated and converted with nothing held in either mode.
            Mode::IDataSem => (c.i_data_sem, if overwrites { c.in_flight + c.exclusive } else { 0 }),
            Mode::InFlight => (c.in_flight, c.i_data_sem + if overwrites { c.exclusive } else { 0 }),
        };
        if others > 0 || (overwrites && own == 0) {
            failures.push(format!("mode {mode}: {own} writes ran so, {others} with another lock"));
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests_support::{outcome, planned};

    #[test]
    fn ratios_and_gains() {
        let m = Matrix {
            modes: Mode::ALL.into(),
            rows: vec![
                Row {
                    label: "1 writer".into(),
                    in_flight: 1,
                    values: vec![Some(400.0), Some(380.0), Some(384.0), Some(390.0)],
                },
                Row {
                    label: "32 writers".into(),
                    in_flight: 32,
                    values: vec![Some(12800.0), Some(400.0), None, Some(12000.0)],
                },
            ],
        };
        assert_eq!(m.ratio(0, Mode::InFlight, Mode::Raw), Some(0.975));
        assert_eq!(m.ratio(1, Mode::InFlight, Mode::Exclusive), Some(30.0));
        assert_eq!(m.ratio(1, Mode::IDataSem, Mode::Raw), None);
        assert_eq!(m.scaling(1, Mode::Raw), Some(32.0));
        assert_eq!(m.ratio(2, Mode::Raw, Mode::Raw), None);
        assert_eq!(quotient(Some(1.0), Some(0.0)), None);
        let want = "\
| IOPS       |   raw | exclusive | / raw | i_data_sem | / raw | / excl. | in_flight | / raw | / excl. |
|------------|-------|-----------|-------|------------|-------|---------|-----------|-------|---------|
| 1 writer   |   400 |       380 |  0.95 |        384 |  0.96 |    1.0x |       390 |  0.97 |    1.0x |
| 32 writers | 12800 |       400 |  0.03 |          - |     - |       - |     12000 |  0.94 |   30.0x |

| gain over 1 writer |   raw | exclusive | i_data_sem | in_flight |
|--------------------|-------|-----------|------------|-----------|
| 32 writers         | 32.0x |      1.1x |          - |     30.8x |
";
        assert_eq!(iops_table(&m, true), want);
        let two = Matrix {
            modes: vec![Mode::InFlight],
            rows: vec![Row { label: "a".into(), in_flight: 4, values: vec![Some(7.0)] }],
        };
        assert_eq!(iops_table(&two, false), "| IOPS | in_flight |\n|------|-----------|\n| a    |         7 |\n");
    }

    #[test]
    fn instructions_are_shown_over_raw() {
        let m = Matrix {
            modes: vec![Mode::Raw, Mode::InFlight],
            rows: vec![Row { label: "sync 1".into(), in_flight: 1, values: vec![Some(105.4), Some(600.0)] }],
        };
        let text = instruction_table(&m);
        assert!(text.contains("| sync 1               | 105 |       600 |   495 |"), "{text}");
    }

    #[test]
    fn figures_come_from_their_steps() {
        let (planned, out) = (planned(), outcome());
        let m = Matrix::iops(&planned, &out);
        assert_eq!(m.rows.len(), planned.groups.len());
        // 1000 writes in 2 s in one round, twice as many in as long in the other.
        assert_eq!(m.rows[1].values[2], Some(750.0));
        assert_eq!(m.rows[1].in_flight, 2);
        assert_eq!(Matrix::instructions(&planned, &out).rows[0].values[0], None);
    }

    #[test]
    fn rounds_that_lie_apart_are_told() {
        let (planned, mut out) = (planned(), outcome());
        assert_eq!(
            spread_line(&planned, &out).unwrap(),
            "the rounds of a point differ by up to 50 % (1 writer, exclusive)"
        );
        let step = planned.steps_of(1, Mode::InFlight).next().unwrap().id;
        out.steps.get_mut(&step).unwrap().elapsed_ns *= 5;
        assert_eq!(
            spread_line(&planned, &out).unwrap(),
            "the rounds of a point differ by up to 90 % (2 writers, in_flight)"
        );
        out.steps.retain(|id, _| id % 8 < 4);
        assert_eq!(spread_line(&planned, &out), None);
    }

    #[test]
    fn a_mode_that_did_not_run_as_it_says_is_told() {
        let (planned, mut out) = (planned(), outcome());
        assert_eq!(mode_failures(&planned, &out, true), Vec::<String>::new());
        let step = planned.points.iter().find(|p| p.mode == Mode::InFlight).unwrap().step;
        out.steps.get_mut(&step).unwrap().modes.exclusive = 1;
        assert_eq!(mode_failures(&planned, &out, true).len(), 1);
        assert_eq!(mode_failures(&planned, &out, false), Vec::<String>::new());
        for r in out.steps.values_mut() {
            r.modes = ModeCounts::default();
        }
        assert_eq!(mode_failures(&planned, &out, true).len(), 3, "not counted at all");
        assert_eq!(lock_lines(&planned, &out).len(), 3);
    }
}
