//! Sandboxes in the mesh: they join as any node does, and stay for as long as somebody says that they are there.
//!
//! A sandbox may be silent for long while it is paused, so silence does not end it; [`Book::release`] does, at once.

use std::collections::BTreeSet;

use super::book::{Book, Plan, Refusal, Subject, Write, node_key};
use super::record::label;
use super::token::{NewToken, SandboxSeat, Token};
use crate::identity::IdentityKey;

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

#[cfg(test)]
mod tests {
    use super::super::simulation::{NOW, Station, write};
    use super::super::{BookOptions, Identity};
    use super::*;

    fn seat(id: &str, name: &str) -> SandboxSeat {
        SandboxSeat {
            id: id.to_owned(),
            name: name.to_owned(),
        }
    }

    fn invite(book: &Book, id: &str, name: &str) -> Result<Plan<Token>, Refusal> {
        let tags = BTreeSet::from(["ci".to_owned()]);
        book.sandbox_token(seat(id, name), tags, "here", NOW)
    }

    fn book() -> Book {
        Book::new(Identity::from_seed([9; 32]), BookOptions::default(), NOW)
    }

    fn invited(book: &mut Book, id: &str, name: &str) -> Token {
        let plan = invite(book, id, name).unwrap();
        write(book, plan)
    }

    #[test]
    fn a_sandbox_is_in_under_its_name_until_it_is_released() {
        let mut book = book();
        let token = invited(&mut book, "i1", "ci-1");
        let station = Station::new(1, book.key());
        let plan = book.join(&station.request(&token), NOW).unwrap();
        write(&mut book, plan);
        let member = &book.members()[0];
        assert_eq!(
            (&*member.voucher.name, member.sandbox.as_deref()),
            ("ci-1", Some("i1"))
        );
        // Silence does not end it, and nobody else has its name.
        assert!(book.sweep(NOW + 10_000_000_000).is_none());
        assert!(matches!(
            invite(&book, "i2", "ci-1"),
            Err(Refusal::Invalid(_))
        ));
        let plan = book.release("i1").unwrap();
        assert_eq!(write(&mut book, plan), Some(station.identity.public()));
        assert!(book.members().is_empty() && book.tokens().is_empty());
        assert_eq!(
            book.release("i1").unwrap_err(),
            Refusal::Unknown("sandbox in the mesh")
        );
        // It cannot come back, and its name is free.
        let again = station.request(&token);
        assert_eq!(book.join(&again, NOW).unwrap_err(), Refusal::Token);
        invited(&mut book, "i2", "ci-1");
    }

    #[test]
    fn of_two_that_want_a_name_one_gets_it_and_nobody_gets_another() {
        let mut book = book();
        let tokens = ["i1", "i2"].map(|id| invited(&mut book, id, "ci-1"));
        assert_eq!(book.sandboxes().len(), 2);
        let request = |seed, token| Station::new(seed, book.key()).request(token);
        let (first, second) = (request(1, &tokens[0]), request(2, &tokens[1]));
        let plan = book.join(&first, NOW).unwrap();
        write(&mut book, plan);
        assert!(matches!(book.join(&second, NOW), Err(Refusal::Invalid(_))));
        let plan = book.release("i2").unwrap();
        assert_eq!(write(&mut book, plan), None);
        assert_eq!(book.sandboxes(), BTreeSet::from(["i1".to_owned()]));
    }

    #[test]
    fn a_name_is_a_label() {
        for name in ["", "CI-1", "a.b", "-a", &"x".repeat(57)] {
            assert!(
                matches!(invite(&book(), "i1", name), Err(Refusal::Invalid(_))),
                "{name}"
            );
        }
    }
}
