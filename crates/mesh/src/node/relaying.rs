//! This node as a relay for others, and the relays of others that it uses.
//!
//! A node that others can reach offers to be a relay; policy says whose offers are taken. Whoever is in the mesh may use it: the map is the list of
//! guests, so who is put out of the mesh is put out here too, and there is nothing to hand out or to run out.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};

use super::NodeError;
use super::state::State;
use crate::coordination::{Fingerprint, IdentityKey, RelayOffer, View, Voucher};
use crate::key::PublicKey;
use crate::policy::{Policy, Subject};
use crate::relay::{
    Admitted, Limits, Relay, RelayAddress, RelayCertificate, RelayOptions, Statistics, TicketCheck,
    TlsAddress, TlsOptions,
};
use crate::wire::{WireOptions, reachable};

/// Where this node is to be a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayPorts {
    /// The port for UDP.
    pub udp: u16,
    /// The port for TLS, if it is to speak that.
    pub tls: Option<u16>,
    /// Whether it may go on without TLS, if that port is not to be had.
    pub tls_optional: bool,
}

/// Everybody in the mesh, by the keys that a relay knows them by.
#[derive(Debug, Default)]
struct Guests(RwLock<HashSet<PublicKey>>);

impl TicketCheck for Guests {
    fn admit(&self, node: &PublicKey, _ticket: &[u8]) -> Option<Admitted> {
        let guests = self.0.read().unwrap_or_else(PoisonError::into_inner);
        guests.contains(node).then(Admitted::default)
    }
}

/// The relay that this node is.
#[derive(Debug)]
pub(super) struct Relaying {
    relay: Relay,
    guests: Arc<Guests>,
    offer: RelayOffer,
    trouble: Option<String>,
}

impl Relaying {
    /// Listens, with nobody let in yet. `at` is where others reach this machine.
    pub(super) fn start(
        ports: RelayPorts,
        at: &[SocketAddr],
        state: &mut State,
    ) -> Result<Self, NodeError> {
        let refused = |error| NodeError::Relay(ports.udp, error);
        let guests = Arc::new(Guests::default());
        let certificate = match (&state.certificate, ports.tls) {
            (Some(known), _) => Some(known.clone()),
            (None, Some(_)) => {
                state.certificate = Some(RelayCertificate::generate().map_err(refused)?);
                state.certificate.clone()
            }
            (None, None) => None,
        };
        let start = |tls: Option<TlsOptions>| {
            let options = RelayOptions {
                key: state.underlay.clone(),
                udp: Some(WireOptions {
                    port: ports.udp,
                    ..WireOptions::default()
                }),
                tls,
                tickets: Arc::clone(&guests) as Arc<_>,
                limits: Limits::default(),
            };
            Relay::start(options, None)
        };
        let mut trouble = None;
        let tls = |listen: IpAddr| {
            Some(TlsOptions {
                listen: SocketAddr::new(listen, ports.tls?),
                certificate: certificate.clone()?,
            })
        };
        // Both families at once where the kernel has both.
        let any = [IpAddr::from([0_u16; 8]), IpAddr::from([0_u8; 4])];
        let relay = match (start(tls(any[0])), ports.tls) {
            (Err(_), Some(port)) => match start(tls(any[1])) {
                Err(error) if ports.tls_optional => {
                    trouble = Some(format!("no TLS at port {port}: {error}"));
                    start(None).map_err(refused)?
                }
                started => started.map_err(refused)?,
            },
            (started, _) => started.map_err(refused)?,
        };
        let offer = offer(&relay, at);
        Ok(Self {
            relay,
            guests,
            offer,
            trouble,
        })
    }

    /// What this node says of it.
    pub(super) const fn offer(&self) -> &RelayOffer {
        &self.offer
    }

    /// Why it is not all that was asked for.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What it did.
    pub(super) fn statistics(&self) -> Statistics {
        self.relay.statistics()
    }

    /// From now on those may use it who are in this map; others are thrown out at once.
    pub(super) fn follow(&self, view: &View) {
        let keys = view.nodes().flat_map(|known| {
            let record = &known.record;
            std::iter::once(record.wireguard).chain(record.underlay)
        });
        let keys: HashSet<_> = keys.collect();
        let mut guests = self
            .guests
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *guests, keys.clone());
        drop(guests);
        for gone in before.difference(&keys) {
            self.relay.forget(gone);
        }
    }
}

fn offer(relay: &Relay, at: &[SocketAddr]) -> RelayOffer {
    let mut offer = RelayOffer {
        key: PublicKey::from_bytes([0; 32]),
        udp: Vec::new(),
        tls: Vec::new(),
        certificate: None,
    };
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in at.iter().map(SocketAddr::ip) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    for ip in ips {
        let address = relay.address(ip);
        offer.key = address.key;
        offer.udp.extend(address.udp);
        if let Some(tls) = address.tls {
            offer.tls.push(tls.address);
            offer.certificate = Some(Fingerprint(tls.certificate));
        }
    }
    offer
}

/// A relay that this node uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Used {
    /// What the node is called that is it.
    pub(super) name: String,
    offer: RelayOffer,
}

/// The relays that policy takes, in the same order everywhere.
pub(super) fn used(view: &View, policy: &Policy, me: &IdentityKey) -> Vec<Used> {
    let subject = |voucher: &Voucher| {
        policy.relays(Subject {
            name: Some(&voucher.name),
            tags: &voucher.tags,
        })
    };
    let relays = view.nodes().filter(|known| {
        known.voucher.identity != *me && known.record.relay.is_some() && subject(&known.voucher)
    });
    let relays = relays.filter_map(|known| {
        let offer = known.record.relay.clone()?;
        let name = known.voucher.name.clone();
        Some((known.voucher.number, Used { name, offer }))
    });
    let mut relays: Vec<_> = relays.collect();
    relays.sort_by_key(|(number, _)| *number);
    relays.into_iter().map(|(_, used)| used).collect()
}

/// Whether this machine has a way there at all; nothing is sent for that.
fn routed(to: SocketAddr) -> bool {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0_u8; 4].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(to).is_ok())
}

impl Used {
    pub(super) const fn key(&self) -> &PublicKey {
        &self.offer.key
    }

    /// How this machine reaches it; `None` if it cannot.
    pub(super) fn address(&self) -> Option<RelayAddress> {
        // Who is hostile does not make this machine talk to itself.
        let usable = |at: &&SocketAddr| {
            reachable(**at) && !at.ip().to_canonical().is_loopback() && routed(**at)
        };
        let udp = self.offer.udp.iter().find(usable).copied();
        let tls = self.offer.tls.iter().find(usable).copied();
        let tls = tls
            .zip(self.offer.certificate)
            .map(|(address, certificate)| TlsAddress {
                address,
                certificate: certificate.0,
            });
        (udp.is_some() || tls.is_some()).then_some(RelayAddress {
            key: self.offer.key,
            udp,
            tls,
        })
    }
}
