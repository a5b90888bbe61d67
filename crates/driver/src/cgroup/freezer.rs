//! Stopping all processes of a group where they stand, and letting them go on.
//!
//! Version 2 (`cgroup.freeze`, Linux 5.2) stops processes as a debugger would: they can be killed,
//! and an event tells when all stand still. The freezer of version 1 is older and ruder: a process
//! that it stopped does not even die before it is released, and nothing tells when it stands still.

use super::{
    FREEZER,
    group::{Group, field, is_gone, read, write},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs::File,
    io::{self, Read, Seek},
    path::Path,
    time::{Duration, Instant},
};

/// How long a process may keep all from standing still, in a call that cannot be interrupted.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the freezer of version 1 is asked.
const INTERVAL: Duration = Duration::from_millis(1);

impl Group {
    /// Stops all its processes, and returns when none of them runs any more. Blocks. On failure
    /// all go on. May be repeated.
    pub fn freeze(&self) -> io::Result<()> {
        let frozen = match (self.unified(), self.legacy_of(FREEZER)) {
            (Some(directory), _) => freeze_unified(directory),
            (None, Some(directory)) => freeze_legacy(directory),
            (None, None) => Err(io::ErrorKind::Unsupported.into()),
        };
        if frozen.is_err() {
            let _ = self.thaw();
        }
        frozen
    }

    /// Lets its processes go on. May be repeated.
    pub fn thaw(&self) -> io::Result<()> {
        match (self.unified(), self.legacy_of(FREEZER)) {
            (Some(directory), _) => write(directory, "cgroup.freeze", 0),
            (None, Some(directory)) => write(directory, "freezer.state", "THAWED"),
            (None, None) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether it was told to stand still.
    pub fn is_frozen(&self) -> io::Result<bool> {
        match (self.unified(), self.legacy_of(FREEZER)) {
            (Some(directory), _) => Ok(read(directory, "cgroup.freeze")?.trim() == "1"),
            (None, Some(directory)) => Ok(read(directory, "freezer.self_freezing")?.trim() == "1"),
            (None, None) => Ok(false),
        }
    }

    /// Processes that were killed while they stood still: with version 1 they end only now.
    pub(crate) fn release_killed(&self) {
        if self.unified().is_none()
            && let Some(directory) = self.legacy_of(FREEZER)
        {
            let _ = write(directory, "freezer.state", "THAWED");
        }
    }
}

fn freeze_unified(directory: &Path) -> io::Result<()> {
    let mut events = File::open(directory.join("cgroup.events"))?;
    write(directory, "cgroup.freeze", 1)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Reading is also what arms the event of the next change.
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if field(&text, "frozen") == 1 {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left))?;
    }
}

fn freeze_legacy(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A process that was just made may have slipped through: asking again catches it.
        write(directory, "freezer.state", "FROZEN")?;
        match read(directory, "freezer.state") {
            Ok(state) if state.trim() == "FROZEN" => return Ok(()),
            Err(error) if is_gone(&error) => return Err(error),
            _ if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            _ => std::thread::park_timeout(INTERVAL),
        }
    }
}
