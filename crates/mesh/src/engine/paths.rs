//! A peer whose ways are probed: what the path agent is told, and what is sent for it.
//!
//! Before there is a session nothing can be probed. So a handshake's first message goes over all ways at once, and again until somebody
//! answers: the first to arrive counts, and copies are refused by WireGuard as replays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::peer::{Peer, State};
use super::relays::Relays;
use super::signal::{MOST_ADDRESSES, Signal};
use super::way::Way;
use super::{PathOptions, Shared};
use crate::batch::Batch;
use crate::clock::Clock;
use crate::crypto::Kind;
use crate::path::{Agent, Probe, Route};
use crate::wire::reachable;

/// How soon a first message that nobody answers is sent again; doubling.
const AGAIN: Duration = Duration::from_millis(250);
/// How often. Then it is the core's turn, which makes a new one after 5 seconds.
const AGAIN_MOST: u32 = 4;
/// How often the agent is told where the peer is heard, if it is always the same.
const LISTEN: Duration = Duration::from_millis(500);
/// How long nothing may come from a peer while packets are sent to it, before the way is looked at.
const SILENCE: Duration = Duration::from_millis(500);
/// How often the peer is told where this node is, while packets go over a relay.
const TELL: Duration = Duration::from_secs(10);

/// A handshake's first message that was not answered yet.
#[derive(Debug)]
struct Pending {
    message: Vec<u8>,
    next: Instant,
    wait: Duration,
    left: u32,
}

/// The ways to one peer.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) agent: Agent,
    options: PathOptions,
    endpoint: Option<SocketAddr>,
    /// Where the peer says that it is.
    claimed: Vec<SocketAddr>,
    last_heard: Option<(Route, Instant)>,
    /// When anything authentic came last.
    alive: Option<Instant>,
    pending: Option<Pending>,
    /// When the peer was told where this node is, and what.
    told: Option<(Instant, Vec<SocketAddr>)>,
    probes: Vec<Probe>,
}

impl Paths {
    pub(super) fn new(options: PathOptions, endpoint: Option<SocketAddr>) -> Self {
        Self {
            agent: Agent::new(),
            options,
            endpoint,
            claimed: Vec::new(),
            last_heard: None,
            alive: None,
            pending: None,
            told: None,
            probes: Vec::new(),
        }
    }

    /// Takes other options; what was learned stays.
    pub(super) fn set(&mut self, options: PathOptions, endpoint: Option<SocketAddr>) {
        self.options = options;
        self.endpoint = endpoint;
    }

    /// Tells the agent which ways there may be.
    pub(super) fn list(&mut self, now: Instant, relays: &Relays) {
        let links = relays.all();
        let wanted = &self.options.relays;
        let relayed = links
            .iter()
            .filter(|link| link.usable())
            .filter(|link| wanted.is_empty() || wanted.contains(&link.address.key))
            .map(|link| Route::Relay(link.id));
        let candidates = &self.options.candidates;
        let direct = self.endpoint.iter().chain(candidates).chain(&self.claimed);
        let direct = direct
            .filter(|address| reachable(**address))
            .map(|address| Route::Direct(*address));
        let routes: Vec<_> = relayed.chain(direct).collect();
        self.agent.set_routes(now, &routes);
        if let Some(pending) = &mut self.pending {
            pending.next = now;
        }
    }

    /// Notes over which way something authentic came. Whether the agent was told.
    pub(super) fn heard(&mut self, clock: &dyn Clock, source: &Way) -> bool {
        let now = clock.now();
        self.pending = None;
        self.alive = Some(now);
        let route = source.route();
        if self
            .last_heard
            .is_some_and(|(last, at)| last == route && now.saturating_duration_since(at) < LISTEN)
        {
            return false;
        }
        self.last_heard = Some((route, now));
        self.agent.heard(now, route);
        true
    }

    /// Takes what the peer says of where it is.
    fn claim(&mut self, addresses: Vec<SocketAddr>) -> bool {
        let usable = |address: &SocketAddr| reachable(*address) && !address.ip().is_loopback();
        let addresses: Vec<_> = addresses.into_iter().filter(usable).collect();
        let changed = addresses != self.claimed;
        self.claimed = addresses;
        changed
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
        if !initiation(batch) || paths.agent.round_trip().is_some() {
            return None;
        }
        let now = shared.clock.now();
        paths.pending = Some(Pending {
            message: batch.get(0)?.to_vec(),
            next: now + AGAIN,
            wait: AGAIN,
            left: AGAIN_MOST,
        });
        Some(paths.ways(shared, peer))
    }
}

impl Paths {
    fn ways(&self, shared: &Shared, peer: &Peer) -> Vec<Way> {
        let ways = self.agent.routes().filter_map(|route| match route {
            Route::Direct(address) => Some(Way::Direct(address)),
            Route::Relay(id) => shared
                .relays
                .get(id)
                .map(|link| Way::Relay(link, peer.short)),
        });
        ways.take(MOST_ADDRESSES * 2).collect()
    }
}

/// What changed that all peers have to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    /// Which relays can be used, or where they see this node.
    pub(super) listed: bool,
    /// This node is somewhere else.
    pub(super) moved: bool,
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
        if change.listed {
            paths.list(now, &shared.relays);
        }
        if change.moved {
            paths.agent.moved(now);
        }
        if peer.busy.swap(false, Ordering::Relaxed) {
            paths.agent.sent(now);
            if paths
                .alive
                .is_some_and(|at| now.saturating_duration_since(at) >= SILENCE)
            {
                paths.agent.doubt(now);
            }
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
            for way in paths.ways(shared, peer) {
                way.send(&shared.wire, &self.sealed, &mut self.framed);
            }
        }
        if !state.tunnel.ready() {
            state.follow(&shared.relays, peer.short);
            return;
        }
        let mut probes = std::mem::take(&mut paths.probes);
        paths.agent.tick(now, &mut probes);
        let relayed = paths.agent.route().filter(Route::relayed);
        // Is it the relay, the peer, or this node that is not where it was?
        let suspect = match paths.agent.route() {
            Some(Route::Relay(id)) if paths.agent.misses() >= 2 => Some(id),
            Some(Route::Direct(_)) if paths.agent.misses() >= 1 => {
                paths.agent.routes().find_map(|route| match route {
                    Route::Relay(id) => Some(id),
                    Route::Direct(_) => None,
                })
            }
            _ => None,
        };
        if let Some(link) = suspect.and_then(|id| shared.relays.get(id)) {
            link.check(now);
        }
        let tell = paths.agent.active(now)
            && !own.is_empty()
            && paths.told.as_ref().is_none_or(|(at, what)| {
                what != own || (relayed.is_some() && now.saturating_duration_since(*at) >= TELL)
            });
        if tell {
            paths.told = Some((now, own.to_vec()));
        }
        state.follow(&shared.relays, peer.short);
        for probe in probes.drain(..) {
            let way = match probe.route {
                Route::Direct(address) => Way::Direct(address),
                Route::Relay(id) => match shared.relays.get(id) {
                    Some(link) => Way::Relay(link, peer.short),
                    None => continue,
                },
            };
            self.say(shared, state, &way, &Signal::Ask(probe.number));
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
            Signal::Answer(number) => paths.agent.answered(now, source.route(), number),
            Signal::Here(addresses) => {
                if paths.claim(addresses) {
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
        self.plain.push(&signal.write());
        state.tunnel.seal(&self.plain, &mut self.sealed);
        way.send(&shared.wire, &self.sealed, &mut self.framed);
    }
}
