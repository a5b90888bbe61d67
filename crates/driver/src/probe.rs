//! What this machine can do for sandboxes, as `doctor` tells it.
//!
//! Each check tries the thing itself where that is harmless, and reads what the kernel says of it
//! where it is not. Nothing is changed.

use crate::{cgroup::Hierarchies, kvm};
use api::finding::Finding;
use rustix::fs::{Mode, OFlags};
use std::{
    env, fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// The first kernel whose overlays take layers with mapped ids.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

/// Looks at everything. Blocks, for some 100 ms at most.
pub fn check() -> Vec<Finding> {
    vec![
        check_root(),
        check_kernel(),
        check_user_namespaces(),
        check_overlay(),
        check_loop_devices(),
        check_format(),
        check_cgroups(),
        check_seccomp(),
        check_memory_executables(),
        check_kvm(),
        check_program(
            "qemu",
            &["qemu-system-x86_64"],
            "the `qemu` driver",
            "qemu-system-x86",
        ),
        check_program(
            "firecracker",
            &["firecracker"],
            "the `firecracker` driver",
            "firecracker",
        ),
    ]
}

fn check_root() -> Finding {
    if rustix::process::geteuid().is_root() {
        Finding::ok("root", "running as root")
    } else {
        Finding::missing(
            "root",
            "not running as root",
            "Start Atoll as root, for example with sudo",
        )
    }
}

fn check_kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let (major, minor) = OLDEST_KERNEL;
    match parse_release(&release) {
        Some(version) if version >= OLDEST_KERNEL => {
            Finding::ok("kernel", format!("Linux {release}"))
        }
        _ => Finding::missing(
            "kernel",
            format!("Linux {release}"),
            format!("Boot Linux {major}.{minor} or newer: overlays with mapped user ids need it"),
        ),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn check_user_namespaces() -> Finding {
    let name = "user namespaces";
    if !Path::new("/proc/self/ns/user").exists() {
        return Finding::missing(
            name,
            "not in this kernel",
            "Boot a kernel with CONFIG_USER_NS",
        );
    }
    if read_number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Finding::missing(
            name,
            "user.max_user_namespaces is 0",
            "Run: sysctl user.max_user_namespaces=15000",
        );
    }
    // Both settings are about users other than root, which Atoll runs as.
    for setting in [
        "unprivileged_userns_clone",
        "apparmor_restrict_unprivileged_userns",
    ] {
        let restricts = u64::from(setting.starts_with("apparmor"));
        if read_number(format!("/proc/sys/kernel/{setting}")) == Some(restricts) {
            return Finding::ok(
                name,
                format!("available (kernel.{setting} restricts others than root only)"),
            );
        }
    }
    Finding::ok(name, "available")
}

fn check_overlay() -> Finding {
    let name = "overlay";
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.ends_with("\toverlay")) {
        return Finding::ok(name, "in the kernel");
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let module = format!("/lib/modules/{release}/kernel/fs/overlayfs");
    if Path::new(&module).exists() {
        return Finding::ok(name, "a module, loaded when needed");
    }
    Finding::missing(name, "not in this kernel", "Run: modprobe overlay")
}

fn check_loop_devices() -> Finding {
    let name = "loop devices";
    match open("/dev/loop-control") {
        Ok(_) => Finding::ok(name, "/dev/loop-control opens"),
        Err(error) => Finding::missing(
            name,
            format!("/dev/loop-control: {error}"),
            "Run: modprobe loop. In a container: pass /dev/loop-control and loop devices in",
        ),
    }
}

fn check_format() -> Finding {
    match find_program("mkfs.ext4") {
        Some(path) => Finding::ok("mkfs.ext4", path.display().to_string()),
        None => Finding::missing(
            "mkfs.ext4",
            "not installed",
            "Install the package e2fsprogs",
        ),
    }
}

fn check_cgroups() -> Finding {
    let name = "control groups";
    let found = match Hierarchies::find() {
        Ok(found) => found,
        Err(error) => {
            return Finding::missing(name, format!("/proc: {error}"), "Mount /proc");
        }
    };
    let missing = found.missing();
    if !missing.is_empty() {
        return Finding::missing(
            name,
            format!("{}, without {}", found.describe(), missing.join(", ")),
            "Mount /sys/fs/cgroup, and boot with these controllers enabled",
        );
    }
    let roots = found.unified.iter().map(|unified| &unified.root);
    for root in roots.chain(found.legacy.iter().map(|legacy| &legacy.root)) {
        if rustix::fs::access(root, rustix::fs::Access::WRITE_OK).is_err() {
            return Finding::missing(
                name,
                format!("{} cannot be written", root.display()),
                "Mount it writable; in a container run it privileged",
            );
        }
    }
    Finding::ok(name, found.describe())
}

fn check_seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions
        .split_ascii_whitespace()
        .any(|action| action == "errno")
    {
        Finding::ok("seccomp", "available")
    } else {
        Finding::missing(
            "seccomp",
            "not in this kernel",
            "Boot a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

fn check_memory_executables() -> Finding {
    let name = "memfd";
    match read_number("/proc/sys/vm/memfd_noexec") {
        Some(2) => Finding::missing(
            name,
            "vm.memfd_noexec forbids programs in memory",
            "Run: sysctl vm.memfd_noexec=1",
        ),
        _ => Finding::ok(name, "programs in memory may be executed"),
    }
}

fn check_kvm() -> Finding {
    match kvm::usable() {
        Ok(()) => Finding::ok("KVM", "runs 64-bit code"),
        Err(reason) => Finding::warning(
            "KVM",
            reason,
            "Enable virtualisation in the firmware, or nested virtualisation on the host; \
             the `container` driver does without",
        ),
    }
}

fn check_program(name: &str, programs: &[&str], needed_by: &str, package: &str) -> Finding {
    match programs.iter().find_map(|program| find_program(program)) {
        Some(path) => Finding::ok(name, path.display().to_string()),
        None => Finding::warning(
            name,
            format!("not installed; only {needed_by} needs it"),
            format!("Install {package} if you want {needed_by}"),
        ),
    }
}

/// A program on the search path, or where system programs are.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}

fn read_number(path: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::finding::FindingStatus;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_release("5.19"), Some((5, 19)));
        assert_eq!(parse_release("odd"), None);
        assert!(parse_release("5.4.0-generic") < Some(OLDEST_KERNEL));
    }

    #[test]
    fn whatever_is_not_well_has_a_remedy() {
        for finding in check() {
            println!("{finding:?}");
            assert_eq!(
                finding.remedy.is_empty(),
                finding.status == FindingStatus::Ok
            );
            assert!(!finding.detail.is_empty());
        }
    }
}
