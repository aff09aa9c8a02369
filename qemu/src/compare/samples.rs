// SPDX-License-Identifier: GPL-2.0-only
//! What was measured: by job, delay and round, in each guest.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::linux_guest::fio::Place;
use crate::plan::Mode;

/// What was measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// Our guest.
    Ours(Mode),
    /// Linux.
    Linux(Place),
}

impl Column {
    /// The disk alone, in the same guest.
    pub fn raw(self) -> Column {
        match self {
            Column::Ours(_) => Column::Ours(Mode::Raw),
            Column::Linux(_) => Column::Linux(Place::Raw),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Column::Ours(mode) => mode.name(),
            Column::Linux(Place::Raw) => "Linux raw",
            Column::Linux(Place::Ext4) => "Linux ext4",
            Column::Linux(Place::Xfs) => "Linux XFS",
        })
    }
}

/// Linux' ext4, which all is compared with.
pub const EXT4: Column = Column::Linux(Place::Ext4);

/// A job on a disk, in all rounds.
#[derive(Clone, Debug)]
pub struct Point {
    /// The job's name.
    pub label: String,
    /// I/Os in flight at most.
    pub in_flight: u32,
    /// What writes take longer.
    pub delay: Duration,
    /// IOPS, a map for each round. What failed is not in it.
    pub rounds: Vec<BTreeMap<Column, f64>>,
}

/// The value in the middle, or between the two that are.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut v: Vec<f64> = values.to_vec();
    v.sort_by(f64::total_cmp);
    let mid = v.len() / 2;
    match v.len() {
        0 => None,
        n if n % 2 == 1 => Some(v[mid]),
        _ => Some((v[mid - 1] + v[mid]) / 2.0),
    }
}

impl Point {
    /// All figures of a column.
    pub fn values(&self, column: Column) -> Vec<f64> {
        self.rounds.iter().filter_map(|r| r.get(&column).copied()).collect()
    }

    /// The middle one.
    pub fn median(&self, column: Column) -> Option<f64> {
        median(&self.values(column))
    }

    /// Smallest and largest.
    pub fn range(&self, column: Column) -> Option<(f64, f64)> {
        let values = self.values(column);
        let low = values.iter().copied().min_by(f64::total_cmp)?;
        Some((low, values.iter().copied().max_by(f64::total_cmp)?))
    }

    /// How far the rounds lie apart, over the median; none with one round.
    pub fn spread(&self, column: Column) -> Option<f64> {
        let (low, high) = self.range(column).filter(|_| self.values(column).len() > 1)?;
        self.median(column).filter(|m| *m > 0.0).map(|m| (high - low) / m)
    }

    /// One column over another, round by round: what slows the machine down in a round slows both. The rounds' ratios, sorted.
    pub fn ratios(&self, column: Column, to: Column) -> Vec<f64> {
        let ratio = |r: &BTreeMap<Column, f64>| {
            let (a, b) = (*r.get(&column)?, *r.get(&to)?);
            (b > 0.0).then_some(a / b)
        };
        let mut ratios: Vec<f64> = self.rounds.iter().filter_map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// The middle one of these.
    pub fn ratio(&self, column: Column, to: Column) -> Option<f64> {
        median(&self.ratios(column, to))
    }
}

/// Instructions of an I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Instructions {
    /// In the kernel; for our guest, all.
    pub kernel: f64,
    /// In fio.
    pub user: f64,
}

/// A job whose instructions were counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The job's name.
    pub label: String,
    /// By column.
    pub counts: BTreeMap<Column, Instructions>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const OURS: Column = Column::Ours(Mode::InFlight);

    /// A point with rounds of (raw, ours, Linux raw, ext4).
    pub(crate) fn point(label: &str, delay_ms: u64, rounds: &[[f64; 4]]) -> Point {
        let round = |r: &[f64; 4]| {
            let columns = [OURS.raw(), OURS, EXT4.raw(), EXT4];
            columns.into_iter().zip(*r).filter(|(_, v)| *v > 0.0).collect()
        };
        Point {
            label: label.into(),
            in_flight: 8,
            delay: Duration::from_millis(delay_ms),
            rounds: rounds.iter().map(round).collect(),
        }
    }

    #[test]
    fn medians_and_spread() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        let p = point("a", 0, &[[9.0, 100.0, 9.0, 10.0], [9.0, 200.0, 9.0, 40.0], [9.0, 50.0, 9.0, 0.0]]);
        assert_eq!(p.median(OURS), Some(100.0));
        assert_eq!(p.spread(OURS), Some(1.5));
        assert_eq!(p.range(EXT4), Some((10.0, 40.0)));
        assert_eq!(p.ratio(OURS, EXT4), Some(7.5), "the rounds that have both");
        assert_eq!(p.ratio(Column::Linux(Place::Xfs), EXT4), None);
        assert_eq!(point("a", 0, &[[1.0; 4]]).spread(OURS), None);
    }
}
