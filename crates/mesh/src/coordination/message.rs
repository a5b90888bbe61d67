//! What nodes and the coordinator say to each other.

use serde::{Deserialize, Serialize};

use super::book::Refusal;
use super::record::{Entry, NodeRecord, Voucher};
use super::service::ServiceAddresses;
use super::token::Admission;
use crate::identity::{IdentityKey, Purpose, Signed};

/// A machine asks to become a node. Repeating it makes no second one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's public part.
    pub token: String,
    /// That who asks holds it.
    pub admission: Signed<Admission>,
    /// Who asks.
    pub record: Signed<NodeRecord>,
}

/// It is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// What the coordinator vouches for.
    pub voucher: Signed<Voucher>,
}

/// A node asks for what changed since.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Who asks.
    pub identity: IdentityKey,
    /// Up to where it knows everything; 0 for nothing.
    pub cursor: u64,
    /// Its clock, in milliseconds since 1970. Each request has a later one than the last, so none can be played back.
    pub at_ms: u64,
}

impl Purpose for WatchRequest {
    const PURPOSE: &'static str = "watch";
}

impl Signed<WatchRequest> {
    /// Who asks for what, if the signature is that node's. Looking takes longer than answering, so it is better not done while others wait.
    ///
    /// # Errors
    /// Somebody else signed it.
    pub fn check(&self) -> Result<WatchRequest, Refusal> {
        let asked = self.verify_own(|asked| asked.identity);
        asked.map_err(|_| Refusal::Forged)
    }
}

/// The coordinator says to a node that it is in no more. Without its signature, nobody could say so in its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// To whom.
    pub identity: IdentityKey,
    /// The time in the request that it answers.
    pub at_ms: u64,
    /// Whether it was put out; else it was forgotten.
    pub revoked: bool,
}

impl Purpose for Farewell {
    const PURPOSE: &'static str = "farewell";
}

/// What happened between two moments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Frame {
    /// What the receiver must know already; the whole map, if absent.
    pub from: Option<u64>,
    /// What it knows afterwards.
    pub to: u64,
    /// What changed, each thing once.
    pub changes: Vec<Change>,
    /// The addresses of all services, where the policy is among the changes. Not a change itself: older nodes know no such kind, and would take no
    /// frame that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceAddresses>,
}

impl Purpose for Frame {
    const PURPOSE: &'static str = "frame";
}

/// One thing that changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A node is new or other than before.
    Node(Box<Entry>),
    /// A node is gone: it left, vanished, or was revoked.
    Gone(IdentityKey),
    /// The policy is another: its text.
    Policy(String),
}
