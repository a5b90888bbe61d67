//! `atoll gc`: frees disk that nothing needs.

use crate::{
    client::connection::Connection,
    failure,
    style::{self, Table},
};
use api::{Bytes, Problem, rest::v1::NodeGarbage};

const EXAMPLES: &str = "\
Examples:
  atoll gc --dry-run     what would be removed, and why the rest is kept
  atoll gc

Atoll does this by itself from time to time; nothing that a sandbox, snapshot or template needs is
ever removed. It needs an admin key.";

/// Free disk space that nothing needs any more
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only say what would be removed, and why
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let nodes: Vec<NodeGarbage> = client.collect_garbage(arguments.dry_run).await?;
    let failed = nodes.iter().any(|node| node.error.is_some());
    let status = if failed { failure::FAILED } else { 0 };
    if arguments.json {
        style::print_json(&nodes)?;
        return Ok(status);
    }
    let mut table = Table::new(&["NODE", "WHAT", "SIZE", "GOES", "WHY"]);
    let mut freed = Bytes(0);
    for node in nodes {
        if let Some(error) = node.error {
            let problem = Problem::new(
                error.error_code.unwrap_or(api::ErrorCode::Unavailable),
                format!("node {}: {}", node.node, style::harmless(&error.message)),
                style::harmless(&error.remedy.unwrap_or_default()),
            );
            failure::report(&problem.into());
        }
        for garbage in node.garbage {
            if garbage.removed {
                freed = Bytes(freed.0.saturating_add(garbage.size.0));
            }
            table.row([
                node.node.clone(),
                garbage.what,
                garbage.size.to_string(),
                if garbage.removed { "yes" } else { "no" }.to_owned(),
                garbage.reason,
            ]);
        }
    }
    table.print()?;
    let verb = if arguments.dry_run {
        "would be freed"
    } else {
        "freed"
    };
    style::note(&format!("{freed} {verb}"));
    Ok(status)
}
