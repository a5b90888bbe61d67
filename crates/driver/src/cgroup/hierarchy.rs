//! Which hierarchies this machine has.

use super::{CONTROLLERS, FREEZER, NEEDED};
use api::boot::CgroupView;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// All controllers that version 1 knows: mounting a hierarchy takes its complete list.
const ALL_LEGACY: [&str; 14] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
];

/// The hierarchy of version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unified {
    /// Where it is mounted.
    pub root: PathBuf,
    /// The controllers that it has.
    pub controllers: Vec<String>,
}

/// A hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// The controllers that it has.
    pub controllers: Vec<String>,
}

/// The hierarchies that are of use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 2; on hybrid machines perhaps without any controller, but even then all processes
    /// of a group of it can be killed at once.
    pub unified: Option<Unified>,
    /// Version 1, each with at least one controller of use.
    pub legacy: Vec<Legacy>,
}

impl Hierarchies {
    /// Looks for them in this process's mount table.
    pub fn find() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self::parse(&mounts, |root| {
            fs::read_to_string(root.join("cgroup.controllers"))
        }))
    }

    /// From the text of a mount table (`proc_pid_mountinfo(5)`); `controllers` reads those of
    /// version 2.
    pub(super) fn parse(mounts: &str, controllers: impl Fn(&Path) -> io::Result<String>) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let Some(place) = before.split(' ').nth(4) else {
                continue;
            };
            let root = PathBuf::from(unescape(place));
            let mut after = after.split(' ');
            let (kind, options) = (after.next(), after.nth(1).unwrap_or(""));
            match kind {
                Some("cgroup2") if found.unified.is_none() => {
                    let text = controllers(&root).unwrap_or_default();
                    let controllers: Vec<String> =
                        text.split_ascii_whitespace().map(String::from).collect();
                    found.unified = Some(Unified { root, controllers });
                }
                Some("cgroup") => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| ALL_LEGACY.contains(option))
                        .map(String::from)
                        .collect();
                    let of_use = controllers
                        .iter()
                        .any(|have| CONTROLLERS.contains(&&**have) || have == FREEZER);
                    if of_use
                        && found
                            .legacy
                            .iter()
                            .all(|other| other.controllers != controllers)
                    {
                        found.legacy.push(Legacy { root, controllers });
                    }
                }
                _ => {}
            }
        }
        // Joining a hierarchy costs, so none is joined for what version 2 does.
        if found.unified.is_some() {
            let only_freezes = |legacy: &Legacy| {
                let mut of_use = legacy.controllers.iter();
                !of_use.any(|have| CONTROLLERS.contains(&&**have))
            };
            found.legacy.retain(|legacy| !only_freezes(legacy));
        }
        found
    }

    /// Controllers that are needed and absent.
    pub fn missing(&self) -> Vec<&'static str> {
        let has = |name: &&str| {
            let unified = self.unified.iter().flat_map(|unified| &unified.controllers);
            let legacy = self.legacy.iter().flat_map(|legacy| &legacy.controllers);
            unified.chain(legacy).any(|have| have == name)
        };
        NEEDED.into_iter().filter(|name| !has(name)).collect()
    }

    /// In a few words, such as `version 2`.
    pub fn describe(&self) -> &'static str {
        let unified = self
            .unified
            .as_ref()
            .map(|unified| !unified.controllers.is_empty());
        match (unified, self.legacy.is_empty()) {
            (Some(_), true) => "version 2",
            (Some(true), false) => "hybrid",
            (Some(false), false) => "version 1, beside an empty version 2",
            (None, false) => "version 1",
            (None, true) => "none",
        }
    }

    /// What a sandbox is shown of its own groups: enough for language runtimes to see limits.
    pub fn view(&self) -> CgroupView {
        match (&self.unified, self.legacy.is_empty()) {
            (Some(_), true) => CgroupView::Unified,
            (None, true) => CgroupView::Hidden,
            (_, false) => CgroupView::Legacy {
                hierarchies: self
                    .legacy
                    .iter()
                    .filter(|legacy| {
                        legacy
                            .controllers
                            .iter()
                            .any(|have| have == "memory" || have == "cpu")
                    })
                    .map(|legacy| legacy.controllers.join(","))
                    .collect(),
            },
        }
    }
}

/// Paths in the mount table have blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (Some(code), Some(remaining)) = (code, after.get(3..)) {
            plain.push(code as char);
            rest = remaining;
        } else {
            plain.push('\\');
            rest = after;
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mounts: &str, controllers: &str, kind: &str, missing: &[&str]) -> Hierarchies {
        let found = Hierarchies::parse(mounts, |_| Ok(controllers.to_owned()));
        assert_eq!(found.describe(), kind);
        assert_eq!(found.missing(), missing);
        found
    }

    #[test]
    fn version_2() {
        let mounts = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = check(mounts, "cpuset cpu io memory pids\n", "version 2", &[]);
        assert_eq!(found.view(), CgroupView::Unified);
        check(mounts, "", "version 2", &["memory", "cpu", "pids"]);
        check("", "", "none", &["memory", "cpu", "pids"]);
        check(mounts, "memory", "version 2", &["cpu", "pids"]);
    }

    #[test]
    fn version_1_with_an_empty_version_2() {
        let mounts = "\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
            37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = check(mounts, "", "version 1, beside an empty version 2", &[]);
        assert_eq!(found.legacy.len(), 4);
        // Without version 2, the freezer of version 1 is of use.
        let alone: Vec<&str> = mounts
            .lines()
            .filter(|line| !line.contains("cgroup2"))
            .collect();
        let found = check(&alone.join("\n"), "", "version 1", &[]);
        assert_eq!(found.legacy.len(), 5);
    }

    #[test]
    fn hybrid_with_joint_controllers_and_odd_paths() {
        let mounts = "\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
            39 31 0:36 / /my\\040pids rw - cgroup cgroup rw,pids\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = check(mounts, "memory", "hybrid", &[]);
        assert_eq!(found.legacy[1].root, Path::new("/my pids"));
        assert_eq!(
            found.view(),
            CgroupView::Legacy {
                hierarchies: vec!["cpu,cpuacct".into()]
            }
        );
    }
}
