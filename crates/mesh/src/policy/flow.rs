//! What a packet is, as far as policy cares.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ports::{ICMP, ICMPV6, TCP, UDP};

/// The most extension headers that are looked through.
const MOST_EXTENSIONS: usize = 4;

/// Who speaks to whom. For an echo request the source port is its identifier, for the reply the destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The protocol's number.
    pub protocol: u8,
    /// From where.
    pub source: IpAddr,
    /// The port there; 0 if there are none.
    pub source_port: u16,
    /// To where.
    pub destination: IpAddr,
    /// The port there; 0 if there are none.
    pub destination_port: u16,
}

impl Flow {
    /// That of an answer.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

/// What kind of packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One that may begin something.
    Plain,
    /// One that only makes sense where something began: TCP but not a first SYN, an echo reply.
    Answer,
    /// A piece of a packet, not the first: it has no ports.
    Piece,
    /// A report about a packet of the other side.
    Report(Flow),
}

/// Reads a packet, with the flags of TCP; `None` if it is none or hides what it carries.
pub(super) fn parse(packet: &[u8]) -> Option<(Flow, Kind, u8)> {
    read(packet, false)
}

fn read(packet: &[u8], quoted: bool) -> Option<(Flow, Kind, u8)> {
    let (protocol, source, destination, piece, body) = match packet.first()? >> 4 {
        4 => version_4(packet)?,
        6 => version_6(packet)?,
        _ => return None,
    };
    let mut flow = Flow {
        protocol,
        source,
        source_port: 0,
        destination,
        destination_port: 0,
    };
    if piece {
        return Some((flow, Kind::Piece, 0));
    }
    let mut flags = 0;
    let word = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let kind = match protocol {
        TCP | UDP => {
            flow.source_port = word(0)?;
            flow.destination_port = word(2)?;
            // What is quoted may be cut before that.
            if protocol == TCP && !quoted {
                flags = *body.get(13)?;
            }
            match protocol {
                // A first packet has SYN and not ACK.
                TCP if !quoted && flags & 0x12 != 0x02 => Kind::Answer,
                _ => Kind::Plain,
            }
        }
        ICMP | ICMPV6 => {
            let (request, reply, reports): (u8, u8, &[u8]) = if protocol == ICMP {
                (8, 0, &[3, 11, 12])
            } else {
                (128, 129, &[1, 2, 3, 4])
            };
            match *body.first()? {
                kind if kind == request => {
                    flow.source_port = word(4)?;
                    Kind::Plain
                }
                kind if kind == reply => {
                    flow.destination_port = word(4)?;
                    Kind::Answer
                }
                kind if reports.contains(&kind) && !quoted => {
                    Kind::Report(read(body.get(8..)?, true)?.0)
                }
                _ => Kind::Plain,
            }
        }
        _ => Kind::Plain,
    };
    Some((flow, kind, flags))
}

type Parts<'a> = (u8, IpAddr, IpAddr, bool, &'a [u8]);

fn version_4(packet: &[u8]) -> Option<Parts<'_>> {
    let header = packet.get(..20)?;
    let length = usize::from(header[0] & 15) * 4;
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    // A second piece that begins within the first header is made to deceive.
    if length < 20 || offset == 1 {
        return None;
    }
    let address = |at: usize| {
        Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
    };
    let body = packet.get(length..)?;
    Some((header[9], address(12), address(16), offset > 0, body))
}

fn version_6(packet: &[u8]) -> Option<Parts<'_>> {
    let header = packet.get(..40)?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes).into())
    };
    let (source, destination) = (address(8)?, address(24)?);
    let mut next = header[6];
    let mut body = packet.get(40..)?;
    for _ in 0..MOST_EXTENSIONS {
        let length = match next {
            // Hop by hop and destination options.
            0 | 60 => usize::from(*body.get(1)?) * 8 + 8,
            44 => {
                let offset = u16::from_be_bytes([*body.get(2)?, *body.get(3)?]) >> 3;
                if offset > 0 {
                    return Some((*body.first()?, source, destination, true, &[]));
                }
                8
            }
            // A routing header would lead elsewhere.
            43 => return None,
            _ => return Some((next, source, destination, false, body)),
        };
        next = *body.first()?;
        body = body.get(length..)?;
    }
    None
}
