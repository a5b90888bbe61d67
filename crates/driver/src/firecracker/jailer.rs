//! The jailer's command line, from a description: a pure function.
//!
//! <https://github.com/firecracker-microvm/firecracker/blob/main/docs/jailer.md>

use super::client::SOCKET;
use crate::cgroup::{Hierarchies, Limits};
use std::{ffi::OsString, path::Path};

/// The period over which processor time is divided, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// The most files that Firecracker may have open.
const MOST_FILES: u32 = 1024;

/// Everything that decides the jailer's command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Description<'a> {
    /// Firecracker.
    pub(super) program: &'a Path,
    /// The folder above all jails.
    pub(super) jails: &'a Path,
    /// Names jail and control group.
    pub(super) slot: u32,
    /// Names the control group above.
    pub(super) instance: &'a str,
    /// User and group that it becomes.
    pub(super) user: u32,
    /// A path that opens the network namespace.
    pub(super) network: &'a Path,
    pub(super) hierarchies: &'a Hierarchies,
    pub(super) limits: &'a Limits,
}

/// The arguments, without the program's name.
pub(super) fn arguments(description: &Description<'_>) -> Vec<OsString> {
    let Description {
        program,
        jails,
        slot,
        instance,
        user,
        network,
        hierarchies,
        limits,
    } = description;
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: OsString| all.extend([name.into(), value]);
    add("--id", slot.to_string().into());
    add("--exec-file", program.into());
    add("--uid", user.to_string().into());
    add("--gid", user.to_string().into());
    add("--chroot-base-dir", jails.into());
    add("--netns", network.into());
    let legacy = is_legacy(hierarchies);
    add("--cgroup-version", if legacy { "1" } else { "2" }.into());
    add("--parent-cgroup", format!("atoll-{instance}").into());
    for value in groups(limits, legacy) {
        add("--cgroup", value.into());
    }
    add("--resource-limit", format!("no-file={MOST_FILES}").into());
    all.push("--new-pid-ns".into());
    // What follows is Firecracker's.
    all.push("--".into());
    let mut add = |name: &str, value: String| all.extend([name.into(), value.into()]);
    add("--api-sock", format!("/{SOCKET}"));
    // To where the serial console goes: a socket that is read, bounded and kept.
    add("--level", "Warning".into());
    all
}

/// Whether the controllers that limit memory are those of version 1.
fn is_legacy(hierarchies: &Hierarchies) -> bool {
    hierarchies
        .legacy
        .iter()
        .any(|legacy| legacy.controllers.iter().any(|name| name == "memory"))
}

/// The limits, as files of control groups: joining a group of version 1 takes a value for each
/// controller.
fn groups(limits: &Limits, legacy: bool) -> [String; 3] {
    let quota = u64::from(limits.vcpus).max(1) * PERIOD;
    let processes = format!("pids.max={}", limits.processes);
    if legacy {
        return [
            format!("memory.limit_in_bytes={}", limits.memory),
            format!("cpu.cfs_quota_us={quota}"),
            processes,
        ];
    }
    [
        format!("memory.max={}", limits.memory),
        format!("cpu.max={quota} {PERIOD}"),
        processes,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Legacy, Unified};

    fn check(hierarchies: &Hierarchies) -> String {
        let description = Description {
            program: Path::new("/usr/bin/firecracker"),
            jails: Path::new("/data/jails"),
            slot: 7,
            instance: "12ab",
            user: 1007,
            network: Path::new("/proc/1/fd/9"),
            hierarchies,
            limits: &Limits {
                memory: 256 << 20,
                vcpus: 2,
                processes: 34,
            },
        };
        let words = arguments(&description);
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        words.join("\n")
    }

    #[test]
    fn with_control_groups_of_version_2() {
        let unified = Unified {
            root: "/sys/fs/cgroup".into(),
            controllers: vec!["memory".into(), "cpu".into(), "pids".into()],
        };
        insta::assert_snapshot!(check(&Hierarchies {
            unified: Some(unified),
            legacy: Vec::new(),
        }));
    }

    #[test]
    fn with_control_groups_of_version_1() {
        let text = check(&Hierarchies {
            unified: None,
            legacy: vec![Legacy {
                root: "/sys/fs/cgroup/memory".into(),
                controllers: vec!["memory".into()],
            }],
        });
        assert!(text.contains("--cgroup-version\n1\n"), "{text}");
        assert!(
            text.contains("--cgroup\nmemory.limit_in_bytes=268435456\n"),
            "{text}"
        );
        assert!(
            text.contains("--cgroup\ncpu.cfs_quota_us=200000\n"),
            "{text}"
        );
        assert!(text.contains("--cgroup\npids.max=34\n"), "{text}");
    }
}
