//! The interface between the control plane and a node.
//!
//! In `atoll up` both are in one process and the calls are plain; between machines the same
//! trait is served over RPC. All types are serialisable for that reason.

use crate::{
    BuildId, Bytes, ErrorCode, ImageDigest, NodeId, Problem, Resources, SandboxId, Secret,
    TemplateId, TenantId,
    template::{Requester, TemplateSource},
};
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

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
    /// Whether its memory is kept when its time is up and it is paused. A sandbox paused without
    /// its memory is not woken by traffic.
    #[serde(default = "yes")]
    pub pause_memory: bool,
    /// Whether traffic wakes it when paused.
    pub auto_resume: bool,
    /// What it may reach and who may reach it.
    pub network: NetworkPolicy,
    /// The token that opens its guest; none means open to whoever reaches it.
    pub access_token: Option<Secret>,
    /// The token that opens its ports, where `network.allow_public_traffic` is false.
    pub traffic_token: Option<Secret>,
    /// Who it is to be in the mesh; nobody if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshMembership>,
}

/// Who a sandbox is to be in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshMembership {
    /// What it is called there: a DNS label.
    pub name: String,
    /// What policy knows it by.
    pub tags: BTreeSet<String>,
    /// What its node joins with: good once, and for nobody else.
    pub token: Secret,
}

/// A sandbox as others find it in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPlace {
    /// Its name there, with the domain: `ci-7.mesh.internal`.
    pub name: String,
    /// Its addresses there, the one of IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// What policy knows it by.
    pub tags: BTreeSet<String>,
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
    /// Run when the sandbox starts, as `user` by `/bin/bash -l -c`. Where the template has a
    /// snapshot with memory, it was run before that was taken.
    pub start_command: Option<String>,
    /// Run after the start command, again and again until it succeeds: the template is ready then,
    /// and its snapshot is taken. As `user` by `/bin/bash -l -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_command: Option<String>,
    /// The user whom commands run as by default.
    pub user: String,
    /// Where they run by default.
    pub working_directory: String,
}

fn yes() -> bool {
    true
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
    /// Being saved: its connections stand still. It runs on if that fails.
    Pausing,
    /// Its processes are stopped and its state is kept.
    Paused,
    /// Being brought back. It is paused again if that fails.
    Resuming,
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
    /// Its address on the node; none when it has ended or is paused.
    pub address: Option<IpAddr>,
    /// Whether its memory is kept while it is paused; none unless it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_with_memory: Option<bool>,
    /// Since when it is paused; none unless it is. Its deadline does not count meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<Timestamp>,
    /// Where it is found in the mesh, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshPlace>,
}

/// What [`Node::resume`] found and did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumed {
    /// The sandbox, which runs.
    pub status: SandboxStatus,
    /// Whether it was paused. If not, nothing was changed but its deadline, and that only to a
    /// later one.
    pub was_paused: bool,
}

/// A state that was stored under a build's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The build that a sandbox is created from to start with this state.
    pub build: BuildId,
    /// What it takes on the disk, without what it shares with others.
    pub size: Bytes,
    /// Whether it holds memory and not only the disk.
    pub memory: bool,
    /// What a sandbox that starts from it must be given; without memory, what it was given.
    pub resources: Resources,
    /// How long the sandbox stood still for it.
    pub stood_still: Duration,
}

/// One child of a fork: what it has of its own. All else is its parent's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForkChild {
    /// Made by the control plane; names this node.
    pub id: SandboxId,
    /// The token that opens its guest; none means open to whoever reaches it.
    pub access_token: Option<Secret>,
    /// The token that opens its ports, where the parent's ports are not open to all.
    pub traffic_token: Option<Secret>,
    /// How long it lives, counted from when it is usable.
    pub timeout: Duration,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
}

/// Sandboxes that a node keeps started ahead for one template build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolReport {
    /// The build; none where what is prepared may become any sandbox.
    pub build: Option<BuildId>,
    /// How large they are.
    pub resources: Resources,
    /// Ready now.
    pub ready: u32,
    /// How many recent demand asks for.
    pub wanted: u32,
    /// Creates that found one ready, since the node started.
    pub hits: u64,
    /// Creates that found none.
    pub misses: u64,
}

/// Something on a node's disk that nothing needs, or that can be had again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Garbage {
    /// What it is: `state of build …`, `half-made state …`.
    pub what: String,
    /// Why it is kept or goes.
    pub reason: String,
    /// What it takes on the disk.
    pub size: Bytes,
    /// Whether it goes (or would go, were it not only asked).
    pub removed: bool,
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

/// How long one part of starting a sandbox takes on a node, since the node started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// Its name; `total` is all of it, and `driver: …` are steps of the driver.
    pub name: String,
    /// How many were measured.
    pub count: u64,
    /// The median in milliseconds, right to 19 %.
    pub p50_ms: f64,
    /// The 99th percentile in milliseconds, right to 19 %.
    pub p99_ms: f64,
    /// The longest in milliseconds.
    pub max_ms: f64,
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
    /// The most memory that sandboxes may be promised together. The node keeps to it, and who
    /// places sandboxes reads it here.
    #[serde(default)]
    pub memory_max: Bytes,
    /// How many sandboxes run, and how many may.
    pub sandboxes: u32,
    /// The most it may run.
    pub sandboxes_max: u32,
    /// Slots that are ready for the next sandboxes.
    pub slots_ready: u32,
    /// How many sandboxes are paused; they are not among those that run.
    #[serde(default)]
    pub paused: u32,
    /// What is started ahead, and for what.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// Kernel release.
    pub kernel: String,
    /// Atoll's version.
    pub version: String,
    /// Where the time of creating sandboxes goes.
    #[serde(default)]
    pub phases: Vec<PhaseTimes>,
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
    async fn list(&self) -> Result<Vec<Arc<SandboxStatus>>, Problem>;

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
    /// event is `Ready` or `Failed`. Dropping the stream cancels the caller's interest. What the
    /// node lends to it depends on the requester.
    async fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem>;

    /// Removes a root file system that no template uses; running sandboxes keep it alive until
    /// they end.
    async fn remove_image(&self, digest: &ImageDigest) -> Result<(), Problem>;

    /// Saves a running sandbox and releases what it holds but disk; returns when that is done. Its
    /// deadline does not count until it is resumed. Without `memory` only its disk is kept, and it
    /// boots anew when it is resumed.
    ///
    /// One that is paused already, or is in transition, is a `Conflict`; so is one that has ended.
    /// `Unsupported` if the driver cannot; the sandbox goes on then, as after any failure.
    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<SandboxStatus, Problem> {
        let _ = (id, memory);
        Err(unsupported("pause a sandbox"))
    }

    /// Brings a paused sandbox back, with `timeout` from when it is usable, and returns when it is.
    /// A running one is only given that time if it would end earlier. Concurrent calls share one
    /// resume. On failure it is paused as before.
    async fn resume(&self, id: &SandboxId, timeout: Duration) -> Result<Resumed, Problem> {
        let _ = (id, timeout);
        Err(unsupported("resume a sandbox"))
    }

    /// Saves a running sandbox's state under a build's id, made by the control plane; the sandbox
    /// goes on after a short pause. [`Node::create`] with this build then starts from it, until
    /// [`Node::remove_state`]. Of `build` only its id is new: the rest is what sandboxes that start
    /// from it get.
    async fn snapshot(
        &self,
        id: &SandboxId,
        build: TemplateBuild,
        memory: bool,
    ) -> Result<SnapshotInfo, Problem> {
        let _ = (id, build, memory);
        Err(unsupported("take a snapshot of a sandbox"))
    }

    /// Makes children of a running sandbox, which goes on after a short pause: each starts with its
    /// memory and disk, and with tokens and a time of its own. A result for each, in order; an
    /// error of the whole means that no child was made. Nothing but the children is left when it
    /// returns.
    async fn fork(
        &self,
        id: &SandboxId,
        children: Vec<ForkChild>,
    ) -> Result<Vec<Result<SandboxStatus, Problem>>, Problem> {
        let _ = (id, children);
        Err(unsupported("fork a sandbox"))
    }

    /// Makes ready what sandboxes of a build start from: its disk image, and where the driver saves
    /// memory, its start and ready command run once and the state after it is kept under the
    /// build's id. `resources` are those of its sandboxes. The last event is `Failed` if it could
    /// not be done; otherwise the stream just ends, at once where there is nothing to do. Dropping
    /// the stream cancels nothing; asking again joins what is under way.
    async fn prepare_template(
        &self,
        build: TemplateBuild,
        resources: Resources,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        let _ = (build, resources);
        Ok(Box::pin(futures::stream::empty()))
    }

    /// Removes the state that is kept under a build's id, and the sandboxes started ahead from it.
    /// Its space is freed at once, or when the last sandbox that runs on it has ended. Succeeds if
    /// there is none.
    async fn remove_state(&self, build: &BuildId) -> Result<(), Problem> {
        let _ = build;
        Ok(())
    }

    /// Removes states of builds that are not in `keep`, which must be all that the control plane
    /// knows; with `dry_run` it only says what it would do. States that are younger than ten
    /// minutes stay, as their builds may not be known yet.
    async fn collect_garbage(
        &self,
        keep: Vec<BuildId>,
        dry_run: bool,
    ) -> Result<Vec<Garbage>, Problem> {
        let _ = (keep, dry_run);
        Ok(Vec::new())
    }
}

fn unsupported(what: &str) -> Problem {
    Problem::new(
        ErrorCode::Unsupported,
        format!("this node cannot {what}"),
        "use a node whose driver can: qemu or firecracker",
    )
}
