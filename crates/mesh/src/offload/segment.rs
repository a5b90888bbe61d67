//! Cuts what the kernel gives at once into packets that fit the tunnel.

use super::checksum::Sum;
use super::{Cut, VirtioHeader};
use crate::batch::Batch;
use crate::packet::{Addresses, V4_HEADER, V6_HEADER, addresses, number16, number32, set16, set32};

/// The protocols' numbers.
pub(crate) const TCP: u8 = 6;
/// See [`TCP`].
pub(crate) const UDP: u8 = 17;

/// Where TCP's flags are, and those that belong to the last or the first packet only.
const FLAGS: usize = 13;
const FIN_PUSH: u8 = 0x09;
const CONGESTION_WINDOW_REDUCED: u8 = 0x80;

/// The packet's headers do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends the packets that this one stands for to `batch`, each padded as `pad` says, with their checksums.
///
/// # Errors
/// The header and the packet do not fit together; `batch` is as it was or has some more packets that are right.
pub(crate) fn segment(
    header: &VirtioHeader,
    packet: &mut [u8],
    batch: &mut Batch,
    pad: impl Fn(usize) -> usize,
) -> Result<(), Malformed> {
    if header.cut == Cut::Not {
        if header.needs_checksum {
            complete(header, packet)?;
        }
        append(batch, &[packet], &pad);
        return Ok(());
    }
    let plan = Plan::read(header, packet).ok_or(Malformed)?;
    let (headers, payload) = packet.split_at_mut(plan.headers);
    let count = payload.len().div_ceil(plan.segment);
    let sequence = number32(headers, plan.transport + 4).unwrap_or(0);
    let identification = number16(headers, 4).unwrap_or(0);
    let flags = headers.get(plan.transport + FLAGS).copied().unwrap_or(0);
    for (at, piece) in payload.chunks(plan.segment).enumerate() {
        let length = plan.headers + piece.len();
        let transport = length - plan.transport;
        if plan.v4 {
            set16(headers, 2, length as u16);
            set16(headers, 4, identification.wrapping_add(at as u16));
            set16(headers, 10, 0);
            let sum = Sum::default().bytes(&headers[..plan.transport]).finish();
            set16(headers, 10, sum);
        } else {
            set16(headers, 4, (length - V6_HEADER) as u16);
        }
        if plan.protocol == TCP {
            let done = (at * plan.segment) as u32;
            set32(headers, plan.transport + 4, sequence.wrapping_add(done));
            let mut own = flags;
            if at + 1 < count {
                own &= !FIN_PUSH;
            }
            if at > 0 {
                own &= !CONGESTION_WINDOW_REDUCED;
            }
            headers[plan.transport + FLAGS] = own;
        } else {
            set16(headers, plan.transport + 4, transport as u16);
        }
        set16(headers, plan.checksum, 0);
        let sum = Sum::default()
            .pseudo_header(&plan.addresses, plan.protocol, transport)
            .bytes(&headers[plan.transport..])
            .bytes(piece)
            .finish();
        // UDP's zero means that there is none (RFC 768).
        let sum = if sum == 0 && plan.protocol == UDP {
            0xffff
        } else {
            sum
        };
        set16(headers, plan.checksum, sum);
        append(batch, &[headers, piece], &pad);
    }
    Ok(())
}

/// What is known of a large packet before it is cut.
struct Plan {
    v4: bool,
    addresses: Addresses,
    protocol: u8,
    /// Where TCP's or UDP's header begins.
    transport: usize,
    /// Where the payload begins.
    headers: usize,
    /// Where the checksum is.
    checksum: usize,
    segment: usize,
}

impl Plan {
    fn read(header: &VirtioHeader, packet: &[u8]) -> Option<Self> {
        let addresses = addresses(packet)?;
        let v4 = addresses.source.is_ipv4();
        let transport = usize::from(header.checksum_start);
        let least = if v4 { V4_HEADER } else { V6_HEADER };
        // An odd start would shift the checksum's bytes; no header has an odd length.
        if transport < least || transport % 2 != 0 {
            return None;
        }
        let (protocol, length, checksum) = match header.cut {
            Cut::Tcp4 if v4 => (TCP, 0, 16),
            Cut::Tcp6 if !v4 => (TCP, 0, 16),
            Cut::Udp => (UDP, 8, 6),
            _ => return None,
        };
        let length = match length {
            0 => usize::from(packet.get(transport + 12)? >> 4) * 4,
            fixed => fixed,
        };
        let headers = transport + length;
        let segment = usize::from(header.segment);
        let fits = segment > 0
            && length >= if protocol == TCP { 20 } else { 8 }
            && headers < packet.len()
            && headers + segment <= usize::from(u16::MAX);
        fits.then_some(Self {
            v4,
            addresses,
            protocol,
            transport,
            headers,
            checksum: transport + checksum,
            segment,
        })
    }
}

/// Makes the checksum that the kernel left to the card. The sum of the pseudo-header is in its place already.
fn complete(header: &VirtioHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    let start = usize::from(header.checksum_start);
    let place = start + usize::from(header.checksum_offset);
    if place + 2 > packet.len() {
        return Err(Malformed);
    }
    let sum = Sum::default()
        .bytes(packet.get(start..).ok_or(Malformed)?)
        .finish();
    // Right for TCP too: all ones and zero are the same sum.
    set16(packet, place, if sum == 0 { 0xffff } else { sum });
    Ok(())
}

/// Appends the pieces as one packet with zeros behind.
fn append(batch: &mut Batch, pieces: &[&[u8]], pad: &impl Fn(usize) -> usize) {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    let room = pad(length).max(length);
    batch.append(room, |space| {
        let mut at = 0;
        for piece in pieces {
            space[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        space[at..].fill(0);
        Some(room)
    });
}
