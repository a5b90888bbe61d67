//! Bodies of the guest's plain HTTP routes.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One file that `POST /files` or `POST /files/compose` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Its absolute path.
    pub path: String,
    /// The last part of it.
    pub name: String,
    /// Always `file`.
    #[serde(rename = "type")]
    pub file_type: String,
    /// The labels that it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// `POST /files/compose`: joins files into one, and removes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComposeRequest {
    /// The parts, in order.
    #[serde(default)]
    pub source_paths: Vec<String>,
    /// Where the whole goes.
    #[serde(default)]
    pub destination: String,
    /// Whose files these are; the default user's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// The body of an error of a plain HTTP route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpError {
    /// The HTTP status once more.
    pub code: u16,
    /// What happened.
    pub message: String,
}

/// `GET /metrics`: what the sandbox uses, as seen from inside. Amounts in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestMetrics {
    /// Seconds since 1970.
    pub ts: i64,
    /// Processors.
    pub cpu_count: u32,
    /// Processor time since the last call, in percent of one processor.
    pub cpu_used_pct: f64,
    /// All memory.
    pub mem_total: u64,
    /// Memory in use, without reclaimable cache.
    pub mem_used: u64,
    /// Reclaimable cache.
    pub mem_cache: u64,
    /// Disk in use.
    pub disk_used: u64,
    /// All disk.
    pub disk_total: u64,
}

/// One line of `GET /_atoll/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedLine {
    /// Grows by one with each line; a gap means that lines were dropped.
    pub seq: u64,
    /// The line.
    pub line: crate::node::LogLine,
}
