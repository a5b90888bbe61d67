//! A peer whose ways are probed: what is sent for that inside its session.
//!
//! Before there is a session nothing can be probed. So a handshake's first message goes over all ways at once, and again until somebody
//! answers: the first to arrive counts, and copies are refused by WireGuard as replays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::peer::{Peer, State};
use super::{PathOptions, Shared, signal};
use crate::batch::Batch;
use crate::crypto::Kind;
use crate::path::Probe;
use crate::relay::Relays;
use crate::ways::signal::Signal;
use crate::ways::{Change, Way, Ways};

/// How soon a first message that nobody answers is sent again; doubling.
const AGAIN: Duration = Duration::from_millis(250);
/// How often. Then it is the core's turn, which makes a new one after 5 seconds.
const AGAIN_MOST: u32 = 4;

/// A handshake's first message that was not answered yet.
#[derive(Debug)]
struct Pending {
    message: Vec<u8>,
    next: Instant,
    wait: Duration,
    left: u32,
}

/// The ways to one peer, and the handshake that is under way over them.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) ways: Ways,
    pending: Option<Pending>,
    probes: Vec<Probe>,
}

fn listed(options: &PathOptions, endpoint: Option<SocketAddr>) -> Vec<SocketAddr> {
    endpoint
        .iter()
        .chain(&options.candidates)
        .copied()
        .collect()
}

impl Paths {
    pub(super) fn new(options: PathOptions, endpoint: Option<SocketAddr>) -> Self {
        Self {
            ways: Ways::new(listed(&options, endpoint), options.relays),
            pending: None,
            probes: Vec::new(),
        }
    }

    /// Takes other options; what was learned stays.
    pub(super) fn set(&mut self, options: PathOptions, endpoint: Option<SocketAddr>) {
        self.ways.set(listed(&options, endpoint), options.relays);
    }

    /// Tells the agent which ways there may be. A handshake that waits tries them all at once.
    pub(super) fn list(&mut self, now: Instant, relays: &Relays) {
        self.ways.list(now, relays);
        if let Some(pending) = &mut self.pending {
            pending.next = now;
        }
    }

    /// Notes over which way something authentic came. Whether the agent was told.
    pub(super) fn heard(&mut self, now: Instant, source: &Way) -> bool {
        self.pending = None;
        self.ways.heard(now, source.route())
    }
}

/// Whether this is the first message of a handshake.
fn initiation(batch: &Batch) -> bool {
    batch.get(0).and_then(Kind::of) == Some(Kind::Initiation)
}

impl State {
    /// If the batch is a handshake's first message and no way is proven: all ways. It is kept, to be sent again.
    pub(super) fn all_ways(
        &mut self,
        shared: &Shared,
        peer: &Peer,
        batch: &Batch,
    ) -> Option<Vec<Way>> {
        let paths = self.paths.as_mut()?;
        if !initiation(batch) || paths.ways.agent.round_trip().is_some() {
            return None;
        }
        let now = shared.clock.now();
        paths.pending = Some(Pending {
            message: batch.get(0)?.to_vec(),
            next: now + AGAIN,
            wait: AGAIN,
            left: AGAIN_MOST,
        });
        Some(paths.ways.all(&shared.relays, peer.short))
    }
}

/// What the keeper does for probed peers, ten times a second.
#[derive(Default)]
pub(super) struct Prober {
    plain: Batch,
    sealed: Batch,
    framed: Batch,
}

impl Prober {
    /// Lets time pass for one peer.
    pub(super) fn tick(
        &mut self,
        shared: &Shared,
        peer: &Peer,
        change: Change,
        own: &[SocketAddr],
    ) {
        use std::sync::atomic::Ordering;
        let now = shared.clock.now();
        let mut state = peer.lock();
        let state = &mut *state;
        let Some(paths) = &mut state.paths else {
            return;
        };
        let busy = peer.busy.swap(false, Ordering::Relaxed);
        paths.ways.look(now, &shared.relays, change, busy);
        if change.listed
            && let Some(pending) = &mut paths.pending
        {
            pending.next = now;
        }
        if let Some(pending) = &mut paths.pending
            && now >= pending.next
            && pending.left > 0
        {
            pending.left -= 1;
            pending.next = now + pending.wait;
            pending.wait *= 2;
            self.sealed.clear();
            self.sealed.push(&pending.message);
            for way in paths.ways.all(&shared.relays, peer.short) {
                way.send(&shared.wire, &self.sealed, &mut self.framed);
            }
        }
        if !state.tunnel.ready() {
            state.follow(&shared.relays, peer.short);
            return;
        }
        let mut probes = std::mem::take(&mut paths.probes);
        let tell = paths.ways.due(now, &shared.relays, own, &mut probes);
        state.follow(&shared.relays, peer.short);
        for probe in probes.drain(..) {
            if let Some(way) = Ways::way(&shared.relays, peer.short, probe.route) {
                self.say(shared, state, &way, &Signal::Ask(probe.number));
            }
        }
        if tell && let Some(way) = state.way.clone() {
            self.say(shared, state, &way, &Signal::Here(own.to_vec()));
        }
        if let Some(paths) = &mut state.paths {
            paths.probes = probes;
        }
    }

    /// Takes what the peer said inside the session.
    pub(super) fn take(&mut self, shared: &Shared, peer: &Peer, source: &Way, signal: Signal) {
        let now = shared.clock.now();
        let mut state = peer.lock();
        let state = &mut *state;
        let Some(paths) = &mut state.paths else {
            return;
        };
        match signal {
            Signal::Ask(number) => self.say(shared, state, source, &Signal::Answer(number)),
            Signal::Answer(number) => paths.ways.agent.answered(now, source.route(), number),
            Signal::Here(addresses) => {
                if paths.ways.claim(addresses) {
                    paths.list(now, &shared.relays);
                }
            }
        }
        state.follow(&shared.relays, peer.short);
    }

    /// Sends a signal over a way; nothing if there is no session.
    fn say(&mut self, shared: &Shared, state: &mut State, way: &Way, signal: &Signal) {
        if !state.tunnel.ready() {
            return;
        }
        self.plain.clear();
        self.sealed.clear();
        self.plain.push(&signal::packet(signal));
        state.tunnel.seal(&self.plain, &mut self.sealed);
        way.send(&shared.wire, &self.sealed, &mut self.framed);
    }
}
