//! Connections to other nodes: kept by node, used by all flows to and from it, given up when they are of no use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, VarInt};

use crate::coordination::IdentityKey;

/// Connections with one node at once. Two are normal, when both ends connect at the same time; a node that restarts has another one.
const MOST: usize = 4;
/// Why a connection is closed.
const REPLACED: (VarInt, &[u8]) = (VarInt::from_u32(2), b"replaced");
const UNUSED: (VarInt, &[u8]) = (VarInt::from_u32(3), b"unused");
const GONE: (VarInt, &[u8]) = (VarInt::from_u32(4), b"not in the mesh");

/// When connecting to a node failed last. Whoever waited meanwhile need not try again.
pub(super) type Opening = Arc<tokio::sync::Mutex<Option<Instant>>>;

#[derive(Debug)]
struct Link {
    connection: Connection,
    /// Every flow has one of these too.
    in_use: Arc<()>,
    unused_since: Instant,
}

#[derive(Debug, Default)]
struct Peer {
    /// The newest last.
    links: Vec<Link>,
    opening: Opening,
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
    pub(super) fn newest(&self, peer: &IdentityKey) -> Option<(Connection, Arc<()>)> {
        let peers = self.peers();
        let mut links = peers.get(peer)?.links.iter().rev();
        let link = links.find(|link| link.connection.close_reason().is_none())?;
        Some((link.connection.clone(), Arc::clone(&link.in_use)))
    }

    /// What those hold who connect to a node, one after the other.
    pub(super) fn opening(&self, peer: &IdentityKey) -> Opening {
        Arc::clone(&self.peers().entry(*peer).or_default().opening)
    }

    /// Keeps a connection; returns what a flow over it holds. If there are too many with this node, one without flows gives way, else the oldest.
    pub(super) fn add(&self, peer: IdentityKey, connection: Connection) -> Arc<()> {
        let in_use = Arc::new(());
        let mut peers = self.peers();
        let links = &mut peers.entry(peer).or_default().links;
        if links.len() >= MOST {
            let unused = |link: &Link| Arc::strong_count(&link.in_use) == 1;
            let at = links.iter().position(unused).unwrap_or(0);
            close(&links.remove(at).connection, REPLACED);
        }
        links.push(Link {
            connection,
            in_use: Arc::clone(&in_use),
            unused_since: Instant::now(),
        });
        in_use
    }

    /// Forgets a connection that is over.
    pub(super) fn remove(&self, peer: &IdentityKey, connection: &Connection) {
        let mut peers = self.peers();
        if let Some(known) = peers.get_mut(peer) {
            let other = |link: &Link| link.connection.stable_id() != connection.stable_id();
            known.links.retain(other);
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
            peer.links.retain_mut(|link| {
                if Arc::strong_count(&link.in_use) > 1 {
                    link.unused_since = now;
                }
                let stay = now.duration_since(link.unused_since) < keep;
                if !stay {
                    close(&link.connection, UNUSED);
                }
                stay
            });
            !peer.links.is_empty() || Arc::strong_count(&peer.opening) > 1
        });
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.peers().values().map(|peer| peer.links.len()).sum()
    }
}
