//! From the device to the peers.

use std::io::IoSlice;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::peer::Peer;
use super::queue::{FlowQueue, flow_of};
use super::signal;
use super::statistics::{many, one};
use super::{Shared, gone, read};
use crate::batch::Batch;
use crate::crypto::padded;
use crate::offload::segment::segment;
use crate::offload::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::addresses;
use crate::policy::Direction;
use crate::tun::LARGEST;
use crate::ways::signal::Signal;

/// Packets that are read before the first of them is sent.
const READS: usize = 128;
/// Bytes that are sealed before they are sent: one large packet of the kernel's. More would make the
/// first wait for the last.
const ENOUGH: usize = 48 * 1024;

pub(super) struct Outbound {
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    queue: FlowQueue,
    batches: Batches,
}

/// What is on its way from the queue to the wire.
struct Batches {
    plain: Batch,
    sealed: Batch,
    /// The same with a relay's headers.
    framed: Batch,
    /// Whom `plain` is for.
    target: Option<Arc<Peer>>,
}

/// Asks a peer that is probed for an answer; whether it is one.
pub(super) fn probe(shared: &Shared, peer: &Peer) -> bool {
    if peer.lock().paths.is_none() {
        return false;
    }
    let mut batches = Batches {
        plain: Batch::default(),
        sealed: Batch::default(),
        framed: Batch::default(),
        target: None,
    };
    // Nobody waits for the answer to this one: it opens the session, and probes of the agent's follow.
    batches.plain.push(&signal::packet(&Signal::Ask(0)));
    batches.send_to(shared, peer);
    true
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let room = VIRTIO_HEADER + LARGEST;
        Self {
            shared,
            buffer: vec![0; room],
            queue: FlowQueue::new(room),
            batches: Batches {
                plain: Batch::with_capacity(2 * LARGEST),
                sealed: Batch::with_capacity(2 * LARGEST),
                framed: Batch::default(),
                target: None,
            },
        }
    }

    pub(super) fn run(mut self) {
        let mut idle = true;
        while !self.shared.stopping() {
            if idle && !self.wait() {
                return;
            }
            if !self.read() {
                tracing::error!(device = self.shared.tun.name(), "the TUN device is gone");
                return;
            }
            // One batch; then it is looked again whether somebody came who goes first.
            idle = loop {
                let Some(mut packet) = self.queue.pop() else {
                    break true;
                };
                self.batches.add(&self.shared, packet.bytes());
                self.queue.give_back(packet);
                if self.batches.plain.size() >= ENOUGH {
                    break false;
                }
            };
            self.batches.send(&self.shared);
        }
    }

    /// Waits for packets or the end. Whether that is possible.
    fn wait(&self) -> bool {
        let waited = poll(
            &mut [
                PollFd::new(&self.shared.tun, PollFlags::IN),
                PollFd::new(&self.shared.wake, PollFlags::IN),
            ],
            None::<&Timespec>,
        );
        match waited {
            Ok(_) | Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                tracing::error!(%error, "cannot wait for packets");
                false
            }
        }
    }

    /// Takes what the device has into the queue. Whether the device is still there.
    fn read(&mut self) -> bool {
        let header = self.shared.tun.header();
        for _ in 0..READS {
            match self.shared.tun.read(&mut self.buffer) {
                Ok(Some(length)) => {
                    let packet = self.buffer.get(header..length).unwrap_or(&[]);
                    match addresses(packet) {
                        Some(found) => {
                            let flow = flow_of(packet, &found);
                            let dropped = self.queue.push(flow, &mut self.buffer, length);
                            many(&self.shared.counters.queue_full, dropped);
                        }
                        None => one(&self.shared.counters.not_ip),
                    }
                }
                Ok(None) => break,
                Err(error) if gone(&error) => return false,
                Err(error) => {
                    tracing::debug!(%error, "cannot read from the TUN device");
                    break;
                }
            }
        }
        true
    }
}

impl Batches {
    /// Cuts a packet with its header, and adds it to what goes to its peer.
    fn add(&mut self, shared: &Shared, bytes: &mut [u8]) {
        let Some((header, packet)) = bytes.split_at_mut_checked(shared.tun.header()) else {
            return one(&shared.counters.not_ip);
        };
        let raw = header;
        let header = if raw.is_empty() {
            Some(VirtioHeader::PLAIN)
        } else {
            VirtioHeader::read(raw)
        };
        let Some(header) = header else {
            return one(&shared.counters.not_ip);
        };
        if let Some(translation) = shared.translation() {
            // Sums of what is cut are made anew after this.
            translation.outward(packet, header.needs_checksum);
        }
        let Some(addresses) = addresses(packet) else {
            return one(&shared.counters.not_ip);
        };
        let peer = read(&shared.table)
            .by_address(addresses.destination)
            .cloned();
        let Some(peer) = peer else {
            let redirects = shared.redirects.get();
            if redirects.is_some_and(|redirects| redirects.turn(packet, !header.needs_checksum)) {
                // It is the kernel's own, uncut, with the kernel's own header; what it does not take back is lost, as on any network.
                let _ = shared.tun.write(&[IoSlice::new(raw), IoSlice::new(packet)]);
                return;
            }
            return one(&shared.counters.no_route);
        };
        // Before it is cut: a packet is judged once, however many it becomes.
        if !shared.admits(&peer.public_key, Direction::Outbound, packet) {
            return one(&shared.counters.denied_outbound);
        }
        if self
            .target
            .as_ref()
            .is_some_and(|target| !Arc::ptr_eq(target, &peer))
        {
            self.send(shared);
        }
        self.target = Some(peer);
        let mtu = usize::from(shared.tun.mtu());
        if segment(&header, packet, &mut self.plain, |length| {
            padded(length, mtu)
        })
        .is_err()
        {
            one(&shared.counters.not_ip);
        }
    }

    /// Seals what is there and sends it.
    fn send(&mut self, shared: &Shared) {
        let Some(peer) = self.target.take() else {
            return;
        };
        if self.plain.is_empty() {
            return;
        }
        self.send_to(shared, &peer);
    }

    fn send_to(&mut self, shared: &Shared, peer: &Peer) {
        peer.note_traffic();
        let (way, all) = {
            let mut state = peer.lock();
            // A peer that is probed may be found later: its packets wait for the session.
            if state.way.is_none() && state.paths.is_none() {
                drop(state);
                peer.count_not_sent(self.plain.len() as u64);
                self.plain.clear();
                return;
            }
            let result = state.tunnel.seal(&self.plain, &mut self.sealed);
            peer.count_sealed(&result);
            let all = state.all_ways(shared, peer, &self.sealed);
            (state.way.clone(), all)
        };
        for way in all.iter().flatten() {
            way.send(&shared.wire, &self.sealed, &mut self.framed);
        }
        if let (Some(way), None) = (way, all) {
            peer.count_not_sent(way.send(&shared.wire, &self.sealed, &mut self.framed));
        }
        self.plain.clear();
        self.sealed.clear();
    }
}
