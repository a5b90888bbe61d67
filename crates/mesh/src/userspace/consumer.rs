//! A service's consumer: opens flows to one endpoint or another, and remembers what it saw of each.
//!
//! What is decided is decided in [`crate::services`]; here it is carried out. Between two nodes that have a device a connection goes through their tunnel, else it is a
//! flow; to this node itself it is one to its own server. An endpoint that fails or is slow is followed by the next, before whoever called notices.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::carrier::{Core, Rule};
use super::directory::{Directory, Member};
use super::flow::{Far, Local};
use super::header::{Carries, Refusal};
use super::service::{Protocol, ServiceEntry};
use crate::coordination::IdentityKey;
use crate::namespace::socket_in;
use crate::policy::{Direction, Filter};
use crate::services::{Candidate, Class, Evidence, Failure, Order, Reason, State, order};

/// Endpoints that are tried for one connection, at most.
const TRIES: usize = 6;
/// How long a try may take: through a tunnel three first packets of TCP, as a flow with a new connection between the nodes.
const TRY_TUNNEL: Duration = Duration::from_secs(4);
const TRY_FLOW: Duration = Duration::from_secs(8);
/// How long all of them may.
const TRYING: Duration = Duration::from_secs(15);
/// How much earlier than the next one is tried; more for one that is known to be far.
const HEAD_START: Duration = Duration::from_millis(400);
/// Endpoints and services of which something is remembered, at most.
const MOST_REMEMBERED: usize = 8192;
const MOST_USED: usize = 1024;

/// A node at a port.
pub(super) type Place = (IdentityKey, Protocol, u16);

/// A flow, and under which rule.
pub(super) type Opened = (Far, Option<Rule>);

#[derive(Debug, Default)]
struct Seen {
    evidence: HashMap<Place, Evidence>,
    /// When somebody here last used a service's port, or asked for its name.
    used: HashMap<(String, u16), Instant>,
}

/// What a node saw of the services that it uses.
#[derive(Debug, Default)]
pub(super) struct Consumer {
    seen: Mutex<Seen>,
    /// There may be something to probe.
    pub(super) news: Notify,
}

/// An endpoint as its consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// Who it is.
    pub member: Arc<Member>,
    /// Whether it says that it is ready, or says nothing.
    pub ready: bool,
    /// How far it is.
    pub class: Class,
    /// The shortest round trip that was measured of late.
    pub round_trip: Option<Duration>,
    /// What it looks like.
    pub state: State,
    /// Failures in a row, and how the last was.
    pub failures: (u32, Option<Failure>),
    /// How long it is still put aside.
    pub aside: Option<Duration>,
    /// Why it is where it is in the order of tries.
    pub reason: Reason,
}

/// A service's port as its consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortView {
    /// The port.
    pub port: u16,
    /// How long ago somebody here used it.
    pub used: Option<Duration>,
    /// Whether most endpoints look ill, so that all are used.
    pub panic: bool,
    /// Those that policy lets this node use, in the order in which they would be tried now.
    pub endpoints: Vec<EndpointView>,
}

/// How a refusal looks to a consumer.
pub(super) const fn failure(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Closed => Failure::Closed,
        Refusal::Silent => Failure::Silent,
        Refusal::Unreachable => Failure::Unreachable,
        _ => Failure::Refused,
    }
}

impl Consumer {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody here uses a service, or is about to.
    pub(super) fn note_use(&self, service: &str, port: u16) {
        let now = Instant::now();
        let mut seen = self.seen();
        if seen.used.len() >= MOST_USED && !seen.used.contains_key(&(service.to_owned(), port)) {
            return;
        }
        let before = seen.used.insert((service.to_owned(), port), now);
        drop(seen);
        if before.is_none_or(|before| now.duration_since(before) > Duration::from_secs(1)) {
            self.news.notify_one();
        }
    }

    pub(super) fn succeeded(&self, place: Place, round_trip: Option<Duration>) {
        self.note(place, |evidence, now| evidence.succeeded(now, round_trip));
    }

    pub(super) fn failed(&self, place: Place, why: Failure) {
        self.note(place, |evidence, now| evidence.failed(now, why));
        self.news.notify_one();
    }

    fn overtaken(&self, place: Place) {
        self.note(place, |evidence, _| evidence.overtaken());
        self.news.notify_one();
    }

    fn note(&self, place: Place, change: impl FnOnce(&mut Evidence, Instant)) {
        let mut seen = self.seen();
        if seen.evidence.len() < MOST_REMEMBERED || seen.evidence.contains_key(&place) {
            change(seen.evidence.entry(place).or_default(), Instant::now());
        }
    }

    /// Forgets who is in no service any more, and use that is long over. What is left: which services are used, and when each was last.
    pub(super) fn sweep(&self, directory: &Directory, longest: Duration) -> Vec<(String, u16)> {
        let mut seen = self.seen();
        seen.evidence
            .retain(|(identity, _, _), _| directory.by_identity(identity).is_some());
        seen.used.retain(|_, at| at.elapsed() < longest);
        seen.used.keys().cloned().collect()
    }

    /// When an endpoint should be probed next; `None` for now.
    pub(super) fn next_probe(&self, place: &Place, now: Instant) -> Option<Instant> {
        self.seen().evidence.get(place)?.next_probe(now)
    }

    fn order(
        &self,
        directory: &Directory,
        filter: &Filter,
        service: &ServiceEntry,
        (protocol, port): (Protocol, u16),
        random: u64,
    ) -> (Vec<Arc<Member>>, Order) {
        let seen = self.seen();
        let own = directory.own().identity;
        let unknown = Evidence::default();
        let usable = directory.usable(service, protocol, port, filter);
        let (members, candidates): (Vec<_>, Vec<_>) = usable
            .map(|endpoint| {
                let identity = endpoint.member.identity;
                let candidate = Candidate {
                    here: identity == own,
                    ready: endpoint.ready,
                    evidence: seen
                        .evidence
                        .get(&(identity, protocol, port))
                        .unwrap_or(&unknown),
                };
                (Arc::clone(&endpoint.member), candidate)
            })
            .unzip();
        let order = order(&candidates, Instant::now(), random);
        (members, order)
    }

    /// The order for one connection.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    fn drawn(
        &self,
        core: &Core,
        service: &ServiceEntry,
        port: (Protocol, u16),
    ) -> Result<(Vec<Arc<Member>>, Order), Refusal> {
        let random = crate::key::random().map_err(|_| Refusal::Busy)?;
        let random = u64::from_le_bytes(random.first_chunk().copied().unwrap_or_default());
        let (directory, filter) = (core.directory(), core.filter());
        Ok(self.order(&directory, &filter, service, port, random))
    }

    /// The endpoints for what has no connections, in the order in which they are tried.
    pub(super) fn for_datagrams(
        &self,
        core: &Core,
        service: &ServiceEntry,
        port: u16,
    ) -> Vec<Arc<Member>> {
        let Ok((members, order)) = self.drawn(core, service, (Protocol::Udp, port)) else {
            return Vec::new();
        };
        let choices = order.choices.iter().take(TRIES);
        choices
            .filter_map(|choice| members.get(choice.at).cloned())
            .collect()
    }

    /// What is known of a service's port.
    pub(super) fn view(
        &self,
        directory: &Directory,
        filter: &Filter,
        service: &ServiceEntry,
        (protocol, port): (Protocol, u16),
    ) -> PortView {
        let (members, order) = self.order(directory, filter, service, (protocol, port), 0);
        let seen = self.seen();
        let now = Instant::now();
        let unknown = Evidence::default();
        let all = order.choices.iter().chain(&order.left_out);
        let endpoints = all.filter_map(|choice| {
            let member = Arc::clone(members.get(choice.at)?);
            let evidence = seen.evidence.get(&(member.identity, protocol, port));
            let evidence = evidence.unwrap_or(&unknown);
            let (failures, last) = evidence.failures();
            Some(EndpointView {
                ready: choice.reason != Reason::NotReady && choice.reason != Reason::NoneReady,
                class: choice.class,
                round_trip: evidence.round_trip(),
                state: evidence.state(now),
                failures: (failures, last.map(|(_, why)| why)),
                aside: evidence
                    .until()
                    .map(|until| until.saturating_duration_since(now)),
                reason: choice.reason,
                member,
            })
        });
        let used = seen.used.get(&(service.name.clone(), port));
        PortView {
            port,
            used: used.map(|at| now.saturating_duration_since(*at)),
            panic: order.panic,
            endpoints: endpoints.collect(),
        }
    }
}

/// Opens a flow to an endpoint. The time is that of a round trip, if one was measured.
///
/// # Errors
/// Why there is none.
pub(super) async fn open(
    core: &Arc<Core>,
    member: &Arc<Member>,
    port: u16,
) -> Result<(Opened, Option<Duration>), Refusal> {
    let own = Arc::clone(core.directory().own());
    let tunnel = own.mode.is_tun() && member.mode.is_tun() && member.identity != own.identity;
    if !tunnel {
        let opening = timeout(TRY_FLOW, core.open(member, false, port)).await;
        let opened = opening.unwrap_or(Err(Refusal::Silent))?;
        let link = core.link(&member.identity);
        return Ok((opened, link.round_trip));
    }
    let place = core.place()?;
    let (rule, member) = core.rule(
        member.identity,
        Direction::Outbound,
        Carries::Bytes,
        false,
        port,
    )?;
    let began = Instant::now();
    let target = SocketAddr::from((member.v4, port));
    let connecting = async {
        let socket = socket_in(core.programs.as_deref(), TcpSocket::new_v4)?;
        socket.bind((own.v4, 0).into())?;
        socket.connect(target).await
    };
    let connected: std::io::Result<TcpStream> = timeout(TRY_TUNNEL, connecting)
        .await
        .map_err(|_| Refusal::Silent)?;
    let stream = connected.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => {
            Refusal::Closed
        }
        std::io::ErrorKind::TimedOut => Refusal::Silent,
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
            Refusal::Unreachable
        }
        // It is this machine that has no room.
        _ => Refusal::Busy,
    })?;
    let far = Far::Own {
        service: Local::new(stream),
        _place: place,
    };
    // What is in the tunnel is in the gate's records.
    Ok(((far, Some(rule.unrecorded())), Some(began.elapsed())))
}

/// Opens a flow to one of a service's endpoints: to that which should be tried first, and if that fails or is slow, to the next.
///
/// # Errors
/// Policy lets this node use none of them, or why with the last.
pub(super) async fn reach(
    core: &Arc<Core>,
    service: &ServiceEntry,
    port: u16,
) -> Result<Opened, Refusal> {
    let consumer = &core.consumer;
    let (members, order) = consumer.drawn(core, service, (Protocol::Tcp, port))?;
    if members.is_empty() {
        return Err(Refusal::Denied);
    }
    consumer.note_use(&service.name, port);
    let mut queue = order
        .choices
        .iter()
        .take(TRIES)
        .filter_map(|choice| members.get(choice.at));
    let mut tries = JoinSet::new();
    let mut running: Vec<Place> = Vec::new();
    let mut last = Refusal::Unreachable;
    let trying = async {
        loop {
            let mut head_start = None;
            if let Some(member) = queue.next() {
                let place = (member.identity, Protocol::Tcp, port);
                running.push(place);
                head_start = Some(HEAD_START.max(consumer.patience(&place)));
                let (core, member) = (Arc::clone(core), Arc::clone(member));
                tries.spawn(async move { (place, open(&core, &member, port).await) });
            }
            let pause = async {
                match head_start {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                tried = tries.join_next() => match tried {
                    Some(Ok((place, Ok((opened, round_trip))))) => {
                        consumer.succeeded(place, round_trip);
                        running.retain(|other| *other != place);
                        for slow in running {
                            consumer.overtaken(slow);
                        }
                        return Ok(opened);
                    }
                    Some(Ok((place, Err(refusal)))) => {
                        running.retain(|other| *other != place);
                        // That there is no room here says nothing of the endpoint.
                        if refusal != Refusal::Busy {
                            consumer.failed(place, failure(refusal));
                        }
                        last = refusal;
                    }
                    Some(Err(_)) => {}
                    None => return Err(last),
                },
                () = pause => {}
            }
        }
    };
    timeout(TRYING, trying)
        .await
        .unwrap_or(Err(Refusal::Silent))
}

impl Consumer {
    /// How long an endpoint may take before it is slow: some of its round trips.
    fn patience(&self, place: &Place) -> Duration {
        let seen = self.seen();
        let round_trip = seen.evidence.get(place).and_then(Evidence::round_trip);
        round_trip.unwrap_or_default().saturating_mul(4)
    }
}
