//! Facts about this machine, read from the kernel's own files. Nothing is changed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    pub(crate) root: bool,
    pub(crate) architecture: String,
    pub(crate) kernel: String,
    pub(crate) file_systems: BTreeSet<String>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) user_namespaces_max: u64,
    pub(crate) seccomp_actions: String,
    pub(crate) cgroups: Cgroups,
    pub(crate) loop_devices: bool,
    pub(crate) programs: BTreeSet<&'static str>,
    pub(crate) kvm: Kvm,
    pub(crate) ip_forward: Option<bool>,
    pub(crate) open_files_max: u64,
    pub(crate) memory_available: u64,
    pub(crate) data_dir: PathBuf,
    pub(crate) disk_free: Option<u64>,
}

/// The control groups of the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    /// Controllers of version 1 hierarchies that are mounted.
    pub(crate) version_1: BTreeSet<String>,
    /// Controllers of the version 2 hierarchy, if it is mounted.
    pub(crate) version_2: Option<BTreeSet<String>>,
}

/// What the device file of KVM tells, which is less than whether a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Kvm {
    /// No `/dev/kvm`.
    #[default]
    Absent,
    /// It is there and may not be opened.
    Forbidden,
    /// It opens.
    Opens,
}

/// Programs that Atoll starts, never while it creates a sandbox.
pub(crate) const PROGRAMS: [&str; 3] = ["nft", "mkfs.ext4", "mmdebstrap"];

impl Machine {
    /// Reads the facts; what cannot be read counts as not there.
    pub(crate) fn inspect(data_dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let system = rustix::system::uname();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            root: rustix::process::geteuid().is_root(),
            architecture: system.machine().to_string_lossy().into_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            file_systems: parse_file_systems(&read("/proc/filesystems")),
            namespaces: list("/proc/self/ns"),
            user_namespaces_max: read("/proc/sys/user/max_user_namespaces")
                .trim()
                .parse()
                .unwrap_or(0),
            seccomp_actions: read("/proc/sys/kernel/seccomp/actions_avail"),
            cgroups: find_cgroups(&read("/proc/self/mounts")),
            loop_devices: Path::new("/dev/loop-control").exists(),
            programs: PROGRAMS
                .into_iter()
                .filter(|name| find_program(name).is_some())
                .collect(),
            kvm: match fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
            {
                Ok(_) => Kvm::Opens,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kvm::Absent,
                Err(_) => Kvm::Forbidden,
            },
            ip_forward: match read("/proc/sys/net/ipv4/ip_forward").trim() {
                "0" => Some(false),
                "1" => Some(true),
                _ => None,
            },
            open_files_max: limit.maximum.unwrap_or(u64::MAX),
            memory_available: parse_available(&read("/proc/meminfo")),
            data_dir: data_dir.to_owned(),
            disk_free: free_space(data_dir),
        }
    }
}

fn list(folder: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn parse_file_systems(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(String::from)
        .collect()
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn parse_available(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// The hierarchies in a mount table.
fn find_cgroups(mounts: &str) -> Cgroups {
    const CONTROLLERS: [&str; 6] = ["memory", "cpu", "pids", "freezer", "blkio", "cpuacct"];
    let mut found = Cgroups::default();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if kind == "cgroup" {
            let known = options
                .split(',')
                .filter(|option| CONTROLLERS.contains(option));
            found.version_1.extend(known.map(String::from));
        } else if kind == "cgroup2" {
            let text = fs::read_to_string(Path::new(path).join("cgroup.controllers"));
            let controllers = text.unwrap_or_default();
            found.version_2 = Some(controllers.split_whitespace().map(String::from).collect());
        }
    }
    found
}

/// Where a program is, in `PATH` or where administrators' programs usually are.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Free space where the data directory is or would be made.
fn free_space(data_dir: &Path) -> Option<u64> {
    let existing = data_dir.ancestors().find(|path| path.exists())?;
    let facts = rustix::fs::statvfs(existing).ok()?;
    facts.f_bavail.checked_mul(facts.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let found = parse_file_systems("nodev\tsysfs\n\text4\nnodev\toverlay\n");
        assert!(found.contains("ext4") && found.contains("overlay") && found.contains("sysfs"));
        assert_eq!(
            parse_available("MemTotal: 9 kB\nMemAvailable:    2 kB\n"),
            2048
        );
        assert_eq!(parse_available(""), 0);
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n";
        let cgroups = find_cgroups(mounts);
        assert!(cgroups.version_1.contains("memory") && cgroups.version_1.contains("cpu"));
        assert_eq!(cgroups.version_2, None);
    }
}
