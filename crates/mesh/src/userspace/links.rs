//! Connections to other nodes: kept by node, used by all flows to and from it, given up when they are of no use.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, VarInt};

use super::lane::Lane;
use crate::coordination::IdentityKey;
use crate::ways::PeerWay;

/// Connections with one node at once. Two are normal, when both ends connect at the same time; a node that restarts has another one.
const MOST: usize = 4;
/// Why a connection is closed.
const REPLACED: (VarInt, &[u8]) = (VarInt::from_u32(2), b"replaced");
const UNUSED: (VarInt, &[u8]) = (VarInt::from_u32(3), b"unused");
const GONE: (VarInt, &[u8]) = (VarInt::from_u32(4), b"not in the mesh");

/// When connecting to a node failed last. Whoever waited meanwhile need not try again.
pub(super) type Opening = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// What is known of the connections with a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// How long ago the newest was opened, if there is one.
    pub open: Option<Duration>,
    /// Over which way it goes.
    pub way: Option<PeerWay>,
    /// The time of a round trip over it, as its packets show.
    pub round_trip: Option<Duration>,
    /// Bytes in datagrams to the node since the start, over all connections.
    pub sent: u64,
    /// Bytes in datagrams from it.
    pub received: u64,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    opened: Instant,
    /// Every flow has one of these too.
    lane: Arc<Lane>,
    unused_since: Instant,
}

#[derive(Debug, Default)]
struct Peer {
    /// The newest last.
    links: Vec<Link>,
    opening: Opening,
    /// Bytes sent and received over connections that are gone.
    past: (u64, u64),
}

impl Peer {
    fn retire(&mut self, gone: &Connection) {
        let (sent, received) = bytes(gone);
        self.past.0 += sent;
        self.past.1 += received;
    }
}

fn bytes(connection: &Connection) -> (u64, u64) {
    let counts = connection.stats();
    (counts.udp_tx.bytes, counts.udp_rx.bytes)
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    peers: Mutex<HashMap<IdentityKey, Peer>>,
}

fn close(connection: &Connection, why: (VarInt, &[u8])) {
    connection.close(why.0, why.1);
}

impl Links {
    fn peers(&self) -> MutexGuard<'_, HashMap<IdentityKey, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest connection with a node that is not known to be over, and what a flow over it holds.
    pub(super) fn newest(&self, peer: &IdentityKey) -> Option<(Connection, Arc<Lane>)> {
        let peers = self.peers();
        let mut links = peers.get(peer)?.links.iter().rev();
        let link = links.find(|link| link.connection.close_reason().is_none())?;
        Some((link.connection.clone(), Arc::clone(&link.lane)))
    }

    /// What those hold who connect to a node, one after the other.
    pub(super) fn opening(&self, peer: &IdentityKey) -> Opening {
        Arc::clone(&self.peers().entry(*peer).or_default().opening)
    }

    /// Keeps a connection; returns what a flow over it holds. If there are too many with this node, one without flows gives way, else the oldest.
    pub(super) fn add(&self, peer: IdentityKey, connection: Connection) -> Arc<Lane> {
        let lane = Arc::new(Lane::default());
        let mut peers = self.peers();
        let peer = peers.entry(peer).or_default();
        if peer.links.len() >= MOST {
            let unused = |link: &Link| Arc::strong_count(&link.lane) == 1;
            let at = peer.links.iter().position(unused).unwrap_or(0);
            let gone = peer.links.remove(at).connection;
            peer.retire(&gone);
            close(&gone, REPLACED);
        }
        peer.links.push(Link {
            connection,
            opened: Instant::now(),
            lane: Arc::clone(&lane),
            unused_since: Instant::now(),
        });
        lane
    }

    /// Forgets a connection that is over.
    pub(super) fn remove(&self, peer: &IdentityKey, connection: &Connection) {
        let mut peers = self.peers();
        if let Some(known) = peers.get_mut(peer) {
            let before = known.links.len();
            let other = |link: &Link| link.connection.stable_id() != connection.stable_id();
            known.links.retain(other);
            if known.links.len() < before {
                known.retire(connection);
            }
        }
    }

    /// Closes connections with nodes that are not in the mesh any more, and those that carried nothing for so long.
    pub(super) fn sweep(&self, keep: Duration, member: impl Fn(&IdentityKey) -> bool) {
        let now = Instant::now();
        self.peers().retain(|identity, peer| {
            if !member(identity) {
                for link in &peer.links {
                    close(&link.connection, GONE);
                }
                return false;
            }
            let mut gone = Vec::new();
            peer.links.retain_mut(|link| {
                if Arc::strong_count(&link.lane) > 1 {
                    link.unused_since = now;
                }
                let stay = now.duration_since(link.unused_since) < keep;
                if !stay {
                    close(&link.connection, UNUSED);
                    gone.push(link.connection.clone());
                }
                stay
            });
            for connection in &gone {
                peer.retire(connection);
            }
            !peer.links.is_empty() || Arc::strong_count(&peer.opening) > 1 || peer.past != (0, 0)
        });
    }

    /// Gives each connection its shares of the way, by what flows over it send.
    pub(super) fn share(&self) {
        for peer in self.peers().values() {
            for link in &peer.links {
                link.lane.share(&link.connection);
            }
        }
    }

    /// What is known of those with a node.
    pub(super) fn status(&self, peer: &IdentityKey) -> LinkStatus {
        let peers = self.peers();
        let Some(peer) = peers.get(peer) else {
            return LinkStatus::default();
        };
        let (mut sent, mut received) = peer.past;
        for link in &peer.links {
            let (more_sent, more_received) = bytes(&link.connection);
            sent += more_sent;
            received += more_received;
        }
        let mut links = peer.links.iter().rev();
        let newest = links.find(|link| link.connection.close_reason().is_none());
        let way = |link: &Link| {
            let at = link.connection.remote_address();
            PeerWay::Direct(SocketAddr::new(at.ip().to_canonical(), at.port()))
        };
        LinkStatus {
            open: newest.map(|link| link.opened.elapsed()),
            way: newest.map(way),
            round_trip: newest.map(|link| link.connection.rtt()),
            sent,
            received,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.peers().values().map(|peer| peer.links.len()).sum()
    }
}
