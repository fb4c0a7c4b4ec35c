//! CPU, memory and disk of this machine, read from `/proc` when somebody asks; nothing runs in between.
//!
//! In a container or a jail any of the files may be missing or odd. Whatever cannot be read is 0 (or empty):
//! a heartbeat must not fail because of a number.

use std::fs;
use std::path::{Path, PathBuf};

/// One look at the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HostMetrics {
    /// Busy share of all processors since the last look, 0–100.
    pub cpu_percent: f32,
    /// Memory in use (total − available).
    pub mem_used_bytes: u64,
    /// Memory in all.
    pub mem_total_bytes: u64,
    /// In use on the file system of the sampled path.
    pub disk_used_bytes: u64,
    /// Its size.
    pub disk_total_bytes: u64,
}

/// Takes [`HostMetrics`], remembering the processors' counters from one look to the next.
#[derive(Debug)]
pub struct Sampler {
    proc_dir: PathBuf,
    disk_path: PathBuf,
    last: Option<CpuTimes>,
}

/// Ticks since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

impl Sampler {
    /// Samples the machine and the file system that `disk_path` lies on. The first look covers the time until then.
    pub fn new(disk_path: &Path) -> Self {
        Self::with_proc(Path::new("/proc"), disk_path)
    }

    fn with_proc(proc_dir: &Path, disk_path: &Path) -> Self {
        let mut sampler =
            Self { proc_dir: proc_dir.to_owned(), disk_path: disk_path.to_owned(), last: None };
        sampler.last = sampler.cpu_times();
        sampler
    }

    /// Looks now.
    pub fn sample(&mut self) -> HostMetrics {
        let now = self.cpu_times();
        let cpu_percent = match (self.last, now) {
            (Some(last), Some(now)) => busy_percent(last, now),
            _ => 0.0,
        };
        self.last = now.or(self.last);
        let (mem_used_bytes, mem_total_bytes) = memory(&self.read("meminfo")).unwrap_or_default();
        let (disk_used_bytes, disk_total_bytes) = disk(&self.disk_path);
        HostMetrics {
            cpu_percent,
            mem_used_bytes,
            mem_total_bytes,
            disk_used_bytes,
            disk_total_bytes,
        }
    }

    fn cpu_times(&self) -> Option<CpuTimes> {
        cpu_times(&self.read("stat"))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.proc_dir.join(name)).unwrap_or_default()
    }
}

/// The first line: `cpu user nice system idle iowait irq softirq steal guest guest_nice`. Guest time is
/// already part of user and nice.
fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        fields.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let total = ticks.iter().fold(0u64, |sum, t| sum.saturating_add(*t));
    let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
    Some(CpuTimes { busy: total.saturating_sub(idle), total })
}

/// Some kernels let iowait go back a little, so no difference is taken for granted.
fn busy_percent(last: CpuTimes, now: CpuTimes) -> f32 {
    let total = now.total.saturating_sub(last.total);
    let busy = now.busy.saturating_sub(last.busy).min(total);
    if total == 0 {
        return 0.0;
    }
    let percent = busy as f64 * 100.0 / total as f64;
    percent as f32
}

/// Bytes in use and in all. Without `MemAvailable` (before Linux 3.14) what is free or cached counts as available.
fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    let available = field("MemAvailable").or_else(|| {
        let cached = field("Buffers").unwrap_or(0).saturating_add(field("Cached").unwrap_or(0));
        Some(field("MemFree")?.saturating_add(cached))
    })?;
    Some((total.saturating_sub(available), total))
}

/// Bytes in use and in all on the file system of `path`, or of the nearest directory above it that exists.
fn disk(path: &Path) -> (u64, u64) {
    path.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok()).map_or((0, 0), |system| {
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        (bytes(system.f_blocks.saturating_sub(system.f_bfree)), bytes(system.f_blocks))
    })
}

/// The machine's name; empty if it has none that is text.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned()
}

/// The architecture this program was built for, in Go's names.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 10 50 800 40 0 0 0 7 0\ncpu0 1 2 3\n";

    #[test]
    fn busy_is_what_is_neither_idle_nor_waiting() {
        let last = cpu_times(STAT).unwrap();
        assert_eq!(last, CpuTimes { busy: 160, total: 1_000 });
        let now = CpuTimes { busy: 185, total: 1_100 };
        assert!((busy_percent(last, now) - 25.0).abs() < 0.001);
        assert_eq!(busy_percent(now, now), 0.0, "no time has passed");
        assert_eq!(busy_percent(now, last), 0.0, "counters that went back");
    }

    #[test]
    fn memory_with_and_without_the_kernels_estimate() {
        let new = "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:   600 kB\nCached: 300 kB\n";
        assert_eq!(memory(new), Some((400 * 1024, 1000 * 1024)));
        let old = "MemTotal:  1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 300 kB\n";
        assert_eq!(memory(old), Some((550 * 1024, 1000 * 1024)));
        assert_eq!(memory("MemTotal: many kB\n"), None);
    }

    #[test]
    fn this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let mut sampler = Sampler::new(&dir.path().join("not/made/yet"));
        let seen = sampler.sample();
        assert!((0.0..=100.0).contains(&seen.cpu_percent), "{seen:?}");
        assert!(0 < seen.mem_used_bytes && seen.mem_used_bytes < seen.mem_total_bytes, "{seen:?}");
        assert!(seen.disk_used_bytes <= seen.disk_total_bytes && seen.disk_total_bytes > 0);
        assert!(!hostname().is_empty());
        assert!(arch().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }

    #[test]
    fn without_proc_everything_but_the_disk_is_zero() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Sampler::with_proc(&dir.path().join("proc"), dir.path()).sample();
        assert_eq!((seen.cpu_percent, seen.mem_used_bytes, seen.mem_total_bytes), (0.0, 0, 0));
        assert!(seen.disk_total_bytes > 0);
        fs::write(dir.path().join("stat"), "cpu  1 x\n").unwrap();
        fs::write(dir.path().join("meminfo"), "\u{0}").unwrap();
        let odd = Sampler::with_proc(dir.path(), dir.path()).sample();
        assert_eq!((odd.cpu_percent, odd.mem_total_bytes), (0.0, 0));
    }

    #[test]
    fn changes_between_two_looks() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stat"), STAT).unwrap();
        let mut sampler = Sampler::with_proc(dir.path(), dir.path());
        fs::write(dir.path().join("stat"), "cpu  175 10 50 825 40 0 0 0 0 0\n").unwrap();
        assert!((sampler.sample().cpu_percent - 75.0).abs() < 0.001);
        assert_eq!(sampler.sample().cpu_percent, 0.0);
    }
}
