//! Sandboxes, as E2B's clients create, list and read them.

use super::network::NetworkConfig;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use utoipa::{IntoParams, ToSchema};

/// `POST /v2/sandboxes`, and with `secure` also `POST /sandboxes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// An id or name of a template, with an optional `:tag`.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Seconds that it lives: 300 if absent (15 for `POST /sandboxes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// Whether it is paused when its time is up, instead of killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_pause: Option<bool>,
    /// Whether such a pause keeps memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_pause_memory: Option<bool>,
    /// Whether traffic wakes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<AutoResume>,
    /// Whether a token opens its guest. Only `POST /sandboxes` reads it; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<bool>,
    /// Whether it may reach the internet; true if absent.
    #[serde(
        default,
        rename = "allow_internet_access",
        skip_serializing_if = "Option::is_none"
    )]
    pub allow_internet_access: Option<bool>,
    /// What it may reach and who may reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// The caller's labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Variables for every process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// MCP servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub mcp: Option<serde_json::Value>,
    /// Workload identity tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub iam: Option<serde_json::Value>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Processors it may use; the template's if absent. Atoll's own, E2B has no word for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// Memory it may use, in MiB; the template's if absent. Atoll's own, E2B has no word for it.
    #[serde(rename = "memoryMB", default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Who it is to be in the mesh; if absent, what the template says, which is mostly nobody. Atoll's own, E2B has no word for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<NewMeshIdentity>,
}

/// Who a sandbox is to be in the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewMeshIdentity {
    /// What policy is to know it by: at least one tag, of those that the policy lets the tenant give.
    pub tags: BTreeSet<String>,
    /// What it is to be called: one of its tags, a hyphen and what follows. Administrators choose freely. If absent, a name
    /// that nobody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A sandbox as others find it in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeshIdentity {
    /// Its name there, with the domain.
    pub name: String,
    /// Its addresses there, the one of IPv4 first.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// What policy knows it by.
    pub tags: BTreeSet<String>,
}

/// A volume and where it appears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMount {
    /// The volume's name.
    pub name: String,
    /// The path in the sandbox.
    pub path: String,
}

/// Whether traffic wakes a paused sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AutoResume {
    /// Whether it does.
    pub enabled: bool,
}

/// A sandbox that was created or connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// What it started from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Obsolete, but clients want it: the node's id.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// The version of the guest protocol.
    pub envd_version: String,
    /// The template's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The token that opens its guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// The token that opens its ports, where they are not public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    /// Overrides the client's domain for this sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Where it is found in the mesh, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshIdentity>,
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListedState {
    /// It does.
    Running,
    /// Its state is kept.
    Paused,
}

/// One row of a list of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// What it started from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Obsolete, but clients want it: the node's id.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// When it became usable.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When its time is up.
    #[schema(value_type = String, format = DateTime)]
    pub end_at: Timestamp,
    /// Processors it may use.
    pub cpu_count: u32,
    /// Memory it may use, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// What its writable layer may hold, in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// Whether it runs.
    pub state: ListedState,
    /// The version of the guest protocol.
    pub envd_version: String,
    /// The template's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The caller's labels.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// How it is paused, if it is: `full` (with memory) or `filesystem`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<String>,
    /// Where it is found in the mesh, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshIdentity>,
}

/// One sandbox in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// What lists show too.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// The token that opens its guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Whether it may reach the internet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    /// Overrides the client's domain for this sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// What it may reach and who may reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// What happens when its time is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
}

/// What happens when a sandbox's time is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// Whether traffic wakes it.
    pub auto_resume: bool,
    /// `kill` or `pause`.
    pub on_timeout: String,
}

/// `POST /sandboxes/{sandboxID}/timeout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimeoutRequest {
    /// Seconds from now until its time is up; 0 acts at once.
    pub timeout: i64,
}

/// `POST /sandboxes/{sandboxID}/connect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ConnectRequest {
    /// Seconds from now that it lives at least; mandatory but in `/v2`, where it is 300.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// Whether a paused sandbox comes back with its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// `POST /sandboxes/{sandboxID}/refreshes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RefreshRequest {
    /// Seconds from now that it lives at least: 15 if absent, 3600 at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<i64>,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// `key=value` pairs joined by `&`, each key and value percent-encoded once more.
    pub metadata: Option<String>,
    /// `running`, `paused` or both, joined by a comma.
    pub state: Option<String>,
    /// `asc` or `desc` (if absent), by start.
    pub order: Option<String>,
    /// Only those that started at this moment or later (RFC 3339).
    pub started_after: Option<String>,
    /// Only those of this template: its id, or its name without a tag.
    pub template: Option<String>,
    /// Where the page starts: the last answer's `X-Next-Token`.
    pub next_token: Option<String>,
    /// How many at most: 1 to 100.
    #[param(value_type = Option<u32>)]
    pub limit: Option<String>,
}
