//! Policy: what may pass between nodes. What no rule allows does not pass.
//!
//! A policy is a text in TOML ([`Policy::parse`]). It is about names and tags, and brings tests of its own, which must hold before
//! a coordinator takes it. Each node compiles it for itself and the peers that it knows to a [`Filter`], and enforces it in both
//! directions, so a packet passes only if sender and receiver agree that it may.
//!
//! ```text
//! text ──parse──► Policy ──compile(me, peers)──► Filter ──┐
//!                                                         ├─► FilterGate::admit(peer, direction, packet)
//!                  flows that a rule let in: Answers ─────┘
//! ```
//!
//! [`Filter::allows`] is a pure function. Only [`FilterGate`] remembers: an answer to a packet that a rule let pass does too.
//!
//! ```toml
//! domain = "mesh.internal"            # what names end with
//!
//! [services.db]                       # db.mesh.internal is all nodes with the tag db
//! nodes = ["tag:db"]
//! ports = ["tcp/5432"]
//!
//! [[allow]]
//! from = ["tag:web"]
//! to = ["service:db"]                 # on the service's ports
//!
//! [[allow]]
//! from = ["tag:db"]
//! to = ["tag:db"]
//! ports = ["tcp/5432", "tcp/8000-8100", "icmp"]
//!
//! [sandboxes]                         # the tags that a tenant may give to its sandboxes
//! t0123456789ab = ["tag:ci"]
//!
//! [clusters.paris]                    # networks behind nodes ([`crate::clusters`])
//! nodes = ["tag:paris-gw"]
//! ranges = ["10.42.0.0/16"]
//!
//! [[allow]]
//! from = ["tag:web"]
//! to = ["cluster:paris"]              # `from` too
//! ports = ["tcp/443"]
//!
//! [[test]]
//! from = ["tag:web"]                  # a node with these tags
//! to = ["tag:db"]
//! port = "tcp/5432"
//! expect = "allow"
//! ```

mod answers;
mod clusters;
mod filter;
mod flow;
mod gate;
mod ports;
mod sandboxes;
#[cfg(test)]
mod tests;
mod text;

pub use filter::{Beyond, Filter, FilterPeer};
pub use flow::Flow;
pub use gate::{FilterGate, Gate};
pub use ports::{Allowance, Ports};
pub use sandboxes::for_nodes;
pub use text::{DEFAULT_DOMAIN, Mistake, Policy, Service, Subject};

/// Which way a packet goes, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the peer to this node.
    Inbound,
    /// From this node to the peer.
    Outbound,
}

impl Direction {
    /// The other.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }
}

/// Whether a packet passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Admit,
    /// It does not.
    Deny(Denial),
}

/// Why a packet does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denial {
    /// It is no whole IP packet, or hides what it carries.
    Malformed,
    /// The peer is not in the mesh.
    Peer,
    /// It is not between the addresses of this node and the peer.
    Address,
    /// No rule allows it, and it answers nothing.
    Rule,
}
