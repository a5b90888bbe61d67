//! What `atoll mesh status` shows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::relaying::Used;
use super::{ClusterSummary, Live, Node, RotationStatus};
use crate::coordination::{Known, Mode, Voucher};
use crate::key::PublicKey;
use crate::policy::{Policy, Subject};
use crate::surroundings::MappedPort;
use crate::ways::PeerWay;

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
    /// Whether the router is asked to forward its ports.
    #[serde(default)]
    pub port_mapping: bool,
    /// Its ports that the router forwards.
    #[serde(default)]
    pub mapped: Vec<MappedPort>,
    /// Where its names are asked for.
    pub dns: Vec<SocketAddr>,
    /// Where its proxies listen, for SOCKS5 and HTTP CONNECT.
    pub proxies: Vec<SocketAddr>,
    /// The file with their user and password, if there are some.
    pub proxy_file: Option<PathBuf>,
    /// Where programs of this machine find services of others that no tunnel leads to.
    pub doors: Vec<SocketAddr>,
    /// The same for UDP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp_doors: Vec<SocketAddr>,
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
    /// Flows that began since the start, in tunnels.
    #[serde(default)]
    pub begun_in_tunnels: u64,
    /// Flows that began since the start, carried without.
    #[serde(default)]
    pub begun: u64,
    /// Flows that were refused, to others or to programs at a proxy.
    pub refused: u64,
    /// The relays that policy lets this node use.
    #[serde(default)]
    pub relays: Vec<RelaySummary>,
    /// What it does as a relay for others, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relaying: Option<RelayingSummary>,
    /// The key of its tunnels, if it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,
    /// The clusters that the policy describes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterSummary>,
    /// Everybody else in the mesh.
    pub peers: Vec<PeerSummary>,
}

/// A relay that this node uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelaySummary {
    /// What the node is called that is it.
    pub name: String,
    /// Whether this node is registered there over UDP.
    pub udp: bool,
    /// Whether it is over TLS, which it is while UDP does not get through.
    pub tls: bool,
    /// Where the relay sees this node.
    pub seen: Option<SocketAddr>,
    /// How long its last answer took, in microseconds.
    #[serde(default)]
    pub round_trip_us: Option<u64>,
}

/// What a node does as a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayingSummary {
    /// Where it listens on UDP.
    pub udp: Vec<SocketAddr>,
    /// Where it listens on TLS.
    pub tls: Vec<SocketAddr>,
    /// Whether policy says that it is a relay of this mesh.
    pub taken: bool,
    /// Why it is not all that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Who is registered: the tunnels and the flows of a node are two.
    pub clients: u64,
    /// Datagrams carried since the start.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
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
    /// The services that policy says it gives, and that it did not take back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Whether it is a relay for others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relays: bool,
    /// Whether policy lets anything pass. If not, there is no tunnel.
    pub allowed: bool,
    /// Why nothing gets there though policy would let it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// What carries now.
    pub way: Option<Way>,
    /// Where it is reached, if not over a relay.
    pub endpoint: Option<SocketAddr>,
    /// The relay that carries, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// The time of a round trip, in microseconds, if it was measured lately.
    pub round_trip_us: Option<u64>,
    /// How long ago keys were agreed on, in seconds.
    pub handshake_seconds: Option<u64>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn addresses(voucher: &Voucher) -> Vec<IpAddr> {
    vec![IpAddr::V4(voucher.v4), IpAddr::V6(voucher.v6)]
}

/// What the node with this relay is called; its key where the map has changed meanwhile.
pub(super) fn relay_name(relays: &[Used], key: &PublicKey) -> String {
    let relay = relays.iter().find(|relay| relay.key() == key);
    relay.map_or_else(|| key.to_string(), |relay| relay.name.clone())
}

fn subject(voucher: &Voucher) -> Subject<'_> {
    Subject {
        name: Some(&voucher.name),
        tags: &voucher.tags,
    }
}

/// The services that a node gives.
fn given(policy: &Policy, known: &Known) -> Vec<String> {
    let services = policy.services().iter();
    let given = services.filter(|(name, service)| {
        let ready = !known.record.unready.contains(*name);
        ready && policy.serves(service, subject(&known.voucher))
    });
    given.map(|(name, _)| name.clone()).collect()
}

impl Node {
    fn relays(&self, used: &[Used]) -> Vec<RelaySummary> {
        let relays = self.carriers.relays().into_iter();
        let relays = relays.map(|relay| RelaySummary {
            name: relay_name(used, &relay.key),
            udp: relay.udp,
            tls: relay.tls,
            seen: relay.seen,
            round_trip_us: relay.round_trip.map(microseconds),
        });
        relays.collect()
    }

    fn relaying_status(&self, live: &Live) -> Option<RelayingSummary> {
        let relaying = self.relaying.as_ref()?;
        let own = self.own(live);
        let statistics = relaying.statistics();
        Some(RelayingSummary {
            udp: relaying.offer().udp.clone(),
            tls: relaying.offer().tls.clone(),
            taken: live.current.policy.relays(Subject {
                name: Some(&own.name),
                tags: &own.tags,
            }),
            trouble: relaying.trouble().map(str::to_owned),
            clients: statistics.clients,
            packets: statistics.packets,
            bytes: statistics.bytes,
        })
    }

    /// The node as it sees itself.
    pub fn status(&self) -> NodeStatus {
        let rotation = self.rotation();
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
            let nowhere = known.record.flows.is_empty() && known.record.underlay.is_none();
            let unreachable = (by_flows && nowhere && between.way.is_none())
                .then(|| "it names no place where flows could reach it".to_owned());
            let (endpoint, relay) = match between.over {
                Some(PeerWay::Direct(at)) => (Some(at), None),
                Some(PeerWay::Relay(key)) => (None, Some(relay_name(&live.current.relays, &key))),
                None => (None, None),
            };
            PeerSummary {
                name: known.voucher.name.clone(),
                addresses: addresses(&known.voucher),
                tags: known.voucher.tags.iter().cloned().collect(),
                mode: known.record.mode,
                services: given(&live.current.policy, known),
                relays: known.record.relay.is_some()
                    && live.current.policy.relays(subject(&known.voucher)),
                allowed: peer.is_some(),
                unreachable,
                way: between.way,
                endpoint,
                relay,
                handshake_seconds: between.since.map(|since| since.as_secs()),
                round_trip_us: between.round_trip.map(microseconds),
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
            port_mapping: self.port_mapping,
            mapped: self.carriers.mapped(),
            dns: self.dns().to_vec(),
            proxies,
            proxy_file,
            doors: flows.doors,
            udp_doors: flows.datagram_doors,
            stuck: flows.stuck,
            cursor: live.view.cursor(),
            connected: live.connected,
            since_ms: live.since_ms,
            trouble: live.trouble.clone(),
            services,
            denied_outbound: engine.as_ref().map_or(0, |engine| engine.denied_outbound),
            denied_inbound: engine.as_ref().map_or(0, |engine| engine.denied_inbound),
            flows: flows.flows,
            begun_in_tunnels: self.carriers.gate().begun(),
            begun: flows.opened,
            refused: flows.refused,
            relays: self.relays(&live.current.relays),
            relaying: self.relaying_status(&live),
            rotation,
            clusters: self.clusters(&live.current),
            peers: peers.collect(),
        }
    }
}
