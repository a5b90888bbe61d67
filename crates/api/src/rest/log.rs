//! What sandboxes and builds logged.

use crate::node::LogLevel;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// One line, structured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// The text.
    pub message: String,
    /// `debug`, `info`, `warn` or `error`.
    #[schema(value_type = String)]
    pub level: LogLevel,
    /// More about it.
    pub fields: BTreeMap<String, String>,
}

/// One line, plain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogText {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// The text.
    pub line: String,
}

/// `GET /sandboxes/{sandboxID}/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// The lines, plain, oldest first.
    pub logs: Vec<LogText>,
    /// The same lines, structured.
    pub log_entries: Vec<LogEntry>,
}

/// `GET /v2/sandboxes/{sandboxID}/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogsV2 {
    /// The lines.
    pub logs: Vec<LogEntry>,
}

/// Which lines to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// From when, in milliseconds since 1970.
    #[param(value_type = Option<i64>)]
    pub start: Option<String>,
    /// How many at most: 1000 if absent, which is also the most.
    #[param(value_type = Option<u32>)]
    pub limit: Option<String>,
}

/// Which lines to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct LogsQueryV2 {
    /// Where to start, in milliseconds since 1970.
    #[param(value_type = Option<i64>)]
    pub cursor: Option<String>,
    /// How many at most: 1000 if absent, which is also the most.
    #[param(value_type = Option<u32>)]
    pub limit: Option<String>,
    /// `forward` (if absent) from the cursor on, or `backward` from it.
    pub direction: Option<String>,
    /// The least level: `debug`, `info`, `warn` or `error`.
    pub level: Option<String>,
    /// Only lines that hold this text.
    pub search: Option<String>,
}
