//! How programs of a machine with a device reach a service's address, without the address being this machine's.
//!
//! Were the address put on the device, the door would take the port from a server of this machine that listens everywhere, or the other way round, and whoever
//! came second would fail. So nobody has the address: what is sent to it comes out of the device, as everything in the mesh's range does, is changed here, and goes
//! back into the device, to the port of this node's own address where the door listens:
//!
//! ```text
//! program  100.64.0.7:40000 ──► 100.127.0.1:5432       becomes   100.127.0.1:40000 ──► 100.64.0.7:38211   door
//! program  100.64.0.7:40000 ◄── 100.127.0.1:5432   is made from  100.127.0.1:40000 ◄── 100.64.0.7:38211   door
//! ```
//!
//! The addresses change places, and one port is another, which needs no memory. The sum over the addresses stays what it was, so of checksums only a complete one
//! of TCP or UDP has to follow the port (RFC 1624). Nothing here leaves the machine: what the door opens to an endpoint is judged as everything is.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

use crate::packet::{V4_HEADER, number16, set16};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A service's address and port, for a protocol by its number.
pub(crate) type Front = (u8, Ipv4Addr, u16);

#[derive(Debug, Default)]
struct Doors {
    to: HashMap<Front, u16>,
    back: HashMap<(u8, Ipv4Addr, u16), u16>,
}

/// Which door stands for which port of which service.
#[derive(Debug)]
pub struct Redirects {
    own: Ipv4Addr,
    doors: RwLock<Doors>,
}

impl Redirects {
    /// None yet, at the node with this address.
    pub(crate) fn new(own: Ipv4Addr) -> Self {
        Self {
            own,
            doors: RwLock::default(),
        }
    }

    /// From now on what is sent to `front` reaches this port of the node's own address.
    pub(crate) fn open(&self, front: Front, door: u16) {
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = doors.to.insert(front, door) {
            doors.back.remove(&(front.0, front.1, old));
        }
        doors.back.insert((front.0, front.1, door), front.2);
    }

    /// From now on it does not.
    pub(crate) fn close(&self, front: Front) {
        let mut doors = self.doors.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(door) = doors.to.remove(&front) {
            doors.back.remove(&(front.0, front.1, door));
        }
    }

    /// Changes a packet from the device so that it can go back into it; whether it is such a packet. `complete` says that its checksum is made already.
    pub(crate) fn turn(&self, packet: &mut [u8], complete: bool) -> bool {
        self.try_turn(packet, complete).is_some()
    }

    fn try_turn(&self, packet: &mut [u8], complete: bool) -> Option<()> {
        let header = packet.get(..V4_HEADER)?;
        let length = usize::from(header[0] & 15) * 4;
        // A piece has no ports; nobody sends one to these addresses whose MTU is known.
        let whole = number16(header, 6)? & 0x3fff == 0;
        let protocol = header[9];
        let address = |at: usize| {
            Some(Ipv4Addr::from(
                <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?,
            ))
        };
        let (source, service) = (address(12)?, address(16)?);
        if header[0] >> 4 != 4 || length < V4_HEADER || !whole || source != self.own {
            return None;
        }
        let checksum = match protocol {
            TCP => length + 16,
            UDP => length + 6,
            _ => return None,
        };
        let (from, to) = (number16(packet, length)?, number16(packet, length + 2)?);
        number16(packet, checksum)?;
        let doors = self.doors.read().unwrap_or_else(PoisonError::into_inner);
        let (at, before, after) = match doors.back.get(&(protocol, service, from)) {
            Some(port) => (length, from, *port),
            None => (length + 2, to, *doors.to.get(&(protocol, service, to))?),
        };
        drop(doors);
        set16(packet, at, after);
        if complete {
            let sum = number16(packet, checksum)?;
            // Without a checksum, which UDP may be, there is none to follow.
            if protocol != UDP || sum != 0 {
                set16(packet, checksum, follow(protocol, sum, before, after));
            }
        }
        let (sources, destinations) = packet.get_mut(12..20)?.split_at_mut(4);
        sources.swap_with_slice(destinations);
        Some(())
    }
}

/// The checksum after one word became another (RFC 1624, equation 3).
fn follow(protocol: u8, sum: u16, before: u16, after: u16) -> u16 {
    let mut all = u32::from(!sum) + u32::from(!before) + u32::from(after);
    while all >> 16 != 0 {
        all = (all & 0xffff) + (all >> 16);
    }
    match !(all as u16) {
        // For UDP zero means that there is none.
        0 if protocol == UDP => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::checksum::Sum;
    use crate::packet::addresses;

    const OWN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 7);
    const SERVICE: Ipv4Addr = Ipv4Addr::new(100, 127, 0, 1);

    /// A packet with right checksums.
    fn packet(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), body: &[u8]) -> Vec<u8> {
        let transport = if protocol == TCP { 20 } else { 8 };
        let mut packet = vec![0; V4_HEADER + transport];
        packet.extend(body);
        let length = packet.len();
        packet[0] = 0x45;
        set16(&mut packet, 2, length as u16);
        packet[8] = 64;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&from.0.octets());
        packet[16..20].copy_from_slice(&to.0.octets());
        let sum = Sum::default().bytes(&packet[..V4_HEADER]).finish();
        set16(&mut packet, 10, sum);
        set16(&mut packet, 20, from.1);
        set16(&mut packet, 22, to.1);
        if protocol == TCP {
            packet[32] = 0x50;
        } else {
            set16(&mut packet, 24, (length - V4_HEADER) as u16);
        }
        let at = V4_HEADER + if protocol == TCP { 16 } else { 6 };
        let sum = whole(&packet).finish();
        let none = sum == 0 && protocol == UDP;
        set16(&mut packet, at, if none { 0xffff } else { sum });
        packet
    }

    fn whole(packet: &[u8]) -> Sum {
        let found = addresses(packet).unwrap();
        let length = packet.len() - V4_HEADER;
        Sum::default()
            .pseudo_header(&found, packet[9], length)
            .bytes(&packet[V4_HEADER..])
    }

    fn redirects() -> Redirects {
        let redirects = Redirects::new(OWN);
        redirects.open((TCP, SERVICE, 5432), 38211);
        redirects.open((UDP, SERVICE, 53), 40053);
        redirects
    }

    #[test]
    fn only_what_this_node_sends_to_a_door_is_turned() {
        let redirects = redirects();
        let other = Ipv4Addr::new(100, 64, 0, 8);
        for (protocol, from, to) in [
            (TCP, (OWN, 40000), (SERVICE, 5433)),
            (UDP, (OWN, 40000), (SERVICE, 5432)),
            (TCP, (other, 40000), (SERVICE, 5432)),
            (TCP, (OWN, 40000), (other, 5432)),
            // The door's answers go to those who came over this service's address.
            (TCP, (OWN, 38211), (Ipv4Addr::new(100, 127, 0, 2), 40000)),
        ] {
            let mut sent = packet(protocol, from, to, b"body");
            let before = sent.clone();
            assert!(!redirects.turn(&mut sent, true), "{from:?} {to:?}");
            assert_eq!(sent, before);
        }
        let mut piece = packet(TCP, (OWN, 40000), (SERVICE, 5432), b"body");
        set16(&mut piece, 6, 0x2000);
        assert!(!redirects.turn(&mut piece, true));
        redirects.open((TCP, SERVICE, 5432), 38212);
        let mut moved = packet(TCP, (OWN, 40000), (SERVICE, 5432), b"body");
        assert!(redirects.turn(&mut moved, true));
        assert_eq!(number16(&moved, 22), Some(38212));
        redirects.close((TCP, SERVICE, 5432));
        let mut closed = packet(TCP, (OWN, 40000), (SERVICE, 5432), b"body");
        assert!(!redirects.turn(&mut closed, true));
    }

    proptest! {
        #[test]
        fn there_and_back_is_as_it_was_and_checksums_hold(
            tcp: bool,
            port in 1024..u16::MAX,
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            prop_assume!(port != 38211 && port != 40053);
            let redirects = redirects();
            let (protocol, front, door) = if tcp { (TCP, 5432, 38211) } else { (UDP, 53, 40053) };
            let mut there = packet(protocol, (OWN, port), (SERVICE, front), &body);
            prop_assert!(redirects.turn(&mut there, true));
            prop_assert_eq!(&there, &packet(protocol, (SERVICE, port), (OWN, door), &body));
            prop_assert!(whole(&there).holds());
            let mut back = packet(protocol, (OWN, door), (SERVICE, port), &body);
            prop_assert!(redirects.turn(&mut back, true));
            prop_assert!(whole(&back).holds());
            prop_assert_eq!(&back, &packet(protocol, (SERVICE, front), (OWN, port), &body));
            // What the kernel leaves to be summed later is over the addresses, which are the same ones.
            let mut partial = packet(protocol, (OWN, port), (SERVICE, front), &body);
            let at = V4_HEADER + if tcp { 16 } else { 6 };
            let before = number16(&partial, at);
            prop_assert!(redirects.turn(&mut partial, false));
            prop_assert_eq!(number16(&partial, at), before);
        }

        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut packet = packet(TCP, (OWN, 1), (SERVICE, 5432), &[]);
            let redirects = redirects();
            for (place, byte) in packet.iter_mut().skip(20).zip(&bytes) {
                *place = *byte;
            }
            packet.truncate(20 + bytes.len());
            let _ = redirects.turn(&mut packet, true);
            let _ = redirects.turn(&mut bytes.clone(), true);
        }
    }
}
