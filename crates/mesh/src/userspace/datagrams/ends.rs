//! The ends of a flow of datagrams: a program or a service of this machine, and a peer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::wire;
use crate::userspace::flow::Remote;
use crate::userspace::lane::Arrivals;

/// The end of a flow that is this machine's.
#[derive(Debug)]
pub(in crate::userspace) enum Near {
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
pub(in crate::userspace) struct Service {
    pub(super) socket: UdpSocket,
    pub(super) at: SocketAddr,
}

impl Service {
    /// What it says next. If it listens everywhere, its answers to a loopback address come from 127.0.0.1.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (length, from) = self.socket.recv_from(buffer).await?;
            let right = from.ip() == self.at.ip() || from.ip() == Ipv4Addr::LOCALHOST;
            if right && from.port() == self.at.port() {
                return Ok(length);
            }
        }
    }

    pub(super) async fn send(&self, datagram: &[u8]) {
        // Nobody is there now, perhaps: lost, as on any network.
        let _ = self.socket.send_to(datagram, self.at).await;
    }
}

impl Near {
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Program { at, .. } => at.port(),
            Self::Service(_) => 0,
        }
    }
}

/// The other end of a flow.
#[derive(Debug)]
pub(in crate::userspace) struct Far {
    /// The address of the node there.
    pub(in crate::userspace) address: IpAddr,
    pub(super) end: End,
}

#[derive(Debug)]
pub(super) enum End {
    Peer(Box<Peer>),
    /// A service of this node, and the flow's place among all.
    Own(Service, OwnedSemaphorePermit),
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) remote: Remote,
    pub(super) arrivals: Arrivals,
}

impl Peer {
    pub(super) fn new(remote: Remote) -> Self {
        let arrivals = remote.lane.arrivals(wire::number(remote.send.id()));
        Self { remote, arrivals }
    }
}

/// The near end, taken apart.
pub(super) enum Source<'a> {
    Queue(&'a mut mpsc::Receiver<Vec<u8>>),
    Service(&'a Service, Vec<u8>),
}

impl Source<'_> {
    /// The next datagram; `None` if there will be none.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Queue(queue) => Ok(queue.recv().await),
            Self::Service(service, buffer) => {
                let length = service.receive(buffer).await?;
                Ok(buffer.get(..length).map(<[u8]>::to_vec))
            }
        }
    }
}

pub(super) enum Sink<'a> {
    Program(&'a UdpSocket, SocketAddr, &'a [u8]),
    Service(&'a Service),
}

impl Sink<'_> {
    pub(super) async fn give(&self, datagram: &[u8]) {
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
    pub(super) fn split(&mut self) -> (Source<'_>, Sink<'_>) {
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
