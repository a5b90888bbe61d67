//! From the peers to the device.

use std::io::IoSlice;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::event::{PollFd, PollFlags, poll};

use super::letter::Letter;
use super::paths::Prober;
use super::peer::Peer;
use super::signal;
use super::statistics::{many, one};
use super::{Shared, gone, read};
use crate::batch::Batch;
use crate::crypto::{Kind, STRANDS};
use crate::offload::coalesce::{Coalescer, LONGEST_HEADERS, MOST_PIECES};
use crate::packet::addresses;
use crate::policy::Direction;
use crate::relay::{HEADER, Short, data, marked};
use crate::tun::Offload;
use crate::ways::Way;
use crate::ways::signal::Signal;
use crate::wire::Receiver;

/// Rounds at one socket before the other has its turn.
const ROUNDS: usize = 4;
/// Bytes of opened packets before they are written: enough to fill what the kernel takes at once.
const ENOUGH: usize = 128 * 1024;

pub(super) struct Inbound {
    shared: Arc<Shared>,
    letters: SyncSender<Letter>,
    receiver: Receiver,
    state: Opening,
}

/// What is on its way from the wire to the device.
struct Opening {
    plain: Batch,
    replies: Batch,
    framed: Batch,
    signals: Vec<Signal>,
    prober: Prober,
    coalescer: Coalescer,
    /// The peer of the datagram before; most come from the same.
    peer: Option<Arc<Peer>>,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, letters: SyncSender<Letter>) -> Self {
        let udp = shared.tun.offload() == Offload::TcpAndUdp;
        Self {
            shared,
            letters,
            receiver: Receiver::new(),
            state: Opening {
                plain: Batch::with_capacity(ENOUGH + 65_536),
                replies: Batch::default(),
                framed: Batch::default(),
                signals: Vec::new(),
                prober: Prober::default(),
                coalescer: Coalescer::new(udp),
                peer: None,
            },
        }
    }

    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut waits: Vec<_> = shared
            .wire
            .sockets()
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        waits.push(PollFd::new(&shared.relays.arrived, PollFlags::IN));
        waits.push(PollFd::new(&shared.wake, PollFlags::IN));
        while !shared.stopping() {
            match poll(&mut waits, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for datagrams");
                    return;
                }
            }
            for (wait, socket) in waits.iter().zip(shared.wire.sockets()) {
                if wait.revents().is_empty() {
                    continue;
                }
                for _ in 0..ROUNDS {
                    let more = match self.receiver.receive(socket) {
                        Ok(more) => more,
                        Err(error) => {
                            // An error of an earlier datagram, told now; it is over with this.
                            tracing::debug!(%error, "cannot receive");
                            false
                        }
                    };
                    if !self.take_all() {
                        tracing::error!(device = shared.tun.name(), "the TUN device is gone");
                        return;
                    }
                    if !more {
                        break;
                    }
                }
            }
            if !waits[waits.len() - 2].revents().is_empty() && !self.take_arrivals() {
                tracing::error!(device = shared.tun.name(), "the TUN device is gone");
                return;
            }
            // A peer that was removed must not be kept by this.
            self.state.peer = None;
        }
    }

    /// Opens what was received, and writes it. Whether the device is still there.
    fn take_all(&mut self) -> bool {
        let counters = &self.shared.counters;
        for (source, datagrams) in self.receiver.messages() {
            let way = Way::Direct(source);
            let mut datagrams = datagrams.peekable();
            while let Some(datagram) = datagrams.next() {
                match Kind::of(datagram) {
                    Some(Kind::Data(index)) => {
                        let same = |next: &&[u8]| Kind::of(next) == Some(Kind::Data(index));
                        let mut run = std::iter::once(datagram)
                            .chain(std::iter::from_fn(|| datagrams.next_if(same)));
                        self.state.open(&self.shared, &way, index, &mut run);
                    }
                    Some(_) => post(&self.shared, &self.letters, way.clone(), datagram),
                    None if marked(datagram) => {
                        let Some(link) = self.shared.relays.at(source) else {
                            one(&counters.malformed);
                            continue;
                        };
                        let Some((session, from, packet)) = data(datagram) else {
                            // A word of the relay's own.
                            let nobody = Short([0; 12]);
                            post(
                                &self.shared,
                                &self.letters,
                                Way::Relay(link, nobody),
                                datagram,
                            );
                            continue;
                        };
                        if session != link.udp_session() {
                            one(&counters.unknown_session);
                            continue;
                        }
                        let way = Way::Relay(link, from);
                        match Kind::of(packet) {
                            Some(Kind::Data(index)) => {
                                let same = |next: &&[u8]| {
                                    next.get(..HEADER) == datagram.get(..HEADER)
                                        && Kind::of(&next[HEADER..]) == Some(Kind::Data(index))
                                };
                                let rest = std::iter::from_fn(|| datagrams.next_if(same));
                                let mut run =
                                    std::iter::once(packet).chain(rest.map(|next| &next[HEADER..]));
                                self.state.open(&self.shared, &way, index, &mut run);
                            }
                            Some(_) => post(&self.shared, &self.letters, way, packet),
                            None => one(&counters.malformed),
                        }
                    }
                    None => one(&counters.malformed),
                }
            }
            if self.state.plain.size() >= ENOUGH && !self.state.write(&self.shared) {
                return false;
            }
        }
        self.state.write(&self.shared)
    }

    /// The same for what came over connections to relays.
    fn take_arrivals(&mut self) -> bool {
        for (link, frame) in self.shared.relays.arrivals() {
            let Some((_, from, packet)) = data(&frame) else {
                continue;
            };
            let way = Way::Relay(link, from);
            match Kind::of(packet) {
                Some(Kind::Data(index)) => {
                    let mut run = std::iter::once(packet);
                    self.state.open(&self.shared, &way, index, &mut run);
                }
                Some(_) => post(&self.shared, &self.letters, way, packet),
                None => one(&self.shared.counters.malformed),
            }
            if self.state.plain.size() >= ENOUGH && !self.state.write(&self.shared) {
                return false;
            }
        }
        self.state.write(&self.shared)
    }
}

/// Hands a message that is not data to the keeper.
fn post(shared: &Shared, letters: &SyncSender<Letter>, source: Way, message: &[u8]) {
    let sent = Letter::new(source, message).is_some_and(|letter| letters.try_send(letter).is_ok());
    if !sent {
        one(&shared.counters.flooded);
    }
}

impl Opening {
    /// Opens messages of one session that came together.
    fn open(
        &mut self,
        shared: &Shared,
        source: &Way,
        index: u32,
        messages: &mut dyn Iterator<Item = &[u8]>,
    ) {
        let same = |peer: &Arc<Peer>| peer.index == index & !(STRANDS - 1);
        if !self.peer.as_ref().is_some_and(same) {
            self.peer = read(&shared.table).by_index(index);
        }
        let Some(peer) = &self.peer else {
            for _ in messages {
                one(&shared.counters.unknown_session);
            }
            return;
        };
        let from = self.plain.len();
        let opened = {
            let mut state = peer.lock();
            let opened = state
                .tunnel
                .open(messages, &mut self.plain, &mut self.replies);
            if opened.authentic() {
                peer.heard_from(shared, &mut state, source);
            }
            opened
        };
        peer.count_opened(&opened);
        if !self.replies.is_empty() {
            peer.count_not_sent(source.send(&shared.wire, &self.replies, &mut self.framed));
            self.replies.clear();
        }
        let mut foreign = 0;
        let mut denied = 0;
        let mut traffic = false;
        let mut last: Option<(IpAddr, bool)> = None;
        for place in from..self.plain.len() {
            let Some(found) = self.plain.get(place).and_then(addresses) else {
                foreign += 1;
                continue;
            };
            let own = match last {
                Some((address, own)) if address == found.source => own,
                _ => read(&shared.table).owns(found.source, peer),
            };
            last = Some((found.source, own));
            if own {
                let packet = self.plain.get(place).unwrap_or(&[]);
                if shared.admits(&peer.public_key, Direction::Inbound, packet) {
                    if let Some(translation) = shared.translation() {
                        // Judged by the addresses that the mesh knows, delivered to those of the cluster.
                        translation.inward(self.plain.get_mut(place).unwrap_or_default());
                    }
                    self.coalescer.add(&self.plain, place);
                    traffic = true;
                } else {
                    denied += 1;
                }
            } else if found.source == IpAddr::from(signal::ADDRESS)
                && let Some(signal) = self.plain.get(place).and_then(signal::read)
            {
                self.signals.push(signal);
            } else {
                foreign += 1;
            }
        }
        peer.count_foreign_source(foreign);
        many(&shared.counters.denied_inbound, denied);
        if traffic {
            peer.note_traffic();
        }
        for signal in self.signals.drain(..) {
            self.prober.take(shared, peer, source, signal);
        }
    }

    /// Writes what was opened to the device. Whether the device is still there.
    fn write(&mut self, shared: &Shared) -> bool {
        let mut there = true;
        if shared.tun.header() == 0 {
            for packet in self.coalescer.packets(&self.plain) {
                there &= deliver(shared, &[IoSlice::new(packet)]);
            }
        } else {
            for frame in self.coalescer.frames() {
                let mut headers = [0; LONGEST_HEADERS];
                let mut pieces = [&[][..]; MOST_PIECES];
                let (header, count) =
                    self.coalescer
                        .pieces(&self.plain, frame, &mut headers, &mut pieces);
                let header = header.write();
                let mut slices = [IoSlice::new(&[]); 1 + MOST_PIECES];
                slices[0] = IoSlice::new(&header);
                for (slice, piece) in slices[1..].iter_mut().zip(&pieces[..count]) {
                    *slice = IoSlice::new(piece);
                }
                there &= deliver(shared, &slices[..=count]);
            }
        }
        self.coalescer.clear();
        self.plain.clear();
        there
    }
}

/// Writes one packet; false if the device is gone.
fn deliver(shared: &Shared, pieces: &[IoSlice<'_>]) -> bool {
    match shared.tun.write(pieces) {
        Ok(()) => true,
        Err(error) => {
            one(&shared.counters.not_delivered);
            !gone(&error)
        }
    }
}
