//! Who is registered at a relay, and what may be carried to whom. No I/O: the caller says what came and from where.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::frame::{Frame, Short, Tag, cost};
use super::proof::{Proof, random, same, tag};
use super::ticket::TicketCheck;
use super::{Limits, Statistics};
use crate::crypto::shared_secret;
use crate::error::Error;
use crate::key::{PrivateKey, PublicKey};

/// How long a registration holds.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// How long the secret behind cookies is used; the one before is still known.
const SECRET_LIFETIME: Duration = Duration::from_secs(30);
/// Registrations of new clients a second, each of which costs a multiplication on the curve.
const NEWCOMERS: f64 = 500.0;
/// Handshakes a second that one client may send.
const HANDSHAKES: f64 = 50.0;

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// At this address, over UDP.
    Udp(SocketAddr),
    /// At the end of this connection, from this address.
    Stream(u64, SocketAddr),
}

impl Place {
    const fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(address) | Self::Stream(_, address) => *address,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        format!("{self:?}").into_bytes()
    }
}

/// An account that fills with time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    level: f64,
    most: f64,
    rate: f64,
    since: Instant,
}

impl Account {
    fn new(rate: f64, most: f64, now: Instant) -> Self {
        Self {
            level: most,
            most,
            rate,
            since: now,
        }
    }

    fn take(&mut self, amount: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.most);
        self.since = now;
        if self.level < amount {
            return false;
        }
        self.level -= amount;
        true
    }
}

#[derive(Debug)]
struct Client {
    key: PublicKey,
    proof: Proof,
    place: Place,
    session: u32,
    until: Instant,
    bytes: Account,
    handshakes: Account,
}

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes there, with this session and this sender.
    Carry(Place, u32, Short),
    /// It goes nowhere, and the sender is told to register.
    Unknown,
    /// It goes nowhere.
    Drop,
}

/// All clients of a relay.
#[derive(Debug)]
pub(super) struct Registry {
    own: PrivateKey,
    public: PublicKey,
    tickets: Arc<dyn TicketCheck>,
    limits: Limits,
    clients: HashMap<Short, Client>,
    by_place: HashMap<Place, Short>,
    secrets: [[u8; 32]; 2],
    secret_since: Instant,
    newcomers: Account,
    pub(super) statistics: Statistics,
}

impl Registry {
    pub(super) fn new(
        own: PrivateKey,
        tickets: Arc<dyn TicketCheck>,
        limits: Limits,
        now: Instant,
    ) -> Result<Self, Error> {
        Ok(Self {
            public: own.public(),
            own,
            tickets,
            limits,
            clients: HashMap::new(),
            by_place: HashMap::new(),
            secrets: [crate::key::random()?, crate::key::random()?],
            secret_since: now,
            newcomers: Account::new(NEWCOMERS, NEWCOMERS, now),
            statistics: Statistics::default(),
        })
    }

    /// Forgets who did not register again, and changes the secret when it is time. To be called once a second.
    pub(super) fn tick(&mut self, now: Instant) {
        if now.saturating_duration_since(self.secret_since) >= SECRET_LIFETIME
            && let Some(fresh) = random()
        {
            self.secrets = [fresh, self.secrets[0]];
            self.secret_since = now;
        }
        let by_place = &mut self.by_place;
        self.clients.retain(|_, client| {
            let stays = now < client.until;
            if !stays {
                by_place.remove(&client.place);
            }
            stays
        });
        self.statistics.clients = self.clients.len() as u64;
    }

    /// Throws a node out. Whether it was there.
    pub(super) fn forget(&mut self, node: &PublicKey) -> bool {
        let short = Short::of(node);
        if self
            .clients
            .get(&short)
            .is_none_or(|client| client.key != *node)
        {
            return false;
        }
        self.remove(short);
        true
    }

    /// Forgets who was at the end of a connection.
    pub(super) fn left(&mut self, place: Place) {
        if let Some(short) = self.by_place.get(&place).copied() {
            self.remove(short);
        }
    }

    fn remove(&mut self, short: Short) {
        if let Some(client) = self.clients.remove(&short) {
            self.by_place.remove(&client.place);
            self.statistics.clients = self.clients.len() as u64;
        }
    }

    /// Everybody, to say goodbye.
    pub(super) fn everybody(&self) -> impl Iterator<Item = (Place, u32)> {
        self.clients
            .values()
            .map(|client| (client.place, client.session))
    }

    fn cookie(&self, secret: usize, place: Place, node: &PublicKey, nonce: &Tag) -> Tag {
        tag(
            &self.secrets[secret],
            &[node.as_bytes(), nonce, &place.bytes()],
        )
    }

    /// Takes a frame that is no data; appends the answer, which is never longer than the question.
    pub(super) fn take(&mut self, now: Instant, place: Place, bytes: &[u8], out: &mut Vec<u8>) {
        match Frame::read(bytes) {
            Some(Frame::Hello { node, nonce }) => {
                let cookie = self.cookie(0, place, &node, &nonce);
                Frame::Challenge { nonce, cookie }.write(out);
            }
            Some(Frame::Register {
                node,
                nonce,
                cookie,
                ticket,
                ..
            }) => {
                let genuine =
                    (0..2).any(|secret| same(&self.cookie(secret, place, &node, &nonce), &cookie));
                if !genuine
                    || self
                        .register(now, place, &node, &nonce, ticket, bytes, out)
                        .is_none()
                {
                    self.statistics.refused += 1;
                }
            }
            Some(Frame::Goodbye { session }) => {
                let short = self.by_place.get(&place).copied();
                if let Some(short) = short
                    && self
                        .clients
                        .get(&short)
                        .is_some_and(|client| client.session == session)
                {
                    self.remove(short);
                }
            }
            _ => self.statistics.malformed += 1,
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn register(
        &mut self,
        now: Instant,
        place: Place,
        node: &PublicKey,
        nonce: &Tag,
        ticket: &[u8],
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let short = Short::of(node);
        let known = self.clients.get(&short);
        let proof = match known {
            Some(client) if client.key == *node => client.proof.clone(),
            Some(_) => return None,
            None => {
                if self.clients.len() >= self.limits.clients || !self.newcomers.take(1.0, now) {
                    return None;
                }
                Proof::new(&*shared_secret(&self.own, node)?, node, &self.public)
            }
        };
        if !proof.holds(bytes) {
            return None;
        }
        let Some(admitted) = self.tickets.admit(node, ticket) else {
            // Who is not let in any more goes at once.
            self.remove(short);
            return None;
        };
        let lifetime = admitted.until.map_or(LIFETIME, |until| {
            until
                .duration_since(SystemTime::now())
                .unwrap_or_default()
                .min(LIFETIME)
        });
        // Whole seconds, at least one: that is what the frame says.
        let lifetime = Duration::from_secs(lifetime.as_secs().max(1));
        let same_place = known.is_some_and(|client| client.place == place);
        if !same_place {
            if let Some(before) = known.map(|client| client.place) {
                self.by_place.remove(&before);
            }
            // One place holds one client: who was there is somebody else now.
            if let Some(other) = self.by_place.get(&place).copied() {
                self.remove(other);
            }
            let session = u32::from_be_bytes(*random()?.first_chunk::<4>()?).max(1);
            let limits = self.limits;
            let client = self.clients.entry(short).or_insert_with(|| Client {
                key: *node,
                proof: proof.clone(),
                place,
                session,
                until: now,
                bytes: Account::new(
                    limits.bytes_per_second as f64,
                    limits.burst_bytes as f64,
                    now,
                ),
                handshakes: Account::new(HANDSHAKES, HANDSHAKES, now),
            });
            client.place = place;
            client.session = session;
            self.by_place.insert(place, short);
        }
        let client = self.clients.get_mut(&short)?;
        client.until = now + lifetime;
        let registered = Frame::Registered {
            nonce: *nonce,
            session: client.session,
            lifetime,
            seen: place.address(),
            tag: [0; 16],
        };
        proof.seal(&registered, out);
        self.statistics.registered += 1;
        self.statistics.clients = self.clients.len() as u64;
        Some(())
    }

    /// What becomes of a datagram from there.
    pub(super) fn carry(
        &mut self,
        now: Instant,
        place: Place,
        session: u32,
        to: Short,
        packet: &[u8],
    ) -> Verdict {
        let Some(from) = self.by_place.get(&place).copied() else {
            self.statistics.unknown += 1;
            return Verdict::Unknown;
        };
        let Some(client) = self.clients.get_mut(&from) else {
            return Verdict::Unknown;
        };
        if client.session != session || now >= client.until {
            self.statistics.unknown += 1;
            return Verdict::Unknown;
        }
        // Nothing but WireGuard and what carries flows.
        let Some(cost) = cost(packet) else {
            self.statistics.malformed += 1;
            return Verdict::Drop;
        };
        let allowed = cost == 0.0 || client.handshakes.take(cost, now);
        if !allowed || !client.bytes.take(packet.len() as f64, now) {
            self.statistics.limited += 1;
            return Verdict::Drop;
        }
        let Some(target) = self.clients.get(&to).filter(|target| now < target.until) else {
            self.statistics.absent += 1;
            return Verdict::Drop;
        };
        self.statistics.packets += 1;
        self.statistics.bytes += packet.len() as u64;
        Verdict::Carry(target.place, target.session, from)
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
