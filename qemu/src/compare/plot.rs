// SPDX-License-Identifier: GPL-2.0-only
//! The picture: for each disk, IOPS of each job, a bar for each that was measured, with the rounds' range. The scale is logarithmic,
//! so that equal ratios are equal lengths.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::samples::{Column, Point};
use super::table::delay_name;
use crate::linux_guest::fio::Place;
use crate::plan::Mode;

/// Height of a disk's part.
const HEIGHT: u32 = 420;

fn colour(column: Column) -> RGBColor {
    match column {
        Column::Ours(Mode::Raw) => RGBColor(170, 170, 170),
        Column::Ours(Mode::Exclusive) => RGBColor(200, 60, 40),
        Column::Ours(Mode::IDataSem) => RGBColor(40, 110, 200),
        Column::Ours(Mode::InFlight) => RGBColor(20, 150, 90),
        Column::Linux(Place::Raw) => RGBColor(110, 110, 110),
        Column::Linux(Place::Ext4) => RGBColor(240, 150, 20),
        Column::Linux(Place::Xfs) => RGBColor(150, 90, 190),
    }
}

/// Draws an SVG file.
///
/// # Errors
///
/// The file cannot be written.
pub fn draw(points: &[Point], columns: &[Column], title: &str, path: &Path) -> Result<()> {
    let mut svg = String::new();
    render(points, columns, title, &mut svg).map_err(|e| anyhow!("cannot draw: {e}"))?;
    std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn render(points: &[Point], columns: &[Column], title: &str, svg: &mut String) -> Drawn {
    let mut delays: Vec<Duration> = points.iter().map(|p| p.delay).collect();
    delays.dedup();
    let most = delays.iter().map(|d| points.iter().filter(|p| p.delay == *d).count()).max().unwrap_or(1);
    let width = (120 + most * (columns.len() * 12 + 24)).max(760) as u32;
    let root = SVGBackend::with_string(svg, (width, 40 + HEIGHT * delays.len().max(1) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let body = root.titled(title, ("sans-serif", 20))?;
    for (area, delay) in body.split_evenly((delays.len().max(1), 1)).iter().zip(&delays) {
        let of_disk: Vec<&Point> = points.iter().filter(|p| p.delay == *delay).collect();
        panel(area, &of_disk, columns, &delay_name(*delay))?;
    }
    root.present()?;
    Ok(())
}

/// One disk.
fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    points: &[&Point],
    columns: &[Column],
    caption: &str,
) -> Result<(), Box<dyn std::error::Error>>
where
    DB::ErrorType: 'static,
{
    let all = || points.iter().flat_map(|p| columns.iter().filter_map(|c| p.range(*c)));
    let low = all().map(|r| r.0).fold(f64::MAX, f64::min).clamp(1.0, 1e9) / 1.5;
    let high = all().map(|r| r.1).fold(10.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        // Room on the right for what the colours mean.
        .build_cartesian_2d(-0.5..points.len() as f64 + 0.5, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .y_desc("IOPS")
        .light_line_style(WHITE)
        .draw()?;
    // A line for each part of a job's name: side by side they would touch.
    let (left, top) = area.get_base_pixel();
    for (i, point) in points.iter().enumerate() {
        let (x, y) = chart.plotting_area().map_coordinate(&(i as f64, low));
        for (line, part) in (0..).zip(point.label.split(", ")) {
            let style = ("sans-serif", 12).with_color(BLACK).with_anchor::<RGBColor>(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(part, (x - left, y - top + 8 + 14 * line), style.into_text_style(area)))?;
        }
    }
    let bar = 0.84 / columns.len().max(1) as f64;
    for (place, &column) in columns.iter().enumerate() {
        let left = |i: usize| i as f64 - 0.42 + place as f64 * bar;
        let bars = points.iter().enumerate().filter_map(|(i, p)| {
            let style = colour(column).filled();
            Some(Rectangle::new([(left(i), low), (left(i) + bar * 0.9, p.median(column)?)], style))
        });
        chart
            .draw_series(bars)?
            .label(column.to_string())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(column).filled()));
        let whiskers = points.iter().enumerate().filter_map(|(i, p)| {
            let (a, b) = p.range(column)?;
            let x = left(i) + bar * 0.45;
            Some(PathElement::new([(x, a), (x, b)], BLACK))
        });
        chart.draw_series(whiskers)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::point;
    use super::super::table::columns;
    use super::*;

    #[test]
    fn every_disk_job_and_column_is_in_the_picture() {
        let rounds = [[400.0, 300.0, 60.0, 30.0], [420.0, 330.0, 60.0, 30.0]];
        let points = [point("job a", 0, &rounds), point("job b", 0, &rounds), point("job a", 2, &[])];
        let columns = columns(&Mode::ALL);
        let mut svg = String::new();
        render(&points, &columns, "ours and Linux", &mut svg).unwrap();
        for text in [
            "ours and Linux",
            "disk without delay",
            "disk with 2ms",
            "job a",
            "job b",
            "IOPS",
            "Linux XFS",
            "in_flight",
        ] {
            assert!(svg.contains(text), "{text:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        draw(&[], &columns, "nothing", &dir.path().join("a.svg")).unwrap();
        assert!(draw(&points, &columns, "x", &dir.path().join("none/a.svg")).is_err());
    }
}
