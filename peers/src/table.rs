//! Tables in Markdown.

use crate::engines::Known;
use crate::row::{Medians, Metric};

/// A row of texts.
pub(crate) fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// The line below a header: a name, then numbers.
pub(crate) fn rule(columns: usize) -> String {
    format!("|---|{}\n", "---:|".repeat(columns.saturating_sub(1)))
}

/// A number of any size, three or so digits of it.
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value >= 9.95e6 => format!("{:.0}M", value / 1e6),
        value if value >= 1e6 => format!("{:.2}M", value / 1e6),
        value if value >= 9.95e3 => format!("{:.0}k", value / 1e3),
        value if value >= 1e3 => format!("{:.1}k", value / 1e3),
        value if value >= 9.95 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

/// Every engine's figure, and how much better ours is than the best of the other LSM trees.
pub(crate) fn figures(medians: &Medians<'_>) -> String {
    let mut text = header(medians, &["ours / best LSM peer"]);
    for workload in &medians.workloads {
        let less = medians.less_is_better(workload);
        let figure = |engine: &Known| medians.get(workload, engine.name, Metric::Figure);
        let peers = medians.engines.iter().filter(|engine| engine.lsm_peer);
        let better = |a: f64, b: f64| if less { a.min(b) } else { a.max(b) };
        let best = peers.filter_map(figure).reduce(better);
        let mut cells = vec![(*workload).to_owned()];
        for engine in &medians.engines {
            let text = figure(engine).map_or_else(|| "–".to_owned(), |value| unit(value, less));
            let bold = engine.lsm_peer && figure(engine).is_some() && figure(engine) == best;
            cells.push(if bold { format!("**{text}**") } else { text });
        }
        let ours = medians.get(workload, "ours", Metric::Figure);
        let ratio = |(ours, best): (f64, f64)| if less { best / ours } else { ours / best };
        let ratio = ours.zip(best).map(ratio);
        cells.push(ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")));
        text.push_str(&line(&cells));
    }
    text
}

fn unit(value: f64, seconds: bool) -> String {
    if seconds { format!("{value:.3} s") } else { short(value) }
}

/// Every engine's value of a metric, for the workloads where it makes sense.
pub(crate) fn metric(medians: &Medians<'_>, metric: Metric) -> String {
    let mut text = header(medians, &[]);
    for workload in &medians.workloads {
        let value = |engine: &Known| medians.get(workload, engine.name, metric);
        let values: Vec<_> = medians.engines.iter().map(value).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let mut cells = vec![(*workload).to_owned()];
        let shown =
            |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| metric.shown(value));
        cells.extend(values.into_iter().map(shown));
        text.push_str(&line(&cells));
    }
    text
}

fn header(medians: &Medians<'_>, more: &[&str]) -> String {
    let mut cells = vec!["workload"];
    cells.extend(medians.engines.iter().map(|engine| engine.name));
    cells.extend(more);
    let cells: Vec<_> = cells.into_iter().map(str::to_owned).collect();
    line(&cells) + &rule(cells.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0123, 1.5, 123.4, 1234.0, 123_456.0, 1_234_567.0].map(short);
        assert_eq!(shown, ["0.012", "1.50", "123", "1.2k", "123k", "1.23M"]);
    }
}
