//! What a person reads: tables, sizes and speeds.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use nori_lsm::Stats;
use nori_workload::Measured;

/// Operations of one kind, with the time that each took, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) elapsed: Duration,
    pub(crate) nanos: Histogram<u64>,
}

impl Phase {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        per_second(self.nanos.len(), self.elapsed)
    }

    /// Time within which that share of the operations was done.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanos.value_at_quantile(share))
    }
}

/// A line per phase.
pub(crate) fn phases(phases: &[Phase]) -> String {
    let mut table = plain(&["phase", "operations", "ops/s", "p50", "p99", "p99.9", "max"]);
    for phase in phases {
        let time = |share| short(phase.quantile(share));
        table.add_row(row([
            phase.name.clone(),
            grouped(phase.nanos.len()),
            grouped(whole(phase.rate())),
            time(0.5),
            time(0.99),
            time(0.999),
            time(1.0),
        ]));
    }
    table.to_string()
}

/// A line per workload and kind of operation.
pub(crate) fn measured(rows: &[Measured]) -> String {
    let header = [
        "workload",
        "figure",
        "kind",
        "operations",
        "p50",
        "p99",
        "p99.9",
        "max",
        "CPU/op",
        "written",
    ];
    let mut table = plain(&header);
    let time = |micros: f64| short(Duration::from_secs_f64(micros / 1e6));
    for measured in rows {
        for (index, kind) in measured.kinds.iter().enumerate() {
            let first = |text: String| if index == 0 { text } else { String::new() };
            let each = measured.cost.cpu_seconds / real(measured.operations.max(1));
            table.add_row(row([
                first(measured.workload.clone()),
                first(figure(measured)),
                kind.kind.clone(),
                grouped(kind.count),
                time(kind.p50_us),
                time(kind.p99_us),
                time(kind.p999_us),
                time(kind.max_us),
                first(time(each * 1e6)),
                first(size(measured.cost.written_bytes)),
            ]));
        }
    }
    table.to_string()
}

/// The figure of a workload with its unit.
pub(crate) fn figure(measured: &Measured) -> String {
    if measured.less_is_better {
        return short(Duration::from_secs_f64(measured.figure));
    }
    format!("{}/s", grouped(whole(measured.figure)))
}

/// A line per level that holds data.
pub(crate) fn levels(stats: &Stats) -> String {
    let mut table = plain(&["level", "slots", "runs", "size"]);
    for level in stats.levels.iter().filter(|level| level.runs > 0) {
        table.add_row(row([
            level.level.to_string(),
            level.slots.to_string(),
            level.runs.to_string(),
            size(level.bytes),
        ]));
    }
    table.to_string()
}

/// Names and values, a line each.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        facts.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

/// `count` per second; 0 if it took no time.
pub(crate) fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { real(count) / seconds } else { 0.0 }
}

/// Digits in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that suits them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = UNITS.iter().find(|(bits, _)| bytes >> bits > 0);
    fitting.map_or_else(
        || format!("{bytes} B"),
        |(bits, unit)| format!("{:.1} {unit}", real(bytes) / real(1 << bits)),
    )
}

/// A number as a float; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
pub(crate) fn real(number: u64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and shown roughly"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if time < Duration::from_micros(1) {
        return format!("{} ns", time.as_nanos());
    }
    if time < Duration::from_millis(1) {
        return format!("{:.1} us", seconds * 1e6);
    }
    if time < Duration::from_secs(1) {
        return format!("{:.1} ms", seconds * 1e3);
    }
    format!("{seconds:.2} s")
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

/// A name, then numbers.
fn row<const N: usize>(cells: [String; N]) -> Vec<Cell> {
    let align = |index| if index == 0 { CellAlignment::Left } else { CellAlignment::Right };
    let cells = cells.into_iter().enumerate();
    cells.map(|(index, text)| Cell::new(text).set_alignment(align(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_so_that_a_person_can_compare_them() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1000, 1_234_567].map(grouped));
        assert_eq!([size(12), size(1536), size(5 << 30)], ["12 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!(short(Duration::from_nanos(1500)), "1.5 us");
        assert_eq!(short(Duration::from_millis(2500)), "2.50 s");
    }
}
