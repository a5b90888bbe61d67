//! A policy as one node applies it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flow::Flow;
use super::ports::Allowance;
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
    pub inbound: Box<[Allowance]>,
    /// The ports of the peer that this node may use.
    pub outbound: Box<[Allowance]>,
}

impl FilterPeer {
    /// Whether anything may pass at all.
    pub fn reachable(&self) -> bool {
        !self.inbound.is_empty() || !self.outbound.is_empty()
    }

    /// The line of the first rule that lets a flow begin in this direction.
    pub(super) fn rule(&self, direction: Direction, flow: &Flow) -> Option<u32> {
        let rules = match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        };
        let port = flow.destination_port;
        let mut rules = rules.iter();
        let rule = rules.find(|rule| rule.ports.contains(flow.protocol, port));
        rule.map(|rule| rule.line)
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
        match self.rule(peer, direction, flow) {
            Ok(_) => Verdict::Admit,
            Err(denial) => Verdict::Deny(denial),
        }
    }

    /// As [`Filter::allows`], with the line of the rule that lets it pass, the first if there are several.
    ///
    /// # Errors
    /// It does not pass.
    pub fn rule(&self, peer: &PublicKey, direction: Direction, flow: &Flow) -> Result<u32, Denial> {
        let rules = self.between(peer, direction, flow)?;
        rules.rule(direction, flow).ok_or(Denial::Rule)
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
