//! Flows of UDP: datagrams between a program of this machine and a service of another node.
//!
//! A flow is asked for and answered on a stream, as one of TCP is, and lives as long as that stream. What programs send goes as datagrams of QUIC, which
//! may get lost and overtake each other as on any network; what is too long for one goes on the stream (`wire`).
//!
//! ```text
//! program ─► door 127.64.0.7:53 ──────────┐                                      ┌─► 127.64.0.7:53: service
//! program ─► proxy: UDP ASSOCIATE ────────┴─ Near ═ Far ══ QUIC ══ Far ═ Near ───┘   from the caller's loopback address
//! ```
//!
//! - *Whom others use it for*: [`Core::open_datagrams`] or [`Core::reach_datagrams`] give a [`Far`], [`Core::run_datagrams`] carries between it and a
//!   [`Near`]; [`doors::attend`] does all of it for a socket that programs send to, and [`Clients`] keeps their flows apart.
//! - *Gate*: asked at both ends when a flow begins, and whenever it changes.
//! - *End*: after a time without a word, soon if there was never an answer; a flow that programs use again is begun again.
//! - *Bounds*: flows (with those of TCP), clients of a door, what waits in each direction of a flow: what finds no room is lost.
//! - *Older nodes* do not say that they take datagrams (RFC 9221, section 3), so they are never asked: [`Refusal::NoDatagrams`].
//!
//! A flow of UDP goes before those of TCP of the same connection, since QUIC sends datagrams first; together they keep to the connection's window.

pub(super) mod associate;
mod clients;
pub(super) mod doors;
pub(super) mod wire;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
pub(super) use clients::Clients;
use quinn::{Connection, ReadError, ReadExactError, SendDatagramError, VarInt};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::book::Motion;
use super::carrier::{Core, Rule};
use super::directory::{Member, loopback};
use super::flow::{Broken, Remote};
use super::header::{Carries, Refusal, Request};
use super::lane::{Arrivals, Lane};
use crate::policy::Direction;

/// Datagrams that wait for a program, or for their turn on the stream.
pub(super) const MOST_WAITING: usize = 32;
const MOST_LONG: usize = 4;
/// How long a flow may be silent in which there was never an answer.
const UNANSWERED: Duration = Duration::from_secs(30);
/// What the stream of a flow is ended with that was silent for too long.
const QUIET: VarInt = VarInt::from_u32(2);

/// The end of a flow that is this machine's.
#[derive(Debug)]
pub(super) enum Near {
    /// A program that sends to a socket which others send to as well.
    Program {
        /// What it sent, sorted out by whoever reads the socket.
        sent: mpsc::Receiver<Vec<u8>>,
        /// The socket.
        socket: Arc<UdpSocket>,
        /// Where the program is.
        at: SocketAddr,
        /// What stands before everything that it gets.
        head: Vec<u8>,
    },
    /// A service.
    Service(Service),
}

/// A service, and the socket by which it is spoken with.
#[derive(Debug)]
pub(super) struct Service {
    socket: UdpSocket,
    at: SocketAddr,
}

impl Service {
    /// What it says next. If it listens everywhere, its answers to a loopback address come from 127.0.0.1.
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (length, from) = self.socket.recv_from(buffer).await?;
            let right = from.ip() == self.at.ip() || from.ip() == Ipv4Addr::LOCALHOST;
            if right && from.port() == self.at.port() {
                return Ok(length);
            }
        }
    }

    async fn send(&self, datagram: &[u8]) {
        // Nobody is there now, perhaps: lost, as on any network.
        let _ = self.socket.send_to(datagram, self.at).await;
    }
}

impl Near {
    fn port(&self) -> u16 {
        match self {
            Self::Program { at, .. } => at.port(),
            Self::Service(_) => 0,
        }
    }
}

/// The other end of a flow.
#[derive(Debug)]
pub(super) struct Far {
    /// The address of the node there.
    pub(super) address: IpAddr,
    end: End,
}

#[derive(Debug)]
enum End {
    Peer(Box<Peer>),
    /// A service of this node, and the flow's place among all.
    Own(Service, OwnedSemaphorePermit),
}

#[derive(Debug)]
struct Peer {
    remote: Remote,
    arrivals: Arrivals,
}

impl Peer {
    fn new(remote: Remote) -> Self {
        let arrivals = remote.lane.arrivals(wire::number(remote.send.id()));
        Self { remote, arrivals }
    }
}

/// Takes what may be a datagram of a flow, and of a client of SOCKS5, apart.
pub(crate) fn fuzz_datagram(bytes: &[u8]) {
    if let Some((number, contents)) = wire::read(bytes) {
        let again = wire::write(number, contents);
        assert_eq!(wire::read(&again), Some((number, contents)));
    }
    if let Some((host, port, contents)) = super::socks::datagram(bytes)
        && let Ok(host) = host.parse::<IpAddr>()
    {
        let head = super::socks::datagram_head((host, port).into());
        assert_eq!([&head[..], contents].concat(), bytes);
    }
}

/// Brings what arrives over a connection to its flows.
pub(super) async fn sort(connection: Connection, lane: std::sync::Weak<Lane>) {
    while let Ok(datagram) = connection.read_datagram().await {
        let Some(lane) = lane.upgrade() else { return };
        if let Some((number, contents)) = wire::read(&datagram) {
            lane.arrived(number, contents);
        }
    }
}

/// Waits until nothing moved for so long.
async fn quiet(motion: &Motion, limit: Duration) {
    loop {
        let (last, began) = motion.last();
        let limit = match motion
            .out
            .load(Ordering::Relaxed)
            .min(motion.back.load(Ordering::Relaxed))
        {
            0 => limit.min(UNANSWERED),
            _ => limit,
        };
        match (Duration::from_millis(last) + limit).checked_sub(began.elapsed()) {
            Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
            _ => return,
        }
    }
}

/// Counts what moves.
struct Counter<'a> {
    motion: &'a Motion,
    all: [&'a AtomicU64; 2],
}

impl Counter<'_> {
    fn out(&self, length: usize) {
        self.motion.touch();
        self.motion.out.fetch_add(length as u64, Ordering::Relaxed);
        self.all[0].fetch_add(length as u64, Ordering::Relaxed);
    }

    fn back(&self, length: usize) {
        self.motion.touch();
        self.motion.back.fetch_add(length as u64, Ordering::Relaxed);
        self.all[1].fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// The near end, taken apart.
enum Source<'a> {
    Queue(&'a mut mpsc::Receiver<Vec<u8>>),
    Service(&'a Service, Vec<u8>),
}

impl Source<'_> {
    /// The next datagram; `None` if there will be none.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Queue(queue) => Ok(queue.recv().await),
            Self::Service(service, buffer) => {
                let length = service.receive(buffer).await?;
                Ok(buffer.get(..length).map(<[u8]>::to_vec))
            }
        }
    }
}

enum Sink<'a> {
    Program(&'a UdpSocket, SocketAddr, &'a [u8]),
    Service(&'a Service),
}

impl Sink<'_> {
    async fn give(&self, datagram: &[u8]) {
        match self {
            Self::Program(socket, at, []) => _ = socket.send_to(datagram, at).await,
            Self::Program(socket, at, head) => {
                _ = socket.send_to(&[head, datagram].concat(), at).await;
            }
            Self::Service(service) => service.send(datagram).await,
        }
    }
}

impl Near {
    fn split(&mut self) -> (Source<'_>, Sink<'_>) {
        match self {
            Self::Program {
                sent,
                socket,
                at,
                head,
            } => (Source::Queue(sent), Sink::Program(socket, *at, head)),
            Self::Service(service) => (
                Source::Service(service, vec![0; 1 << 16]),
                Sink::Service(service),
            ),
        }
    }
}

/// The next long datagram; `None` after the last.
async fn long(recv: &mut quinn::RecvStream) -> Result<Option<Vec<u8>>, Broken> {
    let failed = |error: ReadExactError| match error {
        ReadExactError::ReadError(ReadError::Reset(QUIET)) => Broken::Idle,
        error => Broken::Failed(io::Error::other(error)),
    };
    let mut length = [0; 2];
    match recv.read_exact(&mut length).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        other => other.map_err(failed)?,
    }
    let mut datagram = vec![0; usize::from(u16::from_be_bytes(length))];
    recv.read_exact(&mut datagram).await.map_err(failed)?;
    Ok(Some(datagram))
}

/// Carries between a near end and a peer until one of them ends it.
async fn exchange(near: &mut Near, peer: &mut Peer, count: &Counter<'_>) -> Result<(), Broken> {
    let (mut source, sink) = near.split();
    let Peer { remote, arrivals } = peer;
    let (connection, sent) = (&remote.connection, &remote.sent);
    let number = wire::number(remote.send.id());
    let (send, recv) = (&mut remote.send, &mut remote.recv);
    let (later, mut waiting) = mpsc::channel::<Vec<u8>>(MOST_LONG);
    let out = async {
        while let Some(datagram) = source.next().await? {
            count.out(datagram.len());
            sent.fetch_add(datagram.len() as u64, Ordering::Relaxed);
            let whole = Bytes::from(wire::write(number, &datagram));
            match connection.send_datagram(whole) {
                // What finds no room on the stream is lost.
                Err(SendDatagramError::TooLarge) => _ = later.try_send(datagram),
                other => other.map_err(io::Error::other)?,
            }
        }
        Ok::<(), Broken>(())
    };
    let long_out = async {
        while let Some(datagram) = waiting.recv().await {
            let Ok(length) = u16::try_from(datagram.len()) else {
                continue;
            };
            let framed = [&length.to_be_bytes()[..], &datagram].concat();
            send.write_all(&framed).await.map_err(io::Error::other)?;
        }
        // The sender lives as long as this.
        std::future::pending::<Result<(), Broken>>().await
    };
    let back = async {
        while let Some(datagram) = arrivals.next().await {
            count.back(datagram.len());
            sink.give(&datagram).await;
        }
        std::future::pending::<Result<(), Broken>>().await
    };
    let long_back = async {
        while let Some(datagram) = long(recv).await? {
            count.back(datagram.len());
            sink.give(&datagram).await;
        }
        Ok(())
    };
    tokio::select! {
        done = out => done,
        done = long_out => done,
        done = back => done,
        done = long_back => done,
    }
}

/// The same with a service of this node.
async fn exchange_here(
    near: &mut Near,
    service: &Service,
    count: &Counter<'_>,
) -> Result<(), Broken> {
    let (mut source, sink) = near.split();
    let out = async {
        while let Some(datagram) = source.next().await? {
            count.out(datagram.len());
            service.send(&datagram).await;
        }
        Ok::<(), Broken>(())
    };
    let back = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = service.receive(&mut buffer).await?;
            count.back(length);
            sink.give(buffer.get(..length).unwrap_or_default()).await;
        }
    };
    tokio::select! {
        done = out => done,
        done = back => done,
    }
}

async fn carry(
    mut near: Near,
    far: Far,
    limit: Duration,
    forbidden: impl Future<Output = ()>,
    count: Counter<'_>,
) -> Result<(), Broken> {
    let (mut peer, own) = match far.end {
        End::Peer(peer) => (Some(peer), None),
        End::Own(service, place) => (None, Some((service, place))),
    };
    let both = async {
        match (&mut peer, &own) {
            (Some(peer), _) => exchange(&mut near, peer, &count).await,
            (None, Some((service, _))) => exchange_here(&mut near, service, &count).await,
            (None, None) => Ok(()),
        }
    };
    let result = tokio::select! {
        done = both => done,
        () = quiet(count.motion, limit) => Err(Broken::Idle),
        () = forbidden => Err(Broken::Forbidden),
    };
    if let Some(remote) = peer.as_mut().map(|peer| &mut peer.remote) {
        // What is said here fails if the stream is over already. A flow that broke off is told when it is dropped.
        match result {
            Ok(()) => remote.whole = remote.send.finish().is_ok(),
            Err(Broken::Idle) => remote.whole = remote.send.reset(QUIET).is_ok(),
            Err(_) => {}
        }
        let _ = remote.recv.stop(VarInt::from_u32(0));
    }
    result
}

/// The service at a port of this node, for this caller, which it sees by its loopback address where that is possible.
async fn service(core: &Core, caller: &Member, port: u16) -> Result<Service, Refusal> {
    let home = core.directory().own().home();
    let at = match core.service(port) {
        Some(Some(target)) => target,
        Some(None) => (home, port).into(),
        None if core.offers(port) => (home, port).into(),
        None => return Err(Refusal::Undeclared),
    };
    let any: IpAddr = match at {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let here = at.ip().is_loopback() || at.ip() == home;
    let source = loopback(caller.v4).filter(|_| here && at.is_ipv4());
    let mut socket = Err(io::ErrorKind::AddrNotAvailable.into());
    for place in source.map(IpAddr::V4).into_iter().chain([any]) {
        socket = UdpSocket::bind((place, 0)).await;
        if socket.is_ok() {
            break;
        }
    }
    let socket = socket.map_err(|_| Refusal::Busy)?;
    Ok(Service { socket, at })
}

impl Core {
    /// Opens a flow of datagrams to a name or an address: to a node, or one of a service's, or a service of this node.
    ///
    /// # Errors
    /// Why there is none; of several nodes, why with the last.
    pub(super) async fn reach_datagrams(
        self: &Arc<Self>,
        host: &str,
        port: u16,
    ) -> Result<(Far, Option<Rule>), Refusal> {
        let (found, v6) = self.candidates(host);
        let mut last = Refusal::Unknown;
        for member in found {
            match self.open_datagrams(&member, v6, port).await {
                Ok(flow) => return Ok(flow),
                Err(refusal) => last = refusal,
            }
        }
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        Err(last)
    }

    /// Opens a flow of datagrams to a port of a node, which may be this one.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn open_datagrams(
        self: &Arc<Self>,
        member: &Arc<Member>,
        v6: bool,
        port: u16,
    ) -> Result<(Far, Option<Rule>), Refusal> {
        let place = self.place()?;
        if member.identity == self.directory().own().identity {
            let far = Far {
                address: member.v4.into(),
                end: End::Own(service(self, member, port).await?, place),
            };
            return Ok((far, None));
        }
        let direction = Direction::Outbound;
        let (rule, member) = self.rule(member.identity, direction, Carries::Datagrams, v6, port)?;
        let address = match v6 {
            true => IpAddr::V6(member.v6),
            false => IpAddr::V4(member.v4),
        };
        let request = Request {
            carries: Carries::Datagrams,
            address,
            port,
        };
        let remote = self.ask_in_time(&member, &request, place).await?;
        let end = End::Peer(Box::new(Peer::new(remote)));
        Ok((Far { address, end }, Some(rule)))
    }

    /// The far end of a flow that a peer asked for, and the service that it is for.
    pub(super) async fn take_datagrams(&self, caller: &Member, port: u16) -> Result<Near, Refusal> {
        service(self, caller, port).await.map(Near::Service)
    }

    /// Carries a flow of datagrams to its end.
    pub(super) async fn run_datagrams(&self, near: Near, far: Far, rule: Option<Rule>) {
        let all = [&self.counts.carried.out, &self.counts.carried.back];
        let limit = self.datagrams_idle();
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        let result = match rule {
            Some(rule) => {
                let entry = self.book.begin(rule.beginning(near.port()));
                let motion = entry.motion();
                let broken = self.broken(rule, &entry);
                let result = carry(near, far, limit, broken, Counter { motion, all }).await;
                entry.finish(&result);
                result
            }
            // A service of this node itself.
            None => {
                let motion = &Motion::new();
                let never = std::future::pending();
                carry(near, far, limit, never, Counter { motion, all }).await
            }
        };
        if let Err(error) = result {
            tracing::debug!("a flow of datagrams ended: {error}");
        }
    }
}

/// The far end for a flow that a peer asked for, before it is told that it has it.
pub(super) fn asked(remote: Remote, address: IpAddr) -> Far {
    let end = End::Peer(Box::new(Peer::new(remote)));
    Far { address, end }
}

/// Tells the peer that it has what it asked for.
pub(super) async fn grant(far: &mut Far, answer: u8) -> bool {
    match &mut far.end {
        End::Peer(peer) => peer.remote.send.write_all(&[answer]).await.is_ok(),
        End::Own(..) => true,
    }
}
