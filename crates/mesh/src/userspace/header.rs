//! What stands at the beginning of a stream, and how it is answered.
//!
//! ```text
//! caller ──► 1, 4 or 6, port (16 bits), address (4 or 16 bytes), then what the flow carries
//!        ◄── 0, then what the flow carries; or the number of a refusal, and the end
//! caller ──► 3, as above: a flow of datagrams, for as long as the stream is open (`datagrams`)
//! caller ──► 2, 0, 0, 0, and the end: whoever is called says 0 and ends too, so the time of a round trip is known
//! ```
//!
//! The address is one that the called node has in the mesh. It is the caller who resolves names, since the mesh gives the same answer everywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kinds of flows, over TCP and UDP.
const TCP: u8 = 1;
const UDP: u8 = 3;
/// What asks for an answer and nothing else.
pub(super) const ECHO: [u8; FIRST] = [2, 0, 0, 0];
/// The part of a request that all have.
pub(super) const FIRST: usize = 4;
/// The answer to a request that is granted.
pub(super) const GRANTED: u8 = 0;

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// Bytes in order: TCP.
    Bytes,
    /// Datagrams: UDP. Versions that know none refuse it as [`Refusal::Confused`].
    Datagrams,
}

/// Where a flow is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What it carries.
    pub carries: Carries,
    /// An address that the called node has in the mesh.
    pub address: IpAddr,
    /// The port there; never 0.
    pub port: u16,
}

impl Request {
    /// As it stands at the beginning of a stream.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self.carries {
            Carries::Bytes => TCP,
            Carries::Datagrams => UDP,
        };
        let mut bytes = vec![kind, if self.address.is_ipv4() { 4 } else { 6 }];
        bytes.extend(self.port.to_be_bytes());
        match self.address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
        bytes
    }

    /// How many bytes follow the first four; `None` if this is no request.
    pub fn rest(first: &[u8; FIRST]) -> Option<usize> {
        match first {
            [TCP | UDP, _, 0, 0] => None,
            [TCP | UDP, 4, ..] => Some(4),
            [TCP | UDP, 6, ..] => Some(16),
            _ => None,
        }
    }

    /// Reads what [`Request::encode`] wrote, all of it and no more.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk::<FIRST>()?;
        Self::rest(first)?;
        let address = match first[1] {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(rest).ok()?).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(rest).ok()?).into(),
        };
        let carries = match first[0] {
            UDP => Carries::Datagrams,
            _ => Carries::Bytes,
        };
        let port = u16::from_be_bytes([first[2], first[3]]);
        Some(Self {
            carries,
            address,
            port,
        })
    }
}

/// Why there is no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No rule allows it, at this end or the other.
    #[error("no rule of the policy allows it")]
    Denied,
    /// The node offers no such port.
    #[error("the node offers no such port")]
    Undeclared,
    /// The node offers the port, but nobody listens at it.
    #[error("nobody listens at that port")]
    Closed,
    /// It took too long.
    #[error("there was no answer in time")]
    Silent,
    /// A limit is reached, at this end or the other.
    #[error("there is no room for another flow")]
    Busy,
    /// The other end does not understand what is asked, or is not whom it is asked for.
    #[error("the other end does not understand the request")]
    Confused,
    /// No node or service has this name or address.
    #[error("no node or service has this name")]
    Unknown,
    /// The node is not to be reached, or is not the one that the directory names.
    #[error("the node cannot be reached")]
    Unreachable,
    /// The node is of a version that knows no datagrams.
    #[error("the node runs an older Atoll, which carries no UDP")]
    NoDatagrams,
}

impl Refusal {
    /// Those that are told to the other end; the others are found at this one.
    const TOLD: [(u8, Self); 6] = [
        (1, Self::Denied),
        (2, Self::Undeclared),
        (3, Self::Closed),
        (4, Self::Silent),
        (5, Self::Busy),
        (6, Self::Confused),
    ];

    /// Its number as an answer.
    pub(super) fn code(self) -> u8 {
        let told = Self::TOLD.iter().find(|(_, refusal)| *refusal == self);
        told.map_or(6, |(code, _)| *code)
    }

    /// The one with this number; a number that a later version may have given is [`Refusal::Confused`].
    pub(super) fn from_code(code: u8) -> Self {
        let told = Self::TOLD.iter().find(|(known, _)| *known == code);
        told.map_or(Self::Confused, |(_, refusal)| *refusal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refusals_keep_their_numbers() {
        for (code, refusal) in Refusal::TOLD {
            assert_eq!(refusal.code(), code);
            assert_eq!(Refusal::from_code(code), refusal);
        }
        assert_eq!(Refusal::from_code(200), Refusal::Confused);
        assert_ne!(Refusal::Unknown.code(), GRANTED);
    }

    proptest! {
        #[test]
        fn requests_survive(address: IpAddr, port in 1u16.., datagrams: bool) {
            let carries = if datagrams { Carries::Datagrams } else { Carries::Bytes };
            let request = Request { carries, address, port };
            let bytes = request.encode();
            let first = bytes.first_chunk().unwrap();
            prop_assert_eq!(Request::rest(first), Some(bytes.len() - FIRST));
            prop_assert_eq!(Request::decode(&bytes), Some(request));
            prop_assert_eq!(Request::decode(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn what_is_read_is_what_would_be_written(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes);
            }
        }
    }
}
