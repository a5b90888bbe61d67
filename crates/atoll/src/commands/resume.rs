//! `atoll resume`: brings paused sandboxes back.

use crate::{client::connection::Connection, commands::parse_seconds, failure, style};

const EXAMPLES: &str = "\
Examples:
  atoll resume i0ab
  atoll resume i0ab --timeout 1h

A sandbox that runs is only given the time, if it would end earlier.";

/// Resume paused sandboxes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sandboxes: their ids, or the beginnings of them
    #[arg(value_name = "SANDBOX", required = true)]
    sandboxes: Vec<String>,

    /// How long they live from then on: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_seconds)]
    timeout: u64,

    #[command(flatten)]
    connection: Connection,
}

/// Does it. One that cannot be resumed does not keep the others.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let mut status = 0;
    for name in arguments.sandboxes {
        let resumed = async {
            let id = client.resolve(&name).await?;
            client.resume(&id, arguments.timeout).await?;
            style::to_stdout(&format!("{id}\n"))
        };
        if let Err(error) = resumed.await {
            failure::report(&error);
            status = failure::FAILED;
        }
    }
    Ok(status)
}
