//! What `atoll mesh status` shows.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A node as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// What it is called.
    pub name: String,
    /// What names end with.
    pub domain: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The device of its tunnels.
    pub interface: String,
    /// The port of its tunnels.
    pub port: u16,
    /// Where its names are asked for.
    pub dns: Vec<SocketAddr>,
    /// How far it knows the coordinator's changes.
    pub cursor: u64,
    /// Whether it hears from the coordinator.
    pub connected: bool,
    /// Since when it does or does not, in milliseconds since 1970.
    pub since_ms: u64,
    /// What went wrong last between it and the coordinator.
    pub trouble: Option<String>,
    /// The services that were offered here, and whether each is ready.
    pub services: BTreeMap<String, bool>,
    /// Packets from this machine that policy held back.
    pub denied_outbound: u64,
    /// Packets from other nodes that policy held back.
    pub denied_inbound: u64,
    /// Everybody else in the mesh.
    pub peers: Vec<PeerSummary>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSummary {
    /// What it is called.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether policy lets anything pass. If not, there is no tunnel.
    pub allowed: bool,
    /// Where it was heard last, if not over a relay.
    pub endpoint: Option<SocketAddr>,
    /// The time of a round trip inside the tunnel, in microseconds, if it was measured lately.
    pub round_trip_us: Option<u64>,
    /// How long ago keys were agreed on, in seconds.
    pub handshake_seconds: Option<u64>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}
