//! Coordination: who belongs to the mesh, what each is called, and how all learn of changes.
//!
//! ```text
//!   node ── join(token, own record) ──►  Book  ── voucher ──► node
//!   node ── watch(cursor) ────────────►  Book  ── frame: what changed since ──► View of the node
//! ```
//!
//! A node has an [`Identity`] (Ed25519) apart from its WireGuard key, which it may change at any time. It signs what it says
//! of itself ([`NodeRecord`]); the coordinator signs what it vouches for ([`Voucher`]: name, addresses, tags). A peer believes
//! an entry only if both hold. What a coordinator sends is a signed [`Frame`] from one moment of its log to a later one, so
//! nothing of it can be forged, left out or played back, whatever carries it.
//!
//! [`Book`] is the coordinator's state and [`View`] a node's. Both are plain data with pure steps: no clock, no I/O. A step
//! of the book returns what has to be written; whoever owns a store writes it and then [applies](Book::apply) it. The log
//! says only *what* changed, so one frame brings a node from any moment that the log still reaches to the present; the
//! whole map is sent only when the log does not reach back.
//!
//! Absent: views that hide nodes from each other (every node knows of every other; policy decides what passes), endpoints
//! outside of records, a key of the coordinator that can be changed.

mod book;
mod certify;
mod message;
mod record;
mod sandbox;
mod service;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod token;
mod view;

pub use crate::identity::{Identity, IdentityKey, Purpose, Signed};
pub use book::{Book, BookOptions, MemberStatus, Plan, Refusal, Write};
pub use message::{Change, Farewell, Frame, JoinAnswer, JoinRequest, WatchRequest};
pub(crate) use record::MOST_SERVICES;
pub use record::{
    Entry, Fingerprint, Mode, NodeRecord, RelayOffer, Renewal, Voucher, is_service_v4, label,
    overlay_v4, overlay_v6, overlay_v6_range, service_v4,
};
pub use service::ServiceAddresses;
pub use token::{Admission, NewToken, SandboxSeat, Token, TokenStatus};
pub use view::{Applied, Known, View, ViewError};
