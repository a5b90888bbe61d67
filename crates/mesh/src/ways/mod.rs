//! The ways to one peer: which there may be, which one is taken, and what is due for them.
//!
//! The [path agent](crate::path) decides; this feeds it with what a node is told and hears, and knows the [relays](Relays) by which the agent's
//! numbers are meant. Both kinds of carriers stand on it: tunnels, and the flows of nodes without a device. They send what it says is due, each
//! under its own keys.

pub(crate) mod signal;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::key::PublicKey;
use crate::path::{Agent, Probe, RelayId, Route};
use crate::relay::{Link, Post, Relays, Short};
use crate::wire::reachable;
use signal::MOST_ADDRESSES;

/// How often the agent is told where the peer is heard, if it is always the same.
const LISTEN: Duration = Duration::from_millis(500);
/// How long nothing may come from a peer while packets are sent to it, before the way is looked at.
const SILENCE: Duration = Duration::from_millis(500);
/// How often the peer is told where this node is, while packets go over a relay.
const TELL: Duration = Duration::from_secs(10);

/// One end of a message's way, as this node sees it.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// This address.
    Direct(SocketAddr),
    /// The node behind this relay.
    Relay(Arc<Link>, Short),
}

impl Way {
    /// How the path agent calls it.
    pub(crate) fn route(&self) -> Route {
        match self {
            Self::Direct(address) => Route::Direct(*address),
            Self::Relay(link, _) => Route::Relay(link.id),
        }
    }

    /// Who has to answer for a message: of relayed ones, the relay.
    pub(crate) fn source(&self) -> IpAddr {
        match self {
            Self::Direct(address) => address.ip(),
            Self::Relay(link, _) => link
                .place()
                .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip()),
        }
    }

    /// Sends all; how many could not be sent. `framed` is room to work in.
    pub(crate) fn send(&self, post: &dyn Post, batch: &Batch, framed: &mut Batch) -> u64 {
        match self {
            Self::Direct(address) => post.post(*address, batch),
            Self::Relay(link, to) => link.send(post, *to, batch, framed),
        }
    }
}

/// Over which ways a peer is reached now, as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerWay {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Over the relay with this key.
    Relay(PublicKey),
}

impl From<&Way> for PeerWay {
    fn from(way: &Way) -> Self {
        match way {
            Way::Direct(address) => Self::Direct(*address),
            Way::Relay(link, _) => Self::Relay(link.address.key),
        }
    }
}

/// What changed that all peers have to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    /// Which relays can be used, or where they see this node.
    pub(crate) listed: bool,
    /// This node is somewhere else.
    pub(crate) moved: bool,
}

impl Change {
    /// Lets time pass for the relays, and says what changed since this was asked last.
    pub(crate) fn look(relays: &Relays, post: &dyn Post, now: Instant) -> Self {
        for link in relays.all() {
            if link.tick(now, post) {
                relays.note_change();
            }
        }
        let change = Self {
            listed: relays.take_change(),
            moved: relays.take_move(),
        };
        if change.listed {
            relays.rouse();
        }
        change
    }
}

/// The ways to one peer.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) agent: Agent,
    /// Where the peer may be, as this node was told.
    listed: Vec<SocketAddr>,
    /// The relays that the peer is registered with; empty for all.
    wanted: Vec<PublicKey>,
    /// Where the peer says that it is.
    claimed: Vec<SocketAddr>,
    last_heard: Option<(Route, Instant)>,
    /// When anything came last.
    alive: Option<Instant>,
    /// When the peer was told where this node is, and what.
    told: Option<(Instant, Vec<SocketAddr>)>,
}

impl Ways {
    /// With what the node was told, which the agent does not know before [`Ways::list`].
    pub(crate) const fn new(listed: Vec<SocketAddr>, wanted: Vec<PublicKey>) -> Self {
        Self {
            agent: Agent::new(),
            listed,
            wanted,
            claimed: Vec::new(),
            last_heard: None,
            alive: None,
            told: None,
        }
    }

    /// Takes other options; what was learned stays.
    pub(crate) fn set(&mut self, listed: Vec<SocketAddr>, wanted: Vec<PublicKey>) {
        self.listed = listed;
        self.wanted = wanted;
    }

    /// Tells the agent which ways there may be.
    pub(crate) fn list(&mut self, now: Instant, relays: &Relays) {
        let links = relays.all();
        let wanted = &self.wanted;
        let relayed = links
            .iter()
            .filter(|link| link.usable())
            .filter(|link| wanted.is_empty() || wanted.contains(&link.address.key))
            .map(|link| Route::Relay(link.id));
        let direct = self.listed.iter().chain(&self.claimed);
        let direct = direct
            .filter(|address| reachable(**address))
            .map(|address| Route::Direct(*address));
        let routes: Vec<_> = relayed.chain(direct).collect();
        self.agent.set_routes(now, &routes);
    }

    /// Notes that something came from the peer, over whatever way.
    pub(crate) const fn lives(&mut self, now: Instant) {
        self.alive = Some(now);
    }

    /// Notes over which way something authentic came. Whether the agent was told.
    pub(crate) fn heard(&mut self, now: Instant, route: Route) -> bool {
        self.lives(now);
        let recently = |(last, at): (Route, Instant)| {
            last == route && now.saturating_duration_since(at) < LISTEN
        };
        if self.last_heard.is_some_and(recently) {
            return false;
        }
        self.last_heard = Some((route, now));
        self.agent.heard(now, route);
        true
    }

    /// Takes what the peer says of where it is. Whether that is something else than before.
    pub(crate) fn claim(&mut self, addresses: Vec<SocketAddr>) -> bool {
        let usable = |address: &SocketAddr| reachable(*address) && !address.ip().is_loopback();
        let addresses: Vec<_> = addresses.into_iter().filter(usable).collect();
        let changed = addresses != self.claimed;
        self.claimed = addresses;
        changed
    }

    /// Tells the agent what changed, and whether packets went or came.
    pub(crate) fn look(&mut self, now: Instant, relays: &Relays, change: Change, busy: bool) {
        if change.listed {
            self.list(now, relays);
        }
        if change.moved {
            self.agent.moved(now);
        }
        if busy {
            self.agent.sent(now);
            let silent = |at: Instant| now.saturating_duration_since(at) >= SILENCE;
            if self.alive.is_some_and(silent) {
                self.agent.doubt(now);
            }
        }
    }

    /// Appends the probes that are due, and has the relay checked if it is under suspicion. Whether the peer is to be told now that this node
    /// is at `own`.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        relays: &Relays,
        own: &[SocketAddr],
        probes: &mut Vec<Probe>,
    ) -> bool {
        self.agent.tick(now, probes);
        if let Some(link) = self.suspect().and_then(|id| relays.get(id)) {
            link.check(now);
        }
        let relayed = self.agent.route().is_some_and(|route| route.relayed());
        let tell = self.agent.active(now)
            && !own.is_empty()
            && self.told.as_ref().is_none_or(|(at, what)| {
                what != own || (relayed && now.saturating_duration_since(*at) >= TELL)
            });
        if tell {
            self.told = Some((now, own.to_vec()));
        }
        tell
    }

    /// When answers are missing: is it the relay, the peer, or this node that is not where it was?
    fn suspect(&self) -> Option<RelayId> {
        match self.agent.route()? {
            Route::Relay(id) if self.agent.misses() >= 2 => Some(id),
            Route::Direct(_) if self.agent.misses() >= 1 => {
                self.agent.routes().find_map(|route| match route {
                    Route::Relay(id) => Some(id),
                    Route::Direct(_) => None,
                })
            }
            _ => None,
        }
    }

    /// The way that the agent means; `None` for a relay that is gone.
    pub(crate) fn way(relays: &Relays, to: Short, route: Route) -> Option<Way> {
        match route {
            Route::Direct(address) => Some(Way::Direct(address)),
            Route::Relay(id) => relays.get(id).map(|link| Way::Relay(link, to)),
        }
    }

    /// All of them, up to a number.
    pub(crate) fn all(&self, relays: &Relays, to: Short) -> Vec<Way> {
        let ways = self.agent.routes();
        let ways = ways.filter_map(|route| Self::way(relays, to, route));
        ways.take(MOST_ADDRESSES * 2).collect()
    }
}

/// Where this node may be found: what its owner knows, and where relays see it.
pub(crate) fn own_places(known: &[SocketAddr], relays: &Relays) -> Vec<SocketAddr> {
    let mut places = known.to_vec();
    for seen in relays.seen() {
        if !places.contains(&seen) {
            places.push(seen);
        }
    }
    places.truncate(MOST_ADDRESSES);
    places
}
