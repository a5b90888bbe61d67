//! Netlink: messages, attributes and a blocking socket (RFC 3549, `include/uapi/linux/netlink.h`).
//!
//! The socket blocks, because it is used on threads that sit in another network namespace and
//! live for one slot only; several requests travel in one datagram, so that a slot costs few
//! system calls. What the messages mean is in [`super::link`].

use super::error::NetworkError;
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::SocketAddrNetlink,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use std::{io, time::Duration};

/// Longest wait for an answer. The kernel answers at once, unless its lock is held for long.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Room for one datagram of answers; the kernel's dumps use at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// How often a dump that was disturbed by a change is asked for again.
const DUMP_ATTEMPTS: u32 = 16;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const ATTRIBUTE_NESTED: u16 = 0x8000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// Flag of a request: replace what is there.
pub(super) const REPLACE: u16 = 0x100;
/// Flag of a request: fail if it is there.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// Flag of a request: create it if it is not there.
pub(super) const CREATE: u16 = 0x400;
/// Flag of a request: after what is there.
pub(super) const APPEND: u16 = 0x800;

/// Requests that are sent in one datagram and carried out in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    doing: Vec<&'static str>,
}

/// The body of a request, being written.
#[derive(Debug)]
pub(super) struct Body<'a>(&'a mut Vec<u8>);

impl Batch {
    /// Adds a request. `doing` tells in an error what it was for.
    pub(super) fn push(
        &mut self,
        doing: &'static str,
        kind: u16,
        flags: u16,
        write: impl FnOnce(&mut Body<'_>),
    ) {
        let start = self.bytes.len();
        self.doing.push(doing);
        let sequence = self.doing.len() as u32;
        write_header(
            &mut self.bytes,
            kind,
            flags | NLM_F_REQUEST | NLM_F_ACK,
            sequence,
        );
        write(&mut Body(&mut self.bytes));
        close_message(&mut self.bytes, start);
    }

    /// Adds a message that the kernel does not answer: the frame around others.
    pub(super) fn push_unanswered(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        write_header(&mut self.bytes, kind, NLM_F_REQUEST, 0);
        write(&mut Body(&mut self.bytes));
        close_message(&mut self.bytes, start);
    }
}

fn write_header(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32) {
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
}

fn close_message(bytes: &mut [u8], start: usize) {
    let length = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

impl Body<'_> {
    /// Adds bytes as they are: the fixed part of a message.
    pub(super) fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.pad();
    }

    /// Adds an attribute.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |body| body.fixed(value), value.len());
    }

    /// Adds an attribute that holds a number.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// Adds an attribute that holds a text, ended by a zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn attributes(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        self.nest(
            kind | ATTRIBUTE_NESTED,
            write,
            usize::MAX - ATTRIBUTE_HEADER,
        );
    }

    fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>), length: usize) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
        write(&mut Body(self.0));
        // The length leaves out the padding of a plain value.
        let length = length.min(self.0.len() - start - ATTRIBUTE_HEADER) + ATTRIBUTE_HEADER;
        self.0[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The attributes in a message after its fixed part. Ends at the first one that is malformed.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & ATTRIBUTE_TYPE;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number at a place of a message, if the message is that long.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[derive(Debug)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The error in the body of an `NLMSG_ERROR` or `NLMSG_DONE`, if it is one.
fn error_of(body: &[u8]) -> Option<io::Error> {
    match u32_at(body, 0)? as i32 {
        0 => None,
        code => Some(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for interfaces, addresses and routes that receives what happens in `groups`.
    pub(super) fn route(groups: u32) -> Result<Self, NetworkError> {
        Self::open(None, groups)
    }

    /// A socket for the tables of netfilter that receives what happens in `groups`.
    pub(super) fn netfilter(groups: u32) -> Result<Self, NetworkError> {
        Self::open(Some(rustix::net::netlink::NETFILTER), groups)
    }

    fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self, NetworkError> {
        let fail = |source: Errno| NetworkError::system("opening a netlink socket", source);
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(fail)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_DEADLINE)).map_err(fail)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(fail)?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Carries out all requests in order; the error is that of the first that failed. Those after
    /// a failed one are carried out too, as far as they can be.
    pub(super) fn execute(&mut self, batch: Batch) -> Result<(), NetworkError> {
        let Batch { bytes, doing } = batch;
        let label = doing.first().copied().unwrap_or("asking the kernel");
        self.send(&bytes, label)?;
        let mut outcomes: Vec<Option<Result<(), io::Error>>> = Vec::new();
        outcomes.resize_with(doing.len(), || None);
        while outcomes.iter().any(Option::is_none) {
            let length = self.receive(label)?;
            for message in messages(&self.buffer[..length]) {
                let index = (message.sequence as usize).wrapping_sub(1);
                if let (NLMSG_ERROR, Some(outcome)) = (message.kind, outcomes.get_mut(index)) {
                    *outcome = Some(error_of(message.body).map_or(Ok(()), Err));
                }
            }
        }
        for (doing, outcome) in doing.into_iter().zip(outcomes) {
            if let Some(Err(source)) = outcome {
                return Err(NetworkError::system(doing, source));
            }
        }
        Ok(())
    }

    /// The bodies of all messages of a dump, consistent with one moment.
    pub(super) fn dump(
        &mut self,
        doing: &'static str,
        kind: u16,
        fixed: &[u8],
    ) -> Result<Vec<Vec<u8>>, NetworkError> {
        for attempt in 1..=DUMP_ATTEMPTS {
            if let Some(bodies) = self.dump_once(doing, kind, fixed, attempt)? {
                return Ok(bodies);
            }
        }
        Err(NetworkError::Deadline(doing))
    }

    fn dump_once(
        &mut self,
        doing: &'static str,
        kind: u16,
        fixed: &[u8],
        sequence: u32,
    ) -> Result<Option<Vec<Vec<u8>>>, NetworkError> {
        let mut request = Vec::new();
        write_header(&mut request, kind, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        Body(&mut request).fixed(fixed);
        close_message(&mut request, 0);
        self.send(&request, doing)?;
        let mut bodies = Vec::new();
        let mut disturbed = false;
        loop {
            let length = self.receive(doing)?;
            for message in messages(&self.buffer[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                disturbed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        if let Some(source) = error_of(message.body) {
                            return Err(NetworkError::system(doing, source));
                        }
                        return Ok((!disturbed).then_some(bodies));
                    }
                    _ => bodies.push(message.body.to_vec()),
                }
            }
        }
    }

    /// Waits until `wanted` holds for the kind and body of a message that the socket's groups
    /// bring; at most as long as an answer may take.
    pub(super) fn wait(
        &mut self,
        doing: &'static str,
        mut wanted: impl FnMut(u16, &[u8]) -> bool,
    ) -> Result<(), NetworkError> {
        loop {
            let length = self.receive(doing)?;
            if messages(&self.buffer[..length]).any(|message| wanted(message.kind, message.body)) {
                return Ok(());
            }
        }
    }

    /// Reads all messages that wait, without waiting for more. Whether `wanted` holds for the kind
    /// and body of one of them, or some were lost.
    pub(super) fn drain(
        &mut self,
        wanted: impl Fn(u16, &[u8]) -> bool,
    ) -> Result<bool, NetworkError> {
        let mut seen = false;
        loop {
            let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            match rustix::net::recv(&self.socket, &mut self.buffer[..], flags) {
                Ok((length, _)) => {
                    let read = &self.buffer[..length.min(self.buffer.len())];
                    seen |= messages(read).any(|message| wanted(message.kind, message.body));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(seen),
                Err(Errno::NOBUFS) => seen = true,
                Err(source) => return Err(NetworkError::system("reading from netlink", source)),
            }
        }
    }

    fn send(&self, bytes: &[u8], doing: &'static str) -> Result<(), NetworkError> {
        rustix::net::sendto(
            &self.socket,
            bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )
        .map_err(|source| NetworkError::system(doing, source))?;
        Ok(())
    }

    fn receive(&mut self, doing: &'static str) -> Result<usize, NetworkError> {
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC) {
                Ok((_, length)) if length > self.buffer.len() => {
                    return Err(NetworkError::Answer(doing));
                }
                Ok((_, length)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(NetworkError::Deadline(doing)),
                Err(source) => return Err(NetworkError::system(doing, source)),
            }
        }
    }

    /// The index of an interface; `None` if there is none of that name.
    pub(super) fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        match rustix::net::netdevice::name_to_index(&self.socket, name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(source) => Err(NetworkError::system(
                format!("looking for the interface {name}"),
                source,
            )),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::default();
        batch.push("first", 16, CREATE, |body| {
            body.fixed(&[7; 16]);
            body.text(3, "eth0");
            body.attributes(18, |body| body.number(5, 77));
            body.attribute(8, &[1]);
        });
        batch.push("second", 17, 0, |body| body.fixed(&[8; 16]));
        let read: Vec<_> = messages(&batch.bytes).collect();
        assert_eq!((read.len(), read[0].kind, read[1].sequence), (2, 16, 2));
        let found: Vec<_> = attributes(&read[0].body[16..]).collect();
        assert_eq!(found[0], (3, &b"eth0\0"[..]));
        assert_eq!(
            attributes(found[1].1).next(),
            Some((5, &77_u32.to_ne_bytes()[..]))
        );
        assert_eq!(found[2], (8, &[1][..]));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn malformed_messages_end_the_reading() {
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[255; 64]).count(), 0);
        assert_eq!(attributes(&[0; 8]).count(), 0);
        assert_eq!(attributes(&[255; 8]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1]).count(), 0);
    }

    #[test]
    fn an_error_names_what_was_being_done() {
        let mut socket = Socket::route(0).unwrap();
        let mut batch = Batch::default();
        batch.push("deleting nothing", 17, 0, |body| {
            body.fixed(&[0; 16]);
            body.text(3, "atoll-nothing");
        });
        let error = socket.execute(batch).unwrap_err();
        assert_eq!(error.to_string(), "deleting nothing");
        assert_eq!(socket.index("lo").unwrap(), Some(1));
        assert_eq!(socket.index("atoll-nothing").unwrap(), None);
    }
}
