//! The shapes of the public REST API.
//!
//! [`sandbox`], [`state`], [`network`], [`template`], [`metric`], [`log`] and [`team`] are E2B's, so that its
//! clients work unchanged; [`v1`] and [`mesh`] are Atoll's own. Field names on the wire follow E2B's published
//! clients, oddities included (`memoryMB`, `allow_internet_access`).
//! [`listing`] and [`query`] say what queries mean.

pub mod listing;
pub mod log;
pub mod mesh;
pub mod metric;
pub mod network;
pub mod query;
pub mod sandbox;
pub mod state;
pub mod team;
pub mod template;
pub mod v1;

/// The version of the guest protocol that Atoll speaks; clients choose their behaviour by it.
pub const ENVD_VERSION: &str = "0.6.13";

/// How long a sandbox lives if `POST /v2/sandboxes` does not say, in seconds.
pub const DEFAULT_TIMEOUT_V2: i64 = 300;

/// How long a sandbox lives if `POST /sandboxes` does not say, in seconds.
pub const DEFAULT_TIMEOUT_V1: i64 = 15;

/// Where the next page starts; absent on the last page.
pub const NEXT_TOKEN_HEADER: &str = "x-next-token";

/// How many sandboxes match and run, whatever the page.
pub const TOTAL_RUNNING_HEADER: &str = "x-total-running";

/// Makes the creation of a sandbox repeatable: `[a-z0-9-]{1,255}`.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
