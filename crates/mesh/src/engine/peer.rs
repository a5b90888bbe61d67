//! One peer: its tunnel, where it is, what it did.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::statistics::PeerStatus;
use crate::crypto::{Opened, Sealed, Tunnel};
use crate::key::{PresharedKey, PublicKey};
use crate::prefix::Prefix;

/// A peer, shared among the threads.
pub(super) struct Peer {
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) index: u32,
    state: Mutex<State>,
    counters: Counters,
}

/// What the peer's lock protects.
pub(super) struct State {
    pub(super) tunnel: Box<dyn Tunnel>,
    pub(super) endpoint: Option<SocketAddr>,
}

#[derive(Default)]
struct Counters {
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    not_sent: AtomicU64,
    rejected: AtomicU64,
    foreign_source: AtomicU64,
    roamed: AtomicU64,
}

fn add(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

impl Peer {
    pub(super) fn new(
        public_key: PublicKey,
        preshared_key: Option<PresharedKey>,
        index: u32,
        tunnel: Box<dyn Tunnel>,
        endpoint: Option<SocketAddr>,
    ) -> Self {
        let state = Mutex::new(State { tunnel, endpoint });
        Self {
            public_key,
            preshared_key,
            index,
            state,
            counters: Counters::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        super::lock(&self.state)
    }

    /// Notes where authentic messages come from now.
    pub(super) fn heard_from(&self, state: &mut State, source: SocketAddr) {
        if state.endpoint != Some(source) {
            if state.endpoint.replace(source).is_some() {
                add(&self.counters.roamed, 1);
            }
            tracing::debug!(peer = %self.public_key, %source, "the peer is somewhere else now");
        }
    }

    pub(super) fn count_sealed(&self, sealed: &Sealed) {
        add(&self.counters.sent_packets, sealed.packets);
        add(&self.counters.sent_bytes, sealed.bytes);
        add(&self.counters.not_sent, sealed.dropped);
    }

    pub(super) fn count_not_sent(&self, packets: u64) {
        add(&self.counters.not_sent, packets);
    }

    pub(super) fn count_opened(&self, opened: &Opened) {
        add(&self.counters.received_packets, opened.packets);
        add(&self.counters.received_bytes, opened.bytes);
        add(&self.counters.rejected, opened.rejected);
    }

    pub(super) fn count_rejected(&self) {
        add(&self.counters.rejected, 1);
    }

    pub(super) fn count_foreign_source(&self, packets: u64) {
        add(&self.counters.foreign_source, packets);
    }

    pub(super) fn status(&self, allowed: Vec<Prefix>, now: Instant) -> PeerStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (endpoint, last, handshakes) = {
            let state = self.lock();
            (
                state.endpoint,
                state.tunnel.last_handshake(),
                state.tunnel.handshakes(),
            )
        };
        PeerStatus {
            public_key: self.public_key,
            endpoint,
            allowed,
            last_handshake: last.map(|last| now.saturating_duration_since(last)),
            handshakes,
            sent_packets: read(&self.counters.sent_packets),
            sent_bytes: read(&self.counters.sent_bytes),
            received_packets: read(&self.counters.received_packets),
            received_bytes: read(&self.counters.received_bytes),
            not_sent: read(&self.counters.not_sent),
            rejected: read(&self.counters.rejected),
            foreign_source: read(&self.counters.foreign_source),
            roamed: read(&self.counters.roamed),
        }
    }
}
