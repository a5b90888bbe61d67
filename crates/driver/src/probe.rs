//! What this machine can do for sandboxes, as `doctor` tells it.
//!
//! Each check tries the thing itself where that is harmless, and reads what the kernel says of it
//! where it is not. Nothing is changed.

use crate::{
    cgroup::Hierarchies,
    firecracker::{OLDEST, Version},
    kvm::Kvm,
};
use api::finding::Finding;
use rustix::fs::{Mode, OFlags};
use std::{
    env, fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The first kernel whose overlays take layers with mapped ids.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

/// Looks at everything but KVM, which was looked at before. Blocks, for some 100 ms at most.
pub fn check(kvm: &Kvm) -> Vec<Finding> {
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
        judge_kvm(kvm),
        check_qemu(),
        check_firecracker(),
        check_program(
            "mkfs.erofs",
            "templates of microVMs are then ext4 images, which are larger",
            "erofs-utils",
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

/// What [`kvm::look`] found, as a finding.
pub fn judge_kvm(kvm: &Kvm) -> Finding {
    let remedy = "Enable virtualisation in the firmware, or nested virtualisation on the host; \
                  `--driver qemu` translates instead, and `--driver container` does without";
    match kvm {
        Kvm::Usable => Finding::ok("KVM", "runs 64-bit code"),
        Kvm::Unusable(reason) => {
            Finding::warning("KVM", format!("present but unusable: {reason}"), remedy)
        }
        Kvm::Absent => Finding::warning("KVM", "absent: there is no /dev/kvm", remedy),
    }
}

fn check_qemu() -> Finding {
    let name = "qemu";
    let program = "qemu-system-x86_64";
    match find_program(program) {
        Some(path) => match first_line(&path) {
            Some(line) => Finding::ok(name, format!("{} ({line})", path.display())),
            None => Finding::warning(
                name,
                format!("{} does not tell its version", path.display()),
                "Install the package qemu-system-x86 again",
            ),
        },
        None => check_program(
            program,
            "only the `qemu` driver needs it",
            "qemu-system-x86",
        ),
    }
}

fn check_firecracker() -> Finding {
    let name = "firecracker";
    let release = format!(
        "Put `firecracker` and `jailer` of one release, {OLDEST} or newer, where programs are: \
         https://github.com/firecracker-microvm/firecracker/releases"
    );
    let version = |program: &str| {
        let path = find_program(program)?;
        let line = first_line(&path)?;
        line.split(' ').nth(1)?.parse::<Version>().ok()
    };
    match (version("firecracker"), version("jailer")) {
        (None, _) => Finding::warning(
            name,
            "not installed; only the `firecracker` driver needs it",
            release,
        ),
        (Some(found), _) if found < OLDEST => {
            Finding::warning(name, format!("{found} is too old"), release)
        }
        (Some(found), None) => {
            Finding::warning(name, format!("{found}, without its jailer"), release)
        }
        (Some(found), Some(jailer)) if found != jailer => Finding::warning(
            name,
            format!("{found}, with the jailer of {jailer}"),
            release,
        ),
        (Some(found), Some(_)) => Finding::ok(name, format!("{found}, with its jailer")),
    }
}

/// What a program says first when it is asked for its version.
fn first_line(program: &Path) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line: String = text.lines().next()?.chars().take(100).collect();
    output.status.success().then_some(line)
}

fn check_program(name: &str, otherwise: &str, package: &str) -> Finding {
    match find_program(name) {
        Some(path) => Finding::ok(name, path.display().to_string()),
        None => Finding::warning(
            name,
            format!("not installed; {otherwise}"),
            format!("Install the package {package}"),
        ),
    }
}

/// Whether the file system of the data directory, which need not be there yet, copies by
/// reference. Tries it with files that have no name.
pub fn check_data_directory(directory: &Path) -> Finding {
    let name = "file system";
    let place = directory.display();
    let existing = directory.ancestors().find(|path| path.is_dir());
    let shares = existing
        .ok_or(rustix::io::Errno::NOENT)
        .and_then(shares_blocks);
    match shares {
        Ok(true) => Finding::ok(name, format!("copies by reference at {place}")),
        Ok(false) => Finding::warning(
            name,
            format!("copies part by part at {place}: forks and snapshots of disks take longer"),
            "Put the data directory on XFS (made with reflink=1, its default) or btrfs",
        ),
        Err(error) => Finding::warning(
            name,
            format!("{place} cannot be tried: {error}"),
            "Choose another --data-dir, or start as root",
        ),
    }
}

fn shares_blocks(directory: &Path) -> rustix::io::Result<bool> {
    use rustix::io::Errno;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let unnamed = || rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600));
    let (from, to) = match (unnamed(), unnamed()) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(Errno::OPNOTSUPP), _) => return Ok(false),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let written = rustix::io::write(&from, &[1; 4096])?;
    Ok(written == 4096 && rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// A program on the search path, or where system programs are.
pub fn find_program(name: &str) -> Option<PathBuf> {
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
    use crate::kvm;
    use api::finding::FindingStatus;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_release("5.19"), Some((5, 19)));
        assert_eq!(parse_release("odd"), None);
        assert!(parse_release("5.4.0-generic") < Some(OLDEST_KERNEL));
    }

    #[test]
    fn kvm_is_usable_unusable_or_absent() {
        let told = |kvm| {
            let finding = judge_kvm(&kvm);
            (finding.status, finding.detail)
        };
        assert_eq!(told(Kvm::Usable).0, FindingStatus::Ok);
        let (status, detail) = told(Kvm::Unusable("it stops".into()));
        assert_eq!(status, FindingStatus::Warning);
        assert_eq!(detail, "present but unusable: it stops");
        assert!(told(Kvm::Absent).1.starts_with("absent"));
    }

    #[test]
    fn a_file_system_is_tried_where_the_directory_is_or_will_be() {
        let directory = tempfile::tempdir().unwrap();
        let finding = check_data_directory(&directory.path().join("not/yet"));
        println!("{finding:?}");
        assert!(finding.detail.contains("not/yet"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let memory = check_data_directory(Path::new("/dev/shm"));
        assert_eq!(memory.status, FindingStatus::Warning);
        assert!(memory.detail.contains("part by part"), "{memory:?}");
    }

    #[test]
    fn whatever_is_not_well_has_a_remedy() {
        for finding in check(&kvm::look()) {
            println!("{finding:?}");
            assert_eq!(
                finding.remedy.is_empty(),
                finding.status == FindingStatus::Ok
            );
            assert!(!finding.detail.is_empty());
        }
    }
}
