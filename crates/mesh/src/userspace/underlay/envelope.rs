//! How signals travel between two nodes that have no session yet: sealed under a key that follows from the keys of both.
//!
//! ```text
//! kind 0x88 │ mark of relays' frames │ sender, 12 bytes │ nonce, 12 bytes │ signal, sealed with ChaCha20-Poly1305 (RFC 8439)
//! ```
//!
//! The secret is what X25519 makes of both nodes' keys; each direction has a key of its own. Nonces are random: with the few signals that two nodes
//! exchange, that two are the same is beyond chance. What is played back changes nothing: questions are answered again, and answers count
//! once. No message of QUIC's begins so, as the bit that all of them have (RFC 9000, section 17) is not set.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::key::PublicKey;
use crate::relay::{MARK, SIGNAL, SIGNAL_LENGTH, Short, keyed};
use crate::ways::signal::{LENGTH, Signal};

/// What stands before the nonce.
const HEAD: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
// Relays know signals by their length.
const _: () = assert!(HEAD + NONCE + LENGTH + TAG == SIGNAL_LENGTH);

/// The keys between this node and another.
pub(super) struct Envelope {
    own: Short,
    out: LessSafeKey,
    back: LessSafeKey,
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Envelope(…)")
    }
}

/// Whose signal this is, if it is one. Nothing is proven by that.
pub(super) fn sender(datagram: &[u8]) -> Option<Short> {
    let (head, from) = datagram.split_first_chunk::<4>()?;
    let ours = datagram.len() == SIGNAL_LENGTH && head[0] == SIGNAL && head[1..] == MARK;
    ours.then(|| from.first_chunk().copied().map(Short))
        .flatten()
}

impl Envelope {
    /// From what X25519 makes of the keys of both.
    pub(super) fn new(secret: &[u8; 32], own: &PublicKey, other: &PublicKey) -> Option<Self> {
        let key = |from: &PublicKey, to: &PublicKey| {
            let key = keyed(
                secret,
                &[b"atoll underlay 1", from.as_bytes(), to.as_bytes()],
            );
            let key = UnboundKey::new(&CHACHA20_POLY1305, &key).ok()?;
            Some(LessSafeKey::new(key))
        };
        Some(Self {
            own: Short::of(own),
            out: key(own, other)?,
            back: key(other, own)?,
        })
    }

    /// The datagram; `None` if the kernel gives no random numbers.
    pub(super) fn seal(&self, signal: &Signal) -> Option<[u8; SIGNAL_LENGTH]> {
        let random = crate::key::random().ok()?;
        let nonce = *random.first_chunk::<NONCE>()?;
        let mut datagram = [0; SIGNAL_LENGTH];
        datagram[0] = SIGNAL;
        datagram[1..4].copy_from_slice(&MARK);
        datagram[4..HEAD].copy_from_slice(&self.own.0);
        datagram[HEAD..HEAD + NONCE].copy_from_slice(&nonce);
        let (head, rest) = datagram.split_at_mut(HEAD);
        let (body, tag) = rest[NONCE..].split_at_mut(LENGTH);
        body.copy_from_slice(&signal.write());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let made = self
            .out
            .seal_in_place_separate_tag(nonce, Aad::from(&*head), body);
        tag.copy_from_slice(made.ok()?.as_ref());
        Some(datagram)
    }

    /// The other node's signal; `None` if it is not one of its.
    pub(super) fn open(&self, datagram: &[u8]) -> Option<Signal> {
        let (head, rest) = datagram.split_at_checked(HEAD)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let mut sealed: [u8; LENGTH + TAG] = sealed.try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let body = self
            .back
            .open_in_place(nonce, Aad::from(head), &mut sealed)
            .ok()?;
        Signal::read(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::shared_secret;
    use crate::key::PrivateKey;

    #[test]
    fn a_signal_is_read_by_whom_it_is_for_and_cannot_be_changed() {
        let [a, b, c] = [(); 3].map(|()| PrivateKey::generate().unwrap());
        let between = |own: &PrivateKey, other: &PrivateKey| {
            let secret = shared_secret(own, &other.public()).unwrap();
            Envelope::new(&secret, &own.public(), &other.public()).unwrap()
        };
        let signal = Signal::Here(vec!["192.0.2.1:7".parse().unwrap()]);
        let datagram = between(&a, &b).seal(&signal).unwrap();
        assert_eq!(sender(&datagram), Some(Short::of(&a.public())));
        assert_eq!(between(&b, &a).open(&datagram), Some(signal.clone()));
        // Not by others, and not as the other's own.
        assert_eq!(between(&c, &a).open(&datagram), None);
        assert_eq!(between(&a, &b).open(&datagram), None);
        for at in 0..datagram.len() {
            let mut forged = datagram;
            forged[at] ^= 1;
            assert_eq!(between(&b, &a).open(&forged), None, "byte {at}");
            assert_eq!(between(&b, &a).open(&datagram[..at]), None, "{at} bytes");
            assert_eq!(sender(&datagram[..at]), None);
        }
        let again = between(&a, &b).seal(&signal).unwrap();
        assert_ne!(again[HEAD..], datagram[HEAD..], "no nonce is used twice");
    }
}
