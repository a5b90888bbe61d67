//! Templates, as E2B's clients list and tag them.

use super::log::LogEntry;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// It has not begun.
    Waiting,
    /// It is under way.
    Building,
    /// Sandboxes can start from it.
    Ready,
    /// It failed.
    Error,
}

/// One row of a list of templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The newest build.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Processors of its sandboxes.
    pub cpu_count: u32,
    /// Memory of its sandboxes, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// What the writable layers of its sandboxes may hold, in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// Whether other tenants may use it.
    pub public: bool,
    /// Its names, without namespace.
    pub aliases: Vec<String>,
    /// Its names, with namespace.
    pub names: Vec<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was changed last.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Always null: keys belong to tenants, not to people.
    #[schema(value_type = Option<Object>)]
    pub created_by: Option<serde_json::Value>,
    /// When a sandbox was last started from it, as far as this control plane saw.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_spawned_at: Option<Timestamp>,
    /// How many sandboxes were started from it since the control plane's start.
    pub spawn_count: u64,
    /// How many builds it has.
    pub build_count: u32,
    /// The version of the guest protocol.
    pub envd_version: String,
    /// How far the newest build has come.
    pub build_status: BuildStatus,
}

/// A template with its builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateWithBuilds {
    /// The template.
    #[serde(flatten)]
    pub template: Template,
    /// Its builds, newest first.
    pub builds: Vec<TemplateBuild>,
}

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuild {
    /// Its id.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// How far it has come.
    pub status: BuildStatus,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was changed last.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// When it was ready or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// Processors of its sandboxes.
    pub cpu_count: u32,
    /// Memory of its sandboxes, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// What the writable layers of its sandboxes may hold, in MiB.
    #[serde(
        rename = "diskSizeMB",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub disk_size_mb: Option<u64>,
    /// The version of the guest protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_version: Option<String>,
}

/// How a build goes, with what it logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuildInfo {
    /// The template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// How far it has come.
    pub status: BuildStatus,
    /// Log lines, plain.
    pub logs: Vec<String>,
    /// Log lines, structured.
    pub log_entries: Vec<LogEntry>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<BuildReason>,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildReason {
    /// The cause.
    pub message: String,
    /// The step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// Answer about a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AliasResponse {
    /// The template that has it.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Whether other tenants may use it.
    pub public: bool,
}

/// Changes to a template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TemplateUpdate {
    /// Whether other tenants may use it; unchanged if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
}

/// A template after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateUpdated {
    /// Its names, with namespace.
    pub names: Vec<String>,
}

/// `POST /templates/tags`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssignTags {
    /// `name:tag` of the build that gets the tags; `default` if it names no tag.
    pub target: String,
    /// The tags.
    pub tags: Vec<String>,
}

/// What `POST /templates/tags` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignedTags {
    /// The tags that were assigned.
    pub tags: Vec<String>,
    /// The build that they name now.
    #[serde(rename = "buildID")]
    pub build_id: String,
}

/// `DELETE /templates/tags`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeleteTags {
    /// The template's name.
    pub name: String,
    /// The tags.
    pub tags: Vec<String>,
}

/// A tag of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateTag {
    /// The tag.
    pub tag: String,
    /// The build that it names.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// When it was assigned.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}
