//! The mesh as administrators ask for it: `/v1/mesh/…`. What nodes and coordinator say to each other is signed, and is the crate
//! `mesh`'s own.

use crate::Secret;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};
use utoipa::ToSchema;

/// `POST /v1/mesh/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewMeshToken {
    /// The tags of whoever joins with it.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Whether whoever joins with it is forgotten once he vanished.
    #[serde(default)]
    pub ephemeral: bool,
    /// Whether more than one may join with it.
    #[serde(default)]
    pub reuse: bool,
    /// How long it is good for, in seconds; a day if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_seconds: Option<u64>,
    /// Where nodes reach this coordinator.
    pub url: String,
}

/// A new join token. The token itself is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedMeshToken {
    /// The public part of it.
    pub id: String,
    /// The token itself.
    #[schema(value_type = String)]
    pub token: Secret,
}

/// About a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshToken {
    /// The public part of it.
    pub id: String,
    /// The tags of whoever joins with it.
    pub tags: BTreeSet<String>,
    /// Whether whoever joins with it is forgotten once he vanished.
    pub ephemeral: bool,
    /// Whether more than one may join with it.
    pub reuse: bool,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
    /// How many nodes joined with it.
    pub uses: u64,
}

/// A node of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshNode {
    /// What it is called.
    pub name: String,
    /// Who it is: its public key, in base64 for URLs.
    pub identity: String,
    /// The key of its tunnels, in base64.
    pub wireguard: String,
    /// Whether it runs no Atoll: any other WireGuard peer.
    pub plain: bool,
    /// Its addresses in the mesh.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// What policy knows it by.
    pub tags: BTreeSet<String>,
    /// Whether it is forgotten once it vanished.
    pub ephemeral: bool,
    /// `tun`, or `userspace` for a node without a network device.
    pub mode: String,
    /// Where it says that its tunnels can be reached.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// Where it says that its carrier of flows can be reached.
    #[schema(value_type = Vec<String>)]
    pub flows: Vec<SocketAddr>,
    /// The services that it says it is not ready to give.
    pub unready: BTreeSet<String>,
    /// The token that it joined with.
    pub token: String,
    /// The id of the sandbox that it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// When it was last heard of, in milliseconds since 1970, if it was since the coordinator started.
    pub seen_ms: Option<u64>,
}

/// The policy of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeshPolicy {
    /// Its text, in TOML.
    pub text: String,
}
