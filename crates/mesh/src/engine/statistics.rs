//! What is counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::key::PublicKey;
use crate::prefix::Prefix;
use crate::ways::PeerWay;

/// What a peer is doing. Packets and bytes are those inside the tunnel, with padding when sent, and with probes when received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it was heard last, if not over a relay.
    pub endpoint: Option<SocketAddr>,
    /// Where packets to it go now.
    pub way: Option<PeerWay>,
    /// The time of a round trip over that way, if the way is proven.
    pub round_trip: Option<Duration>,
    /// What may come from it and goes to it.
    pub allowed: Vec<Prefix>,
    /// How long ago the last handshake ended well.
    pub last_handshake: Option<Duration>,
    /// How many handshakes ended well.
    pub handshakes: u64,
    /// Whether the newest keys of both ends are in use.
    pub renewed: bool,
    /// Packets sealed for it.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that came from it.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets for it that were dropped: no address known, too many waiting, or refused by the system.
    pub not_sent: u64,
    /// Messages in its name that are not authentic, or replayed.
    pub rejected: u64,
    /// Packets that it sent from addresses that are not its own; they were dropped.
    pub foreign_source: u64,
    /// How often it was somewhere else than before.
    pub roamed: u64,
}

/// What the engine saw that belongs to no peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// Datagrams that are nothing of WireGuard's.
    pub malformed: u64,
    /// Messages for sessions of nobody here.
    pub unknown_session: u64,
    /// Handshakes that were forged, replayed, or from strangers.
    pub refused_handshakes: u64,
    /// Handshakes that were answered with a cookie, because there was load.
    pub challenged: u64,
    /// Handshakes that were dropped because too many waited or one source sent too many.
    pub flooded: u64,
    /// Packets from the device that go to nobody.
    pub no_route: u64,
    /// Packets from the device that are no IP packets, or whose headers do not fit together.
    pub not_ip: u64,
    /// Packets from the device that were dropped because sealing did not keep up.
    pub queue_full: u64,
    /// Packets that the device did not take.
    pub not_delivered: u64,
    /// Packets from the device that the gate did not admit.
    pub denied_outbound: u64,
    /// Packets from peers that the gate did not admit.
    pub denied_inbound: u64,
}

/// The same, being counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) malformed: AtomicU64,
    pub(super) unknown_session: AtomicU64,
    pub(super) refused_handshakes: AtomicU64,
    pub(super) challenged: AtomicU64,
    pub(super) flooded: AtomicU64,
    pub(super) no_route: AtomicU64,
    pub(super) not_ip: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) not_delivered: AtomicU64,
    pub(super) denied_outbound: AtomicU64,
    pub(super) denied_inbound: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> EngineStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStatus {
            malformed: read(&self.malformed),
            unknown_session: read(&self.unknown_session),
            refused_handshakes: read(&self.refused_handshakes),
            challenged: read(&self.challenged),
            flooded: read(&self.flooded),
            no_route: read(&self.no_route),
            not_ip: read(&self.not_ip),
            queue_full: read(&self.queue_full),
            not_delivered: read(&self.not_delivered),
            denied_outbound: read(&self.denied_outbound),
            denied_inbound: read(&self.denied_inbound),
        }
    }
}

/// Counts one.
pub(super) fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts several.
pub(super) fn many(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
