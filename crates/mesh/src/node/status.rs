//! What `atoll mesh status` shows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::coordination::{Mode, Voucher};

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
    /// How packets get in and out.
    pub mode: Mode,
    /// Where its services listen.
    pub home: Ipv4Addr,
    /// The device of its tunnels, if it has one.
    pub interface: Option<String>,
    /// The port of its tunnels, if it has some.
    pub port: Option<u16>,
    /// The port of its flows.
    pub flows_port: u16,
    /// Where its names are asked for.
    pub dns: Vec<SocketAddr>,
    /// Where its proxies listen, for SOCKS5 and HTTP CONNECT.
    pub proxies: Vec<SocketAddr>,
    /// The file with their user and password, if there are some.
    pub proxy_file: Option<PathBuf>,
    /// Where programs of this machine find services of others that no tunnel leads to.
    pub doors: Vec<SocketAddr>,
    /// Where they should, and cannot, and why.
    pub stuck: Vec<(SocketAddr, String)>,
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
    /// Flows that run.
    pub flows: usize,
    /// Flows that were refused, to others or to programs at a proxy.
    pub refused: u64,
    /// Everybody else in the mesh.
    pub peers: Vec<PeerSummary>,
}

/// What carries between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// A tunnel, over which keys were agreed on.
    Tunnel,
    /// A connection that carries flows.
    Flows,
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
    /// How packets get in and out of it.
    pub mode: Mode,
    /// Whether policy lets anything pass. If not, there is no tunnel.
    pub allowed: bool,
    /// Why nothing gets there though policy would let it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// What carries now.
    pub way: Option<Way>,
    /// Where it was heard last, if not over a relay.
    pub endpoint: Option<SocketAddr>,
    /// The time of a round trip, in microseconds, if it was measured lately.
    pub round_trip_us: Option<u64>,
    /// How long ago keys were agreed on, in seconds.
    pub handshake_seconds: Option<u64>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

fn addresses(voucher: &Voucher) -> Vec<IpAddr> {
    vec![IpAddr::V4(voucher.v4), IpAddr::V6(voucher.v6)]
}

impl Node {
    /// The node as it sees itself.
    pub fn status(&self) -> NodeStatus {
        let live = self.live();
        let mode = self.said.mode;
        let others = live
            .view
            .nodes()
            .filter(|known| known.voucher.identity != self.voucher.identity);
        let peers = others.map(|known| {
            let key = &known.record.wireguard;
            let peer = live.current.peers.get(key);
            let by_flows = !(mode.is_tun() && known.record.mode.is_tun());
            let between = self.carriers.between(key, peer, &known.voucher.identity);
            let unreachable = (by_flows && known.record.flows.is_empty() && between.way.is_none())
                .then(|| "it names no place where flows could reach it".to_owned());
            PeerSummary {
                name: known.voucher.name.clone(),
                addresses: addresses(&known.voucher),
                tags: known.voucher.tags.iter().cloned().collect(),
                mode: known.record.mode,
                allowed: peer.is_some(),
                unreachable,
                way: between.way,
                endpoint: between.endpoint,
                handshake_seconds: between.since.map(|since| since.as_secs()),
                round_trip_us: between
                    .round_trip
                    .and_then(|time| u64::try_from(time.as_micros()).ok()),
                received: between.received,
                sent: between.sent,
            }
        });
        let state = self.state();
        let served = state.served.iter();
        let services: BTreeMap<_, _> = served
            .map(|service| (service.clone(), live.ready.contains(service)))
            .collect();
        let proxies = self.carriers.proxies().to_vec();
        let proxy_file = (!proxies.is_empty()).then(|| state.proxy_file());
        let flows_port = state.flows_port;
        drop(state);
        let engine = self.carriers.tunnels_status();
        let flows = self.carriers.flows_status();
        let device = self.carriers.device();
        NodeStatus {
            name: self.name.clone(),
            domain: live.current.zone.domain().to_owned(),
            addresses: addresses(&self.voucher),
            tags: self.voucher.tags.iter().cloned().collect(),
            mode,
            home: live.current.directory.own().home(),
            interface: device.map(|(name, _)| name.to_owned()),
            port: device.map(|(_, port)| port),
            flows_port,
            dns: self.dns().to_vec(),
            proxies,
            proxy_file,
            doors: flows.doors,
            stuck: flows.stuck,
            cursor: live.view.cursor(),
            connected: live.connected,
            since_ms: live.since_ms,
            trouble: live.trouble.clone(),
            services,
            denied_outbound: engine.as_ref().map_or(0, |engine| engine.denied_outbound),
            denied_inbound: engine.as_ref().map_or(0, |engine| engine.denied_inbound),
            flows: flows.flows,
            refused: flows.refused,
            peers: peers.collect(),
        }
    }
}
