//! Who may use a relay.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use super::proof::{keyed, same};
use crate::error::Error;
use crate::key::PublicKey;

/// What a client is let in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Admitted {
    /// When it has to show a ticket again at the latest; the relay asks sooner.
    pub until: Option<SystemTime>,
}

/// Decides whether a node may use the relay. The relay has the proof already that it speaks with the holder of `node`.
///
/// It is asked at every registration, that is every 20 seconds a client, on a thread that carries packets: it must not block. So who is refused here is
/// out within a minute; [`super::Relay::forget`] throws out at once.
pub trait TicketCheck: fmt::Debug + Send + Sync {
    /// `None` refuses; nothing is answered then.
    fn admit(&self, node: &PublicKey, ticket: &[u8]) -> Option<Admitted>;
}

/// Lets everybody in who has a key: for relays that only friends can reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnyNode;

impl TicketCheck for AnyNode {
    fn admit(&self, _node: &PublicKey, _ticket: &[u8]) -> Option<Admitted> {
        Some(Admitted::default())
    }
}

/// Tickets made with a secret that the relay and who gives them out share: a time, and a proof over it and the node's key.
pub struct SharedTickets(Zeroizing<[u8; 32]>);

impl fmt::Debug for SharedTickets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SharedTickets(…)")
    }
}

impl SharedTickets {
    /// With this secret.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// With a new one.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub fn generate() -> Result<Self, Error> {
        crate::key::random().map(Self::new)
    }

    /// A ticket for this node, good until then.
    pub fn issue(&self, node: &PublicKey, until: SystemTime) -> Vec<u8> {
        let seconds = until
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
            .to_be_bytes();
        let mut ticket = seconds.to_vec();
        ticket.extend_from_slice(&self.proof(node, &seconds));
        ticket
    }

    fn proof(&self, node: &PublicKey, seconds: &[u8]) -> [u8; 32] {
        keyed(
            &*self.0,
            &[b"atoll relay ticket 1", node.as_bytes(), seconds],
        )
    }
}

impl TicketCheck for SharedTickets {
    fn admit(&self, node: &PublicKey, ticket: &[u8]) -> Option<Admitted> {
        let (seconds, proof) = ticket.split_first_chunk::<8>()?;
        if !same(&self.proof(node, seconds), proof) {
            return None;
        }
        let until = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*seconds)))?;
        (SystemTime::now() < until).then_some(Admitted { until: Some(until) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_one_node_and_one_time() {
        let tickets = SharedTickets::generate().unwrap();
        let (node, other) = (
            PublicKey::from_bytes([1; 32]),
            PublicKey::from_bytes([2; 32]),
        );
        let later = SystemTime::now() + Duration::from_secs(100);
        let ticket = tickets.issue(&node, later);
        assert!(tickets.admit(&node, &ticket).is_some());
        assert!(tickets.admit(&other, &ticket).is_none());
        assert!(
            SharedTickets::generate()
                .unwrap()
                .admit(&node, &ticket)
                .is_none()
        );
        let past = tickets.issue(&node, SystemTime::now() - Duration::from_secs(1));
        assert!(tickets.admit(&node, &past).is_none());
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert!(tickets.admit(&node, &forged).is_none(), "byte {at}");
            assert!(tickets.admit(&node, &ticket[..at]).is_none(), "{at} bytes");
        }
    }
}
