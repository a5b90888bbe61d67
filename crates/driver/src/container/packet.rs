//! Sequenced packets with descriptors: how client, keeper and cells speak.
//!
//! A packet is one JSON document and at most [`MOST_DESCRIPTORS`] descriptors. Packets keep their
//! bounds, so nothing needs framing, and a peer that dies is seen as an end.

use rustix::{
    io::{Errno, IoSlice, IoSliceMut},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg,
        socketpair,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The longest packet that is sent or taken: an identity with a large environment.
pub(crate) const LONGEST_PACKET: usize = 256 << 10;

/// The most descriptors that travel with one packet.
pub(crate) const MOST_DESCRIPTORS: usize = 16;

/// What was received.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// A packet with its descriptors, in order.
    Packet(T, Vec<OwnedFd>),
    /// Nothing for now; only on a socket that does not block.
    Nothing,
    /// The other end is gone.
    End,
}

/// A pair of connected sockets; both close on `exec`, neither blocks.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    make_room(&one)?;
    make_room(&other)?;
    Ok((one, other))
}

/// Lets a socket hold packets of the longest size.
pub(crate) fn make_room(socket: impl AsFd) -> io::Result<()> {
    // The kernel counts its bookkeeping too, and clamps what is not forced.
    let size = 4 * LONGEST_PACKET;
    rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, size)
        .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&socket, size))?;
    Ok(())
}

/// Sends one packet. A full socket is an error (`WouldBlock`), as is a packet that is too long.
pub(crate) fn send(
    socket: impl AsFd,
    packet: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(packet)?;
    if text.len() > LONGEST_PACKET || descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(
            &socket,
            &[IoSlice::new(&text)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes one packet. One that cannot be understood is an error (`InvalidData`) and is consumed.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Received<T>> {
    let mut nothing = [0u8; 1];
    let length = loop {
        match recv(&socket, &mut nothing, RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, length)) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Ok(Received::End),
            Err(error) => return Err(error.into()),
        }
    };
    if length == 0 {
        return Ok(Received::End);
    }
    // A longer one is cut off, and then does not parse.
    let mut text = vec![0u8; length.min(LONGEST_PACKET)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    text.truncate(received.bytes);
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let packet = serde_json::from_slice(&text)?;
    Ok(Received::Packet(packet, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_carry_descriptors_and_end() {
        let (one, other) = pair().unwrap();
        send(&one, &"hello", &[one.as_fd(), other.as_fd()]).unwrap();
        match receive::<String>(&other).unwrap() {
            Received::Packet(text, descriptors) => {
                assert_eq!(text, "hello");
                assert_eq!(descriptors.len(), 2);
            }
            unexpected => panic!("{unexpected:?}"),
        }
        assert!(matches!(
            receive::<String>(&other).unwrap(),
            Received::Nothing
        ));
        send(&one, &42, &[]).unwrap();
        assert_eq!(
            receive::<String>(&other).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        drop(one);
        assert!(matches!(receive::<String>(&other).unwrap(), Received::End));
    }

    #[test]
    fn the_longest_packet_passes_and_a_longer_one_does_not() {
        let (one, other) = pair().unwrap();
        let text = "x".repeat(LONGEST_PACKET - 2);
        send(&one, &text, &[]).unwrap();
        assert!(
            matches!(receive::<String>(&other).unwrap(), Received::Packet(got, _) if got == text)
        );
        assert!(send(&one, &"x".repeat(LONGEST_PACKET), &[]).is_err());
    }
}
