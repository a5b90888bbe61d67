//! A policy as one node applies it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flow::Flow;
use super::ports::Ports;
use super::{Denial, Direction, Verdict};
use crate::key::PublicKey;

/// What may pass between this node and one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterPeer {
    /// The peer's address.
    pub v4: Ipv4Addr,
    /// The peer's address.
    pub v6: Ipv6Addr,
    /// The ports of this node that the peer may use.
    pub inbound: Box<[Ports]>,
    /// The ports of the peer that this node may use.
    pub outbound: Box<[Ports]>,
}

impl FilterPeer {
    /// Whether anything may pass at all.
    pub fn reachable(&self) -> bool {
        !self.inbound.is_empty() || !self.outbound.is_empty()
    }

    pub(super) fn rules(&self, direction: Direction) -> &[Ports] {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

/// What may pass between this node and its peers. With no peers in it, nothing does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// This node's addresses.
    own: Option<(Ipv4Addr, Ipv6Addr)>,
    peers: HashMap<PublicKey, FilterPeer>,
}

impl Filter {
    /// A filter of the node with these addresses.
    pub fn new(
        own: (Ipv4Addr, Ipv6Addr),
        peers: impl IntoIterator<Item = (PublicKey, FilterPeer)>,
    ) -> Self {
        Self {
            own: Some(own),
            peers: peers.into_iter().collect(),
        }
    }

    /// What may pass between this node and the peer.
    pub fn peer(&self, peer: &PublicKey) -> Option<&FilterPeer> {
        self.peers.get(peer)
    }

    /// Whether a packet that begins something passes. Allocates nothing, remembers nothing.
    pub fn allows(&self, peer: &PublicKey, direction: Direction, flow: &Flow) -> Verdict {
        let rules = match self.between(peer, direction, flow) {
            Ok(peer) => peer.rules(direction),
            Err(denial) => return Verdict::Deny(denial),
        };
        if rules
            .iter()
            .any(|ports| ports.contains(flow.protocol, flow.destination_port))
        {
            Verdict::Admit
        } else {
            Verdict::Deny(Denial::Rule)
        }
    }

    /// The peer, if the packet is between its addresses and this node's.
    pub(super) fn between(
        &self,
        peer: &PublicKey,
        direction: Direction,
        flow: &Flow,
    ) -> Result<&FilterPeer, Denial> {
        let peer = self.peers.get(peer).ok_or(Denial::Peer)?;
        let (mine, theirs) = match direction {
            Direction::Inbound => (flow.destination, flow.source),
            Direction::Outbound => (flow.source, flow.destination),
        };
        let right = self.own.is_some_and(|own| match (mine, theirs) {
            (IpAddr::V4(mine), IpAddr::V4(theirs)) => mine == own.0 && theirs == peer.v4,
            (IpAddr::V6(mine), IpAddr::V6(theirs)) => mine == own.1 && theirs == peer.v6,
            _ => false,
        });
        if right {
            Ok(peer)
        } else {
            Err(Denial::Address)
        }
    }
}
