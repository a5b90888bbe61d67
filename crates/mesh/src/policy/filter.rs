//! A policy as one node applies it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flow::Flow;
use super::ports::Allowance;
use super::{Denial, Direction, Verdict};
use crate::key::PublicKey;
use crate::prefix::Prefix;

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

    fn rules(&self) -> Rules<'_> {
        Rules {
            inbound: &self.inbound,
            outbound: &self.outbound,
        }
    }
}

/// What may pass between this node and a peer where at least one end is in a cluster behind one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    /// The ranges of the cluster behind this node; `None` for this node itself.
    pub mine: Option<Box<[Prefix]>>,
    /// The ranges of the cluster behind the peer; `None` for the peer itself.
    pub theirs: Option<Box<[Prefix]>>,
    /// What may come in.
    pub inbound: Box<[Allowance]>,
    /// What may go out.
    pub outbound: Box<[Allowance]>,
}

/// What may pass between two ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) inbound: &'a [Allowance],
    pub(super) outbound: &'a [Allowance],
}

impl Rules<'_> {
    /// The line of the first rule that lets a flow begin in this direction.
    pub(super) fn rule(&self, direction: Direction, flow: &Flow) -> Option<u32> {
        let rules = match direction {
            Direction::Inbound => self.inbound,
            Direction::Outbound => self.outbound,
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
    beyond: HashMap<PublicKey, Box<[Beyond]>>,
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
            beyond: HashMap::new(),
        }
    }

    /// The same, and what may pass from and to clusters by way of peers.
    #[must_use]
    pub fn with_clusters(
        mut self,
        beyond: impl IntoIterator<Item = (PublicKey, Vec<Beyond>)>,
    ) -> Self {
        let some = beyond.into_iter().filter(|(_, all)| !all.is_empty());
        self.beyond = some.map(|(key, all)| (key, all.into())).collect();
        self
    }

    /// Whether anything may pass between this node and the peer, or what is behind them.
    pub fn reachable(&self, peer: &PublicKey) -> bool {
        let rules = self.peers.get(peer);
        rules.is_some_and(FilterPeer::reachable) || self.beyond.contains_key(peer)
    }

    /// Whether something may pass between this node, or what is behind it, and a cluster behind the peer that has this range.
    pub fn reaches(&self, peer: &PublicKey, range: Prefix) -> bool {
        let mut beyond = self.beyond.get(peer).into_iter().flatten();
        beyond.any(|beyond| {
            beyond
                .theirs
                .iter()
                .flatten()
                .any(|theirs| *theirs == range)
        })
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

    /// What may pass between the two ends, if they are this node and the peer, or in clusters behind them.
    pub(super) fn between(
        &self,
        peer: &PublicKey,
        direction: Direction,
        flow: &Flow,
    ) -> Result<Rules<'_>, Denial> {
        let rules = self.peers.get(peer).ok_or(Denial::Peer)?;
        let (mine, theirs) = match direction {
            Direction::Inbound => (flow.destination, flow.source),
            Direction::Outbound => (flow.source, flow.destination),
        };
        let own = self.own.ok_or(Denial::Address)?;
        let me = mine == IpAddr::V4(own.0) || mine == IpAddr::V6(own.1);
        let them = theirs == IpAddr::V4(rules.v4) || theirs == IpAddr::V6(rules.v6);
        if mine.is_ipv4() != theirs.is_ipv4() {
            return Err(Denial::Address);
        }
        if me && them {
            return Ok(rules.rules());
        }
        let mut beyond = self.beyond.get(peer).into_iter().flatten();
        let is = |ranges: &Option<Box<[Prefix]>>, address, node| match ranges {
            Some(ranges) => ranges.iter().any(|range| range.contains(address)),
            None => node,
        };
        let found =
            beyond.find(|beyond| is(&beyond.mine, mine, me) && is(&beyond.theirs, theirs, them));
        let found = found.ok_or(Denial::Address)?;
        Ok(Rules {
            inbound: &found.inbound,
            outbound: &found.outbound,
        })
    }
}
