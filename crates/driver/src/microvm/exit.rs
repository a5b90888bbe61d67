//! How a process ended that is nobody's child here.
//!
//! A machine that an earlier run of this program started is reaped by the host's first process, as
//! is every Firecracker, whose parent is a jailer that ends. Since Linux 6.15 whoever holds a pidfd
//! can still ask for the status.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

// linux/pidfd.h
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info`, in its first size: mask, control group, eleven numbers, status.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    group: u64,
    numbers: [u32; 11],
    status: i32,
}

/// What is known, in half a sentence.
pub(super) fn describe(process: impl AsFd) -> String {
    match status(process) {
        Ok(Some(status)) if libc::WIFSIGNALED(status) => {
            format!(
                "its machine was killed by signal {}",
                libc::WTERMSIG(status)
            )
        }
        Ok(Some(status)) => format!("its machine ended with code {}", libc::WEXITSTATUS(status)),
        _ => "its machine ended".into(),
    }
}

fn status(process: impl AsFd) -> io::Result<Option<i32>> {
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: the structure is of the size that the request names, and outlives the call.
    let done = unsafe { libc::ioctl(process.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    #[test]
    fn an_end_is_described_or_at_least_told() {
        assert_eq!(size_of::<Info>(), 64);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "kill -9 $$"])
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        let text = describe(&process);
        assert!(
            text == "its machine was killed by signal 9" || text == "its machine ended",
            "{text}"
        );
    }
}
