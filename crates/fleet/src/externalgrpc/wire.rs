//! The messages of externalgrpc and of the expander, as Cluster Autoscaler 1.26 to 1.36 writes and
//! reads them.
//!
//! With 1.35 several fields got new numbers, as messages of Kubernetes are no longer embedded. Where
//! there are two, both are written and either is read. An embedded message and `bytes` look the
//! same on the wire, and so do `meta.v1.Time` and `google.protobuf.Timestamp`.

use crate::moment::{Moment, Span};
use prost::Message;
use std::collections::BTreeMap;

/// The largest message that is accepted, in bytes.
pub const LARGEST: usize = 4 << 20;

/// A message without fields.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Empty {}

/// A group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeGroup {
    /// Its name; empty for "none of ours".
    #[prost(string, tag = "1")]
    pub id: String,
    /// How few machines it can be left with.
    #[prost(int32, tag = "2")]
    pub min_size: i32,
    /// How many machines it can have on.
    #[prost(int32, tag = "3")]
    pub max_size: i32,
    /// For people.
    #[prost(string, tag = "4")]
    pub debug: String,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Node {
    /// `spec.providerID`.
    #[prost(string, tag = "1")]
    pub provider_id: String,
    /// `metadata.name`.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its labels.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[prost(btree_map = "string, string", tag = "4")]
    pub annotations: BTreeMap<String, String>,
}

/// The answer of `NodeGroups`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeGroups {
    /// All groups.
    #[prost(message, repeated, tag = "1")]
    pub node_groups: Vec<NodeGroup>,
}

/// The question of `NodeGroupForNode`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ForNode {
    /// The node.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
}

/// The answer of `NodeGroupForNode`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GroupOfNode {
    /// Its group, or one with an empty name.
    #[prost(message, optional, tag = "1")]
    pub node_group: Option<NodeGroup>,
}

/// A question about one group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Id {
    /// The group's name.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// The answer of `NodeGroupTargetSize`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TargetSize {
    /// How many machines are promised.
    #[prost(int32, tag = "1")]
    pub target_size: i32,
}

/// The question of `NodeGroupIncreaseSize` and of `NodeGroupDecreaseTargetSize`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Delta {
    /// How many more; negative for a decrease.
    #[prost(int32, tag = "1")]
    pub delta: i32,
    /// The group's name.
    #[prost(string, tag = "2")]
    pub id: String,
}

/// The question of `NodeGroupDeleteNodes`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteNodes {
    /// Nodes, also such that never registered.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Node>,
    /// The group's name.
    #[prost(string, tag = "2")]
    pub id: String,
}

/// The answer of `NodeGroupNodes`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Instances {
    /// Machines that are there, come or go.
    #[prost(message, repeated, tag = "1")]
    pub instances: Vec<Instance>,
}

/// A machine that is there, comes or goes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Instance {
    /// The same as its node's `spec.providerID`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where it is on its way.
    #[prost(message, optional, tag = "2")]
    pub status: Option<InstanceStatus>,
}

/// Where a machine is on its way.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InstanceStatus {
    /// One of [`RUNNING`], [`CREATING`] and [`DELETING`].
    #[prost(int32, tag = "1")]
    pub instance_state: i32,
    /// Why it does not come.
    #[prost(message, optional, tag = "2")]
    pub error_info: Option<InstanceError>,
}

/// The node was seen.
pub const RUNNING: i32 = 1;
/// The machine was promised.
pub const CREATING: i32 = 2;
/// The machine was given back.
pub const DELETING: i32 = 3;

/// Why a machine does not come.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InstanceError {
    /// A word for programs.
    #[prost(string, tag = "1")]
    pub error_code: String,
    /// For people.
    #[prost(string, tag = "2")]
    pub error_message: String,
    /// [`OUT_OF_RESOURCES`] or [`OTHER`].
    #[prost(int32, tag = "3")]
    pub instance_error_class: i32,
}

/// There is no more of it.
pub const OUT_OF_RESOURCES: i32 = 1;
/// Any other failure.
pub const OTHER: i32 = 99;

/// The answer of `NodeGroupTemplateNodeInfo`: a `v1.Node` in both fields.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Template {
    /// Until 1.34, where it is an embedded message.
    #[prost(bytes = "vec", tag = "1")]
    pub node_info: Vec<u8>,
    /// From 1.35 on.
    #[prost(bytes = "vec", tag = "2")]
    pub node_bytes: Vec<u8>,
}

/// The question of `NodeGroupGetOptions`. The defaults stay bytes, so that what later versions add
/// is given back as it came.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OptionsQuestion {
    /// The group's name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`Options`].
    #[prost(bytes = "vec", optional, tag = "2")]
    pub defaults: Option<Vec<u8>>,
}

/// The answer of `NodeGroupGetOptions`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OptionsAnswer {
    /// [`Options`].
    #[prost(bytes = "vec", optional, tag = "1")]
    pub options: Option<Vec<u8>>,
}

/// How a group is scaled.
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// Below this utilisation a node may be removed.
    #[prost(double, tag = "1")]
    pub utilization: f64,
    /// The same for nodes with accelerators.
    #[prost(double, tag = "2")]
    pub gpu_utilization: f64,
    /// For how long a node must have been unneeded; until 1.34.
    #[prost(message, optional, tag = "3")]
    pub unneeded_legacy: Option<LegacyDuration>,
    /// The same for a node that is not ready; until 1.34.
    #[prost(message, optional, tag = "4")]
    pub unready_legacy: Option<LegacyDuration>,
    /// How long a node may take to come; until 1.34.
    #[prost(message, optional, tag = "5")]
    pub provision_legacy: Option<LegacyDuration>,
    /// Whether the group is switched as a whole.
    #[prost(bool, tag = "6")]
    pub zero_or_max: bool,
    /// Whether daemon sets count as utilisation.
    #[prost(bool, tag = "7")]
    pub ignore_daemon_sets: bool,
    /// For how long a node must have been unneeded; from 1.35 on.
    #[prost(message, optional, tag = "8")]
    pub unneeded: Option<Duration>,
    /// The same for a node that is not ready; from 1.35 on.
    #[prost(message, optional, tag = "9")]
    pub unready: Option<Duration>,
    /// How long a node may take to come; from 1.35 on.
    #[prost(message, optional, tag = "10")]
    pub provision: Option<Duration>,
    /// How long a node may take from registering to being ready; in later versions only.
    #[prost(message, optional, tag = "11")]
    pub startup: Option<Duration>,
    /// Whether a part of a group that is switched as a whole may come; in later versions only.
    #[prost(bool, tag = "12")]
    pub allow_part: bool,
}

/// `meta.v1.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LegacyDuration {
    /// Nanoseconds.
    #[prost(int64, tag = "1")]
    pub nanoseconds: i64,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// The rest.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `google.protobuf.Timestamp`, and `meta.v1.Time`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// The rest.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// The question of `PricingNodePrice`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodePrice {
    /// The node.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// From when; until 1.34.
    #[prost(message, optional, tag = "2")]
    pub start_legacy: Option<Timestamp>,
    /// Until when; until 1.34.
    #[prost(message, optional, tag = "3")]
    pub end_legacy: Option<Timestamp>,
    /// From when; from 1.35 on.
    #[prost(message, optional, tag = "4")]
    pub start: Option<Timestamp>,
    /// Until when; from 1.35 on.
    #[prost(message, optional, tag = "5")]
    pub end: Option<Timestamp>,
}

/// The question of `PricingPodPrice`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodPrice {
    /// A `v1.Pod`; until 1.34, where it is an embedded message.
    #[prost(bytes = "vec", tag = "1")]
    pub pod_legacy: Vec<u8>,
    /// From when; until 1.34.
    #[prost(message, optional, tag = "2")]
    pub start_legacy: Option<Timestamp>,
    /// Until when; until 1.34.
    #[prost(message, optional, tag = "3")]
    pub end_legacy: Option<Timestamp>,
    /// A `v1.Pod`; from 1.35 on.
    #[prost(bytes = "vec", tag = "4")]
    pub pod: Vec<u8>,
    /// From when; from 1.35 on.
    #[prost(message, optional, tag = "5")]
    pub start: Option<Timestamp>,
    /// Until when; from 1.35 on.
    #[prost(message, optional, tag = "6")]
    pub end: Option<Timestamp>,
}

/// The answer of both price calls.
#[derive(Clone, PartialEq, Message)]
pub struct Price {
    /// In whatever the operator's objective counts.
    #[prost(double, tag = "1")]
    pub price: f64,
}

/// The answer of `GPULabel`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GpuLabel {
    /// The label that nodes with accelerators have.
    #[prost(string, tag = "1")]
    pub label: String,
}

/// The answer of `GetAvailableGPUTypes`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GpuTypes {
    /// Only the keys are looked at; the values are empty `google.protobuf.Any`.
    #[prost(btree_map = "string, message", tag = "1")]
    pub gpu_types: BTreeMap<String, Empty>,
}

/// The question of the expander's `BestOptions`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BestOptionsQuestion {
    /// What Cluster Autoscaler could do.
    #[prost(message, repeated, tag = "1")]
    pub options: Vec<ExpansionOption>,
    /// A `v1.Node` for each group; until 1.34, where they are embedded messages.
    #[prost(btree_map = "string, bytes", tag = "2")]
    pub nodes_legacy: BTreeMap<String, Vec<u8>>,
    /// A `v1.Node` for each group; from 1.35 on.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub nodes: BTreeMap<String, Vec<u8>>,
}

/// The answer of the expander's `BestOptions`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BestOptionsAnswer {
    /// What it should do: one, or several that are equally good.
    #[prost(message, repeated, tag = "1")]
    pub options: Vec<ExpansionOption>,
}

/// A way to scale up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExpansionOption {
    /// The group's name.
    #[prost(string, tag = "1")]
    pub node_group_id: String,
    /// How many nodes come.
    #[prost(int32, tag = "2")]
    pub node_count: i32,
    /// For people.
    #[prost(string, tag = "3")]
    pub debug: String,
    /// A `v1.Pod` for each that gets a place; until 1.34, where they are embedded messages.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub pods_legacy: Vec<Vec<u8>>,
    /// A `v1.Pod` for each that gets a place; from 1.35 on.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub pods: Vec<Vec<u8>>,
}

impl Timestamp {
    /// The moment; 1970 for what was before.
    pub fn moment(&self) -> Moment {
        Moment(u64::try_from(self.seconds).unwrap_or(0))
    }
}

impl Duration {
    /// So long.
    pub fn of(span: Span) -> Self {
        Self {
            seconds: i64::try_from(span.0).unwrap_or(i64::MAX),
            nanos: 0,
        }
    }

    /// The same for versions until 1.34.
    pub fn legacy(&self) -> LegacyDuration {
        let whole = self.seconds.saturating_mul(1_000_000_000);
        LegacyDuration {
            nanoseconds: whole.saturating_add(i64::from(self.nanos)),
        }
    }
}

impl LegacyDuration {
    /// The same for versions from 1.35 on.
    pub fn modern(&self) -> Duration {
        Duration {
            seconds: self.nanoseconds / 1_000_000_000,
            nanos: (self.nanoseconds % 1_000_000_000) as i32,
        }
    }
}
