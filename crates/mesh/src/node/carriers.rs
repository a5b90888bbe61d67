//! What carries between this node and the others: tunnels over a device, if the machine allows one, and flows.
//!
//! Every node carries flows. Two that have a device each speak through a tunnel; where one has none, both use flows.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::beyond::Routing;
use super::current::{Current, Peer};
use super::relaying::Used;
use super::state::State;
use super::status::Way;
use super::{NodeError, NodeOptions};
use crate::clock::SystemClock;
use crate::coordination::{IdentityKey, Mode, Voucher};
use crate::crypto::{OwnKeys, RotatingCore};
use crate::engine::{Engine, EngineStatus};
use crate::error::Error;
use crate::flows::Records;
use crate::key::PublicKey;
use crate::namespace::Namespace;
use crate::policy::{Filter, FilterGate};
use crate::relay::{RelayAddress, RelayStatus};
use crate::services::Redirects;
use crate::surroundings::{MappedPort, News, Surroundings};
use crate::tun::{Tun, TunOptions};
use crate::userspace::{
    Addresses, Credentials, Fronts, ProxyOptions, Reach, Refusal, Service, Userspace,
    UserspaceOptions, UserspaceStatus,
};
use crate::ways::PeerWay;
use crate::wire::{Wire, WireOptions};

/// The port of tunnels, unless it is taken, and that of flows; of a node for programs of another namespace, any.
const TUNNELS_PORT: u16 = 51_820;
const FLOWS_PORT: u16 = 51_821;
/// Handshakes a second that strangers may ask for.
const HANDSHAKES: u32 = 500;
/// Who uses the proxy is called so.
const PROXY_USER: &str = "atoll";

/// The sockets that others reach a node at; bound first, since what the node says of itself names their ports.
pub(super) struct Sockets {
    wire: Option<Wire>,
    flows: UdpSocket,
    flows_port: u16,
}

fn wanted(port: u16, usual: u16) -> u16 {
    if port == 0 { usual } else { port }
}

impl Sockets {
    /// Binds what the mode needs: at the ports of the last time if they are free, else at the usual ones if this node is the machine's own.
    pub(super) fn bind(mode: Mode, state: &mut State, own: bool) -> Result<Self, NodeError> {
        let usual = |port| if own { port } else { 0 };
        let wire = |port| {
            let options = WireOptions {
                port,
                ..WireOptions::default()
            };
            Wire::bind(&options, None)
        };
        let wire = match mode {
            Mode::Tun => {
                let port = wanted(state.port, usual(TUNNELS_PORT));
                Some(wire(port).or_else(|_| wire(0))?)
            }
            Mode::Userspace => None,
        };
        // In containers there is often no IPv6 at all.
        let any = [
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::from([0, 0, 0, 0]),
        ];
        let places = [wanted(state.flows_port, usual(FLOWS_PORT)), 0]
            .into_iter()
            .flat_map(|port| any.map(|ip| SocketAddr::new(ip, port)));
        let mut bound = Err(std::io::ErrorKind::AddrNotAvailable.into());
        for place in places {
            bound = UdpSocket::bind(place);
            if bound.is_ok() {
                break;
            }
        }
        let failed = |error| NodeError::Data(Error::io("bind the socket of flows", error));
        let flows = bound.map_err(failed)?;
        let flows_port = flows.local_addr().map_err(failed)?.port();
        if let Some(wire) = &wire {
            state.port = wire.port();
        }
        state.flows_port = flows_port;
        Ok(Self {
            wire,
            flows,
            flows_port,
        })
    }

    /// Where tunnels and flows are reached, if this machine is reached there.
    pub(super) fn endpoints(&self, at: &[SocketAddr]) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let tunnels = self.wire.as_ref().map(|wire| {
            let all = at.iter().map(|at| match at.port() {
                0 => SocketAddr::new(at.ip(), wire.port()),
                _ => *at,
            });
            all.collect()
        });
        let mut flows = Vec::new();
        for at in at {
            // A port that was named is that of the tunnels, where there are some.
            let port = match at.port() {
                port if port != 0 && self.wire.is_none() => port,
                _ => self.flows_port,
            };
            let at = SocketAddr::new(at.ip(), port);
            if !flows.contains(&at) {
                flows.push(at);
            }
        }
        (tunnels.unwrap_or_default(), flows)
    }
}

/// The device that the mode needs, with both addresses; in containers there is often no IPv6 at all, and the other must do.
pub(super) fn device(
    mode: Mode,
    voucher: &Voucher,
    programs: Option<&Namespace>,
) -> Result<Option<Tun>, Error> {
    if !mode.is_tun() {
        return Ok(None);
    }
    let mut options = TunOptions {
        addresses: vec![(voucher.v4.into(), 10), (voucher.v6.into(), 48)],
        ..TunOptions::default()
    };
    let tun = Tun::create(&options, programs).or_else(|error| {
        options.addresses.pop();
        let tun = Tun::create(&options, programs)?;
        tracing::warn!("there is no IPv6 inside the mesh here: {error}");
        Ok(tun)
    });
    tun.map(Some)
}

/// All that carries.
#[derive(Debug)]
pub(super) struct Carriers {
    tunnels: Option<Arc<Engine>>,
    /// The keys of the tunnels, if there are some.
    core: Option<Arc<RotatingCore>>,
    flows: Arc<Userspace>,
    gate: Arc<FilterGate>,
    routing: Routing,
    /// Where the device is, if not in this process's network namespace.
    programs: Option<Arc<Namespace>>,
    /// The relays that are used now.
    relays: Mutex<Vec<RelayAddress>>,
    surroundings: OnceLock<Surroundings>,
}

/// What there is between this node and another.
#[derive(Debug, Default)]
pub(super) struct Between {
    pub(super) way: Option<Way>,
    pub(super) over: Option<PeerWay>,
    pub(super) since: Option<Duration>,
    pub(super) round_trip: Option<Duration>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Carriers {
    /// Starts what the mode has, with nothing allowed yet. Ports of `own` are servers for local programs.
    pub(super) async fn start(
        sockets: Sockets,
        device: Option<Tun>,
        state: &State,
        current: &Current,
        options: &NodeOptions,
        own: impl IntoIterator<Item = u16>,
    ) -> Result<Self, NodeError> {
        let gate = Arc::new(FilterGate::closed(Instant::now()));
        let mut core = None;
        let tunnels = match (sockets.wire, device) {
            (Some(wire), Some(tun)) => {
                let clock = Arc::new(SystemClock);
                let keys = state.own_keys();
                let own = RotatingCore::new(&state.wireguard, &keys, HANDSHAKES, clock.clone());
                let own = core.insert(Arc::new(own));
                let guarded = Arc::clone(&gate) as Arc<_>;
                let keys = Arc::clone(own) as Arc<_>;
                let engine = Engine::start_guarded(tun, wire, keys, clock, guarded)?;
                Some(Arc::new(engine))
            }
            _ => None,
        };
        let fronts = tunnels.as_ref().map(|engine| {
            if options.machine.is_some() {
                let device = engine.device().index();
                let addresses = Addresses::new(device, options.programs.clone());
                return Fronts::Addresses(Arc::new(addresses));
            }
            let redirects = Arc::new(Redirects::new(current.directory.own().v4));
            engine.set_redirects(Arc::clone(&redirects));
            Fronts::Redirects(redirects)
        });
        let mut proxies = Vec::new();
        if !options.proxies.is_empty() {
            let secret = state.proxy_secret(PROXY_USER)?;
            let credentials = Credentials::new(PROXY_USER.as_bytes(), secret.as_bytes());
            proxies.extend(options.proxies.iter().map(|listen| ProxyOptions {
                listen: *listen,
                credentials: Some(credentials),
            }));
        }
        let identity = state.identity.clone();
        let directory = current.directory.clone();
        let flows = UserspaceOptions {
            proxies,
            underlay: Some(state.underlay.clone()),
            keep_in_touch: true,
            fronts,
            reach: Reach::Home {
                except: own.into_iter().collect(),
            },
            programs: options.programs.clone(),
            ..UserspaceOptions::new(identity, directory, Arc::clone(&gate))
        };
        Ok(Self {
            tunnels,
            core,
            flows: Arc::new(Userspace::start_on(flows, sockets.flows).await?),
            gate,
            routing: Routing::default(),
            programs: options.programs.clone(),
            relays: Mutex::default(),
            surroundings: OnceLock::new(),
        })
    }

    /// Whether all of it still works.
    pub(super) fn running(&self) -> bool {
        self.tunnels.as_deref().is_none_or(Engine::running)
    }

    /// The device, if there is one, and the port of its tunnels.
    pub(super) fn device(&self) -> Option<(&str, u16)> {
        let engine = self.tunnels.as_ref()?;
        Some((engine.device().name(), engine.port()))
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        self.tunnels.as_deref()
    }

    /// Lets tunnels use these keys from now on.
    pub(super) fn set_keys(&self, keys: &OwnKeys) {
        if let (Some(core), Some(engine)) = (&self.core, &self.tunnels) {
            core.set_keys(keys);
            engine.renew();
        }
    }

    pub(super) const fn routing(&self) -> &Routing {
        &self.routing
    }

    pub(super) const fn gate(&self) -> &Arc<FilterGate> {
        &self.gate
    }

    /// Where the proxies listen.
    pub(super) fn proxies(&self) -> &[SocketAddr] {
        self.flows.proxies()
    }

    /// Says where tunnels and flows of this node may be found, now and whenever this machine's addresses change: where its owner says, where it has
    /// addresses, and if that is wanted where its router forwards ports. `own` are its addresses in the mesh.
    pub(super) fn look_around(
        &self,
        own: Vec<IpAddr>,
        said: (Vec<SocketAddr>, Vec<SocketAddr>),
        forward: bool,
    ) {
        let engine = self.tunnels.as_ref();
        let ports = (
            engine.map(|engine| engine.port()),
            self.flows.address().port(),
        );
        // Whoever holds them decides when they end.
        let (engine, flows) = (engine.map(Arc::downgrade), Arc::downgrade(&self.flows));
        let tell = move |news: News| {
            let engine = engine.as_ref().and_then(Weak::upgrade);
            if let (Some(engine), Some(port)) = (engine, ports.0) {
                engine.set_candidates(&news.candidates(port, &said.0));
                if news.moved {
                    engine.moved();
                }
            }
            if let Some(flows) = flows.upgrade() {
                flows.set_candidates(&news.candidates(ports.1, &said.1));
                if news.moved {
                    flows.moved();
                }
            }
        };
        let first = News::default();
        tell(first);
        let forward: Vec<_> = match forward {
            true => ports.0.into_iter().chain([ports.1]).collect(),
            false => Vec::new(),
        };
        let _ = self
            .surroundings
            .set(Surroundings::start(own, &forward, tell));
    }

    /// Ports that the router forwards to this node.
    pub(super) fn mapped(&self) -> Vec<MappedPort> {
        let surroundings = self.surroundings.get();
        surroundings.map(Surroundings::mapped).unwrap_or_default()
    }

    /// Registers with these relays and no others.
    fn set_relays(&self, used: &[Used]) {
        let now: Vec<_> = used.iter().filter_map(Used::address).collect();
        let mut before = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == now {
            return;
        }
        let tunnels = self.tunnels.as_ref().map_or(Ok(()), |engine| {
            // Who is in the mesh needs no ticket.
            engine.set_relays(&now, &[])
        });
        if let Err(error) = tunnels {
            tracing::error!("tunnels have no relays: {error}");
        }
        if let Err(error) = self.flows.set_relays(&now) {
            tracing::error!("flows have no relays: {error}");
        }
        *before = now;
    }

    /// How the relays are doing: as tunnels see them, or without a device as flows do.
    pub(super) fn relays(&self) -> Vec<RelayStatus> {
        match &self.tunnels {
            Some(engine) => engine.relays(),
            None => self.flows.relays(),
        }
    }

    /// Does something in the network namespace that the device is in.
    fn at_the_device(&self, action: impl FnOnce() + Send) {
        let done = match &self.programs {
            None => return action(),
            Some(programs) => programs.within(|| {
                action();
                Ok(())
            }),
        };
        if let Err(error) = done {
            tracing::warn!("the routes of the device cannot be changed: {error}");
        }
    }

    /// Makes everything what follows from a view, where it is another than before.
    pub(super) fn carry_out(&self, before: &Current, now: &Current) {
        // Closed before it is opened: who is out is out before anybody else is let in.
        self.gate.set(now.filter.clone());
        self.set_relays(&now.relays);
        if let Err(error) = self.flows.set_directory(now.directory.clone()) {
            tracing::error!("flows do not follow the map: {error}");
        }
        let Some(engine) = &self.tunnels else {
            return;
        };
        let ranges = self.routing.used();
        self.at_the_device(|| self.routing.follow(engine, now));
        let used = self.routing.used();
        let tunnel = |key: &PublicKey| now.peers.get(key).is_some_and(|peer| peer.mode.is_tun());
        for peer in engine.peers() {
            if !tunnel(&peer.public_key) {
                engine.remove_peer(&peer.public_key);
            }
        }
        let peers = now.peers.iter().filter(|(_, peer)| peer.mode.is_tun());
        for (key, peer) in peers {
            let same = before.peers.get(key) == Some(peer) && used == ranges;
            if same && engine.peer(key).is_some() {
                continue;
            }
            if let Err(error) = engine.set_peer(&peer.options(*key, &used)) {
                tracing::warn!(peer = %peer.name, "cannot reach a node: {error}");
            }
        }
    }

    /// From now on these ports lead to 127.0.0.1 too, where nothing listens at the node's own address.
    pub(super) fn declare(&self, ports: impl IntoIterator<Item = u16>) {
        // With a device, services are reached at its address alone, whoever calls.
        if self.tunnels.is_some() {
            return;
        }
        let services = ports.into_iter().map(|port| Service { port, target: None });
        if let Err(error) = self.flows.set_services(&services.collect::<Vec<_>>()) {
            tracing::warn!("a service is not offered from 127.0.0.1: {error}");
        }
    }

    /// Lets nothing pass any more.
    pub(super) fn close(&self) {
        self.gate.set(Filter::default());
        self.flows.refresh();
        if let Some(engine) = &self.tunnels {
            self.at_the_device(|| self.routing.close(engine));
            for peer in engine.peers() {
                engine.remove_peer(&peer.public_key);
            }
        }
    }

    /// Ends flows in order: others hear of it.
    pub(super) async fn end(&self) {
        self.close();
        if let Some(surroundings) = self.surroundings.get() {
            surroundings.stop().await;
        }
        self.flows.end().await;
    }

    fn tunnel(&self, peer: &Peer) -> Option<&Engine> {
        self.tunnels.as_deref().filter(|_| peer.mode.is_tun())
    }

    /// Has a new session made with another that there is a tunnel to.
    pub(super) fn greet(&self, key: &PublicKey, peer: &Peer) {
        if let Some(engine) = self.tunnel(peer) {
            engine.probe(key);
        }
    }

    /// Measures the way to another; `None` where the tunnel was asked, which says so itself when it knows.
    pub(super) async fn probe(
        &self,
        key: &PublicKey,
        peer: &Peer,
    ) -> Result<Option<Duration>, Refusal> {
        match self.tunnel(peer) {
            Some(engine) if engine.probe(key) => Ok(None),
            Some(_) => Err(Refusal::Denied),
            None => self.flows.probe(&peer.identity).await.map(Some),
        }
    }

    /// What there is between this node and another, with whom something may pass or might have.
    pub(super) fn between(
        &self,
        key: &PublicKey,
        peer: Option<&Peer>,
        identity: &IdentityKey,
    ) -> Between {
        let flows = self.flows.peer(identity);
        let mut between = Between {
            way: flows.open.map(|_| Way::Flows),
            over: flows.way,
            since: flows.open,
            round_trip: flows.round_trip,
            received: flows.received,
            sent: flows.sent,
        };
        let engine = peer.and_then(|peer| self.tunnel(peer));
        if let Some(status) = engine.and_then(|engine| engine.peer(key)) {
            between.way = status.last_handshake.map(|_| Way::Tunnel).or(between.way);
            between.over = status.way;
            between.since = status.last_handshake;
            between.round_trip = status.round_trip;
            between.received += status.received_bytes;
            between.sent += status.sent_bytes;
        }
        between
    }

    /// What the engine counts; nothing if there is none.
    pub(super) fn tunnels_status(&self) -> Option<EngineStatus> {
        self.tunnels.as_deref().map(Engine::status)
    }

    /// What tunnels and flows know of who spoke since, each after its own number.
    pub(super) fn records(&self, since: (u64, u64), now: Instant) -> (Records, Records) {
        let tunnels = self.gate.records(since.0, now);
        (tunnels, self.flows.records(since.1))
    }

    /// What carries flows and keeps doors.
    pub(super) fn flows(&self) -> &Userspace {
        &self.flows
    }

    pub(super) fn flows_status(&self) -> UserspaceStatus {
        self.flows.status()
    }
}
