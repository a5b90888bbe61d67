//! What the facts mean.

use crate::doctor::{
    Check, Verdict,
    machine::{Kvm, Machine},
};
use api::Bytes;

/// Overlay file systems take id-mapped layers since then (Linux commit 4bbd2b6dd1).
const KERNEL_MIN: (u32, u32) = (5, 19);
const MEMORY_MIN: Bytes = Bytes::mebibytes(512);
/// What the base template takes while it is built.
const DISK_MIN: Bytes = Bytes::gibibytes(2);
const OPEN_FILES_MIN: u64 = 4096;

/// Judges all facts, the most basic first.
pub(crate) fn judge(machine: &Machine) -> Vec<Check> {
    let mut checks = vec![
        root(machine),
        kernel(machine),
        namespaces(machine),
        file_system(
            machine,
            "overlay",
            "sandboxes share read-only files through it",
        ),
        file_system(machine, "ext4", "it bounds what a sandbox may write"),
        loop_devices(machine),
        cgroups(machine),
        seccomp(machine),
    ];
    checks.extend([
        program(
            machine,
            "nft",
            "nftables",
            Verdict::Fail,
            "it keeps sandboxes apart",
        ),
        program(
            machine,
            "mkfs.ext4",
            "e2fsprogs",
            Verdict::Fail,
            "it formats writable layers",
        ),
        program(
            machine,
            "mmdebstrap",
            "mmdebstrap",
            Verdict::Warn,
            "templates `base` and `debian:` are built with it",
        ),
        forwarding(machine),
        memory(machine),
        disk(machine),
        open_files(machine),
        kvm(machine),
    ]);
    checks
}

/// Whether sandboxes can run.
pub(crate) fn can_run(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.verdict != Verdict::Fail)
}

fn root(machine: &Machine) -> Check {
    if machine.root {
        return Check::new("user", Verdict::Ok, "root");
    }
    Check::new(
        "user",
        Verdict::Fail,
        "not root: namespaces, mounts and rules need it",
    )
    .remedy("run it with sudo")
}

/// The first two numbers of a kernel release.
pub(crate) fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(machine: &Machine) -> Check {
    let found = format!("Linux {} {}", machine.kernel, machine.architecture);
    if parse_release(&machine.kernel).is_some_and(|release| release >= KERNEL_MIN) {
        return Check::new("kernel", Verdict::Ok, found);
    }
    let (major, minor) = KERNEL_MIN;
    Check::new("kernel", Verdict::Fail, found).remedy(format!(
        "use Linux {major}.{minor} or later: id-mapped layers need it"
    ))
}

fn namespaces(machine: &Machine) -> Check {
    let wanted = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|name| !machine.namespaces.contains(*name))
        .collect();
    if !missing.is_empty() {
        return Check::new(
            "namespaces",
            Verdict::Fail,
            format!("missing: {}", missing.join(", ")),
        )
        .remedy("use a kernel that was built with all namespaces");
    }
    if machine.user_namespaces_max == 0 {
        return Check::new(
            "namespaces",
            Verdict::Fail,
            "user namespaces are switched off",
        )
        .remedy("sysctl -w user.max_user_namespaces=65536");
    }
    Check::new("namespaces", Verdict::Ok, "all kinds")
}

fn file_system(machine: &Machine, name: &'static str, purpose: &str) -> Check {
    if machine.file_systems.contains(name) {
        return Check::new(name, Verdict::Ok, "in the kernel");
    }
    Check::new(name, Verdict::Warn, format!("not loaded; {purpose}")).remedy(format!(
        "modprobe {name}, unless the kernel loads it by itself"
    ))
}

fn loop_devices(machine: &Machine) -> Check {
    if machine.loop_devices {
        return Check::new("loop devices", Verdict::Ok, "/dev/loop-control");
    }
    Check::new("loop devices", Verdict::Fail, "no /dev/loop-control")
        .remedy("modprobe loop; in a container, start it with --privileged or pass /dev on")
}

fn cgroups(machine: &Machine) -> Check {
    let wanted = ["memory", "cpu", "pids"];
    let groups = &machine.cgroups;
    let in_version_2 = |name: &str| {
        groups
            .version_2
            .as_ref()
            .is_some_and(|set| set.contains(name))
    };
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|name| !groups.version_1.contains(*name) && !in_version_2(name))
        .collect();
    let kind = match (&groups.version_2, groups.version_1.is_empty()) {
        (Some(_), true) => "version 2",
        (Some(_), false) => "hybrid",
        (None, false) => "version 1",
        (None, true) => "none",
    };
    if missing.is_empty() {
        return Check::new("control groups", Verdict::Ok, kind);
    }
    Check::new(
        "control groups",
        Verdict::Fail,
        format!("{kind}, without {}", missing.join(", ")),
    )
    .remedy("mount cgroup2 at /sys/fs/cgroup with the memory, cpu and pids controllers")
}

fn seccomp(machine: &Machine) -> Check {
    if machine
        .seccomp_actions
        .split_whitespace()
        .any(|action| action == "errno")
    {
        return Check::new("seccomp", Verdict::Ok, "filters");
    }
    Check::new("seccomp", Verdict::Fail, "no filters")
        .remedy("use a kernel that was built with CONFIG_SECCOMP_FILTER")
}

fn program(
    machine: &Machine,
    name: &'static str,
    package: &str,
    otherwise: Verdict,
    purpose: &str,
) -> Check {
    if machine.programs.contains(name) {
        return Check::new(name, Verdict::Ok, "found");
    }
    Check::new(name, otherwise, format!("not found; {purpose}"))
        .remedy(format!("apt-get install {package}"))
}

fn forwarding(machine: &Machine) -> Check {
    match machine.ip_forward {
        Some(true) => Check::new("IP forwarding", Verdict::Ok, "on"),
        Some(false) => Check::new(
            "IP forwarding",
            Verdict::Note,
            "off; Atoll switches it on while it runs, and back afterwards",
        ),
        None => Check::new("IP forwarding", Verdict::Warn, "cannot be read")
            .remedy("mount /proc with /proc/sys"),
    }
}

fn memory(machine: &Machine) -> Check {
    let found = format!("{} available", Bytes(machine.memory_available));
    if machine.memory_available >= MEMORY_MIN.0 {
        return Check::new("memory", Verdict::Ok, found);
    }
    Check::new("memory", Verdict::Warn, found).remedy(format!(
        "leave {MEMORY_MIN} free, which one sandbox of the usual size may use"
    ))
}

fn disk(machine: &Machine) -> Check {
    let place = machine.data_dir.display();
    let Some(free) = machine.disk_free else {
        return Check::new(
            "disk",
            Verdict::Warn,
            format!("{place}: free space is not known"),
        );
    };
    let found = format!("{} free for {place}", Bytes(free));
    if free >= DISK_MIN.0 {
        return Check::new("disk", Verdict::Ok, found);
    }
    Check::new("disk", Verdict::Warn, found)
        .remedy(format!("free {DISK_MIN}, or choose another --data-dir"))
}

fn open_files(machine: &Machine) -> Check {
    let found = format!("at most {}", machine.open_files_max);
    if machine.open_files_max >= OPEN_FILES_MIN {
        return Check::new("open files", Verdict::Ok, found);
    }
    Check::new("open files", Verdict::Warn, found)
        .remedy("raise the hard limit: ulimit -Hn 1048576, or LimitNOFILE= in the unit")
}

fn kvm(machine: &Machine) -> Check {
    let found = match machine.kvm {
        Kvm::Opens => "/dev/kvm opens; this version has no driver that would use it",
        Kvm::Forbidden => {
            "/dev/kvm may not be opened; this version has no driver that would use it"
        }
        Kvm::Absent => "no /dev/kvm; this version does not need it",
    };
    Check::new("KVM", Verdict::Note, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::machine::Cgroups;

    fn set(words: &[&str]) -> std::collections::BTreeSet<String> {
        words.iter().map(ToString::to_string).collect()
    }

    /// A machine on which all is well.
    fn good() -> Machine {
        Machine {
            root: true,
            architecture: "x86_64".into(),
            kernel: "6.1.0-18-cloud-amd64".into(),
            file_systems: set(&["overlay", "ext4"]),
            namespaces: set(&["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]),
            user_namespaces_max: 1,
            seccomp_actions: "kill_process errno allow".into(),
            cgroups: Cgroups {
                version_2: Some(set(&["memory", "cpu", "pids"])),
                ..Cgroups::default()
            },
            loop_devices: true,
            programs: crate::doctor::machine::PROGRAMS.into_iter().collect(),
            ip_forward: Some(true),
            open_files_max: 1 << 20,
            memory_available: 1 << 34,
            data_dir: "/var/lib/atoll".into(),
            disk_free: Some(1 << 40),
            ..Machine::default()
        }
    }

    #[test]
    fn a_good_machine_runs_sandboxes() {
        let checks = judge(&good());
        assert!(can_run(&checks), "{checks:#?}");
        assert!(
            checks.iter().all(|check| check.verdict != Verdict::Warn),
            "{checks:#?}"
        );
    }

    /// What the one change to a good machine leads to.
    fn check(name: &str, verdict: Verdict, change: impl FnOnce(&mut Machine)) {
        let mut machine = good();
        change(&mut machine);
        let checks = judge(&machine);
        let found = checks.iter().find(|check| check.name == name).unwrap();
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(found.remedy.is_some(), "{name} says what to do");
        assert_eq!(can_run(&checks), verdict != Verdict::Fail);
    }

    #[test]
    fn each_lack_is_told_with_its_remedy() {
        check("user", Verdict::Fail, |m| m.root = false);
        check("kernel", Verdict::Fail, |m| {
            m.kernel = "5.10.0-28-amd64".into()
        });
        check("namespaces", Verdict::Fail, |m| m.user_namespaces_max = 0);
        check("namespaces", Verdict::Fail, |m| {
            assert!(m.namespaces.remove("user"))
        });
        check("loop devices", Verdict::Fail, |m| m.loop_devices = false);
        check("control groups", Verdict::Fail, |m| {
            m.cgroups = Cgroups::default()
        });
        check("seccomp", Verdict::Fail, |m| m.seccomp_actions.clear());
        check("nft", Verdict::Fail, |m| assert!(m.programs.remove("nft")));
        check("mmdebstrap", Verdict::Warn, |m| {
            assert!(m.programs.remove("mmdebstrap"))
        });
        check("overlay", Verdict::Warn, |m| {
            assert!(m.file_systems.remove("overlay"))
        });
        check("memory", Verdict::Warn, |m| m.memory_available = 1);
        check("disk", Verdict::Warn, |m| m.disk_free = Some(1));
        check("open files", Verdict::Warn, |m| m.open_files_max = 1024);
    }

    #[test]
    fn hybrid_control_groups_do() {
        let mut machine = good();
        machine.cgroups = Cgroups {
            version_1: set(&["memory", "cpu", "pids"]),
            version_2: Some(set(&[])),
        };
        assert!(can_run(&judge(&machine)));
    }
}
