//! How much memory the process may use: that of the machine, or what its control group grants.

use std::path::Path;
use std::sync::OnceLock;

/// Bytes that the process may use; looked up once. `u64::MAX` if nothing says so.
pub(crate) fn memory_limit() -> u64 {
    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let physical = physical(&read(Path::new("/proc/meminfo")));
        let files = limit_files(&read(Path::new("/proc/self/cgroup")));
        let limits = files.iter().map(|file| granted(&read(Path::new(file)), physical));
        limits.min().unwrap_or(physical)
    })
}

/// The smaller of a limit, as the kernel writes it, and the memory of the machine. Text that is no number is no limit.
fn granted(limit: &str, physical: u64) -> u64 {
    limit.trim().parse().map_or(physical, |limit: u64| limit.min(physical))
}

/// Memory of the machine, from `/proc/meminfo`.
fn physical(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(u64::MAX, |kib: u64| kib.saturating_mul(1024))
}

/// Files with the limits of the control groups that `/proc/self/cgroup` names, and of those around them, of either version.
fn limit_files(cgroup: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let groups = Path::new(path).ancestors().filter_map(Path::to_str);
        files.extend(groups.map(|group| format!("{root}{}/{name}", group.trim_end_matches('/'))));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_if_it_is_below_the_memory_of_the_machine() {
        assert_eq!(granted("67108864\n", 1 << 34), 64 << 20, "version 1 or 2");
        assert_eq!(granted("max\n", 1 << 34), 1 << 34, "version 2 without a limit");
        assert_eq!(granted("9223372036854771712\n", 1 << 34), 1 << 34, "version 1 without a limit");
        for odd in ["", "-1", "99999999999999999999999", "many"] {
            assert_eq!(granted(odd, 7), 7, "{odd}");
        }
    }

    #[test]
    fn the_memory_of_the_machine_is_what_the_kernel_says() {
        assert_eq!(physical("MemTotal:       16318480 kB\nMemFree: 1 kB\n"), 16_318_480 << 10);
        assert_eq!(physical(""), u64::MAX);
    }

    #[test]
    fn every_group_around_the_process_is_asked() {
        let v2 = [
            "/sys/fs/cgroup/a/b/memory.max",
            "/sys/fs/cgroup/a/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(limit_files("0::/a/b\n"), v2);
        let v1 = [
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        assert_eq!(limit_files("12:pids:/x\n4:cpu,memory:/a\n"), v1);
        assert!(limit_files("nonsense\n").is_empty());
    }

    #[test]
    fn this_process_may_use_some_memory() {
        assert!(memory_limit() >= 16 << 20);
    }
}
