//! What the machine has and how much of it is free, read once a second and kept, because reading
//! it may block and creating a sandbox must not.

use api::Bytes;
use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The latest reading.
pub(crate) struct Facts {
    data_dir: PathBuf,
    pub(crate) processors: u32,
    pub(crate) kernel: String,
    memory_total: AtomicU64,
    memory_available: AtomicU64,
    disk_total: AtomicU64,
    disk_free: AtomicU64,
    last_error: Mutex<String>,
}

impl Facts {
    /// Reads everything for the first time. Blocks.
    pub(crate) fn new(data_dir: &Path) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let facts = Self {
            data_dir: data_dir.to_owned(),
            processors,
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            memory_total: AtomicU64::new(0),
            memory_available: AtomicU64::new(0),
            disk_total: AtomicU64::new(0),
            disk_free: AtomicU64::new(0),
            last_error: Mutex::default(),
        };
        facts.refresh();
        facts
    }

    /// Reads what changes. Blocks. A reading that fails keeps the one before.
    pub(crate) fn refresh(&self) {
        match std::fs::read_to_string("/proc/meminfo") {
            Ok(text) => {
                for (name, value) in [
                    ("MemTotal", &self.memory_total),
                    ("MemAvailable", &self.memory_available),
                ] {
                    if let Some(bytes) = meminfo_field(&text, name) {
                        value.store(bytes, Relaxed);
                    }
                }
            }
            Err(error) => self.report(format!("cannot read /proc/meminfo: {error}")),
        }
        match rustix::fs::statvfs(&self.data_dir) {
            Ok(disk) => {
                self.disk_total
                    .store(disk.f_blocks.saturating_mul(disk.f_frsize), Relaxed);
                self.disk_free
                    .store(disk.f_bavail.saturating_mul(disk.f_frsize), Relaxed);
            }
            Err(error) => self.report(format!(
                "cannot read the free space of {}: {error}",
                self.data_dir.display()
            )),
        }
    }

    /// Logs an error when it is not the one that was logged last.
    fn report(&self, error: String) {
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if *last != error {
            tracing::warn!("{error}");
            *last = error;
        }
    }

    pub(crate) fn memory_total(&self) -> Bytes {
        Bytes(self.memory_total.load(Relaxed))
    }

    pub(crate) fn memory_available(&self) -> Bytes {
        Bytes(self.memory_available.load(Relaxed))
    }

    pub(crate) fn disk_total(&self) -> Bytes {
        Bytes(self.disk_total.load(Relaxed))
    }

    pub(crate) fn disk_free(&self) -> Bytes {
        Bytes(self.disk_free.load(Relaxed))
    }
}

/// One line of `/proc/meminfo`, in bytes.
fn meminfo_field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let facts = Facts::new(Path::new("/tmp"));
        assert!(facts.memory_total() > facts.memory_available());
        assert!(facts.memory_available() > Bytes(0));
        assert!(facts.disk_total() >= facts.disk_free() && facts.disk_total() > Bytes(0));
        assert!(facts.processors > 0 && !facts.kernel.is_empty());
    }

    #[test]
    fn a_field_is_not_mistaken_for_a_longer_one() {
        let text = "MemTotalX:  1 kB\nMemTotal:  2 kB\n";
        assert_eq!(meminfo_field(text, "MemTotal"), Some(2048));
        assert_eq!(meminfo_field("MemTotal: no", "MemTotal"), None);
    }
}
