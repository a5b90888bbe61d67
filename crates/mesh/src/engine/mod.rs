//! The engine: packets from the TUN device to peers, and from peers to the TUN device.
//!
//! ```text
//!            outbound thread                                  inbound thread
//! TUN ─read─► route ─► gate ─► cut ─► seal ─send─► UDP    UDP ─receive─► open ─► check source ─► gate ─► join ─write─► TUN
//!                                      │                   │
//!                                      └─── peer's lock ───┤ handshakes, at most 256 waiting
//!                                              │           ▼
//!                                              └───── keeper thread: handshakes, timers, keepalives
//! ```
//!
//! One thread reads and writes in each direction, so packets keep their order; sealing in parallel gains little on
//! machines with few processors and costs order, which TCP pays for. What is expensive and can be asked for by
//! strangers, the handshakes, has a thread and a bounded queue of its own, so that a flood of them takes no data's place.
//!
//! With a [`Gate`] ([`Engine::start_guarded`]), no packet passes in either direction that it does not admit; what engines say to each other inside
//! sessions never reaches a device and is not asked about.
//!
//! Packets go over a way ([`crate::ways`]): to an address, or over a relay. For peers that are probed (`paths`) the keeper asks the path agent ten times a
//! second and puts what it chose beside the tunnel, so sending reads one field more and nothing else. Relays (`relays`) share the UDP sockets; a
//! fourth thread has the connections to those that are only reached over TLS.
//!
//! A peer has one lock around its tunnel and its address; it is held for one batch. All queues are bounded: what the kernel
//! keeps at the device and the sockets, 256 handshakes, and 128 packets a peer and 4 MiB in all that wait for sessions.
//! Packets never make the engine fail: what is wrong with them is counted.

mod inbound;
mod keeper;
mod letter;
mod outbound;
mod paths;
mod peer;
mod queue;
mod signal;
mod statistics;
mod table;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

pub use statistics::{EngineStatus, PeerStatus};

use crate::clock::Clock;
use crate::clusters::Translation;
use crate::crypto::{Core, SharedCore};
use crate::error::Error;
use crate::key::{PresharedKey, PublicKey};
use crate::policy::{Direction, Gate, Verdict};
use crate::prefix::Prefix;
use crate::relay::{Connections, RelayAddress, RelayStatus, Relays};
use crate::services::Redirects;
use crate::tun::Tun;
use crate::ways::Way;
use crate::ways::signal::MOST_ADDRESSES;
use crate::wire::{Wire, reachable};
use letter::Letter;
use paths::Paths;
use statistics::Counters;
use table::Table;

/// Handshakes that wait for their turn.
const LETTERS: usize = 256;

/// What is to be known of a peer.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// Who it is.
    pub public_key: PublicKey,
    /// The keys of its tunnels, the one that it surely answers to first, then the one that takes its place; `public_key` if empty.
    pub tunnels: Vec<PublicKey>,
    /// A secret shared with it, mixed into handshakes.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is first looked for. It is also learned from what it sends; `None` leaves what was learned.
    pub endpoint: Option<SocketAddr>,
    /// What may come from it and goes to it. A range that another peer has moves to this one.
    pub allowed: Vec<Prefix>,
    /// Ranges that it leads to, as others may too: what goes there is sent to the first of them that answers, and all of them may send from there.
    pub behind: Vec<Prefix>,
    /// Among those who lead to the same range, the one with the lowest is the first.
    pub rank: u32,
    /// How often to send something though there is nothing to send; keeps NATs from forgetting us.
    pub keepalive: Option<Duration>,
    /// For a peer that is an engine like this one: over which ways it may be reached. They are probed, and the best that works is
    /// taken. `None` for any other WireGuard node: packets go to where it was heard last.
    pub paths: Option<PathOptions>,
}

/// Over which ways a peer may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// Addresses at which it may be. What it says of itself inside a session is added, so this may be empty if there is a relay.
    pub candidates: Vec<SocketAddr>,
    /// The relays that it is registered with; empty for all that this engine has ([`Engine::set_relays`]).
    pub relays: Vec<PublicKey>,
}

impl PeerOptions {
    /// A peer with these addresses, which has to call first.
    pub fn new(public_key: PublicKey, allowed: Vec<Prefix>) -> Self {
        Self {
            public_key,
            tunnels: Vec::new(),
            preshared_key: None,
            endpoint: None,
            allowed,
            behind: Vec::new(),
            rank: 0,
            keepalive: None,
            paths: None,
        }
    }
}

/// What the threads share.
struct Shared {
    tun: Tun,
    wire: Wire,
    core: SharedCore,
    clock: Arc<dyn Clock>,
    /// Asked about every packet; without one, all pass.
    gate: Option<Arc<dyn Gate>>,
    table: RwLock<Table>,
    /// How packets are rewritten between the mesh and what is behind this node.
    translation: RwLock<Arc<Translation>>,
    translates: AtomicBool,
    counters: Counters,
    relays: Arc<Relays>,
    /// Where this node may be found, as its owner knows.
    candidates: Mutex<Vec<SocketAddr>>,
    /// What leads to doors of this machine.
    redirects: OnceLock<Arc<Redirects>>,
    stopping: Arc<AtomicBool>,
    /// Readable once the engine stops.
    wake: OwnedFd,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// How packets are rewritten, if they are.
    fn translation(&self) -> Option<Arc<Translation>> {
        let some = self.translates.load(Ordering::Relaxed);
        some.then(|| Arc::clone(&read(&self.translation)))
    }

    /// Whether the gate lets a packet pass.
    fn admits(&self, peer: &PublicKey, direction: Direction, packet: &[u8]) -> bool {
        self.gate.as_ref().is_none_or(|gate| {
            gate.admit(peer, direction, packet, self.clock.now()) == Verdict::Admit
        })
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // It can only fail when it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        self.relays.rouse();
    }
}

/// A running data plane of one node. Dropping it stops it and removes the device.
pub struct Engine {
    shared: Arc<Shared>,
    letters: Option<SyncSender<Letter>>,
    threads: Vec<JoinHandle<()>>,
    /// The thread for connections to relays, once there are any.
    connections: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Engine")
            .field("public_key", &self.public_key())
            .field("device", &self.shared.tun.name())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts with a device, sockets and a core, and no peers. Whatever comes from a peer's own addresses passes.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        tun: Tun,
        wire: Wire,
        core: Arc<dyn Core>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        Self::start_with(tun, wire, core, clock, None)
    }

    /// The same, but only packets pass that the gate admits, in both directions, from the first on.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start_guarded(
        tun: Tun,
        wire: Wire,
        core: Arc<dyn Core>,
        clock: Arc<dyn Clock>,
        gate: Arc<dyn Gate>,
    ) -> Result<Self, Error> {
        Self::start_with(tun, wire, core, clock, Some(gate))
    }

    fn start_with(
        tun: Tun,
        wire: Wire,
        core: Arc<dyn Core>,
        clock: Arc<dyn Clock>,
        gate: Option<Arc<dyn Gate>>,
    ) -> Result<Self, Error> {
        let wake = event()?;
        let shared = Arc::new(Shared {
            tun,
            wire,
            core,
            clock,
            gate,
            table: RwLock::new(Table::new()),
            translation: RwLock::default(),
            translates: AtomicBool::new(false),
            counters: Counters::default(),
            relays: Arc::new(Relays::new()?),
            candidates: Mutex::default(),
            redirects: OnceLock::new(),
            stopping: Arc::new(AtomicBool::new(false)),
            wake,
        });
        let (letters, inbox) = sync_channel(LETTERS);
        let mut engine = Self {
            shared: Arc::clone(&shared),
            letters: Some(letters.clone()),
            threads: Vec::new(),
            connections: Mutex::default(),
        };
        let outbound = Arc::clone(&shared);
        engine.spawn("mesh-out", move || outbound::Outbound::new(outbound).run())?;
        let inbound = Arc::clone(&shared);
        engine.spawn("mesh-in", move || {
            inbound::Inbound::new(inbound, letters).run()
        })?;
        engine.spawn("mesh-keeper", move || {
            keeper::Keeper::new(shared).run(&inbox)
        })?;
        Ok(engine)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = spawn(&self.shared, name, run)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Takes another list of relays, the preferred first; this node registers with each and stays so. At most 16 are used. `ticket` is shown to
    /// all of them. Those that are listed again go on, with the new ticket.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn set_relays(&self, relays: &[RelayAddress], ticket: &[u8]) -> Result<(), Error> {
        let shared = &self.shared;
        let core = &shared.core;
        let (node, now) = (core.public_key(), shared.clock.now());
        shared
            .relays
            .set(&shared.wire, node, relays, ticket, now, |relay| {
                core.agree(relay)
            });
        let mut connections = lock(&self.connections);
        if connections.is_none() && relays.iter().any(|relay| relay.tls.is_some()) {
            let start = || {
                let (clock, stopping) = (Arc::clone(&shared.clock), Arc::clone(&shared.stopping));
                let connections = Connections::new(Arc::clone(&shared.relays), clock, stopping);
                spawn(shared, "mesh-relays", move || connections.run())
            };
            // Threads begin in the namespace of who starts them.
            *connections = Some(match self.shared.wire.namespace() {
                Some(namespace) => namespace.within(start)?,
                None => start()?,
            });
        }
        Ok(())
    }

    /// How the relays are doing, in the order of their list.
    pub fn relays(&self) -> Vec<RelayStatus> {
        self.shared.relays.status()
    }

    /// Says where this node may be found, besides where relays see it: addresses of its interfaces, ports that a router forwards. At
    /// most 8 in all are told to peers, inside sessions.
    pub fn set_candidates(&self, own: &[SocketAddr]) {
        let own = own.iter().copied().filter(|address| reachable(*address));
        *lock(&self.shared.candidates) = own.take(MOST_ADDRESSES).collect();
    }

    /// From now on packets that these turn go back into the device. Whoever says so first is heard.
    pub(crate) fn set_redirects(&self, redirects: Arc<Redirects>) {
        let _ = self.shared.redirects.set(redirects);
    }

    /// This machine's addresses changed: relays are asked where they see it, and what was proven of direct ways is proven anew, at once.
    pub fn moved(&self) {
        self.shared.relays.shift(self.shared.clock.now());
    }

    /// Rewrites packets between the mesh and networks behind this node from now on. Peers and the gate know only the addresses outside.
    pub fn set_translation(&self, translation: Translation) {
        let some = !translation.is_empty();
        let place = self.shared.translation.write();
        *place.unwrap_or_else(PoisonError::into_inner) = Arc::new(translation);
        self.shared.translates.store(some, Ordering::Relaxed);
    }

    /// Lets all tunnels follow the keys that the core has now.
    pub fn renew(&self) {
        let all = read(&self.shared.table).tunnels();
        for (peer, tunnels, follows) in all {
            peer.lock().tunnel.renew(&tunnels, follows);
        }
    }

    /// The peer that is sent what goes to a range that several may lead to.
    pub fn gateway(&self, range: Prefix) -> Option<PublicKey> {
        let table = read(&self.shared.table);
        table.gateway(range).map(|peer| peer.public_key)
    }

    /// Who this node is.
    pub fn public_key(&self) -> PublicKey {
        self.shared.core.public_key()
    }

    /// The port that peers send to.
    pub fn port(&self) -> u16 {
        self.shared.wire.port()
    }

    /// The device.
    pub fn device(&self) -> &Tun {
        &self.shared.tun
    }

    /// Whether it still runs: it ends by itself when its device is removed by others.
    pub fn running(&self) -> bool {
        !self.shared.stopping()
    }

    /// Adds a peer, or changes it. Sessions go on unless the preshared key is another.
    ///
    /// # Errors
    /// It is this node's own key, or there are too many peers.
    pub fn set_peer(&self, options: &PeerOptions) -> Result<(), Error> {
        if options.public_key == self.public_key() {
            return Err(Error::OwnKey);
        }
        let peer = self.table().set(options, &*self.shared.core)?;
        let mut state = peer.lock();
        let endpoint = options.endpoint.filter(|endpoint| reachable(*endpoint));
        if let Some(endpoint) = endpoint {
            state.endpoint = Some(endpoint);
        }
        match (&options.paths, &mut state.paths) {
            (Some(paths), Some(known)) => known.set(paths.clone(), endpoint),
            (Some(paths), none) => {
                *none = Some(Box::new(Paths::new(paths.clone(), endpoint)));
            }
            (None, _) => {
                state.paths = None;
                state.way = state.endpoint.map(Way::Direct);
            }
        }
        if let Some(paths) = &mut state.paths {
            paths.list(self.shared.clock.now(), &self.shared.relays);
            state.follow(&self.shared.relays, peer.short);
        }
        state.tunnel.set_keepalive(options.keepalive);
        Ok(())
    }

    /// Sends a peer that is probed something that only engines see, so that a session is made and the ways are measured. Whether there is
    /// such a peer.
    pub fn probe(&self, public_key: &PublicKey) -> bool {
        let peer = read(&self.shared.table).by_key(public_key);
        peer.is_some_and(|peer| outbound::probe(&self.shared, &peer))
    }

    /// Forgets a peer with its sessions and addresses. Whether it was there.
    pub fn remove_peer(&self, public_key: &PublicKey) -> bool {
        self.table().remove(public_key)
    }

    /// What every peer is doing, in the order of their keys.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let now = self.shared.clock.now();
        let entries = read(&self.shared.table).entries();
        let mut peers: Vec<_> = entries
            .into_iter()
            .map(|(peer, allowed)| peer.status(allowed, now))
            .collect();
        peers.sort_by_key(|peer| peer.public_key);
        peers
    }

    /// What one peer is doing.
    pub fn peer(&self, public_key: &PublicKey) -> Option<PeerStatus> {
        let (peer, allowed) = read(&self.shared.table).entry(public_key)?;
        Some(peer.status(allowed, self.shared.clock.now()))
    }

    /// What the engine saw that belongs to no peer.
    pub fn status(&self) -> EngineStatus {
        self.shared.counters.read()
    }

    /// Stops, waits for its threads and removes the device.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.stop();
        self.letters = None;
        let connections = lock(&self.connections).take();
        for thread in self.threads.drain(..).chain(connections) {
            if thread.join().is_err() {
                tracing::error!("a thread of the mesh's engine failed");
            }
        }
        self.shared.relays.leave(&self.shared.wire);
    }

    fn table(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.shared
            .table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(
    shared: &Arc<Shared>,
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // However it ends, the others end too: half an engine would look like a running one.
            let _ending = Ending(shared);
            run();
        })
        .map_err(|error| Error::io("start a thread", error))
}

/// A descriptor that is readable once it was written to.
fn event() -> Result<OwnedFd, Error> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Error::io("make an event descriptor", error))
}

/// Stops the engine when its thread ends.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Locks; a thread that failed while it held the lock left nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`lock`].
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error of the device means that it is gone.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADFD | libc::ENODEV | libc::EBADF)
    )
}
