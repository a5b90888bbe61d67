//! `atoll ls`: the sandboxes there are.

use crate::{
    client::connection::Connection,
    commands::parse_pair,
    style::{self, Table},
};
use api::rest::sandbox::ListedState;
use jiff::Timestamp;

const EXAMPLES: &str = "\
Examples:
  atoll ls
  atoll ls -m owner=ann
  atoll ls --quiet | xargs atoll rm";

/// List the sandboxes, those that are paused too
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only those that carry this label
    #[arg(short, long = "metadata", value_name = "KEY=VALUE", value_parser = parse_pair)]
    metadata: Vec<(String, String)>,

    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let mut sandboxes = client.sandboxes().await?;
    sandboxes.retain(|sandbox| {
        arguments
            .metadata
            .iter()
            .all(|(key, value)| sandbox.metadata.get(key) == Some(value))
    });
    if arguments.json {
        style::print_json(&sandboxes)?;
        return Ok(0);
    }
    if arguments.quiet {
        let ids: String = sandboxes
            .iter()
            .map(|sandbox| format!("{}\n", sandbox.sandbox_id))
            .collect();
        style::to_stdout(&ids)?;
        return Ok(0);
    }
    let now = Timestamp::now().as_second();
    let mut table = Table::new(&[
        "SANDBOX", "TEMPLATE", "STATE", "CPUS", "MEMORY", "AGE", "ENDS IN", "LABELS",
    ]);
    for sandbox in sandboxes {
        let paused = sandbox.state == ListedState::Paused;
        let state = match sandbox.pause_mode.as_deref() {
            _ if !paused => "running",
            Some("filesystem") => "paused (disk)",
            _ => "paused",
        };
        // Its time does not count while it is paused.
        let left = sandbox.end_at.as_second() - now;
        let ends_in = if paused {
            "-".to_owned()
        } else {
            style::span(left)
        };
        let labels: Vec<String> = sandbox
            .metadata
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        table.row([
            sandbox.sandbox_id,
            sandbox.alias.unwrap_or(sandbox.template_id),
            state.to_owned(),
            sandbox.cpu_count.to_string(),
            api::Bytes::mebibytes(sandbox.memory_mb).to_string(),
            style::span(now - sandbox.started_at.as_second()),
            ends_in,
            labels.join(" "),
        ]);
    }
    table.print()?;
    Ok(0)
}
