//! The interface between the control plane and a node.
//!
//! In `atoll up` both are in one process and the calls are plain; between machines the same
//! trait is served over RPC. All types are serialisable for that reason.

use crate::{
    BuildId, Bytes, ImageDigest, NodeId, Problem, Resources, SandboxId, Secret, TemplateId,
    TenantId, template::TemplateSource,
};
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Everything a node needs to start one sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateSandbox {
    /// Made by the control plane; names this node.
    pub id: SandboxId,
    /// Who owns it.
    pub tenant: TenantId,
    /// Which template, and which build of it.
    pub template: TemplateBuild,
    /// What it may use.
    pub resources: Resources,
    /// Variables for every process, besides the template's.
    pub environment: BTreeMap<String, String>,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// How long it lives, counted from when it is usable.
    pub timeout: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Whether traffic wakes it when paused.
    pub auto_resume: bool,
    /// What it may reach and who may reach it.
    pub network: NetworkPolicy,
    /// The token that opens its guest; none means open to whoever reaches it.
    pub access_token: Option<Secret>,
    /// The token that opens its ports, where `network.allow_public_traffic` is false.
    pub traffic_token: Option<Secret>,
}

/// A template build as a sandbox needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateBuild {
    /// The template.
    pub template: TemplateId,
    /// Its build.
    pub build: BuildId,
    /// The name by which users know it.
    pub alias: Option<String>,
    /// The root file system.
    pub image: ImageDigest,
    /// Variables that the template sets.
    pub environment: BTreeMap<String, String>,
    /// Run when the sandbox starts, as `user` by `/bin/bash -l -c`.
    pub start_command: Option<String>,
    /// The user whom commands run as by default.
    pub user: String,
    /// Where they run by default.
    pub working_directory: String,
}

/// What happens when a sandbox's time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It ends.
    Kill,
    /// It is paused.
    Pause,
}

/// What a sandbox may reach and who may reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Whether it may reach the internet at all. Private ranges are never reachable.
    pub internet: bool,
    /// Whether its ports are open to anyone who knows its name.
    pub allow_public_traffic: bool,
    /// Rewrites the Host header that servers in the sandbox see; `${PORT}` is substituted.
    pub mask_request_host: Option<String>,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self {
            internet: true,
            allow_public_traffic: true,
            mask_request_host: None,
        }
    }
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum SandboxState {
    /// Claimed, not yet usable.
    Starting,
    /// Usable.
    Running,
    /// Its processes are stopped and its state is kept.
    Paused,
    /// Being taken down.
    Stopping {
        /// Why.
        reason: EndReason,
    },
    /// Gone, for good.
    Ended {
        /// Why.
        reason: EndReason,
        /// When.
        at: Timestamp,
    },
}

/// Why a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum EndReason {
    /// Its owner asked.
    Killed,
    /// Its time was up.
    TimedOut,
    /// The kernel killed its first process because its memory limit was reached.
    OutOfMemory,
    /// Its first process ended by itself or by another fault; the text says what is known.
    Crashed(String),
    /// The node stopped and was told to keep nothing.
    NodeStopped,
    /// It never became usable; the text says why.
    FailedToStart(String),
}

/// A sandbox as its node sees it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// Who owns it.
    pub tenant: TenantId,
    /// What it started from.
    pub template: TemplateBuild,
    /// What it may use.
    pub resources: Resources,
    /// Its labels.
    pub metadata: BTreeMap<String, String>,
    /// Where it is in its life.
    pub state: SandboxState,
    /// When it became usable (or was asked for, while it starts).
    pub started_at: Timestamp,
    /// When its time is up.
    pub deadline: Timestamp,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Whether traffic wakes it.
    pub auto_resume: bool,
    /// What it may reach and who may reach it.
    pub network: NetworkPolicy,
    /// Whether a token opens its guest.
    pub secure: bool,
    /// Its address on the node; none when it has ended.
    pub address: Option<IpAddr>,
}

/// One sample of what a sandbox uses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSample {
    /// When.
    pub at: Timestamp,
    /// Processors it may use.
    pub vcpus: u32,
    /// Per cent of one processor, so up to 100 × `vcpus`.
    pub cpu_used_percent: f64,
    /// Memory in use without reclaimable cache.
    pub memory_used: Bytes,
    /// Its memory limit.
    pub memory_total: Bytes,
    /// Page cache charged to it.
    pub memory_cache: Bytes,
    /// What its writable layer holds.
    pub disk_used: Bytes,
    /// What the layer may hold.
    pub disk_total: Bytes,
}

/// One line of a sandbox's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// How bad.
    pub level: LogLevel,
    /// The text, bounded by the guest and again by the node.
    pub message: String,
    /// More about it: `pid`, `stream`, `command`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

/// How bad a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For finding faults.
    Debug,
    /// What happens in a normal life.
    Info,
    /// Unexpected, and survived.
    Warn,
    /// Something failed.
    Error,
}

/// A node as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub name: String,
    /// The driver in use: `firecracker`, `qemu` or `container`.
    pub driver: String,
    /// What the driver can do.
    pub memory_snapshots: bool,
    /// What the machine has.
    pub capacity: Resources,
    /// What sandboxes were promised.
    pub allocated: Resources,
    /// How many sandboxes run, and how many may.
    pub sandboxes: u32,
    /// The most it may run.
    pub sandboxes_max: u32,
    /// Slots that are ready for the next sandboxes.
    pub slots_ready: u32,
    /// Kernel release.
    pub kernel: String,
    /// Atoll's version.
    pub version: String,
}

/// What happens while a node builds a root file system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum BuildEvent {
    /// A step has begun; `total` bytes or items are expected if known.
    Step {
        /// For people: `pulling layer 2 of 5`.
        name: String,
        /// How much there is to do, if known.
        total: Option<u64>,
    },
    /// The step that was begun last has come this far.
    Progress {
        /// Bytes or items done.
        done: u64,
    },
    /// A line of a tool's output.
    Log(LogLine),
    /// Done.
    Ready(BuiltImage),
    /// Given up; what was fetched is kept for the next try.
    Failed {
        /// The cause.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
}

/// A root file system that is ready for use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltImage {
    /// Its content.
    pub digest: ImageDigest,
    /// Its size, unpacked.
    pub size: Bytes,
    /// Variables that the image's configuration sets.
    pub environment: BTreeMap<String, String>,
    /// The configuration's user, if any.
    pub user: Option<String>,
    /// The configuration's working directory, if any.
    pub working_directory: Option<String>,
    /// The configuration's entry point and command, if any.
    pub command: Vec<String>,
}

/// A node, as the control plane uses it.
///
/// Every call may be repeated: ids are made by the caller, and a call about something that is
/// already so succeeds.
#[async_trait::async_trait]
pub trait Node: Send + Sync + 'static {
    /// What the node is and has.
    async fn describe(&self) -> Result<NodeDescription, Problem>;

    /// Starts a sandbox, and returns when its guest serves.
    async fn create(&self, request: CreateSandbox) -> Result<SandboxStatus, Problem>;

    /// One sandbox, running or ended in the last day; `None` if the node never knew it or has
    /// forgotten.
    async fn get(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, Problem>;

    /// All sandboxes, those that ended in the last day included.
    async fn list(&self) -> Result<Vec<SandboxStatus>, Problem>;

    /// Ends a sandbox. True if it was there to be ended.
    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool, Problem>;

    /// Moves the moment when its time is up; a moment in the past acts at once.
    async fn set_deadline(
        &self,
        id: &SandboxId,
        deadline: Timestamp,
    ) -> Result<SandboxStatus, Problem>;

    /// Replaces what it may reach.
    async fn set_network(&self, id: &SandboxId, policy: NetworkPolicy) -> Result<(), Problem>;

    /// Samples between two moments, oldest first.
    async fn metrics(
        &self,
        id: &SandboxId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<Vec<MetricSample>, Problem>;

    /// Log lines at or after `from`, oldest first, at most `limit`.
    async fn logs(
        &self,
        id: &SandboxId,
        from: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<LogLine>, Problem>;

    /// Builds a root file system; concurrent builds of the same source share the work. The last
    /// event is `Ready` or `Failed`. Dropping the stream cancels the caller's interest.
    async fn build(
        &self,
        source: TemplateSource,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem>;

    /// Removes a root file system that no template uses; running sandboxes keep it alive until
    /// they end.
    async fn remove_image(&self, digest: &ImageDigest) -> Result<(), Problem>;
}
