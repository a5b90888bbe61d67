//! The interface that every store has.

use crate::StoreError;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// The largest value, in bytes: below etcd's default limit of 1.5 MiB for a whole request.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The most conditions, and the most operations, of a transaction: etcd's default.
pub const MAX_OPERATIONS: usize = 128;

/// A moment in the store's history. Every transaction that changes something makes the next one;
/// an empty store is at revision 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The one after.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A lease: keys attached to it vanish when nobody keeps it alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The revision that brought the key into being.
    pub created: Revision,
    /// The revision that changed it last.
    pub modified: Revision,
    /// The lease that it is attached to.
    pub lease: Option<LeaseId>,
}

/// Which keys to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// What the keys begin with; all keys if empty.
    pub prefix: String,
    /// Only keys that sort after this one.
    pub after: Option<String>,
    /// How many at most; at least 1.
    pub limit: usize,
    /// As they were at this revision; as they are now if absent. With the first page's revision,
    /// all pages are of one moment.
    pub at: Option<Revision>,
}

impl Range {
    /// The first `limit` keys below `prefix`, as they are now.
    pub fn new(prefix: impl Into<String>, limit: usize) -> Self {
        Self {
            prefix: prefix.into(),
            after: None,
            limit,
            at: None,
        }
    }
}

/// A part of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries in the order of their keys' bytes.
    pub entries: Vec<Entry>,
    /// The revision at which they were read.
    pub revision: Revision,
    /// Whether there are more after the last.
    pub more: bool,
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Exists(String),
    /// The key exists and was last changed at this revision.
    Unchanged(String, Revision),
}

impl Condition {
    /// The key that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::Unchanged(key, _) => key,
        }
    }

    /// Whether it holds for what the key is now.
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        match self {
            Self::Absent(_) => entry.is_none(),
            Self::Exists(_) => entry.is_some(),
            Self::Unchanged(_, revision) => entry.is_some_and(|e| e.modified == *revision),
        }
    }
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Sets a key. It is attached to `lease`, and to none if that is absent, whatever it was
    /// attached to before.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease to attach it to.
        lease: Option<LeaseId>,
    },
    /// Removes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: String,
    },
}

impl Operation {
    /// Sets a key without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// Removes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key that it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Changes that happen all or not at all, and only if every condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What is done then; each key at most once.
    pub then: Vec<Operation>,
}

impl Transaction {
    /// Changes without a condition.
    pub fn always(then: impl Into<Vec<Operation>>) -> Self {
        Self {
            conditions: Vec::new(),
            then: then.into(),
        }
    }

    /// Refuses what no store takes: too long, too large, too many, a key twice.
    pub fn validate(&self) -> Result<(), StoreError> {
        if self.conditions.len() > MAX_OPERATIONS || self.then.len() > MAX_OPERATIONS {
            return Err(StoreError::Invalid(format!(
                "a transaction has at most {MAX_OPERATIONS} conditions and operations"
            )));
        }
        let mut seen = std::collections::HashSet::new();
        for condition in &self.conditions {
            validate_key(condition.key())?;
        }
        for operation in &self.then {
            validate_key(operation.key())?;
            if !seen.insert(operation.key()) {
                return Err(StoreError::Invalid(format!(
                    "the key `{}` is changed twice in one transaction",
                    operation.key()
                )));
            }
            if let Operation::Put { key, value, .. } = operation
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(StoreError::Invalid(format!(
                    "the value of `{key}` has {} bytes, more than {MAX_VALUE_BYTES}",
                    value.len()
                )));
            }
        }
        Ok(())
    }
}

/// Refuses an empty or overlong key, and one with a NUL.
pub(crate) fn validate_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains('\0') {
        return Err(StoreError::Invalid(format!(
            "a key has 1 to {MAX_KEY_BYTES} bytes, none of them NUL"
        )));
    }
    Ok(())
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All conditions held and everything was done.
    Committed {
        /// The store's revision afterwards. It is a new one if anything changed.
        revision: Revision,
    },
    /// A condition did not hold and nothing was done.
    Refused {
        /// The store's revision.
        revision: Revision,
        /// What the key of each condition is, in the order of the conditions.
        current: Vec<Option<Entry>>,
    },
}

impl Outcome {
    /// Whether it was carried out.
    pub fn committed(&self) -> bool {
        matches!(self, Self::Committed { .. })
    }

    /// The store's revision afterwards.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Committed { revision } | Self::Refused { revision, .. } => *revision,
        }
    }
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was set.
    Put(Entry),
    /// It was removed, or its lease ended.
    Deleted {
        /// The key.
        key: String,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key } => key,
        }
    }
}

/// All that one revision changed below the watched prefix, in the order of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision. Resume after it with [`Revision::next`].
    pub revision: Revision,
    /// At least one change.
    pub changes: Vec<Change>,
}

/// A stream of changes. It ends after an error.
pub type Watch = BoxStream<'static, Result<Batch, StoreError>>;

/// Transactional keys with revisions, watches and leases.
///
/// Every call is linearizable: it takes effect at one moment between its start and its end, and
/// what was acknowledged survives a crash of the process or the machine. Only
/// [`Store::transact_soon`] promises less, and says what.
///
/// | here | etcd v3 |
/// | --- | --- |
/// | [`Revision`] | the cluster's revision (`header.revision`); `created` and `modified` are `create_revision` and `mod_revision` |
/// | [`Store::get`] | `Range` of one key, linearizable |
/// | [`Store::range`] | `Range` with `range_end` = prefix + 1, `limit`, `revision`, sorted by key; `after` is the key with a NUL appended as range start |
/// | [`Store::transact`] | `Txn`: conditions are compares (`Absent`: `CREATE == 0`, `Exists`: `CREATE > 0`, `Unchanged`: `MOD == revision`), `then` is `success`, and `failure` reads the conditions' keys |
/// | [`Store::transact_soon`] | the same as [`Store::transact`] |
/// | [`Store::watch`] | `Watch` with `start_revision`, progress by batches of one revision (no `fragment`) |
/// | [`StoreError::Compacted`] | `compact_revision` of a cancelled watch, or `ErrCompacted` |
/// | [`Store::grant`], [`Store::keep_alive`], [`Store::revoke`] | `LeaseGrant`, `LeaseKeepAlive`, `LeaseRevoke`; the time to live is whole seconds |
/// | [`Store::compact`] | `Compact` |
///
/// As in etcd, a restart of the store extends every lease by its full time to live, since nobody
/// could have kept it alive meanwhile.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key as it is now.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Keys below a prefix, in order, all of one moment.
    ///
    /// Fails with [`StoreError::Compacted`] if the history no longer reaches back to `range.at`.
    async fn range(&self, range: Range) -> Result<Page, StoreError>;

    /// Carries out all of a transaction or nothing of it.
    ///
    /// Fails with [`StoreError::LeaseNotFound`] if it would attach a key to a lease that is gone.
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// The same for whoever cannot wait for the disk: it is answered once it survives the end of
    /// this process, `kill -9` included. A power cut of the machine within a fraction of a second
    /// may undo it, wholly and with all that came after it: what is kept is always how things were
    /// at one moment. All that [`Store::transact`] acknowledges later is safe only together with
    /// it, so nothing that follows from it and is on disk can be without it.
    ///
    /// A store that knows no such difference does as [`Store::transact`] does.
    async fn transact_soon(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.transact(transaction).await
    }

    /// The changes below a prefix, from revision `from` (included) on, without a gap; later ones
    /// follow as they happen.
    ///
    /// The stream yields [`StoreError::Compacted`] if the history no longer reaches back to
    /// `from`, or if its reader is too slow: read the range anew and watch from there.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Makes a lease that lives for `time_to_live` unless it is kept alive: whole seconds, at
    /// least one.
    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError>;

    /// Lets a lease live for its full time again. Fails with [`StoreError::LeaseNotFound`] if it
    /// is gone.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys in one revision. Fails with
    /// [`StoreError::LeaseNotFound`] if it is gone.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// The store's revision.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Forgets the history up to `revision`: what keys were before, and watches from before.
    /// What they are stays. Implementations also do this by themselves.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
