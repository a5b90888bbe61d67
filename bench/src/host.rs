//! What the machine is, and what processes on it use.

use anyhow::{Context, Result};
use serde::Serialize;
use std::{fmt, fs};

/// The machine, as far as figures depend on it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let field = |path: &str, name: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let kibibytes: u64 = field("/proc/meminfo", "MemTotal")
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kibibytes >> 20,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}, {} cores, {} GiB, Linux {}",
            self.processor, self.cores, self.memory_gib, self.kernel
        )
    }
}

/// Sums of `/proc/PID/smaps_rollup` fields, in MiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) resident: f64,
    /// Resident and shared with nobody.
    pub(crate) unshared: f64,
}

/// What one process uses.
pub(crate) fn memory_of(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let sum = |names: &[&str]| {
        text.lines()
            .filter(|line| names.iter().any(|name| line.starts_with(name)))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
            .sum::<f64>()
            / 1024.0
    };
    Ok(Memory {
        resident: sum(&["Rss:"]),
        unshared: sum(&["Private_Clean:", "Private_Dirty:"]),
    })
}

/// What a machine's memory takes that the process shares with nobody, in MiB: the mappings of
/// a file whose name is `memory`.
pub(crate) fn guest_memory_of(pid: u32) -> Result<Option<f64>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let (mut sum, mut inside, mut found) = (0.0, false, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = words.last().is_some_and(|name| name.ends_with("/memory"));
            found |= inside;
        } else if inside && (first == "Private_Clean:" || first == "Private_Dirty:") {
            sum += words
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0.0);
        }
    }
    Ok(found.then_some(sum / 1024.0))
}

/// All processes whose control group's path has a component that starts with `prefix`.
pub(crate) fn processes_in_group(prefix: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|text| text.contains(&format!("/{prefix}")))
        })
        .collect()
}
