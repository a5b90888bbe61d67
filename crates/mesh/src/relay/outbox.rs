//! What waits for a connection to take it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that wait for one connection: enough for a burst, and not more than a second over a slow line.
const MOST: usize = 512 * 1024;

/// Frames with their lengths before them, put in by any thread and taken out by the connection's.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Mutex<Vec<u8>>,
    /// Wakes who takes out.
    wake: Arc<OwnedFd>,
}

impl Outbox {
    /// An empty one; the descriptor is an event's.
    pub(crate) const fn new(wake: Arc<OwnedFd>) -> Self {
        Self {
            bytes: Mutex::new(Vec::new()),
            wake,
        }
    }

    /// Puts in one frame, given in two parts. Whether there was room.
    pub(crate) fn push(&self, head: &[u8], body: &[u8]) -> bool {
        let Ok(length) = u16::try_from(head.len() + body.len()) else {
            return false;
        };
        let first = {
            let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            if bytes.len() + 2 + usize::from(length) > MOST {
                return false;
            }
            let first = bytes.is_empty();
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(head);
            bytes.extend_from_slice(body);
            first
        };
        if first {
            // It can only fail when it is readable already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
        true
    }

    /// Exchanges what waits for an empty buffer.
    pub(super) fn take(&self, into: &mut Vec<u8>) {
        into.clear();
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *bytes, into);
    }

    /// Forgets what waits.
    pub(crate) fn clear(&self) {
        self.take(&mut Vec::new());
    }
}
