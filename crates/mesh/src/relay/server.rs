//! The relay: a thread for UDP and one for TLS, which share who is registered.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustls::{ServerConfig, ServerConnection};

use super::frame::{Frame, data, data_header};
use super::outbox::Outbox;
use super::registry::{Place, Registry, Verdict};
use super::stream::{Stream, TlsOptions};
use super::ticket::TicketCheck;
use super::{Limits, RelayAddress, Statistics, TlsAddress};
use crate::batch::Batch;
use crate::error::Error;
use crate::key::{PrivateKey, PublicKey};
use crate::namespace::Namespace;
use crate::wire::{Receiver, Wire, WireOptions};

/// How often who is registered is looked through.
const SECOND: Duration = Duration::from_secs(1);
/// How long a connection may take until it is registered, and be silent afterwards.
const SILENCE: Duration = Duration::from_secs(70);
/// How long it may take at the beginning.
const GREETING: Duration = Duration::from_secs(10);
/// How long connections get to take a last word.
const FAREWELL: Duration = Duration::from_millis(500);
/// Rounds at one socket before the other has its turn.
const ROUNDS: usize = 4;

/// What a relay is started with.
#[derive(Debug)]
pub struct RelayOptions {
    /// Its own key; clients know it by the public half.
    pub key: PrivateKey,
    /// Where it listens on UDP; `None` for not at all.
    pub udp: Option<WireOptions>,
    /// Where it listens on TLS.
    pub tls: Option<TlsOptions>,
    /// Who may use it.
    pub tickets: Arc<dyn TicketCheck>,
    /// How much of it.
    pub limits: Limits,
}

struct Shared {
    wire: Option<Wire>,
    registry: Mutex<Registry>,
    outboxes: Mutex<HashMap<u64, Arc<Outbox>>>,
    stopping: AtomicBool,
    wake_udp: OwnedFd,
    wake_tls: Arc<OwnedFd>,
}

/// A running relay. Dropping it stops it; its clients are told.
pub struct Relay {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    key: PublicKey,
    tls: Option<TlsAddress>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Relay")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event() -> Result<OwnedFd, Error> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Error::io("make an event descriptor", error))
}

impl Relay {
    /// Starts in the given network namespace, or in that of the calling thread.
    ///
    /// # Errors
    /// A port is taken, the certificate does not fit its key, or a thread cannot be started.
    pub fn start(options: RelayOptions, namespace: Option<&Namespace>) -> Result<Self, Error> {
        let wire = match &options.udp {
            Some(udp) => Some(Wire::bind(udp, namespace)?),
            None => None,
        };
        let mut listener = None;
        let mut tls = None;
        if let Some(options) = &options.tls {
            let bind = || {
                let listener = TcpListener::bind(options.listen)
                    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                    .map_err(|error| Error::io("listen on TCP", error))?;
                let address = listener
                    .local_addr()
                    .map_err(|error| Error::io("read the TCP socket's port", error))?;
                Ok((listener, address))
            };
            let (bound, address) = match namespace {
                Some(namespace) => namespace.within(bind)?,
                None => bind()?,
            };
            listener = Some((bound, options.certificate.server()?));
            tls = Some(TlsAddress {
                address,
                certificate: options.certificate.fingerprint(),
            });
        }
        let key = options.key.public();
        let registry = Registry::new(options.key, options.tickets, options.limits, Instant::now())?;
        let shared = Arc::new(Shared {
            wire,
            registry: Mutex::new(registry),
            outboxes: Mutex::default(),
            stopping: AtomicBool::new(false),
            wake_udp: event()?,
            wake_tls: Arc::new(event()?),
        });
        let mut relay = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            key,
            tls,
        };
        let udp = Datagrams::new(Arc::clone(&shared));
        relay.spawn("relay-udp", move || udp.run())?;
        if let Some((listener, config)) = listener {
            let connections = Connections {
                shared,
                listener,
                config,
                most: options.limits.connections,
                open: HashMap::new(),
                next: 0,
            };
            relay.spawn("relay-tls", move || connections.run())?;
        }
        Ok(relay)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|error| Error::io("start a thread", error))?;
        self.threads.push(thread);
        Ok(())
    }

    /// What clients have to be told, given the address at which they reach this machine.
    pub fn address(&self, ip: IpAddr) -> RelayAddress {
        let udp = self.shared.wire.as_ref();
        RelayAddress {
            key: self.key,
            udp: udp.map(|wire| SocketAddr::new(ip, wire.port())),
            tls: self.tls.map(|tls| TlsAddress {
                address: SocketAddr::new(ip, tls.address.port()),
                ..tls
            }),
        }
    }

    /// Throws a node out at once. It may come again unless its ticket is refused. Whether it was there.
    pub fn forget(&self, node: &PublicKey) -> bool {
        lock(&self.shared.registry).forget(node)
    }

    /// What it did.
    pub fn statistics(&self) -> Statistics {
        lock(&self.shared.registry).statistics
    }

    /// Says goodbye to the clients, so that they go elsewhere at once, and stops.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let everybody: Vec<_> = lock(&self.shared.registry).everybody().collect();
        let mut word = Batch::default();
        for (place, session) in everybody {
            let mut frame = Vec::new();
            Frame::Goodbye { session }.write(&mut frame);
            word.clear();
            word.push(&frame);
            self.shared.deliver(place, &word);
        }
        self.shared.stopping.store(true, Ordering::Relaxed);
        for wake in [&self.shared.wake_udp, &*self.shared.wake_tls] {
            // It can only fail when it is readable already.
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the relay failed");
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Sends whole frames to one place.
    fn deliver(&self, place: Place, frames: &Batch) {
        let failed = match place {
            Place::Udp(address) => match &self.wire {
                Some(wire) => wire.send(address, frames).failed,
                None => frames.len() as u64,
            },
            Place::Stream(token, _) => {
                let outbox = lock(&self.outboxes).get(&token).cloned();
                let refused = frames.iter().filter(|frame| {
                    !outbox
                        .as_ref()
                        .is_some_and(|outbox| outbox.push(frame, &[]))
                });
                refused.count() as u64
            }
        };
        if failed > 0 {
            lock(&self.registry).statistics.queue_full += failed;
        }
    }
}

/// Datagrams on their way to one place.
#[derive(Default)]
struct Forward {
    frames: Batch,
    place: Option<Place>,
    control: Vec<u8>,
}

impl Forward {
    /// Takes one frame that came from `place`; `answer` says whether an unknown session may still be told of.
    fn take(
        &mut self,
        shared: &Shared,
        now: Instant,
        place: Place,
        bytes: &[u8],
        answer: &mut bool,
    ) {
        let Some((session, to, packet)) = data(bytes) else {
            self.control.clear();
            lock(&shared.registry).take(now, place, bytes, &mut self.control);
            return self.answer(shared, place);
        };
        let verdict = lock(&shared.registry).carry(now, place, session, to, packet);
        match verdict {
            Verdict::Carry(target, session, from) => {
                if self.place != Some(target) {
                    self.flush(shared);
                    self.place = Some(target);
                }
                let header = data_header(session, from);
                self.frames.append(header.len() + packet.len(), |space| {
                    let (head, body) = space.split_at_mut(header.len());
                    head.copy_from_slice(&header);
                    body.copy_from_slice(packet);
                    Some(header.len() + packet.len())
                });
            }
            Verdict::Unknown if *answer => {
                *answer = false;
                self.control.clear();
                Frame::Unknown { session }.write(&mut self.control);
                self.answer(shared, place);
            }
            Verdict::Unknown | Verdict::Drop => {}
        }
    }

    fn answer(&mut self, shared: &Shared, place: Place) {
        if self.control.is_empty() {
            return;
        }
        self.flush(shared);
        self.frames.push(&self.control);
        self.place = Some(place);
        self.flush(shared);
    }

    /// Sends what there is.
    fn flush(&mut self, shared: &Shared) {
        if let Some(place) = self.place.take()
            && !self.frames.is_empty()
        {
            shared.deliver(place, &self.frames);
        }
        self.frames.clear();
    }
}

/// The side of UDP. It also keeps the time.
struct Datagrams {
    shared: Arc<Shared>,
    receiver: Receiver,
    forward: Forward,
}

impl Datagrams {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            receiver: Receiver::new(),
            forward: Forward::default(),
        }
    }

    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut waits = vec![PollFd::new(&shared.wake_udp, PollFlags::IN)];
        let sockets: Vec<_> = shared.wire.iter().flat_map(Wire::sockets).collect();
        waits.extend(
            sockets
                .iter()
                .map(|socket| PollFd::new(*socket, PollFlags::IN)),
        );
        let mut tick = Instant::now();
        while !shared.stopping() {
            if let Err(error) = wait(&mut waits, SECOND) {
                tracing::error!(%error, "the relay cannot wait for datagrams");
                return;
            }
            let now = Instant::now();
            if now >= tick {
                tick = now + SECOND;
                lock(&shared.registry).tick(now);
            }
            for (wait, socket) in waits[1..].iter().zip(&sockets) {
                if wait.revents().is_empty() {
                    continue;
                }
                for _ in 0..ROUNDS {
                    let more = self.receiver.receive(socket).unwrap_or(false);
                    for (source, datagrams) in self.receiver.messages() {
                        let mut answer = true;
                        for datagram in datagrams {
                            self.forward.take(
                                &shared,
                                now,
                                Place::Udp(source),
                                datagram,
                                &mut answer,
                            );
                        }
                    }
                    self.forward.flush(&shared);
                    if !more {
                        break;
                    }
                }
            }
        }
    }
}

/// One client over TLS.
struct Open {
    stream: Stream,
    place: Place,
    deadline: Instant,
}

/// The side of TLS.
struct Connections {
    shared: Arc<Shared>,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    most: usize,
    open: HashMap<u64, Open>,
    next: u64,
}

impl Connections {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while !shared.stopping() {
            let ready = {
                let mut waits = vec![
                    PollFd::new(&*shared.wake_tls, PollFlags::IN),
                    PollFd::new(&self.listener, PollFlags::IN),
                ];
                let mut tokens = Vec::new();
                for (token, open) in &self.open {
                    tokens.push(*token);
                    waits.push(PollFd::from_borrowed_fd(
                        open.stream.as_fd(),
                        open.stream.interest(),
                    ));
                }
                if let Err(error) = wait(&mut waits, SECOND) {
                    tracing::error!(%error, "the relay cannot wait for connections");
                    return;
                }
                let ready = waits[2..].iter().zip(tokens);
                ready
                    .filter(|(wait, _)| !wait.revents().is_empty())
                    .map(|(_, token)| token)
                    .collect::<Vec<_>>()
            };
            drain(&shared.wake_tls);
            let now = Instant::now();
            self.accept(now);
            let mut forward = Forward::default();
            let mut ended = Vec::new();
            for token in ready {
                let Some(open) = self.open.get_mut(&token) else {
                    continue;
                };
                let mut answer = true;
                let place = open.place;
                let read = open.stream.read(|frame| {
                    forward.take(&shared, now, place, frame, &mut answer);
                });
                forward.flush(&shared);
                match read {
                    Ok(()) if open.stream.established() => open.deadline = now + SILENCE,
                    Ok(()) => {}
                    Err(_) => ended.push(token),
                }
            }
            for (token, open) in &mut self.open {
                if now >= open.deadline || open.stream.write().is_err() {
                    ended.push(*token);
                }
            }
            for token in ended {
                self.close(token);
            }
        }
        self.say_farewell();
    }

    fn accept(&mut self, now: Instant) {
        // Beyond what is open already: a flood of new ones must not keep the others waiting.
        for _ in 0..32 {
            let Ok((socket, address)) = self.listener.accept() else {
                return;
            };
            let Ok(tls) = ServerConnection::new(Arc::clone(&self.config)) else {
                continue;
            };
            if self.open.len() >= self.most || socket.set_nonblocking(true).is_err() {
                continue;
            }
            let outbox = Arc::new(Outbox::new(Arc::clone(&self.shared.wake_tls)));
            let token = self.next;
            self.next += 1;
            lock(&self.shared.outboxes).insert(token, Arc::clone(&outbox));
            let open = Open {
                stream: Stream::new(socket, tls.into(), outbox),
                place: Place::Stream(token, address),
                deadline: now + GREETING,
            };
            self.open.insert(token, open);
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(open) = self.open.remove(&token) {
            lock(&self.shared.outboxes).remove(&token);
            lock(&self.shared.registry).left(open.place);
        }
    }

    /// Lets the connections take what waits, for a moment.
    fn say_farewell(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            self.open.retain(|_, open| open.stream.write().is_ok());
            let mut waits: Vec<_> = self
                .open
                .values()
                .filter(|open| open.stream.interest().contains(PollFlags::OUT))
                .map(|open| PollFd::from_borrowed_fd(open.stream.as_fd(), PollFlags::OUT))
                .collect();
            if waits.is_empty() || wait(&mut waits, FAREWELL).is_err() {
                return;
            }
        }
    }
}

/// Waits for one of these, not longer than this.
fn wait(waits: &mut [PollFd<'_>], most: Duration) -> rustix::io::Result<()> {
    let timeout = Timespec {
        tv_sec: most.as_secs() as _,
        tv_nsec: most.subsec_nanos().into(),
    };
    match poll(waits, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes an event's descriptor wait again.
fn drain(event: &OwnedFd) {
    let mut count = [0; 8];
    // Nothing to read is what it should be.
    let _ = rustix::io::read(event, &mut count);
}
