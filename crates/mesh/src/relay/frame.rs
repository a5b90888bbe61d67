//! What relays and their clients say to each other. See the module above for the order of it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::crypto::Kind;
use crate::key::PublicKey;

/// How many bytes a relay adds to a datagram of WireGuard's: with IPv4 and an inner MTU of 1420, exactly 1500 in all.
pub const HEADER: usize = 20;
/// The longest ticket.
pub const LONGEST_TICKET: usize = 512;
/// Behind the kind: the protocol's mark, its version, and nothing. WireGuard has zeros there.
pub(crate) const MARK: [u8; 3] = [0xa7, 1, 0];
const HELLO: u8 = 0x81;
const CHALLENGE: u8 = 0x82;
const REGISTER: u8 = 0x83;
const REGISTERED: u8 = 0x84;
const DATA: u8 = 0x85;
const UNKNOWN: u8 = 0x86;
const GOODBYE: u8 = 0x87;
/// The kind of what two nodes say to each other of the ways between them, and how long that is. Relays carry it and know no more of it.
pub(crate) const SIGNAL: u8 = 0x88;
/// See [`SIGNAL`].
pub(crate) const SIGNAL_LENGTH: usize = 200;

/// The shortest datagram of QUIC's that an endpoint looks at (RFC 9000, section 10.3).
const SHORTEST_QUIC: usize = 21;

/// What belongs a question to its answer.
pub type Nonce = [u8; 16];
/// A proof, cut to 16 bytes.
pub type Tag = [u8; 16];

/// The first bytes of a node's public key, by which a relay knows it. To find a key with the same ones is beyond anyone, and
/// who registers first keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Short(pub [u8; 12]);

impl Short {
    /// A node's.
    pub fn of(key: &PublicKey) -> Self {
        let mut short = [0; 12];
        short.copy_from_slice(&key.as_bytes()[..12]);
        Self(short)
    }
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Client: who I am.
    Hello {
        /// The client's key; nothing proves it yet.
        node: PublicKey,
        /// To be repeated in the answer.
        nonce: Nonce,
    },
    /// Relay: prove that you get what is sent to you. Shorter than what it answers.
    Challenge {
        /// The question's.
        nonce: Nonce,
        /// To be sent back.
        cookie: Tag,
    },
    /// Client: let me in.
    Register {
        /// The client's key.
        node: PublicKey,
        /// That of the hello before.
        nonce: Nonce,
        /// The challenge's.
        cookie: Tag,
        /// Why it should be let in.
        ticket: &'a [u8],
        /// The proof that the client holds the key's private half, over all before.
        tag: Tag,
    },
    /// Relay: you are in. Shorter than what it answers.
    Registered {
        /// The question's.
        nonce: Nonce,
        /// What data has to carry in both directions; never 0.
        session: u32,
        /// How long that holds.
        lifetime: Duration,
        /// Where the client is, as the relay sees it.
        seen: SocketAddr,
        /// The proof that this is the relay, over all before.
        tag: Tag,
    },
    /// A datagram of WireGuard's.
    Data {
        /// The session between this client and the relay.
        session: u32,
        /// To the relay: for whom. From the relay: from whom.
        node: Short,
        /// The datagram.
        packet: &'a [u8],
    },
    /// Relay: no such session; register anew.
    Unknown {
        /// The one that was used.
        session: u32,
    },
    /// Either: this session ends now.
    Goodbye {
        /// Which one.
        session: u32,
    },
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn short(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Whether this may be a frame or a signal, and is no datagram of WireGuard's or QUIC's.
pub(crate) fn marked(bytes: &[u8]) -> bool {
    bytes.get(1..4) == Some(&MARK)
}

/// The session and the node of a data frame, and its datagram.
pub(crate) fn data(bytes: &[u8]) -> Option<(u32, Short, &[u8])> {
    match Frame::read(bytes)? {
        Frame::Data {
            session,
            node,
            packet,
        } => Some((session, node, packet)),
        _ => None,
    }
}

impl<'a> Frame<'a> {
    /// Reads a frame that is all of `bytes`; `None` if it is none.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let [kind] = reader.bytes()?;
        if reader.bytes()? != MARK {
            return None;
        }
        match kind {
            DATA => {
                let session = reader.word()?;
                let node = Short(reader.bytes()?);
                Some(Self::Data {
                    session,
                    node,
                    packet: reader.0,
                })
            }
            HELLO => {
                let node = PublicKey::from_bytes(reader.bytes()?);
                let nonce = reader.bytes()?;
                reader.end(Self::Hello { node, nonce })
            }
            CHALLENGE => {
                let nonce = reader.bytes()?;
                let cookie = reader.bytes()?;
                reader.end(Self::Challenge { nonce, cookie })
            }
            REGISTER => {
                let node = PublicKey::from_bytes(reader.bytes()?);
                let nonce = reader.bytes()?;
                let cookie = reader.bytes()?;
                let length = usize::from(reader.short()?);
                if length > LONGEST_TICKET {
                    return None;
                }
                let ticket = reader.slice(length)?;
                let tag = reader.bytes()?;
                reader.end(Self::Register {
                    node,
                    nonce,
                    cookie,
                    ticket,
                    tag,
                })
            }
            REGISTERED => {
                let nonce = reader.bytes()?;
                let session = reader.word().filter(|session| *session != 0)?;
                let lifetime = Duration::from_secs(reader.short()?.into());
                let ip = Ipv6Addr::from(reader.bytes::<16>()?);
                let seen = SocketAddr::new(ip.to_canonical(), reader.short()?);
                let tag = reader.bytes()?;
                reader.end(Self::Registered {
                    nonce,
                    session,
                    lifetime,
                    seen,
                    tag,
                })
            }
            UNKNOWN => {
                let session = reader.word()?;
                reader.end(Self::Unknown { session })
            }
            GOODBYE => {
                let session = reader.word()?;
                reader.end(Self::Goodbye { session })
            }
            _ => None,
        }
    }

    /// Appends the frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut head = |kind: u8| {
            out.push(kind);
            out.extend_from_slice(&MARK);
        };
        match self {
            Self::Hello { node, nonce } => {
                head(HELLO);
                out.extend_from_slice(node.as_bytes());
                out.extend_from_slice(nonce);
            }
            Self::Challenge { nonce, cookie } => {
                head(CHALLENGE);
                out.extend_from_slice(nonce);
                out.extend_from_slice(cookie);
            }
            Self::Register {
                node,
                nonce,
                cookie,
                ticket,
                tag,
            } => {
                head(REGISTER);
                out.extend_from_slice(node.as_bytes());
                out.extend_from_slice(nonce);
                out.extend_from_slice(cookie);
                let ticket = ticket.get(..LONGEST_TICKET).unwrap_or(ticket);
                out.extend_from_slice(&(ticket.len() as u16).to_be_bytes());
                out.extend_from_slice(ticket);
                out.extend_from_slice(tag);
            }
            Self::Registered {
                nonce,
                session,
                lifetime,
                seen,
                tag,
            } => {
                head(REGISTERED);
                out.extend_from_slice(nonce);
                out.extend_from_slice(&session.to_be_bytes());
                let seconds = u16::try_from(lifetime.as_secs()).unwrap_or(u16::MAX);
                out.extend_from_slice(&seconds.to_be_bytes());
                let ip = match seen.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                out.extend_from_slice(&ip.octets());
                out.extend_from_slice(&seen.port().to_be_bytes());
                out.extend_from_slice(tag);
            }
            Self::Data {
                session,
                node,
                packet,
            } => {
                head(DATA);
                out.extend_from_slice(&session.to_be_bytes());
                out.extend_from_slice(&node.0);
                out.extend_from_slice(packet);
            }
            Self::Unknown { session } => {
                head(UNKNOWN);
                out.extend_from_slice(&session.to_be_bytes());
            }
            Self::Goodbye { session } => {
                head(GOODBYE);
                out.extend_from_slice(&session.to_be_bytes());
            }
        }
    }
}

/// What a datagram costs that a node gives to be carried, in handshakes; `None` for what no node sends to another.
pub(super) fn cost(datagram: &[u8]) -> Option<f64> {
    match (Kind::of(datagram), datagram) {
        (Some(Kind::Data(_)), _) => Some(0.0),
        (Some(_), _) => Some(1.0),
        (None, [SIGNAL, ..]) if marked(datagram) && datagram.len() == SIGNAL_LENGTH => Some(0.0),
        // QUIC (RFC 9000, section 17): a bit that all have, one for those that begin a connection, of which each end sends several.
        (None, [first, ..]) if first & 0xc0 == 0xc0 && datagram.len() >= SHORTEST_QUIC => {
            Some(0.125)
        }
        (None, [first, ..]) if first & 0xc0 == 0x40 && datagram.len() >= SHORTEST_QUIC => Some(0.0),
        _ => None,
    }
}

/// The head of a data frame; the datagram follows.
pub(crate) fn data_header(session: u32, node: Short) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = DATA;
    header[1..4].copy_from_slice(&MARK);
    header[4..8].copy_from_slice(&session.to_be_bytes());
    header[8..].copy_from_slice(&node.0);
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(ticket: &[u8]) -> Vec<Frame<'_>> {
        let node = PublicKey::from_bytes([7; 32]);
        let (nonce, tag) = ([1; 16], [2; 16]);
        vec![
            Frame::Hello { node, nonce },
            Frame::Challenge { nonce, cookie: tag },
            Frame::Register {
                node,
                nonce,
                cookie: tag,
                ticket,
                tag,
            },
            Frame::Registered {
                nonce,
                session: 9,
                lifetime: Duration::from_secs(60),
                seen: "192.0.2.1:51820".parse().unwrap(),
                tag,
            },
            Frame::Data {
                session: 9,
                node: Short::of(&node),
                packet: ticket,
            },
            Frame::Unknown { session: 9 },
            Frame::Goodbye { session: 9 },
        ]
    }

    #[test]
    fn frames_survive_the_wire_and_are_nothing_of_wireguards() {
        for frame in frames(&[5; 300]) {
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            assert_eq!(Frame::read(&bytes), Some(frame));
            assert!(marked(&bytes));
            assert_eq!(Kind::of(&bytes), None);
        }
        let mut header = Vec::new();
        frames(&[])[4].write(&mut header);
        let node = Short::of(&PublicKey::from_bytes([7; 32]));
        assert_eq!(header, data_header(9, node));
    }

    #[test]
    fn only_what_nodes_send_to_each_other_is_carried() {
        let datagram = |head: &[u8], length: usize| {
            let mut bytes = head.to_vec();
            bytes.resize(length, 7);
            bytes
        };
        for (head, length, expected) in [
            (&[4, 0, 0, 0][..], 32, Some(0.0)),
            (&[1, 0, 0, 0], 148, Some(1.0)),
            (&[0xc3, 0, 0, 0, 1], 1200, Some(0.125)),
            (&[0x4a], 40, Some(0.0)),
            (&[SIGNAL, 0xa7, 1, 0], SIGNAL_LENGTH, Some(0.0)),
            (&[SIGNAL, 0xa7, 1, 0], SIGNAL_LENGTH + 1, None),
            (&[HELLO, 0xa7, 1, 0], 52, None),
            (&[0x4a], 20, None),
            (&[0x16, 3, 1], 200, None),
            (&[], 0, None),
        ] {
            assert_eq!(cost(&datagram(head, length)), expected, "{head:?} {length}");
        }
    }

    #[test]
    fn no_answer_is_longer_than_its_question() {
        let length = |frame: Frame<'_>| {
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            bytes.len()
        };
        let lengths: Vec<_> = frames(&[]).into_iter().map(length).collect();
        let [hello, challenge, register, registered, data, unknown, _] = lengths[..] else {
            unreachable!()
        };
        assert!(challenge <= hello && registered <= register && unknown <= data);
    }

    proptest! {
        #[test]
        fn anything_is_refused_or_means_one_thing(kind in 0x80u8..0x89, rest in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let mut bytes = vec![kind];
            bytes.extend_from_slice(&MARK);
            bytes.extend_from_slice(&rest);
            if let Some(frame) = Frame::read(&bytes) {
                let mut again = Vec::new();
                frame.write(&mut again);
                prop_assert_eq!(Frame::read(&again), Some(frame));
            }
            for frame in frames(&rest) {
                let mut whole = Vec::new();
                frame.write(&mut whole);
                if cut < whole.len() && !matches!(frame, Frame::Data { .. }) {
                    prop_assert_eq!(Frame::read(&whole[..cut]), None);
                }
            }
        }
    }
}
