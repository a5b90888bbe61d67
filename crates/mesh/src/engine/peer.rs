//! One peer: its tunnel, the ways to it, what it did.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::paths::Paths;
use super::statistics::PeerStatus;
use crate::crypto::{Opened, Sealed, Tunnel};
use crate::key::{PresharedKey, PublicKey};
use crate::prefix::Prefix;
use crate::relay::{Relays, Short};
use crate::ways::{PeerWay, Way, Ways};

/// A peer, shared among the threads.
pub(super) struct Peer {
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) index: u32,
    pub(super) short: Short,
    /// Packets went to it or came from it since the keeper looked.
    pub(super) busy: AtomicBool,
    /// Something authentic came from it lately. Only looked after where there is a choice.
    answers: AtomicBool,
    state: Mutex<State>,
    counters: Counters,
}

/// What the peer's lock protects.
pub(super) struct State {
    pub(super) tunnel: Box<dyn Tunnel>,
    /// Where it was heard last, or is said to be.
    pub(super) endpoint: Option<SocketAddr>,
    /// Where packets go.
    pub(super) way: Option<Way>,
    /// For a peer that is probed: the ways there may be.
    pub(super) paths: Option<Box<Paths>>,
    /// When something authentic came last.
    pub(super) heard: Option<Instant>,
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

impl State {
    /// Lets the way follow what the path agent chose.
    pub(super) fn follow(&mut self, relays: &Relays, short: Short) {
        let Some(paths) = &self.paths else {
            return;
        };
        let chosen = paths.ways.agent.route();
        if chosen == self.way.as_ref().map(Way::route) {
            return;
        }
        tracing::debug!(?chosen, "packets go another way now");
        self.way = chosen.and_then(|route| Ways::way(relays, short, route));
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
        let state = Mutex::new(State {
            tunnel,
            endpoint,
            way: endpoint.map(Way::Direct),
            paths: None,
            heard: None,
        });
        Self {
            public_key,
            preshared_key,
            index,
            short: Short::of(&public_key),
            busy: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            state,
            counters: Counters::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        super::lock(&self.state)
    }

    /// Whether it answers, as far as is known.
    pub(super) fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Notes whether it answers. Whether that is another than before.
    pub(super) fn note_answers(&self, answers: bool) -> bool {
        self.answers.swap(answers, Ordering::Relaxed) != answers
    }

    /// Notes that packets go or come.
    pub(super) fn note_traffic(&self) {
        if !self.busy.load(Ordering::Relaxed) {
            self.busy.store(true, Ordering::Relaxed);
        }
    }

    /// Notes where authentic messages come from now.
    pub(super) fn heard_from(&self, shared: &super::Shared, state: &mut State, source: &Way) {
        state.heard = Some(shared.clock.now());
        if let Way::Direct(address) = source
            && state.endpoint != Some(*address)
        {
            if state.endpoint.replace(*address).is_some() {
                add(&self.counters.roamed, 1);
            }
            tracing::debug!(peer = %self.public_key, source = %address, "the peer is somewhere else now");
            if state.paths.is_none() {
                state.way = Some(Way::Direct(*address));
            }
        }
        if let Some(paths) = &mut state.paths {
            if paths.heard(shared.clock.now(), source) {
                state.follow(&shared.relays, self.short);
            }
        } else if state.way.is_none() {
            state.way = Some(source.clone());
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
        let (endpoint, way, round_trip, last, handshakes, renewed) = {
            let state = self.lock();
            let way = state.way.as_ref().map(PeerWay::from);
            let paths = state.paths.as_ref();
            (
                state.endpoint,
                way,
                paths.and_then(|paths| paths.ways.agent.round_trip()),
                state.tunnel.last_handshake(),
                state.tunnel.handshakes(),
                state.tunnel.renewed(),
            )
        };
        PeerStatus {
            public_key: self.public_key,
            endpoint,
            way,
            round_trip,
            allowed,
            last_handshake: last.map(|last| now.saturating_duration_since(last)),
            handshakes,
            renewed,
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
