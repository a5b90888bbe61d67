//! The engine: packets from the TUN device to peers, and from peers to the TUN device.
//!
//! ```text
//!            outbound thread                                  inbound thread
//! TUN ─read─► route ─► cut ─► seal ─send─► UDP      UDP ─receive─► open ─► check source ─► join ─write─► TUN
//!                              │                     │
//!                              └──── peer's lock ────┤ handshakes, at most 256 waiting
//!                                        │           ▼
//!                                        └───── keeper thread: handshakes, timers, keepalives
//! ```
//!
//! One thread reads and writes in each direction, so packets keep their order; sealing in parallel gains little on
//! machines with few processors and costs order, which TCP pays for. What is expensive and can be asked for by
//! strangers, the handshakes, has a thread and a bounded queue of its own, so that a flood of them takes no data's place.
//!
//! A peer has one lock around its tunnel and its address; it is held for one batch. All queues are bounded: what the kernel
//! keeps at the device and the sockets, 256 handshakes, and 128 packets a peer and 4 MiB in all that wait for sessions.
//! Packets never make the engine fail: what is wrong with them is counted.

mod inbound;
mod keeper;
mod outbound;
mod peer;
mod queue;
mod statistics;
mod table;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

pub use statistics::{EngineStatus, PeerStatus};

use crate::clock::Clock;
use crate::crypto::{Core, Letter, SharedCore};
use crate::error::Error;
use crate::key::{PresharedKey, PublicKey};
use crate::prefix::Prefix;
use crate::tun::Tun;
use crate::wire::{Wire, reachable};
use statistics::Counters;
use table::Table;

/// Handshakes that wait for their turn.
const LETTERS: usize = 256;

/// What is to be known of a peer.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// Who it is.
    pub public_key: PublicKey,
    /// A secret shared with it, mixed into handshakes.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is first looked for. It is also learned from what it sends; `None` leaves what was learned.
    pub endpoint: Option<SocketAddr>,
    /// What may come from it and goes to it. A range that another peer has moves to this one.
    pub allowed: Vec<Prefix>,
    /// How often to send something though there is nothing to send; keeps NATs from forgetting us.
    pub keepalive: Option<Duration>,
}

impl PeerOptions {
    /// A peer with these addresses, which has to call first.
    pub fn new(public_key: PublicKey, allowed: Vec<Prefix>) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            allowed,
            keepalive: None,
        }
    }
}

/// What the threads share.
struct Shared {
    tun: Tun,
    wire: Wire,
    core: SharedCore,
    clock: Arc<dyn Clock>,
    table: RwLock<Table>,
    counters: Counters,
    stopping: AtomicBool,
    /// Readable once the engine stops.
    wake: OwnedFd,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // It can only fail when it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A running data plane of one node. Dropping it stops it and removes the device.
pub struct Engine {
    shared: Arc<Shared>,
    letters: Option<SyncSender<Letter>>,
    threads: Vec<JoinHandle<()>>,
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
    /// Starts with a device, sockets and a core, and no peers.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        tun: Tun,
        wire: Wire,
        core: Arc<dyn Core>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("make an event descriptor", error))?;
        let shared = Arc::new(Shared {
            tun,
            wire,
            core,
            clock,
            table: RwLock::new(Table::new()),
            counters: Counters::default(),
            stopping: AtomicBool::new(false),
            wake,
        });
        let (letters, inbox) = sync_channel(LETTERS);
        let mut engine = Self {
            shared: Arc::clone(&shared),
            letters: Some(letters.clone()),
            threads: Vec::new(),
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
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // However it ends, the others end too: half an engine would look like a running one.
                let _ending = Ending(shared);
                run();
            })
            .map_err(|error| Error::io("start a thread", error))?;
        self.threads.push(thread);
        Ok(())
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
        if let Some(endpoint) = options.endpoint.filter(|endpoint| reachable(*endpoint)) {
            state.endpoint = Some(endpoint);
        }
        state.tunnel.set_keepalive(options.keepalive);
        Ok(())
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
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the mesh's engine failed");
            }
        }
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
