//! The relays that this node uses: registered with each all the time, over UDP, or over TLS while UDP does not work.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{event, lock, read};
use crate::batch::Batch;
use crate::key::PublicKey;
use crate::path::RelayId;
use crate::relay::{
    Change, HEADER, Outbox, RelayAddress, Session, Short, Stream, connect, data, data_header,
};
use crate::wire::Wire;

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
}

/// One relay as a client has it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: RelayId,
    pub(super) address: RelayAddress,
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
    pub(super) fn place(&self) -> Option<SocketAddr> {
        self.address
            .udp
            .or_else(|| self.address.tls.map(|tls| tls.address))
    }

    /// Whether data can be sent.
    pub(super) fn usable(&self) -> bool {
        self.udp_session.load(Ordering::Relaxed) != 0
            || self.tls_session.load(Ordering::Relaxed) != 0
    }

    /// The session's number over UDP, 0 for none.
    pub(super) fn udp_session(&self) -> u32 {
        self.udp_session.load(Ordering::Relaxed)
    }

    /// Sends all datagrams to the node; how many could not be sent.
    pub(super) fn send(&self, wire: &Wire, to: Short, batch: &Batch, framed: &mut Batch) -> u64 {
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
            return wire.send(address, framed).failed;
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
    pub(super) fn tick(&self, now: Instant, wire: &Wire) -> bool {
        let Some(address) = self.address.udp else {
            return false;
        };
        let mut out = Vec::new();
        let change = lock(&self.state).udp.tick(now, &mut out);
        send_one(wire, address, &out);
        self.apply_udp(change)
    }

    /// Takes a frame that came from the relay over UDP and is no data. Whether something changed.
    pub(super) fn take(&self, now: Instant, wire: &Wire, frame: &[u8]) -> bool {
        let Some(address) = self.address.udp else {
            return false;
        };
        let mut out = Vec::new();
        let change = lock(&self.state).udp.take(now, frame, &mut out);
        send_one(wire, address, &out);
        self.apply_udp(change)
    }

    /// Says goodbye. A relay to which there is a connection learns it by that.
    fn leave(&self, wire: &Wire) {
        let session = self.udp_session.swap(0, Ordering::Relaxed);
        if let (Some(address), true) = (self.address.udp, session != 0) {
            let mut frame = Vec::new();
            crate::relay::Frame::Goodbye { session }.write(&mut frame);
            send_one(wire, address, &frame);
        }
    }

    /// Asks the relay whether it is there, as nothing comes over it.
    pub(super) fn check(&self, now: Instant) {
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

fn send_one(wire: &Wire, to: SocketAddr, frame: &[u8]) {
    if !frame.is_empty() {
        let mut batch = Batch::default();
        batch.push(frame);
        wire.send(to, &batch);
    }
}

/// All relays, and what came over connections to them.
#[derive(Debug)]
pub(super) struct Relays {
    list: RwLock<Vec<Arc<Link>>>,
    next: AtomicU32,
    /// Something about them changed that peers have to be told.
    changed: AtomicBool,
    /// Wakes the connections' thread.
    wake: Arc<OwnedFd>,
    frames: Mutex<Vec<(Arc<Link>, Vec<u8>)>>,
    /// Wakes the inbound thread.
    pub(super) arrived: OwnedFd,
}

impl Relays {
    pub(super) fn new() -> Result<Self, crate::Error> {
        Ok(Self {
            list: RwLock::default(),
            next: AtomicU32::new(1),
            changed: AtomicBool::new(false),
            wake: Arc::new(event()?),
            frames: Mutex::default(),
            arrived: event()?,
        })
    }

    /// The relays there are.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        read(&self.list).clone()
    }

    /// The relay with this number.
    pub(super) fn get(&self, id: RelayId) -> Option<Arc<Link>> {
        read(&self.list).iter().find(|link| link.id == id).cloned()
    }

    /// The relay that sends datagrams from there.
    pub(super) fn at(&self, source: SocketAddr) -> Option<Arc<Link>> {
        let list = read(&self.list);
        list.iter()
            .find(|link| link.address.udp == Some(source))
            .cloned()
    }

    /// Takes another list; those that stay keep their registrations, the others are left.
    pub(super) fn set(
        &self,
        wire: &Wire,
        relays: &[RelayAddress],
        ticket: &Arc<[u8]>,
        now: Instant,
        session: impl Fn(&RelayAddress) -> Option<Session>,
    ) {
        let before = self.all();
        let mut list = Vec::new();
        for address in relays {
            let known = before.iter().find(|link| link.address == *address);
            if let Some(link) = known {
                let mut state = lock(&link.state);
                state.udp.set_ticket(Arc::clone(ticket));
                state.tls.set_ticket(Arc::clone(ticket));
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
                gone.leave(wire);
            }
        }
        *self
            .list
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = list;
        self.note_change();
        self.rouse();
    }

    /// Whether something changed since this was asked last.
    pub(super) fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// Whether this node was seen at another address since this was asked last.
    pub(super) fn take_move(&self) -> bool {
        let list = read(&self.list);
        let moved = list
            .iter()
            .filter(|link| link.moved.swap(false, Ordering::Relaxed));
        moved.count() > 0
    }

    pub(super) fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Wakes the connections' thread.
    pub(super) fn rouse(&self) {
        // It can only fail when it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Where relays see this node.
    pub(super) fn seen(&self) -> Vec<SocketAddr> {
        let mut seen = Vec::new();
        for link in read(&self.list).iter() {
            if let Some(address) = lock(&link.state).seen
                && link.udp_session() != 0
                && !seen.contains(&address)
            {
                seen.push(address);
            }
        }
        seen
    }

    pub(super) fn status(&self) -> Vec<RelayStatus> {
        let links = self.all();
        let status = links.iter().map(|link| RelayStatus {
            key: link.address.key,
            udp: link.udp_session() != 0,
            tls: link.tls_session.load(Ordering::Relaxed) != 0,
            seen: lock(&link.state).seen,
        });
        status.collect()
    }

    /// What came over connections since it was asked last.
    pub(super) fn arrivals(&self) -> Vec<(Arc<Link>, Vec<u8>)> {
        let mut count = [0; 8];
        // Nothing to read is as well.
        let _ = rustix::io::read(&self.arrived, &mut count);
        std::mem::take(&mut *lock(&self.frames))
    }

    fn arrive(&self, link: &Arc<Link>, frame: &[u8]) {
        let mut frames = lock(&self.frames);
        if frames.len() < MOST_FRAMES {
            frames.push((Arc::clone(link), frame.to_vec()));
            // It can only fail when it is readable already.
            let _ = rustix::io::write(&self.arrived, &1u64.to_ne_bytes());
        }
    }

    /// Says goodbye to all relays.
    pub(super) fn leave(&self, wire: &Wire) {
        for link in self.all() {
            link.leave(wire);
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
pub(super) struct Connections {
    shared: Arc<super::Shared>,
    open: HashMap<RelayId, Connection>,
    failed: HashMap<RelayId, Instant>,
}

impl Connections {
    pub(super) fn new(shared: Arc<super::Shared>) -> Self {
        Self {
            shared,
            open: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while !shared.stopping() {
            self.wait();
            let now = shared.clock.now();
            let links = shared.relays.all();
            self.failed
                .retain(|_, at| now.saturating_duration_since(*at) < PAUSE);
            for link in &links {
                self.connect(link, now);
            }
            let mut ended = Vec::new();
            for (id, connection) in &mut self.open {
                let listed = links.iter().any(|link| Arc::ptr_eq(link, &connection.link));
                if !listed || connection.serve(&shared, now).is_err() {
                    ended.push(*id);
                }
            }
            for id in ended {
                if let Some(connection) = self.open.remove(&id) {
                    self.failed.insert(id, now);
                    if connection.link.apply_tls(Change::Out) {
                        shared.relays.note_change();
                    }
                }
            }
        }
    }

    fn wait(&self) {
        let relays = &self.shared.relays;
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
    fn serve(&mut self, shared: &super::Shared, now: Instant) -> std::io::Result<()> {
        let ended = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let link = &self.link;
        let mut changed = false;
        self.stream.read(|frame| {
            if let Some((session, ..)) = data(frame) {
                // A session that just ended may still deliver.
                if session != 0 {
                    shared.relays.arrive(link, frame);
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
            shared.relays.note_change();
        }
        self.stream.write()
    }
}
