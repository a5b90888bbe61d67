//! What sandboxes use.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// One sample of what a sandbox uses; amounts are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// When, in seconds since 1970.
    pub timestamp_unix: i64,
    /// Processors it may use.
    pub cpu_count: u32,
    /// Per cent of one processor, so up to 100 × `cpuCount`.
    pub cpu_used_pct: f64,
    /// Memory in use without reclaimable cache.
    pub mem_used: u64,
    /// Its memory limit.
    pub mem_total: u64,
    /// Page cache charged to it.
    pub mem_cache: u64,
    /// What its writable layer holds.
    pub disk_used: u64,
    /// What the layer may hold.
    pub disk_total: u64,
}

/// The newest sample of several sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxesMetrics {
    /// By sandbox id; sandboxes that do not exist are left out.
    pub sandboxes: BTreeMap<String, Metric>,
}

/// Which samples to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct MetricsQuery {
    /// From when, in seconds since 1970.
    #[param(value_type = Option<i64>)]
    pub start: Option<String>,
    /// Until when, in seconds since 1970.
    #[param(value_type = Option<i64>)]
    pub end: Option<String>,
}

/// Which sandboxes to read the newest sample of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct SandboxesMetricsQuery {
    /// Ids, joined by commas; at most 100.
    pub sandbox_ids: String,
}
