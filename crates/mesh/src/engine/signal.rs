//! How signals travel inside a session: as IPv4 packets from and to 192.0.0.8, an address that no node has (RFC 7600), of protocol 253, which is
//! for experiments (RFC 3692). A WireGuard node that is none of ours drops them, as their sender may not use that address.

use crate::packet::V4_HEADER;
use crate::ways::signal::{LENGTH, Signal};

/// The address of both ends.
pub(super) const ADDRESS: [u8; 4] = [192, 0, 0, 8];
const PROTOCOL: u8 = 253;
const PACKET: usize = V4_HEADER + LENGTH;

/// Reads an inner packet; `None` if it is no signal.
pub(super) fn read(packet: &[u8]) -> Option<Signal> {
    let (header, body) = packet.split_at_checked(V4_HEADER)?;
    let ours = header[0] == 0x45
        && header[9] == PROTOCOL
        && header[12..16] == ADDRESS
        && header[16..20] == ADDRESS;
    ours.then(|| Signal::read(body)).flatten()
}

/// The inner packet.
pub(super) fn packet(signal: &Signal) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
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
    packet[V4_HEADER..].copy_from_slice(&signal.write());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_travel_as_packets_that_need_no_padding() {
        for signal in [Signal::Ask(7), Signal::Here(Vec::new())] {
            let packet = packet(&signal);
            assert_eq!(packet.len() % 16, 0);
            assert_eq!(read(&packet), Some(signal));
            for at in [0, 9, 12, 16] {
                let mut other = packet;
                other[at] ^= 1;
                assert_eq!(read(&other), None, "byte {at}");
            }
            assert_eq!(read(&packet[..PACKET - 1]), None);
        }
    }
}
