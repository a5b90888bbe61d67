//! Datagrams of flows, over whichever way gets through.
//!
//! QUIC sees one address for each node, made from the node's key, and never learns what is below it: the first datagrams go over a
//! relay at once, and over all addresses at which the node may be; as soon as probes prove a direct way, everything goes there; and when that breaks,
//! over the relay again. So connections outlive changes of address, NATs that forget, and dead relays. What decides is the same as for tunnels
//! ([`crate::ways`]); probes travel in envelopes of their own (`envelope`), as there is no session to put them in.
//!
//! ```text
//!            addresses made from keys                 real addresses
//! QUIC ──► try_send ─► peer's way ─┬─ direct ─────────────────► UDP socket
//!                                  └─ relay ─► frame ─► UDP ───► UDP socket
//!                                                   └─► TLS ───► outbox ─► thread "flows-relays"
//! QUIC ◄── poll_recv ◄─┬─ datagrams of known places, renamed ◄── UDP socket
//!                      ├─ unpacked frames ◄─────────────────────── UDP socket, connections
//!                      └─ signals and relays' own words go no further
//! ```
//!
//! A node of an older version has no such key; it is reached at its real addresses, which pass through here as they are.
//!
//! *Trust*: nothing here is. Relays and everybody on the way may read, drop, repeat and make up datagrams; QUIC proves who speaks. That a place is known as
//! a node's decides how its datagrams are called and nothing else. *Bounds*: peers (those in the directory), what waits to be read, places.

mod envelope;
mod socket;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::sync::Notify;

use crate::batch::Batch;
use crate::clock::SystemClock;
use crate::crypto::shared_secret;
use crate::error::Error;
use crate::key::{PrivateKey, PublicKey};
use crate::path::Probe;
use crate::relay::{Connections, Post, RelayAddress, RelayStatus, Relays, Short};
use crate::ways::signal::{MOST_ADDRESSES, Signal};
use crate::ways::{Change, PeerWay, Way, Ways, own_places};
use envelope::Envelope;

/// The network that the addresses made from keys are in: part of 3fff::/20, which no real node is in (RFC 9637).
const NETWORK: [u8; 4] = [0x3f, 0xff, 0x0a, 0x70];
/// How often the ways are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Datagrams out of frames that wait to be read.
const MOST_WAITING: usize = 4096;
/// Places that are known.
const MOST_PLACES: usize = 16_384;
/// How long a place stays whose it was, when somebody else speaks from there.
const HELD: Duration = Duration::from_secs(5);

/// The address that stands for a node. The port says nothing.
pub(super) fn address_of(key: &PublicKey) -> SocketAddr {
    stands_for(Short::of(key))
}

fn stands_for(short: Short) -> SocketAddr {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&NETWORK);
    bytes[4..].copy_from_slice(&short.0);
    SocketAddr::new(Ipv6Addr::from(bytes).into(), 1)
}

/// The node that an address stands for; `None` for a real one.
fn meant(address: SocketAddr) -> Option<Short> {
    let SocketAddr::V6(address) = address else {
        return None;
    };
    let octets = address.ip().octets();
    let short = octets.strip_prefix(&NETWORK)?;
    short.try_into().ok().map(Short)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// A node as this one was told of it.
#[derive(Debug, Clone)]
struct Known {
    key: PublicKey,
    listed: Vec<SocketAddr>,
}

/// A node with which there was something.
#[derive(Debug)]
struct Peer {
    short: Short,
    envelope: Envelope,
    /// Datagrams went to it since the last tick.
    busy: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ways: Ways,
    /// Where datagrams go.
    way: Option<Way>,
}

impl State {
    /// Lets the way follow what the path agent chose.
    fn follow(&mut self, relays: &Relays, short: Short) {
        let chosen = self.ways.agent.route();
        if chosen != self.way.as_ref().map(Way::route) {
            tracing::debug!(?chosen, "flows go another way now");
            self.way = chosen.and_then(|route| Ways::way(relays, short, route));
        }
    }
}

/// Who speaks from an address.
#[derive(Debug)]
struct Place {
    peer: Arc<Peer>,
    /// When that was proven last.
    at: Instant,
}

/// Where datagrams go.
enum Towards {
    One(Way),
    All(Vec<Way>),
}

/// The socket of flows, and all ways that begin at it.
pub(super) struct Underlay {
    socket: Arc<dyn AsyncUdpSocket>,
    /// The same socket, for what is said here.
    words: UdpSocket,
    /// Whether it is one for IPv6, and maybe IPv4 too.
    v6: bool,
    private: PrivateKey,
    key: PublicKey,
    relays: Arc<Relays>,
    known: RwLock<HashMap<Short, Known>>,
    peers: RwLock<HashMap<Short, Arc<Peer>>>,
    places: RwLock<HashMap<SocketAddr, Place>>,
    waiting: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    /// Where this node may be found, as its owner knows.
    own: Mutex<Vec<SocketAddr>>,
    wake: Notify,
    stopping: Arc<AtomicBool>,
    connections: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Underlay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Underlay")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Underlay {
    /// On this socket, for the node with this key, with no relay and nobody known.
    pub(super) fn new(socket: UdpSocket, private: PrivateKey) -> Result<Arc<Self>, Error> {
        let failed = |source| Error::io("use the socket of flows", source);
        let words = socket.try_clone().map_err(failed)?;
        let v6 = socket.local_addr().map_err(failed)?.is_ipv6();
        let socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
        let relays = Relays::new()?;
        Ok(Arc::new(Self {
            socket,
            words,
            v6,
            key: private.public(),
            private,
            relays: Arc::new(relays),
            known: RwLock::default(),
            peers: RwLock::default(),
            places: RwLock::default(),
            waiting: Mutex::default(),
            own: Mutex::default(),
            wake: Notify::new(),
            stopping: Arc::default(),
            connections: Mutex::default(),
        }))
    }

    /// Looks after the ways until it is dropped.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.wake.notified() => {}
            }
            self.tick();
        }
    }

    /// From now on these nodes are known, by their keys and the addresses at which they may be. Others are forgotten.
    pub(super) fn set_peers(&self, peers: impl Iterator<Item = (PublicKey, Vec<SocketAddr>)>) {
        let now = Instant::now();
        let peers = peers.map(|(key, listed)| (Short::of(&key), Known { key, listed }));
        let known: HashMap<_, _> = peers.collect();
        let mut live = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let before = read(&self.known);
        live.retain(|short, peer| {
            let Some(now_known) = known.get(short) else {
                return false;
            };
            let same = before
                .get(short)
                .is_some_and(|before| before.listed == now_known.listed);
            if !same {
                let mut state = lock(&peer.state);
                state.ways.set(now_known.listed.clone(), Vec::new());
                state.ways.list(now, &self.relays);
                state.follow(&self.relays, *short);
            }
            true
        });
        drop(before);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| live.contains_key(&place.peer.short));
    }

    /// From now on these are the relays, the preferred first; this node registers with each and stays so.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn set_relays(&self, relays: &[RelayAddress]) -> Result<(), Error> {
        let now = Instant::now();
        self.relays.set(self, self.key, relays, &[], now, |relay| {
            shared_secret(&self.private, relay)
        });
        let mut connections = lock(&self.connections);
        if connections.is_none() && relays.iter().any(|relay| relay.tls.is_some()) {
            let (all, stopping) = (Arc::clone(&self.relays), Arc::clone(&self.stopping));
            let run = Connections::new(all, Arc::new(SystemClock), stopping);
            let thread = std::thread::Builder::new()
                .name("flows-relays".to_owned())
                .spawn(move || run.run())
                .map_err(|error| Error::io("start a thread", error))?;
            *connections = Some(thread);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Says where this node may be found, besides where relays see it.
    pub(super) fn set_candidates(&self, own: &[SocketAddr]) {
        *lock(&self.own) = own.iter().copied().take(MOST_ADDRESSES).collect();
    }

    /// This machine is somewhere else.
    pub(super) fn moved(&self) {
        self.relays.shift(Instant::now());
        self.wake.notify_one();
    }

    /// How the relays are doing.
    pub(super) fn relays(&self) -> Vec<RelayStatus> {
        self.relays.status()
    }

    /// Whether there is a relay that can be used.
    pub(super) fn relayed(&self) -> bool {
        self.relays.all().iter().any(|link| link.usable())
    }

    /// Over which way the node is reached now that an address stands for; `None` for a real address.
    pub(super) fn way_at(&self, address: SocketAddr) -> Option<Option<PeerWay>> {
        let peer = read(&self.peers).get(&meant(address)?).cloned();
        Some(peer.and_then(|peer| lock(&peer.state).way.as_ref().map(PeerWay::from)))
    }

    /// Says goodbye to the relays and waits for the thread that speaks with them.
    pub(super) fn end(&self) {
        self.relays.leave(self);
        self.stopping.store(true, Ordering::Relaxed);
        self.relays.rouse();
        if let Some(thread) = lock(&self.connections).take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for connections to relays failed");
        }
    }

    /// A node that is known, with what there was with it.
    fn peer(&self, short: Short) -> Option<Arc<Peer>> {
        if let Some(peer) = read(&self.peers).get(&short) {
            return Some(Arc::clone(peer));
        }
        let known = read(&self.known).get(&short).cloned()?;
        let secret = shared_secret(&self.private, &known.key)?;
        let mut ways = Ways::new(known.listed, Vec::new());
        // Answers to an earlier process's questions are none to this one's.
        let first = crate::key::random().ok()?;
        ways.agent
            .number_from(u64::from_le_bytes(*first.first_chunk()?) >> 1);
        ways.list(Instant::now(), &self.relays);
        let mut state = State { ways, way: None };
        state.follow(&self.relays, short);
        let peer = Arc::new(Peer {
            short,
            envelope: Envelope::new(&secret, &self.key, &known.key)?,
            busy: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        // It may have been forgotten, or made by somebody else, meanwhile.
        read(&self.known).contains_key(&short).then(|| {
            let peer = peers.entry(short).or_insert(peer);
            Arc::clone(peer)
        })
    }

    /// Where a datagram to this node goes, which begins or continues a connection.
    fn towards(&self, peer: &Peer, begins: bool) -> Option<Towards> {
        let now = Instant::now();
        peer.busy.store(true, Ordering::Relaxed);
        let mut state = lock(&peer.state);
        if !state.ways.agent.active(now) {
            // After a silence the questions go first, so that the node knows where this one is when the datagram comes.
            state.ways.agent.sent(now);
            let own = self.places();
            self.ask(peer, &mut state, now, &own);
        }
        if begins && state.ways.agent.round_trip().is_none() {
            // Nothing is proven: whatever arrives first counts, and copies are of no effect.
            return Some(Towards::All(state.ways.all(&self.relays, peer.short)));
        }
        state.way.clone().map(Towards::One)
    }

    fn places(&self) -> Vec<SocketAddr> {
        own_places(&lock(&self.own), &self.relays)
    }

    fn tick(&self) {
        let now = Instant::now();
        let change = Change::look(&self.relays, self, now);
        let own = self.places();
        let peers: Vec<_> = read(&self.peers).values().cloned().collect();
        for peer in peers {
            let mut state = lock(&peer.state);
            let busy = peer.busy.swap(false, Ordering::Relaxed);
            state.ways.look(now, &self.relays, change, busy);
            self.ask(&peer, &mut state, now, &own);
        }
    }

    /// Asks what is due, and tells the node where this one is.
    fn ask(&self, peer: &Peer, state: &mut State, now: Instant, own: &[SocketAddr]) {
        let mut probes: Vec<Probe> = Vec::new();
        let tell = state.ways.due(now, &self.relays, own, &mut probes);
        state.follow(&self.relays, peer.short);
        for probe in probes {
            if let Some(way) = Ways::way(&self.relays, peer.short, probe.route) {
                self.say(peer, &way, &Signal::Ask(probe.number));
            }
        }
        if tell && let Some(way) = &state.way {
            self.say(peer, way, &Signal::Here(own.to_vec()));
        }
    }

    fn say(&self, peer: &Peer, way: &Way, signal: &Signal) {
        if let Some(datagram) = peer.envelope.seal(signal) {
            let mut batch = Batch::default();
            batch.push(&datagram);
            // What is lost is asked again.
            way.send(self, &batch, &mut Batch::default());
        }
    }

    /// Takes what may be a signal, and came this way: over a relay, from whom the relay says. Whether it is one, of whomever.
    fn take_signal(&self, source: &Way, datagram: &[u8]) -> bool {
        let Some(from) = envelope::sender(datagram) else {
            return false;
        };
        let named = match source {
            Way::Relay(_, from) => Some(*from),
            Way::Direct(_) => None,
        };
        if named.is_some_and(|named| named != from) {
            return true;
        }
        let Some(peer) = self.peer(from) else {
            return true;
        };
        let Some(signal) = peer.envelope.open(datagram) else {
            return true;
        };
        let now = Instant::now();
        if let Way::Direct(address) = source {
            self.note_place(*address, &peer, now);
        }
        let mut state = lock(&peer.state);
        match signal {
            Signal::Ask(number) => {
                state.ways.heard(now, source.route());
                self.say(&peer, source, &Signal::Answer(number));
            }
            Signal::Answer(number) => {
                state.ways.lives(now);
                state.ways.agent.answered(now, source.route(), number);
            }
            Signal::Here(addresses) => {
                if state.ways.claim(addresses) {
                    state.ways.list(now, &self.relays);
                }
            }
        }
        state.follow(&self.relays, from);
        true
    }

    /// Notes that a node speaks from there.
    fn note_place(&self, address: SocketAddr, peer: &Arc<Peer>, now: Instant) {
        let held = |place: &Place| now.saturating_duration_since(place.at) < HELD;
        if let Some(place) = read(&self.places).get(&address) {
            let other = place.peer.short != peer.short;
            // Often enough to hold it.
            if held(place) && (other || now.saturating_duration_since(place.at) < TICK) {
                return;
            }
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= MOST_PLACES {
            places.retain(|_, place| held(place));
        }
        if places.len() < MOST_PLACES {
            let peer = Arc::clone(peer);
            places.insert(address, Place { peer, at: now });
        }
    }

    /// The address as the socket wants it; `None` if it cannot send there.
    fn native(&self, address: SocketAddr) -> Option<SocketAddr> {
        match (canonical(address), self.v6) {
            (SocketAddr::V4(v4), true) => Some((v4.ip().to_ipv6_mapped(), v4.port()).into()),
            (SocketAddr::V6(_), false) => None,
            (address, _) => Some(address),
        }
    }

    /// Puts a datagram out of a frame where QUIC reads it.
    fn wait(&self, from: SocketAddr, datagram: &[u8]) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < MOST_WAITING {
            waiting.push_back((from, datagram.to_vec()));
        }
    }

    /// Notes that something came from a node, of whatever worth.
    fn note_life(&self, short: Short) {
        let peer = read(&self.peers).get(&short).cloned();
        if let Some(peer) = peer {
            lock(&peer.state).ways.lives(Instant::now());
        }
    }

    /// Takes what a relay says a node sent.
    fn take_relayed(&self, source: &Way, from: Short, packet: &[u8]) {
        if !self.take_signal(source, packet) && read(&self.known).contains_key(&from) {
            self.note_life(from);
            self.wait(stands_for(from), packet);
        }
    }
}

/// Reads what may be a signal from `other`, for the node with the key `own`.
pub(crate) fn fuzz_signal(own: &PrivateKey, other: &PublicKey, datagram: &[u8]) {
    let envelope =
        shared_secret(own, other).and_then(|secret| Envelope::new(&secret, &own.public(), other));
    if let (Some(_), Some(envelope)) = (envelope::sender(datagram), envelope) {
        assert_eq!(envelope.open(datagram), None, "nobody knows the key");
    }
    // And what is inside one, whoever made it.
    let _ = Signal::read(datagram);
}

impl Post for Underlay {
    fn post(&self, to: SocketAddr, datagrams: &Batch) -> u64 {
        let Some(to) = self.native(to) else {
            return datagrams.len() as u64;
        };
        let failed = datagrams
            .iter()
            .filter(|datagram| self.words.send_to(datagram, to).is_err());
        failed.count() as u64
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        // Who did not end it in order does not wait for the thread either.
        self.stopping.store(true, Ordering::Relaxed);
        self.relays.rouse();
    }
}
