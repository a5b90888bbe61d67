//! All connections of clients: how many there are, and which have been silent for too long.

use crate::{
    connection::{Connection, Expiry},
    metrics::{Counters, count},
    options::Limits,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

/// The connections of clients.
pub(crate) struct Registry {
    pub(crate) counters: Arc<Counters>,
    limits: Limits,
    started: Instant,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    next: u64,
    connections: HashMap<u64, Arc<Connection>>,
    per_client: HashMap<IpAddr, usize>,
}

/// A place among the connections; given back when dropped.
pub(crate) struct Ticket {
    registry: Arc<Registry>,
    number: u64,
    client: IpAddr,
}

impl Registry {
    pub(crate) fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        Self {
            counters,
            limits,
            started: Instant::now(),
            members: Mutex::default(),
        }
    }

    /// Milliseconds since the gateway was made, and never 0.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a new connection; `None` if there is no room for it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        peer: SocketAddr,
        secure: bool,
    ) -> Option<(Arc<Connection>, Ticket)> {
        let client = client_of(peer.ip());
        let mut members = self.lock();
        let mine = members.per_client.get(&client).copied().unwrap_or(0);
        if members.connections.len() >= self.limits.connections
            || mine >= self.limits.connections_per_client
        {
            count(&self.counters.connections_refused);
            return None;
        }
        let number = members.next;
        members.next += 1;
        members.per_client.insert(client, mine + 1);
        let connection = Arc::new(Connection::new(peer, secure, self.clone()));
        members.connections.insert(number, connection.clone());
        count(&self.counters.connections);
        count(&self.counters.connections_open);
        Some((
            connection,
            Ticket {
                registry: self.clone(),
                number,
                client,
            },
        ))
    }

    /// Ends the connections that have used up their time.
    pub(crate) fn expire(&self) {
        let now = self.now();
        let members = self.lock();
        for connection in members.connections.values() {
            match connection.expiry(now, &self.limits) {
                Expiry::Alive => {}
                Expiry::Expired => {
                    count(&self.counters.connections_expired);
                    connection.kill();
                }
            }
        }
    }

    /// Asks all connections to end after what they are doing.
    pub(crate) fn drain(&self) {
        self.lock()
            .connections
            .values()
            .for_each(|connection| connection.drain());
    }

    /// Ends all connections.
    pub(crate) fn kill(&self) {
        self.lock()
            .connections
            .values()
            .for_each(|connection| connection.kill());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut members = self.registry.lock();
        members.connections.remove(&self.number);
        if let Some(mine) = members.per_client.get_mut(&self.client) {
            *mine -= 1;
            if *mine == 0 {
                members.per_client.remove(&self.client);
            }
        }
        self.registry
            .counters
            .connections_open
            .fetch_sub(1, Relaxed);
    }
}

/// Whom a connection is counted against: an IPv6 client usually has a /64 of its own.
pub(crate) fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}
