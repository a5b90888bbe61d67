//! UDP for clients of SOCKS5 (RFC 1928, section 7): a socket for as long as the client's connection, to which it sends what is for the mesh.
//!
//! Only datagrams from the client's address are taken, and only from one port: that which the client named, else that of the first that comes. Pieces (`FRAG`)
//! are not put together, as the RFC allows. What is sent to several places are several flows.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Clients, Near, wire};
use crate::userspace::carrier::Core;
use crate::userspace::socks;

/// Places that one client speaks with at the same time.
const PLACES: usize = 64;
/// The longest head of a datagram: a name of 255 bytes.
const HEAD: usize = 262;

/// What a client has.
#[derive(Debug)]
pub(in crate::userspace) struct Association {
    socket: Arc<UdpSocket>,
    /// Who may send; port 0 for any, until the first did.
    client: SocketAddr,
    _place: OwnedSemaphorePermit,
}

impl Association {
    /// Opens a socket beside the client's connection. `port` is the one that the client will send from, or 0.
    pub(in crate::userspace) async fn open(
        place: OwnedSemaphorePermit,
        stream: &TcpStream,
        port: u16,
    ) -> io::Result<Self> {
        let own = stream.local_addr()?.ip();
        let client = SocketAddr::new(stream.peer_addr()?.ip(), port);
        Ok(Self {
            socket: Arc::new(UdpSocket::bind((own, 0)).await?),
            client,
            _place: place,
        })
    }

    /// Where the client is to send to.
    pub(in crate::userspace) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves the client until its connection ends, or it was silent for so long.
    pub(in crate::userspace) async fn serve(
        mut self,
        core: &Arc<Core>,
        stream: &mut TcpStream,
        idle: Duration,
    ) {
        let mut clients = Clients::new(PLACES);
        let mut buffer = vec![0; wire::LONGEST + HEAD];
        let mut heard = [0; 64];
        let mut last = tokio::time::Instant::now();
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    let Ok((length, from)) = received else { continue };
                    if from.ip() != self.client.ip() {
                        continue;
                    }
                    match self.client.port() {
                        0 => self.client = from,
                        port if port == from.port() => {}
                        _ => continue,
                    }
                    last = tokio::time::Instant::now();
                    let datagram = buffer.get(..length).unwrap_or_default();
                    if let Some((host, port, contents)) = socks::datagram(datagram) {
                        let begun = clients.take((host.clone(), port), contents.to_vec(), Instant::now());
                        if let Some(sent) = begun {
                            let socket = Arc::clone(&self.socket);
                            let lead = lead(Arc::clone(core), host, port, sent, socket, self.client);
                            core.spawn(lead);
                        }
                    }
                }
                // Nothing is to be said on it.
                read = stream.read(&mut heard) => if !read.is_ok_and(|length| length > 0) { return },
                () = tokio::time::sleep_until(last + idle) => return,
            }
        }
    }
}

async fn lead(
    core: Arc<Core>,
    host: String,
    port: u16,
    sent: mpsc::Receiver<Vec<u8>>,
    socket: Arc<UdpSocket>,
    at: SocketAddr,
) {
    match core.reach_datagrams(&host, port).await {
        Ok((far, rule)) => {
            // An address is told as the client wrote it; of a name, whom it led to.
            let from = host.parse().unwrap_or(far.address);
            let near = Near::Program {
                sent,
                socket,
                at,
                head: socks::datagram_head((from, port).into()),
            };
            core.run_datagrams(near, far, rule).await;
        }
        Err(refusal) => {
            tracing::debug!("no flow of datagrams: {refusal}");
            // Whoever goes on sending does not have it asked again with each datagram.
            let _sent = sent;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}
