//! Sending a batch of datagrams to one address.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::address::Name;
use super::{Socket, Wire};
use crate::batch::Batch;

/// Messages in one system call.
const MESSAGES: usize = 32;
/// Datagrams in one message (`UDP_MAX_SEGMENTS` of the first kernels that have it).
const SEGMENTS: usize = 64;
/// Bytes in one message: the longest UDP datagram over IPv4 is 65,507.
const LONGEST: usize = 65_000;
/// How long a full socket is waited for before what is left is dropped, as a full network card would.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Datagrams that the kernel took.
    pub(crate) datagrams: u64,
    /// Datagrams that it did not take.
    pub(crate) failed: u64,
}

/// Datagrams of a batch that go as one message: equal in length but for the last, which may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) length: usize,
}

impl Run {
    pub(super) const fn count(&self) -> usize {
        self.to - self.from
    }

    /// The run that begins at `from`; a single datagram unless `joins` says that its length may be joined.
    pub(super) fn at(batch: &Batch, from: usize, joins: impl Fn(usize) -> bool) -> Option<Self> {
        let length = batch.get(from)?.len();
        let mut run = Self {
            from,
            to: from + 1,
            length,
        };
        if length == 0 || !joins(length) {
            return Some(run);
        }
        let mut total = length;
        while let Some(next) = batch.get(run.to) {
            total += next.len();
            if next.is_empty() || next.len() > length || run.count() == SEGMENTS || total > LONGEST
            {
                break;
            }
            run.to += 1;
            if next.len() < length {
                break;
            }
        }
        Some(run)
    }
}

/// Room for one control message with a number of 16 bits.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 32]);

impl Wire {
    /// Sends all datagrams to the address, in order.
    pub(crate) fn send(&self, destination: SocketAddr, batch: &Batch) -> Sent {
        let mut sent = Sent::default();
        let Some((socket, destination)) = self.towards(destination) else {
            sent.failed = batch.len() as u64;
            return sent;
        };
        let name = Name::of(destination);
        let mut next = 0;
        while next < batch.len() {
            let mut runs = [Run {
                from: 0,
                to: 0,
                length: 0,
            }; MESSAGES];
            let mut count = 0;
            while count < MESSAGES
                && let Some(run) = Run::at(batch, next, |length| socket.joins(length))
            {
                runs[count] = run;
                next = run.to;
                count += 1;
            }
            socket.send_runs(&name, batch, &runs[..count], &mut sent);
        }
        sent
    }
}

impl Socket {
    /// Sends the runs, whatever becomes of some of them.
    fn send_runs(&self, name: &Name, batch: &Batch, mut runs: &[Run], sent: &mut Sent) {
        let mut waited = false;
        while let Some(first) = runs.first().copied() {
            match self.submit(name, batch, runs) {
                Ok(taken) => {
                    let (done, left) = runs.split_at(taken.min(runs.len()));
                    sent.datagrams += done.iter().map(|run| run.count() as u64).sum::<u64>();
                    runs = left;
                    waited = false;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::ENOBUFS) if !waited => {
                        waited = true;
                        let _ = poll(
                            &mut [PollFd::new(&self.fd, PollFlags::OUT)],
                            Some(&PATIENCE),
                        );
                    }
                    Some(code @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE))
                        if first.count() > 1 =>
                    {
                        self.send_singly(name, batch, first, code, sent);
                        runs = &runs[1..];
                    }
                    _ => {
                        sent.failed += first.count() as u64;
                        runs = &runs[1..];
                    }
                },
            }
        }
    }

    /// Sends a run's datagrams one by one after they were refused as one, and remembers what does not work.
    fn send_singly(&self, name: &Name, batch: &Batch, run: Run, code: i32, sent: &mut Sent) {
        let before = sent.datagrams;
        for from in run.from..run.to {
            let length = batch.get(from).map_or(0, <[u8]>::len);
            self.send_runs(
                name,
                batch,
                &[Run {
                    from,
                    to: from + 1,
                    length,
                }],
                sent,
            );
        }
        if sent.datagrams == before {
            // It was the address, not the length.
            return;
        }
        if code == libc::EIO {
            self.segments.store(false, Ordering::Relaxed);
            tracing::info!("the network device makes no checksums: sending datagrams one by one");
        } else {
            // Longer than the path takes whole (EMSGSIZE; EINVAL before Linux 6.9): these are fragmented, shorter
            // ones may still go as one.
            self.too_long.fetch_min(run.length, Ordering::Relaxed);
        }
    }

    /// One system call; how many messages the kernel took, at least one.
    fn submit(&self, name: &Name, batch: &Batch, runs: &[Run]) -> io::Result<usize> {
        // SAFETY: these structures are plain numbers and pointers, for which zero is a value.
        let mut messages: [libc::mmsghdr; MESSAGES] =
            unsafe { MaybeUninit::zeroed().assume_init() };
        let mut pieces = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; MESSAGES];
        let mut controls = [Control([0; 32]); MESSAGES];
        let count = runs.len().min(MESSAGES);
        for (at, run) in runs.iter().enumerate().take(count) {
            let bytes = batch.slice(run.from, run.to);
            pieces[at].iov_base = bytes.as_ptr().cast_mut().cast();
            pieces[at].iov_len = bytes.len();
            let header = &mut messages[at].msg_hdr;
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.length();
            header.msg_iov = &raw mut pieces[at];
            header.msg_iovlen = 1;
            if run.count() > 1 {
                header.msg_control = (&raw mut controls[at]).cast();
                // SAFETY: arithmetic only.
                header.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as _;
                // SAFETY: `msg_control` points to aligned room of at least `msg_controllen` bytes (24 of 32), so the first
                // header and the number behind it lie within.
                unsafe {
                    let control = libc::CMSG_FIRSTHDR(header);
                    (*control).cmsg_level = libc::SOL_UDP;
                    (*control).cmsg_type = libc::UDP_SEGMENT;
                    (*control).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
                    libc::CMSG_DATA(control)
                        .cast::<u16>()
                        .write_unaligned(run.length as u16);
                }
            }
        }
        // SAFETY: the first `count` messages are filled in, and all they point to outlives the call; the kernel only reads
        // names, pieces and controls.
        let taken = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                0,
            )
        };
        if taken <= 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(taken as usize)
    }
}
