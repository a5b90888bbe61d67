//! What the sandbox uses, as seen from inside. The node has its own, better figures.

use crate::http::reply::Failure;
use api::envd::files::GuestMetrics;
use std::{cell::Cell, time::Instant};

/// Whose processor time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// That of all processes that are visible.
    Processes,
    /// The machine's, the kernel's own included.
    Machine,
}

/// Processor time at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuSample {
    at: Instant,
    scope: Scope,
    /// Seconds used, by what was reaped too.
    used: f64,
}

impl CpuSample {
    /// Now.
    pub fn take(scope: Scope) -> Self {
        Self {
            at: Instant::now(),
            scope,
            used: match scope {
                Scope::Processes => processor_seconds(),
                Scope::Machine => machine_seconds(),
            },
        }
    }
}

/// Measures; processor use is the mean since the last call.
pub fn measure(last: &Cell<CpuSample>) -> Result<GuestMetrics, Failure> {
    let failed = |error: rustix::io::Errno| Failure::internal(format!("cannot measure: {error}"));
    let sample = CpuSample::take(last.get().scope);
    let before = last.replace(sample);
    let elapsed = sample.at.duration_since(before.at).as_secs_f64();
    let percent = if elapsed > 0.0 {
        (sample.used - before.used) / elapsed * 100.0
    } else {
        0.0
    };
    let disk = rustix::fs::statvfs("/").map_err(failed)?;
    let (mem_total, mem_used, mem_cache) = memory();
    Ok(GuestMetrics {
        ts: jiff::Timestamp::now().as_second(),
        cpu_count: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        cpu_used_pct: (percent.max(0.0) * 100.0).round() / 100.0,
        mem_total,
        mem_used,
        mem_cache,
        disk_used: (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        disk_total: disk.f_blocks * disk.f_frsize,
    })
}

/// The sum over all processes that are visible: those of the sandbox.
fn processor_seconds() -> f64 {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0.0;
    };
    let pids = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(name)
    });
    let ticks: u64 = pids
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter_map(|stat| ticks(&stat))
        .sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// What `/proc/stat` says, without time that was idle or stolen.
fn machine_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&stat) as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields = line.unwrap_or_default().split_ascii_whitespace();
    // user nice system idle iowait irq softirq steal …
    let busy = fields.take(7).enumerate();
    busy.filter(|(at, _)| !matches!(at, 3 | 4))
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .sum()
}

/// Fields 14 to 17 of `/proc/PID/stat`: a process's own ticks and those of children it reaped.
fn ticks(stat: &str) -> Option<u64> {
    // The name may hold anything, even parentheses.
    let rest = stat.rsplit_once(')')?.1;
    Some(
        rest.split_ascii_whitespace()
            .skip(11)
            .take(4)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum(),
    )
}

/// Total, used, cache: from the control group if it is visible, else from `/proc/meminfo`.
fn memory() -> (u64, u64, u64) {
    let number = |path: &str| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_ascii_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
            .map(|kibibytes| kibibytes << 10)
    };
    let machine = field("MemTotal").unwrap_or(0);
    for (limit, usage, stat, cache) in [
        ("memory.max", "memory.current", "memory.stat", "file "),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "cache ",
        ),
    ] {
        let folder = "/sys/fs/cgroup";
        let limit = number(&format!("{folder}/{limit}"));
        if let (Some(limit), Some(usage)) = (limit, number(&format!("{folder}/{usage}"))) {
            let stat = std::fs::read_to_string(format!("{folder}/{stat}")).unwrap_or_default();
            let cache = stat
                .lines()
                .find_map(|line| line.strip_prefix(cache)?.parse().ok());
            let cache = cache.unwrap_or(0u64).min(usage);
            return (limit.min(machine), usage - cache, cache);
        }
    }
    let free = field("MemFree").unwrap_or(0);
    let cache = field("Cached").unwrap_or(0) + field("Buffers").unwrap_or(0);
    (machine, machine.saturating_sub(free + cache), cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_confuse() {
        let stat = "7 (a) b) 1 2) S 1 7 7 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(110));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn idle_time_is_not_counted() {
        let stat = "cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), 31);
        assert_eq!(busy_ticks(""), 0);
    }

    #[test]
    fn figures_are_plausible() {
        let metrics = measure(&Cell::new(CpuSample::take(Scope::Processes))).unwrap();
        assert!(metrics.cpu_count >= 1 && metrics.mem_total > 0 && metrics.disk_total > 0);
        assert!(metrics.mem_used <= metrics.mem_total);
        assert!(metrics.disk_used <= metrics.disk_total);
    }
}
