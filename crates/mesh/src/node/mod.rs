//! A node of the mesh: keys on disk, a place in the mesh, tunnels to those with whom policy lets anything pass, and names.
//!
//! [`Node::start`] brings it up from what is on disk, and asks nobody if it has joined before; [`Node::follow`] then
//! keeps it current for as long as it runs. How the coordinator is reached is the caller's ([`Link`]).
//!
//! Both ends of a tunnel compile the policy, and a node that no rule allows anything with is no peer: no handshake, no packet.
//! What may pass between two that are peers is asked of a [`FilterGate`], packet by packet, at both ends.
//!
//! What local programs see of a node may be in another network namespace than the node ([`NodeOptions::programs`]): its device, where it answers questions for
//! names, its doors, and the services that it calls. Its keys and the sockets that other nodes reach it at stay where the node is, so programs in there need not be
//! trusted: they can send packets, and the gate is outside.
//!
//! A machine that allows no device has a node all the same ([`Mode::Userspace`], [`crate::userspace`]). `carriers` holds both kinds of ways: every
//! node carries flows, so that those with a device and those without reach each other. Names lead to where programs on this machine find a
//! node: its address in the mesh, or the loopback address that stands for it.
//!
//! Absent: HTTP; a decision about who may speak to whom ([`crate::policy`]); a data plane that waits for a coordinator.

mod beyond;
mod carriers;
mod certificates;
mod current;
mod device;
mod flows;
mod link;
mod relaying;
mod rotation;
mod services;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use beyond::ClusterSummary;
use carriers::{Carriers, Sockets};
pub use certificates::CertifyError;
use current::Current;
pub use device::{NamespaceRefusal, Step, device_allowed, namespace_device_allowed};
pub use flows::{Began, FlowSummary, FlowsCursor, FlowsStatus};
pub use link::{Heard, Link, LinkError};
pub use relaying::RelayPorts;
use relaying::Relaying;
pub use rotation::{Rotation, RotationPhase, RotationStatus, RotationTimes};
pub use services::{ServiceEndpoint, ServicePort, ServiceSummary};
pub use state::{State, StateError};
pub use status::{NodeStatus, PeerSummary, RelaySummary, RelayingSummary, Way};
use tokio::sync::{Notify, mpsc, watch};

use crate::coordination::{
    Applied, JoinRequest, MOST_SERVICES, Mode, NodeRecord, RelayOffer, Signed, Token, View,
    ViewError, Voucher, WatchRequest, overlay_v6_range,
};
use crate::error::Error;
use crate::names::{Server, ServerOptions};
use crate::namespace::Namespace;
use crate::policy::FilterGate;
use crate::userspace::{Refusal, UserspaceError};

/// Where a node without a device answers questions for names, if it may: where programs ask, where those ask who know, anywhere.
const NAMES_PORTS: [u16; 3] = [53, 5353, 0];
/// Services that were asked for and are not looked at yet.
const QUESTIONS: usize = 64;
/// How many others are told at once that a node is back.
const MOST_GREETED: usize = 64;
/// How long to wait before the coordinator is asked again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a node is brought up.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// What it would like to be called.
    pub name: String,
    /// How packets get in and out of this machine.
    pub mode: Mode,
    /// Where others may reach it. A port is that of its tunnels, or of its flows if it has none; with 0, the right one is put in.
    pub endpoints: Vec<SocketAddr>,
    /// Where proxies for local programs listen: SOCKS5 and HTTP CONNECT, with what [`State::proxy_file`] holds.
    pub proxies: Vec<SocketAddr>,
    /// Where names are asked for, besides its own address.
    pub dns: Vec<SocketAddr>,
    /// Who is asked about other names.
    pub upstream: Vec<SocketAddr>,
    /// Whether, and where, it is a relay for others.
    pub relay: Option<RelayPorts>,
    /// The network namespace of the programs that it is for; absent, that of the calling thread.
    pub programs: Option<Arc<Namespace>>,
    /// Where that namespace finds the machine that the programs are on, if they are on one of their own: a microVM. Nothing else may listen in the namespace, and it has to
    /// translate: what comes out of the device for this node's address goes to the machine, and what the machine sends into the device leaves as this node.
    pub machine: Option<Ipv4Addr>,
    /// Whether the router is asked to forward the ports of tunnels and flows.
    pub port_mapping: bool,
    /// When the key of its tunnels is exchanged.
    pub rotation: RotationTimes,
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
    /// Its flows or its proxy.
    #[error(transparent)]
    Flows(#[from] UserspaceError),
    /// Its coordinator.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The relay that it should be.
    #[error("cannot be a relay at port {0}: {1}")]
    Relay(u16, #[source] Error),
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
    /// Those, with the ports that were named.
    declared: BTreeSet<(String, u16)>,
}

/// What a node says of itself for as long as it runs.
#[derive(Debug)]
struct Said {
    /// What it asked to be called.
    wanted: String,
    endpoints: Vec<SocketAddr>,
    flows: Vec<SocketAddr>,
    relay: Option<RelayOffer>,
    mode: Mode,
}

impl Said {
    fn record(&self, state: &State, unready: BTreeSet<String>) -> NodeRecord {
        NodeRecord {
            identity: state.identity.public(),
            epoch: state.epoch,
            name: self.wanted.clone(),
            wireguard: state.wireguard.public(),
            renewal: self.mode.is_tun().then(|| state.rotation.renewal()),
            endpoints: self.endpoints.clone(),
            flows: self.flows.clone(),
            underlay: Some(state.underlay.public()),
            relay: self.relay.clone(),
            plain: false,
            mode: self.mode,
            unready,
        }
    }
}

/// A node that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Node {
    state: Mutex<State>,
    voucher: Voucher,
    name: String,
    said: Said,
    machine: Option<Ipv4Addr>,
    carriers: Carriers,
    relaying: Option<Relaying>,
    port_mapping: bool,
    dns: Server,
    live: Mutex<Live>,
    /// Something is to be said to the coordinator.
    news: Notify,
    /// Whether it ever had a map.
    informed: watch::Sender<bool>,
    times: RotationTimes,
    /// Somebody asked for another key.
    wanted: Mutex<bool>,
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

fn own(voucher: &Signed<Voucher>, state: &State) -> Option<Voucher> {
    let voucher = voucher.verify(&state.coordinator).ok()?;
    (voucher.identity == state.identity.public()).then_some(voucher)
}

/// Serves names at this node's own address: at the usual port, or without a device at another one where that is not allowed.
async fn names(
    current: &Current,
    options: &NodeOptions,
    asked: mpsc::Sender<String>,
) -> Result<Server, NodeError> {
    let home = current.directory.own().home();
    let ports = match options.mode {
        Mode::Tun => &NAMES_PORTS[..1],
        Mode::Userspace => &NAMES_PORTS,
    };
    let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
    for port in ports {
        let own = SocketAddr::from((home, *port));
        let server = ServerOptions {
            listen: std::iter::once(own).chain(options.dns.clone()).collect(),
            askers: options.machine.map(IpAddr::V4).into_iter().collect(),
            upstream: options.upstream.clone(),
            asked: Some(asked.clone()),
            namespace: options.programs.clone(),
        };
        result = Server::start(server, current.zone.clone()).await;
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|error| NodeError::Names((home, 53).into(), error))
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
        let mode = options.mode;
        // Sockets first: what the node says of itself names their ports.
        let sockets = Sockets::bind(mode, &mut state, options.programs.is_none())?;
        let (endpoints, flows) = sockets.endpoints(&options.endpoints);
        let relaying = match options.relay {
            Some(ports) => Some(Relaying::start(ports, &options.endpoints, &mut state)?),
            None => None,
        };
        let said = Said {
            wanted: options.name.clone(),
            endpoints,
            flows,
            relay: relaying.as_ref().map(|relaying| relaying.offer().clone()),
            mode,
        };
        // Until somebody says again that they are there.
        let record = |state: &State| said.record(state, state.served.clone());
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

        let range = overlay_v6_range(&state.coordinator);
        let current = Current::of(
            &view,
            &voucher,
            state.wireguard.public(),
            mode,
            range,
            options.machine,
        );
        // Its address first, which names are served at.
        let device = carriers::device(mode, &voucher, options.programs.as_deref())?;
        let (asked, questions) = mpsc::channel(QUESTIONS);
        let dns = names(&current, &options, asked).await?;
        let own = dns.addresses().iter().map(SocketAddr::port);
        let carriers = Carriers::start(sockets, device, &state, &current, &options, own).await?;
        carriers.flows().follow_questions(questions);
        let own = vec![voucher.v4.into(), voucher.v6.into()];
        let places = (said.endpoints.clone(), said.flows.clone());
        carriers.look_around(own, places, options.port_mapping);
        let name = voucher.name.clone();
        let informed = watch::Sender::new(view.cursor() > 0);
        let node = Self {
            state: Mutex::new(state),
            voucher,
            name,
            said,
            machine: options.machine,
            carriers,
            relaying,
            port_mapping: options.port_mapping,
            dns,
            news: Notify::new(),
            informed,
            times: options.rotation,
            wanted: Mutex::default(),
            live: Mutex::new(Live {
                view,
                current,
                connected: false,
                since_ms: now_ms(),
                trouble: None,
                ready: BTreeSet::new(),
                declared: BTreeSet::new(),
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
        let unready = state.served.difference(&live.ready).cloned().collect();
        let said = state.identity.sign(&self.said.record(&state, unready));
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
        let place = (service.to_owned(), port);
        let declared = match ready {
            true => live.declared.insert(place),
            false => live.declared.remove(&place),
        };
        if declared {
            self.carriers
                .declare(live.declared.iter().map(|(_, port)| *port));
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

    /// Measures the way to a node, whatever ports policy lets pass: `None` if its tunnel was asked, which takes a moment to know; see
    /// [`PeerSummary::round_trip_us`].
    ///
    /// # Errors
    /// There is no such node, nothing may pass, or it does not answer.
    pub async fn probe(&self, name: &str) -> Result<Option<Duration>, Refusal> {
        let peer = {
            let live = self.live();
            let mut peers = live.current.peers.iter();
            let found = peers.find(|(_, peer)| peer.name == name);
            found.map(|(key, peer)| (*key, peer.clone()))
        };
        let (key, peer) = peer.ok_or(Refusal::Denied)?;
        self.carriers.probe(&key, &peer).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the data plane asks before it lets something pass; it follows the policy.
    pub fn gate(&self) -> Arc<FilterGate> {
        Arc::clone(self.carriers.gate())
    }

    /// What the coordinator vouches for.
    pub const fn voucher(&self) -> &Voucher {
        &self.voucher
    }

    /// Its device, if it has one.
    pub fn interface(&self) -> Option<&str> {
        self.carriers.device().map(|(name, _)| name)
    }

    /// Where its services listen: its address in the mesh, or without a device the loopback address that stands for it.
    pub fn home(&self) -> Ipv4Addr {
        self.live().current.directory.own().home()
    }

    /// Ends flows in order, so that others hear of it; nothing passes any more.
    pub async fn stop(&self) {
        self.carriers.end().await;
    }

    /// Returns once it has a map, of now or of an earlier run: [`Node::follow`] brings it. Nothing passes before.
    pub async fn informed(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self
            .informed
            .subscribe()
            .wait_for(|informed| *informed)
            .await;
    }

    /// Lets others know that this node is back: those who had a tunnel with it hold on to a session that it has lost, for up to 15 s, and may
    /// have nothing that asks for an answer. The first few are told; the others find out.
    pub fn greet(&self) {
        let live = self.live();
        for (key, peer) in live.current.peers.iter().take(MOST_GREETED) {
            self.carriers.greet(key, peer);
        }
    }

    /// Where names are asked for.
    pub fn dns(&self) -> &[SocketAddr] {
        self.dns.addresses()
    }

    /// Makes the data plane what the view says.
    fn carry_out(&self, live: &mut Live) {
        let (range, key) = {
            let state = self.state();
            let range = overlay_v6_range(&state.coordinator);
            (range, state.wireguard.public())
        };
        let now = Current::of(
            &live.view,
            &self.voucher,
            key,
            self.said.mode,
            range,
            self.machine,
        );
        let before = std::mem::replace(&mut live.current, now);
        live.current.said = before.said.clone();
        self.carriers.carry_out(&before, &live.current);
        if let Some(relaying) = &self.relaying {
            relaying.follow(&live.view);
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
        self.informed.send_replace(true);
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
        tokio::select! {
            ended = self.follow_map(link) => ended,
            never = self.follow_keys() => match never {},
        }
    }

    async fn follow_map(&self, link: &impl Link) -> Result<std::convert::Infallible, NodeError> {
        let mut pause = FIRST_PAUSE;
        loop {
            if !self.carriers.running() {
                return Err(NodeError::Device);
            }
            let error = match self.exchange(link).await {
                Ok(None) => {
                    self.heard(None);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(Some(end)) => {
                    self.carriers.close();
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
}
