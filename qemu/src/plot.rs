// SPDX-License-Identifier: GPL-2.0-only
//! The picture: IOPS over I/Os in flight, a line for each mode, as SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::plan::Mode;
use crate::report::Matrix;

fn colour(mode: Mode) -> RGBColor {
    match mode {
        Mode::Raw => RGBColor(120, 120, 120),
        Mode::Exclusive => RGBColor(200, 60, 40),
        Mode::IDataSem => RGBColor(40, 110, 200),
        Mode::InFlight => RGBColor(20, 150, 90),
    }
}

/// Where a row lies on the x axis: by its I/Os in flight where these tell the rows apart, else by its place.
fn positions(m: &Matrix) -> (Vec<f64>, bool) {
    let mut seen: Vec<u32> = m.rows.iter().map(|r| r.in_flight).collect();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() == m.rows.len() && !seen.contains(&0) {
        (m.rows.iter().map(|r| f64::from(r.in_flight).log2()).collect(), true)
    } else {
        ((0..m.rows.len()).map(|i| i as f64).collect(), false)
    }
}

/// Draws `m` into an SVG file.
///
/// # Errors
///
/// The file cannot be written.
pub fn draw(m: &Matrix, title: &str, path: &Path) -> Result<()> {
    let mut svg = String::new();
    render(m, title, &mut svg).map_err(|e| anyhow!("cannot draw: {e}"))?;
    std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

fn render(m: &Matrix, title: &str, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let (xs, by_depth) = positions(m);
    let max_x = xs.iter().copied().fold(0.0, f64::max);
    let max_y = m.rows.iter().flat_map(|r| &r.values).flatten().copied().fold(1.0, f64::max);
    let root = SVGBackend::with_string(svg, (880, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(-0.2..max_x + 0.2, 0.0..max_y * 1.08)?;
    let label = |x: &f64| {
        let near = xs.iter().position(|v| (v - x).abs() < 0.01);
        match near.and_then(|i| m.rows.get(i)) {
            Some(row) if by_depth => row.in_flight.to_string(),
            Some(row) => row.label.clone(),
            None => String::new(),
        }
    };
    chart
        .configure_mesh()
        // Labels fall on whole numbers: a power of two each, or a row.
        .x_labels(max_x as usize + 2)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc(if by_depth { "I/Os in flight" } else { "jobs" })
        .y_desc("IOPS")
        .light_line_style(WHITE)
        .draw()?;
    for (column, &mode) in m.modes.iter().enumerate() {
        let value = |i: usize| m.rows.get(i).and_then(|r| r.values.get(column).copied().flatten());
        let points: Vec<(f64, f64)> = xs.iter().enumerate().filter_map(|(i, x)| Some((*x, value(i)?))).collect();
        let style = colour(mode).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(mode.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
        chart.draw_series(points.iter().map(|p| Circle::new(*p, 4, colour(mode).filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Row;

    fn matrix(depths: &[u32]) -> Matrix {
        let rows = depths.iter().map(|d| Row {
            label: format!("job {d}"),
            in_flight: *d,
            values: vec![Some(f64::from(*d) * 400.0), Some(400.0), None, Some(f64::from(*d) * 390.0)],
        });
        Matrix { modes: Mode::ALL.into(), rows: rows.collect() }
    }

    #[test]
    fn every_mode_and_depth_is_in_the_picture() {
        let mut svg = String::new();
        render(&matrix(&[1, 2, 4, 8, 16, 32]), "overwrites", &mut svg).unwrap();
        for mode in Mode::ALL {
            assert!(svg.contains(mode.name()), "{mode}");
        }
        for text in ["overwrites", "IOPS", "I/Os in flight", "\n16\n", "\n32\n"] {
            assert!(svg.contains(text), "{text:?}");
        }
        // Three lines of six points: the fourth mode has no figures.
        assert_eq!(svg.matches("<circle").count(), 18);
    }

    #[test]
    fn equal_depths_are_drawn_side_by_side() {
        assert_eq!(positions(&matrix(&[4, 4, 8])), (vec![0.0, 1.0, 2.0], false));
        let mut svg = String::new();
        render(&matrix(&[4, 4, 8]), "jobs", &mut svg).unwrap();
        assert!(svg.contains("job 8"));
        let dir = tempfile::tempdir().unwrap();
        draw(&matrix(&[]), "nothing", &dir.path().join("a.svg")).unwrap();
        assert!(draw(&matrix(&[1]), "x", &dir.path().join("none/a.svg")).is_err());
    }
}
