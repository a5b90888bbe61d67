//! The kernel's interface to page faults: `ioctl_userfaultfd(2)`, `linux/userfaultfd.h`.

use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Makes a userfaultfd; asked of `/dev/userfaultfd`.
const NEW: libc::Ioctl = 0xAA00;
const WAKE: libc::Ioctl = 0x8010_AA02_u32 as libc::Ioctl;
const COPY: libc::Ioctl = 0xC028_AA03_u32 as libc::Ioctl;
const ZERO: libc::Ioctl = 0xC020_AA04_u32 as libc::Ioctl;

const FAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;

/// Bytes of an event.
const EVENT: usize = 32;

/// Events that are read at once.
const AT_ONCE: usize = 32;

#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

#[repr(C)]
struct CopyRequest {
    target: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct ZeroRequest {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// What happened to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody waits for the page at an address.
    Fault(u64),
    /// Memory from one address to another was given back, and holds zeros from now on.
    Remove(u64, u64),
}

/// What became of an attempt to fill memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes from the beginning are there.
    Bytes(u64),
    /// Something was there already.
    Present,
    /// Memory is being given back: read events first.
    Later,
    /// The machine is gone, or has no memory there any more.
    Gone,
}

/// Another process's memory, whose missing pages are filled from here.
#[derive(Debug)]
pub(super) struct Userfault(OwnedFd);

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Userfault {
    /// What another process sent; reading it will not wait.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(descriptor))
    }

    /// The events that are there now; none if there are none.
    pub(super) fn read(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [0u8; EVENT * AT_ONCE];
        let length = match rustix::io::read(&self.0, &mut buffer) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        buffer[..length].chunks_exact(EVENT).map(parse).collect()
    }

    /// Fills memory from here.
    pub(super) fn copy(&self, target: u64, source: &[u8]) -> io::Result<Filled> {
        let mut request = CopyRequest {
            target,
            source: source.as_ptr() as u64,
            length: source.len() as u64,
            mode: 0,
            copied: 0,
        };
        let outcome = control(&self.0, COPY, &raw mut request);
        understand(outcome, request.copied, source.len() as u64)
    }

    /// Fills memory with zeros, without giving it any yet.
    pub(super) fn zero(&self, start: u64, length: u64) -> io::Result<Filled> {
        let mut request = ZeroRequest {
            range: Range { start, length },
            mode: 0,
            zeroed: 0,
        };
        let outcome = control(&self.0, ZERO, &raw mut request);
        understand(outcome, request.zeroed, length)
    }

    /// Lets those go on who wait for memory that is there.
    pub(super) fn wake(&self, start: u64, length: u64) -> io::Result<()> {
        let mut range = Range { start, length };
        control(&self.0, WAKE, &raw mut range)
    }
}

fn parse(event: &[u8]) -> io::Result<Event> {
    let number = |at: usize| {
        let bytes = event
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    };
    match event.first() {
        Some(&FAULT) => Ok(Event::Fault(number(16))),
        Some(&REMOVE) => Ok(Event::Remove(number(8), number(16))),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an event that nobody asked for",
        )),
    }
}

fn understand(outcome: io::Result<()>, filled: i64, wanted: u64) -> io::Result<Filled> {
    match outcome {
        Ok(()) => Ok(Filled::Bytes(wanted)),
        // Stopped halfway.
        Err(_) if filled > 0 => Ok(Filled::Bytes(filled.unsigned_abs())),
        Err(error) => match error.raw_os_error() {
            Some(libc::EEXIST) => Ok(Filled::Present),
            Some(libc::EAGAIN) => Ok(Filled::Later),
            Some(libc::ESRCH | libc::ENOENT) => Ok(Filled::Gone),
            _ => Err(error),
        },
    }
}

fn control<T>(descriptor: &OwnedFd, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: each request gets a pointer to the structure that it is declared with, which outlives
    // the call; addresses in it are the other process's, or borrowed for the call.
    match unsafe { libc::ioctl(descriptor.as_raw_fd(), request, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether Firecracker, as nobody in its jail, can have one: from the device of this host, which the
/// jailer puts there, or before Linux 6.1 by a system call that everyone is allowed.
pub(in super::super) fn is_usable() -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = match rustix::fs::open("/dev/userfaultfd", flags, Mode::empty()) {
        Ok(device) => device,
        Err(error) => {
            let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
            return match allowed.unwrap_or_default().trim() {
                "1" => Ok(()),
                _ => Err(error.into()),
            };
        }
    };
    // SAFETY: takes flags for the new descriptor, and returns it or an error.
    unsafe {
        let made = libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC);
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(OwnedFd::from_raw_fd(made));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_understood_and_strange_ones_refused() {
        let mut event = [0u8; EVENT];
        event[0] = FAULT;
        event[16..24].copy_from_slice(&4096u64.to_ne_bytes());
        assert_eq!(parse(&event).unwrap(), Event::Fault(4096));
        event[0] = REMOVE;
        event[8..16].copy_from_slice(&1u64.to_ne_bytes());
        assert_eq!(parse(&event).unwrap(), Event::Remove(1, 4096));
        event[0] = 0x13;
        assert!(parse(&event).is_err());
        assert_eq!(size_of::<CopyRequest>(), 40);
        assert_eq!(size_of::<ZeroRequest>(), 32);
    }
}
