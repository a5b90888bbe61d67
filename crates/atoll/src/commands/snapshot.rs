//! `atoll snapshot`: states of sandboxes that others start from.

use crate::{
    client::connection::Connection,
    failure,
    style::{self, Table},
};
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  atoll snapshot i0ab                  prints the snapshot's id
  atoll snapshot i0ab --name work:v2   under a name; the same name again is a new version
  atoll create work:v2                 a sandbox that starts from it
  atoll snapshot ls
  atoll snapshot rm work:v2";

/// Save the state of a sandbox that runs, for others to start from
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Sandbox: its id, or the beginning of it
    #[arg(value_name = "SANDBOX", required = true)]
    sandbox: Option<String>,

    /// Name of the snapshot, or NAME:TAG
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Keep files only: what starts from it boots anew
    #[arg(long)]
    disk_only: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the snapshots, the latest first
    #[command(after_help = "Example:\n  atoll snapshot ls --sandbox i0ab --json")]
    Ls {
        /// Only those of this sandbox: its id, or the beginning of it
        #[arg(long, value_name = "SANDBOX")]
        sandbox: Option<String>,

        /// Only those of this name, or NAME:TAG
        #[arg(long, value_name = "NAME")]
        name: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },

    /// Remove snapshots; sandboxes that started from them go on
    #[command(after_help = "Example:\n  atoll snapshot rm work:v1 work:v2")]
    Rm {
        /// Snapshots: their ids or names; without a tag, all versions
        #[arg(value_name = "SNAPSHOT", required = true)]
        snapshots: Vec<String>,

        #[command(flatten)]
        connection: Connection,
    },
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Some(Command::Ls {
            sandbox,
            name,
            json,
            connection,
        }) => list(sandbox, name, json, &connection).await,
        Some(Command::Rm {
            snapshots,
            connection,
        }) => remove(snapshots, &connection).await,
        None => {
            let client = arguments.connection.open()?;
            let sandbox = arguments.sandbox.unwrap_or_default();
            let id = client.resolve(&sandbox).await?;
            let memory = !arguments.disk_only;
            let snapshot = client.snapshot(&id, arguments.name, memory).await?;
            if arguments.json {
                style::print_json(&snapshot)?;
            } else {
                style::to_stdout(&format!("{}\n", snapshot.snapshot_id))?;
            }
            Ok(0)
        }
    }
}

async fn list(
    sandbox: Option<String>,
    name: Option<String>,
    json: bool,
    connection: &Connection,
) -> anyhow::Result<u8> {
    let client = connection.open()?;
    let sandbox = match sandbox {
        Some(text) => Some(client.resolve(&text).await?),
        None => None,
    };
    let snapshots = client.snapshots(sandbox.as_ref(), name.as_deref()).await?;
    if json {
        style::print_json(&snapshots)?;
        return Ok(0);
    }
    let mut table = Table::new(&["SNAPSHOT", "NAMES"]);
    for snapshot in snapshots {
        table.row([snapshot.snapshot_id, snapshot.names.join(" ")]);
    }
    table.print()?;
    Ok(0)
}

async fn remove(snapshots: Vec<String>, connection: &Connection) -> anyhow::Result<u8> {
    let client = connection.open()?;
    let mut status = 0;
    for snapshot in snapshots {
        match client.remove_snapshot(&snapshot).await {
            Ok(()) => style::to_stdout(&format!("{snapshot}\n"))?,
            Err(error) => {
                failure::report(&error);
                status = failure::FAILED;
            }
        }
    }
    Ok(status)
}
