//! `atoll fork`: copies of a sandbox that runs.

use crate::{client::connection::Connection, commands::parse_seconds, failure, style};

const EXAMPLES: &str = "\
Examples:
  atoll fork i0ab               one child; prints its id
  atoll fork i0ab --count 5 --timeout 10m

The sandbox stands still for a moment and goes on. Each child starts with its memory and disk, and
with a token and random numbers of its own.";

/// Make copies of a sandbox that runs, and print their ids
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sandbox: its id, or the beginning of it
    #[arg(value_name = "SANDBOX")]
    sandbox: String,

    /// How many children
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    count: u8,

    /// How long each lives: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_seconds)]
    timeout: u64,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it. A child that did not come up does not keep the others.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let id = client.resolve(&arguments.sandbox).await?;
    let children = client.fork(&id, arguments.count, arguments.timeout).await?;
    let mut status = 0;
    let mut shown = Vec::new();
    for child in children {
        match child {
            Ok(child) if arguments.json => {
                shown.push(serde_json::json!({ "sandboxID": child }));
            }
            Ok(child) => style::to_stdout(&format!("{child}\n"))?,
            Err(problem) => {
                status = failure::FAILED;
                if arguments.json {
                    shown.push(serde_json::json!({ "error": problem.body() }));
                } else {
                    failure::report(&anyhow::Error::from(problem).context("a child did not start"));
                }
            }
        }
    }
    if arguments.json {
        style::print_json(&shown)?;
    }
    Ok(status)
}
