//! Which way into the mesh a machine allows: a device here, one in a user namespace of its own, or none.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::Error;
use crate::tun::{Tun, TunOptions};

const DEVICE: &std::ffi::CStr = c"/dev/net/tun";
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// `IFF_TUN | IFF_NO_PI`.
const FLAGS: i16 = 0x1001;
/// The length of `struct ifreq`, and where its flags are.
const REQUEST: usize = 40;
const FLAGS_AT: usize = 16;

/// Whether this machine lets this process have a network device: one is made, and gone again.
///
/// # Errors
/// Why it does not.
pub fn device_allowed() -> Result<(), Error> {
    Tun::create(&TunOptions::default(), None).map(drop)
}

/// What could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start a process that tries.
    Try,
    /// Make a user namespace.
    Namespace,
    /// Open the kernel's device for devices.
    Open,
    /// Make a device.
    Make,
}

/// Why there is no device in a user namespace.
#[derive(Debug, thiserror::Error)]
#[error("cannot {}: {source}", match .step {
    Step::Try => "start a process that tries",
    Step::Namespace => "make a user namespace",
    Step::Open => "open /dev/net/tun",
    Step::Make => "make a device in a user namespace",
})]
pub struct NamespaceRefusal {
    /// What could not be done.
    pub step: Step,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Whether this machine lets this process have a network device in a user namespace of its own: a child makes both, and ends.
///
/// # Errors
/// Why it does not.
pub fn namespace_device_allowed() -> Result<(), NamespaceRefusal> {
    let refuse = |source| NamespaceRefusal {
        step: Step::Try,
        source,
    };
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| refuse(error.into()))?;
    // Never executed: the child tries and ends before.
    let mut command = Command::new("/proc/self/exe");
    let told = writer.as_raw_fd();
    // SAFETY: what runs between fork and exec are system calls on memory of this closure alone; `told` is open until the child was started.
    unsafe { command.pre_exec(move || Err(attempt(told))) };
    let error = match command.spawn() {
        Err(error) => error,
        Ok(mut child) => {
            let ended = child.wait();
            return Err(refuse(ended.err().unwrap_or(io::ErrorKind::Other.into())));
        }
    };
    drop(writer);
    match step(reader) {
        Some(None) => Ok(()),
        Some(Some(step)) => Err(NamespaceRefusal {
            step,
            source: error,
        }),
        None => Err(refuse(error)),
    }
}

/// What the child said: how far it came, if it began.
fn step(reader: OwnedFd) -> Option<Option<Step>> {
    let mut byte = [0];
    File::from(reader).read_exact(&mut byte).ok()?;
    match byte[0] {
        b'n' => Some(Some(Step::Namespace)),
        b'o' => Some(Some(Step::Open)),
        b'm' => Some(Some(Step::Make)),
        b'y' => Some(None),
        _ => None,
    }
}

/// Makes a user namespace with a network of its own and a device in it, and says how far it came. Runs in a child between fork and exec: nothing
/// is allocated or locked.
fn attempt(told: i32) -> io::Error {
    let end = |step: u8| {
        let error = io::Error::last_os_error();
        // SAFETY: one byte of a local is written to a descriptor that the parent keeps open.
        unsafe { libc::write(told, (&raw const step).cast(), 1) };
        error
    };
    // SAFETY: system calls; the path ends with a zero, and `request` is as long as the kernel reads and writes.
    unsafe {
        if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) != 0 {
            return end(b'n');
        }
        let device = libc::open(DEVICE.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if device < 0 {
            return end(b'o');
        }
        let mut request = [0_u8; REQUEST];
        request[FLAGS_AT..FLAGS_AT + 2].copy_from_slice(&FLAGS.to_ne_bytes());
        if libc::ioctl(device, TUNSETIFF, request.as_mut_ptr()) < 0 {
            return end(b'm');
        }
        let _ = end(b'y');
    }
    io::Error::from_raw_os_error(libc::ECANCELED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_in_a_namespace_leaves_nothing_behind() {
        let names = || {
            let all = std::fs::read_dir("/sys/class/net").unwrap();
            let mut all: Vec<_> = all.map(|one| one.unwrap().file_name()).collect();
            all.sort();
            all
        };
        let before = names();
        // `unshare` says whether this machine allows it at all.
        let other = Command::new("unshare")
            .args(["-Urn", "ip", "tuntap", "add", "probe0", "mode", "tun"])
            .output();
        let allowed = other.is_ok_and(|output| output.status.success());
        match namespace_device_allowed() {
            Ok(()) => assert!(allowed),
            Err(error) => assert!(!allowed, "{error}"),
        }
        assert_eq!(names(), before);
    }
}
