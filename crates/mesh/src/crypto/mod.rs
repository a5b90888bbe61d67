//! What the engine needs of a WireGuard core, as our own traits: handshakes, sealing and opening in batches, timers.
//!
//! The core behind them is the `noise` module of [boringtun](https://docs.rs/boringtun), and nothing outside
//! `noise.rs` knows that. Why this one and not its fork `gotatun`, both being alive:
//!
//! - boringtun is BSD-3-Clause and builds with what is in the workspace already (ring) and the RustCrypto crates of the
//!   handshake. gotatun is MPL-2.0, asks for Rust 1.95 where the workspace promises 1.88, and brings tokio, futures, eyre
//!   and several macro crates even without its device.
//! - boringtun seals from one slice into another, so sealed packets land side by side, as the kernel wants them to cut one
//!   large datagram. gotatun owns each packet in a buffer of its own, which would have to be copied together again.
//! - boringtun's limit on handshakes is one counter; gotatun's is a map by source address that a flood from forged
//!   addresses fills, and never trips.
//!
//! What the core lacks is added here: padding, a bound on packets that wait for a session over all peers, the refusal of
//! counters that would wrap, keepalives that can be changed and that outlive a failed handshake, and a clock handed in.
//! What needs the core's own clock stays with the core: repeating a handshake, refusing old sessions.

mod flood;
mod noise;
mod rotating;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use flood::Sources;
pub use noise::NoiseCore;
pub(crate) use noise::{public_key, shared_secret};
pub(crate) use rotating::STRANDS;
pub use rotating::{OwnKeys, RotatingCore};

use zeroize::Zeroizing;

use crate::batch::Batch;
use crate::key::{PresharedKey, PublicKey};

/// How many bytes sealing adds to a packet.
pub const OVERHEAD: usize = 32;
/// The length of a handshake's first message.
pub const INITIATION: usize = 148;
/// The length of a handshake's answer.
pub const RESPONSE: usize = 92;
/// The length of the message that asks an initiator to prove its address.
pub const COOKIE: usize = 64;

/// What a datagram is, by its first bytes and its length. Nothing is proven by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody asks for a session.
    Initiation,
    /// The answer, for the peer with this index.
    Response(u32),
    /// A cookie, for the peer with this index.
    Cookie(u32),
    /// A sealed packet, for the peer with this index.
    Data(u32),
}

impl Kind {
    /// Reads it off a datagram; `None` if WireGuard sends nothing like it.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = datagram.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        // The peer's index is in the upper 24 bits, the session's number in the lower 8.
        match (word(0)?, datagram.len()) {
            (4, OVERHEAD..) => Some(Self::Data(word(4)? >> 8)),
            (1, INITIATION) => Some(Self::Initiation),
            (2, RESPONSE) => Some(Self::Response(word(8)? >> 8)),
            (3, COOKIE) => Some(Self::Cookie(word(4)? >> 8)),
            _ => None,
        }
    }
}

/// What becomes of a handshake's message before anything expensive is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It was made for this node; go on.
    Pass,
    /// There is load: send back this cookie, and forget the message.
    Challenge([u8; COOKIE]),
    /// It was not made by somebody who knows this node.
    Refuse,
}

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is forged, replayed, late, or not for this session")]
pub struct Refused;

/// What a peer's tunnel is made from.
#[derive(Debug, Clone)]
pub struct TunnelKeys {
    /// Whom it leads to.
    pub peer: PublicKey,
    /// The secret that both mix in.
    pub preshared: Option<PresharedKey>,
    /// The peer's number in this engine, 24 bits, of which the lowest two are the core's.
    pub index: u32,
}

/// One node's cryptography: what is common to all of its peers.
pub trait Core: fmt::Debug + Send + Sync {
    /// The node's public key.
    fn public_key(&self) -> PublicKey;

    /// Checks a handshake's message cheaply, and asks for a proof of address when there are many.
    fn admit(&self, source: IpAddr, message: &[u8]) -> Admission;

    /// Whose initiation this is.
    ///
    /// # Errors
    /// The message is not for this node.
    fn identify(&self, initiation: &[u8]) -> Result<PublicKey, Refused>;

    /// What this node and the holder of another key have in common; `None` for a key that has that with everybody.
    fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>>;

    /// A tunnel without a session.
    fn tunnel(&self, keys: &TunnelKeys) -> Box<dyn Tunnel>;

    /// To be called once a second.
    fn tick(&self);
}

/// What sealing a batch came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Packets sealed.
    pub packets: u64,
    /// Their bytes, as they came.
    pub bytes: u64,
    /// Packets that wait for a session.
    pub waiting: u64,
    /// Packets for which there was no room to wait.
    pub dropped: u64,
}

/// What opening a batch came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// Packets opened.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Authentic messages without a packet.
    pub keepalives: u64,
    /// Messages that are not authentic, were there before, or hold nothing like an IP packet.
    pub rejected: u64,
}

impl Opened {
    /// Whether something was proven to come from the peer.
    pub const fn authentic(&self) -> bool {
        self.packets + self.keepalives > 0
    }
}

/// The cryptographic state that is shared with one peer: a handshake under way, the sessions of the last minutes.
///
/// Every method appends what has to be sent to the peer to a batch, in the order in which it has to be sent.
pub trait Tunnel: fmt::Debug + Send {
    /// Seals packets, each of which lies in `plain` with its padding. Without a session they wait, and a handshake begins.
    fn seal(&mut self, plain: &Batch, sealed: &mut Batch) -> Sealed;

    /// Opens data messages; the packets are appended to `plain` without padding. `replies` gets what waited for
    /// the session that these messages proved.
    fn open(
        &mut self,
        sealed: &mut dyn Iterator<Item = &[u8]>,
        plain: &mut Batch,
        replies: &mut Batch,
    ) -> Opened;

    /// Takes a message of a handshake or a cookie.
    ///
    /// # Errors
    /// The message is refused; nothing changed.
    fn handshake(&mut self, message: &[u8], replies: &mut Batch) -> Result<(), Refused>;

    /// Whether packets would be sealed now, and not wait.
    fn ready(&self) -> bool;

    /// Lets timers fire: rekeying, repeating, keepalives, forgetting. To be called several times a second.
    fn tick(&mut self, replies: &mut Batch);

    /// How often to send something though there is nothing to send, for NATs to remember; `None` for never.
    fn set_keepalive(&mut self, every: Option<Duration>);

    /// Takes other keys of the peer, the one that it surely answers to first, and those of this node that are in force now. `follows` if the peer is told of
    /// this node's next key. Of a core that has one key for good, nothing changes.
    fn renew(&mut self, peers: &[PublicKey], follows: bool) {
        let _ = (peers, follows);
    }

    /// Whether the newest keys of both are in use, so that older ones can go.
    fn renewed(&self) -> bool {
        true
    }

    /// When the last handshake ended well.
    fn last_handshake(&self) -> Option<Instant>;

    /// How many handshakes ended well.
    fn handshakes(&self) -> u64;
}

/// Pads to a multiple of 16 bytes, so that lengths tell less, but never beyond the MTU.
pub(crate) fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu.max(length))
}

/// Cores are shared among threads.
pub(crate) type SharedCore = Arc<dyn Core>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stays_below_the_mtu() {
        for (length, mtu, expected) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (1500, 1420, 1500),
        ] {
            assert_eq!(padded(length, mtu), expected, "{length} {mtu}");
        }
    }

    #[test]
    fn only_exact_lengths_are_messages() {
        let message = |kind: u32, length: usize| {
            let mut bytes = vec![0x11; length];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes
        };
        assert_eq!(Kind::of(&message(1, 148)), Some(Kind::Initiation));
        assert_eq!(Kind::of(&message(2, 92)), Some(Kind::Response(0x0011_1111)));
        assert_eq!(Kind::of(&message(3, 64)), Some(Kind::Cookie(0x0011_1111)));
        assert_eq!(Kind::of(&message(4, 32)), Some(Kind::Data(0x0011_1111)));
        for (kind, length) in [
            (1, 147),
            (1, 149),
            (2, 148),
            (3, 65),
            (4, 31),
            (4, 4),
            (0, 64),
            (5, 64),
            (0x104, 64),
        ] {
            assert_eq!(Kind::of(&message(kind, length)), None, "{kind} {length}");
        }
        assert_eq!(Kind::of(&[4, 0, 0]), None);
    }
}
