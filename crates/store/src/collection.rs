//! Typed records over a store.

use crate::{
    Batch, Change, Condition, Entry, Operation, Range, Revision, Store, StoreError, Transaction,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{marker::PhantomData, sync::Arc};

/// Records of one kind: JSON values below `PREFIX/`.
pub struct Collection<T> {
    store: Arc<dyn Store>,
    prefix: String,
    record: PhantomData<fn() -> T>,
}

impl<T> Clone for Collection<T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            record: PhantomData,
        }
    }
}

/// A record with its id and the revision that changed it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// What follows the collection's prefix in its key.
    pub id: String,
    /// The revision that changed it last.
    pub modified: Revision,
    /// The record.
    pub record: T,
}

/// The most keys that are read at once.
const PAGE: usize = 500;

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Collection<T> {
    /// The records below `prefix` and a slash.
    pub fn new(store: Arc<dyn Store>, prefix: &str) -> Self {
        Self {
            store,
            prefix: format!("{prefix}/"),
            record: PhantomData,
        }
    }

    /// The key of a record.
    pub fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// What every key begins with, the slash included.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// One record.
    pub async fn get(&self, id: &str) -> Result<Option<Stored<T>>, StoreError> {
        self.store
            .get(&self.key(id))
            .await?
            .map(|entry| self.read(&entry))
            .transpose()
    }

    /// All records of one moment, in the order of their ids, and the moment.
    pub async fn list(&self) -> Result<(Vec<Stored<T>>, Revision), StoreError> {
        let mut range = Range::new(self.prefix.clone(), PAGE);
        let mut records = Vec::new();
        loop {
            let page = self.store.range(range.clone()).await?;
            range.at = Some(page.revision);
            range.after = page.entries.last().map(|entry| entry.key.clone());
            for entry in &page.entries {
                records.push(self.read(entry)?);
            }
            if !page.more || range.after.is_none() {
                return Ok((records, page.revision));
            }
        }
    }

    /// The operation that sets a record.
    pub fn put(&self, id: &str, record: &T) -> Result<Operation, StoreError> {
        let key = self.key(id);
        match serde_json::to_vec(record) {
            Ok(value) => Ok(Operation::put(key, value)),
            Err(source) => Err(StoreError::Record { key, source }),
        }
    }

    /// The operation that removes a record.
    pub fn delete(&self, id: &str) -> Operation {
        Operation::delete(self.key(id))
    }

    /// The condition that there is no such record.
    pub fn absent(&self, id: &str) -> Condition {
        Condition::Absent(self.key(id))
    }

    /// The condition that a record is still what was read.
    pub fn unchanged(&self, stored: &Stored<T>) -> Condition {
        Condition::Unchanged(self.key(&stored.id), stored.modified)
    }

    /// Adds a record; `None` if there is one already, else the revision.
    pub async fn insert(&self, id: &str, record: &T) -> Result<Option<Revision>, StoreError> {
        let outcome = self
            .store
            .transact(Transaction {
                conditions: vec![self.absent(id)],
                then: vec![self.put(id, record)?],
            })
            .await?;
        Ok(outcome.committed().then(|| outcome.revision()))
    }

    /// Reads a record, lets `change` change it, and writes it if nobody else has meanwhile;
    /// otherwise begins anew. `None` if there is no such record. An error of `change` leaves the
    /// record as it was.
    pub async fn update<E: From<StoreError>>(
        &self,
        id: &str,
        mut change: impl FnMut(&mut T) -> Result<(), E> + Send,
    ) -> Result<Option<Stored<T>>, E> {
        loop {
            let Some(mut stored) = self.get(id).await? else {
                return Ok(None);
            };
            change(&mut stored.record)?;
            let transaction = Transaction {
                conditions: vec![self.unchanged(&stored)],
                then: vec![self.put(id, &stored.record)?],
            };
            let outcome = self.store.transact(transaction).await?;
            if outcome.committed() {
                stored.modified = outcome.revision();
                return Ok(Some(stored));
            }
        }
    }

    /// Reads a record out of an entry of this collection.
    pub fn read(&self, entry: &Entry) -> Result<Stored<T>, StoreError> {
        let id = entry
            .key
            .strip_prefix(&self.prefix)
            .unwrap_or(&entry.key)
            .to_owned();
        match serde_json::from_slice(&entry.value) {
            Ok(record) => Ok(Stored {
                id,
                modified: entry.modified,
                record,
            }),
            Err(source) => Err(StoreError::Record {
                key: entry.key.clone(),
                source,
            }),
        }
    }

    /// The records of this collection that a batch of a wider watch changed: each id with its
    /// record, or with none if it is gone.
    pub fn changes(&self, batch: &Batch) -> Vec<Result<(String, Option<T>), StoreError>> {
        let ours = batch
            .changes
            .iter()
            .filter(|change| change.key().starts_with(&self.prefix));
        ours.map(|change| match change {
            Change::Put(entry) => self
                .read(entry)
                .map(|stored| (stored.id, Some(stored.record))),
            Change::Deleted { key } => Ok((key[self.prefix.len()..].to_owned(), None)),
        })
        .collect()
    }
}
