//! Receiving datagrams, many at a time.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::Socket;
use super::address::Name;

/// Messages in one system call.
const MESSAGES: usize = 8;
/// Room for one message: what the kernel joins is at most this.
const ROOM: usize = 65_536;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

#[derive(Debug, Clone, Copy)]
struct Message {
    source: Option<SocketAddr>,
    length: usize,
    segment: usize,
}

/// Room for datagrams, used again and again.
pub(crate) struct Receiver {
    bytes: Vec<u8>,
    messages: Vec<Message>,
}

impl Receiver {
    /// Half a megabyte of room; the kernel gives memory only to what is used of it.
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; MESSAGES * ROOM],
            messages: Vec::with_capacity(MESSAGES),
        }
    }

    /// Takes what there is now, and forgets what was there. Whether there may be more.
    pub(crate) fn receive(&mut self, socket: &Socket) -> io::Result<bool> {
        self.messages.clear();
        let mut names = [Name::empty(); MESSAGES];
        let mut controls = [Control([0; 64]); MESSAGES];
        let mut pieces = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; MESSAGES];
        // SAFETY: these structures are plain numbers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { MaybeUninit::zeroed().assume_init() };
        for (at, room) in self.bytes.chunks_exact_mut(ROOM).take(MESSAGES).enumerate() {
            pieces[at].iov_base = room.as_mut_ptr().cast();
            pieces[at].iov_len = room.len();
            let header = &mut headers[at].msg_hdr;
            header.msg_namelen = names[at].length();
            header.msg_name = names[at].as_mut_ptr();
            header.msg_iov = &raw mut pieces[at];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[at]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: all headers are filled in, the lengths are those of what they point to, and all of it outlives the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                MESSAGES as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(false),
                _ => Err(error),
            };
        }
        for (header, name) in headers.iter().zip(&names).take(count as usize) {
            let length = (header.msg_len as usize).min(ROOM);
            let segment = segment_length(&header.msg_hdr).filter(|segment| *segment > 0);
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            self.messages.push(Message {
                source: name.read(),
                length: if truncated { 0 } else { length },
                segment: segment.unwrap_or(length).max(1),
            });
        }
        Ok(count as usize == MESSAGES)
    }

    /// What was received: for each message its source and its datagrams.
    pub(crate) fn messages(
        &self,
    ) -> impl Iterator<Item = (SocketAddr, std::slice::Chunks<'_, u8>)> {
        self.messages
            .iter()
            .zip(self.bytes.chunks_exact(ROOM))
            .filter_map(|(message, room)| {
                Some((
                    message.source?,
                    room[..message.length].chunks(message.segment),
                ))
            })
    }
}

/// The length of the datagrams that were joined, if any were.
fn segment_length(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote `msg_controllen` bytes of control messages, at most as many as there is room for, and the macros
    // stay within them. The number behind a UDP_GRO header is an int.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let value = libc::CMSG_DATA(control)
                    .cast::<libc::c_int>()
                    .read_unaligned();
                return usize::try_from(value).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
