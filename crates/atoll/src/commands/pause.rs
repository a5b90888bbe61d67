//! `atoll pause`: saves sandboxes and releases what they hold.

use crate::{client::connection::Connection, failure, style};

const EXAMPLES: &str = "\
Examples:
  atoll pause i0ab             memory and disk are kept; programs go on where they were
  atoll pause i0ab --disk-only  only files are kept; programs end
  atoll resume i0ab

A paused sandbox takes nothing but disk, and its time does not count. It survives a restart of the
machine.";

/// Pause sandboxes: their state is kept, and nothing else is held
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sandboxes: their ids, or the beginnings of them
    #[arg(value_name = "SANDBOX", required = true)]
    sandboxes: Vec<String>,

    /// Keep files only: programs end, and the sandbox boots anew when it is resumed
    #[arg(long)]
    disk_only: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Does it. One that cannot be paused does not keep the others.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let client = arguments.connection.open()?;
    let mut status = 0;
    for name in arguments.sandboxes {
        let paused = async {
            let id = client.resolve(&name).await?;
            client.pause(&id, !arguments.disk_only).await?;
            style::to_stdout(&format!("{id}\n"))
        };
        if let Err(error) = paused.await {
            failure::report(&error);
            status = failure::FAILED;
        }
    }
    Ok(status)
}
