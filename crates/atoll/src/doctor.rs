//! What this machine can do for sandboxes: what the driver and the network find, and what belongs
//! to neither. Nothing is changed.

use api::{Bytes, finding::Finding, finding::FindingStatus};
use rustix::process::{Resource, getrlimit};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What one sandbox of the usual size may use.
const MEMORY_MIN: Bytes = Bytes::mebibytes(512);
/// What the template `base` takes while it is built.
const DISK_MIN: Bytes = Bytes::gibibytes(2);
const OPEN_FILES_MIN: u64 = 4096;

/// Looks at everything; takes a second at most. Needs a Tokio runtime.
pub(crate) async fn examine(data_dir: &Path) -> Vec<Finding> {
    let machine = tokio::task::spawn_blocking(driver::probe::check);
    let (machine, network) = tokio::join!(machine, agent::network::check(&[]));
    let mut findings = machine.unwrap_or_else(|error| {
        vec![Finding::missing(
            "machine",
            format!("the check failed: {error}"),
            "",
        )]
    });
    // This version has no driver that would use them.
    findings.retain(|finding| !matches!(&*finding.name, "qemu" | "firecracker"));
    findings.extend(network);
    findings.extend([
        judge_builder(find_program("mmdebstrap").as_deref()),
        judge_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        judge_disk(data_dir, free_space(data_dir)),
        judge_open_files(getrlimit(Resource::Nofile).maximum),
    ]);
    findings
}

/// Whether sandboxes can run.
pub(crate) fn can_run(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.status != FindingStatus::Missing)
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn judge_builder(program: Option<&Path>) -> Finding {
    match program {
        Some(path) => Finding::ok("mmdebstrap", path.display().to_string()),
        None => Finding::warning(
            "mmdebstrap",
            "not installed; the templates `base` and `debian:` are built with it",
            "install the package mmdebstrap",
        ),
    }
}

fn judge_memory(meminfo: &str) -> Finding {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map(|count| Bytes(count.saturating_mul(1024)));
    match available {
        Some(available) if available >= MEMORY_MIN => {
            Finding::ok("memory", format!("{available} available"))
        }
        Some(available) => Finding::warning(
            "memory",
            format!("{available} available"),
            format!("leave {MEMORY_MIN} free, which one sandbox of the usual size may use"),
        ),
        None => Finding::warning("memory", "what is available cannot be read", "mount /proc"),
    }
}

fn judge_disk(data_dir: &Path, free: Option<u64>) -> Finding {
    let place = data_dir.display();
    match free.map(Bytes) {
        Some(free) if free >= DISK_MIN => Finding::ok("disk", format!("{free} free for {place}")),
        Some(free) => Finding::warning(
            "disk",
            format!("{free} free for {place}"),
            format!("make {DISK_MIN} free, or choose another --data-dir"),
        ),
        None => Finding::warning(
            "disk",
            format!("the free space for {place} cannot be read"),
            "choose another --data-dir",
        ),
    }
}

/// Free space where the data directory is or would be made.
fn free_space(data_dir: &Path) -> Option<u64> {
    let existing = data_dir.ancestors().find(|path| path.exists())?;
    let facts = rustix::fs::statvfs(existing).ok()?;
    facts.f_bavail.checked_mul(facts.f_frsize)
}

fn judge_open_files(most: Option<u64>) -> Finding {
    match most {
        None => Finding::ok("open files", "without limit"),
        Some(most) if most >= OPEN_FILES_MIN => {
            Finding::ok("open files", format!("at most {most}"))
        }
        Some(most) => Finding::warning(
            "open files",
            format!("at most {most}; each sandbox takes several"),
            "raise the hard limit: ulimit -Hn 1048576, or LimitNOFILE= in the unit",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(finding: Finding, status: FindingStatus) {
        assert_eq!(finding.status, status, "{finding:?}");
        assert_eq!(
            finding.remedy.is_empty(),
            status == FindingStatus::Ok,
            "{finding:?}"
        );
    }

    #[test]
    fn each_lack_is_told_with_its_remedy() {
        use FindingStatus::{Ok, Warning};
        check(judge_builder(None), Warning);
        check(judge_builder(Some(Path::new("/usr/bin/mmdebstrap"))), Ok);
        check(
            judge_memory("MemTotal: 9 kB\nMemAvailable:    2 kB\n"),
            Warning,
        );
        check(judge_memory("MemAvailable:  8000000 kB\n"), Ok);
        check(judge_memory(""), Warning);
        check(judge_disk(Path::new("/x"), Some(1)), Warning);
        check(judge_disk(Path::new("/x"), None), Warning);
        check(judge_disk(Path::new("/x"), Some(1 << 40)), Ok);
        check(judge_open_files(Some(1024)), Warning);
        check(judge_open_files(Some(1 << 20)), Ok);
        check(judge_open_files(None), Ok);
    }
}
