//! Translation of addresses, one to one and without memory, at a cluster's gateway.
//!
//! Checksums are carried over (RFC 1624, equation 3) and not made anew: damage is not covered up. What an ICMP error quotes is
//! translated too, or its receiver would not know what it is about (RFC 5508, section 4.2).

use std::net::Ipv4Addr;

use super::{Range, bounds};
use crate::packet::{V4_HEADER, number16, number32, set16, set32};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// How a gateway's packets are rewritten. What lies in no range stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translation(Box<[Pair]>);

/// Two ranges of the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    inside: u32,
    outside: u32,
    /// The bits of an address that say where in the range it is.
    hosts: u32,
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy)]
enum Course {
    /// From the mesh into the cluster: where to.
    Inward,
    /// From the cluster into the mesh: where from.
    Outward,
}

impl Course {
    /// Which address is translated, and which in what an error quotes: the packet that it is about went the other way.
    const fn places(self) -> (usize, usize) {
        match self {
            Self::Inward => (DESTINATION, SOURCE),
            Self::Outward => (SOURCE, DESTINATION),
        }
    }
}

impl Translation {
    /// That of a gateway of clusters with these ranges.
    pub fn new<'a>(ranges: impl IntoIterator<Item = &'a Range>) -> Self {
        let translated = ranges.into_iter().filter(|range| range.translated());
        let pairs = translated.filter_map(|range| {
            let (inside, last) = bounds(range.inside)?;
            let (outside, other) = bounds(range.outside)?;
            let hosts = last - inside;
            (other - outside == hosts).then_some(Pair {
                inside,
                outside,
                hosts,
            })
        });
        Self(pairs.collect())
    }

    /// Whether nothing is translated.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, course: Course, address: u32) -> Option<u32> {
        self.0.iter().find_map(|pair| {
            let (from, to) = match course {
                Course::Inward => (pair.outside, pair.inside),
                Course::Outward => (pair.inside, pair.outside),
            };
            (address & !pair.hosts == from).then_some(to | address & pair.hosts)
        })
    }

    /// The address inside that an address in the mesh stands for.
    pub fn inward_address(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let found = self.find(Course::Inward, address.to_bits());
        found.map(Ipv4Addr::from_bits)
    }

    /// Rewrites a packet from the mesh: its destination.
    pub fn inward(&self, packet: &mut [u8]) {
        self.rewrite(Course::Inward, packet, false);
    }

    /// Rewrites a packet from the cluster: its source. `partial` if the kernel left TCP's or UDP's checksum to others: then the field holds the sum over the
    /// pseudo-header, not inverted.
    pub fn outward(&self, packet: &mut [u8], partial: bool) {
        self.rewrite(Course::Outward, packet, partial);
    }

    fn rewrite(&self, course: Course, packet: &mut [u8], partial: bool) {
        let Some(header) = Header::read(packet) else {
            return;
        };
        let (place, quoted) = course.places();
        if let Some((old, new)) = self.exchange(course, packet, place) {
            adjust(packet, 10, old, new);
            if header.first
                && let Some(at) = header.checksum()
            {
                transport(packet, at, header.protocol, old, new, partial);
            }
        }
        let error = header.first
            && header.protocol == ICMP
            && matches!(packet.get(header.length), Some(3 | 4 | 5 | 11 | 12));
        if error {
            self.quote(course, packet, header.length, quoted);
        }
    }

    /// Puts another address in its place; both, if it is translated.
    fn exchange(&self, course: Course, packet: &mut [u8], place: usize) -> Option<(u32, u32)> {
        let old = number32(packet, place)?;
        let new = self.find(course, old)?;
        set32(packet, place, new);
        Some((old, new))
    }

    /// Translates what an error at `error` quotes.
    fn quote(&self, course: Course, packet: &mut [u8], error: usize, place: usize) {
        let sum = error + 2;
        let start = error + 8;
        let Some((head, inner)) = packet.split_at_mut_checked(start) else {
            return;
        };
        let Some(header) = Header::read(inner) else {
            return;
        };
        let Some((old, new)) = self.exchange(course, inner, place) else {
            return;
        };
        // The inner header's checksum makes up for the address, so the error's own does not change with the two but where the inner one was wrong.
        let before = number16(inner, 10);
        adjust(inner, 10, old, new);
        adjust(head, sum, old, new);
        word(head, sum, before, number16(inner, 10));
        if header.first
            && let Some(at) = header.checksum()
            && let Some(before) = number16(inner, at)
        {
            transport(inner, at, header.protocol, old, new, false);
            word(head, sum, Some(before), number16(inner, at));
        }
    }
}

/// What is known of a header of IPv4.
struct Header {
    length: usize,
    protocol: u8,
    /// Whether what follows is the beginning of what is carried.
    first: bool,
}

impl Header {
    fn read(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..V4_HEADER)?;
        let length = usize::from(header[0] & 15) * 4;
        let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        (header[0] >> 4 == 4 && length >= V4_HEADER && length <= packet.len()).then_some(Self {
            length,
            protocol: header[9],
            first,
        })
    }

    /// Where the checksum is that covers the addresses, if the protocol has one.
    const fn checksum(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(self.length + 16),
            UDP | DCCP | UDP_LITE => Some(self.length + 6),
            _ => None,
        }
    }
}

/// Adds the carries until there are none.
const fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What the sum over a pseudo-header or a packet grows by: `~m + m'` for both halves.
const fn difference(old: u32, new: u32) -> u32 {
    (!old >> 16) + (!old & 0xffff) + (new >> 16) + (new & 0xffff)
}

/// RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`, for an address.
fn adjust(packet: &mut [u8], at: usize, old: u32, new: u32) {
    if let Some(sum) = number16(packet, at) {
        set16(packet, at, !fold(u32::from(!sum) + difference(old, new)));
    }
}

/// The same for a word.
fn word(packet: &mut [u8], at: usize, old: Option<u16>, new: Option<u16>) {
    if let (Some(sum), Some(old), Some(new)) = (number16(packet, at), old, new) {
        let changed = u32::from(!sum) + u32::from(!old) + u32::from(new);
        set16(packet, at, !fold(changed));
    }
}

/// Carries TCP's or UDP's checksum over.
fn transport(packet: &mut [u8], at: usize, protocol: u8, old: u32, new: u32, partial: bool) {
    let Some(sum) = number16(packet, at) else {
        return;
    };
    if partial {
        set16(packet, at, fold(u32::from(sum) + difference(old, new)));
        return;
    }
    // Without a checksum (RFC 768) there stays none, and none is what zero would mean.
    if protocol == UDP && sum == 0 {
        return;
    }
    adjust(packet, at, old, new);
    if protocol == UDP && number16(packet, at) == Some(0) {
        set16(packet, at, 0xffff);
    }
}
