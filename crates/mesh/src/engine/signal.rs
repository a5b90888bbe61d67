//! What two engines say to each other inside a session: probes of the ways between them, and where else they may be found.
//!
//! A signal is an IPv4 packet from and to 192.0.0.8, an address that no node has (RFC 7600), of protocol 253, which is for experiments
//! (RFC 3692). A WireGuard node that is none of ours drops it, as its sender may not use that address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::packet::V4_HEADER;

/// The address of both ends.
pub(super) const ADDRESS: [u8; 4] = [192, 0, 0, 8];
const PROTOCOL: u8 = 253;
const ASK: u8 = 1;
const ANSWER: u8 = 2;
const HERE: u8 = 3;
/// Addresses that one signal tells.
pub(super) const MOST_ADDRESSES: usize = 8;
/// The length of one.
const PLACE: usize = 18;
/// All signals are this long, so that they tell nothing by it.
const LENGTH: usize = V4_HEADER + 12 + MOST_ADDRESSES * PLACE;

/// One signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signal {
    /// A probe: send this number back the way it came.
    Ask(u64),
    /// The number of a probe.
    Answer(u64),
    /// Where the sender may be found.
    Here(Vec<SocketAddr>),
}

impl Signal {
    /// Reads an inner packet; `None` if it is no signal.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let (header, body) = packet.split_at_checked(V4_HEADER)?;
        if packet.len() != LENGTH
            || header[0] != 0x45
            || header[9] != PROTOCOL
            || header[12..16] != ADDRESS
            || header[16..20] != ADDRESS
        {
            return None;
        }
        let number = u64::from_be_bytes(body.get(4..12)?.try_into().ok()?);
        match body[0] {
            ASK => Some(Self::Ask(number)),
            ANSWER => Some(Self::Answer(number)),
            HERE => {
                let count = usize::from(body[1]);
                let places = body.get(12..12 + count.min(MOST_ADDRESSES) * PLACE)?;
                let addresses = places.chunks_exact(PLACE).filter_map(|place| {
                    let (ip, port) = place.split_first_chunk::<16>()?;
                    let port = u16::from_be_bytes(port.try_into().ok()?);
                    let ip = Ipv6Addr::from(*ip).to_canonical();
                    Some(SocketAddr::new(ip, port))
                });
                Some(Self::Here(addresses.collect()))
            }
            _ => None,
        }
    }

    /// The inner packet.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut packet = vec![0; LENGTH];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
        packet[8] = 1;
        packet[9] = PROTOCOL;
        packet[12..16].copy_from_slice(&ADDRESS);
        packet[16..20].copy_from_slice(&ADDRESS);
        // Nobody checks the header's sum but who looks at it in a capture.
        let sum: u32 = packet[..V4_HEADER]
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let body = &mut packet[V4_HEADER..];
        match self {
            Self::Ask(number) | Self::Answer(number) => {
                body[0] = if matches!(self, Self::Ask(_)) {
                    ASK
                } else {
                    ANSWER
                };
                body[4..12].copy_from_slice(&number.to_be_bytes());
            }
            Self::Here(addresses) => {
                body[0] = HERE;
                body[1] = addresses.len().min(MOST_ADDRESSES) as u8;
                for (place, address) in body[12..].chunks_exact_mut(PLACE).zip(addresses) {
                    let ip = match address.ip() {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                        IpAddr::V6(ip) => ip,
                    };
                    place[..16].copy_from_slice(&ip.octets());
                    place[16..].copy_from_slice(&address.port().to_be_bytes());
                }
            }
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signals_survive_the_wire() {
        let here = vec![
            "192.0.2.1:9".parse().unwrap(),
            "[2001:db8::1]:10".parse().unwrap(),
        ];
        for signal in [Signal::Ask(7), Signal::Answer(u64::MAX), Signal::Here(here)] {
            let packet = signal.write();
            assert_eq!(Signal::read(&packet), Some(signal));
            assert_eq!(packet.len() % 16, 0, "no padding is needed");
        }
        let many = vec!["192.0.2.1:9".parse().unwrap(); 50];
        let Some(Signal::Here(kept)) = Signal::read(&Signal::Here(many).write()) else {
            unreachable!()
        };
        assert_eq!(kept.len(), MOST_ADDRESSES);
    }

    proptest! {
        #[test]
        fn any_packet_is_read_or_refused(at in 0usize..LENGTH, value in any::<u8>(), cut in 0usize..=LENGTH) {
            let mut packet = Signal::Here(vec!["192.0.2.1:9".parse().unwrap()]).write();
            packet[at] = value;
            let _ = Signal::read(&packet[..cut]);
            prop_assert!(cut == LENGTH || Signal::read(&packet[..cut]).is_none());
        }
    }
}
