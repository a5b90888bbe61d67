//! Processes, told apart by their start time so that a reused pid is not taken for another.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// When a process started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, and may hold spaces and brackets.
    text.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The process with this pid and start time, if it lives.
pub(crate) fn find(pid: u32, started: u64) -> io::Result<Option<OwnedFd>> {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // The descriptor is of whoever has the pid now; who that is, is read while it is held.
    match start_time(pid) {
        Ok(time) if time == started && !has_ended(&process) => Ok(Some(process)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Watches a descriptor from the asynchronous runtime that this is called in.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same open file for as long as it is owned.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Whether the process of a pidfd has ended.
pub(crate) fn has_ended(process: impl AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut ready = [PollFd::new(&process, PollFlags::IN)];
    !matches!(poll(&mut ready, Some(&now)), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_pid_and_start_time_only() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        assert!(find(own, started).unwrap().is_some());
        assert!(find(own, started + 1).unwrap().is_none());
        assert!(find(u32::MAX, started).unwrap().is_none());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        let id = child.id();
        child.wait().unwrap();
        assert!(find(id, started).unwrap().is_none());
    }
}
