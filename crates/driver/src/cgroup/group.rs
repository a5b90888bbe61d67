//! The control group of one sandbox, in all hierarchies at once.

use super::Hierarchies;
use crate::Usage;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The period over which processor time is divided, in microseconds.
const PERIOD: u64 = 100_000;

/// How long an end to all processes may take.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Limits on reading a block device, and the same again on writing it.
///
/// They bound what goes to the device, not what stays in the page cache. With control groups of
/// version 2 that is all of it: the kernel knows whose pages it writes back. With version 1 it is
/// what processes read from the device and what they write past the page cache (`O_DIRECT`). Pages
/// that the kernel writes back later are nobody's there, and are written back without bound; an
/// `fsync` or `O_SYNC` does not change that, because a container's overlay is volatile and ignores
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimits {
    /// Bytes per second.
    pub bytes: u64,
    /// Operations per second.
    pub operations: u32,
}

impl Default for IoLimits {
    /// Far more than most programs ask for, and a fraction of what one solid-state disk gives, so
    /// that one sandbox alone does not keep it from the others.
    fn default() -> Self {
        Self {
            bytes: 256 << 20,
            operations: 10_000,
        }
    }
}

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes; no swap beside it.
    pub memory: u64,
    /// Processors.
    pub vcpus: u32,
    /// Processes and threads.
    pub processes: u32,
}

/// How a group stands when there are not processors enough for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// As everything does that nobody has weighed.
    Usual,
    /// It takes what others leave.
    Least,
}

/// One sandbox's group. Dropping it leaves it.
#[derive(Debug, Clone)]
pub struct Group {
    unified: Option<PathBuf>,
    legacy: Vec<(PathBuf, Vec<String>)>,
}

impl Group {
    /// The group of a slot, whether or not it is there.
    pub fn of(hierarchies: &Hierarchies, instance: &str, slot: u32) -> Self {
        let path = |root: &Path| root.join(top(instance)).join(slot.to_string());
        Self {
            unified: hierarchies
                .unified
                .as_ref()
                .map(|unified| path(&unified.root)),
            legacy: hierarchies
                .legacy
                .iter()
                .map(|legacy| (path(&legacy.root), legacy.controllers.clone()))
                .collect(),
        }
    }

    /// Makes it, empty and without limits. One that is left from before is emptied first.
    pub fn create(hierarchies: &Hierarchies, instance: &str, slot: u32) -> io::Result<Self> {
        let group = Self::of(hierarchies, instance, slot);
        if let Some(unified) = &hierarchies.unified {
            let parent = unified.root.join(top(instance));
            make(&parent)?;
            delegate(&unified.root, &unified.controllers)?;
            delegate(&parent, &unified.controllers)?;
        }
        for directory in group.directories() {
            if let Err(error) = make_fresh(directory) {
                let _ = group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }

    /// All slots that have a group of this instance.
    pub fn slots(hierarchies: &Hierarchies, instance: &str) -> Vec<u32> {
        let roots = hierarchies.unified.iter().map(|unified| &unified.root);
        let roots = roots.chain(hierarchies.legacy.iter().map(|legacy| &legacy.root));
        let mut slots: Vec<u32> = roots
            .filter_map(|root| fs::read_dir(root.join(top(instance))).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Removes the instance's own group if no slot is left in it.
    pub fn remove_instance(hierarchies: &Hierarchies, instance: &str) {
        let roots = hierarchies.unified.iter().map(|unified| &unified.root);
        for root in roots.chain(hierarchies.legacy.iter().map(|legacy| &legacy.root)) {
            let _ = fs::remove_dir(root.join(top(instance)));
        }
    }

    pub(super) fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.unified
            .iter()
            .chain(self.legacy.iter().map(|(path, _)| path))
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.directories().any(|directory| directory.exists())
    }

    /// Its directory in version 2.
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Its directories in version 1.
    pub fn legacy(&self) -> Vec<PathBuf> {
        self.legacy.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The directory of a controller of version 1, if that is where it is.
    pub(super) fn legacy_of(&self, controller: &str) -> Option<&Path> {
        self.legacy
            .iter()
            .find(|(_, controllers)| controllers.iter().any(|have| have == controller))
            .map(|(path, _)| path.as_path())
    }

    /// Sets what it may use.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        let quota = u64::from(limits.vcpus).max(1) * PERIOD;
        match (self.legacy_of("memory"), &self.unified) {
            (Some(directory), _) => {
                write(directory, "memory.limit_in_bytes", limits.memory)?;
                // Memory and swap together; there only if the kernel accounts swap.
                write_optional(directory, "memory.memsw.limit_in_bytes", limits.memory)?;
            }
            (None, Some(directory)) => {
                write(directory, "memory.max", limits.memory)?;
                write_optional(directory, "memory.swap.max", 0)?;
            }
            (None, None) => {}
        }
        match (self.legacy_of("cpu"), &self.unified) {
            // The period is the kernel's default.
            (Some(directory), _) => write(directory, "cpu.cfs_quota_us", quota)?,
            (None, Some(directory)) => {
                write(directory, "cpu.max", format_args!("{quota} {PERIOD}"))?;
            }
            (None, None) => {}
        }
        if let Some(directory) = self.legacy_of("pids").or(self.unified.as_deref()) {
            write(directory, "pids.max", limits.processes)?;
        }
        Ok(())
    }

    /// Sets how it stands among the groups beside it when processors are short.
    pub fn weigh(&self, weight: Weight) -> io::Result<()> {
        // The kernel's defaults, and the least that it takes.
        match (self.legacy_of("cpu"), &self.unified) {
            (Some(directory), _) => {
                let shares = if weight == Weight::Usual { 1024 } else { 2 };
                write(directory, "cpu.shares", shares)
            }
            (None, Some(directory)) => {
                let share = if weight == Weight::Usual { 100 } else { 1 };
                write(directory, "cpu.weight", share)
            }
            (None, None) => Ok(()),
        }
    }

    /// Limits reading and writing of a block device, `7:3` for example. Where the machine has no
    /// controller for it this is an error of the kind `Unsupported`.
    pub fn limit_io(&self, device: &str, limits: &IoLimits) -> io::Result<()> {
        let IoLimits { bytes, operations } = *limits;
        if let Some(directory) = self.legacy_of("blkio") {
            for (name, value) in [
                ("read_bps", bytes),
                ("write_bps", bytes),
                ("read_iops", operations.into()),
                ("write_iops", operations.into()),
            ] {
                let file = format!("blkio.throttle.{name}_device");
                write(directory, &file, format_args!("{device} {value}")).map_err(unsupported)?;
            }
            return Ok(());
        }
        let Some(directory) = &self.unified else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let limits =
            format!("{device} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}");
        write(directory, "io.max", limits).map_err(unsupported)
    }

    /// What it uses; [`Usage::disk`] is not known here.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        match (self.legacy_of("memory"), &self.unified) {
            (Some(directory), _) => {
                let all = read_number(directory, "memory.usage_in_bytes")?;
                let stat = read(directory, "memory.stat")?;
                // The page cache, without what only looks like files: shared memory.
                usage.memory_cache =
                    field(&stat, "total_cache").saturating_sub(field(&stat, "total_shmem"));
                usage.memory = all.saturating_sub(usage.memory_cache);
            }
            (None, Some(directory)) => {
                let all = read_number(directory, "memory.current")?;
                let stat = read(directory, "memory.stat")?;
                usage.memory_cache = field(&stat, "file").saturating_sub(field(&stat, "shmem"));
                usage.memory = all.saturating_sub(usage.memory_cache);
            }
            (None, None) => {}
        }
        match (self.legacy_of("cpuacct"), &self.unified) {
            (Some(directory), _) => {
                usage.cpu_time = Duration::from_nanos(read_number(directory, "cpuacct.usage")?);
            }
            (None, Some(directory)) => {
                let stat = read(directory, "cpu.stat")?;
                usage.cpu_time = Duration::from_micros(field(&stat, "usage_usec"));
            }
            (None, None) => {}
        }
        if let Some(directory) = self.legacy_of("pids").or(self.unified.as_deref()) {
            let count = read_number(directory, "pids.current")?;
            usage.processes = u32::try_from(count).unwrap_or(u32::MAX);
        }
        Ok(usage)
    }

    /// How many of its processes the kernel has killed because its memory was used up.
    pub fn memory_kills(&self) -> u64 {
        let text = match (self.legacy_of("memory"), &self.unified) {
            (Some(directory), _) => read(directory, "memory.oom_control"),
            (None, Some(directory)) => read(directory, "memory.events"),
            (None, None) => return 0,
        };
        text.map_or(0, |text| field(&text, "oom_kill"))
    }

    /// Processes in it, as the host numbers them.
    fn members(&self) -> io::Result<Vec<u32>> {
        let mut members = Vec::new();
        for directory in self.directories() {
            match read(directory, "cgroup.procs") {
                Ok(text) => {
                    members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()))
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        members.sort_unstable();
        members.dedup();
        Ok(members)
    }

    /// Ends all its processes, frozen or not, and waits until they are gone.
    pub fn kill_all(&self) -> io::Result<()> {
        if let Some(directory) = &self.unified {
            // Since Linux 5.14; the loop below does the same, only slower.
            let _ = write(directory, "cgroup.kill", 1);
        }
        let deadline = Instant::now() + KILL_PATIENCE;
        loop {
            let members = self.members()?;
            if members.is_empty() {
                return Ok(());
            }
            let processes: Vec<OwnedFd> = members
                .into_iter()
                .filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
                .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
                .collect();
            // Between reading and opening, a pid may have become somebody else's: whoever is
            // still a member after the descriptors are held is the one that was meant.
            if self.members()?.is_empty() {
                return Ok(());
            }
            for process in &processes {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            self.release_killed();
            for process in &processes {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let left = Timespec::try_from(left).map_err(io::Error::other)?;
                poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left))?;
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Removes it. It must be empty; `ResourceBusy` means that it is not, or not yet.
    pub fn remove(&self) -> io::Result<()> {
        for directory in self.directories() {
            match fs::remove_dir(directory) {
                Ok(()) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The instance's own group.
fn top(instance: &str) -> String {
    format!("atoll-{instance}")
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A directory that was not there before, so that its counters begin at zero.
fn make_fresh(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir(directory)?;
            fs::create_dir(directory)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = directory.parent() {
                make(parent)?;
            }
            fs::create_dir(directory)
        }
        other => other,
    }
}

/// Lets groups below a directory have controllers (version 2), where they have not yet.
fn delegate(directory: &Path, controllers: &[String]) -> io::Result<()> {
    let have = read(directory, "cgroup.subtree_control")?;
    for wanted in ["memory", "cpu", "pids", "io"] {
        let delegated = have.split_ascii_whitespace().any(|have| have == wanted);
        if !delegated && controllers.iter().any(|have| have == wanted) {
            write(
                directory,
                "cgroup.subtree_control",
                format_args!("+{wanted}"),
            )?;
        }
    }
    Ok(())
}

/// A file that is not there is a controller that is not.
fn unsupported(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::Unsupported, error),
        _ => error,
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

pub(super) fn write(directory: &Path, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
    let path = directory.join(name);
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.to_string().as_bytes()))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn write_optional(directory: &Path, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
    match write(directory, name, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn read(directory: &Path, name: &str) -> io::Result<String> {
    fs::read_to_string(directory.join(name))
}

fn read_number(directory: &Path, name: &str) -> io::Result<u64> {
    read(directory, name)?
        .trim()
        .parse()
        .map_err(io::Error::other)
}

/// The value of a line `name value`; 0 if there is none.
pub(super) fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
