//! Where messages come from and go to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::relays::Link;
use crate::batch::Batch;
use crate::crypto::INITIATION;
use crate::path::Route;
use crate::relay::Short;
use crate::wire::Wire;

/// One end of a message's way, as this node sees it.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// This address.
    Direct(SocketAddr),
    /// The node behind this relay.
    Relay(Arc<Link>, Short),
}

impl Way {
    /// How the path agent calls it.
    pub(super) fn route(&self) -> Route {
        match self {
            Self::Direct(address) => Route::Direct(*address),
            Self::Relay(link, _) => Route::Relay(link.id),
        }
    }

    /// Who has to answer for a message: of relayed ones, the relay.
    pub(super) fn source(&self) -> IpAddr {
        match self {
            Self::Direct(address) => address.ip(),
            Self::Relay(link, _) => link
                .place()
                .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip()),
        }
    }

    /// Sends all; how many could not be sent. `framed` is room to work in.
    pub(super) fn send(&self, wire: &Wire, batch: &Batch, framed: &mut Batch) -> u64 {
        match self {
            Self::Direct(address) => wire.send(*address, batch).failed,
            Self::Relay(link, to) => link.send(wire, *to, batch, framed),
        }
    }
}

/// A message that is not data, copied out of the way of data, and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) source: Way,
    length: usize,
    bytes: [u8; INITIATION],
}

impl Letter {
    /// Copies it; `None` if it is longer than any message of a handshake.
    pub(super) fn new(source: Way, message: &[u8]) -> Option<Self> {
        let mut bytes = [0; INITIATION];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Self {
            source,
            length: message.len(),
            bytes,
        })
    }

    /// The message.
    pub(super) fn message(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
