//! Flows that a rule let pass, so that their answers do too; and what they carried.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};

use super::Direction;
use super::flow::Flow;
use super::ports::TCP;
use crate::flows::{End, Moved, Past, Record, Records};
use crate::key::PublicKey;

/// Places that a flow may take; the oldest of them gives way.
const WAYS: usize = 8;
/// How long a silent flow is remembered, in milliseconds.
const TCP_KEEP: u64 = (2 * 3600 + 600) * 1000;
const OTHER_KEEP: u64 = 180 * 1000;
/// Flags of TCP: this side sends no more, all is over.
const FIN: u8 = 1;
const RST: u8 = 4;

/// A flow between this node and a peer, whoever began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    peer: PublicKey,
    /// From this node to the peer.
    flow: Flow,
}

impl Place {
    /// That of a packet which goes in this direction.
    pub(super) fn of(peer: &PublicKey, direction: Direction, flow: &Flow) -> Self {
        Self {
            peer: *peer,
            flow: outbound(direction, *flow),
        }
    }
}

/// A flow as it is seen in the other direction, if this one is inbound. It is its own reverse.
const fn outbound(direction: Direction, flow: Flow) -> Flow {
    match direction {
        Direction::Outbound => flow,
        Direction::Inbound => flow.reversed(),
    }
}

/// What is known of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) direction: Direction,
    pub(super) bytes: usize,
    /// Those of TCP.
    pub(super) flags: u8,
    /// In milliseconds since the table was made.
    pub(super) now: u64,
}

/// What became of a flow, as its packets say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ends {
    sent: bool,
    received: bool,
    /// It was written down as ended.
    told: bool,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    place: Place,
    /// Who began it.
    direction: Direction,
    ends: Ends,
    line: u32,
    number: u64,
    /// In milliseconds since the table was made.
    began: u64,
    /// As `began`, plus one; 0 is an empty slot.
    seen: u64,
    sent: Moved,
    received: Moved,
}

impl Slot {
    fn alive(&self, now: u64) -> bool {
        let keep = match self.place.flow.protocol {
            TCP => TCP_KEEP,
            _ => OTHER_KEEP,
        };
        self.seen > 0 && now < self.seen + keep
    }

    /// Counts a packet; how the flow ends with it, if it does.
    fn count(&mut self, packet: &Seen) -> Option<End> {
        self.seen = packet.now + 1;
        let (moved, end) = match packet.direction {
            Direction::Outbound => (&mut self.sent, &mut self.ends.sent),
            Direction::Inbound => (&mut self.received, &mut self.ends.received),
        };
        moved.bytes += packet.bytes as u64;
        moved.packets += 1;
        if packet.flags & (FIN | RST) == 0 {
            return None;
        }
        *end |= packet.flags & FIN != 0;
        if self.ends.told {
            return None;
        }
        match self.ends {
            _ if packet.flags & RST != 0 => Some(End::Reset),
            Ends {
                sent: true,
                received: true,
                ..
            } => Some(End::Closed),
            _ => None,
        }
    }

    fn record(&self, end: Option<(u64, End)>, epoch_ms: u64) -> Record {
        Record {
            number: self.number,
            end,
            peer: self.place.peer,
            direction: self.direction,
            flow: outbound(self.direction, self.place.flow),
            line: self.line,
            began_ms: epoch_ms + self.began,
            seen_ms: epoch_ms + self.seen.saturating_sub(1),
            sent: self.sent,
            received: self.received,
        }
    }
}

/// A table of fixed size: nobody makes it grow, and a flood of flows drives out the oldest first. Chance decides where a flow is
/// kept, so nobody chooses whose place he takes.
#[derive(Debug)]
pub(super) struct Answers {
    slots: Box<[Slot]>,
    hasher: RandomState,
    past: Past,
    /// The number of the last that happened: a flow began or ended.
    turn: u64,
    begun: u64,
    /// When the table was made, in milliseconds since 1970.
    epoch_ms: u64,
}

impl Answers {
    /// A table for `flows`, rounded up.
    pub(super) fn new(flows: usize, epoch_ms: u64) -> Self {
        let empty = Slot {
            place: Place {
                peer: PublicKey::from_bytes([0; 32]),
                flow: Flow {
                    protocol: 0,
                    source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    source_port: 0,
                    destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    destination_port: 0,
                },
            },
            direction: Direction::Inbound,
            ends: Ends::default(),
            line: 0,
            number: 0,
            began: 0,
            seen: 0,
            sent: Moved::default(),
            received: Moved::default(),
        };
        Self {
            slots: vec![empty; flows.div_ceil(WAYS).max(1) * WAYS].into_boxed_slice(),
            hasher: RandomState::new(),
            past: Past::default(),
            turn: 0,
            begun: 0,
            epoch_ms,
        }
    }

    /// Where the slots begin that a flow may have.
    fn set(&self, place: &Place) -> usize {
        let sets = (self.slots.len() / WAYS) as u64;
        (self.hasher.hash_one(place) % sets) as usize * WAYS
    }

    fn end(&mut self, at: usize, end: End) {
        let slot = self.slots.get_mut(at).filter(|slot| !slot.ends.told);
        if let Some(slot) = slot {
            slot.ends.told = true;
            self.turn += 1;
            let record = slot.record(Some((self.turn, end)), self.epoch_ms);
            self.past.add(record);
        }
    }

    /// Counts a packet that a rule lets begin a flow in its direction: as one of the flow that there is, else as the first. With `anew` it is
    /// the first unless it is said again.
    pub(super) fn remember(&mut self, place: &Place, line: u32, anew: bool, packet: &Seen) {
        self.begin(place, packet.direction, line, anew, packet);
    }

    /// Counts a packet that answers a flow which began before it was seen, in the other direction.
    pub(super) fn resume(&mut self, place: &Place, line: u32, packet: &Seen) {
        self.begin(place, packet.direction.reversed(), line, false, packet);
    }

    fn begin(&mut self, place: &Place, direction: Direction, line: u32, anew: bool, packet: &Seen) {
        let first = self.set(place);
        let set = self.slots.iter_mut().enumerate().skip(first).take(WAYS);
        // The place, and what it has to do with what is there.
        let mut oldest = (first, u64::MAX);
        let mut found = None;
        for (at, slot) in set {
            if slot.seen > 0 && slot.place == *place {
                found = Some((at, slot));
                break;
            }
            if slot.seen < oldest.1 {
                oldest = (at, slot.seen);
            }
        }
        let (at, end) = match found {
            Some((at, slot)) => {
                let over = slot.ends.told || slot.direction != direction;
                if slot.alive(packet.now) && !(anew && over) {
                    if let Some(end) = slot.count(packet) {
                        self.end(at, end);
                    }
                    return;
                }
                let idle = !slot.alive(packet.now);
                (at, if idle { End::Idle } else { End::Reset })
            }
            None => {
                let alive = self
                    .slots
                    .get(oldest.0)
                    .is_some_and(|s| s.alive(packet.now));
                (oldest.0, if alive { End::Displaced } else { End::Idle })
            }
        };
        if self.slots.get(at).is_some_and(|slot| slot.seen > 0) {
            self.end(at, end);
        }
        self.turn += 1;
        self.begun += 1;
        let mut slot = Slot {
            place: *place,
            direction,
            ends: Ends::default(),
            line,
            number: self.turn,
            began: packet.now,
            seen: 0,
            sent: Moved::default(),
            received: Moved::default(),
        };
        let end = slot.count(packet);
        if let Some(here) = self.slots.get_mut(at) {
            *here = slot;
        }
        if let Some(end) = end {
            self.end(at, end);
        }
    }

    /// Whether the packet answers a flow that began in the other direction and is not forgotten; if so it is counted, and the flow remembered for longer.
    pub(super) fn answers(&mut self, place: &Place, packet: &Seen) -> bool {
        let first = self.set(place);
        let set = self.slots.iter_mut().enumerate().skip(first).take(WAYS);
        for (at, slot) in set {
            if slot.place == *place && slot.alive(packet.now) {
                if slot.direction == packet.direction {
                    return false;
                }
                if let Some(end) = slot.count(packet) {
                    self.end(at, end);
                }
                return true;
            }
        }
        false
    }

    /// Whether there is such a flow, whoever began it; if so it is remembered for longer.
    pub(super) fn renew(&mut self, place: &Place, now: u64) -> bool {
        let first = self.set(place);
        let mut set = self.slots.iter_mut().skip(first).take(WAYS);
        let found = set.find(|slot| slot.place == *place && slot.alive(now));
        found.is_some_and(|slot| {
            slot.seen = now + 1;
            true
        })
    }

    /// Forgets what a changed policy no longer allows. `rule` tells the line of the rule that allows a flow.
    pub(super) fn retain(&mut self, rule: impl Fn(&PublicKey, Direction, &Flow) -> Option<u32>) {
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.seen > 0) else {
                continue;
            };
            let flow = outbound(slot.direction, slot.place.flow);
            if let Some(line) = rule(&slot.place.peer, slot.direction, &flow) {
                slot.line = line;
                continue;
            }
            self.end(at, End::Policy);
            if let Some(slot) = self.slots.get_mut(at) {
                slot.seen = 0;
            }
        }
    }

    /// What began or ended after a number; with 0 everything.
    pub(super) fn records(&mut self, since: u64, now: u64) -> Records {
        let mut running = Vec::new();
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.seen > 0) else {
                continue;
            };
            if !slot.alive(now) {
                self.end(at, End::Idle);
                if let Some(slot) = self.slots.get_mut(at) {
                    slot.seen = 0;
                }
            } else if !slot.ends.told && slot.number > since {
                running.push(slot.record(None, self.epoch_ms));
            }
        }
        self.past.with(running, since, self.turn, self.begun)
    }

    /// How many flows began.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }
}
