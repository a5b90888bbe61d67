//! `atoll mesh nodes` and `atoll mesh revoke`: who is in.

use crate::{
    client::{connection::Connection, encode},
    style::{self, Table},
};
use api::rest::mesh::MeshNode;

/// List the nodes of the mesh, as the coordinator knows them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  atoll mesh nodes\n  atoll mesh nodes --json | jq -r '.[].name'"
)]
pub(super) struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Put a node out for good: the others drop it at once
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  atoll mesh revoke web-2\n\nIf the machine may be in wrong hands, remove the token that it joined with too: \
                        `atoll mesh token rm`."
)]
pub(super) struct RevokeArguments {
    /// Its name as `atoll mesh nodes` shows it
    #[arg(value_name = "NODE")]
    node: String,

    #[command(flatten)]
    connection: Connection,
}

/// Lists them.
pub(super) async fn list(arguments: ListArguments) -> anyhow::Result<u8> {
    let nodes: Vec<MeshNode> = arguments.connection.open()?.get("/v1/mesh/nodes").await?;
    if arguments.json {
        style::print_json(&nodes)?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "NODE",
        "ADDRESS",
        "TAGS",
        "MODE",
        "EPHEMERAL",
        "ENDPOINTS",
        "TOKEN",
    ]);
    for node in nodes {
        let tags: Vec<_> = node.tags.into_iter().collect();
        let endpoints = if node.mode == "tun" {
            &node.endpoints
        } else {
            &node.flows
        };
        let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        table.row([
            node.name,
            node.addresses
                .first()
                .map_or_else(String::new, ToString::to_string),
            tags.join(","),
            if node.plain {
                "wireguard".to_owned()
            } else {
                style::harmless(&node.mode)
            },
            if node.ephemeral { "yes" } else { "no" }.to_owned(),
            endpoints.join(" "),
            node.token,
        ]);
    }
    table.print()?;
    Ok(0)
}

/// Puts one out.
pub(super) async fn revoke(arguments: RevokeArguments) -> anyhow::Result<u8> {
    let path = format!("/v1/mesh/nodes/{}", encode(&arguments.node));
    arguments.connection.open()?.delete(&path).await?;
    style::to_stdout(&format!("{}\n", arguments.node))?;
    Ok(0)
}
