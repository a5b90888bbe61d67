//! What carries flows: a QUIC endpoint, connections on demand, and who may use them for what.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, Incoming, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arrival;
use super::book::{Beginning, Book, Entry, Motion};
use super::consumer::{self, Consumer};
use super::datagrams;
use super::directory::{Directory, Member};
use super::flow::{Carried, Far, Local, Remote, carry};
use super::header::{Carries, ECHO, GRANTED, Refusal, Request};
use super::identity::{Credential, Current, NAME, peer_of};
use super::lane::{self, Lane};
use super::links::{LinkStatus, Links};
use super::service::Protocol;
use super::underlay::{Underlay, address_of};
use super::{Limits, Reach};
use crate::coordination::IdentityKey;
use crate::namespace::Namespace;
use crate::policy::{Direction, Filter, FilterGate, FilterPeer, Flow};
use crate::ways::PeerWay;

/// Numbers of protocols in policies.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// Handshakes of others at once. From half of them on, who connects has to show first that it gets what is sent to its address.
const HANDSHAKES: usize = 64;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long connecting may take, after how long the next address is tried beside, and how many are.
const CONNECTING: Duration = Duration::from_secs(6);
const NEXT_ADDRESS: Duration = Duration::from_millis(200);
const ADDRESSES: usize = 4;
/// How long opening a flow may take in all.
const OPENING: Duration = Duration::from_secs(12);
/// Nodes of a service that are tried.
const NODES: usize = 3;
/// How often it is looked whether something is to be given up.
const TICK: Duration = Duration::from_secs(1);
/// Told to all when this node stops.
const STOPPED: (VarInt, &[u8]) = (VarInt::from_u32(5), b"stopped");

/// Under what a flow runs: it breaks off when this is not allowed any more.
#[derive(Debug)]
pub(super) struct Rule {
    peer: IdentityKey,
    direction: Direction,
    carries: Carries,
    v6: bool,
    port: u16,
    beginning: Beginning,
    /// Whether its flow is written down here; what goes through a tunnel is elsewhere.
    recorded: bool,
    changes: watch::Receiver<u64>,
}

impl Rule {
    /// The same, for a flow that is written down elsewhere.
    pub(super) fn unrecorded(self) -> Self {
        Self {
            recorded: false,
            ..self
        }
    }

    /// What is said of the flow when it begins; `caller` is the port of the program that calls, if it is one of this machine.
    pub(super) fn beginning(&self, caller: u16) -> Beginning {
        let mut beginning = self.beginning;
        if self.direction == Direction::Outbound {
            beginning.flow.source_port = caller;
        }
        beginning
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) carried: Carried,
    pub(super) opened: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) turned_away: AtomicU64,
}

/// The carrier, as all its tasks share it.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) endpoint: Endpoint,
    pub(super) underlay: Option<Arc<Underlay>>,
    /// Where local programs are, if not in this process's network namespace.
    pub(super) programs: Option<Arc<Namespace>>,
    credential: Credential,
    directory: Current,
    gate: Arc<FilterGate>,
    services: RwLock<BTreeMap<u16, Option<SocketAddr>>>,
    reach: Reach,
    links: Links,
    changes: watch::Sender<u64>,
    flows: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    limits: Limits,
    turn: AtomicUsize,
    pub(super) counts: Counts,
    pub(super) book: Book,
    pub(super) consumer: Consumer,
    tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Core {
    pub(super) fn new(
        endpoint: Endpoint,
        (underlay, programs): (Option<Arc<Underlay>>, Option<Arc<Namespace>>),
        credential: Credential,
        directory: Current,
        gate: Arc<FilterGate>,
        reach: Reach,
        mut limits: Limits,
    ) -> Arc<Self> {
        limits.flows = limits.flows.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            endpoint,
            underlay,
            programs,
            credential,
            directory,
            gate,
            services: RwLock::default(),
            reach,
            links: Links::default(),
            changes: watch::Sender::new(0),
            flows: Arc::new(Semaphore::new(limits.flows)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            limits,
            turn: AtomicUsize::new(0),
            counts: Counts::default(),
            book: Book::default(),
            consumer: Consumer::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Begins to take connections and to look after them.
    pub(super) fn begin(self: &Arc<Self>) {
        self.spawn(Arc::clone(self).take_connections());
        self.spawn(Arc::clone(self).keep_house());
        self.spawn(Arc::clone(self).keep_shares());
        if let Some(underlay) = &self.underlay {
            self.spawn(Arc::clone(underlay).keep());
        }
        self.tell_underlay();
    }

    /// Lets the underlay know who is in the mesh.
    fn tell_underlay(&self) {
        let Some(underlay) = &self.underlay else {
            return;
        };
        let directory = self.directory();
        let own = directory.own().identity;
        let others = directory.members().filter(|member| member.identity != own);
        underlay.set_peers(others.filter_map(|member| {
            let key = member.underlay?;
            Some((key, member.endpoints.clone()))
        }));
    }

    /// Where QUIC finds a node: at the one address that stands for it, or at those that it names.
    fn places(&self, member: &Member) -> Vec<SocketAddr> {
        match (&self.underlay, &member.underlay) {
            (Some(_), Some(key)) => vec![address_of(key)],
            _ => member.endpoints.iter().copied().take(ADDRESSES).collect(),
        }
    }

    /// Whether there is any way on which a node might be reached.
    pub(super) fn has_way(&self, member: &Member) -> bool {
        let relayed = || {
            let ours = self.underlay.as_ref();
            member.underlay.is_some() && ours.is_some_and(|underlay| underlay.relayed())
        };
        !member.endpoints.is_empty() || relayed()
    }

    /// Runs a task until it is over or this node stops. It may be dropped wherever it waits.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Ends everything at once; tasks are over soon after.
    pub(super) fn end(&self) {
        self.endpoint.close(STOPPED.0, STOPPED.1);
        self.stop.cancel();
        self.tasks.close();
    }

    /// Waits for what [`Core::end`] began.
    pub(super) async fn ended(&self) {
        self.tasks.wait().await;
        // So that others hear of it now and not when they miss this node. Nothing depends on it.
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
        if let Some(underlay) = self.underlay.clone() {
            // It waits for a thread, which ends at once.
            let _ = tokio::task::spawn_blocking(move || underlay.end()).await;
        }
    }

    pub(super) fn directory(&self) -> Arc<Directory> {
        let directory = self.directory.read();
        Arc::clone(&directory.unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this is who is in the mesh.
    pub(super) fn set_directory(&self, directory: Directory) {
        let mut place = self
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Arc::new(directory);
        drop(place);
        self.tell_underlay();
        self.refresh();
    }

    pub(super) fn set_services(&self, services: BTreeMap<u16, Option<SocketAddr>>) {
        let mut place = self
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *place = services;
    }

    /// Where the service at this port is; `None` if there is none.
    pub(super) fn service(&self, port: u16) -> Option<Option<SocketAddr>> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(&port).copied()
    }

    /// Whether what listens at this port of this node's own address is offered though nobody declared it.
    pub(super) fn offers(&self, port: u16) -> bool {
        match &self.reach {
            Reach::Declared => false,
            Reach::Home { except } => !except.contains(&port),
        }
    }

    /// A peer with which something may pass.
    pub(super) fn partner(&self, peer: &IdentityKey) -> Result<Arc<Member>, Refusal> {
        let directory = self.directory();
        let member = directory.by_identity(peer).ok_or(Refusal::Unknown)?;
        let filter = self.filter();
        let rules = filter.peer(&member.key);
        let partner = rules.is_some_and(FilterPeer::reachable);
        partner.then(|| Arc::clone(member)).ok_or(Refusal::Denied)
    }

    /// What is known of the connection with a peer.
    pub(super) fn link(&self, peer: &IdentityKey) -> LinkStatus {
        let mut status = self.links.status(peer);
        // What QUIC calls it says nothing of the way.
        if let (Some(underlay), Some(PeerWay::Direct(at))) = (&self.underlay, status.way)
            && let Some(way) = underlay.way_at(at)
        {
            status.way = way;
        }
        status
    }

    /// Measures a round trip to a peer, over a new connection if there is none.
    ///
    /// # Errors
    /// Nothing may pass, or the peer does not answer.
    pub(super) async fn probe(self: &Arc<Self>, peer: &IdentityKey) -> Result<Duration, Refusal> {
        let member = self.partner(peer)?;
        let asked = async {
            // As in `ask`: one that is over may not have been noticed.
            for _ in 0..2 {
                let (connection, _lane) = self.connect(&member).await?;
                let began = Instant::now();
                let answer = async {
                    let (mut send, mut recv) = connection.open_bi().await.ok()?;
                    send.write_all(&ECHO).await.ok()?;
                    send.finish().ok()?;
                    let mut answer = [0];
                    recv.read_exact(&mut answer).await.ok()?;
                    Some(answer[0])
                };
                match answer.await {
                    Some(GRANTED) => return Ok(began.elapsed()),
                    Some(code) => return Err(Refusal::from_code(code)),
                    None => {}
                }
            }
            Err(Refusal::Unreachable)
        };
        let answered = timeout(CONNECTING, asked).await;
        answered.unwrap_or(Err(Refusal::Silent))
    }

    /// Looks again at everything that depends on directory and gate.
    pub(super) fn refresh(&self) {
        self.sweep();
        self.changes.send_modify(|times| *times += 1);
    }

    /// Told of every change of directory and gate.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn filter(&self) -> Arc<Filter> {
        self.gate.filter()
    }

    fn sweep(&self) {
        let directory = self.directory();
        let own = directory.own().identity;
        let member = |peer: &IdentityKey| *peer != own && directory.by_identity(peer).is_some();
        self.links.sweep(self.limits.keep, member);
    }

    async fn keep_shares(self: Arc<Self>) {
        let mut looks = tokio::time::interval(lane::LOOK);
        loop {
            looks.tick().await;
            self.links.share();
        }
    }

    async fn keep_house(self: Arc<Self>) {
        let mut filter = self.filter();
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let now = self.filter();
            if Arc::ptr_eq(&now, &filter) {
                self.sweep();
            } else {
                // The gate was changed and nobody said so.
                filter = now;
                self.refresh();
            }
        }
    }

    /// Flows and connections there are now.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let flows = self.limits.flows - self.flows.available_permits();
        (flows, self.links.count())
    }

    /// A place for one more flow.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = Arc::clone(&self.flows).try_acquire_owned();
        place.map_err(|_| Refusal::Busy)
    }

    /// Whether a flow may run between this node and a peer, to this port of the one that is called.
    fn allows(
        &self,
        peer: &IdentityKey,
        direction: Direction,
        carries: Carries,
        v6: bool,
        port: u16,
    ) -> Option<(Arc<Member>, Beginning)> {
        let directory = self.directory();
        let own = directory.own();
        let member = directory.by_identity(peer)?;
        let address = |member: &Member| match v6 {
            true => IpAddr::V6(member.v6),
            false => IpAddr::V4(member.v4),
        };
        let out = Flow {
            protocol: match carries {
                Carries::Bytes => TCP,
                Carries::Datagrams => UDP,
            },
            source: address(own),
            source_port: 0,
            destination: address(member),
            destination_port: port,
        };
        let flow = match direction {
            Direction::Outbound => out,
            Direction::Inbound => Flow {
                source: out.destination,
                destination: out.source,
                ..out
            },
        };
        let line = self.filter().rule(&member.key, direction, &flow).ok()?;
        let beginning = Beginning {
            peer: member.key,
            direction,
            flow,
            line,
        };
        Some((Arc::clone(member), beginning))
    }

    /// The rule for a flow, if there is one, and the peer.
    pub(super) fn rule(
        &self,
        peer: IdentityKey,
        direction: Direction,
        carries: Carries,
        v6: bool,
        port: u16,
    ) -> Result<(Rule, Arc<Member>), Refusal> {
        // First listen for changes, then look.
        let changes = self.changes();
        let allowed = self.allows(&peer, direction, carries, v6, port);
        let (member, beginning) = allowed.ok_or(Refusal::Denied)?;
        let rule = Rule {
            peer,
            direction,
            carries,
            v6,
            port,
            beginning,
            recorded: true,
            changes,
        };
        Ok((rule, member))
    }

    /// Waits until the rule holds no more.
    pub(super) async fn broken(&self, mut rule: Rule, entry: Option<&Entry<'_>>) {
        while rule.changes.changed().await.is_ok() {
            match self.allows(&rule.peer, rule.direction, rule.carries, rule.v6, rule.port) {
                Some((_, now)) => _ = entry.map(|entry| entry.set_line(now.line)),
                None => return,
            }
        }
    }

    /// Carries a flow to its end.
    pub(super) async fn run(&self, near: Local, early: &[u8], far: Far, rule: Option<Rule>) {
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        let (idle, carried) = (self.limits.idle, &self.counts.carried);
        let result = match rule {
            Some(rule) if rule.recorded => {
                let caller = near.stream.peer_addr();
                let caller = caller.map_or(0, |caller| caller.port());
                let entry = self.book.begin(rule.beginning(caller));
                let broken = self.broken(rule, Some(&entry));
                let motion = entry.motion();
                let result = carry(near, early, far, idle, broken, carried, motion).await;
                entry.finish(&result);
                result
            }
            Some(rule) => {
                let broken = self.broken(rule, None);
                carry(near, early, far, idle, broken, carried, &Motion::new()).await
            }
            // A service of this node itself.
            None => {
                let never = std::future::pending();
                carry(near, early, far, idle, never, carried, &Motion::new()).await
            }
        };
        if let Err(error) = result {
            tracing::debug!("a flow broke off: {error}");
        }
    }

    /// Whom a name or an address means, those first whose turn it is and only so many; and whether an address of theirs is meant that is of IPv6.
    pub(super) fn candidates(&self, host: &str) -> (Vec<Arc<Member>>, bool) {
        let directory = self.directory();
        let found = directory.find(host);
        let v6 = host
            .parse::<Ipv6Addr>()
            .is_ok_and(|address| address.to_ipv4_mapped().is_none());
        let turn = match found.len() {
            0 | 1 => 0,
            many => self.turn.fetch_add(1, Ordering::Relaxed) % many,
        };
        let all = found.iter().cycle().skip(turn);
        (all.take(found.len().min(NODES)).cloned().collect(), v6)
    }

    /// Opens a flow to a name or an address: to a node, or one of a service's, or a service of this node.
    ///
    /// # Errors
    /// Why there is none; of several nodes, why with the last.
    pub(super) async fn reach(
        self: &Arc<Self>,
        host: &str,
        port: u16,
    ) -> Result<(Far, Option<Rule>), Refusal> {
        let directory = self.directory();
        let service = directory.service(host);
        if let Some(service) = service.filter(|service| service.has_port(Protocol::Tcp, port)) {
            let reached = consumer::reach(self, service, port).await;
            if reached.is_err() {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
            }
            return reached;
        }
        let (found, v6) = self.candidates(host);
        let mut last = Refusal::Unknown;
        for member in found {
            match self.open(&member, v6, port).await {
                Ok(flow) => return Ok(flow),
                Err(refusal) => last = refusal,
            }
        }
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        Err(last)
    }

    /// Opens a flow to a port of a node, which may be this one.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn open(
        self: &Arc<Self>,
        member: &Arc<Member>,
        v6: bool,
        port: u16,
    ) -> Result<(Far, Option<Rule>), Refusal> {
        let place = self.place()?;
        if member.identity == self.directory().own().identity {
            let service = arrival::dial(self, member, port).await?;
            let flow = Far::Own {
                service: Local::new(service),
                _place: place,
            };
            return Ok((flow, None));
        }
        let carries = Carries::Bytes;
        let (rule, member) = self.rule(member.identity, Direction::Outbound, carries, v6, port)?;
        let address = match v6 {
            true => IpAddr::V6(member.v6),
            false => IpAddr::V4(member.v4),
        };
        let request = Request {
            carries,
            address,
            port,
        };
        let remote = self.ask_in_time(&member, &request, place).await?;
        Ok((Far::Peer(remote), Some(rule)))
    }

    /// Asks a node for a flow.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn ask_in_time(
        self: &Arc<Self>,
        member: &Arc<Member>,
        request: &Request,
        place: OwnedSemaphorePermit,
    ) -> Result<Remote, Refusal> {
        let asked = timeout(OPENING, self.ask(member, request, place)).await;
        asked.unwrap_or(Err(Refusal::Silent))
    }

    /// How long a flow of datagrams may be silent, and one of TCP.
    pub(super) const fn datagrams_idle(&self) -> Duration {
        self.limits.datagrams_idle
    }

    pub(super) const fn idle(&self) -> Duration {
        self.limits.idle
    }

    async fn ask(
        self: &Arc<Self>,
        member: &Arc<Member>,
        request: &Request,
        place: OwnedSemaphorePermit,
    ) -> Result<Remote, Refusal> {
        let mut place = Some(place);
        // A connection may be over without this end having noticed. Nothing was carried yet, so asking again is safe.
        for _ in 0..2 {
            let (connection, lane) = self.connect(member).await?;
            let datagrams = request.carries == Carries::Datagrams;
            if datagrams && connection.max_datagram_size().is_none() {
                return Err(Refusal::NoDatagrams);
            }
            let Ok(streams) = connection.open_bi().await else {
                continue;
            };
            let mut remote = Remote::new(connection, streams, lane);
            remote.place = place.take();
            let mut answer = [0];
            let asked = async {
                remote.send.write_all(&request.encode()).await.ok()?;
                remote.recv.read_exact(&mut answer).await.ok()
            };
            match asked.await {
                Some(()) if answer[0] == GRANTED => return Ok(remote),
                Some(()) => return Err(Refusal::from_code(answer[0])),
                None => place = remote.place.take(),
            }
        }
        Err(Refusal::Unreachable)
    }

    /// Whether there is a connection with a node.
    pub(super) fn connected(&self, peer: &IdentityKey) -> bool {
        self.links.newest(peer).is_some()
    }

    /// A connection with a node: one that is there, or a new one.
    pub(super) async fn connect(
        self: &Arc<Self>,
        member: &Arc<Member>,
    ) -> Result<(Connection, Arc<Lane>), Refusal> {
        if let Some(found) = self.links.newest(&member.identity) {
            return Ok(found);
        }
        let began = Instant::now();
        let opening = self.links.opening(&member.identity);
        let mut failed = opening.lock().await;
        if let Some(found) = self.links.newest(&member.identity) {
            return Ok(found);
        }
        if failed.is_some_and(|at| at >= began) {
            return Err(Refusal::Unreachable);
        }
        let Some(connection) = self.dial(member).await else {
            *failed = Some(Instant::now());
            return Err(Refusal::Unreachable);
        };
        let lane = self.keep(member.identity, connection.clone());
        Ok((connection, lane))
    }

    /// Tries a node's addresses, one a little after the other, and takes the first that answers as that node.
    async fn dial(&self, member: &Member) -> Option<Connection> {
        let config = match self.credential.client(member.identity) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!("cannot connect: {error}");
                return None;
            }
        };
        let mut tries = JoinSet::new();
        for (at, address) in (0..).zip(self.places(member)) {
            let (endpoint, config) = (self.endpoint.clone(), config.clone());
            tries.spawn(async move {
                tokio::time::sleep(NEXT_ADDRESS * at).await;
                let connecting = endpoint.connect_with(config, address, NAME);
                match connecting.map_err(|error| error.to_string()) {
                    Ok(connecting) => connecting.await.map_err(|error| error.to_string()),
                    Err(error) => Err(error),
                }
            });
        }
        let first = async {
            while let Some(tried) = tries.join_next().await {
                match tried {
                    Ok(Ok(connection)) => return Some(connection),
                    Ok(Err(error)) => {
                        tracing::debug!(node = %member.name, "cannot connect: {error}");
                    }
                    Err(_) => {}
                }
            }
            None
        };
        timeout(CONNECTING, first).await.ok().flatten()
    }

    /// Keeps a connection and serves what the other end asks for over it.
    fn keep(self: &Arc<Self>, peer: IdentityKey, connection: Connection) -> Arc<Lane> {
        let lane = self.links.add(peer, connection.clone());
        self.spawn(datagrams::sort(connection.clone(), Arc::downgrade(&lane)));
        let attend = Arc::clone(self).attend(peer, connection, Arc::downgrade(&lane));
        self.spawn(attend);
        lane
    }

    async fn attend(self: Arc<Self>, peer: IdentityKey, connection: Connection, lane: Weak<Lane>) {
        while let Ok(streams) = connection.accept_bi().await {
            let Some(lane) = lane.upgrade() else { break };
            let remote = Remote::new(connection.clone(), streams, lane);
            self.spawn(arrival::serve(Arc::clone(&self), peer, remote));
        }
        self.links.remove(&peer, &connection);
    }

    async fn take_connections(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let free = self.handshakes.available_permits();
            if free < HANDSHAKES / 2 && incoming.may_retry() {
                // It fails only where it may not be asked for.
                let _ = incoming.retry();
                continue;
            }
            let Ok(turn) = Arc::clone(&self.handshakes).try_acquire_owned() else {
                self.counts.turned_away.fetch_add(1, Ordering::Relaxed);
                incoming.ignore();
                continue;
            };
            let core = Arc::clone(&self);
            self.spawn(async move {
                core.take(incoming).await;
                drop(turn);
            });
        }
    }

    async fn take(self: &Arc<Self>, incoming: Incoming) {
        let taken = async {
            let connection = timeout(HANDSHAKE, incoming.accept().ok()?).await;
            let connection = connection.ok()?.ok()?;
            Some((peer_of(&connection)?, connection))
        };
        // Who is put out just now is closed by the next sweep.
        match taken.await {
            Some((peer, connection)) => _ = self.keep(peer, connection),
            None => _ = self.counts.turned_away.fetch_add(1, Ordering::Relaxed),
        }
    }
}
