//! The called end: what another node asks for is checked here, and led to a service of this machine.
//!
//! Who asks is known from the connection. What it may have is what the gate lets in *and* this machine offers (see [`super::Reach`]); nothing
//! that is asked for names a target, so this is a proxy to nowhere else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::{RecvStream, VarInt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::carrier::{Core, Rule};
use super::datagrams::{self, Near};
use super::directory::{Member, loopback};
use super::flow::{Far, Local, Remote};
use super::header::{Carries, ECHO, FIRST, GRANTED, Refusal, Request};
use crate::coordination::IdentityKey;
use crate::namespace::{Namespace, socket_in};
use crate::policy::Direction;

/// How long the caller may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);
/// How long a service may take to accept.
const SERVICE: Duration = Duration::from_secs(3);

/// What a peer asks for; nothing but an answer, if that is `None`.
async fn request(stream: &mut RecvStream) -> Option<Option<Request>> {
    let mut bytes = [0; FIRST + 16];
    let (first, rest) = bytes.split_first_chunk_mut::<FIRST>()?;
    stream.read_exact(first).await.ok()?;
    if *first == ECHO {
        return Some(None);
    }
    let length = Request::rest(first)?;
    stream.read_exact(rest.get_mut(..length)?).await.ok()?;
    Request::decode(&bytes[..FIRST + length]).map(Some)
}

/// Serves one stream of a peer.
pub(super) async fn serve(core: Arc<Core>, peer: IdentityKey, mut remote: Remote) {
    match grant(&core, peer, &mut remote).await {
        Ok(None) => {
            remote.whole =
                remote.send.write_all(&[GRANTED]).await.is_ok() && remote.send.finish().is_ok();
        }
        Ok(Some((Granted::Bytes(service), rule))) => {
            if remote.send.write_all(&[GRANTED]).await.is_ok() {
                core.run(service, &[], Far::Peer(remote), Some(rule)).await;
            }
        }
        Ok(Some((Granted::Datagrams(service), rule))) => {
            let own = core.directory().own().v4;
            let mut far = datagrams::asked(remote, own.into());
            if datagrams::grant(&mut far, GRANTED).await {
                core.run_datagrams(service, far, Some(rule)).await;
            }
        }
        Err(refusal) => {
            core.counts.refused.fetch_add(1, Ordering::Relaxed);
            let told = remote.send.write_all(&[refusal.code()]).await.is_ok();
            // What else it sends is not wanted; that it may have ended already is no matter.
            let _ = remote.recv.stop(VarInt::from_u32(0));
            remote.whole = told && remote.send.finish().is_ok();
        }
    }
}

/// What a peer gets.
enum Granted {
    Bytes(Local),
    Datagrams(Near),
}

async fn grant(
    core: &Arc<Core>,
    peer: IdentityKey,
    remote: &mut Remote,
) -> Result<Option<(Granted, Rule)>, Refusal> {
    let request = timeout(REQUEST, request(&mut remote.recv)).await;
    let request = request.map_err(|_| Refusal::Silent)?;
    let Some(request) = request.ok_or(Refusal::Confused)? else {
        core.partner(&peer)?;
        return Ok(None);
    };
    remote.place = Some(core.place()?);
    let v6 = match request.address {
        IpAddr::V4(address) if address == core.directory().own().v4 => false,
        IpAddr::V6(address) if address == core.directory().own().v6 => true,
        _ => return Err(Refusal::Confused),
    };
    let (direction, port) = (Direction::Inbound, request.port);
    let (rule, caller) = core.rule(peer, direction, request.carries, v6, port)?;
    let granted = match request.carries {
        Carries::Bytes => Granted::Bytes(Local::new(dial(core, &caller, port).await?)),
        // Nobody is told datagrams that do not take them.
        Carries::Datagrams if remote.connection.max_datagram_size().is_none() => {
            return Err(Refusal::Confused);
        }
        Carries::Datagrams => Granted::Datagrams(core.take_datagrams(&caller, port).await?),
    };
    Ok(Some((granted, rule)))
}

/// Connects to the service that this machine offers at a port, from the caller's loopback address where that is possible.
pub(super) async fn dial(
    core: &Arc<Core>,
    caller: &Member,
    port: u16,
) -> Result<TcpStream, Refusal> {
    let directory = core.directory();
    let machine = directory.machine();
    let home = machine.unwrap_or(directory.own().home());
    let targets = match core.service(port) {
        Some(Some(target)) => vec![target],
        // What listens on a machine's loopback is reached by nobody else.
        Some(None) if machine.is_some() => vec![(home, port).into()],
        Some(None) => [home, Ipv4Addr::LOCALHOST]
            .map(|address| SocketAddr::from((address, port)))
            .into(),
        None if core.offers(port) => vec![(home, port).into()],
        None => return Err(Refusal::Undeclared),
    };
    let source = match caller.identity == directory.own().identity {
        _ if machine.is_some() => None,
        true => Some(home),
        false => loopback(caller.v4),
    };
    let mut last = Refusal::Closed;
    for target in targets {
        let programs = core.programs.as_deref();
        match timeout(SERVICE, connect(source, home, target, programs)).await {
            Ok(Ok(service)) => return Ok(service),
            Ok(Err(_)) => last = Refusal::Closed,
            Err(_) => last = Refusal::Silent,
        }
    }
    Err(last)
}

async fn connect(
    source: Option<Ipv4Addr>,
    home: Ipv4Addr,
    target: SocketAddr,
    programs: Option<&Namespace>,
) -> io::Result<TcpStream> {
    let SocketAddr::V4(v4) = target else {
        let socket = socket_in(programs, TcpSocket::new_v6)?;
        return socket.connect(target).await;
    };
    let socket = socket_in(programs, TcpSocket::new_v4)?;
    if let Some(source) = source.filter(|_| v4.ip().is_loopback() || *v4.ip() == home) {
        // Where only some loopback addresses exist, the caller looks like any local program.
        let _ = socket.bind(SocketAddr::from((source, 0)));
    }
    socket.connect(target).await
}
