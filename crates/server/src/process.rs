//! What every Prometheus client says about its process, read from /proc when metrics are asked for.
//!
//! Written as text: the recorder's counters are whole numbers, and CPU seconds are not.

use std::fmt::Write as _;
use std::fs;

/// Units of times in /proc per second: `USER_HZ`, which Linux fixes at 100 for every architecture it is built for today.
const TICKS_PER_SECOND: f64 = 100.0;

/// The figures as lines of Prometheus's text format; what /proc does not tell is left out.
pub(crate) fn render() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (stat, status, limits) = (read("/proc/self/stat"), read("/proc/self/status"), read("/proc/self/limits"));
    let open_files = fs::read_dir("/proc/self/fd").ok().map(|entries| count(entries.count()));
    let limit = file_limit(&limits);
    let mut out = String::new();
    for (name, kind, value) in [
        ("process_cpu_seconds_total", "counter", cpu_seconds(&stat)),
        ("process_start_time_seconds", "gauge", start_seconds(&stat, &read("/proc/stat"))),
        ("process_resident_memory_bytes", "gauge", status_bytes(&status, "VmRSS:")),
        ("process_virtual_memory_bytes", "gauge", status_bytes(&status, "VmSize:")),
        ("process_open_fds", "gauge", open_files),
        ("process_max_fds", "gauge", limit),
        ("os_fd_used", "gauge", open_files),
        ("os_fd_limit", "gauge", limit),
    ] {
        if let Some(value) = value {
            let help = crate::help::of(name).map(|text| format!("# HELP {name} {text}\n")).unwrap_or_default();
            writeln!(out, "{help}# TYPE {name} {kind}\n{name} {value}").expect("writing to a string cannot fail");
        }
    }
    out
}

/// Bytes of memory that this process holds; 0 where /proc does not tell.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[expect(clippy::cast_precision_loss, reason = "a process has fewer than 2^53 files")]
fn count(files: usize) -> f64 {
    files as f64
}

/// Field `number` of a process's `stat`, counted from 1 as in proc(5). The second, the program's name, may hold blanks.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(number.checked_sub(3)?)?.trim().parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS_PER_SECOND)
}

/// Since 1970: when the machine started, and the process after it.
fn start_seconds(stat: &str, machine: &str) -> Option<f64> {
    let boot: f64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + stat_field(stat, 22)? / TICKS_PER_SECOND)
}

/// A line of a process's `status` that tells KiB.
fn status_bytes(status: &str, label: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(label))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

/// The soft limit of open files; none when it is unlimited.
fn file_limit(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_proc_writes_them() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 9 0 1200 4096 10";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(start_seconds(stat, "cpu 1 2\nbtime 1000\n"), Some(1012.0));
        assert_eq!(status_bytes("VmSize:\t 8 kB\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12288.0));
        assert_eq!(
            file_limit("Max open files            1024                 4096                 files\n"),
            Some(1024.0)
        );
        assert_eq!(file_limit("Max open files            unlimited            unlimited            files\n"), None);
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn this_process_is_described() {
        let text = render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the figure is there");
            line.trim().parse().expect("a number")
        };
        assert!(value("process_resident_memory_bytes ") > 1e5);
        assert!(value("process_start_time_seconds ") > 1.6e9);
        assert!(value("process_open_fds ") >= 3.0);
    }
}
