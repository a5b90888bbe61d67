//! The mesh for a machine that has neither `/dev/net/tun` nor any capability.
//!
//! There are no packets here. A flow of TCP that a local program begins is taken at this machine, carried as a stream of QUIC to the
//! other node, and connected there to the service that was declared:
//!
//! ```text
//!             this machine                        │                 the other
//! program ─► proxy: SOCKS5, HTTP CONNECT ─┐       │
//! program ─► door: 127.64.0.7:5432 ───────┴─ Carrier ══ QUIC ══ Carrier ─► gate, declared ports ─► 127.64.0.7:5432: service
//! ```
//!
//! - *Who*: both ends show their identity's Ed25519 key and sign the handshake with it (`identity`). Those who are not in the [`Directory`] get no
//!   connection. A connection serves all flows between two nodes, of both directions; it is opened for the first of them and closed some time after the last,
//!   or opened ahead by a node that could else not be called ([`UserspaceOptions::keep_in_touch`]). Its share of the way follows from
//!   how many of them are busy (`congestion`).
//! - *What*: the caller's gate is asked before anything is sent, and the called node's before anything is connected; the address is that of the
//!   node that the connection proved. A service is reached only if this machine declared its port ([`Service`]), or listens for it at the node's own
//!   address and said that this is enough ([`Reach`]), and only on loopback or at that address. What is not a
//!   name or an address of the mesh is refused, so this is a proxy to nowhere else. When directory or gate change, flows that
//!   they no longer allow break off: at once after [`Userspace::set_directory`] or [`Userspace::refresh`], else within about a second.
//! - *Doors*: in each node's name there is a loopback address, the same on every machine: [`loopback`] exchanges 100.64.0.0/10 for 127.64.0.0/10. Names
//!   should lead to it in this mode. At a peer's, this machine listens on the ports that rules name; at its own, the service itself
//!   does. So software that tells others its own address works if it is told its mesh name or loopback address: etcd, Redis and their like form clusters. A
//!   service sees its callers' loopback addresses, not 127.0.0.1. Ports below 1024 need a capability or `ip_unprivileged_port_start`; a program that
//!   listens at 0.0.0.0 takes its port from all doors, so it should listen at its own address. Doors are open to every program in the same network
//!   namespace, as loopback is; a proxy has [`Credentials`].
//! - *Services*: each has an address of its own, 100.127.x.y, and 127.127.x.y where there is no device, and doors at it that lead to one of its nodes
//!   (`consumer`): through the tunnel where both have a device. What this node sees of endpoints, in connections and in `probes`, decides which ([`crate::services`]).
//! - *Ends*: what one side ends in order the other sees end in order, each direction by itself; everything else is seen as a reset (`flow`).
//! - *Bounds*: flows, connections with a node, handshakes, clients that have not said yet what they want, doors, what a flow and a connection hold in memory, and every wait.
//!
//! A node that has a device runs a carrier too, for those that have none: it has doors to them alone, and its own services are at its address in
//! the mesh ([`Member::home`]), where callers without a device are seen by their loopback addresses.
//!
//! How a program uses it: it follows the coordinator as in the other modes, and hands over what it learns.
//!
//! ```no_run
//! # use std::{sync::Arc, time::Instant};
//! # use mesh::coordination::{Identity, View, Voucher};
//! # use mesh::policy::{FilterGate, Policy};
//! # use mesh::userspace::*;
//! # async fn up(identity: Identity, view: &View, policy: &Policy, me: &Voucher, key: mesh::PublicKey) -> Result<(), UserspaceError> {
//! let gate = Arc::new(FilterGate::closed(Instant::now()));
//! let directory = Directory::of(view, policy, me, key, mesh::coordination::Mode::Userspace);
//! let mut options = UserspaceOptions::new(identity, directory, Arc::clone(&gate));
//! options.services = vec![Service { port: 5432, target: None }];
//! options.proxies = vec![ProxyOptions {
//!     listen: ([127, 0, 0, 1], 1080).into(),
//!     credentials: Some(Credentials::new(b"atoll", b"a long secret")),
//! }];
//! let userspace = Userspace::start(options).await?;
//! // The port of `userspace.address()` is what this node tells others as its endpoint. Then, with every change of the map:
//! // gate.set(filter); userspace.set_directory(Directory::of(…));
//! userspace.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Datagrams (`datagrams`) are carried the same way: flows of UDP, through doors and the proxy.
//!
//! Absent: ICMP; relays and ways through NAT (the endpoint runs over any [`quinn::AsyncUdpSocket`], see [`Userspace::start_over`], so that they can be put below);
//! peers that speak nothing but WireGuard.

mod arrival;
mod book;
mod carrier;
mod congestion;
pub mod connect;
mod consumer;
mod credentials;
mod datagrams;
mod directory;
mod doors;
mod flow;
mod fronts;
mod header;
mod identity;
mod lane;
mod links;
mod probes;
mod proxy;
mod service;
mod service_datagrams;
pub mod socks;
#[cfg(test)]
mod tests;
mod touch;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use carrier::Core;
pub use consumer::{EndpointView, PortView};
pub use credentials::Credentials;
pub(crate) use datagrams::fuzz_datagram;
pub use directory::{Directory, Member, loopback, mesh_address};
use doors::Doors;
pub use fronts::{Addresses, Fronts};
pub use header::{Carries, Refusal, Request};
pub use links::LinkStatus;
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
pub use service::{Endpoint, Protocol, ServiceEntry};
use tokio::net::TcpListener;
pub(crate) use underlay::fuzz_signal;

use crate::coordination::{Identity, IdentityKey};
use crate::error::Error;
use crate::flows::Records;
use crate::key::PrivateKey;
use crate::namespace::Namespace;
use crate::policy::FilterGate;
use crate::relay::{RelayAddress, RelayStatus};
use underlay::Underlay;

/// What the kernel keeps of datagrams that nobody has read yet; it gives as much of it as it may.
const SOCKET_BUFFER: usize = 4 << 20;

/// A service of this machine that others may reach, if the gate lets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// The port that others use.
    pub port: u16,
    /// Where it listens: a loopback address that is not another node's. If absent, at the same port of this node's own loopback address, else of 127.0.0.1.
    pub target: Option<SocketAddr>,
}

/// What of this machine others may reach, as far as the gate lets them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reach {
    /// The services that were declared.
    #[default]
    Declared,
    /// Those, and what listens at this node's own address ([`Member::home`]), but for these ports.
    Home {
        /// What is not for others: servers for local programs, such as this node's own.
        except: BTreeSet<u16>,
    },
}

/// Where a proxy for local programs listens.
#[derive(Debug, Clone, Copy)]
pub struct ProxyOptions {
    /// The address.
    pub listen: SocketAddr,
    /// Who may use it: everybody who reaches it, if absent, which is taken only on loopback.
    pub credentials: Option<Credentials>,
}

/// What there is at most, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows at once, of both directions; each takes a descriptor and up to 64 KiB, besides what waits in QUIC.
    pub flows: usize,
    /// How long a flow of TCP may be silent.
    pub idle: Duration,
    /// How long a flow of UDP may be silent: less if there was never an answer.
    pub datagrams_idle: Duration,
    /// How long a connection is kept that carries no flow.
    pub keep: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 4096,
            idle: Duration::from_secs(2 * 3600 + 600),
            datagrams_idle: Duration::from_secs(180),
            keep: Duration::from_secs(600),
        }
    }
}

/// How a node is brought up without a device.
#[derive(Debug)]
pub struct UserspaceOptions {
    /// Who this node is.
    pub identity: Identity,
    /// Who is in the mesh.
    pub directory: Directory,
    /// What may pass.
    pub gate: Arc<FilterGate>,
    /// Where other nodes' connections are taken, on UDP. At `[::]` both families are.
    pub listen: SocketAddr,
    /// The key by which relays and others know this node as a carrier of flows. Without one there are neither relays nor probes.
    pub underlay: Option<PrivateKey>,
    /// Proxies for local programs.
    pub proxies: Vec<ProxyOptions>,
    /// Whether there are doors.
    pub doors: bool,
    /// Ports for doors beside those that rules name one by one, where a rule allows them as part of a range.
    pub door_ports: Vec<u16>,
    /// What leads to doors on a machine with a device; without it, such a machine has none to services.
    pub fronts: Option<Fronts>,
    /// Whether connections are kept with the first few who may begin flows to this node, so that they can where nobody can connect to it: behind NAT.
    pub keep_in_touch: bool,
    /// What was declared.
    pub services: Vec<Service>,
    /// What of this machine others may reach.
    pub reach: Reach,
    /// The network namespace of local programs: of doors, and of services. Absent, that of the calling thread.
    pub programs: Option<Arc<Namespace>>,
    /// Bounds.
    pub limits: Limits,
}

impl UserspaceOptions {
    /// Doors, no proxy and no service; any free port for connections.
    pub fn new(identity: Identity, directory: Directory, gate: Arc<FilterGate>) -> Self {
        Self {
            identity,
            directory,
            gate,
            listen: (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
            underlay: None,
            proxies: Vec::new(),
            doors: true,
            door_ports: Vec::new(),
            fronts: None,
            keep_in_touch: false,
            services: Vec::new(),
            reach: Reach::Declared,
            programs: None,
            limits: Limits::default(),
        }
    }
}

/// Why a node is not up without a device.
#[derive(Debug, thiserror::Error)]
pub enum UserspaceError {
    /// A socket is not to be had.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A proxy that others could use.
    #[error("a proxy at {0} could be used by other machines: it needs a user and a password")]
    Open(SocketAddr),
    /// A service that is elsewhere.
    #[error(
        "{0} is not on this machine: services are offered from 127.0.0.1, this node's own loopback address, or ::1"
    )]
    Elsewhere(SocketAddr),
    /// A service that leads back into the mesh.
    #[error("{0} is a proxy into the mesh and cannot be offered as a service")]
    Circle(SocketAddr),
    /// The directory is of another node than the identity.
    #[error("the directory is another node's")]
    OtherNode,
    /// TLS cannot be prepared.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// What is there now, and what was since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserspaceStatus {
    /// Connections with other nodes.
    pub connections: usize,
    /// Flows that run or begin.
    pub flows: usize,
    /// Flows that began, of both directions.
    pub opened: u64,
    /// Flows that were refused, by this node to others or to its own programs at a proxy.
    pub refused: u64,
    /// Who wanted to connect and could not show that it is in the mesh, or was one too many.
    pub turned_away: u64,
    /// Bytes carried from sockets of this machine to other nodes.
    pub sent: u64,
    /// Bytes carried from other nodes to sockets of this machine.
    pub received: u64,
    /// Doors to services that are open for TCP, by the services' own addresses.
    pub service_doors: Vec<SocketAddr>,
    /// Doors to nodes that are open.
    pub doors: Vec<SocketAddr>,
    /// Doors for UDP that are open.
    pub datagram_doors: Vec<SocketAddr>,
    /// Doors that should be open and cannot, and why; they are tried again.
    pub stuck: Vec<(SocketAddr, String)>,
}

/// A node without a device. Dropping it ends everything at once; [`Userspace::stop`] also waits for that.
#[derive(Debug)]
pub struct Userspace {
    core: Arc<Core>,
    doors: Arc<Doors>,
    datagram_doors: Arc<datagrams::doors::Doors>,
    proxies: Vec<SocketAddr>,
    address: SocketAddr,
}

/// Where services are, if all are on this machine: behind a door of another node is not.
fn targets(
    services: &[Service],
    own: &Member,
) -> Result<BTreeMap<u16, Option<SocketAddr>>, UserspaceError> {
    let here = |target: SocketAddr| match target.ip() {
        IpAddr::V4(address) => {
            address.is_loopback() && mesh_address(address).is_none_or(|at| at == own.v4)
        }
        IpAddr::V6(address) => address.is_loopback(),
    };
    let mut targets = BTreeMap::new();
    for service in services {
        if let Some(target) = service.target.filter(|target| !here(*target)) {
            return Err(UserspaceError::Elsewhere(target));
        }
        targets.insert(service.port, service.target);
    }
    Ok(targets)
}

impl Userspace {
    /// Brings a node up over UDP.
    ///
    /// # Errors
    /// An address cannot be listened at, or the options contradict each other. Doors that cannot be opened are no error, see
    /// [`UserspaceStatus::stuck`].
    pub async fn start(options: UserspaceOptions) -> Result<Self, UserspaceError> {
        let address = options.listen;
        let failed = |source| UserspaceError::Listen { address, source };
        let socket = UdpSocket::bind(address).map_err(failed)?;
        Self::start_on(options, socket).await
    }

    /// Brings a node up on a socket that is bound already; `listen` means nothing.
    ///
    /// # Errors
    /// As [`Userspace::start`].
    pub async fn start_on(
        options: UserspaceOptions,
        socket: UdpSocket,
    ) -> Result<Self, UserspaceError> {
        let address = options.listen;
        let failed = |source| UserspaceError::Listen { address, source };
        // More is faster, less works too.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        let Some(key) = options.underlay.clone() else {
            let socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
            return Self::start_over(options, socket).await;
        };
        let underlay = Underlay::new(socket, key)?;
        let socket = Arc::clone(&underlay) as Arc<dyn AsyncUdpSocket>;
        Self::start_with(options, socket, Some(underlay)).await
    }

    /// Brings a node up over something that carries datagrams. What [`Member::endpoints`] say are addresses there, and `listen` means nothing.
    ///
    /// # Errors
    /// As [`Userspace::start`].
    pub async fn start_over(
        options: UserspaceOptions,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<Self, UserspaceError> {
        Self::start_with(options, socket, None).await
    }

    async fn start_with(
        options: UserspaceOptions,
        socket: Arc<dyn AsyncUdpSocket>,
        underlay: Option<Arc<Underlay>>,
    ) -> Result<Self, UserspaceError> {
        if options.directory.own().identity != options.identity.public() {
            return Err(UserspaceError::OtherNode);
        }
        let services = targets(&options.services, options.directory.own())?;
        let mut listeners = Vec::new();
        for proxy in &options.proxies {
            let address = proxy.listen;
            if proxy.credentials.is_none() && !address.ip().is_loopback() {
                return Err(UserspaceError::Open(address));
            }
            let failed = |source| UserspaceError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            listeners.push((listener, address, proxy.credentials));
        }
        let proxies: Vec<_> = listeners.iter().map(|(_, address, _)| *address).collect();
        no_circle(&services, &proxies)?;
        let reach = match options.reach {
            Reach::Home { mut except } => {
                except.extend(proxies.iter().map(SocketAddr::port));
                Reach::Home { except }
            }
            Reach::Declared => Reach::Declared,
        };

        let credential = identity::Credential::new(&options.identity)?;
        let directory = Arc::new(RwLock::new(Arc::new(options.directory)));
        let server = credential.server(Arc::clone(&directory))?;
        let runtime = Arc::new(TokioRuntime);
        let failed = |source| UserspaceError::Listen {
            address: options.listen,
            source,
        };
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            credential.endpoint(),
            Some(server),
            socket,
            runtime,
        );
        let endpoint = endpoint.map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let core = Core::new(
            endpoint,
            (underlay, options.programs.clone()),
            credential,
            directory,
            options.gate,
            reach,
            options.limits,
        );
        core.set_services(services);
        core.begin();
        if options.keep_in_touch {
            core.spawn(touch::keep(Arc::clone(&core)));
        }
        for (listener, _, credentials) in listeners {
            core.spawn(proxy::serve(Arc::clone(&core), listener, credentials));
        }
        core.spawn(probes::keep(Arc::clone(&core)));
        if let Some(fronts) = options.fronts.clone().filter(|_| options.doors) {
            core.spawn(service_datagrams::keep(Arc::clone(&core), fronts));
        }
        let (ports, fronts) = (options.door_ports, options.fronts);
        let datagram_doors = datagrams::doors::Doors::new(ports.clone(), fronts.clone());
        let datagram_doors = Arc::new(datagram_doors);
        let doors = Doors::new(ports, fronts, options.programs);
        let doors = Arc::new(doors);
        if options.doors {
            core.spawn(Arc::clone(&datagram_doors).keep(Arc::clone(&core)));
            core.spawn(Arc::clone(&doors).keep(Arc::clone(&core)));
        }
        Ok(Self {
            core,
            doors,
            datagram_doors,
            proxies,
            address,
        })
    }

    /// Where other nodes' connections are taken.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the proxies listen, in the order of the options.
    pub fn proxies(&self) -> &[SocketAddr] {
        &self.proxies
    }

    /// From now on this is who is in the mesh. Connections and flows that this or the gate no longer allows end at once. Set the gate first.
    ///
    /// # Errors
    /// It is another node's directory.
    pub fn set_directory(&self, directory: Directory) -> Result<(), UserspaceError> {
        if directory.own().identity != self.core.directory().own().identity {
            return Err(UserspaceError::OtherNode);
        }
        self.core.set_directory(directory);
        Ok(())
    }

    /// From now on these are the services that others may reach. Flows that run go on.
    ///
    /// # Errors
    /// One of them is not on this machine, or is a proxy; nothing is changed then.
    pub fn set_services(&self, services: &[Service]) -> Result<(), UserspaceError> {
        let services = targets(services, self.core.directory().own())?;
        no_circle(&services, &self.proxies)?;
        self.core.set_services(services);
        Ok(())
    }

    /// From now on these are the relays, the preferred first: this node registers with each, and is reached over them where nothing else
    /// gets through.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn set_relays(&self, relays: &[RelayAddress]) -> Result<(), UserspaceError> {
        if let Some(underlay) = &self.core.underlay {
            underlay.set_relays(relays)?;
        }
        Ok(())
    }

    /// How the relays are doing, in the order of their list.
    pub fn relays(&self) -> Vec<RelayStatus> {
        let underlay = self.core.underlay.as_ref();
        underlay
            .map(|underlay| underlay.relays())
            .unwrap_or_default()
    }

    /// Says where this node may be found, besides where relays see it. At most 8 in all are told to those with whom there are flows.
    pub fn set_candidates(&self, own: &[SocketAddr]) {
        if let Some(underlay) = &self.core.underlay {
            underlay.set_candidates(own);
        }
    }

    /// This machine's addresses changed: relays are asked where they see it, and what was proven of direct ways is proven anew, at once.
    pub fn moved(&self) {
        if let Some(underlay) = &self.core.underlay {
            underlay.moved();
        }
    }

    /// The gate was changed: what it no longer allows ends at once.
    pub fn refresh(&self) {
        self.core.refresh();
    }

    /// Measures a round trip to a node, whatever ports policy lets pass, over a new connection if there is none.
    ///
    /// # Errors
    /// Nothing may pass between the two, or the node does not answer within some seconds.
    pub async fn probe(&self, peer: &IdentityKey) -> Result<Duration, Refusal> {
        self.core.probe(peer).await
    }

    /// What this node sees of a service's port.
    pub fn service(&self, service: &ServiceEntry, protocol: Protocol, port: u16) -> PortView {
        let (directory, filter) = (self.core.directory(), self.core.filter());
        let consumer = &self.core.consumer;
        consumer.view(&directory, &filter, service, (protocol, port))
    }

    /// Takes names of services that somebody asked for, whose endpoints are then probed, until nobody tells any more.
    pub fn follow_questions(&self, mut asked: tokio::sync::mpsc::Receiver<String>) {
        let core = Arc::clone(&self.core);
        self.core.spawn(async move {
            while let Some(name) = asked.recv().await {
                let directory = core.directory();
                let service = directory.service(&name);
                let ports = service.iter().flat_map(|service| &service.ports);
                for (_, port) in ports.filter(|(protocol, _)| *protocol == Protocol::Tcp) {
                    core.consumer.note_use(&name, *port);
                }
            }
        });
    }

    /// What is known of the connections with a node.
    pub fn peer(&self, peer: &IdentityKey) -> LinkStatus {
        self.core.link(peer)
    }

    /// What is there now.
    pub fn status(&self) -> UserspaceStatus {
        let (flows, connections) = self.core.sizes();
        let counts = &self.core.counts;
        UserspaceStatus {
            connections,
            flows,
            opened: counts.opened.load(Ordering::Relaxed),
            refused: counts.refused.load(Ordering::Relaxed),
            turned_away: counts.turned_away.load(Ordering::Relaxed),
            sent: counts.carried.out.load(Ordering::Relaxed),
            received: counts.carried.back.load(Ordering::Relaxed),
            service_doors: self.doors.open_to_services(),
            doors: self.doors.open(),
            datagram_doors: self.datagram_doors.open(),
            stuck: [self.doors.stuck(), self.datagram_doors.stuck()].concat(),
        }
    }

    /// Flows with other nodes that began or ended after a number; with 0 all that are known.
    pub fn records(&self, since: u64) -> Records {
        self.core.book.records(since)
    }

    /// Ends everything and waits until no task is left. Flows break off; other nodes are told.
    pub async fn stop(self) {
        self.end().await;
    }

    /// As [`Userspace::stop`], where others share it. It is of no use afterwards.
    pub async fn end(&self) {
        self.core.end();
        self.core.ended().await;
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.core.end();
    }
}

fn no_circle(
    services: &BTreeMap<u16, Option<SocketAddr>>,
    proxies: &[SocketAddr],
) -> Result<(), UserspaceError> {
    for proxy in proxies {
        let circle = services.iter().any(|(port, target)| match target {
            Some(target) => target == proxy,
            None => *port == proxy.port(),
        });
        if circle {
            return Err(UserspaceError::Circle(*proxy));
        }
    }
    Ok(())
}
