//! Joins consecutive packets of a flow, so that the kernel takes them in at once.
//!
//! The rules are those of the kernel's own generic receive offload (`tcp4_gro_receive`, `tcp_gro_receive`,
//! `udp_gro_receive`): only what a card could have cut apart is joined, so cutting again gives the same packets back. A
//! packet's checksum is verified before it is joined, since the joined one's is declared to be made by us;
//! without that, damage from beyond the peer would be covered up.

use super::checksum::Sum;
use super::segment::{TCP, UDP};
use super::{Cut, VirtioHeader};
use crate::batch::Batch;
use crate::packet::{Addresses, V4_HEADER, V6_HEADER, addresses, number16, number32, set16};

/// Packets in one: what the kernel allows for a datagram, and few enough for one list of pieces.
const MOST_PACKETS: u32 = 64;
/// The headers, and each packet's payload.
pub(crate) const MOST_PIECES: usize = 1 + MOST_PACKETS as usize;
/// Flows that are joined at the same time.
const OPEN_FLOWS: usize = 8;
/// The longest headers that are joined: IPv6 and TCP with all its options.
pub(crate) const LONGEST_HEADERS: usize = V6_HEADER + 60;

const ACKNOWLEDGE: u8 = 0x10;
const PUSH: u8 = 0x08;

/// No further packet.
const END: u32 = u32::MAX;

/// One or more packets that go to the kernel together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    first: u32,
    last: u32,
    count: u32,
    shape: Option<Shape>,
    open: bool,
    verified: bool,
    /// Bytes of payload in the first packet, and so in all but the last.
    segment: usize,
    /// Bytes of payload.
    payload: usize,
}

/// Where the parts of a packet are that may be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    addresses: Addresses,
    protocol: u8,
    transport: usize,
    headers: usize,
    length: usize,
    /// Whether it may take part; if not, it only ends what its flow had before.
    joins: bool,
}

/// Joins the packets of a batch.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    frames: Vec<Frame>,
    /// For each packet added, the next of its frame.
    links: Vec<u32>,
    /// For each packet added, its place in the batch.
    places: Vec<u32>,
    open: Vec<u32>,
    udp: bool,
}

impl Coalescer {
    /// Joins TCP, and UDP too if the kernel can cut it.
    pub(crate) fn new(udp: bool) -> Self {
        Self {
            udp,
            ..Self::default()
        }
    }

    /// Forgets all packets.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.links.clear();
        self.places.clear();
        self.open.clear();
    }

    /// The frames in the order in which they have to be written.
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The packets one by one, for a device that takes no joined ones.
    pub(crate) fn packets<'batch>(
        &self,
        batch: &'batch Batch,
    ) -> impl Iterator<Item = &'batch [u8]> {
        self.places
            .iter()
            .filter_map(|place| batch.get(*place as usize))
    }

    /// Adds the packet at this place of the batch.
    pub(crate) fn add(&mut self, batch: &Batch, place: usize) {
        let Some(packet) = batch.get(place) else {
            return;
        };
        let at = self.links.len() as u32;
        self.links.push(END);
        self.places.push(place as u32);
        let shape = Shape::read(packet, self.udp);
        if let Some(shape) = shape
            && let Some(slot) = self.find_open(batch, packet, &shape)
        {
            if shape.joins && self.join(batch, packet, &shape, slot, at) {
                return;
            }
            self.frames[self.open[slot] as usize].open = false;
            self.open.remove(slot);
        }
        let joins = shape.is_some_and(|shape| shape.joins);
        if joins {
            if self.open.len() == OPEN_FLOWS {
                self.open.remove(0);
            }
            self.open.push(self.frames.len() as u32);
        }
        let payload = shape.map_or(0, |shape| shape.length - shape.headers);
        self.frames.push(Frame {
            first: at,
            last: at,
            count: 1,
            shape,
            open: joins && !pushes(packet, shape.as_ref()),
            verified: false,
            segment: payload,
            payload,
        });
    }

    /// The open frame of the packet's flow.
    fn find_open(&self, batch: &Batch, packet: &[u8], shape: &Shape) -> Option<usize> {
        self.open.iter().rposition(|frame| {
            let frame = &self.frames[*frame as usize];
            frame.shape.is_some_and(|other| {
                other.protocol == shape.protocol
                    && other.addresses == shape.addresses
                    && self.packet(batch, frame.first).is_some_and(|first| {
                        first.get(other.transport..other.transport + 4)
                            == packet.get(shape.transport..shape.transport + 4)
                    })
            })
        })
    }

    /// Joins the packet to the frame if that changes nothing for anybody.
    fn join(&mut self, batch: &Batch, packet: &[u8], shape: &Shape, slot: usize, at: u32) -> bool {
        let index = self.open[slot] as usize;
        let frame = self.frames[index];
        let (Some(own), Some(first)) = (frame.shape, self.packet(batch, frame.first)) else {
            return false;
        };
        let payload = shape.length - shape.headers;
        let fits = frame.open
            && frame.count < MOST_PACKETS
            && payload <= frame.segment
            && own.headers == shape.headers
            && own.transport == shape.transport
            && own.headers + frame.payload + payload <= usize::from(u16::MAX)
            && same_headers(first, packet, shape, frame.payload, frame.count)
            && (frame.verified || checksum_holds(first, &own))
            && checksum_holds(packet, shape);
        if !fits {
            // The first one's sum, once wrong, stays so: it is not looked at again, as the frame is closed now.
            return false;
        }
        self.links[frame.last as usize] = at;
        let frame = &mut self.frames[index];
        frame.last = at;
        frame.count += 1;
        frame.verified = true;
        frame.payload += payload;
        frame.open = payload == frame.segment && !pushes(packet, Some(shape));
        true
    }

    fn packet<'batch>(&self, batch: &'batch Batch, at: u32) -> Option<&'batch [u8]> {
        batch.get(*self.places.get(at as usize)? as usize)
    }

    /// What to write for a frame: the header before it, and how many of `pieces` are filled in. `headers` is room
    /// for the changed headers.
    pub(crate) fn pieces<'all>(
        &self,
        batch: &'all Batch,
        frame: &Frame,
        headers: &'all mut [u8; LONGEST_HEADERS],
        pieces: &mut [&'all [u8]; MOST_PIECES],
    ) -> (VirtioHeader, usize) {
        let Some(first) = self.packet(batch, frame.first) else {
            return (VirtioHeader::PLAIN, 0);
        };
        let shape = match frame.shape {
            Some(shape) if frame.count > 1 => shape,
            _ => {
                pieces[0] = first;
                return (VirtioHeader::PLAIN, 1);
            }
        };
        let headers = &mut headers[..shape.headers];
        headers.copy_from_slice(&first[..shape.headers]);
        let length = shape.headers + frame.payload;
        let transport = length - shape.transport;
        let v4 = shape.addresses.source.is_ipv4();
        if v4 {
            set16(headers, 2, length as u16);
            set16(headers, 10, 0);
            let sum = Sum::default().bytes(&headers[..shape.transport]).finish();
            set16(headers, 10, sum);
        } else {
            set16(headers, 4, (length - V6_HEADER) as u16);
        }
        let last = self.packet(batch, frame.last).unwrap_or(first);
        let offset = if shape.protocol == TCP {
            headers[shape.transport + 13] |= last[shape.transport + 13] & PUSH;
            16
        } else {
            set16(headers, shape.transport + 4, transport as u16);
            6
        };
        let sum = Sum::default()
            .pseudo_header(&shape.addresses, shape.protocol, transport)
            .partial();
        set16(headers, shape.transport + offset, sum);
        pieces[0] = headers;
        let mut count = 1;
        let mut at = frame.first;
        while at != END && count < MOST_PIECES {
            if let Some(packet) = self.packet(batch, at) {
                pieces[count] = &packet[shape.headers..];
                count += 1;
            }
            at = self.links.get(at as usize).copied().unwrap_or(END);
        }
        let header = VirtioHeader {
            needs_checksum: true,
            cut: match (shape.protocol, v4) {
                (TCP, true) => Cut::Tcp4,
                (TCP, false) => Cut::Tcp6,
                _ => Cut::Udp,
            },
            header_length: shape.headers as u16,
            segment: frame.segment as u16,
            checksum_start: shape.transport as u16,
            checksum_offset: offset as u16,
        };
        (header, count)
    }
}

impl Shape {
    /// Reads a packet's shape; `None` if it has nothing to do with flows.
    fn read(packet: &[u8], udp: bool) -> Option<Self> {
        let addresses = addresses(packet)?;
        let v4 = addresses.source.is_ipv4();
        let (protocol, transport, length) = if v4 {
            // No options, no fragments.
            if packet[0] != 0x45 || number16(packet, 6)? & 0x3fff != 0 {
                return None;
            }
            (packet[9], V4_HEADER, usize::from(number16(packet, 2)?))
        } else {
            (
                packet[6],
                V6_HEADER,
                usize::from(number16(packet, 4)?) + V6_HEADER,
            )
        };
        // The core cut the padding off.
        if length != packet.len() {
            return None;
        }
        let (headers, joins) = match protocol {
            TCP => {
                let headers = transport + usize::from(packet.get(transport + 12)? >> 4) * 4;
                let flags = *packet.get(transport + 13)?;
                (headers, flags & !PUSH == ACKNOWLEDGE)
            }
            UDP if udp => {
                let whole = usize::from(number16(packet, transport + 4)?) == length - transport;
                (
                    transport + 8,
                    whole && number16(packet, transport + 6)? != 0,
                )
            }
            _ => return None,
        };
        let least = transport + if protocol == TCP { 20 } else { 8 };
        if headers < least || headers > length {
            return None;
        }
        let joins = joins && headers < length;
        Some(Self {
            addresses,
            protocol,
            transport,
            headers,
            length,
            joins,
        })
    }
}

/// Whether the sender asks for what there is to be handed on.
fn pushes(packet: &[u8], shape: Option<&Shape>) -> bool {
    shape.is_some_and(|shape| {
        shape.protocol == TCP
            && packet
                .get(shape.transport + 13)
                .is_some_and(|flags| flags & PUSH != 0)
    })
}

/// Whether two packets of one flow have the same headers but for what cutting changes.
fn same_headers(first: &[u8], packet: &[u8], shape: &Shape, before: usize, count: u32) -> bool {
    let same = |from: usize, to: usize| first.get(from..to) == packet.get(from..to);
    let network = if shape.addresses.source.is_ipv4() {
        let fixed = packet[6] & 0x40 != 0;
        let follows = number16(packet, 4)
            == number16(first, 4).map(|identification| identification.wrapping_add(count as u16));
        same(0, 2) && same(6, 9) && (fixed || follows)
    } else {
        same(0, 4) && same(7, 8)
    };
    let transport = shape.transport;
    let rest = shape.protocol != TCP
        || (number32(packet, transport + 4)
            == number32(first, transport + 4).map(|sequence| sequence.wrapping_add(before as u32))
            // The acknowledgement, the length, the window, the options. Flags were looked at.
            && same(transport + 8, transport + 13)
            && same(transport + 14, transport + 16)
            && same(transport + 18, shape.headers));
    network && rest
}

/// Whether the packet's checksums are right.
fn checksum_holds(packet: &[u8], shape: &Shape) -> bool {
    if shape.addresses.source.is_ipv4() && !Sum::default().bytes(&packet[..shape.transport]).holds()
    {
        return false;
    }
    Sum::default()
        .pseudo_header(
            &shape.addresses,
            shape.protocol,
            packet.len() - shape.transport,
        )
        .bytes(&packet[shape.transport..])
        .holds()
}
