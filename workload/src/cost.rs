//! What a run took of the machine, as the kernel counts it for this process.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::real;

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds of processor time, of the program and of the kernel for it, background work included.
    pub cpu_seconds: f64,
    /// Bytes that were sent to the disk or will be, as `/proc/self/io` counts pages that were made dirty.
    pub written_bytes: u64,
    /// Bytes of the files in the end.
    pub disk_bytes: u64,
    /// Largest resident memory of the process, from its start.
    pub peak_rss_bytes: u64,
}

impl Cost {
    /// What this process took so far. Zero what the system does not tell.
    pub(crate) fn so_far() -> Self {
        Self {
            cpu_seconds: cpu_seconds(),
            written_bytes: line("/proc/self/io", "write_bytes:"),
            disk_bytes: 0,
            peak_rss_bytes: line("/proc/self/status", "VmHWM:") << 10,
        }
    }

    /// What it took since `begun`, with the size of the files of `dir`.
    pub(crate) fn since(begun: Self, dir: &Path) -> Self {
        let now = Self::so_far();
        Self {
            cpu_seconds: now.cpu_seconds - begun.cpu_seconds,
            written_bytes: now.written_bytes.saturating_sub(begun.written_bytes),
            disk_bytes: crate::place::size(dir),
            peak_rss_bytes: now.peak_rss_bytes,
        }
    }
}

/// The first number behind `name` in a file of lines.
fn line(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    found.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn cpu_seconds() -> f64 {
    /// Ticks of the kernel's interface: 100 a second on every Linux.
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold blanks; what follows it does not.
    let Some((_, fields)) = text.rsplit_once(')') else { return 0.0 };
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|field| field.parse().ok()).map(real).sum::<f64>() / TICKS
}

/// Waits until the background work of this process has nothing left to do: until it took no more than a hundredth of a second of
/// processor time within half a second. For engines that do not say when they are done. Blocks the thread.
pub fn wait_until_idle() {
    let mut before = cpu_seconds();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = cpu_seconds();
        if now - before <= 0.011 {
            return;
        }
        before = now;
    }
}
