//! Intent on disk: transactional keys with revisions, watches and leases.
//!
//! What it is: one trait, [`Store`], with the semantics of etcd v3, and [`SqliteStore`], which
//! keeps everything in one file of the data directory. [`Collection`] lays typed records over
//! either. [`conformance`] holds the tests that every implementation must pass.
//!
//! What it is not: a place for what *is*. Running sandboxes belong to their nodes; no consensus
//! write lies on the path of creating one.
//!
//! Start reading at [`Store`], whose documentation maps each call to etcd's.

#![forbid(unsafe_code)]

pub mod clock;
mod collection;
pub mod conformance;
mod error;
mod sqlite;
mod store;

pub use collection::{Collection, Stored};
pub use error::StoreError;
pub use sqlite::{SqliteOptions, SqliteStore, write_back};
pub use store::{
    Batch, Change, Condition, Entry, LeaseId, MAX_KEY_BYTES, MAX_OPERATIONS, MAX_VALUE_BYTES,
    Operation, Outcome, Page, Range, Revision, Store, Transaction, Watch,
};
