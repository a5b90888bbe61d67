//! The little that is read of inner packets: where from, where to, how long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The length of an IPv4 header without options.
pub(crate) const V4_HEADER: usize = 20;
/// The length of an IPv6 header.
pub(crate) const V6_HEADER: usize = 40;

/// The addresses of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

/// Reads the addresses; `None` if this is not an IP packet.
pub(crate) fn addresses(packet: &[u8]) -> Option<Addresses> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.get(..V4_HEADER)?;
            let at = |from: usize| -> Option<IpAddr> {
                let bytes: [u8; 4] = header.get(from..from + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(bytes).into())
            };
            Some(Addresses {
                source: at(12)?,
                destination: at(16)?,
            })
        }
        6 => {
            let header = packet.get(..V6_HEADER)?;
            let at = |from: usize| -> Option<IpAddr> {
                let bytes: [u8; 16] = header.get(from..from + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(bytes).into())
            };
            Some(Addresses {
                source: at(8)?,
                destination: at(24)?,
            })
        }
        _ => None,
    }
}

/// A big-endian number in a packet.
pub(crate) fn number16(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

/// A big-endian number in a packet.
pub(crate) fn number32(packet: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?))
}

/// Writes a big-endian number into a packet; nothing if it does not fit.
pub(crate) fn set16(packet: &mut [u8], at: usize, value: u16) {
    if let Some(place) = packet.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Writes a big-endian number into a packet; nothing if it does not fit.
pub(crate) fn set32(packet: &mut [u8], at: usize, value: u32) {
    if let Some(place) = packet.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
