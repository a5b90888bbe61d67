//! Flows that a rule let pass, so that their answers do too.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};

use super::Direction;
use super::flow::Flow;
use super::ports::TCP;
use crate::key::PublicKey;

/// Places that a flow may take; the oldest of them gives way.
const WAYS: usize = 8;
/// How long a silent flow is remembered, in seconds.
const TCP_SECONDS: u64 = 2 * 3600 + 600;
const OTHER_SECONDS: u64 = 180;

#[derive(Debug, Clone, Copy)]
struct Slot {
    peer: PublicKey,
    direction: Direction,
    flow: Flow,
    /// In seconds since the table was made, plus one; 0 is an empty slot.
    seen: u64,
}

/// A table of fixed size: nobody makes it grow, and a flood of flows drives out the oldest first. Chance decides where a flow is
/// kept, so nobody chooses whose place he takes.
#[derive(Debug)]
pub(super) struct Answers {
    slots: Box<[Slot]>,
    hasher: RandomState,
}

impl Answers {
    /// A table for `flows`, rounded up.
    pub(super) fn new(flows: usize) -> Self {
        let empty = Slot {
            peer: PublicKey::from_bytes([0; 32]),
            direction: Direction::Inbound,
            flow: Flow {
                protocol: 0,
                source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                source_port: 0,
                destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                destination_port: 0,
            },
            seen: 0,
        };
        Self {
            slots: vec![empty; flows.div_ceil(WAYS).max(1) * WAYS].into_boxed_slice(),
            hasher: RandomState::new(),
        }
    }

    fn set(&mut self, peer: &PublicKey, direction: Direction, flow: &Flow) -> &mut [Slot] {
        let sets = (self.slots.len() / WAYS) as u64;
        let at = self.hasher.hash_one((peer, direction, flow)) % sets * WAYS as u64;
        &mut self.slots[at as usize..at as usize + WAYS]
    }

    /// Remembers a flow that began in this direction.
    pub(super) fn remember(
        &mut self,
        peer: &PublicKey,
        direction: Direction,
        flow: &Flow,
        now: u64,
    ) {
        let set = self.set(peer, direction, flow);
        let same = |slot: &Slot| slot.seen > 0 && slot.is(peer, direction, flow);
        let at = set.iter().position(same).or_else(|| {
            let oldest = set.iter().enumerate().min_by_key(|(_, slot)| slot.seen);
            oldest.map(|(at, _)| at)
        });
        if let Some(slot) = at.and_then(|at| set.get_mut(at)) {
            *slot = Slot {
                peer: *peer,
                direction,
                flow: *flow,
                seen: now + 1,
            };
        }
    }

    /// Whether such a flow began in this direction and is not forgotten; if so it is remembered for longer.
    pub(super) fn renew(
        &mut self,
        peer: &PublicKey,
        direction: Direction,
        flow: &Flow,
        now: u64,
    ) -> bool {
        let keep = if flow.protocol == TCP {
            TCP_SECONDS
        } else {
            OTHER_SECONDS
        };
        let set = self.set(peer, direction, flow);
        let found = set
            .iter_mut()
            .find(|slot| slot.seen > 0 && slot.is(peer, direction, flow));
        match found {
            Some(slot) if now < slot.seen + keep => {
                slot.seen = now + 1;
                true
            }
            _ => false,
        }
    }
}

impl Slot {
    fn is(&self, peer: &PublicKey, direction: Direction, flow: &Flow) -> bool {
        self.flow == *flow && self.direction == direction && self.peer == *peer
    }

    fn forget(&mut self) {
        self.seen = 0;
    }
}

impl Answers {
    /// Forgets what a changed policy no longer allows.
    pub(super) fn retain(&mut self, allowed: impl Fn(&PublicKey, Direction, &Flow) -> bool) {
        for slot in &mut self.slots {
            if slot.seen > 0 && !allowed(&slot.peer, slot.direction, &slot.flow) {
                slot.forget();
            }
        }
    }
}
