//! Pausing, forking and snapshots, as E2B's clients ask for them.

use super::sandbox::Sandbox;
use crate::error::ProblemBody;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /sandboxes/{sandboxID}/pause`; the body may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PauseRequest {
    /// Whether memory is kept beside the disk; true if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
    /// Whether to refuse if the guest does not answer, and let the sandbox run on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_healthy_guest: Option<bool>,
}

/// `POST /sandboxes/{sandboxID}/resume`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ResumeRequest {
    /// Seconds that it lives from then on; 15 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// `POST /sandboxes/{sandboxID}/fork`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ForkRequest {
    /// Seconds that each child lives; 300 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// How many children: 1 (if absent) to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
}

/// What became of one child of a fork: one of the two is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForkResult {
    /// The child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProblemBody>,
}

/// `POST /sandboxes/{sandboxID}/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SnapshotRequest {
    /// A name, with an optional `:tag`. The name of a snapshot of one's own makes a new version of
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether memory is kept beside the disk; true if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// Where a template's id is asked for, this may stand.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Its names with owner and tag.
    pub names: Vec<String>,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub struct SnapshotQuery {
    /// Only those of this sandbox.
    #[serde(rename = "sandboxID")]
    #[param(rename = "sandboxID")]
    pub sandbox_id: Option<String>,
    /// Only those of this name or id, with an optional tag.
    pub name: Option<String>,
    /// Where the page starts: the last answer's `X-Next-Token`.
    pub next_token: Option<String>,
    /// How many at most: 1 to 100.
    #[param(value_type = Option<u32>)]
    pub limit: Option<String>,
}
