//! Relays: a way between two nodes that cannot reach each other, and the first way between any two.
//!
//! A [`Relay`] carries datagrams of WireGuard's, and of the QUIC that carries flows, between nodes that registered with it, and nothing else. It cannot read
//! them, and what it drops, repeats, delays, exchanges or makes up, both bear as they bear the internet. What a relay does learn is which node
//! speaks with which, when, and how much. Any node that others can reach may be one.
//!
//! It listens on UDP, and on TLS over TCP (usually port 443) for networks that let nothing else pass. The same frames go over both ([`Frame`];
//! numbers are big-endian): over UDP one a datagram, over TLS with their length in 16 bits before them. All begin with
//! a kind, 0xa7, the version 1 and 0, which no message of WireGuard's does, so they share a node's port with it.
//!
//! ```text
//! node                                     relay
//!   │ hello: key, nonce ───────────────────► │   keeps nothing
//!   │ ◄─────────────── challenge: nonce, cookie   a hash of address, key and nonce under a secret of 30 seconds
//!   │ register: key, nonce, cookie, ticket, proof ►│   only now: the curve, the ticket
//!   │ ◄── registered: nonce, session, lifetime, seen address, proof
//!   │ data: session, to whom, datagram ─────►│──── data: their session, from whom, datagram ──► other node
//! ```
//!
//! - *Who may*: the client proves that it holds its WireGuard key, by a hash under the secret that X25519 makes of it and the relay's; the relay
//!   proves the same with its answer. Beyond that a [`TicketCheck`] decides, which sees the ticket that came along.
//! - *No amplification*: answers are never longer than questions, there is at most one for each, and data goes only to who registered and
//!   proved its address with the cookie.
//! - *Bounds*: clients, connections, bytes and handshakes a second of each client, registrations of newcomers, and what waits for a slow connection.
//!   What is beyond is dropped and counted.
//! - *Sessions* are numbers of 32 bits in every frame of data, so that who cannot read the traffic cannot send in another's name, nor use up its
//!   share. A node that moved or a relay that was restarted is told "unknown" once a batch, and registers anew.
//! - *Addresses* in data are the first 12 bytes of a public key: the frame then fits into 1500 bytes over IPv4 with an inner MTU of 1420, and
//!   needs no channel to be opened before the first packet.
//!
//! A relay's certificate is its own, known by its SHA-256 from the [`RelayAddress`]; no authority is asked.

mod client;
mod frame;
mod outbox;
mod proof;
mod registry;
mod server;
mod session;
mod stream;
mod ticket;

use std::net::SocketAddr;

pub use client::RelayStatus;
pub(crate) use client::{Connections, Link, Post, Relays};
pub use frame::{Frame, HEADER, LONGEST_TICKET, Nonce, Short, Tag};
pub(crate) use frame::{MARK, SIGNAL, SIGNAL_LENGTH, data, marked};
pub(crate) use proof::keyed;
pub use server::{Relay, RelayOptions};
use session::Session;
pub use stream::{RelayCertificate, TlsOptions};
pub use ticket::{Admitted, AnyNode, SharedTickets, TicketCheck};

use std::sync::Arc;
use std::time::Instant;

use crate::key::PublicKey;

/// Where a relay is, and how to know it. What a node has to be told to use it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayAddress {
    /// Who it is.
    pub key: PublicKey,
    /// Where it listens on UDP.
    pub udp: Option<SocketAddr>,
    /// Where it listens on TLS; used while UDP does not work.
    pub tls: Option<TlsAddress>,
}

/// Where a relay listens on TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TlsAddress {
    /// The address.
    pub address: SocketAddr,
    /// The SHA-256 of its certificate.
    pub certificate: [u8; 32],
}

/// What a relay gives at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients at once.
    pub clients: usize,
    /// Connections over TLS at once.
    pub connections: usize,
    /// Bytes a second that one client may send.
    pub bytes_per_second: u64,
    /// Bytes that it may send at once after a silence.
    pub burst_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 16_384,
            connections: 1024,
            bytes_per_second: 64 << 20,
            burst_bytes: 8 << 20,
        }
    }
}

/// What a relay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Clients that are registered.
    pub clients: u64,
    /// Registrations, renewed ones too.
    pub registered: u64,
    /// Registrations that were refused: a wrong cookie, proof or ticket, or no room.
    pub refused: u64,
    /// Datagrams carried.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams of who was not registered.
    pub unknown: u64,
    /// Datagrams for who was not registered.
    pub absent: u64,
    /// Datagrams beyond their sender's share.
    pub limited: u64,
    /// Datagrams for which there was no room before a slow connection.
    pub queue_full: u64,
    /// What was no frame, or held nothing of WireGuard's.
    pub malformed: u64,
}

/// A registration of `node` with a relay, given what X25519 makes of their keys.
fn session(
    node: PublicKey,
    relay: &PublicKey,
    shared: &[u8; 32],
    ticket: Arc<[u8]>,
    now: Instant,
) -> Session {
    Session::new(node, proof::Proof::new(shared, &node, relay), ticket, now)
}
