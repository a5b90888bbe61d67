//! What is wanted of each machine and what was sent, on disk before it is sent.

use super::transition::Intent;
use crate::moment::Span;
use std::{sync::Arc, time::Duration};
use store::{
    Collection, Condition, LeaseId, Operation, Revision, Store, StoreError, Stored, Transaction,
};

/// Below this prefix is one record for each machine.
const PREFIX: &str = "fleet/power";
/// Whoever holds this key acts; all others wait.
const LEADER: &str = "fleet/leader";
/// Leadership that is not renewed for so long is lost.
pub const LEASE: Span = Span(15);

/// Why something could not be written down; nothing is sent then.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else acts, or has changed the record meanwhile.
    #[error("another instance of Atoll acts for this fleet")]
    NotLeader,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The right to act. It ends when it is not renewed.
#[derive(Debug, Clone)]
pub struct Leadership {
    lease: LeaseId,
    revision: Revision,
}

impl Leadership {
    /// What must hold for a write of whoever acts: that the right to act is still held.
    pub(crate) fn held(&self) -> Condition {
        Condition::Unchanged(LEADER.to_owned(), self.revision)
    }
}

/// The journal of a fleet.
#[derive(Clone)]
pub struct Journal {
    store: Arc<dyn Store>,
    intents: Collection<Intent>,
}

impl Journal {
    /// The journal in a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            intents: Collection::new(store.clone(), PREFIX),
            store,
        }
    }

    /// Becomes the one who acts; `None` if somebody else is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn lead(&self) -> Result<Option<Leadership>, StoreError> {
        let lease = self.store.grant(Duration::from_secs(LEASE.0)).await?;
        let transaction = Transaction {
            conditions: vec![Condition::Absent(LEADER.to_owned())],
            then: vec![Operation::Put {
                key: LEADER.to_owned(),
                value: "acts".into(),
                lease: Some(lease),
            }],
        };
        let outcome = self.store.transact(transaction).await?;
        if outcome.committed() {
            let revision = outcome.revision();
            return Ok(Some(Leadership { lease, revision }));
        }
        self.store.revoke(lease).await?;
        Ok(None)
    }

    /// Renews the right to act.
    ///
    /// # Errors
    /// [`JournalError::NotLeader`] if it was lost.
    pub async fn renew(&self, leadership: &Leadership) -> Result<(), JournalError> {
        match self.store.keep_alive(leadership.lease).await {
            Err(StoreError::LeaseNotFound(_)) => Err(JournalError::NotLeader),
            other => Ok(other?),
        }
    }

    /// Gives the right to act back.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn resign(&self, leadership: Leadership) -> Result<(), StoreError> {
        match self.store.revoke(leadership.lease).await {
            Ok(()) | Err(StoreError::LeaseNotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What is wanted of a machine, if anything was written.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn get(&self, machine: &str) -> Result<Option<Stored<Intent>>, StoreError> {
        self.intents.get(machine).await
    }

    /// All records: after a restart, what is to be carried on with.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn all(&self) -> Result<Vec<Stored<Intent>>, StoreError> {
        Ok(self.intents.list().await?.0)
    }

    /// Writes a machine's record, if it still is what was read, and only as long as the right to
    /// act is held: whoever was slow, or lost it, writes nothing and so sends nothing.
    ///
    /// # Errors
    /// [`JournalError::NotLeader`] if either does not hold.
    pub async fn write(
        &self,
        leadership: &Leadership,
        machine: &str,
        before: Option<&Stored<Intent>>,
        intent: &Intent,
    ) -> Result<Stored<Intent>, JournalError> {
        let unchanged = match before {
            Some(stored) => self.intents.unchanged(stored),
            None => self.intents.absent(machine),
        };
        let transaction = Transaction {
            conditions: vec![leadership.held(), unchanged],
            then: vec![self.intents.put(machine, intent)?],
        };
        let outcome = self.store.transact(transaction).await?;
        if !outcome.committed() {
            return Err(JournalError::NotLeader);
        }
        Ok(Stored {
            id: machine.to_owned(),
            modified: outcome.revision(),
            record: intent.clone(),
        })
    }
}
