//! What `atoll mesh flows` shows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::status::{microseconds, relay_name};
use super::{Live, Node, Way};
use crate::coordination::Known;
use crate::flows::{End, Record};
use crate::key::PublicKey;
use crate::policy::Direction;
use crate::ways::PeerWay;

/// How far one has heard of flows: of those in tunnels, and of those that are carried without.
pub type FlowsCursor = (u64, u64);

/// Flows that run or ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsStatus {
    /// Those that run, the newest first, then those that ended.
    pub flows: Vec<FlowSummary>,
    /// What to ask with for what is new.
    pub cursor: FlowsCursor,
    /// How many run but are not told.
    pub beyond: u64,
    /// How many ended and are forgotten.
    pub forgotten: u64,
}

/// Who began a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Began {
    /// This node.
    Here,
    /// The other.
    There,
}

/// A flow between this node and another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSummary {
    /// `tcp`, `udp`, `icmp`, or a number.
    pub protocol: String,
    /// Who began it.
    pub began: Began,
    /// What the other node is called, if it is still in the mesh.
    pub peer: Option<String>,
    /// Its identity.
    pub identity: Option<String>,
    /// The key of its tunnels.
    pub key: String,
    /// The caller's address.
    pub source: IpAddr,
    /// Its port, if it is known; of an echo request its identifier.
    pub source_port: Option<u16>,
    /// The called node's address.
    pub destination: IpAddr,
    /// Its port, if the protocol has some.
    pub destination_port: Option<u16>,
    /// The line of the rule that lets it, in the text of the policy; of one that ended, as the policy was then.
    pub rule_line: Option<u32>,
    /// When it began, or was seen first, in milliseconds since 1970.
    pub began_ms: u64,
    /// When something moved last, in milliseconds since 1970.
    pub seen_ms: u64,
    /// How it ended, if it does not run.
    pub ended: Option<End>,
    /// Bytes from this node to the other: of packets with their headers in a tunnel, else of what programs sent.
    pub sent: u64,
    /// Bytes from the other node.
    pub received: u64,
    /// Packets from this node to the other, in a tunnel.
    pub sent_packets: Option<u64>,
    /// Packets from the other node, in a tunnel.
    pub received_packets: Option<u64>,
    /// What carries it.
    pub way: Way,
    /// Where the other node is reached now, if not over a relay.
    pub endpoint: Option<SocketAddr>,
    /// The relay that carries now, if one does.
    pub relay: Option<String>,
    /// The time of a round trip, in microseconds, if it was measured lately.
    pub round_trip_us: Option<u64>,
    /// Numbers of its beginning and its end, to compare with a cursor.
    pub turns: (u64, Option<u64>),
}

/// What is known of the other end now.
#[derive(Debug, Clone, Default)]
struct Other {
    name: Option<String>,
    identity: Option<String>,
    endpoint: Option<SocketAddr>,
    relay: Option<String>,
    round_trip_us: Option<u64>,
}

impl Node {
    fn other(&self, live: &Live, key: &PublicKey, known: Option<&Known>) -> Other {
        let Some(known) = known else {
            return Other::default();
        };
        let identity = &known.voucher.identity;
        let between = self
            .carriers
            .between(key, live.current.peers.get(key), identity);
        let (endpoint, relay) = match between.over {
            Some(PeerWay::Direct(at)) => (Some(at), None),
            Some(PeerWay::Relay(key)) => (None, Some(relay_name(&live.current.relays, &key))),
            None => (None, None),
        };
        Other {
            name: Some(known.voucher.name.clone()),
            identity: Some(identity.to_string()),
            endpoint,
            relay,
            round_trip_us: between.round_trip.map(microseconds),
        }
    }

    /// The flows with other nodes that run, and the last that ended: those that began or ended after a cursor, or with zeros all.
    pub fn flows(&self, since: FlowsCursor) -> FlowsStatus {
        let (tunnels, flows) = self.carriers.records(since, Instant::now());
        let mut status = FlowsStatus {
            flows: Vec::new(),
            cursor: (tunnels.cursor, flows.cursor),
            beyond: tunnels.beyond + flows.beyond,
            forgotten: tunnels.forgotten + flows.forgotten,
        };
        let live = self.live();
        let mut known: HashMap<PublicKey, &Known> = HashMap::new();
        known.extend(
            live.view
                .nodes()
                .map(|known| (known.record.wireguard, known)),
        );
        let mut others: HashMap<PublicKey, Other> = HashMap::new();
        for (way, records) in [(Way::Tunnel, tunnels), (Way::Flows, flows)] {
            for record in records.records {
                let key = record.peer;
                let other = others
                    .entry(key)
                    .or_insert_with(|| self.other(&live, &key, known.get(&key).copied()));
                status.flows.push(summary(&record, way, other));
            }
        }
        drop(live);
        let newest = |flow: &FlowSummary| (flow.ended.is_some(), std::cmp::Reverse(flow.began_ms));
        status.flows.sort_by_key(newest);
        status
    }
}

fn summary(record: &Record, way: Way, other: &Other) -> FlowSummary {
    let flow = &record.flow;
    let port = |port: u16| Some(port).filter(|port| *port != 0);
    let packets = |count: u64| (way == Way::Tunnel).then_some(count);
    let protocol = match flow.protocol {
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    FlowSummary {
        protocol,
        began: match record.direction {
            Direction::Outbound => Began::Here,
            Direction::Inbound => Began::There,
        },
        peer: other.name.clone(),
        identity: other.identity.clone(),
        key: record.peer.to_string(),
        source: flow.source,
        source_port: port(flow.source_port),
        destination: flow.destination,
        destination_port: port(flow.destination_port),
        rule_line: Some(record.line).filter(|line| *line != 0),
        began_ms: record.began_ms,
        seen_ms: record.seen_ms,
        ended: record.end.map(|(_, end)| end),
        sent: record.sent.bytes,
        received: record.received.bytes,
        sent_packets: packets(record.sent.packets),
        received_packets: packets(record.received.packets),
        way,
        endpoint: other.endpoint,
        relay: other.relay.clone(),
        round_trip_us: other.round_trip_us,
        turns: (record.number, record.end.map(|(turn, _)| turn)),
    }
}
