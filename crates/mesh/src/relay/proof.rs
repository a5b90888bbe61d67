//! How client and relay prove to each other who they are: what both can compute from their keys, and nobody else.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::frame::{Frame, Tag};
use crate::key::PublicKey;

/// The secret of one client and one relay.
#[derive(Clone)]
pub(super) struct Proof(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Proof {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Proof(…)")
    }
}

/// A keyed hash over the parts.
pub(crate) fn keyed(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length.
    #[allow(clippy::expect_used)]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The first half of a keyed hash.
pub(super) fn tag(key: &[u8], parts: &[&[u8]]) -> Tag {
    let mut tag = [0; 16];
    tag.copy_from_slice(&keyed(key, parts)[..16]);
    tag
}

/// Whether two proofs are the same; takes the same time wherever they differ.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(one, other).into()
}

impl Proof {
    /// From what X25519 makes of the keys of both.
    pub(super) fn new(shared: &[u8; 32], node: &PublicKey, relay: &PublicKey) -> Self {
        let label: &[u8] = b"atoll relay 1";
        Self(Zeroizing::new(keyed(
            shared,
            &[label, node.as_bytes(), relay.as_bytes()],
        )))
    }

    /// Fills in the proof of a frame that has one, which are its last 16 bytes.
    pub(super) fn seal(&self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        frame.write(out);
        if let Some(body) = out.len().checked_sub(16).filter(|body| *body >= start) {
            let tag = tag(&*self.0, &[&out[start..body]]);
            out[body..].copy_from_slice(&tag);
        }
    }

    /// Whether the last 16 bytes prove the rest.
    pub(super) fn holds(&self, frame: &[u8]) -> bool {
        frame
            .split_last_chunk::<16>()
            .is_some_and(|(body, proof)| same(&tag(&*self.0, &[body]), proof))
    }
}

/// 32 bytes that nobody knows, or `None` if the kernel gives none.
pub(super) fn random() -> Option<[u8; 32]> {
    crate::key::random().ok()
}
