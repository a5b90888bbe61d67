//! What is not data, on its way to the keeper.

use crate::crypto::INITIATION;
use crate::ways::Way;

/// A message that is not data, copied out of the way of data, and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) source: Way,
    length: usize,
    bytes: [u8; INITIATION],
}

impl Letter {
    /// Copies it; `None` if it is longer than any message of a handshake.
    pub(super) fn new(source: Way, message: &[u8]) -> Option<Self> {
        let mut bytes = [0; INITIATION];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Self {
            source,
            length: message.len(),
            bytes,
        })
    }

    /// The message.
    pub(super) fn message(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
