//! The relays that this node uses: registered with each all the time, over UDP, or over TLS while UDP does not work.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use zeroize::Zeroizing;

use super::frame::{Frame, HEADER, LONGEST_TICKET, Short, data, data_header};
use super::outbox::Outbox;
use super::session::{Change, Session};
use super::stream::{Stream, connect};
use super::{RelayAddress, session};
use crate::batch::Batch;
use crate::clock::Clock;
use crate::error::Error;
use crate::key::PublicKey;
use crate::path::RelayId;
use crate::wire::Wire;

/// Relays that are used.
const MOST: usize = 16;

/// How long UDP is tried alone.
const UDP_FIRST: Duration = Duration::from_secs(1);
/// How long a connection that is not needed any more is still read from.
const LINGER: Duration = Duration::from_secs(2);
/// How long making a connection may take, and how soon another is tried.
const CONNECTING: Duration = Duration::from_secs(10);
/// The pause after a connection that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the connections' thread looks at the time.
const TICK: Duration = Duration::from_millis(100);
/// Frames from connections that wait for the inbound thread.
const MOST_FRAMES: usize = 2048;

/// What sends datagrams from the socket that relays see.
pub(crate) trait Post {
    /// Sends all there; how many could not be sent.
    fn post(&self, to: SocketAddr, datagrams: &Batch) -> u64;
}

impl Post for Wire {
    fn post(&self, to: SocketAddr, datagrams: &Batch) -> u64 {
        self.send(to, datagrams).failed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event() -> Result<OwnedFd, Error> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Error::io("make an event descriptor", error))
}

/// How a relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayStatus {
    /// Who it is.
    pub key: PublicKey,
    /// Whether this node is registered there over UDP.
    pub udp: bool,
    /// Whether this node is registered there over TLS.
    pub tls: bool,
    /// Where the relay sees this node's UDP socket.
    pub seen: Option<SocketAddr>,
    /// How long its last answer took.
    pub round_trip: Option<Duration>,
}

/// One relay as a client has it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: RelayId,
    pub(crate) address: RelayAddress,
    /// The sessions' numbers, 0 for none.
    udp_session: AtomicU32,
    tls_session: AtomicU32,
    /// The relay saw this node at another address than before.
    moved: AtomicBool,
    state: Mutex<LinkState>,
    outbox: Arc<Outbox>,
}

#[derive(Debug)]
struct LinkState {
    udp: Session,
    tls: Session,
    seen: Option<SocketAddr>,
    /// When UDP was tried first, until it works.
    udp_out: Option<Instant>,
}

impl Link {
    /// One of the relay's addresses.
    pub(crate) fn place(&self) -> Option<SocketAddr> {
        self.address
            .udp
            .or_else(|| self.address.tls.map(|tls| tls.address))
    }

    /// Whether data can be sent.
    pub(crate) fn usable(&self) -> bool {
        self.udp_session.load(Ordering::Relaxed) != 0
            || self.tls_session.load(Ordering::Relaxed) != 0
    }

    /// The session's number over UDP, 0 for none.
    pub(crate) fn udp_session(&self) -> u32 {
        self.udp_session.load(Ordering::Relaxed)
    }

    /// Sends all datagrams to the node; how many could not be sent. `framed` is room to work in.
    pub(crate) fn send(
        &self,
        post: &dyn Post,
        to: Short,
        batch: &Batch,
        framed: &mut Batch,
    ) -> u64 {
        let udp = self.udp_session();
        if udp != 0
            && let Some(address) = self.address.udp
        {
            let header = data_header(udp, to);
            framed.clear();
            for packet in batch.iter() {
                framed.append(HEADER + packet.len(), |space| {
                    let (head, body) = space.split_at_mut(HEADER);
                    head.copy_from_slice(&header);
                    body.copy_from_slice(packet);
                    Some(HEADER + packet.len())
                });
            }
            return post.post(address, framed);
        }
        let tls = self.tls_session.load(Ordering::Relaxed);
        if tls == 0 {
            return batch.len() as u64;
        }
        let header = data_header(tls, to);
        let refused = batch
            .iter()
            .filter(|packet| !self.outbox.push(&header, packet));
        refused.count() as u64
    }

    /// Lets time pass for the registration over UDP. Whether something changed.
    pub(crate) fn tick(&self, now: Instant, post: &dyn Post) -> bool {
        let Some(address) = self.address.udp else {
            return false;
        };
        let mut out = Vec::new();
        let change = lock(&self.state).udp.tick(now, &mut out);
        send_one(post, address, &out);
        self.apply_udp(change)
    }

    /// Takes a frame that came from the relay over UDP and is no data. Whether something changed.
    pub(crate) fn take(&self, now: Instant, post: &dyn Post, frame: &[u8]) -> bool {
        let Some(address) = self.address.udp else {
            return false;
        };
        let mut out = Vec::new();
        let change = lock(&self.state).udp.take(now, frame, &mut out);
        send_one(post, address, &out);
        self.apply_udp(change)
    }

    /// Says goodbye. A relay to which there is a connection learns it by that.
    fn leave(&self, post: &dyn Post) {
        let session = self.udp_session.swap(0, Ordering::Relaxed);
        if let (Some(address), true) = (self.address.udp, session != 0) {
            let mut frame = Vec::new();
            Frame::Goodbye { session }.write(&mut frame);
            send_one(post, address, &frame);
        }
    }

    /// Asks the relay whether it is there, as nothing comes over it.
    pub(crate) fn check(&self, now: Instant) {
        let mut state = lock(&self.state);
        if self.udp_session() != 0 {
            state.udp.check(now);
        } else {
            state.tls.check(now);
        }
    }

    fn apply_udp(&self, change: Change) -> bool {
        match change {
            Change::None => false,
            Change::In { session, seen } => {
                let mut state = lock(&self.state);
                state.udp_out = None;
                let before = state.seen.replace(seen);
                let moved = before != Some(seen);
                if before.is_some_and(|before| before.ip() != seen.ip()) {
                    self.moved.store(true, Ordering::Relaxed);
                }
                self.udp_session.swap(session, Ordering::Relaxed) == 0 || moved
            }
            Change::Out => {
                // It was asked several times already: no more waiting.
                lock(&self.state).udp_out = None;
                self.udp_session.swap(0, Ordering::Relaxed) != 0
            }
        }
    }

    fn apply_tls(&self, change: Change) -> bool {
        match change {
            Change::None => false,
            Change::In { session, .. } => self.tls_session.swap(session, Ordering::Relaxed) == 0,
            Change::Out => self.tls_session.swap(0, Ordering::Relaxed) != 0,
        }
    }

    /// Whether a connection is needed.
    fn needs_tls(&self, now: Instant) -> bool {
        self.address.tls.is_some()
            && self.udp_session() == 0
            && (self.address.udp.is_none()
                || lock(&self.state)
                    .udp_out
                    .is_none_or(|since| now.saturating_duration_since(since) >= UDP_FIRST))
    }
}

fn send_one(post: &dyn Post, to: SocketAddr, frame: &[u8]) {
    if !frame.is_empty() {
        let mut batch = Batch::default();
        batch.push(frame);
        // What is lost is asked again.
        post.post(to, &batch);
    }
}

/// All relays, and what came over connections to them.
#[derive(Debug)]
pub(crate) struct Relays {
    list: RwLock<Vec<Arc<Link>>>,
    next: AtomicU32,
    /// Something about them changed that peers have to be told.
    changed: AtomicBool,
    shifted: AtomicBool,
    /// Wakes the connections' thread.
    wake: Arc<OwnedFd>,
    frames: Mutex<Vec<(Arc<Link>, Vec<u8>)>>,
    /// Wakes a thread that waits for it.
    pub(crate) arrived: OwnedFd,
    /// A task that waits for it.
    waiting: Mutex<Option<Waker>>,
}

impl Relays {
    /// None yet.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            list: RwLock::default(),
            next: AtomicU32::new(1),
            changed: AtomicBool::new(false),
            shifted: AtomicBool::new(false),
            wake: Arc::new(event()?),
            frames: Mutex::default(),
            arrived: event()?,
            waiting: Mutex::default(),
        })
    }

    fn list(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Link>>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relays there are.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.list().clone()
    }

    /// The relay with this number.
    pub(crate) fn get(&self, id: RelayId) -> Option<Arc<Link>> {
        self.list().iter().find(|link| link.id == id).cloned()
    }

    /// The relay that sends datagrams from there.
    pub(crate) fn at(&self, source: SocketAddr) -> Option<Arc<Link>> {
        let list = self.list();
        list.iter()
            .find(|link| link.address.udp == Some(source))
            .cloned()
    }

    /// Takes another list, the preferred first, for the node with this key, which has with a relay what `agree` says. At most 16 are used.
    /// `ticket` is shown to all of them. Those that stay keep their registrations, the others are left.
    pub(crate) fn set(
        &self,
        post: &dyn Post,
        node: PublicKey,
        relays: &[RelayAddress],
        ticket: &[u8],
        now: Instant,
        agree: impl Fn(&PublicKey) -> Option<Zeroizing<[u8; 32]>>,
    ) {
        let ticket: Arc<[u8]> = ticket[..ticket.len().min(LONGEST_TICKET)].into();
        let session = |relay: &RelayAddress| {
            let secret = agree(&relay.key)?;
            let ticket = Arc::clone(&ticket);
            Some(session(node, &relay.key, &secret, ticket, now))
        };
        let before = self.all();
        let mut list = Vec::new();
        for address in relays.iter().take(MOST) {
            let known = before.iter().find(|link| link.address == *address);
            if let Some(link) = known {
                let mut state = lock(&link.state);
                state.udp.set_ticket(Arc::clone(&ticket));
                state.tls.set_ticket(Arc::clone(&ticket));
                drop(state);
                list.push(Arc::clone(link));
                continue;
            }
            let (Some(udp), Some(tls)) = (session(address), session(address)) else {
                continue;
            };
            list.push(Arc::new(Link {
                id: RelayId(self.next.fetch_add(1, Ordering::Relaxed)),
                address: address.clone(),
                udp_session: AtomicU32::new(0),
                tls_session: AtomicU32::new(0),
                moved: AtomicBool::new(false),
                state: Mutex::new(LinkState {
                    udp,
                    tls,
                    seen: None,
                    udp_out: Some(now),
                }),
                outbox: Arc::new(Outbox::new(Arc::clone(&self.wake))),
            }));
        }
        for gone in before {
            if !list.iter().any(|link| Arc::ptr_eq(link, &gone)) {
                gone.leave(post);
            }
        }
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = list;
        self.note_change();
        self.rouse();
    }

    /// Whether something changed since this was asked last.
    pub(crate) fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// This machine's addresses changed: relays are asked where they see it, and ways are looked at as if it had been said.
    pub(crate) fn shift(&self, now: Instant) {
        for link in self.list().iter() {
            link.check(now);
        }
        self.shifted.store(true, Ordering::Relaxed);
    }

    /// Whether this node was seen at another address since this was asked last, or moved.
    pub(crate) fn take_move(&self) -> bool {
        let shifted = self.shifted.swap(false, Ordering::Relaxed);
        let list = self.list();
        let moved = list
            .iter()
            .filter(|link| link.moved.swap(false, Ordering::Relaxed));
        moved.count() > 0 || shifted
    }

    pub(crate) fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Wakes the connections' thread.
    pub(crate) fn rouse(&self) {
        // It can only fail when it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Where relays see this node.
    pub(crate) fn seen(&self) -> Vec<SocketAddr> {
        let mut seen = Vec::new();
        for link in self.list().iter() {
            if let Some(address) = lock(&link.state).seen
                && link.udp_session() != 0
                && !seen.contains(&address)
            {
                seen.push(address);
            }
        }
        seen
    }

    pub(crate) fn status(&self) -> Vec<RelayStatus> {
        let links = self.all();
        let status = links.iter().map(|link| {
            let udp = link.udp_session() != 0;
            let state = lock(&link.state);
            let session = if udp { &state.udp } else { &state.tls };
            RelayStatus {
                key: link.address.key,
                udp,
                tls: link.tls_session.load(Ordering::Relaxed) != 0,
                seen: state.seen,
                round_trip: session.round_trip(),
            }
        });
        status.collect()
    }

    /// What came over connections since it was asked last.
    pub(crate) fn arrivals(&self) -> Vec<(Arc<Link>, Vec<u8>)> {
        let mut count = [0; 8];
        // Nothing to read is as well.
        let _ = rustix::io::read(&self.arrived, &mut count);
        std::mem::take(&mut *lock(&self.frames))
    }

    /// The same for a task, which is woken when there is something.
    pub(crate) fn poll_arrivals(&self, context: &Context<'_>) -> Poll<Vec<(Arc<Link>, Vec<u8>)>> {
        // First this, so that what arrives meanwhile is noticed.
        *lock(&self.waiting) = Some(context.waker().clone());
        match self.arrivals() {
            none if none.is_empty() => Poll::Pending,
            some => Poll::Ready(some),
        }
    }

    fn arrive(&self, link: &Arc<Link>, frame: &[u8]) {
        let mut frames = lock(&self.frames);
        if frames.len() < MOST_FRAMES {
            frames.push((Arc::clone(link), frame.to_vec()));
            if let Some(task) = lock(&self.waiting).take() {
                task.wake();
            }
            // It can only fail when it is readable already.
            let _ = rustix::io::write(&self.arrived, &1u64.to_ne_bytes());
        }
    }

    /// Says goodbye to all relays.
    pub(crate) fn leave(&self, post: &dyn Post) {
        for link in self.all() {
            link.leave(post);
        }
    }
}

/// A connection to one relay.
struct Connection {
    link: Arc<Link>,
    stream: Stream,
    since: Instant,
    /// Since when it is not needed.
    idle: Option<Instant>,
}

/// The connections to relays, for a thread of their own.
pub(crate) struct Connections {
    relays: Arc<Relays>,
    clock: Arc<dyn Clock>,
    stopping: Arc<AtomicBool>,
    open: HashMap<RelayId, Connection>,
    failed: HashMap<RelayId, Instant>,
}

impl Connections {
    /// None yet. Who sets `stopping` and [rouses](Relays::rouse) ends them.
    pub(crate) fn new(
        relays: Arc<Relays>,
        clock: Arc<dyn Clock>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            relays,
            clock,
            stopping,
            open: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    pub(crate) fn run(mut self) {
        let relays = Arc::clone(&self.relays);
        while !self.stopping.load(Ordering::Relaxed) {
            self.wait();
            let now = self.clock.now();
            let links = relays.all();
            self.failed
                .retain(|_, at| now.saturating_duration_since(*at) < PAUSE);
            for link in &links {
                self.connect(link, now);
            }
            let mut ended = Vec::new();
            for (id, connection) in &mut self.open {
                let listed = links.iter().any(|link| Arc::ptr_eq(link, &connection.link));
                if !listed || connection.serve(&relays, now).is_err() {
                    ended.push(*id);
                }
            }
            for id in ended {
                if let Some(connection) = self.open.remove(&id) {
                    self.failed.insert(id, now);
                    if connection.link.apply_tls(Change::Out) {
                        relays.note_change();
                    }
                }
            }
        }
    }

    fn wait(&self) {
        let relays = &self.relays;
        let mut waits = vec![PollFd::new(&*relays.wake, PollFlags::IN)];
        for connection in self.open.values() {
            let stream = &connection.stream;
            waits.push(PollFd::from_borrowed_fd(stream.as_fd(), stream.interest()));
        }
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        // An interruption is as good as the end of the wait.
        let _ = poll(&mut waits, Some(&timeout));
        let mut count = [0; 8];
        // Nothing to read is as well.
        let _ = rustix::io::read(&*relays.wake, &mut count);
    }

    fn connect(&mut self, link: &Arc<Link>, now: Instant) {
        if self.open.contains_key(&link.id)
            || self.failed.contains_key(&link.id)
            || !link.needs_tls(now)
        {
            return;
        }
        let Some(tls) = &link.address.tls else {
            return;
        };
        link.outbox.clear();
        lock(&link.state).tls.restart(now);
        match connect(tls, Arc::clone(&link.outbox)) {
            Ok(stream) => {
                let connection = Connection {
                    link: Arc::clone(link),
                    stream,
                    since: now,
                    idle: None,
                };
                self.open.insert(link.id, connection);
            }
            Err(error) => {
                tracing::debug!(%error, relay = %link.address.key, "cannot connect to the relay");
                self.failed.insert(link.id, now);
            }
        }
    }
}

impl Connection {
    /// Reads, registers and writes.
    fn serve(&mut self, relays: &Relays, now: Instant) -> std::io::Result<()> {
        let ended = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let link = &self.link;
        let mut changed = false;
        self.stream.read(|frame| {
            if let Some((session, ..)) = data(frame) {
                // A session that just ended may still deliver.
                if session != 0 {
                    relays.arrive(link, frame);
                }
                return;
            }
            let mut out = Vec::new();
            let change = lock(&link.state).tls.take(now, frame, &mut out);
            changed |= link.apply_tls(change);
            if !out.is_empty() {
                link.outbox.push(&out, &[]);
            }
        })?;
        if self.stream.established() {
            let needed = link.udp_session() == 0;
            if needed {
                self.idle = None;
                let mut out = Vec::new();
                let change = lock(&link.state).tls.tick(now, &mut out);
                changed |= link.apply_tls(change);
                if !out.is_empty() {
                    link.outbox.push(&out, &[]);
                }
            } else if now.saturating_duration_since(*self.idle.get_or_insert(now)) >= LINGER {
                return Err(ended());
            }
        } else if now.saturating_duration_since(self.since) >= CONNECTING {
            return Err(ended());
        }
        if changed {
            relays.note_change();
        }
        self.stream.write()
    }
}
