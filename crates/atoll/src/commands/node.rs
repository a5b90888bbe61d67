//! `atoll node`: the machines that run sandboxes.

use crate::{
    client::connection::Connection,
    style::{self, Table},
};
use api::node::NodeDescription;
use clap::Subcommand;

/// See the machines that run sandboxes
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the nodes
    #[command(after_help = "Example:\n  atoll node ls --json")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let Command::Ls { json, connection } = arguments.command;
    let client = connection.open()?;
    let nodes: Vec<NodeDescription> = client.get("/v1/nodes").await?;
    if json {
        style::print_json(&nodes)?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "NODE",
        "NAME",
        "DRIVER",
        "SANDBOXES",
        "READY",
        "CPUS",
        "MEMORY",
        "KERNEL",
        "VERSION",
    ]);
    for node in nodes {
        table.row([
            node.id.to_string(),
            node.name,
            node.driver,
            format!("{}/{}", node.sandboxes, node.sandboxes_max),
            node.slots_ready.to_string(),
            node.capacity.vcpus.to_string(),
            node.capacity.memory.to_string(),
            node.kernel,
            node.version,
        ]);
    }
    table.print()?;
    Ok(0)
}
