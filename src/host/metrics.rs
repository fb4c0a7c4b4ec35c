//! CPU, memory and disk of the host, from `/proc` and `statvfs`. What cannot be read counts as 0: metrics
//! never fail a heartbeat.

use std::fs;
use std::path::{Path, PathBuf};

/// One measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// 0–100 over all cores, since the last sample (the first one: since boot).
    pub cpu_percent: f32,
    /// Memory that is not available to new processes.
    pub mem_used_bytes: u64,
    /// Memory.
    pub mem_total_bytes: u64,
    /// Of the file system that holds the path.
    pub disk_used_bytes: u64,
    /// Of the file system that holds the path.
    pub disk_total_bytes: u64,
}

/// Measures the host.
#[derive(Debug)]
pub struct HostMetrics {
    path: PathBuf,
    cpu: CpuTicks,
}

/// Ticks since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CpuTicks {
    busy: u64,
    total: u64,
}

impl HostMetrics {
    /// For the file system that holds `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), cpu: CpuTicks::default() }
    }

    /// Measures now.
    pub fn sample(&mut self) -> Sample {
        let cpu = parse_stat(&read("/proc/stat")).unwrap_or_default();
        let cpu_percent = percent(self.cpu, cpu);
        self.cpu = cpu;
        let (mem_used_bytes, mem_total_bytes) =
            parse_meminfo(&read("/proc/meminfo")).unwrap_or_default();
        let (disk_used_bytes, disk_total_bytes) = disk(&self.path);
        Sample { cpu_percent, mem_used_bytes, mem_total_bytes, disk_used_bytes, disk_total_bytes }
    }
}

/// The host's name; `unknown` where the kernel does not tell.
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// The processor's family in Go's words, which the wire uses.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal …; guest time is part of
/// user time already.
fn parse_stat(text: &str) -> Option<CpuTicks> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        fields.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let total = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
    Some(CpuTicks { busy: total - idle, total })
}

fn percent(before: CpuTicks, now: CpuTicks) -> f32 {
    let total = now.total.saturating_sub(before.total);
    if total == 0 {
        return 0.0;
    }
    let busy = now.busy.saturating_sub(before.busy).min(total);
    #[expect(clippy::cast_precision_loss, reason = "a percentage needs few digits")]
    let percent = busy as f32 / total as f32 * 100.0;
    percent
}

/// Used and total bytes.
fn parse_meminfo(text: &str) -> Option<(u64, u64)> {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    let total = kib("MemTotal:")?;
    let available = kib("MemAvailable:").or_else(|| kib("MemFree:"))?;
    Some((total.saturating_sub(available) * 1024, total * 1024))
}

/// Used and total bytes.
fn disk(path: &Path) -> (u64, u64) {
    rustix::fs::statvfs(path).map_or((0, 0), |fs| {
        let total = fs.f_blocks.saturating_mul(fs.f_frsize);
        let free = fs.f_bfree.saturating_mul(fs.f_frsize);
        (total.saturating_sub(free), total)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_counts_what_is_not_idle() {
        let before = parse_stat("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1").unwrap();
        let now = parse_stat("cpu  150 0 150 850 50 0 0 0 0 0\n").unwrap();
        assert!((percent(before, now) - 50.0).abs() < 0.01);
        assert!(percent(now, now).abs() < f32::EPSILON);
        assert!(percent(now, before).abs() < f32::EPSILON, "counters that go back");
        assert_eq!(parse_stat("intr 1"), None);
    }

    #[test]
    fn memory_is_what_is_not_available() {
        let text = "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\n";
        assert_eq!(parse_meminfo(text), Some((600 * 1024, 1000 * 1024)));
        assert_eq!(
            parse_meminfo("MemTotal: 1000 kB\nMemFree: 100 kB\n"),
            Some((900 << 10, 1000 << 10))
        );
        assert_eq!(parse_meminfo(""), None);
    }

    #[test]
    fn this_host_has_memory_and_a_disk() {
        let sample = HostMetrics::new(Path::new("/")).sample();
        assert!(sample.mem_total_bytes > sample.mem_used_bytes && sample.mem_used_bytes > 0);
        assert!(sample.disk_total_bytes >= sample.disk_used_bytes && sample.disk_total_bytes > 0);
        assert!((0.0..=100.0).contains(&sample.cpu_percent));
        assert!(!hostname().is_empty());
    }
}
