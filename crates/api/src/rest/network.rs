//! What a sandbox may reach and who may reach it, as clients write it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Network settings of a new sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkConfig {
    /// Whether ports are open to anyone who knows the sandbox's name; true if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Rewrites the Host header that servers in the sandbox see; `${PORT}` is substituted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Ports whose servers speak TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_ports: Option<Vec<u16>>,
    /// What it may reach.
    #[serde(flatten)]
    pub egress: EgressConfig,
}

/// What a sandbox may reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressConfig {
    /// Addresses, ranges and host names that are allowed; they win over `denyOut`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Addresses and ranges that are denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// IPv4 addresses of name servers, at most ten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<Vec<String>>,
    /// A proxy for everything that leaves the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub egress_proxy: Option<serde_json::Value>,
    /// What is changed in requests to a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub rules: Option<BTreeMap<String, serde_json::Value>>,
}

/// `PUT /sandboxes/{sandboxID}/network`: replaces what the sandbox may reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NetworkUpdate {
    /// Whether it may reach the internet at all; true if absent.
    #[serde(
        rename = "allow_internet_access",
        skip_serializing_if = "Option::is_none"
    )]
    pub allow_internet_access: Option<bool>,
    /// Finer rules.
    #[serde(flatten)]
    pub egress: EgressConfig,
}
