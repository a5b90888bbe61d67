//! The socket between a guest in a container and the driver's keeper.
//!
//! Sequenced packets: each message is one JSON document, with at most one descriptor beside it.

use super::{CellError, Doing};
use api::boot::{CellClaim, CellSetup, GuestEvent};
use rustix::{
    io::{Errno, IoSliceMut},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send},
};
use serde::de::DeserializeOwned;
use std::{mem::MaybeUninit, os::fd::OwnedFd};

/// No message from the driver is longer.
const LONGEST_MESSAGE: usize = 256 << 10;

/// The guest's end of the socket. It stays open until the sandbox ends, so that nothing else can
/// take its descriptor's place; after the claim, its closing at the other end means nothing.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    pub(super) fn new(socket: OwnedFd) -> Self {
        // A child of the guest must not inherit it. Failure is impossible for a valid descriptor.
        let _ = rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC);
        Self(socket)
    }

    /// Says that the sandbox serves.
    pub fn ready(self) {
        // The node may be gone; a sandbox that was claimed goes on without it.
        let _ = self.send(&GuestEvent::Ready);
    }

    /// Says that the sandbox cannot serve, and why.
    pub fn failed(&self, message: &str) {
        let message = message.chars().take(1000).collect();
        let _ = self.send(&GuestEvent::Failed { message });
    }

    pub(super) fn send(&self, event: &GuestEvent) -> Result<(), CellError> {
        let text =
            serde_json::to_vec(event).map_err(|error| CellError::Message(error.to_string()))?;
        match send(&self.0, &text, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(CellError::Abandoned),
            Err(error) => Err(error).doing("answer the node"),
        }
    }

    pub(super) fn receive_setup(&self) -> Result<(CellSetup, Option<OwnedFd>), CellError> {
        self.receive()
    }

    pub(super) fn receive_claim(&self) -> Result<(CellClaim, OwnedFd), CellError> {
        let (claim, root) = self.receive()?;
        let root =
            root.ok_or_else(|| CellError::Message("the claim brought no root file system".into()))?;
        Ok((claim, root))
    }

    fn receive<T: DeserializeOwned>(&self) -> Result<(T, Option<OwnedFd>), CellError> {
        // Ask for the length first: a waiting guest should not hold a buffer for the longest.
        let mut nothing = [0u8; 1];
        let length = loop {
            match recv(&self.0, &mut nothing, RecvFlags::PEEK | RecvFlags::TRUNC) {
                Ok((_, length)) => break length,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(CellError::Abandoned),
                Err(error) => return Err(error).doing("wait for the node"),
            }
        };
        if length == 0 {
            return Err(CellError::Abandoned);
        }
        if length > LONGEST_MESSAGE {
            return Err(CellError::Message(format!("{length} bytes are too many")));
        }
        let mut text = vec![0u8; length];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .doing("hear the node")?;
        text.truncate(received.bytes);
        let mut descriptor = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for each in descriptors {
                    descriptor.get_or_insert(each);
                }
            }
        }
        let message =
            serde_json::from_slice(&text).map_err(|error| CellError::Message(error.to_string()))?;
        Ok((message, descriptor))
    }
}
