//! A node of the mesh: keys on disk, a place in the mesh, tunnels to those with whom policy lets anything pass, and names.
//!
//! [`Node::start`] brings it up from what is on disk, and asks nobody if it has joined before; [`Node::follow`] then
//! keeps it current for as long as it runs. How the coordinator is reached is the caller's ([`Link`]).
//!
//! Both ends of a tunnel compile the policy, and a node that no rule allows anything with is no peer: no handshake, no packet.
//! What may pass between two that are peers is asked of a [`FilterGate`], packet by packet, at both ends.
//!
//! Absent: HTTP; a decision about who may speak to whom ([`crate::policy`]); a data plane that waits for a coordinator.

mod current;
mod link;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use current::Current;
pub use link::{Heard, Link, LinkError};
pub use state::{State, StateError};
pub use status::{NodeStatus, PeerSummary};
use tokio::sync::Notify;

use crate::clock::SystemClock;
use crate::coordination::{
    Applied, JoinRequest, MOST_SERVICES, NodeRecord, Signed, Token, View, ViewError, Voucher,
    WatchRequest, overlay_v6_range,
};
use crate::crypto::NoiseCore;
use crate::engine::Engine;
use crate::error::Error;
use crate::names::{Server, ServerOptions};
use crate::policy::FilterGate;
use crate::tun::{Tun, TunOptions};
use crate::wire::{Wire, WireOptions};

/// The port of tunnels, unless it is taken.
const PORT: u16 = 51_820;
/// Handshakes a second that strangers may ask for.
const HANDSHAKES: u32 = 500;
/// How long to wait before the coordinator is asked again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a node is brought up.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// What it would like to be called.
    pub name: String,
    /// Where others may reach it, without the port; with 0 as the port, that of its tunnels is put in.
    pub endpoints: Vec<SocketAddr>,
    /// Where names are asked for, besides port 53 of its address in the mesh.
    pub dns: Vec<SocketAddr>,
    /// Who is asked about other names.
    pub upstream: Vec<SocketAddr>,
}

/// Why a node is not up, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its device, sockets or keys.
    #[error(transparent)]
    Data(#[from] Error),
    /// Its coordinator.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Its DNS server.
    #[error("cannot serve names at {0}: {1}")]
    Names(SocketAddr, #[source] io::Error),
    /// The coordinator did not sign what it should have.
    #[error("what the coordinator answered is not signed with the key in the token")]
    Impostor,
    /// The coordinator put it out.
    #[error("this node was revoked")]
    Revoked,
    /// The coordinator knows it no more.
    #[error("the coordinator has forgotten this node: it was ephemeral, and away for too long")]
    Forgotten,
    /// The device was removed by others.
    #[error("the device of the tunnels is gone")]
    Device,
}

/// Why this node cannot give a service.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The policy knows none of that name.
    #[error("the policy has no service {0:?}")]
    Unknown(String),
    /// The policy gives it to others.
    #[error("the policy does not name this node for the service {0:?}")]
    NotOurs(String),
    /// The policy has it on other ports.
    #[error("the policy does not have the service {0:?} on tcp/{1}")]
    Port(String, u16),
    /// There are too many.
    #[error("this node gives too many services")]
    TooMany,
    /// It could not be written down.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What may change while a node runs.
#[derive(Debug)]
struct Live {
    view: View,
    current: Current,
    connected: bool,
    since_ms: u64,
    trouble: Option<String>,
    /// The services that are ready now.
    ready: BTreeSet<String>,
}

/// A node that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Node {
    state: Mutex<State>,
    voucher: Voucher,
    name: String,
    /// What it asked to be called.
    wanted: String,
    endpoints: Vec<SocketAddr>,
    engine: Engine,
    gate: Arc<FilterGate>,
    dns: Server,
    live: Mutex<Live>,
    /// Something is to be said to the coordinator.
    news: Notify,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Joins if the state holds no membership yet.
async fn join(
    state: &mut State,
    token: Option<&Token>,
    record: impl Fn(&State) -> NodeRecord,
    link: &impl Link,
) -> Result<Voucher, NodeError> {
    let token = token.ok_or_else(|| StateError::NeverJoined(state.directory().to_owned()))?;
    state.epoch += 1;
    state.save()?;
    let request = JoinRequest {
        token: token.id.clone(),
        admission: token.admission(state.identity.public()),
        record: state.identity.sign(&record(state)),
    };
    let mut pause = FIRST_PAUSE;
    let answer = loop {
        match link.join(&request).await {
            // The answer may have been lost: asking again makes no second node.
            Err(LinkError::Unreachable(_)) if pause < LONGEST_PAUSE => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            other => break other?,
        }
    };
    let voucher = own(&answer.voucher, state).ok_or(NodeError::Impostor)?;
    state.voucher = Some(answer.voucher);
    state.save()?;
    Ok(voucher)
}

/// The device, with both addresses; in containers there is often no IPv6 at all, and the other must do.
fn device(voucher: &Voucher) -> Result<Tun, Error> {
    let mut options = TunOptions {
        addresses: vec![(voucher.v4.into(), 10), (voucher.v6.into(), 48)],
        ..TunOptions::default()
    };
    Tun::create(&options, None).or_else(|error| {
        options.addresses.pop();
        let tun = Tun::create(&options, None)?;
        tracing::warn!("there is no IPv6 inside the mesh here: {error}");
        Ok(tun)
    })
}

fn own(voucher: &Signed<Voucher>, state: &State) -> Option<Voucher> {
    let voucher = voucher.verify(&state.coordinator).ok()?;
    (voucher.identity == state.identity.public()).then_some(voucher)
}

impl Node {
    /// Joins if need be, and brings tunnels and names up with what is known.
    ///
    /// # Errors
    /// The coordinator does not let it in, or the machine refuses a device, a socket or a file.
    pub async fn start(
        mut state: State,
        token: Option<&Token>,
        options: NodeOptions,
        link: &impl Link,
    ) -> Result<Self, NodeError> {
        let wanted = if state.port == 0 { PORT } else { state.port };
        let wire = |port| {
            let options = WireOptions {
                port,
                ..WireOptions::default()
            };
            Wire::bind(&options, None)
        };
        // Sockets first: what the node says of itself names their port.
        let wire = match wire(wanted) {
            Ok(bound) => bound,
            Err(_) => wire(0)?,
        };
        state.port = wire.port();
        let endpoints = options.endpoints.iter().map(|at| match at.port() {
            0 => SocketAddr::new(at.ip(), wire.port()),
            _ => *at,
        });
        let endpoints: Vec<_> = endpoints.collect();
        let record = |state: &State| NodeRecord {
            identity: state.identity.public(),
            epoch: state.epoch,
            name: options.name.clone(),
            wireguard: state.wireguard.public(),
            endpoints: endpoints.clone(),
            // Until somebody says again that they are there.
            unready: state.served.clone(),
        };
        let view = state.map();
        let voucher = match state.voucher.as_ref().map(|voucher| own(voucher, &state)) {
            Some(Some(voucher)) => {
                let known = view.node(&voucher.identity).map(|known| &known.record);
                let same = |known: &NodeRecord| {
                    let now = NodeRecord {
                        epoch: known.epoch,
                        ..record(&state)
                    };
                    known.epoch == state.epoch && *known == now
                };
                if !known.is_some_and(same) {
                    // Told by `follow`; the number is used up whatever becomes of it.
                    state.epoch += 1;
                }
                voucher
            }
            Some(None) => return Err(NodeError::Impostor),
            None => join(&mut state, token, record, link).await?,
        };
        state.save()?;

        let clock = Arc::new(SystemClock);
        let core = NoiseCore::new(&state.wireguard, HANDSHAKES, clock.clone());
        let tun = device(&voucher)?;
        let gate = Arc::new(FilterGate::closed(Instant::now()));
        let engine = Engine::start_guarded(tun, wire, Arc::new(core), clock, gate.clone())?;
        let current = Current::of(&view, &voucher, overlay_v6_range(&state.coordinator));
        let at_home = SocketAddr::new(voucher.v4.into(), 53);
        let listen: Vec<_> = std::iter::once(at_home).chain(options.dns).collect();
        let server = ServerOptions {
            listen,
            upstream: options.upstream,
        };
        let dns = Server::start(server, current.zone.clone()).await;
        let dns = dns.map_err(|error| NodeError::Names(at_home, error))?;
        let name = voucher.name.clone();
        let node = Self {
            state: Mutex::new(state),
            voucher,
            name,
            wanted: options.name,
            endpoints,
            engine,
            gate,
            dns,
            news: Notify::new(),
            live: Mutex::new(Live {
                view,
                current,
                connected: false,
                since_ms: now_ms(),
                trouble: None,
                ready: BTreeSet::new(),
            }),
        };
        node.carry_out(&mut node.live());
        node.say();
        Ok(node)
    }

    /// Keeps what this node says of itself, for `follow` to tell.
    fn say(&self) {
        let mut live = self.live();
        let state = self.state();
        let said = state.identity.sign(&NodeRecord {
            identity: state.identity.public(),
            epoch: state.epoch,
            name: self.wanted.clone(),
            wireguard: state.wireguard.public(),
            endpoints: self.endpoints.clone(),
            unready: state.served.difference(&live.ready).cloned().collect(),
        });
        live.current.said = Some(said);
        self.news.notify_one();
    }

    /// Says of a service that this node is ready to give it, or is not. Names lead to those that are ready. It is remembered: after a restart
    /// the node is not ready until this is called again.
    ///
    /// # Errors
    /// Policy does not name this node, the service or the port; or the disk refuses.
    pub fn set_ready(&self, service: &str, port: u16, ready: bool) -> Result<(), ServeError> {
        let mut live = self.live();
        if ready {
            live.current.may_serve(self.own(&live), service, port)?;
        }
        let mut state = self.state();
        let known = state.served.contains(service);
        if !known && state.served.len() >= MOST_SERVICES {
            return Err(ServeError::TooMany);
        }
        let changed = if ready {
            live.ready.insert(service.to_owned())
        } else {
            live.ready.remove(service)
        };
        if known && !changed {
            return Ok(());
        }
        state.served.insert(service.to_owned());
        state.epoch += 1;
        state.save()?;
        drop((live, state));
        self.say();
        Ok(())
    }

    /// Whether policy lets this node give a service on a TCP port.
    ///
    /// # Errors
    /// It does not.
    pub fn may_serve(&self, service: &str, port: u16) -> Result<(), ServeError> {
        let live = self.live();
        live.current.may_serve(self.own(&live), service, port)
    }

    /// What the coordinator says of this node now, else what it said when it joined.
    fn own<'a>(&'a self, live: &'a Live) -> &'a Voucher {
        let known = live.view.node(&self.voucher.identity);
        known.map_or(&self.voucher, |known| &known.voucher)
    }

    /// Sends something to a node inside its tunnel, whatever policy lets pass there, so that the time of a round trip is measured; see
    /// [`PeerSummary::round_trip_us`]. Whether there may be a tunnel.
    pub fn probe(&self, name: &str) -> bool {
        let live = self.live();
        let peer = live
            .current
            .peers
            .iter()
            .find(|(_, peer)| peer.name == name);
        peer.is_some_and(|(key, _)| self.engine.probe(key))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the data plane should ask before it lets a packet pass; it follows the policy.
    pub fn gate(&self) -> Arc<FilterGate> {
        Arc::clone(&self.gate)
    }

    /// What the coordinator vouches for.
    pub const fn voucher(&self) -> &Voucher {
        &self.voucher
    }

    /// Its device.
    pub fn interface(&self) -> &str {
        self.engine.device().name()
    }

    /// Where names are asked for.
    pub fn dns(&self) -> &[SocketAddr] {
        self.dns.addresses()
    }

    /// Makes the data plane what the view says.
    fn carry_out(&self, live: &mut Live) {
        let range = overlay_v6_range(&self.state().coordinator);
        let now = Current::of(&live.view, &self.voucher, range);
        let before = std::mem::replace(&mut live.current, now);
        live.current.said = before.said;
        // Closed before it is opened: who is out is out before anybody else is let in.
        self.gate.set(live.current.filter.clone());
        for peer in self.engine.peers() {
            if !live.current.peers.contains_key(&peer.public_key) {
                self.engine.remove_peer(&peer.public_key);
            }
        }
        for (key, peer) in &live.current.peers {
            if before.peers.get(key) == Some(peer) && self.engine.peer(key).is_some() {
                continue;
            }
            if let Err(error) = self.engine.set_peer(&peer.options(*key)) {
                tracing::warn!(peer = %peer.name, "cannot reach a node: {error}");
            }
        }
        self.dns.set_zone(live.current.zone.clone());
    }

    fn heard(&self, trouble: Option<String>) {
        let mut live = self.live();
        let connected = trouble.is_none();
        if live.connected != connected {
            live.connected = connected;
            live.since_ms = now_ms();
            match &trouble {
                Some(trouble) => tracing::warn!("{trouble}; going on with what is known"),
                None => tracing::info!("the coordinator answers"),
            }
        }
        live.trouble = trouble;
    }

    fn take(&self, frame: &Signed<crate::coordination::Frame>) -> Result<Applied, ViewError> {
        let mut live = self.live();
        let applied = live.view.apply(frame)?;
        self.carry_out(&mut live);
        let state = self.state();
        for result in [state.save_map(&live.view), state.save()] {
            if let Err(error) = result {
                tracing::warn!("what was learned is not kept: {error}");
            }
        }
        Ok(applied)
    }

    fn question(&self) -> (Signed<WatchRequest>, u64) {
        let cursor = self.live().view.cursor();
        let mut state = self.state();
        state.last_ms = now_ms().max(state.last_ms + 1);
        let request = WatchRequest {
            identity: state.identity.public(),
            cursor,
            at_ms: state.last_ms,
        };
        (state.identity.sign(&request), request.at_ms)
    }

    /// One exchange with the coordinator; the reason if it is the last.
    async fn exchange(&self, link: &impl Link) -> Result<Option<NodeError>, LinkError> {
        let said = self.live().current.said.clone();
        if let Some(record) = said {
            match link.update(&record).await {
                Err(LinkError::Unreachable(why)) => return Err(LinkError::Unreachable(why)),
                // If it is because this node is in no more, the question below is answered so.
                Err(LinkError::Refused(why)) => {
                    tracing::warn!("what this node says is refused: {why}")
                }
                Ok(()) => {}
            }
            // It answers, though it may have nothing to tell for a while.
            self.heard(None);
            let mut live = self.live();
            // Something else may have been said meanwhile.
            if live.current.said.as_ref() == Some(&record) {
                live.current.said = None;
            }
        }
        let (question, at_ms) = self.question();
        let heard = tokio::select! {
            heard = link.watch(&question) => heard?,
            () = self.news.notified() => return Ok(None),
        };
        match heard {
            Heard::Nothing => {}
            Heard::Frame(frame) => {
                let refused = |error: ViewError| LinkError::Refused(error.to_string());
                let applied = self.take(&frame).map_err(refused)?;
                if applied.refused > 0 {
                    tracing::warn!("{} entries of the map were not believed", applied.refused);
                }
            }
            Heard::Farewell(farewell) => {
                let coordinator = self.state().coordinator;
                let said = farewell.verify(&coordinator).ok();
                let said = said
                    .filter(|said| said.identity == self.voucher.identity && said.at_ms == at_ms);
                return match said {
                    Some(said) if said.revoked => Ok(Some(NodeError::Revoked)),
                    Some(_) => Ok(Some(NodeError::Forgotten)),
                    None => Err(LinkError::Refused(
                        "a farewell that it did not sign".to_owned(),
                    )),
                };
            }
        }
        Ok(None)
    }

    /// Follows the coordinator for as long as the node is wanted. While nobody answers, everything goes on as it is.
    ///
    /// # Errors
    /// The node was revoked or forgotten, or its device is gone. All tunnels are closed then.
    pub async fn follow(&self, link: &impl Link) -> Result<std::convert::Infallible, NodeError> {
        let mut pause = FIRST_PAUSE;
        loop {
            if !self.engine.running() {
                return Err(NodeError::Device);
            }
            let error = match self.exchange(link).await {
                Ok(None) => {
                    self.heard(None);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(Some(end)) => {
                    for peer in self.engine.peers() {
                        self.engine.remove_peer(&peer.public_key);
                    }
                    let mut state = self.state();
                    // The next start has to join anew, if it may.
                    state.voucher = None;
                    state.save()?;
                    return Err(end);
                }
                Err(error) => error,
            };
            self.heard(Some(error.to_string()));
            // Said again at the next attempt: the answer to that comes at once.
            self.say();
            // Not all at once when it is back: a node's own turn within the pause.
            let turn = u64::from(self.voucher.identity.as_bytes()[0]);
            tokio::time::sleep(pause / 2 + pause * u32::try_from(turn).unwrap_or(0) / 510).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The node as it sees itself.
    pub fn status(&self) -> NodeStatus {
        let live = self.live();
        let addresses = |voucher: &Voucher| vec![IpAddr::V4(voucher.v4), IpAddr::V6(voucher.v6)];
        let others = live
            .view
            .nodes()
            .filter(|known| known.voucher.identity != self.voucher.identity);
        let peers = others.map(|known| {
            let status = self.engine.peer(&known.record.wireguard);
            PeerSummary {
                name: known.voucher.name.clone(),
                addresses: addresses(&known.voucher),
                tags: known.voucher.tags.iter().cloned().collect(),
                allowed: live.current.peers.contains_key(&known.record.wireguard),
                endpoint: status.as_ref().and_then(|status| status.endpoint),
                handshake_seconds: status
                    .as_ref()
                    .and_then(|status| Some(status.last_handshake?.as_secs())),
                round_trip_us: status
                    .as_ref()
                    .and_then(|status| u64::try_from(status.round_trip?.as_micros()).ok()),
                received: status.as_ref().map_or(0, |status| status.received_bytes),
                sent: status.as_ref().map_or(0, |status| status.sent_bytes),
            }
        });
        let served = self.state().served.clone();
        let services: BTreeMap<_, _> = served
            .into_iter()
            .map(|service| {
                let ready = live.ready.contains(&service);
                (service, ready)
            })
            .collect();
        let engine = self.engine.status();
        NodeStatus {
            name: self.name.clone(),
            domain: live.current.zone.domain().to_owned(),
            addresses: addresses(&self.voucher),
            tags: self.voucher.tags.iter().cloned().collect(),
            interface: self.interface().to_owned(),
            port: self.engine.port(),
            dns: self.dns().to_vec(),
            cursor: live.view.cursor(),
            connected: live.connected,
            since_ms: live.since_ms,
            trouble: live.trouble.clone(),
            services,
            denied_outbound: engine.denied_outbound,
            denied_inbound: engine.denied_inbound,
            peers: peers.collect(),
        }
    }
}
