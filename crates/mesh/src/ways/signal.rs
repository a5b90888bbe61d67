//! What two nodes say to each other of the ways between them: probes, and where else they may be found.
//!
//! All signals are equally long, so that they tell nothing by it. How they are wrapped and under which keys they go is the carriers'.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const ASK: u8 = 1;
const ANSWER: u8 = 2;
const HERE: u8 = 3;
/// Addresses that one signal tells.
pub(crate) const MOST_ADDRESSES: usize = 8;
/// The length of one.
const PLACE: usize = 18;
/// The length of every signal.
pub(crate) const LENGTH: usize = 12 + MOST_ADDRESSES * PLACE;

/// One signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signal {
    /// A probe: send this number back the way it came.
    Ask(u64),
    /// The number of a probe.
    Answer(u64),
    /// Where the sender may be found.
    Here(Vec<SocketAddr>),
}

impl Signal {
    /// Reads a signal; `None` if it is none.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        if body.len() != LENGTH {
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

    /// The signal's bytes.
    pub(crate) fn write(&self) -> [u8; LENGTH] {
        let mut body = [0; LENGTH];
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
        body
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
            assert_eq!(Signal::read(&signal.write()), Some(signal));
        }
        let many = vec!["192.0.2.1:9".parse().unwrap(); 50];
        let Some(Signal::Here(kept)) = Signal::read(&Signal::Here(many).write()) else {
            unreachable!()
        };
        assert_eq!(kept.len(), MOST_ADDRESSES);
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(at in 0usize..LENGTH, value in any::<u8>(), cut in 0usize..=LENGTH) {
            let mut body = Signal::Here(vec!["192.0.2.1:9".parse().unwrap()]).write();
            body[at] = value;
            let _ = Signal::read(&body[..cut]);
            prop_assert!(cut == LENGTH || Signal::read(&body[..cut]).is_none());
        }
    }
}
