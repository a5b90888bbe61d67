//! What a view means for one node: its peers, its filter, its directory, its names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::coordination::{IdentityKey, Mode, NodeRecord, Signed, View, Voucher};
use crate::engine::{PathOptions, PeerOptions};
use crate::key::PublicKey;
use crate::names::{Zone, ZoneNode};
use crate::policy::{Filter, Policy, Subject};
use crate::prefix::Prefix;
use crate::userspace::{Directory, loopback};

use super::ServeError;
use super::beyond::Beyond;
use super::relaying::{Used, used};
use super::rotation::tunnels;

const TCP: u8 = 6;

/// Somebody with whom something may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) identity: IdentityKey,
    pub(super) mode: Mode,
    plain: bool,
    /// The keys of its tunnels.
    tunnels: Vec<PublicKey>,
    /// Whether it hears of other keys of this node.
    renews: bool,
    endpoints: Vec<SocketAddr>,
    allowed: Vec<Prefix>,
    /// Ranges of clusters that it leads to.
    behind: Vec<Prefix>,
    /// Its turn among those who lead to the same.
    rank: u32,
}

/// How often something is said to a peer that may be behind a NAT and runs no Atoll.
const KEEPALIVE: Duration = Duration::from_secs(25);

impl Peer {
    /// Whether it hears of other keys of this node's tunnels.
    pub(super) const fn renews(&self) -> bool {
        self.renews
    }

    /// How the engine knows it; of the ranges that it leads to only those that are `used`.
    pub(super) fn options(&self, key: PublicKey, used: &BTreeSet<Prefix>) -> PeerOptions {
        let behind = self.behind.iter().filter(|range| used.contains(range));
        PeerOptions {
            behind: behind.copied().collect(),
            rank: self.rank,
            tunnels: self.tunnels.clone(),
            ..self.own_options(key)
        }
    }

    fn own_options(&self, key: PublicKey) -> PeerOptions {
        if self.plain {
            let endpoint = self.endpoints.first().copied();
            return PeerOptions {
                endpoint,
                // Who has no endpoint calls, and keeps its way open itself.
                keepalive: endpoint.map(|_| KEEPALIVE),
                ..PeerOptions::new(key, self.allowed.clone())
            };
        }
        PeerOptions {
            // Nodes run this engine, which tries every way there is.
            paths: Some(PathOptions {
                candidates: self.endpoints.clone(),
                relays: Vec::new(),
            }),
            ..PeerOptions::new(key, self.allowed.clone())
        }
    }
}

/// Everything that follows from a view.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) peers: BTreeMap<PublicKey, Peer>,
    pub(super) filter: Filter,
    pub(super) directory: Directory,
    pub(super) zone: Zone,
    pub(super) policy: Policy,
    pub(super) relays: Vec<Used>,
    /// The clusters that the policy describes.
    pub(super) beyond: Vec<Beyond>,
    /// What is still to be said.
    pub(super) said: Option<Signed<NodeRecord>>,
}

fn subject(voucher: &Voucher) -> Subject<'_> {
    Subject {
        name: Some(&voucher.name),
        tags: &voucher.tags,
    }
}

impl Current {
    /// Whether policy says that the node with this voucher gives the service on this TCP port.
    pub(super) fn may_serve(
        &self,
        me: &Voucher,
        service: &str,
        port: u16,
    ) -> Result<(), ServeError> {
        let found = self.policy.services().get(service);
        let found = found.ok_or_else(|| ServeError::Unknown(service.to_owned()))?;
        if !self.policy.serves(found, subject(me)) {
            return Err(ServeError::NotOurs(service.to_owned()));
        }
        if !found.ports.iter().any(|ports| ports.contains(TCP, port)) {
            return Err(ServeError::Port(service.to_owned(), port));
        }
        Ok(())
    }

    /// What a view means for the node with this voucher, key and mode, whose programs are on `machine` if they are on another than it. A policy that is not understood allows nothing.
    pub(super) fn of(
        view: &View,
        me: &Voucher,
        key: PublicKey,
        mode: Mode,
        v6_range: Prefix,
        machine: Option<Ipv4Addr>,
    ) -> Self {
        let policy = match Policy::parse(view.policy().unwrap_or_default()) {
            Ok(policy) => policy,
            Err(mistakes) => {
                let mistake = mistakes
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                tracing::error!("the policy is not understood, so nothing passes: {mistake}");
                Policy::none()
            }
        };
        // What the coordinator says of this node now, else what it said when it joined.
        let me = view.node(&me.identity).map_or(me, |known| &known.voucher);
        let others = view
            .nodes()
            .filter(|known| known.voucher.identity != me.identity);
        let filter = policy.compile(
            subject(me),
            (me.v4, me.v6),
            others.clone().map(|known| {
                let voucher = &known.voucher;
                (
                    known.record.wireguard,
                    subject(voucher),
                    voucher.v4,
                    voucher.v6,
                )
            }),
        );
        let beyond = beyond(view, &policy, me, &filter);
        let peers = others
            .filter(|known| filter.reachable(&known.record.wireguard))
            .map(|known| {
                let peer = Peer {
                    name: known.voucher.name.clone(),
                    identity: known.voucher.identity,
                    mode: known.record.mode,
                    plain: known.record.plain,
                    tunnels: tunnels(known.record.wireguard, known.record.renewal.as_ref()),
                    renews: known.record.renewal.is_some(),
                    // Who is hostile does not make this machine talk to itself.
                    endpoints: known
                        .record
                        .endpoints
                        .iter()
                        .filter(|at| !at.ip().is_loopback())
                        .copied()
                        .collect(),
                    allowed: vec![
                        Prefix::new(known.voucher.v4.into(), 32),
                        Prefix::new(known.voucher.v6.into(), 128),
                    ],
                    behind: beyond
                        .iter()
                        .filter(|beyond| !beyond.here)
                        .filter(|beyond| {
                            let mut keys = beyond.gateways.iter().map(|(_, key)| key);
                            keys.any(|key| *key == known.record.wireguard)
                        })
                        .flat_map(|beyond| beyond.ranges.iter().map(|range| range.outside))
                        .filter(|range| filter.reaches(&known.record.wireguard, *range))
                        .collect(),
                    rank: known.voucher.number,
                };
                (known.record.wireguard, peer)
            })
            .collect();
        let none = BTreeSet::new();
        // Without a device at either end, programs meet at loopback addresses.
        let door = |v4, other: Mode| match (mode, other) {
            // A machine of its own has neither those nor IPv6.
            _ if machine.is_some() => Some(v4),
            (Mode::Tun, Mode::Tun) => None,
            _ => loopback(v4),
        };
        let mut nodes: Vec<_> = view
            .nodes()
            .map(|known| ZoneNode {
                subject: subject(&known.voucher),
                v4: known.voucher.v4,
                v6: known.voucher.v6,
                door: if known.voucher.identity == me.identity {
                    door(me.v4, mode)
                } else {
                    door(known.voucher.v4, known.record.mode)
                },
                unready: &known.record.unready,
            })
            .collect();
        if view.node(&me.identity).is_none() {
            nodes.push(ZoneNode {
                subject: subject(me),
                v4: me.v4,
                v6: me.v6,
                door: door(me.v4, mode),
                unready: &none,
            });
        }
        let directory = Directory::of(view, &policy, me, key, mode).with_machine(machine);
        let zone = Zone::new(&policy, &nodes, v6_range, view.cursor());
        let zone = zone.with_services(&directory.doors_of_services(&filter));
        let relays = used(view, &policy, &me.identity);
        Self {
            peers,
            filter,
            directory,
            zone,
            policy,
            relays,
            beyond,
            said: None,
        }
    }
}

/// The clusters of a policy, for the node with this voucher.
fn beyond(view: &View, policy: &Policy, me: &Voucher, filter: &Filter) -> Vec<Beyond> {
    let leads = |voucher: &Voucher, name: &str| {
        let mut behind = policy.behind(subject(voucher));
        behind.any(|cluster| cluster.name == name)
    };
    let clusters = policy.clusters().map(|cluster| {
        let mut gateways = Vec::new();
        let mut unable = 0;
        for known in view.nodes() {
            let (voucher, record) = (&known.voucher, &known.record);
            if voucher.identity == me.identity || !leads(voucher, &cluster.name) {
                continue;
            }
            if record.mode.is_tun() && !record.plain {
                gateways.push((voucher.number, voucher.name.clone(), record.wireguard));
            } else {
                unable += 1;
            }
        }
        gateways.sort_unstable_by_key(|(number, ..)| *number);
        let gateways: Vec<_> = gateways
            .into_iter()
            .map(|(_, name, key)| (name, key))
            .collect();
        let reaches = |key: &PublicKey| {
            let mut ranges = cluster.ranges.iter();
            ranges.any(|range| filter.reaches(key, range.outside))
        };
        Beyond {
            name: cluster.name.clone(),
            ranges: cluster.ranges.clone(),
            allowed: policy.speaks(subject(me), &cluster.name)
                || gateways.iter().any(|(_, key)| reaches(key)),
            gateways,
            unable,
            here: leads(me, &cluster.name),
        }
    });
    clusters.collect()
}
