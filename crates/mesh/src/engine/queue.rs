//! What was read from the device and waits to be sealed: a queue for each flow, served in turns.
//!
//! When sealing is slower than what fills the queue, somebody has to wait. The kernel's queue at the device makes
//! everybody wait for the largest download; here a flow waits for its own packets only, and one that sends little goes
//! first. It is the scheduler of FQ-CoDel (RFC 8290) without CoDel: the bound on bytes holds the delay, since this queue only
//! grows when the processor is what there is too little of.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use crate::packet::{Addresses, number16};

/// Flows that are told apart; more share a queue.
const FLOWS: usize = 64;
/// Bytes that wait, of all flows. At 4 Gb/s, 2 MiB are 4 ms.
const MOST_BYTES: usize = 2 << 20;
/// Packets that wait, of all flows.
const MOST_PACKETS: usize = 2048;
/// What a flow may send before it is another's turn: what the kernel hands over at once.
const QUANTUM: i64 = 64 * 1024;
/// Packets up to this length are kept in small buffers.
const SMALL: usize = 2048;
/// Large buffers that are kept for reuse.
const SPARE_LARGE: usize = 48;
/// Small buffers that are kept for reuse.
const SPARE_SMALL: usize = 512;

/// A packet with the header before it.
#[derive(Debug)]
pub(super) struct Waiting {
    buffer: Vec<u8>,
    length: usize,
}

impl Waiting {
    /// The header and the packet.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }
}

#[derive(Debug, Default)]
struct Flow {
    packets: VecDeque<Waiting>,
    bytes: usize,
    credit: i64,
    listed: bool,
}

/// The queues.
#[derive(Debug)]
pub(super) struct FlowQueue {
    secret: RandomState,
    flows: Vec<Flow>,
    /// Flows that had nothing for a while: they go first, once.
    fresh: VecDeque<usize>,
    others: VecDeque<usize>,
    bytes: usize,
    packets: usize,
    large: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
    room: usize,
}

impl FlowQueue {
    /// Empty queues for packets of at most `room` bytes.
    pub(super) fn new(room: usize) -> Self {
        Self {
            secret: RandomState::new(),
            flows: (0..FLOWS).map(|_| Flow::default()).collect(),
            fresh: VecDeque::new(),
            others: VecDeque::new(),
            bytes: 0,
            packets: 0,
            large: Vec::new(),
            small: Vec::new(),
            room,
        }
    }

    /// Adds the packet in the first `length` bytes of `buffer`, which may be exchanged for another buffer of the same
    /// size. Returns how many packets had to be dropped for it.
    pub(super) fn push(&mut self, flow: u64, buffer: &mut Vec<u8>, length: usize) -> u64 {
        let length = length.min(buffer.len());
        let kept = if length <= SMALL {
            let mut kept = self.small.pop().unwrap_or_else(|| vec![0; SMALL]);
            kept[..length].copy_from_slice(&buffer[..length]);
            kept
        } else {
            let room = self.room;
            let other = self.large.pop().unwrap_or_else(|| vec![0; room]);
            std::mem::replace(buffer, other)
        };
        let at = self.secret.hash_one(flow) as usize % FLOWS;
        let queue = &mut self.flows[at];
        queue.packets.push_back(Waiting {
            buffer: kept,
            length,
        });
        queue.bytes += length;
        self.bytes += length;
        self.packets += 1;
        if !queue.listed {
            queue.listed = true;
            queue.credit = QUANTUM;
            self.fresh.push_back(at);
        }
        let mut dropped = 0;
        while self.bytes > MOST_BYTES || self.packets > MOST_PACKETS {
            dropped += 1;
            self.drop_one();
        }
        dropped
    }

    /// Drops the oldest packet of the flow that has the most: its sender learns soonest of it.
    fn drop_one(&mut self) {
        let fattest = (0..FLOWS).max_by_key(|at| self.flows[*at].bytes);
        if let Some(packet) = fattest.and_then(|at| self.take(at)) {
            self.give_back(packet);
        }
    }

    fn take(&mut self, at: usize) -> Option<Waiting> {
        let flow = &mut self.flows[at];
        let packet = flow.packets.pop_front()?;
        flow.bytes -= packet.length;
        self.bytes -= packet.length;
        self.packets -= 1;
        Some(packet)
    }

    /// The packet whose turn it is. Its buffer is to be given back.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        loop {
            let (at, fresh) = match self.fresh.front() {
                Some(at) => (*at, true),
                None => (*self.others.front()?, false),
            };
            if self.flows[at].credit <= 0 {
                self.flows[at].credit += QUANTUM;
                self.unlist(fresh);
                self.others.push_back(at);
                continue;
            }
            if let Some(packet) = self.take(at) {
                self.flows[at].credit -= packet.length as i64;
                return Some(packet);
            }
            self.unlist(fresh);
            // A flow that was just served waits its turn once, or it could go first for ever by sending slowly.
            if fresh && !self.others.is_empty() {
                self.others.push_back(at);
            } else {
                self.flows[at].listed = false;
            }
        }
    }

    fn unlist(&mut self, fresh: bool) {
        if fresh {
            self.fresh.pop_front()
        } else {
            self.others.pop_front()
        };
    }

    /// Keeps a buffer for the next packet.
    pub(super) fn give_back(&mut self, packet: Waiting) {
        if packet.buffer.len() == SMALL {
            if self.small.len() < SPARE_SMALL {
                self.small.push(packet.buffer);
            }
        } else if self.large.len() < SPARE_LARGE {
            self.large.push(packet.buffer);
        }
    }
}

/// What packets have in common that must keep their order: addresses, protocol, and ports where each packet has them.
pub(super) fn flow_of(packet: &[u8], addresses: &Addresses) -> u64 {
    let (protocol, transport) = if addresses.source.is_ipv4() {
        let header = usize::from(packet.first().copied().unwrap_or(0) & 15) * 4;
        // Of a fragmented packet, only the first has ports.
        let whole = number16(packet, 6).is_some_and(|fragment| fragment & 0x3fff == 0);
        (packet.get(9).copied(), whole.then_some(header))
    } else {
        (packet.get(6).copied(), Some(crate::packet::V6_HEADER))
    };
    let ports = match protocol {
        Some(6 | 17) => transport.and_then(|at| crate::packet::number32(packet, at)),
        _ => None,
    };
    // Spread by a secret afterwards; this only has to differ for different flows.
    let fold = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => u64::from(address.to_bits()),
        std::net::IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits as u64).wrapping_add(((bits >> 64) as u64).rotate_left(17))
        }
    };
    fold(addresses.source)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(fold(addresses.destination))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(ports.unwrap_or(0)) << 8)
        .wrapping_add(u64::from(protocol.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: usize = 65_546;

    fn push(queue: &mut FlowQueue, flow: u64, number: u32, length: usize) -> u64 {
        let mut buffer = vec![0; ROOM];
        buffer[..8].copy_from_slice(&flow.to_be_bytes());
        buffer[8..12].copy_from_slice(&number.to_be_bytes());
        queue.push(flow, &mut buffer, length)
    }

    fn pop(queue: &mut FlowQueue) -> Option<(u64, u32, usize)> {
        let mut packet = queue.pop()?;
        let bytes = packet.bytes();
        let flow = u64::from_be_bytes(bytes[..8].try_into().unwrap());
        let number = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
        let length = bytes.len();
        queue.give_back(packet);
        Some((flow, number, length))
    }

    /// Two flows that do not share a queue.
    fn apart(queue: &FlowQueue) -> (u64, u64) {
        let place = |flow: u64| queue.secret.hash_one(flow) as usize % FLOWS;
        let other = (2..).find(|flow| place(*flow) != place(1)).unwrap();
        (1, other)
    }

    #[test]
    fn who_sends_little_goes_first() {
        let mut queue = FlowQueue::new(ROOM);
        let (bulk, ping) = apart(&queue);
        for number in 0..10 {
            push(&mut queue, bulk, number, 64_000);
        }
        for _ in 0..3 {
            pop(&mut queue);
        }
        push(&mut queue, ping, 0, 84);
        assert_eq!(pop(&mut queue), Some((ping, 0, 84)));
        // Served just now, it takes its turn like all others, and that is soon.
        push(&mut queue, ping, 1, 84);
        let soon: Vec<_> = (0..3).filter_map(|_| pop(&mut queue)).collect();
        assert!(soon.contains(&(ping, 1, 84)), "{soon:?}");
    }

    #[test]
    fn large_flows_take_turns() {
        let mut queue = FlowQueue::new(ROOM);
        let (one, two) = apart(&queue);
        for number in 0..10 {
            push(&mut queue, one, number, 60_000);
        }
        for number in 0..10 {
            push(&mut queue, two, number, 60_000);
        }
        let first: Vec<_> = (0..10).filter_map(|_| pop(&mut queue)).collect();
        let of_two = first.iter().filter(|(flow, ..)| *flow == two).count();
        assert!((3..=7).contains(&of_two), "{first:?}");
    }

    #[test]
    fn the_fattest_pays_when_it_is_full() {
        let mut queue = FlowQueue::new(ROOM);
        let (bulk, ping) = apart(&queue);
        push(&mut queue, ping, 0, 84);
        let mut dropped = 0;
        for number in 0..100 {
            dropped += push(&mut queue, bulk, number, 64_000);
        }
        assert!(queue.bytes <= MOST_BYTES);
        assert_eq!(dropped, 100 - (MOST_BYTES / 64_000) as u64);
        assert_eq!(pop(&mut queue), Some((ping, 0, 84)));
        assert_eq!(
            pop(&mut queue),
            Some((bulk, dropped as u32, 64_000)),
            "the oldest went"
        );
    }

    proptest! {
        /// Whatever comes in whatever order: bounds hold, flows keep their order, and what was not dropped comes out.
        #[test]
        fn order_and_bounds_hold(
            steps in proptest::collection::vec((any::<bool>(), 0u64..6, prop_oneof![Just(40usize), Just(2048), Just(2049), Just(65_000)]), 0..400),
        ) {
            let mut queue = FlowQueue::new(ROOM);
            let mut last = [None; 6];
            let (mut pushed, mut dropped, mut popped) = (0u32, 0, 0);
            let mut check = |packet: Option<(u64, u32, usize)>| {
                if let Some((flow, number, _)) = packet {
                    popped += 1;
                    let before = last[flow as usize].replace(number);
                    assert!(before.is_none_or(|before| before < number));
                }
                packet.is_some()
            };
            for (add, flow, length) in steps {
                if add {
                    pushed += 1;
                    dropped += push(&mut queue, flow, pushed, length);
                } else {
                    check(pop(&mut queue));
                }
                prop_assert!(queue.bytes <= MOST_BYTES && queue.packets <= MOST_PACKETS);
                prop_assert!(queue.large.len() <= SPARE_LARGE && queue.small.len() <= SPARE_SMALL);
            }
            while check(pop(&mut queue)) {}
            prop_assert_eq!(popped + dropped, u64::from(pushed));
            prop_assert_eq!((queue.bytes, queue.packets), (0, 0));
            prop_assert!(queue.flows.iter().all(|flow| !flow.listed && flow.bytes == 0));
        }
    }
}
