//! What E2B has no words for: keys, and templates built by Atoll.
//!
//! `GET /v1/sandboxes` answers with [`crate::node::SandboxStatus`], `GET /v1/nodes` with
//! [`crate::node::NodeDescription`]: they are what they are.

use super::{sandbox::NewMeshIdentity, template::BuildStatus};
use crate::{Bytes, Secret, node::BuildEvent, template::TemplateSource};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything a member may, and: manage the keys of all tenants, list nodes, build templates
    /// from the nodes' own files. It still sees only its own tenant's sandboxes and templates.
    Admin,
    /// Manage the sandboxes and templates of its tenant.
    Member,
}

/// An API key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Its id.
    pub id: String,
    /// What its maker called it.
    pub name: String,
    /// The key's first characters, for telling keys apart.
    pub prefix: String,
    /// Whose sandboxes and templates it opens.
    pub tenant: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// `POST /v1/keys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewKey {
    /// What to call it.
    pub name: String,
    /// What it may do; `member` if absent.
    pub role: Option<Role>,
    /// The id of the tenant that it is for, or `new` for a new tenant; the caller's if absent.
    pub tenant: Option<String>,
}

/// A new key. The key itself is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// About the key.
    #[serde(flatten)]
    pub key: Key,
    /// The key itself.
    #[schema(value_type = String)]
    pub secret: Secret,
}

/// `POST /v1/templates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewTemplate {
    /// Its name, with an optional `:tag` (`default` if absent). The name of a template of one's
    /// own makes a new build of it.
    pub name: String,
    /// Where its root file system comes from.
    #[schema(value_type = String)]
    pub source: TemplateSource,
    /// Processors of its sandboxes; 2 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// Memory of its sandboxes, in MiB; 512 if absent.
    #[serde(rename = "memoryMB", default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// What the writable layers of its sandboxes may hold, in MiB; 10240 if absent.
    #[serde(
        rename = "diskSizeMB",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub disk_size_mb: Option<u64>,
    /// Run when a sandbox starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_command: Option<String>,
    /// Run after the start command, again and again until it succeeds; then the template is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_command: Option<String>,
    /// Variables for every process, besides those of the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The user whom commands run as by default: the source's, else `root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where commands run by default: the source's, else the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Whether other tenants may use it. Absent, a new template is private and a new build of an
    /// old one changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// Who each of its sandboxes is to be in the mesh, unless it says so itself: tags without a name. Whoever creates the sandbox must be
    /// allowed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<NewMeshIdentity>,
}

/// A template with everything that Atoll knows about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its id.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// Whether other tenants may use it.
    pub public: bool,
    /// Whether the caller's tenant owns it.
    pub own: bool,
    /// Whether Atoll came with it.
    pub built_in: bool,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The build that each tag names.
    pub tags: BTreeMap<String, String>,
    /// Its builds, newest first.
    pub builds: Vec<Build>,
}

/// A build with everything that Atoll knows about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// Its id.
    pub id: String,
    /// How far it has come.
    pub status: BuildStatus,
    /// What is being done, for people, while it is under way; why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Where its root file system comes from.
    pub source: String,
    /// Processors of its sandboxes.
    pub cpu_count: u32,
    /// Memory of its sandboxes, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// What the writable layers of its sandboxes may hold, in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// What its sandboxes are known by in the mesh, unless they say so themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<NewMeshIdentity>,
    /// Size of the root file system, unpacked, in bytes.
    #[schema(value_type = Option<u64>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was ready or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
}

/// One line of the answer to `POST /v1/templates`: newline-delimited JSON, told apart by `event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BuildLine {
    /// The last line of a build that succeeded.
    Template(TemplateLine),
    /// What happens; `{"event":"failed"}` is the last line of a build that did not.
    Event(BuildEvent),
}

/// The last line of a build that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum TemplateLine {
    /// Sandboxes can start from it.
    Template {
        /// The template.
        template: Template,
    },
}

/// Whether to remove garbage or only to say what would be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub struct GarbageQuery {
    /// `true` only says it.
    #[param(value_type = Option<bool>)]
    pub dry_run: Option<String>,
}

/// What a node has on its disk that nothing needs, or that can be had again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeGarbage {
    /// The node's id.
    pub node: String,
    /// Each thing, with the reason why it is kept or goes.
    #[schema(value_type = Vec<Object>)]
    pub garbage: Vec<crate::node::Garbage>,
    /// Why the node did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::error::ProblemBody>,
}

/// Which sandboxes `GET /v1/sandboxes` lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct SandboxesQuery {
    /// `running`, `paused`, `ended`, joined by commas; `running,paused` if absent.
    pub state: Option<String>,
}
