//! Sandboxes in the mesh: they join as any node does, and stay for as long as somebody says that they are there.
//!
//! A sandbox may be silent for long while it is paused, so silence does not end it; [`Book::release`] does, at once.

use std::collections::BTreeSet;

use super::book::{Book, Plan, Refusal, Subject, Write, node_key};
use super::identity::IdentityKey;
use super::record::label;
use super::token::{NewToken, SandboxSeat, Token};

/// How long after its token was made a sandbox may join.
const VALID_SECONDS: u64 = 15 * 60;

impl Book {
    /// Makes a token for one sandbox, which joins with it once, under this name or not at all.
    ///
    /// # Errors
    /// The name is none, or another node has it; or as for [`Book::new_token`].
    pub fn sandbox_token(
        &self,
        seat: SandboxSeat,
        tags: BTreeSet<String>,
        url: &str,
        now_ms: u64,
    ) -> Result<Plan<Token>, Refusal> {
        if label(&seat.name) != seat.name {
            let cause = format!(
                "{:?} is not a name: use lower case letters, digits and hyphens, at most 56",
                seat.name
            );
            return Err(Refusal::Invalid(cause));
        }
        self.seat(&seat)?;
        let allows = NewToken {
            tags,
            ephemeral: true,
            reuse: false,
            valid_seconds: Some(VALID_SECONDS),
        };
        self.token_for(allows, Some(seat), url, now_ms)
    }

    /// The name of a sandbox that joins.
    pub(super) fn seat(&self, seat: &SandboxSeat) -> Result<String, Refusal> {
        if self.names.contains_key(&seat.name) {
            let cause = format!("a node of the mesh is called {:?} already", seat.name);
            return Err(Refusal::Invalid(cause));
        }
        Ok(seat.name.clone())
    }

    /// A sandbox is gone: nobody has its name or address any more, and nobody joins for it. Who it was, if it had joined.
    ///
    /// # Errors
    /// The mesh knows nothing of it.
    pub fn release(&self, sandbox: &str) -> Result<Plan<Option<IdentityKey>>, Refusal> {
        let tokens = self.tokens.values().filter(|token| {
            let seat = token.sandbox.as_ref();
            seat.is_some_and(|seat| seat.id == sandbox)
        });
        let mut writes: Vec<_> = tokens
            .map(|token| Write::Delete(format!("tokens/{}", token.id)))
            .collect();
        let node = self
            .nodes
            .values()
            .find(|node| node.member.sandbox.as_deref() == Some(sandbox));
        let identity = node.map(|node| node.voucher.identity);
        if let Some(identity) = identity {
            writes.push(Write::Delete(node_key(&identity)));
            writes = self.change(Subject::Node(identity), self.head.number, writes);
        }
        if writes.is_empty() {
            return Err(Refusal::Unknown("sandbox in the mesh"));
        }
        Ok(Plan {
            answer: identity,
            writes,
        })
    }

    /// The ids of all sandboxes that are in the mesh, or may join.
    pub fn sandboxes(&self) -> BTreeSet<String> {
        let nodes = self.nodes.values();
        let joined = nodes.filter_map(|node| node.member.sandbox.clone());
        let tokens = self.tokens.values();
        let invited = tokens.filter_map(|token| token.sandbox.as_ref().map(|seat| seat.id.clone()));
        joined.chain(invited).collect()
    }
}
