//! Charts as SVG.

use std::collections::BTreeSet;
use std::path::Path;

use nori_workload::Result;
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, Color, DrawingArea, EmptyElement, IntoDrawingArea, Palette, Palette99, PathElement,
    Rectangle, SVGBackend, Text, WHITE,
};

use crate::row::{Medians, Metric};

/// Pixels of a bar, of the space between groups, of the names and of the longest bar.
const BAR: i32 = 11;
const GAP: i32 = 12;
const NAMES: i32 = 150;
const LONGEST: i32 = 560;

/// Groups of bars: a group per workload, a bar per engine; 1 is the best of the group.
pub(crate) fn figures(path: &Path, medians: &Medians<'_>) -> Result<()> {
    bars(path, medians, "share of the best, longer is better", |workload, engine| {
        let value = medians.get(workload, engine, Metric::Figure)?;
        Some(if medians.less_is_better(workload) { 1.0 / value } else { value })
    })
}

/// The same for processor time: longer is worse.
pub(crate) fn processor(path: &Path, medians: &Medians<'_>) -> Result<()> {
    let title = "processor time per operation, share of the worst, shorter is better";
    bars(path, medians, title, |workload, engine| medians.get(workload, engine, Metric::Cpu))
}

fn bars(
    path: &Path,
    medians: &Medians<'_>,
    title: &str,
    value: impl Fn(&str, &str) -> Option<f64>,
) -> Result<()> {
    let engines: Vec<_> = medians.engines.iter().map(|engine| engine.name).collect();
    let group = BAR * i32::try_from(engines.len())? + GAP;
    let legend = 44;
    let height = legend + group * i32::try_from(medians.workloads.len())? + GAP;
    let width = NAMES + LONGEST + 90;
    let size = (u32::try_from(width)?, u32::try_from(height)?);
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (NAMES, 4), ("sans-serif", 13)))?;
    for (index, engine) in engines.iter().enumerate() {
        let x = NAMES + i32::try_from(index)? * 105;
        area.draw(&Rectangle::new([(x, 24), (x + 9, 33)], Palette99::pick(index).filled()))?;
        area.draw(&Text::new((*engine).to_owned(), (x + 13, 23), ("sans-serif", 11)))?;
    }
    for (row, workload) in medians.workloads.iter().enumerate() {
        let top = legend + group * i32::try_from(row)?;
        area.draw(&Text::new((*workload).to_owned(), (4, top), ("sans-serif", 12)))?;
        let values: Vec<_> = engines.iter().map(|engine| value(workload, engine)).collect();
        let most = values.iter().flatten().copied().fold(0.0, f64::max);
        for (index, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let y = top + BAR * i32::try_from(index)?;
            bar(&area, (NAMES, y), value / most.max(f64::MIN_POSITIVE), index)?;
        }
    }
    area.present()?;
    Ok(())
}

/// One bar with its share.
fn bar(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    (x, y): (i32, i32),
    share: f64,
    color: usize,
) -> Result<()> {
    let end = x + pixels(share * f64::from(LONGEST));
    area.draw(&Rectangle::new([(x, y), (end, y + BAR - 2)], Palette99::pick(color).filled()))?;
    area.draw(&Text::new(format!("{share:.2}"), (end + 4, y - 1), ("sans-serif", 10)))?;
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "a place on a small picture")]
pub(crate) fn pixels(value: f64) -> i32 {
    value.round() as i32
}

/// Lines over the size of the data, both axes logarithmic: a line per name.
///
/// `lines`: names with points of size in MiB and value.
pub(crate) fn growth(path: &Path, title: &str, lines: &[(String, Vec<(f64, f64)>)]) -> Result<()> {
    let (width, height, margin) = (760_i32, 420_i32, 60_i32);
    let size = (u32::try_from(width)?, u32::try_from(height)?);
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!("{title}, by size of the data; both axes logarithmic");
    area.draw(&Text::new(title, (margin, 10), ("sans-serif", 14)))?;
    let points = || lines.iter().flat_map(|(_, points)| points).filter(|(_, y)| *y > 0.0);
    let span = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points()
            .map(of)
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        (low.ln() - 0.1, (high.ln() - low.ln()).max(0.1) + 0.2)
    };
    let (x_span, y_span) = (span(|point| point.0), span(|point| point.1));
    let place = |&(x, y): &(f64, f64)| {
        let at = |value: f64, (low, wide): (f64, f64)| (value.ln() - low) / wide;
        let (right, up) = (at(x, x_span), at(y, y_span));
        let wide = f64::from(width - 4 * margin);
        let high = f64::from(height - 2 * margin);
        (margin + pixels(right * wide), height - margin - pixels(up * high))
    };
    let corner = (margin, height - margin);
    let axes = [(margin, margin), corner, (width - 3 * margin, height - margin)];
    area.draw(&PathElement::new(axes.to_vec(), BLACK.stroke_width(1)))?;
    let mut named = BTreeSet::new();
    for point in points() {
        let size = format!("{:.0} MiB", point.0);
        if named.insert(size.clone()) {
            let below = (place(point).0 - 20, height - margin + 6);
            area.draw(&Text::new(size, below, ("sans-serif", 10)))?;
        }
    }
    for (index, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index);
        let path: Vec<_> = points.iter().filter(|(_, y)| *y > 0.0).map(place).collect();
        area.draw(&PathElement::new(path.clone(), color.stroke_width(2)))?;
        for (at, (_, y)) in path.iter().zip(points.iter().filter(|(_, y)| *y > 0.0)) {
            let text = Text::new(crate::table::short(*y), (4, -14), ("sans-serif", 10));
            area.draw(&(EmptyElement::at(*at) + text))?;
        }
        let y = margin + 16 * i32::try_from(index)?;
        let x = width - 3 * margin + 6;
        area.draw(&Rectangle::new([(x, y), (x + 9, y + 9)], color.filled()))?;
        area.draw(&Text::new(name.clone(), (x + 13, y - 1), ("sans-serif", 11)))?;
    }
    area.present()?;
    Ok(())
}
