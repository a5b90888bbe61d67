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
mod ends;
mod exchange;
pub(super) mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) use clients::Clients;
use ends::{End, Peer, Service};
pub(super) use ends::{Far, Near};
use exchange::{Counter, carry};
use quinn::Connection;

use super::book::Motion;
use super::carrier::{Core, Rule};
use super::consumer::failure;
use super::directory::{Member, loopback};
use super::flow::Remote;
use super::header::{Carries, Refusal, Request};
use super::lane::Lane;
use super::service::Protocol;
use crate::namespace::udp_in;
use crate::policy::Direction;

/// Datagrams that wait for a program.
pub(super) const MOST_WAITING: usize = 32;

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

/// The service at a port of this node, for this caller, which it sees by its loopback address where that is possible.
async fn service(core: &Core, caller: &Member, port: u16) -> Result<Service, Refusal> {
    let directory = core.directory();
    let machine = directory.machine();
    let home = machine.unwrap_or(directory.own().home());
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
    let here = machine.is_none() && (at.ip().is_loopback() || at.ip() == home);
    let source = loopback(caller.v4).filter(|_| here && at.is_ipv4());
    let mut socket = Err(io::ErrorKind::AddrNotAvailable.into());
    for place in source.map(IpAddr::V4).into_iter().chain([any]) {
        socket = udp_in(core.programs.as_deref(), (place, 0).into());
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
        let directory = self.directory();
        let service = directory.service(host);
        let service = service.filter(|service| service.has_port(Protocol::Udp, port));
        let consumer = &self.consumer;
        let (found, v6) = match service {
            Some(service) => (consumer.for_datagrams(self, service, port), false),
            None => self.candidates(host),
        };
        let mut last = Refusal::Unknown;
        for member in found {
            match self.open_datagrams(&member, v6, port).await {
                Ok(flow) => return Ok(flow),
                Err(refusal) => {
                    // That there is no room here says nothing of the endpoint.
                    if service.is_some() && refusal != Refusal::Busy {
                        let place = (member.identity, Protocol::Udp, port);
                        consumer.failed(place, failure(refusal));
                    }
                    last = refusal;
                }
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
                let broken = self.broken(rule, Some(&entry));
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
