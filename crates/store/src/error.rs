//! What can go wrong in a store.

use crate::{LeaseId, Revision};
use api::{ErrorCode, Problem};
use std::path::PathBuf;

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The history no longer reaches back that far.
    #[error("revision {requested} was compacted; the history begins after {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The last revision that was forgotten.
        compacted: Revision,
    },
    /// A revision that has not come yet.
    #[error("revision {requested} is in the future; the store is at {current}")]
    Future {
        /// The revision asked for.
        requested: Revision,
        /// The store's revision.
        current: Revision,
    },
    /// The lease has ended or never was.
    #[error("lease {} does not exist", .0.0)]
    LeaseNotFound(LeaseId),
    /// A request that no store takes.
    #[error("{0}")]
    Invalid(String),
    /// A record that does not read as what it should be.
    #[error("the record `{key}` is not readable")]
    Record {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The disk has no room left.
    #[error("the disk that holds the store is full")]
    Full,
    /// The file belongs to another program, is damaged, or was written by a newer Atoll.
    #[error("cannot use {} as a store: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What the store stands on failed.
    #[error("the store failed: {0}")]
    Backend(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let cause = error.to_string();
        match error {
            StoreError::Full => Problem::new(
                ErrorCode::OutOfDisk,
                cause,
                "free some room in the data directory",
            ),
            StoreError::Closed => Problem::new(
                ErrorCode::Unavailable,
                cause,
                "Atoll is stopping; start it again",
            ),
            StoreError::Unusable { .. } => Problem::new(
                ErrorCode::Internal,
                cause,
                "restore the file from a backup, or start with another data directory",
            ),
            _ => Problem::new(ErrorCode::Internal, cause, ""),
        }
    }
}
